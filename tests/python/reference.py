"""The reference that parity is held against: transformers on folders of random GPT-2 models.

Owns the drawing and writing of such folders, the reference's answers for them, and the two questions on which laws 4
and 5 rest: how far apart logits may be, and whether a choice between two tokens was too close to call. It knows nothing
of fastdecode. Without the pinned transformers the import fails, and with it every test that needs the reference.

Shapes: `B` sequences, `T` tokens, `D` model width, `V` vocabulary.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from hypothesis import strategies as st
from tally import TALLY

try:
    import torch
    import transformers
    from safetensors.torch import save_file
    from transformers.activations import ACT2CLS
    from transformers.generation import logits_process as processors
except ImportError as missing:
    message = (
        f"the parity tests need their reference, but {missing.name} is absent: pip install 'fastdecode[test]'"
    )
    raise RuntimeError(message) from missing

PINNED = "5.23.0"
if transformers.__version__ != PINNED:
    raise RuntimeError(f"parity is claimed for transformers {PINNED}, got {transformers.__version__}")

transformers.utils.logging.set_verbosity_error()
transformers.utils.logging.disable_progress_bar()
torch.set_num_threads(1)

Tensors = dict[str, torch.Tensor]
Ids = list[int]

# Those with parameters of their own have no place in a GPT-2 checkpoint.
PARAMETRIC = {"prelu", "xielu"}
ACTIVATIONS = sorted(set(ACT2CLS) - PARAMETRIC)
DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
HEADS = ("tied, absent", "tied, equal", "tied, different", "untied")


@dataclass(frozen=True)
class Recipe:
    """Everything that decides one random folder."""

    config: dict[str, Any]
    dtype: str = "float32"
    head: str = "tied, absent"
    prefix: bool = True
    shards: int = 1
    buffers: bool = False
    spread: float = 1.0
    seed: int = 0


def config(
    *,
    heads: int = 3,
    head_dim: int = 16,
    layers: int = 2,
    vocab: int = 97,
    positions: int = 64,
    **others: Any,
) -> dict[str, Any]:
    """Returns a config.json of GPT-2's architecture with `D = heads * head_dim`; `others` overrides its keys."""
    return {
        "architectures": ["GPT2LMHeadModel"],
        "model_type": "gpt2",
        "activation_function": "gelu_new",
        "bos_token_id": None,
        "eos_token_id": None,
        "layer_norm_epsilon": 1e-5,
        "n_embd": heads * head_dim,
        "n_head": heads,
        "n_inner": None,
        "n_layer": layers,
        "n_positions": positions,
        "scale_attn_by_inverse_layer_idx": False,
        "scale_attn_weights": True,
        "vocab_size": vocab,
        **others,
    }


@st.composite
def recipes(draw: st.DrawFn) -> Recipe:
    """Draws folders over everything that a GPT-2 config and its files may vary."""
    head = draw(st.sampled_from(HEADS))
    return Recipe(
        config=config(
            heads=draw(st.sampled_from([1, 2, 3, 5])),
            head_dim=draw(st.sampled_from([1, 2, 7, 16, 17, 32, 64])),
            layers=draw(st.integers(1, 3)),
            vocab=draw(st.sampled_from([3, 4, 15, 16, 17, 97, 257, 1000])),
            positions=draw(st.sampled_from([24, 64, 80])),
            activation_function=draw(st.sampled_from(ACTIVATIONS)),
            layer_norm_epsilon=draw(st.sampled_from([1e-5, 1e-6, 1e-3])),
            n_inner=draw(st.sampled_from([None, 1, 5, 33, 64, 129])),
            scale_attn_by_inverse_layer_idx=draw(st.booleans()),
            scale_attn_weights=draw(st.booleans()),
            tie_word_embeddings=head != "untied",
        ),
        dtype=draw(st.sampled_from(sorted(DTYPES))),
        head=head,
        prefix=draw(st.booleans()),
        shards=draw(st.sampled_from([1, 1, 2, 3])),
        buffers=draw(st.booleans()),
        spread=draw(st.sampled_from([0.3, 1.0, 1.5])),
        seed=draw(st.integers(0, 2**31 - 1)),
    )


def tensors(recipe: Recipe) -> Tensors:
    """Draws the recipe's weights, named and shaped as the checkpoint wants them, in its dtype.

    Matrices are normal with a deviation of `spread / sqrt(inputs)`, so that activations keep their size from layer to
    layer: where they grow without bounds, float32 itself is far from the exact result.
    """
    c, random = recipe.config, torch.Generator().manual_seed(recipe.seed)
    width, vocab = c["n_embd"], c["vocab_size"]
    inner = c["n_inner"] or 4 * width

    def normal(*shape: int, deviation: float = 0.1, mean: float = 0.0) -> torch.Tensor:
        return torch.randn(shape, generator=random) * deviation + mean

    def matrix(inputs: int, outputs: int) -> torch.Tensor:
        return normal(inputs, outputs, deviation=recipe.spread / inputs**0.5)

    named = {
        "wte.weight": normal(vocab, width, deviation=0.5),
        "wpe.weight": normal(c["n_positions"], width, deviation=0.5),
    }
    for layer in range(c["n_layer"]):
        h = f"h.{layer}."
        for norm in ("ln_1", "ln_2"):
            named |= {f"{h}{norm}.weight": normal(width, mean=1.0), f"{h}{norm}.bias": normal(width)}
        shapes = {"attn.c_attn": (width, 3 * width), "attn.c_proj": (width, width)}
        shapes |= {"mlp.c_fc": (width, inner), "mlp.c_proj": (inner, width)}
        for name, (inputs, outputs) in shapes.items():
            named |= {f"{h}{name}.weight": matrix(inputs, outputs), f"{h}{name}.bias": normal(outputs)}
        if recipe.buffers:
            n = c["n_positions"]
            named[f"{h}attn.bias"] = torch.tril(torch.ones(n, n)).reshape(1, 1, n, n)
            named[f"{h}attn.masked_bias"] = torch.tensor(-1e4)
    named |= {"ln_f.weight": normal(width, mean=1.0), "ln_f.bias": normal(width)}
    if recipe.prefix:
        named = {f"transformer.{name}": tensor for name, tensor in named.items()}
    if recipe.head == "tied, equal":
        named["lm_head.weight"] = named["transformer.wte.weight" if recipe.prefix else "wte.weight"].clone()
    elif recipe.head != "tied, absent":
        named["lm_head.weight"] = normal(vocab, width, deviation=0.5)
    return {name: tensor.to(DTYPES[recipe.dtype]) for name, tensor in named.items()}


def write(recipe: Recipe, folder: Path) -> Path:
    """Writes the recipe as a Hugging Face folder and returns it."""
    save({**recipe.config, "dtype": recipe.dtype}, tensors(recipe), recipe.shards, folder)
    return folder


def save(config: dict[str, Any], named: Tensors, shards: int, folder: Path) -> None:
    """Writes a config and its weights, in so many files, as a Hugging Face folder."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config, indent=1, sort_keys=True) + "\n")
    if shards == 1:
        save_file(named, folder / "model.safetensors", {"format": "pt"})
        return
    where: dict[str, str] = {}
    for shard in range(shards):
        file = f"model-{shard + 1:05}-of-{shards:05}.safetensors"
        part = {name: named[name] for name in sorted(named)[shard::shards]}
        save_file(part, folder / file, {"format": "pt"})
        where |= dict.fromkeys(part, file)
    size = sum(tensor.nbytes for tensor in named.values())
    index = {"metadata": {"total_size": size}, "weight_map": where}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=1, sort_keys=True) + "\n")


class Reference:
    """transformers' model of a folder, computing in float32.

    Args:
        folder: A Hugging Face folder.
        dtype: Type to which the weights are rounded first, or None for the values in the files.
    """

    def __init__(self, folder: Path, dtype: str | None = None) -> None:
        stored = DTYPES[dtype] if dtype else torch.float32
        self.model = transformers.GPT2LMHeadModel.from_pretrained(folder, dtype=stored).float()
        self.model.eval()

    def logits(self, ids: Ids) -> np.ndarray[Any, np.dtype[np.float32]]:
        """Returns the logits after every token, float32 `(T, V)`."""
        with torch.no_grad():
            logits = self.model(torch.tensor([ids])).logits[0]
        result: np.ndarray[Any, np.dtype[np.float32]] = logits.numpy()
        return result

    def own_error(self, ids: Ids) -> float:
        """Returns how far the reference's float32 logits are from its float64 ones, at most."""
        exact = copy.deepcopy(self.model).double()
        with torch.no_grad():
            logits = exact(torch.tensor([ids])).logits[0]
        return float(np.abs(logits.numpy() - self.logits(ids)).max())

    def generate(self, prompts: list[Ids], *, seed: int | None = None, **options: Any) -> Run:
        """Generates from prompts of one length; `seed` seeds torch's one generator for the whole call."""
        if seed is not None:
            torch.manual_seed(seed)
        out = self.model.generate(
            torch.tensor(prompts),
            attention_mask=torch.ones(len(prompts), len(prompts[0]), dtype=torch.long),
            pad_token_id=0,
            return_dict_in_generate=True,
            output_logits=True,
            **options,
        )
        rows = [row[len(prompts[0]) :].tolist() for row in out.sequences]
        eos = options.get("eos_token_id")
        cut = [row[: row.index(eos) + 1] if eos in row else row for row in rows]
        copies = options.get("num_return_sequences", 1)
        repeated = [prompt for prompt in prompts for _ in range(copies)]
        return Run(repeated, cut, [step.float() for step in out.logits], seed, options)


@dataclass
class Run:
    """What the reference generated: `B` rows, and what is needed to judge how close each choice was."""

    prompts: list[Ids]
    ids: list[Ids]
    logits: list[torch.Tensor]  # one (B, V) per step
    seed: int | None
    options: dict[str, Any] = field(default_factory=dict)

    def choices(self, step: int, nudge: torch.Tensor | None = None) -> torch.Tensor:
        """Returns what `B` rows choose at a step (-1: row had ended), with `nudge` added to the raw logits."""
        raw = self.logits[step] if nudge is None else self.logits[step] + nudge
        given = torch.tensor(
            [p + (i + [0] * step)[:step] for p, i in zip(self.prompts, self.ids, strict=True)]
        )
        scores = self._processors()(given, raw)
        if not self.options.get("do_sample"):
            return scores.argmax(-1)
        # torch.multinomial of one sample is the argmax of p / e with e drawn from Exp(1) for every entry of every row.
        assert self.seed is not None, "a sampled run has a seed"
        torch.manual_seed(self.seed)
        for _ in range(step):
            torch.empty_like(raw).exponential_()
        return (scores.softmax(-1) / torch.empty_like(raw).exponential_()).argmax(-1)

    def close_call(self, row: int, step: int, other: int) -> bool:
        """Says whether logits within the tolerance of the reference's would have made it choose `other` here."""
        chosen = self.ids[row][step]
        bound = tolerance(self.logits[step][row].numpy())
        nudge = torch.zeros_like(self.logits[step])
        nudge[row, other], nudge[row, chosen] = bound, -bound
        return int(self.choices(step, nudge)[row]) == other

    def _processors(self) -> processors.LogitsProcessorList:
        """Returns transformers' own processors for the run's options, in transformers' order."""
        get, length = self.options.get, len(self.prompts[0])
        listed: list[Any] = []
        if get("repetition_penalty"):
            listed.append(processors.RepetitionPenaltyLogitsProcessor(get("repetition_penalty")))
        if get("min_new_tokens") and get("eos_token_id") is not None:
            listed.append(
                processors.MinNewTokensLengthLogitsProcessor(
                    length, get("min_new_tokens"), get("eos_token_id")
                )
            )
        if get("do_sample"):
            if get("temperature", 1.0) != 1.0:
                listed.append(processors.TemperatureLogitsWarper(get("temperature")))
            if get("top_k", 50):
                listed.append(processors.TopKLogitsWarper(get("top_k", 50)))
            if get("top_p", 1.0) < 1.0:
                listed.append(processors.TopPLogitsWarper(get("top_p")))
            if get("min_p") is not None:
                listed.append(processors.MinPLogitsWarper(get("min_p")))
        return processors.LogitsProcessorList(listed)


def assert_same_ids(run: Run, got: list[Ids], what: str) -> None:
    """Holds generated ids against the reference's (law 5).

    A row may differ only from a choice on that was too close to call; such rows are counted and shown at the end of
    the test run.
    """
    assert len(got) == len(run.ids), f"{what}: {len(got)} rows, transformers gives {len(run.ids)}"
    for row, (mine, theirs) in enumerate(zip(got, run.ids, strict=True)):
        if mine == theirs:
            TALLY.choices += len(theirs)
            continue
        parted = [step for step, pair in enumerate(zip(mine, theirs, strict=False)) if pair[0] != pair[1]]
        assert parted, f"{what}, row {row}: one is cut short: {mine} instead of {theirs}"
        close = run.close_call(row, parted[0], mine[parted[0]])
        assert close, f"{what}, row {row}: parts at new token {parted[0]}: {mine} instead of {theirs}"
        TALLY.choices += parted[0] + 1  # what follows was given other tokens, and is not compared
        TALLY.excused.append(
            f"{what}, row {row}, new token {parted[0]}: {mine[parted[0]]} / {theirs[parted[0]]}"
        )


def assert_close(got: np.ndarray[Any, np.dtype[np.float32]], reference: Reference, ids: Ids) -> None:
    """Holds logits against the reference's (law 4)."""
    assert_near(got, reference.logits(ids), lambda: reference.own_error(ids), "logits")


def assert_near(
    got: np.ndarray[Any, np.dtype[np.float32]],
    want: np.ndarray[Any, np.dtype[np.float32]],
    own_error: Callable[[], float],
    what: str,
) -> None:
    """Holds numbers against the reference's (law 4).

    Where a configuration is so ill-conditioned that float32 does not determine the reference's own numbers to the
    tolerance (a norm over two nearly equal values), twice its own error is allowed beside it.
    """
    assert got.shape == want.shape, f"{what} of shape {got.shape}, transformers gives {want.shape}"
    assert np.isfinite(got).all(), f"{what} that are not finite"
    apart, bound = float(np.abs(got - want).max()), tolerance(want)
    if apart > bound:
        bound += 2 * own_error()
    assert apart <= bound, f"{what} differ by {apart:.2e}, allowed are {bound:.2e}"


def tolerance(logits: np.ndarray[Any, np.dtype[np.float32]]) -> float:
    """Returns the largest allowed difference from these reference logits: 1e-4 of the largest, at least 1e-4."""
    return 1e-4 * max(1.0, float(np.abs(logits).max()))
