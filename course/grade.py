"""Grades an assignment: points, each with its reason in words.

    python course/grade.py A3 ../score-A3                       also written to ../score-A3/grade-A3.json
    python course/grade.py A3 --class=FOLDER --secret=FILE      for teachers: all folders and zips in FOLDER
    python course/grade.py race ../score-race --student=NAME    60 seconds of one core: a line for the leaderboard

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
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import traceback
import zipfile
import zlib
from pathlib import Path

import checks
import torch
from assignments import ASSIGNMENTS
from make import HERE, HUNTED, MOST, ROOT, copy_project, function, secret_of

SECONDS = 60  # for the checks of one function
FINISHED = 100  # exit code of a process that came to its end: who ends Python from within has another code
MEMORY = 8 * 2**30  # bytes, where the system can limit them
RACE_SECONDS = 60  # of processor time
# Where processes can be forked safely, the checks start with torch in memory: that saves seconds each.
PROCESSES = multiprocessing.get_context("fork" if sys.platform == "linux" else "spawn")
MAY_IMPORT = {"torch", "math", "itertools", "random", "pytest", "numpy", "rewards", "train", "eval"}
MAY_NOT_USE = {"open", "exec", "eval_", "compile", "globals", "vars", "getattr", "load", "from_file", "fromfile"}


def grade(name: str, folder: Path, student: str = "", secret: str = "") -> dict:
    """The points of an assignment, by check. ValueError if there is no such folder."""
    if not folder.is_dir():
        raise ValueError(f"no folder {folder}: give the folder that make.py has made")
    with tempfile.TemporaryDirectory() as temporary:
        tree = Path(temporary) / "tree"
        copy_project(tree)
        graded = {hole: grade_hole(name, hole, folder, tree) for hole in ASSIGNMENTS[name].holes}
        rows = [graded[check.hole].pop(0) for check in ASSIGNMENTS[name].checks]
        rows += grade_own_tests(folder, tree, student, secret) if name == "A5" else []
        rows += [grade_mended(folder, tree)] if name == "A6" else []
    points, of = sum(row["points"] for row in rows), sum(row["of"] for row in rows)
    return {"assignment": name, "student": student, "points": points, "of": of, "checks": rows}


def row(what: str, of: int, reason: str = "") -> dict:
    return {"what": what, "points": 0 if reason else of, "of": of, "reason": reason}


def grade_hole(name: str, hole: str, folder: Path, tree: Path) -> list[dict]:
    """The checks of one function, on the student's version of it."""
    file, _, function_name = hole.partition(":")
    found = [check for check in ASSIGNMENTS[name].checks if check.hole == hole]
    path, names = tree / file, [check.run.__name__ for check in found]
    real = path.read_text(encoding="utf-8")
    try:
        path.write_text(spliced(real, read(folder / file), function_name), encoding="utf-8")
        results = in_child(tree, "checks", names)
        path.write_text(real, encoding="utf-8")
        lost = results.pop("", "it did not run")
    except ValueError as error:
        results, lost = {}, f"{file}: {error}"
    return [row(check.what, check.points, results.get(n, lost)) for check, n in zip(found, names, strict=True)]


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
    except (SyntaxError, RecursionError, MemoryError) as error:
        where, why = "", "too deeply nested"
        if isinstance(error, SyntaxError):
            where, why = f" in line {error.lineno}", error.msg
        raise ValueError(f"Python can't read it{where}: {why}") from None


def names_of(node: ast.stmt) -> set[str]:
    """The names that a function, a class, an import or a constant at the top level brings."""
    if isinstance(node, ast.FunctionDef | ast.ClassDef):
        return {node.name}
    if isinstance(node, ast.Import | ast.ImportFrom):
        future = getattr(node, "module", "") == "__future__"
        return set() if future else {alias.asname or alias.name for alias in node.names}
    if isinstance(node, ast.Assign | ast.AnnAssign):
        return {n.id for n in ast.walk(node) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)}
    return set()


# ---------------------------------------------------------------------------------- processes


def in_child(tree: Path, job: str, words: list[str]) -> dict[str, str]:
    """What became of each check or test that ran: "" if it passed, else why not.

    The key "" is there if the process did not come to its end.
    """
    log = tree.with_name("results.jsonl")
    log.write_text("", encoding="utf-8")
    process = PROCESSES.Process(target=child, args=(tree, job, words, log))
    process.start()
    process.join(SECONDS)
    ended = process.exitcode
    with contextlib.suppress(ProcessLookupError, PermissionError, AttributeError):
        os.killpg(process.pid, signal.SIGKILL)  # and those that it has started
    process.kill()
    process.join()
    results = {}
    for line in log.read_text(encoding="utf-8", errors="replace").splitlines():
        with contextlib.suppress(ValueError, TypeError):  # a line that was cut off by a kill
            name, reason = json.loads(line)
            results[name] = results.get(name) or reason
    if ended is None:
        results[""] = f"it did not come to an end within {SECONDS} seconds"
    elif ended != FINISHED:
        results[""] = "it ended Python itself, or took too much memory"
    return results


def child(tree: Path, job: str, words: list[str], log: Path) -> None:
    """Runs checks or tests or train.py in a process of its own, cut off from the terminal."""
    if hasattr(os, "setsid"):
        os.setsid()  # so that the children of a solution can be killed with it
    with contextlib.suppress(ImportError, ValueError, OSError):
        import resource

        resource.setrlimit(resource.RLIMIT_DATA, (MEMORY, MEMORY))
    null = open(os.devnull, "r+", encoding="utf-8")  # noqa: SIM115 (until the process ends)
    for stream in range(3):
        os.dup2(null.fileno(), stream)
    os.chdir(tree)
    torch.set_num_threads(1)
    sys.stdin = sys.stdout = sys.stderr = null
    sys.dont_write_bytecode = True
    forget_the_project()
    sys.path.insert(0, str(tree))
    if job == "tests":
        import pytest

        os.environ["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"
        options = ["-q", "-s", "-p", "no:cacheprovider", "-p", "no:unraisableexception", f"--rootdir={tree}", "-x"]
        pytest.main([*options, *words], plugins=[Recorder(log)])
        os._exit(FINISHED)
    for word in words:
        try:
            run_training() if job == "training" else getattr(checks, word)()
            reason = ""
        except BaseException as error:
            reason = in_words(error)
        write(log, word, reason)
    os._exit(FINISHED)


def forget_the_project() -> None:
    """The process may have inherited the real modules. The checks must import those of the tree."""
    sys.path[:] = [p for p in sys.path if not str(Path(p).resolve()).startswith(str(ROOT)) or "site-packages" in p]
    for name, module in list(sys.modules.items()):
        path = getattr(module, "__file__", None) or next(iter(getattr(module, "__path__", [])), "")
        if path and path.startswith(str(ROOT)) and "site-packages" not in path:
            del sys.modules[name]


def in_words(error: BaseException) -> str:
    if isinstance(error, checks.Wrong):
        return str(error)
    if isinstance(error, NotImplementedError):
        return "not written yet"
    line = traceback.extract_tb(error.__traceback__)[-1].line
    return f"{type(error).__name__}: {str(error)[:200]} (at: {line})"


def write(log: Path, name: str, reason: str) -> None:
    with open(log, "a", encoding="utf-8") as file:
        file.write(json.dumps([name, reason]) + "\n")


class Recorder:
    """A plugin of pytest that writes down each test's outcome at once, so that a kill loses the rest only."""

    def __init__(self, log: Path):
        self.log = log

    def pytest_runtest_logreport(self, report) -> None:
        if report.when == "call" or not report.passed:
            self.pytest_collectreport(report, always=True)

    def pytest_collectreport(self, report, always: bool = False) -> None:
        if always or report.failed:
            crash = getattr(report.longrepr, "reprcrash", None)
            text = re.sub(r"\s+", " ", crash.message if crash else str(report.longrepr))[:200]
            text = "not written yet" if "NotImplementedError" in text else text
            write(self.log, report.nodeid.rpartition("::")[2], "" if report.passed else text or "it failed")


# ---------------------------------------------------------------------------------- A5, A6 and the race


def grade_own_tests(folder: Path, tree: Path, student: str, secret: str) -> list[dict]:
    """The student's own tests: they must pass on right code, and fail on each hidden bug."""
    try:
        from bugs import BUGS, edited, hidden_bugs
    except ImportError:  # in the students' repository
        bugs = {}
    else:
        bugs = hidden_bugs(student or "nobody", secret)
    try:
        tests = read(folder / "my_tests.py")
        behaves(tests)
        (tree / "test_mine.py").write_text(tests, encoding="utf-8")
        for file in ("rewards.py", "train.py", "eval.py"):
            rewrite(tree / file)
        error = complaint(in_child(tree, "tests", ["test_mine.py"]))
    except ValueError as problem:
        error = str(problem)
    if error or not bugs:
        of, what = ASSIGNMENTS["A5"].own if error else 0, "my_tests.py passes on the right code"
        return [row(what, of, error)] if error else [row(f"{what}; your teacher tries the bugs", 0)]
    rows = []
    for where, bug in bugs.items():
        file = BUGS[bug]["file"]
        path, real = tree / file, (tree / file).read_text(encoding="utf-8")
        path.write_text(edited(bug, (ROOT / file).read_text(encoding="utf-8")), encoding="utf-8")
        rewrite(path)
        caught = bool(complaint(in_child(tree, "tests", ["test_mine.py"])))
        path.write_text(real, encoding="utf-8")
        reason = "" if caught else "all of your tests pass on code with this bug"
        rows.append(row(f"my_tests.py notices a bug in {where}", ASSIGNMENTS["A5"].own // len(bugs), reason))
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
            raise ValueError(f"it imports {bad[0]}: tests call the functions and need {', '.join(sorted(MAY_IMPORT))}")
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


def complaint(results: dict[str, str]) -> str:
    """Why these tests as a whole did not pass, or ""."""
    failed = next(((test, reason) for test, reason in results.items() if reason), None)
    if failed:
        return f"my_tests.py on the right code: {failed[1]} ({failed[0] or 'all'})"
    return "" if results else "my_tests.py has no test: the names of tests begin with test_"


def run_training() -> None:
    """A few updates of both stages in the tree of the child. A coin decides what is right: else all is wrong."""
    import data

    def coins(task, pairs):
        return ["right" if zlib.crc32(f"{p.prompt} {text}".encode()) % 2 else "wrong" for p, text in pairs]

    data.verdicts = coins  # before train.py imports it
    import train

    tiny = "--n_layer=1 --dim=16 --base_steps=40 --base_batch=16 --base_lr=0.01 --stage1_steps=3 --stage2_steps=3"
    more = "--batch=16 --alpha=3 --report=false --device=cpu --lr=0.02 --stage2_lr=0.02 --train_n=20"
    sys.argv = ["train.py", *tiny.split(), *more.split()]
    train.main()


def grade_mended(folder: Path, tree: Path) -> dict:
    """Does the project with the student's files train as the right project does?"""
    runs, reason = [], ""
    for source in (ROOT, folder):
        try:
            for file in HUNTED:
                (tree / file).write_text(read(source / file), encoding="utf-8")
            reason = reason or complaint(in_child(tree, "training", ["training"])).partition(": ")[2]
            log = tree / "out" / "default" / "metrics.jsonl"
            runs.append([json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()])
            shutil.rmtree(tree / "out")
        except (ValueError, OSError) as error:
            reason = reason or str(error)
    names = ("acc_t1", "acc_t2", "change_rate", "reward", "kl_t1", "kl_t2", "grad_norm")
    rows = [[[step.get(name, 0.0) for name in names] for step in run] for run in runs]
    alike = len(rows) == 2 and len(rows[0]) == len(rows[1]) and torch.allclose(*map(torch.tensor, rows), atol=1e-3)
    if not reason and not alike:
        reason = "six tiny updates with your files do not go as those of the right project"
    return row("the bug is mended", ASSIGNMENTS["A6"].own, reason)


def race(folder: Path, student: str, seed: int) -> dict:
    """Trains for RACE_SECONDS of processor time with the student's train.py, rollout.py and race.txt. The last
    checkpoint is evaluated by this project's eval.py, on held-out problems.
    """
    import resource

    sys.path.insert(0, str(ROOT))
    from engine.build import held_out_of
    from eval import evaluate
    from train import load_model

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_CPU, (RACE_SECONDS, RACE_SECONDS + 5))

    with tempfile.TemporaryDirectory() as temporary:
        tree = Path(temporary) / "tree"
        copy_project(tree)
        for file in ("train.py", "rollout.py"):
            (tree / file).write_text(read(folder / file), encoding="utf-8")
        words = [*shlex.split(read(folder / "race.txt")), "--name=race", "--out=out", f"--seed={seed}"]
        words += ["--report=false", "--save_every=5", "--device=cpu", "--task=calculator", "--size=3"]
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        command, before = [sys.executable, "train.py", *words], sum(os.times()[2:4])
        done = subprocess.run(command, cwd=tree, preexec_fn=limit, capture_output=True, text=True, env=environment)
        seconds = sum(os.times()[2:4]) - before
        if not (tree / "out" / "race" / "last.pt").exists():
            raise ValueError(f"no checkpoint after {seconds:.0f} s: {done.stderr[-300:]}")
        model, c = load_model(tree / "out" / "race" / "last.pt", torch.device("cpu"))
        metrics, _ = evaluate(model, c, held_out_of(c, 2000))
    return {"student": student, "acc_t1": metrics["acc_t1"], "acc_t2": metrics["acc_t2"], "seconds": round(seconds)}


# ---------------------------------------------------------------------------------- what is shown


def grade_class(name: str, folder: Path, secret: str) -> list[dict]:
    """Grades each folder and zip in a folder. Its name is the student's. Writes a CSV and a page for each."""
    results = []
    for path in sorted(p for p in folder.iterdir() if p.is_dir() or p.suffix == ".zip"):
        with tempfile.TemporaryDirectory() as temporary:
            try:
                if path.is_file():
                    with zipfile.ZipFile(path) as pack:
                        if sum(info.file_size for info in pack.infolist()) > 20 * MOST:
                            raise ValueError("the zip is too large")
                        pack.extractall(temporary)
                result = grade(name, Path(temporary) if path.is_file() else path, path.stem, secret)
            except (ValueError, OSError, zipfile.BadZipFile) as error:
                result = {"assignment": name, "student": path.stem, "points": 0, "of": 0,
                          "checks": [row("the submission can be read", 0, str(error))]}  # fmt: skip
        results.append(result)
        (folder / f"{path.stem}-{name}.md").write_text(page(result), encoding="utf-8")
        print(f"{path.stem}: {result['points']} of {result['of']}", flush=True)
    with open(folder / f"grades-{name}.csv", "w", encoding="utf-8", newline="") as file:
        table = csv.writer(file)
        whats = list(dict.fromkeys(check["what"] for result in results for check in result["checks"]))
        table.writerow(["student", "points", "of", "answers", *whats])
        for r in results:
            points = {check["what"]: check["points"] for check in r["checks"]}
            table.writerow([r["student"], r["points"], r["of"], "", *(points.get(what, "") for what in whats)])
    return results


def page(result: dict) -> str:
    """Markdown for a student, with room for the points of the written answers."""
    lines = [f"# {result['assignment']}, {result['student']}: {result['points']} of {result['of']} points", ""]
    lines += ["| points | of | what | reason |", "|---|---|---|---|"]
    for check in result["checks"]:
        cells = [str(check[key]).replace("|", "\\|") for key in ("points", "of", "what", "reason")]
        lines.append(f"| {' | '.join(cells)} |")
    handout = (HERE / f"{result['assignment']}.md").read_text(encoding="utf-8")
    for number, of in re.findall(r"^(\d)\. \((\d+) points\)", handout, re.MULTILINE):
        lines.append(f"|  | {of} | question {number} |  |")
    return "\n".join(lines) + "\n"


def gradescope(result: dict) -> dict:
    """The result in the format of Gradescope's results.json."""
    tests = [{"name": check["what"], "score": check["points"], "max_score": check["of"], "output": check["reason"]}
             for check in result["checks"]]  # fmt: skip
    return {"score": result["points"], "tests": tests, "output": text_of(result)}


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
    parser.add_argument("assignment", choices=[*ASSIGNMENTS, "race"])
    parser.add_argument("folder", type=Path, nargs="?")
    parser.add_argument("--class", dest="class_", type=Path, metavar="FOLDER", help="of submissions")
    parser.add_argument("--student", default="", help="whose hidden bugs (A5); the name on the leaderboard")
    parser.add_argument("--secret", type=Path, help="the class's file, see make.py")
    parser.add_argument("--gradescope", type=Path, metavar="FILE", help="write results.json for Gradescope")
    parser.add_argument("--check", type=int, default=0, help="exit code 0 if this check has its points, else 1")
    parser.add_argument("--seed", type=int, default=0, help="race: decides problems and random numbers")
    o = parser.parse_args()
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(encoding="utf-8", errors="replace")
    try:
        if not (o.folder or o.class_):
            parser.error("give a folder, or --class=FOLDER")
        if o.assignment == "race":
            r = race(o.folder, o.student, o.seed)
            return print("| {student} | {acc_t1:.1%} | {acc_t2:.1%} | {seconds} s |".format(**r))
        if o.class_:
            grade_class(o.assignment, o.class_, secret_of(o.secret))
            return
        result = grade(o.assignment, o.folder, o.student, secret_of(o.secret))
        path, written = o.gradescope or o.folder / f"grade-{o.assignment}.json", result
        path.write_text(json.dumps(gradescope(result) if o.gradescope else written, indent=1), encoding="utf-8")
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")
    print(text_of(result))
    if o.check:
        check = result["checks"][o.check - 1]
        sys.exit(check["points"] != check["of"])


if __name__ == "__main__":
    main()
