"""What networks said of each test example, beside a grid's records: `results/NAME/predictions/….safetensors`.

A grid asks for it with `grid.publish_predictions`. Each cell has a file with, for every example in the split's order,

    index      its number in the split
    labels     its class
    predicted  the class that the network said
    loss       its cross-entropy, in float64
    logits     (N, C) in the precision that the grid asked for

Classes and losses come from the store's logits, before these are rounded: the float32 logits 2.0 and 2.0001 are a tie
in float16, of which the first class would win.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench.cli import while_written
from bench.data.manifest import read_manifest
from bench.data.tasks import FURTHER_EVALUATIONS
from bench.errors import InputError
from bench.planning.plan import Plan, PlannedCell
from bench.store.files import replacing, sha256
from bench.store.store import Store
from bench.tables.records import NONE_READ, Record, records_path

if TYPE_CHECKING:
    from torch import Tensor

TENSORS = frozenset(("index", "labels", "predicted", "loss", "logits"))
FACTS = ("key", "cell", "split", "class_names", "exact_logits", "precision", "source")
"""What a file says of its tensors."""
ANEW = "Delete it; bench.collate --gin FILE writes it anew from the store."


@dataclass(frozen=True)
class Predictions:
    """A file of predictions: its tensors, and what it says of them.

    `exact_logits` tells whether the logits are those of the network, bit for bit; `split` is None for the one that the
    stage's own number comes from; `source` is the checksum of the store's file.
    """

    tensors: Mapping[str, Tensor]
    key: str
    cell: str
    split: str | None
    class_names: tuple[str, ...]
    exact_logits: bool
    precision: str
    source: str


def predictions_path(results: Path, name: str, cell: str, key: str) -> Path:
    """Return where the predictions of a cell are published."""
    folder = records_path(results, name).with_name("predictions")
    return folder / f"{cell.replace('/', '-')}-{key[:16]}.safetensors"


def paths_while_written(plan: Plan) -> list[str]:
    """Name the files below the results folder that publishing the plan's predictions needs, as long as they get."""
    if plan.grid.publish_predictions is None:
        return []
    paths = [predictions_path(Path(), plan.table_name, cell.name, cell.stage.key) for cell in plan.cells]
    return [str(path.with_name(while_written(path.name))) for path in paths]


def publish_predictions(
    plan: Plan, store: Store, results: Path, shown: Iterable[str], read_before: Mapping[str, Record] = NONE_READ
) -> list[str]:
    """Write the predictions of the plan's cells, as far as its grid asks for them.

    What is there already and came from the same predictions is left as it is. Returned are those of the `shown` cells,
    by name, whose predictions are neither there nor in the store: records of older versions have none.
    The records in `read_before`, by stage key, are not read again.
    """
    precision = plan.grid.publish_predictions
    if precision is None:
        return []
    cells = {cell.name: cell for cell in plan.cells if not cell.stage.unprepared}
    paths = {name: predictions_path(results, plan.table_name, name, cell.stage.key) for name, cell in cells.items()}
    unread = (cell.stage for cell in cells.values() if cell.stage.key not in read_before)
    records = {**read_before, **store.each(store.record, unread)}
    for name, cell in cells.items():
        record = records.get(cell.stage.key)
        if record is not None and "predictions" in record:
            _publish(plan, cell, store.folder(cell.stage), record["predictions"], precision, paths[name])
    return [name for name in shown if not paths[name].is_file()]


def _publish(plan: Plan, cell: PlannedCell, folder: Path, facts: Mapping[str, Any], precision: str, path: Path) -> None:
    import torch
    from safetensors.torch import load_file, save

    source = folder / facts["file"]
    task, split = FURTHER_EVALUATIONS.get(cell.task, (cell.task, None))
    manifest = read_manifest(task, plan.data_root)
    described = {
        "key": cell.stage.key,
        "cell": cell.name,
        "split": split,
        "class_names": (manifest.class_names or ()) if manifest is not None else (),
        "precision": precision,
        "source": facts["sha256"],
    }
    if _holds(path, described):
        return
    if not source.is_file() or sha256(source) != facts["sha256"]:
        raise InputError(f"{source}: missing or damaged, though its record promises it. --again computes it anew.")
    stored = load_file(source)
    index, labels, logits = (stored[f"{split or 'test'}/{name}"] for name in ("index", "labels", "logits"))
    rounded = logits.to(getattr(torch, precision))
    described["exact_logits"] = torch.allclose(rounded.double(), logits.double(), 0.0, 0.0, equal_nan=True)
    tensors = {
        "index": index,
        "labels": labels,
        "predicted": logits.argmax(dim=1),
        "loss": torch.nn.functional.cross_entropy(logits.double(), labels, reduction="none"),
        "logits": rounded,
    }
    described["tensors"] = _digest(tensors)
    with replacing(path) as temporary:
        temporary.write_bytes(save(tensors, {"description": json.dumps(described, sort_keys=True)}))


def _digest(tensors: Mapping[str, Tensor]) -> str:
    """Compute the sha256 of tensors with their names."""
    from safetensors.torch import save

    return hashlib.sha256(save(dict(tensors))).hexdigest()


def _holds(path: Path, described: Mapping[str, Any]) -> bool:
    """Tell whether a file is there that says this of its tensors."""
    try:
        return path.is_file() and described.items() <= vars(read_predictions(path)).items()
    except InputError:  # a damaged one is written anew
        return False


def _description(path: Path) -> dict[str, Any]:
    """Read what a file says of its tensors; refuses one that is damaged or no such file."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "pt") as file:
            metadata, names = file.metadata() or {}, set(file.keys())
        described = json.loads(metadata["description"])
        if names != TENSORS:
            raise ValueError(f"its tensors are {', '.join(sorted(names))}")
        facts = {name: described[name] for name in FACTS}
        # Files of earlier versions say nothing of what their tensors hold.
        return {**facts, "class_names": tuple(facts["class_names"]), "tensors": described.get("tensors")}
    except (OSError, SafetensorError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path}: damaged, or no predictions of this suite ({error}). {ANEW}") from error


def read_predictions(path: Path) -> Predictions:
    """Read a file of predictions."""
    from safetensors.torch import load_file

    described = _description(path)
    tensors = load_file(path)
    if described.pop("tensors") not in (None, _digest(tensors)):
        raise InputError(f"{path}: damaged, its tensors are not those that were written. {ANEW}")
    return Predictions(tensors, **described)
