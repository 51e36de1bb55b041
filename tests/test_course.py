"""The course kit: holes, points, bugs, numbers and the notebook. What is graded runs as the grader runs it."""

import ast
import json
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
sys.path.append(str(ROOT / "course"))
import bug  # noqa: E402
import grade  # noqa: E402
from assignments import ASSIGNMENTS, edit, edited  # noqa: E402
from make import copy_project, cut, functions  # noqa: E402

HOLES = [(name, hole) for name, a in ASSIGNMENTS.items() for hole in a.holes]
WRONG = [(name, wrong, lost) for name, a in ASSIGNMENTS.items() for wrong, lost in a.wrong.items()]
FILES = ("rewards.py", "rollout.py", "model.py", "train.py", "eval.py")


def text_of(file: str) -> str:
    return (ROOT / file).read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def tree(tmp_path_factory) -> Path:
    """A copy of the project to put solutions into."""
    tree = tmp_path_factory.mktemp("course") / "tree"
    copy_project(tree)
    return tree


@pytest.fixture
def student(tmp_path) -> Path:
    """A student's folder with everything right."""
    for file in FILES:
        (tmp_path / file).write_text(text_of(file), encoding="utf-8")
    return tmp_path


def points(rows: list[dict]) -> int:
    return sum(row["points"] for row in rows)


# ---------------------------------------------------------------------------------- holes and points


def test_the_course_has_100_points():
    assert sum(a.automatic + a.written for a in ASSIGNMENTS.values()) + grade.MENDED_POINTS == 100
    holes = sum(check.points for a in ASSIGNMENTS.values() for check in a.checks)
    assert holes <= 50  # the solutions are public


@pytest.mark.parametrize("name, hole", HOLES, ids=[hole for _, hole in HOLES])
def test_a_hole_is_red_when_cut_and_green_with_the_real_body(name, hole, student, tree):
    file, function = hole.split(":")
    rows = grade.grade_hole(name, hole, student, tree)
    assert all(row["points"] == row["of"] and not row["reason"] for row in rows)
    source = text_of(file)
    assert ast.get_docstring(functions(cut(source, function))[function])
    (student / file).write_text(cut(source, function), encoding="utf-8")
    rows = grade.grade_hole(name, hole, student, tree)
    assert rows and all(row["points"] == 0 and "not written yet" in row["reason"] for row in rows)


@pytest.mark.parametrize("name, wrong, lost", WRONG, ids=[f"{name}-{wrong}" for name, wrong, _ in WRONG])
def test_a_wrong_solution_loses_the_points_that_it_should(name, wrong, lost, student, tree):
    m = edit(wrong)
    source = edited(m, text_of(m.file))
    (student / m.file).write_text(source, encoding="utf-8")
    before, after = functions(text_of(m.file)), functions(source)
    changed = [f"{m.file}:{key}" for key in before if ast.dump(before[key]) != ast.dump(after[key])]
    (hole,) = [hole for hole in ASSIGNMENTS[name].holes if hole in changed]
    rows = grade.grade_hole(name, hole, student, tree)
    assert sum(row["of"] for row in rows) - points(rows) == lost, rows
    assert all(row["reason"] or row["points"] == row["of"] for row in rows)


@pytest.mark.parametrize("hole", ["rollout.py:sample_token", "train.py:advantages", "train.py:token_scores",
                                  "eval.py:self_correction_metrics"])  # fmt: skip
def test_a_right_solution_written_another_way_has_all_points(hole, tmp_path, tree):
    plain = text_of("course/answers/plain_loops.py")
    file, function = hole.split(":")
    (tmp_path / file).write_text(plain, encoding="utf-8")
    assert ast.dump(functions(plain)[function]) != ast.dump(functions(text_of(file))[function])
    name = next(name for name, other in HOLES if other == hole)
    rows = grade.grade_hole(name, hole, tmp_path, tree)
    assert points(rows) == sum(row["of"] for row in rows) > 0, rows


# ---------------------------------------------------------------------------------- hostile solutions

RETURNS = "def turn_returns(rewards, gamma):\n"
HOSTILE = {
    "not written yet": f"{RETURNS}    raise NotImplementedError",
    "not come to an end": f"{RETURNS}    while True: pass",
    "ended Python itself": f"{RETURNS}    import os; os._exit(0)",
    "SystemExit": f"{RETURNS}    raise SystemExit",
    "assert [0.0": f"{RETURNS}    return rewards.mul_(2)",
    "there is no function turn_returns": "def turn_return(rewards, gamma):\n    return rewards",
    "Python can't read it in line 2": f"{RETURNS}    return rewards +",
    "too deeply nested": f"{RETURNS}    return {'+'.join('1' * 5000)}",
    "not UTF-8": b"\xff\xfe\x00",
    "not there": None,
}


@pytest.mark.parametrize("reason", HOSTILE)
def test_a_hostile_solution_gets_words(reason, tmp_path, tree, monkeypatch):
    monkeypatch.setattr(grade, "SECONDS", 8)
    code = HOSTILE[reason]
    if code is not None:
        (tmp_path / "rewards.py").write_bytes(code if isinstance(code, bytes) else code.encode())
    started = time.time()
    (row,) = grade.grade_hole("A2", "rewards.py:turn_returns", tmp_path, tree)
    assert row["points"] == 0 and reason in row["reason"] and "Traceback" not in row["reason"]
    assert time.time() - started < 60
    assert (tree / "rewards.py").read_text(encoding="utf-8") == text_of("rewards.py")


# ---------------------------------------------------------------------------------- tests of one's own


def test_tests_of_ones_own_must_pass_on_right_code_and_notice_bugs(tmp_path, tree):
    good = text_of("course/answers/my_tests.py")
    (tmp_path / "my_tests.py").write_text(good, encoding="utf-8")
    rows = grade.grade_own_tests(tmp_path, tree)
    assert points(rows) == grade.BUG_POINTS * len(ASSIGNMENTS["A5"].bugs), rows
    for text, reason in [
        ("def test_nothing():\n    pass", "all of your tests pass"),
        ("def test_always():\n    assert False", "on the right code"),
        ("import train\ndef test_text():\n    assert '# [B, K, T]' in open(train.__file__).read()", "right code"),
        ("x = 1", "it has no test"),
        ("x = ", "on the right code"),
    ]:
        (tmp_path / "my_tests.py").write_text(text, encoding="utf-8")
        rows = grade.grade_own_tests(tmp_path, tree)
        assert points(rows) == 0 and all(reason in row["reason"] for row in rows), rows


# ---------------------------------------------------------------------------------- the silent bug


@pytest.mark.parametrize("name", bug.VARIANTS)
def test_every_bug_is_caught_by_the_test_that_it_names(name, student, tree, monkeypatch):
    m = edit(name)
    assert m.tests
    (student / m.file).write_text(edited(m, text_of(m.file)), encoding="utf-8")
    monkeypatch.setattr(grade, "variant_of", lambda student: name)
    (row,) = grade.grade_mended(student, tree, "somebody")
    assert row["points"] == 0 and "test_" in row["reason"], row
