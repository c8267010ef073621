"""`pipeline`: from a task's name to the pipeline for it, as transformers 4 had them.

Transformers 5 dropped those for models with an encoder. `pipeline_base` has what the tasks share, `pipeline_tasks`
the tasks themselves.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .accepted import is_cpu, is_for_loading, of_load, of_pipeline, of_pipeline_call
from .arrays import bad_option, brief
from .errors import UnsupportedModelError
from .load_options import LOADING
from .model import LanguageModel
from .pipeline_base import Pipeline
from .pipeline_tasks import Seq2SeqPipeline, TextGenerationPipeline

if TYPE_CHECKING:
    import os

__all__ = ["Pipeline", "Seq2SeqPipeline", "TextGenerationPipeline", "pipeline"]

_TASKS = '"translation_xx_to_yy", "translation", "summarization", "text2text-generation" or "text-generation"'


def pipeline(
    task: str,
    model: str | os.PathLike[str] | LanguageModel,
    *,
    batch_size: int | None = None,
    device: str | int | None = None,
    **options: Any,  # noqa: ANN401 (those of load, of the task and of generate)
) -> Pipeline:
    """A function from texts to dictionaries, as `transformers.pipeline` of version 4 made it.

    Args:
        task: "translation_xx_to_yy" (xx and yy as the model's config.json names them), "translation",
            "summarization", "text2text-generation" or "text-generation".
        model: A folder, a hub id, a demo model's name, or a loaded model.
        batch_size: Texts of a list that run side by side; it does not change results. None for 8.
        device: None, -1 or "cpu", a device of torch of this name included.
        **options: Arguments of `load` (unless the model is loaded), and whatever a call of the pipeline takes,
            as defaults for every call.

    Returns:
        A `Seq2SeqPipeline`, or for "text-generation" a `TextGenerationPipeline`.

    Raises:
        OptionError: There is no such task, or an option cannot be used.
        UnsupportedModelError: The model is not of the kind that the task needs.
        TokenizerMissing: The model has no tokenizer.
        ConfigError: The task's entry in config.json cannot be used.
        ModelNotFoundError: There is no such folder, demo model or hub id.

    Example:
        >>> tell = fastdecode.pipeline("text-generation", "demo-stories", max_new_tokens=20, seed=1)
        >>> [record] = tell("Once upon a time")
        >>> record["generated_text"].startswith("Once upon a time")
        True
    """
    kind = _kind(task)
    if not is_cpu(device):
        raise bad_option("device", 'None, -1 or "cpu" (fastdecode computes on the CPU)', brief(device))
    options = of_pipeline(options)
    loading = {name: options.pop(name) for name in (*options,) if name in LOADING or is_for_loading(name)}
    if isinstance(model, LanguageModel) and loading.get("tokenizer") is model.tokenizer:
        loading.pop("tokenizer", None)
    if not isinstance(model, LanguageModel):
        from .loading import load

        model = load(model, **loading)
    elif loading := of_load(loading, LOADING):
        name, value = next(iter(loading.items()))
        raise bad_option(name, "nothing with a model that is loaded", brief(value))
    assert isinstance(model, LanguageModel)
    if not model.has_decoder:
        expected, got = "a model with a decoder", f"{model.info()['architecture']}, an encoder alone"
        raise UnsupportedModelError(
            f"{task}: expected {expected}, got {got}, which gives hidden states (TextEncoder.encode)",
            expected=expected,
            got=got,
        )
    if model.has_encoder != kind.has_encoder:
        fitting = (
            "translation, summarization or text2text-generation" if model.has_encoder else "text-generation"
        )
        expected = "a model with an encoder" if kind.has_encoder else "a model without an encoder"
        got = f"{model.info()['architecture']}, which is for {fitting}"
        raise UnsupportedModelError(f"{task}: expected {expected}, got {got}", expected=expected, got=got)
    return kind(task, model, batch_size, of_pipeline_call(options, shows_input=not kind.has_encoder))


def _kind(task: object) -> type[Pipeline]:
    if not isinstance(task, str):
        raise bad_option("task", _TASKS, brief(task))
    if task == "text-generation":
        return TextGenerationPipeline
    if task in ("translation", "summarization", "text2text-generation"):
        return Seq2SeqPipeline
    match task.split("_"):
        case ["translation", source, "to", target] if source and target:
            return Seq2SeqPipeline
    raise bad_option("task", _TASKS, brief(task))
