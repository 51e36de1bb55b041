"""What is graded: functions to write, the checks of each with their points, and points that a teacher gives.

A check gives its points if it passes on the student's version of one function, its hole, in an otherwise
right project. So one mistake never costs the points of another function. The checks are in checks.py.
"""

from collections.abc import Callable
from typing import NamedTuple

import checks


class Check(NamedTuple):
    points: int
    hole: str  # file:function
    run: Callable[[], None]

    @property
    def what(self) -> str:
        return f"{self.hole.partition(':')[2]}: {self.run.__doc__}"


class Assignment(NamedTuple):
    title: str
    checks: list[Check]
    own: int  # points for own tests (A5) and for a mended bug (A6)
    written: int  # points for answers that a teacher reads
    hours: float  # of a student's work: an estimate, nobody has measured it

    @property
    def holes(self) -> list[str]:
        return list(dict.fromkeys(check.hole for check in self.checks))

    @property
    def points(self) -> int:
        return sum(check.points for check in self.checks) + self.own + self.written


TOKEN, MASKS, METRICS = "rollout.py:sample_token", "rollout.py:turn_masks", "eval.py:self_correction_metrics"
REWARDS, RETURNS, STAGES = "rewards.py:turn_rewards", "rewards.py:turn_returns", "train.py:stages"
ADVANTAGES, LOSS = "train.py:advantages", "train.py:policy_loss"
SCORES, CREDIT = "train.py:token_scores", "train.py:token_credit"
ASSIGNMENTS = {
    "A1": Assignment(
        "Sampling and masks",
        [
            Check(1, TOKEN, checks.tokens_have_their_probabilities),
            Check(2, TOKEN, checks.impossible_tokens_are_never_taken),
            Check(1, TOKEN, checks.rare_tokens_are_not_swallowed),
            Check(2, MASKS, checks.masks_are_half_open),
        ],
        own=0, written=6, hours=2,
    ),
    "A2": Assignment(
        "Rewards decide behaviour",
        [
            Check(2, REWARDS, checks.rewards_of_each_stage),
            Check(1, REWARDS, checks.the_bonus_has_no_weight),
            Check(1, RETURNS, checks.returns_count_all_later_turns),
            Check(2, STAGES, checks.stages_are_rows_of_coefficients),
            Check(0, STAGES, checks.stages_of_three_turns),
        ],
        own=0, written=6, hours=3,
    ),
    "A3": Assignment(
        "REINFORCE with a baseline",
        [
            Check(4, ADVANTAGES, checks.advantages_by_hand),
            Check(2, LOSS, checks.the_gradient_of_rewards),
            Check(2, LOSS, checks.the_gradient_with_kl),
            Check(1, LOSS, checks.tokens_of_a_turn_weigh_alike),
            Check(1, LOSS, checks.micro_batches_add_up),
        ],
        own=0, written=12, hours=6,
    ),
    "A4": Assignment(
        "The KL penalty",
        [
            Check(3, SCORES, checks.kl_of_a_turn_of_three_tokens),
            Check(2, SCORES, checks.scores_of_each_token),
            Check(2, CREDIT, checks.credit_by_hand),
            Check(1, CREDIT, checks.credit_has_the_whole_advantage),
        ],
        own=0, written=9, hours=5,
    ),
    "A5": Assignment(
        "Measuring, and a test of your own",
        [
            Check(2, METRICS, checks.metrics_of_a_table),
            Check(1, METRICS, checks.errors_are_paired),
            Check(1, METRICS, checks.no_wrong_attempt_has_no_fix_rate),
            Check(1, METRICS, checks.changes_are_counted),
        ],
        own=10, written=4, hours=4,
    ),
    "A6": Assignment("Find the silent bug", [], own=2, written=16, hours=5),
}  # fmt: skip
