"""Rewards: is an attempt right, and what does each turn get for it?

Correctness is the only reward, binary, and kept apart from what the stages make of it: accuracies are never computed from
shaped rewards.
"""

import torch
from torch import Tensor

from data import Problem, verdicts


def correctness(task, problems: list[Problem], texts: list[list[str]], ended: Tensor) -> tuple[Tensor, dict[str, float]]:
    """Which attempts are right, bool [B, K]; and the shares of those that could not be judged: cut off, unparsable, too slow.

    An attempt cut off by the length limit counts as wrong without being looked at.
    """
    whole = ended.tolist()
    places = [(b, k) for b, row in enumerate(texts) for k in range(len(row)) if whole[b][k]]
    judged = dict(zip(places, verdicts(task, [(problems[b], texts[b][k]) for b, k in places]), strict=True))
    right = [[judged.get((b, k)) == "right" for k in range(len(row))] for b, row in enumerate(texts)]
    found = list(judged.values())
    shares = {name: found.count(name) / ended.numel() for name in ("unparsable", "timeout")}
    return torch.tensor(right, device=ended.device), {"truncated": 1 - len(found) / ended.numel(), **shares}


def turn_rewards(correct: Tensor, weights: tuple[float, ...], alpha: float) -> Tensor:
    """Each turn's reward [B, K] from correct [B, K]: w_k * r_k and, for turns k > 1, the bonus alpha * (r_k - r_{k-1}).

    | | weights | alpha |
    |---|---|---|
    | Stage I (eq. 3): only turn 2 is rewarded | (0, 1) | 0 |
    | Stage II (eq. 4 with the bonus of eq. 5) | (1, 1) | > 1 |
    | plain RL on both turns (eq. 1) | (1, 1) | 0 |
    | single-turn RL (eq. 2) | (1, 0) | 0 |
    """
    r = correct.float()
    rewards = r * torch.tensor(weights, device=r.device)
    rewards[:, 1:] += alpha * (r[:, 1:] - r[:, :-1])
    return rewards


def turn_returns(rewards: Tensor, gamma: float) -> Tensor:
    """What each turn is credited with [B, K]: its own reward plus gamma times the next turn's return.

    The paper uses gamma = 0. With gamma = 1 and alpha > 1 a *right* first attempt would be penalised (it forfeits the
    bonus): the first turn would be paid for mistakes that the second can mend.
    """
    returns = rewards.clone()
    for turn in reversed(range(rewards.shape[1] - 1)):
        returns[:, turn] += gamma * returns[:, turn + 1]
    return returns
