"""transformers as the reference for encoder-decoders, whichever family they are of. The laws are `reference`'s.

Shapes: `S` source tokens, `T` decoder tokens, `D` model width, `V` vocabulary.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
import transformers
from families import Ids, Input
from reference import Array, Reference, Run


class Seq2SeqReference(Reference):
    """As `Reference`, with the attention mask of the source given explicitly."""

    auto = transformers.AutoModelForSeq2SeqLM

    def __init__(self, folder: Path, dtype: str | None = None) -> None:
        super().__init__(folder, dtype)
        self.start: int = json.loads((folder / "config.json").read_text())["decoder_start_token_id"]

    def answers(self, item: Input, model: Any = None) -> dict[str, Array]:
        """Returns the encoder's last `hidden states` `(S, D)`, and the `logits` after every decoder token `(T, V)`."""
        assert item.source is not None, "an encoder-decoder has a source"
        with torch.no_grad():
            out = (model or self.model)(
                input_ids=torch.tensor([item.source]),
                attention_mask=torch.ones(1, len(item.source), dtype=torch.long),
                decoder_input_ids=torch.tensor([item.prompt]),
                use_cache=False,
            )
        return {"hidden states": out.encoder_last_hidden_state[0].numpy(), "logits": out.logits[0].numpy()}

    def loss(self, source: Ids, target: Ids) -> float:
        """Returns the mean loss of a target."""
        mask = torch.ones(1, len(source), dtype=torch.long)
        with torch.no_grad():
            out = self.model(torch.tensor([source]), attention_mask=mask, labels=torch.tensor([target]))
        return float(out.loss)

    def generate(
        self,
        sources: list[Ids],
        /,
        *,
        prompts: list[Ids] | None = None,
        seed: int | None = None,
        **options: Any,
    ) -> Run:
        """Generates from sources of one length; `seed` seeds torch's one generator for the whole call.

        Args:
            sources: Ids for the encoder.
            prompts: Ids for the decoder, of one length, the start token first; the start token alone otherwise.
            seed: Seed of the draws.
            **options: Options of transformers.
        """
        if seed is not None:
            torch.manual_seed(seed)
        begin = prompts or [[self.start]] * len(sources)
        out = self.model.generate(
            torch.tensor(sources),
            attention_mask=torch.ones(len(sources), len(sources[0]), dtype=torch.long),
            decoder_input_ids=torch.tensor(begin),
            pad_token_id=0,
            return_dict_in_generate=True,
            output_logits=True,
            **options,
        )
        rows = [row[len(begin[0]) :].tolist() for row in out.sequences]
        eos = options.pop("eos_token_id", None)
        cut = [row[: row.index(eos) + 1] if eos in row else row for row in rows]
        repeated = [prompt for prompt in begin for _ in range(options.get("num_return_sequences", 1))]
        judged = options if eos is None else options | {"eos_token_id": eos}
        return Run(repeated, cut, [step.float() for step in out.logits], seed, judged)
