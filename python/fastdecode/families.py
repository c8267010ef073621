"""What differs by model_type in Python: one entry per model_type, and one per class of tokenizer.

Everything else about an architecture is in the native module. Nothing here reads files or computes.
"""

from __future__ import annotations

from types import MappingProxyType
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Mapping


class TokenizerClass(NamedTuple):
    """A class of tokenizers of transformers.

    Attributes:
        files: Files from which it is made where the folder has no tokenizer.json.
        tokens: Special tokens that it has where the folder names none; None where it takes none from elsewhere either.
    """

    files: tuple[str, ...]
    tokens: Mapping[str, str | None]


class Family(NamedTuple):
    """What a model_type means.

    Attributes:
        title: Its name in texts for people.
        has_encoder: Whether its models are encoder-decoders.
        special_tokens: Ids of special tokens that its models have where config.json names none.
    """

    title: str
    has_encoder: bool = False
    special_tokens: Mapping[str, int] = MappingProxyType({})


_BYTES = ("vocab.json", "merges.txt")
_PIECES = ("tokenizer.model",)
_END_OF_TEXT = "<|endoftext|>"
_USUAL = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
_MASKED = {**_USUAL, "sep_token": "</s>", "pad_token": "<pad>", "cls_token": "<s>", "mask_token": "<mask>"}
_BRACKETS = {
    "unk_token": "[UNK]",
    "sep_token": "[SEP]",
    "pad_token": "[PAD]",
    "cls_token": "[CLS]",
    "mask_token": "[MASK]",
}
_PADDED = {"eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>"}

# Tokenizers that are built as their class has it; `tokenizer_table` has other names of some.
TOKENIZER_CLASSES: dict[str, TokenizerClass] = {
    "GPT2Tokenizer": TokenizerClass(
        files=_BYTES,
        tokens=dict.fromkeys(("bos_token", "eos_token", "unk_token"), _END_OF_TEXT) | {"pad_token": None},
    ),
    "T5Tokenizer": TokenizerClass(files=("spiece.model",), tokens=_PADDED),
    "BertTokenizer": TokenizerClass(
        files=("vocab.txt",),
        tokens=_BRACKETS,
    ),
    "ByT5Tokenizer": TokenizerClass(files=(), tokens=_PADDED),
    "RobertaTokenizer": TokenizerClass(files=_BYTES, tokens=_MASKED),
    "BlenderbotTokenizer": TokenizerClass(files=_BYTES, tokens=_MASKED),
    "DebertaTokenizer": TokenizerClass(
        files=_BYTES, tokens={"bos_token": "[CLS]", "eos_token": "[SEP]", **_BRACKETS}
    ),
    "CodeGenTokenizer": TokenizerClass(
        files=_BYTES,
        tokens=dict.fromkeys(("bos_token", "eos_token", "unk_token"), _END_OF_TEXT) | {"pad_token": None},
    ),
    "GPTNeoXTokenizer": TokenizerClass(
        files=_BYTES,
        tokens=dict.fromkeys(("bos_token", "eos_token", "unk_token"), _END_OF_TEXT)
        | {"pad_token": "<|padding|>"},
    ),
    "Qwen2Tokenizer": TokenizerClass(
        files=_BYTES,
        tokens=dict.fromkeys(("eos_token", "unk_token", "pad_token"), _END_OF_TEXT) | {"bos_token": None},
    ),
    "LlamaTokenizer": TokenizerClass(files=_PIECES, tokens=_USUAL),
    "GemmaTokenizer": TokenizerClass(
        files=_PIECES,
        tokens={
            "unk_token": "<unk>",
            "bos_token": "<bos>",
            "eos_token": "<eos>",
            "pad_token": "<pad>",
            "mask_token": "<mask>",
        },
    ),
    "OpenAIGPTTokenizer": TokenizerClass(files=_BYTES, tokens={"unk_token": "<unk>"}),
}

# Special tokens are those of the configuration classes of transformers 5.24. GPT2Config has 50256 as its first and last
# token; for models in memory that is left out on purpose, since it means nothing in other vocabularies, and of a folder
# transformers reads the files alone. Which class of tokenizers a model_type has, `tokenizer_table` says.
FAMILIES: dict[str, Family] = {
    "gpt2": Family("GPT-2"),
    "llama": Family("Llama", special_tokens={"bos_token_id": 1, "eos_token_id": 2}),
    "mistral": Family("Mistral", special_tokens={"bos_token_id": 1, "eos_token_id": 2}),
    "qwen2": Family("Qwen 2"),
    "qwen3": Family("Qwen 3"),
    "phi": Family("Phi", special_tokens={"bos_token_id": 1, "eos_token_id": 2}),
    "openai-gpt": Family("GPT-1"),
    "t5": Family(
        "T5",
        has_encoder=True,
        special_tokens={"pad_token_id": 0, "eos_token_id": 1},
    ),
    "mt5": Family(
        "mT5",
        has_encoder=True,
        special_tokens={"pad_token_id": 0, "eos_token_id": 1, "decoder_start_token_id": 0},
    ),
    "umt5": Family(
        "UMT5",
        has_encoder=True,
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
    sets = dict.fromkeys(" and ".join(entry.files) for entry in TOKENIZER_CLASSES.values() if entry.files)
    *first, last = sets
    return f"{', '.join(('tokenizer.json', *first))}, or {last}"
