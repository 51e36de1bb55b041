r"""Answers to mathematics problems: finding the one in a text, and telling whether two are equal. Nothing is ever eval'd.

`extract_answer` takes what the text states last. `answers_equal` reads both answers into a `Value` and compares these. A number is
its values at three fixed points of its variables, exact fractions wherever possible, so 2(x+1) and 2x+2 are the same at every
point and different polynomials are not; sets, tuples, intervals and matrices hold Values. What can't be read so is compared as text.

What counts as equal was decided thus:
- A number must be worked out: where the reference is 120, `5!`, `100+20` or `240/2` is not right, or restating the problem
  would pay. (Where the reference is `5!`, 120 is right. An expression may be restated: nobody asked for a form that a value has.)
- Exact is exact: 0.333 is not 1/3. Roots, pi and the like are compared to about 11 digits.
- A list without brackets is in any order and equals the set of its items, so "3 or 4" is right where both are asked for and never
  where one is. Tuples and intervals keep their order and brackets, and a bracket's kind counts.
- Words after a number are dropped, and so is `x =` before it; but if both sides have units of measurement, or equations, they
  must agree. % and degrees are units: 50% is 50 and is not 0.5. A number in another base keeps its base.
"""

import cmath
import itertools
import math
import re
from collections import deque
from collections.abc import Callable
from fractions import Fraction
from typing import NamedTuple
from zlib import crc32

LONGEST_TEXT, LONGEST_ANSWER = 20_000, 1_000  # characters; of a longer text only the end is looked at
MOST_TOKENS, DEEPEST, MOST_COMMANDS = 300, 20, 60  # of an answer: bounds the time, and the recursion far below Python's limit
MOST_BITS = 4096  # of an exact number: 9^9^9^9 is not computed

BOX = re.compile(r"\\(?:boxed|fbox)(?![A-Za-z])\s*")
STATED = re.compile(r"final\s+answer[\s*]*(?:is\b|:|=)|####", re.I)
SAID = re.compile(r"\banswer[\s*]*(?:is\b|:|=)", re.I)
BETWEEN = re.compile(r"(?:[\s$,;.]|\\text\s*\{|\}|\\quad|\b(?:and|or)\b)*", re.I)  # two boxes with only this between are one list
SENTENCE = re.compile(r"(?:\$\$.*?\$\$|\$(?:(?!\.\s+[A-Z])[^$])+\$|\\\(.*?\\\)|\\\[.*?\\\]|(?!\.(?:\s|\**$)|\n).)*", re.S)
NUMBERS = r"(?<![\w.])[-+]?\$?\d[\d,]*(?:\.\d+)?(?:/\d+)?%?"


def extract_answer(text: str) -> str | None:
    r"""The answer that a text states, or None.

    Of `\boxed{...}`, "final answer is ..." and "#### ..." the last counts, whatever came before; without any, the last "answer is
    ..."; without that, the last number. Alternatives stay together: "3 or 4" and `\boxed{3}` or `\boxed{4}` are lists of two, which
    are not equal to either. A statement that is begun and not finished is None.
    """
    text = text[-LONGEST_TEXT:] if text else ""
    boxes, stated = list(BOX.finditer(text)), last(STATED, text)
    if boxes and (not stated or boxes[-1].start() > stated.start()):
        answer = boxed(text, boxes)
    elif stated := stated or last(SAID, text):
        answer = stated_after(text[stated.end() :], whole_line=stated[0] == "####")
    else:
        number = last(re.compile(rf"{NUMBERS}(?:(?:,|\s|\bor\b|\band\b)+{NUMBERS})*"), text)
        answer = number[0].rstrip(",") if number else ""
    return answer.strip().strip("$").strip() or None


def last(pattern: re.Pattern, text: str) -> re.Match | None:
    return next(iter(deque(pattern.finditer(text), maxlen=1)), None)


def boxed(text: str, boxes: list[re.Match]) -> str:
    """What the last box holds, joined by commas to that of boxes just before it; "" if its braces don't close."""
    answers, start = [], None
    for box in reversed(boxes):
        bare = re.compile(r"[^\s${}]*").match(text, box.end())[0]
        inside = (
            text[box.end() + 1 : closing_brace(text, box.end())] if text[box.end() : box.end() + 1] == "{" else bare.rstrip(".,")
        )
        end = box.end() + len(inside) + (2 if not bare else 0)
        if start is not None and (end > start or not BETWEEN.fullmatch(text, end, start)):
            break
        answers.insert(0, inside)
        start = box.start()
        if not inside:
            break
    return ", ".join(answers)


def closing_brace(text: str, start: int) -> int:
    """Where the brace at `start` is closed; if nowhere, `start` + 1, so that nothing lies between."""
    depth = 0
    for match in re.compile(r"\\.|[{}]", re.S).finditer(text, start):
        depth += {"{": 1, "}": -1}.get(match[0], 0)
        if not depth:
            return match.start()
    return start + 1


def stated_after(text: str, whole_line: bool) -> str:
    text = re.sub(r"^[\s*:=]+", "", text)
    head, hope, _ = text.partition("I hope")
    if hope and not whole_line:
        return re.sub(r"[.\s*]+$", "", head)
    return (text.partition("\n")[0] if whole_line else SENTENCE.match(text)[0]).strip(" *.")


class Value(NamedTuple):
    """What an answer stands for."""

    kind: str  # "number", "list", brackets like "()" or "[)", "matrix 2", "words", relations like "=" or "< <=", "text"
    parts: tuple  # of a number: its values at the points; else the Values inside (strings for words, text and other bases)
    plain: bool = False  # a number that is written out: 12, -0.5, 3/4, 1 1/2, 2*10^5; and not 3+4, 12/3 or 5!
    unit: frozenset = frozenset()


class Unreadable(Exception):
    """Not an expression of the kinds known here."""


def answers_equal(answer: str | None, reference: str | None) -> bool:
    """Whether an answer is right. Any text whatever is taken, in bounded time; None, empty and broken ones equal nothing."""
    left, right = read_answer(answer), read_answer(reference)
    return left is not None and right is not None and same(left, right)


def read_answer(text: str | None) -> Value | None:
    """The Value of an answer; None if it is empty, has unbalanced brackets, or is larger than any answer is."""
    tokens = tokenize(text) if text and len(text) <= LONGEST_ANSWER else []
    depths = list(itertools.accumulate((token in OPENING) - (token in CLOSING) for token in tokens))
    commands = sum(token in FUNCTIONS or token in COMMANDS for token in tokens)
    if not any(token[-1].isalnum() or is_number(token) for token in tokens) or depths[-1] or min(depths) < 0:
        return None
    if len(tokens) > MOST_TOKENS or max(depths) > DEEPEST or commands > MOST_COMMANDS:
        return None
    try:
        items = read_items(tokens, (",", ";", "or", r"\cup"))
        return items[0] if len(items) == 1 else Value("list", tuple(items))
    except (Unreadable, ArithmeticError):
        return Value("text", ("".join(tokens).replace("«", ""),))


def same(a: Value, b: Value) -> bool:
    """Whether answer `a` is the reference `b`."""
    if a.kind == ":=" and b.kind not in ("=", ":="):
        a = a.parts[1]
    if b.kind == ":=" and a.kind not in ("=", ":="):
        b = b.parts[1]
    if a.kind == b.kind == "number":
        units_agree = not a.unit or not b.unit or a.unit == b.unit
        return units_agree and (a.plain or not b.plain) and all(map(close, a.parts, b.parts))
    if {a.kind, b.kind} <= {"=", ":="}:
        return all(map(same, a.parts, b.parts)) or same_equation(a, b)
    if a.kind != b.kind or len(a.parts) != len(b.parts):
        return False
    if a.kind != "list":
        return all(map(same, a.parts, b.parts)) if isinstance(a.parts[0], Value) else a.parts == b.parts
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
        (a0, *a_rest), (b0, *b_rest) = (add(left, negate(right)).parts for left, right in (a.parts, b.parts))
        return bool(a0 and b0) and all(close(a0 * y, x * b0) for x, y in zip(a_rest, b_rest, strict=True))
    except (Unreadable, ArithmeticError):
        return False


def close(a: Fraction | complex, b: Fraction | complex) -> bool:
    if isinstance(a, Fraction) and isinstance(b, Fraction):
        return a == b
    try:
        a, b = complex(a), complex(b)
    except OverflowError:
        return False
    return abs(a - b) <= 1e-11 * max(abs(a), abs(b)) + 1e-14


# Text to tokens. A word's token begins with «; other tokens are numbers, single letters, signs and commands.

UNITS = {
    name: names.split()[0].replace("/", " ")
    for names in ["cm centimeter centimetre", "mm millimeter millimetre", "km kilometer kilometre", "m meter metre", "inch inche in", "ft foot feet", "yard yd", "mile mi", "second sec s", "minute min", "hour hr h", "day", "week", "month", "year yr", "gram g", "kg kilogram", "lb pound", "oz ounce", "liter litre l", "ml milliliter millilitre", "gallon gal", "dollar", "cent", "degree deg", "percent", "mile/hour mph", "2 square sq", "3 cubic", "radian rad"]
    for name in names.split()
}
SCALES = {"dozen": 12, "hundred": 100, "thousand": 10**3, "million": 10**6, "billion": 10**9, "trillion": 10**12}
CHARACTERS = str.maketrans(
    {"−": "-", "–": "-", "×": "*", "·": "*", "÷": "/", "π": r"\pi ", "∞": r"\infty ", "√": r"\sqrt ", "≤": r"\le ", "≥": r"\ge ",
     "≠": r"\ne ", "∪": r"\cup ", "∈": r"\in ", "±": r"\pm ", "²": "^2", "³": "^3", "«": None, "»": None}
)  # fmt: skip
REWRITES = [
    (r"(?<=\d)(?:\{,\}|,\\!|\\,)\s*(?=\d{3}(?!\d))", ""),  # thousands, as LaTeX sets them
    (r"\^\s*(?:\\circ|\{\s*\\circ\s*\})(?![A-Za-z])", "°"),
    (r"\\begin\s*\{array\}\s*\{[^{}]*\}", r"\\begin{matrix}"),
    (r"\\(begin|end)\s*\{[pbB]?(?:small)?(?:matrix|array)\}", r"\\\1{matrix}"),
    (r"\\(?:mathbf|mathbb|mathcal|boldsymbol|bold|vec)\s*\{([A-Za-z])\}", r" \1 "),
    (r"m?\\(?:angle|triangle)\b", " "),
]
TEXT = re.compile(r"\\(?:text|mbox|textbf|textit|textrm|textnormal|mathrm|operatorname)\s*\{([^{}]*)\}")
NUMBER = r"[0-9]*\.[0-9]*\\overline\s*\{[0-9]+\}|[1-9][0-9]{0,2}(?:,[0-9]{3})+(?![0-9])(?:\.[0-9]+)?|[0-9]+(?:\.[0-9]+)?|\.[0-9]+"
TOKEN = re.compile(rf"\\(?:begin|end)\s*\{{\w+\}}|\\[A-Za-z]+|\\.|{NUMBER}|«[A-Za-z]+|[A-Za-z]+|<=|>=|!=|\S", re.S)
SAME_TOKEN = {
    alias: token
    for token, aliases in {
        "": r"$ \left \right \big \Big \bigg \Bigg \bigl \bigr \Bigl \Bigr \displaystyle \textstyle \limits \! \, \; \: \> \quad "
        r"\qquad \( \) \[ \] ~ \hline",
        r"\frac": r"\dfrac \tfrac \cfrac",
        r"\binom": r"\dbinom \tbinom",
        "*": r"\cdot \times \ast",
        "/": r"\div",
        "<": r"\lt",
        ">": r"\gt",
        "<=": r"\le \leq \leqslant",
        ">=": r"\ge \geq \geqslant",
        "!=": r"\ne \neq",
        "=": r"\in \equiv",
        r"\{": r"\lbrace",
        r"\}": r"\rbrace",
        "%": r"\%",
        "°": r"\degree",
        "|": r"\vert \lvert \rvert \mid",
        "or": "and",
        r"\emptyset": r"\varnothing",
    }.items()
    for alias in aliases.split()
} | {"\\ ": ""}
OPENING = {"(", "[", "{", r"\{", r"\langle", r"\begin{matrix}", r"\begin{vmatrix}"}
CLOSING = {")", "]", "}", r"\}", r"\rangle", r"\end{matrix}", r"\end{vmatrix}"}


def tokenize(text: str) -> list[str]:
    text = text.translate(CHARACTERS)
    for pattern, replacement in REWRITES:
        text = re.sub(pattern, replacement, text)
    text = TEXT.sub(lambda m: f" {re.sub('[A-Za-z]+', lambda run: marked(run[0]), m[1])} ", text)
    text = re.sub(r",\s*«?(and|or)\b", r" \1 ", text)
    tokens, depth = [], 0
    for match in TOKEN.finditer(text):
        token = SAME_TOKEN.get(match[0], match[0])
        if not token:
            continue
        depth += (token in OPENING) - (token in CLOSING) if token not in "{}" else 0
        if depth and "," in token:  # (1,000) is a pair
            tokens += filter(None, re.split("(,)", token))
        elif token[0].isascii() and token[0].isalpha() and token != "or":
            tokens += letters(token, touching=text[: match.start()][-1:].isalnum() or text[: match.start()][-1:] in (")", "}"))
        else:
            tokens.append("or" if token in ("«or", "«and") else token.lower() if token[0] == "«" else token)
    while tokens and tokens[-1] in ".,;":
        tokens.pop()
    return [r"\deg" if token == "°" and not FUNCTIONS.keys().isdisjoint(tokens) else token for token in tokens]


def marked(run: str) -> str:
    """A run of letters inside \\text: a word, or a name of one letter, such as a choice's, if that is no unit's."""
    return f"«{run}" if len(run) > 1 or run in UNITS else run


def letters(run: str, touching: bool) -> list[str]:
    """A run of letters outside \\text: a function, a word, or a product of variables, as in 2xy; `touching`: 2abc is not 2 words."""
    known = run.lower()
    if rf"\{run}" in FUNCTIONS or rf"\{run}" in CONSTANTS or run == "sqrt":
        return [rf"\{run}"]
    if known == "infinity":
        return [r"\infty"]
    singular = known in UNITS or known.removesuffix("s") in UNITS or known in SCALES
    if len(run) > 1 and (singular or known == "no") or len(run) > 2 and not touching and set(known) & set("aeiou"):
        return [f"«{known}"]
    return list(run)


# Tokens to Values, by recursive descent: items -> relation -> quantity -> sum -> product -> power -> atom.

RELATIONS = ("=", "<", "<=", ">", ">=", "!=")
NAME = re.compile(
    r"(?:[A-Za-z]|\\[a-z]+)(?:_(?:\w|\{\w+\}))?'*(?:\^\{-1\}|\^-1)?(?:\([A-Za-z,]+\))?|[A-Z]{2,4}|\([A-Za-z](?:,[A-Za-z])+\)|(?:«[a-z]+)+"
)
UNIT = re.compile(r"(?:«[a-z]+|[%°./*']|\^\{?-?[1-3]\}?)+")


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


def read_items(tokens: list[str], separators: tuple[str, ...]) -> list[Value]:
    r"""The Values between separators; one with \pm counts as two."""
    items = []
    for part in split(tokens, separators)[0]:
        n = part.count(r"\pm") + part.count(r"\mp")
        if n > 3:
            raise Unreadable
        for signs in itertools.product((1, -1), repeat=min(n, 1) if r"\mp" in part else n):  # \mp goes with \pm
            sign = itertools.cycle(signs)
            items.append(read_item([{r"\pm": "-+", r"\mp": "+-"}[t][next(sign) > 0] if t in (r"\pm", r"\mp") else t for t in part]))
    return items


def read_item(tokens: list[str]) -> Value:
    """A relation, a quantity or words."""
    if all(token[0] == "«" or token.isalpha() or token in "-'" for token in tokens) and any(token[0] == "«" for token in tokens):
        return Value("words", (" ".join(token.strip("«").lower() for token in tokens),))
    parts, relations = split(tokens, RELATIONS)
    if not relations:
        return read_quantity(tokens)
    values = [read_item(part) for part in parts]
    if set(relations) == {"="}:
        named = bool(NAME.fullmatch("".join(parts[0])))
        *others, result = values[named:]
        if all(v.kind == result.kind == "number" and all(map(close, v.parts, result.parts)) for v in others):  # 2+3 = 5
            return Value(":=", (values[0], result)) if named else result
    if set(relations) <= {">", ">="}:  # 5 > x is x < 5
        values, relations = values[::-1], [relation.replace(">", "<") for relation in relations[::-1]]
    return Value(" ".join(relations), tuple(values))


def read_quantity(tokens: list[str]) -> Value:
    """An expression and its unit."""
    dollars = {"dollar"} if r"\$" in tokens else set()
    rest = deque(token for token in tokens if token != r"\$")
    value = read_sum(rest)
    if rest and not UNIT.fullmatch("".join(rest)) or value.kind != "number" and (rest or dollars):
        raise Unreadable
    words = [{"%": "percent", "°": "degree"}.get(token, token.strip("«")) for token in rest]
    for word in words:
        if word in SCALES:
            value = multiply(value, number(SCALES[word]))._replace(plain=value.plain)
    names = [UNITS.get(word) or UNITS.get(word.removesuffix("s"), "") for word in words]
    exponents = [word for word in words if word in ("2", "3")]
    return value._replace(unit=frozenset(dollars).union(exponents, *map(str.split, names))) if value.kind == "number" else value


def read_sum(tokens: deque) -> Value:
    total = None
    while total is None or tokens and tokens[0] in ("+", "-"):
        negative = False
        while tokens and tokens[0] in ("+", "-"):
            negative ^= tokens.popleft() == "-"
        term = read_product(tokens)
        term = negate(term) if negative else term
        total = term if total is None else add(total, term)
    return total


def read_product(tokens: deque) -> Value:
    product = read_power(tokens)
    while tokens:
        if tokens[0] == "/":
            tokens.popleft()
            product = divide(product, read_signed(tokens))
        elif tokens[0] == "*" or starts_atom(tokens[0]):
            scientific = list(itertools.islice(tokens, 3)) == ["*", "10", "^"]
            if tokens[0] == "*":
                tokens.popleft()
                product = multiply(product, read_signed(tokens))._replace(plain=product.plain and scientific)
            elif is_number(tokens[0]):  # two numbers side by side are a mixed number, 1 1/2, or nothing
                product = mixed(product, read_fraction(tokens))
            else:
                fraction = tokens[0] == r"\frac"
                factor = read_power(tokens)
                is_mixed = fraction and is_integer(product) and factor.plain and 0 < factor.parts[0] < 1
                product = mixed(product, factor) if is_mixed else multiply(product, factor)
        else:
            break
    return product


def read_fraction(tokens: deque) -> Value | None:
    numerator = read_number(tokens.popleft())
    if len(tokens) < 2 or tokens[0] != "/" or not is_number(tokens[1]):
        return None
    tokens.popleft()
    return divide(numerator, read_number(tokens.popleft()))


def read_signed(tokens: deque) -> Value:
    negative = bool(tokens) and tokens[0] == "-"
    if negative:
        tokens.popleft()
    return negate(read_power(tokens)) if negative else read_power(tokens)


def read_power(tokens: deque) -> Value:
    """An atom with its factorials and exponents; towers are folded from the right."""
    tower = [read_atom(tokens)]
    while tokens and tokens[0] in ("!", "^"):
        if tokens.popleft() == "!":
            tower[-1] = lift(factorial, tower[-1])
        else:
            tower.append(read_argument(tokens))
    value = tower.pop()
    while tower:
        base = tower.pop()
        value = lift(power, base, value)
    return value


def read_argument(tokens: deque, one_digit: bool = False) -> Value:
    r"""What follows ^, \sqrt or \frac. LaTeX takes one digit, \frac12; people also write x^10."""
    if one_digit and tokens and tokens[0].isdigit() and len(tokens[0]) > 1:
        first, tokens[0] = tokens[0][0], tokens[0][1:]
        return number(Fraction(first))
    if tokens and tokens[0] == "-":
        tokens.popleft()
        return negate(read_atom(tokens))
    return read_atom(tokens)


def read_atom(tokens: deque) -> Value:
    if not tokens:
        raise Unreadable
    token = tokens.popleft()
    if is_number(token):
        if tokens and tokens[0] == "_":
            tokens.popleft()
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
        bracketed = tokens and tokens[0] == "["
        degree = read_brackets(tokens.popleft(), tokens) if bracketed else number(2)
        return lift(root, read_argument(tokens), degree)
    if token == "|" and "|" in tokens:
        return lift(abs, read_item(list(iter(tokens.popleft, "|"))))
    if CONSTANTS.get(token):
        return number(CONSTANTS[token])
    if token in CONSTANTS or token.isalpha() and token.isascii():
        while tokens and tokens[0] in ("_", "'"):  # part of the name
            token += tokens.popleft()
            token += subscript(tokens) if token[-1] == "_" else ""
        return variable(token)
    raise Unreadable


def read_number(token: str) -> Value:
    match = re.fullmatch(r"([0-9]*)\.([0-9]*)\\overline\s*\{([0-9]+)\}", token)
    if not match:
        return number(Fraction(token.replace(",", "")))
    whole, fixed, repeated = match.groups()
    return number(Fraction(f"{whole}.{fixed}0") + Fraction(int(repeated), (10 ** len(repeated) - 1) * 10 ** len(fixed)))


def subscript(tokens: deque) -> str:
    if not tokens:
        raise Unreadable
    token = tokens.popleft()
    return "".join(take_inside(tokens)[0]) if token == "{" else token


def take_inside(tokens: deque) -> tuple[list[str], str]:
    """The tokens up to the bracket that closes the one just taken, and that bracket."""
    inside, depth = [], 1
    while tokens:
        token = tokens.popleft()
        depth += (token in OPENING) - (token in CLOSING)
        if not depth:
            return inside, token
        inside.append(token)
    raise Unreadable


def read_brackets(opening: str, tokens: deque) -> Value:
    """A matrix, a set, a tuple or interval, or an expression in brackets: what follows `opening`."""
    inside, closing = take_inside(tokens)
    if "matrix" in opening:
        if inside[-1:] == ["\\\\"]:
            inside.pop()
        rows = [split(row, ("&",))[0] for row in split(inside, ("\\\\",))[0]]
        if closing != opening.replace("begin", "end") or len({len(row) for row in rows}) > 1:
            raise Unreadable
        return Value(f"{opening[7:-1]} {len(rows[0])}", tuple(read_item(cell) for row in rows for cell in row))
    items = read_items(inside, (",", ";")) if inside else []
    kind = (opening + closing).replace("\\{", "{").replace("\\}", "}")
    if kind in ("()", "[]", "{}") and len(items) == 1:
        return items[0]
    if kind == "{}":
        return Value("list", tuple(items))
    if len(items) < 2:
        raise Unreadable
    return Value(kind, tuple(items))


def read_function(name: str, tokens: deque) -> Value:
    r"""\sin x, \sin^2 x, \sin^{-1} x, \sin 2x, \log_2 x: without brackets the argument goes on to the next sign or function."""
    given = {}
    while tokens and tokens[0] in ("^", "_"):
        sign = tokens.popleft()
        given[sign] = read_argument(tokens)
    bracketed = tokens and tokens[0] in OPENING
    argument = read_atom(tokens) if bracketed else read_signed(tokens)
    while not bracketed and tokens and starts_atom(tokens[0]) and tokens[0] not in FUNCTIONS and not is_number(tokens[0]):
        argument = multiply(argument, read_power(tokens))
    exponent = given.get("^")
    if exponent == number(-1) and rf"\arc{name[1:]}" in FUNCTIONS:
        name, exponent = rf"\arc{name[1:]}", None
    value = lift(FUNCTIONS[name], argument)
    if "_" in given:
        if name != r"\log":
            raise Unreadable
        value = divide(value, lift(cmath.log10, given["_"]))
    return lift(power, value, exponent) if exponent else value


def is_number(token: str) -> bool:
    return token[0] in "0123456789." and token != "."


def starts_atom(token: str) -> bool:
    return (
        is_number(token) or token in OPENING or token in FUNCTIONS or token in COMMANDS or token in CONSTANTS
        or token == "|" or len(token) == 1 and token.isalpha() and token.isascii()
    )  # fmt: skip


# Arithmetic: on each of the three points by itself.

POINTS = 3  # at the third variables are negative, which tells x from its absolute value
COMMANDS = {r"\frac", r"\binom", r"\sqrt"}
CONSTANTS = {r"\pi": math.pi, "e": math.e, "i": 1j, r"\deg": math.pi / 180}
CONSTANTS |= dict.fromkeys((r"\infty", r"\emptyset"))  # variables like any other: so infinity is not minus infinity
CONSTANTS |= dict.fromkeys(
    [r"\alpha", r"\beta", r"\gamma", r"\delta", r"\epsilon", r"\varepsilon", r"\zeta", r"\eta", r"\theta", r"\kappa", r"\lambda", r"\mu", r"\nu", r"\xi", r"\rho", r"\sigma", r"\tau", r"\phi", r"\varphi", r"\chi", r"\psi", r"\omega", r"\Gamma", r"\Delta", r"\Theta", r"\Lambda", r"\Sigma", r"\Phi", r"\Psi", r"\Omega", r"\ell"]
)
FUNCTIONS = {
    rf"\{function.__name__}": function
    for function in (cmath.sin, cmath.cos, cmath.tan, cmath.sinh, cmath.cosh, cmath.tanh, cmath.exp)
} | {
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
    x = Fraction(x) if isinstance(x, int) else x
    return Value("number", (x,) * POINTS, plain=isinstance(x, Fraction))


def variable(name: str) -> Value:
    """The same few-digit fractions for a name each time: polynomials stay exact, and different ones differ."""
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


def add(a: Value, b: Value) -> Value:
    return lift(lambda x, y: x + y, a, b)


def negate(a: Value) -> Value:
    return multiply(number(-1), a)._replace(plain=a.plain)


def multiply(a: Value, b: Value) -> Value:
    if a.kind == "number" and b.kind.startswith("matrix"):
        return b._replace(parts=tuple(multiply(a, part) for part in b.parts))
    return lift(lambda x, y: x * y, a, b)


def divide(a: Value, b: Value) -> Value:
    value = lift(lambda x, y: x / y, a, b)
    return value._replace(plain=is_integer(a) and is_integer(b) and value.parts[0].denominator > 1)


def mixed(whole: Value, fraction: Value | None) -> Value:
    """1 1/2: a whole number and a proper fraction side by side."""
    if not fraction or not is_integer(whole) or not fraction.plain or not 0 < fraction.parts[0] < 1:
        raise Unreadable
    return add(whole, fraction)._replace(plain=True)


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
    if not isinstance(degree, Fraction) or degree.denominator > 1 or degree < 1:
        raise Unreadable
    n = degree.numerator
    if not isinstance(x, complex) and x < 0 and n % 2:
        return -root(-x, degree)
    if isinstance(x, Fraction) and x >= 0:
        tops = [math.isqrt(k) if n == 2 else round(k ** (1 / n)) for k in (x.numerator, x.denominator)]
        exact = Fraction(*tops) if tops[1] else Fraction(0)
        if max(tops).bit_length() * n <= 2 * MOST_BITS and exact**n == x:
            return exact
    return complex(x) ** (1 / n)


def factorial(x: Fraction | complex) -> Fraction:
    if not isinstance(x, Fraction) or x.denominator > 1 or not 0 <= x <= 400:
        raise Unreadable
    return Fraction(math.factorial(x.numerator))


def binomial(n: Fraction | complex, k: Fraction | complex) -> Fraction:
    if not all(isinstance(x, Fraction) and x.denominator == 1 and 0 <= x <= 2000 for x in (n, k)):
        raise Unreadable
    return Fraction(math.comb(n.numerator, k.numerator))
