"""Matrix products by oneDNN on CPUs: the same numbers as F.linear."""

from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

INTEL = Path("/proc/cpuinfo").exists() and "GenuineIntel" in Path("/proc/cpuinfo").read_text()
ONEDNN = (  # False on Apple's and ARM processors, and if another torch has no such private operation
    torch.backends.mkldnn.is_available()
    and torch.backends.mkl.is_available()
    and all(hasattr(torch.ops.mkldnn, name) for name in ("_linear_pointwise", "_reorder_linear_weight"))
)


def product(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x [..., I] times weight [O, I], transposed, plus bias [O]: what F.linear does, without its gradient."""
    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")


class OneDNNLinear(torch.autograd.Function):
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
    """F.linear, by oneDNN where that is faster: float32 on AMD's CPUs. In bfloat16 torch takes oneDNN by
    itself.
    """
    plain = not ONEDNN or INTEL or x.device.type != "cpu" or torch.is_autocast_enabled("cpu") or not x.numel()
    if plain or not x.dtype == weight.dtype == torch.float32:
        return F.linear(x, weight, bias)
    return OneDNNLinear.apply(x, weight, bias)


def packed(weight: Tensor, bias: Tensor | None, rows: int) -> Callable[[Tensor], Tensor]:
    """x -> linear(x, weight, bias) for many x of about `rows` rows, without gradient: the weight is laid out
    once for all.

    With 16 rows that is half as fast again as `product`, whose time goes into reading a weight in the order
    it is stored in. MKL wants small weights by columns, and is then up to twice as fast as oneDNN.
    """
    weight = weight.detach()
    if not (ONEDNN and weight.device.type == "cpu" and weight.dtype in (torch.float32, torch.bfloat16)):
        return lambda x: F.linear(x, weight, bias)
    if INTEL and weight.dtype == torch.float32 and weight.numel() < 2**20:
        by_columns = weight.T.contiguous().T
        return lambda x: F.linear(x, by_columns, bias)
    laid_out = torch.ops.mkldnn._reorder_linear_weight(weight, rows)
    return lambda x: product(x, laid_out, bias)


class Linear(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return linear(x, self.weight, self.bias)
