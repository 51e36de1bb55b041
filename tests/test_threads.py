"""The number of threads: chosen by pace, looked at again, and given back. Choices are tested, no clock."""

import pytest
import torch

from engine import threads
from engine.threads import best_threads, passes_a_second, with_best_threads
from model import GPT, GPTConfig


@pytest.fixture
def model():
    torch.manual_seed(0)
    return GPT(GPTConfig(vocab_size=7, n_layer=1, n_head=2, n_kv_head=2, dim=8, head_dim=4, ffn_dim=8))


@pytest.fixture
def in_threads():
    """Sets the number of threads; gives the old one back after the test."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


def paced(monkeypatch, **pace):
    """Makes `passes_a_second` say pace["n1"] with one thread and so on. Returns the counts that it saw."""
    asked = []

    def passes(model):
        asked.append(torch.get_num_threads())
        return pace[f"n{asked[-1]}"]

    monkeypatch.setattr(threads, "passes_a_second", passes)
    return asked


@pytest.mark.parametrize(
    "most, pace, best, asked",
    [
        (2, dict(n1=10, n2=18), 2, [1, 2]),
        (2, dict(n1=10, n2=3), 1, [1, 2]),  # a busy core
        (6, dict(n1=10, n2=18, n4=30, n6=40), 6, [1, 2, 4, 6]),
        (8, dict(n1=10, n2=18, n4=15), 2, [1, 2, 4]),  # 8 would be slower still
        (1, dict(n1=10), 1, [1]),
    ],
)
def test_the_quickest_number_is_taken(model, in_threads, monkeypatch, most, pace, best, asked):
    seen = paced(monkeypatch, **pace)
    assert best_threads(model, most) == best
    assert seen == asked


def test_steps_run_with_the_best_number_which_is_looked_at_again(model, in_threads, monkeypatch, capsys):
    in_threads(2)
    pace, now = dict(n1=10, n2=3), [1000.0]
    monkeypatch.setattr(threads, "passes_a_second", lambda m: pace[f"n{torch.get_num_threads()}"])
    monkeypatch.setattr(threads.time, "monotonic", lambda: now[0])
    seen = []
    for step in with_best_threads(range(3, 7), model):
        seen.append((step, torch.get_num_threads()))
        if step == 4:
            pace["n2"] = 20  # the other program has ended, but nobody has looked yet
        if step == 5:
            now[0] += 31
    assert seen == [(3, 1), (4, 1), (5, 1), (6, 2)]
    assert torch.get_num_threads() == 2
    assert "threads: 1 of 2" in capsys.readouterr().out


def test_one_thread_is_never_measured(model, in_threads, monkeypatch):
    in_threads(1)
    asked = paced(monkeypatch)
    assert list(with_best_threads(range(3), model)) == [0, 1, 2]
    assert not asked


@pytest.mark.parametrize("position", ["rope", "learned"])
def test_looking_leaves_the_model_and_the_random_numbers_alone(position):
    torch.manual_seed(0)
    model = GPT(GPTConfig(7, n_layer=1, dim=8, head_dim=2, ffn_dim=8, position=position))
    before = {name: p.clone() for name, p in model.named_parameters()}
    state = torch.get_rng_state()
    assert passes_a_second(model) > 0
    assert torch.equal(torch.get_rng_state(), state)
    assert all(p.grad is None and torch.equal(p, before[name]) for name, p in model.named_parameters())
