"""What the tests of pretrained models share: tiny tokenizers, a random Qwen 2, short runs from it."""

import sys
from pathlib import Path

import torch

import train
from engine.hf import save_pretrained
from engine.report import FAILURES
from model import GPT, GPTConfig

CHATML = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
LLAMA3 = ["<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"]
QWEN_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
# Pre-tokenizer, normal form, special tokens, whether these come first, whether whole pieces need no merges.
LAYOUTS = {
    "gpt2": (None, None, ["<|endoftext|>"], False, False),
    "qwen": (QWEN_PATTERN, "NFC", CHATML, False, False),
    "llama3": (QWEN_PATTERN.replace(r"\p{N}|", r"\p{N}{1,3}|", 1), None, LLAMA3, False, True),
    "smollm2": ("digits", None, CHATML, True, False),
}
SHORT = [
    "--lr=1e-3", "--stage2_lr=1e-3", "--stage1_steps=4", "--stage2_steps=3", "--batch=8", "--sample_batch=5",
    "--micro_batch=3", "--max_new=13", "--eval_n=6", "--save_every=2", "--show_every=2", "--log_every=1",
    "--device=cpu", "--train_n=0",
]  # fmt: skip


def write_tokenizer(layout: str, folder: Path):
    """Writes a tiny tokenizer of a family's layout, which the tokenizers library trains here. Returns it."""
    from tokenizers import Regex, decoders, models, normalizers, trainers
    from tokenizers import Tokenizer as Library
    from tokenizers import pre_tokenizers as pre

    pattern, form, special, first, ignore_merges = LAYOUTS[layout]
    made = Library(models.BPE(ignore_merges=ignore_merges))
    steps = [pre.ByteLevel(add_prefix_space=False, use_regex=pattern in (None, "digits"))]
    if pattern:
        digits = pattern == "digits"
        steps.insert(0, pre.Digits(True) if digits else pre.Split(Regex(pattern), "isolated"))
    made.pre_tokenizer = pre.Sequence(steps) if pattern else steps[0]
    if form:
        made.normalizer = normalizers.NFC()
    made.decoder = decoders.ByteLevel()
    said = dict(initial_alphabet=pre.ByteLevel.alphabet(), special_tokens=special if first else [])
    corpus = Path(train.__file__).read_text(encoding="utf-8")  # any text will do
    trainer = trainers.BpeTrainer(vocab_size=800, show_progress=False, **said)
    made.train_from_iterator([corpus, "日本語 é è ñ 🙂 " * 20], trainer)
    if not first:
        made.add_special_tokens(special)
    folder.mkdir(exist_ok=True)
    made.save(str(folder / "tokenizer.json"))
    return made


def write_qwen(folder: Path) -> None:
    """Writes a random Qwen 2 with its tokenizer. Like the real ones it has a few more ids than tokens."""
    library = write_tokenizer("qwen", folder)
    torch.manual_seed(0)
    sizes = dict(n_layer=2, n_head=4, n_kv_head=2, dim=64, head_dim=16, ffn_dim=96, max_len=2048)
    config = GPTConfig(library.get_vocab_size() + 7, **sizes, qk_norm=False, qkv_bias=True, tie_weights=True)
    save_pretrained(GPT(config), folder)


def train_here(monkeypatch, *words) -> None:
    """train.py in this process, without its report."""
    report = [] if any("--resume" in word for word in words) else ["--report=false"]
    monkeypatch.setattr(sys, "argv", ["train.py", *report, *words])
    train.main()


def even_length(task, problems, texts, ended):
    """In place of `correctness`, so that a random model has both outcomes: is a text's length even?"""
    even = torch.tensor([[len(text) % 2 == 0 for text in row] for row in texts])
    return even, dict.fromkeys(FAILURES, 0.0)


@torch.no_grad()
def logits(model, ids: torch.Tensor) -> torch.Tensor:
    """Logits [B, T, V] of our model or of one of transformers."""
    out = model(ids)
    return out if isinstance(out, torch.Tensor) else out.logits
