"""The keys of a pocket calculator that shows one digit: `8+3C7*3` -> `1:171`.

Each key works on the digit that is shown: 8+3 shows 1 (the last digit of 11), C7 clears and shows 7, 7*3
shows 1. An attempt is the answer, a colon, and the working: the digit shown after each key. Only the answer
is graded. `size` is the number of keys.

Why this task? It has what the paper's problems have, in miniature:

- A ceiling. To say the answer at once, all keys behind the last C must be worked out in a single pass through
  the model. Two or more of them in a row are too much for two layers, whatever RL does. LONG is the share of
  such problems; on the others the last key is a C and shows the answer.
- A second attempt that can be better. The working takes one key a token, which is easy, so it is right where
  the answer before it is wrong. Whoever reads it can correct the answer.
"""

import re
from random import Random

from data import Attempt, Problem

DIGITS_PER_TOKEN = 1
LONG = 0.4  # the share of problems that can't be said at once: it sets the ceiling of turn 1
MOST_KEYS = 30  # of a problem that a person types, too
KEYS = {"+": lambda shown, digit: (shown + digit) % 10, "*": lambda shown, digit: shown * digit % 10}
KEYS["C"] = lambda shown, digit: digit


def sample(rng: Random, size: int) -> Problem:
    """A problem whose last C has no key behind it or, with probability LONG, two to `size` keys."""
    if size > MOST_KEYS:
        raise ValueError(f"size={size}: the most keys of calculator are {MOST_KEYS}")
    behind = rng.randint(2, max(2, size)) if rng.random() < LONG else 0
    keys = [rng.choice("+*C") for _ in range(size - behind - 1)] + ["C"] + rng.choices("+*", k=behind)
    keys = keys[-size:]  # with `size` keys behind it, the C is not there: the first digit takes its place
    return parse(str(rng.randint(2, 9)) + "".join(f"{key}{rng.randint(2, 9)}" for key in keys))


def parse(prompt: str) -> Problem:
    if not re.fullmatch(rf"\d([+*C]\d){{1,{MOST_KEYS}}}", prompt.strip(), re.ASCII):
        raise ValueError("keys look like 8+3C7*3: digits with +, * or C (clear) between them")
    return Problem(prompt.strip(), working(prompt.strip())[-1])


def working(prompt: str) -> str:
    """The digit that is shown after each key."""
    shown, digits = int(prompt[0]), ""
    for key, digit in zip(prompt[1::2], prompt[2::2], strict=True):
        shown = KEYS[key](shown, int(digit))
        digits += str(shown)
    return digits


def is_correct(problem: Problem, text: str) -> bool:
    return graded(text) == problem.answer


def graded(text: str) -> str:
    """The part of an attempt that counts: two attempts are votes for the same answer if it is equal."""
    return text.split(":", 1)[0]


def level(problem: Problem) -> int:
    """The number of keys behind the last C: 0 is easy, 2 and more can't be said at once."""
    return len(problem.prompt.rpartition("C")[2]) // 2


def attempt(problem: Problem, kind: str, rng: Random) -> Attempt:
    answer = problem.answer
    while kind != "right" and answer == problem.answer:
        answer = str(rng.randrange(10))  # a digit has no near misses: both kinds of wrong are the same
    return Attempt(f"{answer}:", working(problem.prompt))


def honest(problem: Problem, text: str) -> Attempt | None:
    answer = graded(text)
    return Attempt(f"{answer}:", working(problem.prompt)) if re.fullmatch(r"\d", answer, re.ASCII) else None
