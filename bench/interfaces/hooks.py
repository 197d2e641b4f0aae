"""What the training loop hands to objectives, optimisers and constraints, and what they hand back.

Planning imports this module, so torch is imported where something is computed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypedDict

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from bench.interfaces.examples import Examples
    from bench.interfaces.model import Inputs, Model


@dataclass(frozen=True)
class Batch:
    """One micro-batch on the training device.

    `index` (B,) are positions in the training set; `labels` (B,) or None; `mask` is what the model's `draw_mask`
    returned, or None where the objective needs none; `views` are two augmentations of images, or twice the inputs of
    text, where the objective needs views.
    """

    inputs: Inputs
    index: Tensor
    labels: Tensor | None = None
    mask: Any = None
    views: tuple[Inputs, Inputs] | None = None


@dataclass(frozen=True)
class Loss:
    """The scalar to minimise and its named parts for the log."""

    total: Tensor
    parts: dict[str, Tensor] = field(default_factory=dict)


@dataclass
class State:
    """Everything an objective keeps between steps.

    `module` is trained along with the model (a projection head); `tensors` change during training. Both are part of
    every checkpoint. `constants` never change and are rebuilt by `begin` on resuming (cached teacher features).
    """

    module: nn.Module | None = None
    tensors: dict[str, Tensor] = field(default_factory=dict)
    constants: dict[str, Any] = field(default_factory=dict)


@dataclass
class Clock:
    """The step of a stage in training. `reads` counts how often an objective asked for it."""

    step: int = 0
    reads: int = 0


@dataclass(frozen=True)
class Context:
    """What an objective may know besides model and batch.

    This is the step, the step count and the training examples.

    `augmented` says whether the loop changes the inputs at each step (then nothing may be cached per example).
    `teacher_set` is the training set as the teacher's backbone reads it (its own tokens or image size).
    """

    clock: Clock
    total_steps: int
    augmented: bool
    device: torch.device
    training_set: Examples
    teacher_set: Examples | None = None

    @property
    def step(self) -> int:
        """The step, from 0. A loss that reads it is not recorded on a GPU: the number would stay what it was."""
        self.clock.reads += 1
        return self.clock.step

    def examples(self, batch_size: int = 256) -> Iterator[tuple[Tensor, Inputs]]:
        """Iterate over the whole training set in order, unaugmented. Yields (index, inputs)."""
        return _in_order(self.training_set, self.device, batch_size)

    def teacher_examples(self, batch_size: int = 256) -> Iterator[tuple[Tensor, Inputs]]:
        """Iterate over the same examples as the teacher reads them."""
        assert self.teacher_set is not None, "this stage has no teacher"
        return _in_order(self.teacher_set, self.device, batch_size)


def _in_order(examples: Examples, device: torch.device, batch_size: int) -> Iterator[tuple[Tensor, Inputs]]:
    import torch

    for start in range(0, len(examples), batch_size):
        index = torch.arange(start, min(start + batch_size, len(examples)))
        yield index, examples.inputs(index, device)


class TeacherOutput:
    """The output of a frozen teacher for each training example.

    Objectives that learn from a teacher use it; `output` computes it from the teacher and inputs.

    Without augmentation it is the same at every step, so it is computed once, from inputs in the form that the
    teacher's own backbone reads. With augmentation the teacher sees the student's inputs.
    """

    def __init__(self, teacher: Model, context: Context, output: Callable[[Model, Inputs], Tensor]) -> None:
        import torch

        self._teacher, self._output = teacher, output
        self._cached: Tensor | None = None
        if not context.augmented:
            with torch.no_grad():
                self._cached = torch.cat([output(teacher, inputs) for _, inputs in context.teacher_examples()])

    def of(self, batch: Batch) -> Tensor:
        """Return the outputs for one batch (B, …)."""
        import torch

        if self._cached is not None:
            return self._cached[batch.index]
        with torch.no_grad():
            return self._output(self._teacher, batch.inputs)


class ParameterGroup(TypedDict):
    """A torch parameter group with what methods need to know.

    This is the parameters' names, and whether they belong to the head.
    """

    params: list[nn.Parameter]
    names: list[str]
    weight_decay: float
    head: bool
