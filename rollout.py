"""Sampling: dialogues of k turns, ids in and ids out, with the log-probs and masks that the loss needs.

Each row is   x1 y1 x2 y2 ... pad   without holes: x are prompts, y is what the model sampled. One KV cache is carried from
turn to turn, so no token is ever computed twice, and sampled ids are never decoded and encoded again.
"""

from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor

from data.tokenizer import Tokenizer
from decode import decoder
from model import GPT, KVCache


@dataclass
class Rollout:
    """Sampled dialogues. B rows, K turns, T tokens."""

    ids: Tensor  # [B, T] padded on the right with the end-of-turn id
    lengths: Tensor  # [B] tokens of each row that are not padding
    masks: Tensor  # [K, B, T] bool: the tokens sampled in each turn, its end-of-turn included, and nothing else
    log_probs: Tensor  # [B, T] what the sampler gave each sampled token at its temperature, 0 elsewhere
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
    follow_up: list[int],
    turns: int,
    max_new: int,
    temperature: float,
    generator: torch.Generator | None = None,
) -> Rollout:
    """Lets the model speak `turns` times in each row: first to `prompts[b]`, then to `follow_up`, the correction request.

    The follow-up is the same for every row: it can't reveal whether the attempt before it was right. A turn ends with the
    end-of-turn token or after `max_new` tokens; one that was cut off is closed before the next. Temperature 0 is greedy. A
    prompt may hold whole turns already (a forced first attempt). The model's log-probs are those of logits / temperature,
    which the loss divides by the same.
    """
    device, B, end = model.embed.weight.device, len(prompts), tokenizer.end_id
    width = max(map(len, prompts)) + turns * max_new + (turns - 1) * (len(follow_up) + 1)
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
        prompts = [[i, *follow_up] if i == end else [i, end, *follow_up] for i in last]
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
