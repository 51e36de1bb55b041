"""What is graded: functions to write, tests with their points, bugs to find, and wrong solutions.

A check gives its points if all of its tests pass on the student's version of one function, its hole, in an
otherwise right project. So one mistake never costs the points of another function. The tests are the
project's own. Tests that a right solution could fail are not used: those on exact zeros, chunks and memory.

`wrong` names wrong solutions with the points that each loses; tests/test_course.py holds that. They, the bugs
of A5 and those of bug.py are edits of the code from tests/mutants.py, or from MORE below.
"""

import sys
from pathlib import Path
from typing import NamedTuple

sys.path.append(str(Path(__file__).resolve().parent.parent / "tests"))
from mutants import MUTANTS, Mutant  # noqa: E402 (it is no package)


class Check(NamedTuple):
    points: int
    hole: str  # file:function
    what: str  # what is checked, for the student
    tests: tuple[str, ...]  # pytest's ids below tests/; without [...] all cases of a test


class Assignment(NamedTuple):
    title: str
    checks: list[Check]
    written: int  # points for answers that a teacher reads
    wrong: dict[str, int]  # name of a wrong solution -> points that it loses
    bugs: dict[str, str] = {}  # A5: name of a hidden bug -> the function that has it

    @property
    def holes(self) -> list[str]:
        return list(dict.fromkeys(check.hole for check in self.checks))

    @property
    def automatic(self) -> int:
        return sum(check.points for check in self.checks) + BUG_POINTS * len(self.bugs)


BUG_POINTS = 2  # for each hidden bug of A5 that a student's tests catch
MENDED_POINTS = 4  # A6: for a tree in which the bug's test passes again

TOKEN, MASKS, CACHE = "rollout.py:sample_token", "rollout.py:turn_masks", "model.py:KVCache.write"
REWARDS, RETURNS, STAGES = "rewards.py:turn_rewards", "rewards.py:turn_returns", "train.py:stages"
ADVANTAGES, LOSS = "train.py:advantages", "train.py:policy_loss"
SCORES, CREDIT = "train.py:token_scores", "train.py:token_credit"
METRICS, DISTANCE = "eval.py:self_correction_metrics", "eval.py:edit_distance_ratio"
GRADIENT = "test_loss.py::test_the_mean_gradient_is_that_of_the_objective"
ALIKE = "test_loss.py::test_every_token_of_a_turn_weighs_alike"

ASSIGNMENTS = {
    "A1": Assignment(
        "Sampling and masks",
        [
            Check(1, TOKEN, "tokens come as often as their probabilities say; temperature 0 is greedy",
                  ("test_rollout.py::test_samples_follow_the_distribution",)),
            Check(2, TOKEN, "log-probs at temperature 0.7 are those of one plain pass over the dialogue",
                  ("test_rollout.py::test_sampled_log_probs_are_those_of_one_plain_pass",)),
            Check(1, TOKEN, "a token of probability 0 is never taken, not even for uniform = 0",
                  ("test_rollout.py::test_a_token_of_probability_zero_is_never_sampled",)),
            Check(2, MASKS, "spans are half open, and a turn may be empty",
                  ("test_rollout.py::test_turn_masks_by_hand",)),
            Check(0, CACHE, "needed to run: a pass behind a cache equals a plain pass",
                  ("test_model.py::test_cached_pass_equals_plain_pass_on_ragged_rows[modern]",)),
        ],
        written=6,
        wrong={"log-probs-at-temperature-1": 2, "impossible-token": 1, "mask-with-prompt-token": 2,
               "mask-without-last-token": 2},
    ),
    "A2": Assignment(
        "Rewards decide behaviour",
        [
            Check(2, REWARDS, "the four cases in Stage I, Stage II and plain RL; three turns",
                  ("test_rewards.py::test_rewards_of_each_stage",
                   "test_rewards.py::test_gamma_decides_whether_a_right_first_attempt_is_fined")),
            Check(1, REWARDS, "the bonus is not multiplied by the turn's weight",
                  ("test_wiring.py::test_the_bonus_is_not_multiplied_by_the_turns_weight",)),
            Check(1, RETURNS, "returns with gamma 0, 0.5 and 1, of two and of three turns",
                  ("test_rewards.py::test_gamma_decides_whether_a_right_first_attempt_is_fined",)),
            Check(2, STAGES, "the coefficients of each stage",
                  ("test_loss.py::test_stages_are_rows_of_coefficients",)),
            Check(0, STAGES, "optional: three turns, where Stage I has two parts",
                  ("test_loss.py::test_three_attempts_have_a_stage_each_with_a_reference_of_its_own",)),
        ],
        written=6,
        wrong={"bonus-sign": 3, "bonus-on-turn-1": 3, "bonus-weighted": 1, "return-of-the-next-reward": 1,
               "stage1-betas-swapped": 2, "stage1-rewards-turn-1": 2, "stage1-gamma": 2, "stage1-bonus": 2,
               "stage2-rate": 2, "stage2-reference": 2, "stage1b-reference": 0},
    ),
    "A3": Assignment(
        "REINFORCE with a baseline",
        [
            Check(3, ADVANTAGES, "both baselines on five dialogues, by hand",
                  ("test_loss.py::test_leave_one_out_by_hand",)),
            Check(2, ADVANTAGES, "by_outcome takes -alpha * r1 away and leaves a factor 1 + alpha",
                  ("test_loss.py::test_the_bonus_scales_turn_two_under_the_baseline_by_outcome",)),
            Check(2, LOSS, "without KL: the mean gradient over all dialogues is that of the expected rewards",
                  (f"{GRADIENT}[1.0-reward]",)),
            Check(2, LOSS, "with KL: the mean gradient is that of reward - beta * KL",
                  (f"{GRADIENT}[1.0-kl]",)),
            Check(1, LOSS, "the tokens of a turn weigh alike, whatever its length", (ALIKE,)),
            Check(1, LOSS, "the losses of micro-batches add up to the batch's",
                  ("test_loss.py::test_micro_batches_add_up",)),
        ],
        written=11,
        wrong={"baseline-includes-itself": 3, "grouped-by-own-outcome": 5, "no-baseline": 5,
               "advantages-standardised": 5, "loss-mean": 6, "loss-rows-of-micro-batch": 5,
               "advantage-sign": 5, "kl-to-come-not-detached": 2, "kl-without-gradient": 2},
    ),
    "A4": Assignment(
        "The KL penalty",
        [
            Check(3, SCORES, "the KL of a turn of three tokens: its value and its gradient, by enumeration",
                  ("test_loss.py::test_kl_gradient_is_that_of_the_sequences_kl",)),
            Check(2, SCORES, "the temperature divides the logits of both models",
                  ("test_loss.py::test_temperature_divides_the_logits", f"{GRADIENT}[0.6-reward]")),
            Check(2, CREDIT, "a token is charged for the KL that it leads to in its own turn",
                  (f"{GRADIENT}[1.0-kl]",)),
            Check(1, CREDIT, "every token of a turn has the turn's whole advantage", (ALIKE,)),
        ],
        written=8,
        wrong={"kl-reversed": 5, "kl-k3": 3, "log-probs-unshifted": 5, "reference-without-temperature": 2,
               "kl-rounding": 0, "kl-score-term-dropped": 2, "kl-to-come-of-later-turns": 2,
               "kl-to-come-with-its-own": 0, "length-bias": 3, "last-token-only": 3},
    ),
    "A5": Assignment(
        "Measuring, and a test of your own",
        [
            Check(2, METRICS, "the rows of the paper's tables come out",
                  ("test_eval.py::test_metrics_reproduce_the_papers_rows",)),
            Check(2, METRICS, "standard errors; that of delta is paired",
                  ("test_eval.py::test_standard_errors_are_the_paired_ones",
                   "test_eval.py::test_deltas_error_is_smaller_where_both_attempts_go_together")),
            Check(1, METRICS, "without a wrong first attempt there is no fix rate",
                  ("test_eval.py::test_no_wrong_first_attempt_has_no_fix_rate",)),
            Check(1, DISTANCE, "insertions and deletions over both lengths",
                  ("test_eval.py::test_edit_distance_ratio",)),
        ],
        written=4,
        wrong={"i-to-c-of-wrong-first": 2, "fix-rate-of-all": 5, "delta-unpaired": 2,
               "standard-deviation": 2, "edit-distance-of-the-longer": 1},
        bugs={"return-of-the-next-reward": "turn_returns", "bonus-weighted": "turn_rewards",
              "grouped-by-own-outcome": "advantages", "kl-to-come-of-later-turns": "token_credit",
              "delta-unpaired": "self_correction_metrics"},
    ),
    "A6": Assignment("Find the silent bug", [], written=14, wrong={}),
}  # fmt: skip

MORE = [
    Mutant(
        "mask-without-last-token", "the mask lacks each turn's last token", "rollout.py",
        "(positions < stops[:, :, None])", "(positions < stops[:, :, None] - 1)", (),
    ),
    Mutant(
        "joint-return", "turn 1 is credited with turn 2's return in every stage", "train.py",
        "turn_returns(all_rewards, stage.gamma)", "turn_returns(all_rewards, 1.0)",
        ("tests/test_wiring.py::test_advantages_of_a_batch_by_hand",),
    ),
    Mutant(
        "no-bonus", "Stage II has no bonus", "train.py",
        "turn_rewards(correct, stage.weights, stage.alpha)",
        "turn_rewards(correct, stage.weights, 0.0)",
        ("tests/test_wiring.py::test_advantages_of_a_batch_by_hand",),
    ),
]  # fmt: skip


def edit(name: str) -> Mutant:
    """The wrong solution or bug of this name."""
    return next(m for m in [*MORE, *MUTANTS] if m.name == name)


def edited(m: Mutant, source: str) -> str:
    """The source of `m.file` with the edit. ValueError if the code has moved on."""
    if source.count(m.old) != 1:
        raise ValueError(f"{m.name}: its old text stands {source.count(m.old)} times in {m.file}, not once")
    return source.replace(m.old, m.new)
