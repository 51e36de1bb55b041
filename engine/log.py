"""What a run shows and keeps of each step: metrics.jsonl, progress lines, transcripts."""

import json
from pathlib import Path

from data import Problem
from engine.processes import add_up, rank

FAILURES = ("truncated", "unparsable", "timeout", "unjudged")  # no answer to compare: see rewards.py


def rollout_metrics(rollout, correct, rewards, advantages, failures: dict, share: float) -> dict:
    """What is logged of a batch of dialogues, as means over the whole batch.

    `acc_t1` to `acc_tK`: the shares of right attempts. `reward`: a dialogue's, summed over its turns.
    `change_rate`: the share whose first two attempts differ. `length`: tokens an attempt. FAILURES: shares of
    attempts. `no_signal`: whether all advantages are 0.

    `correct`, `rewards` and `advantages` [batch, K] are of the whole batch. `rollout` and `failures` are of
    this process's rows, which are the `share` of the batch.
    """
    changed = [texts[0] != texts[1] for texts in rollout.texts]
    attempts = rollout.masks.any(-1).sum()  # those that the policy made
    length = (rollout.masks.sum() / attempts).item()
    means = {"change_rate": sum(changed) / len(changed), "length": length, **failures}
    return {
        **{f"acc_t{k + 1}": correct[:, k].float().mean().item() for k in range(correct.shape[1])},
        "reward": rewards.sum(1).mean().item(),
        **add_up({name: value * share for name, value in means.items()}),
        "no_signal": bool((advantages == 0).all()),
    }


def log_step(c, folder: Path, stage, step: int, metrics: dict, seconds: float, pace: float, example) -> None:
    """Appends a row to metrics.jsonl; now and then prints a progress line and the example's transcript.

    `seconds` is the run's time so far, `pace` the seconds a step. `example` is (problem, texts, correct) or
    None.
    """
    if rank() > 0:
        return
    row = {"stage": stage.name, "step": step + 1, "seconds": round(seconds, 2), **metrics}
    with open(folder / "metrics.jsonl", "a", encoding="utf-8") as file:
        file.write(json.dumps(row) + "\n")
    last = step + 1 == stage.steps
    if (step + 1) % c.log_every == 0 or last:
        print(progress_line(stage, step, metrics, pace), flush=True)
    if example is not None and (step == 0 or (step + 1) % c.show_every == 0 or last):
        print(transcript(*example), flush=True)


def warnings_of(stage, step: int, recent: list[dict]) -> dict[str, str]:
    """What a person should know of this stage, by name. `recent` are the metrics of its last 20 updates.

    "nothing to correct": in the first update fewer than 2 or more than 95 % of the first attempts are right.
    "no signal": for 20 updates all advantages were 0. "copies": over 20 updates fewer than 2 % of the second
    attempts differ from the first.
    """
    found = {}
    if stage.weights is None:
        return found
    if step == 0 and not 0.02 <= recent[-1]["acc_t1"] <= 0.95:
        share = f"{100 * recent[-1]['acc_t1']:.0f} % of the first attempts are right"
        found["nothing to correct"] = f"{share}, so there is little to learn: choose another --size or base"
    if len(recent) < 20:
        return found
    if all(row["no_signal"] for row in recent):
        found["no signal"] = "for 20 updates no attempt did better than the others: only the KL acts"
    if len(stage.weights) > 1 and sum(row["change_rate"] for row in recent) < 0.02 * len(recent):
        found["copies"] = "turn 2 only copies: over 20 updates fewer than 2 % of the attempts differ"
    return found


def progress_line(stage, step: int, metrics: dict, pace: float) -> str:
    left = int(pace * (stage.steps - step - 1))
    rate = f"{1 / pace:.2f} steps/s" if pace < 1 else f"{pace:.1f} s/step"
    line = f"{stage.name} {step + 1:4d}/{stage.steps}  {rate}  ETA {left // 60}:{left % 60:02d}"
    if stage.weights is None:
        return f"{line}  loss {metrics['loss']:.3f}"
    turns = range(1, len(stage.weights) + 1)
    line += f"  reward {metrics['reward']:+.2f}"
    line += "  acc " + " -> ".join(f"{100 * metrics[f'acc_t{k}']:.0f}%" for k in turns)
    line += f"  changed {100 * metrics['change_rate']:.0f}%"
    line += "  KL " + " ".join(f"{metrics[f'kl_t{k}']:.2f}" for k in turns)
    for name in FAILURES:
        if metrics.get(name, 0) >= 0.005:
            line += f"  {name} {100 * metrics[name]:.0f}%"
    return line + ("  (all advantages are 0: only the KL acts)" if metrics["no_signal"] else "")


def transcript(problem: Problem, texts: list[str], correct: list[bool]) -> str:
    """A dialogue for people to read: one line if its texts are short, else a paragraph for each turn."""
    attempts = [(text, "(right)" if ok else "(wrong)") for text, ok in zip(texts, correct, strict=True)]
    everything = problem.prompt + "".join(texts)
    if len(everything) < 200 and "\n" not in everything:
        return f"{problem.prompt:>12}   " + "   ".join(f"{text} {verdict}" for text, verdict in attempts)
    turns = [f"--- attempt {k} {verdict}\n{text}" for k, (text, verdict) in enumerate(attempts, 1)]
    return "\n".join([f"--- problem\n{problem.prompt}", *turns, "---"])
