"""Sampling: dialogues of k turns, ids in and ids out, with the log-probs and masks that the loss needs.

Each row is   x1 y1 x2 y2 ... pad   without holes: x are prompts, y is what the model sampled. One KV cache is carried from
turn to turn, so no token is ever computed twice, and sampled ids are never decoded and encoded again.
"""

from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor

from data.tokenizer import Tokenizer
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


def pick(log_probs: Tensor, temperature: float, generator: torch.Generator | None) -> Tensor:
    """One token a row [B] from log-probs [B, V]: the likeliest at temperature 0, else a sample.

    argmax(p / Exponential(1) noise) is an exact sample of p, and unlike `multinomial` waits for no check on the device.
    """
    if temperature == 0:
        return log_probs.argmax(-1)
    noise = torch.empty_like(log_probs).exponential_(generator=generator)
    return (log_probs.exp() / noise).argmax(-1)


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
    device, B = model.embed.weight.device, len(prompts)
    end = tokenizer.end_id
    scale = temperature or 1.0
    new_ids, new_counts = right_pad(prompts, end, device)  # [B, T], [B]
    width = new_ids.shape[1] + turns * max_new + (turns - 1) * (len(follow_up) + 1)
    ids = torch.full((B, width), end, device=device)
    log_probs = torch.zeros(B, width, device=device)
    ended = torch.zeros(B, turns, dtype=torch.bool, device=device)
    spans = []  # per turn: where each row's sampled tokens begin and end, [B] both
    cache = KVCache(model.config, B, width, device, model.embed.weight.dtype)
    rows = torch.arange(B, device=device)
    for turn in range(turns):
        if turn > 0:
            closed = ended[:, turn - 1].tolist()
            new_ids, new_counts = right_pad([follow_up if e else [end, *follow_up] for e in closed], end, device)
        columns = cache.lengths[:, None] + torch.arange(new_ids.shape[1], device=device)
        ids[rows[:, None], columns] = new_ids  # a shorter row's padding is overwritten by what it samples
        hidden = model.hidden(new_ids, cache)[rows, new_counts - 1]  # [B, C] at each row's last prompt token
        cache.advance(new_counts, cache.longest + new_ids.shape[1])
        start = cache.lengths
        alive = torch.ones(B, dtype=torch.bool, device=device)
        for _ in range(max_new):
            step_log_probs = F.log_softmax(model.head(hidden).float() / scale, dim=-1)  # [B, V]
            token = torch.where(alive, pick(step_log_probs, temperature, generator), end)  # [B]
            here = cache.lengths  # [B] where each row's next token stands
            ids[rows, here] = token
            log_probs[rows, here] = torch.where(alive, step_log_probs[rows, token], 0.0)
            # A row that has ended computes on, but its length stays: what it writes is overwritten or padding.
            hidden = model.hidden(token[:, None], cache)[:, 0]
            cache.advance(alive.long(), cache.longest + 1)
            ended[:, turn] |= alive & (token == end)
            alive = alive & (token != end)
            if not alive.any():
                break
        spans.append((start, cache.lengths))
        cache.longest = int(cache.lengths.max())
    columns = torch.arange(cache.longest, device=device)
    masks = torch.stack([(columns >= start[:, None]) & (columns < stop[:, None]) for start, stop in spans])  # [K, B, T]
    ids = ids[:, : cache.longest]
    texts = decode_spans(tokenizer, ids, spans, end)
    return Rollout(ids, cache.lengths, masks, log_probs[:, : cache.longest], ended, texts)


def decode_spans(tokenizer: Tokenizer, ids: Tensor, spans: list[tuple[Tensor, Tensor]], end: int) -> list[list[str]]:
    """The text of each row's turns [B][K] without the end-of-turn token. Only rewards and people read it."""
    rows = ids.tolist()
    bounds = [list(zip(start.tolist(), stop.tolist(), strict=True)) for start, stop in spans]  # [K][B]
    return [
        [tokenizer.decode([i for i in row[a:b] if i != end]) for a, b in turns]
        for row, turns in zip(rows, zip(*bounds, strict=True), strict=True)
    ]
