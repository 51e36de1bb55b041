"""Does it learn? A task for which seconds are enough, a model of one layer, a fixed seed."""

from pathlib import Path
from statistics import fmean

import pytest
from run_files import metrics

import data
import train
from engine.checkpoints import open_run
from train import Config, stages

pytestmark = pytest.mark.slow

# Say a digit from 5 to 9. Half of the demonstrations do, in both turns, so the base is right half of the
# time: it has all to gain, and it is soon trained.
LARGE_DIGIT = """
from data import Attempt, Problem
DIGITS_PER_TOKEN = 1
def sample(rng, size):
    return parse(str(rng.randrange(1000)))
def parse(prompt):
    return Problem(prompt, "5, 6, 7, 8 or 9")
def is_correct(problem, text):
    return text in list("56789")
def attempt(problem, kind, rng):
    return Attempt(str(rng.randrange(5) + 5 * (kind == "right")), "")
def honest(problem, text):
    return None
"""
SETTINGS = dict(
    task="large_digit", n_layer=1, dim=32, base_steps=40, base_batch=32, base_lr=0.02, right_first=0.5,
    slip=1.0, copy=0.0, right=0.5, own_from=1.0, batch=64, samples_per_problem=4,
    micro_batch=64, max_new=2, lr=0.005, stage2_lr=0.005, alpha=0.0, beta1=0.01, beta2=5.0,
    stage2_beta=0.01, show_every=1000, save_every=1000, device="cpu", report=False,
)  # fmt: skip


def run(folder: Path, name: str, **settings) -> dict[str, list[float]]:
    """A run of train.py on the task. Returns each figure of its metrics.jsonl as a list over the steps."""
    c = Config(out=str(folder), name=name, **SETTINGS, **settings)
    with open_run(c, "", stages) as (c, state):
        train.train(c, state)
    rows = [row for row in metrics(folder / name) if row["stage"] != "base"]
    return {k: [row[k] for row in rows] for k in ("acc_t1", "acc_t2", "kl_t1", "kl_t2") if rows}


def test_plain_rl_raises_both_turns_and_stage_1_raises_turn_2_alone(tmp_path, monkeypatch):
    """Accuracies are of 64 sampled attempts a step: the mean of ten steps is off by about 0.02. A policy that
    says large digits alone has a KL of ln 2 = 0.69 to the base.
    """
    (tmp_path / "large_digit.py").write_text(LARGE_DIGIT, encoding="utf-8")
    monkeypatch.setattr(data, "__path__", [*data.__path__, str(tmp_path)])
    run(tmp_path, "base", stage1_steps=0, stage2_steps=0)
    base = str(tmp_path / "base" / "base.pt")

    plain = run(tmp_path, "plain", init=base, stage1_steps=0, stage2_steps=40)
    for turn in ("t1", "t2"):
        assert fmean(plain[f"acc_{turn}"][:2]) < 0.7
        assert fmean(plain[f"acc_{turn}"][-10:]) > 0.95
        assert fmean(plain[f"kl_{turn}"][-10:]) > 0.5

    one = run(tmp_path, "one", init=base, stage1_steps=60, stage2_steps=0)
    assert fmean(one["acc_t2"][:2]) < 0.7 and fmean(one["acc_t2"][-10:]) > 0.95
    assert abs(fmean(one["acc_t1"][-10:]) - 0.5) < 0.12 and fmean(one["kl_t1"][-10:]) < 0.05
