"""MARS: the released code's numbers, which tensors it holds, its limits, and what is refused."""

import dataclasses
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from baselines.mars import (
    MarsProjection,
    frobenius_projection,
    gain_projection,
    kernels,
    mars_distance,
    mars_projection,
)
from bench.errors import InputError, SpecError
from bench.interfaces.hooks import Clock, Context
from bench.interfaces.model import Model
from bench.models.build import build
from bench.training.loop import Interrupted
from tests import tiny_grid
from tests.examples import tiny_backbone, tiny_text_backbone
from tests.golden_files import cases, compare, tensor
from tests.training.test_loop import FINETUNE, equal, run

PROJECTIONS = {"constraint_mars": mars_projection, "constraint_frobenius": frobenius_projection}


# ------------------------------------------------------------------------------------------------ golden numbers


@pytest.mark.golden
def test_every_projection_is_the_released_codes() -> None:
    for case in cases("mars_projection"):
        hyper, inputs, outputs = case["hyper"], case["inputs"], case["outputs"]
        radius = hyper["max_distance"]
        if hyper["constraint"] == "batchnorm_gamma":
            projected = gain_projection(
                tensor(inputs["gamma"]),
                tensor(inputs["gamma_init"]),
                radius,
                tensor(inputs["moving_variance"]),
                tensor(inputs["moving_variance_init"]),
                hyper["epsilon"],
            )
            compare("mars_projection", case, "gamma", projected, outputs["projected_gamma"])
            continue
        weight = tensor(inputs["weight"])
        assert hyper["centre"] in ("pretrained", "origin")
        centre = None if hyper["centre"] == "origin" else tensor(inputs["weight_init"])
        project = PROJECTIONS[hyper["constraint"]]
        projected = project(weight, centre, radius)
        compare("mars_projection", case, "weight", projected, outputs["projected_weight"])
        compare("mars_projection", case, "again", project(projected, centre, radius), outputs["projected_weight"])
        for when, values in (("before", weight), ("after", projected)):
            compare("mars_projection", case, when, mars_distance(values, centre), outputs[f"mars_distance_{when}"])
        for row, expected in enumerate(outputs["row_abs_sums_before"]):
            rows = slice(row, row + 1)
            distance = mars_distance(weight[rows], None if centre is None else centre[rows])
            compare("mars_projection", case, f"row {row}", distance, expected)


# ------------------------------------------------------------------------------------------------ the parts


def drawn(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("shape", [(6,), (6, 5), (6, 3, 2, 2)])
@pytest.mark.parametrize("project", [mars_projection, frobenius_projection, gain_projection])
@pytest.mark.parametrize("radius", [math.inf, 1e6])
def test_what_is_inside_keeps_its_bits(project: Any, shape: tuple[int, ...], radius: float) -> None:
    weight, centre = drawn(*shape, seed=0), drawn(*shape, seed=1)
    assert not torch.equal(centre + (weight - centre), weight)
    assert torch.equal(project(weight, centre, radius), weight)


def test_rows_move_independently() -> None:
    centre = drawn(4, 5, seed=0)
    weight = centre.clone()
    weight[1] += 3
    weight[2] += 0.01
    projected = mars_projection(weight, centre, 1.0)
    inside = [0, 2, 3]
    assert torch.equal(projected[inside], weight[inside])
    assert mars_distance(projected, centre).item() == pytest.approx(1.0)
    assert mars_distance(weight, centre).item() == pytest.approx(15.0)


def test_the_distance_is_a_loss() -> None:
    """Weight matching minimises it, from W = U on."""
    weight, centre = drawn(4, 5, seed=0).requires_grad_(), drawn(4, 5, seed=1)
    (gradient,) = torch.autograd.grad(mars_distance(weight, centre), weight)
    assert gradient.abs().sum().item() == pytest.approx(5)
    (at_start,) = torch.autograd.grad(mars_distance(weight, weight.detach().clone()), weight)
    assert torch.equal(at_start, torch.zeros(4, 5))


# ------------------------------------------------------------------------------------------------ which tensors


TEXT = tiny_text_backbone()


def held(constraint: MarsProjection, backbone: Any) -> dict[str, tuple[Tensor, Tensor]]:
    """Name -> (start, end) of every tensor that the constraint moves after all were moved by 1 per entry."""
    torch.manual_seed(0)
    model: Model = build(backbone, classes=3, decoder=True)
    reference = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(1.0)
        far = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
        context = Context(Clock(), 1, False, torch.device("cpu"), training_set=None)  # type: ignore[arg-type]
        constraint.apply(model, reference, constraint.begin(model, reference, context), context)
    return {
        name: (reference[name], parameter.detach())
        for name, parameter in model.named_parameters()
        if not torch.equal(parameter, far[name])
    }


def parts(names: Any) -> set[str]:
    """The names without their layer, for short comparisons."""
    return {".".join(name.split(".")[-2:]) for name in names}


IMAGE_KERNELS = {"proj.weight", "qkv.weight", "fc1.weight", "fc2.weight"}
TEXT_KERNELS = {"query.weight", "key.weight", "value.weight", "dense.weight"}


def test_the_encoders_kernels_are_held_and_nothing_else() -> None:
    images, text = held(MarsProjection(radius=0.5), tiny_backbone()), held(MarsProjection(radius=0.5), TEXT)
    assert "encoder.patch_embed.proj.weight" in images
    assert "encoder.blocks.0.attn.proj.weight" in images
    assert parts(images) == IMAGE_KERNELS
    assert parts(text) == TEXT_KERNELS
    for moved in (images, text):
        assert all(name.startswith("encoder.") for name in moved)
        for start, end in moved.values():
            assert mars_distance(end, start).item() == pytest.approx(0.5, rel=1e-5)


def test_weight_matching_finds_the_same_kernels() -> None:
    for backbone in (tiny_backbone(), TEXT):
        assert set(kernels(build(backbone, classes=3))) == held(MarsProjection(radius=0.5), backbone).keys()


def test_embeddings_and_gains_can_be_held() -> None:
    images = held(MarsProjection(radius=0.5, embeddings=True), tiny_backbone())
    assert parts(images) == IMAGE_KERNELS | {"encoder.cls_token", "encoder.pos_embed"}
    text = held(MarsProjection(radius=0.5, embeddings=True), TEXT)
    tables = {f"{kind}_embeddings.weight" for kind in ("word", "position", "token_type")}
    assert parts(text) == TEXT_KERNELS | tables
    # A row is one position's vector.
    start, end = images["encoder.pos_embed"]
    assert torch.allclose((end - start).abs().sum(-1), torch.tensor(0.5))
    for backbone, norms in ((tiny_backbone(), {"norm.weight", "norm1.weight", "norm2.weight"}), (TEXT, None)):
        gains = held(MarsProjection(radius=0.5, norm_gains=True), backbone)
        names = {name for name, (start, _) in gains.items() if start.ndim == 1}
        assert parts(names) == (norms or {"LayerNorm.weight"})
        for name in names:
            start, end = gains[name]
            assert torch.allclose((end - start).abs(), torch.tensor(0.5))


@pytest.mark.parametrize("backbone", [tiny_backbone(), TEXT], ids=["image", "text"])
def test_the_classifier_has_a_ball_of_its_own_around_the_origin(backbone: Any) -> None:
    moved = held(MarsProjection(radius=math.inf, head_radius=2.0), backbone)
    assert moved
    for name, (_, end) in moved.items():
        assert name.startswith("head.")
        assert name.endswith("weight")
        assert mars_distance(end, None).item() == pytest.approx(2.0, rel=1e-5)


def test_the_frobenius_norm_bounds_whole_tensors() -> None:
    constraint = MarsProjection(radius=0.5, norm="frobenius", embeddings=True, norm_gains=True)
    for start, end in held(constraint, tiny_backbone()).values():
        assert (end - start).norm().item() == pytest.approx(0.5, rel=1e-5)


# ------------------------------------------------------------------------------------------------ in the loop


FAST = dataclasses.replace(FINETUNE, schedule=dataclasses.replace(FINETUNE.schedule, lr=0.1))


@pytest.mark.parametrize("norm", ["mars", "frobenius"])
def test_with_an_infinite_radius_it_is_plain_fine_tuning_bit_for_bit(norm: Any, tmp_path: Path) -> None:
    # So fast that the default radius is reached.
    free = dataclasses.replace(FINETUNE, schedule=dataclasses.replace(FINETUNE.schedule, lr=1.0))
    plain = run(free, tmp_path / "plain")
    wide = MarsProjection(radius=math.inf, head_radius=math.inf, embeddings=True, norm_gains=True, norm=norm)
    assert equal(plain, run(dataclasses.replace(free, constraint=wide), tmp_path / "wide"))
    assert not equal(plain, run(dataclasses.replace(free, constraint=MarsProjection(norm=norm)), tmp_path / "default"))


def test_after_training_every_kernel_is_within_its_ball(tmp_path: Path) -> None:
    torch.manual_seed(1)
    model = build(FAST.backbone, classes=10)
    start = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    free = run(FAST, tmp_path / "free")
    bound = run(dataclasses.replace(FAST, constraint=MarsProjection(radius=0.3)), tmp_path / "bound")
    for name in kernels(model):
        assert mars_distance(free[name], start[name]) > 0.4
        assert mars_distance(bound[name], start[name]) <= 0.3 * (1 + 1e-5)
    assert mars_distance(bound["head.weight"], start["head.weight"]) > 0.4


def test_stopping_at_any_step_and_resuming_gives_the_same_bits(tmp_path: Path) -> None:
    stage = dataclasses.replace(FAST, constraint=MarsProjection(radius=0.3))
    whole = run(stage, tmp_path / "whole")
    for step in (1, 4, 6):
        with pytest.raises(Interrupted):
            run(stage, tmp_path / str(step), stop_at=step)
        assert equal(run(stage, tmp_path / str(step)), whole)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("radius", 0.0),
        ("radius", -1.0),
        ("radius", math.nan),
        ("head_radius", 0.0),
        ("head_radius", math.nan),
        ("norm", "l1"),
    ],
)
def test_impossible_values_are_refused(field: str, value: Any) -> None:
    with pytest.raises(SpecError, match=field) as refused:
        MarsProjection(**{field: value})
    assert refused.value.field == field


def test_the_recipe_plans_on_images_and_text(prepared: Path, tmp_path: Path) -> None:
    plan = tiny_grid.plan(tmp_path, prepared, ["finetune", "mars"], "pydocs/MarsProjection.head_radius = 10")
    constraints = {cell.task: cell.stage.constraint for cell in plan.cells if cell.row == "mars"}
    assert constraints == {"digits": MarsProjection(), "pydocs": MarsProjection(head_radius=10.0)}
    with pytest.raises(InputError, match=r"tiny\.gin:11: .*radius"):
        tiny_grid.plan(tmp_path, prepared, ["mars"], "MarsProjection.radius = 0")
