"""The silent bug of a student: a tree with one planted bug, and its learning curves beside healthy ones.

    python course/bug.py --student=ID --to=../score-A6

The bug is chosen by a hash of ID. Nothing crashes: the program trains, and something is wrong. The new folder
has the tree, curves.json and, with matplotlib, curves.png: the run with the bug, and three healthy runs. The
bug's tests are in the tree, too, and one of them is red.

    python course/bug.py --run          makes course/curves.json anew: about five minutes
"""

import argparse
import hashlib
import json
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from assignments import edit, edited
from make import copy_project
from runs import COLUMNS, arguments, curve

HERE = Path(__file__).resolve().parent
CURVES = HERE / "curves.json"
VARIANTS = (  # names of edits; the answers say what shows each
    "joint-return", "stage1-betas-swapped", "stage2-from-the-base", "policy-as-reference",
    "reference-samples", "grouped-by-own-outcome", "stage1-rewards-turn-1", "mask-with-prompt-token",
    "no-bonus", "constant-rate", "baseline-includes-itself", "kl-score-term-dropped",
)  # fmt: skip
HEALTHY = {"healthy 1": 0, "healthy 2": 1, "healthy 3": 2}  # name -> seed


def variant_of(student: str) -> str:
    return VARIANTS[int(hashlib.sha256(student.encode()).hexdigest(), 16) % len(VARIANTS)]


def plant(name: str, tree: Path) -> None:
    m = edit(name)
    path = tree / m.file
    path.write_text(edited(m, path.read_text(encoding="utf-8")), encoding="utf-8")


def run_variants() -> None:
    """Writes the learning curve of each variant and of the healthy runs, all from the same base."""
    curves = {}
    with tempfile.TemporaryDirectory() as folder:
        tree = Path(folder) / "tree"
        copy_project(tree)
        run(tree, arguments("base"))
        for name in [*HEALTHY, *VARIANTS]:
            print(name, flush=True)
            copy = Path(folder) / "copy"
            shutil.copytree(tree, copy)
            if name in VARIANTS:
                plant(name, copy)
            run(copy, [*arguments("score"), f"--seed={HEALTHY.get(name, 0)}"])
            curves[name] = curve(copy / "out" / "score", width=5)
            CURVES.write_text(as_text(curves), encoding="utf-8")
            shutil.rmtree(copy)


def run(tree: Path, command: list[str]) -> None:
    """RuntimeError shows the end of what the run said."""
    done = subprocess.run(command, cwd=tree, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}: {(done.stdout + done.stderr)[-1000:]}")


def make_hunt(student: str, to: Path) -> None:
    """The folder that a student gets."""
    if to.exists():
        raise ValueError(f"{to} exists: give another folder with --to, or delete it")
    name, curves = variant_of(student), json.loads(CURVES.read_text(encoding="utf-8"))
    shown = {"with a bug": curves[name], **{title: curves[title] for title in HEALTHY}}
    copy_project(to)
    plant(name, to)
    shutil.copy(HERE / "A6.md", to / "TASK.md")
    shutil.copy(HERE / "runs.py", to / "curves.py")
    (to / "curves.json").write_text(json.dumps(shown, indent=1) + "\n", encoding="utf-8")
    try:
        draw(shown, to / "curves.png")
    except ImportError:
        print("no picture: pip install matplotlib brings it; curves.json has the numbers")


def draw(curves: dict[str, list[dict]], path: Path) -> None:
    """A panel for each column: the healthy runs in grey, the run with the bug in red."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(2, 3, figsize=(9.5, 5), layout="constrained")
    units = {"acc_t1": "percent right", "acc_t2": "percent right", "change_rate": "percent"}
    for axis, (column, title) in zip(axes.flat, COLUMNS.items(), strict=True):
        for name, points in curves.items():
            bug, values = not name.startswith("healthy"), [point[column] for point in points]
            style = dict(color="tab:red", lw=2, zorder=3) if bug else dict(color="0.6", lw=1)
            axis.plot(range(5, 5 * len(values) + 1, 5), values, label="with a bug" if bug else None, **style)
        axis.plot([], [], color="0.6", label="healthy, three seeds")
        axis.set_title(f"{title} ({units.get(column, 'nats' if 'KL' in title else 'norm')})", fontsize=10)
        stage1 = sum(point["stage"] == "stage1" for point in points)
        axis.axvline(5 * stage1, color="0.8", ls=":")  # Stage II begins
        if column == "grad_norm":
            axis.set_yscale("symlog")
        elif column.startswith("kl"):
            axis.set_ylim(bottom=-0.05)
        else:
            axis.set_ylim(0, 102)
    axes[1, 0].set_xlabel("update (Stage II begins at the dotted line)", fontsize=9)
    axes[0, 0].legend(fontsize=8, frameon=False)
    figure.savefig(path, dpi=90)
    pyplot.close(figure)


def main() -> None:
    layout = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=layout)
    parser.add_argument("--student", help="any text that names the student")
    parser.add_argument("--to", type=Path, help="the folder to make")
    parser.add_argument("--run", action="store_true", help="for teachers: make course/curves.json anew")
    o = parser.parse_args()
    try:
        if o.run:
            run_variants()
        elif o.student and o.to:
            make_hunt(o.student, o.to)
            print(f"{o.to} is ready: read {o.to / 'TASK.md'}, then look at {o.to / 'curves.png'}")
        else:
            parser.error("give --student=ID and --to=FOLDER")
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")


def as_text(curves: dict[str, list[dict]]) -> str:
    """JSON with a line for each point."""
    parts = []
    for name, points in curves.items():
        lines = ",\n".join(f"  {json.dumps(point)}" for point in points)
        parts.append(f"{json.dumps(name)}: [\n{lines}\n ]")
    return "{\n " + ",\n ".join(parts) + "\n}\n"


if __name__ == "__main__":
    main()
