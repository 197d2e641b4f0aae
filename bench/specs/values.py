"""Values as the annotation of their field wants them."""

from __future__ import annotations

import dataclasses
import math
import types
import typing
from typing import Any, Literal

from bench.errors import SpecError


def coerce(value: Any, annotation: Any, field: str) -> Any:
    """`value` as its annotation wants it (1 becomes 1.0, a list a tuple); raises `SpecError` for any other type."""
    if _matches(value, annotation):
        return _convert(value, annotation)
    shown = list(value) if isinstance(value, tuple) else value
    raise SpecError(field, f"{field} = {shown!r}: expected {_describe(annotation)}, got {type(shown).__name__}.")


def _alternatives(annotation: Any) -> tuple[Any, ...]:
    is_union = typing.get_origin(annotation) in (typing.Union, types.UnionType)
    return typing.get_args(annotation) if is_union else (annotation,)


def _matches(value: Any, annotation: Any) -> bool:
    for alternative in _alternatives(annotation):
        origin = typing.get_origin(alternative)
        if origin is Literal:
            if any(value == choice and type(value) is type(choice) for choice in typing.get_args(alternative)):
                return True
        elif origin is tuple:
            inner = typing.get_args(alternative)
            if isinstance(value, list | tuple):
                variadic = len(inner) == 2 and inner[1] is Ellipsis
                expected = [inner[0]] * len(value) if variadic else list(inner)
                if len(expected) == len(value) and all(map(_matches, value, expected)):
                    return True
        elif alternative is float:
            if isinstance(value, int | float) and not isinstance(value, bool):
                return True
        elif alternative is int:
            if isinstance(value, int) and not isinstance(value, bool):
                return True
        elif isinstance(value, alternative):
            return True
    return False


def _convert(value: Any, annotation: Any) -> Any:
    alternatives = _alternatives(annotation)
    if isinstance(value, int) and not isinstance(value, bool) and float in alternatives and int not in alternatives:
        try:
            return float(value)
        except OverflowError:
            return math.inf
    if isinstance(value, list | tuple):
        for alternative in alternatives:
            if typing.get_origin(alternative) is tuple and _matches(value, alternative):
                inner = typing.get_args(alternative)
                variadic = len(inner) == 2 and inner[1] is Ellipsis
                expected = [inner[0]] * len(value) if variadic else list(inner)
                return tuple(map(_convert, value, expected))
    return value


def _describe(annotation: Any) -> str:
    names = []
    for alternative in _alternatives(annotation):
        origin = typing.get_origin(alternative)
        if origin is Literal:
            names.append("one of " + ", ".join(repr(choice) for choice in typing.get_args(alternative)))
        elif origin is tuple:
            names.append("a list, each entry " + _describe(typing.get_args(alternative)[0]))
        elif alternative is types.NoneType:
            names.append("None")
        elif not dataclasses.is_dataclass(alternative):  # no gin file can give a spec
            names.append(
                {int: "a whole number", float: "a number", str: "a string"}.get(alternative, alternative.__name__)
            )
    return " or ".join(names)
