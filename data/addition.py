"""Addition of two numbers, answered directly: `4711+1234` -> `5945`. `size` is the number of digits.

The contrast to division: an attempt shows nothing that could tell a right sum from a wrong one, so there is
little for a second attempt to gain.
"""

import re
from random import Random

from data import Attempt, Problem

DIGITS_PER_TOKEN = 1


def sample(rng: Random, size: int) -> Problem:
    a, b = (rng.randrange(10 ** (size - 1), 10**size) for _ in range(2))
    return Problem(f"{a}+{b}", str(a + b))


def parse(prompt: str) -> Problem:
    match = re.fullmatch(r"\s*(\d{1,12})\s*\+\s*(\d{1,12})\s*=?\s*", prompt, re.ASCII)
    if not match:
        raise ValueError("an addition problem looks like 4711+1234")
    return Problem(f"{match[1]}+{match[2]}", str(int(match[1]) + int(match[2])))


def is_correct(problem: Problem, text: str) -> bool:
    return text == problem.answer


def attempt(problem: Problem, kind: str, rng: Random) -> Attempt:
    digits = problem.answer
    while kind != "right" and digits == problem.answer:
        if kind == "near":
            place = rng.randrange(len(digits))
            digits = f"{digits[:place]}{rng.randrange(10)}{digits[place + 1 :]}"
        else:
            digits = str(rng.randrange(10 ** (len(digits) - 1), 10 ** len(digits)))
    return Attempt(digits, "")


def honest(problem: Problem, text: str) -> Attempt | None:
    return Attempt(text, "")  # there is no working to make true
