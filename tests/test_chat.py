"""eval.py --chat: its attempts are those of the evaluation, they are marked, and bad input ends nothing."""

import io
import sys

import pytest

import eval as evaluation
from data.division import parse
from engine import chat
from engine.checkpoints import checkpoint_of, save
from rollout import Rollout
from train import Config

C = Config(task="division", size=2, max_new=6)


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


@pytest.mark.parametrize(
    "text, ended, mark",
    [("12*8", True, "right"), ("13*8", True, "wrong"), ("12*8=9", False, "wrong: it was cut off")],
)
def test_attempts_are_marked(text, ended, mark, talk, monkeypatch):
    real = chat.sample_dialogues

    def sample(*args) -> Rollout:
        rollout = real(*args)
        rollout.texts[0][0], rollout.ended[0, 0] = text, ended
        return rollout

    monkeypatch.setattr(chat, "sample_dialogues", sample)
    assert f"attempt 1: {text}   ({mark})\n" in talk("96/8")


@pytest.mark.parametrize("line", ["hello", "1/0", "2526/6"])
def test_what_is_no_problem_for_the_model_is_said_and_enter_does_not_go_on_with_the_one_before(line, talk):
    shown = talk("", "96/8", line, "", "", "48/4")
    assert ("a division problem looks like" in shown) == (line != "2526/6")
    assert ("beyond the problems that the model has learned" in shown) == (line == "2526/6")
    assert attempts_in(shown) == attempts_in(talk("96/8")) + attempts_in(talk("48/4"))


def test_a_full_dialogue_says_so_and_goes_on(talk):
    shown = talk("96/8", *[""] * 40, "48/4")
    assert "exceeds max_len" in shown
    assert attempts_in(shown)[-1] == attempts_in(talk("48/4"))[0]


def test_a_temperature_samples(talk):
    assert len({talk("96/8", "", options=(f"--temperature={t}",)) for t in (0.7, 1.0, 2.0)}) == 3


def test_a_closed_keyboard_is_one_line(talk, monkeypatch):
    monkeypatch.setattr(chat.sys, "stdin", None)
    with pytest.raises(ValueError, match="its input is closed"):
        chat.chat(None, C, 0.0)


def test_tasks_that_can_not_judge_a_typed_problem_show_no_mark(qwen, monkeypatch, capsys):
    words = ["--chat", "--task=gsm8k", f"--test_data={qwen}/config.json", "--max_new=60", "--device=cpu"]
    monkeypatch.setattr(sys, "argv", ["eval.py", str(qwen), *words])
    monkeypatch.setattr(sys, "stdin", io.StringIO("How many?\n"))
    evaluation.main()
    shown = capsys.readouterr().out
    assert "attempt 1: " in shown and "(right)" not in shown and "(wrong)" not in shown
