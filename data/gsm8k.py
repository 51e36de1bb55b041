"""Grade-school word problems (GSM8K): JSONL rows with `question` and `answer`, a worked solution that ends in
`#### 18`.

Prompts and checker are those of `data/math.py`.
"""

from data import Problem, read_rows
from data.math import CORRECTION_REQUEST, FEEDBACK_REQUEST, problem, verdicts

__all__ = ["CORRECTION_REQUEST", "FEEDBACK_REQUEST", "read", "verdicts"]


def read(path: str, split: str) -> list[Problem]:
    """The file's problems, whichever the split; ValueError names the row that has no question or nothing to
    read after ####.
    """
    return [
        problem(place, row, "question", f"{row['answer']}".partition("####")[2].strip())
        for place, row in read_rows(path, ("question", "answer"))
    ]
