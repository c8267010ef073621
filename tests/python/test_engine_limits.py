"""What one engine bounds: bytes of the cache, the tokens that a step reads, and rows that have no choice."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import fastdecode
import numpy as np
import pytest
import tiny
from engine_calls import AHEAD, CHUNK, GREEDY, Pair, all_at_once, block_bytes, known, read
from families import FAMILIES
from fastdecode import errors


@pytest.fixture(scope="module")
def t5_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return FAMILIES["t5"].write_tiny(tmp_path_factory.mktemp("engine") / "t5", tokenizer=tiny.with_end())


@pytest.fixture(scope="module")
def t5(t5_folder: Path) -> Pair:
    # Three blocks for a source of 40 tokens, and one for each of three beams.
    return Pair(t5_folder, 6)


@pytest.fixture(scope="module")
def small(folder: Path) -> Any:
    """A model with room for 32 tokens."""
    return fastdecode.load(folder, num_threads=1, cache_bytes=2 * block_bytes(fastdecode.load(folder)))


@pytest.fixture(scope="module")
def small_t5(t5_folder: Path) -> Any:
    return fastdecode.load(t5_folder, num_threads=1, cache_bytes=2 * block_bytes(fastdecode.load(t5_folder)))


class TestBudget:
    """What exceeds an empty cache is refused before any work, by the name of the option and with the most that fits."""

    @pytest.mark.parametrize(
        ("prompt", "options", "named", "most"),
        [
            ([1] * 10, {"max_new_tokens": 23}, "max_new_tokens", "at most 22"),
            ([1] * 40, {"max_new_tokens": 1}, "prompt 1", "fewer than 32 tokens"),
            ([1] * 9, {"max_new_tokens": 7, "num_beams": 3}, "num_beams", "at most 2"),
        ],
    )
    def test_of_a_causal_model(
        self, small: Any, prompt: list[int], options: dict[str, Any], named: str, most: str
    ) -> None:
        for verb in (small.run, small.stream) if "num_beams" not in options else (small.run,):
            with pytest.raises(errors.OptionError) as caught:
                verb([[1], prompt], **options, **GREEDY)
            message = str(caught.value)
            assert message.startswith(f"{named}: "), message
            assert most in message, message
            assert f"cache_bytes={small.info()['cache_bytes']}" in message
            assert small.info()["cache_bytes_live"] == 0

    def test_of_an_encoder_decoder(self, small_t5: Any) -> None:
        with pytest.raises(errors.OptionError, match=r"^source: .*at most 32 tokens"):
            small_t5.run([[1], [1] * 33], max_new_tokens=1, **GREEDY)
        with pytest.raises(errors.OptionError, match=r"^max_new_tokens: .*at most 15"):
            small_t5.run([1] * 16, max_new_tokens=16, **GREEDY)
        with pytest.raises(errors.OptionError, match=r"^num_beams: .*at most 1"):
            small_t5.run([1] * 16, max_new_tokens=3, num_beams=2, **GREEDY)
        memory = small_t5.encode([1] * 100)
        assert len(small_t5.run(memory=memory, max_new_tokens=31, **GREEDY).token_ids) == 31, (
            "a memory has been read already, and is nobody's reservation"
        )

    def test_what_just_fits_runs(self, small: Any, small_t5: Any) -> None:
        assert len(small.run([1] * 10, max_new_tokens=22, **GREEDY).token_ids) == 22
        assert len(small.run([[1] * 10] * 30, max_new_tokens=22, **GREEDY)) == 30
        assert len(small.run([1] * 9, max_new_tokens=7, num_beams=2, **GREEDY).token_ids) == 7
        assert len(small_t5.run([[1] * 16] * 9, max_new_tokens=15, **GREEDY)) == 9

    def test_states_are_never_refused_and_requests_go_on_beside_them(self, small: Any) -> None:
        states = [small.prefill([at] * 40) for at in range(1, 6)]
        assert small.info()["cache_bytes_live"] > small.info()["cache_bytes"]
        expected = [known(small.run([at], max_new_tokens=5, **GREEDY)) for at in range(8)]
        assert [known(out) for out in small.run([[at] for at in range(8)], max_new_tokens=5, **GREEDY)] == (
            expected
        )
        assert [state.fork().step(3).argmax() for state in states] == [
            small.logits([at] * 40 + [3])[-1].argmax() for at in range(1, 6)
        ]

    def test_what_requests_hold_stays_within_it(self, folder: Path) -> None:
        wide = fastdecode.load(folder, num_threads=1)
        model = fastdecode.load(folder, num_threads=1, cache_bytes=5 * block_bytes(wide))
        most = 0
        for _ in model.stream([[at] * 10 for at in range(1, 30)], max_new_tokens=12, **GREEDY):
            most = max(most, model.info()["cache_bytes_live"])
        assert 3 * block_bytes(wide) < most <= 5 * block_bytes(wide)


def test_scores_that_leave_no_choice_end_their_call_alone() -> None:
    """A token of NaN makes the scores of whoever has it in its prompt NaN."""
    config = FAMILIES["gpt2"].tiny_config(vocab_size=48)
    weights = FAMILIES["gpt2"].tiny_weights(config)
    name = next(name for name in weights if name.endswith("wte.weight"))
    sound, spoilt = weights, dict(weights)
    # The head is tied, so the column of token 47 is NaN for all: it is given a head of its own.
    config["tie_word_embeddings"] = False
    head = {"lm_head.weight": weights[name].copy()}
    spoilt[name] = weights[name].copy()
    spoilt[name][47] = np.nan
    model = fastdecode.CausalLM.from_tensors(config, {**spoilt, **head}, num_threads=2)
    whole = fastdecode.CausalLM.from_tensors(config, {**sound, **head}, num_threads=2)
    options: Any = {"max_new_tokens": 30, **GREEDY}
    expected = [known(output) for output in whole.run([[1], [2, 3]], **options)]

    def fails(prompts: list[list[int]]) -> str:
        try:
            model.run(prompts, **options)
        except errors.ScoresError as error:
            return str(error)
        return "nothing"

    for _ in range(5):
        found = all_at_once(
            [
                lambda: [known(output) for output in model.run([[1], [2, 3]], **options)],
                lambda: fails([[47]]),
                lambda: fails([[4], [5], [6, 47]]),
                lambda: [known(model.run([1], **options)), known(model.run([2, 3], **options))],
            ]
        )
        assert found[0] == found[3] == expected
        assert found[1].startswith("row 0: expected finite scores"), found[1]
        assert found[2].startswith("row 2: expected finite scores"), "its own number within its call"
    stream = model.stream([[1], [47]], **options)
    with pytest.raises(errors.ScoresError):
        list(stream)
    assert model.info()["cache_bytes_live"] == 0


class TestChunks:
    """What reads much holds the tokens of others up by one chunk at a time."""

    def test_a_long_prompt_is_read_between_tokens_of_others(self, tmp_path: Path) -> None:
        model = fastdecode.load(tiny.write_folder(tmp_path / "m", n_positions=4096), num_threads=2)
        expected = model.run([[9] * 4000, [8] * 1500], max_new_tokens=3, **GREEDY)
        reader = model._start([[1]], {"max_new_tokens": 4000, **GREEDY})
        read(reader, 1)
        long, shorter = (
            model._start([[token] * length], {"max_new_tokens": 3, **GREEDY})
            for token, length in ((9, 4000), (8, 1500))
        )
        when: dict[str, int] = {}
        tokens: dict[str, list[int]] = {"long": [], "shorter": []}
        for step in range(40):
            for name, decoding in (("long", long), ("shorter", shorter)):
                for event in decoding._generation.take() or []:
                    when.setdefault(name, step)
                    tokens[name].append(event[1])
            assert reader.advance(), "every step has a token for the one who reads"
        assert when["long"] >= 5500 // CHUNK, "no step reads more than a chunk of both together"
        assert when["shorter"] < when["long"], "the chunk is shared"
        assert [tokens["long"], tokens["shorter"]] == [output.token_ids for output in expected]

    def test_sources_are_read_between_tokens_of_others(self, t5: Pair) -> None:
        """One larger than a chunk goes alone, and tokens of others come in between."""
        model = t5.wide
        sources = [[at] * 600 for at in range(3, 8)] + [[9] * 100] * 3
        expected = [known(output) for output in model.run(sources, max_new_tokens=3, **GREEDY)]
        reader = model._start([*model._items([5], None, None)[0]], {"max_new_tokens": 200, **GREEDY})
        read(reader, 1)
        with ThreadPoolExecutor(1) as pool:
            others = pool.submit(lambda: model.run(sources, max_new_tokens=3, **GREEDY))
            while not others.done() and (chunks := reader.advance()) is not None:
                assert len(chunks) <= AHEAD
            reader.cancel()
            assert [known(output) for output in others.result()] == expected

    def test_no_two_steps_in_a_row_read_sources_where_somebody_waits_for_tokens(self, t5: Pair) -> None:
        model = t5.wide
        reader = model._start([*model._items([5], None, None)[0]], {"max_new_tokens": 200, **GREEDY})
        read(reader, 1)
        sources = [[at] * 600 for at in range(3, 9)]
        other = model._start([*model._items(sources, None, None)[0]], {"max_new_tokens": 2, **GREEDY})
        empty, found = [False], 0
        while found < len(sources):
            found += len([event for event in other._generation.take() or [] if event[2] is not None])
            empty.append(not reader.advance())
            assert not (empty[-1] and empty[-2]), "a token at least with every second step"
            assert len(empty) < 60
        assert sum(empty) >= len(sources), "each source has a step of its own"
        reader.cancel()
