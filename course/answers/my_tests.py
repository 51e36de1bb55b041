"""Tests as a student could hand them in for A5. They notice all hidden bugs."""

import math

import torch

from eval import self_correction_metrics
from rewards import turn_returns, turn_rewards
from train import advantages, token_credit


def test_a_return_counts_all_later_turns():
    assert turn_returns(torch.tensor([[1.0, 2.0, 4.0]]), 0.5).tolist() == [[3.0, 4.0, 4.0]]


def test_the_bonus_does_not_depend_on_the_weight():
    assert turn_rewards(torch.tensor([[False, True]]), (0.0, 0.25), 4.0).tolist() == [[0.0, 4.25]]


def test_the_baseline_of_turn_2_looks_at_turn_1_alone():
    correct = torch.tensor([[1, 1], [1, 0], [0, 0], [0, 0]], dtype=torch.bool)
    returns = torch.tensor([[0.0, 1.0], [0.0, 0.0], [0.0, 5.0], [0.0, 2.0]])
    assert advantages(returns, correct, torch.arange(4), "by_outcome")[:, 1].tolist() == [1, -1, 3, -3]


def test_turn_1_does_not_pay_for_the_kl_of_turn_2():
    masks = torch.tensor([[[1, 1, 0, 0], [0, 0, 1, 1]]], dtype=torch.bool)
    credit = token_credit(torch.zeros(1, 2), torch.tensor([[1.0, 2.0, 4.0, 8.0]]), masks, (1.0, 0.5))
    assert credit.tolist() == [[-2.0, 0.0, -4.0, 0.0]]


def test_attempts_that_always_agree_have_no_error_of_delta():
    m = self_correction_metrics(torch.tensor([[1, 1], [0, 0], [1, 1], [0, 0]], dtype=torch.bool))
    assert m["se"]["delta"] == 0 and math.isclose(m["se"]["acc_t1"], 0.25)
