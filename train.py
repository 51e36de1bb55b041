"""SCoRe: train a small GPT to correct itself (Kumar et al., arXiv 2409.12917), from random weights to the final report.

    python train.py                                  the default run: out/default/
    python train.py --preset=smoke                   the whole pipeline in seconds
    python train.py --help                           every setting, with its reason
    python train.py --preset=gsm8k-laptop --init=FOLDER --train_data=... --test_data=...     a pretrained model, LoRA
    python train.py --resume=out/default             go on after a stop; on a CPU bit for bit
    torchrun --nproc_per_node=8 train.py ...         the same on 8 GPUs: see "several processes" below

One loop trains all stages; a stage is a row of coefficients (see `stages`). A step reads: `rollout_batch` samples dialogues
and turns their correctness into advantages, `policy_loss` weighs their log-probs, `backward()` stands in `train`.

Where this differs from the paper, or the paper is silent:
- The reference is the base model, as eq. 3 and 4 have it (three attempts: see `stages`). Stage II starts with a fresh optimiser.
- KL is per turn, given the turn's prompt, and its gradient is the exact one of KL(policy || reference): see `policy_loss`.
- The baseline of turn 2 is a leave-one-out mean over the rollouts whose turn 1 had the same outcome: see `advantages`.
- Sums over a turn's tokens, means over rows: the gradient of the expected reward of a sequence, long or short.
- beta1 may differ between the stages; the last checkpoint of a stage is used, never the best one.
"""

import dataclasses
import difflib
import json
import math
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from random import Random

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.utils.checkpoint import checkpoint

from data import Problem, held_out_problems, is_held_out, load_task, read_rows, train_problems
from data.demonstrations import demonstration, imitation
from data.pretrained_tokenizer import read_tokenizer
from data.tokenizer import CORRECTION_REQUEST, Tokenizer, build_tokenizer
from model import GPT, GPTConfig, add_lora, gathered, is_sharded, merge_lora, scattered, shard, whole, without_lora
from rewards import correctness, turn_returns, turn_rewards
from rollout import Rollout, concatenate, right_pad, sample_dialogues


def option(default, why: str):
    """A config field that carries its reason, which `--help` prints."""
    return dataclasses.field(default=default, metadata={"why": why})


@dataclass
class Config:
    # run
    name: str = option("default", "the run writes into <out>/<name>/")
    out: str = option("out", "folder of all runs")
    seed: int = option(0, "decides problems, their split, initial weights and all sampling")
    device: str = option("auto", "auto takes CUDA, then Apple MPS, then CPU")
    # task and model
    task: str = option(
        "division", "a module in data/: division, countdown, addition, multiplication, gsm8k, math, mbpp or your own"
    )
    size: int = option(3, "difficulty of the task; for division the digits of the quotient")
    train_data: str = option("", "file of training problems, for the tasks that have one: gsm8k, math, mbpp")
    test_data: str = option("", "file of held-out problems; a training problem that is in it, too, is left out")
    n_layer: int = option(3, "transformer blocks; fewer are quicker and may not learn the checks")
    n_head: int = option(4, "attention heads")
    dim: int = option(128, "width; 0.7 M parameters in all")
    # base model
    base_steps: int = option(700, "supervised steps; fewer, and its checks are not true, so there is nothing to correct by")
    base_batch: int = option(96, "dialogues a step; 48 and 256 made a worse base at equal cost (single runs)")
    base_lr: float = option(0.02, "learning rate of the base; with --optimizer=adamw take a tenth, of this and of those below")
    right_first: float = option(0.3, "share of demonstrations whose first attempt is made right, and taught")
    copy: float = option(0.3, "share of later turns that repeat the attempt before: the habit that RL must break")
    right: float = option(0.5, "share of later turns that are right, the ability to find; the rest are near misses: delta < 0")
    own_from: float = option(0.3, "from this share of the steps on, the other first attempts are its own samples, and not taught")
    init: str = option("", "a base to start from instead of making one: a .pt file, or the folder of a Hugging Face checkpoint")
    tokenizer: str = option("", "folder or tiktoken name of the tokenizer, if --init has none")
    dtype: str = option("float32", "type of the weights; bfloat16 halves memory, and learns through float32 copies or adapters")
    lora: int = option(0, "rank of the adapters that learn in the place of the weights; 0: all weights learn")
    shard: bool = option(False, "with torchrun: each process keeps its share of weights, gradients and optimiser, not all of them")
    imitate: str = option("", "file of dialogues on training problems, rows of prompt and attempts: the last attempt is imitated")
    imitate_steps: int = option(100, "supervised steps on that file, `batch` dialogues each, at the learning rate `lr`")
    recompute: bool = option(False, "compute the blocks again in the backward pass: far less memory, a third more time")
    # reinforcement learning
    turns: int = option(2, "attempts; with 3 or more Stage I has a part for each of them but the first (ICLR version, A.1)")
    stage1_steps: int = option(190, "turn 2 alone is rewarded, turn 1 is held to the base (eq. 3); of each part, if it has several")
    stage2_steps: int = option(120, "both turns are rewarded, with the bonus (eq. 4 and 5)")
    interleave: int = option(1, "how often Stage I and II alternate, the steps shared out (v1 of the paper: 2)")
    batch: int = option(128, "rollouts an update")
    sample_batch: int = option(256, "rollouts sampled together: memory for their keys and values")
    micro_batch: int = option(32, "rows a forward pass, as many as the CPU's cache likes; any number gives the same gradient")
    samples_per_problem: int = option(1, "rollouts of each problem; the rloo baseline needs 2 or more")
    baseline: str = option("split", "split: by the first attempt's outcome; rloo: by problem, as the paper names")
    optimizer: str = option("muon", "muon on the blocks' matrices and AdamW on the rest, or adamw on all, as the paper has it")
    lr: float = option(0.005, "learning rate in Stage I")
    stage2_lr: float = option(0.003, "the same in Stage II")
    adam_share: float = option(0.1, "beside Muon, AdamW (embeddings, norms, head) learns at this share of the rate")
    max_grad_norm: float = option(1.0, "gradient clipping")
    max_new: int = option(24, "longest attempt in tokens; a longer one is cut and counts as wrong")
    temperature: float = option(1.0, "sampling and its log-probs; the paper trains at 1")
    stage2_weights: str = option("1,1", "reward weights of turn 1 and of later ones in Stage II; a turn of 0 is left alone, no KL")
    alpha: float = option(10.0, "bonus alpha * (r2 - r1) on turn 2 in Stage II (eq. 5); the paper's value")
    gamma: float = option(0.0, "credit of a turn in Stage II for the next one's reward; the paper's 0 keeps turn 1 from sabotage")
    beta1: float = option(0.01, "weak KL weight: turn 2 in Stage I")
    beta2: float = option(0.2, "strong KL weight: turn 1 in Stage I")
    stage2_beta1: float = option(0.3, "KL weight of both turns in Stage II; above beta2, as the bonus makes rewards 11-fold")
    adaptive_beta2: bool = option(False, "raise beta2 (up to 10x) until turn 1's KL term is as large as turn 2's policy term")
    offline_share: float = option(0.0, "share of rollouts whose first attempt the base gives (paper, section 5.3)")
    # what is shown and kept
    log_every: int = option(10, "steps between progress lines")
    show_every: int = option(100, "steps between transcripts")
    save_every: int = option(25, "steps between last.pt, from which a stopped run goes on")
    keep_every: int = option(0, "steps between checkpoints that are kept, such as stage1-50.pt; 0: only the end of each stage")
    eval_n: int = option(2000, "held-out problems of the report")
    report: bool = option(True, "evaluate the checkpoints and write report.md at the end")

    def __post_init__(self):
        """One-line ValueErrors for values that can't work, each with its mend."""
        for name in ("size", "n_layer", "n_head", "dim", "base_steps", "base_batch", "batch", "sample_batch", "micro_batch",
                     "samples_per_problem", "max_new", "log_every", "show_every", "save_every", "eval_n", "interleave",
                     "imitate_steps"):  # fmt: skip
            check(getattr(self, name) >= 1, f"{name}={getattr(self, name)}: it must be 1 or more")
        for name in ("stage1_steps", "stage2_steps", "lora", "keep_every"):
            check(getattr(self, name) >= 0, f"{name}={getattr(self, name)}: 0 leaves it out")
        for name in ("right_first", "copy", "right", "own_from", "offline_share"):
            check(0 <= getattr(self, name) <= 1, f"{name}={getattr(self, name)}: a share is between 0 and 1")
        check(self.copy + self.right <= 1, f"copy + right = {self.copy + self.right:g} exceeds 1: lower one of them")
        check(2 <= self.turns <= 6, f"turns={self.turns}: self-correction takes 2 to 6 attempts")
        check(self.turns == 2 or not self.offline_share and not self.adaptive_beta2,
              "turns above 2 need offline_share=0 and adaptive_beta2=false: the paper has these for two attempts")  # fmt: skip
        check(self.temperature > 0, f"temperature={self.temperature}: training must sample, take 1.0")
        check(self.baseline in ("split", "rloo"), f"baseline={self.baseline!r}: choose split or rloo")
        check(self.baseline == "split" or self.samples_per_problem > 1, "baseline=rloo needs --samples_per_problem=2 or more")
        check(self.batch % self.samples_per_problem == 0,
              f"batch={self.batch} is not a multiple of samples_per_problem={self.samples_per_problem}")  # fmt: skip
        check(self.dim % (2 * self.n_head) == 0, f"dim={self.dim} must be a multiple of 2 * n_head={2 * self.n_head}")
        check(not set(self.name) & set("/\\"), f"name={self.name!r} is a folder below out, not a path: use --out for that")
        check(len(parse_weights(self.stage2_weights)) == 2,
              f"stage2_weights={self.stage2_weights!r}: two numbers such as 1,1")  # fmt: skip
        first, later = parse_weights(self.stage2_weights)
        check(later or not self.alpha, "stage2_weights=...,0 leaves later turns alone, so alpha, which rewards them, must be 0")
        check(first or not self.gamma, "stage2_weights=0,... leaves turn 1 alone, so gamma, which credits it, must be 0")
        check(self.optimizer in ("muon", "adamw"), f"optimizer={self.optimizer!r}: choose muon or adamw")
        check(self.dtype in ("float32", "bfloat16"), f"dtype={self.dtype!r}: choose float32 or bfloat16")
        check(not self.shard or self.optimizer == "adamw" and not self.lora and not self.offline_share,
              "shard needs optimizer=adamw (Muon wants whole matrices), lora=0 and offline_share=0")  # fmt: skip
        check(not self.lora or self.init, "lora adapts a model that is there: give one with --init")
        if hasattr(load_task(self.task), "read"):
            check(self.init and self.train_data and self.test_data,
                  f"task={self.task} needs --init=FOLDER (a pretrained model), --train_data=FILE and --test_data=FILE")  # fmt: skip
        else:
            check(not self.train_data and not self.test_data, f"task={self.task} draws its problems: it reads no files")


def check(fine: bool, mend: str) -> None:
    if not fine:
        raise ValueError(mend)


def parse_weights(text: str) -> list[float]:
    try:
        return [float(w) for w in text.split(",")]
    except ValueError:
        return []


# Table 5 of the paper. It does not say how the steps are shared between the stages (here: half and half), how long an attempt
# may be, nor whether a batch counts problems or samples. GSM8K is not in it: MATH's values. Then the same scaled to one GPU.
PAPER = dict(optimizer="adamw", temperature=1.0, alpha=10.0, beta1=0.01, stage2_beta1=0.01, dtype="bfloat16", recompute=True,
             sample_batch=128, micro_batch=8, max_new=1024, log_every=1, show_every=50, eval_n=500)  # fmt: skip
PAPER_MATH = PAPER | dict(lr=5e-6, stage2_lr=5e-6, batch=512, beta2=0.1, stage1_steps=1500, stage2_steps=1500)
PAPER_CODE = PAPER | dict(lr=1e-5, stage2_lr=1e-5, batch=128, beta2=0.25, stage1_steps=750, stage2_steps=750, max_new=512)
LAPTOP = dict(lora=16, lr=1e-4, stage2_lr=1e-4, batch=64, sample_batch=64, micro_batch=4, max_new=320, stage1_steps=100,
              stage2_steps=100, eval_n=200)  # fmt: skip
PRESETS = {
    "smoke": dict(name="smoke", size=2, n_layer=1, dim=64, base_steps=60, base_batch=64, stage1_steps=10, stage2_steps=10, batch=64,
                  micro_batch=64, eval_n=50, log_every=5, show_every=10),
    "plain": dict(name="plain", stage1_steps=0, stage2_steps=310, stage2_lr=0.005, alpha=0.0, stage2_beta1=0.01),
    "single": dict(name="single", stage1_steps=0, stage2_steps=310, stage2_lr=0.005, alpha=0.0, stage2_beta1=0.01,
                   stage2_weights="1,0"),
    "countdown": dict(name="countdown", task="countdown", size=12),
    "gsm8k": PAPER_MATH | dict(name="gsm8k", task="gsm8k", max_new=512),
    "math": PAPER_MATH | dict(name="math", task="math"),
    "mbpp": PAPER_CODE | dict(name="mbpp", task="mbpp"),
    "gsm8k-laptop": PAPER_MATH | LAPTOP | dict(name="gsm8k-laptop", task="gsm8k"),
    "math-laptop": PAPER_MATH | LAPTOP | dict(name="math-laptop", task="math", max_new=512),
    "mbpp-laptop": PAPER_CODE | LAPTOP | dict(name="mbpp-laptop", task="mbpp"),
}  # fmt: skip


@dataclass
class Stage:
    """A row of coefficients, a number for each turn; `weights` None means supervised. The KL is to the checkpoint `reference`."""

    name: str
    steps: int
    lr: float
    weights: tuple[float, ...] | None = None
    alpha: float = 0.0
    gamma: float = 0.0
    betas: tuple[float, ...] = (0.0, 0.0)
    reference: str = "base"


def stages(c: Config) -> list[Stage]:
    """The whole curriculum. Stage I is eq. 3, Stage II eq. 4 with the bonus of eq. 5.

    With three turns Stage I has two parts (ICLR version, A.1): `stage1` rewards turn 2 and holds turn 1 to the base, `stage1b`
    rewards turn 3 and holds turns 1 and 2 to the model of `stage1`; and so on for more.
    """
    rows = [] if c.init else [Stage("base", c.base_steps, c.base_lr)]
    rows += [Stage("imitate", c.imitate_steps, c.lr)] if c.imitate else []
    first, later = parse_weights(c.stage2_weights)
    weights = (first,) + (later,) * (c.turns - 1)
    for _ in range(c.interleave):
        reference = "base"
        for before in range(1, c.turns):  # so many turns are held, the next is rewarded
            name, betas = ("stage1", "stage1b", "stage1c", "stage1d", "stage1e")[before - 1], (c.beta2,) * before + (c.beta1,)
            rewarded = (0.0,) * before + (1.0,)
            rows.append(Stage(name, c.stage1_steps // c.interleave, c.lr, rewarded, betas=betas, reference=reference))
            reference = name
        betas = tuple(c.stage2_beta1 if w else 0.0 for w in weights)
        rows.append(Stage("stage2", c.stage2_steps // c.interleave, c.stage2_lr, weights, c.alpha, c.gamma, betas))
    return [row for row in rows if row.steps]


# ------------------------------------------------------------------------------------------------------ one batch


def seeded(*key) -> int:
    """A seed for one purpose: nothing random outlives its step, so a resumed run draws what the unbroken one drew."""
    return Random("/".join(map(str, key))).getrandbits(63)


def demonstration_batch(c: Config, task, problem_at, tokenizer: Tokenizer, model: GPT, step: int) -> dict[str, Tensor]:
    """Dialogues to imitate: `ids` [B, T] and `masks` [B, 1, T], the tokens that the loss counts."""
    turns = {7: 5, 15: 10}.get(step % 16, 2)  # one batch in eight has long dialogues, else turns 3, 4, ... would be foreign
    mine = my_rows(max(1, c.base_batch * 2 // turns))
    problems = [problem_at(step * c.base_batch + i) for i in mine]
    own = [None] * len(mine)
    if turns == 2 and step >= c.own_from * c.base_steps:
        own = [texts[0] for texts in rollouts(c, task, tokenizer, model, problems, 1, seeded(c.seed, "own", step)).texts]
    rows = [
        demonstration(task, tokenizer, p, Random(seeded(c.seed, "demo", step, i)), turns, c.right_first, c.copy, c.right, attempt)
        for i, p, attempt in zip(mine, problems, own, strict=True)
    ]
    return padded(rows, model.embed.weight.device)


def imitation_batch(c: Config, traces: list, step: int, device) -> dict[str, Tensor]:
    """This rank's share of a batch drawn from `traces`, (ids, taught) each: `ids` [B, T] and `masks` [B, 1, T]."""
    drawn = Random(seeded(c.seed, "imitate", step)).choices(traces, k=c.batch)
    return padded([drawn[i] for i in my_rows(c.batch)], device)


def padded(rows: list[tuple[list[int], list[bool]]], device) -> dict[str, Tensor]:
    ids, _ = right_pad([ids for ids, _ in rows], 0, device)
    taught, _ = right_pad([[int(t) for t in taught] for _, taught in rows], 0, device)
    return {"ids": ids, "masks": taught.bool()[:, None]}


def read_traces(c: Config, task, tokenizer: Tokenizer) -> list[tuple[list[int], list[bool]]]:
    """The dialogues of the file `imitate`; ValueError names a row that is none, or that is about a held-out problem."""
    traces, test = [], {p.prompt for p in task.read(c.test_data, "test")} if c.test_data else None
    for place, row in read_rows(c.imitate, ("prompt", "attempts")):
        prompt, attempts = row["prompt"], row["attempts"]
        fine = isinstance(attempts, list) and attempts and all(isinstance(text, str) for text in (prompt, *attempts))
        check(fine, f"{place}: `prompt` must be a text and `attempts` a list of texts, not empty")
        held_out = is_held_out(prompt, c.seed) if test is None else prompt in test
        check(not held_out, f"{place}: {prompt[:40]!r} is a held-out problem: imitate dialogues on training problems alone")
        traces.append(imitation(tokenizer, prompt, attempts, correction_request(task)))
    return traces


def rollouts(c: Config, task, tokenizer: Tokenizer, model: GPT, problems: list[Problem], turns: int, seed: int,
             first: GPT | None = None) -> Rollout:  # fmt: skip
    """Dialogues sampled from the model at the training temperature; with `first`, that model makes the first attempts."""
    model = whole(model)
    generator = torch.Generator(model.embed.weight.device).manual_seed(seed + rank())
    request = tokenizer.user_turn(correction_request(task), first=False)
    prompts = [tokenizer.user_turn(p.prompt) for p in problems]

    def sample(model: GPT, prompts: list, turns: int) -> Rollout:
        parts = [prompts[i : i + c.sample_batch] for i in range(0, len(prompts), c.sample_batch)]
        requests = [request] * (turns - 1)
        return concatenate([
            sample_dialogues(model, tokenizer, part, requests, c.max_new, c.temperature, generator) for part in parts
        ])  # fmt: skip

    if first is None:
        return sample(model, prompts, turns)
    given = sample(first, prompts, 1)
    closing = [request if ended else [tokenizer.end_id, *request] for ended in given.ended[:, 0].tolist()]
    return given.followed_by(sample(model, [given.row(b) + closing[b] for b in range(len(problems))], turns - 1))


def correction_request(task) -> str:
    """The second prompt: the task's own words, or the toy tasks' single token."""
    return getattr(task, "CORRECTION_REQUEST", CORRECTION_REQUEST)


def rollout_batch(c: Config, stage: Stage, key, task, problem_at, tokenizer: Tokenizer, model: GPT, reference: GPT):
    """Samples dialogues of K turns and scores them: `ids` [B, T], `masks` [B, K, T], `advantages` [B, K]; and what to log.

    B is this rank's share of the batch; the advantages and what is logged are of the whole batch.
    """
    (stage_index, step), turns = key, len(stage.weights)
    groups = c.batch // c.samples_per_problem
    first_index = (stage_index * 10**6 + step) * groups + 10**9  # far from the problems of the demonstrations
    mine = my_rows(c.batch)
    problems = [problem_at(first_index + i // c.samples_per_problem) for i in mine]
    offline = round(c.offline_share * len(problems))
    parts = []
    if offline < len(problems):
        parts.append(rollouts(c, task, tokenizer, model, problems[offline:], turns, seeded(c.seed, "online", *key)))
    if offline:
        parts.insert(0, rollouts(c, task, tokenizer, model, problems[:offline], turns, seeded(c.seed, "offline", *key), reference))
    rollout = concatenate(parts)
    own, unjudged = correctness(task, problems, rollout.texts, rollout.ended)  # [B, K]
    correct = torch.tensor([row for part in gather(own.tolist()) for row in part], device=own.device)  # [batch, K]
    rewards = turn_rewards(correct, stage.weights, stage.alpha)
    problem_of = torch.arange(c.batch, device=correct.device) // c.samples_per_problem
    advantage = advantages(turn_returns(rewards, stage.gamma), correct, problem_of, c.baseline)
    changed = [texts[0] != texts[1] for texts in rollout.texts]
    length = (rollout.masks.sum() / rollout.masks.any(-1).sum()).item()  # of an attempt that the policy made
    means = {"change_rate": sum(changed) / len(changed), "length": length, **unjudged}
    row = {
        **{f"acc_t{k + 1}": correct[:, k].float().mean().item() for k in range(turns)},
        "reward": rewards.sum(1).mean().item(),
        "advantage_t2": advantage[:, 1].abs().mean().item(),
        **add_up({name: value * len(problems) / c.batch for name, value in means.items()}),
        "no_signal": bool((advantage == 0).all()),
    }
    shown = [problems[-1], rollout.texts[-1], own[-1].tolist()]
    batch = {"ids": rollout.ids, "masks": rollout.masks.transpose(0, 1), "advantages": advantage[mine.start : mine.stop]}
    return batch, row, shown


def advantages(returns: Tensor, correct: Tensor, problem_of: Tensor, baseline: str) -> Tensor:
    """Each turn's return minus a leave-one-out mean over comparable rollouts [B, K] (RLOO, Ahmadian et al. 2024).

    `rloo` compares with the other rollouts of the same problem, `problem_of` [B]. `split` (ours) compares with all other
    rollouts in which the attempt *before* the turn had the same outcome: known before the turn is sampled, so the mean
    stays unbiased, and it takes away what the bonus pays or fines for the first attempt, which turn 2 can't change.
    """
    columns = []
    for turn in range(returns.shape[1]):
        before = correct[:, turn - 1] if turn > 0 else torch.zeros_like(correct[:, 0])
        key = problem_of if baseline == "rloo" else before
        same = (key[:, None] == key).float().fill_diagonal_(0)  # [B, B] never itself
        columns.append(returns[:, turn] - same @ returns[:, turn] / same.sum(1).clamp(min=1))  # alone: baseline 0
    return torch.stack(columns, dim=1)


# ------------------------------------------------------------------------------------------------------ the losses


LOGITS_AT_ONCE = 2**24  # numbers in a chunk of logits: 64 MiB; a toy batch is one chunk


class Scores(torch.autograd.Function):
    """Log-prob of the target, KL(policy || reference) and entropy [n] of each row of logits [n, V], and the gradient of the
    first two. Written out, it keeps two tensors of the logits' size for the backward pass, and autograd four."""

    @staticmethod
    def forward(ctx, logits: Tensor, reference_logits: Tensor, targets: Tensor):
        log_probs = F.log_softmax(logits, dim=-1)
        ratio = F.log_softmax(reference_logits, dim=-1).sub_(log_probs).neg_()  # log(p / q)
        probs = log_probs.exp()
        kl = torch.linalg.vecdot(probs, ratio)
        entropy = -torch.linalg.vecdot(probs, log_probs)
        ctx.save_for_backward(probs, ratio, kl, targets)
        ctx.mark_non_differentiable(entropy)
        return log_probs.gather(1, targets[:, None])[:, 0], kl, entropy

    @staticmethod
    @once_differentiable
    def backward(ctx, for_log_prob: Tensor, for_kl: Tensor, _):
        """d log p_t / d logit_v = [v = t] - p_v   and   d KL / d logit_v = p_v (log(p_v / q_v) - KL)."""
        probs, ratio, kl, targets = ctx.saved_tensors
        grad = (ratio - kl[:, None]).mul_(for_kl[:, None]).sub_(for_log_prob[:, None]).mul_(probs)
        return grad.scatter_add_(1, targets[:, None], for_log_prob[:, None]), None, None


def in_chunks(score, vocab_size: int, *tensors: Tensor):
    """`score` of tensors [N, ...], applied to so many rows at once that their logits fit, and recomputed in the backward pass."""
    size = max(1, LOGITS_AT_ONCE // vocab_size)
    if len(tensors[0]) <= size:
        return score(*tensors)
    chunks = zip(*(t.split(size) for t in tensors), strict=True)
    return tuple(map(torch.cat, zip(*(checkpoint(score, *chunk, use_reentrant=False) for chunk in chunks), strict=True)))


def token_scores(model: GPT, reference: GPT, ids: Tensor, mask: Tensor, temperature: float) -> tuple[Tensor, Tensor, Tensor]:
    """Log-prob, KL(policy || reference) over the whole vocabulary and entropy of each masked token of ids, [N] each.

    mask [B, T] says which tokens; the logits are divided by the sampler's temperature. The head is applied to these tokens
    alone and in chunks, recomputed in the backward pass: a [B, T, V] tensor never exists, however large V is.
    """
    inputs, targets, mask = ids[:, :-1], ids[:, 1:][mask[:, 1:]], mask[:, 1:]
    hidden = model.hidden(inputs)[mask]  # [N, C]
    with torch.no_grad():
        reference_hidden = reference.hidden(inputs)[mask]

    def score(hidden, reference_hidden, targets):
        with torch.no_grad():
            reference_logits = reference.head(reference_hidden).float() / temperature
        return Scores.apply(model.head(hidden).float() / temperature, reference_logits, targets)  # of [n, V] each

    return in_chunks(score, model.config.vocab_size, hidden, reference_hidden, targets)


def policy_loss(model: GPT, reference: GPT, batch: dict, betas, temperature: float, rows: int) -> tuple[Tensor, dict]:
    """A loss whose gradient is on average that of   mean over rows of  sum over turns of  -E[return_k] + beta_k * KL_k   (eq. 2
    to 4), where turn k's expectation and KL are over its own tokens, the dialogue before it being given.

    REINFORCE: each token's log-prob is weighted by its turn's advantage. The KL of a turn is the sum over its tokens of the
    exact KL(policy || reference) over the vocabulary. Its gradient has two parts: that of each token's KL, and, since a token
    decides which contexts come after it, its log-prob times the KL still to come in the turn. `rows` is the whole batch's
    number of rows, so that micro-batches add up to one batch's gradient. Returns the loss and its parts, sums over rows.
    """
    ids, masks = batch["ids"], batch["masks"]  # [B, T], [B, K, T]
    sampled = masks.any(1)  # [B, T]
    log_probs, kl, entropy = token_scores(model, reference, ids, sampled, temperature)  # [N] each
    kl_of = torch.zeros(ids.shape, device=ids.device).masked_scatter(sampled, kl.detach())[:, None] * masks  # [B, K, T]
    kl_to_come = kl_of.flip(-1).cumsum(-1).flip(-1) - kl_of
    beta = torch.tensor(betas, device=ids.device)[None, :, None]  # [1, K, 1]
    credit = ((batch["advantages"][:, :, None] - beta * kl_to_come) * masks).sum(1)[sampled]  # [N] one turn is non-zero
    token_beta = (beta * masks).sum(1)[sampled]  # [N]
    loss = (token_beta * kl - credit * log_probs).sum() / rows
    kl_turns = {f"kl_t{k + 1}": kl.item() / rows for k, kl in enumerate(kl_of.sum((0, 2)))}  # nats a row
    return loss, {**kl_turns, "entropy": entropy.sum().item() / rows}


def supervised_loss(model: GPT, batch: dict, tokens: int) -> Tensor:
    """Cross-entropy over the taught tokens; `tokens` is their number in the whole batch."""
    mask = batch["masks"][:, 0, 1:]
    hidden, targets = model.hidden(batch["ids"][:, :-1])[mask], batch["ids"][:, 1:][mask]  # [N, C], [N]

    def score(hidden, targets):
        return (F.cross_entropy(model.head(hidden).float(), targets, reduction="none"),)

    return in_chunks(score, model.config.vocab_size, hidden, targets)[0].sum() / tokens


# ------------------------------------------------------------------------------------------------------ the loop


def make_tokenizer(c: Config) -> Tokenizer:
    """The toy task's tokenizer, or that of the pretrained checkpoint."""
    if c.tokenizer or Path(c.init).is_dir() and c.init:
        return read_tokenizer(c.tokenizer or c.init)
    task = load_task(c.task)
    if not hasattr(task, "DIGITS_PER_TOKEN"):
        raise ValueError(f"task={c.task} needs a pretrained model's tokenizer: --init=FOLDER or --tokenizer=...")
    return build_tokenizer(task.DIGITS_PER_TOKEN)


def check_lengths(c: Config, task, tokenizer: Tokenizer, max_len: int) -> None:
    """ValueError if a dialogue could outgrow the model: better now than in the middle of a run that can't be changed."""
    problems = [*task.read(c.train_data, "train"), *task.read(c.test_data, "test")]
    prompt = max(len(tokenizer.user_turn(p.prompt)) for p in problems)
    longest = prompt + c.turns * c.max_new + (c.turns - 1) * (len(tokenizer.user_turn(correction_request(task), first=False)) + 1)
    check(longest <= max_len, f"the longest prompt has {prompt} tokens, its dialogue up to {longest}, the model max_len={max_len}: "
                              "lower --max_new")  # fmt: skip


def make_model(c: Config, vocab_size: int, device: torch.device) -> GPT:
    """What the first stage starts from: a toy GPT with random weights, or what `init` names."""
    if not c.init:
        model = GPT(GPTConfig(vocab_size, n_layer=c.n_layer, n_head=c.n_head, n_kv_head=c.n_head, dim=c.dim,
                              head_dim=c.dim // c.n_head, ffn_dim=3 * c.dim,
                              max_len=max(256, 10 * (c.max_new + 8)))).to(device)  # fmt: skip  # room for ten turns
    elif Path(c.init).is_dir():
        model = GPT.from_pretrained(c.init, device, getattr(torch, c.dtype))
    else:
        model, before = load_model(c.init, device)
        model = merge_lora(model).requires_grad_() if before.lora else model
    if model.config.vocab_size < vocab_size:
        raise ValueError(f"{c.init} has {model.config.vocab_size} tokens, the tokenizer {vocab_size}: they do not belong together")
    return model.to(getattr(torch, c.dtype))


def master_weights(model: GPT, saved: dict[str, Tensor]) -> dict[str, Tensor]:
    """The weights that learn, by name: the model's own, or for those of a lower precision float32 copies.

    In bfloat16 an update of a learning rate like 5e-6 is less than half a step for most weights and would be rounded away.
    The copies collect the gradients, too, so that micro-batches add up in float32. `saved` has the copies of a stopped run.
    """
    masters = {name: p for name, p in model.named_parameters() if p.requires_grad}
    for name, p in masters.items():
        if p.dtype != torch.float32:
            master = saved.get(name, p.detach()).to(p.device, torch.float32, copy=True).requires_grad_()

            def collect(p, master=master):
                master.grad = p.grad.float() if master.grad is None else master.grad + p.grad
                p.grad = None

            p.register_post_accumulate_grad_hook(collect)
            masters[name] = master
    return masters


@torch.no_grad()
def copy_masters(model: GPT, masters: dict[str, Tensor]) -> None:
    """Rounds the float32 copies back into the model after an update."""
    for name, p in model.named_parameters():
        if name in masters and masters[name] is not p:
            p.copy_(masters[name])


def make_optimizers(c: Config, masters: dict[str, Tensor]) -> list[torch.optim.Optimizer]:
    """Muon for the matrices of the blocks and AdamW for all else, or AdamW alone."""
    muon = {name for name, p in masters.items() if c.optimizer == "muon" and name.startswith("blocks.") and p.ndim == 2}
    rest = [p for name, p in masters.items() if name not in muon]
    fused = True if rest and rest[0].is_cuda else None  # None: torch's choice
    optimizers = [torch.optim.AdamW(rest, lr=0.0, betas=(0.9, 0.95), weight_decay=0.0, fused=fused)] if rest else []
    if muon:
        optimizers.append(torch.optim.Muon([masters[n] for n in masters if n in muon], lr=0.0, momentum=0.95, weight_decay=0.0))
    for optimizer in optimizers:
        beside_muon = bool(muon) and isinstance(optimizer, torch.optim.AdamW)
        optimizer.param_groups[0]["share"] = c.adam_share if beside_muon else 1.0
    return optimizers


def learning_rate(stage: Stage, step: int) -> float:
    """Ten steps of warm-up, then constant, then linearly to zero over the second half."""
    return stage.lr * min(1.0, (step + 1) / 10, 2 * (1 - step / stage.steps))


def micro_batches(batch: dict[str, Tensor], size: int) -> list[dict[str, Tensor]]:
    """The batch in micro-batches of `size` rows of about equal length, each as wide as its longest row needs."""
    sampled = batch["masks"].any(1)  # [B, T]
    lengths = (sampled * torch.arange(1, sampled.shape[1] + 1, device=sampled.device)).amax(1)  # [B] up to the last sampled token
    parts = []
    for rows in lengths.argsort(stable=True).split(size):
        width = int(lengths[rows].max())
        part = {name: t[rows] for name, t in batch.items()}
        parts.append(part | {"ids": part["ids"][:, :width], "masks": part["masks"][:, :, :width]})
    return parts


def betas_of(c: Config, stage: Stage, before: dict) -> tuple[float, ...]:
    """The stage's KL weights; with `adaptive_beta2`, turn 1's in Stage I from what the step before measured (form: ours).

    The paper balances the sizes of turn 1's KL term and turn 2's policy term and gives no formula.
    """
    beta, *rest = stage.betas
    if c.adaptive_beta2 and stage.name == "stage1" and "kl_t1" in before:
        beta *= min(10.0, max(1.0, before["advantage_t2"] / max(beta * before["kl_t1"], 1e-9)))
    return beta, *rest


def to_train(c: Config, state: dict, folder: Path, device: torch.device, tokenizer: Tokenizer) -> tuple[GPT, dict[str, Tensor]]:
    """The model to start or to go on with, and its weights that learn. A new run's first files are written."""
    home = torch.device("cpu") if c.shard else device  # a model that is sharded need not fit on one device
    torch.manual_seed(c.seed)
    if state:
        model = load_model(folder / "last.pt", home)[0]
    else:
        model = make_model(c, tokenizer.vocab_size, home)
        if c.train_data:
            check_lengths(c, load_task(c.task), tokenizer, model.config.max_len)
        if c.lora:
            add_lora(model, c.lora)
        if c.init:
            save(folder / "base.pt", checkpoint_of(c, model, {}))
    model.recompute = c.recompute
    if c.shard:
        shard(model, device, state.get("model", {}))
    masters = master_weights(model, state.get("model", {}))
    if not state:
        save(folder / "last.pt", last_of(c, model, masters, 0, 0, {}, 0.0, []))
        (folder / "metrics.jsonl").touch()
    return model, masters


def reference_of(c: Config, stage: Stage, folder: Path, device: torch.device, model: GPT) -> GPT:
    """The policy to which the stage's KL holds: never trained, and with adapters the base is the model without them."""
    if c.lora and stage.reference == "base":
        return without_lora(model)
    reference = load_model(folder / f"{stage.reference}.pt", torch.device("cpu") if c.shard else device)[0].requires_grad_(False)
    if c.shard:
        shard(reference, device)
    return reference


def train(c: Config, state: dict) -> None:
    """Runs the stages from `state` on, which is the content of last.pt, or {} for a new run."""
    folder, device, task = Path(c.out) / c.name, pick_device(c.device), load_task(c.task)
    tokenizer = make_tokenizer(c)
    problem_at = train_problems(task, c.size, c.seed, c.train_data, c.test_data)
    traces = read_traces(c, task, tokenizer) if c.imitate else []
    if c.report:
        held_out_problems(task, c.size, c.seed, c.eval_n, c.test_data)  # a ValueError now rather than after the training
    check_ranks(c, device)
    model, masters = to_train(c, state, folder, device, tokenizer)
    row, started = state.get("row", {}), time.time() - state.get("seconds", 0.0)
    for index, stage in list(enumerate(stages(c)))[state.get("stage", 0) :]:
        optimizers = make_optimizers(c, masters)
        first = state.get("step", 0) if index == state.get("stage") else 0
        if first:
            for optimizer, saved in zip(optimizers, state["optimizers"], strict=True):
                optimizer.load_state_dict(scattered(saved, optimizer))
        reference = None if stage.weights is None else reference_of(c, stage, folder, device, model)
        pace = time.time()
        for step in range(first, stage.steps):
            betas, key, shown = betas_of(c, stage, row), (index, step), None
            if stage.weights is None:
                row = {}
                if (step + 1) % c.show_every == 0 or step == 0:  # not trained on: the base's points of the learning curve
                    _, row, shown = rollout_batch(
                        c, Stage("look", 1, 0.0, (1.0, 1.0)), key, task, problem_at, tokenizer, model, model
                    )
                if stage.name == "imitate":
                    batch = imitation_batch(c, traces, step, device)
                else:
                    batch = demonstration_batch(c, task, problem_at, tokenizer, model, step)
                taught = sum(gather(int(batch["masks"][:, :, 1:].sum())))
            else:
                batch, row, shown = rollout_batch(c, stage, key, task, problem_at, tokenizer, model, reference)
            micros, sums = micro_batches(batch, c.micro_batch), {}
            for micro in in_step(micros) if c.shard else micros:
                if stage.weights is None:
                    loss, parts = supervised_loss(model, micro, taught), {}
                else:
                    loss, parts = policy_loss(model, reference, micro, betas, c.temperature, c.batch)
                loss.backward()
                for name, value in {"loss": loss.item(), **parts}.items():
                    sums[name] = sums.get(name, 0.0) + value
            row |= add_up(sums)
            sum_gradients(masters)
            row["grad_norm"] = torch.nn.utils.clip_grad_norm_(masters.values(), c.max_grad_norm).item()
            if not math.isfinite(row["loss"] + row["grad_norm"]):
                raise FloatingPointError(f"the loss is {row['loss']} at step {step + 1} of {stage.name}: lower the learning "
                                         f"rate; the last good state is {folder}/last.pt")  # fmt: skip
            for optimizer in optimizers:
                for group in optimizer.param_groups:
                    group["lr"] = learning_rate(stage, step) * group["share"]
                optimizer.step()
                optimizer.zero_grad()
            copy_masters(model, masters)
            seconds = time.time() - started
            row |= {"beta_t1": betas[0]}
            log_step(c, folder, stage, step, row, seconds, (time.time() - pace) / (step + 1 - first), shown)
            if c.keep_every and (step + 1) % c.keep_every == 0:
                save(folder / f"{stage.name}-{step + 1}.pt", checkpoint_of(c, whole(model)))
            if (step + 1) % c.save_every == 0 and step + 1 < stage.steps:
                save(folder / "last.pt", last_of(c, model, masters, index, step + 1, row, seconds, optimizers))
        save(folder / f"{stage.name}.pt", checkpoint_of(c, whole(model)))
        save(folder / "last.pt", last_of(c, model, masters, index + 1, 0, row, time.time() - started, []))


def log_step(c: Config, folder: Path, stage: Stage, step: int, row: dict, seconds: float, pace: float, shown) -> None:
    """A row of metrics.jsonl; now and then a progress line and a transcript. `pace` is seconds a step."""
    if rank() > 0:
        return
    with open(folder / "metrics.jsonl", "a") as file:
        file.write(json.dumps({"stage": stage.name, "step": step + 1, "seconds": round(seconds, 2), **row}) + "\n")
    last = step + 1 == stage.steps
    if (step + 1) % c.log_every == 0 or last:
        left = int(pace * (stage.steps - step - 1))
        rate = f"{1 / pace:.2f} steps/s" if pace < 1 else f"{pace:.1f} s/step"
        line = f"{stage.name} {step + 1:4d}/{stage.steps}  {rate}  ETA {left // 60}:{left % 60:02d}"
        if stage.weights is None:
            line += f"  loss {row['loss']:.3f}"
        else:
            turns = range(1, len(stage.weights) + 1)
            line += f"  reward {row['reward']:+.2f}  acc " + " -> ".join(f"{100 * row[f'acc_t{k}']:.0f}%" for k in turns)
            line += f"  changed {100 * row['change_rate']:.0f}%  KL " + " ".join(f"{row[f'kl_t{k}']:.2f}" for k in turns)
            line += "".join(f"  {k} {100 * row[k]:.0f}%" for k in ("truncated", "unparsable", "timeout") if row.get(k, 0) >= 0.005)
            line += "  (all advantages 0: the KL alone acts)" if row["no_signal"] else ""
        print(line, flush=True)
    if shown is not None and ((step + 1) % c.show_every == 0 or last or step == 0):
        print(transcript(*shown), flush=True)


def transcript(problem: Problem, texts: list[str], right: list[bool]) -> str:
    """A dialogue for people to read: a line if its texts are short, else a paragraph a turn."""
    verdict = ["(right)" if ok else "(wrong)" for ok in right]
    if len(problem.prompt + "".join(texts)) < 200 and "\n" not in problem.prompt + "".join(texts):
        return f"{problem.prompt:>12}   " + "   ".join(f"{t} {v}" for t, v in zip(texts, verdict, strict=True))
    turns = [f"--- attempt {k} {v}\n{t}" for k, (t, v) in enumerate(zip(texts, verdict, strict=True), 1)]
    return "\n".join([f"--- problem\n{problem.prompt}", *turns, "---"])


# ------------------------------------------------------------------------------------------------------ several processes
# torchrun starts N processes, "ranks". Each has a model of its own (or, with `shard`, its part of one: see model.py) and samples
# and scores its share of the batch; what is global goes through `gather` and `sum_gradients`. Alone, all of this is the identity.


def rank() -> int:
    return dist.get_rank() if dist.is_initialized() else 0


def ranks() -> int:
    return dist.get_world_size() if dist.is_initialized() else 1


def start_ranks() -> None:
    """Joins the processes that torchrun started, if it did: each takes a GPU of its own, if there are any, and rank 0 prints."""
    if not dist.is_torchelastic_launched():
        return
    if int(os.environ["LOCAL_RANK"]) < torch.cuda.device_count():
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    dist.init_process_group()  # NCCL between GPUs, gloo between CPUs
    stop = f"rank {rank()} stops: torchrun ends all processes when one has ended; go on with --resume"
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(stop))
    if rank() > 0:
        sys.stdout = None  # then `print` does nothing


def leave(code: int) -> None:
    """Ends one of several processes at once: torn down in order, gloo's threads now and then abort it if another was faster."""
    if dist.is_initialized():
        for stream in (sys.stdout, sys.stderr):
            if stream is not None:
                stream.flush()
        os._exit(code)


def check_ranks(c: Config, device: torch.device) -> None:
    """One-line ValueErrors for what several processes can't do."""
    rows, gpus = c.batch if c.init else min(c.batch, c.base_batch * 2 // 10), torch.cuda.device_count()
    if ranks() > 1:
        check(rows >= ranks(), f"{rows} rows (--batch, or 1/5 of --base_batch) are too few for {ranks()} processes: one each")
        check(device.type != "mps", "several processes need CUDA or --device=cpu: MPS can't add up their gradients")
        check(device.type == "cpu" or int(os.environ["LOCAL_RANK"]) < gpus, f"only {gpus} GPUs here: lower --nproc_per_node")


def lost_a_rank(error: RuntimeError) -> bool:
    """Whether NCCL, gloo or torchrun's store say by this that another process has gone."""
    return isinstance(error, dist.DistError) or "gloo" in str(error)


def my_rows(n: int) -> range:
    """This rank's part of n rows: contiguous, so that all parts in the order of the ranks are the rows of one process."""
    return range(n * rank() // ranks(), n * (rank() + 1) // ranks())


def gather(value) -> list:
    """Every rank's value, in order: small Python objects, from which all ranks then compute the same. Waits for all."""
    values = [value] * ranks()
    if ranks() > 1:
        dist.all_gather_object(values, value)
    return values


def add_up(values: dict[str, float]) -> dict[str, float]:
    parts = gather(values)
    return {name: sum(part[name] for part in parts) for name in values}


def sum_gradients(masters: dict[str, Tensor]) -> None:
    """Adds up the ranks' gradients in place: each loss is divided by the whole batch, so the sum is the batch's gradient.

    Not DDP, which hooks `forward` (we call `hidden` and `head`) and reduces in the precision of the weights, where these are
    float32 copies. What is lost: a layer's gradient could be under way while the next is computed; this comes after the
    backward pass. All ranks get the same bits, so their weights stay equal. A sharded model's gradients are summed already.
    """
    for master in masters.values():
        if ranks() > 1 and not is_sharded(master):
            dist.all_reduce(master.grad)


def in_step(micros: list[dict[str, Tensor]]) -> list[dict[str, Tensor]]:
    """As many micro-batches on all ranks, by some that count for nothing: a sharded model runs on all of them or on none."""
    spare = max(gather(len(micros))) - len(micros)
    return micros + [micros[0] | {"masks": torch.zeros_like(micros[0]["masks"])}] * spare


# ------------------------------------------------------------------------------------------------------ files


def checkpoint_of(c: Config, model: GPT, learned: dict[str, Tensor] | None = None) -> dict:
    """A checkpoint's content; `learned` are its weights or their float32 copies. What stands in `init` is not kept again."""
    learned = dict(model.named_parameters()) if learned is None else learned
    if c.lora or c.init and Path(c.init).is_dir():
        weights = {name: learned[name].detach() for name, p in model.named_parameters() if name in learned and p.requires_grad}
    else:
        weights = model.state_dict() | {name: p.detach() for name, p in learned.items()}
    return {"config": dataclasses.asdict(c), "gpt": dataclasses.asdict(model.config), "model": weights}


def last_of(c: Config, model: GPT, masters, stage: int, step: int, row: dict, seconds: float, optimizers) -> dict:
    """All that a run needs to go on: no generator's state, since every step seeds its own."""
    return checkpoint_of(c, model, masters) | {
        "stage": stage, "step": step, "row": row, "seconds": seconds, "optimizers": [o.state_dict() for o in optimizers]
    }  # fmt: skip


def save(path: Path, content: dict) -> None:
    """Writes a checkpoint whole or not at all: a kill or a full disk leaves the file that was there."""
    draft, content = path.with_suffix(".tmp"), gathered(content)
    if rank() == 0:
        with open(draft, "wb") as file:
            torch.save(content, file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(draft, path)
    gather(None)  # nobody reads it before it is there


def load(path: str | Path) -> dict:
    """A checkpoint's content, read without unpickling code. ValueError if it is none."""
    if not Path(path).is_file():
        raise ValueError(f"no checkpoint {path}: give a .pt file that train.py wrote (or, to start from, a checkpoint folder)")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=ranks() > 1)  # once in memory for all ranks
        content["config"], content["gpt"], content["model"]
    except Exception as error:  # torch.load raises many kinds on a damaged file
        raise ValueError(f"{path} is not a checkpoint of train.py: {str(error).splitlines()[0][:100]}") from None
    return content


def load_model(path: str | Path, device) -> tuple[GPT, Config]:
    """The model of a checkpoint and the config of its run; what the checkpoint has not is read from the run's `init`."""
    content = load(path)
    c, gpt, weights = Config(**content["config"]), GPTConfig(**content["gpt"]), content["model"]
    with torch.device("meta"):
        complete = GPT(gpt).state_dict().keys() <= weights.keys()
    if complete:
        model = GPT(gpt).to(device, getattr(torch, c.dtype))
    else:
        model = make_model(c, 0, torch.device(device))
        if any(".lora_" in name for name in weights):
            add_lora(model, c.lora)
    if unexpected := model.load_state_dict(weights, strict=False).unexpected_keys:
        raise ValueError(f"{path} does not fit {c.init or 'its own sizes'}: it has {unexpected[0]}")
    return model, c


def pick_device(name: str) -> torch.device:
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError):
        raise ValueError(f"device={name!r} is not available here: take auto, cpu, mps or cuda") from None


# ------------------------------------------------------------------------------------------------------ command line


def parse_args(argv: list[str]) -> tuple[Config, str]:
    """The config of `--key=value` words, and the folder to resume ("" for none). ValueError names a word's mend."""
    fields = {f.name: f for f in dataclasses.fields(Config)}
    given = {}
    for word in argv:
        key, equals, text = word.removeprefix("--").partition("=")
        if not word.startswith("--") or not equals:
            raise ValueError(f"{word!r}: settings are written --key=value; --help lists them")
        if key not in fields and key not in ("preset", "resume"):
            close = difflib.get_close_matches(key, fields, 1)
            raise ValueError(f"no setting {key!r}: " + (f"did you mean {close[0]!r}?" if close else "--help lists them"))
        given[key] = text
    resume, preset = given.pop("resume", ""), given.pop("preset", "")
    if resume and (given or preset):
        raise ValueError("--resume goes on with the settings of the stopped run: give no others beside it")
    if preset and preset not in PRESETS:
        raise ValueError(f"no preset {preset!r}: choose one of {', '.join(PRESETS)}")
    values = dict(PRESETS.get(preset, {}))
    for key, text in given.items():
        values[key] = convert(key, text, fields[key].type)
        print(f"{key} = {values[key]!r}")
    return Config(**values), resume


def convert(key: str, text: str, kind: type):
    if kind is bool:
        if text.lower() not in ("true", "false"):
            raise ValueError(f"{key}={text!r}: write true or false")
        return text.lower() == "true"
    try:
        value = kind(text)
    except ValueError:
        raise ValueError(f"{key}={text!r}: it must be {'a whole number' if kind is int else 'a number'}") from None
    if kind is float and not math.isfinite(value):
        raise ValueError(f"{key}={text!r}: it must be finite")
    return value


def help_text() -> str:
    lines = [__doc__.split("\n\n")[0], "", "usage: python train.py [--preset=NAME] [--key=value ...] | --resume=FOLDER", ""]
    lines += [f"  --{f.name}={f.default}\n        {f.metadata['why']}" for f in dataclasses.fields(Config)]
    lines += ["", "presets (sets of the above; single settings override them):"]
    lines += [f"  --preset={name}: {' '.join(f'{k}={v}' for k, v in values.items())}" for name, values in PRESETS.items()]
    return "\n".join(lines)


def open_run(c: Config, resume: str) -> tuple[Config, dict]:
    """The run's folder, made or found, and the state to start from. ValueError if a run would be overwritten."""
    if resume:
        state = load(Path(resume) / "last.pt")
        path = Path(resume).resolve()
        c = Config(**{**state["config"], "out": str(path.parent), "name": path.name})
        done = sum(s.steps for s in stages(c)[: state["stage"]]) + state["step"]
        metrics = path / "metrics.jsonl"
        if rank() == 0:
            metrics.write_text("".join(metrics.read_text().splitlines(keepends=True)[:done]))  # what came after last.pt is redone
        return c, state
    files = ("init", "imitate", "train_data", "test_data", "tokenizer")
    given = {name: Path(getattr(c, name)) for name in files if getattr(c, name)}
    if c.init and not given["init"].exists():
        raise ValueError(f"no {c.init}: --init takes a .pt file or a folder; README: how a model is downloaded into one")
    if c.tokenizer and not given["tokenizer"].is_dir():
        del given["tokenizer"]  # the name of one of tiktoken's
    c = dataclasses.replace(c, **{name: str(path.resolve()) for name, path in given.items()})  # valid from other folders, too
    folder = Path(c.out) / c.name
    if (folder / "metrics.jsonl").exists():
        raise ValueError(f"{folder} holds a run: --resume={folder} goes on with it, --name=... starts another beside it")
    folder.mkdir(parents=True, exist_ok=True)
    if rank() == 0:
        (folder / "config.json").write_text(json.dumps(dataclasses.asdict(c), indent=1) + "\n")
    if shutil.disk_usage(folder).free < 100 * 2**20:
        raise ValueError(f"less than 100 MiB are free for {folder}: make room or choose another --out")
    return c, {}


def main() -> None:
    if {"-h", "--help"} & set(sys.argv[1:]):
        print(help_text())
        return
    start_ranks()
    folder = "FOLDER"
    try:
        c, state = open_run(*parse_args(sys.argv[1:]))
        folder = Path(c.out) / c.name
        print(f"{folder}: {c.task}, size {c.size}, seed {c.seed}, on {pick_device(c.device)}")
        train(c, state)
    except (ValueError, OSError, FloatingPointError) as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit(f"stopped; go on with: python train.py --resume={folder}")
    except RuntimeError as error:
        if not lost_a_rank(error):
            raise
        sys.exit(f"error: rank {rank()} stops: another process has ended; go on with: torchrun ... train.py --resume={folder}")
    if torch.cuda.is_available():
        torch.cuda.empty_cache()  # for the report, which another process makes
    code = 0
    if rank() == 0 and c.report:  # a process of its own: eval.py stands behind train.py, and can be run again at any time
        code = subprocess.run([sys.executable, Path(__file__).with_name("eval.py"), folder]).returncode
    leave(code)
    if code:
        sys.exit(code)


if __name__ == "__main__":
    main()
