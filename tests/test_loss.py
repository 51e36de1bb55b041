"""The algorithm: gradients of the real loss against closed forms, by enumeration on a three-token vocabulary.

Every batch that could be sampled is visited and weighed with its probability, so expectations are exact: no
seeds, no luck.
"""

import copy
import itertools
import math
from random import Random

import pytest
import torch
import torch.nn.functional as F

import train
from data import Environment, load_task, train_problems
from engine import memory
from engine.memory import micro_batches
from engine.supervised import supervised_loss
from model import GPT, GPTConfig
from rewards import turn_rewards
from train import Config, Stage, advantages, learning_rate, policy_loss, rollout_batch, stages

V = 3
X1, X2 = [0], [1, 2]  # the prompts; one token each would hide an off-by-one


@pytest.fixture
def policy():
    model = GPT(
        GPTConfig(vocab_size=V, n_layer=1, n_head=1, n_kv_head=1, dim=8, head_dim=8, ffn_dim=8, max_len=16)
    ).double()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.7)
    return model


@pytest.fixture
def reference(policy):
    other = copy.deepcopy(policy).requires_grad_(False)
    for parameter in other.parameters():
        parameter += 0.3 * torch.randn_like(parameter)
    return other


def gradient(loss, model):
    grads = torch.autograd.grad(loss, list(model.parameters()), allow_unused=True)
    flat = [
        (g if g is not None else torch.zeros_like(p)).flatten()
        for g, p in zip(grads, model.parameters(), strict=True)
    ]
    return torch.cat(flat)


def log_prob(model, context, token):
    return F.log_softmax(model(torch.tensor([context]))[0, -1], -1)[token]


def batch_of(dialogues, advantage):
    """Rows X1 y1 X2 y2 with attempts of one token each; advantage [B, 2]."""
    ids = torch.tensor([[*X1, y1, *X2, y2] for y1, y2 in dialogues])
    masks = torch.zeros(len(ids), 2, ids.shape[1], dtype=torch.bool)
    masks[:, 0, 1], masks[:, 1, 4] = True, True
    return {"ids": ids, "masks": masks, "advantages": advantage}


def right(dialogue):
    """An arbitrary notion of right for which attempt 2's chances depend on attempt 1."""
    y1, y2 = dialogue
    return y1 != 2, (y1 + y2) % 3 == 1


@pytest.mark.parametrize("baseline", ["by_outcome", "rloo"])
@pytest.mark.parametrize(
    "weights, alpha", [((0, 1), 0), ((1, 1), 10), ((1, 1), 0)], ids=["stage1", "stage2", "plain"]
)
def test_policy_gradient_is_exact_in_expectation(policy, reference, baseline, weights, alpha):
    """All batches of three dialogues of one problem: their mean gradient is that of eq. 3 / 4 + 5, KL terms
    included.

    There are 9 dialogues, so 729 batches. Those that differ in their order alone have the same chance. So 165
    are enough, each in an order that is drawn.
    """
    betas = (0.3, 0.05)
    expected, probability = 0.0, {}
    for y1 in range(V):
        p1, q1 = log_prob(policy, X1, y1), log_prob(reference, X1, y1)
        expected = expected + betas[0] * p1.exp() * (p1 - q1)
        for y2 in range(V):
            context = [*X1, y1, *X2]
            p2, q2 = log_prob(policy, context, y2), log_prob(reference, context, y2)
            reward = turn_rewards(torch.tensor([right((y1, y2))]), weights, alpha)[0].tolist()
            here = p1.exp().detach()  # per-turn credit: turn 2 takes its context as it comes
            expected = expected - p1.exp() * p2.exp().detach() * reward[0] - here * p2.exp() * reward[1]
            expected = expected + here * betas[1] * p2.exp() * (p2 - q2)
            probability[y1, y2] = (p1 + p2).exp().item()
    expected = gradient(expected, policy)

    mean_loss, total, rng = 0.0, 0.0, Random(0)
    for dialogues in itertools.combinations_with_replacement(probability, 3):
        orders = len(set(itertools.permutations(dialogues)))
        dialogues = rng.sample(dialogues, 3)
        correct, problem = torch.tensor([right(d) for d in dialogues]), torch.zeros(3, dtype=torch.long)
        advantage = advantages(turn_rewards(correct, weights, alpha), correct, problem, baseline)
        loss, _ = policy_loss(policy, reference, batch_of(dialogues, advantage), betas, 1.0, 3)
        weight = orders * math.prod(probability[dialogue] for dialogue in dialogues)
        mean_loss, total = mean_loss + weight * loss, total + weight
    assert total == pytest.approx(1)
    assert expected.norm() > 0.05  # a zero gradient would not pass
    assert torch.allclose(gradient(mean_loss, policy), expected, atol=1e-5)  # the loss is in float32 inside


def sequences_of_one_turn(model, length):
    """Every way a first turn of `length` tokens can go: its batch row and its probability."""
    for tokens in itertools.product(range(V), repeat=length):
        total = sum(log_prob(model, [*X1, *tokens[:i]], t) for i, t in enumerate(tokens))
        masks = torch.zeros(1, 2, length + 1, dtype=torch.bool)
        masks[0, 0, 1:] = True
        yield (
            {"ids": torch.tensor([[*X1, *tokens]]), "masks": masks, "advantages": torch.zeros(1, 2)},
            total,
            tokens,
        )


def test_kl_gradient_is_that_of_the_sequences_kl(policy, reference):
    """Over turns of three tokens the penalty's mean gradient is that of KL(policy || reference), not of
    the reverse.
    """
    kl, mean, mean_value = 0.0, 0.0, 0.0
    for batch, total, tokens in sequences_of_one_turn(policy, 3):
        other = sum(log_prob(reference, [*X1, *tokens[:i]], t) for i, t in enumerate(tokens))
        kl = kl + total.exp() * (total - other)
        loss, parts = policy_loss(policy, reference, batch, (1.0, 1.0), 1.0, 1)
        mean = mean + total.exp().item() * gradient(loss, policy)
        mean_value += total.exp().item() * parts["kl_t1"]
    expected = gradient(kl, policy)
    assert expected.norm() > 0.05
    assert torch.allclose(mean, expected, atol=1e-5)
    assert mean_value == pytest.approx(kl.item(), abs=1e-5)


def test_kl_is_zero_for_the_same_model(policy):
    batch = batch_of([(0, 1), (2, 2)], torch.zeros(2, 2))
    loss, parts = policy_loss(policy, copy.deepcopy(policy), batch, (1.0, 1.0), 1.0, 2)
    assert parts["kl_t1"] == pytest.approx(0, abs=1e-6) and parts["kl_t2"] == pytest.approx(0, abs=1e-6)
    assert gradient(loss, policy).norm() < 1e-5


def test_stage_one_holds_turn_one_by_kl_alone(policy, reference):
    """In Stage I no reward reaches turn 1, but its KL does, in proportion to beta2."""
    correct = torch.tensor([[True, False], [False, True], [True, True], [False, False]])
    advantage = advantages(
        turn_rewards(correct, (0.0, 1.0), 0.0), correct, torch.arange(4) // 2, "by_outcome"
    )
    assert (advantage[:, 0] == 0).all() and (advantage[:, 1] != 0).any()
    dialogues = [(0, 1), (1, 1), (2, 0), (0, 0)]

    def turn_one(advantage, betas, masks=slice(0, 1)):
        batch = batch_of(dialogues, advantage)
        batch["masks"][:, 1] = False  # turn 1's tokens alone
        return gradient(policy_loss(policy, reference, batch, betas, 1.0, 4)[0], policy)

    assert turn_one(advantage, (0.0, 0.01)).norm() == 0
    once, twice = turn_one(advantage, (0.1, 0.01)), turn_one(advantage, (0.2, 0.01))
    assert once.norm() > 1e-3
    assert torch.allclose(2 * once, twice, atol=1e-6)


def test_the_bonus_scales_turn_two_under_the_baseline_by_outcome():
    """Given turn 2's context, -alpha * r1 is a constant: that baseline takes it away and leaves a factor 1 +
    alpha.
    """
    correct = torch.tensor(list(itertools.product([False, True], repeat=2)) * 3)
    problem = torch.arange(12)
    plain = advantages(turn_rewards(correct, (1, 1), 0), correct, problem, "by_outcome")
    bonus = advantages(turn_rewards(correct, (1, 1), 10), correct, problem, "by_outcome")
    assert torch.allclose(bonus[:, 1], 11 * plain[:, 1], atol=1e-5) and torch.equal(bonus[:, 0], plain[:, 0])
    one_problem = torch.zeros(12, dtype=torch.long)
    together = advantages(turn_rewards(correct, (1, 1), 10), correct, one_problem, "rloo")
    assert not torch.allclose(
        together[:, 1], 11 * plain[:, 1], atol=1
    )  # here r1 is noise in turn 2's advantage


def test_leave_one_out_by_hand():
    correct = torch.tensor([[1, 1], [1, 0], [0, 1], [0, 0], [0, 0]], dtype=torch.bool)
    rewards = turn_rewards(correct, (1, 1), 0)
    by_outcome = advantages(rewards, correct, torch.arange(5), "by_outcome")
    expected = torch.tensor([[0.75, 1], [0.75, -1], [-0.5, 1], [-0.5, -0.5], [-0.5, -0.5]])
    assert torch.allclose(by_outcome, expected, atol=1e-6)
    three = torch.tensor([[1, 0, 1], [0, 0, 0], [0, 1, 1], [1, 1, 1]], dtype=torch.bool)
    third = advantages(three.float(), three, torch.arange(4), "by_outcome")[:, 2]
    assert torch.allclose(third, torch.tensor([1.0, -1, 0, 0]))  # rows with the same attempt 2 are compared
    by_problem = advantages(rewards, correct, torch.tensor([0, 0, 1, 1, 2]), "rloo")
    expected = torch.tensor([[0.0, 1], [0, -1], [0, 1], [0, -1], [0, 0]])
    assert torch.allclose(by_problem, expected, atol=1e-6)


def random_batch(rows=7, length=11):
    ids = torch.randint(0, V, (rows, length))
    masks = torch.zeros(rows, 2, length, dtype=torch.bool)
    for row, (a, b) in enumerate(zip([2, 4, 3, 2, 5, 2, 4], [6, 9, 7, 11, 11, 10, 8], strict=True)):
        masks[row, 0, 1:a], masks[row, 1, a + 1 : b] = True, True
    return {"ids": ids, "masks": masks, "advantages": torch.randn(rows, 2)}


def test_micro_batches_of_size_0_suit_the_device():
    """32 rows on a CPU. A GPU gets the whole batch: tests/fake_gpu.py has that."""
    batch = {name: torch.cat([t] * 7) for name, t in random_batch().items()}  # 49 rows
    assert [len(micro["ids"]) for micro in micro_batches(batch, 0)] == [32, 17]


@pytest.mark.parametrize("size", [1, 3])
def test_micro_batches_add_up(policy, reference, size):
    """One batch or micro-batches of rows with unlike lengths: the same gradient and the same logged sums.
    """
    batch = random_batch()
    loss, parts = policy_loss(policy, reference, batch, (0.2, 0.1), 1.0, 7)
    whole, total, sums = gradient(loss, policy), 0.0, 0.0
    widths = [micro["ids"].shape[1] for micro in micro_batches(batch, size)]
    assert (
        widths == {1: [6, 7, 8, 9, 10, 11, 11], 3: [8, 11, 11]}[size]
    )  # rows of like lengths stand together
    for micro in micro_batches(batch, size):
        loss, part = policy_loss(policy, reference, micro, (0.2, 0.1), 1.0, 7)
        total, sums = total + gradient(loss, policy), sums + part["kl_t2"]
    assert whole.norm() > 0.01
    assert torch.allclose(total, whole, atol=1e-6) and sums == pytest.approx(parts["kl_t2"], abs=1e-6)
    taught = {"ids": batch["ids"], "masks": batch["masks"].any(1, keepdim=True)}
    tokens = int(taught["masks"][:, :, 1:].sum())
    whole = gradient(supervised_loss(policy, taught, tokens), policy)
    total = sum(
        gradient(supervised_loss(policy, micro, tokens), policy) for micro in micro_batches(taught, size)
    )
    assert whole.norm() > 0.01 and torch.allclose(total, whole, atol=1e-6)


def test_padding_and_prompts_do_not_matter(policy, reference):
    """What stands to the right of a row's last token changes nothing."""
    batch = random_batch()
    padded = {**batch, "ids": F.pad(batch["ids"], (0, 3), value=1), "masks": F.pad(batch["masks"], (0, 3))}
    a = gradient(policy_loss(policy, reference, batch, (0.2, 0.1), 1.0, 7)[0], policy)
    b = gradient(policy_loss(policy, reference, padded, (0.2, 0.1), 1.0, 7)[0], policy)
    assert a.norm() > 0.01 and torch.allclose(a, b, atol=1e-6)


def test_temperature_divides_the_logits(policy, reference):
    """Scoring at T equals scoring a policy and a reference whose heads are scaled by 1 / T at temperature 1.
    """
    batch = random_batch()
    warm, _ = policy_loss(policy, reference, batch, (0.2, 0.1), 0.7, 7)
    with torch.no_grad():
        policy.lm_head.weight /= 0.7
        reference.lm_head.weight /= 0.7
    scaled, _ = policy_loss(policy, reference, batch, (0.2, 0.1), 1.0, 7)
    cold, _ = policy_loss(policy, reference, batch, (0.2, 0.1), 0.7, 7)
    assert warm.item() == pytest.approx(scaled.item(), abs=1e-5) and abs(warm.item() - cold.item()) > 1e-3


def test_chunks_of_the_head_change_nothing_and_save_memory(policy, reference, monkeypatch):
    """Logits in chunks: the same gradient, and between the passes no tensor as large as all logits is kept.
    """
    batch, kept = random_batch(), []
    n = int(batch["masks"][:, :, 1:].sum())
    whole = gradient(policy_loss(policy, reference, batch, (0.2, 0.1), 1.0, 7)[0], policy)
    monkeypatch.setattr(memory, "LOGITS_AT_ONCE", 4 * V)
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(tuple(t.shape)) or t, lambda t: t):
        loss, _ = policy_loss(policy, reference, batch, (0.2, 0.1), 1.0, 7)
    assert torch.allclose(gradient(loss, policy), whole, atol=1e-6)
    assert not [shape for shape in kept if len(shape) == 2 and shape[0] >= n and shape[1] == V]
    kept.clear()
    monkeypatch.setattr(memory, "LOGITS_AT_ONCE", 2**25)
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(tuple(t.shape)) or t, lambda t: t):
        policy_loss(policy, reference, batch, (0.2, 0.1), 1.0, 7)
    assert [shape for shape in kept if shape == (n, V)]  # the check above can fail


def test_a_policy_that_is_its_reference_has_no_gradient_without_reward(policy):
    """Exactly none: Muon and Adam make a full step of any gradient, rounding noise included."""
    same, batch = copy.deepcopy(policy).float(), random_batch()
    reference = copy.deepcopy(same).requires_grad_(False)
    loss, _ = policy_loss(same, reference, batch | {"advantages": torch.zeros(7, 2)}, (0.2, 0.1), 1.0, 7)
    assert (gradient(loss, same) == 0).all()
    assert gradient(policy_loss(same, reference, batch, (0.2, 0.1), 1.0, 7)[0], same).norm() > 0.01


class Largest(torch.utils._python_dispatch.TorchDispatchMode):
    """Numbers in the largest tensor that any operation makes, forward and backward."""

    numbers = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        made = function(*args, **(kwargs or {}))
        for t in made if isinstance(made, tuple | list) else [made]:
            if isinstance(t, torch.Tensor):
                self.numbers = max(self.numbers, t.numel())
        return made


@pytest.mark.parametrize("kind", ["policy", "supervised"])
def test_no_tensor_of_all_logits_is_ever_made(kind, monkeypatch):
    """At a vocabulary of 5,000 an update makes nothing larger than a chunk of logits or the embedding itself.
    """
    big = GPTConfig(
        vocab_size=5000, n_layer=1, n_head=1, n_kv_head=1, dim=8, head_dim=8, ffn_dim=8, max_len=64
    )
    model, reference, batch = GPT(big), GPT(big).requires_grad_(False), random_batch()
    batch = {name: t.repeat(4, *[1] * (t.ndim - 1)) for name, t in batch.items()}  # [28, 11]: 1.5 M logits
    monkeypatch.setattr(memory, "LOGITS_AT_ONCE", 50_000)

    def largest(chunk):
        monkeypatch.setattr(memory, "LOGITS_AT_ONCE", chunk)
        with Largest() as mode:
            if kind == "policy":
                policy_loss(model, reference, batch, (0.2, 0.1), 1.0, 28)[0].backward()
            else:
                supervised_loss(model, batch | {"masks": batch["masks"].any(1, keepdim=True)}, 100).backward()
        return mode.numbers

    assert largest(50_000) <= 50_000
    sampled = int(
        (batch["masks"][:, :, 1:].any(1) if kind == "policy" else batch["masks"].any(1)[:, 1:]).sum()
    )
    assert (
        largest(10**9) == 5000 * sampled < 28 * 10 * 5000
    )  # the check can fail; prompts and padding have no logits even so


def environment(c, tokenizer):
    task = load_task(c.task)
    return Environment(task, tokenizer, train_problems(task, c.size, c.seed))


def test_rollouts_of_one_problem_stand_together_and_are_compared(small_gpt, tokenizer, monkeypatch):
    """With 4 samples a problem, 4 rows share a prompt, and leave-one-out advantages of one problem add up to
    nothing.
    """
    c = Config(batch=12, samples_per_problem=4, baseline="rloo", max_new=3)
    monkeypatch.setattr(
        train, "correctness", lambda task, problems, texts, ended: (torch.rand(len(texts), 2) < 0.5, {})
    )
    model, env = small_gpt(), environment(c, tokenizer)
    batch, _, _ = rollout_batch(c, stages(c)[2], (1, 0), env, model, model)
    prompts = [
        tuple(row[: int(mask[0].nonzero()[0])].tolist())
        for row, mask in zip(batch["ids"], batch["masks"], strict=True)
    ]
    assert [prompts.count(p) for p in prompts] == [4] * 12 and prompts[0] == prompts[3] != prompts[4]
    groups = batch["advantages"].view(3, 4, 2)
    assert groups.abs().sum() > 1 and torch.allclose(groups.sum(1), torch.zeros(3, 2), atol=1e-4)


def test_stage_one_rewards_turn_2_alone_whatever_gamma_says(small_gpt, tokenizer, monkeypatch):
    """The logged length is that of the attempts that the policy made: here of second ones alone, a token
    each.
    """
    c = Config(batch=12, gamma=0.8, max_new=1, offline_share=1.0)
    monkeypatch.setattr(
        train, "correctness", lambda task, problems, texts, ended: (torch.rand(len(texts), 2) < 0.5, {})
    )
    model, env = small_gpt(), environment(c, tokenizer)

    def credits(stage):
        torch.manual_seed(0)
        batch, metrics, _ = rollout_batch(c, stage, (1, 0), env, model, model)
        assert metrics["length"] == 1
        return batch["advantages"]

    one, two = (credits(stage) for stage in stages(c)[1:])
    assert not one[:, 0].any() and one[:, 1].any()
    assert not torch.equal(two, credits(stages(Config(gamma=0.0))[2]))


def test_learning_rate_warms_up_holds_and_falls():
    stage = Stage("stage1", 100, 0.5)
    rates = [learning_rate(stage, step) for step in (0, 4, 9, 50, 75, 99)]
    assert rates == pytest.approx([0.05, 0.25, 0.5, 0.5, 0.25, 0.01])


def test_stages_are_rows_of_coefficients():
    rates = dict(base_lr=0.3, lr=0.2, stage2_lr=0.1)
    base, one, two = stages(Config(**rates, beta1=0.01, beta2=0.2, stage2_beta=0.3, alpha=10))
    assert [stage.lr for stage in (base, one, two)] == [0.3, 0.2, 0.1]
    assert base.weights is None and one.reference == two.reference == "base"
    assert (one.weights, one.alpha, one.betas) == ((0.0, 1.0), 0.0, (0.2, 0.01))
    assert (two.weights, two.alpha, two.betas) == ((1.0, 1.0), 10.0, (0.3, 0.3))
    one, two = stages(Config(gamma=0.8))[1:]
    assert (one.gamma, two.gamma) == (0.0, 0.8)  # Stage I rewards turn 2 alone, whatever Stage II credits
    woven = stages(Config(interleave=2, stage1_steps=300, stage2_steps=200))
    assert [(s.name, s.steps) for s in woven[1:]] == [("stage1", 150), ("stage2", 100)] * 2
    assert {s.reference for s in woven[1:]} == {"base"}
    assert [s.name for s in stages(Config(init="base.pt"))] == ["stage1", "stage2"]
    assert [s.name for s in stages(Config(stage1_steps=0))] == ["base", "stage2"]
    imitation = stages(Config(imitate="file", stage1_steps=0, imitate_steps=7))
    assert [s.name for s in imitation] == ["base", "imitate", "stage2"]
    assert (imitation[1].steps, imitation[1].lr) == (7, Config.lr)
    # An unrewarded turn is left alone: no KL holds it.
    alone = stages(Config(stage2_weight1=0.0, stage2_beta=0.3))[2]
    assert (alone.weights, alone.betas) == ((0.0, 1.0), (0.0, 0.3))
    single = stages(Config(stage2_weight2=0.0, stage2_beta=0.3, alpha=0.0))[2]
    assert (single.weights, single.betas) == ((1.0, 0.0), (0.3, 0.0))


def test_three_attempts_have_a_stage_each_with_a_reference_of_its_own():
    """ICLR version, A.1: 1(a) as before; 1(b) rewards turn 3 and holds turns 1, 2 to the model of 1(a); then
    all of them.
    """
    _, a, b, two = stages(Config(turns=3, beta1=0.01, beta2=0.2, stage2_beta=0.3))
    assert (a.name, a.weights, a.betas, a.reference) == ("stage1", (0.0, 1.0), (0.2, 0.01), "base")
    assert (b.name, b.weights, b.betas, b.reference) == (
        "stage1b",
        (0.0, 0.0, 1.0),
        (0.2, 0.2, 0.01),
        "stage1",
    )
    assert (two.weights, two.betas, two.reference, two.alpha) == (
        (1.0, 1.0, 1.0),
        (0.3, 0.3, 0.3),
        "base",
        10.0,
    )
