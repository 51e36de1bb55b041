"""The optimizers: Muon or AdamW, in float32 whatever the model's precision."""

import torch
from torch import Tensor

from engine.options import require
from engine.processes import sum_gradients
from engine.sharding import shard_optimizer_state
from model import GPT

MOMENTUM = 0.95  # of Muon, with Nesterov's look ahead


class Learner:
    """The weights that learn, by name, and the optimizers of the current stage."""

    def __init__(self, model: GPT, masters: dict[str, Tensor]):
        self.model, self.masters, self.optimizers = model, masters, []

    def start_stage(self, c, saved: list[dict] | None) -> None:
        """Fresh optimizers, or with `saved` a stopped run's. ValueError if they don't fit the weights."""
        self.optimizers = make_optimizers(c, self.masters)
        for optimizer, state in zip(self.optimizers, saved or (), strict=saved is not None):
            check_optimizer_state(state["state"], optimizer)
            state = {**optimizer.state_dict(), "state": state["state"]}  # our settings, not the file's
            optimizer.load_state_dict(shard_optimizer_state(state, optimizer))

    def gradient_norm(self, max_norm: float) -> float:
        """Adds up the gradients of all processes and clips them; returns their norm before clipping."""
        sum_gradients(list(self.masters.values()))
        return torch.nn.utils.clip_grad_norm_(self.masters.values(), max_norm).item()

    def step(self, lr: float) -> None:
        """One update of the weights from their gradients, which are then cleared."""
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = lr * group["share"]
            optimizer.step()
            optimizer.zero_grad()
        copy_masters(self.model, self.masters)


def check_optimizer_state(state: dict, optimizer: torch.optim.Optimizer) -> None:
    """ValueError unless the state has the finite moments of each weight, in the weight's shape."""
    weights = [p for group in optimizer.param_groups for p in group["params"]]
    moments = {"momentum"} if isinstance(optimizer, Muon) else {"exp_avg", "exp_avg_sq"}
    require(state.keys() == set(range(len(weights))), f"it has no state of {len(weights)} weights")
    for p, values in zip(weights, (state[i] for i in range(len(weights))), strict=True):
        fine = values.keys() - {"step"} == moments and all(values[name].shape == p.shape for name in moments)
        fine = fine and all(bool(value.isfinite().all()) for value in values.values())
        require(fine, f"its moments of a weight of the shape {list(p.shape)} can't be right")


def make_optimizers(c, masters: dict[str, Tensor]) -> list[torch.optim.Optimizer]:
    """Muon for the matrices of the blocks and AdamW for all else, or AdamW alone.

    Each parameter group has a `share`: the part of the learning rate at which it learns.
    """
    muon, rest, optimizers = [], [], []
    for name, p in masters.items():
        (muon if c.optimizer == "muon" and name.startswith("blocks.") and p.ndim == 2 else rest).append(p)
    if rest:
        fused = True if rest[0].is_cuda else None  # None: torch chooses
        optimizers.append(torch.optim.AdamW(rest, lr=0.0, betas=(0.9, 0.95), weight_decay=0.0, fused=fused))
        optimizers[-1].param_groups[0]["share"] = c.adam_share if muon else 1.0
    if muon:
        optimizers.append(Muon(muon, dict(lr=0.0)))
        optimizers[-1].param_groups[0]["share"] = 1.0
    return optimizers


class Muon(torch.optim.Optimizer):
    """Muon (Keller Jordan et al., kellerjordan.github.io/posts/muon): a step that is equally long in all
    directions.

    torch.optim.Muon computes in bfloat16. A CPU without units for it needs ten times as long for that, more
    than for all the rest of a toy's update, so on a CPU this one computes in float32.
    """

    @torch.no_grad()
    def step(self) -> None:
        for group in self.param_groups:
            for p in (p for p in group["params"] if p.grad is not None):
                momentum = self.state[p].setdefault("momentum", torch.zeros_like(p))
                momentum.lerp_(p.grad, 1 - MOMENTUM)
                direction = orthogonal(p.grad.lerp(momentum, MOMENTUM))
                p.add_(direction, alpha=-group["lr"] * max(1.0, p.shape[0] / p.shape[1]) ** 0.5)


def orthogonal(matrix: Tensor) -> Tensor:
    """About U V^T, where U S V^T is the singular value decomposition of `matrix` [R, C].

    Five steps of the Newton-Schulz iteration x <- a x + (b x x^T + c (x x^T)^2) x. It moves each singular
    value towards 1 and stays within 0.7 to 1.2, which is near enough.
    """
    a, b, c = 3.4445, -4.7750, 2.0315
    x = matrix if matrix.device.type == "cpu" else matrix.bfloat16()
    tall = x.shape[0] > x.shape[1]
    x = x.T if tall else x  # [r, c] with r <= c, so that x x^T is the smaller of the two products
    x = x / x.norm().clamp(min=1e-7)
    for _ in range(5):
        gram = x @ x.T  # [r, r]
        x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return (x.T if tall else x).to(matrix.dtype)


def master_weights(model: GPT, saved: dict[str, Tensor]) -> dict[str, Tensor]:
    """The weights that learn, by name: the model's own or, for those of a lower precision, float32 copies.

    In bfloat16 an update with a learning rate such as 5e-6 is less than half a rounding step of most weights
    and would be lost. The copies also collect the gradients, so that micro-batches add up in float32. `saved`
    has the copies of a stopped run.
    """
    masters = {name: p for name, p in model.named_parameters() if p.requires_grad}
    for name, p in masters.items():
        if p.dtype != torch.float32:
            master = saved.get(name, p.detach()).to(p.device, torch.float32, copy=True).requires_grad_()

            def collect(p, master=master):
                master.grad = p.grad.float() if master.grad is None else master.grad + p.grad
                p.grad = None

            p.register_post_accumulate_grad_hook(collect)
            masters[name] = master
    return masters


@torch.no_grad()
def copy_masters(model: GPT, masters: dict[str, Tensor]) -> None:
    """Rounds the float32 copies back into the model after an update."""
    for name, p in model.named_parameters():
        if name in masters and masters[name] is not p:
            p.copy_(masters[name])
