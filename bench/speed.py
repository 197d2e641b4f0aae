"""How fast batches come and steps go: `python -m bench.speed --gin gin/small_image.gin --only 'finetune/flower/*/0'`.

For the last stage of each selected cell: the time to read a batch from the array on disk, to decode the same examples'
encoded images (what the array saves), and to train one step. Networks have random weights; nothing is kept.
"""

from __future__ import annotations

import dataclasses
import itertools
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from tabulate import tabulate
from torch import Tensor

from bench import cli
from bench.backbones import MaskedAutoEncoder
from bench.batches import Batches
from bench.checkpoint import Checkpoints
from bench.data import open_split
from bench.data.content import joined
from bench.data.decode import rgb
from bench.data.disk import read_rows
from bench.data.examples import normalised
from bench.data.subset import chosen_rows
from bench.errors import InputError
from bench.fit import new_model
from bench.plan import make_plan
from bench.specs import Data, Stage
from bench.store import Store
from bench.train import Supervision, train

WARM_UP = 3
"""Steps and batches that are not counted: they fill caches and memory pools."""


@dataclass(frozen=True)
class Speed:
    """Seconds per batch: read from the array, decoded from encoded images (None for text), and of a training step."""

    read: float
    decoded: float | None
    step: float


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure the selected cells and print a table."""
    parser = cli.parser("python -m bench.speed", __doc__ or "")
    parser.add_argument("--only", nargs="+", action="extend", default=[], metavar="GLOB", help="cells to measure")
    parser.add_argument("--steps", type=int, default=20, help="steps and batches to measure (default: 20)")
    parser.add_argument("--device", default="cpu", help="cpu or cuda:N (default: cpu)")
    given = parser.parse_args(arguments)
    if given.steps < 1:
        raise InputError(f"--steps {given.steps}: must be at least 1.")
    root = cli.data_root(given)
    plan = make_plan(given.gin, given.set, given.only, root, Store(given.store))
    plan.known.refuse_missing((name for cell in plan.selected for name in cell.stage.unprepared), root)
    stages = {cell.stage.data: (cell.name, cell.stage) for cell in plan.selected}
    rows = [
        (name, *_row(measure(stage, root, given.steps, given.device, plan.grid.threads)))
        for name, stage in stages.values()
    ]
    headers = ("cell", "read ms", "decode ms", "step ms", "decode / read", "read / step")
    print(tabulate(rows, headers=headers, tablefmt="github", disable_numparse=True))
    print(f"\nmedians of {given.steps} batches and steps on {given.device}, {plan.grid.threads} thread(s)")
    return 0


def _row(speed: Speed) -> tuple[str, ...]:
    decoded = "-" if speed.decoded is None else f"{1e3 * speed.decoded:.2f}"
    ratio = "-" if speed.decoded is None else f"{speed.decoded / speed.read:.0f}x"
    share = f"{100 * speed.read / speed.step:.2f} %"
    return f"{1e3 * speed.read:.2f}", decoded, f"{1e3 * speed.step:.1f}", ratio, share


def measure(stage: Stage, root: Path, steps: int, device: str, threads: int) -> Speed:
    """The medians over `steps` batches of a prepared stage, on one device."""
    torch.set_num_threads(threads)
    place = torch.device(device)
    schedule = dataclasses.replace(
        stage.schedule, steps=WARM_UP + steps, epochs=None, warmup_steps=0, warmup_fraction=None
    )
    stage = dataclasses.replace(stage, schedule=schedule)
    examples = open_split(stage.data, stage.backbone, root)
    batches = Batches(stage, examples, new_model(stage, torch.float32).to(place), place)

    examples.dtype = torch.float32
    teacher = None if stage.teacher is None else new_model(stage.teacher, torch.float32).to(place).requires_grad_(False)
    teacher_set = None if stage.teacher is None else open_split(stage.data, stage.teacher.backbone, root)

    def settle() -> None:
        if place.type == "cuda":
            torch.cuda.synchronize(place)

    def read(step: int) -> None:
        batches.at(step)
        settle()

    decoded = None
    if isinstance(stage.backbone, MaskedAutoEncoder):
        size, encoded = stage.backbone.image_size, _encoded(stage.data, root)
        order = [torch.cat([batch.index for batch in batches.at(step)]).tolist() for step in range(WARM_UP + steps)]
        decoded = _median(lambda step: decode([encoded[i] for i in order[step]], size), steps)

    ends = [time.perf_counter()]

    def stepped(step: int, losses: object) -> None:
        settle()
        ends.append(time.perf_counter())

    with tempfile.TemporaryDirectory() as folder:
        never = WARM_UP + steps + 1  # no checkpoint is written in between
        supervision = Supervision(lambda: False, Checkpoints(Path(folder)), never, lambda step: None, stepped)
        train(stage, batches.model, teacher, batches, supervision, teacher_set)
    seconds = [end - start for start, end in itertools.pairwise(ends)]
    return Speed(read=_median(read, steps), decoded=decoded, step=statistics.median(seconds[WARM_UP:]))


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


if __name__ == "__main__":
    sys.exit(cli.reporting_errors(main))
