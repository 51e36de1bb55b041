"""Files of pretrained checkpoints: JSON, and tensors one at a time."""

import functools
import json
import re
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor


def tensors_in(folder: Path) -> tuple[dict[str, Path], Callable[[str], Tensor]]:
    """Which file has which tensor, and a function that reads one tensor by its name. ValueError if files are missing."""
    for stem in ("model.safetensors", "pytorch_model.bin"):
        whole, index = folder / stem, folder / f"{stem}.index.json"
        if whole.is_file() or index.is_file():
            break
    else:
        raise ValueError(f"{folder} has neither model.safetensors nor pytorch_model.bin, whole or sharded with an index")
    safe = stem.endswith(".safetensors")
    if safe:
        try:
            from safetensors import SafetensorError, safe_open
        except ImportError:
            raise ValueError("reading .safetensors needs: pip install -e .[pretrained]") from None
    shards = [whole] if whole.is_file() else sorted({folder / Path(f).name for f in read_json(index)["weight_map"].values()})
    open_bin = functools.lru_cache(maxsize=1)(load_bin)
    names = {}  # as the tables above have them -> (file, name in it)
    for shard in shards:
        if not shard.is_file():
            raise ValueError(f"{folder}: the index names {shard.name}, which is missing")
        if safe:
            try:
                with safe_open(shard, "pt") as file:
                    keys = list(file.keys())
            except SafetensorError as error:
                raise ValueError(f"{shard} is damaged: {error}") from None
        else:
            keys = list(open_bin(shard))
        for key in keys:  # the first GPT-2 files lack a prefix
            names[f"transformer.{key}" if re.match(r"(wte|wpe|h\.\d+|ln_f)\.", key) else key] = (shard, key)

    def read(name: str) -> Tensor:
        shard, key = names[name]
        if not safe:
            return open_bin(shard)[key]
        with safe_open(shard, "pt") as file:  # opened anew each time: an open map would keep every page it has shown
            return file.get_tensor(key)

    return {name: shard for name, (shard, _) in names.items()}, read


def load_bin(path: Path) -> dict[str, Tensor]:
    """The tensors of a pytorch_model.bin. Only tensors are unpickled, never code; ValueError if there is anything else."""
    error = None
    for mmap in (True, False):  # files from before torch 1.6 can't be memory-mapped
        try:
            return torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)
        except Exception as raised:  # torch.load raises many kinds
            error = raised
    raise ValueError(f"{path} can't be read as tensors alone: {str(error).splitlines()[0][:100]}")


def read_json(path: Path) -> dict:
    """A JSON object from a file; ValueError if the file is missing or holds none."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ValueError(f"no file {path}: is {path.parent} the folder of a Hugging Face checkpoint?") from None
    except ValueError:
        content = None
    if not isinstance(content, dict):
        raise ValueError(f"{path} is not a JSON object")
    return content
