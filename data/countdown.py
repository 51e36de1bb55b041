"""Countdown: reach a target with three numbers, each used once: `3,7,5:26` -> `3*7=21,21+5=26`. `size` is the
largest number.

To check an answer is easier than to find one, so a second attempt has something to gain. All steps are
graded.
"""

import re
from random import Random

from data import Attempt, Problem

DIGITS_PER_TOKEN = 2  # every number here is below 100 and so is one token
STEPS = re.compile(r"(\d{1,2})([-+*])(\d{1,2})=(\d{1,2}),(\d{1,2})([-+*])(\d{1,2})(?:=(\d{1,2}))?", re.ASCII)


def result(a: int, sign: str, b: int) -> int:
    return a + b if sign == "+" else a - b if sign == "-" else a * b


def random_steps(rng: Random, numbers: list[int]) -> tuple[str, int]:
    """Two random steps on the numbers that stay within 1 to 99: their text and what they come to."""
    while True:
        a, b, c = rng.sample(numbers, 3)
        first, second = rng.choice("+-*"), rng.choice("+-*")
        middle = result(a, first, b)
        left, right = rng.choice(((middle, c), (c, middle)))
        value = result(left, second, right)
        if 1 <= middle <= 99 and 1 <= value <= 99:
            return f"{a}{first}{b}={middle},{left}{second}{right}={value}", value


def sample(rng: Random, size: int) -> Problem:
    if size > 99:
        raise ValueError(f"size={size}: the largest number of countdown is 99 or less")
    numbers = [rng.randint(1, size) for _ in range(3)]
    steps, target = random_steps(rng, numbers)
    return Problem(f"{','.join(map(str, numbers))}:{target}", steps)


def parse(prompt: str) -> Problem:
    match = re.fullmatch(r"\s*(\d{1,2})\s*,\s*(\d{1,2})\s*,\s*(\d{1,2})\s*:\s*(\d{1,2})\s*", prompt, re.ASCII)
    if not match:
        raise ValueError("a countdown problem looks like 3,7,5:26, all below 100")
    return Problem(
        f"{match[1]},{match[2]},{match[3]}:{match[4]}", ""
    )  # there may be no answer: the checker needs none


def is_correct(problem: Problem, text: str) -> bool:
    steps = STEPS.fullmatch(text)
    if not steps or steps[8] is None:
        return False
    a, middle, left, right, value = int(steps[1]), int(steps[4]), int(steps[5]), int(steps[7]), int(steps[8])
    if (
        result(a, steps[2], int(steps[3])) != middle
        or result(left, steps[6], right) != value
        or middle not in (left, right)
    ):
        return False
    numbers, target = problem.prompt.split(":")
    used = sorted([a, int(steps[3]), right if left == middle else left])
    return used == sorted(map(int, numbers.split(","))) and value == int(target)


def attempt(problem: Problem, kind: str, rng: Random) -> Attempt:
    numbers, target = problem.prompt.split(":")
    text = problem.answer
    for tries in range(10**6 if kind != "right" else 0):
        text, value = random_steps(rng, list(map(int, numbers.split(","))))
        near = text.split(",")[0] == problem.answer.split(",")[0]  # a near miss begins like the answer
        if value != int(target) and (kind == "far" or near or tries > 200):
            break
    answer, equals, value = text.rpartition("=")
    return Attempt(answer + equals, value)


def honest(problem: Problem, text: str) -> Attempt | None:
    """The same two steps with the true last number, which is what tells a miss from a hit."""
    steps = STEPS.fullmatch(text)
    if not steps:
        return None
    answer = text if steps[8] is None else text.rpartition("=")[0]
    return Attempt(f"{answer}=", str(result(int(steps[5]), steps[6], int(steps[7]))))
