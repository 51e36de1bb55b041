"""Sampling: dialogues of k turns, ids in and ids out, with the masks that the loss needs and the sampler's log-probs.

Each row is   x1 y1 x2 y2 ... pad   without holes: x are prompts, y is what the model sampled. One KV cache is carried from
turn to turn, so no token is ever computed twice, and sampled ids are never decoded and encoded again.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from data.tokenizer import Tokenizer
from model import GPT, Block, KVCache, LoRALinear, RMSNorm, packed, rope


@dataclass
class Rollout:
    """Sampled dialogues. B rows, K turns, T tokens."""

    ids: Tensor  # [B, T] padded on the right; what stands there means nothing
    lengths: Tensor  # [B] tokens of each row that are not padding
    masks: Tensor  # [K, B, T] bool: the tokens sampled in each turn, its end-of-turn included, and nothing else
    log_probs: (
        Tensor  # [B, T] what the sampler gave each sampled token at its temperature, else 0; for tests and figures, not the loss
    )
    ended: Tensor  # [B, K] bool: the turn came to its end of turn before the length limit
    texts: list[list[str]] = field(repr=False)  # [B][K] the sampled text of each turn, without special tokens

    def row(self, b: int) -> list[int]:
        """Ids of row b without padding, e.g. as the prompt of a further turn."""
        return self.ids[b, : self.lengths[b]].tolist()

    def followed_by(self, rest: "Rollout") -> "Rollout":
        """One dialogue out of two samplings: `rest` was prompted with these rows, whose own tokens are then only context."""
        foreign = torch.zeros(len(self.masks), *rest.ids.shape, dtype=torch.bool, device=rest.ids.device)
        return Rollout(
            rest.ids,
            rest.lengths,
            torch.cat((foreign, rest.masks)),
            rest.log_probs,
            torch.cat((self.ended, rest.ended), dim=1),
            [a + b for a, b in zip(self.texts, rest.texts, strict=True)],
        )


def concatenate(parts: list[Rollout]) -> Rollout:
    """All rows of some rollouts as one, padded to the longest."""
    width = max(part.ids.shape[1] for part in parts)

    def join(name: str, pad: int = 0, dim: int = 0) -> Tensor:
        return torch.cat([F.pad(t, (0, width - t.shape[-1]), value=pad) for t in (getattr(p, name) for p in parts)], dim)

    return Rollout(
        join("ids", pad=int(parts[0].ids[0, -1])),
        torch.cat([p.lengths for p in parts]),
        join("masks", dim=1),
        join("log_probs"),
        torch.cat([p.ended for p in parts]),
        [row for p in parts for row in p.texts],
    )


def right_pad(rows: list[list[int]], pad: int, device) -> tuple[Tensor, Tensor]:
    """Rows of ids as one tensor [B, T] and their lengths [B]."""
    width = max(map(len, rows))
    ids = torch.tensor([row + [pad] * (width - len(row)) for row in rows], device=device)
    return ids, torch.tensor([len(row) for row in rows], device=device)


def pick(logits: Tensor, temperature: float, chance: Tensor) -> tuple[Tensor, Tensor]:
    """One token a row [n] from logits [n, V], and its log-prob [n]: the likeliest at temperature 0, else a sample.

    The sample is where 1 - chance, `chance` [n] being uniform on [0, 1), falls on the line of cumulated probabilities: one
    random number a row, however large V is. In float64 where there is one, as rounding would swallow rare tokens of a large V.
    """
    probs = (logits.float() / (temperature or 1.0)).softmax(-1)
    if temperature == 0:
        tokens = probs.argmax(-1, keepdim=True)  # [n, 1]
    else:
        line = probs.cumsum(-1, dtype=chance.dtype)  # [n, V]
        tokens = torch.searchsorted(line, (1 - chance[:, None]) * line[:, -1:])  # never a token of probability 0
    return tokens[:, 0], probs.gather(1, tokens)[:, 0].log()


@torch.no_grad()
def sample_dialogues(
    model: GPT,
    tokenizer: Tokenizer,
    prompts: list[list[int]],
    requests: list[list[int]],
    max_new: int,
    temperature: float,
    generator: torch.Generator | None = None,
) -> Rollout:
    """Lets the model speak in each row, first to `prompts[b]`, then to each of `requests`: the correction request, once or more.

    The requests are the same for every row: they can't reveal whether the attempt before was right. A turn ends with the
    end-of-turn token or after `max_new` tokens; one that was cut off is closed before the next. Temperature 0 is greedy. A
    prompt may hold whole turns already (a forced first attempt). The model's log-probs are those of logits / temperature,
    which the loss divides by the same.
    """
    device, B, end, turns = model.embed.weight.device, len(prompts), tokenizer.end_id, len(requests) + 1
    width = max(map(len, prompts)) + turns * max_new + sum(len(request) + 1 for request in requests)
    cache = KVCache(model.config, B, width, device, model.embed.weight.dtype)
    ids = torch.full((B, width), end, device=device)
    log_probs = torch.zeros(B, width, device=device)
    starts, stops = torch.zeros(2, B, turns, dtype=torch.long, device=device)  # where each turn's sampled tokens are
    ended = torch.zeros(B, turns, dtype=torch.bool, device=device)
    # each row's own random numbers, drawn beforehand: neither the other rows nor their leaving decide what it samples
    chance = torch.rand(B, turns, max_new, dtype=torch.float32 if device.type == "mps" else torch.float64, device=device,
                        generator=generator)  # fmt: skip
    step, head = decoder(model, cache)
    order = rows = torch.arange(B, device=device)  # `speak` changes the order of the rows; this is how they came
    steps = torch.arange(max_new, device=device)
    for turn in range(turns):
        new_ids, counts = right_pad(prompts, end, device)  # [B, T], [B]
        ids[rows[:, None], cache.lengths[:, None] + torch.arange(new_ids.shape[1], device=device)] = new_ids
        hidden = model.hidden(new_ids, cache)[rows, counts - 1]  # [B, C] at each row's last prompt token
        cache.advance(counts, cache.longest + new_ids.shape[1])
        starts[:, turn] = cache.lengths
        tokens, scores, moved = speak(step, head, cache, hidden, end, temperature, chance[order, turn])  # [B, max_new] twice, [B]
        ids, log_probs, starts, stops, ended, order = (t[moved] for t in (ids, log_probs, starts, stops, ended, order))
        over = tokens == end
        ended[:, turn] = over.any(1)
        counts = torch.where(ended[:, turn], over.int().argmax(1) + 1, max_new)
        said, columns = steps < counts[:, None], starts[:, turn, None] + steps  # [B, max_new]
        ids[rows[:, None], columns] = torch.where(said, tokens, end)
        log_probs[rows[:, None], columns] = torch.where(said, scores, 0.0)
        stops[:, turn] = starts[:, turn] + counts
        cache.lengths = stops[:, turn] - 1  # the last token was not fed to the model: it comes before the next prompt
        cache.longest = int(cache.lengths.max())
        last = tokens.gather(1, counts[:, None] - 1)[:, 0].tolist()
        if turn < len(requests):
            prompts = [[i, *requests[turn]] if i == end else [i, end, *requests[turn]] for i in last]
    ids, log_probs, starts, stops, ended = (t[order.argsort()] for t in (ids, log_probs, starts, stops, ended))
    columns = torch.arange(cache.longest + 1, device=device)
    masks = (columns >= starts.T[:, :, None]) & (columns < stops.T[:, :, None])  # [K, B, T]
    ids, log_probs = ids[:, : len(columns)], log_probs[:, : len(columns)]
    texts = decode_spans(tokenizer, ids, starts, stops, end)
    return Rollout(ids, stops[:, -1], masks, log_probs, ended, texts)


def speak(step, head, cache: KVCache, hidden: Tensor, end: int, temperature: float,
          chance: Tensor) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """One turn: the tokens sampled after `hidden` [B, C] by `chance` [B, max_new], their log-probs, and the rows' new order [B].

    Rows that have ended leave the batch: they change places with later ones that speak on, and the first n places go on. What
    stands behind a row's first `end` means nothing, nor do the cache's lengths afterwards.
    """
    (B, max_new), device = chance.shape, hidden.device
    tokens = torch.full((B, max_new), end, device=device)
    scores = torch.zeros(B, max_new, device=device)
    over = torch.zeros(B, dtype=torch.bool, device=device)
    rows, n = torch.arange(B, device=device), B  # the row that each place holds
    for i in range(max_new):
        token, scores[:n, i] = pick(head(hidden), temperature, chance[:n, i])
        tokens[:n, i] = token
        over[:n] |= token == end
        if i + 1 == max_new:
            break
        if device.type == "cpu" or i % 8 == 7:  # elsewhere looking means waiting for the device
            speaking = n - int(over[:n].sum())
            if speaking == 0:
                break
            fewer = min(n, -(-speaking // 8) * 8)  # few different shapes: libraries prepare for each
            if fewer < n:
                late = (~over[fewer:n]).nonzero()[:, 0] + fewer
                free = over[:fewer].nonzero()[: len(late), 0]
                new, old = torch.cat((free, late)), torch.cat((late, free))
                for t in (tokens, scores, chance, over, rows):
                    t[new] = t[old]
                cache.swap(free, late)
                token, n = tokens[:fewer, i], fewer
        hidden = step(token)
        cache.advance(1, cache.longest + 1)
    return tokens, scores, rows


def decode_spans(tokenizer: Tokenizer, ids: Tensor, starts: Tensor, stops: Tensor, end: int) -> list[list[str]]:
    """The text of each row's turns [B][K], from starts to stops [B, K], without the end-of-turn token: for rewards and people."""
    return [
        [tokenizer.decode([i for i in row[a:b] if i != end]) for a, b in zip(*bounds, strict=True)]
        for row, *bounds in zip(ids.tolist(), starts.tolist(), stops.tolist(), strict=True)
    ]


# ------------------------------------------------------------------------------------------------------ one token a row
# One token a row, fast: the pass that sampling repeats for every token, with few operations and weights laid out for it.
#
# `decoder(model, cache)` gives `model.hidden` and `model.head` for one token a row, without gradient, written out in functions: the
# same numbers up to rounding, which a test compares for each kind of block. With so few rows little time goes into arithmetic
# and much into reading weights and starting operations. So the weights are laid out once for all, the keys are attended to by
# two batched products, and q and k are normalised and turned together.


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
        end = min(width, max(end, 16))  # hidden below: fewer than a vector of scores are slower than more
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
