"""LoRA: ΔW by projection, what stays frozen, and that the merged network is the adapted one."""

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor

from baselines.lora import LoRA
from bench.errors import SpecError
from bench.interfaces.hooks import Clock, Context, State
from bench.interfaces.model import Model
from bench.models.adapters import LowRank
from bench.models.build import build
from bench.models.weights import load_weights, save_weights
from bench.specs import Backbone, Constraint
from bench.specs.architectures import MaskedAutoEncoder
from bench.training.evaluate import encoder_distance
from bench.training.loop import Interrupted
from tests.baselines.test_freelb import KINDS as BATCHES
from tests.examples import tiny_backbone
from tests.training.test_batches import WORDS
from tests.training.test_loop import FINETUNE, equal, fitted, run, start_of, weights_of

CONTEXT = Context(Clock(), 10, False, torch.device("cpu"), training_set=None)  # type: ignore[arg-type]
BACKBONES: dict[str, Backbone] = {"images": tiny_backbone(depth=2), "text": dataclasses.replace(WORDS, depth=2)}
PROJECTIONS = ("query", "key", "value")


def drawn(backbone: Backbone) -> Model:
    torch.manual_seed(1)
    return build(backbone, classes=3).double()


def rows_of(backbone: Backbone, weights: Mapping[str, Tensor], block: int) -> dict[str, Tensor]:
    """A block's query, key and value matrices, wherever its family keeps them."""
    if backbone.MODALITY == "text":
        prefix = f"encoder.encoder.layer.{block}.attention.self"
        return {part: weights[f"{prefix}.{part}.weight"] for part in PROJECTIONS}
    return dict(zip(PROJECTIONS, weights[f"encoder.blocks.{block}.attn.qkv.weight"].chunk(3), strict=True))


@pytest.mark.parametrize("kind", BACKBONES)
@pytest.mark.parametrize("targets", [("query", "value"), ("key",), PROJECTIONS])
def test_merged_weights_are_w0_plus_alpha_over_r_times_ba(kind: str, targets: tuple[Any, ...]) -> None:
    backbone = BACKBONES[kind]
    constraint = LoRA(rank=3, alpha=6.0, targets=targets)
    model = drawn(backbone)
    start = weights_of(model)
    constraint.inject(model)
    adapters = [module for module in model.modules() if isinstance(module, LowRank)]
    products: list[Tensor] = []
    with torch.no_grad():
        for adapter in adapters:
            for key, up in adapter.up.items():
                assert (up == 0).all()  # ΔW is 0 at first
                up.copy_(torch.randn_like(up))
                assert up.shape == (16, 3) and adapter.down[key].shape == (3, 16)
                products.append(2.0 * up @ adapter.down[key])  # α / r = 6 / 3
    batch = BATCHES[kind][1]
    adapted_logits = model.eval().logits(batch.inputs)
    with torch.no_grad():
        moved = constraint.activity(model, {}, State(), CONTEXT)["LoRA"]
        constraint.finish(model, {}, State(), CONTEXT)
    merged = weights_of(model)
    assert merged.keys() == start.keys()  # plain names
    assert all(parameter.requires_grad for parameter in model.parameters())
    torch.testing.assert_close(model.logits(batch.inputs), adapted_logits, rtol=1e-12, atol=1e-14)
    # Adapters come in the order of the network: block by block, in each query, key, value as far as they are adapted.
    remaining = iter(products)
    for block in range(2):
        before, after = rows_of(backbone, start, block), rows_of(backbone, merged, block)
        for part in PROJECTIONS:
            if part in targets:
                torch.testing.assert_close(after[part], before[part] + next(remaining), rtol=1e-12, atol=1e-14)
            else:
                assert torch.equal(after[part], before[part])
    assert not list(remaining)
    matrices = (".attn.qkv.weight", *(f".attention.self.{part}.weight" for part in PROJECTIONS))
    assert all(torch.equal(merged[name], start[name]) for name in start if not name.endswith(matrices))
    assert moved.value == pytest.approx(math.sqrt(sum(float(p.square().sum()) for p in products)), rel=1e-12)
    # Only adapted entries moved, so the encoder's way is the length of ΔW.
    assert encoder_distance(model, drawn(backbone))["encoder_distance"] == pytest.approx(moved.value, rel=1e-9)


@pytest.mark.group("peft")
@pytest.mark.parametrize("targets", [("query", "value"), PROJECTIONS])
def test_loss_gradients_and_merged_weights_are_those_of_peft(targets: tuple[Any, ...]) -> None:
    from peft import LoraConfig, inject_adapter_in_model
    from peft.tuners.lora import LoraLayer

    ours, theirs, batch = drawn(BACKBONES["text"]).eval(), drawn(BACKBONES["text"]).eval(), BATCHES["text"][1]
    constraint = LoRA(rank=3, alpha=6.0, targets=targets)
    constraint.inject(ours)
    theirs.requires_grad_(False)
    inject_adapter_in_model(LoraConfig(r=3, lora_alpha=6, target_modules=list(targets)), theirs)
    theirs.double().head.requires_grad_(True)
    pairs = []
    for name, layer in theirs.named_modules():
        if isinstance(layer, LoraLayer):
            adapter = ours.get_submodule(f"{name}.parametrizations.weight.0")
            pairs.append((layer.lora_A["default"].weight, adapter.down["0"]))
            pairs.append((layer.lora_B["default"].weight, adapter.up["0"]))
    assert len(pairs) == 2 * 2 * len(targets)
    with torch.no_grad():
        for weight, own in pairs:
            own.copy_(torch.randn_like(own))
            weight.copy_(own)
    counts = [sum(p.numel() for p in model.parameters() if p.requires_grad) for model in (ours, theirs)]
    assert counts[0] == counts[1]
    losses = []
    for model in (ours, theirs):
        losses.append(torch.nn.functional.cross_entropy(model.logits(batch.inputs), batch.labels))
        losses[-1].backward()
    torch.testing.assert_close(*losses, rtol=1e-12, atol=1e-14)
    for weight, own in (*pairs, *zip(theirs.head.parameters(), ours.head.parameters(), strict=True)):
        torch.testing.assert_close(own.grad, weight.grad, rtol=1e-10, atol=1e-14)
    constraint.finish(ours, {}, State(), CONTEXT)
    for name, layer in theirs.named_modules():
        if isinstance(layer, LoraLayer):
            layer.merge()
            merged = ours.get_submodule(name).weight
            torch.testing.assert_close(merged, layer.get_base_layer().weight, rtol=1e-12, atol=1e-14)


TRAINED: list[set[str]] = []


@dataclass(frozen=True)
class NotingLoRA(LoRA):
    """Notes which parameters are trained."""

    def begin(self, model: Model, reference: Mapping[str, Tensor], context: Context) -> State:
        TRAINED.append({name for name, parameter in model.named_parameters() if parameter.requires_grad})
        return super().begin(model, reference, context)


def test_adapters_and_head_are_trained_and_all_else_stays(tmp_path: Path) -> None:
    TRAINED.clear()
    stage = dataclasses.replace(FINETUNE, constraint=NotingLoRA(rank=2))
    model, trained = fitted(stage, tmp_path / "a")
    kept, start = weights_of(model), weights_of(start_of(stage))
    (names,) = TRAINED
    adapters = "encoder.blocks.0.attn.qkv.parametrizations.weight.0"
    assert names == {
        "head.weight",
        "head.bias",
        *(f"{adapters}.{side}.{i}" for side in ("down", "up") for i in (0, 2)),
    }
    for name, weight in kept.items():
        if name.endswith("attn.qkv.weight"):
            query, key, value = (kept[name] - start[name]).chunk(3)
            assert (key == 0).all() and (query != 0).any() and (value != 0).any()
        else:
            assert torch.equal(weight, start[name]) != name.startswith("head.")
    assert not trained.activity["LoRA"].nil


def test_with_alpha_0_the_encoder_stays_and_the_classifier_learns(tmp_path: Path) -> None:
    stage = dataclasses.replace(FINETUNE, constraint=LoRA(alpha=0.0))
    model, trained = fitted(stage, tmp_path)
    start = weights_of(start_of(stage))
    for name, weight in weights_of(model).items():
        assert torch.equal(weight, start[name]) != name.startswith("head.")
    assert trained.activity["LoRA"].nil


def test_a_stop_after_any_step_changes_no_bit(tmp_path: Path) -> None:
    stage = dataclasses.replace(FINETUNE, constraint=LoRA(rank=2))
    whole = run(stage, tmp_path / "whole")
    for step in range(1, 7):
        with pytest.raises(Interrupted):
            run(stage, tmp_path / "parts", stop_at=step)
    assert equal(run(stage, tmp_path / "parts"), whole)


def test_its_weights_file_is_that_of_a_plain_network(tmp_path: Path) -> None:
    """As another stage's start, or as a teacher, it is read without knowing of adapters."""
    model, _ = fitted(dataclasses.replace(FINETUNE, constraint=LoRA()), tmp_path / "runs")
    save_weights(model, tmp_path / "weights.safetensors")
    plain = build(FINETUNE.backbone, classes=10, dropout=0.2)
    load_weights(plain, tmp_path / "weights.safetensors", ["encoder", "head"])
    assert equal(weights_of(plain), weights_of(model))
    images = torch.randn(3, 3, 8, 8)
    assert torch.equal(plain.eval().logits(images), model.eval().logits(images))


@pytest.mark.parametrize(
    ("field", "value"), [("rank", 0), ("alpha", math.inf), ("targets", ()), ("targets", ("query", "query"))]
)
def test_impossible_values_are_refused(field: str, value: Any) -> None:
    with pytest.raises(SpecError) as refused:
        LoRA(**{field: value})
    assert refused.value.field == field


@dataclass(frozen=True)
class Unnamed(MaskedAutoEncoder):
    """A backbone that does not say which matrices are attention's."""

    NAMES_ATTENTION: ClassVar[bool] = False


def test_a_backbone_that_does_not_name_attention_is_refused_with_the_stage() -> None:
    fields = {field.name: getattr(FINETUNE.backbone, field.name) for field in dataclasses.fields(FINETUNE.backbone)}
    with pytest.raises(SpecError, match=r"stage finetune: LoRA .* Unnamed, the backbone tiny") as refused:
        dataclasses.replace(FINETUNE, backbone=Unnamed(**fields), constraint=LoRA())
    assert refused.value.field == "constraint"


@pytest.mark.parametrize("kind", BACKBONES)
def test_a_backbone_that_names_attention_has_it(kind: str) -> None:
    assert BACKBONES[kind].NAMES_ATTENTION
    parts = [part for parts in drawn(BACKBONES[kind]).attention().values() for part in parts]
    assert sorted(parts) == sorted(PROJECTIONS * 2)


def test_it_is_a_constraint_and_works_with_every_objective() -> None:
    assert isinstance(LoRA(), Constraint)
