"""Making a run's parts from its settings: device, tokenizer, environment, model."""

import dataclasses
from pathlib import Path
from random import Random

import torch

from data import (
    Environment,
    Problem,
    demo_problems,
    held_out_problems,
    load_task,
    posed_problem,
    train_problems,
    wrong_attempts,
)
from data.contract import check_task
from data.reading import checked, reading
from data.tokenizer import Tokenizer, build_tokenizer
from engine.checkpoints import gpt_config, load
from engine.hf import load_pretrained
from engine.hf_tokenizer import read_tokenizer
from engine.lora import add_lora, merge_lora
from engine.memory import empty_gpt
from engine.options import require
from engine.settings import EvalOptions, Settings
from model import GPT, GPTConfig


def pick_device(name: str) -> torch.device:
    """The device of this name; "auto" takes CUDA, else the CPU. ValueError if it isn't there."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        probe = torch.zeros(1, device=name)
        probe.item()  # the device "meta" can't do this
        return probe.device
    except (RuntimeError, AssertionError):
        raise ValueError(f"device={name!r} is not available here: take auto, cpu, mps or cuda") from None


def makes_base(c: Settings) -> bool:
    """Does the run begin with a base stage? A toy does. A pretrained model does where the task draws problems
    in words: it first learns how an attempt at them is written. A run from a .pt file has a base already.
    """
    task = load_task(c.task)
    in_words = hasattr(task, "sample") and not hasattr(task, "DIGITS_PER_TOKEN")
    return not c.init or (in_words and Path(c.init).is_dir())


def make_environment(c: Settings, training: bool = True) -> Environment:
    """The task and its tokenizer, and with `training` its training problems."""
    task = load_task(c.task)
    if not training:
        return Environment(task, make_tokenizer(c))
    problem = train_problems(task, c.size, c.seed, c.train_n, c.train_data, c.test_data)
    demo = demo_problems(task, c.size, c.seed, c.train_n) if makes_base(c) else None
    return Environment(task, make_tokenizer(c), problem, demo)


def problems_of(c: Settings, o) -> list[Problem]:
    """What eval.py's options ask for: a person's problem, attempts to repair, or held-out problems."""
    if o.problem is not None:
        return [posed_by_a_person(c, o.problem)]
    if o.repair:
        return wrong_attempts(o.repair, load_task(c.task))[: o.n]
    return held_out_of(c, o.n or c.eval_n)


def posed_by_a_person(c: Settings, text: str) -> Problem:
    """The problem that a person typed. ValueError if it is none, if the task can't judge it alone, or if a
    toy has never learned so long a one or so long an answer.
    """
    task = load_task(c.task)
    problem = posed_problem(task, text)
    if is_toy(c):
        learned = [task.sample(Random(i), c.size) for i in range(1000)]
        longest = [max(len(p[part]) for p in learned) for part in (0, 1)]  # of the prompts and the answers
        fits = all(len(problem[part]) <= longest[part] for part in (0, 1))
        example = f"--size={c.size}, such as {learned[0].prompt}"
        require(fits, f"{problem.prompt} is beyond the problems that the model has learned: {example}")
    return problem


def held_out_of(c: Settings, n: int) -> list[Problem]:
    return held_out_problems(load_task(c.task), c.size, c.seed, n, c.test_data)


def training_problems_of(c: Settings, n: int, of_base: bool) -> list[Problem]:
    """Up to `n` different problems that the base, or RL, draws from. Who is better on them than on held-out
    ones has memorised.
    """
    env = make_environment(c)
    problem = (of_base and env.demo_problem) or env.problem
    return list({p.prompt: p for p in map(problem, range(3 * n))}.values())[:n]


def is_toy(c: Settings) -> bool:
    """Are the texts of the run made of the toy's few tokens, not of those of a pretrained model?"""
    return not (c.tokenizer or (c.init and Path(c.init).is_dir()))


def make_tokenizer(c: Settings) -> Tokenizer:
    """The toy task's tokenizer, or that of the pretrained checkpoint."""
    if not is_toy(c):
        return read_tokenizer(c.tokenizer or c.init)
    task = load_task(c.task)
    mend = f"task={c.task} needs a pretrained tokenizer: --init=FOLDER or --tokenizer=..."
    require(hasattr(task, "DIGITS_PER_TOKEN"), mend)
    return build_tokenizer(task.DIGITS_PER_TOKEN)


def make_model(c: Settings, vocab_size: int, device: torch.device) -> GPT:
    """What the first stage starts from: a toy GPT with random weights, or the model that `init` names."""
    dtype = getattr(torch, c.dtype)
    if not c.init:
        config = GPTConfig(
            vocab_size,
            n_layer=c.n_layer,
            n_head=c.n_head,
            n_kv_head=c.n_head,
            dim=c.dim,
            head_dim=c.dim // c.n_head,
            ffn_dim=3 * c.dim,
            max_len=max(256, 10 * (c.max_new + 8)),  # ten turns; 8: a prompt and its markup
        )
        model = GPT(config).to(device)
    elif Path(c.init).is_dir():
        model = load_pretrained(c.init, device, dtype)
    else:
        gone = f"{c.init} is gone: this run reads its weights and tokenizer there, so put it back"
        require(Path(c.init).exists(), gone)
        model, settings = load_model(c.init, device)
        before, seed = settings["task"], settings["seed"]
        learned = f"{c.init} has learned --task={before}: train it on that, or make a base of --task={c.task}"
        require(before == c.task or not is_toy(c), learned)
        mend = f"set --seed={seed}, that of {c.init}: it has trained on problems that other seeds hold out"
        require(c.test_data or seed == c.seed, mend)
        model = merge_lora(model).requires_grad_() if settings["lora"] else model
    has = model.config.vocab_size
    require(has >= vocab_size, f"{c.init} has {has} tokens, its tokenizer {vocab_size}: they don't match")
    return model.to(dtype)


def load_model(path: str | Path, device) -> tuple[GPT, dict]:
    """A checkpoint's model and the settings of its run. Weights that are not in the file come from `init`.

    ValueError if settings, sizes or weights do not fit together.
    """
    content = load(path)
    gpt, weights, settings = gpt_config(content["gpt"], path), content["model"], content["config"]
    names = [field.name for field in dataclasses.fields(Settings)]
    c = checked(Settings, {k: v for k, v in settings.items() if k in names}, path)
    with reading(path, "a checkpoint whose weights fit its sizes"):
        shapes = {name: tensor.shape for name, tensor in empty_gpt(gpt).state_dict().items()}
        if shapes.keys() <= weights.keys():
            check_shapes(path, weights, shapes)  # before so large a model takes its memory
            model = GPT(gpt).to(device, getattr(torch, c.dtype))
        else:
            require(c.init, f"it has no weight {min(shapes.keys() - weights.keys())}")
            model = make_model(c, 0, torch.device(device))
            if any(".lora_" in name for name in weights):
                add_lora(model, c.lora)
            check_shapes(path, weights, {name: tensor.shape for name, tensor in model.state_dict().items()})
        model.load_state_dict(weights, strict=False)
    return model, dataclasses.asdict(c) | settings  # what the file lacks has its default


def check_shapes(path: str | Path, weights: dict, shapes: dict) -> None:
    """ValueError names the first weight that the model does not have or has in another shape."""
    for name, weight in weights.items():
        has = list(shapes.get(name, ["none"]))
        require(list(weight.shape) == has, f"{path}: {name} has the shape {list(weight.shape)}, not {has}")


def overridden(c: Settings, o: EvalOptions, path: str | Path) -> Settings:
    """A checkpoint's settings with what the options of eval.py change in them.

    Nothing is trained here, so a file of training problems is never read. ValueError if a pretrained folder
    gets no task, if the task's file is missing, or if a toy has not learned the task.
    """
    task = o.task or c.task
    require(o.task or not Path(path).is_dir(), f"{path} has no task: give --task=NAME")
    reads_files = hasattr(load_task(task), "read")
    require(task == c.task or not is_toy(c), f"{path} has learned --task={c.task} alone: leave out --task")
    require(o.test_data or c.test_data or not reads_files, f"task={task} reads a file: give --test_data=FILE")
    test, max_new = o.test_data or (c.test_data if reads_files else ""), o.max_new or c.max_new
    return dataclasses.replace(c, task=task, max_new=max_new, test_data=test, train_data=test)


def check_lengths(c: Settings, env: Environment, max_len: int) -> None:
    """ValueError, now rather than in the middle of a run, if the task does not keep its contract, or if a
    dialogue could outgrow the model.
    """
    if hasattr(env.task, "sample"):
        check_task(env.task, c.size, env.tokenizer, c.max_new)
    if c.train_data:
        problems = [*env.task.read(c.train_data, "train"), *env.task.read(c.test_data, "test")]
        prompt = max(map(len, env.prompts(problems)))
        longest = prompt + c.turns * c.max_new + (c.turns - 1) * (len(env.correction_request) + 1)
        found = f"the longest prompt has {prompt} tokens, its dialogue up to {longest}"
        require(longest <= max_len, f"{found}, and the model reads max_len={max_len}: lower --max_new")
