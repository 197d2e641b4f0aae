"""The learning curve of a stage: `curve.jsonl` in its folder, a line every so many steps.

    {"loss": 0.4821, "lr": 0.0003, "parts": {"masked": 0.41, "distill": 0.07}, "step": 120}

`step` counts the steps done; the losses are those of the last of them. Going on from a checkpoint cuts the file back to
its step, so that each step stands there once, however often a stage was interrupted. The record of a finished stage
holds the file's checksum.
"""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bench.errors import DamagedStore
from bench.store.files import read_json, sha256, write_text
from bench.store.store import RecordFile

CURVE = "curve.jsonl"


def read_curve(folder: Path) -> list[dict[str, Any]]:
    """Read the curve of a stage's folder, up to the first line that a kill left incomplete.

    Refuses a curve that is not the one which the stage's record promises; those of older versions promise none.
    """
    path, record = folder / CURVE, folder / "record.json"
    if path.is_file() and record.is_file():
        fix = f"Delete the folder {folder} to compute this stage again."
        promised = read_json(record, fix, RecordFile).get("curve")
        if promised not in (None, sha256(path)):
            raise DamagedStore(f"{path}: damaged: not what the record promises. Delete it to do without it. {fix}")
    return _points(path)


def _points(path: Path) -> list[dict[str, Any]]:
    points: list[dict[str, Any]] = []
    if not path.is_file():
        return points
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            point = json.loads(line)
        except ValueError:
            break
        if not isinstance(point, dict) or not isinstance(point.get("step"), int):
            break
        points.append(point)
    return points


def losses_at_the_ends(folder: Path) -> dict[str, float]:
    """Average the losses of the curve's first and of its last tenth.

    They say whether a loss fell, of stages, too, that are not evaluated. A stage of too few steps has no curve, and
    neither. Example: of 20 points the first two and the last two count.
    """
    losses = [point["loss"] for point in _points(folder / CURVE) if isinstance(point.get("loss"), float)]
    tenth = math.ceil(len(losses) / 10)
    if not losses:
        return {}
    return {"first_loss": statistics.fmean(losses[:tenth]), "last_loss": statistics.fmean(losses[-tenth:])}


class Curve:
    """The curve of a stage in training."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def cut(self, step: int) -> None:
        """Drop what lies behind `step`, where training goes on."""
        path = self._folder / CURVE
        write_text(path, "".join(map(_line, (point for point in _points(path) if point["step"] <= step))))

    def add(self, step: int, lr: float, losses: Mapping[str, float]) -> None:
        """Append the losses after `step` steps, the last of which was taken at rate `lr`."""
        parts = {name: value for name, value in losses.items() if name != "loss"}
        with (self._folder / CURVE).open("a", encoding="utf-8") as file:
            file.write(_line({"step": step, "lr": lr, "loss": losses["loss"], "parts": parts}))


def _line(point: Mapping[str, Any]) -> str:
    return json.dumps(point, sort_keys=True) + "\n"
