"""What the tests read from a run's folder, and a judge for models that are never right."""

import json
from pathlib import Path

import torch

from engine.checkpoints import load
from engine.report import FAILURES


def metrics(folder: Path) -> list[dict]:
    """The rows of metrics.jsonl without their seconds, which no two runs have in common."""
    lines = (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return [{key: value for key, value in json.loads(line).items() if key != "seconds"} for line in lines]


def weights(path: Path) -> dict[str, torch.Tensor]:
    return load(path)["model"]


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    """Whether two models have the same weights, bit for bit."""
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def even(task, problems, texts, ended):
    """In place of `correctness`: is the sum of an attempt's characters even?"""
    correct = [[sum(map(ord, text)) % 2 == 0 for text in row] for row in texts]
    return torch.tensor(correct), dict.fromkeys(FAILURES, 0.0)
