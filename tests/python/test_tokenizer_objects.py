"""Tokenizers of transformers that are handed over as objects: their ids, text and settings, in every class."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any

import fastdecode
import pytest
import tiny
import tokenizers
import vocabularies
from families import FAMILIES
from fastdecode import errors
from fastdecode.detokenizer import after_prompt
from fastdecode.tokenizer import Tokenizer
from fastdecode.tokenizer_objects import as_tokenizer
from hypothesis import given, settings
from hypothesis import strategies as st

if TYPE_CHECKING:
    from pathlib import Path

TEXTS = [
    "",
    " ",
    "The wolf said : ' good day , girls ! '",
    "I don't. She's ; we 've",
    "Il était une fois 昔々 🙂 naïve",
    "a <extra_id_0> b</s>c [SEP] <|endoftext|> d",
    "  two   spaces\n\nlines\t",
]


@pytest.fixture(scope="module", params=vocabularies.MAKERS, ids=lambda maker: maker.__name__)
def theirs(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    return request.param(tmp_path_factory.mktemp("tokenizer"))


@pytest.fixture(scope="module")
def ours(theirs: Any) -> Tokenizer:
    return as_tokenizer(theirs)


def test_ids_text_and_settings(theirs: Any, ours: Tokenizer) -> None:
    assert ours.backend is theirs
    for text in TEXTS:
        for special in (True, False):
            ids = theirs(text, add_special_tokens=special)["input_ids"]
            assert ours.encode(text, add_special_tokens=special) == ids
        for skip in (True, False):
            assert ours.decode(ids, skip_special_tokens=skip) == theirs.decode(ids, skip_special_tokens=skip)
            # A class of the caller's own may not know the option.
            known = "kwargs" in inspect.signature(theirs.decode).parameters
            for clean in (True, False) if known else ():
                assert ours.decode(
                    ids, skip_special_tokens=skip, clean_up_tokenization_spaces=clean
                ) == theirs.decode(ids, skip_special_tokens=skip, clean_up_tokenization_spaces=clean)
    assert (ours.bos_token_id, ours.eos_token_id) == (theirs.bos_token_id, theirs.eos_token_id)
    assert ours.vocab_size == len(theirs)
    unlimited = theirs.model_max_length > 10**15
    assert ours.model_max_length == (None if unlimited else theirs.model_max_length)
    assert ours.truncation_side == theirs.truncation_side


@settings(max_examples=150)
@given(data=st.data(), skip=st.booleans())
def test_pieces_join_to_the_whole(theirs: Any, ours: Tokenizer, data: st.DataObject, *, skip: bool) -> None:
    ids = data.draw(st.lists(st.integers(0, len(theirs) - 1), max_size=50))
    detokenizer = ours.detokenizer(skip_special_tokens=skip)
    pieces = [*(detokenizer.push([token]) for token in ids), detokenizer.finish()]
    assert "".join(pieces) == theirs.decode(ids, skip_special_tokens=skip)


@settings(max_examples=150)
@given(text=st.text(max_size=20))
def test_any_text(theirs: Any, ours: Tokenizer, text: str) -> None:
    ids = theirs(text)["input_ids"]
    assert ours.encode(text) == ids
    assert ours.decode(ids) == theirs.decode(ids)


def test_byt5_holds_back_half_characters_and_drops_what_is_none(tmp_path: Path) -> None:
    tokenizer = as_tokenizer(vocabularies.byt5(tmp_path))
    pieces = tokenizer.detokenizer(skip_special_tokens=True)
    ids = [byte + 3 for byte in "né🙂".encode()]
    assert [pieces.push([token]) for token in ids] == ["n", "", "é", "", "", "", "🙂"]
    assert [pieces.push([token]) for token in (3 + 0xE2, 3 + 0x82, 3 + ord("a"))] == ["", "", "a"]
    assert pieces.push([258]) + pieces.finish() == ""
    assert tokenizer.decode([*ids, 3 + 0xE2, 100_000, 3 + ord("a")]) == "né🙂a"


def test_a_model_with_a_tokenizer_in_python(tmp_path: Path) -> None:
    theirs = vocabularies.byt5(tmp_path)
    config = tiny.config() | {"vocab_size": 384}
    model = fastdecode.CausalLM.from_tensors(config, tiny.weights(config), tokenizer=theirs, num_threads=1)
    text = "Il était une fois"
    options: Any = {
        "max_new_tokens": 24,
        "eos_token_id": None,
        "do_sample": True,
        "temperature": 3.0,
        "seed": 5,
    }
    output = model.run(text, **options)
    ids = theirs(text)["input_ids"]
    assert output.token_ids == model.run(ids, **options).token_ids
    assert output.text is not None
    assert "".join(map(str, model.stream(text, **options))) == output.text
    assert theirs.decode(ids + output.token_ids, skip_special_tokens=True) == text + output.text


def test_the_text_behind_a_prompt(theirs: Any, ours: Tokenizer) -> None:
    for text in TEXTS:
        ids = theirs(text, add_special_tokens=False)["input_ids"]
        for cut in range(len(ids) + 1):
            pieces = after_prompt(ours, lambda most, end=ids[:cut]: end[-most:], skip_special_tokens=False)  # type: ignore[misc]
            new = "".join(pieces.push([token]) for token in ids[cut:]) + pieces.finish()
            prompt, whole = theirs.decode(ids[:cut]), theirs.decode(ids)
            if whole.startswith(prompt):
                assert prompt + new == whole


@pytest.mark.parametrize("name", ["class", "model", "function", "text"])
def test_what_is_no_tokenizer(name: str) -> None:
    from transformers import ByT5Tokenizer, GPT2Config

    bad = {"class": ByT5Tokenizer, "model": GPT2Config(), "function": len, "text": "no such folder"}[name]
    with pytest.raises(errors.OptionError, match="tokenizer: expected a folder"):
        as_tokenizer(bad)


def test_text_that_is_none(ours: Tokenizer) -> None:
    for bad in (None, b"bytes", 3):
        with pytest.raises(errors.OptionError, match="expected text"):
            ours.encode(bad)  # type: ignore[arg-type]


def test_the_classes_of_the_library_that_hold_a_tokenizer(tmp_path: Path) -> None:
    tiny.byte_level().model.save(str(tmp_path))
    given = tokenizers.ByteLevelBPETokenizer(str(tmp_path / "vocab.json"), str(tmp_path / "merges.txt"))
    tokenizer = as_tokenizer(given)
    assert tokenizer.backend is given
    assert tokenizer.encode("Hello") == given.encode("Hello").ids


@pytest.mark.parametrize("name", ["vocab.json", "merges.txt", "vocab.txt"])
def test_a_file_that_is_one_of_several_names_the_folder(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text('{"a": 0}' if name == "vocab.json" else "a\n", encoding="utf-8")
    with pytest.raises(errors.TokenizerError, match=rf"{name}: expected a tokenizer\.json .* their folder"):
        as_tokenizer(tmp_path / name)


@pytest.mark.parametrize("family", ["gpt2", "t5"])
def test_text_beyond_the_vocabulary_of_the_model(tmp_path: Path, family: str) -> None:
    tokenizer = tiny.byte_level(300)
    tokenizer.add_special_tokens(["<user>"])
    made = FAMILIES[family].write_tiny(tmp_path / "model", vocab_size=300)
    model = fastdecode.load(made, num_threads=1, tokenizer=tokenizer)
    assert isinstance(model.generate("a", max_new_tokens=1), str)
    wanted = r"within the model's vocabulary of 300 tokens; .*tokenizer=.* got '<user>', id 300 of a tokenizer of 301"
    for call in (model.generate, model.run, lambda text, **options: list(model.stream(text, **options))):
        with pytest.raises(errors.OptionError, match=wanted):
            call("a<user>", max_new_tokens=1)
