"""What the loop does with the formulas. A small run is watched from outside: what is sampled, what is learned
from, and what the optimizer really gets.

The formulas themselves have tests of their own (test_loss.py). Here they are taken as right.
"""

import contextlib
import copy
import itertools
from collections import Counter
from pathlib import Path
from random import Random
from types import SimpleNamespace

import pytest
import torch
from run_files import metrics, same, weights
from torch.optim.optimizer import register_optimizer_step_pre_hook

import train
from data import Environment, Problem, demo_problems, load_task, train_problems
from data.demonstrations import demonstration
from engine import build, supervised
from engine.checkpoints import checkpoint_of, open_run, save
from engine.report import FAILURES
from engine.run import Run, progress_line
from engine.settings import STEPS
from engine.supervised import supervised_batch
from model import GPT
from rewards import correctness
from rollout import sample_dialogues
from train import Config, Stage, rollout_batch, stages

SMALL = dict(
    task="division", size=2, n_layer=1, dim=32, base_steps=5, base_batch=10, stage1_steps=5, stage2_steps=5,
    batch=12, samples_per_problem=1, micro_batch=5, max_new=12, temperature=0.8,
    max_grad_norm=0.02, lr=0.05, stage2_lr=0.04, beta1=0.5, beta2=2.0, stage2_beta=3.0, save_every=2,
    keep_every=4, show_every=2, device="cpu", report=False,
)  # fmt: skip
STAGE_1, STAGE_2 = stages(Config())[1:]
GAMMA = stages(Config(gamma=0.5))[2]


def config(**settings) -> Config:
    """Of a batch to look at: 12 dialogues on as many problems."""
    return Config(**dict(batch=12, samples_per_problem=1, max_new=4) | settings)


def even(task, problems, texts, ended):
    """A small model is never right. An even sum of an attempt's characters stands for it."""
    correct = torch.tensor([[sum(map(ord, text)) % 2 == 0 for text in row] for row in texts])
    return correct, dict.fromkeys(FAILURES, 0.0)


def run_here(folder: Path, resume: str = "", **settings) -> Path:
    """train.py in this process. Returns the run's folder."""
    settings = {**SMALL, "out": str(folder), **settings}
    with open_run(Config(**settings), resume, stages) as (c, state):
        train.train(c, state)
    return Path(c.out) / c.name


def flat(tensors) -> torch.Tensor:
    return torch.cat([t.detach().flatten().clone() for t in tensors])


@contextlib.contextmanager
def watched():
    """Inside of it each update adds a record to the list. `before` are the policy's weights, `reference` the
    reference's; `loss` and `gradient` are those of the whole batch in one pass, with Config's coefficients;
    `number` is what decides the problems, `logged` what the loop logs; `stepped` is the gradient, `rate` the
    learning rate that the optimizer gets, and `fresh` says whether it has no state yet.
    """
    updates, real_rollout = [], train.rollout_batch
    real_supervised, real_log = supervised.supervised_batch, Run.log_and_save

    def record(policy, loss, parts, batch, **more):
        gradient = flat(torch.autograd.grad(loss, list(policy.parameters())))
        before = copy.deepcopy(policy.state_dict())
        found = dict(before=before, loss=loss.item(), parts=parts, gradient=gradient, batch=batch)
        updates.append(SimpleNamespace(**found, **more))

    def roll(c, stage, number, env, policy, reference):
        result = real_rollout(c, stage, number, env, policy, reference)
        betas = {"stage1": (c.beta2, c.beta1), "stage1b": (c.beta2, c.beta2, c.beta1)}
        betas = betas.get(stage.name, (c.stage2_beta,) * c.turns)
        name = "stage1" if stage.name == "stage1b" else "base"
        right_one = train.load_model(Path(c.out) / c.name / f"{name}.pt", "cpu")[0]
        loss, parts = train.policy_loss(policy, right_one, result[0], betas, c.temperature, c.batch)
        frozen = not any(p.requires_grad for p in reference.parameters())
        weights = copy.deepcopy(reference.state_dict())
        record(policy, loss, parts, result[0], number=number, reference=weights, frozen=frozen)
        return result

    def teach(c, name, step, env, policy, traces):
        batch = real_supervised(c, name, step, env, policy, traces)
        record(policy, whole_supervised_loss(policy, batch), {}, batch)
        return batch

    def hook(optimizer, *_):
        u, group = updates[-1], optimizer.param_groups[0]
        u.rate, u.fresh, u.stepped = group["lr"], not optimizer.state, flat(p.grad for p in group["params"])

    def log(run, index, stage, step, metrics, example):
        vars(updates[-1]).update(index=index, stage=stage.name, step=step, logged=metrics)
        real_log(run, index, stage, step, metrics, example)

    handle = register_optimizer_step_pre_hook(hook)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train, "rollout_batch", roll)
        patch.setattr(train, "correctness", even)
        patch.setattr(supervised, "supervised_batch", teach)
        patch.setattr(Run, "log_and_save", log)
        yield updates
    handle.remove()


def whole_supervised_loss(model: GPT, batch: dict) -> torch.Tensor:
    """The mean cross-entropy of the taught tokens, in plain torch."""
    log_probs = model(batch["ids"][:, :-1]).log_softmax(-1)
    of_targets = log_probs.gather(2, batch["ids"][:, 1:, None])[:, :, 0]
    return -of_targets[batch["masks"][:, 0, 1:]].mean()


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """An unbroken run: its folder and the record of each update."""
    with watched() as updates:
        return run_here(tmp_path_factory.mktemp("whole")), updates


@pytest.fixture(scope="module")
def three(tmp_path_factory):
    """The same with three turns."""
    with watched() as updates:
        settings = dict(turns=3, stage1_steps=3, stage2_steps=3)
        return run_here(tmp_path_factory.mktemp("three"), **settings), updates


# ---------------------------------------------------------------------------------- what is learned


@pytest.mark.parametrize("kind", ["whole", "three"])
def test_each_update_has_the_whole_batchs_gradient_clipped_once(kind, request):
    """Micro-batches, coefficients, reference, temperature: the optimizer gets the gradient that one pass over
    the whole batch has, and no other. It is longer than max_grad_norm, so it is cut to that. What is logged
    is of the whole batch, too.
    """
    for u in request.getfixturevalue(kind)[1]:
        norm, where = u.gradient.norm().item(), (u.stage, u.step)
        assert norm > 1.05 * SMALL["max_grad_norm"], "the test needs gradients that are clipped"
        expected = u.gradient * SMALL["max_grad_norm"] / norm
        assert torch.allclose(u.stepped, expected, atol=1e-4 * expected.abs().max().item()), where
        assert u.logged["grad_norm"] == pytest.approx(norm, rel=1e-3), where
        assert u.logged["loss"] == pytest.approx(u.loss, abs=1e-4)
        assert {name: u.logged[name] for name in u.parts} == pytest.approx(u.parts, abs=1e-4)
        assert u.parts.keys() >= {"kl_t1", "kl_t2", "entropy"} or u.stage == "base"
    assert u.stage == "stage2" and u.parts["kl_t1"] > 1e-3  # else it shows nothing


def test_optimizers_get_the_rates_of_their_stage(whole):
    """Ten steps of warm-up, then the decay to zero."""
    c = Config(**SMALL)
    rates = {"base": c.base_lr, "stage1": c.lr, "stage2": c.stage2_lr}
    assert len(set(rates.values())) == 3
    for u in whole[1]:
        assert u.rate == pytest.approx(rates[u.stage] * min((u.step + 1) / 10, 2 * (1 - u.step / 5)))


def test_each_stage_goes_on_from_the_last_one_with_a_fresh_optimizer(whole):
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
    names = {"stage1": "base", "stage1b": "stage1", "stage2": "base"}
    for (folder, updates), n in ((whole, 2), (three, 3)):
        of_rl = [u for u in updates if u.stage != "base"]
        assert len({u.stage for u in of_rl}) == n and all(u.frozen for u in of_rl)
        for u in of_rl:
            assert same(u.reference, weights(folder / f"{names[u.stage]}.pt")), u.stage


# ---------------------------------------------------------------------------------- stop and resume


@pytest.mark.parametrize("stage", ["base", "stage1"])
@pytest.mark.parametrize("broken", ["loss", "gradient"])
def test_what_is_no_number_ends_the_run_before_anything_is_written(stage, broken, tmp_path, monkeypatch):
    """In the stage's fourth update. last.pt is that of its second step, and the log ends with its third."""
    module, name = (supervised, "supervised_loss") if stage == "base" else (train, "policy_loss")
    real, updates, monitor = getattr(module, name), [], Run.log_and_save

    def loss_of(model, *args):
        found = real(model, *args)
        loss, *parts = found if isinstance(found, tuple) else (found,)
        if len(updates) % 5 == 3:
            zero = 0 * model.norm.weight.sum()  # its gradient is 0, that of its root infinite
            loss = loss + torch.nan if broken == "loss" else loss + zero.sqrt()
        return (loss, *parts) if parts else loss

    monkeypatch.setattr(train, "correctness", even)
    monkeypatch.setattr(module, name, loss_of)
    monkeypatch.setattr(Run, "log_and_save", lambda *args: updates.append(args[2].name) or monitor(*args))
    with pytest.raises(FloatingPointError, match=f"^the loss is .* at step 4 of {stage}: start anew .*$"):
        run_here(tmp_path)
    folder = tmp_path / "default"
    assert updates[-4:] == [stage] * 4 and metrics(folder)[-1]["step"] == 3
    assert not list(folder.glob(f"{stage}*.pt"))
    state = torch.load(folder / "last.pt")
    assert state["step"] == 2 and all(t.isfinite().all() for t in state["model"].values())


def test_a_checkpoint_keeps_head_and_embedding_tied(small_gpt, tmp_path):
    model = small_gpt(tie_weights=True)
    save(tmp_path / "tied.pt", checkpoint_of(Config(), model))
    loaded, _ = build.load_model(tmp_path / "tied.pt", "cpu")
    assert loaded.lm_head.weight is loaded.embed.weight
    assert torch.equal(loaded.embed.weight, model.embed.weight)


def test_the_line_of_an_update_says_what_a_person_should_know():
    numbers = dict(acc_t1=0.5, acc_t2=0.25, change_rate=0.3, reward=-1.0, kl_t1=0.1, kl_t2=0.2, no_signal=0)
    numbers |= dict.fromkeys(FAILURES, 0.0)

    def line(**changed):
        return progress_line(STAGE_1, 19, numbers | changed, 0.5)

    assert line().endswith("acc 50% -> 25%  changed 30%  reward -1.00  KL 0.10 0.20")
    assert f"stage1   20/{STAGE_1.steps}  2.00 steps/s  ETA {(STAGE_1.steps - 20) // 120}:" in line()
    assert line(timeout=0.125).endswith("  timeout 12%")
    notes = [dict(acc_t1=0.01), dict(acc_t1=0.96), dict(change_rate=0.01), dict(no_signal=1.0)]
    for changed, note in zip(
        notes, ("few right", "nothing to correct", "only copies", "only the KL"), strict=True
    ):
        assert line(**changed).count("(") == 1 and note in line(**changed)
    assert progress_line(Stage("base", 100, 0.1), 0, {"loss": 1.5}, 2.0).endswith(
        "2.0 s/step  ETA 3:18  loss 1.500"
    )


def test_a_line_is_shown_now_and_then_and_at_the_ends_with_the_pace_since_the_start(
    tmp_path, monkeypatch, capsys
):
    """A run that went on after two steps has a pace of its own."""
    run, stage = object.__new__(Run), Stage("base", 25, 0.1)
    run.c, run.folder, run.started, run.stage_started, run.first_step = Config(), tmp_path, 0.0, 10.0, 2
    for step in range(2, 25):
        monkeypatch.setattr("engine.run.time.perf_counter", lambda: 10.0 + 3.0 * (step - 1))  # noqa: B023
        run.log_and_save(0, stage, step, {"loss": 1.0, "grad_norm": 1.0}, None)
    shown = [line.split("  loss")[0] for line in capsys.readouterr().out.splitlines()]
    each = "3.0 s/step  ETA"
    assert shown == [f"base   10/25  {each} 0:45", f"base   20/25  {each} 0:15", f"base   25/25  {each} 0:00"]


# ---------------------------------------------------------------------------------- dialogues


def environment(tokenizer, problem=None, size=3) -> Environment:
    """The division's, or one whose problems are all the same."""
    task = load_task("division")
    if problem:
        return Environment(task, tokenizer, lambda i: problem, lambda i, size: problem)
    return Environment(task, tokenizer, train_problems(task, size, 0), demo_problems(task, size, 0))


def roll(c: Config, stage: Stage, update: int, env: Environment, policy: GPT, reference: GPT | None = None):
    return rollout_batch(c, stage, update, env, policy, reference or policy)


def prompts_of(batch: dict, tokenizer) -> list[tuple[str, str]]:
    """(x1, x2) of each row as texts: what stands before each turn's sampled tokens."""
    prompts = []
    for ids, masks in zip(batch["ids"].tolist(), batch["masks"], strict=True):
        first, second = (mask.nonzero()[:, 0].tolist() for mask in masks)
        x1, x2 = tokenizer.decode(ids[: first[0]]), tokenizer.decode(ids[first[-1] + 1 : second[0]])
        prompts.append((x1, x2.removeprefix("<|end|>")))
    return prompts


def test_prompts_show_the_problem_and_ask_all_the_same(small_gpt, tokenizer, monkeypatch):
    """Turn 1 shows the problem without its answer, once for each of its samples. The second prompt is "check"
    in every row, and the dialogues are the same whatever the checker says.
    """
    env, c, ids = environment(tokenizer), config(batch=24, samples_per_problem=3), []
    verdicts = [lambda *_: True, lambda *_: False, lambda problem, text: len(text) % 2 == 0]
    for is_correct in verdicts:
        monkeypatch.setattr(env.task, "is_correct", is_correct)
        batch, _, _ = roll(c, STAGE_2, 1, env, small_gpt())
        ids.append(batch["ids"])
    assert torch.equal(ids[0], ids[1]) and torch.equal(ids[0], ids[2])
    prompts = prompts_of(batch, tokenizer)
    expected = [env.problem(number).prompt for number in range(8, 16) for _ in range(3)]
    assert [x1 for x1, _ in prompts] == [f"<|user|>{prompt}<|assistant|>" for prompt in expected]
    assert len(set(expected)) == 8 and {x2 for _, x2 in prompts} == {"<|user|>check<|assistant|>"}


def test_every_update_has_problems_of_its_own(whole, small_gpt, tokenizer):
    """Its number in the run decides them: no problem number comes twice."""
    of_rl = [u for u in whole[1] if u.stage != "base"]
    assert [u.number for u in of_rl] == [STEPS * u.index + u.step for u in of_rl]
    assert [u.index for u in of_rl] == [1] * 5 + [2] * 5
    numbers, env = [], environment(tokenizer)
    env.problem = lambda number: numbers.append(number) or Problem("84/6", "14")
    for update in (0, 1, 2, STEPS, STEPS + 1):
        roll(config(max_new=1), STAGE_2, update, env, small_gpt())
    assert len(numbers) == len(set(numbers)) == 5 * 12


def test_every_step_samples_with_its_own_noise(small_gpt, tokenizer):
    """The same problem in each row and step, and yet each step's attempts are others; one step repeats."""
    env, model, c = environment(tokenizer, Problem("84/6", "14")), small_gpt(), config(batch=8, max_new=6)

    def attempts(update: int) -> list[list[str]]:
        ids = roll(c, STAGE_2, update, env, model)[0]["ids"].tolist()
        return [tokenizer.decode(row).split("<|assistant|>")[1:] for row in ids]  # [8][2]

    texts = [attempts(update) for update in (0, 1, STEPS)]
    assert texts[0] == attempts(0)
    for a, b in itertools.combinations(texts, 2):
        assert all(x[turn] != y[turn] for x, y in zip(a, b, strict=True) for turn in (0, 1))
    assert len({text for row in texts[0] for text in row}) > 12


@pytest.mark.parametrize("offline", [False, True])
def test_the_policy_samples_and_the_reference_makes_the_offline_attempts(small_gpt, tokenizer, offline):
    """At a temperature near 0 each model is known by its greedy attempts. Training samples at its own
    temperature, in parts of sample_batch. What the reference made is never learned from, and the logged
    length is that of the policy's attempts.
    """
    env, policy, reference = environment(tokenizer), small_gpt(), small_gpt(dim=16)
    for model in (policy, reference):
        model.lm_head.weight.data *= 30  # no near-ties
    c = config(batch=8, max_new=5, temperature=1e-3, offline_first=offline, sample_batch=3)
    prompts, request = env.prompts([env.problem(i) for i in range(8)]), [env.correction_request]
    mine, others = (sample_dialogues(m, tokenizer, prompts, request, 5, 0.0) for m in (policy, reference))
    assert not {row[0] for row in mine.texts} & {row[0] for row in others.texts}
    batch, metrics, (_, texts, _) = roll(c, STAGE_2, 0, env, policy, reference)
    first = others if offline else mine
    assert texts[0] == first.texts[-1][0]
    for b in range(8):
        start = first.row(b)[: int(first.masks[b, 1].nonzero()[0])]
        assert batch["ids"][b, : len(start)].tolist() == start
    assert offline or torch.equal(batch["ids"], mine.ids)
    learned = batch["masks"].any(2).tolist()
    assert learned == [[not offline, True]] * 8
    tokens = batch["masks"].sum().item()
    assert metrics["length"] == pytest.approx(tokens / (8 if offline else 16)) and tokens > 16


# ---------------------------------------------------------------------------------- rewards and advantages


@pytest.mark.parametrize("stage", [STAGE_1, STAGE_2, GAMMA], ids=["stage1", "stage2", "gamma"])
def test_advantages_of_a_batch_by_hand(stage, small_gpt, tokenizer, monkeypatch):
    """Rewards, bonus, returns and the comparison with other rollouts, in plain loops. Stage I rewards turn 2
    alone, whatever gamma says. Then what is logged of the batch.
    """
    c = config(samples_per_problem=3, gamma=0.5, alpha=10.0)
    right, real = [(i % 2 == 0, i % 3 == 0) for i in range(12)], train.sample_dialogues

    def copies(*args):
        rollout = real(*args)
        rollout.texts = [[row[0], row[0] + "x" * (i > 3)] for i, row in enumerate(rollout.texts)]
        return rollout

    monkeypatch.setattr(train, "sample_dialogues", copies)
    monkeypatch.setattr(train, "correctness", lambda *args: (torch.tensor(right), {}))
    env = environment(tokenizer)
    batch, metrics, (problem, texts, marks) = roll(c, stage, 1, env, small_gpt())
    bonus = 0.0 if stage is STAGE_1 else 10.0
    returns = []
    for first, second in right:
        two = second + bonus * (second - first)
        returns.append((stage.weights[0] * first + stage.gamma * two, two))
    assert stage.weights[0] == (0.0 if stage is STAGE_1 else 1.0)
    for i, k in itertools.product(range(12), range(2)):
        others = [j for j in range(12) if j != i and j // 3 == i // 3]
        expected = returns[i][k] - sum(returns[j][k] for j in others) / len(others)
        assert batch["advantages"][i, k].item() == pytest.approx(expected, abs=1e-4)
    rewards = [stage.weights[0] * first + second + bonus * (second - first) for first, second in right]
    expected = dict(acc_t1=1 / 2, acc_t2=1 / 3, change_rate=8 / 12, no_signal=0, reward=sum(rewards) / 12)
    assert {name: metrics[name] for name in expected} == pytest.approx(expected)
    # The example is the last row.
    assert problem == env.problem(7) and marks == list(right[11])
    spoken = batch["ids"][11][batch["masks"][11, 0]].tolist()
    assert texts[0] == tokenizer.decode([i for i in spoken if i != tokenizer.end_id])


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


# ---------------------------------------------------------------------------------- the supervised stages


def taught_dialogues(c: Config, step: int, env: Environment, model: GPT) -> list[tuple[str, str]]:
    """Each dialogue of a step of the base as text, and its taught tokens."""
    batch, decode = supervised_batch(c, "base", step, env, model, []), env.tokenizer.decode
    pairs = zip(batch["ids"], batch["masks"][:, 0], strict=True)
    return [(decode(ids.tolist()), decode(ids[mask].tolist())) for ids, mask in pairs]


def test_the_base_is_taught_attempts_and_never_prompts(small_gpt, tokenizer):
    c, env = config(base_batch=12, right_first=0.5), environment(tokenizer)
    for said, taught in taught_dialogues(c, 0, env, small_gpt()):
        assert said.count("<|user|>") == 2 and "<|user|>" not in taught and "check" not in taught
        assert taught.count("<|end|>") == 2


@pytest.mark.parametrize("setting", ["right_first", "copy", "right", "slip"])
def test_settings_of_the_demonstrations_are_the_shares_that_they_say(small_gpt, tokenizer, setting):
    env, shares = environment(tokenizer), dict(right_first=0.0, copy=0.0, right=0.0, slip=0.0) | {setting: 1}
    for said, taught in taught_dialogues(config(base_batch=12, **shares), 0, env, small_gpt()):
        prompt, first, second = (part.split("<|end|>")[0] for part in said.split("<|assistant|>"))
        problem = env.task.parse(prompt.removeprefix("<|user|>"))
        holds = {
            "right_first": env.task.is_correct(problem, first),
            "copy": first == second,
            "right": env.task.is_correct(problem, second),
            "slip": taught.startswith(first) and not env.task.is_correct(problem, first),
        }
        assert [name for name, value in holds.items() if value] == [setting]


def test_some_demonstrations_have_more_turns_and_as_many_attempts(small_gpt, tokenizer):
    """One batch of sixteen has five turns, another ten. Longer dialogues are fewer."""
    assert Counter(map(supervised.demonstration_turns, range(16))) == {2: 14, 5: 1, 10: 1}
    c, env = config(base_batch=20, own_from=1.0), environment(tokenizer)
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
    c, model = config(base_batch=12), small_gpt()
    env, fixed = environment(tokenizer), environment(tokenizer, Problem("8742/6", "1457"))
    zero, one = (taught_dialogues(c, step, env, model) for step in (0, 1))
    begins = [{said.split("<|assistant|>")[0] for said, _ in dialogues} for dialogues in (zero, one)]
    assert len(begins[0] & begins[1]) < 3
    assert taught_dialogues(c, 0, fixed, model) != taught_dialogues(c, 1, fixed, model)


def test_the_base_meets_its_own_attempts_in_its_last_part(small_gpt, tokenizer, monkeypatch):
    """From `own_from` on one in three of its first attempts is sampled, and their working is made true."""

    def sample(model, tokenizer, prompts, requests, max_new, temperature, generator, at_once):
        assert requests == [] and (max_new, temperature, at_once) == (c.max_new, 0.7, c.sample_batch)
        return SimpleNamespace(texts=[["1111*"]] * len(prompts))

    monkeypatch.setattr(supervised, "sample_dialogues", sample)
    c = config(base_batch=12, base_steps=20, own_from=0.5, right_first=0.0, slip=0.0, temperature=0.7)
    env = environment(tokenizer, Problem("8742/6", "1457"))
    for step, times in ((9, 0), (10, 4)):
        said = [text for text, _ in taught_dialogues(c, step, env, small_gpt())]
        assert sum("<|assistant|>1111*6=6666<<|end|>" in text for text in said) == times


def test_the_base_is_shown_each_problem_once(small_gpt, tokenizer):
    seen, c = [], config(base_batch=12, own_from=1.0)
    env = environment(tokenizer)
    env.demo_problem = lambda i, size: seen.append(i) or Problem("8742/6", "1457")
    for step in range(3):
        taught_dialogues(c, step, env, small_gpt())
    assert seen == list(range(36))


def test_the_base_begins_with_easier_problems(small_gpt, tokenizer):
    """Until `easy_until` the sizes are mixed, from half of `size` on. RL never sees the easier ones."""
    c = config(size=4, base_batch=40, base_steps=10, easy_until=0.5, own_from=1.0)
    env = environment(tokenizer, size=4)
    for step, sizes in ((4, {2, 3, 4}), (5, {4})):
        said = [text for text, _ in taught_dialogues(c, step, env, small_gpt())]
        prompts = [text.removeprefix("<|user|>").split("<|")[0] for text in said]
        assert {len(env.task.parse(prompt).answer) for prompt in prompts} == sizes
    assert {len(env.problem(i).answer) for i in range(200)} == {4}


def test_every_step_imitates_other_dialogues(small_gpt, tokenizer):
    lengths = [3 + i % 2 for i in range(50)]  # padding is not taught
    traces = [([1, 2, i, 4][:n], [False, True, True, False][:n]) for i, n in enumerate(lengths)]
    env, model = environment(tokenizer), small_gpt()
    zero, one = (supervised_batch(config(), "imitate", step, env, model, traces) for step in (0, 1))
    assert zero["masks"].sum() == 24 and not torch.equal(zero["ids"], one["ids"])
