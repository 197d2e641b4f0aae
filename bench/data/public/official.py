"""Building the content of public tasks from their official files, and comparing data with the official counts.

What each of them promises stands in a file of its own in this package; see `bench.data.public.declare`.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from bench.data.content import count_classes
from bench.data.public import SOURCES
from bench.data.public.declare import Archive, Content, Counts, InputError, Members, Remote, Source
from bench.data.sources.download import checksum_of, fetch, local_file

if TYPE_CHECKING:
    from bench.data.manifest import Manifest


def build(name: str, downloads: Path, location: Path | None) -> Content:
    """Read a public task from its official files.

    They are downloaded into `downloads` if need be. `location` is one of the files, or a folder that holds them or what
    is in them, and then nothing is downloaded. Refuses files that are missing there or are not the official ones, and
    content that is not laid out as the source says.
    """
    source = SOURCES[name]
    assert source.read is not None
    members: dict[str, bytes] = {}
    # What the manifest says of each file: {"images.tar": "sha256:a443…"}, or {"images.tar": "extracted"} for a folder.
    origins: dict[str, str] = {}
    for remote in source.files:
        if location is None:
            path = fetch(remote, downloads / (source.folder or name))
        else:
            path = _locate(source, remote, location)
        members_of_file = _members(remote, path)
        if not members_of_file:
            raise InputError(f"{path} holds nothing of {name}. {_expected(source)}")
        members |= members_of_file
        if path.is_dir():
            origins[remote.name] = "extracted"
        else:
            origins[path.name] = remote.checksum or f"sha256:{checksum_of(path, 'sha256')}"
    content = source.read(members)
    # The edition is the first one that nothing differs from; most data sets have one only, without a name.
    editions = _by_edition(source, content.class_names, _counted(content))
    if variant := next((variant for variant, texts in editions.items() if not texts), ""):
        origins["variant"] = variant
    return dataclasses.replace(content, sources=origins)


def differences(name: str, manifest: Manifest) -> list[str]:
    """Say how a prepared public task differs from the official counts.

    The differences are texts; there are none for other data. The order of the classes does not matter. Of several
    editions, the differences to each one are listed.
    """
    counted = {split: (facts.examples, facts.per_class) for split, facts in manifest.splits.items()}
    return _differences(name, manifest.class_names, counted)


def refuse_differences(name: str, content: Content) -> None:
    """Refuse an incomplete public task; other data are let through."""
    if texts := _differences(name, content.class_names, _counted(content)):
        raise InputError(
            f"{name} is not what its source promises: {'; '.join(texts)}. "
            "Delete its files and get the official ones again."
        )


def empty_classes(name: str, content: Content) -> dict[str, frozenset[str]]:
    """Name the classes of each split that may be empty.

    In public data these are those that the source leaves empty; in others any, but in the training split.
    """
    if name not in SOURCES:
        every = frozenset(content.class_names or ())
        return {split: every for split in content.splits if split != "train"}
    editions = SOURCES[name].counts
    return {
        split: frozenset(
            class_name for counts in editions for class_name, number in counts.promised(split).items() if number == 0
        )
        for split in content.splits
    }


# ---- Comparing with the official counts

_Counted = Mapping[str, tuple[int, tuple[int, ...] | None]]
"""Of each split how many examples it has, in all and per class."""

SHOWN = 5
"""How many of the classes whose numbers differ a message names."""


def _counted(content: Content) -> _Counted:
    return {
        split: (len(rows.values), count_classes(content.class_names, rows)) for split, rows in content.splits.items()
    }


def _differences(name: str, class_names: tuple[str, ...] | None, counted: _Counted) -> list[str]:
    """List the differences to every edition; none if one edition fits."""
    editions = _by_edition(SOURCES[name], class_names, counted) if name in SOURCES else {}
    if not all(editions.values()):  # one of them fits
        return []
    return [f"{variant}: {text}" if variant else text for variant, texts in editions.items() for text in texts]


def _by_edition(source: Source, class_names: tuple[str, ...] | None, counted: _Counted) -> dict[str, list[str]]:
    return {counts.variant: list(_differing(counts, class_names or (), counted)) for counts in source.counts}


def _differing(counts: Counts, names: tuple[str, ...], counted: _Counted) -> Iterator[str]:
    """Compare classes, splits, and sizes of splits and classes with one edition."""
    if len(names) != counts.classes:
        yield f"{len(names)} classes instead of {counts.classes}"
    if counts.class_names is not None:
        if missing := sorted({*counts.class_names} - {*names}):
            yield f"missing classes: {_few(missing)}"
        if extra := sorted({*names} - {*counts.class_names}):
            yield f"unknown classes: {_few(extra)}"
    yield from (f"an extra split {split!r}" for split in counted if split not in counts.splits)
    for split, promised in counts.splits.items():
        if split not in counted:
            yield f"no split {split!r} instead of its {promised} examples"
            continue
        examples, numbers = counted[split]
        if examples != promised:
            yield f"{split} has {examples} examples instead of {promised}"
        # Classes are compared by name where the source fixes the names: their order may be another one.
        number_of = counts.promised(split, names)
        classes = [
            f"{name!r} has {number} instead of {number_of[name]}"
            for name, number in zip(names, numbers or (), strict=False)  # without labels there are no numbers
            if name in number_of and number != number_of[name]
        ]
        if classes:
            yield f"{split}: {_few(classes)}"


def _few(texts: list[str]) -> str:
    more = len(texts) - SHOWN
    return ", ".join(texts[:SHOWN]) + (f" and {more} more" if more > 0 else "")


# ---- Finding and reading the official files


def _locate(source: Source, remote: Remote, location: Path) -> Path:
    """Find an official file among those the user has.

    It may be the folder that the archive was extracted into. For dtd-r1.0.1.tar.gz with the top folder `dtd`, and
    `--from data`, these are tried in turn:

        data/~vgg/data/dtd/download/dtd-r1.0.1.tar.gz, then with fewer of these folders, down to data/dtd-r1.0.1.tar.gz
        a file of that name anywhere below data
        the folder data/dtd, else data: they hold what is in the archive
    """
    if location.is_file() and location.name != remote.name and len(source.files) == 1 and remote.checksum is None:
        return location  # an edition that is published under another name
    # Files of one name lie in several folders of a repository, so the official folder comes first.
    folders = _folders(location, PurePosixPath(urlsplit(remote.url).path).parent.parts[1:])
    candidate = next((folder / remote.name for folder in folders if (folder / remote.name).is_file()), location)
    if (path := local_file(remote, candidate)) is not None:
        return path
    if location.is_dir() and isinstance(remote, Archive):
        top = PurePosixPath(remote.top).parts
        return next(folder for folder in _folders(location, top) if folder.is_dir())
    raise InputError(f"--from {location}: {remote.name} is not there. {_expected(source)}")


def _folders(folder: Path, parts: tuple[str, ...]) -> list[Path]:
    """List the folders in which what is below `parts` may lie.

    First comes the folder with all of `parts` below it, then with fewer of the first ones, at last the folder itself.
    For `data` and `("a", "b")`: `data/a/b`, `data/b`, `data`.
    """
    return [folder.joinpath(*parts[i:]) for i in range(len(parts) + 1)]


def _members(remote: Remote, path: Path) -> Members:
    """Read from a file what the reader of the data set needs.

    An archive gives the members that match, named from its top folder on; any other file gives itself.
    """
    from bench.data.sources.archives import read_members

    if not isinstance(remote, Archive):
        return {remote.name: path.read_bytes()}
    # dtd/images/a/b.jpg of an archive and images/a/b.jpg of the extracted folder are one member, images/a/b.jpg.
    top = "" if path.is_dir() else f"{remote.top}/"
    contents = read_members(path, lambda name: re.fullmatch(remote.members, name.removeprefix(top)) is not None)
    return {name.removeprefix(top): content for name, content in contents.items()}


def _expected(source: Source) -> str:
    """End a message with a task's files and their addresses."""
    files = ", ".join(
        f"{remote.name} ({'' if remote.size is None else f'{remote.size:,} bytes, '}{remote.url})"
        for remote in source.files
    )
    extracted = (
        ", or a folder with what is in it" if any(isinstance(remote, Archive) for remote in source.files) else ""
    )
    return f"Expected for {source.task.name}: {files}{extracted}."
