"""The scripts as a user runs them: pipeline, kill and resume, determinism, bad input."""

import dataclasses
import json
import os
import signal
import sys
import time
from types import SimpleNamespace

import pytest
import torch
from run_files import even, metrics, same, weights
from scripts import ROOT, finish, script, start

import train
from data import load_task, train_problems
from engine.build import pick_device
from engine.presets import PRESETS
from engine.settings import EvalOptions
from train import Config, load_model

TINY = [
    "--size=2", "--base_steps=6", "--base_batch=8", "--stage1_steps=5", "--stage2_steps=5", "--batch=16",
    "--micro_batch=5", "--save_every=2", "--log_every=2", "--eval_n=20", "--device=cpu",
]  # fmt: skip
SIZES = ["--n_layer=1", "--dim=32"]


def run_here(tmp_path, monkeypatch, name, *extra):
    """train.py in this process, quietly, without its report."""
    sizes = [] if any("--init" in word for word in extra) else SIZES
    words = [*TINY, *sizes, f"--out={tmp_path}", f"--name={name}", "--report=false", *extra]
    monkeypatch.setattr(sys, "argv", ["train.py", *words])
    train.main()
    return tmp_path / name


@pytest.mark.slow
def test_smoke_preset_and_report(tmp_path):
    done = script("train.py", "--preset=smoke", f"--out={tmp_path}", "--device=cpu", "--n_layer=1")
    assert done.returncode == 0, done.stderr
    assert "steps/s  ETA" in done.stdout and "KL" in done.stdout
    assert done.stdout.count("(wrong)") > 3  # transcripts
    folder = tmp_path / "smoke"
    names = "config.json metrics.jsonl base.pt stage1.pt stage2.pt last.pt results.json report.md report.html"
    assert {path.name for path in folder.iterdir()} == set(names.split())
    assert json.loads((folder / "config.json").read_text())["n_layer"] == 1
    assert len(metrics(folder)) == 80
    results = json.loads((folder / "results.json").read_text())
    assert list(results) == ["base", "stage1", "stage2"]
    for result in results.values():
        for m in (result["greedy"], result["sampled"], result["training"]):
            assert m["n"] == 50 and m["delta"] == pytest.approx(m["acc_t2"] - m["acc_t1"])
        assert len(result["greedy"]["acc"]) == 5
        assert {"own", "wrong", "near", "other", "right", "n"} <= result["swap"]["wrong_first"].keys()
    assert results["base"]["drift_kl"] == pytest.approx(0, abs=1e-5) and results["stage2"]["drift_kl"] > 1e-4
    report = (folder / "report.md").read_text()
    assert "| stage2 | greedy |" in report and "](report.html)" in report

    checkpoint = folder / "stage2.pt"
    shown = script("eval.py", checkpoint, "--show=3", "--turns=3", "--n=20").stdout
    assert "Acc@t1" in shown and "accuracy after each attempt" in shown and "truncated" not in shown
    cut_off = script("eval.py", checkpoint, "--n=20", "--max_new=1").stdout
    assert "truncated 100.0 %" in cut_off and "one standard error" in cut_off
    posed = script("eval.py", checkpoint, "--problem=8+3C7*3").stdout
    assert "8+3C7*3" in posed and posed.count("(") == 2


@pytest.mark.slow
def test_same_seed_same_run_and_another_seed_another(tmp_path, monkeypatch, capsys):
    a = run_here(tmp_path, monkeypatch, "a")
    torch.manual_seed(99)
    b = run_here(tmp_path, monkeypatch, "b")
    c = run_here(tmp_path, monkeypatch, "c", "--seed=1")
    assert same(weights(a / "stage2.pt"), weights(b / "stage2.pt")) and metrics(a) == metrics(b)
    assert not same(weights(a / "stage2.pt"), weights(c / "stage2.pt"))


def test_a_checkpoint_from_before_a_setting_was_added_has_its_default(tmp_path, monkeypatch, capsys):
    path = run_here(tmp_path, monkeypatch, "base", "--stage1_steps=0", "--stage2_steps=0") / "base.pt"
    content = torch.load(path)
    del content["config"]["alpha"], content["config"]["tokenizer"]
    torch.save(content, path)
    assert load_model(path, "cpu")[1].alpha == Config.alpha


@pytest.mark.slow
@pytest.mark.parametrize("rows, end", [(3, "SIGTERM"), (9, "SIGHUP"), (14, "SIGKILL")])
def test_killed_and_resumed_run_equals_the_unbroken_one(tmp_path, monkeypatch, capsys, rows, end):
    """A real process is killed in each stage and goes on in another: weights, optimiser and metrics bit
    for bit.
    """
    whole = run_here(tmp_path, monkeypatch, "whole")
    process = start("train.py", *TINY, *SIZES, f"--out={tmp_path}", "--name=killed", "--report=false")
    log = tmp_path / "killed" / "metrics.jsonl"
    while not (log.exists() and len(log.read_text().splitlines()) >= rows):
        assert process.is_alive(), "the run ended before it could be killed"
        time.sleep(0.001)
    os.kill(process.pid, getattr(signal, end))
    assert finish(process).returncode == -getattr(signal, end)
    (tmp_path / "killed" / "stage2.pt").unlink(missing_ok=True)
    with open(log, "a") as file:
        file.write('{"stage": "cut in the mid')  # as a power cut may leave it
    resumed = script("train.py", f"--resume={tmp_path / 'killed'}")
    assert resumed.returncode == 0, resumed.stderr
    assert metrics(tmp_path / "killed") == metrics(whole)
    for name in ("base.pt", "stage1.pt", "stage2.pt"):
        assert same(weights(tmp_path / "killed" / name), weights(whole / name)), name


@pytest.mark.slow
def test_options_of_the_paper_run(tmp_path, monkeypatch, capsys):
    """Offline first attempts, RLOO by problem, gamma: each changes the run, none breaks it.

    A base of six steps is never right, and without a reward a policy that is still its reference has a
    gradient of exactly 0.
    """
    monkeypatch.setattr(train, "correctness", even)
    base = weights(run_here(tmp_path, monkeypatch, "plain") / "base.pt")
    plain = weights(tmp_path / "plain" / "stage2.pt")
    traces, problem = tmp_path / "traces.jsonl", train_problems(load_task("division"), 2, 0)(0)
    traces.write_text(json.dumps({"prompt": problem.prompt, "attempts": ["12*6=72<", "14*6=84="]}) + "\n")
    for name, option in [
        ("offline", ["--offline_first"]),
        ("rloo", ["--samples_per_problem=2"]),
        ("gamma", ["--gamma=0.5"]),
        ("single", ["--stage2_weight2=0", "--alpha=0"]),
        ("few", ["--train_n=4"]),
        ("three", ["--turns=3"]),
        ("imitate", [f"--imitate={traces}", "--imitate_steps=3", "--keep_every=2"]),
    ]:
        folder = run_here(tmp_path, monkeypatch, name, f"--init={tmp_path}/plain/base.pt", *option)
        assert not same(weights(folder / "stage2.pt"), plain), name
        assert same(weights(folder / "base.pt"), base)
        config = json.loads((folder / "config.json").read_text())
        assert (config["n_layer"], config["n_head"], config["dim"]) == (1, 4, 32)  # those of its base
    three = metrics(tmp_path / "three")
    assert [row["stage"] for row in three] == ["stage1"] * 5 + ["stage1b"] * 5 + ["stage2"] * 5
    assert "kl_t3" not in three[4]
    assert three[5]["kl_t3"] == pytest.approx(0, abs=1e-6)  # 1(b) begins at its reference
    assert three[10]["kl_t1"] > 1e-6  # Stage II is measured against the base again
    losses = [row["loss"] for row in metrics(tmp_path / "imitate") if row["stage"] == "imitate"]
    assert len(losses) == 3 and losses[2] < losses[0]  # the only trace is learned
    kept = {"imitate.pt", "imitate-2.pt", "stage1-2.pt", "stage1-4.pt", "stage2-4.pt"}
    assert kept <= {path.name for path in (tmp_path / "imitate").iterdir()}
    after = [weights(tmp_path / "imitate" / f"{name}.pt") for name in ("imitate-2", "imitate")]
    assert not same(*after)


def test_a_dialogue_to_imitate_must_fit_into_the_model(tmp_path, monkeypatch):
    path, prompt = tmp_path / "traces.jsonl", train_problems(load_task("division"), 2, 0)(0).prompt
    path.write_text(json.dumps({"prompt": prompt, "attempts": ["1" * 400]}))
    with pytest.raises(ValueError, match="a dialogue of 408 tokens"):
        run_here(tmp_path, monkeypatch, "long", f"--imitate={path}")
    assert not (tmp_path / "long").exists()


def test_a_batch_without_signal_is_said(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("engine.run.check_lengths", lambda *_: None)  # it refuses so short attempts
    folder = run_here(tmp_path, monkeypatch, "flat", "--max_new=1")  # one token is never a whole answer
    rows = [row for row in metrics(folder) if row["stage"] == "stage1"]
    assert all(row["no_signal"] and row["truncated"] > 0 for row in rows)
    assert "only the KL acts" in capsys.readouterr().out


@pytest.mark.parametrize("resume", [False, True])
def test_a_run_ends_with_its_report_on_its_device(resume, tmp_path, monkeypatch, capsys):
    """The report's exit code is that of the run."""
    made = []
    monkeypatch.setattr(train, "run_alone", lambda script, *words: made.append((script.name, *words)) or 3)
    new = [*TINY, *SIZES, "--base_steps=1", "--stage1_steps=0", "--stage2_steps=0", f"--out={tmp_path}"]
    for words in (new, [f"--resume={tmp_path}/default"])[: 1 + resume]:
        monkeypatch.setattr(sys, "argv", ["train.py", *words])
        assert train.main() == 3
    assert made == [("eval.py", tmp_path / "default", "--device=cpu", "--html=true")] * (1 + resume)


def test_the_device_is_a_gpu_if_there_is_one(monkeypatch):
    assert pick_device("cpu").type == "cpu"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch, "zeros", lambda *_, device: SimpleNamespace(item=int, device=device))
    assert pick_device("auto") == "cuda"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert pick_device("auto") == "cpu"


def test_the_papers_presets_have_the_papers_values():
    """Table 5 of the paper, as engine/README.md has it."""
    math, mbpp = PRESETS["math"][1], PRESETS["mbpp"][1]
    for preset, lr, batch, beta2, steps in ((math, 5e-6, 512, 0.1, 3000), (mbpp, 1e-5, 128, 0.25, 1500)):
        assert (preset["lr"], preset["stage2_lr"], preset["batch"], preset["beta2"]) == (lr, lr, batch, beta2)
        assert preset["stage1_steps"] + preset["stage2_steps"] == steps
        assert (preset["alpha"], preset["beta1"], preset["temperature"]) == (10.0, 0.01, 1.0)


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_has_values_that_can_work(name):
    files = dict(train_data="a", test_data="b") if name in ("gsm8k", "math", "mbpp") else {}
    Config(init="model", **files, **PRESETS[name][1])


@pytest.mark.parametrize("name", ["plain", "single"])
def test_rivals_make_as_many_updates_as_score(name):
    rival = Config(**PRESETS[name][1])
    assert (rival.stage1_steps, rival.stage2_steps) == (0, Config.stage1_steps + Config.stage2_steps)


def test_help_lists_every_preset_and_every_field_with_its_reason():
    done = script("train.py", "--help")
    text = " ".join(done.stdout.split())
    assert done.returncode == 0 and str(ROOT) not in text
    assert (
        text.startswith("usage: python train.py [") and f"\n{'  --turns INT':29}attempts; each" in done.stdout
    )
    for name, (why, values) in PRESETS.items():
        settings = " ".join(f"--{key}={value}" for key, value in values.items())
        assert f"{name}: {why} {settings}" in text, name
    for field in Config.__dataclass_fields__.values():
        reason = field.metadata["why"]
        default = f" (default: {field.default})" if field.default not in (None, "") else ""
        found = f"--{field.name} " in text and " ".join(reason.split()) + default in text
        assert found and len(reason) > 10, field.name


def test_settings_are_as_recorded():
    """The default and the limits of each, and the presets. To change one on purpose, change the file, too."""

    def limits(f):
        return [f.default, *map(str, f.metadata["choices"] or (f.metadata["low"], f.metadata["high"]))]

    found = {
        cls.__name__: {f.name: limits(f) for f in dataclasses.fields(cls)} for cls in (Config, EvalOptions)
    }
    found["presets"] = {name: values for name, (_, values) in PRESETS.items()}
    assert found == json.loads((ROOT / "tests" / "settings.json").read_text(encoding="utf-8"))
