"""Tasks and corpora: which there are, what is on disk, how to prepare and open them.

Planning imports this module, so nothing here imports an array or tensor library before data are built or opened.
"""

from __future__ import annotations

import dataclasses
import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from bench.errors import InputError, nearest
from bench.files import MANIFEST, digest
from bench.specs import Backbone, Data, Spec

if TYPE_CHECKING:
    from bench.interfaces.examples import Examples

Modality = Literal["image", "text"]
Training = Literal["train", "train+validation"]


@dataclass(frozen=True)
class Task(Spec):
    """A labelled classification data set with fixed splits; `backbone` names its default one.

    `training` says what final runs train on; where that takes in the validation split, a search still fits on the
    training split alone. `source` is where a user's own data come from: `folder:`, `parquet:`, `jsonl:` or `csv:` and a
    path, or `hub:OWNER/NAME@REVISION`, with `configuration` for one of several. It is read by its columns: the labels',
    and that of the images, or of the texts and, for pairs, the second texts.
    """

    UNBOUND: ClassVar[tuple[str, ...]] = ("name",)

    name: str
    modality: Literal["image", "text"]
    backbone: str
    metric: Literal["accuracy", "macro_f1", "micro_f1"]
    training: Literal["train", "train+validation"] = "train"
    source: str | None = None
    configuration: str | None = None
    image_column: str = "image"
    text_column: str = "text"
    pair_column: str | None = None
    label_column: str = "label"


def _images(name: str, backbone: str = "vit_mae_base", training: Training = "train") -> Task:
    return Task(name=name, modality="image", backbone=backbone, metric="accuracy", training=training)


def _texts(
    name: str, metric: Literal["accuracy", "macro_f1", "micro_f1"] = "accuracy", backbone: str = "roberta_base"
) -> Task:
    return Task(name=name, modality="text", backbone=backbone, metric=metric)


def _glue(name: str, text: str, pair: str | None = None) -> Task:
    """A classification task of GLUE; its labelled validation set is the test split (bench.data.own says how)."""
    return dataclasses.replace(_texts(name), source=GLUE, configuration=name, text_column=text, pair_column=pair)


GLUE = "hub:nyu-mll/glue@bcdcba79d07bc864c1c254ccfcedcce55bcc9a8c"

TASKS: dict[str, Task] = {
    task.name: task
    for task in (
        _images("digits", "photos_mae"),
        _texts("pydocs", backbone="docs_mlm"),
        # Lee et al. 2023: Table 1 and Figure 3, then Table 2 with its metrics. Their Table 7 counts training examples:
        # where a validation split is official, they train on both.
        *map(_images, ("cub", "chest_xray", "dtd_75_25", "dogs", "cifar100")),
        *(_images(name, training="train+validation") for name in ("aircraft", "dtd", "flower")),
        *(_texts(name, "macro_f1") for name in ("scierc", "acl_arc", "twitter_emotion")),
        _texts("chemprot", "micro_f1"),
        # GLUE. Usual for cola is Matthews' correlation, for mrpc and qqp also F1; here all are judged by accuracy.
        _glue("cola", "sentence"),
        _glue("sst2", "sentence"),
        _glue("mrpc", "sentence1", "sentence2"),
        _glue("qqp", "question1", "question2"),
        _glue("mnli", "premise", "hypothesis"),
        _glue("qnli", "question", "sentence"),
        _glue("rte", "sentence1", "sentence2"),
        _glue("wnli", "sentence1", "sentence2"),
    )
}

CORPORA: dict[str, Modality] = {"photographs": "image", "docstrings": "text"}
"""Unlabelled data on which the suite pre-trains its own small backbones."""

EMBEDDED = ("digits", "pydocs", *CORPORA)
"""What can be built from the packages at hand, without a download."""

SPLITS = ("train", "validation", "test")


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

    def checksum(self, split: str) -> str:
        """The checksum of a split, or of several joined by '+'."""
        checksums = [self.splits[part].checksum for part in split.split("+")]
        return checksums[0] if len(checksums) == 1 else digest(checksums)

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


def own_task(name: str, source: str) -> Task:
    """A user's own task as it is before the gin file's other settings: the modality is that of such sources."""
    from bench.data.own import default_modality

    modality = default_modality(source)
    backbone = "vit_mae_base" if modality == "image" else "roberta_base"
    return Task(name=name, modality=modality, backbone=backbone, metric="accuracy", source=source)


def is_local(name: str, task: Task | None) -> bool:
    """Whether a task or corpus can be built from what is on this computer, so that a grid may do so unasked."""
    from bench.data.own import local

    return name in EMBEDDED or (task is not None and task.source is not None and local(task.source))


def check_unchanged(task: Task, manifest: Manifest) -> None:
    """Refuse a user's own data whose source, or the way it is read, is not what was prepared."""
    if task.source is None:
        return
    fingerprint = fingerprint_of(task)
    if fingerprint is not None and manifest.sources.get("fingerprint") != fingerprint:
        raise InputError(
            f"{task.name}: {task.source} has changed, or is read in another way, since it was prepared. "
            f"Prepare it again: {command(task.name, own=True)} --again"
        )


def fingerprint_of(task: Task) -> str | None:
    """What a prepared copy of a user's own data was made from; None where the source cannot be looked at now."""
    from bench.data.own import fingerprint

    if task.source is None:
        return None
    try:
        listing = fingerprint(task)
    except InputError:
        return None  # a prepared copy outlives its source
    columns = (task.modality, task.configuration, task.image_column, task.text_column)
    return digest([task.source, listing, *columns, task.pair_column, task.label_column])


def command(*names: str, own: bool = False, root: Path | None = None) -> str:
    """The command that prepares these; what only a gin file declares needs that file."""
    gin = " --gin FILE" if own else ""
    usual = root is None or root == data_root()
    return f"python -m bench.data prepare {' '.join(names)}{gin}{'' if usual else f' --data {root}'}"


def data_root() -> Path:
    """The folder of prepared data where no other is named."""
    return Path(os.environ.get("BENCH_DATA") or "data")


def prepare(
    name: str, root: Path, task: Task | None = None, given: Path | None = None, again: bool = False
) -> Manifest:
    """Build a task or corpus under `root/name` unless it is there already, or `again` asks for a new one.

    `task` describes a user's own data; `given` is a file or folder that stands in for what would be downloaded: the
    official archives, or parquet or jsonl splits made from them. Nothing is visible before it is complete, and two
    processes may prepare the same name at once. Refuses unknown names, sources that are missing or damaged, data that
    would spoil training, and counts that are not those the source promises.
    """
    task = task or TASKS.get(name)
    if task is None and name not in CORPORA:
        raise InputError(f"there is no task or corpus named {name!r}.{nearest(name, [*TASKS, *CORPORA])}")
    manifest = None if again else read_manifest(name, root)
    if manifest is not None:
        if given is not None:
            raise InputError(f"--from {given}: {name} is prepared in {root} already; --again replaces it.")
        if task is not None and name not in TASKS:
            check_unchanged(task, manifest)
        return manifest
    from bench.data import disk, sources

    return disk.publish(name, sources.read(name, task, root, given), root, again)


def open_split(data: Data, backbone: Backbone, root: Path) -> Examples:
    """The examples that `data` names, in the form that `backbone` reads; builds the array cache at first use.

    Refuses data that are not prepared, whose content is not that of `data.checksum`, or of another modality.
    """
    from bench.data.examples import open_examples

    return open_examples(data, backbone, root)
