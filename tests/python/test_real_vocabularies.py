"""Real vocabularies with byte tokens: published ids, transformers' ids and text, and streams of whole characters."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest
import real
from fastdecode.detokenizer import common
from hypothesis import given, settings
from hypothesis import strategies as st
from parity import EXAMPLES
from test_new_text import new_text
from tokenizer_compare import compare, load

if TYPE_CHECKING:
    from pathlib import Path

    from fastdecode.tokenizer import Tokenizer

# A leading space, text behind a special token, numbered lists, digits in a row, a letter with a mark of its own, lines.
STRINGS = [
    " Hello",
    "Hello",
    "a</s>b <s> c",
    "a\n\n1. b\n2.  c",
    "12345 1,234.5",
    "e\u0301 \u00e9",
    "  two\n\n\tx",
    "\U0001f999\U0001f680 \u65e5\u672c",
]


class Both(NamedTuple):
    """A folder's tokenizer, and which of its ids are what."""

    ours: Tokenizer
    theirs: Any
    parts: list[int]
    special: list[int]
    folder: Path


@pytest.fixture(scope="module", params=real.FOLDERS, ids=lambda maker: maker.__name__)
def both(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Both:
    from transformers import AutoTokenizer

    folder = request.param(tmp_path_factory.mktemp("real"))
    ours = load(folder)
    every = range(ours.vocab_size)
    # Tokens whose bytes are no whole characters.
    parts = [index for index in every if "\ufffd" in ours.decode([index])]
    special = [index for index in every if ours.is_special(index)]
    return Both(ours, AutoTokenizer.from_pretrained(folder), parts, special, folder)


@pytest.mark.parametrize("case", real.cases(real.LLAMA), ids=lambda case: case["text"][:12])
@pytest.mark.parametrize(
    "maker", [real.llama, real.llama_pieces, real.llama_without_a_class], ids=lambda maker: maker.__name__
)
def test_published_ids_of_tinyllama(
    maker: Any, case: dict[str, Any], tmp_path_factory: pytest.TempPathFactory
) -> None:
    tokenizer = _kept(maker, tmp_path_factory)
    # The class orders the merges of a SentencePiece model by its pieces' ids, in transformers as here, and so puts
    # those of runs of spaces first, which the model has last.
    is_other = maker is real.llama_pieces and "   " in case["text"]
    assert (tokenizer.encode(case["text"]) == case["ids"]) != is_other
    assert tokenizer.decode(case["ids"], skip_special_tokens=True) == case["text"]


@pytest.mark.parametrize("case", real.cases(real.QWEN2), ids=lambda case: case["text"][:12])
def test_published_ids_of_qwen2(case: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> None:
    tokenizer = _kept(real.qwen2, tmp_path_factory)
    assert tokenizer.encode(case["text"]) == case["ids"]
    assert tokenizer.decode(case["ids"], skip_special_tokens=True) == case["text"]


def test_ids_of_phi(tmp_path: Path) -> None:
    tokenizer = load(real.phi(tmp_path))
    # Salesforce's CodeGen adds runs of spaces and tabs, the longest first; all other text has GPT-2's ids.
    runs = [" " * count for count in range(31, 1, -1)] + ["\t" * count for count in range(9, 1, -1)]
    assert [tokenizer.encode(f"a{run}b")[1:-1] for run in runs] == [[50257 + at] for at in range(len(runs))]
    assert tokenizer.vocab_size == 50295
    published = json.loads((real.GOLDEN / "gpt2-tokenizer" / "expected.json").read_text())["cases"]
    plain = [case for case in published if not any(run in case["text"] for run in runs)]
    assert len(plain) > 30
    for case in plain:
        assert tokenizer.encode(case["text"]) == case["ids"]
    # The model has more rows than the vocabulary; such ids have no text.
    assert tokenizer.decode([1544, 50295, 51199]) == tokenizer.decode([1544])


_LOADED: dict[Any, Tokenizer] = {}


def _kept(maker: Any, tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    if maker not in _LOADED:
        _LOADED[maker] = load(maker(tmp_path_factory.mktemp("real")))
    return _LOADED[maker]


def test_ids_and_text_are_those_of_transformers(both: Both) -> None:
    assert compare(both.folder) == ("equal", [])
    for text in STRINGS:
        ids = both.ours.encode(text)
        assert ids == both.theirs(text)["input_ids"], text
        assert both.ours.decode(ids) == both.theirs.decode(ids), text


def drawn_ids(both: Both) -> st.SearchStrategy[list[int]]:
    """Ids with runs of parts of characters, whole and broken ones, special tokens and ids past the vocabulary."""
    characters = st.text(alphabet="\u00e9\u20ac\U0001f999a \n\u65e5", min_size=1, max_size=3)
    runs: list[st.SearchStrategy[list[int]]] = [
        st.lists(st.integers(0, both.ours.vocab_size + 3), max_size=4),
        characters.map(lambda text: both.ours.encode(text, add_special_tokens=False)),
        characters.map(lambda text: both.ours.encode(text, add_special_tokens=False)[:-1]),
        st.lists(st.sampled_from(both.special or [0]), min_size=1, max_size=2),
    ]
    if both.parts:
        runs.append(st.lists(st.sampled_from(both.parts), min_size=1, max_size=6))
    return st.lists(st.one_of(runs), max_size=8).map(lambda lists: [index for ids in lists for index in ids])


@settings(max_examples=120 * EXAMPLES)
@given(data=st.data(), skip=st.booleans())
def test_pieces_of_any_ids_join_to_their_text(both: Both, data: st.DataObject, *, skip: bool) -> None:
    ids = data.draw(drawn_ids(both))
    whole = both.theirs.decode(ids, skip_special_tokens=skip)
    assert both.ours.decode(ids, skip_special_tokens=skip) == whole
    pieces = both.ours.detokenizer(skip_special_tokens=skip)
    given_out = [pieces.push([index]) for index in ids]
    assert "".join(given_out) + pieces.finish() == whole
    again = both.ours.detokenizer(skip_special_tokens=skip)
    cut = data.draw(st.integers(0, len(ids)))
    assert again.push(ids[:cut]) + again.push(ids[cut:]) + again.finish() == whole


@settings(max_examples=60 * EXAMPLES)
@given(text=st.text(max_size=20))
def test_no_piece_ends_within_a_character(both: Both, text: str) -> None:
    ids = both.ours.encode(text)
    whole = both.ours.decode(ids)
    pieces = both.ours.detokenizer()
    for index in ids:
        piece = pieces.push([index])
        assert "\ufffd" not in piece or "\ufffd" in whole


def test_bytes_are_held_back_and_words_are_not(both: Both) -> None:
    ids = both.ours.encode("the wolf said: good day, little one")
    pieces, joined = both.ours.detokenizer(), ""
    for count, index in enumerate(ids, 1):
        joined += pieces.push([index])
        assert joined == both.ours.decode(ids[:count])
    if not both.parts:  # GPT-1 has no bytes
        return
    start = len(ids)
    rare = "\U00013000"
    ids = both.ours.encode(f"the wolf said: good day, little one{rare}")
    assert len(ids) > start + 1
    for index in ids[start:-1]:
        assert pieces.push([index]) == ""
    assert pieces.push(ids[-1:]) + pieces.finish() == rare


@settings(max_examples=60 * EXAMPLES)
@given(data=st.data(), skip=st.booleans())
def test_new_text_is_what_the_whole_adds(both: Both, data: st.DataObject, *, skip: bool) -> None:
    prompt, new = data.draw(drawn_ids(both)), data.draw(drawn_ids(both))
    before = both.ours.decode(prompt, skip_special_tokens=skip)
    whole = both.theirs.decode([*prompt, *new], skip_special_tokens=skip)
    assert before[: common(before, whole)] + new_text(both.ours, prompt, new, skip=skip) == whole


@pytest.mark.parametrize(
    "maker", [real.llama, real.llama_pieces, real.llama_as_it_is], ids=lambda maker: maker.__name__
)
def test_a_space_is_taken_at_the_start_alone(maker: Any, tmp_path_factory: pytest.TempPathFactory) -> None:
    tokenizer = _kept(maker, tmp_path_factory)
    hello = tokenizer.encode("Hello", add_special_tokens=False)
    prompt = tokenizer.encode("Say")
    assert len(hello) == 1
    assert prompt[0] == 1
    assert tokenizer.decode(hello) == "Hello"
    assert new_text(tokenizer, [], hello, skip=True) == "Hello"
    assert new_text(tokenizer, [1], hello, skip=True) == "Hello"
    assert new_text(tokenizer, [1], hello, skip=False) == " Hello"
    assert tokenizer.decode([1, *hello]) == "<s> Hello"
    for skip in (True, False):
        assert new_text(tokenizer, prompt, hello, skip=skip) == " Hello"
        assert new_text(tokenizer, prompt, [*hello, *hello], skip=skip) == " Hello Hello"


def test_a_run_of_bytes_that_is_no_text(tmp_path_factory: pytest.TempPathFactory) -> None:
    tokenizer = _kept(real.llama, tmp_path_factory)
    run = [byte + 3 for byte in (0xF0, 0x9F, 0xA6, 0x99)]
    word = tokenizer.encode("x", add_special_tokens=False)
    assert tokenizer.decode([*word, *run, *word]) == "x\U0001f999 x"
    # One byte more, and each byte of the run is a sign of its own.
    pieces = tokenizer.detokenizer()
    given_out = [pieces.push([index]) for index in [*word, *run, 0xFF + 3, *word]]
    assert given_out == ["x", "", "", "", "", "", "\ufffd" * 5 + " x"]
