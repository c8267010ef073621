"""Which class of tokenizers a folder means, as AutoTokenizer of transformers 5.24 decides it.

What tokenizer_config.json declares counts first, then config.json, then the model_type; some model types overrule
what is declared. Nothing here reads files or builds a tokenizer.
"""

from __future__ import annotations

import fnmatch
from typing import TYPE_CHECKING, Any

from .arrays import brief
from .folder import bad_field
from .tokenizer_table import (
    ALIASES,
    CLASS_BY_CONFIG,
    CLASS_OF_TYPE,
    CLASSES,
    FORMER,
    GENERIC,
    GENERIC_IDS,
    MISDECLARED,
    WITHOUT_CONFIG,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping


def tokenizer_class(
    settings: Mapping[str, Any],
    config: Mapping[str, Any],
    *,
    name: str,
    is_byte_level: Callable[[], bool],
) -> str:
    """Name of the class, without "Fast"; `GENERIC` for the one that takes tokenizer.json as it is.

    Args:
        settings: Contents of tokenizer_config.json.
        config: Contents of config.json.
        name: What the folder was asked for by: a path or an id.
        is_byte_level: Whether the folder's tokenizer.json is byte-level; asked only where it counts.

    Raises:
        ConfigError: A declared class is no string.
    """
    declared = _text(settings, "tokenizer_config.json")
    # An empty name in tokenizer_config.json declares a class, too, though none that is known.
    either = declared or _text(config, "config.json")
    model_type = str(config.get("model_type") or "")
    registered = CLASS_OF_TYPE.get(model_type)
    if not _has_code_of_its_own(settings):
        if any(fnmatch.fnmatchcase(name.lower(), pattern) for pattern in GENERIC_IDS):
            return GENERIC
        misdeclared = model_type in MISDECLARED or str(config.get("model_name")) in MISDECLARED
        is_llama = either is not None and either.removesuffix("Fast") == "LlamaTokenizer"
        if is_llama and not misdeclared and is_byte_level():
            return GENERIC
        if either is not None and registered is not None and either.removesuffix("Fast") != registered:
            if registered == GENERIC:
                return GENERIC
            return _known(registered if misdeclared else either)
    if declared is not None:
        return _known(declared)
    if either:
        return _known(either)
    if registered is None or model_type in WITHOUT_CONFIG:
        return GENERIC
    return _known(CLASS_BY_CONFIG.get(model_type, registered))


def declared_class(settings: Mapping[str, Any], config: Mapping[str, Any]) -> str | None:
    """What a folder declares, whether or not it counts: a class under its one name, or a name that no class has.

    Args:
        settings: Contents of tokenizer_config.json.
        config: Contents of config.json.

    Returns:
        The name without "Fast"; None where nothing is declared.
    """
    name = settings.get("tokenizer_class") or config.get("tokenizer_class")
    if not name:
        return None
    name = str(name).removesuffix("Fast")
    return FORMER.get(name) or ALIASES.get(name, name)


def _text(values: Mapping[str, Any], file: str) -> str | None:
    declared = values.get("tokenizer_class")
    if declared is not None and not isinstance(declared, str):
        raise bad_field(file, "tokenizer_class", "the name of a class or null", brief(declared))
    return declared


def _has_code_of_its_own(settings: Mapping[str, Any]) -> bool:
    """Whether the folder names Python code for its tokenizer, which is never run; what it declares counts then."""
    places = settings.get("auto_map")
    return places.get("AutoTokenizer") is not None if isinstance(places, dict) else isinstance(places, list)


def _known(name: str) -> str:
    """The one name of a class; a name that no class has means the generic one."""
    name = name.removesuffix("Fast")
    name = ALIASES.get(name, name)
    return name if name in CLASSES else GENERIC
