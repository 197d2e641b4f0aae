"""Evaluation: the right split, the right labels, eval mode; metrics against hand-made cases."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from bench.data.examples import open_split
from bench.data.metrics import METRICS
from bench.interfaces.examples import Examples
from bench.models.build import build
from bench.planning.plan import make_plan
from bench.store.store import Store
from bench.training.evaluate import metrics
from tests.examples import evaluate, finetuning
from tests.test_grid import SMALL, Workspace

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
    values = metrics(logits, torch.tensor([0, 1, 1, 1]))
    assert values["accuracy"] == values["micro_f1"] == 0.75
    # Class 0: precision 1/2, recall 1; class 1: precision 1, recall 2/3; class 2 occurs neither way.
    assert values["macro_f1"] == pytest.approx((2 / 3 + 4 / 5) / 2)
    right, wrong = -np.log(np.e**2 / (np.e**2 + 2)), -np.log(1 / (np.e**2 + 2))
    assert values["loss"] == pytest.approx((3 * right + wrong) / 4)


def test_metrics_of_two_classes_and_of_each_of_them() -> None:
    # Of 3 positive and 5 negative examples, 2 and 4 are predicted right: tp 2, fn 1, fp 1, tn 4.
    truth = torch.tensor([1, 1, 1, 0, 0, 0, 0, 0])
    logits = torch.tensor([0.9, 0.8, -0.5, 0.7, -0.1, -0.2, -0.3, -0.4]).double()
    values = metrics(torch.stack([torch.zeros(8).double(), logits], dim=1), truth, ("no", "a/b [yes]"))
    assert values["binary_f1[a/b [yes]]"] == pytest.approx(2 * 2 / (2 * 2 + 1 + 1))
    assert values["binary_f1[no]"] == pytest.approx(2 * 4 / (2 * 4 + 1 + 1))
    assert values["balanced_accuracy"] == pytest.approx((2 / 3 + 4 / 5) / 2)
    assert values["mcc"] == pytest.approx((2 * 4 - 1 * 1) / np.sqrt(3 * 3 * 5 * 5))
    # Of the 15 pairs, the 0.9 and 0.8 beat all five negatives, the -0.5 none.
    assert values["auroc"] == pytest.approx(10 / 15)


def test_several_classes_are_averaged_over_those_that_occur() -> None:
    generator = torch.Generator().manual_seed(0)
    logits, truth = torch.randn(40, 4, generator=generator).double(), torch.arange(40) % 3  # class 3 never occurs
    values = metrics(logits, truth, ("a", "b", "c", "d"))
    areas, recalls = [], []
    for label in range(3):
        positive, score = truth == label, logits.softmax(dim=1)[:, label]
        wins = (score[positive][:, None] > score[~positive][None]).double().mean()
        areas.append(float(wins))
        recalls.append(float((logits.argmax(1) == label)[positive].double().mean()))
    assert values["auroc"] == pytest.approx(np.mean(areas))
    assert values["balanced_accuracy"] == pytest.approx(np.mean(recalls))
    assert not any(name.startswith("binary_f1") for name in values)


def test_certain_predictions_are_ranked_and_not_tied() -> None:
    logits = torch.tensor([[0.0, 50.0], [0.0, 40.0], [0.0, 60.0]]).double()  # each has the probability 1.0
    assert metrics(logits, torch.tensor([1, 0, 1]))["auroc"] == 1.0


def test_what_is_not_defined_is_left_out() -> None:
    logits = torch.tensor([[0.0, 1.0], [2.0, 1.0]]).double()
    assert METRICS.keys() - metrics(logits, torch.tensor([1, 1])).keys() == {"auroc", "binary_f1"}
    assert metrics(logits, torch.tensor([1, 1]))["mcc"] == 0.0
    assert "auroc" not in metrics(logits * float("nan"), torch.tensor([0, 1]))


def test_a_cells_number_is_that_of_its_weights_on_the_test_split(prepared: Path, tmp_path: Path) -> None:
    """Predicts the whole test split again from the stored weights, without the harness's evaluation."""
    workspace = Workspace(tmp_path, prepared, SMALL)
    assert workspace.run("--only", "finetune/*/0") == 0
    plan = make_plan([str(workspace.gin)], (), (), prepared, Store(workspace.store))
    for cell in plan.cells:
        if (cell.row, cell.seed) != ("finetune", 0):
            continue
        stage = cell.stage
        folder = workspace.store / stage.folder
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
            record = workspace.records()[cell.name]
            if name == "test":
                assert record["metrics"]["accuracy"] == pytest.approx(accuracy, abs=0.003)
                assert record["metrics"]["loss"] == pytest.approx(loss, rel=1e-4)
            else:
                assert record["measured"]["train_loss"] == pytest.approx(loss, rel=1e-4)
