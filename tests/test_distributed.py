"""Several processes, with gloo on the CPU: two ranks against one process, and torchrun as users start it."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from unittest.mock import patch

import engine.sampling
import pytest
import torch
import torch.distributed as dist
from engine.sampling import training_rollouts
from run_files import metrics
from scripts import ROOT, finish, start
from torch.utils._python_dispatch import TorchDispatchMode

import engine.optim
import engine.run
import train
from data.tokenizer import build_tokenizer
from engine.build import make_environment
from engine.checkpoints import checkpoint_of, load, save
from engine.processes import gather, my_rows, rank, ranks
from engine.settings import parse_args
from engine.sharding import shard
from model import GPT, GPTConfig
from rollout import Rollout
from train import Config

pytestmark = pytest.mark.slow

ROWS = 9  # two ranks have 4 and 5 of them
BASE = Config(
    size=2, n_layer=1, dim=32, base_steps=4, base_batch=13, own_from=1.0, stage1_steps=1, stage2_steps=2,
    batch=ROWS, micro_batch=2, base_lr=0.005, lr=0.005, stage2_lr=0.005, optimizer="adamw", save_every=1,
    device="cpu", report=False,
)  # fmt: skip
# bfloat16 rounds a weight's gradient once a micro-batch. So each micro-batch there is one row: then one
# process and two ranks have the same micro-batches.
CASES = {
    "plain": {},
    # The rollouts of the second problem are on both ranks.
    "rloo, muon": dict(baseline="rloo", samples_per_problem=3, optimizer="muon"),
    "masters": dict(dtype="bfloat16", micro_batch=1),
    "lora, offline": dict(init="tied.pt", lora=2, dtype="bfloat16", micro_batch=1, offline_share=0.5),
    "tied": dict(init="tied.pt", recompute=True),
    "three, lora": dict(init="tied.pt", lora=2, turns=3),
    "imitate": dict(init="untied.pt", imitate="traces.jsonl", imitate_steps=2, stage1_steps=0),
    "shard plain": dict(shard=True),
    "shard masters": dict(dtype="bfloat16", micro_batch=1, shard=True),
    "shard tied": dict(init="tied.pt", recompute=True, shard=True),
}
RESUMED = ["masters", "lora, offline", "three, lora", "shard plain", "shard masters"]


def rows_of(rollout: Rollout, part: range) -> Rollout:
    fields = vars(rollout).items()
    return Rollout(**{name: value[part.start : part.stop] for name, value in fields})


def run(c: Config, sampled: dict[int, Rollout], state: dict | None = None) -> dict:
    """What train.py's own loop makes of given rollouts, from the gradients to the checkpoints.

    An attempt counts as right if its text is of even length. A copy of last.pt from the middle of Stage II is
    kept. AdamW divides by a gradient's size, so the last bit of a tiny gradient makes a step as large as any
    other. Here we add 1e-4 to that size.
    """
    folder = Path(c.out) / c.name
    folder.mkdir(exist_ok=True)
    seen = {"gradients": [], "advantages": [], "prompts": []}
    mine = my_rows(c.batch)
    offline = round(c.offline_share * len(mine))
    real_rollouts, real_batch = train.training_rollouts, train.rollout_batch
    real_save, real_optimizers = engine.run.save, engine.optim.make_optimizers
    real_clip = torch.nn.utils.clip_grad_norm_

    def rollouts(c, env, policy, problems, *rest):
        seen["prompts"] += [p.prompt for p in problems]
        return real_rollouts(c, env, policy, problems, *rest)

    def online_part(model, env, prompts, requests, *rest):
        return rows_of(sampled[len(requests) + 1], mine[offline:])

    def offline_part(c, env, policy, problems, turns, *rest):
        return rows_of(sampled[turns], mine[:offline])

    def batch(*args):
        result = real_batch(*args)
        seen["advantages"].append(result[0]["advantages"])
        return result

    def even_length(task, problems, texts, ended):
        correct = torch.tensor([[len(text) % 2 == 0 for text in row] for row in texts])
        return correct, {"truncated": 1 - ended.float().mean().item()}

    def clip(parameters, bound):
        parameters = list(parameters)
        seen["gradients"].append([whole(p.grad).clone() for p in parameters])
        return real_clip(parameters, bound)

    def steady_optimizers(c, masters):
        optimizers = real_optimizers(c, masters)
        for optimizer in optimizers:
            if isinstance(optimizer, torch.optim.AdamW):
                optimizer.param_groups[0]["eps"] = 1e-4
        return optimizers

    def save_and_copy(path, content):
        real_save(path, content)
        middle = len(train.stages(c)) - 1, 1
        if rank() == 0 and "step" in content and (content["stage"], content["step"]) == middle:
            shutil.copy(path, folder / "mid.pt")

    with (
        patch.object(train, "training_rollouts", rollouts),
        patch.object(engine.sampling, "sample_many", online_part),
        patch.object(engine.sampling, "offline_rollouts", offline_part),
        patch.object(train, "rollout_batch", batch),
        patch.object(train, "correctness", even_length),
        patch.object(torch.nn.utils, "clip_grad_norm_", clip),
        patch.object(engine.optim, "make_optimizers", steady_optimizers),
        patch.object(engine.run, "save", save_and_copy),
    ):
        train.train(c, state or {})
    gather(None)
    seen["metrics"] = metrics(folder)
    return seen | {path.name: load(path) for path in sorted(folder.glob("*.pt"))}


def whole(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor


def run_all(folder: Path, sampled: dict[int, Rollout]) -> dict:
    """All cases in this process or, if there are ranks, in each of them. The code is the same."""
    results = {}
    for name, changes in CASES.items():
        if "shard" in name and ranks() == 1:
            continue
        files = {key: str(folder.parent / changes[key]) for key in ("init", "imitate") if key in changes}
        c = replace(BASE, out=str(folder), name=name, **(changes | files))
        results[name] = run(c, sampled)
    return results


def resume_all(folder: Path, other: Path, sampled: dict[int, Rollout]) -> dict:
    """Runs go on from the middle of Stage II of `other`, which another number of processes has trained."""
    results = {}
    for name in RESUMED:
        source = other / (name if (other / name).exists() else name.removeprefix("shard "))
        state = load(source / "mid.pt")
        c = Config(**state["config"])
        c = replace(c, out=str(folder), name=f"{name} resumed", shard="shard" in name)
        if rank() == 0:
            (folder / c.name).mkdir()
            for path in [source / "base.pt", *source.glob("stage1*.pt")]:
                shutil.copy(path, folder / c.name)
            shutil.copy(source / "mid.pt", folder / c.name / "last.pt")
        gather(None)
        results[name] = run(c, sampled, state)
    return results


class Gathers(TorchDispatchMode):
    """Counts how often tensors are gathered from all ranks."""

    count = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.count += "all_gather" in str(function)
        return function(*args, **(kwargs or {}))


def sample(c: Config, seed: int, model: GPT, turns: int = 2) -> Rollout:
    """Nine dialogues that this rank really samples from a model."""
    env = make_environment(c)
    return training_rollouts(c, env, model, [env.problem(i) for i in range(ROWS)], turns, (0, seed), model)


def base_model(**changes) -> GPT:
    torch.manual_seed(3)
    sizes = dict(n_layer=1, n_head=4, n_kv_head=4, dim=32, head_dim=8, ffn_dim=96)
    model = GPT(GPTConfig(build_tokenizer(1).vocab_size, **sizes, **changes))
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return model


def samplings(c: Config) -> dict:
    """What this rank samples from a model, whole and sharded.

    `counts` says how often weights are gathered for short attempts and for long ones.
    """
    found, counts = {"whole": sample(c, 5, base_model()).texts}, []
    if ranks() > 1:
        model = base_model()
        shard(model, torch.device("cpu"), {})
        found["sharded"] = sample(c, 5, model).texts
        for length in (2, 20):
            with Gathers() as gathers:
                sample(replace(c, max_new=length), 5, model)
            counts.append(gathers.count)
        found["counts"] = counts
    return found


def worker(number: int, folder: Path) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=number, world_size=2)
    sampled = {turns: Rollout(**torch.load(folder / f"rollout{turns}.pt")) for turns in (2, 3)}
    results = run_all(folder / "two", sampled)
    found = {
        "runs": results,
        "resumed": resume_all(folder / "two", folder / "one", sampled),
        "samples": samplings(BASE),
        "parts": [gather(list(my_rows(n))) for n in (2, 7, 256)],
    }
    torch.save(found, folder / f"rank{number}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """What one process and two ranks make of the same rollouts: one, (rank 0, rank 1), resumed on one."""
    folder = tmp_path_factory.mktemp("distributed")
    (folder / "one").mkdir()
    (folder / "two").mkdir()
    for name, tied in (("untied.pt", False), ("tied.pt", True)):
        model = base_model(tie_weights=tied)
        save(folder / name, checkpoint_of(BASE, model, {}))
    problem_at = make_environment(BASE).problem
    rows = [{"prompt": problem_at(i).prompt, "attempts": ["12*6=72", "7" * (i + 1)]} for i in range(ROWS)]
    lines = [json.dumps(row) + "\n" for row in rows]
    (folder / "traces.jsonl").write_text("".join(lines), encoding="utf-8")
    sampled = {turns: sample(BASE, 1, base_model(), turns) for turns in (2, 3)}
    assert len(set(sampled[2].lengths.tolist())) > 2  # micro-batches of unlike widths
    for turns, rollout in sampled.items():
        torch.save(vars(rollout), folder / f"rollout{turns}.pt")
    one = {"runs": run_all(folder / "one", sampled), "samples": samplings(BASE)}
    torch.multiprocessing.start_processes(worker, (folder,), nprocs=2, start_method="forkserver")
    resumed = resume_all(folder / "one", folder / "two", sampled)
    return one, [torch.load(folder / f"rank{number}.pt") for number in (0, 1)], resumed


def distance(a, b) -> float:
    """The largest difference of two lists or dicts of tensors, 0 if they are empty."""
    a, b = (list(x.values()) if isinstance(x, dict) else x for x in (a, b))
    return max([(x.float() - y.float()).abs().max().item() for x, y in zip(a, b, strict=True)], default=0.0)


@pytest.mark.parametrize("case", CASES)
def test_two_ranks_learn_what_one_process_learns(found, case):
    """The same rollouts, shared unevenly: equal gradients, metrics, and weights after each stage.

    Muon rounds to bfloat16 inside, and a sharded run adds bfloat16 gradients in another order. There a
    difference in the last bit grows.
    """
    one, both_ranks, _ = found
    alone = one["runs"][case.removeprefix("shard ")]
    exact = case not in ("rloo, muon", "shard masters")
    updates = {"three, lora": 4, "imitate": 4}.get(case, 3 if "init" in CASES[case] else 7)
    for both in (each["runs"][case] for each in both_ranks):
        assert len(both["gradients"]) == len(alone["gradients"]) == updates
        for step, (a, b) in enumerate(zip(both["gradients"], alone["gradients"], strict=True)):
            size = max(g.abs().max().item() for g in b)
            assert size > 0.01
            tolerance = 1e-6 if step == 0 else 1e-5 * size if exact else 1e-2 * size
            assert distance(a, b) < tolerance, (case, step)
        assert {"base.pt", "stage2.pt", "last.pt"} <= both.keys()
        for name in sorted(name for name in alone if name.endswith(".pt")):
            a, b = both[name]["model"], alone[name]["model"]
            assert a.keys() == b.keys()
            assert [w.dtype for w in a.values()] == [w.dtype for w in b.values()]
            assert distance(a, b) < (1e-6 if exact else 2e-3), (case, name)
        near = 1e-4 if exact else 1e-2
        for a, b in zip(both["metrics"], alone["metrics"], strict=True):
            assert a.keys() == b.keys() and a["stage"] == b["stage"]
            numbers = {name: value for name, value in b.items() if name != "stage"}
            assert {name: a[name] for name in numbers} == pytest.approx(numbers, rel=near, abs=near)
    if alone["base.pt"]["model"]:  # the tolerances are small against what was learned
        assert distance(alone["stage2.pt"]["model"], alone["base.pt"]["model"]) > 1e-3


@pytest.mark.parametrize("case", CASES)
def test_advantages_and_problems_are_those_of_the_joined_batch(found, case):
    one, both_ranks, _ = found
    alone = one["runs"][case.removeprefix("shard ")]
    first, second = (each["runs"][case] for each in both_ranks)
    for joined, a, b in zip(alone["advantages"], first["advantages"], second["advantages"], strict=True):
        assert len(a) == 4 and len(b) == 5 and joined.abs().max() > 0.1
        assert torch.equal(torch.cat((a, b)), joined)
    for a, b in zip(first["gradients"], second["gradients"], strict=True):
        assert distance(a, b) == 0  # to the bit, else the ranks' weights would part in time
    prompts = []
    for i in range(len(first["prompts"]) // 4):
        prompts += first["prompts"][4 * i : 4 * i + 4] + second["prompts"][5 * i : 5 * i + 5]
    assert prompts == alone["prompts"] and len(set(prompts)) > 9


@pytest.mark.parametrize("case", RESUMED)
def test_a_run_goes_on_with_another_number_of_ranks(found, case):
    """From one process to two ranks and back, in Stage II with its optimizer: as if never stopped."""
    one, both_ranks, to_one = found
    tolerance = 2e-3 if case == "shard masters" else 1e-6
    unbroken = one["runs"][case.removeprefix("shard ")]
    for resumed in (to_one[case], *(each["resumed"][case] for each in both_ranks)):
        assert len(resumed["gradients"]) == 1 and len(resumed["metrics"]) == 1
        for name in ("stage2.pt", "last.pt"):
            assert distance(resumed[name]["model"], unbroken[name]["model"]) < tolerance
    assert distance(unbroken["last.pt"]["model"], unbroken["mid.pt"]["model"]) > 1e-4


def test_ranks_sample_with_seeds_of_their_own_and_gather_weights_once(found):
    one, (first, second), _ = found
    a, b = first["samples"], second["samples"]
    assert a["whole"] == a["sharded"] == one["samples"]["whole"]
    assert b["whole"] == b["sharded"]
    assert not any(x == y for x, y in zip(a["whole"], b["whole"], strict=True))
    weights = len(list(base_model().parameters()))
    assert a["counts"] == b["counts"] == [weights, weights]


def test_shares_are_contiguous_and_leave_nothing_out(found):
    _, both_ranks, _ = found
    halves = [list(range(128)), list(range(128, 256))]
    for each in both_ranks:
        assert each["parts"] == [[[0], [1]], [[0, 1, 2], [3, 4, 5, 6]], halves]
    assert [*my_rows(7)] == [0, 1, 2, 3, 4, 5, 6] and gather("x") == ["x"]


@pytest.mark.parametrize(
    "words, mend",
    [
        (["--shard=true"], "shard needs optimizer=adamw"),
        (["--shard=true", "--optimizer=adamw", "--init=base.pt", "--lora=4"], "lora=0"),
        (["--shard=true", "--optimizer=adamw", "--offline_share=0.5"], "offline_share=0"),
    ],
)
def test_what_cannot_be_sharded_is_refused(words, mend, capsys):
    with pytest.raises(ValueError, match=mend) as error:
        parse_args(words, Config, "")
    assert "\n" not in str(error.value)


def test_more_processes_than_rows_or_gpus_are_refused(monkeypatch, tmp_path):
    monkeypatch.setattr(engine.run, "ranks", lambda: 8)
    cpu = torch.device("cpu")
    engine.run.check_ranks(replace(BASE, batch=8, base_batch=40), cpu)
    for c, device, mend in [
        (replace(BASE, batch=7, base_batch=40), cpu, "7 rows"),
        (replace(BASE, batch=7, base_batch=5, init="base.pt"), cpu, "7 rows"),
        (replace(BASE, batch=40, base_batch=39, task="words", init=str(tmp_path)), cpu, "7 rows"),
        (replace(BASE, batch=8, base_batch=39), cpu, "7 rows"),
        (replace(BASE, batch=8, init="base.pt"), torch.device("mps"), "CUDA or --device=cpu"),
        (replace(BASE, batch=8, init="base.pt"), torch.device("cuda"), "GPUs here"),
    ]:
        monkeypatch.setenv("LOCAL_RANK", "99")
        with pytest.raises(ValueError, match=mend):
            engine.run.check_ranks(c, device)


# ---------------------------------------------------------------------------------- torchrun


def torchrun(*args) -> subprocess.Popen:
    """train.py in two processes that torchrun starts."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    command += [ROOT / "train.py", *map(str, args)]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def wait_for_rows(is_alive, folder: Path, n: int) -> None:
    log, deadline = folder / "metrics.jsonl", time.time() + 240
    while not (log.exists() and len(log.read_text(encoding="utf-8").splitlines()) >= n):
        assert is_alive() and time.time() < deadline
        time.sleep(0.01)


def test_torchrun_survives_a_kill_and_goes_on_with_one_and_with_two(tmp_path):
    """Two ranks, of which one is killed in Stage I; one process goes on and is killed; two finish, and the
    report is made.
    """
    folder = tmp_path / "run"
    words = [
        "--size=2", "--n_layer=1", "--dim=32", "--base_steps=6", "--base_batch=10", "--stage1_steps=12",
        "--stage2_steps=12", "--batch=17", "--micro_batch=5", "--save_every=2", "--log_every=2",
        "--device=cpu", "--max_new=16", "--eval_n=8", f"--out={tmp_path}", "--name=run",
    ]  # fmt: skip
    process = torchrun(*words)
    wait_for_rows(lambda: process.poll() is None, folder, 9)
    found = subprocess.run(["pgrep", "-P", str(process.pid)], capture_output=True, text=True)
    workers = found.stdout.split()
    assert len(workers) == 2
    killed = time.time()
    os.kill(int(workers[-1]), signal.SIGKILL)
    out, errors = process.communicate(timeout=240)
    assert process.returncode != 0 and time.time() - killed < 240
    assert "rank 0 stops" in errors and "--resume" in errors, errors
    assert out.count("base    2/6") == 1 and out.count("size = 2") == 1  # one rank prints

    alone = start("train.py", f"--resume={folder}")
    wait_for_rows(alone.is_alive, folder, 20)
    alone.kill()
    finish(alone)

    process = torchrun(f"--resume={folder}")
    out, errors = process.communicate(timeout=240)
    assert process.returncode == 0, errors
    wanted = {"config.json", "metrics.jsonl", "base.pt", "stage1.pt", "stage2.pt", "last.pt"}
    reported = {"results.json", "report.md", "report.html"}
    there = {path.name for path in folder.iterdir() if path.suffix != ".tmp"}
    assert there == wanted | reported, errors
    assert [row["step"] for row in metrics(folder)] == [*range(1, 7), *range(1, 13), *range(1, 13)]
    assert out.count("stage2   12/12") == 1
