"""SCoRe: train a small GPT to correct itself (Kumar et al., arXiv 2409.12917), from random weights to the final report.

    python train.py                                  the default run: out/default/
    python train.py --preset=smoke                   the whole pipeline in seconds
    python train.py --help                           every setting, with its reason
    python train.py --resume=out/default             go on after a stop, bit for bit

One loop trains all stages; a stage is a row of coefficients (see `stages`). A step reads: `rollout_batch` samples dialogues
and turns their correctness into advantages, `policy_loss` weighs their log-probs, `backward()` stands in `train`.

Where this differs from the paper, or the paper is silent:
- The reference is the base model throughout, as eq. 3 and 4 have it. Stage II starts with a fresh optimiser.
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
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from random import Random

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from data import load_task, train_problem
from data.demonstrations import demonstration
from data.tokenizer import CORRECTION_REQUEST, build_tokenizer, user_turn
from model import GPT, GPTConfig
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
    task: str = option("division", "a module in data/: division, countdown, addition, multiplication or your own")
    size: int = option(3, "difficulty of the task; for division the digits of the quotient")
    n_layer: int = option(3, "transformer blocks; fewer are quicker and may not learn the checks")
    n_head: int = option(4, "attention heads")
    dim: int = option(128, "width; 0.7 M parameters in all")
    # base model
    base_steps: int = option(700, "supervised steps; fewer, and its checks are not true, so there is nothing to correct by")
    base_batch: int = option(96, "dialogues a step; 48 and 256 made a worse base at equal cost (single runs)")
    base_lr: float = option(0.02, "Muon's learning rate on the block matrices")
    right_first: float = option(0.3, "share of demonstrations with a right first attempt")
    copy: float = option(0.33, "share of later turns that repeat the attempt before: the habit that RL must break")
    right: float = option(0.4, "share of later turns that are right; the rest are near misses, which make delta negative")
    own_from: float = option(0.3, "from this share of the steps on, wrong first attempts are the model's own samples")
    init: str = option("", "a base checkpoint to start from instead of making one")
    # reinforcement learning
    stage1_steps: int = option(190, "turn 2 alone is rewarded, turn 1 is held to the base (eq. 3)")
    stage2_steps: int = option(120, "both turns are rewarded, with the bonus (eq. 4 and 5)")
    interleave: int = option(1, "how often Stage I and II alternate, the steps shared out (v1 of the paper: 2)")
    batch: int = option(256, "rollouts an update")
    micro_batch: int = option(64, "rows a forward pass, as many as the CPU's cache likes; any number gives the same gradient")
    samples_per_problem: int = option(1, "rollouts of each problem; the rloo baseline needs 2 or more")
    baseline: str = option("split", "split: by the first attempt's outcome; rloo: by problem, as the paper names")
    lr: float = option(0.005, "Muon's learning rate in Stage I")
    stage2_lr: float = option(0.003, "the same in Stage II")
    adam_share: float = option(0.1, "AdamW (embeddings, norms, head) learns at this share of Muon's rate")
    max_grad_norm: float = option(1.0, "gradient clipping")
    max_new: int = option(24, "longest attempt in tokens; a longer one is cut and counts as wrong")
    temperature: float = option(1.0, "sampling and its log-probs; the paper trains at 1")
    stage2_weights: str = option("1,1", "reward weights of turn 1 and 2 in Stage II; 1,0 is single-turn RL")
    alpha: float = option(10.0, "bonus alpha * (r2 - r1) on turn 2 in Stage II (eq. 5); the paper's value")
    gamma: float = option(0.0, "credit of turn 1 for turn 2's reward; the paper's 0 keeps turn 1 from sabotage")
    beta1: float = option(0.01, "weak KL weight: turn 2 in Stage I")
    beta2: float = option(0.2, "strong KL weight: turn 1 in Stage I")
    stage2_beta1: float = option(0.3, "KL weight of both turns in Stage II: strong enough to keep the checks honest")
    adaptive_beta2: bool = option(False, "raise beta2 (up to 10x) until turn 1's KL term is as large as turn 2's policy term")
    offline_share: float = option(0.0, "share of rollouts whose first attempt the base gives (paper, section 5.3)")
    # what is shown and kept
    log_every: int = option(10, "steps between progress lines")
    show_every: int = option(100, "steps between transcripts")
    save_every: int = option(25, "steps between last.pt, from which a stopped run goes on")
    eval_n: int = option(2000, "held-out problems of the report")
    report: bool = option(True, "evaluate the checkpoints and write report.md at the end")

    def __post_init__(self):
        """One-line ValueErrors for values that can't work, each with its mend."""
        for name in ("size", "n_layer", "n_head", "dim", "base_steps", "base_batch", "batch", "micro_batch", "samples_per_problem",
                     "max_new", "log_every", "show_every", "save_every", "eval_n", "interleave"):  # fmt: skip
            check(getattr(self, name) >= 1, f"{name}={getattr(self, name)}: it must be 1 or more")
        for name in ("stage1_steps", "stage2_steps"):
            check(getattr(self, name) >= 0, f"{name}={getattr(self, name)}: 0 leaves the stage out")
        for name in ("right_first", "copy", "right", "own_from", "offline_share"):
            check(0 <= getattr(self, name) <= 1, f"{name}={getattr(self, name)}: a share is between 0 and 1")
        check(self.copy + self.right <= 1, f"copy + right = {self.copy + self.right:g} exceeds 1: lower one of them")
        check(self.temperature > 0, f"temperature={self.temperature}: training must sample, take 1.0")
        check(self.baseline in ("split", "rloo"), f"baseline={self.baseline!r}: choose split or rloo")
        check(self.baseline == "split" or self.samples_per_problem > 1, "baseline=rloo needs --samples_per_problem=2 or more")
        check(self.batch % self.samples_per_problem == 0,
              f"batch={self.batch} is not a multiple of samples_per_problem={self.samples_per_problem}")  # fmt: skip
        check(self.dim % (2 * self.n_head) == 0, f"dim={self.dim} must be a multiple of 2 * n_head={2 * self.n_head}")
        check(not set(self.name) & set("/\\"), f"name={self.name!r} is a folder below out, not a path: use --out for that")
        check(len(parse_weights(self.stage2_weights)) == 2,
              f"stage2_weights={self.stage2_weights!r}: two numbers such as 1,1")  # fmt: skip
        load_task(self.task)


def check(fine: bool, mend: str) -> None:
    if not fine:
        raise ValueError(mend)


def parse_weights(text: str) -> list[float]:
    try:
        return [float(w) for w in text.split(",")]
    except ValueError:
        return []


PRESETS = {
    "smoke": dict(name="smoke", size=2, n_layer=1, dim=64, base_steps=60, base_batch=64, stage1_steps=10, stage2_steps=10, batch=64,
                  micro_batch=64, eval_n=50, log_every=5, show_every=10),
    "plain": dict(name="plain", stage1_steps=0, stage2_steps=310, stage2_lr=0.005, alpha=0.0, stage2_beta1=0.01),
    "single": dict(name="single", stage1_steps=0, stage2_steps=310, stage2_lr=0.005, alpha=0.0, stage2_beta1=0.01,
                   stage2_weights="1,0"),
    "countdown": dict(name="countdown", task="countdown", size=12),
}  # fmt: skip


@dataclass
class Stage:
    """A row of coefficients; `weights` None means supervised. The first number of a pair is turn 1's."""

    name: str
    steps: int
    lr: float
    weights: tuple[float, float] | None = None
    alpha: float = 0.0
    betas: tuple[float, float] = (0.0, 0.0)


def stages(c: Config) -> list[Stage]:
    """The whole curriculum. Stage I is eq. 3, Stage II eq. 4 with the bonus of eq. 5."""
    rows = [] if c.init else [Stage("base", c.base_steps, c.base_lr)]
    for _ in range(c.interleave):
        rows += [
            Stage("stage1", c.stage1_steps // c.interleave, c.lr, (0.0, 1.0), 0.0, (c.beta2, c.beta1)),
            Stage("stage2", c.stage2_steps // c.interleave, c.stage2_lr, tuple(parse_weights(c.stage2_weights)), c.alpha,
                  (c.stage2_beta1, c.stage2_beta1)),
        ]  # fmt: skip
    return [row for row in rows if row.steps]


# ------------------------------------------------------------------------------------------------------ one batch


def seeded(*key) -> int:
    """A seed for one purpose: nothing random outlives its step, so a resumed run draws what the unbroken one drew."""
    return Random("/".join(map(str, key))).getrandbits(63)


def demonstration_batch(c: Config, task, tokenizer, model: GPT, step: int) -> dict[str, Tensor]:
    """Dialogues to imitate: `ids` [B, T] and `masks` [B, 1, T], the tokens that the loss counts."""
    turns = 5 if step % 4 == 3 else 2  # one batch in four has long dialogues, else turns 3, 4, ... would be foreign
    n = max(1, c.base_batch * 2 // turns)
    problems = [train_problem(task, c.size, c.seed, step * c.base_batch + i) for i in range(n)]
    own = [None] * n
    if turns == 2 and step >= c.own_from * c.base_steps:
        own = [texts[0] for texts in rollouts(c, model, tokenizer, problems, 1, seeded(c.seed, "own", step)).texts]
    rows = [
        demonstration(task, tokenizer, p, Random(seeded(c.seed, "demo", step, i)), turns, c.right_first, c.copy, c.right, own[i])
        for i, p in enumerate(problems)
    ]
    device = model.embed.weight.device
    ids, _ = right_pad([ids for ids, _ in rows], 0, device)
    taught, _ = right_pad([[int(t) for t in taught] for _, taught in rows], 0, device)
    return {"ids": ids, "masks": taught.bool()[:, None]}


def rollouts(c: Config, model: GPT, tokenizer, problems, turns: int, seed: int, first: GPT | None = None) -> Rollout:
    """Dialogues sampled from the model at the training temperature; with `first`, that model makes the first attempts."""
    generator = torch.Generator(model.embed.weight.device).manual_seed(seed)
    follow_up = user_turn(tokenizer, CORRECTION_REQUEST)
    prompts = [user_turn(tokenizer, p.prompt) for p in problems]
    if first is None:
        return sample_dialogues(model, tokenizer, prompts, follow_up, turns, c.max_new, c.temperature, generator)
    given = sample_dialogues(first, tokenizer, prompts, follow_up, 1, c.max_new, c.temperature, generator)
    prompts = [given.row(b) + follow_up for b in range(len(problems))]
    rest = sample_dialogues(model, tokenizer, prompts, follow_up, turns - 1, c.max_new, c.temperature, generator)
    return given.followed_by(rest)


def rollout_batch(c: Config, stage: Stage, key, task, tokenizer, model: GPT, reference: GPT):
    """Samples two-turn dialogues and scores them: `ids` [B, T], `masks` [B, K, T], `advantages` [B, K]; and what to log."""
    stage_index, step = key
    groups = c.batch // c.samples_per_problem
    first_index = (stage_index * 10**6 + step) * groups + 10**9  # far from the problems of the demonstrations
    problems = [train_problem(task, c.size, c.seed, first_index + i // c.samples_per_problem) for i in range(c.batch)]
    offline = round(c.offline_share * c.batch)
    parts = []
    if offline < c.batch:
        parts.append(rollouts(c, model, tokenizer, problems[offline:], 2, seeded(c.seed, "online", *key)))
    if offline:
        parts.insert(0, rollouts(c, model, tokenizer, problems[:offline], 2, seeded(c.seed, "offline", *key), reference))
    rollout = concatenate(parts)
    correct = correctness(task, problems, rollout.texts, rollout.ended)  # [B, K]
    rewards = turn_rewards(correct, stage.weights, stage.alpha)
    problem_of = torch.arange(c.batch, device=correct.device) // c.samples_per_problem
    advantage = advantages(turn_returns(rewards, c.gamma), correct, problem_of, c.baseline)
    changed = [texts[0] != texts[1] for texts in rollout.texts]
    row = {
        "acc_t1": correct[:, 0].float().mean().item(),
        "acc_t2": correct[:, 1].float().mean().item(),
        "reward": rewards.sum(1).mean().item(),
        "change_rate": sum(changed) / len(changed),
        "advantage_t2": advantage[:, 1].abs().mean().item(),
        "truncated": 1 - rollout.ended.float().mean().item(),
        "no_signal": bool((advantage == 0).all()),
    }
    shown = [problems[-1], rollout.texts[-1], correct[-1].tolist()]
    return {"ids": rollout.ids, "masks": rollout.masks.transpose(0, 1), "advantages": advantage}, row, shown


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


LOGITS_AT_ONCE = 2**25  # numbers in a chunk of logits: 128 MiB; a toy batch is one chunk


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
        log_probs = F.log_softmax(model.head(hidden).float() / temperature, dim=-1)  # [n, V]
        with torch.no_grad():
            reference_log_probs = F.log_softmax(reference.head(reference_hidden).float() / temperature, dim=-1)
        probs = log_probs.exp()
        kl = (probs * (log_probs - reference_log_probs)).sum(-1)
        return log_probs.gather(1, targets[:, None])[:, 0], kl, -(probs * log_probs).detach().sum(-1)

    size = max(1, LOGITS_AT_ONCE // model.config.vocab_size)
    if len(hidden) <= size:
        return score(hidden, reference_hidden, targets)
    chunks = zip(hidden.split(size), reference_hidden.split(size), targets.split(size), strict=True)
    return tuple(map(torch.cat, zip(*(checkpoint(score, *chunk, use_reentrant=False) for chunk in chunks), strict=True)))


def policy_loss(model: GPT, reference: GPT, batch: dict, betas, temperature: float, rows: int) -> tuple[Tensor, dict]:
    """A loss whose gradient is that of   mean over rows of  sum over turns of  -E[A_k] + beta_k * KL_k   (eq. 2 to 4).

    REINFORCE: each token's log-prob weighs its turn's advantage. The KL of a turn is the sum over its tokens of the exact
    KL(policy || reference) over the vocabulary. Its gradient has two parts: that of each token's KL, and, since a token
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
    kl_turns = kl_of.sum((0, 2)) / rows  # [K] nats a row
    return loss, {"kl_t1": kl_turns[0].item(), "kl_t2": kl_turns[1].item(), "entropy": entropy.sum().item() / rows}


def supervised_loss(model: GPT, batch: dict, tokens: int) -> Tensor:
    """Cross-entropy over the taught tokens; `tokens` is their number in the whole batch."""
    mask = batch["masks"][:, 0, 1:]
    logits = model.head(model.hidden(batch["ids"][:, :-1])[mask])  # [N, V]
    return F.cross_entropy(logits.float(), batch["ids"][:, 1:][mask], reduction="sum") / tokens


# ------------------------------------------------------------------------------------------------------ the loop


def make_model(c: Config, vocab_size: int) -> GPT:
    """A toy GPT with random weights."""
    return GPT(GPTConfig(vocab_size, n_layer=c.n_layer, n_head=c.n_head, n_kv_head=c.n_head, dim=c.dim,
                         head_dim=c.dim // c.n_head, ffn_dim=3 * c.dim))  # fmt: skip


def make_optimizers(c: Config, model: GPT) -> list[torch.optim.Optimizer]:
    """Muon for the matrices of the blocks, AdamW for all else."""
    matrices = [p for p in model.blocks.parameters() if p.ndim == 2]
    others = [p for p in model.parameters() if not any(p is m for m in matrices)]
    return [
        torch.optim.Muon(matrices, lr=0.0, momentum=0.95, weight_decay=0.0),
        torch.optim.AdamW(others, lr=0.0, betas=(0.9, 0.95), weight_decay=0.0),
    ]


def learning_rate(stage: Stage, step: int) -> float:
    """Ten steps of warm-up, then constant, then linearly to zero over the second half."""
    return stage.lr * min(1.0, (step + 1) / 10, 2 * (1 - step / stage.steps))


def split(batch: dict[str, Tensor], size: int):
    """The batch in micro-batches of `size` rows."""
    rows = len(batch["ids"])
    return [{name: t[i : i + size] for name, t in batch.items()} for i in range(0, rows, size)]


def betas_of(c: Config, stage: Stage, before: dict) -> tuple[float, float]:
    """The stage's KL weights; with `adaptive_beta2`, turn 1's in Stage I from what the step before measured (form: ours).

    The paper balances the sizes of turn 1's KL term and turn 2's policy term and gives no formula.
    """
    beta, rest = stage.betas
    if c.adaptive_beta2 and stage.name == "stage1" and "kl_t1" in before:
        beta *= min(10.0, max(1.0, before["advantage_t2"] / max(beta * before["kl_t1"], 1e-9)))
    return beta, rest


def train(c: Config, state: dict) -> None:
    """Runs the stages from `state` on, which is the content of last.pt, or {} for a new run."""
    folder, device, task = Path(c.out) / c.name, pick_device(c.device), load_task(c.task)
    tokenizer = build_tokenizer(task.DIGITS_PER_TOKEN)
    torch.manual_seed(c.seed)
    model = load_model(c.init, device)[0] if c.init and not state else make_model(c, tokenizer.n_vocab).to(device)
    if state:
        model = load_model(folder / "last.pt", device)[0]
    else:
        if c.init:
            save(folder / "base.pt", checkpoint_of(c, model))
        save(folder / "last.pt", last_of(c, model, 0, 0, {}, 0.0, []))
    row, reference, started = state.get("row", {}), None, time.time() - state.get("seconds", 0.0)
    for index, stage in list(enumerate(stages(c)))[state.get("stage", 0) :]:
        optimizers = make_optimizers(c, model)
        first = state.get("step", 0) if index == state.get("stage") else 0
        if first:
            for optimizer, saved in zip(optimizers, state["optimizers"], strict=True):
                optimizer.load_state_dict(saved)
        if stage.weights is not None:
            reference = load_model(folder / "base.pt", device)[0].requires_grad_(False)
        pace = time.time()
        for step in range(first, stage.steps):
            betas, key, shown = betas_of(c, stage, row), (index, step), None
            if stage.weights is None:
                row = {}
                if (step + 1) % c.show_every == 0 or step == 0:  # not trained on: the base's points of the learning curve
                    _, row, shown = rollout_batch(c, stages(c)[-1], key, task, tokenizer, model, model)
                batch = demonstration_batch(c, task, tokenizer, model, step)
                taught = int(batch["masks"][:, :, 1:].sum())
            else:
                batch, row, shown = rollout_batch(c, stage, key, task, tokenizer, model, reference)
            for micro in split(batch, c.micro_batch):
                if stage.weights is None:
                    loss, parts = supervised_loss(model, micro, taught), {}
                else:
                    loss, parts = policy_loss(model, reference, micro, betas, c.temperature, len(batch["ids"]))
                loss.backward()
                for name, value in {"loss": loss.item(), **parts}.items():
                    row[name] = row.get(name, 0.0) + value
            row["grad_norm"] = torch.nn.utils.clip_grad_norm_(model.parameters(), c.max_grad_norm).item()
            if not math.isfinite(row["loss"] + row["grad_norm"]):
                raise FloatingPointError(f"the loss is {row['loss']} at step {step + 1} of {stage.name}: lower the learning "
                                         f"rate; the last good state is {folder}/last.pt")  # fmt: skip
            for optimizer, share in zip(optimizers, (1.0, c.adam_share), strict=True):
                for group in optimizer.param_groups:
                    group["lr"] = learning_rate(stage, step) * share
                optimizer.step()
                optimizer.zero_grad()
            seconds = time.time() - started
            row |= {"beta_t1": betas[0]}
            log_step(c, folder, stage, step, row, seconds, (time.time() - pace) / (step + 1 - first), shown)
            if (step + 1) % c.save_every == 0 and step + 1 < stage.steps:
                save(folder / "last.pt", last_of(c, model, index, step + 1, row, seconds, optimizers))
        save(folder / f"{stage.name}.pt", checkpoint_of(c, model))
        save(folder / "last.pt", last_of(c, model, index + 1, 0, row, time.time() - started, []))


def log_step(c: Config, folder: Path, stage: Stage, step: int, row: dict, seconds: float, pace: float, shown) -> None:
    """A row of metrics.jsonl; now and then a progress line and a transcript. `pace` is seconds a step."""
    with open(folder / "metrics.jsonl", "a") as file:
        file.write(json.dumps({"stage": stage.name, "step": step + 1, "seconds": round(seconds, 2), **row}) + "\n")
    last = step + 1 == stage.steps
    if (step + 1) % c.log_every == 0 or last:
        left = int(pace * (stage.steps - step - 1))
        line = f"{stage.name} {step + 1:4d}/{stage.steps}  {1 / pace:.2f} steps/s  ETA {left // 60}:{left % 60:02d}"
        if stage.weights is None:
            line += f"  loss {row['loss']:.3f}"
        else:
            line += (f"  reward {row['reward']:+.2f}  acc {100 * row['acc_t1']:.0f}% -> {100 * row['acc_t2']:.0f}%"
                     f"  changed {100 * row['change_rate']:.0f}%  KL {row['kl_t1']:.2f} {row['kl_t2']:.2f}")  # fmt: skip
            line += "  (all rewards equal: no gradient)" if row["no_signal"] else ""
        print(line, flush=True)
    if shown is not None and ((step + 1) % c.show_every == 0 or last or step == 0):
        problem, texts, correct = shown
        turns = "   ".join(
            f"turn {k + 1}: {t} {'right' if ok else 'wrong'}" for k, (t, ok) in enumerate(zip(texts, correct, strict=True))
        )
        print(f"    {problem.prompt}   {turns}", flush=True)


# ------------------------------------------------------------------------------------------------------ files


def checkpoint_of(c: Config, model: GPT) -> dict:
    return {"config": dataclasses.asdict(c), "gpt": dataclasses.asdict(model.config), "model": model.state_dict()}


def last_of(c: Config, model: GPT, stage: int, step: int, row: dict, seconds: float, optimizers) -> dict:
    """All that a run needs to go on: no generator's state, since every step seeds its own."""
    return checkpoint_of(c, model) | {
        "stage": stage, "step": step, "row": row, "seconds": seconds, "optimizers": [o.state_dict() for o in optimizers]
    }  # fmt: skip


def save(path: Path, content: dict) -> None:
    """Writes a checkpoint whole or not at all: a kill or a full disk leaves the file that was there."""
    draft = path.with_suffix(".tmp")
    with open(draft, "wb") as file:
        torch.save(content, file)
        file.flush()
        os.fsync(file.fileno())
    os.replace(draft, path)


def load(path: str | Path) -> dict:
    """A checkpoint's content, read without unpickling code. ValueError if it is none."""
    if not Path(path).is_file():
        raise ValueError(f"no checkpoint {path}: give the path of a .pt file that train.py wrote")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
        content["config"], content["gpt"], content["model"]
    except Exception as error:  # torch.load raises many kinds on a damaged file
        raise ValueError(f"{path} is not a checkpoint of train.py: {str(error).splitlines()[0][:100]}") from None
    return content


def load_model(path: str | Path, device) -> tuple[GPT, Config]:
    """The model of a checkpoint and the config of its run; the model's sizes come from the file."""
    content = load(path)
    model = GPT(GPTConfig(**content["gpt"]))
    model.load_state_dict(content["model"])
    return model.to(device), Config(**content["config"])


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
        metrics.write_text("".join(metrics.read_text().splitlines(keepends=True)[:done]))  # what came after last.pt is redone
        return c, state
    folder = Path(c.out) / c.name
    if (folder / "metrics.jsonl").exists():
        raise ValueError(f"{folder} holds a run: --resume={folder} goes on with it, --name=... starts another beside it")
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(dataclasses.asdict(c), indent=1) + "\n")
    if shutil.disk_usage(folder).free < 100 * 2**20:
        raise ValueError(f"less than 100 MiB are free for {folder}: make room or choose another --out")
    return c, {}


def main() -> None:
    if {"-h", "--help"} & set(sys.argv[1:]):
        print(help_text())
        return
    try:
        c, state = open_run(*parse_args(sys.argv[1:]))
        folder = Path(c.out) / c.name
        print(f"{folder}: {c.task}, size {c.size}, seed {c.seed}, on {pick_device(c.device)}")
        train(c, state)
    except (ValueError, OSError, FloatingPointError) as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit(f"stopped; go on with: python train.py --resume={folder}")
    if c.report:  # a process of its own: eval.py stands behind train.py, and can be run again at any time
        sys.exit(subprocess.run([sys.executable, Path(__file__).with_name("eval.py"), folder]).returncode)


if __name__ == "__main__":
    main()
