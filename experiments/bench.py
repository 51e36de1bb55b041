"""How fast sampling and the update are, beside what the machine can do: writes bench.md, .json and .png.

    python experiments/bench.py             all of it, into experiments/results/; 5 to 15 minutes
    python experiments/bench.py --quick     the toy model with few runs; writes no file
    python experiments/bench.py --quick --device=cuda    the same on a GPU; `make gpu` times large models

It needs the extras: pip install -e '.[dev]'. Ways that are compared are run in turns, in one process.
Figures are medians, with the fastest and the slowest run in brackets. A limit is the time that the needed
FLOPs and bytes would take at the machine's peak and bandwidth, which are measured in the same run.
"""

import argparse
import contextlib
import importlib.util
import io
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import numpy as np
import torch
import torch.nn.functional as F

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # so that it runs without being installed

import engine.sampling

import rollout
import train
from engine.build import held_out_of, pick_device
from engine.cli import run_script
from engine.folder import open_run
from engine.hf import save_pretrained
from engine.memory import micro_batches
from engine.optim import Learner, master_weights
from engine.options import require
from engine.report import markdown
from engine.run import Run
from eval import evaluate
from experiments import plain_step
from experiments.memory import MODELS, peak
from model import GPT, GPTConfig
from rewards import turn_rewards
from rollout import right_pad, sample_dialogues

RESULTS = Path(__file__).parent / "results"
TOY, GPT2, QWEN = GPTConfig(100), MODELS["GPT-2 124M"], MODELS["Qwen2.5-0.5B"]
FOLLOW_UP = [5, 6, 7]  # the request for turn 2
TOKENIZER = SimpleNamespace(end_id=0, decode=lambda ids: "")


def seconds_of(function: Callable, device: torch.device) -> float:
    """How long a call takes. A GPU works on after the call has returned, so the clock waits for it."""
    wait = torch.cuda.synchronize if device.type == "cuda" else lambda: None
    wait()
    start = time.perf_counter()
    function()
    wait()
    return time.perf_counter() - start


def in_turns(runs: int, device: torch.device, **functions: Callable) -> dict[str, np.ndarray]:
    """Seconds of each function [runs]. All are called in turns; the first call of each does not count."""
    seconds = np.empty((runs + 1, len(functions)))
    for run in range(runs + 1):
        for i, function in enumerate(functions.values()):
            seconds[run, i] = seconds_of(function, device)
    return dict(zip(functions, seconds[1:].T, strict=True))


def spread(values: np.ndarray, digits: int = 1, unit: str = "") -> str:
    low, middle, high = (f"{v:.{digits}f}" for v in (min(values), np.median(values), max(values)))
    return f"{middle} ({low} to {high}){unit}"


# ---------------------------------------------------------------------------------- limits


def limits(runs: int, size: int, device: torch.device) -> dict[str, float]:
    """The best of the runs: FLOP/s of a square product by dtype, and "bytes", the bytes/s of a copy."""
    numbers = 2**28 if device.type == "cuda" else 2**25  # far more than the cache holds

    def product(dtype: torch.dtype, size: int) -> float:
        a, b = torch.randn(2, size, size, dtype=dtype, device=device)
        return 2 * size**3 / min(in_turns(runs, device, product=lambda: a @ b)["product"])

    single, half = product(torch.float32, size), product(torch.bfloat16, 256)
    if device.type == "cuda" or half > single / 10:  # else it has no units for bfloat16
        half = product(torch.bfloat16, size)
    a = torch.randn(numbers, device=device)
    b = torch.empty_like(a)
    copied = 2 * a.nbytes / min(in_turns(runs, device, copy=lambda: b.copy_(a))["copy"])
    return {"torch.float32": single, "torch.bfloat16": half, "bytes": copied}


def weights_of(model: GPT) -> tuple[int, int]:
    """How many numbers the matrices of the blocks have, and the head. Each costs a token two FLOPs."""
    return sum(p.numel() for p in model.blocks.parameters() if p.ndim == 2), model.lm_head.weight.numel()


def sampling_limit(model: GPT, lengths: list[int], turns: int, new: int, limit: dict) -> float:
    """Seconds that dialogues need if each turn has `new` tokens. `lengths` are those of the prompts.

    Each pass reads all weights once, and the keys and values so far once.
    """
    c, dtype, (blocks, head) = model.config, model.embed.weight.dtype, weights_of(model)
    cached, seconds = np.zeros(len(lengths)), 0.0
    for turn in range(turns):
        for i in range(new):
            prompt = np.array(lengths) if turn == 0 else len(FOLLOW_UP) + 2  # 2: the last token and the end
            fed = np.ones(len(lengths)) if i else prompt * np.ones(len(lengths))
            attention = 4 * c.n_layer * c.n_head * c.head_dim * fed * (cached + fed / 2)
            flops = (2 * blocks * fed + 2 * head + attention).sum()
            cached += fed
            numbers = blocks + head + 2 * c.n_layer * c.n_kv_head * c.head_dim * cached.sum()
            seconds += max(flops / limit[str(dtype)], numbers * dtype.itemsize / limit["bytes"])
    return seconds


# ---------------------------------------------------------------------------------- sampling


def never_ending(config: GPTConfig, device: torch.device, dtype: torch.dtype = torch.float32) -> GPT:
    """Random weights that almost never sample token 0, the end of turn: all rows get equally many tokens."""
    torch.manual_seed(0)
    with device:
        model = GPT(config)
    with torch.no_grad():
        model.embed.weight[:, 0] += 5  # so the first number of every hidden state is far above 0
        model.lm_head.weight[0, 0] = -200
    return model.to(dtype).requires_grad_(False)


def prompts_of(batch: int, length: int, ragged: bool, vocab_size: int) -> list[list[int]]:
    """Random prompts of `length` tokens, or with `ragged` of half to all of that."""
    generator = torch.Generator().manual_seed(0)
    shortest = length // 2 if ragged else length
    lengths = torch.randint(shortest, length + 1, (batch,), generator=generator).tolist()
    return [torch.randint(1, vocab_size, (n,), generator=generator).tolist() for n in lengths]


def ours(model: GPT, prompts: list[list[int]], turns: int, new: int) -> None:
    generator = torch.Generator(model.embed.weight.device).manual_seed(0)
    sample_dialogues(model, TOKENIZER, prompts, [FOLLOW_UP] * (turns - 1), new, 1.0, generator)


@torch.no_grad()
def without_cache(model: GPT, prompts: list[list[int]], turns: int, new: int) -> None:
    """Computes all of each row again for every token."""
    device = model.embed.weight.device
    for turn in range(turns):
        prompts = [[*row, 0, *FOLLOW_UP] if turn else row for row in prompts]
        for _ in range(new):
            ids, lengths = right_pad(prompts, 0, device)
            logits = model.head(model.hidden(ids)[torch.arange(len(ids), device=device), lengths - 1])
            uniform = torch.rand(len(ids), dtype=torch.float64, device=device)
            tokens, _ = rollout.sample_token(logits, 1.0, uniform)
            prompts = [[*row, token] for row, token in zip(prompts, tokens.tolist(), strict=True)]


def in_transformers(model: GPT):
    """The same weights as a model of transformers, on the same device."""
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    with tempfile.TemporaryDirectory() as folder:
        save_pretrained(model, folder)
        table = model.embed.weight
        twin = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=table.dtype)
        return twin.eval().to(table.device)


def half_end_early(batch: int, new: int):
    """A context in which half of the rows end each turn at its second token."""
    original, calls = rollout.sample_token, iter(range(10**9))

    def sample_token(logits, temperature, uniform):
        tokens, scores = original(logits, temperature, uniform)
        if next(calls) % new == 1:
            tokens[: batch // 2] = 0
        return tokens, scores

    return mock.patch.object(rollout, "sample_token", sample_token)


def bench_sampling(
    limit: dict, device: torch.device, name: str, config: GPTConfig, batch: int, prompt: int, new: int,
    runs: int, ragged=False, dtype=torch.float32, plain=False, early=False,
) -> dict:  # fmt: skip
    """A row of the table on sampling. `plain`: also without a cache; `early`: also when half end early."""
    model = never_ending(config, device, dtype)
    prompts = prompts_of(batch, prompt, ragged, config.vocab_size)
    twin, request = in_transformers(model), [0, *FOLLOW_UP]
    ways = {
        "ours": lambda: ours(model, prompts, 2, new),
        "twin": lambda: plain_step.sample(twin, prompts, request, new),
    }
    if plain:
        ways["plain"] = lambda: without_cache(model, prompts, 2, new)
    seconds = in_turns(runs, device, **ways)
    if early:
        with half_end_early(batch, new):
            seconds |= in_turns(runs, device, early=ways["ours"])
        seconds |= in_turns(runs, device, never=ways["ours"])
    kind, tokens = "ragged" if ragged else "equal", 2 * batch * new
    print(name, batch, kind, {way: spread(tokens / s, 0) for way, s in seconds.items()}, flush=True)
    row = {"model": name, "batch": batch, "prompts": kind, "tokens": tokens}
    row["seconds"] = {way: s.tolist() for way, s in seconds.items()}
    return row | {"limit": sampling_limit(model, [len(p) for p in prompts], 2, new, limit)}


def sampling_table(rows: list[dict]) -> str:
    cells = []
    for row in rows:
        s = {way: np.array(seconds) for way, seconds in row["seconds"].items()}
        share = f"{100 * row['limit'] / np.median(s['ours']):.0f} %"
        speed = spread(row["tokens"] / s["ours"], 0)
        cells.append([row["model"], str(row["batch"]), row["prompts"], speed, share])
        for slow, fast in (("twin", "ours"), ("plain", "ours"), ("never", "early")):
            cells[-1].append(spread(s[slow] / s[fast], unit="x") if slow in s else "")
    ratios = ["against transformers", "against no cache", "half ends early"]
    return markdown(["model", "batch", "prompts", "ours, tokens/s", "share of limit", *ratios], cells)


# ---------------------------------------------------------------------------------- update


def full_log_softmax(model, reference, ids, mask, temperature):
    """What train.token_scores returns, with both models' logits [B, T, V] at once."""
    log_p = F.log_softmax(model(ids[:, :-1]).float() / temperature, -1)  # [B, T, V]
    with torch.no_grad():
        log_q = F.log_softmax(reference(ids[:, :-1]).float() / temperature, -1)
    p, mask = log_p.exp(), mask[:, 1:]
    kl, entropy = (p * (log_p - log_q)).sum(-1), -(p * log_p).detach().sum(-1)
    return log_p.gather(2, ids[:, 1:, None])[:, :, 0][mask], kl[mask], entropy[mask]


def update_of(
    config: GPTConfig, batch: int, length: int, device: torch.device, optimizer: str = "muon",
    straight: bool = False, dtype: torch.dtype = torch.float32,
) -> tuple[Callable, int]:  # fmt: skip
    """A function that makes one update, and the FLOPs that it needs.

    The batch has two attempts a row, which fill half of its `length` tokens. `straight`: with
    `full_log_softmax`.
    """
    torch.manual_seed(0)
    with device:
        model, reference = GPT(config).to(dtype), GPT(config).to(dtype).requires_grad_(False)
        masks = torch.zeros(batch, 2, length, dtype=torch.bool)
        ids = torch.randint(config.vocab_size, (batch, length))
        rows = {"ids": ids, "masks": masks, "advantages": torch.randn(batch, 2)}
    masks[:, 0, length // 4 : length // 2], masks[:, 1, 3 * length // 4 :] = True, True
    learner = Learner(model, master_weights(model, {}))
    learner.start_stage(train.Config(optimizer=optimizer), None)
    scores = full_log_softmax if straight else train.token_scores

    def update():
        with mock.patch.object(train, "token_scores", scores):
            for micro in micro_batches(rows, train.Config.micro_batch):
                train.policy_loss(model, reference, micro, (0.1, 0.1), 1.0, batch)[0].backward()
        learner.gradient_norm(1.0)
        learner.step(0.0)

    blocks, head = weights_of(model)
    seen = length / 2  # a causal model sees half of the positions on average
    attention = 4 * config.n_layer * config.n_head * config.head_dim * seen
    passes = 4  # the policy's forward pass, its backward pass, which costs two, and the reference's forward
    flops = passes * (batch * (length - 1) * (2 * blocks + attention) + int(masks.sum()) * 2 * head)
    return update, flops


def bench_update(
    limit: dict, device: torch.device, name: str, config: GPTConfig, optimizer: str, batch: int, length: int,
    runs: int, dtype=torch.float32,
) -> list[str]:  # fmt: skip
    """A row of the table on updates."""
    fast, flops = update_of(config, batch, length, device, optimizer, dtype=dtype)
    straight, _ = update_of(config, batch, length, device, optimizer, straight=True, dtype=dtype)
    s = in_turns(runs, device, fast=fast, straight=straight)
    shares = 100 * flops / s["fast"] / limit[str(dtype)]
    figures = [spread(batch * length / s["fast"], 0), spread(shares, 0, " %")]
    row = [name, optimizer, f"{batch} x {length}", *figures, spread(s["straight"] / s["fast"], 2, "x")]
    print(*row, flush=True)
    return row


def time_by_kind(update: Callable, flops: int, limit: dict) -> str:
    """Into which operations the time of an update on a CPU goes, in words. It needs `flops`."""
    update()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        update()
    seconds = Counter()
    for event in profile.key_averages():
        if event.key in ("aten::mm", "aten::addmm", "aten::bmm", "aten::baddbmm"):
            kind = "product"
        else:
            kind = "attention" if "dot_product" in event.key else "rest"
        seconds[kind] += event.self_cpu_time_total / 1e6
    product, attention, rest = (100 * seconds[k] / seconds.total() for k in ("product", "attention", "rest"))
    pace = 100 * flops / seconds["product"] / limit["torch.float32"]
    return f"""
Matrix products take {product:.0f} % of the time of the toy's update, at {pace:.0f} % of the peak. Attention
takes {attention:.0f} %. All else takes {rest:.0f} %: norms, RoPE, SwiGLU, softmax, the optimizer and Python.
"""


def bench_step(
    device: torch.device, name: str, config: GPTConfig, optimizer: str, batch: int, prompt: int, new: int,
    runs: int, dtype=torch.float32,
) -> list[str]:  # fmt: skip
    """A row of the table on whole steps: sample, score, update. Ours against plain_step.py."""
    model, reference = (never_ending(config, device, dtype) for _ in range(2))
    model.requires_grad_()
    twin, twins_reference = in_transformers(model), in_transformers(reference)
    prompts = prompts_of(batch, prompt, True, config.vocab_size)
    correct = (torch.rand(batch, 2, generator=torch.Generator().manual_seed(0)) < 0.5).to(device)
    learner = Learner(model, master_weights(model, {}))
    learner.start_stage(train.Config(optimizer=optimizer), None)
    plain = plain_step.torchs_optimizers(twin, optimizer)
    micro = 32 if device.type == "cpu" else batch

    def fast():
        generator = torch.Generator(device).manual_seed(0)
        rollout = sample_dialogues(model, TOKENIZER, prompts, [FOLLOW_UP], new, 1.0, generator)
        rewards = turn_rewards(correct, (1.0, 1.0), 10.0)
        advantage = train.advantages(rewards, correct, torch.arange(batch, device=device), "by_outcome")
        rows = {"ids": rollout.ids, "masks": rollout.masks, "advantages": advantage}
        for part in micro_batches(rows, micro):
            train.policy_loss(model, reference, part, (0.3, 0.3), 1.0, batch)[0].backward()
        learner.gradient_norm(1.0)
        learner.step(1e-6)  # so small that the model goes on to end no turn

    def slow():
        request = [0, *FOLLOW_UP]
        plain_step.step(twin, twins_reference, plain, prompts, request, new, correct, micro)

    s = in_turns(runs, device, fast=fast, slow=slow)
    shape = f"{batch} x 2 x {new}"
    row = [name, optimizer, shape, spread(batch / s["fast"]), spread(batch / s["slow"])]
    row.append(spread(s["slow"] / s["fast"], unit="x"))
    print(*row, flush=True)
    return row


WIDE = GPTConfig(151936, n_layer=2, tie_weights=True), 16, 64  # 16 x 64 x 151,936 logits are 0.58 GiB


def peak_of(way: str) -> float:
    """GiB of an update at a large vocabulary beside weights, gradients and optimizer, in its own process."""
    command = [sys.executable, __file__, f"--peak={way}"]
    return float(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def print_peak(way: str) -> None:
    (config, batch, length), cpu = WIDE, torch.device("cpu")
    update, _ = update_of(config, batch, length, cpu, straight=way == "straight")
    update_of(TOY, 1, 8, cpu)[0]()  # loads the libraries
    before = peak()
    update()
    made = 3 * config.vocab_size * config.dim * 4  # the embedding's gradient and two moments, made just now
    print((peak() - before - made) / 2**30)


# ---------------------------------------------------------------------------------- growth, default run


def growth(runs: int, quick: bool, device: torch.device) -> dict[str, dict[str, list]]:
    """Median seconds of sampling and of an update while one of four sizes grows.

    By the name of the size, `x` with its values and `sampling` and `update` with the seconds.
    """
    usual = {"batch": 64, "new tokens": 16, "turns": 2, "vocabulary": 100}
    sizes = {
        "batch": [8, 32, 128] if quick else [8, 16, 32, 64, 128, 256, 512],
        "new tokens": [8, 16, 32, 64],
        "turns": [1, 2, 4],
        "vocabulary": [100, 1000, 10000] if quick else [100, 1000, 10000, 50000],
    }
    found = {}
    for name, values in sizes.items():
        found[name] = {"x": values, "sampling": [], "update": []}
        for x in values:
            batch, new, turns, vocab_size = (usual | {name: x}).values()
            config = GPTConfig(vocab_size, max_len=1024)
            model, prompts = never_ending(config, device), prompts_of(batch, 8, False, vocab_size)
            update, _ = update_of(config, batch, 8 + turns * (new + 4), device)

            def sampling(model=model, prompts=prompts, turns=turns, new=new):
                ours(model, prompts, turns, new)

            for part, seconds in in_turns(runs, device, sampling=sampling, update=update).items():
                found[name][part].append(float(np.median(seconds)))
    return found


def slopes(found: dict) -> str:
    """Slopes of the logarithms: with 1 the cost grows as the size does."""
    rows = []
    for name, f in found.items():
        fits = [np.polyfit(np.log(f["x"]), np.log(f[part]), 1)[0] for part in ("sampling", "update")]
        rows.append([name, f"{f['x'][0]} to {f['x'][-1]}", *(f"{slope:.2f}" for slope in fits)])
    return markdown(["what grows", "range", "slope, sampling", "slope, update"], rows)


def draw(found: dict, machine: str) -> None:
    os.environ["MPLBACKEND"] = "Agg"  # a notebook sets its own, which its child processes may not find
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 4, figsize=(15, 3.8), sharey=True)
    for axis, (name, f) in zip(axes, found.items(), strict=True):
        for part in ("sampling", "update"):
            axis.loglog(f["x"], f[part], "o-", label=part)
        axis.set_xlabel(name)
        axis.grid(alpha=0.3, which="both")
    axes[0].set_ylabel("seconds")
    axes[0].legend()
    usual = "toy model otherwise (batch 64, 16 new tokens, 2 turns, vocabulary 100)"
    figure.suptitle(f"Cost against size, {usual} on {machine}")
    figure.tight_layout()
    figure.savefig(RESULTS / "bench.png", dpi=110)


def parts_of_default_run(steps: int, problems: int, device: torch.device) -> str:
    """What each part of a step costs, and what the default run takes at that pace.

    Measured in a run with few steps of each stage, by a clock around the functions that do the work.
    """
    spent, stage = Counter(), ""  # seconds by (stage, part)

    def timed(part: str, function: Callable) -> Callable:
        def call(*args, **kwargs):
            result = []
            seconds = seconds_of(lambda: result.append(function(*args, **kwargs)), device)
            spent[stage, part] += seconds
            return result[0]

        return call

    def start_stage(run, index, row, original=Run.start_stage):
        nonlocal stage
        stage, reference = row.name, original(run, index, row)
        if reference is not None:
            reference.hidden = timed("reference", reference.hidden)
        return reference

    planned = {s.name: s.steps for s in train.stages(train.Config())}
    few = {name: 3 * steps if name == "base" else steps for name in planned}
    clocks = [
        (engine.sampling, "sample_dialogues", "sampling"),
        (train, "correctness", "reward"),
        (train, "policy_loss", "update"),
        (train, "supervised_loss", "update"),
        (torch.Tensor, "backward", "update"),
    ]
    with tempfile.TemporaryDirectory() as out:
        settings = {f"{name}_steps": n for name, n in few.items()}
        c = train.Config(out=out, device=str(device), report=False, **settings)
        with contextlib.ExitStack() as stack:
            for owner, name, part in clocks:
                stack.enter_context(mock.patch.object(owner, name, timed(part, getattr(owner, name))))
            stack.enter_context(mock.patch.object(Run, "start_stage", start_stage))
            stack.enter_context(contextlib.redirect_stdout(io.StringIO()))
            start = time.perf_counter()
            with open_run(c, "", train.stages) as (c, state):
                train.train(c, state)
            wall = time.perf_counter() - start
        model, c = train.load_model(Path(out) / c.name / "base.pt", device)
        start = time.perf_counter()
        evaluate(model, c, held_out_of(c, problems))
        evaluation = (time.perf_counter() - start) / problems
    rows, names, rest = [], ("sampling", "reward", "reference", "update"), wall
    for name, n in few.items():
        spent[name, "update"] -= spent[name, "reference"]  # policy_loss calls it
        pace = [spent[name, part] / n for part in names]  # seconds a step
        rest -= n * sum(pace)
        rows.append([name, *(f"{1000 * p:.0f}" for p in pace), f"{sum(pace) * planned[name]:.0f}"])
    head = ["stage", *(f"{part}, ms a step" for part in names), "seconds for the default's steps"]
    return f"""{markdown(head, rows)}

All else in that short run (demonstrations, optimizer, files) took {100 * rest / wall:.0f} % of {wall:.0f} s.
Evaluation with two greedy turns takes {1000 * evaluation:.1f} ms a problem."""


# ---------------------------------------------------------------------------------- all of it


def machine_name(device: torch.device) -> str:
    if device.type == "cuda":
        size = torch.cuda.get_device_properties(device).total_memory / 2**30
        name = f"{torch.cuda.get_device_name(device)} with {size:.0f} GiB"
        return f"{name}, torch {torch.__version__}, CUDA {torch.version.cuda}"
    cpu = platform.processor() or platform.machine()
    with contextlib.suppress(OSError, StopIteration):
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        cpu = next(line.split(":")[1].strip() for line in lines if line.startswith("model name"))
    return f"{cpu}, {torch.get_num_threads()} threads, torch {torch.__version__}"


def tables(runs: int, quick: bool, device: torch.device) -> dict:
    """All that is measured: texts and tables by name, and what bench.json keeps."""
    # If a limit is measured too low, all shares look good.
    limit = limits(5 * runs, 512 if quick else 2048, device)
    toy = dict(name="toy", config=TOY, prompt=8, new=12, runs=runs)
    cases = [
        toy | dict(batch=32, plain=True),
        toy | dict(batch=32, ragged=True),
        toy | dict(batch=256, plain=not quick, early=True),
    ]
    updates = [("toy", TOY, "muon", 64 if quick else 256, 36, runs)]
    steps = [("toy", TOY, "muon", 64 if quick else 256, 8, 12, runs)]
    if not quick:
        gpt2 = dict(name="GPT-2 124M shape", config=GPT2, batch=16, prompt=16, new=8, runs=runs)
        cases += [
            toy | dict(batch=256, ragged=True),
            gpt2 | dict(early=True),
            gpt2 | dict(ragged=True),
            dict(name="Qwen 0.5B shape", config=QWEN, batch=16, prompt=8, new=3, runs=3),
        ]
        if limit["torch.bfloat16"] > limit["torch.float32"]:
            cases.insert(-1, gpt2 | dict(name="the same, bfloat16", dtype=torch.bfloat16))
        updates.append(("GPT-2 124M shape", GPT2, "adamw", 8, 256, 3))  # AdamW, as in the presets
        steps.append(("toy", TOY, "adamw", 256, 8, 12, runs))
        steps.append(("GPT-2 124M shape", GPT2, "adamw", 16, 16, 16, 3))
    on_cpu = device.type == "cpu"
    sampled = [bench_sampling(limit, device, **case) for case in cases]
    return {
        "limit": limit,
        "sampled": sampled,
        "sampling": sampling_table(sampled),
        "updates": [bench_update(limit, device, *case) for case in updates],
        "kinds": time_by_kind(*update_of(TOY, 256, 36, device), limit) if on_cpu else "",
        "steps": [bench_step(device, *case) for case in steps],
        "peaks": {} if quick else {way: peak_of(way) for way in ("ours", "straight")},
        "grown": growth(runs, quick, device),
        "parts": parts_of_default_run(2 if quick else 8, 50 if quick else 500, device),
    }


def page(found: dict, machine: str, minutes: float, runs: int) -> str:
    """The text of bench.md."""
    head = ["model", "optimizer", "rows x tokens", "tokens/s", "share of peak", "against full log-softmax"]
    step_head = ["model", "optimizer", "rows x turns x new", "ours, rows/s", "plain, rows/s", "ratio"]
    memory, limit = "", found["limit"]
    if found["peaks"]:
        (config, batch, length), peaks = WIDE, found["peaks"]
        size = batch * length * config.vocab_size * 4 / 2**30
        memory = f"""
With a vocabulary of {config.vocab_size:,}, one float32 tensor of all logits has {size:.2f} GiB ({batch} x
{length} tokens). Updates take {peaks["ours"]:.2f} GiB, and {peaks["straight"]:.2f} with a full log-softmax.
"""
    single, half, copy = (f"{limit[k] / 1e9:.0f}" for k in ("torch.float32", "torch.bfloat16", "bytes"))
    return f"""# Benchmark

Made by `make bench` on {machine}, in {minutes:.0f} minutes.
Medians of {runs} runs (Qwen's sampling and GPT-2's update: 3), fastest and slowest in brackets. The peak of a
matrix product is {single} GFLOP/s in float32 and {half} in bfloat16. A copy moves {copy} GB/s.

## Sampling, two turns

{found["sampling"]}

All ways have the same weights, prompts, lengths and sampling. transformers, too, goes on in turn 2 with the
keys and values of turn 1. "Half ends early" is the time when no row ends, divided by the time when half of
the rows end each turn at its second token. Where products in bfloat16 are slower than in float32, its row is
left out.

## Update: loss, backward pass, step

{markdown(head, found["updates"])}

The share counts the FLOPs that are needed: one forward pass of policy and reference, one backward pass, and
the head at the sampled tokens only.
{found["kinds"]}{memory}
## A whole step: sample, score, update

{markdown(step_head, found["steps"])}

Plain is `plain_step.py`: the same step with transformers and torch's own optimizers, as a careful user would
write it.

## Growth

![Cost against size](bench.png)

{slopes(found["grown"])}

## The default run by part

{found["parts"]}
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--quick", action="store_true", help="the toy model with few runs; writes no file")
    parser.add_argument("--device", default="cpu", help="cpu or cuda; only a CPU's results are written")
    parser.add_argument("--peak", choices=("ours", "straight"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.peak:
        return print_peak(args.peak)
    for name in ("transformers", "safetensors", "matplotlib"):
        require(importlib.util.find_spec(name), f"bench.py needs {name}: pip install -e '.[dev]'")
    started, quick, runs, device = time.time(), args.quick, 2 if args.quick else 5, pick_device(args.device)
    require(quick or device.type == "cpu", "on a GPU take --quick, or `make gpu` for all of it")
    found, machine = tables(runs, quick, device), machine_name(device)
    text = page(found, machine, (time.time() - started) / 60, runs)
    print(text)
    if not quick:
        (RESULTS / "bench.md").write_text(text, encoding="utf-8")
        content = {"machine": machine, "limits": found["limit"], "sampling": found["sampled"]}
        content |= {"peak_GiB": found["peaks"], "growth": found["grown"]}
        (RESULTS / "bench.json").write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
        draw(found["grown"], machine)


if __name__ == "__main__":
    run_script(main)
