"""Writes tests/golden/decode.json: what transformers' generate() makes of logits that are a hash of the tokens so far.

The model computes nothing, so that its twin in tests/rust/fake.rs gives the same logits to the bit, and every
difference in ids is one of decoding. Run in an environment with torch and transformers:

    python tools/make_decode_golden.py
"""

from __future__ import annotations

import json
import random
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from transformers import GenerationMixin, PretrainedConfig, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutput

GOLDEN = Path(__file__).resolve().parent.parent / "tests" / "golden" / "decode.json"

GREEDY_CASES, SAMPLE_CASES, BEAM_CASES = 150, 250, 400

#: Beams whose sums differ by less may change places with the rounding of a logarithm; torch leaves the order of equal
#: ones open. Requests that meet such a pair among the continuations of a step are not stored.
SMALLEST_GAP = 2e-5


class HashConfig(PretrainedConfig):
    """Vocabulary and spread of the logits."""

    model_type = "hash"

    def __init__(self, vocab_size: int = 8, spread: int = 4, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.vocab_size, self.spread = vocab_size, spread


class HashModel(PreTrainedModel, GenerationMixin):
    """Logits in [-spread, spread), exact in float32: a hash of the tokens that the mask leaves, and of the next one."""

    config_class = HashConfig

    def __init__(self, config: HashConfig) -> None:
        super().__init__(config)
        self.unused = torch.nn.Parameter(torch.zeros(1))
        self.smallest_gap = float("inf")

    def _get_top_k_continuations(
        self, accumulated_log_probs: torch.Tensor, *, beams_to_keep: int, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Also notes the smallest gap between neighbours among those that are chosen, and the first that is not."""
        count = min(beams_to_keep + 1, accumulated_log_probs.shape[-1])
        best = torch.topk(accumulated_log_probs, k=count).values
        gaps = (best[:, :-1] - best[:, 1:])[best[:, 1:] > -1e8]
        self.smallest_gap = min([self.smallest_gap, *gaps.tolist()])
        continuations: tuple[torch.Tensor, torch.Tensor, torch.Tensor] = super()._get_top_k_continuations(
            accumulated_log_probs=accumulated_log_probs, beams_to_keep=beams_to_keep, **kwargs
        )
        return continuations

    def forward(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor | None = None, **_: Any
    ) -> CausalLMOutput:
        """Logits after the last token, shape (B, 1, V)."""
        rows = input_ids.numpy().astype(np.uint32)
        mask = np.ones_like(rows) if attention_mask is None else attention_mask.numpy()
        state = np.full(rows.shape[0], 0x9E3779B9, dtype=np.uint32)
        for tokens, seen in zip(rows.T, mask.T, strict=True):
            mixed = (state ^ tokens) * np.uint32(0x01000193)
            state = np.where(seen != 0, mixed ^ (mixed >> np.uint32(15)), state)
        token = np.arange(self.config.vocab_size, dtype=np.uint32)
        x = state[:, None] + token[None, :] * np.uint32(0x9E3779B1)
        x = (x ^ (x >> np.uint32(16))) * np.uint32(0x85EBCA6B)
        x = (x ^ (x >> np.uint32(13))) * np.uint32(0xC2B2AE35)
        x = x ^ (x >> np.uint32(16))
        bits = ((x >> np.uint32(8)) & np.uint32(0x00FFFF00)) | (token & np.uint32(0xFF))
        spread = np.float32(self.config.spread)
        logits = bits.astype(np.float32) * (2 * spread / np.float32(2**24)) - spread
        return CausalLMOutput(logits=torch.from_numpy(logits)[:, None, :])


def common_options(
    rng: random.Random, vocab_size: int, prompt_length: int, equal_lengths: bool
) -> dict[str, Any]:
    """Options that do not ask for sampling. What looks at pads is left to prompts of equal length."""
    new_tokens = rng.choice([1, 2, 5, 12, 20])
    options: dict[str, Any] = {"max_new_tokens": new_tokens}
    eos_count = rng.choice([0, 1, 1, 2, 3, vocab_size // 8])
    options["eos_token_id"] = [rng.randrange(vocab_size) for _ in range(eos_count)]
    if rng.random() < 0.35:
        options["repetition_penalty"] = rng.choice([0.7, 1.1, 1.3, 2.0, 5.0])
    if rng.random() < 0.25:
        options["min_new_tokens"] = rng.randrange(new_tokens + 2)
    if equal_lengths:
        if rng.random() < 0.2:
            options["min_length"] = prompt_length + rng.randrange(new_tokens + 1)
        if rng.random() < 0.2:
            options["no_repeat_ngram_size"] = rng.choice([1, 2, 3])
        if rng.random() < 0.1:
            options["encoder_no_repeat_ngram_size"] = rng.choice([1, 2, 3])
        if rng.random() < 0.1:
            options["encoder_repetition_penalty"] = rng.choice([0.8, 1.5])
        if rng.random() < 0.2:
            del options["max_new_tokens"]
            options["max_length"] = prompt_length + new_tokens
    return options


def sampling_options(rng: random.Random, vocab_size: int) -> dict[str, Any]:
    """Options of a draw; top_k 0 is off."""
    options: dict[str, Any] = {"do_sample": True, "top_k": rng.choice([0, 0, 1, 3, 10, 50, vocab_size])}
    if rng.random() < 0.5:
        options["temperature"] = rng.choice([0.1, 0.5, 0.7, 1.3, 2.0, 10.0])
    if rng.random() < 0.4:
        options["top_p"] = rng.choice([0.0, 0.1, 0.5, 0.8, 0.9, 0.95, 0.999])
    if rng.random() < 0.3:
        options["min_p"] = rng.choice([0.0, 0.01, 0.1, 0.5, 1.0])
    return options


def make_case(rng: random.Random, kind: str) -> dict[str, Any]:
    """One random request, without its answer."""
    vocab_size = rng.choice([3, 10, 40, 256, 256, 3000] if kind != "beam" else [10, 40, 40, 256])
    prompt_count = rng.choice([1, 1, 2, 3])
    equal_lengths = prompt_count == 1 or rng.random() < 0.5
    length = rng.choice([1, 2, 7, 30])
    lengths = [length if equal_lengths else rng.randint(1, 30) for _ in range(prompt_count)]
    prompts = [[rng.randrange(vocab_size) for _ in range(length)] for length in lengths]
    options = common_options(rng, vocab_size, length, equal_lengths)
    if kind == "sample" or (kind == "beam" and rng.random() < 0.3):
        options |= sampling_options(rng, vocab_size)
    if kind == "sample":
        options["num_return_sequences"] = rng.choice([1, 1, 2, 4])
    if kind == "beam":
        options["num_beams"] = rng.choice([2, 3, 4, 6])
        options["num_return_sequences"] = rng.choice([1, rng.randint(1, options["num_beams"])])
        options["early_stopping"] = rng.choice([False, True, "never"])
        options["length_penalty"] = rng.choice([-1.0, 0.0, 0.3, 1.0, 1.0, 2.0])
    return {
        "vocab_size": vocab_size,
        "spread": rng.choice([1, 2, 4, 8]),
        "seed": rng.choice([rng.randrange(1000), rng.randrange(2**64)]),
        "prompts": prompts,
        "options": options,
    }


def answer(case: dict[str, Any]) -> bool:
    """Runs transformers and stores the new ids of every row, up to its end, and the scores of beams.

    Returns whether no two beams came too close to each other, and every prompt has a hypothesis that ended.
    """
    model = HashModel(HashConfig(vocab_size=case["vocab_size"], spread=case["spread"])).eval()
    prompts, options = case["prompts"], dict(case["options"])
    width = max(map(len, prompts))
    input_ids = torch.tensor([[0] * (width - len(ids)) + ids for ids in prompts])
    mask = torch.tensor([[0] * (width - len(ids)) + [1] * len(ids) for ids in prompts])
    ending = options.pop("eos_token_id")
    if ending:
        options["eos_token_id"] = ending
    torch.manual_seed(case["seed"])
    output = model.generate(
        input_ids,
        attention_mask=mask,
        pad_token_id=0,
        use_cache=False,
        return_dict_in_generate=True,
        output_scores=True,
        **options,
    )
    rows = output.sequences[:, width:].tolist()
    for row in rows:
        # What a search without eos fills up with.
        if -1 in row:
            del row[row.index(-1) :]
        end = next((place + 1 for place, token in enumerate(row) if token in ending), len(row))
        del row[end:]
    case["ids"] = rows
    if options.get("num_beams", 1) > 1:
        case["scores"] = output.sequences_scores.tolist()
        # Where the options forbid everything, transformers returns something unfinished, and the engine an error.
        if min(case["scores"][:: options["num_return_sequences"]]) < -1e8:
            return False
    return bool(model.smallest_gap > SMALLEST_GAP)


def main() -> None:
    """Makes the cases and writes the file."""
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    warnings.simplefilter("ignore")
    rng = random.Random(20)
    cases = []
    for kind, count in (("greedy", GREEDY_CASES), ("sample", SAMPLE_CASES), ("beam", BEAM_CASES)):
        made = close = refused = 0
        while made < count:
            case = make_case(rng, kind)
            try:
                distinct = answer(case)
            except RuntimeError as error:
                # torch refuses to draw where every token is forbidden, and to choose more candidates than there are.
                known = (
                    "probability tensor contains",
                    "invalid multinomial",
                    "selected index k out of range",
                    "n_sample",
                )
                if not any(text in str(error) for text in known):
                    raise
                refused += 1
                continue
            if distinct:
                cases.append(case)
            close += not distinct
            made += distinct
        print(f"{kind}: {made} made, {close} left out, {refused} refused by torch")
    golden = {"torch": torch.__version__, "transformers": transformers.__version__, "cases": cases}
    lines = ",\n".join(json.dumps(case, separators=(",", ":")) for case in cases)
    head = json.dumps({key: value for key, value in golden.items() if key != "cases"})[:-1]
    GOLDEN.write_text(f'{head}, "cases": [\n{lines}\n]}}\n')
    print(f"{GOLDEN}: {len(cases)} cases, {GOLDEN.stat().st_size} bytes")


if __name__ == "__main__":
    main()
