"""LoRA adapters of PEFT: which folders are some, whose base they name, and what each of their tensors does to it.

The rules are those of peft 0.21.2. Nothing here reads values: the native side does, and adds them up. Imported only
where there is an adapter.
"""

from __future__ import annotations

import os
import re
from typing import TYPE_CHECKING, Any, NamedTuple

from . import _core
from .adapter_config import CONFIG, AdapterConfig, read_config
from .arrays import bad_option, brief
from .errors import CheckpointError, FastdecodeError, FileMissingError, ModelNotFoundError, OptionError
from .families import TOKENIZER_CLASSES
from .folder import bad_field, optional_json
from .foreign import has_weights
from .hub import DEMOS, Source, locate

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from ._core import _Edit

# The first of these that is there counts.
_WEIGHTS = ("adapter_model.safetensors", "adapter_model.bin")
_PREFIX = "base_model.model."
# Embeddings of T5 that are the module `shared` itself once the vocabulary was resized: peft then adapts that alone.
_SHARED = ("encoder.embed_tokens", "decoder.embed_tokens")
# Beginnings of the names of T5's modules that no encoder has.
_OUTSIDE_ENCODER = ("decoder.", "lm_head")
# A longer name of a tensor is refused; those of real models have about a hundred characters.
_LONGEST = 1000
# What stands before the names of a causal model's modules, unless an adapter was made for the model without its head.
_INNER = ("transformer.", "model.")

_MATRIX = re.compile(r"(?P<module>.+)\.lora_(?P<side>[AB])(\.[^.]+)?\.(?P<kind>weight|bias)")
_EMBEDDING = re.compile(r"(?P<module>.+)\.lora_embedding_(?P<side>[AB])(\.[^.]+)?")
_TOKENS = re.compile(r"(?P<module>.+)\.token_adapter\.trainable_tokens_delta(\.[^.]+)?")
_INSIDE = re.compile(r"(?P<module>.+?)\.(token_adapter\.)?(base_layer|original_module)\.(?P<rest>.+)")
_SAVED = re.compile(r"(?P<module>.+?)\.modules_to_save\.(default\.)?(?P<rest>.+)")


class Found(NamedTuple):
    """A model with its adapters.

    Attributes:
        base: The folder of the model.
        adapters: The adapters, in the order in which they are applied.
        added: Those of them that do not lie beside the base's weights, as `load` takes them.
    """

    base: Source
    adapters: tuple[Source, ...]
    added: list[str]

    @property
    def tokenizer(self) -> Path:
        """The folder of the tokenizer: that of the last adapter that brings one, or the base's."""
        brought = (adapter.folder for adapter in reversed(self.adapters) if _has_tokenizer(adapter.folder))
        return next(brought, self.base.folder)


def _has_tokenizer(folder: Path) -> bool:
    of_classes = (name for entry in TOKENIZER_CLASSES.values() for name in entry.files)
    if any((folder / name).is_file() for name in ("tokenizer.json", "tokenizer.model", *of_classes)):
        return True
    try:
        # A class that needs no vocabulary is told by its declaration alone, and its added tokens count.
        return optional_json(folder / "tokenizer_config.json").get("tokenizer_class") == "ByT5Tokenizer"
    except FastdecodeError:
        return True  # whoever asks for text hears what is wrong with the file


def find(source: Source, options: Mapping[str, Any]) -> Found:
    """What belongs to a model: its base and its adapters, downloaded if need be.

    Args:
        source: The model, or an adapter of which the base is to be found.
        options: Arguments of `load`.

    Raises:
        ModelNotFoundError: The base or an adapter is not to be found.
        OptionError: `adapter` names none, or a revision is given and everything is local.
        ConfigError: An adapter_config.json cannot be used.
        FileMissingError: An adapter has no adapter_config.json.
    """
    place = {name: options.get(name) for name in ("token", "cache_dir")}
    place["local_files_only"] = options.get("local_files_only", False)
    base, adapters, added = source, [], []
    if (source.folder / CONFIG).is_file():
        base = _base(source, options.get("revision"), place)
        if base.folder != source.folder and (base.folder / CONFIG).is_file() and has_weights(base.folder):
            adapters.append(base)
        adapters.append(source)
        if base.folder != source.folder:
            added.append(_spelt(source))
    for name in _listed(options.get("adapter")):
        adapter = _locate(name, place)
        adapters.append(adapter)
        added.append(_spelt(adapter))
    return Found(base, tuple(adapters), added)


def _listed(given: object) -> list[str | os.PathLike[str]]:
    items: list[Any] = list(given) if isinstance(given, (list, tuple)) else [] if given is None else [given]
    for item in items:
        if not isinstance(item, (str, os.PathLike)) or not os.fspath(item):
            expected = "a folder with adapter_config.json, a hub id (owner/name@revision), or a list of them"
            raise bad_option("adapter", expected, brief(item))
    return items


def _is_local(name: str) -> bool:
    from pathlib import Path

    return name in DEMOS or Path(name).expanduser().exists()


def _spelt(source: Source) -> str:
    """An adapter as `load` takes it."""
    return source.name if source.revision is None else f"{source.name}@{source.revision}"


def _locate(name: str | os.PathLike[str], place: Mapping[str, Any]) -> Source:
    """The folder of an adapter."""
    wanted, revision = name, None
    if isinstance(name, str) and "@" in name and not _is_local(name):
        wanted, _, revision = name.rpartition("@")
    try:
        source = locate(wanted, revision=revision, adapter=True, **place)
    except ModelNotFoundError as error:
        raise ModelNotFoundError(
            f"adapter: {error}", model=error.model, expected=error.expected, got=error.got
        ) from error
    return source


def _base(adapter: Source, revision: str | None, place: Mapping[str, Any]) -> Source:
    """The model that an adapter was made for, which may lie beside it.

    A folder with a model and an adapter is both, and a repository of the hub is an adapter to a base elsewhere, as in
    transformers.
    """
    is_local = adapter.revision is None
    beside = has_weights(adapter.folder)
    file = str(adapter.folder / CONFIG)
    config = read_config(adapter.folder)
    name = config.base
    if beside and (is_local or not name):
        if is_local and revision is not None:
            raise OptionError(
                f"revision: expected none for a local folder, got {brief(revision)} for {adapter.name}",
                option="revision",
                expected="none for a local folder",
                got=brief(revision),
            )
        return adapter
    if not name:
        expected = "the folder or hub id of a model; or load that, with adapter= this folder"
        raise bad_field(file, "base_model_name_or_path", expected, "none" if name is None else brief(name))
    # With a local adapter the caller's revision can only be the base's; that of the training means nothing in a folder.
    chosen = revision if is_local else None
    if chosen is None and not _is_local(name):
        chosen = config.revision
    try:
        base = locate(name, revision=chosen, **place)
    except ModelNotFoundError as error:
        advice = "give the base as the model and this adapter as adapter="
        raise ModelNotFoundError(
            f"{file}: base_model_name_or_path: {error}; {advice}",
            model=error.model,
            expected=error.expected,
            got=error.got,
        ) from error
    if (base.folder / CONFIG).is_file() and not has_weights(base.folder):
        raise bad_field(
            file, "base_model_name_or_path", "a model with weights", f"{name!r}, an adapter alone"
        )
    return base


def read_adapter(folder: Path, base: Path, *, encoder_alone: bool) -> tuple[_core.AdapterFile, list[_Edit]]:
    """Opens an adapter, and says what its tensors do.

    Args:
        folder: The adapter's folder.
        base: Folder of the model that it is applied to.
        encoder_alone: Whether only the encoder of that is read. The adapter may then have been made for the encoder
            alone, and have nothing for a decoder.

    Raises:
        ConfigError: A value in adapter_config.json cannot be used.
        CheckpointError: Its file is malformed, a tensor has no use, or one is missing.
        FileMissingError: It has no weights.
    """
    config = read_config(folder)
    path = next((folder / name for name in _WEIGHTS if (folder / name).is_file()), None)
    if path is None:
        raise FileMissingError(
            f"{folder}: expected {' or '.join(_WEIGHTS)} beside {CONFIG}, got neither", file=str(folder)
        )
    file = _core.AdapterFile.open(str(path))
    reading = _Reading(config, str(path), file.tensors())
    modules = _core.adaptable_modules(str(base))
    if encoder_alone:
        modules = [name for name in modules if not name.startswith(_OUTSIDE_ENCODER)]
    reading.check_complete(modules)
    return file, reading.edits()


class _Reading:
    """The tensors of an adapter's file, by what they do."""

    def __init__(self, config: AdapterConfig, file: str, tensors: Sequence[tuple[str, list[int]]]) -> None:
        self._config = config
        self._file = file
        # The names of A and B are kept by the module, and whether it is an embedding.
        self._matrices: dict[tuple[str, bool], dict[str, str]] = {}
        self._biases: dict[str, str] = {}
        self._tokens: dict[str, str] = {}
        # A tensor of the base is replaced under all names that are tied, or it was saved whole and comes apart. Both
        # tables go from its name to that of the adapter's tensor.
        self._replaced: dict[str, str] = {}
        self._saved: dict[str, str] = {}
        copies = []
        for name, _ in tensors:
            if len(name) > _LONGEST:
                raise self._malformed(
                    f"{name[:_LONGEST]}...", f"names of at most {_LONGEST} characters", "more"
                )
            key = name.removeprefix(_PREFIX)
            if match := _SAVED.fullmatch(key):
                copies.append((f"{match['module']}.{match['rest']}", name))
            else:
                self._sort(key, name)
        if config.is_tied and not config.repeats:
            # The file repeats the embedding's matrices for what was tied to it in training.
            kept = {key: names for key, names in self._matrices.items() if config.is_target(key[0])}
            self._matrices = kept
        for target, name in copies:
            # A file may hold a saved module twice, the second time as it lay in training.
            if target not in self._saved:
                self._note(self._saved, target, name)
        if not tensors:
            raise self._malformed(None, "the tensors of an adapter", "none")

    def _sort(self, key: str, name: str) -> None:
        if match := _MATRIX.fullmatch(key):
            module, side, kind = match["module"], match["side"], match["kind"]
            if kind == "weight":
                self._note(self._matrices.setdefault((module, False), {}), side, name)
            elif side == "B":
                self._note(self._biases, module, name)
            else:
                raise self._malformed(name, "no bias of lora_A, which LoRA does not have", "one")
        elif match := _EMBEDDING.fullmatch(key):
            self._note(self._matrices.setdefault((match["module"], True), {}), match["side"], name)
        elif match := _TOKENS.fullmatch(key):
            self._note(self._tokens, match["module"], name)
        elif match := _INSIDE.fullmatch(key):
            self._note(self._replaced, f"{match['module']}.{match['rest']}", name)
        elif ".lora_" in key or ".modules_to_save" in key or not key.endswith((".weight", ".bias")):
            got = "a part of DoRA, which is not done" if "lora_magnitude_vector" in key else "another tensor"
            raise self._malformed(
                name, "lora_A, lora_B, lora_embedding_A, lora_embedding_B, or a weight or bias", got
            )
        else:
            saved = self._config.is_saved(key.rpartition(".")[0])
            self._note(self._saved if saved else self._replaced, key, name)

    def _note(self, names: dict[str, str], key: str, name: str) -> None:
        if key in names:
            raise self._malformed(name, "one tensor of its kind for each module", f"{names[key]}, too")
        names[key] = name

    def check_complete(self, modules: Sequence[str]) -> None:
        """Sees to it that there are tensors for everything that the configuration asks for.

        Args:
            modules: Those of the base that can take an adapter.

        Raises:
            CheckpointError: Something is missing.
        """
        for (module, embedding), sides in self._matrices.items():
            for side in "AB":
                if side not in sides:
                    letter = f"lora_embedding_{side}" if embedding else f"lora_{side}"
                    other = next(iter(sides.values()))
                    raise self._malformed(other, f"{module}.{letter} beside it", "no such tensor")
        for module in self._biases:
            if (module, False) not in self._matrices:
                raise self._malformed(
                    self._biases[module], f"lora_A and lora_B of {module} beside it", "neither"
                )
        have = {_own(module) for module, _ in self._matrices}
        saved = {_own(name) for name in self._saved}
        # An adapter for the model without its head names its modules without the prefix, and its patterns may, too.
        bare = bool(have) and not any(module.startswith(_INNER) for module, _ in self._matrices)
        for module in modules:
            known = _own(module) if bare else module
            own = _own(module)
            if own not in have and own not in _SHARED and self._config.is_target(known):
                raise self._malformed(None, f"lora_A and lora_B of {module}, a target", "no such tensors")
            if f"{own}.weight" not in saved and self._config.is_saved(known):
                raise self._malformed(None, f"{module}.weight, of a module to save", "no such tensor")
        if not have and not saved and not self._tokens:
            raise self._malformed(None, "matrices of LoRA for its targets", "none among its tensors")
        if self._config.tokens and not self._tokens:
            raise self._malformed(None, "rows for trainable_token_indices", "no such tensor")

    def edits(self) -> list[_Edit]:
        """What the tensors do, in the order in which peft does it: what it loads first, then what it merges."""
        # The head is a model's last module, and the last one that is loaded counts for all that are tied.
        loaded = sorted(self._replaced.items(), key=lambda item: (item[0].startswith("lm_head."), item[0]))
        edits: list[_Edit] = [(target, name, False) for target, name in loaded]
        edits.extend((target, name, True) for target, name in self._saved.items())
        for module, name in self._tokens.items():
            edits.append((f"{module}.weight", name, self._config.token_rows(module, self._file, name)))
        for (module, embedding), sides in self._matrices.items():
            rank, scale = self._config.scale(module)
            edits.append((f"{module}.weight", (sides["A"], sides["B"]), rank, scale, embedding))
            if bias := self._biases.get(module):
                edits.append((f"{module}.bias", bias, scale))
        return edits

    def _malformed(self, tensor: str | None, expected: str, got: str) -> CheckpointError:
        """The error for one of the tensors, or for the file."""
        where = self._file if tensor is None else f"{self._file}: tensor {tensor}"
        return CheckpointError(
            f"{where}: expected {expected}, got {got}",
            file=self._file,
            tensor=tensor,
            expected=expected,
            got=got,
        )


def _own(name: str) -> str:
    found = next((prefix for prefix in _INNER if name.startswith(prefix)), "")
    return name.removeprefix(found)
