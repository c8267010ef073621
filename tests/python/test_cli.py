"""The command: text to stdout, the rest to stderr, exit statuses."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from typing import TYPE_CHECKING, Any

import fastdecode
import pytest
import tiny
from families import FAMILIES
from fastdecode import cli

if TYPE_CHECKING:
    from pathlib import Path

    import tokenizers

T5 = FAMILIES["t5"]
LENGTH = ("--max-new-tokens", "12")
# More text than a pipe holds (two bytes a token), so that the command is still at work when its reader acts.
ENDLESS = ("--min-new-tokens", "40000", "--max-new-tokens", "40000", "--do-sample", "--seed", "1")


@pytest.fixture
def text(model: fastdecode.CausalLM) -> str:
    return model.generate("Once upon", max_new_tokens=12)


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    status = cli.main(arguments)
    captured = capsys.readouterr()
    return status, captured.out, captured.err


def test_run(capsys: pytest.CaptureFixture[str], folder: Path, text: str) -> None:
    status, out, err = run(capsys, "run", str(folder), "Once upon", *LENGTH)
    assert (status, out) == (0, text + "\n")
    assert "12 new tokens" in err
    assert "tokens/s" in err
    assert "prompt" in err
    assert run(capsys, "run", str(folder), "Once upon", *LENGTH, "--quiet") == (0, text + "\n", "")
    echoed = run(capsys, "run", str(folder), "Once upon", *LENGTH, "--quiet", "--echo")
    assert echoed == (0, "Once upon" + text + "\n", "")


def test_the_rate_counts_what_comes_behind_the_first_piece() -> None:
    assert cli._rate((1, 9), (0.0, 1.0, 3.0)) == 4
    assert cli._rate((6, 8), (0.0, 3.0, 4.0)) == 2, "bytes were held back"
    assert cli._rate((8, 8), (0.0, 2.0, 2.0)) == 4, "all at once"
    assert cli._rate((0, 0), (1.0, 1.0, 1.0)) == 0


def test_run_without_a_prompt_starts_from_bos(
    capsys: pytest.CaptureFixture[str], folder: Path, model: fastdecode.CausalLM
) -> None:
    expected = model.generate("", max_new_tokens=12)
    assert run(capsys, "run", str(folder), *LENGTH, "--quiet") == (0, expected + "\n", "")


def test_options_reach_the_model(
    capsys: pytest.CaptureFixture[str], folder: Path, model: fastdecode.CausalLM
) -> None:
    flags = ["--do-sample", "--temperature", "2.5", "--top-k", "40", "--top-p", "0.9", "--min-p", "0.01"]
    flags += ["--seed", "7", "--repetition-penalty", "1.5", "--min-new-tokens", "2", "--max-length", "20"]
    options: Any = {
        "do_sample": True,
        "temperature": 2.5,
        "top_k": 40,
        "top_p": 0.9,
        "min_p": 0.01,
        "seed": 7,
        "repetition_penalty": 1.5,
        "min_new_tokens": 2,
        "max_length": 20,
    }
    expected = model.generate("Once upon", **options)
    assert run(capsys, "run", str(folder), "Once upon", *flags, "--quiet") == (0, expected + "\n", "")
    stop = expected[2:4]
    cut = model.generate("Once upon", stop=[stop, "zzz"], **options)
    stopped = run(capsys, "run", str(folder), "Once upon", *flags, "--quiet", "--stop", stop, "--stop", "zzz")
    assert stopped == (0, cut + "\n", "")
    both = model.generate("Once upon", num_return_sequences=3, **options)
    several = run(capsys, "run", str(folder), "Once upon", *flags, "--quiet", "--num-return-sequences", "3")
    assert several == (0, "".join(one + "\n" for one in both), "")


def test_a_search_with_beams(
    capsys: pytest.CaptureFixture[str], folder: Path, model: fastdecode.CausalLM, tmp_path: Path
) -> None:
    flags = ["--num-beams", "3", "--num-return-sequences", "2", "--length-penalty", "2"]
    flags += ["--early-stopping", "never", "--no-repeat-ngram-size", "2"]
    expected = model.generate(
        "Once upon",
        num_beams=3,
        num_return_sequences=2,
        length_penalty=2.0,
        early_stopping="never",
        no_repeat_ngram_size=2,
        max_new_tokens=12,
    )
    status, out, err = run(capsys, "run", str(folder), "Once upon", *flags, *LENGTH)
    assert (status, out) == (0, "".join(one + "\n" for one in expected))
    assert "new tokens" in err
    status, _, err = run(capsys, "run", str(folder), "Once upon", "--num-beams", "0")
    assert (status, "num_beams: expected an integer of at least 1" in err) == (1, True)
    with pytest.raises(SystemExit, match="2"):
        run(capsys, "run", str(folder), "Once upon", "--early-stopping", "sometimes")
    capsys.readouterr()
    # A folder may ask for beams by itself.
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    (tmp_path / "generation_config.json").write_text('{"num_beams": 3, "max_new_tokens": 12}')
    expected = model.generate("Once upon", num_beams=3, max_new_tokens=12, eos_token_id=None)
    assert run(capsys, "run", str(tmp_path), "Once upon", "--quiet") == (0, f"{expected}\n", "")
    # What there is to say of a call is said once.
    status, _, err = run(capsys, "run", str(tmp_path), "Once upon", "--quiet", *LENGTH, "--max-length", "30")
    assert (status, err) == (
        0,
        "fastdecode: warning: both max_new_tokens and max_length are given; max_new_tokens is used\n",
    )


def test_load_options_reach_the_model(capsys: pytest.CaptureFixture[str], folder: Path) -> None:
    status, out, _ = run(
        capsys,
        "info",
        str(folder),
        "--dtype",
        "bfloat16",
        "--compute-dtype",
        "bfloat16",
        "--num-threads",
        "1",
        "--cache-bytes",
        "1000000",
        "--max-rows",
        "3",
        "--prefix-cache-bytes",
        "70000",
        "--json",
    )
    assert status == 0
    model = json.loads(out)["model"]
    assert (model["dtype"], model["compute_dtype"], model["num_threads"]) == ("bfloat16", "bfloat16", 1)
    assert (model["cache_bytes"], model["max_rows"], model["prefix_cache_bytes"]) == (10**6, 3, 70000)
    status, out, _ = run(capsys, "info", str(folder), "--cache-bytes", "2500000")
    assert status == 0
    lines = {" ".join(line.split()) for line in out.splitlines()}
    assert {"cache bytes 2.5 MB", "max rows 64"} <= lines


def test_the_device_reaches_the_model(
    capsys: pytest.CaptureFixture[str], folder: Path, text: str, emulated_gpu: Any
) -> None:
    def launches() -> int:
        return sum(emulated_gpu.report()["launches"].values())

    status, out, _ = run(capsys, "info", str(folder), "--device", "cuda:0", "--json")
    assert status == 0
    values = json.loads(out)
    assert (values["model"]["device"], values["model"]["device_reason"]) == ("cuda:0", None)
    assert [device["ordinal"] for device in values["cuda"]["devices"]] == [0]
    before = launches()
    on_gpu = run(capsys, "run", str(folder), "Once upon", *LENGTH, "--quiet", "--device", "auto")
    assert on_gpu == (0, text + "\n", "")
    assert launches() > before
    # Only the CPU has eight bits: "auto" takes it and says why, and a GPU is an error.
    status, out, _ = run(capsys, "info", str(folder), "--device", "auto", "--dtype", "int8")
    lines = [" ".join(line.split()) for line in out.splitlines()]
    assert "device cpu" in lines
    assert any(line.startswith('device reason dtype: expected "float32" or "bfloat16"') for line in lines)
    status, out, err = run(capsys, "run", str(folder), "a", "--device", "cuda", "--dtype", "int8")
    assert (status, out) == (1, "")
    assert 'dtype: expected "float32" or "bfloat16" for all of a model on a GPU' in err
    status, out, err = run(capsys, "chat", str(folder), "--device", "gpu")
    assert (status, out) == (1, "")
    assert 'device: expected "cpu", "auto", "cuda" or "cuda:N"' in err


def test_bench_on_a_gpu(capsys: pytest.CaptureFixture[str], tmp_path: Path, emulated_gpu: Any) -> None:
    del emulated_gpu
    folder = tiny.write_folder(tmp_path, vocab_size=48)
    arguments = ("bench", str(folder), "--rounds", "1", "--device", "cuda")
    status, out, err = run(capsys, *arguments, "--json")
    assert (status, err) == (0, "")
    values = json.loads(out)
    assert (values["device"], values["isa"], values["limits"]) == ("cuda:0", "sm_90", None)
    assert values["prefill"]["tokens_per_second"] > 0
    assert values["prefill"]["share_of_peak"] is values["decode"]["share_of_bandwidth"] is None
    status, out, _ = run(capsys, *arguments)
    assert status == 0
    assert "sm_90, cuda:0" in out
    assert "what this GPU can do at most is not measured" in out
    assert "of the peak" not in out
    status, out, err = run(capsys, *arguments, "--profile")
    assert (status, out) == (1, "")
    assert "expected a model on the CPU, where phases are timed" in err


def test_quality_on_a_gpu(
    capsys: pytest.CaptureFixture[str], folder: Path, tmp_path: Path, emulated_gpu: Any
) -> None:
    del emulated_gpu
    (tmp_path / "text").write_text("Once upon a time there was")
    arguments = ("quality", str(folder), "--text", str(tmp_path / "text"), "--device", "auto")
    status, out, err = run(capsys, *arguments, "--json")
    assert (status, err) == (0, "")
    rows = json.loads(out)["rows"]
    assert [(row["dtype"], row["compute_dtype"]) for row in rows] == [
        ("float32", "float32"),
        ("bfloat16", "bfloat16"),
    ], "a GPU has no types of eight bits"
    status, out, err = run(capsys, *arguments, "--dtype", "int8")
    assert (status, out) == (1, "")
    assert 'dtype: expected "float32" or "bfloat16" for all of a model on a GPU' in err


def test_info(capsys: pytest.CaptureFixture[str], folder: Path) -> None:
    status, out, err = run(capsys, "info")
    assert (status, err) == (0, "")
    assert fastdecode.__version__ in out
    assert fastdecode.cpu_info()["isa"] in out
    status, out, err = run(capsys, "info", str(folder))
    assert (status, err) == (0, "")
    for shown in ("gpt2", "23,712", "MB", "float32", "threads"):
        assert shown in out
    assert set(json.loads(run(capsys, "info", "--json")[1])) == {"version", "cpu", "cuda"}


def test_bench(capsys: pytest.CaptureFixture[str], folder: Path) -> None:
    status, out, err = run(capsys, "bench", str(folder), "--rounds", "1", "--num-threads", "1", "--json")
    assert (status, err) == (0, "")
    values = json.loads(out)
    assert values["prefill"]["tokens"] == 63
    assert values["decode"]["tokens"] == 31
    assert values["prefill"]["tokens_per_second"] > 0
    assert 0 < values["prefill"]["share_of_peak"] < 2
    assert values["decode"]["share_of_bandwidth"] > 0
    limits = values["limits"]
    assert limits["read_bytes_per_second"] > 1e8
    assert 0 < limits["f32_sustained_flops_per_second"] <= limits["f32_flops_per_second"]
    status, out, _ = run(capsys, "bench", str(folder), "--rounds", "1", "--num-threads", "1")
    assert status == 0
    for shown in (
        "prefill of 63 tokens",
        "decode after 32 tokens",
        "GB/s",
        "GFLOP/s",
        "of the peak",
        "sustained",
    ):
        assert shown in out


def test_bench_of_an_encoder_decoder(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    folder = T5.write_tiny(tmp_path)
    status, out, err = run(capsys, "bench", str(folder), "--rounds", "1", "--num-threads", "1", "--json")
    assert (status, err) == (0, "")
    values = json.loads(out)
    assert (values["architecture"], values["prefill"]["tokens"], values["decode"]["tokens"]) == (
        "t5",
        512,
        127,
    )
    assert 0 < values["prefill"]["share_of_peak"] < 2
    assert values["decode"]["share_of_bandwidth"] > 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("run", "/no/such/folder", "a"), "no such folder"),
        (("run", "{folder}", "a", "--temperature", "0.5"), "do_sample=True"),
        (("run", "{folder}", "a", "--max-new-tokens", "1000"), "at most 64"),
        (("run", "{folder}", "a", "--max-new-tokens", "0"), "at least 1"),
        (("run", "{ids_folder}", "a"), "tokenizer"),
        (("run", "{folder}", "a", "--num-threads", "0"), "num_threads"),
        (("run", "{folder}", "a", "--cache-bytes", "0"), "cache_bytes: expected None or an integer"),
        (("run", "{folder}", "a", "--max-rows", "65537"), "max_rows: expected None or an integer from 1"),
        (("info", "{folder}", "--revision", "main"), "revision"),
        (("bench", "/no/such/folder"), "no such folder"),
    ],
)
def test_errors(
    capsys: pytest.CaptureFixture[str],
    folder: Path,
    ids_folder: Path,
    arguments: tuple[str, ...],
    message: str,
) -> None:
    filled = [argument.format(folder=folder, ids_folder=ids_folder) for argument in arguments]
    status, out, err = run(capsys, *filled)
    assert (status, out) == (1, "")
    assert err.startswith("fastdecode: error: ")
    assert message in err


@pytest.mark.parametrize(
    "arguments",
    [
        (),
        ("walk",),
        ("run",),
        ("run", "m", "p", "--top-k", "x"),
        ("run", "m", "p", "--bogus"),
        ("info", "--dtype", "x"),
    ],
)
def test_wrong_arguments(capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...]) -> None:
    with pytest.raises(SystemExit) as caught:
        cli.main(arguments)
    assert caught.value.code == 2
    assert "usage: fastdecode" in capsys.readouterr().err


def test_warnings_are_shown_as_lines(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    import numpy as np
    from safetensors.numpy import load_file, save_file

    folder = tiny.write_folder(tmp_path / "m")
    tensors = load_file(folder / "model.safetensors")
    save_file(tensors | {"surplus": np.zeros(1, np.float32)}, folder / "model.safetensors")
    status, _, err = run(capsys, "info", str(folder))
    assert status == 0
    assert err == "fastdecode: warning: the checkpoint has tensors that the model does not use: surplus\n"


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        cli.main(["--version"])
    assert caught.value.code == 0
    assert capsys.readouterr().out == f"fastdecode {fastdecode.__version__}\n"


def command(*arguments: str, **options: Any) -> subprocess.Popen[bytes]:
    environment = os.environ | {"PYTHONIOENCODING": "utf-8"}
    return subprocess.Popen(
        [sys.executable, "-m", "fastdecode", *arguments],
        env=environment,
        preexec_fn=tiny.hear_ctrl_c,
        **options,
    )


def test_stdin(folder: Path, text: str) -> None:
    with command(
        "run", str(folder), "-", *LENGTH, "--quiet", stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        out, _ = process.communicate(b"Once upon\n")
    assert process.returncode == 0
    assert out.decode() == text + "\n"


def test_a_terminal_that_cannot_show_a_character(folder: Path) -> None:
    arguments = ["run", str(folder), "caf\u00e9 \u6614", "--echo", "--quiet", *LENGTH]
    for encoding in ("ascii", "ascii:strict", "latin-1"):
        process = subprocess.run(
            [sys.executable, "-m", "fastdecode", *arguments],
            env=os.environ | {"PYTHONIOENCODING": encoding, "PYTHONUTF8": "0"},
            capture_output=True,
            check=False,
        )
        assert (process.returncode, process.stderr) == (0, b"")
        shown = process.stdout.decode(encoding.removesuffix(":strict"))
        assert shown.startswith("caf\u00e9 ?" if encoding == "latin-1" else "caf? ?")
    process = subprocess.run(
        [sys.executable, "-m", "fastdecode", "info", "/no/\u6614"],
        env=os.environ | {"PYTHONIOENCODING": "ascii:strict"},
        capture_output=True,
        check=False,
    )
    assert (process.returncode, b"Traceback" in process.stderr) == (1, False)
    assert b"fastdecode: error: " in process.stderr


def test_input_that_is_no_text(folder: Path) -> None:
    with command(
        "run",
        str(folder),
        "-",
        *LENGTH,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as process:
        _, err = process.communicate(b"\xff\xfe\n")
    assert process.returncode == 1
    assert err.startswith(b"fastdecode: error: prompt: expected text in utf-8, got ")


@pytest.mark.parametrize("how", ["argument", "stdin"])
def test_text_in_utf_8_where_the_locale_says_ascii(folder: Path, how: str) -> None:
    plain = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    for text, expected in (("été".encode(), 0), (b"caf\xe9", 1)):
        prompt: bytes | str = text if how == "argument" else "-"
        process = subprocess.run(
            [sys.executable, "-m", "fastdecode", "run", str(folder), prompt, "--quiet", *LENGTH],
            env=os.environ | plain,
            input=text,
            capture_output=True,
            check=False,
        )
        assert (process.returncode, b"Traceback" in process.stderr) == (expected, False)
        if expected:
            assert process.stderr.startswith(b"fastdecode: error: prompt: expected text in utf-8, got ")


def test_streams_that_are_closed_or_full(folder: Path) -> None:
    call = f'"{sys.executable}" -m fastdecode run "{folder}"'
    for line, status, message in (
        (f"{call} - <&-", 1, "prompt: expected text from stdin, got a stdin that is closed"),
        (f"{call} a {' '.join(LENGTH)} > /dev/full", 1, "No space left on device"),
        (f"{call} a {' '.join(LENGTH)} >&-", 0, ""),
    ):
        done = subprocess.run(["sh", "-c", line], capture_output=True, text=True, check=False)
        assert (done.returncode, "Traceback" in done.stderr) == (status, False)
        assert message in done.stderr


def test_flags_with_values_that_are_none(capsys: pytest.CaptureFixture[str], folder: Path) -> None:
    for arguments, message in (
        (["bench", str(folder), "--rounds", "x"], "expected an integer of at least 1, got 'x'"),
        (["bench", str(folder), "--rounds", "0"], "expected an integer of at least 1, got '0'"),
        (["run", str(folder), "--early-stopping", "maybe"], "expected true, false or never, got 'maybe'"),
    ):
        with pytest.raises(SystemExit, match="2"):
            cli.main(arguments)
        assert message in capsys.readouterr().err


def test_the_help_tells_of_encoder_decoders(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in (["--help"], ["run", "--help"]):
        with pytest.raises(SystemExit):
            cli.main(arguments)
        out = " ".join(capsys.readouterr().out.split())
        assert "encoder-decoder" in out


@pytest.fixture
def wordy(tmp_path: Path, byte_level: tokenizers.Tokenizer) -> Path:
    """A model that can write more than a pipe holds."""
    return tiny.write_folder(tmp_path / "wordy", tokenizer=byte_level, n_positions=40_960)


def test_output_comes_as_it_is_made(wordy: Path) -> None:
    """The first bytes arrive long before the last."""
    with command("run", str(wordy), "a", *ENDLESS, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.read(1)
        assert process.poll() is None
        process.send_signal(signal.SIGINT)
        began = time.monotonic()
        process.stdout.read()
        assert process.wait() == 130
        assert time.monotonic() - began < 20


def test_a_reader_that_leaves(wordy: Path) -> None:
    with command("run", str(wordy), "a", *ENDLESS, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.read(1)
        process.stdout.close()
        assert process.wait() == 1
        assert process.stderr.read() == b""
