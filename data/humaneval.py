"""HumanEval: functions to complete, judged by hidden tests. Chen et al. 2021, arXiv 2107.03374.

It is for reports only. `HumanEval.jsonl.gz` is from https://github.com/openai/human-eval/tree/master/data
(MIT). An answer may repeat the whole function, or go on where the prompt ends. If the prompt defines other
functions, the program and the tests each have their own copy of them. A row may have an "attempt", which turn
2 then has to repair.
"""

import ast
import json
import re

from data import Problem, read_rows
from data.checkers.sandbox import Job, program_in, run_tests
from data.mbpp import CORRECTION_REQUEST, FEEDBACK_REQUEST  # noqa: F401 (the same words)


def read(path: str, split: str) -> list[Problem]:
    """All problems. ValueError if the split is "train"; else it names the row that is at fault."""
    if split == "train":
        raise ValueError("HumanEval is for evaluation only, as everybody reports on it: train on MBPP")
    problems = []
    for place, row in read_rows(path, ("task_id", "prompt", "entry_point", "test")):
        stub, name, given = row["prompt"], row["entry_point"], row.get("attempt") or ""
        if not all(isinstance(t, str) for t in (stub, name, row["test"], given)):
            raise ValueError(f"{place}: 'prompt', 'entry_point', 'test' and 'attempt' must be texts")
        try:
            bodies = ast.parse(stub).body, ast.parse(row["test"]).body
        except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
            raise ValueError(f"{place}: 'prompt' or 'test' does not compile: {error}") from None
        for field, body, wanted in zip(("prompt", "test"), bodies, (name, "check"), strict=True):
            if wanted not in [node.name for node in body if isinstance(node, ast.FunctionDef)]:
                raise ValueError(f"{place}: its {field!r} defines no function {wanted!r}")
        tests = f"{row['test']}\ncheck({name})\n"
        problems.append(Problem(stub, json.dumps({"tests": tests, "names": [name], "prelude": stub}), given))
    return problems


def program(text: str, prelude: str, name: str) -> str:
    """The program that an answer makes of its prompt.

    That is the answer alone if it defines the function, and otherwise the prompt followed by the answer. In
    the second case the answer ends at its first line that is not indented, as what models add there is not
    part of it.
    """
    text = program_in(text)
    if re.search(rf"^(async )?def\s+{re.escape(name)}\b", text, re.MULTILINE):
        return text
    body = re.split(r"\n(?=\S)", text.strip("\r\n"), maxsplit=1)[0]
    return prelude.rstrip() + "\n" + (body if body[:1].isspace() else "    " + body) + "\n"


def verdicts(pairs: list[tuple[Problem, str]]) -> list[str]:
    """The verdict on each (problem, text) pair, as `run_tests` gives it."""
    jobs = []
    for problem, text in pairs:
        job = json.loads(problem.answer)
        jobs.append(Job(program(text, job["prelude"], *job["names"]), **job))
    return run_tests(jobs)
