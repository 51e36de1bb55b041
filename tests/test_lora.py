"""LoRA: adapters beside frozen weights, and what a run makes of them."""

import json
import shutil
import sys
from pathlib import Path

import pytest
import torch
from pretrained import SHORT, even_length, logits, train_here

import eval as evaluation
import train
from engine.hf import export, load_pretrained
from engine.hf_tokenizer import read_tokenizer
from engine.lora import add_lora, merge_lora, without_lora
from train import Config, load_model, stages

pytestmark = pytest.mark.slow


def test_lora_starts_as_the_base_then_learns_and_merges(small_gpt):
    qwen2 = dict(n_kv_head=2, qk_norm=False, qkv_bias=True, tie_weights=True)
    ids = torch.randint(0, 90, (2, 20))
    expected = logits(small_gpt(**qwen2), ids)
    model = add_lora(small_gpt(**qwen2), rank=4)
    assert torch.equal(logits(model, ids), expected)  # B is zero
    learning = {name for name, p in model.named_parameters() if p.requires_grad}
    assert len(learning) == 2 * 4 * 2 and all(".lora_" in name for name in learning)
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=1.0)
    for _ in range(2):  # in the first step only B has a gradient
        model(ids).logsumexp(-1).sum().backward()
        optimizer.step()
    changed = logits(model, ids)
    assert (changed - expected).abs().max() > 1e-2
    assert all(p.grad is None for name, p in model.named_parameters() if name not in learning)

    reference = without_lora(model)
    assert torch.equal(logits(reference, ids), expected)
    own = {p.data_ptr() for p in model.parameters()}
    assert all(p.data_ptr() in own and not p.requires_grad for p in reference.parameters())  # shared memory
    merged = merge_lora(model)
    assert (logits(merged, ids) - changed).abs().max() <= 1e-4
    assert merged.lm_head.weight is merged.embed.weight
    assert torch.equal(logits(without_lora(model), ids), expected)  # merging leaves the base alone


# ---------------------------------------------------------------------------------- runs


@pytest.fixture
def run(qwen, tmp_path, monkeypatch, capsys):
    """A function that makes a short run and returns its folder. A random model has both outcomes in it."""
    monkeypatch.setattr(train, "correctness", even_length)

    def make(name: str, *words, init=qwen):
        train_here(monkeypatch, f"--init={init}", *SHORT, *words, f"--out={tmp_path}", f"--name={name}")
        return tmp_path / name

    return make


def test_the_reference_of_a_lora_run_is_the_base(run):
    """The KL is 0 in the first step and positive later: only the policy has the adapters."""
    folder = run("kl", "--lora=4", "--lr=1e-2", "--stage2_steps=0")
    lines = (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    first, *_, last = map(json.loads, lines)
    assert first["kl_t1"] == pytest.approx(0, abs=1e-6) and first["kl_t2"] == pytest.approx(0, abs=1e-6)
    assert last["kl_t1"] + last["kl_t2"] > 1e-5


@pytest.mark.parametrize("lora", [4, 0])
def test_on_a_task_in_words_a_pretrained_model_is_warmed_up_to_be_the_base(run, qwen, lora):
    """The base stage comes first, and the reference is the model after it: the KL is 0 at first."""
    words = ["--task=words", "--size=9", f"--lora={lora}", "--lr=1e-2", "--max_new=60", "--stage2_steps=0"]
    folder = run("words", *words, "--base_steps=8", "--base_batch=4", "--base_lr=1e-2", "--own_from=0.5")
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [row["stage"] for row in rows] == ["base"] * 8 + ["stage1"] * 4
    assert rows[7]["loss"] < rows[0]["loss"] - 0.05
    first, last = rows[8], rows[-1]
    assert first["kl_t1"] == pytest.approx(0, abs=1e-6) and first["kl_t2"] == pytest.approx(0, abs=1e-6)
    assert last["kl_t1"] + last["kl_t2"] > 1e-5
    ids = torch.randint(0, 800, (2, 20))
    base = logits(load_model(folder / "base.pt", "cpu")[0], ids)
    assert (base - logits(load_pretrained(qwen), ids)).abs().max() > 1e-3
    # A run from that base has none to make. Other drawn tasks have the toy's wording and no warm-up.
    assert stages(Config(task="words", init=str(folder / "base.pt")))[0].name == "stage1"
    assert stages(Config(task="division", init=str(qwen)))[0].name == "stage1"


def test_an_export_is_the_merged_policy_with_its_tokenizer(run, qwen, tmp_path, monkeypatch):
    transformers = pytest.importorskip("transformers")
    transformers.logging.disable_progress_bar()
    checkpoint = run("x", "--lora=4", "--lr=1e-2") / "stage2.pt"
    monkeypatch.setattr(sys, "argv", ["eval.py", str(checkpoint), f"--export={tmp_path / 'hf'}"])
    evaluation.main()
    policy, _ = load_model(checkpoint, "cpu")
    exported = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "hf").eval()
    ids = torch.randint(0, 800, (2, 20))
    assert (logits(exported, ids) - logits(policy, ids)).abs().max() <= 1e-4
    assert read_tokenizer(tmp_path / "hf").encode("a b") == read_tokenizer(qwen).encode("a b")


def test_the_export_of_a_toy_takes_no_file_of_the_working_folder(small_gpt, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("hf").mkdir()
    for stray in ("tokenizer.json", "hf/vocab.json"):
        Path(stray).write_text("{}", encoding="utf-8")
    assert export(small_gpt(), Config(), "hf") == "hf has the model, without a tokenizer"
    names = sorted(path.name for path in Path("hf").iterdir())
    assert names == ["config.json", "model.safetensors", "vocab.json"]


@pytest.mark.parametrize("lora", [2, 0])
def test_adapters_are_merged_where_a_run_starts_from_them(run, qwen, lora):
    checkpoint = run("first", "--lora=4", "--lr=1e-2") / "stage2.pt"
    second = run("second", f"--lora={lora}", f"--tokenizer={qwen}", init=checkpoint)
    ids = torch.randint(0, 800, (2, 20))
    expected = logits(load_model(checkpoint, "cpu")[0], ids)
    base, after = (logits(load_model(second / f"{name}.pt", "cpu")[0], ids) for name in ("base", "stage2"))
    assert (base - expected).abs().max() <= 1e-4
    assert (after - expected).abs().max() > 1e-3


def test_a_base_that_is_missing_is_named(run, qwen, tmp_path):
    moved = tmp_path / "moved"
    shutil.copytree(qwen, moved)
    folder = run("x", "--lora=4", init=moved)
    shutil.rmtree(moved)
    with pytest.raises(ValueError, match="moved is gone: this run reads its weights"):
        load_model(folder / "stage2.pt", "cpu")
