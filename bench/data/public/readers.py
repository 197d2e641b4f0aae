"""What the readers of several public data sets share: lines, tables and lists of official files, checked.

A reader is a pure function from the members of the official files to `Content`. Images keep their encoded bytes; rows
stand in the order of the official lists. Whatever does not fit is refused by file and line: a listed image that is
missing, an image listed twice or in two splits, an unknown class, a label out of range, a line of another form, a split
without examples.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from io import BytesIO
from typing import Any, NamedTuple

from bench.data.public.declare import Content, InputError, Members, Rows
from bench.errors import nearest

FIX = "Get the official file again."


class Listed(NamedTuple):
    """One image of a list: its location there, member and label."""

    where: str
    member: str
    label: int


def listed_images(members: Members, class_names: Sequence[str], splits: Mapping[str, Iterable[Listed]]) -> Content:
    """Make the content that lists of images name.

    Refuses an image that is listed twice or is missing, and a split without images.
    """
    first: dict[str, str] = {}
    rows = {}
    for split, listed in splits.items():
        values, labels = [], []
        for where, member, label in listed:
            if member in first:
                raise InputError(f"{where}: {member} is listed a second time, after {first[member]}. {FIX}")
            first[member] = where
            if member not in members:
                raise InputError(f"{where}: the image {member} is missing. {FIX}")
            values.append(members[member])
            labels.append(label)
        if not values:
            raise InputError(f"the {split} split holds no image. {FIX}")
        rows[split] = Rows(values, labels)
    return Content(modality="image", class_names=tuple(class_names), splits=rows, sources={})


def member_content(members: Members, name: str) -> bytes:
    """Return the content of a member; refuse a missing one."""
    if name not in members:
        raise InputError(f"{name} is missing. {FIX}")
    return members[name]


def text_lines(members: Members, name: str) -> list[tuple[str, str]]:
    """Split a file into its lines, each with its location for messages.

    Only a line feed ends a line, since texts hold other separators.
    """
    try:
        lines = member_content(members, name).decode().split("\n")
    except UnicodeDecodeError as error:
        raise InputError(f"{name} is not text in UTF-8 ({error}). {FIX}") from error
    if lines[-1] == "":
        lines.pop()
    if not lines:
        raise InputError(f"{name} is empty. {FIX}")
    return [(f"{name} line {i}", line.removesuffix("\r")) for i, line in enumerate(lines, start=1)]


def class_lines(members: Members, name: str) -> list[str]:
    """Read a file with one class name per line.

    Empty lines at its end do not count.
    """
    lines = text_lines(members, name)
    while lines and not lines[-1][1].strip():
        lines.pop()
    names: list[str] = []
    for where, line in lines:
        if not line.strip() or line.strip() in names:
            raise InputError(f"{where}: {line!r} is no class name or occurs twice. {FIX}")
        names.append(line.strip())
    return names


def label_named(name: str, class_names: Sequence[str], where: str) -> int:
    """Look up the label of a class, which is its position.

    Refuses an unknown one, with the nearest name.
    """
    if name not in class_names:
        raise InputError(f"{where}: there is no class {name!r}.{nearest(name, class_names)} {FIX}")
    return class_names.index(name)


def encoded_text(where: str, text: str) -> bytes:
    """Encode an example's text; refuse an empty one."""
    if not text.strip():
        raise InputError(f"{where}: the text is empty. {FIX}")
    try:
        return text.encode()
    except UnicodeEncodeError as error:
        raise InputError(f"{where}: the text is not valid Unicode ({error}). {FIX}") from error


def matlab_variables(members: Members, name: str, *keys: str) -> list[list[Any]]:
    """Read the variables `keys` of a .mat file, flat.

    A cell becomes the one value it holds.
    """
    from scipy.io import loadmat

    content = member_content(members, name)
    try:
        variables = loadmat(BytesIO(content))
        # An entry is a number of numpy's, an array that holds the one value of a cell, or a plain text.
        return [[entry.item() if hasattr(entry, "item") else entry for entry in variables[key].ravel()] for key in keys]
    except Exception as error:  # a damaged file makes scipy raise almost anything
        raise InputError(f"{name}: not a .mat file with {', '.join(keys)} ({error}). {FIX}") from error
