"""Text to ids as transformers makes them, and ids to text in pieces that join to the whole."""

from __future__ import annotations

import itertools
import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import tokenizers
from fastdecode import errors
from fastdecode.stops import StopText
from fastdecode.tokenizer import Tokenizer
from fastdecode.tokenizer_files import read_folder
from fastdecode.tokenizer_objects import as_tokenizer
from hypothesis import example, given
from hypothesis import strategies as st

GOLDEN = Path(__file__).parent.parent / "golden" / "gpt2-tokenizer"

TEXTS = [
    "",
    " ",
    "   ",
    "Hello world",
    " Hello  world \n\t",
    "I'll say it's   fine; don't\r\nworry...",
    "Il était une fois à l'orée d'un bois",
    "昔々、ある所に🙂 naïve café 🐺🐺",
    f"one{tiny.END}two {tiny.END} three{tiny.END}",
    "x" * 200,
    "\u200b\ufeff\u00a0\u3000",
]


def reference(folder: Path) -> Any:
    from transformers import AutoTokenizer

    (folder / "config.json").write_text(json.dumps(tiny.config()), encoding="utf-8")
    return AutoTokenizer.from_pretrained(folder)


def write(folder: Path, name: str, value: object) -> None:
    (folder / name).write_text(json.dumps(value), encoding="utf-8")


def split(folder: Path, tokenizer: tokenizers.Tokenizer) -> None:
    """Writes vocab.json and merges.txt."""
    model = json.loads(tokenizer.to_str())["model"]
    write(folder, "vocab.json", model["vocab"])
    merges = [pair if isinstance(pair, str) else " ".join(pair) for pair in model["merges"]]
    (folder / "merges.txt").write_text("#version: 0.2\n" + "\n".join(merges) + "\n", encoding="utf-8")


def check(folder: Path) -> Tokenizer:
    """Compares with transformers; returns ours."""
    ours = read_folder(folder, tiny.config())
    assert ours is not None
    theirs = reference(folder)
    for text in TEXTS:
        ids = theirs(text)["input_ids"]
        assert ours.encode(text) == ids, text
        assert ours.decode(ids) == theirs.decode(ids), text
        skipped = theirs.decode(ids, skip_special_tokens=True)
        assert ours.decode(ids, skip_special_tokens=True) == skipped, text
    assert ours.vocab_size == len(theirs)
    assert (ours.bos_token_id, ours.eos_token_id) == (theirs.bos_token_id, theirs.eos_token_id)
    return ours


def test_tokenizer_json_alone(tmp_path: Path, byte_level: tokenizers.Tokenizer) -> None:
    byte_level.save(str(tmp_path / "tokenizer.json"))
    assert check(tmp_path).encode(tiny.END) == [0]


def test_vocabulary_and_merges(tmp_path: Path, byte_level: tokenizers.Tokenizer) -> None:
    split(tmp_path, byte_level)
    check(tmp_path)


@pytest.mark.parametrize("add_bos_token", [True, False])
def test_vocabulary_and_merges_with_bos(
    tmp_path: Path, byte_level: tokenizers.Tokenizer, *, add_bos_token: bool
) -> None:
    split(tmp_path, byte_level)
    write(tmp_path, "tokenizer_config.json", {"add_bos_token": add_bos_token})
    assert check(tmp_path).encode("a")[:1] == ([0] if add_bos_token else check(tmp_path).encode("a")[:1])


@pytest.mark.parametrize("declared", [None, "GPT2Tokenizer", "GPT2TokenizerFast", "PreTrainedTokenizerFast"])
@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"add_prefix_space": True},
        {"add_bos_token": True},
        {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"},
        {
            "bos_token": {
                "__type": "AddedToken",
                "content": "<s>",
                "lstrip": True,
                "normalized": False,
                "rstrip": True,
                "single_word": False,
            }
        },
        {"extra_special_tokens": ["<a>", "<b>"]},
        {"additional_special_tokens": ["<a>", "the"]},
        {"split_special_tokens": True},
        {"clean_up_tokenization_spaces": True},
        {
            "added_tokens_decoder": {
                "0": {"content": tiny.END, "special": True, "normalized": False},
                "320": {"content": "one", "special": False, "normalized": True, "lstrip": True},
                "321": {"content": "<x>", "special": True, "normalized": False},
            },
            "bos_token": "<x>",
            "eos_token": tiny.END,
        },
    ],
)
def test_settings(
    tmp_path: Path, byte_level: tokenizers.Tokenizer, settings: dict[str, Any], declared: str | None
) -> None:
    byte_level.save(str(tmp_path / "tokenizer.json"))
    extra = {} if declared is None else {"tokenizer_class": declared}
    write(tmp_path, "tokenizer_config.json", settings | extra)
    check(tmp_path)


def test_special_tokens_map(tmp_path: Path, byte_level: tokenizers.Tokenizer) -> None:
    byte_level.save(str(tmp_path / "tokenizer.json"))
    write(tmp_path, "special_tokens_map.json", {"bos_token": "<s>", "eos_token": {"content": "</s>"}})
    check(tmp_path)


def test_a_file_with_a_normalizer_and_other_parts(tmp_path: Path, byte_level: tokenizers.Tokenizer) -> None:
    """GPT2Tokenizer keeps only vocabulary, merges and post-processor of the file; other classes keep all."""
    changed = tokenizers.Tokenizer.from_str(byte_level.to_str())
    changed.normalizer = tokenizers.normalizers.Lowercase()
    changed.post_processor = tokenizers.processors.TemplateProcessing(
        single=f"{tiny.END} $A", special_tokens=[(tiny.END, 0)]
    )
    changed.enable_truncation(5)
    changed.enable_padding(length=12)
    changed.save(str(tmp_path / "tokenizer.json"))
    assert check(tmp_path).decode(check(tmp_path).encode("HELLO")) == f"{tiny.END}HELLO"
    write(tmp_path, "tokenizer_config.json", {"tokenizer_class": "PreTrainedTokenizerFast"})
    assert check(tmp_path).decode(check(tmp_path).encode("HELLO")) == f"{tiny.END}hello"


def test_no_tokenizer(tmp_path: Path) -> None:
    assert read_folder(tmp_path, {}) is None
    write(tmp_path, "vocab.json", {})
    assert read_folder(tmp_path, {}) is None  # merges.txt is needed, too


@pytest.mark.parametrize(
    "text", ["", "{", "[]", '{"model": {"type": "BPE"}}', '{"version": "9"}', "\x00\xff"]
)
def test_a_malformed_tokenizer_json(tmp_path: Path, text: str) -> None:
    (tmp_path / "tokenizer.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(errors.TokenizerError) as caught:
        read_folder(tmp_path, {})
    assert caught.value.file == str(tmp_path / "tokenizer.json")
    assert caught.value.got


def test_other_malformed_files(tmp_path: Path, byte_level: tokenizers.Tokenizer) -> None:
    byte_level.save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "tokenizer_config.json").write_text("nonsense", encoding="utf-8")
    with pytest.raises(errors.ConfigError, match="tokenizer_config"):
        read_folder(tmp_path, {})
    (tmp_path / "tokenizer_config.json").unlink()
    (tmp_path / "tokenizer.json").unlink()
    (tmp_path / "vocab.json").write_text("{}", encoding="utf-8")
    (tmp_path / "merges.txt").write_text("a b c d\n", encoding="utf-8")
    with pytest.raises(errors.TokenizerError, match=r"merges\.txt"):
        read_folder(tmp_path, {})


def test_a_gpt2_tokenizer_takes_the_vocabulary_of_any_file(tmp_path: Path) -> None:
    words = tokenizers.Tokenizer(tokenizers.models.WordLevel({"a": 0, "b": 1}, unk_token="a"))
    words.save(str(tmp_path / "tokenizer.json"))
    assert check(tmp_path).encode("ab") == [0, 1]
    write(tmp_path, "tokenizer_config.json", {"tokenizer_class": "PreTrainedTokenizerFast"})
    assert check(tmp_path).encode("ab") == [0]
    (tmp_path / "tokenizer_config.json").unlink()
    write(tmp_path, "tokenizer.json", {"model": {"type": "BPE", "merges": []}})
    with pytest.raises(errors.TokenizerError, match="a model with a vocabulary"):
        read_folder(tmp_path, tiny.config())


def test_text_that_is_none(byte_level: tokenizers.Tokenizer) -> None:
    tokenizer = Tokenizer(byte_level)
    for bad in (None, b"bytes", 3, "lone \ud800 surrogate"):
        with pytest.raises(errors.OptionError, match="expected text"):
            tokenizer.encode(bad)  # type: ignore[arg-type]
    assert tokenizer.bos_token_id is None
    assert tokenizer.eos_token_id is None


@pytest.mark.parametrize("one", [5, np.int64(5), np.array(5)])
def test_a_single_id_is_decoded(byte_level: tokenizers.Tokenizer, one: Any) -> None:
    tokenizer = Tokenizer(byte_level)
    assert tokenizer.decode(one) == tokenizer.decode([5]) == tokenizer.decode(np.array([5]))


@pytest.mark.parametrize("ids", ["56", b"56", None, 5.0, [None], [-1], [2**70], [[5, 6]], np.array([[5, 6]])])
def test_ids_that_are_none(byte_level: tokenizers.Tokenizer, ids: Any) -> None:
    with pytest.raises(errors.OptionError, match="expected a token id or a list of them"):
        Tokenizer(byte_level).decode(ids)


@pytest.mark.parametrize("ids", ["56", None, 5, np.array(5)])
def test_lists_of_ids_that_are_none(byte_level: tokenizers.Tokenizer, ids: Any) -> None:
    with pytest.raises(errors.OptionError, match="expected lists of token ids"):
        Tokenizer(byte_level).batch_decode(ids)


def test_what_load_takes_for_a_tokenizer(tmp_path: Path, byte_level: tokenizers.Tokenizer) -> None:
    byte_level.save(str(tmp_path / "tokenizer.json"))
    theirs = reference(tmp_path)
    ids = byte_level.encode("Hello world").ids
    for good in (tmp_path, str(tmp_path / "tokenizer.json"), byte_level, theirs, Tokenizer(byte_level)):
        assert as_tokenizer(good).encode("Hello world") == ids
    assert as_tokenizer(theirs).eos_token_id == theirs.eos_token_id
    empty = tmp_path / "empty"
    empty.mkdir()
    for bad in (empty, tmp_path / "nowhere", 3, object()):
        with pytest.raises(errors.OptionError, match="tokenizer: expected"):
            as_tokenizer(bad)


def test_pickling(byte_level: tokenizers.Tokenizer) -> None:
    tokenizer = Tokenizer(byte_level, bos_token=tiny.END)
    copy = pickle.loads(pickle.dumps(tokenizer))
    assert copy.encode("Hello") == tokenizer.encode("Hello")
    assert copy.bos_token_id == 0


# Any ids at all: half characters, stray bytes, special tokens, ids beyond the vocabulary.
_IDS = st.lists(st.one_of(st.integers(0, 330), st.sampled_from([0, 321, 100_000])), max_size=60)


def streamed(tokenizer: Tokenizer, ids: list[int], *, skip: bool) -> list[str]:
    detokenizer = tokenizer.detokenizer(skip_special_tokens=skip)
    return [*(detokenizer.push([token]) for token in ids), detokenizer.finish()]


@given(ids=_IDS, skip=st.booleans())
def test_pieces_join_to_the_whole(byte_level: tokenizers.Tokenizer, ids: list[int], *, skip: bool) -> None:
    backend = tokenizers.Tokenizer.from_str(byte_level.to_str())
    backend.add_tokens([tokenizers.AddedToken("two words", special=False), "日本"])
    tokenizer = Tokenizer(backend)
    pieces = streamed(tokenizer, ids, skip=skip)
    assert "".join(pieces) == tokenizer.decode(ids, skip_special_tokens=skip)


@given(text=st.text(max_size=40))
def test_no_piece_holds_half_a_character(byte_level: tokenizers.Tokenizer, text: str) -> None:
    tokenizer = Tokenizer(byte_level)
    text = text.replace("\ufffd", "")
    pieces = streamed(tokenizer, tokenizer.encode(text), skip=False)
    assert "".join(pieces) == text
    assert not any("\ufffd" in piece for piece in pieces)


_OTHERS = {
    "metaspace": tokenizers.decoders.Metaspace(),
    "wordpiece": tokenizers.decoders.WordPiece(),
    "byte fallback": tokenizers.decoders.Sequence(
        [
            tokenizers.decoders.Replace("▁", " "),
            tokenizers.decoders.ByteFallback(),
            tokenizers.decoders.Fuse(),
            tokenizers.decoders.Strip(" ", 1, 0),
        ]
    ),
    "none": None,
}


@pytest.mark.parametrize("name", _OTHERS)
@given(ids=st.lists(st.integers(0, 13), max_size=40))
@example(ids=[5, 6, 6, 6, 5])  # a character, until one byte more makes none of all five
@example(ids=[5, 6, 12, 6, 6, 12, 5, 0])  # the same with tokens between them that do not show
def test_pieces_of_other_decoders_join_too(name: str, ids: list[int]) -> None:
    words = [
        "▁Hello",
        "▁",
        "world",
        "##ly",
        ",",
        "<0xF0>",
        "<0x9F>",
        "<0x99>",
        "<0x82>",
        "é",
        " ",
        "▁▁a",
        "<s>",
        ".",
    ]
    backend = tokenizers.Tokenizer(tokenizers.models.WordLevel({word: i for i, word in enumerate(words)}))
    if _OTHERS[name] is not None:
        backend.decoder = _OTHERS[name]
    backend.add_special_tokens(["<s>"])
    tokenizer = Tokenizer(backend)
    pieces = streamed(tokenizer, ids, skip=True)
    assert "".join(pieces) == tokenizer.decode(ids, skip_special_tokens=True)


@pytest.mark.parametrize(
    ("stops", "pieces", "given_out", "stopped"),
    [
        ([], ["a", "b"], ["a", "b"], False),
        (["END"], ["xEN", "Dy"], ["x", ""], True),
        (["END"], ["xEN", "dy"], ["x", "ENdy"], False),
        (["END"], ["x", "E", "E", "ND"], ["x", "", "E", ""], True),
        (["END"], ["ENDEND"], [""], True),
        (["aa"], ["a", "b", "a"], ["", "ab", ""], False),
        (["abc", "b"], ["ab", "c"], ["a", ""], True),
        (["abc", "bx"], ["ab", "x"], ["", "a"], True),
        (["\n\n"], ["one\n", "\ntwo"], ["one", ""], True),
    ],
)
def test_stop_text(stops: list[str], pieces: list[str], given_out: list[str], *, stopped: bool) -> None:
    cutter = StopText(stops)
    assert [cutter.push(piece, piece) for piece in pieces] == given_out
    assert cutter.stopped == stopped


@given(
    text=st.text("abc", max_size=30),
    stops=st.lists(st.text("abc", min_size=1, max_size=4), max_size=3),
    cuts=st.lists(st.integers(0, 30), max_size=10),
)
def test_stop_text_is_cut_before_the_first_stop(text: str, stops: list[str], cuts: list[int]) -> None:
    cutter = StopText(stops)
    places = [0, *sorted(min(cut, len(text)) for cut in cuts), len(text)]
    out = ""
    for begin, end in itertools.pairwise(places):
        out += cutter.push(text[begin:end], text[begin:end])
        if cutter.stopped:
            break
    out += cutter.finish()
    if any(stop in text for stop in stops):
        assert cutter.stopped
        assert any(text.startswith(out + stop) for stop in stops)
        assert not any(stop in out for stop in stops)
    else:
        assert out == text


@pytest.fixture(scope="module")
def real_gpt2() -> Tokenizer:
    tokenizer = read_folder(GOLDEN, {"model_type": "gpt2"})
    assert tokenizer is not None
    return tokenizer


def test_real_gpt2_streams(real_gpt2: Tokenizer) -> None:
    cases = json.loads((GOLDEN / "expected.json").read_text(encoding="utf-8"))["cases"]
    assert len(cases) > 40
    for case in cases:
        ids = real_gpt2.encode(case["text"])
        assert ids == case["ids"], case["name"]
        assert "".join(streamed(real_gpt2, ids, skip=False)) == real_gpt2.decode(ids), case["name"]


def test_all_forms_of_real_gpt2_are_one(real_gpt2: Tokenizer, tmp_path: Path) -> None:
    split(tmp_path, real_gpt2.backend)
    from_vocabulary = check(tmp_path)
    pairs = json.loads((GOLDEN / "tokenizer.json").read_text(encoding="utf-8"))
    pairs["model"]["merges"] = [
        merge.split(" ") if isinstance(merge, str) else " ".join(merge) for merge in pairs["model"]["merges"]
    ]
    write(tmp_path, "tokenizer.json", pairs)
    from_pairs = check(tmp_path)
    for text in TEXTS:
        assert from_vocabulary.encode(text) == from_pairs.encode(text) == real_gpt2.encode(text)
    assert real_gpt2.vocab_size == 50257
    assert real_gpt2.eos_token_id == 50256
