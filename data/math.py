r"""Competition mathematics (MATH): JSONL rows with `problem`, `solution` and perhaps `answer`.

The files of openai/prm800k (math_splits) have an `answer`. Those of hendrycks/math have none; there the
reference is what the solution puts in \boxed{}. A row may also have an `attempt`: a first attempt that turn 2
is to repair. All rows of a file are read, whichever the split.
"""

from data import Problem, read_rows
from data.checkers.math_answers import answers_equal, extract_answer, read_answer

ENDING = (
    "End with one line of exactly this form, your answer in place of the word between the dollar signs:\n"
    "Final Answer: The final answer is $answer$. I hope it is correct."
)
TASK = (
    "You are a mathematics expert. Work through the problem below step by step and write the solution alone. "
    f"{ENDING}\n\n"
)
CORRECTION_REQUEST = (
    "The solution above might have an error in it, for instance because the problem was misread. If there is "
    f"one, correct it. Then write the whole solution anew, and nothing besides. {ENDING}"
)

FEEDBACK_REQUEST = (
    "Go through the solution above step by step: is every step right, and does it answer the question? Say "
    "what is wrong and where, or that it is right. Do not write a new solution yet."
)


def read(path: str, split: str) -> list[Problem]:
    """The file's problems. ValueError names the first row without a problem or an answer that can be read."""
    problems = []
    for place, row in read_rows(path, ("problem", "solution")):
        answer = row["answer"] if "answer" in row else extract_answer(f"{row['solution']}")
        problems.append(problem(place, row, "problem", answer))
    return problems


def problem(place: str, row: dict, question: str, answer: str | None) -> Problem:
    """The problem in a row; its text is the field `question`. ValueError names the place of a bad row."""
    text, attempt = row[question], row.get("attempt", "")
    if not isinstance(text, str) or not text.strip():
        raise ValueError(f"{place}: field {question!r} is not a text")
    if not isinstance(attempt, str):
        raise ValueError(f"{place}: field 'attempt' is not a text")
    if not isinstance(answer, str) or read_answer(answer) is None:
        raise ValueError(f"{place}: no reference answer that can be read: {str(answer)[:80]!r}")
    return Problem(f"{TASK}{text.strip()}", answer, attempt)


def verdicts(pairs: list[tuple[Problem, str]]) -> list[str]:
    """Verdicts: "right", "wrong", or "unparsable" for a text without an answer that can be read."""
    return [verdict(problem, extract_answer(text)) for problem, text in pairs]


def verdict(problem: Problem, answer: str | None) -> str:
    equal = answers_equal(answer, problem.answer)
    return "unparsable" if equal is None else "right" if equal else "wrong"
