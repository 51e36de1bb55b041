"""Grades an assignment: points, each with its reason.

    python course/grade.py A3 ../score-A3                       also written to ../score-A3/grade-A3.json
    python course/grade.py A5 ../score-A5                       with the student's own tests in my_tests.py
    python course/grade.py A6 ../score-A6 --student=ID          the tree of bug.py, mended

Of a student's files only the functions to write are taken, with helpers that are new. Each is put into a
fresh copy of this project, and the project's own tests run on it in a process of their own. After SECONDS
that process and its children are killed. This keeps accidents away from you, but it is no sandbox: a function
can read your files and could forge its points. So look at what you grade, and grade where no secrets are.
"""

import argparse
import ast
import contextlib
import json
import multiprocessing
import os
import re
import signal
import sys
import tempfile
from pathlib import Path

import pytest
import torch
from assignments import ASSIGNMENTS, BUG_POINTS, MENDED_POINTS, edit, edited
from bug import variant_of
from make import copy_project, function

SECONDS = 60  # for the tests of one function
FINISHED = 100  # pytest's exit code is added to it: who ends Python from within a test has another code
MEMORY = 8 * 2**30  # bytes, where the system can limit them
# Where processes can be forked safely, the tests start with torch in memory: that saves seconds each.
PROCESSES = multiprocessing.get_context("fork" if sys.platform == "linux" else "spawn")


def grade(name: str, folder: Path, student: str = "") -> dict:
    """The points of an assignment, by check. ValueError if there is no such folder."""
    if not folder.is_dir():
        raise ValueError(f"no folder {folder}: give the folder that make.py or bug.py has made")
    with tempfile.TemporaryDirectory() as temporary:
        tree = Path(temporary) / "tree"
        copy_project(tree)
        rows = [row for hole in ASSIGNMENTS[name].holes for row in grade_hole(name, hole, folder, tree)]
        if name == "A5":
            rows += grade_own_tests(folder, tree)
        if name == "A6":
            rows += grade_mended(folder, tree, student)
    points, of = sum(row["points"] for row in rows), sum(row["of"] for row in rows)
    return {"assignment": name, "points": points, "of": of, "checks": rows}


def row(what: str, points: int, of: int, reason: str = "") -> dict:
    return {"what": what, "points": points, "of": of, "reason": reason}


def grade_hole(name: str, hole: str, folder: Path, tree: Path) -> list[dict]:
    """The checks of one function, on the student's version of it."""
    file, _, function_name = hole.partition(":")
    checks = [check for check in ASSIGNMENTS[name].checks if check.hole == hole]
    path = tree / file
    real = path.read_text(encoding="utf-8")
    try:
        source = spliced(real, read(folder / file), function_name)
    except ValueError as error:
        reasons = [f"{file}: {error}"] * len(checks)
    else:
        path.write_text(source, encoding="utf-8")
        results = run_tests(tree, [test for check in checks for test in check.tests])
        path.write_text(real, encoding="utf-8")
        reasons = [next(filter(None, (why_not(test, results) for test in c.tests)), "") for c in checks]
    return [
        row(f"{function_name}: {check.what}", 0 if reason else check.points, check.points, reason)
        for check, reason in zip(checks, reasons, strict=True)
    ]


def read(path: Path) -> str:
    """The text of a student's file. ValueError says what is wrong with it."""
    try:
        return path.read_text(encoding="utf-8")
    except OSError:
        raise ValueError("the file is not there") from None
    except UnicodeDecodeError:
        raise ValueError("the file is not UTF-8") from None


def spliced(real: str, students: str, name: str) -> str:
    """The real source with the student's version of one function. ValueError if that can't be done.

    Helpers come along: functions, imports and constants at the top level that the real file does not have.
    """
    try:
        theirs, ours = function(students, name), function(real, name)
        module = ast.parse(real)
        known = {word for node in module.body for word in names_of(node)}
        helpers = [node for node in ast.parse(students).body if names_of(node) - known]
        # Printed anew from the syntax tree, so that it fits whatever the student's indentation is.
        text = ast.unparse(theirs).replace("\n", "\n" + " " * ours.col_offset)
        lines = real.splitlines(keepends=True)
        begin = min(node.lineno for node in (ours, *ours.decorator_list)) - 1
        text = "".join([*lines[:begin], " " * ours.col_offset, text, "\n", *lines[ours.end_lineno :]])
        source = "\n".join([text, *map(ast.unparse, helpers)])
        ast.parse(source)
    except (SyntaxError, RecursionError, MemoryError) as error:
        where, why = "", "too deeply nested"
        if isinstance(error, SyntaxError):
            where, why = f" in line {error.lineno}", error.msg
        raise ValueError(f"Python can't read it{where}: {why}") from None
    return source


def names_of(node: ast.stmt) -> set[str]:
    """The names that a function, a class, an import or a constant at the top level brings."""
    if isinstance(node, ast.FunctionDef | ast.ClassDef):
        return {node.name}
    if isinstance(node, ast.Import | ast.ImportFrom):
        return {alias.asname or alias.name for alias in node.names}
    if isinstance(node, ast.Assign):
        return {target.id for target in node.targets if isinstance(target, ast.Name)}
    return set()


# ---------------------------------------------------------------------------------- tests


def run_tests(tree: Path, tests: list[str], *options: str) -> dict[str, str]:
    """What became of each test that ran: "" if it passed, else one line that says why not.

    The key "" has a line on the whole process, if that did not come to its end.
    """
    log = tree.with_name("results.jsonl")
    log.write_text("", encoding="utf-8")
    process = PROCESSES.Process(target=child, args=(tree, tests, options, log))
    process.start()
    process.join(SECONDS)
    ended = process.exitcode
    kill(process)
    results = {}
    for line in log.read_text(encoding="utf-8", errors="replace").splitlines():
        with contextlib.suppress(ValueError, TypeError, KeyError):  # a line that was cut off by a kill
            found = json.loads(line)
            results[found["test"]] = results.get(found["test"]) or found["reason"]
    if ended is None:
        results[""] = f"it did not come to an end within {SECONDS} seconds"
    elif ended < FINISHED:
        results[""] = "it ended Python itself, or took too much memory"
    return results


def child(tree: Path, tests: list[str], more: tuple[str, ...], log: Path) -> None:
    """Runs pytest in a process of its own, cut off from the terminal."""
    if hasattr(os, "setsid"):
        os.setsid()  # so that the children of a solution can be killed with it
    with contextlib.suppress(ImportError, ValueError, OSError):
        import resource

        resource.setrlimit(resource.RLIMIT_DATA, (MEMORY, MEMORY))
    null = open(os.devnull, "r+", encoding="utf-8")  # noqa: SIM115 (until the process ends)
    for stream in range(3):
        os.dup2(null.fileno(), stream)
    os.chdir(tree)
    os.environ["OMP_NUM_THREADS"] = "1"
    torch.set_num_threads(1)
    sys.stdin = sys.stdout = sys.stderr = null
    sys.dont_write_bytecode = True
    forget_the_project()
    sys.path.insert(0, str(tree))
    os.environ["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"
    options = ["-q", "-s", "-p", "no:cacheprovider", "-p", "no:unraisableexception", f"--rootdir={tree}"]
    files = [f"tests/{test}" for test in dict.fromkeys(tests)]
    os._exit(FINISHED + int(pytest.main([*options, *more, *files], plugins=[Recorder(log)])))


def forget_the_project() -> None:
    """The process may have inherited the real modules. The tests must import those of the tree."""
    root = str(Path(__file__).resolve().parent.parent)
    sys.path[:] = [path for path in sys.path if not str(Path(path).resolve()).startswith(root)
                   or "site-packages" in path]  # fmt: skip
    for name, module in list(sys.modules.items()):
        path = getattr(module, "__file__", None) or next(iter(getattr(module, "__path__", [])), "")
        if path and path.startswith(root) and "site-packages" not in path:
            del sys.modules[name]


class Recorder:
    """A plugin of pytest that writes down each test's outcome at once, so that a kill loses the rest only."""

    def __init__(self, log: Path):
        self.log = log

    def pytest_runtest_logreport(self, report) -> None:
        if report.when == "call" or not report.passed:
            self.write(report.nodeid, report)

    def pytest_collectreport(self, report) -> None:
        if report.failed:
            self.write(report.nodeid, report)

    def write(self, test: str, report) -> None:
        reason = "" if report.passed else one_line(report)
        line = json.dumps({"test": test.removeprefix("tests/"), "reason": reason})
        with open(self.log, "a", encoding="utf-8") as file:
            file.write(f"{line}\n")


def one_line(report) -> str:
    crash = getattr(report.longrepr, "reprcrash", None)
    text = crash.message if crash else str(report.longrepr)
    if "NotImplementedError" in text:
        return "not written yet"
    return re.sub(r"\s+", " ", text)[:200] or "it failed"


def why_not(test: str, results: dict[str, str]) -> str:
    """An empty text if all cases of the test passed, else why not."""
    cases = {k: v for k, v in results.items() if k == test or k.startswith(f"{test}[")}
    failed = next(filter(None, cases.values()), "")
    if not failed and results.get(""):  # the process was lost, maybe amid this test's cases
        failed = "" if cases and not is_last(test, results) else results[""]
    if not failed and not cases:
        failed = next(filter(None, results.values()), "the test did not run")
    return failed and f"{failed} ({test.rpartition('::')[2]})"


def is_last(test: str, results: dict[str, str]) -> bool:
    """Is this the test that ran when the process was lost?"""
    last = [name for name in results if name][-1]
    return last == test or last.startswith(f"{test}[")


def kill(process) -> None:
    """Ends the process and those that it has started."""
    with contextlib.suppress(ProcessLookupError, PermissionError, AttributeError):
        os.killpg(process.pid, signal.SIGKILL)
    process.kill()
    process.join()


# ---------------------------------------------------------------------------------- A5 and A6


def grade_own_tests(folder: Path, tree: Path) -> list[dict]:
    """The student's own tests: they must pass on right code, and fail on each hidden bug."""
    bugs = ASSIGNMENTS["A5"].bugs
    try:
        (tree / "tests" / "test_mine.py").write_text(read(folder / "my_tests.py"), encoding="utf-8")
        for file in {edit(bug).file for bug in bugs}:
            rewrite(tree / file)
        error = complaint(run_tests(tree, ["test_mine.py"], "-x"))
    except ValueError as problem:
        error = str(problem)
    rows = []
    for bug, where in bugs.items():
        what = f"my_tests.py notices a bug in {where}"
        if error:
            rows.append(row(what, 0, BUG_POINTS, f"my_tests.py on the right code: {error}"))
            continue
        m = edit(bug)
        path, real = tree / m.file, (tree / m.file).read_text(encoding="utf-8")
        path.write_text(edited(m, original(m.file)), encoding="utf-8")
        rewrite(path)
        caught = bool(complaint(run_tests(tree, ["test_mine.py"], "-x")))
        path.write_text(real, encoding="utf-8")
        reason = "" if caught else "all of your tests pass on code with this bug"
        rows.append(row(what, BUG_POINTS * caught, BUG_POINTS, reason))
    return rows


def original(file: str) -> str:
    return (Path(__file__).resolve().parent.parent / file).read_text(encoding="utf-8")


def rewrite(path: Path) -> None:
    """The same code in another layout: a test that compares texts can't tell right from wrong by it."""
    path.write_text(ast.unparse(ast.parse(path.read_text(encoding="utf-8"))), encoding="utf-8")


def complaint(results: dict[str, str]) -> str:
    """Why these tests as a whole did not pass, or ""."""
    failed = next(((test, reason) for test, reason in results.items() if reason), None)
    if failed:
        return f"{failed[1]} ({failed[0].rpartition('::')[2] or 'all'})"
    return "" if results else "it has no test: the names of tests begin with test_"


def grade_mended(folder: Path, tree: Path, student: str) -> list[dict]:
    """The file that had the student's bug, in a project that is right otherwise."""
    if not student:
        raise ValueError("A6 needs --student=ID, the one that bug.py was given")
    m = edit(variant_of(student))
    try:
        (tree / m.file).write_text(read(folder / m.file), encoding="utf-8")
        results = run_tests(tree, [test.removeprefix("tests/") for test in m.tests], "-x")
        reason = complaint(results) if results else "no test ran"
    except ValueError as error:
        reason = f"{m.file}: {error}"
    return [row("the bug is fixed", 0 if reason else MENDED_POINTS, MENDED_POINTS, reason)]


# ---------------------------------------------------------------------------------- what is shown


def text_of(result: dict) -> str:
    """The result for people to read."""
    lines = [f"{result['assignment']}: {result['points']} of {result['of']} points"]
    for check in result["checks"]:
        lines.append(f"  {check['points']}/{check['of']}  {check['what']}")
        if check["reason"]:
            lines.append(f"       {check['reason']}")
    written = ASSIGNMENTS[result["assignment"]].written
    return "\n".join([*lines, f"A teacher reads your answers to the questions: {written} points more."])


def main() -> None:
    layout = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=layout)
    parser.add_argument("assignment", choices=ASSIGNMENTS)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--student", default="", help="A6: whose bug it is")
    o = parser.parse_args()
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(encoding="utf-8", errors="replace")
    try:
        result = grade(o.assignment, o.folder, o.student)
        path = o.folder / f"grade-{o.assignment}.json"
        path.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")
    print(text_of(result))


if __name__ == "__main__":
    main()
