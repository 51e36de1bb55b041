"""Pictures of a run, for its report.md. Needs matplotlib, which the extra `plots` installs."""

import os
from pathlib import Path

import numpy as np

os.environ["MPLBACKEND"] = "Agg"  # a notebook sets its own, which its child processes may not find
import matplotlib.pyplot as plt

FIRST, SECOND = "#d95f02", "#1b7fb8"
CURVES = {  # file: label of the axis, factor, and the metrics with their labels and colors
    "learning_curves.png": (
        "accuracy of sampled attempts (%)",
        100,
        {"acc_t1": ("attempt 1", FIRST), "acc_t2": ("attempt 2", SECOND)},
    ),
    "kl.png": (
        "KL to the base (nats per turn)",
        1,
        {"kl_t1": ("turn 1", FIRST), "kl_t2": ("turn 2", SECOND)},
    ),
    "change_rate.png": (
        "share of dialogues (%)",
        100,
        {"change_rate": ("second attempt differs", "#5f6f52")},
    ),
}


def draw(folder: Path, rows: list[dict], results: dict) -> list[str]:
    """Draws the rows of metrics.jsonl and the results of the checkpoints; returns the files' names."""
    draw_transitions(folder / "transitions.png", results)
    names = ["transitions.png"]
    if rows:  # a run may have no steps: then it only evaluates what it starts from
        for name, curves in CURVES.items():
            draw_curves(folder / name, rows, *curves)
        names = ["learning_curves.png", *names, "kl.png", "change_rate.png"]
    return names


def draw_curves(path: Path, rows: list[dict], label: str, factor: float, series: dict) -> None:
    """Metrics over the time of the training, and the borders of the stages.

    Faint: each update. Strong: the mean of the metric's last 20 updates in the stage.
    """
    figure, axis = plt.subplots(figsize=(7.5, 3.6), dpi=120)
    minutes = np.array([row["seconds"] / 60 for row in rows])
    starts = [i for i, row in enumerate(rows) if i == 0 or row["stage"] != rows[i - 1]["stage"]]
    for start, stop in zip(starts, [*starts[1:], len(rows)], strict=True):
        middle = (minutes[start] + minutes[stop - 1]) / 2
        axis.axvline(minutes[start], color="gray", linestyle=":", linewidth=0.8)
        axis.text(middle, 1.02, rows[start]["stage"], transform=axis.get_xaxis_transform(), ha="center")
        for key, (text, color) in series.items():
            # A supervised stage is measured only now and then.
            here = np.array([i for i in range(start, stop) if key in rows[i]], dtype=int)
            values = np.array([factor * rows[i][key] for i in here])
            means = [values[(here > i - 20) & (here <= i)].mean() for i in here]
            axis.plot(minutes[here], values, color=color, alpha=0.25, linewidth=0.8)
            axis.plot(minutes[here], means, color=color, label=text if stop == len(rows) else None)
    axis.set(xlabel="minutes of training", ylabel=label, xlim=(0, minutes[-1]), ylim=(0, None))
    axis.legend(frameon=False)
    axis.grid(alpha=0.3)
    figure.tight_layout()
    figure.savefig(path)
    plt.close(figure)


def draw_transitions(path: Path, results: dict) -> None:
    """What becomes of an attempt from turn 1 to turn 2 (greedy): one bar for each checkpoint."""
    figure, axis = plt.subplots(figsize=(7.5, 2.6), dpi=120)
    for y, result in enumerate(results.values()):
        m, left = result["greedy"], 0.0
        parts = {
            "c→c": (m["acc_t1"] - m["c_to_i"], SECOND),
            "i→c": (m["i_to_c"], "#66c2a5"),
            "c→i": (m["c_to_i"], FIRST),
            "i→i": (1 - m["acc_t1"] - m["i_to_c"], "#c8c8c8"),
        }
        for name, (share, color) in parts.items():
            axis.barh(y, 100 * share, left=left, color=color, label=name if y == 0 else None)
            if share > 0.03:
                axis.text(left + 50 * share, y, f"{100 * share:.1f}", ha="center", va="center", fontsize=9)
            left += 100 * share
    axis.set_yticks(range(len(results)), list(results))
    axis.invert_yaxis()
    axis.set(xlabel="held-out problems (%), greedy", xlim=(0, 100))
    axis.legend(ncols=4, loc="lower center", bbox_to_anchor=(0.5, 1.0), frameon=False)
    figure.tight_layout()
    figure.savefig(path)
    plt.close(figure)
