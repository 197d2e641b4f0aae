"""The suite's own loop on synthetic examples, and what it computes per step."""

from __future__ import annotations

import contextlib
import dataclasses
import tempfile
from pathlib import Path

import torch
from torch.utils.flop_counter import FlopCounterMode

from baselines.self_distillation import FeatureMatching
from bench import device as devices
from bench.interfaces.examples import Examples
from bench.specs import RANDOM, Data, Execution, Objective, Stage
from bench.specs.objectives import CrossEntropy, MaskedAutoEncoding
from bench.speed import synthetic
from bench.speed.pace import Enough, Pace
from bench.speed.work import CLASSES, COMPILED, OURS, Work
from bench.training.batches import Batches
from bench.training.checkpoint import Checkpoints
from bench.training.loop import Supervision, train
from bench.training.networks import new_model

MANY = 1_000_000
"""More steps than are ever taken: the loop is stopped from outside."""


def stage(work: Work, compile: bool = False) -> Stage:
    """Make the stage that a grid's recipe makes, but from random weights."""
    classes = CLASSES if work.labelled else None
    data = Data("synthetic", "train", work.labelled, "0" * 64, work.examples, classes)
    objective: Objective = CrossEntropy() if work.labelled else MaskedAutoEncoding()
    distilled = work.kind == "self_distill"
    return Stage(
        name=work.kind,
        objective=objective + FeatureMatching() if distilled else objective,
        data=data,
        evaluation=dataclasses.replace(data, split="test") if work.labelled else None,
        backbone=work.backbone,
        schedule=dataclasses.replace(work.schedule, steps=MANY, epochs=None, batch_size=work.batch_size),
        optimizer=work.optimizer,
        constraint=None,
        init=RANDOM,
        teacher=stage(dataclasses.replace(work, kind="further_pretrain")) if distilled else None,
        execution=Execution(precision=work.precision, compile=compile),
        seed=0,
    )


def run(work: Work, pace: Pace, who: str = OURS) -> None:
    """Train until `pace` says that it is enough."""
    trained, device = stage(work, compile=who == COMPILED), devices.resolve(work.device)
    examples = synthetic.examples(work)
    batches = Batches(trained, examples, new_model(trained, torch.float32).to(device), device)
    train_by_turns(trained, batches, pace, examples)


def train_by_turns(stage: Stage, batches: Batches, pace: Pace, teacher_set: Examples | None) -> None:
    """Run the training loop on the model of `batches`, by turns.

    The teacher, where the stage has one, gets random weights.
    """
    device, teacher = batches.device, None
    if stage.teacher is not None:
        teacher = new_model(stage.teacher, torch.float32).to(device)
        teacher.requires_grad_(False).eval()

    def end_step() -> bool:
        pace()
        return False  # it is `Enough` that ends the loop

    with tempfile.TemporaryDirectory() as folder, devices.numerics(stage.execution, device):
        checkpoints = Checkpoints(Path(folder))
        supervision = Supervision(end_step, checkpoints, MANY, lambda step: pace.begin(), lambda step, losses: None)
        with contextlib.suppress(Enough):
            train(stage, batches.model, teacher, batches, supervision, teacher_set)


def flops_per_step(work: Work) -> float:
    """Count the floating-point operations of a step, on average over a unit."""
    totals: list[int] = []

    def next_turn(seconds: float | None) -> int:
        totals.append(counter.get_total_flops())
        return work.unit if seconds is None else 0

    with FlopCounterMode(display=False) as counter:
        run(work, Pace(devices.resolve(work.device), next_turn))
    return (totals[1] - totals[0]) / work.unit
