"""The shape of JSON files: what they must hold is said by dataclasses."""

from __future__ import annotations

import functools
import typing
from dataclasses import MISSING, fields, is_dataclass
from typing import Any

from bench.errors import SpecError
from bench.specs import coerce


def shaped(value: Any, annotation: Any, field: str = "") -> Any:
    """Turn JSON data into what an annotation asks for.

    Fields of a dataclass that have a default may be missing, and others may stand there too. Raises `SpecError` that
    names the field which is missing or of another type. Examples:

        {"examples": 2, "checksum": "9f", "per_class": [1, 1]}, SplitFacts      SplitFacts(2, "9f", (1, 1))
        {"train": {…}}, dict[str, SplitFacts]                                   {"train": SplitFacts(…)}
        [1, 2], tuple[int, ...]                                                 (1, 2)
    """
    if annotation is Any:
        return value
    if not is_dataclass(annotation) and typing.get_origin(annotation) is not dict:
        return coerce(value, annotation, field)
    if not isinstance(value, dict):
        raise SpecError(field, f"{field or 'it'} holds no JSON object")
    prefix = f"{field}." if field else ""
    if not isinstance(annotation, type):
        inner = typing.get_args(annotation)[1]
        return {key: shaped(entry, inner, f"{prefix}{key}") for key, entry in value.items()}
    annotations, required = _fields(annotation)
    for name in required:
        if name not in value:
            raise SpecError(name, f"{prefix}{name} is missing")
    present = {name: inner for name, inner in annotations.items() if name in value}
    return annotation(**{name: shaped(value[name], inner, f"{prefix}{name}") for name, inner in present.items()})


@functools.cache
def _fields(kind: type) -> tuple[dict[str, Any], list[str]]:
    """Return the annotations of a dataclass's fields, and the names of those without a default."""
    hints = typing.get_type_hints(kind)
    every = fields(kind)
    required = [each.name for each in every if each.default is MISSING and each.default_factory is MISSING]
    return {each.name: hints[each.name] for each in every}, required
