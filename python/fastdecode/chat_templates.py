"""Which chat template: where a folder has them, and which one a call means.

As transformers 5.24 has it: chat_template.jinja and additional_chat_templates/*.jinja count before `chat_template` of
tokenizer_config.json, which is one text or a list of named ones. A call may name one of them, then a layout of
`chat_layouts`, or give the text of a template. Nothing here renders.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

from .arrays import brief
from .chat_layouts import LAYOUTS, Layout
from .errors import ChatTemplateError, FileReadError
from .folder import bad_field, optional_json

if TYPE_CHECKING:
    from pathlib import Path

# Names of the template that is taken where none is named: with tools, and without.
_WITH_TOOLS, _DEFAULT = "tool_use", "default"
# Bytes of a file that is read; real templates have at most some tens of thousands.
_MOST_BYTES = 4_000_000

# One template, several by name, or none.
Templates = str | Mapping[str, str] | None


class Chosen(NamedTuple):
    """A template or a layout, as a call means it.

    Attributes:
        template: Text of the template; None for a layout.
        layout: The layout; None for a template.
        name: What it is called in messages.
    """

    template: str | None
    layout: Layout | None
    name: str


def read_templates(folder: Path) -> Templates:
    """The templates of a folder.

    Raises:
        FileReadError: A file cannot be read.
        ConfigError: tokenizer_config.json has something else than templates, or a file is not text.
    """
    files: dict[str, str] = {}
    own = folder / "chat_template.jinja"
    if own.is_file():
        files[_DEFAULT] = read_file(own)
    others = folder / "additional_chat_templates"
    if others.is_dir():
        for file in sorted(others.glob("*.jinja")):
            files[file.name.removesuffix(".jinja")] = read_file(file)
    if files:
        return files[_DEFAULT] if [*files] == [_DEFAULT] else files
    path = folder / "tokenizer_config.json"
    return checked(optional_json(path).get("chat_template"), str(path))


def checked(given: Any, file: str) -> Templates:  # noqa: ANN401 (from JSON, or an attribute of an object)
    """The value of `chat_template`, however it is written.

    Raises:
        ConfigError: It is something else.
    """
    expected = "a text, or a list of objects with name and template"
    if given is None or isinstance(given, str):
        return given
    if isinstance(given, Mapping):
        named = {**given}
    elif isinstance(given, (list, tuple)) and all(
        isinstance(item, Mapping) and {"name", "template"} <= item.keys() for item in given
    ):
        named = {item["name"]: item["template"] for item in given}
    else:
        raise bad_field(file, "chat_template", expected, brief(given))
    if not all(isinstance(text, str) for pair in named.items() for text in pair):
        raise bad_field(file, "chat_template", expected, brief(given))
    return named


def choose(own: Templates, asked: Any, *, with_tools: bool, where: str) -> Chosen:  # noqa: ANN401 (checked here)
    """The template or layout that a call means.

    Args:
        own: Templates of the model.
        asked: A name of theirs, a layout's name, the text of a template, or None.
        with_tools: Whether the call has tools, be it none of them.
        where: The model, for error messages.

    Raises:
        ChatTemplateError: There is none, none of this name, or several without a default.
    """
    named = own if isinstance(own, Mapping) else {} if own is None else {_DEFAULT: own}
    layouts = ", ".join(LAYOUTS)
    if asked is None:
        for name in (_WITH_TOOLS, _DEFAULT) if with_tools else (_DEFAULT,):
            if name in named:
                return Chosen(named[name], None, f"the template {name!r} of {where}")
        if named:
            expected = f"chat_template= with one of {', '.join(sorted(named))}"
            raise _error(f"{where} has several chat templates and no default", expected, "none")
        expected = f"chat_template= with a layout ({layouts}) or the text of a template"
        raise _error(f"{where} has no chat template", expected, "none")
    if not isinstance(asked, str):
        raise _error("chat_template", _expected(named), brief(asked))
    if asked in named:
        return Chosen(named[asked], None, f"the template {asked!r} of {where}")
    if asked in LAYOUTS:
        return Chosen(None, LAYOUTS[asked], f"the layout {asked}")
    if "{{" in asked or "{%" in asked or "{#" in asked:
        return Chosen(asked, None, "the given template")
    # A text that says nothing about the messages is a name that is mistyped.
    raise _error(f"there is no chat template {brief(asked)}", _expected(named), brief(asked[:80]))


def _expected(named: Mapping[str, str]) -> str:
    own = f"a template of the model ({', '.join(sorted(named))}), " if named else ""
    return f"{own}a layout ({', '.join(LAYOUTS)}) or the text of a template"


def _error(what: str, expected: str, got: str) -> ChatTemplateError:
    message = f"{what}: expected {expected}, got {got}"
    return ChatTemplateError(
        message, option="chat_template", expected=expected, got=got, line=None, message=what
    )


def read_file(file: Path) -> str:
    """The text of a template in a file.

    Raises:
        FileReadError: The file cannot be read.
        ConfigError: It is no text, or too long.
    """
    try:
        if file.stat().st_size > _MOST_BYTES:
            raise bad_field(str(file), "", f"a template of at most {_MOST_BYTES} bytes", "more")
        # Line ends become newlines, as in transformers.
        return file.read_text(encoding="utf-8")
    except OSError as error:
        raise FileReadError(
            f"cannot read {file}: {error.strerror}", file=str(file), errno=error.errno
        ) from error
    except UnicodeDecodeError as error:
        raise bad_field(str(file), "", "a template in UTF-8", str(error)) from error
