"""What the suite is meant to reach, as data, and whether it did in a run."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from bench.speed import costs
from bench.speed.line import Line, line_of
from bench.speed.work import KINDS, NETWORKS, RELEASED, SAME, TRAINER, TRAINER_COMPILED

Quantity = Literal["same", "released", "trainer", "share", "step_ms", "hours", "quickstart_ratio", "first_step"]

VIT_BASE, VIT_TINY = "vit_base_224", "vit_tiny_64"
IMAGES = (VIT_TINY, VIT_BASE)
TEXTS = ("minilm", "roberta_base")
ALL = tuple(NETWORKS)


@dataclass(frozen=True)
class Target:
    """One figure that each network is to reach on a kind of device.

    `bound` is required: the most of a quantity in `SMALL_IS_GOOD`, the least of any other. `goal` is hoped for beyond
    it. Judged is the line of that `precision`, or where there is none the fastest one measured.
    """

    device: Literal["gpu", "cpu"]
    quantity: Quantity
    bound: float
    kind: str = ""
    networks: tuple[str, ...] = ("",)
    goal: float | None = None
    precision: Literal["float32", "bfloat16"] | None = None


TARGETS = (
    # One H100 or H200, as gin/fast.gin sets it: bfloat16, compiled.
    Target("gpu", "same", 2.5, "self_distill", ALL),
    Target("gpu", "same", 4.0, "finetune", ALL),
    Target("gpu", "same", 3.0, "further_pretrain", ALL),
    Target("gpu", "share", 0.40, "finetune", (VIT_BASE,), goal=0.45),
    Target("gpu", "share", 0.40, "self_distill", (VIT_BASE,), goal=0.45),
    Target("gpu", "share", 0.32, "further_pretrain", (VIT_BASE,), goal=0.35),
    Target("gpu", "step_ms", 4.0, "finetune", (VIT_TINY,)),
    Target("gpu", "trainer", 1.3, "finetune", (VIT_BASE,)),
    Target("gpu", "trainer", 3.0, "finetune", (VIT_TINY,)),
    Target("gpu", "hours", 8.0, "Table 1"),
    # Two CPU cores.
    Target("cpu", "same", 1.3, "self_distill", IMAGES),
    Target("cpu", "released", 2.0, "self_distill", (VIT_BASE,), precision="bfloat16"),
    Target("cpu", "same", 1.15, "further_pretrain", ALL),
    Target("cpu", "same", 1.5, "finetune", TEXTS),
    Target("cpu", "trainer", 1.1, "finetune", ALL),
    *(Target("cpu", "share", 0.75, kind, (VIT_BASE,), precision="float32") for kind in KINDS),
    Target("cpu", "quickstart_ratio", 2.0),
    Target("cpu", "first_step", 6.0),
)

MEANING: dict[Quantity, str] = {
    "same": "x the reference at the same precision",
    "released": "x the reference as released",
    "trainer": "x the Trainer",
    "share": "of the matrix products' peak",
    "step_ms": "ms a step",
    "hours": "hours",
    "quickstart_ratio": "x the other checkout's quickstart",
    "first_step": "s from the command to the first step",
}
SMALL_IS_GOOD = ("step_ms", "hours", "first_step")
DEVICES = {"gpu": "one H100 or H200", "cpu": "two CPU cores"}
OTHERS = {"same": (SAME,), "released": (RELEASED,), "trainer": (TRAINER, TRAINER_COMPILED)}


class NotMeasured(Exception):
    """Says why there is no figure to judge a target by."""


def verdicts(facts: Mapping[str, Any], lines: Collection[Line]) -> Iterator[dict[str, str]]:
    """Judge every target by what was measured on one device.

    Each of a target's networks has a row, whose `verdict` is met, missed, or why it is neither.
    """
    for target in TARGETS:
        for network in target.networks:
            subject = f"{target.kind}/{network}" if network else target.kind or "quickstart"
            device = DEVICES[target.device] + (f", {target.precision}" if target.precision else "")
            name = f"{subject}, {MEANING[target.quantity]} ({device})"
            try:
                _check_device(target, facts)
                value = _value(target, subject, facts.get("quickstart") or {}, lines)
            except NotMeasured as reason:
                measured, verdict = "-", f"not measured here: {reason}"
            else:
                met = value <= target.bound if target.quantity in SMALL_IS_GOOD else value >= target.bound
                verdict = "met" if met else "missed"
                # 1.147 is not shown as the 1.15 that it missed.
                rounded = not met and _shown(target, value) == _shown(target, target.bound)
                measured = f"{value:.4g}" if rounded else _shown(target, value)
            yield {"name": name, "required": _required(target), "measured": measured, "verdict": verdict}


def _check_device(target: Target, facts: Mapping[str, Any]) -> None:
    if target.device == "gpu" and not (
        facts.get("gpu") and any(model in facts["device"] for model in ("H100", "H200"))
    ):
        raise NotMeasured("this is no H100 or H200")
    if target.device == "cpu" and (facts.get("gpu") or facts["cores"] != 2):
        raise NotMeasured("these are not two CPU cores")
    if target.precision == "bfloat16" and not facts.get("bfloat16"):
        raise NotMeasured("this CPU has no bfloat16 of its own")


def _value(target: Target, subject: str, quickstart: Mapping[str, float], lines: Collection[Line]) -> float:
    if target.quantity in ("quickstart_ratio", "first_step"):
        return _present(quickstart.get(target.quantity), "run --quickstart, for the ratio with --against")
    if target.quantity == "hours":
        hours = costs.hours(costs.TABLES[target.kind], lines)
        return _present(hours, f"not all lines of {target.kind} were measured")
    line = line_of(lines, subject, target.precision)
    if line is None or math.isnan(line.median(line.best)):
        raise NotMeasured("this line was not measured" + (f" in {target.precision}" if target.precision else ""))
    if target.quantity == "share":
        return _present(line.share, "its operations were not counted")
    if target.quantity == "step_ms":
        return 1e3 * line.step_seconds
    others = OTHERS[target.quantity]
    ratio = line.ratio(*others)
    failures = "; ".join(line.failures[other] for other in others if other in line.failures)
    return _present(ratio and ratio.median, failures or "not run")


def _present(value: float | None, otherwise: str) -> float:
    if value is None or math.isnan(value):
        raise NotMeasured(otherwise)
    return value


def _required(target: Target) -> str:
    relation = "at most" if target.quantity in SMALL_IS_GOOD else "at least"
    goal = "" if target.goal is None else f" (goal {_shown(target, target.goal)})"
    return f"{relation} {_shown(target, target.bound)}{goal}"


def _shown(target: Target, value: float) -> str:
    return f"{100 * value:.1f} %" if target.quantity == "share" else f"{value:.2f}"
