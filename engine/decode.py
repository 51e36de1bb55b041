"""Sampling on a GPU: the model's pass over one token a row is recorded once and then replayed.

A GPU finishes a small operation before Python has started the next one. As a CUDA graph the operations of a
pass are started together.
"""

import functools
from collections.abc import Callable

import torch
from torch import Tensor

from model import GPT, KVCache

COLUMNS = 256  # a recorded pass looks at a multiple of so many columns of the cache; the mask hides the rest


def replayed(model: GPT, cache: KVCache) -> Callable[[Tensor], Tensor]:
    """`model.hidden(ids, cache)` for ids [B, 1], on CUDA and sooner. Make it anew for each cache.

    A graph has fixed shapes, so there is one for each number of columns. The first pass of a shape runs
    without one, because libraries prepare themselves then. The tensor that is returned is overwritten by the
    next pass.
    """
    ids_in = torch.zeros(len(cache.lengths), 1, dtype=torch.long, device=cache.lengths.device)
    graphs, most = {}, min(cache.data.shape[4], model.config.max_len)

    def run() -> Tensor:
        return model.hidden(ids_in, cache)

    def step(ids: Tensor) -> Tensor:
        model.check_length(cache.longest + 1)
        ids_in.copy_(ids)
        longest, columns = cache.longest, min(most, -(-(cache.longest + 1) // COLUMNS) * COLUMNS)
        cache.longest = columns - 1  # a looser bound: the pass then looks at `columns` columns
        if columns not in graphs:
            graphs[columns], hidden = None, run()
        else:
            graphs[columns] = graphs[columns] or record(run)
            graph, hidden = graphs[columns]
            graph.replay()
        cache.longest = longest
        return hidden

    return step


def record(run: Callable[[], Tensor]) -> tuple[torch.cuda.CUDAGraph, Tensor]:
    """A CUDA graph of what `run` does, and the tensor that it writes."""
    here, (aside, keeper) = torch.cuda.current_stream(), recorder()
    aside.wait_stream(here)
    with torch.cuda.stream(aside):
        graph = torch.cuda.CUDAGraph()
        graph.capture_begin(pool=keeper.pool())  # torch.cuda.graph() would also empty the allocator's cache
        hidden = run()
        graph.capture_end()
    here.wait_stream(aside)
    return graph, hidden


@functools.cache
def recorder() -> tuple[torch.cuda.Stream, torch.cuda.CUDAGraph]:
    """A stream to record in (CUDA can't record the default one), and a graph that keeps their memory.

    All graphs share the memory: they never run at the same time. It lives as long as one of its graphs.
    """
    aside, keeper = torch.cuda.Stream(), torch.cuda.CUDAGraph()
    with torch.cuda.stream(aside):
        keeper.capture_begin()
        torch.zeros(1, device="cuda")
        keeper.capture_end()
    return aside, keeper
