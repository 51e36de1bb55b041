"""Multiplication of two numbers, answered directly: `47*31` -> `1457`. `size` is the number of digits of
each.
"""

import re
from random import Random

from data import Problem
from data.addition import DIGITS_PER_TOKEN, attempt, honest, is_correct  # noqa: F401


def sample(rng: Random, size: int) -> Problem:
    a, b = (rng.randrange(10 ** (size - 1), 10**size) for _ in range(2))
    return Problem(f"{a}*{b}", str(a * b))


def parse(prompt: str) -> Problem:
    match = re.fullmatch(r"\s*(\d{1,6})\s*\*\s*(\d{1,6})\s*=?\s*", prompt, re.ASCII)
    if not match:
        raise ValueError("a multiplication problem looks like 47*31")
    return Problem(f"{match[1]}*{match[2]}", str(int(match[1]) * int(match[2])))
