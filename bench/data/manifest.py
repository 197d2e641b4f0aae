"""What is prepared of a data set: `manifest.json`, written last, and where to look for it."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from bench.data.task_spec import Modality
from bench.errors import InputError
from bench.store.files import MANIFEST, digest

SPLITS = ("train", "validation", "test")


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
    set carries, `tokenizer_checksum` is the sha256 of its file; both are None where it carries none.
    """

    name: str
    modality: Modality
    class_names: tuple[str, ...] | None
    splits: dict[str, SplitFacts]
    tokenizer_checksum: str | None
    sources: dict[str, str]
    vocabulary: int | None = None

    def checksum(self, split: str) -> str:
        """Return the checksum of a split, or of several joined by '+'."""
        checksums = [self.splits[part].checksum for part in split.split("+")]
        return checksums[0] if len(checksums) == 1 else digest(checksums)

    def to_json(self) -> str:
        """Return the text of `manifest.json`, which holds a digest of the rest."""
        content = json.loads(json.dumps(asdict(self)))  # tuples become lists, as a reader will find them
        return json.dumps({"digest": digest(content), **content}, indent=1, sort_keys=True) + "\n"


def read_manifest(name: str, root: Path) -> Manifest | None:
    """Read what is prepared under this name, or return None.

    Reads one small file. Refuses a manifest it cannot read.
    """
    path = root / name / MANIFEST
    try:
        return _parse(json.loads(path.read_bytes()), name)
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(
            f"{path} cannot be read ({error}). Delete the folder {path.parent} and prepare {name} again."
        ) from error


def _parse(content: dict[str, Any], name: str) -> Manifest:
    # Counts and checksums of the splits decide how long a stage trains and what its key is, so a changed digit must not
    # pass. A manifest of before has no digest: what it says is held against the examples when they are opened.
    if "digest" in content and content.pop("digest") != digest(content):
        raise ValueError("its content does not match its own digest")
    if content["name"] != name:
        raise ValueError(f"it describes {content['name']!r}")
    if content["modality"] not in ("image", "text"):
        raise ValueError(f"its modality is {content['modality']!r}")
    class_names = content["class_names"]
    splits = {
        split: SplitFacts(
            examples=int(facts["examples"]),
            checksum=str(facts["checksum"]),
            per_class=None if facts["per_class"] is None else tuple(map(int, facts["per_class"])),
        )
        for split, facts in sorted(content["splits"].items(), key=lambda item: SPLITS.index(item[0]))
    }
    if "train" not in splits:
        raise ValueError("it has no training split")
    return Manifest(
        name=name,
        modality=content["modality"],
        class_names=None if class_names is None else tuple(map(str, class_names)),
        splits=splits,
        tokenizer_checksum=content["tokenizer_checksum"],
        sources=dict(content["sources"]),
        vocabulary=content["vocabulary"],
    )


def data_root() -> Path:
    """Return the folder of prepared data where no other is named."""
    return Path(os.environ.get("BENCH_DATA") or "data")


def describe_manifest(manifest: Manifest) -> str:
    """Describe what a data set holds, in a line."""
    counts = ", ".join(f"{split} {facts.examples}" for split, facts in manifest.splits.items())
    classes = f"; {len(manifest.class_names)} classes" if manifest.class_names else ""
    note = f"; {manifest.sources['splits']}" if "splits" in manifest.sources else ""
    return f"{counts}{classes}{note}"
