"""What reading batches costs beside decoding the same images again, and beside a training step.

Networks have random weights; nothing is kept.
"""

from __future__ import annotations

import dataclasses
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from bench import device as devices
from bench.data.content import joined
from bench.data.decode import rgb
from bench.data.disk import read_rows
from bench.data.examples import normalised, open_split
from bench.data.subset import chosen_rows
from bench.planning.plan import make_plan
from bench.specs import Data, Stage
from bench.specs.architectures import MaskedAutoEncoder
from bench.speed import ours
from bench.speed.pace import Pace
from bench.store.store import Store
from bench.training.batches import Batches
from bench.training.networks import new_model

WARM_UP = 3
"""Steps and batches that are not counted: they fill caches and memory pools."""


def selected_stages(gin: Sequence[str], overrides: Sequence[str], only: Sequence[str], root: Path) -> dict[str, Stage]:
    """Choose the last stage of selected cells, one for each data set.

    Refuses data that are not prepared.
    """
    with tempfile.TemporaryDirectory() as folder:
        plan = make_plan(gin, overrides, only, root, Store(Path(folder) / "runs"))
    plan.catalogue.refuse_missing((name for cell in plan.selected for name in cell.stage.unprepared), root)
    cells = {cell.stage.data: cell for cell in plan.selected}
    return {cell.name: cell.stage for cell in cells.values()}


def measure(stage: Stage, root: Path, steps: int, device_name: str, threads: int) -> dict[str, float | None]:
    """Measure the seconds of a batch and of a training step.

    The stage is prepared. A batch is `read` from the array, or `decoded` from encoded images (None for text); both are
    medians over so many, `step` is the mean of as many training steps.
    """
    devices.use_cpu(threads)
    device = devices.resolve(device_name)
    endless: dict[str, Any] = {"steps": ours.MANY, "epochs": None, "warmup_steps": 0, "warmup_fraction": None}
    stage = dataclasses.replace(stage, schedule=dataclasses.replace(stage.schedule, **endless))
    batches = Batches(
        stage, open_split(stage.data, stage.backbone, root), new_model(stage, torch.float32).to(device), device
    )

    def read(step: int) -> None:
        batches.at(step)
        devices.synchronize(device)

    decoded = None
    if isinstance(stage.backbone, MaskedAutoEncoder):
        size, encoded = stage.backbone.image_size, _encoded(stage.data, root)
        order = [torch.cat([batch.index for batch in batches.at(step)]).tolist() for step in range(WARM_UP + steps)]
        decoded = _median(lambda step: decode([encoded[i] for i in order[step]], size), steps)

    # Three answers for the loop: steps that are not counted, steps that are, and 0, which ends it.
    turns, seconds = iter((WARM_UP, steps, 0)), 0.0

    def next_turn(taken: float | None) -> int:
        nonlocal seconds
        seconds = taken or 0.0  # in the end those of the turn that counts
        return next(turns)

    teacher_set = None if stage.teacher is None else open_split(stage.data, stage.teacher.backbone, root)
    ours.train_by_turns(stage, batches, Pace(device, next_turn), teacher_set)
    return {"read": _median(read, steps), "decoded": decoded, "step": seconds / steps}


def decode(encoded: Sequence[bytes], size: int) -> Tensor:
    """Decode images to a normalised batch (B, 3, size, size).

    Without the array of decoded images, every batch would cost this.
    """
    pixels = np.stack([np.asarray(rgb(value).resize((size, size), Image.Resampling.BILINEAR)) for value in encoded])
    return normalised(torch.from_numpy(pixels.transpose(0, 3, 1, 2)).contiguous(), torch.float32)


def _encoded(data: Data, root: Path) -> list[bytes]:
    """Read the encoded images of a stage's examples, in its own order."""
    rows = joined([read_rows(root / data.task / f"{split}.parquet", "image") for split in data.split.split("+")])
    labels = [0] * len(rows.values) if rows.labels is None else rows.labels
    return [rows.values[i] for i in chosen_rows(data, labels)]


def _median(action: Callable[[int], object], steps: int) -> float:
    seconds = []
    for step in range(WARM_UP + steps):
        began = time.perf_counter()
        action(step)
        seconds.append(time.perf_counter() - began)
    return statistics.median(seconds[WARM_UP:])
