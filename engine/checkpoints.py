"""A run's files: checkpoints, one process at a time, nothing overwritten, and where a stopped run goes on."""

import contextlib
import dataclasses
import json
import os
import pickle
import re
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
from torch import Tensor

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

from data.reading import checked, reading
from engine.options import require
from engine.processes import gather, rank, ranks
from engine.settings import Settings
from engine.sharding import unshard_content
from model import GPT, GPTConfig

# ---------------------------------------------------------------------------------- checkpoints


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
    """Writes a checkpoint, see `replace`. FloatingPointError, and the old file stays, if a weight is not
    finite.
    """
    for name, weight in content["model"].items():
        if not bool(getattr(weight, "_local_tensor", weight).isfinite().all()):
            raise FloatingPointError(f"the weight {name} is no longer finite: lower the learning rate")
    content = unshard_content(content)
    if rank() == 0:
        replace(path, lambda file: torch.save(content, file))
    gather(None)  # no process reads the file before it is there


def write(path: Path, text: str) -> None:
    replace(path, lambda file: file.write(text.encode()))


def replace(path: Path, fill: Callable) -> None:
    """Writes a file whole or not at all: after a kill, a power cut or with a full disk the old one stays.

    `fill(file)` writes into a binary file. It runs in a thread, which Ctrl-C does not reach, because torch
    aborts if it can't end its file. So Ctrl-C takes effect after it.
    """
    draft = path.with_suffix(".tmp")

    def write_draft():
        with open(draft, "wb") as file:
            fill(file)
            file.flush()
            os.fsync(file.fileno())

    with ThreadPoolExecutor(1) as writer:
        writer.submit(write_draft).result()
    os.replace(draft, path)


def load(path: str | Path) -> dict:
    """A checkpoint's content, checked: `config` and `gpt` are dicts, `model` has finite floats by name.

    Only tensors and plain data are unpickled. ValueError, in one line, if the file is no such thing.
    """
    require(Path(path).is_file(), f"no checkpoint {path}: give a .pt file that train.py wrote")
    with reading(path, "a checkpoint of train.py"):
        try:
            content = torch.load(path, map_location="cpu", weights_only=True, mmap=ranks() > 1)
        except pickle.UnpicklingError:  # torch's words are about torch
            raise ValueError("give a .pt file that train.py wrote") from None
        for part in ("config", "gpt", "model"):
            require(isinstance(content[part], dict), f"its {part} is no table")
        for name, weight in content["model"].items():
            fine = weight.layout == torch.strided and weight.is_floating_point()
            require(fine and bool(weight.isfinite().all()), f"its weight {name} has other values than floats")
    return content


def gpt_config(values: dict, path: str | Path) -> GPTConfig:
    """The model's config out of a file. ValueError names the file and what can't be right in it."""
    choices = {"norm": ("rms", "layer"), "position": ("rope", "learned"), "mlp": ("swiglu", "gelu")}
    return checked(GPTConfig, values, path, choices)


# ---------------------------------------------------------------------------------- the folder of a run


@contextlib.contextmanager
def open_run(c: Settings, resume: str, stages_of):
    """Opens a run's folder for this process alone: `with open_run(...) as (c, state): ...`.

    A new run gets `state` {}. With `resume`, the folder of a stopped run, c and state are that run's.
    `stages_of(c)` gives the run's stages. Nothing is written here: `begin` does that when all else has been
    checked. ValueError if a run would be overwritten, if another process writes there, or if a file is
    missing or damaged. After Ctrl-C the run says how to go on.
    """
    folder = Path(resume).resolve() if resume else Path(c.out) / c.name
    if resume:
        last = folder / "last.pt"
        require(last.is_file(), f"no checkpoint {last}: --resume takes the folder of a stopped run")
    else:
        c, state = with_absolute_paths(c), {}  # before the folder is made: --init may name it by mistake
    with locked(folder):
        if resume:
            c, state = stopped_run(folder, type(c), stages_of)
        elif rank() == 0:
            check_is_free(c, folder)
        try:
            yield c, state
        except KeyboardInterrupt:
            if not (folder / "last.pt").exists():
                raise
            sys.exit(f'stopped; go on with: python train.py --resume="{folder}"')


@contextlib.contextmanager
def locked(folder: Path):
    """Makes the folder and keeps other processes out of it to the end of the block, or of this process.

    ValueError if another process has it. On Windows and on file systems without locks nobody is kept out. A
    folder that is empty at the end, because the run could not start, is deleted.
    """
    if rank() > 0:
        yield
        return
    folder.mkdir(parents=True, exist_ok=True)
    handle = os.open(folder, os.O_RDONLY) if fcntl else None
    try:
        if fcntl:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise ValueError(f"another process writes into {folder}: wait for its end, or stop it") from None
    except OSError:
        pass
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            folder.rmdir()  # fails if there is anything in it
        if fcntl:
            os.close(handle)


def stopped_run(folder: Path, Config: type, stages_of) -> tuple[Settings, dict]:
    """The config and the state of the run in a folder, which may have been moved or renamed. The state's
    `rows` are those of the log up to last.pt.
    """
    path, log, record = (folder / name for name in ("last.pt", "metrics.jsonl", "config.json"))
    state, here = load(path), {"out": str(folder.parent), "name": folder.name}
    c = checked(Config, state["config"] | here, path)
    with reading(record, "the settings of a stopped run"):
        recorded, settings = json.loads(record.read_text(encoding="utf-8")) | here, dataclasses.asdict(c)
    for name in recorded | settings:
        values = f"{record} says {name}={recorded.get(name)!r}, {path} {settings.get(name)!r}"
        same = recorded.get(name) == settings.get(name)
        require(same, f"{values}: a run goes on with the settings it began with, so put them back")
    with reading(path, "the state of a stopped run"):
        stages, index, step = stages_of(c), state["stage"], state["step"]
        require(0 <= index <= len(stages) and state["seconds"] >= 0, f"it has stage {index} of {len(stages)}")
        done = sum(stage.steps for stage in stages[:index]) + step
    with reading(log, "the log of a stopped run"):
        rows = log.read_text(encoding="utf-8").splitlines()
        require(len(rows) >= done, f"{log} has {len(rows)} rows, but last.pt is {done} steps on: restore it")
    return c, state | {"rows": rows[:done]}


def with_absolute_paths(c: Settings) -> Settings:
    """The config with paths that hold in any working folder. ValueError if `init` is missing."""
    mend = f"no {c.init}: --init takes a .pt file or a Hugging Face folder"
    require(not c.init or Path(c.init).exists(), mend)
    names = ("init", "imitate", "train_data", "test_data", "tokenizer")
    paths = {name: Path(getattr(c, name)) for name in names if getattr(c, name)}
    found = {name: str(path.resolve()) for name, path in paths.items() if path.exists()}  # "gpt2" is no path
    return dataclasses.replace(c, **found)


def files_of_run(folder: Path) -> list[Path]:
    """What a run and its report have written into the folder, also what a kill has left half written."""
    names = r"(config|results|report|metrics)\.(jsonl?|md|html|tmp)"
    checkpoints = r"(last|base|imitate|stage1[b-e]?|stage2)(-\d+)?\.(pt|tmp)"
    return [path for path in folder.glob("*.*") if re.fullmatch(f"{names}|{checkpoints}", path.name)]


def check_is_free(c: Settings, folder: Path) -> None:
    """ValueError if the folder has files that the run would overwrite, unless it may, or if the run starts
    from what is in the folder.
    """
    files = sorted(path.name for path in files_of_run(folder))
    resume = f'--resume="{folder}" goes on with that run, ' if "last.pt" in files else ""
    mend = f"{resume}--name=... takes another folder, --overwrite=true deletes the files of a run"
    require(c.overwrite or not files, f"{folder} has {', '.join(files[:3])} already: {mend}")
    kept = folder.resolve() not in (Path(c.init), Path(c.init).parent)
    require(kept, f"{c.init} would be deleted: take another --name")


def begin(c: Settings, folder: Path) -> None:
    """Deletes the run that the folder holds, if any, and writes the new run's config.json."""
    for path in files_of_run(folder):
        path.unlink()
    write(folder / "config.json", json.dumps(dataclasses.asdict(c), indent=1) + "\n")
