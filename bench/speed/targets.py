"""What the suite is meant to reach, as data, and whether it did in a run."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

from bench.speed import costs
from bench.speed.line import Line
from bench.speed.work import NETWORKS, RELEASED, SAME, TRAINER, TRAINER_COMPILED

Quantity = Literal["same", "released", "trainer", "share", "step_ms", "hours", "quickstart_ratio", "first_step"]

VIT_BASE, VIT_TINY = "vit_base_224", "vit_tiny_64"
IMAGES = (VIT_TINY, VIT_BASE)
TEXTS = ("minilm", "roberta_base")
ALL = tuple(NETWORKS)


@dataclass(frozen=True)
class Target:
    """One figure to reach on a kind of device, for each of its networks.

    `at_least` or `at_most` is required; `goal` is hoped for. `bfloat16` limits it to devices that compute in it.
    """

    device: Literal["gpu", "cpu"]
    quantity: Quantity
    kind: str = ""
    networks: tuple[str, ...] = ("",)
    at_least: float | None = None
    at_most: float | None = None
    goal: float | None = None
    bfloat16: bool = False


TARGETS = (
    # One H100 or H200, as gin/fast.gin sets it: bfloat16, compiled.
    Target("gpu", "same", "self_distill", ALL, at_least=2.5),
    Target("gpu", "same", "finetune", ALL, at_least=4.0),
    Target("gpu", "same", "further_pretrain", ALL, at_least=3.0),
    Target("gpu", "share", "finetune", (VIT_BASE,), at_least=0.40, goal=0.45),
    Target("gpu", "share", "self_distill", (VIT_BASE,), at_least=0.40, goal=0.45),
    Target("gpu", "share", "further_pretrain", (VIT_BASE,), at_least=0.32, goal=0.35),
    Target("gpu", "step_ms", "finetune", (VIT_TINY,), at_most=4.0),
    Target("gpu", "trainer", "finetune", (VIT_BASE,), at_least=1.3),
    Target("gpu", "trainer", "finetune", (VIT_TINY,), at_least=3.0),
    Target("gpu", "hours", "Table 1", at_most=8.0),
    # Two CPU cores.
    Target("cpu", "same", "self_distill", IMAGES, at_least=1.3),
    Target("cpu", "released", "self_distill", (VIT_BASE,), at_least=2.0, bfloat16=True),
    Target("cpu", "same", "further_pretrain", ALL, at_least=1.15),
    Target("cpu", "same", "finetune", TEXTS, at_least=1.5),
    Target("cpu", "trainer", "finetune", ALL, at_least=1.1),
    Target("cpu", "share", "finetune", (VIT_BASE,), at_least=0.75),
    Target("cpu", "share", "further_pretrain", (VIT_BASE,), at_least=0.75),
    Target("cpu", "share", "self_distill", (VIT_BASE,), at_least=0.75),
    Target("cpu", "quickstart_ratio", at_least=2.0),
    Target("cpu", "first_step", at_most=6.0),
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
DEVICES = {"gpu": "one H100 or H200", "cpu": "two CPU cores"}
OTHERS = {"same": (SAME,), "released": (RELEASED,), "trainer": (TRAINER, TRAINER_COMPILED)}


class Verdict(NamedTuple):
    """One target's line: its name, what is required, what was measured, and met, missed or why neither."""

    name: str
    required: str
    measured: str
    verdict: str


class NotMeasured(Exception):
    """Says why there is no figure to judge a target by."""


def verdicts(facts: Mapping[str, Any], lines: Mapping[str, Line]) -> Iterator[Verdict]:
    """Judge every target by what was measured on one device, one line for each of its networks."""
    for target in TARGETS:
        for network in target.networks:
            subject = f"{target.kind}/{network}" if network else target.kind or "quickstart"
            device = DEVICES[target.device] + (", bfloat16" if target.bfloat16 else "")
            name = f"{subject}, {MEANING[target.quantity]} ({device})"
            try:
                _check_device(target, facts)
                value = _value(target, subject, facts.get("quickstart") or {}, lines)
            except NotMeasured as reason:
                yield Verdict(name, _required(target), "-", f"not measured here: {reason}")
            else:
                met = value <= (target.at_most or math.inf) if target.at_least is None else value >= target.at_least
                yield Verdict(name, _required(target), _shown(target, value), "met" if met else "missed")


def _check_device(target: Target, facts: Mapping[str, Any]) -> None:
    if target.device == "gpu" and not (
        facts.get("gpu") and any(model in facts["device"] for model in ("H100", "H200"))
    ):
        raise NotMeasured("this is no H100 or H200")
    if target.device == "cpu" and (facts.get("gpu") or facts["cores"] != 2):
        raise NotMeasured("these are not two CPU cores")
    if target.bfloat16 and not facts.get("bfloat16"):
        raise NotMeasured("this CPU has no bfloat16 of its own")


def _value(target: Target, subject: str, quickstart: Mapping[str, float], lines: Mapping[str, Line]) -> float:
    if target.quantity in ("quickstart_ratio", "first_step"):
        return _present(quickstart.get(target.quantity), "run --quickstart, for the ratio with --against")
    if target.quantity == "hours":
        hours = costs.hours(costs.TABLES[target.kind], lines)
        return _present(hours, f"not all lines of {target.kind} were measured")
    line = lines.get(subject)
    if line is None or math.isnan(line.median(line.best)):
        raise NotMeasured("this line was not measured")
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
    bound = f"at most {_shown(target, target.at_most)}" if target.at_most is not None else ""
    if target.at_least is not None:
        bound = f"at least {_shown(target, target.at_least)}"
    return f"{bound} (goal {_shown(target, target.goal)})" if target.goal is not None else bound


def _shown(target: Target, value: float) -> str:
    return f"{100 * value:.1f} %" if target.quantity == "share" else f"{value:.2f}"
