"""`fastdecode chat`: turns from a terminal or a pipe to a `Chat`, and the answers as they come.

Answers go to stdout, everything else to stderr. In a pipe every line is a turn, and nothing is asked for. Nothing here
knows models beyond their public interface.
"""

from __future__ import annotations

import contextlib
import json
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import errors
from .arrays import bad_option

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from .chat import Chat
    from .results import Chunk

_HELP = """\
/system TEXT   set the system message (/system alone shows it, /system - takes it away)
/undo          take back the last turn
/reset         begin anew, with the same system message
/save FILE     write the messages as JSON
/set NAME VALUE  set an option of generation (/set NAME takes it away, /set alone shows all)
/stats         show statistics behind every answer, or no longer
/help          show this
/exit          leave, as the end of the input does
A line that begins with // is said with one of the slashes. Ctrl-C stops an answer."""


class Session:
    """A chat at a terminal or in a pipe.

    Args:
        chat: The chat.
        options: Options of every turn.
        is_asked: Whether somebody sits at a terminal, to be asked for each line.
        shows_statistics: Whether there are statistics behind every answer.
        as_text: Makes text of what Python could not read in the locale's encoding.
    """

    def __init__(
        self,
        chat: Chat,
        options: dict[str, Any],
        *,
        is_asked: bool,
        shows_statistics: bool,
        as_text: Callable[[str], str],
    ) -> None:
        self._chat = chat
        self._model: Any = chat._model
        self._options = options
        self._is_asked = is_asked
        self._shows_statistics = shows_statistics
        self._as_text = as_text
        self._failed = False
        self._commands: dict[str, Callable[[str], None]] = {
            "system": self._system,
            "undo": self._undo,
            "reset": self._reset,
            "save": self._save,
            "set": self._set,
            "stats": self._stats,
            "help": self._help,
        }

    def run(self) -> bool:
        """Reads turns until the input ends.

        Returns:
            Whether every line of a pipe was answered; at a terminal always True.
        """
        if self._is_asked:
            with contextlib.suppress(ImportError):
                import readline  # noqa: F401 (`input` edits lines with it)
            _tell("Write /help for what there is beside talking, and /exit to leave.")
        while True:
            # The loop stands inside the `try`, so that Ctrl-C between two of its steps is heard here, too.
            try:
                while (line := self._line()) is not None and line.strip() not in ("/exit", "/quit"):
                    self._try(line)
                return self._is_asked or not self._failed
            except KeyboardInterrupt:
                if not self._is_asked:
                    raise
                _tell("\n(/exit leaves)")

    def _try(self, line: str) -> None:
        """Takes a line, and says what is wrong with it."""
        try:
            self._take(line)
        except errors.FastdecodeError as error:
            self._failed = True
            _tell(f"fastdecode: error: {error}")
            if isinstance(error, errors.ContextLengthError):
                _tell("(/undo takes a turn back, /reset all of them)")

    def _line(self) -> str | None:
        """The next line, or None at the end of the input."""
        if sys.stdin is None:
            raise bad_option("stdin", "text", "a stdin that is closed")
        try:
            if self._is_asked and sys.stdout.isatty():
                return self._as_text(input("> "))
            if self._is_asked:
                print("> ", end="", file=sys.stderr, flush=True)
            line = sys.stdin.readline()
        except EOFError:
            print()
            return None
        except UnicodeDecodeError as error:
            raise bad_option("stdin", f"text in {sys.stdin.encoding}", str(error)) from error
        return self._as_text(line.removesuffix("\n")) if line else None

    def _take(self, line: str) -> None:
        """Answers a line, or does what it asks for."""
        if not line.strip():
            return
        if line.startswith("/") and not line.startswith("//"):
            name, _, rest = line[1:].partition(" ")
            command = self._commands.get(name)
            if command is None:
                raise bad_option(
                    "command", f"one of {', '.join('/' + name for name in self._commands)}", f"/{name}"
                )
            command(rest.strip())
            return
        self._answer(line.removeprefix("/") if line.startswith("//") else line)

    def _answer(self, text: str) -> None:
        began, first, tokens = time.perf_counter(), 0.0, 0
        try:
            for chunk in self._pieces(text):
                first = first or time.perf_counter()
                tokens += len(chunk.token_ids)
                print(str(chunk), end="", flush=True)
        except KeyboardInterrupt:
            print(flush=True)
            _tell("(stopped)")
            return
        print(flush=True)
        if self._shows_statistics:
            end = time.perf_counter()
            rate = (tokens - 1) / (end - first) if tokens > 1 and end > first else 0.0
            _tell(
                f"first text after {(first or end) - began:.2f} s; {tokens} new tokens in {end - began:.2f} s; "
                f"{rate:.1f} tokens/s"
            )

    def _pieces(self, text: str) -> Iterable[Chunk]:
        """The answer as it comes; all at once where beams are asked for."""
        from .command_pieces import has_beams
        from .results import Chunk

        if not has_beams(self._model, self._options):
            return self._chat.stream(text, **self._options)
        return [Chunk(self._chat.send(text, **self._options), [], 0, "length")]

    def _system(self, text: str) -> None:
        messages = self._chat.messages
        held = messages[0] if messages and messages[0].get("role") == "system" else None
        if not text:
            _tell("none" if held is None else str(held["content"]))
            return
        rest = messages if held is None else messages[1:]
        self._chat.messages = rest if text == "-" else [{"role": "system", "content": text}, *rest]

    def _undo(self, _: str) -> None:
        messages = self._chat.messages
        asked = [at for at, message in enumerate(messages) if message.get("role") == "user"]
        if not asked:
            raise bad_option("/undo", "a turn before it", "none")
        del messages[asked[-1] :]

    def _reset(self, _: str) -> None:
        self._chat.messages = [
            message for message in self._chat.messages[:1] if message.get("role") == "system"
        ]

    def _save(self, name: str) -> None:
        if not name:
            raise bad_option("/save", "the name of a file", "none")
        text = json.dumps(self._chat.messages, ensure_ascii=False, indent=2)
        try:
            Path(name).expanduser().write_text(text + "\n", encoding="utf-8")
        except OSError as error:
            raise errors.FileReadError(
                f"cannot write {name}: {error.strerror}", file=name, errno=error.errno
            ) from error
        _tell(f"{len(self._chat.messages)} messages are in {name}")

    def _set(self, text: str) -> None:
        from .chat_options import asked, divided
        from .options import resolve

        name, _, value = text.partition(" ")
        if not name:
            _tell(json.dumps(self._options, ensure_ascii=False, default=str))
            return
        options = {key: held for key, held in self._options.items() if key != name}
        if value.strip():
            options[name] = _value(value.strip())
        elif name not in self._options:
            raise bad_option(name, "a value behind the name", "none")
        chat, others = divided(options)
        asked(chat)
        resolve(others, self._model._defaults, 1, self._model.info()["context_length"])
        self._options = options

    def _stats(self, _: str) -> None:
        self._shows_statistics = not self._shows_statistics

    def _help(self, _: str) -> None:
        _tell(_HELP)


def template_of(model: Any, given: str | None) -> str | None:  # noqa: ANN401 (a LanguageModel)
    """The value of `chat_template` that a name, or the name of a file, stands for.

    Args:
        model: A name of its folder, or of a layout, counts before a file.
        given: What the caller wrote.

    Raises:
        ChatTemplateError: It is neither, or none is given and the model has none.
        FileReadError: The file cannot be read.
    """
    from .chat_calls import Reading
    from .chat_options import Asked
    from .chat_templates import read_file

    if model.has_encoder:
        if given is not None:
            raise bad_option("chat_template", "none with a model that has an encoder", given)
        return None
    try:
        Reading(model, Asked(given))
    except errors.ChatTemplateError:
        if given is None or not Path(given).is_file():
            raise
        return read_file(Path(given))
    return given


def _value(text: str) -> Any:  # noqa: ANN401 (of whatever type the option is)
    """A value as JSON has it, or else as a text; True, False and None as Python has them."""
    known = {"True": True, "False": False, "None": None}
    if text in known:
        return known[text]
    try:
        return json.loads(text)
    except ValueError:
        return text


def _tell(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
