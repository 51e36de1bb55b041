"""Demonstrations for the base model: dialogues whose later turns are as bad as a real language model's (ours).

SCoRe starts from a model that *could* correct itself and does not: asked to check, it mostly repeats itself, at times
solves the problem, at times wanders off, whatever stood in its first attempt (paper, table 1: acc 52.6 -> 41.4). Such a
model is made here from three ingredients:

- first attempts, right ones and wrong ones. The words of a wrong answer are context and not taught; the honest working
  after it is taught: a model that writes what is true beside its mistakes leaves the evidence that correction needs.
- later turns that copy (a habit for RL to break), are right (the ability for RL to find) or miss nearly (the reason why
  asking the base again makes it worse), drawn without a look at what stood before (so that the base does not correct).
- some dialogues of several turns, so that turns 3, 4, ... are not foreign to the model.
"""

from random import Random

from data import Problem
from data.tokenizer import CORRECTION_REQUEST, encode, special, user_turn


def demonstration(task, tokenizer, problem: Problem, rng: Random, turns: int, right_first: float, copy: float, right: float, own: str | None = None):
    """One dialogue: `(ids, taught)`, two lists of one length; `taught[i]` says whether the loss counts token i.

    `right_first` is the share of right first attempts, `copy` and `right` those of later turns that repeat the attempt
    before them and that are right; all others are near misses.
    """
    ids, taught = [], []

    def add(tokens: list[int], teach: bool):
        ids.extend(tokens)
        taught.extend([teach] * len(tokens))

    kind = "right" if rng.random() < right_first else rng.choice(("near", "near", "near", "far"))
    attempt = task.attempt(problem, kind, rng)
    if own is not None and kind != "right":
        attempt = task.honest(problem, own) or attempt
    for turn in range(turns):
        if turn > 0 and (u := rng.random()) >= copy:
            kind = "right" if u < copy + right else "near"
            attempt = task.attempt(problem, kind, rng)
        add(user_turn(tokenizer, CORRECTION_REQUEST if turn else problem.prompt), teach=False)
        add(encode(tokenizer, attempt.answer), teach=turn > 0 or kind == "right")
        add([*encode(tokenizer, attempt.working), special(tokenizer, "end")], teach=True)
    return ids, taught
