"""Word problems for schools (GSM8K): JSONL rows with `question` and `answer`, a solution ending in `#### 18`.

The prompts and the checker are those of `data/math.py`.
"""

from data import Problem, read_rows
from data.math import CORRECTION_REQUEST, FEEDBACK_REQUEST, problem, verdicts

__all__ = ["CORRECTION_REQUEST", "FEEDBACK_REQUEST", "read", "verdicts"]


def read(path: str, split: str) -> list[Problem]:
    """The file's problems, whichever the split. ValueError names the first row without a question or ####."""
    return [
        problem(place, row, "question", f"{row['answer']}".partition("####")[2].strip())
        for place, row in read_rows(path, ("question", "answer"))
    ]
