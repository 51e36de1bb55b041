"""What a locked-in program can reach, with each choice of layers, as root and as an ordinary user."""

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from data.checkers import isolation, sandbox

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform != "linux", reason="the layers are for Linux"),
]
USERS = ("root", "nobody") if os.geteuid() == 0 else ("ordinary user",)
NOBODY = 65534
# Debian's own Python has /usr/lib for its library, which is in the list of what may be read anyway.
OF_THE_SYSTEM = bool([*Path("/usr/lib").glob("python3.1?/os.py")]) and shutil.which(
    "python3", path="/usr/bin"
)
PYTHONS = {"this Python": sys._base_executable, "Debian's": OF_THE_SYSTEM}

# A program. Its f tries each attack on a victim of its own and returns the names of those that got through.
# The word before the colon is the harm. `given` tells where the victims are. All of them belong to the user
# that the program runs as.
ATTACKS = """
import ctypes, fcntl, os, platform, resource, signal, socket, struct

libc = ctypes.CDLL(None, use_errno=True)

def call(number, *args):
    args = [ctypes.c_long(a) if isinstance(a, int) else a for a in args]
    if libc.syscall(ctypes.c_long(number), *args) == -1:
        raise OSError(ctypes.get_errno())

def signal_by_owner(owner, fds):
    owner(fds[0])
    fcntl.fcntl(fds[0], 10, signal.SIGKILL)  # F_SETSIG
    fcntl.fcntl(fds[0], fcntl.F_SETFL, os.O_ASYNC | os.O_NONBLOCK)
    os.write(fds[1], b"x")

def connect(kind, way, address):
    with socket.socket(kind, way) as s:
        s.settimeout(1)
        s.connect(address)
        s.send(b"x")

def attach(memory):
    libc.shmat.restype = ctypes.c_long
    if libc.shmat(memory, None, 0) == -1:
        raise OSError

def atime(path):
    open(path).read()
    if os.stat(path).st_atime == 1:
        raise OSError

def pair(domain=socket.AF_UNIX):
    return [s.detach() for s in socket.socketpair()]

def by_descriptor(action, path):
    for fd in (None, *range(64)):
        try:
            return action("../" * 30 + path, dir_fd=fd)
        except OSError:
            pass
    raise OSError

TCP, UDP = socket.SOCK_STREAM, socket.SOCK_DGRAM
NEW, ADD_KEY = struct.pack("QQQ", 0, 0, 0), {"x86_64": 248, "aarch64": 217}.get(platform.machine(), -1)
TIMER, MONOTONIC = {"x86_64": 222, "aarch64": 107}.get(platform.machine(), -1), 1
XATTR = ctypes.create_string_buffer(b"1")
ATTRIBUTE = struct.pack("QII", ctypes.addressof(XATTR), 1, 0)
# p: a file of the user that the program must not touch. r: one in a folder of the library, which it may read.
ATTACKS = {
    "read: open": lambda p, r: open(p).read(),
    "read: list": lambda p, r: os.listdir(v["folder"]),
    "read: process": lambda p, r: open(f"/proc/{v['pid']}/environ").read(),
    "read: by a descriptor": lambda p, r: by_descriptor(lambda q, dir_fd: os.open(q, 0, dir_fd=dir_fd), p),
    "see: stat": lambda p, r: os.stat(p),
    "see: stat by a descriptor": lambda p, r: by_descriptor(os.stat, p),
    "see: attribute": lambda p, r: os.listxattr(p),
    "see: process": lambda p, r: os.stat(f"/proc/{v['pid']}"),
    "change: chmod": lambda p, r: os.chmod(p, 0o640),
    "change: chmod in the library": lambda p, r: os.chmod(r, 0o640),
    "change: fchmod": lambda p, r: os.fchmod(os.open(r, 0), 0o640),
    "change: fchmodat2": lambda p, r: call(452, -100, p.encode(), 0o640, 0),
    "change: chown": lambda p, r: os.chown(p, os.getuid(), os.getgid()),
    "change: lchown": lambda p, r: os.lchown(p, os.getuid(), os.getgid()),
    "change: fchown": lambda p, r: os.fchown(os.open(r, 0), os.getuid(), os.getgid()),
    "change: utime": lambda p, r: os.utime(p, (9, 9)),
    "change: futimens": lambda p, r: os.utime(os.open(r, 0), (9, 9)),
    "change: setxattr": lambda p, r: os.setxattr(p, b"user.a", b"1"),
    "change: fsetxattr": lambda p, r: os.setxattr(os.open(r, 0), b"user.a", b"1"),
    "change: setxattrat": lambda p, r: call(463, -100, p.encode(), 0, b"user.a", ATTRIBUTE, 16),
    "change: removexattr": lambda p, r: os.removexattr(p, b"user.old"),
    "change: removexattrat": lambda p, r: call(466, -100, p.encode(), 0, b"user.old"),
    "change: file_setattr": lambda p, r: call(469, -100, p.encode(), NEW, 24, 0),
    "change: attributes by ioctl": lambda p, r: fcntl.ioctl(os.open(r, 0), 0x40086602, bytes(8)),
    "change: truncate": lambda p, r: os.truncate(p, 0),
    "change: truncate in the library": lambda p, r: os.truncate(r, 0),
    "change: open mode 3": lambda p, r: os.open(p, 3 | os.O_TRUNC),
    "change: open to read, truncating": lambda p, r: os.open(r, os.O_TRUNC),
    "change: open to write": lambda p, r: os.open(p, os.O_WRONLY),
    "change: new file": lambda p, r: os.open(p + " new", os.O_CREAT | os.O_WRONLY),
    "change: unlink": lambda p, r: os.unlink(p),
    "change: unlink by a descriptor": lambda p, r: by_descriptor(os.unlink, p),
    "change: rename": lambda p, r: os.rename(p, p + " new"),
    "change: link": lambda p, r: os.link(p, p + " new"),
    "change: symlink": lambda p, r: os.symlink(p, p + " new"),
    "change: mkdir": lambda p, r: os.mkdir(p + " new"),
    "change: mkfifo": lambda p, r: os.mkfifo(p + " new"),
    "use: TCP": lambda p, r: connect(socket.AF_INET, TCP, ("127.0.0.1", v["tcp"])),
    "use: UDP": lambda p, r: connect(socket.AF_INET, UDP, ("127.0.0.1", v["udp"])),
    "use: Unix socket": lambda p, r: connect(socket.AF_UNIX, UDP, v["unix"]),
    "use: abstract socket": lambda p, r: connect(socket.AF_UNIX, UDP, "\\0" + v["unix"]),
    "disturb: kill": lambda p, r: os.kill(v["pid"], 0),
    "disturb: priority": lambda p, r: os.setpriority(os.PRIO_PROCESS, v["pid"], v["nice"]),
    "disturb: limit": lambda p, r: resource.prlimit(v["pid"], resource.RLIMIT_CORE, (0, 0)),
    "disturb: affinity": lambda p, r: os.sched_setaffinity(v["pid"], {0}),
    "disturb: F_SETOWN": lambda p, r: signal_by_owner(
        lambda fd: fcntl.fcntl(fd, fcntl.F_SETOWN, v["disturb: F_SETOWN"]), os.pipe()),
    "disturb: FIOSETOWN": lambda p, r: signal_by_owner(
        lambda fd: fcntl.ioctl(fd, 0x8901, struct.pack("i", v["disturb: FIOSETOWN"])), pair()),
    "disturb: timers": lambda p, r: call(TIMER, MONOTONIC, None, bytes(8)),
    "disturb: shared memory": lambda p, r: attach(v["memory"]),
    "leave: time of access": lambda p, r: atime(r),
    "leave: key": lambda p, r: call(ADD_KEY, b"user", b"mark", b"1", 1, -3),
    "leave: lock": lambda p, r: fcntl.flock(os.open(r, 0), fcntl.LOCK_EX),
    "leave: lease": lambda p, r: fcntl.fcntl(os.open(r, 0), fcntl.F_SETLEASE, fcntl.F_RDLCK),
}

def f(given):
    global v
    v, found = given, []
    for name, attack in ATTACKS.items():
        try:
            attack(f"{v['folder']}/{name}", f"{v['library']}/{name}")
            found.append(name)
        except Exception:
            pass
    return found
"""

# A program for two jobs, one after the other. f(given, 0) leaves a mark in each channel. f(given, 1) returns
# the names of the channels where it finds a mark, or can see what others do.
CHANNELS = """
import ctypes, fcntl, mmap, os, platform, resource, socket, struct, tempfile, time

libc = ctypes.CDLL(None, use_errno=True)
KEYCTL = {"x86_64": 250, "aarch64": 219}.get(platform.machine(), -1)

def ok(result):
    return result >= 0

def flags(path, new=None):
    fd = os.open(path, os.O_RDONLY)
    if new is not None:
        fcntl.ioctl(fd, 0x40086602, struct.pack("q", new))
    return struct.unpack("q", fcntl.ioctl(fd, 0x80086601, bytes(8)))[0]

def daemon(name):
    if not os.fork():
        os.setsid()
        s = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        s.bind(name)
        time.sleep(3)
        os._exit(0)

def mincore(path):
    fd = os.open(path, os.O_RDONLY)
    libc.mmap.restype = ctypes.c_void_p
    memory = libc.mmap(None, ctypes.c_long(4096), 1, 1, fd, ctypes.c_long(0))
    return ok(libc.mincore(ctypes.c_void_p(memory), ctypes.c_long(4096), bytes(1)))

def make(path):
    os.close(os.open(path, os.O_CREAT | os.O_WRONLY, 0o666))

def burn():
    for _ in range(99):
        for fd in os.pipe():
            os.close(fd)

def reach(name):
    s = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    s.connect(name)
    return True

def none(p):
    pass

exists, listed, peek = os.path.exists, os.listxattr, os.RWF_NOWAIT
CHANNELS = {
    "a file": (lambda p: make(p + " new"), lambda p: exists(p + " new")),
    "a file of its own": (lambda p: make("mark"), lambda p: exists("mark")),
    "a file in tmp": (lambda p: make("/tmp/" + v["name"]), lambda p: exists("/tmp/" + v["name"])),
    "a file in shm": (lambda p: make("/dev/shm/" + v["name"]), lambda p: exists("/dev/shm/" + v["name"])),
    "bytecode": (lambda p: make(os.__file__ + "c"), lambda p: exists(os.__file__ + "c")),
    "mode": (lambda p: os.chmod(p, 0o604), lambda p: os.stat(p).st_mode & 0o777 == 0o604),
    "time of change": (lambda p: os.utime(p, (9, 9)), lambda p: os.stat(p).st_mtime == 9),
    "time of access": (lambda p: open(p).read(), lambda p: os.stat(p).st_atime > 1),
    "attribute": (lambda p: os.setxattr(p, "user.mark", b"1"), lambda p: "user.mark" in listed(p)),
    "size": (lambda p: os.truncate(p, 0), lambda p: os.stat(p).st_size == 0),
    "name": (lambda p: os.rename(p, p + " new"), lambda p: exists(p + " new")),
    "links": (lambda p: os.link(p, p + " new"), lambda p: os.stat(p).st_nlink > 1),
    "flags": (lambda p: flags(p, 0x40), lambda p: flags(p) & 0x40),
    "shared memory": (lambda p: libc.shmget(v["key"], 9, 0o1666), lambda p: ok(libc.shmget(v["key"], 0, 0))),
    "semaphores": (lambda p: libc.semget(v["key"], 1, 0o1666), lambda p: ok(libc.semget(v["key"], 0, 0))),
    "messages": (lambda p: libc.msgget(v["key"], 0o1666), lambda p: ok(libc.msgget(v["key"], 0))),
    "POSIX messages": (lambda p: libc.mq_open(b"/" + v["name"].encode(), 0o102, 0o666, None),
                       lambda p: ok(libc.mq_open(b"/" + v["name"].encode(), 0))),
    "key": (lambda p: libc.syscall(KEYCTL - 2, b"user", v["name"].encode(), b"1", 1, ctypes.c_long(-3)),
            lambda p: ok(libc.syscall(KEYCTL, 10, ctypes.c_long(-3), b"user", v["name"].encode(), 0))),
    "a process": (lambda p: daemon("\\0" + v["name"]), lambda p: reach("\\0" + v["name"])),
    "priority": (lambda p: os.setpriority(0, v["pid"], v["nice"]),
                 lambda p: os.getpriority(0, v["pid"]) == v["nice"]),
    "limit": (lambda p: resource.prlimit(v["pid"], resource.RLIMIT_CORE, (7, 7)),
              lambda p: resource.prlimit(v["pid"], resource.RLIMIT_CORE) == (7, 7)),
    "affinity": (lambda p: os.sched_setaffinity(v["pid"], {0}),
                 lambda p: os.sched_getaffinity(v["pid"]) == {0}),
    "the kernel's log": (none, lambda p: ok(libc.klogctl(3, ctypes.create_string_buffer(99), 99))),
    "the page cache, read": (none, lambda p: os.preadv(os.open(os.__file__, 0), [bytearray(9)], 0, peek)),
    "the page cache, mapped": (none, lambda p: mincore(p)),
    "news of files": (none, lambda p: ok(libc.inotify_init1(0))),
    "load": (none, lambda p: ok(libc.sysinfo(bytes(999)))),
    "load, by file": (none, lambda p: os.getloadavg()),
    "numbers of pipes": (lambda p: burn(), lambda p: os.pipe()),
    "numbers of memory": (none, lambda p: mmap.mmap(-1, 4096)),
}

def f(given, reads):
    global v
    v, found = given, []
    for name, channel in CHANNELS.items():
        try:
            if channel[reads](f"{v['library']}/{name}") or not reads:
                found.append(name)
        except Exception:
            pass
    return found
"""

# A program whose f tells what it sees of the machine.
VIEW = """
import ctypes, os, socket, stat

def f():
    kinds = []
    for fd in range(1024):
        try:
            kinds.append(stat.filemode(os.fstat(fd).st_mode)[0])
        except OSError:
            pass
    new_user = ctypes.CDLL(None).unshare(0x10000000)
    return {"host": socket.gethostname(), "open": "".join(kinds), "new user": new_user}
"""

PROGRAMS = {"attacks": ATTACKS, "channels": CHANNELS, "view": VIEW}

# Runs in a process of its own, as root or as an ordinary user: all that needs the right user.
JUDGE = """
import ctypes, importlib.util, json, os, shutil, socket, subprocess, sys, time

folder = sys.argv[1]
child = 65534 if os.geteuid() == 0 else os.geteuid()  # the user that the program will be
programs = json.load(open(folder + "/programs.json"))

def load(version):
    sys.path.insert(0, f"{folder}/landlock {version}")
    import sandbox
    del sys.modules["sandbox"], sys.path[0]
    return sandbox

sandboxes = {version: load(version) for version in (1, 2, 5, 6)}

def mine(path):
    os.chown(path, child, -1)
    return path

def sleeper():
    change = {"user": child, "group": child, "extra_groups": []} if os.geteuid() == 0 else {}
    return subprocess.Popen(["sleep", "60"], **change)

def victims(program):
    here, library = folder + "/victims", folder + "/library"
    names = {"attacks": "ATTACKS", "channels": "CHANNELS"}[program]
    space = {}
    exec(programs[program], space)
    for place in (here, library):
        if os.path.exists(place):
            shutil.rmtree(place)
        os.mkdir(place)
        for name in space[names]:
            path = f"{place}/{name}"
            open(path, "w").write("secret")
            try:
                os.setxattr(path, "user.old", b"1")
            except OSError:
                pass
            os.utime(path, (1, 1))
            mine(path)
        mine(place)
    return {"folder": here, "library": library}

def answer(module, layers, program, *args):
    module.LAYERS = layers
    result = folder + "/result"
    call = f"f({', '.join(map(repr, args))})"
    tests = f"import json\\nopen({result!r}, 'w').write(json.dumps({call}))"
    verdict, note = module.judge(module.Job(programs[program], tests, ("f",)), 20)
    assert verdict == "right", (verdict, note, layers)
    return json.load(open(result)), note

def attacks(version, layers):
    v = victims("attacks")
    processes = {name: sleeper() for name in ("pid", "disturb: F_SETOWN", "disturb: FIOSETOWN")}
    v.update({name: process.pid for name, process in processes.items()}, unix=v["folder"] + "/unix")
    libc = ctypes.CDLL(None)
    v |= {"memory": libc.shmget(0, 4096, 0o1666), "nice": os.nice(0) + 1}
    kinds = (socket.AF_INET, socket.AF_UNIX, socket.AF_UNIX)
    udp, unix, abstract = (socket.socket(kind, socket.SOCK_DGRAM) for kind in kinds)
    with socket.create_server(("127.0.0.1", 0)) as tcp, udp, unix, abstract:
        udp.bind(("127.0.0.1", 0))
        unix.bind(v["unix"])
        abstract.bind("\\0" + v["unix"])
        mine(v["unix"])
        v.update(tcp=tcp.getsockname()[1], udp=udp.getsockname()[1])
        found, note = answer(sandboxes[version], layers, "attacks", v)
    libc.shmctl(v["memory"], 0, None)
    time.sleep(0.02)  # a signal takes its time
    found = [name for name in found if name not in processes or processes[name].poll() is not None]
    for process in processes.values():
        process.kill()
        process.wait()
    warning = sandboxes[version].warning(note.split(", ")) if note else ""
    return {"found": found, "note": note, "warning": warning}

def view(layers):
    return answer(sandboxes[6], layers, "view")[0]

def channels(layers):
    v = victims("channels")
    target = sleeper()
    v |= {"pid": target.pid, "key": os.getpid() + 2**20, "name": f"mark-{os.getpid()}"}
    v["nice"] = os.nice(0) + 1
    module = sandboxes[6]
    answer(module, layers, "channels", v, 0)
    found = answer(module, layers, "channels", v, 1)[0]
    target.kill()
    target.wait()
    libc = ctypes.CDLL(None)
    libc.shmctl(libc.shmget(v["key"], 0, 0), 0, None)
    libc.semctl(libc.semget(v["key"], 0, 0), 0, 0)
    libc.msgctl(libc.msgget(v["key"], 0), 0, None)
    libc.mq_unlink(b"/" + v["name"].encode())
    for path in (f"/tmp/{v['name']}", f"/dev/shm/{v['name']}"):
        if os.path.exists(path):
            os.unlink(path)
    return found

# Keys that a program adds then outlast it, as they do where somebody has logged in.
ctypes.CDLL(None).syscall({"x86_64": 250, "aarch64": 219}.get(os.uname().machine, -1), 1, None)
for what, *args in json.load(open(folder + "/tasks.json")):
    print(json.dumps(globals()[what](*args)))
"""


def mount(source: str, target: Path) -> None:
    """Shows a folder in another place, to this process and its children alone."""
    isolation.libc("unshare", 0x00020000)
    isolation.libc("mount", None, b"/", None, 0x4000 | 0x40000, None)
    isolation.libc("mount", source.encode(), str(target).encode(), None, 0x5000, None)


def ask(user: str, tasks: list[list], python: str = sys._base_executable) -> list:
    """The answers to `tasks`, calls of functions of JUDGE, of a process of this user, in this Python."""
    folder = Path(tempfile.mkdtemp(prefix="isolation-"))  # pytest's own folders are closed to other users
    try:
        source = Path(isolation.__file__).read_text()
        assert source.count("/usr/share/zoneinfo") == source.count("None, 0, 1), 6)") == 1
        # The library, too, may be one of the paths that are in the list anyway: /usr/lib for Debian's Python.
        twice = f'{folder}/library", "{folder}/library", "/usr/lib", "/usr/lib/x86_64-linux-gnu'
        source = source.replace("/usr/share/zoneinfo", twice)
        for version in (1, 2, 5, 6):
            place = folder / f"landlock {version}"
            place.mkdir()
            place.chmod(0o777)  # for its bytecode
            shutil.copy(sandbox.__file__, place)
            (place / "isolation.py").write_text(source.replace("None, 0, 1), 6)", f"None, 0, 1), {version})"))
        (folder / "programs.json").write_text(json.dumps(PROGRAMS))
        (folder / "tasks.json").write_text(json.dumps(tasks))
        folder.chmod(0o777)
        command = [python, "-c", JUDGE, str(folder)]
        become = None
        if user == "nobody":
            mounted = folder / "python"
            mounted.mkdir()
            command[0] = command[0].replace(sys.base_prefix, str(mounted))

            def become():  # nobody may have no way to this Python, so it is mounted where there is one
                mount(sys.base_prefix, mounted)
                os.setgroups([])
                os.setgid(NOBODY)
                os.setuid(NOBODY)
                isolation.libc("prctl", 4, 1)

        done = subprocess.run(command, capture_output=True, text=True, preexec_fn=become, cwd="/")
        assert done.returncode == 0, done.stderr
        return [json.loads(line) for line in done.stdout.splitlines()]
    except subprocess.SubprocessError:
        pytest.skip("root may not mount anything here")
    finally:
        shutil.rmtree(folder)


@pytest.mark.skipif(os.geteuid() != 0, reason="root has rights to lose")
@pytest.mark.parametrize("open_to_all", [True, False])
def test_root_in_a_container_has_its_library(open_to_all):
    """Root that may not make namespaces, with Python in a folder that all users, or only root, can enter."""
    program = "import wave\ndef f(x):\n    import colorsys\n    return 1"
    code = f"import sandbox; print(sandbox.judge(sandbox.Job({program!r}, 'assert f(1) == 1', ('f',)), 20))"
    with tempfile.TemporaryDirectory() as folder:
        inner = Path(folder, "python")
        inner.mkdir()
        os.chmod(folder, 0o755 if open_to_all else 0o700)
        python = sys._base_executable.replace(sys.base_prefix, str(inner))

        def become():
            mount(sys.base_prefix, inner)
            isolation.libc("prctl", 24, 21)  # PR_CAPBSET_DROP, CAP_SYS_ADMIN

        place = {"env": {"PYTHONPATH": os.path.dirname(sandbox.__file__)}, "preexec_fn": become}
        try:
            done = subprocess.run([python, "-c", code], capture_output=True, text=True, **place)
        except subprocess.SubprocessError:
            pytest.skip("root may not mount anything here")
    assert done.stdout.startswith("('right', "), done
    assert open_to_all or "namespaces" in done.stdout


def choices() -> list[tuple[int, tuple[str, ...]]]:
    """All sets of layers, each with the versions of Landlock (6: whatever this machine has) that matter."""
    sets = [tuple(layer for i, layer in enumerate(sandbox.LAYERS) if bits >> i & 1) for bits in range(8)]
    return [(v, layers) for layers in sets for v in ((1, 2, 5, 6) if "landlock" in layers else (6,))]


@pytest.fixture(scope="module", params=[f"{user}, {python}" for user in USERS for python in PYTHONS])
def attacked(request) -> dict:
    user, python = request.param.split(", ")
    if not PYTHONS[python]:
        pytest.skip("no Python of the system that is new enough")
    answers = ask(user, [["attacks", version, layers] for version, layers in choices()], PYTHONS[python])
    answers = dict(zip(choices(), answers, strict=True))
    if answers[6, sandbox.LAYERS]["note"]:
        pytest.skip(f"this machine refuses {answers[6, sandbox.LAYERS]['note']}")
    return answers


def test_the_warning_says_exactly_what_is_not_held(attacked):
    """With each set of layers, and with old versions of Landlock."""
    harms = {harm.split()[0] for harm in sandbox.HARM}
    assert {name.split(":")[0] for name in attacked[6, ()]["found"]} == harms  # the attacks are real ones
    for (version, layers), answer in attacked.items():
        assert answer["note"] == ", ".join(layer for layer in sandbox.LAYERS if layer not in layers)
        warned = {harm.split()[0] for harm in sandbox.HARM if harm in answer["warning"]}
        assert {name.split(":")[0] for name in answer["found"]} == warned, (version, layers, answer)


def test_all_layers_hold_all_attacks_with_every_version_of_landlock(attacked):
    for version in (1, 2, 5, 6):
        assert attacked[version, sandbox.LAYERS] == {"found": [], "note": "", "warning": ""}


@pytest.mark.parametrize("user", USERS)
def test_a_program_with_a_root_folder_of_its_own_sees_only_that(user):
    """Open are /dev/null and the two pipes. No rights can be had back in a new namespace of users."""
    sets = [layers for _, layers in choices() if "namespaces" in layers]
    expected = {"host": "sandbox", "open": "cccpp", "new user": -1}
    assert ask(user, [["view", layers] for layers in sets]) == [expected] * len(sets)


@pytest.mark.parametrize("user", USERS)
def test_no_job_can_tell_a_later_one_anything(user):
    open_ones, isolated = ask(user, [["channels", ()], ["channels", sandbox.LAYERS]])
    real = {"a file", "mode", "time of change", "size", "name", "shared memory", "semaphores", "messages"}
    real |= {"a file in tmp", "priority", "limit", "affinity", "news of files", "load", "numbers of pipes"}
    assert real <= set(open_ones)
    assert isolated == []


# The calls that matter most, once more: taking one of them out of the filter must not go unnoticed.
REFUSED = """
fork vfork clone execve kill tkill tgkill rt_sigqueueinfo ptrace process_vm_writev prlimit64 setpriority
unshare socket socketpair shmget shmat shmctl semget semop semctl msgget msgsnd msgrcv msgctl mq_open
mq_unlink chmod fchmod fchmodat chown lchown fchown fchownat utime utimes futimesat utimensat truncate
flock setxattr lsetxattr fsetxattr removexattr lremovexattr fremovexattr inotify_init inotify_init1
fanotify_init add_key request_key keyctl syslog mincore preadv2 io_setup bpf perf_event_open userfaultfd
pipe pipe2 memfd_create
"""


def numbers_of(machine: str) -> dict[str, int]:
    """The numbers of all system calls, from the headers of Linux. Without these the test is skipped."""
    headers = {"x86_64": ("x86_64-linux-gnu/asm/unistd_64.h", "asm/unistd_64.h")}
    for header in headers.get(machine, ["asm-generic/unistd.h"]):
        if (path := Path("/usr/include", header)).is_file():
            pattern = r"#define __NR(?:3264)?_(\w+)\s+(\d+)"
            return {name: int(number) for name, number in re.findall(pattern, path.read_text())}
    pytest.skip(f"no header of Linux for {machine}")


def outcome(lines: list[tuple], architecture: int, number: int, *args: int) -> int:
    """What the filter answers to a system call, by running its BPF program."""
    halves = [half for arg in args for half in (arg & 0xFFFFFFFF, arg >> 32)]
    words = [number, architecture, 0, 0, *halves, *[0] * 12]
    place = 0
    while True:
        operation, yes, no, k = lines[place]
        place += 1
        if operation == 0x20:
            value = words[k // 4]
        elif operation == 0x54:
            value &= k
        elif operation in (0x15, 0x35):
            place += yes if (value == k if operation == 0x15 else value >= k) else no
        else:
            assert operation == 0x06
            return k


@pytest.mark.parametrize("machine", isolation.ARCHITECTURES)
def test_the_filter_names_the_right_calls(machine):
    numbers, lines = numbers_of(machine), isolation.call_filter(machine)
    allow, refuse, unknown = 0x7FFF0000, 0x00050001, 0x00050026

    def answer(number, *args):
        return outcome(lines, isolation.ARCHITECTURES[machine], number, *args)

    for name, known in isolation.FORBIDDEN.items():
        number = known[list(isolation.ARCHITECTURES).index(machine)]
        assert number == numbers.get(name, -1), name
        assert number == -1 or answer(number) == refuse
    for name in REFUSED.split():
        assert name not in numbers or answer(numbers[name]) == refuse, name
    for name in ("read", "write", "close", "openat", "mmap", "getrandom", "lseek", "ftruncate", "futex"):
        assert answer(numbers[name]) == allow
    for number in (424, 435, 452, 463, 466, 469, 999, 0x40000000 + 41):  # clone3, fchmodat2, setxattrat, ...
        assert answer(number) == unknown
    assert outcome(lines, 0x40000003, 1) == 0x80000000  # 32-bit calls
    ioctl, fcntl, mmap = numbers["ioctl"], numbers["fcntl"], numbers["mmap"]
    # FIOSETOWN, SIOCSPGRP, attributes, TIOCSTI
    for command in (0x8901, 0x8902, 0x40086602, 0x401C5820, 0x5412):
        assert answer(ioctl, 3, command) == answer(ioctl, 3, command + (1 << 32)) == refuse
    assert [answer(ioctl, 3, command) for command in (0x5401, 0x5451)] == [allow] * 2
    assert [answer(fcntl, 3, command) for command in (8, 10, 15, 6, 37, 1024, 1026)] == [refuse] * 7
    assert [answer(fcntl, 3, command) for command in (0, 2, 4, 1030)] == [allow] * 4
    mapped = [answer(mmap, 0, 1, 3, flags) for flags in (0x21, 0x22, 0x02, 0x01)]
    assert mapped == [refuse, allow, allow, allow]
    ways = {os.O_RDONLY: allow, os.O_CREAT | os.O_TRUNC | os.O_WRONLY: allow, os.O_TRUNC | os.O_RDWR: allow}
    ways |= {os.O_TRUNC: refuse, 3: refuse, 3 | os.O_TRUNC: refuse}
    for flags, expected in ways.items():
        assert answer(numbers["openat"], 0, 0, flags) == expected
        assert "open" not in numbers or answer(numbers["open"], 0, flags) == expected
