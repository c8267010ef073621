"""A tokenizer that is called like a function: ids and masks are those of transformers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import fastdecode
import numpy as np
import pytest
import tiny
import tokenizers
import transformers
from fastdecode import errors
from fastdecode.tokenizer import Tokenizer

GOLDEN = Path(__file__).resolve().parent.parent / "golden" / "pipelines"
TEXTS = ["the king", "the old woman by the wood, and the wolf who thought to himself", ""]


@pytest.fixture(scope="module", params=["gpt2", "t5"])
def both(request: pytest.FixtureRequest) -> tuple[Any, Any]:
    folder = GOLDEN / request.param
    ours = fastdecode.load(folder, num_threads=1).tokenizer
    return ours, transformers.AutoTokenizer.from_pretrained(folder)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"add_special_tokens": False},
        {"truncation": True, "max_length": 5},
        {"truncation": True, "max_length": 5, "add_special_tokens": False},
    ],
    ids=str,
)
@pytest.mark.parametrize("side", ["right", "left"])
def test_ids_and_masks(both: tuple[Any, Any], options: dict[str, Any], side: str) -> None:
    ours, theirs = both
    ours.truncation_side = theirs.truncation_side = side
    for text in TEXTS:
        encoding = ours(text, **options)
        expected = theirs(text, **options)
        assert encoding == {name: expected[name] for name in ("input_ids", "attention_mask")}
        assert encoding.input_ids is encoding["input_ids"]
        arrays = ours(text, return_tensors="np", **options)
        assert arrays.input_ids.dtype == arrays.attention_mask.dtype == np.int64
        assert arrays.input_ids.tolist() == [encoding.input_ids]
        assert arrays.attention_mask.tolist() == [encoding.attention_mask]
    encoding = ours(TEXTS, **options)
    assert encoding.input_ids == theirs(TEXTS, **options).input_ids
    assert ours.batch_decode(encoding.input_ids) == theirs.batch_decode(encoding.input_ids)
    ours.truncation_side = theirs.truncation_side = "right"


def test_texts_of_one_length_are_an_array(both: tuple[Any, Any]) -> None:
    ours, _ = both
    assert ours(["the king"] * 2, return_tensors="np", padding=True).input_ids.shape[0] == 2
    assert ours([], return_tensors="np").input_ids.shape == (0, 0)
    with pytest.raises(errors.OptionError, match="different numbers of tokens"):
        ours(TEXTS, return_tensors="np")


class Padded(Tokenizer):
    """A tokenizer with a pad token."""

    pad_token_id = 0


def test_shorter_texts_are_filled_up() -> None:
    folder = GOLDEN / "t5"
    ours = Padded.__new__(Padded)
    vars(ours).update(vars(fastdecode.load(folder, num_threads=1).tokenizer))
    expected = transformers.AutoTokenizer.from_pretrained(folder)(TEXTS, padding=True, return_tensors="np")
    for padding in (True, "longest"):
        encoding = ours(TEXTS, padding=padding, return_tensors="np")
        assert encoding.input_ids.tolist() == expected.input_ids.tolist()
        assert encoding.attention_mask.tolist() == expected.attention_mask.tolist()


@pytest.mark.parametrize("name", ["t5", "gpt2"])
@pytest.mark.parametrize(
    "options",
    [
        {"padding": "max_length"},
        {"padding": "max_length", "max_length": 12},
        {"padding": "max_length", "max_length": 5},
        {"padding": "max_length", "max_length": 5, "truncation": "longest_first"},
        {"padding": "max_length", "truncation": "only_first"},
        {"padding": "longest", "max_length": 5, "truncation": True},
        {"padding": "do_not_pad", "truncation": "do_not_truncate", "max_length": 5},
    ],
    ids=str,
)
def test_paddings_and_truncations_by_name(name: str, options: dict[str, Any]) -> None:
    theirs = transformers.AutoTokenizer.from_pretrained(GOLDEN / name)
    theirs.pad_token_id = 0
    ours = Padded.__new__(Padded)
    vars(ours).update(vars(fastdecode.load(GOLDEN / name, num_threads=1).tokenizer))
    assert ours.model_max_length == (theirs.model_max_length if theirs.model_max_length < 10**15 else None)
    for text in (TEXTS, TEXTS[0]):
        encoding, expected = ours(text, **options), theirs(text, **options)
        assert encoding.input_ids == expected.input_ids
        assert encoding.attention_mask == expected.attention_mask


@pytest.mark.parametrize(
    ("given", "option"),
    [
        ({"text": 3}, "text"),
        ({"text": b"the"}, "text"),
        ({"text": [3]}, "prompt"),
        ({"text": "a", "return_tensors": "pt"}, "return_tensors"),
        ({"text": "a", "return_tensors": np.array(["np", "np"])}, "return_tensors"),
        ({"text": "a", "padding": "left"}, "padding"),
        ({"text": "a", "padding": np.array([True, True])}, "padding"),
        ({"text": "a", "truncation": "only_second"}, "truncation"),
        ({"text": "a", "truncation": 3}, "truncation"),
        ({"text": "a", "max_length": 0}, "max_length"),
        ({"text": "a", "max_length": True}, "max_length"),
    ],
)
def test_what_cannot_be_used(both: tuple[Any, Any], given: dict[str, Any], option: str) -> None:
    with pytest.raises(errors.OptionError) as caught:
        both[0](**given)
    assert caught.value.option == option


def test_parts_that_an_encoding_has_not(both: tuple[Any, Any]) -> None:
    with pytest.raises(AttributeError, match="no 'token_type_ids', but input_ids, attention_mask"):
        both[0]("a").token_type_ids  # noqa: B018 (looking is the test)


def test_one_list_of_ids_and_what_are_none() -> None:
    tokenizer = fastdecode.load("demo-stories").tokenizer
    ids = tokenizer.encode("Once upon a time")
    # As in transformers 5, where it is deprecated.
    for flat in (ids, tuple(ids), np.array(ids)):
        assert tokenizer.batch_decode(flat) == ["Once upon a time"]
    assert tokenizer.decode(ids[0]) == tokenizer.decode([ids[0]])
    for given in ([-1], [2**40], [ids], None, "a", -1):
        with pytest.raises(errors.OptionError, match="ids: expected a token id or a list of them"):
            tokenizer.decode(given)
    with pytest.raises(errors.OptionError, match="ids: expected a token id or a list of them"):
        tokenizer.batch_decode([[ids]])


def test_tokens_and_their_ids(byte_level: tokenizers.Tokenizer) -> None:
    tokenizer = Tokenizer(byte_level, unk_token=tiny.END, all_special_tokens=[tiny.END])
    ids = tokenizer.encode("the wolf\u00e9")
    tokens = tokenizer.tokenize("the wolf\u00e9")
    assert tokens == [byte_level.id_to_token(index) for index in ids]
    assert tokenizer.convert_ids_to_tokens(ids) == tokens
    assert tokenizer.convert_tokens_to_ids(tokens) == ids
    assert tokenizer.convert_tokens_to_ids(tuple(tokens)) == ids
    assert tokenizer.convert_ids_to_tokens(ids[0]) == tokens[0]
    assert tokenizer.convert_tokens_to_ids(tokens[0]) == ids[0]
    # What the vocabulary does not have.
    assert tokenizer.convert_tokens_to_ids("no such token") == tokenizer.unk_token_id == 0
    assert Tokenizer(byte_level).convert_tokens_to_ids("no such token") is None
    assert tokenizer.convert_ids_to_tokens([0, 99_999]) == [tiny.END, None]
    assert tokenizer.convert_ids_to_tokens([0, ids[0]], skip_special_tokens=True) == tokens[:1]


@pytest.mark.parametrize(
    ("name", "given"),
    [
        ("tokenize", 3),
        ("tokenize", "\ud800"),
        ("convert_tokens_to_ids", 3),
        ("convert_tokens_to_ids", ["a", None]),
        ("convert_tokens_to_ids", "\ud800"),
        ("convert_ids_to_tokens", "a"),
        ("convert_ids_to_tokens", [-1]),
        ("convert_ids_to_tokens", [1.5, None]),
    ],
)
def test_what_is_no_token(byte_level: tokenizers.Tokenizer, name: str, given: object) -> None:
    with pytest.raises(errors.OptionError):
        getattr(Tokenizer(byte_level), name)(given)
