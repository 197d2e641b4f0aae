"""LP-FT: probing moves the head alone, fine-tuning starts with the probe's head, and no head is dropped in silence."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from baselines.supcon import Probe, SupervisedContrastive
from bench.errors import SpecError
from bench.specs import Data, Stage, walk
from bench.store.store import Store
from bench.training import worker
from bench.training.networks import initial_model, trained_model
from bench.training.protocol import Settings
from tests import tiny_grid
from tests.examples import finetuning
from tests.training.test_loop import FINETUNE, equal, fitted, start_of, weights_of

PROBE = finetuning(name="linear_probe", objective=Probe())
TINY = [
    *(f"photos_mae/backbone.{part}width = 16" for part in ("", "decoder_")),
    *(f"photos_mae/backbone.{part}heads = 2" for part in ("", "decoder_")),
    *(f"photos_mae/backbone.{part}mlp_width = 32" for part in ("", "decoder_")),
    "photos_mae/backbone.depth = 1",
    "data.subset = 32",
    "source_pretrain.batch_size = 8",
]


def test_probing_moves_the_head_alone(tmp_path: Path) -> None:
    """Weight decay neither: what has no gradient is not updated."""
    stage = dataclasses.replace(FINETUNE, objective=Probe())
    start, weights = weights_of(start_of(stage)), weights_of(fitted(stage, tmp_path)[0])
    for name, weight in weights.items():
        assert torch.equal(weight, start[name]) != name.startswith("head.")


def test_fine_tuning_starts_with_the_probes_head_bit_for_bit(prepared: Path, tmp_path: Path) -> None:
    plan = tiny_grid.plan(tmp_path, prepared, ["finetune", "lp_ft"], *TINY, "linear_probe.lr = 1e-2")
    stages = {cell.row: cell.stage for cell in plan.cells if cell.task == "digits"}
    probe = stages["lp_ft"].init
    assert isinstance(probe, Stage) and probe.objective == Probe() and probe.schedule.lr == 1e-2
    assert (probe.init, stages["lp_ft"].head, stages["finetune"].head) == ("pretrained", "carried", None)
    assert dataclasses.replace(stages["lp_ft"], init="pretrained", head=None) == stages["finetune"]
    store = Store(tmp_path / "runs")
    for stage in walk(*stages.values()):
        outcome = worker.run(store.add(stage), Settings(prepared, "cpu"), lambda: False, lambda *progress: None)
        assert outcome.state == "done", outcome
    probed = load_file(store.weights(probe))
    start, plain = (weights_of(initial_model(stages[row], store, prepared)) for row in ("lp_ft", "finetune"))
    assert equal(start, probed)
    for name, weight in plain.items():
        # The probe left the encoder where it was, and made another head than fine-tuning would begin with.
        assert torch.equal(weight, probed[name]) != name.startswith("head.")
    last, alone = (load_file(store.weights(stages[row])) for row in ("lp_ft", "finetune"))
    assert not torch.equal(last["head.weight"], alone["head.weight"])
    assert not torch.equal(last["head.weight"], probed["head.weight"])
    # A fresh head is the one that fine-tuning would begin with.
    fresh = dataclasses.replace(stages["lp_ft"], head="fresh")
    assert equal(weights_of(initial_model(fresh, store, prepared)), plain)
    assert equal(weights_of(trained_model(stages["lp_ft"], store, torch.float32)), last)


# ------------------------------------------------------------------------------------------------ Stage.head

OTHER = Data("other", "train", True, "3" * 64, 50, 10)


@pytest.mark.parametrize(
    "changes",
    [
        {"init": PROBE},  # the stage does not say what becomes of the probe's head
        {"head": "carried"},  # a pre-trained backbone has no head
        {"head": "fresh"},
        {"init": PROBE, "head": "carried", "data": OTHER},  # a head for other classes
        {"init": PROBE, "head": "kept"},
    ],
)
def test_a_head_is_neither_dropped_nor_carried_without_a_word(changes: dict[str, Any]) -> None:
    with pytest.raises(SpecError) as refused:
        finetuning(**changes)
    assert refused.value.field == "head"


def test_where_no_head_is_trained_none_is_spoken_of() -> None:
    contrastive: dict[str, Any] = {"objective": SupervisedContrastive(), "evaluation": None}
    finetuning(init=PROBE, name="supcon_pretrain", **contrastive)  # trains none: that of its start may go
    finetuning(init=finetuning(name="supcon_pretrain", **contrastive))  # starts from none
    with pytest.raises(SpecError) as refused:
        finetuning(init=PROBE, head="carried", name="supcon_pretrain", **contrastive)
    assert refused.value.field == "head"
    finetuning(init=PROBE, head="fresh", data=OTHER, evaluation=dataclasses.replace(OTHER, split="test"))


def test_whether_a_head_is_carried_is_part_of_the_key() -> None:
    assert finetuning(init=PROBE, head="carried").key != finetuning(init=PROBE, head="fresh").key
