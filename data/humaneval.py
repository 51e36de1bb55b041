"""HumanEval: functions to complete, judged by hidden tests. Chen et al. 2021, arXiv 2107.03374. For reports only.

`HumanEval.jsonl.gz` from https://github.com/openai/human-eval/tree/master/data (MIT). An answer may repeat the whole function or go
on where the prompt ends. What else the prompt defines, both the program and the tests have, each its own copy. A row may bring
an "attempt", which turn 2 is then to repair.
"""

import ast
import json
import re

from data import Problem, read_rows
from data.checkers.sandbox import Job, program_in, run_tests
from data.mbpp import CORRECTION_REQUEST, FEEDBACK_REQUEST  # noqa: F401 (the same words)


def read(path: str, split: str) -> list[Problem]:
    """All problems. ValueError if they are wanted for training, or names the row at fault."""
    if split == "train":
        raise ValueError("HumanEval is for evaluation only: 164 problems, which everybody reports on; train on MBPP")
    problems = []
    for place, row in read_rows(path, ("task_id", "prompt", "entry_point", "test")):
        stub, name, given = row["prompt"], row["entry_point"], row.get("attempt") or ""
        if not all(isinstance(t, str) for t in (stub, name, row["test"], given)):
            raise ValueError(f"{place}: 'prompt', 'entry_point', 'test' and 'attempt' must be texts")
        try:
            ast.parse(stub), ast.parse(row["test"])
        except (SyntaxError, ValueError) as error:
            raise ValueError(f"{place}: 'prompt' or 'test' does not compile: {error}") from None
        tests = f"{row['test']}\ncheck({name})\n"
        problems.append(Problem(stub, json.dumps({"tests": tests, "names": [name], "prelude": stub}), given))
    return problems


def program(text: str, prelude: str, name: str) -> str:
    """The program that a text makes of its prompt: the text itself if it defines the function, else both, one after the other.

    A body that goes on ends at the first line that is not indented: whatever models add there is no longer the answer.
    """
    text = program_in(text)
    if re.search(rf"^(async )?def\s+{re.escape(name)}\b", text, re.MULTILINE):
        return text
    body = re.split(r"\n(?=\S)", text.strip("\r\n"), maxsplit=1)[0]
    return prelude.rstrip() + "\n" + (body if body[:1].isspace() else "    " + body) + "\n"


def verdicts(pairs: list[tuple[Problem, str]]) -> list[str]:
    """Of (problem, text) pairs: "right", "wrong", "unparsable" or "timeout" each."""
    jobs = []
    for problem, text in pairs:
        job = json.loads(problem.answer)
        jobs.append(Job(program(text, job["prelude"], *job["names"]), **job))
    return run_tests(jobs)
