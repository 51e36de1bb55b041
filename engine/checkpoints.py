"""Checkpoint files: what is in them, and how they are written and read safely."""

import contextlib
import dataclasses
import os
import pickle
import signal
from pathlib import Path

import torch
from torch import Tensor

from data.reading import checked, reading
from engine.options import require
from engine.processes import gather, rank, ranks
from engine.sharding import unshard_content
from model import GPT, GPTConfig


def checkpoint_of(c, model: GPT, masters: dict[str, Tensor] | None = None) -> dict:
    """A checkpoint's content: the settings, the model's config and its weights.

    `masters` are the float32 copies of weights; they stand in the checkpoint in place of the weights. For
    LoRA and pretrained runs only the trained weights are saved; the rest is reloaded from `init`.
    """
    masters = dict(model.named_parameters()) if masters is None else masters
    if c.lora or (c.init and Path(c.init).is_dir()):
        trained = [name for name, p in model.named_parameters() if name in masters and p.requires_grad]
        weights = {name: masters[name].detach() for name in trained}
    else:
        weights = model.state_dict() | {name: p.detach() for name, p in masters.items()}
    return {"config": dataclasses.asdict(c), "gpt": dataclasses.asdict(model.config), "model": weights}


def save(path: Path, content: dict) -> None:
    """Writes a checkpoint whole or not at all. After a kill or with a full disk the old file stays.

    FloatingPointError, and the old file stays as well, if a weight is not finite.
    """
    draft, content = path.with_suffix(".tmp"), unshard_content(finite(content))
    if rank() == 0:
        with open(draft, "wb") as file, ctrl_c_waits():  # torch may abort if it can't end its file
            torch.save(content, file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(draft, path)
    gather(None)  # no process reads the file before it is there


@contextlib.contextmanager
def ctrl_c_waits():
    """Ctrl-C takes effect after the block. For the main thread."""
    waiting = []
    before = signal.signal(signal.SIGINT, lambda *args: waiting.append(args))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
        if waiting and callable(before):
            before(*waiting[0])


def load(path: str | Path) -> dict:
    """A checkpoint's content, checked: `config` and `gpt` are dicts, `model` has finite float tensors by
    name.

    Only tensors and plain data are unpickled. ValueError, in one line, if the file is no such thing.
    """
    if not Path(path).is_file():
        raise ValueError(f"no checkpoint {path}: give a .pt file that train.py wrote")
    with reading(path, "a checkpoint of train.py"):
        try:
            content = torch.load(path, map_location="cpu", weights_only=True, mmap=ranks() > 1)
        except pickle.UnpicklingError:  # torch's words are about torch
            raise ValueError("give a .pt file that train.py wrote") from None
        for part in ("config", "gpt", "model"):
            if not isinstance(content[part], dict):
                raise ValueError(f"its {part} is no table")
        check_weights(path, content["model"])
    return content


BLOCKS = {"norm": ("rms", "layer"), "position": ("rope", "learned"), "mlp": ("swiglu", "gelu")}


def gpt_config(values: dict, path: str | Path) -> GPTConfig:
    """The model's config out of a file. ValueError names the file and what can't be right in it."""
    config = checked(GPTConfig, values, path, BLOCKS)
    require(config.n_layer <= 1000, f"{path}: n_layer={config.n_layer} can't be right: it is 1000 or less")
    if config.rope_llama3 is not None:
        with reading(path, "a file with rope_llama3 that can work"):
            factor, low, high, length = config.rope_llama3
            require(min(factor, low, length) > 0 and high > low, f"{config.rope_llama3} is out of order")
    return config


def check_weights(path: str | Path, weights: dict[str, Tensor]) -> None:
    """ValueError names the first weight that is not a dense tensor of finite floats."""
    for name, weight in weights.items():
        fine = isinstance(name, str) and isinstance(weight, Tensor) and weight.layout == torch.strided
        if not (fine and weight.is_floating_point() and bool(weight.isfinite().all())):
            raise ValueError(f"{path}: the weight {name} is not a tensor of finite numbers")


def finite(content: dict) -> dict:
    """The same content. FloatingPointError if one of its weights is not finite: such a file must not be
    written.
    """
    for name, weight in content["model"].items():
        if not bool(torch.isfinite(getattr(weight, "_local_tensor", weight)).all()):
            raise FloatingPointError(
                f"the weight {name} is no longer finite: start anew with a lower learning rate"
            )
    return content
