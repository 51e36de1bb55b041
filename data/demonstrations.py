"""Demonstrations for the base model: dialogues whose later turns are as bad as a real language model's
(ours).

SCoRe starts from a model that could correct itself but does not. Asked to check, it mostly repeats its
answer. At times it corrects the answer, at times it spoils it, whatever the first attempt was (paper, table
1: Acc 52.6 -> 41.4). We make such a model of five ingredients:

- First attempts that are right teach the task. After a wrong first attempt only the honest working is taught;
  the wrong answer is context. A model that writes what is true beside its mistakes leaves evidence to correct
  by.
- A share of the wrong first attempts can be taught whole, as slips: a person who knows the answer writes
  another now and then. Then samples are right less often than the greedy attempt, and RL makes turn 1 better
  within a few updates. That fast gain is what draws plain RL into copying.
- After a part of the training, one in three of those first attempts is the model's own; the others are made
  up, half near misses and half unrelated. A model that never sees its own mistakes believes them. A model
  that sees only its own attempts, which are right more and more often, does not learn true checks: beside a
  right quotient the check is a copy of the dividend.
- Later turns copy the attempt before (the habit that RL must break), are right (the ability that RL can
  find), or miss nearly (so that asking again makes the base worse). They are drawn without a look at what
  stood before, so the base does not correct.
- Some dialogues have more than two turns, so that turns 3, 4, ... are not foreign to the model. In half of
  those the model is asked for feedback before each later turn, and its verdict is honest: the format of
  Self-Refine (Madaan et al., arXiv 2303.17651).
"""

from random import Random

from data import Environment, Problem, is_held_out, is_in_file, read_rows
from data.reading import reading
from data.tokenizer import Tokenizer

MADE_UP_MISTAKES = ("near", "far")


def demonstration(
    env: Environment,
    problem: Problem,
    rng: Random,
    turns: int,
    right_first: float,
    copy: float,
    right: float,
    slip: float = 0.0,
    own: str | None = None,
) -> tuple[list[int], list[bool]]:
    """One dialogue: `(ids, taught)`, two lists of one length. `taught[i]` says whether the loss counts token
    i.

    `right_first` is the share of first attempts made right. The others are made up; if the text `own` is
    given, it takes their place, right or wrong. `slip` is the share of these wrong ones that are careless
    slips: made up, and their answer is taught as well. `copy` and `right` are the shares of later turns that
    repeat the attempt before and that are right; the rest miss nearly.
    """
    task, tokenizer, ids, taught = env.task, env.tokenizer, [], []

    def add(tokens: list[int], teach: bool):
        ids.extend(tokens)
        taught.extend([teach] * len(tokens))

    kind = "right" if rng.random() < right_first else rng.choice(MADE_UP_MISTAKES)
    attempt = task.attempt(problem, kind, rng)
    is_slip = kind != "right" and rng.random() < slip
    if own is not None and kind != "right" and not is_slip:
        attempt = task.honest(problem, own) or attempt
    feedback = turns > 2 and rng.random() < 0.5
    for turn in range(turns):
        if feedback and turn % 2:
            add(env.feedback_request, teach=False)
            verdict = "right" if task.is_correct(problem, attempt.text) else "wrong"
            add([*tokenizer.encode(verdict), tokenizer.end_id], teach=True)
            continue
        if turn > 0 and (u := rng.random()) >= copy:
            attempt = task.attempt(problem, "right" if u < copy + right else "near", rng)
        add(env.correction_request if turn else tokenizer.user_turn(problem.prompt), teach=False)
        add(tokenizer.encode(attempt.answer), teach=turn > 0 or kind == "right" or is_slip)
        add([*tokenizer.encode(attempt.working), tokenizer.end_id], teach=True)
    return ids, taught


def imitation(
    tokenizer: Tokenizer, prompt: str, attempts: list[str], request: list[int]
) -> tuple[list[int], list[bool]]:
    """One dialogue to imitate, `(ids, taught)`: its last attempt is taught, all before it is context.

    `request` are the ids that ask for the next attempt.
    """
    ids = tokenizer.user_turn(prompt)
    for attempt in attempts[:-1]:
        ids += [*tokenizer.encode(attempt), tokenizer.end_id, *request]
    last = [*tokenizer.encode(attempts[-1]), tokenizer.end_id]
    return ids + last, [False] * len(ids) + [True] * len(last)


def swapped_attempts(
    task, problems: list[Problem], own: list[str], rng: Random
) -> tuple[dict[str, list[str]], list[bool] | None]:
    """First attempts to put in the place of the model's `own`, by kind: see `swap_test` in eval.py.

    The second part says which of its own attempts have a true working. It is None where a task can't make
    attempts.
    """
    swapped = {"own": own, "other": own[1:] + own[:1]}
    if not hasattr(task, "attempt"):
        return swapped, None
    for name, kind in (("wrong", "far"), ("near", "near"), ("right", "right")):
        swapped[name] = [task.attempt(p, kind, rng).text for p in problems]
    honest = [task.honest(p, text) for p, text in zip(problems, own, strict=True)]
    swapped["checked"] = [
        attempt.text if attempt else text for attempt, text in zip(honest, own, strict=True)
    ]
    true = [attempt is not None and attempt.text == text for attempt, text in zip(honest, own, strict=True)]
    return swapped, true


def read_traces(c, env: Environment) -> list[tuple[list[int], list[bool]]]:
    """The dialogues of the file `c.imitate`, each `(ids, taught)`.

    ValueError names a row that is no dialogue, or whose problem is a held-out one.
    """
    traces, is_test = [], lambda prompt: is_held_out(prompt, c.seed)
    if c.test_data:
        is_test = is_in_file(env.task, c.test_data)
    for place, row in read_rows(c.imitate, ("prompt", "attempts")):
        prompt, attempts = row["prompt"], row["attempts"]
        if not (
            isinstance(attempts, list) and attempts and all(isinstance(t, str) for t in (prompt, *attempts))
        ):
            raise ValueError(f"{place}: `prompt` must be a text and `attempts` a list of texts, not empty")
        with reading(place, "a dialogue that the tokenizer can write"):
            if is_test(prompt):
                raise ValueError(
                    f"{place}: {prompt[:40]!r} is a held-out problem: imitate dialogues on training problems"
                )
            traces.append(imitation(env.tokenizer, prompt, attempts, env.correction_request))
    return traces
