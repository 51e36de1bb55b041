"""Pretrained checkpoints: the same logits as transformers, both ways; every refusal; LoRA; tokenizers; a run from start to end."""

import contextlib
import json
import random
import shutil
import struct
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import eval as evaluation
import train
from data.pretrained_tokenizer import read_tokenizer
from data.tokenizer import Tokenizer
from model import GPT, GPTConfig, KVCache, add_lora, merge_lora, without_lora
from rollout import sample_dialogues

transformers = pytest.importorskip("transformers")
transformers.logging.set_verbosity_error()
transformers.logging.disable_progress_bar()

ASSETS = Path(__file__).parent.parent.parent / "shared" / "assets"
LLAMA3_ROPE = dict(rope_type="llama3", rope_theta=5e5, factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0,
                   original_max_position_embeddings=16)  # fmt: skip
SIZES = dict(vocab_size=97, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
             num_key_value_heads=2, max_position_embeddings=96)  # fmt: skip
FAMILIES = {
    "gpt2": ("GPT2", dict(vocab_size=97, n_positions=96, n_embd=32, n_layer=2, n_head=4)),
    "gpt2 untied, n_inner": ("GPT2", dict(vocab_size=97, n_positions=96, n_embd=32, n_layer=2, n_head=4, n_inner=40,
                                          tie_word_embeddings=False)),
    "llama2": ("Llama", SIZES | dict(num_key_value_heads=4, rms_norm_eps=1e-5)),
    "llama3.2: scaled rope, head_dim, tied": ("Llama", SIZES | dict(head_dim=16, tie_word_embeddings=True,
                                                                    rope_parameters=LLAMA3_ROPE)),
    "smollm2": ("Llama", SIZES | dict(tie_word_embeddings=True, rope_parameters=dict(rope_type="default", rope_theta=1e5))),
    "qwen2": ("Qwen2", SIZES | dict(rope_parameters=dict(rope_type="default", rope_theta=1e6))),
    "qwen2.5 tied": ("Qwen2", SIZES | dict(tie_word_embeddings=True)),
    "qwen3": ("Qwen3", SIZES | dict(head_dim=16, rope_parameters=dict(rope_type="default", rope_theta=1e6))),
}  # fmt: skip


def theirs(name: str):
    """A random transformers model of a family, with weights large enough to tell apart whatever could be exchanged."""
    torch.manual_seed(2)
    family, settings = FAMILIES[name]
    model = getattr(transformers, f"{family}LMHeadModel" if family == "GPT2" else f"{family}ForCausalLM")(
        getattr(transformers, f"{family}Config")(**settings)
    )
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3 if parameter.ndim > 1 else 1.0)
    return model.eval()


@pytest.fixture
def folder(tmp_path, request):
    theirs(request.param).save_pretrained(tmp_path / "hf")
    return tmp_path / "hf"


@torch.no_grad()
def logits(model, ids):
    out = model(ids)
    return out if isinstance(out, torch.Tensor) else out.logits


@pytest.mark.parametrize("name", FAMILIES)
def test_logits_are_those_of_transformers_both_ways(name, tmp_path):
    reference = theirs(name)
    reference.save_pretrained(tmp_path / "hf")
    ids = torch.randint(0, 97, (3, 90))  # beyond the original length of the scaled rope, which is 16
    model = GPT.from_pretrained(tmp_path / "hf")
    expected = logits(reference, ids)
    assert expected.abs().max() > 1
    assert (logits(model, ids) - expected).abs().max() <= 1e-4
    model.save_pretrained(tmp_path / "ours")
    back = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "ours").eval()
    assert type(back) is type(reference)
    assert (logits(back, ids) - expected).abs().max() <= 1e-4
    assert (logits(GPT.from_pretrained(tmp_path / "ours"), ids) - expected).abs().max() <= 1e-4


@pytest.mark.parametrize("name", ["gpt2", "llama3.2: scaled rope, head_dim, tied", "qwen2", "qwen3"])
def test_greedy_sampling_with_the_cache_is_that_of_transformers(name, tmp_path, plain_tokenizer):
    reference = theirs(name)
    reference.save_pretrained(tmp_path / "hf")
    model = GPT.from_pretrained(tmp_path / "hf")
    prompts = [[5, 6, 7], [8] * 11, [9, 10, 11, 12, 13, 14]]
    ours = sample_dialogues(model, plain_tokenizer, prompts, [], 20, 0.0)
    width, end = 11, plain_tokenizer.end_id
    left = torch.tensor([[end] * (width - len(p)) + p for p in prompts])
    mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts])
    out = reference.generate(left, attention_mask=mask, max_new_tokens=20, do_sample=False, eos_token_id=end, pad_token_id=end)
    for b, prompt in enumerate(prompts):
        answer = ours.row(b)[len(prompt) :]
        assert out[b, width : width + len(answer)].tolist() == answer and len(answer) > 3


@pytest.fixture
def plain_tokenizer():
    import tiktoken

    ranks = {bytes([i]): i for i in range(96)}
    return Tokenizer(
        tiktoken.Encoding("bytes", pat_str=r"[\s\S]", mergeable_ranks=ranks, special_tokens={"<e>": 96}), "<e>", "", ""
    )


# ------------------------------------------------------------------------------------------------------ files


@pytest.mark.parametrize("folder", ["qwen2"], indirect=True)
def test_sharded_and_bin_files_and_bfloat16(folder, tmp_path):
    ids = torch.randint(0, 97, (2, 20))
    expected = logits(GPT.from_pretrained(folder), ids)
    reference = transformers.AutoModelForCausalLM.from_pretrained(folder)
    reference.save_pretrained(tmp_path / "shards", max_shard_size="20KB")
    assert len(list((tmp_path / "shards").glob("*.safetensors"))) > 2
    assert torch.equal(logits(GPT.from_pretrained(tmp_path / "shards"), ids), expected)
    old = tmp_path / "bin"
    old.mkdir()
    (old / "config.json").write_text((folder / "config.json").read_text())
    for zipped in (True, False):  # with and without the format that can be memory-mapped
        torch.save(reference.state_dict(), old / "pytorch_model.bin", _use_new_zipfile_serialization=zipped)
        assert torch.equal(logits(GPT.from_pretrained(old), ids), expected)
    half = GPT.from_pretrained(folder, dtype=torch.bfloat16)
    assert {p.dtype for p in half.parameters()} == {torch.bfloat16}
    assert torch.equal(half.embed.weight, GPT.from_pretrained(folder).embed.weight.bfloat16())
    half.save_pretrained(tmp_path / "half")
    assert json.loads((tmp_path / "half" / "config.json").read_text())["torch_dtype"] == "bfloat16"


def test_first_gpt2_files_without_prefix_and_with_mask_buffers(tmp_path):
    reference = theirs("gpt2")
    reference.save_pretrained(tmp_path)
    old = {k.removeprefix("transformer."): v for k, v in reference.state_dict().items() if k != "lm_head.weight"}
    old |= {f"h.{i}.attn.bias": torch.ones(1, 1, 8, 8) for i in range(2)}
    (tmp_path / "model.safetensors").unlink()
    torch.save(old, tmp_path / "pytorch_model.bin")
    ids = torch.randint(0, 97, (2, 20))
    assert (logits(GPT.from_pretrained(tmp_path), ids) - logits(reference, ids)).abs().max() <= 1e-4


def change(folder, **values):
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


@pytest.mark.parametrize("folder", ["qwen2"], indirect=True)
@pytest.mark.parametrize(
    "values, words",
    [
        (dict(model_type="mixtral"), "model_type 'mixtral' is not supported"),
        (dict(model_type="gemma2"), "'gemma2'"),
        (dict(use_sliding_window=True), "use_sliding_window=True"),
        (dict(layer_types=["full_attention", "sliding_attention"]), "sliding-window"),
        (dict(num_experts=8), "num_experts=8"),
        (dict(num_local_experts=8), "num_local_experts=8"),
        (dict(rope_parameters=dict(rope_type="yarn", factor=4.0)), "rope scaling {'rope_type': 'yarn'"),
        (dict(rope_parameters=None, rope_scaling=dict(type="dynamic", factor=4.0)), "rope scaling {'type': 'dynamic'"),
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
        (dict(intermediate_size=50), "gate_proj.weight has the shape [48, 32], config.json asks for [50, 32]"),
        (dict(vocab_size=98), "model.embed_tokens.weight has the shape [97, 32]"),
        (dict(num_key_value_heads=4), "k_proj.weight has the shape [16, 32], config.json asks for [32, 32]"),
        (dict(tie_word_embeddings=True), "ties lm_head.weight"),
        (dict(num_key_value_heads=3), "n_head=4 is not a multiple of n_kv_head=3"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_refused_by_name(folder, values, words):
    change(folder, **values)
    with pytest.raises(ValueError) as error:
        GPT.from_pretrained(folder)
    assert words in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("folder", ["llama2"], indirect=True)
def test_broken_folders_are_named(folder, tmp_path):
    config = (folder / "config.json").read_text()
    for text, words in [
        ("{", "is not a JSON object"),
        ("[]", "is not a JSON object"),
        ('{"model_type": "llama"}', "no 'num_attention_heads'"),
    ]:
        (folder / "config.json").write_text(text)
        with pytest.raises(ValueError, match=words):
            GPT.from_pretrained(folder)
    (folder / "config.json").write_text(config)
    whole = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match="damaged"):
        GPT.from_pretrained(folder)
    (folder / "model.safetensors").unlink()
    with pytest.raises(ValueError, match="neither model.safetensors nor pytorch_model.bin"):
        GPT.from_pretrained(folder)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"x": "model-1.safetensors"}}))
    with pytest.raises(ValueError, match="model-1.safetensors, which is missing"):
        GPT.from_pretrained(folder)
    with pytest.raises(ValueError, match="no file .*config.json"):
        GPT.from_pretrained(tmp_path / "nowhere")
    torch.save({"x": random.Random(0)}, folder / "pytorch_model.bin")
    (folder / "model.safetensors.index.json").unlink()
    with pytest.raises(ValueError, match="pytorch_model.bin can't be read as tensors alone"):  # code in a file is never run
        GPT.from_pretrained(folder)


def test_a_block_that_no_family_has_is_not_written(small_gpt, tmp_path):
    with pytest.raises(ValueError, match="no supported Hugging Face family"):
        small_gpt(qk_norm=True, qkv_bias=True).save_pretrained(tmp_path)


def test_the_toy_model_is_a_qwen3(small_gpt, tmp_path):
    model = small_gpt()
    model.save_pretrained(tmp_path)
    back = transformers.AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    ids = torch.randint(0, 90, (2, 30))
    assert type(back).__name__ == "Qwen3ForCausalLM" and (logits(back, ids) - logits(model, ids)).abs().max() <= 1e-4


# ------------------------------------------------------------------------------------------------------ a trained model


def stories(folder: Path) -> None:
    """llama2.c's 260 K-parameter file as a Hugging Face folder. Its RoPE turns neighbours, Hugging Face's the two halves."""
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
    tensors |= {f"model.layers.{i}.{name}": t[i] for name, t in per_layer.items() for i in range(layers)}
    folder.mkdir()
    torch.save({f"{name}.weight": t.clone() for name, t in tensors.items()}, folder / "pytorch_model.bin")
    (folder / "config.json").write_text(json.dumps(dict(
        model_type="llama", vocab_size=vocab, hidden_size=dim, intermediate_size=hidden, num_hidden_layers=layers,
        num_attention_heads=heads, num_key_value_heads=kv_heads, max_position_embeddings=length, rms_norm_eps=1e-5,
        tie_word_embeddings=True)))  # fmt: skip


def test_a_trained_model_tells_its_story(tmp_path):
    if not (ASSETS / "stories260K.bin").exists():
        pytest.skip("the 260 K-parameter model is not here (shared/assets)")
    stories(tmp_path / "stories")
    model = GPT.from_pretrained(tmp_path / "stories")
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
            cache.advance(torch.ones(1, dtype=torch.long), cache.longest + 1)
            ids.append(int(model.head(hidden)[0, -1].argmax()))
    text = b"".join(pieces[i] for i in ids[1:]).decode().strip()
    assert text.startswith("Once upon a time, there was a little girl named Lily. She loved to play outside in the park. One day, "
                           "she saw a big, red ball.")  # fmt: skip


# ------------------------------------------------------------------------------------------------------ LoRA


@pytest.mark.parametrize("folder", ["qwen2.5 tied"], indirect=True)
def test_lora_starts_as_the_base_learns_and_merges(folder):
    ids = torch.randint(0, 97, (2, 20))
    base = GPT.from_pretrained(folder)
    expected = logits(base, ids)
    model = add_lora(GPT.from_pretrained(folder), rank=4)
    assert torch.equal(logits(model, ids), expected)  # B is zero
    learning = {name for name, p in model.named_parameters() if p.requires_grad}
    assert len(learning) == 2 * 4 * 2 and all(".lora_" in name for name in learning)
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=1.0)
    for _ in range(2):  # in the first step only B has a gradient
        model(ids).logsumexp(-1).sum().backward()
        optimizer.step()
    changed = logits(model, ids)
    assert (changed - expected).abs().max() > 1e-2
    assert all(p.grad is None for name, p in model.named_parameters() if name not in learning)

    reference = without_lora(model)
    assert torch.equal(logits(reference, ids), expected)
    own = {p.data_ptr() for p in model.parameters()}
    assert all(p.data_ptr() in own and not p.requires_grad for p in reference.parameters())  # not a byte of its own
    merged = merge_lora(model)
    assert (logits(merged, ids) - changed).abs().max() <= 1e-4
    assert merged.lm_head.weight is merged.embed.weight
    assert torch.equal(logits(without_lora(model), ids), expected)  # merging leaves the base alone


def test_recomputing_blocks_leaves_the_gradient_alone(small_gpt):
    ids, grads = torch.randint(0, 90, (2, 20)), []
    for recompute in (False, True):
        model = small_gpt()
        model.recompute = recompute
        model(ids).logsumexp(-1).sum().backward()
        grads.append([p.grad for p in model.parameters()])
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(*grads, strict=True))


# ------------------------------------------------------------------------------------------------------ tokenizers

CHATML = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
LLAMA3 = ["<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"]
QWEN_PATTERN = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
                r"|\s*[\r\n]+|\s+(?!\S)|\s+")  # fmt: skip
LAYOUTS = {  # pre-tokenizer, normal form, special tokens, whether those come first, whole pieces without merges
    "gpt2": (None, None, ["<|endoftext|>"], False, False),
    "qwen": (QWEN_PATTERN, "NFC", CHATML, False, False),
    "llama3": (QWEN_PATTERN.replace(r"\p{N}|", r"\p{N}{1,3}|", 1), None, LLAMA3, False, True),
    "smollm2": ("digits", None, CHATML, True, False),
}


def build(layout: str, folder: Path):
    """A tiny tokenizer of a family's layout, trained on this file by the tokenizers library."""
    from tokenizers import Regex, decoders, models, normalizers, pre_tokenizers, trainers
    from tokenizers import Tokenizer as Library

    pattern, form, special, first, ignore_merges = LAYOUTS[layout]
    made = Library(models.BPE(ignore_merges=ignore_merges))
    if pattern is None:
        made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    elif pattern == "digits":
        made.pre_tokenizer = pre_tokenizers.Sequence(
            [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
        )
    else:
        made.pre_tokenizer = pre_tokenizers.Sequence(
            [pre_tokenizers.Split(Regex(pattern), "isolated"), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
        )
    if form:
        made.normalizer = normalizers.NFC()
    made.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(vocab_size=800, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False,
                                  special_tokens=special if first else [])  # fmt: skip
    made.train_from_iterator([Path(__file__).read_text(encoding="utf-8"), "日本語 é è ñ 🙂 " * 20], trainer)
    if not first:
        made.add_special_tokens(special)
    folder.mkdir(exist_ok=True)
    made.save(str(folder / "tokenizer.json"))
    return made


def texts(n: int) -> list[str]:
    """Random texts: words, numbers, spaces of all kinds, code, accents apart from their letters, any Unicode."""
    rng = random.Random(4)
    pool = ["hello", "World", " ", "  ", "\n", "\r\n", "12345", "7", "é", "e\u0301", "日本", "'s", "'RE", "🙂",
            "def f(x):\n    return x+1", "\t", "...", "$x^2$", "\u00a0", "\u2003", "<|im_end|", "٣", "½"]  # fmt: skip

    def piece():
        return (
            rng.choice(pool)
            if rng.random() < 0.9
            else chr(rng.choice((rng.randrange(32, 0x2FFF), rng.randrange(0x10000, 0x1FFFF))))
        )

    return ["".join(piece() for _ in range(rng.randrange(40))) for _ in range(n)]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_ids_are_those_of_the_tokenizers_library(layout, tmp_path):
    library, ours = build(layout, tmp_path), read_tokenizer(tmp_path)
    for text in texts(1500):
        ids = library.encode(text, add_special_tokens=False).ids
        assert ours.encode(text) == ids, repr(text)
        if LAYOUTS[layout][1] is None:
            assert ours.decode(ids) == text
    assert ours.vocab_size == library.get_vocab_size()


@pytest.mark.parametrize("layout", ["llama3", "qwen"])
def test_a_piece_without_merges_is_taken_whole_only_where_the_file_says_so(layout, tmp_path):
    """Llama 3's files have tokens that no merge leads to (ignore_merges)."""
    from tokenizers import Tokenizer as Library

    build(layout, tmp_path)
    edit(tmp_path, lambda c: c["model"]["vocab"].update({"xyzzy": 900}))
    library, ours = Library.from_file(str(tmp_path / "tokenizer.json")), read_tokenizer(tmp_path)
    for text in ("xyzzy", "a xyzzy", "xyzzy xyzzyxyzzy"):
        assert ours.encode(text) == library.encode(text, add_special_tokens=False).ids
    assert (900 in ours.encode("xyzzy")) == (layout == "llama3")


def test_gpt2_ids_are_those_of_the_tokenizers_library(tmp_path):
    if not (ASSETS / "gpt2_encoder.json").exists():
        pytest.skip("GPT-2's vocabulary is not here (shared/assets)")
    from tokenizers import ByteLevelBPETokenizer

    library = ByteLevelBPETokenizer(str(ASSETS / "gpt2_encoder.json"), str(ASSETS / "gpt2_vocab.bpe"))
    (tmp_path / "vocab.json").write_bytes((ASSETS / "gpt2_encoder.json").read_bytes())
    (tmp_path / "merges.txt").write_bytes((ASSETS / "gpt2_vocab.bpe").read_bytes())
    ours = read_tokenizer(tmp_path)
    assert ours.encode("Hello world 12 + 34 = 46") == [15496, 995, 1105, 1343, 4974, 796, 6337]
    assert ours.end_id == 50256 and ours.vocab_size == 50257
    for text in texts(1500):
        assert ours.encode(text) == library.encode(text).ids and ours.decode(ours.encode(text)) == text


@pytest.mark.parametrize("layout", LAYOUTS)
def test_dialogues_are_marked_up_as_the_family_has_it(layout, tmp_path):
    library, ours = build(layout, tmp_path), read_tokenizer(tmp_path)
    ids = [*ours.user_turn("What is 2+2?"), *ours.encode("5"), ours.end_id, *ours.user_turn("Check it.", first=False)]
    chatml = ("<|im_start|>user\nWhat is 2+2?<|im_end|>\n<|im_start|>assistant\n5<|im_end|>\n"
              "<|im_start|>user\nCheck it.<|im_end|>\n<|im_start|>assistant\n")  # fmt: skip
    user, assistant = (f"<|start_header_id|>{role}<|end_header_id|>\n\n" for role in ("user", "assistant"))
    text = {
        "gpt2": "Question: What is 2+2?\nAnswer:5<|endoftext|>\n\nQuestion: Check it.\nAnswer:",
        "qwen": chatml,
        "smollm2": chatml,
        "llama3": f"<|begin_of_text|>{user}What is 2+2?<|eot_id|>{assistant}5<|eot_id|>{user}Check it.<|eot_id|>{assistant}",
    }[layout]
    assert ours.decode(ids) == text
    if layout != "gpt2":
        assert ids == library.encode(text, add_special_tokens=False).ids
    assert ours.end_id not in ours.encode(ours.end)  # the name of a special token in a problem is only text


def edit(folder, change):
    content = json.loads((folder / "tokenizer.json").read_text())
    change(content)
    (folder / "tokenizer.json").write_text(json.dumps(content))


@pytest.mark.parametrize(
    "change, words",
    [
        (lambda c: c["model"].update(type="Unigram"), "not a byte-level BPE"),
        (lambda c: c["model"].update(byte_fallback=True), "not a byte-level BPE"),
        (lambda c: c.update(normalizer={"type": "Lowercase"}), "normalizer 'Lowercase'"),
        (lambda c: c.update(pre_tokenizer={"type": "Metaspace"}), "pre_tokenizer Metaspace"),
        (lambda c: c["pre_tokenizer"]["pretokenizers"][0].update(behavior="Removed"), "pre_tokenizer Split + ByteLevel"),
        (lambda c: c["pre_tokenizer"]["pretokenizers"][1].update(add_prefix_space=True), "pre_tokenizer Split + ByteLevel"),
        (lambda c: c["model"]["merges"].reverse(), "out of the order of the merges"),
        (lambda c: c["model"]["vocab"].pop("a"), "bytes have no token"),
        (lambda c: c["added_tokens"].clear(), "no end-of-turn token"),
    ],
)
def test_tokenizers_that_we_cannot_do_exactly_are_refused(tmp_path, change, words):
    build("qwen", tmp_path)
    edit(tmp_path, change)
    with pytest.raises(ValueError) as error:
        read_tokenizer(tmp_path)
    assert words in str(error.value) and "\n" not in str(error.value)


def test_folders_without_a_tokenizer_are_named(tmp_path):
    with pytest.raises(ValueError, match="has no tokenizer.json"):
        read_tokenizer(tmp_path)
    (tmp_path / "tokenizer.model").write_bytes(b"sentencepiece")
    with pytest.raises(ValueError, match="SentencePiece tokenizer only"):
        read_tokenizer(tmp_path)
    with pytest.raises(ValueError, match="tiktoken has no encoding of this name"):
        read_tokenizer("gpt17")


def test_ids_without_a_token_are_decoded_as_unknown(tmp_path):
    build("qwen", tmp_path)
    ours = read_tokenizer(tmp_path)
    ids = ours.encode("日本")
    assert ours.decode([*ids, ours.vocab_size + 5, *ids]) == "日本\ufffd日本"


# ------------------------------------------------------------------------------------------------------ runs

ROOT = Path(__file__).parent.parent
SHORT = ["--optimizer=adamw", "--lr=1e-3", "--stage2_lr=1e-3", "--stage1_steps=4", "--stage2_steps=3", "--batch=8",
         "--sample_batch=5", "--micro_batch=3", "--max_new=12", "--eval_n=6", "--save_every=2", "--show_every=2",
         "--log_every=1", "--device=cpu"]  # fmt: skip


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """A random Qwen 2 with its tokenizer, in a folder; a few more ids than tokens, as the real ones have."""
    folder = tmp_path_factory.mktemp("tiny") / "qwen"
    build("qwen", folder)
    torch.manual_seed(0)
    sizes = dict(n_layer=2, n_head=4, n_kv_head=2, dim=64, head_dim=16, ffn_dim=96, max_len=2048)
    GPT(GPTConfig(807 + 3, **sizes, qk_norm=False, qkv_bias=True, tie_weights=True)).save_pretrained(folder)
    return folder


def run_here(monkeypatch, *words):
    report = [] if any("--resume" in word for word in words) else ["--report=false"]
    monkeypatch.setattr(sys, "argv", ["train.py", *report, *words])
    train.main()


def lucky(task, problems, texts, ended):
    """A stand-in checker with both outcomes for a random model: is the text's length even?"""
    return torch.tensor([[len(t) % 2 == 0 for t in row] for row in texts]), {}


@pytest.mark.parametrize(
    "mode", [["--lora=4"], ["--dtype=bfloat16"], ["--dtype=bfloat16", "--lora=4", "--recompute=true"]], ids=" ".join
)
def test_stopped_and_resumed_run_equals_the_unbroken_one(mode, tiny, tmp_path, monkeypatch, capsys):
    """Adapters, float32 copies, optimiser state: all that a step depends on is in last.pt."""
    monkeypatch.setattr(train, "correctness", lucky)
    words = [f"--init={tiny}", *SHORT, *mode, f"--out={tmp_path}"]
    run_here(monkeypatch, *words, "--name=whole")
    log_step, rows = train.log_step, []

    def stop_at(*args):
        log_step(*args)
        rows.append(args)
        if len(rows) in (3, 8):  # after 3 steps, and after 2 + 5 + 1, in Stage II
            raise KeyboardInterrupt

    monkeypatch.setattr(train, "log_step", stop_at)
    for start in ([*words, "--name=broken"], [f"--resume={tmp_path}/broken"], [f"--resume={tmp_path}/broken"]):
        with contextlib.suppress(SystemExit):
            run_here(monkeypatch, *start)
    assert len(rows) > 8
    for name in ("stage1", "stage2", "last"):
        whole, broken = (train.load(tmp_path / run / f"{name}.pt")["model"] for run in ("whole", "broken"))
        assert whole.keys() == broken.keys() and all(torch.equal(whole[k], broken[k]) for k in whole)
        adapters = all(".lora_" in k for k in whole)
        assert adapters == ("--lora=4" in mode)  # what init has is not stored again
    assert not train.load(tmp_path / "whole" / "base.pt")["model"]
    base, after = (train.load_model(tmp_path / "whole" / f"{name}.pt", "cpu")[0] for name in ("base", "stage2"))
    ids = torch.randint(0, 800, (2, 20))
    assert torch.equal(logits(base, ids), logits(GPT.from_pretrained(tiny, dtype=base.embed.weight.dtype), ids))
    assert (logits(after, ids) - logits(base, ids)).abs().max() > 1e-3


def test_small_updates_reach_bfloat16_weights_through_their_copies(small_gpt):
    """G6: an update of 1e-5 is less than half a bfloat16 step of a weight near 0.3: each alone would be rounded away."""
    model = small_gpt().to(torch.bfloat16)
    before = [p.detach().clone() for p in model.parameters()]
    masters = train.master_weights(model, {})
    optimizer = torch.optim.SGD(masters.values(), lr=1e-5)
    for _ in range(300):
        for master in masters.values():
            master.grad = torch.ones_like(master)
        optimizer.step()
        train.copy_masters(model, masters)
    for name, p, old in zip(masters, model.parameters(), before, strict=True):
        assert torch.allclose(masters[name], old.float() - 3e-3, atol=1e-4)
        assert (p.float() - (old.float() - 3e-3)).abs().max() < 2**-8 * old.float().abs().max()  # within rounding
    alone = before[0].clone()
    for _ in range(300):
        alone -= 1e-5
    assert (alone == before[0]).float().mean() > 0.5


def test_micro_batch_gradients_add_up_in_float32(small_gpt):
    """256 small gradients on a large one: in bfloat16 they would be lost."""
    model = small_gpt().to(torch.bfloat16)
    masters = train.master_weights(model, {})
    weight, name = model.norm.weight, "norm.weight"
    (weight.sum() * 256).backward()
    for _ in range(256):
        weight.sum().backward()
    assert torch.equal(masters[name].grad, torch.full_like(masters[name], 512.0)) and weight.grad is None


def test_the_reference_of_a_lora_run_is_the_base(tiny, tmp_path, monkeypatch, capsys):
    """KL is 0 in the first step and positive later: the adapters are on in the policy and off in the reference."""
    monkeypatch.setattr(train, "correctness", lucky)
    run_here(monkeypatch, f"--init={tiny}", *SHORT, "--lora=4", "--lr=1e-2", "--stage2_steps=0", f"--out={tmp_path}", "--name=kl")
    rows = [json.loads(line) for line in (tmp_path / "kl" / "metrics.jsonl").read_text().splitlines()]
    assert rows[0]["kl_t1"] == pytest.approx(0, abs=1e-6) and rows[-1]["kl_t1"] + rows[-1]["kl_t2"] > 1e-5


def test_export_is_the_merged_policy(tiny, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(train, "correctness", lucky)
    run_here(monkeypatch, f"--init={tiny}", *SHORT, "--lora=4", "--lr=1e-2", f"--out={tmp_path}", "--name=x")
    checkpoint = tmp_path / "x" / "stage2.pt"
    monkeypatch.setattr(sys, "argv", ["eval.py", str(checkpoint), f"--export={tmp_path / 'hf'}"])
    evaluation.main()
    policy, _ = train.load_model(checkpoint, "cpu")
    exported = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "hf").eval()
    ids = torch.randint(0, 800, (2, 20))
    assert (logits(exported, ids) - logits(policy, ids)).abs().max() <= 1e-4
    assert read_tokenizer(tmp_path / "hf").encode("a b") == read_tokenizer(tiny).encode("a b")


def test_a_run_of_no_steps_evaluates_the_pretrained_model(tiny, tmp_path):
    """By the real scripts, as a user does it before training."""
    words = [*SHORT, "--stage1_steps=0", "--stage2_steps=0", f"--init={tiny}", f"--out={tmp_path}", "--name=base"]
    done = subprocess.run([sys.executable, ROOT / "train.py", *words], capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    assert "| base | greedy | 0.0" in (tmp_path / "base" / "report.md").read_text()


@pytest.mark.parametrize(
    "words, mend",
    [
        (["--task=gsm8k"], "needs --init=FOLDER"),
        (["--task=gsm8k", "--init=x"], "--train_data=FILE and --test_data=FILE"),
        (["--train_data=x"], "it reads no files"),
        (["--lora=8"], "give one with --init"),
        (["--dtype=float16"], "choose float32 or bfloat16"),
        (["--optimizer=sgd"], "choose muon or adamw"),
        (["--lora=-1"], "0 leaves it out"),
    ],
)
def test_bad_settings_of_pretrained_runs_name_their_mend(words, mend):
    with pytest.raises(ValueError) as error:
        train.parse_args(words)
    assert mend in str(error.value) and "\n" not in str(error.value)


def test_adapters_are_merged_where_a_run_starts_from_them(tiny, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(train, "correctness", lucky)
    run_here(monkeypatch, f"--init={tiny}", *SHORT, "--lora=4", "--lr=1e-2", f"--out={tmp_path}", "--name=first")
    for mode in ("--lora=2", "--lora=0"):
        run_here(monkeypatch, f"--init={tmp_path}/first/stage2.pt", *SHORT, mode, f"--out={tmp_path}", f"--name=second{mode}")
        first, base, after = (
            train.load_model(tmp_path / place, "cpu")[0]
            for place in ("first/stage2.pt", f"second{mode}/base.pt", f"second{mode}/stage2.pt")
        )
        ids = torch.randint(0, 800, (2, 20))
        assert (logits(base, ids) - logits(first, ids)).abs().max() <= 1e-4
        assert (logits(after, ids) - logits(first, ids)).abs().max() > 1e-3


def test_dialogues_that_outgrow_the_model_are_refused_at_the_start(tiny, tmp_path, monkeypatch, capsys):
    for split, rows in (("train", range(6, 12)), ("test", range(6))):
        (tmp_path / split).write_text("".join(json.dumps(FILES["gsm8k"](i)) + "\n" for i in rows))
    words = [
        "--task=gsm8k",
        f"--init={tiny}",
        f"--train_data={tmp_path}/train",
        f"--test_data={tmp_path}/test",
        f"--out={tmp_path}",
    ]
    with pytest.raises(SystemExit, match="max_len=2048: lower --max_new"):
        run_here(monkeypatch, *words, *SHORT, "--max_new=900", "--name=long")
    with pytest.raises(SystemExit, match="no .*nowhere: --init takes a .pt file or a folder"):
        run_here(monkeypatch, *words, f"--init={tmp_path}/nowhere", *SHORT, "--name=nowhere")


def test_a_missing_base_is_named(tiny, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(train, "correctness", lucky)
    moved = tmp_path / "moved"
    shutil.copytree(tiny, moved)
    run_here(monkeypatch, f"--init={moved}", *SHORT, "--lora=4", f"--out={tmp_path}", "--name=x")
    shutil.rmtree(moved)
    with pytest.raises(ValueError, match="moved"):
        train.load_model(tmp_path / "x" / "stage2.pt", "cpu")


FILES = {
    "gsm8k": lambda i: {"question": f"Ann has {i} apples and gets {i} more. How many has she?", "answer": f"#### {2 * i}"},
    "math": lambda i: {"problem": f"What is ${i}+1$?", "solution": rf"It is $\boxed{{{i + 1}}}$."},
    "mbpp": lambda i: {"task_id": i, "text": f"Write a function add{i} that adds {i}.", "test_setup_code": "",
                       "code": f"def add{i}(x):\n    return x + {i}", "test_list": [f"assert add{i}(1) == {i + 1}"]},
}  # fmt: skip


@pytest.mark.parametrize("name", ["gsm8k", "mbpp"])
def test_real_tasks_from_files_by_the_real_scripts(name, tiny, tmp_path):
    """Both stages with LoRA on a random model, a kill and a resumption, the report, and what eval.py offers beside it."""
    numbers = {"train": range(700, 712), "test": range(20, 26)} if name == "mbpp" else {"train": range(12), "test": range(6)}
    for split, rows in numbers.items():
        (tmp_path / split).write_text("".join(json.dumps(FILES[name](i)) + "\n" for i in rows))
    words = [f"--preset={name}-laptop", f"--init={tiny}", f"--train_data={tmp_path}/train", f"--test_data={tmp_path}/test", *SHORT]
    log = tmp_path / "run" / "metrics.jsonl"
    process = subprocess.Popen(
        [sys.executable, ROOT / "train.py", *words, f"--out={tmp_path}", "--name=run"], stdout=subprocess.DEVNULL
    )
    while not (log.exists() and log.read_text().count("\n") >= 3):
        assert process.poll() is None
    process.kill()
    process.wait()
    done = subprocess.run(
        [sys.executable, ROOT / "train.py", f"--resume={tmp_path}/run"], capture_output=True, text=True, timeout=240
    )
    assert done.returncode == 0, done.stderr
    rows = [json.loads(line) for line in log.read_text().splitlines()]
    assert [(row["stage"], row["step"]) for row in rows] == [("stage1", k) for k in (1, 2, 3, 4)] + [
        ("stage2", k) for k in (1, 2, 3)
    ]
    assert all(0 <= row[k] <= 1 for row in rows for k in ("truncated", "unparsable", "timeout"))
    report = (tmp_path / "run" / "report.md").read_text()
    assert "| stage2 | greedy |" in report and "could not be judged" in report


def test_what_eval_offers_for_real_tasks(tiny, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(train, "correctness", lucky)
    for split, rows in (("train", range(6, 12)), ("test", range(6))):
        (tmp_path / split).write_text("".join(json.dumps(FILES["gsm8k"](i)) + "\n" for i in rows))
    words = ["--task=gsm8k", f"--init={tiny}", f"--train_data={tmp_path}/train", f"--test_data={tmp_path}/test", *SHORT, "--lora=4"]
    run_here(monkeypatch, *words, f"--out={tmp_path}", "--name=run")

    def evaluate(*more):
        monkeypatch.setattr(sys, "argv", ["eval.py", str(tmp_path / "run" / "stage2.pt"), *more])
        capsys.readouterr()
        evaluation.main()
        return capsys.readouterr().out

    shown = evaluate(f"--save={tmp_path}/wrong.jsonl", "--show=1", "--temperature=1")
    assert "--- attempt 2 (wrong)" in shown and "n = 6)" in shown and "unparsable" in shown
    repaired = json.loads(evaluate(f"--repair={tmp_path}/wrong.jsonl", "--json"))  # a random model's attempts are all wrong
    assert repaired["n"] == 6 and repaired["acc_t1"] == 0
    with pytest.raises(SystemExit, match="no problems that a person could type"):
        evaluate("--problem=1+1")
    # what is not wrong as it stands is left out: right, though cut off before its end; empty
    rows = [{"prompt": "x", "answer": "1", "attempts": [text, ""], "right": [False, False]} for text in ("#### 1", "")]
    (tmp_path / "wrong.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(SystemExit, match="nothing to repair"):
        evaluate(f"--repair={tmp_path}/wrong.jsonl")
    monkeypatch.setattr(sys, "argv", ["eval.py", str(tmp_path / "run"), "--n=2"])
    with pytest.raises(SystemExit, match="--n is for one checkpoint"):
        evaluation.main()


def test_a_given_first_attempt_stands_in_the_place_of_turn_1(tiny, tmp_path, monkeypatch, capsys):
    """Offline repair: the second attempt is what the model says after the given one, and Acc@t1 is the given one's."""
    train_file, test_file = tmp_path / "train", tmp_path / "test"
    rows = [{"question": f"{i}?", "answer": f"#### {i}", "attempt": f"It is {i if i < 2 else 99}."} for i in range(6)]
    test_file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    train_file.write_text(json.dumps({"question": "x", "answer": "#### 1"}) + "\n")
    c = train.Config(task="gsm8k", init=str(tiny), train_data=str(train_file), test_data=str(test_file), max_new=5)
    model, tokenizer = GPT.from_pretrained(tiny), read_tokenizer(tiny)
    problems = evaluation.held_out_of(c, 10)
    metrics, transcripts = evaluation.evaluate(model, c, problems)
    assert metrics["acc_t1"] == pytest.approx(2 / 6) and [t[1][0] for t in transcripts] == [row["attempt"] for row in rows]
    from data.gsm8k import CORRECTION_REQUEST

    ids = [*tokenizer.user_turn(problems[3].prompt), *tokenizer.encode("It is 99."), tokenizer.end_id,
           *tokenizer.user_turn(CORRECTION_REQUEST, first=False)]  # fmt: skip
    with torch.no_grad():
        for _ in range(5):
            ids.append(int(model(torch.tensor([ids]))[0, -1].argmax()))
    assert transcripts[3][1][1] == tokenizer.decode(ids[-5:])
    with pytest.raises(ValueError, match="for every problem"):
        evaluation.evaluate(model, c, [problems[0], problems[1]._replace(given="")])


def test_problems_in_both_files_are_not_trained_on(tmp_path):
    from data import load_task, train_problems

    for split, rows in (("train", range(8)), ("test", range(3))):
        (tmp_path / split).write_text("".join(json.dumps(FILES["math"](i)) + "\n" for i in rows))
    task = load_task("math")
    problem_at = train_problems(task, 0, 5, f"{tmp_path}/train", f"{tmp_path}/test")
    epochs = [[problem_at(epoch * 5 + i).prompt for i in range(5)] for epoch in range(3)]
    held_out = {p.prompt for p in task.read(f"{tmp_path}/test", "test")}
    assert all(len(set(epoch)) == 5 and not set(epoch) & held_out for epoch in epochs)
    assert epochs[0] != epochs[1] and sorted(epochs[0]) == sorted(epochs[2])
    with pytest.raises(ValueError, match="nothing to train on"):
        train_problems(task, 0, 5, f"{tmp_path}/test", f"{tmp_path}/test")


@pytest.mark.parametrize(
    "text, words",
    [
        ("", "has no rows"),
        ('{"problem": "x"}\n', "row 1: no field 'solution'"),
        ('{"problem": "x", "solution": "$\\\\boxed{1}$"}\nnonsense\n', "row 2: not JSON"),
        ("[1]\n", "row 1: no field 'problem'"),
        ('{"problem": "x", "solution": "no answer at all"}\n', "row 1"),
    ],
)
def test_bad_files_name_the_row(text, words, tmp_path):
    from data import load_task

    (tmp_path / "rows").write_text(text)
    with pytest.raises(ValueError) as error:
        load_task("math").read(str(tmp_path / "rows"), "train")
    assert words in str(error.value) and "\n" not in str(error.value)
    with pytest.raises(ValueError, match="no file .*where each task's data is got"):
        load_task("math").read(str(tmp_path / "nowhere"), "train")
