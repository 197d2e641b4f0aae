"""Which examples, masks, flips and views a step sees: a pure function of (data, seed, step), so resuming is jumping."""

from __future__ import annotations

import functools
import math

import numpy as np
import torch

from bench.data.augment import random_view
from bench.data.examples import Examples
from bench.hooks import Batch, Inputs
from bench.models import Model
from bench.specs import Stage, stream

LENGTH_POOL = 50
"""Batches of text are made of similar lengths within a pool of this many batches."""


class Batches:
    """The micro-batches of every step of a stage.

    Each epoch has its own shuffle and keeps its last, smaller batch. Another `at` injects recorded data.
    """

    def __init__(self, stage: Stage, examples: Examples, model: Model, device: torch.device) -> None:
        self.stage = stage
        self.examples = examples
        self.model = model
        self.device = device
        self.per_epoch = math.ceil(len(examples) / stage.schedule.batch_size)
        self._epoch = functools.lru_cache(maxsize=2)(self._shuffled)

    def _seed(self, *names: str | int) -> int:
        return stream(self.stage.seed, self.stage.name, *names)

    def _shuffled(self, epoch: int) -> list[torch.Tensor]:
        """The index batches of one epoch."""
        size = self.stage.schedule.batch_size
        random = np.random.Generator(np.random.PCG64(self._seed("order", epoch)))
        order = random.permutation(len(self.examples))
        if self.examples.lengths is not None:
            pool = LENGTH_POOL * size
            pools = [order[start : start + pool] for start in range(0, len(order), pool)]
            order = np.concatenate([part[np.argsort(self.examples.lengths[part], kind="stable")] for part in pools])
        batches = [torch.from_numpy(order[start : start + size]) for start in range(0, len(order), size)]
        if self.examples.lengths is not None:
            batches = [batches[i] for i in random.permutation(len(batches))]
        return batches

    def size(self, step: int) -> int:
        """How many examples a step sees."""
        size, last = self.stage.schedule.batch_size, len(self.examples) % self.stage.schedule.batch_size
        return last if last and (step + 1) % self.per_epoch == 0 else min(size, len(self.examples))

    def at(self, step: int) -> list[Batch]:
        """The micro-batches of step `step` (from 0); together they are one batch of the schedule."""
        epoch, position = divmod(step, self.per_epoch)
        index = self._epoch(epoch)[position]
        parts = index.tensor_split(min(self.stage.schedule.micro_batches, len(index)))
        return [self._batch(part, step, number) for number, part in enumerate(parts)]

    def _batch(self, index: torch.Tensor, step: int, number: int) -> Batch:
        flip = None
        if self.stage.schedule.augmentation == "flip":
            generator = torch.Generator().manual_seed(self._seed("flip", step, number))
            flip = torch.rand(len(index), generator=generator) < 0.5
        inputs = self.examples.inputs(index, self.device, flip)
        mask = None
        if "mask" in self.stage.objective.needs:
            mask = self.model.draw_mask(inputs, torch.Generator().manual_seed(self._seed("mask", step, number)))
        labels = None
        if "labels" in self.stage.objective.needs:
            assert self.examples.labels is not None  # a labelled stage reads labels
            labels = self.examples.labels[index].to(self.device)
        views = None
        if "views" in self.stage.objective.needs:
            views = self._view(inputs, step, number, 0), self._view(inputs, step, number, 1)
        return Batch(inputs, index.to(self.device), labels, mask, views)

    def _view(self, inputs: Inputs, step: int, number: int, view: int) -> Inputs:
        """A random view of images, mirrored only where the schedule allows flips; text as it is."""
        if self.stage.backbone.MODALITY != "image":
            return inputs
        generator = torch.Generator().manual_seed(self._seed("view", step, number, view))
        return random_view(inputs, generator, flips=self.stage.schedule.augmentation == "flip")
