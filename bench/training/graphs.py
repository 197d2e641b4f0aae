"""Steps that a GPU records once and then repeats as a whole (CUDA graphs), so that it never waits for Python.

A training step asks a GPU for thousands of small pieces of work. Recorded, they are started by one call:

    first uses of a shape    the work runs as it is written: networks, optimiser state and libraries set themselves up
    next use                 it is recorded, which does nothing yet, then repeated: that is the step
    every later use          inputs are copied to where the recording reads them, and it is repeated

A recording has frozen what Python computed: a repeated step would go on with the numbers of the recorded one. What a
step needs anew therefore stands in tensors: its batch, the optimiser's numbers (`Optimizer.prepare`), and random
numbers, whose generator is seeded before each repetition. Objectives, optimisers and constraints say by `CAPTURABLE`
that they keep to this. What breaks it all the same and can be seen (`_broken`) has all recordings dropped, and the
stage goes on unrecorded. A repeated step computes the same bits as an unrecorded one, so it is no part of a key.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from bench.device import Graph, graph_pool
from bench.interfaces.hooks import Batch, Clock, State

Losses = dict[str, Tensor]

UNRECORDED_USES = 2
"""How often a shape is computed as written before it is recorded."""
MOST_RECORDINGS = 32
"""How many recordings a stage keeps; the shapes that come up often reach `UNRECORDED_USES` first."""


@dataclass(frozen=True)
class Recording:
    """A graph with the tensors of its inputs and its losses.

    The graph reads the first and overwrites the second each time it is repeated.
    """

    graph: Graph
    inputs: Any
    losses: Losses

    def repeat(self, inputs: Any) -> Losses:
        """Compute the losses of these inputs. They are copies: the next repetition overwrites the graph's own."""
        for target, source in zip(_tensors(self.inputs), _tensors(inputs), strict=True):
            target.copy_(source, non_blocking=True)
        self.graph.replay()
        return {name: loss.clone() for name, loss in self.losses.items()}


class Recorder:
    """The work of a stage's steps, recorded where shapes repeat.

    A shape that comes up often is recorded and then repeated. `states` are those of the stage's objective and
    constraint. `log` is called once, with the reason, when nothing is recorded any more.
    """

    def __init__(self, device: torch.device, clock: Clock, states: list[State], log: Callable[[str], None]) -> None:
        self._clock, self._states, self._log = clock, states, log
        self._pool = graph_pool(device)
        self._uses: Counter[Any] = Counter()
        self._recordings: dict[Any, Recording] = {}
        self._dropped = False

    def run(self, work: Callable[[Any], Losses], inputs: Any, name: str) -> Losses:
        """Return the losses of `work(inputs)`.

        A recording is identified by the work's `name` and the shapes of its inputs.
        """
        # The shape is the key: a graph repeats with tensors of the very sizes that it was recorded with. An epoch of
        # images has two of them, its whole batches and the smaller last one.
        shape = (name, *((tuple(tensor.shape), tensor.dtype) for tensor in _tensors(inputs)))
        recording = self._recordings.get(shape)
        if recording is None:
            self._uses[shape] += 1
            if self._dropped or self._uses[shape] <= UNRECORDED_USES or len(self._recordings) == MOST_RECORDINGS:
                return work(inputs)
            recording = self._record(work, inputs)
            if recording is None:
                self.drop()
                return work(inputs)
            self._recordings[shape] = recording
        return recording.repeat(inputs)

    def drop(self) -> None:
        """Free all recordings and their memory, and record nothing from now on."""
        self._recordings.clear()
        self._dropped = True

    def _record(self, work: Callable[[Any], Losses], inputs: Any) -> Recording | None:
        """Record `work`, which computes nothing yet.

        Returns None, with everything as it was, where repeating the recording would be wrong.
        """
        # 1. Note what a recording must leave as it is. 2. Record, from copies of the inputs, which stay its own.
        # 3. Compare: whatever Python changed meanwhile would not be changed by a repetition. 4. On a difference, or an
        # error, put back what was noted: the caller then computes this step as if nothing had been tried.
        tensors, draws, reads = [dict(state.tensors) for state in self._states], _host_draws(), self._clock.reads
        inputs = pytree.tree_map_only(Tensor, torch.clone, inputs)
        graph = Graph(self._pool)
        try:
            losses = graph.capture(lambda: work(inputs))
            reason = self._broken(tensors, draws, reads)
        except Exception as error:  # whatever a recording cannot hold; a fault of the step itself comes again below
            cause: BaseException = error
            while cause.__context__ is not None:  # ending a recording that is broken fails in turn
                cause = cause.__context__
            first_line = (str(cause).strip().splitlines() or ["no message"])[0]
            reason = f"{type(cause).__name__}: {first_line}"
        if reason is None:
            return Recording(graph, inputs, losses)
        self._log(f"steps are not recorded: {reason}")
        for state, noted in zip(self._states, tensors, strict=True):
            state.tensors = noted
        _restore_host_draws(draws)
        return None

    def _broken(self, tensors: list[dict[str, Tensor]], draws: Any, reads: int) -> str | None:
        """Say why repeating the recording just made would go wrong.

        Only what can be seen is looked at; None where nothing is.
        """
        if self._clock.reads != reads:
            return "the loss reads context.step, which would stay what it was"
        for state, noted in zip(self._states, tensors, strict=True):
            replaced = [name for name, tensor in state.tensors.items() if noted.get(name) is not tensor]
            if replaced or noted.keys() != state.tensors.keys():
                names = ", ".join(sorted({*replaced, *(noted.keys() ^ state.tensors.keys())}))
                return f"other tensors are put into the state ({names}) instead of changing those there in place"
        if not _same_draws(draws, _host_draws()):
            return "the loss draws random numbers on the host, which would stay what they were"
        return None


# torch's trees go through dicts and tuples by themselves. Batches they have to be told of: else a batch would count as
# one value without tensors, and a recording would read the first batch for ever.
pytree.register_dataclass(Batch)


def _tensors(inputs: Batch | None) -> list[Tensor]:
    return [leaf for leaf in pytree.tree_leaves(inputs) if isinstance(leaf, Tensor)]


# ------------------------------------------------------------------------------------------------ draws on the host


def _host_draws() -> tuple[Any, Any, Tensor]:
    """Return the states of the generators whose draws a recording freezes.

    They are Python's, NumPy's and torch's on the CPU.
    """
    return random.getstate(), np.random.get_state(legacy=False), torch.get_rng_state()  # noqa: NPY002


def _same_draws(before: tuple[Any, Any, Tensor], after: tuple[Any, Any, Tensor]) -> bool:
    same_numpy = repr(before[1]) == repr(after[1])
    return before[0] == after[0] and same_numpy and torch.equal(before[2], after[2])


def _restore_host_draws(draws: tuple[Any, Any, Tensor]) -> None:
    random.setstate(draws[0])
    np.random.set_state(draws[1])  # noqa: NPY002
    torch.set_rng_state(draws[2])
