"""What records say of the parts of a method: a value, what it means, and whether it did nothing that counts."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class ActivityFacts:
    """An entry of a record's `activity`. `value` is None where it was no finite number."""

    value: float | None
    meaning: str
    nil: bool


def inactive(activity: Mapping[str, Mapping[str, Any]]) -> dict[str, str]:
    """Return the parts that did nothing, by name, and what was measured of each."""
    return {name: str(part["meaning"]) for name, part in activity.items() if part["nil"]}


def describe_inactive(parts: Iterable[tuple[str, str, str]]) -> Iterator[str]:
    """Say which parts did nothing and where. `parts` are (name, meaning, where), as often as they occur."""
    locations: dict[tuple[str, str], dict[str, None]] = defaultdict(dict)
    for name, meaning, where in parts:
        locations[name, meaning][where] = None
    for (name, meaning), everywhere in sorted(locations.items()):
        yield f"{name} did nothing in {', '.join(everywhere)}: 0 or nearly 0 was its {meaning}"
