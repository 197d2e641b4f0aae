"""How long a stage would take here, by a few of its steps on a network with random weights. Nothing is kept."""

from __future__ import annotations

import contextlib
import tempfile
import time
from pathlib import Path

from bench.device import numerics, resolve, use_cpu, using
from bench.specs import Stage
from bench.training.batches import Batches
from bench.training.checkpoint import Checkpoints
from bench.training.evaluate import seconds_per_example
from bench.training.fit import open_data
from bench.training.loop import Supervision, train
from bench.training.networks import new_model, refuse_too_large, weight_type
from bench.training.protocol import Settings

FIRST_STEPS, MOST_STEPS, MOST_SECONDS = 3, 20, 10.0
"""The first steps are not timed: they allocate memory, and a GPU records one. Then so many are, or so long."""


class _Enough(Exception):
    """Enough steps were timed."""


def estimated_seconds(stage: Stage, settings: Settings) -> float:
    """Train a stage for a few steps, and return the seconds of all.

    Its evaluation counts, by a few batches of its training set. What the stage starts from, and its teacher, need not
    be there: networks of their shape stand in.
    """
    times: list[float] = []

    def stop() -> bool:  # asked after every step
        times.append(time.perf_counter())
        timed = len(times) - FIRST_STEPS
        if len(times) == stage.total_steps or (
            timed > 1 and (timed > MOST_STEPS or times[-1] - times[FIRST_STEPS] > MOST_SECONDS)
        ):
            raise _Enough
        return False

    use_cpu(settings.threads)
    device = resolve(settings.device)
    with using(device), numerics(stage.execution, device), tempfile.TemporaryDirectory() as folder:
        refuse_too_large(stage, device)
        model = new_model(stage, weight_type(stage)).to(device)
        training_set = open_data(stage.data, stage, settings)
        batches = Batches(stage, training_set, model, device)
        teacher = None if stage.teacher is None else new_model(stage.teacher, weight_type(stage)).to(device)
        teacher_set = None if stage.teacher is None else open_data(stage.data, stage.teacher, settings)
        if teacher is not None:
            teacher.requires_grad_(False).eval()
        supervision = Supervision(
            stop=stop,
            checkpoints=Checkpoints(Path(folder)),
            checkpoint_steps=stage.total_steps,
            started=lambda step: None,
            progress=lambda step, losses: None,
        )
        with contextlib.suppress(_Enough):
            train(stage, model, teacher, batches, supervision, teacher_set, settings.graphs)
        timed = times[FIRST_STEPS:] if len(times) > FIRST_STEPS + 1 else times
        training = stage.total_steps * (timed[-1] - timed[0]) / max(1, len(timed) - 1)
        if stage.evaluation is None:
            return training
        evaluated = sum(data.examples or 0 for data in (stage.data, *stage.evaluations))
        return training + evaluated * seconds_per_example(stage, model, training_set, device)
