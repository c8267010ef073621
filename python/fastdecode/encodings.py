"""Texts to dictionaries of ids and masks, as a tokenizer of transformers gives them when it is called like a function.

Truncation and padding are here, since nothing else needs them. Nothing here knows models or pipelines.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from .arrays import bad_option, brief

if TYPE_CHECKING:
    from .tokenizer import Tokenizer


class Encoding(dict[str, Any]):
    """What was made of a text, by key (`encoding["input_ids"]`) or as attributes (`encoding.input_ids`)."""

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401 (arrays, lists or a text)
        try:
            return self[name]
        except KeyError:
            raise AttributeError(f"the encoding has no {name!r}, but {', '.join(self)}") from None


def encoded(
    tokenizer: Tokenizer,
    text: str | Sequence[str],
    *,
    add_special_tokens: bool,
    padding: bool | str,
    truncation: bool | str,
    max_length: int | None,
    return_tensors: str | None,
) -> Encoding:
    """Ids and masks of a text or of a list of texts; see `Tokenizer.__call__`.

    Raises:
        OptionError: An argument cannot be used.
    """
    if return_tensors is not None and not (isinstance(return_tensors, str) and return_tensors == "np"):
        raise bad_option("return_tensors", '"np" or None', brief(return_tensors))
    cuts, fills = truncates(truncation), _fills(padding)
    if max_length is not None and (
        isinstance(max_length, bool) or not isinstance(max_length, int) or max_length < 1
    ):
        raise bad_option("max_length", "an integer of at least 1, or None", brief(max_length))
    if not isinstance(text, str) and (not isinstance(text, Sequence) or isinstance(text, (bytes, bytearray))):
        raise bad_option("text", "a text or a list of texts", brief(text))
    texts = [text] if isinstance(text, str) else text
    limit = tokenizer.model_max_length if max_length is None else max_length
    rows = [
        truncated(tokenizer, one, limit if cuts else None, add_special_tokens=add_special_tokens)
        for one in texts
    ]
    masks = [[1] * len(row) for row in rows]
    length = max(map(len, rows), default=0) if fills == "longest" else limit if fills else None
    if length is not None and any(len(row) < length for row in rows):
        pad = getattr(tokenizer, "pad_token_id", None)
        if pad is None:
            raise bad_option("padding", "False with a tokenizer that has no pad token", brief(padding))
        for row, mask in zip(rows, masks, strict=True):
            row += [pad] * (length - len(row))
            mask += [0] * (length - len(mask))
    if return_tensors is None:
        alone = isinstance(text, str)
        return Encoding(input_ids=rows[0] if alone else rows, attention_mask=masks[0] if alone else masks)
    longest = max(map(len, rows), default=0)
    if any(len(row) < longest for row in rows):
        raise bad_option(
            "return_tensors", "None where texts have different numbers of tokens (or padding=True)", '"np"'
        )
    import numpy as np

    shape = (len(rows), longest)
    return Encoding(
        input_ids=np.array(rows, dtype=np.int64).reshape(shape),
        attention_mask=np.array(masks, dtype=np.int64).reshape(shape),
    )


def _fills(value: object) -> str | None:
    """Up to which length this value of `padding` fills texts up: "longest", "max_length" or None."""
    names: dict[object, str | None] = {False: None, "do_not_pad": None, True: "longest"}
    names |= {"longest": "longest", "max_length": "max_length"}
    if isinstance(value, (bool, str)) and value in names:
        return names[value]
    raise bad_option("padding", 'True, False, "longest", "max_length" or "do_not_pad"', brief(value))


def truncates(value: object) -> bool:
    """Whether this value of `truncation` cuts.

    Raises:
        OptionError: It is none of those that there are.
    """
    if not getattr(value, "ndim", 0):
        if value in (None, False, "do_not_truncate"):
            return False
        if value in (True, "longest_first", "only_first"):
            return True
    expected = 'True, False, "longest_first", "only_first" or "do_not_truncate"'
    raise bad_option("truncation", expected, brief(value))


def truncated(
    tokenizer: Tokenizer, text: str, limit: int | None, *, add_special_tokens: bool = True
) -> list[int]:
    """Ids of a text, at most `limit` of them; the special tokens around the text stay.

    Args:
        tokenizer: Its `truncation_side` says where tokens are taken away.
        text: The text.
        limit: None for all ids.
        add_special_tokens: Whether there are special tokens around the text.
    """
    ids = tokenizer.encode(text, add_special_tokens=add_special_tokens)
    if limit is None or len(ids) <= limit:
        return ids
    body = tokenizer.encode(text, add_special_tokens=False)
    before = next((at for at in range(len(ids)) if ids[at : at + len(body)] == body), 0)
    after = ids[before + len(body) :]
    room = max(limit - before - len(after), 0)
    left = tokenizer.truncation_side == "left"
    return ids[:before] + (body[len(body) - room :] if left else body[:room]) + after


def shortened(tokenizer: Tokenizer, ids: list[int], limit: int | None) -> list[int]:
    """Ids without any special ones around them, at most so many, without those on the side that the tokenizer names."""
    if limit is None or len(ids) <= limit:
        return ids
    return ids[-limit:] if tokenizer.truncation_side == "left" else ids[:limit]
