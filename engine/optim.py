"""AdamW, in float32 whatever the model's precision."""

import torch
from torch import Tensor

from engine.options import require
from engine.sharding import shard_optimizer_state
from model import GPT


def make_optimizer(model: GPT, masters: dict[str, Tensor], saved: dict | None) -> torch.optim.AdamW:
    """AdamW on the `masters` of a model, see `master_weights`. `param_groups[0]` has all of them.

    With `saved`, the state of a stopped run's optimizer, it goes on from there; ValueError if that does not
    fit the weights.
    """
    parameters = dict(model.named_parameters())
    rounded = [(parameters[name], w) for name, w in masters.items() if parameters[name] is not w]
    fused = True if next(iter(masters.values())).is_cuda else None  # None: torch chooses
    settings = dict(lr=0.0, betas=(0.9, 0.95), weight_decay=0.0, fused=fused)
    optimizer = (
        RoundedAdamW(rounded, masters, settings)
        if rounded
        else torch.optim.AdamW(masters.values(), **settings)
    )
    if saved is not None:
        check_state(saved["state"], list(masters.values()))
        state = {**optimizer.state_dict(), "state": saved["state"]}  # our settings, not the file's
        optimizer.load_state_dict(shard_optimizer_state(state, optimizer))
    return optimizer


class RoundedAdamW(torch.optim.AdamW):
    """AdamW whose steps round the masters into the model. `rounded` has pairs (parameter, master)."""

    def __init__(self, rounded: list[tuple[Tensor, Tensor]], masters: dict[str, Tensor], settings: dict):
        super().__init__(masters.values(), **settings)
        self.rounded = rounded

    @torch.no_grad()
    def step(self) -> None:
        super().step()
        for parameter, master in self.rounded:
            parameter.copy_(master)


def check_state(state: dict, weights: list[Tensor]) -> None:
    """ValueError unless the state has the finite moments of each weight, in the weight's shape."""
    moments = {"exp_avg", "exp_avg_sq"}
    require(state.keys() == set(range(len(weights))), f"it has no state of {len(weights)} weights")
    for p, values in zip(weights, (state[i] for i in range(len(weights))), strict=True):
        fine = values.keys() - {"step"} == moments and all(values[name].shape == p.shape for name in moments)
        fine = fine and all(bool(value.isfinite().all()) for value in values.values())
        require(fine, f"its moments of a weight of the shape {list(p.shape)} can't be right")


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
