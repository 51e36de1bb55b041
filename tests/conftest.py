"""Small things that the tests share. Nothing here needs a GPU, a network or more than a few seconds."""

import os
import signal

# A background job ignores these signals, and so would the scripts that the tests stop with them.
signal.signal(signal.SIGINT, signal.default_int_handler)
if hasattr(signal, "SIGHUP"):
    signal.signal(signal.SIGHUP, signal.SIG_DFL)

# Models this small gain nothing from more threads, and suites often share their machine.
os.environ["OMP_NUM_THREADS"] = "1"

import pytest
import torch

from data.tokenizer import build_tokenizer
from model import GPT, GPTConfig


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def tokenizer():
    return build_tokenizer(1)


@pytest.fixture
def small_gpt(tokenizer):
    """Builds a small random GPT. Its weights are large, so that the likeliest tokens are no near-ties."""

    def build(**overrides) -> GPT:
        torch.manual_seed(1)
        sizes = dict(n_layer=2, n_head=4, n_kv_head=4, dim=32, head_dim=8, ffn_dim=48, max_len=128)
        model = GPT(GPTConfig(**{"vocab_size": tokenizer.vocab_size, **sizes, **overrides}))
        for parameter in model.parameters():  # new blocks are the identity, which hides faults of attention
            torch.nn.init.normal_(parameter, std=0.3)
        return model

    return build


@pytest.fixture(scope="session")
def qwen(tmp_path_factory):
    """The folder of a random Qwen 2 with its tokenizer."""
    pytest.importorskip("tokenizers")
    pytest.importorskip("safetensors")
    from pretrained import write_qwen

    folder = tmp_path_factory.mktemp("pretrained") / "qwen"
    write_qwen(folder)
    return folder
