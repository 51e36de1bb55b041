"""The course's task: which of two digits is larger? `37` -> `3<7`, and after correction `7>3`.

Only the first digit is graded. The base says one of the two at random and then compares truthfully: it does
not know what is right before it speaks, but its own comparison tells it afterwards. So a first attempt is
right half of the time, and whoever reads it can correct every mistake. A run lasts seconds, and eq. 2 has a
closed form to compare it with. `make.py` puts this file into the student's data/.
"""

import re
from random import Random

from data import Attempt, Problem

DIGITS_PER_TOKEN = 1


def sample(rng: Random, size: int) -> Problem:
    return parse("".join(rng.sample("0123456789", 2)))  # `size` has no meaning here


def parse(prompt: str) -> Problem:
    if not re.fullmatch("[0-9]{2}", prompt) or prompt[0] == prompt[1]:
        raise ValueError("a problem looks like 37: two different digits")
    return Problem(prompt, max(prompt))


def is_correct(problem: Problem, text: str) -> bool:
    return text[:1] == problem.answer


def attempt(problem: Problem, kind: str, rng: Random) -> Attempt:
    """A guess, whatever `kind` says: the demonstrations of the base are right by chance alone."""
    return honest(problem, rng.choice(problem.prompt))


def honest(problem: Problem, text: str) -> Attempt | None:
    mine = text[:1]
    if not mine or mine not in problem.prompt:
        return None
    other = problem.prompt.replace(mine, "")
    return Attempt(mine, (">" if mine > other else "<") + other)
