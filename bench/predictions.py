"""Compute metrics from published predictions again: `python -m bench.predictions RESULTS/NAME/records.jsonl`.

They are compared with those of the records. A grid publishes predictions where it sets `grid.publish_predictions` to
'float32' or 'float16'.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from bench import cli
from bench.data.metrics import in_split
from bench.errors import InputError
from bench.tables.predictions import Predictions, predictions_path, read_predictions
from bench.tables.rebuild import refuse_missing
from bench.tables.records import Record, read_file, same


def main(arguments: Sequence[str] | None = None) -> int:
    """Compare the metrics of predictions with those of records; return the exit status.

    It is 0 where each cell has predictions and all metrics agree to the last bit, else 1.
    """
    parser = cli.plain_parser("predictions", __doc__)
    parser.add_argument("records", type=Path, metavar="FILE", help="records.jsonl of a grid that published predictions")
    path = parser.parse_args(arguments).records
    refuse_missing([path])
    lines = [line for record in read_file(path).cells.values() for line in _disagreements(record, path)]
    print("\n".join(lines or ["all metrics come out of the predictions again"]))
    return 1 if lines else 0


def _disagreements(record: Record, records_file: Path) -> Iterator[str]:
    """Say which metrics of a cell its predictions do not lead to."""
    name, cell = records_file.parent.name, str(record["cell"])
    path = predictions_path(records_file.parents[1], name, cell, record["key"])
    if not path.is_file():
        yield f"{cell}: no predictions at {path}"
        return
    predictions = read_predictions(path)
    if (predictions.key, predictions.cell) != (record["key"], cell):
        raise InputError(f"{path} holds the predictions of {predictions.cell}, another cell or key. Move it away.")
    for metric, value in recomputed(predictions).items():
        recorded = record["metrics"].get(metric)
        if not same(value, recorded):
            yield f"{cell}: {metric} is {recorded} in the records, {value} by the predictions"


def recomputed(predictions: Predictions) -> Mapping[str, float]:
    """Compute the metrics of predictions by their entries in a record, to the last bit.

    AUROC needs the order of the logits and is left out where these were rounded.
    """
    import torch
    from torch.nn.functional import nll_loss, one_hot

    from bench.training.evaluate import area_under_curve, metrics

    tensors = predictions.tensors
    labels, logits = tensors["labels"], tensors["logits"]
    # Metrics that depend on the predicted classes alone are those of any logits with the same maximum. Example: the
    # class 2 of 3 becomes the logits (0, 0, 1).
    of_classes = one_hot(tensors["predicted"], logits.shape[1]).double()
    values = metrics(of_classes, labels, predictions.class_names)
    # The mean of the losses is added up as cross-entropy adds it up: of each example there is the one class 0, whose
    # log-probability is minus its loss.
    values["loss"] = float(nll_loss(-tensors["loss"].unsqueeze(1), torch.zeros_like(labels)))
    if values.pop("auroc", None) is not None and predictions.exact_logits and bool(logits.isfinite().all()):
        values["auroc"] = area_under_curve(logits.double(), labels)
    return {in_split(name, predictions.split): value for name, value in values.items()}


if __name__ == "__main__":
    sys.exit(cli.reporting_errors(main))
