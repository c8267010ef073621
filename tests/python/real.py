"""Folders with real vocabularies that have byte tokens: Llama 2's, Qwen 2.5's and Phi's; and one of GPT-1's class.

They are in tests/golden, compressed; Phi's is GPT-2's with added tokens.
"""

from __future__ import annotations

import functools
import json
import lzma
from collections.abc import Callable
from pathlib import Path
from typing import Any

import tiny
import tokenizers

GOLDEN = Path(__file__).resolve().parent.parent / "golden"
LLAMA, QWEN2, PHI = (GOLDEN / f"{name}-tokenizer" for name in ("llama", "qwen2", "phi"))


@functools.cache
def contents(file: Path) -> bytes:
    """The contents of a compressed file."""
    return lzma.decompress(file.read_bytes())


def cases(folder: Path) -> list[dict[str, Any]]:
    """Texts with their ids, as others have published them."""
    found: list[dict[str, Any]] = json.loads((folder / "expected.json").read_text(encoding="utf-8"))["cases"]
    return found


def write(folder: Path, model_type: str, settings: dict[str, Any]) -> Path:
    """Writes config.json and tokenizer_config.json."""
    for name, value in (("config", {"model_type": model_type}), ("tokenizer_config", settings)):
        (folder / f"{name}.json").write_text(json.dumps(value), encoding="utf-8")
    return folder


def llama(folder: Path, **settings: Any) -> Path:
    """Llama's tokenizer.json, declared LlamaTokenizer where nothing else is given; its text begins with `<s>`."""
    content = json.loads(contents(LLAMA / "tokenizer.json.xz"))
    content["added_tokens"] = content["added_tokens"][:3]
    content["post_processor"] = {
        "type": "TemplateProcessing",
        "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
        "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {"<s>": {"id": "<s>", "ids": [1], "tokens": ["<s>"]}},
    }
    (folder / "tokenizer.json").write_text(json.dumps(content), encoding="utf-8")
    return write(folder, "llama", {"tokenizer_class": "LlamaTokenizer"} | settings)


def llama_as_it_is(folder: Path) -> Path:
    """The same file for the class that changes nothing of it: spaces are put in front by a normalizer."""
    return llama(folder, tokenizer_class="PreTrainedTokenizerFast")


def phi3(folder: Path) -> Path:
    """Phi-3's file with its added tokens, as it is."""
    (folder / "tokenizer.json").write_bytes(contents(LLAMA / "tokenizer.json.xz"))
    settings = json.loads((LLAMA / "tokenizer_config.json").read_text(encoding="utf-8"))
    return write(folder, "phi3", settings)


def llama_pieces(folder: Path, **settings: Any) -> Path:
    """Llama's vocabulary as a SentencePiece model, and no tokenizer.json.

    Behind the 259 first pieces, scores go down by one from each to the next; runs of spaces come last of all, as
    the order of the merges in tokenizer.json shows.
    """
    from sentencepiece import sentencepiece_model_pb2

    vocabulary = json.loads(contents(LLAMA / "tokenizer.json.xz"))["model"]["vocab"]
    model = sentencepiece_model_pb2.ModelProto()
    for index, piece in enumerate(sorted(vocabulary, key=vocabulary.__getitem__)):
        kind = 1 if index >= 259 else 6 if index >= 3 else 2 if index == 0 else 3
        is_run = len(piece) > 1 and not piece.strip("\u2581")
        model.pieces.add(piece=piece, score=-1e9 if is_run else min(259.0 - index, 0.0), type=kind)
    trainer, normal = model.trainer_spec, model.normalizer_spec
    trainer.model_type, trainer.byte_fallback = 2, True
    trainer.unk_id, trainer.bos_id, trainer.eos_id, trainer.pad_id = 0, 1, 2, -1
    normal.name, normal.add_dummy_prefix, normal.remove_extra_whitespaces = "identity", True, False
    (folder / "tokenizer.model").write_bytes(model.SerializeToString())
    return write(folder, "llama", {"tokenizer_class": "LlamaTokenizer", "add_bos_token": True} | settings)


def llama_without_a_class(folder: Path) -> Path:
    """The same model, which is followed in its own settings."""
    return llama_pieces(folder, tokenizer_class=None)


def qwen2(folder: Path) -> Path:
    """Qwen 2.5's vocabulary, merges and settings."""
    for name in ("vocab.json", "merges.txt"):
        (folder / name).write_bytes(contents(QWEN2 / f"{name}.xz"))
    settings = json.loads((QWEN2 / "tokenizer_config.json").read_text(encoding="utf-8"))
    return write(folder, "qwen2", settings)


def phi(folder: Path) -> Path:
    """Phi's tokenizer.json: GPT-2's vocabulary with tokens for runs of spaces and tabs."""
    model = json.loads((GOLDEN / "gpt2-tokenizer" / "tokenizer.json").read_text(encoding="utf-8"))["model"]
    content = json.loads((PHI / "without-vocabulary.json").read_text(encoding="utf-8"))
    content["model"] |= {name: model[name] for name in ("vocab", "merges")}
    (folder / "tokenizer.json").write_text(json.dumps(content), encoding="utf-8")
    settings = json.loads((PHI / "tokenizer_config.json").read_text(encoding="utf-8"))
    return write(folder, "phi", settings)


def gpt1(folder: Path) -> Path:
    """GPT-1's class over a small vocabulary, whose words end in `</w>`."""
    model = tokenizers.models.BPE(unk_token="<unk>", end_of_word_suffix="</w>")
    made = tokenizers.Tokenizer(model)
    made.normalizer = tokenizers.normalizers.BertNormalizer(lowercase=True)
    made.pre_tokenizer = tokenizers.pre_tokenizers.BertPreTokenizer()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=400, special_tokens=["<unk>"], end_of_word_suffix="</w>", show_progress=False
    )
    made.train_from_iterator([*tiny.TEXT * 3, "hello world caf\u00e9"], trainer)
    made.model.save(str(folder))
    return write(folder, "openai-gpt", {})


FOLDERS: list[Callable[[Path], Path]] = [
    *(llama, llama_pieces, llama_without_a_class, llama_as_it_is, phi3, qwen2, phi, gpt1)
]
