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
    base = small_gpt(n_kv_head=2, qk_norm=False, qkv_bias=True, tie_weights=True)
    ids = torch.randint(0, 90, (2, 20))
    expected, model = logits(base, ids), add_lora(base, rank=4)
    assert torch.equal(logits(model, ids), expected)  # B is zero
    learning = {name: p for name, p in model.named_parameters() if p.requires_grad}
    assert len(learning) == 2 * 4 * 2 and all(".lora_" in name for name in learning)
    optimizer = torch.optim.SGD(learning.values(), lr=1.0)
    for _ in range(2):  # in the first step only B has a gradient
        model(ids).logsumexp(-1).sum().backward()
        optimizer.step()
    changed = logits(model, ids)
    assert (changed - expected).abs().max() > 1e-2
    assert all(p.grad is None for name, p in model.named_parameters() if name not in learning)

    reference, merged = without_lora(model), merge_lora(model)
    own = {p.data_ptr() for p in model.parameters()}
    assert all(p.data_ptr() in own and not p.requires_grad for p in reference.parameters())  # shared memory
    assert not any(p.data_ptr() in own for p in merged.parameters())
    assert (logits(merged, ids) - changed).abs().max() <= 1e-4
    assert merged.lm_head.weight is merged.embed.weight
    assert torch.equal(logits(reference, ids), expected)  # merging leaves the base alone


# ---------------------------------------------------------------------------------- runs


@pytest.fixture
def run(qwen, tmp_path, monkeypatch, capsys):
    """A function that makes a short run and returns its folder. A random model has both outcomes in it."""
    monkeypatch.setattr(train, "correctness", even_length)

    def make(name: str, *words, init=qwen):
        train_here(monkeypatch, f"--init={init}", *SHORT, *words, f"--out={tmp_path}", f"--name={name}")
        return tmp_path / name

    return make


def check_reference(folder: Path) -> list[dict]:
    """The rows of a run's log. The KL of Stage I is 0 in the first step and positive later."""
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    first, *_, last = (row["kl_t1"] + row["kl_t2"] for row in rows if row["stage"] == "stage1")
    assert abs(first) < 1e-6 and last > 1e-5
    return rows


def test_the_reference_of_a_lora_run_is_the_base(run):
    """Only the policy has the adapters."""
    check_reference(run("kl", "--lora=4", "--lr=1e-2", "--stage2_steps=0"))


@pytest.mark.parametrize("lora", [4, 0])
def test_on_a_task_in_words_a_pretrained_model_is_warmed_up_to_be_the_base(run, qwen, lora):
    """The base stage comes first, and the reference is the model after it."""
    words = ["--task=words", f"--lora={lora}", "--lr=1e-2", "--max_new=60", "--stage2_steps=0"]
    folder = run("words", *words, "--base_steps=8", "--base_batch=4", "--base_lr=1e-2", "--own_from=0.5")
    rows = check_reference(folder)
    assert [row["stage"] for row in rows] == ["base"] * 8 + ["stage1"] * 4
    assert rows[7]["loss"] < rows[0]["loss"] - 0.05
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
    exported = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "hf").eval()
    ids = torch.randint(0, 800, (2, 20))
    assert (logits(exported, ids) - logits(load_model(checkpoint, "cpu")[0], ids)).abs().max() <= 1e-4
    assert read_tokenizer(tmp_path / "hf").encode("a b") == read_tokenizer(qwen).encode("a b")


def test_the_export_of_a_toy_takes_no_file_of_the_working_folder(small_gpt, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("hf").mkdir()
    for stray in ("tokenizer.json", "hf/vocab.json"):
        Path(stray).write_text("{}", encoding="utf-8")
    assert export(small_gpt(), Config(), "hf") == "hf has the model, without a tokenizer"
    assert {path.name for path in Path("hf").iterdir()} == {"config.json", "model.safetensors", "vocab.json"}


@pytest.mark.parametrize("lora", [2, 0])
def test_adapters_are_merged_where_a_run_starts_from_them(run, qwen, lora):
    checkpoint = run("first", "--lora=4", "--lr=1e-2") / "stage2.pt"
    second = run("second", f"--lora={lora}", f"--tokenizer={qwen}", init=checkpoint)
    ids, files = torch.randint(0, 800, (2, 20)), (checkpoint, second / "base.pt", second / "stage2.pt")
    expected, base, after = (logits(load_model(file, "cpu")[0], ids) for file in files)
    assert (base - expected).abs().max() <= 1e-4
    assert (after - expected).abs().max() > 1e-3


def test_a_base_that_is_missing_is_named(run, qwen, tmp_path):
    moved = shutil.copytree(qwen, tmp_path / "moved")
    folder = run("x", "--lora=4", init=moved)
    shutil.rmtree(moved)
    with pytest.raises(ValueError, match="moved is gone: this run reads its weights"):
        load_model(folder / "stage2.pt", "cpu")
