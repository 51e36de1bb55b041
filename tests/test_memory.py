"""bfloat16 with float32 copies, adapters and recomputed blocks save memory, and learning stays exact."""

import contextlib
from pathlib import Path
from random import Random

import pytest
import torch
from pretrained import SHORT, even_length, logits, train_here

import engine.run
import train
from engine.checkpoints import load, open_run
from engine.hf import load_pretrained
from engine.memory import empty_gpt
from engine.optim import Learner, master_weights
from engine.run import Run
from model import Block
from train import Config, policy_loss, stages

pytestmark = pytest.mark.slow


def test_small_updates_reach_bfloat16_weights_through_their_copies(small_gpt):
    """An update of 1e-5 is less than half a bfloat16 step of a weight near 0.3: alone it would be lost."""
    model = small_gpt().to(torch.bfloat16)
    before = [p.detach().clone() for p in model.parameters()]
    masters = master_weights(model, {})
    learner = Learner(model, masters)
    learner.optimizers = [torch.optim.SGD([{"params": [*masters.values()], "share": 1.0}])]
    for _ in range(300):
        for master in masters.values():
            master.grad = torch.ones_like(master)
        learner.step(1e-5)
    for name, p, old in zip(masters, model.parameters(), before, strict=True):
        expected = old.float() - 3e-3
        assert torch.allclose(masters[name], expected, atol=1e-4)
        assert (p.float() - expected).abs().max() < 2**-8 * old.float().abs().max()  # within rounding
    alone = before[0].clone()
    for _ in range(300):
        alone -= 1e-5
    assert (alone == before[0]).float().mean() > 0.5


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
        c = Config(
            n_layer=1, dim=32, report=False, recompute=recompute, out=str(tmp_path), name=str(recompute)
        )
        with open_run(c, "", stages) as (c, state):
            assert Run(c, state, stages(c)).policy.recompute == recompute


def test_a_model_without_numbers_has_the_same_weights_and_draws_none(small_gpt, monkeypatch):
    """On the device "meta" `normal_` would load modules for two seconds."""
    model = small_gpt(tie_weights=True)
    monkeypatch.setattr(torch.Tensor, "normal_", None)
    empty, real = empty_gpt(model.config).state_dict(), model.state_dict()
    assert {name: p.shape for name, p in empty.items()} == {name: p.shape for name, p in real.items()}
    assert all(p.is_meta for p in empty.values())


MODES = [["--lora=4"], ["--dtype=bfloat16"], ["--dtype=bfloat16", "--lora=4", "--recompute=true"]]


@pytest.mark.parametrize("mode", MODES, ids=" ".join)
def test_a_run_that_was_stopped_twice_equals_the_unbroken_one(mode, qwen, tmp_path, monkeypatch, capsys):
    """Adapters, float32 copies, the optimizer's state: last.pt has all that a step depends on."""
    monkeypatch.setattr(train, "correctness", even_length)
    words = [f"--init={qwen}", *SHORT, *mode, f"--out={tmp_path}"]
    train_here(monkeypatch, *words, "--name=whole")
    log_step, calls = engine.run.log_step, []

    def stop_at(*args):
        log_step(*args)
        calls.append(args)
        if len(calls) in (3, 8):  # after 3 steps, and after 2 + 5 + 1, in Stage II
            raise KeyboardInterrupt

    monkeypatch.setattr(engine.run, "log_step", stop_at)
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
    base, after = (
        train.load_model(tmp_path / "whole" / f"{name}.pt", "cpu")[0] for name in ("base", "stage2")
    )
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
