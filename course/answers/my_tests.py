"""Tests as a student could hand them in for A5. They notice all bugs that a function may have."""

import math

import torch

from eval import self_correction_metrics
from rewards import turn_returns, turn_rewards
from train import advantages, token_credit


def test_a_return_counts_all_later_turns():
    assert turn_returns(torch.tensor([[1.0, 3.0, 4.0]]), 0.5).tolist() == [[3.5, 5.0, 4.0]]


def test_the_bonus_is_between_neighbours_and_has_no_weight():
    correct = torch.tensor([[False, True, True], [True, False, False]])
    rewards = turn_rewards(correct, (0.0, 0.25, 0.5), 4.0)
    assert rewards.tolist() == [[0.0, 4.25, 0.5], [0.0, -4.0, 0.0]]


def test_only_the_others_of_the_same_problem_and_turn_are_the_baseline():
    returns = torch.tensor([[20.0, 1.0], [0.0, 2.0], [5.0, 0.0], [7.0, 4.0]])
    assert advantages(returns, 2).tolist() == [[20, -1], [-20, 1], [-2, -4], [2, 4]]


def test_a_token_pays_for_the_later_kl_of_its_own_turn():
    masks = torch.tensor([[[1, 1, 0, 0], [0, 0, 1, 1]]], dtype=torch.bool)
    credit = token_credit(torch.zeros(1, 2), torch.tensor([[1.0, 2.0, 4.0, 8.0]]), masks, (1.0, 0.5))
    assert credit.tolist() == [[-2.0, 0.0, -4.0, 0.0]]


def test_the_metrics_of_four_problems_with_a_third_turn():
    correct = torch.tensor([[1, 1, 0], [0, 0, 1], [1, 1, 0], [0, 1, 0]], dtype=torch.bool)
    m = self_correction_metrics(correct)
    assert m["acc_t2"] == 0.75 and m["fix_rate"] == 0.5
    assert math.isclose(m["se"]["delta"], math.sqrt(3 / 16 / 4))
