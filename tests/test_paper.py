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
from experiments import paper
from experiments.paper import pair_rows, star_rows, vote, vote_curves

pytestmark = pytest.mark.slow  # a small grid is trained for it

TINY = dict(
    stage1_steps=4, stage2_steps=3, eval_n=8, size=2, n_layer=1, dim=32, base_steps=6, base_batch=16,
    batch=16, micro_batch=16, max_new=11, save_every=1,
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
    return torch.tensor([[sum(map(ord, text)) % 2 == 0 for text in row] for row in texts]), {}


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


def test_majority_vote():
    assert vote([("a", False), ("b", True), ("b", True)])
    assert not vote([("a", False), ("a", False), ("b", True)])
    assert vote([("b", True), ("a", False)]) and not vote([("a", False), ("b", True)])  # a tie: the first
    assert vote([("b", True), ("b", True), ("b", False)])  # the last was cut off


def test_vote_curves_count_attempts_and_tokens(monkeypatch):
    """One problem, four dialogues, in groups of K first attempts or of K / 2 corrected ones."""
    monkeypatch.setattr(paper, "SAMPLES", 4)
    monkeypatch.setattr(paper, "BUDGETS", (2, 4))
    dialogues = (["4", "5"], ["7", "4"], ["7", "4"], ["4", "4"])
    samples = [(A, texts, [t == "4" for t in texts]) for texts in dialogues]
    # K = 2: the first attempts are 4,7 | 7,4, and of a tie the first counts; corrected: 5 | 4 | 4 | 4
    two = {"k": 2, "parallel": 0.5, "parallel tokens": 2.0, "corrected": 0.75, "corrected tokens": 2.0}
    # K = 4: 4,7,7,4 is a tie that 4 wins; corrected: 5,4 | 4,4
    four = {"k": 4, "parallel": 1.0, "parallel tokens": 4.0, "corrected": 0.5, "corrected tokens": 4.0}
    assert vote_curves(samples, len, str) == [two, four]


def test_interval_of_a_known_case():
    """Five values: t(4) = 2.776 times the standard error, here sqrt(2.5 / 5)."""
    report = pytest.importorskip("experiments.paper_report")
    mean, half = report.interval([1.0, 2.0, 3.0, 4.0, 5.0])
    assert mean == 3.0 and half == pytest.approx(2.776 * math.sqrt(0.5), rel=2e-3)
    assert math.isnan(report.interval([1.0])[1])
    assert report.cell([0.1, 0.3], signed=True) == "+20.0 ± 127.1"
    assert report.cell([0.5]) == "50.0" and report.cell([None]) == "–"


def test_problems_and_transitions_are_counted_by_level():
    nine = Problem("9/3", "3")
    traces = [(nine, ["9", "3"], [False, True]), *[(A, ["x"] * 2, [True, False])] * 2, TRACES[1]]
    assert paper.by_level(load_task("division"), traces) == {"2": [3, 3, 0, 2], "3": [1, 0, 1, 0]}


def test_edit_distances_are_counted_in_twenty_bins():
    """The ratio of "ab" and "ac" is 2 / 4, that of texts without a common character 1: in the last bin."""
    counts = paper.distances([(A, texts, []) for texts in (["ab", "ab"], ["ab", "ac"], ["a", "b"], ["", ""])])
    assert counts == [2, *[0] * 9, 1, *[0] * 8, 1]


def test_own_and_fixed_mistakes_are_compared_on_the_same_problems():
    own = [(A, [], right) for right in ([False, True], [False, False], [True, True], [False, True])]
    fixed = [(A, [], right) for right in ([False, False], [False, True], [False, True], [True, True])]
    assert paper.both_wrong(own, fixed) == {"mended own": 0.5, "mended fixed": 0.5, "wrong": 2}
    assert paper.both_wrong(own[:1], fixed[:1]) == {"mended own": 1.0, "mended fixed": 0.0, "wrong": 1}
    assert paper.both_wrong(own[2:3], fixed[2:3]) == {"mended own": None, "mended fixed": None, "wrong": 0}


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
    """The folder of a seed for which every method has run at a tiny size, in this process.

    The run "fork" has SCoRe's own settings but starts from its Stage I.
    """
    out, threads, grid = tmp_path_factory.mktemp("grid"), torch.get_num_threads(), paper.grid
    with pytest.MonkeyPatch.context() as settings:
        settings.setitem(paper.GRIDS, "test", TINY)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(paper, "SAMPLES", 4)
            patch.setattr(paper, "BUDGETS", (2, 4))
            patch.setattr(evaluation, "correctness", parity)
            patch.setattr(train, "correctness", parity)
            patch.setattr(paper, "grid", lambda kind: grid(kind) | {"fork": paper.Method("", {}, "stage1")})
            for name in paper.grid("test"):
                paper.run("test", str(out), name, 0, "abc")
        torch.set_num_threads(threads)
        yield out


def test_runs_share_what_they_start_from(whole_grid):
    seed, methods = whole_grid / "seed0", paper.grid("test")

    def same(a, b):
        first, second = (load(seed / name)["model"] for name in (a, b))
        return first.keys() == second.keys() and all(torch.equal(first[k], second[k]) for k in first)

    for name, method in methods.items():
        if method.trained and not method.traces and name != "base":
            assert same(f"{name}/base.pt", "base/base.pt"), name  # the reference of every run
    assert same("fork/stage2.pt", "score/stage2.pt")  # so forks differ by their settings alone
    for name in ("no_bonus", "gamma=1", "alpha=30"):  # they share Stage I; Stage II is their own
        assert same(f"{name}/stage1.pt", "score/stage1.pt")
        assert not same(f"{name}/stage2.pt", "score/stage2.pt")
        metrics = json_lines(seed / name / "metrics.jsonl")
        assert [row["stage"] for row in metrics] == ["stage1"] * 4 + ["stage2"] * 3
        assert metrics[:4] == json_lines(seed / "score" / "metrics.jsonl")[:4]
    for number in (1, 3):
        assert same(f"star_two/round{number}/base.pt", "score/stage1.pt")
    assert same("star/round3/base.pt", "base/base.pt")
    assert not same("star/round1/imitate.pt", "star/round2/imitate.pt")


def test_every_method_makes_its_updates_on_training_problems(whole_grid):
    seed, other = whole_grid / "seed0", {"base": 6, "stage1": 0, "self_refine": 0}
    other |= {"star": 6, "star+": 6, "star_two": 3}  # 7 is not divisible by 3 or 2
    for name in paper.grid("test"):
        rows = [row for path in (seed / name).rglob("metrics.jsonl") for row in json_lines(path)]
        assert len(rows) == other.get(name, 28 if name.endswith("_x4") else 7), name
    for traces in seed.rglob("round*.jsonl"):
        prompts = [row["prompt"] for row in json_lines(traces)]
        assert prompts and not any(is_held_out(prompt, 0) for prompt in prompts), traces


def test_every_method_is_measured(whole_grid):
    results = {name: result_of(whole_grid / "seed0" / name) for name in paper.grid("test")}
    parts = {"greedy", "sampled", "training", "distances", "levels", "swap", "fixed"}
    for name, result in results.items():
        assert parts <= result.keys() and sum(result["distances"]["held-out"]) == 8, name
    assert results["self_refine"]["greedy"]["acc_t1"] == results["base"]["greedy"]["acc_t1"]
    assert results["stage1"]["fixed"]["acc_t1"] == results["base"]["greedy"]["acc_t1"]  # the base's attempts
    for name in ("score", "pair"):  # every second update, and the ends of the stages
        assert [row["update"] for row in results[name]["kept"]] == [0, 2, 4, 6, 7]
    assert len(results["score"]["greedy"]["acc"]) == 10 and len(results["score"]["votes"]) == 2


def test_the_report_is_written(whole_grid, tmp_path):
    pytest.importorskip("matplotlib")
    from experiments.paper_report import write_report

    labels = {name: method.label for name, method in paper.grid("test").items()}
    ignored = shutil.ignore_patterns("fork", "*.pt")
    out = Path(shutil.copytree(whole_grid, tmp_path / "out", ignore=ignored))
    rows = paper.gather_results(out, tmp_path / "paper.json")
    assert len(rows) == len(labels) and all(row["commit"] == "abc" for row in rows)
    assert paper.gather_results(out / "nothing", tmp_path / "paper.json") == rows  # old ones stay
    text = write_report(rows, labels, tmp_path).read_text(encoding="utf-8")
    assert "| SCoRe without the bonus |" in text and "nan" not in text
    pictures = [line.split("](")[1].rstrip(")") for line in text.splitlines() if line.startswith("![")]
    assert len(pictures) == 8 and all((tmp_path / picture).exists() for picture in pictures)
    assert write_report([row for row in rows if row["method"] in ("base", "score", "both")], labels, tmp_path)
    with pytest.raises(ValueError, match="no result yet of"):
        write_report(rows[:1], labels, tmp_path)
    with pytest.raises(ValueError, match="different settings"):
        write_report([*rows, rows[-1] | {"batch": 3}], labels, tmp_path)


def test_a_run_with_other_settings_is_not_resumed(tmp_path, monkeypatch):
    monkeypatch.setitem(paper.GRIDS, "test", TINY)
    c = paper.Config(**TINY, out=str(tmp_path), name="base", report=False, device="cpu")
    (tmp_path / "base").mkdir()
    state = {"config": paper.dataclasses.asdict(c), "gpt": {}, "model": {}, "stage": 0, "step": 0}
    state |= {"optimizers": [], "seconds": 0.0}
    paper.save(tmp_path / "base" / "last.pt", state)
    (tmp_path / "base" / "metrics.jsonl").touch()
    with pytest.raises(ValueError, match="begun with other settings"):
        paper.go_on(paper.dataclasses.replace(c, seed=1))


def run_no_bonus(out: str) -> None:
    """A forked run with a longer Stage II, in a process of its own."""
    paper.GRIDS["test"] = TINY | {"stage2_steps": 30}
    paper.SAMPLES, paper.BUDGETS = 4, (2,)
    paper.run("test", out, "no_bonus", 0)


def test_a_killed_run_goes_on_to_the_same_result(whole_grid, tmp_path):
    """SIGKILL in Stage II of a forked run; the second call gives what an unbroken run gives."""
    for name in ("base", "score"):
        shutil.copytree(whole_grid / "seed0" / name, tmp_path / "seed0" / name)

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
    assert results[0].pop("minutes") >= 0 and results[1].pop("minutes") >= 0
    assert results[0] == results[1]


def test_a_run_takes_the_device_that_it_is_given(tmp_path, monkeypatch):
    monkeypatch.setitem(paper.GRIDS, "test", TINY)
    threads = torch.get_num_threads()
    with pytest.raises(ValueError, match="device='meta' is not available"):
        paper.run("test", str(tmp_path), "base", 0, device="meta")
    torch.set_num_threads(threads)


def test_the_grid_runs_what_is_missing_in_an_order_that_works(tmp_path, monkeypatch, capsys):
    """No run starts before those that it needs. After a failure the next call does the rest."""
    begun = []

    def stub(kind, out, name, seed, commit, device):
        begun.append((name, seed))
        assert device == "cuda"
        needs = ["base"] * (name != "base") + ["score"] * (paper.grid(kind)[name].start == "stage1")
        assert all((Path(out) / f"seed{seed}" / need / "result.json").exists() for need in needs)
        if (name, seed) == ("score", 1) and begun.count((name, seed)) == 1:
            raise ValueError("stopped")
        folder = Path(out) / f"seed{seed}" / name
        folder.mkdir(parents=True)
        (folder / "result.json").write_text("{}", encoding="utf-8")

    monkeypatch.setattr(paper, "ProcessPoolExecutor", lambda workers, mp_context: ThreadPoolExecutor(workers))
    monkeypatch.setattr(paper, "run", stub)
    jobs, methods = paper.jobs_of("full", [0, 1, 2, 3]), paper.grid("full")
    assert {method.seeds for method in methods.values()} == {5, 3, 1}
    assert len(jobs) == len(set(jobs)) == sum(min(4, method.seeds) for method in methods.values())
    assert not paper.run_all("full", tmp_path, [0, 1], [], 3, "cuda")
    missing = {("score", 1)} | {(name, 1) for name, method in methods.items() if method.start == "stage1"}
    said, why = capsys.readouterr().out, "the run that it starts from failed"
    assert "seed 1 score: ValueError('stopped')" in said and said.count(why) == len(missing) - 1
    before = len(begun)
    assert set(begun) - {("score", 1)} == set(paper.jobs_of("full", [0, 1])) - missing
    assert before == len(set(begun))
    assert paper.run_all("full", tmp_path, [0, 1], [], 3, "cuda")
    assert set(begun[before:]) == missing and len(begun) == before + len(missing)
    assert not paper.run_all("full", tmp_path, [2], ["no_bonus"], 3, "cuda")  # its base is not there
    assert f"seed 2 no_bonus: {why}, or --methods leaves it out" in capsys.readouterr().out
