"""Plain data that is hashed: fields that check themselves, canonical JSON, and back."""

from __future__ import annotations

import dataclasses
import functools
import json
import math
import typing
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

from bench.errors import SpecError
from bench.specs.values import coerce, legal_classes

Json = dict[str, Any]


SPECS: dict[str, type[Spec]] = {}


ADDED = "added"


def added(default: Any) -> Any:
    """Declare a field that was added to a spec later.

    Its default computes what was computed before it came. The canonical JSON leaves the field out while it has that
    value, so keys stay, and older JSON is still read.
    """
    return dataclasses.field(default=default, metadata={ADDED: True})


@dataclass(frozen=True)
class Spec:
    """Base of everything that is hashed.

    A spec checks its field types, then calls `check()`; equal fields mean equal results. `VERSION` is bumped when the
    same fields begin to compute something else. `EXCLUSIVE` lists groups of fields of which a stronger binding replaces
    a weaker one (steps or epochs); `UNBOUND` the fields that no gin file may bind.
    """

    VERSION: ClassVar[int] = 1
    UNBOUND: ClassVar[tuple[str, ...]] = ()
    EXCLUSIVE: ClassVar[tuple[tuple[str, ...], ...]] = ()

    def __init_subclass__(cls) -> None:
        if cls.__name__ in SPECS:
            raise TypeError(f"two specs are named {cls.__name__}: their canonical JSON would collide")
        SPECS[cls.__name__] = cls

    def __post_init__(self) -> None:
        for name, annotation, legal, _ in _fields(type(self)):
            value = getattr(self, name)
            if not isinstance(value, legal) and (coerced := coerce(value, annotation, name)) is not value:
                object.__setattr__(self, name, coerced)
        self.check()

    def check(self) -> None:
        """Refuse impossible values with `SpecError`."""

    def _canonical(self) -> dict[str, str]:
        """Return the canonical JSON of every field by its name."""
        # {"type": '"Execution"', "version": "1", "precision": '"float32"', "deterministic": "false"}: its field
        # `compile` was added later and stands there only when it is true.
        fields = {
            name: part_json(value)
            for name, _, _, left_out in _fields(type(self))
            if (value := getattr(self, name)) != left_out
        }
        return {"type": _quoted(type(self).__name__), "version": part_json(self.VERSION), **fields}

    @functools.cached_property
    def _reference(self) -> str:
        """The canonical JSON of this spec as part of another one.

        A stage overrides it and gives its key.
        """
        return canonical_json(self)

    @functools.cached_property
    def _expanded(self) -> Json:
        fields = {field.name: expanded(getattr(self, field.name)) for field in dataclasses.fields(self)}
        return {"type": type(self).__name__, "version": self.VERSION, **self._identity(), **fields}

    def _identity(self) -> Json:
        """Return what records show beside the fields.

        A stage overrides it and gives its key.
        """
        return {}

    def require(self, field: str, legal: bool, what: str) -> None:
        """Raise `SpecError` unless `legal`; `what` says which values are."""
        if not legal:
            raise SpecError(field, f"{type(self).__name__}.{field} = {getattr(self, field)!r}: must be {what}.")


class _Field(NamedTuple):
    """What is asked of a field of every spec of a class."""

    name: str
    annotation: Any
    legal: tuple[type, ...]
    """Classes whose instances are legal as they are."""
    left_out: Any
    """The value with which it is left out of the canonical JSON; MISSING where there is none."""


_FIELDS: dict[type[Spec], list[_Field]] = {}


def _fields(cls: type[Spec]) -> list[_Field]:
    # Worked out once for a class: a large grid makes tens of thousands of its instances.
    if cls not in _FIELDS:
        hints = typing.get_type_hints(cls, localns=dict(SPECS))  # a subclass elsewhere inherits fields that name Stage
        _FIELDS[cls] = [
            _Field(
                field.name,
                hints[field.name],
                legal_classes(hints[field.name]),
                field.default if field.metadata.get(ADDED) else dataclasses.MISSING,
            )
            for field in dataclasses.fields(cls)
        ]
    return _FIELDS[cls]


def field_types(cls: type[Spec]) -> dict[str, Any]:
    """Return the annotations of a spec's fields, resolved."""
    return {field.name: field.annotation for field in _fields(cls)}


_encode = json.JSONEncoder(sort_keys=True, separators=(",", ":"), allow_nan=False).encode
_quoted = functools.cache(_encode)  # of strings alone: 0.0 equals -0.0, and 1 equals True


def canonical_json(spec: Spec) -> str:
    """Return the text that is hashed.

    It has sorted keys, no spaces, and the shortest exact floats. A stage in it stands as its key, so that the text of a
    deep plan stays small.
    """
    # Put together from the texts of the spec's parts. Each part keeps its own, and thousands of stages share a part.
    return "{" + ",".join(f"{_quoted(name)}:{text}" for name, text in sorted(spec._canonical().items())) + "}"


def canonical_data(spec: Spec) -> Json:
    """Return what the canonical JSON of a spec holds.

    Nobody may change it: specs that share a part share its data.
    """
    return {name: _parsed(text) for name, text in spec._canonical().items()}


_parsed = functools.cache(json.loads)


def part_json(value: Any) -> str:
    """Return the canonical JSON of a field's value, in which a stage stands as its key."""
    # The first three kinds are the commonest, and written as the encoder would write them.
    if type(value) is str:
        return _quoted(value)
    if type(value) is int:
        return repr(value)
    if value is None:
        return "null"
    if isinstance(value, Spec):
        return value._reference
    if isinstance(value, tuple):
        return "[" + ",".join(map(part_json, value)) + "]"
    return _encode(_plain(value))


def _plain(value: Any) -> Any:
    """Return a value as JSON knows it; it has no number for infinity."""
    return {"float": repr(value)} if isinstance(value, float) and not math.isfinite(value) else value


def expanded(value: Any) -> Any:
    """Turn a value into JSON data with every stage written out.

    It is what records show to readers: all fields in full, with the key beside them. Nobody may change it: specs that
    share a part share its data.
    """
    if isinstance(value, Spec):
        return value._expanded
    if isinstance(value, tuple):
        return [expanded(item) for item in value]
    return _plain(value)


def from_canonical(data: Any, load_stage: Callable[[str], Spec]) -> Any:
    """Build the value that canonical JSON was made of.

    `load_stage` finds a stage by its key. Examples:

        3, "flip", true, null                       the value itself
        [1, 2]                                      the tuple (1, 2)
        {"float": "inf"}                            the float inf, which JSON has no number for
        {"stage": "9f2c…"}                          load_stage("9f2c…")
        {"type": "AdamW", "version": 1, …}          the spec AdamW with the fields …

    A field that was added later may be missing: it then has its default.

    Raises ValueError where the JSON was written by another version of the spec's code.
    """
    if isinstance(data, list):
        return tuple(from_canonical(item, load_stage) for item in data)
    if not isinstance(data, dict):
        return data
    if "stage" in data:
        return load_stage(data["stage"])
    if "float" in data:
        return float(data["float"])
    cls = SPECS.get(data["type"])
    if cls is None:
        raise ValueError(f"the spec type {data['type']!r} is unknown to this version")
    legal = {field.name for field in dataclasses.fields(cls)}
    required = {field.name for field in dataclasses.fields(cls) if not field.metadata.get(ADDED)}
    names = data.keys() - {"type", "version"}
    if data["version"] != cls.VERSION or not required <= names <= legal:
        raise ValueError(f"{data['type']} version {data['version']} is an older or newer spec than this code's")
    return cls(**{name: from_canonical(data[name], load_stage) for name in names})
