"""llama.cpp on T5 folders, one source at a time, greedy: GGUF written with the gguf package, f32, bf16, q8_0 and q4_0.

Several sources at once end its process, and it has no beams. Tokens are taken by its own greedy sampler.
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
CONTEXT = 512


def write_gguf(folder: Path, target: Path) -> None:
    """Writes a T5 folder (float32) as one GGUF file, with the keys that llama.cpp's own converter writes."""
    config = json.loads((folder / "config.json").read_text())
    writer = gguf.GGUFWriter(target, "t5")
    writer.add_context_length(CONTEXT)
    writer.add_embedding_length(config["d_model"])
    writer.add_feed_forward_length(config["d_ff"])
    writer.add_block_count(config["num_layers"])
    writer.add_head_count(config["num_heads"])
    writer.add_key_length(config["d_kv"])
    writer.add_value_length(config["d_kv"])
    writer.add_layer_norm_eps(1e-6)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_relative_attn_buckets_count(config["relative_attention_num_buckets"])
    writer.add_decoder_start_token_id(config["decoder_start_token_id"])
    writer.add_file_type(gguf.LlamaFileType.ALL_F32)
    pieces = json.loads((folder / "tokenizer.json").read_text())["model"]["vocab"]
    pieces += [[f"<unused_{place}>", 0.0] for place in range(config["vocab_size"] - len(pieces))]
    kinds = [gguf.TokenType.NORMAL] * len(pieces)
    kinds[0] = kinds[1] = gguf.TokenType.CONTROL
    kinds[2] = gguf.TokenType.UNKNOWN
    writer.add_tokenizer_model("t5")
    writer.add_tokenizer_pre("default")
    writer.add_token_list([piece for piece, _ in pieces])
    writer.add_token_scores([score for _, score in pieces])
    writer.add_token_types(kinds)
    writer.add_eos_token_id(1)
    writer.add_unk_token_id(2)
    writer.add_pad_token_id(0)
    writer.add_add_bos_token(False)  # noqa: FBT003 (C takes no names)
    writer.add_add_eos_token(True)  # noqa: FBT003 (C takes no names)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.T5, config["num_layers"])
    for name, values in load_file(folder / "model.safetensors").items():
        known = names.get_name(name, try_suffixes=(".weight",))
        if known is None:
            raise ValueError(f"gguf knows no name for {name}")
        writer.add_tensor(known, np.ascontiguousarray(values))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


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
        if not full.exists():
            write_gguf(folder, full)
        if not target.exists():
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
        params.n_ctx = params.n_batch = params.n_ubatch = CONTEXT
        params.n_threads = params.n_threads_batch = threads
        self.context = llama_cpp.llama_init_from_model(self.model, params)
        self.start = llama_cpp.llama_model_decoder_start_token(self.model)
        self.sampler = llama_cpp.llama_sampler_init_greedy()
        self.batch = llama_cpp.llama_batch_init(CONTEXT, 0, 1)

    def _fill(self, tokens: list[int], first: int, *, every: bool = False) -> None:
        self.batch.n_tokens = len(tokens)
        for place, token in enumerate(tokens):
            self.batch.token[place], self.batch.pos[place] = token, first + place
            self.batch.n_seq_id[place], self.batch.seq_id[place][0] = 1, 0
            self.batch.logits[place] = every or place + 1 == len(tokens)

    def encode(self, prompts: list[list[int]]) -> None:
        [source] = prompts
        # Positions must go on from those in the cache, even for the encoder.
        llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(self.context), True)  # noqa: FBT003 (C takes no names)
        self._fill(source, 0, every=True)
        if failed := llama_cpp.llama_encode(self.context, self.batch):
            raise RuntimeError(f"llama_encode gave {failed}")

    def generate(self, prompts: list[list[int]], new: int, beams: int = 1) -> list[list[int]]:
        if beams != 1 or len(prompts) != 1:
            raise RuntimeError("one source at a time, and no beams")
        self.encode(prompts)
        out: list[int] = []
        for step in range(new):
            self._fill(out[-1:] or [self.start], step)
            if failed := llama_cpp.llama_decode(self.context, self.batch):
                raise RuntimeError(f"llama_decode gave {failed}")
            out.append(llama_cpp.llama_sampler_sample(self.sampler, self.context, -1))
        return [out]


if __name__ == "__main__":
    serve(LlamaCpp)
