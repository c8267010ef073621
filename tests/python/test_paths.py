"""Paths that are no UTF-8, which Python's texts hold as lone surrogates: whatever is read from there, or written.

Nothing of a folder depends on its name, and what is wrong with one is told as anywhere else.
"""

from __future__ import annotations

import io
import json
import os
import pickle
import shutil
import sys
from pathlib import Path
from typing import Any

import fastdecode
import pytest
import tiny
import tokenizers
from fastdecode import cli, errors
from peft_folders import adapter, gpt2
from tokenizer_folders import trained

ODD = os.fsdecode(b"mod\xe9l")
TEXT = "Once upon a time, said the wolf. Où vas-tu?"
GREEDY: Any = {"max_new_tokens": 4, "do_sample": False}
BYTES = ("vocab.json", "merges.txt")


@pytest.fixture
def odd(tmp_path: Path) -> Path:
    """A folder whose name is no text."""
    folder = tmp_path / ODD
    try:
        folder.mkdir()
    except OSError:
        pytest.skip("NAMES THAT ARE NO UTF-8 ARE NOT TESTED: this file system takes none")
    return folder


def with_vocabulary(folder: Path, cls: str) -> Path:
    """A model whose tokenizer is read from a vocabulary, of a class."""
    tiny.write_folder(folder)
    settings = {"tokenizer_class": cls}
    if cls == "OpenAIGPTTokenizer":
        settings["unk_token"] = tiny.END  # of which the vocabulary has one
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    if cls == "BertTokenizer":
        made = tokenizers.Tokenizer.from_str(
            trained("words", 330, ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"))
        )
        tokens = sorted(made.get_vocab(), key=made.get_vocab().__getitem__)
        # Spaces at the end of a line do not belong to its token, and a line may end as in Windows.
        lines = [f"{token}\u3000\r\n" if place % 3 else f"{token} \n" for place, token in enumerate(tokens)]
        (folder / "vocab.txt").write_bytes("".join(lines).encode())
        return folder
    model: Any = tiny.byte_level(320).model
    model.save(str(folder))
    merges = (folder / "merges.txt").read_text(encoding="utf-8")
    (folder / "merges.txt").write_text(merges.replace("\n", "\r\n"), encoding="utf-8", newline="")
    return folder


def test_a_whole_folder(odd: Path, folder: Path) -> None:
    shutil.copytree(folder, odd, dirs_exist_ok=True)
    expected = fastdecode.load(folder).run(TEXT, **GREEDY)
    for where in (odd, str(odd)):
        model = fastdecode.load(where, num_threads=1)
        assert model.run(TEXT, **GREEDY).token_ids == expected.token_ids
        assert model.generate(TEXT, **GREEDY) == expected.text
    again = pickle.loads(pickle.dumps(model))
    assert again.generate(TEXT, **GREEDY) == expected.text
    assert [row.dtype for row in model.quality(TEXT, dtypes="float16").rows] == ["float32", "float16"]
    talk = "{% for m in messages %}{{ m.content }}{% endfor %}"
    (odd / "chat_template.jinja").write_text(talk)
    said: Any = [{"role": "user", "content": TEXT}]
    assert fastdecode.load(odd).generate(said, **GREEDY) == model.generate(TEXT, **GREEDY)
    assert fastdecode.pipeline("text-generation", odd)(TEXT, **GREEDY)


@pytest.mark.parametrize("form", ["pytorch_model.bin", "shards"])
def test_weights_in_other_files(odd: Path, tmp_path: Path, form: str) -> None:
    import torch
    from safetensors.torch import load_file, save_file

    plain = tiny.write_folder(tmp_path / "plain")
    tensors = load_file(plain / "model.safetensors")
    shutil.copy(plain / "config.json", odd)
    if form == "shards":
        index = {}
        for number, (name, tensor) in enumerate(tensors.items()):
            file = f"model-{number + 1:05}-of-{len(tensors):05}.safetensors"
            save_file({name: tensor}, tmp_path / file)
            (tmp_path / file).rename(odd / file)
            index[name] = file
        (odd / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))
    else:
        with (odd / form).open("wb") as stream:
            torch.save(tensors, stream)
    ids = [5, 6, 7]
    assert (
        fastdecode.load(odd).run(ids, **GREEDY).token_ids
        == fastdecode.load(plain).run(ids, **GREEDY).token_ids
    )


@pytest.mark.parametrize(
    "cls", ["GPT2Tokenizer", "Qwen2Tokenizer", "GPTNeoXTokenizer", "OpenAIGPTTokenizer", "BertTokenizer"]
)
def test_vocabularies(odd: Path, tmp_path: Path, cls: str) -> None:
    plain = with_vocabulary(tmp_path / "plain", cls)
    shutil.copytree(plain, odd, dirs_exist_ok=True)
    one, other = (fastdecode.load(folder).tokenizer for folder in (plain, odd))
    given = fastdecode.load(plain, tokenizer=odd).tokenizer
    for text in (TEXT, "", "une chère petite fille", "  a  b "):
        ids = one.encode(text)
        assert other.encode(text) == given.encode(text) == ids
        assert other.decode(ids) == one.decode(ids)
    assert len(one.encode(TEXT)) > 5
    assert other.vocab_size == one.vocab_size


@pytest.mark.parametrize(
    ("name", "content", "got"),
    [
        ("vocab.json", b"{", "property name"),
        ("vocab.json", b"[]", "list"),
        ("vocab.json", b"\xff", "utf-8"),
        ("vocab.json", b'{"a": 1.5}', "1.5 for 'a'"),
        ("vocab.json", b'{"a": -1}', "-1 for 'a'"),
        ("merges.txt", b"#version: 0.2\nthe\n", "1 in merge 1"),
        ("merges.txt", b"a b c\n", "3 in merge 1"),
        ("merges.txt", b"\xff \xff\n", "utf-8"),
        ("merges.txt", b"no-such token\n", "out of vocabulary"),
        ("vocab.txt", b"[UNK]\n\xff\n", "utf-8"),
    ],
)
def test_vocabularies_that_cannot_be(odd: Path, tmp_path: Path, name: str, content: bytes, got: str) -> None:
    plain = with_vocabulary(tmp_path / "plain", "BertTokenizer" if name == "vocab.txt" else "GPT2Tokenizer")
    (plain / name).write_bytes(content)
    shutil.copytree(plain, odd, dirs_exist_ok=True)
    for folder in (plain, odd):
        with pytest.raises(errors.TokenizerError) as caught:
            _ = fastdecode.load(folder).tokenizer
        assert caught.value.file == str(folder / name)
        assert caught.value.expected
    assert got in str(caught.value.got)


def test_adapters(odd: Path, tmp_path: Path) -> None:
    base = gpt2(tmp_path / "base")
    added = adapter(base, tmp_path / "adapter", spread=0.5)
    expected = fastdecode.load(base, adapter=added).run([5, 6], **GREEDY).token_ids
    shutil.copytree(added, odd, dirs_exist_ok=True)
    shutil.copytree(base, tmp_path / (ODD + "base"))
    for model in (base, tmp_path / (ODD + "base")):
        loaded = fastdecode.load(model, adapter=odd)
        assert loaded.run([5, 6], **GREEDY).token_ids == expected
        assert pickle.loads(pickle.dumps(loaded)).run([5, 6], **GREEDY).token_ids == expected
        assert loaded.info()["adapters"] == [str(odd)]
    with pytest.raises(errors.FileMissingError) as caught:
        fastdecode.load(base, adapter=tmp_path / (ODD + "base"))
    assert ODD in str(caught.value.file)


@pytest.mark.parametrize(
    "file",
    ["config.json", "generation_config.json", "tokenizer_config.json", "model.safetensors", "tokenizer.json"],
)
def test_files_that_cannot_be_read(odd: Path, folder: Path, file: str) -> None:
    shutil.copytree(folder, odd, dirs_exist_ok=True)
    (odd / file).write_bytes(b"{")
    with pytest.raises(errors.FastdecodeError, match=r"expected .*, got") as caught:
        fastdecode.load(odd).generate(TEXT, **GREEDY)
    assert file in str(caught.value)


def test_what_is_not_there(odd: Path, folder: Path) -> None:
    missing: Any
    for missing in (f"{odd}-not", f"org/{ODD}"):
        with pytest.raises(errors.ModelNotFoundError, match="expected an existing folder"):
            fastdecode.load(missing)
        with pytest.raises(errors.ModelNotFoundError, match="adapter: "):
            fastdecode.load(folder, adapter=missing)
        with pytest.raises(errors.OptionError, match="tokenizer: expected"):
            fastdecode.load(folder, tokenizer=missing)
    with pytest.raises(errors.FileReadError):
        fastdecode.load(odd)


def test_the_command(
    odd: Path, folder: Path, capsysbinary: pytest.CaptureFixture[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(folder, odd, dirs_exist_ok=True)
    (odd / "text.txt").write_text(TEXT * 3)
    (odd / "talk.jinja").write_text("{% for m in messages %}{{ m.content }}{% endfor %}")
    length = ["--max-new-tokens", "4", "--no-do-sample"]
    name = str(odd)

    def run(*arguments: str, said: bytes = b"") -> tuple[int, bytes, bytes]:
        monkeypatch.setattr(
            sys, "stdin", io.TextIOWrapper(io.BytesIO(said), "utf-8", errors="surrogateescape")
        )
        try:
            status = cli.main(arguments)
        except SystemExit as error:
            status = int(error.code or 0)
        captured = capsysbinary.readouterr()
        return status, captured.out, captured.err

    wanted = fastdecode.load(folder).generate(TEXT, **GREEDY).encode() + b"\n"
    for more in ([], ["--tokenizer", name], ["--tokenizer", f"{name}/tokenizer.json"]):
        assert run("run", name, TEXT, "--quiet", *length, *more) == (0, wanted, b"")
    talk = ["chat", name, "--chat-template", f"{name}/talk.jinja", *length]
    assert run(*talk, said=TEXT.encode()) == (0, wanted, b"")
    status, out, _ = run("info", name, "--json")
    assert (status, json.loads(out)["model"]["name"]) == (0, name)
    assert run("info", name)[0] == 0
    status, out, _ = run("quality", name, "--text", f"{name}/text.txt", "--dtype", "float16")
    assert (status, b"float16" in out) == (0, True)
    for arguments in (
        ["run", f"{name}-not", "x"],
        ["run", str(folder), "x", "--adapter", name],
        ["run", str(folder), "x", "--tokenizer", f"{name}-not"],
        ["chat", name, "--chat-template", f"{name}-not"],
        ["quality", name, "--text", f"{name}-not"],
    ):
        status, _, told = run(*arguments)
        assert status == 1
        assert told.startswith(b"fastdecode: error: ")
        assert b"mod\\udce9l" in told
