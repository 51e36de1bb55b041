"""The assignments, from assignments.json: which functions are to write, and what each check gives.

`own` are points for own tests (A5) and for a mended bug (A6), `written` for answers that a teacher reads.
`hours` are a student's: an estimate, nobody has measured it.
"""

import json
from pathlib import Path
from typing import NamedTuple

import checks


class Assignment(NamedTuple):
    title: str
    holes: dict[str, dict[str, int]]  # file:function -> name of a check -> points
    own: int
    written: int
    hours: float

    @property
    def code(self) -> int:
        return sum(sum(points.values()) for points in self.holes.values())

    @property
    def points(self) -> int:
        return self.code + self.own + self.written


def what(hole: str, check: str) -> str:
    """What a check is about, for the student."""
    return f"{hole.partition(':')[2]}: {getattr(checks, check).__doc__}"


FOUND = json.loads(Path(__file__).with_suffix(".json").read_text(encoding="utf-8"))
ASSIGNMENTS = {name: Assignment(**row) for name, row in FOUND.items()}
