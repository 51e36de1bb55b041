"""report.html: what a run has learned, as one page for a browser.

The numbers are collected here, and page.html shows them. What is the paper's comes as functions in `parts`,
see SHOWN in eval.py: like engine/, this folder imports none of it.
"""

import dataclasses
import json
from collections import defaultdict
from pathlib import Path
from types import SimpleNamespace

import torch
from torch import Tensor

from engine.build import make_environment
from engine.memory import in_chunks
from engine.options import require
from engine.report import COLUMNS, without_nan
from engine.settings import STEPS
from model import GPT

SHOWN = 100  # dialogues of each checkpoint that are there token by token, if they fit
LIMIT = 1_400_000  # characters of JSON; more would be slow on a phone
TOP = 5  # likeliest tokens that are kept at each place
POINTS = 600  # of a curve, or up to twice as many
OF_FILES = ("name", "out", "log_every", "show_every", "save_every", "keep_every", "overwrite")
IN_ORDER = ("base", "imitate", "stage1", "stage1b", "stage1c", "stage1d", "stage1e", "stage2")


def write_page(path, parts, device, seen: dict, beside: dict, results: dict, log: list, training=True):
    """Writes the page of a run, or of one checkpoint, into a file.

    `seen`: name of a checkpoint -> (file, config, greedy transcripts). `beside`: see `beside_of`. `results`:
    name -> how -> metrics. `log`: rows of metrics.jsonl. The update at the end of the page is made with the
    last checkpoint, on training problems, or with `training` False on the held-out ones.
    """
    own, (_, c, transcripts) = list(seen.items())[-1]
    problems, env, of = [p for p, _, _ in transcripts], make_environment(c, training=False), []
    for name, (file, other) in beside.items():
        turns = max(len(transcripts[0][2]), other.turns)
        metrics, rows = parts.evaluate(parts.load_model(file, device)[0], other, problems, turns)
        seen, results = seen | {name: (file, other, rows)}, results | {name: {"greedy": metrics}}
    levels = [str(env.task.level(p)) if hasattr(env.task, "level") else "" for p in problems]
    kinds = {name: [kind_of(ok) for *_, ok in rows] for name, (_, _, rows) in seen.items()}
    numbers, data = chosen(kinds, levels), {"checkpoints": [], "results": results}
    for name, (file, its_c, rows) in seen.items():
        s = scene_of(parts, device, file, its_c)
        of.append(greedy_dialogues(parts, s, rows, numbers))
        about = {"name": name, "kinds": "".join(map(str, kinds[name])), "dialogues": of[-1]}
        data["checkpoints"].append(about | {"stage": s.stage.name, "reference": s.against})
        if name == own:
            data["update"] = one_update(parts, s, [] if training else problems)
        del s  # before the next model is read
    room = LIMIT - 10 * len(levels) - len(json.dumps(data["update"]))
    for k, i in enumerate(numbers):  # those that don't fit are left out
        room -= sum(len(json.dumps(dialogues.get(i))) for dialogues in of) + len(problems[i].prompt)
        for dialogues in of if room < 0 and k else ():
            dialogues.pop(i, None)
    spoken = [d["turns"] for rows in (*of, data["update"]["dialogues"]) for d in rows.values()]
    ids = {i for turns in spoken for turn in turns for token in turn for i in (token[0], *token[6::3])}
    data["vocabulary"] = {i: env.tokenizer.decode([i]) for i in sorted(ids)}
    data["problems"] = {i: problems[i][:2] for i in sorted(numbers) if any(i in rows for rows in of)}
    data["run"] = {key: getattr(c, key) for key in ("name", "task", "size", "seed", "test_data")}
    changed = [f for f in dataclasses.fields(c) if getattr(c, f.name) != f.default and f.name not in OF_FILES]
    data["settings"] = [[f.name, getattr(c, f.name), f.default, f.metadata["why"]] for f in changed]
    data |= {"levels": levels, "curves": curves(log), "columns": COLUMNS, "end": env.tokenizer.end_id}
    data["minutes"] = log[-1]["seconds"] / 60 if log else None
    Path(path).write_text(filled(data), encoding="utf-8")


def filled(data: dict) -> str:
    """page.html with the data as JSON. What a model wrote can't end its element: no < is left."""
    text = json.dumps(without_nan(data), allow_nan=False, separators=(",", ":")).replace("<", "\\u003c")
    return Path(__file__).with_name("page.html").read_text(encoding="utf-8").replace("__DATA__", text, 1)


def beside_of(parts, folder: str | None, c, device) -> dict:
    """The last checkpoint of another run, name -> (file, config); {} without a folder. ValueError unless that
    run has the held-out problems of the config `c`.
    """
    if not folder:
        return {}
    files = [file for name in IN_ORDER if (file := Path(folder) / f"{name}.pt").is_file()]
    require(files, f"--beside={folder} has no checkpoint: give the folder of a run")
    other, keys = parts.load_model(files[-1], device)[1], ("task", "size", "seed", "test_data")
    same = all(getattr(other, key) == getattr(c, key) for key in keys)
    require(
        same, f"--beside={folder} has other held-out problems: take a run with the same {', '.join(keys)}"
    )
    return {f"{files[-1].resolve().parent.name}: {files[-1].stem}": (files[-1], other)}


def curves(log: list[dict]) -> dict[str, list]:
    """What the page draws of RL's updates, by name; of very many updates only every n-th."""
    rows = [row | {"update": i} for i, row in enumerate((row for row in log if "acc_t1" in row), 1)]
    rows = rows[:: max(1, len(rows) // POINTS)]
    names = [name for name in (rows or [{}])[0] if name.startswith(("stage", "update", "acc_t", "kl_t"))]
    return {name: [row[name] for row in rows] for name in names}


def kind_of(correct: list[bool]) -> int:
    """0 to 3 for c→c, i→c, c→i and i→i: what became of the first attempt."""
    return (not correct[0]) + 2 * (not correct[1])


def chosen(kinds: dict[str, list[int]], levels: list[str]) -> list[int]:
    """The numbers of SHOWN problems such that each outcome of each checkpoint is there, and at each level.

    The groups take turns: each gives its first problem, then its second, and so on.
    """
    groups = defaultdict(list)
    for by_level in (False, True):
        for name, of in kinds.items():
            for i, kind in enumerate(of):
                groups[name, kind, by_level and levels[i]].append(i)
    in_turn = [group[k] for k in range(SHOWN) for group in groups.values() if k < len(group)]
    return list(dict.fromkeys(in_turn))[:SHOWN]


def scene_of(parts, device, file, c) -> SimpleNamespace:
    """A checkpoint with all that its loss needs: the RL stage is its own, of a base the first one to come.

    The frozen model `reference` is the stage's, if it lies beside the file, else the checkpoint itself.
    """
    stages = [stage for stage in parts.stages(c) if stage.weights]
    stages = stages or parts.stages(dataclasses.replace(c, stage2_steps=1))[-1:]
    stem, model = Path(file).stem, parts.load_model(file, device)[0]
    stage = {s.name: s for s in stages}.get(stem, stages[0 if stem in ("base", "imitate") else -1])
    beside = Path(file).with_name(f"{stage.reference}.pt")
    found = Path(file).is_file() and beside.is_file()
    reference, against = (parts.load_model(beside, device)[0], beside.stem) if found else (model, "itself")
    return SimpleNamespace(model=model, reference=reference, against=against, stage=stage, c=c)


def greedy_dialogues(parts, s: SimpleNamespace, transcripts: list, numbers: list[int]) -> dict[int, dict]:
    """The dialogues with these numbers: verdicts and, for each turn, its tokens.

    Their advantages are those of rows of a training batch: the other samples of each problem are drawn for
    that. A dialogue that a near-tie made come out otherwise than in the transcripts is left out.
    """
    c, stage, env, turns = s.c, s.stage, make_environment(s.c, training=False), len(s.stage.weights)
    require(len(transcripts[0][2]) >= turns, f"--html needs --turns={turns}, as many attempts as in training")
    problems, n = [transcripts[i][0] for i in numbers], c.samples_per_problem
    rollout = parts.answer(s.model, c, env, env.prompts(problems), turns, 0.0)
    correct = torch.tensor([transcripts[i][2][:turns] for i in numbers])[None]  # [1, problems, turns]
    if n > 1:
        more = problems * (n - 1)
        sampled = parts.answer(s.model, c, env, env.prompts(more), turns, c.temperature)
        others = parts.correctness(env.task, more, sampled.texts, sampled.ended)[0].cpu()
        correct = torch.cat((correct, others.unflatten(0, (n - 1, -1))))  # [n, problems, turns]
    correct = correct.transpose(0, 1).flatten(0, 1).to(rollout.ids.device)  # the n of a problem in a row
    returns = parts.turn_returns(parts.turn_rewards(correct, stage.weights, stage.alpha), stage.gamma)
    advantages = parts.advantages(returns, n)[::n]
    tokens = token_rows(parts, s, [rollout.ids, rollout.masks, advantages], 4)
    rows = zip(numbers, rollout.texts, tokens, strict=True)
    rows = [(i, row) for i, texts, row in rows if texts == transcripts[i][1][:turns]]
    return {i: {"ok": transcripts[i][2][:turns], "turns": row} for i, row in rows}


@torch.no_grad()
def token_rows(parts, s: SimpleNamespace, batch: list[Tensor], digits: int) -> list[list[list]]:
    """For each dialogue and turn its tokens, each a flat list of numbers, as the loss sees them.

    `batch`: ids [B, T], masks [B, K, T] and advantages [B, K]. The numbers: id, log-prob, the reference's
    log-prob, KL, entropy, credit; then for each of the TOP likeliest tokens id, probability, the reference's.
    """
    found = []
    for ids, masks, advantages in zip(*(t.split(32) for t in batch), strict=True):
        mask = masks.any(1)
        log_p, kl, entropy = parts.token_scores(s.model, s.reference, ids, mask, s.c.temperature)
        kl_at = kl.new_zeros(ids.shape).masked_scatter(mask, kl)
        credit = parts.token_credit(advantages, kl_at, masks, s.stage.betas)[mask]
        log_q, *likeliest = alternatives(s.model, s.reference, ids, mask, s.c.temperature)
        first = torch.stack([t.cpu().double() for t in (ids[mask], log_p, log_q, kl, entropy, credit)], 1)
        then = torch.stack([t.cpu().double() for t in likeliest], 2).flatten(1)  # [N, 3 * TOP]
        numbers = torch.cat((first, then), 1).tolist()
        rows = [[[] for _ in s.stage.betas] for _ in ids]
        for (b, _, k), token in zip(masks.transpose(1, 2).nonzero().tolist(), numbers, strict=True):
            rows[b][k].append([int(x) if x == int(x) else round(x, digits) for x in token])
        found += rows
    return found


def alternatives(model: GPT, reference: GPT, ids: Tensor, mask: Tensor, temperature: float):
    """The reference's log-prob of each of the N masked tokens [N]. And at each the model's TOP likeliest
    tokens, their probabilities, and the reference's [N, TOP]. There is never a tensor [N, V].
    """
    inputs, targets, mask = ids[:, :-1], ids[:, 1:][mask[:, 1:]], mask[:, 1:]

    def score(hidden, reference_hidden, targets):
        log_q = (reference.head(reference_hidden).float() / temperature).log_softmax(-1)
        p, likeliest = (model.head(hidden).float() / temperature).softmax(-1).topk(TOP)
        return log_q.gather(1, targets[:, None])[:, 0], likeliest, p, log_q.gather(1, likeliest).exp()

    hidden, reference_hidden = model.hidden(inputs)[mask], reference.hidden(inputs)[mask]
    return in_chunks(score, model.config.vocab_size, hidden, reference_hidden, targets)


def one_update(parts, s: SimpleNamespace, problems: list) -> dict:
    """A new batch as the loss sees it, that of the update after the stage's last: all rewards, and the tokens
    of one dialogue of each kind. `problems`, if there are any, take the place of the training problems.
    """
    c, stage, n, asked = dataclasses.replace(s.c, shard=False), s.stage, s.c.samples_per_problem, []
    env = make_environment(c, training=not problems)
    draw = (lambda i: problems[i % len(problems)]) if problems else env.problem
    env.problem = lambda i: asked.append(draw(i)) or asked[-1]
    index = next((i for i, row in enumerate(parts.stages(c)) if row.name == stage.name), 0)
    batch, _, _ = parts.rollout_batch(c, stage, index * STEPS + stage.steps, env, s.model, s.reference)
    columns = {key: batch[key].tolist() for key in ("correct", "rewards", "advantages")}
    columns["returns"] = parts.turn_returns(batch["rewards"], stage.gamma).tolist()
    order = batch["advantages"].abs().sum(1).argsort().tolist()
    rows = sorted({kind_of(columns["correct"][b]): b for b in order}.values())  # the largest stay
    tokens = token_rows(parts, s, [batch[key][rows] for key in ("ids", "masks", "advantages")], 6)
    tokens = [[[token[:6] for token in turn] for turn in row] for row in tokens]
    dialogues = {b: {"turns": row, "problem": asked[b][:2]} for b, row in zip(rows, tokens, strict=True)}
    about = {key: getattr(stage, key) for key in ("name", "weights", "alpha", "gamma", "betas")}
    about |= {"samples": n, "temperature": c.temperature, "reference": s.against}
    return about | columns | {"held_out": bool(problems), "dialogues": dialogues}
