"""Bad input of every kind: one line that names the file or the setting and the mend, and nothing is changed.

One test function for each kind of input, one case for each way of being bad. The cases call what the scripts
call, in this process; `test_the_scripts_say_it_in_one_line` looks at real processes.
"""

import dataclasses
import gzip
import json
import math
import pickle
import shutil
import sys
import time
import warnings
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from scripts import script

import eval as evaluation
import train
from data import load_task, wrong_attempts
from data.demonstrations import read_traces
from engine.build import make_environment
from engine.checkpoints import load
from engine.hf import gpt2_config, save_pretrained
from engine.hf_tokenizer import printable_bytes
from engine.run import Run
from model import GPT, GPTConfig
from train import Config

SHIPPED = Path(__file__).resolve().parent.parent / "experiments" / "checkpoints" / "base.pt"


class Accepted(Exception):
    """The run would begin its first step."""


def files_in(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def shown(value) -> str | None:
    """The name of a case in pytest's output."""
    return " ".join(value)[:50] if isinstance(value, list) else ""


@contextmanager
def refused(folder: Path, *words: str):
    """One line that has the words, within two seconds of work, and the folder is byte for byte as before.

    A warning would be another line.
    """
    before, start = files_in(folder), time.process_time()
    with warnings.catch_warnings(record=True) as warned, pytest.raises((ValueError, OSError)) as raised:
        warnings.simplefilter("always")
        yield
    seconds, text = time.process_time() - start, str(raised.value)
    assert "\n" not in text and len(text) < 700
    assert [word for word in words if word not in text] == [], text
    assert files_in(folder) == before
    assert seconds < 2 and not warned


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
    (["--size=1000"], "a right attempt at size=1000 takes 2006 tokens: raise --max_new"),
    (["--size=10"], "raise --max_new"),
    (["--size=1"], "not 2000: lower --eval_n"),
    (["--task=countdown", "--size=1"], "not 2000: lower --eval_n"),
    (["--eval_n=100000"], "not 100000: lower --eval_n"),
    (["--max_new=11"], "raise --max_new"),
    (["--copy=0.8", "--right=0.5"], "copy + right = 1.3 exceeds 1: lower one of them"),
    (["--dim=30"], "dim=30 must be a multiple of 2 * n_head=8"),
    (["--n_head=7"], "multiple of 2 * n_head=14"),
    (["--baseline=rloo"], "baseline=rloo needs --samples_per_problem=2 or more"),
    (["--batch=10", "--samples_per_problem=3"], "batch=10 is not a multiple of samples_per_problem=3"),
    (["--turns=3", "--offline_share=0.5"], "offline_share=0"),
    (["--interleave=151"], "interleave=151 must divide"),
    (["--interleave=9999999", "--stage1_steps=0", "--stage2_steps=0"], "it must be 1e+06 or less"),
    (["--stage1_steps=7", "--interleave=3"], "interleave=3 must divide stage1_steps"),
    (["--stage2_weight2=0"], "alpha must be 0"),
    (["--stage2_weight1=0", "--gamma=0.5"], "gamma must be 0"),
    (["--lora=4"], "lora adapts a model that exists: name one with --init"),
    (["--shard"], "shard needs optimizer=adamw"),
    (["--shard", "--optimizer=adamw", "--offline_share=0.1"], "shard needs offline_share=0"),
    (["--shard", "--optimizer=adamw", "--lora=2", "--init=file"], "shard needs lora=0"),
    (["--init=out/default"], "no out/default: --init takes"),  # the folder that the run itself would make
    (["--init=none.pt"], "no none.pt: --init takes a .pt file or a Hugging Face folder"),
    ([f"--init={SHIPPED}", "--seed=3"], "set --seed=0, that of"),
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
    (["--device=mkldnn"], "device='mkldnn' is not available here"),
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
        if (part, v) != ("config", {})  # a setting that is not there has its default
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


@pytest.mark.parametrize("damage", list(DAMAGED.values())[::3], ids=list(DAMAGED)[::3])
def test_reports_of_damaged_checkpoints(damage, runs, tmp_path, run_eval):
    path = shutil.copytree(runs / "whole", tmp_path / "run") / "stage1.pt"
    path.write_bytes(damage(path.read_bytes()))
    with refused(tmp_path, str(path)):
        run_eval(path.parent)


STATES = {
    "unknown setting": set_in("config", "zebra", 1),
    "no settings": set_in("config", {}),
    "missing setting": set_in("config", "task", ...),
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
    "momentum of another shape": set_in("optimizers", 1, "state", 0, "momentum", lambda m: m.T[:2]),
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


# ------------------------------------------------------------------------------------ Hugging Face folders

LLAMA = dict(n_layer=1, n_head=2, n_kv_head=1, dim=8, head_dim=4, ffn_dim=8, qk_norm=False)
SMALL = {
    "llama": GPTConfig(258, **LLAMA),
    "gpt2": gpt2_config(vocab_size=258, **LLAMA | dict(n_kv_head=2, max_len=256)),
}
QKV_THEIRS = "model.layers.0.self_attn.k_proj.weight"


def a_tokenizer() -> dict:
    """The tokenizer.json of 256 bytes, one merge and one special token, with GPT-2's markup."""
    vocab = {**{character: i for i, character in enumerate(printable_bytes())}, "ab": 256}
    return {
        "model": {"type": "BPE", "vocab": vocab, "merges": [["a", "b"]]},
        "normalizer": {"type": "NFC"},
        "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": False},
        "added_tokens": [{"content": "<|endoftext|>", "id": 257}],
    }


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory):
    """Folders of a Llama and a GPT-2, and of the Llama in .bin and in two shards."""
    place = tmp_path_factory.mktemp("hf")
    for name, config in SMALL.items():
        torch.manual_seed(0)
        save_pretrained(GPT(config), place / name)
        (place / name / "tokenizer.json").write_text(json.dumps(a_tokenizer()))
    tensors = load_file(place / "llama" / "model.safetensors")
    for name in ("bin", "shards"):
        shutil.copytree(place / "llama", place / name)
        (place / name / "model.safetensors").unlink()
    torch.save(tensors, place / "bin" / "pytorch_model.bin")
    halves = {"a.safetensors": list(tensors)[:5], "b.safetensors": list(tensors)[5:]}
    for name, keys in halves.items():
        save_file({key: tensors[key] for key in keys}, place / "shards" / name)
    index = {"weight_map": {key: name for name, keys in halves.items() for key in keys}}
    (place / "shards" / "model.safetensors.index.json").write_text(json.dumps(index))
    return place


def in_json(*path_and_value):
    """A function that changes a JSON file as `set_in` does."""

    def change(path):
        path.write_text(json.dumps(set_in(*path_and_value)(json.loads(path.read_text()))))

    return change


def bytes_of(data):
    """A function that writes bytes, or what a function makes of the file's bytes."""
    return lambda path: path.write_bytes(data(path.read_bytes()) if callable(data) else data)


def tensors(change):
    """A function that changes the dict of tensors in a file."""

    def write(path):
        if path.suffix == ".bin":
            torch.save(change(torch.load(path)), path)
        else:
            save_file({key: t.contiguous() for key, t in change(load_file(path)).items()}, path)

    return write


def header(change):
    """A function that changes the JSON header of a .safetensors file and leaves its data."""

    def write(path):
        data = path.read_bytes()
        end = 8 + int.from_bytes(data[:8], "little")
        head = json.dumps(change(json.loads(data[8:end]))).encode()
        path.write_bytes(len(head).to_bytes(8, "little") + head + data[end:])

    return write


CONFIG, SAFE, BIN, INDEX = (
    "config.json",
    "model.safetensors",
    "pytorch_model.bin",
    "model.safetensors.index.json",
)
NOT_JSON = {
    "missing": lambda path: path.unlink(),
    "a folder": lambda path: path.unlink() or path.mkdir(),
    "empty": bytes_of(b""),
    "cut": bytes_of(lambda data: data[:-9]),
    "noise": bytes_of(bytes(range(256))),
    "a list": bytes_of(b"[]"),
    "null": bytes_of(b"null"),
    "a text": bytes_of(b'"llama"'),
    "nested 100,000 deep": bytes_of(b"[" * 100_000),
    "objects nested 100,000 deep": bytes_of(b'{"a":' * 100_000),
    "UTF-16": bytes_of(lambda data: data.decode().encode("utf-16")),
    "huge number": bytes_of(b'{"vocab_size": 1' + b"0" * 5000 + b"}"),
}
HF_FOLDERS = {
    **{f"config.json: {name}": ("llama", CONFIG, change) for name, change in NOT_JSON.items()},
    **{
        f"{family}: {key} is {value!r}": (family, CONFIG, in_json(key, value))
        for family, keys in (
            (
                "llama",
                (
                    "hidden_size",
                    "num_attention_heads",
                    "num_hidden_layers",
                    "vocab_size",
                    "intermediate_size",
                ),
            ),
            ("gpt2", ("n_embd", "n_head", "n_layer", "n_positions")),
        )
        for key in keys
        for value in (..., None, "8", 0, -1, 4.0, [8], True, 10**15)
    },
    **{
        f"{key} is {value!r}": ("llama", CONFIG, in_json(key, value))
        for key, value in (
            ("num_hidden_layers", 2),
            ("num_hidden_layers", 10**7),
            ("vocab_size", 259),
            ("intermediate_size", 9),
            ("num_key_value_heads", -1),
            ("num_key_value_heads", 3),
            ("num_key_value_heads", "1"),
            ("num_key_value_heads", 2),
            ("head_dim", -4),
            ("head_dim", 0),
            ("num_key_value_heads", 0),
            ("head_dim", 3),
            ("head_dim", "4"),
            ("head_dim", 8),
            ("max_position_embeddings", 0),
            ("max_position_embeddings", None),
            ("max_position_embeddings", "many"),
            ("rope_theta", 0),
            ("rope_theta", "x"),
            ("rope_theta", -1.0),
            ("rope_theta", [1]),
            ("rope_theta", True),
            ("rope_scaling", "linear"),
            ("rope_scaling", ["llama3"]),
            ("rope_scaling", {"rope_type": "yarn"}),
            ("rope_scaling", {"rope_type": "llama3"}),
            ("rope_scaling", {"rope_type": ["llama3"]}),
            (
                "rope_scaling",
                {
                    "rope_type": "llama3",
                    "factor": "8",
                    "low_freq_factor": 1,
                    "high_freq_factor": 4,
                    "original_max_position_embeddings": 8,
                },
            ),
            (
                "rope_scaling",
                {
                    "rope_type": "llama3",
                    "factor": 0,
                    "low_freq_factor": 1,
                    "high_freq_factor": 4,
                    "original_max_position_embeddings": 8,
                },
            ),
            (
                "rope_scaling",
                {
                    "rope_type": "llama3",
                    "factor": 8,
                    "low_freq_factor": 4,
                    "high_freq_factor": 4,
                    "original_max_position_embeddings": 8,
                },
            ),
            ("rms_norm_eps", "x"),
            ("rms_norm_eps", -1),
            ("rms_norm_eps", None),
            ("tie_word_embeddings", "no"),
            ("tie_word_embeddings", True),
            ("tie_word_embeddings", 1),
            ("model_type", "mixtral"),
            ("model_type", None),
            ("model_type", ["llama"]),
            ("model_type", ...),
            ("model_type", "qwen2"),
            ("model_type", "qwen3"),
            ("model_type", "gpt2"),
            ("hidden_act", "gelu"),
            ("attention_bias", True),
            ("layer_types", ["sliding_attention"]),
            ("layer_types", 3),
            ("layer_types", "full_attention"),
            ("layer_types", [["full_attention"]]),
            ("sliding_window", 8),
            ("quantization_config", {"bits": 4}),
            ("num_experts", 8),
            ("partial_rotary_factor", 0.5),
        )
    },
    "gpt2: n_inner is 0": ("gpt2", CONFIG, in_json("n_inner", 0)),
    "gpt2: n_inner is text": ("gpt2", CONFIG, in_json("n_inner", "x")),
    "gpt2: n_embd is no multiple of n_head": ("gpt2", CONFIG, in_json("n_head", 3)),
    "gpt2: other n_positions": ("gpt2", CONFIG, in_json("n_positions", 99)),
    "gpt2: layer_norm_epsilon is text": ("gpt2", CONFIG, in_json("layer_norm_epsilon", "x")),
    "no weights": ("llama", SAFE, lambda path: path.unlink()),
    **{
        f"{file}: {name}": (folder, file, change)
        for folder, file in (("llama", SAFE), ("bin", BIN), ("shards", "b.safetensors"))
        for name, change in (
            ("a folder", lambda path: path.unlink() or path.mkdir()),
            ("empty", bytes_of(b"")),
            ("cut in the head", bytes_of(lambda data: data[:20])),
            ("cut in the middle", bytes_of(lambda data: data[: len(data) // 2])),
            ("without its last byte", bytes_of(lambda data: data[:-1])),
            ("text", bytes_of(b"not a checkpoint at all")),
            ("zeros", bytes_of(bytes(1000))),
            (
                "a link to Git LFS",
                bytes_of(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n"),
            ),
        )
    },
    **{
        f"{file}: {name}": (folder, file, tensors(change))
        for folder, file in (("llama", SAFE), ("bin", BIN))
        for name, change in (
            ("no tensors", lambda found: {}),
            ("a tensor missing", lambda found: {key: t for key, t in found.items() if key != QKV_THEIRS}),
            ("a tensor too many", lambda found: found | {"zebra": torch.zeros(2)}),
            ("another shape", lambda found: found | {QKV_THEIRS: torch.zeros(3, 8)}),
            ("transposed", lambda found: found | {QKV_THEIRS: found[QKV_THEIRS].T}),
            ("no axes", lambda found: found | {QKV_THEIRS: torch.tensor(1.0)}),
            ("int64", lambda found: found | {QKV_THEIRS: found[QKV_THEIRS].long()}),
            ("bool", lambda found: found | {QKV_THEIRS: found[QKV_THEIRS].bool()}),
            ("NaN", lambda found: found | {QKV_THEIRS: found[QKV_THEIRS] * math.nan}),
            ("infinity", lambda found: found | {QKV_THEIRS: found[QKV_THEIRS] + math.inf}),
        )
    },
    **{
        f"{BIN}: {name}": ("bin", BIN, tensors(change))
        for name, change in (
            ("complex", lambda found: found | {QKV_THEIRS: found[QKV_THEIRS].to(torch.complex64)}),
            ("sparse", lambda found: found | {QKV_THEIRS: found[QKV_THEIRS].to_sparse()}),
            ("meta", lambda found: found | {QKV_THEIRS: found[QKV_THEIRS].to("meta")}),
            ("a list", lambda found: list(found.values())),
            ("a tensor", lambda found: torch.zeros(3)),
            ("None", lambda found: None),
            ("nested", lambda found: {"model": found}),
            ("numbers as names", lambda found: dict(enumerate(found.values()))),
            ("code", lambda found: found | {QKV_THEIRS: Code()}),
        )
    },
    f"{BIN}: a pickle with code": ("bin", BIN, bytes_of(pickle.dumps(Code()))),
    **{
        f"{SAFE}: {name}": ("llama", SAFE, header(change))
        for name, change in (
            ("a list as header", lambda head: [head]),
            ("an unknown dtype", lambda head: head | {QKV_THEIRS: head[QKV_THEIRS] | {"dtype": "F99"}}),
            ("no dtype", lambda head: head | {QKV_THEIRS: {}}),
            (
                "offsets behind the end",
                lambda head: head | {QKV_THEIRS: head[QKV_THEIRS] | {"data_offsets": [0, 10**12]}},
            ),
            (
                "negative offsets",
                lambda head: head | {QKV_THEIRS: head[QKV_THEIRS] | {"data_offsets": [-4, 0]}},
            ),
            (
                "a huge shape",
                lambda head: head | {QKV_THEIRS: head[QKV_THEIRS] | {"shape": [10**12, 10**12]}},
            ),
            ("a header that is too long", lambda head: head | {"x" * 10: "y" * 10}),
        )
    },
    f"{SAFE}: a header of 2**63 bytes": (
        "llama",
        SAFE,
        bytes_of(lambda data: b"\xff" * 7 + b"\x7f" + data[8:]),
    ),
    **{
        f"index: {name}": ("shards", INDEX, change)
        for name, change in NOT_JSON.items()
        if name not in ("missing", "a folder")
    },
    **{
        f"index: weight_map is {value!r}": ("shards", INDEX, in_json("weight_map", value))
        for value in (
            ...,
            None,
            [],
            {},
            "a.safetensors",
            ["a.safetensors"],
            {QKV_THEIRS: None},
            {QKV_THEIRS: 3},
            {QKV_THEIRS: ["a"]},
            {QKV_THEIRS: ""},
            {QKV_THEIRS: "none.safetensors"},
            {QKV_THEIRS: ".."},
            {QKV_THEIRS: "/etc/passwd"},
            {QKV_THEIRS: "../llama/model.safetensors"},
            {QKV_THEIRS: "a.safetensors"},
            {QKV_THEIRS: "x\0y"},
        )
    },
}


@pytest.mark.parametrize("name", ["llama", "gpt2", "bin", "shards"])
def test_undamaged_folders_can_be_used(name, pretrained, run_train):
    with pytest.raises(Accepted):
        run_train("--size=2", "--eval_n=4", f"--init={pretrained / name}", "--max_new=60")


@pytest.mark.parametrize("case", HF_FOLDERS.values(), ids=HF_FOLDERS)
def test_hugging_face_folders(case, pretrained, run_train, tmp_path):
    name, file, change = case
    folder = shutil.copytree(pretrained / name, tmp_path / "model")
    change(folder / file)
    with refused(tmp_path, str(folder)):
        run_train("--size=2", "--eval_n=4", f"--init={folder}", "--max_new=60")


# ------------------------------------------------------------------------------------------- tokenizer.json

TOKENIZERS = {
    **{
        f"tokenizer.json: {name}": change
        for name, change in NOT_JSON.items()
        if name not in ("missing", "a folder")
    },
    **{
        f"{part} is {value!r}": in_json(part, value)
        for part in ("model", "normalizer", "pre_tokenizer", "added_tokens")
        for value in (3, "x", ["x"], [[]])
    },
    **{f"no {part}": in_json(part, ...) for part in ("model", "pre_tokenizer", "added_tokens")},
    **{f"{part} is null": in_json(part, None) for part in ("model", "pre_tokenizer", "added_tokens")},
    **{
        f"vocab is {value!r}": in_json("model", "vocab", value)
        for value in (..., None, [], {}, "x", 3, {"a": 0})
    },
    "a token without id": in_json("model", "vocab", "q", ...),
    **{
        f"an id is {value!r}": in_json("model", "vocab", "q", value)
        for value in (None, "5", -1, 1.5, [1], True, 0, 2**31, 10**30, 257)
    },
    **{
        f"merges are {value!r}": in_json("model", "merges", value)
        for value in (
            ...,
            None,
            [],
            {},
            "ab",
            3,
            [3],
            [None],
            [["a"]],
            [["a", "b", "c"]],
            [[1, 2]],
            ["a"],
            ["a b c"],
            [["a", "q"]],
            [["a", ["b"]]],
            {"a": "b"},
        )
    },
    "merges out of order": lambda path: (
        in_json("model", "vocab", "abc", 100)(path) or in_json("model", "merges", ["a b", "ab c"])(path)
    ),
    **{
        f"model type {value!r}": in_json("model", "type", value)
        for value in ("Unigram", "WordPiece", None, 3)
    },
    "byte_fallback": in_json("model", "byte_fallback", True),
    **{
        f"normalizer type {value!r}": in_json("normalizer", "type", value)
        for value in ("NFKC", "Lowercase", None, 3, ["NFC"])
    },
    **{
        f"pre_tokenizer {value!r}": in_json("pre_tokenizer", value)
        for value in (
            {},
            {"type": "Whitespace"},
            {"type": "ByteLevel"},
            {"type": "ByteLevel", "add_prefix_space": True},
            {"pretokenizers": []},
            {"pretokenizers": None},
            {"pretokenizers": [3]},
            {"pretokenizers": "x"},
            {"type": ["ByteLevel"]},
        )
    },
    **{
        f"split pattern {value!r}": in_json(
            "pre_tokenizer",
            {
                "pretokenizers": [
                    {"type": "Split", "behavior": "Isolated", "pattern": value},
                    {"type": "ByteLevel", "add_prefix_space": False, "use_regex": False},
                ]
            },
        )
        for value in (
            None,
            3,
            "x",
            {},
            {"Regex": None},
            {"Regex": 3},
            {"Regex": "("},
            {"Regex": "[z-a]"},
            {"String": " "},
            {"Regex": ["x"]},
            {"Regex": "(?<name"},
            {"Regex": "x{99999999}"},
        )
    },
    **{
        f"added tokens {value!r}": in_json("added_tokens", value)
        for value in (
            [{"content": "<|endoftext|>"}],
            [{"id": 257}],
            [{"content": None, "id": 257}],
            [{"content": 3, "id": 257}],
            [{"content": "<|endoftext|>", "id": "257"}],
            [{"content": "<|endoftext|>", "id": -1}],
            [{"content": "<|endoftext|>", "id": 1.5}],
            [{"content": "<|endoftext|>", "id": 2**40}],
            [{"content": "<|endoftext|>", "id": None}],
            [{"content": "<|endoftext|>", "id": 3}],
            [{"content": "<|endoftext|>", "id": 257}, {"content": "<|x|>", "id": 257}],
            [{"content": "<|pad|>", "id": 257}],
            [{"content": "", "id": 258}, {"content": "<|endoftext|>", "id": 257}],
            [],
            [None],
            {"<|endoftext|>": 257},
            [{"content": "<|endoftext|>", "id": True}],
            [{"content": "<|endoftext|>", "id": 10**7}],
        )
    },
}


@pytest.mark.parametrize("change", TOKENIZERS.values(), ids=TOKENIZERS)
def test_tokenizers(change, pretrained, run_train, tmp_path):
    folder = shutil.copytree(pretrained / "llama", tmp_path / "model")
    change(folder / "tokenizer.json")
    with refused(tmp_path, str(folder)):
        run_train("--size=2", "--eval_n=4", f"--init={folder}", "--max_new=60")


# --------------------------------------------------------------------------------------- rows of JSON lines

GSM8K = {"question": "What is 2 + 3?", "answer": "2 + 3 = 5\n#### 5"}
MATH = {"problem": "What is 2 + 3?", "solution": r"It is \boxed{5}.", "answer": "5"}
MBPP = {
    "task_id": 601,
    "text": "Add.",
    "code": "def add(a, b):\n    return a + b",
    "test_list": ["assert add(1, 2) == 3"],
}
HUMANEVAL = {
    "task_id": "x/0",
    "prompt": "def f(x):\n    '''One.'''\n",
    "entry_point": "f",
    "test": "def check(f):\n    assert f(1) == 1",
}
IMITATE = {"prompt": "112/8", "attempts": ["13*8=104<", "14*8=112="]}
REPAIR = {"prompt": "112/8", "answer": "14", "attempts": ["13*8=104<"]}
ROWS = {
    "gsm8k": GSM8K,
    "math": MATH,
    "mbpp": MBPP,
    "humaneval": HUMANEVAL,
    "imitate": IMITATE,
    "repair": REPAIR,
}


def read(kind: str, path: Path):
    """What a script does with a file of this kind."""
    if kind == "imitate":
        c = Config(imitate=str(path), size=2)
        return read_traces(c, make_environment(c))
    if kind == "repair":
        return wrong_attempts(path, load_task("division"))
    return load_task(kind).read(str(path), "test" if kind == "humaneval" else "train")


def line(row) -> bytes:
    return json.dumps(row).encode() + b"\n"


def rows_with(kind: str, key: str, values: tuple) -> dict:
    """Files whose second row has no such field, or a bad value in it."""
    return {
        f"{kind}: {key} is {str(value)[:40]!r}": (
            kind,
            line(ROWS[kind]) + line(set_in(key, value)(dict(ROWS[kind]))),
        )
        for value in values
    }


NO_TEXTS = (..., None, 3, ["x"], {"a": 1}, True)
TEXT_FILES = {
    "empty": b"",
    "blank lines alone": b"\n \n\n",
    "no JSON": b"question,answer\n",
    "a row cut off": lambda row: row + row[:-9],
    "a list": lambda row: row + b"[1, 2]\n",
    "a number": lambda row: row + b"3\n",
    "null": lambda row: row + b"null\n",
    "a text": lambda row: row + b'"row"\n',
    "an empty object": lambda row: row + b"{}\n",
    "two objects in a row": lambda row: row + row[:-1] + row,
    "one JSON list of rows": lambda row: b"[" + row + b"]",
    "UTF-16": lambda row: row.decode().encode("utf-16"),
    "Latin-1": lambda row: row + b'{"question": "caf\xe9"}\n',
    "noise": bytes(range(256)) * 9,
    "lists nested 100,000 deep": lambda row: row + b"[" * 100_000 + b"\n",
    "objects nested 100,000 deep": lambda row: row + b'{"question":' * 100_000 + b"\n",
    "closed and nested 100,000 deep": lambda row: row + b"[" * 100_000 + b"]" * 100_000 + b"\n",
    "a number of 5,000 digits": lambda row: row + b'{"question": 1' + b"0" * 5000 + b"}\n",
    "two byte order marks": lambda row: b"\xef\xbb\xbf" * 2 + row,
}
GZ_FILES = {
    "cut": lambda row: gzip.compress(row * 1000)[:-20],
    "cut in the head": lambda row: gzip.compress(row)[:5],
    "no gz": lambda row: row,
    "empty": lambda row: b"",
    "of an empty file": lambda row: gzip.compress(b""),
    "with a wrong checksum": lambda row: gzip.compress(row)[:-8] + bytes(8),
    "followed by noise": lambda row: gzip.compress(row) + b"noise",
    "of noise": lambda row: gzip.compress(bytes(range(256))),
    "with a damaged middle": lambda row: gzip.compress(row)[:15] + b"\xff" * 9 + gzip.compress(row)[24:],
}
BAD_ROWS = {
    **{
        f"{kind}: {name}": (kind, data)
        for kind in ("gsm8k", "imitate", "repair")
        for name, data in TEXT_FILES.items()
    },
    **rows_with("gsm8k", "question", (*NO_TEXTS, "", "  ")),
    **rows_with("gsm8k", "answer", (*NO_TEXTS, "", "5", "####", "#### ")),
    **rows_with("gsm8k", "attempt", (None, 3, ["x"])),
    **rows_with("math", "problem", (*NO_TEXTS, "")),
    **rows_with("math", "answer", (None, 3, ["5"], "", "?!")),
    **rows_with("mbpp", "task_id", (...,)),
    **rows_with("mbpp", "text", NO_TEXTS),
    **rows_with(
        "mbpp",
        "code",
        (
            *NO_TEXTS,
            "def add(:",
            "x = 1",
            "",
            "def f(): return " + "-" * 100_000 + "1",
            "\0",
            "def f(): return " + "(" * 10_000,
            "def f(): return " + "+1" * 100_000,
        ),
    ),
    **rows_with(
        "mbpp",
        "test_list",
        (*NO_TEXTS, [], [3], ["assert add("], ["pass"], ["assert " + "-" * 100_000 + "1"]),
    ),
    **rows_with("mbpp", "test_setup_code", (3, ["x"], "import (")),
    **rows_with("humaneval", "prompt", (*NO_TEXTS, "def f(:", "-" * 100_000, "x = 1")),
    **rows_with("humaneval", "entry_point", (*NO_TEXTS, "", "g", "f; x", "class")),
    **rows_with("humaneval", "test", (*NO_TEXTS, "def check(:", "-" * 100_000 + "1", "x = 1", "\ud800")),
    **rows_with("imitate", "prompt", (*NO_TEXTS, "100/5\u00e9", "100/5\ud800")),
    **rows_with(
        "imitate", "attempts", (..., None, 3, {"a": 1}, True, [], [3], [None], ["14", 3], "14", ["caf\u00e9"])
    ),
    **rows_with("repair", "prompt", NO_TEXTS),
    **rows_with("repair", "answer", NO_TEXTS),
    **rows_with("repair", "attempts", (..., None, 3, {"a": 1}, True, [], [3], [None], [["14"]], "14")),
    "repair: nothing is wrong": ("repair", line(REPAIR | {"attempts": ["14*8=112="]})),
    "repair: nothing is written": ("repair", line(REPAIR | {"attempts": [" "]})),
    "imitate: a held-out problem": (
        "imitate",
        line(IMITATE | {"prompt": "84/6"})
        + line(IMITATE | {"prompt": "90/6"})
        + line(IMITATE | {"prompt": "96/6"})
        + line(IMITATE | {"prompt": "102/6"}),
    ),
    "mbpp: no row of the split": ("mbpp", line(MBPP | {"task_id": 11})),
}


@pytest.mark.parametrize("kind", ROWS)
def test_undamaged_rows_can_be_read(kind, tmp_path):
    text = line(ROWS[kind])
    for name, data in {
        "a.jsonl": text,
        "b.jsonl": b"\xef\xbb\xbf" + text + b"\r\n\n",
        "c.jsonl.gz": gzip.compress(text),
    }.items():
        (tmp_path / name).write_bytes(data)
        assert len(read(kind, tmp_path / name)) == 1


@pytest.mark.parametrize("kind, data", BAD_ROWS.values(), ids=BAD_ROWS)
def test_rows(kind, data, tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_bytes(data(line(ROWS[kind])) if callable(data) else data)
    with refused(tmp_path, str(path)):
        read(kind, path)


@pytest.mark.parametrize("data", GZ_FILES.values(), ids=GZ_FILES)
def test_packed_rows(data, tmp_path):
    path = tmp_path / "rows.jsonl.gz"
    path.write_bytes(data(line(GSM8K)))
    with refused(tmp_path, str(path)):
        read("gsm8k", path)


# --------------------------------------------------------------------------------- arguments of eval.py

EVAL_ARGUMENTS = [
    ([], "the following arguments are required: path"),
    (["none.pt"], "no checkpoint none.pt: give a .pt file"),
    (["none"], "no checkpoint none"),
    ([""], "has no checkpoint base.pt"),
    (["file"], "file is not a checkpoint"),
    (["."], "has no checkpoint base.pt: give the folder of a run"),
    (["CHECKPOINT", "more"], "'more'"),
    (["RUN", "--n=4"], "--n is for one checkpoint such as"),
    (["RUN", "--json"], "--json is for one checkpoint"),
    (["RUN", "--device=abacus"], "device='abacus' is not available here"),
    (["CHECKPOINT", "--device=meta"], "device='meta' is not available here"),
    (["CHECKPOINT", "--zebra=1"], "no setting 'zebra'"),
    (["CHECKPOINT", "--temprature=1"], "did you mean 'temperature'?"),
    (["CHECKPOINT", "--n=0"], "n=0: it must be 1 or more"),
    (["CHECKPOINT", "--n=many"], "it must be a whole number"),
    (["CHECKPOINT", "--n="], "--n: it is empty"),
    (["CHECKPOINT", "--n=1000"], "not 1000: lower --eval_n"),
    (["CHECKPOINT", "--n=1000000"], "n=1000000: it must be 100000 or less"),
    (["CHECKPOINT", "--turns=0"], "turns=0: it must be 1 or more"),
    (["CHECKPOINT", "--turns=1000"], "lower turns or max_new"),
    (["CHECKPOINT", "--turns=999999999"], "turns=999999999: it must be 1000 or less"),
    (["CHECKPOINT", "--temperature=-1"], "temperature=-1.0: it must be 0 or more"),
    (["CHECKPOINT", "--temperature=1e-38"], "it must be 0 (greedy), or 0.001 or more"),
    (["CHECKPOINT", "--temperature=nan"], "temperature=nan: it must be finite"),
    (["CHECKPOINT", "--temperature=1e30"], "it must be 1000 or less"),
    (["CHECKPOINT", "--max_new=0"], "max_new=0: it must be 1 or more"),
    (["CHECKPOINT", "--max_new=5000"], "max_new"),
    (["CHECKPOINT", "--max_new=99999999999"], "max_new=99999999999: it must be 100000 or less"),
    (["CHECKPOINT", "--show=-1"], "show=-1: it must be 0 or more"),
    (["CHECKPOINT", "--json=perhaps"], "write true or false"),
    (["CHECKPOINT", "--task=chess"], "no task 'chess': choose one of"),
    (["CHECKPOINT", "--task="], "--task: it is empty"),
    (["CHECKPOINT", "--task=gsm8k"], "task=gsm8k reads a file: give --test_data=FILE"),
    (["CHECKPOINT", "--test_data=file"], "leave out --train_data and --test_data"),
    (["CHECKPOINT", "--problem="], "--problem: it is empty"),
    (["CHECKPOINT", "--problem=85/6"], "looks like 2526/6"),
    (["CHECKPOINT", "--problem=1/0"], "looks like 2526/6"),
    (["CHECKPOINT", "--problem=" + "9" * 5000 + "/9"], "looks like 2526/6"),
    (["CHECKPOINT", "--problem=84/6", "--repair=rows"], "leave out --repair and --n"),
    (["CHECKPOINT", "--problem=84/6", "--n=3"], "leave out --repair and --n"),
    (["CHECKPOINT", "--repair=none"], "no file none"),
    (["CHECKPOINT", "--repair=file"], "file has no rows"),
    (["CHECKPOINT", "--repair=."], "no file ."),
    (["CHECKPOINT", "--repair=rows", "--turns=1"], "2 or more turns"),
    (["CHECKPOINT", "--repair=rows", "--feedback"], "no --feedback"),
    (["CHECKPOINT", "--save=."], "."),
    (["CHECKPOINT", "--save=none/rows"], "none/rows"),
    (["CHECKPOINT", "--save=old/config.json"], "old/config.json is no file of transcripts"),
    (["CHECKPOINT", "--save=to_imitate"], "to_imitate is no file of transcripts"),
    (["CHECKPOINT", "--save=copy.pt"], "copy.pt is no file of transcripts: choose another"),
    (["CHECKPOINT", "--task=countdown"], "evaluate it on the task it has learned"),
    (["CHECKPOINT", "--device=mkldnn"], "device='mkldnn' is not available here"),
    (["CHECKPOINT", "--save=new", "--turns=1000"], "lower turns or max_new"),
    (["CHECKPOINT", "--save=rows", "--turns=1000"], "lower turns or max_new"),
    (["CHECKPOINT", "--export=file"], "file"),
    (["CHECKPOINT", "--export=old"], "old holds a model: choose another folder"),
    (["CHECKPOINT", "--export=file/below"], "file"),
]


@pytest.mark.parametrize("words, mend", EVAL_ARGUMENTS, ids=shown)
def test_arguments_of_eval(words, mend, runs, run_eval, tmp_path):
    (tmp_path / "file").touch()
    shutil.copy(runs / "whole" / "base.pt", tmp_path / "copy.pt")
    (tmp_path / "rows").write_bytes(line({**REPAIR, "right": [False]}))
    (tmp_path / "to_imitate").write_bytes(line({"prompt": "84/6", "attempts": ["14"]}))
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "config.json").write_text("{}")
    places = {"RUN": runs / "whole", "CHECKPOINT": runs / "whole" / "stage2.pt"}
    with refused(tmp_path, mend):
        run_eval(*(places.get(word, word) for word in words))


# ------------------------------------------------------------------------------------- the scripts themselves


@pytest.mark.slow
def test_the_scripts_say_it_in_one_line(runs, tmp_path):
    """The exit code and the only line on stderr, from the scripts themselves in processes of their own."""
    checkpoint = runs / "whole" / "stage2.pt"
    (tmp_path / "cut.pt").write_bytes(checkpoint.read_bytes()[:99])
    (tmp_path / "rows").write_text("[]\n")
    commands = {
        "train.py --batch=many": 2,
        "train.py --batch": 2,
        "train.py --zebra=1": 2,
        "train.py batch=3": 2,
        "train.py --name=..": 2,
        "train.py --resume=": 2,
        "train.py --resume=nowhere --lr=1": 2,
        "train.py --copy=0.8 --right=0.5": 2,
        "train.py --init=cut.pt": 1,
        "train.py --device=meta": 1,
        "train.py --out=/dev/null": 1,
        "eval.py": 2,
        "eval.py none.pt": 1,
        "eval.py .": 1,
        f"eval.py {checkpoint} --repair=rows": 1,
        f"eval.py {checkpoint} --save=none/rows": 1,
        f"eval.py {checkpoint} --n=4 --json": 0,
    }
    for words, code in commands.items():
        done = script(*words.split(" "), cwd=tmp_path)
        one_line = done.stderr.startswith("error: ") and done.stderr.count("\n") == 1
        assert done.returncode == code and (one_line if code else done.stderr == ""), (words, done)
