"""Sampling: masks, ends of turns, probabilities, and the recorded pass. Classic bugs live here."""

import itertools
from collections import Counter
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F

from engine import decode
from model import GPT, GPTConfig, KVCache
from rollout import offline_dialogues, right_pad, sample_dialogues, sample_token, sample_turn, turn_masks
from train import token_scores

PROBLEMS = ("8/2", "9184/7", "42/6", "123456/8")  # prompts of different lengths
REQUESTS = ("check", "8/2", "42/6")  # of turns 2, 3 and 4
MANY = [f"{1000 + 37 * i}/{i % 9 + 1}" for i in range(40)] + list(PROBLEMS)


def sample(model, tokenizer, turns=2, temperature=1.0, problems=PROBLEMS, max_new=9, seed=3, at_once=256):
    generator = torch.Generator(model.embed.weight.device).manual_seed(seed)
    prompts = [tokenizer.user_turn(p) for p in problems]
    requests = [tokenizer.user_turn(text) for text in REQUESTS[: turns - 1]]
    return sample_dialogues(model, tokenizer, prompts, requests, max_new, temperature, generator, at_once)


def end_often(model, tokenizer, push=3.0):
    """Makes the end-of-turn token likely, so that rows end at different times."""
    with torch.no_grad():
        model.lm_head.weight[tokenizer.end_id] = 0
        model.norm.weight[:] = 1
    direction = torch.zeros(model.config.vocab_size)
    direction[tokenizer.end_id] = push
    model.lm_head.bias = torch.nn.Parameter(direction)
    return model


# ---------------------------------------------------------------------------------- whole dialogues


@torch.no_grad()
@pytest.mark.parametrize("temperature, push", [(0, 3.0), (0.7, 5.0)])
def test_sampled_log_probs_are_those_of_one_plain_pass(small_gpt, tokenizer, temperature, push):
    """44 rows that end at all times, three turns, seven rows at once: each row is what the loop without cache
    makes of it alone, a plain pass over all its ids for each token, with its own random numbers. The log-prob
    that the loss gives a sampled token is that by which the loop took it.
    """
    model, end = end_often(small_gpt(), tokenizer, push), tokenizer.end_id
    rollout = sample(model, tokenizer, 3, temperature, MANY, at_once=7)
    uniform = torch.rand(len(MANY), 3, 9, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    log_probs = []
    for b, problem in enumerate(MANY):
        ids = tokenizer.user_turn(problem)
        for turn in range(3):
            if turn:
                ids = [*ids, *([] if ids[-1] == end else [end]), *tokenizer.user_turn(REQUESTS[turn - 1])]
            for i in range(9):
                logits = model(torch.tensor([ids]))[:, -1]
                token = int(sample_token(logits, temperature, uniform[b, turn, i : i + 1]))
                log_probs.append((logits[0] / (temperature or 1.0)).log_softmax(-1)[token])
                ids = [*ids, token]
                if token == end:
                    break
        assert rollout.row(b) == ids
    scores = token_scores(model, model, rollout.ids, rollout.masks.any(1), temperature or 1.0)[0]
    assert torch.allclose(scores, torch.stack(log_probs), atol=1e-4)
    assert len(set(rollout.masks.sum(-1).flatten().tolist())) > 4 and len(set(rollout.lengths.tolist())) > 9


def test_masks_are_exactly_the_sampled_tokens(small_gpt, tokenizer):
    """Rebuilt from the pieces: prompt, attempt with its end of turn, follow-up, attempt; padding outside. The
    pad is the end-of-turn id, so a mask made by comparing ids would take padding for a sampled end.
    """
    rollout = sample(end_often(small_gpt(), tokenizer), tokenizer)
    end, follow_up = tokenizer.end_id, tokenizer.user_turn("check")
    assert rollout.ended.any() and not rollout.ended.all()  # both kinds of row are met
    assert len(set(rollout.lengths.tolist())) > 1
    for b, problem in enumerate(PROBLEMS):
        ids = list(tokenizer.user_turn(problem))
        for turn in range(2):
            if turn:  # an attempt cut off is closed first
                ids += follow_up if rollout.ended[b, turn - 1] else [end, *follow_up]
            sampled = rollout.ids[b][rollout.masks[b, turn]].tolist()
            assert 1 <= len(sampled) <= 9
            assert end not in sampled[:-1]  # the end is the last sampled token or not there
            assert (sampled[-1] == end) == bool(rollout.ended[b, turn])
            assert rollout.ended[b, turn] or len(sampled) == 9
            expected = list(range(len(ids), len(ids) + len(sampled)))
            assert rollout.masks[b, turn].nonzero()[:, 0].tolist() == expected
            ids += sampled
            text = tokenizer.decode([i for i in sampled if i != end])
            assert rollout.texts[b][turn] == text
        assert rollout.row(b) == ids  # no holes, nothing decoded and encoded again
        assert (rollout.ids[b, len(ids) :] == end).all()


def test_sampled_dialogues_have_their_probabilities():
    """Every dialogue of two turns of up to two tokens over a vocabulary of four: chi-square of 40,000
    samples, fixed seed.
    """
    torch.manual_seed(2)
    sizes = dict(n_layer=1, n_head=1, n_kv_head=1, dim=8, head_dim=8, ffn_dim=8, max_len=16)
    model = GPT(GPTConfig(vocab_size=4, **sizes))
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.7)
    end, n, expected = 0, 40_000, {}
    attempts = [(end,), *itertools.product((1, 2, 3), range(4))]
    for first, second in itertools.product(attempts, attempts):
        middle = [3] if first[-1] == end else [end, 3]
        row = [1, 2, *first, *middle, *second]
        mask = [False] * 2 + [True] * len(first) + [False] * len(middle) + [True] * len(second)
        with torch.no_grad():
            log_probs = F.log_softmax(model(torch.tensor([row]))[0], -1)
        total = sum(log_probs[i - 1, token] for i, token in enumerate(row) if mask[i])
        expected[tuple(row)] = n * total.exp().item()
    assert abs(sum(expected.values()) / n - 1) < 1e-5
    stand_in = SimpleNamespace(end_id=end, decode=lambda ids: "")
    rollout = sample_dialogues(model, stand_in, [[1, 2]] * n, [[3]], 2, 1.0, torch.Generator().manual_seed(0))
    found = Counter(tuple(rollout.row(b)) for b in range(n))
    assert found.keys() <= expected.keys()
    chi_square = sum((found[row] - times) ** 2 / times for row, times in expected.items())
    freedom = len(expected) - 1  # the mean of chi-square; its variance is twice that
    assert abs(chi_square - freedom) < 4 * (2 * freedom) ** 0.5


def test_sampling_uses_its_generator_alone(small_gpt, tokenizer):
    model = small_gpt()
    torch.manual_seed(5)
    before = torch.get_rng_state()
    a = sample(model, tokenizer)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(6)
    assert torch.equal(a.ids, sample(model, tokenizer).ids)
    assert not torch.equal(a.ids, sample(model, tokenizer, seed=4).ids)


@pytest.mark.parametrize("push", [5.0, -100.0], ids=["ends", "never ends"])
def test_no_position_is_computed_twice_and_a_turn_ends_with_its_last_row(
    small_gpt, tokenizer, monkeypatch, push
):
    """Every token is read once, but the last of each row, which nothing follows. Rows that have ended go on
    until all have.
    """
    passes, real = [], GPT.hidden
    monkeypatch.setattr(
        GPT, "hidden", lambda self, ids, cache: passes.append(ids.shape) or real(self, ids, cache)
    )
    problems = ["123/4", "987/3"]
    rollout = sample(end_often(small_gpt(), tokenizer, push), tokenizer, 3, problems=problems)
    longest = rollout.masks.sum(-1).amax(0).tolist()  # [K]
    assert [columns for _, columns in passes].count(1) == sum(n - 1 for n in longest)
    if push < 0:
        assert longest == [9, 9, 9]
        assert sum(rows * columns for rows, columns in passes) == int(rollout.lengths.sum()) - 2


@pytest.mark.parametrize("number, temperature", [(torch.nan, 0.0), (torch.nan, 1.0), (torch.inf, 1.0)])
def test_a_model_that_is_broken_ends_the_sampling_with_one_line(small_gpt, tokenizer, number, temperature):
    model = small_gpt()
    with torch.no_grad():
        model.blocks[1].mlp.down.weight[3, 5] = number
    with pytest.raises(FloatingPointError, match="^the model's states are not finite: lower .*$"):
        sample(model, tokenizer, temperature=temperature)


def test_first_attempts_by_another_model_are_context(small_gpt, tokenizer):
    """Offline first attempts: the other model's tokens stand in the row, but no mask holds them. What follows
    is the policy's.
    """
    model, other = small_gpt(), end_often(small_gpt(dim=16), tokenizer, push=2.5)
    prompts, request = [tokenizer.user_turn(p) for p in MANY[::5]], tokenizer.user_turn("check")
    sampling = 4, 0.0, None, 3
    given = sample_dialogues(other, tokenizer, prompts, [], *sampling)
    joined = offline_dialogues(other, model, tokenizer, prompts, [request] * 2, *sampling)
    assert given.ended.any() and not given.ended.all()
    assert joined.masks.shape[1] == 3 and not joined.masks[:, 0].any() and joined.masks[:, 1:].any(2).all()
    assert [texts[0] for texts in joined.texts] == [texts[0] for texts in given.texts]
    assert torch.equal(joined.ended[:, :1], given.ended)
    for b in range(len(prompts)):
        start = given.row(b) + ([] if given.ended[b, 0] else [tokenizer.end_id]) + request
        assert joined.row(b)[: len(start)] == start and int(joined.masks[b, 1].nonzero()[0]) == len(start)
        rest = sample_dialogues(model, tokenizer, [start], [request], *sampling)
        assert joined.row(b) == rest.row(0) and joined.texts[b][1:] == rest.texts[0]


# ---------------------------------------------------------------------------------- tokens and masks


def test_samples_follow_the_distribution():
    """100,000 draws: each frequency within five standard errors of its probability."""
    log_probs = F.log_softmax(torch.tensor([2.0, 0.0, -1.0, 1.0]), -1)
    n = 100_000
    uniform = torch.rand(n, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    for temperature in (1.0, 0.5):
        tokens = sample_token(log_probs.expand(n, 4), temperature, uniform)
        p = (log_probs / temperature).softmax(-1)
        assert ((tokens.bincount(minlength=4) / n - p).abs() < 5 * (p * (1 - p) / n).sqrt()).all()
    greedy = sample_token(log_probs.expand(9, 4), 0, torch.zeros(9, dtype=torch.float64))
    assert (greedy == 0).all()


def test_rare_tokens_of_a_large_vocabulary_are_sampled():
    """A cumulative sum in float32 would stand still behind the first token."""
    V = 200_000
    logits = torch.full((1, V), -20.0)
    logits[0, 0] = 0.0
    cumulative = logits.softmax(-1).double().cumsum(-1)[0]
    for token in (1, V // 2, V - 1):
        middle = (cumulative[token - 1] + cumulative[token]) / 2
        uniform = 1 - middle / cumulative[-1]
        assert sample_token(logits, 1.0, uniform[None]).item() == token


def test_a_token_of_probability_zero_is_never_sampled():
    logits = torch.tensor([[-torch.inf, 0.0, -torch.inf, 0.0, -torch.inf]]).repeat(5, 1)
    uniform = torch.tensor([0.0, 0.25, 0.5, 0.75, 1 - 2**-53], dtype=torch.float64)
    assert sample_token(logits, 1.0, uniform).tolist() == [3, 3, 1, 1, 1]


def test_turn_masks_by_hand():
    """Two rows, two turns: half-open spans, and a turn without a token."""
    masks = turn_masks(torch.tensor([[1, 4], [0, 2]]), torch.tensor([[3, 5], [2, 2]]), 6)
    assert masks[0].int().tolist() == [[0, 1, 1, 0, 0, 0], [0, 0, 0, 0, 1, 0]]
    assert masks[1].int().tolist() == [[1, 1, 0, 0, 0, 0], [0, 0, 0, 0, 0, 0]]


# ---------------------------------------------------------------------------------- the recorded pass


@torch.no_grad()
def test_a_pass_of_each_width_is_recorded_once_and_gives_what_a_plain_one_gives(small_gpt, monkeypatch):
    """All but CUDA's own part. As a graph does, the stand-in remembers what the host knew when it was
    recorded, the tensors among it, and reads these tensors' numbers anew in each replay.
    """
    model, columns = small_gpt(n_kv_head=2, max_len=300), []
    prompts, counts = right_pad([[7] * 250, [5, 9] * 122, [8] * 3], 0, "cpu")
    plain, graphed = (KVCache(model.config, 3, 290) for _ in range(2))
    uniform = torch.rand(2, 3, 12, dtype=torch.float64)

    def two_turns(cache, step):
        cache.keep([0, 0, 0])
        hidden = model.hidden(prompts, cache)[torch.arange(3), counts - 1]
        for turn in range(2):
            cache.keep((counts + turn).tolist())
            yield sample_turn(model, cache, step, hidden, -1, 0.9, uniform[turn])
            cache.keep(counts.tolist())
            hidden = model.hidden(prompts[:, :1], cache)[:, 0]

    def record(run):
        columns.append(graphed.longest + 1)
        hidden, known = torch.zeros(3, 1, 32), dict(vars(graphed))

        def replay():
            now = dict(vars(graphed))
            vars(graphed).update(known)
            hidden.copy_(run())
            vars(graphed).update(now)

        return SimpleNamespace(replay=replay), hidden

    monkeypatch.setattr(decode, "record", record)
    step = decode.replayed(model, graphed)
    expected = list(two_turns(plain, lambda ids: model.hidden(ids, plain)))
    assert all(map(torch.equal, two_turns(graphed, step), expected))
    assert columns == [256, 290]  # from 250 tokens on, then up to the cache's width
    assert torch.allclose(graphed.data[..., :251, :], plain.data[..., :251, :], atol=1e-5)
    graphed.longest = 300
    with pytest.raises(ValueError, match="max_len=300"):
        step(prompts[:, :1])
