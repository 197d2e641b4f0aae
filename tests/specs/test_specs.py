"""Specs: types, canonical JSON, keys."""

import dataclasses
import json
import re
import typing
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from baselines.freelb import FreeLB
from baselines.label_regularization import Distillation, VirtualTeacher
from baselines.r3f import R3F
from baselines.recadam import RecAdam
from baselines.sam import SharpnessAware
from baselines.supcon import SupervisedContrastive
from baselines.tapt import further_pretrain
from bench.errors import InputError, SpecError
from bench.planning.bindings import Bindings
from bench.planning.cell import Expansion
from bench.planning.settings import Grid
from bench.specs import (
    RANDOM,
    SPECS,
    Data,
    Schedule,
    Spec,
    added,
    canonical_json,
    expanded,
    field_types,
    from_canonical,
    part_json,
    stream,
    walk,
)
from bench.specs.architectures import LanguageModel, MaskedLanguageModel, TransformersEncoder
from bench.specs.objectives import AdamW, MaskedAutoEncoding
from tests import tiny_grid
from tests.examples import finetuning, pretraining, tiny_backbone


def test_golden_keys() -> None:
    """Today's form of specs. A change here changes every key in every store: say so in the changelog."""
    assert pretraining().key == "6fa0efc31dcb9bedc14ef36dbec7d97210730f3edb6a52cfd1af6569094f5791"
    assert finetuning().key == "17cdce2ea4699f624eb78e57977877ae54776553b0a8e41f3a93e24d1d844696"


def leaves(spec: Spec, path: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    paths = []
    for field in dataclasses.fields(spec):
        value = getattr(spec, field.name)
        if isinstance(value, Spec):
            paths += leaves(value, (*path, field.name))
        else:
            paths.append((*path, field.name))
    return paths


def changed(spec: Any, path: tuple[str, ...]) -> Any:
    name, *rest = path
    value = getattr(spec, name)
    if rest:
        return dataclasses.replace(spec, **{name: changed(value, tuple(rest))})
    other: Any
    if name == "further_evaluations":
        other = (Data("digits", "mismatched", True, "3" * 64, 5, 10),)
    elif isinstance(value, bool):
        other = not value
    elif isinstance(value, int):
        other = value * 2 or 2
    elif isinstance(value, float):
        other = value / 2 + 1e-3
    elif isinstance(value, tuple):
        other = tuple(item / 2 for item in value)
    else:
        choices = {
            "split": "other",
            "part": "fit",
            "precision": "bfloat16",
            "decay": "constant",
            "augmentation": "flip",
            "init": RANDOM,
            "positioned": "patches",
        }
        nones = {"subset": 7, "warmup_steps": 2, "clip_norm": 1.0, "dropout": 0.2, "layer_scale": 0.1}
        other = choices.get(name) or nones.get(name) or f"{value}x"
    return dataclasses.replace(spec, **{name: other})


# Fields that are None here because their alternative is set, or that the objective decides; the parents' test follows.
SKIPPED = {("schedule", "epochs"), ("schedule", "warmup_fraction"), ("constraint",), ("teacher",), ("data", "labelled")}
SKIPPED |= {("schedule", "batching"), ("head",)}  # images have but one batching; no classifier is there to be carried


@pytest.mark.parametrize(
    "path", [p for p in leaves(finetuning()) if p not in SKIPPED and "weights" not in p], ids=".".join
)
def test_every_field_changes_the_key(path: tuple[str, ...]) -> None:
    assert changed(finetuning(), path).key != finetuning().key


def test_each_split_is_evaluated_once_and_only_of_a_classifier() -> None:
    split = finetuning().evaluation
    for stage, splits in ((finetuning(), (split,)), (pretraining(), (split,))):
        with pytest.raises(SpecError) as caught:
            dataclasses.replace(stage, further_evaluations=splits)
        assert caught.value.field == "further_evaluations"
    assert finetuning().evaluations == (split,)
    assert pretraining().evaluations == ()


def test_a_field_added_later_changes_nothing_until_it_is_set() -> None:
    @dataclass(frozen=True)
    class Grown(Spec):
        """A spec of an earlier version, with a field that came later."""

        width: int = 3
        extra: bool = added(False)

    try:
        assert canonical_json(Grown()) == '{"type":"Grown","version":1,"width":3}'
        assert json.loads(canonical_json(Grown(extra=True)))["extra"] is True
        assert expanded(Grown())["extra"] is False  # readers see every field
        for spec in (Grown(), Grown(extra=True)):
            assert from_canonical(json.loads(canonical_json(spec)), lambda key: pretraining()) == spec
        with pytest.raises(ValueError, match="older or newer"):
            from_canonical({"type": "Grown", "version": 1, "extra": True}, lambda key: pretraining())
    finally:
        del SPECS["Grown"]


@pytest.mark.parametrize("default", [0.1, None, "mean", dataclasses.field(default=2), (1, 2)])
def test_a_setting_without_a_type_is_refused_where_the_class_is_declared(default: object) -> None:
    with pytest.raises(InputError, match=r"Untyped\.rate in .*test_specs\.py has no type"):
        type("Untyped", (Spec,), {"rate": default, "__module__": __name__})
    assert "Untyped" not in SPECS


def test_batching_changes_the_key() -> None:
    lengths = Schedule(steps=10, batching="length")
    assert canonical_json(lengths) != canonical_json(Schedule(steps=10))
    assert canonical_json(Schedule(steps=10)) == canonical_json(Schedule(steps=10, batching="random"))


def test_parents_change_the_key() -> None:
    other = finetuning(backbone=tiny_backbone(weights=pretraining(seed=1)))
    assert other.key != finetuning().key
    assert finetuning(init=pretraining()).key != finetuning().key


def test_types_and_versions_are_part_of_the_key(monkeypatch: pytest.MonkeyPatch) -> None:
    before = pretraining().key
    monkeypatch.setattr(AdamW, "VERSION", 2)
    assert pretraining(optimizer=AdamW()).key != before


def test_numbers_that_compare_equal_have_one_key() -> None:
    assert pretraining(schedule=Schedule(steps=10, lr=1)).key == pretraining(schedule=Schedule(steps=10, lr=1.0)).key
    assert pretraining(optimizer=AdamW(betas=[0, 0.5])).key == pretraining(optimizer=AdamW(betas=(0.0, 0.5))).key


def test_canonical_json_round_trip() -> None:
    stage = finetuning(schedule=Schedule(epochs=2.5, clip_norm=0.1), init=pretraining(seed=4))
    stages = {parent.key: parent for parent in walk(stage)}
    again = from_canonical(json.loads(canonical_json(stage)), stages.__getitem__)
    assert again == stage
    assert again.key == stage.key


def test_infinite_numbers_survive_canonical_json() -> None:
    text = part_json((1.5, float("inf")))
    assert text == '[1.5,{"float":"inf"}]'
    assert from_canonical(json.loads(text), lambda key: pretraining()) == (1.5, float("inf"))


@pytest.mark.parametrize(
    "value", [0, -1, 10**30, True, False, None, 0.0, -0.0, 1e-5, 0.1, 1e300, "", 'ä"\\\n', "\u2028"]
)
def test_values_stand_in_canonical_json_as_json_writes_them(value: object) -> None:
    assert part_json(value) == json.dumps(value)
    assert part_json((value,)) == f"[{json.dumps(value)}]"


def test_canonical_json_is_sorted_at_every_depth() -> None:
    text = canonical_json(finetuning(init=pretraining(seed=4)))
    assert text == json.dumps(json.loads(text), sort_keys=True, separators=(",", ":"))


def test_canonical_json_of_an_older_version_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    data = json.loads(canonical_json(pretraining()))
    monkeypatch.setattr(Schedule, "VERSION", 2)
    with pytest.raises(ValueError, match="Schedule version 1"):
        from_canonical(data, lambda key: pretraining())


def test_expanded_shows_parents_in_full() -> None:
    shown = expanded(finetuning())
    assert shown["key"] == finetuning().key
    assert shown["backbone"]["weights"]["schedule"]["steps"] == 10
    json.dumps(shown, allow_nan=False)


@pytest.mark.parametrize(
    ("make", "field"),
    [
        (lambda: Schedule(steps=10, lr="1e-4"), "lr"),
        (lambda: Schedule(steps=10.0), "steps"),
        (lambda: Schedule(steps=True), "steps"),
        (lambda: Schedule(steps=-1), "steps"),
        (lambda: Schedule(), "steps"),
        (lambda: Schedule(steps=1, epochs=1), "steps"),
        (lambda: Schedule(epochs=float("nan")), "epochs"),
        (lambda: Schedule(steps=1, lr=float("nan")), "lr"),
        (lambda: Schedule(steps=1, lr=float("inf")), "lr"),
        (lambda: Schedule(steps=5, warmup_steps=5), "warmup_steps"),
        (lambda: Schedule(steps=1, dropout=1.0), "dropout"),
        (lambda: Schedule(steps=1, clip_norm=float("inf")), "clip_norm"),
        (lambda: Schedule(steps=1, lr=10**400), "lr"),
        (lambda: Schedule(steps=10**12), "steps"),
        (lambda: AdamW(weight_decay=float("inf")), "weight_decay"),
        (lambda: tiny_backbone(mlp_width=-5), "mlp_width"),
        (lambda: tiny_backbone(norm_eps=-1.0), "norm_eps"),
        # What float32 would divide by 0, or into what it cannot hold.
        (lambda: tiny_backbone(norm_eps=1e-45), "norm_eps"),
        (lambda: tiny_backbone(decoder_norm_eps=1e-50), "decoder_norm_eps"),
        (lambda: tiny_backbone(pixel_std=(0.2, 1e-45, 0.2)), "pixel_std"),
        (lambda: tiny_backbone(pixel_std=(0.2, 3e38, 0.2)), "pixel_std"),
        (lambda: tiny_backbone(pixel_mean=(0.2, -3e38, 0.2)), "pixel_mean"),
        (lambda: AdamW(eps=1e-45), "eps"),
        (lambda: RecAdam(eps=1e-45), "eps"),
        (lambda: Distillation(temperature=1e-45), "temperature"),
        (lambda: Distillation(multiplier=3e38), "multiplier"),
        (lambda: VirtualTeacher(temperature=1e-45), "temperature"),
        (lambda: VirtualTeacher(multiplier=1e-45), "multiplier"),
        (lambda: SupervisedContrastive(temperature=1e-45), "temperature"),
        (lambda: SupervisedContrastive(base_temperature=1e-45), "base_temperature"),
        (lambda: FreeLB(radius=1e-50), "radius"),
        (lambda: FreeLB(rate=3e38), "rate"),
        (lambda: SharpnessAware(rho=3e38), "rho"),
        (lambda: R3F(eps=3e38), "eps"),
        (lambda: Schedule(steps=1, decay="cosine"), "decay"),
        (lambda: Schedule(steps=1, batch_size=4, micro_batches=5), "micro_batches"),
        (lambda: AdamW(betas=(0.9,)), "betas"),
        (lambda: AdamW(weight_decay=-0.1), "weight_decay"),
        (lambda: MaskedAutoEncoding(weight=0.0), "weight"),
        (lambda: tiny_backbone(image_size=9), "image_size"),
        (lambda: tiny_backbone(mask_ratio=1.0), "mask_ratio"),
        (lambda: finetuning(teacher=pretraining()), "teacher"),
        (lambda: pretraining(backbone=tiny_backbone(decoder_depth=0)), "decoder_depth"),
        (lambda: finetuning(evaluation=None), "evaluation"),
        (lambda: finetuning(backbone=tiny_backbone()), "init"),
        (lambda: pretraining(init=finetuning()), "init"),
        (lambda: pretraining(data=finetuning().data), "data"),
        (lambda: pretraining(seed=-1), "seed"),
    ],
)
def test_impossible_values_are_refused(make: Any, field: str) -> None:
    with pytest.raises(SpecError) as refusal:
        make()
    assert refusal.value.field == field


WITHOUT_CEILING = {
    "Data.examples": "counted, never set",
    "Data.classes": "counted, never set",
    "Data.subset": "at most the examples there are",
    "Data.subset_seed": "seeds are hashed",
    "DataSettings.subset": "at most the examples there are, where Data is made of it",
    "DataSettings.subset_seed": "seeds are hashed",
    "Grid.seeds": "seeds are hashed",
    "Grid.base_seed": "seeds are hashed",
    "Stage.seed": "seeds are hashed",
    "Selected.seed": "seeds are hashed",
    "Grid.checkpoint_steps": "more than a stage has means no checkpoint in between",
    "RecAdam.t0": "at most the steps of the stage, which it is held against",
}
"""The whole numbers of specs that may be as large as anyone likes, and why nothing hangs or takes memory for them."""

EXAMPLES: dict[str, Callable[[], Spec]] = {
    "Schedule": lambda: Schedule(steps=1),
    "Grid": lambda: Grid(rows=("finetune",), tasks=("digits",)),
    "MaskedAutoEncoder": tiny_backbone,
    "LanguageModel": lambda: LanguageModel("a", None, None, None, positions=512),
    "MaskedLanguageModel": lambda: MaskedLanguageModel("a", None, None, None, positions=512),
    "TransformersEncoder": lambda: TransformersEncoder("a", None, None, None, positions=512),
}
"""A legal spec of each class that has a field without a default."""

WHOLE_NUMBERS = sorted(
    f"{name}.{field}"
    for name, cls in SPECS.items()
    if cls.__module__.partition(".")[0] in ("bench", "baselines")
    for field, annotation in field_types(cls).items()
    if annotation is int or {int, tuple[int, ...]} & {annotation, *typing.get_args(annotation)}
)


@pytest.mark.parametrize("setting", WHOLE_NUMBERS)
def test_no_whole_number_can_take_all_memory(setting: str) -> None:
    if setting in WITHOUT_CEILING:
        return
    name, _, field = setting.partition(".")
    spec = EXAMPLES.get(name, SPECS[name])()
    is_tuple = isinstance(getattr(spec, field), tuple)
    with pytest.raises(SpecError, match=re.escape(str(10**30))):
        dataclasses.replace(spec, **{field: (10**30,) if is_tuple else 10**30})


def test_each_whole_number_without_a_ceiling_is_one() -> None:
    assert WITHOUT_CEILING.keys() <= set(WHOLE_NUMBERS)
    assert {"Schedule.steps", "LanguageModel.vocabulary", "LanguageModel.positions"} <= set(WHOLE_NUMBERS)


@pytest.mark.parametrize("times", [10**9, 10**30])
def test_a_multiple_of_a_schedule_has_the_ceiling_of_a_schedule(times: int, prepared: Path, tmp_path: Path) -> None:
    plan = tiny_grid.plan(tmp_path, prepared, ["finetune"])
    cell = Expansion(plan.grid, Bindings([]), prepared).cell("finetune", "digits", 0)
    with pytest.raises(SpecError, match="at most a billion"):
        further_pretrain(cell, times=times)


def test_durations_become_steps_in_one_place() -> None:
    assert Schedule(epochs=2, batch_size=32).total_steps(100) == 8  # the last, smaller batch of an epoch counts
    assert Schedule(epochs=0.5, batch_size=10).total_steps(100) == 5
    assert Schedule(steps=7).total_steps(100) == 7
    assert Schedule(epochs=10, batch_size=10, warmup_fraction=0.06).warmup(100) == 6


def test_streams_differ_by_name_and_seed() -> None:
    seeds = {
        stream(seed, *names)
        for seed in range(3)
        for names in [("a",), ("b",), ("a", "b"), ("a", 1), ("a", "1"), ("ab",)]
    }
    assert len(seeds) == 18


def test_streams_are_pinned() -> None:
    """Every shuffle, mask and initial weight follows from these: another rule is another result in every store."""
    assert stream(0, "a") == 4188972562099177556
    assert stream(3, "finetune", "step", 1, 0) == 8531202638764836199


def test_unprepared_data_are_seen_through_parents() -> None:
    missing = Data("photographs", "train", False, None, None, None)
    stage = finetuning(backbone=tiny_backbone(weights=pretraining(data=missing)))
    assert stage.unprepared == {"photographs"}
    assert not finetuning().unprepared
