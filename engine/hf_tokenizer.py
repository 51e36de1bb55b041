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
        if str(place) not in tiktoken.list_encoding_names():
            raise ValueError(
                f"no folder {place}, and tiktoken only has {', '.join(tiktoken.list_encoding_names())}"
            )
        with reading(place, "a tokenizer that could be downloaded"):
            return with_markup(tiktoken.get_encoding(str(place)))
    if (folder / "tokenizer.json").is_file():
        path = folder / "tokenizer.json"
        with reading(path, "a tokenizer that we support"):
            return from_tokenizer_json(path)
    if (folder / "vocab.json").is_file() and (folder / "merges.txt").is_file():
        with reading(folder, "the folder of a tokenizer that we support"):
            vocab = read_json(folder / "vocab.json")
            lines = (folder / "merges.txt").read_text(encoding="utf-8").splitlines()
            merges = [line.replace(" ", "") for line in lines if line and not line.startswith("#version")]
            special = {token: i for token, i in vocab.items() if token == "<|endoftext|>"}
            return with_markup(encoding(folder.name, vocab, merges, GPT2_PATTERN, special))
    if (folder / "tokenizer.model").is_file():
        raise ValueError(
            f"{folder} has a SentencePiece tokenizer, which is not supported: take one with a tokenizer.json"
        )
    raise ValueError(f"{folder} has no tokenizer.json, nor vocab.json and merges.txt")


def from_tokenizer_json(path: Path) -> Tokenizer:
    """A `tokenizers` file. ValueError for anything but a byte-level BPE that we can do exactly."""
    content = read_json(path)
    model, normalizer = content.get("model") or {}, content.get("normalizer") or {}
    if model.get("type", "BPE") != "BPE" or model.get("byte_fallback") or not model.get("merges"):
        raise ValueError(
            f"{path} is not a byte-level BPE (it may be SentencePiece's or a unigram model): not supported"
        )
    if normalizer.get("type", "NFC") != "NFC":
        raise ValueError(f"{path}: normalizer {normalizer['type']!r} is not supported (only NFC is)")
    merges = [m.split(" ") if isinstance(m, str) else m for m in model["merges"]]
    added = {t["content"]: t["id"] for t in content.get("added_tokens") or []}
    vocab = model["vocab"]
    order = [a + b for a, b in merges]
    if model.get("ignore_merges"):  # a piece that is a token is taken whole, wherever merges lead
        order = sorted((token for token in vocab if token not in added), key=vocab.get)
    made = encoding(
        path.parent.name, vocab, order, split_pattern(content.get("pre_tokenizer") or {}, path), added
    )
    return with_markup(made, form="NFC" if normalizer else "")


def split_pattern(pre: dict, path: Path) -> str:
    """The one regular expression that does what a `pre_tokenizer` does."""
    parts = pre.get("pretokenizers", [pre])
    kinds = [part.get("type") for part in parts]
    if kinds and kinds[-1] == "ByteLevel" and not parts[-1].get("add_prefix_space", True):
        by_regex = parts[-1].get("use_regex", True)
        first = parts[0]
        if kinds == ["ByteLevel"] and by_regex:
            return GPT2_PATTERN
        if kinds == ["Digits", "ByteLevel"] and by_regex and first.get("individual_digits"):
            return DIGITS_PATTERN
        pattern = first.get("pattern", {}).get("Regex")
        isolated = first.get("behavior") == "Isolated" and not first.get("invert")
        if kinds == ["Split", "ByteLevel"] and not by_regex and pattern and isolated:
            return pattern
    raise ValueError(
        f"{path}: pre_tokenizer {' + '.join(map(str, kinds))} is not GPT-2's, Llama 3's, Qwen's or SmolLM2's"
    )


def encoding(
    name: str, vocab: dict[str, int], merged: list[str], pattern: str, special: dict[str, int]
) -> tiktoken.Encoding:
    """A tiktoken encoding of a vocabulary that writes bytes as characters; `merged` are its tokens in the
    order of the merges.

    ValueError if the ids do not grow in that order, since tiktoken's ranks are its ids.
    """
    byte_of = printable_bytes()
    single = [token for token in byte_of if token in vocab]
    ranks, last = {}, -1
    for token in [*single, *merged]:
        if token not in vocab or not set(token) <= byte_of.keys():
            raise ValueError(
                f"tokenizer {name}: {token!r} is unknown or not written in bytes: it is no byte-level BPE"
            )
        if len(token) > 1 and vocab[token] < last:
            raise ValueError(
                f"tokenizer {name}: the id of {token!r} is out of the merges' order, which tiktoken needs"
            )
        last = vocab[token] if len(token) > 1 else last
        ranks[bytes(byte_of[c] for c in token)] = vocab[token]
    needed = {*range(ord(" "), ord("~") + 1), ord("\n")}  # plain English and the markup of dialogues
    if missing := needed & bytes_without_token(ranks):
        raise ValueError(f"tokenizer {name}: {len(missing)} bytes have no token, such as {min(missing)}")
    ids = [*ranks.values(), *special.values()]
    if len(set(ids)) < len(ids) or not all(type(i) is int and 0 <= i < 2**31 for i in ids):
        raise ValueError(f"tokenizer {name}: its ids are not different whole numbers from 0 on")
    return tiktoken.Encoding(name=name, pat_str=pattern, mergeable_ranks=ranks, special_tokens=special)


def bytes_without_token(tokens) -> frozenset[int]:
    """Real vocabularies lack bytes that hardly any text has, such as some control characters."""
    return frozenset(range(256)) - {token[0] for token in tokens if len(token) == 1}


def printable_bytes() -> dict[str, int]:
    """GPT-2's way of writing bytes as characters: printable ones as themselves, the others from U+0100 on, in
    order.
    """
    printable = [
        *range(ord("!"), ord("~") + 1),
        *range(ord("¡"), ord("¬") + 1),
        *range(ord("®"), ord("ÿ") + 1),
    ]
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
        user, assistant = (f"<|im_start|>{role}\n" for role in ("user", "assistant"))
        return Tokenizer(made, "<|im_end|>", user, f"<|im_end|>\n{assistant}", after="\n", **limits)
    if "<|start_header_id|>" in special:  # Llama 3
        user, assistant = (
            f"<|start_header_id|>{role}<|end_header_id|>\n\n" for role in ("user", "assistant")
        )
        begin = "<|begin_of_text|>"
        return Tokenizer(made, "<|eot_id|>", user, f"<|eot_id|>{assistant}", begin=begin, **limits)
    if "<|endoftext|>" in special:  # GPT-2: plain text
        return Tokenizer(made, "<|endoftext|>", "Question: ", "\nAnswer:", after="\n\n", **limits)
    raise ValueError(
        f"tokenizer {made.name} has no end of turn that we know: <|im_end|>, <|eot_id|> or <|endoftext|>"
    )
