"""RecAdam: the released code's numbers, exact resume, its limits, and what the plan refuses."""

import dataclasses
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from baselines.recadam import RecAdam, annealing, midpoint
from bench.errors import InputError, SpecError
from bench.interfaces.hooks import ParameterGroup
from bench.models.build import build
from bench.specs import Optimizer, Schedule
from bench.specs.objectives import AdamW
from bench.training.loop import Interrupted
from tests import tiny_grid
from tests.examples import finetuning
from tests.golden_files import cases, compare, tensor
from tests.training.test_loop import FINETUNE, equal, run


def parameters(tensors: list[Tensor]) -> list[nn.Parameter]:
    return [nn.Parameter(values.clone()) for values in tensors]


def group(params: list[nn.Parameter], name: str, weight_decay: float = 0.0) -> ParameterGroup:
    names = [f"{name}.{number}" for number in range(len(params))]
    return {"params": params, "names": names, "weight_decay": weight_decay, "head": name == "head"}


# ------------------------------------------------------------------------------------------------ golden numbers


def spec(hyper: dict[str, Any]) -> RecAdam:
    return RecAdam(
        anneal=hyper["anneal_fun"],
        k=hyper["anneal_k"],
        t0=hyper["anneal_t0"],
        gamma=hyper["pretrain_cof"],
        w=hyper["anneal_w"],
        betas=tuple(hyper["betas"]),
        eps=hyper["eps"],
        correct_bias=hyper["correct_bias"],
    )


@pytest.mark.golden
def test_every_update_is_the_released_codes() -> None:
    for case in cases("recadam"):
        hyper, inputs, outputs = case["hyper"], case["inputs"], case["outputs"]
        params = {
            "backbone": parameters([tensor(values) for values in inputs["backbone_init"]]),
            "head": parameters([tensor(values) for values in inputs["head_init"]]),
        }
        anchors = {f"backbone.{i}": tensor(values) for i, values in enumerate(inputs["backbone_pretrained"])}
        decays = {"backbone": hyper["weight_decay"], "head": hyper["head_weight_decay"]}
        groups = [group(params[part], part, decays[part]) for part in params]
        recadam = spec(hyper)
        optimizer = recadam.build(groups, anchors, hyper["steps"])
        compared = set()
        for step in range(hyper["steps"]):
            rate = inputs["lr_per_step"][step] if "lr_per_step" in inputs else hyper["lr"]
            recadam.prepare(optimizer, step, rate)
            for part in params:
                for i, parameter in enumerate(params[part]):
                    if inputs["gradient_mode"] == "given":
                        parameter.grad = tensor(inputs["gradients_per_step"][step][part][i])
                    else:
                        assert inputs["gradient_mode"] == "quadratic"
                        a, b = tensor(inputs["quadratic_a"][part][i]), tensor(inputs["quadratic_b"][part][i])
                        parameter.grad = a * (parameter.detach() - b)
            optimizer.step()
            expected = outputs["params_after_step"].get(str(step + 1))
            if expected is not None:
                compared.add(str(step + 1))
                for part in params:
                    for parameter, values in zip(params[part], expected[part], strict=True):
                        compare("recadam", case, f"{part} after step {step + 1}", parameter, values)
        assert compared == outputs["params_after_step"].keys()
        assert compared


@pytest.mark.golden
def test_the_weight_of_the_task_is_the_released_codes() -> None:
    for case in cases("recadam"):
        hyper = case["hyper"]
        expected = case["outputs"]["anneal_lambda_per_step"]
        assert len(expected) == hyper["steps"]
        fading = {"k": hyper["anneal_k"], "t0": hyper["anneal_t0"], "w": hyper["anneal_w"]}
        weights = [annealing(hyper["anneal_fun"], step + 1, **fading) for step in range(hyper["steps"])]
        compare("recadam", case, "annealing", tensor(weights), expected)


# ------------------------------------------------------------------------------------------------ limits


def test_the_task_fades_in_and_nothing_overflows() -> None:
    assert annealing("sigmoid", 1, k=1.0, t0=100_000, w=1.0) == 0
    assert annealing("sigmoid", 200_000, k=1.0, t0=100_000, w=0.5) == 0.5
    assert annealing("sigmoid", 250, k=0.5, t0=250, w=1.0) == 0.5
    assert annealing("linear", 500, k=0.0, t0=250, w=0.7) == 0.7
    values = [annealing("sigmoid", step, k=0.1, t0=100, w=1.0) for step in range(1, 300)]
    assert values == sorted(values)


@pytest.mark.parametrize(("steps", "expected"), [(10_000, 250), (1000, 250), (999, 249), (100, 25), (2, 1)])
def test_the_default_midpoint_scales_with_the_step_budget(steps: int, expected: int) -> None:
    assert midpoint(steps) == expected


def test_without_pull_and_at_half_weight_it_is_its_own_adam_at_half_the_rate() -> None:
    start = [torch.randn(4, 3, dtype=torch.float64), torch.randn(3, dtype=torch.float64)]
    gradients = torch.randn(20, 15, dtype=torch.float64)

    def trained(w: float, lr: float, **changes: Any) -> list[nn.Parameter]:
        params = parameters(start)
        settings = {"gamma": 0.0, "anneal": "constant", "weight_decay": 0.0, **changes}
        reference = {f"backbone.{i}": values for i, values in enumerate(start)}
        recadam = RecAdam(w=w, **settings)
        optimizer = recadam.build([group(params, "backbone")], reference, len(gradients))
        for step, gradient in enumerate(gradients):
            recadam.prepare(optimizer, step, lr)
            params[0].grad, params[1].grad = gradient[:12].view(4, 3).clone(), gradient[12:].clone()
            optimizer.step()
        return params

    # Without a weight of the task it is plain Adam, whatever the annealing and the pull.
    for weightless, whole in zip(trained(0.0, 5e-3, gamma=5000.0, anneal="sigmoid"), trained(1.0, 5e-3), strict=True):
        assert torch.equal(weightless, whole)
    for negative, whole in zip(trained(-2.0, 5e-3, gamma=7.0, anneal="linear"), trained(1.0, 5e-3), strict=True):
        assert torch.equal(negative, whole)
    for half, whole in zip(trained(0.5, 1e-2), trained(1.0, 5e-3), strict=True):
        torch.testing.assert_close(half, whole, rtol=1e-12, atol=1e-12)
    for pulled, whole in zip(trained(0.5, 1e-2, gamma=50.0, anneal="sigmoid"), trained(1.0, 5e-3), strict=True):
        assert (pulled - whole).abs().max() > 1e-3


def test_it_is_not_plain_fine_tuning(tmp_path: Path) -> None:
    slow = dataclasses.replace(FINETUNE, schedule=dataclasses.replace(FINETUNE.schedule, lr=1e-4))
    plain = run(slow, tmp_path / "plain")
    assert not equal(plain, run(dataclasses.replace(slow, optimizer=RecAdam()), tmp_path / "recadam"))


def test_a_strong_pull_holds_the_backbone_and_leaves_the_head(tmp_path: Path) -> None:
    torch.manual_seed(1)
    model = build(FINETUNE.backbone, classes=10).requires_grad_(False)
    start = dict(model.named_parameters())

    def moved(optimizer: Optimizer, folder: str) -> dict[str, float]:
        weights = run(dataclasses.replace(FINETUNE, optimizer=optimizer), tmp_path / folder)
        return {name: float((weights[name] - start[name]).norm()) for name in weights}

    free = moved(AdamW(weight_decay=0.0), "free")
    held = moved(RecAdam(gamma=99.0, k=100.0, t0=7, weight_decay=0.0), "held")
    for name in free:
        if name.startswith("head."):
            assert held[name] > 0.3 * free[name]
        else:
            assert 0 < held[name] < 0.05 * free[name]  # λ is 0 until the last step, where it is a half


# ------------------------------------------------------------------------------------------------ checkpoints


def test_stopping_at_any_step_and_resuming_gives_the_same_bits(tmp_path: Path) -> None:
    """Anchors are the stage's start: to anchor at the resumed weights would change what follows."""
    stage = dataclasses.replace(FINETUNE, optimizer=RecAdam(gamma=90.0, t0=3, k=1.0))
    whole = run(stage, tmp_path / "whole")
    for step in range(1, 7):
        with pytest.raises(Interrupted):
            run(stage, tmp_path / str(step), stop_at=step)
        assert equal(run(stage, tmp_path / str(step)), whole), f"interrupted after step {step}"


def test_the_state_survives_a_round_trip_through_a_file(tmp_path: Path) -> None:
    start = [torch.randn(3, 2, dtype=torch.float64)]
    optimizers, everything = [], []
    for _ in range(2):
        params = parameters(start)
        optimizers.append(RecAdam(t0=2).build([group(params, "backbone")], {"backbone.0": start[0] + 1}, 4))
        everything.append(params[0])

    def step(i: int, number: int) -> None:
        RecAdam(t0=2).prepare(optimizers[i], number, 1e-4)
        everything[i].grad = everything[i].detach() ** 2
        optimizers[i].step()

    step(0, 0)
    step(0, 1)
    torch.save(optimizers[0].state_dict(), tmp_path / "state.pt")
    optimizers[1].load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    with torch.no_grad():
        everything[1].copy_(everything[0])
    step(0, 2)
    step(1, 2)
    assert torch.equal(everything[0], everything[1])
    assert not torch.equal(everything[0], start[0])


# ------------------------------------------------------------------------------------------------ refusals


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("w", math.nan),
        ("gamma", -1.0),
        ("gamma", math.inf),
        ("k", -0.1),
        ("t0", -1),
        ("betas", (0.9, 1.0)),
        ("eps", 0.0),
        ("weight_decay", -0.1),
        ("anneal", "cosine"),
    ],
)
def test_impossible_values_are_refused(field: str, value: Any) -> None:
    with pytest.raises(SpecError, match=field) as refused:
        RecAdam(**{field: value})
    assert refused.value.field == field


def test_a_linear_anneal_from_step_0_is_refused() -> None:
    with pytest.raises(SpecError, match="t0"):
        RecAdam(anneal="linear", t0=0)
    assert RecAdam(t0=0).t0 == 0


def test_a_pull_that_diverges_is_refused_and_one_below_is_not() -> None:
    schedule = Schedule(steps=10, lr=4e-4)
    for optimizer in (RecAdam(), RecAdam(gamma=10_000.0, w=0.5), RecAdam(anneal="linear", t0=3)):
        with pytest.raises(SpecError, match=r"= 2 must be below 2"):
            finetuning(schedule=schedule, optimizer=optimizer)
    finetuning(schedule=schedule, optimizer=RecAdam(gamma=4999.0))
    finetuning(schedule=schedule, optimizer=RecAdam(anneal="constant"))  # pulls nowhere


def test_it_diverges_where_it_is_refused_and_not_below() -> None:
    def distance(product: float) -> float:
        params, rate = parameters([torch.ones(1, dtype=torch.float64)]), 1e-3
        recadam = RecAdam(t0=1000, gamma=product / rate)
        anchors = {"backbone.0": torch.zeros(1, dtype=torch.float64)}
        optimizer = recadam.build([group(params, "backbone")], anchors, 1000)
        for step in range(100):
            recadam.prepare(optimizer, step, rate)
            params[0].grad = torch.zeros_like(params[0])
            optimizer.step()
        return float(params[0].detach().abs())

    assert distance(2.1) > 100
    assert distance(1.9) < 0.01


def test_a_midpoint_beyond_the_steps_is_refused() -> None:
    with pytest.raises(SpecError, match="at most the 10 steps") as refused:
        finetuning(optimizer=RecAdam(t0=11))
    assert refused.value.field == "t0"
    finetuning(optimizer=RecAdam(t0=10))
    with pytest.raises(SpecError, match="at most the 4 steps"):  # 50 examples in batches of 32
        finetuning(optimizer=RecAdam(t0=5), schedule=Schedule(epochs=2))


# ------------------------------------------------------------------------------------------------ the recipe


def test_the_recipe_plans_on_images_and_text(prepared: Path, tmp_path: Path) -> None:
    plan = tiny_grid.plan(
        tmp_path,
        prepared,
        ["finetune", "recadam"],
        "finetune.weight_decay = 0.2",
        "finetune.eps = 1e-7",
        "pydocs/RecAdam.eps = 1e-6",
    )
    optimizers = {cell.task: cell.stage.optimizer for cell in plan.cells if cell.row == "recadam"}
    assert optimizers == {"digits": RecAdam(weight_decay=0.2, eps=1e-7), "pydocs": RecAdam(weight_decay=0.2, eps=1e-6)}
    assert len({cell.stage.key for cell in plan.cells}) == 4


@pytest.mark.parametrize(
    ("binding", "says"),
    [
        ("RecAdam.gamma = 20000", r"tiny\.gin:11: .*= 2 must be below 2"),
        ("finetune.lr = 4e-4", r"tiny\.gin:11: .*= 2 must be below 2"),
        ("RecAdam.t0 = 5", r"tiny\.gin:11: .*at most the 4 steps"),
        ("RecAdam.anneal = 'cosine'", r"tiny\.gin:11: .*'sigmoid', 'linear', 'constant'"),
    ],
)
def test_the_plan_refuses_with_the_line(binding: str, says: str, prepared: Path, tmp_path: Path) -> None:
    rates = [] if "lr" in binding else ["finetune.lr = 1e-4"]
    with pytest.raises(InputError, match=says):
        tiny_grid.plan(tmp_path, prepared, ["recadam"], binding, *rates)


@pytest.mark.parametrize(("t0", "warned"), [(1, True), (2, True), (3, False), (None, True)])
def test_a_midpoint_within_the_warm_up_is_a_warning(t0: int | None, warned: bool) -> None:
    """Of 7 steps 2 warm up; the default midpoint is a quarter of them, so step 1."""
    schedule = dataclasses.replace(FINETUNE.schedule, steps=7, epochs=None, warmup_steps=2, warmup_fraction=None)
    stage = dataclasses.replace(FINETUNE, schedule=schedule, optimizer=RecAdam(t0=t0, gamma=1.0))
    lines = stage.optimizer.warnings(stage)
    assert [f"t0 = {t0 or 1} lies within the 2 steps" in line for line in lines] == [True] * warned
