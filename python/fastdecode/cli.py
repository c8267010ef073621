"""The command `fastdecode`: run, chat, info, bench and quality; text to stdout, everything else to stderr.

A thin layer over the public interface; it knows arguments and how things are shown, nothing else.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import sys
import time
import warnings
from typing import TYPE_CHECKING, Any

from . import __version__, cpu_info, cuda, errors, load
from .arrays import bad_option
from .command_arguments import at_least_one, dtypes, early_stopping, real, whole
from .families import titles
from .load_options import dtype_of_words
from .quality_command import add_arguments as add_quality
from .quality_command import show as show_quality

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from .causal import CausalLM
    from .model import LanguageModel
    from .seq2seq import Seq2SeqLM

# Options of a call, as flags: name, type, what the help says.
_NUMBERS: tuple[tuple[str, Callable[[str], float], str], ...] = (
    ("max_new_tokens", whole, "new tokens, at most"),
    ("max_length", whole, "tokens of prompt and new text together, at most"),
    ("min_new_tokens", whole, "new tokens before the text may end"),
    ("temperature", real, "divides the logits; needs --do-sample"),
    ("top_k", whole, "draw among this many most probable tokens; needs --do-sample"),
    ("top_p", real, "draw among the most probable tokens of this probability together; needs --do-sample"),
    ("min_p", real, "drop tokens less probable than this share of the best; needs --do-sample"),
    ("seed", whole, "makes a draw repeatable"),
    ("num_return_sequences", whole, "texts; above 1 needs --do-sample or --num-beams"),
    ("num_beams", whole, "search with this many beams; the text comes at the end, not in pieces"),
    ("length_penalty", real, "above 0 favours longer texts; needs --num-beams"),
    ("repetition_penalty", real, "above 1 makes tokens seen before less probable"),
    ("no_repeat_ngram_size", whole, "let no run of this many tokens come twice"),
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command.

    Args:
        arguments: Command line without the program's name; `sys.argv` by default.

    Returns:
        Exit status: 0, 1 after an error, 130 after Ctrl-C. Wrong arguments exit with 2.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            # A terminal that cannot show a character shows "?", and the text goes on.
            stream.reconfigure(errors="replace" if stream is sys.stdout else "backslashreplace")
    parsed = _parser().parse_args(arguments)
    with warnings.catch_warnings():
        warnings.simplefilter("always", errors.FastdecodeWarning)
        warnings.showwarning = _show_warning
        try:
            parsed.command(parsed)
        except (errors.FastdecodeError, OSError, MemoryError) as error:
            if isinstance(error, BrokenPipeError):
                # The reader of the text has gone; what is still buffered goes nowhere.
                os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            else:
                print(f"fastdecode: error: {str(error) or 'out of memory'}", file=sys.stderr)
            return 1
        except KeyboardInterrupt:
            print(file=sys.stderr)
            return 130
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="fastdecode", description=f"Runs {titles()} folders from Hugging Face on a CPU or a GPU."
    )
    parser.add_argument("--version", action="version", version=f"fastdecode {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    run = commands.add_parser(
        "run",
        help="continue a prompt (GPT-2, Llama and their like), or answer a source (encoder-decoders such as T5)",
        description="Continues a prompt. An encoder-decoder (T5, mT5, UMT5) reads it as its source and answers: it "
        "translates, sums up, whatever it was trained for.",
    )
    _add_model(run)
    run.add_argument(
        "prompt",
        nargs="?",
        default="",
        help="text to continue, or the source of an encoder-decoder; - reads it from stdin",
    )
    _add_options(run)
    run.add_argument("--echo", action="store_true", help="show the prompt before the new text")
    run.add_argument("--quiet", action="store_true", help="no statistics")
    run.set_defaults(command=_run)

    chat = commands.add_parser(
        "chat",
        help="talk to a model, line by line",
        description="Talks to a model: every line is a turn, and its answer comes as it is written. Lines that begin "
        "with / are commands; /help lists them. An encoder-decoder reads every line as its source.",
    )
    _add_model(chat)
    chat.add_argument(
        "--chat-template",
        metavar="NAME|FILE",
        help="template of the model's folder, layout (chatml, alpaca, vicuna, plain) or file with a template",
    )
    chat.add_argument("--system", metavar="TEXT", help="text of a system message that stands first")
    _add_options(chat)
    chat.add_argument("--stats", action="store_true", help="statistics behind every answer")
    chat.set_defaults(command=_chat)

    info = commands.add_parser("info", help="about a model and this machine")
    _add_model(info, optional=True)
    info.add_argument("--json", action="store_true", help="one JSON object")
    info.set_defaults(command=_info)

    bench = commands.add_parser("bench", help="time a model, beside what this machine can do at most")
    _add_model(bench)
    bench.add_argument("--json", action="store_true", help="one JSON object")
    bench.add_argument(
        "--rounds", type=at_least_one, default=5, metavar="N", help="repetitions; the median counts"
    )
    bench.add_argument(
        "--profile", action="store_true", help="where the time of all repetitions went, by kind of phase"
    )
    bench.set_defaults(command=_bench)

    quality = commands.add_parser(
        "quality",
        help="what types of weights cost: perplexity or loss, KL to float32, size and speed of each",
        description="Holds a model with each type of weights against the same model in float32, on a text of yours. "
        "For an encoder-decoder (T5, mT5, UMT5) the file has lines of two columns, source TAB target.",
    )
    _add_model(quality, dtype=False)
    add_quality(quality)
    quality.set_defaults(command=_quality)
    return parser


def _add_options(parser: argparse.ArgumentParser) -> None:
    for name, kind, text in _NUMBERS:
        parser.add_argument(f"--{name.replace('_', '-')}", type=kind, metavar="N", help=text)
    parser.add_argument(
        "--do-sample",
        action=argparse.BooleanOptionalAction,
        help="draw tokens, or take the best one always; the model's folder decides otherwise",
    )
    parser.add_argument(
        "--early-stopping",
        type=early_stopping,
        metavar="WHEN",
        help="true, false or never: when a search with beams ends",
    )
    parser.add_argument(
        "--stop", action="append", metavar="TEXT", help="end before this text (may be repeated)"
    )


def _add_model(parser: argparse.ArgumentParser, *, optional: bool = False, dtype: bool = True) -> None:
    parser.add_argument(
        "model", nargs="?" if optional else None, help="folder, hub id, demo-stories or demo-en-fr"
    )
    if dtype:
        parser.add_argument(
            "--dtype",
            action="append",
            type=dtypes,
            metavar="TYPE",
            help="type of weights: auto (the default), float32, float16, bfloat16, int8 or int4, or types by part of "
            "the model as NAME=TYPE,NAME=TYPE (may be repeated)",
        )
        parser.add_argument(
            "--int4-group",
            type=whole,
            default=64,
            metavar="N",
            help="inputs that share a scale in int4: 32, 64 or 128; 64, by default",
        )
        parser.add_argument("--compute-dtype", choices=("float32", "bfloat16"))
    parser.add_argument(
        "--device",
        default="cpu",
        metavar="DEVICE",
        help="where the model runs: cpu (the default), auto (a GPU where one can run it), cuda or cuda:N",
    )
    parser.add_argument("--num-threads", type=whole, metavar="N", help="all that may be used, by default")
    parser.add_argument(
        "--cache-bytes",
        type=whole,
        metavar="N",
        help="bytes of keys and values that requests may reserve; half of what is free, by default",
    )
    parser.add_argument("--max-rows", type=whole, metavar="N", help="sequences side by side; 64, by default")
    parser.add_argument(
        "--prefix-cache-bytes",
        type=whole,
        default=0,
        metavar="N",
        help="bytes among those in which prompts are kept from one call to the next; 0, by default",
    )
    parser.add_argument(
        "--tokenizer", metavar="PATH", help="folder or tokenizer.json, instead of the model's"
    )
    parser.add_argument(
        "--adapter",
        action="append",
        metavar="FOLDER",
        help="adapter (LoRA of PEFT) to apply, a folder or hub id (may be repeated)",
    )
    parser.add_argument("--revision", help="branch, tag or commit on the hub")
    parser.add_argument("--cache-dir", metavar="FOLDER", help="where downloads are kept")
    parser.add_argument("--local-files-only", action="store_true", help="download nothing")


def _load(parsed: argparse.Namespace) -> LanguageModel:
    names = (
        "compute_dtype",
        "num_threads",
        "cache_bytes",
        "max_rows",
        "prefix_cache_bytes",
        "device",
        "tokenizer",
        "adapter",
        "revision",
        "cache_dir",
        "local_files_only",
        "int4_group",
    )
    options = {name: getattr(parsed, name) for name in names if hasattr(parsed, name)}
    dtype: Any = dtype_of_words(getattr(parsed, "dtype", None) or ["auto"])
    model: LanguageModel = load(parsed.model, dtype=dtype, **options)
    return model


def _load_with_decoder(parsed: argparse.Namespace) -> CausalLM | Seq2SeqLM:
    model: Any = _load(parsed)
    if not model.has_decoder:
        expected, got = "a model with a decoder", f"{model.info()['architecture']}, an encoder alone"
        raise errors.UnsupportedModelError(
            f"{parsed.model}: expected {expected}, got {got}, which gives hidden states and no text (in Python, "
            "TextEncoder.encode)",
            file=parsed.model,
            expected=expected,
            got=got,
        )
    loaded: CausalLM | Seq2SeqLM = model
    return loaded


def _run(parsed: argparse.Namespace) -> None:
    from .command_pieces import pieces

    prompt = _read_stdin() if parsed.prompt == "-" else _from_command_line("prompt", parsed.prompt)
    options = _options(parsed)
    model = _load_with_decoder(parsed)
    began = time.perf_counter()
    stream = pieces(model, prompt, options)
    if parsed.echo:
        print(prompt, end="", flush=True)
    # Sequences come side by side and are shown one after the other.
    waiting: dict[int, list[str]] = {}
    ended: set[int] = set()
    shown = tokens = head = 0
    first = 0.0
    for chunk in stream:
        tokens += len(chunk.token_ids)
        if first == 0.0:
            first, head = time.perf_counter(), tokens
        waiting.setdefault(chunk.index, []).append(str(chunk))
        if chunk.finish_reason is not None:
            ended.add(chunk.index)
        while shown in waiting:
            print("".join(waiting.pop(shown)), end="", flush=True)
            if shown not in ended:
                break
            print()
            shown += 1
    if not parsed.quiet:
        head = tokens if isinstance(stream, list) else head
        _show_statistics(model, prompt, (head, tokens), (began, first, time.perf_counter()))


def _options(parsed: argparse.Namespace) -> dict[str, Any]:
    """Options of generation that the command line has."""
    names = [*(name for name, _, _ in _NUMBERS), "do_sample", "early_stopping", "stop"]
    options: dict[str, Any] = {
        name: getattr(parsed, name) for name in names if getattr(parsed, name) is not None
    }
    if "stop" in options:
        options["stop"] = [_from_command_line("stop", text) for text in options["stop"]]
    return options


def _from_command_line(option: str, text: str) -> str:
    return _as_text(option, text, sys.getfilesystemencoding())


def _chat(parsed: argparse.Namespace) -> None:
    from .chat import Chat
    from .chat_command import Session, template_of

    _warn_once()  # Turns are alike.
    system = None if parsed.system is None else _from_command_line("system", parsed.system)
    model = _load_with_decoder(parsed)
    chat = Chat(model, system, template_of(model, parsed.chat_template))
    session = Session(
        chat,
        _options(parsed),
        is_asked=sys.stdin is not None and sys.stdin.isatty(),
        shows_statistics=parsed.stats,
        as_text=lambda text: _as_text("stdin", text, sys.stdin.encoding),
    )
    if not session.run():
        raise SystemExit(1)


def _read_stdin() -> str:
    if sys.stdin is None:
        raise bad_option("prompt", "text from stdin", "a stdin that is closed")
    try:
        text = sys.stdin.read().removesuffix("\n")
    except UnicodeDecodeError as error:
        raise bad_option("prompt", f"text in {sys.stdin.encoding}", str(error)) from error
    return _as_text("prompt", text, sys.stdin.encoding)


def _as_text(option: str, text: str, encoding: str) -> str:
    """Text whose bytes Python could not read in the locale's encoding, and kept as surrogates: UTF-8, mostly."""
    try:
        text.encode()
    except UnicodeEncodeError:
        try:
            return text.encode(encoding, "surrogateescape").decode()
        except UnicodeError as error:
            raise bad_option(option, "text in utf-8", str(error)) from error
    return text


def _show_statistics(
    model: CausalLM | Seq2SeqLM,
    prompt: str,
    counts: tuple[int, int],
    times: tuple[float, float, float],
) -> None:
    began, first, end = times
    prompt_tokens = len(model.tokenizer.encode(prompt)) if model.tokenizer is not None else 0
    parts = (
        f"load {model.info()['load_seconds']:.2f} s",
        f"prompt {prompt_tokens} tokens",
        f"first text after {first - began:.2f} s",
        f"{counts[1]} new tokens in {end - began:.2f} s",
        f"{_rate(counts, times):.1f} tokens/s",
    )
    print("\n" + "; ".join(parts), file=sys.stderr)


def _rate(counts: tuple[int, int], times: tuple[float, float, float]) -> float:
    """Tokens in a second behind the first piece of text, or in the whole time where nothing came behind that.

    Args:
        counts: Tokens of the first piece, which may be many where bytes are held back, and all tokens.
        times: When the call began, when its first piece came, and when it ended.
    """
    (head, tokens), (began, first, end) = counts, times
    tokens, seconds = (tokens - head, end - first) if tokens > head else (tokens, end - began)
    return tokens / seconds if seconds > 0 else 0.0


def _info(parsed: argparse.Namespace) -> None:
    values: dict[str, Any] = {"version": __version__, "cpu": cpu_info(), "cuda": cuda.info()}
    if parsed.model is not None:
        values["model"] = {"name": parsed.model} | _load(parsed).info()
    if parsed.json:
        print(json.dumps(values, indent=2))
        return
    for key, value in values.items():
        if key == "cuda":
            _show_gpus(value)
        elif isinstance(value, dict):
            print(f"{key}:")
            width = max(16, *map(len, value))
            for name, item in value.items():
                if name == "parts":
                    _show_parts(item)
                    continue
                print(f"  {name.replace('_', ' '):<{width}} {_shown(name, item)}")
        else:
            print(f"{key:<18} {value}")


def _show_gpus(found: Mapping[str, Any]) -> None:
    print("cuda:")
    for device in found["devices"]:
        major, minor = device["capability"]
        memory = device["reason"]
        if memory is None:
            free, total = (_shown(name, device[name]) for name in ("free_bytes", "total_bytes"))
            memory = f"{free} free of {total}"
        print(f"  {'cuda:' + str(device['ordinal']):<16} {device['name']}, {major}.{minor}, {memory}")
    if not found["devices"]:
        print(f"  none             {found['reason']}")


def _show_parts(parts: Sequence[Mapping[str, Any]]) -> None:
    print("  parts:")
    width = max(len(part["name"]) for part in parts)
    for part in parts:
        kind = part["dtype"] if part["group"] is None else f"{part['dtype']} by {part['group']}"
        size = _shown("bytes", part["bytes"])
        if part["shared_with"] is not None:
            size = f"the same as {part['shared_with']}"
        print(f"    {part['name']:<{width}}  {part['matrices']:>4} x {kind:<12} {size}")


def _bench(parsed: argparse.Namespace) -> None:
    from .bench_command import show

    show(parsed, _load_with_decoder(parsed))


def _quality(parsed: argparse.Namespace) -> None:
    _warn_once()  # The same folder is loaded several times.
    show_quality(parsed, _load_with_decoder(parsed))


def _shown(name: str, value: object) -> str:
    if isinstance(value, (list, tuple)):
        return ", ".join(str(item) for item in value) or "none"
    if value is None:
        return "no limit" if name in ("context_length", "cache_bytes") else "none"
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return str(value)
    if name.endswith("bytes"):
        return f"{value / 1e6:,.1f} MB"
    if name.endswith("seconds"):
        return f"{value:.3f} s"
    return f"{value:,}"


def _show_warning(message: Warning | str, *_: object, **__: object) -> None:
    print(f"fastdecode: warning: {message}", file=sys.stderr)


def _warn_once() -> None:
    """Shows no warning that has been shown, from here on."""
    said: set[str] = set()

    def show(message: Warning | str, *_: object, **__: object) -> None:
        if str(message) not in said:
            said.add(str(message))
            _show_warning(message)

    warnings.showwarning = show
