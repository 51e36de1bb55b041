"""The report of a run as text: tables of the metrics, results.json, report.md. page/ makes report.html."""

import dataclasses
import json
import math
from itertools import zip_longest
from pathlib import Path

from data import Problem, read_rows
from engine.options import require

FAILURES = ("truncated", "unparsable", "timeout", "unjudged")  # no answer to compare: see rewards.py
COLUMNS = {
    "acc_t1": "Acc@t1",
    "acc_t2": "Acc@t2",
    "delta": "Δ",
    "i_to_c": "i→c",
    "c_to_i": "c→i",
    "fix_rate": "fix rate",
    "change_rate": "changed",
}
KINDS = {(0, 1): "corrected", (1, 0): "spoiled", (1, 1): "kept", (0, 0): "missed"}  # first and second attempt


def write_report(folder: Path, c, results: dict, transcripts: list) -> None:
    """Writes results.json and report.md. `results`: each checkpoint's metrics, by name."""
    (folder / "results.json").write_text(json.dumps(without_nan(results), indent=1) + "\n", encoding="utf-8")
    rows = read_log(folder)
    minutes = rows[-1]["seconds"] / 60 if rows else 0
    text = report_text(c, results, minutes, transcripts)
    (folder / "report.md").write_text(text, encoding="utf-8")


def read_log(folder: Path) -> list[dict]:
    """The rows of a run's metrics.jsonl. ValueError if it is missing, or names a row that can't be right."""
    path = folder / "metrics.jsonl"
    require(path.is_file(), f"{folder} has no metrics.jsonl: give the folder of a run of train.py")
    no_steps = path.stat().st_size == 0  # a run that only evaluates what it starts from
    return [] if no_steps else [row for _, row in read_rows(path, ("stage", "step", "seconds"))]


def report_text(c, results: dict, minutes: float, transcripts: list) -> str:
    last = list(results)[-1]
    changed = {f.name: getattr(c, f.name) for f in dataclasses.fields(c) if getattr(c, f.name) != f.default}
    size = "" if c.test_data else f"size {c.size}, "
    accuracies = [[name, *map(percent, r["greedy"]["acc"])] for name, r in results.items()]
    failures = [[name, *(percent(r["greedy"][k]) for k in FAILURES)] for name, r in results.items()]
    # The fence below is of tildes, because code in a dialogue may have a fence of its own.
    dialogues = "\n".join(transcript(*t) for t in mixed(transcripts, 10))
    return f"""# {c.name}: {c.task}, {size}seed {c.seed}

Settings other than the defaults: {changed or "none"}. Training took {minutes:.1f} minutes.

Percent of {results[last]["greedy"]["n"]} held-out problems ± one standard error. Greedy, or sampled at
temperature 1. The third row is greedy on the problems for training: who is much better there has memorised.

{table(results)}

## Accuracy after each attempt (greedy)

{markdown(["checkpoint", *range(1, len(accuracies[-1]))], accuracies)}

## Does turn 2 read turn 1?

Accuracy of turn 2 on problems with a wrong first attempt, by what stands in the place of that attempt: the
model's own attempt, its attempt at another problem and, where the task can make them, an unrelated wrong
attempt, a near miss, the right attempt, and its own attempt with a true check. `true_checks` is the share of
its own wrong attempts whose check is true. `drift` is the KL of the first attempt to the base's, in nats.

{swap_table(results)}

## Attempts without an answer to compare (greedy)

{markdown(["checkpoint", *FAILURES], failures)}

[report.html](report.html) has the learning curves, and dialogues token by token.

## Transcripts of {last}

~~~~
{dialogues}
~~~~
"""


def percent(share: float) -> str:
    return f"{100 * share:.1f}"


def table(results: dict) -> str:
    """Markdown: the metrics of each checkpoint in percent ± one standard error."""
    rows = []
    for name, result in results.items():
        for how in ("greedy", "sampled", "training"):
            m = result[how]
            cells = [f"{100 * m[k]:{'+' * (k == 'delta')}.1f} ± {percent(m['se'][k])}" for k in COLUMNS]
            rows.append([name, "greedy, training" if how == "training" else how, *cells])
    return markdown(["checkpoint", "how", *COLUMNS.values()], rows)


def swap_table(results: dict) -> str:
    rows = []
    for name, result in results.items():
        n, *shares = result["swap"]["wrong_first"].values()
        rows.append([name, n, *map(percent, shares), f"{result['drift_kl']:.2f}"])
    return markdown(["checkpoint", *result["swap"]["wrong_first"], "drift"], rows)


def metrics_text(metrics: dict) -> str:
    """The metrics of a checkpoint, a line each, and the shares of attempts without an answer to compare."""
    lines = []
    for name in [name for name in COLUMNS if name in metrics]:
        error = f" ± {percent(metrics['se'][name])}" if "se" in metrics else ""
        lines.append(f"{COLUMNS[name]:>10} {percent(metrics[name]):>6}{error} %")
    if any(metrics[name] for name in FAILURES):
        lines.append(" ".join(f"{name} {percent(metrics[name])} %" for name in FAILURES))
    lines.append(f"accuracy after each attempt: {' '.join(map(percent, metrics['acc']))} %")
    lines.append(f"(n = {metrics['n']}; ± is one standard error over these problems)")
    return "\n".join(lines)


def save_transcripts(path: str, transcripts: list) -> None:
    """Writes (problem, texts, correct) as JSONL, which `eval.py --repair` reads."""
    rows = [
        {"prompt": problem.prompt, "answer": problem.answer, "attempts": texts, "right": correct}
        for problem, texts, correct in transcripts
    ]
    Path(path).write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def markdown(head: list, rows: list[list]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(map(str, cells))} |" for cells in lines)


def without_nan(value):
    """The same with None in the place of each NaN, which JSON does not know."""
    if isinstance(value, dict):
        return {k: without_nan(v) for k, v in value.items()}
    if isinstance(value, list):
        return [without_nan(v) for v in value]
    return None if isinstance(value, float) and math.isnan(value) else value


def mixed(transcripts: list, n: int) -> list:
    """`n` of the transcripts, of each of KINDS in turn, as far as there are any."""
    kinds = [[t for t in transcripts if (t[2][0], t[2][:2][-1]) == kind] for kind in KINDS]
    return [t for row in zip_longest(*kinds) for t in row if t][:n]


def transcript(problem: Problem, texts: list[str], correct: list[bool]) -> str:
    """A dialogue for people to read: one line if its texts are short, else a paragraph for each turn."""
    attempts = [(text, "(right)" if ok else "(wrong)") for text, ok in zip(texts, correct, strict=True)]
    everything = problem.prompt + "".join(texts)
    if len(everything) < 200 and "\n" not in everything:
        kind = [KINDS[tuple(correct[:2])]] * (len(texts) > 1)
        return f"{problem.prompt:>12}   " + "   ".join([" ".join(a) for a in attempts] + kind)
    turns = [f"--- attempt {k} {verdict}\n{text}" for k, (text, verdict) in enumerate(attempts, 1)]
    return "\n".join([f"--- problem\n{problem.prompt}", *turns, "---"])
