"""Makes the tree in which a student works: the project with the functions of one assignment emptied.

    python course/make.py A3 --to=../score-A3

Signatures and docstrings stay, and each body raises NotImplementedError. All else is real, so mistakes in
earlier assignments do no harm. The holes are found by name: see assignments.py.
"""

import argparse
import ast
import shutil
import sys
from pathlib import Path
from pprint import pformat

from assignments import ASSIGNMENTS
from runs import PRESETS

ROOT = Path(__file__).resolve().parent.parent
NOT_COPIED = (".*", "course", "out", "build", "*.egg-info", "uv.lock")


def functions(source: str) -> dict[str, ast.FunctionDef]:
    """The functions and methods of a module by name, such as "advantages" and "KVCache.write"."""
    found = {}

    def visit(node: ast.AST, prefix: str) -> None:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.FunctionDef):
                found[prefix + child.name] = child
            elif isinstance(child, ast.ClassDef):
                visit(child, f"{child.name}.")

    visit(ast.parse(source), "")
    return found


def function(source: str, name: str) -> ast.FunctionDef:
    """ValueError if the function is not there."""
    if name not in (known := functions(source)):
        raise ValueError(f"there is no function {name}")
    return known[name]


def cut(source: str, name: str) -> str:
    """The source with the body of one function taken out. Its signature and docstring stay."""
    node = function(source, name)
    body = node.body[1:] if ast.get_docstring(node) else node.body
    lines = source.splitlines(keepends=True)
    empty = f'{" " * body[0].col_offset}raise NotImplementedError("write {name} here")\n'
    return "".join([*lines[: body[0].lineno - 1], empty, *lines[body[-1].end_lineno :]])


def copy_project(to: Path) -> None:
    """The project with the course's task and presets, without the course itself."""
    shutil.copytree(ROOT, to, ignore=shutil.ignore_patterns(*NOT_COPIED))
    shutil.copy(ROOT / "course" / "larger.py", to / "data")
    with open(to / "engine" / "presets.py", "a", encoding="utf-8") as file:
        file.write(f"PRESETS |= {pformat(PRESETS, sort_dicts=False, width=110)}\n")


def make(name: str, to: Path) -> None:
    """The starter tree of an assignment, with its handout as TASK.md."""
    if to.exists():
        raise ValueError(f"{to} exists: give another folder with --to, or delete it")
    copy_project(to)
    shutil.copy(ROOT / "course" / f"{name}.md", to / "TASK.md")
    shutil.copy(ROOT / "course" / "runs.py", to / "curves.py")
    for hole in ASSIGNMENTS[name].holes:
        file, _, function_name = hole.partition(":")
        path = to / file
        path.write_text(cut(path.read_text(encoding="utf-8"), function_name), encoding="utf-8")


def main() -> None:
    layout = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=layout)
    parser.add_argument("assignment", choices=ASSIGNMENTS)
    parser.add_argument("--to", type=Path, required=True, help="the folder to make")
    o = parser.parse_args()
    try:
        make(o.assignment, o.to)
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")
    holes = "\n".join(f"  {hole}" for hole in ASSIGNMENTS[o.assignment].holes)
    print(f"{o.to} is ready: read {o.to / 'TASK.md'}" + (f" and write\n{holes}" if holes else ""))


if __name__ == "__main__":
    main()
