"""A run's folder: one process at a time, nothing overwritten by mistake, and where a stopped run goes on."""

import contextlib
import dataclasses
import json
import math
import os
import re
import sys
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

from data.reading import checked, reading
from engine.checkpoints import load
from engine.options import require
from engine.processes import rank
from engine.settings import Settings


@contextlib.contextmanager
def open_run(c: Settings, resume: str, stages_of):
    """Opens a run's folder for this process alone: `with open_run(...) as (c, state): ...`.

    A new run gets its folder, and `state` {}. With `resume`, c and state are those of the run in that folder.
    `stages_of(c)` gives the run's stages. Nothing is written here: `begin` does that when all else has been
    checked. ValueError if a run would be overwritten, if another process writes there, or if a file is
    missing or damaged. After Ctrl-C the run says how to go on.
    """
    folder = Path(resume).resolve() if resume else Path(c.out) / c.name
    if resume:
        is_there = (folder / "last.pt").is_file()
        require(is_there, f"no checkpoint {folder}/last.pt: --resume takes the folder of a stopped run")
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


def stopped_run(folder: Path, Config: type, stages_of) -> tuple[Settings, dict]:
    """The config and the state of the run in a folder, which may have been moved or renamed."""
    path = folder / "last.pt"
    state = load(path)
    settings = state["config"] | {"out": str(folder.parent), "name": folder.name}
    missing = {field.name for field in dataclasses.fields(Config)} - settings.keys()
    other = "it is of another version of this project, so train it anew"
    require(not missing, f"{path} has no setting {min(missing, default='')}: {other}")
    c = checked(Config, settings, path)
    stages = stages_of(c)
    with reading(path, "the state of a stopped run"):
        index, step = state["stage"], state["step"]
        require(type(index) is int and 0 <= index <= len(stages), f"it has stage {index} of {len(stages)}")
        steps = stages[index].steps if index < len(stages) else 1
        require(type(step) is int and 0 <= step < steps, f"it has step {step} of {steps}")
        require(isinstance(state["optimizer"], dict) or not step, "it has no optimizer")
        seconds = state["seconds"]
        require(isinstance(seconds, float) and 0 <= seconds < math.inf, f"it has {seconds!r} seconds")
        done = sum(stage.steps for stage in stages[:index]) + step
    log, rows = folder / "metrics.jsonl", []
    if log.exists():
        with reading(log, "the log of a run"):
            rows = log.read_text(encoding="utf-8").splitlines()
            are_objects = all(isinstance(json.loads(row), dict) for row in rows[:done])
            require(are_objects, "it has a row that is no JSON object")
    require(len(rows) >= done, f"{log} has {len(rows)} rows, but last.pt is {done} steps on: restore it")
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
    """What a run and its report have written into the folder, also what a kill has left half written, and
    the pictures of older versions.
    """
    names = "config|results|report|metrics|learning_curves|transitions|kl|change_rate"
    names = rf"({names})\.(jsonl?|md|html|png|tmp)"
    checkpoints = r"(last|base|imitate|stage1[b-e]?|stage2)(-\d+)?\.(pt|tmp)"
    return [path for path in folder.glob("*.*") if re.fullmatch(f"{names}|{checkpoints}", path.name)]


def check_is_free(c: Settings, folder: Path) -> None:
    """ValueError if the folder has files that the run would overwrite, unless it may. ValueError also if the
    run starts from one of them or from the folder.
    """
    files = sorted(path.resolve() for path in files_of_run(folder))
    resume = f'--resume="{folder}" goes on with that run, ' if (folder / "last.pt").exists() else ""
    mend = f"{resume}--name=... takes another folder, --overwrite=true deletes the files of a run"
    names = ", ".join(path.name for path in files[:3])
    require(c.overwrite or not files, f"{folder} has {names} already: {mend}")
    require(Path(c.init) not in [*files, folder.resolve()], f"{c.init} would be deleted: take another --name")


def begin(c: Settings, folder: Path) -> None:
    """Deletes the run that the folder holds, if any, and writes the new run's config.json."""
    for path in files_of_run(folder):
        path.unlink()
    write(folder / "config.json", json.dumps(dataclasses.asdict(c), indent=1) + "\n")


@contextlib.contextmanager
def locked(folder: Path):
    """Makes the folder and keeps other processes out of it. The system opens the lock when a process ends.
    A folder that is still empty then, because the run could not start, is deleted.

    ValueError if another process has the folder. Some file systems have no locks, and Windows has others:
    there nobody is kept out.
    """
    if rank() > 0:
        yield
        return
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "lock"
    with open(path, "a+", encoding="utf-8") as file:
        try:
            if fcntl:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            owner = path.read_text(encoding="utf-8")
            raise ValueError(f"process {owner} writes into {folder}: wait for its end, or stop it") from None
        except OSError:
            pass
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        try:
            yield
        finally:
            if not fcntl:
                file.close()  # Windows deletes no open file
            with contextlib.suppress(OSError):
                path.unlink(missing_ok=True)
                folder.rmdir()  # fails if there is anything in it


def write(path: Path, text: str) -> None:
    """Writes a text file whole or not at all, so that it outlives a power cut."""
    draft = path.with_suffix(".tmp")
    with open(draft, "w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(draft, path)
