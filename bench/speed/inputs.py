"""What reading batches costs beside decoding the same images again, and beside a training step.

Networks have random weights; nothing is kept.
"""

from __future__ import annotations

import argparse
import dataclasses
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from bench import cli
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


@dataclass(frozen=True)
class Inputs:
    """Seconds per batch: read from the array, decoded from encoded images (None for text), and of a training step."""

    read: float
    decoded: float | None
    step: float


def measure_cells(given: argparse.Namespace, threads: int) -> dict[str, Inputs]:
    """Measure the last stage of each selected cell of prepared data, by the cell's name."""
    root = cli.data_root(given)
    with tempfile.TemporaryDirectory() as nothing:
        plan = make_plan(given.gin, given.set, given.only, root, Store(Path(nothing) / "runs"))
    plan.known.refuse_missing((name for cell in plan.selected for name in cell.stage.unprepared), root)
    stages = {cell.stage.data: (cell.name, cell.stage) for cell in plan.selected}
    return {name: measure(stage, root, given.steps, given.device, threads) for name, stage in stages.values()}


def measure(stage: Stage, root: Path, steps: int, device_name: str, threads: int) -> Inputs:
    """Measure a prepared stage on one device: medians over `steps` batches, the mean over as many training steps."""
    torch.set_num_threads(threads)
    device = devices.resolve(device_name)
    stage = dataclasses.replace(
        stage,
        schedule=dataclasses.replace(
            stage.schedule, steps=ours.MANY, epochs=None, warmup_steps=0, warmup_fraction=None
        ),
    )
    examples = open_split(stage.data, stage.backbone, root)
    model = new_model(stage, torch.float32).to(device)
    batches = Batches(stage, examples, model, device)

    def read(step: int) -> None:
        batches.at(step)
        devices.synchronize(device)

    decoded = None
    if isinstance(stage.backbone, MaskedAutoEncoder):
        size, encoded = stage.backbone.image_size, _encoded(stage.data, root)
        order = [torch.cat([batch.index for batch in batches.at(step)]).tolist() for step in range(WARM_UP + steps)]
        decoded = _median(lambda step: decode([encoded[i] for i in order[step]], size), steps)

    turns = iter((WARM_UP, steps, 0))
    measured: list[float | None] = []

    def next_turn(seconds: float | None) -> int:
        measured.append(seconds)
        return next(turns)

    teacher_set = None if stage.teacher is None else open_split(stage.data, stage.teacher.backbone, root)
    ours.train_by_turns(stage, batches, Pace(device, next_turn), teacher_set)
    assert measured[-1] is not None
    return Inputs(read=_median(read, steps), decoded=decoded, step=measured[-1] / steps)


def decode(encoded: Sequence[bytes], size: int) -> Tensor:
    """Encoded images as a normalised batch (B, 3, size, size): what every batch would cost without the array."""
    pixels = np.stack([np.asarray(rgb(value).resize((size, size), Image.Resampling.BILINEAR)) for value in encoded])
    return normalised(torch.from_numpy(pixels.transpose(0, 3, 1, 2)).contiguous(), torch.float32)


def _encoded(data: Data, root: Path) -> list[bytes]:
    """The encoded images of a stage's examples, in its own order."""
    rows = joined([read_rows(root / data.task / f"{split}.parquet", "image") for split in data.split.split("+")])
    labels = [0] * len(rows.values) if rows.labels is None else rows.labels
    return [rows.values[i] for i in chosen_rows(data, labels)]


def _median(measured: Callable[[int], object], steps: int) -> float:
    seconds = []
    for step in range(WARM_UP + steps):
        began = time.perf_counter()
        measured(step)
        seconds.append(time.perf_counter() - began)
    return statistics.median(seconds[WARM_UP:])
