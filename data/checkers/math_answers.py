r"""The checker of mathematics: finds the answer in a text and tells whether two answers are equal. No eval.

`extract_answer` takes what the text states last. `answers_equal` reads both answers as Values
(`math_values.py`) and compares these. What was decided:

- A number must be worked out. Where the reference is 120, the answers `5!`, `100+20` and `240/2` are wrong;
  otherwise restating the problem would be right. Where the reference is `5!`, 120 is right. Expressions with
  roots or variables have no one form to ask for, so any form is right, also `\sqrt4` for 2 and `i^2` for -1.
- Exact is exact: 0.333 is not 1/3. Numbers such as roots and pi are equal if about 11 digits agree.
- Variables are real. Expressions are compared where both are real: \sqrt x\sqrt y equals \sqrt{xy}.
- A list without brackets may be in any order, and it equals the set of its items. "3 or 4" is right where
  both are asked for, and never where one is. Only a set may repeat a member. Tuples keep their order.
- An inequality for one variable is the interval of its values: x > 5 equals (5, \infty). But what is not
  solved, as x^2 = 4 or |x-3| < 2, does not equal its solutions.
- Words after a number are dropped, and so is `x =` before it. But where both answers have a unit, or both are
  equations, these must agree, except that f(x) may be called y. %, degrees, noon and north are units: 50% is
  50, not 0.5. A number in another base keeps it.
"""

import functools
import operator
import re
from collections.abc import Callable

from data.checkers.math_values import Unreadable, Value, close, lift, points, read_value, same_number

LONGEST_TEXT, LONGEST_SENTENCE = 20_000, 2_000  # characters; of a longer text only the end is looked at

BOX = re.compile(r"\\(?:boxed|fbox)\s*(?:\{|([^\s{}$.,\\]+)|(?![A-Za-z]))")
STATED = re.compile(r"final\s+answer[\s*]*(?:is\b|:|=)|####", re.I)
SAID = re.compile(r"\banswer[\s*]*(?:is\b|:|=)", re.I)
ONE_NUMBER = r"[-+]?\$?[-+]?\d[\d,]*(?:\.\d+)?(?:/\d+)?%?"
NUMBERS = re.compile(rf"(?<![\w.]){ONE_NUMBER}(?:(?:,|\s|\bor\b|\band\b)+{ONE_NUMBER})*")
BETWEEN_BOXES = re.compile(r"(?:[\s$,;]|\\text\s*\{|\}|\\quad|\b(?:and|or)\b)*", re.I)
FORMULA = r"\$\$.*?\$\$|\$(?:(?!\.\s+[A-Z])[^$])+\$|\\\(.*?\\\)|\\\[.*?\\\]"
SENTENCE = re.compile(rf"(?:{FORMULA}|(?!\.(?:\s|\**$)|\n).)*", re.S)


def guarded(function: Callable) -> Callable:
    """The same function, but it returns None where it raised.

    No text is known that makes it raise. But a model may write any text, and none may end a run. So this is
    the last resort, for RecursionError and MemoryError too.
    """

    @functools.wraps(function)
    def function_or_none(*texts):
        try:
            return function(*texts)
        except Exception:
            return None

    return function_or_none


@guarded
def extract_answer(text: str | None) -> str | None:
    r"""The answer that a text states, or None if there is none.

    The last of `\boxed{...}`, "final answer is ..." and "#### ..." counts. If the text has none of these, the
    last "answer is ..." counts, and without that the last number. Alternatives stay together: "3 or 4" is a
    list of two, which equals neither, and so is `\boxed{3}` or `\boxed{4}`. An unfinished answer gives None.
    """
    text = (text or "")[-LONGEST_TEXT:]
    boxes, stated, said, numbers = (list(pattern.finditer(text)) for pattern in (BOX, STATED, SAID, NUMBERS))
    if boxes and (not stated or boxes[-1].start() > stated[-1].start()):
        answer = boxed(text, boxes)
    elif stated or said:
        phrase = (stated or said)[-1]
        answer = stated_after(text[phrase.end() :], to_line_end=phrase[0] == "####")
    else:
        answer = numbers[-1][0].rstrip(",") if numbers else ""
    return answer.strip().strip("$").strip() or None


def boxed(text: str, boxes: list[re.Match]) -> str:
    r"""What the last box holds, after what the boxes just before it hold; "" if its braces don't close.

    If a few boxes hold the same value, as in `\boxed{1/4}` or `\boxed{0.25}`, only the last one counts.
    """
    closing, open_braces, contents, start = {}, [], [], 0
    for match in re.finditer(r"\\.|[{}]", text, re.S):
        if match[0] == "{":
            open_braces.append(match.start())
        elif match[0] == "}" and open_braces:
            closing[open_braces.pop()] = match.start()
    for box in reversed(boxes):
        end = box.end() if box[1] else closing.get(box.end() - 1)
        if end is None or contents and not BETWEEN_BOXES.fullmatch(text, end + (not box[1]), start):
            break
        contents.append(box[1] or text[box.end() : end])
        start = box.start()
    if len(contents) <= 5 and all(answers_equal(contents[0], other) for other in contents[1:]):
        contents = contents[:1]
    return ", ".join(reversed(contents))


def stated_after(text: str, to_line_end: bool) -> str:
    """What follows "final answer is": the text up to "I hope (it is correct)", else one sentence or line."""
    text = text.lstrip(" \n\t*:=")[:LONGEST_SENTENCE]
    head, hope, _ = text.partition("I hope")
    if to_line_end:
        return text.partition("\n")[0].rstrip(" *.")
    return (head if hope else SENTENCE.match(text)[0]).rstrip(" \n*.")


@guarded
def answers_equal(answer: str | None, reference: str | None) -> bool | None:
    """Whether an answer is right, in bounded time; None if the answer or the reference can't be read."""
    a, b = read_answer(answer), read_answer(reference)
    return None if a is None or b is None else same(a, b)


@guarded
def read_answer(text: str | None) -> Value | None:
    """The Value of an answer; None if it is empty or too large, or if its brackets don't match."""
    return read_value(text or "")


def same(a: Value, b: Value) -> bool:
    """Whether answer `a` is the reference `b`."""
    if a.unit and b.unit and a.unit != b.unit:
        return False
    if a.kind == b.kind == "number":
        return (a.plain or not b.plain) and same_number(a, b)
    if a.kind == ":=" and b.kind not in ("=", ":="):
        return same(a.parts[1], b)
    if b.kind == ":=" and a.kind not in ("=", ":="):
        return same(a, b.parts[1])
    if {a.kind, b.kind} <= {"=", ":="}:
        return all(map(same, a.parts, b.parts)) or same_equation(a, b)
    if {a.kind, b.kind} <= {"list", "set"}:
        return same_items(a, b)
    if a.kind != b.kind or len(a.parts) != len(b.parts):
        return False
    return all(same(x, y) if isinstance(x, Value) else x == y for x, y in zip(a.parts, b.parts, strict=True))


def same_items(a: Value, b: Value) -> bool:
    """Whether two lists, or a list and a set, have the same items. A list must name each equally often."""
    if "set" in (a.kind, b.kind):
        matches = [[same(x, y) for y in b.parts] for x in a.parts]
        return all(map(any, matches)) and all(map(any, zip(*matches, strict=True)))
    left = list(b.parts)
    for x in a.parts:
        found = next((place for place, y in enumerate(left) if same(x, y)), None)
        if found is None:
            return False
        del left[found]
    return not left


def same_equation(a: Value, b: Value) -> bool:
    """Whether the differences of the sides are proportional, as in y = 2x+1 and 4x-2y+2 = 0."""
    try:
        pairs = points(lift(operator.sub, *a.parts), lift(operator.sub, *b.parts))
    except Unreadable:
        return False
    pairs = [(x, y) for x, y in pairs if x is not None and y is not None]
    return len(pairs) > 1 and all(pairs[0]) and all(close(pairs[0][0] * y, x * pairs[0][1]) for x, y in pairs)
