"""Hugging Face checkpoint folders, read and written: GPT-2, Llama (and SmolLM2), Qwen 2 and Qwen 3.

First come the tables: what a config.json says in our terms, and which of their tensors is which of ours. Then
the files, which are read one tensor at a time. `load_pretrained` and `save_pretrained` put this together.
"""

import functools
import json
import re
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from data.reading import read_json, reading
from engine.checkpoints import gpt_config
from engine.memory import empty_gpt
from model import GPT, GPTConfig

GPT2_BLOCK = dict(norm="layer", position="learned", mlp="gelu", bias=True, qk_norm=False)


def gpt2_config(**overrides) -> GPTConfig:
    """GPT-2's block. The sizes are those of the 124 M model unless overridden."""
    sizes = dict(vocab_size=50257, n_layer=12, n_head=12, n_kv_head=12, dim=768, head_dim=64, ffn_dim=3072)
    return GPTConfig(**{**sizes, "max_len": 1024, **GPT2_BLOCK, "tie_weights": True, **overrides})


# What our modules are called in a Hugging Face file. Two or three names: ours has their rows one below the
# other.
LLAMA_NAMES = {  # Llama, SmolLM2, Qwen 2 and 3
    "embed": "model.embed_tokens",
    "blocks": "model.layers",
    "attn_norm": "input_layernorm",
    "attn.qkv": "self_attn.q_proj self_attn.k_proj self_attn.v_proj",
    "attn.q_norm": "self_attn.q_norm",
    "attn.k_norm": "self_attn.k_norm",
    "attn.out": "self_attn.o_proj",
    "mlp_norm": "post_attention_layernorm",
    "mlp.up": "mlp.gate_proj mlp.up_proj",
    "mlp.down": "mlp.down_proj",
    "norm": "model.norm",
    "lm_head": "lm_head",
}
GPT2_NAMES = {  # its layers are Conv1D, which keep their matrices transposed
    "embed": "transformer.wte",
    "position": "transformer.wpe",
    "blocks": "transformer.h",
    "attn_norm": "ln_1",
    "attn.qkv": "attn.c_attn",
    "attn.out": "attn.c_proj",
    "mlp_norm": "ln_2",
    "mlp.up": "mlp.c_fc",
    "mlp.down": "mlp.c_proj",
    "norm": "transformer.ln_f",
    "lm_head": "lm_head",
}


def counterparts(name: str, parameter: Tensor, config) -> list[tuple[str, Tensor]]:
    """The tensors of a Hugging Face file that make up one parameter: their names, and views of ours in their
    shapes.
    """
    gpt2 = config.position == "learned"
    names = GPT2_NAMES if gpt2 else LLAMA_NAMES
    layer, module, kind = re.fullmatch(r"(?:blocks\.(\d+)\.)?(.+)\.(weight|bias)", name).groups()
    where = f"{names['blocks']}.{layer}." if layer else ""
    theirs = [f"{where}{their}.{kind}" for their in names[module].split()]
    kv = config.n_kv_head * config.head_dim
    rows = {1: [len(parameter)], 2: [config.ffn_dim] * 2, 3: [config.n_head * config.head_dim, kv, kv]}[
        len(theirs)
    ]
    views = parameter.split(rows)
    return list(
        zip(theirs, [v.T for v in views] if gpt2 and layer and parameter.ndim == 2 else views, strict=True)
    )


# Options that change what a model computes and that ours has not: each is refused unless it is absent or has
# this value.
UNSUPPORTED = {
    "hidden_act": "silu",
    "activation_function": "gelu_new",
    "attention_bias": False,
    "mlp_bias": False,
    "rope_interleaved": False,
    "partial_rotary_factor": 1.0,
    "use_sliding_window": False,
    "attn_logit_softcapping": None,
    "final_logit_softcapping": None,
    "num_experts": None,
    "num_local_experts": None,
    "quantization_config": None,
    "scale_attn_weights": True,
    "scale_attn_by_inverse_layer_idx": False,
    "add_cross_attention": False,
}


def config_from(description: dict) -> dict:
    """The settings of our GPTConfig for the content of a Hugging Face config.json. ValueError names what is
    not supported.
    """
    d = description
    family = d.get("model_type")
    if family not in ("gpt2", "llama", "qwen2", "qwen3"):
        raise ValueError(
            f"model_type {family!r} is not supported: take a gpt2, llama, qwen2 or qwen3 checkpoint"
        )
    for key, fine in UNSUPPORTED.items():
        if d.get(key) not in (None, fine):
            raise ValueError(f"{key}={d[key]!r} is not supported (only {fine!r} is): take another checkpoint")
    if set(d.get("layer_types") or ()) - {"full_attention"} or (
        d.get("sliding_window") and "use_sliding_window" not in d
    ):
        raise ValueError(
            "sliding-window attention is not supported: take a checkpoint with full attention in all layers"
        )

    def given(key: str, default):
        return default if d.get(key) is None else d[key]

    try:
        if family == "gpt2":
            dim, heads = d["n_embd"], d["n_head"]
            return dict(
                **GPT2_BLOCK,
                vocab_size=d["vocab_size"],
                dim=dim,
                n_layer=d["n_layer"],
                n_head=heads,
                n_kv_head=heads,
                head_dim=dim // heads,
                ffn_dim=given("n_inner", 4 * dim),
                max_len=d["n_positions"],
                norm_eps=d.get("layer_norm_epsilon", 1e-5),
                tie_weights=d.get("tie_word_embeddings", True),
            )
        scaling = d.get("rope_parameters") or d.get("rope_scaling") or {}  # the first since transformers 5
        kind = scaling.get("rope_type", scaling.get("type", "default"))
        if kind not in ("default", "llama3") or scaling.get("partial_rotary_factor", 1.0) != 1.0:
            raise ValueError(
                f"rope scaling {scaling} is not supported (only llama3's is): take another checkpoint"
            )
        llama3 = ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings")
        heads = d["num_attention_heads"]
        return dict(
            vocab_size=d["vocab_size"],
            n_layer=d["num_hidden_layers"],
            n_head=heads,
            n_kv_head=given("num_key_value_heads", heads),
            dim=d["hidden_size"],
            ffn_dim=d["intermediate_size"],
            head_dim=given("head_dim", 128 if family == "qwen3" else d["hidden_size"] // heads),
            max_len=d["max_position_embeddings"],
            qkv_bias=family == "qwen2",
            qk_norm=family == "qwen3",
            tie_weights=d.get("tie_word_embeddings", False),
            norm_eps=d.get("rms_norm_eps", 1e-6),
            rope_theta=given("rope_theta", scaling.get("rope_theta", 10000.0)),
            rope_llama3=tuple(scaling[key] for key in llama3) if kind == "llama3" else None,
        )
    except KeyError as missing:
        raise ValueError(f"config.json has no {missing}: it does not describe a {family} model") from None


def description_of(config) -> dict:
    """The Hugging Face config.json of a config. ValueError for a block that no supported family has."""
    c = config
    block = (
        c.norm,
        c.mlp,
        c.bias,
        c.qk_norm,
        c.qkv_bias,
        c.n_kv_head == c.n_head and c.head_dim * c.n_head == c.dim,
    )
    shared = {"vocab_size": c.vocab_size, "tie_word_embeddings": c.tie_weights}
    if c.position == "learned" and block == ("layer", "gelu", True, False, False, True):
        return shared | {
            "model_type": "gpt2",
            "architectures": ["GPT2LMHeadModel"],
            "n_embd": c.dim,
            "n_layer": c.n_layer,
            "n_head": c.n_head,
            "n_inner": c.ffn_dim,
            "n_positions": c.max_len,
            "layer_norm_epsilon": c.norm_eps,
            "activation_function": "gelu_new",
        }
    family = {(True, False): "qwen3", (False, True): "qwen2", (False, False): "llama"}.get(
        (c.qk_norm, c.qkv_bias)
    )
    if c.position == "learned" or block[:3] != ("rms", "swiglu", False) or family is None:
        raise ValueError(
            "no supported Hugging Face family has this block: write GPT-2's, Llama's, Qwen 2's or Qwen 3's"
        )
    scaling = None
    if c.rope_llama3:
        factor, low, high, length = c.rope_llama3
        scaling = {
            "rope_type": "llama3",
            "factor": factor,
            "low_freq_factor": low,
            "high_freq_factor": high,
            "original_max_position_embeddings": length,
        }
    return shared | {
        "model_type": family,
        "architectures": [f"{family.capitalize()}ForCausalLM"],
        "hidden_size": c.dim,
        "num_hidden_layers": c.n_layer,
        "num_attention_heads": c.n_head,
        "num_key_value_heads": c.n_kv_head,
        "head_dim": c.head_dim,
        "intermediate_size": c.ffn_dim,
        "max_position_embeddings": c.max_len,
        "rms_norm_eps": c.norm_eps,
        "rope_theta": c.rope_theta,
        "rope_scaling": scaling,
        "hidden_act": "silu",
        "attention_bias": False,
    }


# ------------------------------------------------------------------------------------------------------ files


def tensors_in(folder: Path) -> tuple[dict[str, Path], Callable[[str], Tensor]]:
    """Which file has which tensor, and a function that reads one tensor by its name. ValueError for bad
    files.
    """
    for stem in ("model.safetensors", "pytorch_model.bin"):
        whole, index = folder / stem, folder / f"{stem}.index.json"
        if whole.is_file() or index.is_file():
            break
    else:
        raise ValueError(
            f"{folder} has neither model.safetensors nor pytorch_model.bin, whole or sharded with an index"
        )
    safe = stem.endswith(".safetensors")
    if safe:
        try:
            from safetensors import safe_open
        except ImportError:
            raise ValueError("reading .safetensors needs: pip install -e '.[pretrained]'") from None
    shards = [whole]
    if not whole.is_file():
        with reading(index, "an index of tensors"):
            shards = sorted({folder / Path(f).name for f in read_json(index)["weight_map"].values()})
    open_bin = functools.lru_cache(maxsize=1)(load_bin)
    names = {}  # as the tables above have them -> (file, name in it)
    for shard in shards:
        if not shard.is_file():
            raise ValueError(f"{folder}: the index names {shard.name}, which is missing")
        if safe:
            with reading(shard, "a .safetensors file"), safe_open(shard, "pt") as file:
                keys = list(file.keys())
        else:
            with reading(shard, "a file of tensors alone"):
                keys = list(open_bin(shard))
        for key in keys:  # the first GPT-2 files lack a prefix
            names[f"transformer.{key}" if re.match(r"(wte|wpe|h\.\d+|ln_f)\.", key) else key] = (shard, key)

    def read(name: str) -> Tensor:
        shard, key = names[name]
        if not safe:
            return open_bin(shard)[key]
        with safe_open(
            shard, "pt"
        ) as file:  # anew each time: an open file would keep every page that was read
            return file.get_tensor(key)

    return {name: shard for name, (shard, _) in names.items()}, read


def load_bin(path: Path) -> dict[str, Tensor]:
    """The tensors of a pytorch_model.bin. Only tensors are unpickled, never code. ValueError if it holds
    others.
    """
    error = None
    for mmap in (True, False):  # files from before torch 1.6 can't be memory-mapped
        try:
            content = torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)
            break
        except Exception as raised:  # torch.load raises many kinds
            error = raised
    else:
        raise error
    if not isinstance(content, dict) or not all(isinstance(t, Tensor) for t in content.values()):
        raise ValueError("it does not hold tensors alone")
    return content


def is_pretrained(folder: str | Path) -> bool:
    """Is it a checkpoint's folder? Its config.json names a `model_type`, which that of a run does not."""
    path = Path(folder) / "config.json"
    return path.is_file() and "model_type" in read_json(path)


def load_pretrained(folder: str | Path, device="cpu", dtype: torch.dtype = torch.float32) -> GPT:
    """The model of a Hugging Face checkpoint folder: config.json and .safetensors or .bin files, one or
    several.

    Tensors are read one at a time, straight into the model: memory peaks at the model and its largest tensor.
    ValueError, in one line, for an unsupported architecture or option, for a missing, surplus or misshaped
    tensor, and for a damaged file.
    """
    folder = Path(folder)
    path = folder / "config.json"
    with reading(path, "the config.json of a checkpoint that we support"):
        config = gpt_config(config_from(read_json(path)), path)
        model = empty_gpt(config)
    with reading(folder, "a checkpoint that can be read"):
        files, read = tensors_in(folder)
        check_names(folder, model, files.keys())
        model = model.to(dtype).to_empty(device=device)
        if config.tie_weights:
            model.lm_head.weight = model.embed.weight
        for name, weight in own_weights(model).items():
            for their, view in counterparts(name, weight, config):
                tensor = read(their)
                if tensor.shape != view.shape:
                    asked = f"config.json asks for {list(view.shape)}"
                    raise ValueError(f"{folder}: {their} has the shape {list(tensor.shape)}, {asked}")
                if not (tensor.is_floating_point() and bool(tensor.isfinite().all())):
                    raise ValueError(f"{folder}: {their} has numbers that are not finite floats")
                view.copy_(tensor)
        if config.tie_weights and "lm_head.weight" in files:
            head = read("lm_head.weight").to(model.embed.weight)
            if not torch.equal(head, model.embed.weight):
                raise ValueError(
                    f"{folder}: config.json ties lm_head.weight to the embedding, but it is another"
                )
    return model


def own_weights(model: GPT) -> dict[str, Tensor]:
    """The model's weights by name, without a head that is the embedding."""
    tied = model.config.tie_weights
    return {name: p for name, p in model.state_dict().items() if not (tied and name == "lm_head.weight")}


def check_names(folder: Path, model: GPT, names) -> None:
    """ValueError if the files lack a tensor of the model, or have one too many."""
    wanted = {
        their for name, p in own_weights(model).items() for their, _ in counterparts(name, p, model.config)
    }
    ignored = r".*\.(attn\.(bias|masked_bias)|rotary_emb\.inv_freq)"  # buffers of old checkpoints
    if model.config.tie_weights:
        ignored += "|lm_head.weight"
    surplus = sorted(their for their in names - wanted if not re.fullmatch(ignored, their))
    for fault, found in (("no tensor", sorted(wanted - names)), ("a tensor too many,", surplus)):
        if found:
            count = f"{found[0]} ({len(found)} such)"
            raise ValueError(f"{folder} has {fault} {count}: it does not fit its config.json")


def save_pretrained(model: GPT, folder: str | Path) -> None:
    """Writes config.json and model.safetensors. `load_pretrained` and transformers read them to the same
    logits.
    """
    try:
        from safetensors.torch import save_file
    except ImportError:
        raise ValueError("writing .safetensors needs: pip install -e '.[pretrained]'") from None
    dtype = str(model.embed.weight.dtype).removeprefix("torch.")
    description = description_of(model.config) | {"torch_dtype": dtype}
    tensors = {}
    for name, weight in own_weights(model).items():
        tensors |= {their: t.contiguous() for their, t in counterparts(name, weight, model.config)}
    Path(folder).mkdir(parents=True, exist_ok=True)
    save_file(tensors, Path(folder) / "model.safetensors", {"format": "pt"})
    (Path(folder) / "config.json").write_text(json.dumps(description, indent=1) + "\n", encoding="utf-8")
