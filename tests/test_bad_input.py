"""Bad input of every kind: one line that names the file or the setting and the mend, and nothing is changed.

One test function for each kind of input, one case for each way of being bad. The cases call what the scripts
call, in this process; `test_the_scripts_say_it_in_one_line` looks at real processes.
"""

import dataclasses
import gzip
import math
import pickle
import shutil
import sys
import time
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
import torch

import eval as evaluation
import train
from engine.checkpoints import load
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


# ---------------------------------------------------------------------------------------------- .pt files

TINY = ["size=2", "n_layer=1", "n_head=2", "dim=8", "base_steps=1", "base_batch=8"]
TINY += ["stage1_steps=3", "stage2_steps=1", "batch=4"]


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Two runs: `whole` came to its end; `half` was stopped with 4 rows in its log and 3 steps in last.pt."""
    folder, argv, wait = tmp_path_factory.mktemp("runs"), sys.argv, Run.log_and_save

    def stop(run, index, stage, step, *rest):
        wait(run, index, stage, step, *rest)
        if run.c.name == "half" and (stage.name, step) == ("stage1", 2):
            raise Accepted

    Run.log_and_save = stop
    for name in ("whole", "half"):
        settings = [*TINY, "eval_n=4", "save_every=1", "report=false", f"out={folder}", f"name={name}"]
        sys.argv = ["train.py", *(f"--{setting}" for setting in settings)]
        with suppress(Accepted):
            train.main()
    sys.argv, Run.log_and_save = argv, wait
    return folder


def set_in(*path_and_value):
    """A function that puts a value at a path into nested dicts and lists; `...` deletes what is there."""
    *path, name, value = path_and_value

    def change(content):
        inner = content
        for step in path:
            inner = inner[step]
        if value is ...:
            del inner[name]
        else:
            inner[name] = value(inner[name]) if callable(value) else value
        return content

    return change


class Code:
    """Its unpickling would end the tests."""

    def __reduce__(self):
        return (sys.exit, ("unpickled",))


W = "embed.weight"
QKV = "blocks.0.attn.qkv.weight"
DAMAGED = {  # what is done to the bytes of a checkpoint
    "empty": lambda data: b"",
    "zeros": lambda data: bytes(1000),
    "text": lambda data: b"not a checkpoint",
    "cut in the head": lambda data: data[:60],
    "cut in the middle": lambda data: data[: len(data) // 2],
    "without its last byte": lambda data: data[:-1],
    "zip without data": lambda data: b"PK\x05\x06" + bytes(18),
    "gzip": gzip.compress,
    "pickle of None": lambda data: pickle.dumps(None),
    "pickle that runs code": lambda data: pickle.dumps(Code()),
}
CHECKPOINTS = {  # what is done to its content
    "None": lambda content: None,
    "a list": lambda content: [content],
    "a tensor": lambda content: torch.zeros(3),
    "a number": lambda content: 7,
    "a text": lambda content: "checkpoint",
    "code": set_in("config", "task", lambda _: Code()),
    "code in the weights": set_in("model", W, lambda _: Code()),
    **{f"no {part}": set_in(part, ...) for part in ("config", "gpt", "model")},
    **{
        f"{part} is {v!r}": set_in(part, v)
        for part in ("config", "gpt", "model")
        for v in (None, [1], "x", {})
    },
    "gpt: unknown setting": set_in("gpt", "zebra", 1),
    "gpt: setting without a name": set_in("gpt", 3, 1),
    "gpt: no vocabulary": set_in("gpt", "vocab_size", ...),
    "gpt: text as size": set_in("gpt", "dim", "8"),
    "gpt: None as size": set_in("gpt", "n_layer", None),
    "gpt: float as size": set_in("gpt", "dim", 8.0),
    "gpt: bool as size": set_in("gpt", "n_layer", True),
    "gpt: tensor as size": set_in("gpt", "dim", torch.tensor(8)),
    "gpt: no layers": set_in("gpt", "n_layer", 0),
    "gpt: negative layers": set_in("gpt", "n_layer", -1),
    "gpt: more layers than weights": set_in("gpt", "n_layer", 2),
    "gpt: a million layers": set_in("gpt", "n_layer", 10**6),
    "gpt: huge vocabulary": set_in("gpt", "vocab_size", 10**11),
    "gpt: huge width": set_in("gpt", "dim", 10**9),
    "gpt: other vocabulary": set_in("gpt", "vocab_size", 50),
    "gpt: other width": set_in("gpt", "dim", 16),
    "gpt: heads that don't divide": set_in("gpt", "n_kv_head", 3),
    "gpt: no heads": set_in("gpt", "n_head", 0),
    "gpt: odd head": set_in("gpt", "head_dim", 3),
    "gpt: norm": set_in("gpt", "norm", "batch"),
    "gpt: position": set_in("gpt", "position", None),
    "gpt: mlp": set_in("gpt", "mlp", ["gelu"]),
    "gpt: tied": set_in("gpt", "tie_weights", "no"),
    "gpt: theta 0": set_in("gpt", "rope_theta", 0.0),
    "gpt: theta NaN": set_in("gpt", "rope_theta", math.nan),
    "gpt: negative eps": set_in("gpt", "norm_eps", -1e-5),
    "gpt: llama3 of texts": set_in("gpt", "rope_llama3", ["a", "b", "c", "d"]),
    "gpt: llama3 of two": set_in("gpt", "rope_llama3", [1.0, 2.0]),
    "gpt: llama3 of zeros": set_in("gpt", "rope_llama3", [0.0, 1.0, 1.0, 0]),
    "gpt: no length": set_in("gpt", "max_len", 0),
    "config: no task": set_in("config", "task", ...),
    "config: unknown task": set_in("config", "task", "chess"),
    "config: task None": set_in("config", "task", None),
    "config: text as number": set_in("config", "size", "2"),
    "config: list as number": set_in("config", "sample_batch", [24]),
    "config: NaN": set_in("config", "base_lr", math.nan),
    "config: negative": set_in("config", "eval_n", -4),
    "config: dtype": set_in("config", "dtype", "float8"),
    "config: bool as text": set_in("config", "report", "false"),
    "config: init that is gone": lambda content: set_in("model", W, ...)(
        set_in("config", "init", "/gone")(content)
    ),
    "config: lora without adapters": set_in("config", "lora", 4),
    "weights: none": set_in("model", {}),
    "weights: one missing": set_in("model", QKV, ...),
    "weights: one too many": set_in("model", "zebra", torch.zeros(2)),
    "weights: number as name": set_in("model", 3, torch.zeros(2)),
    "weights: an adapter without lora": set_in("model", "blocks.0.attn.qkv.lora_a", torch.zeros(2, 8)),
    "weights: None": set_in("model", W, None),
    "weights: a list": set_in("model", W, lambda w: w.tolist()),
    "weights: a number": set_in("model", W, 1.0),
    "weights: cut": set_in("model", QKV, lambda w: w[:-1]),
    "weights: transposed": set_in("model", QKV, lambda w: w.T),
    "weights: flat": set_in("model", QKV, lambda w: w.flatten()),
    "weights: empty": set_in("model", QKV, lambda w: w[:0]),
    "weights: sparse": set_in("model", QKV, lambda w: w.to_sparse()),
    "weights: meta": set_in("model", QKV, lambda w: w.to("meta")),
    "weights: quantised": set_in("model", QKV, lambda w: torch.quantize_per_tensor(w, 0.1, 0, torch.qint8)),
    **{
        f"weights: {t}": set_in("model", QKV, lambda w, t=t: w.to(t))
        for t in (torch.int64, torch.bool, torch.complex64)
    },
    "weights: float8": set_in("model", QKV, lambda w: w.to(torch.float8_e4m3fn)),
    **{
        f"weights: {x}": set_in("model", QKV, lambda w, x=x: w.index_fill(0, torch.tensor(3), x))
        for x in (math.nan, math.inf)
    },
}


@pytest.fixture(params=["eval", "init", "resume"])
def used(request, runs, tmp_path, run_train, run_eval):
    """A copy of a checkpoint, and a function that uses it in one of three ways."""
    folder = tmp_path / "run"
    shutil.copytree(runs / ("half" if request.param == "resume" else "whole"), folder)
    path = folder / {"eval": "stage2.pt", "init": "base.pt", "resume": "last.pt"}[request.param]
    words = {
        "eval": [path],
        "init": ["--size=2", "--eval_n=4", f"--init={path}"],
        "resume": [f"--resume={folder}"],
    }
    run = run_eval if request.param == "eval" else run_train
    return path, lambda: run(*words[request.param])


def test_an_undamaged_checkpoint_can_be_used(used):
    path, use = used
    with suppress(Accepted):
        use()


@pytest.mark.parametrize("damage", DAMAGED.values(), ids=DAMAGED)
def test_damaged_checkpoints(damage, used, tmp_path):
    path, use = used
    path.write_bytes(damage(path.read_bytes()))
    with refused(tmp_path, str(path)):
        use()


@pytest.mark.parametrize("change", CHECKPOINTS.values(), ids=CHECKPOINTS)
def test_checkpoints_with_other_content(change, used, tmp_path):
    path, use = used
    torch.save(change(load(path)), path)
    with refused(tmp_path, str(path)):
        use()


@pytest.mark.parametrize("damage", DAMAGED.values(), ids=DAMAGED)
def test_reports_of_damaged_checkpoints(damage, runs, tmp_path, run_eval):
    path = shutil.copytree(runs / "whole", tmp_path / "run") / "stage1.pt"
    path.write_bytes(damage(path.read_bytes()))
    with refused(tmp_path, str(path)):
        run_eval(path.parent)


STATES = {
    "unknown setting": set_in("config", "zebra", 1),
    "no stage": set_in("stage", ...),
    "stage as text": set_in("stage", "1"),
    "stage None": set_in("stage", None),
    "stage True": set_in("stage", True),
    "stage -1": set_in("stage", -1),
    "stage 99": set_in("stage", 99),
    "no step": set_in("step", ...),
    "step as text": set_in("step", "2"),
    "step -1": set_in("step", -1),
    "step of a longer stage": set_in("step", 3),
    "step 2.0": set_in("step", 2.0),
    "no optimizers": set_in("optimizers", ...),
    "optimizers None": set_in("optimizers", None),
    "optimizers a dict": set_in("optimizers", {}),
    "optimizers empty": set_in("optimizers", []),
    "optimizers of one": set_in("optimizers", lambda states: states[:1]),
    "optimizers of three": set_in("optimizers", lambda states: states + states[:1]),
    "optimizers exchanged": set_in("optimizers", lambda states: states[::-1]),
    "optimizers of texts": set_in("optimizers", ["a", "b"]),
    "optimizer without state": set_in("optimizers", 0, "state", ...),
    "optimizer with an empty state": set_in("optimizers", 0, "state", {}),
    "optimizer of texts": set_in("optimizers", 0, "state", lambda state: {i: "x" for i in state}),
    "moments of another shape": set_in("optimizers", 0, "state", 0, "exp_avg", lambda m: m[:3]),
    "moments missing": set_in("optimizers", 0, "state", 0, "exp_avg", ...),
    "moments of NaN": set_in("optimizers", 0, "state", 0, "exp_avg_sq", lambda m: m * math.nan),
    "momentum of another shape": set_in("optimizers", 1, "state", 0, "momentum_buffer", lambda m: m.T[:2]),
    "no seconds": set_in("seconds", ...),
    "seconds as text": set_in("seconds", "12"),
    "seconds NaN": set_in("seconds", math.nan),
    "seconds negative": set_in("seconds", -1e9),
}
LOGS = {  # what is done to metrics.jsonl
    "missing": lambda path: path.unlink(),
    "empty": lambda path: path.write_text(""),
    "a row short": lambda path: path.write_text("".join(path.read_text().splitlines(True)[:2])),
    "in UTF-16": lambda path: path.write_text(path.read_text(), encoding="utf-16"),
    "a folder": lambda path: path.unlink() or path.mkdir(),
    "noise": lambda path: path.write_bytes(bytes(range(256))),
    "no JSON": lambda path: path.write_text("what\n" * 3),
    "lists": lambda path: path.write_text("[1]\n" * 3),
}


@pytest.mark.parametrize("change", STATES.values(), ids=STATES)
def test_states_to_resume(change, runs, tmp_path, monkeypatch):
    path = shutil.copytree(runs / "half", tmp_path / "run") / "last.pt"
    torch.save(change(load(path)), path)
    monkeypatch.setattr(sys, "argv", ["train.py", f"--resume={path.parent}"])
    with refused(tmp_path, str(path)):
        train.main()


@pytest.mark.parametrize("change", LOGS.values(), ids=LOGS)
def test_logs_to_resume(change, runs, tmp_path, run_train):
    path = shutil.copytree(runs / "half", tmp_path / "run") / "metrics.jsonl"
    change(path)
    with refused(tmp_path, str(path)):
        run_train(f"--resume={path.parent}")


@pytest.mark.parametrize("name", [name for name in LOGS if name not in ("empty", "a row short")])
def test_logs_to_report(name, runs, tmp_path, run_eval):
    path = shutil.copytree(runs / "whole", tmp_path / "run") / "metrics.jsonl"
    LOGS[name](path)
    with refused(tmp_path, str(path.parent), path.name):
        run_eval(path.parent)
