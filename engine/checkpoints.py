"""Checkpoint files: what is in them, and how they are written and read safely."""

import dataclasses
import os
from pathlib import Path

import torch
from torch import Tensor

from engine.processes import gather, rank, ranks
from engine.sharding import unshard_content
from model import GPT


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
    """Writes a checkpoint whole or not at all. After a kill or with a full disk the old file stays."""
    draft, content = path.with_suffix(".tmp"), unshard_content(content)
    if rank() == 0:
        with open(draft, "wb") as file:
            torch.save(content, file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(draft, path)
    gather(None)  # no process reads the file before it is there


def load(path: str | Path) -> dict:
    """A checkpoint's content. Only tensors and plain data are unpickled. ValueError if it is none."""
    if not Path(path).is_file():
        raise ValueError(f"no checkpoint {path}: give a .pt file that train.py wrote")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=ranks() > 1)
        content["config"], content["gpt"], content["model"]
    except Exception as error:  # torch.load raises many kinds on a damaged file
        reason = str(error).splitlines()[0][:100]
        raise ValueError(f"{path} is not a checkpoint of train.py: {reason}") from None
    return content
