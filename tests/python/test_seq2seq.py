"""`Seq2SeqLM` as a user meets it: text and ids, memories, prompts of the decoder, streams, misuse. Without torch.

The class is one, and so is the file, if a few lines too long.
"""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import fastdecode
import numpy as np
import pytest
import tiny
from families import FAMILIES
from fastdecode import CausalLM, Memory, Seq2SeqLM, errors

if TYPE_CHECKING:
    from pathlib import Path

START, END = 1, 0
T5 = FAMILIES["t5"]
OPTIONS: Any = {"max_new_tokens": 8, "eos_token_id": None}
TEXTS = ["Once upon a time", "The wolf said: good day", "où vas-tu?"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return T5.write_tiny(tmp_path_factory.mktemp("t5") / "tiny", tokenizer=tiny.with_end())


@pytest.fixture(scope="module")
def model(folder: Path) -> Seq2SeqLM:
    return Seq2SeqLM.load(folder, num_threads=2)


@pytest.fixture(scope="module")
def ids_model(tmp_path_factory: pytest.TempPathFactory) -> Seq2SeqLM:
    return Seq2SeqLM.load(T5.write_tiny(tmp_path_factory.mktemp("t5") / "ids", vocab_size=48), num_threads=1)


class TestGenerate:
    def test_texts_are_those_of_the_ids(self, model: Seq2SeqLM) -> None:
        assert model.tokenizer is not None
        for text in TEXTS:
            source = model.tokenizer.encode(text)
            assert source[-1] == END
            output = model.run(text, **OPTIONS)
            assert output.token_ids == model.run(source, **OPTIONS).token_ids
            assert output.text == model.tokenizer.decode(output.token_ids, skip_special_tokens=True)
            assert model.generate(text, **OPTIONS) == output.text
            assert output.usage.prompt_tokens == len(source) + 1
            assert (output.usage.completion_tokens, output.finish_reason) == (8, "length")

    def test_lists_equal_singles(self, model: Seq2SeqLM) -> None:
        assert model.generate(TEXTS, **OPTIONS) == [model.generate(text, **OPTIONS) for text in TEXTS]
        assert model.generate([], **OPTIONS) == []
        assert len(model.encode([])) == 0

    def test_an_end_token_is_kept(self, model: Seq2SeqLM) -> None:
        first = model.run([5, 6], **OPTIONS).token_ids[0]
        output = model.run([5, 6], max_new_tokens=8, eos_token_id=first)
        assert (output.token_ids, output.finish_reason) == ([first], "eos")

    def test_the_prompt_of_the_decoder(self, model: Seq2SeqLM) -> None:
        source, free = TEXTS[0], model.run(TEXTS[0], **OPTIONS).token_ids
        expected = free[3:]
        shorter = {**OPTIONS, "max_new_tokens": 5}
        assert model.run(source, free[:3], **shorter).token_ids == expected
        assert model.run(source, [START, *free[:3]], **shorter).token_ids == expected
        assert model.run(source, [], **OPTIONS).token_ids == free
        assert model.run(source, "", **OPTIONS).token_ids == free
        assert model.run(source, np.array(free[:3]), **shorter).token_ids == expected
        # `max_length` counts the start token and the prompt.
        assert len(model.run(source, free[:3], max_length=6, eos_token_id=None).token_ids) == 2

    def test_a_text_as_prompt_has_no_end_token(self, model: Seq2SeqLM) -> None:
        assert model.tokenizer is not None
        prompt = model.tokenizer.encode("The wolf")[:-1]
        by_text = model.run(TEXTS[0], "The wolf", **OPTIONS)
        assert by_text.token_ids == model.run(TEXTS[0], prompt, **OPTIONS).token_ids
        assert by_text.usage.prompt_tokens == len(model.tokenizer.encode(TEXTS[0])) + 1 + len(prompt)

    def test_prompts_by_source(self, model: Seq2SeqLM) -> None:
        prompts: list[Any] = [[5], "wolf", []]
        together = model.run(TEXTS, prompts, **OPTIONS)
        for text, prompt, output in zip(TEXTS, prompts, together, strict=True):
            assert output.token_ids == model.run(text, prompt, **OPTIONS).token_ids
        one_source: Any = model.run(TEXTS[0], prompts, **OPTIONS)
        for prompt, output in zip(prompts, one_source, strict=True):
            assert output.token_ids == model.run(TEXTS[0], prompt, **OPTIONS).token_ids
        same_prompt = model.run(TEXTS, "wolf", **OPTIONS)
        assert same_prompt[2].token_ids == model.run(TEXTS[2], "wolf", **OPTIONS).token_ids

    def test_a_memory_serves_again_and_again(self, model: Seq2SeqLM) -> None:
        memories = model.encode(TEXTS)
        assert [memory.source_ids[-1] for memory in memories] == [END] * 3
        assert model.generate(memory=memories, **OPTIONS) == model.generate(TEXTS, **OPTIONS)
        assert model.generate(memory=memories[1], **OPTIONS) == model.generate(TEXTS[1], **OPTIONS)
        outputs = model.run(memory=memories[0], decoder_prompt=[[5], [6]], **OPTIONS)
        assert isinstance(outputs, list)
        assert outputs[1].token_ids == model.run(TEXTS[0], [6], **OPTIONS).token_ids
        beams = {**OPTIONS, "num_beams": 3, "num_return_sequences": 2}
        assert [o.score for o in model.run(memory=[memories[0]], **beams)] == [
            o.score for o in model.run([TEXTS[0]], **beams)
        ]

    def test_a_memory_outlives_its_model(self, folder: Path) -> None:
        model = Seq2SeqLM.load(folder)
        memory = model.encode([5, 6, 7])
        state, hidden = model.prefill(memory=memory), memory.hidden
        del model
        assert np.array_equal(memory.hidden, hidden)
        assert state.fork().step(3).shape == (320,)
        assert (len(memory), repr(memory)) == (3, "Memory(3 tokens)")

    def test_options_that_look_at_the_source(self, ids_model: Seq2SeqLM) -> None:
        source = list(range(20, 40))
        free = ids_model.run(source, max_new_tokens=12, eos_token_id=None)
        bound: Any = {"max_new_tokens": 12, "eos_token_id": None, "encoder_no_repeat_ngram_size": 1}
        outputs = [
            ids_model.run(source, **bound),
            ids_model.run(memory=ids_model.encode(source), **bound),
        ]
        for output in outputs:
            assert not set(output.token_ids) & set(source)
        favoured = ids_model.run(
            source, max_new_tokens=12, eos_token_id=None, encoder_repetition_penalty=50.0
        )
        assert set(favoured.token_ids) <= set(source) | set(free.token_ids)
        assert set(favoured.token_ids) & set(source)

    def test_defaults_of_the_folder(self, tmp_path: Path) -> None:
        generation = {"max_new_tokens": 3, "decoder_start_token_id": 7, "eos_token_id": None}
        folder = T5.write_tiny(tmp_path / "a", generation=generation)
        model = fastdecode.load(folder)
        assert len(model.run([5, 6]).token_ids) == 3
        assert model.prefill(memory=model.encode([5, 6])).tokens == [7]
        # Without a generation_config.json what config.json says, then what the class of transformers has.
        plain = fastdecode.load(T5.write_tiny(tmp_path / "b"))
        assert plain.prefill(memory=plain.encode([5, 6])).tokens == [1]
        config = T5.tiny_config(model_type="mt5", feed_forward_proj="relu")
        del config["decoder_start_token_id"]
        mt5 = Seq2SeqLM.from_tensors(config, T5.tiny_weights(config))
        assert mt5.prefill(memory=mt5.encode([5, 6])).tokens == [0]


class TestStreams:
    def test_a_stream_tells_what_run_tells(self, model: Seq2SeqLM) -> None:
        options: Any = {"max_new_tokens": 12, "do_sample": True, "seed": 4}
        outputs = model.run(TEXTS, **options)
        chunks = list(model.stream(TEXTS, **options))
        for index, output in enumerate(outputs):
            own = [chunk for chunk in chunks if chunk.index == index]
            assert "".join(map(str, own)) == output.text
            assert [token for chunk in own for token in chunk.token_ids] == output.token_ids
            assert own[-1].finish_reason == output.finish_reason

    def test_astream(self, model: Seq2SeqLM) -> None:
        async def pieces(text: str) -> str:
            return "".join([str(chunk) async for chunk in model.astream(text, "wolf", **OPTIONS)])

        async def together() -> list[str]:
            return await asyncio.gather(*(pieces(text) for text in TEXTS))

        assert asyncio.run(together()) == model.generate(TEXTS, "wolf", **OPTIONS)

    def test_a_stop_string(self, model: Seq2SeqLM) -> None:
        text = model.generate(TEXTS[0], max_new_tokens=40, eos_token_id=None)
        stop = text[5:7]
        output = model.run(TEXTS[0], max_new_tokens=40, eos_token_id=None, stop=stop)
        assert output.text == text[: text.index(stop)]
        assert output.finish_reason == "stop"

    def test_leaving_the_loop_frees_the_source(self, model: Seq2SeqLM) -> None:
        for _ in range(3):
            for _chunk in model.stream([5] * 700, max_new_tokens=50):
                break
        assert model.run([5, 6], **OPTIONS).finish_reason == "length"


def test_another_thread_can_stop_the_encoder(tmp_path: Path) -> None:
    model = Seq2SeqLM.load(
        T5.write_tiny(tmp_path, d_model=192, d_ff=768, num_layers=8, num_decoder_layers=1),
        num_threads=1,
    )
    items, _ = model._items([5] * 4000, None, None)
    decoding = model._start(items, {"max_new_tokens": 50})
    threading.Timer(0.05, decoding.cancel).start()
    began = time.perf_counter()
    with pytest.raises(errors.CancelledError):
        decoding.outputs()
    assert time.perf_counter() - began < 30
    assert len(model.run([5], max_new_tokens=3, eos_token_id=None).token_ids) == 3


@pytest.mark.skipif(sys.platform != "linux", reason="limits of address space are tried on Linux")
def test_memory_that_the_system_refuses(tmp_path: Path) -> None:
    """Nothing aborts when a source is too large; the model remains usable."""
    folder = T5.write_tiny(tmp_path / "m", d_model=256, d_kv=64, d_ff=512)
    code = f"""
import resource, fastdecode
from fastdecode import errors
model = fastdecode.load({str(folder)!r}, num_threads=1)
model.run(memory=model.encode([3, 4, 5]), max_new_tokens=2)  # threads and libraries are there
def limit(more):
    used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + more, resource.RLIM_INFINITY))
source = [5] * 20000
for call in (model.encode, lambda ids: model.run(ids, max_new_tokens=2)):
    limit(8 << 20)
    try:
        call(source)
    except errors.OutOfMemoryError as error:
        print(error.bytes > 0, isinstance(error, MemoryError))
limit(1 << 34)
print(len(model.run([5], max_new_tokens=2, eos_token_id=None).token_ids))
"""
    done = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == ["True True", "True True", "2"]


class TestThreads:
    def test_two_threads_at_once(self, model: Seq2SeqLM, ids_model: Seq2SeqLM) -> None:
        sources = [[seed, seed + 1, 3] for seed in range(8)]
        expected = [model.run(source, **OPTIONS).token_ids for source in sources]
        others = [ids_model.run(source, **OPTIONS).token_ids for source in sources]
        with ThreadPoolExecutor(4) as pool:
            mine = pool.map(lambda source: model.run(source, **OPTIONS).token_ids, sources * 3)
            theirs = pool.map(lambda source: ids_model.run(source, **OPTIONS).token_ids, sources * 3)
            assert list(mine) == expected * 3
            assert list(theirs) == others * 3

    @pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork.*:DeprecationWarning")
    def test_a_forked_child_uses_a_memory_of_its_parent(self, model: Seq2SeqLM) -> None:
        memory = model.encode([5, 6, 7])
        expected = model.run(memory=memory, **OPTIONS).token_ids
        read, write = os.pipe()
        child = os.fork()
        if child == 0:
            try:
                same = model.run(memory=memory, **OPTIONS).token_ids == expected
                os.write(write, b"same" if same else b"other")
            finally:
                os._exit(0)
        os.close(write)
        with os.fdopen(read, "rb") as answer:
            assert answer.read() == b"same"
        assert os.waitpid(child, 0)[1] == 0


class TestByHand:
    def test_greedy_by_hand(self, model: Seq2SeqLM) -> None:
        state = model.prefill(memory=model.encode(TEXTS[0]))
        ids = []
        for _ in range(8):
            ids.append(int(state.logits.argmax()))
            state.step(ids[-1])
        assert ids == model.run(TEXTS[0], **OPTIONS).token_ids
        assert state.tokens == [START, *ids]
        assert np.array_equal(model.logits(TEXTS[0], state.tokens)[-1], state.logits)

    def test_hidden_states_are_a_fresh_array(self, model: Seq2SeqLM) -> None:
        memory = model.encode(TEXTS[0])
        hidden = memory.hidden
        assert hidden.dtype == np.float32
        assert hidden.shape == (len(memory), 24)
        hidden[:] = 0
        assert memory.hidden.any()

    def test_losses(self, model: Seq2SeqLM) -> None:
        assert model.tokenizer is not None
        source, target = TEXTS[0], "The wolf"
        ids = model.tokenizer.encode(target)
        logits = model.logits(source, [START, *ids[:-1]]).astype(np.float64)
        logprobs = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
        nats = -logprobs[np.arange(len(ids)), ids]
        assert model.loss(source, target) == pytest.approx(nats.mean(), rel=1e-12)
        assert model.loss(model.encode(source), ids) == pytest.approx(nats.mean(), rel=1e-12)
        assert model.loss(source, [*ids, -100, -100]) == pytest.approx(nats.mean(), rel=1e-12)
        ignored = model.loss(source, [*ids[:-1], -100])
        assert ignored == pytest.approx(nats[:-1].mean(), rel=1e-12)
        pairs = model.loss([source, TEXTS[1]], [target, np.array(ids)])
        assert pairs == [model.loss(source, target), model.loss(TEXTS[1], target)]
        assert np.size(model.loss([], [])) == 0

    def test_the_trace_ends_in_what_the_model_gives(self, model: Seq2SeqLM) -> None:
        source, ids = [5, 6, 7], [START, 8]
        trace = model.trace(source, ids)
        assert np.array_equal(trace["encoder.final_layer_norm"], model.encode(source).hidden)
        assert np.array_equal(trace["lm_head"], model.logits(source, ids))
        assert trace["encoder.block.1.layer.1.DenseReluDense.act"].shape == (3, 40)
        assert trace["decoder.block.0.layer.1.EncDecAttention.heads"].shape == (2, 24)


class TestMisuse:
    @pytest.mark.parametrize(
        ("call", "option"),
        [
            (lambda m: m.run([[]]), "source"),
            (lambda m: m.run([[5], []]), "source"),
            (lambda m: m.run(), "source"),
            (lambda m: m.run([5], memory=m.encode([5])), "source"),
            (lambda m: m.run({5, 6}), "source"),
            (lambda m: m.run([320]), "source"),
            (lambda m: m.run([-1]), "source"),
            (lambda m: m.run([[[5]]]), "source"),
            (lambda m: m.encode([[5], [2**40]]), "source"),
            (lambda m: m.encode([True, 5]), "source"),
            (lambda m: m.run([5], [320]), "decoder_prompt"),
            (lambda m: m.run([[5], [6]], [[1], [2], [3]]), "decoder_prompt"),
            (lambda m: m.run([5], [1, 2, 3], max_length=3), "max_length"),
            (lambda m: m.run([5], max_length=1), "max_length"),
            (lambda m: m.stream([5], num_beams=2), "num_beams"),
            (lambda m: m.run(memory=3), "memory"),
            (lambda m: m.run(memory=[m.encode([5]), [6]]), "memory"),
            (lambda m: m.prefill([], memory=m.encode([5])), "decoder_ids"),
            (lambda m: m.prefill("a", memory=m.encode([5])), "decoder_ids"),
            (lambda m: m.prefill([320], memory=m.encode([5])), "decoder_ids"),
            (lambda m: m.prefill([1], memory=[5]), "memory"),
            (lambda m: m.logits([], [1]), "source"),
            (lambda m: m.logits([5], []), "decoder_ids"),
            (lambda m: m.loss([5], [-100]), "target"),
            (lambda m: m.loss([5], []), "target"),
            (lambda m: m.loss([5], [-1]), "target"),
            (lambda m: m.loss([[5], [6]], [[1]]), "target"),
            (lambda m: m.trace([], [1]), "source"),
        ],
    )
    def test_arguments(self, model: Seq2SeqLM, call: Any, option: str) -> None:
        with pytest.raises(errors.OptionError) as caught:
            call(model)
        assert caught.value.option == option
        assert caught.value.expected

    def test_a_memory_of_another_model(self, model: Seq2SeqLM, folder: Path) -> None:
        memory = Seq2SeqLM.load(folder).encode([5])
        for call in (
            lambda: model.run(memory=memory),
            lambda: model.prefill(memory=memory),
            lambda: model.loss(memory, [5]),
        ):
            with pytest.raises(errors.OptionError, match="one that this very model encoded"):
                call()

    def test_unknown_options(self, model: Seq2SeqLM) -> None:
        with pytest.raises(errors.UnknownOptionError, match="did you mean max_new_tokens"):
            model.run([5], max_tokens=3)  # type: ignore[call-overload]

    def test_text_without_a_tokenizer(self, ids_model: Seq2SeqLM) -> None:
        for call in (
            lambda: ids_model.run("text"),
            lambda: ids_model.generate([5]),
            lambda: ids_model.run([5], "text"),
            lambda: ids_model.loss([5], "text"),
        ):
            with pytest.raises(errors.TokenizerMissing):
                call()

    def test_no_start_token(self, tmp_path: Path) -> None:
        config = T5.tiny_config(decoder_start_token_id=None)
        model = Seq2SeqLM.from_tensors(config, T5.tiny_weights(config))
        memory = model.encode([5, 6])
        for call in (
            lambda: model.run([5]),
            lambda: model.prefill(memory=memory),
            lambda: model.loss(memory, [5]),
        ):
            with pytest.raises(errors.ConfigError, match="decoder_start_token_id") as caught:
                call()
            assert caught.value.field == "decoder_start_token_id"
        assert model.prefill([3, 4], memory=memory).tokens == [3, 4]
        # As in transformers, the bos token takes its place.
        folder = T5.write_tiny(tmp_path, decoder_start_token_id=None, bos_token_id=9)
        with_bos = fastdecode.load(folder)
        assert with_bos.prefill(memory=with_bos.encode([5])).tokens == [9]

    def test_a_start_token_that_cannot_be(self, tmp_path: Path) -> None:
        folder = T5.write_tiny(tmp_path / "a", decoder_start_token_id="0")
        with pytest.raises(errors.ConfigError, match="decoder_start_token_id"):
            fastdecode.load(folder)
        far = fastdecode.load(T5.write_tiny(tmp_path / "b", decoder_start_token_id=1000))
        with pytest.raises(errors.OptionError, match="decoder_start_token_id"):
            far.run([5])

    def test_a_native_sequence_without_a_source(self, model: Seq2SeqLM) -> None:
        # What the classes rule out, the engine refuses too.
        with pytest.raises(errors.OptionError, match="this model has an encoder"):
            model._core.start(1)

    def test_a_causal_model_has_no_source(self, tmp_path: Path) -> None:
        model = CausalLM.load(tiny.write_folder(tmp_path))
        with pytest.raises(errors.OptionError, match="no encoder"):
            model._core.encode([[5]])
        with pytest.raises(errors.OptionError, match="no encoder"):
            model._core.start(1, [5])


def test_memory_is_a_public_name() -> None:
    assert fastdecode.Memory is Memory
    assert json.dumps(sorted(fastdecode.__all__)).count("Memory") == 1
