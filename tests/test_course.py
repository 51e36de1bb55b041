"""The course kit: holes, points, bugs, classes and figures. Solutions run as the grader runs them."""

import ast
import csv
import json
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow  # a student's quick tests are of the algorithm, not of the kit

ROOT = Path(__file__).parent.parent
sys.path.append(str(ROOT / "course"))
import bugs  # noqa: E402
import fill  # noqa: E402
import grade  # noqa: E402
import make  # noqa: E402
from assignments import ASSIGNMENTS  # noqa: E402

HOLES = [(name, hole) for name, a in ASSIGNMENTS.items() for hole in a.holes]


def text_of(file: str) -> str:
    return (ROOT / file).read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def tree(tmp_path_factory) -> Path:
    """A copy of the project to put solutions into."""
    tree = tmp_path_factory.mktemp("course") / "tree"
    make.copy_project(tree)
    return tree


@pytest.fixture(autouse=True)
def patience(monkeypatch):
    """A busy machine is no fault of a solution."""
    monkeypatch.setattr(grade, "SECONDS", 300)


def points(rows: list[dict]) -> int:
    return sum(row["points"] for row in rows)


def script(*words) -> str:
    done = subprocess.run([sys.executable, *map(str, words)], cwd=ROOT, capture_output=True, text=True)
    return done.stdout + done.stderr


# ---------------------------------------------------------------------------------- holes and points


def test_the_course_has_100_points():
    assert sum(a.points for a in ASSIGNMENTS.values()) == 100
    assert sum(a.code for a in ASSIGNMENTS.values()) <= 50  # the solutions are public


@pytest.mark.parametrize("name, hole", HOLES, ids=[hole for _, hole in HOLES])
def test_a_hole_is_red_when_cut_and_has_all_points_when_right(name, hole, tmp_path, tree):
    file, _, function = hole.partition(":")
    source = make.cut(text_of(file), function)
    assert ast.get_docstring(make.function(source, function))
    (tmp_path / file).write_text(source, encoding="utf-8")
    rows = grade.grade_hole(name, hole, tmp_path, tree)
    assert rows and all(row["points"] == 0 and "not written yet" in row["reason"] for row in rows)
    rows = grade.grade_hole(name, hole, ROOT, tree)
    assert points(rows) == sum(row["of"] for row in rows) and not any(row["reason"] for row in rows)
    assert (tree / file).read_text(encoding="utf-8") == text_of(file)


@pytest.mark.parametrize("wrong, name, lost", bugs.WRONG, ids=[wrong for wrong, _, _ in bugs.WRONG])
def test_a_solution_loses_the_points_that_it_should(wrong, name, lost, tmp_path, tree):
    """Those that begin with `right` are written another way and lose none."""
    file = bugs.BUGS[wrong]["file"]
    real, source = text_of(file), bugs.edited(wrong, text_of(file))
    (tmp_path / file).write_text(source, encoding="utf-8")

    def code(text: str, hole: str) -> str:
        return ast.dump(make.function(text, hole.partition(":")[2]))

    holes = [hole for hole in ASSIGNMENTS[name].holes if hole.startswith(f"{file}:")]
    (hole,) = [hole for hole in holes if code(real, hole) != code(source, hole)]
    rows = grade.grade_hole(name, hole, tmp_path, tree)
    assert sum(row["of"] for row in rows) - points(rows) == lost, rows
    assert any(row["reason"] for row in rows) != wrong.startswith("right"), rows
    assert all(row["reason"] or row["points"] == row["of"] for row in rows)
    assert not any("Error" in row["reason"] for row in rows)  # words, not exceptions


# ---------------------------------------------------------------------------------- hostile solutions

RETURNS = "def turn_returns(rewards, gamma):\n"
HOSTILE = {
    "not written yet": f"{RETURNS}    raise NotImplementedError",
    "not come to an end": f"{RETURNS}    while True: pass",
    "ended Python itself": f"{RETURNS}    import os; os._exit(0)",
    "has changed its argument": f"{RETURNS}    rewards[:, 0] += gamma * rewards[:, 1]\n    return rewards",
    "gave NoneType, not numbers": f"{RETURNS}    return None",
    "has the shape [2], and [2, 3] is right": f"{RETURNS}    return rewards[:, 0]",
    "NameError: name 'gama' is not defined (at: return gama)": f"{RETURNS}    return gama",
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


def test_tests_of_ones_own_notice_every_bug_that_a_function_may_have(tmp_path, tree, monkeypatch):
    (tmp_path / "my_tests.py").write_text(text_of("course/answers/my_tests.py"), encoding="utf-8")
    for number in range(max(map(len, bugs.HIDDEN.values()))):
        hidden = {where: names[number % len(names)] for where, names in bugs.HIDDEN.items()}
        monkeypatch.setattr(bugs, "hidden_bugs", lambda student, secret, hidden=hidden: hidden)
        rows = grade.grade_own_tests(tmp_path, tree, "", "")
        assert points(rows) == ASSIGNMENTS["A5"].own and len(rows) == 5, rows


LOOK = "import train\ndef test_text():\n    "
OTHER_TESTS = {
    "def test_nothing():\n    pass": "all of your tests pass",
    "def test_always():\n    assert False": "on the right code",
    "from inspect import getsource": "imports inspect",
    f"{LOOK}assert open('train.py')": "uses open",
    f"{LOOK}assert train.advantages.__code__": "uses __code__",
    f"{LOOK}torch.from_file('train.py')": "uses from_file",
    "x = 1": "has no test",
    "x = ": "can't read it",
}


@pytest.mark.parametrize("text", OTHER_TESTS)
def test_tests_that_look_at_the_code_have_no_points(text, tmp_path, tree):
    (tmp_path / "my_tests.py").write_text(text, encoding="utf-8")
    rows = grade.grade_own_tests(tmp_path, tree, "somebody", "secret")
    assert points(rows) == 0 and all(OTHER_TESTS[text] in row["reason"] for row in rows), rows


# ---------------------------------------------------------------------------------- the silent bug


@pytest.mark.parametrize("name", ["", *bugs.SILENT])
def test_a_project_with_a_bug_trains_in_another_way(name, tmp_path, tree):
    for file in make.HUNTED:
        shutil.copy(ROOT / file, tmp_path)
    if name:
        bugs.plant(name, tmp_path)
    row = grade.grade_mended(tmp_path, tree)
    assert row["points"] == (0 if name else ASSIGNMENTS["A6"].own), row
    assert ("do not go as" in row["reason"]) == bool(name)


def test_students_have_bugs_of_their_own_that_follow_from_the_secret():
    chosen = {bugs.silent_bug(f"student {i}", "secret") for i in range(200)}
    assert chosen == set(bugs.SILENT) and len(chosen) >= 8
    assert len({bugs.silent_bug(name, "s") for name in ("Zoë Jansen", "zoe jansen", " ZOE_JANSEN")}) == 1
    assert len({bugs.silent_bug("Noor", f"secret {i}") for i in range(50)}) > 4
    with pytest.raises(ValueError, match="--student"):
        bugs.silent_bug(" ", "secret")


def test_curves_show_what_the_answers_say():
    """Each bug has a panel in which the mean of half a stage lies far outside those of the healthy runs."""
    curves = json.loads(text_of("course/curves.json"))
    healthy = [name for name in curves if name.startswith("healthy")]
    assert set(curves) == {*bugs.SILENT, *healthy} and len(healthy) == 3

    def mean(name: str, stage: str, column: str) -> float:
        values = [point[column] for point in curves[name] if point["stage"] == stage[:6]]
        half = len(values) // 2
        values = values[:half] if stage.endswith("begins") else values[half:]
        return sum(values) / len(values)

    for name in bugs.SILENT:
        outside = []
        for stage in ("stage1 begins", "stage1 ends", "stage2 begins", "stage2 ends"):
            for column in ("acc_t1", "acc_t2", "change_rate", "kl_t1", "kl_t2", "grad_norm"):
                band = [mean(other, stage, column) for other in healthy]
                width = max(band) - min(band) + 0.15 * max(band)
                far = min(abs(mean(name, stage, column) - x) for x in band)
                outside += [(stage, column)] if far > width else []
        assert outside, name


# ---------------------------------------------------------------------------------- from make to a class


def test_from_make_to_grade(tmp_path):
    """As a student does it: the empty tree has no points, our functions have all of them."""
    tree = tmp_path / "mine"
    assert "turn_rewards" in script("course/make.py", "A2", f"--to={tree}")
    assert "exists" in script("course/make.py", "A2", f"--to={tree}")
    assert not any((tree / name).exists() for name in ("course", "tests", "experiments"))
    assert "write turn_rewards here" in (tree / "rewards.py").read_text(encoding="utf-8")
    assert "--check=1" in (tree / ".github/workflows/classroom.yml").read_text(encoding="utf-8")
    assert script("course/grade.py", "A2", tree).startswith("A2: 0 of 6 points")
    for file in ("rewards.py", "train.py"):
        shutil.copy(ROOT / file, tree)
    results = tmp_path / "results.json"
    assert script("course/grade.py", "A2", tree, f"--gradescope={results}").startswith("A2: 6 of 6 points")
    found = json.loads(results.read_text(encoding="utf-8"))
    assert found["score"] == 6 == sum(test["score"] for test in found["tests"])
    assert {"name", "score", "max_score", "output"} == found["tests"][0].keys()
    assert "--student" in script("course/make.py", "A6", f"--to={tmp_path / 'a6'}")
    assert "no folder" in script("course/grade.py", "A2", tmp_path / "nowhere")


def test_a_class_has_secrets_folders_and_a_table(tmp_path):
    names, secret = tmp_path / "names", tmp_path / "secret"
    names.write_text("Noor Jansen\nZoë\n", encoding="utf-8")
    said = script("course/make.py", f"--class={tmp_path / 'class'}", f"--secret={secret}", f"--names={names}")
    assert "teacher" in said and len(secret.read_text()) > 30
    students, teacher = tmp_path / "class/students", tmp_path / "class/teacher"
    with open(teacher / "bugs.csv", encoding="utf-8") as file:
        table = {row["student"]: row for row in csv.DictReader(file)}
    bug = bugs.silent_bug("noor jansen", secret.read_text().strip())
    assert table["Noor Jansen"]["A6"] == bug and len(table) == 2
    hunt = teacher / "A6" / "Noor Jansen"
    file = bugs.BUGS[bug]["file"]
    assert (hunt / file).read_text(encoding="utf-8") == bugs.edited(bug, text_of(file))
    assert len(json.loads((hunt / "curves.json").read_text())) == 4 and not (hunt / "tests").exists()
    assert (hunt / "curves.png").stat().st_size > 10_000
    left = [path.name for path in (students / "course").rglob("*")]
    assert "grade.py" in left and not {"bugs.py", "bugs.json", "answers", "curves.json"} & set(left)
    assert not (students / "tests").exists() and "return-of" not in (students / "course/grade.py").read_text()
    assert "your teacher has" in script(
        students / "course/make.py", "A6", "--student=Noor", f"--to={tmp_path / 'x'}"
    )


def test_a_folder_of_submissions_becomes_a_table_and_pages(tmp_path):
    (tmp_path / "ann").mkdir()
    shutil.copy(ROOT / "rollout.py", tmp_path / "ann")
    for name, more in {"bob.zip": 0, "dan.zip": 200_000}.items():
        with zipfile.ZipFile(tmp_path / name, "w") as pack:
            pack.writestr("rollout.py", bugs.edited("mask-of-integers", text_of("rollout.py")))
            pack.writestr("big", "x" * more)
    (tmp_path / "eve.zip").write_bytes(b"no zip")
    assert [r["points"] for r in grade.grade_class("A1", tmp_path, "")] == [6, 4, 0, 0]
    with open(tmp_path / "grades-A1.csv", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [row["student"] for row in rows] == ["ann", "bob", "dan", "eve"] and rows[1]["points"] == "4"
    page = (tmp_path / "bob-A1.md").read_text(encoding="utf-8")
    assert "bool is right" in page and "- question 1: __ of 2" in page and "A1: 4 of 6" in page


# ---------------------------------------------------------------------------------- figures and texts


def test_figures_in_the_handouts_are_those_of_the_results():
    results = json.loads(fill.RESULTS.read_text(encoding="utf-8"))
    assert list(results) == list(fill.RUNS)
    for file, makers in fill.blocks(results).items():
        text = text_of(f"course/{file}")
        assert fill.filled(text, makers) == text, f"{file}: run python course/fill.py"
    assert max(run["seconds"] for run in results.values()) < 120


def test_every_handout_names_its_points_and_functions():
    answers, readme = text_of("course/answers/README.md"), text_of("course/README.md")
    for name, a in ASSIGNMENTS.items():
        text = text_of(f"course/{name}.md")
        assert text.startswith(f"# {name}: {a.title} ({a.points} points)\n")
        assert re.search(rf"\[{name}\].* \| {a.written} \| {a.points} \| {a.hours} \|\n", readme)
        assert all(f"`{hole.partition(':')[2]}`" in text for hole in a.holes)
        given = [int(n) for n in re.findall(r"^\d\. \((\d+) points\)", text, re.MULTILINE)]
        assert sum(given) == a.written
        commands = re.findall(r"^python train\.py .+?(?= +#|$)", text, re.MULTILINE)
        assert set(commands) <= {fill.command(run) for run in fill.RUNS} and (commands or name == "A5")
        for number, of in enumerate(given, 1):  # a level of the rubric for full, some and no points
            levels = re.findall(rf"^\| {name}\.{number} \| (\d+) \|", answers, re.MULTILINE)
            assert len(levels) >= 3 and {int(levels[0]), int(levels[-1])} == {of, 0}, (name, number)


def test_the_notebooks_code_runs_and_its_pictures_are_those_of_the_slides():
    cells = json.loads(text_of("course/walkthrough.ipynb"))["cells"]
    code = "".join("".join(cell["source"]) + "\n" for cell in cells if cell["cell_type"] == "code")
    for full, small in (("UPDATES = 60", "UPDATES = 2"), ("1000", "200")):
        assert full in code
        code = code.replace(full, small)
    code = code.replace("torch.set_num_threads(1)", "pictures.SLIDES = None")  # and none is written
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT / "course", capture_output=True, text=True)
    assert "policy_loss" in done.stdout and "attempt 2" in done.stdout, done.stderr
    drawn = re.findall(r"^pictures\.(\w+)\(", code, re.MULTILINE)
    assert {f"{name}.png" for name in drawn} == {path.name for path in (ROOT / "course/slides").glob("*.png")}
    shown = re.findall(r"\]\(slides/(\w+)\.png\)", text_of("course/slides.md"))
    assert set(shown) <= set(drawn) and len(shown) >= 6


def test_the_project_does_not_need_the_course():
    for path in [*ROOT.glob("*.py"), *(p for d in ("data", "engine") for p in (ROOT / d).rglob("*.py"))]:
        imports = {
            name.partition(".")[0]
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
            if isinstance(node, ast.Import | ast.ImportFrom)
            for name in [*(alias.name for alias in node.names), getattr(node, "module", None) or ""]
        }
        assert not imports & {"course", *(p.stem for p in (ROOT / "course").glob("*.py"))}, path
