"""Runs tests for `mutate.py`, in processes that have loaded torch, and notes which tests execute a line."""

import json
import multiprocessing
import os
import re
import shutil
import signal
import sys
from collections import Counter
from importlib.util import find_spec
from multiprocessing.process import BaseProcess
from pathlib import Path
from types import ModuleType

from mutate_sites import PATHS


def prepare(folder: str) -> None:
    """Gives a worker its own copy of the project: `tree` in its working folder."""
    os.environ |= {"OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"}
    shutil.copytree(f"{folder}/tree", f"{folder}/{os.getpid()}/tree")
    os.chdir(f"{folder}/{os.getpid()}")


def run_tests(paths: set[str], ids: list[str], seconds: float, rc: str = "") -> tuple[int, list[dict]]:
    """pytest's exit code, and a row for each phase of each test, in a fork that inherits torch.

    It runs the tests `ids` in their order until one fails, or all of the files if there are none. After these
    seconds it is ended, with exit code -9. `rc` is the file of settings for coverage.
    """
    Path("rows").write_text("")
    process = multiprocessing.get_context("fork").Process(target=run_pytest, args=(paths, ids, rc))
    process.start()
    try:
        process.join(seconds)
    finally:
        try:
            os.killpg(process.pid, signal.SIGKILL)  # and what the tests have left behind
        except ProcessLookupError:
            process.kill()
        process.join()
    return process.exitcode, [json.loads(line) for line in Path("rows").read_text().splitlines()]


def run_pytest(paths: set[str], ids: list[str], rc: str) -> None:
    import pytest

    os.setsid()
    log, rows, temporary, tree = (Path(name).resolve() for name in ("log", "rows", "tmp", "tree"))
    output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    for number in (1, 2):
        os.dup2(output, number)
    os.chdir(tree)
    sys.path[:1], sys.dont_write_bytecode = [str(tree), str(tree / "tests")], True
    sys.modules["__main__"].__spec__ = find_spec("pytest.__main__")  # or each child would load this script
    plugin, places = ModuleType("plugin"), {test: i for i, test in enumerate(ids)}

    def choose(items):
        if ids:
            items[:] = sorted((i for i in items if i.nodeid in places), key=lambda i: places[i.nodeid])

    def note(report):
        if report.failed or hasattr(report, "duration"):
            row = dict(test=report.nodeid, ok=not report.failed, seconds=getattr(report, "duration", 0.0))
            with open(rows, "a") as file:
                file.write(json.dumps(row) + "\n")

    plugin.pytest_collection_modifyitems = choose
    plugin.pytest_runtest_logreport = plugin.pytest_collectreport = note
    tracer = follow(plugin, rc) if rc else None
    options = ["-x"] if ids else []
    options += ["-q", "--tb=short", "-p", "no:cacheprovider", f"--basetemp={temporary}"]
    code = int(pytest.main([*options, *sorted(paths)], plugins=[plugin]))
    if tracer:
        tracer.stop()
        tracer.save()
    sys.exit(code)


# ---------------------------------------------------------------------------------- which tests run a line


def follow(plugin: ModuleType, rc: str):
    """Starts coverage. It notes the lines that each test executes, here and in the processes it starts.

    A new Python finds COVERAGE_PROCESS_START. A process of multiprocessing may be the fork of one that was
    started for another test, so it takes the test's name along.
    """
    import coverage

    def start(process: BaseProcess) -> None:
        test = os.environ.get("PYTEST_CURRENT_TEST", "")
        process._args = (rc, test, process._target or process.run, *process._args)
        process._target = traced
        original(process)

    original, BaseProcess.start = BaseProcess.start, start
    os.environ["COVERAGE_PROCESS_START"] = rc
    tracer = coverage.Coverage(config_file=rc)
    tracer.start()
    plugin.pytest_runtest_logstart = lambda nodeid: tracer.switch_context(nodeid)
    plugin.pytest_runtest_logfinish = lambda nodeid: tracer.switch_context("")
    return tracer


def traced(rc: str, test: str, target, *args, **kwargs) -> None:
    """What a child process runs in place of `target`."""
    import coverage

    if inherited := coverage.Coverage.current():
        inherited.stop()
    os.environ["PYTEST_CURRENT_TEST"] = test
    tracer = coverage.Coverage(config_file=rc)
    tracer.start()
    try:
        target(*args, **kwargs)
    finally:
        tracer.stop()
        tracer.save()


def measure(test_file: str) -> dict:
    """Runs a test file: its tests' seconds, which fail without coverage too, and the tests of each line."""
    import coverage

    tree, rc = Path("tree").resolve(), Path("rc").resolve()
    shutil.rmtree("map", ignore_errors=True)
    os.mkdir("map")
    settings = {"data_file": Path("map/lines").resolve(), "parallel": True, "patch": "_exit"}
    settings |= {"context": "${PYTEST_CURRENT_TEST}", "disable_warnings": "no-data-collected,include-ignored"}
    settings["include"] = ",".join(f"{tree}/{pattern}" for pattern in PATHS)
    rc.write_text("[run]\n" + "".join(f"{key} = {value}\n" for key, value in settings.items()))
    code, rows = run_tests({test_file}, [], 3600, str(rc))
    if code not in (0, 1, 5):
        raise RuntimeError(f"{test_file}: pytest ends with {code}: {Path('log').read_text()[-1000:]}")
    times, failed = Counter(), {row["test"] for row in rows if not row["ok"]}
    for row in rows:
        times[row["test"]] += row["seconds"]
    if failed:
        failed &= {row["test"] for row in run_tests({test_file}, [], 3600)[1] if not row["ok"]}
    joined = coverage.Coverage(data_file="map/lines", config_file=False)
    joined.combine(["map"])
    numbers, lines = {test: i for i, test in enumerate(times)}, {}
    for path in joined.get_data().measured_files():
        of_file = lines[Path(path).relative_to(tree).as_posix()] = {}
        for line, contexts in joined.get_data().contexts_by_lineno(path).items():
            tests = {re.sub(r" \((setup|call|teardown)\)$", "", context) for context in contexts}
            of_file[line] = sorted(numbers[test] for test in tests & numbers.keys())
    return dict(seconds={test: round(s, 3) for test, s in times.items()}, failed=sorted(failed), lines=lines)
