"""The runs of the course, and their learning curves.

    python course/runs.py out/score out/plain03                        means over 30 updates of these runs
    python course/runs.py --odds=1 out/base/base.pt out/plain1/stage2.pt     A4: what the odds bound predicts

In the students' folders this file is curves.py.
"""

import json
import math
import shlex
import sys
from pathlib import Path
from statistics import fmean

BASE = "--init=out/base/base.pt"
RUNS = {  # name of the run -> what it is, and what stands behind `python train.py`; in this order
    "base": ("the base", "--name=base --stage1_steps=0 --stage2_steps=0"),
    "score": ("SCoRe", f"--name=score {BASE}"),
    "plain03": ("plain RL, β 0.3", f"--preset=plain --name=plain03 {BASE}"),
    "plain01": ("plain RL, β 0.1", f"--preset=plain --name=plain01 {BASE} --stage2_beta=0.1"),
    "plain1": ("plain RL, β 1", f"--preset=plain --name=plain1 {BASE} --stage2_beta=1"),
    "nostage1": (
        "Stage II alone, β 1",
        f"--name=nostage1 {BASE} --stage1_steps=0 --stage2_steps=300 --stage2_beta=1 --stage2_lr=0.0005",
    ),
    "plenty": (
        "plain RL, plenty",
        "--preset=plain --name=plenty --train_n=0 --right=0.1 --stage2_beta=0.1",
    ),
    "weight11": ("no bonus, weight 11", f"--name=weight11 {BASE} --alpha=0 --stage2_weight2=11"),
    "gamma1": ("SCoRe, γ = 1", f"--name=gamma1 {BASE} --gamma=1"),
    "easy": ("the base of A6", "--name=easy --stage1_steps=0 --stage2_steps=0 --right=0.1"),
    "hunted": (
        "SCoRe as in A6",
        "--name=hunted --init=out/easy/base.pt --stage1_steps=60 --stage2_steps=40 --lr=0.001",
    ),
    "free": ("Stage I, β2 = 0", f"--name=free {BASE} --stage1_steps=300 --stage2_steps=0 --beta2=0"),
}
COLUMNS = {"acc_t1": "turn 1", "acc_t2": "turn 2", "change_rate": "changed", "kl_t1": "KL 1", "kl_t2": "KL 2"}
COLUMNS |= {"grad_norm": "gradient"}


def command(run: str) -> str:
    return f"python train.py {RUNS[run][1]} --report=false"


def arguments(run: str) -> list[str]:
    return [sys.executable, *shlex.split(command(run))[1:]]


def curve(folder: Path, width: int = 30) -> list[dict]:
    """The learning curve of a run's RL stages: a point is the mean of `width` updates. Accuracies and the
    share of changed attempts are in percent, KLs in nats.
    """
    lines = (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [row for line in lines if (row := json.loads(line))["stage"] != "base"]
    points = []
    for i in range(0, len(rows), width):
        part = rows[i : i + width]
        point = {"stage": part[0]["stage"], "step": part[-1]["step"]}
        for name in COLUMNS:
            percent = 1 if name.startswith(("kl", "grad")) else 100
            point[name] = round(percent * fmean(row[name] for row in part), 1 if percent == 100 else 2)
        points.append(point)
    return points


def odds(beta: float, base: str, checkpoint: str) -> dict:
    """A4: the chance of a right first attempt in percent, means of 400 new problems of each kind: the base's,
    what the odds times exp(1 / beta) make of it on each problem, and the checkpoint's.
    """
    sys.path.insert(0, ".")
    import torch

    from data import calculator
    from engine.build import held_out_of, make_environment
    from train import load_model

    chances, (first, c) = [], load_model(base, torch.device("cpu"))
    problems, env = held_out_of(c, 400), make_environment(c, training=False)
    for model in (first, load_model(checkpoint, torch.device("cpu"))[0]):
        with torch.no_grad():
            logits = [model(torch.tensor([prompt]))[0, -1] for prompt in env.prompts(problems)]
        right = [env.tokenizer.encode(p.answer)[0] for p in problems]
        chances.append([row.softmax(-1)[i].item() for row, i in zip(logits, right, strict=True)])
    rows = [
        (p, p * math.exp(1 / beta) / (1 - p + p * math.exp(1 / beta)), q)
        for p, q in zip(*chances, strict=True)
    ]
    found = {}
    for kind in ("easy", "long"):
        part = [
            row
            for row, p in zip(rows, problems, strict=True)
            if (calculator.level(p) > 0) == (kind == "long")
        ]
        found[kind] = [round(100 * fmean(column), 1) for column in zip(*part, strict=True)]
    return found


def main() -> None:
    if len(sys.argv) == 1:
        sys.exit(__doc__)
    if sys.argv[1].startswith("--odds="):
        print("percent right in turn 1: the base, the prediction, the checkpoint")
        return print(*odds(float(sys.argv[1][7:]), *sys.argv[2:4]).items(), sep="\n")
    for folder in map(Path, sys.argv[1:]):
        if not (folder / "metrics.jsonl").is_file():
            sys.exit(f"error: {folder} holds no run of train.py: give its folder, such as out/score")
        print(f"\n{folder}: percent, and the KL in nats")
        print(f"{'':14}" + "".join(f"{title:>10}" for title in COLUMNS.values()))
        for point in curve(folder):
            print(f"{point['stage']:8}{point['step']:6}" + "".join(f"{point[name]:10}" for name in COLUMNS))


if __name__ == "__main__":
    main()
