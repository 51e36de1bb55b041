"""Rewards: is an attempt right, and what does each turn get for it?

Correctness is the only reward. It is binary, and it is kept apart from what the stages make of it: accuracies
are never computed from shaped rewards.
"""

import torch
from torch import Tensor

from data import Problem, verdicts


def correctness(
    task, problems: list[Problem], texts: list[list[str]], ended: Tensor
) -> tuple[Tensor, dict[str, float]]:
    """Which attempts are right, bool [B, K], and which shares failed before their answer was compared.

    `texts` [B][K] are the attempts at `problems` [B]; `ended` [B, K] says which came to their end of turn. An
    attempt that the length limit cut off is wrong, and its text is not looked at. The shares are of all B * K
    attempts: "truncated" (cut off), "unparsable", "timeout", and "unjudged" where our own checker broke.
    """
    places = ended.nonzero().tolist()  # (b, k) of each attempt that came to its end
    judged = verdicts(task, [(problems[b], texts[b][k]) for b, k in places])
    correct = torch.zeros_like(ended)
    for (b, k), verdict in zip(places, judged, strict=True):
        correct[b, k] = verdict == "right"
    shares = {name: judged.count(name) / ended.numel() for name in ("unparsable", "timeout", "unjudged")}
    return correct, {"truncated": 1 - len(judged) / ended.numel(), **shares}


def turn_rewards(correct: Tensor, weights: tuple[float, ...], alpha: float) -> Tensor:
    """Each turn's reward [B, K]: w_k * r_k and, for turns k > 1, the bonus alpha * (r_k - r_{k-1}) on top.

    `correct` [B, K] bool gives r; `weights` are w_1 to w_K. The bonus is not multiplied by w_k. Turn 1 has no
    bonus, since no attempt stands before it.

    | | weights | alpha |
    |---|---|---|
    | Stage I (eq. 3): only turn 2 is rewarded | (0, 1) | 0 |
    | Stage II (eq. 4 with the bonus of eq. 5) | (1, 1) | > 1 |
    | plain RL on both turns (eq. 1) | (1, 1) | 0 |
    | single-turn RL (eq. 2) | (1, 0) | 0 |

    A reward of your own is a function beside this one: see the README.
    """
    r = correct.float()
    rewards = r * torch.tensor(weights, device=r.device)
    rewards[:, 1:] += alpha * (r[:, 1:] - r[:, :-1])
    return rewards


def turn_returns(rewards: Tensor, gamma: float) -> Tensor:
    """Each turn's return [B, K]: its own reward plus gamma times the next turn's return.

    The paper uses gamma = 0. With two turns and weights of 1, turn 1's return is (1 - gamma * alpha) * r1 +
    gamma * (1 + alpha) * r2. If gamma * alpha > 1, the factor of r1 is negative: with the same second
    attempt, a wrong first one has the higher return.
    """
    returns = rewards.clone()
    for turn in reversed(range(rewards.shape[1] - 1)):
        returns[:, turn] += gamma * returns[:, turn + 1]
    return returns


def check_rewards(rewards: Tensor, correct: Tensor) -> None:
    """ValueError unless the rewards are finite numbers, one for each turn as in `correct` [B, K]."""
    is_tensor = isinstance(rewards, Tensor)
    fine = is_tensor and rewards.shape == correct.shape and rewards.is_floating_point()
    if not (fine and rewards.isfinite().all()):
        found = f"{rewards.dtype} {list(rewards.shape)}" if is_tensor else type(rewards).__name__
        wanted = f"finite floats [dialogues, turns] = {list(correct.shape)}"
        raise ValueError(f"the rewards of rollout_batch are {found}, not {wanted}: mend the reward function")
