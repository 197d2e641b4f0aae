"""The networks of a stage: at its start, once trained, and the one its method began with."""

from __future__ import annotations

from pathlib import Path

import torch

from bench.device import CPU, describe, free_memory, seed
from bench.errors import InputError
from bench.interfaces.model import Model
from bench.models.build import build
from bench.models.weights import load_weights
from bench.pretrained import checkpoints
from bench.specs import PRETRAINED, RANDOM, Objective, PublicWeights, Stage, stream
from bench.store.store import Store


def weight_type(stage: Stage) -> torch.dtype:
    """Return the type of weights and inputs. Under bfloat16 only the arithmetic is lower (autocast)."""
    return torch.float64 if stage.execution.precision == "float64" else torch.float32


def parts(objective: Objective) -> list[str]:
    """List the parts of a model that an objective trains. These are what the weights of its stage hold."""
    return ["encoder", *(part for part in ("decoder", "head") if part in objective.needs)]


def new_model(stage: Stage, dtype: torch.dtype) -> Model:
    """Build the stage's network with random weights from its own stream.

    `dtype` is the precision that weights are then loaded in.
    """
    seed(stream(stage.seed, stage.name, "weights"), CPU)
    return build(
        stage.backbone,
        classes=stage.data.classes if "head" in stage.objective.needs else None,
        decoder="decoder" in stage.objective.needs,
        dropout=stage.schedule.dropout,
        labelled="labels" in stage.objective.needs,
    ).to(dtype)


COPIES = 4
"""What training holds of every weight: itself, its gradient, and two moments of the optimiser."""


def least_bytes(stage: Stage) -> int:
    """Compute the memory that training a stage takes at least. Activations come on top."""
    parameters = stage.backbone.least_parameters
    if "decoder" in stage.objective.needs:
        parameters += stage.backbone.least_decoder_parameters
    return COPIES * weight_type(stage).itemsize * parameters


def refuse_too_large(stage: Stage, device: torch.device) -> None:
    """Refuse a network whose training alone takes more memory than there is. Activations come on top."""
    needed, free = least_bytes(stage), free_memory(device)
    if needed > free:
        parameters = needed / COPIES / weight_type(stage).itemsize
        raise InputError(
            f"the backbone {stage.backbone.name} has at least {parameters / 1e6:.0f} million parameters: training "
            f"takes {needed / 2**30:.1f} GiB without activations, and {free / 2**30:.1f} GiB are free on "
            f"{describe(device)}. Choose a smaller network or a device with more memory."
        )


def initial_model(stage: Stage, store: Store, data_root: Path) -> Model:
    """Build the network that the stage starts from.

    It is random, or has the backbone's weights or another stage's encoder, decoder and, where it is carried, head.
    """
    model = new_model(stage, weight_type(stage))
    source = stage.backbone.weights if stage.init == PRETRAINED else stage.init
    loaded_parts = [part for part in parts(stage.objective) if part != "head" or stage.head == "carried"]
    if isinstance(source, Stage):
        load_weights(model, store.weights(source), loaded_parts)
    elif isinstance(source, PublicWeights):
        assert source.checksum is not None  # unprepared stages are never run
        path = checkpoints.weights(stage.backbone.name, data_root, source.checksum)
        loaded_parts = [part for part in loaded_parts if part not in source.fresh]
        load_weights(model, path, loaded_parts, absent=source.fresh, resampling=source.resampling)
    else:
        assert source == RANDOM  # Stage.check refuses to start from what was never trained
    return model


def trained_model(stage: Stage, store: Store, dtype: torch.dtype) -> Model:
    """Load the network of a finished stage, frozen and in eval mode."""
    model = new_model(stage, dtype)
    load_weights(model, store.weights(stage), parts(stage.objective))
    return model.requires_grad_(False).eval()


def first_model(stage: Stage, store: Store, data_root: Path) -> Model:
    """Build θ_init, the network that the method began with.

    Its encoder is the backbone's pre-trained one, or the random one that the method began with; it is frozen and in
    eval mode.
    """
    while isinstance(stage.init, Stage):
        stage = stage.init
    return initial_model(stage, store, data_root).requires_grad_(False).eval()
