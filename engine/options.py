"""Settings as dataclass fields, and a command line made from them.

A setting is a field made by `option`: its default, the reason for it, and the values that can work. The class
that adds a field is its group in `--help`, under the first line of the class's docstring.
"""

import argparse
import dataclasses
import difflib
import functools
import math


def option(default, why: str, low: float = -math.inf, high: float = math.inf, choices: tuple = ()):
    """A setting with its reason, which `--help` prints. `low`, `high` and `choices` tell what can work."""
    return dataclasses.field(default=default, metadata=dict(why=why, low=low, high=high, choices=choices))


def require(condition, message: str) -> None:
    """ValueError with the message, which should name the mend, unless the condition holds."""
    if not condition:
        raise ValueError(message)


def check_values(settings) -> None:
    """ValueError for the first field with a value that its `option` does not allow. None is "not given"."""
    for field in dataclasses.fields(settings):
        value, limits = getattr(settings, field.name), field.metadata
        choices = limits["choices"]
        require(not choices or value in choices, f"{field.name}={value!r}: choose {' or '.join(choices)}")
        if field.type in (int, float) and value is not None:
            low, high = limits["low"], limits["high"]
            require(math.isfinite(value), f"{field.name}={value}: it must be finite")
            require(value >= low, f"{field.name}={value}: it must be {low:g} or more")
            require(value <= high, f"{field.name}={value}: it must be {high:g} or less")


class Parser(argparse.ArgumentParser):
    """argparse, but an error is one line, without the long usage."""

    def error(self, message: str):
        raise ValueError(message)


def parse_options(cls: type, argv: list[str], usage: str, text: str, epilog: str = "", **other: dict) -> dict:
    """What the words of the command line set, by name. What was not given is missing.

    `usage`, `text` and `epilog` are for --help. The fields of the dataclass `cls` are written --key=value; a
    bool may also stand alone for true. `other` are further arguments by name, with what argparse's
    add_argument takes. ValueError, in one line, names the mend of a bad word.
    """
    layout = functools.partial(argparse.RawDescriptionHelpFormatter, max_help_position=30, width=118)
    other_ways = dict(allow_abbrev=False, argument_default=argparse.SUPPRESS, formatter_class=layout)
    parser = Parser(usage=usage, description=text, epilog=epilog, **other_ways)
    for name, settings in other.items():
        parser.add_argument(name, **settings)
    for part in cls.__mro__[:-1]:
        inherited = {name for base in part.__mro__[1:] for name in getattr(base, "__dataclass_fields__", ())}
        fields = [field for field in dataclasses.fields(part) if field.name not in inherited]
        if fields:
            group = parser.add_argument_group(part.__doc__.split("\n")[0])
            for field in fields:
                add_field(group, field)
    given, unknown = parser.parse_known_args(argv)
    if unknown:
        raise ValueError(explain(unknown[0], [field.name for field in dataclasses.fields(cls)]))
    return vars(given)


def add_field(group, field: dataclasses.Field) -> None:
    """Adds a field to a group of argparse."""

    def read(text: str):
        if field.type is bool:
            if text.lower() not in ("true", "false"):
                raise argparse.ArgumentTypeError(f"{text!r}: write true or false")
            return text.lower() == "true"
        if not text.strip():
            raise argparse.ArgumentTypeError("it is empty: give a value, or leave the setting out")
        try:
            return field.type(text)
        except ValueError:
            kind = "a whole number" if field.type is int else "a number"
            raise argparse.ArgumentTypeError(f"{text!r}: it must be {kind}") from None

    default = "" if field.default in (None, "") else f" (default: {field.default})"
    alone = dict(nargs="?", const=True) if field.type is bool else {}  # --json for --json=true
    reason = field.metadata["why"].replace("%", "%%")
    metavar = "|".join(field.metadata["choices"]) or field.type.__name__.upper()
    group.add_argument(f"--{field.name}", type=read, metavar=metavar, help=reason + default, **alone)


def explain(word: str, names: list[str]) -> str:
    """One line on a word that is no setting."""
    key, equals, _ = word.removeprefix("--").partition("=")
    if not word.startswith("--") or not equals:
        return f"{word!r}: settings are written --key=value; --help lists them"
    close = difflib.get_close_matches(key, names, 1)
    return f"no setting {key!r}: " + (f"did you mean {close[0]!r}?" if close else "--help lists them")
