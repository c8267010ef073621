"""Profiles: what is counted adds up, is nobody else's, and changes nothing that is computed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from typing import TYPE_CHECKING, Any

import fastdecode
import pytest
import tiny
from families import FAMILIES
from fastdecode import bench, cli, errors
from fastdecode.profile import Profile, ProfileLine

if TYPE_CHECKING:
    from pathlib import Path

GREEDY: Any = {"max_new_tokens": 9, "eos_token_id": None, "do_sample": False}
PROMPT = [1, 2, 3, 4, 5]


@pytest.fixture
def t5(tmp_path: Path) -> fastdecode.Seq2SeqLM:
    return fastdecode.Seq2SeqLM.load(FAMILIES["t5"].write_tiny(tmp_path, vocab_size=320), num_threads=2)


def of(profile: Profile, steps: str) -> list[ProfileLine]:
    return [line for line in profile.lines() if line.steps == steps]


def calls(profile: Profile, steps: str, kind: str) -> int:
    return sum(line.calls for line in of(profile, steps) if line.kind == kind)


def work(profile: Profile) -> list[tuple[Any, ...]]:
    """What does not depend on the time."""
    return [(x.steps, x.kind, x.place, x.calls, x.rows, x.bytes, x.flops) for x in profile.lines()]


def test_lines_add_up_to_what_the_model_says_of_its_cost(ids_model: fastdecode.CausalLM) -> None:
    info = ids_model.info()
    layers = info["num_hidden_layers"]
    with fastdecode.Profile(ids_model) as profile:
        ids_model.run(PROMPT, **GREEDY)
    prompt, decode = of(profile, "prompt"), of(profile, "decode")
    assert sum(line.flops for line in prompt) == ids_model._core.flops(len(PROMPT), 1)
    weights = [line.bytes for line in decode if line.kind != "attention"]
    assert sum(weights) == 8 * info["step_weight_bytes"]
    # Eight steps, behind 5 to 12 cached positions, each of which reads its own, too.
    [attention] = [line for line in decode if line.kind == "attention"]
    assert attention.bytes == sum(range(6, 14)) * info["cache_bytes_per_token"]
    assert calls(profile, "decode", "rest") == calls(profile, "decode", "head") == 8
    assert calls(profile, "decode", "feed-forward") == 2 * 8 * layers
    assert calls(profile, "decode", "attention product") == 2 * 8 * layers
    places = {line.place for line in decode if line.kind == "feed-forward"}
    assert places == {"h.*.mlp.c_fc", "h.*.mlp.c_proj"}
    [choosing] = [line for line in profile.lines() if line.kind == "choosing"]
    assert choosing.calls == 9
    values = profile.as_dict()
    assert sum(line["seconds"] for line in values["lines"]) == pytest.approx(values["seconds"])
    assert sum(line["share"] for line in values["lines"]) == pytest.approx(1)
    assert all(line.seconds >= 0 for line in profile.lines())
    for steps, total in values["steps"].items():
        for name in ("seconds", "bytes", "flops", "share"):
            assert total[name] == pytest.approx(sum(getattr(line, name) for line in of(profile, steps)))
    assert (values["steps"]["decode"]["calls"], values["steps"]["prompt"]["rows"]) == (8, 5)
    assert values["limits"]["read_bytes_per_second"] > 0


def test_each_line_has_the_peak_of_its_own_numbers(ids_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    limits = {"read_bytes_per_second": 1e9, "f32_flops_per_second": 1e9, "int8_ops_per_second": 4e9}
    limits["bf16_dot_flops_per_second"] = 2e9
    monkeypatch.setattr("fastdecode._core.measure_limits", lambda *_: dict(limits))
    dtype: Any = {"default": "float32", "lm_head": "int8", "*.c_fc": "int4"}
    model = fastdecode.CausalLM.load(ids_folder, dtype=dtype, num_threads=1)
    with fastdecode.Profile(model) as profile:
        model.run(PROMPT, **GREEDY)
    lines = [line for line in profile.lines() if line.flops]
    peaks = {line.place: line.flops_per_second / line.share_of_peak for line in lines}  # type: ignore[operator]
    assert peaks == pytest.approx(
        {
            "h.*.attn.c_attn": 1e9,
            "h.*.attn.heads": 1e9,
            "h.*.attn.c_proj": 1e9,
            "h.*.mlp.c_fc": 4e9,
            "h.*.mlp.c_proj": 1e9,
            "lm_head": 4e9,
        }
    )
    # What all come to: the time that all would take, each at its own peak.
    total = profile.as_dict()["steps"]["prompt"]
    prompt = [line for line in lines if line.steps == "prompt"]
    at_peak = sum(line.flops / peaks[line.place] for line in prompt)
    assert total["share_of_peak"] == pytest.approx(at_peak / total["seconds"])
    assert "1.0 GB/s, 1.0 GFLOP/s in float32, 4.0 GFLOP/s in int8" in str(profile)
    found = bench.measure(model, rounds=1, prefill=9, prompt=3, new=4)["prefill"]
    parts = model._core.flops_by_numbers(9, 1)
    assert parts[1] == 0 < min(parts[0], parts[2])
    assert sum(parts) == model._core.flops(9, 1)
    assert found["share_of_peak"] == pytest.approx((parts[0] / 1e9 + parts[2] / 4e9) / found["seconds"])


def test_products_of_different_types_in_one_phase(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    limits = {"read_bytes_per_second": 1e9, "f32_flops_per_second": 1e9, "int8_ops_per_second": 4e9}
    monkeypatch.setattr("fastdecode._core.measure_limits", lambda *_: limits)
    folder = FAMILIES["llama"].write_tiny(tmp_path)
    dtype: Any = {"default": "float32", "*.gate_proj": "int8"}
    model = fastdecode.CausalLM.load(folder, dtype=dtype, num_threads=1)
    with fastdecode.Profile(model) as profile:
        model.logits(PROMPT)
    [gated] = [line for line in profile.lines() if "gate" in line.place]
    assert gated.share_of_peak == pytest.approx(gated.flops * (0.5 / 1e9 + 0.5 / 4e9) / gated.seconds)


def test_an_encoder_decoder_counts_sources_and_both_attentions(t5: fastdecode.Seq2SeqLM) -> None:
    with fastdecode.Profile(t5) as profile:
        t5.run(PROMPT, **GREEDY)
    first, whole = t5._core.flops(len(PROMPT), 0), t5._core.flops(len(PROMPT), 1)
    assert sum(line.flops for line in of(profile, "source")) == first
    assert calls(profile, "source", "keep") == t5.info()["num_hidden_layers"]
    # The decoder begins with one token: all its steps have one row.
    assert not of(profile, "prompt")
    assert sum(line.flops for line in of(profile, "decode")) > 9 * (whole - first)
    attention = [line for line in of(profile, "decode") if line.kind == "attention"]
    assert len({line.place for line in attention}) == 2
    layers = t5.info()["num_hidden_layers"]
    assert [line.calls for line in attention] == [9 * layers] * 2
    [cross] = [line for line in attention if "EncDec" in line.place]
    assert cross.bytes == 9 * len(PROMPT) * t5.info()["cache_bytes_per_token"]


def test_an_encoder_alone_and_scores_are_counted(
    tmp_path: Path, ids_model: fastdecode.CausalLM, t5: fastdecode.Seq2SeqLM
) -> None:
    encoder = fastdecode.TextEncoder.load(FAMILIES["t5"].write_tiny(tmp_path / "e"))
    with fastdecode.Profile(encoder) as profile:
        encoder.encode(PROMPT)
    assert {line.steps for line in profile.lines()} == {"source", ""}
    assert sum(line.flops for line in profile.lines()) == encoder._core.flops(len(PROMPT), 0)
    for verb in (lambda: ids_model.loss(PROMPT), lambda: ids_model.score([(PROMPT, [7, 8])])):
        with fastdecode.Profile(ids_model) as profile:
            verb()
        assert calls(profile, "prompt", "head") == 1
    with fastdecode.Profile(t5) as profile:
        t5.loss(PROMPT, [3, 4])
    assert (calls(profile, "source", "rest"), calls(profile, "prompt", "head")) == (1, 1)


def test_results_are_the_same_bits(ids_model: fastdecode.CausalLM) -> None:
    def everything() -> tuple[Any, ...]:
        drawn = ids_model.run(PROMPT, max_new_tokens=9, do_sample=True, seed=3, eos_token_id=None)
        return drawn.token_ids, ids_model.logits(PROMPT).tobytes(), ids_model.loss(PROMPT)

    before = everything()
    with fastdecode.Profile(ids_model):
        within = everything()
    assert before == within == everything()


def test_nothing_is_counted_outside_and_blocks_add_up(ids_model: fastdecode.CausalLM) -> None:
    profile, once = fastdecode.Profile(ids_model), fastdecode.Profile(ids_model)
    assert [line.kind for line in profile.lines()] == ["outside"]
    for _ in range(2):
        with profile, once if profile._kept == profile._none() else fastdecode.Profile(ids_model):
            ids_model.run(PROMPT, **GREEDY)
        ids_model.run(PROMPT, **GREEDY)
    assert calls(profile, "decode", "head") == 16
    assert calls(once, "decode", "head") == 8
    assert [line[3:] for line in work(profile)[:-1]] == [
        tuple(2 * number for number in line[3:]) for line in work(once)[:-1]
    ]


def test_threads_and_models_are_not_mixed_up(ids_folder: Path) -> None:
    for threads in (1, 2):
        busy, other = (fastdecode.CausalLM.load(ids_folder, num_threads=threads) for _ in range(2))
        with fastdecode.Profile(busy) as profile, fastdecode.Profile(other) as others:

            def steps(model: fastdecode.CausalLM, count: int) -> None:
                state = model.prefill(PROMPT)
                for _ in range(count):
                    state.step(1)
                    state.logits  # noqa: B018 (computed when asked for)

            callers = [threading.Thread(target=steps, args=(busy, 20)) for _ in range(4)]
            callers.append(threading.Thread(target=steps, args=(other, 7)))
            for caller in callers:
                caller.start()
            for caller in callers:
                caller.join()
        assert calls(profile, "decode", "rest") == calls(profile, "decode", "embedding") == 80
        assert calls(others, "decode", "rest") == 7
        assert sum(line.share for line in profile.lines()) == pytest.approx(1)


def test_a_profile_refuses_what_is_no_model_and_to_be_used_twice(ids_model: fastdecode.CausalLM) -> None:
    with pytest.raises(errors.OptionError, match="model: expected a model"):
        fastdecode.Profile("gpt2")  # type: ignore[arg-type]
    with (
        fastdecode.Profile(ids_model) as profile,
        pytest.raises(errors.OptionError, match="profile: expected one that is not in use"),
        profile,
    ):
        pass


def test_a_traced_forward_is_not_counted(ids_model: fastdecode.CausalLM) -> None:
    with fastdecode.Profile(ids_model) as profile:
        ids_model._core.trace(PROMPT)
    assert [line.kind for line in profile.lines()] == ["outside"]


def test_bench_shows_it(capsys: pytest.CaptureFixture[str], ids_folder: Path) -> None:
    arguments = ["bench", str(ids_folder), "--rounds", "2", "--num-threads", "1", "--profile"]
    assert cli.main(arguments) == 0
    out = capsys.readouterr().out
    for shown in (
        "prefill of 63",
        "profile of",
        "decode: steps with one row",
        "h.*.mlp",
        "choosing",
        "whole",
    ):
        assert shown in out
    assert cli.main([*arguments, "--json"]) == 0
    values = json.loads(capsys.readouterr().out)
    profile = values["profile"]
    assert profile["limits"] == values["limits"]
    assert profile["steps"]["decode"]["calls"] == 2 * values["decode"]["tokens"]
    assert sum(line["share"] for line in profile["lines"]) == pytest.approx(1)
    assert cli.main([*arguments[:-1], "--json"]) == 0
    assert "profile" not in json.loads(capsys.readouterr().out)


PROGRAM = """
import os, sys, fastdecode
model = fastdecode.load(sys.argv[1], num_threads=1)
def run(count):
    model.run([1, 2, 3], max_new_tokens=count, do_sample=False, eos_token_id=None)
"""
ENDS = {
    "plain": ("run(5)", [4]),
    "no step": ("", []),
    "fork": ("run(5)\nif os.fork() == 0:\n    run(8)\n    sys.exit()\nos.wait()", [4, 7]),
    "idle fork": ("run(5)\nif os.fork() == 0:\n    sys.exit()\nos.wait()", [4]),
    "multiprocessing": (
        "import multiprocessing\nchild = multiprocessing.get_context('fork').Process(target=run, args=(8,))\n"
        "child.start()\nchild.join()\nrun(5)",
        [4, 7],
    ),
    "error": ("run(5)\nraise SystemExit(3)", [4]),
}


def ended(program: str, folder: Path, value: str | None) -> tuple[int, str]:
    environment = {key: text for key, text in os.environ.items() if key != "FASTDECODE_PROFILE"}
    if value is not None:
        environment["FASTDECODE_PROFILE"] = value
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM + program, str(folder)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert done.stdout == ""
    return done.returncode, done.stderr


@pytest.mark.parametrize("name", ENDS)
def test_a_process_shows_its_profile_at_its_end(name: str, ids_folder: Path) -> None:
    program, expected = ENDS[name]
    status, err = ended(program, ids_folder, "1")
    assert status == (3 if name == "error" else 0), err
    heads = [line.split() for line in err.splitlines() if line.split()[:2] == ["head", "lm_head"]]
    assert err.count("profile of") == len(expected)
    assert sorted(int(words[2]) for words in heads if words[2] != "1") == expected


@pytest.mark.parametrize("value", [None, "", "0"])
def test_nothing_is_shown_without_it(value: str | None, ids_folder: Path) -> None:
    program = "run(5)\nassert 'fastdecode.profile' not in sys.modules"
    assert ended(program, ids_folder, value) == (0, "")


def test_another_value_is_an_error_of_loading(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], ids_folder: Path
) -> None:
    monkeypatch.setenv("FASTDECODE_PROFILE", "yes")
    for load in (
        lambda: fastdecode.load(ids_folder),
        lambda: fastdecode.CausalLM.from_tensors(tiny.config(), {}),
    ):
        with pytest.raises(
            errors.OptionError, match="FASTDECODE_PROFILE: expected 1 for a profile"
        ) as caught:
            load()
        assert (caught.value.option, caught.value.got) == ("FASTDECODE_PROFILE", "'yes'")
    assert cli.main(["info", str(ids_folder)]) == 1
    assert "FASTDECODE_PROFILE" in capsys.readouterr().err
