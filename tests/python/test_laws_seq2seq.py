"""Laws 2 and 3 of what only encoder-decoders have, to the bit: ragged sources, memories that serve as sources do."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import laws
import numpy as np
import pytest
from families import FAMILIES, Family, Lengths
from fastdecode import Seq2SeqLM
from laws import Case
from subject import same

SEQ2SEQ = [family for family in FAMILIES.values() if family.has_encoder]
case = laws.case_of(SEQ2SEQ)


def sources(case: Case, lengths: list[int]) -> list[list[int]]:
    items = case.items([Lengths(1, length) for length in lengths])
    return [item.source for item in items if item.source is not None]


def test_sources_of_a_list_are_encoded_as_alone(case: Case, types: dict[str, Any]) -> None:
    model, prompt = case.load(**types).model, case.item(9).prompt
    ragged = sources(case, [1, 7, 16, 33, 2])
    for source, memory in zip(ragged, model.encode(ragged), strict=True):
        alone = model.encode(source)
        assert memory.source_ids == source
        assert memory.hidden.shape == (len(source), model.config["d_model"])
        assert np.array_equal(memory.hidden, alone.hidden)
        assert np.array_equal(model.logits(memory, prompt), model.logits(alone, prompt))
        assert np.array_equal(model.logits(source, prompt), model.logits(alone, prompt))


def test_more_sources_than_fit_a_chunk(case: Case) -> None:
    model, ragged = case.load().model, sources(case, [600, 1, 300, 301, 2])
    for source, memory in zip(ragged, model.encode(ragged), strict=True):
        assert np.array_equal(memory.hidden, model.encode(source).hidden)
    outputs = model.run(ragged, max_new_tokens=3, logprobs=2)
    for source, output in zip(ragged, outputs, strict=True):
        assert same(model.run(source, max_new_tokens=3, logprobs=2), output)


@pytest.mark.parametrize("family", SEQ2SEQ, ids=lambda family: family.name)
@pytest.mark.parametrize("length", [255, 256, 257, 513])
def test_chunks_of_a_source_change_nothing(
    family: Family, length: int, types: dict[str, Any], tmp_path: Any
) -> None:
    case = Case(family, family.chunks, family.write(family.chunks, tmp_path))
    model, both = case.load(**types).model, sources(case, [length, 3])
    memory, alone = model.encode(both)[0], model.encode(both[0])
    assert np.array_equal(memory.hidden, alone.hidden)
    prompt = case.item(20).prompt
    assert np.array_equal(model.logits(memory, prompt), model.logits(alone, prompt))


@pytest.mark.parametrize("threads", [2, 3, 4, 8])
def test_any_number_of_threads_encodes_the_same_bits(case: Case, types: dict[str, Any], threads: int) -> None:
    # Long sources, whose rows are divided among members, and short ones between them, all in one call.
    ragged = sources(case, [150, 9, 170])
    want = case.load(num_threads=1, **types).model.encode(ragged)
    got = case.load(num_threads=threads, **types).model.encode(ragged)
    assert all(np.array_equal(left.hidden, right.hidden) for left, right in zip(got, want, strict=True))


def test_a_state_without_a_prompt_begins_with_the_start_token(case: Case, types: dict[str, Any]) -> None:
    model, item = case.load(**types), case.item(5)
    state = model.model.prefill(memory=model.memory(item))
    assert state.tokens == item.prompt[:1] == case.recipe.start
    stepped = [state.logits, *(state.step(token) for token in item.prompt[1:])]
    assert np.array_equal(np.stack(stepped), model.logits(item))


def test_a_memory_serves_as_its_source_does(case: Case, types: dict[str, Any]) -> None:
    model, options = case.load(**types), {"max_new_tokens": 9, "logprobs": 4}
    for item, output in zip(case.batch(), model.run(case.batch(), **options), strict=True):
        memory = model.model.encode(item.source)
        assert same(model.model.run(memory=memory, decoder_prompt=item.prompt, **options), output)


def test_sources_without_prompts_in_a_batch_and_alone(case: Case, types: dict[str, Any]) -> None:
    model, ragged = case.load(**types).model, sources(case, [1, 7, 16, 33, 2])
    options: dict[str, Any] = {"max_new_tokens": 9, "num_beams": 4, "num_return_sequences": 2}
    together = model.run(ragged, **options)
    for place, source in enumerate(ragged):
        pairs = zip(model.run([source], **options), together[2 * place : 2 * place + 2], strict=True)
        assert all((left.token_ids, left.score) == (right.token_ids, right.score) for left, right in pairs)
    for source, output in zip(ragged, model.run(ragged, max_new_tokens=6, logprobs=3), strict=True):
        assert same(model.run(source, max_new_tokens=6, logprobs=3), output)


def test_one_memory_serves_many_at_the_same_time(case: Case) -> None:
    model = case.load(num_threads=2).model
    memory = model.encode(sources(case, [30])[0])
    want = [model.run(memory=memory, max_new_tokens=8, do_sample=True, seed=seed) for seed in range(8)]
    before = memory.hidden

    def draw(seed: int) -> Any:
        return model.run(memory=memory, max_new_tokens=8, do_sample=True, seed=seed)

    with ThreadPoolExecutor(4) as pool:
        got = list(pool.map(draw, range(8)))
    assert all(same(left, right) for left, right in zip(got, want, strict=True))
    assert np.array_equal(memory.hidden, before)


def test_prompts_over_one_source_share_it(tmp_path: Path) -> None:
    # Six prompts of one token each: a block of sixteen tokens for every prompt, and the blocks of one source.
    model = Seq2SeqLM.load(FAMILIES["t5"].write_tiny(tmp_path / "m"), num_threads=1)
    source, prompts = [5] * 700, [[token] for token in range(3, 9)]
    block = 16 * model.info()["cache_bytes_per_token"]
    stream = model.stream(source, prompts, max_new_tokens=8, eos_token_id=None)
    assert model.info()["cache_bytes_live"] == 0, "nothing is computed before the first piece"
    first = next(stream)
    assert model.info()["cache_bytes_live"] == (6 + 44) * block
    rest = list(stream)
    memory = model.encode(source)
    for index, prompt in enumerate(prompts):
        alone = model.run(memory=memory, decoder_prompt=prompt, max_new_tokens=8, eos_token_id=None)
        ids = [token for chunk in (first, *rest) if chunk.index == index for token in chunk.token_ids]
        assert ids == list(alone.token_ids)
