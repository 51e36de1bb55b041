r"""Mathematics answers: finding them in a text, telling whether two are equal, and never failing or hanging on any text."""

import json
import re
import time
from fractions import Fraction
from pathlib import Path
from random import Random

import pytest

from data import Problem, load_task
from data.checkers.math_answers import answers_equal, extract_answer, read_answer

ASSETS = Path(__file__).parent.parent.parent / "shared" / "assets"

EXTRACTED = [
    (r"so $\boxed{5}$.", "5"),
    (r"\boxed{\frac{1}{\sqrt{2}}} is it", r"\frac{1}{\sqrt{2}}"),
    (r"first \boxed{3}, but then $x=4$, so it is \boxed{4}.", "4"),
    (r"\fbox{7}", "7"),
    (r"it is \boxed 5.", "5"),
    (r"it is $\boxed12$.", "12"),
    (r"\boxed{\{1, 2\}}", r"\{1, 2\}"),
    (r"\boxed{\left\{ x \right.}", r"\left\{ x \right."),
    (r"\boxed{\boxed{8}}", "8"),
    (r"$\boxed{3}$ or $\boxed{4}$", "3, 4"),
    (r"$x=\boxed{1}$, $\boxed{2}$ and $\boxed{3}$.", "1, 2, 3"),
    (r"$a=\boxed{1}$. Now let us do it again: $\boxed{2}$", "2"),
    ("Final Answer: The final answer is $42$. I hope it is correct.", "42"),
    (r"The final answer is $\frac{1}{2}$. I hope it is correct.", r"\frac{1}{2}"),
    (r"Final Answer: The final answer is $(3, \frac{\pi}{2})$. I hope it is correct.", r"(3, \frac{\pi}{2})"),
    ("The final answer is $[1,\n2]$. I hope it is correct.", "[1,\n2]"),
    ("The final answer is $3$ or $4$. I hope it is correct.", "3$ or $4"),
    ("The final answer is $3$. I hope it is correct. \nFinal Answer: The final answer is $5$. I hope it is correct.", "5"),
    (r"\boxed{3}? No. The final answer is $4$.", "4"),
    (r"The final answer is $3$. Checking again: $\boxed{4}$", "4"),
    (r"The final answer is $\boxed{9}$. I hope it is correct.", "9"),
    ("The final answer is 3.5. I hope it is correct.", "3.5"),
    ("The final answer is: 3.5.", "3.5"),
    ("**Final Answer:** $17$", "17"),
    ("**Final Answer**: 17", "17"),
    ("Final answer:\n\n$$\n\\frac{2}{3}\n$$\nDone.", r"\frac{2}{3}"),
    ("Final Answer: \\[ x = 2 \\]", r"\[ x = 2 \]"),
    ("So the answer is 12. That took 3 steps.", "12"),
    ("The answer is $18. She has $5 left.", "18"),
    ("The answer is $18$. She has $5$ left.", "18"),
    ("Answer: 2.75\nas 4 of 5 said", "2.75"),
    ("the answer is (B)", "(B)"),
    ("The answer is 4. The answer is 5.", "5"),
    ("The answer is 1, and later \\boxed{2}, and the answer is positive", "2"),
    ("16 - 3 = <<16-3=13>>13\n#### 13", "13"),
    ("#### $1,200", "1,200"),
    ("#### 18\n#### 19 dollars\nthanks 5", "19 dollars"),
    ("she has 3 apples and 4 pears, together 7 pieces", "7"),
    ("it costs $1,234.50.", "1,234.50"),
    ("the difference is 5-3", "3"),
    ("it falls to -3.", "-3"),
    ("it is 3 or 4", "3 or 4"),
    ("about 3/4 of them", "3/4"),
    ("", None),
    ("no idea", None),
    (r"\boxed{}", None),
    (r"\boxed", None),
    (r"the sum 12 is \boxed{\frac{1}{2}", None),  # begun and not finished
    (r"\boxed{3} and then \boxed{", None),
    ("5 is it. The final answer is", None),
    ("####", None),
]  # fmt: skip

EQUAL = [  # (answer, reference)
    # fractions and decimals
    ("0.5", r"\frac{1}{2}"), ("1/2", r"\frac12"), (r"\dfrac{1}{2}", r"\tfrac12"), (".5", "0.50"), (r"\frac{2}{4}", "1/2"),
    ("-1/2", r"-\frac{1}{2}"),
    (r"\frac{-1}{2}", r"-\frac{1}{2}"), (r"\frac1{10}", "0.1"), ("12.0", "12"), ("+7", "7"), ("012", "12"),
    (r"\frac{14}{3}", "14/3"), ("(5)", "5"),
    (r"1\frac{1}{4}", "1.25"), ("1 1/4", r"\frac{5}{4}"), (r"-1\frac{1}{4}", "-1.25"), (r"0.\overline{3}", "1/3"),
    (r"0.1\overline{6}", "1/6"), (r".\overline{9}", "1"), ("--7", "7"), (r"12.\overline{54}", r"\frac{138}{11}"),
    (r"1.2 \times 10^5", "120000"), (r"9.0 \cdot 10^{-3}", "0.009"), (r"\frac{\sqrt{3}}{3}", r"\frac{1}{\sqrt{3}}"), ("5.", "5"),
    # thousands, currency, percent, units, degrees
    ("1,000", "1000"), ("1{,}000", "1000"), (r"10,\!000", "10000"), ("1,234,567.5", "1234567.5"), (r"\$36", "36"),
    ("$36", r"\$36"), (r"\$1,200.00", "1200"),
    (r"50\%", "50"), ("50%", r"50\%"), ("50 percent", r"50\%"), (r"90^\circ", "90"), ("90°", r"90^{\circ}"),
    ("90 degrees", r"90^\circ"),
    (r"5\text{ cm}", "5"), ("5 cm", r"5\text{ centimeters}"), (r"3\sqrt{2}\text{ cm}^2", r"3\sqrt2 \text{ square cm}"),
    ("18 dollars", "18"), (r"\$18", "18 dollars"),
    ("12 students", "12"), (r"\frac{3}{4}\mbox{ inches}", "3/4"), ("60 mph", "60 miles per hour"), (r"7\mathrm{m}", "7 meters"),
    ("5 million", "5000000"),
    ("18 apples per day", "18"),
    # LaTeX dress
    (r"\left( 3, \frac{\pi}{2} \right)", r"(3,\pi/2)"), (r"$5$", "5"), (r"\( 5 \)", "5"), (r"3\,\sqrt{13}", r"3\sqrt{13}"),
    (r"\displaystyle\frac12", "0.5"),
    # tuples, intervals, sets, lists
    ("(1, 2)", "(1,2)"), ("(0.5, -3)", r"\left(\frac12,-3\right)"), ("[1,2)", r"\left[1, 2\right)"),
    (r"(-\infty, 5]", r"\left( -\infty,5 \right]"),
    ("[0,100)", "[0, 100)"), (r"\{1, 2\}", r"\{2,1\}"), ("3, 5", "5, 3"), ("1,-2", "-2, 1"), ("3 and 5", "3,5"),
    ("5 or 3", r"3 \text{ or } 5"), ("1, 2, and 3", "3,2,1"),
    ("1, 2", r"\{2, 1\}"), ("{1,2}", r"\{1,2\}"), ("x=3, x=5", "5,3"), ("x = 3 or x = 5", "3, 5"), ("(1,2), (3,4)", "(3,4),(1,2)"),
    (r"\emptyset", r"\varnothing"),
    (r"(-\infty,-2) \cup (2,\infty)", r"(2,\infty) \cup (-\infty,-2)"), (r"x \in [1,2]", "[1,2]"), ("(100,200)", "(100, 200)"),
    (r"\{100,200\}", "100, 200"),
    (r"1 \pm \sqrt{19}", r"1+\sqrt{19}, 1-\sqrt{19}"), (r"\pm 3", "3,-3"), (r"x = \pm 2", r"\pm2"),
    (r"(\pm 1, 2)", "(1,2), (-1,2)"), ("±3", r"-3, 3"),
    # matrices
    (r"\begin{pmatrix} 1 \\ 2 \end{pmatrix}", r"\begin{bmatrix}1\\2\end{bmatrix}"),
    (r"\begin{pmatrix} -1/3 \\ 2/3 \end{pmatrix}", r"\begin{pmatrix} -\frac13 \\ \frac23 \\ \end{pmatrix}"),
    (r"\frac{1}{3}\begin{pmatrix} -1 \\ 2 \end{pmatrix}", r"\frac{1}{6}\begin{pmatrix} -2 \\ 4 \end{pmatrix}"),
    (r"\left(\begin{array}{cc} 1 & 2 \\ 3 & 4 \end{array}\right)", r"\begin{pmatrix} 1&2\\3&4 \end{pmatrix}"),
    # radicals, pi, powers, factorials
    (r"11\sqrt2", r"11 \sqrt{2}"), (r"\sqrt{117}", r"3\sqrt{13}"), (r"\sqrt[3]{16}", r"2\sqrt[3]{2}"),
    (r"\sqrt{3+2\sqrt{2}}", r"1+\sqrt{2}"), ("3sqrt(13)", r"3\sqrt{13}"),
    (r"\pi/6", r"\frac{\pi}{6}"), (r"\frac{1}{6}\pi", r"\frac{\pi}{6}"), ("1024", "2^{10}"), ("8", "2^3"), ("120", "5!"),
    ("70", r"\binom{8}{4}"), ("2", r"\sqrt{4}"), ("-2", r"\sqrt[3]{-8}"),
    (r"2^{2004}", "2^{2004}"), (r"4\cdot 2^{98}", "2^{100}"), ("e^2", "e^{2}"), (r"\frac{3\sqrt{3}}{4}", r"0.75\sqrt{3}"),
    ("4", "8^{2/3}"), ("2√3", r"2\sqrt{3}"), ("π", r"\pi"),
    # complex numbers, functions
    ("6 - 5i", "6-5i"), ("-5i+6", "6 - 5i"), (r"\frac{1+i}{2}", r"\frac12 + \frac{i}{2}"), ("1/2", r"\sin 30^\circ"),
    ("1/2", r"\cos\frac{\pi}{3}"), (r"\frac{\cos x}{\sin x}", r"\cot x"),
    (r"\sin^2 y", r"(\sin y)^2"), (r"2\sin x\cos x", r"\sin 2x"), ("3", r"\log_2 8"), (r"\ln 8", r"3\ln 2"),
    (r"\tan^{-1} 2", r"\arctan 2"), (r"|{-7}|x", "7x"),
    # variables, equations, inequalities
    ("2(x+1)", "2x+2"), ("2k+2", "2 k + 2"), ("x^3+3x-6", "-6 + 3x + x^3"), (r"\frac{x^2-1}{x-1}", "x+1"), ("p - q", "-q+p"),
    ("ab", "ba"), ("x=5", "5"), ("5", "x=5"), ("5 = x", "5"), ("x = y", "y = x"), ("y = 2x+1", "2x+1"),
    ("2x - y + 1 = 0", "y = 2x + 1"), ("f(x) = 3x", "3x"), ("2x^2+2y=10", "x^2+y=5"), ("x > 5", "5 < x"),
    (r"1 \le x < 3", r"1 \leq x < 3"), ("(a,b) = (-2,1)", "(-2,1)"), ("AB = 5", "5"),
    ("2+3 = 5", "5"), ("x_1", "x_{1}"), (r"2\theta", r"\theta+\theta"), ("2xyz", "2zyx"), (r"\text{Area} = 5", "5"),
    (r"x \ne 3", r"x \neq 3"), ("xy^2", r"x\cdot y\cdot y"),
    # bases, letters, words, other text
    ("2516_8", "2516_{8}"), (r"\text{(A)}", "A"), ("(A)", r"\text{A}"), (r"\text{even}", "even"), ("Even", r"\text{even}"),
    ("monday", "Monday"), (r"\text{Evelyn}", "Evelyn"), (r"\textbf{east}.", "east"),
    ("no solution", r"\text{No solution}"), ("A, C", r"\text{C, A}"), ("6:00 p.m.", r"6\!:\!00 \text{ p.m.}"),
    ("June 20", r"\text{June 20}"), ("3:4", "3 : 4"), (r"\mathbb{R} \setminus \{0\}", r"\mathbb{R}\setminus\{0\}"),
]  # fmt: skip

UNEQUAL = [  # (answer, reference)
    # fractions and decimals
    ("0.333", "1/3"), ("0.3333333333333333", "1/3"), ("0.5", "0.05"), (r"\frac{1}{3}", r"\frac{3}{1}"), (r"\frac12", "12"),
    ("1/2", "-1/2"), ("1.25", r"1\frac{1}{5}"), (r"2\frac{1}{4}", "0.5"),
    ("11/2", "1 1/2"), ("1 2", "12"), ("1 2", "2"), ("3.14", r"\pi"), ("1.41421356", r"\sqrt{2}"), ("12.", "1.2"), ("2", "-2"),
    ("--", "0"), ("5", "5.0000001"), ("0.3", r"0.\overline{3}"), ("10^5", "10^6"),
    (r"1.2\times 10^4", "120000"), ("1/0", "1/0.0"), ("7", "0/7"), ("3/4/5", "3/4"),
    # not worked out: arithmetic for a number
    ("3+4", "7"), (r"\frac{144}{12}", "12"), ("5!", "120"), ("2^{10}", "1024"), (r"\sqrt{36+64}", "10"), (r"\binom{8}{4}", "70"),
    (r"3 \cdot 4", "12"), ("7=3+4", "7"), (r"\cos\frac{\pi}{3}", "1/2"), ("x = 3+4", "7"),
    (r"\frac{1}{2}+\frac{1}{3}", "5/6"), ("(3+4, 2)", "(7, 2)"), ("|-7|", "7"), ("3-4", "-1"),
    # thousands, currency, percent, units, degrees
    ("1,000", "1"), ("(1,000)", "1000"), ("(1,2)", "12"), ("1,00", "100"), ("1,2", "12"), (r"50\%", "0.5"), ("0.5", r"50\%"),
    (r"5\%", "50"), (r"5\text{ cm}", r"5\text{ m}"), (r"5\text{ cm}", r"5 \text{ cm}^2"), (r"90^\circ", "90%"),
    ("50 cents", r"\$50"), ("5 million", "5"), ("5 hours", "5 minutes"), ("2abc", "2"), ("2xyz", "2"), ("6m", "6"),
    ("5 thousand", "5"),
    # several answers for one
    ("3 or 4", "3"), ("3 or 4", "4"), ("3, 4", "4"), ("3 and 4", "3"), ("5 (or 6)", "5"), ("5, not 6", "5"), ("5 maybe 6", "5"),
    ("5 or maybe 6", "5"), (r"\pm 3", "3"), ("3 = 4", "4"), ("x=3=4", "4"), ("3/4 or 4/3", "3/4"), ("3;4", "3"),
    ("A or B", "A"), ("A, B", "B"), ("even or odd", "even"), (r"\text{even or odd}", "odd"), ("yes and no", "yes"),
    ("even/odd", "even"), ("3, 3", "3"), (r"\{3,4\}", "3"), ("3 4", "3"), ("3 ~ 4", "4"), ("3 < 4", "4"), ("[3,4]", "3"),
    ("(A)(B)", "A"),
    # tuples, intervals, sets, lists
    ("(1,2)", "(2,1)"), ("(1,2)", "[1,2]"), ("(1,2]", "(1,2)"), ("[1,2)", "(1,2]"), ("(1,2)", "1,2"),
    (r"(-\infty,5)", r"(\infty,5)"), (r"(-\infty,5)", r"(-\infty,6)"), ("3, 5", "3, 5, 7"), ("3, 5, 7", "3, 5"),
    ("1,1,2", "1,2,2"), (r"\{1,2\}", r"\{1,3\}"), ("(1,2),(3,4)", "(1,2),(4,3)"),
    ("(1,2,3)", "(1,2)"), (r"\emptyset", "0"), (r"(-\infty,-2) \cup (2,\infty)", r"(-\infty,-2) \cup [2,\infty)"),
    (r"1 \pm \sqrt{19}", r"1+\sqrt{19}"), (r"1 \pm \sqrt{19}", r"1 \pm \sqrt{17}"), (r"\infty", r"-\infty"),
    (r"\langle 1,2\rangle", "[1,2]"), ("(1,2", "(1,2)"), ("[5)", "5"), ("(5]", "5"),
    # matrices
    (r"\begin{pmatrix} 1 \\ 2 \end{pmatrix}", r"\begin{pmatrix} 1 & 2 \end{pmatrix}"),
    (r"\begin{pmatrix} 1 \\ 2 \end{pmatrix}", r"\begin{pmatrix} 2 \\ 1 \end{pmatrix}"),
    (r"\begin{pmatrix} 1 \\ 2 \end{pmatrix}", "(1,2)"),
    (r"\begin{vmatrix} 1&2\\3&4 \end{vmatrix}", r"\begin{pmatrix} 1&2\\3&4 \end{pmatrix}"),
    (r"\begin{pmatrix} 1&2\\3&4 \end{pmatrix}", r"\begin{pmatrix} 1&2\\3&5 \end{pmatrix}"),
    (r"\begin{pmatrix} 1&2\\3 \end{pmatrix}", r"\begin{pmatrix} 1&2&3 \end{pmatrix}"),
    # radicals, powers, complex, functions
    (r"3\sqrt{13}", r"13\sqrt{3}"), (r"\sqrt{12}", r"\sqrt[3]{12}"), (r"\sqrt{2}+\sqrt{3}", r"\sqrt{5}"), ("2^3", "3^2"),
    ("9^{9^9}", "9^{9^8}"), ("2^{2004}", "2^{2005}"), ("6-5i", "6+5i"), ("6-5i", "5-6i"), ("i", "-i"), (r"\cot x", r"\tan x"),
    (r"\sin x", r"\cos x"), (r"\sin 2x", r"2\sin x"), (r"\log_2 8", r"\log_3 8"),
    (r"\sin 30", r"\sin 30^\circ"), (r"\sqrt{x^2}", "x"), ("|x|", "x"), (r"\frac{\pi}{6}", r"-\frac{\pi}{6}"), ("2e", "2"),
    # variables, equations, inequalities
    ("2x+1", "2x+2"), ("x^2", "2x"), ("x+y", "xy"), ("p-q", "q-p"), ("x=5", "x=6"), ("x=5", "y=5"), ("x=5", "-5"),
    ("y=2x+1", "x=2y+1"), ("y=2x+1", "2x"), ("x+y=5", "5"), ("x > 5", "x < 5"), ("x > 5", r"x \ge 5"), ("x>5", "5"),
    ("x_1", "x_2"), ("a", "A"), ("x", "y"), (r"x \ne 3", "x = 3"), (r"\alpha", "a"), ("x^2+y^2=1", "x^2-y^2=1"), ("0=0", "x=y"),
    # bases, letters, words, other text
    ("2516_8", "2516"), ("2516_8", "2516_9"), ("2516_8", "2517_8"), ("52_8", "42"), ("A", "B"), (r"\text{(A)}", "B"),
    (r"\text{even}", r"\text{odd}"), ("east", "west"), ("Monday", "Sunday"), ("3:4", "4:3"), ("3:4", "3/4"),
    ("June 20", "June 21"), ("not 5", "5"), ("no solution", "solution"), ("6:00 p.m.", "6:00 a.m."),
    # nothing
    ("", "5"), ("5", ""), ("", ""), (" ", " "), ("$$", "$$"), (None, "5"), ("5", None), (None, None), (".", "."), (r"\left", ""),
    ("{}", ""), ("()", "()"), (r"\frac{1}{", r"\frac{1}{"),
]  # fmt: skip

MATH_STYLE = [  # the ends of solutions, as in MATH, and the reference answers
    (r"the polar coordinates are $\boxed{\left( 3, \frac{\pi}{2} \right)}.$", r"\left( 3, \frac{\pi}{2} \right)"),
    (r"We have \begin{align*} x &= \boxed{p - q}. \end{align*}", "p - q"),
    (r"the sum is $2+\frac{5}{3}+1=\boxed{\frac{14}{3}}$", r"\frac{14}{3}"),
    (r"Hence the slowest is $\boxed{\text{Evelyn}}$.", r"\text{Evelyn}"),
    (r"the angle is $\boxed{90^\circ}.$", r"90^\circ"),
    (r"$r = x - 1 = \boxed{10}\%$.", "10"),
    (r"the solutions are $n = \boxed{1,-2}.$", "-2, 1"),
    (r"so $10101001110_{2}=\boxed{2516_8}$.", "2516_8"),
    (r"these are $\boxed{1 \pm \sqrt{19}}.$", r"1 \pm \sqrt{19}"),
    (r"$\mathbf{v} = \boxed{\begin{pmatrix} -1/3 \\ 2/3 \end{pmatrix}}.$", r"\begin{pmatrix} -\frac13 \\ \frac23 \end{pmatrix}"),
    (r"is $x \in \boxed{(-\infty, -1] \cup [3, \infty)}$.", r"(-\infty,-1]\cup[3,\infty)"),
    (r"it is $\boxed{x^5 - x^4 + x^3 - x^2 + x - 1}.$", "x^5 - x^4 + x^3 - x^2 + x - 1"),
    (r"the cost is $\boxed{\$1{,}250.50}$.", "1250.50"),
    (r"is $\boxed{6 - 5i}$.", "6 - 5i"),
]  # fmt: skip


@pytest.mark.parametrize("text, answer", EXTRACTED)
def test_extraction(text, answer):
    assert extract_answer(text) == answer


@pytest.mark.parametrize("answer, reference", EQUAL)
def test_equal(answer, reference):
    assert answers_equal(answer, reference)
    assert answers_equal(answer, answer) and answers_equal(reference, reference)


@pytest.mark.parametrize("answer, reference", UNEQUAL)
def test_unequal(answer, reference):
    assert not answers_equal(answer, reference)


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
        ways = [
            f"{sign}{n}/{d}",
            rf"{sign}\frac{{{n}}}{{{d}}}",
            rf"\dfrac{{{sign}{n}}}{{{d}}}",
            rf"$x = {sign}{n} / {d}$",
            f"{sign}{n * k}/{d * k}",
        ]
    if d == 1:
        ways += [f"{sign}{n}", f"{sign}{n}.00", f"{sign}{n:,}", f"{sign}{n:,}".replace(",", "{,}"), rf"{sign}{n}\text{{ apples}}"]
    elif n > d:  # a mixed number
        ways += [f"{sign}{n // d} {n % d}/{d}", rf"{sign}{n // d}\frac{{{n % d}}}{{{d}}}"]
    if 10**4 % d == 0:
        ways.append(f"{sign}{n // d}.{n % d * 10**4 // d:04d}")
    return ways


def test_random_fractions_in_all_ways_of_writing_them():
    rng = Random(0)
    for _ in range(150):
        value = Fraction(rng.choice((-1, 1)) * rng.randint(1, rng.choice((20, 10**6))), rng.choice((1, 1, 2, 3, 7, 8, 12, 125)))
        other = value + rng.choice((-1, 1)) * Fraction(1, rng.choice((1, 10, value.denominator, 10**4)))
        for a in ways_to_write(value, rng):
            assert all(answers_equal(a, b) for b in ways_to_write(value, rng)), (a, value)
            assert not any(answers_equal(a, b) or answers_equal(b, a) for b in ways_to_write(other, rng)), (a, other)


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
    "items": "1," * 10**6 + "1",
    "items, few": ",".join(map(str, range(150))),
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
    "units": "5" + " cm" * 200,
    "percents": "5" + "%" * 900,
}


@pytest.mark.parametrize("name", ABUSE)
def test_any_text_is_judged_quickly_and_without_an_exception(name):
    junk, start = ABUSE[name], time.perf_counter()
    texts = [
        junk,
        rf"\boxed{{{junk}}}",
        f"The final answer is ${junk}$. I hope it is correct.",
        f"#### {junk}",
        f"{junk} answer: {junk}",
        junk + r"\boxed{",
    ]
    problem = Problem("", "5")
    found = load_task("math").verdicts([(problem, text) for text in texts])
    assert set(found) <= {"right", "wrong", "unparsable"}
    for answer in ("17", r"2\pi"):
        assert not answers_equal(junk, answer) and not answers_equal(answer, junk)
    answers_equal(junk, junk)
    assert time.perf_counter() - start < 2


def test_long_texts_are_judged_quickly():
    """A text is searched from its end, by patterns that can't backtrack without bound."""
    pieces = [
        r"\boxed{",
        r"\boxed{1} or ",
        "answer is ",
        "final answer is $",
        "#### ",
        "1, ",
        "1 or ",
        r"\(",
        "$1. A",
        "a. ",
        "\\",
        "1,",
        "{}",
        "-$1",
    ]
    for piece in pieces:
        start = time.perf_counter()
        extract_answer(piece * (10**6 // len(piece)))
        assert time.perf_counter() - start < 2, piece


def test_random_rubbish_never_raises():
    rng, start = Random(2), time.perf_counter()
    bits = [*"0123456789xyeiA.,;:+-*/^_!|'()[]{}$%&=<>~ \n°π√", "1{,}000", "10^", "1/2", " or ", " cm", " million", "answer is "]
    bits += [r"\frac", r"\sqrt", r"\sin", r"\log", r"\pm", r"\{", r"\}", r"\left", r"\text{", r"\begin{pmatrix}", r"\end{pmatrix}"]
    bits += [r"\\", r"\binom", r"\infty", r"\pi", r"\overline{", r"\cup", r"\boxed{", r"\circ", r"\%", r"\$"]
    for _ in range(4000):
        text = "".join(rng.choices(bits, k=rng.randint(1, 12)))
        value = read_answer(text)
        assert answers_equal(text, text) == (value is not None), text
        extract_answer(text)
    assert time.perf_counter() - start < 20


def perturbed(answer: str) -> list[str]:
    """Near misses of an answer: a digit changed, the sign flipped, another kind of bracket, an item dropped."""
    digits = [i for i, c in enumerate(answer) if c.isdigit()]
    misses = [f"{answer[:i]}{(int(answer[i]) + 1) % 10}{answer[i + 1 :]}" for i in digits]
    if any(c.isdigit() for c in answer.replace("0", "")) and not {"pm", "=", "matrix"} & set(re.findall("pm|=|matrix", answer)):
        misses.append(f"-({answer})" if answer[0] not in "-(\\" else answer[1:] if answer[0] == "-" else f"-{answer}")
    if re.fullmatch(r"(\\left)?\(.*,.*\)", answer):
        misses += [f"[{answer.strip('()')}]", f"{answer[:-1]}]"] if answer[0] == "(" else [answer.replace(r"\right)", r"\right]")]
        misses.append(answer.rpartition(",")[0] + answer[answer.rindex(")") - (6 if answer[0] == "\\" else 0) :])
    elif "," in answer:
        misses += [answer.rpartition(",")[0], answer.partition(",")[2], f"{answer}, 99"]
    return misses


def rows_of(name: str) -> list[dict]:
    if not (ASSETS / name).is_file():
        pytest.skip(f"{name} is not there: only the project's own examples are checked")
    return [json.loads(line) for line in (ASSETS / name).read_text(encoding="utf-8").splitlines()]


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
    for reference in [b for _, b in MATH_STYLE] + [b for _, b in EQUAL[:20]]:
        assert not [miss for miss in perturbed(reference) if answers_equal(miss, reference)], reference


@pytest.mark.parametrize("name", ["gsm8k_test.jsonl", "gsm8k_train_first1500.jsonl"])
def test_gsm8k_rows(name):
    rows = rows_of(name)
    problems = load_task("gsm8k").read(str(ASSETS / name), "test")
    assert len(problems) == len(rows)
    assert set(load_task("gsm8k").verdicts([(p, row["answer"]) for p, row in zip(problems, rows, strict=True)])) == {"right"}
    values = {p.answer: Fraction(p.answer.replace(",", "")) for p in problems}
    assert all(answers_equal(a, b) == (values[a] == values[b]) for a in list(values)[:150] for b in list(values)[:150])
    assert not any(answers_equal(miss, b) for b in values for miss in perturbed(b))


def write_rows(path: Path, *rows: dict) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def test_tasks_read_their_files(tmp_path):
    math, gsm8k = load_task("math"), load_task("gsm8k")
    stated = {"problem": "What is 3+4?", "solution": "It is $\\boxed{8}$.", "answer": "7", "attempt": "8, I think"}
    boxed = {"problem": " Find $x$. ", "solution": "So $\\boxed{\\frac12}$."}
    first, second = math.read(write_rows(tmp_path / "a.jsonl", stated, boxed), "train")
    assert first.answer == "7" and first.given == "8, I think" and first.prompt.endswith("\n\nWhat is 3+4?")
    assert second.answer == "\\frac12" and second.given == "" and second.prompt.endswith("\n\nFind $x$.")
    row = {"question": "How many?", "answer": "3*4=<<3*4=12>>1,200\n#### 1,200", "attempt": "9"}
    (only,) = gsm8k.read(write_rows(tmp_path / "b.jsonl", row), "test")
    assert only.answer == "1,200" and only.given == "9" and only.prompt.endswith("How many?")
    assert gsm8k.CORRECTION_REQUEST == math.CORRECTION_REQUEST and gsm8k.FEEDBACK_REQUEST == math.FEEDBACK_REQUEST
    ending = "Final Answer: The final answer is $answer$. I hope it is correct."
    assert ending in only.prompt and gsm8k.CORRECTION_REQUEST.endswith(ending)
    pairs = [(only, ending.replace("answer$", f"{text}$")) for text in ("1200", "1{,}200", "120", "\\frac{1}{", "")]
    assert gsm8k.verdicts([*pairs, (only, ""), (only, ending)]) == ["right", "right", "wrong", *["unparsable"] * 3, "wrong"]


@pytest.mark.parametrize(
    "task, row, complaint",
    [("math", {"problem": "p", "solution": "no box", "answer": ""}, "no reference answer"),
     ("math", {"problem": "p", "solution": "$\\boxed{1}$", "answer": None}, "no reference answer"),
     ("math", {"problem": "p", "solution": "$\\boxed{\\frac{1}$"}, "no reference answer"),
     ("math", {"problem": "p", "solution": None}, "no reference answer"),
     ("math", {"problem": "p", "answer": "5"}, "no field 'solution'"),
     ("math", {"problem": " ", "solution": "", "answer": "5"}, "'problem' is not a text"),
     ("math", {"problem": "p", "solution": "", "answer": "5", "attempt": 3}, "'attempt' is not a text"),
     ("gsm8k", {"question": "q", "answer": "18"}, "no reference answer"),
     ("gsm8k", {"question": "q", "answer": "####"}, "no reference answer"),
     ("gsm8k", {"question": 5, "answer": "#### 18"}, "'question' is not a text")],
)  # fmt: skip
def test_bad_rows_are_named(task, row, complaint, tmp_path):
    good = {"problem": "p", "question": "q", "solution": "$\\boxed{1}$", "answer": "#### 1"}
    path = write_rows(tmp_path / "rows.jsonl", good, row)
    with pytest.raises(ValueError, match=f"rows.jsonl, row 2: .*{complaint}"):
        load_task(task).read(path, "train")
