"""What the tables of the first paper would cost at the speeds that were measured; imports no torch."""

from __future__ import annotations

import functools
import tempfile
from collections import Counter
from collections.abc import Collection
from pathlib import Path
from typing import NamedTuple

from bench.data.public import SOURCES
from bench.planning.plan import make_plan
from bench.speed.line import Line, line_of
from bench.speed.work import KINDS, OURS
from bench.store.store import Store


class PaperTable(NamedTuple):
    """A published table: the grid behind it, the network whose speeds count."""

    grid: str
    network: str


TABLES = {
    "Table 1": PaperTable("gin/image.gin", "vit_base_224"),
    "Table 2": PaperTable("gin/text.gin", "roberta_base"),
}


@functools.cache
def examples(table: PaperTable) -> tuple[Counter[str], Counter[str]]:
    """Count a grid's stages and the examples they see, by kind.

    No task needs to be prepared: how many examples it has is what its source promises.
    """
    with tempfile.TemporaryDirectory() as folder:
        stages = make_plan([table.grid], [], [], Path(folder), Store(Path(folder) / "runs")).stages
    counts: Counter[str] = Counter()
    seen: Counter[str] = Counter()
    for stage in stages:
        kind = next(kind for kind in KINDS if stage.name.startswith(kind))
        promised = SOURCES[stage.data.task].counts[0].splits
        training_set = sum(promised[split] for split in stage.data.split.split("+"))
        counts[kind] += 1
        seen[kind] += stage.schedule.total_steps(training_set) * stage.schedule.batch_size
    return counts, seen


def hours(table: PaperTable, lines: Collection[Line]) -> float | None:
    """Estimate the hours of training behind a table on one device.

    Returns None where a kind of stage was not measured. Every fine-tuning counts as plain: that of R3F takes about
    twice as long. Evaluation and reading data are left out.
    """
    total = 0.0
    for kind, count in examples(table)[1].items():
        line = line_of(lines, f"{kind}/{table.network}")
        if line is None or not line.speeds.get(OURS):
            return None
        total += count / line.median(line.best)
    return total / 3600
