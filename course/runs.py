"""The runs of the course: their settings and their learning curves.

    python course/runs.py out/score out/plain       means over ten steps of the runs in these folders

The settings are written out here, so that they do not depend on the defaults of train.py. `make.py` puts them
into the student's tree as two presets: `--preset=course-base` and `--preset=course`.
"""

import json
import shlex
import sys
from pathlib import Path
from statistics import fmean

COMMON = dict(
    task="larger", size=1, max_new=5, batch=96, sample_batch=256, micro_batch=128, samples_per_problem=1,
    baseline="by_outcome", temperature=1.0, optimizer="muon", adam_share=0.1, max_grad_norm=1.0, seed=0,
    device="cpu", report=False, show_every=40, log_every=10, save_every=40,
)  # fmt: skip
PRESETS = {  # name -> what it is for, and its settings
    "course-base": (
        "the base of the course's runs",
        COMMON | dict(
            name="base", n_layer=1, n_head=4, dim=64, base_steps=160, base_batch=48, base_lr=0.02,
            right_first=1.0, copy=0.5, right=0.5, own_from=1.0, stage1_steps=0, stage2_steps=0,
        ),
    ),
    "course": (
        "the course's runs, from that base",
        COMMON | dict(
            init="out/base/base.pt", stage1_steps=40, stage2_steps=40, lr=0.01, stage2_lr=0.01,
            alpha=10.0, gamma=0.0, beta1=0.01, beta2=1.0, stage2_beta=1.0,
        ),
    ),
}  # fmt: skip
ONE_STAGE = "--init=out/score/stage1.pt --stage1_steps=0"
RUNS = {  # name of the run -> what stands behind `python train.py`, in this order
    "base": "--preset=course-base",
    "score": "--preset=course --name=score",
    "gamma0": f"--preset=course --name=gamma0 {ONE_STAGE}",
    "gamma1": f"--preset=course --name=gamma1 {ONE_STAGE} --gamma=1",
    "plain": "--preset=course --name=plain --stage1_steps=0 --alpha=0",
    "rloo": "--preset=course --name=rloo --baseline=rloo --samples_per_problem=4",
    "free": "--preset=course --name=free --stage2_steps=0 --beta2=0",
}
COLUMNS = {"acc_t1": "turn 1", "acc_t2": "turn 2", "change_rate": "changed", "kl_t1": "KL 1", "kl_t2": "KL 2"}
COLUMNS |= {"grad_norm": "gradient"}


def command(run: str) -> str:
    return f"python train.py {RUNS[run]}"


def arguments(run: str) -> list[str]:
    return [sys.executable, "train.py", *shlex.split(RUNS[run])]


def curve(folder: Path, width: int = 10) -> list[dict]:
    """The learning curve of a run's RL stages: a point is the mean of `width` steps. Accuracies and the share
    of changed attempts are in percent, KLs in nats.
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


def main() -> None:
    if len(sys.argv) == 1:
        sys.exit(__doc__)
    for folder in map(Path, sys.argv[1:]):
        if not (folder / "metrics.jsonl").is_file():
            sys.exit(f"error: {folder} holds no run of train.py: give its folder, such as out/score")
        print(f"\n{folder}: percent, and the KL in nats")
        print(f"{'':14}" + "".join(f"{title:>10}" for title in COLUMNS.values()))
        for point in curve(folder):
            print(f"{point['stage']:8}{point['step']:6}" + "".join(f"{point[name]:10}" for name in COLUMNS))


if __name__ == "__main__":
    main()
