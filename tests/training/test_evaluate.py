"""Evaluation: the right split, the right labels, eval mode; metrics against hand-made cases."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from bench.data.examples import open_split
from bench.interfaces.examples import Examples
from bench.models.build import build
from bench.planning.plan import make_plan
from bench.store.store import Store
from bench.training.evaluate import evaluate, metrics
from tests.examples import finetuning
from tests.test_grid import SMALL, Workplace

CPU = torch.device("cpu")


class Marked(Examples):
    """Examples that carry their own label as their only input; `lengths` are in no order."""

    def __init__(self, count: int) -> None:
        random = np.random.Generator(np.random.PCG64(1))
        super().__init__(np.arange(count), torch.arange(count) % 10, random.integers(3, 50, size=count))

    def inputs(self, index: Tensor, device: torch.device, flip: Tensor | None = None) -> Tensor:
        assert self.labels is not None
        return self.labels[index]


class Echo(torch.nn.Module):
    """Predicts the label that it is shown, unless it is in training mode."""

    def logits(self, inputs: Tensor) -> Tensor:
        shown = inputs + 1 if self.training else inputs
        return torch.nn.functional.one_hot(shown % 10, 10).float() * 100


def test_predictions_meet_their_own_labels_in_eval_mode() -> None:
    model = Echo().train()
    assert evaluate(finetuning(), model, Marked(600), CPU)["accuracy"] == 1.0  # type: ignore[arg-type]


def test_metrics_of_a_hand_made_case() -> None:
    logits = torch.tensor([[2.0, 0.0, 0.0], [2.0, 0.0, 0.0], [0.0, 2.0, 0.0], [0.0, 2.0, 0.0]]).double()
    found = metrics(logits, torch.tensor([0, 1, 1, 1]))
    assert found["accuracy"] == found["micro_f1"] == 0.75
    # Class 0: precision 1/2, recall 1; class 1: precision 1, recall 2/3; class 2 occurs neither way.
    assert found["macro_f1"] == pytest.approx((2 / 3 + 4 / 5) / 2)
    right, wrong = -np.log(np.e**2 / (np.e**2 + 2)), -np.log(1 / (np.e**2 + 2))
    assert found["loss"] == pytest.approx((3 * right + wrong) / 4)


def test_a_cells_number_is_that_of_its_weights_on_the_test_split(prepared: Path, tmp_path: Path) -> None:
    """Predicts the whole test split again from the stored weights, without the harness's evaluation."""
    place = Workplace(tmp_path, prepared, SMALL)
    assert place.run("--only", "finetune/*/0") == 0
    plan = make_plan([str(place.gin)], (), (), prepared, Store(place.store))
    for cell in plan.cells:
        if (cell.row, cell.seed) != ("finetune", 0):
            continue
        stage = cell.stage
        folder = place.store / stage.folder
        model = build(stage.backbone, classes=stage.data.classes)
        model.load_state_dict(load_file(folder / json.loads((folder / "record.json").read_text())["weights"]["file"]))
        model.eval()
        assert stage.evaluation is not None
        for data, name in ((stage.evaluation, "test"), (stage.data, "train")):
            examples = open_split(data, stage.backbone, prepared)
            assert examples.labels is not None
            with torch.no_grad():
                logits = torch.cat([model.logits(examples.inputs(i[None], CPU)) for i in torch.arange(len(examples))])
            accuracy = float((logits.argmax(1) == examples.labels).double().mean())
            loss = float(torch.nn.functional.cross_entropy(logits, examples.labels))
            record = place.records()[cell.name]
            if name == "test":
                assert record["metrics"]["accuracy"] == pytest.approx(accuracy, abs=0.003)
                assert record["metrics"]["loss"] == pytest.approx(loss, rel=1e-4)
            else:
                assert record["measured"]["train_loss"] == pytest.approx(loss, rel=1e-4)
