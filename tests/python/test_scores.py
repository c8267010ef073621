"""Scores of given tokens: how probable texts are, by what the model's own logits say; in any company the same bits."""

from __future__ import annotations

import json
import math
import random
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import fastdecode
import numpy as np
import pytest
import tiny
from families import FAMILIES
from fastdecode import CausalLM, Score, Seq2SeqLM, errors
from score_checks import STORY, drawn, logprobs

if TYPE_CHECKING:
    from collections.abc import Callable

T5 = FAMILIES["t5"]
START = T5.tiny_config()["decoder_start_token_id"]


def expected(logits: Any, ids: list[int]) -> Score:
    """The score of tokens by the logits of the places before them."""
    found = logprobs(logits)[np.arange(len(ids)), ids]
    greedy = bool((logits.argmax(-1) == ids).all())
    return Score(math.fsum(found), list(ids), found.astype(np.float32).tolist(), greedy)


def assert_scores(got: Score, want: Score) -> None:
    assert got.token_ids == want.token_ids
    assert got.is_greedy == want.is_greedy
    assert got.logprob == pytest.approx(want.logprob, rel=1e-12)
    # Of two ways to compute in double precision, the last bit of one result in millions may round otherwise.
    np.testing.assert_allclose(got.token_logprobs, want.token_logprobs, rtol=2e-7, atol=0)
    assert all(np.float32(value) == value for value in got.token_logprobs)


@pytest.fixture(scope="module")
def seq2seq(tmp_path_factory: pytest.TempPathFactory) -> Seq2SeqLM:
    folder = T5.write_tiny(tmp_path_factory.mktemp("t5"), tokenizer=tiny.with_end())
    return Seq2SeqLM.load(folder, num_threads=2)


@pytest.fixture(scope="module")
def demo() -> CausalLM:
    return CausalLM.load("demo-stories", num_threads=2)


class TestPairs:
    def test_ids_are_joined(self, ids_model: CausalLM) -> None:
        prompt, continuation = [3, 4, 5], np.array([6, 7, 8, 9])
        [score] = ids_model.score([(prompt, continuation)])
        whole = [*prompt, *continuation.tolist()]
        assert_scores(score, expected(ids_model.logits(whole)[2:-1], whole[3:]))
        assert isinstance(score, fastdecode.Score)
        assert ids_model.score([]) == []

    def test_texts_are_tokenized_together(self, demo: CausalLM) -> None:
        assert demo.tokenizer is not None
        for prompt, continuation in [(STORY, " who lived"), ("Once up", "on a time"), ("The wo", "lf")]:
            before = demo.tokenizer.encode(prompt)
            ids = demo.tokenizer.encode(prompt + continuation)[len(before) :]
            if ids:
                [score] = demo.score([(prompt, continuation)])
                logits = demo.logits([*before, *ids])[len(before) - 1 : -1]
                assert_scores(score, expected(logits, ids))

    @pytest.mark.parametrize("prompt", [STORY + " ", STORY + " \n\n", STORY + "\t", STORY])
    def test_spaces_at_the_end_of_a_prompt_belong_to_the_continuation(
        self, demo: CausalLM, prompt: str
    ) -> None:
        # The rule of lm-evaluation-harness: words are tokenized with the space before them.
        assert demo.tokenizer is not None
        context, continuation = prompt, "who lived in the wood"
        while context[-1:].isspace():
            context, continuation = context[:-1], context[-1] + continuation
        whole = demo.tokenizer.encode(context + continuation)
        before = demo.tokenizer.encode(context)
        [score] = demo.score([(prompt, "who lived in the wood")])
        assert score.token_ids == whole[len(before) :]
        assert_scores(score, expected(demo.logits(whole)[len(before) - 1 : -1], whole[len(before) :]))

    @pytest.mark.parametrize("prompt", ["", " ", [], np.array([], dtype=np.int64)])
    def test_an_empty_prompt_stands_for_bos(self, demo: CausalLM, prompt: Any) -> None:
        assert demo.tokenizer is not None
        text = (prompt if isinstance(prompt, str) else "") + "The wolf"
        ids = demo.tokenizer.encode(text, add_special_tokens=False)
        bos = demo.config["bos_token_id"]
        [score] = demo.score([(prompt, "The wolf")])
        assert_scores(score, expected(demo.logits([bos, *ids])[:-1], ids))

    def test_no_bos_for_an_empty_prompt(self) -> None:
        config = tiny.config(bos_token_id=None)
        model = CausalLM.from_tensors(config, tiny.weights(config))
        with pytest.raises(errors.OptionError, match="bos_token_id") as caught:
            model.score([([], [5])])
        assert caught.value.option == "prompt"
        assert len(model.score([([1], [5])])) == 1

    def test_special_tokens_around_texts(self, folder: Path) -> None:
        # A bos token in front of texts is read once; an end token behind them is no part of prompt or continuation.
        from tokenizers.processors import TemplateProcessing

        for single, front in (("$A", []), (f"{tiny.END} $A", [0]), (f"{tiny.END} $A {tiny.END}", [0])):
            tokenizer = tiny.byte_level(320)
            plain = tiny.byte_level(320)
            tokenizer.post_processor = TemplateProcessing(single=single, special_tokens=[(tiny.END, 0)])
            model = CausalLM.load(folder, tokenizer=tokenizer)
            whole, before = plain.encode("The wolf said").ids, plain.encode("The wolf").ids
            [text, mixed, ids, empty] = model.score(
                [
                    ("The wolf", " said"),
                    ("The wolf", whole[len(before) :]),
                    ([*front, *before], " said"),
                    ("", "The wolf"),
                ]
            )
            assert text == mixed == ids
            assert text.token_ids == whole[len(before) :]
            assert empty == model.score([([0], before)])[0]

    def test_greedy_continuations(self, model: CausalLM) -> None:
        prompt = [5, 6, 7]
        ids = list(model.run(prompt, max_new_tokens=6, eos_token_id=None).token_ids)
        other = [*ids[:-1], (ids[-1] + 1) % 320]
        greedy, not_greedy = model.score([(prompt, ids), (prompt, other)])
        assert greedy.is_greedy
        assert not not_greedy.is_greedy
        assert greedy.token_logprobs[:-1] == not_greedy.token_logprobs[:-1]

    def test_of_equal_logits_the_first_is_greedy(self) -> None:
        config = tiny.config()
        weights = {name: np.zeros_like(values) for name, values in tiny.weights(config).items()}
        model = CausalLM.from_tensors(config, weights)
        first, second = model.score([([1], [0, 0]), ([1], [0, 1])])
        assert (first.is_greedy, second.is_greedy) == (True, False)
        assert first.token_logprobs == pytest.approx([-math.log(320)] * 2, rel=1e-7)

    def test_weights_that_are_not_finite_give_nan(self) -> None:
        config = tiny.config()
        weights = tiny.weights(config)
        weights["transformer.ln_f.weight" if "transformer.ln_f.weight" in weights else "ln_f.weight"][:] = (
            np.nan
        )
        model = CausalLM.from_tensors(config, weights)
        [score] = model.score([([1], [5])])
        assert math.isnan(score.logprob)
        assert math.isnan(model.loss([1, 5]))
        assert [index for index, _ in model.rank([1], [[5], [6]])] == [0, 1]

    def test_a_pair_as_long_as_the_context(self, model: CausalLM) -> None:
        limit = model.info()["context_length"]
        ids = drawn(1, limit + 1)
        # The last token is held against the model, and never read.
        [score] = model.score([(ids[:10], ids[10:])])
        assert_scores(score, expected(model.logits(ids[:-1])[9:], ids[10:]))
        with pytest.raises(errors.ContextLengthError) as caught:
            model.score([(ids[:10], [*ids[10:], 1])])
        assert (caught.value.limit, caught.value.requested) == (limit, limit + 1)


class TestSources:
    def test_the_prompt_is_the_source(self, seq2seq: Seq2SeqLM) -> None:
        assert seq2seq.tokenizer is not None
        source, target = "The wolf said: 'Good day'", "Guten Tag"
        ids = seq2seq.tokenizer.encode(target)
        assert ids[-1] == 0, "with the end token"
        want = expected(seq2seq.logits(source, [START, *ids[:-1]]), ids)
        memory = seq2seq.encode(source)
        scores = seq2seq.score([(source, target), (memory, target), (memory.source_ids, ids)])
        for score in scores:
            assert_scores(score, want)
        assert scores[0].logprob == pytest.approx(-len(ids) * seq2seq.loss(source, target), rel=1e-12)
        moved = seq2seq.score([(source + " ", target)])[0]
        assert moved == seq2seq.score([(source, " " + target)])[0]

    def test_many_targets_of_many_sources(self, seq2seq: Seq2SeqLM) -> None:
        sources = [drawn(seed, 3 + 150 * (seed % 3)) for seed in range(5)]
        pairs = [(source, drawn(seed, 1 + seed % 9)) for seed in range(12) for source in sources]
        together = seq2seq.score(pairs)
        for pair, score in zip(pairs, together, strict=True):
            assert seq2seq.score([pair]) == [score]

    def test_ranks(self, seq2seq: Seq2SeqLM) -> None:
        ranked = seq2seq.rank("Good day", ["Guten Tag", "Nobody", "Guten Tag"])
        scores = seq2seq.score([("Good day", choice) for choice in ("Guten Tag", "Nobody")])
        assert sorted(ranked) == [(0, scores[0].logprob), (1, scores[1].logprob), (2, scores[0].logprob)]

    def test_a_text_has_no_perplexity(self, seq2seq: Seq2SeqLM) -> None:
        assert not hasattr(seq2seq, "perplexity")


def mixed_pairs() -> list[tuple[list[int], list[int]]]:
    """Pairs that share beginnings of all kinds: whole prompts, parts of them, continuations, nothing."""
    few_shot, draw = drawn(7, 37), random.Random(5)
    pairs = []
    for question in range(6):
        prompt = [*few_shot[: draw.choice([0, 16, 37])], *drawn(question, draw.randrange(1, 9))]
        pairs += [(prompt, drawn(100 + choice, 1 + choice)) for choice in range(4)]
        pairs.append((prompt, [*drawn(103, 4), 5]))
    pairs += [(drawn(50, 60), [1]), (drawn(50, 60), [1]), (drawn(50, 20), drawn(50, 60)[20:])]
    text = drawn(60, 50)
    pairs += [(text[:end], text[end : end + 2]) for end in range(5, 48, 3)]
    draw.shuffle(pairs)
    return pairs


class TestCompany:
    """Whoever is scored beside it, a pair gives the same bits."""

    @pytest.mark.parametrize(
        "limits", [{}, {"max_rows": 1}, {"max_rows": 3}, {"cache_bytes": 64 << 10}, {"num_threads": 1}]
    )
    def test_together_as_alone(self, folder: Path, limits: dict[str, Any]) -> None:
        model, pairs = CausalLM.load(folder, **{"num_threads": 2, **limits}), mixed_pairs()
        alone = CausalLM.load(folder, num_threads=2)
        want = [alone.score([pair])[0] for pair in pairs]
        assert model.score(pairs) == want
        assert model.score(pairs[::-1]) == want[::-1]
        for pair, score in zip(pairs, want, strict=True):
            whole = [*pair[0], *pair[1]]
            assert_scores(score, expected(alone.logits(whole)[len(pair[0]) - 1 : -1], pair[1]))
        assert model.info()["cache_bytes_live"] == 0

    @pytest.mark.parametrize("name", ["llama", "phi", "openai-gpt"])
    def test_every_family(self, name: str, tmp_path: Path) -> None:
        recipe = next(iter(FAMILIES[name].laws.values()))
        model = fastdecode.load(FAMILIES[name].write(recipe, tmp_path))
        pairs = [([x % recipe.vocab for x in a], [x % recipe.vocab for x in b]) for a, b in mixed_pairs()]
        pairs = [pair for pair in pairs if len(pair[0]) + len(pair[1]) <= 64]
        assert model.score(pairs) == [model.score([pair])[0] for pair in pairs]

    def test_every_type(self, folder: Path, types: dict[str, Any]) -> None:
        model, pairs = CausalLM.load(folder, num_threads=2, **types), mixed_pairs()
        scores = model.score(pairs)
        assert scores == [model.score([pair])[0] for pair in pairs]
        for (prompt, ids), score in zip(pairs, scores, strict=True):
            assert_scores(score, expected(model.logits([*prompt, *ids])[len(prompt) - 1 : -1], ids))

    def test_beside_what_is_generated(self, folder: Path) -> None:
        model, pairs = CausalLM.load(folder, num_threads=2, cache_bytes=256 << 10), mixed_pairs()
        scores, run = model.score(pairs), cast("Any", model.run)
        options: dict[str, Any] = {"max_new_tokens": 4, "eos_token_id": None}
        text = model.run([prompt for prompt, _ in pairs], **options)
        with ThreadPoolExecutor(4) as pool:
            scored = [pool.submit(model.score, pairs) for _ in range(4)]
            made = [pool.submit(run, [p for p, _ in pairs], **options) for _ in range(2)]
            assert [future.result() for future in scored] == [scores] * 4
        for outputs in (future.result() for future in made):
            assert [out.token_ids for out in outputs] == [out.token_ids for out in text]
        assert model.info()["cache_bytes_live"] == 0

    def test_an_item_beyond_cache_bytes(self, folder: Path) -> None:
        model = CausalLM.load(folder, cache_bytes=16 << 10)
        most = (16 << 10) // (16 * model.info()["cache_bytes_per_token"]) * 16
        assert len(model.score([([1] * most, [1])])) == 1
        with pytest.raises(errors.OptionError, match=rf"at most {most} tokens .*cache_bytes=16384") as caught:
            model.score([([1], [1]), ([1] * most, [1, 1])])
        assert caught.value.option == "item 1"


# The peak is read where the process is alone.
PEAK = """
import json, resource, fastdecode, numpy as np
from families import FAMILIES
config = FAMILIES["gpt2"].tiny_config(vocab_size=150_000, n_positions=2048, n_embd=16, n_head=2, n_layer=1)
model = fastdecode.CausalLM.from_tensors(config, FAMILIES["gpt2"].tiny_weights(config), num_threads=2)
ids = np.random.default_rng(0).integers(0, 150_000, 2048).tolist()
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
model.loss(ids[:2])
before = peak()
losses = [model.loss(ids), model.score([(ids[:1], ids[1:])])[0].logprob / -2047]
print(json.dumps({"added": peak() - before, "kept": model.info()["activation_bytes"], "losses": losses}))
"""


@pytest.mark.skipif(
    sys.platform != "linux", reason="PEAKS OF MEMORY ARE NOT TESTED: they are counted in kB on Linux"
)
def test_logits_are_never_there_all_at_once() -> None:
    """2,048 rows of 150,000 logits are 1.2 GB, of which at most 64 MB may be there."""
    result = subprocess.run(
        [sys.executable, "-c", PEAK],
        capture_output=True,
        text=True,
        timeout=300,
        cwd=Path(__file__).parent,
    )
    assert result.returncode == 0, result.stderr
    seen = json.loads(result.stdout)
    assert seen["added"] <= (64 + 16) << 20, seen
    assert 1 << 20 < seen["kept"] <= 64 << 20, seen
    assert seen["losses"][0] == pytest.approx(seen["losses"][1], rel=1e-12)


class TestRank:
    def test_best_first_and_ties_by_index(self, demo: CausalLM) -> None:
        choices = [" xyzzy", " time", " time", " little girl who lived", " the"]
        scores = demo.score([("Once upon a", choice) for choice in choices])
        ranked = demo.rank("Once upon a", choices)
        assert ranked == sorted(((i, s.logprob) for i, s in enumerate(scores)), key=lambda pair: -pair[1])
        assert [index for index, _ in ranked[:2]] == [1, 2], ranked
        normalized = demo.rank("Once upon a", choices, normalize="tokens")
        assert dict(normalized) == {i: s.logprob / len(s.token_ids) for i, s in enumerate(scores)}
        assert [value for _, value in normalized] == sorted((value for _, value in normalized), reverse=True)
        assert demo.rank([5, 6], iter([[1], [2, 3]])) == demo.rank([5, 6], [[1], [2, 3]])
        assert demo.rank("Once", []) == []


class TestMisuse:
    @pytest.mark.parametrize(
        ("call", "option"),
        [
            (lambda m: m.score("ab"), "pairs"),
            (lambda m: m.score(("prompt", "continuation")), "pairs"),
            (lambda m: m.score([([1], [2], [3])]), "pairs"),
            (lambda m: m.score({"a": "b"}), "pairs"),
            (lambda m: m.score(3), "pairs"),
            (lambda m: m.score([([1], [])]), "continuation"),
            (lambda m: m.score([("The wolf", "")]), "continuation"),
            (lambda m: m.score([([1], [320])]), "continuation"),
            (lambda m: m.score([([1], [-100])]), "continuation"),
            (lambda m: m.score([([1], [[2]])]), "continuation"),
            (lambda m: m.score([([320], [1])]), "prompt"),
            (lambda m: m.score([(3, [1])]), "prompt"),
            (lambda m: m.rank([1], [[2]], normalize="bytes"), "normalize"),
            (lambda m: m.rank([1], [[2]], normalize=True), "normalize"),
            (lambda m: m.rank([1], "The wolf"), "choices"),
            (lambda m: m.rank([1], [2, 3]), "continuation"),
            (lambda m: m.loss([5]), "prompt"),
            (lambda m: m.loss(""), "prompt"),
            (lambda m: m.loss([5, 6], [5, -100]), "prompt"),
            (lambda m: m.loss([5, 6], [5]), "labels"),
            (lambda m: m.loss([5, 6], [5, 320]), "labels"),
            (lambda m: m.loss([5, 6], [5, -1]), "labels"),
            (lambda m: m.loss([5, 6], "ab"), "labels"),
            (lambda m: m.loss([5, 6], 3), "labels"),
            (lambda m: m.loss([[5, 6], [7, 8]], [[5, 6]]), "labels"),
            (lambda m: m.loss([[5, 6], [7]]), "prompt"),
            (lambda m: m.loss([[5, 6], [7, 8]], 3), "labels"),
            (lambda m: m.perplexity([5]), "text"),
            (lambda m: m.perplexity(""), "text"),
            (lambda m: m.perplexity([[5, 6], [7, 8]]), "text"),
            (lambda m: m.perplexity([5, 6], stride=0), "stride"),
            (lambda m: m.perplexity([5, 6], stride=1.5), "stride"),
            (lambda m: m.perplexity([5, 6], window=1), "window"),
            (lambda m: m.perplexity([5, 6], window=True), "window"),
        ],
    )
    def test_arguments(self, model: CausalLM, call: Any, option: str) -> None:
        with pytest.raises(errors.OptionError) as caught:
            call(model)
        assert caught.value.option == option
        assert caught.value.expected

    def test_more_than_the_context(self, model: CausalLM) -> None:
        limit = model.info()["context_length"]
        calls: list[Callable[[], float]] = [
            lambda: model.loss([5] * (limit + 1)),
            lambda: model.perplexity([5, 6], window=limit + 1),
        ]
        for call in calls:
            with pytest.raises(errors.ContextLengthError) as caught:
                call()
            assert (caught.value.limit, caught.value.requested) == (limit, limit + 1)

    def test_text_without_a_tokenizer(self, ids_model: CausalLM) -> None:
        for call in (
            lambda: ids_model.score([("text", [5])]),
            lambda: ids_model.score([([5], "text")]),
            lambda: ids_model.loss("text"),
            lambda: ids_model.perplexity("text"),
        ):
            with pytest.raises(errors.TokenizerMissing):
                call()

    def test_a_source(self, seq2seq: Seq2SeqLM) -> None:
        for pair, option in [(([], [5]), "source"), (([5], []), "continuation"), (([320], [5]), "source")]:
            with pytest.raises(errors.OptionError) as caught:
                seq2seq.score([pair])
            assert caught.value.option == option


@pytest.mark.parametrize("family", ["gpt2", "llama", "phi"])
def test_scores_behind_a_prefix_are_those_of_the_whole(family: str, tmp_path: Path) -> None:
    """A prefix of several lengths around a block, of which items share all, a part or nothing."""
    folder = FAMILIES[family].write_tiny(tmp_path)
    model = fastdecode.CausalLM.load(folder, num_threads=2)
    ids = [5 + place % 40 for place in range(40)]
    for length in (1, 15, 16, 17, 33):
        with model.prefix(ids[:length]) as prefix:
            rests: list[tuple[list[int], list[int]]] = [([7, 8], [9, 3]), ([7, 8], [4]), ([6], [1, 2, 3])]
            want = model.score([(ids[:length] + prompt, rest) for prompt, rest in rests])
            assert model.score(rests, prefix=prefix) == want
            assert model.score(rests[1:2], prefix=prefix) == want[1:2]
    with pytest.raises(errors.PrefixClosedError):
        model.score([([7], [8])], prefix=prefix)
    with pytest.raises(errors.OptionError, match="prefix"):
        model.score([([7], [8])], prefix="text")  # type: ignore[arg-type]
