"""Muon: the direction against the singular value decomposition, the step against torch's."""

import pytest
import torch

from engine.optim import Muon, orthogonal

SHAPES = [(40, 8), (8, 40), (16, 16)]


@pytest.mark.parametrize("shape", SHAPES)
def test_the_direction_has_the_gradients_axes_and_nearly_equal_lengths(shape):
    matrix = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    u, _, vt = torch.linalg.svd(matrix, full_matrices=False)
    on_the_axes = u.T @ orthogonal(matrix) @ vt.T  # diagonal: one length for each pair of axes
    lengths = on_the_axes.diagonal()
    assert lengths.min() > 0.6 and lengths.max() < 1.3
    torch.testing.assert_close(on_the_axes, lengths.diag(), atol=1e-4, rtol=0)


def test_no_gradient_is_no_direction():
    assert not orthogonal(torch.zeros(4, 3)).any()


@pytest.mark.parametrize("shape", SHAPES)
def test_steps_are_those_of_torchs_muon_up_to_its_bfloat16(shape):
    generator = torch.Generator().manual_seed(1)
    start = torch.randn(shape, generator=generator)
    ours, theirs = start.clone().requires_grad_(), start.clone().requires_grad_()
    mine = Muon([ours], dict(lr=0.1))
    reference = torch.optim.Muon([theirs], lr=0.1, momentum=0.95, weight_decay=0.0)
    for _ in range(4):
        ours.grad = torch.randn(shape, generator=generator)
        theirs.grad = ours.grad.clone()
        mine.step()
        reference.step()
    moved = (theirs - start).norm()
    assert (ours - theirs).norm() < 0.03 * moved
