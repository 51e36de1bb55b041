"""Pictures of a run, for its report.md. Needs matplotlib, which the extra `plots` installs."""

import os
from pathlib import Path

import numpy as np

os.environ["MPLBACKEND"] = "Agg"  # a notebook sets its own, which its child processes may not find
import matplotlib.pyplot as plt

# Attempts have colours that no method has in the figures of experiments/.
FIRST, SECOND = "#e7298a", "#1b9e9e"
PANELS = {  # label of the axis: factor, and the metrics with their labels and colours
    "accuracy (%)": (100, {"acc_t1": ("attempt 1", FIRST), "acc_t2": ("attempt 2", SECOND)}),
    "KL (nats a turn)": (1, {"kl_t1": ("turn 1", FIRST), "kl_t2": ("turn 2", SECOND)}),
    "dialogues (%)": (100, {"change_rate": ("second attempt differs", "#444444")}),
}


def draw(folder: Path, rows: list[dict], results: dict) -> list[str]:
    """Draws the rows of metrics.jsonl and the results of the checkpoints; returns the files' names."""
    draw_transitions(folder / "transitions.png", results)
    rows = [row for row in rows if "acc_t1" in row]  # a supervised stage samples nothing
    if rows:
        draw_training(folder / "training.png", rows)
    return ["training.png", "transitions.png"] if rows else ["transitions.png"]


def draw_training(path: Path, rows: list[dict]) -> None:
    """Metrics of each RL update (faint), and their means over the last n updates of the stage (strong). n is
    a fifth of the shortest stage, 20 at most, so that the mean does not lag behind.
    """
    starts = [i for i, row in enumerate(rows) if i == 0 or row["stage"] != rows[i - 1]["stage"]]
    stages = list(zip(starts, [*starts[1:], len(rows)], strict=True))
    n = max(1, min(20, min(stop - start for start, stop in stages) // 5))
    figure, axes = plt.subplots(len(PANELS), figsize=(7.5, 7.5), dpi=120, sharex=True)
    for axis, (label, (factor, series)) in zip(axes, PANELS.items(), strict=True):
        for start, stop in stages:
            axis.axvline(start, color="gray", linestyle=":", linewidth=0.8)
            for key, (text, color) in series.items():
                values = np.array([factor * row[key] for row in rows[start:stop]])
                means = [values[max(0, i + 1 - n) : i + 1].mean() for i in range(len(values))]
                axis.plot(range(start, stop), values, color=color, alpha=0.25, linewidth=0.8)
                text = f"{text}, mean of {n} updates" if start == 0 else None
                axis.plot(range(start, stop), means, color=color, label=text)
        axis.set(ylabel=label, xlim=(0, len(rows)), ylim=(0, None))
        axis.grid(alpha=0.3)
        axis.legend(frameon=False, loc="lower left", bbox_to_anchor=(1.0, 0.0))
    for start, stop in stages:
        middle = (start + stop) / 2
        axes[0].text(middle, 1.03, rows[start]["stage"], transform=axes[0].get_xaxis_transform(), ha="center")
    axes[-1].set(xlabel="updates of RL")
    save(figure, path)


def draw_transitions(path: Path, results: dict) -> None:
    """What becomes of an attempt from turn 1 to turn 2 (greedy): one bar for each checkpoint."""
    figure, axis = plt.subplots(figsize=(7.5, 2.6), dpi=120)
    for y, result in enumerate(results.values()):
        m, left = result["greedy"], 0.0
        parts = {
            "c→c": (m["acc_t1"] - m["c_to_i"], SECOND),
            "i→c": (m["i_to_c"], "#a6dba0"),
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
    save(figure, path)


def save(figure, path: Path) -> None:
    figure.savefig(path, bbox_inches="tight")
    plt.close(figure)
