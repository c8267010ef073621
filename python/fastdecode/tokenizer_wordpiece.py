"""BertTokenizer, as transformers 5.24 builds it: WordPiece over vocab.txt or the vocabulary of tokenizer.json.

Everything else is from tokenizer_config.json and the class's own defaults (models/bert/tokenization_bert.py there).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .tokenizer_parts import errors_of, known_id, lines_of, takes, vocabulary
from .tokenizer_tokens import content

if TYPE_CHECKING:
    from collections.abc import Mapping

    import tokenizers

    from .tokenizer_parts import Files


# What the library takes for space at the end of a line, by Unicode's property White_Space.
_SPACES = "\t\n\v\f\r \x85\xa0\u1680\u2028\u2029\u202f\u205f\u3000" + "".join(map(chr, range(0x2000, 0x200B)))


def bert(files: Files, values: Mapping[str, Any]) -> tokenizers.Tokenizer:
    """The backend of a BertTokenizer, without its added tokens.

    Args:
        files: Files of the folder.
        values: Settings of the folder: do_lower_case (on by default), tokenize_chinese_chars (likewise),
            strip_accents (by default where letters are made small).

    Raises:
        TokenizerError: A file is malformed.
    """
    import tokenizers
    from tokenizers import decoders, models, normalizers, pre_tokenizers

    # The class makes a word of whatever stands for this token, null included.
    unknown = content(values["unk_token"]) or "None" if "unk_token" in values else "[UNK]"
    file = files.json or files.folder / "vocab.txt"
    with errors_of(file):
        if files.json is not None:
            model = models.WordPiece(vocabulary(files)[0], unk_token=unknown)
        elif takes(file):
            model = models.WordPiece.from_file(str(file), unk_token=unknown)
        else:
            vocab = {line.rstrip(_SPACES): place for place, line in enumerate(lines_of(file))}
            model = models.WordPiece(vocab, unk_token=unknown)
        backend = tokenizers.Tokenizer(model)
        accents = values.get("strip_accents")
        backend.normalizer = normalizers.BertNormalizer(
            clean_text=True,
            handle_chinese_chars=bool(values.get("tokenize_chinese_chars", True)),
            strip_accents=None if accents is None else bool(accents),
            lowercase=bool(values.get("do_lower_case", True)),
        )
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.decoder = decoders.WordPiece(prefix="##")
    return backend


def finish_bert(backend: tokenizers.Tokenizer, named: Mapping[str, Any]) -> None:
    """A text begins with the cls_token and ends with the sep_token.

    Args:
        backend: The backend with its tokens.
        named: Special tokens by name.
    """
    from tokenizers.processors import TemplateProcessing

    def token(name: str, place: int) -> tuple[str, int]:
        """A token that is taken away leaves the word "None" and a fixed id behind."""
        text = content(named.get(name))
        return ("None", place) if text is None else (text, known_id(backend, text))

    first, last = token("cls_token", 2), token("sep_token", 3)
    backend.post_processor = TemplateProcessing(
        single=[f"{first[0]}:0", "$A:0", f"{last[0]}:0"],
        pair=[f"{first[0]}:0", "$A:0", f"{last[0]}:0", "$B:1", f"{last[0]}:1"],
        special_tokens=[first, last],
    )
