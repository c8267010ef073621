"""Small tokenizers of transformers, one of each kind of decoder, made without files from elsewhere."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import tiny
import tokenizers

WORDS = [
    "the",
    "wolf",
    "said",
    "good",
    "day",
    "do",
    "n",
    "t",
    "s",
    "'",
    ".",
    ",",
    "!",
    "girl",
    "abcdef",
    "##s",
    "##ing",
    "café",
]
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]


def byt5(_: Path) -> Any:
    from transformers import ByT5Tokenizer

    return ByT5Tokenizer()


def bert_in_python(folder: Path) -> Any:
    from transformers.models.bert.tokenization_bert_legacy import BertTokenizerLegacy

    (folder / "vocab.txt").write_text("\n".join([*SPECIAL, *WORDS]), encoding="utf-8")
    return BertTokenizerLegacy(str(folder / "vocab.txt"), clean_up_tokenization_spaces=True)


def bert(_: Path) -> Any:
    from transformers import BertTokenizer

    vocabulary = {word: index for index, word in enumerate([*SPECIAL, *WORDS])}
    return BertTokenizer(vocab=vocabulary, clean_up_tokenization_spaces=True, truncation_side="left")


def ctrl(folder: Path) -> Any:
    from transformers import CTRLTokenizer

    pieces = [
        "<unk>",
        "w@@",
        "o@@",
        "l@@",
        "f",
        "f@@",
        "wo@@",
        "lf",
        "wolf",
        "the",
        "t@@",
        "h@@",
        "e",
        "e@@",
        "a",
        "n",
        "t",
        "s",
        "d",
        "a@@",
        "b@@",
        "c@@",
        "d@@",
    ]
    (folder / "vocab.json").write_text(
        json.dumps({piece: index for index, piece in enumerate(pieces)}), "utf-8"
    )
    (folder / "merges.txt").write_text("#version\nw o\nl f</w>\nwo lf</w>\nt h\nth e</w>\n", "utf-8")
    return CTRLTokenizer(str(folder / "vocab.json"), str(folder / "merges.txt"))


def by_hand(_: Path) -> Any:
    """Words by hand: nothing but what the base class asks for."""
    from transformers import PreTrainedTokenizer

    class Words(PreTrainedTokenizer):
        words = ("<pad>", "<eos>", "<unk>", *(word for word in WORDS if not word.startswith("##")))

        @property
        def vocab_size(self) -> int:
            return len(self.words)

        def get_vocab(self) -> dict[str, int]:
            vocabulary = {word: index for index, word in enumerate(self.words)}
            vocabulary.update(self.added_tokens_encoder)
            return vocabulary

        def _tokenize(self, text: str, **_: Any) -> list[str]:
            return text.lower().split()

        def _convert_token_to_id(self, token: str) -> int:
            return self.words.index(token) if token in self.words else 2

        def _convert_id_to_token(self, index: int) -> str:
            return self.words[index]

        def build_inputs_with_special_tokens(self, one: list[int], two: list[int] | None = None) -> list[int]:
            return [*one, 1, *(two or [])]

    return Words(pad_token="<pad>", eos_token="<eos>", unk_token="<unk>", model_max_length=77)


def own_clean_up(folder: Path) -> Any:
    """A class with a clean-up of its own."""
    given = by_hand(folder)

    class Joined(type(given)):  # type: ignore[misc]
        def clean_up_tokenization(self, text: str) -> str:
            return text.replace(" good day", "!").strip()

    return Joined(pad_token="<pad>", eos_token="<eos>", unk_token="<unk>", clean_up_tokenization_spaces=True)


def own_decode(folder: Path) -> Any:
    """A class with a way to decode of its own, which takes less than the usual one."""
    given = by_hand(folder)

    class Shouting(type(given)):  # type: ignore[misc]
        def decode(self, token_ids: Any, skip_special_tokens: bool = False) -> str:
            return str(super().decode(token_ids, skip_special_tokens=skip_special_tokens)).upper()

    return Shouting(pad_token="<pad>", eos_token="<eos>", unk_token="<unk>")


def gpt2(folder: Path) -> Any:
    from transformers import GPT2Tokenizer

    tiny.byte_level().model.save(str(folder))
    return GPT2Tokenizer(str(folder / "vocab.json"), str(folder / "merges.txt"), add_prefix_space=True)


def cleaned_bpe(folder: Path) -> Any:
    from transformers import PreTrainedTokenizerFast

    tiny.byte_level().save(str(folder / "tokenizer.json"))
    flag = "clean_up_tokenization_spaces_for_bpe_even_though_it_will_corrupt_output"
    given: Any = {flag: True, "clean_up_tokenization_spaces": True}
    return PreTrainedTokenizerFast(tokenizer_file=str(folder / "tokenizer.json"), eos_token=tiny.END, **given)


def clip(_: Path) -> Any:
    from transformers import CLIPTokenizer

    model = tokenizers.models.BPE(end_of_word_suffix="</w>")
    trained = tokenizers.Tokenizer(model)
    trained.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=700,
        end_of_word_suffix="</w>",
        special_tokens=["<|startoftext|>", "<|endoftext|>"],
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    trained.train_from_iterator(tiny.TEXT, trainer)
    state = json.loads(trained.to_str())["model"]
    return CLIPTokenizer(vocab=state["vocab"], merges=[tuple(merge) for merge in state["merges"]])


def t5(_: Path) -> Any:
    from transformers import T5Tokenizer

    pieces = [
        ("<pad>", 0.0),
        ("</s>", 0.0),
        ("<unk>", 0.0),
        ("▁", -2.0),
        *((letter, -6.0) for letter in "abcdefghilnorstw'.,!"),
    ]
    pieces += [("▁the", -3.0), ("▁wolf", -3.0), ("▁said", -3.0), ("ing", -4.0), ("▁.", -4.0), ("▁n", -4.0)]
    return T5Tokenizer(vocab=pieces, extra_ids=3, clean_up_tokenization_spaces=True)


def byte_fallback(_: Path) -> Any:
    from transformers import PreTrainedTokenizerFast

    names = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁", "a", "b", "▁a"]
    model = tokenizers.models.BPE(
        {name: at for at, name in enumerate(names)}, [("▁", "a")], byte_fallback=True, unk_token="<unk>"
    )
    backend = tokenizers.Tokenizer(model)
    backend.normalizer = tokenizers.normalizers.Sequence(
        [tokenizers.normalizers.Prepend("▁"), tokenizers.normalizers.Replace(" ", "▁")]
    )
    backend.decoder = tokenizers.decoders.Sequence(
        [
            tokenizers.decoders.Replace("▁", " "),
            tokenizers.decoders.ByteFallback(),
            tokenizers.decoders.Fuse(),
            tokenizers.decoders.Strip(" ", 1, 0),
        ]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )


MAKERS: list[Callable[[Path], Any]] = [
    *(
        byt5,
        bert_in_python,
        bert,
        ctrl,
        by_hand,
        own_clean_up,
        own_decode,
        gpt2,
        cleaned_bpe,
        clip,
        t5,
        byte_fallback,
    )
]
