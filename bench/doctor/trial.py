"""A few steps of a tiny stage: the shortest answer to whether a device can train. `bench.doctor` asks it."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import torch

from bench.data.examples import ImageExamples
from bench.device import numerics
from bench.models.build import build
from bench.specs import RANDOM, Data, Execution, Schedule, Stage
from bench.specs.architectures import MaskedAutoEncoder
from bench.specs.objectives import AdamW, CrossEntropy
from bench.training.batches import Batches
from bench.training.checkpoint import Checkpoints
from bench.training.loop import Supervision, train

STEPS = 5
"""Enough for a GPU to record a step and repeat it."""


def train_briefly(device: torch.device) -> list[float]:
    """Train a tiny network on made-up images.

    Returns the loss of each step, and raises whatever stands in the way.
    """
    backbone = MaskedAutoEncoder(
        name="tiny", weights=None, image_size=8, patch_size=4, width=16, depth=1, heads=2, mlp_width=32
    )
    data = Data("noise", "train", True, "0" * 64, 16, 2)
    stage = Stage(
        name="trial",
        objective=CrossEntropy(),
        data=data,
        evaluation=data,
        backbone=backbone,
        schedule=Schedule(steps=STEPS, batch_size=8),
        optimizer=AdamW(),
        constraint=None,
        init=RANDOM,
        teacher=None,
        execution=Execution(),
        seed=0,
    )
    pixels = np.random.default_rng(0).integers(0, 256, (16, 3, 8, 8), dtype=np.uint8)
    examples = ImageExamples(np.arange(16), torch.arange(16) % 2, pixels)
    losses: list[float] = []
    with tempfile.TemporaryDirectory() as folder, numerics(stage.execution, device):
        supervision = Supervision(
            stop=lambda: False,
            checkpoints=Checkpoints(Path(folder)),
            checkpoint_steps=STEPS,
            started=lambda step: None,
            progress=lambda step, values: losses.append(values["loss"]),
        )
        torch.manual_seed(0)
        model = build(backbone, classes=data.classes).to(device)
        train(stage, model, None, Batches(stage, examples, model, device), supervision)
    return losses
