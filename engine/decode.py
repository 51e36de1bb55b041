"""Fast sampling of one turn: the same tokens as `rollout.sample_turn`, several times sooner.

With one new token a row, little time goes into arithmetic and much into starting operations. So the pass
through the model is written out here with few operations and without gradients, and finished rows cost
nothing.
"""

import functools
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model import GPT, Block, KVCache, rope


def fast_sample_turn(
    model: GPT,
    cache: KVCache,
    hidden: Tensor,
    end: int,
    temperature: float,
    uniform: Tensor,
    sample_token: Callable,
) -> tuple[Tensor, Tensor]:
    """What `rollout.sample_turn` returns. `sample_token` is rollout.py's.

    We swap finished rows to the end and keep decoding only the first n, so finished rows cost nothing. At the
    end of the turn all rows go back to their places.
    """
    (B, max_new), device = uniform.shape, hidden.device
    step = decoder(model, cache)
    if device.type == "cuda":
        step = replayed(step, cache.data.shape[4])
    tokens = torch.full((B, max_new), end, device=device)
    log_probs = torch.zeros(B, max_new, device=device)
    has_ended = torch.zeros(B, dtype=torch.bool, device=device)
    places = torch.arange(B, device=device)
    uniform, order, n = uniform.clone(), places.clone(), B  # order[i] is the row that is at place i now
    for i in range(max_new):
        token, log_probs[:n, i] = sample_token(model.head(hidden), temperature, uniform[:n, i])
        tokens[:n, i] = token
        has_ended[:n] |= token == end
        if i + 1 == max_new:
            break
        if device.type == "cpu" or i % 8 == 7:  # on other devices a look costs a wait
            left = n - int(has_ended[:n].sum())
            if left == 0:
                break
            fewer = min(n, fewer_rows(left, B, device))
            if fewer < n:
                late = (~has_ended[fewer:n]).nonzero()[:, 0] + fewer
                free = has_ended[:fewer].nonzero()[: len(late), 0]
                a, b = torch.cat((free, late)), torch.cat((late, free))
                for t in (tokens, log_probs, uniform, has_ended, order):
                    t[a] = t[b]
                cache.move(a, b)
                token, n = tokens[:fewer, i], fewer
        model.check_length(cache.longest + 1)
        hidden = step(token, cache.lengths[:n], cache.longest + 1)
        cache.advance(1, cache.longest + 1)
    back = order.argsort()
    moved = places[back != places]
    cache.move(moved, back[moved])
    return tokens[back], log_probs[back]


def fewer_rows(left: int, batch: int, device: torch.device) -> int:
    """How many rows go on when `left` of them have not ended. A library prepares for each new number.

    On a CPU that is a multiple of 8. On a GPU each number needs a graph of its own. So it is the batch,
    halved as often as `left` rows still fit.
    """
    if device.type == "cpu":
        return -(-left // 8) * 8
    while 2 * left <= batch:
        batch = -(-batch // 2)
    return batch


def replayed(step: Callable[..., Tensor], width: int) -> Callable[..., Tensor]:
    """What `step` of `decoder` returns, on CUDA and sooner, for a cache of `width` columns.

    A GPU finishes a small operation before Python has started the next one. So the operations of a step are
    recorded once, as a CUDA graph, and then started together. A graph has fixed shapes. So we attend to more
    columns than are filled, up to a multiple of 256, and each number of rows has its own graph. The first
    step of a shape runs without one, because libraries prepare themselves then. The tensor that is returned
    is overwritten by the next step.
    """
    graphs = {}

    def replay(ids: Tensor, positions: Tensor, end: int) -> Tensor:
        shape = len(ids), min(width, -(-end // 256) * 256)
        if shape not in graphs:
            graphs[shape] = None
            return step(ids, positions, shape[1])
        if graphs[shape] is None:
            graphs[shape] = record(step, ids, positions, shape[1])
        graph, (ids_in, positions_in), hidden = graphs[shape]
        ids_in.copy_(ids)
        positions_in.copy_(positions)
        graph.replay()
        return hidden

    return replay


def record(step: Callable[..., Tensor], ids: Tensor, positions: Tensor, end: int) -> tuple:
    """A CUDA graph of one step, the two tensors that it reads, and the one that it writes."""
    inputs, here, (aside, keeper) = (ids.clone(), positions.clone()), torch.cuda.current_stream(), recorder()
    aside.wait_stream(here)
    with torch.cuda.stream(aside):
        graph = torch.cuda.CUDAGraph()
        graph.capture_begin(pool=keeper.pool())  # torch.cuda.graph() would also empty the allocator's cache
        hidden = step(*inputs, end)
        graph.capture_end()
    here.wait_stream(aside)
    return graph, inputs, hidden


@functools.cache
def recorder() -> tuple[torch.cuda.Stream, torch.cuda.CUDAGraph]:
    """A stream to record in (CUDA can't record the default one), and a graph that keeps their memory.

    All graphs share the memory: they never run at the same time. It lives as long as one of its graphs.
    """
    aside, keeper = torch.cuda.Stream(), torch.cuda.CUDAGraph()
    with torch.cuda.stream(aside):
        keeper.capture_begin()
        torch.zeros(1, device="cuda")
        keeper.capture_end()
    return aside, keeper


def decoder(model: GPT, cache: KVCache) -> Callable[[Tensor, Tensor, int], Tensor]:
    """A function step(ids [n], positions [n], end) -> hidden [n, C]: `model.hidden` for one token a row.

    The two agree up to rounding. `step` continues the first n rows of the cache. It writes their new keys and
    values at `positions`, which are below `end`, but leaves the cache's `lengths` alone. Build a new decoder
    after every optimizer step: the weights of the norms are copied.
    """
    c, table = model.config, model.embed.weight
    H, G, D = c.n_kv_head, c.n_head // c.n_kv_head, c.head_dim  # each of H keys is shared by G queries
    width, rows = cache.data.shape[4], cache.data.shape[2]
    blocks, final = [prepared(block) for block in model.blocks], norm_of(model.norm)
    columns = torch.arange(width, device=table.device)
    start_of = torch.arange(rows * H, device=table.device).view(rows, H) * width  # where a head's keys begin
    if c.position == "rope":
        cos, sin = (t.to(table.dtype)[:, None] for t in rope(c, columns))  # [width, 1, D] each

    def step(ids: Tensor, positions: Tensor, end: int) -> Tensor:
        n = len(ids)
        end = min(width, max(end, 16))  # 16 or more, masked below: shorter rows don't fill a SIMD register
        bias = torch.zeros(n, 1, 1, end, dtype=table.dtype, device=table.device)
        bias.masked_fill_((columns[:end] > positions[:, None])[:, None, None], -torch.inf)
        bias = bias.expand(n, H, 1, end).reshape(n * H, 1, end)
        here = start_of[:n] + positions[:, None]  # [n, H]
        x = model.embed(ids)  # [n, C]
        if c.position == "learned":
            x = x + model.position(positions)
        else:
            angles = cos[positions], sin[positions]  # [n, 1, D] each
        for layer, (attn_norm, qkv, qk_norm, out, mlp_norm, up, down) in enumerate(blocks):
            qk, v = qkv(attn_norm(x)).view(n, -1, D).split((H * G + H, H), dim=1)  # [n, H * G + H or H, D]
            if c.qk_norm:
                qk = qk_norm(qk)
            if c.position == "rope":
                qk = torch.addcmul(qk * angles[0], qk.roll(D // 2, -1), angles[1])
            keys, values = cache.data[layer].flatten(1, 2)  # [B * H, width, D] each
            keys.view(-1, D)[here], values.view(-1, D)[here] = qk[:, H * G :], v
            q = qk[:, : H * G].reshape(n * H, G, D)
            scores = torch.baddbmm(bias, q, keys[: n * H, :end].mT, alpha=D**-0.5)  # [n * H, G, end]
            attended = torch.bmm(scores.softmax(-1), values[: n * H, :end])  # [n * H, G, D]
            x = x + out(attended.view(n, -1))
            h = up(mlp_norm(x))
            if c.mlp == "swiglu":
                gate, h = h.chunk(2, dim=-1)
                x = x + down(F.silu(gate) * h)
            else:
                x = x + down(F.gelu(h, approximate="tanh"))
        return final(x)

    return step


def prepared(block: Block) -> tuple[Callable[..., Tensor] | None, ...]:
    """The parts of a block as functions, in the order in which `step` calls them."""
    attn, mlp, qk_norm = block.attn, block.mlp, None
    if attn.config.qk_norm:  # the norms of q and k differ only in their weights, so one pass does both
        q_weight, k_weight = attn.q_norm.weight, attn.k_norm.weight
        weights = (q_weight.expand(attn.config.n_head, -1), k_weight.expand(attn.config.n_kv_head, -1))
        qk_norm = rms_norm(torch.cat(weights), attn.config.norm_eps)
    return norm_of(block.attn_norm), attn.qkv, qk_norm, attn.out, norm_of(block.mlp_norm), mlp.up, mlp.down


def norm_of(norm: nn.Module) -> Callable[[Tensor], Tensor]:
    return rms_norm(norm.weight, norm.eps) if isinstance(norm, nn.RMSNorm) else norm


def rms_norm(weight: Tensor, eps: float) -> Callable[[Tensor], Tensor]:
    """RMSNorm in four operations, where torch's takes seven on a CPU.

    x / rms(x) = x sqrt(D) / |x|. The hypotenuse of |x| and sqrt(D eps) adds eps under the root.
    """
    root = weight.shape[-1] ** 0.5
    weight, leg = weight.float() * root, torch.full((), root * eps**0.5, device=weight.device)

    def normalise(x: Tensor) -> Tensor:
        norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=torch.float32)
        return (x * (weight / torch.hypot(norm, leg))).to(x.dtype)

    return normalise
