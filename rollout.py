"""Sampling: dialogues of K turns, with masks that tell which tokens the model wrote.

Each row is   x1 y1 x2 y2 ... padding   without holes. The x are prompts; the y are what the model sampled.
Sampled ids are never decoded and encoded again, and one KV cache is carried from turn to turn, so no token is
computed twice.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from data.tokenizer import Tokenizer
from engine.decode import replayed
from model import GPT, KVCache


@dataclass
class Rollout:
    """Sampled dialogues: B rows, K turns, T tokens."""

    ids: Tensor  # [B, T] padded on the right; the padding means nothing
    lengths: Tensor  # [B] tokens of each row without the padding
    masks: Tensor  # [B, K, T] bool: the tokens sampled in each turn, with its end-of-turn token
    ended: Tensor  # [B, K] bool: the turn came to its end-of-turn token before the length limit
    texts: list[list[str]] = field(repr=False)  # [B][K] the text of each turn, without its end-of-turn token

    def row(self, b: int) -> list[int]:
        """The ids of row b without its padding."""
        return self.ids[b, : self.lengths[b]].tolist()


def sample_dialogues(
    model: GPT,
    tokenizer: Tokenizer,
    prompts: list[list[int]],
    requests: list[list[int]],
    max_new: int,
    temperature: float,
    generator: torch.Generator | None = None,
    at_once: int = 256,
) -> Rollout:
    """Dialogues of K = len(requests) + 1 turns: the model answers `prompts[b]`, then each of `requests`.

    The requests are the same for every row, so they can't reveal whether the attempt before was right. A turn
    ends with the end-of-turn token or after `max_new` tokens; a turn that was cut off is closed before the
    next request. A prompt may itself hold whole turns, such as a first attempt by somebody else. Temperature
    0 is greedy. `generator` is the only source of randomness. `at_once` rows are sampled together: that
    bounds the memory of keys and values.
    """
    end, device, dialogues = tokenizer.end_id, model.embed.weight.device, []
    for part in (prompts[i : i + at_once] for i in range(0, len(prompts), at_once)):
        dialogues += sample_rows(model, part, requests, end, max_new, temperature, generator)
    ids, lengths = right_pad([row for row, _ in dialogues], end, device)  # [B, T], [B]
    spans = torch.tensor([spans for _, spans in dialogues], device=device)  # [B, K, 2]
    starts, stops = spans.unbind(-1)  # [B, K] each
    texts = [
        [tokenizer.decode([i for i in row[start:stop] if i != end]) for start, stop in spans]
        for row, spans in dialogues
    ]
    masks, ended = turn_masks(starts, stops, ids.shape[1]), ids.gather(1, stops - 1) == end
    return Rollout(ids, lengths, masks, ended, texts)


def offline_dialogues(first: GPT, model: GPT, tokenizer, prompts, requests, *sampling) -> Rollout:
    """Dialogues whose first attempt the model `first` makes (an ablation of section 5.3). It is context only:
    its masks are False. `sampling` are the further arguments of `sample_dialogues`.
    """
    given = sample_dialogues(first, tokenizer, prompts, [], *sampling)
    closed = [given.row(b) for b in range(len(prompts))]
    closed = [row if row[-1] == tokenizer.end_id else [*row, tokenizer.end_id] for row in closed]
    rest = sample_dialogues(model, tokenizer, [row + requests[0] for row in closed], requests[1:], *sampling)
    masks = torch.cat((torch.zeros_like(rest.masks[:, :1]), rest.masks), dim=1)
    texts = [a + b for a, b in zip(given.texts, rest.texts, strict=True)]
    return Rollout(rest.ids, rest.lengths, masks, torch.cat((given.ended, rest.ended), dim=1), texts)


@torch.no_grad()
def sample_rows(
    model: GPT,
    prompts: list[list[int]],
    requests: list[list[int]],
    end: int,
    max_new: int,
    temperature: float,
    generator: torch.Generator | None,
) -> list[tuple[list[int], list[tuple[int, int]]]]:
    """The dialogues of `sample_dialogues`: for each its ids, and where in them each turn's sampled tokens
    start and stop.
    """
    device, B, K = model.embed.weight.device, len(prompts), len(requests) + 1
    width = max(map(len, prompts)) + K * max_new + sum(len(request) + 1 for request in requests)
    cache = KVCache(model.config, B, width, device, model.embed.weight.dtype)
    step = replayed(model, cache) if device.type == "cuda" else lambda ids: model.hidden(ids, cache)
    # Each row has its own random numbers, so what it samples does not depend on the other rows.
    precise = torch.float32 if device.type == "mps" else torch.float64
    uniform = torch.rand(B, K, max_new, dtype=precise, device=device, generator=generator)
    rows, seen = [list(prompt) for prompt in prompts], [0] * B  # `seen`: tokens of each row in the cache
    spans = [[] for _ in rows]
    for turn in range(K):
        if turn > 0:
            for row in rows:
                row += requests[turn - 1] if row[-1] == end else [end, *requests[turn - 1]]
        new_ids, counts = right_pad([row[n:] for row, n in zip(rows, seen, strict=True)], end, device)
        hidden = model.hidden(new_ids, cache)[torch.arange(B, device=device), counts - 1]  # [B, C]
        cache.keep([len(row) for row in rows])
        tokens = sample_turn(model, cache, step, hidden, end, temperature, uniform[:, turn])  # [B, max_new]
        for row, turns, sampled in zip(rows, spans, tokens.tolist(), strict=True):
            sampled = sampled[: sampled.index(end) + 1] if end in sampled else sampled
            turns.append((len(row), len(row) + len(sampled)))
            row += sampled
        seen = [len(row) - 1 for row in rows]  # the model has not read the last token: it opens the next pass
        cache.keep(seen)
    return list(zip(rows, spans, strict=True))


def sample_turn(
    model: GPT, cache: KVCache, step: Callable, hidden: Tensor, end: int, temperature: float, uniform: Tensor
) -> Tensor:
    """One turn of every row: tokens [B, max_new]. What stands behind a row's first `end` means nothing.

    `hidden` [B, C] is the model's state at each row's last prompt token, which the cache holds already.
    `step(ids [B, 1])` is `model.hidden(ids, cache)`. `uniform` [B, max_new] has a random number for each
    token. Rows that have ended go on until all have; that costs less than to take them out. The cache's
    lengths afterwards mean nothing. FloatingPointError if the model's states are not finite.
    """
    tokens = torch.full(uniform.shape, end, device=hidden.device)
    has_ended = torch.zeros(len(hidden), dtype=torch.bool, device=hidden.device)
    for i in range(uniform.shape[1]):
        tokens[:, i] = sample_token(model.head(hidden), temperature, uniform[:, i])
        has_ended |= tokens[:, i] == end
        may_look = hidden.device.type == "cpu" or i % 8 == 7  # elsewhere a look makes us wait for the device
        if i + 1 == uniform.shape[1] or (may_look and has_ended.all()):
            break
        hidden = step(tokens[:, i, None])[:, 0]  # [B, C]
        cache.advance()
    if not hidden.isfinite().all():
        raise FloatingPointError("the model's states are not finite: lower the learning rate")
    return tokens


def sample_token(logits: Tensor, temperature: float, uniform: Tensor) -> Tensor:
    """One token a row [n], from logits [n, V] and a random number a row, uniform [n].

    Temperature 0 takes the likeliest token. Otherwise the token is a sample of softmax(logits / temperature),
    by the inverse of its cumulative distribution: `uniform` is in [0, 1), and the token is the first whose
    cumulative probability reaches 1 - uniform (times the sum, which rounding keeps from being 1). That is
    above 0, so a token of probability 0 is never taken. The sum has uniform's precision, float64, because
    float32 would swallow the rare tokens of a large vocabulary.
    """
    if temperature == 0:
        return logits.argmax(-1)
    probs = (logits.float() / temperature).softmax(-1)
    cumulative = probs.cumsum(-1, dtype=uniform.dtype)  # [n, V]
    tokens = torch.searchsorted(cumulative, (1 - uniform[:, None]) * cumulative[:, -1:])[:, 0]
    return tokens.clamp(max=probs.shape[-1] - 1)  # NaN would point behind the last token


def turn_masks(starts: Tensor, stops: Tensor, T: int) -> Tensor:
    """bool [B, K, T]: position t is a token of turn k of row b if starts[b, k] <= t < stops[b, k]."""
    positions = torch.arange(T, device=starts.device)
    return (positions >= starts[:, :, None]) & (positions < stops[:, :, None])


def right_pad(rows: list[list[int]], pad: int, device) -> tuple[Tensor, Tensor]:
    """Rows of ids as one tensor [B, T], padded on the right to the longest, and their lengths [B]."""
    width = max(map(len, rows))
    ids = torch.tensor([row + [pad] * (width - len(row)) for row in rows], device=device)
    return ids, torch.tensor([len(row) for row in rows], device=device)
