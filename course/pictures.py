"""The pictures of the notebook walkthrough.ipynb. The slides show the same ones, from the folder slides/."""

import io
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot  # noqa: E402

HERE = Path(__file__).resolve().parent
SHELF = HERE.parent / "experiments" / "checkpoints"
SLIDES = HERE / "slides"  # None: pictures are not saved
NAMES = {"base": "base", "plain": "plain RL", "stage1": "Stage I", "stage2": "SCoRe (I, then II)"}
COLORS = {"base": "0.45", "plain": "#d95f02", "stage1": "#74add1", "stage2": "#1f5fa8"}  # as in story.png
pyplot.rcParams.update({"font.size": 10, "axes.spines.top": False, "axes.spines.right": False})


class Picture:
    """A figure as PNG of 150 dpi. A notebook shows it as it stands at the end of a cell."""

    def __init__(self, figure, name: str):
        buffer = io.BytesIO()
        figure.savefig(buffer, dpi=150, pil_kwargs={"optimize": True})
        pyplot.close(figure)
        self.png = buffer.getvalue()
        if SLIDES:
            SLIDES.mkdir(exist_ok=True)
            (SLIDES / f"{name}.png").write_bytes(self.png)

    def _repr_png_(self) -> bytes:
        return self.png


def panels(rows: int, columns: int, width: float, height: float, **more):
    return pyplot.subplots(
        rows, columns, figsize=(width, height), layout="constrained", squeeze=False, **more
    )


def token_labels(tokenizer, ids: list[int]) -> list[str]:
    """The text of each token. The three special ones are called user, model and end."""
    texts = [tokenizer.decode([i]) for i in ids]
    return [text.strip("<|>").replace("assistant", "model") for text in texts]


def outcomes(correct: dict) -> Picture:
    """The 2 x 2 table of each model, in percent. `correct`: name -> [N, 2] bool."""
    figure, axes = panels(1, len(correct), 9, 2.7)
    for axis, (name, rows) in zip(axes.flat, correct.items(), strict=True):
        first, second = rows.T
        cells = [[(first & second), (first & ~second)], [(~first & second), (~first & ~second)]]
        share = [[100 * cell.double().mean().item() for cell in row] for row in cells]
        axis.imshow(share, cmap="Blues", vmin=0, vmax=100)
        for i, j in ((0, 0), (0, 1), (1, 0), (1, 1)):
            text = f"{'ci'[i]}→{'ci'[j]}\n{share[i][j]:.1f} %"
            axis.text(j, i, text, ha="center", va="center", color="white" if share[i][j] > 60 else "black")
        axis.set(title=NAMES[name], xticks=[0, 1], yticks=[0, 1], xlabel="attempt 2")
        axis.set_xticklabels(["right", "wrong"])
        axis.set_yticklabels(["right", "wrong"])
    axes[0, 0].set_ylabel("attempt 1")
    return Picture(figure, "outcomes")


def digits(found: dict, right: str) -> Picture:
    """P of each digit as the answer of turn 2. `found`: name -> (first attempt, p [10])."""
    figure, axes = panels(2, 2, 9, 4.4, sharex=True, sharey=True)
    for axis, (name, (attempt, p)) in zip(axes.flat, found.items(), strict=True):
        bars = axis.bar(range(10), 100 * p, color="0.8")
        bars[int(attempt[0])].set_color("#d95f02")
        bars[int(right)].set_color("#1b7837")
        for digit, value in enumerate(100 * p):
            axis.text(digit, value + 2, f"{value:.0f}" if value >= 0.5 else "", ha="center")
        axis.set(title=f"{NAMES[name]}   attempt 1: {attempt}", xticks=range(10), ylim=(0, 115))
    figure.supylabel("probability in percent", fontsize=10)
    figure.supxlabel("answer of attempt 2. Orange: the answer of attempt 1. Green: right.", fontsize=10)
    return Picture(figure, "digits")


def shares(found: dict) -> Picture:
    """Where the probability goes. `found`: name -> (right, copied, other), fractions."""
    figure, axes = panels(1, 1, 9, 2.4)
    axis, colors = axes[0, 0], {"right": "#1b7837", "copies attempt 1": "#d95f02", "another digit": "0.8"}
    for row, parts in enumerate(found.values()):
        start = 0.0
        for value, color in zip(parts, colors.values(), strict=True):
            axis.barh(row, 100 * value, left=100 * start, color=color)
            if value > 0.04:
                axis.text(100 * (start + value / 2), row, f"{100 * value:.0f}", ha="center", va="center")
            start += value
    axis.set(yticks=range(len(found)), xlim=(0, 100), xlabel="mean probability in percent")
    axis.set_yticklabels([NAMES[name] for name in found])
    axis.invert_yaxis()
    handles = [pyplot.Rectangle((0, 0), 1, 1, color=color) for color in colors.values()]
    axis.legend(handles, colors, ncols=3, loc="lower center", bbox_to_anchor=(0.5, 1.0), frameon=False)
    return Picture(figure, "shares")


def attention(found: dict, tokens: list[str]) -> Picture:
    """How each head looks back. `found`: name -> weights [layers, heads, T] of the last token."""
    figure, axes = panels(len(found), 1, 9, 2.3 * len(found))
    for axis, (name, weights) in zip(axes.flat, found.items(), strict=True):
        heads = [f"layer {i}, head {j}" for i in (1, 2) for j in range(1, weights.shape[1] + 1)]
        image = axis.imshow(weights.flatten(0, 1), cmap="Blues", vmin=0, vmax=1, aspect="auto")
        axis.set(title=NAMES[name], xticks=range(len(tokens)), yticks=range(len(heads)))
        axis.set_xticklabels(tokens, fontsize=8)
        axis.set_yticklabels(heads, fontsize=8)
    figure.colorbar(image, ax=axes, label="attention weight", shrink=0.6)
    return Picture(figure, "attention")


def swaps(found: dict) -> Picture:
    """What the answer follows. `found`: name -> [10, 10], row: the digit put in, column: P(answer)."""
    figure, axes = panels(1, len(found), 10, 3.0, sharey=True)
    for axis, (name, matrix) in zip(axes.flat, found.items(), strict=True):
        image = axis.imshow(100 * matrix, cmap="Greens", vmin=0, vmax=100)
        axis.set(title=NAMES[name], xticks=range(10), yticks=range(10), xlabel="answer of attempt 2")
    axes[0, 0].set_ylabel("last digit of the working")
    figure.colorbar(image, ax=axes, label="percent", shrink=0.8)
    return Picture(figure, "swaps")


def dialogue(tokens: list[str], masks, strips: dict, name: str) -> Picture:
    """One dialogue by token: the masks [2, T], and bars for each of `strips`, title -> [T]."""
    figure, axes = panels(1 + len(strips), 1, 10, 1 + 1.2 * len(strips), sharex=True)
    axes[0, 0].imshow(masks, cmap="Blues", vmin=0, vmax=1.3, aspect="auto")
    axes[0, 0].set(yticks=[0, 1], title="mask: what the model sampled")
    axes[0, 0].set_yticklabels(["turn 1", "turn 2"])
    colors = ["#1f5fa8" if turn else "#74add1" for turn in masks[1]]
    for axis, (title, values) in zip(axes[1:, 0], strips.items(), strict=True):
        axis.bar(range(len(tokens)), values, color=colors)
        axis.axhline(0, color="0.6", lw=0.8)
        axis.set_title(title)
        axis.margins(y=0.15)
    for axis in axes[:, 0]:
        axis.set_xticks(range(len(tokens)), tokens, fontsize=8)
        axis.tick_params(labelbottom=True, length=0)
    return Picture(figure, name)


def curves(runs: dict) -> Picture:
    """Accuracy by update. `runs`: title -> (name, rows of metrics)."""
    figure, axes = panels(1, len(runs), 9, 3.2, sharey=True)
    for axis, (title, (name, rows)) in zip(axes.flat, runs.items(), strict=True):
        for turn, color, style in (("acc_t1", "0.5", "--"), ("acc_t2", COLORS[name], "-")):
            values = [100 * row[turn] for row in rows]
            mean = [
                sum(part) / len(part) for i in range(len(values)) if (part := values[max(0, i - 4) : i + 1])
            ]
            axis.plot(values, color=color, alpha=0.3, lw=0.8)
            axis.plot(mean, style, color=color, lw=2, label=f"attempt {turn[-1]}")
        axis.set(title=title, xlabel="update", ylim=(0, 102))
        axis.legend(frameon=False, loc="lower right")
    axes[0, 0].set_ylabel("right, sampled (percent)")
    return Picture(figure, "curves")
