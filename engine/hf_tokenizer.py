"""Tokenizers of pretrained models as `tiktoken.Encoding`s, and the chat markup of their families.

A byte-level BPE is four things: bytes, merges in the order in which they were learned, a regular expression
that cuts a text into pieces, and special tokens. Files of the `tokenizers` library write bytes as printable
characters and merges as pairs; tiktoken wants each token's bytes with its rank, and merges whichever
neighbours make the lowest rank. The two agree if ranks grow in the order of the merges, which is checked.
"""

from pathlib import Path

import tiktoken

from data.reading import read_json, reading
from data.tokenizer import Tokenizer
from engine.options import require

GPT2_PATTERN = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
# SmolLM2 first cuts out each digit, so spaces before a digit are a piece that ends there.
DIGITS_PATTERN = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+|\s+(?=\p{N})|\s+(?!\S)|\s+"


def read_tokenizer(place: str | Path) -> Tokenizer:
    """The tokenizer of a checkpoint folder (tokenizer.json, or GPT-2's vocab.json and merges.txt), or
    tiktoken's of that name.

    ValueError if there is none or it is not a byte-level BPE. tiktoken's named encodings are downloaded once,
    or found in the folder TIKTOKEN_CACHE_DIR.
    """
    folder = Path(place)
    if not folder.is_dir():
        known = tiktoken.list_encoding_names()
        require(str(place) in known, f"no folder {place}, and tiktoken only has {', '.join(known)}")
        with reading(place, "a tokenizer that could be downloaded"):
            return with_markup(tiktoken.get_encoding(str(place)))
    path, vocab_file, merges_file = (folder / f for f in ("tokenizer.json", "vocab.json", "merges.txt"))
    if path.is_file():
        with reading(path, "a tokenizer that we support"):
            return from_tokenizer_json(path)
    if vocab_file.is_file() and merges_file.is_file():
        with reading(folder, "the folder of a tokenizer that we support"):
            vocab, lines = read_json(vocab_file), merges_file.read_text(encoding="utf-8").splitlines()
            merges = [line.replace(" ", "") for line in lines if line and not line.startswith("#version")]
            special = {token: i for token, i in vocab.items() if token == "<|endoftext|>"}
            return with_markup(encoding(folder.name, vocab, merges, GPT2_PATTERN, special))
    sentencepiece = (folder / "tokenizer.model").is_file()
    require(not sentencepiece, f"{folder} has a SentencePiece tokenizer: take one with a tokenizer.json")
    raise ValueError(f"{folder} has no tokenizer.json, nor vocab.json and merges.txt")


def from_tokenizer_json(path: Path) -> Tokenizer:
    """A `tokenizers` file. ValueError for anything but a byte-level BPE that we can do exactly."""
    content = read_json(path)
    model, normalizer = content.get("model") or {}, content.get("normalizer") or {}
    bpe = model.get("type", "BPE") == "BPE" and not model.get("byte_fallback") and model.get("merges")
    require(bpe, f"{path} is not a byte-level BPE (maybe SentencePiece's): take another checkpoint")
    form = normalizer.get("type", "NFC")
    require(form == "NFC", f"{path}: normalizer {form!r} is not supported (only NFC is)")
    merges = [m.split(" ") if isinstance(m, str) else m for m in model["merges"]]
    order = [a + b for a, b in merges]
    vocab, added = model["vocab"], {t["content"]: t["id"] for t in content.get("added_tokens") or []}
    if model.get("ignore_merges"):  # a piece that is a token is taken whole, wherever merges lead
        order = sorted((token for token in vocab if token not in added), key=vocab.get)
    pattern = split_pattern(content.get("pre_tokenizer") or {}, path)
    made = encoding(path.parent.name, vocab, order, pattern, added)
    return with_markup(made, form="NFC" if normalizer else "")


def split_pattern(pre: dict, path: Path) -> str:
    """The one regular expression that does what a `pre_tokenizer` does."""
    parts = pre.get("pretokenizers", [pre])
    kinds = [part.get("type") for part in parts]
    if kinds and kinds[-1] == "ByteLevel" and not parts[-1].get("add_prefix_space", True):
        by_regex, first = parts[-1].get("use_regex", True), parts[0]
        if kinds == ["ByteLevel"] and by_regex:
            return GPT2_PATTERN
        if kinds == ["Digits", "ByteLevel"] and by_regex and first.get("individual_digits"):
            return DIGITS_PATTERN
        pattern = first.get("pattern", {}).get("Regex")
        isolated = first.get("behavior") == "Isolated" and not first.get("invert")
        if kinds == ["Split", "ByteLevel"] and not by_regex and pattern and isolated:
            return pattern
    found = " + ".join(map(str, kinds))
    raise ValueError(f"{path}: pre_tokenizer {found} is not GPT-2's, Llama 3's, Qwen's or SmolLM2's")


def encoding(name: str, vocab: dict, merged: list[str], pattern: str, special: dict) -> tiktoken.Encoding:
    """A tiktoken encoding of a vocabulary that writes bytes as characters; `merged` are its tokens in the
    order of the merges, `special` those that mark up texts. Both dicts map a token to its id.

    ValueError if the ids do not grow in the order of the merges, since tiktoken's ranks are its ids.
    """
    byte_of, ranks, last, where = printable_bytes(), {}, -1, f"tokenizer {name}"
    for token in [*(c for c in byte_of if c in vocab), *merged]:
        in_bytes = token in vocab and set(token) <= byte_of.keys()
        require(in_bytes, f"{where}: {token!r} is unknown or not written in bytes: it is no byte-level BPE")
        if len(token) > 1:
            in_order = vocab[token] >= last
            require(in_order, f"{where}: tiktoken can't have the id of {token!r} out of the merges' order")
            last = vocab[token]
        ranks[bytes(byte_of[c] for c in token)] = vocab[token]
    needed = {*range(ord(" "), ord("~") + 1), ord("\n")}  # plain English and the markup of dialogues
    missing = sorted(needed & bytes_without_token(ranks))
    require(not missing, f"{where}: {len(missing)} bytes have no token, such as {missing[:1]}")
    ids = [*ranks.values(), *special.values()]
    fine = len(set(ids)) == len(ids) and all(type(i) is int and 0 <= i < 2**31 for i in ids)
    require(fine, f"{where}: its ids are not different whole numbers from 0 on")
    return tiktoken.Encoding(name=name, pat_str=pattern, mergeable_ranks=ranks, special_tokens=special)


def bytes_without_token(tokens) -> frozenset[int]:
    """Real vocabularies lack bytes that hardly any text has, such as some control characters."""
    return frozenset(range(256)) - {token[0] for token in tokens if len(token) == 1}


def printable_bytes() -> dict[str, int]:
    """GPT-2's way of writing bytes as characters: printable ones but the space as themselves, the others from
    U+0100 on, in order.
    """
    printable = [b for b in range(256) if chr(b).isprintable() and b != ord(" ")]
    others = [b for b in range(256) if b not in printable]
    return {chr(b): b for b in printable} | {chr(256 + i): b for i, b in enumerate(others)}


def with_markup(made: tiktoken.Encoding, form: str = "") -> Tokenizer:
    """The family's chat markup, told by its special tokens. No system message: what the model should be, the
    prompts say.

    Nothing is rendered anew for the second turn: it stands behind all that was sampled in the first, so the
    reasoning of attempt 1 stays, also where a family's own template would drop it (Qwen 3).
    """
    special = made.special_tokens_set
    limits = dict(form=form, missing=bytes_without_token(made.token_byte_values()))
    if "<|im_start|>" in special:  # ChatML: Qwen, SmolLM2
        assistant = "<|im_end|>\n<|im_start|>assistant\n"
        return Tokenizer(made, "<|im_end|>", "<|im_start|>user\n", assistant, after="\n", **limits)
    if "<|start_header_id|>" in special:  # Llama 3
        begin, header = "<|begin_of_text|>", "<|start_header_id|>{}<|end_header_id|>\n\n"
        user, assistant = header.format("user"), header.format("assistant")
        return Tokenizer(made, "<|eot_id|>", user, f"<|eot_id|>{assistant}", begin=begin, **limits)
    if "<|endoftext|>" in special:  # GPT-2: plain text
        return Tokenizer(made, "<|endoftext|>", "Question: ", "\nAnswer:", after="\n\n", **limits)
    ends = "<|im_end|>, <|eot_id|> or <|endoftext|>"
    raise ValueError(f"tokenizer {made.name} has no end of turn that we know: {ends}")
