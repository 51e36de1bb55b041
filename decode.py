"""One token a row, fast: the pass that sampling repeats for every token, with few operations and weights laid out for it.

`decoder(model, cache)` gives `model.hidden` and `model.head` for one token a row, without gradient, written out in functions: the
same numbers up to rounding, which a test compares for each kind of block. With so few rows little time goes into arithmetic
and much into reading weights and starting operations. So the weights are laid out once for all, the keys are attended to by
two batched products, and q and k are normalised and turned together.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model import GPT, Block, KVCache, LoRALinear, RMSNorm, rope
from onednn import packed


def decoder(model: GPT, cache: KVCache) -> tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]:
    """(step, head). The weights are read now, as a second copy: ask anew after they have changed.

    step(ids [n]) -> hidden [n, C] continues the first n rows of the cache and writes behind them, but leaves their `lengths`.
    head(hidden [n, C]) -> logits [n, V].
    """
    c, table = model.config, model.embed.weight
    H, G, D = c.n_kv_head, c.n_head // c.n_kv_head, c.head_dim  # each of H keys is shared by G queries
    width, rows = cache.data.shape[4], cache.data.shape[2]
    blocks, final, head = [prepared(block, rows) for block in model.blocks], norm_of(model.norm), laid_out(model.lm_head, rows)
    columns = torch.arange(width, device=table.device)
    first = torch.arange(rows * H, device=table.device).view(rows, H) * width  # [B, H] where a head's keys begin in the cache
    if c.position == "rope":
        cos, sin = (t.to(table.dtype)[:, None] for t in rope(c, columns))  # [width, 1, D] each

    def step(ids: Tensor) -> Tensor:
        n, end = len(ids), cache.longest + 1
        model.check_length(end)
        positions = cache.lengths[:n]  # [n]
        hide = torch.zeros(n, 1, 1, end, dtype=table.dtype, device=table.device)
        hide.masked_fill_((columns[:end] > positions[:, None])[:, None, None], -torch.inf)
        hide = hide.expand(n, H, 1, end).reshape(n * H, 1, end)
        here = first[:n] + positions[:, None]  # [n, H]
        x = model.embed(ids)  # [n, C]
        if c.position == "learned":
            x = x + model.position(positions)
        else:
            turn = cos[positions], sin[positions]  # [n, 1, D] each
        for layer, (attn_norm, qkv, qk_norm, out, mlp_norm, up, down) in enumerate(blocks):
            qk, v = qkv(attn_norm(x)).view(n, -1, D).split((H * G + H, H), dim=1)  # [n, H * G + H or H, D]
            if c.qk_norm:
                qk = qk_norm(qk)
            if c.position == "rope":
                qk = torch.addcmul(qk * turn[0], qk.roll(D // 2, -1), turn[1])
            keys, values = cache.data[layer].flatten(1, 2)  # [B * H, width, D] each
            keys.view(-1, D)[here], values.view(-1, D)[here] = qk[:, H * G :], v
            scores = torch.baddbmm(hide, qk[:, : H * G].reshape(n * H, G, D), keys[: n * H, :end].mT, alpha=D**-0.5)
            attended = torch.bmm(scores.softmax(-1), values[: n * H, :end])  # [n * H, G, D]
            x = x + out(attended.view(n, -1))
            h = up(mlp_norm(x))
            if c.mlp == "swiglu":
                gate, h = h.chunk(2, dim=-1)
                x = x + down(F.silu(gate) * h)
            else:
                x = x + down(F.gelu(h, approximate="tanh"))
        return final(x)

    return step, head


def prepared(block: Block, rows: int) -> tuple[Callable[..., Tensor] | None, ...]:
    """The parts of a block as functions, in the order in which `step` calls them."""
    attn, mlp, qk_norm = block.attn, block.mlp, None
    if attn.config.qk_norm:  # those of q and k differ in their weights only: one pass over the heads of both
        weights = (attn.q_norm.weight.expand(attn.config.n_head, -1), attn.k_norm.weight.expand(attn.config.n_kv_head, -1))
        qk_norm = rms_norm(torch.cat(weights), attn.config.norm_eps)
    qkv, out, up, down = (laid_out(layer, rows) for layer in (attn.qkv, attn.out, mlp.up, mlp.down))
    return norm_of(block.attn_norm), qkv, qk_norm, out, norm_of(block.mlp_norm), up, down


def norm_of(norm: nn.Module) -> Callable[[Tensor], Tensor]:
    return rms_norm(norm.weight, norm.eps) if isinstance(norm, RMSNorm) else norm


def rms_norm(weight: Tensor, eps: float) -> Callable[[Tensor], Tensor]:
    """RMSNorm in four operations, where torch's takes seven on a CPU. x / rms(x) = x sqrt(D) / |x|, and eps as a leg of |x|."""
    root = weight.shape[-1] ** 0.5
    weight, leg = weight.float() * root, torch.tensor(root * eps**0.5, device=weight.device)

    def normalise(x: Tensor) -> Tensor:
        norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=torch.float32)
        return (x * (weight / torch.hypot(norm, leg))).to(x.dtype)

    return normalise


def laid_out(layer: nn.Module, rows: int) -> Callable[[Tensor], Tensor]:
    """The layer as a function, its weight laid out for batches of about `rows` rows; an adapter is computed beside it."""
    product = packed(layer.weight, layer.bias, rows)
    if isinstance(layer, LoRALinear):
        return lambda x: product(x) + layer.update(x)
    return product
