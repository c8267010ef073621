"""A template and a conversation to text, as `apply_chat_template` of transformers 5.24 renders them.

jinja2 is an extra (`fastdecode[chat]`), so that it is looked for here, when a template is first rendered. What a
template raises becomes a `ChatTemplateError` with its line. Nothing here knows tokenizers or models.
"""

from __future__ import annotations

import functools
import re
from typing import TYPE_CHECKING, Any

from .arrays import bad_option, brief, spelt
from .chat_bounds import DEADLINE, TimeUp, TooMuch, bounded
from .chat_messages import REASONING, plain, with_reasoning
from .errors import ChatTemplateError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from types import TracebackType

    import jinja2

    from .chat_bounds import Meter

# Older sandboxes leak.
_OLDEST = (3, 1, 6)
# Stands behind the text of a message that is to be continued; the text is cut at it.
_MARK = "CONTINUE_FINAL_MESSAGE_TAG "


def render(
    template: str,
    messages: Sequence[Mapping[str, Any]],
    *,
    name: str,
    tools: list[Any] | None,
    documents: Any,  # noqa: ANN401 (checked here)
    add_generation_prompt: bool,
    continue_final_message: bool | str,
    variables: Mapping[str, Any],
) -> str:
    """The text of a conversation.

    Args:
        template: Text of the template.
        messages: The messages as dictionaries.
        name: What the template is called in errors.
        tools: JSON schemas, or None.
        documents: A list of dictionaries, or None.
        add_generation_prompt: Whether the template opens an answer.
        continue_final_message: Whether the last message is left open, or the name of its field that is.
        variables: What the template sees beside these: special tokens, and whatever the caller gives.

    Raises:
        ChatTemplateError: The template fails, takes too long or makes too much, or jinja2 is missing or too old.
        OptionError: An argument cannot be used.
    """
    if documents is not None and not (
        isinstance(documents, (list, tuple)) and all(isinstance(item, dict) for item in documents)
    ):
        raise bad_option("documents", "a list of dictionaries with title and text, or None", brief(documents))
    if add_generation_prompt and continue_final_message:
        expected = "False where add_generation_prompt is True: an answer is continued or opened"
        raise bad_option("continue_final_message", expected, brief(continue_final_message))
    chat = [with_reasoning(message) for message in plain(list(messages))]
    final = None
    if continue_final_message:
        final = _marked(chat, continue_final_message, template)
    values = {
        **plain(dict(variables)),
        "messages": chat,
        "tools": plain(tools),
        "documents": plain(documents),
        "add_generation_prompt": bool(add_generation_prompt),
    }
    text = _run(template, values, name)
    return text if final is None else _cut(text, final, name)


def literal_text(template: str, name: str) -> str:
    """The texts within a template, joined by a character that no token has.

    Raises:
        ChatTemplateError: It is no template, or jinja2 is missing or too old.
    """
    sandbox = _sandbox()
    try:
        found: str = bounded(lambda _: sandbox.literals(template))
    except (TimeUp, Exception) as error:
        raise _failed(error, name) from error
    return found


def _marked(chat: list[Any], field: bool | str, template: str) -> str:  # noqa: FBT001 (as it is given)
    """Puts the mark behind the last message's text; returns that text."""
    key = field if isinstance(field, str) else "content"
    option = "continue_final_message"
    text = chat[-1].get(key)
    if text is None:
        raise bad_option(
            option, f"a last message with {key!r}", f"one with {', '.join(map(brief, chat[-1]))}"
        )
    fields = [name for name in REASONING if chat[-1].get(name) == text] if key in REASONING else [key]
    if not any(name in template for name in fields):
        raise bad_option(option, "a field that the template reads", brief(key))
    if isinstance(text, (list, tuple)):
        part = next((part for part in reversed(text) if isinstance(part, dict) and "text" in part), None)
        if part is None:
            raise bad_option(option, "a last message with a text", brief(text))
        text = part["text"]
        if isinstance(text, str):
            part["text"] = text + _MARK
    elif isinstance(text, str):
        for name in fields:
            chat[-1][name] = text + _MARK
    if not isinstance(text, str):
        raise bad_option(option, "a last message with a text", brief(text))
    return text


def _cut(text: str, final: str, name: str) -> str:
    """The text up to where the last message ends."""
    mark = _MARK.strip()
    if final.strip() not in text or mark not in text:
        expected = f"a last message whose text {name} writes as it is"
        raise bad_option("continue_final_message", expected, "a text that is not in what it writes")
    at = text.rindex(mark)
    # Where the space behind the mark is gone, the template trims, and would have trimmed the text itself.
    return text[:at] if text[at : at + len(_MARK)] == _MARK else text[:at].rstrip()


def _run(template: str, values: Mapping[str, Any], name: str) -> str:
    _sandbox()  # what is missing is told before anything is timed

    def write(meter: Meter) -> str:
        compiled = _compiled(template)
        pieces, total = [], 0
        for piece in compiled.root_render_func(compiled.new_context(dict(values))):
            total += len(piece)
            meter.allow(total)
            pieces.append(piece)
        return "".join(pieces)

    try:
        return bounded(write)
    except (TimeUp, Exception) as error:
        raise _failed(error, name) from error


@functools.lru_cache(maxsize=64)
def _compiled(template: str) -> jinja2.Template:
    compiled: jinja2.Template = _sandbox().environment().from_string(template)
    return compiled


def _failed(error: BaseException, name: str) -> ChatTemplateError:
    """What the caller is told about an error in a template."""
    if isinstance(error, ChatTemplateError):
        return error
    line = getattr(error, "lineno", None) or _line(error.__traceback__)
    if isinstance(error, TimeUp):
        told = f"it takes longer than {DEADLINE:g} seconds"
    elif isinstance(error, TooMuch):
        told = f"it makes too much text: {error}"
    elif isinstance(error, RecursionError):
        told = "it calls itself too deeply"
    elif type(error).__module__.startswith("jinja2"):
        told = spelt(getattr(error, "message", None) or error)
    else:
        told = f"{type(error).__name__}: {spelt(error)}"
    where = "" if line is None else f", line {line}"
    return ChatTemplateError(
        f"{name} fails{where}: {told}", option="chat_template", got=told, line=line, message=told
    )


def _line(trace: TracebackType | None) -> int | None:
    """The line of a template in which an error came about, by the last of its frames."""
    line = None
    while trace is not None:
        compiled = trace.tb_frame.f_globals.get("__jinja_template__")
        if compiled is not None:
            line = compiled.get_corresponding_lineno(trace.tb_lineno)
        trace = trace.tb_next
    return line


def _sandbox() -> Any:  # noqa: ANN401 (a module that imports jinja2)
    """The module with the environment.

    Raises:
        ChatTemplateError: jinja2 is missing or too old.
    """
    expected = "jinja2 of at least 3.1.6: pip install 'fastdecode[chat]', or pip install -U jinja2"
    try:
        import jinja2
    except ImportError:
        raise _missing(expected, "none") from None
    version = vars(jinja2).get("__version__")
    if version is None:
        from importlib.metadata import version as installed

        version = installed("jinja2")
    numbers = tuple(map(int, re.findall(r"\d+", str(version))[:3]))
    if numbers < _OLDEST:
        raise _missing(expected, f"jinja2 {version}")
    from . import chat_sandbox

    return chat_sandbox


def _missing(expected: str, got: str) -> ChatTemplateError:
    message = f"a chat template needs another library: expected {expected}, got {got}"
    return ChatTemplateError(message, option="chat_template", expected=expected, got=got, message=message)
