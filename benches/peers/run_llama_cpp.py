"""llama.cpp through llama-cpp-python's low-level calls: GGUF written with the gguf package, f32, bf16, q8_0 and q4_0.

Every call clears the cache; tokens are taken by llama.cpp's own greedy sampler, so that no logits cross to Python.
"""

from __future__ import annotations

import ctypes
import json
from pathlib import Path
from typing import Any

import gguf
import llama_cpp
import numpy as np
from safetensors.numpy import load_file
from worker import serve

# Numbers of llama.cpp's enum llama_ftype.
FTYPES = {"bf16": 32, "int8": 7, "int4": 2}
NAMES = {
    "ln_1": "attn_norm",
    "attn.c_attn": "attn_qkv",
    "attn.c_proj": "attn_output",
    "ln_2": "ffn_norm",
    "mlp.c_fc": "ffn_up",
    "mlp.c_proj": "ffn_down",
}
# llama.cpp's name of an architecture, by model_type.
ARCHITECTURES = {
    "gpt2": gguf.MODEL_ARCH.GPT2,
    "llama": gguf.MODEL_ARCH.LLAMA,
    "qwen2": gguf.MODEL_ARCH.QWEN2,
    "phi": gguf.MODEL_ARCH.PHI2,
}


def write_gguf(folder: Path, target: Path) -> None:
    """Writes a folder of float32 values as one GGUF file."""
    config = json.loads((folder / "config.json").read_text())
    architecture = ARCHITECTURES[config["model_type"]]
    writer = gguf.GGUFWriter(target, gguf.MODEL_ARCH_NAMES[architecture])
    writer.add_file_type(gguf.LlamaFileType.ALL_F32)
    write_vocabulary(folder, config["vocab_size"], writer)
    tensors = load_file(folder / "model.safetensors")
    if architecture is gguf.MODEL_ARCH.GPT2:
        write_gpt2(config, tensors, writer)
    else:
        write_rotary(config, architecture, tensors, writer)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def write_vocabulary(folder: Path, count: int, writer: gguf.GGUFWriter) -> None:
    """Writes `count` tokens: those of the folder's byte-level vocabulary, and names for ids that it does not have."""
    tokenizer = json.loads((folder / "tokenizer.json").read_text())["model"]
    ordered = sorted(tokenizer["vocab"], key=tokenizer["vocab"].__getitem__)[:count]
    unused = [f"[unused {i}]" for i in range(len(ordered), count)]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(ordered + unused)
    kinds = [gguf.TokenType.NORMAL] * len(ordered) + [gguf.TokenType.UNUSED] * len(unused)
    writer.add_token_types(kinds)
    writer.add_token_merges([m if isinstance(m, str) else " ".join(m) for m in tokenizer["merges"]])


def write_gpt2(config: dict[str, Any], tensors: dict[str, Any], writer: gguf.GGUFWriter) -> None:
    """Writes the numbers and the tensors of a GPT-2 (tied)."""
    width = config["n_embd"]
    writer.add_context_length(config["n_positions"])
    writer.add_embedding_length(width)
    writer.add_block_count(config["n_layer"])
    writer.add_feed_forward_length(4 * width)
    writer.add_head_count(config["n_head"])
    writer.add_layer_norm_eps(config["layer_norm_epsilon"])
    for name, values in tensors.items():
        short = name.removeprefix("transformer.")
        if short.startswith("h."):
            _, layer, rest = short.split(".", 2)
            module, kind = rest.rsplit(".", 1)
            # Conv1D holds (inputs, outputs); GGUF wants outputs first.
            turned = values.T if values.ndim == 2 else values
            writer.add_tensor(f"blk.{layer}.{NAMES[module]}.{kind}", np.ascontiguousarray(turned))
        else:
            module, kind = short.rsplit(".", 1)
            top = {"wte": "token_embd", "wpe": "position_embd", "ln_f": "output_norm"}[module]
            writer.add_tensor(f"{top}.{kind}", values)


def write_rotary(
    config: dict[str, Any], architecture: gguf.MODEL_ARCH, tensors: dict[str, Any], writer: gguf.GGUFWriter
) -> None:
    """Writes the numbers and the tensors of a Llama, Qwen 2 or Phi."""
    heads, layers = config["num_attention_heads"], config["num_hidden_layers"]
    size = config.get("head_dim") or config["hidden_size"] // heads
    theta = config.get("rope_theta", 1e4)
    turned = int(size * config.get("partial_rotary_factor", 1.0))
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(layers)
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(heads)
    writer.add_head_count_kv(config["num_key_value_heads"] or heads)
    writer.add_rope_dimension_count(turned)
    writer.add_rope_freq_base(theta)
    if "rms_norm_eps" in config:
        writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    else:
        writer.add_layer_norm_eps(config["layer_norm_eps"])
    if scaling := config.get("rope_scaling"):
        writer.add_tensor("rope_freqs.weight", llama3_factors(scaling, theta, turned))
    names = gguf.get_tensor_name_map(architecture, layers)
    for name, values in tensors.items():
        known = names.get_name(name, try_suffixes=(".weight", ".bias"))
        if known is None:
            raise ValueError(f"gguf knows no name for {name}")
        if architecture is gguf.MODEL_ARCH.LLAMA and name.endswith(("q_proj.weight", "k_proj.weight")):
            # There it turns neighbours in place of halves.
            values = values.reshape(-1, 2, size // 2, values.shape[1]).swapaxes(1, 2).reshape(values.shape)
        writer.add_tensor(known, np.ascontiguousarray(values))


def llama3_factors(scaling: dict[str, Any], theta: float, turned: int) -> Any:
    """By how much every frequency of Llama 3 is divided (modeling_rope_utils.py of transformers, "llama3")."""
    old, factor = scaling["original_max_position_embeddings"], scaling["factor"]
    low, high = scaling["low_freq_factor"], scaling["high_freq_factor"]
    wave = 2 * np.pi * theta ** (np.arange(0, turned, 2) / turned)
    part = np.clip((old / wave - low) / (high - low), 0, 1)
    return (1 / ((1 - part) / factor + part)).astype(np.float32)


class LlamaCpp:
    @staticmethod
    def version() -> str:
        return f"llama-cpp-python {llama_cpp.__version__}"

    @staticmethod
    def path(folder: Path, cache: Path, precision: str) -> Path:
        return cache / f"{folder.name}-{precision}.gguf"

    @classmethod
    def prepare(cls, folder: Path, cache: Path, precision: str) -> None:
        full, target = cls.path(folder, cache, "f32"), cls.path(folder, cache, precision)
        if target.exists():
            return
        if not full.exists():
            write_gguf(folder, full)
        if target != full:
            params = llama_cpp.llama_model_quantize_default_params()
            params.ftype = FTYPES[precision]
            failed = llama_cpp.llama_model_quantize(
                str(full).encode(), str(target).encode(), ctypes.byref(params)
            )
            if failed:
                raise RuntimeError(f"llama_model_quantize gave {failed}")

    def __init__(self, folder: Path, cache: Path, precision: str, threads: int) -> None:
        llama_cpp.llama_backend_init()
        model_params = llama_cpp.llama_model_default_params()
        self.model = llama_cpp.llama_model_load_from_file(
            str(self.path(folder, cache, precision)).encode(), model_params
        )
        params: Any = llama_cpp.llama_context_default_params()
        # Room for 8 sequences of 160 tokens, or one of 1024.
        params.n_ctx, params.n_batch, params.n_ubatch, params.n_seq_max = 2048, 2048, 512, 8
        params.n_threads = params.n_threads_batch = threads
        params.kv_unified = True
        self.context = llama_cpp.llama_init_from_model(self.model, params)
        self.sampler = llama_cpp.llama_sampler_init_greedy()
        self.batch = llama_cpp.llama_batch_init(2048, 0, 1)

    def _decode(self, rows: list[tuple[int, int, int, bool]]) -> None:
        """Runs rows of (token, position, sequence, whether its logits are wanted)."""
        self.batch.n_tokens = len(rows)
        for i, (token, position, sequence, wanted) in enumerate(rows):
            self.batch.token[i], self.batch.pos[i] = token, position
            self.batch.n_seq_id[i], self.batch.seq_id[i][0] = 1, sequence
            self.batch.logits[i] = wanted
        if failed := llama_cpp.llama_decode(self.context, self.batch):
            raise RuntimeError(f"llama_decode gave {failed}")

    def generate(self, prompts: list[list[int]], new: int) -> list[list[int]]:
        llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(self.context), True)  # noqa: FBT003 (C takes no names)
        length, rows = len(prompts[0]), []
        for sequence, prompt in enumerate(prompts):
            rows += [(token, i, sequence, i == length - 1) for i, token in enumerate(prompt)]
        out: list[list[int]] = [[] for _ in prompts]
        for step in range(new):
            self._decode(rows)
            wanted = [i for i, row in enumerate(rows) if row[3]]
            for sequence, place in enumerate(wanted):
                out[sequence].append(llama_cpp.llama_sampler_sample(self.sampler, self.context, place))
            rows = [(ids[-1], length + step, sequence, True) for sequence, ids in enumerate(out)]
        return out


if __name__ == "__main__":
    serve(LlamaCpp)
