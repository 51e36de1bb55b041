"""A GPT-style decoder: one class that is GPT-2's block or the modern one, by its config, a KV cache, LoRA, sharding, and the
reading and writing of Hugging Face checkpoints (GPT-2, Llama, SmolLM2, Qwen 2 and 3).

Rows of a batch are of different lengths and are padded on the right: in a causal model a token sees nothing to its right,
so padding needs no mask, and every token keeps its true position (which left padding would shift).
"""

import functools
import json
import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.utils.checkpoint import checkpoint

from data.checkpoints import config_from, counterparts, description_of, read_json, tensors_in


@dataclass(frozen=True)
class GPTConfig:
    """The defaults are a block like the toy's, whose sizes train.py sets; `GPTConfig.gpt2()` has GPT-2's block."""

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
    rope_llama3: tuple[float, float, float, int] | None = None  # factor, low, high, original length: see rope_frequencies
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
    many of them count. What lies beyond is overwritten by the next pass, so right padding costs nothing. A pass of fewer
    rows than the cache has continues its first rows: those that are to rest are put behind them by `swap`.
    """

    def __init__(self, config: GPTConfig, batch: int, max_len: int, device=None, dtype=None):
        shape = (config.n_layer, 2, batch, config.n_kv_head, max_len, config.head_dim)
        self.data = torch.zeros(shape, device=device, dtype=dtype)
        self.lengths = torch.zeros(batch, dtype=torch.long, device=device)  # [B]
        self.longest = 0  # host copy of lengths.max(), so that no step waits for the device

    def advance(self, counts: Tensor, longest: int) -> None:
        """Row b keeps `counts[b]` [B] of the tokens just written; `longest` bounds the new lengths."""
        self.lengths = self.lengths + counts
        self.longest = longest

    def swap(self, a: Tensor, b: Tensor) -> None:
        """Rows a [n] and rows b [n] change places."""
        new, old = torch.cat((a, b)), torch.cat((b, a))
        self.data[:, :, new, :, : self.longest] = self.data[:, :, old, :, : self.longest]
        self.lengths[new] = self.lengths[old]

    def write(self, layer: int, k: Tensor, v: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
        """Stores k, v [B, Hkv, T, D] at `positions` [B, T]; returns all keys and values so far, [B, Hkv, S, D] each."""
        rows, end = torch.arange(len(k), device=k.device)[:, None], self.longest + k.shape[2]
        keys, values = self.data[layer, :, : len(k), :, :end]
        for stored, new in ((keys, k), (values, v)):
            stored.transpose(1, 2)[rows, positions] = new.transpose(1, 2).to(stored.dtype)
        return keys, values


@functools.lru_cache
def rope_frequencies(config: GPTConfig, device: torch.device) -> Tensor:
    """How far each pair of numbers turns from a position to the next, [head_dim / 2] radians: theta^(-2i / head_dim).

    RoPE is Su et al., arXiv 2104.09864, eq. 15. Llama 3.1 stretches it to longer texts: a pair that turns fewer than `low`
    times in the original length is slowed down by `factor`, one that turns more than `high` times is kept, and between them
    it is interpolated. Always float32: in bfloat16 positions above 256 would run together.
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

    Numbers i and i + head_dim / 2 form a pair (the Hugging Face layout); the sign of the turn is in the first half of sin.
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
    return RMSNorm(dim, eps=config.norm_eps)


class RMSNorm(nn.RMSNorm):
    """torch's own, which leaves its fast path if the weight is of another type than x, as it is under autocast."""

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x, self.normalized_shape, self.weight.to(x.dtype), self.eps)


class Linear(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return linear(x, self.weight, self.bias)


class Attention(nn.Module):
    def __init__(self, config: GPTConfig):
        super().__init__()
        self.config = config
        self.q_dim, self.kv_dim = config.n_head * config.head_dim, config.n_kv_head * config.head_dim
        self.qkv = Linear(config.dim, self.q_dim + 2 * self.kv_dim, bias=config.bias or config.qkv_bias)
        self.out = Linear(self.q_dim, config.dim, bias=config.bias)
        if config.qk_norm:
            self.q_norm = RMSNorm(config.head_dim, eps=config.norm_eps)
            self.k_norm = RMSNorm(config.head_dim, eps=config.norm_eps)

    def forward(self, x: Tensor, layer: int, positions: Tensor, angles, mask, cache: KVCache | None) -> Tensor:
        c = self.config
        B, T, _ = x.shape
        q, k, v = self.qkv(x).split((self.q_dim, self.kv_dim, self.kv_dim), dim=-1)
        q = q.view(B, T, c.n_head, c.head_dim)
        k, v = (t.view(B, T, c.n_kv_head, c.head_dim) for t in (k, v))
        if c.qk_norm:
            q, k = self.q_norm(q), self.k_norm(k)
        if angles is not None:
            q, k = rotate(q, *angles), rotate(k, *angles)
        q, k, v = (t.transpose(1, 2) for t in (q, k, v))  # [B, H, T, D]
        if cache is not None:
            k, v = cache.write(layer, k, v, positions)  # [B, Hkv, S, D]
        y = F.scaled_dot_product_attention(
            q, k, v, attn_mask=mask, is_causal=mask is None, enable_gqa=c.n_kv_head < c.n_head
        )  # [B, H, T, D]
        return self.out(y.transpose(1, 2).reshape(B, T, self.q_dim))


class MLP(nn.Module):
    def __init__(self, config: GPTConfig):
        super().__init__()
        self.gated = config.mlp == "swiglu"
        self.up = Linear(config.dim, config.ffn_dim * (2 if self.gated else 1), bias=config.bias)
        self.down = Linear(config.ffn_dim, config.dim, bias=config.bias)

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
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.n_layer))
        self.norm = make_norm(config, config.dim)
        self.lm_head = Linear(config.dim, config.vocab_size, bias=False)
        if config.tie_weights:
            self.lm_head.weight = self.embed.weight
        self.recompute = False  # True: blocks keep only their input for the backward pass and are run again there
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
        self.check_length(end)
        steps = torch.arange(T, device=ids.device)
        positions, mask = steps[None], None  # [1, T]
        if cache is not None:
            positions = cache.lengths[: len(ids), None] + steps  # [B, T]
            if cache.longest:  # else nothing is before these tokens, and causality is mask enough
                mask = (torch.arange(end, device=ids.device) <= positions[:, :, None])[:, None]  # [B, 1, T, S] its own past
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
        if length > self.config.max_len:
            raise ValueError(
                f"a sequence of {length} tokens is longer than max_len={self.config.max_len}: fewer turns or a smaller max_new fit"
            )

    def head(self, hidden: Tensor) -> Tensor:
        """Logits [..., V] of hidden states [..., C]."""
        return self.lm_head(hidden)

    def forward(self, ids: Tensor, cache: KVCache | None = None) -> Tensor:
        """Logits [B, T, V] of ids [B, T]: position t scores the token that follows ids[:, t]."""
        return self.head(self.hidden(ids, cache))

    @classmethod
    def from_pretrained(cls, folder: str | Path, device="cpu", dtype: torch.dtype = torch.float32) -> "GPT":
        """The model of a Hugging Face checkpoint folder: config.json and .safetensors or .bin files, one or several.

        Tensors are read one at a time, straight into the model: memory peaks at the model and its largest tensor. ValueError,
        in one line, for an unsupported architecture or option and for a missing, surplus or misshaped tensor.
        """
        config = GPTConfig(**config_from(read_json(Path(folder) / "config.json")))
        files, read = tensors_in(Path(folder))
        with torch.device("meta"):
            model = cls(config)
        own = {name: p for name, p in model.state_dict().items() if not (config.tie_weights and name == "lm_head.weight")}
        wanted = {their for name, p in own.items() for their, _ in counterparts(name, p, config)}
        ignored = r".*\.(attn\.(bias|masked_bias)|rotary_emb\.inv_freq)" + ("|lm_head.weight" if config.tie_weights else "")
        surplus = sorted(their for their in files.keys() - wanted if not re.fullmatch(ignored, their))
        for problem, names in (("no tensor", sorted(wanted - files.keys())), ("a tensor too many,", surplus)):
            if names:
                raise ValueError(f"{folder} has {problem} {names[0]} ({len(names)} such): it does not fit its config.json")
        model = model.to(dtype).to_empty(device=device)
        if config.tie_weights:
            model.lm_head.weight = model.embed.weight
        weights = model.state_dict()
        for name in own:
            for their, view in counterparts(name, weights[name], config):
                tensor = read(their)
                if tensor.shape != view.shape:
                    shapes = f"the shape {list(tensor.shape)}, config.json asks for {list(view.shape)}"
                    raise ValueError(f"{folder}: {their} has {shapes}")
                view.copy_(tensor)
        if config.tie_weights and "lm_head.weight" in files and not torch.equal(read("lm_head.weight").to(model.embed.weight),
                                                                                model.embed.weight):  # fmt: skip
            raise ValueError(f"{folder}: config.json ties lm_head.weight to the embedding, but it is another one")
        return model

    def save_pretrained(self, folder: str | Path) -> None:
        """Writes config.json and model.safetensors, which `from_pretrained` and transformers read back to the same logits."""
        try:
            from safetensors.torch import save_file
        except ImportError:
            raise ValueError("writing .safetensors needs: pip install -e .[pretrained]") from None
        description = description_of(self.config) | {"torch_dtype": str(self.embed.weight.dtype).removeprefix("torch.")}
        Path(folder).mkdir(parents=True, exist_ok=True)
        own = {name: p for name, p in self.state_dict().items() if not (self.config.tie_weights and name == "lm_head.weight")}
        tensors = dict(pair for name, p in own.items() for pair in counterparts(name, p, self.config))
        save_file({their: t.contiguous() for their, t in tensors.items()}, Path(folder) / "model.safetensors", {"format": "pt"})
        (Path(folder) / "config.json").write_text(json.dumps(description, indent=1) + "\n")


# ------------------------------------------------------------------------------------------------------ products on CPUs
# Matrix products by oneDNN, the other CPU library inside torch: the same numbers as F.linear, up to twice as fast in float32.
#
# torch gives float32 products to MKL, which on AMD processors runs at half of what they can do; on Intel's it is the faster one.
# Nothing here is needed for a right result: without oneDNN, or elsewhere than on a CPU, F.linear does it.

INTEL = Path("/proc/cpuinfo").exists() and "GenuineIntel" in Path("/proc/cpuinfo").read_text()
ONEDNN = (  # False on Apple's and ARM processors, and if another torch has no such private operation
    torch.backends.mkldnn.is_available()
    and torch.backends.mkl.is_available()
    and all(hasattr(torch.ops.mkldnn, name) for name in ("_linear_pointwise", "_reorder_linear_weight"))
)


def product(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x [..., I] times weight [O, I], transposed, plus bias [O]: what F.linear does, without its gradient."""
    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")


class OneDNNLinear(torch.autograd.Function):
    """`product` with its gradient, three products in all."""

    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        return product(x, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor):
        x, weight = ctx.saved_tensors
        for_x, for_weight, for_bias = ctx.needs_input_grad
        rows = grad.reshape(-1, grad.shape[-1])  # [N, O]
        return (
            product(grad, weight.T) if for_x else None,
            product(rows.T, x.reshape(-1, x.shape[-1]).T) if for_weight else None,  # [O, I]
            rows.sum(0) if for_bias else None,
        )


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """F.linear, by oneDNN where that is faster: float32 on AMD's CPUs. In bfloat16 torch takes oneDNN by itself."""
    plain = not ONEDNN or INTEL or x.device.type != "cpu" or torch.is_autocast_enabled("cpu") or not x.numel()
    if plain or not x.dtype == weight.dtype == torch.float32:
        return F.linear(x, weight, bias)
    return OneDNNLinear.apply(x, weight, bias)


def packed(weight: Tensor, bias: Tensor | None, rows: int) -> Callable[[Tensor], Tensor]:
    """x -> linear(x, weight, bias) for many x of about `rows` rows, without gradient: the weight is laid out once for all.

    With 16 rows that is half as fast again as `product`, whose time goes into reading a weight in the order it is stored in.
    MKL wants small weights by columns, and is then up to twice as fast as oneDNN.
    """
    weight = weight.detach()
    if not (ONEDNN and weight.device.type == "cpu" and weight.dtype in (torch.float32, torch.bfloat16)):
        return lambda x: F.linear(x, weight, bias)
    if INTEL and weight.dtype == torch.float32 and weight.numel() < 2**20:
        by_columns = weight.T.contiguous().T
        return lambda x: F.linear(x, by_columns, bias)
    laid_out = torch.ops.mkldnn._reorder_linear_weight(weight, rows)
    return lambda x: product(x, laid_out, bias)


# ------------------------------------------------------------------------------------------------------ LoRA


class LoRALinear(nn.Module):
    """y = W x + bias + s B A x (Hu et al., arXiv 2106.09685, eq. 3): W and bias stay, only A and B learn. B is zero at first."""

    SCALE = 2.0  # the usual alpha / rank; a learning rate can do what another value would

    def __init__(self, linear: nn.Linear, rank: int):
        super().__init__()
        self.weight, self.bias = linear.weight, linear.bias
        self.lora_a = nn.Parameter(torch.empty(rank, self.weight.shape[1], device=self.weight.device))  # always float32
        self.lora_b = nn.Parameter(torch.zeros(self.weight.shape[0], rank, device=self.weight.device))
        nn.init.normal_(self.lora_a, std=self.weight.shape[1] ** -0.5)

    def update(self, x: Tensor) -> Tensor:
        return self.SCALE * linear(linear(x, self.lora_a.to(x.dtype)), self.lora_b.to(x.dtype))

    def forward(self, x: Tensor) -> Tensor:
        return linear(x, self.weight, self.bias) + self.update(x)


def add_lora(model: GPT, rank: int) -> GPT:
    """Freezes the model and gives each linear layer of its blocks an adapter, in place. q, k and v share one A (ours)."""
    model.requires_grad_(False)
    for block in model.blocks:
        for part in (block.attn, block.mlp):
            for name, layer in list(part.named_children()):
                if isinstance(layer, nn.Linear):
                    setattr(part, name, LoRALinear(layer, rank))
    return model


def without_lora(model: GPT) -> GPT:
    """The model with its adapters off, on the same weights: the reference policy costs no memory of its own."""
    with torch.device("meta"):
        plain = GPT(model.config)
    weights = {name: p for name, p in model.state_dict().items() if ".lora_" not in name}
    plain.load_state_dict(weights, assign=True)
    return plain.requires_grad_(False)


def merge_lora(model: GPT) -> GPT:
    """A plain model of its own weights W + s B A: what the adapters have learned, without them."""
    plain = without_lora(model)
    weights = {name: p.clone() for name, p in plain.state_dict().items()}
    for name, layer in model.named_modules():
        if isinstance(layer, LoRALinear):
            weight = weights[f"{name}.weight"]
            weight += (layer.SCALE * layer.lora_b @ layer.lora_a).detach().to(weight.dtype)
    plain.load_state_dict(weights, assign=True)
    if plain.config.tie_weights:
        plain.lm_head.weight = plain.embed.weight
    return plain


# ------------------------------------------------------------------------------------------------------ sharding


def shard(model: GPT, device: torch.device, saved: dict[str, Tensor] | None = None) -> None:
    """FSDP2, in place: each process keeps 1/N of every weight, and a block's are gathered when it runs. Alone: no change.

    With `saved`, the float32 weights of a stopped run or {}, the shards are kept in float32 to learn on; what is gathered has the
    model's precision. Embedding and head are gathered by `hidden` alone and stay until the backward pass is through: so `head`
    may be called as often as a process likes, and only `hidden` must be called equally often on all.
    """
    if not (dist.is_initialized() and dist.get_world_size() > 1):
        model.to(device)
        return
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard, register_fsdp_forward_method  # half a second

    model.gathered_dtype = model.embed.weight.dtype
    if saved is not None:
        model.float().load_state_dict(saved, strict=False)
    mesh = dist.init_device_mesh(device.type, (dist.get_world_size(),))
    for module in (*model.blocks, model):
        fully_shard(module, mesh=mesh, mp_policy=MixedPrecisionPolicy(model.gathered_dtype, torch.float32))
        module.set_gradient_divide_factor(1.0)  # gradients are summed: the losses are divided by the whole batch
        module.set_force_sum_reduction_for_comms(True)  # gloo has no scaled sum
    register_fsdp_forward_method(model, "hidden")


def is_sharded(value) -> bool:
    return hasattr(value, "full_tensor")


def whole(model: GPT) -> GPT:
    """The model itself or, of a sharded one, a plain copy, gathered once: for a whole rollout, not token by token."""
    if not hasattr(model, "gathered_dtype"):
        return model
    with torch.device("meta"):
        plain = GPT(model.config)
    weights = {name: p.detach().full_tensor().to(model.gathered_dtype) for name, p in model.named_parameters()}
    plain.load_state_dict(weights, strict=False, assign=True)
    if plain.config.tie_weights:
        plain.lm_head.weight = plain.embed.weight
    return plain


def gathered(content):
    """A checkpoint's content with sharded tensors made whole, one after the other, in the first process's host memory."""
    if isinstance(content, dict):
        return {key: gathered(value) for key, value in content.items()}
    if isinstance(content, list):
        return [gathered(value) for value in content]
    if not is_sharded(content):
        return content
    tensor = content.full_tensor()
    return tensor.cpu() if dist.get_rank() == 0 else None


def scattered(saved: dict, optimizer: torch.optim.Optimizer) -> dict:
    """A saved optimiser's state, of which each process takes its part where the weights are sharded."""
    weights = [p for group in optimizer.param_groups for p in group["params"]]

    def part(p: Tensor, value: Tensor) -> Tensor:
        if not is_sharded(p) or value.shape != p.shape:  # such as AdamW's count of steps
            return value
        return dist.tensor.distribute_tensor(value, p.device_mesh, p.placements, src_data_rank=None)

    return saved | {"state": {i: {k: part(weights[i], v) for k, v in s.items()} for i, s in saved["state"].items()}}
