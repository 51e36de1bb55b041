"""What the loop does with the formulas. A small run is watched from outside: what is sampled, what is learned
from, and what the optimizers really get.

The formulas themselves have tests of their own (test_loss.py). Here they are taken as right.
"""

import copy
import dataclasses
import itertools
from collections import Counter
from pathlib import Path
from random import Random
from types import SimpleNamespace

import pytest
import torch
from engine.sampling import sample_many, training_rollouts
from run_files import metrics, same, weights
from torch.optim.optimizer import register_optimizer_step_pre_hook

import train
from data import Environment, Problem, load_task, train_problems
from data.demonstrations import demonstration
from engine import build, optim, supervised
from engine.checkpoints import checkpoint_of, open_run, save
from engine.optim import Learner, master_weights
from engine.run import Run
from engine.supervised import OWN_ONE_IN, supervised_batch
from model import GPT
from rewards import correctness, turn_rewards
from train import Config, Stage, problem_number, rollout_batch, stages

SMALL = dict(
    size=2, n_layer=1, dim=32, base_steps=5, base_batch=10, stage1_steps=5, stage2_steps=5, batch=12,
    micro_batch=5, max_new=12, temperature=0.8, max_grad_norm=0.02, lr=0.05, stage2_lr=0.04, beta1=0.5,
    beta2=2.0, stage2_beta=3.0, save_every=2, keep_every=4, show_every=2, device="cpu", report=False,
)  # fmt: skip
STAGE_1, STAGE_2 = stages(Config())[1:]
GAMMA = stages(Config(gamma=0.5))[2]


def even(task, problems, texts, ended):
    """A small model is never right. An even sum of an attempt's characters stands for it."""
    return torch.tensor([[sum(map(ord, text)) % 2 == 0 for text in row] for row in texts]), {}


def run_here(folder: Path, resume: str = "", **settings) -> Path:
    """train.py in this process. Returns the run's folder."""
    settings = {**SMALL, "out": str(folder), **settings}
    with open_run(Config(**settings), resume, stages) as (c, state):
        train.train(c, state)
    return Path(c.out) / c.name


def flat(tensors) -> torch.Tensor:
    return torch.cat([t.detach().flatten().clone() for t in tensors])


def watch(patch: pytest.MonkeyPatch) -> list[SimpleNamespace]:
    """From now on each update adds a record. `before` are the policy's weights, `reference` the reference's;
    `loss` and `gradient` are those of the whole batch in one pass, with coefficients from Config; `logged` is
    what the loop logs; `stepped` is the gradient, `rates` the learning rates that the optimizers get, and
    `fresh` says whether they have no state yet.
    """
    updates, now = [], SimpleNamespace(measured=[])
    real_rollout, real_supervised = train.rollout_batch, train.supervised_batch
    real_update, real_log = Run.update, Run.log_and_save

    def roll(c, stage, key, env, policy, reference):
        batch, metrics, example = real_rollout(c, stage, key, env, policy, reference)
        if stage is train.MEASURE:
            now.measured.append(key)
        else:
            now.batch, now.reference = batch, reference
        return batch, metrics, example

    def teach(*args):
        now.batch, tokens = real_supervised(*args)
        return now.batch, tokens

    def update(run, stage, step, lr, loss):
        policy, c = run.policy, run.c
        record = SimpleNamespace(stage=stage.name, step=step, rates={}, fresh=True, measured=now.measured)
        record.before, record.batch = copy.deepcopy(policy.state_dict()), now.batch
        if stage.weights is None:
            record.loss = whole_supervised_loss(policy, now.batch)
        else:
            record.reference = copy.deepcopy(now.reference.state_dict())
            record.frozen = not any(p.requires_grad for p in now.reference.parameters())
            betas = {
                "stage1": (c.beta2, c.beta1),
                "stage1b": (c.beta2, c.beta2, c.beta1),
                "stage2": (c.stage2_beta,) * c.turns,
            }[stage.name]
            name = "stage1" if stage.name == "stage1b" else "base"
            reference = train.load_model(run.folder / f"{name}.pt", "cpu")[0]
            record.loss, record.parts = train.policy_loss(
                policy, reference, now.batch, betas, c.temperature, c.batch
            )
        record.gradient = flat(torch.autograd.grad(record.loss, list(policy.parameters())))
        record.loss, record.logged_loss = record.loss.item(), loss

        def hook(optimizer, *_):
            record.rates[type(optimizer).__name__] = [group["lr"] for group in optimizer.param_groups]
            record.fresh &= not optimizer.state
            if len(record.rates) == 1:
                record.stepped = flat(p.grad for p in policy.parameters())

        handle = register_optimizer_step_pre_hook(hook)
        try:
            record.norm = real_update(run, stage, step, lr, loss)
        finally:
            handle.remove()
        updates.append(record)
        return record.norm

    def log(run, index, stage, step, metrics, example):
        updates[-1].logged = metrics
        real_log(run, index, stage, step, metrics, example)

    patch.setattr(train, "rollout_batch", roll)
    patch.setattr(train, "supervised_batch", teach)
    patch.setattr(train, "correctness", even)
    patch.setattr(Run, "update", update)
    patch.setattr(Run, "log_and_save", log)
    return updates


def whole_supervised_loss(model: GPT, batch: dict) -> torch.Tensor:
    """The mean cross-entropy of the taught tokens, in plain torch."""
    log_probs = model(batch["ids"][:, :-1]).log_softmax(-1)
    of_targets = log_probs.gather(2, batch["ids"][:, 1:, None])[:, :, 0]
    return -of_targets[batch["masks"][:, 0, 1:]].mean()


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """An unbroken run: its folder and the record of each update."""
    torch.manual_seed(0)
    with pytest.MonkeyPatch.context() as patch:
        updates = watch(patch)
        folder = run_here(tmp_path_factory.mktemp("whole"))
    return folder, updates


@pytest.fixture(scope="module")
def three(tmp_path_factory):
    """The same with three turns, from the base of `whole`'s kind."""
    with pytest.MonkeyPatch.context() as patch:
        updates = watch(patch)
        folder = run_here(tmp_path_factory.mktemp("three"), turns=3, stage1_steps=3, stage2_steps=3)
    return folder, updates


# ---------------------------------------------------------------------------------- what is learned


@pytest.mark.parametrize("kind", ["whole", "three"])
def test_each_update_has_the_whole_batchs_gradient_clipped_once(kind, request):
    """Micro-batches, coefficients, reference, temperature: the optimizers get the gradient that one pass over
    the whole batch has, and no other. It is longer than max_grad_norm, so it is cut to that.
    """
    for u in request.getfixturevalue(kind)[1]:
        norm = u.gradient.norm().item()
        assert norm > 1.05 * SMALL["max_grad_norm"], "the test needs gradients that are clipped"
        assert u.norm == pytest.approx(norm, rel=1e-3), (u.stage, u.step)
        expected = u.gradient * SMALL["max_grad_norm"] / norm
        assert torch.allclose(u.stepped, expected, atol=1e-4 * expected.abs().max().item()), (u.stage, u.step)


def test_what_is_logged_is_of_the_whole_batch(whole):
    for u in whole[1]:
        assert u.logged_loss == u.logged["loss"] == pytest.approx(u.loss, abs=1e-4)
        assert u.logged["grad_norm"] == u.norm
        if u.stage != "base":
            for name in ("kl_t1", "kl_t2", "entropy"):
                assert u.logged[name] == pytest.approx(u.parts[name], abs=1e-4)
    assert max(u.logged["kl_t1"] for u in whole[1] if u.stage == "stage2") > 1e-3  # else it shows nothing


def test_the_learning_curve_of_the_base_is_of_its_own_steps(whole):
    assert whole[1][0].measured == [(0, 0), (0, 1), (0, 3)]  # show_every is 2


def test_optimizers_get_the_rates_of_their_stage(whole):
    """Ten steps of warm-up, then the decay to zero; AdamW beside Muon learns at its share."""
    c = Config(**SMALL)
    rates = {"base": c.base_lr, "stage1": c.lr, "stage2": c.stage2_lr}
    factors = [min((step + 1) / 10, 2 * (1 - step / 5)) for step in range(5)]
    assert len(set(rates.values())) == 3
    for u in whole[1]:
        rate = rates[u.stage] * factors[u.step]
        assert u.rates == {"Muon": [pytest.approx(rate)], "AdamW": [pytest.approx(c.adam_share * rate)]}


def test_each_stage_goes_on_from_the_last_one_with_fresh_optimizers(whole):
    folder, updates = whole
    assert [u.step for u in updates if u.fresh] == [0, 0, 0]
    starts = {u.stage: u.before for u in updates if u.step == 0}
    assert same(starts["stage1"], weights(folder / "base.pt"))
    assert same(starts["stage2"], weights(folder / "stage1.pt"))
    assert not same(starts["stage2"], starts["stage1"])
    fifth = next(u.before for u in updates if (u.stage, u.step) == ("stage1", 4))
    assert same(fifth, weights(folder / "stage1-4.pt"))  # keep_every is 4


def test_each_stage_has_its_own_reference(whole, three):
    """The base, frozen, in both stages; with three turns part 1b is measured against the end of part 1a."""
    for (folder, updates), names in (
        (whole, {"stage1": "base", "stage2": "base"}),
        (three, {"stage1": "base", "stage1b": "stage1", "stage2": "base"}),
    ):
        seen = {}
        for u in updates:
            if u.stage != "base":
                assert same(u.reference, weights(folder / f"{names[u.stage]}.pt")), u.stage
                assert u.frozen
                seen[u.stage] = True
        assert list(seen) == list(names)


# ---------------------------------------------------------------------------------- stop and resume


@pytest.mark.parametrize("stop", [("stage1", 2), ("stage2", 0), ("stage2", 3)])
def test_a_stopped_and_resumed_run_equals_the_unbroken_one(whole, stop, tmp_path, monkeypatch):
    """Bit for bit, whatever torch's global random state is. It stops between two writes of last.pt, or right
    after a stage's end.
    """
    folder = tmp_path / "default"
    monkeypatch.setattr(train, "correctness", even)
    with monkeypatch.context() as patch:
        real = Run.log_and_save

        def log(run, index, stage, step, metrics, example):
            real(run, index, stage, step, metrics, example)
            if (stage.name, step) == stop:
                raise KeyboardInterrupt

        patch.setattr(Run, "log_and_save", log)
        torch.manual_seed(1)
        with pytest.raises(SystemExit, match="--resume"):
            run_here(tmp_path)
    torch.manual_seed(2)
    updates = watch(monkeypatch)
    run_here(tmp_path, resume=str(folder))
    assert not updates[0].fresh or stop[1] == 0
    for name in ("base", "stage1", "stage2"):
        assert same(weights(folder / f"{name}.pt"), weights(whole[0] / f"{name}.pt")), name
    assert metrics(folder) == metrics(whole[0])


def test_a_run_is_not_overwritten(whole):
    with pytest.raises(ValueError, match="--resume="):
        run_here(whole[0].parent)


def test_a_gradient_that_is_no_number_stops_the_run_and_spoils_nothing(tmp_path):
    c = Config(**SMALL, out=str(tmp_path))
    with open_run(c, "", stages) as (c, state):
        run = Run(c, state, stages(c))
    run.start_stage(0, run.stages[0])
    before = copy.deepcopy(run.policy.state_dict())
    for parameter in run.policy.parameters():
        parameter.grad = torch.full_like(parameter, torch.inf)
    with pytest.raises(FloatingPointError, match="norm inf at step 1 of base: start anew"):
        run.update(run.stages[0], 0, 0.1, 1.0)
    assert same(run.policy.state_dict(), before)


def test_a_checkpoint_keeps_head_and_embedding_tied(small_gpt, tmp_path):
    model = small_gpt(tie_weights=True)
    save(tmp_path / "tied.pt", checkpoint_of(Config(), model))
    loaded, _ = build.load_model(tmp_path / "tied.pt", "cpu")
    assert loaded.lm_head.weight is loaded.embed.weight
    assert torch.equal(loaded.embed.weight, model.embed.weight)


# ---------------------------------------------------------------------------------- the optimizers


def learner_of(model: GPT, **settings) -> Learner:
    learner = Learner(model, master_weights(model, {}))
    learner.start_stage(Config(**settings), None)
    return learner


def test_gradients_are_summed_over_the_processes_then_clipped_then_cleared(small_gpt, monkeypatch):
    """Three processes with the same gradient: the sum is three times as long, and that is what is cut."""
    model = small_gpt()
    learner = learner_of(model)
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    n = sum(p.numel() for p in model.parameters()) ** 0.5

    def of_three(tensors):
        for t in tensors:
            t.grad *= 3

    monkeypatch.setattr(optim, "sum_gradients", of_three)
    assert learner.gradient_norm(0.5 * n) == pytest.approx(3 * n, rel=1e-4)
    assert flat(p.grad for p in model.parameters()).norm().item() == pytest.approx(0.5 * n, rel=1e-4)
    learner.step(0.1)
    assert all(p.grad is None for p in model.parameters())


def test_muon_has_the_matrices_of_the_blocks_and_adamw_all_else(small_gpt):
    model = small_gpt()
    names = {id(p): name for name, p in model.named_parameters()}
    learned = {}
    for optimizer in learner_of(model).optimizers:
        learned[type(optimizer).__name__] = {names[id(p)] for p in optimizer.param_groups[0]["params"]}
    matrices = {
        f"blocks.{i}.{m}.weight" for i in (0, 1) for m in ("attn.qkv", "attn.out", "mlp.up", "mlp.down")
    }
    assert learned == {"AdamW": set(names.values()) - matrices, "Muon": matrices}
    (alone,) = learner_of(model, optimizer="adamw").optimizers
    assert len(alone.param_groups[0]["params"]) == len(names)


def test_adamw_alone_learns_at_the_full_rate(small_gpt):
    learner = learner_of(small_gpt(), optimizer="adamw")
    learner.step(0.1)
    assert learner.optimizers[0].param_groups[0]["lr"] == 0.1


def test_without_a_gradient_no_weight_moves(small_gpt):
    """No weight decay: the policy would leave its reference though nothing asks for it."""
    model = small_gpt()
    before, learner = flat(model.parameters()), learner_of(model)
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    learner.step(0.1)
    assert torch.equal(flat(model.parameters()), before)


# ---------------------------------------------------------------------------------- dialogues


def environment(tokenizer, problem=None) -> Environment:
    task = load_task("division")
    return Environment(task, tokenizer, problem or train_problems(task, 3, 0))


def roll(c: Config, stage: Stage, key: tuple, env: Environment, policy: GPT, reference: GPT | None = None):
    return rollout_batch(c, stage, key, env, policy, reference or policy)


def prompts_of(batch: dict, tokenizer) -> list[tuple[str, str]]:
    """(x1, x2) of each row as texts: what stands before each turn's sampled tokens."""
    prompts = []
    for ids, masks in zip(batch["ids"].tolist(), batch["masks"], strict=True):
        first, second = (mask.nonzero()[:, 0].tolist() for mask in masks)
        x1, x2 = tokenizer.decode(ids[: first[0]]), tokenizer.decode(ids[first[-1] + 1 : second[0]])
        prompts.append((x1, x2.removeprefix("<|end|>")))
    return prompts


def test_prompts_show_the_problem_and_ask_all_the_same(small_gpt, tokenizer, monkeypatch):
    """Turn 1 shows the problem without its answer. The second prompt is "check" in every row, though the
    checker of this test would call some attempts right and some wrong.
    """
    env, c, numbers = environment(tokenizer), Config(batch=24, max_new=4), []
    monkeypatch.setattr(env.task, "is_correct", lambda problem, text: len(text) % 2 == 0)
    shown = env._replace(problem=lambda i: numbers.append(i) or env.problem(i))
    batch, _, _ = roll(c, STAGE_2, (1, 0), shown, small_gpt())
    prompts = prompts_of(batch, tokenizer)
    assert [x1 for x1, _ in prompts] == [f"<|user|>{env.problem(i).prompt}<|assistant|>" for i in numbers]
    assert len(set(numbers)) == 24 and {x2 for _, x2 in prompts} == {"<|user|>check<|assistant|>"}


def test_the_second_prompt_does_not_depend_on_the_verdict(small_gpt, tokenizer, monkeypatch):
    """With the same seed, a checker that says right and one that says wrong leave the same dialogues."""
    env, ids = environment(tokenizer), []
    for verdict in (True, False):
        monkeypatch.setattr(env.task, "is_correct", lambda problem, text, verdict=verdict: verdict)
        ids.append(roll(Config(batch=12, max_new=4), STAGE_2, (1, 0), env, small_gpt())[0]["ids"])
    assert torch.equal(*ids)


def test_every_step_and_every_stage_has_its_own_problems():
    """No problem number comes twice, but for the samples of one problem; the base's stay below 10**9."""
    c = Config(batch=12, samples_per_problem=3)
    keys = itertools.product((1, 2), range(50))
    steps = [[problem_number(c, key, row) for row in range(12)] for key in keys]
    assert all(len(set(step)) == 4 and step == sorted(step) for step in steps)
    assert all(step.count(number) == 3 for step in steps for number in step)
    numbers = [number for step in steps for number in set(step)]
    assert len(set(numbers)) == len(numbers) and min(numbers) >= 10**9


def test_a_run_shows_other_problems_in_every_step(whole):
    shown = {tuple(u.batch["ids"][:, 1:5].flatten().tolist()) for u in whole[1] if u.stage != "base"}
    assert len(shown) == 10


def test_every_step_samples_with_its_own_noise(small_gpt, tokenizer):
    """The same problem in each row and step, and yet each step's attempts are others; one step repeats."""
    env, model = environment(tokenizer, lambda i: Problem("84/6", "14")), small_gpt()
    c = Config(batch=8, max_new=6, offline_share=0.5)

    def attempts(key: tuple) -> list[list[str]]:
        ids = roll(c, STAGE_2, key, env, model)[0]["ids"].tolist()
        return [tokenizer.decode(row).split("<|assistant|>")[1:] for row in ids]  # [8][2]

    texts = [attempts(key) for key in ((1, 0), (1, 1), (2, 0))]
    assert texts[0] == attempts((1, 0))
    for a, b in itertools.combinations(texts, 2):
        assert all(x[turn] != y[turn] for x, y in zip(a, b, strict=True) for turn in (0, 1))
    assert len({text for row in texts[0] for text in row}) > 12


def test_the_policy_samples_and_the_reference_makes_the_offline_attempts(small_gpt, tokenizer):
    """At a temperature near 0 each model is known by its greedy attempts. Training samples at its own
    temperature, in parts of sample_batch, and what the reference made is context and never learned from.
    """
    env, policy, reference = environment(tokenizer), small_gpt(), small_gpt(dim=16)
    c = Config(batch=8, max_new=5, temperature=1e-3, offline_share=0.25, sample_batch=3)
    problems = [env.problem(i) for i in range(8)]
    greedy, others = (
        sample_many(m, env, env.prompts(problems), [env.correction_request], Config(max_new=5), 0.0, None)
        for m in (policy, reference)
    )
    assert not {row[0] for row in greedy.texts} & {row[0] for row in others.texts}
    rollout = training_rollouts(c, env, policy, problems, 2, (1, 0), reference)
    assert [row[0] for row in rollout.texts[:2]] == [row[0] for row in others.texts[:2]]
    assert rollout.texts[2:] == greedy.texts[2:]
    learned = rollout.masks.any(2).tolist()  # [8][2]
    assert learned == [[False, True]] * 2 + [[True, True]] * 6
    for b in range(2):  # an attempt that was cut off is closed before the request
        assert not rollout.ended[b, 0]
        said = tokenizer.decode(rollout.row(b))
        begin = f"<|user|>{problems[b].prompt}<|assistant|>{rollout.texts[b][0]}"
        assert said.startswith(f"{begin}<|end|><|user|>check<|assistant|>")
    online = roll(dataclasses.replace(c, offline_share=0.0), STAGE_2, (1, 0), env, policy, reference)[2]
    assert online[1] == roll(c, STAGE_2, (1, 0), env, policy, policy)[2][1]  # the reference has no say


# ---------------------------------------------------------------------------------- rewards and advantages


@pytest.mark.parametrize("stage", [STAGE_1, STAGE_2, GAMMA], ids=["stage1", "stage2", "gamma"])
@pytest.mark.parametrize("baseline", ["by_outcome", "rloo"])
def test_advantages_of_a_batch_by_hand(stage, baseline, small_gpt, tokenizer, monkeypatch):
    """Rewards, bonus, returns and the comparison with other rollouts, in plain loops."""
    c = Config(batch=12, max_new=3, samples_per_problem=3, baseline=baseline, gamma=0.5, alpha=10.0)
    right = [(i % 2 == 0, i % 3 == 0) for i in range(12)]
    monkeypatch.setattr(train, "correctness", lambda *args: (torch.tensor(right), {}))
    env = environment(tokenizer)
    batch, metrics, example = roll(c, stage, (1, 0), env, small_gpt())
    bonus = 0.0 if stage is STAGE_1 else 10.0
    returns = []
    for first, second in right:
        two = second + bonus * (second - first)
        returns.append((stage.weights[0] * first + stage.gamma * two, two))
    assert stage.weights[0] == (0.0 if stage is STAGE_1 else 1.0)
    for i, k in itertools.product(range(12), range(2)):
        if baseline == "rloo":
            others = [j for j in range(12) if j != i and j // 3 == i // 3]
        else:
            others = [j for j in range(12) if j != i and (k == 0 or right[j][0] == right[i][0])]
        expected = returns[i][k] - sum(returns[j][k] for j in others) / len(others)
        assert batch["advantages"][i, k].item() == pytest.approx(expected, abs=1e-4)
    assert metrics["acc_t1"] == pytest.approx(0.5) and metrics["acc_t2"] == pytest.approx(1 / 3)
    rewards = [stage.weights[0] * first + second + bonus * (second - first) for first, second in right]
    assert metrics["reward"] == pytest.approx(sum(rewards) / 12) and not metrics["no_signal"]
    problem, texts, marks = example  # those of the last row
    assert problem == env.problem(problem_number(c, (1, 0), 11)) and marks == list(right[11])
    spoken = batch["ids"][11][batch["masks"][11].any(0)].tolist()
    assert tokenizer.decode([i for i in spoken if i != tokenizer.end_id]) == "".join(texts)


def test_the_bonus_is_not_multiplied_by_the_turns_weight():
    correct = torch.tensor([[False, True], [True, False]])
    assert turn_rewards(correct, (1.0, 0.5), 10.0).tolist() == [[0.0, 10.5], [1.0, -10.0]]


def test_only_the_verdict_right_is_right():
    """Attempts that were cut off are not judged. Every other verdict is wrong, and its share is told."""
    given = ["right", "wrong", "unparsable", "timeout", "unjudged", "right"]
    asked = []
    task = SimpleNamespace(verdicts=lambda pairs: asked.extend(text for _, text in pairs) or given)
    texts = [["a", "b"], ["c", "cut"], ["d", "cut"], ["e", "f"]]
    ended = torch.tensor([[text != "cut" for text in row] for row in texts])
    correct, shares = correctness(task, [None] * 4, texts, ended)
    assert asked == list("abcdef")
    assert correct.tolist() == [[True, False], [False, False], [False, False], [False, True]]
    assert shares == {"truncated": 0.25, "unparsable": 0.125, "timeout": 0.125, "unjudged": 0.125}


def test_the_logged_change_rate_is_of_texts(small_gpt, tokenizer, monkeypatch):
    real = train.training_rollouts

    def copies(*args):
        rollout = real(*args)
        rollout.texts = [[row[0], row[0] + "x" * (i > 3)] for i, row in enumerate(rollout.texts)]
        return rollout

    monkeypatch.setattr(train, "training_rollouts", copies)
    _, metrics, _ = roll(Config(batch=6, max_new=3), STAGE_2, (1, 0), environment(tokenizer), small_gpt())
    assert metrics["change_rate"] == pytest.approx(2 / 6)


# ---------------------------------------------------------------------------------- the supervised stages


def taught_dialogues(c: Config, step: int, env: Environment, model: GPT) -> list[tuple[str, str]]:
    """Each dialogue of a step of the base as text, and its taught tokens."""
    batch, tokens = supervised_batch(c, "base", step, env, model, [])
    assert tokens == batch["masks"].sum()
    decode = env.tokenizer.decode
    pairs = zip(batch["ids"], batch["masks"][:, 0], strict=True)
    return [(decode(ids.tolist()), decode(ids[mask].tolist())) for ids, mask in pairs]


def test_the_base_is_taught_attempts_and_never_prompts(small_gpt, tokenizer):
    c, env = Config(base_batch=12, right_first=0.5), environment(tokenizer)
    for said, taught in taught_dialogues(c, 0, env, small_gpt()):
        assert said.count("<|user|>") == 2 and "<|user|>" not in taught and "check" not in taught
        assert taught.count("<|end|>") == 2


def test_copy_and_right_are_the_shares_that_they_say(small_gpt, tokenizer):
    env = environment(tokenizer)

    def attempts(**shares):
        c = Config(base_batch=12, right_first=0.0, **shares)
        for said, _ in taught_dialogues(c, 0, env, small_gpt()):
            prompt, first, second = (part.split("<|end|>")[0] for part in said.split("<|assistant|>"))
            yield env.task.parse(prompt.removeprefix("<|user|>")), first, second

    assert all(first == second for _, first, second in attempts(copy=1.0, right=0.0))
    assert all(env.task.is_correct(p, second) for p, _, second in attempts(copy=0.0, right=1.0))


def test_some_demonstrations_have_more_turns_and_as_many_attempts(small_gpt, tokenizer):
    """One batch of sixteen has five turns, another ten. Longer dialogues are fewer."""
    assert Counter(map(supervised.demonstration_turns, range(16))) == {2: 14, 5: 1, 10: 1}
    c, env = Config(base_batch=20, own_from=1.0), environment(tokenizer)
    for step, turns, rows in ((0, 2, 20), (7, 5, 8), (15, 10, 4)):
        dialogues = taught_dialogues(c, step, env, small_gpt())
        assert len(dialogues) == rows and all(said.count("<|user|>") == turns for said, _ in dialogues)


def test_mistakes_of_the_base_are_of_the_kinds_that_are_documented(tokenizer):
    """Wrong first attempts are half near misses and half unrelated, wrong second ones near misses."""
    task, problem, kinds = load_task("division"), Problem("8742/6", "1457"), ([], [])

    def attempt(problem, kind, rng):
        kinds[len(seen)].append(kind)
        seen.append(kind)
        return task.attempt(problem, kind, rng)

    spy = SimpleNamespace(**{**vars(task), "attempt": attempt})
    for seed in range(300):
        seen = []
        demonstration(Environment(spy, tokenizer), problem, Random(seed), 2, 0.0, 0.0, 0.0)
    assert Counter(kinds[0]).keys() == {"near", "far"} and abs(kinds[0].count("near") - 150) < 50
    assert Counter(kinds[1]) == {"near": 300}


def test_every_step_of_the_base_has_other_problems_and_other_mistakes(small_gpt, tokenizer):
    c, model = Config(base_batch=12), small_gpt()
    env, fixed = environment(tokenizer), environment(tokenizer, lambda *_: Problem("8742/6", "1457"))
    zero, one = (taught_dialogues(c, step, env, model) for step in (0, 1))
    begins = [{said.split("<|assistant|>")[0] for said, _ in dialogues} for dialogues in (zero, one)]
    assert len(begins[0] & begins[1]) < 3
    assert taught_dialogues(c, 0, fixed, model) != taught_dialogues(c, 1, fixed, model)


def test_the_base_meets_its_own_attempts_in_its_last_part(small_gpt, tokenizer, monkeypatch):
    """From `own_from` on some of its first attempts are sampled, and their working is made true."""

    def sample(model, env, prompts, requests, c, temperature, generator):
        assert requests == [] and temperature == c.temperature
        return SimpleNamespace(texts=[["1111*"]] * len(prompts))

    monkeypatch.setattr(supervised, "sample_many", sample)
    c = Config(base_batch=12, base_steps=20, own_from=0.5, right_first=0.0)
    env = environment(tokenizer, lambda *_: Problem("8742/6", "1457"))
    for step, share in ((9, 0), (10, 12 // OWN_ONE_IN)):
        said = [text for text, _ in taught_dialogues(c, step, env, small_gpt())]
        assert sum("<|assistant|>1111*6=6666<<|end|>" in text for text in said) == share


def test_the_base_begins_with_easier_problems(small_gpt, tokenizer):
    """Until `easy_until` the sizes are mixed, from half of `size` on. RL never sees the easier ones."""
    c = Config(size=4, base_batch=40, base_steps=10, easy_until=0.5, own_from=1.0)
    task = load_task("division")
    env = environment(tokenizer, train_problems(task, 4, 0))
    for step, sizes in ((4, {2, 3, 4}), (5, {4})):
        said = [text for text, _ in taught_dialogues(c, step, env, small_gpt())]
        prompts = [text.removeprefix("<|user|>").split("<|")[0] for text in said]
        assert {len(task.parse(prompt).answer) for prompt in prompts} == sizes
    assert {len(env.problem(i).answer) for i in range(200)} == {4}


def test_every_step_imitates_other_dialogues(small_gpt, tokenizer):
    traces = [([1, 2, i], [False, True, True]) for i in range(50)]
    c, env = Config(batch=6), environment(tokenizer)
    zero, one = (supervised_batch(c, "imitate", step, env, small_gpt(), traces) for step in (0, 1))
    assert zero[1] == 12 and not torch.equal(zero[0]["ids"], one[0]["ids"])
