"""Matrix products by oneDNN, the other CPU library inside torch: the same numbers as F.linear, up to twice as fast in float32.

torch gives float32 products to MKL, which on AMD processors runs at half of what they can do, and reads the weights row by row
when a batch is small. Nothing here is needed for a right result: without oneDNN, or elsewhere than on a CPU, F.linear does it.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

AVAILABLE = torch.backends.mkldnn.is_available() and torch.backends.mkl.is_available()  # False on Apple's and ARM processors


def product(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x [..., I] times weight [O, I], transposed, plus bias [O]: what F.linear does, without its gradient."""
    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")


class Linear(torch.autograd.Function):
    """`product` with its gradient, three products in all."""

    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        return product(x, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor):
        x, weight = ctx.saved_tensors
        for_x, for_weight, for_bias = ctx.needs_input_grad
        rows = grad.reshape(-1, grad.shape[-1])  # [N, O]
        return (
            product(grad, weight.T) if for_x else None,
            product(rows.T, x.reshape(-1, x.shape[-1]).T) if for_weight else None,  # [O, I]
            rows.sum(0) if for_bias else None,
        )


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """F.linear, by oneDNN where that is faster: float32 on a CPU. In bfloat16 torch takes oneDNN by itself."""
    plain = not AVAILABLE or x.device.type != "cpu" or torch.is_autocast_enabled("cpu") or not x.numel()
    if plain or not x.dtype == weight.dtype == torch.float32:
        return F.linear(x, weight, bias)
    return Linear.apply(x, weight, bias)


def packed(weight: Tensor, bias: Tensor | None, rows: int) -> Callable[[Tensor], Tensor]:
    """x -> linear(x, weight, bias) for many x of about `rows` rows, without gradient: the weight is laid out once for all.

    With 16 rows that is half as fast again as `product`, whose time goes into reading a weight in the order it is stored in.
    """
    if not (AVAILABLE and weight.device.type == "cpu" and weight.dtype in (torch.float32, torch.bfloat16)):
        return lambda x: F.linear(x, weight, bias)
    laid_out = torch.ops.mkldnn._reorder_linear_weight(weight.detach(), rows)
    return lambda x: product(x, laid_out, bias)
