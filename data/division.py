"""Exact division by one digit, with a written check: `2526/6` -> `431*6=2586>`, and after correction
`421*6=2526=`.

Only the quotient is graded. The check is there for correction to go by: the product, and whether it is
smaller than the dividend (`<`), larger (`>`) or equal (`=`). A true check shows that a quotient is wrong, and
in which direction. By how much takes one more step: (dividend - product) / divisor. How far a trained model
writes true checks and goes by them is measured: `swap_test` in eval.py. `size` is the number of the
quotient's digits.
"""

import re
from random import Random

from data import Attempt, Problem

DIGITS_PER_TOKEN = 1  # arithmetic is learned digit by digit


def sample(rng: Random, size: int) -> Problem:
    quotient, divisor = rng.randrange(10 ** (size - 1), 10**size), rng.randint(2, 9)
    return Problem(f"{quotient * divisor}/{divisor}", str(quotient))


def parse(prompt: str) -> Problem:
    match = re.fullmatch(r"\s*(\d{1,12})\s*/\s*([2-9])\s*=?\s*", prompt, re.ASCII)
    if not match or int(match[1]) % int(match[2]):
        raise ValueError(
            "a division problem looks like 2526/6: at most 12 digits, a divisor from 2 to 9, no remainder"
        )
    return Problem(f"{match[1]}/{match[2]}", str(int(match[1]) // int(match[2])))


def is_correct(problem: Problem, text: str) -> bool:
    return graded(text) == problem.answer


def graded(text: str) -> str:
    """The part of an attempt that counts: two attempts are votes for the same answer if it is equal."""
    return text.split("*", 1)[0]


def level(problem: Problem) -> int:
    """The divisor: 2 is easy, 7 hard."""
    return int(problem.prompt.split("/")[1])


def attempt(problem: Problem, kind: str, rng: Random) -> Attempt:
    quotient = problem.answer
    if kind == "near":  # as a model errs: the inner digits are the hard ones
        places = range(1, len(quotient) - 1) if len(quotient) > 2 else range(len(quotient))
        for place in rng.sample(places, min(len(places), rng.choice((1, 1, 2)))):
            low = 1 if place == 0 else 0  # a quotient does not begin with 0
            digit = rng.choice([d for d in range(low, 10) if d != int(quotient[place])])
            quotient = f"{quotient[:place]}{digit}{quotient[place + 1 :]}"
    while kind == "far" and quotient == problem.answer:
        quotient = str(rng.randrange(10 ** (len(quotient) - 1), 10 ** len(quotient)))
    return with_check(problem, quotient)


def honest(problem: Problem, text: str) -> Attempt | None:
    quotient = graded(text)
    return with_check(problem, quotient) if re.fullmatch(r"[1-9]\d{0,11}", quotient, re.ASCII) else None


def with_check(problem: Problem, quotient: str) -> Attempt:
    dividend, divisor = map(int, problem.prompt.split("/"))
    product = int(quotient) * divisor
    sign = "<" if product < dividend else ">" if product > dividend else "="
    return Attempt(f"{quotient}*", f"{divisor}={product}{sign}")
