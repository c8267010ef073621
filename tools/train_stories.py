"""Trains the bundled demo model `demo-stories`: a small GPT-2 on public-domain children's books.

This file owns the way from stories (books.py cuts them) to a Hugging Face model folder: a
byte-level BPE tokenizer, training, and the export with its card. It needs torch, tokenizers and
transformers, and knows nothing of fastdecode: the folder it writes is read by both alike.

    python tools/train_stories.py --data BOOKS --out RUN                  # 12 epochs, then export
    python tools/train_stories.py --data BOOKS --out RUN --device cuda    # on a GPU
    python tools/train_stories.py --data BOOKS --out RUN --minutes 100    # a budget of wall time
    python tools/train_stories.py --data BOOKS --out RUN --export-only    # from the last checkpoint

A run continues from RUN/checkpoint.pt where there is one. With `--epochs` an interrupted run ends
with the same weights as an uninterrupted one on the same machine; with `--minutes` the schedule
follows the clock, so it does not. The exported folder is RUN/model.
"""

from __future__ import annotations

import argparse
import csv
import json
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from books import read_books
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from training import TrainingOptions, TrainingRun, add_arguments, machine, options_from
from transformers import (
    AutoModelForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    PreTrainedTokenizerFast,
)

if TYPE_CHECKING:
    from pathlib import Path

END_OF_TEXT = "<|endoftext|>"
# Whole books kept for validation: a tale collection, a modern animal story and a novel, none of
# which shares a story with the training books.
HELD_OUT = ("The-Happy-Prince", "The-Story-of-Doctor-Dolittle", "The-Princess-and-the-Goblin")
GENERATION: dict[str, Any] = {"do_sample": True, "temperature": 0.8, "top_k": 40, "max_new_tokens": 200}
CARD_PROMPT = "Once upon a time"
CARD_SEED = 7


@dataclass(frozen=True, kw_only=True)
class Options(TrainingOptions):
    """Everything that decides the result besides the books."""

    epochs: float = 12.0
    batch: int = 8  # windows per step
    vocab_size: int = 4000
    width: int = 256
    layers: int = 4
    head_dim: int = 64
    context: int = 512  # tokens: n_positions, and the length of a training window
    short: float = 0.5  # the first share of the run, on windows cut in two: attention costs less
    held_out: tuple[str, ...] = HELD_OUT


# --- Tokens --------------------------------------------------------------------------------------


def train_tokenizer(stories: list[str], vocab_size: int) -> Tokenizer:
    """Trains a byte-level BPE as GPT-2's; id 0 is `<|endoftext|>`, every byte has an id."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(stories, trainer)
    return tokenizer


class Stream:
    """Stories as one row of ids, each after an `<|endoftext|>`, read in windows."""

    def __init__(self, tokenizer: Tokenizer, stories: list[str], context: int) -> None:
        end = tokenizer.token_to_id(END_OF_TEXT)
        assert end is not None  # the tokenizer was trained with it
        ids: list[int] = []
        starts: list[int] = []
        for encoding in tokenizer.encode_batch(stories):
            starts.append(len(ids))
            ids += [end, *encoding.ids]
        ids.append(end)
        self.ids = torch.tensor(ids)
        self.bytes = sum(len(story.encode()) for story in stories)
        self.context = context
        self.count = (len(ids) - 1) // context - 1
        if self.count < 1:
            raise SystemExit(f"{len(ids)} tokens of text; at least {3 * context} are needed")
        # A window from the start of each story as well: stories are started from there later.
        self.starts = torch.tensor([s for s in starts if s + context < len(ids)])

    def epoch(self, seed: int, epoch: int) -> torch.Tensor:
        """The starts of an epoch's windows, shuffled; a pure function of (seed, epoch)."""
        generator = torch.Generator().manual_seed(seed * 1_000_003 + epoch)
        offset = torch.randint(self.context, (1,), generator=generator)
        starts = torch.cat([offset + self.context * torch.arange(self.count), self.starts])
        return starts[torch.randperm(len(starts), generator=generator)]

    def windows(self, starts: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Inputs and targets, each (len(starts), context)."""
        rows = self.ids[starts[:, None] + torch.arange(self.context + 1)]
        return rows[:, :-1].contiguous(), rows[:, 1:].contiguous()


# --- Training ---------------------------------------------------------------------------------


def make_model(options: Options) -> GPT2LMHeadModel:
    """A GPT-2 with random weights."""
    config = GPT2Config(
        vocab_size=options.vocab_size,
        n_positions=options.context,
        n_embd=options.width,
        n_layer=options.layers,
        n_head=options.width // options.head_dim,
        # The same function as gelu_new, fused into one pass in torch; exported as gelu_new.
        activation_function="gelu_pytorch_tanh",
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        bos_token_id=0,
        eos_token_id=0,
        pad_token_id=None,
        use_cache=False,
    )
    torch.manual_seed(options.seed)
    return GPT2LMHeadModel(config)


def loss_of(model: GPT2LMHeadModel, inputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Mean negative log-likelihood per token, in nats."""
    logits = model(inputs.to(model.device)).logits
    return torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten().to(model.device))


def evaluate(model: GPT2LMHeadModel, stream: Stream, windows: int) -> float:
    """Mean loss over that many windows, evenly spaced over the stream (all, if fewer)."""
    count = min(windows, stream.count)
    starts = torch.linspace(0, len(stream.ids) - stream.context - 1, count).long()
    total = 0.0
    model.eval()
    with torch.no_grad():
        for part in starts.split(8):
            total += float(loss_of(model, *stream.windows(part))) * len(part)
    model.train()
    return total / count


class Run(TrainingRun):
    """A run over stories, and its folder."""

    options: Options
    model: GPT2LMHeadModel

    def __init__(self, data: Path, out: Path, options: Options) -> None:
        out.mkdir(parents=True, exist_ok=True)
        model = make_model(options)
        super().__init__(out, options, model, [model.transformer.h], inputs_first=True)
        train, held = read_books(data, options.held_out)
        tokenizer_file = out / "tokenizer.json"
        if not tokenizer_file.exists():
            train_tokenizer(train, options.vocab_size).save(str(tokenizer_file))
        self.tokenizer = Tokenizer.from_file(str(tokenizer_file))
        self.train = Stream(self.tokenizer, train, options.context)
        self.held = Stream(self.tokenizer, held, options.context)
        self.steps_per_epoch = (self.train.count + len(self.train.starts)) // options.batch
        if self.steps_per_epoch < 1:
            raise SystemExit("the books are shorter than one batch; lower --batch")
        print(
            f"{len(train)} stories, {len(self.train.ids):,} tokens to train on; "
            f"{len(held)} stories, {len(self.held.ids):,} tokens held out; "
            f"{self.steps_per_epoch} steps per epoch",
            flush=True,
        )
        self.resume(("vocab_size", "width", "layers", "head_dim", "context", "batch", "seed"))

    def loss(self, epoch: int, place: int) -> tuple[torch.Tensor, int]:
        """The loss of one batch of windows."""
        starts = self.train.epoch(self.options.seed, epoch)
        batch = starts[place * self.options.batch : (place + 1) * self.options.batch]
        inputs, targets = self.train.windows(batch)
        if self.progress() < self.options.short:
            length = max(1, self.options.context // 2)
            inputs, targets = inputs.reshape(-1, length), targets.reshape(-1, length)
        return loss_of(self.model, inputs, targets), inputs.numel()

    def held_out_loss(self) -> float:
        """The loss on 64 windows of the held-out books."""
        return evaluate(self.model, self.held, 64)


# --- Export -----------------------------------------------------------------------------------


def write_json(file: Path, value: object) -> None:
    file.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")


def sample(folder: Path) -> str:
    """The story that transformers tells from the exported folder with the card's seed."""
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    torch.manual_seed(CARD_SEED)
    prompt = tokenizer(CARD_PROMPT, return_tensors="pt")
    room = model.config.n_positions - prompt["input_ids"].shape[1]
    ids = model.generate(**prompt, max_new_tokens=min(GENERATION["max_new_tokens"], room))
    return str(tokenizer.decode(ids[0], skip_special_tokens=True))


def sources_of(data: Path) -> str:
    """The list of books, from SOURCES.tsv where the folder has one."""
    table = data / "SOURCES.tsv"
    if not table.exists():
        return "\n".join(f"- {book.stem}" for book in sorted(data.glob("*.txt")))
    with table.open(encoding="utf-8", newline="") as lines:
        rows = list(csv.DictReader(lines, delimiter="\t"))
    return "\n".join(f"- github.com/{row['repo']} at {row['commit'][:12]}" for row in rows)


def export(run: Run, data: Path) -> Path:
    """Writes RUN/model: bf16 weights, configs, tokenizer, card. Returns the folder."""
    folder = run.out / "model"
    model = make_model(run.options)
    model.load_state_dict(run.model.state_dict())
    model.config.activation_function = "gelu_new"
    model.config.use_cache = True
    model.to(torch.bfloat16).save_pretrained(folder)
    write_json(folder / "generation_config.json", {"bos_token_id": 0, "eos_token_id": 0} | GENERATION)
    PreTrainedTokenizerFast(
        tokenizer_object=run.tokenizer,
        bos_token=END_OF_TEXT,
        eos_token=END_OF_TEXT,
        unk_token=END_OF_TEXT,
        model_max_length=run.options.context,
        clean_up_tokenization_spaces=False,
    ).save_pretrained(folder)
    rounded = make_model(run.options)
    rounded.load_state_dict({k: v.float() for k, v in model.state_dict().items()})
    held = evaluate(rounded, run.held, run.held.count)
    trained = evaluate(rounded, run.train, run.held.count)
    (folder / "README.md").write_text(card(run, data, held, trained, sample(folder)), "utf-8")
    return folder


def card(run: Run, data: Path, held: float, trained: float, story: str) -> str:
    """The model card."""
    options = run.options
    per_byte = held * len(run.held.ids) / run.held.bytes / math.log(2)
    budget = f"--minutes {options.minutes:g}" if options.minutes else f"--epochs {options.epochs:g}"
    given = "" if options.batch == Options().batch else f" --batch {options.batch}"
    given += "" if options.device == "cpu" else f" --device {options.device}"
    read = run.step * options.batch * options.context
    note = ""
    if run.progress() < 1:
        note = (
            f"\n\nThe run was stopped at {run.progress():.0%} of that schedule, before the rate reached zero."
        )
    if options.minutes:
        note += "\n\nThe schedule followed the clock of a busy machine: elsewhere the same minutes give other weights."
    size = sum(p.numel() for p in run.model.parameters())
    quoted = "\n".join(f"> {line}".rstrip() for line in story.splitlines())
    return f"""---
language: en
license: mit OR apache-2.0
pipeline_tag: text-generation
tags: [gpt2, stories]
---

# demo-stories

A small GPT-2 that tells stories in the manner of old children's books. It comes with fastdecode to
show the library at work without a download; it is no model to build on.

| | |
| --- | --- |
| architecture | GPT-2 (`gelu_new`, tied embeddings), {size:,} parameters, stored as bfloat16 |
| size | width {options.width}, {options.layers} layers, {options.width // options.head_dim} heads \
of {options.head_dim}, context {options.context} tokens |
| tokenizer | byte-level BPE of {options.vocab_size:,} entries, trained on the same books; \
`{END_OF_TEXT}` (id 0) begins and ends a story |
| training | {run.step:,} steps of {options.batch} x {options.context} tokens, \
{run.step / run.steps_per_epoch:.1f} epochs of {len(run.train.ids):,} tokens, {machine(options)} |
| loss on held-out books | {held:.3f} nats per token ({per_byte:.3f} bits per byte), \
all of them in windows of {options.context} tokens |
| loss on training books | {trained:.3f} nats per token, over as many windows |

Both losses are those of the bfloat16 weights in this folder, computed in f32.

## Training

    python tools/train_stories.py --data BOOKS --out RUN {budget}{given} --seed {options.seed}

Muon (rate {options.matrix_rate:g}) for the matrices of the layers, AdamW
({options.other_rate:g}) for the rest; {options.warmup} steps of warm-up, a plateau, and a straight
line to zero over the last {options.decay:.0%}; windows cut in two for the first
{options.short:.0%}. Titles, prefaces, notes and page furniture were left out, quotes and dashes
brought to one form, and each story or chapter stands between `{END_OF_TEXT}`.{note}

## Sample

Made with transformers from "{CARD_PROMPT}", `torch.manual_seed({CARD_SEED})`, f32, and the
settings of `generation_config.json`:

{quoted}

## Limits

It has read {read / 1e6:.1f} million tokens of books from the nineteenth and early twentieth century
and nothing else. Its words hold together, its stories do not: people change names, and a sentence
may forget how it began. It knows no facts, follows no instructions, and
repeats the views and words of its sources, some of which are hurtful today. English only; it
cannot go past {options.context} tokens.

## Books and licence

The books are in the public domain in the United States; the texts are those of GITenberg's copies
of Project Gutenberg. Held out for validation:
{", ".join(options.held_out)}.
The weights are under the licence of fastdecode, MIT OR Apache-2.0.

{sources_of(data)}
"""


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        description="Trains the demo model demo-stories and exports it as a Hugging Face folder."
    )
    add_arguments(parser, Options(), data="folder of books, one .txt each")
    parser.add_argument("--held-out", nargs="+", default=HELD_OUT, help="how held-out books' names start")
    arguments = vars(parser.parse_args())
    arguments["held_out"] = tuple(arguments["held_out"])
    run = Run(arguments["data"], arguments["out"], options_from(arguments, Options))
    if not arguments["export_only"]:
        run.go(arguments["stop_after"], arguments["report_every"], arguments["save_every"])
    if arguments["stop_after"] is None:
        print(f"exported {export(run, arguments['data'])}", flush=True)


if __name__ == "__main__":
    main()
