"""From the files of public data sets, in their official layouts, to `Content`: pure functions of bytes.

Each takes the members it reads by name. Images keep their encoded bytes; rows stand in the order of the official lists.
Whatever does not fit is refused by file and line: a listed image that is missing, an image listed twice or in two
splits, an unknown class, a label out of range, a line of another form, a split without examples.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from io import BytesIO
from typing import Any, NamedTuple

from bench.data.content import Content, Rows
from bench.errors import InputError, nearest
from bench.specs import stream

Members = Mapping[str, bytes]

CIFAR_PIXELS = 32
XRAY_CLASSES = ("NORMAL", "PNEUMONIA")
FIX = "Get the official file again."


class Listed(NamedTuple):
    """One image as a list names it: where it is listed, its member, its label."""

    where: str
    member: str
    label: int


def aircraft(members: Members) -> Content:
    """FGVC-Aircraft: `variants.txt`, `images_variant_{train,val,test}.txt` with lines `<image> <variant>`."""
    class_names = _distinct(members, "variants.txt")
    label_of = {name: label for label, name in enumerate(class_names)}

    def listed(file: str) -> Iterable[Listed]:
        for where, line in _lines(members, file):
            image, _, variant = line.partition(" ")
            yield Listed(where, f"images/{image}.jpg", _known(variant, label_of, where))

    splits = {"train": "train", "validation": "val", "test": "test"}
    return _images(
        members, class_names, {split: listed(f"images_variant_{file}.txt") for split, file in splits.items()}
    )


def cub(members: Members) -> Content:
    """CUB-200-2011: the tables of `images.txt`, `image_class_labels.txt`, `train_test_split.txt`, joined on the id."""
    classes = _table(members, "classes.txt")
    label_of = {identity: label for label, identity in enumerate(classes)}
    image_class = _table(members, "image_class_labels.txt")
    is_training = _table(members, "train_test_split.txt")
    splits: dict[str, list[Listed]] = {"train": [], "test": []}
    for identity, (where, path) in _table(members, "images.txt").items():
        for table, file in ((image_class, "image_class_labels.txt"), (is_training, "train_test_split.txt")):
            if identity not in table:
                raise InputError(f"{where}: image {identity} is not in {file}. {FIX}")
        where_class, class_identity = image_class[identity]
        where_split, flag = is_training[identity]
        if flag not in ("0", "1"):
            raise InputError(f"{where_split}: {flag!r} is neither 1 (training) nor 0 (test). {FIX}")
        label = _known(class_identity, label_of, where_class)
        splits["train" if flag == "1" else "test"].append(Listed(where, f"images/{path}", label))
    return _images(members, [name for _, name in classes.values()], splits)


def chest_xray(members: Members) -> Content:
    """Chest X-ray: folders `{train,test}/{NORMAL,PNEUMONIA}/`; rows in the order of their paths."""
    label_of = {name: label for label, name in enumerate(XRAY_CLASSES)}
    splits: dict[str, list[Listed]] = {"train": [], "test": []}
    for member in sorted(members):
        split, name, _ = member.split("/")
        splits[split].append(Listed(member, member, _known(name, label_of, member)))
    return _images(members, XRAY_CLASSES, splits)


def dtd(members: Members) -> Content:
    """Describable Textures, official split 1: `labels/{train,val,test}1.txt` with lines `<class>/<file>`."""
    class_names = _texture_classes(members)
    splits = {"train": "train", "validation": "val", "test": "test"}
    return _images(
        members, class_names, {split: _textures(members, class_names, file) for split, file in splits.items()}
    )


def dtd_75_25(members: Members) -> Content:
    """All images of split 1, shared out anew: per class the quarter of smallest `stream(0, "dtd_75_25", file)` tests.

    There is no validation split; rows stand in the order of their paths.
    """
    class_names = _texture_classes(members)
    lists = [_textures(members, class_names, file) for file in ("train", "val", "test")]
    images = sorted((image for listed in lists for image in listed), key=lambda image: image.member)
    tested: set[str] = set()
    for label in range(len(class_names)):
        own = [image.member for image in images if image.label == label]
        by_hash = sorted(own, key=lambda member: stream(0, "dtd_75_25", member.rpartition("/")[2]))
        tested.update(by_hash[: len(own) // 4])
    # An image that is listed twice goes to one split twice, where it is refused.
    train = [image for image in images if image.member not in tested]
    test = [image for image in images if image.member in tested]
    return _images(members, class_names, {"train": train, "test": test})


def dogs(members: Members) -> Content:
    """Stanford Dogs: `{train,test}_list.mat` with `file_list` (`<synset>-<breed>/<file>`) and `labels` (from 1)."""
    folder_of: dict[int, str] = {}
    splits: dict[str, list[Listed]] = {}
    for split in ("train", "test"):
        file = f"{split}_list.mat"
        paths, labels = _matlab(members, file, "file_list", "labels")
        if len(paths) != len(labels):
            raise InputError(f"{file}: {len(paths)} files, but {len(labels)} labels. {FIX}")
        splits[split] = []
        for i, (path, number) in enumerate(zip(paths, map(int, labels), strict=True), start=1):
            where = f"{file} entry {i}"
            folder, slash, _ = str(path).partition("/")
            if not slash or "-" not in folder:
                raise InputError(f"{where}: {path!r} is not <synset>-<breed>/<file>. {FIX}")
            if folder_of.setdefault(number, folder) != folder:
                raise InputError(f"{where}: label {number} is both {folder_of[number]} and {folder}. {FIX}")
            splits[split].append(Listed(where, str(path), number - 1))
    if sorted(folder_of) != list(range(1, len(folder_of) + 1)) or len(set(folder_of.values())) != len(folder_of):
        raise InputError(
            f"train_list.mat and test_list.mat: the labels {sorted(folder_of)} of {len(set(folder_of.values()))} "
            f"breeds are not 1, 2, … with one breed each. {FIX}"
        )
    return _images(members, [folder_of[number].partition("-")[2] for number in sorted(folder_of)], splits)


def flower(members: Members, class_names: Sequence[str]) -> Content:
    """Oxford flowers: `setid.mat` (`trnid`, `valid`, `tstid`, from 1) and `imagelabels.mat` (`labels`, from 1).

    The files name no classes; `class_names` are those of labels 1, 2, ….
    """
    (labels,) = _matlab(members, "imagelabels.mat", "labels")
    keys = {"train": "trnid", "validation": "valid", "test": "tstid"}
    ids = dict(zip(keys, _matlab(members, "setid.mat", *keys.values()), strict=True))
    splits: dict[str, list[Listed]] = {}
    for split, numbers in ids.items():
        splits[split] = []
        for i, number in enumerate(map(int, numbers), start=1):
            where = f"setid.mat {keys[split]} entry {i}"
            if not 1 <= number <= len(labels):
                raise InputError(f"{where}: image {number}, but imagelabels.mat labels images 1..{len(labels)}. {FIX}")
            label = int(labels[number - 1])
            if not 1 <= label <= len(class_names):
                raise InputError(
                    f"imagelabels.mat entry {number}: label {label} is out of range; legal: "
                    f"1..{len(class_names)}. {FIX}"
                )
            splits[split].append(Listed(where, f"image_{number:05d}.jpg", label - 1))
    return _images(members, class_names, splits)


def cifar100(members: Members) -> Content:
    """CIFAR-100, binary version: records of a coarse label, a fine label and 3 planes of 32x32; images become PPM."""
    class_names = _distinct(members, "fine_label_names.txt")
    plane = CIFAR_PIXELS**2
    record = 2 + 3 * plane
    header = f"P6\n{CIFAR_PIXELS} {CIFAR_PIXELS}\n255\n".encode()
    splits = {}
    for split in ("train", "test"):
        file = f"{split}.bin"
        data = _member(members, file)
        if not data or len(data) % record:
            raise InputError(f"{file}: {len(data)} bytes are not a whole number of records of {record} bytes. {FIX}")
        values, labels = [], []
        for start in range(0, len(data), record):
            label = data[start + 1]
            if label >= len(class_names):
                raise InputError(
                    f"{file} record {start // record}: label {label} is out of range; "
                    f"legal: 0..{len(class_names) - 1}. {FIX}"
                )
            pixels = bytearray(3 * plane)
            for channel in range(3):
                first = start + 2 + channel * plane
                pixels[channel::3] = data[first : first + plane]
            values.append(header + pixels)
            labels.append(label)
        splits[split] = Rows(values, labels)
    return Content(modality="image", class_names=tuple(class_names), splits=splits, sources={})


def json_lines(members: Members) -> Content:
    """Texts in `{train,dev,test}.txt`, a JSON object with `text` and `label` per line; classes sorted by name."""
    splits = {"train": "train.txt", "validation": "dev.txt", "test": "test.txt"}
    rows = {split: [_json_line(where, line) for where, line in _lines(members, file)] for split, file in splits.items()}
    class_names = sorted({label for split in rows.values() for _, label in split})
    label_of = {name: label for label, name in enumerate(class_names)}
    return Content(
        modality="text",
        class_names=tuple(class_names),
        splits={
            split: Rows([text for text, _ in examples], [label_of[label] for _, label in examples])
            for split, examples in rows.items()
        },
        sources={},
    )


def twitter_emotion(members: Members) -> Content:
    """TweetEval's emotion: `{train,val,test}_{text,labels}.txt` by line, `mapping.txt` with number, tab, name."""
    class_names: list[str] = []
    for where, line in _lines(members, "mapping.txt"):
        number, _, name = line.partition("\t")
        if number != str(len(class_names)) or not name.strip():
            raise InputError(f"{where}: expected {len(class_names)}, a tab and a class name, not {line!r}. {FIX}")
        class_names.append(name.strip())
    label_of = {str(label): label for label in range(len(class_names))}
    splits = {}
    for split, file in (("train", "train"), ("validation", "val"), ("test", "test")):
        texts, labels = _lines(members, f"{file}_text.txt"), _lines(members, f"{file}_labels.txt")
        if len(texts) != len(labels):
            raise InputError(f"{file}_text.txt has {len(texts)} lines, {file}_labels.txt {len(labels)}. {FIX}")
        splits[split] = Rows(
            [_text(where, line) for where, line in texts],
            [_known(line.strip(), label_of, where) for where, line in labels],
        )
    return Content(modality="text", class_names=tuple(class_names), splits=splits, sources={})


def _images(members: Members, class_names: Sequence[str], splits: Mapping[str, Iterable[Listed]]) -> Content:
    """The content that lists of images name; every image is listed once."""
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


def _textures(members: Members, class_names: Sequence[str], split: str) -> list[Listed]:
    label_of = {name: label for label, name in enumerate(class_names)}
    return [
        Listed(where, f"images/{line}", _known(line.partition("/")[0], label_of, where))
        for where, line in _lines(members, f"labels/{split}1.txt")
    ]


def _texture_classes(members: Members) -> list[str]:
    return sorted({member.split("/")[1] for member in members if re.fullmatch(r"images/[^/]+/[^/]+", member)})


def _member(members: Members, name: str) -> bytes:
    if name not in members:
        raise InputError(f"{name} is missing. {FIX}")
    return members[name]


def _lines(members: Members, name: str) -> list[tuple[str, str]]:
    """Where each line stands, and the line; only a line feed ends one, since texts hold other separators."""
    try:
        lines = _member(members, name).decode().split("\n")
    except UnicodeDecodeError as error:
        raise InputError(f"{name} is not text in UTF-8 ({error}). {FIX}") from error
    if lines[-1] == "":
        lines.pop()
    if not lines:
        raise InputError(f"{name} is empty. {FIX}")
    return [(f"{name} line {i}", line.removesuffix("\r")) for i, line in enumerate(lines, start=1)]


def _distinct(members: Members, name: str) -> list[str]:
    """The class names in a file with one per line; empty lines at its end do not count."""
    lines = _lines(members, name)
    while lines and not lines[-1][1].strip():
        lines.pop()
    names: list[str] = []
    for where, line in lines:
        if not line.strip() or line.strip() in names:
            raise InputError(f"{where}: {line!r} is no class name or occurs twice. {FIX}")
        names.append(line.strip())
    return names


def _table(members: Members, name: str) -> dict[str, tuple[str, str]]:
    """For each id of a file with lines `<id> <value>`: where it stands, and the value."""
    table: dict[str, tuple[str, str]] = {}
    for where, line in _lines(members, name):
        identity, _, value = line.strip().partition(" ")
        if not identity or not value:
            raise InputError(f"{where}: {line!r} is not an id, a space and a value. {FIX}")
        if identity in table:
            raise InputError(f"{where}: the id {identity} occurs twice, first in {table[identity][0]}. {FIX}")
        table[identity] = (where, value)
    return table


def _known(name: str, label_of: Mapping[str, int], where: str) -> int:
    if name not in label_of:
        raise InputError(f"{where}: there is no class {name!r}.{nearest(name, label_of)} {FIX}")
    return label_of[name]


def _text(where: str, text: str) -> bytes:
    if not text.strip():
        raise InputError(f"{where}: the text is empty. {FIX}")
    try:
        return text.encode()
    except UnicodeEncodeError as error:
        raise InputError(f"{where}: the text is not valid Unicode ({error}). {FIX}") from error


def _json_line(where: str, line: str) -> tuple[bytes, str]:
    try:
        example = json.loads(line)
    except ValueError as error:
        raise InputError(f"{where}: not JSON ({error}). {FIX}") from error
    fields = [example.get(field) for field in ("text", "label")] if isinstance(example, dict) else [None, None]
    text, label = fields
    if not isinstance(text, str) or not isinstance(label, str) or not label:
        raise InputError(f"{where}: not an object with the strings 'text' and 'label'. {FIX}")
    return _text(where, text), label


def _matlab(members: Members, name: str, *keys: str) -> list[list[Any]]:
    """The variables `keys` of a .mat file, flat; a cell becomes the one value it holds."""
    from scipy.io import loadmat

    data = _member(members, name)
    try:
        variables = loadmat(BytesIO(data))
        return [[_value(cell) for cell in variables[key].ravel()] for key in keys]
    except Exception as error:  # a damaged file makes scipy raise almost anything
        raise InputError(f"{name}: not a .mat file with {', '.join(keys)} ({error}). {FIX}") from error


def _value(cell: Any) -> Any:
    """What one entry of an array, or the array in one cell, holds."""
    return cell.item() if hasattr(cell, "item") else cell
