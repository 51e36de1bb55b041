"""Rewards and checkers against hand-made cases."""

import time

import pytest
import torch

from data import load_task
from rewards import turn_returns, turn_rewards

CASES = torch.tensor([[0, 0], [0, 1], [1, 0], [1, 1]], dtype=torch.bool)


@pytest.mark.parametrize(
    "weights, alpha, expected",
    [
        ((0, 1), 0, [[0, 0], [0, 1], [0, 0], [0, 1]]),  # Stage I
        ((1, 1), 10, [[0, 0], [0, 11], [1, -10], [1, 1]]),  # Stage II: the paper's four cases at alpha = 10
        ((1, 1), 0, [[0, 0], [0, 1], [1, 0], [1, 1]]),  # plain two-turn RL
        ((1, 0.5), 10, [[0, 0], [0, 10.5], [1, -10], [1, 0.5]]),  # the weight does not multiply the bonus
        ((1, 0), 0, [[0, 0], [0, 0], [1, 0], [1, 0]]),  # single-turn RL
    ],
)
def test_rewards_of_each_stage(weights, alpha, expected):
    assert turn_rewards(CASES, weights, alpha).tolist() == expected


def test_gamma_decides_whether_a_right_first_attempt_is_fined():
    """Per-turn credit never pays turn 1 for a mistake; a joint return with alpha > 1 does."""
    rewards = turn_rewards(CASES, (1, 1), 10)
    assert turn_returns(rewards, 0).tolist() == rewards.tolist()
    joint = turn_returns(rewards, 1)
    assert joint[:, 0].tolist() == [0, 11, -9, 2]
    assert joint[1, 0] > joint[3, 0]  # wrong, then right beats right, then right: sabotage pays
    assert rewards[1, 0] < rewards[3, 0]
    three = turn_rewards(torch.tensor([[False, True, True]]), (1, 1, 1), 10)
    assert three.tolist() == [[0, 11, 1]]
    assert turn_returns(three, 0.5).tolist() == [[5.75, 11.5, 1]]


@pytest.mark.parametrize(
    "task, prompt, right, wrong",
    [
        ("division", "8742/6", ["1457*6=8742", "1457", "1457*6=1"],
         ["", "1457 ", "01457*6", "1456*6=8742", "1457;1456", "1,457", "1457.0", "7**9**9**9", "１４５７"]),
        ("addition", "47+5", ["52"], ["", "52.0", "5 2", "47+5", "52,53", "+52", "1e1"]),
        ("countdown", "3,7,5:26", ["3*7=21,21+5=26", "7*3=21,5+21=26"],
         ["", "26", "3*7=21,21+5=27", "3*7=22,22+5=26", "3*7=21,5*5=26", "3*3=9,9+7=16",
          "21+5=26", "3*7=21,21+5=26,1", "3**7=21,21+5=26",
          "3*7=21,21+5"]),
    ],
)  # fmt: skip
def test_checkers(task, prompt, right, wrong):
    """The checker takes right answers only, whatever the text, and a megabyte of digits in no time."""
    task = load_task(task)
    problem = task.parse(prompt)
    start = time.time()
    assert all(task.is_correct(problem, text) for text in right)
    wrong = [*wrong, "9" * 10**6, "9**" * 10**5, "(" * 10**5]
    assert not any(task.is_correct(problem, text) for text in wrong)
    assert time.time() - start < 2  # no timing: a tower of powers would take for ever
