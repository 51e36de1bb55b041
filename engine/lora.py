"""LoRA: small matrices beside the frozen weights learn in their place (Hu et al., arXiv 2106.09685)."""

import copy

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from engine.memory import empty_gpt
from model import GPT


class LoRALinear(nn.Module):
    """y = W x + bias + s B A x (eq. 3). W and bias are frozen; A and B learn. B starts at zero."""

    SCALE = 2.0  # the usual alpha / rank; another value would act like another learning rate

    def __init__(self, layer: nn.Linear, rank: int):
        super().__init__()
        self.weight, self.bias = layer.weight, layer.bias
        out_dim, in_dim = self.weight.shape
        self.lora_a = nn.Parameter(torch.empty(rank, in_dim, device=self.weight.device))  # always float32
        self.lora_b = nn.Parameter(torch.zeros(out_dim, rank, device=self.weight.device))
        nn.init.normal_(self.lora_a, std=in_dim**-0.5)

    def forward(self, x: Tensor) -> Tensor:
        update = F.linear(F.linear(x, self.lora_a.to(x.dtype)), self.lora_b.to(x.dtype))
        return F.linear(x, self.weight, self.bias) + self.SCALE * update


def add_lora(model: GPT, rank: int) -> GPT:
    """Freezes the model and puts an adapter on each linear layer of its blocks. Ours: q, k, v share one A."""
    model.requires_grad_(False)
    for part in [part for block in model.blocks for part in (block.attn, block.mlp)]:
        for name, layer in list(part.named_children()):
            if isinstance(layer, nn.Linear):
                setattr(part, name, LoRALinear(layer, rank))
    return model


def without_lora(model: GPT) -> GPT:
    """The model without its adapters, frozen. It shares the weights, so as a reference it costs no memory."""
    plain = empty_gpt(model.config)
    weights = {name: p for name, p in model.state_dict().items() if ".lora_" not in name}
    plain.load_state_dict(weights, assign=True)
    return plain.requires_grad_(False)


def merge_lora(model: GPT) -> GPT:
    """A plain model with weights of its own, W + s B A: what the adapters learned, without the adapters."""
    plain = copy.deepcopy(without_lora(model))
    for name, layer in model.named_modules():
        if isinstance(layer, LoRALinear):
            update = (layer.SCALE * layer.lora_b @ layer.lora_a).detach()
            plain.get_submodule(name).weight += update.to(layer.weight.dtype)
    if plain.config.tie_weights:
        plain.lm_head.weight = plain.embed.weight
    return plain
