"""Tables and pictures of experiments/paper.py's results: paper.md and PNGs. Needs matplotlib, which the `plots` extra installs."""

import math
from collections import defaultdict
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

from engine.report import COLUMNS, markdown
from train import Config

# Student's t for the 95 % interval of a mean of n values, n = 2 to 30
T_95 = (math.nan, math.nan, 12.71, 4.30, 3.18, 2.78, 2.57, 2.45, 2.36, 2.31, 2.26, 2.23, 2.20, 2.18, 2.16, 2.14, 2.13, 2.12, 2.11,
        2.10, 2.09, 2.09, 2.08, 2.07, 2.07, 2.06, 2.06, 2.06, 2.05, 2.05, 2.05)  # fmt: skip
PAPER_MATH = {  # Gemini 1.5 Flash on MATH-500, tables 1, 2 and 4 of arXiv 2409.12917: Acc@t1, Acc@t2, delta, i→c, c→i
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
MAIN = ("base", "self_refine", "star", "star+", "pair", "pair+", "oracle", "single", "standard", "both", "stage1", "score",
        "score3")  # fmt: skip
ABLATIONS = ("score", "no_stage1", "no_bonus", "no_bonus_kl", "star_two", "offline", "offline_too", "interleaved", "gamma=0.8",
             "gamma=1", "rloo", "single", "both", "both_kl")  # fmt: skip
BEHIND_SCORE = ("Acc@t1 − SCoRe's", "Acc@t2 − SCoRe's", "Δ − SCoRe's")
PAIRS = (("both", "base"), ("star", "base"), ("star+", "base"), ("pair+", "base"), ("stage1", "base"), ("score", "base"),
         ("score", "stage1"), ("score", "both"), ("score", "pair+"), ("score", "oracle"), ("score3", "score"),
         ("both_kl", "both"))  # fmt: skip
READERS = tuple(m for m in MAIN if m != "self_refine")  # with another text in attempt 1's place it is the base
COLORS = {"base": "#777777", "self_refine": "#b5a642", "star": "#c49bd0", "star+": "#8e5ba6", "pair": "#8fc08f",
          "pair+": "#3d8f3d", "oracle": "#20605c", "single": "#e3a15b", "standard": "#f2c94c", "both": "#d95f02",
          "stage1": "#7fb7de", "score": "#1b5fa8", "score3": "#0b2c5c"}  # fmt: skip
FIRST = "#999999"  # attempt 1, whatever the method
SWEPT = {"alpha": "α", "beta1": "β1 of Stage II", "beta2": "β2", "stage1": "updates of Stage I"}


def interval(values: list[float]) -> tuple[float, float]:
    """Mean of values of independent seeds and half the width of its 95 % interval; NaN for one value alone."""
    n, mean = len(values), sum(values) / len(values)
    if n < 2:
        return mean, math.nan
    deviation = math.sqrt(sum((v - mean) ** 2 for v in values) / (n - 1))
    return mean, T_95[min(n, len(T_95) - 1)] * deviation / math.sqrt(n)


def cell(values: list[float | None], signed: bool = False) -> str:
    """Mean ± 95 % interval over seeds, in percent."""
    values = [v for v in values if v is not None]
    if not values:
        return "–"
    mean, half = interval(values)
    return f"{100 * mean:{'+' if signed else ''}.1f}" + ("" if math.isnan(half) else f" ± {100 * half:.1f}")


class Results:
    """The rows of paper.json by method; a thin index, so that tables and pictures ask the same questions."""

    def __init__(self, rows: list[dict], labels: dict[str, str]):
        self.of, self.labels = defaultdict(dict), labels
        for row in rows:
            self.of[row["method"]][row["seed"]] = row

    def values(self, method: str, get) -> list:
        return [get(row) for _, row in sorted(self.of[method].items())] if method in self.of else []

    def there(self, methods) -> list[str]:
        return [m for m in methods if m in self.of]

    def shared(self, methods) -> list[int]:
        """The seeds that all of these methods have: on others they can't be compared, for seeds differ more than methods do."""
        return sorted(set.intersection(*(set(self.of[m]) for m in methods)))

    def paired(self, method: str, other: str, get) -> list[float]:
        """Differences of two methods on the seeds that both have: they share base and problems."""
        return [get(self.of[method][s]) - get(self.of[other][s]) for s in self.shared((method, other))]


def greedy(key: str):
    return lambda row: row["greedy"][key]


# ------------------------------------------------------------------------------------------------------ tables


def main_table(r: Results, methods) -> str:
    rows = []
    for m in r.there(methods):
        cells = [cell(r.values(m, greedy(k)), signed=k == "delta") for k in COLUMNS]
        theirs = " → ".join(f"{v:.1f}" for v in PAPER_MATH[m][:2]) + f" ({PAPER_MATH[m][2]:+.1f})" if m in PAPER_MATH else ""
        rows.append([r.labels[m], str(len(r.of[m])), *cells, theirs])
        if m == "base":
            cells = [cell(r.values(m, lambda row, k=k: row["sampled"][k]), signed=k == "delta") for k in COLUMNS]
            rows.append(["base, sampled at T = 1", str(len(r.of[m])), *cells, ""])
    return markdown(["method", "seeds", *COLUMNS.values(), "paper, MATH: t1 → t2 (Δ)"], rows)


def differences(r: Results, method: str, other: str) -> list[str]:
    """Paired differences of both attempts' accuracy and of Δ, on the seeds that both methods have."""
    return [cell(r.paired(method, other, greedy(k)), True) for k in ("acc_t1", "acc_t2", "delta")]


def ablation_table(r: Results) -> str:
    rows = []
    for m in r.there(ABLATIONS):
        own = [cell(r.values(m, greedy(k)), k == "delta") for k in ("acc_t1", "acc_t2", "delta")]
        rows.append([r.labels[m], str(len(r.of[m])), *own])
        if m != "score":
            paper = PAPER_MATH.get(m)
            theirs = [f"{paper[i] - PAPER_MATH['score'][i]:+.1f}" for i in (1, 2)] if paper else ["", ""]
            rows[-1] += [*differences(r, m, "score"), *theirs]
    head = ["", "seeds", "Acc@t1", "Acc@t2", "Δ", *BEHIND_SCORE, "paper: Acc@t2 −", "paper: Δ −"]
    return markdown(head, rows)


def pairs_table(r: Results) -> str:
    pairs = [(a, b) for a, b in PAIRS if a in r.of and b in r.of]
    rows = [[f"{r.labels[a]} − {r.labels[b]}", str(len(r.shared((a, b)))), *differences(r, a, b)] for a, b in pairs]
    return markdown(["", "seeds", "Acc@t1", "Acc@t2", "Δ"], rows)


def swap_table(r: Results) -> str:
    kinds, rows = ("own", "near", "wrong", "other", "right"), []
    for m in r.there(READERS):
        swaps = [swap for swap in r.values(m, lambda row: row["swap"]["wrong_first"]) if swap["n"]]
        gap = cell([swap["own"] - swap["wrong"] for swap in swaps], True)
        rows.append([r.labels[m], *(cell([swap[k] for swap in swaps]) for k in kinds), gap])
    head = ["method", "its own", "a near miss", "unrelated wrong", "another problem's", "the right one", "own − unrelated"]
    return markdown(head, rows)


def fixed_table(r: Results) -> str:
    rows = []
    for m in r.there(READERS):
        fixed = r.values(m, lambda row: row["fixed"])
        spoilt = [f["c_to_i"] / f["acc_t1"] for f in fixed if f["acc_t1"]]
        shift = cell([f["mended own"] - f["mended fixed"] for f in fixed if f["wrong"]], True)
        mended = [cell([f[k] for f in fixed]) for k in ("mended own", "mended fixed")]
        deltas = [cell(r.values(m, lambda row, k=k: row[k]["delta"]), True) for k in ("greedy", "training")]
        rows.append([r.labels[m], *mended, shift, cell(spoilt), *deltas])
    head = ["method", "mends its own", "the base's", "difference", "spoils the base's right ones", "Δ held-out", "Δ training"]
    return markdown(head, rows)


def attempts_table(r: Results) -> str:
    methods = r.there(("base", "pair+", "both", "stage1", "score", "score3"))
    rows = [[r.labels[m], *(cell(r.values(m, lambda row, k=k: row["greedy"]["acc"][k])) for k in range(10))] for m in methods]
    return markdown(["method", *(str(k) for k in range(1, 11))], rows)


def budgets(r: Results) -> list[int]:
    return [point["k"] for point in next(iter(r.of["score"].values()))["votes"]]


def votes_table(r: Results) -> str:
    rows, ks = [], budgets(r)
    for m in r.there(("base", "both", "pair+", "score")):
        for way in ("parallel", "corrected"):
            cells = [cell(r.values(m, lambda row, i=i, w=way: row["votes"][i][w])) for i in range(len(ks))]
            spent = r.values(m, lambda row, w=way: row["votes"][-1][f"{w} tokens"])
            rows.append([r.labels[m], way, *cells, f"{sum(spent) / len(spent):.0f}"])
        gain = r.values(m, lambda row: row["votes"][-1]["corrected"] - row["votes"][-1]["parallel"])
        rows[-1].append(cell(gain, True))
    head = ["method", "samples", *(f"K = {k}" for k in ks), f"tokens a problem at {ks[-1]}", "corrected − parallel there"]
    return markdown(head, rows)


def level_table(r: Results) -> str:
    levels = sorted({level for row in r.of["score"].values() for level in row["levels"]}, key=int)
    rows = []
    for m in r.there(("base", "both", "pair+", "score")):
        for name, i in (("Acc@t1", 1), ("i→c", 2), ("c→i", 3)):
            counts = {v: r.values(m, lambda row, v=v: row["levels"].get(v)) for v in levels}
            rows.append([r.labels[m], name, *(cell([c[i] / c[0] for c in counts[v] if c]) for v in levels)])
    return markdown(["method", "", *levels], rows)


def sweeps_of(r: Results) -> dict[str, list[tuple[float, str]]]:
    """(value, method) in order of each sweep that has been run, SCoRe's own settings among them."""
    steps = next(iter(r.of["score"].values()))["steps"]
    middle = {"alpha": Config.alpha, "beta1": Config.stage2_beta, "beta2": Config.beta2, "stage1": steps[0]}
    found = {name: [(value, "score")] for name, value in middle.items()}
    for m in r.of:
        name, _, value = m.partition("=")
        if name in found and value:
            found[name].append((float(value), m))
    found["alpha"].append((0.0, "no_bonus"))
    found["stage1"].append((0, "no_stage1"))
    there = {name: sorted((v, m) for v, m in points if m in r.of) for name, points in found.items()}
    return {name: points for name, points in there.items() if len(points) > 2}


def sweep_table(r: Results) -> str:
    rows = []
    for name, points in sweeps_of(r).items():
        for value, m in points:
            cells = [cell(r.values(m, greedy(k)), k == "delta") for k in COLUMNS]
            rows.append(
                [SWEPT[name], f"{value:g}", str(len(r.of[m])), *cells, *(differences(r, m, "score") if m != "score" else [])]
            )
    return markdown(["", "value", "seeds", *COLUMNS.values(), *BEHIND_SCORE], rows)


# ------------------------------------------------------------------------------------------------------ pictures


def band(axis, xs, curves: list[list[float]], color: str, label: str | None, style: str = "-") -> None:
    """Mean of the seeds' curves in percent with its shaded 95 % interval."""
    points = [interval([curve[i] for curve in curves]) for i in range(min(map(len, curves)))]
    means = [100 * mean for mean, _ in points]
    halves = [0 if math.isnan(half) else 100 * half for _, half in points]
    axis.plot(xs[: len(means)], means, style, color=color, label=label, linewidth=1.8)
    low, high = ([m + sign * h for m, h in zip(means, halves, strict=True)] for sign in (-1, 1))
    axis.fill_between(xs[: len(means)], low, high, color=color, alpha=0.15, linewidth=0)


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
    split = next(iter(r.of["score"].values()))["steps"][0]
    for axis, m, title in ((axes[0], "both", "plain RL on both attempts"), (axes[1], "score", "SCoRe: Stage I, then Stage II")):
        curves = r.values(m, lambda row: row["curve"])
        xs = [5 * i + 3 for i in range(len(curves[0]["acc_t1"]))]
        band(axis, xs, [c["acc_t1"] for c in curves], FIRST, "attempt 1", "--")
        band(axis, xs, [c["acc_t2"] for c in curves], COLORS[m], "attempt 2")
        axis.set(title=title, xlabel="updates", ylabel="accuracy of sampled rollouts (%)", ylim=(30, 100))
        axis.legend(frameon=False, loc="lower right")
    for m in ("both", "score"):
        curves = r.values(m, lambda row: row["curve"])
        xs = [5 * i + 3 for i in range(len(curves[0]["acc_t1"]))]
        gaps = [[b - a for a, b in zip(c["acc_t1"], c["acc_t2"], strict=True)] for c in curves]
        band(axes[2], xs, gaps, COLORS[m], r.labels[m])
        band(axes[3], xs, [c["change_rate"] for c in curves], COLORS[m], r.labels[m])
    axes[2].axhline(0, color="#555555", linewidth=0.8)
    axes[2].set(title="gap: attempt 2 − attempt 1", xlabel="updates", ylabel="points")
    axes[3].set(title="how often attempt 2 differs", xlabel="updates", ylabel="rollouts (%)", ylim=(0, None))
    axes[2].legend(frameon=False, loc="lower right")
    for axis in axes[1:]:
        axis.axvline(split, color="#555555", linestyle=":", linewidth=1)
    return finish(figure, axes, path)


def draw_methods(r: Results, path: Path) -> str:
    methods = r.there(MAIN)
    figure, axis = plt.subplots(figsize=(9, 0.42 * len(methods) + 1.2))
    for y, m in enumerate(methods):
        (first, a), (second, b) = (interval(r.values(m, greedy(k))) for k in ("acc_t1", "acc_t2"))
        axis.plot([100 * first, 100 * second], [y, y], color=COLORS[m], linewidth=2.4)
        axis.plot(100 * first, y, "o", color=COLORS[m], markersize=5)
        if abs(second - first) > 0.01:
            axis.plot(100 * second, y, ">" if second > first else "<", color=COLORS[m], markersize=8)
        for seed in sorted(r.of[m]):
            axis.plot(100 * r.of[m][seed]["greedy"]["acc_t2"], y + 0.28, "|", color=COLORS[m], markersize=6)
        delta, half = interval(r.values(m, greedy("delta")))
        text = f"Δ {100 * delta:+.1f}" + ("" if math.isnan(half) else f" ± {100 * half:.1f}")
        axis.text(1.01, y, text, transform=axis.get_yaxis_transform(), va="center", fontsize=9, color=COLORS[m])
    axis.set_yticks(range(len(methods)), [r.labels[m] for m in methods])
    axis.invert_yaxis()
    axis.set(xlabel="accuracy on held-out problems, greedy (%): from attempt 1 (dot) to attempt 2 (tip); ticks: seeds")
    return finish(figure, [axis], path)


def draw_distances(r: Results, path: Path) -> str:
    methods = r.there(("base", "star+", "pair+", "both", "score"))
    figure, axes = plt.subplots(1, len(methods), figsize=(2.7 * len(methods), 3), sharey=True, squeeze=False)
    for axis, m in zip(axes[0], methods, strict=True):
        for which, style in (("training", dict(histtype="step", color="#333333")), ("held-out", dict(color=COLORS[m], alpha=0.75))):
            counts = [sum(c) for c in zip(*r.values(m, lambda row, w=which: row["distances"][w]), strict=True)]
            weights = [100 * c / sum(counts) for c in counts]
            axis.hist([i / 20 + 0.025 for i in range(20)], bins=20, range=(0, 1), weights=weights, label=which, **style)
        axis.set(title=r.labels[m], xlabel="edit distance ratio", yscale="log", ylim=(0.1, 100))
    axes[0][0].set_ylabel("problems (%), log scale")
    axes[0][0].legend(frameon=False)
    return finish(figure, axes[0], path)


def draw_fixed(r: Results, path: Path) -> str:
    methods = r.there(("pair", "pair+", "both", "score"))
    figure, axes = plt.subplots(1, len(methods), figsize=(3 * len(methods), 3.2), sharey=True, squeeze=False)
    for axis, m in zip(axes[0], methods, strict=True):
        for name, style in (("own", "-"), ("fixed", "--")):
            xs = [point["update"] for point in r.values(m, lambda row: row["kept"])[0]]
            curves = r.values(m, lambda row, n=name: [point[f"mended {n}"] or 0.0 for point in row["kept"]])
            band(axis, xs, curves, COLORS[m], "after its own attempt" if name == "own" else "after the base's", style)
        axis.set(title=r.labels[m], xlabel="updates")
    axes[0][0].set_ylabel("wrong attempts mended (%)")
    axes[0][0].legend(frameon=False)
    return finish(figure, axes[0], path)


def draw_attempts(r: Results, path: Path) -> str:
    figure, axis = plt.subplots(figsize=(6.5, 3.8))
    methods = r.there(("base", "pair+", "both", "score", "score3"))
    for m in methods:
        band(axis, range(1, 11), [r.of[m][s]["greedy"]["acc"] for s in r.shared(methods)], COLORS[m], r.labels[m])
    axis.set(xlabel="attempt", ylabel="accuracy, greedy (%)", xticks=range(1, 11))
    axis.legend(frameon=False, ncols=2)
    return finish(figure, [axis], path)


def draw_votes(r: Results, path: Path) -> str:
    figure, axes = plt.subplots(1, 2, figsize=(9.5, 3.7), sharey=True)
    ks = budgets(r)
    for m in r.there(("base", "both", "score")):
        for way, style in (("parallel", "--"), ("corrected", "-")):
            curves = r.values(m, lambda row, w=way: [point[w] for point in row["votes"]])
            spent = r.values(m, lambda row, w=way: [point[f"{w} tokens"] for point in row["votes"]])
            label = f"{r.labels[m]}, " + ("K first attempts" if way == "parallel" else "K/2, each corrected")
            band(axes[0], ks, curves, COLORS[m], label, style)
            band(axes[1], [sum(t) / len(t) for t in zip(*spent, strict=True)], curves, COLORS[m], None, style)
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
    methods, kinds = r.there(READERS), {"own": "its own attempt", "near": "a near miss", "wrong": "an unrelated wrong attempt"}
    figure, axis = plt.subplots(figsize=(10, 3.8))
    for i, (kind, text) in enumerate(kinds.items()):
        points = [interval([v for v in r.values(m, lambda row, k=kind: row["swap"]["wrong_first"][k]) if v is not None] or [0.0])
                  for m in methods]  # fmt: skip
        errors = [0 if math.isnan(half) else 100 * half for _, half in points]
        xs, color = [x + 0.27 * (i - 1) for x in range(len(methods))], ("#1b5fa8", "#7fb7de", "#c8c8c8")[i]
        heights = [100 * mean for mean, _ in points]
        axis.bar(xs, heights, 0.25, yerr=errors, label=text, color=color, error_kw=dict(linewidth=0.8))
    axis.set_xticks(range(len(methods)), [r.labels[m].replace(", ", ",\n") for m in methods], fontsize=8, rotation=30, ha="right")
    axis.set(ylabel="attempt 2 right (%), problems\nwith a wrong attempt 1", ylim=(0, None))
    axis.legend(frameon=False, ncols=3, loc="lower center", bbox_to_anchor=(0.5, 1))
    return finish(figure, [axis], path)


def draw_sweeps(r: Results, path: Path) -> str:
    sweeps = sweeps_of(r)
    figure, (axes,) = plt.subplots(1, len(sweeps), figsize=(1 + 3 * len(sweeps), 3.3), sharey=True, squeeze=False)
    for axis, (name, points) in zip(axes, sweeps.items(), strict=True):
        seeds = r.shared([m for _, m in points])
        for key, color in (("acc_t1", FIRST), ("acc_t2", COLORS["score"])):
            found = [interval([r.of[m][s]["greedy"][key] - r.of["score"][s]["greedy"][key] for s in seeds]) for _, m in points]
            halves = [0 if math.isnan(half) else 100 * half for _, half in found]
            axis.errorbar(range(len(points)), [100 * mean for mean, _ in found], halves, color=color, marker="o", capsize=3,
                          label="attempt 1" if key == "acc_t1" else "attempt 2")  # fmt: skip
        axis.set_xticks(range(len(points)), [f"{v:g}" for v, _ in points])
        axis.set_xlabel(SWEPT[name])
        axis.axhline(0, color="#555555", linewidth=0.8)
    axes[0].set_ylabel("accuracy − SCoRe's (points)")
    axes[0].legend(frameon=False, loc="lower left")
    return finish(figure, axes, path)


# ------------------------------------------------------------------------------------------------------ the report


def sensitivity(r: Results, place: Path) -> str:
    if not sweeps_of(r):
        return "The sweeps have not been run: `python experiments/paper.py` makes them behind the methods."
    return f"""![Accuracy of both attempts against each setting]({draw_sweeps(r, place / "sweeps.png")})

One setting at a time, the rest as in SCoRe, whose own accuracy with the same seeds is the line at 0; a panel has the seeds that all
its values have. With no update of Stage I, all are Stage II's at Stage I's learning rate.

{sweep_table(r)}"""


def write_report(rows: list[dict], labels: dict[str, str], place: Path) -> Path:
    """paper.md and its pictures, from the results that there are: ValueError if too few, or of different settings."""
    r = Results(rows, labels)
    if missing := {"base", "score", "both"} - r.of.keys():
        raise ValueError(f"no result yet of {', '.join(sorted(missing))}: the report needs these three at least")
    settings = {(*row["steps"], row["batch"], row["greedy"]["n"]) for row in rows}
    if len(settings) > 1:
        raise ValueError(f"results of different settings, {settings}: remove {place / 'paper.json'} or the older runs")
    score = next(iter(r.of["score"].values()))
    one, two = score["steps"]
    text = f"""# The paper's tables and figures, made again on the toy task

Made by `python experiments/paper.py`: division with three-digit quotients, {one} + {two} updates of {score["batch"]} rollouts
for each method, {score["greedy"]["n"]} held-out problems a seed. Percent, mean ± 95 % interval over seeds (Student's t); greedy
unless said. Each seed draws the split, the weights and all samples anew; within a seed all methods start from one base. The
numbers of every run, with its commit: `paper.json`. Seeds differ by more than most methods do: compare methods with unequal numbers
of seeds by the paired differences only.

## 1. Methods (tables 1 and 2 of the paper)

![From attempt 1 to attempt 2]({draw_methods(r, place / "methods.png")})

Look at how far dot and tip are apart. Budgets: RL and Pair-SFT have {one + two} updates at the same learning rate and batch. STaR
has three rounds of a third each, always from the base; the base and Self-Refine are not trained; Stage I is SCoRe's first part;
SCoRe with three attempts has one part of Stage I more ({2 * one + two}). Self-Refine's verdicts are honest, but by construction
the base does not heed them: in its demonstrations what follows a verdict is drawn without a look at it.

{main_table(r, MAIN)}

## 2. Ablations (table 4)

Differences are paired: the same seed's base and problems. What differs beside the label: without Stage I all updates are Stage
II's, at Stage I's learning rate; without online first attempts turn 1 is not trained at all. With the baseline by the first
attempt's outcome the bonus multiplies turn 2's advantage by 1 + α and does nothing else (but for a rollout that is alone with its
outcome): without it turn 2's KL weighs 11 times as much against its reward. The row "β1 / 11" keeps that ratio (and loosens turn
1's KL).

{ablation_table(r)}

Other pairs of methods, on the seeds that both have:

{pairs_table(r)}

## 3. How much attempt 2 changes (edit distance ratio)

![Edit distance ratio of both attempts]({draw_distances(r, place / "distances.png")})

Insertions and deletions over both lengths, in characters; at 0 the attempt is copied. Bars: held-out problems; line: training
problems. Where they agree, what was learned carries over.

## 4. Its own mistakes and the base's (distribution shift)

![Mistakes mended over training]({draw_fixed(r, place / "fixed.png")})

What attempt 2 mends of the problems on which both the model's own first attempt and the base's are wrong, after the one and after
the other. A method that learned from the base's mistakes alone may mend those better than its own.

{fixed_table(r)}

## 5. Learning curves

![Accuracy of both attempts during training]({draw_story(r, place / "story.png")})

Rollouts on training problems, sampled at T = 1. Dotted: where Stage II begins.

## 6. Up to ten attempts

![Accuracy after 1 to 10 attempts]({draw_attempts(r, place / "attempts.png")})

All but SCoRe with three attempts were trained with two at most; the base has seen dialogues of ten. The picture has the seeds that
all of its methods have.

{attempts_table(r)}

## 7. Inference compute: more first attempts, or correction?

![Majority vote against attempts and tokens]({draw_votes(r, place / "votes.png")})

Majority vote at T = 0.7: K first attempts, or K / 2 dialogues whose second attempts vote. Right: the same against the tokens
that were sampled.

{votes_table(r)}

## 8. By difficulty

The level is the divisor. Shares of the level's problems.

{level_table(r)}

## 9. Who reads the first attempt? (swap test)

![Accuracy of attempt 2 after a swapped attempt 1]({draw_swap(r, place / "swap.png")})

Accuracy of attempt 2 where the model's own attempt 1 is wrong, when another text stands in its place. A model that does
not look at attempt 1 does not care which. (The other texts have true checks, its own at times false ones.)

{swap_table(r)}

## 10. Sensitivity

{sensitivity(r, place)}
"""
    path = place / "paper.md"
    path.write_text(text)
    return path
