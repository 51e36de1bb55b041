"""A model shared out over several processes with FSDP2: each keeps 1/N of every weight."""

import torch
import torch.distributed as dist
from torch import Tensor

from engine.memory import empty_gpt
from engine.processes import is_sharded, ranks
from model import GPT


def shard(model: GPT, device: torch.device, saved: dict[str, Tensor] | None = None) -> None:
    """Shards the model in place. A block's weights are gathered when it runs. With one process: only moves
    it.

    With `saved` (the float32 weights of a stopped run, or {}) the shards are kept in float32 and learn; what
    is gathered has the model's precision. Embedding and head are gathered by `hidden` and stay until the
    backward pass is over. So each process may call `head` as often as it likes, but all must call `hidden`
    equally often.
    """
    if ranks() == 1:
        model.to(device)
        return
    from torch.distributed.fsdp import (
        MixedPrecisionPolicy,
        fully_shard,
        register_fsdp_forward_method,
    )

    model.gathered_dtype = model.embed.weight.dtype
    if saved is not None:
        model.float().load_state_dict(saved, strict=False)
    mesh = dist.init_device_mesh(device.type, (ranks(),))
    for module in (*model.blocks, model):
        fully_shard(module, mesh=mesh, mp_policy=MixedPrecisionPolicy(model.gathered_dtype, torch.float32))
        module.set_force_sum_reduction_for_comms(True)  # gloo can't average: sum, then divide
    register_fsdp_forward_method(model, "hidden")


def unsharded(model: GPT) -> GPT:
    """The model itself or, of a sharded one, a plain copy, gathered once for a whole rollout."""
    if not hasattr(model, "gathered_dtype"):
        return model
    plain = empty_gpt(model.config)
    dtype = model.gathered_dtype
    weights = {name: p.detach().full_tensor().to(dtype) for name, p in model.named_parameters()}
    plain.load_state_dict(weights, strict=False, assign=True)
    if plain.config.tie_weights:
        plain.lm_head.weight = plain.embed.weight
    return plain


def unshard_content(content):
    """A checkpoint's content with its sharded tensors made whole, one after the other, in rank 0's host
    memory.
    """
    if isinstance(content, dict):
        return {key: unshard_content(value) for key, value in content.items()}
    if isinstance(content, list):
        return [unshard_content(value) for value in content]
    if not is_sharded(content):
        return content
    tensor = content.full_tensor()
    return tensor.cpu() if dist.get_rank() == 0 else None


def shard_optimizer_state(saved: dict, optimizer: torch.optim.Optimizer) -> dict:
    """A saved optimizer's state; where the weights are sharded, each process keeps its part of it."""
    weights = [p for group in optimizer.param_groups for p in group["params"]]

    def part(p: Tensor, value: Tensor) -> Tensor:
        if not is_sharded(p) or value.shape != p.shape:  # AdamW's step count, for example, is one number
            return value
        return dist.tensor.distribute_tensor(value, p.device_mesh, p.placements, src_data_rank=None)

    state = {i: {k: part(weights[i], v) for k, v in s.items()} for i, s in saved["state"].items()}
    return saved | {"state": state}
