"""A GPU computes what the CPU computes. Without CUDA only the last tests run.

TEST_DEVICE=cpu runs all of them on the CPU. That tries the tests out, no more: most then compare a thing with
itself.
"""

import copy
import io
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from test_rollout import MANY, end_often, sample
from torch.utils import backend_registration

import rollout
from engine.decode import replayed
from engine.lora import add_lora, without_lora
from engine.memory import micro_batches
from engine.optim import make_optimizer, master_weights
from engine.supervised import supervised_loss
from model import KVCache
from rollout import sample_token, sample_turn
from train import policy_loss, token_scores

ROOT, CPU = Path(__file__).parent.parent, torch.device("cpu")
DEVICE = torch.device(os.environ.get("TEST_DEVICE", "cuda"))
missing = DEVICE.type == "cuda" and not torch.cuda.is_available()
on_device = pytest.mark.skipif(missing, reason="there is no CUDA device here")


@on_device
@pytest.mark.parametrize("temperature, push", [(0.0, 3.0), (0.7, 5.0)])
def test_recorded_passes_sample_what_plain_ones_do(small_gpt, tokenizer, monkeypatch, temperature, push):
    model = end_often(small_gpt(n_kv_head=2), tokenizer, push).to(DEVICE)
    fast = sample(model, tokenizer, 3, temperature, MANY, max_new=11)
    assert len(set(fast.masks.sum(-1).flatten().tolist())) > 4  # turns of many lengths
    monkeypatch.setattr(rollout, "replayed", lambda model, cache: lambda ids: model.hidden(ids, cache))
    plain = sample(model, tokenizer, 3, temperature, MANY, max_new=11)
    assert torch.equal(fast.ids, plain.ids) and torch.equal(fast.masks, plain.masks)
    assert fast.texts == plain.texts


@on_device
@torch.no_grad()
def test_log_probs_of_the_sampled_tokens_are_the_cpus(small_gpt, tokenizer):
    model = end_often(small_gpt(), tokenizer, push=5.0)
    there = copy.deepcopy(model).to(DEVICE)
    found = sample(there, tokenizer, 3, 0.7, MANY)
    mask = found.masks.any(1)
    scores = token_scores(there, there, found.ids, mask, 0.7)[0].cpu()
    expected = token_scores(model, model, found.ids.cpu(), mask.cpu(), 0.7)[0]
    assert torch.allclose(scores, expected, atol=1e-3) and expected.min() < -1


@on_device
@torch.no_grad()
def test_no_token_waits_for_the_device(small_gpt, monkeypatch):
    """CUDA itself raises an error for a wait, from the first token to the seventh."""
    model, tokens = small_gpt().to(DEVICE), iter(range(8))
    cache = KVCache(model.config, 9, 20, DEVICE)
    hidden = model.hidden(torch.zeros(9, 5, dtype=torch.long, device=DEVICE), cache)[:, -1]
    cache.keep([5] * 9)

    def watched(*args):
        watch("default" if next(tokens) == 7 else "error")
        return sample_token(*args)

    def watch(mode):
        if DEVICE.type == "cuda":
            torch.cuda.set_sync_debug_mode(mode)

    monkeypatch.setattr(rollout, "sample_token", watched)
    step = replayed(model, cache) if DEVICE.type == "cuda" else lambda ids: model.hidden(ids, cache)
    try:
        uniform = torch.rand(9, 8, dtype=torch.float64, device=DEVICE)
        sample_turn(model, cache, step, hidden, -1, 1.0, uniform)
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
@pytest.mark.parametrize("lora", [0, 3])
def test_an_update_in_bfloat16_lowers_the_loss(small_gpt, lora):
    """Of adapters or, without them, of all weights by float32 copies. In the middle it goes on from a state
    that was on the CPU, as a file is.
    """
    model = small_gpt().to(DEVICE, torch.bfloat16)
    reference = without_lora(add_lora(model, lora)) if lora else copy.deepcopy(model).requires_grad_(False)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    masters = master_weights(model, {})
    optimizer, losses = make_optimizer(model, masters, None), []
    for step in range(6):
        if step == 3:
            file = io.BytesIO()
            torch.save(optimizer.state_dict(), file)
            optimizer = make_optimizer(model, masters, torch.load(io.BytesIO(file.getvalue()), CPU))
        optimizer.param_groups[0]["lr"] = 0.01
        loss, _ = policy_loss(model, reference, batch_of(DEVICE), (0.1, 0.1), 1.0, 6)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    changed = {name for name, p in model.named_parameters() if not torch.equal(p, before[name])}
    assert changed == {name for name in before if not lora or "lora_" in name}


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
