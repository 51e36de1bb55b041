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
from unittest import mock

import pytest
import torch
from scripts import LOADED, ROOT, finish, start

import eval as evaluation
import train
from data import Environment, load_task
from engine import checkpoints
from engine.checkpoints import checkpoint_of, load, save
from engine.cli import run_script
from engine.folder import begin, locked, open_run
from engine.run import Run
from rollout import sample_dialogues
from train import Config, stages

TINY = [
    "--size=2", "--n_layer=1", "--dim=32", "--base_steps=40", "--base_batch=8", "--stage1_steps=0",
    "--stage2_steps=0", "--batch=8", "--device=cpu", "--report=false", "--save_every=1",
]  # fmt: skip


def test_a_second_process_is_kept_out_and_a_dead_ones_lock_is_taken_over(tmp_path):
    (tmp_path / "config.json").touch()  # an empty folder would be deleted
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


def test_where_no_open_file_can_be_deleted_a_run_ends_well(tmp_path, monkeypatch):
    """Windows has no flock, and it deletes no open file."""
    real = Path.unlink

    def unlink(path, missing_ok=False):
        held_open = [Path(f"/proc/self/fd/{fd}").resolve() for fd in os.listdir("/proc/self/fd")]
        if path.resolve() in held_open:
            raise PermissionError(13, "another process uses this file", str(path))
        real(path, missing_ok)

    monkeypatch.setattr("engine.folder.fcntl", None)
    monkeypatch.setattr(Path, "unlink", unlink)
    with locked(tmp_path / "run"):
        (tmp_path / "run" / "config.json").touch()
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["config.json"]


@pytest.mark.parametrize("file", ["stage2.pt", "last.pt", "metrics.jsonl", "config.json", "results.json"])
def test_a_folder_with_anything_of_a_run_is_not_overwritten(tmp_path, file):
    folder = tmp_path / "default"
    folder.mkdir()
    (folder / file).write_text("precious")
    config = Config(out=str(tmp_path))
    with pytest.raises(ValueError, match="--overwrite=true"), open_run(config, "", stages):
        pass
    assert [path.name for path in folder.iterdir()] == [file] and (folder / file).read_text() == "precious"


def test_a_run_is_not_overwritten_by_one_that_starts_from_it(tmp_path):
    (tmp_path / "default").mkdir()
    (tmp_path / "default" / "base.pt").write_text("precious")
    config = Config(out=str(tmp_path), init=str(tmp_path / "default" / "base.pt"), overwrite=True)
    with pytest.raises(ValueError, match="base.pt would be deleted"), open_run(config, "", stages):
        pass
    assert (tmp_path / "default" / "base.pt").read_text() == "precious"


def test_a_run_is_not_written_into_the_folder_of_the_model_that_it_starts_from(tmp_path):
    model = tmp_path / "default"
    model.mkdir()
    (model / "model.safetensors").write_text("precious")
    config = Config(out=str(tmp_path), init=str(model), task="words", overwrite=True)
    with pytest.raises(ValueError, match="default would be deleted"), open_run(config, "", stages):
        pass


def test_relative_paths_hold_in_any_working_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("base.pt").touch()
    with open_run(Config(out="out", init="base.pt"), "", stages) as (c, _):
        assert c.init == str(tmp_path / "base.pt")


def test_overwriting_deletes_the_runs_files_and_no_others(tmp_path):
    folder = tmp_path / "default"
    folder.mkdir()
    for name in (
        "stage2.pt",
        "stage1-50.pt",
        "metrics.jsonl",
        "report.md",
        "report.html",
        "kl.png",
        "notes.txt",
        "data.csv",
    ):
        (folder / name).write_text("old")
    with open_run(Config(out=str(tmp_path), overwrite=True), "", stages) as (c, _):
        assert (folder / "stage2.pt").exists()  # nothing is deleted before the run's parts are made
        begin(c, folder)
        kept = {path.name for path in folder.iterdir()}
    assert kept == {"notes.txt", "data.csv", "config.json", "lock"}


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
    both = [finish(process) for process in [start("train.py", *TINY, f"--out={tmp_path}") for _ in range(2)]]
    assert sorted(process.returncode for process in both) == [0, 1]
    loser = next(process.stderr for process in both if process.stderr)
    assert loser.startswith("error: ") and loser.count("\n") == 1
    assert len((tmp_path / "default" / "metrics.jsonl").read_text().splitlines()) == 40
    assert not (tmp_path / "default" / "lock").exists()


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
    assert not (tmp_path / "default" / "lock").exists()


@pytest.mark.parametrize("number", range(1, 8))
def test_ctrl_c_while_a_checkpoint_is_written_is_ctrl_c(tmp_path, monkeypatch, number):
    class Interrupted(io.FileIO):
        written = 0

        def write(self, data):
            self.written += 1
            if self.written == number:
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
def test_a_script_ends_without_a_word_when_nobody_reads_its_output():
    code = "from engine.cli import run_script; run_script(lambda: [print(i) for i in range(10**5)] and 0)"
    command = [sys.executable, "-c", code]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "0\n"
    process.stdout.close()
    assert process.wait(60) == 141 and process.stderr.read() == ""


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
    code = "import experiments.paper_report"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=env).returncode == 0


@pytest.mark.parametrize(
    "text, is_one_line",
    [
        ("CUDA out of memory. Tried to allocate 2.00 GiB.", True),
        ("[enforce fail at alloc_cpu.cpp:121] DefaultCPUAllocator: can't allocate memory: you tried", True),
        ("CUDA error: an illegal memory access was encountered", False),
    ],
)
def test_only_memory_that_cannot_be_had_is_one_line(text, is_one_line, capsys):
    def main():
        raise RuntimeError(text)

    with (
        mock.patch.object(sys, "stdin", None),
        mock.patch.object(sys, "stdout", io.TextIOWrapper(io.BytesIO())),
        pytest.raises(SystemExit if is_one_line else RuntimeError),
    ):
        run_script(main)
    assert ("not enough memory" in capsys.readouterr().err) == is_one_line


def test_another_pipe_that_breaks_is_an_error(capsys):
    def main():
        raise BrokenPipeError(32, "Broken pipe")

    with (
        mock.patch.object(sys, "stdin", None),
        mock.patch.object(sys, "stdout", io.TextIOWrapper(io.BytesIO())),
        pytest.raises(SystemExit) as end,
    ):
        run_script(main)
    assert end.value.code == 1 and "Broken pipe" in capsys.readouterr().err


@pytest.mark.slow
def test_ctrl_c_while_the_libraries_load_is_one_line(tmp_path):
    command = [sys.executable, ROOT / "train.py", *TINY, f"--out={tmp_path}"]  # it loads them, not a fork
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    maps = Path(f"/proc/{process.pid}/maps")
    while maps.exists() and "libtorch" not in maps.read_text():  # where there is no /proc, Python has started
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    _, error = process.communicate(timeout=60)
    assert process.returncode != 0 and "Traceback" not in error and error.count("\n") <= 1


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


def content(folder: Path) -> list:
    """What a run has made: its log without the seconds, and the weights of the base and after Stage I."""
    rows = [json.loads(row) for row in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    files = [load(folder / f"{name}.pt")["model"] for name in ("base", "stage1")]
    weights = [{name: w.tolist() for name, w in file.items()} for file in files]
    return [[{**row, "seconds": None} for row in rows], weights]


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
        assert content(folder) == content(tmp_path / "whole"), number
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
    "base_lr=10", "lr=10", "stage2_lr=10", "lr=10 max_grad_norm=1e30", "optimizer=adamw lr=10 stage2_lr=10",
    "max_grad_norm=1e-6", "max_grad_norm=1e300", "temperature=0.001", "temperature=1000", "alpha=1e30",
    "alpha=1e38", "alpha=1e300", "beta1=1e30 beta2=1e30", "beta1=1e300", "stage2_beta=1e38", "gamma=1",
    "stage2_weight1=1e38", "stage2_weight2=1e300", "batch=1", "batch=1 micro_batch=1", "turns=6",
    "seed=9223372036854775807", "right=1 copy=0", "copy=1 right=0", "copy=0 right=0", "right_first=0",
    "adam_share=0", "lr=0 stage2_lr=0", "baseline=rloo samples_per_problem=4", "dtype=bfloat16 lr=10",
    "offline_share=1", "own_from=0", "sample_batch=1", "max_new=11", "max_new=2000",
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
def test_of_two_processes_that_go_on_with_a_run_one_does(train_here, tmp_path):
    train_here(*SHORT, f"--out={tmp_path}", "--name=whole")
    process = LOADED.Process(
        target=broken_run, args=([*SHORT, f"--out={tmp_path}", "--name=run"], "killed", 6)
    )
    process.start()
    process.join(240)
    with locked(tmp_path / "run"), pytest.raises(ValueError, match="writes into .*: wait for its end"):
        train_here(f"--resume={tmp_path / 'run'}")
    train_here(f"--resume={tmp_path / 'run'}")
    assert content(tmp_path / "run") == content(tmp_path / "whole")


@pytest.mark.slow
def test_ctrl_c_in_the_report_is_one_line(train_here, tmp_path):
    train_here(*SHORT, f"--out={tmp_path}", "--name=run", "--eval_n=20")
    process = start("eval.py", tmp_path / "run")
    while "evaluating" not in (process.output / "stdout").read_text():
        assert process.is_alive()
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGINT)
    stopped = finish(process)
    assert stopped.returncode == 1 and stopped.stderr == "stopped\n"
