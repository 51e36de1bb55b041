"""Planted bugs: would a test notice? Each mutant is one edit that makes the code wrong.

    python tests/mutants.py                          all of them; go on after Ctrl-C with the same command
    python tests/mutants.py --file=train.py          those of one file
    python tests/mutants.py --only=loss-mean,bonus-sign

The script copies the project to a temporary folder. There it makes one edit after the other, and for each it
runs the tests that should fail. A test that fails has caught the mutant. A mutant that no test catches has
survived, and a test is missing. The tests must pass without an edit, so they run once like that at first.

Results go to out/mutants.jsonl. They count as long as no Python file of the project changes.
"""

import argparse
import hashlib
import json
import multiprocessing
import os
import re
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import pytest
import torch

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "out" / "mutants.jsonl"
NOT_COPIED = (".git", ".venv", "out", "build", "__pycache__", "*.egg-info", ".pytest_cache", ".ruff_cache")
SECONDS = 600  # a mutant whose tests take longer counts as caught: it hangs

EVAL, LEARNING = "tests/test_eval.py", "tests/test_learning.py"
TWO_TOKENS, ROLLOUT = "tests/test_loss_two_tokens.py", "tests/test_rollout.py"
DECODE, MODEL, REWARDS, DATA = (f"tests/test_{n}.py" for n in ("decode", "model", "rewards", "data"))
TRAIN, MEMORY, RANKS = (f"tests/test_{name}.py" for name in ("train", "memory", "distributed"))


class Mutant(NamedTuple):
    name: str
    what: str  # what is wrong
    file: str
    old: str  # stands in the file exactly once
    new: str
    tests: tuple[str, ...]  # that should catch it: files, or ids as pytest has them
    equivalent: str = ""  # why no test can catch it


MUTANTS: list[Mutant] = []


def mutant(name: str, what: str, file: str, old: str, new: str, *tests: str, equivalent: str = "") -> None:
    MUTANTS.append(Mutant(name, what, file, old, new, tests, equivalent))


def wiring(name: str) -> str:
    return f"tests/test_wiring.py::test_{name}"


def loss(name: str) -> str:
    return f"tests/test_loss.py::test_{name}"


# fmt: off
# ---------------------------------------------------------------------------------- train.py: stages

mutant(
    "stage1-betas-swapped", "Stage I holds turn 2 and frees turn 1", "train.py",
    "(c.beta2,) * held + (c.beta1,)", "(c.beta1,) * held + (c.beta2,)",
    loss("stages_are_rows_of_coefficients"),
)
mutant(
    "stage1-rewards-turn-1", "Stage I rewards turn 1, too", "train.py",
    "weights, betas = (0.0,) * held + (1.0,)", "weights, betas = (1.0,) * held + (1.0,)",
    loss("stage_one_rewards_turn_2_alone_whatever_gamma_says"),
)
mutant(
    "stage1-gamma", "Stage II's gamma reaches Stage I", "train.py",
    "weights, betas=betas, reference=reference)", "weights, 0.0, c.gamma, betas, reference)",
    loss("stage_one_rewards_turn_2_alone_whatever_gamma_says"),
)
mutant(
    "stage1-bonus", "Stage I has the bonus", "train.py",
    "weights, betas=betas, reference=reference)", "weights, c.alpha, 0.0, betas, reference)",
    loss("stages_are_rows_of_coefficients"),
)
mutant(
    "stage1b-reference", "with three turns, part 1b is held to the base, not to 1a", "train.py",
    "reference = name", 'reference = "base"',
    loss("three_attempts_have_a_stage_each_with_a_reference_of_its_own"),
)
mutant(
    "stage2-reference", "Stage II is held to the end of Stage I, not to the base", "train.py",
    "weights, c.alpha, c.gamma, betas))", "weights, c.alpha, c.gamma, betas, reference))",
    wiring("each_update_has_the_whole_batchs_gradient_clipped_once[whole]"),
)
mutant(
    "stage2-rate", "Stage II learns at Stage I's rate", "train.py",
    "two, c.stage2_lr, weights", "two, c.lr, weights",
    wiring("optimizers_get_the_rates_of_their_stage"),
)
mutant(
    "base-rate", "the base learns at Stage I's rate", "train.py",
    'Stage("base", c.base_steps, c.base_lr)', 'Stage("base", c.base_steps, c.lr)',
    wiring("optimizers_get_the_rates_of_their_stage"),
)
mutant(
    "stage2-beta-of-an-unrewarded-turn", "a turn of weight 0 in Stage II still has its KL", "train.py",
    "tuple(c.stage2_beta if weight else 0.0 for", "tuple(c.stage2_beta for",
    loss("stages_are_rows_of_coefficients"),
)
mutant(
    "interleave-steps", "interleaved stages have all steps each time", "train.py",
    "one, two = c.stage1_steps // c.interleave,", "one, two = c.stage1_steps,",
    loss("stages_are_rows_of_coefficients"),
)
mutant(
    "stages-of-no-steps", "stages of 0 steps are kept", "train.py",
    "return [row for row in rows if row.steps]", "return rows",
    loss("stages_are_rows_of_coefficients"),
)
mutant(
    "base-stage-with-init", "a run with --init trains a base all the same", "train.py",
    "if build.makes_base(c) else []", "if True else []",
    loss("stages_are_rows_of_coefficients"),
)

# ---------------------------------------------------------------------------------- train.py: dialogues

mutant(
    "same-noise-in-every-step", "the sampling seed is the same in every step", "train.py",
    "problems, len(stage.weights), key, reference)", "problems, len(stage.weights), key[:1], reference)",
    wiring("every_step_samples_with_its_own_noise"),
)
mutant(
    "same-problems-in-every-step", "every step has the same problems", "train.py",
    "(stage_index * STEPS + step) * problems_a_step", "(stage_index * STEPS) * problems_a_step",
    wiring("every_step_and_every_stage_has_its_own_problems"),
)
mutant(
    "same-problems-in-every-stage", "every stage has the same problems", "train.py",
    "(stage_index * STEPS + step) * problems_a_step", "step * problems_a_step",
    wiring("every_step_and_every_stage_has_its_own_problems"),
)
mutant(
    "problems-of-the-base", "RL has the problems of the base's demonstrations", "train.py",
    "return 10**9 + (", "return (",
    wiring("every_step_and_every_stage_has_its_own_problems"),
)
mutant(
    "samples-of-unlike-problems", "the samples of a problem are of different problems", "train.py",
    "* problems_a_step + row // c.samples_per_problem", "* problems_a_step + row",
    wiring("every_step_and_every_stage_has_its_own_problems"),
)
mutant(
    "rloo-groups", "rloo compares nothing: every row is a problem of its own", "train.py",
    "device=correct.device) // c.samples_per_problem", "device=correct.device)",
    wiring("advantages_of_a_batch_by_hand"),
)
mutant(
    "reference-samples", "the reference makes the dialogues, not the policy", "train.py",
    "training_rollouts(c, env, policy, problems, len(stage.weights), key, reference)",
    "training_rollouts(c, env, reference, problems, len(stage.weights), key, reference)",
    wiring("the_policy_samples_and_the_reference_makes_the_offline_attempts"),
)
mutant(
    "bonus-in-every-stage", "the rewards have the bonus in every stage", "train.py",
    "turn_rewards(correct, stage.weights, stage.alpha)", "turn_rewards(correct, stage.weights, c.alpha)",
    wiring("advantages_of_a_batch_by_hand"),
)
mutant(
    "gamma-1-in-stage1", "Stage I credits turn 1 with turn 2's return", "train.py",
    "turn_returns(all_rewards, stage.gamma)",
    'turn_returns(all_rewards, 1.0 if stage.name == "stage1" else stage.gamma)',
    wiring("advantages_of_a_batch_by_hand"),
)
mutant(
    "gamma-ignored", "gamma has no effect", "train.py",
    "turn_returns(all_rewards, stage.gamma)", "turn_returns(all_rewards, 0.0)",
    wiring("advantages_of_a_batch_by_hand"),
)
mutant(
    "baseline-ignored", "the baseline is by_outcome, whatever the setting", "train.py",
    "all_correct, problem_of, c.baseline)", 'all_correct, problem_of, "by_outcome")',
    wiring("advantages_of_a_batch_by_hand"),
)
mutant(
    "advantages-of-rank-0", "every process takes rank 0's advantages", "train.py",
    "advantage[mine.start : mine.stop]", "advantage[: len(mine)]",
    f"{RANKS}::test_advantages_and_problems_are_those_of_the_joined_batch",
)
mutant(
    "baseline-of-own-rows", "a process compares its own rows only", "train.py",
    "all_correct, all_rewards = gather_rows(correct, rewards)", "all_correct, all_rewards = correct, rewards",
    f"{RANKS}::test_advantages_and_problems_are_those_of_the_joined_batch",
)

# ---------------------------------------------------------------------------------- train.py: advantages

mutant(
    "baseline-includes-itself", "a rollout is compared with itself, too", "train.py",
    ".float().fill_diagonal_(0)", ".float()",
    loss("leave_one_out_by_hand"),
)
mutant(
    "grouped-by-own-outcome", "the groups are by the turn's own outcome", "train.py",
    "correct[:, turn - 1] if turn > 0", "correct[:, turn] if turn > 0",
    loss("leave_one_out_by_hand"),
)
mutant(
    "no-baseline", "the return itself is the advantage", "train.py",
    "columns.append(returns[:, turn] - same @ returns[:, turn] / same.sum(1).clamp(min=1))",
    "columns.append(returns[:, turn])",
    loss("leave_one_out_by_hand"),
)
mutant(
    "advantages-standardised", "advantages are divided by their standard deviation", "train.py",
    "    return torch.stack(columns, dim=1)\n",
    "    return torch.stack([a / (a.std() + 1e-6) for a in columns], dim=1)\n",
    loss("leave_one_out_by_hand"),
)

# ---------------------------------------------------------------------------------- train.py: the loss

mutant(
    "loss-mean", "the loss is a mean over tokens", "train.py",
    "loss = (beta * kl - credit * log_probs).sum() / rows", "loss = (beta * kl - credit * log_probs).mean()",
    TWO_TOKENS,
)
mutant(
    "loss-rows-of-micro-batch", "the loss is divided by the micro-batch's rows", "train.py",
    "loss = (beta * kl - credit * log_probs).sum() / rows",
    "loss = (beta * kl - credit * log_probs).sum() / len(ids)",
    wiring("each_update_has_the_whole_batchs_gradient_clipped_once[whole]"),
)
mutant(
    "advantage-sign", "what is good becomes rarer", "train.py",
    "loss = (beta * kl - credit * log_probs)", "loss = (beta * kl + credit * log_probs)", LEARNING,
)
mutant(
    "kl-to-come-not-detached", "the KL in the weights of the log-probs has a gradient", "train.py",
    "masked_scatter(is_sampled, kl.detach())", "masked_scatter(is_sampled, kl)", TWO_TOKENS,
)
mutant(
    "kl-without-gradient", "the KL's own gradient is lost, only the score term is left", "train.py",
    "loss = (beta * kl - credit", "loss = (beta * kl.detach() - credit", TWO_TOKENS,
)
mutant(
    "kl-score-term-dropped", "a token is not charged for the KL that it leads to", "train.py",
    "(advantages[:, :, None] - beta * kl_to_come)", "(advantages[:, :, None] - 0 * kl_to_come)", TWO_TOKENS,
)
mutant(
    "kl-to-come-of-later-turns", "turn 1 is charged for turn 2's KL", "train.py",
    "kl_to_come = kl_of.flip(-1).cumsum(-1).flip(-1) - kl_of",
    "kl_to_come = kl_of.sum(1, keepdim=True).flip(-1).cumsum(-1).flip(-1) - kl_of.sum(1, keepdim=True)",
    TWO_TOKENS,
)
mutant(
    "kl-to-come-with-its-own", "a token is charged for its own KL, too", "train.py",
    "kl_to_come = kl_of.flip(-1).cumsum(-1).flip(-1) - kl_of",
    "kl_to_come = kl_of.flip(-1).cumsum(-1).flip(-1)",
    equivalent="a token's KL does not depend on which token is drawn, so it is a baseline: same expectation",
)
mutant(
    "kl-reversed", "KL(reference || policy)", "train.py",
    "kl = (p * (log_p - log_q) - p + log_q.exp()).sum(-1)",
    "kl = (log_q.exp() * (log_q - log_p) + p - log_q.exp()).sum(-1)", TWO_TOKENS,
)
mutant(
    "kl-k3", "the KL is an estimate from the sampled token, as in GRPO", "train.py",
    "kl = (p * (log_p - log_q) - p + log_q.exp()).sum(-1)",
    "ratio = (log_q - log_p).gather(1, targets[:, None])[:, 0]\n        kl = ratio.exp() - 1 - ratio",
    TWO_TOKENS,
)
mutant(
    "kl-rounding", "where the policy is its reference, rounding leaves a gradient", "train.py",
    "kl = (p * (log_p - log_q) - p + log_q.exp()).sum(-1)", "kl = (p * (log_p - log_q)).sum(-1)",
    loss("a_policy_that_is_its_reference_has_no_gradient_without_reward"),
)
mutant(
    "betas-reversed-in-the-loss", "turn 1's KL has turn 2's weight", "train.py",
    "(torch.tensor(betas, device=ids.device)", "(torch.tensor(betas[::-1], device=ids.device)", TWO_TOKENS,
)
mutant(
    "betas-reversed-in-the-credit", "the KL to come has the other turn's weight", "train.py",
    "beta = torch.tensor(betas, device=kl.device)", "beta = torch.tensor(betas[::-1], device=kl.device)",
    TWO_TOKENS,
)
mutant(
    "first-kl-twice", "turn 1's KL counts twice", "train.py",
    "(torch.tensor(betas, device=ids.device)[:, None] * masks).sum(1)[is_sampled]",
    "(torch.tensor(betas, device=ids.device)[:, None] * masks).sum(1)[is_sampled]\n"
    "    beta = beta * (1 + masks[:, 0][is_sampled].to(beta.dtype))", TWO_TOKENS,
)
mutant(
    "length-bias", "the advantage is divided by the turn's length", "train.py",
    "((advantages[:, :, None] - beta * kl_to_come)",
    "((advantages[:, :, None] / masks.sum(-1, keepdim=True).clamp(min=1) - beta * kl_to_come)", TWO_TOKENS,
)
mutant(
    "last-token-only", "only a turn's last token has the advantage", "train.py",
    "    return ((advantages[:, :, None] - beta * kl_to_come)",
    "    last = masks & (masks.flip(-1).cumsum(-1).flip(-1) == 1)\n"
    "    return ((advantages[:, :, None] * last - beta * kl_to_come)", TWO_TOKENS,
)
mutant(
    "log-probs-unshifted", "the log-probs are those of the input tokens", "train.py",
    "inputs, targets, mask = ids[:, :-1], ids[:, 1:][mask[:, 1:]], mask[:, 1:]",
    "inputs, targets, mask = ids[:, :-1], ids[:, :-1][mask[:, 1:]], mask[:, 1:]", TWO_TOKENS,
)
mutant(
    "policy-without-temperature", "the policy's logits are not divided by the temperature", "train.py",
    "(model.head(hidden).float() / temperature)", "(model.head(hidden).float())", TWO_TOKENS,
)
mutant(
    "reference-without-temperature", "the reference's logits are not divided by the temperature", "train.py",
    "(reference.head(reference_hidden).float() / temperature)", "(reference.head(reference_hidden).float())",
    TWO_TOKENS,
)
mutant(
    "entropy-sign", "the logged entropy is negative", "train.py",
    "entropy = -(p * log_p)", "entropy = (p * log_p)", TWO_TOKENS,
)
mutant(
    "logged-kl-undivided", "the logged KL is a sum over rows", "train.py",
    '{f"kl_t{k}": value / rows for', '{f"kl_t{k}": value for', TWO_TOKENS,
)

# ---------------------------------------------------------------------------------- train.py: the loop

mutant(
    "no-warm-up", "the first step has a rate of 0", "train.py", "(step + 1) / 10,", "step / 10,",
    wiring("optimizers_get_the_rates_of_their_stage"),
)
mutant(
    "decay-from-the-start", "the rate falls from a stage's first step", "train.py",
    "2 * (1 - step / stage.steps)", "1 - step / stage.steps",
    loss("learning_rate_warms_up_holds_and_falls"),
)
mutant(
    "constant-rate", "the loop does not use the schedule", "train.py",
    "run.update(stage, step, learning_rate(stage, step),", "run.update(stage, step, stage.lr,",
    wiring("optimizers_get_the_rates_of_their_stage"),
)
mutant(
    "schedule-restarts", "the schedule starts anew at resume", "train.py",
    "run.update(stage, step, learning_rate(stage, step),",
    "run.update(stage, step, learning_rate(stage, step - run.first_step),",
    wiring("a_stopped_and_resumed_run_equals_the_unbroken_one"),
)
mutant(
    "policy-as-reference", "the KL is against the policy itself", "train.py",
    "policy_loss(policy, reference, micro,", "policy_loss(policy, policy, micro,",
    wiring("each_update_has_the_whole_batchs_gradient_clipped_once[whole]"),
)
mutant(
    "loop-without-betas", "the loop drops the KL weights", "train.py",
    "micro, stage.betas, c.temperature,", "micro, (0.0,) * len(stage.betas), c.temperature,",
    wiring("each_update_has_the_whole_batchs_gradient_clipped_once[whole]"),
)
mutant(
    "loop-without-temperature", "the loss is at temperature 1", "train.py",
    "micro, stage.betas, c.temperature,", "micro, stage.betas, 1.0,",
    wiring("each_update_has_the_whole_batchs_gradient_clipped_once[whole]"),
)
mutant(
    "loop-divides-by-micro-rows", "the loop gives the micro-batch's number of rows", "train.py",
    "c.temperature, c.batch)", 'c.temperature, len(micro["ids"]))',
    wiring("each_update_has_the_whole_batchs_gradient_clipped_once[whole]"),
)
mutant(
    "supervised-micro-tokens", "the loop gives the micro-batch's number of tokens", "train.py",
    "supervised_loss(policy, micro, tokens)",
    'supervised_loss(policy, micro, int(micro["masks"][:, :, 1:].sum()))',
    wiring("each_update_has_the_whole_batchs_gradient_clipped_once[whole]"),
)
mutant(
    "last-micro-batch-only", "only the last micro-batch has a gradient", "train.py",
    '    loss.backward()\n                sums.update({"loss": loss.item(), **parts})  # adds up',
    '    sums.update({"loss": loss.item(), **parts})\n            loss.backward()',
    wiring("each_update_has_the_whole_batchs_gradient_clipped_once[whole]"),
)
mutant(
    "clip-each-micro-batch", "the gradient is clipped after each micro-batch", "train.py",
    "                loss.backward()\n",
    "                loss.backward()\n"
    "                torch.nn.utils.clip_grad_norm_(policy.parameters(), c.max_grad_norm)\n",
    wiring("each_update_has_the_whole_batchs_gradient_clipped_once[whole]"),
)
mutant(
    "logged-loss-of-the-last-micro-batch", "the logged loss is that of the last micro-batch", "train.py",
    'sums.update({"loss": loss.item(), **parts})', 'sums = Counter({"loss": loss.item(), **parts})',
    wiring("what_is_logged_is_of_the_whole_batch"),
)
mutant(
    "stage-not-ended", "a stage's last weights are not saved", "train.py",
    "        run.end_stage(index, stage)\n", "        pass\n",
    wiring("each_stage_goes_on_from_the_last_one_with_fresh_optimizers"),
)
mutant(
    "curve-of-one-step", "the learning curve shows another step's dialogues", "train.py",
    "rollout_batch(c, MEASURE, key, env, policy, policy)",
    "rollout_batch(c, MEASURE, (0, 0), env, policy, policy)",
    wiring("the_learning_curve_of_the_base_is_of_its_own_steps"),
)

# ---------------------------------------------------------------------------------- rewards.py

mutant(
    "bonus-sign", "the bonus pays for spoiling", "rewards.py",
    "alpha * (r[:, 1:] - r[:, :-1])", "alpha * (r[:, :-1] - r[:, 1:])", REWARDS,
)
mutant(
    "bonus-on-turn-1", "the bonus is turn 1's", "rewards.py",
    "rewards[:, 1:] += alpha", "rewards[:, :-1] += alpha", REWARDS,
)
mutant(
    "bonus-weighted", "the bonus is multiplied by the turn's weight", "rewards.py",
    "rewards[:, 1:] += alpha * (r[:, 1:] - r[:, :-1])",
    "rewards[:, 1:] += alpha * (r[:, 1:] - r[:, :-1]) * torch.tensor(weights)[1:]",
    wiring("the_bonus_is_not_multiplied_by_the_turns_weight"),
)
mutant(
    "return-of-the-next-reward", "a return looks one turn ahead only", "rewards.py",
    "gamma * returns[:, turn + 1]", "gamma * rewards[:, turn + 1]", REWARDS,
)
mutant(
    "cut-attempts-judged", "an attempt that was cut off can be right", "rewards.py",
    "places = ended.nonzero()", "places = torch.ones_like(ended).nonzero()", REWARDS,
)
mutant(
    "unparsable-is-right", "all but wrong is right", "rewards.py",
    'verdict == "right"', 'verdict != "wrong"',
    wiring("only_the_verdict_right_is_right"),
)
mutant(
    "truncated-share", "the share of attempts cut off is that of the others", "rewards.py",
    '"truncated": 1 - len(judged) / ended.numel()', '"truncated": len(judged) / ended.numel()',
    wiring("only_the_verdict_right_is_right"),
)

# ---------------------------------------------------------------------------------- rollout.py

mutant(
    "mask-with-prompt-token", "the mask has the last prompt token", "rollout.py",
    "(positions >= starts[:, :, None])", "(positions >= starts[:, :, None] - 1)", ROLLOUT,
)
mutant(
    "mask-without-end", "the mask lacks the end-of-turn token", "rollout.py",
    "turn_masks(starts, stops, T), log_probs", "turn_masks(starts, stops - ended.long(), T), log_probs",
    ROLLOUT,
)
mutant(
    "cache-not-rewound", "the cache keeps what a row that ended early has left behind", "rollout.py",
    "cache.lengths = stops[:, turn] - 1", "cache.lengths = starts[:, turn] + int(counts.max()) - 1", ROLLOUT,
)
mutant(
    "last-token-fed-twice", "positions in turn 2 are one too high", "rollout.py",
    "cache.lengths = stops[:, turn] - 1", "cache.lengths = stops[:, turn]", ROLLOUT,
)
mutant(
    "padding-counted", "one padding token behind a row's end counts as sampled", "rollout.py",
    "torch.where(ended[:, turn], is_end.int().argmax(1) + 1, max_new)",
    "torch.where(ended[:, turn], is_end.int().argmax(1) + 2, max_new).clamp(max=max_new)", ROLLOUT,
)
mutant(
    "cut-attempt-not-closed", "an attempt that was cut off is not closed", "rollout.py",
    "[i, *requests[turn]] if i == end else [i, end, *requests[turn]]", "[i, *requests[turn]]", ROLLOUT,
)
mutant(
    "log-probs-at-temperature-1", "the sampler's log-probs are at temperature 1", "rollout.py",
    "return tokens[:, 0], probs.gather", "return tokens[:, 0], logits.float().softmax(-1).gather", ROLLOUT,
)
mutant(
    "samples-at-temperature-1", "the sampler ignores the temperature", "rollout.py",
    "(logits.float() / (temperature or 1.0))", "logits.float()", ROLLOUT,
)
mutant(
    "impossible-token", "a token of probability 0 can be sampled", "rollout.py",
    "(1 - uniform[:, None]) * cumulative", "uniform[:, None] * cumulative",
    f"{ROLLOUT}::test_a_token_of_probability_zero_is_never_sampled",
)
mutant(
    "sampler-without-generator", "the sampler uses the global random numbers", "rollout.py",
    "device=device, generator=generator)", "device=device)", ROLLOUT,
)
mutant(
    "rows-share-noise", "all rows have the same random numbers", "rollout.py",
    "torch.rand(B, K, max_new, dtype=precise, device=device, generator=generator)",
    "torch.rand(1, K, max_new, dtype=precise, device=device, generator=generator).expand(B, -1, -1)", ROLLOUT,
)
mutant(
    "turns-share-noise", "all turns have the same random numbers", "rollout.py",
    "torch.rand(B, K, max_new, dtype=precise, device=device, generator=generator)",
    "torch.rand(B, 1, max_new, dtype=precise, device=device, generator=generator).expand(-1, K, -1)", ROLLOUT,
)
mutant(
    "all-ended", "an attempt that was cut off counts as ended", "rollout.py",
    "        ended[:, turn] = is_end.any(1)\n        counts = torch.where(ended[:, turn],",
    "        ended[:, turn] = True\n        counts = torch.where(is_end.any(1),", ROLLOUT,
)
mutant(
    "state-at-the-padding", "the first token follows the padding of the prompt", "rollout.py",
    "[rows[:, 0], counts - 1]", "[:, -1]", ROLLOUT,
)
mutant(
    "text-with-special-tokens", "a turn's text has its end-of-turn token", "rollout.py",
    "[i for i in row[a:b] if i != end]", "[i for i in row[a:b]]", ROLLOUT,
)

# ---------------------------------------------------------------------------------- engine/decode.py

DECODER = "engine/decode.py"
mutant(
    "decode-rope", "the decode step turns by the position before", DECODER,
    "cos[positions], sin[positions]", "cos[positions - 1], sin[positions - 1]", DECODE,
)
mutant(
    "decode-groups", "grouped queries look at the wrong keys", DECODER,
    "qk[:, : H * G].reshape(n * H, G, D)",
    "qk[:, : H * G].view(n, G, H, D).transpose(1, 2).reshape(n * H, G, D)", DECODE,
)
mutant(
    "decode-own-key", "a token does not see itself", DECODER,
    "(columns[:end] > positions[:, None])", "(columns[:end] >= positions[:, None])", DECODE,
)
mutant(
    "decode-learned-position", "the decode step has no learned positions", DECODER,
    "x = x + model.position(positions)", "pass", DECODE,
)
mutant(
    "rows-not-moved-back", "rows that ended early come back in another order", DECODER,
    "return tokens[back], log_probs[back]", "return tokens, log_probs", ROLLOUT,
)
mutant(
    "noise-not-moved", "a row that moves takes over another row's random numbers", DECODER,
    "for t in (tokens, log_probs, uniform, has_ended, order):",
    "for t in (tokens, log_probs, has_ended, order):",
    ROLLOUT,
)
mutant(
    "keys-not-moved", "a row that moves reads another row's keys", DECODER,
    "                cache.move(a, b)\n", "", ROLLOUT,
)
mutant(
    "keys-not-moved-back", "turn 2 reads another row's keys", DECODER,
    "    cache.move(moved, back[moved])\n", "", ROLLOUT,
)
mutant(
    "rows-never-leave", "rows that have ended are still computed", DECODER,
    "if fewer < n:", "if fewer < 0:", ROLLOUT,
)

# ---------------------------------------------------------------------------------- model.py

mutant(
    "rope-behind-a-cache", "RoPE's angles are one too far when the cache is filled", "model.py",
    "angles = rope(self.config, positions[:, :, None])",
    "angles = rope(self.config, positions[:, :, None] + int(cache is not None and cache.longest > 0))", MODEL,
)
mutant(
    "groups-tiled", "grouped queries are tiled, not interleaved", "model.py",
    "shared = c.n_kv_head < c.n_head",
    "k, v = (t.repeat(1, c.n_head // c.n_kv_head, 1, 1) for t in (k, v))\n        shared = False", MODEL,
)
QK_NORM = "        if c.qk_norm:\n            q, k = self.q_norm(q), self.k_norm(k)\n"
ROTATE = "        if angles is not None:\n            q, k = rotate(q, *angles), rotate(k, *angles)\n"
mutant(
    "qk-norm-after-rope", "q and k are normed after RoPE, unlike in the decode step", "model.py",
    QK_NORM + ROTATE, ROTATE + QK_NORM, DECODE,
)
mutant(
    "qk-norm-after-rope-2", "q and k are normed after RoPE, unlike in Qwen 3", "model.py",
    QK_NORM + ROTATE, ROTATE + QK_NORM, "tests/test_hf.py::test_the_toy_model_is_a_qwen3",
)
mutant(
    "sees-the-future", "attention is not causal", "model.py",
    "is_causal=mask is None", "is_causal=False", MODEL,
)
mutant(
    "cached-mask", "behind a cache a token does not see itself", "model.py",
    "columns <= positions[:, :, None]", "columns < positions[:, :, None]", MODEL,
)
mutant(
    "move-without-lengths", "a row that moves keeps the length of its old place", "model.py",
    "        self.lengths[to] = self.lengths[source]\n", "", DECODE,
)

# ---------------------------------------------------------------------------------- on a GPU

FAKE_GPU = "tests/test_gpu.py::test_on_a_fake_gpu"
mutant(
    "gpu-positions", "the model makes its positions on the CPU", "model.py",
    "steps = torch.arange(T, device=ids.device)", "steps = torch.arange(T)", FAKE_GPU,
)
mutant(
    "gpu-betas", "the KL weights stay on the CPU", "train.py",
    "(torch.tensor(betas, device=ids.device)", "(torch.tensor(betas)", FAKE_GPU,
)
mutant(
    "gpu-masks", "the masks of the turns are made on the CPU", "rollout.py",
    "positions = torch.arange(T, device=starts.device)", "positions = torch.arange(T)", FAKE_GPU,
)
mutant(
    "gpu-columns", "the decode step makes its columns on the CPU", DECODER,
    "columns = torch.arange(width, device=table.device)", "columns = torch.arange(width)", FAKE_GPU,
)
mutant(
    "gpu-wait", "every token waits for the device", DECODER,
    "        has_ended[:n] |= token == end", "        has_ended[:n] |= token == end; int(token[0])", FAKE_GPU,
)
mutant(
    "gpu-momentum", "Muon's momentum is on the CPU", "engine/optim.py",
    'setdefault("momentum", torch.zeros_like(p))', 'setdefault("momentum", torch.zeros(p.shape))', FAKE_GPU,
)

# ---------------------------------------------------------------------------------- data

mutant(
    "held-out-leak", "training draws held-out problems, too", "data/__init__.py",
    "while is_held_out((problem := task.sample(rng, size)).prompt, seed):\n                pass",
    "problem = task.sample(rng, size)", DATA,
)
mutant(
    "held-out-leak-of-files", "problems of the test file are trained on", "data/__init__.py",
    'task.read(train_data, "train") if not is_test(p.prompt)]', 'task.read(train_data, "train")]',
    "tests/test_tasks.py::test_problems_that_are_in_both_files_are_not_trained_on",
)
mutant(
    "answer-in-the-prompt", "the first prompt holds the answer", "data/__init__.py",
    "self.tokenizer.user_turn(p.prompt) for", "self.tokenizer.user_turn(p.prompt + p.answer) for",
    wiring("prompts_show_the_problem_and_ask_all_the_same"),
)
mutant(
    "seed-without-its-last-key", "seeds do not depend on the step", "data/__init__.py",
    'Random("/".join(map(str, key)))', 'Random("/".join(map(str, key[:-1])))',
    wiring("every_step_samples_with_its_own_noise"),
)
mutant(
    "feedback-as-request", "turn 2 is asked for as feedback is", "data/__init__.py",
    'getattr(self.task, "CORRECTION_REQUEST", CORRECTION_REQUEST)',
    'getattr(self.task, "CORRECTION_REQUEST", FEEDBACK_REQUEST)',
    wiring("prompts_show_the_problem_and_ask_all_the_same"),
)
mutant(
    "wrong-answers-taught", "the base learns its demonstrations' wrong answers", "data/demonstrations.py",
    'teach=turn > 0 or kind == "right"', "teach=True", DATA,
)
mutant(
    "imitation-of-all-attempts", "of a dialogue to imitate every token is taught", "data/demonstrations.py",
    "[False] * len(ids) + [True] * len(last)", "[True] * len(ids) + [True] * len(last)", DATA,
)
mutant(
    "other-is-own", "the swap test's `other` attempt is the model's own", "data/demonstrations.py",
    '"other": own[1:] + own[:1]', '"other": own', EVAL,
)

# ---------------------------------------------------------------------------------- eval.py

mutant(
    "i-to-c-of-wrong-first", "i_to_c is a share of the wrong first attempts", "eval.py",
    '"i_to_c": (1 - first) * second,', '"i_to_c": second[first == 0],', EVAL,
)
mutant(
    "fix-rate-of-all", "fix_rate is a share of all problems", "eval.py",
    '"fix_rate": second[first == 0],', '"fix_rate": (1 - first) * second,', EVAL,
)
mutant(
    "delta-unpaired", "delta's standard error is the unpaired one", "eval.py",
    '    return {**means, "n": len(first), "se": errors}',
    '    errors["delta"] = math.hypot(errors["acc_t1"], errors["acc_t2"])\n'
    '    return {**means, "n": len(first), "se": errors}', EVAL,
)
mutant(
    "standard-deviation", "the standard errors are standard deviations", "eval.py",
    "x.std() / len(x) ** 0.5", "x.std()", EVAL,
)
mutant(
    "edit-distance-of-the-longer", "the edit distance is divided by the longer text", "eval.py",
    "return (total - 2 * common[-1]) / total if total",
    "return (total - 2 * common[-1]) / max(len(a), len(b)) if total",
    EVAL,
)
mutant(
    "everything-changed", "a copy counts as changed", "eval.py",
    "[row[0] != row[1] for row in texts]", '[row[0] != row[1] + " " for row in texts]', EVAL,
)
mutant(
    "another-seeds-split", "evaluation is on another seed's split: most of it was trained on",
    "engine/build.py", "c.size, c.seed, n, c.test_data)", "c.size, c.seed + 1, n, c.test_data)", EVAL,
)
mutant(
    "sampled-called-greedy", "what the report calls greedy is sampled", "eval.py",
    "turns=max(5, c.turns) if is_toy else c.turns)",
    "turns=max(5, c.turns) if is_toy else c.turns, temperature=1.0)", EVAL,
)
mutant(
    "greedy-called-sampled", "what the report calls sampled is greedy", "eval.py",
    "evaluate(model, c, problems, temperature=1.0)", "evaluate(model, c, problems)", EVAL,
)
mutant(
    "report-of-the-base", "the report shows the base in each row", "eval.py",
    'load_model(folder / f"{name}.pt", device)', 'load_model(folder / "base.pt", device)', EVAL,
)
mutant(
    "evaluation-disturbs", "evaluation draws from the global random numbers", "eval.py",
    "generator = torch.Generator(model.embed.weight.device).manual_seed(c.seed)", "generator = None", EVAL,
)
mutant(
    "evaluation-ignores-temperature", "evaluation is always greedy", "eval.py",
    "turns - repair, temperature, feedback)", "turns - repair, 0.0, feedback)", EVAL,
)
mutant(
    "feedback-is-an-attempt", "the model's feedback counts as an attempt", "eval.py",
    "any(given), 2 if feedback else 1", "any(given), 1", EVAL,
)
mutant(
    "given-attempt-ignored", "offline repair starts from nothing", "eval.py",
    "[after_attempt(env, p, p.given) for p in problems] if repair else",
    "env.prompts(problems) if repair else",
    EVAL,
)
mutant(
    "drift-reversed", "drift is KL(base || model)", "eval.py",
    "token_scores(model, base, ids", "token_scores(base, model, ids", EVAL,
)
mutant(
    "drift-of-the-bases-samples", "drift is measured on the base's attempts", "eval.py",
    "rollout = answer(model, c, env, env.prompts(problems), 1, 1.0)",
    "rollout = answer(base, c, env, env.prompts(problems), 1, 1.0)", EVAL,
)
mutant(
    "drift-greedy", "drift is measured on greedy attempts", "eval.py",
    "env.prompts(problems), 1, 1.0)", "env.prompts(problems), 1, 0.0)", EVAL,
)
mutant(
    "drift-undivided", "drift is a sum over problems", "eval.py",
    "return total / len(problems)", "return total", EVAL,
)
mutant(
    "swap-test-sampled", "the swap test is sampled", "eval.py",
    "rollout = answer(model, c, env, prompts, 1, 0.0)", "rollout = answer(model, c, env, prompts, 1, 1.0)",
    EVAL,
)
mutant(
    "swap-test-right-first", "`wrong_first` are the problems with a right first attempt", "eval.py",
    "[not correct[0] for", "[correct[0] for", EVAL,
)
mutant(
    "swap-test-of-own-attempts", "the swap test never swaps", "eval.py",
    "for p, text in zip(problems, attempts, strict=True)]\n        rollout",
    "for p, text in zip(problems, own, strict=True)]\n        rollout", EVAL,
)

# ---------------------------------------------------------------------------------- engine/run.py

RUN = "engine/run.py"
mutant(
    "stage1-as-reference", "the loader takes Stage I's end as Stage II's reference", RUN,
    '    reference = load_model(folder / f"{stage.reference}.pt"',
    '    name = "stage1" if stage.name == "stage2" else stage.reference\n'
    '    reference = load_model(folder / f"{name}.pt"',
    wiring("each_update_has_the_whole_batchs_gradient_clipped_once[whole]"),
)
mutant(
    "live-reference", "the reference is the policy itself: no KL", RUN,
    '    if c.lora and stage.reference == "base" and not makes_base(c):\n',
    '    if not c.lora:\n        return policy\n    if c.lora:\n',
    wiring("each_update_has_the_whole_batchs_gradient_clipped_once[whole]"),
)
mutant(
    "reference-without-its-warm-up", "with LoRA the reference is the model before its warm-up", RUN,
    " and not makes_base(c):", ":",
    "tests/test_lora.py::test_on_a_task_in_words_a_pretrained_model_is_warmed_up_to_be_the_base",
)
mutant(
    "missing-bytes-unseen", "a character without a token reaches tiktoken, which panics", "data/tokenizer.py",
    'if self.missing.intersection(text.encode("utf-8", "replace")):', "if False:",
    "tests/test_hf_tokenizer.py",
)
mutant(
    "lora-reference", "with LoRA the reference has the adapters", RUN,
    "return without_lora(policy)", "return policy",
    "tests/test_lora.py::test_the_reference_of_a_lora_run_is_the_base",
)
mutant(
    "reference-learns", "the reference's weights want gradients", RUN,
    "home)[0].requires_grad_(False)", "home)[0]",
    equivalent="the loss computes the reference without gradients, and no optimizer knows its weights",
)
mutant(
    "stage2-from-the-base", "Stage II starts from the base", RUN,
    "            reference = load_reference(self.c",
    '            base = load_model(self.folder / "base.pt", self.device)[0].state_dict()\n'
    "            self.policy.load_state_dict(base, strict=False)\n"
    "            reference = load_reference(self.c",
    wiring("each_stage_goes_on_from_the_last_one_with_fresh_optimizers"),
)
mutant(
    "optimizer-state-lost", "a resumed run has fresh optimizers", RUN,
    'start_stage(c, state["optimizers"])', "start_stage(c, None)",
    wiring("a_stopped_and_resumed_run_equals_the_unbroken_one"),
)
mutant(
    "stage-restarts-at-resume", "a resumed run begins its stage anew", RUN,
    'self.state["step"] if resumed else 0', "0",
    wiring("a_stopped_and_resumed_run_equals_the_unbroken_one"),
)
mutant(
    "later-stages-resumed", "the stages after a resumed one skip their first steps", RUN,
    'resumed = index == self.state.get("stage") and self.state["step"] > 0',
    'resumed = self.state.get("step", 0) > 0',
    wiring("a_stopped_and_resumed_run_equals_the_unbroken_one"),
)
mutant(
    "step-done-twice", "last.pt says that its last step is still to do", RUN,
    "self.save_state(index, step + 1, self.learner.optimizers)",
    "self.save_state(index, step, self.learner.optimizers)",
    wiring("a_stopped_and_resumed_run_equals_the_unbroken_one"),
)
mutant(
    "stage-done-twice", "last.pt says that its last stage is still to do", RUN,
    "self.save_state(index + 1, 0, [])", "self.save_state(index, 0, [])",
    wiring("a_stopped_and_resumed_run_equals_the_unbroken_one"),
)
mutant(
    "optimizers-not-saved", "last.pt has no optimizer state", RUN,
    "[optimizer.state_dict() for optimizer in optimizers]", "[]",
    wiring("a_stopped_and_resumed_run_equals_the_unbroken_one"),
)
mutant(
    "rows-logged-twice", "metrics.jsonl keeps the rows that a resumed run makes again",
    "engine/checkpoints.py", '{"rows": rows[:done]}', '{"rows": rows}',
    wiring("a_stopped_and_resumed_run_equals_the_unbroken_one"),
)
mutant(
    "masters-lost", "a resumed bfloat16 run starts from rounded weights", RUN,
    'master_weights(self.policy, state.get("model", {}))', "master_weights(self.policy, {})",
    f"{MEMORY}::test_a_run_that_was_stopped_twice_equals_the_unbroken_one",
)
mutant(
    "initial-weights-unseeded", "the initial weights depend on what ran before", RUN,
    "    torch.manual_seed(c.seed)\n", "",
    wiring("a_stopped_and_resumed_run_equals_the_unbroken_one"),
)
mutant(
    "infinite-gradient", "a gradient that is no number reaches the weights", RUN,
    "if not math.isfinite(loss + norm):", "if not math.isfinite(loss):",
    wiring("a_gradient_that_is_no_number_stops_the_run_and_spoils_nothing"),
)
mutant(
    "update-before-the-check", "weights are spoiled before the run stops", RUN,
    "        if not math.isfinite(loss + norm):\n",
    "        self.learner.step(lr)\n        if not math.isfinite(loss + norm):\n",
    wiring("a_gradient_that_is_no_number_stops_the_run_and_spoils_nothing"),
)
mutant(
    "run-overwritten", "a new run overwrites another one", "engine/checkpoints.py",
    "require(c.overwrite or not files,", "require(True,",
    wiring("a_run_is_not_overwritten"),
)
mutant(
    "kept-under-the-last-step", "kept checkpoints have the number of the step before", RUN,
    'f"{stage.name}-{step + 1}.pt"', 'f"{stage.name}-{step}.pt"',
    wiring("each_stage_goes_on_from_the_last_one_with_fresh_optimizers"),
)

# ---------------------------------------------------------------------------------- engine/optim.py

OPTIM = "engine/optim.py"
mutant(
    "no-zero-grad", "gradients are never cleared", OPTIM,
    "            optimizer.zero_grad()\n", "",
    wiring("each_update_has_the_whole_batchs_gradient_clipped_once[whole]"),
)
mutant(
    "never-clipped", "gradients are never clipped", OPTIM,
    "clip_grad_norm_(self.masters.values(), max_norm)", "clip_grad_norm_(self.masters.values(), 1e9)",
    wiring("each_update_has_the_whole_batchs_gradient_clipped_once[whole]"),
)
mutant(
    "clipped-before-the-sum", "each process clips its own gradient before the sum", OPTIM,
    "        sum_gradients(list(self.masters.values()))\n"
    "        return torch.nn.utils.clip_grad_norm_(self.masters.values(), max_norm).item()\n",
    "        norm = torch.nn.utils.clip_grad_norm_(self.masters.values(), max_norm).item()\n"
    "        sum_gradients(list(self.masters.values()))\n        return norm\n",
    wiring("gradients_are_summed_over_the_processes_then_clipped_then_cleared"),
)
mutant(
    "gradients-not-summed", "the processes' gradients are not added up", OPTIM,
    "        sum_gradients(list(self.masters.values()))\n", "",
    wiring("gradients_are_summed_over_the_processes_then_clipped_then_cleared"),
)
mutant(
    "share-dropped", "AdamW beside Muon learns at the full rate", OPTIM,
    'group["lr"] = lr * group["share"]', 'group["lr"] = lr',
    wiring("optimizers_get_the_rates_of_their_stage"),
)
mutant(
    "share-without-muon", "AdamW alone learns at a tenth of the rate", OPTIM,
    'c.adam_share if muon else 1.0', "c.adam_share",
    wiring("adamw_alone_learns_at_the_full_rate"),
)
mutant(
    "muon-for-the-embedding", "Muon learns the embedding and the head", OPTIM,
    'name.startswith("blocks.") and p.ndim == 2', "p.ndim == 2",
    wiring("muon_has_the_matrices_of_the_blocks_and_adamw_all_else"),
)
mutant(
    "old-optimizers", "Stage II goes on with Stage I's optimizers", OPTIM,
    "self.optimizers = make_optimizers(c, self.masters)",
    "self.optimizers = self.optimizers or make_optimizers(c, self.masters)",
    wiring("each_stage_goes_on_from_the_last_one_with_fresh_optimizers"),
)
mutant(
    "weight-decay", "weights shrink without a gradient", OPTIM,
    "weight_decay=0.0, fused=fused)", "weight_decay=0.1, fused=fused)",
    wiring("without_a_gradient_no_weight_moves"),
)
mutant(
    "muon-momentum", "Muon hardly remembers earlier gradients", OPTIM,
    "momentum.lerp_(p.grad, 1 - MOMENTUM)", "momentum.lerp_(p.grad, 0.5)", "tests/test_optim.py",
)
mutant(
    "muon-no-look-ahead", "Muon without Nesterov's look ahead", OPTIM,
    "p.grad.lerp(momentum, MOMENTUM)", "momentum", "tests/test_optim.py",
)
mutant(
    "muon-tall", "Muon's steps do not grow with a matrix that is taller than wide", OPTIM,
    "max(1.0, p.shape[0] / p.shape[1]) ** 0.5", "1.0", "tests/test_optim.py",
)
mutant(
    "muon-few-steps", "the directions of Muon have unequal lengths", OPTIM,
    "for _ in range(5):", "for _ in range(3):", "tests/test_optim.py",
)
mutant(
    "threads-slowest", "the slowest number of threads is taken", "engine/threads.py",
    "if pace < best_pace:", "if best_pace and pace > best_pace:", "tests/test_threads.py",
)
mutant(
    "chat-marks-nothing-wrong", "an attempt that was cut off is judged by what it says", "engine/chat.py",
    'verdict if ended else "wrong: it was cut off"', "verdict", "tests/test_chat.py",
)
mutant(
    "masters-not-copied", "a bfloat16 model never learns", OPTIM,
    "        copy_masters(self.model, self.masters)\n", "",
    f"{MEMORY}::test_small_updates_reach_bfloat16_weights_through_their_copies",
)
mutant(
    "bfloat16-gradient-of-one-micro-batch", "in bfloat16 the last micro-batch's gradient counts alone", OPTIM,
    "p.grad.float() if master.grad is None else master.grad + p.grad", "p.grad.float()",
    f"{MEMORY}::test_the_gradients_of_micro_batches_add_up_in_float32",
)

# ---------------------------------------------------------------------------------- engine/supervised.py

SUPERVISED = "engine/supervised.py"
mutant(
    "supervised-mean", "the supervised loss is a mean over the micro-batch", SUPERVISED,
    "hidden, targets)[0].sum() / tokens", "hidden, targets)[0].mean()",
    wiring("each_update_has_the_whole_batchs_gradient_clipped_once[whole]"),
)
mutant(
    "supervised-mask-unshifted", "the supervised loss teaches the token before", SUPERVISED,
    'mask = batch["masks"][:, 0, 1:]', 'mask = batch["masks"][:, 0, :-1]',
    wiring("each_update_has_the_whole_batchs_gradient_clipped_once[whole]"),
)
mutant(
    "everything-taught", "prompts and wrong answers are taught", SUPERVISED,
    "[[int(t) for t in taught] for _, taught in dialogues]",
    "[[1 for t in taught] for _, taught in dialogues]",
    wiring("the_base_is_taught_attempts_and_never_prompts"),
)
mutant(
    "own-attempts-never", "the base never sees its own attempts", SUPERVISED,
    "step >= c.own_from * c.base_steps", "step < 0",
    wiring("the_base_meets_its_own_attempts_in_its_last_part"),
)
mutant(
    "base-never-easy", "the base has no easier problems to begin with", SUPERVISED,
    "if step >= c.easy_until * c.base_steps:", "if True:",
    wiring("the_base_begins_with_easier_problems"),
)
mutant(
    "base-always-easy", "the base has easier problems to its end", SUPERVISED,
    "if step >= c.easy_until * c.base_steps:", "if False:",
    wiring("the_base_begins_with_easier_problems"),
)
mutant(
    "base-problems-again", "every step of the base has the same problems", SUPERVISED,
    "env.problem(step * c.base_batch + i, ", "env.problem(i, ",
    wiring("every_step_of_the_base_has_other_problems_and_other_mistakes"),
)
mutant(
    "base-mistakes-again", "every step of the base draws the same kinds of attempts", SUPERVISED,
    'seeded(c.seed, "demo", step, i)', 'seeded(c.seed, "demo", i)',
    wiring("every_step_of_the_base_has_other_problems_and_other_mistakes"),
)
mutant(
    "imitated-again", "every step imitates the same dialogues", SUPERVISED,
    'seeded(c.seed, "imitate", step)', 'seeded(c.seed, "imitate")',
    wiring("every_step_imitates_other_dialogues"),
)
mutant(
    "copy-and-right-swapped", "the base copies as often as it should be right", SUPERVISED,
    "(c.right_first, c.copy, c.right)", "(c.right_first, c.right, c.copy)",
    wiring("copy_and_right_are_the_shares_that_they_say"),
)

# ---------------------------------------------------------------------------------- engine: the rest

SAMPLING = "engine/sampling.py"
mutant(
    "request-tells", "the second prompt tells right from wrong", SAMPLING,
    "        parts.append("
    "sample_many(unsharded(policy), env, prompts, requests, c, c.temperature, generator))\n",
    """\
        one = sample_many(unsharded(policy), env, prompts, [], c, c.temperature, generator)
        said = []
        for b, problem in enumerate(problems[offline:]):
            right = env.task.is_correct(problem, one.texts[b][0])
            end = [] if one.ended[b, 0] else [env.tokenizer.end_id]
            said.append(one.row(b) + end + (env.correction_request if right else env.feedback_request))
        rest = sample_many(unsharded(policy), env, said, [], c, c.temperature, generator)
        first = F.pad(one.masks, (0, rest.masks.shape[-1] - one.masks.shape[-1]))
        masks, ended = torch.cat((first, rest.masks), 1), torch.cat((one.ended, rest.ended), 1)
        texts = [a + b for a, b in zip(one.texts, rest.texts, strict=True)]
        parts.append(Rollout(rest.ids, rest.lengths, masks, rest.log_probs, ended, texts))
""",
    wiring("the_second_prompt_does_not_depend_on_the_verdict"),
)
mutant(
    "offline-by-the-policy", "the policy makes the offline first attempts", SAMPLING,
    "given = sample_many(first, env,", "given = sample_many(policy, env,",
    wiring("the_policy_samples_and_the_reference_makes_the_offline_attempts"),
)
mutant(
    "offline-attempts-trained-on", "the policy learns from the reference's attempts", SAMPLING,
    "torch.zeros_like(rest.masks[:, :1])", "torch.ones_like(rest.masks[:, :1])",
    wiring("the_policy_samples_and_the_reference_makes_the_offline_attempts"),
)
mutant(
    "offline-attempt-not-closed", "an offline attempt that was cut off is not closed", SAMPLING,
    "end = [] if ended else [env.tokenizer.end_id]", "end = []",
    wiring("the_policy_samples_and_the_reference_makes_the_offline_attempts"),
)
mutant(
    "training-without-generator", "training draws from the global random numbers", SAMPLING,
    "return torch.Generator(policy.embed.weight.device).manual_seed(seeded(*key) + rank())", "return None",
    wiring("a_stopped_and_resumed_run_equals_the_unbroken_one"),
)
mutant(
    "ranks-share-noise", "all processes sample with the same seed", SAMPLING,
    "manual_seed(seeded(*key) + rank())", "manual_seed(seeded(*key))",
    f"{RANKS}::test_ranks_sample_with_seeds_of_their_own_and_gather_weights_once",
)
mutant(
    "training-at-temperature-1", "training samples at temperature 1", SAMPLING,
    "prompts, requests, c, c.temperature, generator))", "prompts, requests, c, 1.0, generator))",
    wiring("the_policy_samples_and_the_reference_makes_the_offline_attempts"),
)
mutant(
    "sample-batch-lost", "dialogues beyond the first sample_batch are those of the first", SAMPLING,
    "part = prompts[i : i + c.sample_batch]", "part = prompts[: c.sample_batch][: len(prompts) - i]",
    wiring("the_policy_samples_and_the_reference_makes_the_offline_attempts"),
)
mutant(
    "micro-batches-mix-advantages", "rows are sorted by length, their advantages are not", "engine/memory.py",
    "part = {name: t[rows] for name, t in batch.items()}",
    'part = {n: t[rows] if n != "advantages" else t[: len(rows)] for n, t in batch.items()}',
    wiring("each_update_has_the_whole_batchs_gradient_clipped_once[whole]"),
)
mutant(
    "micro-batches-cut", "a micro-batch lacks its longest row's last token", "engine/memory.py",
    "torch.arange(1, is_sampled.shape[1] + 1,", "torch.arange(is_sampled.shape[1],",
    wiring("each_update_has_the_whole_batchs_gradient_clipped_once[whole]"),
)
mutant(
    "logged-accuracy-shaped", "the logged accuracy is the shaped reward", "engine/log.py",
    "correct[:, k].float().mean()", "rewards[:, k].float().mean()",
    wiring("advantages_of_a_batch_by_hand"),
)
mutant(
    "logged-everything-changed", "a copy is logged as changed", "engine/log.py",
    "[texts[0] != texts[1] for texts", '[texts[0] != texts[1] + " " for texts',
    wiring("the_logged_change_rate_is_of_texts"),
)
mutant(
    "tied-when-loaded", "a checkpoint's head is a copy of its embedding, no longer tied to it",
    "engine/build.py",
    "    return model, dataclasses.asdict(c) | settings",
    "    if gpt.tie_weights:\n"
    "        model.lm_head.weight = torch.nn.Parameter(model.embed.weight.detach().clone())\n"
    "    return model, dataclasses.asdict(c) | settings",
    wiring("a_checkpoint_keeps_head_and_embedding_tied"),
)
mutant(
    "tied-when-imported", "the head of a pretrained model is not tied to its embedding", "engine/hf.py",
    "model = model.to(dtype).to_empty(device=device)\n        if config.tie_weights:\n",
    "model = model.to(dtype).to_empty(device=device)\n        if False:\n",
    "tests/test_hf.py::test_logits_are_those_of_transformers_both_ways",
)
mutant(
    "checkpoint-not-atomic", "a write that fails destroys the checkpoint", "engine/checkpoints.py",
    'draft = path.with_suffix(".tmp")', "draft = path",
    "tests/test_runs.py::test_ctrl_c_while_a_checkpoint_is_written_is_ctrl_c",
)

# ---------------------------------------------------------------------------------- found by a reader

mutant(
    "baseline-of-turn-3", "turn 3 is compared by the outcome of turn 1", "train.py",
    "outcome_before = correct[:, turn - 1] if", "outcome_before = correct[:, 0] if",
    loss("leave_one_out_by_hand"),
)
mutant(
    "woven-reference", "an interleaved second Stage I is held to the first one's end", "train.py",
    '    for _ in range(c.interleave):\n        reference = "base"\n',
    '    reference = "base"\n    for _ in range(c.interleave):\n',
    loss("stages_are_rows_of_coefficients"),
)
mutant(
    "stage2-weight2-ignored", "Stage II rewards turn 2 whatever its weight", "train.py",
    "(c.stage2_weight1,) + (c.stage2_weight2,) *", "(c.stage2_weight1,) + (1.0,) *",
    loss("stages_are_rows_of_coefficients"),
)
mutant(
    "imitation-rate", "imitation learns at the base's rate", "train.py",
    'Stage("imitate", c.imitate_steps, c.lr)', 'Stage("imitate", c.imitate_steps, c.base_lr)',
    loss("stages_are_rows_of_coefficients"),
)
mutant(
    "example-of-another-row", "the transcript shows another row's problem", "train.py",
    "(problems[-1], rollout.texts[-1]", "(problems[0], rollout.texts[-1]",
    wiring("advantages_of_a_batch_by_hand"),
)
mutant(
    "grad-norm-not-logged", "the gradient's norm is logged as 0", "train.py",
    'metrics["grad_norm"] = run.update(stage, step, learning_rate(stage, step), metrics["loss"])',
    'metrics["grad_norm"] = 0 * run.update(stage, step, learning_rate(stage, step), metrics["loss"])',
    wiring("what_is_logged_is_of_the_whole_batch"),
)
mutant(
    "no-report-after-resume", "a resumed run has no report", "train.py",
    "if rank() == 0 and c.report:", "if rank() == 0 and c.report and not resume:",
    f"{TRAIN}::test_a_run_ends_with_its_report_on_its_device",
)
mutant(
    "report-on-any-device", "the report does not run on the run's device", "train.py",
    "report(folder, device)", 'report(folder, torch.device("meta"))',
    f"{TRAIN}::test_a_run_ends_with_its_report_on_its_device",
)
mutant(
    "never-recomputed", "--recompute does nothing", "model.py",
    "if self.recompute and torch.is_grad_enabled():", "if False:",
    "tests/test_memory.py::test_recomputing_blocks_leaves_the_gradient_alone",
)
mutant(
    "recompute-not-set", "a run does not pass --recompute on", "engine/run.py",
    "policy.recompute = c.recompute", "policy.recompute = False",
    "tests/test_memory.py::test_a_run_recomputes_its_blocks_if_it_is_told_to",
)
mutant(
    "blocks-not-identity", "new blocks add noise", "model.py",
    "            nn.init.zeros_(module.attn.out.weight)\n", "",
    "tests/test_model.py::test_a_new_model_begins_with_blocks_that_do_nothing",
)
mutant(
    "rare-tokens-swallowed", "the cumulative probabilities are summed in float32", "rollout.py",
    "probs.cumsum(-1, dtype=uniform.dtype)", "probs.cumsum(-1).to(uniform.dtype)",
    "tests/test_rollout.py::test_rare_tokens_of_a_large_vocabulary_are_sampled",
)
mutant(
    "drift-of-the-last-chunk", "the drift is that of the last 64 problems alone", "eval.py",
    "total += token_scores", "total = token_scores",
    "tests/test_eval.py::test_drift_is_the_kl_of_the_models_own_first_attempts_to_the_base",
)
REPORT = "engine/report.py"
SHOWN = "tests/test_eval.py::test_the_report_shows_the_figures_that_were_found"
mutant(
    "report-swap-of-all", "the report's swap test is of all problems", REPORT,
    'n, *shares = result["swap"]["wrong_first"]', 'n, *shares = result["swap"]["all"]', SHOWN,
)
mutant(
    "report-error-as-fraction", "the report's errors are not in percent", REPORT,
    """ ± {percent(m['se'][k])}""", """ ± {m['se'][k]:.1f}""", SHOWN,
)
mutant(
    "report-time-of-the-first-step", "the report's training time is that of the first step", REPORT,
    'rows[-1]["seconds"] / 60', 'rows[0]["seconds"] / 60', SHOWN,
)
mutant(
    "nan-in-json", "results.json has NaN, which JSON does not know", REPORT,
    "return None if isinstance(value, float) and math.isnan(value) else value", "return value", SHOWN,
)
mutant(
    "second-attempt-of-one", "the figures of one attempt want a second", REPORT,
    "[name for name in COLUMNS if name in metrics]", "COLUMNS",
    "tests/test_eval.py::test_one_attempt_has_no_second_one_in_its_figures",
)
mutant(
    "failures-of-the-sampled", "the table of failures is that of the sampled attempts", REPORT,
    'percent(r["greedy"][k]) for k in FAILURES', 'percent(r["sampled"][k]) for k in FAILURES', SHOWN,
)
mutant(
    "first-attempts-saved", "--save keeps the first attempts alone", REPORT,
    '"attempts": texts, "right"', '"attempts": texts[:1], "right"',
    "tests/test_eval.py::test_saved_transcripts_have_all_attempts",
)
LOG = "engine/log.py"
mutant(
    "no-signal-at-any-zero", "one advantage of 0 counts as no signal", LOG,
    "(advantages == 0).all()", "(advantages == 0).any()",
    wiring("advantages_of_a_batch_by_hand"),
)
mutant(
    "logged-reward-halved", "the logged reward is a mean over turns", LOG,
    "rewards.sum(1).mean()", "rewards.mean()",
    wiring("advantages_of_a_batch_by_hand"),
)
mutant(
    "always-two-turns", "the base never sees more than two turns", SUPERVISED,
    "    if step % 16 == 7:\n", "    if step < 0:\n",
    wiring("some_demonstrations_have_more_turns_and_as_many_attempts"),
)
mutant(
    "longer-and-as-many", "longer demonstrations are as many as short ones", SUPERVISED,
    "c.base_batch * 2 // turns", "c.base_batch",
    wiring("some_demonstrations_have_more_turns_and_as_many_attempts"),
)
mutant(
    "own-attempts-greedy", "the base's own attempts are its likeliest", SUPERVISED,
    "c, c.temperature, generator", "c, 0.0, generator",
    wiring("the_base_meets_its_own_attempts_in_its_last_part"),
)
KINDS = wiring("mistakes_of_the_base_are_of_the_kinds_that_are_documented")
mutant(
    "near-misses-only", "wrong first attempts are near misses only", "data/demonstrations.py",
    'MADE_UP_MISTAKES = ("near", "far")', 'MADE_UP_MISTAKES = ("near", "near")', KINDS,
)
mutant(
    "later-misses-far", "wrong second attempts are unrelated", "data/demonstrations.py",
    '"right" if u < copy + right else "near"', '"right" if u < copy + right else "far"', KINDS,
)
mutant(
    "near-misses-anywhere", "a near miss may have any digit wrong", "data/division.py",
    "if len(quotient) > 2 else range(len(quotient))", "if False else range(len(quotient))",
    "tests/test_data.py::test_a_near_miss_has_a_wrong_inner_digit",
)
mutant(
    "init-relative", "a relative --init holds in one working folder only", "engine/checkpoints.py",
    "str(path.resolve()) for name, path in paths.items()", "str(path) for name, path in paths.items()",
    "tests/test_runs.py::test_relative_paths_hold_in_any_working_folder",
)
mutant(
    "test-data-relative", "a relative --test_data holds in one working folder only", "engine/checkpoints.py",
    '"train_data", "test_data", "tokenizer")', '"train_data", "tokenizer")',
    "tests/test_runs.py::test_relative_paths_hold_in_any_working_folder",
)
mutant(
    "init-overwritten", "--overwrite deletes what the new run starts from", "engine/checkpoints.py",
    "require(kept,", "require(True,",
    "tests/test_runs.py::test_what_the_new_run_starts_from_is_not_deleted",
)
mutant(
    "config-alone-overwritten", "a run deletes a config.json that another program made",
    "engine/checkpoints.py",
    "for path in files_of_run(folder))", "for path in files_of_run(folder) if path.suffix == '.pt')",
    "tests/test_runs.py::test_a_folder_with_anything_of_a_run_is_not_overwritten[config.json]",
)
mutant(
    "log-not-synced", "a power cut loses rows that last.pt needs", RUN,
    "os.fsync(file.fileno())", "pass",
    "tests/test_runs.py::test_the_log_is_on_the_disk_before_the_checkpoint_that_needs_it",
)
mutant(
    "text-not-synced", "a power cut leaves an empty config.json", "engine/checkpoints.py",
    "        os.fsync(file.fileno())\n", "",
    "tests/test_runs.py::test_the_log_is_on_the_disk_before_the_checkpoint_that_needs_it",
)
mutant(
    "kept-checkpoints-stay", "--overwrite leaves the checkpoints of --keep_every", "engine/checkpoints.py",
    "stage2)(-\\d+)?\\.(pt|tmp)", "stage2)\\.(pt|tmp)",
    "tests/test_runs.py::test_overwriting_deletes_the_runs_files_and_no_others",
)
mutant(
    "seconds-from-zero", "a resumed run counts its seconds from zero", "engine/run.py",
    'time.perf_counter() - state.get("seconds", 0.0)', "time.perf_counter()",
    "tests/test_runs.py::test_a_resumed_run_counts_its_time_on",
)


# fmt: on
# ---------------------------------------------------------------------------------- running them


def main() -> None:
    layout = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=layout)
    parser.add_argument("--only", help="names of mutants, with commas between them")
    parser.add_argument("--file", help="a file of the project, e.g. train.py")
    parser.add_argument("--test", help="those that this file should catch, e.g. tests/test_wiring.py")
    o = parser.parse_args()
    names = o.only.split(",") if o.only else [m.name for m in MUTANTS]
    chosen = [m for m in MUTANTS if m.name in names and o.file in (None, m.file)]
    chosen = [m for m in chosen if o.test is None or any(t.split("::")[0] == o.test for t in m.tests)]
    if not chosen:
        sys.exit("error: no such mutant; tests/mutants.py lists them by name and file")
    with tempfile.TemporaryDirectory() as folder:
        tree = Path(folder) / "tree"
        shutil.copytree(ROOT, tree, ignore=shutil.ignore_patterns(*NOT_COPIED))
        edits = {m.name: edited(tree, m) for m in chosen}  # an edit that does not fit ends the script here
        state = fingerprint(tree)
        results = read_results(state)
        try:
            run(tree, [m for m in chosen if m.name not in results], edits, results, state)
        except KeyboardInterrupt:
            print("stopped; the same command goes on")
    print_table([m for m in chosen if m.name in results], results)


def edited(tree: Path, m: Mutant) -> str:
    """The text of the mutant's file with its edit. The script ends if the old text is not there once."""
    text = (tree / m.file).read_text(encoding="utf-8")
    if text.count(m.old) != 1:
        sys.exit(f"error: {m.name}: its old text stands {text.count(m.old)} times in {m.file}, not once")
    return text.replace(m.old, m.new)


def fingerprint(tree: Path) -> str:
    """A number for the state of all Python files."""
    digest = hashlib.sha256()
    for path in sorted(tree.rglob("*.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def read_results(state: str) -> dict[str, dict]:
    """The results for this state of the project, by name. Those for other states are thrown away."""
    rows = []
    if RESULTS.exists():
        rows = [json.loads(line) for line in RESULTS.read_text(encoding="utf-8").splitlines()]
    rows = [row for row in rows if row["state"] == state]
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return {row["name"]: row for row in rows}


def run(tree: Path, mutants: list[Mutant], edits: dict[str, str], results: dict, state: str) -> None:
    """Runs the mutants' tests, prints a line for each and adds it to `results` and to their file."""

    def record(name: str, verdict: str, by: str, seconds: float) -> None:
        results[name] = dict(name=name, verdict=verdict, by=by, seconds=round(seconds, 1), state=state)
        with open(RESULTS, "a", encoding="utf-8") as file:
            file.write(json.dumps(results[name]) + "\n")

    for m in mutants:
        if m.equivalent:
            record(m.name, "equivalent", m.equivalent, 0.0)
    effective = [m for m in mutants if not m.equivalent]
    if not effective:
        return
    os.environ |= {"OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"}
    torch.set_num_threads(1)  # for this process's children
    needed = sorted({test for m in effective for test in m.tests})
    print(f"{len(effective)} mutants; first their tests without an edit", flush=True)
    code, failed = run_tests(tree, needed)
    if code:
        sys.exit(f"error: {failed or 'a test'} fails on the unchanged code: mend that first")
    started = time.time()
    for i, m in enumerate(effective, 1):
        path, begun = tree / m.file, time.time()
        original = path.read_text(encoding="utf-8")
        path.write_text(edits[m.name], encoding="utf-8")
        code, failed = run_tests(tree, m.tests)
        path.write_text(original, encoding="utf-8")
        seconds = time.time() - begun
        record(m.name, "caught" if code else "survived", failed, seconds)
        left = int((time.time() - started) / i * (len(effective) - i))
        said = f"caught by {failed}" if code else f"SURVIVED: {m.what}"
        times = f"{seconds:.0f} s, ETA {left // 60}:{left % 60:02d}"
        print(f"{i}/{len(effective)} {m.file} {m.name}: {said} ({times})", flush=True)


def run_tests(tree: Path, tests: Sequence[str]) -> tuple[int, str]:
    """pytest's exit code, and the first test that failed or the module that could not be imported."""
    log = tree.with_name("log")
    process = multiprocessing.get_context("fork").Process(target=run_pytest, args=(tree, tests, log))
    process.start()
    process.join(SECONDS)
    if process.is_alive():
        process.kill()
        return 1, f"no test, but they hang: more than {SECONDS} s"
    said = log.read_text(encoding="utf-8")
    if process.exitcode not in (0, 1, 2):  # 2: the edited module can't be imported
        sys.exit(f"error: pytest {' '.join(tests)}: {said.strip()[-500:]}")
    failed = re.search(r"^(?:FAILED|ERROR) (?:tests/)?(\S+)", said, re.MULTILINE)
    return process.exitcode, failed[1] if failed else ""


def run_pytest(tree: Path, tests: Sequence[str], log: Path) -> None:
    """Runs in a process of its own. It inherits torch, so no mutant waits for the import."""
    with open(log, "w", encoding="utf-8") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    os.chdir(tree)
    sys.path[0], sys.dont_write_bytecode = str(tree), True
    sys.exit(int(pytest.main(["-x", "-q", "--tb=no", "-p", "no:cacheprovider", *tests])))


def print_table(mutants: list[Mutant], results: dict) -> None:
    """The score by file, and the survivors."""
    counts: dict[str, Counter] = {}
    for m in mutants:
        for file in (m.file, "all"):
            counts.setdefault(file, Counter())[results[m.name]["verdict"]] += 1
    print("\n| file | mutants | caught | survived | equivalent | score |\n|---|---|---|---|---|---|")
    for file, n in sorted(counts.items(), key=lambda item: item[0] == "all"):
        effective = n["caught"] + n["survived"]
        score = f"{100 * n['caught'] / effective:.0f} %" if effective else ""
        print(f"| {file} | {n.total()} | {n['caught']} | {n['survived']} | {n['equivalent']} | {score} |")
    for m in mutants:
        if results[m.name]["verdict"] == "survived":
            print(f"survived: {m.file} {m.name}: {m.what}")


if __name__ == "__main__":
    main()
