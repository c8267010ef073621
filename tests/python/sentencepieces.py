"""Small SentencePiece models of every kind, trained in a moment: BPE and Unigram, with bytes or without."""

from __future__ import annotations

import functools
import io
import random
from typing import Any

import tiny

# Where the special tokens are, as in Llama's files, in Gemma's, and in files without a token that begins a text.
LLAMA = {"unk_id": 0, "bos_id": 1, "eos_id": 2, "pad_id": -1}
GEMMA = {
    "pad_id": 0,
    "eos_id": 1,
    "bos_id": 2,
    "unk_id": 3,
    "pad_piece": "<pad>",
    "eos_piece": "<eos>",
    "bos_piece": "<bos>",
}
ENDING = {"unk_id": 0, "bos_id": -1, "eos_id": 1, "pad_id": -1}
_LAYOUTS: dict[str, dict[str, Any]] = {"llama": LLAMA, "gemma": GEMMA, "ending": ENDING}


@functools.cache
def trained(
    kind: str,
    layout: str = "llama",
    *,
    byte_fallback: bool = True,
    rule: str = "identity",
    dummy_prefix: bool = True,
    extra_spaces: bool = False,
    own: tuple[str, ...] = (),
    control: tuple[str, ...] = (),
    size: int = 140,
) -> bytes:
    """A model trained on the small text.

    Args:
        kind: "bpe", "unigram", "char" or "word".
        layout: "llama", "gemma" or "ending".
        byte_fallback: Whether there is a piece for each byte.
        rule: How characters are normalized: "identity", "nmt_nfkc", ...
        dummy_prefix: Whether a text gets a space in front.
        extra_spaces: Whether spaces in a row are made one.
        own: Pieces of the user's own.
        control: Control tokens.
        size: Pieces beside those of bytes.

    Returns:
        The contents of the file.
    """
    import sentencepiece

    written = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([*tiny.TEXT * 3, "12345 67 890", "a  b   c", "\tcode(x)\t"]),
        model_writer=written,
        model_type=kind,
        vocab_size=size + 256 * byte_fallback,
        hard_vocab_limit=False,
        byte_fallback=byte_fallback,
        normalization_rule_name=rule,
        add_dummy_prefix=dummy_prefix,
        remove_extra_whitespaces=extra_spaces,
        split_digits=True,
        allow_whitespace_only_pieces=True,
        character_coverage=0.98,
        user_defined_symbols=list(own),
        control_symbols=list(control),
        num_threads=1,
        minloglevel=2,
        **_LAYOUTS[layout],
    )
    return written.getvalue()


def drawn(chooser: random.Random) -> bytes:
    """A model with settings drawn at random."""
    layout = chooser.choice(["llama", "llama", "gemma", "ending"])
    own = chooser.choice([(), (), (), ("<ctx>",), ("wolf", "  "), ("\n",)])
    control = chooser.choice([(), (), ("<|im_end|>",), ("<user>", "<bot>")])
    kind = chooser.choice(["bpe", "bpe", "unigram", "unigram", "char"])
    return trained(
        kind,
        layout,
        byte_fallback=chooser.random() < 0.6,
        rule=chooser.choice(["identity", "identity", "nmt_nfkc", "nfkc_cf"]),
        dummy_prefix=chooser.random() < 0.8,
        extra_spaces=chooser.random() < 0.4,
        own=own,
        control=control,
        size=chooser.choice([140, 180]),
    )
