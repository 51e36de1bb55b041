"""Everything there is to do on a machine with a GPU: writes results/gpu.md.

    python experiments/gpu.py                all of it; at most 25 minutes
    python experiments/gpu.py --minutes=9    as much as 9 minutes allow; the next call goes on
    python experiments/gpu.py --rehearse     all of it at toy size on the CPU, into out/gpu-rehearsal/

The parts are listed in PARTS. Each is a process of its own, which is killed after 9 minutes. A finished part
leaves its results in out/gpu/, as JSON, and is not made again: delete the file to make it again. A part that
failed is reported with the end of its log, and the next call tries it again. Nothing is downloaded.

It needs the extras: pip install -e '.[dev]'
"""

import argparse
import dataclasses
import gc
import importlib.util
import json
import os
import platform
import signal
import subprocess
import sys
import time
from importlib.metadata import version
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # so that it runs without being installed

from engine.build import pick_device
from engine.checkpoints import write
from engine.cli import run_script
from engine.options import require
from engine.report import markdown, read_log
from experiments import bench, memory
from model import GPTConfig

ROOT = Path(__file__).resolve().parent.parent
LIMIT = 9.0  # minutes of a part
HALF = dict(name="the same, bfloat16", dtype=torch.bfloat16)
TOY = dict(name="toy", config=bench.TOY)
GPT2 = dict(name="GPT-2 124M shape", config=bench.GPT2)
QWEN = dict(name="Qwen 0.5B shape", config=bench.QWEN)


def shrunk(config: GPTConfig) -> GPTConfig:
    """The same kind of model at a toy's size, for the rehearsal."""
    kv_heads = 2 if config.n_kv_head == config.n_head else 1
    sizes = dict(vocab_size=300, n_layer=1, n_head=2, n_kv_head=kv_heads, dim=64, head_dim=32, ffn_dim=96)
    return dataclasses.replace(config, **sizes)


def sized(cases: list[dict], small: bool, **less) -> list[dict]:
    """The cases; for the rehearsal with a small model and what `less` says."""
    return [case | {"config": shrunk(case["config"])} | less if small else case for case in cases]


# ------------------------------------------------------------------- the parts: each returns Markdown


def device_tests(folder: Path, device: torch.device, small: bool) -> str:
    """A test that fails ends the part, and the log tells why."""
    command = [sys.executable, "-m", "pytest", "tests/test_gpu.py", "-v", "-rs", "-m", "not slow"]
    subprocess.run(command, cwd=ROOT, env=os.environ | {"TEST_DEVICE": device.type}, check=True)
    return "No test of `tests/test_gpu.py` failed."


def default_run(folder: Path, device: torch.device, small: bool) -> str:
    """The default run with its report. A run that was stopped goes on."""
    run, words = folder / "default", [f"--out={folder}", "--name=default", f"--device={device.type}"]
    if small:
        few = ["--base_steps=6", "--stage1_steps=3", "--stage2_steps=3", "--eval_n=20"]
        words = ["--preset=smoke", *few, *words]
    if (run / "last.pt").exists():
        words = [f"--resume={run}"]
    subprocess.run([sys.executable, ROOT / "train.py", *words], check=True)
    minutes = read_log(run)[-1]["seconds"] / 60
    table = (run / "report.md").read_text(encoding="utf-8").partition("\nPercent of")[2].split("\n## ")[0]
    return f"Training took {minutes:.1f} minutes.\n\nPercent of{table.rstrip()}"


def limits(device: torch.device, small: bool) -> tuple[dict, str]:
    """The machine's peaks, and a sentence about them."""
    found = bench.limits(2 if small else 20, 256 if small else 8192, device)
    single, half, copy = (found[k] / 1e12 for k in ("torch.float32", "torch.bfloat16", "bytes"))
    return found, f"Peaks: {single:.3g} TFLOP/s in float32, {half:.3g} in bfloat16; a copy {copy:.3g} TB/s."


def sampling(folder: Path, device: torch.device, small: bool) -> str:
    limit, peaks = limits(device, small)
    toy = TOY | dict(prompt=8, new=16, runs=5)
    gpt2, qwen = GPT2 | dict(prompt=16, new=32, runs=3), QWEN | dict(prompt=64, new=32, runs=3)
    cases = [toy | dict(batch=256, early=True), toy | dict(batch=1024, ragged=True), gpt2 | dict(batch=16)]
    cases += [gpt2 | HALF | dict(batch=16), gpt2 | HALF | dict(batch=128, ragged=True), qwen | dict(batch=16)]
    cases += [qwen | HALF | dict(batch=16), qwen | HALF | dict(batch=128, ragged=True)]
    cases = sized(cases, small, batch=4, prompt=6, new=4, runs=1)
    table = bench.sampling_table([bench.bench_sampling(limit, device, **case) for case in cases])
    return f"""Two turns. The limit is the longer of two times: for the FLOPs, and for the bytes that must be
read (weights, keys, values). With few rows it is that of the bytes. {peaks}

{table}"""


def update(folder: Path, device: torch.device, small: bool) -> str:
    limit, peaks = limits(device, small)
    toy = TOY | dict(optimizer="muon", batch=128, length=40, runs=5)
    gpt2, qwen = (case | dict(optimizer="adamw", batch=8, length=256, runs=3) for case in (GPT2, QWEN))
    cases = sized([toy, gpt2, gpt2 | HALF, qwen, qwen | HALF], small, batch=4, length=12, runs=1)
    rows = [bench.bench_update(limit, device, **case) for case in cases]
    head = ["model", "optimizer", "rows x tokens", "tokens/s", "share of peak", "against full log-softmax"]
    return f"Loss, backward pass, step. {peaks}\n\n{markdown(head, rows)}"


def whole_step(folder: Path, device: torch.device, small: bool) -> str:
    toy = TOY | dict(optimizer="muon", batch=128, prompt=8, new=16, runs=5)
    large = dict(optimizer="adamw", batch=32, prompt=32, new=32, runs=3)
    gpt2, qwen = GPT2 | large, QWEN | large
    cases = sized([toy, gpt2, qwen, qwen | HALF], small, batch=4, prompt=6, new=4, runs=1)
    head = ["model", "optimizer", "rows x turns x new", "ours, rows/s", "plain, rows/s", "ratio"]
    rows = [bench.bench_step(device, **case) for case in cases]
    return f"Sample, score, update. Plain is `plain_step.py`, with transformers.\n\n{markdown(head, rows)}"


def memory_of(name: str, device: torch.device, small: bool) -> str:
    """The peak of an update and of sampling in each mode, beside the formula of memory.py."""
    config, (rows, tokens, sampled) = memory.MODELS[name], (4, 1024, 64)
    if small:
        config, (rows, tokens, sampled) = shrunk(config), (2, 24, 4)
    prompts, new, lines = bench.prompts_of(sampled, 8, False, config.vocab_size), tokens // 2 - 8, []
    for mode, how in memory.MODES.items():
        gc.collect()  # the models of the mode before
        formula = memory.estimate(config, *how, rows, tokens, sampled)
        resident = formula["weights"] + formula["learning"] + formula["reference"]
        model, one_update = memory.update_of(config, *how, rows, tokens, device)
        one_update()  # makes the optimizer's state
        lines.append([mode])
        for part, call in (("update", one_update), ("cache", lambda m=model: bench.ours(m, prompts, 2, new))):
            if device.type == "cuda":
                torch.cuda.empty_cache()
                torch.cuda.reset_peak_memory_stats()
            seconds, expected = bench.seconds_of(call, device), resident + formula[part]
            measured = memory.peak(device)
            lines[-1] += [f"{expected / 2**30:.2f}", f"{measured / 2**30:.2f}", f"{measured / expected:.2f}"]
            lines[-1].append(f"{seconds:.2f}")
        print(*lines[-1], flush=True)
        del model, one_update, call
    head = [f"{part}: {x}" for part in ("update", "sampling") for x in ("formula", "measured", "ratio", "s")]
    sizes = f"An update of {rows} x {tokens} tokens; sampling of {sampled} rows with 2 x {new} new tokens."
    if device.type == "cpu":
        sizes += " Measured is the whole process, which means nothing: only CUDA counts the tensors."
    return f"GiB and seconds. {sizes}\n\n{markdown(['mode', *head], lines)}"


PARTS = {  # title, function, minutes that it may take (guesses, for the ETA)
    "tests": ("Device tests", device_tests, 2),
    "memory-0.5B": ("Memory, 0.5 B", lambda _, *where: memory_of("Qwen2.5-0.5B", *where), 2),
    "sampling": ("Sampling", sampling, 3),
    "update": ("Update", update, 2),
    "step": ("A whole step", whole_step, 3),
    "default-run": ("The default run", default_run, 5),
    "memory-1.5B": ("Memory, 1.5 B", lambda _, *where: memory_of("Qwen2.5-1.5B", *where), 3),
}


# ------------------------------------------------------------------- running and reporting them


def make_part(name: str, folder: Path, device: torch.device, small: bool) -> None:
    """Makes a part in this process and leaves its file."""
    start = time.time()
    text = PARTS[name][1](folder, device, small)
    write(folder / f"{name}.json", json.dumps({"minutes": (time.time() - start) / 60, "text": text}))


def run_limited(command: list, log: Path, minutes: float, about: str) -> bool:
    """Runs a command into a log file and shows how it goes. Kills it and all its children after `minutes`."""
    start, shown = time.time(), 0.0
    with open(log, "w", encoding="utf-8") as file:
        process = subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT, start_new_session=True)
        try:
            while process.poll() is None and time.time() - start < 60 * minutes:
                time.sleep(0.2)
                if time.time() - shown > 15:
                    shown = time.time()
                    print(f"  {about}, {shown - start:.0f} s: {''.join(last_lines(log, 1))[:90]}", flush=True)
            if process.poll() is None:
                file.write(f"\nstopped after {minutes:.1f} minutes\n")
        finally:  # also after Ctrl-C
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    return process.returncode == 0


def last_lines(log: Path, n: int) -> list[str]:
    return log.read_text(encoding="utf-8", errors="replace").splitlines()[-n:]


def report(folder: Path, machine: str) -> str:
    """gpu.md, from what the parts have left in the folder."""
    states, sections = [], []
    for name, (title, _, _) in PARTS.items():
        path, log = folder / f"{name}.json", folder / f"{name}.log"
        if path.exists():
            made = json.loads(path.read_text(encoding="utf-8"))
            states.append([title, "done", f"{made['minutes']:.1f}"])
            sections.append(f"## {title}\n\n{made['text']}")
        elif log.exists():
            states.append([title, "failed or stopped", ""])
            end = "\n".join(last_lines(log, 15))
            sections.append(f"## {title}\n\nNot finished. Its log ends with:\n\n```\n{end}\n```")
        else:
            states.append([title, "not begun", ""])
    table = markdown(["part", "state", "minutes"], states)
    return "\n\n".join([f"# On a GPU\n\nMade by `make gpu` on {machine}.", table, *sections]) + "\n"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--minutes", type=float, default=25.0, help="stop after so many")
    parser.add_argument("--rehearse", action="store_true", help="at toy size on the CPU")
    parser.add_argument("--part", choices=PARTS, help=argparse.SUPPRESS)
    args = parser.parse_args()
    for name in ("transformers", "safetensors", "pytest"):
        require(importlib.util.find_spec(name), f"gpu.py needs {name}: pip install -e '.[dev]'")
    there = args.rehearse or torch.cuda.is_available()
    require(there, "no CUDA device here: --rehearse tries the script on the CPU")
    device = pick_device("cpu" if args.rehearse else "cuda")
    folder = ROOT / "out" / ("gpu-rehearsal" if args.rehearse else "gpu")
    folder.mkdir(parents=True, exist_ok=True)
    if args.part:
        make_part(args.part, folder, device, args.rehearse)
        return 0
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("stopped"))  # so that the part is killed, too
    os.environ["HF_HUB_OFFLINE"] = "1"
    end, target = time.time() + 60 * args.minutes, folder if args.rehearse else bench.RESULTS
    versions = f"transformers {version('transformers')}, Python {platform.python_version()}"
    machine = f"{bench.machine_name(device)}, {versions}"
    for name, (title, _, _) in PARTS.items():
        waiting = [n for n in PARTS if not (folder / f"{n}.json").exists()]
        left = (end - time.time()) / 60
        if name in waiting and left > 1:
            eta = sum(PARTS[n][2] for n in waiting[waiting.index(name) :])
            limit = min(LIMIT, left)
            print(f"{title}: at most {limit:.1f} minutes; ETA of all that is left: {eta}", flush=True)
            command = [sys.executable, __file__, f"--part={name}", *(["--rehearse"] if args.rehearse else [])]
            ok = run_limited(command, folder / f"{name}.log", limit, title)
            print(f"{title}: {'done' if ok else f'not finished, see {folder / name}.log'}", flush=True)
        (target / "gpu.md").write_text(report(folder, machine), encoding="utf-8")
    print(f"{target / 'gpu.md'} has the results; the files of the parts are in {folder}")
    return 0 if all((folder / f"{name}.json").exists() for name in PARTS) else 1


if __name__ == "__main__":
    run_script(main)
