"""The paper's tables on the default task, with error bars: trains all methods and writes a report.

    python experiments/paper.py            all methods on ten seeds, into experiments/results/
    python experiments/paper.py --tune     each rival's KL weight and learning rate, on tuning seeds
    python experiments/paper.py --map      when is Stage I needed? Training problems x corrections in the base
    python experiments/paper.py --quick    one seed with few steps, to see that it runs
    python experiments/paper.py --report   only the report again, from the results that are there

After a stop the same command goes on. The report needs matplotlib: pip install -e '.[plots]'.

A method is a row of `methods_of`: settings for train.py and, for the supervised methods, the source of the
dialogues that they imitate. Within a seed all methods start from one base and have the same held-out problems
and as many dialogues and updates as SCoRe. Each run takes one core, and `--workers` of them run at a time.
"""

import argparse
import contextlib
import dataclasses
import importlib.util
import json
import os
import subprocess
import sys
import time
from collections import defaultdict
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from dataclasses import dataclass, field
from multiprocessing import get_context
from pathlib import Path
from random import Random
from unittest import mock

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # so that it runs without being installed

import train
from data import Problem, load_task, train_problems
from engine.build import held_out_of, training_problems_of
from engine.checkpoints import open_run, write
from engine.cli import run_script
from engine.options import require
from engine.report import without_nan
from eval import evaluate, swap_test
from model import GPT
from train import Config, load_model, stages

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "experiments" / "results"
SEEDS = {"full": range(10), "tune": range(100, 103), "map": range(2), "quick": range(1)}
UPDATES = Config.stage1_steps, Config.stage2_steps  # SCoRe's: Stage I, Stage II
QUICK = dict(base_steps=60, eval_n=100), (6, 3)  # settings and updates of --quick


@dataclass(frozen=True)
class Method:
    label: str
    settings: dict = field(default_factory=dict)  # of train.Config
    start: str = "base/base.pt"  # what it starts from, in the folder of its seed; "": random weights
    traces: str = ""  # what it imitates: star, pair or oracle; star+ and pair+ keep right first attempts, too
    last: str = "stage2.pt"  # the checkpoint that is measured
    trained: bool = True  # False: `start` is measured as it is
    by_outcome: bool = False  # with the baseline of `compared_by_outcome` in the place of RLOO


# Each rival's KL weight and learning rate with the best Acc@t2 on tuning seeds, see results/tuning.md.
PLAIN = dict(stage2_beta=0.2, stage2_lr=0.001)
WEIGHT11 = dict(stage2_beta=1.1, stage2_lr=0.0005)
SINGLE = dict(stage2_beta=0.2, stage2_lr=0.001)  # plain RL's, not tuned by itself
NO_STAGE1 = dict(stage2_beta=1.0, stage2_lr=0.0005)
PAIR_LR, ORACLE_LR, STAR_LR = 0.00003, 0.00003, 0.00025
BASE = Method("base", dict(stage1_steps=0, stage2_steps=0), start="", last="base.pt")


def methods_of(kind: str) -> dict[str, Method]:
    """The methods of a kind of grid, in the order in which they are trained."""
    one, two = QUICK[1] if kind == "quick" else UPDATES
    no_rl = dict(stage1_steps=0, stage2_steps=0)
    ways = {  # all updates in one stage; plain RL has no bonus
        "plain": dict(stage1_steps=0, stage2_steps=one + two, alpha=0.0),
        "weight11": dict(stage1_steps=0, stage2_steps=one + two, alpha=0.0, stage2_weight2=11.0),
        "no_stage1": dict(stage1_steps=0, stage2_steps=one + two),
        "single": dict(stage1_steps=0, stage2_steps=one + two, alpha=0.0, stage2_weight2=0.0),
        "pair+": no_rl | dict(imitate_steps=one + two),
        "oracle": no_rl | dict(imitate_steps=one + two),
        "star+": no_rl | dict(imitate_steps=(one + two) // 3),
    }
    if kind == "tune":
        return tuning(ways)
    if kind == "map":
        return cells(ways)
    score, beta = dict(stage1_steps=one, stage2_steps=two), Config.stage2_beta
    star, pair, oracle = (
        ways[name] | dict(lr=lr)
        for name, lr in (("star+", STAR_LR), ("pair+", PAIR_LR), ("oracle", ORACLE_LR))
    )
    star_two = star | dict(imitate_steps=two // 3)
    return {
        "base": BASE,
        "score": Method("SCoRe", score),
        "stage1": Method("after Stage I", start="score/stage1.pt", trained=False),
        "plain": Method("plain RL", ways["plain"] | PLAIN),
        "no_stage1": Method("without Stage I", ways["no_stage1"] | NO_STAGE1),
        "weight11": Method("plain RL, weight 11", ways["weight11"] | WEIGHT11),
        "pair+": Method("Pair-SFT D+", pair, traces="pair+"),
        "star+": Method("STaR D+", star, traces="star+"),
        "oracle": Method("oracle SFT", oracle, traces="oracle"),
        "single": Method("single-turn RL", ways["single"] | SINGLE),
        "no_bonus": Method("without the bonus", score | dict(alpha=0.0)),
        "no_bonus_kl": Method("without the bonus, β / 11", score | dict(alpha=0.0, stage2_beta=beta / 11)),
        "gamma=1": Method("γ = 1 in Stage II", score | dict(gamma=1.0)),
        "gamma=0.05": Method("γ = 0.05 in Stage II", score | dict(gamma=0.05)),
        "offline": Method("no online first attempts", score | dict(offline_first=True)),
        "score_outcome": Method("SCoRe, baseline by outcome", score, by_outcome=True),
        "plain_outcome": Method("plain RL, baseline by outcome", ways["plain"] | PLAIN, by_outcome=True),
        "pair": Method("Pair-SFT D", pair, traces="pair"),
        "star": Method("STaR D", star, traces="star"),
        "star_two": Method("STaR D+ as Stage II", star_two, "score/stage1.pt", traces="star+"),
        "self_refine": Method("Self-Refine", trained=False),
    }


def tuning(ways: dict[str, dict]) -> dict[str, Method]:
    """Each rival at several KL weights and learning rates."""
    found = {"base": BASE}
    for name in ("plain", "no_stage1", "single", "weight11"):
        for beta in (0.01, 0.1, 0.2, 0.3, 1.0, 3.0):
            beta = round(11 * beta, 2) if name == "weight11" else beta  # the same ratio to the reward
            for lr in (0.0005, 0.001):
                own = ways[name] | dict(stage2_beta=beta, stage2_lr=lr)
                found[f"{name} {beta:g} {lr:g}"] = Method(f"{name}, β {beta:g}, learning rate {lr:g}", own)
    for name in ("pair+", "oracle", "star+"):
        for lr in (0.00001, 0.00003, 0.0001, 0.00025, 0.0005):
            label = f"{name}, learning rate {lr:g}"
            found[f"{name} {lr:g}"] = Method(label, ways[name] | dict(lr=lr), traces=name)
    return found


MAP_N = (100, 300, 0)  # training problems of RL; 0: all that are not held out
MAP_RIGHT = (0.003, 0.03, 0.1)  # share of right later turns in the base's demonstrations


def cells(ways: dict[str, dict]) -> dict[str, Method]:
    """The map: a base of its own for each cell, and from it plain RL, SCoRe without Stage I, and SCoRe."""
    found, trained = (
        {},
        {"plain": ways["plain"] | PLAIN, "no_stage1": ways["no_stage1"] | NO_STAGE1, "score": {}},
    )
    for n in MAP_N:
        for right in MAP_RIGHT:
            own, cell = dict(train_n=n, right=right), f"n={n} right={right:g}"
            found[f"base {cell}"] = dataclasses.replace(BASE, settings=BASE.settings | own)
            for name, settings in trained.items():
                method = Method(f"{name} {cell}", settings | own, f"base {cell}/base.pt")
                found[f"{name} {cell}"] = method
    return found


# ---------------------------------------------------------------------------------- one run


def run(kind: str, out: str, name: str, seed: int, commit: str = "", device: str = "cpu") -> None:
    """Trains a method on a seed and measures it. Writes <out>/seed<N>/<name>/result.json.

    A run that was stopped goes on.
    """
    torch.set_num_threads(1)
    home, method, started = Path(out).resolve() / f"seed{seed}", methods_of(kind)[name], time.time()
    folder, start = home / name, home / method.start
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / "log.txt", "a", encoding="utf-8") as log, contextlib.redirect_stdout(log):
        own = dict(seed=seed, out=str(home), name=name, report=False, overwrite=True, device=device)
        own["init"] = str(start) if method.start else ""
        c = Config(**{**(QUICK[0] if kind == "quick" else {}), **method.settings, **own})
        if not method.trained:
            last = start
        elif method.traces:
            last = imitate(c, method.traces, start)
        else:
            with compared_by_outcome() if method.by_outcome else contextlib.nullcontext():
                go_on(c)
            last = folder / method.last
        trained = time.time()
        found = measure(last, c, is_base=not method.start, feedback=name == "self_refine")
    seconds = {"seconds": trained - started, "seconds of evaluation": time.time() - trained}
    about = {"method": name, "seed": seed, **seconds, "batch": c.batch, "commit": commit}
    result = {**about, **found, "curve": learning_curve(folder / "metrics.jsonl")}
    write(folder / "result.json", json.dumps(rounded(without_nan(result))) + "\n")


@contextlib.contextmanager
def compared_by_outcome():
    """Another baseline than RLOO, for a row of the tables: the mean return of all other dialogues of the
    batch whose attempt before the turn had the same outcome. So -alpha * r1 in the bonus, which turn 2 can't
    change, drops out, whatever the problem.
    """
    seen, correctness = {}, train.correctness

    def remembered(*args):
        seen["correct"], failures = correctness(*args)
        return seen["correct"], failures

    def advantages(returns, n):
        columns = []
        for turn in range(returns.shape[1]):
            before = seen["correct"][:, turn - 1] if turn else torch.zeros(len(returns), dtype=torch.bool)
            same = (before[:, None] == before).float().fill_diagonal_(0)  # [B, B] never with itself
            columns.append(returns[:, turn] - same @ returns[:, turn] / same.sum(1).clamp(min=1))
        return torch.stack(columns, dim=1)

    with mock.patch.multiple(train, correctness=remembered, advantages=advantages):
        yield


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
        train.train(config, state)


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
    problem_at = train_problems(task, c.size, c.seed, c.train_n)
    rng = Random(c.seed)
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


def measure(path: Path, c: Config, is_base: bool, feedback: bool) -> dict:
    """All that the report shows of a checkpoint. A base is measured on its own training problems."""
    model, problems = load_model(path, c.device)[0], held_out_of(c, c.eval_n)
    greedy, transcripts = evaluate(model, c, problems, feedback=feedback)
    sampled, _ = evaluate(model, c, problems, temperature=1.0, feedback=feedback)
    training, _ = evaluate(model, c, training_problems_of(c, c.eval_n, is_base), feedback=feedback)
    return {
        "greedy": greedy,
        "sampled": sampled,
        "training": training,
        "levels": by_level(load_task(c.task), transcripts),
        "swap": swap_test(model, c, transcripts),
    }


def by_level(task, transcripts: list) -> dict[str, list[int]]:
    """For each level four numbers: problems, right first attempts, i→c and c→i."""
    counts = defaultdict(lambda: np.zeros(4, dtype=int))
    for problem, _, (first, second, *_) in transcripts:
        counts[str(task.level(problem))] += (True, first, second and not first, first and not second)
    return {level: counts[level].tolist() for level in sorted(counts)}


def learning_curve(path: Path) -> dict[str, list[float]]:
    """Accuracy of both attempts and the change rate of the dialogues, as means of five updates each."""
    rows = [json.loads(line) for line in lines_of(path)] if path.exists() else []
    rows = [row for row in rows if row["stage"].startswith("stage")]
    curve = {}
    for key in ("acc_t1", "acc_t2", "change_rate"):
        values = [row.get(key, 0.0) for row in rows]  # single-turn RL has one attempt
        curve[key] = [float(np.mean(values[i : i + 5])) for i in range(0, len(rows), 5)]
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


def needs(method: Method) -> str:
    """The method from whose checkpoint this one starts, "" for none."""
    return method.start.partition("/")[0]


def run_all(kind: str, out: Path, seeds: list[int], names: list[str], workers: int, device: str) -> bool:
    """Runs what has no result yet, seed by seed. False if a run failed or could not start.

    A run starts when the one that it starts from is done. `names` are the methods to run; [] means all.
    """
    commit, started, failed, running, methods = commit_here(), time.time(), {}, {}, methods_of(kind)
    results = out.glob("seed*/*/result.json")
    done = {(path.parent.name, int(path.parent.parent.name.removeprefix("seed"))) for path in results}
    todo = [(name, seed) for seed in seeds for name in methods if not names or name in names]
    todo = [job for job in todo if job not in done]
    total = len(todo)
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        while True:
            ready = [(n, s) for n, s in todo if not needs(methods[n]) or (needs(methods[n]), s) in done]
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
    for kind in ("tune", "map", "quick"):
        parser.add_argument(f"--{kind}", dest="kind", action="store_const", const=kind, default="full")
    parser.add_argument("--report", action="store_true", help="train nothing; only write the report again")
    parser.add_argument("--seeds", default="", help="e.g. 0,1,2 (default: all of the grid)")
    parser.add_argument(
        "--methods", default="", help="only these, e.g. base,score,plain, with what they need"
    )
    workers = os.cpu_count() or 1
    parser.add_argument("--workers", type=int, default=workers, help="runs at the same time, a core each")
    parser.add_argument("--device", default="cpu", help="cpu or cuda; on cuda, too, each run takes a core")
    args = parser.parse_args()
    kind, known = args.kind, methods_of(args.kind)
    names, seeds = (text.split(",") if text else [] for text in (args.methods, args.seeds))
    for name in names:
        require(name in known, f"no method {name!r}: there are {', '.join(known)}")
    require(all(map(str.isdecimal, seeds)), f"--seeds={args.seeds}: write whole numbers such as 0,1,2")
    seeds = [int(s) for s in seeds] or list(SEEDS[kind])
    found = importlib.util.find_spec("matplotlib")  # asked now rather than after hours
    require(found, "the report needs matplotlib: pip install -e '.[plots]'")
    from experiments.paper_report import write_report

    out = ROOT / "out" / f"paper-{kind}"
    place = out if kind == "quick" else RESULTS
    out.mkdir(parents=True, exist_ok=True)
    fine = args.report or run_all(kind, out, seeds, names, args.workers, args.device)
    name = {"tune": "tuning", "map": "map"}.get(kind, "paper")
    results = gather_results(out, place / f"{name}.json")
    print(f"{write_report(kind, results, {n: m.label for n, m in known.items()}, place)} has the report")
    return 0 if fine else 1


if __name__ == "__main__":
    run_script(main)
