"""`generation_config=`: objects of transformers and dicts of their values, between the call and the folder."""

from __future__ import annotations

import asyncio
import json
import random
import shutil
import warnings
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import fastdecode
import pytest
import reference_seq2seq
import tiny
import torch
from families import FAMILIES
from fastdecode import errors
from reference import Reference
from transformers import GenerationConfig

if TYPE_CHECKING:
    from pathlib import Path

IDS = [1, 2, 3, 4]

# Values of a generation_config that are drawn from, by field.
FIELDS: dict[str, list[Any]] = {
    "max_new_tokens": [3, 7],
    "max_length": [9, 12],
    "min_new_tokens": [2],
    "min_length": [6],
    "do_sample": [True, False],
    "num_beams": [1, 2, 4],
    "num_return_sequences": [1, 2],
    "temperature": [0.5, 1.5],
    "top_k": [0, 5, 50],
    "top_p": [0.6],
    "min_p": [0.05],
    "repetition_penalty": [1.3],
    "encoder_repetition_penalty": [1.2],
    "no_repeat_ngram_size": [2],
    "length_penalty": [0.3, 2.0],
    "early_stopping": [True, False, "never"],
    "eos_token_id": [5, [5, 9], -1],
    "pad_token_id": [0],
    "use_cache": [True, False],
    "typical_p": [1.0],
    "renormalize_logits": [False],
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    made = {}
    for kind in ("gpt2", "t5"):
        made[kind] = FAMILIES[kind].write_tiny(tmp_path_factory.mktemp(kind), tokenizer=tiny.with_end())
    return made


def with_defaults(folder: Path, to: Path, values: dict[str, Any]) -> Path:
    shutil.copytree(folder, to)
    file = to / "generation_config.json"
    kept = json.loads((file if file.is_file() else to / "config.json").read_text())
    kept = {name: value for name, value in kept.items() if name.endswith("_token_id")}
    file.write_text(json.dumps(kept | values))
    return to


def drawn(random: random.Random, most: int) -> dict[str, Any]:
    names = random.sample(sorted(FIELDS), random.randint(0, most))
    return {name: random.choice(FIELDS[name]) for name in names}


def unread(options: dict[str, Any]) -> set[str]:
    """Options that have no effect, with values that would have one."""
    unread = set()
    if not options.get("do_sample"):
        unread |= {"temperature", "top_k", "top_p", "min_p"}
    if options.get("num_beams", 1) == 1:
        unread |= {"length_penalty", "early_stopping"}
    neutral = {"top_k": (0, 50), "early_stopping": (False,)}
    return {name for name in unread if name in options and options[name] not in neutral.get(name, ())}


@pytest.mark.parametrize("kind", ["gpt2", "t5"])
def test_it_means_what_it_means_in_transformers(kind: str, folders: dict[str, Path], tmp_path: Path) -> None:
    """Draws a folder's values, a config and options of a call, and compares ids."""
    draw = random.Random(f"config-{kind}")
    compared = 0
    for place in range(40):
        below = drawn(draw, 4)
        below.pop("num_return_sequences", None)  # alone it does not load there
        folder = with_defaults(folders[kind], tmp_path / str(place), below)
        loader = Reference if kind == "gpt2" else reference_seq2seq.Seq2SeqReference
        theirs = loader(folder).model
        ours = fastdecode.load(folder, num_threads=1)
        for _ in range(5):
            values = drawn(draw, 6)
            call = {name: value for name, value in drawn(draw, 1).items() if value != -1}
            if not {"max_new_tokens", "max_length"} & {*values, *call, *below}:
                values["max_new_tokens"] = 6
            # Two differences are known: a length of the call wins over all others, and 20 is no default.
            if {"max_new_tokens", "max_length"} & {*call}:
                call, values = {}, values | call
            try:
                config = GenerationConfig(**values)
            except ValueError:  # two values that do not go together, of which the call might change one
                continue
            effective = below | values | call
            warnings.simplefilter("ignore", UserWarning)  # a minimum above the maximum, in transformers
            try:
                torch.manual_seed(11)
                expected = theirs.generate(
                    torch.tensor([IDS]), generation_config=config, tokenizer=None, **call
                )
            except ValueError as error:
                if "num_return_sequences" in str(error):
                    continue  # transformers holds each layer against the one below, before the call is there
                with pytest.raises((errors.OptionError, errors.ConfigError)):
                    ours.run(IDS, generation_config=values, seed=11, **call)
                continue
            if unread(effective) & {*call}:
                # What has no effect is an error in the call itself, and only there.
                with pytest.raises(errors.OptionError):
                    ours.run(IDS, generation_config=config, seed=11, **call)
                continue
            outputs = ours.run(IDS, generation_config=config, seed=11, **call)
            outputs = outputs if isinstance(outputs, list) else [outputs]
            start = len(IDS) if kind == "gpt2" else 1
            rows = [row[start:] for row in expected.tolist()]
            assert [row[: len(output.token_ids)] for row, output in zip(rows, outputs, strict=True)] == [
                output.token_ids for output in outputs
            ], f"{below} {values} {call}"
            compared += 1
    assert compared > 100


def test_every_verb_takes_it(model: Any) -> None:
    config = GenerationConfig(max_new_tokens=6, do_sample=True, top_k=7, temperature=0.8)
    plain: dict[str, Any] = {"max_new_tokens": 6, "do_sample": True, "top_k": 7, "temperature": 0.8}
    expected = model.run(IDS, seed=4, **plain)
    for given in (config, config.to_dict(), plain, SimpleNamespace(to_dict=lambda: plain)):
        assert model.run(IDS, seed=4, generation_config=given).token_ids == expected.token_ids
        assert model.generate(IDS, seed=4, generation_config=given) == expected.text
        pieces = model.stream(IDS, seed=4, generation_config=given)
        assert "".join(map(str, pieces)) == expected.text

        async def streamed(given: Any = given) -> str:
            return "".join(
                [str(piece) async for piece in model.astream(IDS, seed=4, generation_config=given)]
            )

        assert asyncio.run(streamed()) == expected.text
    # The call wins, with None too.
    short = model.run(IDS, seed=4, generation_config=config, max_new_tokens=2)
    assert short.token_ids == expected.token_ids[:2]
    assert (
        model.run(IDS, generation_config=config, do_sample=False, max_new_tokens=6).token_ids
        == model.run(IDS, max_new_tokens=6).token_ids
    )


def test_the_model_s_own_config_changes_nothing(folders: dict[str, Path]) -> None:
    for kind, loader in (("gpt2", Reference), ("t5", reference_seq2seq.Seq2SeqReference)):
        ours = fastdecode.load(folders[kind], num_threads=1)
        own = loader(folders[kind]).model.generation_config
        expected = ours.run(IDS, max_new_tokens=4).token_ids
        assert ours.run(IDS, max_new_tokens=4, generation_config=own).token_ids == expected


@pytest.mark.parametrize(
    ("config", "option"),
    [
        ({"num_beams": 0}, "num_beams"),
        ({"max_new_tokens": "many"}, "max_new_tokens"),
        ({"typical_p": 0.5, "do_sample": True}, "typical_p"),
        ({"suppress_tokens": [3]}, "suppress_tokens"),
        ({"return_dict_in_generate": True}, "return_dict_in_generate"),
        ({"decoder_start_token_id": 9}, "decoder_start_token_id"),
        ({"num_return_sequences": 2}, "num_return_sequences"),
        ({"stop_strings": [3]}, "stop"),
        ([3], "generation_config"),
        ("folder", "generation_config"),
        ({3: 4}, "generation_config"),
    ],
)
def test_values_that_cannot_be_used(config: Any, option: str, model: Any) -> None:
    with pytest.raises(errors.OptionError) as caught:
        model.run(IDS, generation_config=config)
    assert caught.value.option == option
    assert caught.value.got


def test_fields_that_there_are_not(model: Any) -> None:
    with pytest.raises(errors.UnknownOptionError, match="did you mean num_beams"):
        model.run(IDS, generation_config={"num_beam": 2})
    with pytest.raises(errors.UnknownOptionError, match="seed: no field of a generation_config"):
        model.run(IDS, generation_config={"seed": 2})


def test_what_has_no_effect_is_passed_over(model: Any) -> None:
    expected = model.run(IDS, max_new_tokens=4).token_ids
    config = {"temperature": 0.3, "top_p": 0.5, "typical_p": 0.5, "length_penalty": 2.0, "num_beams": 1.0}
    assert model.run(IDS, max_new_tokens=4, generation_config=config).token_ids == expected
    # The call switches off what is not supported.
    off = {"suppress_tokens": [3]}
    assert model.run(IDS, max_new_tokens=4, generation_config=off, suppress_tokens=None).token_ids == expected


@pytest.mark.parametrize("kind", ["gpt2", "t5"])
def test_an_end_token_is_read_from_the_files_alone(
    kind: str, folders: dict[str, Path], tmp_path: Path
) -> None:
    """Neither GPT2Config's 50256 nor T5Config's 1 ends anything where the files are silent."""
    folder = shutil.copytree(folders[kind], tmp_path / kind)
    (folder / "generation_config.json").unlink(missing_ok=True)
    config = json.loads((folder / "config.json").read_text())
    config.pop("eos_token_id", None)
    loader = Reference if kind == "gpt2" else reference_seq2seq.Seq2SeqReference
    first = fastdecode.load(folders[kind], num_threads=1).run(IDS, max_new_tokens=1, eos_token_id=None)
    for end in (None, first.token_ids[0]):
        (folder / "config.json").write_text(
            json.dumps(config | ({} if end is None else {"eos_token_id": end}))
        )
        theirs = loader(folder).model
        assert theirs.generation_config.eos_token_id == end
        ours = fastdecode.load(folder, num_threads=1)
        [row] = theirs.generate(torch.tensor([IDS]), max_new_tokens=6).tolist()
        ids = ours.run(IDS, max_new_tokens=6).token_ids
        assert row[-len(ids) :] == ids
        assert len(ids) == (6 if end is None else 1)
