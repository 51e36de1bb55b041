"""The checker of mathematics beside the library math-verify: writes experiments/results/answers.md.

    python experiments/answers.py           (pip install math-verify first, or there is one column less)

Both judge the pairs in tests/answer_pairs.tsv. What is equal was decided by hand, by the rules that
data/checkers/math_answers.py states.
"""

import importlib.util
import logging
import sys
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))  # so that it runs without being installed

from data.checkers.math_answers import answers_equal  # noqa: E402
from engine.report import markdown  # noqa: E402

PAIRS = ROOT / "tests" / "answer_pairs.tsv"
RESULT = ROOT / "experiments" / "results" / "answers.md"


class Pair(NamedTuple):
    topic: str
    equal: bool  # whether `answer` is right where `reference` is asked for
    answer: str
    reference: str


def read_pairs() -> list[Pair]:
    """The pairs. Each line of the file is a verdict, an answer and a reference, or "# " and a topic."""
    pairs, topic = [], ""
    for line in PAIRS.read_text(encoding="utf-8").splitlines():
        if line.startswith("# "):
            topic = line[2:]
        else:
            verdict, answer, reference = line.split("\t")
            pairs.append(Pair(topic, verdict == "equal", answer, reference))
    return pairs


def judged_by_library(answer: str, reference: str) -> bool:
    """math-verify's verdict, with its defaults and dollar signs around both, as its documentation advises."""
    from math_verify import parse, verify

    return bool(verify(parse(f"${reference}$"), parse(f"${answer}$")))


def as_code(text: str) -> str:
    """The text as it stands, in a Markdown table."""
    return f"`` {text} ``".replace("|", "\\|")


def main() -> None:
    pairs = read_pairs()
    judges: dict[str, Callable[[str, str], bool | None]] = {"ours": answers_equal}
    about_library = "It was not installed when this was written, so its column is missing."
    if importlib.util.find_spec("math_verify"):
        logging.disable()  # it warns of every answer that it can't read
        judges["math-verify"] = judged_by_library
        about_library = f"It is version {version('math-verify')} with its defaults, answers in `$...$`."
    verdicts, seconds = {}, {}
    for name, judge in judges.items():
        start = time.process_time()
        verdicts[name] = [bool(judge(pair.answer, pair.reference)) for pair in pairs]
        seconds[name] = time.process_time() - start

    def counts(topic: str | None) -> list[str]:
        """How many pairs are equal, how many of them each judge calls so, and the same for the others."""
        cells = []
        for equal in (True, False):
            here = [pair.equal == equal and topic in (None, pair.topic) for pair in pairs]
            places = [i for i, chosen in enumerate(here) if chosen]
            right = [sum(verdicts[name][i] == equal for i in places) for name in judges]
            cells += [len(places), *right]
        return cells

    topics = list(dict.fromkeys(pair.topic for pair in pairs))
    headers = ["topic", "equal", *judges, "different", *judges]
    summary = markdown(headers, [[topic, *counts(topic)] for topic in topics] + [["**all**", *counts(None)]])
    wrong = [
        [as_code(pair.answer), as_code(pair.reference), "equal" if pair.equal else "different",
         *("equal" if verdicts[name][i] else "different" for name in judges)]
        for i, pair in enumerate(pairs)
        if any(verdicts[name][i] != pair.equal for name in judges)
    ]  # fmt: skip
    times = " and ".join(f"{seconds[name] / len(pairs) * 1000:.1f} ms a pair ({name})" for name in judges)
    RESULT.write_text(
        f"""# Answers in mathematics: which are equal

Written by `python experiments/answers.py` from the {len(pairs)} pairs in `tests/answer_pairs.tsv`. Whether a
pair is equal was decided by hand, by the rules of `data/checkers/math_answers.py`. The pairs are also tests
of that checker ("ours"). It was fixed until all of them were right, so they don't tell how often it is wrong
elsewhere. The library math-verify has other rules: for it, `3+4` is right where 7 is asked for.
{about_library}

{summary}

"equal" and "different" are numbers of pairs; the columns behind each tell how many of them are judged so. It
took {times} of processor time.

The pairs that one of them judges otherwise than decided:

{markdown(["answer", "reference", "decided", *judges], wrong)}
""",
        encoding="utf-8",
    )
    print(f"{RESULT.relative_to(ROOT)} is written. math-verify: {about_library}")


if __name__ == "__main__":
    main()
