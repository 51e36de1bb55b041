"""Several processes, with gloo on the CPU: two ranks against one on the same rollouts, and torchrun as a user starts it."""

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
from torch.utils._python_dispatch import TorchDispatchMode

import train
from data.tokenizer import build_tokenizer
from model import GPT, GPTConfig
from rollout import Rollout
from train import Config, load, my_rows, save

ROOT = Path(__file__).parent.parent
ROWS = 9  # two ranks have 4 and 5 of them
BASE = Config(size=2, n_layer=1, dim=32, base_steps=4, base_batch=13, own_from=1.0, stage1_steps=1, stage2_steps=2, batch=ROWS,
              micro_batch=2, base_lr=0.005, lr=0.005, stage2_lr=0.005, optimizer="adamw", save_every=1, device="cpu",
              report=False)  # fmt: skip
CASES = {  # bfloat16 with single rows: a weight's gradient is rounded once a micro-batch, so these must hold the same rows
    "plain": {},
    "rloo, muon": dict(baseline="rloo", samples_per_problem=3, optimizer="muon"),  # a problem's rollouts are not on one rank
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
    rows = slice(part.start, part.stop)
    masks = rollout.masks[:, rows]
    return Rollout(rollout.ids[rows], rollout.lengths[rows], masks, rollout.log_probs[rows], rollout.ended[rows],
                   rollout.texts[rows])  # fmt: skip


def metrics(folder: Path) -> list[dict]:
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in row.items() if name != "seconds"} for row in rows]


def run(c: Config, sampled: dict[int, Rollout], state: dict | None = None) -> dict:
    """train.py's own loop on given rollouts: its gradients, advantages, problems, rows of metrics and checkpoints.

    An attempt counts as right if its text is of even length. A copy of last.pt is kept from amid Stage II. AdamW divides by a
    gradient's size and makes of a last bit of a tiny one a step as large as any: here it adds 1e-4 to that size.
    """
    folder = Path(c.out) / c.name
    folder.mkdir(exist_ok=True)
    seen = {"gradients": [], "advantages": [], "prompts": []}
    real_clip, real_batch, real_save = torch.nn.utils.clip_grad_norm_, train.rollout_batch, train.save
    real_optimizers = train.make_optimizers

    def given(c, task, tokenizer, model, problems, turns, seed, first=None):
        part = my_rows(c.batch)
        offline = round(c.offline_share * len(part))
        seen["prompts"] += [p.prompt for p in problems]
        return rows_of(sampled[turns], part[:offline] if first is not None else part[offline:])

    def clip(parameters, bound):
        parameters = list(parameters)
        seen["gradients"].append([getattr(p.grad, "full_tensor", p.grad.clone)().clone() for p in parameters])
        return real_clip(parameters, bound)

    def batch(*args):
        result = real_batch(*args)
        seen["advantages"].append(result[0]["advantages"])
        return result

    def keep(path, content):
        real_save(path, content)
        if train.rank() == 0 and "step" in content and (content["stage"], content["step"]) == (len(train.stages(c)) - 1, 1):
            shutil.copy(path, folder / "mid.pt")

    def steady(c, masters):
        optimizers = real_optimizers(c, masters)
        for optimizer in optimizers:
            if isinstance(optimizer, torch.optim.AdamW):
                optimizer.param_groups[0]["eps"] = 1e-4
        return optimizers

    def parity(task, problems, texts, ended):
        return torch.tensor([[len(t) % 2 == 0 for t in row] for row in texts]), {"truncated": 1 - ended.float().mean().item()}

    with (patch.object(train, "rollouts", given), patch.object(train, "rollout_batch", batch), patch.object(train, "save", keep),
          patch.object(train, "make_optimizers", steady), patch.object(train, "correctness", parity),
          patch.object(torch.nn.utils, "clip_grad_norm_", clip)):  # fmt: skip
        train.train(c, state or {})
    train.gather(None)
    seen["metrics"] = metrics(folder)
    return seen | {path.name: load(path) for path in sorted(folder.glob("*.pt"))}


def run_all(folder: Path, sampled: dict[int, Rollout]) -> dict:
    """All cases in this process or, if there are ranks, in each: the same code."""
    config = replace(BASE, out=str(folder))
    results = {}
    for name, changes in CASES.items():
        if "shard" in name and train.ranks() == 1:
            continue
        changes = changes | {key: str(folder.parent / changes[key]) for key in ("init", "imitate") if key in changes}
        results[name] = run(replace(config, name=name, **changes), sampled)
    return results


def resume_all(folder: Path, other: Path, sampled: dict[int, Rollout]) -> dict:
    """Runs that go on from amid Stage II of `other`, which was trained on another number of processes."""
    results = {}
    for name in RESUMED:
        source = other / (name if (other / name).exists() else name.removeprefix("shard "))
        state = load(source / "mid.pt")
        c = replace(Config(**state["config"]), out=str(folder), name=f"{name} resumed", shard="shard" in name)
        if train.rank() == 0:
            (folder / c.name).mkdir()
            for path in [source / "base.pt", *source.glob("stage1*.pt")]:
                shutil.copy(path, folder / c.name)
            shutil.copy(source / "mid.pt", folder / c.name / "last.pt")
        train.gather(None)
        results[name] = run(c, sampled, state)
    return results


class Gathers(TorchDispatchMode):
    """Counts how often tensors are gathered from all ranks."""

    count = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.count += "all_gather" in str(function)
        return function(*args, **(kwargs or {}))


def sample(c: Config, seed: int, model: GPT) -> list:
    """Nine dialogues that this rank really samples from a model."""
    task, problem_at = train.load_task(c.task), train.train_problems(train.load_task(c.task), c.size, c.seed)
    problems = [problem_at(i) for i in range(ROWS)]
    return train.rollouts(c, task, build_tokenizer(1), model, problems, 2, seed).texts


def base_model(**changes) -> GPT:
    torch.manual_seed(3)
    sizes = dict(n_layer=1, n_head=4, n_kv_head=4, dim=32, head_dim=8, ffn_dim=96)
    model = GPT(GPTConfig(build_tokenizer(1).vocab_size, **sizes, **changes))
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return model


def samplings(c: Config) -> dict:
    """What this rank samples from a model, whole and sharded, and how often weights are gathered, by the attempts' length."""
    found, counts = {"whole": sample(c, 5, base_model())}, []
    if train.ranks() > 1:
        model = base_model()
        train.shard(model, torch.device("cpu"), {})
        found["sharded"] = sample(c, 5, model)
        for length in (2, 20):
            with Gathers() as gathers:
                sample(replace(c, max_new=length), 5, model)
            counts.append(gathers.count)
        found["counts"] = counts
    return found


def worker(rank: int, folder: Path) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
    sampled = {turns: Rollout(**torch.load(folder / f"rollout{turns}.pt")) for turns in (1, 2, 3)}
    results = run_all(folder / "two", sampled)
    found = {
        "runs": results,
        "resumed": resume_all(folder / "two", folder / "one", sampled),
        "samples": samplings(BASE),
        "parts": [train.gather(list(my_rows(n))) for n in (2, 7, 256)],
    }
    torch.save(found, folder / f"rank{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """What one process and two ranks make of the same rollouts: one, (rank 0, rank 1), resumed on one."""
    folder = tmp_path_factory.mktemp("distributed")
    (folder / "one").mkdir()
    (folder / "two").mkdir()
    for name, tied in (("untied.pt", False), ("tied.pt", True)):
        model = base_model(tie_weights=tied)
        save(folder / name, train.checkpoint_of(BASE, model, {}))
    task, problem_at = train.load_task(BASE.task), train.train_problems(train.load_task(BASE.task), BASE.size, BASE.seed)
    problems = [problem_at(i) for i in range(ROWS)]
    rows = [{"prompt": p.prompt, "attempts": ["12*6=72", "7" * i]} for i, p in enumerate(problems, 1)]
    (folder / "traces.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    sampled = {turns: train.rollouts(BASE, task, build_tokenizer(1), base_model(), problems, turns, 1) for turns in (1, 2, 3)}
    assert len(set(sampled[2].lengths.tolist())) > 2  # micro-batches of unlike widths
    for turns, rollout in sampled.items():
        torch.save(vars(rollout), folder / f"rollout{turns}.pt")
    one = {"runs": run_all(folder / "one", sampled), "samples": samplings(BASE)}
    torch.multiprocessing.spawn(worker, (folder,), nprocs=2)
    resumed = resume_all(folder / "one", folder / "two", sampled)
    return one, [torch.load(folder / f"rank{rank}.pt") for rank in (0, 1)], resumed


def distance(a, b) -> float:
    """The largest difference of two lists or dicts of tensors, 0 if they are empty."""
    a, b = (list(x.values()) if isinstance(x, dict) else x for x in (a, b))
    return max([(x.float() - y.float()).abs().max().item() for x, y in zip(a, b, strict=True)], default=0.0)


@pytest.mark.parametrize("case", CASES)
def test_two_ranks_learn_what_one_process_learns(found, case):
    """The same rollouts, unevenly shared: gradients of every update, metrics, and the weights after each stage.

    Muon rounds to bfloat16 inside, and a sharded run adds bfloat16 gradients in another order: there a last bit grows.
    """
    one, ranks, _ = found
    alone = one["runs"][case.removeprefix("shard ")]
    exact = case not in ("rloo, muon", "shard masters")
    for both in (rank["runs"][case] for rank in ranks):
        updates = {"three, lora": 4, "imitate": 4}.get(case, 3 if "init" in CASES[case] else 7)
        assert len(both["gradients"]) == len(alone["gradients"]) == updates
        for step, (a, b) in enumerate(zip(both["gradients"], alone["gradients"], strict=True)):
            size = max(g.abs().max().item() for g in b)
            assert size > 0.01
            assert distance(a, b) < (1e-6 if step == 0 else 1e-5 * size if exact else 1e-2 * size), (case, step)
        assert {"base.pt", "stage2.pt", "last.pt"} <= both.keys()
        for name in sorted(name for name in alone if name.endswith(".pt")):
            assert both[name]["model"].keys() == alone[name]["model"].keys()
            assert [w.dtype for w in both[name]["model"].values()] == [w.dtype for w in alone[name]["model"].values()]
            assert distance(both[name]["model"], alone[name]["model"]) < (1e-6 if exact else 2e-3), (case, name)
        for a, b in zip(both["metrics"], alone["metrics"], strict=True):
            assert a.keys() == b.keys() and a.pop("stage") == b["stage"]
            assert a == pytest.approx({name: b[name] for name in a}, rel=1e-4 if exact else 1e-2, abs=1e-4 if exact else 1e-2)
    if alone["base.pt"]["model"]:  # the tolerances are small against what was learned
        assert distance(alone["stage2.pt"]["model"], alone["base.pt"]["model"]) > 1e-3


@pytest.mark.parametrize("case", CASES)
def test_advantages_and_problems_are_those_of_the_joined_batch(found, case):
    one, ranks, _ = found
    alone, (first, second) = one["runs"][case.removeprefix("shard ")], (rank["runs"][case] for rank in ranks)
    for whole, a, b in zip(alone["advantages"], first["advantages"], second["advantages"], strict=True):
        assert len(a) == 4 and len(b) == 5 and whole.abs().max() > 0.1
        assert torch.equal(torch.cat((a, b)), whole)
    for a, b in zip(first["gradients"], second["gradients"], strict=True):
        assert distance(a, b) == 0  # to the bit, else the ranks' weights would part in time
    if not CASES[case].get("offline_share"):
        batches = [p for i in range(0, len(first["prompts"]) // 4) for p in
                   first["prompts"][4 * i : 4 * i + 4] + second["prompts"][5 * i : 5 * i + 5]]  # fmt: skip
        assert batches == alone["prompts"] and len(set(batches)) > 9


@pytest.mark.parametrize("case", RESUMED)
def test_a_run_goes_on_with_another_number_of_ranks(found, case):
    """From one process to two ranks, and from two to one, amid Stage II with its optimiser: as if nothing had been."""
    one, ranks, to_one = found
    tolerance = 2e-3 if case == "shard masters" else 1e-6
    whole = one["runs"][case.removeprefix("shard ")]
    for resumed in (to_one[case], *(rank["resumed"][case] for rank in ranks)):
        assert len(resumed["gradients"]) == 1 and len(resumed["metrics"]) == 1
        for name in ("stage2.pt", "last.pt"):
            assert distance(resumed[name]["model"], whole[name]["model"]) < tolerance
    assert distance(whole["last.pt"]["model"], whole["mid.pt"]["model"]) > 1e-4


def test_ranks_sample_with_seeds_of_their_own_and_gather_weights_once(found):
    one, (first, second), _ = found
    a, b = first["samples"], second["samples"]
    assert a["whole"] == a["sharded"] == one["samples"]["whole"]
    assert b["whole"] == b["sharded"] and not any(x == y for x, y in zip(a["whole"], b["whole"], strict=True))
    weights = len(list(base_model().parameters()))
    assert a["counts"] == b["counts"] == [weights, weights]  # for short and for long attempts


def test_shares_are_contiguous_and_leave_nothing_out(found):
    _, ranks, _ = found
    for rank in ranks:
        assert rank["parts"] == [[[0], [1]], [[0, 1, 2], [3, 4, 5, 6]], [list(range(128)), list(range(128, 256))]]
    assert [*my_rows(7)] == [0, 1, 2, 3, 4, 5, 6] and train.gather("x") == ["x"]


@pytest.mark.parametrize(
    "words, mend",
    [
        (["--shard=true"], "shard needs optimizer=adamw"),
        (["--shard=true", "--optimizer=adamw", "--init=base.pt", "--lora=4"], "lora=0"),
        (["--shard=true", "--optimizer=adamw", "--offline_share=0.5"], "offline_share=0"),
    ],
)
def test_refusals(words, mend):
    with pytest.raises(ValueError, match=mend) as error:
        train.parse_args(words)
    assert "\n" not in str(error.value)


def test_more_processes_than_rows_or_gpus_are_refused(monkeypatch):
    monkeypatch.setattr(train, "ranks", lambda: 8)
    cpu = torch.device("cpu")
    train.check_ranks(replace(BASE, batch=8, base_batch=40), cpu)
    for c, device, mend in [
        (replace(BASE, batch=7, base_batch=40), cpu, "7 rows"),
        (replace(BASE, batch=8, base_batch=39), cpu, "7 rows"),
        (replace(BASE, batch=8, init="base.pt"), torch.device("mps"), "CUDA or --device=cpu"),
        (replace(BASE, batch=8, init="base.pt"), torch.device("cuda"), "GPUs here"),
    ]:
        monkeypatch.setenv("LOCAL_RANK", "99")
        with pytest.raises(ValueError, match=mend):
            train.check_ranks(c, device)


# ------------------------------------------------------------------------------------------------------ torchrun


def start(n: int, *args) -> subprocess.Popen:
    """train.py in one process, or in n that torchrun starts."""
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={n}"]
    command = [*(torchrun if n > 1 else [sys.executable]), ROOT / "train.py", *map(str, args)]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def wait_for_rows(process: subprocess.Popen, folder: Path, n: int) -> None:
    deadline = time.time() + 60
    while not (folder / "metrics.jsonl").exists() or len((folder / "metrics.jsonl").read_text().splitlines()) < n:
        assert process.poll() is None and time.time() < deadline, process.communicate()
        time.sleep(0.01)


def test_torchrun_survives_a_kill_and_goes_on_with_one_and_with_two(tmp_path):
    """Two ranks, of which one is killed in Stage I; one process goes on and is killed; two finish."""
    folder = tmp_path / "run"
    words = ["--size=2", "--n_layer=1", "--dim=32", "--base_steps=6", "--base_batch=10", "--stage1_steps=12", "--stage2_steps=12",
             "--batch=17", "--micro_batch=5", "--save_every=2", "--log_every=2", "--device=cpu", "--max_new=6", "--report=false",
             f"--out={tmp_path}", "--name=run"]  # fmt: skip
    process = start(2, *words)
    wait_for_rows(process, folder, 9)
    workers = subprocess.run(["pgrep", "-P", str(process.pid)], capture_output=True, text=True).stdout.split()
    assert len(workers) == 2
    killed = time.time()
    os.kill(int(workers[-1]), signal.SIGKILL)
    out, errors = process.communicate(timeout=60)
    assert process.returncode != 0 and time.time() - killed < 60
    assert "rank 0 stops" in errors and "--resume" in errors, errors
    assert out.count("base    2/6") == 1 and out.count("size = 2") == 1  # one rank prints

    process = start(1, f"--resume={folder}")
    wait_for_rows(process, folder, 20)
    process.kill()
    process.wait()

    out, errors = (process := start(2, f"--resume={folder}")).communicate(timeout=120)
    assert process.returncode == 0, errors
    assert {path.name for path in folder.iterdir() if path.suffix != ".tmp"} == {
        "config.json", "metrics.jsonl", "base.pt", "stage1.pt", "stage2.pt", "last.pt"
    }  # fmt: skip
    assert [row["step"] for row in metrics(folder)] == [*range(1, 7), *range(1, 13), *range(1, 13)]
    assert out.count("stage2   12/12") == 1
