"""The learning curve of a stage: `curve.jsonl` in its folder, a line every so many steps.

    {"loss": 0.4821, "lr": 0.0003, "parts": {"masked": 0.41, "distill": 0.07}, "step": 120}

`step` counts the steps done; the losses are those of the last of them. Going on from a checkpoint cuts the file back to
its step, so that each step stands there once, however often a stage was interrupted.
"""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bench.store.files import write_text

CURVE = "curve.jsonl"


def read_curve(folder: Path) -> list[dict[str, Any]]:
    """Read the curve of a stage's folder, up to the first line that a kill left incomplete."""
    points: list[dict[str, Any]] = []
    try:
        lines = (folder / CURVE).read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        return []
    for line in lines:
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
    losses = [point["loss"] for point in read_curve(folder) if isinstance(point.get("loss"), float)]
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
        points = read_curve(self._folder)
        write_text(self._folder / CURVE, "".join(map(_line, (point for point in points if point["step"] <= step))))

    def add(self, step: int, lr: float, losses: Mapping[str, float]) -> None:
        """Append the losses after `step` steps, the last of which was taken at rate `lr`."""
        parts = {name: value for name, value in losses.items() if name != "loss"}
        with (self._folder / CURVE).open("a", encoding="utf-8") as file:
            file.write(_line({"step": step, "lr": lr, "loss": losses["loss"], "parts": parts}))


def _line(point: Mapping[str, Any]) -> str:
    return json.dumps(point, sort_keys=True) + "\n"
