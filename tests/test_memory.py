"""bfloat16 with float32 copies, adapters and recomputed blocks save memory, and learning stays exact."""

import contextlib
from pathlib import Path
from random import Random

import pytest
import torch
from pretrained import SHORT, even_length, logits, train_here

import train
from engine.checkpoints import load, open_run
from engine.hf import load_pretrained
from engine.memory import empty_gpt
from engine.optim import RoundedAdamW, make_optimizer, master_weights
from engine.run import Run
from model import Block
from train import Config, policy_loss, stages

pytestmark = pytest.mark.slow


def two_steps(weights, optimizer, rate: float) -> None:
    """One step with a gradient of 2 everywhere, one without a gradient."""
    optimizer.param_groups[0]["lr"] = rate
    for number in (2.0, 0.0):
        for weight in weights:
            weight.grad = torch.full_like(weight, number)
        optimizer.step()
        optimizer.zero_grad()
    assert all(weight.grad is None for weight in weights)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_two_steps_by_hand(small_gpt, dtype):
    """Adam with betas 0.9 and 0.95 and no weight decay, in float32. In bfloat16 a step of 1e-4 is less than
    half a rounding step of most weights: alone it would be lost, so it reaches them through their copies.
    """
    model, rate = small_gpt(tie_weights=True).to(dtype), 1e-4
    before = [p.detach().clone() for p in model.parameters()]
    masters = master_weights(model, {})
    optimizer = make_optimizer(model, masters, None)
    assert isinstance(optimizer, RoundedAdamW) == (dtype == torch.bfloat16)
    assert optimizer.param_groups[0]["params"] == list(masters.values()) and len(masters) == len(before)
    two_steps(masters.values(), optimizer, rate)
    second = (0.9 * 0.1 * 2 / (1 - 0.9**2)) / (0.95 * 0.05 * 4 / (1 - 0.95**2)) ** 0.5
    for master, p, old in zip(masters.values(), model.parameters(), before, strict=True):
        assert torch.allclose(master, old.float() - rate * (1 + second), rtol=0, atol=3e-7)
        assert torch.equal(p, master.to(dtype))
    assert any(not torch.equal(p, old) for p, old in zip(model.parameters(), before, strict=True))
    if dtype == torch.bfloat16:
        assert (before[0] - rate == before[0]).float().mean() > 0.5


def test_the_gradients_of_micro_batches_add_up_in_float32(small_gpt):
    """256 small gradients after a large one: in bfloat16 they would be lost."""
    model = small_gpt().to(torch.bfloat16)
    masters = master_weights(model, {})
    weight, name = model.norm.weight, "norm.weight"
    (weight.sum() * 256).backward()
    for _ in range(256):
        weight.sum().backward()
    assert torch.equal(masters[name].grad, torch.full_like(masters[name], 512.0)) and weight.grad is None


def test_recomputing_blocks_leaves_the_gradient_alone(small_gpt, monkeypatch):
    """Each block runs forward twice, and the gradient is the same."""
    ids, gradients, passes, real = torch.randint(0, 90, (2, 20)), [], [], Block.forward
    monkeypatch.setattr(Block, "forward", lambda *args: passes.append(1) or real(*args))
    for recompute, times in ((False, 1), (True, 2)):
        model = small_gpt()
        model.recompute = recompute
        passes.clear()
        model(ids).logsumexp(-1).sum().backward()
        assert len(passes) == times * model.config.n_layer
        gradients.append([p.grad for p in model.parameters()])
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(*gradients, strict=True))


def test_a_run_recomputes_its_blocks_if_it_is_told_to(tmp_path):
    for recompute in (False, True):
        c = Config(n_layer=1, dim=32, report=False, recompute=recompute, out=str(tmp_path / str(recompute)))
        with open_run(c, "", stages) as (c, state):
            assert Run(c, state, stages(c)).policy.recompute == recompute


def test_a_model_without_numbers_has_the_same_weights_and_draws_none(small_gpt, monkeypatch):
    """On the device "meta" `normal_` would load modules for two seconds."""
    model = small_gpt(tie_weights=True)
    monkeypatch.setattr(torch.Tensor, "normal_", None)
    empty, real = empty_gpt(model.config).state_dict(), model.state_dict()
    assert {name: p.shape for name, p in empty.items()} == {name: p.shape for name, p in real.items()}
    assert all(p.is_meta for p in empty.values())


MODES = [[], ["--lora=4"], ["--dtype=bfloat16"], ["--dtype=bfloat16", "--lora=4", "--recompute=true"]]


@pytest.mark.parametrize("mode", MODES, ids=" ".join)
def test_a_run_that_was_stopped_twice_equals_the_unbroken_one(mode, qwen, tmp_path, monkeypatch, capsys):
    """Adapters, float32 copies, the optimizer's state: last.pt has all that a step depends on."""
    monkeypatch.setattr(train, "correctness", even_length)
    words = [f"--init={qwen}", *SHORT, *mode, f"--out={tmp_path}"]
    train_here(monkeypatch, *words, "--name=whole")
    real, calls = Run.log_and_save, []

    def stop_at(*args):
        real(*args)
        calls.append(args)
        if len(calls) in (3, 8):  # after 3 steps, and after 2 + 5 + 1, in Stage II
            raise KeyboardInterrupt

    monkeypatch.setattr(Run, "log_and_save", stop_at)
    go_on = [f"--resume={tmp_path}/broken"]
    for start in ([*words, "--name=broken"], go_on, go_on):
        with contextlib.suppress(SystemExit):
            train_here(monkeypatch, *start)
    assert len(calls) > 8
    for name in ("stage1", "stage2", "last"):
        whole, broken = (load(tmp_path / run / f"{name}.pt")["model"] for run in ("whole", "broken"))
        assert whole.keys() == broken.keys() and all(torch.equal(whole[k], broken[k]) for k in whole)
        assert all(".lora_" in k for k in whole) == ("--lora=4" in mode)  # what init has is not stored again
    assert not load(tmp_path / "whole" / "base.pt")["model"]
    files = [tmp_path / "whole" / f"{name}.pt" for name in ("base", "stage2")]
    base, after = (train.load_model(file, "cpu")[0] for file in files)
    ids = torch.randint(0, 800, (2, 20))
    start = load_pretrained(qwen, dtype=base.embed.weight.dtype)
    assert torch.equal(logits(base, ids), logits(start, ids))
    assert (logits(after, ids) - logits(base, ids)).abs().max() > 1e-3


def resident() -> int:
    """Bytes of this process that are in memory now."""
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    return int(status.partition("VmRSS:")[2].split()[0]) * 1024


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux's /proc")
def test_memory_stays_flat_while_shapes_change(small_gpt):
    """Libraries that keep something for each new shape of a product once took a gigabyte in a run."""
    sizes = dict(dim=64, head_dim=16, ffn_dim=192)
    model, reference = small_gpt(**sizes), small_gpt(**sizes)
    rng = Random(0)
    for step in range(160):
        rows, width = rng.randint(1, 12), rng.randint(8, 60)
        ids = torch.randint(0, model.config.vocab_size, (rows, width))
        masks = torch.zeros(rows, 2, width, dtype=torch.bool)
        masks[:, 0, 2 : width // 2], masks[:, 1, width // 2 :] = True, True
        batch = {"ids": ids, "masks": masks, "advantages": torch.ones(rows, 2)}
        policy_loss(model, reference, batch, (0.1, 0.1), 1.0, rows)[0].backward()
        if step == 60:
            before = resident()
    assert resident() - before < 30 * 2**20
