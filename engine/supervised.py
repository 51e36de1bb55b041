"""The supervised stages: the base model from demonstrations, and dialogues to imitate (STaR, Pair-SFT)."""

from random import Random

import torch
import torch.nn.functional as F
from torch import Tensor

from data import Environment, seeded
from data.demonstrations import demonstration
from engine.memory import in_chunks, micro_batches
from engine.processes import average_gradients, my_rows, rank
from engine.run import Run, learning_rate
from engine.sharding import unsharded
from model import GPT
from rollout import right_pad, sample_dialogues

OWN_ONE_IN = 3  # of the wrong first attempts; the others are made up, see data/demonstrations.py


def supervise(run: Run, index: int, stage) -> None:
    """Trains the policy through a supervised stage. The loop is that of `reinforce` in train.py."""
    c, policy, optimizer = run.c, run.policy, run.start_stage(index)
    weights = optimizer.param_groups[0]["params"]
    for step in run.steps_left(index, stage):
        batch = supervised_batch(c, stage.name, step, run.env, policy, run.traces)
        tokens, total = int(batch["masks"][:, :, 1:].sum()), 0.0
        for micro in micro_batches(batch, c.micro_batch):
            loss = supervised_loss(policy, micro, tokens)
            loss.backward()
            total += loss.item()
        average_gradients(weights)
        grad_norm = torch.nn.utils.clip_grad_norm_(weights, c.max_grad_norm).item()
        optimizer.param_groups[0]["lr"] = learning_rate(stage, step)
        optimizer.step()
        optimizer.zero_grad()
        run.log_and_save(index, stage, step, {"loss": total, "grad_norm": grad_norm}, None)


def supervised_loss(model: GPT, batch: dict, tokens: int) -> Tensor:
    """Cross-entropy over the taught tokens of a (micro-)batch. `tokens` is their number in the whole batch:
    micro-batches add up.
    """
    mask = batch["masks"][:, 0, 1:]
    hidden, targets = model.hidden(batch["ids"][:, :-1])[mask], batch["ids"][:, 1:][mask]  # [N, C], [N]

    def score(hidden, targets):
        return (F.cross_entropy(model.head(hidden).float(), targets, reduction="none"),)

    return in_chunks(score, model.config.vocab_size, hidden, targets)[0].sum() / tokens


def supervised_batch(c, stage_name: str, step: int, env: Environment, model: GPT, traces: list) -> dict:
    """This process's share of a step's dialogues: `ids` [B, T] and `masks` [B, 1, T], the tokens to teach.

    `traces` are the dialogues to imitate, each (ids, taught).
    """
    if stage_name == "imitate":
        drawn = Random(seeded(c.seed, "imitate", step)).choices(traces, k=c.batch)
        dialogues = [drawn[i] for i in my_rows(c.batch)]
    else:
        dialogues = demonstrations(c, env, model, step)
    device = model.embed.weight.device
    ids, _ = right_pad([ids for ids, _ in dialogues], 0, device)
    taught, _ = right_pad([[int(t) for t in taught] for _, taught in dialogues], 0, device)
    return {"ids": ids, "masks": taught.bool()[:, None]}


def demonstrations(c, env: Environment, model: GPT, step: int) -> list[tuple[list[int], list[bool]]]:
    """This process's share of the base's dialogues of one step, each (ids, taught)."""
    turns = demonstration_turns(step)
    mine = my_rows(max(1, c.base_batch * 2 // turns))  # longer dialogues, fewer of them
    problems = [env.demo_problem(step * c.base_batch + i, size_of(c, step, i)) for i in mine]
    attempts = [None] * len(problems)
    if turns == 2 and step >= c.own_from * c.base_steps:
        sampler, prompts = unsharded(model), env.prompts(problems[::OWN_ONE_IN])
        seed = seeded(c.seed, "own", step, rank())
        generator = torch.Generator(model.embed.weight.device).manual_seed(seed)
        sampling = [], c.max_new, c.temperature, generator, c.sample_batch
        own = sample_dialogues(sampler, env.tokenizer, prompts, *sampling)
        attempts[::OWN_ONE_IN] = [texts[0] for texts in own.texts]
    dialogues, shares = [], (c.right_first, c.copy, c.right, c.slip)
    for i, problem, attempt in zip(mine, problems, attempts, strict=True):
        rng = Random(seeded(c.seed, "demo", step, i))
        dialogues.append(demonstration(env, problem, rng, turns, *shares, attempt))
    return dialogues


def size_of(c, step: int, i: int) -> int:
    """The size of a demonstration's problem. First the sizes are mixed, from half of `c.size` on: what is
    learned on short numbers helps with long ones, so the base needs fewer steps (ours).
    """
    if step >= c.easy_until * c.base_steps:
        return c.size
    return Random(seeded(c.seed, "size", step, i)).randint((c.size + 1) // 2, c.size)


def demonstration_turns(step: int) -> int:
    """Two turns, but in one batch of sixteen five and in another ten, so that turns 3, 4, ... are not
    foreign.
    """
    if step % 16 == 7:
        return 5
    if step % 16 == 15:
        return 10
    return 2
