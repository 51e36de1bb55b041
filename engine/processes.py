"""Several processes, as torchrun starts them. Each is a "rank". With one process nothing here does anything.

Each rank has a model of its own, or with `shard` its part of one (engine/sharding.py). It samples and scores
an equal share of the batch's problems; baselines compare the rows of one rank. Then gradients and metrics are
averaged over the ranks.
"""

import os
import signal
import sys

import torch
import torch.distributed as dist
from torch import Tensor


def rank() -> int:
    return dist.get_rank() if dist.is_initialized() else 0


def ranks() -> int:
    return dist.get_world_size() if dist.is_initialized() else 1


def start_ranks() -> None:
    """Joins the processes that torchrun started, if it did. Each takes a GPU of its own where there are any.

    Rank 0 prints; the others print nothing.
    """
    if not dist.is_torchelastic_launched():
        return
    if int(os.environ["LOCAL_RANK"]) < torch.cuda.device_count():
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    dist.init_process_group()  # NCCL between GPUs, gloo between CPUs
    stop = f"rank {rank()} stops: torchrun ends all processes when one has ended; go on with --resume"
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(stop))
    if rank() > 0:
        sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115 (open to the end)


def leave(code: int) -> None:
    """Ends this process at once if there are several. In an orderly end gloo's threads abort now and then."""
    if dist.is_initialized():
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def lost_a_rank(error: RuntimeError) -> bool:
    """Whether NCCL, gloo or torchrun's store report with this error that another process has ended."""
    return isinstance(error, dist.DistError) or "gloo" in str(error)


def my_rows(n: int) -> range:
    """This rank's share of n rows, n // ranks() of them."""
    if not dist.is_initialized():
        return range(n)
    share = n // ranks()
    return range(share * rank(), share * (rank() + 1))


def gather(value) -> list:
    """Every rank's value, in the order of the ranks. Values are small Python objects. Waits for all ranks."""
    values = [value] * ranks()
    if ranks() > 1:
        dist.all_gather_object(values, value)
    return values


def average(values: dict[str, float]) -> dict[str, float]:
    """The mean over all ranks of each value."""
    if not dist.is_initialized():
        return values
    parts = gather(values)
    return {name: sum(part[name] for part in parts) / len(parts) for name in values}


def is_sharded(value) -> bool:
    return hasattr(value, "full_tensor")


def average_gradients(weights: list[Tensor]) -> None:
    """Averages the ranks' gradients in place: all ranks get the same bits, so their weights stay equal.

    The gradients of a sharded model are averaged already. We don't use DDP: it hooks `forward`, while we call
    `hidden` and `head`, and it reduces in the precision of the weights, while these gradients are float32.
    """
    if dist.is_initialized():
        for weight in (w for w in weights if not is_sharded(w)):
            dist.all_reduce(weight.grad)
            weight.grad /= ranks()
