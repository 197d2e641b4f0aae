"""What is prepared of a data set: `manifest.json`, written last, and where to look for it."""

from __future__ import annotations

import os
from dataclasses import dataclass, field, replace
from pathlib import Path

from bench.data.task_spec import Modality
from bench.store.files import digest
from bench.store.manifest import load_manifest

SPLITS = ("train", "validation", "test", "mismatched")
"""The splits there can be; `mismatched` is mnli's second test split."""


@dataclass(frozen=True)
class SplitFacts:
    """The size of a split and the sha256 of its content.

    The size is the number of examples in all and per class (None without labels).
    """

    examples: int
    checksum: str
    per_class: tuple[int, ...] | None


@dataclass(frozen=True)
class Manifest:
    """What a prepared data set holds.

    `sources` are the versions of what it was read from. `vocabulary` counts the entries of the tokenizer that the data
    set carries, `tokenizer_checksum` is the sha256 of its file; both are None where it carries none. `notes` are those
    of `Content`; `overlap` counts examples that two splits share ("test in train"). Older manifests have neither.
    """

    name: str
    modality: Modality
    class_names: tuple[str, ...] | None
    splits: dict[str, SplitFacts]
    tokenizer_checksum: str | None
    sources: dict[str, str]
    vocabulary: int | None = None
    notes: tuple[str, ...] = ()
    overlap: dict[str, int] = field(default_factory=dict)

    def checksum(self, split: str) -> str:
        """Return the checksum of a split, or of several joined by '+'."""
        checksums = [self.splits[part].checksum for part in split.split("+")]
        return checksums[0] if len(checksums) == 1 else digest(checksums)


def read_manifest(name: str, root: Path) -> Manifest | None:
    """Read what is prepared under this name, or return None.

    Reads one small file. Refuses a manifest it cannot read.
    """
    manifest = load_manifest(Manifest, name, root / name, _check)
    if manifest is None:
        return None
    in_order = {split: manifest.splits[split] for split in SPLITS if split in manifest.splits}
    return replace(manifest, splits=in_order)


def _check(manifest: Manifest) -> None:
    if unknown := manifest.splits.keys() - set(SPLITS):
        raise ValueError(f"it has an unknown split {min(unknown)!r}")
    if "train" not in manifest.splits:
        raise ValueError("it has no training split")
    # Counts that contradict each other are found here; all others when the examples are opened.
    classes = None if manifest.class_names is None else len(manifest.class_names)
    for split, facts in manifest.splits.items():
        counted = facts.per_class
        agrees = counted is None or (len(counted) == classes and sum(counted) == facts.examples)
        if facts.examples < 0 or not agrees or min(counted or (0,)) < 0:
            raise ValueError(f"splits.{split} has {facts.examples} examples, of each class {counted}")
    pairs = {f"{second} in {first}" for second in manifest.splits for first in manifest.splits}
    if unknown := manifest.overlap.keys() - pairs:
        raise ValueError(f"overlap names no two splits: {min(unknown)!r}")


def data_root() -> Path:
    """Return the folder of prepared data where no other is named."""
    return Path(os.environ.get("BENCH_DATA") or "data")


def describe_manifest(manifest: Manifest) -> str:
    """Describe what a data set holds, in a line."""
    counts = ", ".join(f"{split} {facts.examples}" for split, facts in manifest.splits.items())
    classes = f"; {len(manifest.class_names)} classes" if manifest.class_names else ""
    note = f"; {manifest.sources['splits']}" if "splits" in manifest.sources else ""
    return f"{counts}{classes}{note}"


def describe_overlap(manifest: Manifest) -> list[str]:
    """Say how many examples two splits share, a line for each pair that shares some."""
    lines = []
    for pair, count in manifest.overlap.items():
        second, first = pair.split(" in ")
        lines.append(f"{count} of {manifest.splits[second].examples} examples of {second} also occur in {first}")
    return lines


def describe_classes(manifest: Manifest) -> list[str]:
    """List the classes with their examples in each split, `cat: train 8, test 2`."""
    counts = {split: facts.per_class for split, facts in manifest.splits.items() if facts.per_class is not None}
    return [
        f"{name}: {', '.join(f'{split} {per_class[i]}' for split, per_class in counts.items())}"
        for i, name in enumerate(manifest.class_names or ())
    ]
