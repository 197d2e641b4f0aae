"""Losses, learning rates and weight-decay groups against numbers that official code computed."""

import math
import re
from typing import Any

import pytest
import torch
from torch import Tensor

from baselines.self_distillation import feature_distance
from bench.interfaces.hooks import State
from bench.models.build import build
from bench.models.image import mask_from_noise, patch_targets, patchify, reconstruction_loss, sincos_positions
from bench.models.text import NOT_SELECTED, masked_token_loss
from bench.pretrained.vit_mae_names import target_of
from bench.specs import Data, Schedule, Stage
from bench.specs.architectures import MaskedAutoEncoder
from bench.specs.objectives import AdamW
from bench.training.loop import learning_rate, linear_rate, parameter_groups
from tests.examples import finetuning, pretraining
from tests.golden_files import cases, compare, tensor

Case = dict[str, Any]


def gradient(loss: Tensor, of: Tensor) -> Tensor:
    (grad,) = torch.autograd.grad(loss, of)
    return grad


# ------------------------------------------------------------------------------------------------ masked auto-encoding


def check_positions(case: Case) -> None:
    hyper = case["hyper"]
    table = sincos_positions(hyper["embed_dim"], hyper["grid_size"], hyper["cls_token"])
    expected = case["outputs"]["sincos_position_embedding"]
    compare("mae_loss", case, "sincos_position_embedding", table, expected)


def check_masking(case: Case, removed: Tensor) -> Tensor:
    """Compare what the noise removes, where noise was recorded; returns which patches are removed."""
    if "masking_noise" not in case["inputs"]:
        return removed
    outputs = case["outputs"]
    mask = mask_from_noise(tensor(case["inputs"]["masking_noise"]), case["hyper"]["mask_ratio"])
    assert mask.kept.tolist() == outputs["kept_patch_index"], case["name"]
    assert mask.kept.shape[1] == outputs["num_kept"], case["name"]
    positions = torch.tensor(outputs["ids_restore"]).gather(1, mask.kept)  # the decoder puts each kept patch back
    assert positions.tolist() == [list(range(outputs["num_kept"]))] * len(positions), case["name"]
    compare("mae_loss", case, "mask", mask.removed, outputs["mask"])
    return mask.removed


def check_reconstruction(case: Case) -> None:
    hyper, inputs, outputs = case["hyper"], case["inputs"], case["outputs"]
    images, predictions = tensor(inputs["images"]), tensor(inputs["predictions"]).requires_grad_()
    removed = check_masking(case, tensor(inputs.get("mask", outputs.get("mask"))))
    compare("mae_loss", case, "patches", patchify(images, hyper["patch_size"]), outputs["patches"])
    targets = patch_targets(images, hyper["patch_size"], hyper["norm_pix_loss"])
    compare("mae_loss", case, "target", targets, outputs["target"])
    loss = reconstruction_loss(predictions, targets, removed)
    compare("mae_loss", case, "loss", loss, outputs["loss"])
    compare("mae_loss", case, "grad_predictions", gradient(loss, predictions), outputs["grad_predictions"])
    one_patch = torch.eye(removed.numel(), dtype=torch.float64).reshape(-1, *removed.shape)
    per_patch = torch.stack([reconstruction_loss(predictions, targets, only) for only in one_patch])
    compare("mae_loss", case, "loss_per_patch", per_patch.reshape(removed.shape), outputs["loss_per_patch"])


@pytest.mark.golden
def test_masked_auto_encoding() -> None:
    compared = 0
    for case in cases("mae_loss"):
        outputs = case["outputs"]
        if "sincos_position_embedding" in outputs:
            check_positions(case)
            compared += 1
        if "loss" in outputs:
            check_reconstruction(case)
            compared += 1
        assert outputs.keys() & {"sincos_position_embedding", "loss"}, f"case {case['name']} was not compared"
    assert compared


@pytest.mark.golden
def test_masked_language_modelling() -> None:
    for case in cases("mlm_loss"):
        logits, labels = tensor(case["inputs"]["logits"]).requires_grad_(), torch.tensor(case["inputs"]["labels"])
        assert case["hyper"]["ignore_index"] == NOT_SELECTED
        loss = masked_token_loss(logits, labels)
        compare("mlm_loss", case, "loss", loss, case["outputs"]["loss"])
        compare("mlm_loss", case, "grad_logits", gradient(loss, logits), case["outputs"]["grad_logits"])
        assert (labels != NOT_SELECTED).sum(-1).tolist() == case["outputs"]["masked_per_sequence"]


def test_a_batch_without_a_selected_token_has_loss_and_gradient_zero() -> None:
    logits = torch.randn(2, 3, 5, generator=torch.Generator().manual_seed(0)).requires_grad_()
    loss = masked_token_loss(logits, torch.full((2, 3), NOT_SELECTED))
    assert loss.item() == 0
    assert torch.equal(gradient(loss, logits), torch.zeros_like(logits))


# ------------------------------------------------------------------------------------------------ self-distillation


@pytest.mark.golden
def test_distillation() -> None:
    for case in cases("distill_loss"):
        student = tensor(case["inputs"]["student_features"]).requires_grad_()
        teacher = tensor(case["inputs"]["teacher_features"]).requires_grad_()
        loss = feature_distance(student, teacher)
        compare("distill_loss", case, "distill_loss", loss, case["outputs"]["distill_loss"])
        student_gradient, stopped = torch.autograd.grad(loss, (student, teacher), allow_unused=True)
        compare(
            "distill_loss", case, "grad_student_features", student_gradient, case["outputs"]["grad_student_features"]
        )
        assert stopped is None


# ------------------------------------------------------------------------------------------------ optimisation


@pytest.mark.golden
def test_learning_rates() -> None:
    for case in cases("linear_schedule"):
        hyper = case["hyper"]
        total = hyper["total_steps"]
        used = case["outputs"]["lr_used_at_step"]
        steps = range(len(used) + 1)
        rates = [linear_rate(hyper["peak_lr"], step, hyper["warmup_steps"], total) for step in steps]
        if hyper["warmup_steps"] < total:  # a stage must have steps beyond its warm-up
            schedule = Schedule(steps=total, lr=hyper["peak_lr"], warmup_steps=hyper["warmup_steps"])
            assert rates == [learning_rate(schedule, step, total) for step in steps]
        compare("linear_schedule", case, "lr_used_at_step", tensor(rates[:-1]), used)
        compare("linear_schedule", case, "lr_after_last_step", rates[-1], case["outputs"]["lr_after_last_step"])


def sizes_of(shapes: dict[str, list[int]]) -> dict[str, int]:
    """The fields of the auto-encoder whose parameters have these shapes, by transformers' names: all but the heads."""
    ours = {target_of(name).name: shape for name, shape in shapes.items()}
    patch = ours["encoder.patch_embed.proj.weight"][-1]
    fields = {"image_size": math.isqrt(ours["encoder.pos_embed"][1] - 1) * patch, "patch_size": patch}
    for part, prefix in (("encoder", ""), ("decoder", "decoder_")):
        depth = sum(re.fullmatch(rf"{part}\.blocks\.\d+\.norm1\.weight", name) is not None for name in ours)
        if depth:
            fields[f"{prefix}depth"] = depth
            fields[f"{prefix}width"] = ours[f"{part}.blocks.0.norm1.weight"][0]
            fields[f"{prefix}mlp_width"] = ours[f"{part}.blocks.0.mlp.fc1.weight"][0]
    return fields


def stage_of(shapes: dict[str, list[int]]) -> Stage:
    """A pre-training or fine-tuning stage on a backbone of these shapes."""
    backbone = MaskedAutoEncoder(
        name="recorded", weights=None, heads=1, decoder_heads=1, mask_ratio=0.5, **sizes_of(shapes)
    )
    optimizer = AdamW(weight_decay=0.1)
    if "classifier.weight" not in shapes:
        return pretraining(backbone=backbone, optimizer=optimizer)
    classes = shapes["classifier.weight"][0]
    return finetuning(
        backbone=backbone,
        optimizer=optimizer,
        init="random",
        data=Data("digits", "train", True, "1" * 64, 50, classes),
        evaluation=Data("digits", "test", True, "2" * 64, 20, classes),
    )


def groups_of(stage: Stage) -> dict[str, str]:
    """The group of every parameter, by our names and in the file's words."""
    needs = stage.objective.needs
    model = build(stage.backbone, classes=stage.data.classes, decoder="decoder" in needs)
    groups = dict.fromkeys((name for name, _ in model.named_parameters()), "frozen, not in the optimizer")
    for group in parameter_groups(model, stage, State()):
        groups |= dict.fromkeys(group["names"], "decay" if group["weight_decay"] else "no_decay")
    return groups


@pytest.mark.golden
def test_weight_decay_groups() -> None:
    for case in cases("weight_decay_groups"):
        parameters = case["outputs"]["parameters"]
        groups = groups_of(stage_of({parameter["name"]: parameter["shape"] for parameter in parameters}))
        assert {target_of(parameter["name"]).name for parameter in parameters} == groups.keys(), case["name"]
        for parameter in parameters:
            name = target_of(parameter["name"]).name
            assert groups[name] == parameter["group"], f"case {case['name']}: {parameter['name']} ({name})"
            assert parameter["requires_grad"] == (not groups[name].startswith("frozen"))


@pytest.mark.parametrize("name", ["mae_loss", "distill_loss", "theory_section4"])
def test_a_missing_or_empty_file_fails(name: str, tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GOLDEN_DIR", str(tmp_path))
    with pytest.raises(AssertionError, match="no golden numbers"):
        cases(name)
    (tmp_path / f"{name}.json").write_text('{"cases": []}')
    with pytest.raises(AssertionError, match="no cases"):
        cases(name)
