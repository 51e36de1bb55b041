"""Puts the measured figures into the handouts.

    python course/fill.py            from course/results.json
    python course/fill.py --run      trains all runs of the course first: two minutes on an idle machine

They go between the comments `figures` and `end` of each page.
"""

import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from statistics import fmean

from assignments import ASSIGNMENTS, MENDED_POINTS
from make import copy_project
from runs import RUNS, arguments, command, curve

HERE = Path(__file__).resolve().parent
RESULTS = HERE / "results.json"
BLOCK = re.compile(r"(<!-- figures -->\n).*?(<!-- end -->)", re.DOTALL)
TITLES = {
    "base": "the base, which all runs start from",
    "score": "SCoRe: Stage I, then Stage II",
    "gamma0": "Stage II alone, γ = 0",
    "gamma1": "Stage II alone, γ = 1",
    "plain": "plain RL: Stage II without the bonus",
    "rloo": "SCoRe with the baseline `rloo`",
    "free": "Stage I without the hold on turn 1",
}
SHOWN = {"A2": ["gamma0", "gamma1"], "A3": ["score", "plain", "rloo"], "A4": ["score", "free"]}


def run_all() -> dict:
    """Each run's curve and the seconds of processor time that it took, by name."""
    results = {}
    with tempfile.TemporaryDirectory() as folder:
        tree = Path(folder) / "tree"
        copy_project(tree)
        for name in RUNS:
            before = sum(os.times()[2:4])
            subprocess.run(arguments(name), cwd=tree, check=True, stdout=subprocess.DEVNULL)
            spent = round(sum(os.times()[2:4]) - before)  # of processor time: of children, user and system
            results[name] = {"seconds": spent, "curve": curve(tree / "out" / name)}
            print(f"{name}: {spent} s", flush=True)
    return results


def rows_of(run: dict) -> list[tuple[str, dict]]:
    """The first ten steps of a run, and the last twenty of each stage."""
    points = run["curve"]
    rows = [("first 10 steps", points[0])]
    for stage, title in (("stage1", "end of Stage I"), ("stage2", "end of Stage II")):
        last = [point for point in points if point["stage"] == stage][-2:]
        if last:
            names = [name for name in last[0] if name not in ("stage", "step")]
            rows.append((title, {name: fmean(point[name] for point in last) for name in names}))
    return rows


def run_table(results: dict, names: list[str]) -> str:
    lines = ["| run | when | turn 1 right | turn 2 right | changed | KL of turn 1 | KL of turn 2 |"]
    lines += ["|---|---|---|---|---|---|---|"]
    for name in names:
        for title, p in rows_of(results[name]):
            cells = [f"{p[key]:.0f} %" for key in ("acc_t1", "acc_t2", "change_rate")]
            cells += [f"{p[key]:.2f}" for key in ("kl_t1", "kl_t2")]
            lines.append("| " + " | ".join([TITLES[name], title, *cells]) + " |")
    return "\n".join(lines)


def time_table(results: dict) -> str:
    lines = ["| run | command | seconds |", "|---|---|---|"]
    lines += [f"| {TITLES[name]} | `{command(name)}` | {results[name]['seconds']} |" for name in RUNS]
    total = sum(results[name]["seconds"] for name in RUNS)
    return "\n".join([*lines, f"| all | | {total} |"])


def points_table() -> str:
    lines = ["| | title | functions to write | code | own tests, fixed bug | answers | points |"]
    lines += ["|---|---|---|---|---|---|---|"]
    total = 0
    for name, a in ASSIGNMENTS.items():
        code = sum(check.points for check in a.checks)
        more = a.automatic - code + (MENDED_POINTS if name == "A6" else 0)
        total += code + more + a.written
        holes = ", ".join(f"`{hole.partition(':')[2]}`" for hole in a.holes) or "–"
        cells = [f"[{name}]({name}.md)", a.title, holes, *(str(n or "–") for n in (code, more, a.written))]
        lines.append("| " + " | ".join([*cells, str(code + more + a.written)]) + " |")
    return "\n".join([*lines, f"| | | | | | | {total} |"])


def blocks(results: dict) -> dict[str, list[Callable[[], str]]]:
    """What fills the blocks of each file, in their order."""
    filled = {f"{name}.md": [lambda names=names: run_table(results, names)] for name, names in SHOWN.items()}
    return filled | {"README.md": [points_table, lambda: time_table(results)]}


def filled(text: str, makers: list[Callable[[], str]]) -> str:
    """The text with its blocks made anew. ValueError if it has more or fewer of them."""
    if len(BLOCK.findall(text)) != len(makers):
        raise ValueError(f"{len(makers)} blocks between <!-- figures --> and <!-- end --> were expected")
    values = iter(makers)
    return BLOCK.sub(lambda block: f"{block[1]}{next(values)()}\n{block[2]}", text)


def main() -> None:
    if sys.argv[1:] == ["--run"]:
        RESULTS.write_text(json.dumps(run_all(), indent=1) + "\n", encoding="utf-8")
    elif sys.argv[1:]:
        sys.exit(__doc__)
    for file, makers in blocks(json.loads(RESULTS.read_text(encoding="utf-8"))).items():
        path = HERE / file
        path.write_text(filled(path.read_text(encoding="utf-8"), makers), encoding="utf-8")


if __name__ == "__main__":
    main()
