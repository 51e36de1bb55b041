"""Makes the folders of the course.

    python course/make.py A3 --to=../score-A3                     the project, the functions of A3 emptied
    python course/make.py A6 --student=NAME --to=../score-A6      the project with a bug, chosen by NAME
    python course/make.py --class=FOLDER --secret=FILE --names=FILE     for teachers: see README.md

Signatures and docstrings stay, and each body raises NotImplementedError. All else is real, so mistakes in
earlier assignments do no harm.
"""

import argparse
import ast
import csv
import json
import re
import secrets
import shutil
import sys
from pathlib import Path

from assignments import ASSIGNMENTS, what
from runs import COLUMNS

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
NOT_COPIED = (".*", "course", "tests", "experiments", "out", "build", "*.egg-info", "uv.lock", "__pycache__")
HIDDEN_FROM_STUDENTS = ("answers", "bugs.py", "bugs.json", "curves.json", "fill.py")
HUNTED = ["train.py", "rollout.py", "rewards.py"]  # the files that may have a bug of A6


def function(source: str, name: str) -> ast.FunctionDef:
    """The function at the top level of a module. ValueError if it is not there."""
    found = [
        node for node in ast.parse(source).body if isinstance(node, ast.FunctionDef) and node.name == name
    ]
    if not found:
        raise ValueError(f"there is no function {name}")
    return found[-1]


def cut(source: str, name: str) -> str:
    """The source with the body of one function taken out. Its signature and docstring stay."""
    body = function(source, name).body[1:]  # behind the docstring
    lines = source.splitlines(keepends=True)
    empty = f'    raise NotImplementedError("write {name} here")\n'
    return "".join([*lines[: body[0].lineno - 1], empty, *lines[body[-1].end_lineno :]])


def copy_project(to: Path) -> None:
    """The project without the course, its tests and experiments."""
    if to.exists():
        raise ValueError(f"{to} exists: give another folder, or delete it")
    shutil.copytree(ROOT, to, ignore=shutil.ignore_patterns(*NOT_COPIED))


def make(name: str, to: Path) -> None:
    """The starter tree of an assignment, with its handout as TASK.md."""
    copy_project(to)
    shutil.copy(HERE / f"{name}.md", to / "TASK.md")
    shutil.copy(HERE / "runs.py", to / "curves.py")
    for hole in ASSIGNMENTS[name].holes:
        path = to / hole.partition(":")[0]
        path.write_text(cut(path.read_text(encoding="utf-8"), hole.partition(":")[2]), encoding="utf-8")
    if ASSIGNMENTS[name].holes:
        (to / ".github" / "workflows").mkdir(parents=True)
        (to / ".github" / "workflows" / "classroom.yml").write_text(workflow(name), encoding="utf-8")


def workflow(name: str) -> str:
    """Autograding in GitHub Classroom: classroom.yml with a step for each check that gives points."""
    head, step, tail = (HERE / "classroom.yml").read_text(encoding="utf-8").split("# ---\n")
    found = [(what(hole, c), n) for hole, row in ASSIGNMENTS[name].holes.items() for c, n in row.items()]
    numbered = [(str(n), *pair) for n, pair in enumerate(found, 1)]
    values = [{"NUMBER": n, "NAME": name, "WHAT": text, "POINTS": str(of)} for n, text, of in numbered]
    steps = [re.sub("|".join(row), lambda found, row=row: row[found[0]], step) for row in values]
    result = 'CHECK{0}_RESULTS: "${{{{ steps.check{0}.outputs.result }}}}"\n'
    results = "".join(" " * 10 + result.format(n) for n, *_ in numbered)
    tail = tail.replace("RESULTS\n", results).replace("RUNNERS", ",".join(f"check{n}" for n, *_ in numbered))
    return head + "".join(steps) + tail


def make_hunt(student: str, secret: str, to: Path) -> None:
    """A6: the project with the student's bug, and its learning curves beside healthy ones."""
    try:
        from bugs import plant, silent_bug
    except ImportError:
        raise ValueError("your teacher has your folder of A6") from None
    name, curves = silent_bug(student, secret), json.loads((HERE / "curves.json").read_text(encoding="utf-8"))
    shown = {"with a bug": curves[name]} | {n: c for n, c in curves.items() if n.startswith("healthy")}
    make("A6", to)
    plant(name, to)
    (to / "curves.json").write_text(json.dumps(shown) + "\n", encoding="utf-8")
    draw(shown, to / "curves.png")


def draw(curves: dict[str, list[dict]], path: Path) -> None:
    """A panel for each column: the healthy runs in grey, the run with the bug in red."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(2, 3, figsize=(10, 5.2), layout="constrained")
    for axis, (column, title) in zip(axes.flat, COLUMNS.items(), strict=True):
        for name, points in curves.items():
            bug, values = not name.startswith("healthy"), [point[column] for point in points]
            style = dict(color="tab:red", lw=2, zorder=3) if bug else dict(color="0.6", lw=1)
            axis.plot([10 * i + 5 for i in range(len(values))], values, **style)
        unit = "nats" if "KL" in title else "norm" if title == "gradient" else "percent"
        axis.set_title(f"{title} ({unit})", fontsize=11)
        axis.axvline(10 * sum(point["stage"] == "stage1" for point in points), color="0.8", ls=":")
        if title == "gradient":
            axis.set_yscale("symlog")
        axis.set_ylim(*((0, 102) if unit == "percent" else (0, None)))
    figure.supxlabel("update; red: with a bug, grey: healthy, dotted: Stage II begins", fontsize=10)
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


def make_class(folder: Path, secret_file: Path, names: list[str]) -> None:
    """The students' repository, and a teacher's folder with the bugs and the A6 of each student."""
    from bugs import hidden_bugs, silent_bug

    if folder.exists():
        raise ValueError(f"{folder} exists: give another folder, or delete it")
    if not secret_file.exists():
        secret_file.write_text(secrets.token_hex(16) + "\n", encoding="utf-8")
    secret, teacher = secret_file.read_text(encoding="utf-8").strip(), folder / "teacher"
    left_out = set(NOT_COPIED) - {"course", "experiments"}
    ignore = shutil.ignore_patterns(*left_out, *HIDDEN_FROM_STUDENTS)
    shutil.copytree(ROOT, folder / "students", ignore=ignore)
    teacher.mkdir()
    with open(teacher / "bugs.csv", "w", encoding="utf-8", newline="") as file:
        table = csv.writer(file)
        for number, student in enumerate(names):
            hidden = hidden_bugs(student, secret)
            if not number:
                table.writerow(["student", "A6", *hidden])
            table.writerow([student, silent_bug(student, secret), *hidden.values()])
            make_hunt(student, secret, teacher / "A6" / student)


def secret_of(path: Path | None) -> str:
    """The text of the secret's file. Who works alone has none."""
    return path.read_text(encoding="utf-8").strip() if path else ""


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("assignment", choices=ASSIGNMENTS, nargs="?")
    parser.add_argument("--to", type=Path, help="the folder to make")
    parser.add_argument("--student", default="", help="A6: whose bug it is")
    parser.add_argument("--class", dest="class_", type=Path, metavar="FOLDER", help="for a class: see above")
    parser.add_argument("--secret", type=Path, help="a file; --class makes it if it is not there")
    parser.add_argument("--names", type=Path, help="a file with a student's name in each line")
    o = parser.parse_args()
    try:
        if o.class_ and o.secret:
            lines = o.names.read_text(encoding="utf-8").splitlines() if o.names else []
            make_class(o.class_, o.secret, [line.strip() for line in lines if line.strip()])
            print(f"{o.class_ / 'students'} is for students; {o.class_ / 'teacher'} and {o.secret} are yours")
        elif o.assignment and o.to:
            if o.assignment == "A6":
                make_hunt(o.student, secret_of(o.secret), o.to)
            else:
                make(o.assignment, o.to)
            holes = "".join(f"\n  {hole}" for hole in ASSIGNMENTS[o.assignment].holes)
            print(f"{o.to} is ready: read {o.to / 'TASK.md'}" + (f" and write{holes}" if holes else ""))
        else:
            parser.error("give an assignment with --to=FOLDER, or --class=FOLDER with --secret=FILE")
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
