"""Tasks and corpora: which there are, what is on disk, how to prepare and open them.

Planning imports this module, so nothing here imports an array or tensor library before data are built or opened.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from bench.errors import InputError, nearest
from bench.specs import Backbone, Data, Spec

if TYPE_CHECKING:
    from bench.data.examples import Examples

Modality = Literal["image", "text"]


@dataclass(frozen=True)
class Task(Spec):
    """A labelled classification data set with fixed splits; `backbone` names its default one."""

    UNBOUND: ClassVar[tuple[str, ...]] = ("name", "modality")

    name: str
    modality: Literal["image", "text"]
    backbone: str
    metric: Literal["accuracy", "macro_f1", "micro_f1"]


def _images(name: str, backbone: str = "vit_mae_base") -> Task:
    return Task(name=name, modality="image", backbone=backbone, metric="accuracy")


def _texts(
    name: str, metric: Literal["accuracy", "macro_f1", "micro_f1"] = "accuracy", backbone: str = "roberta_base"
) -> Task:
    return Task(name=name, modality="text", backbone=backbone, metric=metric)


TASKS: dict[str, Task] = {
    task.name: task
    for task in (
        _images("digits", "photos_mae"),
        _texts("pydocs", backbone="docs_mlm"),
        # Lee et al. 2023: Table 1 and Figure 3, then Table 2 with its metrics.
        *map(_images, ("aircraft", "cub", "chest_xray", "dtd", "dogs", "flower", "cifar100")),
        *(_texts(name, "macro_f1") for name in ("scierc", "acl_arc", "twitter_emotion")),
        _texts("chemprot", "micro_f1"),
        # Small tasks of GLUE. Usual for cola is Matthews' correlation; here it is accuracy like the others.
        *map(_texts, ("rte", "mrpc", "cola", "sst2")),
    )
}

CORPORA: dict[str, Modality] = {"photographs": "image", "docstrings": "text"}
"""Unlabelled data on which the suite pre-trains its own small backbones."""

EMBEDDED = ("digits", "pydocs", *CORPORA)
"""What can be built from the packages at hand, without a download."""

MANIFEST = "manifest.json"


@dataclass(frozen=True)
class SplitFacts:
    """How many examples a split has, in all and per class (None without labels), and the sha256 of its content."""

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

    def to_json(self) -> str:
        """The text of `manifest.json`."""
        return json.dumps(asdict(self), indent=1, sort_keys=True) + "\n"


def read_manifest(name: str, root: Path) -> Manifest | None:
    """What is prepared under this name, or None; reads one small file. Refuses a manifest it cannot read."""
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
        for split, facts in content["splits"].items()
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


def check_preparable(names: Iterable[str]) -> None:
    """Refuse, in one message, tasks and public backbones that are not prepared and that this version cannot prepare."""
    public = sorted(set(names) - set(EMBEDDED))
    if public:
        raise InputError(
            f"not prepared: {', '.join(public)}. This version prepares embedded data only ({', '.join(EMBEDDED)}) and "
            "fetches no public data or weights; what needs them can be planned (--plan) but not run."
        )


def prepare(name: str, root: Path) -> Manifest:
    """Build a task or corpus under `root/name` unless it is there already.

    Nothing is visible before it is complete, and two processes may prepare the same name at once. Refuses unknown
    names, public data, and sources that are missing or too small.
    """
    if name not in TASKS and name not in CORPORA:
        raise InputError(f"there is no task or corpus named {name!r}.{nearest(name, [*TASKS, *CORPORA])}")
    manifest = read_manifest(name, root)
    if manifest is not None:
        return manifest
    check_preparable([name])
    from bench.data import disk, images, texts

    builders = {
        "digits": images.digits,
        "photographs": images.photographs,
        "pydocs": texts.pydocs,
        "docstrings": texts.docstrings,
    }
    return disk.publish(name, builders[name](), root)


def open_split(data: Data, backbone: Backbone, root: Path) -> Examples:
    """The examples that `data` names, in the form that `backbone` reads; builds the array cache at first use.

    Refuses data that are not prepared, whose content is not that of `data.checksum`, or of another modality.
    """
    from bench.data.examples import open_examples

    return open_examples(data, backbone, root)
