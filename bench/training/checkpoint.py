"""Checkpoints of a stage in training: the last two are kept, each with a marker that holds its checksum.

    checkpoints/step-00000500.pt      weights, optimiser and state after 500 steps, and whose they are
    checkpoints/step-00000500.json    its marker, written last: {"step": 500, "sha256": …}

Names and markers can be damaged, or belong to another stage where a folder was copied. So the checkpoint itself says,
under the checksum, whose it is and after which step.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from bench.errors import DamagedStore
from bench.store.files import read_json, replacing, sha256, write_json

KEPT = 2


@dataclass(frozen=True)
class Marker:
    """What the marker of a checkpoint holds."""

    step: int
    sha256: str


@dataclass
class Checkpoints:
    """The checkpoint folder of one stage. `warnings` says which damaged checkpoints were passed over."""

    folder: Path
    identity: tuple[str, ...] = ()
    """Whose they are: key of the folder's stage, key of the stage in training, which a search chose, and a digest of
    the weights that it began with."""
    warnings: list[str] = field(default_factory=list)

    def _markers(self) -> list[Path]:
        return sorted(self.folder.glob("step-*.json"), reverse=True)

    def save(self, step: int, content: dict[str, Any]) -> None:
        """Write the state after `step` steps.

        The marker is written last, so a checkpoint without one does not count.
        """
        # Content, marker, then the removal of old ones: whenever a kill comes, at least one whole checkpoint is left.
        # Example: at step 1500 those of 500 and 1000 are there; only once 1500 has its marker is 500 removed.
        path = self.folder / f"step-{step:08}.pt"
        with replacing(path) as temporary:
            _write({"identity": list(self.identity), "step": step, "content": content}, temporary)
            checksum = sha256(temporary)
        write_json(path.with_suffix(".json"), {"step": step, "sha256": checksum})
        for marker in self._markers()[KEPT:]:
            marker.unlink(missing_ok=True)
            marker.with_suffix(".pt").unlink(missing_ok=True)

    def load(self, device: torch.device) -> tuple[int, dict[str, Any]] | None:
        """Return the newest undamaged checkpoint as (step, content), or None.

        Damaged ones are skipped, and reported in `warnings`.
        """
        # Newest first: the names sort by number, as it is padded with zeros. The checksum comes before torch.load, so a
        # damaged file is never unpacked.
        for marker in self._markers():
            try:
                return self._read(marker, device)
            except DamagedStore as error:
                self.warnings.append(f"{error} Going on from the checkpoint before it, or from the start.")
        return None

    def _read(self, marker: Path, device: torch.device) -> tuple[int, dict[str, Any]]:
        """Read the checkpoint of a marker; refuses one that is damaged or another stage's."""
        path = marker.with_suffix(".pt")
        facts = read_json(marker, "It is skipped.", Marker)
        if not path.is_file() or sha256(path) != facts["sha256"]:
            raise DamagedStore(f"{path}: truncated or damaged.")
        saved = torch.load(path, map_location=device, weights_only=True)
        if saved.get("identity") != list(self.identity):
            raise DamagedStore(f"{path}: of another stage, or written by an older version.")
        step: int = saved["step"]
        if not path.stem == f"step-{step:08}" or facts["step"] != step:
            raise DamagedStore(f"{path}: holds step {step}; its marker says {facts['step']}.")
        return step, saved["content"]

    def clear(self) -> None:
        """Remove all checkpoints of a finished stage. What a kill in the middle of a write left behind goes, too."""
        shutil.rmtree(self.folder, ignore_errors=True)


def _write(content: dict[str, Any], path: Path) -> None:
    """Save with `torch.save`, but raise the system's own errors.

    Those of torch hide that a disk is full or read-only.
    """
    try:
        with path.open("wb") as file:
            torch.save(content, file)
    except RuntimeError as error:
        if isinstance(error.__context__, OSError):
            raise error.__context__ from error
        raise
