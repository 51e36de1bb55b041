"""Sampling: dialogues of K turns, with masks that tell which tokens the model wrote.

Each row is   x1 y1 x2 y2 ... padding   without holes. The x are prompts; the y are what the model sampled.
Sampled ids are never decoded and encoded again, and one KV cache is carried from turn to turn, so no token is
computed twice.
"""

from dataclasses import dataclass, field

import torch
from torch import Tensor

from data.tokenizer import Tokenizer
from engine.decode import fast_sample_turn
from model import GPT, KVCache


@dataclass
class Rollout:
    """Sampled dialogues: B rows, K turns, T tokens."""

    ids: Tensor  # [B, T] padded on the right; the padding means nothing
    lengths: Tensor  # [B] tokens of each row without the padding
    masks: Tensor  # [B, K, T] bool: the tokens sampled in each turn, with its end-of-turn token
    log_probs: Tensor  # [B, T] the sampler's log-prob of each sampled token, else 0; for tests
    ended: Tensor  # [B, K] bool: the turn came to its end-of-turn token before the length limit
    texts: list[list[str]] = field(repr=False)  # [B][K] the text of each turn, without its end-of-turn token

    def row(self, b: int) -> list[int]:
        """The ids of row b without its padding."""
        return self.ids[b, : self.lengths[b]].tolist()


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
    """Dialogues of K = len(requests) + 1 turns: the model answers `prompts[b]`, then each of `requests`.

    The requests are the same for every row, so they can't reveal whether the attempt before was right. A turn
    ends with the end-of-turn token or after `max_new` tokens; a turn that was cut off is closed before the
    next request. A prompt may itself hold whole turns, such as a first attempt by somebody else. Temperature
    0 is greedy. `generator` is the only source of randomness.
    """
    device, B, K, end = model.embed.weight.device, len(prompts), len(requests) + 1, tokenizer.end_id
    width = max(map(len, prompts)) + K * max_new + sum(len(request) + 1 for request in requests)
    cache = KVCache(model.config, B, width, device, model.embed.weight.dtype)
    ids = torch.full((B, width), end, device=device)
    log_probs = torch.zeros(B, width, device=device)
    starts, stops = torch.zeros(2, B, K, dtype=torch.long, device=device)  # where each turn's tokens are
    ended = torch.zeros(B, K, dtype=torch.bool, device=device)
    # Each row has its own random numbers, so what it samples does not depend on the other rows.
    precise = torch.float32 if device.type == "mps" else torch.float64
    uniform = torch.rand(B, K, max_new, dtype=precise, device=device, generator=generator)
    rows, steps = torch.arange(B, device=device)[:, None], torch.arange(max_new, device=device)
    for turn in range(K):
        new_ids, counts = right_pad(prompts, end, device)  # [B, P], [B]
        ids[rows, cache.lengths[:, None] + torch.arange(new_ids.shape[1], device=device)] = new_ids
        hidden = model.hidden(new_ids, cache)[rows[:, 0], counts - 1]  # [B, C] at the last prompt token
        cache.advance(counts, cache.longest + new_ids.shape[1])
        starts[:, turn] = cache.lengths
        # `sample_turn` below says plainly what the fast one does. A test holds the two equal.
        tokens, token_log_probs = fast_sample_turn(
            model, cache, hidden, end, temperature, uniform[:, turn], sample_token
        )  # [B, max_new] each
        is_end = tokens == end
        ended[:, turn] = is_end.any(1)
        counts = torch.where(ended[:, turn], is_end.int().argmax(1) + 1, max_new)  # [B] tokens of this turn
        is_sampled, columns = steps < counts[:, None], starts[:, turn, None] + steps  # [B, max_new]
        if not torch.where(is_sampled, token_log_probs, 0.0).isfinite().all():
            raise FloatingPointError("the model's logits are not finite: lower the learning rate")
        ids[rows, columns] = torch.where(is_sampled, tokens, end)
        log_probs[rows, columns] = torch.where(is_sampled, token_log_probs, 0.0)
        stops[:, turn] = starts[:, turn] + counts
        cache.lengths = stops[:, turn] - 1  # the model has not seen the last token: it opens the next prompt
        cache.longest = int(cache.lengths.max())
        if turn < len(requests):
            last = tokens.gather(1, counts[:, None] - 1)[:, 0].tolist()
            prompts = [[i, *requests[turn]] if i == end else [i, end, *requests[turn]] for i in last]
    T = cache.longest + 1
    texts = [
        [tokenizer.decode([i for i in row[a:b] if i != end]) for a, b in zip(*bounds, strict=True)]
        for row, *bounds in zip(ids.tolist(), starts.tolist(), stops.tolist(), strict=True)
    ]
    return Rollout(ids[:, :T], stops[:, -1], turn_masks(starts, stops, T), log_probs[:, :T], ended, texts)


def sample_turn(
    model: GPT, cache: KVCache, hidden: Tensor, end: int, temperature: float, uniform: Tensor
) -> tuple[Tensor, Tensor]:
    """One turn of every row: tokens and their log-probs, [B, max_new] each.

    `hidden` [B, C] is the model's state at each row's last prompt token, which the cache holds already.
    `uniform` [B, max_new] has a random number for each token. What stands behind a row's first `end` means
    nothing, and the cache's lengths afterwards mean nothing either.
    """
    tokens = torch.full(uniform.shape, end, device=hidden.device)
    log_probs = torch.zeros(uniform.shape, device=hidden.device)
    has_ended = torch.zeros(len(hidden), dtype=torch.bool, device=hidden.device)
    for i in range(uniform.shape[1]):
        tokens[:, i], log_probs[:, i] = sample_token(model.head(hidden), temperature, uniform[:, i])
        has_ended |= tokens[:, i] == end
        if has_ended.all() or i + 1 == uniform.shape[1]:
            break
        hidden = model.hidden(tokens[:, i, None], cache)[:, 0]  # [B, C]
        cache.advance(1, cache.longest + 1)
    return tokens, log_probs


def sample_token(logits: Tensor, temperature: float, uniform: Tensor) -> tuple[Tensor, Tensor]:
    """One token a row [n] and its log-prob [n], from logits [n, V] and a random number a row, uniform [n].

    Temperature 0 takes the likeliest token; its log-prob is that at temperature 1. Otherwise the token is a
    sample of softmax(logits / temperature), and so is its log-prob. Inverse-CDF sampling: `uniform` is in
    [0, 1), and the token is the first whose cumulative probability reaches 1 - uniform. That is above 0, so a
    token of probability 0 is never taken. The sum has uniform's precision, float64, because float32 would
    swallow the rare tokens of a large vocabulary.
    """
    probs = (logits.float() / (temperature or 1.0)).softmax(-1)
    if temperature == 0:
        tokens = probs.argmax(-1, keepdim=True)  # [n, 1]
    else:
        cumulative = probs.cumsum(-1, dtype=uniform.dtype)  # [n, V]
        tokens = torch.searchsorted(cumulative, (1 - uniform[:, None]) * cumulative[:, -1:])
        tokens = tokens.clamp(max=probs.shape[-1] - 1)  # NaN would point behind the last token
    return tokens[:, 0], probs.gather(1, tokens)[:, 0].log()


def turn_masks(starts: Tensor, stops: Tensor, T: int) -> Tensor:
    """bool [B, K, T]: position t is a token of turn k of row b if starts[b, k] <= t < stops[b, k]."""
    positions = torch.arange(T, device=starts.device)
    return (positions >= starts[:, :, None]) & (positions < stops[:, :, None])


def right_pad(rows: list[list[int]], pad: int, device) -> tuple[Tensor, Tensor]:
    """Rows of ids as one tensor [B, T], padded on the right to the longest, and their lengths [B]."""
    width = max(map(len, rows))
    ids = torch.tensor([row + [pad] * (width - len(row)) for row in rows], device=device)
    return ids, torch.tensor([len(row) for row in rows], device=device)
