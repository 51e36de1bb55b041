"""Runs programs that a model wrote against tests. The programs are hostile: reinforcement learning finds every way to look right.

The tests and the program never share a process. `run_tests` starts one harness per job. It reads the program, forks a child that
locks itself in and runs it, and only then reads the tests, which it runs itself: each call of one of the program's functions goes
to the child over a pipe and comes back as plain data, written anew on the tests' side. So what is compared is never the program's
object, the program can neither see the tests nor end them, and the verdict travels on a pipe that the child has not got. Passing
means that the last line of the tests was reached; the death of anybody is not a pass.

The child, on Linux: no privileges, no new processes, threads or sockets (seccomp), namespaces of its own (no network, no other
processes, a small file system in memory), files readable only where Python's library lies (Landlock), and limits on time,
memory, file sizes and open files. Elsewhere only the limits hold. What a machine refuses is named in one warning.

Not seen by the tests: changes that a function makes to its arguments, and whatever of its results is not plain data. Objects of
the program's classes can be made, called and have their attributes read and set, and that is all. Programs have the standard
library and nothing else.
"""

import contextlib
import errno
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

SECONDS = 5  # for a whole job; the slowest reference solutions of MBPP and HumanEval need less than 1 on a slow core
GRACE = 10  # a harness that has not reported so long after its job's time is killed: only a machine out of breath needs it
MEMORY = 1 << 29  # bytes of address space
REPLY = 1 << 20  # bytes of a message from the child: the tests' process has to hold what is made of it
TYPES = {t.__name__: t for t in (list, tuple, set, frozenset, dict, int, float, complex, bool, str, bytes)}
ITEMS = 10_000  # an iterator comes back as its first so many items
LAYERS = ("namespaces", "landlock", "seccomp")  # what the child asks of Linux beyond limits; tests take layers away

# program: the source to judge. tests: trusted source, run with `names` bound to the program's functions and classes of these
# names. prelude: trusted source that stands before both, as what a prompt has already defined (the tests have their own copy).
Job = namedtuple("Job", "program tests names prelude", defaults=("",))


def program_in(text: str) -> str:
    """The program in a model's answer: what stands between [BEGIN] and the first [DONE], in it the last fenced block.

    The last, because a model that corrects itself may quote before it rewrites. A block that the end of the text cuts off counts
    as well. Without marks the whole text is the program; whether it is one, the child's compiler decides.
    """
    text = text.partition("[DONE]")[0].rpartition("[BEGIN]")[2]
    blocks = re.findall(r"^[ \t]*```[^\n]*\n(.*?)(?:^[ \t]*```|\Z)", text, re.DOTALL | re.MULTILINE)
    return blocks[-1] if blocks else text


def run_tests(jobs: list[Job], seconds: float = SECONDS, workers: int | None = None) -> list[str]:
    """Each job's verdict: "right", "wrong", "unparsable" (the program does not compile) or "timeout".

    `workers` jobs (default: one per core) run at a time. RuntimeError if even a right program does not pass on this machine.
    """
    from concurrent.futures import ThreadPoolExecutor  # here, as harnesses need not wait for it

    if not jobs:
        return []
    check_machine(LAYERS)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    pool = ThreadPoolExecutor(workers or cores)
    try:
        return [verdict for verdict, _ in pool.map(lambda job: judge(job, seconds), jobs)]
    finally:
        pool.shutdown(cancel_futures=True)  # Ctrl-C waits for what runs, not for all that is queued


def check_machine(layers: tuple[str, ...], checked: set = set()) -> None:  # noqa: B006 - remembers what it has checked
    """Once per process: runs a right program, and warns if the machine can't isolate it fully."""
    import warnings

    if layers in checked:
        return
    verdict, report = judge(Job("def f(x):\n    return x + 1", "assert f(1) == 2", ("f",)), 60)
    if verdict != "right":
        raise RuntimeError(f"the sandbox does not work here: a right program came out as {verdict}. {report}")
    checked.add(layers)
    if report:
        warnings.warn(
            f"PROGRAMS WRITTEN BY THE MODEL RUN WITHOUT {report.upper()} HERE. A hostile program may reach files, network or "
            "processes as far as your user may: train in a container or virtual machine that holds no secrets.",
            stacklevel=3,
        )


def judge(job: Job, seconds: float) -> tuple[str, str]:
    """One job's verdict, and which layers of isolation were missing (or what the harness said when it broke)."""
    import subprocess
    import tempfile

    here, name = os.path.split(os.path.splitext(os.path.abspath(__file__))[0])
    start = (
        f"import sys; sys.path.append({here!r}); import {name}; sys.path.pop(); {name}.harness()"  # a script would not be cached
    )
    command = [sys.executable, "-I", "-S", "-X", "utf8", "-c", start]
    kept = {k: v for k, v in os.environ.items() if k in ("LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH")}  # the rest may hold secrets
    folder = tempfile.mkdtemp(prefix="program-")
    head = {"program": job.program, "prelude": job.prelude, "folder": folder, "seconds": seconds, "layers": LAYERS}
    content = frame(head) + frame({"tests": job.tests, "names": job.names})
    pipes = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
    try:
        with subprocess.Popen(command, **pipes, cwd=folder, env=kept, start_new_session=True) as harness:
            try:
                out, err = harness.communicate(content, timeout=seconds + GRACE)
            except subprocess.TimeoutExpired:
                return "timeout", ""
            finally:
                harness.kill()
    finally:
        try:
            os.rmdir(folder)
        except OSError:  # only where nothing but limits held the program; folders in folders are too deep for shutil
            subprocess.run(["rm", "-rf", folder], stderr=subprocess.DEVNULL)
    if harness.returncode == -signal.SIGALRM:
        return "timeout", ""
    verdict, _, missing = out.decode().partition(" without ")
    return (verdict, missing) if harness.returncode == 0 and verdict else ("wrong", err.decode(errors="replace")[-1000:])


# Messages: a length and JSON. Plain data is tagged, so that nothing needs eval or pickle on the tests' side.


def frame(message) -> bytes:
    data = json.dumps(message).encode()
    return struct.pack("!I", len(data)) + data


def send(fd: int, message) -> None:
    data = frame(message)
    while data:
        data = data[os.write(fd, data) :]


def receive(fd: int, deadline: float = float("inf"), limit: int = 1 << 31):
    """The next message; not a byte more is read. TimeoutError at the deadline, EOFError or ValueError if none comes."""

    def exactly(size: int) -> bytes:
        data = b""
        while len(data) < size:
            left = None if deadline == float("inf") else max(0.0, deadline - time.monotonic())
            if not select.select([fd], [], [], left)[0]:
                raise TimeoutError
            part = os.read(fd, min(size - len(data), 1 << 16))
            if not part:
                raise EOFError
            data += part
        return data

    (size,) = struct.unpack("!I", exactly(4))
    if size > limit:
        raise ValueError("a message too long")
    return json.loads(exactly(size))


def encode(value, keep):
    """JSON for a value. Subclasses become what they are made from; `keep` gives the key of an object that is no plain data."""
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
    """The inverse of `encode`, of exactly built-in types; `find` gives the object that a key stands for."""
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
    return {"int": lambda h: int(h, 16), "bytes": bytes.fromhex, "complex": lambda c: complex(*c)}[kind](content)


# The harness: the tests' process.


def refuse(*_):
    raise TypeError("an object of the program, where the tests need plain data")


class Handle:
    """Stands in the tests for an object of the program: calls and attributes go there; it can't be compared, or be true."""

    __slots__ = ("__ask", "__key")  # mangled, so that no attribute of the program's object has these names
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
    """Reads a job from stdin, judges it and writes the verdict to stdout; ends the process."""
    report, null = os.dup(1), os.open(os.devnull, os.O_RDWR)
    os.dup2(null, 1)
    head, missing = receive(0), []
    deadline = time.monotonic() + head["seconds"]
    signal.alarm(int(head["seconds"] + GRACE / 2))  # ends the harness itself if it hangs, even if nobody else is left to do so
    limit("AS", MEMORY)
    limit("CORE", 0)
    if sys.platform == "linux":
        libc("prctl", 4, 0)  # PR_SET_DUMPABLE: no other process may look into this one
        libc("prctl", 36, 1)  # PR_SET_CHILD_SUBREAPER: whatever the child leaves behind becomes this one's child
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

    def finish(verdict: str) -> None:
        while True:  # children of killed children turn up here, one generation per round
            for pid in {child, *children()}:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            try:
                os.waitpid(-1, 0)
            except ChildProcessError:
                break
        os.write(report, (verdict + " without " * bool(missing) + ", ".join(missing)).encode())
        os._exit(0)

    def answer(bad: str = "wrong"):
        """The child's next message. If none comes the job ends here: no test can take that for an exception and go on."""
        try:
            kind, *content = receive(from_child, deadline, REPLY)
            if kind == "raised":
                return kind, str(content[0]), str(content[1])
            return kind, decode(content[0], lambda key: Handle(ask, key))
        except TimeoutError:
            finish("timeout")
        except Exception:
            finish(bad)

    def key_of(value):
        return value._Handle__key if type(value) is Handle else refuse()

    def ask(*question):
        question = [encode(q, key_of) for q in question]
        try:
            send(to_child, question)
        except OSError:
            finish("wrong")
        kind, *content = answer()
        if kind == "raised":
            raise exception(*content)
        return content[0]

    kind, content = answer()
    if kind != "ready":
        raise SystemExit(f"the child could not be locked in: {content}")
    missing += content
    answer("unparsable")
    if answer()[0] == "raised":
        finish("wrong")
    job = receive(0)
    space = {"__name__": "tests"}
    try:
        exec(compile(head["prelude"], "<prelude>", "exec"), space)
        space.update({name: Handle(ask, name) for name in job["names"]})
        exec(compile(job["tests"], "<tests>", "exec"), space)
    except BaseException:
        finish("wrong")
    finish("right")


def exception(name: str, message: str) -> Exception:
    """What the tests get to see of the program's exception: its own type if that is built in.

    Not StopIteration, which would end a loop in the tests early, nor what is no Exception, as SystemExit.
    """
    import builtins

    kind = getattr(builtins, name, None)
    plain = isinstance(kind, type) and issubclass(kind, Exception) and not issubclass(kind, (StopIteration, UnicodeError))
    return kind(message) if plain else RuntimeError(f"{name}: {message}")


def children() -> list[int]:
    try:
        with open(f"/proc/self/task/{os.getpid()}/children") as file:
            return [int(pid) for pid in file.read().split()]
    except OSError:
        return []


# The child: the program's process.


def lock_in_and_serve(head: dict, requests: int, replies: int, null: int) -> None:
    for fd in (0, 1, 2):
        os.dup2(null, fd)
    try:
        library = hold_library() if os.geteuid() == 0 else 2
        kept = sorted({2, requests, replies, library})
        for low, high in zip(kept, kept[1:] + [1024], strict=True):
            os.closerange(low + 1, high)
        missing = isolate(head["folder"], head["seconds"], head["layers"], (requests, replies))
    except Exception as error:
        return send(replies, ["broken", ["list", [f"{type(error).__name__}: {error}"]]])
    send(replies, ["ready", ["list", missing]])
    module = type(sys)("solution")  # not "__main__": what a program does when it is run as a script is not asked for
    sys.modules["solution"], space, objects = module, module.__dict__, []
    programs = [compile(head[part], f"<{part}>", "exec", dont_inherit=True) for part in ("prelude", "program")]
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


def limit(name: str, value: int) -> None:
    import resource

    with contextlib.suppress(AttributeError, ValueError, OSError):  # macOS knows no limit on address space
        resource.setrlimit(getattr(resource, f"RLIMIT_{name}"), (value, value))


def isolate(folder: str, seconds: float, layers: list[str], pipes: tuple[int, int]) -> list[str]:
    """Locks this process in, for good; returns what the machine refused. With namespaces it returns in a child."""
    linux, missing = sys.platform == "linux", []
    os.setsid()

    def attempt(layer, step, *args):
        try:
            if linux and layer in layers:
                return step(*args)
        except (OSError, ValueError, AttributeError):
            pass
        missing.append(layer)

    ruleset = attempt("landlock", landlock_ruleset)
    if os.geteuid() == 0:
        try:  # root is not held by limits
            os.chmod(folder, 0o755)
            os.setgroups([])
            os.setgid(65534)
            os.setuid(65534)
        except OSError:
            missing.append("an unprivileged user")
    private = attempt("namespaces", enter_namespaces, folder, pipes)
    os.chdir(folder)
    if linux:
        libc("prctl", 1, signal.SIGKILL)  # PR_SET_PDEATHSIG: dies with its parent. Here, as a change of user clears it
        libc("prctl", 38, 1, 0, 0, 0)  # PR_SET_NO_NEW_PRIVS
        libc("capset", struct.pack("Ii", 0x20080522, 0), bytes(24))  # no capabilities: a namespace of one's own gives all
    limit("CPU", int(seconds) + 2)  # more than its time by the clock, which the harness watches
    limit("FSIZE", 1 << 20 if private else 0)  # without a file system of its own it fills no files at all
    limit("NPROC", 0)
    limit("NOFILE", 64)
    if ruleset:
        if private:
            landlock_allow(*ruleset, folder)
        libc("syscall", 446, ruleset[0], 0)
        os.close(ruleset[0])
    attempt("seccomp", forbid_calls)
    return missing


def libc(name: str, *args) -> int:
    import ctypes

    result = getattr(ctypes.CDLL(None, use_errno=True), name)(*(ctypes.c_long(a) if isinstance(a, int) else a for a in args))
    if result == -1:
        raise OSError(ctypes.get_errno(), f"{name}: {os.strerror(ctypes.get_errno())}")
    return result


def hold_library() -> int:
    """For root only, who gives up its rights: keeps Python's library open, as nobody else may be allowed to walk to it."""
    library = os.path.dirname(os.__file__)
    fd = os.open(library, os.O_RDONLY)
    if os.path.isdir(f"/proc/self/fd/{fd}"):
        packages = [m.__path__ for m in list(sys.modules.values()) if isinstance(getattr(m, "__path__", None), list)]
        for paths in [sys.path, *packages]:
            paths[:] = [p.replace(library, f"/proc/self/fd/{fd}") for p in paths]
    return fd


def enter_namespaces(folder: str, pipes: tuple[int, int]) -> bool:
    """Its own users, processes, network, mounts and shared memory. Returns in a new child, which is process 1 of its world."""
    uid, gid = os.getuid(), os.getgid()
    libc("unshare", 0x10000000 | 0x20000000 | 0x40000000 | 0x00020000 | 0x08000000 | 0x04000000)  # user pid net mount ipc uts
    libc("prctl", 4, 1)  # PR_SET_DUMPABLE: or the next files are root's
    texts = {"self/setgroups": "deny", "self/gid_map": f"{gid} {gid} 1", "self/uid_map": f"{uid} {uid} 1"}
    for name, text in texts.items():
        with open(f"/proc/{name}", "w") as file:
            file.write(text)
    libc("mount", b"none", folder.encode(), b"tmpfs", 2 | 4, b"size=16m,nr_inodes=1000,mode=777")  # nosuid, nodev
    if not any(path.startswith("/proc") for path in sys.path):  # /proc still shows the user's other processes: out of sight
        libc("mount", b"none", b"/proc", b"tmpfs", 1, b"size=4k")  # read only
    libc("prctl", 1, signal.SIGKILL)
    child = os.fork()
    if child:
        for fd in pipes:
            os.close(fd)
        os.waitpid(child, 0)
        os._exit(0)
    return True


def landlock_ruleset() -> tuple[int, int]:
    """Rules by which files are closed to this process but for Python's library; their file descriptor, and all rights on files."""
    version = libc("syscall", 444, None, 0, 1)
    files = (1 << (13, 14, 15, 15, 16)[min(version, 5) - 1]) - 1
    rights = struct.pack("QQQ", files, 3, 3)[: 8 if version < 4 else 16 if version < 6 else 24]  # files, TCP, signals and sockets
    ruleset = libc("syscall", 444, rights, len(rights), 0)
    library = os.path.dirname(os.path.dirname(os.__file__))
    for path in (library, "/lib", "/lib64", "/usr/lib", "/usr/lib64", "/usr/share/zoneinfo"):
        if os.path.isdir(path):
            landlock_allow(ruleset, 1 << 2 | 1 << 3, path)  # read files and folders
    landlock_allow(ruleset, 1 << 1 | 1 << 2, os.devnull)
    return ruleset, files


def landlock_allow(ruleset: int, rights: int, path: str) -> None:
    fd = os.open(path, os.O_PATH)
    libc("syscall", 445, ruleset, 1, struct.pack("=Qi", rights, fd), 0)
    os.close(fd)


def forbid_calls() -> None:
    """A seccomp filter: no process or thread, socket, signal or other means to reach beyond this process."""
    import ctypes

    which = ("x86_64", "aarch64").index(os.uname().machine)
    load, equal, answer = 0x20, 0x15, 0x06  # BPF: load a word of the call, jump if it equals, return
    deny = (answer, 0, 0, 0x00050000 | errno.EPERM)
    filter = [(load, 0, 0, 4), (equal, 1, 0, (0xC000003E, 0xC00000B7)[which]), (answer, 0, 0, 0x80000000)]  # else kill
    filter += [(load, 0, 0, 0), (0x35, 0, 1, 0x40000000), deny]  # x86's second set of numbers
    for number in [numbers[which] for numbers in FORBIDDEN.values() if numbers[which] >= 0]:
        filter += [(equal, 0, 1, number), deny]
    filter += [(equal, 0, 4, (72, 25)[which]), (load, 0, 0, 24), (equal, 1, 0, 8), (equal, 0, 1, 15), deny]  # fcntl: F_SETOWN(_EX)
    filter += [(answer, 0, 0, 0x7FFF0000)]
    code = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *line) for line in filter))
    libc("prctl", 22, 2, struct.pack("HxxxxxxP", len(filter), ctypes.addressof(code)), 0, 0)


FORBIDDEN = {  # system calls: their numbers on x86_64 and aarch64 (-1: there is none)
    "fork": (57, -1), "vfork": (58, -1), "clone": (56, 220), "clone3": (435, 435), "execve": (59, 221), "execveat": (322, 281),
    "kill": (62, 129), "tkill": (200, 130), "tgkill": (234, 131), "rt_sigqueueinfo": (129, 138), "rt_tgsigqueueinfo": (297, 240),
    "pidfd_send_signal": (424, 424), "pidfd_getfd": (438, 438), "ptrace": (101, 117), "process_vm_readv": (310, 270),
    "process_vm_writev": (311, 271), "prlimit64": (302, 261), "setpriority": (141, 140), "ioprio_set": (251, 30),
    "sched_setaffinity": (203, 122), "sched_setscheduler": (144, 119), "sched_setparam": (142, 118), "sched_setattr": (314, 274),
    "socket": (41, 198), "io_uring_setup": (425, 425), "shmget": (29, 194), "msgget": (68, 186), "semget": (64, 190),
    "mq_open": (240, 180), "unshare": (272, 97), "setns": (308, 268), "mount": (165, 40), "prctl": (157, 167),
    "seccomp": (317, 277), "bpf": (321, 280), "perf_event_open": (298, 241), "userfaultfd": (323, 282),
    "add_key": (248, 217), "request_key": (249, 218), "keyctl": (250, 219),
}  # fmt: skip
