"""Word problems in two steps, for pretrained models. The model answers first and then shows its working:

    Tom has 37 pens, gets 6, loses 8. How many now?
    25. Working: 37+6=43, 43-8=35

Only the number at the beginning is graded. To name it at once takes mental arithmetic. The working takes one
small step at a time, so it is more often right than the answer before it. That is what a second attempt can
go by: it need only read what the first one has worked out. `size` is the largest number that is added or
taken away.
"""

import re
from random import Random

from data import Attempt, Problem

CORRECTION_REQUEST = "Check your answer."
FEEDBACK_REQUEST = "Is your answer right or wrong?"
NAMES = ("Tom", "Anna", "Ben", "Maria", "Sam", "Lucy", "Max", "Emma")
THINGS = ("pens", "cards", "books", "coins", "eggs", "shells", "stamps", "apples")
PROMPT = re.compile(
    r"\s*[A-Z][a-z]+ has (\d{1,4}) [a-z]+, gets (\d{1,4}), loses (\d{1,4})\. How many now\?\s*", re.ASCII
)


def sample(rng: Random, size: int) -> Problem:
    start, gain, loss = rng.randint(11, 89), rng.randint(2, max(2, size)), rng.randint(2, max(2, size))
    loss = min(loss, start + gain)
    # The numbers alone decide the name and the thing, so a held-out problem has numbers of its own.
    name, thing = NAMES[(start + gain) % len(NAMES)], THINGS[(start + loss) % len(THINGS)]
    return parse(f"{name} has {start} {thing}, gets {gain}, loses {loss}. How many now?")


def parse(prompt: str) -> Problem:
    match = PROMPT.fullmatch(prompt)
    start, gain, loss = map(int, match.groups()) if match else (0, 0, 1)
    if start + gain < loss:
        raise ValueError("a problem in words looks like: Tom has 37 pens, gets 6, loses 8. How many now?")
    return Problem(prompt.strip(), str(start + gain - loss))


def is_correct(problem: Problem, text: str) -> bool:
    return graded(text) == problem.answer


def graded(text: str) -> str:
    """The part of an attempt that counts: two attempts are votes for the same answer if it is equal."""
    return text.split(".", 1)[0]


def attempt(problem: Problem, kind: str, rng: Random) -> Attempt:
    answer = right = int(problem.answer)
    while kind == "near" and (answer == right or answer < 0):
        answer = right + rng.choice((-10, -2, -1, 1, 2, 10))
    while kind == "far" and answer == right:
        answer = rng.randint(1, 99)
    return with_working(problem, str(answer))


def honest(problem: Problem, text: str) -> Attempt | None:
    answer = graded(text)
    return with_working(problem, answer) if re.fullmatch(r"0|[1-9]\d{0,2}", answer, re.ASCII) else None


def with_working(problem: Problem, answer: str) -> Attempt:
    start, gain, loss = map(int, PROMPT.fullmatch(problem.prompt).groups())
    between = start + gain
    return Attempt(f"{answer}.", f" Working: {start}+{gain}={between}, {between}-{loss}={between - loss}")
