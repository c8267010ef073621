"""Tokenizers of transformers that are handed over as objects: their ids, text and settings, in every class."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import fastdecode
import pytest
import tiny
import tokenizers
from fastdecode import errors
from fastdecode.detokenizer import after_prompt
from fastdecode.tokenizer import Tokenizer
from fastdecode.tokenizer_objects import as_tokenizer
from hypothesis import given, settings
from hypothesis import strategies as st

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

WORDS = [
    "the",
    "wolf",
    "said",
    "good",
    "day",
    "do",
    "n",
    "t",
    "s",
    "'",
    ".",
    ",",
    "!",
    "girl",
    "##s",
    "##ing",
    "café",
]
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
TEXTS = [
    "",
    " ",
    "The wolf said : ' good day , girls ! '",
    "I don't. She's ; we 've",
    "Il était une fois 昔々 🙂 naïve",
    "a <extra_id_0> b</s>c [SEP] <|endoftext|> d",
    "  two   spaces\n\nlines\t",
]


def byt5(_: Path) -> Any:
    from transformers import ByT5Tokenizer

    return ByT5Tokenizer()


def bert_in_python(folder: Path) -> Any:
    from transformers.models.bert.tokenization_bert_legacy import BertTokenizerLegacy

    (folder / "vocab.txt").write_text("\n".join([*SPECIAL, *WORDS]), encoding="utf-8")
    return BertTokenizerLegacy(str(folder / "vocab.txt"), clean_up_tokenization_spaces=True)


def bert(_: Path) -> Any:
    from transformers import BertTokenizer

    vocabulary = {word: index for index, word in enumerate([*SPECIAL, *WORDS])}
    return BertTokenizer(vocab=vocabulary, clean_up_tokenization_spaces=True, truncation_side="left")


def ctrl(folder: Path) -> Any:
    from transformers import CTRLTokenizer

    pieces = [
        "<unk>",
        "w@@",
        "o@@",
        "l@@",
        "f",
        "f@@",
        "wo@@",
        "lf",
        "wolf",
        "the",
        "t@@",
        "h@@",
        "e",
        "e@@",
        "a",
        "n",
        "t",
        "s",
        "d",
    ]
    (folder / "vocab.json").write_text(
        json.dumps({piece: index for index, piece in enumerate(pieces)}), "utf-8"
    )
    (folder / "merges.txt").write_text("#version\nw o\nl f</w>\nwo lf</w>\nt h\nth e</w>\n", "utf-8")
    return CTRLTokenizer(str(folder / "vocab.json"), str(folder / "merges.txt"))


def by_hand(_: Path) -> Any:
    """Words by hand: nothing but what the base class asks for."""
    from transformers import PreTrainedTokenizer

    class Words(PreTrainedTokenizer):
        words = ("<pad>", "<eos>", "<unk>", *(word for word in WORDS if not word.startswith("##")))

        @property
        def vocab_size(self) -> int:
            return len(self.words)

        def get_vocab(self) -> dict[str, int]:
            vocabulary = {word: index for index, word in enumerate(self.words)}
            vocabulary.update(self.added_tokens_encoder)
            return vocabulary

        def _tokenize(self, text: str, **_: Any) -> list[str]:
            return text.lower().split()

        def _convert_token_to_id(self, token: str) -> int:
            return self.words.index(token) if token in self.words else 2

        def _convert_id_to_token(self, index: int) -> str:
            return self.words[index]

        def build_inputs_with_special_tokens(self, one: list[int], two: list[int] | None = None) -> list[int]:
            return [*one, 1, *(two or [])]

    return Words(pad_token="<pad>", eos_token="<eos>", unk_token="<unk>", model_max_length=77)


def gpt2(folder: Path) -> Any:
    from transformers import GPT2Tokenizer

    tiny.byte_level().model.save(str(folder))
    return GPT2Tokenizer(str(folder / "vocab.json"), str(folder / "merges.txt"), add_prefix_space=True)


def cleaned_bpe(folder: Path) -> Any:
    from transformers import PreTrainedTokenizerFast

    tiny.byte_level().save(str(folder / "tokenizer.json"))
    flag = "clean_up_tokenization_spaces_for_bpe_even_though_it_will_corrupt_output"
    given: Any = {flag: True, "clean_up_tokenization_spaces": True}
    return PreTrainedTokenizerFast(tokenizer_file=str(folder / "tokenizer.json"), eos_token=tiny.END, **given)


def clip(_: Path) -> Any:
    from transformers import CLIPTokenizer

    model = tokenizers.models.BPE(end_of_word_suffix="</w>")
    trained = tokenizers.Tokenizer(model)
    trained.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=700,
        end_of_word_suffix="</w>",
        special_tokens=["<|startoftext|>", "<|endoftext|>"],
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    trained.train_from_iterator(tiny.TEXT, trainer)
    state = json.loads(trained.to_str())["model"]
    return CLIPTokenizer(vocab=state["vocab"], merges=[tuple(merge) for merge in state["merges"]])


def t5(_: Path) -> Any:
    from transformers import T5Tokenizer

    pieces = [
        ("<pad>", 0.0),
        ("</s>", 0.0),
        ("<unk>", 0.0),
        ("▁", -2.0),
        *((letter, -6.0) for letter in "abdefghilnorstw'.,!"),
    ]
    pieces += [("▁the", -3.0), ("▁wolf", -3.0), ("▁said", -3.0), ("ing", -4.0), ("▁.", -4.0), ("▁n", -4.0)]
    return T5Tokenizer(vocab=pieces, extra_ids=3, clean_up_tokenization_spaces=True)


def byte_fallback(_: Path) -> Any:
    from transformers import PreTrainedTokenizerFast

    names = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁", "a", "b", "▁a"]
    model = tokenizers.models.BPE(
        {name: at for at, name in enumerate(names)}, [("▁", "a")], byte_fallback=True, unk_token="<unk>"
    )
    backend = tokenizers.Tokenizer(model)
    backend.normalizer = tokenizers.normalizers.Sequence(
        [tokenizers.normalizers.Prepend("▁"), tokenizers.normalizers.Replace(" ", "▁")]
    )
    backend.decoder = tokenizers.decoders.Sequence(
        [
            tokenizers.decoders.Replace("▁", " "),
            tokenizers.decoders.ByteFallback(),
            tokenizers.decoders.Fuse(),
            tokenizers.decoders.Strip(" ", 1, 0),
        ]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )


MAKERS: list[Callable[[Path], Any]] = [
    *(byt5, bert_in_python, bert, ctrl, by_hand, gpt2, cleaned_bpe, clip, t5, byte_fallback)
]


@pytest.fixture(scope="module", params=MAKERS, ids=lambda maker: maker.__name__)
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
            for clean in (True, False):
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
    tokenizer = as_tokenizer(byt5(tmp_path))
    pieces = tokenizer.detokenizer(skip_special_tokens=True)
    ids = [byte + 3 for byte in "né🙂".encode()]
    assert [pieces.push([token]) for token in ids] == ["n", "", "é", "", "", "", "🙂"]
    assert [pieces.push([token]) for token in (3 + 0xE2, 3 + 0x82, 3 + ord("a"))] == ["", "", "a"]
    assert pieces.push([258]) + pieces.finish() == ""
    assert tokenizer.decode([*ids, 3 + 0xE2, 100_000, 3 + ord("a")]) == "né🙂a"


def test_a_model_with_a_tokenizer_in_python(tmp_path: Path) -> None:
    theirs = byt5(tmp_path)
    config = tiny.config() | {"vocab_size": 384}
    model = fastdecode.CausalLM.from_tensors(config, tiny.weights(config), tokenizer=theirs)
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
