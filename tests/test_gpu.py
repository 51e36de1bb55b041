"""A GPU computes what the CPU computes. Without CUDA only the last tests run.

TEST_DEVICE=cpu runs all of them on the CPU. That tries the tests out, no more: most then compare a thing with
itself.
"""

import copy
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from test_rollout import MANY, end_often
from torch.utils import backend_registration

import rollout
from engine import decode
from engine.lora import add_lora, without_lora
from engine.memory import micro_batches
from engine.optim import Learner, Muon, master_weights
from engine.supervised import supervised_loss
from model import KVCache
from rollout import sample_dialogues, sample_token, sample_turn
from train import Config, policy_loss

ROOT, CPU = Path(__file__).parent.parent, torch.device("cpu")
DEVICE = torch.device(os.environ.get("TEST_DEVICE", "cuda"))
missing = DEVICE.type == "cuda" and not torch.cuda.is_available()
on_device = pytest.mark.skipif(missing, reason="there is no CUDA device here")


def sampled(model, tokenizer, temperature=1.0):
    prompts, request = [tokenizer.user_turn(p) for p in MANY], tokenizer.user_turn("check")
    generator = torch.Generator(DEVICE).manual_seed(3)
    return sample_dialogues(model, tokenizer, prompts, [request] * 2, 11, temperature, generator)


@on_device
@pytest.mark.parametrize("temperature, push", [(0.0, 3.0), (0.7, 5.0)])
def test_the_fast_decoder_samples_what_the_plain_one_does(
    small_gpt, tokenizer, monkeypatch, temperature, push
):
    model = end_often(small_gpt(n_kv_head=2), tokenizer, push).to(DEVICE)
    fast = sampled(model, tokenizer, temperature)
    assert len(set(fast.masks.sum(-1).flatten().tolist())) > 4  # turns of many lengths
    monkeypatch.setattr(rollout, "fast_sample_turn", lambda *args: sample_turn(*args[:6]))
    plain = sampled(model, tokenizer, temperature)
    assert torch.equal(fast.ids, plain.ids) and torch.equal(fast.masks, plain.masks)
    assert torch.allclose(fast.log_probs, plain.log_probs, atol=1e-4) and fast.texts == plain.texts


@on_device
@torch.no_grad()
def test_sampled_log_probs_are_the_cpus(small_gpt, tokenizer):
    model = end_often(small_gpt(), tokenizer, push=5.0)
    found = sampled(copy.deepcopy(model).to(DEVICE), tokenizer)
    ids = found.ids.cpu()
    plain = model(ids[:, :-1]).log_softmax(-1).gather(2, ids[:, 1:, None])[:, :, 0]
    mask = found.masks.any(1).cpu()
    assert torch.allclose(found.log_probs.cpu()[mask], plain[mask[:, 1:]], atol=1e-3)


@on_device
@torch.no_grad()
def test_no_token_waits_for_the_device(small_gpt):
    """CUDA itself raises an error for a wait, from the first token to the seventh."""
    model, tokens = small_gpt().to(DEVICE), iter(range(8))
    cache = KVCache(model.config, 9, 20, DEVICE)
    hidden = model.hidden(torch.zeros(9, 5, dtype=torch.long, device=DEVICE), cache)[:, -1]
    cache.advance(5, 5)

    def watched(*args):
        watch("default" if next(tokens) == 7 else "error")
        return sample_token(*args)

    def watch(mode):
        if DEVICE.type == "cuda":
            torch.cuda.set_sync_debug_mode(mode)

    try:
        uniform = torch.rand(9, 8, dtype=torch.float64, device=DEVICE)
        decode.fast_sample_turn(model, cache, hidden, 0, 1.0, uniform, watched)
    finally:
        watch("default")
    assert next(tokens, None) is None


def batch_of(device):
    masks = torch.zeros(6, 2, 20, dtype=torch.bool)
    masks[:, 0, 3:9], masks[:, 1, 12:17] = True, True
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(0, 90, (6, 20), generator=generator)
    batch = {"ids": ids, "masks": masks, "advantages": torch.randn(6, 2, generator=generator)}
    return {name: t.to(device) for name, t in batch.items()}


@on_device
@pytest.mark.parametrize("recompute", [False, True])
def test_losses_and_gradients_are_the_cpus(small_gpt, recompute):
    found = []
    for device in (CPU, DEVICE):
        model, reference = small_gpt().to(device), small_gpt(norm_eps=1e-2).to(device)
        model.recompute = recompute
        values = []
        for micro in micro_batches(batch_of(device), 4):
            loss, parts = policy_loss(model, reference, micro, (0.1, 0.2), 0.9, 6)
            taught = supervised_loss(model, micro, 66)
            (loss + taught).backward()
            values += [loss.item(), taught.item(), *parts.values()]
        found.append((values, {name: p.grad.cpu() for name, p in model.named_parameters()}))
    (values, gradients), (others, other_gradients) = found
    assert others == pytest.approx(values, rel=1e-3, abs=1e-4) and min(map(abs, values)) > 0
    for name, gradient in gradients.items():
        error = (other_gradients[name] - gradient).norm() / gradient.norm()
        assert error < 1e-3, name


@on_device
@pytest.mark.parametrize("shape", [(64, 64), (96, 32), (32, 96)])
def test_a_step_of_muon_is_the_cpus_but_for_bfloat16(shape):
    weight, gradient = torch.randn(2, *shape)
    steps = []
    for device in (CPU, DEVICE):
        p = weight.to(device, copy=True).requires_grad_()
        p.grad = gradient.to(device)
        Muon([p], dict(lr=0.1)).step()
        steps.append((p.detach().cpu() - weight).flatten())
    assert torch.cosine_similarity(*steps, dim=0) > 0.99
    assert steps[1].norm() / steps[0].norm() == pytest.approx(1, abs=0.05)


@on_device
def test_adapters_learn_in_bfloat16(small_gpt):
    model = add_lora(small_gpt().to(DEVICE, torch.bfloat16), 3)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    learner = Learner(model, master_weights(model, {}))
    learner.start_stage(Config(optimizer="adamw"), None)
    losses = []
    for _ in range(5):
        loss, _ = policy_loss(model, without_lora(model), batch_of(DEVICE), (0.1, 0.1), 1.0, 6)
        loss.backward()
        assert learner.gradient_norm(1.0) > 0
        learner.step(0.01)
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    changed = {name for name, p in model.named_parameters() if not torch.equal(p, before[name])}
    assert changed == {name for name in before if "lora_" in name}


@on_device
def test_a_killed_run_goes_on(tmp_path):
    """It is killed in the base's stage and comes to its end after --resume, with no step missing or twice."""
    sizes = "--size=2 --n_layer=1 --dim=32 --base_batch=8 --batch=8 --report=false"
    steps = "--base_steps=30 --stage1_steps=2 --stage2_steps=2 --save_every=2"
    words = [*sizes.split(), *steps.split(), f"--out={tmp_path}", f"--device={DEVICE.type}"]
    rows, command = tmp_path / "default" / "metrics.jsonl", [sys.executable, ROOT / "train.py"]
    process = subprocess.Popen([*command, *words])
    while process.poll() is None and (not rows.exists() or rows.read_text().count("\n") < 3):
        time.sleep(0.01)
    process.kill()
    process.wait()
    done = rows.read_text().count("\n")
    assert 3 <= done < 30
    subprocess.run([*command, f"--resume={tmp_path / 'default'}"], check=True)
    found = [json.loads(line) for line in rows.read_text().splitlines()]
    stages = (("base", 30), ("stage1", 2), ("stage2", 2))
    expected = [(stage, step) for stage, steps in stages for step in range(1, steps + 1)]
    assert [(row["stage"], row["step"]) for row in found] == expected
    assert (tmp_path / "default" / "stage2.pt").exists()


@pytest.mark.skipif(
    not hasattr(backend_registration, "_setup_privateuseone_for_python_backend"),
    reason="this torch can't register a device in Python",
)
@pytest.mark.slow
@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a real GPU for this")
def test_on_a_fake_gpu():
    """Every tensor is on the right device and no token waits, as far as one can tell without a GPU."""
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/fake_gpu.py"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-5000:]
