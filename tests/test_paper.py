"""experiments/paper.py: its parts on cases made by hand, all methods at a tiny size, a kill, the order."""

import json
import math
import shutil
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from random import Random

import pytest
import torch
from scripts import LOADED

import eval as evaluation
import train
from data import Problem, is_held_out, load_task
from engine.checkpoints import load
from engine.report import FAILURES
from experiments import paper
from experiments.paper import pair_rows, star_rows

pytestmark = pytest.mark.slow  # a small grid is trained for it

TINY = dict(
    n_layer=1, dim=32, base_steps=6, base_batch=16, batch=16, micro_batch=16, eval_n=12, train_n=20,
    samples_per_problem=2, save_every=1,
)  # fmt: skip
A, B = Problem("8/2", "4"), Problem("6/2", "3")
TRACES = [
    (A, ["5", "4"], [False, True]),  # from wrong to right
    (A, ["4", "4*"], [True, True]),  # right twice
    (A, ["4", "5"], [True, False]),  # from right to wrong
    (A, ["6", "7"], [False, False]),
    (B, ["9", "3"], [False, True]),
]


def parity(task, problems, texts, ended):
    """In the place of `correctness`: right is a text with an even sum of character codes.

    A model as tiny as these is never right.
    """
    right = torch.tensor([[sum(map(ord, text)) % 2 == 0 for text in row] for row in texts])
    return right, dict.fromkeys(FAILURES, 0.0)


def test_star_keeps_what_went_from_wrong_to_right():
    assert star_rows(TRACES, plus=False) == [(A, "5", "4"), (B, "9", "3")]
    assert star_rows(TRACES, plus=True) == [(A, "5", "4"), (A, "4", "4*"), (B, "9", "3")]


def test_pairs_are_of_one_problem_and_end_right():
    """Problem B has no right first attempt, so it has no pair."""
    firsts = [(problem, texts[:1], right[:1]) for problem, texts, right in TRACES]
    wrong_first = [(A, "5", "4"), (A, "6", "4")]
    assert pair_rows(firsts, plus=False, rng=Random(0)) == wrong_first
    all_rows = [wrong_first[0], (A, "4", "4"), (A, "4", "4"), wrong_first[1]]
    assert pair_rows(firsts, plus=True, rng=Random(0)) == all_rows


def test_interval_of_a_known_case():
    """Five values: t(4) = 2.776 times the standard error, here sqrt(2.5 / 5)."""
    report = pytest.importorskip("experiments.paper_report")
    mean, half = report.interval([1.0, 2.0, 3.0, 4.0, 5.0])
    assert mean == 3.0 and half == pytest.approx(2.776 * math.sqrt(0.5), rel=2e-3)
    assert math.isnan(report.interval([1.0])[1])
    assert report.cell([0.1, 0.3], signed=True) == "+20.0 ± 127.1"
    assert report.cell([0.5]) == "50.0" and report.cell([None]) == "–"


def test_problems_and_transitions_are_counted_by_level():
    easy, hard = Problem("3*4C7", "7"), Problem("2C3*4+5", "7")
    traces = [(easy, ["1", "7"], [False, True]), *[(hard, ["x"] * 2, [True, False])] * 2]
    assert paper.by_level(load_task("calculator"), traces) == {"0": [1, 0, 1, 0], "2": [2, 2, 0, 2]}


def test_differences_are_paired_by_seed():
    report = pytest.importorskip("experiments.paper_report")
    values = (("a", 0, 5), ("a", 1, 7), ("b", 1, 4), ("b", 2, 0))
    rows = [{"method": m, "seed": s, "x": x} for m, s, x in values]
    assert report.Results(rows, {}).paired("a", "b", "x").tolist() == [3]


def json_lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def result_of(folder: Path) -> dict:
    return json.loads((folder / "result.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def whole_grid(tmp_path_factory):
    """The folder of a seed for which every method has run at a tiny size, in this process."""
    out, threads = tmp_path_factory.mktemp("grid"), torch.get_num_threads()
    with pytest.MonkeyPatch.context() as settings:
        settings.setattr(paper, "QUICK", (TINY, (4, 3)))
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(evaluation, "correctness", parity)
            patch.setattr(train, "correctness", parity)
            for name in paper.methods_of("quick"):
                paper.run("quick", str(out), name, 0, "abc")
        torch.set_num_threads(threads)
        yield out


def test_runs_share_what_they_start_from(whole_grid):
    seed, methods = whole_grid / "seed0", paper.methods_of("quick")

    def same(a, b):
        first, second = (load(seed / name)["model"] for name in (a, b))
        return first.keys() == second.keys() and all(torch.equal(first[k], second[k]) for k in first)

    for name, method in methods.items():
        if method.trained and not method.traces and name != "base":
            assert same(f"{name}/base.pt", "base/base.pt"), name  # the reference of every run
    for name in ("no_bonus", "gamma=1", "gamma=0.05", "no_bonus_kl"):  # Stage I is SCoRe's, bit by bit
        assert same(f"{name}/stage1.pt", "score/stage1.pt")
        assert not same(f"{name}/stage2.pt", "score/stage2.pt")
    for name in ("plain", "score"):
        assert not same(f"{name}_outcome/stage2.pt", f"{name}/stage2.pt")  # another baseline
    for number in (1, 3):
        assert same(f"star_two/round{number}/base.pt", "score/stage1.pt")
    assert same("star/round3/base.pt", "base/base.pt")
    assert not same("star/round1/imitate.pt", "star/round2/imitate.pt")


def test_every_method_makes_its_updates_on_training_problems(whole_grid):
    seed, other = whole_grid / "seed0", {"base": 6, "stage1": 0, "self_refine": 0}
    other |= {"star": 6, "star+": 6, "star_two": 3}  # 7 is not divisible by 3
    for name in paper.methods_of("quick"):
        rows = [row for path in (seed / name).rglob("metrics.jsonl") for row in json_lines(path)]
        assert len(rows) == other.get(name, 7), name
    for traces in seed.rglob("round*.jsonl"):
        prompts = [row["prompt"] for row in json_lines(traces)]
        assert 0 < len(set(prompts)) <= 20 and not any(is_held_out(prompt, 0) for prompt in prompts), traces


def test_every_method_is_measured(whole_grid):
    results = {name: result_of(whole_grid / "seed0" / name) for name in paper.methods_of("quick")}
    for name, result in results.items():
        assert {"greedy", "sampled", "training", "levels", "swap", "curve"} <= result.keys(), name
        assert result["greedy"]["n"] == 12 and sum(row[0] for row in result["levels"].values()) == 12
    assert results["self_refine"]["greedy"]["acc_t1"] == results["base"]["greedy"]["acc_t1"]
    assert len(results["base"]["curve"]["acc_t1"]) == 0 < len(results["score"]["curve"]["acc_t1"])


def test_the_reports_are_written(whole_grid, tmp_path):
    pytest.importorskip("matplotlib")
    from experiments.paper_report import write_report

    labels = {name: method.label for name, method in paper.methods_of("quick").items()}
    out = Path(shutil.copytree(whole_grid, tmp_path / "out", ignore=shutil.ignore_patterns("*.pt")))
    rows = paper.gather_results(out, tmp_path / "paper.json")
    assert len(rows) == len(labels) and all(row["commit"] == "abc" for row in rows)
    assert paper.gather_results(out / "nothing", tmp_path / "paper.json") == rows  # old ones stay
    text = write_report("quick", rows, labels, tmp_path).read_text(encoding="utf-8")
    assert "| without the bonus |" in text and "nan" not in text
    pictures = [line.split("](")[1].rstrip(")") for line in text.splitlines() if line.startswith("![")]
    assert len(pictures) == 2 and all((tmp_path / picture).exists() for picture in pictures)
    few = [row for row in rows if row["method"] in ("base", "score", "plain")]
    assert write_report("quick", few, labels, tmp_path)
    with pytest.raises(ValueError, match="no result yet of"):
        write_report("quick", rows[:1], labels, tmp_path)
    with pytest.raises(ValueError, match="different settings"):
        write_report("quick", [*rows, rows[-1] | {"batch": 3}], labels, tmp_path)
    for kind, method, file in (("map", "plain", "map.png"), ("tune", "plain", "tuning.md")):
        labels = {name: m.label for name, m in paper.methods_of(kind).items()}
        names = [name for name in labels if name.startswith(method)]
        same = next(row for row in rows if row["method"] == method)
        page = write_report(kind, [same | {"method": name} for name in names], labels, tmp_path)
        assert (tmp_path / file).exists() and page.exists()


def test_a_run_with_other_settings_is_not_resumed(tmp_path):
    c = paper.Config(**TINY, out=str(tmp_path), name="base", report=False, device="cpu", stage1_steps=0)
    c = paper.dataclasses.replace(c, stage2_steps=0)
    paper.go_on(c)
    with pytest.raises(ValueError, match="begun with other settings"):
        paper.go_on(paper.dataclasses.replace(c, seed=1))


def run_no_bonus(out: str) -> None:
    """A run with a longer Stage II, in a process of its own."""
    paper.QUICK = TINY, (4, 30)
    paper.run("quick", out, "no_bonus", 0)


def test_a_killed_run_goes_on_to_the_same_result(whole_grid, tmp_path):
    """SIGKILL in Stage II; the second call gives what an unbroken run gives."""
    shutil.copytree(whole_grid / "seed0" / "base", tmp_path / "seed0" / "base")

    def start():
        process = LOADED.Process(target=run_no_bonus, args=(str(tmp_path),))
        process.start()
        return process

    def run_to_the_end():
        process = start()
        process.join(300)
        assert process.exitcode == 0

    run_to_the_end()
    folder = tmp_path / "seed0" / "no_bonus"
    whole = folder.rename(folder.with_name("whole"))
    killed, log = start(), folder / "metrics.jsonl"
    deadline = time.time() + 300
    while not (log.exists() and len(log.read_text(encoding="utf-8").splitlines()) > 4 + 5):
        assert killed.is_alive() and time.time() < deadline
        time.sleep(0.001)
    killed.kill()
    killed.join()
    assert not (folder / "result.json").exists()
    run_to_the_end()
    results = [result_of(f) for f in (whole, folder)]
    for result in results:
        assert result.pop("seconds") >= 0 and result.pop("seconds of evaluation") >= 0
    assert results[0] == results[1]


def test_the_grid_runs_what_is_missing_in_an_order_that_works(tmp_path, monkeypatch, capsys):
    """No run starts before the one that it starts from. After a failure the next call does the rest."""
    begun, methods = [], paper.methods_of("full")

    def stub(kind, out, name, seed, commit, device):
        begun.append((name, seed))
        assert device == "cuda"
        need = paper.needs(methods[name])
        assert not need or (Path(out) / f"seed{seed}" / need / "result.json").exists()
        if (name, seed) == ("score", 1) and begun.count((name, seed)) == 1:
            raise ValueError("stopped")
        folder = Path(out) / f"seed{seed}" / name
        folder.mkdir(parents=True)
        (folder / "result.json").write_text("{}", encoding="utf-8")

    monkeypatch.setattr(paper, "ProcessPoolExecutor", lambda workers, mp_context: ThreadPoolExecutor(workers))
    monkeypatch.setattr(paper, "run", stub)
    every = {(name, seed) for name in methods for seed in (0, 1)}
    assert not paper.run_all("full", tmp_path, [0, 1], [], 3, "cuda")
    missing = {("score", 1)} | {(name, 1) for name, m in methods.items() if paper.needs(m) == "score"}
    said, why = capsys.readouterr().out, "the run that it starts from failed"
    assert "seed 1 score: ValueError('stopped')" in said and said.count(why) == len(missing) - 1
    before = len(begun)
    assert set(begun) - {("score", 1)} == every - missing and before == len(set(begun))
    assert paper.run_all("full", tmp_path, [0, 1], [], 3, "cuda")
    assert set(begun[before:]) == missing and len(begun) == before + len(missing)
    assert not paper.run_all("full", tmp_path, [2], ["no_bonus"], 3, "cuda")  # its base is not there
    assert f"seed 2 no_bonus: {why}, or --methods leaves it out" in capsys.readouterr().out
