"""How fast a step is, its sampling and its update, beside transformers: writes bench.md and bench.json.

    python experiments/bench.py                    into experiments/results/; about ten minutes
    python experiments/bench.py --quick            few runs of the toy; writes no file
    python experiments/bench.py --device=cuda      on a GPU; writes no file, `make gpu` does that

It needs the extras: pip install -e '.[dev]'. On a CPU it takes one core.
"""

import argparse
import contextlib
import json
import platform
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # so that it runs without being installed

import train
from engine.build import held_out_of, make_environment, pick_device
from engine.checkpoints import open_run
from engine.cli import run_script
from engine.hf import save_pretrained
from engine.optim import make_optimizer, master_weights
from engine.report import markdown
from eval import evaluate
from experiments import plain_step
from experiments.memory import MODELS, estimate, in_own_process, peak_of_update, update, update_of
from model import GPT, GPTConfig
from rewards import turn_rewards
from rollout import sample_dialogues

RESULTS = Path(__file__).parent / "results"
TOY, WIDE, GPT2 = GPTConfig(100), GPTConfig(151936, tie_weights=True), MODELS["GPT-2 124M"]
FOLLOW_UP, NEW = [5, 6, 7], 12  # the request for turn 2, and how many tokens a turn has
TOKENIZER = SimpleNamespace(end_id=0, decode=lambda ids: "")


def now(device: torch.device) -> float:
    """A clock in seconds: the processor time of this process, which others hardly change; on a GPU, when its
    work is done, the time of day.
    """
    if device.type == "cpu":
        return time.process_time()
    torch.cuda.synchronize()
    return time.perf_counter()


def compare(what: str, amount: int, unit: str, ours: Callable, other: Callable, runs: int, device) -> dict:
    """A row of the table: the seconds of two functions, called in turns. The first call of each does not
    count. `amount` is how many of the unit a call makes.
    """
    seconds = np.empty((runs + 1, 2))
    for turn in range(runs + 1):
        for i, function in enumerate((ours, other)):
            start = now(device)
            function()
            seconds[turn, i] = now(device) - start
    row = {"what": what, "amount": amount, "unit": unit, "seconds": seconds[1:].tolist()}
    print(*cells(row), file=sys.stderr, flush=True)
    return row


def cells(row: dict) -> list[str]:
    """A row of `compare` for people: the median speeds, and the median, least and largest of n ratios."""
    ours, other = np.array(row["seconds"]).T
    speeds = [f"{row['amount'] / np.median(seconds):.0f} {row['unit']}/s" for seconds in (ours, other)]
    ratio = other / ours
    spread = f"{ratio.min():.2f} to {ratio.max():.2f}, n = {len(ratio)}"
    return [row["what"], *speeds, f"{np.median(ratio):.2f} ({spread})"]


# ---------------------------------------------------------------------------------- the three comparisons


def never_ending(config: GPTConfig, device: torch.device) -> GPT:
    """Random weights that almost never sample token 0, the end of turn: all rows get equally many tokens."""
    torch.manual_seed(0)
    with device:
        model = GPT(config)
    with torch.no_grad():
        model.embed.weight[:, 0] += 5  # so the first number of every hidden state is far above 0
        model.lm_head.weight[0, 0] = -200
    return model.requires_grad_(False)


def prompts_of(rows: int, vocab_size: int) -> list[list[int]]:
    return torch.randint(1, vocab_size, (rows, 8), generator=torch.Generator().manual_seed(0)).tolist()


def sampled(model: GPT, prompts: list[list[int]]):
    """Dialogues of two turns, each of NEW tokens."""
    generator = torch.Generator(model.embed.weight.device).manual_seed(0)
    return sample_dialogues(model, TOKENIZER, prompts, [FOLLOW_UP], NEW, 1.0, generator)


def in_transformers(model: GPT):
    """The same weights as a model of transformers, on the same device."""
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    with tempfile.TemporaryDirectory() as folder:
        save_pretrained(model, folder)
        twin = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    return twin.eval().to(model.embed.weight.device)


def sampling(name: str, config: GPTConfig, rows: int, runs: int, device, graph: bool = True) -> dict:
    """Sampling of two turns against transformers or, with graph=False, against ours without a CUDA graph."""
    model, prompts = never_ending(config, device), prompts_of(rows, config.vocab_size)
    twin = in_transformers(model)

    def ours() -> None:
        sampled(model, prompts)

    def other() -> None:
        if graph:
            plain_step.sample(twin, prompts, [0, *FOLLOW_UP], NEW)
            return
        with mock.patch("rollout.replayed", lambda model, cache: lambda ids: model.hidden(ids, cache)):
            ours()

    what = f"sampling, {name}, {rows} rows" + ("" if graph else ", against no graph")
    return compare(what, 2 * rows * NEW, "tokens", ours, other, runs, device)


def full_log_softmax(model, reference, ids, mask, temperature):
    """What train.token_scores returns, with both models' logits [B, T, V] at once."""
    log_p = (model(ids[:, :-1]).float() / temperature).log_softmax(-1)  # [B, T, V]
    with torch.no_grad():
        log_q = (reference(ids[:, :-1]).float() / temperature).log_softmax(-1)
    p, mask = log_p.exp(), mask[:, 1:]
    kl, entropy = (p * (log_p - log_q)).sum(-1), -(p * log_p).detach().sum(-1)
    return log_p.gather(2, ids[:, 1:, None])[:, :, 0][mask], kl[mask], entropy[mask]


def straight(function: Callable, *args):
    """function(*args), with a full log-softmax in the loss."""
    with mock.patch.object(train, "token_scores", full_log_softmax):
        return function(*args)


def updating(name: str, config: GPTConfig, rows: int, tokens: int, runs: int, device) -> dict:
    """An update, ours and with a full log-softmax."""
    case = config, torch.float32, 0, False, rows, tokens, device
    ours, other = update_of(*case), update_of(*case)
    what = f"update, {name}, {rows} x {tokens} tokens"
    return compare(what, rows * tokens, "tokens", ours, lambda: straight(other), runs, device)


def memory() -> str:
    """What an update takes beside what is always there, in words: ours, and with a full log-softmax."""
    case = WIDE, torch.float32, 0, False, 16, 64
    always = estimate(*case, 0)["always"]
    ways = in_own_process(peak_of_update, *case), in_own_process(straight, peak_of_update, *case)
    ours, full = (f"{(way - always) / 2**30:.2f} GiB" for way in ways)
    return f"""
The logits of 16 x 64 tokens of a vocabulary of 151,936 take 0.58 GiB. An update takes {ours} beside weights,
reference and AdamW's state, and {full} with a full log-softmax.
"""


def whole_step(rows: int, runs: int, device) -> dict:
    """Sample, score, update: ours, as in the loop of train.py, and that of plain_step.py."""
    model, reference = (never_ending(TOY, device) for _ in range(2))
    model.requires_grad_()
    twin, twins_reference = in_transformers(model), in_transformers(reference)
    prompts = prompts_of(rows, TOY.vocab_size)
    correct = (torch.rand(rows, 2, generator=torch.Generator().manual_seed(0)) < 0.5).to(device)
    optimizer = make_optimizer(model, master_weights(model, {}), None)
    fused = optimizer.defaults["fused"]
    plain = torch.optim.AdamW(twin.parameters(), betas=(0.9, 0.95), weight_decay=0.0, fused=fused)
    for group in (*optimizer.param_groups, *plain.param_groups):
        group["lr"] = 1e-6  # so small that the models go on to end no turn

    def ours() -> None:
        rollout = sampled(model, prompts)
        rewards = turn_rewards(correct, (1.0, 1.0), 10.0)
        advantage = train.advantages(rewards, 4)
        batch = {"ids": rollout.ids, "masks": rollout.masks, "advantages": advantage}
        update(model, reference, optimizer, batch)

    def other() -> None:
        request, micro = [0, *FOLLOW_UP], 32 if device.type == "cpu" else rows  # as micro_batches has it
        plain_step.step(twin, twins_reference, plain, prompts, request, NEW, correct, micro)

    return compare(f"a whole step, toy, {rows} rows", rows, "dialogues", ours, other, runs, device)


# ---------------------------------------------------------------------------------- the default run


def default_run(base_steps: int, updates: int, problems: int, device: torch.device) -> str:
    """Where the time of the default run goes, as Markdown. The base learns until its attempts end."""
    with tempfile.TemporaryDirectory() as out, contextlib.redirect_stdout(sys.stderr):
        none = dict(stage1_steps=0, stage2_steps=0, report=False)
        c, start = train.Config(out=out, device=str(device), base_steps=base_steps, **none), now(device)
        with open_run(c, "", train.stages) as (c, state):
            train.train(c, state)
        base = (now(device) - start) / base_steps
        policy, reference = (train.load_model(Path(out) / c.name / "base.pt", device)[0] for _ in range(2))
    env, stages, times = make_environment(c), train.stages(train.Config()), np.empty((updates, 2))
    optimizer = make_optimizer(policy, master_weights(policy, {}), None)
    for i in range(updates):
        start = now(device)
        batch, metrics, _ = train.rollout_batch(c, stages[-1], i, env, policy, reference)
        middle = now(device)
        update(policy, reference, optimizer, batch)
        times[i] = middle - start, now(device) - middle
    start, held_out = now(device), held_out_of(c, problems)
    evaluate(policy, c, held_out)
    evaluation = (now(device) - start) / problems
    sampling, learning = np.median(times, axis=0)
    steps, length = sum(stage.steps for stage in stages[1:]), f"{metrics['length']:.0f}"
    rows = [
        ["a step of the base", base, stages[0].steps],
        ["an update: sampling and judging", sampling, steps],
        ["an update: loss, backward pass and step", learning, steps],
    ]
    table = [[part, f"{1000 * once:.0f}", f"{once * n:.0f}"] for part, once, n in rows]
    pace = c.batch / (sampling + learning)
    return f"""{markdown(["part", "ms", "s for the default's steps"], table)}

An attempt had {length} tokens. So RL makes {pace:.0f} dialogues a second. Evaluation with two greedy turns
takes {1000 * evaluation:.1f} ms a problem."""


# ---------------------------------------------------------------------------------- all of it


def machine_name(device: torch.device) -> str:
    if device.type == "cuda":
        return f"{torch.cuda.get_device_name(device)}, torch {torch.__version__}"
    info = Path("/proc/cpuinfo")  # Linux has it
    text = info.read_text(encoding="utf-8") if info.exists() else ""
    cpu = text.partition("model name\t: ")[2].partition("\n")[0] or platform.machine()
    return f"one core of {cpu}, torch {torch.__version__}"


def measured(quick: bool, device: torch.device) -> dict:
    """The rows of all comparisons, and texts on memory and on the default run."""
    rows, last = (32 if quick else train.Config.batch), (2 if quick else 5, device)
    found = [whole_step(rows, *last), sampling("toy", TOY, rows, *last)]
    found += [updating("toy", TOY, rows, 36, *last)]
    if not quick:
        found += [sampling("toy", TOY, 32, *last), sampling("GPT-2's shape", GPT2, 16, 3, device)]
        found += [updating("toy with 151,936 tokens", WIDE, 16, 64, 3, device)]
    if device.type == "cuda":
        shapes = {"toy": TOY} if quick else {"toy": TOY, "GPT-2's shape": GPT2}
        found += [sampling(*shape, 16, *last, graph=False) for shape in shapes.items()]
    text = memory() if device.type == "cpu" and not quick else ""
    sizes = (40, 3, 100) if quick else (150, 10, 500)
    return {"rows": found, "memory": text, "default run": default_run(*sizes, device)}


def page(found: dict, machine: str) -> str:
    """The text of bench.md."""
    table = markdown(["what", "ours", "the other", "ratio"], [cells(row) for row in found["rows"]])
    return f"""# Benchmark

Made by `bench.py` on {machine}.
Ours and the other way ran in turns, while other programs used the machine. So trust the ratios, not the
speeds. On a CPU a second is one of processor time. A speed is a median. A ratio is the median over n turns,
with the least and the largest in brackets; above 1, ours is faster.

{table}

- A whole step samples, scores and updates. The other is `plain_step.py`: the same step with transformers and
  torch's AdamW, as a careful user would write it, with the same micro-batches.
- Sampling makes two turns of 12 tokens. The other is `generate` of transformers with the same weights and
  prompts. It, too, goes on in turn 2 with the keys and values of turn 1.
- An update is loss, backward pass and step. The other computes the logits of all tokens at once.
{found["memory"]}
## The default run by part

{found["default run"]}
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--quick", action="store_true", help="few runs of the toy; writes no file")
    parser.add_argument("--device", default="cpu", help="cpu or cuda; only a CPU's results are written")
    args = parser.parse_args()
    device = pick_device(args.device)
    torch.set_num_threads(1)
    found, machine = measured(args.quick, device), machine_name(device)
    text = page(found, machine)
    print(text)
    if not args.quick and device.type == "cpu":
        (RESULTS / "bench.md").write_text(text, encoding="utf-8")
        content = json.dumps({"machine": machine, **found}, indent=1)
        (RESULTS / "bench.json").write_text(content + "\n", encoding="utf-8")


if __name__ == "__main__":
    run_script(main)
