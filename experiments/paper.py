"""The paper's tables and figures on the toy task, with error bars: trains all methods and writes a report.

    python experiments/paper.py            the main methods on five seeds, variants on three, long runs on one
    python experiments/paper.py --quick    one seed with few steps, to see that it runs
    python experiments/paper.py --report   only the report again, from experiments/results/paper.json

After a stop the same command goes on. The report needs matplotlib: pip install -e '.[plots]'.

A method is a row of `grid`: settings for train.py and, for the supervised methods, the source of the
dialogues that they imitate. Within a seed all methods have the same base and the same held-out problems, and
those with start="stage1" share SCoRe's Stage I. All methods have as many dialogues and updates as SCoRe; the
report names the exceptions, and those whose name ends in _x4 have four times as many. Each run takes one
core, and `--workers` of them run at the same time.
"""

import argparse
import contextlib
import dataclasses
import importlib.util
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

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # so that it runs without being installed

from data import Problem, load_task, train_problems
from engine.build import held_out_of, make_tokenizer, training_problems_of
from engine.checkpoints import load, open_run, save, write
from engine.cli import run_script
from engine.options import require
from engine.presets import PRESETS
from engine.report import without_nan
from eval import edit_distance_ratio, evaluate, swap_test
from model import GPT
from train import Config, load_model, stages, train

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "experiments" / "results"
GRIDS = {  # settings beside train.py's defaults
    "full": dict(stage1_steps=Config.stage1_steps, stage2_steps=Config.stage2_steps),
    "quick": dict(base_steps=300, stage1_steps=30, stage2_steps=20, eval_n=200),
}
ORACLE_LR = 0.0015  # had the best Acc@t2 of 0.0015, 0.005, 0.015 on seed 102; Pair-SFT's best was Config.lr
ATTEMPTS = 10
SAMPLES = 32  # for the majority vote: dialogues of each problem
BUDGETS = (2, 4, 8, 16, 32)  # how many of the attempts vote; they divide SAMPLES
KEPT = ("score", "both", "pair", "pair+")  # methods that are also measured in the middle of their training
LONG = ("base", "pair+", "both", "stage1", "score")  # methods that make ten attempts and vote


@dataclass(frozen=True)
class Method:
    label: str
    settings: dict = field(default_factory=dict)  # of train.Config, beside the grid's own
    start: str = "base"  # whose weights it starts from: the base, or stage1, which is that of `score`
    traces: str = ""  # what it imitates: star, pair or oracle; star+ and pair+ keep right first attempts, too
    trained: bool = True  # False: the weights it starts from are measured as they are
    seeds: int = 5


def grid(kind: str) -> dict[str, Method]:
    """All methods, in the order in which they are trained."""
    one, two = steps_of(kind)
    total = one + two
    once = dict(stage1_steps=0, stage2_steps=total)
    plain, single = (PRESETS[name][1] | once for name in ("plain", "single"))
    no_rl = dict(stage1_steps=0, stage2_steps=0)
    imitation, star = (no_rl | dict(imitate_steps=n) for n in (total, total // 3))
    four = dict(stage1_steps=4 * one, stage2_steps=4 * two)
    plain_four, sft_four = plain | dict(stage2_steps=4 * total), imitation | dict(imitate_steps=4 * total)
    star_two = no_rl | dict(imitate_steps=two // 3)
    beta, few, forked = Config.stage2_beta, dict(seeds=3), dict(start="stage1", seeds=3)
    solo = dict(seeds=1)
    sweep = {}
    for a in (1.0, 30.0):
        sweep[f"alpha={a:g}"] = Method(f"α = {a:g}", dict(alpha=a), **forked)
    for b in (0.01, 0.1, 1.0):
        sweep[f"beta1={b:g}"] = Method(f"β of Stage II = {b:g}", dict(stage2_beta=b), **forked)
    rivals = {}
    for b in (0.01, 0.1):
        rivals[f"plain={b:g}"] = Method(f"plain RL, β = {b:g}", plain | dict(stage2_beta=b), **few)
    return {
        "base": Method("base", no_rl),
        "score": Method("SCoRe"),
        "stage1": Method("Stage I", start="stage1", trained=False),
        "both": Method("plain RL, both turns", plain),
        "pair+": Method("Pair-SFT D+", imitation, traces="pair+"),
        "oracle": Method("oracle SFT", imitation | dict(lr=ORACLE_LR), traces="oracle"),
        "no_bonus": Method("SCoRe without the bonus", dict(alpha=0.0), "stage1"),
        "no_stage1": Method("SCoRe without Stage I", once | dict(stage2_lr=Config.lr)),
        "star+": Method("STaR D+", star, traces="star+"),
        "self_refine": Method("Self-Refine", trained=False),
        "score_x4": Method("SCoRe, four times the updates", four, **solo),
        "both_x4": Method("plain RL, four times", plain_four, **solo),
        "pair+_x4": Method("Pair-SFT D+, four times", sft_four, traces="pair+", **solo),
        "oracle_x4": Method("oracle SFT, four times", sft_four | dict(lr=ORACLE_LR), traces="oracle", **solo),
        "single": Method("single-turn RL", single, **few),
        "gamma=1": Method("γ = 1 in Stage II", dict(gamma=1.0), **forked),
        "gamma=0.8": Method("γ = 0.8 in Stage II", dict(gamma=0.8), **forked),
        "pair": Method("Pair-SFT D", imitation, traces="pair", **few),
        "star": Method("STaR D", star, traces="star", **few),
        "star_two": Method("STaR D+ as Stage II", star_two, traces="star+", **forked),
        "beta2=0.02": Method("a weak hold in Stage I, β2 = 0.02", dict(beta2=0.02), **few),
        "offline": Method("no online first attempts", dict(offline_share=1.0), **few),
        "no_bonus_kl": Method("no bonus, β / 11", dict(alpha=0.0, stage2_beta=beta / 11), **forked),
        **rivals,
        **sweep,
    }


def steps_of(kind: str) -> tuple[int, int]:
    """SCoRe's updates in Stage I and in Stage II."""
    return GRIDS[kind]["stage1_steps"], GRIDS[kind]["stage2_steps"]


# ---------------------------------------------------------------------------------- one run


def run(kind: str, out: str, name: str, seed: int, commit: str = "", device: str = "cpu") -> None:
    """Trains a method on a seed and measures it. Writes <out>/seed<N>/<name>/result.json.

    A run that was stopped goes on.
    """
    torch.set_num_threads(1)
    home, method, started = Path(out).resolve() / f"seed{seed}", grid(kind)[name], time.time()
    folder, base_file = home / name, home / "base" / "base.pt"
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / "log.txt", "a", encoding="utf-8") as log, contextlib.redirect_stdout(log):
        start = home / "score" / "stage1.pt" if method.start == "stage1" else base_file
        keep_every = max(2, sum(steps_of(kind)) // 6) if name in KEPT else 0
        own = dict(
            seed=seed,
            out=str(home),
            name=name,
            keep_every=keep_every,
            report=False,
            overwrite=True,
            device=device,
        )
        own["init"] = "" if name == "base" else str(base_file)
        c = Config(**{**GRIDS[kind], **method.settings, **own})
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
        model, base = load_model(last, c.device)[0], load_model(base_file, c.device)[0]
        found = measure(model, base, c, feedback=name == "self_refine", long=name in LONG)
        found["kept"] = kept(folder, base, c) if name in KEPT else []
        found["traces"] = [len(lines_of(path)) for path in sorted(folder.glob("round*.jsonl"))]
    about = {"method": name, "seed": seed, "minutes": minutes, "steps": steps_of(kind), "batch": c.batch}
    result = {**about, "commit": commit, **found, "curve": learning_curve(folder / "metrics.jsonl")}
    write(folder / "result.json", json.dumps(rounded(without_nan(result))) + "\n")


def lines_of(path: Path) -> list[str]:
    return path.read_text(encoding="utf-8").splitlines()


def go_on(c: Config) -> None:
    """Trains as train.py does, from the start or from where the run was stopped.

    ValueError if the stopped run had other settings.
    """
    folder = Path(c.out) / c.name
    resume = str(folder) if (folder / "last.pt").exists() else ""
    with open_run(c, resume, stages) as (config, state):
        changed = bool(resume) and config != dataclasses.replace(c, out=config.out)
        require(not changed, f"{folder} was begun with other settings: remove it or its grid's folder")
        train(config, state)


def behind_stage1(source: Path, c: Config) -> None:
    """Makes the folder of a run that has Stage I behind it.

    `c` is the run's config. It gets the weights, the base and the metrics of Stage I of the run in the folder
    `source`.
    """
    folder, settings = Path(c.out) / c.name, dataclasses.asdict(c)
    (folder / "config.json").write_text(json.dumps(settings, indent=1) + "\n", encoding="utf-8")
    for file in ("base.pt", "stage1.pt"):
        shutil.copy(source / file, folder)
    rows = lines_of(source / "metrics.jsonl")[: c.stage1_steps]
    (folder / "metrics.jsonl").write_text("".join(f"{row}\n" for row in rows), encoding="utf-8")
    progress = {"stage": 1, "step": 0, "seconds": json.loads(rows[-1])["seconds"], "optimizers": []}
    save(folder / "last.pt", load(source / "stage1.pt") | {"config": settings} | progress)


def imitate(c: Config, source: str, start: Path) -> Path:
    """Supervised training in rounds; returns the last round's checkpoint.

    STaR has three rounds, the others one. Each round trains the weights of `start` anew. In STaR the
    dialogues of a round are sampled with the model of the round before.
    """
    last = start
    for number in range(1, 4 if source.startswith("star") else 2):
        folder = Path(c.out) / c.name / f"round{number}"
        traces = folder.with_suffix(".jsonl")
        if not traces.exists():
            model, _ = load_model(last, c.device)
            rows = dialogues_to_imitate(model, c, source, c.imitate_steps * c.batch, number)
            write(traces, "".join(json.dumps(row) + "\n" for row in rows))
        own = dict(out=str(folder.parent), name=folder.name, init=str(start), imitate=str(traces))
        go_on(dataclasses.replace(c, **own))
        last = folder / "imitate.pt"
    return last


def dialogues_to_imitate(model: GPT, c: Config, source: str, n: int, number: int) -> list[dict]:
    """Samples n dialogues on training problems and returns what the method imitates.

    Rows of `prompt` and `attempts`. `number` is the round's. ValueError if there is nothing to imitate.
    """
    star, plus, task = source.startswith("star"), source.endswith("+"), load_task(c.task)
    samples = 16 if source.startswith("pair") else 1  # of each problem, to find a right and a wrong attempt
    problem_at, rng = train_problems(task, c.size, c.seed), Random(c.seed)
    problems = [problem_at((number * 10**7 + i) // samples) for i in range(n)]
    _, transcripts = evaluate(model, c, problems, turns=2 if star else 1, temperature=1.0)
    if star:
        rows = star_rows(transcripts, plus)
    elif source == "oracle":
        rows = [(p, texts[0], task.attempt(p, "right", rng).text) for p, texts, _ in transcripts]
    else:
        rows = pair_rows(transcripts, plus, rng)
    require(rows, f"none of {n} sampled dialogues can be imitated by {source}: train the base longer")
    return [{"prompt": problem.prompt, "attempts": list(attempts)} for problem, *attempts in rows]


def star_rows(transcripts: list, plus: bool) -> list[tuple[Problem, str, str]]:
    """STaR (Zelikman et al., arXiv 2203.14465): the sampled dialogues that go from wrong to right.

    With `plus` (D+) also those that are right twice.
    """
    return [(p, *texts[:2]) for p, texts, right in transcripts if right[1] and (plus or not right[0])]


def pair_rows(transcripts: list, plus: bool, rng: Random) -> list[tuple[Problem, str, str]]:
    """Pair-SFT (Welleck et al., arXiv 2211.00053): after a wrong first attempt, a right one at its problem.

    The right one is drawn from the sampled first attempts. With `plus` (D+) it follows right first attempts,
    too.
    """
    right_ones = defaultdict(list)
    for problem, texts, right in transcripts:
        if right[0]:
            right_ones[problem.prompt].append(texts[0])
    rows = []
    for problem, texts, right in transcripts:
        if right_ones[problem.prompt] and (plus or not right[0]):
            rows.append((problem, texts[0], rng.choice(right_ones[problem.prompt])))
    return rows


# ---------------------------------------------------------------------------------- what is measured


def measure(model: GPT, base: GPT, c: Config, feedback: bool, long: bool) -> dict:
    """All that the report shows of a model. With `long` also ten attempts and majority votes."""
    task, problems = load_task(c.task), held_out_of(c, c.eval_n)
    turns = ATTEMPTS if long else 2
    greedy, transcripts = evaluate(model, c, problems, turns, feedback=feedback)
    training, seen = evaluate(model, c, training_problems_of(c, c.eval_n), feedback=feedback)
    sampled, _ = evaluate(model, c, problems, temperature=1.0, feedback=feedback)
    fixed, after = evaluate(model, c, after_first_attempts_of(base, c, problems))
    found = {
        "greedy": greedy,
        "training": training,
        "sampled": sampled,
        "distances": {"held-out": distances(transcripts), "training": distances(seen)},
        "levels": by_level(task, transcripts),
        "swap": swap_test(model, c, transcripts),
        "fixed": fixed | both_wrong(transcripts, after),
    }
    if long:
        tokenizer = make_tokenizer(c)
        repeated = [p for p in problems[: c.eval_n // 8] for _ in range(SAMPLES)]
        _, samples = evaluate(model, c, repeated, temperature=0.7)
        graded = getattr(task, "graded", str)
        found["votes"] = vote_curves(samples, lambda text: len(tokenizer.encode(text)) + 1, graded)
    return found


def distances(transcripts: list) -> list[int]:
    """A histogram of the edit distance ratio of the first two attempts: 20 bins from 0 to 1."""
    ratios = [edit_distance_ratio(*texts[:2]) for _, texts, _ in transcripts]
    return np.bincount([min(19, int(20 * ratio)) for ratio in ratios], minlength=20).tolist()


def by_level(task, transcripts: list) -> dict[str, list[int]]:
    """For each level four numbers: problems, right first attempts, i→c and c→i."""
    counts = defaultdict(lambda: np.zeros(4, dtype=int))
    for problem, _, (first, second, *_) in transcripts:
        counts[str(task.level(problem))] += (True, first, second and not first, first and not second)
    return {level: counts[level].tolist() for level in sorted(counts)}


def after_first_attempts_of(base: GPT, c: Config, problems: list[Problem]) -> list[Problem]:
    """The problems with the base's greedy first attempt as given, to test turn 2 on another's mistakes."""
    _, transcripts = evaluate(base, c, problems, turns=1)
    return [p._replace(given=texts[0] or " ") for p, texts, _ in transcripts]


def both_wrong(own: list, after: list) -> dict:
    """What turn 2 corrects where both the model's own first attempt and the base's are wrong.

    `own` are the model's transcripts, `after` those with the base's first attempts, on the same problems. The
    result has the shares `mended own` and `mended fixed`, None without such problems, and their number
    `wrong`. Both shares are of the same problems, because those that a trained model still gets wrong are
    harder than the others.
    """
    wrong = [(a[1], b[1]) for (*_, a), (*_, b) in zip(own, after, strict=True) if not a[0] and not b[0]]
    shares = np.mean(wrong, axis=0).tolist() if wrong else (None, None)
    return {"mended own": shares[0], "mended fixed": shares[1], "wrong": len(wrong)}


def kept(folder: Path, base: GPT, c: Config) -> list[dict]:
    """`both_wrong` of each checkpoint of a run, on 500 problems, with the `update` it was saved after."""
    problems = held_out_of(c, c.eval_n)[:500]
    fixed = after_first_attempts_of(base, c, problems)
    first = {"stage1": 0, "stage2": c.stage1_steps, "imitate": 0}  # updates before the stage
    steps = {"stage1": c.stage1_steps, "stage2": c.stage2_steps, "imitate": c.imitate_steps}
    paths = {0: folder.parent / "base" / "base.pt"}
    for path in folder.rglob("*.pt"):
        stage, _, step = path.stem.partition("-")
        if stage in steps:
            paths[first[stage] + int(step or steps[stage])] = path
    rows = []
    for update in sorted(paths):
        model, _ = load_model(paths[update], c.device)
        wrong = both_wrong(evaluate(model, c, problems)[1], evaluate(model, c, fixed)[1])
        rows.append({"update": update, **wrong})
    return rows


def vote_curves(samples: list, tokens, graded) -> list[dict]:
    """Majority votes: of K first attempts (`parallel`), and of K / 2 second attempts (`corrected`).

    `samples` are transcripts, SAMPLES of each problem one after the other. For each K of BUDGETS the accuracy
    and the tokens sampled per problem, averaged over all disjoint groups. `tokens(text)` counts an attempt's
    tokens; `graded(text)` is the answer for which it votes.
    """
    rows = []
    for k in BUDGETS:
        row = {"k": k}
        for name, turn, size in (("parallel", 0, k), ("corrected", 1, k // 2)):
            groups = [samples[i : i + size] for i in range(0, len(samples), size)]
            wins = [vote([(graded(texts[turn]), right[turn]) for _, texts, right in g]) for g in groups]
            spent = [sum(tokens(text) for _, texts, _ in g for text in texts[: turn + 1]) for g in groups]
            row |= {name: float(np.mean(wins)), f"{name} tokens": float(np.mean(spent))}
        rows.append(row)
    return rows


def vote(answers: list[tuple[str, bool]]) -> bool:
    """Whether the commonest answer is right. `answers` are (answer, is it right).

    Of equally common answers the first wins. An attempt that was cut off is never right, whatever it says. If
    others give the same answer and are right, the answer counts as right.
    """
    winner, _ = Counter(answer for answer, _ in answers).most_common(1)[0]
    return any(right for answer, right in answers if answer == winner)


def learning_curve(path: Path) -> dict[str, list[float]]:
    """Accuracy of both attempts and the change rate of the dialogues, as means of five updates each."""
    rows = [json.loads(line) for line in lines_of(path)] if path.exists() else []
    rows = [row for row in rows if row["stage"].startswith("stage")]
    curve = {}
    for key in ("acc_t1", "acc_t2", "change_rate"):
        curve[key] = [float(np.mean([row[key] for row in rows[i : i + 5]])) for i in range(0, len(rows), 5)]
    return curve


def rounded(value):
    """Numbers with four digits: enough for shares of a thousand problems, and the file stays small."""
    if isinstance(value, dict):
        return {key: rounded(v) for key, v in value.items()}
    if isinstance(value, list):
        return [rounded(v) for v in value]
    return round(value, 4) if isinstance(value, float) else value


def commit_here() -> str:
    """The commit of the code, with -dirty if it was changed since; "" outside a git checkout."""
    words = ["git", "describe", "--always", "--dirty", "--exclude=*"]
    try:
        return subprocess.run(words, cwd=ROOT, capture_output=True, text=True).stdout.strip()
    except OSError:  # there is no git
        return ""


# ---------------------------------------------------------------------------------- the whole grid


def jobs_of(kind: str, seeds: list[int]) -> list[tuple[str, int]]:
    """(method, seed) in the order of their start: first the methods of five seeds, seed by seed."""
    methods, jobs = grid(kind), []
    for count in (5,) if kind == "quick" else (5, 3, 1):
        jobs += [(name, seed) for seed in seeds[:count] for name in methods if methods[name].seeds == count]
    return jobs


def needs(kind: str, name: str, seed: int) -> set[tuple[str, int]]:
    """The runs from which this one starts."""
    if name == "base":
        return set()
    return {("base", seed)} | ({("score", seed)} if grid(kind)[name].start == "stage1" else set())


def run_all(
    kind: str, out: Path, seeds: list[int], methods: list[str], workers: int, device: str = "cpu"
) -> bool:
    """Runs what has no result yet. False if a run failed or could not start.

    A run starts when those that it needs are done. `methods` names the methods to run; [] means all.
    """
    commit, started, failed, running = commit_here(), time.time(), {}, {}
    results = out.glob("seed*/*/result.json")
    done = {(path.parent.name, int(path.parent.parent.name.removeprefix("seed"))) for path in results}
    todo = [job for job in jobs_of(kind, seeds) if job not in done and (not methods or job[0] in methods)]
    total = len(todo)
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        while True:
            ready = [job for job in todo if needs(kind, *job) <= done]
            for job in ready[: workers - len(running)]:
                todo.remove(job)
                running[pool.submit(run, kind, str(out), *job, commit, device)] = job
            if not running:
                break
            for future in wait(running, return_when=FIRST_COMPLETED)[0]:
                job, error = running.pop(future), future.exception()
                if error:
                    failed[job] = repr(error)
                else:
                    done.add(job)
                minutes, ended = (time.time() - started) / 60, total - len(todo) - len(running)
                line = f"{ended}/{total}  seed {job[1]} {job[0]:<12} {'FAILED' if error else 'done'}"
                eta = minutes * (total - ended) / ended
                print(f"{line}  {minutes:.0f} min, ETA {eta:.0f} min", flush=True)
    left = dict.fromkeys(todo, "the run that it starts from failed, or --methods leaves it out")
    for (name, seed), error in (failed | left).items():
        print(f"seed {seed} {name}: {error}; its log is {out}/seed{seed}/{name}/log.txt")
    return not failed and not todo


def gather_results(out: Path, path: Path) -> list[dict]:
    """All results under `out`, and those in the file `path` of other seeds and methods; writes `path`."""
    old = json.loads(path.read_text(encoding="utf-8")) if path.exists() else []
    new = [json.loads(file.read_text(encoding="utf-8")) for file in sorted(out.glob("seed*/*/result.json"))]
    rows = {(row["seed"], row["method"]): row for row in [*old, *new]}
    found = [rows[key] for key in sorted(rows)]
    path.write_text("[\n" + ",\n".join(map(json.dumps, found)) + "\n]\n", encoding="utf-8")
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--quick", action="store_true", help="one seed, few steps, into out/paper-quick")
    parser.add_argument("--report", action="store_true", help="train nothing; only write the report again")
    parser.add_argument("--seeds", default="", help="e.g. 0,1,2 (default: 0,1,2,3,4; with --quick: 0)")
    parser.add_argument("--methods", default="", help="only these, e.g. base,score,both, with what they need")
    workers = os.cpu_count() or 1
    parser.add_argument("--workers", type=int, default=workers, help="runs at the same time, a core each")
    parser.add_argument("--device", default="cpu", help="cpu or cuda; on cuda, too, each run takes a core")
    args = parser.parse_args()
    kind = "quick" if args.quick else "full"
    methods, seeds = (text.split(",") if text else [] for text in (args.methods, args.seeds))
    for name in methods:
        require(name in grid(kind), f"no method {name!r}: there are {', '.join(grid(kind))}")
    require(all(map(str.isdecimal, seeds)), f"--seeds={args.seeds}: write whole numbers such as 0,1,2")
    seeds = [int(s) for s in seeds] or ([0] if args.quick else [0, 1, 2, 3, 4])
    found = importlib.util.find_spec("matplotlib")  # asked now rather than after hours
    require(found, "the report needs matplotlib: pip install -e '.[plots]'")
    from experiments.paper_report import write_report

    out = ROOT / "out" / ("paper-quick" if args.quick else "paper")
    place = out if args.quick else RESULTS
    out.mkdir(parents=True, exist_ok=True)
    fine = args.report or run_all(kind, out, seeds, methods, args.workers, args.device)
    results = gather_results(out, place / "paper.json")
    print(f"{write_report(results, {name: m.label for name, m in grid(kind).items()}, place)} has the report")
    return 0 if fine else 1


if __name__ == "__main__":
    run_script(main)
