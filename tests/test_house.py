"""The house: how long the scripts may be, how wide, and who may import whom. Without this test they grow
again.
"""

import ast
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from experiments.paper_report import Results, cells_of, found

ROOT = Path(__file__).parent.parent
BUDGETS = {  # lines of files, and of the Python in folders
    "rewards.py": 80, "rollout.py": 170, "model.py": 240, "train.py": 330, "eval.py": 220, "README.md": 140,
    "model.py rollout.py rewards.py train.py eval.py": 1000, "engine": 2300, "page": 230, "tests": 8640,
    "model.py rollout.py rewards.py train.py eval.py engine page data experiments course": 9260,
}  # fmt: skip
WIDTH = 110
FOLDERS = ("data", "engine", "page", "experiments", "course", "tests")
SCRIPTS = ("model", "rollout", "rewards", "train", "eval")
MAY_IMPORT = {  # what of this project each part may import, beside itself
    "data": set(),
    "model": {"data"},
    "rollout": {"data", "model", "engine"},
    "rewards": {"data"},
    "train": {"data", "model", "rollout", "rewards", "engine"},
    "eval": {"data", "model", "rollout", "rewards", "train", "engine", "page"},
    "engine": {"data", "model", "rollout"},
    "page": {"data", "model", "engine"},
}


def sources() -> list[Path]:
    tops = [ROOT / f"{name}.py" for name in SCRIPTS]
    return tops + [path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py")]


def imports_of(path: Path) -> set[str]:
    """The first parts of the names that a file imports, also inside functions."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found.add(node.module.partition(".")[0])
    return found


@pytest.mark.parametrize("names", BUDGETS)
def test_each_part_stays_within_its_budget(names):
    paths = [ROOT / name for name in names.split()]
    files = [file for path in paths for file in ([path] if path.is_file() else path.rglob("*.py"))]
    lines = sum(file.read_text(encoding="utf-8").count("\n") for file in files)
    assert lines <= BUDGETS[names], f"{names}: {lines} lines > {BUDGETS[names]}: delete before you add"


def test_the_readme_can_be_read_to_its_end():
    assert len((ROOT / "README.md").read_text(encoding="utf-8").split()) <= 1500


def test_no_line_is_wider_than_a_reader_likes():
    wide = [
        f"{path.relative_to(ROOT)}:{number}"
        for path in sources()
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
        if len(line) > WIDTH
    ]
    assert not wide


def test_imports_run_in_one_direction():
    parts = {*MAY_IMPORT, "experiments", "tests"}
    for part, allowed in MAY_IMPORT.items():
        files = [ROOT / f"{part}.py"] if part in SCRIPTS else (ROOT / part).rglob("*.py")
        for path in files:
            foreign = (imports_of(path) & parts) - allowed - {part}
            assert not foreign, f"{path.relative_to(ROOT)} imports {foreign}"
    assert "model" in imports_of(ROOT / "rollout.py")  # the check sees imports


def test_every_file_is_named_where_a_reader_looks():
    """Each file of engine/ stands in the table of engine/README.md, each script in the README."""
    table = (ROOT / "engine" / "README.md").read_text(encoding="utf-8")
    missing = [path.stem for path in (ROOT / "engine").glob("[a-z]*.py") if f"`{path.stem}`" not in table]
    assert not missing
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert all(f"{name}.py" in readme for name in SCRIPTS)


def test_the_readmes_results_are_those_of_the_runs():
    """Each row of the table and each "Acc@t1 → Acc@t2" below it, from experiments/results/paper.json."""
    rows = json.loads((ROOT / "experiments" / "results" / "paper.json").read_text(encoding="utf-8"))
    results, readme = Results(rows, {}), (ROOT / "README.md").read_text(encoding="utf-8").replace("**", "")
    labels = {"base": "base", "plain": "plain RL", "no_stage1": "without Stage I", "stage1": "after Stage I"}
    labels |= {"score": "SCoRe"}
    for method, label in labels.items():
        assert len(results.of[method]) == 10
        cells = cells_of(results, method, ("acc_t1", "acc_t2", "delta", "fix_rate"))
        cells.append(found(results, method))
        assert f"\n| {label} | {' | '.join(cells)} |\n" in readme, label
    means = [[c.split()[0] for c in cells_of(results, m, ("acc_t1", "acc_t2"))] for m in results.of]
    quoted = re.findall(r"([\d.]+)\s→\s([\d.]+)", readme.split("## Results")[1].split("\n## ")[0])
    assert quoted and all(list(pair) in means for pair in quoted), quoted


def test_links_of_the_documents_lead_somewhere():
    for path in [ROOT / "README.md", *(p for folder in FOLDERS for p in (ROOT / folder).rglob("*.md"))]:
        for target in re.findall(r"\]\(([^)#:]+)\)", path.read_text(encoding="utf-8")):
            assert (path.parent / target).exists(), f"{path.relative_to(ROOT)} links to {target}"


ENTERED = """
import json, sys
import torch
import train
from engine.checkpoints import open_run
from engine.run import Run
from engine.settings import parse_args

seen, updates, rolls, log = set(), [], train.rollout_batch, Run.log_and_save


def profile(frame, event, arg):
    code = frame.f_code
    if event == "call" and code.co_filename.startswith(sys.argv[1]) and not code.co_name.startswith("<"):
        seen.add((code.co_filename, code.co_firstlineno))


def rollout_batch(*args):
    updates.append(1)
    sys.setprofile(profile if len(updates) == 2 else None)
    return rolls(*args)


def log_and_save(*args):
    log(*args)
    sys.setprofile(None)


train.rollout_batch, Run.log_and_save = rollout_batch, log_and_save
words = "--base_steps=1 --stage1_steps=3 --stage2_steps=0 --report=false --log_every=1".split()
c, _ = parse_args([f"--out={sys.argv[2]}", *words], train.Config, "")
with open_run(c, "", train.stages) as (c, state):
    train.train(c, state)
torch.save(seen, f"{sys.argv[2]}/seen.pt")
"""


@pytest.mark.slow
def test_a_reader_of_one_update_enters_few_functions(tmp_path):
    """What the default run enters from the second update of Stage I's rollout_batch to the end of its
    log_and_save: functions of the project, their lines, their files.
    """
    command = [sys.executable, "-c", ENTERED, f"{ROOT}/", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    seen, lines = torch.load(tmp_path / "seen.pt"), {}
    for file in {file for file, _ in seen if ".venv" not in file}:
        for node in ast.walk(ast.parse(Path(file).read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef):
                first = min([node.lineno, *(d.lineno for d in node.decorator_list)])
                if (file, first) in seen:
                    lines[file, first] = node.end_lineno - first + 1
    files = {Path(file).relative_to(ROOT) for file, _ in lines}
    in_engine = [file for file, _ in lines if Path(file).parent.name == "engine"]
    found = len(lines), sum(lines.values()), len(files), len(in_engine)
    assert {"train.py", "rollout.py", "model.py", "rewards.py"} <= {str(file) for file in files}
    assert all(n <= most for n, most in zip(found, (50, 560, 10, 14), strict=True)), found


@pytest.mark.slow
def test_the_readmes_reward_works_as_it_stands(tmp_path):
    """The example is put where the README says and trained. Rewards become negative, so the price is paid."""
    for name in ("data", "engine", "page"):
        shutil.copytree(ROOT / name, tmp_path / name)
    for name in SCRIPTS:
        shutil.copy(ROOT / f"{name}.py", tmp_path)
    code = re.search(r"```python\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.S)[1]
    function, option, line = (part.partition("\n")[2] for part in re.split(r"\n(?=# )", code))
    rewards, train = (tmp_path / "rewards.py").read_text(), (tmp_path / "train.py").read_text()
    (tmp_path / "rewards.py").write_text(f"{rewards}\n\n{function}")
    arrow = next(text for text in train.splitlines() if "<- change the reward here" in text)
    train = train.replace(arrow, line.rstrip("\n"))
    train = train.replace("from rewards import ", "from rewards import length_cost, ")
    train = train.replace("    turns: int = option(", f"{option.rstrip()}\n    turns: int = option(", 1)
    (tmp_path / "train.py").write_text(train)
    tiny = "--n_layer=1 --dim=32 --base_steps=2 --base_batch=8 --stage1_steps=1 --stage2_steps=1 --batch=8"
    words = [*tiny.split(), "--device=cpu", "--report=false", "--price=0.5"]
    command = [sys.executable, "train.py", *words]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("reward -") == 2, done.stdout
