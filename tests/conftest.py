"""Small things that the tests share. Nothing here needs a GPU, a network or more than a few seconds."""

import os

os.environ["OMP_NUM_THREADS"] = (
    "1"  # models this small gain nothing from more, and suites often share their machine
)

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
    """Builds a small random GPT in float64-comparable float32; its head is scaled up so that its choices are
    not near-ties.
    """

    def build(**overrides) -> GPT:
        torch.manual_seed(1)
        sizes = dict(
            vocab_size=tokenizer.vocab_size,
            n_layer=2,
            n_head=4,
            n_kv_head=4,
            dim=32,
            head_dim=8,
            ffn_dim=48,
            max_len=128,
        )
        model = GPT(GPTConfig(**{**sizes, **overrides}))
        for parameter in (
            model.parameters()
        ):  # untrained blocks start as the identity: shake them, else attention is untested
            torch.nn.init.normal_(parameter, std=0.3)
        return model

    return build
