"""How many threads a run on a CPU uses. It is measured, and measured again from time to time.

Threads share each operation and wait for the slowest. When another program keeps one of two cores busy, two
threads are slower than one.
"""

import time
from collections.abc import Iterator

import torch

from engine.processes import ranks
from model import GPT

PROBE_SECONDS = 0.05  # long enough to notice another program, which gets the core for milliseconds at a time
LOOK_EVERY = 30.0  # seconds. A look takes 0.1 s, on a very busy machine up to a second


def with_best_threads(steps: range, model: GPT) -> Iterator[int]:
    """Yields `steps`. Before the first and then every 30 seconds it sets the number of threads that is best.

    Other devices, and several processes, keep the number they have. So does OMP_NUM_THREADS=1.
    """
    most, last_look = torch.get_num_threads(), -LOOK_EVERY
    choose = most > 1 and model.embed.weight.device.type == "cpu" and ranks() == 1
    try:
        for step in steps:
            if choose and time.monotonic() - last_look > LOOK_EVERY:
                before = torch.get_num_threads()
                torch.set_num_threads(best_threads(model, most))
                if torch.get_num_threads() != before:
                    print(f"threads: {torch.get_num_threads()} of {most} are quickest now", flush=True)
                last_look = time.monotonic()
            yield step
    finally:
        torch.set_num_threads(most)


def best_threads(model: GPT, most: int) -> int:
    """With how many threads a block of the model is quickest: 1, 2, 4 ... or `most`."""
    best, best_pace, count = 1, 0.0, 1
    while True:
        torch.set_num_threads(count)
        pace = passes_a_second(model)
        if pace < best_pace:
            return best  # still more threads would be slower still
        best, best_pace = count, pace
        if count == most:
            return best
        count = min(2 * count, most)


def passes_a_second(model: GPT) -> float:
    """Forward and backward passes of the model's first block, on 512 tokens."""
    config, table = model.config, model.embed.weight
    x = torch.ones(16, 32, config.dim, dtype=table.dtype, requires_grad=True)  # [B, T, C]
    positions = torch.arange(32)[None]
    angles = (torch.ones(1, 32, 1, config.head_dim),) * 2 if config.position == "rope" else None  # cos, sin
    start, n = time.perf_counter(), 0
    while n == 0 or time.perf_counter() - start < PROBE_SECONDS:
        torch.autograd.grad(model.blocks[0](x, 0, positions, angles, None, None).sum(), x)
        n += 1
    return n / (time.perf_counter() - start)
