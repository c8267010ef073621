"""What differs by model_type in Python: one entry per model_type, and one per class of tokenizer.

Everything else about an architecture is in the native module. Nothing here reads files or computes.
"""

from __future__ import annotations

from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Mapping


class TokenizerClass(NamedTuple):
    """A class of tokenizers of transformers.

    Attributes:
        files: Files from which it is made where the folder has no tokenizer.json.
        tokens: Special tokens that it has where the folder names none.
    """

    files: tuple[str, ...]
    tokens: Mapping[str, Any]


class Family(NamedTuple):
    """What a model_type means.

    Attributes:
        title: Its name in texts for people.
        has_encoder: Whether its models are encoder-decoders.
        tokenizer_class: Class of its tokenizer where the folder declares none; None for tokenizer.json as it is.
        keeps_tokenizer_file: Whether tokenizer.json is taken as it is, whatever class the folder declares.
        special_tokens: Ids of special tokens that its models have where config.json names none.
    """

    title: str
    has_encoder: bool = False
    tokenizer_class: str | None = None
    keeps_tokenizer_file: bool = False
    special_tokens: Mapping[str, int] = MappingProxyType({})


TOKENIZER_CLASSES: dict[str, TokenizerClass] = {
    "GPT2Tokenizer": TokenizerClass(
        files=("vocab.json", "merges.txt"),
        tokens=dict.fromkeys(("bos_token", "eos_token", "unk_token"), "<|endoftext|>"),
    ),
    "T5Tokenizer": TokenizerClass(
        files=("spiece.model",),
        tokens={"eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>"},
    ),
}

# Special tokens are those of the configuration classes of transformers 5.24, and tokenizer classes those of its
# models/auto/tokenization_auto.py. GPT2Config has 50256 as its first and last token; for models in memory that is left
# out on purpose, since it means nothing in other vocabularies, and of a folder transformers reads the files alone. It
# takes the tokenizer.json of UMT5 as it is.
FAMILIES: dict[str, Family] = {
    "gpt2": Family("GPT-2", tokenizer_class="GPT2Tokenizer"),
    "t5": Family(
        "T5",
        has_encoder=True,
        tokenizer_class="T5Tokenizer",
        special_tokens={"pad_token_id": 0, "eos_token_id": 1},
    ),
    "mt5": Family(
        "mT5",
        has_encoder=True,
        tokenizer_class="T5Tokenizer",
        special_tokens={"pad_token_id": 0, "eos_token_id": 1, "decoder_start_token_id": 0},
    ),
    "umt5": Family(
        "UMT5",
        has_encoder=True,
        keeps_tokenizer_file=True,
        special_tokens={"pad_token_id": 0, "eos_token_id": 1, "decoder_start_token_id": 0},
    ),
}

_UNKNOWN = Family("")


def family(model_type: object) -> Family:
    """The entry of a model_type; for one that is not listed, an entry that names nothing."""
    return FAMILIES.get(str(model_type), _UNKNOWN)


def model_types(*, has_encoder: bool) -> str:
    """The model_types with or without an encoder, for error messages."""
    return ", ".join(name for name, entry in FAMILIES.items() if entry.has_encoder == has_encoder)


def titles() -> str:
    """The names of all families, for texts for people."""
    *first, last = (entry.title for entry in FAMILIES.values())
    return f"{', '.join(first)} and {last}"


def tokenizer_files() -> str:
    """The files that make a tokenizer, for error messages."""
    *first, last = (" and ".join(entry.files) for entry in TOKENIZER_CLASSES.values())
    return f"{', '.join(('tokenizer.json', *first))}, or {last}"
