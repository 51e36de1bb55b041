"""A checkpoint as a Hugging Face folder, for other programs."""

import shutil
from pathlib import Path

from engine.hf import save_pretrained
from engine.lora import merge_lora
from model import GPT

TOKENIZER_FILES = (
    "tokenizer.json",
    "vocab.json",
    "merges.txt",
    "tokenizer_config.json",
    "chat_template.jinja",
)


def export(model: GPT, c, folder: str) -> str:
    """Writes the model, adapters merged, and its tokenizer's files. Returns a line that says so.

    ValueError if the folder holds a model already.
    """
    if (Path(folder) / "config.json").exists():
        raise ValueError(f"{folder} holds a model: choose another folder for --export")
    save_pretrained(merge_lora(model) if c.lora else model, folder)
    source = c.tokenizer or c.init  # "" for a toy, which has no files
    files = [Path(source, name) for name in TOKENIZER_FILES if source and Path(source, name).is_file()]
    copied = [shutil.copy(file, folder) for file in files]
    return f"{folder} has the model{'' if copied else ', without a tokenizer'}"
