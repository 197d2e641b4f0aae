"""Building data sets under the data root, and whether what is there is still what was built."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from bench.data.content import Content, checksum
from bench.data.manifest import Manifest, data_root, read_manifest
from bench.data.sources import own
from bench.data.sources.own import fingerprint_of
from bench.data.tasks import TASKS, Task
from bench.errors import InputError
from bench.store.manifest import write_manifest


def check_unchanged(task: Task, manifest: Manifest) -> Manifest:
    """Refuse own data whose source or reading changed since their preparation.

    A source whose names, sizes and times are as they were is taken for unchanged. Any other is read again, and refused
    only if its content is another one: files may have been touched, moved or copied. Returned is the manifest with the
    fingerprint of today.
    """
    fingerprint = fingerprint_of(task)
    if fingerprint is None or fingerprint == manifest.sources.get("fingerprint"):
        return manifest
    reason = "has changed, or is read in another way, since it was prepared"
    try:
        if own.is_local(task.name, task) and _holds(manifest, own.read(task)):
            return replace(manifest, sources=manifest.sources | {"fingerprint": fingerprint})
    except InputError as error:
        reason += f" ({error})"
    raise InputError(
        f"{task.name}: {task.source} {reason}. Prepare it again: {prepare_command(task.name, own=True)} --again"
    )


def _holds(manifest: Manifest, content: Content) -> bool:
    """Tell whether the prepared splits have the checksums of this content."""
    return {split: facts.checksum for split, facts in manifest.splits.items()} == {
        split: checksum(content.class_names, rows) for split, rows in content.splits.items()
    }


def prepare_command(*names: str, own: bool = False, root: Path | None = None) -> str:
    """Return the command that prepares these. What only a gin file declares (`own`) needs that file."""
    gin = " --gin FILE" if own else ""
    usual = root is None or root == data_root()
    return f"python -m bench.data prepare {' '.join(names)}{gin}{'' if usual else f' --data {root}'}"


def prepare_data(
    name: str, root: Path, task: Task | None = None, location: Path | None = None, again: bool = False
) -> Manifest:
    """Build a task or corpus under `root/name` unless it is there.

    `again` builds it anew all the same. `task` may be left out for what is built from installed packages; `location` is
    a file or folder that stands in for what would be downloaded: the official archives, or parquet or jsonl splits made
    from them.

    Nothing is visible before it is complete, and two processes may prepare the same name at once. Refuses sources that
    are missing or damaged, data that would spoil training, and counts that are not those the source promises.
    """
    manifest = None if again else read_manifest(name, root)
    if manifest is not None:
        if location is not None:
            raise InputError(f"--from {location}: {name} is prepared in {root} already; --again replaces it.")
        if task is not None and name not in TASKS:
            before, manifest = manifest, check_unchanged(task, manifest)
            if manifest != before:  # else the source would be read again at every plan
                write_manifest(root / name, manifest)
        return manifest
    from bench.data import disk
    from bench.data.sources import read

    return disk.publish(name, read.read(name, task, root, location), root, again)
