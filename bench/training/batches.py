"""Which examples, masks, flips and views a step sees: a pure function of (data, seed, step), so resuming is jumping."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import torch
from torch import Tensor

from bench.data.augment import random_view
from bench.data.examples import by_length, padded
from bench.device import CPU, has_graphs, send
from bench.interfaces.examples import Examples
from bench.interfaces.hooks import Batch
from bench.interfaces.model import Inputs, Model
from bench.specs import Stage, stream
from bench.specs.architectures import LanguageModel

LENGTH_POOL = 50
"""Texts of similar lengths are looked for within so many batches at a time."""


class Batches:
    """The micro-batches of every step of a stage.

    Every epoch is shuffled anew. Where the batch size leaves a remainder, an epoch has one smaller batch: the last one,
    or any one where batching is by length. Its examples are drawn at random in either case.

    Replacing `at` injects recorded data. Nothing here waits for a GPU.
    """

    def __init__(self, stage: Stage, examples: Examples, model: Model, device: torch.device) -> None:
        self.stage = stage
        self.examples = examples
        self.model = model
        self.device = device
        self.per_epoch = math.ceil(len(examples) / stage.schedule.batch_size)
        self._epochs: dict[int, list[Tensor]] = {}

    def _seed(self, *names: str | int) -> int:
        return stream(self.stage.seed, self.stage.name, *names)

    def _shuffled(self, epoch: int) -> list[Tensor]:
        """Draw the index batches of one epoch."""
        # Example: 10 texts, batch size 4, batching 'length'. The shuffle [7 2 9 0 4 1 8 3 6 5] loses its last two,
        # which are the smaller batch; the other eight are sorted by length and cut into two batches; then the three
        # batches are shuffled. Every text is seen once an epoch, and each is as likely as any other to be in the
        # smaller batch.
        size = self.stage.schedule.batch_size
        random = np.random.Generator(np.random.PCG64(self._seed("order", epoch)))
        order = random.permutation(len(self.examples))
        if self.stage.schedule.batching == "random":
            return list(torch.split(torch.from_numpy(order), size))
        lengths = self.examples.lengths
        assert lengths is not None  # a stage that reads images is refused
        # Taken off before anything is sorted: else the smaller batch, whose examples weigh more, would be the longest.
        whole = len(order) - len(order) % size
        # Sorted within pools, not over all: the batches of two epochs then differ.
        for start in range(0, whole, LENGTH_POOL * size):
            pool = order[start : min(start + LENGTH_POOL * size, whole)]
            pool[:] = pool[np.argsort(lengths[pool], kind="stable")]
        batches = torch.split(torch.from_numpy(order), size)
        return [batches[i] for i in random.permutation(len(batches))]

    def _index(self, step: int) -> Tensor:
        epoch, position = divmod(step, self.per_epoch)
        # The order of two epochs is kept: a step asks for its own, and the end of a stage counts them all once more.
        if epoch not in self._epochs:
            # Kept here, not in a cache of the bound method: that would keep network and data alive, being a cycle.
            self._epochs = {**dict(list(self._epochs.items())[-1:]), epoch: self._shuffled(epoch)}
        return self._epochs[epoch][position]

    def size(self, step: int) -> int:
        """Count the examples that a step sees."""
        return len(self._index(step))

    def at(self, step: int) -> list[Batch]:
        """Return the micro-batches of step `step` (from 0). Together they are one batch of the schedule."""
        index, needs = self._index(step), self.stage.objective.needs
        drawn = {"flip": self.stage.schedule.augmentation == "flip", "mask": "mask" in needs, "view": "views" in needs}
        # One stream for each purpose, which the micro-batches go on drawing from: their number changes no draw.
        draws = {name: torch.Generator().manual_seed(self._seed(name, step)) for name in drawn if drawn[name]}
        parts = index.tensor_split(min(self.stage.schedule.micro_batches, len(index)))
        batches, targets = zip(*(self._batch(part, draws) for part in parts), strict=True)
        return list(batches) if len(batches) == 1 else self._with_shares(batches, targets)

    def _with_shares(self, batches: tuple[Batch, ...], targets: tuple[int, ...]) -> list[Batch]:
        """Say what share of the step each micro-batch has: of its examples, and of what its masks hide."""
        # Tensors, not numbers: a recorded step reads them anew each time.
        sizes = torch.tensor([len(batch.index) for batch in batches], dtype=self.examples.dtype)
        hidden = torch.tensor(targets, dtype=self.examples.dtype)
        shares = send(sizes / sizes.sum(), self.device), send(hidden / hidden.sum().clamp(min=1), self.device)
        return [
            dataclasses.replace(batch, share=share, mask_share=mask_share)
            for batch, share, mask_share in zip(batches, *shares, strict=True)
        ]

    def _batch(self, index: Tensor, draws: dict[str, torch.Generator]) -> tuple[Batch, int]:
        """Return a micro-batch, and how many values its mask hides."""
        flip = torch.rand(len(index), generator=draws["flip"]) < 0.5 if "flip" in draws else None
        inputs, mask, targets = self._inputs(index, flip), None, 0
        if "mask" in draws:
            mask = self.model.draw_mask(inputs, draws["mask"])
            targets = int(mask.targets)
            mask = mask._make(send(part, self.device) for part in mask)
        if isinstance(inputs, dict):  # until now on the host, where a mask is drawn
            inputs = {name: part if name == "parts" else send(part, self.device) for name, part in inputs.items()}
        labels = None
        if "labels" in self.stage.objective.needs:
            assert self.examples.labels is not None  # a labelled stage reads labels
            labels = send(self.examples.labels[index], self.device)
        views = (self._view(inputs, draws["view"]), self._view(inputs, draws["view"])) if "view" in draws else None
        return Batch(inputs, send(index, self.device), labels, mask, views), targets

    def _inputs(self, index: Tensor, flip: Tensor | None) -> Inputs:
        """Read images onto the device, or texts onto the host.

        Texts come in parts of similar lengths, or padded to one of few lengths.
        """
        # Where shapes have to repeat: with pad_to_multiple_of 8, texts of up to 21 tokens become (B, 24).
        backbone = self.stage.backbone
        if not isinstance(backbone, LanguageModel):
            return self.examples.inputs(index, self.device, flip)
        inputs = self.examples.inputs(index, CPU, flip)
        if in_parts(self.stage, self.device):
            return {**inputs, "parts": by_length(inputs["attention_mask"])}
        longest, unit = inputs["input_ids"].shape[1], backbone.pad_to_multiple_of
        return padded(inputs, min(-(-longest // unit) * unit, backbone.max_length), backbone.pad_id)

    def _view(self, inputs: Inputs, generator: torch.Generator) -> Inputs:
        """Draw a random view of images; return text as it is.

        Views are mirrored only where the schedule allows flips.
        """
        if isinstance(inputs, dict):
            return inputs
        return random_view(inputs, generator, flips=self.stage.schedule.augmentation == "flip")


def in_parts(stage: Stage, device: torch.device) -> bool:
    """Tell whether texts are computed in parts of similar lengths.

    They need little padding then. Recorded or compiled steps want few different shapes instead.
    """
    return not (has_graphs(device) or stage.execution.compile)
