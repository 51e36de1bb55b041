"""The algorithm: gradients of the real loss against closed forms, by enumeration on a three-token vocabulary.

Every dialogue that could be sampled is visited and weighed with its probability, so expectations are exact:
no seeds, no luck. Attempts have up to two tokens, because turns of one token can't tell an advantage from an
advantage divided by the turn's length, nor from one on the last token alone, and have no KL to come.
"""

import copy
import itertools
import math
from random import Random

import pytest
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from engine import memory
from engine.memory import micro_batches
from engine.run import learning_rate
from engine.supervised import supervised_loss
from model import GPT, GPTConfig
from rewards import turn_rewards
from train import Config, Stage, advantages, policy_loss, stages

V, END = 3, 0
X1, X2 = [1], [2, 1]  # the prompts
ATTEMPTS = [(END,), *itertools.product((1, 2), range(V))]  # the end of the turn, or two tokens
SIZES = dict(n_layer=1, n_head=1, n_kv_head=1, dim=8, head_dim=8, ffn_dim=8)


@pytest.fixture
def policy():
    model = GPT(GPTConfig(vocab_size=V, **SIZES, max_len=16)).double()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.7)
    return model


@pytest.fixture
def reference(policy):
    other = copy.deepcopy(policy).requires_grad_(False)
    for parameter in other.parameters():
        parameter += 0.3 * torch.randn_like(parameter)
    return other


def gradient(loss, model: GPT) -> torch.Tensor:
    grads = torch.autograd.grad(loss, list(model.parameters()), allow_unused=True)
    pairs = zip(grads, model.parameters(), strict=True)
    return torch.cat([(torch.zeros_like(p) if g is None else g).flatten() for g, p in pairs])


def log_prob(model: GPT, context: list[int], attempt: tuple, temperature: float = 1.0) -> torch.Tensor:
    """Of the whole attempt after the context."""
    log_probs = F.log_softmax(model(torch.tensor([[*context, *attempt]]))[0] / temperature, -1)
    return sum(log_probs[len(context) + i - 1, token] for i, token in enumerate(attempt))


def before_turn_2(first: tuple) -> list[int]:
    """The dialogue as the sampler lays it out: an attempt without an end is closed."""
    return [*X1, *first, *([] if first[-1] == END else [END]), *X2]


def batch_of(dialogues: list[tuple], advantages) -> dict:
    """Rows of two turns, padded with 2. `dialogues` are pairs of attempts, `advantages` [B][2]."""
    rows = [[*before_turn_2(first), *second] for first, second in dialogues]
    width = max(map(len, rows)) + 1
    masks = torch.zeros(len(rows), 2, width, dtype=torch.bool)
    for mask, row, (first, second) in zip(masks, rows, dialogues, strict=True):
        mask[0, len(X1) : len(X1) + len(first)] = True
        mask[1, len(row) - len(second) : len(row)] = True
    ids = torch.tensor([row + [2] * (width - len(row)) for row in rows])
    return {"ids": ids, "masks": masks, "advantages": torch.as_tensor(advantages)}


# ---------------------------------------------------------------------------------- exact gradients


def worth(first: tuple, second: tuple) -> tuple[float, float]:
    """Rewards of both turns: some depend on a turn's first token, some on its last, some on both."""
    one = float(first == (1, 2)) - 0.5 * (first[0] == 2) + 0.3 * (first == (END,))
    return one, float(second[-1] == END) - 0.7 * (second[0] == first[0])


@pytest.mark.parametrize("betas", [(0.0, 0.0), (0.7, 0.3)], ids=["reward", "kl"])
@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_the_mean_gradient_is_that_of_the_objective(policy, reference, betas, temperature):
    """Of -E[r1] - E[r2] + betas[0] KL_1 + betas[1] KL_2, where turn 2 takes its context as it comes. The mean
    of what is logged as the KL is the KL, and that of the entropy is the turns' entropy.
    """
    objective, mean = 0.0, 0.0
    logged, expected = (dict.fromkeys(("kl_t1", "kl_t2", "entropy"), 0.0) for _ in range(2))
    for first in ATTEMPTS:
        p1, q1 = (log_prob(model, X1, first, temperature) for model in (policy, reference))
        objective = objective + betas[0] * p1.exp() * (p1 - q1)
        expected["kl_t1"] += (p1.exp() * (p1 - q1)).item()
        for second in ATTEMPTS:
            p2, q2 = (log_prob(m, before_turn_2(first), second, temperature) for m in (policy, reference))
            r1, r2 = worth(first, second)
            here = p1.exp().detach()
            objective = objective - p1.exp() * p2.exp().detach() * r1 - here * p2.exp() * r2
            objective = objective + here * betas[1] * p2.exp() * (p2 - q2)
            chance = (p1 + p2).exp().item()
            expected["kl_t2"] += chance * (p2 - q2).item()
            expected["entropy"] -= chance * (p1 + p2).item()
            batch = batch_of([(first, second)], [[r1, r2]])
            loss, parts = policy_loss(policy, reference, batch, betas, temperature, 2)
            mean = mean + 2 * chance * gradient(loss, policy)  # of a batch of two rows this is one
            for name in logged:
                logged[name] += 2 * chance * parts[name]
    whole = gradient(objective, policy)
    assert whole.norm() > 0.05  # a gradient of zero would show nothing
    assert torch.allclose(mean, whole, atol=1e-5)  # the loss computes in float32
    assert logged == pytest.approx(expected, abs=1e-5) and expected["kl_t1"] > 0.01


def test_kl_gradient_is_that_of_the_sequences_kl(policy, reference):
    """Over turns of three tokens the penalty's mean gradient is that of KL(policy || reference), not of the
    reverse, and each token is charged for all of the KL that comes after it.
    """
    kl, mean, mean_value = 0.0, 0.0, 0.0
    for attempt in itertools.product(range(V), repeat=3):
        p, q = (log_prob(model, X1, attempt) for model in (policy, reference))
        kl = kl + p.exp() * (p - q)
        batch = batch_of([(attempt, (END,))], [[0.0, 0.0]])
        batch["masks"][:, 1] = False
        loss, parts = policy_loss(policy, reference, batch, (1.0, 1.0), 1.0, 1)
        mean = mean + p.exp().item() * gradient(loss, policy)
        mean_value += p.exp().item() * parts["kl_t1"]
    expected = gradient(kl, policy)
    assert expected.norm() > 0.05
    assert torch.allclose(mean, expected, atol=1e-5)
    assert mean_value == pytest.approx(kl.item(), abs=1e-5)


def right(first: tuple, second: tuple) -> tuple[bool, bool]:
    """An arbitrary notion of right for which attempt 2's chances depend on attempt 1."""
    return first[0] != 2, (first[0] + second[0]) % 3 == 1


@pytest.mark.parametrize(
    "weights, alpha", [((0, 1), 0), ((1, 1), 10), ((1, 1), 0)], ids=["stage1", "stage2", "plain"]
)
def test_policy_gradient_is_exact_in_expectation(policy, reference, weights, alpha):
    """All batches of three dialogues of one problem, with the baseline: their mean gradient is that of eq. 3
    / 4 + 5, KL terms included. In Stage I turn 1 has the gradient of its KL alone.

    With attempts of one token there are 9 dialogues, so 729 batches. Those that differ in their order alone
    have the same chance. So 165 are enough, each in an order that is drawn.
    """
    betas, expected, probability = (0.3, 0.05), 0.0, {}
    attempts = [(token,) for token in range(V)]
    for first in attempts:
        p1, q1 = (log_prob(model, X1, first) for model in (policy, reference))
        expected = expected + betas[0] * p1.exp() * (p1 - q1)
        for second in attempts:
            p2, q2 = (log_prob(model, before_turn_2(first), second) for model in (policy, reference))
            reward = turn_rewards(torch.tensor([right(first, second)]), weights, alpha)[0].tolist()
            here = p1.exp().detach()  # per-turn credit: turn 2 takes its context as it comes
            expected = expected - p1.exp() * p2.exp().detach() * reward[0] - here * p2.exp() * reward[1]
            expected = expected + here * betas[1] * p2.exp() * (p2 - q2)
            probability[first, second] = (p1 + p2).exp().item()
    expected = gradient(expected, policy)

    mean_loss, total, rng = 0.0, 0.0, Random(0)
    for dialogues in itertools.combinations_with_replacement(probability, 3):
        orders = len(set(itertools.permutations(dialogues)))
        dialogues = rng.sample(dialogues, 3)
        correct = torch.tensor([right(*d) for d in dialogues])
        advantage = advantages(turn_rewards(correct, weights, alpha), 3)
        loss, _ = policy_loss(policy, reference, batch_of(dialogues, advantage), betas, 1.0, 3)
        weight = orders * math.prod(probability[dialogue] for dialogue in dialogues)
        mean_loss, total = mean_loss + weight * loss, total + weight
    assert total == pytest.approx(1)
    assert expected.norm() > 0.05
    assert torch.allclose(gradient(mean_loss, policy), expected, atol=1e-5)


# ---------------------------------------------------------------------------------- the baselines


def test_the_bonus_is_a_weight_in_expectation():
    """Turn 2 can't change -alpha * r1. So with and without the bonus, turn 2's advantages, averaged over what
    the second attempts of a group may be, differ by the factor 1 + alpha.
    """
    firsts, chances = (True, False, False), (0.9, 0.2, 0.6)  # of a right second attempt after each of them
    means = {
        alpha: torch.zeros(3, 2, dtype=torch.double) for alpha in (0, 10)
    }  # [row, second wrong or right]
    for seconds in itertools.product((False, True), repeat=3):
        weight = math.prod(p if s else 1 - p for p, s in zip(chances, seconds, strict=True))
        correct = torch.tensor(list(zip(firsts, seconds, strict=True)))
        for alpha, mean in means.items():
            advantage = advantages(turn_rewards(correct, (1, 1), alpha), 3)[:, 1]
            for row, second in enumerate(seconds):
                chance = chances[row] if second else 1 - chances[row]
                mean[row, int(second)] += weight / chance * advantage[row]
    gains = {alpha: mean[:, 1] - mean[:, 0] for alpha, mean in means.items()}  # all that the gradient sees
    assert torch.allclose(gains[10], 11 * gains[0], atol=1e-5) and gains[0].abs().min() > 0.5


def test_leave_one_out_by_hand():
    returns = torch.tensor([[1.0, 1], [1, 0], [0, 1], [0, 0], [0, 0], [3, 0]])
    expected = torch.tensor([[0.5, 0.5], [0.5, -1], [-1, 0.5], [-1.5, 0], [-1.5, 0], [3, 0]])
    assert torch.allclose(advantages(returns, 3), expected)
    assert torch.equal(advantages(returns, 1), returns)  # nothing to compare with


# ---------------------------------------------------------------------------------- what changes nothing


def random_batch(rows=7, length=11):
    ids = torch.randint(0, V, (rows, length))
    masks = torch.zeros(rows, 2, length, dtype=torch.bool)
    for row, (a, b) in enumerate(zip([2, 4, 3, 2, 5, 2, 4], [6, 9, 7, 11, 11, 10, 8], strict=True)):
        masks[row, 0, 1:a], masks[row, 1, a + 1 : b] = True, True
    return {"ids": ids, "masks": masks, "advantages": torch.randn(rows, 2)}


def taught(batch: dict) -> tuple[dict, int]:
    """The same tokens as those of a supervised batch, and their number."""
    masks = batch["masks"].any(1, keepdim=True)
    return {"ids": batch["ids"], "masks": masks}, int(masks[:, :, 1:].sum())


def loss_of(policy, reference, batch, temperature=1.0):
    return policy_loss(policy, reference, batch, (0.2, 0.1), temperature, 7)


def test_micro_batches_of_size_0_suit_the_device():
    """32 rows on a CPU. A GPU gets the whole batch: tests/fake_gpu.py has that."""
    batch = {name: torch.cat([t] * 7) for name, t in random_batch().items()}  # 49 rows
    assert [len(micro["ids"]) for micro in micro_batches(batch, 0)] == [32, 17]


@pytest.mark.parametrize("size, widths", [(1, [6, 7, 8, 9, 10, 11, 11]), (3, [8, 11, 11])])
def test_micro_batches_add_up(policy, reference, size, widths):
    """One batch or micro-batches of rows with unlike lengths: the same gradient and the same logged sums.
    Rows of like lengths stand together, and padding is cut off.
    """
    batch = random_batch()
    loss, parts = loss_of(policy, reference, batch)
    whole, total, sums = gradient(loss, policy), 0.0, 0.0
    assert [micro["ids"].shape[1] for micro in micro_batches(batch, size)] == widths
    for micro in micro_batches(batch, size):
        loss, part = loss_of(policy, reference, micro)
        total, sums = total + gradient(loss, policy), sums + part["kl_t2"]
    assert whole.norm() > 0.01
    assert torch.allclose(total, whole, atol=1e-6) and sums == pytest.approx(parts["kl_t2"], abs=1e-6)
    lesson, tokens = taught(batch)
    losses = [supervised_loss(policy, micro, tokens) for micro in micro_batches(lesson, size)]
    whole = gradient(supervised_loss(policy, lesson, tokens), policy)
    assert whole.norm() > 0.01 and torch.allclose(gradient(sum(losses), policy), whole, atol=1e-6)


def test_a_policy_that_is_its_reference_has_no_gradient_without_reward(policy):
    """Exactly none: Adam makes a full step of any gradient, rounding noise included. And no KL."""
    same, batch = copy.deepcopy(policy).float(), random_batch()
    reference = copy.deepcopy(same).requires_grad_(False)
    loss, parts = loss_of(same, reference, batch | {"advantages": torch.zeros(7, 2)})
    assert (gradient(loss, same) == 0).all()
    assert parts["kl_t1"] == pytest.approx(0, abs=1e-6) == parts["kl_t2"]
    assert gradient(loss_of(same, reference, batch)[0], same).norm() > 0.01


# ---------------------------------------------------------------------------------- what saves memory


class Largest(TorchDispatchMode):
    """Numbers in the largest tensor that any operation makes, forward and backward."""

    numbers = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        made = function(*args, **(kwargs or {}))
        for t in made if isinstance(made, tuple | list) else [made]:
            if isinstance(t, torch.Tensor):
                self.numbers = max(self.numbers, t.numel())
        return made


@pytest.mark.parametrize("kind", ["policy", "supervised"])
def test_chunks_of_the_head_change_nothing_and_save_memory(kind, monkeypatch):
    """At a vocabulary of 5,000 an update makes nothing larger than a chunk of logits or the embedding itself,
    and keeps no chunk between its passes. The gradient is the same. Without chunks, too, prompts and padding
    have no logits.
    """
    big = GPTConfig(vocab_size=5000, **SIZES, max_len=64)
    model, reference, batch = GPT(big), GPT(big).requires_grad_(False), random_batch()
    batch = {name: t.repeat(4, *[1] * (t.ndim - 1)) for name, t in batch.items()}  # [28, 11]: 1.5 M logits
    lesson, tokens = taught(batch)

    def update(chunk):
        """The gradient, the largest tensor, and the numbers of logits that wait for the backward pass."""
        monkeypatch.setattr(memory, "LOGITS_AT_ONCE", chunk)
        kept, hooks = [], torch.autograd.graph.saved_tensors_hooks
        model.zero_grad()
        with Largest() as mode:
            with hooks(lambda t: kept.append(t.numel() * (t.shape[-1:] == (5000,))) or t, lambda t: t):
                if kind == "policy":
                    loss, _ = loss_of(model, reference, batch)
                else:
                    loss = supervised_loss(model, lesson, tokens)
            loss.backward()
        return torch.cat([p.grad.flatten() for p in model.parameters()]), mode.numbers, sum(kept)

    (whole, most, all_kept), (chunked, few, none_kept) = update(memory.LOGITS_AT_ONCE), update(50_000)
    assert torch.allclose(chunked, whole, atol=1e-6) and whole.norm() > 0.01
    assert few <= 50_000 and most == 5000 * tokens < 28 * 10 * 5000
    assert none_kept == 0 < all_kept


# ---------------------------------------------------------------------------------- the stages


def test_learning_rate_warms_up_holds_and_falls():
    stage = Stage("stage1", 100, 0.5)
    rates = [learning_rate(stage, step) for step in (0, 4, 9, 50, 75, 99)]
    assert rates == pytest.approx([0.05, 0.25, 0.5, 0.5, 0.25, 0.01])


def test_stages_are_rows_of_coefficients():
    rates = dict(base_lr=0.3, lr=0.2, stage2_lr=0.1)
    base, one, two = stages(Config(**rates, beta1=0.01, beta2=0.2, stage2_beta=0.3, alpha=10))
    assert [stage.lr for stage in (base, one, two)] == [0.3, 0.2, 0.1]
    assert not base.weights and one.reference == two.reference == "base"
    assert (one.weights, one.alpha, one.betas) == ((0.0, 1.0), 0.0, (0.2, 0.01))
    assert (two.weights, two.alpha, two.betas) == ((1.0, 1.0), 10.0, (0.3, 0.3))
    one, two = stages(Config(gamma=0.8))[1:]
    assert (one.gamma, two.gamma) == (0.0, 0.8)  # Stage I rewards turn 2 alone, whatever Stage II credits
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
    held = ((0.0, 0.0, 1.0), (0.2, 0.2, 0.01), "stage1")
    assert (b.name, b.weights, b.betas, b.reference) == ("stage1b", *held)
    assert (two.weights, two.betas, two.reference, two.alpha) == ((1.0,) * 3, (0.3,) * 3, "base", 10.0)
