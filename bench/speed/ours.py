"""The suite's own loop on synthetic examples, and what it computes per step."""

from __future__ import annotations

import contextlib
import dataclasses
import tempfile
from pathlib import Path

import torch
from torch.utils.flop_counter import FlopCounterMode

from baselines import finetune, tapt
from baselines.self_distillation import FeatureMatching
from bench import device as devices
from bench.interfaces.examples import Examples
from bench.specs import RANDOM, Data, Execution, Objective, Stage
from bench.specs.objectives import AdamW, CrossEntropy, MaskedAutoEncoding
from bench.speed import synthetic
from bench.speed.pace import Enough, Pace
from bench.speed.work import CLASSES, Work
from bench.training.batches import Batches
from bench.training.checkpoint import Checkpoints
from bench.training.loop import Supervision, train
from bench.training.networks import new_model

MANY = 1_000_000
"""More steps than are ever taken: the loop is stopped from outside."""


def stage(work: Work, compile: bool = False) -> Stage:
    """Make the stage as a grid's recipe makes it, with the papers' schedule, from random weights."""
    labelled = work.kind == "finetune"
    data = Data("synthetic", "train", labelled, "0" * 64, work.examples, CLASSES if labelled else None)
    schedules = finetune.SCHEDULES if labelled else tapt.SCHEDULES
    objective: Objective = CrossEntropy() if labelled else MaskedAutoEncoding()
    distilled = work.kind == "self_distill"
    return Stage(
        name=work.kind,
        objective=objective + FeatureMatching() if distilled else objective,
        data=data,
        evaluation=dataclasses.replace(data, split="test") if labelled else None,
        backbone=work.backbone,
        schedule=dataclasses.replace(schedules[work.modality], steps=MANY, epochs=None, batch_size=work.batch_size),
        optimizer=AdamW() if labelled else tapt.OPTIMIZERS[work.modality],
        constraint=None,
        init=RANDOM,
        teacher=stage(dataclasses.replace(work, kind="further_pretrain")) if distilled else None,
        execution=Execution(precision=work.precision, compile=compile),
        seed=0,
    )


def run(work: Work, pace: Pace, compile: bool = False) -> None:
    """Train until `pace` says that it is enough."""
    made, device = stage(work, compile), devices.resolve(work.device)
    examples = synthetic.examples(work, made.data.labelled)
    batches = Batches(made, examples, new_model(made, torch.float32).to(device), device)
    train_by_turns(made, batches, pace, examples)


def train_by_turns(stage: Stage, batches: Batches, pace: Pace, teacher_set: Examples | None) -> None:
    """Run the training loop on the model of `batches`, by turns; a teacher has random weights."""
    device = batches.device
    teacher = None if stage.teacher is None else new_model(stage.teacher, torch.float32).to(device)
    if teacher is not None:
        teacher.requires_grad_(False).eval()

    def stepped() -> bool:
        pace()
        return False

    with tempfile.TemporaryDirectory() as folder, devices.numerics(stage.execution, device):
        supervision = Supervision(
            stop=stepped,
            checkpoints=Checkpoints(Path(folder)),
            checkpoint_steps=MANY,
            started=lambda step: pace.begin(),
            progress=lambda step, losses: None,
        )
        with contextlib.suppress(Enough):
            train(stage, batches.model, teacher, batches, supervision, teacher_set)


def flops_per_step(work: Work) -> float:
    """Count the floating-point operations of a step, on average over the steps of a unit."""
    totals: list[int] = []

    def turns(seconds: float | None) -> int:
        totals.append(counter.get_total_flops())
        return work.unit if seconds is None else 0

    with FlopCounterMode(display=False) as counter:
        run(work, Pace(devices.resolve(work.device), turns))
    return (totals[1] - totals[0]) / work.unit
