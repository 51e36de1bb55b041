"""Where a file can be mutated, and how. `mutate.py` runs the tests on what is drawn from here."""

import ast
import itertools
import random
import re
import sys
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

PATHS = ("model.py", "rollout.py", "rewards.py", "train.py", "eval.py", "engine/*.py", "data/**/*.py")
PRESETS = re.compile("preset|paper", re.I)  # files, and names in modules, that hold settings of long runs
# Files that hold hostile programs. A mutant of them could let the attacks of the tests out, often as root.
JAILS = re.compile(rb"unshare|seccomp|landlock|setuid|RLIMIT")

SYMBOLS = dict(Lt="<", LtE="<=", Gt=">", GtE=">=", Eq="==", NotEq="!=", Is="is", IsNot="is not", In="in")
SYMBOLS |= dict(NotIn="not in", Add="+", Sub="-", Mult="*", Div="/", FloorDiv="//", Mod="%", MatMult="@")
SYMBOLS |= dict(Pow="**", BitOr="|", BitAnd="&", BitXor="^", LShift="<<", RShift=">>", And="and", Or="or")
OTHERS = {"<": "<=,>=", "<=": "<,>", ">": ">=,<=", ">=": ">,<", "==": "!=", "!=": "==", "is": "is not"}
OTHERS |= {"is not": "is", "in": "not in", "not in": "in", "and": "or", "or": "and", "+": "-", "-": "+"}
OTHERS |= {"*": "/", "/": "*", "//": "*,/", "%": "*", "@": "*", "**": "*", "|": "&", "&": "|", "^": "|"}
OTHERS |= {"<<": ">>", ">>": "<<"}
TWINS = {"min": "max", "max": "min", "any": "all", "all": "any"}
UNORDERED = ("min", "max", "suppress", "option", "require")  # calls whose arguments stay where they are


class Mutant(NamedTuple):
    file: str
    line: int
    start: int  # the bytes start:end of the file become `new`
    end: int
    new: str
    before: str  # the lines of the edit, without line breaks and indents
    after: str
    lines: tuple[int, ...]  # the tests that execute one of these lines meet the mutant
    names: tuple[str, ...]  # what a statement of a module or class defines: so do the tests of its users

    @property
    def name(self) -> str:
        return f"{self.file}:{self.line} {self.start}-{self.end} {self.new}"

    def __str__(self) -> str:
        return f"{self.file}:{self.line}\n  - {self.before}\n  + {self.after}"


def files(tree: Path) -> list[Path]:
    found = sorted({path for pattern in PATHS for path in tree.glob(pattern)})
    return [path for path in found if not PRESETS.search(path.name) and not JAILS.search(path.read_bytes())]


def drawn(tree: Path, seed: int, file: str) -> Iterator[Mutant]:
    """Mutants of the files whose path begins with `file`, one for each site, in an order that the seed draws.

    What gives no program, or the same one, is left out.
    """
    found, rng = [], random.Random(seed)
    for path in files(tree):
        name = path.relative_to(tree).as_posix()
        if name.startswith(file):
            found += [rng.choice(mutants) for mutants in sites(name, path.read_bytes())]
    rng.shuffle(found)
    for m in found:
        source = (tree / m.file).read_bytes()
        try:
            if ast.dump(ast.parse(edited(source, m))) != ast.dump(ast.parse(source)):
                yield m
        except SyntaxError:
            pass


def edited(source: bytes, m: Mutant) -> bytes:
    return source[: m.start] + m.new.encode() + source[m.end :]


def sites(file: str, source: bytes) -> Iterator[list[Mutant]]:
    """The mutants of a file, in lists by site."""
    begins = [0, *itertools.accumulate(len(line) for line in source.splitlines(keepends=True))]
    for node, parents in walk(ast.parse(source), ()):
        statement = next(n for n in (node, *reversed(parents)) if isinstance(n, ast.stmt))
        in_function = any(isinstance(n, (ast.FunctionDef, ast.Lambda)) for n in parents)
        first, last = statement.lineno, statement.end_lineno
        if isinstance(statement, ast.FunctionDef):  # a default: it acts in the body
            first = statement.body[0].lineno
        elif isinstance(getattr(statement, "body", None), list):  # its head
            last = max(first, statement.body[0].lineno - 1)
        targets = getattr(statement, "targets", [getattr(statement, "target", None)])
        inner = [n for target in targets if target and not in_function for n in ast.walk(target)]
        names = {getattr(n, "id", getattr(n, "attr", "")) for n in inner} - {""}
        for start, end, options in edits(node, parents, source, begins):
            row = source.count(b"\n", 0, start)
            head, tail = source[begins[row] : start].decode(), source[end : source.find(b"\n", end)].decode()
            before, *after = (head + t + tail for t in (source[start:end].decode(), *options))
            before, *after = (" ".join(t.split()) for t in (before, *after))
            reach = tuple(range(first, last + 1)), tuple(sorted(names))
            rows = zip(options, after, strict=True)
            yield [Mutant(file, row + 1, start, end, new, before, shown, *reach) for new, shown in rows]


def walk(node: ast.AST, parents: tuple) -> Iterator[tuple[ast.AST, tuple]]:
    """All nodes that may be mutated, with those around them: no annotation, message, printing or preset."""
    around = (*parents, node)
    for field, value in ast.iter_fields(node):
        if field in ("annotation", "returns", "decorator_list", "format_spec"):
            continue
        if called(node) == "require" and field == "args":
            value = value[:1]
        for child in value if isinstance(value, list) else [value]:
            if isinstance(child, ast.AST) and is_live(child, parents):
                if hasattr(child, "lineno"):
                    yield child, around
                if not isinstance(child, ast.Raise):
                    yield from walk(child, around)


def is_live(node: ast.AST, parents: tuple) -> bool:
    if isinstance(node, ast.If) and "__name__" in ast.dump(node.test):
        return False
    if isinstance(node, (ast.Assign, ast.AnnAssign)) and not parents:
        return not PRESETS.search(ast.unparse(node).partition("=")[0])
    if isinstance(node, ast.JoinedStr) and sys.version_info < (3, 12):  # older Pythons misplace what is in it
        return False
    is_help = isinstance(node, ast.keyword) and node.arg == "help"
    return not is_help and called(node) != "print" and called(getattr(node, "value", None)) != "print"


def called(node: ast.AST | None) -> str:
    """The name of the function that a call calls; "" for other nodes."""
    func = node.func if isinstance(node, ast.Call) else None
    return getattr(func, "id", getattr(func, "attr", ""))


def is_text(node: ast.AST) -> bool:
    return isinstance(node, ast.JoinedStr) or isinstance(node, ast.Constant) and isinstance(node.value, str)


def edits(node: ast.AST, parents: tuple, source: bytes, begins: list[int]) -> Iterator[tuple]:
    """The edits at a node: (start, end, new texts) for each site. `begins` are the places of the lines."""

    def place(n: ast.AST) -> tuple[int, int]:
        return begins[n.lineno - 1] + n.col_offset, begins[n.end_lineno - 1] + n.end_col_offset

    def text(n: ast.AST) -> str:
        return source[slice(*place(n))].decode()

    def operator(left: ast.AST, op: ast.AST, right: ast.AST) -> tuple:
        gap, symbol = place(left)[1], SYMBOLS[type(op).__name__]
        found = re.search(re.escape(symbol).replace(r"\ ", r"\s+").encode(), source[gap : place(right)[0]])
        return gap + found.start(), gap + found.end(), OTHERS[symbol].split(",")

    parent = parents[-1]
    start, end = place(node)
    match node:
        case ast.Compare():
            yield from map(operator, [node.left, *node.comparators], node.ops, node.comparators)
        case ast.BoolOp():
            yield from (operator(left, node.op, right) for left, right in pairwise(node.values))
        case ast.BinOp() if not is_text(node.left) and not is_text(node.right):
            yield operator(node.left, node.op, node.right)
        case ast.UnaryOp(op=ast.Not()):
            yield start, end, [f"({text(node.operand)})"]
        case ast.UnaryOp(op=ast.USub()) if not isinstance(node.operand, ast.Constant):
            yield start, end, [f"({text(node.operand)})"]
        case ast.Constant(value=bool()):
            yield start, end, [str(not node.value)]
        case ast.Constant(value=None) if not isinstance(parent, (ast.Compare, ast.Return)):
            yield start, end, ["0"]
        case ast.Constant(value=int() | float()):
            n = node.value
            if isinstance(parent, ast.UnaryOp) and isinstance(parent.op, ast.USub):
                n, start, parent = -n, place(parent)[0], parents[-2]
            dim = isinstance(parent, ast.keyword) and parent.arg in ("dim", "axis")
            others = [-1 if n == 0 else 0] if dim else [n + 1, n - 1, 0 * n, 2 * n, -n]
            yield start, end, [repr(other) for other in dict.fromkeys(others) if other != n]
        case ast.Constant(value=str()):
            around = parents[-2] if isinstance(parent, (ast.Tuple, ast.List, ast.Set)) else parent
            is_option = called(parent) == "option" and node is parent.args[0]
            if is_option or isinstance(parent, ast.arguments) or isinstance(around, ast.Compare):
                yield start, end, [repr(node.value + "x")]
        case ast.AugAssign():
            yield start, end, ["pass"]
            yield operator(node.target, node.op, node.value)
        case ast.Assign() if any(isinstance(t, (ast.Attribute, ast.Subscript)) for t in node.targets):
            yield start, end, ["pass"]
        case ast.Raise() | ast.Expr(value=ast.Call()):
            yield start, end, ["pass"]
        case ast.Return(value=ast.AST()):
            yield start, end, ["return None"]
        case ast.Slice(step=None):
            for bound, at, other in ((node.lower, start, "1"), (node.upper, end, "-1")):
                if not bound:
                    yield at, at, [other]
                elif not isinstance(bound, (ast.Constant, ast.UnaryOp)):
                    yield *place(bound), [f"({text(bound)}) + 1", f"({text(bound)}) - 1"]
        case ast.keyword(arg="min" | "max"):
            yield start, start + 3, [TWINS[node.arg]]
        case ast.Call():
            if called(node) in TWINS:
                at = place(node.func)[1]
                yield at - 3, at, [TWINS[called(node)]]
            values = [k.value for k in node.keywords if k.arg]
            for one, two in [] if called(node) in UNORDERED else [*pairwise(node.args), *pairwise(values)]:
                if not any(is_text(n) or isinstance(n, ast.Starred) for n in (one, two)):
                    between = source[place(one)[1] : place(two)[0]].decode()
                    yield place(one)[0], place(two)[1], [text(two) + between + text(one)]
    is_test = getattr(parent, "test", None) is node or node in getattr(parent, "ifs", ())
    if is_test and not isinstance(node, (ast.Compare, ast.BoolOp, ast.UnaryOp, ast.Constant)):
        yield start, end, [f"not ({text(node)})"]
