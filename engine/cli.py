"""How a script ends: what went wrong is one line on stderr, not a traceback, if it isn't a fault of ours."""

import os
import subprocess
import sys
from collections.abc import Callable

from engine.options import UsageError
from engine.processes import leave, lost_a_rank, rank, start_ranks

# What torch says when memory can't be had. "An illegal memory access" is a fault of ours.
OUT_OF_MEMORY = ("out of memory", "allocate memory", "enough memory", "alloc_failed", "storage size")


def run_script(main: Callable[[], int | None]) -> None:
    """Calls `main` and ends the process with the number it returns, None being 0.

    Some exceptions become one line: a UsageError (exit code 2), and with exit code 1 ValueError (bad input),
    OSError (files), FloatingPointError (a run that diverged), memory that can't be had, Ctrl-C, and the end
    of another of several processes. If nobody reads the output any more, as with `| head`, the script ends
    without a word (exit code 141). Any other exception is a fault of ours and shows its traceback. Input and
    output are UTF-8.
    """
    for stream in filter(None, (sys.stdin, sys.stdout, sys.stderr)):  # None: it is closed
        stream.reconfigure(encoding="utf-8", errors="replace")
    start_ranks()
    try:
        code = main() or 0
    except UsageError as error:
        code = say(f"error: {error}", 2)
    except BrokenPipeError as error:
        code = 141 if nobody_reads() else say(f"error: {error}", 1)  # 141: SIGPIPE, as a shell reports it
    except (ValueError, OSError, FloatingPointError) as error:
        code = say(f"error: {error}", 1)
    except KeyboardInterrupt:
        code = say("stopped", 1)
    except (MemoryError, RuntimeError) as error:
        text = str(error).lower()
        if isinstance(error, MemoryError) or any(sign in text for sign in OUT_OF_MEMORY):
            code = say(
                "error: not enough memory: lower --micro_batch, --sample_batch, --batch or the sizes",
                1,
            )
        elif lost_a_rank(error):
            code = say(
                f"error: rank {rank()} stops: another process has ended; go on with --resume=FOLDER", 1
            )
        else:
            raise
    leave(code)
    sys.exit(code)


def run_alone(*command) -> int:
    """Runs a Python script with its arguments as one process, and returns its exit code.

    Under torchrun the new process must not join the group of this one.
    """
    env = {key: value for key, value in os.environ.items() if key != "TORCHELASTIC_RUN_ID"}
    return subprocess.run([sys.executable, *command], env=env).returncode


def nobody_reads() -> bool:
    """Whether the program that reads our output has ended. An empty line more tells it."""
    try:
        print(flush=True)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for Python's own flush at the exit
        return True
    return False


def say(line: str, code: int) -> int:
    print(line.replace("\n", " "), file=sys.stderr)
    return code
