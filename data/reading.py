"""Reading files that other people or a crash may have damaged: what is wrong with one is one line with its
name.
"""

import contextlib
import dataclasses
import gzip
import json
import math
import warnings
from pathlib import Path


@contextlib.contextmanager
def reading(path: str | Path, what: str):
    """Turns any exception inside into a ValueError that names the file. `what` is what the file should be.

    A ValueError that already names the file passes as it is. Memory that runs out and Ctrl-C pass, too.
    Warnings of the libraries are not shown: they would stand around the one line.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except MemoryError:
        raise
    except Exception as error:
        raise ValueError(explained(path, what, error)) from None
    except BaseException as error:
        if type(error).__name__ != "PanicException":  # how a Rust library (tiktoken, safetensors) gives up
            raise
        raise ValueError(explained(path, what, error)) from None


def explained(path: str | Path, what: str, error: BaseException) -> str:
    lines = str(error).splitlines() or [""]
    if isinstance(error, ValueError) and str(path) in lines[0]:
        return lines[0]
    reason = lines[0][:160] if isinstance(error, ValueError) else f"{type(error).__name__}: {lines[0][:100]}"
    return f"{path} is not {what}: {reason}"


def read_json(path: Path) -> dict:
    """The JSON object in a file. ValueError if the file is missing or holds none."""
    if not path.is_file():
        raise ValueError(f"no file {path}: is {path.parent} the folder of a Hugging Face checkpoint?")
    with reading(path, "a JSON object"):
        content = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(content, dict):
            raise ValueError("it holds something else")
    return content


def checked(cls: type, values, path: str | Path, choices: dict[str, tuple] | None = None):
    """The dataclass `cls` made from a dict out of a file. ValueError names a field that can't be right.

    A text must be one of `choices[name]` if those are given. A number must be finite, and above 0 where its
    default is; the fields of our settings have limits of their own instead, which the class checks.
    """
    if not isinstance(values, dict) or not all(isinstance(key, str) for key in values):
        raise ValueError(f"{path}: the {cls.__name__} is no table of settings")
    fields = {field.name: field for field in dataclasses.fields(cls)}
    if unknown := sorted(values.keys() - fields.keys()):
        raise ValueError(f"{path} is of another version of this project: it has the setting {unknown[0]!r}")
    for name, field in fields.items():
        if name not in values:
            if field.default is dataclasses.MISSING:
                raise ValueError(f"{path} has no {name}")
            continue
        value, kind = values[name], field.type
        if kind in (int, float):
            fine = isinstance(value, (int, float) if kind is float else int) and not isinstance(value, bool)
            if not field.metadata:
                positive = field.default is dataclasses.MISSING or field.default > 0
                fine = fine and math.isfinite(value) and (value > 0 or not positive) and value < 2**40
        elif kind in (str, bool):
            fine = isinstance(value, kind) and value in (choices or {}).get(name, (value,))
        else:
            fine = value is None or isinstance(value, (list, tuple))
        if not fine:
            raise ValueError(f"{path}: {name}={str(value)[:40]!r} can't be right")
    with reading(path, f"a file with a {cls.__name__} that can work"):
        return cls(**values)


def open_text(path: str | Path):
    """A text file in UTF-8, with or without a byte order mark, unpacked if its name ends in .gz."""
    return (gzip.open if str(path).endswith(".gz") else open)(path, "rt", encoding="utf-8-sig")
