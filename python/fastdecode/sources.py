"""The sources of a call of an encoder-decoder: how they are told apart, and what the output of each begins with.

Nothing here reads a text or computes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from .arrays import bad_option, brief, is_empty, is_message, is_one
from .memory import Memory

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from .arrays import Prompt

    # One text or list of ids, a list of them, or none.
    Prompts = Prompt | Sequence[Prompt] | None


class Sourced(NamedTuple):
    """One source of a call, or what was made of it, and what its output begins with."""

    source: Prompt | Memory
    prompt: Prompt | None


class Sources:
    """The sources of a call with their prompts, made one after the other, so that a long list is not held twice.

    Args:
        sources: Sources, or what was made of them.
        prompts: What all outputs begin with, or a list with what each does.
        each: Whether `prompts` is such a list.
    """

    def __init__(
        self, sources: Sequence[Any], prompts: Prompt | Sequence[Prompt] | None, *, each: bool
    ) -> None:
        self._sources = sources
        self._prompts: Any = prompts
        self._each = each

    def __len__(self) -> int:
        return len(self._sources)

    def __iter__(self) -> Iterator[Sourced]:
        for place, source in enumerate(self._sources):
            yield Sourced(source, self._prompts[place] if self._each else self._prompts)

    def __contains__(self, item: object) -> bool:
        return any(other == item for other in self)


def sources_of(
    source: Prompts, decoder_prompt: Prompts, memory: Memory | Sequence[Memory] | None
) -> tuple[Sources, bool]:
    """The sources of a call with their prompts, and whether it was one that is not in a list.

    Args:
        source: A source, a conversation, or a list of sources; None where there is a memory.
        decoder_prompt: What the output of each source begins with, or of all.
        memory: A memory or a list of them, in the place of a source.

    Raises:
        OptionError: There are both or neither, or not as many prompts as sources.
    """
    if (source is None) == (memory is None):
        got = "neither" if source is None else "both"
        raise bad_option("source", "either a source or memory=", got)
    given: Any
    if source is not None:
        one, given = is_one(source, "source"), source
        sources: Sequence[Any] = (
            [given] if one else given if isinstance(given, (list, tuple)) else list(given)
        )
        if not one and sources and is_message(sources[0]):
            sources, one = [sources], True
    else:
        one, given = isinstance(memory, Memory), memory
        sources = [given] if one else memories_of(given)
    prefix: Any = decoder_prompt
    if prefix is None or is_empty(prefix) or is_one(prefix, "decoder_prompt"):
        return Sources(sources, prefix, each=False), one
    prompts: Sequence[Any] = prefix if isinstance(prefix, (list, tuple)) else list(prefix)
    if one:
        sources = [given] * len(prompts)
    if len(prompts) != len(sources):
        got = f"{len(prompts)} prompts"
        raise bad_option("decoder_prompt", f"one prompt, or one per source, {len(sources)} in all", got)
    return Sources(sources, prompts, each=True), False


def memories_of(given: Any) -> list[Memory]:  # noqa: ANN401 (checked here)
    """A list of memories that a caller gave.

    Raises:
        OptionError: One of them is none.
    """
    memories = given if isinstance(given, (list, tuple)) else [given]
    for memory in memories:
        if not isinstance(memory, Memory):
            raise bad_option("memory", "what model.encode returns, or a list of that", brief(memory))
    return list(memories)
