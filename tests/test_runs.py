"""A run's folder and its end: one process at a time, nothing overwritten, nothing that is not finite kept."""

import io
import itertools
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import pytest
import torch
from run_files import metrics, same, weights
from scripts import LOADED, ROOT, finish, start

import eval as evaluation
import train
from engine import checkpoints
from engine.checkpoints import begin, checkpoint_of, load, locked, open_run, save
from engine.cli import run_script
from engine.run import Run
from train import Config, stages

TINY = [
    "--size=2", "--n_layer=1", "--dim=32", "--base_steps=40", "--base_batch=8", "--stage1_steps=0",
    "--stage2_steps=0", "--batch=8", "--device=cpu", "--report=false", "--save_every=1",
]  # fmt: skip


def test_a_second_process_is_kept_out_until_the_first_has_ended(tmp_path):
    with locked(tmp_path / "run"):
        (tmp_path / "run" / "config.json").touch()  # an empty folder would be deleted
        with pytest.raises(ValueError, match="another process writes into"), locked(tmp_path / "run"):
            pass
    with locked(tmp_path / "run"):
        pass
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["config.json"]


@pytest.mark.parametrize("error", [None, OSError(37, "No locks available")])
def test_where_there_are_no_locks_a_run_begins_and_ends_well(error, tmp_path, monkeypatch):
    """None: there is no fcntl, as on Windows."""
    fcntl = SimpleNamespace(LOCK_EX=2, LOCK_NB=4, flock=mock.Mock(side_effect=error)) if error else None
    monkeypatch.setattr(checkpoints, "fcntl", fcntl)
    with locked(tmp_path / "run"):
        assert (tmp_path / "run").is_dir()
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("file", ["stage2.pt", "last.pt", "metrics.jsonl", "config.json", "results.json"])
def test_a_folder_with_anything_of_a_run_is_not_overwritten(tmp_path, file):
    folder = tmp_path / "default"
    folder.mkdir()
    (folder / file).write_text("precious")
    config = Config(out=str(tmp_path))
    with pytest.raises(ValueError, match="--overwrite=true"), open_run(config, "", stages):
        pass
    assert [path.name for path in folder.iterdir()] == [file] and (folder / file).read_text() == "precious"


@pytest.mark.parametrize("init", ["default/base.pt", "default"])
def test_what_the_new_run_starts_from_is_not_deleted(init, tmp_path):
    """Also the folder of a pretrained model is not written into."""
    (tmp_path / "default").mkdir()
    (tmp_path / "default" / "base.pt").write_text("precious")
    config = Config(out=str(tmp_path), init=str(tmp_path / init), task="words", overwrite=True)
    with pytest.raises(ValueError, match=f"{init} would be deleted"), open_run(config, "", stages):
        pass
    assert (tmp_path / "default" / "base.pt").read_text() == "precious"


def test_relative_paths_hold_in_any_working_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = ("init", "imitate", "train_data", "test_data", "tokenizer")
    for name in names:
        Path(name).touch()
    with open_run(Config(out="out", task="gsm8k", **{name: name for name in names}), "", stages) as (c, _):
        assert [getattr(c, name) for name in names] == [str(tmp_path / name) for name in names]
    with open_run(Config(out="out", tokenizer="gpt2"), "", stages) as (c, _):
        assert c.tokenizer == "gpt2"  # the name of one of tiktoken's


def test_overwriting_deletes_the_runs_files_and_no_others(tmp_path):
    folder = tmp_path / "default"
    folder.mkdir()
    for name in ("stage2.pt", "stage1-50.pt", "metrics.jsonl", "report.md", "report.html", "notes.txt"):
        (folder / name).write_text("old")
    with open_run(Config(out=str(tmp_path), overwrite=True), "", stages) as (c, _):
        assert (folder / "stage2.pt").exists()  # nothing is deleted before the run's parts are made
        begin(c, folder)
        kept = {path.name for path in folder.iterdir()}
    assert kept == {"notes.txt", "config.json"}


def test_the_log_is_on_the_disk_before_the_checkpoint_that_needs_it(train_here, tmp_path, monkeypatch):
    """A power cut leaves what was synced: last.pt is of no use without the rows of the steps before it."""
    folder, synced, real_sync, real_replace = tmp_path / "default", {}, os.fsync, os.replace

    def fsync(fd):
        real_sync(fd)
        synced[os.path.realpath(f"/proc/self/fd/{fd}")] = os.fstat(fd).st_size

    def replace(draft, path):
        assert synced[str(draft)] == Path(draft).stat().st_size, f"{draft} was not synced"
        real_replace(draft, path)
        if Path(path).name != "last.pt":
            synced[str(path)] = synced[str(draft)]
            return
        for name in ("metrics.jsonl", "config.json"):
            assert synced[str(folder / name)] == (folder / name).stat().st_size, f"{name} was not synced"

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(os, "replace", replace)
    train_here(*SHORT, f"--out={tmp_path}")
    assert (folder / "last.pt").exists()


def test_a_resumed_run_counts_its_time_on(tmp_path):
    c, last = Config(n_layer=1, dim=32, report=False, out=str(tmp_path)), tmp_path / "default" / "last.pt"
    with open_run(c, "", stages) as (c, state):
        Run(c, state, stages(c))
    save(last, load(last) | {"seconds": 1000.0})
    with open_run(c, str(last.parent), stages) as (c, state):
        started = Run(c, state, stages(c)).started
        assert 1000 <= time.perf_counter() - started < 1100


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


@pytest.mark.slow
def test_of_two_runs_in_one_folder_one_goes_on(tmp_path):
    both = [finish(process) for process in [start("train.py", *TINY, f"--out={tmp_path}") for _ in range(2)]]
    assert sorted(process.returncode for process in both) == [0, 1]
    loser = next(process.stderr for process in both if process.stderr)
    assert loser.startswith("error: ") and loser.count("\n") == 1
    assert len((tmp_path / "default" / "metrics.jsonl").read_text().splitlines()) == 40


@pytest.mark.slow
def test_ctrl_c_is_one_line_that_says_how_to_go_on(tmp_path):
    process = start("train.py", *TINY, "--base_steps=5000", f"--out={tmp_path}")
    log = tmp_path / "default" / "metrics.jsonl"
    deadline = time.time() + 200
    while not (log.exists() and log.read_text().count("\n") >= 2):
        assert process.is_alive() and time.time() < deadline
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGINT)
    stopped = finish(process)
    error = stopped.stderr
    assert stopped.returncode == 1 and error.count("\n") == 1
    assert error.startswith("stopped; go on with: python train.py --resume=") and "default" in error


@pytest.mark.parametrize("number", range(1, 8))
def test_ctrl_c_while_a_checkpoint_is_written_is_ctrl_c(tmp_path, monkeypatch, number):
    class Interrupted(io.FileIO):
        written = 0

        def write(self, data):
            self.written += 1
            if self.written == number:
                time.sleep(0.05)  # by now the main thread waits
                os.kill(os.getpid(), signal.SIGINT)
            return super().write(data)

    path, handler = tmp_path / "last.pt", signal.getsignal(signal.SIGINT)
    save(path, {"model": {}, "step": 1})
    monkeypatch.setattr(checkpoints, "open", Interrupted, raising=False)
    with pytest.raises(KeyboardInterrupt):
        save(path, {"model": {"w": torch.zeros(1000)}, "step": 2})
    assert torch.load(path)["step"] == 1 and signal.getsignal(signal.SIGINT) == handler
    assert torch.load(path.with_suffix(".tmp"))["step"] == 2  # the write was not broken off


@pytest.mark.slow
def test_a_script_ends_in_one_line_when_nobody_reads_its_output():
    code = "from engine.cli import run_script; run_script(lambda: [print(i) for i in range(10**5)] and 0)"
    command = [sys.executable, "-c", code]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "0\n"
    process.stdout.close()
    assert process.wait(60) == 1 and process.stderr.read() == "error: [Errno 32] Broken pipe\n"


@pytest.mark.slow
def test_input_that_is_no_text_and_closed_streams_end_no_script():
    code = "from engine.cli import run_script; run_script(lambda: print(ascii(input())))"
    env, command = {**os.environ, "PYTHONIOENCODING": "utf-8:strict"}, [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=ROOT, env=env, input=b"\xff\n", capture_output=True)
    assert done.stdout.split() == [rb"'\ufffd'"] and done.returncode == 0
    code = "from engine.cli import run_script; run_script(lambda: 3)"
    shell = ["sh", "-c", '"$0" -c "$1" <&- >&-', sys.executable, code]
    done = subprocess.run(shell, cwd=ROOT, capture_output=True)
    assert done.returncode == 3 and done.stderr == b""


@pytest.mark.slow
def test_pictures_do_not_need_the_backend_of_the_notebook_that_started_the_run():
    env = {**os.environ, "MPLBACKEND": "nowhere"}
    command = [sys.executable, "-c", "import experiments.paper_report"]
    assert subprocess.run(command, cwd=ROOT, env=env).returncode == 0


@pytest.mark.parametrize(
    "error, is_one_line",
    [
        (RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB."), True),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried"), True),
        (MemoryError(), True),
        (RuntimeError("CUDA error: an illegal memory access was encountered"), False),
    ],
)
def test_only_memory_that_cannot_be_had_is_one_line(error, is_one_line, capsys, monkeypatch):
    for name, stream in (("stdin", None), ("stdout", io.TextIOWrapper(io.BytesIO()))):
        monkeypatch.setattr(sys, name, stream)
    with pytest.raises(SystemExit if is_one_line else RuntimeError):
        run_script(mock.Mock(side_effect=error))
    assert ("not enough memory" in capsys.readouterr().err) == is_one_line


@pytest.mark.parametrize("module", [train, evaluation])
def test_without_docstrings_the_scripts_explain_themselves_all_the_same(module, monkeypatch, capsys):
    """As with PYTHONOPTIMIZE=2."""
    monkeypatch.setattr(module, "__doc__", None)
    monkeypatch.setattr(sys, "argv", ["script.py", "--help"])
    with pytest.raises(SystemExit) as end:
        module.main()
    assert end.value.code == 0 and "--device" in capsys.readouterr().out


# ---------------------------------------------------------------------------------- breaks at every point

SHORT = [
    "--size=2", "--n_layer=1", "--n_head=2", "--dim=8", "--base_steps=1", "--base_batch=8",
    "--stage1_steps=2", "--stage2_steps=0", "--batch=4", "--save_every=1", "--eval_n=4", "--device=cpu",
    "--report=false",
]  # fmt: skip


@pytest.fixture
def train_here(monkeypatch, capsys):
    """train.py with these words, in this process."""

    def run(*words):
        monkeypatch.setattr(sys, "argv", ["train.py", *map(str, words)])
        train.main()

    return run


def broken_run(words: list[str], moment: str, number: int) -> None:
    """train.py, in a process that has been forked for it, until the break."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    os.dup2(1, 2)
    name = "fsync" if moment == "disk full" else "replace"  # a file is written, then renamed
    real, calls = getattr(os, name), itertools.count(1)

    def call(*args):
        breaks = next(calls) == number
        if breaks and moment == "disk full":
            raise OSError(28, "No space left on device")
        if breaks:
            os.kill(os.getpid(), signal.SIGKILL)
        real(*args)

    setattr(os, name, call)
    sys.argv, sys.stdin = ["train.py", *words], None
    run_script(train.main)


@pytest.mark.slow
@pytest.mark.parametrize("moment", ["killed", "disk full"])
def test_a_run_that_breaks_at_any_write_goes_on_bit_for_bit(moment, train_here, tmp_path):
    """Each file of a run is written under another name and renamed, so these are all the points there are."""
    train_here(*SHORT, f"--out={tmp_path}", "--name=whole")
    for number in itertools.count(1):
        folder = tmp_path / str(number)
        words = [*SHORT, f"--out={tmp_path}", f"--name={number}"]
        process = LOADED.Process(target=broken_run, args=(words, moment, number))
        process.start()
        process.join(240)
        if process.exitcode == 0:  # it has fewer writes
            break
        assert process.exitcode == (1 if moment == "disk full" else -signal.SIGKILL)
        if (folder / "last.pt").exists():
            train_here(f"--resume={folder}")
        else:
            train_here(*words, "--overwrite=true")
        whole = tmp_path / "whole"
        assert metrics(folder) == metrics(whole), number
        for name in ("base.pt", "stage1.pt"):
            assert same(weights(folder / name), weights(whole / name)), number
    assert number == (13 if moment == "disk full" else 9)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["with a blank", "caf\u00e9 \u6570", "..dots", "-dash", "per%cent", "link"])
def test_folders_of_any_name_can_be_used_and_moved(name, train_here, tmp_path, monkeypatch):
    if name == "link":
        (tmp_path / "elsewhere").mkdir()
        (tmp_path / name).symlink_to("elsewhere")
    train_here(*SHORT, f"--out={tmp_path}", f"--name={name}")
    moved = (tmp_path / name).rename(tmp_path / f"{name} moved")
    train_here(f"--resume={moved}")  # it is at its end
    monkeypatch.setattr(sys, "argv", ["eval.py", str(moved)])
    evaluation.main()
    assert "| stage1 | greedy |" in (moved / "report.md").read_text(encoding="utf-8")


EXTREMES = [
    "base_lr=10", "lr=10", "stage2_lr=10", "lr=10 max_grad_norm=1e30", "lr=10 stage2_lr=10",
    "max_grad_norm=1e-6", "max_grad_norm=1e300", "temperature=0.001", "temperature=1000", "alpha=1e9",
    "beta1=1e30 beta2=1e30", "beta1=1e300", "stage2_beta=1e38", "gamma=1", "stage2_weight1=1e9",
    "stage2_weight2=1e9", "batch=1 samples_per_problem=1 micro_batch=1", "turns=6",
    "seed=9223372036854775807", "right=1 copy=0", "copy=1 right=0", "copy=0 right=0", "right_first=0",
    "lr=0 stage2_lr=0", "samples_per_problem=1", "dtype=bfloat16 lr=10", "train_n=1",
    "offline_first=true", "own_from=0", "sample_batch=1", "max_new=5", "max_new=2000",
]  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("settings", EXTREMES)
def test_extreme_settings_end_well_or_in_one_line_and_leave_finite_weights(settings, train_here, tmp_path):
    words = [word.replace("stage2_steps=0", "stage2_steps=1") for word in SHORT]
    words += [f"--{setting}" for setting in settings.split()]
    try:
        train_here(*words, f"--out={tmp_path}", "--name=run")
    except FloatingPointError as error:
        assert "\n" not in str(error)
    files = list(tmp_path.glob("run/*.pt"))
    assert tmp_path / "run" / "last.pt" in files
    for file in files:
        load(file)  # a ValueError if a weight is not finite
    for row in (tmp_path / "run" / "metrics.jsonl").read_text(encoding="utf-8").splitlines():
        json.loads(row, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))


@pytest.mark.slow
@pytest.mark.parametrize("end, error", [("SIGINT", "stopped\n"), ("SIGTERM", "")])
def test_a_signal_ends_the_report_and_leaves_no_process(end, error, tmp_path):
    words = [word for word in SHORT if "report" not in word and "eval_n" not in word]
    process = start("train.py", *words, "--max_new=200", "--eval_n=25", f"--out={tmp_path}")
    while "evaluating" not in (process.output / "stdout").read_text():
        assert process.is_alive()
        time.sleep(0.01)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    os.kill(process.pid, getattr(signal, end))
    stopped = finish(process)
    assert stopped.returncode and stopped.stderr == error and children
    time.sleep(0.5)  # by itself it would take longer to end
    states = [path.read_text() for child in children if (path := Path(f"/proc/{child}/stat")).exists()]
    assert all(") Z " in state for state in states)  # a zombie waits for its entry to be taken out
