"""What is measured of a trained model: metrics of a split, and how far its encoder went from the start."""

from __future__ import annotations

import numpy as np
import torch

from bench.device import synchronize
from bench.interfaces.examples import Examples
from bench.interfaces.model import Model
from bench.specs import Stage
from bench.training.loop import autocast

BATCH_SIZE = 256
MOST_AHEAD = 32
"""How many batches may be on their way to a GPU: each takes memory on the host until it is there."""


@torch.no_grad()
def evaluate(stage: Stage, model: Model, examples: Examples, device: torch.device) -> dict[str, float]:
    """Measure the metrics of a split in eval mode.

    They are accuracy, macro and micro F1 (fractions) and the per-example mean cross-entropy. Waits for a GPU every
    `MOST_AHEAD` batches, not for every batch.
    """
    assert examples.labels is not None  # an evaluation split is labelled
    model.eval()
    # Texts go by length, so that a batch holds little padding. Labels are put in the same order at the end, and no
    # metric depends on it.
    order = torch.arange(len(examples))
    if examples.lengths is not None:
        order = torch.from_numpy(np.argsort(examples.lengths, kind="stable"))
    # Logits stay on the device until all batches are asked for: to read those of each batch would wait for it. Example:
    # of 100 batches, the host waits for the device before numbers 0, 32, 64 and 96.
    logits = []
    for number, index in enumerate(torch.split(order, BATCH_SIZE)):
        if number % MOST_AHEAD == 0:
            synchronize(device)
        with autocast(stage, device):
            logits.append(model.logits(examples.inputs(index, device)))
    return metrics(torch.cat(logits).double().cpu(), examples.labels[order])


def metrics(logits: torch.Tensor, labels: torch.Tensor) -> dict[str, float]:
    """Compute the metrics of logits (N, C) and labels (N,).

    A class that is neither a label nor predicted is left out of macro F1.
    """
    from sklearn.metrics import f1_score

    predicted = logits.argmax(dim=1)
    truth, guess = labels.numpy(), predicted.numpy()
    return {
        "accuracy": float((truth == guess).mean()),
        "macro_f1": float(f1_score(truth, guess, average="macro", zero_division=0.0)),
        "micro_f1": float(f1_score(truth, guess, average="micro", zero_division=0.0)),
        "loss": float(torch.nn.functional.cross_entropy(logits, labels)),
    }


def encoder_distance(model: Model, start: Model) -> dict[str, float]:
    """Measure how far the encoder moved from its start.

    This is ‖θ − θ_init‖₂ over every encoder tensor (Lee et al. 2023, Figure 5b), and the same without position
    embeddings: the paper names no parameter list, hence both. Head and decoder are left out.
    """
    # Example: tensors that moved by 3 and, as positions, by 4 are at a distance of sqrt(9 + 16) = 5, without positions
    # of 3. In float64 and summed on the host: many small squares are added up.
    roles = model.roles()
    before = dict(start.named_parameters())
    squares = {
        name: float((parameter.detach().double() - before[name].detach().to(parameter.device).double()).square().sum())
        for name, parameter in model.named_parameters()
        if name.startswith("encoder.")
    }
    without = sum(square for name, square in squares.items() if roles[name] != "position")
    return {"encoder_distance": sum(squares.values()) ** 0.5, "encoder_distance_without_positions": without**0.5}
