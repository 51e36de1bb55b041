"""Imported first by the scripts: Ctrl-C while the libraries load is one line, too."""

import sys


def hook(kind, error, trace) -> None:
    if issubclass(kind, KeyboardInterrupt):
        print("stopped", file=sys.stderr)
    else:
        sys.__excepthook__(kind, error, trace)


sys.excepthook = hook
