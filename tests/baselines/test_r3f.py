"""R3F: the released code's numbers, what noise touches, its limits, and what is refused."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from baselines import r3f as module
from baselines.r3f import R3F, draw_noise, symmetric_kl
from bench.errors import InputError, SpecError
from bench.interfaces.hooks import Batch, Clock, Context, Loss, State
from bench.models.build import build
from bench.specs import Objective
from bench.specs.objectives import CrossEntropy
from bench.training.loop import Interrupted
from tests import tiny_grid
from tests.examples import tiny_backbone
from tests.golden_files import cases, compare, tensor
from tests.training.test_loop import FINETUNE, equal, run

NOISED = R3F(eps=0.1)


def context() -> Context:
    return Context(Clock(), 10, False, torch.device("cpu"), training_set=None)  # type: ignore[arg-type]


# ------------------------------------------------------------------------------------------------ golden numbers


@pytest.mark.golden
def test_the_divergence_and_its_gradients_are_the_released_codes() -> None:
    count = 0
    for case in cases("r3f"):
        if "clean_logits" not in case["inputs"]:
            continue
        count += 1
        clean, noised = (tensor(case["inputs"][f"{which}_logits"]).requires_grad_() for which in ("clean", "noised"))
        divergence = symmetric_kl(clean, noised)
        compare("r3f", case, "symmetric_kl", divergence, case["outputs"]["symmetric_kl_mean"])
        for name, gradient in zip(("clean", "noised"), torch.autograd.grad(divergence, (clean, noised)), strict=True):
            compare("r3f", case, f"gradient of {name} logits", gradient, case["outputs"][f"grad_{name}_logits"])
    assert count


class Toy(nn.Module):
    """The golden file's model, as the objective sees a model."""

    def __init__(self, inputs: dict[str, Any]) -> None:
        super().__init__()
        names = ("embedding_table", "W1", "b1", "W2", "b2")
        self.weights = nn.ParameterDict({name: nn.Parameter(tensor(inputs[name])) for name in names})
        self.said: list[Tensor] = []

    def embed(self, tokens: Tensor) -> Tensor:
        vectors: Tensor = self.weights["embedding_table"][tokens]
        return vectors

    def logits(self, tokens: Tensor, embeddings: Tensor | None = None) -> Tensor:
        sentence = (self.embed(tokens) if embeddings is None else embeddings).mean(dim=1)
        hidden = linear(sentence, self.weights["W1"], self.weights["b1"]).tanh()
        self.said.append(linear(hidden, self.weights["W2"], self.weights["b2"]))
        return self.said[-1]


@pytest.mark.golden
def test_the_loss_and_its_gradients_are_the_released_codes(monkeypatch: pytest.MonkeyPatch) -> None:
    count = 0
    for case in cases("r3f"):
        inputs, outputs, hyper = case["inputs"], case["outputs"], case["hyper"]
        if "noise" not in inputs:
            continue
        count += 1
        noise = tensor(inputs["noise"])
        monkeypatch.setattr(module, "draw_noise", lambda embeddings, kind, eps, noise=noise: noise)
        model: Any = Toy(inputs)
        objective = R3F(strength=hyper["r3f_lambda"], eps=hyper["eps"], noise=hyper["noise_type"])
        batch = Batch(torch.tensor(inputs["tokens"]), torch.arange(len(noise)), torch.tensor(inputs["targets"]))
        loss = objective.loss(model, batch, State(), context())
        compare("r3f", case, "clean logits", model.said[0], outputs["clean_logits"])
        compare("r3f", case, "noised logits", model.said[1], outputs["noised_logits"])
        compare("r3f", case, "loss", loss.total, outputs["loss_mean"])
        compare("r3f", case, "cross-entropy", loss.parts["cross_entropy"], outputs["cross_entropy_mean"])
        compare("r3f", case, "symmetric_kl", loss.parts["symmetric_kl"], outputs["symmetric_kl_mean"])
        for i, expected in enumerate(outputs["symmetric_kl_per_example"]):
            compare(
                "r3f", case, f"symmetric_kl of example {i}", symmetric_kl(*(s[i : i + 1] for s in model.said)), expected
            )
        loss.total.backward()  # type: ignore[no-untyped-call]
        assert outputs["grad_of_loss_mean"].keys() == dict(model.weights).keys()
        for name, expected in outputs["grad_of_loss_mean"].items():
            compare("r3f", case, f"gradient of {name}", model.weights[name].grad, expected)
    assert count


# ------------------------------------------------------------------------------------------------ the parts


def test_the_divergence_is_exact_in_half_precision_and_keeps_float64() -> None:
    a, b = torch.randn(2, 5, 4, generator=torch.Generator().manual_seed(0)).bfloat16()
    assert symmetric_kl(a, b).dtype == torch.float32
    assert torch.equal(symmetric_kl(a, b), symmetric_kl(a.float(), b.float()))
    assert symmetric_kl(a.double(), b.double()).dtype == torch.float64
    assert torch.equal(symmetric_kl(a, b), symmetric_kl(b, a))
    assert symmetric_kl(a, a) == 0


def test_tiny_differences_are_not_lost_to_rounding() -> None:
    a = torch.randn(8, 5, generator=torch.Generator().manual_seed(0))
    b = a + 1e-4 * torch.randn(8, 5, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(symmetric_kl(a, b).double(), symmetric_kl(a.double(), b.double()), rtol=1e-2, atol=0.0)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_noise_has_the_spread_it_names(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    embeddings = torch.zeros(100, 200, dtype=dtype)
    normal, uniform = draw_noise(embeddings, "normal", 1e-5), draw_noise(embeddings, "uniform", 1e-5)
    assert normal.dtype == uniform.dtype == torch.promote_types(dtype, torch.float32)
    assert normal.std().item() == pytest.approx(1e-5, rel=0.05)
    assert uniform.abs().max().item() == pytest.approx(1e-5, rel=0.05)
    assert uniform.std().item() == pytest.approx(1e-5 / 3**0.5, rel=0.05)
    assert uniform.min() < 0 < uniform.max()


def gradients(objective: Objective, dropout: float = 0.0, seed: int = 3) -> tuple[Loss, dict[str, Tensor | None]]:
    torch.manual_seed(1)
    model = build(tiny_backbone(), classes=3, dropout=dropout)
    images = torch.randn(6, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    torch.manual_seed(seed)
    loss = objective.loss(model, Batch(images, torch.arange(6), torch.arange(6) % 3), State(), context())
    loss.total.backward()  # type: ignore[no-untyped-call]
    assert all(part.training for part in model.modules())
    return loss, {name: parameter.grad for name, parameter in model.named_parameters()}


def test_the_clean_pass_has_the_dropout_of_plain_fine_tuning() -> None:
    plain, _ = gradients(CrossEntropy(), dropout=0.3)
    for objective in (NOISED, R3F(noise="uniform"), R3F(noise="none")):
        loss, _ = gradients(objective, dropout=0.3)
        assert torch.equal(loss.parts["cross_entropy"], plain.total)
        assert loss.parts["symmetric_kl"] > 1e-4


def test_two_passes_without_noise_differ_in_dropout_alone() -> None:
    assert gradients(R3F(noise="none"))[0].parts["symmetric_kl"] == 0
    assert gradients(NOISED)[0].parts["symmetric_kl"] > 0


@pytest.mark.parametrize(("noise", "reaches"), [("normal", False), ("uniform", False), ("none", True)])
def test_the_noised_pass_teaches_everything_but_the_embeddings(
    noise: Any, reaches: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without noise there is nothing to detach: two ordinary passes."""
    torch.manual_seed(1)
    model = build(tiny_backbone(), classes=3, dropout=0.3)
    images = torch.randn(6, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    outputs: list[Tensor] = []
    original: Callable[..., Tensor] = model.logits

    def recorded(*arguments: Any) -> Tensor:
        outputs.append(original(*arguments))
        return outputs[-1]

    monkeypatch.setattr(model, "logits", recorded)
    batch = Batch(images, torch.arange(6), torch.arange(6) % 3)
    R3F(noise=noise).loss(model, batch, State(), context())
    outputs[1].sum().backward()  # type: ignore[no-untyped-call]
    has_gradient = {name: parameter.grad is not None for name, parameter in model.named_parameters()}
    assert has_gradient.pop("encoder.patch_embed.proj.weight") == reaches
    assert has_gradient.pop("encoder.patch_embed.proj.bias") == reaches
    assert all(has_gradient.values())


# ------------------------------------------------------------------------------------------------ in the loop


@pytest.mark.parametrize("noise", ["normal", "uniform", "none"])
def test_without_strength_it_is_plain_fine_tuning_bit_for_bit(noise: Any, tmp_path: Path) -> None:
    plain = run(FINETUNE, tmp_path / "plain")
    inert = dataclasses.replace(FINETUNE, objective=R3F(strength=0.0, noise=noise))
    assert equal(plain, run(inert, tmp_path / "inert"))
    default = dataclasses.replace(FINETUNE, objective=R3F(noise=noise))
    assert not equal(plain, run(default, tmp_path / "default"))


def test_stopping_at_any_step_and_resuming_gives_the_same_bits(tmp_path: Path) -> None:
    stage = dataclasses.replace(FINETUNE, objective=NOISED)
    whole = run(stage, tmp_path / "whole")
    for step in (1, 4, 6):
        with pytest.raises(Interrupted):
            run(stage, tmp_path / str(step), stop_at=step)
        assert equal(run(stage, tmp_path / str(step)), whole)


@pytest.mark.parametrize(
    ("field", "value"),
    [("strength", -0.1), ("strength", float("inf")), ("eps", -1e-5), ("eps", float("nan")), ("noise", "gaussian")],
)
def test_impossible_values_are_refused(field: str, value: Any) -> None:
    with pytest.raises(SpecError, match=field) as refused:
        R3F(**{field: value})
    assert refused.value.field == field


def test_the_recipe_plans_on_images_and_text(prepared: Path, tmp_path: Path) -> None:
    plan = tiny_grid.plan(tmp_path, prepared, ["finetune", "r3f"], "pydocs/R3F.noise = 'uniform'")
    objectives = {cell.task: cell.stage.objective for cell in plan.cells if cell.row == "r3f"}
    assert objectives == {"digits": R3F(), "pydocs": R3F(noise="uniform")}
    with pytest.raises(InputError, match=r"tiny\.gin:11: .*strength"):
        tiny_grid.plan(tmp_path, prepared, ["r3f"], "R3F.strength = -1")
