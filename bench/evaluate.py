"""The held-out split, once: predictions of a trained classifier and their metrics."""

from __future__ import annotations

import numpy as np
import torch

from bench.data.examples import Examples
from bench.models import Model
from bench.specs import Stage
from bench.train import autocast

BATCH_SIZE = 256


@torch.no_grad()
def evaluate(stage: Stage, model: Model, examples: Examples, device: torch.device) -> dict[str, float]:
    """Accuracy, macro and micro F1 (fractions) and the per-example mean cross-entropy of a split, in eval mode."""
    assert examples.labels is not None  # an evaluation split is labelled
    model.eval()
    order = torch.arange(len(examples))
    if examples.lengths is not None:
        order = torch.from_numpy(np.argsort(examples.lengths, kind="stable"))
    logits = []
    for index in torch.split(order, BATCH_SIZE):
        with autocast(stage, device):
            logits.append(model.logits(examples.inputs(index, device)).double().cpu())
    return metrics(torch.cat(logits), examples.labels[order])


def metrics(logits: torch.Tensor, labels: torch.Tensor) -> dict[str, float]:
    """The metrics of logits (N, C) and labels (N,); a class that occurs neither way is left out of macro F1."""
    from sklearn.metrics import f1_score

    predicted = logits.argmax(dim=1)
    truth, guess = labels.numpy(), predicted.numpy()
    return {
        "accuracy": float((truth == guess).mean()),
        "macro_f1": float(f1_score(truth, guess, average="macro", zero_division=0.0)),
        "micro_f1": float(f1_score(truth, guess, average="micro", zero_division=0.0)),
        "loss": float(torch.nn.functional.cross_entropy(logits, labels)),
    }
