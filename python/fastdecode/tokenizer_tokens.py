"""Special and added tokens of a folder, by the rules of transformers 5.24, whichever of its files name them.

Newer folders list every added token, with flags and id, in tokenizer_config.json; there nothing else counts. Older
ones have special_tokens_map.json, added_tokens.json and the list in tokenizer.json beside it, which are merged in this
order (`_from_pretrained` and `TokenizersBackend.__init__` there). Nothing here knows classes of tokenizers.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from .arrays import brief
from .folder import bad_field, optional_json

if TYPE_CHECKING:
    from pathlib import Path

    import tokenizers

NAMED = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")

# The list of special tokens without names, under its name of today and that of before.
EXTRA, OLD_EXTRA = "extra_special_tokens", "additional_special_tokens"
# Special tokens under names of the folder's own.
OWN = "model_specific_special_tokens"
# Added tokens by id, those of older files included.
ADDED = "added_tokens_decoder"

_FLAGS = ("single_word", "lstrip", "rstrip", "normalized", "special")


def gather(folder: Path, settings: Mapping[str, Any], listed: Any) -> dict[str, Any]:  # noqa: ANN401 (from JSON)
    """The settings of a folder with the tokens of its older files, all tokens as `tokenizers.AddedToken` or strings.

    Args:
        folder: The folder.
        settings: Contents of tokenizer_config.json.
        listed: What tokenizer.json has under added_tokens; None where there is no such file.

    Returns:
        The settings, with `ADDED` by whole numbers. `OLD_EXTRA` is kept where both lists are there, since one class
        reads it.

    Raises:
        ConfigError: A token is none, or its id is no whole number.
    """
    values = dict(settings)
    file = str(folder / "tokenizer_config.json")
    if OLD_EXTRA in values and not values.get(EXTRA):
        values[EXTRA] = values.pop(OLD_EXTRA)
    if not isinstance(values.get(EXTRA), (list, dict, type(None))):
        raise bad_field(file, EXTRA, "a list of tokens, or an object of them by name", brief(values[EXTRA]))
    own = {name: values.pop(name) for name in [*values] if _is_own(name, values[name])}
    if isinstance(values.get(EXTRA), dict) and not _is_token(values[EXTRA]):
        own |= values.pop(EXTRA)
    if own:
        values[OWN] = own
    if isinstance(values.get(ADDED), dict):
        added = {
            _index(index, file): _from_json(token, file, ADDED) for index, token in values[ADDED].items()
        }
    else:
        _read_map(folder / "special_tokens_map.json", values)
        added = _read_added(folder / "added_tokens.json", values)
        for token in listed or []:
            if isinstance(token, Mapping):
                added[_index(token.get("id"), "tokenizer.json")] = _from_json(token, "tokenizer.json", ADDED)
    values = {name: _converted(value) for name, value in values.items()}
    values[ADDED] = added
    by_content = {token.content: token for token in added.values()}
    for name in NAMED:
        if values.get(name) is not None:
            values[name] = by_content.get(content(values[name]) or "", values[name])
    return values


def content(token: object) -> str | None:
    """Text of a token, however it is written; None where that is none."""
    if isinstance(token, Mapping):
        token = token.get("content")
    text = getattr(token, "content", token)
    return text if isinstance(text, str) else None


def special_tokens(
    values: Mapping[str, Any], defaults: Mapping[str, str | None]
) -> tuple[dict[str, Any], list[Any]]:
    """The special tokens by name, those of the folder's own names last, and those without names.

    Args:
        values: What `gather` has made.
        defaults: Tokens that the class has where the folder names none.

    Raises:
        ConfigError: A token is none.
    """
    file = "tokenizer_config.json"
    given: dict[str, Any] = {name: values.get(name, defaults.get(name)) for name in NAMED}
    given |= {name: value for name, value in values.items() if _is_own(name, value)}
    given |= values.get(OWN) or {}
    named = {name: _as_token(token, file, name) for name, token in given.items() if token is not None}
    extra = values[EXTRA] if EXTRA in values else values.get(OLD_EXTRA)
    if extra is not None and not isinstance(extra, (list, tuple)):
        raise bad_field(file, EXTRA, "a list of tokens, or an object of them by name", brief(extra))
    return named, [_as_token(token, file, EXTRA) for token in extra or []]


def add_tokens(
    backend: tokenizers.Tokenizer, added: Mapping[int, Any], named: Mapping[str, Any], extra: list[Any]
) -> None:
    """Adds a folder's tokens to its tokenizer: those with ids in their order, then special ones that are missing.

    Args:
        backend: The tokenizer.
        added: Tokens by id; where the tokenizer has them, their flags count.
        named: Special tokens by name.
        extra: Special tokens without names; they stay as their flags say.
    """
    from tokenizers import AddedToken

    wanted = [added[index] for index in sorted(added)]
    present = {token.content for token in backend.get_added_tokens_decoder().values()}
    present |= {token.content for token in wanted}
    for token in (*named.values(), *extra):
        if content(token) not in present and token not in wanted:
            wanted.append(token)
    names = {content(token) for token in named.values()}
    for place, token in enumerate(wanted):
        if isinstance(token, str):
            wanted[place] = AddedToken(token, special=True)
        elif not token.special and token.content in names:
            token.special = True
    if wanted:
        backend.add_tokens(wanted)


def _is_own(name: str, value: object) -> bool:
    """Whether a setting is a special token under a name of the folder's own, such as "context_token"."""
    return name.endswith("_token") and name not in NAMED and (isinstance(value, str) or _is_added(value))


def _is_added(value: object) -> bool:
    return hasattr(value, "content") and hasattr(value, "single_word")


def _is_token(value: object) -> bool:
    return isinstance(value, Mapping) and value.get("__type") == "AddedToken"


def _index(value: object, file: str) -> int:
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    if isinstance(value, str) and value.strip().isdecimal():
        return int(value)
    raise bad_field(file, ADDED, "ids that are whole numbers", brief(value))


def _from_json(token: object, file: str, field: str, **flags: bool) -> tokenizers.AddedToken:
    from tokenizers import AddedToken

    text = content(token) if isinstance(token, Mapping) else None
    if not isinstance(token, Mapping) or text is None:
        raise bad_field(file, field, "tokens as objects with a content", brief(token))
    return AddedToken(
        _text(text, file, field), **{name: bool(token[name]) for name in _FLAGS if name in token} | flags
    )


def _text(token: str, file: str, field: str) -> str:
    """The token, of which every character is one."""
    try:
        token.encode()
    except UnicodeEncodeError:
        raise bad_field(file, field, "tokens without lone surrogates", brief(token)) from None
    return token


def _as_token(token: object, file: str, field: str) -> Any:  # noqa: ANN401 (str or AddedToken)
    if _is_added(token):
        return token
    if isinstance(token, str):
        return _text(token, file, field)
    return _from_json(token, file, field)


def _converted(value: Any) -> Any:  # noqa: ANN401 (from JSON)
    """The value with every object that says to be a token as one."""
    if _is_token(value):
        return _from_json(value, "tokenizer_config.json", "a token")
    if isinstance(value, list):
        return [_converted(item) for item in value]
    if isinstance(value, dict):
        return {name: _converted(item) for name, item in value.items()}
    return value


def _read_map(file: Path, values: dict[str, Any]) -> None:
    """Every key of special_tokens_map.json counts more than that of tokenizer_config.json; null takes a token away."""
    for name, value in optional_json(file).items():
        if isinstance(value, dict) and name != EXTRA:
            values[name] = _from_json(value, str(file), name, special=True)
        elif name == EXTRA and isinstance(value, list):
            known = list(values.get(EXTRA) or [])
            for token in value:
                as_token = (
                    _from_json(token, str(file), name, special=True) if isinstance(token, dict) else token
                )
                if as_token not in known:
                    known.append(as_token)
            values[EXTRA] = known
        else:
            values[name] = value
    if isinstance(values.get(EXTRA), dict):
        values[OWN] = {**(values.get(OWN) or {}), **values.pop(EXTRA)}


def _read_added(file: Path, values: Mapping[str, Any]) -> dict[int, Any]:
    """Tokens of added_tokens.json: special are those with a name, and those in tokenizer_config.json's list."""
    from tokenizers import AddedToken

    # A list that only the map has stands under its old name and does not count here.
    known = [*(values.get(name) for name in NAMED), *(values.get(EXTRA) or [])]
    special = {str(token) for token in known if token}
    return {
        _index(index, str(file)): AddedToken(
            _text(text, str(file), "a token"), special=text in special, normalized=text not in special
        )
        for text, index in optional_json(file).items()
    }
