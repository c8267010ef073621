"""`fastdecode quality`: a file of texts or pairs to `model.quality`, and its report as a table or JSON.

The table goes to stdout, progress to stderr. Nothing here computes.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .arrays import bad_option
from .command_arguments import whole
from .errors import FileReadError
from .load_options import dtype_of_words

if TYPE_CHECKING:
    import argparse


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds what the command takes beside a model."""
    parser.add_argument(
        "--text",
        required=True,
        metavar="FILE",
        help="text in UTF-8; of an encoder-decoder, lines of source TAB target",
    )
    parser.add_argument(
        "--dtype",
        dest="dtypes",
        action="append",
        metavar="TYPE",
        help="type of weights, beside float32, as load takes it, or types by part as NAME=TYPE,NAME=TYPE "
        "(may be repeated); bfloat16 and all smaller ones, by default",
    )
    parser.add_argument(
        "--int4-group",
        dest="group",
        type=whole,
        metavar="N",
        help="inputs that share a scale in int4: 32, 64 or 128; 64, by default",
    )
    parser.add_argument(
        "--limit",
        type=whole,
        metavar="N",
        help="tokens (of targets) that are read from the file; all, by default",
    )
    parser.add_argument(
        "--stride",
        type=whole,
        metavar="N",
        help="tokens from one window of the text to the next; 512, by default",
    )
    parser.add_argument(
        "--window", type=whole, metavar="N", help="tokens of a window; the model's context, by default"
    )
    parser.add_argument("--json", action="store_true", help="one JSON object")
    # The model that the command loads is the reference, so that there are never three of them.
    parser.set_defaults(dtype=["float32"], compute_dtype=None)


def show(parsed: argparse.Namespace, model: Any) -> None:  # noqa: ANN401 (of either class)
    """Measures and prints.

    Args:
        parsed: The command line.
        model: The model in float32.

    Raises:
        FastdecodeError: As `ScoringLM.quality`; `OptionError` and `FileReadError` for the file.
    """
    text = read_text(parsed.text)
    report = model.quality(
        pairs_of(text, parsed.text) if model.has_encoder else text,
        dtypes=None if parsed.dtypes is None else [dtype_of_words([item]) for item in parsed.dtypes],
        int4_group=parsed.group,
        limit=parsed.limit,
        stride=parsed.stride,
        window=parsed.window,
    )
    if parsed.json:
        print(json.dumps({"name": parsed.model, "text": parsed.text, **dataclasses.asdict(report)}, indent=2))
        return
    print(f"{parsed.model}: {report.rows[0].tokens:,} tokens of {parsed.text}, each type beside float32")
    print(report)


def read_text(file: str) -> str:
    """The text of a file in UTF-8, with or without the mark of that; line ends become newlines.

    Raises:
        FileReadError: The file cannot be read.
        OptionError: It is not in UTF-8.
    """
    try:
        data = Path(file).read_bytes()
    except OSError as error:
        raise FileReadError(f"cannot read {file}: {error.strerror}", file=file, errno=error.errno) from error
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        got = f"byte 0x{error.object[error.start]:02x} ({error.reason})"
        raise bad_option("text", f"UTF-8 in line {line} of {file}", got) from error
    return text.replace("\r\n", "\n").replace("\r", "\n")


def pairs_of(text: str, file: str) -> list[tuple[str, str]]:
    """The pairs of a text with a source, a tab and a target in every line; nothing is quoted.

    Raises:
        OptionError: A line has another number of columns, or an empty one, or there is no line.
    """
    lines = text.removesuffix("\n").split("\n") if text else []
    pairs = []
    for number, line in enumerate(lines, 1):
        columns = line.split("\t")
        if len(columns) != 2 or not all(column.strip() for column in columns):
            got = f"{len(columns)} columns" if len(columns) > 1 else "no tab"
            if not line.strip():
                got = "an empty line"
            elif len(columns) == 2:
                got = f"an empty {'source' if not columns[0].strip() else 'target'}"
            raise bad_option("text", f"two columns, source TAB target, in line {number} of {file}", got)
        pairs.append((columns[0], columns[1]))
    if not pairs:
        raise bad_option("text", f"at least one line of source TAB target in {file}", "an empty file")
    return pairs
