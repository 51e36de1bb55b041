"""What a task that draws its problems promises, checked before the first step.

Tasks are what users write, so each fault is one line that names the task, the function and what it gave.
"""

from collections.abc import Callable
from random import Random

from data import Attempt, Problem
from data.tokenizer import Tokenizer

TRIED = 50  # problems; it takes a fraction of a second
NAMES = ("sample", "parse", "is_correct", "attempt", "honest")
ODD_TEXTS = ("", "?", "0", "-1", "1" * 40, "\n")  # what a model may write


def check_task(task, size: int, tokenizer: Tokenizer, max_new: int) -> None:
    """ValueError in one line for the first promise of data/__init__.py that the module does not keep.

    `sample` gives different problems, and `parse` reads their prompts back. `is_correct` gives True for a
    right attempt, False for a near and a far one, and one of the two for any text. `honest` gives an Attempt
    or None. A right attempt can be written in `max_new` tokens, the end of turn among them.
    """
    name, rng, longest = task.__name__.removeprefix("data."), Random(0), 0

    def fail(function: str, args: tuple, value, wanted: str):
        shown = ", ".join(repr(a)[:40] for a in args)
        raise ValueError(f"task {name}: {function}({shown}) gives {repr(value)[:60]}; it must give {wanted}")

    def call(function: str, *args):
        try:
            return getattr(task, function)(*args)
        except Exception as error:
            shown = ", ".join(repr(a)[:40] for a in args)
            what = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"[:100]
            raise ValueError(f"task {name}: {function}({shown}) raises {what}") from None

    for function in NAMES:
        if not isinstance(getattr(task, function, None), Callable):
            raise ValueError(f"task {name} has no function {function}: data/README.md says what it must do")
    problems = [call("sample", rng, size) for _ in range(TRIED)]
    for problem in problems:
        fine = isinstance(problem, Problem) and all(isinstance(x, str) for x in problem) and problem.prompt
        if not fine:
            fail("sample", (rng, size), problem, "a Problem of two texts, whose prompt is not empty")
    if len({p.prompt for p in problems}) < 3:
        fail("sample", (rng, size), problems[0].prompt, f"different problems; it did so in {TRIED} draws")
    for problem in problems:
        read = call("parse", problem.prompt)
        if not (isinstance(read, Problem) and read.prompt == problem.prompt):
            fail("parse", (problem.prompt,), read, "the problem with this prompt")
        for kind, verdict in (("right", True), ("near", False), ("far", False)):
            attempt = call("attempt", problem, kind, rng)
            if not (isinstance(attempt, Attempt) and all(isinstance(x, str) for x in attempt)):
                fail("attempt", (problem, kind), attempt, "an Attempt of two texts")
            try:
                tokens = len(tokenizer.encode(attempt.text)) + 1
                tokenizer.encode(problem.prompt)
            except ValueError as error:
                raise ValueError(f"task {name}: {attempt.text[:40]!r} or its prompt: {error}") from None
            longest = max(longest, tokens if kind == "right" else 0)
            if (right := call("is_correct", problem, attempt.text)) is not verdict:
                fail("is_correct", (problem, attempt.text), right, f"{verdict} for a {kind} attempt")
            for text in (attempt.text, *ODD_TEXTS):
                if type(judged := call("is_correct", problem, text)) is not bool:
                    fail("is_correct", (problem, text), judged, "True or False")
                if not isinstance(made := call("honest", problem, text), Attempt | None):
                    fail("honest", (problem, text), made, "an Attempt or None")
    if longest > max_new:
        raise ValueError(f"task {name}: a right attempt takes {longest} tokens: raise --max_new={max_new}")
