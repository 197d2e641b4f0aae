"""Manifests of prepared folders: facts about what lies beside them, with a digest that covers them all."""

from __future__ import annotations

import json
import typing
from collections.abc import Callable
from dataclasses import MISSING, asdict, fields, is_dataclass
from pathlib import Path
from typing import Any, TypeVar

from bench.errors import InputError
from bench.specs import coerce
from bench.store.files import MANIFEST, digest, write_text

F = TypeVar("F")
"""A dataclass with the name that its folder is prepared under."""


def write_manifest(folder: Path, facts: Any) -> None:
    """Write the manifest of a folder, which makes it complete."""
    content = json.loads(json.dumps(asdict(facts)))  # tuples become lists, as a reader will find them
    text = json.dumps({"digest": digest(content), **content}, indent=1, sort_keys=True)
    write_text(folder / MANIFEST, text + "\n")


def load_manifest(kind: type[F], name: str, folder: Path, check: Callable[[F], None]) -> F | None:
    """Read the manifest of a folder; return None where there is none.

    Refuses one that does not match its own digest, that describes another name, that is no JSON of this shape, or that
    `check` refuses with a `ValueError`.
    """
    path = folder / MANIFEST
    try:
        content = json.loads(path.read_bytes())
        # Counts, checksums and sizes of networks decide what is computed, so no changed digit may pass. A manifest of
        # before has no digest: what it says is held against the files when they are opened.
        if isinstance(content, dict) and "digest" in content and content.pop("digest") != digest(content):
            raise ValueError("its content does not match its own digest")
        facts: F = shaped(content, kind)
        if content["name"] != name:
            raise ValueError(f"it describes {content['name']!r}")
        check(facts)
    except FileNotFoundError:
        return None
    except (OSError, ValueError, RecursionError, InputError) as error:
        raise InputError(f"{path} cannot be read ({error}). {prepare_again(folder)}") from error
    return facts


def prepare_again(folder: Path, start: str = "Delete") -> str:
    """Say how to mend a prepared folder that is damaged or changed."""
    return f"{start} the folder {folder} and prepare {folder.name} again."


def shaped(value: Any, annotation: Any, field: str = "") -> Any:
    """Turn JSON data into what an annotation asks for.

    Raises `ValueError` or `SpecError` that names the field which is missing or of another type. Examples:

        {"examples": 2, "checksum": "9f", "per_class": [1, 1]}, SplitFacts      SplitFacts(2, "9f", (1, 1))
        {"train": {…}}, dict[str, SplitFacts]                                   {"train": SplitFacts(…)}
        [1, 2], tuple[int, ...]                                                 (1, 2)
    """
    if annotation is Any:
        return value
    if not is_dataclass(annotation) and typing.get_origin(annotation) is not dict:
        return coerce(value, annotation, field)
    if not isinstance(value, dict):
        raise ValueError(f"{field or 'it'} holds no JSON object")
    prefix = f"{field}." if field else ""
    if not is_dataclass(annotation):
        inner = typing.get_args(annotation)[1]
        return {key: shaped(entry, inner, f"{prefix}{key}") for key, entry in value.items()}
    # Of a dataclass: fields with a default came later and may be missing.
    hints = typing.get_type_hints(annotation)
    if missing := [
        f.name for f in fields(annotation) if f.name not in value and f.default is f.default_factory is MISSING
    ]:
        raise ValueError(f"{prefix}{missing[0]} is missing")
    present = {f.name: value[f.name] for f in fields(annotation) if f.name in value}
    return annotation(**{name: shaped(entry, hints[name], f"{prefix}{name}") for name, entry in present.items()})  # type: ignore[operator]
