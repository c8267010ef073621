"""What counts in a folder, by class and model type: the file as it is, or what a class builds of its vocabulary.

Each row is compared with transformers, and with the file itself: every file here has steps that a class would drop.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
import sentencepieces
import tiny
import tokenizers
from fastdecode import errors
from tokenizer_compare import check, load, write
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

STRINGS = [
    " Hello",
    "a</s>b",
    "a\n\n1.",
    "a  12",
    "12345678",
    "e\u0301",
    "The Wolf\nsaid",
    "caf\u00e9 \u4e2d\u6587 hello, world!",
]


def of_bytes() -> tokenizers.Tokenizer:
    """As Llama 3 and SmolLM have it: digits in threes, no merges within a word that is a token, a token in front."""
    made = tiny.byte_level(500)
    for digits in range(10):
        made.add_tokens([f"<{digits}>"])
    made.add_special_tokens(["<s>", "</s>"])
    content = json.loads(made.to_str())
    content["model"]["ignore_merges"] = True
    made = tokenizers.Tokenizer.from_str(json.dumps(content))
    made.normalizer = normalizers.Lowercase()
    three = pre_tokenizers.Split(tokenizers.Regex(r"\p{N}{1,3}"), behavior="isolated")
    made.pre_tokenizer = pre_tokenizers.Sequence([three, pre_tokenizers.ByteLevel(add_prefix_space=False)])
    made.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", made.token_to_id("<s>"))]
    )
    return made


def of_pieces(layout: str = "llama") -> tokenizers.Tokenizer:
    """As Llama 2 has it: a space in front of every part of a text, by a normalizer; a token in front."""
    from sentencepiece import sentencepiece_model_pb2

    model = sentencepiece_model_pb2.ModelProto()
    model.ParseFromString(sentencepieces.trained("bpe", layout))
    names = [piece.piece for piece in model.pieces]
    normal = {piece.piece for piece in model.pieces if piece.type == 1}
    merges = [
        (name[:cut], name[cut:])
        for name in names
        if name in normal
        for cut in range(1, len(name))
        if name[:cut] in normal and name[cut:] in normal
    ]
    vocabulary = {name: index for index, name in enumerate(names)}
    made = tokenizers.Tokenizer(
        models.BPE(vocabulary, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True)
    )
    first, end = ("<bos>", "<eos>") if layout == "gemma" else ("<s>", "</s>")
    made.normalizer = normalizers.Sequence(
        [normalizers.Lowercase(), normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")]
    )
    steps = [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse()]
    made.decoder = decoders.Sequence([*steps, decoders.Strip(" ", 1, 0)])
    made.add_special_tokens(["<unk>", first, end])
    made.post_processor = processors.TemplateProcessing(
        single=f"{first} $A", special_tokens=[(first, vocabulary[first])]
    )
    return made


def of_words() -> tokenizers.Tokenizer:
    """As GPT-1 has it, but for capital letters, which count here."""
    made = tokenizers.Tokenizer(models.BPE(unk_token="<unk>", end_of_word_suffix="</w>"))
    made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=300, special_tokens=["<unk>"], end_of_word_suffix="</w>", show_progress=False
    )
    made.train_from_iterator(
        [*tiny.TEXT * 3, "hello, world! cafe \u4e2d \u6587", tiny.TEXT[0].lower()], trainer
    )
    made.decoder = decoders.BPEDecoder(suffix="</w>")
    return made


def of_gemma() -> tokenizers.Tokenizer:
    return of_pieces("gemma")


AS_IT_IS, REBUILT = True, False
ROWS: list[tuple[str | None, str, Callable[[], tokenizers.Tokenizer], bool]] = [
    *(
        (cls, kind, of_bytes, AS_IT_IS)
        for cls in ("PreTrainedTokenizerFast", "TokenizersBackend", None)
        for kind in ("llama", "mistral", "phi3", "stablelm")
    ),
    *(
        (cls, kind, of_pieces, AS_IT_IS)
        for cls in ("PreTrainedTokenizerFast", None)
        for kind in ("llama", "mistral")
    ),
    *(
        (cls, kind, of_pieces, AS_IT_IS)
        for cls in ("LlamaTokenizer", "LlamaTokenizerFast")
        for kind in ("mistral", "phi3", "stablelm")
    ),
    ("LlamaTokenizer", "llama", of_bytes, AS_IT_IS),
    ("LlamaTokenizerFast", "qwen3", of_bytes, AS_IT_IS),
    ("LlamaTokenizer", "llama", of_pieces, REBUILT),
    ("LlamaTokenizerFast", "llama", of_pieces, REBUILT),
    ("LlamaTokenizer", "phi", of_pieces, REBUILT),
    *(
        (cls, "qwen2", of_bytes, REBUILT)
        for cls in (
            "Qwen2Tokenizer",
            "Qwen2TokenizerFast",
            "PreTrainedTokenizerFast",
            "LlamaTokenizerFast",
            None,
        )
    ),
    ("Qwen2Tokenizer", "qwen3", of_bytes, REBUILT),
    (None, "qwen3", of_bytes, REBUILT),
    ("PreTrainedTokenizerFast", "qwen3", of_bytes, AS_IT_IS),
    ("CodeGenTokenizer", "phi", of_bytes, REBUILT),
    (None, "phi", of_bytes, REBUILT),
    ("PreTrainedTokenizerFast", "phi", of_bytes, AS_IT_IS),
    ("GPT2Tokenizer", "llama", of_bytes, REBUILT),
    *((None, kind, of_bytes, REBUILT) for kind in ("opt", "gptj", "gpt_neo", "gpt2")),
    ("GPTNeoXTokenizer", "gpt_neox", of_bytes, REBUILT),
    ("GPTNeoXTokenizerFast", "llama", of_bytes, REBUILT),
    ("PreTrainedTokenizerFast", "gpt_neox", of_bytes, AS_IT_IS),
    *(
        (cls, kind, of_gemma, REBUILT)
        for cls in ("GemmaTokenizer", "GemmaTokenizerFast", None)
        for kind in ("gemma", "gemma2", "gemma3_text")
    ),
    ("PreTrainedTokenizerFast", "gemma", of_gemma, AS_IT_IS),
    ("OpenAIGPTTokenizer", "openai-gpt", of_words, REBUILT),
    (None, "openai-gpt", of_words, REBUILT),
]


@pytest.mark.parametrize(
    ("cls", "model_type", "make", "is_as_it_is"),
    ROWS,
    ids=lambda value: getattr(value, "__name__", str(value)),
)
def test_which_class_counts(
    tmp_path: Path,
    cls: str | None,
    model_type: str,
    make: Callable[[], tokenizers.Tokenizer],
    *,
    is_as_it_is: bool,
) -> None:
    from transformers import AutoTokenizer

    file = make()
    file.save(str(tmp_path / "tokenizer.json"))
    settings: dict[str, Any] = {} if cls is None else {"tokenizer_class": cls}
    # What a text begins and ends with is said by the file alone.
    settings |= {"add_bos_token": False, "add_eos_token": True}
    write(tmp_path, config={"model_type": model_type}, tokenizer_config=settings)
    ours, theirs = check(tmp_path), AutoTokenizer.from_pretrained(tmp_path)
    ids = {text: ours.encode(text) for text in STRINGS}
    assert ids == {text: theirs(text)["input_ids"] for text in STRINGS}
    assert (ids == {text: file.encode(text).ids for text in STRINGS}) == is_as_it_is


def tokens(folder: Path, text: str) -> list[str]:
    """Returns the tokens of a text."""
    ours = check(folder)
    return [ours.backend.id_to_token(index) for index in ours.encode(text)]


def test_what_the_classes_make_of_a_text(tmp_path: Path) -> None:
    def folder(cls: str, made: tokenizers.Tokenizer, **settings: Any) -> Path:
        (path := tmp_path / f"{cls}{len(list(tmp_path.iterdir()))}").mkdir()
        made.save(str(path / "tokenizer.json"))
        values = {"tokenizer_class": cls} | settings
        return write(path, config={"model_type": "llama"}, tokenizer_config=values)

    # Qwen's splits digits one by one and composes characters, whatever the file does.
    qwen = folder("Qwen2Tokenizer", of_bytes())
    assert tokens(qwen, "12345678") == ["<s>", *"12345678"]
    assert tokens(qwen, "e\u0301") == tokens(qwen, "\u00e9")
    # GPT-NeoX's begins with nothing, even where the file does.
    assert tokens(folder("GPTNeoXTokenizer", of_bytes()), "a") == ["a"]
    # Over digits, GPT-2's splits white space otherwise than SmolLM's file.
    gpt2 = tokens(folder("GPT2Tokenizer", of_bytes()), "a\n\n1.")
    assert gpt2 == ["<s>", "a", "\u010a", "\u010a", "1", "."]
    # Llama's puts a space in front of the text; behind a special token only where `legacy` says so, and in front of a
    # space never.
    space = "\u2581"
    plain, legacy, never = (
        folder("LlamaTokenizer", of_pieces(), **settings)
        for settings in ({}, {"legacy": True}, {"add_prefix_space": False})
    )
    assert tokens(plain, " a") == tokens(plain, "a") == ["<s>", f"{space}a"]
    assert tokens(plain, "a</s>b")[2:] == ["</s>", "b"]
    assert "".join(tokens(legacy, "a</s>b")[3:]) == f"{space}b"
    assert tokens(never, "a</s>b") == ["<s>", "a", "</s>", "b"]
    # GPT-1's makes one space of a line's end.
    words = tokenizers.Tokenizer.from_str(of_words().to_str())
    words.save(str(tmp_path / "tokenizer.json"))
    write(tmp_path, config={"model_type": "openai-gpt"})
    assert tokens(tmp_path, "The\nwolf") == tokens(tmp_path, "the wolf")
    assert load(tmp_path).decode(load(tmp_path).encode("Hello, world!")) == "hello , world !"


@pytest.mark.parametrize("kind", ["bpe", "unigram"])
@pytest.mark.parametrize("byte_fallback", [True, False])
@pytest.mark.parametrize("cls", ["LlamaTokenizer", "LlamaTokenizerFast", "GemmaTokenizer"])
def test_classes_of_a_sentencepiece_model_alone(
    tmp_path: Path, kind: str, cls: str, *, byte_fallback: bool
) -> None:
    layout = "gemma" if cls == "GemmaTokenizer" else "llama"
    held = sentencepieces.trained(kind, layout, byte_fallback=byte_fallback, control=("<|im_end|>",))
    (tmp_path / "tokenizer.model").write_bytes(held)
    write(tmp_path, config={"model_type": "llama"}, tokenizer_config={"tokenizer_class": cls})
    ours = check(tmp_path)
    first = ours.bos_token
    # Nothing is put in front unless the folder asks for it, since there is no tokenizer.json.
    assert tokens(tmp_path, "the wolf<|im_end|>")[-1] == "<|im_end|>"
    assert ours.decode(ours.encode("the wolf<|im_end|>"), skip_special_tokens=True) == "the wolf"
    assert first is not None
    assert first not in tokens(tmp_path, "the wolf")
    settings = {"tokenizer_class": cls, "add_bos_token": True, "add_eos_token": True}
    write(tmp_path, tokenizer_config=settings)
    begin, *_, end = check(tmp_path).encode("the wolf")
    assert (begin, end) == (ours.bos_token_id, ours.eos_token_id)
    if byte_fallback:
        assert ours.decode(ours.encode("\U0001f999 x")) == "\U0001f999 x"


@pytest.mark.parametrize("legacy", [None, True, False, "absent"])
@pytest.mark.parametrize("prefix", [None, True, False, "absent"])
def test_spaces_in_front_over_a_sentencepiece_model(tmp_path: Path, legacy: Any, prefix: Any) -> None:
    (tmp_path / "tokenizer.model").write_bytes(sentencepieces.trained("bpe"))
    settings = {"legacy": legacy, "add_prefix_space": prefix}
    settings = {name: value for name, value in settings.items() if value != "absent"}
    write(
        tmp_path,
        config={"model_type": "llama"},
        tokenizer_config={"tokenizer_class": "LlamaTokenizer"} | settings,
    )
    check(tmp_path)


@pytest.mark.parametrize("model_type", ["llama", "mistral", "no-such-type"])
@pytest.mark.parametrize("kind", ["bpe", "unigram"])
def test_a_sentencepiece_model_of_no_class_goes_by_its_own_settings(
    tmp_path: Path, kind: str, model_type: str
) -> None:
    from sentencepiece import SentencePieceProcessor

    held = sentencepieces.trained(kind)
    (tmp_path / "tokenizer.model").write_bytes(held)
    write(tmp_path, config={"model_type": model_type})
    ours = check(tmp_path)
    file = SentencePieceProcessor(model_proto=held)
    for text in ("the wolf", " Hello", "12345", "a\n\n1."):
        assert ours.encode(text) == file.encode(text)
    # As a file, it is read in the same way.
    from fastdecode.tokenizer_objects import as_tokenizer

    assert as_tokenizer(tmp_path / "tokenizer.model").encode("the wolf") == ours.encode("the wolf")


@pytest.mark.parametrize("model_type", ["gemma", "gemma2", "idefics"])
def test_a_model_type_may_decide_the_class(tmp_path: Path, model_type: str) -> None:
    layout = "llama" if model_type == "idefics" else "gemma"
    (tmp_path / "tokenizer.model").write_bytes(sentencepieces.trained("bpe", layout))
    write(tmp_path, config={"model_type": model_type})
    assert check(tmp_path).bos_token == ("<s>" if layout == "llama" else "<bos>")


TIKTOKEN = b"IQ== 0\nIg== 1\nIw== 2\n"


@pytest.mark.parametrize(
    ("name", "held", "got"),
    [
        ("tokenizer.model", TIKTOKEN, "tiktoken"),
        ("tiktoken.model", TIKTOKEN, "tiktoken"),
        ("tekken.json", b'{"config": {}, "vocab": []}', "tekken"),
        ("tokenizer.model", b"no model at all", "a SentencePiece model"),
        ("tokenizer.model", b"", "no pieces"),
        ("tokenizer.model", b"\n\x0a\n\x01\xff\x15\0\0\0\0\x18\1", "no UTF-8"),
        ("tokenizer.model", b"version https://git-lfs.github.com/spec/v1\n", "git lfs pull"),
    ],
)
@pytest.mark.parametrize("cls", [None, "LlamaTokenizer", "GemmaTokenizer"])
def test_other_files_of_that_name(tmp_path: Path, cls: str | None, name: str, held: bytes, got: str) -> None:
    (tmp_path / name).write_bytes(held)
    settings = {} if cls is None else {"tokenizer_class": cls}
    write(tmp_path, config={"model_type": "llama"}, tokenizer_config=settings)
    with pytest.raises(errors.TokenizerError, match=got) as caught:
        load(tmp_path)
    assert caught.value.file == str(tmp_path / name)
    assert "tek" not in got + name or "tokenizer=transformers.AutoTokenizer" in str(caught.value)


@pytest.mark.parametrize("cls", ["LlamaTokenizer", "GemmaTokenizer"])
def test_without_sentencepiece(tmp_path: Path, cls: str, monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    (tmp_path / "tokenizer.model").write_bytes(sentencepieces.trained("bpe"))
    write(tmp_path, config={"model_type": "llama"}, tokenizer_config={"tokenizer_class": cls})
    monkeypatch.setitem(sys.modules, "sentencepiece", None)
    with pytest.raises(errors.TokenizerError, match=r"pip install 'fastdecode\[sentencepiece\]'"):
        load(tmp_path)


@pytest.mark.parametrize("cls", ["LlamaTokenizer", "GemmaTokenizer"])
def test_without_a_file(tmp_path: Path, cls: str) -> None:
    write(tmp_path, config={"model_type": "llama"}, tokenizer_config={"tokenizer_class": cls})
    with pytest.raises(errors.TokenizerError, match=r"without a tokenizer\.json or tokenizer\.model"):
        load(tmp_path)


@pytest.mark.parametrize(
    ("step", "config", "is_split_anew"),
    [
        ("pieces", {"model_type": "mistral"}, True),
        ("bytes", {"model_type": "mistral", "transformers_version": "4.57.1"}, True),
        ("sequence", {}, True),
        ("sequence", {"model_type": "mistral", "transformers_version": "5.1.0"}, False),
        ("sequence", {"model_type": "llama"}, False),
    ],
    ids=str,
)
def test_large_vocabularies_of_mistral_may_ask_for_another_pattern(
    tmp_path: Path, step: str, config: dict[str, Any], *, is_split_anew: bool
) -> None:
    content = json.loads(of_bytes().to_str())
    content["normalizer"] = None
    vocabulary = content["model"]["vocab"]
    vocabulary["xY"] = len(vocabulary) + 19
    vocabulary |= {f"<{index}>": index for index in range(len(vocabulary) + 20, 100_100)}
    made = tokenizers.Tokenizer.from_str(json.dumps(content))
    by_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.pre_tokenizer = {
        "pieces": pre_tokenizers.Metaspace(split=False),
        "bytes": by_bytes,
        "sequence": pre_tokenizers.Sequence([pre_tokenizers.Digits(), by_bytes]),
    }[step]
    made.save(str(tmp_path / "tokenizer.json"))
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "fix_mistral_regex": True}
    write(tmp_path, config=config, tokenizer_config=settings)
    text = "xY the wolf 12 a/\n\n1."
    assert (check(tmp_path).encode(text) != made.encode(text).ids) == is_split_anew


@pytest.mark.parametrize("cls", ["GemmaTokenizer", "OpenAIGPTTokenizer"])
@pytest.mark.parametrize("unknown", [None, "<unk>", "a"])
def test_the_token_for_what_is_unknown_may_be_null(tmp_path: Path, cls: str, unknown: str | None) -> None:
    made = of_gemma() if cls == "GemmaTokenizer" else of_words()
    content = json.loads(made.to_str())
    content["model"]["vocab"] = {
        token: index for token, index in content["model"]["vocab"].items() if not token.startswith("<0x")
    }
    write(
        tmp_path,
        tokenizer=content,
        config={"model_type": "gemma"},
        tokenizer_config={"tokenizer_class": cls, "unk_token": unknown},
    )
    ours = check(tmp_path)
    if unknown is None:
        with pytest.raises(errors.TokenizerError, match="a token for every text"):
            ours.encode("\U0001f999")
    else:
        assert ours.backend.token_to_id(unknown) in ours.encode("\U0001f999")
