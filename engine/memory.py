"""What saves memory: chunks of logits and micro-batches, and models without numbers.

Chunks and micro-batches do not change the gradient.
"""

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils.checkpoint import checkpoint

from model import GPT, GPTConfig

LOGITS_AT_ONCE = 2**24  # numbers in a chunk of logits: 64 MiB in float32. A toy batch is one chunk


def in_chunks(score, vocab_size: int, *tensors: Tensor) -> tuple[Tensor, ...]:
    """The same as `score(*tensors)`, a tuple of tensors [N], computed for a few of the N rows at a time.

    Each chunk has so few rows that its logits [n, V] have at most LOGITS_AT_ONCE numbers. With several chunks
    the logits are not kept for the backward pass but computed again there.
    """
    size = max(1, LOGITS_AT_ONCE // vocab_size)
    if len(tensors[0]) <= size:
        return score(*tensors)
    chunks = zip(*(t.split(size) for t in tensors), strict=True)
    parts = [checkpoint(score, *chunk, use_reentrant=False) for chunk in chunks]
    return tuple(map(torch.cat, zip(*parts, strict=True)))


def micro_batches(batch: dict[str, Tensor], size: int) -> list[dict[str, Tensor]]:
    """The batch in micro-batches of `size` rows of similar length, each as wide as its longest row needs.

    Size 0 means 32 rows on a CPU, whose cache they fit, and elsewhere the whole batch, which is 1.4 times as
    fast there as 32 (the toy on an H200). `batch` has `ids` [B, T], `masks` [B, K, T] and maybe more tensors
    [B, ...].
    """
    is_sampled = batch["masks"].any(1)  # [B, T]
    positions = torch.arange(1, is_sampled.shape[1] + 1, device=is_sampled.device)
    lengths = (is_sampled * positions).amax(1)  # [B] up to the last sampled token
    micros, size = [], size or (32 if lengths.device.type == "cpu" else max(1, len(lengths)))
    for rows in lengths.argsort(stable=True).split(size):
        width = int(lengths[rows].max())
        part = {name: t[rows] for name, t in batch.items()}
        micros.append(part | {"ids": part["ids"][:, :width], "masks": part["masks"][:, :, :width]})
    return micros


def empty_gpt(config: GPTConfig) -> GPT:
    """A GPT on the device "meta". Its weights have names and shapes, but no numbers and no memory."""
    with torch.device("meta"), WithoutNormal():
        return GPT(config)


class WithoutNormal(TorchFunctionMode):
    """Leaves out `nn.init.normal_`: a tensor on "meta" has nothing to fill, but torch would load 800 modules.

    That takes two seconds, at the start of every script that reads a checkpoint.
    """

    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        return kwargs["tensor"] if function is nn.init.normal_ else function(*args, **kwargs)
