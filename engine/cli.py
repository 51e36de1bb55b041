"""How a script ends: what went wrong is one line on stderr, not a traceback, if it isn't a fault of ours."""

import sys
from collections.abc import Callable

from engine.processes import leave, lost_a_rank, rank


def run_script(main: Callable[[], int | None]) -> None:
    """Calls `main` and ends the process with the number it returns, None being 0.

    Exit code 1 with one line for ValueError (bad input), OSError (files), FloatingPointError (a run that
    diverged), for Ctrl-C, and where another of several processes has ended. Any other exception is a fault of
    ours and shows its traceback.
    """
    try:
        code = main() or 0
    except (ValueError, OSError, FloatingPointError) as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit("stopped")
    except RuntimeError as error:
        if not lost_a_rank(error):
            raise
        sys.exit(f"error: rank {rank()} stops: another process has ended; go on with --resume=FOLDER")
    leave(code)
    sys.exit(code)
