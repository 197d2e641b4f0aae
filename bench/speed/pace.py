"""When a training loop may go on: loops that are compared take turns, and only the steps of a turn are timed."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch

from bench import device as devices


class Enough(Exception):
    """Raised inside a loop that has run long enough; writes no checkpoint."""


class Pace:
    """Called after each step; waits for the device where a turn ends.

    `next_turn` is given the seconds of the turn that has ended (None before the first one) and answers with the steps
    of the next one, once it is this loop's turn again; 0 ends the loop.
    """

    def __init__(self, device: torch.device, next_turn: Callable[[float | None], int]) -> None:
        self._device, self._next_turn = device, next_turn
        self._left, self._began = 0, 0.0

    def begin(self) -> None:
        """Wait for the first turn, with everything ready for its first step."""
        self._turn(None)

    def __call__(self) -> None:
        """Note that a step was taken; raises `Enough` after the last one."""
        self._left -= 1
        if self._left == 0:
            devices.synchronize(self._device)
            self._turn(time.perf_counter() - self._began)

    def _turn(self, seconds: float | None) -> None:
        self._left = self._next_turn(seconds)
        if self._left == 0:
            raise Enough
        devices.synchronize(self._device)
        self._began = time.perf_counter()
