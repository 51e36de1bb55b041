"""A GPT-style decoder: one class that is GPT-2's block or the modern one, by its config, and a KV cache.

Rows of a batch are of different lengths and are padded on the right: in a causal model a token sees nothing to its right,
so padding needs no mask, and every token keeps its true position (which left padding would shift).
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@dataclass
class GPTConfig:
    """The defaults are the toy model; `GPTConfig.gpt2()` has GPT-2's block."""

    vocab_size: int
    n_layer: int = 2
    n_head: int = 4
    n_kv_head: int = 4  # fewer than n_head: grouped-query attention
    dim: int = 128
    head_dim: int = 32  # given apart: some checkpoints have head_dim * n_head != dim
    ffn_dim: int = 384  # SwiGLU has three matrices, so 3 * dim costs about what 4 * dim costs a GELU block
    max_len: int = 256  # longest sequence: a table for learned positions, a bound for the cache
    norm: str = "rms"  # "rms" | "layer"
    position: str = "rope"  # "rope" | "learned"
    mlp: str = "swiglu"  # "swiglu" | "gelu"
    bias: bool = False  # on every linear layer and LayerNorm, as in GPT-2
    qkv_bias: bool = False  # on q, k, v alone, as in Qwen 2
    qk_norm: bool = True  # RMSNorm on each head's q and k, as in Qwen 3: steadier at high learning rates
    tie_weights: bool = False  # the output head is the embedding table
    rope_theta: float = 10000.0
    norm_eps: float = 1e-5

    def __post_init__(self):
        for name, allowed in (("norm", ("rms", "layer")), ("position", ("rope", "learned")), ("mlp", ("swiglu", "gelu"))):
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name}={getattr(self, name)!r}: choose one of {', '.join(allowed)}")
        if self.n_head % self.n_kv_head:
            raise ValueError(f"n_head={self.n_head} is not a multiple of n_kv_head={self.n_kv_head}")
        if self.position == "rope" and self.head_dim % 2:
            raise ValueError(f"head_dim={self.head_dim} is odd: RoPE turns pairs of numbers")

    @classmethod
    def gpt2(cls, **overrides):
        """GPT-2's block; sizes are those of the 124 M model unless overridden."""
        sizes = dict(vocab_size=50257, n_layer=12, n_head=12, n_kv_head=12, dim=768, head_dim=64, ffn_dim=3072, max_len=1024)
        block = dict(norm="layer", position="learned", mlp="gelu", bias=True, qk_norm=False, tie_weights=True)
        return cls(**{**sizes, **block, **overrides})


class KVCache:
    """Keys and values of each row's first `lengths[b]` tokens, without holes: rows grow at their own pace.

    A forward pass writes its T tokens behind each row's valid ones and leaves `lengths` alone; `advance` then says how
    many of them count. What lies beyond is overwritten by the next pass, so right padding and finished rows cost nothing.
    """

    def __init__(self, config: GPTConfig, batch: int, max_len: int, device=None, dtype=None):
        shape = (config.n_layer, 2, batch, max_len, config.n_kv_head, config.head_dim)
        self.data = torch.zeros(shape, device=device, dtype=dtype)
        self.lengths = torch.zeros(batch, dtype=torch.long, device=device)  # [B]
        self.longest = 0  # host copy of lengths.max(), so that no step waits for the device

    def advance(self, counts: Tensor, longest: int) -> None:
        """Row b keeps `counts[b]` [B] of the tokens just written; `longest` bounds the new lengths."""
        self.lengths = self.lengths + counts
        self.longest = longest

    def write(self, layer: int, k: Tensor, v: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
        """Stores k, v [B, T, Hkv, D] at `positions` [B, T]; returns all keys and values so far, [B, S, Hkv, D] each."""
        rows = torch.arange(len(k), device=k.device)[:, None]
        keys, values = self.data[layer]
        keys[rows, positions], values[rows, positions] = k.to(keys.dtype), v.to(keys.dtype)
        end = self.longest + k.shape[1]
        return keys[:, :end], values[:, :end]


def rope_tables(config: GPTConfig) -> tuple[Tensor, Tensor]:
    """cos and sin [max_len, head_dim] of position * theta^(-2i / head_dim) (Su et al., arXiv 2104.09864, eq. 15).

    Numbers i and i + head_dim / 2 form a pair (the Hugging Face layout); the sign of the turn is in the first half of sin.
    """
    frequencies = config.rope_theta ** (-torch.arange(0, config.head_dim, 2) / config.head_dim)
    angles = torch.arange(config.max_len)[:, None] * frequencies
    return torch.cat((angles.cos(), angles.cos()), -1), torch.cat((-angles.sin(), angles.sin()), -1)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turns each pair of x [B, T, H, D] by its position's angle, cos and sin [B or 1, T, 1, D]."""
    half, cos, sin = x.shape[-1] // 2, cos.to(x.dtype), sin.to(x.dtype)
    swap = torch.eye(2 * half, dtype=x.dtype, device=x.device).roll(half, 0)  # [D, D]: x @ swap exchanges the halves,
    return x * cos + (x @ swap) * sin  # which on a CPU is cheaper than slicing and concatenating them


def make_norm(config: GPTConfig, dim: int) -> nn.Module:
    if config.norm == "layer":
        return nn.LayerNorm(dim, eps=config.norm_eps, bias=config.bias)
    return RMSNorm(dim, eps=config.norm_eps)


class RMSNorm(nn.RMSNorm):
    """torch's own, which leaves its fast path if the weight is of another type than x, as it is under autocast."""

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x, self.normalized_shape, self.weight.to(x.dtype), self.eps)


class Attention(nn.Module):
    def __init__(self, config: GPTConfig):
        super().__init__()
        self.config = config
        self.q_dim, self.kv_dim = config.n_head * config.head_dim, config.n_kv_head * config.head_dim
        self.qkv = nn.Linear(config.dim, self.q_dim + 2 * self.kv_dim, bias=config.bias or config.qkv_bias)
        self.out = nn.Linear(self.q_dim, config.dim, bias=config.bias)
        if config.qk_norm:
            self.q_norm = RMSNorm(config.head_dim, eps=config.norm_eps)
            self.k_norm = RMSNorm(config.head_dim, eps=config.norm_eps)

    def forward(self, x: Tensor, layer: int, positions: Tensor, rope, mask, cache: KVCache | None) -> Tensor:
        c = self.config
        B, T, _ = x.shape
        q, k, v = self.qkv(x).split((self.q_dim, self.kv_dim, self.kv_dim), dim=-1)
        q = q.view(B, T, c.n_head, c.head_dim)
        k, v = (t.view(B, T, c.n_kv_head, c.head_dim) for t in (k, v))
        if c.qk_norm:
            q, k = self.q_norm(q), self.k_norm(k)
        if rope is not None:
            q, k = rotate(q, *rope), rotate(k, *rope)
        if cache is not None:
            k, v = cache.write(layer, k, v, positions)  # [B, S, Hkv, D]
        q, k, v = (t.transpose(1, 2) for t in (q, k, v))  # [B, H, T or S, D]
        y = F.scaled_dot_product_attention(
            q, k, v, attn_mask=mask, is_causal=mask is None, enable_gqa=c.n_kv_head < c.n_head
        )  # [B, H, T, D]
        return self.out(y.transpose(1, 2).reshape(B, T, self.q_dim))


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
        return self.down(F.gelu(self.up(x), approximate="tanh"))  # the tanh form is the one GPT-2 was trained with


class Block(nn.Module):
    def __init__(self, config: GPTConfig):
        super().__init__()
        self.attn_norm, self.attn = make_norm(config, config.dim), Attention(config)
        self.mlp_norm, self.mlp = make_norm(config, config.dim), MLP(config)

    def forward(self, x: Tensor, *attention_args) -> Tensor:
        x = x + self.attn(self.attn_norm(x), *attention_args)
        return x + self.mlp(self.mlp_norm(x))


class GPT(nn.Module):
    """`forward(ids, cache=None) -> logits`; `hidden` and `head` are its two halves, for callers that need few logits."""

    def __init__(self, config: GPTConfig):
        super().__init__()
        self.config = config
        self.embed = nn.Embedding(config.vocab_size, config.dim)
        if config.position == "learned":
            self.position = nn.Embedding(config.max_len, config.dim)
        else:
            for name, table in zip(("cos", "sin"), rope_tables(config), strict=True):
                self.register_buffer(name, table, persistent=False)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.n_layer))
        self.norm = make_norm(config, config.dim)
        self.lm_head = nn.Linear(config.dim, config.vocab_size, bias=False)
        if config.tie_weights:
            self.lm_head.weight = self.embed.weight
        self.apply(self._init)

    def _init(self, module: nn.Module) -> None:
        if isinstance(module, nn.Linear | nn.Embedding):
            nn.init.normal_(module.weight, std=0.02)
        if isinstance(module, nn.Linear) and module.bias is not None:
            nn.init.zeros_(module.bias)
        if isinstance(module, Block):  # each block starts as the identity: 2 * n_layer additions would else swell the sum
            nn.init.zeros_(module.attn.out.weight)
            nn.init.zeros_(module.mlp.down.weight)

    def hidden(self, ids: Tensor, cache: KVCache | None = None) -> Tensor:
        """Final hidden states [B, T, C] of ids [B, T]; with a cache the ids continue each row behind its cached tokens.

        Raises ValueError if a row would outgrow `max_len`.
        """
        T = ids.shape[1]
        end = T + (cache.longest if cache is not None else 0)
        if end > self.config.max_len:
            raise ValueError(
                f"a sequence of {end} tokens is longer than max_len={self.config.max_len}: fewer turns or a smaller max_new fit"
            )
        steps = torch.arange(T, device=ids.device)
        positions, mask = steps[None], None  # [1, T]
        if cache is not None:
            positions = cache.lengths[:, None] + steps  # [B, T]
            mask = torch.arange(end, device=ids.device) <= positions[:, :, None]  # [B, T, S]: each token sees its own past
            mask = mask[:, None]  # [B, 1, T, S]
        x, rope = self.embed(ids), None  # [B, T, C]
        if self.config.position == "learned":
            x = x + self.position(positions)
        else:
            rope = self.cos[positions][:, :, None], self.sin[positions][:, :, None]  # [B or 1, T, 1, D]
        for layer, block in enumerate(self.blocks):
            x = block(x, layer, positions, rope, mask, cache)
        return self.norm(x)

    def head(self, hidden: Tensor) -> Tensor:
        """Logits [..., V] of hidden states [..., C]."""
        return self.lm_head(hidden)

    def forward(self, ids: Tensor, cache: KVCache | None = None) -> Tensor:
        """Logits [B, T, V] of ids [B, T]: position t scores the token that follows ids[:, t]."""
        return self.head(self.hidden(ids, cache))
