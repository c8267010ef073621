"""A tokenizer that is called like a function: ids and masks are those of transformers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import fastdecode
import numpy as np
import pytest
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
    encoding = ours(TEXTS, padding=True, return_tensors="np")
    assert encoding.input_ids.tolist() == expected.input_ids.tolist()
    assert encoding.attention_mask.tolist() == expected.attention_mask.tolist()


@pytest.mark.parametrize(
    ("given", "option"),
    [
        ({"text": 3}, "text"),
        ({"text": b"the"}, "text"),
        ({"text": [3]}, "prompt"),
        ({"text": "a", "return_tensors": "pt"}, "return_tensors"),
        ({"text": "a", "padding": "longest"}, "padding"),
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


def test_ids_one_by_one_and_what_are_none() -> None:
    tokenizer = fastdecode.load("demo-stories").tokenizer
    ids = tokenizer.encode("Once upon a time")
    assert tokenizer.batch_decode(ids) == [tokenizer.decode(token_id) for token_id in ids]
    assert "".join(tokenizer.batch_decode(np.array(ids))) == "Once upon a time"
    for given in ([-1], [2**40], [ids], None, "a", -1):
        with pytest.raises(errors.OptionError, match="ids: expected token ids"):
            tokenizer.decode(given)
    with pytest.raises(errors.OptionError, match="ids: expected token ids"):
        tokenizer.batch_decode([[ids]])
