"""Presets: sets of settings for `--preset=NAME`. Single settings on the command line override them."""

# Table 5 of the paper. The paper does not say how the steps are divided between the stages (here: half and
# half), how long an attempt may be, or whether a batch counts problems or samples. GSM8K is not in the table:
# it gets MATH's values.
PAPER = dict(
    train_n=0, temperature=1.0, alpha=10.0, beta1=0.01, stage2_beta=0.01, dtype="bfloat16", recompute=True,
    sample_batch=128, micro_batch=8, max_new=1024, log_every=1, show_every=50, eval_n=500,
)  # fmt: skip
PAPER_MATH = PAPER | dict(
    lr=5e-6, stage2_lr=5e-6, batch=512, beta2=0.1, stage1_steps=1500, stage2_steps=1500
)  # fmt: skip
PAPER_CODE = PAPER | dict(
    lr=1e-5, stage2_lr=1e-5, batch=128, beta2=0.25, stage1_steps=750, stage2_steps=750, max_new=512
)  # fmt: skip
PLAIN_RL = dict(stage1_steps=0, stage2_steps=460, stage2_lr=0.001, stage2_beta=0.2, alpha=0.0)
DIVISION = dict(
    train_n=0, dim=128, base_steps=2000, copy=0.3, right=0.5, slip=0.0, stage1_steps=300, stage2_steps=150,
    batch=256, max_new=24, beta1=0.01,
)  # fmt: skip

PRESETS = {  # name -> what it is for, and its settings
    "smoke": (
        "all parts in seconds; too short to learn anything",
        dict(
            name="smoke", n_layer=1, dim=32, base_steps=60, base_batch=64, stage1_steps=10,
            stage2_steps=10, batch=64, eval_n=50, log_every=5, show_every=10,
        ),
    ),
    "division": (
        "another task, whose first attempt has no ceiling: experiments/results/division",
        dict(name="division", task="division", **DIVISION),
    ),
    "plain": (
        "plain RL on both turns, to compare with; give it the base of a run as --init",
        PLAIN_RL | dict(name="plain"),
    ),
    "single": (
        "RL on the first turn alone, to compare with; give it the base of a run as --init",
        PLAIN_RL | dict(name="single", stage2_weight2=0.0),
    ),
    "countdown": (
        "another task: reach a number with +, - and *",
        DIVISION | dict(name="countdown", task="countdown", size=12),
    ),
    "gsm8k": (
        "the paper's settings for MATH, on GSM8K",
        PAPER_MATH | dict(name="gsm8k", task="gsm8k", max_new=512),
    ),
    "math": ("the paper's settings for MATH", PAPER_MATH | dict(name="math", task="math")),
    "mbpp": ("the paper's settings for programs", PAPER_CODE | dict(name="mbpp", task="mbpp")),
    "smollm2": (
        "a pretrained model, with dialogues so few and short that a CPU can do it: engine/SMOLLM2.md",
        dict(
            name="smollm2", task="words", train_n=40, lora=16, dtype="bfloat16", base_steps=200,
            base_batch=16, base_lr=1e-3, right_first=0.4, copy=0.85, right=0.05, slip=0.4, own_from=1.0,
            batch=32, sample_batch=32, micro_batch=8, max_new=16, lr=5e-4, stage2_lr=2e-4, stage1_steps=60,
            stage2_steps=20, eval_n=500, log_every=1, show_every=20, save_every=5, report=False,
        ),
    ),
}  # fmt: skip
