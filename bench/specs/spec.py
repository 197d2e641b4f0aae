"""Plain data that is hashed: fields that check themselves, canonical JSON, and back."""

from __future__ import annotations

import dataclasses
import functools
import inspect
import json
import math
import sys
import typing
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

from bench.errors import InputError, MissingPlugin, SpecError
from bench.specs.values import coerce, legal_classes

Json = dict[str, Any]


SPECS: dict[str, type[Spec]] = {}
"""Every class of specs, by the name of the class."""

PLUGIN_NAMES: dict[str, str] = {}
"""Module at the top of a plugin -> the plugin's name, which stands before its classes in keys and records."""


ADDED = "added"


def added(default: Any) -> Any:
    """Declare a field that was added to a spec later.

    Its default computes what was computed before it came. The canonical JSON leaves the field out while it has that
    value, so keys stay, and older JSON is still read.
    """
    return dataclasses.field(default=default, metadata={ADDED: True})


_DEFAULTS = (bool, int, float, str, tuple, type(None), dataclasses.Field)
"""Classes of what stands behind the = of a field."""


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
            files = [source_file(kind.__module__) for kind in (SPECS[cls.__name__], cls)]
            raise InputError(
                f"two specs are named {cls.__name__}, in {files[0]} and in {files[1]}. Rename one of them."
            )
        for name, value in vars(cls).items():
            constant = name.startswith("_") or name.isupper()
            if isinstance(value, _DEFAULTS) and not constant and name not in inspect.get_annotations(cls):
                raise InputError(
                    f"{cls.__name__}.{name} in {source_file(cls.__module__)} has no type, so no gin file can set it "
                    f"and no key holds it. Declare a type, as in `{name}: float = 0.1`; write a constant in capitals."
                )
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
        return {"type": _quoted(spec_name(type(self))), "version": part_json(self.VERSION), **fields}

    @functools.cached_property
    def _reference(self) -> str:
        """The canonical JSON of this spec as part of another one.

        A stage overrides it and gives its key.
        """
        return canonical_json(self)

    @functools.cached_property
    def _expanded(self) -> Json:
        fields = {field.name: expanded(getattr(self, field.name)) for field in dataclasses.fields(self)}
        return {"type": spec_name(type(self)), "version": self.VERSION, **self._identity(), **fields}

    def _identity(self) -> Json:
        """Return what records show beside the fields.

        A stage overrides it and gives its key.
        """
        return {}

    def require(self, field: str, legal: bool, what: str) -> None:
        """Raise `SpecError` unless `legal`; `what` says which values are."""
        if not legal:
            raise SpecError(field, f"{type(self).__name__}.{field} = {getattr(self, field)!r}: must be {what}.")


def source_file(module: str) -> str:
    """Return the file of a module that is imported, or the module's name where it has none."""
    return getattr(sys.modules.get(module), "__file__", None) or module


def spec_name(cls: type[Spec]) -> str:
    """Return what keys and records call a class of specs.

    It is `Sharpness` for a class of the suite, `my_methods.Sharpness` for one of the plugin `my_methods`.
    """
    plugin = PLUGIN_NAMES.get(cls.__module__.partition(".")[0])
    return f"{plugin}.{cls.__name__}" if plugin else cls.__name__


def spec_plugin(name: str) -> str:
    """Return the plugin that a class is of, by what keys and records call it; '' for the suite's own."""
    return name.rpartition(".")[0]


def spec_class(name: str) -> type[Spec] | None:
    """Return the class that keys and records call by this name, or None if this process knows none."""
    cls = SPECS.get(name.rpartition(".")[2])
    return cls if cls is not None and spec_name(cls) == name else None


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

    Raises ValueError where the JSON was written by another version of the spec's code, MissingPlugin where it needs a
    plugin that this process has not loaded.
    """
    if isinstance(data, list):
        return tuple(from_canonical(item, load_stage) for item in data)
    if not isinstance(data, dict):
        return data
    if "stage" in data:
        return load_stage(data["stage"])
    if "float" in data:
        return float(data["float"])
    cls = spec_class(data["type"])
    if cls is None:
        if plugin := spec_plugin(data["type"]):
            raise MissingPlugin(f"its part {data['type']} is of the plugin {plugin}, which is not loaded")
        raise ValueError(f"the spec type {data['type']!r} is unknown to this version")
    legal = {field.name for field in dataclasses.fields(cls)}
    required = {field.name for field in dataclasses.fields(cls) if not field.metadata.get(ADDED)}
    names = data.keys() - {"type", "version"}
    if data["version"] != cls.VERSION or not required <= names <= legal:
        raise ValueError(f"{data['type']} version {data['version']} is an older or newer spec than this code's")
    return cls(**{name: from_canonical(data[name], load_stage) for name in names})
