"""Sampling: masks, log-probs, ends of turns, batches. T1 and T2 of the classic bugs live here."""

import itertools
from collections import Counter
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from engine.sampling import concatenate, offline_rollouts, sample_many

import rollout as rollout_module
from data import Environment, load_task
from engine import decode
from model import GPT, GPTConfig
from rollout import sample_dialogues, sample_token, sample_turn, turn_masks
from train import Config

PROBLEMS = ("8/2", "9184/7", "42/6", "123456/8")  # prompts of different lengths


def sample(model, tokenizer, turns=2, temperature=1.0, problems=PROBLEMS, max_new=9, seed=3):
    generator = torch.Generator().manual_seed(seed)
    prompts = [tokenizer.user_turn(p) for p in problems]
    return sample_dialogues(
        model,
        tokenizer,
        prompts,
        [tokenizer.user_turn("check")] * (turns - 1),
        max_new,
        temperature,
        generator,
    )


def end_often(model, tokenizer, push=3.0):
    """Makes the end-of-turn token likely, so that rows end at different times."""
    with torch.no_grad():
        model.lm_head.weight[tokenizer.end_id] = 0
        model.norm.weight[:] = 1
    direction = torch.zeros(model.config.vocab_size)
    direction[tokenizer.end_id] = push
    model.lm_head.bias = torch.nn.Parameter(direction)
    return model


def test_sampled_log_probs_are_those_of_one_plain_pass(small_gpt, tokenizer):
    """At T = 0.7, for rows of different prompt and attempt lengths, through the cache and three turns."""
    model = end_often(small_gpt(), tokenizer)
    rollout = sample(model, tokenizer, turns=3, temperature=0.7)
    with torch.no_grad():
        log_probs = F.log_softmax(model.head(model.hidden(rollout.ids[:, :-1])) / 0.7, -1)
    plain = log_probs.gather(2, rollout.ids[:, 1:, None])[:, :, 0]
    mask = rollout.masks.any(1)
    assert mask.sum() > 20 and len(set(rollout.lengths.tolist())) > 1
    assert torch.allclose(rollout.log_probs[mask], plain[mask[:, 1:]], atol=1e-4)
    assert (rollout.log_probs[~mask] == 0).all()


def test_masks_are_exactly_the_sampled_tokens(small_gpt, tokenizer):
    """Rebuilt from the pieces: prompt, attempt with its end of turn, follow-up, attempt; padding outside.
    """
    rollout = sample(end_often(small_gpt(), tokenizer), tokenizer)
    end, follow_up = tokenizer.end_id, tokenizer.user_turn("check")
    assert rollout.ended.any() and not rollout.ended.all()  # both kinds of row are met
    for b, problem in enumerate(PROBLEMS):
        ids, expected_masks = list(tokenizer.user_turn(problem)), [[], []]
        for turn in range(2):
            if turn:
                ids += (
                    follow_up if rollout.ended[b, turn - 1] else [end, *follow_up]
                )  # an attempt cut off is closed first
            sampled = rollout.ids[b][rollout.masks[b, turn]].tolist()
            assert 1 <= len(sampled) <= 9
            assert end not in sampled[:-1]  # the end is the last sampled token or not there
            assert (sampled[-1] == end) == bool(rollout.ended[b, turn])
            assert rollout.ended[b, turn] or len(sampled) == 9
            expected_masks[turn] = list(range(len(ids), len(ids) + len(sampled)))
            ids += sampled
            text = tokenizer.decode([i for i in sampled if i != end])
            assert rollout.texts[b][turn] == text
        assert rollout.row(b) == ids  # no holes, nothing decoded and encoded again
        assert (rollout.ids[b, len(ids) :] == end).all()
        for turn in range(2):
            assert rollout.masks[b, turn].nonzero()[:, 0].tolist() == expected_masks[turn]


def test_masks_do_not_depend_on_what_pads(small_gpt, tokenizer):
    """The pad is the end-of-turn id here: a mask made by comparing ids would take padding for a sampled end.
    """
    rollout = sample(end_often(small_gpt(), tokenizer), tokenizer)
    padding = torch.arange(rollout.ids.shape[1]) >= rollout.lengths[:, None]
    assert padding.any() and (rollout.ids[padding] == tokenizer.end_id).all()
    assert not (rollout.masks & padding[:, None]).any()


def test_greedy_does_not_depend_on_the_batch(small_gpt, tokenizer):
    model = end_often(small_gpt(), tokenizer)
    together = sample(model, tokenizer, temperature=0, turns=3)
    for b, problem in enumerate(PROBLEMS):
        alone = sample(model, tokenizer, temperature=0, turns=3, problems=[problem])
        assert alone.row(0) == together.row(b)
        assert alone.texts[0] == together.texts[b]


def test_greedy_is_the_plain_loop_without_cache(small_gpt, tokenizer):
    model = end_often(small_gpt(), tokenizer)
    rollout = sample(model, tokenizer, temperature=0)
    end = tokenizer.end_id
    for b, problem in enumerate(PROBLEMS):
        ids = tokenizer.user_turn(problem)
        for turn in range(2):
            if turn:
                ids = [*ids, *([] if ids[-1] == end else [end]), *tokenizer.user_turn("check")]
            for _ in range(9):
                with torch.no_grad():
                    ids = [*ids, int(model(torch.tensor([ids]))[0, -1].argmax())]
                if ids[-1] == end:
                    break
        assert rollout.row(b) == ids


MANY = [f"{1000 + 37 * i}/{i % 9 + 1}" for i in range(40)] + list(PROBLEMS)


def test_rows_that_leave_the_batch_change_nothing(small_gpt, tokenizer):
    """44 rows that end at all times: each is what plain sampling with its random numbers makes of it alone.
    """
    model, prompts = end_often(small_gpt(), tokenizer, push=5.0), [tokenizer.user_turn(p) for p in MANY]
    rollout = sample(model, tokenizer, turns=3, problems=MANY)
    assert len(set(rollout.masks.sum(-1).flatten().tolist())) > 6 and len(set(rollout.lengths.tolist())) > 9
    uniform = torch.rand(len(MANY), 3, 9, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    end = tokenizer.end_id
    with torch.no_grad():
        for b, ids in enumerate(prompts):
            for turn in range(3):
                if turn:
                    ids = [*ids, *([] if ids[-1] == end else [end]), *tokenizer.user_turn("check")]
                for i in range(9):
                    token, log_prob = sample_token(
                        model(torch.tensor([ids]))[:, -1], 1.0, uniform[b, turn, i : i + 1]
                    )
                    assert abs(rollout.log_probs[b, len(ids)] - log_prob) < 1e-4
                    ids = [*ids, int(token)]
                    if ids[-1] == end:
                        break
            assert rollout.row(b) == ids


def counted(monkeypatch):
    """Positions that the model computes: the list that a rollout fills with (rows, columns) of each pass."""
    passes, real_hidden, real_decoder = [], GPT.hidden, decode.decoder

    def hidden(self, ids, cache=None):
        passes.append(tuple(ids.shape))
        return real_hidden(self, ids, cache)

    def decoder(*args):
        step = real_decoder(*args)
        return lambda ids, *where: passes.append((len(ids), 1)) or step(ids, *where)

    monkeypatch.setattr(GPT, "hidden", hidden)
    monkeypatch.setattr(decode, "decoder", decoder)
    return passes


def test_rows_that_have_ended_cost_nothing(small_gpt, tokenizer, monkeypatch):
    """A pass has as many rows as go on, rounded up to a multiple of 8."""
    passes = counted(monkeypatch)
    rollout = sample(end_often(small_gpt(), tokenizer, push=5.0), tokenizer, problems=MANY, turns=2)
    lengths = rollout.masks.sum(-1)  # [B, K]
    expected = []
    for turn in range(2):
        going_on = [int((lengths[:, turn] > i).sum()) for i in range(1, 9)]
        expected += [-(-n // 8) * 8 for n in going_on if n]
    assert len(set(expected)) > 3
    assert [min(rows, 44) for rows, columns in passes if columns == 1] == [min(n, 44) for n in expected]


def test_no_position_is_computed_twice(small_gpt, tokenizer, monkeypatch):
    """Every token is fed to the model once, but the last, which nothing follows."""
    passes = counted(monkeypatch)
    rollout = sample(
        end_often(small_gpt(), tokenizer, push=-100.0), tokenizer, problems=["123/4", "987/3"], turns=3
    )
    assert sum(rows * columns for rows, columns in passes) == int(rollout.lengths.sum()) - 2


def test_sampled_dialogues_have_their_probabilities():
    """Every dialogue of two turns of up to two tokens over a vocabulary of four: chi-square of 40,000
    samples, fixed seed.
    """
    torch.manual_seed(2)
    model = GPT(
        GPTConfig(vocab_size=4, n_layer=1, n_head=1, n_kv_head=1, dim=8, head_dim=8, ffn_dim=8, max_len=16)
    )
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.7)
    end, n = 0, 40_000
    attempts = [(end,), *itertools.product((1, 2, 3), range(4))]
    dialogues = list(itertools.product(attempts, attempts))
    rows, masks = [], []
    for first, second in dialogues:
        middle = [3] if first[-1] == end else [end, 3]
        rows.append([1, 2, *first, *middle, *second])
        masks.append([False] * 2 + [True] * len(first) + [False] * len(middle) + [True] * len(second))
    expected = []
    with torch.no_grad():
        for row, mask in zip(rows, masks, strict=True):
            log_probs = F.log_softmax(model(torch.tensor([row]))[0], -1)
            expected.append(sum(log_probs[i - 1, row[i]] for i in range(len(row)) if mask[i]).exp().item())
    assert abs(sum(expected) - 1) < 1e-5
    stand_in = SimpleNamespace(end_id=end, decode=lambda ids: "")
    rollout = sample_dialogues(model, stand_in, [[1, 2]] * n, [[3]], 2, 1.0, torch.Generator().manual_seed(0))
    found = Counter(tuple(rollout.row(b)) for b in range(n))
    assert found.keys() <= {tuple(row) for row in rows}
    chi_square = sum(
        (found[tuple(row)] - n * p) ** 2 / (n * p) for row, p in zip(rows, expected, strict=True)
    )
    freedom = len(rows) - 1
    assert (
        abs(chi_square - freedom) < 4 * (2 * freedom) ** 0.5
    )  # mean and variance of chi-square: freedom, 2 * freedom


def test_rows_that_never_end_are_cut(small_gpt, tokenizer):
    rollout = sample(end_often(small_gpt(), tokenizer, push=-100.0), tokenizer, max_new=5)
    assert not rollout.ended.any()
    assert (rollout.masks.sum(-1) == 5).all()


def test_samples_follow_the_distribution():
    """100,000 draws: each frequency within five standard errors of its probability."""
    log_probs = F.log_softmax(torch.tensor([2.0, 0.0, -1.0, 1.0]), -1)
    n = 100_000
    tokens, scores = sample_token(
        log_probs.expand(n, 4),
        1.0,
        torch.rand(n, dtype=torch.float64, generator=torch.Generator().manual_seed(0)),
    )
    p = log_probs.exp()
    assert ((tokens.bincount(minlength=4) / n - p).abs() < 5 * (p * (1 - p) / n).sqrt()).all()
    assert torch.allclose(scores.float(), log_probs[tokens], atol=1e-6)
    greedy, _ = sample_token(log_probs.expand(9, 4), 0, torch.zeros(9, dtype=torch.float64))
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
        assert sample_token(logits, 1.0, uniform[None])[0].item() == token


def test_sampling_uses_its_generator_alone(small_gpt, tokenizer):
    model = small_gpt()
    torch.manual_seed(5)
    before = torch.get_rng_state()
    a = sample(model, tokenizer)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(6)
    assert torch.equal(a.ids, sample(model, tokenizer).ids)
    assert not torch.equal(a.ids, sample(model, tokenizer, seed=4).ids)


@pytest.mark.parametrize("temperature", [0.0, 0.7, 1.0])
def test_the_fast_sampler_is_the_plain_one(small_gpt, tokenizer, monkeypatch, temperature):
    """Ids, masks, texts and log-probs of three turns of 44 rows that end at all times."""
    model = end_often(small_gpt(), tokenizer, push=5.0)
    fast = sample(model, tokenizer, turns=3, temperature=temperature, problems=MANY)

    def plain_sample_turn(model, cache, hidden, end, temperature, uniform, sample_token):
        return sample_turn(model, cache, hidden, end, temperature, uniform)

    monkeypatch.setattr(rollout_module, "fast_sample_turn", plain_sample_turn)
    monkeypatch.setattr(decode, "decoder", None)  # the fast one would fail now
    plain = sample(model, tokenizer, turns=3, temperature=temperature, problems=MANY)
    assert torch.equal(fast.ids, plain.ids) and torch.equal(fast.masks, plain.masks)
    assert fast.texts == plain.texts and torch.equal(fast.ended, plain.ended)
    assert torch.allclose(fast.log_probs, plain.log_probs, atol=1e-4)
    assert len(set(fast.masks.sum(-1).flatten().tolist())) > 2  # turns of several lengths


def test_turn_masks_by_hand():
    """Two rows, two turns: half-open spans, and a turn without a token."""
    masks = turn_masks(torch.tensor([[1, 4], [0, 2]]), torch.tensor([[3, 5], [2, 2]]), 6)
    assert masks[0].int().tolist() == [[0, 1, 1, 0, 0, 0], [0, 0, 0, 0, 1, 0]]
    assert masks[1].int().tolist() == [[1, 1, 0, 0, 0, 0], [0, 0, 0, 0, 0, 0]]


def test_a_token_of_probability_zero_is_never_sampled():
    logits = torch.tensor([[-torch.inf, 0.0, -torch.inf, 0.0, -torch.inf]]).repeat(5, 1)
    uniform = torch.tensor([0.0, 0.25, 0.5, 0.75, 1 - 2**-53], dtype=torch.float64)
    assert sample_token(logits, 1.0, uniform)[0].tolist() == [3, 3, 1, 1, 1]


def test_first_attempts_by_another_model_are_context(small_gpt, tokenizer):
    """Offline first attempts: the other model's tokens stand in the row, but no mask holds them."""
    model, other = end_often(small_gpt(), tokenizer), end_often(small_gpt(dim=16), tokenizer)
    env, c = Environment(load_task("division"), tokenizer), Config(max_new=4, sample_batch=3)
    problems = [env.task.parse(p) for p in PROBLEMS]
    given = sample_many(other, env, env.prompts(problems), [], c, 1.0, torch.Generator().manual_seed(3))
    joined = offline_rollouts(c, env, model, problems, 3, torch.Generator().manual_seed(3), other)
    assert given.ended.any() and not given.ended.all()
    assert joined.masks.shape[1] == 3 and not joined.masks[:, 0].any() and joined.masks[:, 1:].any(2).all()
    assert [texts[0] for texts in joined.texts] == [texts[0] for texts in given.texts]
    assert torch.equal(joined.ended[:, :1], given.ended)
    for b in range(len(PROBLEMS)):
        closed = given.row(b) + ([] if given.ended[b, 0] else [tokenizer.end_id])
        start = closed + env.correction_request
        assert joined.row(b)[: len(start)] == start and int(joined.masks[b, 1].nonzero()[0]) == len(start)


def test_parts_join_in_order(small_gpt, tokenizer):
    model = end_often(small_gpt(), tokenizer)
    parts = [sample(model, tokenizer), sample(model, tokenizer, seed=4, max_new=4)]
    both = concatenate(parts)
    assert parts[0].ids.shape[1] != parts[1].ids.shape[1] and both.masks.shape == (8, 2, both.ids.shape[1])
    assert [both.row(b) for b in range(8)] == [part.row(b) for part in parts for b in range(4)]
    assert both.texts == parts[0].texts + parts[1].texts
    assert torch.equal(both.masks.sum(-1), torch.cat([part.masks.sum(-1) for part in parts]))
    assert torch.equal(both.ended, torch.cat([part.ended for part in parts]))


def test_the_correction_request_is_one_token(tokenizer):
    assert tokenizer.encode("check") == [tokenizer.encoding.encode_single_token("check")]
