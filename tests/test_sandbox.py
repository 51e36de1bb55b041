"""Programs judged by tests: references pass, mutants and cheats fail, and none takes longer than its time."""

import ast
import contextlib
import importlib.util
import json
import os
import subprocess
import sys
import time
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from data import humaneval, load_task, mbpp, read_rows
from data.checkers import isolation, sandbox
from data.checkers.sandbox import Job, program_in, run_tests

pytestmark = pytest.mark.slow

ASSETS = Path(__file__).parent.parent.parent / "shared" / "assets"
SQUARES = "assert f(3) == 9\nassert f(-4) == 16"
MODULES = {"altered.py": sandbox, "isolation.py": isolation}
LINUX = pytest.mark.skipif(sys.platform != "linux", reason="isolation beyond limits is for Linux")


def asset(name: str) -> str:
    if not (ASSETS / name).is_file():
        pytest.skip(f"no {name} in {ASSETS}")
    return str(ASSETS / name)


def squares(program: str, tests: str = SQUARES) -> Job:
    return Job(program, tests, ("f",))


def quietly(
    jobs: list[Job], layers: tuple[str, ...], seconds: float = 3, module=sandbox, workers: int = 6
) -> list[str]:
    """The verdicts with these layers of isolation alone, as on a machine that refuses the others."""
    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings():
        patch.setattr(module, "LAYERS", layers)
        warnings.simplefilter("ignore")
        return module.run_tests(jobs, seconds, workers)


def function(body: str, before: str = "") -> str:
    lines = body.replace("\n", "\n    ")
    return f"{before}\ndef f(x):\n    {lines}\n"


RIGHT = "def f(x):\n    return x * x\n"
ALWAYS = (
    "__eq__ = __ne__ = __lt__ = __le__ = __gt__ = __ge__ = __contains__ = __bool__ = lambda *a: True; "
    "__hash__ = lambda s: 9"
)
EVERYWHERE = "for fd in range(64):\n    try: os.write(fd, {})\n    except OSError: pass"
FRAMED = "(lambda d: len(d).to_bytes(4, 'big') + d)(json.dumps({}).encode())"


def forged(message: str, end: str = "", times: int = 1) -> str:
    """A program that writes a message to every file that is open, as often as it says."""
    return "import os, json, time\n" + EVERYWHERE.format(f"{FRAMED.format(message)} * {times}") + "\n" + end


# The expected value, for a program that has found the tests.
FOUND = "if i >= 0: return int(s[i:].split('==')[1].split()[0])"

# None of these does lasting harm if it gets through, as the tests also run where little holds a program back.
CHEATS = {
    "sys.exit": "import sys; sys.exit(0)",
    "sys.exit later": function("import sys; sys.exit(0)"),
    "os._exit": "import os; os._exit(0)",
    "os._exit later": function("import os; os._exit(0)"),
    "quit in a finaliser": "import os\nclass A:\n    def __del__(self): os._exit(0)\na = A()\n"
    + function("global a; a = None"),
    "atexit": "import atexit, os; atexit.register(os._exit, 0)\n" + function("raise SystemExit(0)"),
    "abort": function("import os; os.abort()"),
    "early return": "return 0\n" + RIGHT,
    "no function": "x = 1",
    "raises at its end": RIGHT + "1 / 0",
    "exits at its end": RIGHT + "raise SystemExit(0)",
    "empty": "",
    "raises AssertionError": function("raise AssertionError"),
    "raises KeyboardInterrupt": function("raise KeyboardInterrupt"),
    "raises GeneratorExit": function("raise GeneratorExit"),
    "raises StopIteration": function("raise StopIteration"),
    "raises an exception that can't be shown": function(
        "raise E", "class E(BaseException):\n    def __str__(self): raise self"
    ),
    "equals all": function("return E()", f"class E: {ALWAYS}"),
    "equals all, in a list": function("return [E()]", f"class E: {ALWAYS}"),
    "equals all, as a key": function("return {E(): E()}", f"class E: {ALWAYS}"),
    **{
        f"{kind} that equals all": function("return E()", f"class E({kind}): {ALWAYS}")
        for kind in ("int", "float", "str", "list", "tuple", "dict")
    },
    "class that equals all": function("return E", f"class M(type): {ALWAYS}\nclass E(metaclass=M): pass"),
    "f is such an object": f"class E:\n    {ALWAYS}\n    def __call__(self, x): return self\nf = E()",
    "mock": function("return unittest.mock.MagicMock()", "import unittest.mock"),
    "nan": function("return float('nan')"),
    "not-implemented": function("return NotImplemented"),
    "patched builtins": "import builtins\nfor name in dir(builtins):\n"
    "    if name[0].islower() and name not in ('str', 'type'):\n"
    "        setattr(builtins, name, lambda *a, **k: True)\nbuiltins.AssertionError = ()\n"
    "def f(x): return True",
    "patched json": "import json\njson.dumps = lambda *a, **k: '[\"value\", true]'\ndef f(x): return x",
    "patched sandbox": "import sandbox as m\nm.encode = lambda *a: True\nm.finish = m.harness = print\n"
    "m.send = lambda fd, message: None\ndef f(x): return x",
    "the harness again": function("import sandbox as m; m.harness()"),
    "marker printed": "print('right', flush=True)\n" + function("print('right'); return None"),
    "marker everywhere": "import os\n" + EVERYWHERE.format("b'right'") + "\nos._exit(0)",
    "marker everywhere, later": function(EVERYWHERE.format("b'right'"), "import os"),
    "verdict as a message": forged('["right", "right"]', "os._exit(0)"),
    "answers ahead": forged('["value", True]', "os._exit(0)", 9),
    "no answers": forged('["value"]', "os._exit(0)"),
    "answer of an unknown kind": forged('["value", ["eval", "1"]]'),
    "answer of a wrong shape": forged('["value", ["dict", [[["list", []], 1]]]]'),
    "answer nested deeply": "import os\n" + EVERYWHERE.format("(10**5).to_bytes(4, 'big') + b'[' * 10**5"),
    "answer of 4 GB": "import os\n" + EVERYWHERE.format("b'\\xff' * 99"),
    "answer cut off": "import os\n" + EVERYWHERE.format("b'\\0\\0\\1\\0'") + "\nos._exit(0)",
    "redefined checks": "def check(*a): pass\ndef test(*a): pass\ncandidate = check\ndef f(x): return x",
    "closes everything": function("import os; os.closerange(0, 99)"),
    "swaps its pipes": function(
        "import os\nfor a in range(3, 20):\n    for b in range(3, 20):\n        try: os.dup2(a, b)\n"
        "        except OSError: pass"
    ),
    "looks for the tests in memory": "import gc, sys, ast\n"
    + function(
        "for o in gc.get_objects():\n    s = ' '.join(map(str, o.values())) if type(o) is dict else str(o)\n"
        f"    i = s.find('assert ' + f'f({{x}}) == ')\n    {FOUND}"
    ),
    "looks for the tests in frames": "import sys\n"
    + function(
        "frame = sys._getframe()\nwhile frame:\n"
        "    for value in {**frame.f_globals, **frame.f_locals}.values():\n        s = str(value)\n"
        f"        i = s.find('assert ' + f'f({{x}}) == ')\n        {FOUND}\n    frame = frame.f_back"
    ),
    "looks for the tests in its process": "import re\n"
    + function(
        "for line in open('/proc/self/maps'):\n    a, b = (int(n, 16) for n in line.split()[0].split('-'))\n"
        "    m = open('/proc/self/mem', 'rb', 0)\n    try: m.seek(a); data = m.read(b - a)\n"
        "    except (OSError, ValueError): continue\n"
        "    hit = re.search(rb'assert ' + rb'f\\(%d\\) == (\\d+)' % x, data)\n    if hit: return int(hit[1])"
    ),
    "looks into the harness": function(
        "import os\nfor n in ('mem', 'fd/0', 'maps', 'environ'):\n"
        "    open(f'/proc/{os.getppid()}/{n}').read()\nreturn x * x"
    ),
    "opens the harness's pipe": function(
        "import os\nfor fd in range(9):\n    try:\n"
        "        os.write(os.open(f'/proc/{os.getppid()}/fd/{fd}', 1), b'right')\n"
        "    except OSError: pass"
    ),
    "traces": "import sys\nsys.settrace(lambda *a: sys.exit(0)); sys.setprofile(lambda *a: sys.exit(0))\n"
    "def f(x): return x",
    "audits": "import sys, os\nsys.addaudithook(lambda *a: os._exit(0))\nimport wave\ndef f(x): return x",
    "kills its parent": function("import os\nfor n in (9, 15, 14, 6): os.kill(os.getppid(), n)"),
    "kills all": function("import os; os.kill(-1, 9)"),
    "signals itself": function("import os\nfor n in (15, 6, 11, 9): os.kill(os.getpid(), n)"),
    "alarm": function("import signal, time; signal.alarm(1); time.sleep(9)"),
    "stops": function("import os, signal; os.kill(os.getpid(), signal.SIGSTOP)\nwhile True: pass"),
    "reads stdin": function("return int(input())"),
    "reads stdin at the start": "import sys; y = int(sys.stdin.read())",
    "fork bomb of 128": "import os, time\nfor _ in range(7): os.fork()\ntime.sleep(9)\n" + RIGHT,
    "forks": function("import os\nif os.fork(): return x * x"),
    "threads": function(
        "for _ in range(99): threading.Thread(target=time.sleep, args=(5,)).start()\nreturn x * x",
        "import threading, time",
    ),
    "another program": function(
        "import subprocess; return int(subprocess.check_output(['expr', str(x), '*', str(x)]))"
    ),
    "null pointer": function("import ctypes; ctypes.string_at(0)"),
    "recursion": function("return f(x)"),
    "recursion without a limit": function("return f(x)", "import sys; sys.setrecursionlimit(10**9)"),
    "nested result": function("a = []\nfor _ in range(10**5): a = [a]\nreturn a"),
    "cyclic result": function("a = []; a.append(a); return a"),
    "memory": function("return bytearray(10**10)"),
    "list of a billion": function("return [0] * 10**9"),
    "text of a million": function("return 'x' * 10**7"),
    "int of many digits": function("return 1 << 10**8"),
    "endless iterator": function("import itertools; return itertools.count()"),
    "disk": function(
        "i = 0\nwhile True:\n    with open(str(i), 'wb') as file: file.write(bytes(10**6))\n    i += 1"
    ),
    "one large file": function("file = open('a', 'wb')\nwhile True: file.write(bytes(10**6))"),
    "many folders": function("import os\nwhile True: os.mkdir('a'); os.chdir('a')"),
    "endless output": function("while True: print('right' * 999)"),
    "loop at the start": "while True: pass",
    "loop that catches all": function(
        "while True:\n    try:\n        while True: pass\n    except BaseException: pass"
    ),
    "regular expression": function("import re; re.match(r'(a+)+$', 'a' * 99 + 'b')"),
    "power": function("return 9 ** 9 ** 9"),
}
NO_PROGRAMS = {
    "syntax": "def f(x: return 1",
    "prose": "The square of x is x times x.",
    "return": "return 1",
    "NUL": RIGHT + "\0",
    "surrogate": RIGHT + "# \ud800",
    "nested deeply": "x = " + "(" * 10**5 + ")" * 10**5,
    "nested unary": "x = " + "-" * 10**6 + "1",
    "a megabyte of text": "square the number " * 60_000,
}
SOLUTIONS = {
    "plain": RIGHT,
    "a script's end": RIGHT + "if __name__ == '__main__':\n    print(f(int(input())))",
    "prints": "print('hello')\n" + function("print(x); return x * x"),
    "own check and assert": "def check(c): pass\n" + RIGHT + "assert f(2) == 4",
    "subclasses": function("return C(x * x)", "class C(int): pass"),
    "a sum of many": function("return sum(abs(x) for _ in range(abs(x)))"),
    "lambda": "f = lambda x: x * x",
    "method": "class A:\n    def square(self, x): return x * x\nf = A().square",
    "dataclass": "from __future__ import annotations\nfrom dataclasses import dataclass\n@dataclass\n"
    "class A:\n    x: int\ndef f(x): return A(x).x ** 2",
    "modules": "import heapq, decimal, datetime, statistics, collections, bisect, random, itertools, string\n"
    "import fractions, hashlib\n" + RIGHT,
    "late modules": function("import cmath, difflib, calendar\n'x'.encode('utf-16'); return x * x"),
}
HONEST = {  # other programs, and tests that they pass
    "empty stdin": ("import os\ndata = os.read(0, 9)\ndef f(x): return data", "assert f(0) == b''"),
    "state": ("n = 0\n" + function("global n; n += 1; return n"), "assert [f(0), f(0)] == [1, 2]"),
    "a file of its own": (
        function("open('a', 'w').write('hello'); return open('a').read()"),
        "assert f(0) == 'hello'",
    ),
    "nothing secret around": (
        function("return set(os.environ)", "import os"),
        "assert f(0) <= {'LC_CTYPE', 'LD_LIBRARY_PATH', 'DYLD_LIBRARY_PATH', '__CF_USER_TEXT_ENCODING'}",
    ),
    "echo": (
        function("return x"),
        "values = [None, True, 0, -1, 2**64, -(10**5000), 1.5, float('inf'), 1e-300, 1j, 'é\\ud800',"
        " b'\\0', [], (1, (2,)), {1}, frozenset({2}), {(1, 2): [3], None: {4: 5}}, int, str]\n"
        "for value in values:\n    back = f(value)\n"
        "    assert back == value and type(back) is type(value), value\n"
        "assert f(True) is True and f(0.0) == 0 and str(f(-0.0)) == '-0.0'\n"
        "assert f(float('nan')) != f(float('nan'))",
    ),
    "kinds of dict": (
        function(
            "return Counter(x), defaultdict(int, {1: 2}), OrderedDict(a=1)", "from collections import *"
        ),
        "assert f('aab') == ({'a': 2, 'b': 1}, {1: 2}, {'a': 1})",
    ),
    "named tuple": (
        function("return P(x, 2)", "from collections import namedtuple\nP = namedtuple('P', 'a b')"),
        "assert f(1) == (1, 2)",
    ),
    "iterators": (function("return map(str, x)"), "assert list(f([1, 2])) == ['1', '2'] and f([1]) != ['1']"),
    "generator": (function("yield x; yield 2"), "assert tuple(f(1)) == (1, 2)"),
    "keys": (function("return {x: 1}.keys()"), "assert set(f(3)) == {3}"),
    "keywords": (
        "def f(a, *b, c=1, **d): return [a, b, c, d]",
        "assert f(1, 2, c=3, e=4) == [1, (2,), 3, {'e': 4}]",
    ),
    "exceptions": (
        function("return 1 // x"),
        "try:\n    f(0)\n    assert False\nexcept ZeroDivisionError as e:\n    assert 'zero' in str(e)",
    ),
    "own exceptions": (
        function("raise E('no')", "class E(Exception): pass"),
        "try:\n    f(0)\nexcept RuntimeError as e:\n    assert 'E: no' == str(e)",
    ),
    "objects": (
        "class f:\n    def __init__(self, x): self.x, self.key, self.ask = x, 1, 2\n"
        "    def twice(self): return self.x * 2",
        "a = f(1)\na.next = f([5])\nassert a.next.twice() == [5, 5] and (a.key, a.ask) == (1, 2)\na.x = 7\n"
        "assert a.twice() == 14\nassert f(a).x.x == 7 and not hasattr(a, 'none')",
    ),
    "functions of functions": (function("return lambda y: x + y"), "assert f(1)(2) == 3"),
}
FALLBACK = ()  # macOS, or a kernel that refuses everything
SETTINGS = {"isolated": sandbox.LAYERS, "limits only": FALLBACK}


def refused() -> list[str]:
    """The layers that this machine has not got."""
    return sandbox.judge(squares(RIGHT), 60)[1].split(", ")


@pytest.fixture(scope="module", params=SETTINGS)
def zoo(request) -> dict[str, str]:
    """The verdicts of all of them, side by side: what one does must not touch the others."""
    programs = {**CHEATS, **NO_PROGRAMS, **SOLUTIONS}
    honest = {name: squares(*job) for name, job in HONEST.items()}
    if request.param == "limits only":
        del honest["a file of its own"]  # no file system of its own, so no files
    if {"namespaces", "seccomp"} <= {*sandbox.LAYERS} - {*SETTINGS[request.param]} | {*refused()}:
        del programs["kills all"]  # it would: whoever runs the tests may lose their session
    jobs = {**{name: squares(program) for name, program in programs.items()}, **honest}
    return dict(zip(jobs, quietly(list(jobs.values()), SETTINGS[request.param], 2), strict=True))


@pytest.mark.parametrize("name", CHEATS)
def test_cheats_and_attacks_do_not_pass(zoo, name):
    expected = {"unparsable"} if name == "early return" else {"wrong", "timeout"}
    if name == "kills its parent" and os.geteuid():  # by limits alone it can, if it runs as the same user
        expected = {"wrong", "unjudged"}
    assert zoo.get(name, "wrong") in expected
    if name.startswith(("loop", "regular", "endless output")):
        assert zoo[name] == "timeout"


@pytest.mark.parametrize("name", NO_PROGRAMS)
def test_what_is_no_program_is_unparsable(zoo, name):
    assert zoo[name] == "unparsable"


@pytest.mark.parametrize("name", {**SOLUTIONS, **HONEST})
def test_honest_programs_pass(zoo, name):
    assert zoo.get(name, "right") == "right"


def test_no_test_can_take_the_end_of_the_program_or_of_a_loop_for_success():
    swallow = "try:\n    f(1)\nexcept BaseException:\n    pass"
    ends = ("import os; os._exit(0)", "while True: pass", "return x")
    jobs = [squares(function(body), swallow) for body in ends]
    jobs += [squares(function("raise StopIteration"), "assert list(map(f, [1, 2])) == []")]
    an_object = function("return E()", "class E: pass")
    jobs += [squares(an_object, f"assert {test}") for test in ("f(1)", "not f(1) == 2", "f(1) != 2")]
    values = [forged(f'["value", {value}]') for value in ("None", "'x' * 2**21")]
    # This answer is written past the child's own check of the length.
    jobs += [squares("".join(values), "assert len(f(1)) == 2**21")]
    jobs += [squares(RIGHT, tests) for tests in ("f(1)\nimport sys\nsys.exit(0)", "1 / 0", "g(1)")]
    assert run_tests(jobs, 2) == ["wrong", "timeout", "right"] + ["wrong"] * 8


def test_verdicts_keep_their_order_and_a_stuck_job_costs_its_own_time_only():
    stuck = squares(function("while True: pass"))
    jobs = [stuck, *[squares(RIGHT), squares("def f(x): return 9"), squares("def")] * 4, stuck]
    start = time.monotonic()
    assert run_tests(jobs, 2, workers=2) == ["timeout", *["right", "wrong", "unparsable"] * 4, "timeout"]
    assert 2 < time.monotonic() - start < 10
    assert run_tests([]) == []


def altered(folder: Path, old: str, new: str):
    """The sandbox with one change in its source, or in that of the isolation."""
    sources = {name: Path(module.__file__).read_text() for name, module in MODULES.items()}
    assert sum(source.count(old) for source in sources.values()) == 1
    for name, source in sources.items():
        (folder / name).write_text(source.replace(old, new))
    spec = importlib.util.spec_from_file_location("altered", folder / "altered.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def running(mark: str) -> list[str]:
    """The other processes that have the mark in their environment."""
    found = []
    for pid in set(filter(str.isdigit, os.listdir("/proc"))) - {str(os.getpid())}:
        with contextlib.suppress(OSError):
            if mark.encode() in Path(f"/proc/{pid}/environ").read_bytes():
                found.append(pid)
    return found


def ends(condition) -> bool:
    """Whether it comes true within ten seconds."""
    for _ in range(200):
        if condition():
            return True
        time.sleep(0.05)
    return False


@LINUX
@pytest.mark.parametrize("layers", [FALLBACK, ("namespaces",), ("namespaces", "landlock")], ids=str)
def test_nothing_that_a_program_leaves_behind_survives(layers, tmp_path, monkeypatch):
    """Daemons, and a bomb of them. Only a sandbox without its limit on processes lets them start at all."""
    module = altered(tmp_path, 'limit("NPROC", 0)', "pass")
    monkeypatch.setenv("LD_LIBRARY_PATH", str(tmp_path))
    daemon = function(
        "import os, time\nif not os.fork():\n    os.setsid()\n    if os.fork(): os._exit(0)\n"
        "    time.sleep(99)\nreturn x * x"
    )
    children = function(
        "import os, time\nfor _ in range(20):\n    if not os.fork(): time.sleep(99)\nwhile True: pass"
    )
    assert quietly([squares(daemon), squares(children)], layers, 1, module) == ["right", "timeout"]
    assert running(str(tmp_path)) == []


@LINUX
def test_a_harness_that_hangs_or_is_killed_ends_with_all_it_started(tmp_path, monkeypatch):
    monkeypatch.setenv("LD_LIBRARY_PATH", str(tmp_path))
    monkeypatch.setattr(sandbox, "GRACE", 1)
    deaf = "import signal, time\nsignal.setitimer(signal.ITIMER_REAL, 0)\nf(1)\ntime.sleep(99)"
    dead = "import os, signal\nf(1)\nos.write(3, b'ri')\nos.kill(os.getpid(), signal.SIGKILL)"
    jobs = [squares(RIGHT, tests) for tests in (deaf, "import time\ntime.sleep(99)", dead, SQUARES)]
    with pytest.warns(UserWarning, match="2 of 4 programs could not be judged.*TimeoutExpired"):
        assert run_tests(jobs, 1) == ["unjudged", "timeout", "unjudged", "right"]
    assert ends(lambda: not running(str(tmp_path)))


@LINUX
def test_a_program_outlives_a_killed_trainer_by_its_own_time_only_and_leaves_no_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("LD_LIBRARY_PATH", str(tmp_path))
    jobs = [squares(function("while True: pass"))]
    code = f"from data.checkers.sandbox import *; run_tests([Job(*{[*jobs[0]]!r})], 1)"
    place = tmp_path / "temporary"
    place.mkdir()
    trainer = subprocess.Popen([sys.executable, "-c", code], env={**os.environ, "TMPDIR": str(place)})
    # The harness does not inherit TMPDIR.
    assert ends(lambda: len(running(str(tmp_path))) > 1 + len(running(str(place))))
    trainer.kill()
    trainer.wait()
    assert ends(lambda: not running(str(tmp_path))) and os.listdir(place) == []


def test_a_machine_that_isolates_less_is_named_once(tmp_path):
    module = altered(tmp_path, "SECONDS = 5", "SECONDS = 4")
    module.LAYERS = ("landlock",)
    with pytest.warns(UserWarning, match="WITHOUT .*NAMESPACES, SECCOMP HERE"):
        module.run_tests([squares(RIGHT)])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert module.run_tests([squares(RIGHT)] * 2) == ["right"] * 2


def test_a_machine_where_nothing_runs_is_an_error(tmp_path, monkeypatch):
    broken = altered(tmp_path, "    os.setsid()\n", "    os.chdir('/none')\n")
    with pytest.raises(OSError, match="does not work here: .* as unjudged.*FileNotFoundError"):
        broken.run_tests([squares(RIGHT)])
    broken = altered(tmp_path, "    os.setsid()\n", "    os._exit(0)\n")
    with pytest.raises(OSError, match="does not work here: .* as unjudged. EOFError while"):
        broken.run_tests([squares(RIGHT)])
    for python in ("/bin/false", "/none"):
        monkeypatch.setattr(sys, "executable", python)
        with pytest.raises(OSError, match="does not work here: .* as unjudged"):
            altered(tmp_path, "SECONDS = 5", "SECONDS = 4").run_tests([squares(RIGHT)])


def test_a_machine_that_breaks_later_is_an_error_and_no_verdict(tmp_path):
    """What a program would do to its later siblings if it got at the sandbox's own files."""
    module = altered(tmp_path, "SECONDS = 5", "SECONDS = 4")
    assert quietly([squares(RIGHT)], module.LAYERS, module=module) == ["right"]
    (tmp_path / "isolation.py").write_text("import none")
    with pytest.raises(OSError, match="does not work here: .* as unjudged.*No module named 'none'"):
        module.run_tests([squares(RIGHT)])


@LINUX
def test_no_program_runs_with_fewer_layers_than_at_first(tmp_path):
    module = altered(tmp_path, '        libc("pivot_root", b"/proc", b"/proc")', "        raise OSError")
    late = squares("def f(x):\n    import colorsys\n    return x * x")
    verdict, note = module.judge(late, 3)  # a program still has its library where the root folder fails
    assert (verdict, note.split(", ")[0]) == ("right", "namespaces")
    module.FOUND[module.LAYERS] = []  # as if the check had found all layers
    verdict, note = module.judge(squares(RIGHT), 3, [])
    assert verdict == "unjudged" and "now refuses namespaces" in note
    with pytest.raises(OSError, match="now refuses namespaces"):
        module.run_tests([squares(RIGHT)])


@LINUX
def test_elsewhere_the_limits_are_all_there_is(tmp_path, monkeypatch):
    """macOS, as far as it can be had here: no Linux call is made, and the warning names what is missing."""
    monkeypatch.setattr(sys, "platform", sys.platform)  # afterwards it is again what it was
    module = altered(tmp_path, "import select\n", "import select\nimport sys\nsys.platform = 'darwin'\n")
    with pytest.warns(UserWarning, match="WITHOUT NAMESPACES, LANDLOCK, SECCOMP HERE.*read your files"):
        verdicts = module.run_tests([squares(RIGHT), squares("def f(x): return 9"), squares("def")])
    assert verdicts == ["right", "wrong", "unparsable"]


# What a program could do to take more than its time, and some tests that help it.
PIPES = "import os, time\nfor fd in range(3, 99):\n    try: os.fstat(fd)\n    except OSError: continue\n"
IN_BYTES = PIPES + (
    "    try:\n        os.write(fd, b'\\0\\x0f\\0\\0')\n"
    "        while True: os.write(fd, b'['); time.sleep({})\n    except OSError: pass\ntime.sleep(99)"
)
COLLIDING = "range(0, (2**61 - 1) * 41000, 2**61 - 1)"  # all have the same hash
LONG = "f('x' * 10**6)"
SLOW = {
    "sleeps": [function("import time; time.sleep(99)")],
    "loops": [function("while True: pass")],
    "colliding integers": [function(f"return set({COLLIDING})")],
    "colliding integers, made by the tests": [
        function(f"return list({COLLIDING.replace('41', '30')})"),
        "set(f(3))",
    ],
    "colliding integers, as a message": [forged(f'["value", ["set", list({COLLIDING})]]')],
    "never reads": ["import time; time.sleep(99)", LONG],
    "answers, then never reads": [function("return x"), f"while True: {LONG}"],
    "answers ahead, never reads": [forged('["value", 9]', "time.sleep(99)", 3), f"{LONG}\n{LONG}"],
    "closes its pipes": [function(PIPES + "    os.close(fd)\ntime.sleep(99)")],
    "a byte at a time": [function(IN_BYTES.format(0.1))],
    "a long message in bytes": [function(IN_BYTES.format(0))],
    "a regular expression of the tests": [
        function("return 'a' * 99 + 'b'"),
        "import re\nre.match('(a+)+$', f(3))",
    ],
    "a large power of the tests": [function("return 10**9"), "f(3) ** f(3)"],
    "ignores signals": [
        function(
            "import signal\nfor n in range(1, 32):\n    try: signal.signal(n, signal.SIG_IGN)\n"
            "    except OSError: pass\nwhile True: pass"
        )
    ],
    "fills its memory": [function("a = []\nwhile True: a.append(bytearray(10**5))")],
    "a slow end": [
        function("return x", "class A:\n    def __del__(self):\n        while True: pass\na = A()"),
        "while True: f(1)",
    ],
}


@pytest.mark.parametrize("layers", [sandbox.LAYERS, FALLBACK], ids=["isolated", "limits only"])
def test_no_program_takes_more_than_its_time(layers, monkeypatch):
    """At most half a second more than its limit; and a busy machine needs time to start Python."""
    monkeypatch.setattr(sandbox, "LAYERS", layers)

    def timed(job: list[str]) -> tuple[str, float]:
        start = time.monotonic()
        return sandbox.judge(squares(*job), 1)[0], time.monotonic() - start

    with ThreadPoolExecutor(5) as pool:
        judged = dict(zip(SLOW, pool.map(timed, SLOW.values()), strict=True))
    assert {verdict for verdict, _ in judged.values()} == {"timeout", "wrong"}, judged
    assert max(seconds for _, seconds in judged.values()) < 1 + 0.5 + 1.5, judged


# The task modules.


def test_programs_are_found_in_answers():
    assert program_in("x = 1") == "x = 1"
    assert program_in("[BEGIN]\nx = 1\n[DONE]\nmore [BEGIN] y [DONE]") == "\nx = 1\n"
    assert program_in("x = 1\n[DONE]\n\nYou are ... [BEGIN]\ny = 1\n[DONE]") == "x = 1\n"
    assert program_in("Was:\n```python\nx = 1\n```\nNow:\n```py\nx = 2\n```\nDone.") == "x = 2\n"
    # Cut off; and marks within a line do not count.
    assert program_in("So:\n```\nx = '''\ny```\n'''\n") == "x = '''\ny```\n'''\n"
    assert program_in("[BEGIN]\n```python\nx = 1\n```\n[DONE]") == "x = 1\n"
    assert program_in("    return 1\n") == "    return 1\n"
    start = time.monotonic()
    for text in ("```\n" * 50_000, "[BEGIN]" * 50_000, "`" * 10**6, "\n" * 10**6, "\n \t" * 300_000 + "``"):
        program_in(text)
    assert time.monotonic() - start < 5


def test_tasks_and_splits_of_mbpp(tmp_path):
    path = asset("mbpp.jsonl")
    train, test = mbpp.read(path, "train"), mbpp.read(path, "test")
    assert (len(train), len(test)) == (374, 500) and not {p.prompt for p in train} & {p.prompt for p in test}
    assert load_task("mbpp") is mbpp and load_task("humaneval") is humaneval
    for problem in train + test:
        assert problem.prompt.count("[BEGIN]") == 4 and problem.prompt.count("[DONE]") == 3
        assert problem.given == ""
        for line in json.loads(problem.answer)["tests"].splitlines():
            assert line.strip() in problem.prompt
    balanced = next(p for p in test if "is_tree_balanced" in p.prompt)
    assert json.loads(balanced.answer)["names"] == ["Node", "is_tree_balanced"]
    assert "root1.left = Node(2)\n" in balanced.prompt


def test_own_rows_of_mbpp(tmp_path):
    row = dict(task_id=700, text="Square.", code=RIGHT, test_list=["assert f(3) == 9"])
    file = tmp_path / "own.jsonl"
    file.write_text(json.dumps({**row, "attempt": "def f(x): return 0"}) + "\n" + json.dumps(row))
    given, own = mbpp.read(file, "train")
    assert (given.given, own.given) == ("def f(x): return 0", "") and given.prompt == own.prompt
    texts = (RIGHT, given.given, "No.", f"[BEGIN]\n{RIGHT}[DONE]")
    assert mbpp.verdicts([(own, text) for text in texts]) == ["right", "wrong", "unparsable", "right"]
    file.write_text(json.dumps(row) + "\n" + json.dumps({**row, "attempt": 1}))
    with pytest.raises(ValueError, match="row 2"):
        mbpp.read(file, "train")


def test_the_prompts_examples_pass_their_own_tests_and_requests_say_nothing_of_the_verdict():
    jobs = []
    for _, lines, code in mbpp.EXAMPLES:
        tests = "\n".join(lines)
        jobs.append(Job(code, tests, tuple(mbpp.used_of(code, tests)[0])))
    assert run_tests(jobs) == ["right"] * 3
    assert humaneval.CORRECTION_REQUEST == mbpp.CORRECTION_REQUEST
    assert humaneval.FEEDBACK_REQUEST == mbpp.FEEDBACK_REQUEST
    assert all(line.startswith("# ") for line in mbpp.CORRECTION_REQUEST.splitlines())
    assert "may" in mbpp.CORRECTION_REQUEST


def test_humaneval_is_for_reports_and_its_answers_repeat_or_go_on(tmp_path):
    with pytest.raises(ValueError, match="for evaluation only"):
        humaneval.read("anything", "train")
    prompt = "from typing import List\n\ndef g(x):\n    return x * x\n\n"
    prompt += 'def f(x: int) -> List[int]:\n    """Squares."""\n'
    tests = "def check(candidate):\n    assert candidate(g(3)) == [g(9)]"
    row = dict(task_id="a", prompt=prompt, entry_point="f", test=tests)
    file = tmp_path / "own.jsonl"
    file.write_text(json.dumps({**row, "attempt": "no"}))
    (problem,) = humaneval.read(file, "test")
    assert problem.prompt == prompt and problem.given == "no"
    answers = {
        "    return [g(x)]": "right",
        "\n    y = g(x)\n\n    return [y]\n\nprint(f(": "right",  # what follows the body is not in the answer
        "return [g(x)]": "right",
        "return [\n    g(x)]": "right",
        "```python\n    return [g(x)]\n```": "right",
        prompt + "    return [g(x)]": "right",
        "Here:\n```python\ndef f(x: List) -> int:\n    return [g(x)]\n```": "right",
        "from __future__ import annotations\ndef f(x: No): return [x * x]": "right",
        "def g(x): return 1\ndef f(x): return [1]": "wrong",  # the tests have their own g
        "def check(f): pass\ndef f(x): return 1": "wrong",
        "    return 1": "wrong",
        "    pass": "wrong",
        "": "wrong",
        "I can't.": "unparsable",
    }
    judged = humaneval.verdicts([(problem, text) for text in answers])
    assert dict(zip(answers, judged, strict=True)) == answers


def emptied(code: str) -> str:
    """The program with functions that return None."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        tree = ast.parse(code)
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef) and node.name != "__init__":
            node.body = [ast.Return(ast.Constant(None))]
    return ast.unparse(tree)


def test_all_references_of_humaneval_pass_and_empty_ones_fail():
    path = asset("HumanEval.jsonl.gz")
    problems = humaneval.read(path, "test")
    rows = [row for _, row in read_rows(path, ("canonical_solution",))]
    assert len(rows) == 164
    for problem, row in zip(problems, rows, strict=True):
        code = row["prompt"] + row["canonical_solution"]
        assert humaneval.program(code, problem.prompt, row["entry_point"]) == code
    solved = [(problem, row["canonical_solution"]) for problem, row in zip(problems, rows, strict=True)]
    assert humaneval.verdicts(solved) == ["right"] * 164
    assert set(humaneval.verdicts([(p, "    return None") for p in problems[::3]])) == {"wrong"}


def test_references_of_mbpp_pass_and_empty_ones_fail(monkeypatch):
    """Every seventh row, from all splits: 140 of 974; and every second of these emptied."""
    path = asset("mbpp.jsonl")
    monkeypatch.setitem(mbpp.SPLITS, "all", range(1000))
    rows = [row for _, row in read_rows(path, ("code",))]
    sample = list(zip(mbpp.read(path, "all"), rows, strict=True))[::7]
    assert mbpp.verdicts([(problem, row["code"]) for problem, row in sample]) == ["right"] * 140
    assert "right" not in mbpp.verdicts([(problem, emptied(row["code"])) for problem, row in sample[::2]])
