"""A run from its first step to its last: its parts, what it writes, and where a stopped one goes on."""

import json
import math
import os
import time
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
from engine.checkpoints import begin, checkpoint_of, save, write
from engine.lora import add_lora, without_lora
from engine.optim import make_optimizer, master_weights
from engine.options import require
from engine.processes import average, rank, ranks
from engine.report import FAILURES, transcript
from engine.settings import Settings
from engine.sharding import shard, unsharded
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
        sizes = self.policy.config  # with --init those of its model, and so they are recorded
        c.n_layer, c.n_head, c.dim = sizes.n_layer, sizes.n_head, sizes.dim
        longest, room = max((len(ids) for ids, _ in self.traces), default=0), self.policy.config.max_len
        mend = f"{c.imitate} has a dialogue of {longest} tokens, the model has room for {room}: shorten it"
        require(longest <= room, mend)
        self.masters = master_weights(self.policy, state.pop("model", {}))
        self.optimizer = None
        if state.get("step"):
            with reading(self.folder / "last.pt", "a state whose optimizer fits the model"):
                self.optimizer = make_optimizer(self.policy, self.masters, state.pop("optimizer"))
        self.started = time.perf_counter() - state.get("seconds", 0.0)
        if not state:
            self.write_first_files()

    def write_first_files(self) -> None:
        """What a new run has in its folder before its first step. Everything has been checked before."""
        if rank() == 0:
            begin(self.c, self.folder)
            write(self.folder / "metrics.jsonl", "")
        if not makes_base(self.c):
            save(self.folder / "base.pt", checkpoint_of(self.c, unsharded(self.policy), {}))
        self.save_state(0, 0)

    def stages_left(self) -> list[tuple[int, object]]:
        return list(enumerate(self.stages))[self.state.get("stage", 0) :]

    def start_stage(self, index: int) -> torch.optim.AdamW:
        """The stage's optimizer: a fresh one, or that of a run that was stopped in this stage."""
        resumed = index == self.state.get("stage") and self.state["step"] > 0
        if not resumed:
            self.optimizer = make_optimizer(self.policy, self.masters, None)
        return self.optimizer

    def steps_left(self, index: int, stage) -> Iterator[int]:
        """The stage's steps from its first on, or from where a stopped run goes on.

        Of a resumed run the log's rows after last.pt are deleted first: their steps will be made again, and
        nothing can fail any more.
        """
        first = self.state["step"] if index == self.state.get("stage") else 0
        if rank() == 0 and (rows := self.state.pop("rows", None)) is not None:
            write(self.folder / "metrics.jsonl", "".join(f"{row}\n" for row in rows))
        self.first_step, self.stage_started = first, time.perf_counter()
        yield from range(first, stage.steps)

    def load(self, name: str) -> GPT:
        """The frozen model of the run's checkpoint `name`, to measure a KL against.

        With LoRA the base is the policy without its adapters, unless the adapters learned in the base stage,
        too.
        """
        c = self.c
        if c.lora and name == "base" and not makes_base(c):
            return without_lora(self.policy)
        home = torch.device("cpu") if c.shard else self.device
        model = load_model(self.folder / f"{name}.pt", home)[0].requires_grad_(False)
        if c.shard:
            shard(model, self.device)
        return model

    def log_and_save(self, index: int, stage, step: int, metrics: dict, example) -> None:
        """Shows and logs a step's metrics, averaged over the processes, and saves the state now and then.

        FloatingPointError, before anything is written, if the loss or the gradient is no number.
        """
        c, metrics = self.c, average(metrics)
        if not math.isfinite(metrics["loss"] + metrics["grad_norm"]):
            raise FloatingPointError(
                f"the loss is {metrics['loss']} and the gradient's norm {metrics['grad_norm']} at step "
                f"{step + 1} of {stage.name}: start anew with a lower learning rate (--lr, --stage2_lr or "
                "--base_lr)"
            )
        last, now = step + 1 == stage.steps, time.perf_counter()
        row = {"stage": stage.name, "step": step + 1, "seconds": round(now - self.started, 2), **metrics}
        if rank() == 0:
            with open(self.folder / "metrics.jsonl", "a", encoding="utf-8") as file:
                file.write(json.dumps(row) + "\n")
            if (step + 1) % c.log_every == 0 or last or step == 0:
                pace = (now - self.stage_started) / (step + 1 - self.first_step)
                print(progress_line(stage, step, metrics, pace), flush=True)
            if example is not None and (step == 0 or (step + 1) % c.show_every == 0 or last):
                print(transcript(*example), flush=True)
        if c.keep_every and (step + 1) % c.keep_every == 0:
            save(self.folder / f"{stage.name}-{step + 1}.pt", checkpoint_of(c, unsharded(self.policy)))
        if (step + 1) % c.save_every == 0 and step + 1 < stage.steps:
            self.save_state(index, step + 1)

    def end_stage(self, index: int, stage) -> None:
        save(self.folder / f"{stage.name}.pt", checkpoint_of(self.c, unsharded(self.policy)))
        self.save_state(index + 1, 0)

    def save_state(self, stage: int, step: int) -> None:
        """Writes last.pt: all that the run needs to go on. Every step seeds its own generators, so none is
        saved.
        """
        if rank() == 0:
            with open(self.folder / "metrics.jsonl", "a", encoding="utf-8") as file:
                os.fsync(file.fileno())  # without its rows last.pt is of no use after a power cut
        progress = {"stage": stage, "step": step, "seconds": time.perf_counter() - self.started}
        progress["optimizer"] = self.optimizer.state_dict() if step else None
        save(self.folder / "last.pt", checkpoint_of(self.c, self.policy, self.masters) | progress)


def learning_rate(stage, step: int) -> float:
    """Ten steps of warm-up, then constant, then linearly down to zero over the second half of the stage."""
    return stage.lr * min(1.0, (step + 1) / 10, 2 * (1 - step / stage.steps))


def rollout_metrics(rollout, correct, rewards, advantages, failures: dict) -> dict[str, float]:
    """What is logged of a batch of dialogues, as means over its rows.

    `acc_t1` to `acc_tK`: the shares of right attempts. `reward`: a dialogue's, summed over its turns.
    `change_rate`: the share whose first two attempts differ. `length`: tokens an attempt. FAILURES: shares of
    attempts. `no_signal`: 1 if all advantages are 0, else 0.
    """
    changed = [texts[0] != texts[1] for texts in rollout.texts]
    attempts = rollout.masks.any(-1).sum()  # those that the policy made
    return {
        **{f"acc_t{k}": share for k, share in enumerate(correct.float().mean(0).tolist(), 1)},
        "reward": rewards.sum(1).mean().item(),
        "change_rate": sum(changed) / len(changed),
        "length": (rollout.masks.sum() / attempts).item(),
        **failures,
        "no_signal": float((advantages == 0).all()),
    }


def progress_line(stage, step: int, metrics: dict, pace: float) -> str:
    """The figures of an update, `pace` being the seconds it took, and what a person should know of them."""
    left = int(pace * (stage.steps - step - 1))
    rate = f"{1 / pace:.2f} steps/s" if pace < 1 else f"{pace:.1f} s/step"
    line = f"{stage.name} {step + 1:4d}/{stage.steps}  {rate}  ETA {left // 60}:{left % 60:02d}"
    if not stage.weights:
        return f"{line}  loss {metrics['loss']:.3f}"
    turns = range(1, len(stage.weights) + 1)
    line += "  acc " + " -> ".join(f"{100 * metrics[f'acc_t{k}']:.0f}%" for k in turns)
    line += f"  changed {100 * metrics['change_rate']:.0f}%  reward {metrics['reward']:+.2f}"
    line += "  KL " + " ".join(f"{metrics[f'kl_t{k}']:.2f}" for k in turns)
    line += "".join(f"  {name} {100 * metrics[name]:.0f}%" for name in FAILURES if metrics[name] >= 0.005)
    notes = {
        "few right answers: an easier --size or a better base helps": metrics["acc_t1"] < 0.02,
        "few wrong ones: nothing to correct": metrics["acc_t1"] > 0.95,
        "turn 2 only copies": len(stage.weights) > 1 and metrics["change_rate"] < 0.02,
        "all advantages are 0: only the KL acts": metrics["no_signal"],
    }
    return line + "".join(f"  ({note})" for note, holds in notes.items() if holds)


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


def check_ranks(c: Settings, device: torch.device) -> None:
    """ValueError for what several processes can't do."""
    n = ranks()
    if n == 1:
        return
    problems, demos = c.batch // c.samples_per_problem, c.base_batch // 5
    gpus = torch.cuda.device_count()
    even = f"--batch={c.batch} has {problems} problems, which {n} processes can't share equally"
    require(problems % n == 0, f"{even}: make them a multiple of {n}")
    few = f"{demos} dialogues (1/5 of --base_batch) are too few for {n} processes: one each"
    require(demos >= n or not makes_base(c), few)
    require(device.type != "mps", "several processes need CUDA or --device=cpu: MPS can't average gradients")
    enough = device.type == "cpu" or int(os.environ["LOCAL_RANK"]) < gpus
    require(enough, f"only {gpus} GPUs here: lower --nproc_per_node")
