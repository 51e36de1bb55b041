"""Pictures of a run, for eval.py's report. Needs matplotlib, which the `plots` extra installs."""

from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

COLORS = {"acc_t1": "#d95f02", "acc_t2": "#1b7fb8", "kl_t1": "#d95f02", "kl_t2": "#1b7fb8", "change_rate": "#5f6f52"}


def draw(folder: Path, rows: list[dict], results: dict) -> list[str]:
    """Draws the rows of metrics.jsonl and the results of the checkpoints; returns the files' names."""
    draw_transitions(folder / "transitions.png", results)
    if not rows:  # a run of no steps, to evaluate what it would have started from
        return ["transitions.png"]
    accuracy, kl = {"acc_t1": "attempt 1", "acc_t2": "attempt 2"}, {"kl_t1": "turn 1", "kl_t2": "turn 2"}
    draw_curves(folder / "learning_curves.png", rows, accuracy, "accuracy of sampled rollouts (%)", 100)
    draw_curves(folder / "kl.png", rows, kl, "KL to the base (nats per turn)", 1)
    draw_curves(folder / "change_rate.png", rows, {"change_rate": "second attempt differs"}, "share of rollouts (%)", 100)
    return ["learning_curves.png", "transitions.png", "kl.png", "change_rate.png"]


def draw_curves(path: Path, rows: list[dict], series: dict[str, str], label: str, scale: float) -> None:
    """Training figures over time, faint, with their mean over the last 20 updates of the stage, and the stages' borders."""
    figure, axis = plt.subplots(figsize=(7.5, 3.6), dpi=120)
    minutes = [row["seconds"] / 60 for row in rows]
    starts = [i for i, row in enumerate(rows) if i == 0 or row["stage"] != rows[i - 1]["stage"]]
    for start, stop in zip(starts, [*starts[1:], len(rows)], strict=True):
        left, right = minutes[start], minutes[stop - 1]
        axis.axvline(left, color="gray", linestyle=":", linewidth=0.8)
        axis.text((left + right) / 2, 1.02, rows[start]["stage"], transform=axis.get_xaxis_transform(), ha="center")
        for key, text in series.items():
            here = [i for i in range(start, stop) if key in rows[i]]  # while the base is made, only now and then
            near = [[scale * rows[j][key] for j in here if i - 20 < j <= i] for i in here]
            axis.plot([minutes[i] for i in here], [v[-1] for v in near], color=COLORS[key], alpha=0.25, linewidth=0.8)
            name = text if stop == len(rows) else None
            axis.plot([minutes[i] for i in here], [sum(v) / len(v) for v in near], color=COLORS[key], label=name)
    axis.set(xlabel="minutes of training", ylabel=label, xlim=(0, minutes[-1]), ylim=(0, None))
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
