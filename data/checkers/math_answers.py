r"""Answers to mathematics problems: finding the one in a text, and telling whether two are equal. Nothing is ever eval'd.

`extract_answer` takes what the text states last. `answers_equal` reads both answers into a `Value` each. A number is its values at
three fixed points of its variables, exact fractions wherever possible: so 2(x+1) and 2x+2 are the same, and other polynomials are
not. Lists, tuples, intervals and matrices hold Values. What can't be read as any of these is compared as text. What was decided:

- A number must be worked out: where the reference is 120, `5!`, `100+20` and `240/2` are not right, or restating the problem would
  pay. Where the reference is `5!`, 120 is right. (Roots and polynomials have no one form to ask for: there restating does pay.)
- Exact is exact: 0.333 is not 1/3. Roots, pi and the like agree if they do to about 11 digits.
- A list without brackets is in any order and equals the set of its items: "3 or 4" is right where both are asked for and never
  where one is. Tuples and intervals keep order and brackets.
- Words after a number are dropped, and so is `x =` before it; but two units of measurement, or two equations, must agree. % and
  degrees are units: 50% is 50 and is not 0.5. A number in another base keeps its base.
"""

import cmath
import itertools
import math
import operator
import re
from collections import deque
from collections.abc import Callable
from fractions import Fraction
from typing import NamedTuple
from zlib import crc32

LONGEST_TEXT, LONGEST_ANSWER = 20_000, 1_000  # characters; of a longer text only the end is looked at
MOST_TOKENS, DEEPEST, MOST_COMMANDS = 300, 20, 60  # of an answer: bounds time, and recursion far below Python's limit
MOST_BITS = 1000  # of an exact number: 9^9^9^9 is not computed, and every number fits a float

BOX = re.compile(r"\\(?:boxed|fbox)\s*(?:\{|([^\s{}$.,\\]+)|(?![A-Za-z]))")
STATED = re.compile(r"final\s+answer[\s*]*(?:is\b|:|=)|####", re.I)
SAID = re.compile(r"\banswer[\s*]*(?:is\b|:|=)", re.I)
NUMBERS = re.compile(r"(?<![\w.])N(?:(?:,|\s|\bor\b|\band\b)+N)*".replace("N", r"[-+]?\$?[-+]?\d[\d,]*(?:\.\d+)?(?:/\d+)?%?"))
BETWEEN_BOXES = re.compile(r"(?:[\s$,;]|\\text\s*\{|\}|\\quad|\b(?:and|or)\b)*", re.I)
SENTENCE = re.compile(r"(?:\$\$.*?\$\$|\$(?:(?!\.\s+[A-Z])[^$])+\$|\\\(.*?\\\)|\\\[.*?\\\]|(?!\.(?:\s|\**$)|\n).)*", re.S)


def extract_answer(text: str) -> str | None:
    r"""The answer that a text states, or None.

    Of `\boxed{...}`, "final answer is ..." and "#### ..." the last counts, whatever came before; without any, the last "answer is
    ..."; without that, the last number. Alternatives stay together: "3 or 4" and `\boxed{3}` or `\boxed{4}` are lists of two, which
    are equal to neither. A statement that is begun and not finished is None.
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
    """What the last box holds, after that of boxes just before it; "" if its braces don't close."""
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
    return ", ".join(reversed(contents))


def stated_after(text: str, to_line_end: bool) -> str:
    text = text.lstrip(" \n\t*:=")[: 2 * LONGEST_ANSWER]
    head, hope, _ = text.partition("I hope")
    if to_line_end:
        return text.partition("\n")[0].rstrip(" *.")
    return (head if hope else SENTENCE.match(text)[0]).rstrip(" \n*.")


class Value(NamedTuple):
    """What an answer stands for."""

    kind: str  # "number", "list", brackets such as "()" or "[)", "matrix 2", "words", relations such as "=" or "< <=", "text"
    parts: tuple  # of a number: its values at the points; else the Values inside (strings for words, text and other bases)
    plain: bool = False  # a number that is written out: 12, -0.5, 3/4, 1 1/2, 2*10^5; and not 3+4, 12/3 or 5!
    unit: frozenset = frozenset()


class Unreadable(Exception):
    """Not an expression of the kinds known here."""


def answers_equal(answer: str | None, reference: str | None) -> bool:
    """Whether an answer is right: any text whatever, in bounded time. None, empty and broken ones equal nothing."""
    a, b = read_answer(answer), read_answer(reference)
    return a is not None and b is not None and same(a, b)


def read_answer(text: str | None) -> Value | None:
    """The Value of an answer; None if it is empty, has unbalanced brackets, or is larger than any answer is."""
    tokens = tokenize(text) if text and len(text) <= LONGEST_ANSWER else []
    depths = list(itertools.accumulate((token in OPENING) - (token in CLOSING) for token in tokens))
    if not any(token[-1].isalnum() or is_number(token) for token in tokens) or depths[-1] or min(depths) < 0:
        return None
    if len(tokens) > MOST_TOKENS or max(depths) > DEEPEST or sum(token[0] == "\\" for token in tokens) > MOST_COMMANDS:
        return None
    try:
        items = read_items(tokens, (",", ";", "or", r"\cup"))
        return items[0] if len(items) == 1 else Value("list", items)
    except (Unreadable, ArithmeticError):
        return Value("text", ("".join(tokens).replace("«", ""),))


def same(a: Value, b: Value) -> bool:
    """Whether answer `a` is the reference `b`."""
    if a.kind == ":=" and b.kind not in ("=", ":="):
        return same(a.parts[1], b)
    if b.kind == ":=" and a.kind not in ("=", ":="):
        return same(a, b.parts[1])
    if {a.kind, b.kind} <= {"=", ":="}:
        return all(map(same, a.parts, b.parts)) or same_equation(a, b)
    if a.kind != b.kind or len(a.parts) != len(b.parts):
        return False
    if a.kind == "number":
        return (not a.unit or not b.unit or a.unit == b.unit) and (a.plain or not b.plain) and all(map(close, a.parts, b.parts))
    if not all(isinstance(part, Value) for part in a.parts):
        return a.parts == b.parts
    if a.kind != "list":
        return all(map(same, a.parts, b.parts))
    left = list(b.parts)
    for part in a.parts:
        found = next((i for i, other in enumerate(left) if same(part, other)), None)
        if found is None:
            return False
        del left[found]
    return True


def same_equation(a: Value, b: Value) -> bool:
    """Whether the differences of the sides are proportional, as in y = 2x+1 and 4x-2y+2 = 0."""
    try:
        (a0, *a_rest), (b0, *b_rest) = (lift(operator.sub, *equation.parts).parts for equation in (a, b))
    except (Unreadable, ArithmeticError):
        return False
    return bool(a0 and b0) and all(close(a0 * y, x * b0) for x, y in zip(a_rest, b_rest, strict=True))


def close(a: Fraction | complex, b: Fraction | complex) -> bool:
    if isinstance(a, Fraction) and isinstance(b, Fraction):
        return a == b
    return abs(complex(a) - complex(b)) <= 1e-11 * max(abs(complex(a)), abs(complex(b))) + 1e-14


# Text to tokens: numbers, single letters, signs, commands; a word begins with «.

ALIASES = r"""
drop $ ~ \left \right \big \Big \bigg \Bigg \bigl \bigr \Bigl \Bigr \displaystyle \textstyle \limits \hline \angle \triangle
drop \! \, \; \: \> \quad \qquad \( \) \[ \] \mathbf \mathbb \mathcal \boldsymbol \bold \vec
\frac \dfrac \tfrac \cfrac  \binom \dbinom \tbinom  \sqrt √  \{ \lbrace  \} \rbrace  | \vert \lvert \rvert  or «or «and  \pm ±
- − –  * \cdot \times \ast × ·  / \div ÷  % \%  ° \degree \circ  \emptyset \varnothing  \pi π  \infty ∞  \cup ∪
< \lt  > \gt  <= \le \leq \leqslant ≤  >= \ge \geq \geqslant ≥  != \ne \neq ≠  = \in \equiv ∈
"""
UNIT_NAMES = """
cm centimeter centimetre, mm millimeter millimetre, km kilometer kilometre, m meter metre, inch inche in, ft foot feet, yard yd,
mile mi, second sec s, minute min, hour hr h, day, week, month, year yr, gram g, kg kilogram, lb pound, oz ounce, liter litre l,
ml milliliter millilitre, gallon gal, dollar, cent, degree deg, percent, mile/hour mph, 2 square sq, 3 cubic, radian rad
"""
SAME_TOKEN = {alias: first for first, *rest in map(str.split, re.split(r"\n|  ", ALIASES.strip())) for alias in rest}
UNITS = {name: names[0].split("/") for names in map(str.split, UNIT_NAMES.split(",")) for name in names}
SCALES = {"dozen": 12, "hundred": 100, "thousand": 10**3, "million": 10**6, "billion": 10**9, "trillion": 10**12}
OPENING = {"(", "[", "{", r"\{", r"\langle", r"\beginmatrix", r"\beginvmatrix"}
CLOSING = {")", "]", "}", r"\}", r"\rangle", r"\endmatrix", r"\endvmatrix"}
REWRITES = [
    (r"(?<=\d)(?:\{,\}|,\\!|\\,)\s*(?=\d{3}(?!\d))", ""),  # thousands, as LaTeX sets them
    (r"(?<!\\)\\(?=\s)", ""),
    (r"\^\s*(\\circ(?![A-Za-z])|\{\s*\\circ\s*\})", "°"),
    ("²", "^2"),
    ("³", "^3"),
    (r"\\begin\s*\{array\}\s*\{[^{}]*\}", r"\\beginmatrix "),
    (r"\\(begin|end)\s*\{(?:[pbB]?(?:small)?matrix|array)\}", r"\\\1matrix "),
    (r"\\(begin|end)\s*\{vmatrix\}", r"\\\1vmatrix "),
    (r"\\(?:text|mbox|textbf|textit|textrm|mathrm)\s*\{([^{}]*)\}", lambda m: " " + re.sub("([A-Za-z]+)", r"«\1", m[1]) + " "),
    (r"(?<![A-Za-z\\«])[A-Za-z]{2,}", lambda m: word_or_letters(m[0], m.string[: m.start()][-1:])),
    (r",\s*«(?:and|or)\b", " «or "),
]
NUMBER = r"[0-9]*\.[0-9]*\\overline\s*\{[0-9]+\}|[1-9][0-9]{0,2}(?:,[0-9]{3})+(?![0-9])(?:\.[0-9]+)?|[0-9]+(?:\.[0-9]+)?|\.[0-9]+"
TOKEN = re.compile(rf"\\[A-Za-z]+|\\.|{NUMBER}|«[A-Za-z]+|<=|>=|!=|\S", re.S)


def tokenize(text: str) -> list[str]:
    for pattern, replacement in REWRITES:
        text = re.sub(pattern, replacement, text)
    tokens, depth = [], 0
    for match in TOKEN.findall(text):
        token = SAME_TOKEN.get(match, match)
        depth += (token in OPENING - {"{"}) - (token in CLOSING - {"}"})
        tokens += filter(None, re.split("(,)", token)) if depth and "," in token else [token]  # (1,000) is a pair
    tokens = [token.lower() if token[0] == "«" and len(token) > 2 else token for token in tokens if token != "drop"]
    while tokens and tokens[-1] in ".,;":
        tokens.pop()
    return [r"\deg" if token == "°" and not FUNCTIONS.keys().isdisjoint(tokens) else token for token in tokens]


def word_or_letters(run: str, before: str) -> str:
    r"""Letters outside \text: a function, a word, or a product of variables, as in 2xy; 2abc is not two of a thing."""
    word = run.lower()
    if word in ("sqrt", "pi", "infty") or rf"\{word}" in FUNCTIONS:
        return rf"\{word} "
    known = word in ("or", "and", "no", "infinity") or word in SCALES or word in UNITS or word.removesuffix("s") in UNITS
    is_word = known or len(run) > 2 and set(word) & set("aeiou") and not before.isalnum() and before not in ("}", ")")
    return r"\infty " if word == "infinity" else f"«{word}" if is_word else run


# Tokens to Values by recursive descent: items, relation, quantity, sum, product, power, atom.

RELATIONS = ("=", "<", "<=", ">", ">=", "!=")
NAME = re.compile(
    r"(?:[A-Za-z]|\\[a-z]+)(?:_(?:\w|\{\w+\}))?'*(?:\^\{-1\})?(?:\([A-Za-z,]+\))?|[A-Z]{2,4}|\([A-Za-z](?:,[A-Za-z])+\)|(?:«[a-z]+)+"
)
UNIT = re.compile(r"(?:«[A-Za-z]+|[%°./*']|\^\{?-?[1-3]\}?)*")


def split(tokens: list[str], separators: tuple[str, ...]) -> tuple[list[list[str]], list[str]]:
    """The parts between separators that are in no brackets, and these separators; Unreadable if a part is empty."""
    parts, found, depth = [[]], [], 0
    for token in tokens:
        depth += (token in OPENING) - (token in CLOSING)
        if token in separators and not depth:
            parts.append([])
            found.append(token)
        else:
            parts[-1].append(token)
    if not all(parts):
        raise Unreadable
    return parts, found


def read_items(tokens: list[str], separators: tuple[str, ...]) -> tuple[Value, ...]:
    r"""The Values between separators; one with \pm counts as two."""
    items = []
    for part in split(tokens, separators)[0]:
        for signs in itertools.product("+-", repeat=min(part.count(r"\pm"), 3)):
            sign = iter(signs)
            items.append(read_item([next(sign, token) if token == r"\pm" else token for token in part]))
    return tuple(items)


def read_item(tokens: list[str]) -> Value:
    """Words, a relation or a quantity."""
    if all(token[0] == "«" or token.isalpha() or token in "-'" for token in tokens) and max(map(len, tokens), default=0) > 2:
        return Value("words", ("".join(tokens).replace("«", " ").strip().lower(),))
    parts, relations = split(tokens, RELATIONS)
    if not relations:
        return read_quantity(tokens)
    values = [read_item(part) for part in parts]
    if set(relations) == {"="}:
        if len(parts) == 2 and NAME.fullmatch("".join(parts[1])):  # 5 = x
            parts, values = parts[::-1], values[::-1]
        named = bool(NAME.fullmatch("".join(parts[0])))
        *others, result = values[named:]
        if all(other.kind == result.kind == "number" and all(map(close, other.parts, result.parts)) for other in others):
            return Value(":=", (values[0], result)) if named else result  # x = 5; 2+3 = 5
    if set(relations) <= {">", ">="}:  # 5 > x is x < 5
        values, relations = values[::-1], [relation.replace(">", "<") for relation in relations[::-1]]
    return Value(" ".join(relations), tuple(values))


def read_quantity(tokens: list[str]) -> Value:
    """An expression and its unit."""
    rest = deque(token for token in tokens if token != r"\$")
    value = read_sum(rest)
    if not UNIT.fullmatch("".join(rest)):
        raise Unreadable
    if value.kind != "number":
        return value
    unit = {"dollar"} if r"\$" in tokens else set()
    for token in rest:
        word = {"%": "percent", "°": "degree"}.get(token, token.strip("«"))
        unit.update(UNITS.get(word) or UNITS.get(word.removesuffix("s"), ()))
        value = lift(operator.mul, value, number(SCALES.get(word, 1)))._replace(plain=value.plain)
    return value._replace(unit=frozenset(unit))


def read_sum(tokens: deque) -> Value:
    total = read_product(tokens)
    while tokens and tokens[0] in ("+", "-"):
        total = lift(operator.add, total, read_product(tokens))
    return total


def read_product(tokens: deque) -> Value:
    product = read_power(tokens)
    while tokens and (tokens[0] in ("*", "/") or starts_atom(tokens[0])):
        sign, scientific = tokens[0], list(itertools.islice(tokens, 3)) == ["*", "10", "^"]
        if sign in ("*", "/"):
            tokens.popleft()
        factor = read_power(tokens)
        if sign == "/":
            product = divide(product, factor)
        elif is_number(sign):  # two numbers side by side are a mixed number, 1 1/2, or nothing
            if not tokens or tokens.popleft() != "/":
                raise Unreadable
            product = mixed(product, divide(factor, read_power(tokens)))
        elif sign == r"\frac" and is_integer(product) and factor.plain:
            product = mixed(product, factor)
        else:
            product = multiply(product, factor)._replace(plain=product.plain and scientific)
    return product


def read_power(tokens: deque) -> Value:
    """An atom with its sign, factorials and exponents; towers are folded from the right."""
    negative = False
    while tokens and tokens[0] in ("+", "-"):
        negative ^= tokens.popleft() == "-"
    tower = [read_atom(tokens)]
    while tokens and tokens[0] in ("!", "^"):
        if tokens.popleft() == "!":
            tower[-1] = lift(factorial, tower[-1])
        else:
            tower.append(read_argument(tokens))
    value = tower.pop()
    while tower:
        value = lift(power, tower.pop(), value)
    return negate(value) if negative else value


def read_argument(tokens: deque, one_digit: bool = False) -> Value:
    r"""What follows ^, \sqrt or \frac. LaTeX takes one digit, as in \frac12; but people write x^10."""
    if tokens and tokens[0] == "-":
        tokens.popleft()
        return negate(read_atom(tokens))
    if one_digit and tokens and re.fullmatch("[0-9]{2,}", tokens[0]):
        tokens[0], digit = tokens[0][1:], tokens[0][0]
        return number(Fraction(digit))
    return read_atom(tokens)


def read_atom(tokens: deque) -> Value:
    if not tokens:
        raise Unreadable
    token = tokens.popleft()
    if is_number(token):
        if tokens and tokens[0] == "_":
            return Value("base", (token, subscript(tokens)))
        return read_number(token)
    if token in OPENING:
        return read_brackets(token, tokens)
    if token in FUNCTIONS:
        return read_function(token, tokens)
    if token in (r"\frac", r"\binom"):
        upper, lower = read_argument(tokens, one_digit=True), read_argument(tokens, one_digit=True)
        return divide(upper, lower) if token == r"\frac" else lift(binomial, upper, lower)
    if token == r"\sqrt":
        degree = read_brackets(tokens.popleft(), tokens) if tokens and tokens[0] == "[" else number(2)
        return lift(root, read_argument(tokens), degree)
    if token == "|" and "|" in tokens:
        return lift(abs, read_item(list(iter(tokens.popleft, "|"))))
    if token in CONSTANTS:
        return number(CONSTANTS[token])
    if re.fullmatch("«?[A-Za-z]", token) or token in SYMBOLS:
        name = token.strip("«")
        while tokens and tokens[0] in ("_", "'"):
            name += f"_{subscript(tokens)}" if tokens[0] == "_" else tokens.popleft()
        return variable(name)
    raise Unreadable


def read_number(token: str) -> Value:
    fixed, _, cycle = re.sub(r"[,\s{}]", "", token).partition(r"\overline")
    if not cycle:
        return number(Fraction(fixed))
    ninths = Fraction(int(cycle), 10 ** len(cycle) - 1)  # 0.1666... is 0.1 and 6/9 of the last place
    return number(Fraction(f"{fixed}0") + ninths / 10 ** len(fixed.partition(".")[2]))


def subscript(tokens: deque) -> str:
    tokens.popleft()
    if not tokens:
        raise Unreadable
    token = tokens.popleft()
    return "".join(take_inside(tokens)[0]) if token == "{" else token


def take_inside(tokens: deque) -> tuple[list[str], str]:
    """The tokens up to the bracket that closes the one just taken, and that bracket."""
    inside, depth = [], 1
    while tokens:
        depth += (tokens[0] in OPENING) - (tokens[0] in CLOSING)
        if not depth:
            return inside, tokens.popleft()
        inside.append(tokens.popleft())
    raise Unreadable


def read_brackets(opening: str, tokens: deque) -> Value:
    """A matrix, a set, a tuple or interval, or an expression in brackets: what follows `opening`."""
    inside, closing = take_inside(tokens)
    if "matrix" in opening:
        rows, _ = split(inside[:-1] if inside[-1:] == [r"\\"] else inside, (r"\\",))
        cells = [split(row, ("&",))[0] for row in rows]
        if len({len(row) for row in cells}) > 1:
            raise Unreadable
        return Value(f"{opening[6:]} {len(cells[0])}", tuple(read_item(cell) for row in cells for cell in row))
    items = read_items(inside, (",", ";")) if inside else ()
    kind = (opening + closing).replace("\\", "")
    if kind in ("()", "[]", "{}") and len(items) == 1:
        return items[0]
    if kind != "{}" and len(items) < 2:
        raise Unreadable
    return Value("list" if kind == "{}" else kind, items)


def read_function(name: str, tokens: deque) -> Value:
    r"""\sin x, \sin^2 x, \sin^{-1} x, \sin 2x, \log_2 x: without brackets the argument goes on to the next sign or function."""
    given = {}
    while tokens and tokens[0] in ("^", "_"):
        sign = tokens.popleft()
        given[sign] = read_argument(tokens)
    bracketed = tokens and tokens[0] in OPENING
    argument = read_atom(tokens) if bracketed else read_power(tokens)
    while not bracketed and tokens and starts_atom(tokens[0]) and tokens[0] not in FUNCTIONS and not is_number(tokens[0]):
        argument = multiply(argument, read_power(tokens))
    if given.get("^") == number(-1) and rf"\arc{name[1:]}" in FUNCTIONS:
        return lift(FUNCTIONS[rf"\arc{name[1:]}"], argument)
    value = lift(FUNCTIONS[name], argument)
    if "_" in given:
        value = divide(value, lift(FUNCTIONS[name], given["_"]))
    return lift(power, value, given["^"]) if "^" in given else value


def is_number(token: str) -> bool:
    return token[0] in "0123456789." and token != "."


def starts_atom(token: str) -> bool:
    return token[0] != "«" and token not in CLOSING and token not in "+-*/^!%°.,;:'"


# Arithmetic, on each of the three points by itself.

POINTS = 3  # at the third, variables are negative: that tells x from its absolute value
CONSTANTS = {r"\pi": math.pi, "e": math.e, "i": 1j, r"\deg": math.pi / 180}
SYMBOLS = set(re.findall(r"\S+", r"""
\infty \emptyset \alpha \beta \gamma \delta \epsilon \varepsilon \zeta \eta \theta \kappa \lambda \mu \nu \xi \rho \sigma \tau \phi
\varphi \chi \psi \omega \Gamma \Delta \Theta \Lambda \Sigma \Phi \Psi \Omega \ell"""))  # fmt: skip
FUNCTIONS = {rf"\{name}": getattr(cmath, name) for name in ("sin", "cos", "tan", "sinh", "cosh", "tanh", "exp")} | {
    r"\cot": lambda x: 1 / cmath.tan(x),
    r"\sec": lambda x: 1 / cmath.cos(x),
    r"\csc": lambda x: 1 / cmath.sin(x),
    r"\arcsin": cmath.asin,
    r"\arccos": cmath.acos,
    r"\arctan": cmath.atan,
    r"\ln": cmath.log,
    r"\log": cmath.log10,
}


def number(x: Fraction | complex) -> Value:
    x = bounded(Fraction(x) if isinstance(x, int) else x)
    return Value("number", (x,) * POINTS, plain=isinstance(x, Fraction))


def variable(name: str) -> Value:
    """Fractions of few digits, the same for a name each time: polynomials are exact, and different ones differ."""
    codes = [crc32(f"{name}/{point}".encode()) for point in range(POINTS)]
    return Value("number", tuple(Fraction(code % 997 + 3, 499) * (-1 if point == 2 else 1) for point, code in enumerate(codes)))


def lift(operation: Callable, *values: Value) -> Value:
    """The operation on numbers, point by point."""
    if any(value.kind != "number" for value in values):
        raise Unreadable
    return Value("number", tuple(bounded(operation(*at)) for at in zip(*(value.parts for value in values), strict=True)))


def bounded(x: Fraction | complex) -> Fraction | complex:
    if isinstance(x, Fraction):
        if max(x.numerator.bit_length(), x.denominator.bit_length()) > MOST_BITS:
            raise Unreadable
        return x
    if not cmath.isfinite(x):
        raise Unreadable
    return x.real if x.imag == 0 else x


def negate(a: Value) -> Value:
    return multiply(number(-1), a)._replace(plain=a.plain)


def multiply(a: Value, b: Value) -> Value:
    if a.kind == "number" and b.kind.startswith("matrix"):
        return b._replace(parts=tuple(multiply(a, part) for part in b.parts))
    return lift(operator.mul, a, b)


def divide(a: Value, b: Value) -> Value:
    value = lift(operator.truediv, a, b)
    return value._replace(plain=is_integer(a) and is_integer(b) and value.parts[0].denominator > 1)


def mixed(whole: Value, fraction: Value) -> Value:
    """1 1/2: a whole number and a proper fraction side by side."""
    if not is_integer(whole) or not fraction.plain or not 0 < fraction.parts[0] < 1:
        raise Unreadable
    return lift(operator.add if whole.parts[0] >= 0 else operator.sub, whole, fraction)._replace(plain=True)


def is_integer(a: Value) -> bool:
    return a.plain and a.parts[0].denominator == 1


def power(base: Fraction | complex, exponent: Fraction | complex) -> Fraction | complex:
    if not isinstance(exponent, Fraction):
        return complex(base) ** complex(exponent)
    if exponent.denominator > 1:
        return power(root(base, Fraction(exponent.denominator)), Fraction(exponent.numerator))
    if isinstance(base, Fraction) and abs(exponent) * max(base.numerator.bit_length(), base.denominator.bit_length()) > MOST_BITS:
        raise Unreadable
    return base**exponent.numerator


def root(x: Fraction | complex, degree: Fraction | complex) -> Fraction | complex:
    """Exact where it can be; of a negative number the real one if the degree is odd."""
    if not isinstance(degree, Fraction) or degree.denominator > 1 or not 1 <= degree <= MOST_BITS:
        raise Unreadable
    n = degree.numerator
    if not isinstance(x, complex) and x < 0 and n % 2:
        return -root(-x, degree)
    if isinstance(x, Fraction) and x > 0:
        top, bottom = (math.isqrt(k) if n == 2 else round(k ** (1 / n)) for k in (x.numerator, x.denominator))
        if bottom and top**n == x.numerator and bottom**n == x.denominator:
            return Fraction(top, bottom)
    return complex(x) ** (1 / n)


def factorial(x: Fraction | complex) -> Fraction:
    if not isinstance(x, Fraction) or x.denominator > 1 or not 0 <= x <= 170:
        raise Unreadable
    return Fraction(math.factorial(x.numerator))


def binomial(n: Fraction | complex, k: Fraction | complex) -> Fraction:
    return factorial(n) / factorial(k) / factorial(n - k)
