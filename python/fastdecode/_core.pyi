"""The native module: ids in, ids out. Which modules import it, tests/rust/architecture.rs says."""

from collections.abc import Sequence
from typing import Any, Literal, TypeAlias, TypedDict, final

__all__ = [
    "AdapterFile",
    "Generation",
    "Memory",
    "Model",
    "Prefix",
    "Profile",
    "Prompts",
    "State",
    "__version__",
    "adaptable_modules",
    "cpu_info",
    "cuda_cubin",
    "cuda_devices",
    "measure_limits",
    "process_number",
]

__version__: str

# A new token: sequence, id, why it was the last one (or None), its log-probability and the best ones (when
# asked for), and with beams, on the last token, the score of the sequence, on the first one the seconds from when the
# call was first asked for tokens to the first choice of the search; on the first one, too, how many tokens of
# its prompt were reused.
_Event = tuple[
    int,
    int,
    Literal["eos", "stop", "length"] | None,
    float | None,
    list[tuple[int, float]] | None,
    float | None,
    float | None,
    int | None,
]

# Rows whose logits come back.
_Wanted = Literal["last", "every"]

# What an adapter does to a tensor of its base: puts one in its place (apart from what is tied to it, or not), adds one
# times a factor, replaces rows, or adds the product of two (down, up; their rank, a factor, whether for an embedding).
_Edit = (
    tuple[str, str, bool]
    | tuple[str, str, float]
    | tuple[str, str, Sequence[int]]
    | tuple[str, tuple[str, str], int, float, bool]
)

def adaptable_modules(folder: str) -> list[str]: ...
def process_number() -> int: ...
def cpu_info() -> dict[str, Any]: ...

# A GPU: its number, N of cuda:N; its memory in bytes, or why it cannot be used.
class _CudaDevice(TypedDict):
    ordinal: int
    name: str
    capability: tuple[int, int]
    multiprocessors: int
    free_bytes: int | None
    total_bytes: int | None
    reason: str | None

def cuda_devices() -> list[_CudaDevice]: ...
def cuda_cubin(
    capability: tuple[int, int],
    sources: Sequence[tuple[str, str]],
    shipped: str | None,
    nvrtc: Sequence[str],
) -> tuple[bytes, Literal["shipped", "cached", "compiled"]]: ...
def measure_limits(size: int, num_threads: int | None = None) -> dict[str, Any]: ...

@final
class AdapterFile:
    @staticmethod
    def open(file: str) -> AdapterFile: ...
    def tensors(self) -> list[tuple[str, list[int]]]: ...

# A type of weights, the parts that have another one, and the inputs of a group of int4.
_Dtype: TypeAlias = tuple[str, Sequence[tuple[str, str]], int]

@final
class Model:
    @staticmethod
    def load(
        folder: str,
        dtype: _Dtype,
        compute_dtype: str | None,
        num_threads: int | None,
        cache_bytes: int | None,
        max_rows: int | None,
        prefix_cache_bytes: int,
        device: tuple[str, str, Sequence[str]],
        part: Literal["folder", "whole", "encoder"] = "folder",
        adapters: Sequence[tuple[AdapterFile, Sequence[_Edit]]] = ...,
    ) -> Model: ...
    @staticmethod
    def from_tensors(
        config: str,
        tensors: Sequence[tuple[str, str, Sequence[int], memoryview]],
        dtype: _Dtype,
        compute_dtype: str | None,
        num_threads: int | None,
        cache_bytes: int | None,
        max_rows: int | None,
        prefix_cache_bytes: int,
        device: tuple[str, str, Sequence[str]],
        part: Literal["folder", "whole", "encoder"] = "folder",
    ) -> Model: ...
    @property
    def vocab_size(self) -> int: ...
    @property
    def width(self) -> int: ...
    @property
    def context_limit(self) -> int | None: ...
    @property
    def weights_digest(self) -> int: ...
    def info(self) -> dict[str, Any]: ...
    def flops(self, tokens: int, wanted: int) -> float: ...
    def flops_by_numbers(self, tokens: int, wanted: int) -> tuple[int, int, int]: ...
    def profile(self) -> Profile: ...
    @property
    def has_encoder(self) -> bool: ...
    @property
    def has_decoder(self) -> bool: ...
    def start(self, length: int, source: Sequence[int] | Memory | None = None) -> State: ...
    def prefix(self, ids: Sequence[int]) -> Prefix: ...
    def prompts(self, prefix: Prefix | None = None) -> Prompts: ...
    def step(self) -> None: ...
    def encode(self, sources: Sequence[Sequence[int]]) -> list[Memory]: ...
    def score(
        self,
        items: Sequence[tuple[Sequence[int], Sequence[int | None], int, Sequence[int] | Memory | None]],
        prefix: Prefix | None = None,
    ) -> list[tuple[list[float], bool]]: ...
    def hidden_states(self, sources: Sequence[Sequence[int]], mean: bool) -> list[bytearray]: ...
    def embed(self, ids: Sequence[int]) -> bytearray: ...
    def trace(
        self, ids: Sequence[int], source: Sequence[int] | None = None
    ) -> list[tuple[str, list[int], bytearray]]: ...
    def generate(
        self,
        prompts: Prompts,
        *,
        limit: tuple[Literal["new_tokens", "length", "up_to_new_tokens", "default"], int],
        min_new_tokens: int,
        min_length: int,
        do_sample: bool,
        temperature: float,
        top_k: int,
        top_p: float,
        min_p: float | None,
        seed: int | Sequence[int] | None,
        num_return_sequences: int,
        num_beams: int,
        length_penalty: float,
        early_stopping: bool | Literal["never"],
        repetition_penalty: float,
        encoder_repetition_penalty: float,
        no_repeat_ngram_size: int,
        encoder_no_repeat_ngram_size: int,
        eos_token_id: Sequence[int],
        stop_token_ids: Sequence[int],
        logprobs: int | None,
        keep: bool = False,
        watched: bool = False,
    ) -> Generation: ...

@final
class Memory:
    @property
    def source_ids(self) -> list[int]: ...
    @property
    def width(self) -> int: ...
    def hidden(self) -> bytearray: ...
    def __len__(self) -> int: ...

@final
class Prefix:
    @property
    def tokens(self) -> list[int]: ...
    def __len__(self) -> int: ...

@final
class Profile:
    def start(self) -> None: ...
    def stop(self) -> None: ...
    def lines(self) -> list[tuple[Literal["source", "decode", "prompt"], str, str]]: ...
    # Calls, rows, nanoseconds and bytes of each line, and its operations in f32, by the dot of bf16, and by that of
    # integers; then of choosing tokens; then the time of everything.
    def counts(self) -> list[tuple[int, int, int, int, int, int, int]]: ...

@final
class State:
    def __len__(self) -> int: ...
    @property
    def tokens(self) -> list[int]: ...
    def logits(self) -> bytearray: ...
    def append(self, ids: Sequence[int], wanted: _Wanted = "last", expected: int = 0) -> bytearray: ...
    def append_embeddings(self, rows: memoryview, wanted: _Wanted = "last") -> bytearray: ...
    def fork(self) -> State: ...
    def truncate(self, n: int) -> None: ...

@final
class Prompts:
    def push(self, ids: Sequence[int], source: Sequence[int] | Memory | None = None) -> None: ...
    def __len__(self) -> int: ...

@final
class Generation:
    def advance(self) -> list[_Event] | None: ...
    def take(self) -> list[_Event] | None: ...
    def finish(self, sequence: int) -> None: ...
    def prompt_tokens(self, sequence: int) -> int: ...
    def prompt_end(self, sequence: int, most: int) -> list[int]: ...
    def kept(self) -> Prefix | None: ...
    def cancel(self) -> None: ...
