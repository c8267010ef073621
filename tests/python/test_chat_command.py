"""`fastdecode chat`: in a pipe, at a terminal, and what its commands do."""

from __future__ import annotations

import contextlib
import io
import json
import os
import pty
import select
import shutil
import signal
import subprocess
import sys
import time
import warnings
from pathlib import Path
from typing import Any

import fastdecode
import pytest
import tiny
from chat_cases import assistant, system, user
from fastdecode import cli

LENGTH = ("--max-new-tokens", "6", "--no-do-sample")
OPTIONS: Any = {"max_new_tokens": 6, "do_sample": False}


def chat(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, text: str, *arguments: str
) -> tuple[int, str, str]:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(text.encode()), encoding="utf-8"))
    try:
        status = cli.main(["chat", *arguments])
    except SystemExit as error:
        status = int(error.code or 0)
    captured = capsys.readouterr()
    return status, captured.out, captured.err


@pytest.fixture
def say(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Any:
    def said(text: str, *arguments: str) -> tuple[int, str, str]:
        return chat(capsys, monkeypatch, text, *arguments)

    return said


@pytest.fixture(scope="module")
def demo() -> fastdecode.CausalLM:
    return fastdecode.CausalLM.load("demo-stories", num_threads=1)


def test_every_line_of_a_pipe_is_a_turn(say: Any, demo: fastdecode.CausalLM) -> None:
    talk = fastdecode.Chat(demo, system="In a wood.")
    answers = [talk.send(text, **OPTIONS) for text in ("Who are you?", "And why?", "/x")]
    status, out, err = say(
        "Who are you?\n\n   \nAnd why?\n//x", "demo-stories", "--system", "In a wood.", *LENGTH
    )
    assert (status, out, err) == (0, "".join(answer + "\n" for answer in answers), "")
    assert say("", "demo-stories") == (0, "", "")
    assert say("a\n/exit\nb\n", "demo-stories", *LENGTH)[1].count("\n") == 1


def test_an_encoder_decoder_answers_every_line(say: Any) -> None:
    lines = ["translate English to French: I am happy.", "translate English to French: Where is he?"]
    model = fastdecode.load("demo-en-fr", num_threads=1)
    expected = "".join(model.generate(line) + "\n" for line in lines)
    assert say("\n".join(lines), "demo-en-fr") == (0, expected, "")
    status, _, err = say("x", "demo-en-fr", "--chat-template", "plain")
    assert (status, "none with a model that has an encoder" in err) == (1, True)


def test_templates_by_name_and_file(say: Any, demo: fastdecode.CausalLM, tmp_path: Path) -> None:
    plain = demo.generate([user("Hi")], chat_template="plain", **OPTIONS)
    assert say("Hi", "demo-stories", "--chat-template", "plain", *LENGTH) == (0, plain + "\n", "")
    own = demo.generate([user("Hi")], **OPTIONS)
    assert say("Hi", "demo-stories", "--chat-template", "default", *LENGTH) == (0, own + "\n", "")
    file = tmp_path / "mine.jinja"
    template = "{% for m in messages %}{{ m.role }} says {{ m.content }}. {% endfor %}"
    file.write_text(template)
    mine = demo.generate([user("Hi")], chat_template=template, **OPTIONS)
    assert say("Hi", "demo-stories", "--chat-template", str(file), *LENGTH) == (0, mine + "\n", "")
    status, out, err = say("Hi", "demo-stories", "--chat-template", "mine.jinja")
    assert (status, out) == (1, "")
    assert "default" in err
    assert "chatml, alpaca, vicuna, plain" in err
    file.write_bytes(b"\xff")
    assert "UTF-8" in say("Hi", "demo-stories", "--chat-template", str(file))[2]


def test_a_folder_without_a_template_says_so_first(say: Any, folder: Path) -> None:
    status, out, err = say("Hi", str(folder))
    assert (status, out) == (1, "")
    assert "no chat template" in err
    assert say("Hi", str(folder), "--chat-template", "plain", *LENGTH)[0] == 0


def test_a_search_with_beams_warns_once(say: Any, demo: fastdecode.CausalLM, tmp_path: Path) -> None:
    """Of what beams do not look for, however many turns there are; by a flag, by `/set`, and by the folder."""
    beams: Any = {**OPTIONS, "num_beams": 2}
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        first = demo.generate([user("a")], chat_template="plain", **beams)
        second = demo.generate([user("a"), assistant(first), user("b")], chat_template="plain", **beams)
    told = {f"fastdecode: warning: {warning.message}" for warning in caught}
    assert any("which a search with beams does not look for" in line for line in told)
    folder = tmp_path / "beams"
    shutil.copytree(Path(fastdecode.__file__).parent / "demo" / "demo-stories", folder)
    asked = json.loads((folder / "generation_config.json").read_text())
    (folder / "generation_config.json").write_text(json.dumps(asked | {"num_beams": 2}))
    plain = ("--chat-template", "plain", *LENGTH)
    for text, arguments in (
        ("a\nb", ("demo-stories", "--num-beams", "2", *plain)),
        ("/set num_beams 2\na\nb", ("demo-stories", *plain)),
        ("a\nb", (str(folder), *plain)),
    ):
        status, out, err = say(text, *arguments)
        assert (status, out) == (0, f"{first}\n{second}\n"), arguments
        assert sorted(err.splitlines()) == sorted(told), arguments


def test_beams_that_cannot_be_are_told_once(say: Any) -> None:
    status, out, err = say("a", "demo-stories", "--num-beams", "0", *LENGTH)
    assert (status, out) == (1, "")
    assert (
        err == "fastdecode: error: num_beams: expected an integer of at least 1 (1 means no beams), got 0\n"
    )


def test_commands(say: Any, demo: fastdecode.CausalLM, tmp_path: Path) -> None:
    file = tmp_path / "talk.json"
    first = demo.generate([user("a")], **OPTIONS)
    second = demo.generate([user("a"), assistant(first), user("b")], **OPTIONS)
    third = demo.generate([user("a"), assistant(first), user("c")], **OPTIONS)
    last = demo.generate([system("S"), user("d")], **OPTIONS)
    status, out, err = say(
        f"a\nb\n/undo\nc\n/save {file}\n/system\n/system S\n/reset\n/system\nd\n/system -\n/system",
        "demo-stories",
        *LENGTH,
    )
    assert (status, out) == (0, "".join(text + "\n" for text in (first, second, third, last)))
    assert json.loads(file.read_text()) == [user("a"), assistant(first), user("c"), assistant(third)]
    assert err.splitlines() == [f"4 messages are in {file}", "none", "S", "none"]
    status, out, err = say(
        "/set max_new_tokens 2\na\n/set\n/set max_new_tokens\n/set\n/stats\na\n/help", "demo-stories"
    )
    assert status == 0
    assert '{"max_new_tokens": 2}\n{}\n' in err
    assert "tokens/s" in err
    for name in ("/system", "/undo", "/reset", "/save", "/set", "/help"):
        assert name in err
    variables = say('/set chat_variables {"x": 1}\n/set do_sample False\n/set stop zz\n/set', "demo-stories")
    assert '{"chat_variables": {"x": 1}, "do_sample": false, "stop": "zz"}' in variables[2]


def test_lines_that_fail(say: Any, tmp_path: Path) -> None:
    for line, match in (
        ("/nothing", "one of /system"),
        ("/undo", "a turn before it"),
        ("/save", "the name of a file"),
        (f"/save {tmp_path}", "cannot write"),
        ("/set nothing 3", "unknown option"),
        ("/set max_new_tokens x", "at least 1"),
        ("/set tools 3 4", "tools"),
        ("/set top_k", "a value behind"),
        ("word " * 2000, "at most 512"),
    ):
        status, out, err = say(f"{line}\nHi", "demo-stories", *LENGTH)
        if line == "/set tools 3 4":
            # What a tool is, the template's own call looks at.
            continue
        assert match in err, line
        assert (status, out.count("\n")) == (1, 1), line


def test_options_of_the_command_line(say: Any, demo: fastdecode.CausalLM) -> None:
    options: Any = {"do_sample": True, "seed": 3, "temperature": 2.0, "max_new_tokens": 8}
    expected = demo.generate([user("Hi")], **options)
    flags = ["--do-sample", "--seed", "3", "--temperature", "2.0", "--max-new-tokens", "8"]
    assert say("Hi", "demo-stories", *flags) == (0, expected + "\n", "")
    status, out, err = say("Hi", "demo-stories", *LENGTH, "--stats")
    assert (status, out.count("\n"), "tokens/s" in err) == (0, 1, True)
    with pytest.warns(fastdecode.errors.FastdecodeWarning):
        beams = demo.generate([user("Hi")], num_beams=2, max_new_tokens=4, do_sample=False)
    status, out, err = say(
        "Hi", "demo-stories", "--num-beams", "2", "--max-new-tokens", "4", "--no-do-sample"
    )
    assert (status, out) == (0, beams + "\n")
    assert "warning" in err


class Terminal:
    """The command at a terminal of its own."""

    def __init__(self, *arguments: str) -> None:
        self.end, child = pty.openpty()
        self.process = subprocess.Popen(
            [sys.executable, "-m", "fastdecode", "chat", *arguments],
            stdin=child,
            stdout=child,
            stderr=child,
            preexec_fn=tiny.hear_ctrl_c,
            start_new_session=True,
            env={**os.environ, "TERM": "dumb"},
        )
        os.close(child)
        self.seen = ""

    def wait_for(self, text: str, seconds: float = 60) -> str:
        """Reads until a text has come; what came before and with it."""
        until = time.monotonic() + seconds
        while text not in self.seen:
            assert time.monotonic() < until, f"{text!r} is not in {self.seen!r}"
            if select.select([self.end], [], [], 1)[0]:
                try:
                    self.seen += os.read(self.end, 65536).decode(errors="replace")
                except OSError:
                    assert text in self.seen, self.seen
        at = self.seen.index(text) + len(text)
        found, self.seen = self.seen[:at], self.seen[at:]
        return found

    def write(self, text: str) -> None:
        os.write(self.end, text.encode())

    def interrupt(self, answer: str) -> None:
        """Presses Ctrl-C until it is answered: `input` misses one between its prompt and its wait for a key."""
        for _ in range(30):
            os.kill(self.process.pid, signal.SIGINT)
            with contextlib.suppress(AssertionError):
                self.wait_for(answer, 2)
                return
        raise AssertionError(f"{answer!r} is not in {self.seen!r}")


def test_a_terminal() -> None:
    endless = "--min-new-tokens", "400", "--max-new-tokens", "400"
    terminal = Terminal("demo-stories", *endless, "--num-threads", "1")
    try:
        terminal.wait_for("> ")
        terminal.interrupt("(/exit leaves)")
        terminal.wait_for("> ")
        terminal.write("Hello\n")
        terminal.wait_for("Hello")
        # It comes within the answer, or behind it where that was quick; the program goes on.
        os.kill(terminal.process.pid, signal.SIGINT)
        terminal.wait_for("> ")
        terminal.write("/system\n")
        terminal.wait_for("none")
        terminal.write("/exit\n")
        assert terminal.process.wait(60) == 0
    finally:
        terminal.process.kill()
        os.close(terminal.end)


def test_ctrl_c_in_an_answer(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, demo: fastdecode.CausalLM
) -> None:
    from fastdecode.chat_command import Session

    talk = fastdecode.Chat(demo)
    session = Session(talk, OPTIONS, is_asked=False, shows_statistics=False, as_text=str)
    real = talk.stream

    def interrupted(*arguments: Any, **options: Any) -> Any:
        stream = real(*arguments, **options)
        yield next(stream)
        stream.close()
        raise KeyboardInterrupt

    monkeypatch.setattr(talk, "stream", interrupted)
    monkeypatch.setattr(sys, "stdin", io.StringIO("Hi\n/help\n"))
    assert session.run()
    captured = capsys.readouterr()
    assert "(stopped)" in captured.err
    assert "/reset" in captured.err
    assert talk.messages[0] == user("Hi")
    assert talk.messages[1]["content"] == captured.out.removesuffix("\n")


def test_ctrl_c_between_a_line_and_its_answer(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, demo: fastdecode.CausalLM
) -> None:
    from fastdecode.chat_command import Session

    def interrupted(_: str) -> None:
        raise KeyboardInterrupt

    for is_asked in (True, False):
        session = Session(
            fastdecode.Chat(demo), OPTIONS, is_asked=is_asked, shows_statistics=False, as_text=str
        )
        monkeypatch.setattr(session, "_answer", interrupted)
        monkeypatch.setattr(sys, "stdin", io.StringIO("Hi\n/system\n"))
        if is_asked:
            assert session.run()
            captured = capsys.readouterr()
            assert captured.err.index("(/exit leaves)") < captured.err.index("none")
        else:
            # A pipe has nobody to ask: the command ends as a program that Ctrl-C ended.
            with pytest.raises(KeyboardInterrupt):
                session.run()
