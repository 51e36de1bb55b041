"""The loss on turns of unlike length, by enumeration: attempts of one or two tokens from a vocabulary of 3.

Turns of one token (test_loss.py) can't tell an advantage from an advantage divided by the turn's length, nor
from one on the last token alone, and they have no KL to come. Here every dialogue is visited and weighed with
its probability, so the mean gradient is exact.
"""

import copy
import itertools

import pytest
import torch
import torch.nn.functional as F

from model import GPT, GPTConfig
from train import policy_loss

END, X1, X2 = 0, [1], [2, 1]
ATTEMPTS = [(END,), *itertools.product((1, 2), range(3))]  # the end of the turn, or two tokens


@pytest.fixture
def policy():
    sizes = dict(n_layer=1, n_head=1, n_kv_head=1, dim=8, head_dim=8, ffn_dim=8, max_len=16)
    model = GPT(GPTConfig(vocab_size=3, **sizes)).double()
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


def log_prob(model: GPT, context: list[int], attempt: tuple, temperature: float) -> torch.Tensor:
    """Of the whole attempt after the context."""
    ids = torch.tensor([[*context, *attempt]])
    log_probs = F.log_softmax(model(ids)[0] / temperature, -1)
    return sum(log_probs[len(context) + i - 1, token] for i, token in enumerate(attempt))


def worth(first: tuple, second: tuple) -> tuple[float, float]:
    """Rewards of both turns: some depend on a turn's first token, some on its last, some on both."""
    one = float(first == (1, 2)) - 0.5 * (first[0] == 2) + 0.3 * (first == (END,))
    return one, float(second[-1] == END) - 0.7 * (second[0] == first[0])


def batch_of(first: tuple, second: tuple) -> dict:
    """The dialogue as the sampler lays it out: an attempt of two tokens without an end is closed."""
    before = [*X1, *first, *([] if first[-1] == END else [END]), *X2]
    ids = [*before, *second, 2]  # the last token is padding
    masks = torch.zeros(1, 2, len(ids), dtype=torch.bool)
    masks[0, 0, len(X1) : len(X1) + len(first)] = True
    masks[0, 1, len(before) : len(before) + len(second)] = True
    return {"ids": torch.tensor([ids]), "masks": masks, "advantages": torch.tensor([worth(first, second)])}


@pytest.mark.parametrize("betas", [(0.0, 0.0), (0.7, 0.3)], ids=["reward", "kl"])
@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_the_mean_gradient_is_that_of_the_objective(policy, reference, betas, temperature):
    """Of -E[r1] - E[r2] + betas[0] KL_1 + betas[1] KL_2, where turn 2 takes its context as it comes. The mean
    of what is logged as the KL is the KL, and that of the entropy is the turns' entropy.
    """
    objective, mean = 0.0, 0.0
    logged, expected = (
        {"kl_t1": 0.0, "kl_t2": 0.0, "entropy": 0.0},
        {"kl_t1": 0.0, "kl_t2": 0.0, "entropy": 0.0},
    )
    for first in ATTEMPTS:
        p1 = log_prob(policy, X1, first, temperature)
        q1 = log_prob(reference, X1, first, temperature)
        objective = objective + betas[0] * p1.exp() * (p1 - q1)
        expected["kl_t1"] += (p1.exp() * (p1 - q1)).item()
        for second in ATTEMPTS:
            batch = batch_of(first, second)
            context = batch["ids"][0, : batch["masks"][0, 1].nonzero()[0, 0]].tolist()
            p2 = log_prob(policy, context, second, temperature)
            q2 = log_prob(reference, context, second, temperature)
            r1, r2 = worth(first, second)
            here = p1.exp().detach()
            objective = objective - p1.exp() * p2.exp().detach() * r1 - here * p2.exp() * r2
            objective = objective + here * betas[1] * p2.exp() * (p2 - q2)
            chance = (p1 + p2).exp().item()
            expected["kl_t2"] += chance * (p2 - q2).item()
            expected["entropy"] -= chance * (p1 + p2).item()
            loss, parts = policy_loss(policy, reference, batch, betas, temperature, 2)
            mean = mean + 2 * chance * gradient(loss, policy)  # of a batch of two rows this is one
            for name in logged:
                logged[name] += 2 * chance * parts[name]
    whole = gradient(objective, policy)
    assert whole.norm() > 0.05  # a gradient of zero would show nothing
    assert torch.allclose(mean, whole, atol=1e-5)  # the loss computes in float32
    assert logged == pytest.approx(expected, abs=1e-5) and expected["kl_t1"] > 0.01


def test_every_token_of_a_turn_weighs_alike(policy, reference):
    """Advantage 1 and no KL: minus the sum of the attempt's log-probs, whether it has one token or two."""
    for first in ((END,), (1, 2)):
        batch = batch_of(first, (END,)) | {"advantages": torch.tensor([[1.0, 0.0]])}
        ours = gradient(policy_loss(policy, reference, batch, (0.0, 0.0), 1.0, 1)[0], policy)
        plain = gradient(-log_prob(policy, X1, first, 1.0), policy)
        assert plain.norm() > 0.05 and torch.allclose(ours, plain, atol=1e-5)
