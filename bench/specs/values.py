"""Values as the annotation of their field wants them."""

from __future__ import annotations

import dataclasses
import functools
import math
import types
import typing
from typing import Any, Literal

from bench.errors import SpecError

FLOAT32_MAX = (2 - 2**-23) * 2.0**127
"""The greatest finite number that weights and losses can hold."""


def coerce(value: Any, annotation: Any, field: str) -> Any:
    """Return `value` in the form that its annotation asks for.

    Raises `SpecError` for a value of another type. Examples of value and annotation:

        1, float                        1.0
        [1, 2], tuple[int, ...]         (1, 2)
        None, int | None                None
        True, int                       refused: a truth value is no number here
    """
    alternatives = _alternatives(annotation)
    kind = type(value)
    if kind in alternatives and (kind is not float or abs(value) <= FLOAT32_MAX):  # the commonest case: it stays
        return value
    if _matches(value, alternatives):
        converted = _convert(value, alternatives)
        for number in converted if isinstance(converted, tuple) else (converted,):
            if isinstance(number, float) and FLOAT32_MAX < abs(number) < math.inf:
                raise SpecError(field, f"{field} = {value!r}: must be within ±{FLOAT32_MAX:.6g}, what float32 holds.")
        return converted
    shown = list(value) if isinstance(value, tuple) else value
    raise SpecError(field, f"{field} = {shown!r}: expected {_describe(annotation)}, got {type(shown).__name__}.")


# The three functions below go through the alternatives of an annotation: `int | None` has two, `float` is its only one.
# A tuple of fixed length, such as tuple[float, float], names the type of each entry; tuple[int, ...] that of all.


@functools.cache
def _alternatives(annotation: Any) -> tuple[Any, ...]:
    is_union = typing.get_origin(annotation) in (typing.Union, types.UnionType)
    return typing.get_args(annotation) if is_union else (annotation,)


@functools.cache
def legal_classes(annotation: Any) -> tuple[type, ...]:
    """Return the classes whose every instance `coerce` leaves as it is.

    Numbers are none of them: a truth value is an int, too, and a float has limits.
    """
    return tuple(each for each in _alternatives(annotation) if isinstance(each, type) and each not in (int, float))


def _matches(value: Any, alternatives: tuple[Any, ...]) -> bool:
    for alternative in alternatives:
        origin = typing.get_origin(alternative)
        if origin is Literal:
            if any(value == choice and type(value) is type(choice) for choice in typing.get_args(alternative)):
                return True
        elif origin is tuple:
            inner = typing.get_args(alternative)
            if isinstance(value, list | tuple):
                if _is_plain(value, inner):
                    return True
                variadic = len(inner) == 2 and inner[1] is Ellipsis
                expected = [inner[0]] * len(value) if variadic else list(inner)
                if len(expected) == len(value) and all(map(_matches, value, map(_alternatives, expected))):
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


def _is_plain(value: list[Any] | tuple[Any, ...], inner: tuple[Any, ...]) -> bool:
    """Tell whether all entries are of the one class that is named, and stay as they are.

    It spares a look at every single entry of long columns, as in the worklist of ten thousand stages.
    """
    return len(inner) == 2 and inner[1] is Ellipsis and {*map(type, value)} <= {inner[0]}


def _convert(value: Any, alternatives: tuple[Any, ...]) -> Any:
    if isinstance(value, int) and not isinstance(value, bool) and float in alternatives and int not in alternatives:
        try:
            return float(value)
        except OverflowError:
            return math.inf
    if isinstance(value, list | tuple):
        for alternative in alternatives:
            if typing.get_origin(alternative) is tuple and _matches(value, (alternative,)):
                inner = typing.get_args(alternative)
                if _is_plain(value, inner):
                    return tuple(value)
                variadic = len(inner) == 2 and inner[1] is Ellipsis
                expected = [inner[0]] * len(value) if variadic else list(inner)
                return tuple(map(_convert, value, map(_alternatives, expected)))
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
