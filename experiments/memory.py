"""How much memory fine-tuning takes: a formula, a table for real models, and a check of the formula at small sizes.

    python experiments/memory.py             the table
    python experiments/memory.py --check     the formula beside measurements of this machine (CPU, peak of the process)

The peak is in an update: weights, gradients, optimiser state and reference are there all the time; on top come a micro-batch's
activations and one chunk of logits. While dialogues are sampled their keys and values stand where the activations are later.
"""

import argparse
import resource
import subprocess
import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parent.parent))  # so that it runs without being installed

import train
from model import GPT, GPTConfig, add_lora

QWEN = dict(vocab_size=151936, qk_norm=False, qkv_bias=True, tie_weights=True, max_len=32768)
MODELS = {
    "GPT-2 124M": GPTConfig.gpt2(),
    "Qwen2.5-0.5B": GPTConfig(**QWEN, n_layer=24, n_head=14, n_kv_head=2, dim=896, head_dim=64, ffn_dim=4864),
    "Llama-3.2-1B": GPTConfig(128256, n_layer=16, n_head=32, n_kv_head=8, dim=2048, head_dim=64, ffn_dim=8192, qk_norm=False,
                              tie_weights=True, max_len=131072),
    "Qwen2.5-1.5B": GPTConfig(**QWEN, n_layer=28, n_head=12, n_kv_head=2, dim=1536, head_dim=128, ffn_dim=8960),
    "Qwen3-4B": GPTConfig(151936, n_layer=36, n_head=32, n_kv_head=8, dim=2560, head_dim=128, ffn_dim=9728, tie_weights=True,
                          max_len=40960),
}  # fmt: skip
MODES = {  # dtype, LoRA rank, recompute
    "full, float32": (torch.float32, 0, True),
    "full, bfloat16": (torch.bfloat16, 0, True),
    "LoRA 16, bfloat16": (torch.bfloat16, 16, True),
    "LoRA 16, bfloat16, blocks kept": (torch.bfloat16, 16, False),
}


def count(config: GPTConfig, lora: int) -> tuple[int, int]:
    """Numbers of parameters: the model's own, and those of its adapters."""
    with torch.device("meta"):
        model = GPT(config)
        own = sum(p.numel() for p in model.parameters())
        adapters = sum(p.numel() for p in add_lora(model, lora).parameters() if p.requires_grad) if lora else 0
    return own, adapters


def estimate(config: GPTConfig, dtype: torch.dtype, lora: int, recompute: bool, rows: int, tokens: int, sampled: int) -> dict:
    """Bytes by part, for micro-batches of `rows` rows of `tokens` tokens and `sampled` rows sampled together.

    A weight that learns costs its float32 self, gradient and two moments of Adam, 16 bytes; in bfloat16 the rounded copy
    that computes adds 2. The reference costs a model, or with LoRA nothing. Of a block the backward pass needs, for each
    token, about six vectors of the width, the queries, keys and values two or three times, and four (GELU: two) of the MLP's.
    """
    c, size = config, torch.finfo(dtype).bits // 8
    own, adapters = count(config, lora)
    attention = (c.n_head + 2 * c.n_kv_head) * c.head_dim
    block = (6 * c.dim + 3 * attention + (4 if c.mlp == "swiglu" else 2) * c.ffn_dim) * size * rows * tokens
    kept = c.n_layer * c.dim * size * rows * tokens + block if recompute else c.n_layer * block
    chunk = min(train.LOGITS_AT_ONCE, rows * tokens * c.vocab_size) * LOGITS_COPIES * 4
    cache = 2 * c.n_layer * c.n_kv_head * c.head_dim * size * sampled * tokens
    return {
        "weights": own * size,
        "learning": adapters * 16 if lora else own * (12 if size == 4 else 16),  # in float32 the model's own weights are the copy
        "reference": 0 if lora else own * size,
        "update": kept + chunk,
        "cache": cache,
    }


LOGITS_COPIES = 10  # tensors of a chunk's size that stand at once, as measured; counted by hand it is about eight


def total(parts: dict) -> int:
    """The peak: sampling and updating take turns."""
    return parts["weights"] + parts["learning"] + parts["reference"] + max(parts["update"], parts["cache"])


def table(rows: int, tokens: int, sampled: int) -> str:
    lines = ["| model | parameters | " + " | ".join(MODES) + " |", "|---" * (2 + len(MODES)) + "|"]
    for name, config in MODELS.items():
        cells = [
            f"{total(estimate(config, *mode, rows, min(tokens, config.max_len), sampled)) / 2**30:.1f}" for mode in MODES.values()
        ]
        lines.append(f"| {name} | {count(config, 0)[0] / 1e6:,.0f} M | " + " | ".join(cells) + " |")
    return "\n".join(lines)


# ------------------------------------------------------------------------------------------------------ the check

SMALL = {  # large enough that the process itself (about 200 MiB, taken off) does not matter
    "GPT-2 block": GPTConfig.gpt2(n_layer=6, dim=512, n_head=8, n_kv_head=8, ffn_dim=2048, vocab_size=20000),
    "Qwen block": GPTConfig(50000, n_layer=6, n_head=8, n_kv_head=2, dim=512, head_dim=64, ffn_dim=1536, qk_norm=False,
                            qkv_bias=True, tie_weights=True, max_len=1024),
}  # fmt: skip
CHECKED = (4, 512, 4)  # rows, tokens, rows sampled together


def one_update(config: GPTConfig, dtype: torch.dtype, lora: int, recompute: bool, rows: int, tokens: int) -> float:
    """Peak bytes of a process's update over what it had before the model was made."""
    before = peak()
    model, reference = GPT(config).to(dtype), None
    if lora:
        add_lora(model, lora)
        reference = train.without_lora(model)
    else:
        reference = GPT(config).to(dtype).requires_grad_(False)
    model.recompute = recompute
    masters = train.master_weights(model, {})
    optimizers = train.make_optimizers(train.Config(optimizer="adamw"), masters)
    ids = torch.randint(0, config.vocab_size, (rows, tokens))
    masks = torch.ones(rows, 2, tokens, dtype=torch.bool)
    masks[:, :, 0], masks[:, 0, tokens // 2 :], masks[:, 1, : tokens // 2] = False, False, False
    batch = {"ids": ids, "masks": masks, "advantages": torch.ones(rows, 2)}
    for _ in range(2):
        loss, _ = train.policy_loss(model, reference, batch, (0.1, 0.1), 1.0, rows)
        loss.backward()
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
        train.copy_masters(model, masters)
    return peak() - before


def peak() -> float:
    """Bytes at the peak of this process. Not ru_maxrss on Linux, which a process has from the one that started it."""
    try:
        status = Path("/proc/self/status").read_text()
        return int(status.partition("VmHWM:")[2].split()[0]) * 1024
    except OSError:
        scale = 1 if sys.platform == "darwin" else 1024  # macOS counts bytes, others KiB
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * scale


def check() -> str:
    """Each small case in a process of its own, whose peak nothing else has raised."""
    rows, tokens, sampled = CHECKED
    lines = ["| model | mode | formula, MiB | measured, MiB | measured / formula |", "|---|---|---|---|---|"]
    for name in SMALL:
        for mode in MODES:
            done = subprocess.run([sys.executable, __file__, "--one", name, mode], capture_output=True, text=True, check=True)
            measured = float(done.stdout) / 2**20
            expected = total(estimate(SMALL[name], *MODES[mode], rows, tokens, sampled)) / 2**20
            lines.append(f"| {name} | {mode} | {expected:.0f} | {measured:.0f} | {measured / expected:.2f} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--check", action="store_true", help="compare the formula with measurements at small sizes")
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
    main()
