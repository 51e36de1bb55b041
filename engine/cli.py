"""How a script ends: what went wrong is one line on stderr, not a traceback, if it isn't a fault of ours."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable

from engine.processes import leave, lost_a_rank, rank, start_ranks


def run_script(main: Callable[[], int | None]) -> None:
    """Calls `main` and ends the process with the number it returns, None being 0.

    These become one line and exit code 1: ValueError (bad input), OSError (files), FloatingPointError (a run
    that diverged), memory that can't be had, Ctrl-C, and the end of another of several processes. Any other
    exception is a fault of ours and shows its traceback. Input and output are UTF-8.
    """
    for stream in filter(None, (sys.stdin, sys.stdout, sys.stderr)):  # None: it is closed
        stream.reconfigure(encoding="utf-8", errors="replace")
    start_ranks()
    code, line = 1, ""
    try:
        code = main() or 0
    except BrokenPipeError as error:  # of stdout, as with `| head`: Python would try again at the end
        print(f"error: {error}", file=sys.stderr, flush=True)
        os._exit(1)
    except (ValueError, OSError, FloatingPointError) as error:
        line = f"error: {error}"
    except KeyboardInterrupt:
        line = "stopped"
    except (MemoryError, RuntimeError) as error:
        if isinstance(error, MemoryError) or "alloc" in str(error).lower():  # torch has many words for it
            line = "error: not enough memory: lower --micro_batch, --sample_batch, --batch or the sizes"
        elif lost_a_rank(error):
            line = f"error: rank {rank()} stops: another process has ended; go on with --resume=FOLDER"
        else:
            raise
    if line:
        print(line.replace("\n", " "), file=sys.stderr)
    leave(code)
    sys.exit(code)


def run_alone(*command) -> int:
    """Runs a Python script with its arguments as a process of its own, and returns its exit code.

    What ends this process ends that one, too. Under torchrun it must not join the group of this process.
    """
    env = {key: value for key, value in os.environ.items() if key != "TORCHELASTIC_RUN_ID"}
    process = subprocess.Popen([sys.executable, *map(str, command)], env=env)
    signal.signal(signal.SIGTERM, lambda *_: process.terminate())
    try:
        return abs(process.wait())
    finally:
        process.terminate()
