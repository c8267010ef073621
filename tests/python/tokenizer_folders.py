"""Folders with tokenizers of every kind, drawn at random: classes, files, keys, lists and flags, old layouts and new.

`draw` writes one by a seed; tokenizer_compare.py compares.
"""

from __future__ import annotations

import functools
import json
import random
from pathlib import Path
from typing import Any

import sentencepieces
import tiny
import tokenizers

GOLDEN = Path(__file__).resolve().parent.parent / "golden" / "t5-tokenizer"

NAMED = ["bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token"]
# Tokens that folders name: of vocabularies of each kind, of none, words, and one with a space.
TOKENS = [
    *(
        "<s>",
        "</s>",
        "<unk>",
        "<pad>",
        "<mask>",
        "<|endoftext|>",
        "[CLS]",
        "[SEP]",
        "[PAD]",
        "[UNK]",
        "[MASK]",
    ),
    *(
        "<user>",
        "<bot>",
        "<ctx>",
        "<|im_end|>",
        "the",
        "wolf",
        "two words",
        "<extra_id_0>",
        "<extra_id_7>",
        "é",
        "A",
    ),
]
BYTE_CLASSES: list[str | None] = [
    *(
        "GPT2Tokenizer",
        "RobertaTokenizer",
        "BartTokenizer",
        "LongformerTokenizer",
        "LEDTokenizer",
        "MvpTokenizer",
    ),
    *("BlenderbotTokenizer", "CodeGenTokenizer", "GPTNeoXTokenizer", "Qwen2Tokenizer", "DebertaTokenizer"),
]
# Groups of what goes together: classes, files.
KINDS: list[tuple[list[str | None], str]] = [
    (["GPT2Tokenizer", None], "bytes"),
    (BYTE_CLASSES, "bytes"),
    (["T5Tokenizer", None], "pieces"),
    (["T5Tokenizer"], "unigram"),
    (["T5Tokenizer", None], "spiece.model"),
    (["PreTrainedTokenizerFast", None], "tokenizer.model"),
    (["BertTokenizer", "DistilBertTokenizer", "ElectraTokenizer"], "words"),
    (["ByT5Tokenizer"], "none"),
    (["PreTrainedTokenizerFast", "PreTrainedTokenizer", "TokenizersBackend", "NoSuchTokenizer", None], "any"),
    (["LlamaTokenizer", "GemmaTokenizer", "OpenAIGPTTokenizer"], "json"),
    (["AlbertTokenizer", "XLNetTokenizer", "DebertaV2Tokenizer", "PegasusTokenizer"], "pieces"),
]
# Those over a tokenizer.model: trained, or of any pieces.
OF_PIECES: list[tuple[list[str | None], str]] = [
    (["LlamaTokenizer", "LlamaTokenizer", "Phi3Tokenizer", "GemmaTokenizer"], "trained"),
    (["LlamaTokenizer"], "trained"),
    (["LlamaTokenizer", "GemmaTokenizer"], "tokenizer.model"),
    ([None, "PreTrainedTokenizer", "LlamaTokenizer", "GemmaTokenizer"], "trained"),
    ([*BYTE_CLASSES, "OpenAIGPTTokenizer"], "trained"),
]
KINDS.append((["LlamaTokenizer", "GemmaTokenizer"], "trained"))
PIECE_TYPES = [
    "llama",
    "llama",
    "gemma",
    "gemma2",
    "idefics",
    "mistral",
    "phi3",
    "gpt2",
    "qwen2",
    "no-such-type",
    "",
]
MODEL_TYPES = ["gpt2", "gpt2", "t5", "t5", "mt5", "umt5", "bert", "roberta", "qwen2", "no-such-type", ""]


@functools.cache
def pieces_of(kind: str) -> dict[str, float]:
    """Returns pieces with scores: single characters, and some of the words of the small text."""
    chooser = random.Random(kind)
    words = {f"\u2581{word}" for line in tiny.TEXT for word in line.split()}
    parts = {word[:cut] for word in words for cut in range(1, len(word) + 1)}
    letters = sorted({character for part in parts for character in part})
    several = chooser.sample(sorted(part for part in parts if len(part) > 1), 120)
    return {piece: -float(place) / 7 - 1 for place, piece in enumerate([*letters, *several])}


@functools.cache
def charsmap() -> bytes:
    """Returns SentencePiece's table of characters, as T5's model has it."""
    from sentencepiece import sentencepiece_model_pb2

    model = sentencepiece_model_pb2.ModelProto()
    model.ParseFromString((GOLDEN / "spiece.model").read_bytes())
    return bytes(model.normalizer_spec.precompiled_charsmap)


def write_pieces(file: Path, chooser: random.Random) -> None:
    """Writes a SentencePiece model of any type, with T5's first pieces or others."""
    from sentencepiece import sentencepiece_model_pb2 as proto

    model = proto.ModelProto()
    first = chooser.choice([["<pad>", "</s>", "<unk>"], ["<pad>", "</s>", "<unk>"], ["<unk>", "<s>", "</s>"]])
    own = chooser.sample(["<ctx>", "<user>", "wolf"], chooser.choice([0, 0, 1, 2]))
    for piece in [*first, *own]:
        kind = 4 if piece in own else 2 if piece == "<unk>" else 3
        model.pieces.add(piece=piece, score=0.0, type=kind)
    for piece, score in pieces_of(chooser.choice("ab")).items():
        if piece not in first and piece not in own:
            model.pieces.add(piece=piece, score=score, type=1)
    if chooser.random() < 0.3:
        for byte in range(256):
            model.pieces.add(piece=f"<0x{byte:02X}>", score=0.0, type=6)
        model.trainer_spec.byte_fallback = True
    model.trainer_spec.model_type = chooser.choice([1, 1, 2, 3, 4])
    model.trainer_spec.unk_id = first.index("<unk>")
    model.trainer_spec.eos_id = first.index("</s>")
    model.trainer_spec.bos_id = first.index("<s>") if "<s>" in first else -1
    model.normalizer_spec.add_dummy_prefix = chooser.random() < 0.8
    model.normalizer_spec.remove_extra_whitespaces = chooser.random() < 0.8
    if chooser.random() < 0.7:
        model.normalizer_spec.precompiled_charsmap = charsmap()
    file.write_bytes(model.SerializeToString())


@functools.cache
def trained(kind: str, size: int, specials: tuple[str, ...]) -> str:
    """Returns a tokenizer of the library as text: BPE over bytes, over characters, or WordPiece."""
    if kind == "words":
        tokenizer = tokenizers.Tokenizer(tokenizers.models.WordPiece(unk_token="[UNK]"))
        tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.BertPreTokenizer()
        trainer: Any = tokenizers.trainers.WordPieceTrainer(
            vocab_size=size, special_tokens=list(specials), show_progress=False
        )
    else:
        over_bytes = kind == "bytes"
        tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE())
        tokenizer.pre_tokenizer = (
            tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
            if over_bytes
            else tokenizers.pre_tokenizers.Metaspace()
        )
        trainer = tokenizers.trainers.BpeTrainer(
            vocab_size=size,
            special_tokens=list(specials),
            initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet() if over_bytes else [],
            show_progress=False,
        )
    tokenizer.train_from_iterator(tiny.TEXT * 3, trainer)
    return tokenizer.to_str()


def library(kind: str, chooser: random.Random) -> tokenizers.Tokenizer:
    """Returns a tokenizer for a tokenizer.json, with parts drawn at random."""
    if kind in ("pieces", "unigram"):
        vocabulary = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), *pieces_of(chooser.choice("ab")).items()]
        vocabulary += [(f"<extra_id_{number}>", 0.0) for number in range(99, -1, -1)]
        made = tokenizers.Tokenizer(tokenizers.models.Unigram(vocabulary, unk_id=2, byte_fallback=False))
        made.decoder = tokenizers.decoders.Metaspace()
        made.pre_tokenizer = tokenizers.pre_tokenizers.Metaspace()
        if chooser.random() < 0.5:
            precompiled = tokenizers.normalizers.Precompiled(charsmap())
            lower = tokenizers.normalizers.Lowercase()
            made.normalizer = chooser.choice(
                [precompiled, tokenizers.normalizers.Sequence([precompiled, lower]), lower]
            )
        specials = ["<pad>", "</s>", "<unk>"]
    else:
        sets = {
            "words": [("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"), ("[UNK]",)],
            "bytes": [("<|endoftext|>",), ("<s>", "<pad>", "</s>", "<unk>", "<mask>"), ()],
            "letters": [("<unk>", "<s>", "</s>"), ("<unk>", "<bos>", "<eos>", "<pad>", "<mask>")],
        }
        specials = list(chooser.choice(sets[kind]))
        made = tokenizers.Tokenizer.from_str(trained(kind, chooser.choice([300, 330]), tuple(specials)))
        made.decoder = {
            "words": tokenizers.decoders.WordPiece(),
            "bytes": tokenizers.decoders.ByteLevel(),
            "letters": tokenizers.decoders.Metaspace(),
        }[kind]
        if chooser.random() < 0.3:
            made.normalizer = chooser.choice(
                [tokenizers.normalizers.Lowercase(), tokenizers.normalizers.NFD()]
            )
    for token in specials:
        if chooser.random() < 0.8:
            made.add_special_tokens([token])
    for token in chooser.sample(TOKENS, chooser.choice([0, 0, 1, 3])):
        made.add_tokens([added(token, chooser)])
    if specials and chooser.random() < 0.3:
        token = chooser.choice(specials)
        template = tokenizers.processors.TemplateProcessing(
            single=["$A", token], special_tokens=[(token, made.token_to_id(token) or 0)]
        )
        made.post_processor = template
    if chooser.random() < 0.15:
        made.enable_truncation(5, direction=chooser.choice(["left", "right"]))
    if chooser.random() < 0.15:
        made.enable_padding(length=12, pad_token=chooser.choice(TOKENS))
    return made


def flags(chooser: random.Random) -> dict[str, bool]:
    names = ["single_word", "lstrip", "rstrip", "normalized", "special"]
    return {name: chooser.random() < 0.4 for name in names if chooser.random() < 0.7}


def added(token: str, chooser: random.Random) -> tokenizers.AddedToken:
    return tokenizers.AddedToken(token, **flags(chooser))


def named_token(chooser: random.Random, *, in_map: bool) -> Any:
    """Returns a value for a named token: a string, an object as the file has it, or null."""
    token = chooser.choice(TOKENS)
    kind = chooser.choice(["text", "text", "text", "object", "null"])
    if kind == "null":
        return None
    if kind == "text":
        return token
    content = {
        "content": token,
        **{name: value for name, value in flags(chooser).items() if name != "special"},
    }
    return content if in_map else {"__type": "AddedToken", **content}


def token_list(chooser: random.Random, *, is_t5: bool) -> Any:
    """Returns a value for a list of special tokens."""
    kind = chooser.choice(["null", "empty", "few", "few", "few"])
    if kind == "null":
        return None
    few: list[Any] = chooser.sample(TOKENS, 0 if kind == "empty" else chooser.choice([1, 2, 3]))
    if is_t5 and chooser.random() < 0.5:
        few = [token for token in few if "extra_id" not in token]
        few += [f"<extra_id_{number}>" for number in range(100)] if chooser.random() < 0.5 else []
    if few and chooser.random() < 0.2:
        few[0] = {"__type": "AddedToken", "content": few[0], **flags(chooser)}
    return few


def settings(cls: str | None, chooser: random.Random, size: int) -> dict[str, Any]:
    """Returns a tokenizer_config.json."""
    values: dict[str, Any] = {}
    for name in NAMED:
        if chooser.random() < 0.2:
            values[name] = named_token(chooser, in_map=False)
    is_t5 = cls in ("T5Tokenizer", "ByT5Tokenizer")
    for name in ("additional_special_tokens", "extra_special_tokens"):
        if chooser.random() < 0.25:
            values[name] = token_list(chooser, is_t5=is_t5)
    if chooser.random() < 0.1:
        values["extra_special_tokens"] = {"image_token": chooser.choice(TOKENS), "x": chooser.choice(TOKENS)}
    if chooser.random() < 0.15:
        values["context_token"] = named_token(chooser, in_map=False)
    choices: dict[str, list[Any]] = {
        "add_prefix_space": [True, False],
        "add_bos_token": [True, False],
        "add_eos_token": [True, False],
        "split_special_tokens": [True, False, False],
        "clean_up_tokenization_spaces": [True, False],
        "do_lower_case": [True, False],
        "tokenize_chinese_chars": [True, False],
        "strip_accents": [True, False, None],
        "never_split": [["wolf"]],
        "extra_ids": [100, 100, 5, 0, 125],
        "model_max_length": [7, 512, 10**30],
        "max_len": [9],
        "truncation_side": ["left", "right"],
        "legacy": [True, False],
        "clean_up_tokenization_spaces_for_bpe_even_though_it_will_corrupt_output": [True, False],
    }
    for name, kinds in choices.items():
        if chooser.random() < 0.15:
            values[name] = chooser.choice(kinds)
    if chooser.random() < 0.3:
        values["added_tokens_decoder"] = {
            str(index): {"content": token, **flags(chooser)}
            for index, token in zip(
                chooser.sample([0, 1, 2, 3, *range(size, size + 6)], 10),
                chooser.sample(TOKENS, chooser.choice([0, 2, 4])),
                strict=False,
            )
        }
    return values


def draw(folder: Path, seed: int, kinds: list[tuple[list[str | None], str]] = KINDS) -> str:
    """Writes a folder.

    Args:
        folder: An empty folder.
        seed: What it is drawn by.
        kinds: Groups of classes and files from which it is drawn.

    Returns:
        Its description.
    """
    chooser = random.Random(seed)
    classes, kind = chooser.choice(kinds)
    cls = chooser.choice(classes)
    is_over_pieces = kind == "trained" or cls in ("LlamaTokenizer", "GemmaTokenizer")
    if kind == "any":
        kind = chooser.choice(["bytes", "pieces", "words", "letters"])
        with_json = True
    elif kind == "json":
        kind, with_json = "letters", True
    elif kind == "trained":
        (folder / "tokenizer.model").write_bytes(sentencepieces.drawn(chooser))
        kind, with_json = "pieces", False
    elif kind.endswith(".model"):
        write_pieces(folder / kind, chooser)
        kind, with_json = "pieces", False
    else:
        with_json = kind == "unigram" or (kind != "none" and chooser.random() < 0.5)
    size = 330
    if kind != "none" and not any(folder.iterdir()):
        made = library(kind, chooser)
        size = made.get_vocab_size(with_added_tokens=True)
        if with_json or (kind in ("letters", "unigram")):
            content = json.loads(made.to_str())
            if chooser.random() < 0.2:
                older(content)
            dump(folder, "tokenizer.json", content)
        else:
            write_parts(folder, made, kind, chooser)
    # Files of another class, which must not count.
    if chooser.random() < 0.15:
        stray = chooser.choice(["bytes", "words", "pieces"])
        if stray != kind:
            write_parts(folder, library(stray, chooser), stray, chooser)
    name = cls if cls is None or chooser.random() < 0.6 else f"{cls}Fast"
    values = settings(cls, chooser, size)
    for key in ("legacy", "add_prefix_space", "add_bos_token", "add_eos_token"):
        if is_over_pieces and chooser.random() < 0.3:
            values[key] = chooser.choice([True, False, None])
    config: dict[str, Any] | None = {"model_type": chooser.choice(MODEL_TYPES)}
    if cls is None or kind in ("pieces", "unigram"):
        suits = {"bytes": ["gpt2"], "words": ["bert"], "pieces": ["t5", "mt5", "umt5"]}.get(kind, MODEL_TYPES)
        config = {"model_type": chooser.choice(suits)}
    if is_over_pieces:
        config = {"model_type": chooser.choice(PIECE_TYPES)}
    if chooser.random() < 0.1:
        config = None
    if name is not None:
        if config is not None and chooser.random() < 0.25:
            config["tokenizer_class"] = name
        else:
            values["tokenizer_class"] = name
    if values and chooser.random() < 0.9:
        dump(folder, "tokenizer_config.json", values)
    if config is not None:
        dump(folder, "config.json", config)
    if chooser.random() < 0.35:
        of_map: dict[str, Any] = {}
        for key in (*NAMED, "context_token"):
            if chooser.random() < 0.2:
                of_map[key] = named_token(chooser, in_map=True)
        for key in ("additional_special_tokens", "extra_special_tokens"):
            if chooser.random() < 0.2:
                of_map[key] = token_list(chooser, is_t5=cls == "T5Tokenizer")
        if chooser.random() < 0.1:
            of_map |= {"add_prefix_space": True, "do_lower_case": False, "clean_up_tokenization_spaces": True}
        dump(folder, "special_tokens_map.json", of_map)
    if chooser.random() < 0.25:
        names = chooser.sample(TOKENS, chooser.choice([1, 2, 4]))
        first = chooser.choice([size, size, size + 3, 7])
        dump(folder, "added_tokens.json", {token: first + place for place, token in enumerate(names)})
    return f"seed {seed}: {cls} over {kind}, {sorted(path.name for path in folder.iterdir())}"


def older(content: dict[str, Any]) -> None:
    """Makes a tokenizer.json one of an older version: the model names no type, merges are strings."""
    model = content["model"]
    if model.pop("type") == "BPE":
        model["merges"] = [pair if isinstance(pair, str) else " ".join(pair) for pair in model["merges"]]


def dump(folder: Path, name: str, value: object) -> None:
    (folder / name).write_text(json.dumps(value), encoding="utf-8")


def write_parts(folder: Path, made: tokenizers.Tokenizer, kind: str, chooser: random.Random) -> None:
    """Writes the files that a class has where there is no tokenizer.json."""
    if kind in ("pieces", "unigram"):
        write_pieces(folder / chooser.choice(["spiece.model"] * 9 + ["tokenizer.model"]), chooser)
        return
    model = json.loads(made.to_str())["model"]
    if kind == "words":
        tokens = sorted(model["vocab"], key=model["vocab"].__getitem__)
        (folder / "vocab.txt").write_text("\n".join(tokens) + "\n", encoding="utf-8")
        return
    dump(folder, "vocab.json", model["vocab"])
    merges = [pair if isinstance(pair, str) else " ".join(pair) for pair in model["merges"]]
    (folder / "merges.txt").write_text("#version: 0.2\n" + "\n".join(merges) + "\n", encoding="utf-8")
