"""The toy tokenizer: a `tiktoken.Encoding` built in place (nothing is downloaded), and how a dialogue becomes ids.

<|user|> 8742/6 <|assistant|> 1447*6=8682r60 <|end|> <|user|> check <|assistant|> 1457*6=8742r0 <|end|>
`------- x1 ---------------'  `------ y1 ----------' `------- x2 ------------'  `------- y2 -------'
"""

import itertools
import string

import tiktoken

SPECIAL = ("<|user|>", "<|assistant|>", "<|end|>")  # two roles, and the end of a turn
CORRECTION_REQUEST = "check"  # the whole second prompt: one token, and the same whether attempt 1 was right or wrong
ALPHABET = string.digits + string.ascii_letters + string.punctuation + " \n"


def build_tokenizer(digits_per_token: int) -> tiktoken.Encoding:
    """Characters, numbers of up to `digits_per_token` digits and the correction request are one token each.

    tiktoken first looks a whole piece of the split pattern up in the table, so a number needs no chain of merges.
    """
    numbers = ("".join(t) for k in range(2, digits_per_token + 1) for t in itertools.product(string.digits, repeat=k))
    pieces = [*ALPHABET, *numbers, CORRECTION_REQUEST]
    ranks = {piece.encode(): rank for rank, piece in enumerate(pieces)}
    return tiktoken.Encoding(
        name=f"score-toy-{digits_per_token}",
        pat_str=rf"\d{{1,{digits_per_token}}}|[a-zA-Z]+|[\s\S]",
        mergeable_ranks=ranks,
        special_tokens={token: len(ranks) + i for i, token in enumerate(SPECIAL)},
    )


def encode(tokenizer: tiktoken.Encoding, text: str) -> list[int]:
    """Ids of plain text (a special token's name in it is only text). ValueError names a character that has no token."""
    unknown = sorted(set(text) - set(ALPHABET))
    if unknown:
        raise ValueError(f"the tokenizer has no token for {unknown[0]!r}: use letters, digits and punctuation of ASCII")
    return tokenizer.encode_ordinary(text)


def special(tokenizer: tiktoken.Encoding, name: str) -> int:
    """The id of a special token, e.g. `special(tokenizer, "end")`."""
    return tokenizer.encode_single_token(f"<|{name}|>")


def user_turn(tokenizer: tiktoken.Encoding, text: str) -> list[int]:
    """A prompt x: the user's words and the role token after which the model speaks."""
    return [special(tokenizer, "user"), *encode(tokenizer, text), special(tokenizer, "assistant")]
