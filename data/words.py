"""Word problems for pretrained models. The model answers first and then shows its working:

    Emma has 7 pens, gets 4, loses 3, gets 5.     ->  13: 11 8 13
    Tom has 8 cards, loses 3, loses all, gets 4.  ->  4: 5 0 4

The working is how many there are after each change. Only the answer in front of it is graded. `size` is the
number of changes. This is data/calculator.py in words. To say the answer at once takes mental arithmetic in
`size` steps, which is too much for a small model. LONG is the share of such problems. In the others all is
lost before the last change, so the answer stands in the problem. The working takes one small step at a time.
So it is often right where the answer before it is wrong, and a second attempt can go by it.
"""

import re
from random import Random

from data import Attempt, Problem

CORRECTION_REQUEST = "Check your answer."
FEEDBACK_REQUEST = "Is your answer right or wrong?"
LONG = 0.5  # the share of problems that can't be said at once: it sets the ceiling of turn 1
MOST_CHANGES = 10  # of a problem that a person types, too
NAMES = ("Tom", "Anna", "Ben", "Maria", "Sam", "Lucy", "Max", "Emma")
THINGS = ("pens", "cards", "books", "coins", "eggs", "shells", "stamps")
CHANGE = re.compile(r", (gets|loses) (\d{1,3}|all)", re.ASCII)
START = r"[A-Z][a-z]+ has (\d{1,3}) [a-z]+"
PROMPT = re.compile(rf"{START}(?:{CHANGE.pattern}){{1,{MOST_CHANGES}}}\.", re.ASCII)


def sample(rng: Random, size: int) -> Problem:
    """A problem of `size` changes. Before the last one, if it is not the only one, all is lost, except with
    probability LONG.
    """
    if size > MOST_CHANGES:
        raise ValueError(f"size={size}: the most changes of words are {MOST_CHANGES}")
    lost = size - 2 if rng.random() >= LONG else None
    start = count = rng.randint(2, 20)
    # The numbers alone decide the name and the thing, so a held-out problem has numbers of its own.
    text = f"{NAMES[start % len(NAMES)]} has {start} {THINGS[start % len(THINGS)]}"
    for i in range(size):
        if i == lost:
            text, count = text + ", loses all", 0
            continue
        gain = not count or rng.random() < 0.5
        n = rng.randint(1, 5 if gain else min(5, count))
        text, count = f"{text}, {'gets' if gain else 'loses'} {n}", count + (n if gain else -n)
    return parse(text + ".")


def parse(prompt: str) -> Problem:
    text = prompt.strip()
    if not PROMPT.fullmatch(text) or min(counts(text)) < 0:
        raise ValueError("a problem in words looks like: Emma has 7 pens, gets 4, loses 3, gets 5.")
    return Problem(text, str(counts(text)[-1]))


def counts(prompt: str) -> list[int]:
    """How many there are after each change."""
    count, found = int(PROMPT.fullmatch(prompt)[1]), []
    for verb, n in CHANGE.findall(prompt):
        n = count if n == "all" else int(n)
        count += n if verb == "gets" else -n
        found.append(count)
    return found


def is_correct(problem: Problem, text: str) -> bool:
    return graded(text) == problem.answer


def graded(text: str) -> str:
    """The part of an attempt that counts: two attempts are votes for the same answer if it is equal."""
    return text.split(":", 1)[0]


def level(problem: Problem) -> int:
    """The number of changes since all was lost: 1 is easy, 2 and more can't be said at once."""
    return problem.prompt.rpartition("loses all")[2].count(",")


def attempt(problem: Problem, kind: str, rng: Random) -> Attempt:
    answer = right = int(problem.answer)
    while kind == "near" and (answer == right or answer < 0):
        answer = right + rng.choice((-2, -1, 1, 2))
    while kind == "far" and answer == right:
        answer = rng.randint(0, 40)
    return Attempt(f"{answer}:", working(problem))


def honest(problem: Problem, text: str) -> Attempt | None:
    answer = graded(text)
    is_number = re.fullmatch(r"0|[1-9]\d{0,2}", answer, re.ASCII)
    return Attempt(f"{answer}:", working(problem)) if is_number else None


def working(problem: Problem) -> str:
    return "".join(f" {count}" for count in counts(problem.prompt))
