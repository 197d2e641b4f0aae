"""The parts of a stage that name no other stage: data, public weights, schedule, execution."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

from bench.errors import SpecError
from bench.specs.spec import Spec, added


@dataclass(frozen=True)
class Data(Spec):
    """The examples of a task that a stage reads.

    `checksum` is the sha256 of the split's content and `examples`, `classes` its counts; all three are None where the
    task is not prepared, and such a stage is never run or matched. `subset` keeps that many training examples, drawn
    stratified and nested from the stream of `subset_seed`. `part` divides what is left for selection and search: the
    last tenth of the same stratified order is held out, the rest is there to fit.
    """

    task: str
    split: str
    labelled: bool
    checksum: str | None
    examples: int | None
    classes: int | None
    subset: int | None = None
    subset_seed: int = 0
    part: Literal["all", "fit", "holdout"] = "all"

    def check(self) -> None:
        self.require("subset", self.subset is None or self.subset >= 1, "at least 1 example, or None for all")
        self.require("subset_seed", self.subset_seed >= 0, "0 or more")
        if self.subset is not None and self.examples is not None:
            self.require("subset", self.subset <= self.examples, f"at most the {self.examples} examples there are")
        if self.part != "all" and self.subset is not None:
            self.require("subset", self.subset >= 2, "at least 2, so that a search can hold one out")

    @property
    def size(self) -> int | None:
        """The number of examples that are read."""
        size = self.examples if self.subset is None else self.subset
        if size is None or self.part == "all":
            return size
        # Of 105 examples 10 are held out and 95 are there to fit; of 5 it is 1 and 4.
        held_out = max(1, size // 10)
        return held_out if self.part == "holdout" else size - held_out


@dataclass(frozen=True)
class PublicWeights(Spec):
    """A checkpoint made elsewhere.

    `repository` on the Hugging Face hub and `revision` (a commit) are None for a folder. `checksum` is the sha256 of
    its weight file, None as long as the weights are not prepared; no stage that needs such weights is run or matched.
    `fresh` names the parameters that the file lacks and that start from random values, or a whole part of the network.
    `resampling` says how the positions of the file are resampled to the backbone's image size, None where that is the
    size of the weights.
    """

    repository: str | None
    revision: str | None = None
    checksum: str | None = None
    fresh: tuple[str, ...] = ()
    resampling: Literal["bicubic", "antialiased"] | None = added(None)


MOST_STEPS = 10**9


@dataclass(frozen=True)
class Schedule(Spec):
    """How long and how fast a stage trains.

    It sets optimiser steps or epochs, batch, learning rate, clipping and dropout. `lr` is the peak; it rises linearly
    over the warm-up (`warmup_steps`, or `warmup_fraction` of all steps), then falls linearly to 0 or stays. `clip_norm`
    is the global gradient norm, None for no clipping. `dropout` None keeps the backbone's own rate. `micro_batches`
    splits a batch for gradient accumulation, which changes nothing but rounding and which values dropout hits.
    `batching` 'random' draws every batch from all examples; 'length' makes batches of texts of similar lengths, which
    needs less padding.
    """

    EXCLUSIVE: ClassVar[tuple[tuple[str, ...], ...]] = (("steps", "epochs"), ("warmup_steps", "warmup_fraction"))

    steps: int | None = None
    epochs: float | None = None
    batch_size: int = 32
    lr: float = 1e-4
    warmup_steps: int | None = None
    warmup_fraction: float | None = None
    decay: Literal["linear", "constant"] = "linear"
    clip_norm: float | None = None
    dropout: float | None = None
    augmentation: Literal["none", "flip"] = "none"
    micro_batches: int = 1
    batching: Literal["random", "length"] = added("random")

    def check(self) -> None:
        bound = [name for name in ("steps", "epochs") if getattr(self, name) is not None]
        if len(bound) != 1:
            raise SpecError("steps", f"Schedule: give steps or epochs, exactly one of them; got {bound or 'neither'}.")
        self.require("steps", self.steps is None or 1 <= self.steps <= MOST_STEPS, "at least 1, at most a billion")
        self.require("epochs", self.epochs is None or 0 < self.epochs <= 10**6, "above 0, at most a million")
        self.require("batch_size", 1 <= self.batch_size <= 10**6, "at least 1, at most a million")
        self.require("lr", math.isfinite(self.lr) and self.lr > 0, "above 0 and finite")
        if self.warmup_steps is not None and self.warmup_fraction is not None:
            raise SpecError("warmup_steps", "Schedule: give warmup_steps or warmup_fraction, not both.")
        legal = self.warmup_steps is None or 0 <= self.warmup_steps <= MOST_STEPS
        self.require("warmup_steps", legal, "0 or more, at most a billion")
        fraction = self.warmup_fraction
        self.require("warmup_fraction", fraction is None or 0 <= fraction < 1, "in [0, 1)")
        if self.steps is not None and self.warmup_steps is not None:
            self.require("warmup_steps", self.warmup_steps < self.steps, f"below the {self.steps} steps there are")
        clip = self.clip_norm
        self.require("clip_norm", clip is None or 0 < clip < math.inf, "above 0 and finite, or None for no clipping")
        self.require("dropout", self.dropout is None or 0 <= self.dropout < 1, "in [0, 1), or None")
        self.require("micro_batches", 1 <= self.micro_batches <= self.batch_size, "between 1 and batch_size")

    def total_steps(self, examples: int) -> int:
        """Return the number of optimiser steps on so many training examples.

        The last partial batch of an epoch counts. Example: 2 epochs of 100 examples in batches of 32 are 8 steps.
        """
        if self.steps is not None:
            return self.steps
        assert self.epochs is not None  # held by check()
        return max(1, round(self.epochs * math.ceil(examples / self.batch_size)))

    def warmup(self, total_steps: int) -> int:
        """Return how many of so many steps warm up."""
        if self.warmup_fraction is not None:
            return int(self.warmup_fraction * total_steps)
        return self.warmup_steps or 0


@dataclass(frozen=True)
class Execution(Spec):
    """Numerical choices that can change the result of the same training.

    All of them are part of a stage's key. `precision` is that of the arithmetic: 'tf32' rounds the factors of matrix
    products (GPUs only), 'bfloat16' computes under autocast; weights stay in float32 under both. `compile` has torch
    compile the transformer blocks.
    """

    precision: Literal["float32", "tf32", "bfloat16", "float64"] = "float32"
    deterministic: bool = False
    compile: bool = added(False)
