"""What a reader met in a source and did not read, and what a person should know of what it read."""

from __future__ import annotations

from pathlib import Path

SHOWN = 3
"""How many locations of one kind are named."""


class Account:
    """List what a reader did not read of one source, by kind.

    Whatever is in the source is either read or listed here. Locations are relative to `root`, since notes are published
    and paths are private.
    """

    def __init__(self, root: Path | None = None) -> None:
        self.notes: list[str] = []
        self.unread: dict[str, int] = {}
        """Kind of what was not read -> how many files, rows or splits."""
        self._root = root
        self._locations: dict[str, list[str]] = {}

    def skip(self, kind: str, location: Path | str, count: int = 1) -> None:
        """Note that `count` files or rows of a kind were not read."""
        self.unread[kind] = self.unread.get(kind, 0) + count
        self._locations.setdefault(kind, []).append(self.relative(location))

    def relative(self, location: Path | str) -> str:
        """Write a location without the path of the source."""
        if isinstance(location, Path) and self._root is not None:
            return location.name if location == self._root else location.relative_to(self._root).as_posix()
        return str(location)

    def lines(self) -> tuple[str, ...]:
        """Return all notes, the kinds of what was not read first."""
        unread = [f"not read: {kind}: {count} ({_first(self._locations[kind])})" for kind, count in self.unread.items()]
        return (*unread, *self.notes)


def _first(locations: list[str]) -> str:
    return ", ".join(locations[:SHOWN]) + ", …" * (len(locations) > SHOWN)
