"""`python eval.py CHECKPOINT --chat`: pose problems, watch the attempts being written, ask for a check."""

import os
import sys
from collections.abc import Iterator
from random import Random

import torch

from data import Environment, Problem, posed_problem, verdicts
from engine.build import make_environment
from model import GPT, KVCache
from rollout import sample_token

COLOURS = {"right": "\033[32m", "wrong": "\033[31m"}


@torch.no_grad()
def chat(model: GPT, c, temperature: float) -> None:
    """Reads lines from stdin until it ends: a text is a new problem, an empty line asks for a check.

    Where the task can judge a problem that a person types, each attempt is marked right or wrong. The model
    never sees the mark. Temperature 0 is greedy. `c` are the settings of the model's run.
    """
    env = make_environment(c, training=False)
    generator = torch.Generator(model.embed.weight.device).manual_seed(c.seed)
    example = env.task.sample(Random(c.seed), c.size).prompt if hasattr(env.task, "sample") else ""
    end = "Ctrl-Z and Enter" if os.name == "nt" else "Ctrl-D"
    print(f"Type a problem{example and f', such as {example}'}. Enter asks for a check, {end} ends.")
    problem, ids, attempt = None, [], 0  # `ids` is the dialogue so far
    while (line := read_line("check, or a problem: " if ids else "problem: ")) is not None:
        if not (line or ids):
            continue
        try:
            new = posed(env, line) if line else problem
            asked = env.tokenizer.user_turn(new.prompt) if line else ids + env.correction_request
            model.check_length(len(asked) + c.max_new)
        except ValueError as error:  # the dialogue stays as it is
            print(error)
            continue
        problem, ids, attempt = new, asked, 1 if line else attempt + 1
        print(f"attempt {attempt}: ", end="", flush=True)
        start, text = len(ids), ""
        for token in written(model, ids, env.tokenizer.end_id, c.max_new, temperature, generator):
            ids.append(token)
            so_far = env.tokenizer.decode(ids[start:])
            if not so_far.endswith("\ufffd"):  # else the rest of a character is still to come
                print(so_far[len(text) :], end="", flush=True)
                text = so_far
        print(mark(env, problem, text, was_cut_off=len(ids) - start == c.max_new))
        ids.append(env.tokenizer.end_id)


def read_line(question: str) -> str | None:
    """A line that a person types, without blanks around it. None at the end of the input."""
    try:
        return input(question).strip()
    except EOFError:
        print()
        return None


def posed(env: Environment, line: str) -> Problem:
    """The problem of a line. Without an answer if the task can't judge it; ValueError if it is none."""
    return posed_problem(env.task, line) if hasattr(env.task, "parse") else Problem(line, "")


def written(
    model: GPT, ids: list[int], end: int, max_new: int, temperature: float, generator: torch.Generator
) -> Iterator[int]:
    """The tokens of one attempt, one after the other, without the end of turn."""
    device = model.embed.weight.device
    cache = KVCache(model.config, 1, len(ids) + max_new, device, model.embed.weight.dtype)
    new = torch.tensor([ids], device=device)  # [1, T]
    precise = torch.float32 if device.type == "mps" else torch.float64  # as in sample_dialogues
    for _ in range(max_new):
        logits = model.head(model.hidden(new, cache)[:, -1])  # [1, V]
        cache.advance(new.shape[1], cache.longest + new.shape[1])
        uniform = torch.rand(1, dtype=precise, device=device, generator=generator)
        token, _ = sample_token(logits, temperature, uniform)  # [1]
        if (i := int(token)) == end:
            return
        yield i
        new = token[:, None]


def mark(env: Environment, problem: Problem, text: str, was_cut_off: bool) -> str:
    """What stands behind an attempt: "(right)", "(wrong)" or why it has neither. Coloured on a terminal."""
    if was_cut_off:
        verdict = "wrong: it was cut off"
    elif problem.answer:
        verdict = verdicts(env.task, [(problem, text)])[0]
    else:
        return ""
    colour = COLOURS.get(verdict.split(":")[0], "")
    if not sys.stdout.isatty() or "NO_COLOR" in os.environ:
        colour = ""
    return f"   {colour}({verdict})" + ("\033[0m" if colour else "")
