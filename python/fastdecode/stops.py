"""Stop strings: where a text that comes in pieces is cut, and which id completes a stop string of the model's folder.

A string of the call (`stop=`) is looked for in the new text, special tokens included, whether they are shown or not. A
string of the folder (`stop_strings`) ends a sequence at the id at which transformers ends it: the id whose token holds
the last character of the string, which may begin in the prompt. Nothing here knows files, models or options.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Any

from .detokenizer import clean_up, common

if TYPE_CHECKING:
    from collections.abc import Sequence

    from .tokenizer import Tokenizer


class StopText:
    """Cuts a text that comes in pieces before the first of some strings.

    Every piece comes twice: as it is searched, and as it is shown, where special tokens may be left out.

    Args:
        stops: Strings, none of them empty.
        before: Text of the prompt in which a string may begin; it is not given out.
    """

    def __init__(self, stops: Sequence[str], before: str = "") -> None:
        self._stops = tuple(stops)
        # Only what a string may begin with counts: one that is in the prompt as a whole ends nothing.
        begun = before[len(before) - max((_overlap(before, stop) for stop in stops), default=0) :]
        self._held: deque[tuple[str, str]] = deque([(begun, "")] if begun else [])
        self.stopped = False

    def push(self, searched: str, shown: str, *, search: bool = True) -> str:
        """Text that can be given out; what may begin a stop string is held back until it is known.

        Args:
            searched: The next piece of the text.
            shown: The same as it is shown.
            search: Whether a stop string ends the text where it is found.
        """
        if self.stopped:
            return ""
        if not self._stops:
            return shown
        self._held.append((searched, shown))
        if search and (piece := self._cut(self._stops)) is not None:
            return piece
        text = self._text()
        keep = max(_overlap(text, stop) for stop in self._stops)
        return self._release(len(text) - keep) if keep else self.finish()

    def end(self, searched: str, shown: str, *, in_prompt: bool) -> str:
        """Takes the last piece of a text that is known to end with a stop string.

        Args:
            searched: The piece.
            shown: The same as it is shown.
            in_prompt: Whether the string begins in the prompt.

        Returns:
            What of the text stands before the string.
        """
        self._held.append((searched, shown))
        self.stopped = True
        piece = self._cut(self._stops)
        if piece is None:  # clean-up has changed the string
            piece = self._cut([clean_up(stop) for stop in self._stops if clean_up(stop)])
        if piece is not None:
            return piece
        return "" if in_prompt else self.finish()

    def finish(self) -> str:
        """What was held back when no more text comes."""
        held = [shown for _, shown in self._held]
        self._held.clear()
        return held[0] if len(held) == 1 else "".join(held)

    def _text(self) -> str:
        if len(self._held) == 1:
            return self._held[0][0]
        return "".join(searched for searched, _ in self._held)

    def _cut(self, stops: Sequence[str]) -> str | None:
        """The held text before the first of some strings; None where there is none of them."""
        text = self._text()
        found = [text.index(stop) for stop in stops if stop in text]
        if not found:
            return None
        self.stopped = True
        piece = self._release(min(found))
        self._held.clear()
        return piece

    def _release(self, count: int) -> str:
        """What is shown of the first characters that are held."""
        pieces = []
        while self._held and len(self._held[0][0]) <= count:
            searched, shown = self._held.popleft()
            count -= len(searched)
            pieces.append(shown)
        if self._held and count > 0:
            searched, shown = self._held.popleft()
            length = _shown(searched, shown, count)
            pieces.append(shown[:length])
            self._held.appendleft((searched[count:], shown[length:]))
        return "".join(pieces)


def _shown(searched: str, shown: str, count: int) -> int:
    """How much is shown of the first characters of a piece."""
    if searched.endswith(shown):
        return max(count - (len(searched) - len(shown)), 0)
    return common(searched[:count], shown)


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of `text` that begins `stop` and is not all of it."""
    for length in range(min(len(text), len(stop) - 1), 0, -1):
        if text.endswith(stop[:length]):
            return length
    return 0


class StopPieces:
    """Stop strings beside what the tokens of a vocabulary add to a text.

    Args:
        tokenizer: The vocabulary.
        stops: Strings, none of them empty.

    Attributes:
        most: Number of ids at the end of a sequence that a match may cover.
    """

    def __init__(self, tokenizer: Tokenizer, stops: Sequence[str]) -> None:
        self._tokenizer = tokenizer
        self._stops: list[Any] = [stop.encode() if tokenizer.spells_bytes else stop for stop in stops]
        self._pieces: dict[int, Any] = {}
        self.most = max(map(len, self._stops))

    def match(self, ids: Sequence[int]) -> int | None:
        """How many of the last ids hold a stop string whose last character is in the last of them; None for none.

        Args:
            ids: The last ids of a sequence, those of its prompt included; `most` of them, or all that there are.
        """
        matches = (self._covered(ids, stop) for stop in self._stops)
        return min((count for count in matches if count is not None), default=None)

    def begins_with_space(self, token_id: int) -> bool:
        """Whether a token adds a space, and what follows it, to a text."""
        return (self._piece(token_id) or "")[:1] in (" ", b" ")

    def _piece(self, token_id: int) -> Any:  # noqa: ANN401 (text or bytes, as the strings are)
        if token_id not in self._pieces:
            self._pieces[token_id] = self._tokenizer.stop_piece(token_id)
        return self._pieces[token_id]

    def _covered(self, ids: Sequence[int], stop: Any) -> int | None:  # noqa: ANN401 (text or bytes)
        last = self._piece(ids[-1])
        if not last:
            return None
        at = last.find(stop[-1:])
        while at >= 0:
            length = min(at + 1, len(stop))
            if last[at + 1 - length : at + 1] == stop[-length:]:
                count = self._backwards(ids, stop, length)
                if count is not None:
                    return count
            at = last.find(stop[-1:], at + 1)
        return None

    def _backwards(self, ids: Sequence[int], stop: Any, length: int) -> int | None:  # noqa: ANN401 (as above)
        """As `match`, where so much of the end of a string is in the last token."""
        count = 1
        while length < len(stop):
            piece = self._piece(ids[-1 - count]) if count < min(len(ids), self.most) else None
            if piece is None:
                return None
            rest = stop[: len(stop) - length]
            if not (rest.endswith(piece) or piece.endswith(rest)):
                return None
            length += len(piece)
            count += 1
        return count
