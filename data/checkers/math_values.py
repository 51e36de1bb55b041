"""What an answer in mathematics stands for: reads a text as a `Value`, in bounded time. Nothing is eval'd.

An expression becomes its values at a few fixed points of its variables, as exact fractions where that is
possible. So 2(x+1) and 2x+2 become the same Value, and no other polynomial does. Lists, tuples, intervals and
matrices hold Values. What can't be read as any of these stays a text.
"""

import cmath
import functools
import itertools
import math
import operator
import re
from collections import deque
from collections.abc import Callable
from fractions import Fraction
from typing import NamedTuple
from zlib import crc32

LONGEST_ANSWER, MOST_TOKENS, MOST_COMMANDS, DEEPEST = 1_000, 200, 60, 20  # limit the time and the recursion
MOST_BITS = 1000  # of an exact number: 9^9^9^9 is not computed, and every exact number fits a float


class Value(NamedTuple):
    """What an answer stands for.

    `kind` is "number", "list", "set", "words", "text", "base", "ratio", "matrix 2" (two columns), brackets
    such as "()" or "[)", a relation such as "=" or "< <=", or ":=" for a name and what it is said to be.

    The parts of a number are its values at the points: None where there is none, one alone for a constant.
    The parts of words, of texts and of numbers in other bases are strings. Other kinds have Values as parts.
    """

    kind: str
    parts: tuple
    plain: bool = False  # a number that is written out: 12, -0.5, 3/4, 1 1/2, 2*10^5; not 3+4, 12/3 or 5!
    unit: frozenset = frozenset()


class Unreadable(Exception):
    """Not an expression of the kinds known here."""


def read_value(text: str) -> Value | None:
    """The Value of an answer; None if it is empty or too large, or if its brackets don't match."""
    tokens = tokenize(text) if len(text) <= LONGEST_ANSWER else []
    depths = list(itertools.accumulate((token in OPENING) - (token in CLOSING) for token in tokens))
    if not any(token[-1].isalnum() or is_number(token) for token in tokens) or depths[-1] or min(depths) < 0:
        return None
    commands = sum(token[0] == "\\" for token in tokens)
    if len(tokens) > MOST_TOKENS or max(depths) > DEEPEST or commands > MOST_COMMANDS:
        return None
    try:
        items = read_items(tokens, (",", ";", "or", r"\cup"))
        return items[0] if len(items) == 1 else Value("list", items)
    except Unreadable:
        return Value("text", ("".join(tokens).replace("«", ""),))


# Text to tokens: numbers, single letters, signs, commands; a word begins with «.

ALIASES = r"""
drop $ ~ \left \right \big \Big \bigg \Bigg \bigl \bigr \Bigl \Bigr \displaystyle \textstyle \limits \hline
drop \! \, \; \: \> \quad \qquad \( \) \[ \] \mathbf \mathbb \mathcal \boldsymbol \bold \vec \angle \triangle
drop \boxed \fbox
\frac \dfrac \tfrac \cfrac  \binom \dbinom \tbinom  \sqrt √  \{ \lbrace  \} \rbrace  | \vert \lvert \rvert
- − –  * \cdot \times \ast × ·  / \div ÷  % \%  ° \degree \circ  \pi π  \infty ∞  \cup ∪  \pm ±  : \colon
< \lt  > \gt  <= \le \leq \leqslant ≤  >= \ge \geq \geqslant ≥  != \ne \neq ≠  = \in \equiv ∈ ≡
\emptyset \varnothing ∅  £ \pounds  € \euro  or «or «and
"""
ALIAS_GROUPS = [group.split() for group in re.split("\n|  ", ALIASES.strip())]
SAME_TOKEN = {alias: first for first, *rest in ALIAS_GROUPS for alias in rest}
UNIT_NAMES = r"""
cm centimeter centimetre, mm millimeter millimetre, km kilometer kilometre, m meter metre, inch inche in,
ft foot feet, yard yd, mile mi, second sec s, minute min, hour hr h, day, week, month, year yr, gram g,
kg kilogram, lb pound £, oz ounce, liter litre l, ml milliliter millilitre, gallon gal, dollar \$, cent,
euro €, degree deg °, percent %, mile/hour mph, 2 square squared sq, 3 cubic cubed, radian rad,
noon, midnight, north, south, east, west
"""
UNITS = {name: names[0].split("/") for names in map(str.split, UNIT_NAMES.split(",")) for name in names}
CURRENCIES = {r"\$", "£", "€"}
SCALES = {"dozen": 12, "hundred": 100, "thousand": 10**3}
SCALES |= {"million": 10**6, "billion": 10**9, "trillion": 10**12}
# Words after a number that make it another one, as in 10 degrees below zero and 3 halves.
FRACTIONS = {"third", "fourth", "fifth", "sixth", "seventh", "eighth", "ninth", "tenth", "hundredth"}
CHANGING = {f"{word}s" for word in FRACTIONS} | {"halves", "below", "under", "minus", "negative", "zero"}
# These do so only right after it, with nothing or "of" behind: 1 third of it, but not 18 third graders.
CHANGING_ALONE = FRACTIONS | {"half", "squared", "cubed", "factorial"}
OPENING = {"(", "[", "{", r"\{", r"\langle", r"\beginmatrix", r"\beginvmatrix"}
CLOSING = {")", "]", "}", r"\}", r"\rangle", r"\endmatrix", r"\endvmatrix"}
REWRITES = [
    (r"(?<=\d)(?:\{,\}|,\\!|\\,)\s*(?=\d{3}(?!\d))", ""),  # thousands, as LaTeX sets them
    (r"\*\*(?=\S)([^*]+)(?<=\S)\*\*", r" \1 "),  # bold in Markdown
    (r"\*\*", "^"),  # a power in Python
    (r"(?:(?<=1)st|(?<=2)nd|(?<=3)rd|(?<=[04-9])th|(?<=1[123])th)(?=[\s}$,.]|$)", ""),  # 1st is 1
    (r"(?<!\\)\\(?=\s)", ""),
    (r"\^\s*(\\circ(?![A-Za-z])|\{\s*\\circ\s*\})", "°"),
    ("²", "^2"),
    ("³", "^3"),
    (r"\\mathbb\s*(?:R|\{\s*R\s*\})|ℝ", r"(-\\infty,\\infty)"),
    (r"(?:\\left)?\s*\\\{(?:\s|\\[ ,;:!])*(?:\\right)?\s*\\\}", r"\\emptyset "),
    (r"\\begin\s*\{array\}\s*\{[^{}]*\}", r"\\beginmatrix "),
    (r"\\(begin|end)\s*\{(?:[pbB]?(?:small)?matrix|array)\}", r"\\\1matrix "),
    (r"\\(begin|end)\s*\{vmatrix\}", r"\\\1vmatrix "),
    (r"\\(?:text|mbox|textbf|textit|textrm|mathrm)\s*\{([^{}]*)\}", lambda m: f" {mark_words(m[1])} "),
    (r"(?<![A-Za-z\\«])[A-Za-z]{2,}", lambda m: word_or_letters(m[0], m.string[: m.start()][-1:])),
    (r",\s*«(?:and|or)\b", " «or "),
    (r"\(\s*«mod\s*(\d+)\s*\)|(?:«|\\[pb]?)mod\s*(?:(\d+)|\{\s*(\d+)\s*\})", r" «mod \1\2\3 "),
]
NUMBER = "|".join([
    r"[0-9]*\.[0-9]*\\overline\s*\{[0-9]+\}",
    r"(?:[0-9]+\.[0-9]*|\.[0-9]+)[eE][-+]?[0-9]{1,3}(?![0-9])",  # 1.5e3 and 3.0e-4, as programs write them
    r"[0-9]+[eE](?:[0-9]|[-+]?[0-9]{2,3})(?![0-9])",  # 6e23 and 1e-05; but 2e-4 is 2e minus 4
    r"[1-9][0-9]{0,2}(?:,[0-9]{3})+(?![0-9])(?:\.[0-9]+)?",
    r"[1-9][0-9]{0,2}(?:\s[0-9]{3})+(?!\s*[0-9/])(?:\.[0-9]+)?",
    r"[0-9]+(?:\.[0-9]+)?|\.[0-9]+",
])  # fmt: skip
TOKEN = re.compile(rf"\\[A-Za-z]+|\\.|{NUMBER}|«mod [0-9]+|«[A-Za-z]+|<=|>=|!=|\S", re.S)


def tokenize(text: str) -> list[str]:
    for pattern, replacement in REWRITES:
        text = re.sub(pattern, replacement, text)
    tokens, depth = [], 0
    for match in TOKEN.findall(text):
        token = SAME_TOKEN.get(match, match)
        depth += (token in OPENING - {"{"}) - (token in CLOSING - {"}"})
        if depth and "," in token:  # (1,000) is a pair
            tokens += filter(None, re.split("(,)", token))
        elif token != "drop":
            tokens.append(token.lower() if token[0] == "«" and len(token) > 2 else token)
    while tokens and tokens[-1] in ".,;":
        tokens.pop()
    has_function = not FUNCTIONS.keys().isdisjoint(tokens)
    return [r"\deg" if token == "°" and has_function else token for token in tokens]


def mark_words(text: str) -> str:
    return re.sub("([A-Za-z]+)", r"«\1", text)


def word_or_letters(run: str, before: str) -> str:
    r"""What letters outside \text are, after the character `before`: a function, a word, or variables.

    2xy is a product of variables, and so is 2abc: it is not two of something called abc. But 2 cm is not.
    """
    word = run.lower()
    if word in ("sqrt", "pi", "infty") or rf"\{word}" in FUNCTIONS:
        return rf"\{word} "
    if word == "infinity":
        return r"\infty "
    names = {word, word.removesuffix("s")}
    known_word = word in ("or", "and", "no", "of") or names & SCALES.keys() or names & UNITS.keys()
    apart = len(run) > 2 and set(word) & set("aeiou") and not before.isalnum() and before not in ("}", ")")
    return f"«{word}" if known_word or apart else run


# Tokens to Values by recursive descent: items, relation, quantity, sum, product, power, atom.

RELATIONS = ("=", "<", "<=", ">", ">=", "!=")
LETTER = r"(?:[A-Za-z]|\\[a-z]+)(?:_(?:\w|\{\w+\}))?'*(?:\^\{-1\})?"
NAMES = (
    rf"{LETTER}(?:\([A-Za-z,]+\))?",  # x, \theta, a_1, f(x), f^{-1}(x)
    r"[A-Zf-hpq](?:\^\{-1\})?\(-?[0-9./,]+\)",  # f(2); but x(2) is a product
    rf"[A-Z]{{2,4}}|\({LETTER}(?:,{LETTER})+\)|(?:«[a-z]+)+",  # AB, (r,\theta), area of the square
)
NAME = re.compile("|".join(NAMES))
UNIT = re.compile(r"(?:«mod [0-9]+ |«[A-Za-z]+ |[%°./*'] |\^ (?:\{ )?(?:- )?[1-3] (?:\} )?)*")


def split(tokens: list[str], separators: tuple[str, ...]) -> tuple[list[list[str]], list[str]]:
    """The parts between separators that are in no brackets, and these; Unreadable if a part is empty."""
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
    r"""The Values between separators. A part with \pm counts as two; with three of them it is Unreadable."""
    items = []
    for part in split(tokens, separators)[0]:
        if part.count(r"\pm") > 2:
            raise Unreadable
        for signs in itertools.product("+-", repeat=part.count(r"\pm")):
            sign = iter(signs)
            items.append(read_item([next(sign) if token == r"\pm" else token for token in part]))
    return tuple(items)


def read_item(tokens: list[str]) -> Value:
    """Words, a ratio, a relation or a quantity."""
    is_text = all(token[0] == "«" or token.isalpha() or token in "-'" for token in tokens)
    if is_text and max(map(len, tokens), default=0) > 2:
        return Value("words", ("".join(tokens).replace("«", " ").strip().lower(),))
    terms, _ = split(tokens, (":",))
    if len(terms) > 1:
        return read_ratio(terms)
    parts, relations = split(tokens, RELATIONS)
    if not relations:
        return read_quantity(tokens)
    if set(relations) <= {">", ">="}:  # 5 > x is x < 5
        parts, relations = parts[::-1], [relation.replace(">", "<") for relation in relations[::-1]]
    if set(relations) == {"="} and len(parts) == 2 and NAME.fullmatch("".join(parts[1])):  # 5 = x
        parts = parts[::-1]
    values = [variable("y") if part == list("f(x)") else read_item(part) for part in parts]
    if set(relations) == {"="}:
        named = bool(NAME.fullmatch("".join(parts[0])))
        *others, result = values[named:]
        if all(other.kind == result.kind == "number" and same_number(other, result) for other in others):
            return Value(":=", (values[0], result)) if named else result  # x = 5; 2+3 = 5
    if set(relations) <= {"<", "<="}:
        return read_inequality(parts, values, relations)
    return Value(" ".join(relations), tuple(values))


def read_ratio(terms: list[list[str]]) -> Value:
    """The quotients of the terms by the last one. A time of day, 8:30, has a unit of its own: its text."""
    values = [read_quantity(term) for term in terms]
    plain = all(value.plain for value in values)
    quotients = tuple(divide(value, values[-1])._replace(plain=plain) for value in values[:-1])
    text = ":".join(map("".join, terms))
    return Value("ratio", quotients, unit=frozenset(re.findall("^[0-9]{1,2}:[0-5][0-9]$", text)))


def read_inequality(parts: list[list[str]], values: list[Value], relations: list[str]) -> Value:
    """x < 5 and 1 <= x < 5 as intervals of x. An inequality without exactly one variable stays as it is."""
    named = [bool(NAME.fullmatch("".join(part))) and part[0] not in (r"\infty", *CONSTANTS) for part in parts]
    infinity = variable(r"\infty")
    if named == [True, False]:
        values, relations = [negate(infinity), *values], ["<", *relations]
    elif named == [False, True]:
        values, relations = [*values, infinity], [*relations, "<"]
    elif named != [False, True, False]:
        return Value(" ".join(relations), tuple(values))
    low, name, high = values
    brackets = ("(" if relations[0] == "<" else "[") + (")" if relations[1] == "<" else "]")
    return Value(":=", (name, Value(brackets, (low, high))))


def read_quantity(tokens: list[str]) -> Value:
    """An expression and the words and units after it."""
    rest = deque(token for token in tokens if token not in CURRENCIES)
    value = read_sum(rest)
    words = [token.strip("«") for token in rest]
    if CHANGING.intersection(words) or not UNIT.fullmatch("".join(f"{token} " for token in rest)):
        raise Unreadable
    if CHANGING_ALONE.intersection(words[:1]) and words[1:2] in ([], ["of"]):
        raise Unreadable
    if value.kind != "number":
        return value
    unit = {word for word in words if word.startswith("mod ")}
    for word in [*words, *CURRENCIES.intersection(tokens)]:
        unit.update(UNITS.get(word) or UNITS.get(word.removesuffix("s"), ()))
        scale = number(SCALES.get(word.removesuffix("s"), 1))
        value = lift(operator.mul, value, scale)._replace(plain=value.plain)
    return value._replace(unit=frozenset(unit))


def read_sum(tokens: deque) -> Value:
    total = read_product(tokens)
    while tokens and tokens[0] in ("+", "-"):
        total = lift(add, total, read_product(tokens))
    return total


def read_product(tokens: deque) -> Value:
    product, chain = read_power(tokens), False
    while tokens and (tokens[0] in ("*", "/") or starts_atom(tokens[0])):
        sign, scientific = tokens[0], list(itertools.islice(tokens, 3)) == ["*", "10", "^"]
        if sign in ("*", "/"):
            tokens.popleft()
        factor = read_power(tokens)
        if sign == "/":
            product, chain = divide(product, factor, chain), True
        elif is_number(sign):  # two numbers side by side are a mixed number, 1 1/2, or nothing
            if not tokens or tokens.popleft() != "/":
                raise Unreadable
            product = mixed(product, divide(factor, read_power(tokens)))
        elif sign == r"\frac" and is_whole(product) and factor.plain:
            product = mixed(product, factor)
        else:
            plain = product.plain and scientific
            product = multiply(product, factor)
            product = product._replace(plain=plain and is_exact(product))
    return product


def read_power(tokens: deque) -> Value:
    """An atom with its sign, factorials and exponents. Of a tower, 2^3^2, the upper part comes first."""
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
        base, value = tower[-1], lift(power, tower.pop(), value)
        value = value._replace(plain=base.parts == (1j,) and is_exact(value))  # i^2 is written out
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
        argument = read_argument(tokens)
        root = lift(power, argument, divide(number(1), degree))
        return root._replace(plain=argument.plain and is_exact(root))
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
        columns = len(cells[0])
        return Value(f"{opening[6:]} {columns}", tuple(read_item(cell) for row in cells for cell in row))
    items = read_items(inside, (",", ";")) if inside else ()
    kind = (opening + closing).replace("\\", "")
    if kind in ("()", "[]", "{}") and len(items) == 1:
        return items[0]
    if len(items) < 2:
        raise Unreadable
    return Value("set", tuple(dict.fromkeys(items))) if kind == "{}" else Value(kind, items)


def read_function(name: str, tokens: deque) -> Value:
    r"""\sin x, \sin^2 x, \sin^{-1} x, \log_2 x. Without brackets the argument ends at a sign or function."""
    given = {}
    while tokens and tokens[0] in ("^", "_"):
        sign = tokens.popleft()
        given[sign] = read_argument(tokens)
    bracketed = tokens and tokens[0] in OPENING
    argument = read_atom(tokens) if bracketed else read_power(tokens)
    while not bracketed and tokens and starts_atom(tokens[0]):
        if tokens[0] in FUNCTIONS or is_number(tokens[0]):
            break
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


# Arithmetic, at each point by itself.

# All variables are positive at the first three points and negative at the next two, which tells x from |x|.
# At the other eight any two letters differ in sign somewhere, which tells xy from |xy|. The variables lie
# between 1/8 and 5: some expressions are real only for small values, some only for large ones.
DENOMINATORS = (1021, 409, 211, 409, 211, 1021, 1021, 409, 409, 409, 211, 211, 211)
SIGNS = (1, 1, 1, -1, -1)
CONSTANTS = {r"\pi": math.pi, "e": math.e, "i": 1j, r"\deg": math.pi / 180}
SYMBOLS = set(re.findall(r"\S+", r"""
\infty \emptyset \alpha \beta \gamma \delta \epsilon \varepsilon \zeta \eta \theta \kappa \lambda \mu \nu \xi
\rho \sigma \tau \phi \varphi \chi \psi \omega \Gamma \Delta \Theta \Lambda \Sigma \Phi \Psi \Omega
\ell"""))  # fmt: skip


def number(x: Fraction | complex) -> Value:
    x = bounded(Fraction(x) if isinstance(x, int) else x)
    return Value("number", (x,), plain=isinstance(x, Fraction))


@functools.lru_cache(1000)
def variable(name: str) -> Value:
    """Fractions of few digits, fixed by the name: polynomials are exact, and different ones differ."""
    own = crc32(name.encode(errors="replace")) >> 24  # these eight bits differ for any two single letters
    signs = [*SIGNS, *(1 - 2 * (own >> bit & 1) for bit in range(8))]
    codes = [crc32(f"{point}/{name}".encode(errors="replace")) for point in range(len(signs))]
    tops = [sign * (128 + code % 896) for sign, code in zip(signs, codes, strict=True)]
    return Value("number", tuple(map(Fraction, tops, DENOMINATORS)))


def points(*values: Value) -> list[tuple]:
    """The parts of numbers, point by point. A constant is the same at every point."""
    count = max(len(value.parts) for value in values)
    return list(zip(*(value.parts * (count // len(value.parts)) for value in values), strict=True))


def same_number(a: Value, b: Value) -> bool:
    """Whether two numbers are equal wherever both are known: two points at least, or one for constants."""
    pairs = points(a, b)
    known = [(x, y) for x, y in pairs if x is not None and y is not None]
    return len(known) >= min(2, len(pairs)) and all(close(x, y) for x, y in known)


def close(a: Fraction | complex, b: Fraction | complex) -> bool:
    if isinstance(a, Fraction) and isinstance(b, Fraction):
        return a == b
    return abs(complex(a) - complex(b)) <= 1e-11 * max(abs(complex(a)), abs(complex(b)))


def lift(operation: Callable, *values: Value) -> Value:
    r"""The operation on numbers, point by point; Unreadable if the result is known at too few points.

    It is None where there is no result, as of \ln 0, and where variables lead out of the real numbers, as in
    \ln x where x < 0. Where they do so everywhere, as in \sqrt{-1-x^2}, it is complex, as \sqrt{-4} is.
    """
    if any(value.kind != "number" for value in values):
        raise Unreadable
    results, real = [], []
    for point in points(*values):
        try:
            result = bounded(operation(*point)) if all(x is not None for x in point) else None
        except (Unreadable, ArithmeticError, ValueError):
            result = None
        results.append(result)
        leaves_reals = isinstance(result, complex) and complex not in map(type, point)
        real.append(None if leaves_reals else result)
    for parts in (real, results):
        if sum(part is not None for part in parts) >= min(2, len(parts)):
            return Value("number", tuple(parts[:1] if all(part == parts[0] for part in parts) else parts))
    raise Unreadable


def bounded(x: Fraction | complex) -> Fraction | complex:
    """x, as a real number if it is one; Unreadable if it is too long or too large."""
    if isinstance(x, Fraction):
        if max(x.numerator.bit_length(), x.denominator.bit_length()) > MOST_BITS:
            raise Unreadable
        return x
    if not abs(x) < 2.0**MOST_BITS:  # NaN isn't either
        raise Unreadable
    return x.real if abs(x.imag) <= 1e-15 * abs(x.real) else x


def add(a: Fraction | complex, b: Fraction | complex) -> Fraction | complex:
    return a + b if isinstance(a + b, Fraction) else without_rounding(a + b, a)


def without_rounding(x: Fraction | complex, size: Fraction | complex) -> Fraction | complex:
    r"""x, or 0 if it is so small beside numbers of this size that it is their rounding, as in \sin \pi."""
    return Fraction(0) if abs(x) <= 1e-14 * abs(size) else x


def negate(a: Value) -> Value:
    return multiply(number(-1), a)._replace(plain=a.plain)


def multiply(a: Value, b: Value) -> Value:
    if a.kind == "number" and b.kind.startswith("matrix"):
        return b._replace(parts=tuple(multiply(a, part) for part in b.parts))
    return lift(operator.mul, a, b)


def divide(a: Value, b: Value, chain: bool = False) -> Value:
    """The quotient; written out if two whole numbers make a fraction. In a chain, 1/2/3, `a` may be one."""
    quotient = lift(operator.truediv, a, b)
    written_out = is_whole(b) and (is_whole(a) or chain and a.plain) and quotient.parts[0].denominator > 1
    return quotient._replace(plain=written_out)


def mixed(whole: Value, fraction: Value) -> Value:
    """1 1/2: a whole number and a proper fraction side by side."""
    if not is_whole(whole) or not fraction.plain or not 0 < fraction.parts[0] < 1:
        raise Unreadable
    return lift(add, whole, fraction if whole.parts[0] >= 0 else negate(fraction))._replace(plain=True)


def is_exact(a: Value) -> bool:
    return len(a.parts) == 1 and isinstance(a.parts[0], Fraction)


def is_whole(a: Value) -> bool:
    return a.plain and a.parts[0].denominator == 1


def power(base: Fraction | complex, exponent: Fraction | complex) -> Fraction | complex:
    """Exact where it can be. Of a negative number an odd root is the real one: (-8)^{1/3} is -2."""
    if isinstance(exponent, Fraction):
        n, degree = exponent.as_integer_ratio()
        if base == 1j and degree == 1:
            return (Fraction(1), 1j, Fraction(-1), -1j)[n % 4]
        if not isinstance(base, complex) and base < 0 and degree % 2:
            return power(-base, exponent) * (-1) ** (n % 2)
        root = exact_root(base, degree) if isinstance(base, Fraction) and base >= 0 else None
        if root is not None:
            if abs(n) * (max(root.as_integer_ratio()) - 1).bit_length() > MOST_BITS:
                raise Unreadable
            return root**n
    result = complex(base) ** complex(exponent)
    if result == 0 != base:  # too small for a float
        raise Unreadable
    return result


def exact_root(x: Fraction, degree: int) -> Fraction | None:
    if degree == 1:
        return x
    wholes = x.as_integer_ratio()
    roots = [math.isqrt(k) if degree == 2 else round(k ** (1 / degree)) for k in wholes]
    return Fraction(*roots) if all(root**degree == k for root, k in zip(roots, wholes, strict=True)) else None


def factorial(x: Fraction | complex) -> Fraction:
    if not isinstance(x, Fraction) or x.denominator > 1 or not 0 <= x <= 170:
        raise Unreadable
    return Fraction(math.factorial(x.numerator))


def binomial(n: Fraction | complex, k: Fraction | complex) -> Fraction:
    return factorial(n) / factorial(k) / factorial(n - k)


def rounded(function: Callable) -> Callable:
    return lambda x: without_rounding(function(x), x)


sine, cosine = rounded(cmath.sin), rounded(cmath.cos)
FUNCTIONS = {
    r"\sin": sine, r"\cos": cosine, r"\tan": lambda x: sine(x) / cosine(x),
    r"\csc": lambda x: 1 / sine(x), r"\sec": lambda x: 1 / cosine(x), r"\cot": lambda x: cosine(x) / sine(x),
    r"\arcsin": cmath.asin, r"\arccos": cmath.acos, r"\arctan": cmath.atan,
    r"\sinh": cmath.sinh, r"\cosh": cmath.cosh, r"\tanh": cmath.tanh,
    r"\exp": lambda x: power(math.e, x), r"\ln": cmath.log, r"\log": cmath.log10,
}  # fmt: skip
