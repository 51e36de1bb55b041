"""Hugging Face checkpoints: the same logits as transformers, both ways, and every refusal by name."""

import json

import pytest
import tiktoken
import torch
from pretrained import logits

from data.tokenizer import Tokenizer
from engine.hf import FAMILIES as BLOCKS
from engine.hf import config_from, load_pretrained, save_pretrained
from rollout import sample_dialogues

pytestmark = pytest.mark.slow

transformers = pytest.importorskip("transformers")
transformers.logging.set_verbosity_error()
transformers.logging.disable_progress_bar()

GPT2 = dict(vocab_size=97, n_positions=96, n_embd=32, n_layer=2, n_head=4)
LLAMA = dict(
    vocab_size=97, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
    num_key_value_heads=2, max_position_embeddings=96,
)  # fmt: skip
LLAMA3_ROPE = dict(
    rope_type="llama3", rope_theta=5e5, factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0,
    original_max_position_embeddings=16,
)  # fmt: skip


ROPE = dict(rope_type="default", rope_theta=1e6)
LLAMA32 = "llama3.2: scaled rope, head_dim, tied"
FAMILIES = {  # large epsilons show where a norm is made without its own
    "gpt2": ("GPT2", GPT2 | dict(layer_norm_epsilon=0.1)),
    "gpt2 untied, n_inner": ("GPT2", GPT2 | dict(n_inner=40, tie_word_embeddings=False)),
    "llama2": ("Llama", LLAMA | dict(num_key_value_heads=4, rms_norm_eps=0.1)),
    LLAMA32: ("Llama", LLAMA | dict(head_dim=16, tie_word_embeddings=True, rope_parameters=LLAMA3_ROPE)),
    "smollm2": ("Llama", LLAMA | dict(tie_word_embeddings=True, rope_parameters=ROPE)),
    "qwen2": ("Qwen2", LLAMA | dict(rope_parameters=ROPE)),
    "qwen2.5 tied": ("Qwen2", LLAMA | dict(tie_word_embeddings=True)),
    "qwen3": ("Qwen3", LLAMA | dict(head_dim=16, rms_norm_eps=0.1, rope_parameters=ROPE)),
}


def theirs(name: str):
    """A random transformers model. Its weights are so large that no two could be exchanged unseen."""
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
    save_pretrained(model, tmp_path / "ours")
    back = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "ours").eval()
    assert type(back) is type(reference)
    for other in (model, back, load_pretrained(tmp_path / "ours")):
        assert distance(other, reference, ids) <= 1e-4


@pytest.mark.parametrize("family", ["GPT2", "Llama", "Qwen2", "Qwen3"])
def test_a_missing_key_means_to_us_what_it_means_to_transformers(family):
    sizes, eps = (GPT2, "layer_norm_epsilon") if family == "GPT2" else (LLAMA, "rms_norm_eps")
    default = getattr(transformers, f"{family}Config")(**sizes)
    ours = config_from({"model_type": family.lower(), **sizes, "num_key_value_heads": None})
    assert ours["tie_weights"] is default.tie_word_embeddings
    assert ours["norm_eps"] == getattr(default, eps)
    assert ours["head_dim"] == getattr(default, "head_dim", 32 // 4)
    assert ours["n_kv_head"] == 4 and ours["ffn_dim"] == (128 if family == "GPT2" else 48)
    assert family == "GPT2" or ours["rope_theta"] == default.rope_parameters["rope_theta"]


@pytest.mark.parametrize("name", ["gpt2", LLAMA32, "qwen2", "qwen3"])
def test_greedy_sampling_with_the_cache_is_that_of_transformers(name, tmp_path):
    reference, end = theirs(name), 96
    reference.save_pretrained(tmp_path)
    ranks, special = {bytes([i]): i for i in range(end)}, {"<e>": end}
    encoding = tiktoken.Encoding("bytes", pat_str=r"[\s\S]", mergeable_ranks=ranks, special_tokens=special)
    model, tokenizer = load_pretrained(tmp_path), Tokenizer(encoding, "<e>", "", "")
    prompts = [[5, 6, 7], [8] * 11, [9, 10, 11, 12, 13, 14]]
    ours = sample_dialogues(model, tokenizer, prompts, [], 20, 0.0)
    greedy = dict(max_new_tokens=20, do_sample=False, eos_token_id=end, pad_token_id=end)
    for b, prompt in enumerate(prompts):
        assert ours.row(b) == reference.generate(torch.tensor([prompt]), **greedy)[0].tolist()
        assert len(ours.row(b)) > len(prompt) + 3


def test_the_toy_model_is_a_qwen3(small_gpt, tmp_path):
    model = small_gpt()
    save_pretrained(model, tmp_path)
    back = transformers.AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    assert type(back).__name__ == "Qwen3ForCausalLM"
    assert distance(back, model, torch.randint(0, 90, (2, 30))) <= 1e-4


@pytest.mark.parametrize("block", [dict(qk_norm=True, qkv_bias=True), BLOCKS["gpt2"] | dict(head_dim=16)])
def test_a_block_that_no_family_has_is_not_written(small_gpt, tmp_path, block):
    with pytest.raises(ValueError, match="no supported Hugging Face family"):
        save_pretrained(small_gpt(**block), tmp_path)


# ---------------------------------------------------------------------------------- files


@pytest.mark.parametrize("folder", ["qwen2"], indirect=True)
def test_sharded_and_bin_files_have_the_same_logits(folder, tmp_path):
    ids = torch.randint(0, 97, (2, 20))
    expected = logits(load_pretrained(folder), ids)
    reference = transformers.AutoModelForCausalLM.from_pretrained(folder)
    reference.save_pretrained(tmp_path, max_shard_size="20KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 2
    assert torch.equal(logits(load_pretrained(tmp_path), ids), expected)
    (folder / "model.safetensors").unlink()
    for zipped in (True, False):  # with and without the format that can be memory-mapped
        weights = folder / "pytorch_model.bin"
        torch.save(reference.state_dict(), weights, _use_new_zipfile_serialization=zipped)
        assert torch.equal(logits(load_pretrained(folder), ids), expected)


@pytest.mark.parametrize("folder", ["qwen2"], indirect=True)
def test_a_bin_file_of_other_things_is_refused_and_a_null_in_the_config_is_not(folder):
    path = folder / "config.json"
    nothing = dict.fromkeys(("quantization_config", "mlp_bias", "rope_interleaved"))
    path.write_text(json.dumps(json.loads(path.read_bytes()) | nothing), encoding="utf-8")
    load_pretrained(folder)
    (folder / "model.safetensors").unlink()
    for content in ({"model.norm.weight": 1.0}, [torch.ones(3)]):
        torch.save(content, folder / "pytorch_model.bin")
        with pytest.raises(ValueError, match="does not hold tensors alone"):
            load_pretrained(folder)


@pytest.mark.parametrize("folder", ["qwen2"], indirect=True)
def test_a_model_is_read_and_written_in_bfloat16(folder, tmp_path):
    half = load_pretrained(folder, dtype=torch.bfloat16)
    assert {p.dtype for p in half.parameters()} == {torch.bfloat16}
    assert torch.equal(half.embed.weight, load_pretrained(folder).embed.weight.bfloat16())
    save_pretrained(half, tmp_path)
    assert '"torch_dtype": "bfloat16"' in (tmp_path / "config.json").read_text(encoding="utf-8")


@pytest.mark.parametrize("folder", ["gpt2"], indirect=True)
def test_the_first_gpt2_files_lack_a_prefix_and_hold_masks(folder):
    reference = theirs("gpt2")
    old = {name.removeprefix("transformer."): tensor for name, tensor in reference.state_dict().items()}
    old |= {f"h.{i}.attn.bias": torch.ones(1, 1, 8, 8) for i in range(2)}
    del old["lm_head.weight"]
    (folder / "model.safetensors").unlink()
    torch.save(old, folder / "pytorch_model.bin")
    assert distance(load_pretrained(folder), reference, torch.randint(0, 97, (2, 20))) <= 1e-4


# ---------------------------------------------------------------------------------- refusals


NOT_OURS = dict(
    use_sliding_window=True, num_experts=8, num_local_experts=8, attn_logit_softcapping=50.0,
    final_logit_softcapping=30.0, hidden_act="gelu", activation_function="relu", attention_bias=True,
    mlp_bias=True, rope_interleaved=True, partial_rotary_factor=0.5, quantization_config=dict(bits=4),
    scale_attn_weights=False, scale_attn_by_inverse_layer_idx=True, add_cross_attention=True,
)  # fmt: skip
LINEAR, PARTIAL = dict(type="linear", factor=4.0), ROPE | dict(partial_rotary_factor=0.5)
REFUSED = [
    *(({key: value}, f"{key}={value!r} is not supported") for key, value in NOT_OURS.items()),
    (dict(model_type="mixtral"), "model_type 'mixtral' is not supported"),
    (dict(layer_types=["full_attention", "sliding_attention"]), "sliding-window"),
    (dict(rope_parameters=dict(rope_type="yarn", factor=4.0)), "rope scaling {'rope_type': 'yarn'"),
    (dict(rope_parameters=None, rope_scaling=LINEAR), "rope scaling {'type': 'linear'"),
    (dict(rope_parameters=PARTIAL), "rope scaling {"),
    (dict(num_hidden_layers=3), "no tensor model.layers.2."),
    (dict(num_hidden_layers=1), "a tensor too many, model.layers.1."),
    (dict(model_type="llama"), "a tensor too many, model.layers.0.self_attn.k_proj.bias"),
    (dict(model_type="qwen3"), "no tensor model.layers.0.self_attn.k_norm.weight"),
    (dict(intermediate_size=50), "gate_proj.weight has the shape [48, 32], config.json asks for [50, 32]"),
    (dict(vocab_size=98), "model.embed_tokens.weight has the shape [97, 32]"),
    (dict(num_key_value_heads=4), "k_proj.weight has the shape [16, 32], config.json asks for [32, 32]"),
    (dict(tie_word_embeddings=True), "ties lm_head.weight"),
    (dict(num_key_value_heads=3), "n_head=4 is not a multiple of n_kv_head=3"),
]


@pytest.mark.parametrize("folder", ["qwen2"], indirect=True)
@pytest.mark.parametrize("changes, words", REFUSED)
def test_what_does_not_fit_is_refused_by_name(folder, changes, words):
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_bytes()) | changes), encoding="utf-8")
    with pytest.raises(ValueError) as error:
        load_pretrained(folder)
    assert words in str(error.value) and "\n" not in str(error.value)
