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

import pytest
import torch
import torch.distributed as dist
from pretrained import even_length
from run_files import metrics
from scripts import ROOT, finish, start
from torch.utils._python_dispatch import TorchDispatchMode

import engine.run
import engine.supervised
import train
from data import Problem
from data.tokenizer import build_tokenizer
from engine.build import make_environment
from engine.checkpoints import checkpoint_of, load, save
from engine.processes import gather, my_rows, rank, ranks
from engine.run import Run
from engine.sharding import shard
from model import GPT, GPTConfig
from rollout import Rollout, sample_dialogues
from train import Config

pytestmark = pytest.mark.slow

BASE = Config(
    task="division", size=2, n_layer=1, dim=32, init="untied.pt", stage1_steps=1, stage2_steps=2, batch=12,
    samples_per_problem=3, micro_batch=2, lr=0.005, stage2_lr=0.005, save_every=1,
    max_new=24, device="cpu", report=False,
)  # fmt: skip
# bfloat16 rounds a weight's gradient once a micro-batch. So each micro-batch there is one row: then one
# process and two ranks have the same micro-batches.
CASES = {
    "plain": {},
    "masters": dict(dtype="bfloat16", micro_batch=1),
    "lora": dict(init="tied.pt", lora=2, dtype="bfloat16", micro_batch=1),
    "offline": dict(offline_first=True),
    "three, tied": dict(init="tied.pt", recompute=True, turns=3),
    "imitate": dict(imitate="traces.jsonl", imitate_steps=2, stage1_steps=0),
    "shard plain": dict(shard=True),
    "shard masters": dict(dtype="bfloat16", micro_batch=1, shard=True),
    "shard three, tied": dict(init="tied.pt", recompute=True, turns=3, shard=True),
}
# Means over a rank's own tokens: not what one process would have.
OWN = {"own rows": dict(init="", base_steps=3, base_batch=13, own_from=1.0)}
RESUMED = ["masters", "lora", "shard plain", "shard masters"]


def run(c: Config, sampled: dict[int, Rollout], state: dict | None = None) -> dict:
    """What train.py's own loop makes of given rollouts, from the gradients to the checkpoints.

    An attempt counts as right if its text is of even length. A copy of last.pt from the middle of Stage II is
    kept. AdamW divides by a gradient's size, so the last bit of a tiny gradient makes a step as large as any
    other. Here we add 1e-4 to that size.
    """
    folder = Path(c.out) / c.name
    folder.mkdir(exist_ok=True)
    seen = {"own": [], "gradients": [], "advantages": [], "prompts": [], "told": []}
    real_batch, real_average, real_log = train.rollout_batch, train.average_gradients, Run.log_and_save
    real_save, real_optimizer = engine.run.save, engine.run.make_optimizer

    def given(model, tokenizer, prompts, requests, *rest):
        seen["prompts"].append(prompts)
        rows = slice(my_rows(c.batch).start, my_rows(c.batch).stop)
        return Rollout(**{name: value[rows] for name, value in vars(sampled[len(requests) + 1]).items()})

    def given_offline(first, *args):
        rollout = given(*args)
        rollout.masks = rollout.masks.clone()
        rollout.masks[:, 0] = False
        return rollout

    def batch(*args):
        result = real_batch(*args)
        seen["advantages"].append(result[0]["advantages"])
        return result

    def average(weights):
        seen["own"].append([whole(p.grad).clone() for p in weights])
        real_average(weights)
        seen["gradients"].append([whole(p.grad).clone() for p in weights])

    def log(run, index, stage, step, metrics, example):
        seen["told"].append(dict(metrics))
        real_log(run, index, stage, step, metrics, example)

    def steady_optimizer(*args):
        optimizer = real_optimizer(*args)
        optimizer.param_groups[0]["eps"] = 1e-4
        return optimizer

    def save_and_copy(path, content):
        real_save(path, content)
        middle = len(train.stages(c)) - 1, 1
        if rank() == 0 and "step" in content and (content["stage"], content["step"]) == middle:
            shutil.copy(path, folder / "mid.pt")

    with (
        patch.object(train, "sample_dialogues", given),
        patch.object(train, "offline_dialogues", given_offline),
        patch.object(train, "rollout_batch", batch),
        patch.object(train, "correctness", even_length),
        patch.object(train, "average_gradients", average),
        patch.object(engine.supervised, "average_gradients", average),
        patch.object(engine.run, "make_optimizer", steady_optimizer),
        patch.object(engine.run, "save", save_and_copy),
        patch.object(Run, "log_and_save", log),
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
    for name, changes in (CASES | (OWN if ranks() > 1 else {})).items():
        if "shard" in name and ranks() == 1:
            continue
        c = replace(BASE, out=str(folder), name=name, **changes)
        files = {key: getattr(c, key) for key in ("init", "imitate") if getattr(c, key)}
        c = replace(c, **{key: str(folder.parent / file) for key, file in files.items()})
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


def base_model(**changes) -> GPT:
    torch.manual_seed(3)
    sizes = dict(n_layer=1, n_head=4, n_kv_head=4, dim=32, head_dim=8, ffn_dim=96)
    model = GPT(GPTConfig(build_tokenizer(1).vocab_size, **sizes, **changes))
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return model


def samplings() -> dict:
    """What this rank really samples from a model, whole and sharded, on a problem that is always the same.

    `counts` says how often weights are gathered for short attempts and for long ones.
    """
    env, stage, counts = make_environment(BASE), train.stages(BASE)[0], []
    env.problem = lambda number: Problem("84/6", "14")

    def sample(model, **changes):
        ids = train.rollout_batch(replace(BASE, **changes), stage, 5, env, model, model)[0]["ids"]
        return [row.tolist() for row in ids]

    found, model = {"whole": sample(base_model())}, base_model()
    shard(model, torch.device("cpu"), {})
    found["sharded"] = sample(model, shard=True)
    for length in (2, 20):
        with Gathers() as gathers:
            sample(model, shard=True, max_new=length)
        counts.append(gathers.count)
    return found | {"counts": counts}


def worker(number: int, folder: Path) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=number, world_size=2)
    sampled = {turns: Rollout(**torch.load(folder / f"rollout{turns}.pt")) for turns in (2, 3)}
    found = {
        "runs": run_all(folder / "two", sampled),
        "resumed": resume_all(folder / "two", folder / "one", sampled),
        "samples": samplings(),
        "parts": [gather(list(my_rows(n))) for n in (2, 7, 256)],
    }
    torch.save(found, folder / f"rank{number}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """What one process and two ranks make of the same rollouts: one, (rank 0, rank 1), resumed on one."""
    folder = tmp_path_factory.mktemp("distributed")
    for name in ("one", "two"):
        (folder / name).mkdir()
    for name, tied in (("untied.pt", False), ("tied.pt", True)):
        save(folder / name, checkpoint_of(replace(BASE, init=""), base_model(tie_weights=tied), {}))
    env = make_environment(BASE)
    problems = [env.problem(i) for i in range(12)]
    # Of one length: then both ranks teach as many tokens.
    rows = [{"prompt": p.prompt, "attempts": ["12*6=72", f"{i:04d}"]} for i, p in enumerate(problems)]
    lines = [json.dumps(row) + "\n" for row in rows]
    (folder / "traces.jsonl").write_text("".join(lines), encoding="utf-8")
    sampled = {}
    for turns in (2, 3):
        dialogue = env.prompts(problems), [env.correction_request] * (turns - 1), BASE.max_new, 1.0
        noise = torch.Generator().manual_seed(1)
        sampled[turns] = sample_dialogues(base_model(), env.tokenizer, *dialogue, noise)
        torch.save(vars(sampled[turns]), folder / f"rollout{turns}.pt")
    assert len(set(sampled[2].lengths.tolist())) > 2  # micro-batches of unlike widths
    one = run_all(folder / "one", sampled)
    torch.multiprocessing.start_processes(worker, (folder,), nprocs=2, start_method="forkserver")
    resumed = resume_all(folder / "one", folder / "two", sampled)
    return one, [torch.load(folder / f"rank{number}.pt") for number in (0, 1)], resumed


def distance(a, b) -> float:
    """The largest difference of two lists or dicts of tensors, 0 if they are empty."""
    a, b = (list(x.values()) if isinstance(x, dict) else x for x in (a, b))
    return max([(x.float() - y.float()).abs().max().item() for x, y in zip(a, b, strict=True)], default=0.0)


@pytest.mark.parametrize("case", CASES)
def test_two_ranks_learn_what_one_process_learns(found, case):
    """The same rollouts in equal shares: with baselines of the same problem the gradients, the metrics, and
    the weights after each stage are those of one process.

    A sharded run adds bfloat16 gradients in another order. There a difference in the last bit grows.
    """
    alone, both_ranks = found[0][case.removeprefix("shard ")], [each["runs"][case] for each in found[1]]
    exact = case != "shard masters"
    for both in both_ranks:
        assert (
            len(both["gradients"]) == len(alone["gradients"]) == 3 + ("three" in case) + (case == "imitate")
        )
        for step, (a, b) in enumerate(zip(both["gradients"], alone["gradients"], strict=True)):
            size = max(g.abs().max().item() for g in b)
            assert size > 0.01
            tolerance = 1e-6 if step == 0 else 1e-5 * size if exact else 1e-2 * size
            assert distance(a, b) < tolerance, step
        assert {"base.pt", "stage2.pt", "last.pt"} <= both.keys()
        for name in sorted(name for name in alone if name.endswith(".pt")):
            a, b = both[name]["model"], alone[name]["model"]
            assert a.keys() == b.keys()
            assert [w.dtype for w in a.values()] == [w.dtype for w in b.values()]
            assert distance(a, b) < (1e-6 if exact else 2e-3), name
        near = 1e-4 if exact else 1e-2
        for a, b in zip(both["metrics"], alone["metrics"], strict=True):
            assert a.pop("stage") == b["stage"]
            assert a == pytest.approx({k: v for k, v in b.items() if k != "stage"}, rel=near, abs=near)
    if alone["base.pt"]["model"]:  # the tolerances are small against what was learned
        assert distance(alone["stage2.pt"]["model"], alone["base.pt"]["model"]) > 1e-3
    first, second = both_ranks
    joined = [torch.cat(parts) for parts in zip(first["advantages"], second["advantages"], strict=True)]
    assert joined and distance(joined, alone["advantages"]) < 1e-6 < alone["advantages"][0].abs().max()
    prompts = [a + b for a, b in zip(first["prompts"], second["prompts"], strict=True)]
    assert prompts == alone["prompts"] and len({tuple(p) for p in sum(prompts, [])}) >= 4 * len(prompts) - 2


@pytest.mark.parametrize("case", ["plain", "masters", "offline", "imitate", "own rows"])
def test_gradients_and_metrics_are_the_means_of_both_ranks(found, case):
    """To the same bits on both, else their weights would part in time. Each rank has a share of its own."""
    first, second = (each["runs"][case] for each in found[1])
    for a, b, mean, same in zip(*(r[k] for k in ("own", "gradients") for r in (first, second)), strict=True):
        assert distance(mean, same) == 0 and distance(a, b) > 1e-3
        assert distance([(x + y) / 2 for x, y in zip(a, b, strict=True)], mean) < 1e-6
    assert distance(first["last.pt"]["model"], second["last.pt"]["model"]) == 0
    for row, a, b in zip(first["metrics"], first["told"], second["told"], strict=True):
        assert {name: row[name] for name in a} == pytest.approx({k: (a[k] + b[k]) / 2 for k in a})
        assert a["loss"] != b["loss"] and a["grad_norm"] == b["grad_norm"]


@pytest.mark.parametrize("case", RESUMED)
def test_a_run_goes_on_with_another_number_of_ranks(found, case):
    """From one process to two ranks and back, in Stage II with its optimizer: as if never stopped."""
    one, both_ranks, to_one = found
    tolerance = 2e-3 if case == "shard masters" else 1e-6
    unbroken = one[case.removeprefix("shard ")]
    for resumed in (to_one[case], *(each["resumed"][case] for each in both_ranks)):
        assert len(resumed["gradients"]) == 1 and len(resumed["metrics"]) == 1
        for name in ("stage2.pt", "last.pt"):
            assert distance(resumed[name]["model"], unbroken[name]["model"]) < tolerance
    assert distance(unbroken["last.pt"]["model"], unbroken["mid.pt"]["model"]) > 1e-4


def test_ranks_sample_with_seeds_of_their_own_and_gather_weights_once(found):
    a, b = (each["samples"] for each in found[1])
    assert a["whole"] == a["sharded"] and b["whole"] == b["sharded"] and len(a["whole"]) == 6
    assert not any(x == y for x, y in zip(a["whole"], b["whole"], strict=True))
    weights = len(list(base_model().parameters()))
    assert a["counts"] == b["counts"] == [weights, weights]


def test_shares_are_contiguous_and_equal(found):
    halves = [list(range(128)), list(range(128, 256))]
    for each in found[1]:
        assert each["parts"] == [[[0], [1]], [[0, 1, 2], [3, 4, 5]], halves]
    assert [*my_rows(7)] == [0, 1, 2, 3, 4, 5, 6] and gather("x") == ["x"]


def test_what_processes_cannot_share_is_refused(monkeypatch):
    monkeypatch.setattr(engine.run, "ranks", lambda: 8)
    monkeypatch.setenv("LOCAL_RANK", "99")
    cpu, fine = torch.device("cpu"), replace(BASE, batch=48, samples_per_problem=3, init="", base_batch=40)
    engine.run.check_ranks(fine, cpu)
    engine.run.check_ranks(replace(fine, base_batch=1, init="base.pt"), cpu)
    for c, device, mend in [
        (replace(fine, batch=24 * 3 + 12), cpu, "28 problems, which 8 processes can't share equally"),
        (replace(fine, batch=24, samples_per_problem=6), cpu, "4 problems"),
        (replace(fine, base_batch=39), cpu, "7 dialogues"),
        (fine, torch.device("mps"), "CUDA or --device=cpu"),
        (fine, torch.device("cuda"), "GPUs here"),
    ]:
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
        "--task=division", "--size=2", "--n_layer=1", "--dim=32", "--base_steps=6", "--base_batch=10",
        "--stage1_steps=12", "--stage2_steps=12", "--batch=16", "--samples_per_problem=2", "--micro_batch=5",
        "--save_every=2", "--log_every=2", "--device=cpu", "--max_new=16", "--eval_n=8", f"--out={tmp_path}",
        "--name=run",
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
    assert out.count("base    2/6") == 1 and out.count("division, size 2") == 1  # one rank prints

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
