"""The report of experiments/paper.py: paper.md and its pictures. Needs matplotlib (the extra `plots`)."""

import functools
import operator
import os
from collections import defaultdict
from pathlib import Path

import numpy as np

os.environ["MPLBACKEND"] = "Agg"  # as in engine/pictures.py
import matplotlib.pyplot as plt

from engine.report import COLUMNS, markdown
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
    "base", "self_refine", "star", "star+", "pair", "pair+", "oracle", "single", "both", "plain=0.1",
    "stage1", "score",
)  # fmt: skip
ABLATIONS = (
    "score", "no_stage1", "no_bonus", "no_bonus_kl", "beta2=0.02", "star_two", "offline", "gamma=0.8",
    "gamma=1", "single", "both", "plain=0.1", "plain=0.01", "score_x4", "both_x4", "pair+_x4", "oracle_x4",
)  # fmt: skip
PAIRS = (
    ("both", "base"), ("star", "base"), ("star+", "base"), ("pair+", "base"), ("stage1", "base"),
    ("score", "base"), ("score", "stage1"), ("score", "both"), ("score", "pair+"), ("score", "oracle"),
    ("score", "plain=0.1"), ("score", "plain=0.01"),
)  # fmt: skip
READERS = tuple(m for m in MAIN if m != "self_refine")  # in the swap test Self-Refine is the base
BOTH = ("acc_t1", "acc_t2", "delta")
BEHIND_SCORE = ("Acc@t1 − SCoRe's", "Acc@t2 − SCoRe's", "Δ − SCoRe's")
COLORS = {
    "base": "#777777", "self_refine": "#b5a642", "star": "#c49bd0", "star+": "#8e5ba6", "pair": "#8fc08f",
    "pair+": "#3d8f3d", "oracle": "#20605c", "single": "#e3a15b", "both": "#d95f02",
    "plain=0.1": "#a63603", "stage1": "#7fb7de", "score": "#1b5fa8",
}  # fmt: skip
FIRST = "#999999"  # attempt 1, whatever the method
SWEPT = {"alpha": "α", "beta1": "β of Stage II"}


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


def differences(r: Results, method: str, other: str) -> list[str]:
    """Cells of the paired differences of Acc@t1, Acc@t2 and Δ."""
    return [cell(r.paired(method, other, "greedy", k), signed=True) for k in BOTH]


def main_table(r: Results) -> str:
    rows = []
    for m in r.there(MAIN):
        n, paper = str(len(r.of[m])), ""
        if m in PAPER_MATH:
            first, second, delta, *_ = PAPER_MATH[m]
            paper = f"{first:.1f} → {second:.1f} ({delta:+.1f})"
        rows.append([r.labels[m], n, *cells_of(r, m, COLUMNS), paper])
        if m == "base":
            rows.append(["base, sampled at T = 1", n, *cells_of(r, m, COLUMNS, "sampled"), ""])
    return markdown(["method", "seeds", *COLUMNS.values(), "paper, MATH: t1 → t2 (Δ)"], rows)


def ablation_table(r: Results) -> str:
    rows = []
    for m in r.there(ABLATIONS):
        rows.append([r.labels[m], str(len(r.of[m])), *cells_of(r, m, BOTH)])
        if m != "score":
            paper = ["", ""]
            if m in PAPER_MATH:
                paper = [f"{PAPER_MATH[m][i] - PAPER_MATH['score'][i]:+.1f}" for i in (1, 2)]
            rows[-1] += [*differences(r, m, "score"), *paper]
    head = ["", "seeds", "Acc@t1", "Acc@t2", "Δ", *BEHIND_SCORE, "paper: Acc@t2 −", "paper: Δ −"]
    return markdown(head, rows)


def pairs_table(r: Results) -> str:
    pairs = [(a, b) for a, b in PAIRS if a in r.of and b in r.of]
    rows = []
    for a, b in pairs:
        rows.append([f"{r.labels[a]} − {r.labels[b]}", str(len(r.shared((a, b)))), *differences(r, a, b)])
    return markdown(["", "seeds", "Acc@t1", "Acc@t2", "Δ"], rows)


def swap_table(r: Results) -> str:
    kinds, rows = ("own", "checked", "near", "wrong", "other", "right"), []
    for m in r.there(READERS):
        swaps = [swap for swap in r.values(m, "swap", "wrong_first") if swap["n"]]
        gaps = [cell([swap[k] - swap["wrong"] for swap in swaps], signed=True) for k in kinds[:2]]
        rows.append([r.labels[m], *(cell([swap[k] for swap in swaps]) for k in kinds), *gaps])
    texts = ["its own", "with a true check", "a near miss", "unrelated wrong", "another problem's"]
    gaps = ["own − unrelated", "own with a true check − unrelated"]
    return markdown(["method", *texts, "the right one", *gaps], rows)


def fixed_table(r: Results) -> str:
    rows = []
    for m in r.there(READERS):
        fixed = r.values(m, "fixed")
        corrected = [cell([f[k] for f in fixed]) for k in ("mended own", "mended fixed")]
        shift = cell([f["mended own"] - f["mended fixed"] for f in fixed if f["wrong"]], signed=True)
        spoilt = cell([f["c_to_i"] / f["acc_t1"] for f in fixed if f["acc_t1"]])
        deltas = [cell(r.values(m, part, "delta"), signed=True) for part in ("greedy", "training")]
        rows.append([r.labels[m], *corrected, shift, spoilt, *deltas])
    head = ["corrects its own", "the base's", "difference", "spoils the base's right ones"]
    return markdown(["method", *head, "Δ held-out", "Δ training"], rows)


def attempts_table(r: Results) -> str:
    rows = []
    for m in r.there(("base", "pair+", "both", "stage1", "score")):
        rows.append([r.labels[m], *(cell(r.values(m, "greedy", "acc", k)) for k in range(10))])
    return markdown(["method", *map(str, range(1, 11))], rows)


def budgets(r: Results) -> list[int]:
    return [point["k"] for point in r.values("score", "votes")[0]]


def votes_table(r: Results) -> str:
    rows, ks = [], budgets(r)
    for m in r.there(("base", "both", "pair+", "score")):
        for way in ("parallel", "corrected"):
            cells = [cell(r.values(m, "votes", i, way)) for i in range(len(ks))]
            spent = np.mean(r.values(m, "votes", -1, f"{way} tokens"))
            rows.append([r.labels[m], way, *cells, f"{spent:.0f}"])
        gains = [votes[-1]["corrected"] - votes[-1]["parallel"] for votes in r.values(m, "votes")]
        rows[-1].append(cell(gains, signed=True))
    spent = f"tokens a problem at {ks[-1]}"
    return markdown(
        ["method", "samples", *(f"K = {k}" for k in ks), spent, "corrected − parallel there"], rows
    )


def level_table(r: Results) -> str:
    levels, rows = sorted({level for found in r.values("score", "levels") for level in found}, key=int), []
    for m in r.there(("base", "both", "pair+", "score")):
        for i, name in enumerate(("Acc@t1", "i→c", "c→i"), 1):
            counts = [[found[v] for found in r.values(m, "levels") if v in found] for v in levels]
            rows.append([r.labels[m], name, *(cell([c[i] / c[0] for c in at_level]) for at_level in counts)])
    return markdown(["method", "", *levels], rows)


def sweeps_of(r: Results) -> dict[str, list[tuple[float, str]]]:
    """The sweeps that have been run: (value, method) in order of value, with SCoRe's own value."""
    found = {
        "alpha": [(Config.alpha, "score"), (0.0, "no_bonus")],
        "beta1": [(Config.stage2_beta, "score")],
    }
    for m in r.of:
        name, _, value = m.partition("=")
        if name in found and value:
            found[name].append((float(value), m))
    there = {name: sorted((v, m) for v, m in points if m in r.of) for name, points in found.items()}
    return {name: points for name, points in there.items() if len(points) > 2}


def sweep_table(r: Results) -> str:
    rows = []
    for name, points in sweeps_of(r).items():
        for value, m in points:
            rows.append([SWEPT[name], f"{value:g}", str(len(r.of[m])), *cells_of(r, m, COLUMNS)])
            rows[-1] += differences(r, m, "score") if m != "score" else []
    return markdown(["", "value", "seeds", *COLUMNS.values(), *BEHIND_SCORE], rows)


# ---------------------------------------------------------------------------------- pictures


def band(axis, xs, curves: list, color: str, label: str | None, style: str = "-") -> None:
    """The mean of the seeds' curves in percent, with its shaded 95 % interval."""
    if not curves:  # the methods have no seed in common
        return
    shortest = min(map(len, curves))
    means, halves = percent_interval([curve[:shortest] for curve in curves])
    axis.plot(xs[:shortest], means, style, color=color, label=label, linewidth=1.8)
    axis.fill_between(xs[:shortest], means - halves, means + halves, color=color, alpha=0.15, linewidth=0)


def panels(n: int, width: float, height: float):
    """A figure of n panels side by side, and their axes. `width` is one panel's."""
    figure, (axes,) = plt.subplots(1, n, figsize=(n * width, height), sharey=True, squeeze=False)
    return figure, axes


def along(points_of_seeds: list[list[dict]], key: str) -> list[list[float]]:
    """The curve of a key for each seed; 0 in the place of None."""
    return [[point[key] or 0.0 for point in points] for points in points_of_seeds]


def finish(figure, axes, path: Path) -> str:
    for axis in axes:
        axis.grid(alpha=0.25)
        axis.spines[["top", "right"]].set_visible(False)
    figure.tight_layout()
    figure.savefig(path, dpi=110, facecolor="white", bbox_inches="tight")
    plt.close(figure)
    return path.name


def draw_story(r: Results, path: Path) -> str:
    figure, axes = plt.subplots(1, 4, figsize=(15, 3.7))
    titles = {"both": "plain RL on both attempts", "score": "SCoRe: Stage I, then Stage II"}
    for axis, (m, title) in zip(axes, titles.items(), strict=False):
        first, second, changed = (r.values(m, "curve", k) for k in ("acc_t1", "acc_t2", "change_rate"))
        xs = [5 * i + 3 for i in range(len(first[0]))]
        band(axis, xs, first, FIRST, "attempt 1", "--")
        band(axis, xs, second, COLORS[m], "attempt 2")
        axis.set(title=title, xlabel="updates", ylabel="accuracy of sampled attempts (%)", ylim=(30, 100))
        axis.legend(frameon=False, loc="lower right")
        gaps = [np.subtract(b, a) for a, b in zip(first, second, strict=True)]
        band(axes[2], xs, gaps, COLORS[m], r.labels[m])
        band(axes[3], xs, changed, COLORS[m], r.labels[m])
    axes[2].axhline(0, color="#555555", linewidth=0.8)
    axes[2].set(title="gap: attempt 2 − attempt 1", xlabel="updates", ylabel="points")
    axes[3].set(title="how often attempt 2 differs", xlabel="updates", ylabel="dialogues (%)", ylim=(0, None))
    axes[2].legend(frameon=False, loc="lower right")
    for axis in axes[1:]:
        axis.axvline(r.values("score", "steps")[0][0], color="#555555", linestyle=":", linewidth=1)
    return finish(figure, axes, path)


def draw_methods(r: Results, path: Path) -> str:
    methods = r.there(MAIN)
    figure, axis = plt.subplots(figsize=(9, 0.42 * len(methods) + 1.2))
    for y, m in enumerate(methods):
        color, seeds = COLORS[m], 100 * np.array(r.values(m, "greedy", "acc_t2"))
        first, second = 100 * np.mean(r.values(m, "greedy", "acc_t1")), seeds.mean()
        axis.plot([first, second], [y, y], color=color, linewidth=2.4)
        axis.plot(first, y, "o", color=color, markersize=5)
        if abs(second - first) > 1:
            axis.plot(second, y, ">" if second > first else "<", color=color, markersize=8)
        axis.plot(seeds, np.full_like(seeds, y + 0.28), "|", color=color, markersize=6)
        text, place = f"Δ {cell(r.values(m, 'greedy', 'delta'), signed=True)}", axis.get_yaxis_transform()
        axis.text(1.01, y, text, transform=place, va="center", fontsize=9, color=color)
    axis.set_yticks(range(len(methods)), [r.labels[m] for m in methods])
    axis.invert_yaxis()
    what = "accuracy on held-out problems, greedy (%)"
    axis.set(xlabel=f"{what}: from attempt 1 (dot) to attempt 2 (tip); ticks: seeds")
    return finish(figure, [axis], path)


def draw_distances(r: Results, path: Path) -> str:
    methods = r.there(("base", "star+", "pair+", "both", "score"))
    figure, axes = panels(len(methods), 2.7, 3)
    bins = np.arange(20) / 20 + 0.025
    for axis, m in zip(axes, methods, strict=True):
        styles = {
            "training": dict(histtype="step", color="#333333"),
            "held-out": dict(color=COLORS[m], alpha=0.75),
        }
        for which, style in styles.items():
            counts = np.sum(r.values(m, "distances", which), axis=0)
            shares = 100 * counts / counts.sum()
            axis.hist(bins, bins=20, range=(0, 1), weights=shares, label=which, **style)
        axis.set(title=r.labels[m], xlabel="edit distance ratio", yscale="log", ylim=(0.1, 100))
    axes[0].set_ylabel("problems (%), log scale")
    axes[0].legend(frameon=False)
    return finish(figure, axes, path)


def draw_fixed(r: Results, path: Path) -> str:
    methods = r.there(("pair", "pair+", "both", "score"))
    figure, axes = panels(len(methods), 3, 3.2)
    for axis, m in zip(axes, methods, strict=True):
        points = r.values(m, "kept")
        xs = [point["update"] for point in points[0]]
        band(axis, xs, along(points, "mended own"), COLORS[m], "after its own attempt")
        band(axis, xs, along(points, "mended fixed"), COLORS[m], "after the base's", "--")
        axis.set(title=r.labels[m], xlabel="updates", ylim=(0, 100))
    axes[0].set_ylabel("wrong attempts corrected (%)")
    axes[0].legend(frameon=False)
    return finish(figure, axes, path)


def draw_attempts(r: Results, path: Path) -> str:
    figure, axis = plt.subplots(figsize=(6.5, 3.8))
    methods = r.there(("base", "pair+", "both", "score"))
    for m in methods:
        curves = r.values(m, "greedy", "acc", seeds=r.shared(methods))
        band(axis, range(1, 11), curves, COLORS[m], r.labels[m])
    axis.set(xlabel="attempt", ylabel="accuracy, greedy (%)", xticks=range(1, 11))
    axis.legend(frameon=False, ncols=2)
    return finish(figure, [axis], path)


def draw_votes(r: Results, path: Path) -> str:
    figure, axes = plt.subplots(1, 2, figsize=(9.5, 3.7), sharey=True)
    ks, corrected = budgets(r), "K/2, each corrected"
    for m in r.there(("base", "both", "score")):
        votes = r.values(m, "votes")
        for way, text, style in (("parallel", "K first attempts", "--"), ("corrected", corrected, "-")):
            curves, spent = along(votes, way), np.mean(along(votes, f"{way} tokens"), axis=0)
            band(axes[0], ks, curves, COLORS[m], f"{r.labels[m]}, {text}", style)
            band(axes[1], spent, curves, COLORS[m], None, style)
    axes[0].set(xlabel="attempts sampled a problem, K", ylabel="majority is right, T = 0.7 (%)")
    axes[0].set_xscale("log", base=2)
    axes[0].set_xticks(ks, ks)
    axes[1].set(xlabel="tokens sampled a problem")
    axes[1].set_xscale("log", base=2)
    axes[1].xaxis.set_major_formatter("{x:.0f}")
    entries = axes[0].get_legend_handles_labels()
    figure.legend(*entries, frameon=False, fontsize=8, ncols=3, loc="lower center", bbox_to_anchor=(0.5, 1))
    return finish(figure, axes, path)


def draw_swap(r: Results, path: Path) -> str:
    methods, shown = r.there(READERS), {"own": ("its own attempt", "#1b5fa8")}
    shown |= {"near": ("a near miss", "#7fb7de"), "wrong": ("an unrelated wrong attempt", "#c8c8c8")}
    figure, axis = plt.subplots(figsize=(10, 3.8))
    for i, (kind, (text, color)) in enumerate(shown.items()):
        found = [r.values(m, "swap", "wrong_first", kind) for m in methods]
        points = [percent_interval([v for v in values if v is not None] or [0.0]) for values in found]
        means, halves = zip(*points, strict=True)
        xs = np.arange(len(methods)) + 0.27 * (i - 1)
        axis.bar(xs, means, 0.25, yerr=halves, label=text, color=color, error_kw=dict(linewidth=0.8))
    labels = [r.labels[m].replace(", ", ",\n") for m in methods]
    axis.set_xticks(range(len(methods)), labels, fontsize=8, rotation=30, ha="right")
    axis.set(ylabel="attempt 2 right (%), problems\nwith a wrong attempt 1", ylim=(0, None))
    axis.legend(frameon=False, ncols=3, loc="lower center", bbox_to_anchor=(0.5, 1))
    return finish(figure, [axis], path)


def draw_sweeps(r: Results, path: Path) -> str:
    sweeps = sweeps_of(r)
    figure, axes = panels(len(sweeps), 3 + 1 / len(sweeps), 3.3)
    for axis, (name, points) in zip(axes, sweeps.items(), strict=True):
        seeds, xs = r.shared([m for _, m in points]), range(len(points))
        for key, label, color in (("acc_t1", "attempt 1", FIRST), ("acc_t2", "attempt 2", COLORS["score"])):
            values = np.array([r.values(m, "greedy", key, seeds=seeds) for _, m in points])  # [points, seeds]
            score = r.values("score", "greedy", key, seeds=seeds)
            means, halves = percent_interval((values - score).T)
            axis.errorbar(xs, means, halves, color=color, marker="o", capsize=3, label=label)
        axis.set_xticks(xs, [f"{v:g}" for v, _ in points])
        axis.set_xlabel(SWEPT[name])
        axis.axhline(0, color="#555555", linewidth=0.8)
    axes[0].set_ylabel("accuracy − SCoRe's (points)")
    axes[0].legend(frameon=False, loc="lower left")
    return finish(figure, axes, path)


# ---------------------------------------------------------------------------------- the report


def sensitivity(r: Results, place: Path) -> str:
    if not sweeps_of(r):
        return "The sweeps have not been run. `python experiments/paper.py` runs them after the methods."
    return f"""![Accuracy of both attempts against each setting]({draw_sweeps(r, place / "sweeps.png")})

Each row changes one setting of SCoRe. In the picture, SCoRe's own accuracy with the same seeds is the line at
0, and each panel has the seeds that all of its values have.

{sweep_table(r)}"""


def write_report(rows: list[dict], labels: dict[str, str], place: Path) -> Path:
    """Writes paper.md and its pictures into the folder `place`, from the results that there are.

    ValueError if there are too few, or if they are of different settings.
    """
    r = Results(rows, labels)
    if missing := {"base", "score", "both"} - r.of.keys():
        raise ValueError(
            f"no result yet of {', '.join(sorted(missing))}: the report needs these three at least"
        )
    settings = {(*row["steps"], row["batch"], row["greedy"]["n"]) for row in rows}
    if len(settings) > 1:
        old = f"remove {place / 'paper.json'} or the older runs"
        raise ValueError(f"results of different settings, {settings}: {old}")
    one, two, batch, n = settings.pop()
    text = f"""# The paper's tables and figures, made again on the toy task

Made by `python experiments/paper.py`. The task is division with three-digit quotients. Each method makes
{one} + {two} updates of {batch} dialogues and is tested on {n} held-out problems a seed. Figures are in
percent, mean ± 95 % interval over seeds (Student's t). Decoding is greedy unless a row says otherwise. Each
seed draws the split, the weights and all samples anew. Within a seed all methods start from one base.
`paper.json` has the numbers of every run, with its commit. Seeds differ, so compare methods
with unequal numbers of seeds only by the paired differences.

## 1. Methods (tables 1 and 2 of the paper)

![From attempt 1 to attempt 2]({draw_methods(r, place / "methods.png")})

The distance between dot and tip is Δ. RL and SFT make {one + two} updates of the same batch. Oracle SFT has a
lower learning rate than Pair-SFT and RL: each SFT has the one that suits it. Plain RL is also shown with the
best of three KL weights, 0.1, chosen on these seeds. STaR has three rounds of a third each, always from the
base. The base and Self-Refine are not trained. Stage I is the first part of SCoRe. Self-Refine cannot help
here: its verdicts are honest, but in the base's demonstrations the attempt after a verdict was drawn without
a look at it.

{main_table(r)}

## 2. Ablations (table 4)

Differences are paired: they are taken between runs with the same base and problems. Some rows differ in more
than their label says. Without Stage I all updates are of Stage II, at Stage I's learning rate. Without online
first attempts turn 1 is not trained at all. Our baseline compares dialogues with the same first outcome, so
the bonus multiplies the advantage of turn 2 by 1 + α and does nothing else (except for a dialogue that is
alone with its outcome). Without the bonus the KL of turn 2 therefore weighs 11 times as much against its
reward. The row "β / 11" keeps that ratio; it also loosens the KL of turn 1.

{ablation_table(r)}

Other pairs of methods, on the seeds that both have:

{pairs_table(r)}

## 3. How much attempt 2 changes (edit distance ratio)

![Edit distance ratio of both attempts]({draw_distances(r, place / "distances.png")})

The ratio is insertions and deletions over both lengths, in characters. At 0 the attempt is copied. Bars are
held-out problems, lines training problems. Where they agree, what was learned carries over.

## 4. Its own mistakes and the base's (distribution shift)

![Mistakes corrected over training]({draw_fixed(r, place / "fixed.png")})

We take the problems on which both the model's own first attempt and the base's are wrong, and show what
attempt 2 corrects after each of them. A method that learned only from the base's mistakes may correct those
better than its own.

{fixed_table(r)}

## 5. Learning curves

![Accuracy of both attempts during training]({draw_story(r, place / "story.png")})

Dialogues on training problems, sampled at T = 1. The dotted line is where Stage II begins.

## 6. Up to ten attempts

![Accuracy after 1 to 10 attempts]({draw_attempts(r, place / "attempts.png")})

The methods were trained with two attempts. The base has seen dialogues of ten.

{attempts_table(r)}

## 7. Inference compute: more first attempts, or correction?

![Majority vote against attempts and tokens]({draw_votes(r, place / "votes.png")})

A majority vote at T = 0.7. Either K first attempts vote, or the second attempts of K / 2 dialogues do. The
right panel shows the same against the number of sampled tokens.

{votes_table(r)}

## 8. By difficulty

The level is the divisor. Figures are shares of the level's problems.

{level_table(r)}

## 9. Who reads the first attempt? (swap test)

![Accuracy of attempt 2 after a swapped attempt 1]({draw_swap(r, place / "swap.png")})

We take the problems that the model's own attempt 1 gets wrong, put another text in its place, and show the
accuracy of attempt 2. If a model does not look at attempt 1, the text makes no difference. Near misses,
unrelated attempts and right ones have true checks; the model's own may have false ones. So the last column
compares its own with the check made true.

{swap_table(r)}

## 10. Sensitivity

{sensitivity(r, place)}
"""
    path = place / "paper.md"
    path.write_text(text, encoding="utf-8")
    return path
