"""SCoRe: a small GPT learns to correct its own answers (Kumar et al., arXiv 2409.12917).

    python train.py                                  the default run, into out/default/
    python train.py --preset=smoke                   all parts in seconds; too short to learn anything
    python train.py --help                           every setting with its reason
    python train.py --resume=out/default             go on after a stop

Read it from the end. `train` goes through the stages. `reinforce` is the loop of an RL stage, with
`backward()` and `optimizer.step()` in it. `rollout_batch` samples dialogues and turns their rewards into
advantages, and `policy_loss` is the loss on them. `stages` says which coefficients they get when.

Where this differs from the paper:
- Stage II has a KL weight of its own, because the bonus makes turn 2's advantages 11-fold.
- We take the last checkpoint of each stage. The paper takes the one with the highest training reward.
Where the paper says nothing:
- The baseline has 4 dialogues of each problem (RLOO needs two or more).
- The KL is that of each turn, given its prompt. Its gradient is exact: see `policy_loss`.
- The reference of the KL is the base, in Stage II too.
- We sum over a turn's tokens and take the mean over rows: the gradient of a sequence's expected reward.
- Each stage has a fresh optimizer and the schedule of `learning_rate`.
What follows from the equations: with gamma = 0 the bonus alpha (r2 - r1) only multiplies turn 2's advantage
by 1 + alpha in expectation, because turn 2 can't change r1. So it sets how much turn 2's reward weighs
against turn 1's and against the KL.
"""

import sys
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from data import Environment, seeded
from data.reading import checked
from engine import build
from engine.checkpoints import open_run
from engine.cli import run_alone, run_script
from engine.hf import load_pretrained
from engine.memory import in_chunks, micro_batches
from engine.options import option, require
from engine.processes import average_gradients, my_rows, rank
from engine.run import Run, learning_rate, rollout_metrics
from engine.settings import STEPS, Settings, parse_args
from engine.sharding import unsharded
from engine.supervised import supervise
from model import GPT
from rewards import check_rewards, correctness, turn_returns, turn_rewards
from rollout import offline_dialogues, sample_dialogues


@dataclass
class Config(Settings):
    """SCoRe: stages, rewards, KL"""

    turns: int = option(2, "attempts; each beyond 2 adds a part to Stage I, as long as the first (A.1)", 2, 6)
    stage1_steps: int = option(400, "updates that reward turn 2, hold turn 1 to the base (eq. 3)", 0, STEPS)
    stage2_steps: int = option(60, "updates that reward both turns, with the bonus (eq. 4 and 5)", 0, STEPS)
    batch: int = option(128, "dialogues an update", 1, 10**4)
    samples_per_problem: int = option(4, "dialogues of each problem: each is compared with the others", 1)
    lr: float = option(0.0007, "learning rate in Stage I", 0, 10)
    stage2_lr: float = option(0.0003, "learning rate in Stage II", 0, 10)
    max_grad_norm: float = option(1.0, "gradients are shortened to it; in Stage II most are longer", 1e-6)
    max_new: int = option(8, "longest attempt in tokens; a longer one is cut off and is wrong", 1, 10**5)
    temperature: float = option(1.0, "of sampling and of the loss; the paper's value", 1e-3, 1e3)
    alpha: float = option(10.0, "bonus alpha * (r2 - r1) of Stage II (eq. 5); the paper's value", 0, 1e9)
    gamma: float = option(0.0, "a turn's share of the next one's return in Stage II; the paper's value", 0, 1)
    beta1: float = option(0.2, "the paper's name for the KL weight of TURN 2 in Stage I: weak", 0)
    beta2: float = option(0.5, "the paper's name for the KL weight of TURN 1 in Stage I: strong", 0)
    stage2_beta: float = option(0.3, "KL weight in Stage II; large, as the bonus makes rewards 11-fold", 0)
    stage2_weight1: float = option(1.0, "Stage II's weight of turn 1's reward; 0 also drops its KL", 0, 1e9)
    stage2_weight2: float = option(1.0, "Stage II's weight of later rewards; 0 also drops their KL", 0, 1e9)
    offline_first: bool = option(False, "an ablation of section 5.3: the base makes all first attempts of RL")

    def __post_init__(self):
        super().__post_init__()
        n = self.samples_per_problem
        require(self.turns == 2 or not self.offline_first, "offline_first needs turns=2")
        require(self.batch % n == 0, f"batch={self.batch} is not a multiple of samples_per_problem={n}")
        require(self.stage2_weight2 or not self.alpha, "stage2_weight2=0 drops turn 2: alpha must be 0")
        require(self.stage2_weight1 or not self.gamma, "stage2_weight1=0 drops turn 1: gamma must be 0")
        require(not (self.shard and self.offline_first), "shard needs offline_first=false")


@dataclass
class Stage:
    """A row of coefficients. `weights` and `betas`: one for each turn. A supervised stage has no weights."""

    name: str
    steps: int
    lr: float
    weights: tuple[float, ...] = ()  # of the turns' rewards
    alpha: float = 0.0
    gamma: float = 0.0
    betas: tuple[float, ...] = ()  # of the turns' KL
    reference: str = "base"  # the checkpoint that the KL is measured against


def stages(c: Config) -> list[Stage]:
    """What a run goes through: the base, Stage I (eq. 3), Stage II (eq. 4 with the bonus of eq. 5).

    The base stage is there if `makes_base(c)`. With `imitate` the stage of that name follows. Stages of 0
    steps are left out. With three turns Stage I has two parts (ICLR version, A.1): `stage1` rewards turn
    2 and holds turn 1 to the base, `stage1b` rewards turn 3 and holds turns 1 and 2 to the model after
    `stage1`; and so on with more turns. A turn of weight 0 in Stage II has no KL either.
    """
    rows = [Stage("base", c.base_steps, c.base_lr)] if build.makes_base(c) else []
    rows += [Stage("imitate", c.imitate_steps, c.lr)] if c.imitate else []
    reference = "base"
    for turn, name in enumerate(("stage1", "stage1b", "stage1c", "stage1d", "stage1e")[: c.turns - 1], 1):
        weights, betas = (0.0,) * turn + (1.0,), (c.beta2,) * turn + (c.beta1,)  # `turn` turns are held
        rows.append(Stage(name, c.stage1_steps, c.lr, weights, betas=betas, reference=reference))
        reference = name
    weights = (c.stage2_weight1,) + (c.stage2_weight2,) * (c.turns - 1)
    betas = tuple(c.stage2_beta if weight else 0.0 for weight in weights)
    rows.append(Stage("stage2", c.stage2_steps, c.stage2_lr, weights, c.alpha, c.gamma, betas))
    return [row for row in rows if row.steps]


# ---------------------------------------------------------------------------------- dialogues and rewards


def rollout_batch(c: Config, stage: Stage, update: int, env: Environment, policy: GPT, reference: GPT):
    """Samples dialogues (`sample_dialogues` in rollout.py) and scores them.

    `update` is the number of the update in the run; it decides the problems and the random numbers. Returns
    the batch with `ids` [B, T], `masks` [B, K, T] and `advantages`, `correct`, `rewards` [B, K] of this
    process's B rows; what to log of it; and an example (problem, texts, correct) to show.
    """
    rows, n = my_rows(c.batch), c.samples_per_problem  # with one process: all rows
    problems = [env.problem((update * c.batch + row) // n) for row in rows]
    prompts, requests = env.prompts(problems), [env.correction_request] * (len(stage.weights) - 1)
    seed = seeded(c.seed, "rollouts", update, rank())
    generator = torch.Generator(policy.embed.weight.device).manual_seed(seed)
    sampling = requests, c.max_new, c.temperature, generator, c.sample_batch
    if c.offline_first:
        rollout = offline_dialogues(reference, policy, env.tokenizer, prompts, *sampling)
    else:
        sampler = unsharded(policy) if c.shard else policy
        rollout = sample_dialogues(sampler, env.tokenizer, prompts, *sampling)

    correct, failures = correctness(env.task, problems, rollout.texts, rollout.ended)  # [B, K] bool
    rewards = turn_rewards(correct, stage.weights, stage.alpha)  # [B, K] <- change the reward here
    check_rewards(rewards, correct)
    advantage = advantages(turn_returns(rewards, stage.gamma), n)

    batch = {"ids": rollout.ids, "masks": rollout.masks, "advantages": advantage}
    batch |= {"correct": correct, "rewards": rewards}  # the loss needs neither; the report shows them
    metrics = rollout_metrics(rollout, correct, rewards, advantage, failures)
    return batch, metrics, (problems[-1], rollout.texts[-1], correct[-1].tolist())


def advantages(returns: Tensor, n: int) -> Tensor:
    """Each turn's return minus the mean return of the other dialogues on the same problem, [B, K].

    This is RLOO (Ahmadian et al., arXiv 2402.14740). `returns` [B, K] has the `n` dialogues of a problem one
    below the other; with n = 1 there is no baseline. What another dialogue got does not depend on what this
    one samples, so the baseline changes the gradient's noise and not its mean.
    """
    groups = returns.unflatten(0, (-1, n))  # [B / n, n, K]
    others = (groups.sum(1, keepdim=True) - groups) / max(1, n - 1)
    return (groups - others).flatten(0, 1)


# ---------------------------------------------------------------------------------- the loss


def policy_loss(
    model: GPT, reference: GPT, batch: dict, betas: tuple[float, ...], temperature: float, rows: int
) -> tuple[Tensor, dict]:
    """The loss of a (micro-)batch, and its parts. On average its gradient is that of eq. 2 to 4:

        mean over rows of  sum over turns k of  -E[return_k] + betas[k] * KL_k

    where turn k's expectation and KL are over its own tokens, given the dialogue before it. This is
    REINFORCE: the log-prob of each token is weighted by its credit, see `token_credit`. The KL of a turn is
    the sum over its tokens of the KL between the two next-token distributions, which depends on the weights
    directly, too.

    `batch` has `ids` [B, T], `masks` [B, K, T] bool and `advantages` [B, K]. Everything is divided by `rows`,
    the number of rows of the whole batch, so that the losses of micro-batches add up to the batch's. The
    parts are floats, divided likewise: `kl_t1` ... `kl_tK` in nats, and `entropy`, the sum over the sampled
    tokens.
    """
    ids, masks = batch["ids"], batch["masks"]
    is_sampled = masks.any(1)  # [B, T], N of them
    log_probs, kl, entropy = token_scores(model, reference, ids, is_sampled, temperature)  # [N] each
    kl_at = kl.new_zeros(ids.shape).masked_scatter(is_sampled, kl.detach())  # [B, T]
    credit = token_credit(batch["advantages"], kl_at, masks, betas)[is_sampled]  # [N]
    beta = (torch.tensor(betas, device=ids.device)[:, None] * masks).sum(1)[is_sampled]  # [N]
    loss = (beta * kl - credit * log_probs).sum() / rows
    kl_of_turns = (kl_at[:, None] * masks).sum((0, 2)).tolist()  # [K]
    parts = {f"kl_t{k}": value / rows for k, value in enumerate(kl_of_turns, 1)}
    return loss, parts | {"entropy": entropy.sum().item() / rows}


def token_credit(advantages: Tensor, kl: Tensor, masks: Tensor, betas: tuple[float, ...]) -> Tensor:
    """The weight of each token's log-prob, [B, T]: its turn's advantage - beta * (KL still to come).

    `advantages` [B, K], `kl` [B, T] the KL at each token, without gradient, `masks` [B, K, T] bool, `betas` K
    numbers. A token decides which contexts come after it. So it is charged, at its turn's beta, for the KL of
    all later tokens of the same turn, but not for its own and not for other turns'. Tokens outside the masks
    get 0.
    """
    kl_of = kl[:, None] * masks  # [B, K, T]
    kl_to_come = kl_of.flip(-1).cumsum(-1).flip(-1) - kl_of
    beta = torch.tensor(betas, device=kl.device)[None, :, None]  # [1, K, 1]
    return ((advantages[:, :, None] - beta * kl_to_come) * masks).sum(1)


def token_scores(
    model: GPT, reference: GPT, ids: Tensor, mask: Tensor, temperature: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Log-prob, KL(policy || reference) over the whole vocabulary, and entropy of each masked token, [N] in
    nats.

    `ids` [B, T]; `mask` [B, T] bool has N tokens, never a row's first. Both models' logits are divided by the
    sampler's temperature. Gradients flow to the policy through the log-prob and the KL. The head is applied
    to the N tokens alone and in chunks, so no tensor [B, T, V] ever exists.
    """
    inputs, targets, mask = ids[:, :-1], ids[:, 1:][mask[:, 1:]], mask[:, 1:]
    hidden = model.hidden(inputs)[mask]  # [N, C]
    with torch.no_grad():
        reference_hidden = reference.hidden(inputs)[mask]

    def score(hidden, reference_hidden, targets):  # [n, C], [n, C], [n]
        with torch.no_grad():
            log_q = (reference.head(reference_hidden).float() / temperature).log_softmax(-1)  # [n, V]
        log_p = (model.head(hidden).float() / temperature).log_softmax(-1)  # [n, V]
        p = log_p.exp()
        # "- p + q" adds up to 0. It makes the gradient exactly 0 where p = q, which rounding would miss; Adam
        # makes a full step of any gradient, however small.
        kl = (p * (log_p - log_q) - p + log_q.exp()).sum(-1)
        entropy = -(p * log_p).sum(-1).detach()
        return log_p.gather(1, targets[:, None])[:, 0], kl, entropy

    return in_chunks(score, model.config.vocab_size, hidden, reference_hidden, targets)


# ---------------------------------------------------------------------------------- the loop


def train(c: Config, state: dict) -> None:
    """Runs all stages. `state` is the content of last.pt, or {} for a new run."""
    run = Run(c, state, stages(c))
    for index, stage in run.stages_left():
        if stage.weights:
            reinforce(run, index, stage)
        else:
            supervise(run, index, stage)
        run.end_stage(index, stage)


def reinforce(run: Run, index: int, stage: Stage) -> None:
    """Trains the policy through an RL stage."""
    c, policy, reference, optimizer = run.c, run.policy, run.load(stage.reference), run.start_stage(index)
    weights = optimizer.param_groups[0]["params"]
    for step in run.steps_left(index, stage):
        # 1. A batch of dialogues, sampled and scored.
        batch, metrics, example = rollout_batch(c, stage, index * STEPS + step, run.env, policy, reference)

        # 2. The gradient. Micro-batches bound the memory; their gradients add up to the whole batch's.
        sums = Counter()
        for micro in micro_batches(batch, c.micro_batch):
            loss, parts = policy_loss(policy, reference, micro, stage.betas, c.temperature, len(batch["ids"]))
            loss.backward()
            sums.update({"loss": loss.item(), **parts})  # adds up

        # 3. The update.
        average_gradients(weights)  # over the processes, if there are several
        grad_norm = torch.nn.utils.clip_grad_norm_(weights, c.max_grad_norm).item()
        optimizer.param_groups[0]["lr"] = learning_rate(stage, step)
        optimizer.step()
        optimizer.zero_grad()

        # 4. Show and save.
        run.log_and_save(index, stage, step, metrics | sums | {"grad_norm": grad_norm}, example)


def load_model(path: str | Path, device) -> tuple[GPT, Config]:
    """The model of a checkpoint and the config of its run. A Hugging Face folder has no run."""
    if Path(path).is_dir():
        return load_pretrained(path, device), Config(init=str(path), max_new=512, sample_batch=32)
    model, settings = build.load_model(path, device)
    return model, checked(Config, settings, path)  # a setting that was added since has its default


def main() -> int:
    c, resume = parse_args(sys.argv[1:], Config, (__doc__ or "").split("\n\nRead")[0])
    with open_run(c, resume, stages) as (c, state):
        folder = Path(c.out) / c.name
        print(f"{folder}: {c.task}, size {c.size}, seed {c.seed}, on {build.pick_device(c.device)}")
        train(c, state)
    if rank() == 0 and c.report:  # in a process of its own, so that it can be made again at any time
        html = f"--html={str(c.html).lower()}"
        return run_alone(Path(__file__).with_name("eval.py"), folder, f"--device={c.device}", html)
    return 0


if __name__ == "__main__":
    run_script(main)
