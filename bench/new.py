"""Write a working skeleton to begin with: `python -m bench.new method NAME` or `python -m bench.new task NAME`.

A method is a file NAME.py that passes `python -m bench.check` and a grid NAME.gin that trains it beside fine-tuning; a
task is a folder NAME of CSV files and a grid NAME.gin that declares it. Nothing that is there is written over.
"""

from __future__ import annotations

import keyword
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import baselines
from bench import cli
from bench.data.tasks import CORPORA, FURTHER_EVALUATIONS, TASKS
from bench.errors import InputError
from bench.planning.bindings import LEGAL_NAME
from bench.planning.catalogue import RESERVED
from bench.planning.plugins import refuse_hiding
from bench.planning.registry import BACKBONES, RECIPES, SETTINGS
from bench.specs import SPECS

METHOD = '''\
"""NAME: say here in a sentence what it does, and where it comes from.

As it stands it is cross-entropy against smoothed labels, with epsilon of the weight spread over all classes. Change
`loss`, then hold it to what the suite promises: python -m bench.check NAME.py
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from bench.methods import Batch, Cell, Context, Loss, Objective, Stage, State, finetune, recipe

if TYPE_CHECKING:  # importing torch takes seconds, and planning does without
    from bench.interfaces.model import Model


@dataclass(frozen=True)
class CLASS(Objective):
    """Compute the loss of a micro-batch. Every field is a setting that gin files bind, here CLASS.epsilon."""

    NEEDS = frozenset({"labels", "head"})  # what the loss reads; with "head" the stage is evaluated
    CAPTURABLE = True  # a GPU may record the loss: it reads no step number and draws on the device

    epsilon: float = 0.1

    def check(self) -> None:
        self.require("epsilon", 0 <= self.epsilon < 1, "in [0, 1)")

    def loss(self, model: Model, batch: Batch, state: State, context: Context) -> Loss:
        from torch.nn.functional import cross_entropy

        logits = model.logits(batch.inputs)
        return Loss(cross_entropy(logits, batch.labels, label_smoothing=self.epsilon))  # a mean over the examples


@recipe()
def NAME(cell: Cell) -> Stage:
    """Fine-tune with that loss. A function marked so is a row of grids, under its name."""
    return finetune(cell, objective=cell.configure(CLASS()))
'''

METHOD_GRID = """\
# NAME beside fine-tuning on a task and a backbone that come with the suite: python -m bench.grid --gin NAME.gin
grid.plugins = ['NAME.py']                            # relative to this file
grid.rows = ['finetune', 'NAME', 'strong/NAME']
grid.tasks = ['digits']
grid.seeds = [0, 1]

strong/CLASS.epsilon = 0.3                            # a setting of one row
source_pretrain.steps = 100                           # of the tiny backbone, for a first look; it has 1500 without this
finetune.warmup_fraction = 0.1
digits/finetune.steps = 60
digits/finetune.lr = 3e-3
digits/finetune.augmentation = 'none'                 # a mirrored digit is another digit
"""

TASK_GRID = """\
# NAME, a task of one's own, on a text backbone that comes with the suite: python -m bench.grid --gin NAME.gin
# Put your texts into NAME/train.csv and NAME/test.csv, with the columns text and label. The path is relative to the
# working directory. Images lie in folders instead: 'folder:NAME' reads NAME/train/cat/1.jpg, NAME/test/dog/2.jpg.
NAME/task.source = 'csv:NAME'
NAME/task.metric = 'accuracy'
NAME/task.backbone = 'docs_mlm'  # tiny, and pre-trained by the first run; the default, roberta_base, is a download
source_pretrain.steps = 100      # for a first look; it has 2500 without this line
grid.rows = ['finetune', 'lp_ft']
grid.tasks = ['NAME']
grid.seeds = [0, 1]

finetune.warmup_fraction = 0.1
NAME/finetune.epochs = 5
NAME/finetune.lr = 1e-3
"""

ITEMS = ("film", "book", "meal", "hotel", "concert", "walk", "game", "talk")
OPINIONS = {"good": ("wonderful", "a great joy", "very kind"), "bad": ("dull", "a waste of time", "far too loud")}
SPLITS = {"train": ITEMS[:6], "test": ITEMS[6:]}


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the files and say what to do with them."""
    parser = cli.plain_parser("new", __doc__)
    parser.add_argument("kind", choices=("method", "task"))
    parser.add_argument("name", metavar="NAME", help="a letter, then letters, digits or _")
    options = parser.parse_args(arguments)
    baselines.register()
    name = options.name
    if not name.isidentifier() or keyword.iskeyword(name):
        hint = re.sub(r"\W", "_", name).lstrip("_0123456789")
        example = f" Write {hint}." if hint.isidentifier() and not keyword.iskeyword(hint) else ""
        raise InputError(f"'{name}' is no name: {LEGAL_NAME}, and no word of Python's own.{example}")
    files = _method(name) if options.kind == "method" else _task(name)
    _write(files)
    print(f"written: {', '.join(files)}")
    if options.kind == "method":
        print(f"to hold it to what the suite promises: python -m bench.check {name}.py")
    print(f"to run it: python -m bench.grid --gin {name}.gin")
    return 0


def _method(name: str) -> dict[str, str]:
    """Return the text of a method's files, by path. Refuses names that the suite or Python has."""
    kind = "".join(part[:1].upper() + part[1:] for part in name.split("_")) + "Loss"
    for taken, what in ((RECIPES, "a method"), (BACKBONES, "a backbone"), (TASKS, "a task"), (SETTINGS, "settings")):
        if name in taken:
            raise InputError(f"'{name}': the suite has {what} of that name. Choose another one.")
    if kind in SPECS:
        raise InputError(f"'{name}': the suite has a class {kind}, which would be yours. Choose another name.")
    refuse_hiding(Path(f"{name}.py").absolute(), f"'{name}'")
    return {f"{name}.py": _filled(METHOD, name, kind), f"{name}.gin": _filled(METHOD_GRID, name, kind)}


def _task(name: str) -> dict[str, str]:
    """Return the text of a task's files, by path. Refuses names that mean something already."""
    if name in {*TASKS, *CORPORA, *BACKBONES, *RECIPES, *RESERVED, *FURTHER_EVALUATIONS}:
        raise InputError(f"'{name}': the suite has a task, backbone or method of that name. Choose another one.")
    files = {f"{name}.gin": _filled(TASK_GRID, name)}
    for split, items in SPLITS.items():
        rows = [
            f"the {item} was {opinion},{label}"
            for item in items
            for label, opinions in OPINIONS.items()
            for opinion in opinions
        ]
        files[f"{name}/{split}.csv"] = "\n".join(["text,label", *rows]) + "\n"
    return files


def _filled(template: str, name: str, kind: str = "") -> str:
    return re.sub(r"\b(NAME|CLASS)\b", lambda match: {"NAME": name, "CLASS": kind}[match[0]], template)


def _write(files: Mapping[str, str]) -> None:
    """Write files into the working directory; refuse before the first where one is there."""
    there = [path for path in files if Path(path).exists()]
    if there:
        raise InputError(
            f"{', '.join(there)}: there already, and not written over. Move it away, or choose another name."
        )
    cli.check_writable("the working directory", Path.cwd())
    for path, text in files.items():
        Path(path).parent.mkdir(exist_ok=True)
        Path(path).write_text(text, encoding="utf-8")


if __name__ == "__main__":
    sys.exit(cli.reporting_errors(main))
