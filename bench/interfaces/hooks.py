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
    text, where the objective needs views. `share` is the share of the step's examples that are in this micro-batch,
    `mask_share` that of all the step's values that are to be predicted behind a mask.
    """

    inputs: Inputs
    index: Tensor
    labels: Tensor | None = None
    mask: Any = None
    views: tuple[Inputs, Inputs] | None = None
    share: Tensor | float = 1.0
    mask_share: Tensor | float = 1.0


@dataclass(frozen=True)
class Loss:
    """The scalar to minimise and its named parts for the log.

    They are means over the micro-batch. The loss of a step is the sum of its micro-batches' losses, each times its
    `share`: None stands for `Batch.share`, which is right for a mean over examples; a mean over what a mask hides has
    `Batch.mask_share`.
    """

    total: Tensor
    parts: dict[str, Tensor] = field(default_factory=dict)
    share: Tensor | float | None = None

    def of_step(self, batch: Batch) -> Loss:
        """Return what this micro-batch adds to the step's loss."""
        # Of 10 examples in micro-batches of 4, 3 and 3 the shares are 0.4, 0.3 and 0.3, and the sum of shares times
        # means is the mean over the 10.
        share = batch.share if self.share is None else self.share
        if isinstance(share, float) and share == 1:  # of a batch that is not split
            return self
        return Loss(self.total * share, {name: part.detach() * share for name, part in self.parts.items()}, 1.0)


@dataclass(frozen=True)
class Activity:
    """How much a part of a method did in a stage.

    `value` is a number that `meaning` explains; `nil` says that the part changed nothing that counts.
    """

    value: float
    meaning: str
    nil: bool = False


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
    `teacher_set` is the training set as the teacher's backbone reads it (its own tokens or image size). `head_carried`
    says that training goes on with the classifier of the stage that it starts from.
    """

    clock: Clock
    total_steps: int
    augmented: bool
    device: torch.device
    training_set: Examples
    teacher_set: Examples | None = None
    head_carried: bool = False

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

    This is the parameters' names, whether they belong to the head, and by what the schedule's rate is multiplied.
    """

    params: list[nn.Parameter]
    names: list[str]
    weight_decay: float
    head: bool
    rate_scale: float
