"""Tokens of a conversation: which ones control it, and how a text is encoded in which none may.

A user's text that holds `<|im_end|>` becomes that token, as in transformers. With `sanitize_control_tokens` it is
marked before a template runs, and encoded as ordinary text afterwards (`mark_control_tokens` and `encode_marked_chat`
in transformers 5.24). Nothing here renders.
"""

from __future__ import annotations

import functools
import re
from typing import TYPE_CHECKING, Any

from .arrays import brief
from .errors import OptionError
from .folder import bad_field, optional_json

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from .tokenizer import Tokenizer

# Characters for private use that stand around a control token of a user.
_BEGIN, _END = "\U000f0000", "\U000f0001"


def added_tokens(tokenizer: Tokenizer) -> dict[str, tuple[int, bool]]:
    """Tokens that are cut out of a text before its other parts are read: their ids, and whether each is special."""
    backend: Any = tokenizer._backend
    given = getattr(backend, "_given", None)
    if given is not None:
        tokens = getattr(given, "added_tokens_decoder", {})
    elif hasattr(backend, "library"):
        tokens = backend.library.get_added_tokens_decoder()
    else:
        names = sorted(backend.special_tokens)
        ids = {name: tokenizer.token_id(name) for name in names}
        return {name: (index, True) for name, index in ids.items() if index is not None}
    return {token.content: (int(index), bool(token.special)) for index, token in sorted(tokens.items())}


def single_token(tokenizer: Tokenizer, text: str) -> tuple[str, int] | None:
    """The added token with which a text begins, and its id; None for none."""
    found = [token for token in added_tokens(tokenizer) if token.strip() and text.startswith(token)]
    if not found:
        return None
    token = max(found, key=len)
    return token, added_tokens(tokenizer)[token][0]


def control_tokens(tokenizer: Tokenizer, literals: Callable[[], str]) -> tuple[str, ...]:
    """Tokens that a user's text may not become: the special ones, and those that the template itself writes.

    Args:
        tokenizer: Its folder may list them (`chat_control_tokens`).
        literals: Gives the texts within the template.

    Raises:
        ConfigError: The folder's list is none.
    """
    listed = getattr(getattr(tokenizer._backend, "_given", None), "chat_control_tokens", None)
    if tokenizer.folder is not None:
        file = tokenizer.folder / "tokenizer_config.json"
        listed = optional_json(file).get("chat_control_tokens")
        if listed is not None and not isinstance(listed, list):
            raise bad_field(str(file), "chat_control_tokens", "a list of tokens", brief(listed))
    tokens = added_tokens(tokenizer)
    if listed is not None:
        return tuple(token for token, (_, special) in tokens.items() if special or token in listed)
    text = literals()
    return tuple(
        token for token, (_, special) in tokens.items() if special or (token in text and not token.isspace())
    )


@functools.lru_cache(maxsize=16)
def _patterns(tokens: tuple[str, ...]) -> tuple[re.Pattern[str], re.Pattern[str]]:
    """What finds a control token, and what finds one that is marked, or a mark alone."""
    longest_first = sorted(tokens, key=len, reverse=True)
    control = "|".join(map(re.escape, longest_first)) or "(?!)"
    return re.compile(control), re.compile(f"{_BEGIN}({control}){_END}|[{_BEGIN}{_END}]")


def marked(value: Any, tokens: tuple[str, ...]) -> Any:  # noqa: ANN401 (what a template sees)
    """The value with every control token in its texts marked; keys stay as they are."""
    if isinstance(value, str):
        bare = value.replace(_BEGIN, "").replace(_END, "")
        return _patterns(tokens)[0].sub(f"{_BEGIN}\\g<0>{_END}", bare)
    if isinstance(value, dict):
        return {key: marked(item, tokens) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [marked(item, tokens) for item in value]
    return value


def encode_marked(tokenizer: Tokenizer, text: str) -> list[int]:
    """Ids of a text in which marked tokens are ordinary text.

    Raises:
        OptionError: A marked token cannot be written but as itself.
    """
    # Texts stand at even places, marked tokens at odd ones; a mark alone leaves None, and parts its neighbours.
    parts = _patterns(tuple(added_tokens(tokenizer)))[1].split(text)

    def plainly(part: str) -> list[int]:
        return tokenizer.encode(part, add_special_tokens=False)

    ids = plainly(parts[0])
    for place, part in enumerate(parts[1:], start=1):
        if not part:
            continue
        is_text = place % 2 == 1
        of_part = _behind_newline(
            part, functools.partial(_as_text, tokenizer) if is_text else plainly, plainly
        )
        if is_text and tokenizer.token_id(part) in of_part:
            expected = f"texts without {part!r}, which the tokenizer makes of the same letters"
            raise OptionError(
                f"sanitize_control_tokens: expected {expected}, got one",
                option="sanitize_control_tokens",
                expected=expected,
                got=part,
            )
        ids += of_part
    return ids


def _behind_newline(
    part: str, encode: Callable[[str], list[int]], plainly: Callable[[str], list[int]]
) -> list[int]:
    """Ids of a part of a text, without the space that a vocabulary puts before a text."""
    newline = plainly("\n")
    ids = encode("\n" + part)
    return ids[len(newline) :] if ids[: len(newline)] == newline else encode(part)


def _as_text(tokenizer: Tokenizer, text: str) -> list[int]:
    """Ids of a text in which no added token is looked for."""
    backend: Any = tokenizer._backend
    given = getattr(backend, "_given", None)
    library = (
        getattr(backend, "library", None) if given is None else getattr(given, "backend_tokenizer", None)
    )
    if library is not None:
        if library.normalizer is not None:
            text = library.normalizer.normalize_str(text)
        parts: Iterable[str] = [text]
        if library.pre_tokenizer is not None:
            parts = [part for part, _ in library.pre_tokenizer.pre_tokenize_str(text)]
        return [token.id for part in parts for token in library.model.tokenize(part)]
    if given is not None:
        return list(given.encode(text, add_special_tokens=False, split_special_tokens=True))
    ids: list[int] = backend.encode_as_text(text)
    return ids
