"""The grid of experiments/paper.py: filters, votes and intervals on hand-made cases, every method at smoke size, a kill."""

import json
import math
import os
import shutil
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from random import Random

import pytest
import torch

import eval as evaluation
import train
from data import Problem, is_held_out, load_task
from experiments import paper
from experiments.paper import pair_rows, star_rows, vote, vote_curves

ROOT = Path(__file__).parent.parent
TINY = dict(stage1_steps=4, stage2_steps=3, eval_n=8, size=2, n_layer=1, dim=32, base_steps=6, base_batch=16, batch=16,
            micro_batch=16, max_new=8, save_every=1)  # fmt: skip
A, B = Problem("8/2", "4"), Problem("6/2", "3")
TRACES = [
    (A, ["5", "4"], [False, True]),  # mended
    (A, ["4", "4*"], [True, True]),  # kept
    (A, ["4", "5"], [True, False]),  # spoilt
    (A, ["6", "7"], [False, False]),
    (B, ["9", "3"], [False, True]),
]


def parity(task, problems, texts, ended):
    """So small a model is never right; the parity of an attempt's characters stands for it."""
    return torch.tensor([[sum(map(ord, text)) % 2 == 0 for text in row] for row in texts]), {}


def test_star_keeps_what_went_from_wrong_to_right():
    assert star_rows(TRACES, plus=False) == [(A, "5", "4"), (B, "9", "3")]
    assert star_rows(TRACES, plus=True) == [(A, "5", "4"), (A, "4", "4*"), (B, "9", "3")]


def test_pairs_are_of_one_problem_and_end_right():
    """Problem B has no right first attempt, so it has no pair."""
    firsts = [(problem, texts[:1], right[:1]) for problem, texts, right in TRACES]
    assert pair_rows(firsts, plus=False, rng=Random(0)) == [(A, "5", "4"), (A, "6", "4")]
    assert pair_rows(firsts, plus=True, rng=Random(0)) == [(A, "5", "4"), (A, "4", "4"), (A, "4", "4"), (A, "6", "4")]


def test_majority_vote():
    assert vote([("a", False), ("b", True), ("b", True)])
    assert not vote([("a", False), ("a", False), ("b", True)])
    assert vote([("b", True), ("a", False)]) and not vote([("a", False), ("b", True)])  # a tie: the first
    assert vote([("b", True), ("b", True), ("b", False)])  # the last was cut off


def test_vote_curves_count_attempts_and_tokens(monkeypatch):
    """One problem, four dialogues: K first attempts against K / 2 corrected ones, over all groups of K."""
    monkeypatch.setattr(paper, "SAMPLES", 4)
    monkeypatch.setattr(paper, "BUDGETS", (2, 4))
    samples = [(A, texts, [t == "4" for t in texts]) for texts in (["4", "5"], ["7", "4"], ["7", "4"], ["4", "4"])]
    two, four = vote_curves(samples, len, str)
    # K = 2: first attempts 4,7 | 7,4, the first of a tie counts; one corrected each: 5 | 4 | 4 | 4
    assert two == {"k": 2, "parallel": 0.5, "parallel tokens": 2.0, "corrected": 0.75, "corrected tokens": 2.0}
    # K = 4: 4,7,7,4 is a tie that 4 wins; two corrected each: 5,4 | 4,4
    assert four == {"k": 4, "parallel": 1.0, "parallel tokens": 4.0, "corrected": 0.5, "corrected tokens": 4.0}


def test_interval_of_a_known_case():
    """Five values: t(4) = 2.776 times the standard error, here sqrt(2.5 / 5)."""
    report = pytest.importorskip("experiments.paper_report")
    mean, half = report.interval([1.0, 2.0, 3.0, 4.0, 5.0])
    assert mean == 3.0 and half == pytest.approx(2.776 * math.sqrt(0.5), rel=2e-3)
    assert math.isnan(report.interval([1.0])[1])
    assert report.cell([0.1, 0.3], signed=True) == "+20.0 ± 127.1" and report.cell([0.5]) == "50.0" and report.cell([None]) == "–"


def test_problems_and_transitions_are_counted_by_level():
    task = load_task("division")
    traces = [(p, texts, right) for p, texts, right in TRACES if p == B] + [(A, ["x"] * 2, [True, False])] * 2 + TRACES[1:2]
    traces[0] = (Problem("9/3", "3"), *traces[0][1:])
    assert paper.by_level(task, traces) == {"2": [3, 3, 0, 2], "3": [1, 0, 1, 0]}


def test_own_and_fixed_mistakes_are_compared_on_the_same_problems():
    own = [(A, [], right) for right in ([False, True], [False, False], [True, True], [False, True])]
    fixed = [(A, [], right) for right in ([False, False], [False, True], [False, True], [True, True])]
    assert paper.both_wrong(own, fixed) == {"mended own": 0.5, "mended fixed": 0.5, "wrong": 2}
    assert paper.both_wrong(own[:1], fixed[:1]) == {"mended own": 1.0, "mended fixed": 0.0, "wrong": 1}
    assert paper.both_wrong(own[2:3], fixed[2:3]) == {"mended own": None, "mended fixed": None, "wrong": 0}


def test_differences_are_paired_by_seed():
    report = pytest.importorskip("experiments.paper_report")
    rows = [{"method": m, "seed": s, "x": x} for m, s, x in (("a", 0, 5), ("a", 1, 7), ("b", 1, 4), ("b", 2, 0))]
    assert report.Results(rows, {}).paired("a", "b", lambda row: row["x"]) == [3]


def test_every_method_runs_and_the_report_is_written(tmp_path, monkeypatch):
    """Smoke size, in this process; then tables and pictures of it."""
    monkeypatch.setitem(paper.GRIDS, "test", TINY)
    monkeypatch.setattr(paper, "SAMPLES", 4)
    monkeypatch.setattr(paper, "BUDGETS", (2, 4))
    monkeypatch.setattr(evaluation, "correctness", parity)
    monkeypatch.setattr(train, "correctness", parity)
    threads = torch.get_num_threads()
    same_again = paper.Method("SCoRe again", {}, "stage1")
    real = paper.grid
    monkeypatch.setattr(paper, "grid", lambda kind: real(kind) | {"fork": same_again})
    for name in paper.grid("test"):
        paper.run("test", str(tmp_path), name, 0, "abc")
    monkeypatch.setattr(paper, "grid", real)
    torch.set_num_threads(threads)
    seed = tmp_path / "seed0"

    def weights(name):
        return train.load(seed / name)["model"]

    def same(a, b):
        return all(torch.equal(weights(a)[k], weights(b)[k]) for k in weights(a))

    methods = paper.grid("test")
    results = {name: json.loads((seed / name / "result.json").read_text()) for name in methods}
    for name in methods:
        assert {"greedy", "sampled", "training", "distances", "levels", "swap", "fixed"} <= results[name].keys()
        assert sum(results[name]["distances"]["held-out"]) == 8
        if methods[name].trained and not methods[name].traces and name != "base":
            assert same(f"{name}/base.pt", "base/base.pt"), name  # the reference of every run
    assert same("fork/stage2.pt", "score/stage2.pt")  # what differs between forks is their settings alone
    for name in ("no_bonus", "gamma=1", "alpha=3"):  # Stage I is shared, Stage II is their own
        assert same(f"{name}/stage1.pt", "score/stage1.pt") and not same(f"{name}/stage2.pt", "score/stage2.pt")
        stages = [json.loads(row)["stage"] for row in (seed / name / "metrics.jsonl").read_text().splitlines()]
        assert stages == ["stage1"] * 4 + ["stage2"] * 3
    assert same("star_two/round1/base.pt", "score/stage1.pt") and same("star_two/round3/base.pt", "score/stage1.pt")
    assert same("star/round3/base.pt", "base/base.pt") and not same("star/round1/imitate.pt", "star/round2/imitate.pt")
    for traces in seed.rglob("round*.jsonl"):
        prompts = [json.loads(line)["prompt"] for line in traces.read_text().splitlines()]
        assert prompts and not any(is_held_out(prompt, 0) for prompt in prompts), traces
    for name in methods:
        rows = [json.loads(row) for path in (seed / name).rglob("metrics.jsonl") for row in path.read_text().splitlines()]
        rounds = {"base": 6, "stage1": 0, "self_refine": 0, "star": 6, "star+": 6, "star_two": 3, "score3": 11, "interleaved": 6}
        assert len(rows) == rounds.get(name, 7), name
    assert results["self_refine"]["greedy"]["acc_t1"] == results["base"]["greedy"]["acc_t1"]
    assert results["stage1"]["fixed"]["acc_t1"] == results["base"]["greedy"]["acc_t1"]  # the base's attempts
    assert [row["update"] for row in results["score"]["kept"]] == [0, 2, 4, 6, 7]  # the ends of the stages among them
    assert [row["update"] for row in results["pair"]["kept"]] == [0, 2, 4, 6, 7]
    assert len(results["score3"]["greedy"]["acc"]) == 10 and len(results["score"]["votes"]) == 2

    pytest.importorskip("matplotlib")
    from experiments.paper_report import write_report

    shutil.rmtree(seed / "fork")
    rows = paper.gather_results(tmp_path, tmp_path / "paper.json")
    assert len(rows) == len(methods) == len(paper.gather_results(tmp_path / "nothing", tmp_path / "paper.json"))  # old ones stay
    assert all(row["commit"] == "abc" for row in rows)
    text = write_report(rows, {name: m.label for name, m in methods.items()}, tmp_path).read_text()
    assert "| SCoRe without the bonus |" in text and "nan" not in text
    three = [row for row in rows if row["method"] in ("base", "score", "both")]
    assert write_report(three, {name: m.label for name, m in methods.items()}, tmp_path)
    for few, words in ((rows[:1], "no result yet of"), ([*rows, rows[-1] | {"batch": 3}], "different settings")):
        with pytest.raises(ValueError, match=words):
            write_report(few, {name: m.label for name, m in methods.items()}, tmp_path)
    assert all((tmp_path / line.split("](")[1].rstrip(")")).exists() for line in text.splitlines() if line.startswith("!["))


def test_a_killed_run_goes_on_to_the_same_result(tmp_path):
    """SIGKILL in Stage II of a forked run, in a process of its own; the second call gives what an unbroken one gives."""
    program = f"import sys; import experiments.paper as p; p.GRIDS['test'] = dict({TINY!r}, stage2_steps=30); p.SAMPLES = 4; " \
              "p.BUDGETS = (2,); [p.run('test', sys.argv[1], name, 0) for name in sys.argv[2:]]"  # fmt: skip
    environment = os.environ | {"PYTHONPATH": str(ROOT)}

    def start(*words):
        return subprocess.Popen([sys.executable, "-c", program, str(tmp_path), *words], cwd=ROOT, env=environment)

    assert start("base", "score", "no_bonus").wait(120) == 0
    folder = tmp_path / "seed0" / "no_bonus"
    whole = folder.rename(folder.with_name("whole"))
    killed, log = start("no_bonus"), folder / "metrics.jsonl"
    deadline = time.time() + 60
    while not (log.exists() and len(log.read_text().splitlines()) > 4 + 5):
        assert killed.poll() is None and time.time() < deadline
        time.sleep(0.001)
    os.kill(killed.pid, signal.SIGKILL)
    killed.wait()
    assert not (folder / "result.json").exists()
    assert start("no_bonus").wait(120) == 0
    results = [json.loads((f / "result.json").read_text()) for f in (whole, folder)]
    assert results[0].pop("minutes") >= 0 and results[1].pop("minutes") >= 0
    assert results[0] == results[1]


def test_the_grid_runs_what_is_missing_in_an_order_that_works(tmp_path, monkeypatch, capsys):
    """Nothing starts before what it starts from; a failure is named, with those that need it; the next call does the rest."""
    begun = []

    def stub(kind, out, name, seed, commit):
        begun.append((name, seed))
        needs = ["base"] * (name != "base") + ["score"] * (paper.grid(kind)[name].start == "stage1")
        assert all((Path(out) / f"seed{seed}" / need / "result.json").exists() for need in needs)
        if (name, seed) == ("score", 1) and begun.count((name, seed)) == 1:
            raise ValueError("stopped")
        (Path(out) / f"seed{seed}" / name).mkdir(parents=True)
        (Path(out) / f"seed{seed}" / name / "result.json").write_text("{}")

    monkeypatch.setattr(paper, "ProcessPoolExecutor", lambda workers, mp_context: ThreadPoolExecutor(workers))
    monkeypatch.setattr(paper, "run", stub)
    jobs = paper.jobs_of("full", [0, 1, 2, 3])
    few = [name for name, method in paper.grid("full").items() if method.seeds < 5]
    assert len(few) > 9 and len(jobs) == len(set(jobs)) == 4 * len(paper.grid("full")) - len(few)  # three seeds of the sweeps
    assert not paper.run_all("full", tmp_path, [0, 1], [], 3)
    missing = {("score", 1)} | {(name, 1) for name, method in paper.grid("full").items() if method.start == "stage1"}
    said = capsys.readouterr().out
    assert "seed 1 score: ValueError('stopped')" in said and said.count("the run that it starts from failed") == len(missing) - 1
    before = len(begun)
    assert set(begun) - {("score", 1)} == set(paper.jobs_of("full", [0, 1])) - missing and before == len(set(begun))
    assert paper.run_all("full", tmp_path, [0, 1], [], 3)
    assert set(begun[before:]) == missing and len(begun) == before + len(missing)
    assert not paper.run_all("full", tmp_path, [2], ["no_bonus"], 3)  # what it starts from is not there
    assert "seed 2 no_bonus: the run that it starts from failed, or --methods leaves it out" in capsys.readouterr().out
