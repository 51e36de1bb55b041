"""Tokenizers of checkpoints: the ids of the tokenizers library, each family's chat markup, every refusal."""

import json
import random
from pathlib import Path

import pytest
from pretrained import LAYOUTS, write_tokenizer

from engine.hf_tokenizer import printable_bytes, read_tokenizer

tokenizers = pytest.importorskip("tokenizers")

ASSETS = Path(__file__).parent.parent.parent / "shared" / "assets"


def texts(n: int) -> list[str]:
    """Random texts: words, numbers, spaces of all kinds, code, accents apart from letters, any Unicode."""
    rng = random.Random(4)
    pool = [
        "hello", "World", " ", "  ", "\n", "\r\n", "12345", "7", "é", "e\u0301", "日本", "'s", "'RE", "🙂",
        "def f(x):\n    return x+1", "\t", "...", "$x^2$", "\u00a0", "\u2003", "<|im_end|", "٣", "½",
    ]  # fmt: skip

    def piece():
        if rng.random() < 0.9:
            return rng.choice(pool)
        return chr(rng.choice((rng.randrange(32, 0x2FFF), rng.randrange(0x10000, 0x1FFFF))))

    return ["".join(piece() for _ in range(rng.randrange(40))) for _ in range(n)]


def check_ids(ours, library, some_texts: list[str]) -> None:
    for text in some_texts:
        ids = library.encode(text, add_special_tokens=False).ids
        assert ours.encode(text) == ids, repr(text)
        assert ours.form or ours.decode(ids) == text


def edited(layout: str, folder: Path, change):
    """Our tokenizer and the library's, for a layout's file after `change` to its content."""
    path = folder / "tokenizer.json"
    write_tokenizer(layout, folder)
    content = json.loads(path.read_text(encoding="utf-8"))
    change(content)
    path.write_text(json.dumps(content), encoding="utf-8")
    return read_tokenizer(folder), tokenizers.Tokenizer.from_file(str(path))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_ids_are_those_of_the_tokenizers_library(layout, tmp_path):
    library, ours = write_tokenizer(layout, tmp_path), read_tokenizer(tmp_path)
    check_ids(ours, library, texts(1500))
    assert ours.vocab_size == library.get_vocab_size() > 700
    assert ours.form == ("NFC" if layout == "qwen" else "")
    ids = ours.encode("日本")
    assert ours.decode([*ids, ours.vocab_size + 5, *ids]) == "日本\ufffd日本"  # an id without a token


@pytest.mark.parametrize("layout", ["llama3", "qwen"])
def test_a_piece_without_merges_is_taken_whole_only_where_the_file_says_so(layout, tmp_path):
    """Llama 3's files have tokens that no merge leads to (ignore_merges)."""
    ours, library = edited(layout, tmp_path, lambda c: c["model"]["vocab"].update({"xyzzy": 900}))
    check_ids(ours, library, ["xyzzy", "a xyzzy", "xyzzy xyzzyxyzzy"])
    assert (900 in ours.encode("xyzzy")) == (layout == "llama3")


def test_gpt2_ids_are_those_of_the_tokenizers_library(tmp_path):
    vocab, merges = ASSETS / "gpt2_encoder.json", ASSETS / "gpt2_vocab.bpe"
    if not vocab.exists():
        pytest.skip("GPT-2's vocabulary is not here (shared/assets)")
    (tmp_path / "vocab.json").write_bytes(vocab.read_bytes())
    (tmp_path / "merges.txt").write_bytes(merges.read_bytes())
    ours = read_tokenizer(tmp_path)
    assert ours.encode("Hello world 12 + 34 = 46") == [15496, 995, 1105, 1343, 4974, 796, 6337]
    assert ours.end_id == 50256 and ours.vocab_size == 50257
    check_ids(ours, tokenizers.ByteLevelBPETokenizer(str(vocab), str(merges)), texts(1500))


CHATML = (
    "<|im_start|>user\nWhat is 2+2?<|im_end|>\n<|im_start|>assistant\n5<|im_end|>\n"
    "<|im_start|>user\nCheck it.<|im_end|>\n<|im_start|>assistant\n"
)
USER, ASSISTANT = (f"<|start_header_id|>{role}<|end_header_id|>\n\n" for role in ("user", "assistant"))
DIALOGUES = {
    "gpt2": "Question: What is 2+2?\nAnswer:5<|endoftext|>\n\nQuestion: Check it.\nAnswer:",
    "qwen": CHATML,
    "smollm2": CHATML,
    "llama3": f"<|begin_of_text|>{USER}What is 2+2?<|eot_id|>{ASSISTANT}5<|eot_id|>"
    f"{USER}Check it.<|eot_id|>{ASSISTANT}",
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_dialogues_are_marked_up_as_the_family_does_it(layout, tmp_path):
    library, ours = write_tokenizer(layout, tmp_path), read_tokenizer(tmp_path)
    ids = [*ours.user_turn("What is 2+2?"), *ours.encode("5"), ours.end_id]
    ids += ours.user_turn("Check it.", first=False)
    assert ours.decode(ids) == DIALOGUES[layout]
    assert layout == "gpt2" or ids == library.encode(DIALOGUES[layout], add_special_tokens=False).ids
    assert ours.end_id not in ours.encode(ours.end)  # the name of a special token in a problem is only text


def test_a_character_without_a_token_is_named_and_all_other_text_is_that_of_the_library(tmp_path):
    """Real vocabularies lack some bytes: SmolLM2's eight, the lead bytes of empty planes among them."""
    written = {b: c for c, b in printable_bytes().items()}
    without = [written[b] for b in (4, 29, 0xF1)]
    ours, library = edited("smollm2", tmp_path, lambda c: [c["model"]["vocab"].pop(x) for x in without])
    for character in ("\x04", "\x1d", "\U00041234"):
        for text in (character, f"a{character}b", f"12 .{character}. é"):
            with pytest.raises(ValueError, match="the tokenizer has no token for") as error:
                ours.user_turn(text)
            assert repr(character) in str(error.value) and "\n" not in str(error.value)
    check_ids(ours, library, ["\x05", *texts(300)])
    assert ours.encode("\ud800")  # half of a surrogate pair has no UTF-8, which must not matter


def steps(content: dict) -> list[dict]:
    return content["pre_tokenizer"]["pretokenizers"]


@pytest.mark.parametrize(
    "change, words",
    [
        (lambda c: c["model"].update(type="Unigram"), "not a byte-level BPE"),
        (lambda c: c["model"].update(byte_fallback=True), "not a byte-level BPE"),
        (lambda c: c.update(normalizer={"type": "Lowercase"}), "normalizer 'Lowercase'"),
        (lambda c: c.update(pre_tokenizer={"type": "Metaspace"}), "pre_tokenizer Metaspace"),
        (lambda c: steps(c)[0].update(behavior="Removed"), "pre_tokenizer Split + ByteLevel"),
        (lambda c: steps(c)[1].update(add_prefix_space=True), "pre_tokenizer Split + ByteLevel"),
        (lambda c: c["model"]["merges"].reverse(), "out of the merges' order"),
        (lambda c: c["model"]["vocab"].pop("a"), "bytes have no token"),
        (lambda c: c["model"]["vocab"].pop("~"), "1 bytes have no token, such as [126]"),
        (lambda c: c["added_tokens"].clear(), "no end of turn that we know"),
    ],
)
def test_tokenizers_that_we_cannot_do_exactly_are_refused(tmp_path, change, words):
    with pytest.raises(ValueError) as error:
        edited("qwen", tmp_path, change)
    assert words in str(error.value) and "\n" not in str(error.value)


def test_folders_without_a_tokenizer_are_refused_by_name(tmp_path):
    with pytest.raises(ValueError, match="has no tokenizer.json"):
        read_tokenizer(tmp_path)
    (tmp_path / "tokenizer.model").write_bytes(b"sentencepiece")
    with pytest.raises(ValueError, match="has a SentencePiece tokenizer"):
        read_tokenizer(tmp_path)
    with pytest.raises(ValueError, match="no folder gpt17, and tiktoken only has gpt2"):
        read_tokenizer("gpt17")
