"""Runs programs that a model wrote against tests. The programs are hostile: RL finds every way to look right.

The tests and the program never share a process. `run_tests` starts one process per job, the harness. It reads
the program and forks a child. The child locks itself in (see isolation.py) and runs the program. Only then
does the harness read the tests, and it runs them itself. Each call of one of the program's functions goes to
the child over a pipe, and the result comes back as plain data, which the harness builds anew. So the tests
never compare an object of the program, and the program can neither see the tests nor end them. The verdict
travels on a pipe that the child does not have. A program passes if the last line of the tests was reached. If
any process dies, the program does not pass.

The tests do not see changes that a function makes to its arguments, nor results that are not plain data. The
tests can make and call objects of the program's classes, and read and set their attributes, and that is all.
Programs have the standard library and nothing else.
"""

import contextlib
import json
import os
import re
import select
import signal
import struct
import sys
import time
from collections import abc, deque, namedtuple
from itertools import islice

SECONDS = 5  # for a whole job; only the reference solution of MBPP's task 123 may need more on a busy core
LATE = 0.25  # seconds after its job's time when a harness that hangs in the tests is killed by its timer
GRACE = 10  # seconds for all that is not the job itself: to start Python and to lock the child in
MEMORY = 1 << 29  # bytes of address space
REPLY = 1 << 20  # bytes of one message from the child: the harness has to hold what it makes of it
ITEMS = 10_000  # an iterator comes back as its first so many items
TYPES = {t.__name__: t for t in (list, tuple, set, frozenset, dict, int, float, complex, bool, str, bytes)}
LAYERS = ("namespaces", "landlock", "seccomp")  # tests take layers away, as a machine that refuses them does
HARM = {  # what a hostile program could do, and the groups of layers that each prevent it
    "read your files": ({"namespaces"}, {"landlock"}),
    "change your files": ({"namespaces"}, {"landlock", "seccomp"}),
    "see which files there are": ({"namespaces"},),
    "use the network": ({"namespaces"}, {"seccomp"}),
    "disturb your other processes": ({"namespaces"}, {"seccomp"}),
    "leave marks for other programs": ({"namespaces", "seccomp"},),
}
FOUND = {}  # what `check_machine` has found: for each choice of layers, those that this machine refuses

# program: the source to judge. tests: trusted source. It runs with `names` bound to the program's functions
# and classes of these names. prelude: trusted source that runs before the program and before the tests, each
# with its own copy. It is for what a prompt has already defined.
Job = namedtuple("Job", "program tests names prelude", defaults=("",))


def program_in(text: str) -> str:
    """The program in an answer: the text between [BEGIN] and the first [DONE], or its last fenced block.

    It is the last block because a model that corrects itself may quote the old program first. A block that
    the end of the text cuts off counts as well. Without any marks the whole text is the program. Whether that
    text is a program at all is for the child's compiler to decide.
    """
    text = text.partition("[DONE]")[0].rpartition("[BEGIN]")[2]
    blocks = re.findall(r"^[ \t]*```[^\n]*\n(.*?)(?:^[ \t]*```|\Z)", text, re.DOTALL | re.MULTILINE)
    return blocks[-1] if blocks else text


def run_tests(jobs: list[Job], seconds: float = SECONDS, workers: int | None = None) -> list[str]:
    """Each job's verdict: "right", "wrong", "unparsable", "timeout" or "unjudged".

    "unparsable": the program does not compile. "timeout": the job took longer than `seconds`. "unjudged": the
    sandbox itself broke, so nothing is known about the program. A warning then counts these jobs and shows
    the first error. `workers` jobs run at a time (default: one per core).

    OSError if even a right program does not pass on this machine. The first call checks that, and so
    does every call that has an unjudged job.
    """
    import warnings
    from concurrent.futures import ThreadPoolExecutor  # imported here because the harness does not need it

    if not jobs:
        return []
    if not hasattr(os, "fork"):
        raise OSError("programs are judged on Linux and macOS only: on Windows take WSL")
    lacking = check_machine()
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    pool = ThreadPoolExecutor(workers or cores)
    try:
        judged = list(pool.map(lambda job: judge(job, seconds, lacking), jobs))
    finally:
        pool.shutdown(cancel_futures=True)  # after Ctrl-C, wait for the jobs that run but start no others
    errors = [error for verdict, error in judged if verdict == "unjudged"]
    if errors:
        check_machine(again=True)
        count = f"{len(errors)} of {len(jobs)} programs could not be judged"
        warnings.warn(f"{count}, because the sandbox broke. The first error: {errors[0]}", stacklevel=2)
    return [verdict for verdict, _ in judged]


def check_machine(again: bool = False) -> list[str]:
    """Runs a right program, the first time or `again`; returns the layers that this machine refuses.

    The first time it warns if there are any. OSError if the program does not come out as right.
    """
    import warnings

    if LAYERS in FOUND and not again:
        return FOUND[LAYERS]
    program = "import colorsys\ndef f(x):\n    return x + 1"  # imports must work too
    job = Job(program, "assert f(1) == 2", ("f",))
    verdict, note = judge(job, 60, FOUND.get(LAYERS))
    if verdict != "right":
        raise OSError(f"the sandbox does not work here: a right program came out as {verdict}. {note}")
    if LAYERS not in FOUND:
        FOUND[LAYERS] = note.split(", ") if note else []
        if note:
            warnings.warn(warning(FOUND[LAYERS]), stacklevel=3)
    return FOUND[LAYERS]


def warning(lacking: list[str]) -> str:
    """What the user must know of a machine that refuses these layers."""
    held = set(LAYERS) - set(lacking)
    harm = [what for what, ways in HARM.items() if not any(way <= held for way in ways)]
    could = "The other layers still hold all that we know of"
    if harm:
        could = f"A hostile program could {', '.join(harm)}"
    return (
        f"PROGRAMS WRITTEN BY THE MODEL RUN WITHOUT {', '.join(lacking).upper()} HERE. {could}. "
        "Train in a container or virtual machine that holds no secrets."
    )


def judge(job: Job, seconds: float, lacking: list[str] | None = None) -> tuple[str, str]:
    """One job's verdict and a note: which layers were missing or, if the verdict is "unjudged", what broke.

    `lacking` names the layers that may be missing (None: any). If another one is missing, the program does
    not run, and the verdict is "unjudged".
    """
    import subprocess

    here, name = os.path.split(os.path.splitext(os.path.abspath(__file__))[0])
    # The harness imports its code, as Python keeps the bytecode of modules but not that of scripts.
    load = f"import sys; sys.path.append({here!r}); import isolation, {name}; sys.path.pop()"
    command = [sys.executable, "-I", "-S", "-X", "utf8", "-c", f"{load}; {name}.harness()"]
    # The environment may hold secrets, so the harness gets none of it but this.
    kept = {k: v for k, v in os.environ.items() if k in ("LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH")}
    head = {"program": job.program, "prelude": job.prelude, "seconds": seconds}
    head |= {"layers": LAYERS, "lacking": lacking}
    content = frame(head) + frame({"tests": job.tests, "names": job.names})
    pipes = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
    try:
        with subprocess.Popen(command, **pipes, cwd="/", env=kept, start_new_session=True) as harness:
            try:
                out, err = harness.communicate(content, timeout=seconds + GRACE)
            finally:
                harness.kill()
        if harness.returncode == -signal.SIGALRM:
            return "timeout", ""
        verdict, note = json.loads(out)
        return verdict, note
    except (OSError, subprocess.SubprocessError) as error:
        return "unjudged", f"{type(error).__name__}: {error}"
    except ValueError:  # there is no report
        said = err.decode(errors="replace").strip().rpartition("\n")[2]
        return "unjudged", f"the harness ended with {harness.returncode}. {said}"


# Messages: a length and JSON. Plain data is tagged, so that the tests' side needs neither eval nor pickle.


def frame(message) -> bytes:
    data = json.dumps(message).encode()
    return struct.pack("!I", len(data)) + data


def wait_for(fd: int, deadline: float, write: bool = False) -> None:
    """Returns when the pipe can be read or written without blocking; TimeoutError at the deadline."""
    left = None if deadline == float("inf") else max(0.0, deadline - time.monotonic())
    if select.select([] if write else [fd], [fd] if write else [], [], left) == ([], [], []):
        raise TimeoutError


def send(fd: int, message, deadline: float = float("inf")) -> None:
    """Writes a message. TimeoutError at the deadline, if the other side does not read."""
    data = memoryview(frame(message))
    while data:
        wait_for(fd, deadline, write=True)
        data = data[os.write(fd, data[: select.PIPE_BUF]) :]  # that much never blocks


def receive(fd: int, deadline: float = float("inf"), limit: int = 1 << 31):
    """Reads one message, and not a byte more.

    TimeoutError at the deadline; EOFError if the other side is gone; ValueError if it is too long or not
    JSON.
    """

    def exactly(size: int) -> bytes:
        data = bytearray()
        while len(data) < size:
            wait_for(fd, deadline)
            part = os.read(fd, min(size - len(data), 1 << 16))
            if not part:
                raise EOFError
            data += part
        return bytes(data)

    (size,) = struct.unpack("!I", exactly(4))
    if size > limit:
        raise ValueError("a message too long")
    return json.loads(exactly(size))


def encode(value, keep):
    """JSON for a value. Objects of a subclass become what the class is made from.

    `keep` gives the key of an object that is not plain data.
    """
    if value is None or isinstance(value, (bool, str, float)):
        return value
    if isinstance(value, int):  # long ones in hex: Python is slow, and strict, with many decimal digits
        return int(value) if value.bit_length() < 64 else ["int", hex(value)]
    for kind in (list, tuple, set, frozenset):
        if isinstance(value, kind):
            return [kind.__name__, [encode(v, keep) for v in value]]
    if isinstance(value, dict):
        return ["dict", [[encode(k, keep), encode(v, keep)] for k, v in value.items()]]
    if isinstance(value, (bytes, bytearray)):
        return ["bytes", value.hex()]
    if isinstance(value, complex):
        return ["complex", [value.real, value.imag]]
    if isinstance(value, (abc.Iterator, abc.KeysView, abc.ValuesView, abc.ItemsView, range, deque)):
        return ["iter", [encode(v, keep) for v in islice(value, ITEMS)]]
    if isinstance(value, type) and value in TYPES.values():
        return ["type", value.__name__]
    return ["object", keep(value)]


def decode(data, find):
    """The inverse of `encode`. All that it makes is of built-in types, except what `find` gives for a key."""
    if not isinstance(data, list):
        return data
    kind, content = data
    if kind in ("list", "tuple", "set", "frozenset", "iter"):
        return {**TYPES, "iter": iter}[kind]([decode(d, find) for d in content])
    if kind == "dict":
        return {decode(k, find): decode(v, find) for k, v in content}
    if kind == "object":
        return find(content)
    if kind == "type":
        return TYPES[content]
    if kind == "complex":
        return complex(*content)
    return {"int": lambda digits: int(digits, 16), "bytes": bytes.fromhex}[kind](content)


# The harness: the tests' process.


def refuse(*_):
    raise TypeError("an object of the program, where the tests need plain data")


class Handle:
    """Stands in the tests for an object of the program.

    Calls and attributes go to the child. A handle cannot be compared and is neither true nor false, so an
    object of the program can never look like a right answer.
    """

    __slots__ = ("__ask", "__key")  # mangled, so no attribute of the program's object has these names
    __eq__ = __ne__ = __bool__ = refuse
    __hash__ = object.__hash__

    def __init__(self, ask, key):
        object.__setattr__(self, "_Handle__ask", ask)
        object.__setattr__(self, "_Handle__key", key)

    def __call__(self, *args, **kwargs):
        return self.__ask("call", self, args, kwargs)

    def __getattr__(self, name):
        if name.startswith("__"):
            raise AttributeError(name)
        return self.__ask("get", self, name)

    def __setattr__(self, name, value):
        self.__ask("set", self, name, value)


def harness() -> None:
    """Reads a job from stdin, judges it, writes [verdict, note] to stdout as JSON, and ends the process."""
    from isolation import libc, limit

    report, null = os.dup(1), os.open(os.devnull, os.O_RDWR)
    os.dup2(null, 1)
    head = receive(0)
    limit("AS", MEMORY)
    limit("CORE", 0)
    if sys.platform == "linux":
        libc("prctl", 4, 0)  # PR_SET_DUMPABLE: no other process may look into this one
        libc("prctl", 36, 1)  # PR_SET_CHILD_SUBREAPER: what the child leaves behind becomes its child
    child_in, to_child = os.pipe()
    from_child, child_out = os.pipe()
    child = os.fork()
    if not child:
        try:
            lock_in_and_serve(head, child_in, child_out, null)
        finally:
            os._exit(1)
    os.close(child_in)
    os.close(child_out)

    def finish(verdict: str, note: str) -> None:
        """Kills all that the child started, reports, and ends the process."""
        while True:  # the children of a killed child become this process's own, one generation a round
            for pid in {child, *children()}:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            try:
                os.waitpid(-1, 0)
            except ChildProcessError:
                break
        os.write(report, json.dumps([verdict, note]).encode())
        os._exit(0)

    try:
        kind, note = receive(from_child, time.monotonic() + GRACE / 2, REPLY)
    except Exception as error:
        kind, note = "broken", f"{type(error).__name__} while the child locked itself in"
    if kind != "ready":
        finish("unjudged", note)
    deadline = time.monotonic() + head["seconds"]  # the job's time starts here: the program has not run yet
    signal.setitimer(signal.ITIMER_REAL, head["seconds"] + LATE)  # ends the harness if the tests hang

    def answer(bad: str = "wrong"):
        """The child's next message. If none comes the job ends here, so no test can catch that and go on."""
        try:
            kind, *content = receive(from_child, deadline, REPLY)
            if kind == "raised":
                return kind, str(content[0]), str(content[1])
            return kind, decode(content[0], lambda key: Handle(ask, key))
        except TimeoutError:
            finish("timeout", note)
        except Exception:
            finish(bad, note)

    def key_of(value):
        return value._Handle__key if type(value) is Handle else refuse()

    def ask(*question):
        question = [encode(q, key_of) for q in question]
        try:
            send(to_child, question, deadline)
        except TimeoutError:
            finish("timeout", note)
        except OSError:
            finish("wrong", note)
        kind, *content = answer()
        if kind == "raised":
            raise exception(*content)
        return content[0]

    answer("unparsable")
    if answer()[0] == "raised":
        finish("wrong", note)
    job = receive(0)
    space = {"__name__": "tests"}
    try:
        exec(compile(head["prelude"], "<prelude>", "exec"), space)
        space.update({name: Handle(ask, name) for name in job["names"]})
        exec(compile(job["tests"], "<tests>", "exec"), space)
    except BaseException:
        finish("wrong", note)
    finish("right", note)


def exception(name: str, message: str) -> Exception:
    """What the tests see of an exception that the program raised: its own type if that type is built in.

    StopIteration is left out, as it would end a loop in the tests early. So is whatever is no Exception, as
    SystemExit.
    """
    import builtins

    kind = getattr(builtins, name, None)
    plain = isinstance(kind, type) and issubclass(kind, Exception)
    if plain and not issubclass(kind, (StopIteration, UnicodeError)):
        return kind(message)
    return RuntimeError(f"{name}: {message}")


def children() -> list[int]:
    try:
        with open(f"/proc/self/task/{os.getpid()}/children", encoding="utf-8") as file:
            return [int(pid) for pid in file.read().split()]
    except OSError:
        return []


# The child: the program's process.


def lock_in_and_serve(head: dict, requests: int, replies: int, null: int) -> None:
    """Locks this process in, runs the program, and answers the harness's questions until somebody ends it."""
    from isolation import close_all_but, isolate

    for fd in (0, 1, 2):
        os.dup2(null, fd)
    try:
        close_all_but(requests, replies)
        missing = isolate(head["seconds"], head["layers"], (requests, replies))
        if head["lacking"] is not None and not set(missing) <= set(head["lacking"]):
            raise OSError(f"the machine now refuses {', '.join(missing)}, which it did not do at first")
    except Exception as error:
        return send(replies, ["broken", f"{type(error).__name__}: {error}"])
    send(replies, ["ready", ", ".join(missing)])
    # The module is not called "__main__", as nobody asks what a program does when it is run as a script.
    module = type(sys)("solution")
    sys.modules["solution"], space, objects = module, module.__dict__, []
    parts = ("prelude", "program")
    programs = [compile(head[part], f"<{part}>", "exec", dont_inherit=True) for part in parts]
    send(replies, ["parsed", None])

    def keep(value) -> int:
        objects.append(value)
        return len(objects) - 1

    def find(key):
        return objects[key] if isinstance(key, int) else space[key]

    def obey(action: str, target, *rest):
        if action == "call":
            return target(*rest[0], **rest[1])
        return getattr(target, *rest) if action == "get" else setattr(target, *rest)

    def load():
        for program in programs:
            exec(program, space)

    work = load
    while True:
        try:
            reply = ["value", encode(work(), keep)]
            if len(json.dumps(reply)) > REPLY:
                raise ValueError("a result too long")
        except BaseException as error:  # SystemExit as well
            reply = ["raised", type(error).__name__, str(error)[:1000]]
        send(replies, reply)
        question = receive(requests)
        work = lambda question=question: obey(*(decode(q, find) for q in question))  # noqa: E731
