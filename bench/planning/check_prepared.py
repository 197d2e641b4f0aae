"""Reading prepared data again, as suspiciously as if somebody else had written them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from bench.data import disk
from bench.data.content import Content, facts
from bench.data.manifest import Manifest, describe_manifest, read_manifest
from bench.data.prepare import check_unchanged
from bench.data.problems import contradictions, duplicates, problems
from bench.data.public import official
from bench.data.subset import held_out_checksum
from bench.data.tasks import CORPORA
from bench.errors import InputError, NotPrepared
from bench.planning.catalogue import Catalogue
from bench.pretrained import checkpoints
from bench.store.manifest import prepare_again


@dataclass(frozen=True)
class Report:
    """The findings about one prepared task, corpus or checkpoint.

    `summary` says in a line what there is, `problems` what is wrong with it, `notes` what a reader may want to know.
    """

    summary: str
    problems: list[str]
    notes: list[str]


def check(name: str, catalogue: Catalogue, root: Path) -> Report:
    """Check everything about one prepared task, corpus or checkpoint.

    Refuses what is not prepared.
    """
    if name in catalogue.checkpoints:
        return _checkpoint(name, catalogue, root)
    manifest = read_manifest(name, root)
    if manifest is None:
        raise NotPrepared(f"{name} is not prepared in {root}. Prepare it with: {catalogue.command([name], root)}")
    try:
        if name in catalogue.tasks:
            check_unchanged(catalogue.tasks[name], manifest)
        content = disk.read(manifest, root)
    except InputError as error:
        return Report(describe_manifest(manifest), [str(error)], [])
    # The content is compared with its manifest; then, as a corpus has neither labels nor official counts, only that of
    # a task with the rules for all data, and with what its source promises.
    wrong = list(_differences(manifest, content, root))
    if name not in CORPORA:
        wrong += problems(content, official.empty_classes(name, content), catalogue.tasks[name].most_megapixels)
        wrong += official.differences(name, manifest)
    return Report(describe_manifest(manifest), wrong, list(_notes(manifest, content)))


def _differences(manifest: Manifest, content: Content, root: Path) -> Iterator[str]:
    for split, rows in content.splits.items():
        actual, promised = facts(content.class_names, rows), manifest.splits[split]
        if actual != promised:
            yield (
                f"{split} holds {actual.examples} examples with the checksum {actual.checksum[:16]}, its manifest says "
                f"{promised.examples} and {promised.checksum[:16]}. {prepare_again(root / manifest.name)}"
            )


def _notes(manifest: Manifest, content: Content) -> Iterator[str]:
    yield f"read from {', '.join(f'{name} {value}' for name, value in manifest.sources.items() if name != 'splits')}"
    for split, counts in manifest.splits.items():
        if per_class := counts.per_class:
            low, high = min(per_class), max(per_class)
            yield f"{split}: {low} examples of each class" if low == high else f"{split}: {low} to {high} per class"
    yield from manifest.notes
    relabelled = contradictions(content)
    for (first, second), count in duplicates(content).items():
        relabelling = (
            f", {relabelled[first, second]} of them with another label" if (first, second) in relabelled else ""
        )
        yield f"{count} examples of {second} also occur in {first}{relabelling}"
    if "validation" not in content.splits and content.class_names:
        labels = content.splits["train"].labels
        assert labels is not None
        size, checksum = held_out_checksum(labels)
        yield f"held out for selection: {size} of {len(labels)} training examples, positions sha256 {checksum}"


def _checkpoint(name: str, catalogue: Catalogue, root: Path) -> Report:
    prepared = checkpoints.read(name, root)
    if prepared is None:
        raise NotPrepared(f"{name} is not prepared in {root}. Prepare it with: {catalogue.command([name], root)}")
    shape = f"{prepared.architecture['depth']} layers of width {prepared.architecture['width']}"
    summary = f"{shape} from {prepared.source}; weight file sha256 {prepared.checksum}"
    fresh = [f"starts from random values: {', '.join(prepared.lacking)}"] if prepared.lacking else []
    wrong = [problem] if (problem := catalogue.checkpoints[name].differs(prepared)) else []
    try:
        checkpoints.weights(name, root, prepared.checksum)
    except InputError as error:
        wrong.append(str(error))
    return Report(summary, wrong, fresh)
