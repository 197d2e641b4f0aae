"""Manifests of prepared folders: facts about what lies beside them, with a digest that covers them all."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeVar

from bench.errors import InputError
from bench.store.files import MANIFEST, digest, parse_json, write_text
from bench.store.shape import shaped

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
        content = parse_json(path.read_bytes())
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
