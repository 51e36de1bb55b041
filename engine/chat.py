"""`python eval.py CHECKPOINT --chat`: pose problems, see the attempts, ask for a check."""

import sys
from random import Random

import torch

from data import Problem, verdicts
from engine.build import make_environment, posed_by_a_person
from engine.options import require
from model import GPT
from rollout import sample_dialogues


def chat(model: GPT, c, temperature: float) -> None:
    """Reads lines from stdin until it ends: a text is a new problem, an empty line asks for a check.

    Where the task can judge a problem that a person types, each attempt is marked right or wrong. The model
    never sees the mark. Temperature 0 is greedy. `c` are the settings of the model's run.
    """
    require(sys.stdin, "--chat reads what you type, but its input is closed")
    env = make_environment(c, training=False)
    generator = torch.Generator(model.embed.weight.device).manual_seed(c.seed)
    example = env.task.sample(Random(c.seed), c.size).prompt if hasattr(env.task, "sample") else ""
    print(f"Type a problem{example and f', such as {example}'}. Enter asks for a check, Ctrl-D ends.")
    ids, attempt = [], 0  # `ids` is the dialogue so far
    while True:
        try:
            line = input("check, or a problem: " if ids else "problem: ").strip()
            if line:
                ids, attempt = [], 0  # Enter after a refused problem must not go on with the one before it
                can_judge = hasattr(env.task, "parse")
                problem = posed_by_a_person(c, line) if can_judge else Problem(line, "")
                asked = env.tokenizer.user_turn(problem.prompt)
            elif ids:
                asked = ids + env.correction_request
            else:
                continue
            rollout = sample_dialogues(model, env.tokenizer, [asked], [], c.max_new, temperature, generator)
        except EOFError:
            return print()
        except ValueError as error:  # it is no problem, or there is no room for another attempt
            print(error)
            continue
        ended, text, attempt = bool(rollout.ended[0, 0]), rollout.texts[0][0], attempt + 1
        ids = rollout.row(0) if ended else [*rollout.row(0), env.tokenizer.end_id]
        verdict = verdicts(env.task, [(problem, text)])[0] if can_judge else ""
        verdict = verdict if ended else "wrong: it was cut off"
        print(f"attempt {attempt}: {text}" + (verdict and f"   ({verdict})"))
