"""The picture of a run, for its report.md. Needs matplotlib, which the extra `plots` installs."""

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


def draw(path: Path, rows: list[dict]) -> None:
    """Metrics of each RL update (faint), and their means over the last n updates of the stage (strong).

    n is a fifth of the shortest stage, 20 at most, so that the mean does not lag behind.
    """
    starts = [i for i, row in enumerate(rows) if i == 0 or row["stage"] != rows[i - 1]["stage"]]
    stages = list(zip(starts, [*starts[1:], len(rows)], strict=True))
    n = max(1, min(20, min(stop - start for start, stop in stages) // 5))
    figure, axes = plt.subplots(len(PANELS), figsize=(7.5, 8), dpi=120, sharex=True)
    for axis, (label, (factor, series)) in zip(axes, PANELS.items(), strict=True):
        for start, stop in stages:
            axis.axvline(start, color="gray", linestyle=":", linewidth=0.8)
            for key, (text, color) in series.items():
                values = np.array([factor * row[key] for row in rows[start:stop]])
                means = [values[max(0, i + 1 - n) : i + 1].mean() for i in range(len(values))]
                axis.plot(range(start, stop), values, color=color, alpha=0.25, linewidth=0.8)
                axis.plot(range(start, stop), means, color=color, label=text if start == 0 else None)
            if axis is axes[0]:
                axis.text(start, 1.03, rows[start]["stage"], transform=axis.get_xaxis_transform())
        axis.set(ylabel=label, xlim=(0, len(rows)), ylim=(0, None))
        axis.legend(frameon=False)
        axis.grid(alpha=0.3)
    axes[-1].set(xlabel=f"updates of RL (faint: each; strong: mean of {n} updates)")
    figure.savefig(path, bbox_inches="tight")
    plt.close(figure)
