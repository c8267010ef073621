"""From a model's name to a folder: a path, a bundled demo model, or an id on the Hugging Face hub.

The only importer of `huggingface_hub`, which owns download, cache, progress, offline mode and credentials.
Nothing here knows what the files mean.
"""

from __future__ import annotations

import os
import re
from typing import TYPE_CHECKING, NamedTuple

from .arrays import bad_option, brief, has_lone_surrogate
from .errors import ModelNotFoundError, OptionError
from .foreign import refuse_others

if TYPE_CHECKING:
    from pathlib import Path

# Bundled models; each is a folder of this name under demo/.
DEMOS = ("demo-stories", "demo-en-fr")

# Files of an adapter (PEFT); the second name of its weights counts where there are no safetensors.
_ADAPTER = ("adapter_config.json", "adapter_model.safetensors")
_ADAPTER_BIN = "adapter_model.bin"

# One constant list: huggingface_hub (1.x and later) takes a snapshot for incomplete, offline, when other
# patterns are asked for than at the download. Repositories also hold the same weights in forms that are not
# read.
_PATTERNS = (
    "config.json",
    "generation_config.json",
    "model.safetensors",
    "model-?????-of-?????.safetensors",
    "model.safetensors.index.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.*",
    "additional_chat_templates/*.jinja",
    # Files of every class of tokenizers are fetched, so that one that is not built is refused by its name, and not for
    # a missing file.
    "vocab.json",
    "merges.txt",
    "vocab.txt",
    "spiece.model",
    "sentencepiece.bpe.model",
    *_ADAPTER,
)

# Asked for only where a repository has no tokenizer.json, which every class takes first. Of these, SentencePiece models
# alone are read; the others are refused by their name.
_PIECES_PATTERNS = ("tokenizer.model", "tekken.json", "tiktoken.model")

# Asked for only where a repository has no safetensors.
_BIN_PATTERNS = (
    "pytorch_model.bin",
    "pytorch_model-?????-of-?????.bin",
    "pytorch_model.bin.index.json",
    _ADAPTER_BIN,
)

# Files of an adapter whose base is another repository: no weights but its own.
_WITHOUT_MODEL = tuple(name for name in _PATTERNS if not name.startswith("model"))

# A name, or owner/name; the hub's own rule, without which a mistyped path would become a request.
_HUB_ID = r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?"


class Source(NamedTuple):
    """Where a model comes from.

    Attributes:
        folder: Its local folder.
        name: What loads the same files again: the folder's path, a demo's name or a hub id.
        revision: The commit on the hub, or None for a local folder.
    """

    folder: Path
    name: str
    revision: str | None


def locate(
    model: str | os.PathLike[str],
    *,
    revision: str | None = None,
    token: str | bool | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
    local_files_only: bool = False,
    adapter: bool = False,
) -> Source:
    """The folder of a model, downloaded if need be.

    A demo's name wins over a folder of the same name (write `./demo-stories` for that), and a folder that
    exists wins over a hub id.

    Args:
        model: Path of a folder, name of a demo model, or hub id.
        revision: Branch, tag or commit on the hub.
        token: Access token of the hub; True for the one that is stored on this machine.
        cache_dir: Where downloads are kept, instead of the hub's usual place.
        local_files_only: Use only what has been downloaded before.
        adapter: Whether an adapter is wanted: of a repository its weights only, none of a model beside them.

    Raises:
        ModelNotFoundError: It is none of these, or the hub does not give it out.
        FileMissingError: The repository has weights, but none that are read.
        OptionError: `model` is not a name, an option of the hub is given for a local model, or it cannot be used.
    """
    if not isinstance(model, (str, os.PathLike)) or isinstance(path := os.fspath(model), bytes) or not path:
        raise OptionError(
            f"model: expected a folder, a demo model's name or a hub id, got {brief(model)}",
            option="model",
            expected="a folder, a demo model's name or a hub id",
            got=brief(model),
        )
    from pathlib import Path

    folder = Path(path).expanduser()
    bundled = path in DEMOS and isinstance(model, str)
    if bundled:
        folder = Path(__file__).parent / "demo" / path
    if bundled or folder.exists():
        if not folder.is_dir():
            files = "config.json and model.safetensors (or pytorch_model.bin)"
            raise _not_found(path, f"a folder with {' and '.join(_ADAPTER) if adapter else files}", "a file")
        # The revision that is given with an adapter's folder in the place of a model is that of its base.
        if revision is not None and (adapter or not (folder / _ADAPTER[0]).is_file()):
            raise OptionError(
                f"revision: expected none for a local folder, got {brief(revision)} for {path}",
                option="revision",
                expected="none for a local folder",
                got=brief(revision),
            )
        return Source(folder, path if bundled else str(folder.resolve()), None)
    if not isinstance(model, str) or re.fullmatch(_HUB_ID, path) is None:
        demos = "" if adapter else f", one of {', '.join(DEMOS)},"
        raise _not_found(path, f"an existing folder{demos} or a hub id", "no such folder")
    _check(revision, token, cache_dir)
    cache = None if cache_dir is None else Path(cache_dir)
    return _download(path, revision, cache, token=token, local_files_only=local_files_only, adapter=adapter)


def _check(revision: object, token: object, cache_dir: object) -> None:
    """Looks at what a download is asked for with; it becomes a path, a header and an address.

    Raises:
        OptionError: One of them cannot become that.
    """
    if revision is not None and (not isinstance(revision, str) or has_lone_surrogate(revision)):
        raise bad_option("revision", "the name of a branch, a tag or a commit, or None", brief(revision))
    if isinstance(token, str) and not token.isascii():
        # A secret is not shown.
        raise bad_option("token", "an access token of the hub, which has ASCII characters alone", "others")
    path = os.fspath(cache_dir) if isinstance(cache_dir, (str, os.PathLike)) else cache_dir
    if path is not None and (not isinstance(path, str) or "\0" in path):
        raise bad_option("cache_dir", "the path of a folder, or None", brief(cache_dir))


def _not_found(model: str, expected: str, got: str) -> ModelNotFoundError:
    return ModelNotFoundError(
        f"model {model!r}: expected {expected}, got {got}", model=model, expected=expected, got=got
    )


def _download(
    name: str,
    revision: str | None,
    cache_dir: Path | None,
    *,
    token: str | bool | None,
    local_files_only: bool,
    adapter: bool,
) -> Source:
    from pathlib import Path

    from huggingface_hub import HfApi, snapshot_download
    from huggingface_hub.errors import (
        GatedRepoError,
        HFValidationError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    from . import __version__

    at = "" if revision is None else f" at revision {brief(revision)}"

    def snapshot(patterns: tuple[str, ...]) -> Path:
        folder = snapshot_download(
            name,
            revision=revision,
            token=token,
            cache_dir=cache_dir,
            local_files_only=local_files_only,
            allow_patterns=list(patterns),
            library_name="fastdecode",
            library_version=__version__,
        )
        return Path(folder)

    others: list[str] = []
    try:
        patterns = _WITHOUT_MODEL if adapter else _PATTERNS
        path = snapshot(patterns)
        more: tuple[str, ...] = () if (path / "tokenizer.json").exists() else _PIECES_PATTERNS
        if adapter:
            if not (path / _ADAPTER[1]).exists():
                more += (_ADAPTER_BIN,)
        # An adapter's safetensors say nothing about the form of the weights beside them, nor the other way round.
        elif not _has(path, "model*.safetensors") and not _is_adapter_alone(path):
            more += _BIN_PATTERNS
        elif (path / _ADAPTER[0]).exists() and not (path / _ADAPTER[1]).exists():
            more += (_ADAPTER_BIN,)
        if more:
            path = snapshot(patterns + more)
        commit = path.name if path.parent.name == "snapshots" else revision
        if not any(_has(path, pattern) for pattern in ("*.safetensors", "*.bin")) and not _is_offline(
            local_files_only
        ):
            # The list of the repository's files says what else there is; none of it is fetched.
            others = HfApi(token=token).list_repo_files(name, revision=commit)
    except GatedRepoError as error:
        expected = (
            "access to it (accept its licence on the hub, then pass token= or log in with `hf auth login`)"
        )
        raise _not_found(name, expected, f"a refusal of the hub: {_first_line(error)}") from error
    except RevisionNotFoundError as error:
        raise _not_found(name, "a revision that the hub has", f"none{at}") from error
    except RepositoryNotFoundError as error:
        expected = (
            "an existing folder, a demo model's name, or a hub id that you may read (token= for private ones)"
        )
        raise _not_found(name, expected, "no such folder, and no such repository on the hub") from error
    except LocalEntryNotFoundError as error:
        expected = f"the hub to answer, or a complete download{at} from before"
        raise _not_found(name, expected, f"neither: {_first_line(error)}") from error
    except HFValidationError as error:
        raise _not_found(name, "an existing folder or a valid hub id", _first_line(error)) from error
    except UnicodeEncodeError as error:
        # What fetches large files for the hub's library takes names that are text.
        expected = (
            "a folder for downloads whose path is UTF-8 (cache_dir=, or HF_HOME), or HF_HUB_DISABLE_XET=1"
        )
        raise _not_found(name, expected, brief(error.object)) from error
    except (OSError, _http_error()) as error:
        expected = "the hub to answer (a model downloaded before also loads with local_files_only=True)"
        if _is_not_written(error):
            expected = "a folder for downloads that can be written to (cache_dir=, or HF_HOME)"
        raise _not_found(name, expected, f"{type(error).__name__}: {_first_line(error)}") from error
    refuse_others(name, others)
    return Source(path, name, commit)


def _has(folder: Path, pattern: str) -> bool:
    return any(folder.glob(pattern))


def _is_offline(local_files_only: bool) -> bool:  # noqa: FBT001 (as the hub's own functions take it)
    from huggingface_hub import constants

    return local_files_only or bool(constants.HF_HUB_OFFLINE)


def _is_not_written(error: Exception) -> bool:
    """Whether the file system does not keep a download."""
    import errno

    names = ("EACCES", "EPERM", "EROFS", "ENOSPC", "EDQUOT", "ENOTDIR", "EEXIST")
    number = getattr(error, "errno", None)
    return number is not None and errno.errorcode.get(number) in names


def _is_adapter_alone(folder: Path) -> bool:
    return all((folder / name).exists() for name in _ADAPTER) and not (folder / "config.json").exists()


def _http_error() -> type[Exception]:
    """Base class of the errors of the HTTP library that this version of huggingface_hub uses."""
    from huggingface_hub.errors import HfHubHTTPError

    base: type[Exception] = HfHubHTTPError.__bases__[0]
    return base


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
