"""Puts the measured figures into the handouts, between the comments `figures` and `end` of each page.

python course/fill.py                   from course/results.json
python course/fill.py --run=FOLDER      trains all runs and bugs first, but not those that FOLDER has
"""

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from bugs import SILENT, plant
from make import HERE, HUNTED, ROOT, copy_project
from runs import curve

RUNS = json.loads((HERE / "runs.json").read_text(encoding="utf-8"))  # name -> title, words
RESULTS = HERE / "results.json"
BLOCK = re.compile(r"(<!-- figures -->\n).*?(<!-- end -->)", re.DOTALL)
ODDS = {"plain1": 1, "nostage1": 1, "score": 0.3}  # A4: run -> its KL weight of turn 1
SHOWN = {
    "A2": ["score", "gamma1"],
    "A3": ["score", "plain1", "plain03", "plain01", "nostage1", "plenty", "weight11"],
    "A4": ["score", "free"],
}


def command(name: str) -> str:
    return f"python train.py {RUNS[name][1]} --report=false"


def run(tree: Path, *words: str) -> str:
    return subprocess.run(
        [sys.executable, *words], cwd=tree, capture_output=True, text=True, check=True
    ).stdout


def run_all(tree: Path) -> dict:
    """Each run's curve, seconds of processor time, and Acc@t1 and Acc@t2 on 1,000 new problems."""
    results, base = {}, str(tree / "out/base/base.pt")
    for name in RUNS:
        folder, before = tree / "out" / name, sum(os.times()[2:4])  # of children, user and system
        if not (folder / "seconds").exists():
            run(tree, *command(name).split()[1:])
            (folder / "seconds").write_text(f"{sum(os.times()[2:4]) - before:.0f}")
        paths = [folder / f"{stage}.pt" for stage in ("stage2", "stage1", "base")]
        path = next(str(path) for path in paths if path.exists())
        m = json.loads(run(tree, "eval.py", path, "--n=1000", "--json"))
        greedy = [round(100 * m[key], 1) for key in ("acc_t1", "acc_t2")]
        found = {"seconds": int((folder / "seconds").read_text()), "greedy": greedy, "curve": curve(folder)}
        if name in ODDS:  # by the program that stands in the handout
            code = (HERE / "A4.md").read_text(encoding="utf-8").split("```python\n")[1]
            found["odds"] = json.loads(run(tree, "-c", code.split("```")[0], str(ODDS[name]), base, path))
        results[name] = found
    return results


def run_bugs(tree: Path) -> dict:
    """The curves of three healthy runs with seeds and bases of their own and of each bug, in means of ten."""
    curves, seeds = {}, {"healthy 3": 2, "healthy 2": 1, "healthy 1": 0}
    for name in [*seeds, *SILENT]:
        more = f"--seed={seeds.get(name, 0)}", "--overwrite", f"--name={name}"
        if not (tree / "out" / name / "stage2.pt").exists():
            if name in seeds:
                run(tree, *command("easy").split()[1:], *more[:2])
            else:
                plant(name, tree)
            run(tree, *command("hunted").split()[1:], *more)
        curves[name] = curve(tree / "out" / name, width=10)
        for file in HUNTED:
            shutil.copy(ROOT / file, tree)
    return curves


def run_table(results: dict, names: list[str]) -> str:
    lines = ["| run | updates | turn 1 → turn 2, sampled | changed | KL 1, KL 2 | new problems, greedy |"]
    lines += ["|---|---|---|---|---|---|"]
    for name in names:
        points, greedy = results[name]["curve"], results[name]["greedy"]
        end_of_stage1 = sum(point["stage"] == "stage1" for point in points) - 1
        for i in sorted({0, len(points) - 1, max(end_of_stage1, 0)}):
            p, new = points[i], "{:.0f} → {:.0f} %".format(*greedy) if i == len(points) - 1 else ""
            title, when = "" if i else RUNS[name][0], f"{20 * i + 1} to {20 * i + 20}"
            cells = [title, when, f"{p['acc_t1']:.0f} → {p['acc_t2']:.0f} %", f"{p['change_rate']:.0f} %"]
            lines.append("| " + " | ".join([*cells, f"{p['kl_t1']:.2f}, {p['kl_t2']:.2f}", new]) + " |")
    return "\n".join(lines)


def odds_table(results: dict) -> str:
    lines = ["| run | problems | the base | predicted | measured |", "|---|---|---|---|---|"]
    for name in ODDS:
        for kind, values in results[name]["odds"].items():
            cells = [
                RUNS[name][0].partition(",")[0] + f", β {ODDS[name]}",
                kind,
                *(f"{x:.0f} %" for x in values),
            ]
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def time_table(results: dict) -> str:
    lines = ["| run | command | seconds |", "|---|---|---|"]
    lines += [f"| {RUNS[name][0]} | `{command(name)}` | {results[name]['seconds']} |" for name in RUNS]
    return "\n".join([*lines, f"| all | | {sum(results[name]['seconds'] for name in RUNS)} |"])


def blocks(results: dict) -> dict[str, list[Callable[[], str]]]:
    """What fills the blocks of each file, in their order."""
    made = {f"{name}.md": [lambda names=names: run_table(results, names)] for name, names in SHOWN.items()}
    made["A4.md"].append(lambda: odds_table(results))
    return made | {"README.md": [lambda: time_table(results)]}


def filled(text: str, makers: list[Callable[[], str]]) -> str:
    """The text with its blocks made anew. ValueError if it has more or fewer of them."""
    if len(BLOCK.findall(text)) != len(makers):
        raise ValueError(f"{len(makers)} blocks between <!-- figures --> and <!-- end --> were expected")
    values = iter(makers)
    return BLOCK.sub(lambda block: f"{block[1]}{next(values)()}\n{block[2]}", text)


def main() -> None:
    if sys.argv[1:]:
        tree = Path(sys.argv[1].removeprefix("--run="))
        if not tree.exists():
            copy_project(tree)
        for path, found in ((RESULTS, run_all(tree)), (HERE / "curves.json", run_bugs(tree))):
            lines = [f"{json.dumps(name)}: {json.dumps(x)}" for name, x in found.items()]
            path.write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")
    for file, makers in blocks(json.loads(RESULTS.read_text(encoding="utf-8"))).items():
        path = HERE / file
        path.write_text(filled(path.read_text(encoding="utf-8"), makers), encoding="utf-8")


if __name__ == "__main__":
    main()
