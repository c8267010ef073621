"""`load`: from a name to a loaded model of the right class."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .causal import CausalLM
from .model import read_model
from .seq2seq import Seq2SeqLM

if TYPE_CHECKING:
    import os
    from collections.abc import Sequence
    from typing import Unpack

    from .accepted import PassedOverInLoading
    from .load_options import ComputeDtype, Dtype, Int4Group


def load(
    model: str | os.PathLike[str],
    *,
    dtype: Dtype = "auto",
    int4_group: Int4Group = 64,
    compute_dtype: ComputeDtype | None = None,
    num_threads: int | None = None,
    cache_bytes: int | None = None,
    max_rows: int | None = None,
    prefix_cache_bytes: int = 0,
    device: str = "cpu",
    tokenizer: object = None,
    adapter: str | os.PathLike[str] | Sequence[str | os.PathLike[str]] | None = None,
    revision: str | None = None,
    token: str | bool | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
    local_files_only: bool = False,
    **transformers: Unpack[PassedOverInLoading],
) -> Any:  # noqa: ANN401 (a union would have to be narrowed before every use)
    """Loads a model from a Hugging Face folder, the hub, or the package's own demo models.

    The folder decides what it is: GPT-2, Llama, Qwen, Mistral, Phi and GPT-1 become a `CausalLM`; T5, mT5 and UMT5
    become a `Seq2SeqLM`, or a `TextEncoder` where there is no decoder (`T5EncoderModel` and its like). `CausalLM.load`
    and `Seq2SeqLM.load` take the same arguments, refuse other kinds, and tell type checkers what they return;
    `TextEncoder.load` reads the encoder of any T5, mT5 or UMT5.

    Weights are read once, packed for this CPU and kept; the tokenizer is read when text first needs it.

    Args:
        model: A folder with config.json and weights (safetensors, or else pytorch_model.bin), a hub id, or
            a bundled model: "demo-stories" (GPT-2) or "demo-en-fr" (T5, English to French). An adapter (LoRA of
            PEFT) alone is loaded over the base that its adapter_config.json names; one that lies beside the
            weights is applied to them.
        dtype: How weights are stored. "auto" keeps the checkpoint's values exactly; "float32", "float16" and
            "bfloat16" round every tensor, as `.to(dtype)` in PyTorch does. "int8" and "int4" quantize the matrices
            while they are read, and keep all else exactly: "int8" has a scale for each output, "int4" a scale and
            a zero point for each output and `int4_group` inputs, with embeddings and head in int8. Activations
            are rounded to eight bits for products with them, so that ids are close to those of "float32", not the
            same. A mapping gives parts of the model a type of their own: {"default": "bfloat16", "lm_head": "int8"}.
            Its keys are "default" ("auto" where it is missing; also of all that is no matrix), "lm_head",
            "embedding", and names of matrices as `info` lists them, with `*` for any characters. The closest key
            wins: the very name, then "lm_head" and "embedding", then the pattern with most characters beside `*`
            (of equals the first), then "default"; a key that wins nowhere is an error. A head that shares the
            embeddings' tensor is a second matrix where the two types differ.
        int4_group: Inputs that share a scale in "int4": 32, 64 (the default) or 128. Fewer take more memory and
            keep more.
        compute_dtype: How products are formed: "float32" (the default), or "bfloat16" for bfloat16 weights,
            which also rounds activations and halves the cache. Parts in int8 and int4 may stand beside bfloat16.
        num_threads: Threads to compute with; None for all that this process may use. It does not change
            results.
        cache_bytes: Bytes of keys and values that running requests may reserve; None for half of what the
            system and the control group leave free when the weights have been loaded (no limit where the
            system does not tell). A sequence reserves blocks for its prompt, its source and all new tokens that
            it may come to. What states and memories hold counts too, and is never refused. A request that does
            not fit waits; one that would not fit alone is an error. A `TextEncoder` keeps none between calls: the
            sources of one step take no more than this.
        max_rows: Sequences that decode side by side in one step, at most 65,536; None for 64. Others wait. In a
            `TextEncoder` they are the sources that are read side by side. It does not change results.
        prefix_cache_bytes: Bytes, among `cache_bytes`, in which a `CausalLM` keeps what calls have read and
            generated, so that later ones that begin in the same way do not compute it again; default 0. What was
            not used for longest goes first, and all of it before a request waits. It does not change results.
            `CausalLM.prefix` shares a prefix by hand.
        device: Where steps run: "cpu", "cuda" or "cuda:N" (an NVIDIA GPU, by its number), or "auto" (the first GPU
            where it can run the model, else the CPU; `info` says which and why). A GPU runs "float32" and
            "bfloat16"; `compute_dtype` is then what the weights are, and `cache_bytes` are those of its memory.
        tokenizer: Used instead of the folder's: a folder, a tokenizer.json, spiece.model or tokenizer.model, a
            `tokenizers.Tokenizer`, or any tokenizer of transformers, whose ids and text are then its own.
        adapter: An adapter (LoRA of PEFT) that is merged into the weights in float32, before `dtype` says how
            they are stored: a folder, or a hub id ("owner/name" or "owner/name@revision"). Those of a list add up
            in order. The last one that has a tokenizer brings it.
        revision: Branch, tag or commit on the hub; of the base, where `model` is the folder of an adapter.
        token: Access token of the hub; True for the stored one.
        cache_dir: Where downloads are kept, instead of the hub's usual place.
        local_files_only: Use only what has been downloaded before.
        **transformers: Arguments of its `from_pretrained`: `torch_dtype` is another name of `dtype`, and takes a
            dtype of torch, too; what changes nothing here is passed over (`device_map="auto"` or "cpu",
            `trust_remote_code=False`, `low_cpu_mem_usage`, `use_safetensors=True`, `attn_implementation="sdpa"`,
            ...).

    Raises:
        ModelNotFoundError: There is no such folder, demo model or hub id.
        UnsupportedModelError: The folder holds another architecture.
        UnknownOptionError: There is no such argument.
        ConfigError: A value in config.json or generation_config.json cannot be used.
        OptionError: An argument cannot be used.
        CheckpointError: The weights are malformed, incomplete or not what config.json says.
        OutOfMemoryError: The system or the GPU refused the memory.
        CudaError: A GPU was asked for and cannot be used.

    Example:
        >>> model = fastdecode.load("demo-stories")
        >>> story = model.generate("Once upon a time", max_new_tokens=40, seed=1)
        >>> story == model.generate("Once upon a time", max_new_tokens=40, seed=1)
        True
    """
    from .text_encoder import TextEncoder

    options = {
        "dtype": dtype,
        "int4_group": int4_group,
        "compute_dtype": compute_dtype,
        "num_threads": num_threads,
        "cache_bytes": cache_bytes,
        "max_rows": max_rows,
        "prefix_cache_bytes": prefix_cache_bytes,
        "device": device,
        "tokenizer": tokenizer,
        "adapter": adapter,
        "revision": revision,
        "token": token,
        "cache_dir": cache_dir,
        "local_files_only": local_files_only,
    }
    return read_model((CausalLM, Seq2SeqLM, TextEncoder), model, {**options, **transformers})
