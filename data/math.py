r"""Competition mathematics (MATH): JSONL rows with `problem`, `solution` and maybe `answer`, as
openai/prm800k's math_splits have them. Without `answer`, as in hendrycks/math, the reference is what the
solution puts in \boxed{}. A row may bring its own first attempt, `attempt`, for turn 2 to repair. Both splits
are read whole: which problems are in a file is the file's business.
"""

from data import Problem, read_rows
from data.checkers.math_answers import answers_equal, extract_answer, read_answer

ENDING = (
    "End with one line of exactly this form, your answer in place of the word between the dollar signs:\n"
    "Final Answer: The final answer is $answer$. I hope it is correct."
)
TASK = f"You are a mathematics expert. Work through the problem below step by step and write the solution alone. {ENDING}\n\n"
CORRECTION_REQUEST = (
    "The solution above might have an error in it, for instance because the problem was misread. If there is one, correct it. "
    f"Then write the whole solution anew, and nothing besides. {ENDING}"
)

FEEDBACK_REQUEST = (
    "Go through the solution above step by step: is every step right, and does it answer the question? Say what is wrong and "
    "where, or that it is right. Do not write a new solution yet."
)


def read(path: str, split: str) -> list[Problem]:
    """The file's problems; ValueError names the row that has no problem text or no answer that the checker
    can read.
    """
    return [
        problem(place, row, "problem", row["answer"] if "answer" in row else extract_answer(f"{row['solution']}"))
        for place, row in read_rows(path, ("problem", "solution"))
    ]


def problem(place: str, row: dict, question: str, answer: str | None) -> Problem:
    text, attempt = row[question], row.get("attempt", "")
    if not isinstance(text, str) or not text.strip():
        raise ValueError(f"{place}: field {question!r} is not a text")
    if not isinstance(attempt, str):
        raise ValueError(f"{place}: field 'attempt' is not a text")
    if not isinstance(answer, str) or read_answer(answer) is None:
        raise ValueError(f"{place}: no reference answer that can be read: {str(answer)[:80]!r}")
    return Problem(f"{TASK}{text.strip()}", answer, attempt)


def verdicts(pairs: list[tuple[Problem, str]]) -> list[str]:
    """Right, wrong, or unparsable: the text states no answer, or one that can't be read."""
    return [verdict(problem, extract_answer(text)) for problem, text in pairs]


def verdict(problem: Problem, answer: str | None) -> str:
    if read_answer(answer) is None:
        return "unparsable"
    return "right" if answers_equal(answer, problem.answer) else "wrong"
