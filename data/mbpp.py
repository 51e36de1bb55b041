"""MBPP: short Python functions, judged by three tests each. Austin et al. 2021, arXiv 2108.07732.

`mbpp.jsonl` is from https://github.com/google-research/google-research/tree/master/mbpp (CC BY 4.0). Its
README splits the rows by task_id: 1 to 10 are for prompts, 11 to 510 are the test split, 511 to 600 are for
validation, and 601 to 974 are for training.

The first attempt is 3-shot, as in the SCoRe paper. The three examples are our own, so they need no file, and
your own rows get the same prompt. The prompt shows the task with its tests and the code that sets them up, as
nothing else says what names and arguments the program must have. A row may have an "attempt", which turn 2
then has to repair.
"""

import ast
import json
import warnings

from data import Problem, read_rows
from data.checkers.sandbox import Job, program_in, run_tests

SPLITS = {"train": range(601, 975), "test": range(11, 511)}
CORRECTION_REQUEST = (
    "# The program above may have an error. Look for it, correct it if there is one, "
    "and write the program again.\n"
    "# Output the final program only."
)
FEEDBACK_REQUEST = (
    "# Review the program above against the task and each of the tests: "
    "say what is wrong and where, or that it is right.\n"
    "# Do not write a new program yet."
)
EXAMPLES = (
    (
        "Write a function that returns the longest word of a sentence, "
        "the first of them if there are several.",
        [
            "assert longest_word('a bird sang') == 'bird'",
            "assert longest_word('') == ''",
            "assert longest_word('so it is') == 'so'",
        ],
        "def longest_word(sentence):\n    return max(sentence.split(), key=len, default='')",
    ),
    (
        "Write a function to count how often each digit occurs in a whole number.",
        [
            "assert count_digits(7) == {7: 1}",
            "assert count_digits(1010) == {1: 2, 0: 2}",
            "assert count_digits(-33) == {3: 2}",
        ],
        "from collections import Counter\n\n"
        "def count_digits(number):\n    return dict(Counter(int(d) for d in str(abs(number))))",
    ),
    (
        "Write a function to find the sums of neighbouring elements of a list.",
        [
            "assert neighbour_sums([1, 2, 4]) == [3, 6]",
            "assert neighbour_sums([5]) == []",
            "assert neighbour_sums([0, 0]) == [0]",
        ],
        "def neighbour_sums(numbers):\n    return [a + b for a, b in zip(numbers, numbers[1:])]",
    ),
)


def read(path: str, split: str) -> list[Problem]:
    """The problems of the "train" or "test" split.

    ValueError names the row that is at fault, or says that the split is empty.
    """
    problems = []
    for place, row in read_rows(path, ("task_id", "text", "code", "test_list")):
        if row["task_id"] not in SPLITS[split]:
            continue
        text, code, tests = row["text"], row["code"], row["test_list"]
        setup, given = row.get("test_setup_code") or "", row.get("attempt") or ""
        if not (isinstance(tests, list) and tests and all(isinstance(t, str) for t in tests)):
            raise ValueError(f"{place}: 'test_list' must be a list of texts that is not empty")
        if not all(isinstance(t, str) for t in (text, code, setup, given)):
            raise ValueError(f"{place}: 'text', 'code', 'test_setup_code' and 'attempt' must be texts")
        try:
            names, imports = used_of(code, "\n".join([setup, *tests]))
        except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
            raise ValueError(f"{place}: 'code' or the tests do not compile: {error}") from None
        if not names:
            raise ValueError(f"{place}: the tests use nothing that 'code' defines")
        source = "\n".join([*imports, setup, *tests])
        shown = [line.rstrip() for line in source.splitlines() if line.strip()]
        problems.append(Problem(prompt(text, shown), json.dumps({"tests": source, "names": names}), given))
    if not problems:
        ids = f"from {SPLITS[split][0]} to {SPLITS[split][-1]}"
        raise ValueError(f"{path} has no row of the {split} split, whose task_id is {ids}")
    return problems


def used_of(code: str, tests: str) -> tuple[list[str], list[str]]:
    """What the tests use of the reference solution.

    First the names of functions and classes, which every program must define. Then the import statements,
    which the tests get for themselves.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # some references have "\d" where they mean a raw string
        used = {node.id for node in ast.walk(ast.parse(tests)) if isinstance(node, ast.Name)}
        body = ast.parse(code).body
    defined = [node.name for node in body if isinstance(node, (ast.FunctionDef, ast.ClassDef))]
    imports = []
    for node in body:
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            bound = {alias.asname or alias.name.partition(".")[0] for alias in node.names}
            imports += [ast.unparse(node)] if bound & used else []
    return [name for name in defined if name in used], imports


def prompt(text: str, tests: list[str]) -> str:
    shots = [task(*example[:2]) + f"{example[2]}\n[DONE]\n\n" for example in EXAMPLES]
    return "".join(shots) + task(text, tests)


def task(text: str, tests: list[str]) -> str:
    opening = "You are an expert Python programmer. Solve this task: " + text.strip()
    return "\n".join([opening, "Your program must pass these tests:", *tests, "[BEGIN]\n"])


def verdicts(pairs: list[tuple[Problem, str]]) -> list[str]:
    """The verdict on each (problem, text) pair, as `run_tests` gives it."""
    return run_tests([Job(program_in(text), **json.loads(problem.answer)) for problem, text in pairs])
