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


class Accepted(Exception):
    """The run would begin its first step."""


def shown(value) -> str | None:
    """The name of a case in pytest's output."""
    return " ".join(value)[:50] if isinstance(value, list) else ""


@contextmanager
def refused(folder: Path, *words: str):
    """One line that has the words, within two seconds of work, and the folder is byte for byte as before.

    A warning would be another line.
    """

    def files():
        return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}

    before, start = files(), time.process_time()
    with warnings.catch_warnings(record=True) as warned, pytest.raises((ValueError, OSError)) as raised:
        warnings.simplefilter("always")
        yield
    seconds, text = time.process_time() - start, str(raised.value)
    assert "\n" not in text and len(text) < 700
    assert [word for word in words if word not in text] == [], text
    assert files() == before
    assert seconds < 2 and not warned


@pytest.fixture
def run(tmp_path, monkeypatch, capsys):
    """`run("train", *words)`: train.py with these words, up to its first step; or eval.py."""

    def accept(run):
        raise Accepted

    def run(name, *words):
        monkeypatch.setattr(sys, "argv", [f"{name}.py", *map(str, words)])
        {"train": train, "eval": evaluation}[name].main()

    monkeypatch.setattr(Run, "stages_left", accept)
    monkeypatch.chdir(tmp_path)
    return run


# ------------------------------------------------------------------------------- command lines of train.py


def bad_values() -> list[tuple[list[str], str]]:
    """For each setting what can't be its value, and what the message must say beside the setting's name."""
    cases = []
    for field in dataclasses.fields(Config):
        low, high, choices = (field.metadata[key] for key in ("low", "high", "choices"))
        values = {"": "it is empty"}
        if field.type is bool:
            values = dict.fromkeys(("", "perhaps", "1"), "write true or false")
        if field.type is int:
            values |= dict.fromkeys(("many", "0x10", "2.5", "nan"), "it must be a whole number")
        if field.type is float:
            values |= dict.fromkeys(("many", "0x10", "0,5"), "it must be a number")
            values |= dict.fromkeys(("nan", "-inf", "1e999"), "it must be finite")
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
    (["--"], "--key=value"),
    ([""], "--key=value"),
    (["--help=3"], "--help"),
    (["--resume="], "name the folder of the stopped run"),
    (["--resume=nowhere"], "no checkpoint"),
    (["--resume=nowhere", "--lr=1"], "--resume goes on with the settings of the stopped run"),
    (["--resume=nowhere", "--preset=smoke"], "give no others"),
    (["--preset=huge"], "choose from"),
    (["--name=.."], "name='..' must be the name of one folder: use --out"),
    (["--name=a/b"], "use --out"),
    (["--name= "], "it is empty"),
    (["--name=" + "n" * 300], "File name too long"),
    (["--out=/dev/null"], "/dev/null"),
    (["--out=file"], "file"),
    (["--task=chess"], "no task 'chess': choose one of"),
    (["--task=gsm8k"], "task=gsm8k needs --init=FOLDER"),
    (["--task=mbpp", "--init=file"], "--train_data=FILE and --test_data=FILE"),
    (["--task=gsm8k", "--init=.", "--train_data=file", "--test_data=none"], "none"),
    (["--train_data=file"], "leave out --train_data"),
    (["--task=countdown", "--size=100"], "size=100: the largest number of countdown is 99"),
    (["--size=1000"], "size=1000: the most keys of calculator are 30"),
    (["--max_new=5"], "a right attempt takes 6 tokens: raise --max_new=5"),
    (["--size=1", "--train_n=0"], "not 2000: lower --eval_n"),
    (["--size=1"], "not 300: lower --train_n"),
    (["--copy=0.8", "--right=0.5"], "copy + right = 1.3 exceeds 1: lower one of them"),
    (["--dim=30"], "dim=30 must be a multiple of 2 * n_head=8"),
    (["--batch=10", "--samples_per_problem=3"], "batch=10 is not a multiple of samples_per_problem=3"),
    (["--turns=3", "--offline_first"], "offline_first needs turns=2"),
    (["--stage2_weight2=0"], "alpha must be 0"),
    (["--stage2_weight1=0", "--gamma=0.5"], "gamma must be 0"),
    (["--lora=4"], "lora adapts a model that exists: name one with --init"),
    (["--shard", "--offline_first"], "shard needs offline_first=false"),
    (["--shard", "--lora=2", "--init=file"], "shard needs lora=0"),
    (["--init=out/default"], "no out/default: --init takes"),  # the folder that the run itself would make
    (["--init=none.pt"], "no none.pt: --init takes a .pt file or a Hugging Face folder"),
    (["--init=BASE", "--seed=3"], "set --seed=0, that of"),
    (["--init=BASE", "--dim=8"], "--init brings a model of its own size: leave out --dim"),
    (["--init=BASE", "--preset=smoke"], "leave out --dim"),
    (["--init=BASE", "--task=addition"], "has learned --task=calculator: train it on that, or make a base"),
    (["--init=."], "has no tokenizer.json"),
    (["--init=file"], "file is not a checkpoint of train.py"),
    (["--init=/dev/zero"], "no checkpoint /dev/zero"),
    (["--tokenizer=none"], "no folder none, and tiktoken only has"),
    (["--imitate=file"], "has no rows"),
    (["--device=abacus"], "device='abacus' is not available here: take auto"),
    (["--device=meta"], "device='meta' is not available here"),
]


@pytest.mark.parametrize("words, mend", bad_values() + COMBINATIONS, ids=shown)
def test_command_lines_of_train(words, mend, run, runs, tmp_path):
    (tmp_path / "file").touch()
    with refused(tmp_path, *mend.split("...")):
        run("train", *(word.replace("BASE", f"{runs}/whole/base.pt") for word in words))


# ---------------------------------------------------------------------------------------------- .pt files

TINY = ["size=2", "n_layer=1", "n_head=2", "dim=8", "base_steps=1", "base_batch=8"]
TINY += ["stage1_steps=3", "stage2_steps=1", "batch=4"]


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Two runs: `whole` came to its end; `half` was stopped with 4 rows in its log and 3 steps in last.pt."""
    folder, wait = tmp_path_factory.mktemp("runs"), Run.log_and_save

    def stop(run, index, stage, step, *rest):
        wait(run, index, stage, step, *rest)
        if run.c.name == "half" and (stage.name, step) == ("stage1", 2):
            raise Accepted

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Run, "log_and_save", stop)
        for name in ("whole", "half"):
            settings = [*TINY, "eval_n=4", "save_every=1", "report=false", f"out={folder}", f"name={name}"]
            patch.setattr(sys, "argv", ["train.py", *(f"--{setting}" for setting in settings)])
            with suppress(Accepted):
                train.main()
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


def each(*path, **values) -> dict:
    """Changes of one place, by name: to each of these values."""
    return {f"{path[-1]}: {name}": set_in(*path, value) for name, value in values.items()}


class Code:
    """Its unpickling would end the tests."""

    def __reduce__(self):
        return (sys.exit, ("unpickled",))


W = "embed.weight"
QKV = "blocks.0.attn.qkv.weight"
DAMAGED = {  # what is done to the bytes of a checkpoint
    "empty": lambda data: b"",
    "text": lambda data: b"not a checkpoint",
    "cut in the head": lambda data: data[:60],
    "cut in the middle": lambda data: data[: len(data) // 2],
    "without its last byte": lambda data: data[:-1],
    "zip without data": lambda data: b"PK\x05\x06" + bytes(18),
    "pickle that runs code": lambda data: pickle.dumps(Code()),
}
CHECKPOINTS = {  # what is done to its content
    "None": lambda content: None,
    "a list": lambda content: [content],
    "code": set_in("config", "task", lambda _: Code()),
    "code in the weights": set_in("model", W, lambda _: Code()),
    **each("config", missing=..., nothing=None, list=[1]),
    **each("gpt", missing=..., nothing=None, empty={}),
    **each("model", missing=..., nothing=None, empty={}),
    "gpt: unknown setting": set_in("gpt", "zebra", 1),
    "gpt: no vocabulary": set_in("gpt", "vocab_size", ...),
    **each("gpt", "dim", text="8", float=8.0, tensor=torch.tensor(8), huge=10**9, other=16),
    **each("gpt", "n_layer", none=None, bool=True, zero=0, negative=-1, more_than_weights=2),
    **each("gpt", "vocab_size", huge=10**11, other=50),
    **each("gpt", "n_kv_head", that_do_not_divide=3),
    **each("gpt", "norm", unknown="batch"),
    **each("gpt", "rope_theta", zero=0.0, nan=math.nan),
    **each("config", "task", unknown="chess", none=None),
    **each("config", "size", text="2", negative=-1, list=[2]),
    **each("config", "base_lr", nan=math.nan),
    **each("config", "dtype", unknown="float8"),
    "config: init that is gone": lambda content: set_in("model", W, ...)(
        set_in("config", "init", "/gone")(content)
    ),
    "config: lora without adapters": set_in("config", "lora", 4),
    "weights: one missing": set_in("model", QKV, ...),
    "weights: one too many": set_in("model", "zebra", torch.zeros(2)),
    "weights: an adapter without lora": set_in("model", "blocks.0.attn.qkv.lora_a", torch.zeros(2, 8)),
    **each("model", W, nothing=None, list=[1.0], number=1.0),
    **each("model", QKV, cut=lambda w: w[:-1], flat=lambda w: w.flatten(), sparse=lambda w: w.to_sparse()),
    **each(
        "model", QKV, meta=lambda w: w.to("meta"), integers=lambda w: w.long(), nan=lambda w: w * math.nan
    ),
}


@pytest.fixture(params=["eval", "init", "resume"])
def used(request, runs, tmp_path, run):
    """A copy of a checkpoint, and a function that uses it in one of three ways."""
    folder = tmp_path / "run"
    shutil.copytree(runs / ("half" if request.param == "resume" else "whole"), folder)
    path = folder / {"eval": "stage2.pt", "init": "base.pt", "resume": "last.pt"}[request.param]
    words = {
        "eval": ["eval", path],
        "init": ["train", "--size=2", "--eval_n=4", f"--init={path}"],
        "resume": ["train", f"--resume={folder}"],
    }
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


def test_a_report_of_a_damaged_checkpoint(runs, tmp_path, run):
    path = shutil.copytree(runs / "whole", tmp_path / "run") / "stage1.pt"
    path.write_bytes(path.read_bytes()[:99])
    with refused(tmp_path, str(path)):
        run("eval", path.parent)


STATES = {
    "unknown setting": set_in("config", "zebra", 1),
    **each("stage", missing=..., none=None, text="1", negative=-1, more_than_there_are=99),
    **each("step", missing=..., text="2"),
    **each("seconds", missing=..., text="12", negative=-1e9, nan=math.nan),
    **each("optimizer", missing=..., text="x", empty={}),
    **each("optimizer", "state", missing=..., empty={}, texts=lambda state: dict.fromkeys(state, "x")),
    **each("optimizer", "state", 0, "exp_avg", missing=..., other_shape=lambda m: m[:3]),
    **each("optimizer", "state", 0, "exp_avg_sq", nan=lambda m: m * math.nan),
}
LOGS = {  # what is done to metrics.jsonl
    "missing": lambda path: path.unlink(),
    "empty": lambda path: path.write_text(""),
    "a row short": lambda path: path.write_text("".join(path.read_text().splitlines(True)[:2])),
    "in UTF-16": lambda path: path.write_text(path.read_text(), encoding="utf-16"),
    "a folder": lambda path: path.unlink() or path.mkdir(),
    "no JSON": lambda path: path.write_text("what\n"),
}


@pytest.mark.parametrize("change", STATES.values(), ids=STATES)
def test_states_to_resume(change, runs, tmp_path, run):
    path = shutil.copytree(runs / "half", tmp_path / "run") / "last.pt"
    torch.save(change(load(path)), path)
    with refused(tmp_path, str(path)):
        run("train", f"--resume={path.parent}")


@pytest.mark.parametrize("change", LOGS.values(), ids=LOGS)
def test_logs_to_resume(change, runs, tmp_path, run):
    path = shutil.copytree(runs / "half", tmp_path / "run") / "metrics.jsonl"
    change(path)
    with refused(tmp_path, str(path)):
        run("train", f"--resume={path.parent}")


@pytest.mark.parametrize("name", sorted(LOGS.keys() - {"empty", "a row short"}))
def test_logs_to_report(name, runs, tmp_path, run):
    path = shutil.copytree(runs / "whole", tmp_path / "run") / "metrics.jsonl"
    LOGS[name](path)
    with refused(tmp_path, str(path.parent), path.name):
        run("eval", path.parent)


@pytest.mark.parametrize(
    "change, mend",
    [
        (set_in("batch", 8), "says batch=8, "),
        (set_in("lr", ...), "says lr=None, "),
        (set_in("zebra", 1), "says zebra=1"),
        (lambda config: [config], "is not the settings of a stopped run"),
    ],
)
def test_a_config_that_is_not_the_runs_is_not_resumed(change, mend, runs, tmp_path, run):
    """Else the record would not be what ran."""
    path = shutil.copytree(runs / "half", tmp_path / "run") / "config.json"
    path.write_text(json.dumps(change(json.loads(path.read_text()))))
    with refused(tmp_path, str(path), mend):
        run("train", f"--resume={path.parent}")


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


def tensor(change):
    """A function that changes one tensor in a file."""
    return tensors(lambda found: found | {QKV_THEIRS: change(found[QKV_THEIRS])})


SAFE, BIN, INDEX = "model.safetensors", "pytorch_model.bin", "model.safetensors.index.json"
NO_FILE = {"missing": lambda path: path.unlink(), "a folder": lambda path: path.unlink() or path.mkdir()}
NOT_JSON = {
    "empty": bytes_of(b""),
    "cut": bytes_of(lambda data: data[:-9]),
    "noise": bytes_of(bytes(range(256))),
    "a list": bytes_of(b"[]"),
    "null": bytes_of(b"null"),
    "objects nested 100,000 deep": bytes_of(b'{"a":' * 100_000),
    "UTF-16": bytes_of(lambda data: data.decode().encode("utf-16")),
    "huge number": bytes_of(b'{"vocab_size": 1' + b"0" * 5000 + b"}"),
}
NO_TENSORS = {
    "a folder": NO_FILE["a folder"],
    "empty": bytes_of(b""),
    "cut in the head": bytes_of(lambda data: data[:20]),
    "cut in the middle": bytes_of(lambda data: data[: len(data) // 2]),
    "without its last byte": bytes_of(lambda data: data[:-1]),
    "zeros": bytes_of(bytes(1000)),
    "a header of 2**63 bytes": bytes_of(lambda data: b"\xff" * 7 + b"\x7f" + data[8:]),
    "a link to Git LFS": bytes_of(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n"),
}
OTHER_TENSORS = {
    "no tensors": tensors(lambda found: {}),
    "a tensor missing": tensors(lambda found: {key: t for key, t in found.items() if key != QKV_THEIRS}),
    "a tensor too many": tensors(lambda found: found | {"zebra": torch.zeros(2)}),
    "transposed": tensor(lambda t: t.T),
    "no axes": tensor(lambda t: torch.tensor(1.0)),
    "integers": tensor(lambda t: t.long()),
    "NaN": tensor(lambda t: t * math.nan),
}
OTHER_BIN = {
    "complex": tensor(lambda t: t.to(torch.complex64)),
    "sparse": tensor(lambda t: t.to_sparse()),
    "meta": tensor(lambda t: t.to("meta")),
    "a list": tensors(lambda found: list(found.values())),
    "nested": tensors(lambda found: {"model": found}),
    "numbers as names": tensors(lambda found: dict(enumerate(found.values()))),
    "code": tensor(lambda t: Code()),
    "a pickle with code": bytes_of(pickle.dumps(Code())),
}
NO_SIZE = (..., None, "8", 0, -1, 4.0, [8], True, 10**15)
GPT2 = {key: NO_SIZE for key in ("n_embd", "n_layer", "n_positions")}
GPT2 |= {"n_head": (*NO_SIZE, 3), "n_inner": ("x",), "layer_norm_epsilon": ("x",)}
SETTINGS = {  # of config.json: values that can't work, or not with these weights, or not with our model
    "hidden_size": NO_SIZE,
    "num_attention_heads": NO_SIZE,
    "num_hidden_layers": (*NO_SIZE, 2),
    "vocab_size": (*NO_SIZE, 259),
    "intermediate_size": (*NO_SIZE, 9),
    "num_key_value_heads": (3, "1"),
    "head_dim": (0, 3, "4"),
    "max_position_embeddings": (0, "many"),
    "rope_theta": (0, "x"),
    "rope_scaling": ("linear", {"rope_type": "yarn"}, {"rope_type": "llama3"}),
    "rms_norm_eps": ("x", -1),
    "tie_word_embeddings": ("no", True),
    "model_type": ("mixtral", None, "qwen2", "qwen3", "gpt2"),
    "hidden_act": ("gelu",),
    "attention_bias": (True,),
    "layer_types": (["sliding_attention"], 3),
    "sliding_window": (8,),
    "quantization_config": ({"bits": 4},),
    "num_experts": (8,),
    "partial_rotary_factor": (0.5,),
}
OTHER_FILES = ("none.safetensors", "..", "/etc/passwd", "../llama/model.safetensors", "a.safetensors", "x\0y")
HF_FOLDERS = {
    **{
        f"{family}: {key} is {value!r}": (family, "config.json", in_json(key, value))
        for family, settings in (("llama", SETTINGS), ("gpt2", GPT2))
        for key, values in settings.items()
        for value in values
    },
    "no weights": ("llama", SAFE, lambda path: path.unlink()),
    **{
        f"{file}: {name}": (folder, file, change)
        for folder, file, changes in (
            ("llama", "config.json", NO_FILE | NOT_JSON),
            ("shards", INDEX, NOT_JSON),
            ("llama", SAFE, NO_TENSORS | OTHER_TENSORS),
            ("shards", "b.safetensors", NO_TENSORS),
            ("bin", BIN, NO_TENSORS | OTHER_TENSORS | OTHER_BIN),
        )
        for name, change in changes.items()
    },
    **{
        f"index: weight_map is {value!r}": ("shards", INDEX, in_json("weight_map", value))
        for value in (..., None, [], {}, "a.safetensors", *({QKV_THEIRS: x} for x in (None, 3, *OTHER_FILES)))
    },
}


@pytest.mark.parametrize("name", ["llama", "gpt2", "bin", "shards"])
def test_undamaged_folders_can_be_used(name, pretrained, run):
    with pytest.raises(Accepted):
        run("train", "--size=2", "--eval_n=4", f"--init={pretrained / name}", "--max_new=60")


@pytest.mark.parametrize("case", HF_FOLDERS.values(), ids=HF_FOLDERS)
def test_hugging_face_folders(case, pretrained, run, tmp_path):
    name, file, change = case
    folder = shutil.copytree(pretrained / name, tmp_path / "model")
    change(folder / file)
    with refused(tmp_path, str(folder)):
        run("train", "--size=2", "--eval_n=4", f"--init={folder}", "--max_new=60")


# ------------------------------------------------------------------------------------------- tokenizer.json


def splitting_by(pattern) -> dict:
    split = {"type": "Split", "behavior": "Isolated", "pattern": pattern}
    return {"pretokenizers": [split, {"type": "ByteLevel", "add_prefix_space": False, "use_regex": False}]}


END = "<|endoftext|>"
VALUES = {  # a place in tokenizer.json: what can't be there
    ("model",): (..., None, 3, ["x"]),
    ("normalizer",): (3, ["x"]),
    ("pre_tokenizer",): (..., None, 3, {}, {"type": "Whitespace"}, {"type": "ByteLevel"}),
    ("pre_tokenizer", "add_prefix_space"): (True,),
    ("pre_tokenizer", "pretokenizers"): (None, [3], "x"),
    ("pre_tokenizer", "type"): (["ByteLevel"],),
    ("added_tokens",): (..., None, 3, [], [[]], {END: 257}, [{"content": END}], [{"id": 257}]),
    ("added_tokens", 0, "content"): (None, 3, "<|pad|>"),
    ("added_tokens", 0, "id"): ("257", -1, 1.5, 2**40, None, 3, True, 10**7),
    ("model", "vocab"): (..., None, [], {}, "x", {"a": 0}),
    ("model", "vocab", "q"): (..., None, "5", -1, 1.5, True, 0, 2**31, 257),
    ("model", "merges"): (..., None, {}, "ab", [3], [["a"]], [[1, 2]], ["a"], ["a b c"], [["a", "q"]]),
    ("model", "type"): ("Unigram", None, 3),
    ("model", "byte_fallback"): (True,),
    ("normalizer", "type"): ("NFKC", None, 3, ["NFC"]),
}
PATTERNS = (None, 3, {}, {"Regex": None}, {"Regex": "("}, {"String": " "}, {"Regex": "x{99999999}"})
TOKENIZERS = {
    **NOT_JSON,
    **{f"{'.'.join(map(str, p))} is {v!r}": in_json(*p, v) for p, values in VALUES.items() for v in values},
    **{f"split by {p!r}": in_json("pre_tokenizer", splitting_by(p)) for p in PATTERNS},
    "merges out of order": lambda path: (
        in_json("model", "vocab", "abc", 100)(path) or in_json("model", "merges", ["a b", "ab c"])(path)
    ),
    "an id twice": in_json("added_tokens", lambda tokens: [*tokens, {"content": "<|x|>", "id": 257}]),
    "a token without text": in_json("added_tokens", lambda tokens: [*tokens, {"content": "", "id": 258}]),
}


@pytest.mark.parametrize("change", TOKENIZERS.values(), ids=TOKENIZERS)
def test_tokenizers(change, pretrained, run, tmp_path):
    folder = shutil.copytree(pretrained / "llama", tmp_path / "model")
    change(folder / "tokenizer.json")
    with refused(tmp_path, str(folder)):
        run("train", "--size=2", "--eval_n=4", f"--init={folder}", "--max_new=60")


# --------------------------------------------------------------------------------------- rows of JSON lines

TESTS = ["assert add(1, 2) == 3"]
ROWS = {
    "gsm8k": {"question": "What is 2 + 3?", "answer": "2 + 3 = 5\n#### 5"},
    "math": {"problem": "What is 2 + 3?", "solution": r"It is \boxed{5}.", "answer": "5"},
    "mbpp": dict(task_id=601, text="Add.", code="def add(a, b):\n    return a + b", test_list=TESTS),
    "humaneval": {
        "task_id": "x/0",
        "prompt": "def f(x):\n    '''One.'''\n",
        "entry_point": "f",
        "test": "def check(f):\n    assert f(1) == 1",
    },
    "imitate": {"prompt": "112/8", "attempts": ["13*8=104<", "14*8=112="]},
    "repair": {"prompt": "112/8", "answer": "14", "attempts": ["13*8=104<"]},
}


def read(kind: str, path: Path):
    """What a script does with a file of this kind."""
    if kind == "imitate":
        c = Config(task="division", imitate=str(path), size=2, train_n=0)
        return read_traces(c, make_environment(c))
    if kind == "repair":
        return wrong_attempts(path, load_task("division"))
    return load_task(kind).read(str(path), "test" if kind == "humaneval" else "train")


def line(row) -> bytes:
    return json.dumps(row).encode() + b"\n"


TEXT_FILES = {
    "empty": lambda row: b"",
    "blank lines alone": lambda row: b"\n \n\n",
    "no JSON": lambda row: b"question,answer\n",
    "a row cut off": lambda row: row + row[:-9],
    "a list": lambda row: row + b"[1, 2]\n",
    "an empty object": lambda row: row + b"{}\n",
    "two objects in a row": lambda row: row + row[:-1] + row,
    "one JSON list of rows": lambda row: b"[" + row + b"]",
    "UTF-16": lambda row: row.decode().encode("utf-16"),
    "Latin-1": lambda row: row + b'{"question": "caf\xe9"}\n',
    "noise": lambda row: bytes(range(256)) * 9,
    "objects nested 100,000 deep": lambda row: row + b'{"question":' * 100_000 + b"\n",
    "closed and nested 100,000 deep": lambda row: row + b"[" * 100_000 + b"]" * 100_000 + b"\n",
    "a number of 5,000 digits": lambda row: row + b'{"question": 1' + b"0" * 5000 + b"}\n",
}
GZ_FILES = {
    "cut": lambda row: gzip.compress(row * 1000)[:-20],
    "no gz": lambda row: row,
    "empty": lambda row: b"",
    "with a wrong checksum": lambda row: gzip.compress(row)[:-8] + bytes(8),
    "followed by noise": lambda row: gzip.compress(row) + b"noise",
    "with a damaged middle": lambda row: gzip.compress(row)[:15] + b"\xff" * 9 + gzip.compress(row)[24:],
}
NO_TEXT = (..., None, 3, ["x"], {"a": 1}, True)
DEEP = "-" * 100_000 + "1"
BAD_CODE = ("def add(:", "x = 1", "", "\0", f"def f(): return {DEEP}", "def f(): return " + "(" * 10_000)
NO_ATTEMPTS = (..., None, 3, {"a": 1}, [], [3], [None], "14")
BAD_FIELDS = {  # (the kind of the file, a field): what can't be in it
    ("gsm8k", "question"): (*NO_TEXT, "", "  "),
    ("gsm8k", "answer"): (*NO_TEXT, "", "5", "#### "),
    ("gsm8k", "attempt"): (None, 3, ["x"]),
    ("math", "problem"): (*NO_TEXT, ""),
    ("math", "answer"): (None, 3, ["5"], "", "?!"),
    ("mbpp", "task_id"): (...,),
    ("mbpp", "text"): NO_TEXT,
    ("mbpp", "code"): (*NO_TEXT, *BAD_CODE),
    ("mbpp", "test_list"): (*NO_TEXT, [], [3], ["assert add("], ["pass"], [f"assert {DEEP}"]),
    ("mbpp", "test_setup_code"): (3, ["x"], "import ("),
    ("humaneval", "prompt"): (*NO_TEXT, "def f(:", DEEP, "x = 1"),
    ("humaneval", "entry_point"): (*NO_TEXT, "", "g", "f; x", "class"),
    ("humaneval", "test"): (*NO_TEXT, "def check(:", DEEP, "x = 1", "\ud800"),
    ("imitate", "prompt"): (*NO_TEXT, "100/5\u00e9", "100/5\ud800"),
    ("imitate", "attempts"): (*NO_ATTEMPTS, ["14", 3], ["caf\u00e9"]),
    ("repair", "prompt"): NO_TEXT,
    ("repair", "answer"): NO_TEXT,
    ("repair", "attempts"): (*NO_ATTEMPTS, [["14"]], ["14*8=112="], [" "]),
}
BAD_ROWS = {
    **{f"{k}: {name}": (k, d) for k in ("gsm8k", "imitate", "repair") for name, d in TEXT_FILES.items()},
    **{
        f"{kind}: {key} is {str(value)[:40]!r}": (kind, line(set_in(key, value)(dict(ROWS[kind]))))
        for (kind, key), values in BAD_FIELDS.items()
        for value in values
    },
    "math: no box": ("math", line({"problem": "p", "solution": "no box"})),
    "math: an open box": ("math", line({"problem": "p", "solution": "$\\boxed{\\frac{1}$"})),
    "mbpp: no row of the split": ("mbpp", line(ROWS["mbpp"] | {"task_id": 11})),
    "imitate: a held-out problem": (
        "imitate",
        b"".join(line(ROWS["imitate"] | {"prompt": f"{n}/6"}) for n in (84, 90, 96, 102)),
    ),
}


@pytest.mark.parametrize("kind", ROWS)
def test_undamaged_rows_can_be_read(kind, tmp_path):
    text = line(ROWS[kind])
    files = {"a.jsonl": text, "b.jsonl": b"\xef\xbb\xbf" + text + b"\r\n\n", "c.gz": gzip.compress(text)}
    for name, data in files.items():
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
    path.write_bytes(data(line(ROWS["gsm8k"])))
    with refused(tmp_path, str(path)):
        read("gsm8k", path)


# --------------------------------------------------------------------------------- arguments of eval.py

OF_A_CHECKPOINT = [
    ("more", "'more'"),
    ("--device=meta", "device='meta' is not available here"),
    ("--zebra=1", "no setting 'zebra'"),
    ("--temprature=1", "did you mean 'temperature'?"),
    ("--n=0", "n=0: it must be 1 or more"),
    ("--n=2000", "not 2000: lower --eval_n (--n of eval.py)"),
    ("--turns=0", "turns=0: it must be 1 or more"),
    ("--turns=1000", "lower turns or max_new"),
    ("--temperature=-1", "temperature=-1.0: it must be 0 or more"),
    ("--temperature=1e-38", "it must be 0 (greedy), or 0.001 or more"),
    ("--max_new=0", "max_new=0: it must be 1 or more"),
    ("--show=-1", "show=-1: it must be 0 or more"),
    ("--task=chess", "no task 'chess': choose one of"),
    ("--task=addition", "has learned --task=calculator alone: leave out --task"),
    ("--test_data=file", "leave out --train_data and --test_data"),
    ("--problem=8/3", "look like 8+3C7*3"),
    ("--problem=8" + "+9" * 5000, "look like 8+3C7*3"),
    ("--problem=8+3C7*3", "8+3C7*3 is beyond the problems that the model has learned: --size=2, such as"),
    ("--problem=8+3 --repair=rows", "leave out --repair and --n"),
    ("--problem=8+3 --n=3", "leave out --repair and --n"),
    ("--repair=none", "no file none"),
    ("--repair=file", "file has no rows"),
    ("--repair=.", "no file ."),
    ("--repair=rows --turns=1", "2 or more turns"),
    ("--repair=rows --feedback", "no --feedback"),
    ("--html=new.html --turns=1", "greedy dialogues of two turns: leave out --temperature, --feedback,"),
    ("--save=.", "must be a new file"),
    ("--save=none/rows", "must be a new file in a folder that exists"),
    ("--save=rows", "must be a new file"),
    ("--save=new --turns=1000", "lower turns or max_new"),
    ("--export=file", "file"),
    ("--export=old", "old holds a model: choose another folder"),
]
EVAL_ARGUMENTS = [
    ([], "the following arguments are required: path"),
    (["none.pt"], "no checkpoint none.pt: give a .pt file"),
    ([""], "has no checkpoint base.pt"),
    (["file"], "file is not a checkpoint of train.py"),
    (["."], "has no checkpoint base.pt: give the folder of a run"),
    (["RUN", "--n=4"], "--n is for one checkpoint such as"),
    (["RUN", "--json"], "--json is for one checkpoint"),
    (["RUN", "--device=abacus"], "device='abacus' is not available here"),
    *((["CHECKPOINT", *words.split(" ")], mend) for words, mend in OF_A_CHECKPOINT),
]


@pytest.mark.parametrize("words, mend", EVAL_ARGUMENTS, ids=shown)
def test_arguments_of_eval(words, mend, runs, run, tmp_path):
    (tmp_path / "file").touch()
    (tmp_path / "rows").write_bytes(line(ROWS["repair"]))
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "config.json").write_text("{}")
    places = {"RUN": runs / "whole", "CHECKPOINT": runs / "whole" / "stage2.pt"}
    with refused(tmp_path, mend):
        run("eval", *(places.get(word, word) for word in words))


# ------------------------------------------------------------------------------------- the scripts themselves


@pytest.mark.slow
def test_the_scripts_say_it_in_one_line(runs, tmp_path):
    """The exit code and the only line on stderr, from the scripts themselves in processes of their own."""
    checkpoint = runs / "whole" / "stage2.pt"
    (tmp_path / "cut.pt").write_bytes(checkpoint.read_bytes()[:99])
    (tmp_path / "rows").write_text("[]\n")
    refused = ("train.py --batch=many", "train.py --zebra=1", "train.py --copy=0.8 --right=0.5")
    refused += ("train.py --init=cut.pt", "train.py --out=/dev/null", "eval.py", "eval.py none.pt")
    for words in (*refused, f"eval.py {checkpoint} --repair=rows"):
        done = script(*words.split(" "), cwd=tmp_path)
        one_line = done.stderr.startswith("error: ") and done.stderr.count("\n") == 1
        assert done.returncode == 1 and one_line, (words, done)
    done = script("eval.py", checkpoint, "--n=4", "--json", cwd=tmp_path)
    assert done.returncode == 0 and done.stderr == ""
