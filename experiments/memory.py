"""How much memory fine-tuning takes: a formula, a table for real models, and a check at small sizes.

    python experiments/memory.py            the table
    python experiments/memory.py --check    the formula beside measurements on this machine (CPU)

The peak is in an update. Weights, gradients, optimizer state and reference are there all the time. On top
come a micro-batch's activations and one chunk of logits. While dialogues are sampled, their keys and values
take the place of the activations.
"""

import argparse
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # so that it runs without being installed

import train
from engine.cli import run_script
from engine.hf import gpt2_config
from engine.lora import add_lora, without_lora
from engine.memory import LOGITS_AT_ONCE, empty_gpt
from engine.optim import Learner, master_weights
from engine.report import markdown
from model import GPT, GPTConfig

QWEN2 = dict(vocab_size=151936, qk_norm=False, qkv_bias=True, tie_weights=True, max_len=32768)
MODELS = {
    "GPT-2 124M": gpt2_config(),
    "Qwen2.5-0.5B": GPTConfig(
        **QWEN2, n_layer=24, n_head=14, n_kv_head=2, dim=896, head_dim=64, ffn_dim=4864
    ),
    "Llama-3.2-1B": GPTConfig(
        128256, n_layer=16, n_head=32, n_kv_head=8, dim=2048, head_dim=64, ffn_dim=8192, qk_norm=False,
        tie_weights=True, max_len=131072,
    ),
    "Qwen2.5-1.5B": GPTConfig(
        **QWEN2, n_layer=28, n_head=12, n_kv_head=2, dim=1536, head_dim=128, ffn_dim=8960
    ),
    "Qwen3-4B": GPTConfig(
        151936, n_layer=36, n_head=32, n_kv_head=8, dim=2560, head_dim=128, ffn_dim=9728, tie_weights=True,
        max_len=40960,
    ),
}  # fmt: skip
MODES = {  # dtype, LoRA rank, recompute
    "all weights, float32": (torch.float32, 0, True),
    "all weights, bfloat16": (torch.bfloat16, 0, True),
    "LoRA 16, bfloat16": (torch.bfloat16, 16, True),
    "LoRA 16, bfloat16, blocks kept": (torch.bfloat16, 16, False),
}
LOGITS_COPIES = 12  # tensors of a chunk's size that exist at the same time, as measured


def count(config: GPTConfig, lora: int) -> tuple[int, int]:
    """Numbers of parameters: the model's own, and those of its adapters."""
    model = empty_gpt(config)
    own = sum(p.numel() for p in model.parameters())
    adapters = sum(p.numel() for p in add_lora(model, lora).parameters() if p.requires_grad) if lora else 0
    return own, adapters


def estimate(
    config: GPTConfig, dtype: torch.dtype, lora: int, recompute: bool, rows: int, tokens: int, sampled: int
) -> dict[str, int]:
    """Bytes by part. A micro-batch has `rows` rows of `tokens` tokens; `sampled` rows are sampled together.

    A weight that learns costs 16 bytes: its float32 value, its gradient and Adam's two moments. In bfloat16
    the rounded copy that computes adds 2. The reference costs as much as a model, or with LoRA nothing. For
    each token the backward pass needs from a block about six vectors of the width, three times the queries,
    keys and values, and four (GELU: two) vectors of the MLP's width.
    """
    c, size = config, torch.finfo(dtype).bits // 8
    own, adapters = count(config, lora)
    attention = (c.n_head + 2 * c.n_kv_head) * c.head_dim
    mlp = (4 if c.mlp == "swiglu" else 2) * c.ffn_dim
    block = (6 * c.dim + 3 * attention + mlp) * size * rows * tokens
    kept = c.n_layer * c.dim * size * rows * tokens + block if recompute else c.n_layer * block
    chunk = min(LOGITS_AT_ONCE, rows * tokens * c.vocab_size) * LOGITS_COPIES * 4
    return {
        "weights": own * size,
        "learning": adapters * 16 if lora else own * (12 if size == 4 else 16),  # float32: without the value
        "reference": 0 if lora else own * size,
        "update": kept + chunk,
        "cache": 2 * c.n_layer * c.n_kv_head * c.head_dim * size * sampled * tokens,
    }


def total(parts: dict) -> int:
    """The peak: sampling and updating take turns."""
    return parts["weights"] + parts["learning"] + parts["reference"] + max(parts["update"], parts["cache"])


def table(rows: int, tokens: int, sampled: int) -> str:
    """GiB at the peak of each model in each mode, as Markdown."""
    lines = []
    for name, config in MODELS.items():
        sizes = rows, min(tokens, config.max_len), sampled
        cells = [f"{total(estimate(config, *mode, *sizes)) / 2**30:.1f}" for mode in MODES.values()]
        lines.append([name, f"{count(config, 0)[0] / 1e6:,.0f} M", *cells])
    return markdown(["model", "parameters", *MODES], lines)


# ---------------------------------------------------------------------------------- the check

SMALL = {  # large enough that the process itself (about 200 MiB, taken off) does not matter
    "GPT-2 block": gpt2_config(n_layer=6, dim=512, n_head=8, n_kv_head=8, ffn_dim=2048, vocab_size=20000),
    "Qwen block": GPTConfig(
        50000, n_layer=6, n_head=8, n_kv_head=2, dim=512, head_dim=64, ffn_dim=1536, qk_norm=False,
        qkv_bias=True, tie_weights=True, max_len=1024,
    ),
}  # fmt: skip
CHECKED = (4, 512, 4)  # rows, tokens, rows sampled together


def one_update(
    config: GPTConfig, dtype: torch.dtype, lora: int, recompute: bool, rows: int, tokens: int
) -> float:
    """Bytes that an update adds to the process's peak before the model was made."""
    before = peak()
    _, update = update_of(config, dtype, lora, recompute, rows, tokens, torch.device("cpu"))
    for _ in range(2):
        update()
    return peak() - before


def update_of(
    config: GPTConfig, dtype: torch.dtype, lora: int, recompute: bool, rows: int, tokens: int,
    device: torch.device,
) -> tuple[GPT, Callable]:  # fmt: skip
    """A model with random weights, and a function that makes one update of it."""
    with device:
        model = GPT(config).to(dtype)
        if lora:
            add_lora(model, lora)
        reference = without_lora(model) if lora else GPT(config).to(dtype).requires_grad_(False)
        masks = torch.zeros(rows, 2, tokens, dtype=torch.bool)
        ids = torch.randint(0, config.vocab_size, (rows, tokens))
        batch = {"ids": ids, "masks": masks, "advantages": torch.ones(rows, 2)}
    masks[:, 0, 1 : tokens // 2], masks[:, 1, tokens // 2 :] = True, True
    model.recompute = recompute
    learner = Learner(model, master_weights(model, {}))
    learner.start_stage(train.Config(optimizer="adamw"), None)

    def update():
        train.policy_loss(model, reference, batch, (0.1, 0.1), 1.0, rows)[0].backward()
        learner.step(0.0)

    return model, update


def peak(device: torch.device | None = None) -> float:
    """Bytes at the peak: of all tensors on a CUDA device, else of this process.

    On Linux ru_maxrss would not do: a process inherits it from the one that started it.
    """
    if device is not None and device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    try:
        status = Path("/proc/self/status").read_text(encoding="utf-8")
        return int(status.partition("VmHWM:")[2].split()[0]) * 1024
    except OSError:
        import resource  # Windows does not have it

        scale = 1 if sys.platform == "darwin" else 1024  # macOS counts bytes, others KiB
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * scale


def check() -> str:
    """The formula beside measurements, as Markdown. Each case has a process and thus a peak of its own."""
    rows, tokens, sampled = CHECKED
    lines = []
    for name in SMALL:
        for mode in MODES:
            command = [sys.executable, __file__, "--one", name, mode]
            done = subprocess.run(command, capture_output=True, text=True, check=True)
            measured = float(done.stdout) / 2**20
            expected = total(estimate(SMALL[name], *MODES[mode], rows, tokens, sampled)) / 2**20
            lines.append([name, mode, f"{expected:.0f}", f"{measured:.0f}", f"{measured / expected:.2f}"])
    return markdown(["model", "mode", "formula, MiB", "measured, MiB", "measured / formula"], lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--check", action="store_true", help="the formula beside measurements")
    parser.add_argument("--one", nargs=2, help=argparse.SUPPRESS)
    parser.add_argument("--rows", type=int, default=4, help="micro-batch")
    parser.add_argument("--tokens", type=int, default=1024, help="a two-turn dialogue")
    parser.add_argument("--sampled", type=int, default=64, help="rows sampled together")
    args = parser.parse_args()
    if args.one:
        name, mode = args.one
        print(one_update(SMALL[name], *MODES[mode], *CHECKED[:2]))
    else:
        print(check() if args.check else table(args.rows, args.tokens, args.sampled))


if __name__ == "__main__":
    run_script(main)
