"""Puts the measured figures into the handouts, between the comments `figures` and `end` of each page.

python course/fill.py            from course/results.json
python course/fill.py --run      trains all runs of the course first: ten minutes on an idle core
python course/fill.py --bugs     trains the bugs of A6 and writes course/curves.json: another ten
"""

import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from assignments import ASSIGNMENTS
from bugs import SILENT, plant
from make import HERE, HUNTED, copy_project
from runs import RUNS, arguments, command, curve, odds

RESULTS = HERE / "results.json"
BLOCK = re.compile(r"(<!-- figures -->\n).*?(<!-- end -->)", re.DOTALL)
ODDS = {"plain1": 1, "nostage1": 1, "score": 0.3}  # A4: run -> its KL weight of turn 1
SHOWN = {
    "A2": ["score", "gamma1"],
    "A3": ["score", "plain1", "plain03", "plain01", "nostage1", "plenty", "weight11"],
    "A4": ["plain1", "nostage1", "score", "free"],
}


def trained(tree: Path, name: str, words: list[str]) -> float:
    """Trains in a tree. Returns the seconds of processor time. RuntimeError shows the end of what it said."""
    before = sum(os.times()[2:4])  # of children, user and system
    done = subprocess.run(words, cwd=tree, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{name}: {(done.stdout + done.stderr)[-1000:]}")
    print(f"{name}: {sum(os.times()[2:4]) - before:.0f} s", flush=True)
    return sum(os.times()[2:4]) - before


def run_all(tree: Path) -> dict:
    """Each run's curve, its seconds, and the metrics of its last checkpoint on new problems, by name."""
    results = {}
    for name in RUNS:
        seconds = round(trained(tree, name, arguments(name)))
        results[name] = {"seconds": seconds, **measured(tree, name)}
    return results


def measured(tree: Path, name: str) -> dict:
    """The curve of a run, and Acc@t1 and Acc@t2 of its last checkpoint on 1,000 new problems, in percent."""
    folder = tree / "out" / name
    path = next(p for p in (folder / f"{stage}.pt" for stage in ("stage2", "stage1", "base")) if p.exists())
    words = [sys.executable, "eval.py", str(path), "--n=1000", "--json"]
    m = json.loads(subprocess.run(words, cwd=tree, capture_output=True, text=True, check=True).stdout)
    found = {"curve": curve(folder), "greedy": [round(100 * m[key], 1) for key in ("acc_t1", "acc_t2")]}
    if name in ODDS:
        found["odds"] = odds(ODDS[name], str(tree / "out/base/base.pt"), str(path))
    return found


def run_bugs(tree: Path) -> dict:
    """The curves of three healthy runs with seeds of their own and of each bug, means of ten updates."""
    curves = {}
    jobs = [(f"healthy {n}", n - 1) for n in (3, 2, 1)] + [(bug, 0) for bug in SILENT]
    for name, seed in jobs:
        kept = {file: (tree / file).read_text(encoding="utf-8") for file in HUNTED}
        more = [f"--seed={seed}", "--overwrite"]
        if name in SILENT:
            plant(name, tree)
        else:
            trained(tree, f"the base of {name}", arguments("easy") + more)
        trained(tree, name, arguments("hunted") + more)
        curves[name] = curve(tree / "out" / "hunted", width=10)
        for file, text in kept.items():
            (tree / file).write_text(text, encoding="utf-8")
    return curves


def run_table(results: dict, names: list[str]) -> str:
    lines = ["| run | updates | turn 1 → turn 2, sampled | changed | KL 1, KL 2 | on new problems, greedy |"]
    lines += ["|---|---|---|---|---|---|"]
    for name in names:
        points, greedy = results[name]["curve"], results[name]["greedy"]
        for i in sorted({0, len(points) - 1, sum(point["stage"] == "stage1" for point in points) - 1} - {-1}):
            p, last = points[i], i == len(points) - 1
            when = f"{30 * i + 1} to {30 * i + 30}"
            both = f"{p['acc_t1']:.0f} → {p['acc_t2']:.0f} %"
            new = "{:.0f} → {:.0f} %".format(*greedy) if last else ""
            cells = [RUNS[name][0] if not i else "", when, both, f"{p['change_rate']:.0f} %"]
            lines.append("| " + " | ".join([*cells, f"{p['kl_t1']:.2f}, {p['kl_t2']:.2f}", new]) + " |")
    return "\n".join(lines)


def odds_table(results: dict) -> str:
    lines = ["| run | problems | the base | predicted | measured |", "|---|---|---|---|---|"]
    for name in ODDS:
        for kind, values in results[name]["odds"].items():
            cells = [RUNS[name][0], kind, *(f"{x:.0f} %" for x in values)]
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def time_table(results: dict) -> str:
    lines = ["| run | command | seconds |", "|---|---|---|"]
    lines += [f"| {RUNS[name][0]} | `{command(name)}` | {results[name]['seconds']} |" for name in RUNS]
    return "\n".join([*lines, f"| all | | {sum(results[name]['seconds'] for name in RUNS)} |"])


def points_table() -> str:
    lines = ["| | title | functions to write | code | own tests, mended bug | answers | points | hours |"]
    lines += ["|---|---|---|---|---|---|---|---|"]
    for name, a in ASSIGNMENTS.items():
        holes = ", ".join(f"`{hole.partition(':')[2]}`" for hole in a.holes) or "–"
        numbers = (a.points - a.own - a.written or "–", a.own or "–", a.written, a.points, a.hours)
        lines.append("| " + " | ".join([f"[{name}]({name}.md)", a.title, holes, *map(str, numbers)]) + " |")
    total = [sum(getattr(a, key) for a in ASSIGNMENTS.values()) for key in ("points", "hours")]
    return "\n".join([*lines, f"| | | | | | | {total[0]} | {total[1]} |"])


def blocks(results: dict) -> dict[str, list[Callable[[], str]]]:
    """What fills the blocks of each file, in their order."""
    made = {f"{name}.md": [lambda names=names: run_table(results, names)] for name, names in SHOWN.items()}
    made["A4.md"].append(lambda: odds_table(results))
    return made | {"README.md": [points_table, lambda: time_table(results)]}


def filled(text: str, makers: list[Callable[[], str]]) -> str:
    """The text with its blocks made anew. ValueError if it has more or fewer of them."""
    if len(BLOCK.findall(text)) != len(makers):
        raise ValueError(f"{len(makers)} blocks between <!-- figures --> and <!-- end --> were expected")
    values = iter(makers)
    return BLOCK.sub(lambda block: f"{block[1]}{next(values)()}\n{block[2]}", text)


def main() -> None:
    if not set(sys.argv[1:]) <= {"--run", "--bugs"}:
        sys.exit(__doc__)
    with tempfile.TemporaryDirectory() as folder:
        for word, make_them, path in (
            ("--run", run_all, RESULTS),
            ("--bugs", run_bugs, HERE / "curves.json"),
        ):
            if word in sys.argv:
                copy_project(tree := Path(folder) / word)
                lines = [f"{json.dumps(name)}: {json.dumps(x)}" for name, x in make_them(tree).items()]
                path.write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")
    for file, makers in blocks(json.loads(RESULTS.read_text(encoding="utf-8"))).items():
        path = HERE / file
        path.write_text(filled(path.read_text(encoding="utf-8"), makers), encoding="utf-8")


if __name__ == "__main__":
    main()
