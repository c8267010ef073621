"""Text for a command as it comes: in pieces, or all at once where a search with beams tells it at its end.

Which of the two is known before the call, so that the call is made once and warns once.
"""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any

from .chat_options import divided
from .errors import FastdecodeWarning
from .options import resolve
from .results import Chunk

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from .causal import CausalLM
    from .seq2seq import Seq2SeqLM


def has_beams(model: Any, options: Mapping[str, Any]) -> bool:  # noqa: ANN401 (a LanguageModel)
    """Whether a call searches with beams, by its options or by what the model's folder asks for.

    Args:
        model: The model.
        options: Options of the call as given by the caller.

    Raises:
        FastdecodeError: An option cannot be used.
    """
    _, others = divided(options)
    with warnings.catch_warnings():
        # The call itself tells what there is to tell.
        warnings.simplefilter("ignore", FastdecodeWarning)
        # One sequence goes with any number of beams: the call says whether more do.
        found = resolve({**others, "num_return_sequences": 1}, model._defaults, 1, model._core.context_limit)
    return found.num_beams > 1


def pieces(model: CausalLM | Seq2SeqLM, prompt: str, options: dict[str, Any]) -> Iterable[Chunk]:
    """What a prompt comes to, piece by piece; a list of whole sequences where there are beams.

    Args:
        model: The model.
        prompt: The prompt, or the source of an encoder-decoder.
        options: Options of the call.

    Raises:
        FastdecodeError: As the call.
    """
    if not has_beams(model, options):
        return model.stream(prompt, **options)
    outputs = model.run(prompt, **options)
    return [
        Chunk(output.text, output.token_ids, index, output.finish_reason)
        for index, output in enumerate(outputs if isinstance(outputs, list) else [outputs])
    ]
