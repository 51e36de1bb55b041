"""MBPP: short Python functions, judged by three tests each. Austin et al. 2021, arXiv 2108.07732.

`mbpp.jsonl` from https://github.com/google-research/google-research/tree/master/mbpp (CC BY 4.0). Its README splits by task_id:
1 to 10 are for prompts, 11 to 510 the test split, 511 to 600 validation, 601 to 974 training.

The first attempt is 3-shot, as in the SCoRe paper, but the three examples are ours: they need no file, so that rows of one's own
get the same prompt. The tests, and the code that sets them up, are shown with the task: names and signatures are found nowhere
else. A row may bring an "attempt", which turn 2 is then to repair.
"""

import ast
import json
import warnings

from data import Problem, read_rows
from data.checkers.sandbox import Job, program_in, run_tests

SPLITS = {"train": range(601, 975), "test": range(11, 511)}
CORRECTION_REQUEST = (
    "# The program above may have an error. Look for it, correct it if there is one, and write the program again.\n"
    "# Output the final program only."
)
FEEDBACK_REQUEST = (
    "# Review the program above against the task and each of the tests: say what is wrong and where, or that it is right.\n"
    "# Do not write a new program yet."
)
EXAMPLES = (
    (
        "Write a function that returns the longest word of a sentence, the first of them if there are several.",
        [
            "assert longest_word('a bird sang') == 'bird'",
            "assert longest_word('') == ''",
            "assert longest_word('so it is') == 'so'",
        ],
        "def longest_word(sentence):\n    return max(sentence.split(), key=len, default='')",
    ),
    (
        "Write a function to count how often each digit occurs in a whole number.",
        ["assert count_digits(7) == {7: 1}", "assert count_digits(1010) == {1: 2, 0: 2}", "assert count_digits(-33) == {3: 2}"],
        "from collections import Counter\n\ndef count_digits(number):\n    return dict(Counter(int(d) for d in str(abs(number))))",
    ),
    (
        "Write a function to find the sums of neighbouring elements of a list.",
        ["assert neighbour_sums([1, 2, 4]) == [3, 6]", "assert neighbour_sums([5]) == []", "assert neighbour_sums([0, 0]) == [0]"],
        "def neighbour_sums(numbers):\n    return [a + b for a, b in zip(numbers, numbers[1:])]",
    ),
)


def read(path: str, split: str) -> list[Problem]:
    """The problems of the "train" or "test" split. ValueError names the row at fault, or says that the split is empty."""
    problems = []
    for place, row in read_rows(path, ("task_id", "text", "code", "test_list")):
        if row["task_id"] not in SPLITS[split]:
            continue
        text, code, tests, setup = row["text"], row["code"], row["test_list"], row.get("test_setup_code") or ""
        given = row.get("attempt") or ""
        if not (isinstance(tests, list) and tests and all(isinstance(t, str) for t in [text, code, setup, given, *tests])):
            raise ValueError(f"{place}: 'test_list' must be a list of texts that is not empty, all else but 'task_id' a text")
        try:
            names, imports = used_of(code, "\n".join([setup, *tests]))
        except (SyntaxError, ValueError) as error:
            raise ValueError(f"{place}: 'code' or the tests do not compile: {error}") from None
        if not names:
            raise ValueError(f"{place}: the tests use nothing that 'code' defines")
        source = "\n".join([*imports, setup, *tests])
        shown = [line.rstrip() for line in source.splitlines() if line.strip()]
        problems.append(Problem(prompt(text, shown), json.dumps({"tests": source, "names": names}), given))
    if not problems:
        ids = SPLITS[split]
        raise ValueError(f"{path} has no row of the {split} split, whose task_id is from {ids[0]} to {ids[-1]}")
    return problems


def used_of(code: str, tests: str) -> tuple[list[str], list[str]]:
    """What the tests use of the reference solution: functions and classes, which a program must have, and imports."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of "\d" in the references, where a raw string is meant
        used = {node.id for node in ast.walk(ast.parse(tests)) if isinstance(node, ast.Name)}
        body = ast.parse(code).body
    names = [node.name for node in body if isinstance(node, (ast.FunctionDef, ast.ClassDef)) and node.name in used]
    imported = [node for node in body if isinstance(node, (ast.Import, ast.ImportFrom))]
    return names, [ast.unparse(node) for node in imported if used & {a.asname or a.name.partition(".")[0] for a in node.names}]


def prompt(text: str, tests: list[str]) -> str:
    shots = [task(*example[:2]) + f"{example[2]}\n[DONE]\n\n" for example in EXAMPLES]
    return "".join(shots) + task(text, tests)


def task(text: str, tests: list[str]) -> str:
    lines = ["You are an expert Python programmer. Solve this task: " + text.strip(), "Your program must pass these tests:", *tests]
    return "\n".join([*lines, "[BEGIN]\n"])


def verdicts(pairs: list[tuple[Problem, str]]) -> list[str]:
    """Of (problem, text) pairs: "right", "wrong", "unparsable" or "timeout" each."""
    return run_tests([Job(program_in(text), **json.loads(problem.answer)) for problem, text in pairs])
