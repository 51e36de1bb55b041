"""A GPT-style decoder with a KV cache. By its config it is GPT-2, or a modern block as in Llama and Qwen.

The rows of a batch differ in length and are padded on the right. In a causal model a token sees nothing to
its right, so the padding needs no mask, and every token keeps its true position. Left padding would shift it.
"""

import functools
import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint


@dataclass(frozen=True)
class GPTConfig:
    """The defaults are the toy's block. The sizes of a run or of a checkpoint override them."""

    vocab_size: int
    n_layer: int = 2
    n_head: int = 4
    n_kv_head: int = 4  # fewer than n_head: grouped-query attention
    dim: int = 128
    head_dim: int = 32  # its own number, because some checkpoints have head_dim * n_head != dim
    ffn_dim: int = 384  # three matrices of 3 * dim: about as many weights as two of 4 * dim
    max_len: int = 256  # longest sequence
    norm: str = "rms"  # "rms" | "layer"
    position: str = "rope"  # "rope" | "learned"
    mlp: str = "swiglu"  # "swiglu" | "gelu"
    bias: bool = False  # in every linear layer and LayerNorm, as in GPT-2
    qkv_bias: bool = False  # for q, k and v alone, as in Qwen 2
    qk_norm: bool = True  # RMSNorm on each head's q and k, as in Qwen 3: steadier at high learning rates
    tie_weights: bool = False  # the output head is the embedding table
    rope_theta: float = 10000.0
    rope_llama3: tuple[float, float, float, int] | None = None  # see rope_frequencies
    norm_eps: float = 1e-5

    def __post_init__(self):
        if self.n_head % self.n_kv_head:
            raise ValueError(f"n_head={self.n_head} is not a multiple of n_kv_head={self.n_kv_head}")
        if self.position == "rope" and self.head_dim % 2:
            raise ValueError(f"head_dim={self.head_dim} is odd, but RoPE turns pairs of numbers")


class KVCache:
    """Keys and values of each row's first `lengths[b]` tokens. Rows grow at their own pace and have no holes.

    A forward pass writes its T tokens behind each row's valid ones and leaves `lengths` alone. `keep` or
    `advance` then says how many of them count; the next pass overwrites the others.
    """

    def __init__(self, config: GPTConfig, batch: int, max_len: int, device=None, dtype=None):
        shape = (config.n_layer, 2, batch, config.n_kv_head, max_len, config.head_dim)
        self.data = torch.zeros(shape, device=device, dtype=dtype)
        self.lengths = torch.zeros(batch, dtype=torch.long, device=device)  # [B], only changed in place
        self.longest = 0  # a bound of `lengths` that the host knows, so that no step waits for the device

    def keep(self, lengths: list[int]) -> None:
        """From now on row b has `lengths[b]` tokens."""
        self.lengths.copy_(torch.tensor(lengths))
        self.longest = max(lengths)

    def advance(self) -> None:
        """Each row keeps one token more."""
        self.lengths += 1
        self.longest += 1

    def write(self, layer: int, k: Tensor, v: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
        """Stores k and v [B, Hkv, T, D] at `positions` [B, T]; returns both up to column longest + T."""
        rows, end = torch.arange(len(k), device=k.device)[:, None], self.longest + k.shape[2]
        keys, values = self.data[layer, ..., :end, :]
        for stored, new in ((keys, k), (values, v)):
            stored.transpose(1, 2)[rows, positions] = new.transpose(1, 2).to(stored.dtype)
        return keys, values


@functools.lru_cache
def rope_frequencies(config: GPTConfig, device: torch.device) -> Tensor:
    """How far each pair of numbers turns per position: theta^(-2i / head_dim) radians, [head_dim / 2].

    RoPE is Su et al., arXiv 2104.09864, eq. 15. Llama 3.1 stretches it for longer texts (`rope_llama3` is
    factor, low, high, original length). A pair that turns fewer than `low` times in the original length is
    slowed down by `factor`, one that turns more than `high` times is kept, and between the two we
    interpolate. Always float32, because bfloat16 can't tell positions above 256 apart.
    """
    D = config.head_dim
    frequencies = 1.0 / config.rope_theta ** (torch.arange(0, D, 2, device=device, dtype=torch.float32) / D)
    if config.rope_llama3 is None:
        return frequencies
    factor, low, high, length = config.rope_llama3
    kept = ((length * frequencies / (2 * math.pi) - low) / (high - low)).clamp(0, 1)
    return (1 - kept) * frequencies / factor + kept * frequencies


def rope(config: GPTConfig, positions: Tensor) -> tuple[Tensor, Tensor]:
    """cos and sin [..., head_dim] of the angles at `positions` [...].

    Numbers i and i + head_dim / 2 form a pair, as in Hugging Face checkpoints. The first half of sin has the
    minus sign of the rotation.
    """
    angles = positions[..., None] * rope_frequencies(config, positions.device)
    cos, sin = angles.cos(), angles.sin()
    return torch.cat((cos, cos), -1), torch.cat((-sin, sin), -1)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turns each pair of x [B, T, H, D] by its position's angle, cos and sin [B or 1, T, 1, D]."""
    swapped = x.roll(x.shape[-1] // 2, -1)  # the halves exchanged
    return torch.addcmul(x * cos.to(x.dtype), swapped, sin.to(x.dtype))


def make_norm(config: GPTConfig, dim: int) -> nn.Module:
    if config.norm == "layer":
        return nn.LayerNorm(dim, eps=config.norm_eps, bias=config.bias)
    return nn.RMSNorm(dim, eps=config.norm_eps)


class Attention(nn.Module):
    def __init__(self, config: GPTConfig):
        super().__init__()
        self.config = config
        self.q_dim, self.kv_dim = config.n_head * config.head_dim, config.n_kv_head * config.head_dim
        self.qkv = nn.Linear(config.dim, self.q_dim + 2 * self.kv_dim, bias=config.bias or config.qkv_bias)
        self.out = nn.Linear(self.q_dim, config.dim, bias=config.bias)
        if config.qk_norm:
            self.q_norm = nn.RMSNorm(config.head_dim, eps=config.norm_eps)
            self.k_norm = nn.RMSNorm(config.head_dim, eps=config.norm_eps)

    def forward(self, x: Tensor, layer: int, positions: Tensor, angles, mask, cache) -> Tensor:
        c, (B, T, _) = self.config, x.shape
        q, k, v = self.qkv(x).split((self.q_dim, self.kv_dim, self.kv_dim), dim=-1)
        q = q.view(B, T, c.n_head, c.head_dim)
        k, v = (t.view(B, T, c.n_kv_head, c.head_dim) for t in (k, v))
        if c.qk_norm:
            q, k = self.q_norm(q), self.k_norm(k)
        if angles is not None:
            q, k = rotate(q, *angles), rotate(k, *angles)
        q, k, v = (t.transpose(1, 2) for t in (q, k, v))  # [B, H or Hkv, T, D]
        if cache is not None:
            k, v = cache.write(layer, k, v, positions)  # [B, Hkv, S, D]
        shared = c.n_kv_head < c.n_head
        y = F.scaled_dot_product_attention(q, k, v, mask, is_causal=mask is None, enable_gqa=shared)
        return self.out(y.transpose(1, 2).reshape(B, T, self.q_dim))  # [B, T, C]


class MLP(nn.Module):
    def __init__(self, config: GPTConfig):
        super().__init__()
        self.gated = config.mlp == "swiglu"
        self.up = nn.Linear(config.dim, config.ffn_dim * (2 if self.gated else 1), bias=config.bias)
        self.down = nn.Linear(config.ffn_dim, config.dim, bias=config.bias)

    def forward(self, x: Tensor) -> Tensor:
        if self.gated:
            gate, x = self.up(x).chunk(2, dim=-1)
            return self.down(F.silu(gate) * x)
        return self.down(F.gelu(self.up(x), approximate="tanh"))  # as in GPT-2


class Block(nn.Module):
    def __init__(self, config: GPTConfig):
        super().__init__()
        self.attn_norm, self.attn = make_norm(config, config.dim), Attention(config)
        self.mlp_norm, self.mlp = make_norm(config, config.dim), MLP(config)

    def forward(self, x: Tensor, *attention_args) -> Tensor:
        x = x + self.attn(self.attn_norm(x), *attention_args)
        return x + self.mlp(self.mlp_norm(x))


class GPT(nn.Module):
    """Ids to logits. `hidden` and `head` are the halves of `forward`, for callers that need few logits."""

    def __init__(self, config: GPTConfig):
        super().__init__()
        self.config = config
        self.embed = nn.Embedding(config.vocab_size, config.dim)
        if config.position == "learned":
            self.position = nn.Embedding(config.max_len, config.dim)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.n_layer))
        self.norm = make_norm(config, config.dim)
        self.lm_head = nn.Linear(config.dim, config.vocab_size, bias=False)
        if config.tie_weights:
            self.lm_head.weight = self.embed.weight
        self.recompute = False  # True: blocks keep only their input and run again in the backward pass
        self.apply(self._init)

    def _init(self, module: nn.Module) -> None:
        if isinstance(module, nn.Linear | nn.Embedding):
            nn.init.normal_(module.weight, std=module.weight.shape[-1] ** -0.5)  # outputs of variance 1
        if isinstance(module, nn.Linear) and module.bias is not None:
            nn.init.zeros_(module.bias)
        if isinstance(module, Block):  # each block starts as the identity, so depth does not swell the sum
            nn.init.zeros_(module.attn.out.weight)
            nn.init.zeros_(module.mlp.down.weight)

    def hidden(self, ids: Tensor, cache: KVCache | None = None) -> Tensor:
        """Final hidden states [B, T, C] of ids [B, T]. With a cache the ids continue each row of it.

        ValueError if a row would outgrow `max_len`.
        """
        T = ids.shape[1]
        end = T + (cache.longest if cache is not None else 0)
        self.check_length(end)
        steps = torch.arange(T, device=ids.device)
        positions, mask = steps[None], None  # [1, T]
        if cache is not None:
            positions = cache.lengths[:, None] + steps  # [B, T]
            if cache.longest:  # else causality is mask enough, as nothing stands before these tokens
                columns = torch.arange(end, device=ids.device)
                mask = (columns <= positions[:, :, None])[:, None]  # [B, 1, T, S] its own past
        x, angles = self.embed(ids), None  # [B, T, C]
        if self.config.position == "learned":
            x = x + self.position(positions)
        else:
            angles = rope(self.config, positions[:, :, None])  # [B or 1, T, 1, D] each
        for layer, block in enumerate(self.blocks):
            if self.recompute and torch.is_grad_enabled():
                x = checkpoint(block, x, layer, positions, angles, mask, cache, use_reentrant=False)
            else:
                x = block(x, layer, positions, angles, mask, cache)
        return self.norm(x)

    def check_length(self, length: int) -> None:
        longest = self.config.max_len
        if length > longest:
            raise ValueError(f"a row of {length} tokens exceeds max_len={longest}: lower turns or max_new")

    def head(self, hidden: Tensor) -> Tensor:
        """Logits [..., V] of hidden states [..., C]."""
        return self.lm_head(hidden)

    def forward(self, ids: Tensor, cache: KVCache | None = None) -> Tensor:
        """Logits [B, T, V] of ids [B, T]: position t scores the token that follows ids[:, t]."""
        return self.head(self.hidden(ids, cache))
