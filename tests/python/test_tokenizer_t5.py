"""T5's tokenizer: the goldens of three other projects, all forms of file, and what transformers 5.24 makes of them."""

from __future__ import annotations

import importlib.util
import itertools
import json
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
from fastdecode import errors
from fastdecode.detokenizer import clean_up, detokenizer
from fastdecode.folder import optional_json
from fastdecode.tokenizer import Tokenizer
from fastdecode.tokenizer_files import read_folder
from fastdecode.tokenizer_objects import as_tokenizer
from hypothesis import given, settings
from hypothesis import strategies as st

GOLDEN = Path(__file__).resolve().parent.parent / "golden"
T5 = GOLDEN / "t5-tokenizer"
TOOL = GOLDEN.parent.parent / "tools" / "compare_tokenizers.py"
CASES: list[dict[str, Any]] = json.loads((T5 / "expected.json").read_text())["cases"]
FORMS = ["tokenizer.json", "spiece.model"]

TEXTS = [
    "",
    " ",
    "Hello world",
    " Hello  world \n\t",
    "translate English to German: don't , do . it ?",
    "a</s>b </s> c",
    "<pad><unk> <extra_id_0> x <extra_id_99>y<extra_id_5>",
    "Il était une fois à l'orée d'un bois, ﬁn ① ㎏ ½",
    "昔々、ある所に🙂 naïve café",
    "x" * 200,
    "\u200b\ufeff\u00a0\u3000▁ ▁▁",
    "trailing   ",
]


def write(folder: Path, name: str, value: object) -> None:
    (folder / name).write_text(json.dumps(value), encoding="utf-8")


def folder(tmp: Path, form: str, declared: dict[str, Any] | None = None, model_type: str = "t5") -> Path:
    """Returns a folder with T5's vocabulary in one form of file; `declared` is its tokenizer_config.json."""
    shutil.copy(T5 / form, tmp)
    write(tmp, "config.json", {"model_type": model_type})
    if declared is not None:
        write(tmp, "tokenizer_config.json", declared)
    return tmp


def flan(tmp: Path, declared: dict[str, Any]) -> Path:
    """Returns a folder with a file in the form of Flan-T5's, made from T5's: runs of spaces, no split at them."""
    folder(tmp, "tokenizer.json", declared)
    content = json.loads((tmp / "tokenizer.json").read_text())
    runs = {"type": "Replace", "pattern": {"Regex": " {2,}"}, "content": " "}
    content["normalizer"] = {"type": "Sequence", "normalizers": [content["normalizer"], runs]}
    metaspace = {"type": "Metaspace", "replacement": "▁", "add_prefix_space": True}
    content["pre_tokenizer"] = content["decoder"] = metaspace
    write(tmp, "tokenizer.json", content)
    return tmp


def load(folder: Path) -> Tokenizer:
    tokenizer = read_folder(folder, optional_json(folder / "config.json"))
    assert tokenizer is not None
    return tokenizer


def compare() -> Any:
    """Returns tools/compare_tokenizers.py as a module."""
    spec = importlib.util.spec_from_file_location("compare_tokenizers", TOOL)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def check(folder: Path) -> Tokenizer:
    """Compares with transformers; returns ours."""
    from transformers import AutoTokenizer

    ours, theirs = load(folder), AutoTokenizer.from_pretrained(folder)
    assert list(compare().differences(ours, theirs, TEXTS)) == []
    for text in TEXTS:
        plain = theirs(text, add_special_tokens=False)["input_ids"]
        assert ours.encode(text, add_special_tokens=False) == plain
    assert (ours.vocab_size, ours.eos_token_id) == (len(theirs), theirs.eos_token_id)
    assert ours.model_max_length == (theirs.model_max_length if theirs.model_max_length < 10**15 else None)
    ids = range(0, len(theirs), 97)
    assert ours.decode(ids, skip_special_tokens=True) == theirs.decode(list(ids), skip_special_tokens=True)
    return ours


@pytest.fixture(scope="module", params=FORMS)
def t5(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    declared = json.loads((T5 / "tokenizer_config.json").read_text())
    return load(folder(tmp_path_factory.mktemp("t5"), request.param, declared))


@pytest.fixture(scope="module")
def flan_t5(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    declared = {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": True}
    return load(flan(tmp_path_factory.mktemp("flan"), declared))


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case['source']}-{case['name']}")
def test_ids_and_text(t5: Tokenizer, flan_t5: Tokenizer, case: dict[str, Any]) -> None:
    tokenizer = flan_t5 if "Flan" in case["source"] else t5
    assert tokenizer.encode(case["text"]) == case["ids"]
    if case["decoded"] is not None:
        assert tokenizer.decode(case["ids"]) == case["decoded"]


def test_what_a_t5_folder_means(t5: Tokenizer) -> None:
    assert t5.encode("") == [1]
    assert t5.encode("", add_special_tokens=False) == []
    assert t5.encode("a</s>") == [3, 9, 1, 1]
    assert t5.decode([8774, 32100, 32127, 10**6]) == "Hello"
    assert t5.decode(t5.encode("don't , do . it ?"), skip_special_tokens=True) == "don't, do. it?"
    raw = t5.decode([2049, 3, 6], clean_up_tokenization_spaces=False)
    assert raw == "thanks ,"
    assert t5.decode([2049, 3, 6]) == "thanks,"
    assert (t5.bos_token_id, t5.eos_token_id, t5.vocab_size, t5.model_max_length) == (None, 1, 32100, 512)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(
    "declared",
    [
        None,
        {},
        {"clean_up_tokenization_spaces": True, "model_max_length": 7},
        {"eos_token": "<pad>", "pad_token": "</s>"},
        {"extra_ids": 3},
        {"extra_special_tokens": ["<a>", "Hello"]},
        {"additional_special_tokens": ["<extra_id_0>", "<b>"]},
        {"split_special_tokens": True},
        {"tokenizer_class": "T5Tokenizer"},
        {"tokenizer_class": "T5TokenizerFast"},
        {
            "added_tokens_decoder": {
                "0": {"content": "<pad>", "special": True, "normalized": False},
                "1": {"content": "</s>", "special": True, "normalized": False},
                "32100": {"content": "world", "special": False, "normalized": True, "lstrip": True},
            }
        },
    ],
    ids=str,
)
def test_any_t5_folder(tmp_path: Path, form: str, declared: dict[str, Any] | None) -> None:
    check(folder(tmp_path, form, declared))


@pytest.mark.parametrize("model_type", ["t5", "mt5", "umt5", "gpt2"])
@pytest.mark.parametrize("declared", [None, "T5Tokenizer", "PreTrainedTokenizerFast", "NoSuchTokenizer"])
def test_which_class_counts(tmp_path: Path, model_type: str, declared: str | None) -> None:
    made = flan(tmp_path, {} if declared is None else {"tokenizer_class": declared})
    write(tmp_path, "config.json", {"model_type": model_type})
    ours = check(made)
    if (model_type, declared) == ("gpt2", None):
        return  # T5's pieces under GPT-2's rules
    # Only a file that is taken as it is keeps the space before a special token.
    rebuilt = model_type != "umt5" and declared in (None, "T5Tokenizer")
    assert ours.encode("Hey </s>")[1] == (1 if rebuilt else 3)


def test_older_files_beside_the_vocabulary(tmp_path: Path) -> None:
    made = folder(tmp_path, "spiece.model", {})
    write(tmp_path, "special_tokens_map.json", {"additional_special_tokens": ["<sep>"], "eos_token": "</s>"})
    write(tmp_path, "added_tokens.json", {"<sep>": 32100, "wordy": 32101})
    ours = check(made)
    assert ours.encode("<sep>wordy<extra_id_0>") == [32100, 32101, 32099, 1]


def test_umt5_with_pieces_alone(tmp_path: Path) -> None:
    # transformers 5.24 finds no tokenizer here; T5's rules are those of UMT5's pieces.
    ours = load(folder(tmp_path, "spiece.model", None, "umt5"))
    assert ours.encode("Hello world") == [8774, 296, 1]


@pytest.mark.parametrize("form", FORMS)
def test_a_tokenizer_from_elsewhere(theirs: Any, form: str) -> None:
    ours = as_tokenizer(T5 / form)
    assert ours.encode("Hello world") == [8774, 296, 1]
    wrapped = as_tokenizer(theirs)
    assert wrapped.decode([2049, 3, 6]) == "thanks,"
    assert wrapped.model_max_length == 512


@pytest.fixture(scope="module")
def theirs() -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(T5)


@settings(max_examples=60)
@given(text=st.text(st.one_of(st.characters(codec="utf-8"), st.sampled_from(" .,'▁\n</s>")), max_size=60))
def test_any_text(t5: Tokenizer, theirs: Any, text: str) -> None:
    assert list(compare().differences(t5, theirs, [text])) == []


# Ids of marks and contractions, of the lone space, of words, special tokens and ids without a piece.
_IDS = st.one_of(
    st.sampled_from([3, 5, 6, 31, 17, 51, 7, 60, 29, 55, 58, 1, 2, 0, 32099, 32110]), st.integers(0, 32127)
)


@settings(max_examples=300)
@given(ids=st.lists(_IDS, max_size=40), skip=st.booleans())
def test_pieces_join_to_the_whole(t5: Tokenizer, ids: list[int], skip: bool) -> None:
    pieces = t5.detokenizer(skip_special_tokens=skip)
    joined = "".join(pieces.push([token]) for token in ids) + pieces.finish()
    assert joined == t5.decode(ids, skip_special_tokens=skip)


def test_every_short_text_is_cleaned_alike_in_pieces() -> None:
    """The pieces are single characters here, which is harder than any vocabulary."""

    class Characters:
        clean_up_tokenization_spaces = True

        decoding = "pieces"
        letters = " 'ntvers.m"

        def decode(self, ids: list[int], **_: object) -> str:
            return "".join(self.letters[i] for i in ids)

        def ends_in_bytes(self, *_: object, **__: object) -> bool:
            return False

    tokenizer: Any = Characters()
    for length in range(1, 6):
        for ids in itertools.product(range(len(Characters.letters)), repeat=length):
            if ids.count(0) == 0:
                continue
            pieces = detokenizer(tokenizer, skip_special_tokens=False)
            joined = "".join(pieces.push([i]) for i in ids) + pieces.finish()
            whole = tokenizer.decode(ids)
            assert joined == clean_up(whole), whole


def test_a_space_is_given_out_as_soon_as_it_is_certain(t5: Tokenizer) -> None:
    pieces = t5.detokenizer(skip_special_tokens=True)
    ids = t5.encode("Hello world , so")
    assert [pieces.push([token]) for token in ids] == ["Hello", " world", "", ",", " so", ""]
    assert pieces.finish() == ""


def test_special_tokens_that_are_left_out_do_not_eat_a_space(t5: Tokenizer) -> None:
    ids = [8774, *[32099] * 12, 296]
    pieces = t5.detokenizer(skip_special_tokens=True)
    assert "".join(pieces.push([token]) for token in ids) == "Hello world"


def test_a_public_domain_text(tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    tool = compare()
    texts = tool.lines(GOLDEN / "texts" / "carroll-shakespeare.txt")
    assert len(texts) > 100
    made = folder(tmp_path, "tokenizer.json", {"clean_up_tokenization_spaces": True})
    theirs = AutoTokenizer.from_pretrained(made)
    assert list(tool.differences(load(made), theirs, texts)) == []


def test_without_the_sentencepiece_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sentencepiece", None)
    with pytest.raises(errors.TokenizerError, match=r"fastdecode\[sentencepiece\]") as caught:
        load(folder(tmp_path, "spiece.model"))
    assert str(caught.value.file).endswith("spiece.model")


@pytest.mark.parametrize("content", [b"", b"not a model", b"\xff" * 40, b'{"model": {}}'])
def test_malformed_pieces(tmp_path: Path, content: bytes) -> None:
    (folder(tmp_path, "spiece.model") / "spiece.model").write_bytes(content)
    with pytest.raises(errors.TokenizerError, match="SentencePiece model"):
        load(tmp_path)


@pytest.mark.parametrize(
    "change",
    [
        {"model": None},
        {"model": {}},
        {"model": {"type": "Unigram", "vocab": {"a": 1}}},
        {"model": {"type": "Unigram", "vocab": []}},
        {"model": {"type": "Unigram", "vocab": [["a"]]}},
        {"model": {"type": "Unigram", "vocab": [["a", "b"]]}},
        {"model": {"type": "Unigram", "vocab": [["a", 0.0]]}},
        {"normalizer": {"type": "Precompiled"}},
        {"normalizer": {"type": "Precompiled", "precompiled_charsmap": "***"}},
        {"normalizer": {"type": "Precompiled", "precompiled_charsmap": "AAAA"}},
        {"normalizer": []},
    ],
    ids=str,
)
def test_a_malformed_tokenizer_json(tmp_path: Path, change: dict[str, Any]) -> None:
    made = folder(tmp_path, "tokenizer.json")
    model = {"vocab": [[token, 0.0] for token in ("<pad>", "</s>", "<unk>")]}
    content: dict[str, Any] = {"added_tokens": [], "normalizer": None, "model": model}
    write(made, "tokenizer.json", content | change)
    if change == {"normalizer": []}:
        load(made)
        return
    with pytest.raises(errors.TokenizerError) as caught:
        load(made)
    assert str(caught.value.file).endswith("tokenizer.json")
