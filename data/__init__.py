"""Problems: what a task module holds, and how training and held-out problems are kept apart.

A task is a module `data/<name>.py`. One that draws its problems has a constant and five functions (see `data/addition.py`, the
shortest):

    DIGITS_PER_TOKEN                       how many digits make one token (1: digit by digit)
    sample(rng, size) -> Problem           a random problem; `size` is its difficulty
    parse(prompt) -> Problem               the same from a text that a person typed; ValueError if it is not one
    is_correct(problem, text) -> bool      the checker: any text whatever, never eval'd
    attempt(problem, kind, rng) -> Attempt a demonstration: kind is "right", "near" (a near miss) or "far" (unrelated)
    honest(problem, text) -> Attempt       a sampled attempt with its working made true; None if nothing can be made of it

and may have, for experiments/paper.py: `graded(text) -> str`, the part of an attempt that counts (votes for it are added up), and
`level(problem)`, a number for its difficulty.

One that reads them from files (`data/gsm8k.py`, `math.py`, `mbpp.py`, `humaneval.py`), for pretrained models, has these:

    CORRECTION_REQUEST                     the second prompt, the same whether the first attempt was right or wrong
    FEEDBACK_REQUEST                       what eval.py --feedback asks before it (Self-Refine)
    read(path, split) -> [Problem]         split is "train" or "test"; ValueError names the file, the row and what is wrong
    verdicts(pairs) -> [str]               of (problem, text) pairs: "right", "wrong", "unparsable" or "timeout" each

Nothing else needs to know of it: `python train.py --task=<name>`.
"""

import functools
import gzip
import importlib
import json
import pkgutil
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random
from typing import NamedTuple

NOT_TASKS = ("checkers", "checkpoints", "demonstrations", "pretrained_tokenizer", "tokenizer")
HELD_OUT_ONE_IN = 3  # one problem in three is held out: 2,400 of the 7,200 that the default task has


class Problem(NamedTuple):
    prompt: str  # what turn 1 shows
    answer: str  # a right answer (for code: the tests), as the checker knows it; never in a prompt
    given: str = ""  # a first attempt by somebody else that turn 2 is to repair (offline repair); "": the model makes its own


class Attempt(NamedTuple):
    """A demonstration's text, cut in two: in turn 1 a wrong `answer` is context only; the honest `working` after it is taught."""

    answer: str
    working: str

    @property
    def text(self) -> str:
        return self.answer + self.working


def load_task(name: str):
    """The task module `data/<name>.py`; ValueError names the tasks there are."""
    names = sorted(m.name for m in pkgutil.iter_modules(__path__) if m.name not in NOT_TASKS)
    if name not in names:
        raise ValueError(f"no task '{name}': choose one of {', '.join(names)}")
    return importlib.import_module(f"data.{name}")


def is_held_out(prompt: str, seed: int) -> bool:
    """Which side of the split a problem is on: decided by its text alone, so no problem is ever on both sides."""
    return zlib.crc32(f"{seed}:{prompt}".encode()) % HELD_OUT_ONE_IN == 0


def train_problems(task, size: int, seed: int, train_data: str = "", test_data: str = "") -> Callable[[int], Problem]:
    """A function that gives training problem number i: the same for every (seed, i), so resuming needs no saved position.

    Problems from files come in another order each time round, and a problem that is also in the test file is left out.
    """
    if hasattr(task, "sample"):

        def drawn(index: int) -> Problem:
            rng = Random(f"{seed}/train/{index}")
            while is_held_out((problem := task.sample(rng, size)).prompt, seed):
                pass
            return problem

        return drawn
    test = {" ".join(p.prompt.split()) for p in task.read(test_data, "test")}
    rows = [p for p in task.read(train_data, "train") if " ".join(p.prompt.split()) not in test]
    if not rows:
        raise ValueError(f"every problem of {train_data} is in {test_data} too: there is nothing to train on")

    @functools.lru_cache(maxsize=2)
    def order(epoch: int) -> list[int]:
        return Random(f"{seed}/train/epoch {epoch}").sample(range(len(rows)), len(rows))

    return lambda index: rows[order(index // len(rows))[index % len(rows)]]


def held_out_problems(task, size: int, seed: int, n: int, test_data: str = "") -> list[Problem]:
    """`n` different held-out problems, always the same for a seed; from a file, all of it if it has fewer, else `n` by lot.

    ValueError if a task that draws its problems has not that many.
    """
    if not hasattr(task, "sample"):
        rows = task.read(test_data, "test")
        return rows if len(rows) <= n else [rows[i] for i in sorted(Random("held-out").sample(range(len(rows)), n))]
    rng, found = Random(f"{seed}/held-out"), {}
    for _ in range(n * HELD_OUT_ONE_IN * 20):
        if len(found) == n:
            break
        problem = task.sample(rng, size)
        if is_held_out(problem.prompt, seed):
            found[problem.prompt] = problem
    else:
        raise ValueError(f"only {len(found)} held-out problems found at size={size}: ask for fewer (n={n}) or a larger size")
    return list(found.values())


def verdicts(task, pairs: list[tuple[Problem, str]]) -> list[str]:
    """Each (problem, attempt) pair's verdict: "right", "wrong", "unparsable" or "timeout"."""
    if hasattr(task, "verdicts"):
        return task.verdicts(pairs)
    return ["right" if task.is_correct(problem, text) else "wrong" for problem, text in pairs]


def read_rows(path: str | Path, fields: tuple[str, ...]) -> Iterator[tuple[str, dict]]:
    """The rows of a JSONL file (or .jsonl.gz) that have all `fields`, each with its place for messages, "FILE, row 3".

    ValueError if the file is missing or empty, a row is not a JSON object, or a field is missing.
    """
    if not Path(path).is_file():
        raise ValueError(f"no file {path!s}: the README says where each task's data is got")
    empty = True
    with (gzip.open if str(path).endswith(".gz") else open)(path, "rt", encoding="utf-8") as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            empty, place = False, f"{path}, row {number}"
            try:
                row = json.loads(line)
            except ValueError:
                raise ValueError(f"{place}: not JSON; the file must have one object a line") from None
            missing = [f for f in fields if not isinstance(row, dict) or f not in row]
            if missing:
                raise ValueError(f"{place}: no field {missing[0]!r}; a row needs {', '.join(fields)}")
            yield place, row
    if empty:
        raise ValueError(f"{path} has no rows")
