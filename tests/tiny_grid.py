"""A grid of a few steps on one image and one text task, for tests of single methods."""

from pathlib import Path

from bench.planning.plan import Plan, make_plan
from bench.store.store import Store

SETTINGS = """
grid.rows = [{rows}]
grid.tasks = ['digits', 'pydocs']
grid.seeds = [0]
finetune.steps = 4
finetune.batch_size = 8
finetune.warmup_steps = 1
digits/finetune.augmentation = 'none'
source_pretrain.steps = 4
"""


def write(folder: Path, rows: list[str], *bindings: str) -> Path:
    """The gin file of these rows; the bindings stand from line 11 on."""
    path = folder / "tiny.gin"
    text = SETTINGS.format(rows=", ".join(repr(row) for row in rows)).lstrip() + "\n\n" + "\n".join(bindings) + "\n"
    path.write_text(text)
    return path


def plan(folder: Path, data: Path, rows: list[str], *bindings: str) -> Plan:
    """What the grid would run; raises InputError where the bindings are refused."""
    return make_plan([str(write(folder, rows, *bindings))], [], [], data, Store(folder / "runs"))
