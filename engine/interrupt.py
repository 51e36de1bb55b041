"""Imported first by the scripts: Ctrl-C while the libraries load is one line, too."""

import contextlib
import signal
import sys


@contextlib.contextmanager
def ctrl_c_waits():
    """Ctrl-C takes effect after the block. For the main thread."""
    waiting = []
    before = signal.signal(signal.SIGINT, lambda *args: waiting.append(args))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
        if waiting and callable(before):
            before(*waiting[0])


def hook(kind, error, trace) -> None:
    if issubclass(kind, KeyboardInterrupt):
        print("stopped", file=sys.stderr)
    else:
        sys.__excepthook__(kind, error, trace)


sys.excepthook = hook
