"""Many requests of one model at once: calls of all kinds, and long lists.

`max_rows` and `cache_bytes` are so small here that requests have to wait for each other; what comes of each is
what comes of it alone.
"""

from __future__ import annotations

import gc
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import fastdecode
import numpy as np
import pytest
import tiny
from engine_calls import GREEDY, SAMPLED, Pair, all_at_once, known, streamed
from families import FAMILIES
from hypothesis import given, settings
from hypothesis import strategies as st

if TYPE_CHECKING:
    from collections.abc import Callable


NEW = 12
PROMPT = st.lists(st.integers(1, 319), min_size=1, max_size=40)


@pytest.fixture(scope="module")
def gpt2(folder: Path) -> Pair:
    # A search with three beams over 40 tokens and 12 new ones: two blocks of its own, and three times two.
    return Pair(folder, 8)


@pytest.fixture(scope="module")
def t5_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return FAMILIES["t5"].write_tiny(tmp_path_factory.mktemp("engine") / "t5", tokenizer=tiny.with_end())


@pytest.fixture(scope="module")
def t5(t5_folder: Path) -> Pair:
    # Three blocks for a source of 40 tokens, and one for each of three beams.
    return Pair(t5_folder, 6)


# Kinds of calls: their options, whether a list gives what its prompts give alone, and whether it is streamed.
KINDS: dict[str, tuple[dict[str, Any], bool, bool]] = {
    "greedy": (GREEDY, True, False),
    "log-probabilities": ({**GREEDY, "logprobs": 3}, True, False),
    "beams": ({**GREEDY, "num_beams": 3, "num_return_sequences": 2}, True, False),
    "drawn beams": ({**SAMPLED, "num_beams": 2, "seed": 3}, False, False),
    "one seed": ({**SAMPLED, "seed": 7}, False, False),
    "sequences": ({**SAMPLED, "seed": 5, "num_return_sequences": 3}, False, False),
    "seeds": (SAMPLED, True, False),
    "penalties": (
        {**GREEDY, "repetition_penalty": 1.3, "no_repeat_ngram_size": 2, "encoder_repetition_penalty": 1.2},
        True,
        False,
    ),
    "stop strings": ({**GREEDY, "stop": ["a", "e", " "]}, True, False),
    "stream": (GREEDY, True, True),
    "drawn stream": ({**SAMPLED, "seed": 2}, False, True),
}
CALL = st.tuples(
    st.sampled_from(sorted(KINDS)), st.lists(PROMPT, min_size=1, max_size=4), st.sampled_from([1, 5, NEW])
)


def job_and_expected(
    pair: Pair, kind: str, prompts: list[list[int]], new: int
) -> tuple[Callable[[], Any], Any]:
    """A call of the tight model, and what comes of it on the other one, prompt by prompt where that is the same."""
    options, alone, streams = KINDS[kind]
    options = {**options, "max_new_tokens": new}
    seeds = list(range(len(prompts))) if kind == "seeds" else None
    if seeds is not None:
        options["seed"] = seeds
    expected: list[Any] = []
    if not alone:
        expected = pair.wide.run(prompts, **options)
    for place, prompt in enumerate(prompts if alone else []):
        own = options | ({"seed": [seeds[place]]} if seeds is not None else {})
        expected += pair.wide.run([prompt], **own)
    if streams:
        texts = {at: (str(output), output.token_ids) for at, output in enumerate(expected)}
        return lambda: streamed(pair.tight.stream(prompts, **options)), texts
    return lambda: [known(output) for output in pair.tight.run(prompts, **options)], [
        known(output) for output in expected
    ]


@pytest.mark.parametrize("family", ["gpt2", "t5"])
@settings(max_examples=25)
@given(calls=st.lists(CALL, min_size=2, max_size=5))
def test_calls_of_all_kinds_at_once_give_what_each_gives_alone(
    family: str, calls: list[tuple[str, list[list[int]], int]], gpt2: Pair, t5: Pair
) -> None:
    pair = gpt2 if family == "gpt2" else t5
    jobs, expected = zip(*(job_and_expected(pair, *call) for call in calls), strict=True)
    assert all_at_once(list(jobs)) == list(expected)
    gc.collect()
    assert pair.tight.info()["cache_bytes_live"] == 0


def test_sources_memories_and_states_at_once(t5: Pair) -> None:
    """Memories and states are never refused, and count; calls over them and over sources go on beside them."""
    model = t5.tight
    sources = [[5 + at] * (3 * at + 1) for at in range(8)]
    expected = [known(t5.wide.run(source, max_new_tokens=NEW, **GREEDY)) for source in sources]
    memories = model.encode(sources)
    states = [model.prefill(memory=memory) for memory in memories]
    assert model.info()["cache_bytes_live"] > model.info()["cache_bytes"], "more than requests may reserve"
    jobs: list[Callable[[], Any]] = [
        lambda: [known(output) for output in model.run(sources, max_new_tokens=NEW, **GREEDY)],
        lambda: [known(output) for output in model.run(memory=memories, max_new_tokens=NEW, **GREEDY)],
        lambda: [
            known(model.run(memory=memory, max_new_tokens=NEW, **GREEDY)) for memory in reversed(memories)
        ][::-1],
    ]
    assert all_at_once(jobs) == [expected] * 3
    assert [int(state.logits.argmax()) for state in states] == [ids[1][0] for ids in expected]


class TestLists:
    def test_three_thousand_prompts(self, ids_model: fastdecode.CausalLM) -> None:
        rng = np.random.default_rng(1)
        prompts = [rng.integers(0, 48, 1 + at % 23).tolist() for at in range(3000)]
        news = {"max_new_tokens": 4, **GREEDY, "logprobs": 1}
        outputs = ids_model.run(prompts, **news)
        assert [output.usage.prompt_tokens for output in outputs] == [len(prompt) for prompt in prompts]
        for at in range(0, 3000, 41):
            assert known(outputs[at]) == known(ids_model.run(prompts[at], **news)), at

    @pytest.mark.parametrize("sequences", [1, 3])
    def test_one_seed_draws_for_the_whole_list(self, ids_folder: Path, sequences: int) -> None:
        """A list that runs in waves draws what one step with all of its rows draws."""
        rng = np.random.default_rng(2)
        prompts = [rng.integers(0, 48, 1 + at % 19).tolist() for at in range(150)]
        options: Any = {**SAMPLED, "eos_token_id": 7, "seed": 11, "num_return_sequences": sequences}
        by_rows = [
            [
                output.token_ids
                for output in fastdecode.load(ids_folder, num_threads=2, max_rows=rows).run(
                    prompts, max_new_tokens=9, **options
                )
            ]
            for rows in (1000, 64, 5, 1)
        ]
        assert len({len(ids) for ids in by_rows[0]}) > 3, "sequences end in different steps"
        for ids in by_rows[1:]:
            assert ids == by_rows[0]

    def test_a_list_of_seeds_draws_as_single_runs(self, ids_folder: Path) -> None:
        model = fastdecode.load(ids_folder, num_threads=1, max_rows=7)
        prompts = [[at % 48] for at in range(60)]
        together = model.run(prompts, max_new_tokens=5, seed=list(range(60)), **SAMPLED)
        for at, output in enumerate(together):
            assert output.token_ids == model.run(prompts[at], max_new_tokens=5, seed=at, **SAMPLED).token_ids

    def test_a_waiting_prompt_has_no_python_object(self, model: fastdecode.CausalLM) -> None:
        """Neither when a stream begins nor when it runs: not the caller's lists, and none of its own."""
        few, many = [[300 + at % 19] * 30 for at in range(64)], [[300 + at % 19] * 30 for at in range(5000)]

        def growth(prompts: list[list[int]]) -> list[int]:
            gc.collect()
            references, blocks = sys.getrefcount(prompts[40]), sys.getallocatedblocks()
            chunks = model.stream(prompts, max_new_tokens=3, **GREEDY)
            begun = sys.getallocatedblocks() - blocks
            next(chunks)
            gc.collect()
            running = sys.getallocatedblocks() - blocks
            more = sys.getrefcount(prompts[40]) - references
            assert more == 0
            chunks.close()
            return [begun, running]

        growth(few)
        for short, long in zip(growth(few), growth(many), strict=True):
            assert long - short < 1000, "less than an object for every fifth prompt"

    @pytest.mark.skipif(
        sys.platform != "linux", reason="RESIDENT MEMORY IS NOT TESTED: /proc/self/statm is Linux's"
    )
    def test_a_waiting_id_takes_four_bytes(self, ids_folder: Path) -> None:
        """A hundred thousand prompts of a hundred ids take 40 MB and a little, when they wait and when some run."""
        script = f"""
import fastdecode, resource
def resident():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * resource.getpagesize()
model = fastdecode.load({str(ids_folder)!r}, num_threads=1)
prompts = [[at % 48 for at in range(50)]] * 200_000
next(model.stream(prompts[:100], max_new_tokens=2, eos_token_id=None))
before = resident()
stream = model.stream(prompts, max_new_tokens=2, eos_token_id=None)
begun = resident() - before
next(stream)
print(begun, resident() - before)
"""
        result = subprocess.run(
            [sys.executable, "-c", script], capture_output=True, text=True, timeout=300, check=True
        )
        for grown in map(int, result.stdout.split()):
            assert grown < 64 * 10**6, result.stdout

    def test_a_long_list_streams_in_waves(self, ids_folder: Path) -> None:
        """Its sequences begin as others end: not all advance together, each comes in order."""
        model = fastdecode.load(ids_folder, num_threads=1, max_rows=4)
        chunks = list(model.stream([[at] for at in range(20)], max_new_tokens=3, **GREEDY))
        first = [next(place for place, chunk in enumerate(chunks) if chunk.index == at) for at in range(20)]
        last = [
            next(place for place, chunk in enumerate(chunks) if chunk.index == at and chunk.finish_reason)
            for at in range(20)
        ]
        assert first == sorted(first)
        assert last[0] < first[4] < last[15], "the fifth begins when the first has ended"
        assert {at: ids for at, (_, ids) in streamed(chunks).items()} == {
            at: model.run([at], max_new_tokens=3, **GREEDY).token_ids for at in range(20)
        }

    def test_nothing_in_a_list_is_lost_when_it_is_left(self, ids_model: fastdecode.CausalLM) -> None:
        stream = ids_model.stream([[1]] * 500, max_new_tokens=20, **GREEDY)
        next(stream)
        assert ids_model.info()["cache_bytes_live"] > 0
        stream.close()
        assert ids_model.info()["cache_bytes_live"] == 0
