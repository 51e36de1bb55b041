"""The tokenizer, how a dialogue becomes ids, and the toy tokenizer: a `tiktoken.Encoding` built in place,
nothing is downloaded.

<|user|> 2526/6 <|assistant|> 431*6=2586> <|end|> <|user|> check <|assistant|> 421*6=2526= <|end|>
`------- x1 ---------------'  `------ y1 --------' `------- x2 ------------'  `----- y2 ---------'

The tokenizers and the markup of pretrained models are in `engine/hf_tokenizer.py`.
"""

import functools
import itertools
import string
import unicodedata
from dataclasses import dataclass

import tiktoken

SPECIAL = ("<|user|>", "<|assistant|>", "<|end|>")  # two roles, and the end of a turn
CORRECTION_REQUEST = (
    "check"  # the whole second prompt: one token, and the same whether attempt 1 was right or wrong
)
FEEDBACK_REQUEST = (
    "judge"  # asks for feedback on the attempt before, "right" or "wrong": Self-Refine's first half
)
ALPHABET = string.digits + string.ascii_letters + string.punctuation + " \n"


@dataclass(frozen=True)
class Tokenizer:
    """An encoding and the texts, special tokens among them, that mark up a dialogue:

    begin user x1 assistant y1 end   after user x2 assistant y2 end   after user ...
    """

    encoding: tiktoken.Encoding
    end: str  # the special token with which the model ends its turn
    user: str
    assistant: str
    begin: str = ""
    after: str = ""
    alphabet: str = ""  # the only characters it has tokens for; "": it encodes any text
    form: str = ""  # Unicode normal form of its texts, e.g. "NFC"
    missing: frozenset[int] = frozenset()  # bytes that no token has: tiktoken would panic at a text with one

    @functools.cached_property
    def end_id(self) -> int:
        return self.encoding.encode_single_token(self.end)

    @property
    def vocab_size(self) -> int:
        return self.encoding.n_vocab

    def encode(self, text: str) -> list[int]:
        """Ids of plain text: the name of a special token in it is only text. ValueError names a character
        without token.
        """
        unknown = sorted(set(text) - set(self.alphabet)) if self.alphabet else []
        if unknown:
            raise ValueError(
                f"the tokenizer has no token for {unknown[0]!r}: use letters, digits and punctuation of ASCII"
            )
        text = unicodedata.normalize(self.form, text) if self.form else text
        if self.missing.intersection(text.encode("utf-8", "replace")):
            found = next(c for c in text if self.missing.intersection(c.encode("utf-8", "replace")))
            raise ValueError(f"the tokenizer has no token for {found!r}: take this character out of the text")
        return self.encoding.encode_ordinary(text)

    def user_turn(self, text: str, first: bool = True) -> list[int]:
        """A prompt x: the user's words in their markup, up to where the model speaks."""
        before = (self.begin if first else self.after) + self.user
        before, after = (self.encoding.encode(t, allowed_special="all") for t in (before, self.assistant))
        return before + self.encode(text) + after

    def decode(self, ids: list[int]) -> str:
        """The text of ids. A model may have more ids than its tokenizer has tokens (rounded up): those are
        U+FFFD each.
        """
        try:
            return self.encoding.decode(ids)
        except KeyError:
            return b"".join(map(self.bytes_of, ids)).decode("utf-8", errors="replace")

    def bytes_of(self, i: int) -> bytes:
        try:
            return self.encoding.decode_single_token_bytes(i)
        except KeyError:
            return "\ufffd".encode()


def build_tokenizer(digits_per_token: int) -> Tokenizer:
    """Characters, numbers of up to `digits_per_token` digits, the requests and the two verdicts are one token
    each.

    tiktoken first looks a whole piece of the split pattern up in the table, so a number needs no chain of
    merges.
    """
    numbers = (
        "".join(t) for k in range(2, digits_per_token + 1) for t in itertools.product(string.digits, repeat=k)
    )
    pieces = [*ALPHABET, *numbers, CORRECTION_REQUEST, FEEDBACK_REQUEST, "right", "wrong"]
    ranks = {piece.encode(): rank for rank, piece in enumerate(pieces)}
    encoding = tiktoken.Encoding(
        name=f"score-toy-{digits_per_token}",
        pat_str=rf"\d{{1,{digits_per_token}}}|[a-zA-Z]+|[\s\S]",
        mergeable_ranks=ranks,
        special_tokens={token: len(ranks) + i for i, token in enumerate(SPECIAL)},
    )
    user, assistant, end = SPECIAL
    return Tokenizer(encoding, end, user, assistant, alphabet=ALPHABET)
