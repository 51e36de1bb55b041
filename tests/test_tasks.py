"""Tasks that read their problems from files: reading, runs by the real scripts, offline repair."""

import json
import sys
import time
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
from pretrained import SHORT, even_length, train_here
from scripts import finish, script, start

import eval as evaluation
import train
from data import load_task, wrong_attempts
from data.demonstrations import read_traces
from data.gsm8k import CORRECTION_REQUEST
from engine.build import held_out_of, make_environment, problems_of
from engine.hf import load_pretrained
from engine.hf_tokenizer import read_tokenizer
from engine.settings import EvalOptions
from train import Config

pytestmark = pytest.mark.slow


def row(task: str, i: int) -> dict:
    """Row number i of a task's file."""
    if task == "gsm8k":
        question = f"Ann has {i} apples and gets {i} more. How many has she?"
        return {"question": question, "answer": f"#### {2 * i}"}
    code = f"def add{i}(x):\n    return x + {i}"
    text, tests = f"Write a function add{i} that adds {i}.", [f"assert add{i}(1) == {i + 1}"]
    return {"task_id": i, "text": text, "code": code, "test_setup_code": "", "test_list": tests}


def write_rows(path: Path, rows) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def write_files(folder: Path, task: str, training: range, test: range) -> list[str]:
    """Writes both files; returns the words that name them to train.py."""
    for name, numbers in (("train", training), ("test", test)):
        write_rows(folder / name, [row(task, i) for i in numbers])
    return [f"--train_data={folder}/train", f"--test_data={folder}/test"]


# ---------------------------------------------------------------------------------- training


def train_and_report(folder: Path, *words) -> None:
    """By the real scripts."""
    for done in (script("train.py", *words), script("eval.py", folder)):
        assert done.returncode == 0, done.stderr


def test_a_run_of_no_steps_evaluates_the_pretrained_model(qwen, tmp_path):
    """By the real scripts, as a user does it before training, and in bfloat16."""
    none = ["--stage1_steps=0", "--stage2_steps=0", "--dtype=bfloat16", "--report=false"]
    train_and_report(tmp_path / "base", *SHORT, *none, f"--init={qwen}", f"--out={tmp_path}", "--name=base")
    assert "| base | greedy | 0.0" in (tmp_path / "base" / "report.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("task", ["gsm8k", "mbpp"])
def test_a_run_on_files_survives_a_kill_and_writes_its_report(task, qwen, tmp_path):
    """Both stages by the real scripts, with LoRA on a random model."""
    ranges = (range(700, 712), range(20, 26)) if task == "mbpp" else (range(12), range(6))
    files = write_files(tmp_path, task, *ranges)
    preset = "--preset=mbpp" if task == "mbpp" else "--preset=gsm8k"
    # bfloat16 is slow on many CPUs
    quick = [*SHORT, "--dtype=float32", "--batch=4", "--eval_n=3", "--report=false"]
    words = [preset, "--lora=4", f"--init={qwen}", *files, *quick, f"--out={tmp_path}", "--name=run"]
    log = tmp_path / "run" / "metrics.jsonl"
    process = start("train.py", *words)
    while not (log.exists() and log.read_text(encoding="utf-8").count("\n") >= 3):
        assert process.is_alive()
        time.sleep(0.01)
    process.kill()
    finish(process)
    train_and_report(tmp_path / "run", f"--resume={tmp_path}/run")
    rows = [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()]
    steps = [("stage1", step) for step in (1, 2, 3, 4)] + [("stage2", step) for step in (1, 2, 3)]
    assert [(row["stage"], row["step"]) for row in rows] == steps
    for name in ("truncated", "unparsable", "timeout", "unjudged"):
        assert all(0 <= row[name] <= 1 for row in rows)
    report = (tmp_path / "run" / "report.md").read_text(encoding="utf-8")
    assert "| stage2 | greedy |" in report and "## Attempts without an answer to compare" in report


def test_dialogues_that_outgrow_the_model_are_refused_at_the_start(qwen, tmp_path, monkeypatch, capsys):
    words = ["--task=gsm8k", *write_files(tmp_path, "gsm8k", range(6, 12), range(6)), f"--out={tmp_path}"]
    with pytest.raises(ValueError, match="max_len=2048: lower --max_new"):
        train_here(monkeypatch, *words, f"--init={qwen}", *SHORT, "--max_new=900", "--name=long")


# ---------------------------------------------------------------------------------- evaluation


@pytest.fixture
def evaluate(qwen, tmp_path, monkeypatch, capsys):
    """A function that calls eval.py with more words on a short run on GSM8K, and returns what it prints."""
    monkeypatch.setattr(train, "correctness", even_length)
    files = write_files(tmp_path, "gsm8k", range(6, 12), range(6))
    words = ["--task=gsm8k", f"--init={qwen}", *files, *SHORT, "--lora=4"]
    train_here(monkeypatch, *words, f"--out={tmp_path}", "--name=run")

    def call(*words, path="run/stage2.pt") -> str:
        monkeypatch.setattr(sys, "argv", ["eval.py", str(tmp_path / path), *words])
        capsys.readouterr()
        evaluation.main()
        return capsys.readouterr().out

    return call


def test_what_eval_offers_for_tasks_from_files(evaluate, tmp_path):
    saved = tmp_path / "wrong.jsonl"
    shown = evaluate(f"--save={saved}", "--show=1", "--temperature=1")
    assert "--- attempt 2 (wrong)" in shown and "(n = 6; " in shown and "unparsable" in shown
    rows = [json.loads(line) for line in saved.read_text(encoding="utf-8").splitlines()]
    said = [row for row in rows if row["attempts"][0].strip()]  # a random model's attempts are all wrong
    repaired = json.loads(evaluate(f"--repair={saved}", "--json"))
    assert repaired["n"] == len(said) > 1 and repaired["acc_t1"] == 0
    with pytest.raises(ValueError, match="can't judge a problem of yours"):
        evaluate("--problem=1+1")
    with pytest.raises(ValueError, match="--n is for one checkpoint"):
        evaluate("--n=2", path="run")


def test_eval_takes_the_folder_of_a_checkpoint_as_it_stands(qwen, tmp_path, monkeypatch, capsys):
    write_files(tmp_path, "gsm8k", range(3), range(5))

    def call(*words):
        monkeypatch.setattr(sys, "argv", ["eval.py", str(qwen), "--device=cpu", "--max_new=5", *words])
        evaluation.main()
        return capsys.readouterr().out

    saved = tmp_path / "saved.jsonl"
    metrics = json.loads(call("--task=gsm8k", f"--test_data={tmp_path}/test", f"--save={saved}", "--json"))
    assert metrics["n"] == 5
    tokenizer, row = read_tokenizer(qwen), json.loads(saved.read_text(encoding="utf-8").splitlines()[0])
    ids, model = tokenizer.user_turn(row["prompt"]), load_pretrained(qwen)
    with torch.no_grad():
        for _ in range(5):
            ids.append(int(model(torch.tensor([ids]))[0, -1].argmax()))
    assert row["attempts"][0] == tokenizer.decode(ids[-5:])
    prompt = "Emma has 7 pens, gets 4, loses 3, gets 5."
    assert prompt in call("--task=words", f"--problem={prompt}")
    with pytest.raises(ValueError, match="task=gsm8k reads a file: give --test_data=FILE"):
        call("--task=gsm8k")
    with pytest.raises(ValueError, match="has no task: give --task=NAME"):
        call(f"--problem={prompt}")


@pytest.mark.parametrize("attempt", ["#### 1", ""], ids=["right, though it was cut off", "empty"])
def test_an_attempt_that_is_not_wrong_as_it_stands_is_not_repaired(attempt, tmp_path):
    path = tmp_path / "wrong.jsonl"
    write_rows(path, [{"prompt": "x", "answer": "1", "attempts": [attempt, ""], "right": [False, False]}])
    with pytest.raises(ValueError, match="nothing to repair"):
        wrong_attempts(path, load_task("gsm8k"))


def test_a_part_of_a_file_is_repaired(tmp_path):
    path = tmp_path / "wrong.jsonl"
    wrong = [{"prompt": f"{i}", "answer": "1", "attempts": ["2", ""], "right": [False, False]} for i in "abc"]
    write_rows(path, wrong)
    c = Config(task="gsm8k", init="x", train_data="x", test_data="x")
    for n, prompts in ((2, ["a", "b"]), (None, ["a", "b", "c"])):
        assert [p.prompt for p in problems_of(c, EvalOptions(repair=str(path), n=n))] == prompts


def test_a_test_problem_is_not_imitated_whatever_its_blanks(qwen, tmp_path):
    files = write_files(tmp_path, "gsm8k", range(6, 12), range(6))
    given = dict(word.removeprefix("--").split("=", 1) for word in files)
    c = Config(task="gsm8k", init=str(qwen), imitate=str(tmp_path / "traces"), train_n=0, **given)
    env = make_environment(c)
    for problems, is_refused in ((env.task.read(c.train_data, "train"), False), (held_out_of(c, 9), True)):
        row = {"prompt": problems[0].prompt.replace(" ", "  "), "attempts": ["#### 1"]}
        write_rows(tmp_path / "traces", [row])
        with pytest.raises(ValueError, match="held-out") if is_refused else nullcontext():
            assert len(read_traces(c, env)) == 1


def test_a_given_first_attempt_stands_in_the_place_of_turn_1(qwen, tmp_path):
    """Offline repair: attempt 2 is what the model says after the given one, whose accuracy is Acc@t1."""
    texts = [f"It is {i if i < 2 else 99}." for i in range(6)]
    test_rows = [{"question": f"{i}?", "answer": f"#### {i}", "attempt": texts[i]} for i in range(6)]
    write_rows(tmp_path / "test", test_rows)
    write_rows(tmp_path / "train", [{"question": "x", "answer": "#### 1"}])
    files = dict(train_data=f"{tmp_path}/train", test_data=f"{tmp_path}/test")
    c = Config(task="gsm8k", init=str(qwen), **files, max_new=5)
    model, tokenizer = load_pretrained(qwen), read_tokenizer(qwen)
    problems = held_out_of(c, 10)
    metrics, transcripts = evaluation.evaluate(model, c, problems)
    assert metrics["acc_t1"] == pytest.approx(2 / 6)
    assert [attempts[0] for _, attempts, _ in transcripts] == texts

    ids = [*tokenizer.user_turn(problems[3].prompt), *tokenizer.encode("It is 99."), tokenizer.end_id]
    ids += tokenizer.user_turn(CORRECTION_REQUEST, first=False)
    with torch.no_grad():
        for _ in range(5):
            ids.append(int(model(torch.tensor([ids]))[0, -1].argmax()))
    assert transcripts[3][1][1] == tokenizer.decode(ids[-5:])
    with pytest.raises(ValueError, match="for every problem"):
        evaluation.evaluate(model, c, [problems[0], problems[1]._replace(given="")])
