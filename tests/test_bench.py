"""The step that bench.py compares ours with is the same step, and gpu.py keeps its time."""

import os
import re
import sys
import time
from pathlib import Path

import pytest
import torch

from engine.memory import micro_batches
from train import advantages, policy_loss

ROOT = Path(__file__).parent.parent


def test_the_plain_step_computes_the_same_gradient(small_gpt):
    pytest.importorskip("transformers")
    pytest.importorskip("safetensors")
    from experiments import bench, plain_step

    model, reference = small_gpt(qk_norm=True), small_gpt(qk_norm=True)
    with torch.no_grad():
        reference.lm_head.weight.mul_(0.9)
    twin, twins_reference = bench.in_transformers(model), bench.in_transformers(reference)
    prompts, request, new = [[5, 6, 7], [8, 9], [5, 9, 7, 3], [4]], [1, 2], 3
    ids, mask, turns = plain_step.sample(twin, prompts, request, new)
    correct = torch.tensor([[0, 1], [1, 1], [0, 0], [1, 0]], dtype=torch.bool)
    rewards = correct.float()
    rewards[:, 1] += 10 * (rewards[:, 1] - rewards[:, 0])
    theirs, ours = plain_step.advantages(rewards, 2), advantages(rewards, 2)
    torch.testing.assert_close(ours, theirs)
    betas = (0.3, 0.2)
    plain_step.loss_of(twin, twins_reference, ids, mask, turns, theirs, betas, 4).backward()

    lefts = [len(row) - int(m.sum()) for row, m in zip(ids, mask, strict=True)]
    rolled = torch.stack([row.roll(-n) for row, n in zip(ids, lefts, strict=True)])  # padded on the right
    masks = torch.stack([m.roll(-n, -1) for m, n in zip(turns, lefts, strict=True)])
    for part in micro_batches({"ids": rolled, "masks": masks, "advantages": ours}, 2):
        policy_loss(model, reference, part, betas, 1.0, 4)[0].backward()
    same = {model.lm_head.weight: twin.lm_head.weight, model.norm.weight: twin.model.norm.weight}
    for mine, other in same.items():
        torch.testing.assert_close(mine.grad, other.grad, rtol=1e-3, atol=1e-4)


def test_the_readme_has_the_table_of_the_formula():
    from experiments.memory import table

    readme = (ROOT / "engine" / "README.md").read_text(encoding="utf-8")
    assert all(f"\n{row}\n" in readme for row in table(4, 1024, 64).splitlines()[2:])


def test_a_part_on_a_gpu_that_takes_too_long_is_killed_with_its_children(tmp_path):
    from experiments import gpu

    log, pid = tmp_path / "bench.log", tmp_path / "pid"
    child = f"import os, time; open({str(pid)!r}, 'w').write(str(os.getpid())); time.sleep(600)"
    code = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {child!r}])"
    assert not gpu.run_limited([sys.executable, "-c", code], log, 2 / 60)
    child = int(pid.read_text())
    with pytest.raises(ProcessLookupError):
        for _ in range(100):
            os.kill(child, 0)
            time.sleep(0.1)
    (tmp_path / "tests.done").write_text("12 passed")
    text = gpu.report(tmp_path, ["tests", "bench", "run"], "a machine")
    assert "stopped after 0.0 minutes" in text and "12 passed" in text and "a machine" in text
    states = re.findall("## (.*)", text)
    assert states == ["tests: done", "bench: failed or stopped", "run: not begun"]
