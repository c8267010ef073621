"""Trains the bundled demo model `demo-en-fr`: a small T5 that translates short English sentences.

This file owns the way from sentence pairs (pairs.py reads and splits them) to a Hugging Face model
folder: a unigram tokenizer, training, scores, and the export with its card. It needs torch,
tokenizers, transformers and, for the scores, sacrebleu; it knows nothing of fastdecode.

    python tools/train_translator.py --data fra.txt --out RUN                  # 20 epochs, then export
    python tools/train_translator.py --data fra.txt --out RUN --device cuda    # on a GPU
    python tools/train_translator.py --data fra.txt --out RUN --minutes 100    # a budget of wall time
    python tools/train_translator.py --data fra.txt --out RUN --export-only    # from the last checkpoint

A run continues from RUN/checkpoint.pt where there is one (training.py says with what promise). The
exported folder is RUN/model. The unigram trainer of tokenizers sums in an order that differs from
process to process: a run is repeated exactly only with the same tokenizer.json put into RUN first.
"""

from __future__ import annotations

import argparse
import importlib
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from pairs import Pair, hold_out, read_pairs
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from training import TrainingOptions, TrainingRun, add_arguments, machine, options_from
from transformers import (
    AutoModelForSeq2SeqLM,
    AutoTokenizer,
    PreTrainedTokenizerFast,
    T5Config,
    T5ForConditionalGeneration,
)

if TYPE_CHECKING:
    from pathlib import Path

PREFIX = "translate English to French: "
PAD, END = 0, 1
MAX_NEW_TOKENS = 64
SHOWN = (
    "I am happy to see you.",
    "Where is the station?",
    "She doesn't like coffee.",
    "We have to go home now.",
)


@dataclass(frozen=True, kw_only=True)
class Options(TrainingOptions):
    """Everything that decides the result besides the pairs."""

    epochs: float = 20.0
    batch: int = 128  # pairs per step
    # T5's embeddings have a standard deviation of 1, GPT-2's 0.02: their rate is higher.
    other_rate: float = 0.01
    vocab_size: int = 4000
    width: int = 256
    heads: int = 4
    head_dim: int = 64
    feed_forward: int = 512
    encoder_layers: int = 3
    decoder_layers: int = 2
    longest: int = 64  # tokens; longer pairs are left out
    smoothing: float = 0.1  # of the labels, in training
    held_out: int = 1000  # English sentences


def train_tokenizer(pairs: list[Pair], vocab_size: int) -> Tokenizer:
    """Trains a unigram tokenizer of both languages; ids 0, 1, 2 are `<pad>`, `</s>`, `<unk>`."""
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.NFKC(), normalizers.Replace("\u2019", "'"), normalizers.Strip()]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    trainer = trainers.UnigramTrainer(
        vocab_size=vocab_size,
        special_tokens=["<pad>", "</s>", "<unk>"],
        unk_token="<unk>",
        show_progress=False,
    )
    texts = [PREFIX] * (len(pairs) // 10 + 1)  # often enough that its words become single pieces
    for pair in pairs:
        texts += pair
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="$A </s>", pair="$A </s> $B </s>", special_tokens=[("</s>", END)]
    )
    return tokenizer


def make_model(options: Options) -> T5ForConditionalGeneration:
    """A T5 1.1 with tied, scaled embeddings and random weights."""
    config = T5Config(
        vocab_size=options.vocab_size,
        d_model=options.width,
        d_kv=options.head_dim,
        d_ff=options.feed_forward,
        num_layers=options.encoder_layers,
        num_decoder_layers=options.decoder_layers,
        num_heads=options.heads,
        feed_forward_proj="gated-gelu",
        dropout_rate=0.0,
        tie_word_embeddings=True,
        scale_decoder_outputs=True,
        pad_token_id=PAD,
        eos_token_id=END,
        decoder_start_token_id=PAD,
        use_cache=False,
    )
    # The same function as gelu_new, fused into one pass in torch; exported as gelu_new.
    config.dense_act_fn = "gelu_pytorch_tanh"
    torch.manual_seed(options.seed)
    return T5ForConditionalGeneration(config)


class Pairs:
    """Tokenized pairs, in batches of similar length."""

    def __init__(self, tokenizer: Tokenizer, pairs: list[Pair], longest: int) -> None:
        sources = tokenizer.encode_batch([PREFIX + english for english, _ in pairs])
        targets = tokenizer.encode_batch([french for _, french in pairs])
        rows = [(source.ids, target.ids) for source, target in zip(sources, targets, strict=True)]
        rows = [row for row in rows if max(map(len, row)) <= longest]
        if not rows:
            raise SystemExit(f"no pair has at most {longest} tokens on either side; raise --longest")
        self.sources, self.source_lengths = self._table([source for source, _ in rows], PAD)
        self.targets, self.target_lengths = self._table([target for _, target in rows], -100)
        self._epoch = -1
        self._batches: list[torch.Tensor] = []

    def __len__(self) -> int:
        return len(self.sources)

    @staticmethod
    def _table(rows: list[list[int]], padding: int) -> tuple[torch.Tensor, torch.Tensor]:
        """The rows side by side, padded at their ends, and their lengths."""
        padded = torch.nn.utils.rnn.pad_sequence(
            [torch.tensor(row) for row in rows], batch_first=True, padding_value=padding
        )
        return padded, torch.tensor([len(row) for row in rows])

    def epoch(self, seed: int, epoch: int, batch: int) -> list[torch.Tensor]:
        """The row numbers of an epoch's batches; a pure function of its arguments.

        Rows are shuffled, sorted by length within pools of 50 batches, and the batches shuffled,
        so that little is padded and neighbours differ from epoch to epoch.
        """
        if self._epoch != epoch:
            generator = torch.Generator().manual_seed(seed * 1_000_003 + epoch)
            order = torch.randperm(len(self), generator=generator)
            batches: list[torch.Tensor] = []
            for pool in order.split(50 * batch):
                lengths = self.source_lengths[pool] + self.target_lengths[pool]
                batches += [b for b in pool[lengths.argsort(stable=True)].split(batch) if len(b) == batch]
            self._batches = [batches[i] for i in torch.randperm(len(batches), generator=generator).tolist()]
            self._epoch = epoch
        return self._batches

    def padded(self, numbers: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Sources (padded with 0) and targets (padded with -100), each (rows, longest of them)."""
        sources, targets = self.source_lengths[numbers].max(), self.target_lengths[numbers].max()
        return self.sources[numbers, :sources], self.targets[numbers, :targets]


class Run(TrainingRun):
    """A run over pairs, and its folder."""

    options: Options
    model: T5ForConditionalGeneration

    def __init__(self, data: Path, out: Path, options: Options) -> None:
        out.mkdir(parents=True, exist_ok=True)
        model = make_model(options)
        layers = [model.encoder.block, model.decoder.block]
        super().__init__(out, options, model, layers, inputs_first=False)
        train, self.held_pairs = hold_out(read_pairs(data), options.held_out, options.seed)
        tokenizer_file = out / "tokenizer.json"
        if not tokenizer_file.exists():
            train_tokenizer(train, options.vocab_size).save(str(tokenizer_file))
        self.tokenizer = Tokenizer.from_file(str(tokenizer_file))
        self.train = Pairs(self.tokenizer, train, options.longest)
        self.held = Pairs(self.tokenizer, self.held_pairs, options.longest)
        self.steps_per_epoch = len(self.train.epoch(options.seed, 0, options.batch))
        if self.steps_per_epoch < 1:
            raise SystemExit(f"{data}: fewer pairs than one batch; lower --batch")
        print(
            f"{len(self.train):,} pairs to train on, {len(self.held):,} held out; "
            f"{self.steps_per_epoch} steps per epoch",
            flush=True,
        )
        shape = ("vocab_size", "width", "heads", "head_dim", "feed_forward")
        self.resume((*shape, "encoder_layers", "decoder_layers", "batch", "seed", "held_out"))

    def loss(self, epoch: int, place: int) -> tuple[torch.Tensor, int]:
        """The smoothed loss of one batch of pairs."""
        batch = self.train.epoch(self.options.seed, epoch, self.options.batch)[place]
        return self._loss(*self.train.padded(batch), self.options.smoothing)

    def _loss(
        self, sources: torch.Tensor, targets: torch.Tensor, smoothing: float
    ) -> tuple[torch.Tensor, int]:
        tokens = int((targets != -100).sum())
        sources, targets = sources.to(self.model.device), targets.to(self.model.device)
        logits = self.model(input_ids=sources, attention_mask=(sources != PAD).long(), labels=targets).logits
        loss = torch.nn.functional.cross_entropy(
            logits.flatten(0, 1), targets.flatten(), label_smoothing=smoothing
        )
        return loss, tokens

    def held_out_loss(self) -> float:
        """The loss per target token on all held-out pairs, without smoothing."""
        total, tokens = 0.0, 0
        order = self.held.target_lengths.argsort(stable=True)
        self.model.eval()
        with torch.no_grad():
            for part in order.split(128):
                loss, count = self._loss(*self.held.padded(part), 0.0)
                total, tokens = total + float(loss) * count, tokens + count
        self.model.train()
        return total / tokens


# --- Export -----------------------------------------------------------------------------------


def write_json(file: Path, value: object) -> None:
    file.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")


def export(run: Run) -> Path:
    """Writes RUN/model: bf16 weights, configs, tokenizer. Returns the folder."""
    folder = run.out / "model"
    model = make_model(run.options)
    model.load_state_dict(run.model.state_dict())
    model.config.dense_act_fn = "gelu_new"
    model.config.use_cache = True
    model.to(torch.bfloat16).save_pretrained(folder)
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    task = {"prefix": PREFIX, "max_length": MAX_NEW_TOKENS, "num_beams": 4, "early_stopping": True}
    write_json(folder / "config.json", config | {"task_specific_params": {"translation_en_to_fr": task}})
    write_json(
        folder / "generation_config.json",
        {
            "decoder_start_token_id": PAD,
            "eos_token_id": END,
            "pad_token_id": PAD,
            "max_new_tokens": MAX_NEW_TOKENS,
        },
    )
    # Not T5Tokenizer: transformers 5 would rebuild that from its pieces, without our normalizer.
    PreTrainedTokenizerFast(
        tokenizer_object=run.tokenizer,
        pad_token="<pad>",
        eos_token="</s>",
        unk_token="<unk>",
        clean_up_tokenization_spaces=False,
    ).save_pretrained(folder)
    return folder


def translate(folder: Path, sentences: list[str], beams: int) -> list[str]:
    """What transformers makes of the sentences with the exported folder, in f32."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForSeq2SeqLM.from_pretrained(folder, dtype=torch.float32)
    results: dict[str, str] = {}
    order = sorted(set(sentences), key=len)
    for start in range(0, len(order), 64):
        part = order[start : start + 64]
        inputs = tokenizer([PREFIX + sentence for sentence in part], return_tensors="pt", padding=True)
        ids = model.generate(**inputs, num_beams=beams, max_new_tokens=MAX_NEW_TOKENS)
        results.update(zip(part, tokenizer.batch_decode(ids, skip_special_tokens=True), strict=True))
    return [results[sentence] for sentence in sentences]


def by_source(pairs: list[Pair]) -> dict[str, list[str]]:
    """Every English sentence with all its translations."""
    references: dict[str, list[str]] = {}
    for english, french in pairs:
        references.setdefault(english, []).append(french)
    return references


def count(outputs: list[str], references: dict[str, list[str]]) -> dict[str, tuple[float, str]]:
    """BLEU and chrF of one output for each source against all its references, with sacrebleu's signatures."""
    sacrebleu = importlib.import_module("sacrebleu")  # the one thing that only the card needs
    most = max(map(len, references.values()))
    streams = [[refs[i] if i < len(refs) else None for refs in references.values()] for i in range(most)]
    found = {}
    for name, metric in (("BLEU", sacrebleu.metrics.BLEU()), ("chrF", sacrebleu.metrics.CHRF())):
        # The signature says how many references there were, and is known after the score.
        score = metric.corpus_score(outputs, streams).score
        found[name] = (score, str(metric.get_signature()))
    return found


def scores(folder: Path, pairs: list[Pair], beams: int) -> str:
    """BLEU and chrF of the held-out sentences, in words."""
    references = by_source(pairs)
    found = count(translate(folder, list(references), beams), references)
    return ", ".join(f"{name} {score:.1f} ({signature})" for name, (score, signature) in found.items())


def card(run: Run, folder: Path) -> str:
    """The model card."""
    options = run.options
    budget = f"--minutes {options.minutes:g}" if options.minutes else f"--epochs {options.epochs:g}"
    given = "" if options.batch == Options().batch else f" --batch {options.batch}"
    given += "" if options.device == "cpu" else f" --device {options.device}"
    size = sum(p.numel() for p in run.model.parameters())
    note = ""
    if run.progress() < 1:
        note = f" The run was stopped at {run.progress():.0%} of that schedule, before the rate reached zero."
    if options.minutes:
        note += " The schedule followed the clock of a busy machine: elsewhere the same minutes give other weights."
    english = len({english for english, _ in run.held_pairs})
    run.model.load_state_dict(AutoModelForSeq2SeqLM.from_pretrained(folder, dtype=torch.float32).state_dict())
    shown = "\n".join(
        f"| {source} | {target} |"
        for source, target in zip(SHOWN, translate(folder, list(SHOWN), 1), strict=True)
    )
    return f"""---
language: [en, fr]
license: cc-by-2.0
pipeline_tag: translation
tags: [t5]
---

# demo-en-fr

A small T5 that translates short, everyday English sentences into French. It comes with fastdecode to
show the library at work without a download; it is no model to build on, and long or unusual
sentences are beyond it.

| | |
| --- | --- |
| architecture | T5 1.1 (gated `gelu_new`, tied and scaled embeddings), {size:,} parameters, stored as \
bfloat16 |
| size | width {options.width}, {options.heads} heads of {options.head_dim}, feed-forward \
{options.feed_forward}, {options.encoder_layers} encoder and {options.decoder_layers} decoder layers |
| tokenizer | unigram of {options.vocab_size:,} pieces, trained on the training pairs of both languages |
| training | {run.step:,} steps of {options.batch} pairs, {run.step / run.steps_per_epoch:.1f} epochs of \
{len(run.train):,} pairs, {machine(options)} |
| held out | {english:,} English sentences with {len(run.held_pairs):,} translations; no sentence of either \
language is on both sides |
| loss, held out | {run.held_out_loss():.3f} nats per token |
| greedy, held out | {scores(folder, run.held_pairs, 1)} |
| 4 beams, held out | {scores(folder, run.held_pairs, 4)} |

Scores count against all translations of a sentence; numbers are those of the weights in this folder,
computed in f32 with transformers.

## Use

Sources begin with `{PREFIX.strip()}` (in `task_specific_params`).

| English | greedy |
| --- | --- |
{shown}

## Training

    python tools/train_translator.py --data fra.txt --out RUN {budget}{given} --seed {options.seed}

Muon (rate {options.matrix_rate:g}) for the matrices of the layers, AdamW ({options.other_rate:g})
for the rest, labels smoothed by {options.smoothing:g}.{note}

## Data and licence

Sentence pairs of the Tatoeba project (tatoeba.org) as prepared by www.manythings.org/anki, file of
2019-04-07, under CC-BY 2.0 (creativecommons.org/licenses/by/2.0). The weights are under the same
licence; the sentences were written by Tatoeba's contributors, whose errors and views the model has
learned with the rest.
"""


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        description="Trains the demo model demo-en-fr and exports it as a Hugging Face folder."
    )
    add_arguments(parser, Options(), data="file of pairs: English, a tab, French on each line")
    arguments = vars(parser.parse_args())
    run = Run(arguments["data"], arguments["out"], options_from(arguments, Options))
    if not arguments["export_only"]:
        run.go(arguments["stop_after"], arguments["report_every"], arguments["save_every"])
    if arguments["stop_after"] is None:
        folder = export(run)
        (folder / "README.md").write_text(card(run, folder), encoding="utf-8")
        print(f"exported {folder}", flush=True)


if __name__ == "__main__":
    main()
