"""Bugs drawn at random: would a test notice? Nobody can write tests for these mutants beforehand.

    python tests/mutate.py --seed=1 --n=200    draws 200 mutants; after Ctrl-C the same command goes on
    python tests/mutate.py --seed=1 --list     shows what would be drawn, and runs nothing
    python tests/mutate.py --file=engine/      those of one file or folder

A mutant is one small edit of the scripts, engine/ or data/: another operator, constant or default, a
statement left out, two arguments swapped (`mutate_sites.py`). First each test runs once under `coverage`,
which tells what lines it executes, in child processes too (`mutate_tests.py`). Then each mutant meets the
tests that execute its line, the quickest ones first. It is caught if one of them fails, or if they hang. It
has survived if none does: a test is missing, or the edit changes nothing that matters. The latter are listed
in mutate_equivalent.json with their reasons, and don't count.

Results go to out/mutate/. They hold for one state of the project's Python files. Files that lock hostile
programs in are left out: their mutants would let these programs out.

The library mutmut mutates only the bodies of functions without decorators: no option, no constant, nothing
under @torch.no_grad(). It draws no sample, and its map of the tests ends at the child processes.
"""

import argparse
import functools
import hashlib
import itertools
import json
import math
import multiprocessing
import re
import shutil
import signal
import sys
import tempfile
import time
from ast import parse, walk
from collections import Counter, defaultdict
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path

from mutate_sites import Mutant, drawn, edited, files
from mutate_tests import measure, prepare, run_tests

ROOT = Path(__file__).parent.parent
OUT = ROOT / "out" / "mutate"
QUICK = 0.1  # seconds of a test; most of the refusals that tests ask for take less
NOT_COPIED = (".git", ".venv", "out", "build", "__pycache__", "*.egg-info", ".pytest_cache", ".ruff_cache")


def main() -> None:
    layout = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=layout)
    parser.add_argument("--seed", type=int, default=1, help="decides which mutants are drawn")
    parser.add_argument("--n", type=int, default=200, help="mutants; a larger number keeps the first ones")
    parser.add_argument("--file", default="", help="only files whose path begins like this, e.g. engine/")
    parser.add_argument("--tests", default="test_*.py", help="only these files, with commas between")
    parser.add_argument("--seconds", type=float, default=120, help="of tests for each mutant, if none fails")
    parser.add_argument("--workers", type=int, default=2, help="processes, one for each core")
    parser.add_argument("--list", action="store_true", help="show the mutants and end")
    o = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        tree = Path(folder) / "tree"
        shutil.copytree(ROOT, tree, ignore=shutil.ignore_patterns(*NOT_COPIED))
        mutants = list(itertools.islice(drawn(tree, o.seed, o.file), o.n))
        if o.list:
            print(*mutants, sep="\n")
            return
        import pytest  # noqa: F401  the workers inherit what is loaded here
        import torch._dynamo

        torch.set_num_threads(1)
        context = multiprocessing.get_context("fork")
        with ProcessPoolExecutor(o.workers, context, prepare, (folder,)) as pool:
            try:
                run(pool, tree, mutants, o.tests.split(","), o.seconds)
            except KeyboardInterrupt:
                signal.signal(signal.SIGINT, signal.SIG_IGN)
                pool.shutdown(cancel_futures=True)
                raise


def run(
    pool: ProcessPoolExecutor, tree: Path, mutants: list[Mutant], tests: list[str], seconds: float
) -> None:
    """Makes the map of these test files, tries the mutants, and prints what was found."""
    digest = hashlib.sha256()
    for path in sorted(tree.rglob("*.py")):
        digest.update(b"" if path.name.startswith("mutate") else path.read_bytes())
    test_files = [f for t in tests for f in sorted(tree.glob(f"tests/{t}")) if f.name != "test_house.py"]
    state = digest.hexdigest()[:16]  # the house's budgets look at the text alone, so any edit could fail them
    tasks = {name: (measure, name) for name in (f"tests/{path.name}" for path in test_files)}
    table = finish(pool, "lines", state, tasks, lambda name, row: f"{name}: {len(row['seconds'])} tests")
    times = {test: s for row in table.values() for test, s in row["seconds"].items()}
    for test in (test for row in table.values() for test in row["failed"]):
        print(f"left out, it fails without a mutant: {test}")
    listed = json.loads((tree / "tests" / "mutate_equivalent.json").read_text(encoding="utf-8"))
    equivalent = {(e["file"], e["before"], e["after"]) for e in listed}
    tasks, by_name = {}, {m.name: m for m in mutants}
    for m in mutants:
        if (m.file, m.before, m.after) not in equivalent:
            tests = tests_of(m, tree, table, seconds)
            tasks[m.name] = (attempt, m, tests, sum(times[test] for test in tests))

    def told(name: str, row: dict) -> str:
        said = f"caught by {row['by']}" if row["by"] else f"SURVIVED {row['tests']} tests"
        return f"{row['seconds']:.0f} s, {said}: {by_name[name]}"

    print_table(mutants, finish(pool, "results", state, tasks, told))


def finish(pool: ProcessPoolExecutor, kind: str, state: str, tasks: dict, told) -> dict[str, dict]:
    """Does the tasks that the file of this kind has no results for, and adds them. Returns all, by name.

    A task is a function and its arguments. Results for another state of the project are thrown away.
    """
    path = OUT / f"{kind}.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    results = {row["name"]: row for row in rows if row["state"] == state}
    path.write_text("".join(json.dumps(row) + "\n" for row in results.values()))
    futures = {pool.submit(*task): name for name, task in tasks.items() if name not in results}
    begun = time.time()
    for i, future in enumerate(as_completed(futures), 1):
        name = futures[future]
        line = json.dumps(future.result() | dict(name=name, state=state))  # as read back: keys are strings
        results[name] = json.loads(line)
        with open(path, "a") as file:
            file.write(line + "\n")
        pace = (time.time() - begun) / i
        left = int(pace * (len(futures) - i))
        times = f"{pace:.0f} s each, ETA {left // 60}:{left % 60:02d}"
        print(f"{i}/{len(futures)} ({times}) {told(name, results[name])}", flush=True)
    return {name: results[name] for name in tasks}


def print_table(mutants: list[Mutant], results: dict[str, dict]) -> None:
    """The score by file with its 95 % interval (Wilson), and the survivors. Without a result: equivalent."""
    counts = defaultdict(Counter)
    for m in mutants:
        for file in (m.file, "all"):
            counts[file][results.get(m.name, {"verdict": "equivalent"})["verdict"]] += 1
    print("\n| file | mutants | caught | survived | equivalent | score | 95 % |\n" + "|---" * 7 + "|")
    for file, n in sorted(counts.items(), key=lambda item: (item[0] == "all", item[0])):
        k, of, z = n["caught"], n["caught"] + n["survived"], 1.96
        p, scale = k / max(of, 1), 1 + z * z / max(of, 1)
        half = z * math.sqrt(p * (1 - p) / max(of, 1) + (z / max(of, 1) / 2) ** 2) / scale
        middle = (p + (scale - 1) / 2) / scale
        low, high = 100 * (middle - half), 100 * (middle + half)
        score = f"{100 * p:.0f} % | {low:.0f} to {high:.0f} %" if of else " | "
        print(f"| {file} | {n.total()} | {k} | {n['survived']} | {n['equivalent']} | {score} |")
    for m in mutants:
        if results.get(m.name, {}).get("verdict") == "survived":
            print(f"survived {results[m.name]['tests']} tests: {m}")


def attempt(m: Mutant, tests: list[str], normal: float) -> dict:
    """Runs a mutant's tests, which take `normal` seconds without it."""
    path, begun = Path("tree") / m.file, time.time()
    original = path.read_bytes()
    path.write_bytes(edited(original, m))
    try:
        paths = {test.partition("::")[0] for test in tests}
        code, rows = run_tests(paths, tests, 3 * normal + 30) if tests else (5, [])
    finally:
        path.write_bytes(original)
    caught = code not in (0, 5)  # 5: no test of these names is left
    other = "no test, but they hang" if code == -9 else f"pytest's exit code {code}"
    by = next((row["test"] for row in rows if not row["ok"]), other) if caught else ""
    verdict, seconds = "caught" if caught else "survived", round(time.time() - begun, 1)
    return dict(verdict=verdict, by=by, tests=len(tests), seconds=seconds)


def tests_of(m: Mutant, tree: Path, table: dict[str, dict], seconds: float) -> list[str]:
    """The tests that a mutant meets, in their order: what fits into these seconds, but one at least.

    They execute its lines, or the lines that mention what its statement defines. If there are none, they are
    those of the test files that name its module. What a module or a class defines meets the quick ones of
    these, too. First come all that take less than QUICK seconds. Of a longer test with many cases the
    quickest is next, and its other cases when all tests have had their turn.
    """
    places, hit = {(m.file, line) for line in m.lines}, {}
    places |= {place for name in m.names for place in mentions(tree)[name]}
    for row in table.values():
        tests = list(row["seconds"])
        numbers = {i for file, line in places for i in row["lines"].get(file, {}).get(str(line), [])}
        hit |= {tests[i]: row["seconds"][tests[i]] for i in numbers}
    if not hit or m.names:
        word = re.compile(rf"\b{Path(m.file.removesuffix('/__init__.py')).stem}\b")
        named = [f for f in table if word.search((tree / f).read_text(encoding="utf-8"))]
        seconds_of = {test: s for f in named for test, s in table[f]["seconds"].items()}
        hit |= {test: s for test, s in seconds_of.items() if s < QUICK or not hit}
    turns, queue, chosen = Counter(), [], []
    broken = {test for row in table.values() for test in row["failed"]}
    for test in sorted(hit.keys() - broken, key=lambda test: (hit[test], test)):
        turns[test.partition("[")[0]] += hit[test] > QUICK
        queue.append((turns[test.partition("[")[0]], hit[test], test))
    for _, cost, test in sorted(queue):
        if cost <= seconds or not chosen:
            chosen.append(test)
            seconds -= cost
    return chosen


@functools.cache
def mentions(tree: Path) -> dict[str, set[tuple[str, int]]]:
    """The places (file, line) where a name stands in the files that are mutated, also as a string."""
    found = defaultdict(set)
    for path in files(tree):
        for node in walk(parse(path.read_bytes())):
            for name in (getattr(node, field, None) for field in ("id", "attr", "arg", "value")):
                if isinstance(name, str) and hasattr(node, "lineno"):
                    found[name].add((path.relative_to(tree).as_posix(), node.lineno))
    return found


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        sys.exit("stopped; the same command goes on")
