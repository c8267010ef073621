"""A training run that can be interrupted: schedule, optimizers, checkpoint, clock, progress.

The scripts of the demo models share this file; it knows nothing of their data and architectures.
"""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from muon import Muon

if TYPE_CHECKING:
    import argparse


# Of a checkpoint: changes with what it holds.
FORMAT = 2


@dataclass(frozen=True, kw_only=True)
class TrainingOptions:
    """What decides the course of a run, whatever is trained; stored in the checkpoint."""

    epochs: float
    minutes: float | None = None  # wall time; replaces epochs as the measure of progress
    batch: int  # examples per step
    matrix_rate: float = 0.02  # Muon, for the matrices of the layers
    other_rate: float = 0.003  # AdamW, for embeddings, biases and norms
    weight_decay: float = 0.05
    warmup: int = 100  # steps
    decay: float = 0.7  # the last share of the run, over which the rate falls to zero
    clip: float = 1.0
    seed: int = 0
    device: str = "cpu"  # or "cuda", where products are formed in TF32


class TrainingRun(ABC):
    """A model in training and its folder.

    With `epochs` an interrupted run on a CPU ends with the weights of an uninterrupted one on the
    same machine: a batch depends on the seed and the step alone. With `minutes` the schedule
    follows the clock, so it does not; a GPU adds some gradients in any order.

    Attributes:
        model: the model; its matrices outside embeddings are trained by Muon.
        step: steps done.
        steps_per_epoch: set by the subclass before it trains.
        seconds: wall time spent in `go`, over all parts of the run.
    """

    def __init__(
        self,
        out: Path,
        options: TrainingOptions,
        model: torch.nn.Module,
        layers: list[torch.nn.Module],
        *,
        inputs_first: bool,
    ) -> None:
        """Makes the optimizers.

        Args:
            out: folder of the checkpoint.
            options: the course of the run.
            model: the model to train.
            layers: its parts whose matrices Muon trains.
            inputs_first: whether a matrix is (in, out), as in GPT-2's Conv1D, or (out, in).
        """
        self.out = out
        self.options = options
        self.model = model.to(options.device)
        self.step = 0
        self.steps_per_epoch = 0
        self.seconds = 0.0
        matrices = [p for layer in layers for p in layer.parameters() if p.ndim == 2]
        known = {id(p) for p in matrices}
        others = [p for p in model.parameters() if id(p) not in known]
        self.optimizers: list[torch.optim.Optimizer] = [
            Muon(matrices, options.matrix_rate, options.weight_decay, inputs_first=inputs_first),
            torch.optim.AdamW(others, lr=options.other_rate, betas=(0.9, 0.95), weight_decay=0.0, eps=1e-10),
        ]

    @abstractmethod
    def loss(self, epoch: int, place: int) -> tuple[torch.Tensor, int]:
        """The loss of an epoch's batch number `place`, and how many tokens it counts."""

    @abstractmethod
    def held_out_loss(self) -> float:
        """The loss on (part of) what is held out, for the reports."""

    def resume(self, fixed: tuple[str, ...]) -> None:
        """Continues from the checkpoint, if there is one.

        Args:
            fixed: options that must be what they were when it was made.

        Raises:
            SystemExit: one of them is not.
        """
        file = self.out / "checkpoint.pt"
        if not file.exists():
            return
        saved = torch.load(file, weights_only=True, map_location="cpu")
        if saved.get("format") != FORMAT:
            raise SystemExit(f"{file} was made by an older version of this script; give another --out")
        for name in fixed:
            if saved["options"][name] != getattr(self.options, name):
                raise SystemExit(
                    f"{file} was made with {name}={saved['options'][name]}, this run asks for "
                    f"{getattr(self.options, name)}; give the same value or another --out"
                )
        self.model.load_state_dict(saved["model"])
        for optimizer, state in zip(self.optimizers, saved["optimizers"], strict=True):
            optimizer.load_state_dict(state)
        self.step = saved["step"]
        self.seconds = saved["seconds"]
        print(f"continuing from step {self.step}", flush=True)

    def save(self) -> None:
        """Writes the checkpoint; the old one stays whole until the new one is."""
        state = {
            "format": FORMAT,
            "model": self.model.state_dict(),
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
            "step": self.step,
            "seconds": self.seconds,
            "options": asdict(self.options),
        }
        part = self.out / "checkpoint.part"
        torch.save(state, part)
        part.replace(self.out / "checkpoint.pt")

    def progress(self) -> float:
        """The share of the run that is done, 0 to 1: of the steps, or of the minutes."""
        if self.options.minutes is not None:
            return self.seconds / (60 * self.options.minutes)
        return self.step / max(1, round(self.options.epochs * self.steps_per_epoch))

    def _set_rates(self) -> None:
        """Warm-up, a plateau, then a straight line to zero."""
        left = min(1.0, max(0.0, 1 - self.progress()) / self.options.decay)
        factor = left * min(1.0, (self.step + 1) / self.options.warmup)
        rates = (self.options.matrix_rate, self.options.other_rate)
        for optimizer, rate in zip(self.optimizers, rates, strict=True):
            for group in optimizer.param_groups:
                group["lr"] = rate * factor

    def train_step(self) -> tuple[torch.Tensor, int]:
        """One batch; returns its loss (on the device, which is not waited for) and its tokens."""
        self._set_rates()
        loss, tokens = self.loss(*divmod(self.step, self.steps_per_epoch))
        self.model.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.options.clip)
        for optimizer in self.optimizers:
            optimizer.step()
        self.step += 1
        return loss.detach(), tokens

    def go(self, stop_after: int | None, report_every: int, save_every: float) -> None:
        """Trains to the end, or to step `stop_after`.

        Args:
            stop_after: the step to leave at, with a checkpoint.
            report_every: steps between lines of progress; every tenth has the held-out loss.
            save_every: seconds between checkpoints.
        """
        begun = time.monotonic() - self.seconds
        last_save = reported = time.monotonic()
        mean: torch.Tensor | None = None
        tokens = 0
        self.model.train()
        while self.progress() < 1 and self.step != stop_after:
            loss, count = self.train_step()
            now = time.monotonic()
            self.seconds = now - begun
            tokens += count
            mean = loss if mean is None else mean.lerp(loss, 0.02)
            if self.step % report_every == 0:
                speed = tokens / (now - reported)
                note = (
                    f"  held out {self.held_out_loss():.4f}" if self.step % (10 * report_every) == 0 else ""
                )
                print(
                    f"{100 * self.progress():5.1f}%  step {self.step}  epoch "
                    f"{self.step / self.steps_per_epoch:.2f}  loss {float(mean):.4f}{note}  "
                    f"{speed:,.0f} tokens/s  {self.seconds / 60:.1f} min",
                    flush=True,
                )
                reported, tokens = time.monotonic(), 0
            if now - last_save > save_every:
                self.save()
                last_save = now
        self.save()


def machine(options: TrainingOptions) -> str:
    """How the run computed, for a card."""
    return "f32 on a CPU" if options.device == "cpu" else "f32 (products in TF32) on a GPU"


Options = TypeVar("Options", bound=TrainingOptions)


def add_arguments(parser: argparse.ArgumentParser, defaults: TrainingOptions, data: str) -> None:
    """Adds the arguments that every training script has, and one per number in its options."""
    add = parser.add_argument
    add("--data", type=Path, required=True, help=data)
    add("--out", type=Path, required=True, help="folder for checkpoint, tokenizer and model")
    for field in fields(defaults):
        value = getattr(defaults, field.name)
        flag = f"--{field.name.replace('_', '-')}"
        if field.name == "minutes":
            add(flag, type=float, help="length of the run in wall time, instead of --epochs")
        elif field.name == "device":
            add(flag, choices=("cpu", "cuda"), default=value, help="default: %(default)s")
        elif isinstance(value, (int, float)):
            add(flag, type=type(value), default=value, help="default: %(default)s")
    add("--threads", type=int, default=2, help="default: %(default)s")
    add("--stop-after", type=int, help="leave at this step with a checkpoint, without export")
    add("--report-every", type=int, default=20, help="steps between lines of progress")
    add("--save-every", type=float, default=180.0, help="seconds between checkpoints")
    add("--export-only", action="store_true", help="only export the last checkpoint")


def options_from(arguments: dict[str, Any], kind: type[Options]) -> Options:
    """The options among the parsed arguments; also sets torch's threads and precision."""
    torch.set_num_threads(arguments["threads"])
    if arguments["device"] != "cpu":
        torch.set_float32_matmul_precision("high")
    # Products of tiny activations would otherwise run at a fraction of the speed.
    torch.set_flush_denormal(True)
    names = {field.name for field in fields(kind)}
    return kind(**{name: value for name, value in arguments.items() if name in names})
