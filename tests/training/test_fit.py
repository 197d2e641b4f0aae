"""What a stage goes on from: only checkpoints that began with today's weights, and whose code the record names."""

import itertools
import json
import math
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from bench.errors import InputError
from bench.interfaces.hooks import Activity, Batch, Context, Loss, State
from bench.interfaces.model import Model
from bench.planning.plan import make_plan
from bench.specs import Stage
from bench.specs.objectives import CrossEntropy
from bench.store import code
from bench.store.files import digest, sha256
from bench.store.states import StageState
from bench.store.store import Store
from bench.training.networks import new_model, refuse_too_large
from bench.training.protocol import Outcome, Settings
from bench.training.worker import run
from tests import tiny_grid

Run = Callable[..., Outcome]


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "runs")


@pytest.fixture
def stage(prepared: Path, tmp_path: Path, store: Store) -> Stage:
    """A fine-tuning whose parent is finished and that was interrupted in the middle."""
    plan = tiny_grid.plan(tmp_path, prepared, ["finetune"])
    stage = next(cell.stage for cell in plan.cells if cell.task == "digits")
    for each in (*stage.parents, stage):
        store.add(each)
    for parent in stage.parents:
        assert run_stage(store, parent, prepared).state == StageState.DONE
    asked = itertools.count()
    outcome = run_stage(store, stage, prepared, lambda: next(asked) >= 2)
    assert outcome.state == StageState.INTERRUPTED
    return stage


def run_stage(store: Store, stage: Stage, data: Path, stop: Callable[[], bool] = lambda: False) -> Outcome:
    return run(store.folder(stage), Settings(data), stop, lambda step, steps, loss: None)


def test_a_stage_goes_on_from_its_checkpoint(stage: Stage, store: Store, prepared: Path) -> None:
    outcome = run_stage(store, stage, prepared)
    assert (outcome.state, outcome.from_step > 0, outcome.warnings) == (StageState.DONE, True, ())
    record = store.record(stage)
    assert record is not None
    assert code.other_code(record["code"]) == []


def test_the_last_step_is_told_whatever_the_number_of_steps(stage: Stage, store: Store, prepared: Path) -> None:
    reported_steps: list[int] = []
    run(store.folder(stage), Settings(prepared), lambda: False, lambda step, steps, loss: reported_steps.append(step))
    assert stage.total_steps % 10 != 0 and reported_steps[-1] == stage.total_steps


def test_a_checkpoint_that_began_with_other_weights_is_passed_over(stage: Stage, store: Store, prepared: Path) -> None:
    (parent,) = stage.parents
    weights, path = store.weights(parent), store.folder(parent) / "record.json"
    save_file({name: 2 * value for name, value in load_file(weights).items()}, weights)
    record = json.loads(path.read_text())
    del record["digest"]
    record["weights"] |= {"sha256": sha256(weights), "bytes": weights.stat().st_size}
    path.write_text(json.dumps({**record, "digest": digest(record)}))
    outcome = run_stage(store, stage, prepared)
    assert (outcome.state, outcome.from_step) == (StageState.DONE, 0)
    assert len(outcome.warnings) == 1


def test_a_checkpoint_of_other_code_is_gone_on_from_and_the_record_says_so(
    stage: Stage, store: Store, prepared: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    today = code.today
    monkeypatch.setattr(code, "today", lambda name: "0" * 16 if name == "AdamW" else today(name))
    outcome = run_stage(store, stage, prepared)
    assert (outcome.state, outcome.from_step > 0) == (StageState.DONE, True)
    assert "AdamW" in outcome.warnings[0]
    record = store.record(stage)
    assert record is not None
    assert record["code"]["AdamW"] == ["0" * 16, today("AdamW")]
    assert code.other_code(record["code"]) == ["AdamW"]


def test_a_network_that_no_memory_can_hold_is_refused_before_it_is_made(
    stage: Stage, store: Store, prepared: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    needed = 4 * 4 * stage.backbone.least_parameters
    for free, state in ((needed - 1, StageState.REFUSED), (needed, StageState.DONE)):
        monkeypatch.setattr("bench.training.networks.free_memory", lambda device, free=free: free)
        outcome = run_stage(store, stage, prepared)
        assert outcome.state == state
        assert ("million parameters" in outcome.reason) == (state == StageState.REFUSED)
    assert store.failure(stage) is None


def test_a_decoder_that_no_memory_can_hold_is_refused_where_it_is_trained(tmp_path: Path, prepared: Path) -> None:
    large = "photos_mae/backbone.decoder_width = 960000"
    stages = tiny_grid.plan(tmp_path, prepared, ["finetune"], large).stages
    source = next(stage for stage in stages if stage.name == "source_pretrain" and stage.data.task == "photographs")
    with pytest.raises(InputError, match="million parameters"):
        refuse_too_large(source, torch.device("cpu"))
    tuned = next(stage for stage in stages if stage.name == "finetune" and stage.data.task == "digits")
    refuse_too_large(tuned, torch.device("cpu"))  # its network has no decoder


@pytest.mark.parametrize("backbone", ["digits", "pydocs"])
def test_the_least_number_of_parameters_is_near_the_true_one(backbone: str, prepared: Path, tmp_path: Path) -> None:
    plan = make_plan(["quickstart.gin"], (), ["finetune"], prepared, Store(tmp_path / "runs"))
    stage = next(cell.stage for cell in plan.cells if cell.task == backbone)
    true = sum(weights.numel() for weights in new_model(stage, torch.float32).encoder.parameters())
    assert 0.8 * true < stage.backbone.least_parameters <= true


@pytest.mark.parametrize(
    ("returned", "words"),
    [
        (torch.zeros(()), "returned Tensor"),
        (Loss(torch.zeros(3, requires_grad=True)), r"shape \(3,\)"),
        (Loss(torch.zeros(())), "without gradient"),
    ],
)
def test_what_an_objective_returns_wrongly_is_named(
    returned: object, words: str, stage: Stage, store: Store, prepared: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(type(stage.objective), "loss", lambda *_: returned)
    outcome = run_stage(store, stage, prepared)
    assert outcome.state == StageState.FAILED
    assert re.search(f"CrossEntropy.loss .*{words}", outcome.reason)


CHANGES: dict[str, Callable[[Batch, Context], object]] = {
    "labels": lambda batch, context: batch.labels.zero_(),  # type: ignore[union-attr]
    "inputs": lambda batch, context: batch.inputs.mul_(0.5),  # type: ignore[union-attr]
    "index": lambda batch, context: batch.index.add_(1),
    "all labels": lambda batch, context: context.training_set.labels.zero_(),  # type: ignore[union-attr]
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_an_objective_that_changes_what_others_read_is_refused(
    change: Callable[[Batch, Context], object],
    stage: Stage,
    store: Store,
    prepared: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The second pass of sharpness-aware minimisation, what the method did, and later epochs read it again."""
    original = CrossEntropy.loss

    def loss(objective: CrossEntropy, model: Model, batch: Batch, state: State, context: Context) -> Loss:
        with torch.no_grad():
            change(batch, context)
        return original(objective, model, batch, state, context)

    monkeypatch.setattr(CrossEntropy, "loss", loss)
    outcome = run_stage(store, stage, prepared)
    assert outcome.state == StageState.FAILED
    assert "CrossEntropy.loss changed in place" in outcome.reason


@pytest.mark.parametrize(("value", "written"), [(0.5, 0.5), (math.nan, None), (math.inf, None)])
def test_a_record_says_what_each_part_did_in_numbers_that_json_has(
    value: float,
    written: float | None,
    stage: Stage,
    store: Store,
    prepared: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(type(stage.objective), "activity", lambda *_: {"Part": Activity(value, "what it did")})
    assert run_stage(store, stage, prepared).state == StageState.DONE
    text = (store.folder(stage) / "record.json").read_text()
    record = json.loads(text, parse_constant=lambda word: pytest.fail(f"{word} is no JSON"))
    assert record["activity"] == {"Part": {"value": written, "meaning": "what it did", "nil": False}}
