"""Many dialogues: sampled in parts that fit the memory, with first attempts by another model if asked for."""

import torch
import torch.nn.functional as F
from torch import Tensor

from data import Environment, Problem, seeded
from engine.processes import rank
from engine.sharding import unsharded
from model import GPT
from rollout import Rollout, sample_dialogues


def sample_many(
    model: GPT,
    env: Environment,
    prompts: list[list[int]],
    requests: list[list[int]],
    c,
    temperature: float,
    generator: torch.Generator,
) -> Rollout:
    """`sample_dialogues` of all prompts, `c.sample_batch` at a time: that bounds the KV cache."""
    rollouts = []
    for i in range(0, len(prompts), c.sample_batch):
        part = prompts[i : i + c.sample_batch]
        rollouts.append(
            sample_dialogues(model, env.tokenizer, part, requests, c.max_new, temperature, generator)
        )
    return concatenate(rollouts)


def training_rollouts(
    c, env: Environment, policy: GPT, problems: list[Problem], turns: int, key: tuple, reference: GPT
) -> Rollout:
    """A dialogue on each problem, at the training temperature. `key` makes the seeds; each process has its
    own.

    For the first `c.offline_share` of the problems the reference makes the first attempt (paper, section
    5.3).
    """
    offline, parts = round(c.offline_share * len(problems)), []
    if offline:
        generator = training_generator(policy, c.seed, "offline", *key)
        parts.append(offline_rollouts(c, env, policy, problems[:offline], turns, generator, reference))
    if offline < len(problems):
        generator = training_generator(policy, c.seed, "online", *key)
        prompts, requests = env.prompts(problems[offline:]), [env.correction_request] * (turns - 1)
        parts.append(sample_many(unsharded(policy), env, prompts, requests, c, c.temperature, generator))
    return concatenate(parts)


def training_generator(policy: GPT, *key) -> torch.Generator:
    return torch.Generator(policy.embed.weight.device).manual_seed(seeded(*key) + rank())


def offline_rollouts(
    c,
    env: Environment,
    policy: GPT,
    problems: list[Problem],
    turns: int,
    generator: torch.Generator,
    first: GPT,
) -> Rollout:
    """Dialogues whose first attempt the model `first` makes. It is context only: its masks are False."""
    given = sample_many(first, env, env.prompts(problems), [], c, c.temperature, generator)
    prompts = []
    for b, ended in enumerate(given.ended[:, 0].tolist()):
        end = [] if ended else [env.tokenizer.end_id]  # closes an attempt that was cut off
        prompts.append(given.row(b) + end + env.correction_request)
    requests = [env.correction_request] * (turns - 2)
    rest = sample_many(unsharded(policy), env, prompts, requests, c, c.temperature, generator)
    return Rollout(
        rest.ids,
        rest.lengths,
        torch.cat((torch.zeros_like(rest.masks[:, :1]), rest.masks), dim=1),
        rest.log_probs,
        torch.cat((given.ended, rest.ended), dim=1),
        [a + b for a, b in zip(given.texts, rest.texts, strict=True)],
    )


def concatenate(parts: list[Rollout]) -> Rollout:
    """The rows of several rollouts as one rollout, padded to the longest."""
    width = max(part.ids.shape[1] for part in parts)

    def join(name: str) -> Tensor:
        tensors = [getattr(part, name) for part in parts]
        return torch.cat([F.pad(t, (0, width - t.shape[-1])) for t in tensors])

    return Rollout(
        join("ids"),
        torch.cat([part.lengths for part in parts]),
        join("masks"),
        join("log_probs"),
        torch.cat([part.ended for part in parts]),
        [row for part in parts for row in part.texts],
    )
