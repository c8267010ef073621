"""adapter_config.json: the values that are read, how they are checked, and the rules by which they pick modules.

The rules are those of peft 0.21.2, for LoRA. What is not done is refused by its name. Nothing here knows tensors.
"""

from __future__ import annotations

import math
import re
from typing import TYPE_CHECKING, Any

from .arrays import brief
from .errors import FileMissingError
from .folder import bad_field, read_json

if TYPE_CHECKING:
    from pathlib import Path

CONFIG = "adapter_config.json"

_SAVE = "merge it into its base with merge_and_unload() of peft, and save that"
# Fields that ask for more than the two matrices, where they ask for anything.
_NOT_DONE = {
    "use_dora": "DoRA",
    "use_qalora": "QALoRA",
    "use_bdlora": "BD-LoRA",
    "alora_invocation_tokens": "activated LoRA, which cannot be merged",
    "arrow_config": "Arrow, which cannot be merged",
    "kasa_config": "KaSA",
    "velora_config": "VeLoRA",
    "monteclora_config": "MonteCLoRA",
    "layer_replication": "layers that are repeated",
    "target_parameters": "matrices for parameters that are no module",
    "megatron_config": "a model of Megatron",
}
# Initializations that change the base's weights, too, so that the adapter means nothing without them.
_CHANGES_BASE = re.compile(r"pissa.*|olora|corda|loftq", re.IGNORECASE)


def read_config(folder: Path) -> AdapterConfig:
    """Reads the adapter_config.json of a folder.

    Args:
        folder: The adapter's folder.

    Raises:
        FileMissingError: There is none.
        ConfigError: It is not JSON, or a value cannot be used.
    """
    path = folder / CONFIG
    if not path.is_file():
        raise FileMissingError(
            f"{path}: expected the configuration of an adapter (PEFT), got no such file", file=str(path)
        )
    return AdapterConfig(read_json(path), str(path))


# Names that peft takes for an embedding or a head (its `EMBEDDING_LAYER_NAMES`).
_TABLES = ("embed_tokens", "lm_head")


class AdapterConfig:
    """The configuration of an adapter.

    Args:
        values: Contents of adapter_config.json.
        file: Its path, for error messages.

    Attributes:
        base: The model that it was made for, or None.
        revision: The revision of that on the hub, or None.
        tokens: Ids whose rows of an embedding are replaced, all of them or by the embedding's name; None for no rows.
        is_tied: Whether it was trained with matrices that are the same for tied modules.
    """

    def __init__(self, values: dict[str, Any], file: str) -> None:
        self._values = values
        self._file = file
        self._refuse_others()
        self.base: str | None = self._checked("base_model_name_or_path", _is_text, "a text or null")
        self.revision: str | None = self._checked("revision", _is_text, "a text or null")
        self._rank = self._size("r", values.get("r", 8))
        self._alpha = self._number("lora_alpha", values.get("lora_alpha", 8))
        self._ranks = {
            key: self._size("rank_pattern", value) for key, value in self._patterns("rank_pattern").items()
        }
        self._alphas = {
            key: self._number("alpha_pattern", value)
            for key, value in self._patterns("alpha_pattern").items()
        }
        self._stabilized = self._checked("use_rslora", _is_flag, "true or false") or False
        self.is_tied = self._checked("ensure_weight_tying", _is_flag, "true or false") or False
        bias = self._checked("bias", _is_text, "a text")
        if bias not in (None, "none", "all", "lora_only"):
            raise self._bad("bias", '"none", "all" or "lora_only"')
        self._saved: list[str] = self._checked("modules_to_save", _is_texts, "a list of texts or null") or []
        self._targets: str | list[str] = self._names("target_modules")
        self._excluded: str | list[str] = self._names("exclude_modules")
        self._layers = self._checked("layers_to_transform", _is_layers, "an integer, a list of them, or null")
        pattern = self._names("layers_pattern")
        self._layer_patterns = ([pattern] if isinstance(pattern, str) else pattern) if pattern else []
        expected = "a list of token ids, an object of such lists, or null"
        self.tokens: Any = self._checked("trainable_token_indices", _is_tokens, expected)
        for field, patterns in (
            ("target_modules", [self._targets]),
            ("exclude_modules", [self._excluded]),
            ("modules_to_save", self._saved),
            ("layers_pattern", self._layer_patterns),
        ):
            for text in patterns:
                if isinstance(text, str):
                    self._compiled(field, text)

    def _refuse_others(self) -> None:
        method = self._values.get("peft_type")
        if method != "LORA":
            raise self._bad("peft_type", f'"LORA" (other methods are not read: {_SAVE})')
        for field, what in _NOT_DONE.items():
            value = self._values.get(field)
            if value or isinstance(
                value, dict
            ):  # an object asks for a method by its defaults, whatever is in it
                raise self._bad(field, f"nothing ({what} is not done: {_SAVE})")
        start = self._values.get("init_lora_weights")
        if isinstance(start, str) and _CHANGES_BASE.fullmatch(start):
            advice = "save it with path_initial_model_for_weight_conversion, or merge it with peft"
            raise self._bad("init_lora_weights", f"one that leaves the base's weights as they are ({advice})")

    def _bad(self, field: str, expected: str) -> Exception:
        got = brief(self._values[field]) if field in self._values else "no such field"
        return bad_field(self._file, field, expected, f"{got:.80}")

    def _checked(self, field: str, fits: Any, expected: str) -> Any:  # noqa: ANN401 (a value of a JSON file)
        value = self._values.get(field)
        if value is not None and not fits(value):
            raise self._bad(field, expected)
        return value

    def _size(self, field: str, value: object) -> int:
        if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value < 2**31:
            raise bad_field(self._file, field, "an integer from 1 on", brief(value))
        return value

    def _number(self, field: str, value: object) -> float:
        if not isinstance(value, bool) and isinstance(value, (int, float)) and abs(value) < 1e30:
            return float(value)
        raise bad_field(self._file, field, "a finite number", brief(value))

    def _patterns(self, field: str) -> dict[str, Any]:
        patterns: dict[str, Any] = (
            self._checked(field, lambda value: isinstance(value, dict), "an object") or {}
        )
        for pattern in patterns:
            self._compiled(field, rf"(.*\.)?({pattern})$", pattern)
        return patterns

    def _names(self, field: str) -> str | list[str]:
        names: str | list[str] | None = self._checked(
            field, lambda value: _is_text(value) or _is_texts(value), "a text, a list of texts, or null"
        )
        return names or []

    def _compiled(self, field: str, pattern: str, shown: str | None = None) -> None:
        try:
            re.compile(pattern)
        except (re.error, OverflowError, RecursionError) as error:
            got = f"{shown or pattern!r:.60} ({error})"
            raise bad_field(self._file, field, "regular expressions", got) from error

    def scale(self, module: str) -> tuple[int, float]:
        """Rank of a module's matrices, and what their product is multiplied by."""
        rank = self._ranks.get(_matching(self._ranks, module), self._rank)
        alpha = self._alphas.get(_matching(self._alphas, module), self._alpha)
        return rank, alpha / math.sqrt(rank) if self._stabilized else alpha / rank

    def is_saved(self, module: str) -> bool:
        """Whether a module was saved whole, by itself or in another one."""
        parts = module.split(".")
        around = (".".join(parts[: end + 1]) for end in range(len(parts)))
        return any(name.endswith(saved) for name in around for saved in self._saved)

    @property
    def repeats(self) -> bool:
        """Whether matrices that were tied in training are applied once for each of the tied modules.

        peft ties them again when it loads, and merges them into tied weights once for each, where a target has the name
        of an embedding or a head; else it leaves the repetition out.
        """
        if any(saved.split(".")[-1] in _TABLES for saved in self._saved):
            return False
        if isinstance(self._targets, str):
            return any(re.fullmatch(self._targets, name) for name in _TABLES)
        return any(target.split(".")[-1] in _TABLES for target in self._targets)

    def is_target(self, module: str) -> bool:
        """Whether a module takes matrices, if it can take any."""
        excluded = self._excluded
        if re.fullmatch(excluded, module) if isinstance(excluded, str) else _ends(module, excluded):
            return False
        if any(re.match(rf"(^|.*\.){saved}($|\..*)", module) for saved in self._saved):
            return False
        if isinstance(self._targets, str):
            if self._targets.lower() == "all-linear":
                return False  # which those are, transformers says; peft writes their names when it saves
            return re.fullmatch(self._targets, module) is not None
        if not _ends(module, self._targets):
            return False
        if module in self._targets or self._layers is None or self._layers == []:
            return True
        layer = self._layer(module)
        return layer is not None and (
            layer in self._layers if isinstance(self._layers, list) else layer == self._layers
        )

    def _layer(self, module: str) -> int | None:
        if not self._layer_patterns:
            match = re.match(r".*?\.[^.]*\.(?P<idx>\d+)\.", module)
        else:
            found = (re.match(rf"(?:^|.*?\.){p}\.(?P<idx>\d+)\.", module) for p in self._layer_patterns)
            match = next((match for match in found if match), None)
        return int(match["idx"]) if match else None

    def token_rows(self, module: str, file: str, tensor: str) -> list[int]:
        """The tokens whose rows of an embedding are replaced.

        Args:
            module: The embedding.
            file: File with the rows, for error messages.
            tensor: Their name there.
        """
        tokens = self.tokens
        if isinstance(tokens, dict):
            rows = next((rows for name, rows in tokens.items() if module.endswith(name)), None)
            # A head that is tied to the embedding has the same rows.
            tokens = rows if rows is not None else next(iter(tokens.values()), None)
        if tokens is None:
            raise self._bad("trainable_token_indices", f"the tokens of {tensor} in {file}")
        found: list[int] = tokens
        return found


def _matching(patterns: dict[str, Any], module: str) -> str:
    """The first pattern that fits the end of a module's name, or the name."""
    return next((key for key in patterns if re.match(rf"(.*\.)?({key})$", module)), module)


def _ends(module: str, names: list[str]) -> bool:
    return any(module == name or module.endswith(f".{name}") for name in names)


def _is_text(value: object) -> bool:
    return isinstance(value, str)


def _is_texts(value: object) -> bool:
    return isinstance(value, list) and all(isinstance(item, str) for item in value)


def _is_flag(value: object) -> bool:
    return isinstance(value, bool)


def _is_id(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**31


def _is_layers(value: object) -> bool:
    return _is_id(value) or (isinstance(value, list) and all(_is_id(item) for item in value))


def _is_tokens(value: object) -> bool:
    if isinstance(value, dict):
        return all(isinstance(rows, list) and _is_tokens(rows) for rows in value.values())
    return isinstance(value, list) and all(_is_id(item) for item in value)
