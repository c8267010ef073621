"""An encoder alone and its one verb: a source in, hidden states or their mean out."""

from __future__ import annotations

from array import array
from typing import TYPE_CHECKING, Any, Literal, overload

from .arrays import as_floats, bad_option, brief, is_one
from .model import LanguageModel

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np
    from numpy.typing import NDArray

    from .arrays import Prompt

    Floats = NDArray[np.float32]


class TextEncoder(LanguageModel):
    """The encoder of T5, Flan-T5, mT5 or UMT5, loaded by `load`, `TextEncoder.load` or `from_tensors`.

    `load` returns one where the folder has no decoder; `TextEncoder.load` and `from_tensors` take any model of these
    families and read the encoder's tensors only. Nothing is kept between calls: `cache_bytes` bounds the keys and
    values of the sources that one step reads, and `max_rows` their number.

    Any number of threads may call it at once, and forked processes too. Pickling keeps where it was loaded
    from, and loads it again.
    """

    has_encoder = True
    has_decoder = False
    _part = "encoder"

    @overload
    def encode(  # type: ignore[overload-overlap]
        self, source: Prompt, *, pooling: Literal["mean"] | None = None
    ) -> Floats: ...
    @overload
    def encode(self, source: Sequence[Prompt], *, pooling: None = None) -> list[Floats]: ...
    @overload
    def encode(self, source: Sequence[Prompt], *, pooling: Literal["mean"]) -> Floats: ...
    @overload
    def encode(
        self, source: Prompt | Sequence[Prompt], *, pooling: Literal["mean"] | None = None
    ) -> Floats | list[Floats]: ...
    def encode(
        self, source: Prompt | Sequence[Prompt], *, pooling: Literal["mean"] | None = None
    ) -> Floats | list[Floats]:
        """Last hidden states of a source, or of each of a list of sources: `last_hidden_state` of transformers.

        Sources of a list are read side by side without padding, up to 512 tokens in one step, and each result is the
        same to the bit as alone. Beside the results only one step's work is held, however long the list.

        Args:
            source: A string, a list of token ids, or a list of such sources; texts get the tokenizer's end
                token, ids are taken as they are.
            pooling: "mean" for the mean over all tokens of a source, the end token included; it is summed in
                double precision.

        Returns:
            float32 of shape `(S, D)` for a source of `S` tokens, with "mean" `(D,)`; for a list of N sources a list
            of such arrays, with "mean" one array `(N, D)`.

        Raises:
            OptionError: A source or `pooling` cannot be used.
            TokenizerMissing: Text is given and the model has no tokenizer.

        Example:
            >>> encoder = fastdecode.TextEncoder.load("demo-en-fr")
            >>> first, second = encoder.encode(["How old are you?", "Good day"])
            >>> first.shape == (len(encoder.tokenizer.encode("How old are you?")), encoder.config["d_model"])
            True
            >>> means = encoder.encode(["How old are you?", "Good day"], pooling="mean")
            >>> bool((means[1] == encoder.encode("Good day", pooling="mean")).all())
            True
        """
        if pooling is not None and not (isinstance(pooling, str) and pooling == "mean"):
            raise bad_option("pooling", 'None or "mean"', brief(pooling))
        import numpy as np

        one = is_one(source, "source")
        sources: Any = [source] if one else source
        # Plain numbers, of four bytes each: a long list of Python's integers would take ten times as much.
        ids = [array("I", self._source_ids(item)) for item in sources]
        width, mean = self._core.width, pooling == "mean"
        states = [as_floats(values) for values in self._core.hidden_states(ids, mean)]
        if one:
            return states[0] if mean else states[0].reshape(-1, width)
        if mean:
            return np.stack(states) if states else np.empty((0, width), np.float32)
        return [values.reshape(-1, width) for values in states]
