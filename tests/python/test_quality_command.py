"""`fastdecode quality`: a text or lines of pairs in, a table or JSON out, and errors that name the line."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import fastdecode
import pytest
import tiny
from families import FAMILIES
from fastdecode import cli, errors
from fastdecode.load_options import dtype_of_words
from fastdecode.quality_command import pairs_of, read_text

T5 = FAMILIES["t5"]
TEXT = "Once upon a time there was a little girl.\nShe lived in a house by the wood: « chez elle ».\n"
PAIRS = [("Good day.", "Bonjour."), ("Where is the station?", "Où est la gare ?")]


@pytest.fixture
def text(tmp_path: Path) -> str:
    file = tmp_path / "text.txt"
    file.write_text(TEXT, encoding="utf-8")
    return str(file)


@pytest.fixture
def tsv(tmp_path: Path) -> str:
    file = tmp_path / "pairs.tsv"
    file.write_text("".join(f"{source}\t{target}\n" for source, target in PAIRS), encoding="utf-8")
    return str(file)


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    status = cli.main(["quality", *arguments])
    captured = capsys.readouterr()
    return status, captured.out, captured.err


def without_rates(values: Any) -> Any:
    return [{name: value for name, value in row.items() if name != "tokens_per_second"} for row in values]


def test_a_text(capsys: pytest.CaptureFixture[str], text: str) -> None:
    status, out, err = run(
        capsys, "demo-stories", "--text", text, "--dtype", "bfloat16", "--dtype", "float16"
    )
    assert (status, err) == (0, "")
    head, columns, *rows = out.splitlines()
    model = fastdecode.load("demo-stories")
    count = len(model.tokenizer.encode(TEXT)) - 1
    assert head == f"demo-stories: {count} tokens of {text}, each type beside float32"
    assert columns.split()[:3] == ["dtype", "products", "perplexity"]
    assert [line.split()[0] for line in rows] == ["float32", "bfloat16", "float16"]
    assert rows[0].split()[2] == f"{model.perplexity(TEXT):,.4f}"


def test_pairs(capsys: pytest.CaptureFixture[str], tsv: str) -> None:
    status, out, err = run(capsys, "demo-en-fr", "--text", tsv, "--dtype", "float16")
    assert (status, err) == (0, "")
    _, columns, first, second = out.splitlines()
    assert columns.split()[:3] == ["dtype", "products", "loss"]
    model = fastdecode.load("demo-en-fr")
    report = model.quality(PAIRS, dtypes="float16")
    assert first.split()[:3] == ["float32", "float32", f"{report.rows[0].loss:.4f}"]
    assert second.split()[0] == "float16"


@pytest.mark.parametrize("name", ["demo-stories", "demo-en-fr"])
def test_json_and_arguments_reach_the_model(
    capsys: pytest.CaptureFixture[str], text: str, tsv: str, name: str
) -> None:
    model = fastdecode.load(name)
    file, texts = (tsv, PAIRS) if model.has_encoder else (text, TEXT)
    options: dict[str, Any] = {"limit": 9} if model.has_encoder else {"limit": 20, "stride": 6, "window": 12}
    flags = [part for key, value in options.items() for part in (f"--{key}", str(value))]
    status, out, err = run(capsys, name, "--text", file, "--json", "--dtype", "float16", *flags)
    assert (status, err) == (0, "")
    got = json.loads(out)
    want = model.quality(texts, dtypes=["float16"], **options)
    assert (got["name"], got["text"], got["measure"]) == (name, file, want.measure)
    assert [row["dtype"] for row in got["rows"]] == ["float32", "float16"]
    for row, expected in zip(without_rates(got["rows"]), want.rows, strict=True):
        assert row == {key: getattr(expected, key) for key in row}
    assert len(got["rows"][0]) == 11


def test_groups_of_int4(capsys: pytest.CaptureFixture[str], text: str) -> None:
    arguments = ["demo-stories", "--text", text, "--limit", "9", "--dtype", "int4", "--int4-group"]
    status, out, _ = run(capsys, *arguments, "32", "--json")
    assert status == 0
    assert [row["int4_group"] for row in json.loads(out)["rows"]] == [None, 32]
    status, out, _ = run(capsys, *arguments, "128")
    assert status == 0
    assert [line.split()[:3] for line in out.splitlines()[3:]] == [["int4", "by", "128"]]
    status, _, err = run(capsys, *arguments, "48")
    assert status == 1
    assert "int4_group: expected 32, 64 or 128, got 48" in err


def test_types_by_default(capsys: pytest.CaptureFixture[str], text: str) -> None:
    status, out, _ = run(capsys, "demo-stories", "--text", text, "--limit", "9", "--json")
    assert status == 0
    assert [row["dtype"] for row in json.loads(out)["rows"]][:2] == ["float32", "bfloat16"]


def test_types_on_the_command_line() -> None:
    assert dtype_of_words(["bfloat16"]) == "bfloat16"
    assert dtype_of_words(["default=bfloat16,lm_head=int8"]) == {"default": "bfloat16", "lm_head": "int8"}
    assert dtype_of_words(["h.*.mlp = int8 , default=int4"]) == {"h.*.mlp": "int8", "default": "int4"}
    for wrong in ("a=", "=b", "a=b,c", "a=b,", "a=b,a=c", "="):
        with pytest.raises(errors.OptionError, match="NAME=TYPE") as caught:
            dtype_of_words([wrong])
        assert caught.value.option == "dtype"


def test_warnings_of_a_folder_are_shown_once(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    import numpy as np
    from safetensors.numpy import load_file, save_file

    folder = tiny.write_folder(tmp_path / "m", tokenizer=tiny.byte_level(320))
    tensors = load_file(folder / "model.safetensors")
    save_file(tensors | {"surplus": np.zeros(1, np.float32)}, folder / "model.safetensors")
    file = tmp_path / "text"
    file.write_text(TEXT, encoding="utf-8")
    status, _, err = run(
        capsys, str(folder), "--text", str(file), "--dtype", "bfloat16", "--dtype", "float16"
    )
    assert status == 0
    assert err == "fastdecode: warning: the checkpoint has tensors that the model does not use: surplus\n"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "expected at least one line of source TAB target in {}, got an empty file"),
        (b"\xef\xbb\xbf", "expected at least one line of source TAB target in {}, got an empty file"),
        (b"a\tb\nc\n", "expected two columns, source TAB target, in line 2 of {}, got no tab"),
        (b"a\tb\nc\td\te\n", "in line 2 of {}, got 3 columns"),
        (b"a\tb\n\nc\td\n", "in line 2 of {}, got an empty line"),
        (b"a\tb\n\t\n", "in line 2 of {}, got an empty line"),
        (b"a\tb\n\n", "in line 2 of {}, got an empty line"),
        (b"\n", "in line 1 of {}, got an empty line"),
        (b"\tb\n", "in line 1 of {}, got an empty source"),
        (b"a\t \n", "in line 1 of {}, got an empty target"),
        (b"a\tb\r\nc\td\r\n\xff\te", "expected UTF-8 in line 3 of {}, got byte 0xff"),
    ],
)
def test_lines_that_are_no_pairs(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, content: bytes, message: str
) -> None:
    file = tmp_path / "pairs.tsv"
    file.write_bytes(content)
    status, out, err = run(capsys, "demo-en-fr", "--text", str(file))
    assert (status, out) == (1, "")
    assert err.startswith("fastdecode: error: text: expected ")
    assert message.format(file) in err


def test_lines_end_as_they_may(tmp_path: Path) -> None:
    file = tmp_path / "pairs.tsv"
    for end in (b"\n", b"\r\n", b"\r"):
        for last in (end, b""):
            # A separator of Unicode is no end of a line, and what stands around a text belongs to it.
            file.write_bytes(b"\xef\xbb\xbfa \tb\xe2\x80\xa8c" + end + b"d\t e" + last)
            found = pairs_of(read_text(str(file)), str(file))
            assert found == [("a ", "b\u2028c"), ("d", " e")]


def test_files_that_are_no_text(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    file = tmp_path / "text"
    for content, message in (
        (b"caf\xe9 au lait", f"text: expected UTF-8 in line 1 of {file}, got byte 0xe9"),
        (b"a\nb\n\xf0\x9f", f"text: expected UTF-8 in line 3 of {file}, got byte 0xf0"),
        (b"", "texts: expected at least two tokens"),
    ):
        file.write_bytes(content)
        status, out, err = run(capsys, "demo-stories", "--text", str(file))
        assert (status, out) == (1, "")
        assert err.startswith(f"fastdecode: error: {message}")
    for path, message in ((tmp_path / "none", "No such file"), (tmp_path, "Is a directory")):
        status, _, err = run(capsys, "demo-stories", "--text", str(path))
        assert status == 1
        assert err.startswith(f"fastdecode: error: cannot read {path}: {message}")
    with pytest.raises(errors.FileReadError) as caught:
        read_text(str(tmp_path))
    assert caught.value.file == str(tmp_path)


def test_misuse(capsys: pytest.CaptureFixture[str], text: str, tsv: str, tmp_path: Path) -> None:
    for arguments, message in (
        (["demo-stories", "--text", text, "--dtype", "int3"], "dtype: expected "),
        (["demo-stories", "--text", text, "--dtype", "float16", "--dtype", "float16"], "dtypes: expected "),
        (["demo-stories", "--text", text, "--limit", "1"], "limit: expected an integer of at least 2"),
        (["demo-stories", "--text", text, "--stride", "0"], "stride: expected an integer of at least 1"),
        (["demo-stories", "--text", text, "--window", "513"], "window: expected at most 512 tokens"),
        (["demo-en-fr", "--text", tsv, "--stride", "9"], "stride: expected None in a model with an encoder"),
        (["demo-en-fr", "--text", tsv, "--window", "9"], "window: expected None in a model with an encoder"),
        (["demo-en-fr", "--text", text], "text: expected two columns"),
        ([str(tmp_path / "none"), "--text", text], f"model '{tmp_path / 'none'}': expected"),
    ):
        status, out, err = run(capsys, *arguments)
        assert (status, out) == (1, "")
        assert err.startswith(f"fastdecode: error: {message}"), err
    for arguments, message in (
        (["demo-stories"], "required: --text"),
        (["demo-stories", "--text", text, "--limit", "x"], "invalid int value: 'x'"),
        (["demo-stories", "--text", text, "--compute-dtype", "bfloat16"], "unrecognized arguments"),
    ):
        with pytest.raises(SystemExit, match="2"):
            run(capsys, *arguments)
        assert message in capsys.readouterr().err


def test_an_encoder_alone_is_refused(capsys: pytest.CaptureFixture[str], tmp_path: Path, text: str) -> None:
    folder = T5.write_tiny(tmp_path / "m", architectures=["T5EncoderModel"])
    status, _, err = run(capsys, str(folder), "--text", text)
    assert status == 1
    assert "expected a model with a decoder" in err


def test_the_command_in_a_pipe(text: str) -> None:
    """The table alone comes to stdout, and nothing to stderr where that is no terminal."""
    words = ["quality", "demo-stories", "--text", text, "--dtype", "bfloat16", "--num-threads", "1"]
    done = subprocess.run(
        [sys.executable, "-m", "fastdecode", *words], capture_output=True, text=True, check=True
    )
    assert len(done.stdout.splitlines()) == 4
    assert done.stderr == ""


def test_the_help_tells_of_the_command(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments, told in ((["--help"], "quality"), (["quality", "--help"], "source TAB target")):
        with pytest.raises(SystemExit):
            cli.main(arguments)
        assert told in " ".join(capsys.readouterr().out.split())
