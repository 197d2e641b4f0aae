"""Folders as people keep them: what lies in them, what systems leave there, and class folders of images."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from bench.data.sources.account import Account
from bench.data.sources.rows import SPLIT_NAMES, Table, Tables, by_split, row, split_of
from bench.data.tasks import Task
from bench.errors import InputError

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".gif", ".webp", ".ppm", ".pgm", ".tif", ".tiff")

LEFT_BY_SYSTEMS = frozenset(
    {
        "thumbs.db",
        "ehthumbs.db",
        "ehthumbs_vista.db",
        "desktop.ini",
        "icon\r",
        "@eadir",
        "@recycle",
        "@recently-snapshot",
    }
    | {"#recycle", "#snapshot", "__macosx", "lost+found", "$recycle.bin", "system volume information", "__pycache__"}
    | {".ds_store", ".ipynb_checkpoints", ".appledouble", ".fseventsd", ".spotlight-v100", ".trashes", ".directory"}
)
"""Files and folders that file managers, disks, archivers and notebooks leave, in lower case."""


class Entries(NamedTuple):
    """The folders and files of one folder, by name."""

    folders: list[Path]
    files: list[Path]


def is_image(file: Path) -> bool:
    """Tell whether a file is named as an image."""
    return file.suffix.lower() in IMAGE_SUFFIXES


def entries(folder: Path, account: Account, wanted: Callable[[Path], bool] | None = None) -> Entries:
    """List a folder: its folders, and its files that are `wanted`, or all.

    Everything else is put into the account by kind. Refuses a folder that cannot be read, and a wanted name that is no
    file, as a broken link is none.
    """
    inside = Entries([], [])
    try:
        listing = sorted(folder.iterdir(), key=lambda entry: entry.name)
    except OSError as error:
        raise InputError(f"{folder} cannot be read ({error.strerror}): correct it, or move it away.") from error
    for entry in listing:
        # In this order: a thumbnail that a system leaves has the suffix of an image, and a hidden folder may hold some.
        foreign = entry.name.lower() in LEFT_BY_SYSTEMS or entry.name.startswith(("._", ".Trash-", ".nfs"))
        if foreign or entry.name.startswith("."):
            skip_all(entry, account, "files that systems leave" if foreign else "hidden files")
        elif entry.is_dir():
            inside.folders.append(entry)
        elif wanted is not None and not wanted(entry):
            account.skip(f"files of type {entry.suffix}" if entry.suffix else "files without a type", entry)
        elif entry.is_file():
            inside.files.append(entry)
        elif wanted is not None:
            raise InputError(f"{entry} is no file that can be read: is it a broken link? Correct or remove it.")
    return inside


def skip_all(entry: Path, account: Account, kind: str) -> None:
    """Put a file, or all files below a folder, into the account."""
    linked_or_file = entry.is_symlink() or not entry.is_dir()
    count = 1 if linked_or_file else sum(len(files) for _, _, files in os.walk(entry))
    if count:
        account.skip(kind, entry, count)


def walk(folder: Path, account: Account, wanted: Callable[[Path], bool] | None = None) -> Iterator[Path]:
    """Yield the wanted files of a folder and below it.

    Links are followed once. Refuses a link to a folder around this one.
    """
    waiting, seen = [folder], set()  # a folder that two links lead to is read once
    while waiting:
        current = waiting.pop()
        if (real := current.resolve()) in seen:
            account.skip("links to folders that are read already", current)
            continue
        seen.add(real)
        inside = entries(current, account, wanted)
        yield from inside.files
        for entry in inside.folders:
            if entry.resolve() in folder.resolve().parents:
                raise InputError(f"{entry} links to a folder around it: remove the link.")
        waiting += inside.folders


def read_folder(task: Task, path: Path, account: Account) -> tuple[Tables, dict[str, str]]:
    """Read class folders, in folders of splits or not."""
    if not path.is_dir():
        raise InputError(f"{path} is a file: 'folder:' takes a folder with one folder per class.")
    folders = entries(path, Account()).folders
    split_folders = [folder for folder in folders if split_of(folder.name) is not None]
    # A class may be called "train" or "test"; a split holds folders, a class holds images.
    if not any(entries(folder, Account()).folders for folder in split_folders):
        return {"train": _classes(task, path, account)}, {}
    if others := [folder.name for folder in folders if folder not in split_folders]:
        raise InputError(
            f"{path} holds {', '.join(map(repr, others))} beside the splits: move them away, or name them one of "
            f"{', '.join(SPLIT_NAMES)}."
        )
    for file in entries(path, account).files:
        account.skip("files beside the splits", file)
    splits = by_split(task, path, [(folder.name, [folder]) for folder in split_folders])
    return {split: _classes(task, folder, account) for split, (folder,) in splits.items()}, {}


def _classes(task: Task, folder: Path, account: Account) -> list[Table]:
    inside = entries(folder, account, is_image)
    if inside.files:
        raise InputError(
            f"{inside.files[0]} lies outside the class folders of {folder}: move it into the folder of its class."
        )
    if not inside.folders:
        raise InputError(f"{folder} holds no class folders: it must hold one folder of images per class.")
    tables = []
    for entry in inside.folders:
        files = sorted(walk(entry, account, is_image), key=lambda file: file.as_posix())
        if not files:
            raise InputError(f"{entry} holds no image. Legal types: {', '.join(IMAGE_SUFFIXES)}.")
        records = ((file, {task.image_column: _bytes(file), task.label_column: entry.name}) for file in files)
        tables.append(Table(str(entry), [row(task, str(file), record) for file, record in records]))
    return tables


def _bytes(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError as error:
        raise InputError(f"{file} cannot be read ({error.strerror}): correct it, or move it away.") from error
