"""Hugging Face checkpoints: the same logits as transformers, both ways, and every refusal by name."""

import json
import random
import struct
from pathlib import Path

import pytest
import tiktoken
import torch
from pretrained import logits

from data.tokenizer import Tokenizer
from engine.hf import load_pretrained, save_pretrained
from model import KVCache
from rollout import sample_dialogues

pytestmark = pytest.mark.slow

transformers = pytest.importorskip("transformers")
transformers.logging.set_verbosity_error()
transformers.logging.disable_progress_bar()

ASSETS = Path(__file__).parent.parent.parent / "shared" / "assets"
GPT2 = dict(vocab_size=97, n_positions=96, n_embd=32, n_layer=2, n_head=4)
LLAMA = dict(
    vocab_size=97, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
    num_key_value_heads=2, max_position_embeddings=96,
)  # fmt: skip
LLAMA3_ROPE = dict(
    rope_type="llama3", rope_theta=5e5, factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0,
    original_max_position_embeddings=16,
)  # fmt: skip


def rope(theta: float) -> dict:
    return dict(rope_parameters=dict(rope_type="default", rope_theta=theta))


LLAMA32 = "llama3.2: scaled rope, head_dim, tied"
FAMILIES = {
    "gpt2": ("GPT2", GPT2),
    "gpt2 untied, n_inner": ("GPT2", GPT2 | dict(n_inner=40, tie_word_embeddings=False)),
    "llama2": ("Llama", LLAMA | dict(num_key_value_heads=4, rms_norm_eps=1e-5)),
    LLAMA32: ("Llama", LLAMA | dict(head_dim=16, tie_word_embeddings=True, rope_parameters=LLAMA3_ROPE)),
    "smollm2": ("Llama", LLAMA | dict(tie_word_embeddings=True, **rope(1e5))),
    "qwen2": ("Qwen2", LLAMA | rope(1e6)),
    "qwen2.5 tied": ("Qwen2", LLAMA | dict(tie_word_embeddings=True)),
    "qwen3": ("Qwen3", LLAMA | dict(head_dim=16, **rope(1e6))),
}


def theirs(name: str):
    """A random transformers model of a family.

    Its weights are so large that no two of them could be exchanged unseen.
    """
    torch.manual_seed(2)
    family, settings = FAMILIES[name]
    kind = getattr(transformers, f"{family}LMHeadModel" if family == "GPT2" else f"{family}ForCausalLM")
    model = kind(getattr(transformers, f"{family}Config")(**settings))
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3 if parameter.ndim > 1 else 1.0)
    return model.eval()


@pytest.fixture
def folder(tmp_path, request):
    theirs(request.param).save_pretrained(tmp_path / "hf")
    return tmp_path / "hf"


def distance(model, other, ids) -> float:
    return (logits(model, ids) - logits(other, ids)).abs().max().item()


@pytest.mark.parametrize("name", FAMILIES)
def test_logits_are_those_of_transformers_both_ways(name, tmp_path):
    reference = theirs(name)
    reference.save_pretrained(tmp_path / "hf")
    ids = torch.randint(0, 97, (3, 90))  # beyond the original length of the scaled rope, which is 16
    assert logits(reference, ids).abs().max() > 1
    model = load_pretrained(tmp_path / "hf")
    assert distance(model, reference, ids) <= 1e-4
    save_pretrained(model, tmp_path / "ours")
    back = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "ours").eval()
    assert type(back) is type(reference)
    assert distance(back, reference, ids) <= 1e-4
    assert distance(load_pretrained(tmp_path / "ours"), reference, ids) <= 1e-4


@pytest.mark.parametrize("name", ["gpt2", LLAMA32, "qwen2", "qwen3"])
def test_greedy_sampling_with_the_cache_is_that_of_transformers(name, tmp_path):
    reference = theirs(name)
    reference.save_pretrained(tmp_path / "hf")
    model = load_pretrained(tmp_path / "hf")
    ranks = {bytes([i]): i for i in range(96)}
    encoding = tiktoken.Encoding(
        "bytes", pat_str=r"[\s\S]", mergeable_ranks=ranks, special_tokens={"<e>": 96}
    )
    prompts = [[5, 6, 7], [8] * 11, [9, 10, 11, 12, 13, 14]]
    ours = sample_dialogues(model, Tokenizer(encoding, "<e>", "", ""), prompts, [], 20, 0.0)
    width, end = 11, 96
    left = torch.tensor([[end] * (width - len(p)) + p for p in prompts])
    mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts])
    greedy = dict(max_new_tokens=20, do_sample=False, eos_token_id=end, pad_token_id=end)
    out = reference.generate(left, attention_mask=mask, **greedy)
    for b, prompt in enumerate(prompts):
        answer = ours.row(b)[len(prompt) :]
        assert out[b, width : width + len(answer)].tolist() == answer and len(answer) > 3


def test_the_toy_model_is_a_qwen3(small_gpt, tmp_path):
    model = small_gpt()
    save_pretrained(model, tmp_path)
    back = transformers.AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    assert type(back).__name__ == "Qwen3ForCausalLM"
    assert distance(back, model, torch.randint(0, 90, (2, 30))) <= 1e-4


def test_a_block_that_no_family_has_is_not_written(small_gpt, tmp_path):
    with pytest.raises(ValueError, match="no supported Hugging Face family"):
        save_pretrained(small_gpt(qk_norm=True, qkv_bias=True), tmp_path)


# ---------------------------------------------------------------------------------- files


@pytest.mark.parametrize("folder", ["qwen2"], indirect=True)
def test_sharded_and_bin_files_have_the_same_logits(folder, tmp_path):
    ids = torch.randint(0, 97, (2, 20))
    expected = logits(load_pretrained(folder), ids)
    reference = transformers.AutoModelForCausalLM.from_pretrained(folder)
    reference.save_pretrained(tmp_path / "shards", max_shard_size="20KB")
    assert len(list((tmp_path / "shards").glob("*.safetensors"))) > 2
    assert torch.equal(logits(load_pretrained(tmp_path / "shards"), ids), expected)
    old = tmp_path / "bin"
    old.mkdir()
    (old / "config.json").write_bytes((folder / "config.json").read_bytes())
    for zipped in (True, False):  # with and without the format that can be memory-mapped
        torch.save(reference.state_dict(), old / "pytorch_model.bin", _use_new_zipfile_serialization=zipped)
        assert torch.equal(logits(load_pretrained(old), ids), expected)


@pytest.mark.parametrize("folder", ["qwen2"], indirect=True)
def test_a_model_is_read_and_written_in_bfloat16(folder, tmp_path):
    half = load_pretrained(folder, dtype=torch.bfloat16)
    assert {p.dtype for p in half.parameters()} == {torch.bfloat16}
    assert torch.equal(half.embed.weight, load_pretrained(folder).embed.weight.bfloat16())
    save_pretrained(half, tmp_path / "half")
    config = json.loads((tmp_path / "half" / "config.json").read_text(encoding="utf-8"))
    assert config["torch_dtype"] == "bfloat16"


def test_the_first_gpt2_files_lack_a_prefix_and_hold_masks(tmp_path):
    reference = theirs("gpt2")
    reference.save_pretrained(tmp_path)
    old = {f"h.{i}.attn.bias": torch.ones(1, 1, 8, 8) for i in range(2)}
    for name, tensor in reference.state_dict().items():
        if name != "lm_head.weight":
            old[name.removeprefix("transformer.")] = tensor
    (tmp_path / "model.safetensors").unlink()
    torch.save(old, tmp_path / "pytorch_model.bin")
    assert distance(load_pretrained(tmp_path), reference, torch.randint(0, 97, (2, 20))) <= 1e-4


# ---------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize("folder", ["qwen2"], indirect=True)
@pytest.mark.parametrize(
    "changes, words",
    [
        (dict(model_type="mixtral"), "model_type 'mixtral' is not supported"),
        (dict(model_type="gemma2"), "'gemma2'"),
        (dict(use_sliding_window=True), "use_sliding_window=True"),
        (dict(layer_types=["full_attention", "sliding_attention"]), "sliding-window"),
        (dict(num_experts=8), "num_experts=8"),
        (dict(num_local_experts=8), "num_local_experts=8"),
        (dict(rope_parameters=dict(rope_type="yarn", factor=4.0)), "rope scaling {'rope_type': 'yarn'"),
        (
            dict(rope_parameters=None, rope_scaling=dict(type="dynamic", factor=4.0)),
            "rope scaling {'type': 'dynamic'",
        ),
        (dict(rope_parameters=dict(rope_type="default", partial_rotary_factor=0.5)), "rope scaling {"),
        (dict(attn_logit_softcapping=50.0), "attn_logit_softcapping=50.0"),
        (dict(final_logit_softcapping=30.0), "final_logit_softcapping=30.0"),
        (dict(hidden_act="gelu"), "hidden_act='gelu'"),
        (dict(attention_bias=True), "attention_bias=True"),
        (dict(mlp_bias=True), "mlp_bias=True"),
        (dict(partial_rotary_factor=0.5), "partial_rotary_factor=0.5"),
        (dict(quantization_config=dict(bits=4)), "quantization_config="),
        (dict(num_hidden_layers=3), "no tensor model.layers.2."),
        (dict(num_hidden_layers=1), "a tensor too many, model.layers.1."),
        (dict(model_type="llama"), "a tensor too many, model.layers.0.self_attn.k_proj.bias"),
        (dict(model_type="qwen3"), "no tensor model.layers.0.self_attn.k_norm.weight"),
        (
            dict(intermediate_size=50),
            "gate_proj.weight has the shape [48, 32], config.json asks for [50, 32]",
        ),
        (dict(vocab_size=98), "model.embed_tokens.weight has the shape [97, 32]"),
        (
            dict(num_key_value_heads=4),
            "k_proj.weight has the shape [16, 32], config.json asks for [32, 32]",
        ),
        (dict(tie_word_embeddings=True), "ties lm_head.weight"),
        (dict(num_key_value_heads=3), "n_head=4 is not a multiple of n_kv_head=3"),
    ],
)
def test_what_does_not_fit_is_refused_by_name(folder, changes, words):
    path = folder / "config.json"
    content = json.loads(path.read_text(encoding="utf-8")) | changes
    path.write_text(json.dumps(content), encoding="utf-8")
    with pytest.raises(ValueError) as error:
        load_pretrained(folder)
    assert words in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("folder", ["llama2"], indirect=True)
def test_broken_folders_are_refused_by_name(folder, tmp_path):
    def refused(words, place=folder):
        with pytest.raises(ValueError, match=words):
            load_pretrained(place)

    refused("no file .*config.json", tmp_path / "nowhere")
    config, weights = folder / "config.json", folder / "model.safetensors"
    right = config.read_bytes()
    for text, words in [
        ("{", "is not a JSON object"),
        ("[]", "is not a JSON object"),
        ('{"model_type": "llama"}', "no 'num_attention_heads'"),
    ]:
        config.write_text(text, encoding="utf-8")
        refused(words)
    config.write_bytes(right)
    content = weights.read_bytes()
    weights.write_bytes(content[: len(content) // 2])
    refused("is not a .safetensors file")
    weights.unlink()
    refused("neither model.safetensors nor pytorch_model.bin")
    index = folder / "model.safetensors.index.json"
    index.write_text('{"weight_map": {"x": "model-1.safetensors"}}', encoding="utf-8")
    refused("model-1.safetensors, which is missing")
    index.unlink()
    torch.save({"x": random.Random(0)}, folder / "pytorch_model.bin")
    refused("pytorch_model.bin is not a .bin file of tensors alone")  # code in a file is never run


# ---------------------------------------------------------------------------------- a trained model


def write_stories(folder: Path) -> None:
    """llama2.c's file of 260 K parameters as a Hugging Face folder.

    Its RoPE turns pairs of neighbours. Hugging Face's turns number i with number i + head_dim / 2.
    """
    raw = (ASSETS / "stories260K.bin").read_bytes()
    dim, hidden, layers, heads, kv_heads, vocab, length = struct.unpack("7i", raw[:28])
    numbers, at = torch.frombuffer(bytearray(raw[28:]), dtype=torch.float32), 0

    def take(*shape):
        nonlocal at
        at += torch.Size(shape).numel()
        return numbers[at - torch.Size(shape).numel() : at].view(shape)

    def halves(weight, heads):  # [.., heads, pairs, 2, dim] -> [.., heads, 2, pairs, dim]
        return weight.view(layers, heads, -1, 2, dim).transpose(2, 3).reshape(weight.shape)

    kv = dim // heads * kv_heads
    tensors = {"model.embed_tokens": take(vocab, dim)}
    per_layer = {"input_layernorm": take(layers, dim)}
    per_layer["self_attn.q_proj"] = halves(take(layers, dim, dim), heads)
    per_layer["self_attn.k_proj"] = halves(take(layers, kv, dim), kv_heads)
    per_layer["self_attn.v_proj"] = take(layers, kv, dim)
    per_layer["self_attn.o_proj"] = take(layers, dim, dim)
    per_layer["post_attention_layernorm"] = take(layers, dim)
    per_layer["mlp.gate_proj"] = take(layers, hidden, dim)
    per_layer["mlp.down_proj"] = take(layers, dim, hidden)
    per_layer["mlp.up_proj"] = take(layers, hidden, dim)
    tensors["model.norm"] = take(dim)
    for name, stacked in per_layer.items():
        tensors |= {f"model.layers.{i}.{name}": stacked[i] for i in range(layers)}
    folder.mkdir()
    weights = {f"{name}.weight": tensor.clone() for name, tensor in tensors.items()}
    torch.save(weights, folder / "pytorch_model.bin")
    config = dict(
        model_type="llama", vocab_size=vocab, hidden_size=dim, intermediate_size=hidden,
        num_hidden_layers=layers, num_attention_heads=heads, num_key_value_heads=kv_heads,
        max_position_embeddings=length, rms_norm_eps=1e-5, tie_word_embeddings=True,
    )  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")


def test_a_trained_model_tells_its_story(tmp_path):
    if not (ASSETS / "stories260K.bin").exists():
        pytest.skip("the model of 260 K parameters is not here (shared/assets)")
    write_stories(tmp_path / "stories")
    model = load_pretrained(tmp_path / "stories")
    assert sum(p.numel() for p in model.parameters()) == 260_032
    raw, pieces, at = (ASSETS / "tok512.bin").read_bytes(), [], 4
    while at < len(raw):
        size = struct.unpack("i", raw[at + 4 : at + 8])[0]
        pieces.append(raw[at + 8 : at + 8 + size])
        at += 8 + size
    ids, cache = [1], KVCache(model.config, 1, 200)
    with torch.no_grad():
        while len(ids) < 60:
            hidden = model.hidden(torch.tensor([ids[-1:]]), cache)
            cache.advance()
            ids.append(int(model.head(hidden)[0, -1].argmax()))
    text = b"".join(pieces[i] for i in ids[1:]).decode().strip()
    assert text.startswith(
        "Once upon a time, there was a little girl named Lily. She loved to play outside in the park. "
        "One day, she saw a big, red ball."
    )
