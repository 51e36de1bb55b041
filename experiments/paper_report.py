"""The reports of experiments/paper.py: paper.md, tuning.md, map.md and their pictures. Needs matplotlib."""

import functools
import operator
import os
from collections import defaultdict
from pathlib import Path

import numpy as np

os.environ["MPLBACKEND"] = "Agg"  # a notebook sets its own, which its child processes may not find
import matplotlib.pyplot as plt

from engine.report import COLUMNS, markdown
from experiments.paper import MAP_N, MAP_RIGHT
from train import Config

T_95 = np.array([
    12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131,
    2.120, 2.110, 2.101, 2.093, 2.086, 2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045,
])  # Student's t for the 95 % interval of a mean of n values, n = 2 to 30  # fmt: skip
# Gemini 1.5 Flash on MATH-500, tables 1, 2 and 4 of arXiv 2409.12917: Acc@t1, Acc@t2, Δ, i→c, c→i
PAPER_MATH = {
    "base": (52.6, 41.4, -11.2, 4.6, 15.8),
    "self_refine": (52.8, 51.8, -1.0, 3.2, 4.2),
    "star": (55.4, 41.2, -14.2, 5.4, 19.6),
    "star+": (53.6, 54.0, 0.4, 2.6, 2.2),
    "pair": (52.4, 54.2, 1.8, 5.4, 3.6),
    "pair+": (55.0, 55.0, 0.0, 0.0, 0.0),
    "single": (61.8, 59.4, -2.4),
    "no_stage1": (59.2, 61.4, 2.2),
    "no_bonus": (60.0, 62.6, 2.6),
    "star_two": (56.2, 58.4, 2.2),
    "offline": (60.4, 60.6, 0.2),
    "score": (60.0, 64.4, 4.4, 5.8, 1.4),
}
MAIN = (
    "base", "self_refine", "star", "star+", "pair", "pair+", "oracle", "single", "plain", "weight11",
    "no_stage1", "stage1", "score",
)  # fmt: skip
ABLATIONS = (
    "score", "no_stage1", "no_bonus", "no_bonus_kl", "gamma=0.05", "gamma=1", "offline", "star_two",
    "score_outcome", "plain", "plain_outcome", "weight11", "single",
)  # fmt: skip
PAIRS = (
    ("score", "plain"), ("score", "weight11"), ("score", "no_stage1"), ("score", "pair+"),
    ("score", "star+"), ("score", "oracle"), ("score", "stage1"), ("stage1", "base"),
)  # fmt: skip
BOTH = ("acc_t1", "acc_t2", "delta")
COLORS = {
    "base": "#777777", "self_refine": "#b5a642", "star": "#c49bd0", "star+": "#8e5ba6", "pair": "#8fc08f",
    "pair+": "#3d8f3d", "oracle": "#20605c", "single": "#e3a15b", "plain": "#d95f02",
    "weight11": "#a63603", "no_stage1": "#c51b7d", "stage1": "#7fb7de", "score": "#1b5fa8",
}  # fmt: skip
FIRST = "#999999"  # attempt 1, whatever the method
FOUND = 0.5  # a run has found the correction if its fix rate is at least this


def interval(values) -> tuple[np.ndarray, np.ndarray]:
    """Mean over independent seeds and half the width of its 95 % interval; NaN for one seed alone.

    `values` [n] are those of n seeds, or [n, m] with m points for each.
    """
    values = np.asarray(values, dtype=float)
    n = len(values)
    if n == 1:
        return values[0], np.full_like(values[0], np.nan)
    return values.mean(0), T_95[min(n, len(T_95) + 1) - 2] * values.std(0, ddof=1) / np.sqrt(n)


def percent_interval(values) -> tuple[np.ndarray, np.ndarray]:
    """The same in percent, for pictures: 0 in the place of NaN."""
    mean, half = interval(values)
    return 100 * mean, 100 * np.nan_to_num(half)


def cell(values: list[float | None], signed: bool = False) -> str:
    """Mean ± 95 % interval over seeds, in percent. Values that are None do not count."""
    values = [v for v in values if v is not None]
    if not values:
        return "–"
    mean, half = interval(values)
    return f"{100 * mean:{'+' if signed else ''}.1f}" + ("" if np.isnan(half) else f" ± {100 * half:.1f}")


class Results:
    """The rows of paper.json by method and seed.

    `path` are the keys that lead to a value in a row, such as "greedy", "acc_t1".
    """

    def __init__(self, rows: list[dict], labels: dict[str, str]):
        self.of, self.labels = defaultdict(dict), labels
        for row in rows:
            self.of[row["method"]][row["seed"]] = row

    def values(self, method: str, *path, seeds: list[int] | None = None) -> list:
        """A method's value for each of its seeds, in their order, or for these seeds."""
        rows = self.of.get(method, {})
        seeds = sorted(rows) if seeds is None else seeds
        return [functools.reduce(operator.getitem, path, rows[s]) for s in seeds]

    def there(self, methods) -> list[str]:
        return [m for m in methods if m in self.of]

    def shared(self, methods) -> list[int]:
        """The seeds that all of these methods have. Seeds differ more than methods do."""
        return sorted(set.intersection(*(set(self.of[m]) for m in methods)))

    def paired(self, method: str, other: str, *path) -> np.ndarray:
        """Differences of two methods on the seeds that both have: there they share base and problems."""
        seeds = self.shared((method, other))
        return np.subtract(*(self.values(m, *path, seeds=seeds) for m in (method, other)))


# ---------------------------------------------------------------------------------- tables


def cells_of(r: Results, method: str, keys, part: str = "greedy") -> list[str]:
    """A table's cells for these metrics of a method."""
    return [cell(r.values(method, part, k), signed=k == "delta") for k in keys]


def differences(r: Results, method: str, other: str, part: str = "greedy") -> list[str]:
    """Cells of the paired differences of Acc@t1, Acc@t2 and Δ."""
    return [cell(r.paired(method, other, part, k), signed=True) for k in BOTH]


def found(r: Results, method: str) -> str:
    """In how many seeds the correction is found."""
    rates = r.values(method, "greedy", "fix_rate")
    return f"{sum(rate is not None and rate >= FOUND for rate in rates)} of {len(rates)}"


def main_table(r: Results) -> str:
    rows = []
    for m in r.there(MAIN):
        first, second, delta = PAPER_MATH.get(m, (None,) * 3)[:3]
        paper = f"{first:.1f} → {second:.1f} ({delta:+.1f})" if first else ""
        rows.append([r.labels[m], *cells_of(r, m, COLUMNS), found(r, m), paper])
    return markdown(["method", *COLUMNS.values(), "seeds that correct", "paper, MATH: t1 → t2 (Δ)"], rows)


def sampled_table(r: Results) -> str:
    rows = [[r.labels[m], *cells_of(r, m, COLUMNS, "sampled")] for m in r.there(MAIN)]
    return markdown(["method", *COLUMNS.values()], rows)


def training_table(r: Results) -> str:
    """Problems that a method has trained on beside new ones."""
    rows = []
    for m in r.there(MAIN):
        gaps = [np.subtract(r.values(m, "training", k), r.values(m, "greedy", k)) for k in BOTH[:2]]
        rows.append([r.labels[m], *cells_of(r, m, BOTH[:2], "training"), *(cell(g, True) for g in gaps)])
    head = ["Acc@t1, training", "Acc@t2, training", "training − new, Acc@t1", "training − new, Acc@t2"]
    return markdown(["method", *head], rows)


def ablation_table(r: Results) -> str:
    rows = []
    for m in r.there(ABLATIONS):
        rows.append([r.labels[m], *cells_of(r, m, BOTH), found(r, m)])
        if m != "score":
            rows[-1] += differences(r, m, "score")
            if m in PAPER_MATH:
                rows[-1] += [f"{PAPER_MATH[m][i] - PAPER_MATH['score'][i]:+.1f}" for i in (1, 2)]
    rows = [row + [""] * (10 - len(row)) for row in rows]
    behind = ("Acc@t1 − SCoRe's", "Acc@t2 − SCoRe's", "Δ − SCoRe's")
    paper = ("paper: Acc@t2 −", "paper: Δ −")
    return markdown(["", "Acc@t1", "Acc@t2", "Δ", "seeds that correct", *behind, *paper], rows)


def pairs_table(r: Results) -> str:
    rows = []
    for a, b in ((a, b) for a, b in PAIRS if a in r.of and b in r.of):
        gaps = r.paired(a, b, "greedy", "acc_t2")
        sampled = cell(r.paired(a, b, "sampled", "acc_t1"), signed=True)
        name = f"{r.labels[a]} − {r.labels[b]}"
        rows.append(
            [name, *differences(r, a, b), f"{100 * min(gaps):+.1f} to {100 * max(gaps):+.1f}", sampled]
        )
    return markdown(["", "Acc@t1", "Acc@t2", "Δ", "Acc@t2, smallest to largest", "Acc@t1, sampled"], rows)


def seeds_table(r: Results) -> str:
    """SCoRe and its best-known rivals, seed by seed."""
    methods = r.there(("base", "plain", "no_stage1", "stage1", "score"))
    rows = []
    for seed in r.shared(methods):
        pairs = [[r.values(m, "greedy", k, seeds=[seed])[0] for k in BOTH[:2]] for m in methods]
        rows.append([str(seed), *(f"{100 * a:.1f} → {100 * b:.1f}" for a, b in pairs)])
        rate = r.values("score", "greedy", "fix_rate", seeds=[seed])[0]
        rows[-1].append("–" if rate is None else f"{100 * rate:.1f}")
    return markdown(["seed", *(r.labels[m] for m in methods), "fix rate of SCoRe"], rows)


def swap_table(r: Results) -> str:
    kinds, rows = ("own", "checked", "other"), []
    for m in (m for m in r.there(MAIN) if m != "self_refine"):  # here Self-Refine is the base
        swaps = [swap for swap in r.values(m, "swap", "wrong_first") if swap["n"]]
        gaps = [swap["own"] - swap["other"] for swap in swaps]
        cells = [cell([swap[k] for swap in swaps]) for k in (*kinds, "true_checks")]
        rows.append([r.labels[m], *cells, cell(gaps, signed=True), f"{100 * min(gaps):+.1f}"])
    texts = ["its own", "its own with a true working", "another problem's", "share of true workings"]
    return markdown(["method", *texts, "own − another's", "smallest of the seeds"], rows)


def level_table(r: Results) -> str:
    levels, rows = sorted({level for row in r.values("score", "levels") for level in row}, key=int), []
    for m in r.there(("base", "single", "plain", "score")):
        for i, name in enumerate(("Acc@t1", "i→c", "c→i"), 1):
            counts = [[row[v] for row in r.values(m, "levels") if v in row] for v in levels]
            rows.append([r.labels[m], name, *(cell([c[i] / c[0] for c in at_level]) for at_level in counts)])
    return markdown(["method", "", *levels], rows)


# ---------------------------------------------------------------------------------- pictures


def band(axis, xs, curves: list, color: str, label: str | None, style: str = "-") -> None:
    """The mean of the seeds' curves in percent, with its shaded 95 % interval."""
    if not curves:  # the methods have no seed in common
        return
    shortest = min(map(len, curves))
    means, halves = percent_interval([curve[:shortest] for curve in curves])
    axis.plot(xs[:shortest], means, style, color=color, label=label, linewidth=1.8)
    axis.fill_between(xs[:shortest], means - halves, means + halves, color=color, alpha=0.15, linewidth=0)


def finish(figure, axes, path: Path) -> str:
    for axis in axes:
        axis.grid(alpha=0.25)
        axis.spines[["top", "right"]].set_visible(False)
    figure.tight_layout()
    figure.savefig(path, dpi=110, facecolor="white", bbox_inches="tight")
    plt.close(figure)
    return path.name


def draw_story(r: Results, path: Path) -> str:
    """Learning curves of plain RL and SCoRe on their training problems, and where both end on new ones."""
    figure, axes = plt.subplots(1, 3, figsize=(13.5, 3.9), sharey=True)
    titles = {"plain": "plain RL on both attempts", "score": "SCoRe: Stage I, then Stage II"}
    for axis, (m, title) in zip(axes, titles.items(), strict=False):
        first, second = (r.values(m, "curve", k) for k in ("acc_t1", "acc_t2"))
        xs = [5 * i + 3 for i in range(len(first[0]))]
        band(axis, xs, first, FIRST, "attempt 1", "--")
        band(axis, xs, second, COLORS[m], "attempt 2")
        axis.set(title=title, xlabel="updates", ylim=(0, 100))
        axis.legend(frameon=False, loc="lower left")
    axes[0].set_ylabel("right, sampled, training problems (%)")
    axes[1].axvline(Config.stage1_steps, color="#555555", linestyle=":", linewidth=1)
    axes[1].text(Config.stage1_steps, 3, " Stage II", fontsize=9, color="#555555")
    methods = r.there(("base", "plain", "no_stage1", "stage1", "score"))
    for x, m in enumerate(methods):
        for seed in r.of[m]:
            a, b = (100 * r.values(m, "greedy", k, seeds=[seed])[0] for k in BOTH[:2])
            axes[2].plot([x - 0.25, x + 0.25], [a, b], color=COLORS[m], alpha=0.6, linewidth=1)
            axes[2].plot(x - 0.25, a, "o", color=FIRST, markersize=4)
            axes[2].plot(x + 0.25, b, "o", color=COLORS[m], markersize=4)
    axes[2].set_xticks(range(len(methods)), [r.labels[m].replace(" ", "\n", 1) for m in methods], fontsize=9)
    axes[2].set(title="new problems, greedy: attempt 1 (gray) to 2", ylabel="right (%)")
    axes[2].tick_params(labelleft=True)
    return finish(figure, axes, path)


def draw_success(r: Results, path: Path) -> str:
    """Acc@t2 of every seed, a row for each method."""
    methods = r.there(tuple(dict.fromkeys((*MAIN, *ABLATIONS))))
    figure, axis = plt.subplots(figsize=(9, 0.34 * len(methods) + 1.2))
    for y, m in enumerate(methods):
        firsts, seconds = (100 * np.array(r.values(m, "greedy", k)) for k in BOTH[:2])
        offsets = np.linspace(-0.25, 0.25, len(seconds))
        axis.plot(firsts, y + offsets, "|", color=FIRST, markersize=6)
        axis.plot(seconds, y + offsets, "o", color=COLORS.get(m, "#1b5fa8"), markersize=4)
        axis.text(1.01, y, found(r, m), transform=axis.get_yaxis_transform(), va="center", fontsize=9)
    axis.set_yticks(range(len(methods)), [r.labels[m] for m in methods])
    axis.invert_yaxis()
    axis.set(xlabel="new problems, greedy (%): attempt 1 (gray tick) and attempt 2 (dot), one of each a seed")
    axis.set_title("seeds that correct", loc="right", fontsize=9)
    return finish(figure, [axis], path)


def draw_map(r: Results, path: Path) -> str:
    """Acc@t2 in each cell of the map, a panel for each method, and each seed's as small figures."""
    ways = {"plain": "plain RL", "no_stage1": "without Stage I", "score": "SCoRe"}
    figure, axes = plt.subplots(1, 3, figsize=(14, 4.2), sharey=True)
    for axis, (way, title) in zip(axes, ways.items(), strict=True):
        values = np.full((len(MAP_RIGHT), len(MAP_N)), np.nan)
        for i, right in enumerate(MAP_RIGHT):
            for j, n in enumerate(MAP_N):
                seconds = 100 * np.array(r.values(f"{way} n={n} right={right:g}", "greedy", "acc_t2"))
                if len(seconds):
                    values[i, j] = seconds.mean()
                    text = "\n".join(f"{v:.0f}" for v in seconds)
                    axis.text(j, i, text, ha="center", va="center", fontsize=8, linespacing=0.95)
        image = axis.imshow(
            values, vmin=60, vmax=100, cmap="RdYlBu", aspect="auto", origin="lower", alpha=0.75
        )
        axis.set_xticks(range(len(MAP_N)), [str(n) if n else "all" for n in MAP_N])
        axis.set_yticks(range(len(MAP_RIGHT)), [f"{100 * right:g} %" for right in MAP_RIGHT])
        axis.set(title=title, xlabel="training problems of RL")
    axes[0].set_ylabel("right later turns in\nthe base's demonstrations")
    figure.colorbar(image, ax=axes, label="Acc@t2, new problems, greedy (%)", pad=0.01)
    figure.savefig(path, dpi=110, facecolor="white", bbox_inches="tight")
    plt.close(figure)
    return path.name


# ---------------------------------------------------------------------------------- the reports


def write_report(kind: str, rows: list[dict], labels: dict[str, str], place: Path) -> Path:
    """Writes the report of this kind of grid and its pictures into the folder `place`.

    ValueError if there are too few results, or if they are of different settings.
    """
    r, name = Results(rows, labels), {"tune": "tuning", "map": "map"}.get(kind, "paper")
    settings = {(row["batch"], row["greedy"]["n"]) for row in rows}
    if len(settings) > 1:
        raise ValueError(f"results of different settings, {settings}: remove {place / name}.json")
    if kind in ("full", "quick") and (missing := {"base", "score", "plain"} - r.of.keys()):
        raise ValueError(f"no result yet of {', '.join(sorted(missing))}: the report needs these three")
    path = place / f"{name}.md"
    text = {"tune": tuning_text, "map": map_text}.get(kind, paper_text)(r, place)
    path.write_text(text, encoding="utf-8")
    return path


def tuning_text(r: Results, place: Path) -> str:
    rows = []
    for m in r.of:
        sampled = cell(r.values(m, "sampled", "acc_t1"))
        rows.append([r.labels[m], *cells_of(r, m, (*BOTH, "fix_rate")), found(r, m), sampled])
    head = ["Acc@t1", "Acc@t2", "Δ", "fix rate", "seeds that correct", "Acc@t1, sampled"]
    return f"""# Each rival at its own best settings

Made by `python experiments/paper.py --tune`, on seeds that are in no results table. Percent of new problems,
greedy, mean ± 95 % interval. The setting with the highest Acc@t2 goes into the results.

{markdown(["method", *head], rows)}
"""


def map_text(r: Results, place: Path) -> str:
    return f"""# When is Stage I needed, when is plain RL enough, when does nothing help?

Made by `python experiments/paper.py --map`.

![Acc@t2 by training problems and corrections in the base]({draw_map(r, place / "map.png")})

Each cell is a base of its own, and from it plain RL, SCoRe without Stage I, and SCoRe, each at fixed
settings: the best of its tuning at the default cell, {Config.train_n} problems and
{100 * Config.right:g} %. The figures in a cell are Acc@t2 of its seeds; the first attempt is right in 65 to
70 % everywhere. To the right RL has more problems to train on, so it is harder to memorise them. Upwards the
base's demonstrations have more later turns that are right, so RL meets corrections sooner.
"""


def paper_text(r: Results, place: Path) -> str:
    example = next(iter(r.of["score"].values()))
    seeds, n, batch = len(r.of["score"]), example["greedy"]["n"], example["batch"]
    return f"""# The paper's tables, made again on the default task

Made by `python experiments/paper.py`. The task is data/calculator.py. Each method makes
{Config.stage1_steps} + {Config.stage2_steps} updates of {batch} dialogues on {Config.train_n} training
problems and is tested on {n} new problems a seed; {seeds} seeds. Percent, mean ± 95 % interval over seeds
(Student's t), greedy unless a row says otherwise. Within a seed all methods start from one base. Rivals have
their own best KL weight and learning rate, chosen on other seeds ([how](../README.md)). `paper.json` has
every run with its commit.

A seed **corrects** if turn 2 makes at least half of the wrong first attempts right (fix rate ≥ 50 %).

## 1. Methods (tables 1 and 2 of the paper)

![Learning curves, and where each seed ends]({draw_story(r, place / "story.png")})

{main_table(r)}

"Weight 11" is plain RL whose turn 2 weighs 11 times as much, which is what the bonus of Stage II amounts to.

Differences are paired: they are taken between runs with the same base and problems.

{pairs_table(r)}

Seed by seed (Acc@t1 → Acc@t2):

{seeds_table(r)}

## 2. Every seed of every method

![Acc@t2 of every seed]({draw_success(r, place / "success.png")})

## 3. Ablations (table 4)

{ablation_table(r)}

## 4. Sampled at temperature 1

{sampled_table(r)}

## 5. Training problems beside new ones

The base is measured on the problems of its own demonstrations, all others on those of RL.

{training_table(r)}

## 6. Who reads the first attempt? (swap test)

We take the problems that the model's own attempt 1 gets wrong, put another text in its place, and show how
often attempt 2 is right.

{swap_table(r)}

## 7. By difficulty

The level is the number of keys behind the last C: 0 is easy, 2 and 3 can't be said at once. Figures are
shares of the level's problems.

{level_table(r)}
"""
