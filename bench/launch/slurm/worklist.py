"""What one submission is to run: an ordered list of stages, from which its jobs pull.

    STORE/.slurm/worklists/68f1c2d09b7e4a51.json     written once, before the first sbatch call of the submission

No job is bound to a stage. Whatever became of the other jobs, one that is free takes the next stage of the list whose
parents are there (`bench.launch.slurm.pool`).
"""

from __future__ import annotations

import dataclasses
import functools
from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.errors import DamagedStore, InputError
from bench.launch.queue import steps_ahead
from bench.launch.slurm.ledger import folder
from bench.specs import Selected, Stage
from bench.specs.cluster import Cluster, stage_kind
from bench.store.files import read_json, write_json


@dataclass(frozen=True)
class Entry:
    """A stage of a worklist.

    `parents` are positions in the list: the parents that were not done when it was made. `generation` is how many
    generations of the list come before it, `ahead` the optimiser steps of the longest chain from it on, `attempts` how
    many attempts the store held then: a failure among those does not count. `may_lack` says that it can run though a
    parent diverged, as a search can.
    """

    folder: str
    kind: str
    parents: tuple[int, ...]
    generation: int
    ahead: int
    attempts: int
    may_lack: bool


@dataclass(frozen=True)
class Worklist:
    """The stages of a submission, parents first, and what each kind of them asks of a job."""

    token: str
    entries: tuple[Entry, ...]
    clusters: dict[str, Cluster]

    def widths(self, folders: Collection[str] | None = None) -> list[dict[str, int]]:
        """Count the stages of every generation, by kind; with `folders` those alone."""
        widths: list[dict[str, int]] = [defaultdict(int) for _ in range(1 + self.last_generation)]
        for entry in self.entries:
            if folders is None or entry.folder in folders:
                widths[entry.generation][entry.kind] += 1
        return widths

    @property
    def last_generation(self) -> int:
        """The number of the last generation; -1 in an empty list."""
        return max((entry.generation for entry in self.entries), default=-1)


def worklist(
    token: str, stages: Sequence[Stage], attempts: Mapping[str, int], clusters: Mapping[str, Cluster]
) -> Worklist:
    """Make the list of stages that are to run, parents first.

    `attempts` are the numbers of attempts so far, by key. Example: of P (100 steps) with the children A (10) and B
    (20), P is of generation 0 and has 120 steps ahead; A and B are of generation 1, with 10 and 20.
    """
    positions = {stage.key: position for position, stage in enumerate(stages)}
    generation: dict[str, int] = {}
    for stage in stages:
        generation[stage.key] = 1 + max((generation[p.key] for p in stage.parents if p.key in positions), default=-1)
    ahead = steps_ahead(stages)
    entries = tuple(
        Entry(
            stage.folder,
            stage_kind(stage.name),
            tuple(positions[parent.key] for parent in stage.parents if parent.key in positions),
            generation[stage.key],
            ahead[stage.key],
            attempts.get(stage.key, 0),
            isinstance(stage, Selected),
        )
        for stage in stages
    )
    kinds = {entry.kind for entry in entries}
    return Worklist(token, entries, {kind: clusters[kind] for kind in sorted(kinds)})


# ------------------------------------------------------------------------------------------------------- its file


@dataclass(frozen=True)
class WorklistFile:
    """What the file of a worklist holds; its name is the token. The fields of entries are columns of one length."""

    clusters: dict[str, dict[str, Any]]
    folder: tuple[str, ...]
    kind: tuple[str, ...]
    parents: tuple[tuple[int, ...], ...]
    generation: tuple[int, ...]
    ahead: tuple[int, ...]
    attempts: tuple[int, ...]
    may_lack: tuple[bool, ...]


COLUMNS = [field.name for field in dataclasses.fields(Entry)]


def write(store_root: Path, listed: Worklist) -> None:
    """Write a worklist into its store."""
    clusters = {kind: dataclasses.asdict(cluster) for kind, cluster in listed.clusters.items()}
    columns = {name: [getattr(entry, name) for entry in listed.entries] for name in COLUMNS}
    write_json(_path(store_root, listed.token), {"clusters": clusters, **columns})


@functools.lru_cache(64)
def read(store_root: Path, token: str) -> Worklist:
    """Read a worklist, which is never changed; DamagedStore where it is missing or of another shape."""
    fix = "Delete it, cancel the grid's jobs and submit the grid again."
    data = read_json(_path(store_root, token), fix, WorklistFile)
    try:
        rows = zip(*(data[name] for name in COLUMNS), strict=True)
        entries = tuple(Entry(**_tuples(dict(zip(COLUMNS, row, strict=True)))) for row in rows)
        clusters = {kind: Cluster(**_tuples(facts)) for kind, facts in data["clusters"].items()}
        for position, entry in enumerate(entries):
            if entry.kind not in clusters or not all(0 <= parent < position for parent in entry.parents):
                raise ValueError(f"{entry.folder} is of a kind, or has a parent, that is not listed before it")
    except (InputError, TypeError, ValueError) as error:  # columns of several lengths, settings of another version
        raise DamagedStore(f"{_path(store_root, token)}: no worklist of this version ({error}). {fix}") from error
    return Worklist(token, entries, clusters)


def count_finished(store_root: Path, token: str) -> int:
    """Count the stages of a worklist that are done, whoever ran them; none in one that cannot be read."""
    try:
        entries = read(store_root, token).entries
    except DamagedStore:
        return 0
    return sum((store_root / entry.folder / "record.json").exists() for entry in entries)


def _tuples(facts: Mapping[str, Any]) -> dict[str, Any]:
    return {name: tuple(value) if isinstance(value, list) else value for name, value in facts.items()}


def _path(store_root: Path, token: str) -> Path:
    return folder(store_root) / "worklists" / f"{token}.json"
