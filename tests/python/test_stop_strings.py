"""Stop strings of the folder end a sequence at the id at which transformers ends it; `stop=` knows new text alone."""

from __future__ import annotations

import dataclasses
import json
import random
import string
from typing import TYPE_CHECKING, Any

import fastdecode
import pytest
import tiny
import tokenizers
import vocabularies
from families import FAMILIES
from fastdecode import errors
from fastdecode.folder import Defaults
from fastdecode.stops import StopPieces
from fastdecode.tokenizer_objects import as_tokenizer
from hypothesis import given, settings
from hypothesis import strategies as st

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from fastdecode.tokenizer import Tokenizer


@pytest.fixture(scope="module", params=vocabularies.MAKERS, ids=lambda maker: maker.__name__)
def theirs(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    return request.param(tmp_path_factory.mktemp("tokenizer"))


@pytest.fixture(scope="module")
def ours(theirs: Any) -> Tokenizer:
    return as_tokenizer(theirs)


@settings(max_examples=60)
@given(data=st.data())
def test_which_id_is_the_last(theirs: Any, ours: Tokenizer, data: st.DataObject) -> None:
    """Every prefix of some ids, against transformers' own criterion, with strings that are parts of their texts."""
    import torch
    from transformers.generation.stopping_criteria import StopStringCriteria

    ids = data.draw(st.lists(st.integers(0, len(theirs) - 1), min_size=1, max_size=12))
    text = theirs.decode(ids)
    stops = []
    for _ in range(data.draw(st.integers(1, 3))):
        begin = data.draw(st.integers(0, max(len(text) - 1, 0)))
        stops.append(
            text[begin : begin + data.draw(st.integers(1, 8))] or data.draw(st.text(min_size=1, max_size=3))
        )
    try:
        criterion = StopStringCriteria(theirs, stops)
    except ValueError:  # none of the strings can come, in their view
        criterion = None
    pieces = StopPieces(ours, stops)
    for end in range(1, len(ids) + 1):
        expected = criterion is not None and bool(criterion(torch.tensor([ids[:end]]), None)[0])
        assert (pieces.match(ids[max(0, end - pieces.most) : end]) is not None) == expected, (
            ids[:end],
            stops,
        )


@pytest.fixture(scope="module")
def gpt2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    tokenizer = tiny.byte_level(320)
    tokenizer.add_tokens([tokenizers.AddedToken("<|im_end|>", special=True), "two words"])
    folder = tmp_path_factory.mktemp("models") / "gpt2"
    return tiny.write_folder(folder, tokenizer=tokenizer, vocab_size=tokenizer.get_vocab_size())


@pytest.fixture(scope="module")
def t5(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "t5"
    theirs = vocabularies.t5(folder)
    FAMILIES["t5"].write_tiny(folder, vocab_size=len(theirs), decoder_start_token_id=0)
    theirs.save_pretrained(folder)
    return folder


def generated(folder: Path, ids: list[int], prompt: list[int], **options: Any) -> list[int]:
    """What transformers generates, greedily."""
    import torch
    import transformers

    if folder not in _LOADED:
        auto = (
            transformers.AutoModelForCausalLM if "gpt2" in folder.name else transformers.AutoModelForSeq2SeqLM
        )
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
        _LOADED[folder] = auto.from_pretrained(folder, dtype=torch.float32), tokenizer
    model, tokenizer = _LOADED[folder]
    decoder: dict[str, Any] = {"decoder_input_ids": torch.tensor([prompt])} if ids is not prompt else {}
    given = torch.tensor([ids])
    out = model.generate(
        given,
        attention_mask=torch.ones_like(given),
        tokenizer=tokenizer,
        do_sample=False,
        eos_token_id=None,
        pad_token_id=0,
        max_new_tokens=16,
        **decoder,
        **options,
    )
    return out[0, len(prompt) :].tolist()  # type: ignore[no-any-return]


_LOADED: dict[Path, Any] = {}


def with_stops(folder: Path, stops: Sequence[str]) -> Any:
    (folder / "generation_config.json").write_text(json.dumps({"stop_strings": stops}), encoding="utf-8")
    try:
        return fastdecode.load(folder, num_threads=1)
    finally:
        (folder / "generation_config.json").unlink()


@pytest.mark.parametrize("name", ["gpt2", "t5"])
def test_ids_are_those_of_transformers(name: str, request: pytest.FixtureRequest) -> None:
    """Strings are drawn from the text of prompt and new ids together, so that some begin in the prompt."""
    folder: Path = request.getfixturevalue(name)
    draw, plain = random.Random(3), fastdecode.load(folder, num_threads=1)
    tokenizer: Any = plain.tokenizer
    options: Any = {"max_new_tokens": 16, "eos_token_id": None}
    ended = across = 0
    for _ in range(25):
        source = [draw.randrange(3, tokenizer.vocab_size) for _ in range(draw.randint(1, 5))]
        if name == "t5":
            prompt = [0, *(draw.randrange(3, tokenizer.vocab_size) for _ in range(draw.randint(0, 4)))]
            new = plain.run(source, prompt, **options).token_ids
        else:
            prompt = source
            new = plain.run(prompt, **options).token_ids
        before = tokenizer.decode(prompt)
        text = tokenizer.decode([*prompt, *new])
        begin = draw.randint(max(0, len(before) - 4), max(0, min(len(text) - 1, len(before) + 20)))
        stop = text[begin : begin + draw.randint(1, 6)].replace("\ufffd", "") or "a"
        expected = generated(folder, source, prompt, stop_strings=[stop])
        model = with_stops(folder, [stop])
        arguments = (source, prompt) if name == "t5" else (prompt,)
        output = model.run(*arguments, **options)
        assert output.token_ids == expected, (prompt, new, stop)
        shown = plain.run(*arguments, **(options | {"max_new_tokens": len(expected)})).text
        assert shown.startswith(output.text)
        if len(expected) < 16:
            ended += 1
            across += output.text == ""
            assert output.finish_reason == "stop"
            assert stop not in output.text
        pieces = list(model.stream(*arguments, **options))
        assert "".join(map(str, pieces)) == output.text
        assert [token for piece in pieces for token in piece.token_ids] == expected
    assert ended > 10
    assert across > 0


def test_where_the_text_is_cut(gpt2: Path) -> None:
    plain = fastdecode.load(gpt2, num_threads=1)
    tokenizer: Any = plain.tokenizer
    options: Any = {"max_new_tokens": 12, "eos_token_id": None, "skip_special_tokens": False}
    prompts = [tokenizer.encode(f"{letter} said") for letter in string.ascii_letters]
    texts = [str(plain.run(prompt, **options)) for prompt in prompts]
    prompt, text = next((p, t) for p, t in zip(prompts, texts, strict=True) if t[:5].isascii() and len(t) > 8)
    for begin in range(3):
        stop = text[begin : begin + 3]
        assert with_stops(gpt2, [stop]).run(prompt, **options).text == text[: text.index(stop)]
    # It begins in the prompt and ends with the first new character, so that no new text is left.
    across = with_stops(gpt2, ["said" + text[0]]).run(prompt, **options)
    assert (across.text, across.finish_reason, len(across.token_ids)) == ("", "stop", 1)
    # A string that is in the prompt as a whole ends nothing, and one of the call does not look there.
    assert with_stops(gpt2, ["sai"]).run(prompt, **options).text == text
    assert plain.run(prompt, stop="said" + text[0], **options).text == text
    # `stop=` stands instead of the folder's, and None switches those off.
    stopping = with_stops(gpt2, [text[3:5]])
    assert stopping.run(prompt, **options).finish_reason == "stop"
    others: list[Any] = [None, [], "never there"]
    for other in others:
        assert stopping.run(prompt, stop=other, **options).text == text


def test_the_space_of_a_first_token(t5: Path) -> None:
    """Decoding leaves it out, and transformers counts it."""
    plain = fastdecode.load(t5, num_threads=1)
    tokenizer: Any = plain.tokenizer
    options: Any = {"max_new_tokens": 6, "eos_token_id": None}
    found = 0
    for number in range(3, tokenizer.vocab_size):
        new = plain.run([number], [0], **options)
        pieces = [str(tokenizer.stop_piece(token)) for token in new.token_ids]
        if len(pieces[0]) < 2 or pieces[0][0] != " ":
            continue
        found += 1
        for stop in (pieces[0], pieces[0] + pieces[1][:2]):
            expected = generated(t5, [number], [0], stop_strings=[stop])[:6]
            output = with_stops(t5, [stop]).run([number], [0], **options)
            assert (output.token_ids, output.text, output.finish_reason) == (expected, "", "stop")
            chunks = with_stops(t5, [stop]).stream([number], [0], **options)
            assert "".join(map(str, chunks)) == ""
    assert found > 0


def test_folder_strings_do_not_go_with_beams(gpt2: Path) -> None:
    with pytest.raises(errors.OptionError, match="stop: expected none with num_beams above 1"):
        with_stops(gpt2, ["x"]).run([5], num_beams=2)


def test_folder_strings_need_a_tokenizer(tmp_path: Path) -> None:
    tiny.write_folder(tmp_path, generation={"stop_strings": ["x"]}, vocab_size=48)
    with pytest.raises(errors.TokenizerMissing, match="stop"):
        fastdecode.load(tmp_path).run([5])


@pytest.mark.parametrize("skip", [True, False])
@pytest.mark.parametrize("stop", ["<|im_end|>", "<|im_end|>\n", "x<|im_end|>", "<|im_", "two words"])
@pytest.mark.parametrize("where", ["call", "folder"])
def test_special_tokens_stop_whether_they_are_shown_or_not(
    gpt2: Path, stop: str, where: str, *, skip: bool
) -> None:
    """The ids are forced, by way of a text that is fed id by id."""
    from fastdecode.decoding import _Text, _Writer
    from fastdecode.options import resolve

    tokenizer: Any = fastdecode.load(gpt2, num_threads=1).tokenizer
    ids = tokenizer.encode("one x<|im_end|>\n two words<|im_end|> more")
    full = tokenizer.decode(ids)
    options = resolve({"stop": stop, "skip_special_tokens": skip}, Defaults({}, "file", None), 1)
    if where == "folder":
        options = dataclasses.replace(options, stop=(), stop_strings=(stop,))
    text = _Text(_Writer(tokenizer, options, has_encoder=False), lambda _: [5])
    out, read = "", []
    for token in ids:
        read.append(token)
        out += text.push(token, last=len(read) == len(ids))
        if text.stopped:
            break
    assert text.stopped
    assert stop in tokenizer.decode(read)
    assert stop not in tokenizer.decode(read[:-1])
    kept = full[: full.index(stop)]
    assert out == (kept.replace("<|im_end|>", "") if skip else kept)
