"""The paper's tables and figures on the toy task, with error bars: trains the grid of methods, measures them, reports.

    python experiments/paper.py                 every method on five seeds, the sweeps on three; goes on where it was stopped
    python experiments/paper.py --quick         one seed with few steps, to see that it runs: nothing is learned to the end
    python experiments/paper.py --report        tables and pictures again, from experiments/results/paper.json

A method is a row of `grid`: settings of train.py's one loop, or a filter that makes the dialogues it imitates. All methods of a
seed share its base and its held-out problems, those with `start="stage1"` SCoRe's Stage I, and each has as many rollouts and
updates as SCoRe (but for what the report names). A run takes one core; `--workers` of them go on side by side.
"""

import argparse
import contextlib
import dataclasses
import json
import os
import shutil
import subprocess
import sys
import time
from collections import Counter, defaultdict
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from dataclasses import dataclass, field
from multiprocessing import get_context
from pathlib import Path
from random import Random

import torch

from data import Problem, load_task, train_problems
from eval import edit_distance_ratio, evaluate, held_out_of, swap_test, without_nan
from model import GPT
from train import PRESETS, Config, load, load_model, make_tokenizer, open_run, save, train

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "experiments" / "results"
GRIDS = {  # settings beside train.py's defaults
    "full": dict(stage1_steps=Config.stage1_steps, stage2_steps=Config.stage2_steps, eval_n=1000),
    "quick": dict(base_steps=300, stage1_steps=30, stage2_steps=20, eval_n=200),
}
ATTEMPTS = 10
SAMPLES, BUDGETS = 32, (2, 4, 8, 16, 32)  # for the majority vote: dialogues of each problem, and attempts that vote
KEPT = ("score", "both", "pair", "pair+")  # methods whose checkpoints on the way are measured, too
LONG = ("base", "pair+", "both", "stage1", "score", "score3")  # methods that make ten attempts and vote


@dataclass(frozen=True)
class Method:
    label: str
    settings: dict = field(default_factory=dict)  # of train.Config, beside the grid's own
    start: str = "base"  # whose weights it starts from: base, or stage1, that of `score`
    traces: str = ""  # what it imitates: star, pair, oracle; with + right first attempts are in it, too
    trained: bool = True  # False: only measured, as it stands
    seeds: int = 5


def grid(kind: str) -> dict[str, Method]:
    """All methods, in the order in which they are trained."""
    one, two = steps_of(kind)
    once = dict(stage1_steps=0, stage2_steps=one + two)
    plain, single = (PRESETS[name] | once for name in ("plain", "single"))
    no_rl = dict(stage1_steps=0, stage2_steps=0)
    imitation, star = no_rl | dict(imitate_steps=one + two), no_rl | dict(imitate_steps=(one + two) // 3)
    sweep = {f"alpha={a:g}": Method(f"α = {a:g}", dict(alpha=a), "stage1", seeds=3) for a in (1.0, 3.0, 30.0)}
    sweep |= {f"beta1={b:g}": Method(f"Stage II's β1 = {b:g}", dict(stage2_beta1=b), "stage1", seeds=3) for b in (0.01, 0.1, 1.0)}
    sweep |= {f"beta2={b:g}": Method(f"β2 = {b:g}", dict(beta2=b), seeds=3) for b in (0.02, 1.0)}
    sweep |= {f"stage1={n}": Method(f"Stage I of {n} updates", dict(stage1_steps=n, stage2_steps=one + two - n), seeds=3)
              for n in ((one + two) // 4, 3 * (one + two) // 4)}  # fmt: skip
    return {
        "base": Method("base", no_rl),
        "score": Method("SCoRe"),
        "both": Method("plain RL, both turns", plain),
        "stage1": Method("Stage I", start="stage1", trained=False),
        "self_refine": Method("Self-Refine", trained=False),
        "no_stage1": Method("SCoRe without Stage I", once | dict(stage2_lr=Config.lr)),
        "no_bonus": Method("SCoRe without the bonus", dict(alpha=0.0), "stage1"),
        "pair": Method("Pair-SFT D", imitation, traces="pair"),
        "pair+": Method("Pair-SFT D+", imitation, traces="pair+"),
        "star": Method("STaR D", star, traces="star"),
        "star+": Method("STaR D+", star, traces="star+"),
        "oracle": Method("oracle SFT", imitation, traces="oracle"),
        "single": Method("single-turn RL", single),
        "standard": Method("plain RL, turn 2 alone", plain | dict(stage2_weights="0,1")),
        "star_two": Method("STaR D+ as Stage II", no_rl | dict(imitate_steps=two // 3), "stage1", "star+"),
        "offline": Method("no online first attempts", dict(offline_share=1.0)),
        "offline_too": Method("half of them offline in Stage II", dict(offline_share=0.5), "stage1"),
        "interleaved": Method("stages interleaved (v1)", dict(interleave=2)),
        "gamma=0.8": Method("γ = 0.8 in Stage II", dict(gamma=0.8), "stage1"),
        "gamma=1": Method("γ = 1 in Stage II", dict(gamma=1.0), "stage1"),
        "rloo": Method("RLOO by problem", dict(baseline="rloo", samples_per_problem=4)),
        "score3": Method("SCoRe, three attempts", dict(turns=3), "stage1"),
        "no_bonus_kl": Method("no bonus, β1 / 11", dict(alpha=0.0, stage2_beta1=Config.stage2_beta1 / 11), "stage1", seeds=3),
        "both_kl": Method("plain RL, SCoRe's β1", plain | dict(stage2_beta1=Config.stage2_beta1), seeds=3),
        **sweep,
    }


def steps_of(kind: str) -> tuple[int, int]:
    return GRIDS[kind]["stage1_steps"], GRIDS[kind]["stage2_steps"]


# ------------------------------------------------------------------------------------------------------ one run


def run(kind: str, out: str, name: str, seed: int, commit: str = "") -> None:
    """Trains a method on a seed, or goes on with it, and writes what is measured: <out>/seed<N>/<name>/result.json."""
    torch.set_num_threads(1)
    folder, method, started = Path(out) / f"seed{seed}" / name, grid(kind)[name], time.time()
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / "log.txt", "a") as log, contextlib.redirect_stdout(log):
        start = folder.parent / ("score/stage1.pt" if method.start == "stage1" else "base/base.pt")
        keep_every = max(2, sum(steps_of(kind)) // 6) if name in KEPT else 0
        own = dict(seed=seed, out=str(folder.parent), name=name, keep_every=keep_every, report=False, device="cpu")
        c = Config(**{**GRIDS[kind], **method.settings, **own})
        if name != "base":
            c = dataclasses.replace(c, init=str(folder.parent / "base" / "base.pt"))
        if not method.trained:
            last = start
        elif method.traces:
            last = imitate(c, method.traces, start)
        else:
            if method.start == "stage1" and not (folder / "last.pt").exists():
                behind_stage1(start.parent, c)
            go_on(c)
            last = folder / ("base.pt" if name == "base" else "stage2.pt")
        minutes = (time.time() - started) / 60
        model, base = load_model(last, "cpu")[0], load_model(folder.parent / "base" / "base.pt", "cpu")[0]
        found = measure(model, base, c, feedback=name == "self_refine", long=name in LONG)
        found["kept"] = kept(folder, base, c) if name in KEPT else []
        found["traces"] = [len(path.read_text().splitlines()) for path in sorted(folder.glob("round*.jsonl"))]
    about = {"method": name, "seed": seed, "minutes": minutes, "steps": steps_of(kind), "batch": c.batch, "commit": commit}
    result = about | found | {"curve": learning_curve(folder / "metrics.jsonl")}
    draft = folder / "result.tmp"
    draft.write_text(json.dumps(rounded(without_nan(result))) + "\n")
    os.replace(draft, folder / "result.json")


def go_on(c: Config) -> None:
    """train.py, from the start or from where it was stopped. ValueError if that was with other settings."""
    folder = Path(c.out) / c.name
    if not (folder / "last.pt").exists():
        (folder / "metrics.jsonl").unlink(missing_ok=True)
        train(*open_run(c, ""))
        return
    before, state = open_run(c, str(folder))
    if before != dataclasses.replace(c, out=before.out):
        raise ValueError(f"{folder} was begun with other settings: remove it, or its grid's folder, and start anew")
    train(before, state)


def behind_stage1(source: Path, c: Config) -> None:
    """Makes a run of config c that has Stage I behind it: the weights, reference and curve of the run `source`."""
    folder = Path(c.out) / c.name
    (folder / "config.json").write_text(json.dumps(dataclasses.asdict(c), indent=1) + "\n")
    for file in ("base.pt", "stage1.pt"):
        shutil.copy(source / file, folder)
    rows = (source / "metrics.jsonl").read_text().splitlines()[: c.stage1_steps]
    (folder / "metrics.jsonl").write_text("".join(f"{row}\n" for row in rows))
    row = json.loads(rows[-1])
    progress = {"stage": 1, "step": 0, "row": row, "seconds": row["seconds"], "optimizers": []}
    save(folder / "last.pt", load(source / "stage1.pt") | {"config": dataclasses.asdict(c)} | progress)


def imitate(c: Config, source: str, start: Path) -> Path:
    """Supervised rounds, each from the same start: STaR samples each round's dialogues with the model of the round before."""
    last, rounds = start, 3 if source.startswith("star") else 1
    for number in range(1, rounds + 1):
        folder = Path(c.out) / c.name / f"round{number}"
        traces = folder.with_suffix(".jsonl")
        if not traces.exists():
            model, _ = load_model(last, "cpu")
            rows = dialogues_to_imitate(model, c, source, c.imitate_steps * c.batch, number)
            traces.with_suffix(".tmp").write_text("".join(json.dumps(row) + "\n" for row in rows))
            os.replace(traces.with_suffix(".tmp"), traces)
        go_on(dataclasses.replace(c, out=str(folder.parent), name=folder.name, init=str(start), imitate=str(traces)))
        last = folder / "imitate.pt"
    return last


def dialogues_to_imitate(model: GPT, c: Config, source: str, n: int, number: int) -> list[dict]:
    """Samples n dialogues on training problems and keeps those that the method imitates: rows of `prompt` and `attempts`."""
    star, plus, task = source.startswith("star"), source.endswith("+"), load_task(c.task)
    samples = 16 if source.startswith("pair") else 1  # of each problem: there a wrong one must meet a right one
    problem_at = train_problems(task, c.size, c.seed)
    problems = [problem_at((number * 10**7 + i) // samples) for i in range(n)]
    _, transcripts = evaluate(model, c, problems, turns=2 if star else 1, temperature=1.0)
    if star:
        rows = star_rows(transcripts, plus)
    elif source == "oracle":
        rng = Random(c.seed)
        rows = [(p, texts[0], task.attempt(p, "right", rng).text) for p, texts, _ in transcripts]
    else:
        rows = pair_rows(transcripts, plus, Random(c.seed))
    if not rows:
        raise ValueError(f"none of {n} sampled dialogues is one that {source} imitates: a base that is trained longer has some")
    return [{"prompt": problem.prompt, "attempts": list(attempts)} for problem, *attempts in rows]


def star_rows(transcripts: list, plus: bool) -> list[tuple[Problem, str, str]]:
    """STaR (Zelikman et al., arXiv 2203.14465): sampled dialogues that go from wrong to right; with D+ those right twice, too."""
    return [(p, *texts[:2]) for p, texts, right in transcripts if right[1] and (plus or not right[0])]


def pair_rows(transcripts: list, plus: bool, rng: Random) -> list[tuple[Problem, str, str]]:
    """Pair-SFT (Welleck et al., arXiv 2211.00053): a right first attempt behind a wrong one of its problem; D+: behind any."""
    right_ones = defaultdict(list)
    for problem, texts, right in transcripts:
        if right[0]:
            right_ones[problem.prompt].append(texts[0])
    return [(p, texts[0], rng.choice(right_ones[p.prompt])) for p, texts, right in transcripts
            if right_ones[p.prompt] and (plus or not right[0])]  # fmt: skip


# ------------------------------------------------------------------------------------------------------ what is measured


def measure(model: GPT, base: GPT, c: Config, feedback: bool, long: bool) -> dict:
    """All that the report shows of a model; if `long`, ten attempts and majority votes."""
    task, problems = load_task(c.task), held_out_of(c, c.eval_n)
    problem_at = train_problems(task, c.size, c.seed)
    practised = list({p.prompt: p for p in map(problem_at, range(3 * c.eval_n))}.values())[: c.eval_n]
    greedy, transcripts = evaluate(model, c, problems, turns=ATTEMPTS if long else 2, feedback=feedback)
    on_training, seen = evaluate(model, c, practised, feedback=feedback)
    found = {"greedy": greedy, "training": on_training}
    found["sampled"] = evaluate(model, c, problems, temperature=1.0, feedback=feedback)[0]
    found["distances"] = {"held-out": distances(transcripts), "training": distances(seen)}
    found["levels"] = by_level(task, transcripts)
    found["swap"] = swap_test(model, c, transcripts)
    fixed, after = evaluate(model, c, after_first_attempts_of(base, c, problems))
    found["fixed"] = fixed | both_wrong(transcripts, after)
    if long:
        few = problems[: c.eval_n // 4]
        tokenizer = make_tokenizer(c)
        _, samples = evaluate(model, c, [p for p in few for _ in range(SAMPLES)], temperature=0.7)
        found["votes"] = vote_curves(samples, lambda text: len(tokenizer.encode(text)) + 1, getattr(task, "graded", str))
    return found


def distances(transcripts: list) -> list[int]:
    """A histogram of the edit distance ratio of both attempts, 20 bins from 0 to 1."""
    counts = [0] * 20
    for _, texts, _ in transcripts:
        counts[min(19, int(20 * edit_distance_ratio(*texts[:2])))] += 1
    return counts


def by_level(task, transcripts: list) -> dict[str, list[int]]:
    """Of each level: problems, right first attempts, i→c, c→i."""
    counts = defaultdict(lambda: [0] * 4)
    for problem, _, (first, second, *_) in transcripts:
        for i, yes in enumerate((True, first, second and not first, first and not second)):
            counts[str(task.level(problem))][i] += yes
    return dict(sorted(counts.items()))


def after_first_attempts_of(base: GPT, c: Config, problems: list[Problem]) -> list[Problem]:
    """The problems with the base's greedy first attempt as given: turn 2 on mistakes that are not the model's own."""
    _, transcripts = evaluate(base, c, problems, turns=1)
    return [p._replace(given=texts[0] or " ") for p, texts, _ in transcripts]


def both_wrong(own: list, after: list) -> dict[str, float]:
    """What turn 2 mends where the model's own first attempt and the base's are wrong: `mended own`, `mended fixed`, `wrong`.

    On the same problems, for those that a trained model still gets wrong are the harder ones.
    """
    wrong = [(a[1], b[1]) for (_, _, a), (_, _, b) in zip(own, after, strict=True) if not a[0] and not b[0]]
    n = len(wrong)
    return {"mended own": sum(a for a, _ in wrong) / n if n else None, "mended fixed": sum(b for _, b in wrong) / n if n else None,
            "wrong": n}  # fmt: skip


def kept(folder: Path, base: GPT, c: Config) -> list[dict]:
    """Over training, on 500 problems: what is mended after the model's own first attempts and after the base's."""
    problems = held_out_of(c, c.eval_n)[:500]
    fixed, rows, before = after_first_attempts_of(base, c, problems), [], {"stage2": c.stage1_steps}
    ends = {"stage1": c.stage1_steps, "stage2": c.stage2_steps, "imitate": c.imitate_steps}
    paths = [p for p in folder.rglob("*.pt") if p.stem.partition("-")[0] in ends]
    for path in [folder.parent / "base" / "base.pt", *paths]:
        stage, _, step = path.stem.partition("-")
        model, _ = load_model(path, "cpu")
        update = before.get(stage, 0) + (int(step) if step else ends.get(stage, 0))
        rows.append({"update": update} | both_wrong(evaluate(model, c, problems)[1], evaluate(model, c, fixed)[1]))
    return sorted({row["update"]: row for row in rows}.values(), key=lambda row: row["update"])


def vote_curves(samples: list, tokens, graded) -> list[dict]:
    """Majority votes from SAMPLES dialogues of each problem: K first attempts against K / 2 that are corrected once each.

    Accuracy and tokens sampled a problem, averaged over the disjoint groups of K. The second vote is over the corrected answers.
    """
    rows, groups = [], [samples[i : i + SAMPLES] for i in range(0, len(samples), SAMPLES)]
    for k in BUDGETS:
        row = {"k": k}
        for name, turn, size in (("parallel", 0, k), ("corrected", 1, k // 2)):
            parts = [group[i : i + size] for group in groups for i in range(0, SAMPLES, size)]
            row[name] = sum(vote([(graded(texts[turn]), right[turn]) for _, texts, right in part]) for part in parts) / len(parts)
            spent = sum(tokens(text) for part in parts for _, texts, _ in part for text in texts[: turn + 1])
            row[f"{name} tokens"] = spent / len(parts)
        rows.append(row)
    return rows


def vote(answers: list[tuple[str, bool]]) -> bool:
    """Whether the commonest of (answer, is it right) is right; of equally common ones the first counts.

    An attempt that was cut off is never right, whatever it says: it does not take the point from others with its answer.
    """
    winner, _ = Counter(answer for answer, _ in answers).most_common(1)[0]
    return any(right for answer, right in answers if answer == winner)


def learning_curve(path: Path) -> dict[str, list[float]]:
    """Accuracy of both attempts and the change rate of the rollouts, means of five updates."""
    rows = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    rows = [row for row in rows if row["stage"].startswith("stage")]
    blocks = [rows[i : i + 5] for i in range(0, len(rows), 5)]
    return {key: [sum(row[key] for row in block) / len(block) for block in blocks] for key in ("acc_t1", "acc_t2", "change_rate")}


def rounded(value):
    """Four digits are plenty for shares of a thousand problems, and keep the file small."""
    if isinstance(value, dict):
        return {key: rounded(v) for key, v in value.items()}
    if isinstance(value, list):
        return [rounded(v) for v in value]
    return round(value, 4) if isinstance(value, float) else value


def commit_here() -> str:
    """The commit of the code, with -dirty if it was changed since; "" outside a git checkout."""
    done = subprocess.run(["git", "describe", "--always", "--dirty", "--exclude=*"], cwd=ROOT, capture_output=True, text=True)
    return done.stdout.strip()


# ------------------------------------------------------------------------------------------------------ the whole grid


def jobs_of(kind: str, seeds: list[int]) -> list[tuple[str, int]]:
    """(method, seed) in the order of their start: three seeds of the methods, the sweeps, then the other seeds."""
    methods, first, more = grid(kind), seeds[:3], seeds[3:]
    main = [name for name in methods if methods[name].seeds == 5]
    few = [] if kind == "quick" else [name for name in methods if methods[name].seeds < 5]
    return [(name, seed) for names, some in ((main, first), (few, first), (main, more)) for seed in some for name in names]


def needs(kind: str, name: str, seed: int) -> set[tuple[str, int]]:
    """The runs from which this one starts."""
    return {("base", seed)} - {(name, seed)} | ({("score", seed)} if grid(kind)[name].start == "stage1" else set())


def run_all(kind: str, out: Path, seeds: list[int], methods: list[str], workers: int) -> bool:
    """Runs what has no result yet, each run when those it needs are done. False if one failed or could not start."""
    commit, started, failed, running = commit_here(), time.time(), {}, {}
    done = {(file.parent.name, int(file.parent.parent.name.removeprefix("seed"))) for file in out.glob("seed*/*/result.json")}
    todo = [job for job in jobs_of(kind, seeds) if job not in done and (not methods or job[0] in methods)]
    total = len(todo)
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        while True:
            for job in [job for job in todo if needs(kind, *job) <= done][: workers - len(running)]:
                todo.remove(job)
                running[pool.submit(run, kind, str(out), *job, commit)] = job
            if not running:
                break
            finished, _ = wait(running, return_when=FIRST_COMPLETED)
            for future in finished:
                job, error = running.pop(future), future.exception()
                failed |= {job: repr(error)} if error else {}
                done |= set() if error else {job}
                minutes, ended = (time.time() - started) / 60, total - len(todo) - len(running)
                print(f"{ended}/{total}  seed {job[1]} {job[0]:<12} {'FAILED' if error else 'done'}  {minutes:.0f} min, "
                      f"ETA {minutes * (total - ended) / ended:.0f} min", flush=True)  # fmt: skip
    for (name, seed), error in (
        failed | {job: "the run that it starts from failed, or --methods leaves it out" for job in todo}
    ).items():
        print(f"seed {seed} {name}: {error}; its log is {out}/seed{seed}/{name}/log.txt")
    return not failed and not todo


def gather_results(out: Path, path: Path) -> list[dict]:
    """All results under `out` and those of other seeds and methods that `path` has already; writes `path`."""
    old = json.loads(path.read_text()) if path.exists() else []
    new = [json.loads(file.read_text()) for file in sorted(out.glob("seed*/*/result.json"))]
    rows = {(row["seed"], row["method"]): row for row in [*old, *new]}
    found = [rows[key] for key in sorted(rows)]
    path.write_text("[\n" + ",\n".join(json.dumps(row) for row in found) + "\n]\n")
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--quick", action="store_true", help="one seed, few steps, into out/paper-quick")
    parser.add_argument("--report", action="store_true", help="train nothing: tables and pictures of the results there are")
    parser.add_argument("--seeds", default="", help="e.g. 0,1,2; default 0,1,2,3,4, with --quick 0")
    parser.add_argument("--methods", default="", help="only these, e.g. base,score,both; those they start from must be among them")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="runs side by side, a core each")
    args = parser.parse_args()
    kind = "quick" if args.quick else "full"
    out = ROOT / "out" / ("paper-quick" if args.quick else "paper")
    place = out if args.quick else RESULTS
    seeds = [int(s) for s in args.seeds.split(",")] if args.seeds else [0] if args.quick else [0, 1, 2, 3, 4]
    out.mkdir(parents=True, exist_ok=True)
    try:
        from experiments.paper_report import write_report  # now rather than after hours
    except ImportError:
        sys.exit("error: the report needs matplotlib: pip install -e .[plots]")
    methods = args.methods.split(",") if args.methods else []
    if unknown := set(methods) - set(grid(kind)):
        sys.exit(f"error: no method {sorted(unknown)[0]!r}: there are {', '.join(grid(kind))}")
    fine = args.report or run_all(kind, out, seeds, methods, args.workers)
    results = gather_results(out, place / "paper.json")
    try:
        print(f"{write_report(results, {name: m.label for name, m in grid(kind).items()}, place)} has the report")
    except ValueError as error:
        sys.exit(f"error: {error}")
    sys.exit(0 if fine else 1)


if __name__ == "__main__":
    main()
