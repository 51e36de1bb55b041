"""Evaluation: is the second attempt better than the first, and does it read the first?

    python eval.py out/default                          report of a run: results.json, report.md, report.html
    python eval.py out/default/stage2.pt --show=10      metrics of one checkpoint, with transcripts
    python eval.py out/default/stage2.pt --chat         pose problems of your own
    python eval.py FOLDER --task=gsm8k --test_data=F    metrics of a Hugging Face checkpoint as it stands

All figures are on held-out problems, except for the rows "greedy, training" of the report. Greedy by default,
as in the paper. All sampling has seeds of its own.
"""

import json
import math
import sys
from pathlib import Path
from random import Random
from types import SimpleNamespace

import numpy as np
import torch

from data import Environment, Problem, load_task
from data.demonstrations import swapped_attempts
from engine import build
from engine import report as tables
from engine.chat import chat
from engine.cli import run_script
from engine.hf import export, is_pretrained
from engine.options import parse_options, require
from engine.settings import EvalOptions
from model import GPT
from page import beside_of, write_page
from rewards import correctness, turn_returns, turn_rewards
from rollout import Rollout, sample_dialogues
from train import Config, advantages, load_model, rollout_batch, stages, token_credit, token_scores


def self_correction_metrics(correct, changed=None) -> dict:
    """The paper's metrics, as fractions, from `correct` [N, turns >= 2] bool, one row a problem.

    - acc_t1, acc_t2, delta: accuracy of the first and second attempts, and acc_t2 - acc_t1.
    - i_to_c, c_to_i: fractions of ALL problems that go from wrong to right, and from right to wrong.
    - fix_rate: i_to_c / (1 - acc_t1), the share of wrong first attempts that are corrected. NaN without any.
    - change_rate: the mean of `changed` [N] bool, whether the text differs. NaN if that is not given.
    - n: N. se: the standard error of each, sqrt(mean((x - mean)^2) / len(x)) over its values x. The values of
      delta are N differences, as both attempts are at the same problem: its error is the paired one.
    """
    first, second = np.asarray(correct, dtype=float)[:, :2].T  # [N] each
    values = {
        "acc_t1": first,
        "acc_t2": second,
        "delta": second - first,
        "i_to_c": (1 - first) * second,
        "c_to_i": first * (1 - second),
        "fix_rate": second[first == 0],
        "change_rate": np.full(len(first), math.nan) if changed is None else np.asarray(changed, dtype=float),
    }
    means = {name: float(x.mean()) if len(x) else math.nan for name, x in values.items()}
    errors = {name: float(x.std() / len(x) ** 0.5) if len(x) else math.nan for name, x in values.items()}
    return {**means, "n": len(first), "se": errors}


def answer(model: GPT, c: Config, env: Environment, prompts, turns, temperature, feedback=False) -> Rollout:
    """The model's dialogues on prompts, from a generator of their own: they don't disturb training or each
    other.

    With `feedback` the model is asked to judge each attempt before the next one: 2 * turns - 1 turns in all.
    """
    requests = ([env.feedback_request] * feedback + [env.correction_request]) * (turns - 1)
    generator = torch.Generator(model.embed.weight.device).manual_seed(c.seed)
    sampling = c.max_new, temperature, generator, c.sample_batch
    return sample_dialogues(model, env.tokenizer, prompts, requests, *sampling)


def after_attempt(env: Environment, problem: Problem, attempt: str) -> list[int]:
    """The prompt of turn 2 after an attempt that the model may not have made."""
    first = env.tokenizer.user_turn(problem.prompt) + env.tokenizer.encode(attempt)
    return [*first, env.tokenizer.end_id, *env.correction_request]


def evaluate(model: GPT, c: Config, problems, turns=2, temperature=0.0, feedback=False) -> tuple[dict, list]:
    """All metrics of a model on problems, and transcripts: (problem, texts [turns], correct [turns]) each.

    Problems with a given first attempt are for offline repair: it takes the place of turn 1.
    """
    env, given = build.make_environment(c, training=False), [p.given for p in problems]
    repair, stride = any(given), 2 if feedback else 1  # a judgement is no attempt
    if repair and not (all(given) and turns > 1 and not feedback):
        raise ValueError("offline repair needs an attempt for every problem, 2 or more turns, no --feedback")
    prompts = [after_attempt(env, p, p.given) for p in problems] if repair else env.prompts(problems)
    rollout = answer(model, c, env, prompts, turns - repair, temperature, feedback)
    texts, ended = [row[::stride] for row in rollout.texts], rollout.ended[:, ::stride].cpu()
    if repair:
        texts = [[g, *row] for g, row in zip(given, texts, strict=True)]
        ended = torch.cat((torch.ones_like(ended[:, :1]), ended), dim=1)
    correct, failures = correctness(env.task, problems, texts, ended)
    metrics = {"n": len(problems), "acc_t1": correct[:, 0].double().mean().item()}
    if turns > 1:
        metrics = self_correction_metrics(correct, [row[0] != row[1] for row in texts])
    metrics |= {"acc": correct.double().mean(0).tolist(), **failures}
    return metrics, list(zip(problems, texts, correct.tolist(), strict=True))


@torch.no_grad()
def drift(model: GPT, base: GPT, c: Config, problems: list[Problem]) -> float:
    """How far the first attempt has moved: KL(model || base) of one sampled at temperature 1, in nats."""
    env, total = build.make_environment(c, training=False), 0.0
    rollout = answer(model, c, env, env.prompts(problems), 1, 1.0)
    for ids, mask in zip(rollout.ids.split(64), rollout.masks[:, 0].split(64), strict=True):
        total += token_scores(model, base, ids, mask, 1.0)[1].sum().item()
    return total / len(problems)


def swap_test(model: GPT, c: Config, transcripts: list) -> dict:
    """Does turn 2 read turn 1 (ours)? Greedy accuracy of turn 2 after another first attempt than its own.

    `own` is after the model's own attempt, `other` after its attempt at the next problem, `wrong` after an
    unrelated wrong attempt on the same problem, `near` after a near miss, `right` after the right attempt,
    and `checked` after its own attempt with the working made true. `true_checks` says how often it was true
    before. Each is a mean over `all` problems, and over those whose own attempt is wrong, `wrong_first`. A
    model that corrects what it wrote is better after `own` than after `wrong`; experiments/README.md tells
    how to read the others. Tasks that read their problems from files can't make attempts: for them `own` and
    `other` only.
    """
    env, problems = build.make_environment(c, training=False), [p for p, _, _ in transcripts]
    own = [texts[0] for _, texts, _ in transcripts]
    swapped, true_checks = swapped_attempts(env.task, problems, own, Random(c.seed))
    values = {} if true_checks is None else {"true_checks": np.array(true_checks)}
    for name, attempts in swapped.items():
        prompts = [after_attempt(env, p, text) for p, text in zip(problems, attempts, strict=True)]
        rollout = answer(model, c, env, prompts, 1, 0.0)
        values[name] = correctness(env.task, problems, rollout.texts, rollout.ended.cpu())[0][:, 0].numpy()
    wrong_first = np.array([not correct[0] for _, _, correct in transcripts])
    result = {}
    for group, rows in (("all", wrong_first >= 0), ("wrong_first", wrong_first)):
        means = {name: float(v[rows].mean()) if rows.any() else math.nan for name, v in values.items()}
        result[group] = {"n": int(rows.sum()), **means}
    return result


# What the page shows of the method; page/ imports none of it.
SHOWN = (answer, correctness, turn_rewards, turn_returns, advantages, token_credit, token_scores)
SHOWN = SimpleNamespace(**{f.__name__: f for f in (*SHOWN, evaluate, load_model, rollout_batch, stages)})


def report(folder: Path, device: torch.device, page: str | None = None, beside: str | None = None) -> None:
    """Evaluates a run's checkpoints and writes its report, and into the file `page` its page."""
    missing = f"{folder} has no checkpoint base.pt: give the folder of a run of train.py (run it first)"
    require((folder / "base.pt").exists(), missing)
    tables.read_log(folder)  # an error now rather than after the evaluation
    results, seen, (base, base_c) = {}, {}, load_model(folder / "base.pt", device)
    other, c = beside_of(SHOWN, beside, base_c, device), base_c
    names = dict.fromkeys(["base", *(stage.name for stage in stages(c))])
    for name in [name for name in names if (folder / f"{name}.pt").exists()]:
        model, c = load_model(folder / f"{name}.pt", device)
        print(f"evaluating {name} on {c.eval_n} held-out problems", flush=True)
        problems = build.held_out_of(c, c.eval_n)
        is_toy = hasattr(load_task(c.task), "DIGITS_PER_TOKEN")  # there more turns cost little
        greedy, transcripts = evaluate(model, c, problems, turns=max(5, c.turns) if is_toy else c.turns)
        sampled, _ = evaluate(model, c, problems, temperature=1.0)
        training, _ = evaluate(model, c, build.training_problems_of(base_c, c.eval_n, name == "base"))
        results[name] = {"greedy": greedy, "sampled": sampled, "training": training}
        results[name]["swap"] = swap_test(model, c, transcripts)
        results[name]["drift_kl"] = drift(model, base, c, problems)
        seen[name] = folder / f"{name}.pt", c, transcripts
        del model  # before the next is read
    print(f"{tables.table(results)}\n(± is one standard error)\n", flush=True)
    tables.write_report(folder, c, results, transcripts)
    if page:
        write_page(page, SHOWN, device, seen, other, results, tables.read_log(folder))
        print(f"{page} shows it in a browser")
    print(f"{folder / 'report.md'} has the whole report")


def show_checkpoint(path: str, o: EvalOptions) -> None:
    """Metrics of one checkpoint, or its attempts at a problem that a person poses, or an export of it."""
    model, c = load_model(path, device := build.pick_device(o.device))
    c = build.overridden(c, o, path)
    if o.export:
        return print(export(model, c, o.export))
    if o.chat:
        return chat(model, c, o.temperature)
    problems, other = build.problems_of(c, o), beside_of(SHOWN, o.beside, c, device)
    if o.save:  # an error now rather than after the evaluation
        is_new = Path(o.save).parent.is_dir() and not Path(o.save).exists()
        require(is_new, f"--save={o.save} must be a new file in a folder that exists")
    metrics, transcripts = evaluate(model, c, problems, o.turns, o.temperature, o.feedback)
    if o.save:
        tables.save_transcripts(o.save, transcripts)
    if o.html not in ("", "true", "false"):  # those are for the report of a run
        seen, results = {Path(path).name: (path, c, transcripts)}, {Path(path).name: {"greedy": metrics}}
        write_page(o.html, SHOWN, device, seen, other, results, [], training=False)
    if o.problem is not None:
        print(tables.transcript(*transcripts[0]).strip())
    elif o.json:
        print(json.dumps(tables.without_nan(metrics)))
    else:
        shown = [tables.transcript(*t) for t in tables.mixed(transcripts, o.show)]
        print(*shown, tables.metrics_text(metrics), sep="\n")


def main() -> None:
    usage, path = "python eval.py PATH [--key=value ...]", dict(help="a checkpoint, or the folder of a run")
    given = parse_options(EvalOptions, sys.argv[1:], usage, __doc__, path=path)
    path, o = given.pop("path"), EvalOptions(**given)
    if not Path(path).is_dir() or is_pretrained(path):
        return show_checkpoint(path, o)
    if other := sorted(given.keys() - {"device", "html", "beside"}):
        raise ValueError(f"--{other[0]} is for one checkpoint such as {path}/stage2.pt, not for a report")
    page = {"": f"{path}/report.html", "true": f"{path}/report.html", "false": None}.get(o.html, o.html)
    report(Path(path), build.pick_device(o.device), page, o.beside)


if __name__ == "__main__":
    run_script(main)
