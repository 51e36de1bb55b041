"""The learning curves of runs.

python curves.py out/score out/plain03        means over 20 updates of these runs
"""

import json
import sys
from pathlib import Path
from statistics import fmean

COLUMNS = {"acc_t1": "turn 1", "acc_t2": "turn 2", "change_rate": "changed", "kl_t1": "KL 1", "kl_t2": "KL 2"}
COLUMNS |= {"grad_norm": "gradient"}


def curve(folder: Path, width: int = 20) -> list[dict]:
    """The learning curve of a run's RL stages: means of `width` updates, in percent and nats."""
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
    for folder in map(Path, sys.argv[1:]):
        if not (folder / "metrics.jsonl").is_file():
            sys.exit(f"error: {folder} holds no run of train.py: give its folder, such as out/score")
        print(f"\n{folder}: percent, and the KL in nats")
        print(f"{'':14}" + "".join(f"{title:>10}" for title in COLUMNS.values()))
        for point in curve(folder):
            print(f"{point['stage']:8}{point['step']:6}" + "".join(f"{point[name]:10}" for name in COLUMNS))


if __name__ == "__main__":
    main()
