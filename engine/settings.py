"""The settings that are not SCoRe's own: task, model, base, memory, files. SCoRe's are in train.py."""

import textwrap
from dataclasses import dataclass
from pathlib import Path

from data import load_task
from engine.options import check_values, option, parse_options, require
from engine.presets import PRESETS

STEPS = 10**6  # the most steps of a stage: further ones would get problems of the next stage


@dataclass
class TaskSettings:
    """the task and the model"""

    task: str = option("calculator", "calculator, division, countdown, addition, words, gsm8k, math, mbpp")
    size: int = option(3, "difficulty of a drawn task: keys of a calculator, digits of a quotient", 1, 1000)
    train_n: int = option(
        300,
        "RL trains on so many problems, and the base on others; 0: on all that are not held out",
        0,
        10**6,
    )
    train_data: str = option("", "file of training problems, for the tasks that read one: gsm8k, math, mbpp")
    test_data: str = option("", "file of held-out problems; training problems that are in it are left out")
    n_layer: int = option(2, "transformer blocks; with 3 it is no better after the same seconds", 1, 1000)
    n_head: int = option(4, "attention heads", 1, 1000)
    dim: int = option(64, "width; the default model has 0.1 M parameters", 1, 10**5)
    init: str = option("", "start from this base: a .pt file or the folder of a Hugging Face checkpoint")
    tokenizer: str = option("", "folder or tiktoken name of a tokenizer; needed where --init brings none")


@dataclass
class BaseSettings:
    """the base model: supervised training before the two stages"""

    base_steps: int = option(450, "steps of supervised training", 1, STEPS)
    base_batch: int = option(96, "dialogues a step", 1, 10**4)
    base_lr: float = option(0.002, "learning rate", 0, 10)
    right_first: float = option(0.3, "share of demonstrations whose first attempt is right", 0, 1)
    copy: float = option(0.85, "share of later turns that repeat the one before: the habit to break", 0, 1)
    right: float = option(0.003, "share of later turns that are right: the ability to find, and rare", 0, 1)
    slip: float = option(0.2, "share of the wrong first attempts whose answer is taught, too", 0, 1)
    easy_until: float = option(0.5, "until this part of the steps, easier problems are mixed in", 0, 1)
    own_from: float = option(0.3, "after this part of the steps, some wrong first attempts are its own", 0, 1)
    imitate: str = option("", "JSONL of dialogues (prompt, attempts): the last attempt is imitated before RL")
    imitate_steps: int = option(
        100, "steps on that file, `batch` dialogues each, at learning rate `lr`", 1, STEPS
    )


@dataclass
class LearningSettings:
    """memory and precision"""

    sample_batch: int = option(
        256, "dialogues sampled together; bounds the memory of keys and values", 1, 10**6
    )
    micro_batch: int = option(
        0, "rows of a forward pass; 0: 32 on a CPU, for its cache, else the batch; same gradient", 0, 10**6
    )
    dtype: str = option("float32", "of the model; what learns is float32", choices=("float32", "bfloat16"))
    lora: int = option(0, "rank of adapters that learn in place of the weights; 0 is none", 0, 10**4)
    recompute: bool = option(False, "compute the blocks again in the backward pass: less memory, more time")
    shard: bool = option(False, "with torchrun: each process keeps only its share of the weights")


@dataclass
class RunSettings:
    """the run: what is shown and kept"""

    name: str = option("default", "the run writes into <out>/<name>/")
    out: str = option("out", "folder of all runs")
    seed: int = option(0, "decides problems, their split, initial weights and all sampling", 0, 2**63 - 1)
    device: str = option("auto", "auto takes CUDA, else cpu; mps was never tried")
    log_every: int = option(10, "steps between progress lines", 1)
    show_every: int = option(100, "steps between transcripts", 1)
    save_every: int = option(25, "steps between two writes of last.pt, from which a stopped run goes on", 1)
    keep_every: int = option(0, "steps between checkpoints that stay; 0 keeps only the ends of stages", 0)
    eval_n: int = option(2000, "held-out problems of the report", 2, 10**5)
    report: bool = option(True, "evaluate the checkpoints and write report.md at the end")
    html: bool = option(True, "and report.html, the same and more for a browser")
    overwrite: bool = option(False, "delete the run that the folder holds and start anew")


@dataclass
class Settings(TaskSettings, BaseSettings, LearningSettings, RunSettings):
    """all settings but SCoRe's own"""

    def __post_init__(self):
        """One-line ValueErrors for values that can't work. Each names its mend."""
        check_values(self)
        both, heads = self.copy + self.right, 2 * self.n_head
        require(both <= 1, f"copy + right = {both:g} exceeds 1: lower one of them")
        even = self.init or self.dim % heads == 0
        require(even, f"dim={self.dim} must be a multiple of 2 * n_head={heads}")
        a_name = self.name not in ("", ".", "..") and not set(self.name) & set("/\\")
        require(a_name, f"name={self.name!r} must be the name of one folder: use --out for where it is")
        require(not self.lora or self.init, "lora adapts a model that exists: name one with --init")
        require(not self.shard or not self.lora, "shard needs lora=0")
        if hasattr(load_task(self.task), "read"):
            files = "--init=FOLDER (a pretrained model), --train_data=FILE and --test_data=FILE"
            complete = self.init and self.train_data and self.test_data
            require(complete, f"task={self.task} needs {files}")
        else:
            files = self.train_data or self.test_data
            require(not files, f"task={self.task} draws its problems: leave out --train_data and --test_data")


@dataclass
class EvalOptions:
    """what to evaluate, and how"""

    n: int = option(None, "held-out problems (default: the run's eval_n)", 1, 10**5)
    turns: int = option(2, "attempts at each problem", 1, 1000)
    temperature: float = option(0.0, "0 is greedy, as in the paper", 0, 1e3)
    max_new: int = option(None, "longest attempt in tokens (default: the run's)", 1, 10**5)
    feedback: bool = option(False, "ask the model to judge each attempt before the next one (Self-Refine)")
    task: str = option(None, "another task than the run's, e.g. humaneval for a model trained on mbpp")
    test_data: str = option(None, "another file of problems; rows with `attempt` are for offline repair")
    repair: str = option(None, "offline repair: turn 2 on the wrong first attempts of a file made by --save")
    problem: str = option(None, "a problem of your own, e.g. 2526/6")
    chat: bool = option(False, "pose problems and ask for checks, at the keyboard")
    show: int = option(0, "number of transcripts to print: corrected, spoiled, kept, missed in turn", 0)
    json: bool = option(False, "print the metrics as JSON")
    save: str = option(None, "write the transcripts into this file, one JSON object a line")
    html: str = option("", "write the page for a browser into this file (a run: report.html); false: none")
    beside: str = option(None, "folder of another run, whose last checkpoint the page shows beside this one")
    export: str = option(None, "write the model, adapters merged, into this folder as Hugging Face has it")
    device: str = option("auto", "auto takes CUDA, else cpu; mps was never tried")

    def __post_init__(self):
        check_values(self)
        too_low = 0 < self.temperature < 1e-3
        require(not too_low, f"temperature={self.temperature}: it must be 0 (greedy), or 0.001 or more")
        one_problem = self.problem is None or not (self.repair or self.n)
        require(one_problem, "--problem is a single problem: leave out --repair and --n")
        if self.html not in ("", "true", "false"):
            plain = not (self.temperature or self.feedback or self.repair) and self.turns > 1
            mend = "leave out --temperature, --feedback, --repair and --turns=1"
            require(plain, f"--html shows greedy dialogues of two turns: {mend}")
            require(Path(self.html).parent.is_dir(), f"--html={self.html}: there is no such folder")


def parse_args(argv: list[str], Config: type, text: str) -> tuple[Settings, str]:
    """The Config of the command line, and the folder to resume ("" for none). Overrides are printed.

    ValueError names the mend of a bad word.
    """
    usage = "python train.py [--preset=NAME] [--key=value ...] | --resume=FOLDER"
    presets = ["presets:"]
    for name, (why, values) in PRESETS.items():
        words = " ".join(f"--{key}={value}" for key, value in values.items())
        words = textwrap.fill(words, 112, break_on_hyphens=False)
        presets += [f"  {name}: {why}", textwrap.indent(words, "    ")]
    other = {
        "--preset": dict(choices=PRESETS, metavar="NAME", help="start from a set of settings, listed below"),
        "--resume": dict(metavar="FOLDER", help="go on with the stopped run in this folder"),
    }
    given = parse_options(Config, argv, usage, text, "\n".join(presets), **other)
    require(given.get("resume") != "", "--resume=FOLDER: name the folder of the stopped run")
    resume, preset = given.pop("resume", ""), given.pop("preset", "")
    alone = not (resume and (given or preset))
    require(alone, "--resume goes on with the settings of the stopped run: give no others")
    values = PRESETS[preset][1] | given if preset else given
    sizes = sorted(values.keys() & {"n_layer", "n_head", "dim"}) if values.get("init") else []
    require(not sizes, f"--init brings a model of its own size: leave out --{''.join(sizes[:1])}")
    for key, value in given.items():
        print(f"{key} = {value!r}")
    return Config(**values), resume
