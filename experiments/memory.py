"""How much memory fine-tuning takes: a formula, a table for real models, and a check at small sizes.

    python experiments/memory.py            the table
    python experiments/memory.py --check    the formula beside measurements on a CPU; needs Linux

The peak is in an update. Weights, gradients, optimizer state and reference are there all the time. On top
come a micro-batch's activations and one chunk of logits. While dialogues are sampled, their keys and values
take the place of the activations.
"""

import argparse
import multiprocessing
import sys
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # so that it runs without being installed

import train
from engine.cli import run_script
from engine.hf import gpt2_config
from engine.lora import add_lora, without_lora
from engine.memory import LOGITS_AT_ONCE, empty_gpt, micro_batches
from engine.optim import make_optimizer, master_weights
from engine.report import markdown
from model import GPT, GPTConfig

QWEN2 = dict(qk_norm=False, qkv_bias=True, tie_weights=True)
MODELS = {  # vocabulary, layers, heads, KV heads, width, width of a head, width of the MLP, longest sequence
    "GPT-2 124M": gpt2_config(),
    "SmolLM2-135M": GPTConfig(49152, 30, 9, 3, 576, 64, 1536, 2048, qk_norm=False, tie_weights=True),
    "Qwen2.5-0.5B": GPTConfig(151936, 24, 14, 2, 896, 64, 4864, 32768, **QWEN2),
    "Llama-3.2-1B": GPTConfig(128256, 16, 32, 8, 2048, 64, 8192, 131072, qk_norm=False, tie_weights=True),
    "Qwen2.5-1.5B": GPTConfig(151936, 28, 12, 2, 1536, 128, 8960, 32768, **QWEN2),
    "Qwen3-4B": GPTConfig(151936, 36, 32, 8, 2560, 128, 9728, 40960, tie_weights=True),
}
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
    learning = adapters * 16 if lora else own * (12 if size == 4 else 16)  # float32: without the value
    reference = 0 if lora else own * size
    return {
        "always": own * size + learning + reference,
        "update": kept + chunk,
        "cache": 2 * c.n_layer * c.n_kv_head * c.head_dim * size * sampled * tokens,
    }


def total(parts: dict) -> int:
    """The peak: sampling and updating take turns."""
    return parts["always"] + max(parts["update"], parts["cache"])


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
    "Qwen block": GPTConfig(50000, 6, 8, 2, 512, 64, 1536, 1024, **QWEN2),
}
CHECKED = (4, 512, 4)  # rows, tokens, rows sampled together


def update(model: GPT, reference: GPT, optimizer, batch: dict) -> None:
    """Loss, backward pass and step, as the loop of train.py has them."""
    for micro in micro_batches(batch, train.Config.micro_batch):
        train.policy_loss(model, reference, micro, (0.3, 0.3), 1.0, len(batch["ids"]))[0].backward()
    torch.nn.utils.clip_grad_norm_(optimizer.param_groups[0]["params"], 1.0)
    optimizer.step()
    optimizer.zero_grad()


def update_of(
    config: GPTConfig, dtype: torch.dtype, lora: int, recompute: bool, rows: int, tokens: int, device="cpu"
) -> Callable[[], None]:
    """A function that makes an update of a model with random weights, at learning rate 0.

    The batch has two attempts a row, each a quarter of the row's tokens, behind prompts of the same length.
    """
    torch.manual_seed(0)
    with torch.device(device):
        model = GPT(config).to(dtype)
        if lora:
            add_lora(model, lora)
        reference = without_lora(model) if lora else GPT(config).to(dtype).requires_grad_(False)
        masks = torch.zeros(rows, 2, tokens, dtype=torch.bool)
        ids = torch.randint(config.vocab_size, (rows, tokens))
        batch = {"ids": ids, "masks": masks, "advantages": torch.randn(rows, 2)}
    masks[:, 0, tokens // 4 : tokens // 2], masks[:, 1, 3 * tokens // 4 :] = True, True
    model.recompute = recompute
    optimizer = make_optimizer(model, master_weights(model, {}), None)
    return lambda: update(model, reference, optimizer, batch)


def peak_of_update(*case) -> int:
    """Bytes that two updates add to this process's peak. `case`: the arguments of `update_of`."""
    before = peak()
    one_update = update_of(*case)
    for _ in range(2):  # the optimizer has its state from the first one on
        one_update()
    return peak() - before


def peak() -> int:
    """The most bytes that this process has had in memory, as Linux tells it. A new process begins at 0."""
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    return int(status.partition("VmHWM:")[2].split()[0]) * 1024


def in_own_process(function: Callable, *args):
    """function(*args), called in a new process, which has a peak of its own."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        return pool.submit(function, *args).result()


def check() -> str:
    """The formula beside measurements, as Markdown."""
    rows, tokens, sampled = CHECKED
    lines = []
    for name, config in SMALL.items():
        for mode, how in MODES.items():
            measured = in_own_process(peak_of_update, config, *how, rows, tokens) / 2**20
            expected = total(estimate(config, *how, rows, tokens, sampled)) / 2**20
            lines.append([name, mode, f"{expected:.0f}", f"{measured:.0f}", f"{measured / expected:.2f}"])
    return markdown(["model", "mode", "formula, MiB", "measured, MiB", "measured / formula"], lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--check", action="store_true", help="the formula beside measurements")
    parser.add_argument("--rows", type=int, default=4, help="micro-batch")
    parser.add_argument("--tokens", type=int, default=1024, help="a two-turn dialogue")
    parser.add_argument("--sampled", type=int, default=64, help="rows sampled together")
    args = parser.parse_args()
    print(check() if args.check else table(args.rows, args.tokens, args.sampled))


if __name__ == "__main__":
    run_script(main)
