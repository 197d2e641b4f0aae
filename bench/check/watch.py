"""What is seen of a stage while it runs: who touches global generators, and what its objective began with."""

from __future__ import annotations

import functools
import random
import sys
from contextlib import ExitStack
from types import FrameType
from typing import Any
from unittest import mock

import numpy as np
import torch

from bench.device import seed
from bench.interfaces.hooks import Context, State
from bench.interfaces.model import Model
from bench.specs import Objective, Stage
from bench.training import loop, networks


class Patches(ExitStack):
    """Replaces attributes, and puts all of them back at its end."""

    def set(self, owner: Any, name: str, value: Any) -> None:
        """Replace one attribute."""
        self.enter_context(mock.patch.object(owner, name, value))


class Watch:
    """Who touches global generators while a stage runs; what objectives began with."""

    SEEDING = ("manual_seed", "seed", "set_rng_state", "fork_rng")

    def __init__(self, stage: Stage, patches: Patches) -> None:
        self.intruders: list[str] = []
        self.states: list[State] = []
        self.teachers: list[Model] = []
        self._seed: int | None = None
        of_torch = [(module, name) for name in self.SEEDING for module in (torch, torch.random)]
        for module, name in [*of_torch, (random, "seed"), (np.random, "seed")]:
            if hasattr(module, name):
                patches.set(module, name, self._noting(name, getattr(module, name)))
        for module in (loop, networks):
            patches.set(module, "seed", self._seed_for_loop)
        self._watch_begin(stage, patches)

    def _noting(self, name: str, original: Any) -> Any:
        """Return a function that seeds as the original does, and notes who calls it."""

        @functools.wraps(original)
        def call(*args: Any, **kwargs: Any) -> Any:
            frame: FrameType = sys._getframe(1)
            caller = frame.f_globals.get("__name__", "?")
            if caller != "bench.device":  # which seeds all of them for the loop
                self.intruders.append(f"{original.__module__}'s {name} called by {caller}, line {frame.f_lineno}")
            self.look()
            result = original(*args, **kwargs)
            self._seed = torch.initial_seed()
            return result

        return call

    def _seed_for_loop(self, value: int, device: torch.device) -> None:
        """Seed the generators for the loop, after a look whether anybody else has."""
        self.look()
        seed(value, device)
        self._seed = torch.initial_seed()

    def look(self) -> None:
        """Note it if anybody has seeded torch's default generator by a way of its own."""
        if self._seed is not None and torch.initial_seed() != self._seed:
            self.intruders.append("torch's default generator was seeded by something else than the loop")

    def _watch_begin(self, stage: Stage, patches: Patches) -> None:
        """Remember the states and teachers that this stage's objective begins with."""
        kind = type(stage.objective)
        original = kind.begin

        def begin(objective: Objective, model: Model, teacher: Model | None, context: Context) -> State:
            state = original(objective, model, teacher, context)
            self.states.append(state)
            if teacher is not None:
                self.teachers.append(teacher)
            return state

        patches.set(kind, "begin", begin)

    def unfrozen(self) -> list[str]:
        """Name the parts of teachers that are trained, or in train mode."""
        modes = [name for teacher in self.teachers for name, module in teacher.named_modules() if module.training]
        weights = [
            name for teacher in self.teachers for name, weight in teacher.named_parameters() if weight.requires_grad
        ]
        return modes + weights
