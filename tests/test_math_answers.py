"""Answers in mathematics: finding them in a text, comparing two, and never failing or hanging on any text."""

import json
import re
import time
from fractions import Fraction
from pathlib import Path
from random import Random
from typing import NamedTuple

import pytest

from data import Problem, load_task
from data.checkers import math_answers
from data.checkers.math_answers import answers_equal, extract_answer, read_answer, same

ASSETS = Path(__file__).parent.parent.parent / "shared" / "assets"


class Pair(NamedTuple):
    topic: str
    equal: bool  # whether `answer` is right where `reference` is asked for, as decided by hand
    answer: str
    reference: str


def sections(name: str) -> list[list[list[str]]]:
    """The fields of each line of a file beside this one, by section. A section begins with "# topic"."""
    parts = re.split("^# ", Path(__file__).with_name(name).read_text(encoding="utf-8"), flags=re.M)[1:]
    return [[line.split("\t") for line in part.splitlines() if line] for part in parts]


# Each line of the file is a verdict, an answer and a reference.
PAIRS = [Pair(t, v == "equal", a, b) for (t,), *rows in sections("answer_pairs.tsv") for v, a, b in rows]
FOUND, MATH_STYLE = ([(text, answer) for answer, text in rows[1:]] for rows in sections("extracted.tsv"))

EXTRACTED = [
    *FOUND,
    (r"$\boxed{\frac{1}{4}}$, or $\boxed{0.25}$", "0.25"),  # one value, written in two ways
    ("The final answer is $[1,\n2]$. I hope it is correct.", "[1,\n2]"),
    ("The final answer is $3$. I hope it is correct. \nFinal Answer: The final answer is $5$.", "5"),
    ("Final answer:\n\n$$\n\\frac{2}{3}\n$$\nDone.", r"\frac{2}{3}"),
    ("Answer: 2.75\nas 4 of 5 said", "2.75"),
    ("16 - 3 = <<16-3=13>>13\n#### 13", "13"),
    ("#### 18\n#### 19 dollars\nthanks 5", "19 dollars"),
    ("The answer is 3. " + "No. " * 10_000 + "It is 4", "4"),  # the end of a long text counts
    *((text, None) for text in ("", "no idea", r"\boxed{}", r"\boxed", r"\boxed{3}, then \boxed{", "####")),
    *((text, None) for text in (r"the sum 12 is \boxed{\frac{1}{2}", "5 is it. The final answer is")),
]  # fmt: skip
NO_ANSWERS = [
    (None, "5"), ("", "5"), (" ", " "), ("$$", "$$"), (".", "."), ("--", "0"), (r"\left", ""), ("{}", ""),
    ("()", "()"), ("(1,2", "(1,2)"), (r"\frac{1}{", r"\frac{1}{"), (None, None), ("", ""),
    ("1" + "+1" * 100, "101"), ("101", "1" + "+1" * 100),  # more tokens than are read
]  # fmt: skip


@pytest.mark.parametrize("text, answer", EXTRACTED)
def test_extraction(text, answer):
    assert extract_answer(text) == answer


@pytest.mark.parametrize("topic", dict.fromkeys(pair.topic for pair in PAIRS))
def test_pairs(topic):
    pairs = [pair for pair in PAIRS if pair.topic == topic]
    assert [pair for pair in pairs if answers_equal(pair.answer, pair.reference) != pair.equal] == []
    texts = [text for pair in pairs for text in (pair.answer, pair.reference)]
    assert [text for text in texts if not answers_equal(text, text)] == []


@pytest.mark.parametrize("answer, reference", NO_ANSWERS)
def test_what_cannot_be_read_equals_nothing(answer, reference):
    assert answers_equal(answer, reference) is None


def test_units_differ():
    text = """cm, mm, km, meters, inches, feet, yards, miles, seconds, minutes, hours, days, weeks, months,
        years, grams, kilograms, pounds, ounces, liters, ml, gallons, dollars, cents, euros, degrees, percent,
        mph, radians, square cm, cubic cm, noon, midnight, north, south, east, west, mod 7, mod 8"""
    units = re.split(r",\s+", text)
    assert [(a, b) for a in units for b in units if answers_equal(f"5 {a}", f"5 {b}") != (a is b)] == []


def test_identities_of_several_variables_hold_for_all_signs():
    """ln x + ln y is ln(xy), but |xy| is not xy: that takes a point where the two letters differ in sign."""
    letters = "abcdfghjklmnpqrstuvwxyzABCDEFGHJKLMNPQRSTUVWXYZ"  # e, i and PI are numbers, and "no" is a word
    for x, y in zip(letters, letters[1:] + letters[:1], strict=True):
        assert answers_equal(rf"\ln {x} + \ln {y}", rf"\ln({x}{y})")
        assert answers_equal(f"|{x}||{y}|", f"|{x}{y}|")
        assert answers_equal(rf"\sqrt{{-{x}}}\sqrt{{-{y}}}", rf"\sqrt{{{x}{y}}}")
    for x in letters:
        assert [y for y in letters if y != x and answers_equal(f"|{x}{y}|", f"{x}{y}")] == []
    for name in [*letters, *(f"x_{{{number}}}" for number in range(1000))]:
        assert not answers_equal(f"|{name}|", name) and not answers_equal(f"|{name}|", f"-{name}")


def test_solutions_as_in_MATH():
    for solution, reference in MATH_STYLE:
        assert answers_equal(extract_answer(solution), reference), reference
    for i, (solution, _) in enumerate(MATH_STYLE):
        for j, (_, reference) in enumerate(MATH_STYLE):
            assert i == j or not answers_equal(extract_answer(solution), reference), (solution, reference)


def ways_to_write(value: Fraction, rng: Random) -> list[str]:
    n, d, k = abs(value.numerator), value.denominator, rng.randint(2, 9)
    sign = "-" if value < 0 else ""
    ways = []
    if d > 1:
        ways = [f"{sign}{n}/{d}", f"{sign}{n * k}/{d * k}", rf"$x = {sign}{n} / {d}$"]
        ways += [rf"{sign}\frac{{{n}}}{{{d}}}", rf"\dfrac{{{sign}{n}}}{{{d}}}"]
    if d == 1:
        ways += [f"{sign}{n}", f"{sign}{n}.00", rf"{sign}{n}\text{{ apples}}"]
        ways += [f"{sign}{n:,}".replace(",", comma) for comma in (",", "{,}", " ")]
    elif n > d:  # a mixed number
        ways += [f"{sign}{n // d} {n % d}/{d}", rf"{sign}{n // d}\frac{{{n % d}}}{{{d}}}"]
    if 10**4 % d == 0:
        ways.append(f"{sign}{n // d}.{n % d * 10**4 // d:04d}")
    return ways


def test_random_fractions_in_all_ways_of_writing_them():
    rng = Random(0)
    for _ in range(40):
        size, below = rng.randint(1, rng.choice((20, 10**6))), rng.choice((1, 1, 2, 3, 7, 8, 12, 125))
        value = Fraction(rng.choice((-1, 1)) * size, below)
        other = value + rng.choice((-1, 1)) * Fraction(1, rng.choice((1, 10, value.denominator, 10**4)))
        for a in ways_to_write(value, rng):
            assert all(answers_equal(a, b) for b in ways_to_write(value, rng)), (a, value)
            for b in ways_to_write(other, rng):
                assert not answers_equal(a, b) and not answers_equal(b, a), (a, b)


def test_random_polynomials_factored_and_expanded():
    rng = Random(1)
    for _ in range(100):
        a, b, c, d = (rng.choice([-7, -3, -2, 2, 3, 5]) for _ in range(4))
        factored, expanded = f"({a}x+{b})({c}x+{d})", f"{a * c}x^2+{a * d + b * c}x+{b * d}"
        assert answers_equal(factored, expanded) and answers_equal(expanded, factored)
        assert answers_equal(rf"\frac{{{expanded}}}{{{a}x+{b}}}", f"{c}x+{d}")
        assert not answers_equal(factored, f"{a * c}x^2+{a * d + b * c + 1}x+{b * d}")
        assert not answers_equal(factored, expanded.replace("x", "y"))


ABUSE = {
    "tower": "9^9^9^9^9",
    "tower with braces": "2^{2^{2^{2^{2^{2}}}}}",
    "negative tower": "9^{-9^{9^9}}",
    "long tower": "^".join("2" * 400),
    "many powers": "(((2^{999})^{999})^{999})^{999}",
    "repeated squaring": "(" * 15 + "99" + ")^2" * 15,
    "big products": "*".join(["9" * 9 + "^{99}"] * 40),
    "factorials": "9!!!!!",
    "binomial": r"\binom{99999999}{4999999}",
    "high roots": r"\sqrt[999999999]{" + "9" * 600 + "}",
    "root of a root": r"\sqrt" * 500 + "2",
    "fractional power": "9^{99999999/7}",
    "digits": "7" * 10**6,
    "digits, 999": "7" * 999,
    "decimals": "0." + "7" * 10**6,
    "decimals, 990": "0." + "7" * 990 + "/3",
    "repeating": r"0.\overline{" + "7" * 900 + "}",
    "exact beside float": "9" * 990 + r"\pi",
    "float overflow": r"\pi^{999999}",
    "complex overflow": "(1+i)^{99999999}",
    "function overflow": r"\exp(\exp(\exp(999)))",
    "zero to a negative power": "0^{-1}",
    "pole": r"\frac{1}{\sin 0}+\ln 0",
    "braces": "{" * 10**6,
    "braces, closed": "{" * 480 + "1" + "}" * 480,
    "brackets": "(" * 480 + "1" + ")" * 480,
    "brackets, closed wrong": "(" * 400 + "1" + "]" * 400,
    "fractions": r"\frac{1}{" * 90 + "2" + "}" * 90,
    "fractions, a megabyte": r"\frac{1}{" * 10**5 + "2" + "}" * 10**5,
    "fractions without braces": r"\frac" * 190 + "1" * 190,
    "functions": r"\sin" * 240 + "x",
    "functions with powers": r"\sin^" * 190 + "x",
    "minus signs": "-" * 290 + "1",
    "minus signs, more": "-" * 990 + "1",
    "bars": "|" * 990 + "1",
    "plus or minus": r"\pm" * 300 + "1",
    "plus or minus, few": r",".join([r"\pm 1 \pm 2 \pm 3"] * 60),
    "plus or minus in brackets": r"(\pm 1 \pm 1 \pm 1," * 15 + "1" + ")" * 15,
    "plus or minus, six": r"(\pm 1 \pm 1," * 3 + "+".join(f"x^{{{i}}}" for i in range(20)) + ")" * 3,
    "items": "1," * 10**6 + "1",
    "items, few": ",".join(map(str, range(150))),
    "set": r"\{" + ",".join(map(str, range(98))) + r"\}",
    "set of equals": r"\{" + ",".join(["x"] * 98) + r"\}",
    "sets in sets": r"\{1," * 19 + "1" + r"\}" * 19,
    "ratio": ":".join(["x"] * 99),
    "floats": ",".join(rf"\pi{i}" for i in range(120)),
    "matrix": r"\begin{pmatrix}" + r"1&2\\" * 10**5 + r"\end{pmatrix}",
    "matrix, ragged": r"\begin{pmatrix}1&2\\3\end{pmatrix}",
    "begin": r"\begin{pmatrix}" * 50,
    "wide polynomial": "+".join(f"x^{{{i}}}y" for i in range(60)),
    "high degree": "(x+y)^{99999}",
    "digits of other scripts": "٣٤²³½㊷",
    "nul and surrogates": "\x00\ud800 5 \udfff",
    "right to left": "\u202e5\u2066",
    "backslashes": "\\" * 999,
    "dollars": "$" * 10**6,
    "text": r"\text{" * 10**5,
    "spaces": " " * 10**6 + "5",
    "newlines": "\n" * 10**6,
    "equals": "=" * 900,
    "equations": "=".join(["x"] * 140),
    "subscripts": "x_" * 400 + "1",
    "ors": " or ".join(["3"] * 140),
    "lone commands": r"\frac\sqrt^_",
    "number and underscore": "5_",
    "large power of ten": "1e999",
    "larger power of ten": "1e" + "9" * 900,
    "surrogate as a subscript": "x_\ud800",
    "stars": "*" * 999,
    "moduli": r"\pmod 7" * 70,
    "units": "5" + " cm" * 200,
    "percents": "5" + "%" * 900,
}


@pytest.mark.parametrize("name", ABUSE)
def test_any_text_is_judged_quickly_and_without_an_exception(name):
    junk, start = ABUSE[name], time.perf_counter()
    texts = [junk, rf"\boxed{{{junk}}}", f"#### {junk}", f"{junk} answer: {junk}", junk + r"\boxed{"]
    texts.append(f"The final answer is ${junk}$. I hope it is correct.")
    problem = Problem("", "5")
    found = load_task("math").verdicts([(problem, text) for text in texts])
    assert set(found) <= {"right", "wrong", "unparsable"}
    for answer in ("17", r"2\pi"):
        assert not answers_equal(junk, answer) and not answers_equal(answer, junk)
    answers_equal(junk, junk)
    assert time.perf_counter() - start < 2


def test_long_texts_are_judged_quickly():
    """A text is searched from its end, by patterns that can't backtrack without bound."""
    pieces = [r"\boxed{", r"\boxed{1} or ", "answer is ", "final answer is $", "#### ", "1, ", "1 or ", r"\("]
    pieces += ["$1. A", "a. ", "\\", "1,", "{}", "-$1"]
    for piece in pieces:
        start = time.perf_counter()
        extract_answer(piece * (10**6 // len(piece)))
        assert time.perf_counter() - start < 2, piece


# A grammar of answers: ~ stands for a space, # and @ for two smaller texts.
ATOMS = re.findall(r"\S+", r"""
0 1 2 3 5 7 9 12 345 999 710 0.5 .25 1,000 12~345 1/2 1e300 6.02e23 10^ e^{709} e^{709.7} 0.\overline{3} 5_8
5! x y z a e i -i f(2) x_1 AB R \pi \infty π ∞ \theta \emptyset \mathbb{R} east (A) ٣ ² ° £ € $ \$ % \% ^\circ
mod or and ~apples ~cm ~million ~halves ~below~zero ~no~solution \text{~cm} \text{even} \pmod~7
""") + ["\ud800", "x_\ud800"]  # fmt: skip
BETWEEN = re.findall(r"\S+", r"""
+ - * / ^ \cdot~ \times~ = < \le~ >= \ne~ , ,~ ; ~or~ ~and~ : ! ~ ** \cup~ \in~ \pm~ _ | & \\ ' .. \equiv~
""")  # fmt: skip
AROUND = re.findall(r"\S+", r"""
\frac{#}{@} \frac~#~@ \sqrt{#} \sqrt~# \sqrt[@]{#} \ln~# \log~# \log_{#}~@ \sin~# \sin^{#}~@ \tan^{-1}(#)
\csc~# \arctan~# \arcsin(#) \cosh~# \exp(#) (#) [#,@) (#,@) \{#,@\} \{#\} |#| (#)^{@} #^{@} (#)!
\binom{#}{@} \boxed{#} **#** $#$ \text{#} \mathrm{#} \begin{pmatrix}#&@\\@&#\end{pmatrix} \left(#\right)
#\times~10^{@} x=# -# #/@/# {#} 3\times~10^{#/2}/@ e^{709.7}(1+#) \pm~# \langle~#,@\rangle #~@/#
the~answer~is~# ####~# \boxed{#}~or~$\boxed{@}$
""")  # fmt: skip


def random_text(rng: Random, depth: int) -> str:
    """A text in the grammar of answers, sometimes with a sign too many or too few."""
    choice = rng.random()
    if not depth or choice < 0.25:
        return rng.choice(ATOMS).replace("~", " ")
    first, second = random_text(rng, depth - 1), random_text(rng, depth - 1)
    if choice < 0.6:
        return first + rng.choice(BETWEEN).replace("~", " ") + second
    if choice < 0.95:
        return rng.choice(AROUND).replace("~", " ").replace("@", second).replace("#", first)
    place = rng.randrange(len(first) + 1)
    return first[:place] + rng.choice(["{", "}", "(", "]", "\\", "^", "_", "|", ""]) + first[place + 1 :]


@pytest.mark.slow
def test_random_texts_never_raise():
    """Each text is searched, read, and compared with itself and the one before, all without the guard."""
    rng, kinds, before = Random(2), set(), read_answer("5")
    for _ in range(20_000):
        text = random_text(rng, rng.randint(1, 3))
        extract_answer.__wrapped__(text)
        value = read_answer.__wrapped__(text)
        if value is not None:
            assert same(value, value), text
            assert same(value, before) in (True, False) and same(before, value) in (True, False)
            kinds.add(value.kind)
            before = value
    assert kinds >= {"number", "list", "set", "words", "text", "base", "ratio", "matrix 2", "()", "[)", ":="}


@pytest.mark.parametrize(
    "text",
    [r"\ln 0", r"\log 0", r"\log_0 5", r"\log_1 5", r"\arctan i", r"\cot 0", "0^{-1}", "0^i", "e^{-999}",
     r"3 \times 10^{1/2}/2", r"3 \times 10^{i/2} 1/2", "e^{709.7}(1+i)", "(e^{709.7}(1+i), 5)",
     "e^{709}e^{709}", "1e999", "2^{1e300}", "(1+i)^{1e300}", r"\sqrt[0]{2}", r"\sqrt[1e300]{2}", "|i|!",
     "(-1)^{1/(10^{300}+1)}", r"\binom{2}{3}", r"\begin{pmatrix}\end{pmatrix}", "0:0", ":", "x_\ud800"],
)  # fmt: skip
def test_texts_that_are_hard_to_read(text):
    """They have no value, or one that is too large. What is inside the guard must cope with that."""
    read = read_answer.__wrapped__
    value, five = read(text), read("5")
    assert value is None or same(value, value) and not same(value, five) and not same(five, value)


@pytest.mark.parametrize("error", [RecursionError, MemoryError, OverflowError, AttributeError, KeyError])
def test_what_raises_all_the_same_is_unparsable(error, monkeypatch):
    def broken(*_):
        raise error

    monkeypatch.setattr(math_answers, "same", broken)
    assert answers_equal("5", "5") is None
    assert load_task("math").verdicts([(Problem("", "5"), r"\boxed{5}")]) == ["unparsable"]
    monkeypatch.setattr(math_answers, "read_value", broken)
    assert read_answer("5") is None
    monkeypatch.setattr(math_answers, "boxed", broken)
    assert extract_answer(r"\boxed{5}") is None


def perturbed(answer: str) -> list[str]:
    """Near misses of an answer: a digit changed, the sign changed, another kind of bracket, one item less."""
    digits = [i for i, c in enumerate(answer) if c.isdigit()]
    misses = [f"{answer[:i]}{(int(answer[i]) + 1) % 10}{answer[i + 1 :]}" for i in digits]
    if re.search("[1-9]", answer) and not re.search("pm|=|matrix", answer):
        bracketed = f"-{answer}" if answer[0] in "(\\" else f"-({answer})"
        misses.append(answer[1:] if answer[0] == "-" else bracketed)
    if re.fullmatch(r"(\\left)?\(.*,.*\)", answer):
        if answer[0] == "(":
            misses += [f"[{answer.strip('()')}]", f"{answer[:-1]}]"]
        else:
            misses.append(answer.replace(r"\right)", r"\right]"))
        closing = answer[answer.rindex(r"\right)" if answer[0] == "\\" else ")") :]
        misses.append(answer.rpartition(",")[0] + closing)
    elif "," in answer:
        misses += [answer.rpartition(",")[0], answer.partition(",")[2], f"{answer}, 99"]
    return misses


def rows_of(name: str) -> list[dict]:
    if not (ASSETS / name).is_file():
        pytest.skip(f"{name} is not there: only the project's own examples are checked")
    return [json.loads(line) for line in (ASSETS / name).read_text(encoding="utf-8").splitlines()]


@pytest.mark.slow
def test_math500_solutions_against_references():
    rows = rows_of("math500_first100.jsonl")
    found = [(extract_answer(row["solution"]), row["answer"]) for row in rows]
    assert [pair for pair in found if not answers_equal(*pair)] == []
    references = [row["answer"] for row in rows]
    alike = {(a, b) for a in references for b in references if a != b and answers_equal(a, b)}
    assert alike == {("5", "x=5"), ("x=5", "5")}  # the only two that say the same, of 9,900 pairs
    accepted = [(miss, b) for b in references for miss in perturbed(b) if answers_equal(miss, b)]
    assert accepted == [] and sum(len(perturbed(b)) for b in references) > 250


def test_perturbed_answers_are_wrong():
    for reference in [b for _, b in MATH_STYLE] + [pair.reference for pair in PAIRS[:20]]:
        assert not [miss for miss in perturbed(reference) if answers_equal(miss, reference)], reference


@pytest.mark.parametrize("name", ["gsm8k_test.jsonl", "gsm8k_train_first1500.jsonl"])
def test_gsm8k_rows(name):
    rows = rows_of(name)
    problems = load_task("gsm8k").read(str(ASSETS / name), "test")
    assert len(problems) == len(rows)
    solved = [(problem, row["answer"]) for problem, row in zip(problems, rows, strict=True)]
    assert set(load_task("gsm8k").verdicts(solved)) == {"right"}
    values = {p.answer: Fraction(p.answer.replace(",", "")) for p in problems}
    some = list(values)[:80]
    assert all(answers_equal(a, b) == (values[a] == values[b]) for a in some for b in some)
    assert not any(answers_equal(miss, b) for b in values for miss in perturbed(b))


def write_rows(path: Path, *rows: dict) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def test_tasks_read_their_files(tmp_path):
    math, gsm8k = load_task("math"), load_task("gsm8k")
    stated = {"problem": "What is 3+4?", "solution": "$\\boxed{8}$", "answer": "7", "attempt": "8, I think"}
    boxed = {"problem": " Find $x$. ", "solution": "So $\\boxed{\\frac12}$."}
    first, second = math.read(write_rows(tmp_path / "a.jsonl", stated, boxed), "train")
    assert first.answer == "7" and first.given == "8, I think" and first.prompt.endswith("\n\nWhat is 3+4?")
    assert second.answer == "\\frac12" and second.given == "" and second.prompt.endswith("\n\nFind $x$.")
    row = {"question": "How many?", "answer": "3*4=<<3*4=12>>1,200\n#### 1,200", "attempt": "9"}
    (only,) = gsm8k.read(write_rows(tmp_path / "b.jsonl", row), "test")
    assert only.answer == "1,200" and only.given == "9" and only.prompt.endswith("How many?")
    assert gsm8k.CORRECTION_REQUEST == math.CORRECTION_REQUEST
    assert gsm8k.FEEDBACK_REQUEST == math.FEEDBACK_REQUEST
    ending = "Final Answer: The final answer is $answer$. I hope it is correct."
    assert ending in only.prompt and gsm8k.CORRECTION_REQUEST.endswith(ending)
    verdict_of = {"1200": "right", "1{,}200": "right", "120": "wrong", "\\frac{1}{": "unparsable"}
    texts = [ending.replace("answer$", f"{answer}$") for answer in verdict_of]
    texts += [ending.replace("answer$", "$"), "", ending]
    verdicts = gsm8k.verdicts([(only, text) for text in texts])
    assert verdicts == [*verdict_of.values(), "unparsable", "unparsable", "wrong"]
