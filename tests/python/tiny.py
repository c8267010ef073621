"""Small tokenizers for the tests, and the small models of GPT-2: made in a moment, without torch."""

from __future__ import annotations

import signal

import tokenizers
from families import FAMILIES
from tokenizers.processors import TemplateProcessing

GPT2 = FAMILIES["gpt2"]
END = "<|endoftext|>"

# Enough text for a few hundred merges, with characters of one to four bytes.
TEXT = [
    "Once upon a time there was a little girl who lived in a house by the wood.",
    "The wolf said: 'Good day, little one. Where are you going so early?'",
    "Il était une fois, à l'orée d'un bois, une chère petite fille. Où vas-tu?",
    "Großmutter, was hast du für große Ohren! Damit ich dich besser hören kann.",
    "昔々、ある所にお爺さんとお婆さんがいました。🙂 🐺 naïve café",
]


def hear_ctrl_c() -> None:
    """Gives a child process the usual Ctrl-C: one that was started in the background would ignore it."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def byte_level(vocab_size: int = 400) -> tokenizers.Tokenizer:
    """A byte-level BPE tokenizer as GPT-2's, with `<|endoftext|>` as id 0."""
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE())
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[END],
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(TEXT * 3, trainer)
    return tokenizer


def with_end(vocab_size: int = 320) -> tokenizers.Tokenizer:
    """As `byte_level`; it ends every text with id 0, as T5's does with its own end token."""
    tokenizer = byte_level(vocab_size)
    tokenizer.post_processor = TemplateProcessing(single=f"$A {END}", special_tokens=[(END, 0)])
    return tokenizer


# Where the family does not matter, tests take the smallest.
config, weights, write_folder = GPT2.tiny_config, GPT2.tiny_weights, GPT2.write_tiny
