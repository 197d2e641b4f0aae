"""What is measured of a trained model: metrics of a split, and how far its encoder went from the start."""

from __future__ import annotations

import time
from collections.abc import Sequence

import numpy as np
import torch

from bench.data.examples import by_length
from bench.data.metrics import entry_name
from bench.device import synchronize
from bench.interfaces.examples import Examples
from bench.interfaces.model import Inputs, Model
from bench.specs import Stage
from bench.training.batches import in_parts
from bench.training.loop import autocast

BATCH_SIZE = 256
TIMED_EXAMPLES = 256
MOST_AHEAD = 32
"""How many batches may be on their way to a GPU: each takes memory on the host until it is there."""


@torch.no_grad()
def predict(stage: Stage, model: Model, examples: Examples, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the logits (N, C) of a split in eval mode, with its labels (N,), in the split's order.

    Waits for a GPU every `MOST_AHEAD` batches, not for every batch.
    """
    assert examples.labels is not None  # an evaluation split is labelled
    model.eval()
    order = _by_length(examples)
    # Logits stay on the device until all batches are asked for: to read those of each batch would wait for it. Example:
    # of 100 batches, the host waits for the device before numbers 0, 32, 64 and 96.
    logits = []
    for number, index in enumerate(torch.split(order, BATCH_SIZE)):
        if number % MOST_AHEAD == 0:
            synchronize(device)
        with autocast(stage, device):
            logits.append(model.logits(_inputs(stage, examples, index, device)))
    return torch.cat(logits).double().cpu()[torch.argsort(order)], examples.labels


@torch.no_grad()
def seconds_per_example(stage: Stage, model: Model, examples: Examples, device: torch.device) -> float:
    """Time what `predict` does, on a few examples of all lengths."""
    model.eval()
    # Of 3,200 examples every 12th is taken, in batches of 64. The first batch allocates memory, so it comes twice.
    order = _by_length(examples)
    sample = order[:: max(1, len(order) // TIMED_EXAMPLES)]
    batches = torch.split(sample, TIMED_EXAMPLES // 4)
    times = []
    for index in (batches[0], *batches):
        with autocast(stage, device):
            model.logits(_inputs(stage, examples, index, device))
        synchronize(device)
        times.append(time.perf_counter())
    return (times[-1] - times[0]) / len(sample)


def _by_length(examples: Examples) -> torch.Tensor:
    """Order examples so that a batch of texts holds little padding."""
    if examples.lengths is None:
        return torch.arange(len(examples))
    return torch.from_numpy(np.argsort(examples.lengths, kind="stable"))


def _inputs(stage: Stage, examples: Examples, index: torch.Tensor, device: torch.device) -> Inputs:
    """Read examples onto the device. Texts come in parts of similar lengths where they do in training."""
    inputs = examples.inputs(index, device)
    if isinstance(inputs, dict) and in_parts(stage, device):
        return {**inputs, "parts": by_length(inputs["attention_mask"])}
    return inputs


def metrics(logits: torch.Tensor, labels: torch.Tensor, class_names: Sequence[str] = ()) -> dict[str, float]:
    """Compute the metrics of logits (N, C) and labels (N,) by their entries in a record.

    They are fractions, but for the mean cross-entropy. What is not defined is left out: AUROC where only one class
    occurs or a logit is not finite, and the F1 of one class where there are not two classes with names.
    """
    from sklearn.metrics import f1_score, matthews_corrcoef, recall_score

    truth, guess = labels.numpy(), logits.argmax(dim=1).numpy()
    occurring = np.unique(truth)
    # A class that is neither a label nor predicted is left out of macro F1, one that is no label out of the mean of the
    # recalls. Matthews' correlation is 0, by convention, where only one class is predicted.
    values = {
        "accuracy": float((truth == guess).mean()),
        "balanced_accuracy": float(recall_score(truth, guess, labels=occurring, average="macro", zero_division=0.0)),
        "macro_f1": float(f1_score(truth, guess, average="macro", zero_division=0.0)),
        "micro_f1": float(f1_score(truth, guess, average="micro", zero_division=0.0)),
        "mcc": float(matthews_corrcoef(truth, guess)) if len(np.union1d(truth, guess)) > 1 else 0.0,
        "loss": float(torch.nn.functional.cross_entropy(logits, labels)),
    }
    if len(class_names) == 2:
        # Of both classes, so that which one is the positive one can be said, or corrected, when there are records.
        for number, name in enumerate(class_names):
            f1 = f1_score(truth == number, guess == number, zero_division=0.0)
            values[entry_name("binary_f1", name)] = float(f1)
    if len(occurring) > 1 and bool(logits.isfinite().all()):
        values["auroc"] = area_under_curve(logits, labels)
    return values


def area_under_curve(logits: torch.Tensor, labels: torch.Tensor) -> float:
    """Return the mean over the classes that occur of their AUROC against all others.

    Of two classes it is the usual one. At least two must occur.
    """
    from sklearn.metrics import roc_auc_score

    # A class is ranked by the log-odds of its probability, log p − log(1 − p). They rank as p does, but do not round to
    # ties where p is all but 1. Example: the logits (40, 0) and (50, 0) both have p = 1.0 in float64, and the log-odds
    # 40 and 50.
    areas = []
    for number in np.unique(labels.numpy()):
        others = torch.cat([logits[:, :number], logits[:, number + 1 :]], dim=1)
        odds = logits[:, number] - others.logsumexp(dim=1)
        areas.append(roc_auc_score((labels == number).numpy(), odds.numpy()))
    return float(np.mean(areas))


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
