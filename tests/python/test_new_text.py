"""New text is what the whole text adds to the prompt's, in every face and for every kind of vocabulary."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import fastdecode
import pytest
import tiny
import tokenizers
import vocabularies
from families import FAMILIES
from fastdecode.detokenizer import after_prompt, common
from fastdecode.tokenizer import Tokenizer
from fastdecode.tokenizer_objects import as_tokenizer
from hypothesis import given, settings
from hypothesis import strategies as st

if TYPE_CHECKING:
    from pathlib import Path

OPTIONS: Any = {"max_new_tokens": 8, "eos_token_id": None}


@pytest.fixture(scope="module", params=vocabularies.MAKERS, ids=lambda maker: maker.__name__)
def tokenizer(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return as_tokenizer(request.param(tmp_path_factory.mktemp("tokenizer")))


def new_text(tokenizer: Tokenizer, prompt: list[int], new: list[int], *, skip: bool) -> str:
    pieces = after_prompt(
        tokenizer, lambda most: prompt[max(len(prompt) - most, 0) :], skip_special_tokens=skip
    )
    return "".join(pieces.push([token]) for token in new) + pieces.finish()


@settings(max_examples=200)
@given(data=st.data(), skip=st.booleans())
def test_prompt_and_new_text_join_to_the_whole(
    tokenizer: Tokenizer, data: st.DataObject, *, skip: bool
) -> None:
    """Where decoding changes the prompt's own text (half a character, `n` of `n't`), only that is given again."""
    ids = st.lists(st.integers(0, tokenizer.vocab_size - 1), max_size=40)
    prompt, new = data.draw(ids), data.draw(ids)
    before = tokenizer.decode(prompt, skip_special_tokens=skip)
    whole = tokenizer.decode([*prompt, *new], skip_special_tokens=skip)
    assert before[: common(before, whole)] + new_text(tokenizer, prompt, new, skip=skip) == whole


@settings(max_examples=100)
@given(text=st.text(max_size=30), cut=st.integers(0, 30))
def test_texts_join_wherever_they_are_cut(tokenizer: Tokenizer, text: str, cut: int) -> None:
    ids = tokenizer.encode(text, add_special_tokens=False)
    before, whole = tokenizer.decode(ids[:cut]), tokenizer.decode(ids)
    new = new_text(tokenizer, ids[:cut], ids[cut:], skip=False)
    assert before[: common(before, whole)] + new == whole
    if whole.startswith(before):
        assert before + new == whole


def test_the_beginning_of_a_long_prompt_is_not_read(tokenizer: Tokenizer) -> None:
    asked: list[int] = []
    word = tokenizer.encode("the wolf said", add_special_tokens=False)
    prompt = word * 10_000

    def prompt_end(most: int) -> list[int]:
        asked.append(most)
        return prompt[-most:]

    after_prompt(tokenizer, prompt_end, skip_special_tokens=True)
    assert max(asked) <= 1024


def test_half_a_character_at_the_end_of_a_prompt(byte_level: tokenizers.Tokenizer) -> None:
    tokenizer = Tokenizer(byte_level)

    def ids(content: bytes) -> list[int]:
        table = {tokenizer.token_bytes(index, skip_special_tokens=False): index for index in range(1, 257)}
        return [table[content[at : at + 1]] for at in range(len(content))]

    euro = "€".encode()
    # The character comes whole; where it stays incomplete, the prompt's text has its U+FFFD already.
    assert new_text(tokenizer, ids(b"a" + euro[:2]), ids(euro[2:] + b"b"), skip=True) == "€b"
    assert new_text(tokenizer, ids(b"a" + euro[:2]), ids(b"b"), skip=True) == "b"
    assert new_text(tokenizer, ids(b"a" + euro[:1]), ids(euro[1:2]), skip=True) == ""
    assert new_text(tokenizer, ids(b"a" + euro[:1]), [0], skip=True) == ""
    assert new_text(tokenizer, ids(b"a\xff"), ids(b"b\xff"), skip=True) == "b\ufffd"


@pytest.fixture(scope="module")
def t5(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("models") / "t5"
    theirs = vocabularies.t5(folder)
    config = FAMILIES["t5"].tiny_config(vocab_size=len(theirs), decoder_start_token_id=0)
    weights = FAMILIES["t5"].tiny_weights(config)
    return fastdecode.Seq2SeqLM.from_tensors(config, weights, tokenizer=theirs, num_threads=1)


@pytest.mark.parametrize("skip", [True, False])
def test_every_face_of_an_encoder_decoder(t5: Any, *, skip: bool) -> None:
    tokenizer, options = t5.tokenizer, OPTIONS | {"skip_special_tokens": skip}
    spaces = 0
    for seed in range(30):
        drawn = options | {"do_sample": True, "temperature": 3.0, "seed": seed}
        output = t5.run("the wolf", "the", **drawn)
        ids = [0, *tokenizer.encode("the", add_special_tokens=False)]
        before = tokenizer.decode(ids, skip_special_tokens=skip)
        whole = tokenizer.decode([*ids, *output.token_ids], skip_special_tokens=skip)
        # Clean-up may take a space of the prompt's text, and then the texts have less in common.
        assert whole == before[: common(before, whole)] + output.text
        spaces += output.text.startswith(" ")
        assert t5.generate("the wolf", "the", **drawn) == output.text
        assert "".join(map(str, t5.stream("the wolf", "the", **drawn))) == output.text
        memory = t5.encode("the wolf")
        assert t5.generate(memory=memory, decoder_prompt="the", **drawn) == output.text

        async def told(drawn: dict[str, Any] = drawn) -> str:
            return "".join([str(piece) async for piece in t5.astream("the wolf", "the", **drawn)])

        assert asyncio.run(told()) == output.text
    assert spaces > 0


def test_sequences_and_beams_begin_behind_their_prompts(t5: Any) -> None:
    tokenizer = t5.tokenizer
    prompts = ["the", "wolf said", ""]
    for kind in ({"num_beams": 3}, {"do_sample": True, "temperature": 3.0, "seed": 4}):
        outputs = t5.run("the wolf", prompts, num_return_sequences=3, **kind, **OPTIONS)
        for place, output in enumerate(outputs):
            ids = [0, *tokenizer.encode(prompts[place // 3], add_special_tokens=False)]
            before = tokenizer.decode(ids, skip_special_tokens=True)
            whole = tokenizer.decode([*ids, *output.token_ids], skip_special_tokens=True)
            assert whole == before[: common(before, whole)] + output.text


@pytest.mark.parametrize("skip", [True, False])
def test_behind_a_start_token_alone_a_text_begins_as_any_does(t5: Any, *, skip: bool) -> None:
    options = OPTIONS | {"skip_special_tokens": skip, "do_sample": True, "temperature": 3.0}
    for seed in range(8):
        for prompt in (None, "", [0]):
            output = t5.run("the wolf", prompt, seed=seed, **options)
            assert output.text == t5.tokenizer.decode(output.token_ids, skip_special_tokens=skip)


def test_a_causal_model_with_pieces(tmp_path: Path) -> None:
    theirs = vocabularies.byte_fallback(tmp_path)
    config = tiny.config(vocab_size=len(theirs), bos_token_id=1, eos_token_id=2)
    model = fastdecode.CausalLM.from_tensors(config, tiny.weights(config), tokenizer=theirs, num_threads=1)
    for seed in range(10):
        options = OPTIONS | {"do_sample": True, "temperature": 5.0, "seed": seed}
        output = model.run("a b", **options)
        assert isinstance(output.text, str)
        whole = theirs.decode([*theirs("a b")["input_ids"], *output.token_ids], skip_special_tokens=True)
        assert whole == "a b" + output.text
        assert model.generate("a b", **options) == output.text
        alone = model.run("", **options)
        assert alone.text == theirs.decode(alone.token_ids, skip_special_tokens=True)


def test_stop_strings_of_a_call_know_new_text_alone(t5: Any) -> None:
    text = t5.generate("the wolf", "the wolf", **OPTIONS)
    assert t5.generate("the wolf", "the wolf", stop="wolf" + text[:1], **OPTIONS) == text
    assert t5.generate("the wolf", "the wolf", stop=text[:2], **OPTIONS) == ""
