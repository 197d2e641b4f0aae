"""Checkpoints of a stage in training: the last two are kept, each with a marker that holds its checksum."""

from __future__ import annotations

import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from bench.errors import DamagedStore
from bench.store.files import read_json, replacing, sha256, write_json

KEPT = 2


@dataclass
class Checkpoints:
    """The checkpoint folder of one stage; `warnings` says which damaged checkpoints were passed over."""

    folder: Path
    warnings: list[str] = field(default_factory=list)

    def _markers(self) -> list[Path]:
        return sorted(self.folder.glob("step-*.json"), reverse=True)

    def save(self, step: int, content: dict[str, Any]) -> None:
        """Write the state after `step` steps; the marker last, so a checkpoint without one does not count."""
        path = self.folder / f"step-{step:08}.pt"
        with replacing(path) as temporary:
            _write(content, temporary)
            checksum = sha256(temporary)
        write_json(path.with_suffix(".json"), {"step": step, "sha256": checksum})
        for marker in self._markers()[KEPT:]:
            marker.unlink(missing_ok=True)
            marker.with_suffix(".pt").unlink(missing_ok=True)

    def load(self, device: torch.device) -> tuple[int, dict[str, Any]] | None:
        """The newest undamaged checkpoint as (step, content), or None; damaged ones are reported and skipped."""
        for marker in self._markers():
            try:
                facts = read_json(marker, "It is skipped.")
                path = marker.with_suffix(".pt")
                if not path.is_file() or sha256(path) != facts.get("sha256"):
                    raise DamagedStore(f"{path}: truncated or damaged.")
                return int(facts["step"]), torch.load(path, map_location=device, weights_only=True)
            except DamagedStore as error:
                self.warnings.append(f"{error} Going on from the checkpoint before it, or from the start.")
        return None

    def clear(self) -> None:
        """Remove all checkpoints of a finished stage, and what a kill in the middle of a write left behind."""
        shutil.rmtree(self.folder, ignore_errors=True)


def _write(content: dict[str, Any], path: Path) -> None:
    """`torch.save`, but of a disk that is full or read-only in the system's words, which torch's hide."""
    try:
        with path.open("wb") as file:
            torch.save(content, file)
    except RuntimeError as error:
        if isinstance(error.__context__, OSError):
            raise error.__context__ from error
        raise
