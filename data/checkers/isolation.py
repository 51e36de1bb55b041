"""Locks a process in, for good, before it runs a hostile program.

On Linux there are three layers:
- namespaces: its own processes, network, shared memory, host name and root folder. That folder holds Python's
  library, read-only, and /program, a small folder in memory where the program may write. The machine's own
  root folder is unmounted.
- Landlock: it can open no other file, even if the namespaces are missing.
- seccomp: it can make no process, thread or socket, send no signal, and change no file's mode, owner, times
  or attributes. System calls newer than Linux 5.0 do not exist for it.
Limits on time, memory, file sizes, open files and timers come on top. Elsewhere (macOS) the limits are all
there is. `HARM` in sandbox.py says what a program could do without each of the layers.

Some things cannot be hidden. A program sees how busy the machine is, its kernel, the folder of this project,
and how fast it can read a library file: one that another program has read lately comes from memory. Without
namespaces, a program can also `stat` any path, and the time when it last read a library file stays for later
programs to see.

The harness imports this module by its bare name, as it has no packages.
"""

import contextlib
import errno
import os
import signal
import stat
import struct
import sys


def isolate(seconds: float, layers: list[str], pipes: tuple[int, int]) -> list[str]:
    """Locks this process in; returns which of the `layers` ("namespaces", "landlock", "seccomp") are missing.

    `seconds` is the job's time. If there are namespaces this returns in a new child of the calling process.
    The process in between closes the two `pipes` and waits.
    """
    os.setsid()
    os.umask(0o022)

    def attempt(layer, step, *args):
        with contextlib.suppress(OSError, ValueError, AttributeError):
            return step(*args) if sys.platform == "linux" and layer in layers else None

    ruleset = attempt("landlock", landlock_ruleset)
    private = attempt("namespaces", enter_namespaces, pipes)
    missing, kept = [], list(pipes)
    if os.geteuid() == 0:  # limits do not hold root
        library = os.open(os.path.dirname(os.__file__), os.O_RDONLY)
        try:
            os.setgroups([])
            os.setgid(65534)
            os.setuid(65534)
        except OSError:
            missing.append("an unprivileged user")
        # In a container root may lack the right to make namespaces, while any user may make them for itself.
        private = private or attempt("namespaces", enter_namespaces, pipes)
        if not private:
            import_from(library)
            kept.append(library)
    if sys.platform == "linux":
        libc("prctl", 1, signal.SIGKILL)  # PR_SET_PDEATHSIG: dies with its parent. A change of user clears it
        libc("prctl", 38, 1, 0, 0, 0)  # PR_SET_NO_NEW_PRIVS
        libc("capset", struct.pack("Ii", 0x20080522, 0), bytes(24))  # no capabilities
    limit("CPU", int(seconds) + 2)  # more than its time by the clock, which the harness watches
    limit("FSIZE", 1 << 20 if private else 0)  # without a folder of its own a program fills no files at all
    limit("NOFILE", 64)
    limit("NPROC", 0)
    limit("SIGPENDING", 0)  # timers, which count for the whole user
    if ruleset:
        if private:
            landlock_allow(*ruleset, "/program")
        libc("syscall", 446, ruleset[0], 0)
    close_all_but(*kept)  # a folder that is still open would be a way out of the root folder
    filtered = attempt("seccomp", forbid_calls, os.uname().machine)
    done = {"namespaces": private, "landlock": ruleset, "seccomp": filtered}
    return missing + [layer for layer in done if not done[layer]]


def limit(name: str, value: int) -> None:
    import resource

    with contextlib.suppress(AttributeError, ValueError, OSError):  # macOS knows no limit on address space
        resource.setrlimit(getattr(resource, f"RLIMIT_{name}"), (value, value))


def close_all_but(*kept: int) -> None:
    """Closes all file descriptors but these and 0, 1 and 2."""
    kept = sorted({2, *kept})
    for low, high in zip(kept, [*kept[1:], 1024], strict=True):
        os.closerange(low + 1, high)


def libc(name: str, *args) -> int:
    """Calls a function of the C library; OSError if it returns -1."""
    import ctypes

    args = [ctypes.c_long(a) if isinstance(a, int) else a for a in args]
    result = getattr(ctypes.CDLL(None, use_errno=True), name)(*args)
    if result == -1:
        raise OSError(ctypes.get_errno(), f"{name}: {os.strerror(ctypes.get_errno())}")
    return result


def library_paths() -> list[str]:
    """The only files and folders of the machine that a program may read, each of them once."""
    library = os.path.dirname(os.path.dirname(os.__file__))  # may be one of the next ones
    others = ("/lib", "/lib64", "/usr/lib", "/usr/lib64", "/usr/share/zoneinfo", os.devnull)
    return sorted({library, *filter(os.path.exists, others)})


def import_from(fd: int) -> None:
    """Imports from Python's library through this descriptor, which root opened before it gave up its rights.

    The library may lie in a folder that only root can enter. Without namespaces there is no other way to it.
    """
    library = os.path.dirname(os.__file__)
    if os.path.isdir(f"/proc/self/fd/{fd}"):
        modules = [getattr(module, "__path__", None) for module in list(sys.modules.values())]
        for paths in [sys.path, *(path for path in modules if isinstance(path, list))]:
            paths[:] = [path.replace(library, f"/proc/self/fd/{fd}") for path in paths]


def enter_namespaces(pipes: tuple[int, int]) -> bool:
    """Its own processes, network, shared memory and root folder. Returns in a new child, the first of them.

    An ordinary user needs a namespace of users as well, for the right to make the others.
    """
    uid, gid = os.geteuid(), os.getegid()
    kinds = 0x20000000 | 0x40000000 | 0x00020000 | 0x08000000 | 0x04000000  # pid, net, mount, ipc, uts
    libc("unshare", kinds | (0x10000000 if uid else 0))
    if uid:
        libc("prctl", 4, 1)  # PR_SET_DUMPABLE: otherwise the next files belong to root
        texts = {"setgroups": "deny", "gid_map": f"{gid} {gid} 1", "uid_map": f"{uid} {uid} 1"}
        for name, text in texts.items():
            with open(f"/proc/self/{name}", "w", encoding="utf-8") as file:
                file.write(text)
    libc("prctl", 1, signal.SIGKILL)
    child = os.fork()
    if child:
        for fd in pipes:
            os.close(fd)
        os.waitpid(child, 0)
        os._exit(0)
    libc("sethostname", b"sandbox", 7)
    enter_root_folder()
    return True


def enter_root_folder() -> None:
    """Makes and enters a root folder in memory: Python's library, read-only, and /program to write to.

    It is built over /proc, which only this namespace notices. Then it becomes the root, and the old root is
    unmounted. The program gets a folder inside it: where `chroot` holds, Linux makes no further namespaces of
    users, in which the program would have root's rights again. OSError, and /proc as it was, if a step fails.
    """
    # Asked for first, as some users have no way to the library.
    folders = {path: stat.S_ISDIR(os.stat(path).st_mode) for path in library_paths()}
    libc("mount", None, b"/", None, 0x4000 | 0x40000, None)  # MS_REC, MS_PRIVATE: the next ones stay in here
    libc("mount", b"none", b"/proc", b"tmpfs", 2 | 4, b"size=1m,mode=755")  # MS_NOSUID, MS_NODEV
    try:
        os.makedirs("/proc/inside/program")
        for path, is_folder in folders.items():
            show_in("/proc/inside", path, is_folder)
        attributes = struct.pack("QQQQ", 1, 0, 0, 0)  # MOUNT_ATTR_RDONLY: not even times of access change
        libc("syscall", 442, -100, b"/proc", 0x8000, attributes, len(attributes))  # mount_setattr, recursive
        libc("mount", b"none", b"/proc/inside/program", b"tmpfs", 2 | 4, b"size=16m,nr_inodes=1000,mode=777")
        libc("pivot_root", b"/proc", b"/proc")  # the old root now lies over the new one
    except OSError:
        libc("umount2", b"/proc", 2)  # MNT_DETACH
        raise
    libc("umount2", b"/", 2)
    os.chroot("/inside")
    os.chdir("/program")
    null = os.open(os.devnull, os.O_RDWR)
    for fd in (0, 1, 2):  # until now /dev/null of the old root
        os.dup2(null, fd)


def show_in(root: str, path: str, is_folder: bool) -> None:
    """Mounts a file or folder in the new root folder, under the same path.

    The mount is by the path and not by a descriptor: one left open would be a way back to the old root.
    """
    target = root + path
    os.makedirs(target if is_folder else os.path.dirname(target), exist_ok=True)
    if not is_folder:
        os.close(os.open(target, os.O_CREAT | os.O_WRONLY))
    libc("mount", os.fsencode(path), os.fsencode(target), None, 0x1000 | 0x4000, None)  # MS_BIND, MS_REC


def landlock_ruleset() -> tuple[int, int]:
    """Rules that close all files but Python's library: their file descriptor, and the bits of all rights."""
    version = min(libc("syscall", 444, None, 0, 1), 6)
    files = (1 << (13, 14, 15, 15, 16, 16)[version - 1]) - 1
    # From version 4 on there are rights on TCP, and from version 6 on also on signals and abstract sockets.
    rights = struct.pack("QQQ", files, 3, 3)[: 8 if version < 4 else 16 if version < 6 else 24]
    ruleset = libc("syscall", 444, rights, len(rights), 0)
    for path in library_paths():
        landlock_allow(ruleset, 1 << 2 | 1 << 3 if os.path.isdir(path) else 1 << 1 | 1 << 2, path)
    return ruleset, files


def landlock_allow(ruleset: int, rights: int, path: str) -> None:
    """Rights: bit 1 to write a file, bit 2 to read a file, bit 3 to list a folder."""
    fd = os.open(path, os.O_PATH)
    libc("syscall", 445, ruleset, 1, struct.pack("=Qi", rights, fd), 0)
    os.close(fd)


def forbid_calls(machine: str) -> bool:
    """Puts the filter of `call_filter` on this process; ValueError on a machine that it does not know."""
    import ctypes

    lines = call_filter(machine)
    code = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *line) for line in lines))
    libc("prctl", 22, 2, struct.pack("HxxxxxxP", len(lines), ctypes.addressof(code)), 0, 0)
    return True


def call_filter(machine: str) -> list[tuple[int, int, int, int]]:
    """A seccomp filter, for "x86_64" or "aarch64": no means to reach beyond this process.

    It is a BPF program, whose lines are (operation, jump if true, jump if false, operand). Nobody adds calls
    to Linux 5.0 any more, so it is enough to name the dangerous ones. Later calls have the same numbers on
    both machines, from 424 on. For a program they do not exist, and the C library does without them, as it
    does on an old kernel.
    """
    which = list(ARCHITECTURES).index(machine)
    load, equal, at_least, mask, answer = 0x20, 0x15, 0x35, 0x54, 0x06
    allow, deny = (answer, 0, 0, 0x7FFF0000), (answer, 0, 0, 0x00050000 | errno.EPERM)
    kill, unknown = (answer, 0, 0, 0x80000000), (answer, 0, 0, 0x00050000 | errno.ENOSYS)
    lines = [(load, 0, 0, 4), (equal, 1, 0, ARCHITECTURES[machine]), kill]  # such as 32-bit calls
    lines += [(load, 0, 0, 0), (at_least, 0, 1, 424), unknown]
    for number in [numbers[which] for numbers in FORBIDDEN.values() if numbers[which] >= 0]:
        lines += [(equal, 0, 1, number), deny]
    for numbers, argument, bits, values, listed, others in ARGUMENTS:
        if numbers[which] < 0:
            continue
        block = [(load, 0, 0, 16 + 8 * argument), (mask, 0, 0, bits)]
        for value in values:
            block += [(equal, 0, 1, value), allow if listed else deny]
        block += [allow if others else deny]
        lines += [(equal, 0, len(block), numbers[which]), *block]
    return [*lines, allow]


ARCHITECTURES = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
# System calls where an argument decides: their numbers on x86_64 and aarch64, which argument, which of its
# bits count, some values, and whether these values are allowed, and all others.
TRUNCATES = (0x200, 3, 0x203)  # O_TRUNC without write access, or mode 3: Landlock 1 and 2 miss them
ARGUMENTS = (
    ((2, -1), 1, 0x203, TRUNCATES, False, True),  # open
    ((257, 56), 2, 0x203, TRUNCATES, False, True),  # openat
    ((9, 222), 3, 0x21, (0x21,), False, True),  # mmap: no shared new memory, see "pipe" below
    # fcntl: copies a descriptor, and reads or sets its flags. Not: owners of signals, locks, leases
    ((72, 25), 1, 0xFFFFFFFF, (0, 1, 2, 3, 4, 1030), True, False),
    # ioctl: TCGETS, TIOCGWINSZ, FIONREAD, FIONBIO, FIONCLEX, FIOCLEX. Not: owners, attributes of files
    ((16, 29), 1, 0xFFFFFFFF, (0x5401, 0x5413, 0x541B, 0x5421, 0x5450, 0x5451), True, False),
)
FORBIDDEN = {  # system calls: their numbers on x86_64 and aarch64 (-1: there is none)
    # processes, threads and signals
    "fork": (57, -1), "vfork": (58, -1), "clone": (56, 220), "execve": (59, 221), "execveat": (322, 281),
    "kill": (62, 129), "tkill": (200, 130), "tgkill": (234, 131), "rt_sigqueueinfo": (129, 138),
    "rt_tgsigqueueinfo": (297, 240), "ptrace": (101, 117), "process_vm_readv": (310, 270),
    "process_vm_writev": (311, 271), "prlimit64": (302, 261), "setpriority": (141, 140),
    "ioprio_set": (251, 30), "sched_setaffinity": (203, 122), "sched_setscheduler": (144, 119),
    "sched_setparam": (142, 118), "sched_setattr": (314, 274), "migrate_pages": (256, 238),
    "move_pages": (279, 239), "unshare": (272, 97), "setns": (308, 268), "mount": (165, 40),
    "prctl": (157, 167), "seccomp": (317, 277),
    # sockets, and memory and messages that processes share
    "socket": (41, 198), "socketpair": (53, 199), "shmget": (29, 194), "shmctl": (31, 195),
    "shmat": (30, 196), "semget": (64, 190), "semctl": (66, 191), "semtimedop": (220, 192),
    "semop": (65, 193), "msgget": (68, 186), "msgctl": (71, 187), "msgrcv": (70, 188), "msgsnd": (69, 189),
    "mq_open": (240, 180), "mq_unlink": (241, 181),
    # modes, owners, times, attributes, sizes and locks of files, and news of their changes
    "chmod": (90, -1), "fchmod": (91, 52), "fchmodat": (268, 53), "chown": (92, -1), "lchown": (94, -1),
    "fchown": (93, 55), "fchownat": (260, 54), "utime": (132, -1), "utimes": (235, -1),
    "futimesat": (261, -1), "utimensat": (280, 88), "setxattr": (188, 5), "lsetxattr": (189, 6),
    "fsetxattr": (190, 7), "removexattr": (197, 14), "lremovexattr": (198, 15), "fremovexattr": (199, 16),
    "truncate": (76, 45), "flock": (73, 32), "inotify_init": (253, -1), "inotify_init1": (294, 26),
    "fanotify_init": (300, 262),
    # the kernel's own state: keys, its log, what is in memory; and its more dangerous machinery
    "add_key": (248, 217), "request_key": (249, 218), "keyctl": (250, 219), "syslog": (103, 116),
    "sysinfo": (99, 179), "mincore": (27, 232), "preadv2": (327, 286), "io_setup": (206, 0),
    "bpf": (321, 280), "perf_event_open": (298, 241), "userfaultfd": (323, 282),
    # pipes and memory that take a number from a counter of the whole machine: a later program could read it
    "pipe": (22, -1), "pipe2": (293, 59), "memfd_create": (319, 279),
}  # fmt: skip
