"""Bad input of every kind: one line that names the file or the setting and the mend, and nothing is changed.

One test function for each kind of input, one case for each way of being bad. The cases call what the scripts
call, in this process; `test_the_scripts_say_it_in_one_line` looks at real processes.
"""

import dataclasses
import math
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import pytest

import eval as evaluation
import train
from engine.run import Run
from train import Config

ROOT = Path(__file__).parent.parent


class Accepted(Exception):
    """The run would begin its first step."""


def files_in(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def shown(value) -> str | None:
    """The name of a case in pytest's output."""
    return " ".join(value)[:50] if isinstance(value, list) else ""


@contextmanager
def refused(folder: Path, *words: str):
    """One line that has the words, within two seconds of work, and the folder is byte for byte as before."""
    before, start = files_in(folder), time.process_time()
    with pytest.raises((ValueError, OSError)) as raised:
        yield
    seconds, text = time.process_time() - start, str(raised.value)
    assert "\n" not in text and len(text) < 700
    assert [word for word in words if word not in text] == [], text
    assert files_in(folder) == before
    assert seconds < 2


@pytest.fixture
def run_train(tmp_path, monkeypatch, capsys):
    """train.py with these words, up to its first step, in a folder of its own."""

    def accept(run):
        raise Accepted

    def run(*words):
        monkeypatch.setattr(sys, "argv", ["train.py", *map(str, words)])
        train.main()

    monkeypatch.setattr(Run, "stages_left", accept)
    monkeypatch.chdir(tmp_path)
    return run


@pytest.fixture
def run_eval(tmp_path, monkeypatch, capsys):
    def run(*words):
        monkeypatch.setattr(sys, "argv", ["eval.py", *map(str, words)])
        evaluation.main()

    monkeypatch.chdir(tmp_path)
    return run


# ------------------------------------------------------------------------------- command lines of train.py

FIELDS = dataclasses.fields(Config)


def bad_values() -> list[tuple[list[str], str]]:
    """For each setting what can't be its value, and what the message must say beside the setting's name."""
    cases = []
    for field in FIELDS:
        low, high, choices = (field.metadata[key] for key in ("low", "high", "choices"))
        values = {"": "it is empty" if field.type is not bool else "write true or false"}
        if field.type is bool:
            values |= {"perhaps": "write true or false", "1": "write true or false"}
        if field.type is int:
            values |= {text: "it must be a whole number" for text in ("many", "0x10", "2.5", "nan")}
        if field.type is float:
            values |= {text: "it must be a number" for text in ("many", "0x10", "0,5")}
            values |= {text: "it must be finite" for text in ("nan", "-inf", "1e999")}
        if low > -math.inf:
            below = low - 1 if field.type is int else low - 1e-7
            values |= {f"{below}": f"it must be {low:g} or more", f"{-(10**20)}": "or more"}
        if high < math.inf:
            values |= {f"{high + 1}": f"it must be {high:g} or less", f"{10**20}": "or less"}
        if choices:
            values |= {"zebra": f"choose {choices[0]} or {choices[1]}", choices[0].upper(): "choose"}
        cases += [([f"--{field.name}={text}"], f"{field.name}...{mend}") for text, mend in values.items()]
    return cases


COMBINATIONS = [
    (["--stage1_step=5"], "did you mean 'stage1_steps'?"),
    (["--zebra=5"], "no setting 'zebra': --help lists them"),
    (["--batch"], "expected one argument"),
    (["batch=3"], "'batch=3': settings are written --key=value"),
    (["-batch=3"], "--key=value"),
    (["--"], "--key=value"),
    (["-"], "--key=value"),
    ([""], "--key=value"),
    (["--=3"], "no setting ''"),
    (["--resume"], "expected one argument"),
    (["--resume="], "name the folder of the stopped run"),
    (["--resume=nowhere"], "no checkpoint"),
    (["--resume=nowhere", "--lr=1"], "--resume goes on with the settings of the stopped run"),
    (["--resume=nowhere", "--preset=smoke"], "give no others"),
    (["--preset=huge"], "choose from"),
    (["--preset="], "choose from"),
    (["--name=.."], "name='..' must be the name of one folder: use --out"),
    (["--name=."], "use --out"),
    (["--name=a/b"], "use --out"),
    (["--name=a\\b"], "use --out"),
    (["--name=/"], "use --out"),
    (["--name= "], "it is empty"),
    (["--name=" + "n" * 300], "File name too long"),
    (["--out=" + "n" * 300], "File name too long"),
    (["--out=/dev/null"], "/dev/null"),
    (["--out=file"], "file"),
    (["--task=chess"], "no task 'chess': choose one of"),
    (["--task=reading"], "no task 'reading'"),
    (["--task=data.division"], "no task 'data.division'"),
    (["--task=gsm8k"], "task=gsm8k needs --init=FOLDER"),
    (["--task=mbpp", "--init=file"], "needs --init=FOLDER"),
    (["--preset=math"], "needs --init=FOLDER"),
    (["--task=gsm8k", "--init=.", "--train_data=file", "--test_data=none"], "none"),
    (["--train_data=file"], "leave out --train_data"),
    (["--test_data=file"], "leave out --train_data and --test_data"),
    (["--task=countdown", "--size=100"], "size=100: the largest number of countdown is 99"),
    (["--size=1000"], "a right attempt at size=1000 takes 2007 tokens: raise --max_new"),
    (["--size=10"], "raise --max_new"),
    (["--size=1"], "lower n=2000 or raise size"),
    (["--task=countdown", "--size=1"], "lower n=2000 or raise size"),
    (["--eval_n=100000"], "lower n=100000 or raise size"),
    (["--max_new=12"], "raise --max_new"),
    (["--copy=0.8", "--right=0.5"], "copy + right = 1.3 exceeds 1: lower one of them"),
    (["--dim=30"], "dim=30 must be a multiple of 2 * n_head=8"),
    (["--n_head=7"], "multiple of 2 * n_head=14"),
    (["--baseline=rloo"], "baseline=rloo needs --samples_per_problem=2 or more"),
    (["--batch=10", "--samples_per_problem=3"], "batch=10 is not a multiple of samples_per_problem=3"),
    (["--turns=3", "--offline_share=0.5"], "offline_share=0"),
    (["--interleave=121"], "interleave=121 exceeds the 120 steps of a stage"),
    (["--stage1_steps=2", "--interleave=3"], "interleave=3 exceeds the 2 steps"),
    (["--stage2_weight2=0"], "alpha must be 0"),
    (["--stage2_weight1=0", "--gamma=0.5"], "gamma must be 0"),
    (["--lora=4"], "lora adapts a model that exists: name one with --init"),
    (["--shard"], "shard needs optimizer=adamw"),
    (["--shard", "--optimizer=adamw", "--offline_share=0.1"], "shard needs offline_share=0"),
    (["--shard", "--optimizer=adamw", "--lora=2", "--init=file"], "shard needs lora=0"),
    (["--init=none.pt"], "no none.pt: --init takes a .pt file or a Hugging Face folder"),
    (["--init=."], "has no tokenizer.json"),
    (["--init=file"], "file is not a checkpoint of train.py"),
    (["--init=/dev/zero"], "no checkpoint /dev/zero"),
    (["--tokenizer=none"], "no folder none, and tiktoken only has"),
    (["--tokenizer=."], "has no tokenizer.json"),
    (["--imitate=none"], "no file"),
    (["--imitate=."], "no file"),
    (["--imitate=file"], "has no rows"),
    (["--device=abacus"], "device='abacus' is not available here: take auto"),
    (["--device=meta"], "device='meta' is not available here"),
    (["--device=cuda:99"], "device='cuda:99' is not available here"),
    (["--help=3"], "--help"),
]


@pytest.mark.parametrize("words, mend", bad_values() + COMBINATIONS, ids=shown)
def test_command_lines_of_train(words, mend, run_train, tmp_path):
    (tmp_path / "file").touch()
    with refused(tmp_path, *mend.split("...")):
        run_train(*words)
