"""The scripts in processes of their own, which are forked from one that has loaded torch already.

So a start takes no seconds. A forked process runs the script from its first line, as `python NAME` does.
"""

import multiprocessing
import os
import runpy
import shutil
import subprocess
import sys
import tempfile
from multiprocessing.process import BaseProcess
from pathlib import Path

ROOT = Path(__file__).parent.parent
LOADED = multiprocessing.get_context("forkserver")
LOADED.set_forkserver_preload(["train", "eval", "torch._dynamo"])  # each optimizer loads torch._dynamo


def start(name: str, *words, cwd: Path = ROOT) -> BaseProcess:
    """Starts train.py or eval.py. `finish` waits for its end; before it has `pid`, `kill()` and so on."""
    command, output = [str(ROOT / name), *map(str, words)], tempfile.mkdtemp()
    process = LOADED.Process(target=work, args=(command, str(cwd), output))
    process.command, process.output = command, Path(output)
    for name in ("stdout", "stderr"):
        (process.output / name).touch()
    process.start()
    return process


def finish(process: BaseProcess, seconds: float = 240) -> subprocess.CompletedProcess:
    """The exit code and the output of a process that has ended within these seconds."""
    process.join(seconds)
    assert process.exitcode is not None, f"{process.command} does not end"
    out, err = ((process.output / name).read_text(encoding="utf-8") for name in ("stdout", "stderr"))
    shutil.rmtree(process.output)
    return subprocess.CompletedProcess(process.command, process.exitcode, out, err)


def script(name: str, *words, cwd: Path = ROOT) -> subprocess.CompletedProcess:
    return finish(start(name, *words, cwd=cwd))


def work(command: list[str], cwd: str, output: str) -> None:
    for number, name in ((1, "stdout"), (2, "stderr")):
        os.dup2(os.open(f"{output}/{name}", os.O_WRONLY), number)
    os.chdir(cwd)
    sys.argv = command
    runpy.run_path(command[0], run_name="__main__")
