"""Problems: what a task module holds, and how training and held-out problems are kept apart.

A task is a module `data/<name>.py`. `python train.py --task=<name>` finds it there.

A task that draws its problems has one constant and five functions. `data/addition.py` is the shortest:

    DIGITS_PER_TOKEN            how many digits make one token (1: digit by digit); see below
    sample(rng, size)           a random Problem; `size` is its difficulty
    parse(prompt)               the Problem of a text that a person typed; ValueError if it is not one
    is_correct(problem, text)   the checker: True or False for any text; it never runs the text as code
    attempt(problem, kind, rng) a demonstration, an Attempt: kind is "right", "near" (a near miss) or "far"
    honest(problem, text)       the Attempt `text` with its working made true, or None if that can't be done

A task in words leaves out DIGITS_PER_TOKEN: it is for pretrained models, which have a tokenizer of their own
(data/words.py). It may have its own CORRECTION_REQUEST and FEEDBACK_REQUEST.

Two more are optional and serve experiments/paper.py: `graded(text)` is the part of an attempt that counts,
for votes, and `level(problem)` is a number for its difficulty.

A task that reads its problems from files is for pretrained models (gsm8k, math, mbpp, humaneval):

    CORRECTION_REQUEST          the second prompt, the same whether the first attempt was right or wrong
    FEEDBACK_REQUEST            what eval.py --feedback asks before it (Self-Refine)
    read(path, split)           a list of Problems; split is "train" or "test"; ValueError names a bad row
    verdicts(pairs)             of (problem, text) pairs: see `verdicts` below
"""

import dataclasses
import functools
import importlib
import json
import pkgutil
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random
from typing import NamedTuple

from data.reading import open_text, reading
from data.tokenizer import CORRECTION_REQUEST, FEEDBACK_REQUEST, Tokenizer

NOT_TASKS = ("checkers", "contract", "demonstrations", "reading", "tokenizer")
HELD_OUT_ONE_IN = 3  # one problem in three is held out: 28,600 of the 86,000 that the default task has


class Problem(NamedTuple):
    prompt: str  # what turn 1 shows
    answer: str  # a right answer (for code: the tests) for the checker; it is never in a prompt
    given: str = (
        ""  # offline repair: somebody else's first attempt for turn 2 to correct; "": the model makes its own
    )


class Attempt(NamedTuple):
    """A demonstration's text in two parts. After a wrong `answer` in turn 1 only the honest `working` is
    taught.
    """

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
    try:
        task = importlib.import_module(f"data.{name}")
    except Exception as error:  # a module that a user writes
        raise ValueError(f"data/{name}.py can't be loaded: {type(error).__name__}: {error}") from None
    digits = getattr(task, "DIGITS_PER_TOKEN", 1)
    if digits not in (1, 2, 3, 4):
        raise ValueError(f"data/{name}.py: DIGITS_PER_TOKEN={digits!r}: it must be 1, 2, 3 or 4")
    return task


@dataclasses.dataclass
class Environment:
    """What the policy talks to: a task, its texts as ids, and its training problems by number."""

    task: object  # a module, see above
    tokenizer: Tokenizer
    problem: Callable[[int], Problem] | None = None  # RL's, see `train_problems`; evaluation needs none
    demo_problem: Callable[[int, int], Problem] | None = None  # the base's, see `demo_problems`

    def prompts(self, problems: list[Problem]) -> list[list[int]]:
        """The ids x1 of each problem's first turn."""
        return [self.tokenizer.user_turn(p.prompt) for p in problems]

    @functools.cached_property
    def correction_request(self) -> list[int]:
        """The ids x2 that ask for a second attempt, the same for every problem and every first attempt."""
        request = getattr(self.task, "CORRECTION_REQUEST", CORRECTION_REQUEST)
        return self.tokenizer.user_turn(request, first=False)

    @functools.cached_property
    def feedback_request(self) -> list[int]:
        """The ids that ask the model to judge its own attempt (Self-Refine)."""
        request = getattr(self.task, "FEEDBACK_REQUEST", FEEDBACK_REQUEST)
        return self.tokenizer.user_turn(request, first=False)


def seeded(*key) -> int:
    """A seed for one purpose, such as (seed, "online", stage, step).

    Every step seeds its own generators, so a resumed run draws what the unbroken one would have drawn.
    """
    return Random("/".join(map(str, key))).getrandbits(63)


def posed_problem(task, text: str) -> Problem:
    """The problem that a person typed. ValueError if it is none, or if the task can't judge it alone."""
    if not hasattr(task, "parse"):
        raise ValueError("this task can't judge a problem of yours: its checker needs a reference answer")
    return task.parse(text)


def is_held_out(prompt: str, seed: int) -> bool:
    """Which side of the split a problem is on. Its text alone decides, so no problem is on both sides."""
    return zlib.crc32(f"{seed}:{prompt}".encode()) % HELD_OUT_ONE_IN == 0


def is_in_file(task, test_data: str) -> Callable[[str], bool]:
    """A function that says whether a prompt is in a file of test problems, whatever the blanks in it."""
    test = {" ".join(p.prompt.split()) for p in task.read(test_data, "test")}
    return lambda prompt: " ".join(prompt.split()) in test


def train_problems(
    task, size: int, seed: int, n: int = 0, train_data: str = "", test_data: str = ""
) -> Callable[[int], Problem]:
    """A function that gives RL's training problem number i. It depends on (seed, i) alone, so resuming needs
    no saved position.

    There are `n` different problems, which come in a new order in each epoch. With n = 0 a task that draws
    its problems draws each anew, and a file gives all its rows. A problem that is held out, or also in the
    test file, is left out. ValueError if there are fewer than `n`.
    """
    if hasattr(task, "sample") and not n:
        return lambda index: drawn(task, size, f"{seed}/rl/{index}", lambda prompt: is_held_out(prompt, seed))
    rows = finite_problems(task, size, seed, n, train_data, test_data)

    @functools.lru_cache(maxsize=2)
    def order(epoch: int) -> list[int]:
        return Random(f"{seed}/train/epoch {epoch}").sample(range(len(rows)), len(rows))

    return lambda index: rows[order(index // len(rows))[index % len(rows)]]


def finite_problems(task, size: int, seed: int, n: int, train_data: str, test_data: str) -> list[Problem]:
    """The `n` different training problems of `train_problems`; all rows of the file if n = 0."""
    if hasattr(task, "sample"):
        rng = Random(f"{seed}/rl")
        return different(task, size, rng, n, lambda prompt: is_held_out(prompt, seed), "train_n")
    is_test = is_in_file(task, test_data)
    rows = [p for p in task.read(train_data, "train") if not is_test(p.prompt)]
    if not rows:
        raise ValueError(f"every problem of {train_data} is in {test_data} too: there is nothing to train on")
    if n > len(rows):
        raise ValueError(f"{train_data} has only {len(rows)} problems to train on: lower --train_n={n}")
    return Random(f"{seed}/rl").sample(rows, n) if n else rows


def demo_problems(task, size: int, seed: int, n: int = 0) -> Callable[[int, int], Problem]:
    """A function problem(i, size) for the base's demonstrations. With n > 0 it leaves out the `n` problems
    that RL trains on, so that these are as new to the base as the held-out ones.
    """
    others = {p.prompt for p in finite_problems(task, size, seed, n, "", "")} if n else set()

    def problem(index: int, size: int = size) -> Problem:
        return drawn(task, size, f"{seed}/demo/{index}", lambda t: t in others or is_held_out(t, seed))

    return problem


def drawn(task, size: int, key: str, left_out: Callable[[str], bool]) -> Problem:
    """The first problem that the generator of this key draws and that is not left out. ValueError if there
    is none in 10,000.
    """
    rng = Random(key)
    for _ in range(10_000):
        problem = task.sample(rng, size)
        if not left_out(problem.prompt):
            return problem
    raise ValueError(f"size={size} has no problem that is free for training: raise --size or lower --train_n")


def different(
    task, size: int, rng: Random, n: int, left_out: Callable[[str], bool], setting: str
) -> list[Problem]:
    """`n` different problems, in the order in which they are drawn. ValueError if the task has fewer."""
    found, since_new = {}, 0
    while len(found) < n:
        problem = task.sample(rng, size)
        since_new += 1
        if not left_out(problem.prompt) and problem.prompt not in found:
            found[problem.prompt], since_new = problem, 0
        # All there are have been found: a last missing one turns up in a twentieth of these draws on average.
        if since_new > 1000 + 20 * HELD_OUT_ONE_IN * len(found):
            only = f"size={size} has only {len(found)} such problems, not {n}"
            raise ValueError(f"{only}: lower --{setting} or raise --size")
    return list(found.values())


def held_out_problems(task, size: int, seed: int, n: int, test_data: str = "") -> list[Problem]:
    """`n` different held-out problems, always the same for a seed. From a file: `n` of its rows, or all if it
    has fewer.

    ValueError if a task that draws its problems has fewer than `n`.
    """
    if not hasattr(task, "sample"):
        rows = task.read(test_data, "test")
        return (
            rows
            if len(rows) <= n
            else [rows[i] for i in sorted(Random("held-out").sample(range(len(rows)), n))]
        )
    rng, setting = Random(f"{seed}/held-out"), "eval_n (--n of eval.py)"
    return different(task, size, rng, n, lambda prompt: not is_held_out(prompt, seed), setting)


def verdicts(task, pairs: list[tuple[Problem, str]]) -> list[str]:
    """Each (problem, attempt) pair's verdict: "right", "wrong", "unparsable", "timeout" or "unjudged".

    "unjudged" means that the checker itself broke. It is never right.
    """
    if hasattr(task, "verdicts"):
        return task.verdicts(pairs)
    judged = []
    for problem, text in pairs:
        try:
            right = task.is_correct(problem, text)
        except Exception:  # a checker that a user wrote must not end a run
            right = None
        judged.append({True: "right", False: "wrong"}.get(right if type(right) is bool else None, "unjudged"))
    return judged


def read_rows(path: str | Path, fields: tuple[str, ...]) -> Iterator[tuple[str, dict]]:
    """The rows of a JSONL file (or .jsonl.gz), each with its place for messages, such as "FILE, row 3".

    ValueError if the file is missing or empty, a row is not a JSON object, or one of `fields` is missing in a
    row.
    """
    if not Path(path).is_file():
        raise ValueError(f"no file {path!s}: data/README.md says where each task's data is got")
    with reading(path, "JSON lines in UTF-8"), open_text(path) as file:
        lines = [(f"{path}, row {number}", line) for number, line in enumerate(file, 1) if line.strip()]
    if not lines:
        raise ValueError(f"{path} has no rows")
    for place, line in lines:
        with reading(place, "a JSON object"):
            row = json.loads(line)
        missing = [name for name in fields if not isinstance(row, dict) or name not in row]
        if missing:
            raise ValueError(f"{place}: no field {missing[0]!r}; a row needs {', '.join(fields)}")
        yield place, row


def wrong_attempts(path: str | Path, task) -> list[Problem]:
    """For offline repair: the problems of a file by eval.py --save with their wrong first attempts.

    The attempts are judged anew, because one that was cut off may hold the answer. Empty attempts are left
    out. ValueError if nothing is left.
    """
    problems = []
    for place, row in read_rows(path, ("prompt", "answer", "attempts")):
        prompt, answer, attempts = row["prompt"], row["answer"], row["attempts"]
        if not (isinstance(attempts, list) and attempts):
            raise ValueError(f"{place}: 'attempts' must be a list of texts, not empty")
        if not all(isinstance(text, str) for text in (prompt, answer, attempts[0])):
            raise ValueError(f"{place}: 'prompt', 'answer' and the attempts must be texts")
        if attempts[0].strip():
            problems.append(Problem(prompt, answer, attempts[0]))
    judged = verdicts(task, [(p, p.given) for p in problems])
    wrong = [p for p, verdict in zip(problems, judged, strict=True) if verdict != "right"]
    if not wrong:
        raise ValueError(f"{path} has no wrong first attempt: there is nothing to repair")
    return wrong
