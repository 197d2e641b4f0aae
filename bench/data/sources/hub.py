"""Data sets of the Hugging Face hub, through `datasets` and without remote code."""

from __future__ import annotations

import re
import tempfile
from pathlib import Path
from typing import Any

from bench.data.manifest import SPLITS
from bench.data.sources.account import Account
from bench.data.sources.files import read_batches
from bench.data.sources.rows import Table, Tables, check_columns, columns_of, with_modality
from bench.data.tasks import Task
from bench.errors import InputError

MNLI_SPLITS = {"validation_matched": "validation", "test_matched": "test", "validation_mismatched": "mismatched"}


def read_hub(
    task: Task, location: str, local_copy: Path | None, account: Account
) -> tuple[Task, Tables, dict[str, str]]:
    """Read a pinned data set of the hub, or a local copy of it.

    Returned with its rows and sources is the task, whose modality the columns may tell.
    """
    repository, _, revision = location.partition("@")
    if not revision:
        raise InputError(
            f"{task.name}/task.source = {task.source!r} may change: pin it: hub:{repository}@REVISION "
            "(the commit hash on the data set's page, under 'Files and versions')."
        )
    if not re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", repository):
        raise InputError(f"{task.name}/task.source = {task.source!r}: must be written as hub:OWNER/NAME@REVISION.")
    if local_copy is not None and not local_copy.is_dir():
        raise InputError(
            f"--from {local_copy.absolute()} is no folder: give a local copy of the repository {repository}."
        )
    sources = {"repository": location} | ({"configuration": task.configuration} if task.configuration else {})
    # A cache of our own: the common one offers other revisions without a network, and old content for a changed folder.
    with tempfile.TemporaryDirectory(prefix="bench-hub-", ignore_cleanup_errors=True) as cache:
        loaded = _load(task, repository, revision, local_copy, cache)
        names = {split: split for split in SPLITS if split != "mismatched"}
        if task.configuration == "mnli":  # the one task with two validation and two (hidden) test splits
            names |= MNLI_SPLITS
        splits: Tables = {}
        first = min(loaded)
        task = with_modality(task, loaded[first].column_names, f"{repository}, {first}")
        for split in sorted(loaded):
            if split in names:
                splits[names[split]] = [_read_loaded(task, f"{repository}, {split}", loaded[split])]
            else:
                account.skip("rows of other splits", split, loaded[split].num_rows)
        if "train" not in splits:
            raise InputError(f"{location} has no split named train (there are {', '.join(sorted(loaded))}).")
        return task, splits, sources | ({"copy": "local"} if local_copy is not None else {})


def _load(task: Task, repository: str, revision: str, local_copy: Path | None, cache: str) -> Any:
    import datasets

    if local_copy is None and Path(repository).exists():
        raise InputError(
            f"{Path(repository).absolute()} would be read in place of {task.source}: work in another directory, or "
            "give that folder with --from."
        )
    try:
        if local_copy is not None:
            return datasets.load_dataset(str(local_copy.absolute()), task.configuration, cache_dir=cache)
        return datasets.load_dataset(repository, task.configuration, revision=revision, cache_dir=cache)
    except Exception as error:  # of the network, the hub, the files or their format: each library has its own
        reason = f"{error}; {error.__cause__}" if error.__cause__ is not None else f"{error}"
        check = f"Check {task.name}/task.source and {task.name}/task.configuration = {task.configuration!r}."
        if local_copy is not None:
            raise InputError(
                f"{task.name}: {local_copy.absolute()} cannot be read as a copy of {repository} ({reason}). {check}"
            ) from error
        raise InputError(
            f"{task.name}: {repository}@{revision} cannot be fetched ({reason}). {check} Without a network: "
            f"where there is one, run `hf download {repository} --repo-type dataset --revision {revision} --local-dir "
            "FOLDER`, bring the folder here and give it with --from FOLDER."
        ) from error


def _read_loaded(task: Task, where: str, split: Any) -> Table:
    from datasets import ClassLabel

    check_columns(task, split.column_names, where)
    columns = [column for column in columns_of(task) if column is not None]
    label = split.features[task.label_column]
    names = tuple(label.names) if isinstance(label, ClassLabel) else None
    # As arrow tables, in which images are what was stored and not decoded.
    batches = split.select_columns(columns).with_format("arrow").iter(batch_size=100)
    return read_batches(task, where, batches, names)
