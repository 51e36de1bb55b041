"""What there is to try on a machine with a GPU: writes results/gpu.md.

    python experiments/gpu.py                all of it; at most 25 minutes
    python experiments/gpu.py --minutes=9    as much as 9 minutes allow; the next call goes on
    python experiments/gpu.py --rehearse     all of it at toy size on the CPU, into out/gpu-rehearsal/

Each part is a command of `commands`. What it prints is kept in out/gpu/: in NAME.done if it succeeded, and it
is not run again until you delete that file; else in NAME.log, and the next call tries it again. Nothing is
downloaded. It needs the extras: pip install -e '.[dev]'
"""

import argparse
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # so that it runs without being installed

from engine.cli import run_script
from engine.options import require
from experiments.bench import RESULTS, machine_name

ROOT = Path(__file__).resolve().parent.parent


def commands(folder: Path, device: str, small: bool) -> dict[str, list]:
    """The parts by name. A default run that was stopped goes on."""
    short = ["--preset=smoke"] if small else ["--base_steps=200", "--stage1_steps=60", "--stage2_steps=30"]
    run = [*short, f"--out={folder}", "--name=run", f"--device={device}"]
    if (folder / "run" / "last.pt").exists():
        run = [f"--resume={folder / 'run'}"]
    return {
        "tests": ["-m", "pytest", "tests/test_gpu.py", "-rs", "-m", "not slow"],
        "bench": ["experiments/bench.py", f"--device={device}", *(["--quick"] if small else [])],
        "run": ["train.py", *run],
    }


def run_limited(command: list, log: Path, minutes: float) -> bool:
    """Runs a command into a log file and tells whether it succeeded. After `minutes`, or Ctrl-C, it is killed
    with all its children.
    """
    with open(log, "w", encoding="utf-8") as file:
        to_file = dict(stdout=file, stderr=subprocess.STDOUT)
        process = subprocess.Popen(command, cwd=ROOT, start_new_session=True, **to_file)
        try:
            process.wait(60 * minutes)
        except subprocess.TimeoutExpired:
            file.write(f"\nstopped after {minutes:.1f} minutes\n")
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    return process.returncode == 0


def report(folder: Path, names: list[str], machine: str) -> str:
    """gpu.md: the end of what each part has printed."""
    sections = [f"# On a GPU\n\nMade by `make gpu` on {machine}."]
    for name in names:
        done, log = folder / f"{name}.done", folder / f"{name}.log"
        state = "done" if done.exists() else "failed or stopped" if log.exists() else "not begun"
        sections.append(f"## {name}: {state}")
        if state != "not begun":
            text = (done if done.exists() else log).read_text(encoding="utf-8", errors="replace")
            sections.append("\n".join(["~~~~", *text.splitlines()[-60:], "~~~~"]))
    return "\n\n".join(sections) + "\n"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--minutes", type=float, default=25.0, help="stop after so many")
    parser.add_argument("--rehearse", action="store_true", help="at toy size on the CPU")
    args = parser.parse_args()
    there = args.rehearse or torch.cuda.is_available()
    require(there, "no CUDA device here: --rehearse tries the script on the CPU")
    device, end = "cpu" if args.rehearse else "cuda", time.time() + 60 * args.minutes
    folder = ROOT / "out" / ("gpu-rehearsal" if args.rehearse else "gpu")
    folder.mkdir(parents=True, exist_ok=True)
    page = (folder if args.rehearse else RESULTS) / "gpu.md"
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("stopped"))  # so that the part is killed, too
    os.environ |= {"TEST_DEVICE": device, "HF_HUB_OFFLINE": "1"}
    parts, machine = commands(folder, device, args.rehearse), machine_name(torch.device(device))
    for name, words in parts.items():
        log, left = folder / f"{name}.log", (end - time.time()) / 60
        if not log.with_suffix(".done").exists() and left > 0:
            print(f"{name}: at most {left:.0f} minutes; it writes into {log}", flush=True)
            if run_limited([sys.executable, *words], log, left):
                log.rename(log.with_suffix(".done"))
        page.write_text(report(folder, list(parts), machine), encoding="utf-8")
    print(f"{page} has the results")
    return 0 if all((folder / f"{name}.done").exists() for name in parts) else 1


if __name__ == "__main__":
    run_script(main)
