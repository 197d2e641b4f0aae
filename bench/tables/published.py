"""What papers print, from `published.json` beside this module, and whether a cell of ours reproduces it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from bench.errors import InputError
from bench.tables.compare import Summary

EQUIVALENCE_LEVEL = 0.90
"""The level of the interval: it lies within a margin exactly where two one-sided tests at 5 % say so."""

FILE = Path(__file__).with_name("published.json")
"""The published numbers; `results/published.json` is a link to it, and may be deleted with the results."""
Pretraining = Literal["none", "per_seed", "shared", "unstated"]
"""How often unlabelled stages ran: never, for every seed, once for all seeds, or the paper does not say."""


@dataclass(frozen=True)
class PublishedCell:
    """A printed mean ± std with what decides whether a cell of ours is comparable."""

    table: str
    row: str
    task: str
    mean: float
    std: float
    n: int
    margin: float | None
    """How far two numbers may lie apart and count as the same, in the metric's unit; None: there is no verdict."""
    fields: Mapping[str, str | float]
    pretraining: Pretraining
    notes: tuple[str, ...]
    """Errata and what the paper leaves open, of this cell's table, row and column."""
    source: str = ""
    """The paper."""


@dataclass(frozen=True)
class Verdict:
    """Whether a number of ours agrees with a published one.

    `mean`, `low` and `high` are of ours − published. `caveat` says whose pre-training is shared by all seeds: the
    interval then holds fine-tuning noise only.
    """

    kind: Literal["reproduced", "different", "undecided", "not comparable"]
    mean: float | None = None
    low: float | None = None
    high: float | None = None
    reason: str = ""
    caveat: str = ""


def read_published(path: Path = FILE) -> dict[tuple[str, str, str], PublishedCell]:
    """Read all published cells by table, row and task.

    The fields of a cell are those of its table, of its pre-training where it has some, of its column and of its row.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        cells = [
            PublishedCell(
                name,
                row,
                task,
                mean=mean,
                std=std,
                n=table["n"],
                margin=table["margin"],
                fields={
                    **table["fields"],
                    **(table["pretraining_fields"] if entry["pretraining"] != "none" else {}),
                    **column,
                    **entry.get("fields", {}),
                    **entry.get("column_fields", {}).get(task, {}),
                },
                pretraining=entry["pretraining"],
                notes=(*table["notes"], *table["errata"].get(task, ()), *table["errata"].get(f"{row}/{task}", ())),
                source=content["source"],
            )
            for name, table in content["tables"].items()
            for row, entry in table["rows"].items()
            for (task, column), (mean, std) in zip(table["columns"].items(), entry["cells"], strict=True)
        ]
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise InputError(
            f"The published numbers in {path} cannot be read: {error!r}. git restores the file."
        ) from error
    return {(cell.table, cell.row, cell.task): cell for cell in cells}


def compare_with_published(
    ours: Summary, published: PublishedCell, fields: Mapping[str, str | float], pretraining: Pretraining
) -> Verdict:
    """Judge our cell against the published one by Welch's 90 % t interval of ours − published.

    Reproduced: it lies within ± the margin. Different: wholly outside. Else undecided. `fields` are ours, by the names
    of the published ones: where one differs or is missing, the cells are not comparable.
    """
    differing = [
        f"{name} is {fields.get(name, 'not stated')} here and {value} in the paper"
        for name, value in published.fields.items()
        if fields.get(name) != value
    ]
    if differing:
        return Verdict("not comparable", reason="; ".join(differing))
    sides = {"ours": pretraining, "published": published.pretraining}
    words = {"shared": "shared by all seeds", "unstated": "perhaps shared by all seeds (the paper does not say)"}
    shared = [f"{side} {words[kind]}" for side, kind in sides.items() if kind in words]
    caveat = f"pre-training: {', '.join(shared)}" if shared else ""
    if ours.mean is None:
        return Verdict("undecided", reason="no seed of ours has finished", caveat=caveat)
    mean = ours.mean - published.mean
    if published.margin is None:
        return Verdict("undecided", mean, reason="this published table has no margin", caveat=caveat)
    if ours.std is None:
        return Verdict("undecided", mean, reason="one seed of ours has no spread", caveat=caveat)
    if ours.std == published.std == 0:
        return Verdict("undecided", mean, reason="neither number has a spread", caveat=caveat)
    low, high = welch_interval(mean, (ours.std, ours.n), (published.std, published.n))
    if -published.margin <= low and high <= published.margin:
        return Verdict("reproduced", mean, low, high, caveat=caveat)
    if low > published.margin or high < -published.margin:
        return Verdict("different", mean, low, high, caveat=caveat)
    return Verdict("undecided", mean, low, high, "the interval crosses the margin", caveat)


def welch_interval(mean: float, *groups: tuple[float, int]) -> tuple[float, float]:
    """Return the t interval of a difference of means of groups, each a (sample std, n) with n of at least 2.

    The groups' variances may differ; not all may be 0.
    """
    from scipy.stats import t

    variances = [std**2 / n for std, n in groups]
    total = sum(variances)
    # Welch and Satterthwaite: between the n − 1 of one group alone and that of both together; 4 to 8 for n = 5 and 5.
    freedom = total**2 / sum(variance**2 / (n - 1) for variance, (_, n) in zip(variances, groups, strict=True))
    low, high = t.interval(EQUIVALENCE_LEVEL, freedom, loc=mean, scale=total**0.5)
    return float(low), float(high)
