"""Grades an assignment: points, each with its reason in words.

    python course/grade.py A3 ../score-A3                        also written to ../score-A3/grade-A3.json
    python course/grade.py A3 --class=FOLDER --secret=FILE       for teachers: all folders and zips in FOLDER
    python course/grade.py A3 ../score-A3 --gradescope=FILE      in the format of Gradescope's results.json

Of a student's files only the functions to write are taken, with helpers that are new. Each is put into a
fresh copy of this project, and the checks of checks.py run on it in a process of their own. After SECONDS
that process and its children are killed. This keeps accidents away from you, but it is no sandbox: a function
can read your files and could forge its points. So look at what you grade, and grade where no secrets are.
"""

import argparse
import ast
import contextlib
import csv
import json
import multiprocessing
import os
import random
import re
import signal
import sys
import tempfile
import traceback
import zipfile
import zlib
from pathlib import Path

import checks
import torch
from assignments import ASSIGNMENTS, what
from make import HERE, HUNTED, ROOT, copy_project, function, secret_of

MOST = 100_000  # bytes of a submission, packed
SECONDS = 60  # for the checks of one function
FINISHED = 100  # exit code of a process that came to its end: who ends Python from within has another code
# Where processes can be forked safely, the checks start with torch in memory: that saves seconds each.
PROCESSES = multiprocessing.get_context("fork" if sys.platform == "linux" else "spawn")
MAY_IMPORT = {"torch", "math", "itertools", "random", "pytest", "numpy", "rewards", "train", "eval"}
MAY_NOT_USE = {"open", "exec", "compile", "globals", "vars", "getattr", "load", "from_file", "fromfile"}


def grade(name: str, folder: Path, student: str = "", secret: str = "") -> dict:
    """The points of an assignment, by check. ValueError if there is no such folder."""
    if not folder.is_dir():
        raise ValueError(f"no folder {folder}: give the folder that make.py has made")
    with tempfile.TemporaryDirectory() as temporary:
        tree = Path(temporary) / "tree"
        copy_project(tree)
        rows = [row for hole in ASSIGNMENTS[name].holes for row in grade_hole(name, hole, folder, tree)]
        rows += grade_own_tests(folder, tree, student, secret) if name == "A5" else []
        rows += [grade_mended(folder, tree)] if name == "A6" else []
    points, of = sum(row["points"] for row in rows), sum(row["of"] for row in rows)
    return {"assignment": name, "student": student, "points": points, "of": of, "checks": rows}


def row(title: str, of: int, reason: str = "") -> dict:
    return {"what": title, "points": 0 if reason else of, "of": of, "reason": reason}


def grade_hole(name: str, hole: str, folder: Path, tree: Path) -> list[dict]:
    """The checks of one function, on the student's version of it."""
    file, _, function_name = hole.partition(":")
    found = ASSIGNMENTS[name].holes[hole]
    path, real = tree / file, (tree / file).read_text(encoding="utf-8")
    try:
        path.write_text(spliced(real, read(folder / file), function_name), encoding="utf-8")
        reasons = in_child(tree, list(found))
        path.write_text(real, encoding="utf-8")
    except ValueError as error:
        reasons = [f"{file}: {error}"] * len(found)
    rows = zip(found.items(), reasons, strict=True)
    return [row(what(hole, check), points, reason) for (check, points), reason in rows]


def read(path: Path) -> str:
    """The text of a student's file. ValueError says what is wrong with it."""
    try:
        return path.read_text(encoding="utf-8-sig")
    except OSError:
        raise ValueError("the file is not there") from None
    except UnicodeDecodeError:
        raise ValueError("the file is not UTF-8") from None


def spliced(real: str, students: str, name: str) -> str:
    """The real source with the student's version of one function. ValueError if that can't be done.

    Helpers come along, before it: functions, imports and constants at the top level that the real file does
    not have. Annotations of the function are dropped, as they may name what only the student has imported.
    """
    try:
        theirs, ours = function(students, name), function(real, name)
        known = {word for node in ast.parse(real).body for word in names_of(node)}
        helpers = [node for node in ast.parse(students).body if names_of(node) - known]
        for arg in [node for node in ast.walk(theirs.args) if isinstance(node, ast.arg)]:
            arg.annotation = None
        theirs.returns = None
        lines = real.splitlines(keepends=True)
        begin = min(node.lineno for node in (ours, *ours.decorator_list)) - 1
        new = "\n".join(map(ast.unparse, [*helpers, theirs]))
        return "".join([*lines[:begin], new, "\n", *lines[ours.end_lineno :]])
    except SyntaxError as error:
        raise ValueError(f"Python can't read it in line {error.lineno}: {error.msg}") from None
    except (RecursionError, MemoryError):
        raise ValueError("it is too deeply nested") from None


def names_of(node: ast.stmt) -> set[str]:
    """The names that a function, a class, an import or a constant at the top level brings."""
    if isinstance(node, ast.FunctionDef | ast.ClassDef):
        return {node.name}
    if isinstance(node, ast.Import | ast.ImportFrom) and getattr(node, "module", "") != "__future__":
        return {alias.asname or alias.name for alias in node.names}
    if isinstance(node, ast.Assign | ast.AnnAssign):
        return {n.id for n in ast.walk(node) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)}
    return set()


# ---------------------------------------------------------------------------------- processes


def in_child(tree: Path, jobs: list[str]) -> list[str]:
    """What became of each job in the tree, a check or a function of this file: "" or why it failed."""
    log = tree.with_name("results.jsonl")
    log.write_text("", encoding="utf-8")
    process = PROCESSES.Process(target=child, args=(tree, jobs, log))
    process.start()
    process.join(SECONDS)
    lost = {None: f"it did not come to an end within {SECONDS} seconds", FINISHED: "it did not run"}
    lost = lost.get(process.exitcode, "it ended Python itself")
    with contextlib.suppress(ProcessLookupError, PermissionError, AttributeError):
        os.killpg(process.pid, signal.SIGKILL)  # and those that it has started
    process.kill()
    process.join()
    reasons = [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()]
    return (reasons + [lost] * len(jobs))[: len(jobs)]


def child(tree: Path, jobs: list[str], log: Path) -> None:
    """Does the jobs in a process of its own, cut off from the terminal, and writes each result at once."""
    if hasattr(os, "setsid"):
        os.setsid()  # so that the children of a solution can be killed with it
    null = open(os.devnull, "r+", encoding="utf-8")  # noqa: SIM115 (until the process ends)
    for stream in range(3):
        os.dup2(null.fileno(), stream)
    os.chdir(tree)
    torch.set_num_threads(1)
    sys.stdin = sys.stdout = sys.stderr = null
    sys.dont_write_bytecode = True
    forget_the_project()
    sys.path.insert(0, str(tree))
    for job in jobs:
        reason = ""
        try:
            (getattr(checks, job, None) or globals()[job])()
        except checks.Wrong as error:
            reason = str(error)
        except NotImplementedError:
            reason = "not written yet"
        except BaseException as error:
            line = traceback.extract_tb(error.__traceback__)[-1].line
            reason = f"{type(error).__name__}: {str(error)[:200]} (at: {line})"
        with open(log, "a", encoding="utf-8") as file:
            file.write(json.dumps(reason) + "\n")
    os._exit(FINISHED)


def forget_the_project() -> None:
    """The process may have inherited the real modules. The jobs must import those of the tree."""

    def ours(path: str) -> bool:
        return path.startswith(str(ROOT)) and "site-packages" not in path

    sys.path[:] = [path for path in sys.path if not ours(str(Path(path).resolve()))]
    for name, module in list(sys.modules.items()):
        if ours(getattr(module, "__file__", None) or next(iter(getattr(module, "__path__", [])), "")):
            del sys.modules[name]


# ---------------------------------------------------------------------------------- A5 and A6


class FirstFailure:
    """A plugin of pytest."""

    passed, why = 0, ""

    def pytest_runtest_logreport(self, report) -> None:
        self.passed += report.passed and getattr(report, "when", "") == "call"
        if report.failed and not self.why:
            crash = getattr(report.longrepr, "reprcrash", None)
            text = " ".join((crash.message if crash else str(report.longrepr)).split())
            self.why = f"{text[:200]} ({report.nodeid.rpartition('::')[2]})"

    pytest_collectreport = pytest_runtest_logreport


def own_tests() -> None:
    import pytest

    os.environ["PYTEST_DISABLE_PLUGIN_AUTOLOAD"], found = "1", FirstFailure()
    options = ["-qsx", "-p", "no:cacheprovider", "-p", "no:unraisableexception", "--rootdir=."]
    pytest.main([*options, "test_mine.py"], plugins=[found])
    if found.why or not found.passed:
        raise checks.Wrong(found.why or "it has no test: the names of tests begin with test_")


def grade_own_tests(folder: Path, tree: Path, student: str, secret: str) -> list[dict]:
    """The student's own tests: they must pass on right code, and fail on each hidden bug."""
    of = ASSIGNMENTS["A5"].own
    try:
        tests = read(folder / "my_tests.py")
        behaves(tests)
        (tree / "test_mine.py").write_text(tests, encoding="utf-8")
        for file in ("rewards.py", "train.py", "eval.py"):
            rewrite(tree / file)
        (error,) = in_child(tree, ["own_tests"])
    except ValueError as problem:
        error = str(problem)
    if error:
        return [row("my_tests.py passes on the right code", of, f"my_tests.py on the right code: {error}")]
    try:
        from bugs import BUGS, edited, hidden_bugs
    except ImportError:  # in the students' repository
        return [row("my_tests.py passes on the right code; your teacher has the bugs", 0)]
    rows = []
    for where, bug in hidden_bugs(student or "nobody", secret).items():
        path, source = tree / BUGS[bug]["file"], (ROOT / BUGS[bug]["file"]).read_text(encoding="utf-8")
        path.write_text(edited(bug, source), encoding="utf-8")
        rewrite(path)
        caught = in_child(tree, ["own_tests"]) != [""]
        path.write_text(source, encoding="utf-8")
        reason = "" if caught else "all of your tests pass on code with this bug"
        rows.append(row(f"my_tests.py notices a bug in {where}", of // 5, reason))
    return rows


def behaves(tests: str) -> None:
    """ValueError if the tests could look at the code instead of calling it."""
    try:
        nodes = list(ast.walk(ast.parse(tests)))
    except (SyntaxError, RecursionError) as error:
        raise ValueError(f"Python can't read it: {error}") from None
    for node in nodes:
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        names += [node.module or "."] if isinstance(node, ast.ImportFrom) else []
        if bad := [name for name in names if name.partition(".")[0] not in MAY_IMPORT]:
            raise ValueError(f"it imports {bad[0]}: tests need {', '.join(sorted(MAY_IMPORT))} alone")
        word = getattr(node, "id", getattr(node, "attr", ""))
        if word in MAY_NOT_USE or word.startswith("__"):
            raise ValueError(f"it uses {word}: tests call the functions, and do not look at their code")


def rewrite(path: Path) -> None:
    """The same code in another layout, with a statement in each function that does nothing: a test that
    compares texts or syntax can't tell right from wrong by it.
    """
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef):
            node.body[1:1] = ast.parse(f"_{random.getrandbits(30)} = {random.getrandbits(30)}").body
    path.write_text(ast.unparse(ast.fix_missing_locations(tree)), encoding="utf-8")


def training() -> None:
    """A few updates of both stages. A coin decides what is right: with so few updates all would be wrong."""
    import data

    def coins(task, pairs):
        return ["right" if zlib.crc32(f"{p.prompt} {text}".encode()) % 2 else "wrong" for p, text in pairs]

    data.verdicts = coins  # before train.py imports it
    import train

    tiny = "--n_layer=1 --dim=16 --base_steps=15 --base_batch=16 --base_lr=0.02 --stage1_steps=3 --batch=16"
    more = "--stage2_steps=3 --alpha=3 --lr=0.02 --stage2_lr=0.02 --train_n=20 --device=cpu --report=false"
    sys.argv = ["train.py", *tiny.split(), *more.split(), "--overwrite"]
    train.main()


def grade_mended(folder: Path, tree: Path) -> dict:
    """Does the project with the student's files train as the right project does?"""
    runs, reason, keys = [], "", ("acc_t1", "acc_t2", "change_rate", "reward", "kl_t1", "kl_t2", "grad_norm")
    for source in (ROOT, folder):
        try:
            for file in HUNTED:
                (tree / file).write_text(read(source / file), encoding="utf-8")
            reason = reason or in_child(tree, ["training"])[0]
            lines = (tree / "out/default/metrics.jsonl").read_text(encoding="utf-8").splitlines()
            runs.append(torch.tensor([[json.loads(line).get(key, 0.0) for key in keys] for line in lines]))
        except (ValueError, OSError) as error:
            reason = reason or str(error)
    if not reason and not (runs[0].shape == runs[1].shape and torch.allclose(*runs, atol=1e-3)):
        reason = "six tiny updates with your files do not go as those of the right project"
    return row("the bug is mended", ASSIGNMENTS["A6"].own, reason)


# ---------------------------------------------------------------------------------- what is shown


def unpacked(path: Path, to: str) -> Path:
    """The folder of a submission, which is a folder or a small zip."""
    if path.is_dir():
        return path
    with zipfile.ZipFile(path) as pack:
        if max(path.stat().st_size, sum(info.file_size for info in pack.infolist()) / 20) > MOST:
            raise ValueError(f"the zip has more than {MOST // 1000} kB: code and answers alone")
        pack.extractall(to)
    return Path(to)


def grade_class(name: str, folder: Path, secret: str) -> list[dict]:
    """Grades each folder and zip in a folder. Its name is the student's. Writes a CSV and a page for each."""
    results = []
    for path in sorted(p for p in folder.iterdir() if p.is_dir() or p.suffix == ".zip"):
        with tempfile.TemporaryDirectory() as temporary:
            try:
                result = grade(name, unpacked(path, temporary), path.stem, secret)
            except (ValueError, OSError, zipfile.BadZipFile) as error:
                lost = [row("the submission can be read", 0, str(error))]
                result = {"assignment": name, "student": path.stem, "points": 0, "of": 0, "checks": lost}
        results.append(result)
        (folder / f"{path.stem}-{name}.md").write_text(page(result), encoding="utf-8")
        print(f"{path.stem}: {result['points']} of {result['of']}", flush=True)
    with open(folder / f"grades-{name}.csv", "w", encoding="utf-8", newline="") as file:
        titles = list(dict.fromkeys(check["what"] for result in results for check in result["checks"]))
        table = csv.DictWriter(file, ["student", "points", "of", "answers", *titles], extrasaction="ignore")
        table.writeheader()
        table.writerows(r | {check["what"]: check["points"] for check in r["checks"]} for r in results)
    return results


def page(result: dict) -> str:
    """Markdown for a student, with room for the points of the written answers."""
    handout = (HERE / f"{result['assignment']}.md").read_text(encoding="utf-8")
    questions = re.findall(r"^(\d)\. \((\d+) points\)", handout, re.MULTILINE)
    lines = [f"# {result['student']}", "", "```", text_of(result), "```", ""]
    return "\n".join([*lines, *(f"- question {number}: __ of {of}" for number, of in questions), ""])


def text_of(result: dict) -> str:
    """The result for people to read."""
    lines = [f"{result['assignment']}: {result['points']} of {result['of']} points"]
    for check in result["checks"]:
        lines.append(f"  {check['points']}/{check['of']}  {check['what']}")
        lines += [f"       {check['reason']}"] if check["reason"] else []
    written = ASSIGNMENTS[result["assignment"]].written
    return "\n".join([*lines, f"A teacher reads your answers to the questions: {written} points more."])


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("assignment", choices=ASSIGNMENTS)
    parser.add_argument("folder", type=Path, nargs="?", default=Path("-"))
    parser.add_argument("--class", dest="class_", type=Path, metavar="FOLDER", help="of submissions")
    parser.add_argument("--student", default="", help="A5: whose hidden bugs")
    parser.add_argument("--secret", type=Path, help="the class's file, see make.py")
    parser.add_argument("--gradescope", type=Path, metavar="FILE", help="write results.json for Gradescope")
    parser.add_argument("--check", type=int, default=0, help="exit code 0 if this check has its points")
    o = parser.parse_args()
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(encoding="utf-8", errors="replace")
    try:
        if o.class_:
            return print(len(grade_class(o.assignment, o.class_, secret_of(o.secret))), "submissions")
        result = grade(o.assignment, o.folder, o.student, secret_of(o.secret))
        path = o.gradescope or o.folder / f"grade-{o.assignment}.json"
        if o.gradescope:  # its results.json
            keys = {"name": "what", "score": "points", "max_score": "of", "output": "reason"}
            tests = [{new: check[old] for new, old in keys.items()} for check in result["checks"]]
        found = {"score": result["points"], "tests": tests} if o.gradescope else result
        path.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")
    print(text_of(result))
    if o.check:
        sys.exit(bool(result["checks"][o.check - 1]["reason"]))


if __name__ == "__main__":
    main()
