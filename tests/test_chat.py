"""eval.py --chat: its attempts are those of the evaluation, they are marked, and bad input ends nothing."""

import io
import sys

import pytest

import eval as evaluation
from data import load_task
from data.division import parse
from engine import chat
from engine.checkpoints import checkpoint_of, save
from train import Config

C = Config(size=2, max_new=6)


@pytest.fixture
def talk(small_gpt, tmp_path, monkeypatch, capsys):
    """A function that types lines into the chat with a small model, and returns what was shown."""
    save(tmp_path / "base.pt", checkpoint_of(C, small_gpt()))

    def talk(*lines: str, options: tuple[str, ...] = ()) -> str:
        monkeypatch.setattr(sys, "argv", ["eval.py", str(tmp_path / "base.pt"), "--chat", *options])
        monkeypatch.setattr(sys, "stdin", io.StringIO("".join(f"{line}\n" for line in lines)))
        evaluation.main()
        return capsys.readouterr().out

    return talk


def attempts_in(shown: str) -> list[str]:
    return [part.split("   (")[0] for part in shown.split("attempt ")[1:]]


def test_the_attempts_are_those_of_the_evaluation(talk, small_gpt):
    shown = talk("96/8", "", "", "48/4")
    expected = []
    for prompt, turns in (("96/8", 3), ("48/4", 2)):
        _, [(_, texts, _)] = evaluation.evaluate(small_gpt(), C, [parse(prompt)], turns=turns)
        expected += [f"{k}: {text}" for k, text in enumerate(texts, 1)]
    assert attempts_in(shown) == expected[:4]


def test_attempts_are_marked(talk, monkeypatch):
    monkeypatch.setattr(chat, "written", lambda model, ids, *args: iter(written))
    tokenizer = chat.make_environment(C, training=False).tokenizer
    written = tokenizer.encode("12*8")
    assert "attempt 1: 12*8   (right)" in talk("96/8")
    written = tokenizer.encode("13*8")
    assert "attempt 1: 13*8   (wrong)" in talk("96/8")
    written = tokenizer.encode("12*8=9")  # as many tokens as there may be: it did not end
    assert "attempt 1: 12*8=9   (wrong: it was cut off)" in talk("96/8")


def test_what_is_no_problem_leaves_the_dialogue_as_it_is(talk):
    with_noise = talk("", "96/8", "hello", "1/0", "")
    assert with_noise.count("a division problem looks like") == 2
    assert attempts_in(with_noise)[-1] == attempts_in(talk("96/8", ""))[-1]


def test_a_full_dialogue_says_so_and_goes_on(talk):
    shown = talk("96/8", *[""] * 40, "48/4")
    assert "exceeds max_len" in shown
    assert attempts_in(shown)[-1] == attempts_in(talk("48/4"))[0]


def test_a_temperature_samples(talk):
    sampled = {talk("96/8", "", options=(f"--temperature={t}",)) for t in (0.7, 1.0, 2.0)}
    assert len(sampled) == 3


def test_tasks_that_can_not_judge_a_typed_problem_show_no_mark():
    environment = chat.make_environment(C, training=False)._replace(task=load_task("gsm8k"))
    problem = chat.posed(environment, "How many?")
    assert problem.prompt == "How many?"
    assert chat.mark(environment, problem, "7", was_cut_off=False) == ""


def test_only_a_terminal_gets_colours(monkeypatch):
    environment = chat.make_environment(C, training=False)
    assert chat.mark(environment, parse("96/8"), "12*8=96=", False) == "   (right)"
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    monkeypatch.delenv("NO_COLOR", raising=False)
    assert chat.mark(environment, parse("96/8"), "12*8=96=", False) == "   \033[32m(right)\033[0m"
    monkeypatch.setenv("NO_COLOR", "1")
    assert chat.mark(environment, parse("96/8"), "12*8=96=", False) == "   (right)"
