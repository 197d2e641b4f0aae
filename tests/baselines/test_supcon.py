"""Supervised contrastive learning: the loss against released code, its three modes, and what is refused."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.nn.functional import normalize

from baselines.supcon import Probe, SupervisedContrastive, supervised_contrastive_loss
from bench import grid
from bench.errors import InputError
from bench.interfaces.hooks import Batch, Clock, Context, Loss, State
from bench.interfaces.model import Model
from bench.models.build import build
from bench.planning.plan import Plan, make_plan
from bench.specs import Stage
from bench.store.store import Store
from bench.training.networks import new_model
from tests.examples import tiny_backbone
from tests.golden_files import cases, compare, tensor
from tests.training.test_loop import FINETUNE, run, start_of, weights_of

CPU = torch.device("cpu")


@pytest.mark.golden
def test_the_loss_and_its_gradient_are_the_released_codes() -> None:
    for case in cases("supcon"):
        hyper = case["hyper"]
        features = tensor(case["inputs"]["features"]).requires_grad_()
        labels = torch.tensor(case["inputs"]["labels"]) if hyper["use_labels"] else None
        temperatures = hyper["temperature"], hyper["base_temperature"]
        loss = supervised_contrastive_loss(features, labels, *temperatures, hyper["contrast_mode"])
        compare("supcon", case, "loss", loss, case["outputs"]["loss"])
        (gradient,) = torch.autograd.grad(loss, features)
        compare("supcon", case, "grad_features", gradient, case["outputs"]["grad_features"])
        same = supervised_contrastive_loss(
            features, labels, temperatures[0], temperatures[0], contrast_mode=hyper["contrast_mode"]
        )
        compare("supcon", case, "one temperature", same, case["outputs"]["loss_without_T_over_base_factor"])


@pytest.mark.parametrize("views", [1, 2])
@pytest.mark.parametrize("mode", ["all", "one"])
def test_a_single_example_gives_zero_and_no_nan(views: int, mode: Any) -> None:
    features = normalize(torch.randn(1, views, 4, generator=torch.Generator().manual_seed(0)), dim=-1).requires_grad_()
    loss = supervised_contrastive_loss(features, torch.tensor([3]), contrast_mode=mode)
    loss.backward()  # type: ignore[no-untyped-call]
    assert loss.item() == pytest.approx(0, abs=1e-5)
    assert features.grad is not None
    assert torch.isfinite(features.grad).all()


# ------------------------------------------------------------------------------------------------ objectives


def begun(objective: Any, model: Model) -> State:
    torch.manual_seed(2)
    state: State = objective.begin(model, None, Context(Clock(), 10, False, CPU, training_set=None))  # type: ignore[arg-type]
    return state


def loss_of(objective: Any, model: Model, state: State, batch: Batch) -> Loss:
    torch.manual_seed(3)
    loss: Loss = objective.loss(model, batch, state, Context(Clock(), 10, False, CPU, training_set=None))  # type: ignore[arg-type]
    return loss


def picture_batch(count: int = 6) -> Batch:
    pictures = torch.randn(3, count, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    return Batch(pictures[0], torch.arange(count), torch.arange(count) % 3, views=(pictures[1], pictures[2]))


def gradients(model: Model) -> dict[str, Tensor | None]:
    return {name: parameter.grad for name, parameter in model.named_parameters()}


def test_in_joint_mode_the_classifier_learns_and_changes_no_feature() -> None:
    """Nor does it change the views' dropout."""
    gradients_of = {}
    for name, objective in {
        "alone": SupervisedContrastive(),
        "joint": SupervisedContrastive() + Probe(),
        "probe": Probe(),
    }.items():
        torch.manual_seed(1)
        model = build(tiny_backbone(), classes=3, dropout=0.3)
        state = begun(objective, model)
        loss_of(objective, model, state, picture_batch()).total.backward()  # type: ignore[no-untyped-call]
        assert model.training and all(module.training for module in model.modules())
        gradients_of[name] = gradients(model)
    for name, gradient in gradients_of["joint"].items():
        if name.startswith("head."):
            assert gradient is not None and gradient.abs().sum() > 0
            assert gradients_of["alone"][name] is None
        else:
            assert gradient is not None and torch.equal(gradient, gradients_of["alone"][name])
            assert gradients_of["probe"][name] is None


def test_a_probe_reads_features_without_dropout() -> None:
    torch.manual_seed(1)
    model = build(tiny_backbone(), classes=3, dropout=0.5)
    losses = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        batch, context = picture_batch(), Context(Clock(), 10, False, CPU, training_set=None)  # type: ignore[arg-type]
        losses.append(Probe().loss(model, batch, State(), context).total)
    assert torch.equal(*losses)


def test_a_probe_leaves_the_encoder_in_the_mode_it_was_in() -> None:
    """Activity is measured in eval mode, and what is measured after a probe must have no dropout either."""
    for training in (True, False):
        model = build(tiny_backbone(), classes=3, dropout=0.5).train(training)
        loss_of(Probe(), model, State(), picture_batch())
        assert {module.training for module in model.modules()} == {training}


@pytest.mark.parametrize(
    ("objective", "trained"),
    [(SupervisedContrastive(), True), (SupervisedContrastive() + Probe(), True), (Probe(), False)],
    ids=["sequential", "joint", "probe"],
)
def test_positions_are_trained_wherever_the_encoder_is(objective: Any, trained: bool, tmp_path: Path) -> None:
    evaluation = FINETUNE.evaluation if "head" in objective.needs else None
    stage = dataclasses.replace(FINETUNE, objective=objective, evaluation=evaluation)
    # As a stage builds its network: with a classifier or not, it reads labels.
    model = new_model(stage, torch.float32)
    assert model.get_parameter("encoder.pos_embed").requires_grad
    start, weights = weights_of(start_of(stage)), run(stage, tmp_path)
    for name in ("encoder.pos_embed", "encoder.norm.weight"):
        assert torch.equal(weights[name], start[name]) != trained


def test_the_projection_follows_its_setting_and_the_models_precision() -> None:
    model = build(tiny_backbone()).double()
    state = begun(SupervisedContrastive(projection=5), model)
    assert state.module is not None
    assert [tuple(p.shape) for p in state.module.parameters()] == [(16, 16), (16,), (5, 16), (5,)]
    batch = picture_batch()
    assert batch.views is not None
    views = batch.views[0].double(), batch.views[1].double()
    loss = loss_of(SupervisedContrastive(projection=5), model, state, dataclasses.replace(batch, views=views))
    assert loss.total.dtype == torch.float64


def test_similarities_keep_their_precision_under_autocast() -> None:
    torch.manual_seed(1)
    model = build(tiny_backbone())
    state = begun(SupervisedContrastive(), model)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        half = loss_of(SupervisedContrastive(), model, state, picture_batch()).total
    assert half.dtype == torch.float32
    full = loss_of(SupervisedContrastive(), model, state, picture_batch()).total
    assert half.item() == pytest.approx(full.item(), rel=0.05)


def test_every_setting_changes_the_loss() -> None:
    torch.manual_seed(1)
    model = build(tiny_backbone())
    objectives = [
        SupervisedContrastive(),
        SupervisedContrastive(temperature=0.1),
        SupervisedContrastive(base_temperature=0.1),
        SupervisedContrastive(contrast_mode="one"),
        SupervisedContrastive(projection=64),
    ]
    losses = {
        loss_of(objective, model, begun(objective, model), picture_batch()).total.item() for objective in objectives
    }
    assert len(losses) == len(objectives)


# ------------------------------------------------------------------------------------------------ in a grid

GRID = """grid.rows = ['supcon', 'joint/supcon', 'probe/supcon']
grid.tasks = ['digits', 'pydocs']
grid.seeds = [0]
joint/supcon.mode = 'joint'
probe/supcon.mode = 'probe'
"""

SMALL = """finetune.steps = 4
finetune.batch_size = 8
finetune.lr = 1e-2
finetune.warmup_steps = 0
finetune.weight_decay = 0.1
supcon_pretrain.steps = 4
supcon_pretrain.batch_size = 8
digits/supcon_pretrain.augmentation = 'none'
data.subset = 60
source_pretrain.steps = 4
source_pretrain.batch_size = 8
"""


def plan_of(folder: Path, text: str, *overrides: str, data: Path | None = None) -> Plan:
    (folder / "g.gin").write_text(text)
    return make_plan([str(folder / "g.gin")], overrides, (), data or folder / "data", Store(folder / "runs"))


def final(plan: Plan, cell: str) -> Stage:
    return next(planned.stage for planned in plan.cells if planned.name == cell)


@pytest.mark.parametrize("task", ["digits/photos_mae", "pydocs/docs_mlm"])
def test_two_modes_share_their_contrastive_stage(task: str, tmp_path: Path) -> None:
    plan = plan_of(tmp_path, GRID)
    sequential, probe = final(plan, f"supcon/{task}/0"), final(plan, f"probe/{task}/0")
    joint = final(plan, f"joint/{task}/0")
    assert isinstance(sequential.init, Stage)
    assert sequential.init == probe.init
    assert sequential.init.init == joint.init == "pretrained"
    assert sequential.init.schedule == joint.schedule
    assert (sequential.objective.needs, probe.objective.needs) == ({"labels", "head"}, {"labels", "head"})
    assert probe.objective == Probe()
    assert joint.objective == SupervisedContrastive() + Probe()


def test_the_contrastive_stage_follows_further_pre_training_unless_told_otherwise(tmp_path: Path) -> None:
    lines = "further_pretrain.batch_size = 16\nsupcon_pretrain.lr = 1e-2\n"
    stage = final(plan_of(tmp_path, GRID + lines), "joint/digits/photos_mae/0")
    assert (stage.schedule.lr, stage.schedule.batch_size, stage.schedule.steps) == (1e-2, 16, 20_000)
    assert stage.schedule.augmentation == "flip"
    text = final(plan_of(tmp_path, GRID + lines), "joint/pydocs/docs_mlm/0")
    assert (text.schedule.epochs, text.schedule.augmentation) == (100, "none")


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("supcon_pretrain.batch_size = 1", "at least 2"),
        ("supcon_pretrain.micro_batches = 2", "micro-batch"),
        ("pydocs/supcon_pretrain.dropout = 0.0", "dropout alone"),
        ("SupervisedContrastive.temperature = 0", "from a millionth"),
        ("SupervisedContrastive.temperature = -1", "from a millionth"),
        ("SupervisedContrastive.base_temperature = 0", "from a millionth"),
        ("SupervisedContrastive.projection = 0", "at least 1"),
        ("supcon.mode = 'both'", "'sequential', 'joint', 'probe'"),
        ("pydocs/supcon_pretrain.augmentation = 'flip'", "only images"),
    ],
)
def test_impossible_settings_are_refused_with_their_line(line: str, reason: str, tmp_path: Path) -> None:
    with pytest.raises(InputError) as caught:
        plan_of(tmp_path, GRID + line)
    assert "g.gin:6" in str(caught.value)
    assert reason in str(caught.value)


def test_all_modes_train_on_images_and_text_and_a_probe_moves_no_encoder(prepared: Path, tmp_path: Path) -> None:
    (tmp_path / "g.gin").write_text(GRID + SMALL)
    folders = ["--store", str(tmp_path / "runs"), "--results", str(tmp_path / "results"), "--data", str(prepared)]
    assert grid.main(["--gin", str(tmp_path / "g.gin"), "--launcher", "inline", *folders]) == 0
    store = Store(tmp_path / "runs")
    plan = make_plan([str(tmp_path / "g.gin")], (), (), prepared, store)
    lines = (tmp_path / "results" / "g" / "records.jsonl").read_text().splitlines()
    assert {json.loads(line)["cell"] for line in lines[1:]} == {planned.name for planned in plan.cells}
    for task in ("digits/photos_mae", "pydocs/docs_mlm"):
        probe, tuned = final(plan, f"probe/{task}/0"), final(plan, f"supcon/{task}/0")
        assert isinstance(probe.init, Stage)
        before, after, moved = (load_file(store.weights(stage)) for stage in (probe.init, probe, tuned))
        source = load_file(store.weights(probe.backbone.weights))  # type: ignore[arg-type]
        encoder = [name for name in after if name.startswith("encoder.")]
        assert len(encoder) > 10
        assert all(torch.equal(after[name], before[name]) for name in encoder)
        assert not all(torch.equal(moved[name], before[name]) for name in encoder)
        assert not all(torch.equal(source[name], before[name]) for name in encoder)
        assert not any(name.startswith(("head.", "decoder.")) for name in before)


def test_a_last_batch_of_one_example_is_survived(prepared: Path, tmp_path: Path) -> None:
    small = SMALL.replace("supcon_pretrain.steps = 4", "supcon_pretrain.epochs = 1").replace(
        "subset = 60", "subset = 25"
    )
    head = "grid.rows = ['supcon']\ngrid.tasks = ['digits', 'pydocs']\ngrid.seeds = [0]\n"
    (tmp_path / "g.gin").write_text(head + small)
    folders = ["--store", str(tmp_path / "runs"), "--results", str(tmp_path / "results"), "--data", str(prepared)]
    assert grid.main(["--gin", str(tmp_path / "g.gin"), "--launcher", "inline", *folders]) == 0
