"""How fast sampling and the update are, beside what the machine can do: writes experiments/results/bench.md, .json and .png.

    python experiments/bench.py             all of it (needs the extras: pip install -e .[plots,dev])
    python experiments/bench.py --quick     the toy model with few runs, in under a minute; writes nothing

What is compared runs in turns in one process; figures are medians, with the fastest and slowest run. A limit is what the
FLOPs and bytes that a result needs would take at the peak and bandwidth measured in the same run.
"""

import argparse
import contextlib
import json
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace

import torch
import torch.nn.functional as F

import model as network
import rollout
import train
from eval import evaluate, held_out_of, markdown
from experiments.memory import peak
from model import GPT, GPTConfig
from rollout import right_pad, sample_dialogues

RESULTS = Path(__file__).parent / "results"
TOY = GPTConfig(100, n_layer=3)
QWEN = GPTConfig(151936, n_layer=24, n_head=14, n_kv_head=2, dim=896, head_dim=64, ffn_dim=4864, max_len=1024, qkv_bias=True,
                 qk_norm=False, tie_weights=True)  # fmt: skip
FOLLOW_UP = [5, 6, 7]


def in_turns(runs: int, **functions) -> dict[str, list[float]]:
    """Seconds of each function, called one after the other `runs` times after a call that does not count."""
    seconds = {name: [] for name in functions}
    for run in range(runs + 1):
        for name, function in functions.items():
            start = time.perf_counter()
            function()
            if run:
                seconds[name].append(time.perf_counter() - start)
    return seconds


def spread(values: list[float], digits: int = 1) -> str:
    return f"{statistics.median(values):.{digits}f} ({min(values):.{digits}f} to {max(values):.{digits}f})"


# ------------------------------------------------------------------------------------------------------ limits


def limits(runs: int, size: int) -> dict[str, float]:
    """FLOP/s of a large square product, the better of torch's own and oneDNN's, and bytes/s of a large copy. Best of the runs."""
    found = {}
    for dtype in (torch.float32, torch.bfloat16):
        a, b = torch.randn(2, size, size, dtype=dtype)
        ways = {"torch": lambda a=a, b=b: a @ b}
        if network.ONEDNN:
            ways["onednn"] = lambda a=a, b=b: network.product(a, b)
        for name, values in in_turns(runs, **ways).items():
            found[f"{name} {dtype}"] = 2 * size**3 / min(values)
        found[str(dtype)] = max(found[f"{name} {dtype}"] for name in ways)
    a = torch.randn(2**25)
    b = torch.empty_like(a)
    found["bytes"] = 2 * a.nbytes / min(in_turns(runs, copy=lambda: b.copy_(a))["copy"])
    return found


def weights_of(model: GPT) -> tuple[int, int]:
    """Numbers in the matrices of the blocks, and of the head: each costs a token two FLOPs."""
    return sum(p.numel() for name, p in model.blocks.named_parameters() if p.ndim == 2), model.lm_head.weight.numel()


def sampling_limit(model: GPT, lengths: list[int], turns: int, new: int, limit: dict) -> float:
    """Seconds that two turns without end need: each pass reads all weights and the keys and values so far once."""
    c, dtype, seconds, cached = model.config, model.embed.weight.dtype, 0.0, [0] * len(lengths)
    blocks, head = weights_of(model)
    for turn in range(turns):
        for i in range(new):
            fed = [1] * len(lengths) if i else [n if turn == 0 else len(FOLLOW_UP) + 2 for n in lengths]
            flops = sum(2 * blocks * n + 2 * head + 4 * c.n_layer * c.n_head * c.head_dim * n * (past + n / 2)
                        for n, past in zip(fed, cached, strict=True))  # fmt: skip
            cached = [past + n for past, n in zip(cached, fed, strict=True)]
            numbers = blocks + head + 2 * c.n_layer * c.n_kv_head * c.head_dim * sum(cached)
            seconds += max(flops / limit[str(dtype)], numbers * dtype.itemsize / limit["bytes"])
    return seconds


# ------------------------------------------------------------------------------------------------------ sampling


def never_ending(config: GPTConfig, dtype=torch.float32) -> GPT:
    """Random weights with which token 0, the end of turn, is next to impossible: all rows sample equally many tokens."""
    torch.manual_seed(0)
    model = GPT(config)
    with torch.no_grad():
        model.embed.weight[:, 0] += 5  # so the first number of every hidden state is far above 0
        model.lm_head.weight[0, 0] = -200
    return model.to(dtype).requires_grad_(False)


def prompts_of(batch: int, length: int, ragged: bool, vocab_size: int) -> list[list[int]]:
    generator = torch.Generator().manual_seed(0)
    lengths = torch.randint(length // 2, length + 1, (batch,), generator=generator) if ragged else torch.full((batch,), length)
    return [torch.randint(1, vocab_size, (n,), generator=generator).tolist() for n in lengths.tolist()]


def ours(model: GPT, prompts, turns: int, new: int) -> int:
    tokenizer = SimpleNamespace(end_id=0, decode=lambda ids: "")
    generator = torch.Generator().manual_seed(0)
    return int(sample_dialogues(model, tokenizer, prompts, [FOLLOW_UP] * (turns - 1), new, 1.0, generator).masks.sum())


@torch.no_grad()
def without_cache(model: GPT, prompts, turns: int, new: int) -> None:
    """Every row anew for each token."""
    for turn in range(turns):
        prompts = [row + [0] + FOLLOW_UP if turn else list(row) for row in prompts]
        for _ in range(new):
            ids, lengths = right_pad(prompts, 0, "cpu")
            logits = model.head(model.hidden(ids)[torch.arange(len(ids)), lengths - 1])
            tokens, _ = rollout.pick(logits, 1.0, torch.rand(len(ids), dtype=torch.float64))
            prompts = [[*row, token] for row, token in zip(prompts, tokens.tolist(), strict=True)]


def transformers_twin(model: GPT):
    """The same weights in transformers, through a checkpoint, and a function that samples with them as `ours` does."""
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        twin = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=model.embed.weight.dtype).eval()

    @torch.no_grad()
    def generate(prompts, turns: int, new: int) -> None:
        """Prompts are padded on the left, as generate wants them, and its keys and values are carried over to turn 2."""
        ids, lengths = right_pad([row[::-1] for row in prompts], 0, "cpu")
        ids, mask = ids.flip(1), (torch.arange(ids.shape[1]) < lengths[:, None]).long().flip(1)
        past = None
        for _ in range(turns):
            done = twin.generate(
                ids, attention_mask=mask, past_key_values=past, do_sample=True, top_k=0, max_new_tokens=new, min_new_tokens=new,
                eos_token_id=None, pad_token_id=0, return_dict_in_generate=True,
            )  # fmt: skip
            assert done.sequences.shape[1] == ids.shape[1] + new
            request = torch.tensor([[0, *FOLLOW_UP]]).expand(len(ids), -1)
            ids, past = torch.cat((done.sequences, request), 1), done.past_key_values
            mask = F.pad(mask, (0, ids.shape[1] - mask.shape[1]), value=1)

    return generate


@contextlib.contextmanager
def half_end_early(batch: int, at: int, new: int):
    """Half of the rows say the end at their `at`-th token of each turn."""
    original, calls = rollout.pick, iter(range(10**9))

    def pick(logits, temperature, chance):
        tokens, scores = original(logits, temperature, chance)
        if next(calls) % new == at:
            tokens[: batch // 2] = 0
        return tokens, scores

    rollout.pick = pick
    yield
    rollout.pick = original


def bench_sampling(limit: dict, cases: list[dict]) -> list[dict]:
    found = []
    for case in cases:
        name, batch, new, runs, ragged = (case[k] for k in ("name", "batch", "new", "runs", "ragged"))
        model = never_ending(case["config"], case.get("dtype", torch.float32))
        prompts = prompts_of(batch, case["prompt"], ragged, model.config.vocab_size)
        twin = transformers_twin(model)
        ways = dict(ours=lambda m=model, p=prompts, n=new: ours(m, p, 2, n), twin=lambda t=twin, p=prompts, n=new: t(p, 2, n))
        if case.get("plain"):
            ways["plain"] = lambda m=model, p=prompts, n=new: without_cache(m, p, 2, n)
        with torch.no_grad():
            seconds = in_turns(runs, **ways)
        if case.get("early"):
            with half_end_early(batch, 1, new):
                seconds["early"] = in_turns(runs, early=ways["ours"])["early"]
            seconds["never"] = in_turns(runs, never=ways["ours"])["never"]
        tokens, share = 2 * batch * new, sampling_limit(model, [len(p) for p in prompts], 2, new, limit)
        row = {"model": name, "batch": batch, "prompts": "ragged" if ragged else "equal", "tokens": tokens, "seconds": seconds,
               "limit": share}  # fmt: skip
        found.append(row)
        print(name, batch, row["prompts"], {k: spread([tokens / s for s in v], 0) for k, v in seconds.items()}, flush=True)
        del model, twin, ways
    return found


def sampling_table(rows: list[dict]) -> str:
    head = ["model", "batch", "prompts", "ours, tokens/s", "share of limit", "against transformers", "against no cache",
            "half ends early"]  # fmt: skip
    cells = []
    for row in rows:
        s = row["seconds"]

        def ratio(slow: str, fast: str = "ours", s=s) -> str:
            return spread([a / b for a, b in zip(s[slow], s[fast], strict=True)]) + "x" if slow in s else ""

        cells.append([row["model"], str(row["batch"]), row["prompts"], spread([row["tokens"] / t for t in s["ours"]], 0),
                      f"{100 * row['limit'] / statistics.median(s['ours']):.0f} %", ratio("twin"), ratio("plain"),
                      ratio("never", "early")])  # fmt: skip
    return markdown(head, cells)


# ------------------------------------------------------------------------------------------------------ update


def update_of(config: GPTConfig, batch: int, length: int, optimizer: str = "muon", straight: bool = False):
    """A function that does one update on a batch of two attempts, which fill half of each row; and its number of tokens."""
    torch.manual_seed(0)
    model, reference = GPT(config), GPT(config).requires_grad_(False)
    weights = train.master_weights(model, {})
    optimizers = train.make_optimizers(train.Config(optimizer=optimizer), weights)
    masks = torch.zeros(batch, 2, length, dtype=torch.bool)
    masks[:, 0, length // 4 : length // 2], masks[:, 1, 3 * length // 4 :] = True, True
    rows = {"ids": torch.randint(config.vocab_size, (batch, length)), "masks": masks, "advantages": torch.randn(batch, 2)}

    def full_log_softmax(model, reference, ids, mask, temperature):
        log_probs = F.log_softmax(model(ids[:, :-1]).float() / temperature, -1)  # [B, T, V]
        with torch.no_grad():
            reference_log_probs = F.log_softmax(reference(ids[:, :-1]).float() / temperature, -1)
        probs = log_probs.exp()
        kl, entropy = (probs * (log_probs - reference_log_probs)).sum(-1), -(probs * log_probs).detach().sum(-1)
        wanted = mask[:, 1:]
        return log_probs.gather(2, ids[:, 1:, None])[:, :, 0][wanted], kl[wanted], entropy[wanted]

    def update():
        original = train.token_scores
        train.token_scores = full_log_softmax if straight else original
        for micro in train.micro_batches(rows, train.Config.micro_batch):
            train.policy_loss(model, reference, micro, (0.1, 0.1), 1.0, batch)[0].backward()
        train.token_scores = original
        torch.nn.utils.clip_grad_norm_(weights.values(), 1.0)
        for each in optimizers:
            each.step()
            each.zero_grad()

    blocks, head = weights_of(model)
    attention = 4 * config.n_layer * config.n_head * config.head_dim * length / 2  # causal: half of the positions on average
    sampled = int(masks.sum())
    flops = 4 * batch * (length - 1) * (2 * blocks + attention) + 8 * sampled * head  # forward 1, backward 2, reference 1
    return update, batch * length, flops


def bench_update(limit: dict, cases: list[tuple]) -> str:
    cells = []
    for name, config, optimizer, batch, length, runs in cases:
        fast, tokens, flops = update_of(config, batch, length, optimizer)
        straight, _, _ = update_of(config, batch, length, optimizer, straight=True)
        s = in_turns(runs, fast=fast, straight=straight)
        shares = [100 * flops / t / limit["torch.float32"] for t in s["fast"]]
        ratios = [a / b for a, b in zip(s["straight"], s["fast"], strict=True)]
        cells.append([name, optimizer, f"{batch} x {length}", spread([tokens / t for t in s["fast"]], 0), spread(shares, 0) + " %",
                      spread(ratios, 2) + "x"])  # fmt: skip
        print(*cells[-1], flush=True)
    return markdown(["model", "optimizer", "rows x tokens", "tokens/s", "share of peak", "against full log-softmax"], cells)


WIDE = (GPTConfig(151936, n_layer=2, tie_weights=True), 16, 64)  # 16 x 64 x 151,936 logits are 0.58 GiB


def peak_of(way: str) -> float:
    """GiB that an update at a large vocabulary takes beyond weights, gradients and optimizer: in a process of its own."""
    command = [sys.executable, __file__, f"--peak={way}"]
    return float(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def print_peak(way: str) -> None:
    config, batch, length = WIDE
    update, _, _ = update_of(config, batch, length, straight=way == "straight")
    update_of(TOY, 1, 8)[0]()  # libraries loaded
    before = peak()
    update()
    grown = (peak() - before) / 2**30
    print(grown - 3 * 151936 * 128 * 4 / 2**30)  # the gradient and two moments of the embedding, made by this first update


# ------------------------------------------------------------------------------------------------------ growth, default run


def growth(runs: int, quick: bool) -> dict[str, dict[str, list]]:
    """Seconds of sampling and of an update as one of four sizes grows, the others being the toy's: {name: {x, sampling, ...}}."""
    sizes = {"batch": [8, 32, 128] if quick else [8, 16, 32, 64, 128, 256, 512], "new tokens": [8, 16, 32, 64],
             "turns": [1, 2, 4], "vocabulary": [100, 1000, 10000] if quick else [100, 1000, 10000, 50000]}  # fmt: skip
    found = {}
    for name, values in sizes.items():
        found[name] = {"x": values, "sampling": [], "update": []}
        for x in values:
            at = {"batch": 64, "new tokens": 16, "turns": 2, "vocabulary": 100} | {name: x}
            config = GPTConfig(at["vocabulary"], n_layer=3, max_len=1024)
            model, length = never_ending(config), 8 + at["turns"] * (at["new tokens"] + 4)
            prompts = prompts_of(at["batch"], 8, False, at["vocabulary"])
            s = in_turns(runs, sampling=lambda m=model, p=prompts, a=at: ours(m, p, a["turns"], a["new tokens"]),
                         update=update_of(config, at["batch"], length)[0])  # fmt: skip
            for part in ("sampling", "update"):
                found[name][part].append(statistics.median(s[part]))
    return found


def slopes(found: dict) -> str:
    def slope(x, y):
        x, y = torch.tensor(x).double().log(), torch.tensor(y).double().log()
        return ((x - x.mean()) * (y - y.mean())).sum() / (x - x.mean()).square().sum()

    rows = [[name, f"{f['x'][0]} to {f['x'][-1]}", *(f"{slope(f['x'], f[k]):.2f}" for k in ("sampling", "update"))]
            for name, f in found.items()]  # fmt: skip
    return markdown(["what grows", "range", "slope, sampling", "slope, update"], rows)


def draw(found: dict, machine: str) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 4, figsize=(15, 3.8), sharey=True)
    for axis, (name, f) in zip(axes, found.items(), strict=True):
        for part in ("sampling", "update"):
            axis.loglog(f["x"], f[part], "o-", label=part)
        axis.set_xlabel(name)
        axis.grid(alpha=0.3, which="both")
    axes[0].set_ylabel("seconds")
    axes[0].legend()
    figure.suptitle(f"Cost against size, toy model otherwise (batch 64, 16 new tokens, 2 turns, vocabulary 100) on {machine}")
    figure.tight_layout()
    figure.savefig(RESULTS / "bench.png", dpi=110)


def parts_of_default_run(steps: int, problems: int) -> str:
    """Seconds a step by part, from a run with few steps of each stage, and what the whole default run takes at that pace."""
    spent, stage, inside = {}, ["base"], [False]

    def timed(name, function):
        def call(*args, **kwargs):
            outer, inside[0] = inside[0], name == "update" or inside[0]
            start = time.perf_counter()
            try:
                return function(*args, **kwargs)
            finally:
                inside[0] = outer
                key = "reference" if name == "hidden" else name
                if name != "hidden" or (outer and not torch.is_grad_enabled()):
                    spent[stage[0], key] = spent.get((stage[0], key), 0.0) + time.perf_counter() - start
                    if key == "reference":  # it is part of what `policy_loss` took
                        spent[stage[0], "update"] = spent.get((stage[0], "update"), 0.0) - (time.perf_counter() - start)

        return call

    def log_step(c, folder, at, *rest):
        stage[0] = at.name if rest[0] + 1 < at.steps else {"base": "stage1", "stage1": "stage2"}.get(at.name, "")

    patches = [(train, "sample_dialogues", "sampling"), (train, "correctness", "reward"), (train, "policy_loss", "update"),
               (train, "supervised_loss", "update"), (torch.Tensor, "backward", "update"), (GPT, "hidden", "hidden")]  # fmt: skip
    kept = [(owner, name, getattr(owner, name)) for owner, name, _ in patches] + [(train, "log_step", train.log_step)]
    wall = time.perf_counter()
    with tempfile.TemporaryDirectory() as out:
        c = train.Config(out=out, base_steps=3 * steps, own_from=0.3, stage1_steps=steps, stage2_steps=steps, report=False)
        for owner, name, part in patches:
            setattr(owner, name, timed(part, getattr(owner, name)))
        train.log_step = log_step
        argv, sys.argv = sys.argv, ["train.py", f"--out={out}", "--report=false", f"--base_steps={c.base_steps}",
                                    f"--stage1_steps={steps}", f"--stage2_steps={steps}"]  # fmt: skip
        train.main()
        sys.argv = argv
        for owner, name, original in kept:
            setattr(owner, name, original)
        wall = time.perf_counter() - wall
        model, c = train.load_model(Path(out) / "default" / "base.pt", torch.device("cpu"))
        start = time.perf_counter()
        evaluate(model, c, held_out_of(c, problems))
        evaluation = (time.perf_counter() - start) / problems
    counts = {"base": 3 * steps, "stage1": steps, "stage2": steps}
    planned = {"base": train.Config.base_steps, "stage1": train.Config.stage1_steps, "stage2": train.Config.stage2_steps}
    names = ["sampling", "reward", "reference", "update"]
    paces = {name: [spent.get((name, part), 0.0) / counts[name] for part in names] for name in counts}  # seconds a step
    rows = [[n, *(f"{1000 * p:.0f}" for p in pace), f"{sum(pace) * planned[n]:.0f}"] for n, pace in paces.items()]
    text = markdown(["stage", *(f"{part}, ms a step" for part in names), "seconds for the default's steps"], rows)
    rest = wall - sum(spent.values())
    text += f"\n\nAll else in that short run (demonstrations, optimizer, files): {100 * rest / wall:.0f} % of its {wall:.0f} s. "
    return text + f"Evaluation, two greedy turns: {1000 * evaluation:.1f} ms a problem."


# ------------------------------------------------------------------------------------------------------ all of it


def machine_name() -> str:
    with contextlib.suppress(OSError, StopIteration):
        cpu = next(line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name"))
        return f"{cpu.split(':')[1].strip()}, {torch.get_num_threads()} threads, torch {torch.__version__}"
    return f"{platform.processor() or platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--quick", action="store_true", help="a smoke test")
    parser.add_argument("--peak", choices=("ours", "straight"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.peak:
        return print_peak(args.peak)
    started, runs, quick = time.time(), 2 if args.quick else 5, args.quick
    limit = limits(5 * runs, 512 if quick else 2048)  # a limit that was measured too low flatters all shares
    toy, gpt2 = dict(name="toy", config=TOY, prompt=8, new=16, runs=runs), dict(name="GPT-2 124M shape", config=GPTConfig.gpt2(),
                batch=16, prompt=16, new=8, runs=runs)  # fmt: skip
    cases = [toy | dict(batch=32, ragged=False, plain=True), toy | dict(batch=32, ragged=True),
             toy | dict(batch=256, ragged=False, plain=not quick, early=True)]  # fmt: skip
    if not quick:
        cases += [toy | dict(batch=256, ragged=True), gpt2 | dict(ragged=False, early=True), gpt2 | dict(ragged=True),
                  gpt2 | dict(ragged=False, dtype=torch.bfloat16, name="the same, bfloat16"),
                  dict(name="Qwen 0.5B shape", config=QWEN, batch=16, prompt=8, new=3, runs=3, ragged=False)]  # fmt: skip
    sampled = bench_sampling(limit, cases)
    cases = [("toy", TOY, "muon", 64 if quick else 128, 40, runs)]
    cases += [] if quick else [("GPT-2 124M shape", GPTConfig.gpt2(), "adamw", 8, 256, 3)]  # as the presets have it
    updates = bench_update(limit, cases)
    peaks = {} if quick else {way: peak_of(way) for way in ("ours", "straight")}
    grown = growth(runs, quick)
    parts = parts_of_default_run(2 if quick else 8, 50 if quick else 500)
    whole = WIDE[1] * WIDE[2] * WIDE[0].vocab_size * 4 / 2**30
    peak, own, low, copy = (f"{limit[k] / 1e9:.0f}" for k in ("torch.float32", "torch torch.float32", "torch.bfloat16", "bytes"))
    text = f"""# Benchmark

Made by `make bench` on {machine_name()}, in {(time.time() - started) / 60:.0f} minutes.
Medians of {runs} runs (0.5B, GPT-2's update: 3), fastest and slowest in brackets. Peak of a matrix product: {peak} GFLOP/s in
float32 (torch's own: {own}), {low} in bfloat16; a copy moves {copy} GB/s.

## Sampling, two turns

{sampling_table(sampled)}

The same weights, prompts, lengths and sampling; transformers' keys and values are carried over to turn 2, too. Half ends early:
the time when no row ends over the time when half of the rows end their turns at the second token.

## Update: loss, backward pass, step

{updates}

The share counts the FLOPs that are needed: one forward pass of policy and reference, one backward pass, the head at the sampled
tokens only. """
    if peaks:
        text += f"At a vocabulary of 151,936 one float32 tensor of all logits, 16 x 64 tokens, is {whole:.2f} GiB: "
        text += f"an update takes {peaks['ours']:.2f} GiB, the straightforward form {peaks['straight']:.2f} GiB."
    text += f"\n\n## Growth\n\n![Cost against size](bench.png)\n\n{slopes(grown)}\n\n## The default run by part\n\n{parts}\n"
    print(text)
    if not quick:
        (RESULTS / "bench.md").write_text(text)
        content = {"machine": machine_name(), "limits": limit, "sampling": sampled, "peak_GiB": peaks, "growth": grown}
        (RESULTS / "bench.json").write_text(json.dumps(content, indent=1) + "\n")
        draw(grown, machine_name())


if __name__ == "__main__":
    main()
