"""What users write: a task module or a reward with a mistake is one line that names it, first."""

import types

import pytest
import torch

from data import Attempt, Environment, Problem, calculator, load_task, verdicts
from data.contract import check_task
from data.tokenizer import build_tokenizer
from engine.build import check_lengths
from rewards import check_rewards


def broken(**changes) -> types.ModuleType:
    """The calculator with other functions; None takes one away."""
    task = types.ModuleType("data.mine")
    vars(task).update({name: value for name, value in vars(calculator).items() if not name.startswith("__")})
    for name, value in changes.items():
        delattr(task, name) if value is None else setattr(task, name, value)
    return task


def raises(*_):
    raise KeyError("no such key")


FAULTS = {
    "is_correct says yes": (dict(is_correct=lambda p, t: "yes"), r", '\d:.* gives .yes.; it must give True"),
    "is_correct says 1": (dict(is_correct=lambda p, t: int(calculator.is_correct(p, t))), "gives 1; it must"),
    "all is right": (dict(is_correct=lambda p, t: True), "False for a near attempt"),
    "nothing is right": (dict(is_correct=lambda p, t: False), "True for a right attempt"),
    "None for odd texts": (
        dict(is_correct=lambda p, t: calculator.is_correct(p, t) if ":" in t else None), "True or False"
    ),
    "is_correct raises": (dict(is_correct=raises), r"is_correct\(.*\) raises KeyError"),
    "a wrong right attempt": (dict(attempt=lambda p, k, r: Attempt("x:", "")), "True for a right attempt"),
    "a text for an attempt": (dict(attempt=lambda p, k, r: "1:1"), "an Attempt of two texts"),
    "numbers for texts": (dict(attempt=lambda p, k, r: Attempt(1, "")), "an Attempt of two texts"),
    "one problem for ever": (dict(sample=lambda r, s: Problem("1+1", "2")), "different problems"),
    "an empty prompt": (dict(sample=lambda r, s: Problem("", "2")), "prompt is not empty"),
    "a tuple for a problem": (dict(sample=lambda r, s: ("1+1", "2")), "a Problem of two texts"),
    "an answer that is a number": (dict(sample=lambda r, s: Problem("1+1", 2)), "a Problem of two texts"),
    "parse gives another": (dict(parse=lambda t: Problem("1+1", "2")), "the problem with this prompt"),
    "honest gives a text": (dict(honest=lambda p, t: t), "an Attempt or None"),
    "honest raises": (dict(honest=raises), r"honest\(Problem.*\) raises KeyError"),
    "no honest": (dict(honest=None), "has no function honest"),
    "sample is no function": (dict(sample=3), "has no function sample"),
    "a character without token": (dict(attempt=lambda p, k, r: Attempt("é", "")), "no token for 'é'"),
}  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
def test_a_task_with_a_mistake_is_named_in_one_line(fault):
    changes, message = FAULTS[fault]
    with pytest.raises(ValueError, match=message) as error:
        check_task(broken(**changes), 3, build_tokenizer(1), 8)
    assert str(error.value).startswith("task mine") and "\n" not in str(error.value)


def test_the_projects_own_tasks_keep_their_contract():
    for name, size, room in (
        ("calculator", 3, 6),
        ("division", 3, 12),
        ("countdown", 12, 24),
        ("addition", 3, 9),
    ):
        check_task(load_task(name), size, build_tokenizer(1), room)
    with pytest.raises(ValueError, match="raise --max_new=5"):
        check_task(calculator, 3, build_tokenizer(1), 5)  # "1:171" and the end of turn


def test_a_checker_that_breaks_during_training_is_unjudged_and_never_right():
    answers = iter([True, False, "yes", 1, None])

    def is_correct(problem, text):
        if text == "boom":
            raise ZeroDivisionError
        return next(answers)

    task = broken(is_correct=is_correct)
    pairs = [(Problem("1+1", "2"), text) for text in ("a", "b", "c", "d", "boom", "e")]
    assert verdicts(task, pairs) == ["right", "wrong", *["unjudged"] * 4]


@pytest.mark.parametrize(
    "rewards",
    [
        torch.zeros(4, 1), torch.zeros(4), torch.zeros(2, 4), [[0.0, 0.0]] * 4, None,
        torch.zeros(4, 2, dtype=torch.long), torch.full((4, 2), torch.nan), torch.full((4, 2), torch.inf),
    ],
)  # fmt: skip
def test_a_reward_that_cannot_be_right_is_named(rewards):
    with pytest.raises(ValueError, match="mend the reward function") as error:
        check_rewards(rewards, torch.zeros(4, 2, dtype=torch.bool))
    assert "\n" not in str(error.value) and "learning rate" not in str(error.value)
    check_rewards(torch.zeros(4, 2), torch.zeros(4, 2, dtype=torch.bool))


def test_a_module_that_cannot_be_loaded_is_named(monkeypatch, tmp_path):
    import data

    (tmp_path / "torn.py").write_text("def sample(:\n", encoding="utf-8")
    (tmp_path / "wide.py").write_text("DIGITS_PER_TOKEN = 9\n", encoding="utf-8")
    monkeypatch.setattr(data, "__path__", [*data.__path__, str(tmp_path)])
    with pytest.raises(ValueError, match=r"data/torn.py can't be loaded: SyntaxError"):
        load_task("torn")
    with pytest.raises(ValueError, match="DIGITS_PER_TOKEN=9"):
        load_task("wide")


def test_a_dialogue_on_the_longest_prompt_of_both_files_must_fit():
    problems = {"train": [Problem("1", "1"), Problem("1" * 30, "1")], "test": [Problem("1" * 20, "1")]}
    task = types.SimpleNamespace(read=lambda path, split: problems[split], CORRECTION_REQUEST="check")
    env = Environment(task, build_tokenizer(1))
    c = types.SimpleNamespace(train_data="a", test_data="b", turns=3, max_new=7)
    fits = len(env.prompts(problems["train"])[1]) + 3 * 7 + 2 * (len(env.correction_request) + 1)
    check_lengths(c, env, fits)
    with pytest.raises(ValueError, match=f"dialogue up to {fits}, and the model reads max_len={fits - 1}"):
        check_lengths(c, env, fits - 1)
