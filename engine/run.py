"""A run from its first step to its last: its parts, what it writes, and where a stopped one goes on."""

import math
import os
import time
from collections import deque
from collections.abc import Iterator
from pathlib import Path

import torch

from data.demonstrations import read_traces
from data.reading import reading
from engine.build import (
    check_lengths,
    held_out_of,
    load_model,
    make_environment,
    make_model,
    makes_base,
    pick_device,
)
from engine.checkpoints import checkpoint_of, save
from engine.folder import begin, write
from engine.log import log_step, warnings_of
from engine.lora import add_lora, without_lora
from engine.optim import Learner, master_weights
from engine.options import require
from engine.processes import rank, ranks
from engine.settings import Settings
from engine.sharding import shard, unsharded
from engine.threads import with_best_threads
from model import GPT


class Run:
    """What a run carries from step to step, apart from the algorithm.

    `state` is the content of last.pt, or {} for a new run. `stages` are all that the run goes through.
    """

    def __init__(self, c: Settings, state: dict, stages: list):
        self.c, self.state, self.stages = c, state, stages
        self.folder, self.device = Path(c.out) / c.name, pick_device(c.device)
        self.env = make_environment(c)
        self.traces = read_traces(c, self.env) if c.imitate else []
        if c.report:  # a ValueError now rather than after the training
            held_out_of(c, c.eval_n)
        check_ranks(c, self.device)
        self.policy = start_or_resume(c, state, self.folder, self.device, self.env)
        if self.traces:
            longest, room = max(len(ids) for ids, _ in self.traces), self.policy.config.max_len
            mend = (
                f"{c.imitate} has a dialogue of {longest} tokens, the model has room for {room}: shorten it"
            )
            require(longest <= room, mend)
        self.learner = Learner(self.policy, master_weights(self.policy, state.get("model", {})))
        self.started = time.perf_counter() - state.get("seconds", 0.0)
        if state.get("step"):
            with reading(self.folder / "last.pt", "a state whose optimizers fit the model"):
                self.learner.start_stage(c, state["optimizers"])
        for large in ("model", "optimizers"):
            state.pop(large, None)  # they have been read
        if not state:
            self.write_first_files()

    def write_first_files(self) -> None:
        """What a new run has in its folder before its first step. Everything has been checked before."""
        if rank() == 0:
            begin(self.c, self.folder)
            write(self.folder / "metrics.jsonl", "")
        if not makes_base(self.c):
            save(self.folder / "base.pt", checkpoint_of(self.c, unsharded(self.policy), {}))
        self.save_state(0, 0, [])

    def stages_left(self) -> list[tuple[int, object]]:
        return list(enumerate(self.stages))[self.state.get("stage", 0) :]

    def start_stage(self, index: int, stage) -> GPT | None:
        """Makes fresh optimizers, unless a stopped run's are there. Returns the reference policy, None for a
        supervised stage. Before the first step of a resumed run the log's rows after last.pt are deleted:
        their steps will be made again, and nothing can fail any more.
        """
        resumed = index == self.state.get("stage") and self.state["step"] > 0
        self.recent, self.warned = deque(maxlen=20), set()
        self.first_step, self.stage_started = self.state["step"] if resumed else 0, time.perf_counter()
        if not resumed:
            self.learner.start_stage(self.c, None)
        reference = None
        if stage.weights is not None:
            reference = load_reference(self.c, stage, self.folder, self.device, self.policy)
        if rank() == 0 and (rows := self.state.pop("rows", None)) is not None:
            write(self.folder / "metrics.jsonl", "".join(f"{row}\n" for row in rows))
        return reference

    def steps_left(self, stage) -> Iterator[int]:
        return with_best_threads(range(self.first_step, stage.steps), self.policy)

    def update(self, stage, step: int, lr: float, loss: float) -> float:
        """The optimizers' step; returns the gradient's norm. FloatingPointError if that or the loss is no
        number.
        """
        norm = self.learner.gradient_norm(self.c.max_grad_norm)
        if not math.isfinite(loss + norm):
            raise FloatingPointError(
                f"the loss is {loss} and the gradient's norm {norm} at step {step + 1} of {stage.name}: "
                "start anew with a lower learning rate (--lr, --stage2_lr or --base_lr)"
            )
        self.learner.step(lr)
        return norm

    def log_and_save(self, index: int, stage, step: int, metrics: dict, example) -> None:
        pace = (time.perf_counter() - self.stage_started) / (step + 1 - self.first_step)
        log_step(self.c, self.folder, stage, step, metrics, time.perf_counter() - self.started, pace, example)
        self.recent.append(metrics)
        for name, line in warnings_of(stage, step, list(self.recent)).items():
            if name not in self.warned and rank() == 0:
                print(f"warning: {line}", flush=True)
            self.warned.add(name)
        if self.c.keep_every and (step + 1) % self.c.keep_every == 0:
            save(self.folder / f"{stage.name}-{step + 1}.pt", checkpoint_of(self.c, unsharded(self.policy)))
        if (step + 1) % self.c.save_every == 0 and step + 1 < stage.steps:
            self.save_state(index, step + 1, self.learner.optimizers)

    def end_stage(self, index: int, stage) -> None:
        save(self.folder / f"{stage.name}.pt", checkpoint_of(self.c, unsharded(self.policy)))
        self.save_state(index + 1, 0, [])

    def save_state(self, stage: int, step: int, optimizers: list) -> None:
        """Writes last.pt: all that the run needs to go on. Every step seeds its own generators, so none is
        saved.
        """
        if rank() == 0:
            with open(self.folder / "metrics.jsonl", "a", encoding="utf-8") as file:
                os.fsync(file.fileno())  # without its rows last.pt is of no use after a power cut
        progress = {"stage": stage, "step": step, "seconds": time.perf_counter() - self.started}
        progress["optimizers"] = [optimizer.state_dict() for optimizer in optimizers]
        save(self.folder / "last.pt", checkpoint_of(self.c, self.policy, self.learner.masters) | progress)


def start_or_resume(c: Settings, state: dict, folder: Path, device: torch.device, env) -> GPT:
    """The policy to start with, or that of a stopped run."""
    home = torch.device("cpu") if c.shard else device  # a model that is sharded need not fit on one device
    torch.manual_seed(c.seed)
    if state:
        policy = load_model(folder / "last.pt", home)[0]
    else:
        policy = make_model(c, env.tokenizer.vocab_size, home)
        check_lengths(c, env, policy.config.max_len)
        if c.lora:
            add_lora(policy, c.lora)
    policy.recompute = c.recompute
    if c.shard:
        shard(policy, device, state.get("model", {}))
    return policy


def load_reference(c: Settings, stage, folder: Path, device: torch.device, policy: GPT) -> GPT:
    """The policy that the stage's KL is measured against.

    With LoRA the base is the policy without its adapters, unless the adapters learned in the base stage, too.
    """
    if c.lora and stage.reference == "base" and not makes_base(c):
        return without_lora(policy)
    home = torch.device("cpu") if c.shard else device
    reference = load_model(folder / f"{stage.reference}.pt", home)[0].requires_grad_(False)
    if c.shard:
        shard(reference, device)
    return reference


def check_ranks(c: Settings, device: torch.device) -> None:
    """ValueError for what several processes can't do."""
    if ranks() == 1:
        return
    rows = min(c.batch, c.base_batch // 5) if makes_base(c) else c.batch
    gpus = torch.cuda.device_count()
    few = f"{rows} rows (--batch, or 1/5 of --base_batch) are too few for {ranks()} processes: one each"
    require(rows >= ranks(), few)
    require(device.type != "mps", "several processes need CUDA or --device=cpu: MPS can't sum gradients")
    enough = device.type == "cpu" or int(os.environ["LOCAL_RANK"]) < gpus
    require(enough, f"only {gpus} GPUs here: lower --nproc_per_node")
