"""Everything about the content of a data set that would spoil training, refused before it does."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator, Mapping
from io import BytesIO

from bench.data.content import Content, Rows
from bench.data.decode import of_all_images, rgb
from bench.data.visible import visible
from bench.errors import InputError
from bench.store.filetypes import recognised

MOST_PIXELS = 20_000
"""The widest and highest image there may be, in pixels."""

MOST_NAMED = 10
"""How many problems of one kind are named one by one."""

Example = tuple[bytes, bytes | None]


def problems(content: Content, allowed_empty: Mapping[str, frozenset[str]], most_megapixels: float) -> list[str]:
    """List what would spoil training, at most 10 of each kind.

    Each is named by split and row (counted from 0) and class; a count of the rest follows.

    These are: images that cannot be decoded to their end, have more than `most_megapixels`, are of zero size or above
    20,000 pixels wide or high; texts in which nothing is visible; labels without a class; classes without examples,
    unless `allowed_empty` names them for that split; fewer than 2 classes. A class with one training example is fine.
    """
    bad = _damaged_images(content, most_megapixels) if content.modality == "image" else _empty_texts(content)
    return [
        *_shortened(_empty_splits(content), "empty splits"),
        *_shortened(_few_classes(content), "problems with the classes"),
        *_shortened(bad, f"bad {content.modality}s"),
        *_shortened(_stray_labels(content), "labels without a class"),
        *_shortened(_empty_classes(content, allowed_empty), "classes without examples"),
    ]


def refuse(name: str, content: Content, allowed_empty: Mapping[str, frozenset[str]], most_megapixels: float) -> None:
    """Raise InputError with all problems of a data set, if any."""
    if reasons := problems(content, allowed_empty, most_megapixels):
        listed = "\n".join(f"  {problem}" for problem in reasons)
        raise InputError(f"{name} cannot be used:\n{listed}\nCorrect or remove these examples in its source.")


def duplicates(content: Content) -> dict[tuple[str, str], int]:
    """Count, for each pair of splits, examples of the second in the first.

    Images are compared byte for byte, texts as a reader sees them (`as_seen`). Pairs that share none are left out.
    """
    return _common(content, lambda labels, label: True)


def contradictions(content: Content) -> dict[tuple[str, str], int]:
    """Count the `duplicates` that have their label nowhere in the first split."""
    return _common(content, lambda labels, label: label not in labels)


def _common(content: Content, counts: Callable[[set[int | None], int | None], bool]) -> dict[tuple[str, str], int]:
    """Count the `duplicates` for which `counts` is true.

    It is called with the labels of the example in the first split and its label in the second.
    """
    # Example: the first split holds x with the labels {0} and y with {0, 1}; the second holds x labelled 1, y labelled
    # 1 and z. Two are duplicates, x and y. One of them contradicts, x: it has the label 1 nowhere in the first split.
    counted = {}
    splits = list(content.splits)

    def examples_of(split: str) -> Iterator[tuple[Example, int | None]]:
        return _labelled(content.splits[split], as_seen if content.modality == "text" else bytes)

    for i, first in enumerate(splits):
        labels_of: dict[Example, set[int | None]] = {}
        for example, label in examples_of(first):
            labels_of.setdefault(example, set()).add(label)
        for second in splits[i + 1 :]:
            counted[first, second] = sum(
                example in labels_of and counts(labels_of[example], label) for example, label in examples_of(second)
            )
    return {pair: count for pair, count in counted.items() if count}


def _labelled(rows: Rows, as_compared: Callable[[bytes], bytes]) -> Iterator[tuple[Example, int | None]]:
    nothing = [None] * len(rows.values)
    pairs = nothing if rows.pairs is None else map(as_compared, rows.pairs)
    labels = nothing if rows.labels is None else rows.labels
    return zip(zip(map(as_compared, rows.values), pairs, strict=True), labels, strict=True)


def as_seen(text: bytes) -> bytes:
    """Return what is visible of a text, without regard to case.

    Examples are compared by it.
    """
    return visible(text.decode(errors="replace")).casefold().encode()


def _shortened(messages: Iterable[str], kind: str) -> list[str]:
    every = list(messages)
    rest = len(every) - MOST_NAMED
    return every[:MOST_NAMED] + ([f"and {rest} more {kind}"] if rest > 0 else [])


def _row(content: Content, split: str, row: int) -> str:
    locations = content.splits[split].locations
    if locations is not None:
        return locations[row]
    labels = content.splits[split].labels
    if labels is None or content.class_names is None or labels[row] not in range(len(content.class_names)):
        return f"{split}, row {row}"
    return f"{split}, row {row} ({content.class_names[labels[row]]})"


def _empty_splits(content: Content) -> Iterator[str]:
    return (f"{split} has no examples" for split, rows in content.splits.items() if not rows.values)


def _few_classes(content: Content) -> Iterator[str]:
    if content.class_names is not None and len(content.class_names) < 2:
        yield f"there must be at least 2 classes, and there is {', '.join(content.class_names) or 'none'}"


def _stray_labels(content: Content) -> Iterator[str]:
    if content.class_names is None:
        return
    legal = range(len(content.class_names))
    for split, rows in content.splits.items():
        for i, label in enumerate(rows.labels or ()):
            if label not in legal:
                yield f"{_row(content, split, i)}: the label {label} is none of the {len(legal)} classes"


def empty_notes(content: Content) -> list[str]:
    """Say which classes have no examples in a split, a line for each split that lacks some."""
    return [
        f"{split} has no examples of {len(absent)} of the classes: {', '.join(absent[:MOST_NAMED])}"
        f"{' …' * (len(absent) > MOST_NAMED)}; means over classes skip them"
        for split, absent in _absent(content)
        if absent
    ]


def _empty_classes(content: Content, allowed: Mapping[str, frozenset[str]]) -> Iterator[str]:
    for split, absent in _absent(content):
        for name in absent:
            if name not in allowed.get(split, frozenset()):
                yield f"{split}: the class {name} has no examples"


def _absent(content: Content) -> Iterator[tuple[str, list[str]]]:
    """Yield each split that has labels, with the classes that have no examples there."""
    for split, rows in content.splits.items():
        if rows.labels:
            present = set(rows.labels)
            yield split, [name for label, name in enumerate(content.class_names or ()) if label not in present]


def _empty_texts(content: Content) -> Iterator[str]:
    for split, rows in content.splits.items():
        columns = {"text": rows.values} | ({} if rows.pairs is None else {"second text": rows.pairs})
        for i, texts in enumerate(zip(*columns.values(), strict=True)):
            for what, text in zip(columns, texts, strict=True):
                if problem := _text_problem(text):
                    yield f"{_row(content, split, i)}: the {what} {problem}"


def _text_problem(text: bytes) -> str | None:
    try:
        if visible(text.decode()):
            return None
    except UnicodeDecodeError as error:
        return f"is no utf-8 ({error.reason})"
    return "holds nothing visible" if text.strip() else "is empty"


def _damaged_images(content: Content, most_megapixels: float) -> Iterator[str]:
    problem_of = functools.partial(_image_problem, most_megapixels=most_megapixels)
    for split, i, problem in of_all_images(content, problem_of):
        if problem is not None:
            yield f"{_row(content, split, i)}: the image {problem}"


def _image_problem(encoded: bytes, most_megapixels: float) -> str | None:
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(BytesIO(encoded)) as image:
            width, height = image.size
            if min(width, height) < 1 or max(width, height) > MOST_PIXELS:
                return f"is {width} x {height} pixels; legal are 1 to {MOST_PIXELS} each way"
            if (megapixels := width * height / 1e6) > most_megapixels:
                return (
                    f"is {width} x {height} pixels, {megapixels:.1f} megapixels; legal are {most_megapixels:g}, as a "
                    "larger one may fill the memory. To read it, bind NAME/task.most_megapixels"
                )
        rgb(encoded)  # decodes to the end
    except UnidentifiedImageError:
        return f"is {recognised(encoded[:512]) or 'of no known type, or its first bytes are damaged'}"
    except Exception as error:  # damaged files make Pillow raise almost anything
        return f"cannot be decoded ({str(error) or type(error).__name__})"
    return None
