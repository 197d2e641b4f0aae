"""A grid of a few steps with tiny networks on one image and one text task."""

from pathlib import Path

from bench.check.tiny import SIZES
from bench.planning.plan import Plan, make_plan
from bench.store.store import Store

SETTINGS = """
include 'base.gin'
grid.rows = [{rows}]
grid.tasks = ['digits', 'pydocs']
grid.seeds = [0]
finetune.steps = 4
finetune.batch_size = 8
digits/finetune.augmentation = 'none'
source_pretrain.steps = 4
"""


def networks(*backbones: str) -> str:
    """The lines that make backbones tiny."""
    sizes = ((f"{name}/backbone.{size}", value) for name in backbones for size, value in SIZES[name].items())
    return "".join(f"{target} = {value}\n" for target, value in sizes)


def write(folder: Path, rows: list[str], *bindings: str) -> Path:
    """The gin file of these rows; the bindings stand from line 11 on."""
    path = folder / "tiny.gin"
    # In a file of its own, lines for a task that the bindings leave out are no mistake.
    grid = "grid.rows = ['finetune']\ngrid.tasks = ['digits', 'pydocs']\ngrid.seeds = [0]\nfinetune.warmup_steps = 1\n"
    (folder / "base.gin").write_text(grid + networks("photos_mae", "docs_mlm"))
    text = SETTINGS.format(rows=", ".join(repr(row) for row in rows)).lstrip() + "\n\n" + "\n".join(bindings) + "\n"
    path.write_text(text)
    return path


def plan(folder: Path, data: Path, rows: list[str], *bindings: str) -> Plan:
    """What the grid would run; raises InputError where the bindings are refused."""
    return make_plan([str(write(folder, rows, *bindings))], [], [], data, Store(folder / "runs"))
