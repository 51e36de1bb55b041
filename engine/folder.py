"""A run's folder: one process at a time, nothing overwritten by mistake, and where a stopped run goes on."""

import contextlib
import dataclasses
import json
import os
import sys
from pathlib import Path

from data.reading import reading
from engine.checkpoints import load
from engine.options import require
from engine.processes import rank
from engine.settings import Settings, config_from


@contextlib.contextmanager
def open_run(c: Settings, resume: str, stages_of):
    """Opens a run's folder for this process alone: `with open_run(...) as (c, state): ...`.

    A new run gets its folder, and `state` {}. With `resume`, c and state are those of the run in that folder.
    `stages_of(c)` gives the run's stages. ValueError, and nothing is changed, if a run would be overwritten,
    if another process writes there, or if a file is missing or damaged. After Ctrl-C the run says how to go
    on.
    """
    folder = Path(resume).resolve() if resume else Path(c.out) / c.name
    if resume:
        c, state = stopped_run(folder, type(c), stages_of)
    else:
        c, state = with_absolute_paths(c), {}
        check_is_free(folder, c.overwrite)
    folder.mkdir(parents=True, exist_ok=True)
    with locked(folder):
        if not resume and rank() == 0:
            for path in files_of_run(folder):
                path.unlink()
            write(folder / "config.json", json.dumps(dataclasses.asdict(c), indent=1) + "\n")
        try:
            yield c, state
        except KeyboardInterrupt:
            sys.exit(f"stopped; go on with: python train.py --resume={folder}")


def stopped_run(folder: Path, Config: type, stages_of) -> tuple[Settings, dict]:
    """The config and the state of the run in a folder, which may have been moved or renamed."""
    path = folder / "last.pt"
    state = load(path)
    c = config_from(Config, state["config"] | {"out": str(folder.parent), "name": folder.name}, path)
    stages = stages_of(c)
    with reading(path, "the state of a stopped run"):
        index, step, optimizers = state["stage"], state["step"], state["optimizers"]
        require(type(index) is int and 0 <= index <= len(stages), f"it has stage {index} of {len(stages)}")
        steps = stages[index].steps if index < len(stages) else 1
        require(type(step) is int and 0 <= step < steps, f"it has step {step} of {steps}")
        require(isinstance(optimizers, list), "its optimizers are no list")
        require(isinstance(state["seconds"], float), "its seconds are no number")
        done = sum(stage.steps for stage in stages[:index]) + step
    rows = (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    require(len(rows) >= done, f"{folder}/metrics.jsonl has {len(rows)} rows, but last.pt is {done} steps on")
    return c, state | {"rows": rows[:done]}


def with_absolute_paths(c: Settings) -> Settings:
    """The config with paths that hold in any working folder. ValueError if a file is missing."""
    names = [name for name in ("init", "imitate", "train_data", "test_data", "tokenizer") if getattr(c, name)]
    files = {name: Path(getattr(c, name)) for name in names}
    if c.init and not files["init"].exists():
        raise ValueError(f"no {c.init}: --init takes a .pt file or a Hugging Face folder (engine/README.md)")
    if c.tokenizer and not files["tokenizer"].is_dir():
        del files["tokenizer"]  # it is the name of one of tiktoken's
    return dataclasses.replace(c, **{name: str(path.resolve()) for name, path in files.items()})


def files_of_run(folder: Path) -> list[Path]:
    """What a run has written into its folder."""
    names = ("config.json", "metrics.jsonl", "results.json", "report.md")
    return [
        path
        for path in (*folder.glob("*.pt"), *folder.glob("*.png"), *map(folder.joinpath, names))
        if path.exists()
    ]


def check_is_free(folder: Path, overwrite: bool) -> None:
    """ValueError if the folder holds a run that may not be overwritten."""
    if not overwrite and any(path.suffix in (".pt", ".jsonl") for path in files_of_run(folder)):
        raise ValueError(
            f"{folder} holds a run: --resume={folder} goes on with it, --name=... starts another beside it, "
            "--overwrite=true deletes it"
        )


@contextlib.contextmanager
def locked(folder: Path):
    """Keeps other processes out of the folder by a file with our process's number. A dead process's is taken
    over.
    """
    path = folder / "lock"
    if rank() == 0:
        with contextlib.suppress(FileNotFoundError, ValueError):
            if not is_alive(owner := int(path.read_text(encoding="utf-8"))):
                path.unlink()
        try:
            with open(path, "x", encoding="utf-8") as file:
                file.write(str(os.getpid()))
        except FileExistsError:
            raise ValueError(
                f"process {owner} writes into {folder}: wait or stop it; if it is no run, delete {path}"
            ) from None
    try:
        yield
    finally:
        if rank() == 0:
            path.unlink(missing_ok=True)


def is_alive(process: int) -> bool:
    """Whether a process of this number exists."""
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):
        return True
    return True


def write(path: Path, text: str) -> None:
    """Writes a text file whole or not at all."""
    draft = path.with_suffix(".tmp")
    draft.write_text(text, encoding="utf-8")
    os.replace(draft, path)
