"""Hugging Face checkpoint folders, read and written: GPT-2, Llama (and SmolLM2), Qwen 2 and Qwen 3.

First come the tables: what a config.json says in our terms, and which of their tensors is which of ours. Then
the files. `load_pretrained`, `save_pretrained` and `export` put this together.
"""

import contextlib
import functools
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from data.reading import read_json, reading
from engine.checkpoints import gpt_config
from engine.lora import merge_lora
from engine.memory import empty_gpt
from engine.options import require
from model import GPT, GPTConfig

LLAMA_BLOCK = dict(norm="rms", position="rope", mlp="swiglu", bias=False, qkv_bias=False, qk_norm=False)
FAMILIES = {  # a config.json's model_type, and its block
    "gpt2": dict(norm="layer", position="learned", mlp="gelu", bias=True, qkv_bias=False, qk_norm=False),
    "llama": LLAMA_BLOCK,
    "qwen2": LLAMA_BLOCK | {"qkv_bias": True},
    "qwen3": LLAMA_BLOCK | {"qk_norm": True},
}
# Our other settings, and what a config.json calls them.
GPT2_KEYS = dict(
    vocab_size="vocab_size", n_layer="n_layer", n_head="n_head", dim="n_embd", ffn_dim="n_inner",
    max_len="n_positions", norm_eps="layer_norm_epsilon", tie_weights="tie_word_embeddings",
)  # fmt: skip
LLAMA_KEYS = dict(
    vocab_size="vocab_size", n_layer="num_hidden_layers", n_head="num_attention_heads",
    n_kv_head="num_key_value_heads", dim="hidden_size", head_dim="head_dim", ffn_dim="intermediate_size",
    max_len="max_position_embeddings", norm_eps="rms_norm_eps", rope_theta="rope_theta",
    tie_weights="tie_word_embeddings",
)  # fmt: skip
LLAMA3_ROPE = ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings")
# Options that change what a model computes and that ours has not: each is refused unless it is absent or has
# this value.
UNSUPPORTED = dict(
    hidden_act="silu", activation_function="gelu_new", attention_bias=False, mlp_bias=False,
    rope_interleaved=False, partial_rotary_factor=1.0, use_sliding_window=False, attn_logit_softcapping=None,
    final_logit_softcapping=None, num_experts=None, num_local_experts=None, quantization_config=None,
    scale_attn_weights=True, scale_attn_by_inverse_layer_idx=False, add_cross_attention=False,
)  # fmt: skip
# Our modules, and what files of Llama and Qwen and those of GPT-2 call them. Two or three names: ours has
# their rows one below the other.
NAMES = {
    "embed": ("model.embed_tokens", "transformer.wte"),
    "position": ("", "transformer.wpe"),
    "blocks": ("model.layers", "transformer.h"),
    "attn_norm": ("input_layernorm", "ln_1"),
    "attn.qkv": ("self_attn.q_proj self_attn.k_proj self_attn.v_proj", "attn.c_attn"),
    "attn.q_norm": ("self_attn.q_norm", ""),
    "attn.k_norm": ("self_attn.k_norm", ""),
    "attn.out": ("self_attn.o_proj", "attn.c_proj"),
    "mlp_norm": ("post_attention_layernorm", "ln_2"),
    "mlp.up": ("mlp.gate_proj mlp.up_proj", "mlp.c_fc"),
    "mlp.down": ("mlp.down_proj", "mlp.c_proj"),
    "norm": ("model.norm", "transformer.ln_f"),
    "lm_head": ("lm_head", "lm_head"),
}
TOKENIZER_FILES = (
    "tokenizer.json", "vocab.json", "merges.txt", "tokenizer_config.json", "chat_template.jinja",
)  # fmt: skip


def gpt2_config(**overrides) -> GPTConfig:
    """GPT-2's block. The sizes are those of the 124 M model unless overridden."""
    sizes = dict(vocab_size=50257, n_layer=12, n_head=12, n_kv_head=12, dim=768, head_dim=64, ffn_dim=3072)
    return GPTConfig(**FAMILIES["gpt2"] | sizes | {"max_len": 1024, "tie_weights": True} | overrides)


def config_from(description: dict) -> dict:
    """The settings of our GPTConfig for the content of a config.json. ValueError names what we can't do."""
    family = description.get("model_type")
    known, mend = " or ".join(FAMILIES), "take another checkpoint"
    require(family in tuple(FAMILIES), f"model_type {family!r} is not supported, only {known}: {mend}")
    gpt2 = family == "gpt2"
    keys, eps = (GPT2_KEYS, 1e-5) if gpt2 else (LLAMA_KEYS, 1e-6)
    d = {keys["norm_eps"]: eps, "tie_word_embeddings": gpt2} | description
    for key, fine in UNSUPPORTED.items():
        said = d.get(key)
        require(said in (None, fine), f"{key}={said!r} is not supported, only {fine!r}: {mend}")
    window = d.get("sliding_window") and "use_sliding_window" not in d
    full = not window and set(d.get("layer_types") or ()) <= {"full_attention"}
    require(full, f"sliding-window attention is not supported: {mend}")
    try:
        heads, dim = d[keys["n_head"]], d[keys["dim"]]
        # What stands for a key that is absent or null.
        derived = dict(n_kv_head=heads, head_dim=128 if family == "qwen3" else dim // heads)
        if gpt2:
            derived["ffn_dim"] = 4 * dim
        else:
            # Since transformers 5 it is called rope_parameters.
            scaling = d.get("rope_parameters") or d.get("rope_scaling") or {}
            kind = scaling.get("rope_type", scaling.get("type", "default"))
            fine = kind in ("default", "llama3") and scaling.get("partial_rotary_factor", 1.0) == 1.0
            require(fine, f"rope scaling {scaling} is not supported, only llama3's: {mend}")
            derived["rope_theta"] = scaling.get("rope_theta", 10000.0)
            if kind == "llama3":
                derived["rope_llama3"] = tuple(scaling[key] for key in LLAMA3_ROPE)
        given = {our: d[key] for our, key in keys.items() if our not in derived or d.get(key) is not None}
    except KeyError as missing:
        raise ValueError(f"config.json has no {missing}: it does not describe a {family} model") from None
    return FAMILIES[family] | derived | given


def description_of(c: GPTConfig) -> dict:
    """The Hugging Face config.json of a config. ValueError for a block that no supported family has."""
    block = {name: getattr(c, name) for name in LLAMA_BLOCK}
    family = next((name for name, its_block in FAMILIES.items() if its_block == block), None)
    gpt2 = family == "gpt2"
    require(
        family and not (gpt2 and (c.n_kv_head < c.n_head or c.head_dim * c.n_head != c.dim)),
        "no supported Hugging Face family has this block: write GPT-2's, Llama's, Qwen 2's or Qwen 3's",
    )
    keys = GPT2_KEYS if gpt2 else LLAMA_KEYS
    name = "GPT2LMHeadModel" if gpt2 else f"{family.capitalize()}ForCausalLM"
    d = {"model_type": family, "architectures": [name]} | {key: getattr(c, our) for our, key in keys.items()}
    if gpt2:
        return d | {"activation_function": "gelu_new"}
    scaling = c.rope_llama3 and {"rope_type": "llama3", **dict(zip(LLAMA3_ROPE, c.rope_llama3, strict=True))}
    return d | {"rope_scaling": scaling, "hidden_act": "silu", "attention_bias": False}


def as_theirs(model: GPT) -> dict[str, Tensor]:
    """Views of the model's weights, as a Hugging Face file has them, by their names there; no tied head."""
    c, theirs = model.config, {}
    gpt2 = c.position == "learned"
    for name, parameter in model.state_dict().items():
        if c.tie_weights and name == "lm_head.weight":
            continue
        layer, module, kind = re.fullmatch(r"(?:blocks\.(\d+)\.)?(.+)\.(weight|bias)", name).groups()
        where = f"{NAMES['blocks'][gpt2]}.{layer}." if layer else ""
        names = [f"{where}{part}.{kind}" for part in NAMES[module][gpt2].split()]
        kv = c.n_kv_head * c.head_dim
        rows = [len(parameter) - 2 * kv, kv, kv] if len(names) == 3 else len(parameter) // len(names)
        for their, view in zip(names, parameter.split(rows), strict=True):
            # GPT-2's layers are Conv1D, which keep their matrices transposed.
            theirs[their] = view.T if gpt2 and layer and view.ndim == 2 else view
    return theirs


# ------------------------------------------------------------------------------------------------------ files


def tensors_in(folder: Path) -> tuple[set[str], Callable[[str], Tensor]]:
    """The tensors' names, as NAMES has them, and a function that reads one. ValueError for bad files."""
    for stem in ("model.safetensors", "pytorch_model.bin"):
        whole, index = folder / stem, folder / f"{stem}.index.json"
        if whole.is_file() or index.is_file():
            break
    else:
        raise ValueError(f"{folder} has neither model.safetensors nor pytorch_model.bin, whole or sharded")
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

    def opened(shard: Path):  # .safetensors always anew, since it would keep every page that was read
        return safe_open(shard, "pt") if safe else contextlib.nullcontext(open_bin(shard))

    places = {}  # a name of NAMES -> file, name in it
    for shard in shards:
        require(shard.is_file(), f"{folder}: the index names {shard.name}, which is missing")
        with reading(shard, f"a {shard.suffix} file of tensors alone"), opened(shard) as file:
            keys = list(file.keys())
        for key in keys:  # the first GPT-2 files lack a prefix
            places[f"transformer.{key}" if re.match(r"(wte|wpe|h\.\d+|ln_f)\.", key) else key] = (shard, key)

    def read(name: str) -> Tensor:
        shard, key = places[name]
        with opened(shard) as file:
            return file.get_tensor(key) if safe else file[key]

    return set(places), read


def load_bin(path: Path) -> dict[str, Tensor]:
    """The tensors of a pytorch_model.bin. Only tensors are unpickled, never code. ValueError for all else."""
    load = functools.partial(torch.load, path, map_location="cpu", weights_only=True)
    try:
        content = load(mmap=True)
    except Exception:  # torch.load raises many kinds
        content = load(mmap=False)  # files from before torch 1.6 can't be memory-mapped
    alone = isinstance(content, dict) and all(isinstance(t, Tensor) for t in content.values())
    require(alone, "it does not hold tensors alone")
    return content


def is_pretrained(folder: str | Path) -> bool:
    """Is it a checkpoint's folder? Its config.json names a `model_type`, which that of a run does not."""
    path = Path(folder) / "config.json"
    return path.is_file() and "model_type" in read_json(path)


def load_pretrained(folder: str | Path, device="cpu", dtype: torch.dtype = torch.float32) -> GPT:
    """The model of a Hugging Face checkpoint folder: config.json and .safetensors or .bin files.

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
        names, read = tensors_in(folder)
        check_names(folder, set(as_theirs(model)), names, config.tie_weights)
        model = model.to(dtype).to_empty(device=device)
        if config.tie_weights:
            model.lm_head.weight = model.embed.weight
        for name, view in as_theirs(model).items():
            tensor = read(name)
            shape, asked = list(tensor.shape), f"config.json asks for {list(view.shape)}"
            require(tensor.shape == view.shape, f"{folder}: {name} has the shape {shape}, {asked}")
            fine = tensor.is_floating_point() and bool(tensor.isfinite().all())
            require(fine, f"{folder}: {name} has numbers that are not finite floats")
            view.copy_(tensor)
        if config.tie_weights and "lm_head.weight" in names:
            same = torch.equal(read("lm_head.weight").to(model.embed.weight), model.embed.weight)
            require(same, f"{folder}: config.json ties lm_head.weight to the embedding, but it is another")
    return model


def check_names(folder: Path, wanted: set[str], names: set[str], tied: bool) -> None:
    """ValueError if the files lack a tensor of the model, or have one too many."""
    ignored = r".*\.(attn\.(bias|masked_bias)|rotary_emb\.inv_freq)"  # buffers of old checkpoints
    if tied:
        ignored += "|lm_head.weight"
    surplus = sorted(name for name in names - wanted if not re.fullmatch(ignored, name))
    for fault, found in (("no tensor", sorted(wanted - names)), ("a tensor too many,", surplus)):
        first = f"{found[0]} ({len(found)} such)" if found else ""
        require(not found, f"{folder} has {fault} {first}: it does not fit its config.json")


def save_pretrained(model: GPT, folder: str | Path) -> None:
    """Writes config.json and model.safetensors. `load_pretrained` and transformers read the same logits."""
    try:
        from safetensors.torch import save_file
    except ImportError:
        raise ValueError("writing .safetensors needs: pip install -e '.[pretrained]'") from None
    dtype = str(model.embed.weight.dtype).removeprefix("torch.")
    description = description_of(model.config) | {"torch_dtype": dtype}
    tensors = {name: view.contiguous() for name, view in as_theirs(model).items()}
    Path(folder).mkdir(parents=True, exist_ok=True)
    save_file(tensors, Path(folder) / "model.safetensors", {"format": "pt"})
    (Path(folder) / "config.json").write_text(json.dumps(description, indent=1) + "\n", encoding="utf-8")


def export(model: GPT, c, folder: str) -> str:
    """Writes the model, adapters merged, and its tokenizer's files. Returns a line that says so.

    ValueError if the folder holds a model already.
    """
    taken = (Path(folder) / "config.json").exists()
    require(not taken, f"{folder} holds a model: choose another folder for --export")
    save_pretrained(merge_lora(model) if c.lora else model, folder)
    source = c.tokenizer or c.init  # "" for a toy, which has no files
    files = [Path(source, name) for name in TOKENIZER_FILES if source and Path(source, name).is_file()]
    copied = [shutil.copy(file, folder) for file in files]
    return f"{folder} has the model{'' if copied else ', without a tokenizer'}"
