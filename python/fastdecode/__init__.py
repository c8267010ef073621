"""Runs GPT-2, Llama, T5 and like folders from Hugging Face on a CPU, fast, with exactly what transformers gives."""

from typing import TYPE_CHECKING

from . import errors as errors
from ._core import __version__ as __version__
from ._core import cpu_info as cpu_info
from .causal import CausalLM as CausalLM
from .loading import load as load
from .memory import Memory as Memory
from .prefix import Prefix as Prefix
from .seq2seq import Seq2SeqLM as Seq2SeqLM
from .state import State as State
from .tokenizer import Tokenizer as Tokenizer

if TYPE_CHECKING:
    from .chat import Chat as Chat
    from .options import GenerateOptions as GenerateOptions
    from .pipelines import pipeline as pipeline
    from .profile import Profile as Profile
    from .results import Chunk as Chunk
    from .results import Output as Output
    from .results import Quality as Quality
    from .results import QualityReport as QualityReport
    from .results import Score as Score
    from .text_encoder import TextEncoder as TextEncoder

__all__ = [
    "CausalLM",
    "Chat",
    "Chunk",
    "GenerateOptions",
    "Memory",
    "Output",
    "Prefix",
    "Profile",
    "Quality",
    "QualityReport",
    "Score",
    "Seq2SeqLM",
    "State",
    "TextEncoder",
    "Tokenizer",
    "__version__",
    "cpu_info",
    "errors",
    "load",
    "pipeline",
]


def __getattr__(name: str) -> object:
    """Imports on first use what not every program needs; `dataclasses` would be most of what an import costs."""
    if name == "pipeline":
        from .pipelines import pipeline

        return pipeline
    if name == "Chat":
        from .chat import Chat

        return Chat
    if name == "Profile":
        from .profile import Profile

        return Profile
    if name == "TextEncoder":
        from .text_encoder import TextEncoder

        return TextEncoder
    if name in ("Chunk", "GenerateOptions", "Output", "Quality", "QualityReport", "Score"):
        from . import options, results

        return getattr(options if name == "GenerateOptions" else results, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
