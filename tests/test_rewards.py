"""Rewards and metrics against hand-made cases and the paper's own tables."""

import math
import time

import pytest
import torch

from data import Problem, load_task
from eval import edit_distance_ratio, self_correction_metrics
from rewards import correctness, turn_returns, turn_rewards

CASES = torch.tensor([[0, 0], [0, 1], [1, 0], [1, 1]], dtype=torch.bool)


@pytest.mark.parametrize(
    "weights, alpha, expected",
    [
        ((0, 1), 0, [[0, 0], [0, 1], [0, 0], [0, 1]]),  # Stage I
        ((1, 1), 10, [[0, 0], [0, 11], [1, -10], [1, 1]]),  # Stage II: the paper's four cases at alpha = 10
        ((1, 1), 0, [[0, 0], [0, 1], [1, 0], [1, 1]]),  # plain two-turn RL
        ((1, 0), 0, [[0, 0], [0, 0], [1, 0], [1, 0]]),  # single-turn RL
    ],
)
def test_rewards_of_each_stage(weights, alpha, expected):
    assert turn_rewards(CASES, None, weights, alpha).tolist() == expected


def test_gamma_decides_whether_a_right_first_attempt_is_fined():
    """T5: per-turn credit never pays turn 1 for a mistake; a joint return with alpha > 1 does."""
    rewards = turn_rewards(CASES, None, (1, 1), 10)
    assert turn_returns(rewards, 0).tolist() == rewards.tolist()
    joint = turn_returns(rewards, 1)
    assert joint[:, 0].tolist() == [0, 11, -9, 2]
    assert joint[1, 0] > joint[3, 0]  # wrong, then right beats right, then right: sabotage pays
    assert rewards[1, 0] < rewards[3, 0]
    three = turn_rewards(torch.tensor([[False, True, True]]), None, (1, 1, 1), 10)
    assert three.tolist() == [[0, 11, 1]]
    assert turn_returns(three, 0.5).tolist() == [[5.75, 11.5, 1]]


def test_an_attempt_that_was_cut_is_wrong():
    task, problem = load_task("division"), Problem("8742/6", "1457")
    texts = [["1457*6=8742", "1457*6=8742"]]
    assert correctness(task, [problem], texts, torch.tensor([[True, False]]))[0].tolist() == [[True, False]]


@pytest.mark.parametrize(
    "task, prompt, right, wrong",
    [
        ("division", "8742/6", ["1457*6=8742", "1457", "1457*6=1"],
         ["", "1457 ", "01457*6", "1456*6=8742", "1457;1456", "1,457", "1457.0", "7**9**9**9", "１４５７"]),
        ("addition", "47+5", ["52"], ["", "52.0", "5 2", "47+5", "52,53", "+52", "1e1"]),
        ("multiplication", "12*12", ["144"], ["", "12**2", "144*1", "0144"]),
        ("countdown", "3,7,5:26", ["3*7=21,21+5=26", "7*3=21,5+21=26"],
         ["", "26", "3*7=21,21+5=27", "3*7=22,22+5=26", "3*7=21,5*5=26", "3*3=9,9+7=16",
          "21+5=26", "3*7=21,21+5=26,1", "3**7=21,21+5=26",
          "3*7=21,21+5"]),
    ],
)  # fmt: skip
def test_checkers(task, prompt, right, wrong):
    """T9: the checker takes right answers only, whatever the text, and a megabyte of digits in no time."""
    task = load_task(task)
    problem = task.parse(prompt)
    start = time.time()
    assert all(task.is_correct(problem, text) for text in right)
    assert not any(
        task.is_correct(problem, text) for text in [*wrong, "9" * 10**6, "9**" * 10**5, "(" * 10**5]
    )
    assert time.time() - start < 2  # no timing: a tower of powers would take for ever


# acc_t1, acc_t2, delta, i_to_c, c_to_i of the paper's tables with transitions (MATH, then HumanEval)
PAPER = [
    (52.6, 41.4, -11.2, 4.6, 15.8),
    (52.8, 51.8, -1.0, 3.2, 4.2),
    (55.4, 41.2, -14.2, 5.4, 19.6),
    (53.6, 54.0, 0.4, 2.6, 2.2),
    (52.4, 54.2, 1.8, 5.4, 3.6),
    (55.0, 55.0, 0.0, 0.0, 0.0),
    (60.0, 64.4, 4.4, 5.8, 1.4),
    (53.7, 56.7, 3.0, 7.9, 4.9),
    (53.7, 52.5, -1.2, 9.8, 11.0),
    (56.1, 54.3, -1.8, 4.3, 6.1),
    (52.4, 64.6, 12.2, 15.2, 3.0),
]


@pytest.mark.parametrize("t1, t2, delta, i_to_c, c_to_i", PAPER)
def test_metrics_reproduce_the_papers_rows(t1, t2, delta, i_to_c, c_to_i):
    """1,000 problems with the row's transitions: all five figures come out, as fractions of all problems."""
    count = {"ic": round(10 * i_to_c), "ci": round(10 * c_to_i), "first": round(10 * t1)}
    rows = (
        [[False, True]] * count["ic"]
        + [[True, False]] * count["ci"]
        + [[True, True]] * (count["first"] - count["ci"])
    )
    rows += [[False, False]] * (1000 - len(rows))
    m = self_correction_metrics(torch.tensor(rows))
    for name, expected in zip(
        ("acc_t1", "acc_t2", "delta", "i_to_c", "c_to_i"), (t1, t2, delta, i_to_c, c_to_i), strict=True
    ):
        assert 100 * m[name] == pytest.approx(expected, abs=0.11), (
            name
        )  # HumanEval's rows are rounded shares of 164
    assert m["acc_t2"] == pytest.approx(m["acc_t1"] + m["i_to_c"] - m["c_to_i"])
    assert m["fix_rate"] == pytest.approx(i_to_c / (100 - t1), abs=0.002)


def test_standard_errors_are_the_paired_ones():
    correct = torch.tensor([[0, 1], [1, 1], [1, 0], [0, 0], [0, 1], [1, 1], [1, 1], [0, 1]], dtype=torch.bool)
    m = self_correction_metrics(correct, torch.tensor([1, 0, 1, 1, 1, 0, 0, 1], dtype=torch.bool))
    assert m["n"] == 8 and m["acc_t1"] == 0.5 and m["acc_t2"] == 0.75 and m["change_rate"] == 0.625
    assert m["se"]["acc_t1"] == pytest.approx(math.sqrt(0.25 / 8))
    differences = [1, 0, -1, 0, 1, 0, 0, 1]
    variance = sum((d - 0.25) ** 2 for d in differences) / 8
    assert m["se"]["delta"] == pytest.approx(math.sqrt(variance / 8))
    assert m["fix_rate"] == 0.75 and m["se"]["fix_rate"] == pytest.approx(math.sqrt(0.75 * 0.25 / 4))


def test_no_wrong_first_attempt_has_no_fix_rate():
    m = self_correction_metrics(torch.ones(5, 2, dtype=torch.bool))
    assert math.isnan(m["fix_rate"]) and m["delta"] == 0


def test_edit_distance_ratio():
    assert edit_distance_ratio("1457", "1457") == 0
    assert edit_distance_ratio("12", "34") == 1
    assert edit_distance_ratio("1457", "1467") == 0.25  # one deletion, one insertion, eight characters
    assert edit_distance_ratio("", "") == 0 and edit_distance_ratio("", "9") == 1
