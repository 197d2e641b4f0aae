"""The shape of JSON files: what they must hold is said by dataclasses."""

from __future__ import annotations

import functools
import typing
from dataclasses import MISSING, fields, is_dataclass
from typing import Any

from bench.errors import SpecError
from bench.specs.values import coerce, legal_classes


def shaped(value: Any, annotation: Any, field: str = "") -> Any:
    """Turn JSON data into what an annotation asks for.

    Fields of a dataclass that have a default may be missing, and others may stand there too. Raises `SpecError` that
    names the field which is missing or of another type. Examples:

        {"examples": 2, "checksum": "9f", "per_class": [1, 1]}, SplitFacts      SplitFacts(2, "9f", (1, 1))
        {"train": {…}}, dict[str, SplitFacts]                                   {"train": SplitFacts(…)}
        [1, 2], tuple[int, ...]                                                 (1, 2)
    """
    kind, inner = _kind(annotation)
    if kind is object:
        return value if isinstance(value, inner) else coerce(value, annotation, field)
    if not isinstance(value, dict):
        raise SpecError(field, f"{field or 'it'} holds no JSON object")
    prefix = f"{field}." if field else ""
    if kind is dict:
        return {key: shaped(entry, inner, f"{prefix}{key}") for key, entry in value.items()}
    annotations, required = inner
    for name in required:
        if name not in value:
            raise SpecError(name, f"{prefix}{name} is missing")
    present = {name: inner for name, inner in annotations.items() if name in value}
    return annotation(**{name: shaped(value[name], inner, f"{prefix}{name}") for name, inner in present.items()})


@functools.cache
def _kind(annotation: Any) -> tuple[Any, Any]:
    """Tell what JSON data an annotation asks for, worked out once for the thousands of files of a store.

    Returned are, for a dataclass, itself and its `_fields`; `dict` and the annotation of its values; and for any other
    value `object` and the classes whose instances are legal as they are.
    """
    if is_dataclass(annotation) and isinstance(annotation, type):
        return annotation, _fields(annotation)
    if typing.get_origin(annotation) is dict:
        return dict, typing.get_args(annotation)[1]
    return object, (object,) if annotation is Any else legal_classes(annotation)


def _fields(kind: type) -> tuple[dict[str, Any], list[str]]:
    """Return the annotations of a dataclass's fields, and the names of those without a default."""
    hints = typing.get_type_hints(kind)
    every = fields(kind)
    required = [each.name for each in every if each.default is MISSING and each.default_factory is MISSING]
    return {each.name: hints[each.name] for each in every}, required
