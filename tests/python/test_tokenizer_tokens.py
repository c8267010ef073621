"""Special and added tokens of folders in all layouts, as transformers has them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import tiny
import tokenizers
from fastdecode import errors
from fastdecode.tokenizer_objects import as_tokenizer
from tokenizer_compare import GPT2, check, load, pieces, vocabulary, write


def test_added_tokens_of_older_folders(tmp_path: Path) -> None:
    vocabulary(tmp_path, config=GPT2, added_tokens={"<user>": 257, "<bot>": 258})
    ours = check(tmp_path)
    assert ours.encode("<user>a<bot>") == [257, 64, 258]
    assert ours.decode([257, 64, 258], skip_special_tokens=True) == "<user>a<bot>"


def test_added_tokens_go_by_their_ids_and_not_by_the_names(tmp_path: Path) -> None:
    of_map = {"sep_token": "<bot>", "pad_token": {"content": "<user>", "lstrip": False}}
    vocabulary(tmp_path, config=GPT2, added_tokens={"<bot>": 258, "<user>": 257}, special_tokens_map=of_map)
    ours = check(tmp_path)
    assert ours.encode("<user>a<bot>") == [257, 64, 258]
    assert ours.decode([257, 64, 258], skip_special_tokens=True) == "a"


@pytest.mark.parametrize("where", ["tokenizer_config", "special_tokens_map"])
@pytest.mark.parametrize("key", ["additional_special_tokens", "extra_special_tokens"])
def test_only_a_list_of_the_settings_makes_added_tokens_special(tmp_path: Path, where: str, key: str) -> None:
    vocabulary(
        tmp_path, config=GPT2, added_tokens={"<user>": 257, "<bot>": 258}, **{where: {key: ["<user>"]}}
    )
    ours = check(tmp_path)
    shown = ours.decode([257, 64, 258], skip_special_tokens=True)
    # Under its older name a list counts only where the settings have it.
    is_special = where == "tokenizer_config" or key == "extra_special_tokens"
    assert shown == ("a<bot>" if is_special else "<user>a<bot>")


def test_the_settings_list_counts_before_that_of_the_map(tmp_path: Path) -> None:
    lists = {
        "tokenizer_config": {"additional_special_tokens": ["<a>"]},
        "special_tokens_map": {"additional_special_tokens": ["<b>"]},
    }
    ours = check(vocabulary(tmp_path, config=GPT2, **lists))
    assert ours.encode("<a>") == [257]
    assert len(ours.encode("<b>")) == 3


def test_t5_keeps_its_sentinels_beside_a_list_in_both_files(tmp_path: Path) -> None:
    names = [f"<extra_id_{number}>" for number in range(100)]
    lists = {
        "tokenizer_config": {"additional_special_tokens": names},
        "special_tokens_map": {"additional_special_tokens": ["<sep>"]},
    }
    assert check(pieces(tmp_path, **lists)).encode("<extra_id_0>")[-2:] == [32099, 1]


@pytest.mark.parametrize("value", [[], None, "absent"])
def test_an_empty_list_is_not_an_absent_one(tmp_path: Path, value: Any) -> None:
    settings = {} if value == "absent" else {"additional_special_tokens": value}
    ours = check(pieces(tmp_path, tokenizer_config=settings))
    whole = ours.encode("a <extra_id_0> b")
    assert whole == ([3, 9, 32099, 3, 115, 1] if value == "absent" else [3, 9, 3, 32099, 3, 115, 1])


@pytest.mark.parametrize("where", ["tokenizer_config", "special_tokens_map"])
def test_tokens_under_names_of_ones_own(tmp_path: Path, where: str) -> None:
    ours = check(vocabulary(tmp_path, config=GPT2, **{where: {"context_token": "<ctx>"}}))
    ids = ours.encode("a<ctx>")
    assert ids == [64, 257]
    assert ours.decode(ids, skip_special_tokens=True) == "a"


@pytest.mark.parametrize("cls", ["GPT2Tokenizer", "PreTrainedTokenizerFast"])
def test_flags_of_the_settings_count_before_those_of_the_file(
    tmp_path: Path, byte_level: tokenizers.Tokenizer, cls: str
) -> None:
    changed = tokenizers.Tokenizer.from_str(byte_level.to_str())
    changed.add_tokens([tokenizers.AddedToken("<x>", lstrip=False, special=False)])
    changed.save(str(tmp_path / "tokenizer.json"))
    token = {"content": "<x>", "lstrip": True, "rstrip": True, "special": True, "normalized": False}
    index = str(changed.token_to_id("<x>"))
    settings = {"tokenizer_class": cls, "added_tokens_decoder": {index: token}}
    ours = check(write(tmp_path, config=GPT2, tokenizer_config=settings))
    ids = ours.encode("a <x> b")
    assert ours.decode(ids) == "a<x>b"
    assert ours.decode(ids, skip_special_tokens=True) == "ab"


@pytest.mark.parametrize("cls", ["GPT2Tokenizer", "PreTrainedTokenizerFast"])
def test_a_named_token_becomes_special(tmp_path: Path, byte_level: tokenizers.Tokenizer, cls: str) -> None:
    changed = tokenizers.Tokenizer.from_str(byte_level.to_str())
    changed.add_tokens([tokenizers.AddedToken("<x>", special=False)])
    changed.save(str(tmp_path / "tokenizer.json"))
    settings = {"tokenizer_class": cls, "sep_token": "<x>"}
    ours = check(write(tmp_path, config=GPT2, tokenizer_config=settings))
    assert ours.decode(ours.encode("a<x>"), skip_special_tokens=True) == "a"


@pytest.mark.parametrize("where", ["tokenizer_config", "special_tokens_map"])
def test_null_takes_a_token_away(tmp_path: Path, where: str) -> None:
    ours = check(vocabulary(tmp_path, config=GPT2, **{where: {"bos_token": None}}))
    assert (ours.bos_token, ours.eos_token) == (None, tiny.END)


@pytest.mark.parametrize("bos", [True, False])
@pytest.mark.parametrize("eos", [True, False])
@pytest.mark.parametrize("form", ["tokenizer.json", "vocab.json"])
@pytest.mark.parametrize("cls", ["GPT2Tokenizer", "CodeGenTokenizer", "GPTNeoXTokenizer", "Qwen2Tokenizer"])
def test_begin_and_end(
    tmp_path: Path, byte_level: tokenizers.Tokenizer, cls: str, form: str, *, bos: bool, eos: bool
) -> None:
    settings = {"tokenizer_class": cls, "add_bos_token": bos, "add_eos_token": eos, "bos_token": "<b>"}
    if form == "tokenizer.json":
        byte_level.save(str(tmp_path / form))
    else:
        vocabulary(tmp_path)
    ours = check(write(tmp_path, config=GPT2, tokenizer_config=settings))
    # With a tokenizer.json these settings count no more.
    around = form == "vocab.json"
    assert len(ours.encode("a")) == 1 + (around and bos) + (around and eos)


@pytest.mark.parametrize(
    "change",
    [
        {"tokenizer_config": {"added_tokens_decoder": {"x": {"content": "a"}}}},
        {"tokenizer_config": {"added_tokens_decoder": {"300": "a"}}},
        {"tokenizer_config": {"extra_special_tokens": 3}},
        {"tokenizer_config": {"eos_token": 3}},
        {"special_tokens_map": {"eos_token": {"no": "content"}}},
        {"added_tokens": {"<a>": "x"}},
        {"added_tokens": {"<a>": None}},
    ],
    ids=str,
)
def test_tokens_that_are_none(tmp_path: Path, change: dict[str, Any]) -> None:
    vocabulary(tmp_path, config=GPT2, **change)
    with pytest.raises(errors.ConfigError, match=next(iter(change))):
        load(tmp_path)


def test_versions_of_tokenizer_json(tmp_path: Path, byte_level: tokenizers.Tokenizer) -> None:
    byte_level.save(str(tmp_path / "tokenizer.json"))
    lower = tokenizers.Tokenizer.from_str(byte_level.to_str())
    lower.normalizer = tokenizers.normalizers.Lowercase()
    lower.save(str(tmp_path / "tokenizer.4.0.0.json"))
    names = ["tokenizer.json", "tokenizer.4.0.0.json", "tokenizer.99.0.0.json"]
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "fast_tokenizer_files": names}
    ours = check(write(tmp_path, config=GPT2, tokenizer_config=settings))
    assert ours.decode(ours.encode("HELLO")) == "hello"


def test_truncation_and_padding_of_tokenizer_json(tmp_path: Path, byte_level: tokenizers.Tokenizer) -> None:
    changed = tokenizers.Tokenizer.from_str(byte_level.to_str())
    changed.enable_truncation(3, direction="left")
    changed.enable_padding(length=9, pad_token="<fill>")
    changed.save(str(tmp_path / "tokenizer.json"))
    ours = check(
        write(tmp_path, config=GPT2, tokenizer_config={"tokenizer_class": "PreTrainedTokenizerFast"})
    )
    assert ours.truncation_side == "left"
    assert ours.decode(ours.encode("a long text<fill>"), skip_special_tokens=True) == "a long text"


def test_a_vocabulary_without_a_token_for_what_is_unknown(tmp_path: Path) -> None:
    words = tokenizers.Tokenizer(tokenizers.models.WordLevel({"a": 0}, unk_token="<none>"))
    words.save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(errors.TokenizerError, match="a vocabulary that has"):
        as_tokenizer(tmp_path).encode("b")


@pytest.mark.parametrize("tokens", [["", "<x>"], [""]])
@pytest.mark.parametrize("key", ["extra_special_tokens", "additional_special_tokens"])
@pytest.mark.parametrize("where", ["tokenizer_config", "special_tokens_map"])
def test_an_empty_token_of_a_list(tmp_path: Path, where: str, key: str, tokens: list[str]) -> None:
    check(vocabulary(tmp_path, config=GPT2, **{where: {key: tokens}}))


@pytest.mark.parametrize("name", ["bos_token", "eos_token", "pad_token"])
@pytest.mark.parametrize("maker", [vocabulary, pieces])
def test_an_empty_token_by_name_has_the_id_of_what_is_unknown(tmp_path: Path, maker: Any, name: str) -> None:
    ours = check(
        maker(
            tmp_path,
            tokenizer_config={name: ""},
            config={"model_type": "gpt2" if maker is vocabulary else "t5"},
        )
    )
    assert getattr(ours, f"{name}_id") == ours.unk_token_id is not None
