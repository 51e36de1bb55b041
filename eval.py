"""Evaluation: is the second attempt better than the first, and does the model read the first to make it better?

    python eval.py out/default                          report of a run: results.json, report.md, pictures
    python eval.py out/default/stage2.pt --show=10      metrics of one checkpoint, with transcripts
    python eval.py out/default/stage2.pt --turns=5      accuracy after each of five attempts
    python eval.py out/default/stage2.pt --problem="8742/6"
    python eval.py out/mbpp/stage2.pt --task=humaneval --test_data=HumanEval.jsonl.gz

All figures are on held-out problems. Greedy by default, as in the paper; nothing here is random without its own seed.
"""

import argparse
import dataclasses
import json
import math
import shutil
import sys
from pathlib import Path
from random import Random

import torch
from torch import Tensor

from data import Problem, held_out_problems, load_task, read_rows, verdicts
from data.tokenizer import FEEDBACK_REQUEST, Tokenizer
from model import GPT, merge_lora
from rewards import correctness
from rollout import Rollout, sample_dialogues
from train import Config, correction_request, load_model, make_tokenizer, pick_device, stages, token_scores, transcript


def self_correction_metrics(correct: Tensor, changed: Tensor | None = None) -> dict:
    """The paper's metrics from correct [N, turns >= 2] bool, with `changed` [N] bool (did the text change?) the change rate.

    Fractions of ALL problems but for fix_rate = i_to_c / (1 - acc_t1), the share of wrong first attempts that are mended;
    `se` has the standard error of each, that of delta being paired (both attempts are at the same problem).
    acc_t2 = acc_t1 + i_to_c - c_to_i. With no wrong first attempt the fix rate is NaN.
    """
    first, second = correct[:, 0].double(), correct[:, 1].double()
    n = len(first)
    columns = {
        "acc_t1": first,
        "acc_t2": second,
        "delta": second - first,
        "i_to_c": (1 - first) * second,
        "c_to_i": first * (1 - second),
        "fix_rate": second[first == 0],
        "change_rate": (changed if changed is not None else torch.full((n,), math.nan)).double(),
    }
    means = {name: values.mean().item() for name, values in columns.items()}
    errors = {name: ((values - values.mean()).square().mean() / len(values)).sqrt().item() for name, values in columns.items()}
    return {**means, "n": n, "se": errors}


def edit_distance_ratio(a: str, b: str) -> float:
    """Insertions and deletions that turn a into b, in characters, over len(a) + len(b): 0 same, 1 nothing in common.

    The paper says "edit distance" only; its histograms reach above 0.5, which no Levenshtein distance can.
    """
    row = [0] * (len(b) + 1)  # longest common subsequence of a's prefix and each prefix of b
    for x in a:
        before, row = row, [0]
        for j, y in enumerate(b):
            row.append(before[j] + 1 if x == y else max(before[j + 1], row[j]))
    total = len(a) + len(b)
    return (total - 2 * row[-1]) / total if total else 0.0


def answer(model: GPT, c: Config, tokenizer: Tokenizer, prompts: list[list[int]], turns: int, temperature: float,
           feedback: bool = False) -> list[Rollout]:  # fmt: skip
    """The model's dialogues on prompts, in batches; its own generator, so training and other figures are not disturbed.

    With `feedback` it is asked for feedback before each later attempt (Self-Refine): `2 * turns - 1` turns in all.
    """
    task = load_task(c.task)
    asked = [getattr(task, "FEEDBACK_REQUEST", FEEDBACK_REQUEST)] if feedback else []
    asked.append(correction_request(task))
    requests = [tokenizer.user_turn(text, first=False) for text in asked] * (turns - 1)
    generator = torch.Generator(model.embed.weight.device).manual_seed(c.seed)
    return [
        sample_dialogues(model, tokenizer, prompts[i : i + c.sample_batch], requests, c.max_new, temperature, generator)
        for i in range(0, len(prompts), c.sample_batch)
    ]


def after_attempt(c: Config, tokenizer: Tokenizer, problem: Problem, attempt: str) -> list[int]:
    """The prompt of turn 2, with an attempt that the model may not have made."""
    request = tokenizer.user_turn(correction_request(load_task(c.task)), first=False)
    return [*tokenizer.user_turn(problem.prompt), *tokenizer.encode(attempt), tokenizer.end_id, *request]


def evaluate(model: GPT, c: Config, problems: list[Problem], turns: int = 2, temperature: float = 0.0,
             feedback: bool = False) -> tuple[dict, list]:  # fmt: skip
    """All metrics of a model on problems, and its transcripts: (problem, texts [turns], right [turns]) each.

    Problems with a given first attempt are for offline repair: it stands in the place of turn 1, and turn 2 is the model's.
    """
    tokenizer, given, stride = make_tokenizer(c), [p.given for p in problems], 2 if feedback else 1  # feedback is no attempt
    if any(given) and not (all(given) and turns > 1 and not feedback):
        raise ValueError("offline repair needs a given first attempt for every problem, 2 turns or more, and no --feedback")
    if any(given):
        prompts, own_turns = [after_attempt(c, tokenizer, p, p.given) for p in problems], turns - 1
    else:
        prompts, own_turns = [tokenizer.user_turn(p.prompt) for p in problems], turns
    parts = answer(model, c, tokenizer, prompts, own_turns, temperature, feedback)
    texts = [row[::stride] for part in parts for row in part.texts]
    ended = torch.cat([part.ended[:, ::stride] for part in parts])
    if any(given):
        texts = [[g, *row] for g, row in zip(given, texts, strict=True)]
        ended = torch.cat((torch.ones_like(ended[:, :1]), ended), dim=1)
    correct, unjudged = correctness(load_task(c.task), problems, texts, ended)
    correct = correct.cpu()
    metrics = {"n": len(problems), "acc_t1": correct[:, 0].double().mean().item()}
    if turns > 1:
        changed = torch.tensor([row[0] != row[1] for row in texts])
        metrics = self_correction_metrics(correct, changed)
        metrics["edit_distance_ratio"] = sum(edit_distance_ratio(*row[:2]) for row in texts) / len(texts)
    metrics["acc"] = correct.double().mean(0).tolist()
    metrics |= unjudged
    return metrics, list(zip(problems, texts, correct.tolist(), strict=True))


def drift(model: GPT, base: GPT, c: Config, problems: list[Problem]) -> float:
    """How far the first attempt has moved: KL(model || base) of a sampled first attempt at temperature 1, nats a row."""
    tokenizer, total = make_tokenizer(c), 0.0
    for part in answer(model, c, tokenizer, [tokenizer.user_turn(p.prompt) for p in problems], 1, 1.0):
        for i in range(0, len(part.ids), c.micro_batch):
            with torch.no_grad():
                kl = token_scores(model, base, part.ids[i : i + c.micro_batch], part.masks[0, i : i + c.micro_batch], 1.0)[1]
            total += kl.sum().item()
    return total / len(problems)


def swap_test(model: GPT, c: Config, transcripts: list) -> dict:
    """Does turn 2 read turn 1 (ours)? Greedy accuracy of turn 2 after another first attempt than the model's own.

    `own`: its own greedy attempt; `near`: a near miss on the same problem; `wrong`: an unrelated wrong attempt on the same
    problem, `other`: its own attempt at the next problem; `right`: the right one; `checked`: its own with the working made true,
    and `true_checks` says how often that changes nothing. Each over `all` problems and over those on which its own attempt is
    `wrong_first`. A model that ignores turn 1 is right equally often after all of them; one that uses what it wrote is better
    after `own` than after `wrong`, and one that goes by the working better after `checked`. After `near` it may be as good as
    after `own`: a near miss, too, says what to mend. Tasks from files can't make attempts: `own` and `other` only.
    """
    task, tokenizer, rng = load_task(c.task), make_tokenizer(c), Random(c.seed)
    problems = [problem for problem, _, _ in transcripts]
    own = [texts[0] for _, texts, _ in transcripts]
    shown = {"own": own, "other": own[1:] + own[:1]}
    wrong_first = torch.tensor([not right[0] for _, _, right in transcripts])
    result = {"all": {"n": len(problems)}, "wrong_first": {"n": int(wrong_first.sum())}}
    if hasattr(task, "attempt"):
        for name, kind in (("wrong", "far"), ("near", "near"), ("right", "right")):
            shown[name] = [task.attempt(p, kind, rng).text for p in problems]
        honest = [task.honest(p, text) for p, text in zip(problems, own, strict=True)]
        shown["checked"] = [a.text if a else text for a, text in zip(honest, own, strict=True)]
        true = torch.tensor([bool(a) and a.text == text for a, text in zip(honest, own, strict=True)])
        result["all"]["true_checks"] = true.double().mean().item()
        result["wrong_first"]["true_checks"] = true[wrong_first].double().mean().item()
    for name, firsts in shown.items():
        prompts = [after_attempt(c, tokenizer, p, text) for p, text in zip(problems, firsts, strict=True)]
        parts = answer(model, c, tokenizer, prompts, 1, 0.0)
        texts, ended = [t for p in parts for t in p.texts], torch.cat([p.ended for p in parts])
        right = correctness(task, problems, texts, ended)[0].cpu()
        result["all"][name] = right.double().mean().item()
        result["wrong_first"][name] = right[wrong_first].double().mean().item()
    return result


# ------------------------------------------------------------------------------------------------------ report


def report(folder: Path, device: torch.device) -> None:
    """Evaluates a run's checkpoints and writes results.json, report.md and, with matplotlib, the pictures."""
    if not (folder / "base.pt").exists():
        raise ValueError(f"{folder} has no checkpoint base.pt: give the folder of a run of train.py")
    planned = ["base", *(stage.name for stage in stages(Config(**json.loads((folder / "config.json").read_text()))))]
    names = [name for name in dict.fromkeys(planned) if (folder / f"{name}.pt").exists()]
    results, shown = {}, []
    base, _ = load_model(folder / "base.pt", device)
    for name in names:
        model, c = load_model(folder / f"{name}.pt", device)
        print(f"evaluating {name} on {c.eval_n} held-out problems", flush=True)
        problems = held_out_of(c, c.eval_n)
        greedy, transcripts = evaluate(model, c, problems, turns=c.turns if c.test_data else max(5, c.turns))
        sampled, _ = evaluate(model, c, problems, temperature=1.0)
        swap = swap_test(model, c, transcripts)
        results[name] = {"greedy": greedy, "sampled": sampled, "swap": swap, "drift_kl": drift(model, base, c, problems)}
        shown = transcripts
        del model  # before the next is read
    (folder / "results.json").write_text(json.dumps(without_nan(results), indent=1) + "\n")
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    try:
        from experiments.pictures import draw

        pictures = draw(folder, rows, results)
    except ImportError:
        pictures = []
        print("no pictures: pip install -e .[plots] brings matplotlib")
    (folder / "report.md").write_text(report_text(c, results, rows, shown, pictures))
    print(table(results))
    print(f"\n{folder / 'report.md'} has the whole report")


def held_out_of(c: Config, n: int) -> list[Problem]:
    return held_out_problems(load_task(c.task), c.size, c.seed, n, c.test_data)


def without_nan(value):
    """JSON has no NaN: null instead."""
    if isinstance(value, dict):
        return {k: without_nan(v) for k, v in value.items()}
    if isinstance(value, list):
        return [without_nan(v) for v in value]
    return None if isinstance(value, float) and math.isnan(value) else value


COLUMNS = {"acc_t1": "Acc@t1", "acc_t2": "Acc@t2", "delta": "Δ", "i_to_c": "i→c", "c_to_i": "c→i", "fix_rate": "fix rate",
           "change_rate": "changed"}  # fmt: skip


def markdown(head: list[str], rows: list[list[str]]) -> str:
    return "\n".join("| " + " | ".join(cells) + " |" for cells in [head, ["---"] * len(head), *rows])


def table(results: dict) -> str:
    """Markdown: the metrics of each checkpoint in percent ± one standard error."""
    rows = []
    for name, result in results.items():
        for decoding in ("greedy", "sampled"):
            m = result[decoding]
            cells = [f"{100 * m[k]:{'+' if k == 'delta' else ''}.1f} ± {100 * m['se'][k]:.1f}" for k in COLUMNS]
            rows.append([name, decoding, *cells])
    return markdown(["checkpoint", "decoding", *COLUMNS.values()], rows)


def report_text(c: Config, results: dict, rows: list[dict], transcripts: list, pictures: list[str]) -> str:
    last = list(results)[-1]
    changed = {f.name: getattr(c, f.name) for f in dataclasses.fields(c) if getattr(c, f.name) != f.default}
    lines = [f"# {c.name}: {c.task}, {'seed' if c.test_data else f'size {c.size}, seed'} {c.seed}", ""]
    minutes = rows[-1]["seconds"] / 60 if rows else 0
    lines += [f"Settings other than the defaults: {changed or 'none'}. Training took {minutes:.1f} minutes.", ""]
    n = results[last]["greedy"]["n"]
    lines += [f"Percent of {n} held-out problems ± standard error; greedy, or sampled at temperature 1.", "", table(results)]
    acc = {name: [f"{100 * a:.1f}" for a in r["greedy"]["acc"]] for name, r in results.items()}
    attempts = [str(k + 1) for k in range(len(acc[last]))]
    lines += ["", "## Accuracy after each attempt (greedy)", ""]
    lines += [markdown(["checkpoint", *attempts], [[name, *cells] for name, cells in acc.items()])]
    lines += ["", "## Does turn 2 read turn 1?", "", "Accuracy of turn 2 on problems with a wrong first attempt, by what stands"]
    lines += ["in its place: the model's own attempt, its attempt at another problem and, where the task can make them, an"]
    lines += ["unrelated wrong one, a near miss, the right one, its own with a true check. `true_checks`: share of its own"]
    lines += ["wrong attempts whose check is true as it stands. `drift` is the KL of the first attempt to the base's in nats.", ""]
    swaps = {name: r["swap"]["wrong_first"] for name, r in results.items()}
    kinds = [kind for kind in swaps[last] if kind != "n"]
    swapped = [[name, str(s["n"]), *(f"{100 * s[k]:.1f}" for k in kinds), f"{results[name]['drift_kl']:.2f}"]
               for name, s in swaps.items()]  # fmt: skip
    lines += [markdown(["checkpoint", "n", *kinds, "drift"], swapped)]
    if c.test_data:
        kinds = ["truncated", "unparsable", "timeout"]
        unjudged = [[name, *(f"{100 * r['greedy'][k]:.1f}" for k in kinds)] for name, r in results.items()]
        lines += ["", "## Attempts that could not be judged (greedy, percent)", "", markdown(["checkpoint", *kinds], unjudged)]
    lines += ["", *(f"![{Path(p).stem.replace('_', ' ')}]({p})" for p in pictures)]
    lines += ["", f"## Transcripts of {last}", "", "~~~~"]
    lines += [transcript(*t) for t in transcripts[:10]]
    return "\n".join(lines) + "\n~~~~\n"  # code in an attempt may have a fence of its own


# ------------------------------------------------------------------------------------------------------ command line


def show_checkpoint(args, device: torch.device) -> None:
    """Metrics of one checkpoint, or both attempts at a problem that a person poses."""
    model, c = load_model(args.path, device)
    c = dataclasses.replace(c, **{k: getattr(args, k) for k in ("task", "test_data", "max_new") if getattr(args, k)})
    if args.export:
        (merge_lora(model) if c.lora else model).save_pretrained(args.export)
        files = ("tokenizer.json", "vocab.json", "merges.txt", "tokenizer_config.json", "chat_template.jinja")
        copied = [shutil.copy(path, args.export) for f in files if (path := Path(c.tokenizer or c.init) / f).is_file()]
        print(f"{args.export} has the model{'' if copied else ', without a tokenizer'}")
        return
    if args.problem is not None:
        if not hasattr(load_task(c.task), "parse"):
            raise ValueError(f"task={c.task} has no problems that a person could type: its checker needs their reference answers")
        problems = [load_task(c.task).parse(args.problem)]
    elif args.repair:
        problems = wrong_attempts(Path(args.repair), load_task(c.task))
    else:
        problems = held_out_of(c, args.n or c.eval_n)
    metrics, transcripts = evaluate(model, c, problems, args.turns, args.temperature, args.feedback)
    if args.save:
        rows = [{"prompt": p.prompt, "answer": p.answer, "attempts": texts, "right": right} for p, texts, right in transcripts]
        Path(args.save).write_text("".join(json.dumps(row) + "\n" for row in rows))
    if args.problem is not None:
        print(transcript(*transcripts[0]).strip())
    elif args.json:
        print(json.dumps(without_nan(metrics)))
    else:
        for shown in transcripts[: args.show]:
            print(transcript(*shown))
        for name, value in metrics.items():
            if name in COLUMNS:
                print(f"{COLUMNS[name]:>10} {100 * value:6.1f} ± {100 * metrics['se'].get(name, 0):.1f} %" if "se" in metrics else
                      f"{COLUMNS[name]:>10} {100 * value:6.1f} %")  # fmt: skip
        if c.test_data:
            print(" ".join(f"{name} {100 * metrics[name]:.1f} %" for name in ("truncated", "unparsable", "timeout")))
        print("accuracy after each attempt: " + " ".join(f"{100 * a:.1f}" for a in metrics["acc"]) + f" %  (n = {metrics['n']})")


def wrong_attempts(path: Path, task) -> list[Problem]:
    """The problems of a file written by --save whose first attempt is wrong as it stands, given with it: for offline repair.

    Judged anew, since an attempt that was cut off may have held the answer; empty ones are left out.
    """
    rows = [row for _, row in read_rows(path, ("prompt", "answer", "attempts"))]
    problems = [Problem(row["prompt"], row["answer"], row["attempts"][0]) for row in rows if row["attempts"][0].strip()]
    judged = verdicts(task, [(p, p.given) for p in problems])
    problems = [p for p, verdict in zip(problems, judged, strict=True) if verdict != "right"]
    if not problems:
        raise ValueError(f"{path} has no wrong first attempt: there is nothing to repair")
    return problems


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("path", help="a checkpoint, or the folder of a run for its whole report")
    parser.add_argument("--temperature", type=float, default=0.0, help="0 is greedy, as in the paper")
    parser.add_argument("--turns", type=int, default=2, help="attempts at each problem")
    parser.add_argument("--feedback", action="store_true", help="ask for feedback before each later attempt (Self-Refine)")
    parser.add_argument("--n", type=int, help="held-out problems; default: the run's eval_n")
    parser.add_argument("--show", type=int, default=0, help="so many transcripts")
    parser.add_argument("--json", action="store_true", help="print the metrics as JSON")
    parser.add_argument("--task", help="another task than the run's, e.g. humaneval for a model trained on mbpp")
    parser.add_argument("--test_data", help="another file of held-out problems; rows with a field `attempt` are for offline repair")
    parser.add_argument("--max_new", type=int, help="longest attempt in tokens; default: the run's")
    parser.add_argument("--save", help="write the transcripts into this file, a JSON object a line")
    parser.add_argument("--repair", help="offline repair: turn 2 on the wrong first attempts of a file that --save wrote")
    parser.add_argument("--export", help="write the model, adapters merged, into this folder as a Hugging Face checkpoint")
    parser.add_argument("--problem", help="a problem of your own, e.g. 8742/6")
    parser.add_argument("--device", default="auto")
    args = parser.parse_args()
    try:
        for name in ("turns", "n", "max_new"):
            if getattr(args, name) is not None and getattr(args, name) < 1:
                raise ValueError(f"--{name}={getattr(args, name)}: it must be 1 or more")
        if args.temperature < 0:
            raise ValueError(f"--temperature={args.temperature}: 0 is greedy, above 0 samples")
        device = pick_device(args.device)
        given = [name for name, value in vars(args).items() if value != parser.get_default(name) and name not in ("path", "device")]
        if Path(args.path).is_dir() and given:
            raise ValueError(
                f"--{given[0]} is for one checkpoint, e.g. {args.path}/stage2.pt: a folder's report takes its run's settings"
            )
        report(Path(args.path), device) if Path(args.path).is_dir() else show_checkpoint(args, device)
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
