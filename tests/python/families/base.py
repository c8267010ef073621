"""What a family of models gives the tests, the golden files and the benchmarks, and what follows from it for all.

A family is one object of type `Family` in a file of its own: which tensors its checkpoints have, how its configs vary,
and which of its models the laws look at. Weights are drawn, and folders written, here. torch is imported when weights
are drawn and not before, so that tests without a reference run where torch is not installed.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

if TYPE_CHECKING:
    import tokenizers
    import torch
    from hypothesis.strategies import SearchStrategy
    from numpy.typing import NDArray

Config = dict[str, Any]
Ids = list[int]
Shape = tuple[int, ...]
Shapes = dict[str, Shape]
Tensors = dict[str, "torch.Tensor"]
# Draws a tensor of a shape, with a standard deviation.
Normal = Callable[[Shape, float], "torch.Tensor"]

DTYPES = ("bfloat16", "float16", "float32")


class Input(NamedTuple):
    """What a model reads: a prompt, and a source where it has an encoder; the decoder's prompt has its start token."""

    prompt: Ids
    source: Ids | None = None


class Lengths(NamedTuple):
    """Tokens of an `Input`; models without an encoder have no source."""

    prompt: int
    source: int = 0


@dataclass(frozen=True)
class Recipe:
    """Everything that decides one random folder; a family adds fields for what its files may vary.

    Attributes:
        config: Contents of config.json.
        dtype: Type of the tensors in the files.
        prefix: Names of tensors begin with `transformer.`
        shards: Number of files with weights.
        spread: Factor to the deviations of matrices.
        seed: Seed of the weights, and of the ids that tests draw.
    """

    config: Config
    dtype: str = "float32"
    prefix: bool = False
    shards: int = 1
    spread: float = 1.0
    seed: int = 0

    @property
    def vocab(self) -> int:
        """Token ids."""
        size: int = self.config["vocab_size"]
        return size

    @property
    def start(self) -> Ids:
        """What every prompt begins with: the start token of a decoder with an encoder, else nothing."""
        token = self.config.get("decoder_start_token_id")
        return [] if token is None else [token]

    @property
    def is_warned_about(self) -> bool:
        """Whether loading the folder warns."""
        return False

    @property
    def for_transformers(self) -> dict[str, Any]:
        """Options without which `generate` of the reference fails on this folder."""
        return {}

    def full_name(self, name: str) -> str:
        """Name of a tensor in the files."""
        return f"transformer.{name}" if self.prefix else name

    def ids(self, count: int, length: int, salt: int = 0) -> list[Ids]:
        """Draws `count` rows of ids of one length; another `salt` gives other ones."""
        drawn = np.random.default_rng([self.seed, salt]).integers(0, self.vocab, (count, length))
        rows: list[Ids] = drawn.tolist()
        return rows


def _as_drawn(recipe: Recipe, named: Tensors, normal: Normal) -> Tensors:  # noqa: ARG001 (as it is called)
    return named


@dataclass(frozen=True, repr=False, eq=False)
class Family:
    """One family of models.

    Attributes:
        model_types: What config.json calls it; tests name it by the first.
        has_encoder: Whether its models are encoder-decoders.
        shapes: Shapes of a recipe's tensors by name, in the order in which they are drawn.
        spread: Mean and deviation of a tensor, by name, shape and recipe. Activations should keep their size from layer
            to layer: where they grow without bounds, float32 itself is far from the exact result.
        others: Takes what was drawn, and returns what the files hold: with copies of tied tensors, leftovers of older
            versions of transformers, or what else is not simply drawn.
        recipes: Strategy of hypothesis over everything that configs and files may vary.
        positions: Length of the context by config, or None where there is no limit.
        laws: Models on which laws hold to the bit, by what is special about them; contexts of at least 64 tokens.
        wide: The one of `laws` whose matrices are so wide that products in bfloat16 show.
        chunks: A model with a context of at least 520 tokens, for keys in more than one chunk of 256.
        groups: Inputs so long that threads divide their rows, with the model that reads them.
        longest: Inputs beyond every block size, with a model of the reference's cost in seconds.
        tables: Models answered on every table of kernels and held against the reference: odd widths, every type of
            weights, several activations, keys beyond a chunk of 256.
        goldens: Models of the golden files by folder; their greedy texts must vary, and hold no close choice.
        sizes: Models of real size, for benchmarks, by their names on the hub.
        share: Part of the random cases of each test that it draws: families that share code share the time.
        tokenizer: Golden folder and files of a tokenizer of the real vocabulary.
        tiny: A config of a few thousand parameters with a vocabulary of 320, whose end token is 0.
        recipe: The family's own type of recipe.
    """

    model_types: tuple[str, ...]
    shapes: Callable[[Any], Shapes]
    spread: Callable[[str, Shape, Recipe], tuple[float, float]]
    recipes: Callable[[], SearchStrategy[Recipe]]
    positions: Callable[[Config], int | None]
    laws: Mapping[str, Recipe]
    wide: str
    chunks: Recipe
    groups: Mapping[str, tuple[Recipe, list[Lengths]]]
    longest: Mapping[str, tuple[Recipe, Lengths]]
    tables: Sequence[Recipe]
    goldens: Mapping[str, Recipe]
    sizes: Mapping[str, Recipe]
    tokenizer: tuple[str, tuple[str, ...]]
    tiny: Config
    recipe: Callable[..., Recipe] = Recipe
    has_encoder: bool = False
    share: float = 1.0
    others: Callable[[Any, Tensors, Normal], Tensors] = _as_drawn

    def __repr__(self) -> str:
        return f"Family({self.name})"

    @property
    def name(self) -> str:
        """Name in tests."""
        return self.model_types[0]

    def examples(self, count: int) -> int:
        """Its part of so many random cases, and 20 at least."""
        return max(int(count * self.share), min(count, 20))

    def tensors(self, recipe: Recipe) -> Tensors:
        """Draws the recipe's weights, named and shaped as the checkpoint wants them, in its dtype."""
        import torch

        random = torch.Generator().manual_seed(recipe.seed)

        def normal(shape: Shape, deviation: float, mean: float = 0.0) -> torch.Tensor:
            return torch.randn(shape, generator=random) * deviation + mean

        named: Tensors = {}
        for name, shape in self.shapes(recipe).items():
            mean, deviation = self.spread(name, shape, recipe)
            named[name] = normal(shape, deviation, mean)
        named = self.others(recipe, named, normal)
        dtype: torch.dtype = getattr(torch, recipe.dtype)
        return {recipe.full_name(name): tensor.to(dtype) for name, tensor in named.items()}

    def write(self, recipe: Recipe, folder: Path) -> Path:
        """Writes the recipe as a Hugging Face folder and returns it."""
        from safetensors.torch import save_file

        named = self.tensors(recipe)
        folder.mkdir(parents=True, exist_ok=True)
        _write_json(folder / "config.json", {**recipe.config, "dtype": recipe.dtype})
        if recipe.shards == 1:
            save_file(named, folder / "model.safetensors", {"format": "pt"})
            return folder
        where: dict[str, str] = {}
        for shard in range(recipe.shards):
            file = f"model-{shard + 1:05}-of-{recipe.shards:05}.safetensors"
            part = {name: named[name] for name in sorted(named)[shard :: recipe.shards]}
            save_file(part, folder / file, {"format": "pt"})
            where |= dict.fromkeys(part, file)
        size = sum(tensor.nbytes for tensor in named.values())
        index = {"metadata": {"total_size": size}, "weight_map": where}
        _write_json(folder / "model.safetensors.index.json", index)
        return folder

    def inputs(self, recipe: Recipe, lengths: list[Lengths]) -> list[Input]:
        """Draws inputs of given lengths; each is another one, and the start token counts."""
        begin = recipe.start
        return [
            Input(
                (begin + recipe.ids(1, prompt, salt=prompt)[0])[:prompt],
                recipe.ids(1, source, salt=1000 + source)[0] if self.has_encoder else None,
            )
            for prompt, source in lengths
        ]

    def tiny_config(self, **changes: object) -> Config:
        """The config of a few thousand parameters, with changes."""
        return self.tiny | changes

    def tiny_weights(self, config: Config, seed: int = 0) -> dict[str, NDArray[np.float32]]:
        """Random weights for such a config, made without torch; tied ones once."""
        recipe, random = self.recipe(config, spread=2.0), np.random.default_rng(seed)
        tensors = {}
        for name, shape in self.shapes(recipe).items():
            mean, deviation = self.spread(name, shape, recipe)
            tensors[recipe.full_name(name)] = random.normal(mean, deviation, shape).astype(np.float32)
        return tensors

    def write_tiny(
        self,
        folder: Path,
        *,
        tokenizer: tokenizers.Tokenizer | None = None,
        generation: dict[str, Any] | None = None,
        seed: int = 0,
        **changes: object,
    ) -> Path:
        """Writes such a model as a folder; `tokenizer` and `generation` only where given, `changes` to the config."""
        from safetensors.numpy import save_file

        folder.mkdir(parents=True, exist_ok=True)
        config = self.tiny_config(**changes)
        _write_json(folder / "config.json", config)
        save_file(self.tiny_weights(config, seed), folder / "model.safetensors")
        if tokenizer is not None:
            tokenizer.save(str(folder / "tokenizer.json"))
            if (
                self.has_encoder
            ):  # The tests' tokenizers are byte-level, and no encoder-decoder's own class is.
                settings = {
                    "tokenizer_class": "PreTrainedTokenizerFast",
                    "eos_token": tokenizer.id_to_token(0),
                }
                _write_json(folder / "tokenizer_config.json", settings)
        if generation is not None:
            _write_json(folder / "generation_config.json", generation)
        return folder


def _write_json(file: Path, values: object) -> None:
    file.write_text(json.dumps(values, indent=1, sort_keys=True) + "\n")
