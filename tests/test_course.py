"""The course kit: holes, points, bugs, figures and the notebook. Solutions run as the grader runs them."""

import ast
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow  # a student's quick tests are of the algorithm, not of the kit

ROOT = Path(__file__).parent.parent
sys.path.append(str(ROOT / "course"))
import bug  # noqa: E402
import fill  # noqa: E402
import grade  # noqa: E402
import run_notebook  # noqa: E402
from assignments import ASSIGNMENTS, edit, edited  # noqa: E402
from make import copy_project, cut, functions  # noqa: E402
from runs import RUNS  # noqa: E402

HOLES = [(name, hole) for name, a in ASSIGNMENTS.items() for hole in a.holes]
WRONG = [
    pytest.param(name, wrong, lost, id=f"{name}-{wrong}")
    for name, a in ASSIGNMENTS.items()
    for wrong, lost in a.wrong.items()
]


def text_of(file: str) -> str:
    return (ROOT / file).read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def tree(tmp_path_factory) -> Path:
    """A copy of the project to put solutions into."""
    tree = tmp_path_factory.mktemp("course") / "tree"
    copy_project(tree)
    return tree


@pytest.fixture(autouse=True)
def patience(monkeypatch):
    """A busy machine is no fault of a solution."""
    monkeypatch.setattr(grade, "SECONDS", 300)


def points(rows: list[dict]) -> int:
    return sum(row["points"] for row in rows)


# ---------------------------------------------------------------------------------- holes and points


def test_the_course_has_100_points():
    assert sum(a.automatic + a.written for a in ASSIGNMENTS.values()) + grade.MENDED_POINTS == 100
    holes = sum(check.points for a in ASSIGNMENTS.values() for check in a.checks)
    assert holes <= 50  # the solutions are public


def test_the_real_functions_have_all_points(tree):
    """All graded tests pass, and a real function put into the real file leaves it as it was."""
    tests = [test for a in ASSIGNMENTS.values() for check in a.checks for test in check.tests]
    results = grade.run_tests(tree, tests)
    assert not any(results.values()) and not any(grade.why_not(test, results) for test in tests)
    for _, hole in HOLES:
        file, function = hole.split(":")
        source = text_of(file)
        assert ast.dump(ast.parse(grade.spliced(source, source, function))) == ast.dump(ast.parse(source))


@pytest.mark.parametrize("name, hole", HOLES, ids=[hole for _, hole in HOLES])
def test_a_hole_is_red_when_cut(name, hole, tmp_path, tree):
    file, function = hole.split(":")
    source = cut(text_of(file), function)
    assert ast.get_docstring(functions(source)[function])
    (tmp_path / file).write_text(source, encoding="utf-8")
    rows = grade.grade_hole(name, hole, tmp_path, tree)
    assert rows and all(row["points"] == 0 and "not written yet" in row["reason"] for row in rows)


@pytest.mark.parametrize("name, wrong, lost", WRONG)
def test_a_wrong_solution_loses_the_points_that_it_should(name, wrong, lost, tmp_path, tree):
    m = edit(wrong)
    source = edited(m, text_of(m.file))
    (tmp_path / m.file).write_text(source, encoding="utf-8")
    before, after = functions(text_of(m.file)), functions(source)
    changed = [f"{m.file}:{key}" for key in before if ast.dump(before[key]) != ast.dump(after[key])]
    (hole,) = [hole for hole in ASSIGNMENTS[name].holes if hole in changed]
    rows = grade.grade_hole(name, hole, tmp_path, tree)
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
    if reason == "not come to an end":
        monkeypatch.setattr(grade, "SECONDS", 5)
    code = HOSTILE[reason]
    if code is not None:
        (tmp_path / "rewards.py").write_bytes(code if isinstance(code, bytes) else code.encode())
    (row,) = grade.grade_hole("A2", "rewards.py:turn_returns", tmp_path, tree)
    assert row["points"] == 0 and reason in row["reason"] and "Traceback" not in row["reason"]
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
        ("import train\ndef test_text():\n    assert '# [B' in open(train.__file__).read()", "right code"),
        ("x = 1", "it has no test"),
        ("x = ", "on the right code"),
    ]:
        (tmp_path / "my_tests.py").write_text(text, encoding="utf-8")
        rows = grade.grade_own_tests(tmp_path, tree)
        assert points(rows) == 0 and all(reason in row["reason"] for row in rows), rows


# ---------------------------------------------------------------------------------- the silent bug


@pytest.mark.parametrize("name", bug.VARIANTS)
def test_every_bug_is_caught_by_the_test_that_it_names(name, tmp_path, tree, monkeypatch):
    m = edit(name)
    (tmp_path / m.file).parent.mkdir(exist_ok=True)
    (tmp_path / m.file).write_text(edited(m, text_of(m.file)), encoding="utf-8")
    monkeypatch.setattr(grade, "variant_of", lambda student: name)
    (row,) = grade.grade_mended(tmp_path, tree, "somebody")
    assert row["points"] == 0 and "test_" in row["reason"], row


def test_the_handouts_first_command_runs_with_a_bug_in_the_checkpoints(tmp_path):
    (name,) = [name for name in bug.VARIANTS if edit(name).file == "engine/run.py"]
    copy_project(tmp_path / "tree")
    bug.plant(name, tmp_path / "tree")
    bug.run(tmp_path / "tree", [sys.executable, "train.py", "--preset=course-base", "--base_steps=2"])


def test_a_mended_bug_has_its_points(tmp_path, tree, monkeypatch):
    (tmp_path / "train.py").write_text(text_of("train.py"), encoding="utf-8")
    monkeypatch.setattr(grade, "variant_of", lambda student: "baseline-includes-itself")
    (row,) = grade.grade_mended(tmp_path, tree, "somebody")
    assert row["points"] == row["of"] == grade.MENDED_POINTS
    with pytest.raises(ValueError, match="--student"):
        grade.grade_mended(tmp_path, tree, "")


def test_students_have_bugs_of_their_own_with_curves_beside_healthy_ones(tmp_path):
    chosen = {bug.variant_of(f"student {i}") for i in range(200)}
    assert chosen == set(bug.VARIANTS) and len(chosen) >= 8
    assert bug.variant_of("student 7") == bug.variant_of("student 7")
    curves = json.loads(bug.CURVES.read_text(encoding="utf-8"))
    assert set(curves) == {*bug.VARIANTS, *bug.HEALTHY}
    bug.make_hunt("student 7", tmp_path / "hunt")
    name = bug.variant_of("student 7")
    file = edit(name).file
    assert (tmp_path / "hunt" / file).read_text(encoding="utf-8") == edited(edit(name), text_of(file))
    shown = json.loads((tmp_path / "hunt" / "curves.json").read_text(encoding="utf-8"))
    assert shown["with a bug"] == curves[name] and len(shown) == 4
    assert (tmp_path / "hunt" / "curves.png").stat().st_size > 10_000


def test_curves_show_what_they_should():
    """The signatures that the answers name: means of a stage's last half, in percent and nats."""
    curves = json.loads(bug.CURVES.read_text(encoding="utf-8"))

    def end(name: str, stage: str, column: str) -> float:
        values = [point[column] for point in curves[name] if point["stage"] == stage]
        return sum(values[len(values) // 2 :]) / (len(values) - len(values) // 2)

    for name in bug.HEALTHY:
        assert 35 < end(name, "stage1", "acc_t1") < 65 and end(name, "stage2", "acc_t2") > 85
        assert 60 < end(name, "stage2", "acc_t1") < 85
    assert end("joint-return", "stage2", "acc_t1") < 15
    assert end("policy-as-reference", "stage2", "kl_t1") < 0.01
    assert end("stage1-betas-swapped", "stage1", "kl_t1") > 3 * end("healthy 1", "stage1", "kl_t1")
    assert end("reference-samples", "stage1", "acc_t2") < 65
    assert end("stage1-rewards-turn-1", "stage1", "acc_t1") > 60
    assert end("no-bonus", "stage2", "acc_t2") < 85
    assert end("grouped-by-own-outcome", "stage1", "grad_norm") == 0
    assert next(p for p in curves["stage2-from-the-base"] if p["stage"] == "stage2")["acc_t2"] < 65


# ---------------------------------------------------------------------------------- figures and scripts


def test_figures_in_the_handouts_are_those_of_the_results():
    results = json.loads(fill.RESULTS.read_text(encoding="utf-8"))
    assert list(results) == list(RUNS)
    for file, makers in fill.blocks(results).items():
        text = text_of(f"course/{file}")
        assert fill.filled(text, makers) == text, f"{file}: run python course/fill.py"
    seconds = [run["seconds"] for run in results.values()]
    assert sum(seconds) < 40 * 60 and max(seconds) < 10 * 60


def test_every_handout_names_its_points_and_functions():
    for name, a in ASSIGNMENTS.items():
        text = text_of(f"course/{name}.md")
        total = a.automatic + a.written + grade.MENDED_POINTS * (name == "A6")
        assert text.startswith(f"# {name}: {a.title} ({total} points)\n")
        assert all(f"`{hole.partition(':')[2]}`" in text for hole in a.holes)
        given = [int(n) for n in re.findall(r"^\d\. \((\d+) points\)", text, re.MULTILINE)]
        assert sum(given) == a.written
        commands = re.findall(r"python train\.py (.+?)(?: +#.*)?$", text, re.MULTILINE)
        assert set(commands) <= set(RUNS.values()) and (commands or name == "A5")


def test_from_make_to_grade(tmp_path):
    """As a student does it: the empty tree has no points, our functions have all of them."""

    def script(*words) -> str:
        command = [sys.executable, *map(str, words)]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, encoding="utf-8")
        return done.stdout + done.stderr

    tree = tmp_path / "mine"
    assert "turn_rewards" in script("course/make.py", "A2", f"--to={tree}")
    assert "exists" in script("course/make.py", "A2", f"--to={tree}")
    assert not (tree / "course").exists() and (tree / "data" / "larger.py").exists()
    assert "write turn_rewards here" in (tree / "rewards.py").read_text(encoding="utf-8")
    assert script("course/grade.py", "A2", tree).startswith("A2: 0 of 6 points")
    for file in ("rewards.py", "train.py"):
        shutil.copy(ROOT / file, tree)
    assert script("course/grade.py", "A2", tree).startswith("A2: 6 of 6 points")
    assert json.loads((tree / "grade-A2.json").read_text(encoding="utf-8"))["points"] == 6
    assert script("course/grade.py", "A2", tmp_path / "nowhere").startswith("error: no folder")


def test_the_notebook_runs_and_keeps_its_pictures():
    kept = json.loads(run_notebook.NOTEBOOK.read_text(encoding="utf-8"))
    assert run_notebook.NOTEBOOK.stat().st_size < 400_000
    made = run_notebook.run(json.loads(run_notebook.NOTEBOOK.read_text(encoding="utf-8")))

    def pictures(cells: list[dict]) -> list[int]:
        return [str(cell.get("outputs")).count("image/png") for cell in cells]

    assert pictures(kept["cells"]) == pictures(made["cells"]) and sum(pictures(kept["cells"])) >= 7
    first = [
        next(cell["outputs"] for cell in notebook["cells"] if cell.get("outputs"))
        for notebook in (kept, made)
    ]
    assert first[0] == first[1]  # it keeps what this code says of these checkpoints
    code = "\n".join("".join(cell["source"]) for cell in kept["cells"])
    for file in ("train.py", "rollout.py", "rewards.py"):  # it imports the scripts and copies nothing
        assert not set(re.findall(r"def (\w+)", code)) & functions(text_of(file)).keys()


def test_the_project_does_not_need_the_course():
    for path in [*ROOT.glob("*.py"), *(p for d in ("data", "engine") for p in (ROOT / d).rglob("*.py"))]:
        imports = {
            name.partition(".")[0]
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
            if isinstance(node, ast.Import | ast.ImportFrom)
            for name in [*(alias.name for alias in node.names), getattr(node, "module", None) or ""]
        }
        assert not imports & {"course", *(p.stem for p in (ROOT / "course").glob("*.py"))}, path
