"""A run's folder and its end: one process at a time, nothing overwritten, nothing that is not finite kept."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from data import Environment, load_task
from engine.checkpoints import checkpoint_of, load, save
from engine.folder import begin, locked, open_run
from rollout import sample_dialogues
from train import Config, stages

ROOT = Path(__file__).parent.parent
TINY = [
    "--size=2", "--n_layer=1", "--dim=32", "--base_steps=40", "--base_batch=8", "--stage1_steps=0",
    "--stage2_steps=0", "--batch=8", "--device=cpu", "--report=false", "--save_every=1",
]  # fmt: skip


def start(folder: Path, *words: str) -> subprocess.Popen:
    command = [sys.executable, ROOT / "train.py", *TINY, f"--out={folder}", *words]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)


def test_a_second_process_is_kept_out_and_a_dead_ones_lock_is_taken_over(tmp_path):
    with locked(tmp_path):
        with pytest.raises(ValueError, match=f"process {os.getpid()} writes into"), locked(tmp_path):
            pass
        assert (tmp_path / "lock").exists()  # the loser does not open the door
    assert not (tmp_path / "lock").exists()
    dead = subprocess.Popen(["true"])
    dead.wait()
    (tmp_path / "lock").write_text(str(dead.pid))
    with locked(tmp_path):
        assert (tmp_path / "lock").read_text() == str(os.getpid())


@pytest.mark.parametrize("file", ["stage2.pt", "last.pt", "metrics.jsonl"])
def test_a_folder_with_anything_of_a_run_is_not_overwritten(tmp_path, file):
    folder = tmp_path / "default"
    folder.mkdir()
    (folder / file).write_text("precious")
    config = Config(out=str(tmp_path))
    with pytest.raises(ValueError, match="--overwrite=true"), open_run(config, "", stages):
        pass
    assert [path.name for path in folder.iterdir()] == [file] and (folder / file).read_text() == "precious"


def test_overwriting_deletes_the_runs_files_and_no_others(tmp_path):
    folder = tmp_path / "default"
    folder.mkdir()
    for name in ("stage2.pt", "metrics.jsonl", "report.md", "kl.png", "notes.txt", "data.csv"):
        (folder / name).write_text("old")
    with open_run(Config(out=str(tmp_path), overwrite=True), "", stages) as (c, _):
        assert (folder / "stage2.pt").exists()  # nothing is deleted before the run's parts are made
        begin(c, folder)
        kept = {path.name for path in folder.iterdir()}
    assert kept == {"notes.txt", "data.csv", "config.json", "lock"}


def test_weights_that_are_not_finite_are_neither_written_nor_read(small_gpt, tmp_path):
    model, path = small_gpt(), tmp_path / "last.pt"
    save(path, checkpoint_of(Config(), model))
    before = path.read_bytes()
    with torch.no_grad():
        model.blocks[0].mlp.up.weight[0, 0] = torch.nan
    with pytest.raises(FloatingPointError, match="blocks.0.mlp.up.weight is no longer finite"):
        save(path, checkpoint_of(Config(), model))
    assert path.read_bytes() == before
    torch.save(checkpoint_of(Config(), model), path)
    with pytest.raises(ValueError, match=r"last.pt.*blocks.0.mlp.up.weight"):
        load(path)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_logits_that_are_not_finite_stop_the_sampling(small_gpt, tokenizer, temperature):
    model, env = small_gpt(), Environment(load_task("division"), tokenizer)
    prompts = env.prompts([env.task.parse("84/6")])
    sample_dialogues(model, tokenizer, prompts, [env.correction_request], 4, temperature)
    with torch.no_grad():
        model.lm_head.weight[:] = torch.nan
    with pytest.raises(FloatingPointError, match="logits are not finite"):
        sample_dialogues(model, tokenizer, prompts, [env.correction_request], 4, temperature)


@pytest.mark.slow
def test_of_two_runs_in_one_folder_one_goes_on(tmp_path):
    both = [start(tmp_path), start(tmp_path)]
    errors = [process.communicate(timeout=240)[1] for process in both]
    assert sorted(process.returncode for process in both) == [0, 1]
    loser = next(error for error in errors if error)
    assert loser.startswith("error: ") and loser.count("\n") == 1
    assert len((tmp_path / "default" / "metrics.jsonl").read_text().splitlines()) == 40
    assert not (tmp_path / "default" / "lock").exists()


@pytest.mark.slow
def test_ctrl_c_is_one_line_that_says_how_to_go_on(tmp_path):
    process, log = start(tmp_path, "--base_steps=5000"), tmp_path / "default" / "metrics.jsonl"
    deadline = time.time() + 200
    while not (log.exists() and log.read_text().count("\n") >= 2):
        assert process.poll() is None and time.time() < deadline
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    _, error = process.communicate(timeout=60)
    assert process.returncode == 1 and error.count("\n") == 1
    assert error.startswith("stopped; go on with: python train.py --resume=") and "default" in error
    assert not (tmp_path / "default" / "lock").exists()


@pytest.mark.slow
def test_ctrl_c_while_the_libraries_load_is_one_line(tmp_path):
    process = start(tmp_path)
    time.sleep(0.4)
    process.send_signal(signal.SIGINT)
    _, error = process.communicate(timeout=60)
    assert process.returncode != 0 and "Traceback" not in error and error.count("\n") <= 1
