"""Runs GPT-2 folders from Hugging Face on a CPU, fast, with exactly what transformers gives."""

from . import errors as errors
from ._core import __version__ as __version__
from ._core import cpu_info as cpu_info
from .model import CausalLM as CausalLM
from .model import load as load
from .options import GenerateOptions as GenerateOptions
from .results import Chunk as Chunk
from .results import Output as Output
from .state import State as State
from .tokenizer import Tokenizer as Tokenizer

__all__ = [
    "CausalLM",
    "Chunk",
    "GenerateOptions",
    "Output",
    "State",
    "Tokenizer",
    "__version__",
    "cpu_info",
    "errors",
    "load",
]
