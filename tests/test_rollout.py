"""Sampling: masks, log-probs, ends of turns, batches. T1 and T2 of the classic bugs live here."""

import torch
import torch.nn.functional as F

from rollout import concatenate, pick, sample_dialogues

PROBLEMS = ("8/2", "9184/7", "42/6", "123456/8")  # prompts of different lengths


def sample(model, tokenizer, turns=2, temperature=1.0, problems=PROBLEMS, max_new=9, seed=3):
    generator = torch.Generator().manual_seed(seed)
    prompts = [tokenizer.user_turn(p) for p in problems]
    return sample_dialogues(model, tokenizer, prompts, tokenizer.user_turn("check"), turns, max_new, temperature, generator)


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
    """T1: at T = 0.7, for rows of different prompt and attempt lengths, through the cache and three turns."""
    model = end_often(small_gpt(), tokenizer)
    rollout = sample(model, tokenizer, turns=3, temperature=0.7)
    with torch.no_grad():
        log_probs = F.log_softmax(model.head(model.hidden(rollout.ids[:, :-1])) / 0.7, -1)
    plain = log_probs.gather(2, rollout.ids[:, 1:, None])[:, :, 0]
    mask = rollout.masks.any(0)
    assert mask.sum() > 20 and len(set(rollout.lengths.tolist())) > 1
    assert torch.allclose(rollout.log_probs[mask], plain[mask[:, 1:]], atol=1e-4)
    assert (rollout.log_probs[~mask] == 0).all()


def test_masks_are_exactly_the_sampled_tokens(small_gpt, tokenizer):
    """T2: rebuilt from the pieces: prompt, attempt with its end of turn, follow-up, attempt; padding outside."""
    rollout = sample(end_often(small_gpt(), tokenizer), tokenizer)
    end, follow_up = tokenizer.end_id, tokenizer.user_turn("check")
    assert rollout.ended.any() and not rollout.ended.all()  # both kinds of row are met
    for b, problem in enumerate(PROBLEMS):
        ids, expected_masks = list(tokenizer.user_turn(problem)), [[], []]
        for turn in range(2):
            if turn:
                ids += follow_up if rollout.ended[b, turn - 1] else [end, *follow_up]  # an attempt cut off is closed first
            sampled = rollout.ids[b][rollout.masks[turn, b]].tolist()
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
            assert rollout.masks[turn, b].nonzero()[:, 0].tolist() == expected_masks[turn]


def test_masks_do_not_depend_on_what_pads(small_gpt, tokenizer):
    """The pad is the end-of-turn id here: a mask made by comparing ids would take padding for a sampled end."""
    rollout = sample(end_often(small_gpt(), tokenizer), tokenizer)
    padding = torch.arange(rollout.ids.shape[1]) >= rollout.lengths[:, None]
    assert padding.any() and (rollout.ids[padding] == tokenizer.end_id).all()
    assert not (rollout.masks & padding).any()


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


def test_rows_that_never_end_are_cut(small_gpt, tokenizer):
    rollout = sample(end_often(small_gpt(), tokenizer, push=-100.0), tokenizer, max_new=5)
    assert not rollout.ended.any()
    assert (rollout.masks.sum(-1) == 5).all()


def test_samples_follow_the_distribution():
    """100,000 draws: each frequency within five standard errors of its probability."""
    log_probs = F.log_softmax(torch.tensor([2.0, 0.0, -1.0, 1.0]), -1)
    n = 100_000
    tokens, scores = pick(
        log_probs.expand(n, 4), 1.0, torch.rand(n, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    )
    p = log_probs.exp()
    assert ((tokens.bincount(minlength=4) / n - p).abs() < 5 * (p * (1 - p) / n).sqrt()).all()
    assert torch.allclose(scores, log_probs[tokens], atol=1e-6)
    assert (pick(log_probs.expand(9, 4), 0, None)[0] == 0).all()


def test_sampling_uses_its_generator_alone(small_gpt, tokenizer):
    model = small_gpt()
    torch.manual_seed(5)
    before = torch.get_rng_state()
    a = sample(model, tokenizer)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(6)
    assert torch.equal(a.ids, sample(model, tokenizer).ids)
    assert not torch.equal(a.ids, sample(model, tokenizer, seed=4).ids)


def test_parts_join_and_foreign_first_attempts_are_context(small_gpt, tokenizer):
    model, other = end_often(small_gpt(), tokenizer), end_often(small_gpt(dim=16), tokenizer)
    given = sample(other, tokenizer, turns=1)
    follow_up = tokenizer.user_turn("check")
    prompts = [given.row(b) + follow_up for b in range(len(PROBLEMS))]
    generator = torch.Generator().manual_seed(0)
    rest = sample_dialogues(model, tokenizer, prompts, follow_up, 1, 9, 1.0, generator)
    joined = given.followed_by(rest)
    assert not joined.masks[0].any() and torch.equal(joined.masks[1], rest.masks[0])
    assert [t[0] for t in joined.texts] == [t[0] for t in given.texts]
    online = sample(model, tokenizer)
    both = concatenate([joined, online])
    assert both.masks.shape == (2, 8, both.ids.shape[1])
    assert [both.row(b) for b in range(8)] == [p.row(b) for p in (joined, online) for b in range(4)]
    assert both.texts == joined.texts + online.texts
    assert torch.equal(both.masks.sum(-1), torch.cat((joined.masks.sum(-1), online.masks.sum(-1)), 1))


def test_the_correction_request_is_the_same_after_right_and_wrong(tokenizer):
    assert tokenizer.encode("check") == [tokenizer.encoding.encode_single_token("check")]
