"""Pictures of a run, for eval.py's report. Needs matplotlib, which the `plots` extra installs."""

from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

COLORS = {"acc_t1": "#d95f02", "acc_t2": "#1b7fb8", "kl_t1": "#d95f02", "kl_t2": "#1b7fb8", "change_rate": "#5f6f52"}


def draw(folder: Path, rows: list[dict], results: dict) -> list[str]:
    """Draws the rows of metrics.jsonl and the results of the checkpoints; returns the files' names."""
    accuracy, kl = {"acc_t1": "attempt 1", "acc_t2": "attempt 2"}, {"kl_t1": "turn 1", "kl_t2": "turn 2"}
    draw_curves(folder / "learning_curves.png", rows, accuracy, "accuracy of sampled rollouts (%)", 100)
    draw_curves(folder / "kl.png", rows, kl, "KL to the base (nats per turn)", 1)
    draw_curves(folder / "change_rate.png", rows, {"change_rate": "second attempt differs"}, "share of rollouts (%)", 100)
    draw_transitions(folder / "transitions.png", results)
    return ["learning_curves.png", "transitions.png", "kl.png", "change_rate.png"]


def draw_curves(path: Path, rows: list[dict], series: dict[str, str], label: str, scale: float) -> None:
    """Training figures over all updates, faint, with their running mean of 20, and the stages' borders."""
    figure, axis = plt.subplots(figsize=(7.5, 3.6), dpi=120)
    for key, text in series.items():
        points = [(i, scale * row[key]) for i, row in enumerate(rows) if key in row]
        if not points:
            continue
        x, y = zip(*points, strict=True)
        mean = [sum(y[max(0, i - 19) : i + 1]) / len(y[max(0, i - 19) : i + 1]) for i in range(len(y))]
        axis.plot(x, y, color=COLORS[key], alpha=0.25, linewidth=0.8)
        axis.plot(x, mean, color=COLORS[key], label=text)
    starts = [i for i, row in enumerate(rows) if i == 0 or row["stage"] != rows[i - 1]["stage"]]
    for start, stop in zip(starts, [*starts[1:], len(rows)], strict=True):
        axis.axvline(start, color="gray", linestyle=":", linewidth=0.8)
        axis.text((start + stop) / 2, 1.02, rows[start]["stage"], transform=axis.get_xaxis_transform(), ha="center")
    axis.set(xlabel="update", ylabel=label, xlim=(0, len(rows)), ylim=(0, None))
    axis.legend(frameon=False)
    axis.grid(alpha=0.3)
    figure.tight_layout()
    figure.savefig(path)
    plt.close(figure)


def draw_transitions(path: Path, results: dict) -> None:
    """Bars of what becomes of an attempt from turn 1 to turn 2 (greedy), one bar a checkpoint."""
    figure, axis = plt.subplots(figsize=(7.5, 2.6), dpi=120)
    for y, (_, result) in enumerate(results.items()):
        m, left = result["greedy"], 0.0
        parts = {"c→c": m["acc_t1"] - m["c_to_i"], "i→c": m["i_to_c"], "c→i": m["c_to_i"], "i→i": 1 - m["acc_t1"] - m["i_to_c"]}
        for (name, share), color in zip(parts.items(), ("#1b7fb8", "#66c2a5", "#d95f02", "#c8c8c8"), strict=True):
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
