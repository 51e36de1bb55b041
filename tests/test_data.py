"""Problems, demonstrations and the tokenizer."""

import re
from pathlib import Path
from random import Random
from types import SimpleNamespace

import pytest

from data import (
    Environment,
    Problem,
    demo_problems,
    held_out_problems,
    is_held_out,
    load_task,
    train_problems,
)
from data.demonstrations import demonstration, imitation
from data.tokenizer import build_tokenizer

TASKS = [("division", 4), ("countdown", 12), ("addition", 4), ("words", 3)]
TASKS += [("calculator", 4)]


def prompts_of(problem, n: int) -> set[str]:
    return {problem(i).prompt for i in range(n)}


@pytest.mark.parametrize("name, size", TASKS)
def test_training_and_held_out_problems_are_disjoint(name, size):
    """By their numbers alone: another name in the same sum would not make it a new problem. Problem i depends
    on the seed and on i, not on what was drawn before.
    """
    task = load_task(name)
    held_out = held_out_problems(task, size, seed=5, n=200)
    assert len({p.prompt for p in held_out}) == 200 and all(is_held_out(p.prompt, 5) for p in held_out)
    assert held_out == held_out_problems(task, size, 5, 200)
    of_rl, of_base = (make(task, size, 5) for make in (train_problems, demo_problems))
    numbers = {re.sub(r"[A-Z][a-z]+ has (\d+) [a-z]+", r"\1", p.prompt) for p in held_out}
    for problem in (of_rl, of_base):
        trained = {re.sub(r"[A-Z][a-z]+ has (\d+) [a-z]+", r"\1", p) for p in prompts_of(problem, 2000)}
        assert not numbers & trained
    last_first = [train_problems(task, size, 5)(i) for i in reversed(range(200))]
    assert last_first[::-1] == [of_rl(i) for i in range(200)]
    for other in (train_problems(task, size, 6), of_base):
        assert sum(other(i) == of_rl(i) for i in range(200)) < 20


FILE = SimpleNamespace(read=lambda path, split: [Problem(f"{path} {i}", "") for i in range(40)])


@pytest.mark.parametrize("task, n", [(load_task("division"), 40), (FILE, 0), (FILE, 30)])
def test_rl_on_n_problems_sees_all_of_them_in_each_epoch_in_an_order_of_its_own(task, n):
    """Whoever goes on in the middle of an epoch sees what an unbroken run would have seen."""
    size, files = n or 40, dict(train_data="train", test_data="test") if task is FILE else {}
    problem = train_problems(task, 2, 5, n, **files)
    epochs = [[problem(size * epoch + i).prompt for i in range(size)] for epoch in range(3)]
    assert all(len(set(epoch)) == size and set(epoch) == set(epochs[0]) for epoch in epochs)
    assert len(set(map(tuple, epochs))) == 3
    again, other = (train_problems(task, 2, seed, n, **files) for seed in (5, 6))
    assert [again(i).prompt for i in range(size + 7, 2 * size)] == epochs[1][7:]
    assert [other(i).prompt for i in range(size)] != epochs[0]


def test_problems_of_the_test_file_are_not_trained_on():
    """Whatever the blanks in them."""

    def read(path, split):
        prompts = ["a b", "c", "d"] if path == "train" else ["a  b ", "d"]
        return [Problem(prompt, "") for prompt in prompts]

    problem = train_problems(SimpleNamespace(read=read), 0, 0, 0, "train", "test")
    assert prompts_of(problem, 10) == {"c"}
    with pytest.raises(ValueError, match="only 1 problems to train on: lower --train_n=2"):
        train_problems(SimpleNamespace(read=read), 0, 0, 2, "train", "test")
    with pytest.raises(ValueError, match="nothing to train on"):
        train_problems(SimpleNamespace(read=read), 0, 0, 0, "test", "test")


def test_the_base_does_not_see_the_n_problems_of_rl():
    """It has all others that are not held out, and a ValueError where none is left."""
    task = load_task("division")
    all_there_are = prompts_of(demo_problems(task, 1, 5), 3000)  # 72 of size 1, less the held-out ones
    of_rl = prompts_of(train_problems(task, 1, 5, 20), 20)
    of_base = prompts_of(demo_problems(task, 1, 5, 20), 3000)
    assert len(of_rl) == 20 and not of_rl & of_base and of_rl | of_base == all_there_are
    with pytest.raises(
        ValueError, match="no problem that is free for training: raise --size or lower --train_n"
    ):
        demo_problems(task, 1, 5, len(all_there_are))(0)
    with pytest.raises(ValueError, match="lower --train_n"):
        train_problems(task, 1, 5, len(all_there_are) + 1)


@pytest.mark.parametrize("name, size", TASKS)
def test_demonstrations_are_what_they_claim(name, size):
    task, rng = load_task(name), Random(0)
    tokenizer = build_tokenizer(getattr(task, "DIGITS_PER_TOKEN", 1))
    for i in range(300):
        problem = train_problems(task, size, 0)(i)
        assert task.parse(problem.prompt).prompt == problem.prompt
        assert name != "addition" or {len(number) for number in problem.prompt.split("+")} == {size}
        for kind in ("right", "near", "far"):
            attempt = task.attempt(problem, kind, rng)
            assert task.is_correct(problem, attempt.text) == (kind == "right"), (problem, kind, attempt)
            assert tokenizer.decode(tokenizer.encode(attempt.text)) == attempt.text
            again = task.honest(problem, attempt.text)
            assert again == attempt, "the demonstrations' working must be the honest one"
            assert name != "addition" or len(attempt.text) == len(problem.answer)


def test_honest_working_corrects_the_working_and_not_the_answer():
    division, countdown = load_task("division"), load_task("countdown")
    problem = division.parse("8742/6")
    assert division.honest(problem, "1447*6=1").text == "1447*6=8682<"
    assert division.honest(problem, "1467*6=8742").text == "1467*6=8802>"
    assert division.attempt(problem, "right", Random(0)).text == "1457*6=8742="
    assert division.honest(problem, "gibberish") is None and division.honest(problem, "0*6") is None
    words = load_task("words")
    problem = words.parse("Tom has 7 pens, gets 6, loses all, gets 5.")
    assert words.honest(problem, "36: Whatever").text == "36: 13 0 5" and problem.answer == "5"
    assert words.honest(problem, "I think 5") is None and not words.is_correct(problem, "It is 5")
    problem = countdown.parse("3,7,5:26")
    assert countdown.honest(problem, "3*7=21,21-5=26").text == "3*7=21,21-5=16"
    assert countdown.honest(problem, "26") is None


@pytest.mark.parametrize("slip", [0.0, 0.5, 1.0])
def test_demonstration_masks(tokenizer, slip):
    """Prompts are never taught; a wrong first answer is context, but for the share `slip`, its working is
    taught; later turns are taught whole.
    """
    task, end = load_task("division"), tokenizer.end_id
    env, problem, seen = Environment(task, tokenizer), task.parse("8742/6"), {True: [], False: []}
    for seed in range(90):
        ids, taught = demonstration(env, problem, Random(seed), 2, 0.3, copy=0.4, right=0.3, slip=slip)
        assert len(ids) == len(taught)
        prompt, follow_up = tokenizer.user_turn("8742/6"), tokenizer.user_turn("check")
        assert ids[: len(prompt)] == prompt and not any(taught[: len(prompt)])
        turns, start = [], len(prompt)
        for _ in range(2):
            stop = ids.index(end, start) + 1
            turns.append((tokenizer.decode(ids[start : stop - 1]), taught[start:stop]))
            assert stop == len(ids) or ids[stop : stop + 3] == follow_up and not any(taught[stop : stop + 3])
            start = stop + 3
        text, mask = turns[0]
        untaught = 0 if all(mask) else text.index("*") + 1
        assert mask == [False] * untaught + [True] * (len(mask) - untaught)
        seen[task.is_correct(problem, text)].append(all(mask))
        assert all(all(mask) for _, mask in turns[1:])
    assert all(seen[True]) and len(seen[True]) > 15
    assert abs(sum(seen[False]) / len(seen[False]) - slip) < (0.2 if slip == 0.5 else 1e-9)


def test_half_of_the_long_demonstrations_give_honest_feedback(tokenizer):
    task, end = load_task("division"), tokenizer.end_id
    env, problem, verdicts, plain = Environment(task, tokenizer), task.parse("8742/6"), [], 0
    for seed in range(60):
        ids, taught = demonstration(env, problem, Random(seed), 5, right_first=0.5, copy=0.4, right=0.3)
        stops = [0, *(i + 1 for i, token in enumerate(ids) if token == end)]
        turns = [tokenizer.decode(ids[a : b - 1]) for a, b in zip(stops, stops[1:], strict=False)]
        if not any("judge" in text for text in turns):
            assert all(text.startswith("<|user|>check<|assistant|>") for text in turns[1:])
            assert len(turns) == 5
            plain += 1
            continue
        pairs = zip(turns[::2], turns[1::2], stops[1::2], stops[2::2], strict=False)
        for attempt, verdict, begin, stop in pairs:
            right = task.is_correct(problem, attempt.split("<|assistant|>")[1])
            assert verdict == f"<|user|>judge<|assistant|>{'right' if right else 'wrong'}"
            assert taught[begin:stop] == [False] * 3 + [True] * 2  # markup and request, verdict and end
            verdicts.append(right)
    assert 20 < plain < 40 and 20 < sum(verdicts) < len(verdicts) - 20


def test_of_an_imitated_dialogue_the_last_attempt_is_taught(tokenizer):
    request, attempts = tokenizer.user_turn("check", first=False), ["1447*6=8682<", "1457*6=8742="]
    ids, taught = imitation(tokenizer, "8742/6", attempts, request)
    said = "<|user|>8742/6<|assistant|>1447*6=8682<<|end|><|user|>check<|assistant|>1457*6=8742=<|end|>"
    assert tokenizer.decode(ids) == said and len(taught) == len(ids)
    assert tokenizer.decode([i for i, t in zip(ids, taught, strict=True) if t]) == "1457*6=8742=<|end|>"


@pytest.mark.parametrize("slip, times", [(0.0, 2), (1.0, 0)])
def test_own_attempts_take_the_place_of_made_up_ones(tokenizer, slip, times):
    """Its own answer with true working, then a copy. Slips stay made up."""
    env = Environment(load_task("division"), tokenizer)
    problem = env.task.parse("8742/6")
    ids, _ = demonstration(env, problem, Random(0), 2, 0.0, 1.0, 0.0, slip, own="1444*6=9")
    assert tokenizer.decode(ids).count("1444*6=8664") == times


def test_tokenizer(tokenizer):
    assert [tokenizer.decode([i]) for i in tokenizer.encode("12*check")] == ["1", "2", "*", "check"]
    two = build_tokenizer(2)
    assert [two.decode([i]) for i in two.encode("12+7=19")] == ["12", "+", "7", "=", "19"]
    assert tokenizer.end_id not in tokenizer.encode("<|end|>")  # a special token's name is plain text
    with pytest.raises(ValueError, match="no token for '→'"):
        tokenizer.encode("1→2")


@pytest.mark.parametrize(
    "name, prompt",
    [
        ("division", "8742/0"), ("division", "8743/6"), ("division", "8742"), ("division", "８/4"),
        ("division", "9" * 10**5 + "/3"), ("addition", "4+"),
        ("countdown", "3,7:26"), ("words", "Tom has 7 pens, gets 1, loses 9."),
        ("words", "Tom has 7 pens"),
    ],
)  # fmt: skip
def test_problems_that_are_none_are_refused(name, prompt):
    with pytest.raises(ValueError, match="looks like"):
        load_task(name).parse(prompt)


def test_unknown_task_and_too_few_problems_are_named():
    with pytest.raises(ValueError, match="choose one of addition, calculator, countdown, division, gsm8k"):
        load_task("chess")
    with pytest.raises(ValueError, match="not 500: lower"):
        held_out_problems(load_task("division"), 1, 0, 500)


def test_the_task_of_the_documents_works_as_it_stands(tmp_path, monkeypatch):
    """data/README.md shows a task in one file: that very text, dropped into data/, is loaded, demonstrated
    and checked.
    """
    import data

    text = (Path(__file__).parent.parent / "data" / "README.md").read_text(encoding="utf-8")
    source = re.search(r"```python\n(.*?)```", text, re.S)[1]
    assert "DIGITS_PER_TOKEN" in source and source.count("\n") <= 40
    (tmp_path / "reverse.py").write_text(source)
    monkeypatch.setattr(data, "__path__", [*data.__path__, str(tmp_path)])
    task, rng = load_task("reverse"), Random(0)
    for i in range(100):
        problem = train_problems(task, 5, 0)(i)
        assert task.parse(problem.prompt) == problem
        for kind in ("right", "near", "far"):
            assert task.is_correct(problem, task.attempt(problem, kind, rng).text) == (kind == "right")
        demonstration(Environment(task, build_tokenizer(1)), problem, rng, 2, 0.3, 0.3, 0.4, own="12345")


@pytest.mark.parametrize("size", [3, 5])
def test_a_near_miss_has_a_wrong_inner_digit(size):
    """As in a trained model's own mistakes: one or two digits, neither the first nor the last."""
    task, rng, wrong = load_task("division"), Random(0), set()
    for _ in range(300):
        problem = task.sample(rng, size)
        quotient = task.graded(task.attempt(problem, "near", rng).text)
        wrong.add(sum(a != b for a, b in zip(quotient, problem.answer, strict=True)))
        assert quotient[0] == problem.answer[0] and quotient[-1] == problem.answer[-1]
    assert wrong == ({1} if size == 3 else {1, 2})


def test_problems_in_words_have_the_working_that_they_say():
    """Half of them can be said at once: all is lost before the last change."""
    words, rng, levels = load_task("words"), Random(0), []
    for problem in (words.sample(rng, 3) for _ in range(1000)):
        (_, start), *changes = re.findall(r"(has|gets|loses) (\w+)", problem.prompt)
        counts = [int(start)]
        for verb, n in changes:
            counts.append(0 if n == "all" else counts[-1] + int(n) * (1 if verb == "gets" else -1))
        working = "".join(f" {count}" for count in counts[1:])
        assert min(counts) >= 0 and words.attempt(problem, "right", rng).text == f"{counts[-1]}:{working}"
        levels.append(words.level(problem))
        assert [n == "all" for _, n in changes] == [False, levels[-1] == 1, False] and levels[-1] in (1, 3)
        assert 0 < abs(int(words.attempt(problem, "near", rng).answer[:-1]) - counts[-1]) < 3
    assert 450 < levels.count(3) < 550
    with pytest.raises(ValueError, match="the most changes of words are 10"):
        words.sample(rng, 11)
