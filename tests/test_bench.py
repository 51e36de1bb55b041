"""The step that bench.py compares ours with is the same step: its loss has the same gradient."""

import pytest
import torch

from engine.memory import micro_batches
from train import advantages, policy_loss

pytest.importorskip("transformers")
pytest.importorskip("safetensors")


def test_the_plain_step_computes_the_same_gradient(small_gpt):
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
    theirs = plain_step.advantages(rewards, correct)
    ours = advantages(rewards, correct, torch.arange(4), "by_outcome")
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


def test_optimizers_learn_the_same_kinds_of_weights(small_gpt):
    from experiments import bench, plain_step

    twin = bench.in_transformers(small_gpt())
    adamw, muon = plain_step.torchs_optimizers(twin, "muon")
    learned = [p for optimizer in (adamw, muon) for group in optimizer.param_groups for p in group["params"]]
    assert len(learned) == len({id(p) for p in learned}) == len(list(twin.parameters()))
    assert all(p.ndim == 2 for p in muon.param_groups[0]["params"])
    assert len(plain_step.torchs_optimizers(twin, "adamw")) == 1
