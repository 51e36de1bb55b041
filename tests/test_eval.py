"""Evaluation: the metrics, against hand-made cases and the paper's tables, and what they are measured on."""

import json
import math
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from run_files import even

import eval as evaluation
from data import Problem, is_held_out, load_task, train_problems
from data.tokenizer import build_tokenizer
from engine.build import held_out_of, make_environment, training_problems_of
from engine.checkpoints import checkpoint_of, save
from engine.presets import PRESETS
from engine.report import FAILURES, metrics_text, mixed, save_transcripts, transcript, write_report
from eval import drift, evaluate, report, self_correction_metrics, swap_test
from train import Config, load_model

C = Config(task="division", size=2, train_n=0, max_new=5, eval_n=12)

# ---------------------------------------------------------------------------------- the metrics

# acc_t1, acc_t2, delta, i_to_c, c_to_i of the paper's tables with transitions (MATH, then HumanEval)
PAPER = [
    (52.6, 41.4, -11.2, 4.6, 15.8),
    (52.8, 51.8, -1.0, 3.2, 4.2),
    (55.4, 41.2, -14.2, 5.4, 19.6),
    (53.6, 54.0, 0.4, 2.6, 2.2),
    (52.4, 54.2, 1.8, 5.4, 3.6),
    (55.0, 55.0, 0.0, 0.0, 0.0),
    (60.0, 64.4, 4.4, 5.8, 1.4),
    (53.7, 56.7, 3.0, 7.9, 4.9),
    (53.7, 52.5, -1.2, 9.8, 11.0),
    (56.1, 54.3, -1.8, 4.3, 6.1),
    (52.4, 64.6, 12.2, 15.2, 3.0),
]


@pytest.mark.parametrize("t1, t2, delta, i_to_c, c_to_i", PAPER)
def test_metrics_reproduce_the_papers_rows(t1, t2, delta, i_to_c, c_to_i):
    """1,000 problems with the row's transitions: all five figures come out, as fractions of all problems."""
    count = {"ic": round(10 * i_to_c), "ci": round(10 * c_to_i), "first": round(10 * t1)}
    rows = [[False, True]] * count["ic"] + [[True, False]] * count["ci"]
    rows += [[True, True]] * (count["first"] - count["ci"])
    rows += [[False, False]] * (1000 - len(rows))
    m = self_correction_metrics(torch.tensor(rows))
    row = {"acc_t1": t1, "acc_t2": t2, "delta": delta, "i_to_c": i_to_c, "c_to_i": c_to_i}
    for name, expected in row.items():  # HumanEval's rows are rounded shares of 164
        assert 100 * m[name] == pytest.approx(expected, abs=0.11), name
    assert m["acc_t2"] == pytest.approx(m["acc_t1"] + m["i_to_c"] - m["c_to_i"])
    assert m["fix_rate"] == pytest.approx(i_to_c / (100 - t1), abs=0.002)


def test_standard_errors_are_the_paired_ones():
    correct = torch.tensor([[0, 1], [1, 1], [1, 0], [0, 0], [0, 1], [1, 1], [1, 1], [0, 1]], dtype=torch.bool)
    m = self_correction_metrics(correct, torch.tensor([1, 0, 1, 1, 1, 0, 0, 1], dtype=torch.bool))
    assert m["n"] == 8 and m["acc_t1"] == 0.5 and m["acc_t2"] == 0.75 and m["change_rate"] == 0.625
    assert m["se"]["acc_t1"] == pytest.approx(math.sqrt(0.25 / 8))
    differences = [1, 0, -1, 0, 1, 0, 0, 1]
    variance = sum((d - 0.25) ** 2 for d in differences) / 8
    assert m["se"]["delta"] == pytest.approx(math.sqrt(variance / 8))
    assert m["fix_rate"] == 0.75 and m["se"]["fix_rate"] == pytest.approx(math.sqrt(0.75 * 0.25 / 4))


def test_no_wrong_first_attempt_has_no_fix_rate():
    m = self_correction_metrics(torch.ones(5, 2, dtype=torch.bool))
    assert math.isnan(m["fix_rate"]) and m["delta"] == 0


# ---------------------------------------------------------------------------------- what is measured


def says(texts: list[list[str]], asked: list | None = None):
    """Stands in for `sample_dialogues`: the dialogues are these. What it was asked goes into `asked`."""

    def sample(model, tokenizer, prompts, requests, max_new, temperature, *rest):
        if asked is not None:
            decode = tokenizer.decode
            asked.append(([decode(p) for p in prompts], [decode(r) for r in requests], temperature))
        ended = torch.ones(len(texts), len(texts[0]), dtype=torch.bool)
        return SimpleNamespace(texts=texts, ended=ended)

    return sample


@pytest.fixture
def even_sums(monkeypatch):
    """A small model is never right."""
    monkeypatch.setattr(evaluation, "correctness", even)


def test_metrics_of_given_dialogues(monkeypatch):
    """A copy is no change, however right or wrong."""
    texts = [["1457*6", "1457*6"], ["1457", "1467"], ["12", "34"], ["12", "1457"]]
    monkeypatch.setattr(evaluation, "sample_dialogues", says(texts))
    problems = [Problem("8742/6", "1457")] * 4
    metrics, transcripts = evaluate(no_model(), C, problems)
    assert metrics["acc"] == [metrics["acc_t1"], metrics["acc_t2"]] == [0.5, 0.5]
    assert (metrics["i_to_c"], metrics["c_to_i"], metrics["change_rate"]) == (0.25, 0.25, 0.75)
    assert [row for _, row, _ in transcripts] == texts
    assert [row for _, _, row in transcripts] == [[True, True], [True, False], [False, False], [False, True]]


def no_model():
    """evaluate() asks the model for its device alone, where the dialogues are given."""
    return SimpleNamespace(embed=SimpleNamespace(weight=torch.zeros(1)))


def test_feedback_is_asked_for_and_is_no_attempt(monkeypatch):
    asked, problems = [], [Problem("8742/6", "1457")]
    monkeypatch.setattr(evaluation, "sample_dialogues", says([["12", "wrong", "1457", "right", "13"]], asked))
    metrics, transcripts = evaluate(no_model(), C, problems, turns=3, feedback=True)
    requests = [f"<|user|>{word}<|assistant|>" for word in ("judge", "check", "judge", "check")]
    assert asked == [(["<|user|>8742/6<|assistant|>"], requests, 0.0)]
    assert transcripts[0][1:] == (["12", "1457", "13"], [False, True, False]) and len(metrics["acc"]) == 3


def test_a_given_attempt_is_repaired(monkeypatch):
    asked, problems = [], [Problem("8742/6", "1457", given="1447*6")]
    monkeypatch.setattr(evaluation, "sample_dialogues", says([["1457"]], asked))
    metrics, transcripts = evaluate(no_model(), C, problems, turns=2)
    prompt = "<|user|>8742/6<|assistant|>1447*6<|end|><|user|>check<|assistant|>"
    assert asked == [([prompt], [], 0.0)]
    assert transcripts[0][1:] == (["1447*6", "1457"], [False, True]) and metrics["fix_rate"] == 1


def test_evaluation_is_greedy_unless_a_temperature_is_given(small_gpt):
    """A temperature near 0 leaves the greedy dialogues, 1 does not; both come out the same again."""
    model, problems = small_gpt(), held_out_of(C, 12)

    def texts(**options):
        return [row for _, row, _ in evaluate(model, C, problems, **options)[1]]

    assert texts() == texts(temperature=1e-4) != texts(temperature=1.0) == texts(temperature=1.0)


def test_evaluation_disturbs_nothing(small_gpt, even_sums, monkeypatch):
    """Neither torch's random numbers nor the model's weights change, nor do they want gradients. It needs no
    training problems, whose file may be gone.
    """
    monkeypatch.setattr("engine.build.train_problems", None)
    model, base, problems = small_gpt(), small_gpt(dim=16), held_out_of(C, 12)
    before = {name: p.clone() for name, p in model.state_dict().items()}
    state = torch.get_rng_state()
    _, transcripts = evaluate(model, C, problems, temperature=1.0)
    swap_test(model, C, transcripts)
    drift(model, base, C, problems)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(p, before[name]) for name, p in model.state_dict().items())
    assert all(p.requires_grad and p.grad is None for p in model.parameters())


def test_evaluation_is_on_the_runs_own_held_out_side():
    c = Config(seed=3)
    problem = train_problems(load_task(c.task), c.size, c.seed)
    trained_on = {problem(i).prompt for i in range(3000)}
    assert not trained_on & {p.prompt for p in held_out_of(c, 300)}


def test_drift_is_the_kl_of_the_models_own_first_attempts_to_the_base(small_gpt, monkeypatch):
    """KL(model || base), in nats a problem, at the tokens that the model sampled at temperature 1."""
    model, base, problems = small_gpt(), small_gpt(dim=16), held_out_of(C, 70)  # more than one chunk of 64
    rollouts, real = [], evaluation.answer
    monkeypatch.setattr(evaluation, "answer", lambda *args: rollouts.append(real(*args)) or rollouts[-1])
    found = drift(model, base, C, problems)
    sampled = [row[0] for _, row, _ in evaluate(model, C, problems, turns=1, temperature=1.0)[1]]
    assert [row[0] for row in rollouts[0].texts] == sampled
    with torch.no_grad():
        p, q = (m(rollouts[0].ids[:, :-1]).log_softmax(-1) for m in (model, base))
    kl = (p.exp() * (p - q)).sum(-1)[rollouts[0].masks[:, 0, 1:]].sum().item() / 70
    assert found == pytest.approx(kl, rel=1e-4) and found > 0.1
    assert drift(model, model, C, problems) == pytest.approx(0, abs=1e-5)


def test_swap_test_of_a_model_that_repeats_what_it_reads(monkeypatch):
    """Its turn 2 is as right as the attempt that stands in turn 1. It must be asked greedily."""
    temperatures, read = [], []

    def repeat(model, tokenizer, prompts, requests, max_new, temperature, *rest):
        temperatures.append(temperature)
        read.append(prompts)
        heads = [tokenizer.decode(p).removesuffix("<|end|><|user|>check<|assistant|>") for p in prompts]
        texts = [[head.split("<|assistant|>")[1]] for head in heads]
        return SimpleNamespace(texts=texts, ended=torch.ones(len(texts), 1, dtype=torch.bool))

    monkeypatch.setattr(evaluation, "sample_dialogues", repeat)
    own = [("84/6", "14*6=84=", True), ("96/8", "13*8=104>", False)]
    own += [("75/5", "25*5=1", False), ("52/4", "1", False)]
    task = load_task("division")
    swap = swap_test(no_model(), C, [(task.parse(p), [text, ""], [right, False]) for p, text, right in own])
    zero = dict(other=0.0, wrong=0.0, near=0.0)
    assert swap["all"] == {"n": 4, "own": 0.25, **zero, "right": 1.0, "checked": 0.25, "true_checks": 0.5}
    third = pytest.approx(1 / 3)
    assert swap["wrong_first"] == {
        "n": 3, "own": 0.0, **zero, "right": 1.0, "checked": 0.0, "true_checks": third,
    }  # fmt: skip
    assert set(temperatures) == {0.0}
    decoded = [build_tokenizer(1).decode(prompt) for prompt in read[-1]]  # `checked`: with true working
    texts = [text.split("<|assistant|>")[1].removesuffix("<|end|><|user|>check") for text in decoded]
    assert texts == ["14*6=84=", "13*8=104>", "25*5=125>", "1*4=4<"]


@pytest.mark.parametrize("of_base", [False, True])
def test_training_problems_are_different_ones_that_training_draws(of_base):
    found, env = [p.prompt for p in training_problems_of(C, 40, of_base)], make_environment(C)
    drawn = {(env.demo_problem if of_base else env.problem)(i).prompt for i in range(120)}
    assert len(set(found)) == 40 and set(found) <= drawn
    assert not any(is_held_out(prompt, C.seed) for prompt in found)


def test_the_report_shows_the_figures_that_were_found(tmp_path):
    """By hand: percent, one standard error, the swap test of wrong first attempts, the time of all steps."""
    names = ("acc_t1", "acc_t2", "delta", "i_to_c", "c_to_i", "fix_rate", "change_rate")
    found = {name: 0.1 * i for i, name in enumerate(names, 1)}
    found |= {"se": {name: 0.01 * i for i, name in enumerate(names, 1)}, "n": 50, "acc": [0.1, 0.2, 0.25]}
    found |= {name: 0.1 * i for i, name in enumerate(FAILURES)}
    sampled = {**found, "delta": -0.3, "fix_rate": math.nan, **dict.fromkeys(FAILURES, 0.99)}
    swap = {
        "all": {"n": 50, "own": 0.9, "other": 0.8},
        "wrong_first": {"n": 45, "own": 0.125, "other": 0.0625},
    }
    result = {"greedy": found, "sampled": sampled, "training": found, "swap": swap, "drift_kl": 0.375}
    rows = [{"stage": "base", "step": step, "seconds": 90.0 * step} for step in (1, 2)]
    (tmp_path / "metrics.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    transcripts = [(Problem("84/6", "14"), ["13*6", "14*6"], [False, True])]
    write_report(tmp_path, C, {"stage2": result}, transcripts)
    text = (tmp_path / "report.md").read_text(encoding="utf-8")
    cells = "10.0 ± 1.0 | 20.0 ± 2.0 | +30.0 ± 3.0 | 40.0 ± 4.0 | 50.0 ± 5.0 | 60.0 ± 6.0 | 70.0 ± 7.0"
    assert f"| stage2 | greedy | {cells} |" in text and f"| stage2 | greedy, training | {cells} |" in text
    assert "| stage2 | sampled | 10.0 ± 1.0 | 20.0 ± 2.0 | -30.0 ± 3.0 |" in text
    assert "| stage2 | 45 | 12.5 | 6.2 | 0.38 |" in text and "| stage2 | 10.0 | 20.0 | 25.0 |" in text
    assert "| stage2 | 0.0 | 10.0 | 20.0 | 30.0 |" in text  # the greedy attempts without an answer
    assert "Training took 3.0 minutes" in text and "84/6   13*6 (wrong)   14*6 (right)" in text
    kept = json.loads((tmp_path / "results.json").read_text(encoding="utf-8"), parse_constant=pytest.fail)
    assert kept["stage2"]["sampled"]["fix_rate"] is None and kept["stage2"]["greedy"]["n"] == 50


def test_one_attempt_has_no_second_one_in_its_figures():
    shown = metrics_text({"n": 4, "acc_t1": 0.25, "acc": [0.25], **dict.fromkeys(FAILURES, 0.0)})
    assert "Acc@t1   25.0 %" in shown and "Acc@t2" not in shown


def test_shown_transcripts_are_of_all_kinds():
    kinds = [(True, True)] * 3 + [(False, False)] * 2 + [(True, False), (False, True)]
    rows = [(Problem(str(i), ""), ["a", "b"], list(kind)) for i, kind in enumerate(kinds)]
    shown = mixed(rows, 6)
    assert [p.prompt for p, _, _ in shown] == ["6", "5", "0", "3", "1", "4"] and len(mixed(rows, 99)) == 7
    words = [transcript(*row).split()[-1] for row in shown[:4]]
    assert words == ["corrected", "spoiled", "kept", "missed"]
    assert len(mixed([(Problem("8", ""), ["a"], [True])] * 3, 2)) == 2  # with --turns=1


def test_saved_transcripts_have_all_attempts(tmp_path):
    save_transcripts(tmp_path / "rows", [(Problem("84/6", "14"), ["13*6", "14*6"], [False, True])])
    row = {"prompt": "84/6", "answer": "14", "attempts": ["13*6", "14*6"], "right": [False, True]}
    assert json.loads((tmp_path / "rows").read_text(encoding="utf-8")) == row


def test_a_report_has_each_checkpoints_own_greedy_and_sampled_metrics(
    small_gpt, even_sums, tmp_path, monkeypatch, capsys
):
    models = {"base": small_gpt(), "stage1": small_gpt(n_kv_head=2), "stage2": small_gpt(dim=16)}
    for name, model in models.items():
        save(tmp_path / f"{name}.pt", checkpoint_of(C, model))
    (tmp_path / "metrics.jsonl").touch()
    written = []

    def write(*args):
        assert "| stage2 | greedy |" in capsys.readouterr().out  # shown even if the folder can't be written
        written.append(args)

    monkeypatch.setattr("engine.report.write_report", write)
    report(tmp_path, torch.device("cpu"))
    ((_, _, results, _),) = written
    problems = held_out_of(C, C.eval_n)
    assert list(results) == list(models)
    for name, model in models.items():
        greedy, transcripts = evaluate(model, C, problems, turns=5)
        sampled, _ = evaluate(model, C, problems, temperature=1.0)
        practised, _ = evaluate(model, C, training_problems_of(C, C.eval_n, name == "base"))
        found = [results[name][how]["acc"] for how in ("greedy", "sampled", "training")]
        assert found == [greedy["acc"], sampled["acc"], practised["acc"]] and found[0] != found[1]
        assert results[name]["swap"]["all"] == swap_test(model, C, transcripts)["all"]
        assert results[name]["drift_kl"] == pytest.approx(drift(model, models["base"], C, problems), abs=1e-5)
    assert results["base"]["drift_kl"] == pytest.approx(0, abs=1e-5) and results["stage2"]["drift_kl"] > 0.1


SHIPPED = Path(__file__).resolve().parent.parent / "experiments" / "checkpoints"


@pytest.mark.slow
@pytest.mark.parametrize("name", ["base", "stage1", "stage2", "plain"])
def test_a_shipped_checkpoint_gives_its_tables_figures(name):
    """Another CPU adds floats in another order, and an attempt in some hundred then comes out differently."""
    rows = [line.split("|") for line in (SHIPPED / "README.md").read_text(encoding="utf-8").splitlines()]
    ((_, _, *figures, _),) = [row for row in rows if row[1:2] == [f" `{name}.pt` "]]
    model, c = load_model(SHIPPED / f"{name}.pt", torch.device("cpu"))
    assert c == Config(**(PRESETS["plain"][1] if name == "plain" else {}))  # as the page says
    metrics, _ = evaluate(model, c, held_out_of(c, 2000))
    found = [100 * metrics[key] for key in ("acc_t1", "acc_t2", "delta", "fix_rate")]
    assert found == pytest.approx([float(figure) for figure in figures], abs=0.6)
