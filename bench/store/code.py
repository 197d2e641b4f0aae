"""The code behind a record: a digest for each class in the stage's spec, and one for the training loop."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any

from bench.specs import SPECS, Spec, Stage, spec_class, spec_name
from bench.store.definitions import digest_of, keep_sources

LOOP = "loop"
"""What records call the code that trains and evaluates every stage."""

LOOP_ROOT = ("bench.training.fit", "fit")

Code = dict[str, list[str]]
"""Name of a class, or LOOP -> digests. There are several where a stage went on from a checkpoint of other code."""


def code_of(stage: Stage) -> Code:
    """Compute the digests of today's code for a stage, without the stages that it starts from."""
    return {name: [digest] for name in sorted({LOOP, *_classes(stage)}) if (digest := today(name)) is not None}


def keep_todays() -> None:
    """Make today's code that of this moment, at which a process that runs stages has imported its methods.

    Without it a method that is edited while a grid runs would be noted as the code of numbers from before.
    """
    keep_sources(kind.__module__ for kind in SPECS.values())


def today(name: str) -> str | None:
    """Compute the digest of today's code of a class, or of LOOP. None where there is none."""
    if name == LOOP:
        return digest_of(*LOOP_ROOT)
    cls = spec_class(name)
    return digest_of(cls.__module__, cls.__name__) if cls is not None else None


def why_outdated(record: Mapping[str, Any], parents: Mapping[str, Mapping[str, Any]]) -> str:
    """Say why today's store and code would not lead to a record again; '' if nothing speaks against it.

    `parents` holds the records of stages that it began with, by folder, as far as they are there.
    """
    if names := other_code(record.get("code", {})):
        return f"other code of {', '.join(names)}"
    swapped = other_weights(record, parents)
    return f"other weights of {', '.join(swapped)}" if swapped else ""


def outdated(stages: Iterable[Stage], records: Mapping[str, Mapping[str, Any]]) -> dict[str, str]:
    """Say of finished stages why today's store and code would not lead to them again, by key.

    `stages` stand with parents first, `records` are by key. A reason holds for all that began with the stage, too.
    """
    # Example: of A -> B -> C, all finished, B was deleted since. If A's code was edited, C is outdated for A's reason,
    # which reaches it by way of B. B itself is left out of the result: it is not finished any more.
    reasons: dict[str, str] = {}
    for stage in stages:
        parents = {parent.folder: records[parent.key] for parent in stage.parents if parent.key in records}
        own = why_outdated(records[stage.key], parents) if stage.key in records else ""
        behind = (reasons[parent.key] for parent in stage.parents if parent.key in reasons)
        if reason := own or next(behind, ""):
            reasons[stage.key] = reason
    return {key: reason for key, reason in reasons.items() if key in records}


def other_weights(record: Mapping[str, Any], parents: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """List the parents, by folder, that have other weights now than when a record was made."""
    began_with = record.get("parents", {})
    return [
        folder
        for folder, parent in sorted(parents.items())
        if began_with.get(folder, parent["weights"]["sha256"]) != parent["weights"]["sha256"]
    ]


def other_code(code: Mapping[str, Iterable[str]]) -> list[str]:
    """List the names in a record's code whose code is another one today."""
    return sorted(name for name, digests in code.items() if list(digests) != [today(name)])


def merged_code(codes: Iterable[Mapping[str, Iterable[str]]]) -> Code:
    """Bring together the code of several stages, or of several attempts at one."""
    together: dict[str, set[str]] = {}
    for code in codes:
        for name, digests in code.items():
            together.setdefault(name, set()).update(digests)
    return {name: sorted(digests) for name, digests in sorted(together.items())}


def _classes(stage: Stage) -> set[str]:
    """Name the classes of the specs that a stage consists of.

    Other stages are left out, as they have records of their own; only the finals of a search have none.
    """
    names = set()
    ahead: list[Any] = [stage]
    while ahead:
        spec = ahead.pop()
        names.add(spec_name(type(spec)))
        for field in dataclasses.fields(spec):
            value = getattr(spec, field.name)
            parts = value if isinstance(value, tuple) else (value,)
            ahead += [
                part
                for part in parts
                if isinstance(part, Spec) and (field.name == "finals" or not isinstance(part, Stage))
            ]
    return names
