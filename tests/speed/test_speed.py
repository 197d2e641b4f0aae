"""The speed command: everyone computes the same, the arithmetic is right, no section overwrites another."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
import platform
import subprocess
import sys
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import bench
from bench.errors import InputError
from bench.interfaces.model import Model
from bench.models.text import TokenMask
from bench.planning.plan import make_plan
from bench.pretrained.vit_mae_names import from_transformers
from bench.specs import Backbone, Stage
from bench.speed import __main__ as command
from bench.speed import costs, measure, ours, peak, quickstart, references, report, side, synthetic, targets
from bench.speed.line import Line
from bench.speed.pace import Enough, Pace
from bench.speed.references import Reference
from bench.speed.work import (
    BARE,
    COMPILED,
    KINDS,
    NETWORKS,
    OURS,
    RELEASED,
    SAME,
    TRAINER,
    TRAINER_COMPILED,
    Kind,
    Work,
)
from bench.store.store import Store
from bench.training.batches import Batches
from bench.training.checkpoint import Checkpoints
from bench.training.loop import Supervision, train
from bench.training.networks import new_model
from tests import tiny_grid

CPU = torch.device("cpu")
LINES = [(kind, network) for network in NETWORKS for kind in KINDS]


def small(kind: Kind, network: str) -> Work:
    return Work(kind, network, quick=True)


# ------------------------------------------------------------------------------------------------ the same work


def by_our_names(reference: nn.Module) -> dict[str, Tensor]:
    """The weights of a network of transformers under the names of this suite's."""
    state = dict(reference.named_parameters())
    if any(name.startswith("vit.") for name in state):
        return from_transformers(state)
    parts = {"bert": "encoder", "roberta": "encoder", "cls": "decoder", "lm_head": "decoder"}
    parts |= {"bert.pooler.dense": "head.1", "classifier.dense": "head.1", "classifier.out_proj": "head.4"}
    parts |= {} if any(name.startswith("classifier.dense") for name in state) else {"classifier": "head.4"}
    weights = {}
    for name, value in state.items():
        prefix = max((part for part in parts if name.startswith(f"{part}.")), key=len)
        weights[parts[prefix] + name.removeprefix(prefix)] = value
    return weights


def copied(reference: nn.Module, model: Model) -> Model:
    """The model, with the reference's weights in all of its parameters."""
    weights = by_our_names(reference)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(weights[name])
    return model


def without_chance(stage: Stage) -> Stage:
    schedule = dataclasses.replace(stage.schedule, dropout=0.0, augmentation="none")
    return dataclasses.replace(stage, schedule=schedule)


def first_losses(stage: Stage, batches: Batches, teacher: Model | None, folder: Path) -> dict[str, float]:
    """What the training loop reports of its first step."""
    reported: list[dict[str, float]] = []

    def progress(step: int, losses: Mapping[str, Any]) -> None:
        reported.append({name: float(loss) for name, loss in losses.items()})

    def stop() -> bool:
        raise Enough

    supervision = Supervision(stop, Checkpoints(folder), 1000, lambda step: None, progress)
    with pytest.raises(Enough):
        train(stage, batches.model, teacher, batches, supervision, batches.examples)
    return reported[0]


@pytest.mark.parametrize(("kind", "network"), LINES)
def test_the_reference_and_our_loop_compute_the_same_first_loss(
    kind: Kind, network: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    work, stage = small(kind, network), without_chance(ours.stage(small(kind, network)))
    reference = Reference(work, "eager", bfloat16=False)
    reference.model.eval()
    model = copied(reference.model, new_model(stage, torch.float32))
    teacher = None
    if stage.teacher is not None:
        assert reference.teacher is not None
        with torch.no_grad():  # another network than the student, so that there is something to learn
            for parameter in reference.teacher.parameters():
                parameter.mul_(1.1)
        teacher = copied(reference.teacher, new_model(stage.teacher, torch.float32)).eval()
    batches = Batches(stage, synthetic.examples(work), model, CPU)
    (batch,) = batches.at(0)
    noise = None
    if isinstance(batch.inputs, Tensor):
        inputs = {"pixel_values": batch.inputs}
        if batch.mask is not None:
            kept = batch.mask.kept
            order = torch.linspace(0, 0.5, kept.shape[1]).expand(kept.shape)
            noise = torch.ones(len(kept), 16).scatter(1, kept, order)
    else:
        inputs = {name: batch.inputs[name] for name in ("input_ids", "attention_mask")}
        if batch.mask is not None:
            monkeypatch.setattr(references, "masked_tokens", lambda batch_, work_: {**batch_, **labelled(batch.mask)})
    if batch.labels is not None:
        inputs["labels"] = batch.labels
    theirs = [loss.item() for loss in reference.losses(inputs, noise)]
    assert len(theirs) == (2 if kind == "self_distill" else 1)
    losses = first_losses(stage, batches, teacher, tmp_path)
    assert losses["loss"] == pytest.approx(sum(theirs), rel=2e-5)
    if kind == "self_distill":
        assert losses["distill"] == pytest.approx(theirs[1], rel=1e-4)
        assert theirs[1] > 0


def labelled(mask: TokenMask) -> dict[str, Tensor]:
    """A mask as transformers wants it: the tokens that are shown, and the true ones where they are to be predicted."""
    labels = torch.full_like(mask.input_ids, -100)
    labels.view(-1)[mask.positions[mask.valid]] = mask.labels[mask.valid]
    return {"input_ids": mask.input_ids, "labels": labels}


@pytest.mark.parametrize(("kind", "network"), LINES)
@pytest.mark.parametrize("bare", [False, True])
def test_reference_loops_train(kind: Kind, network: str, bare: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    work = small(kind, network)
    reference = Reference(work, "sdpa", bfloat16=False)
    batch = next(iter(references.batches(work)))
    fixed = None if work.modality == "text" or kind == "finetune" else torch.rand(len(batch["pixel_values"]), 16)
    if work.modality == "text":
        once = references.masked_tokens(batch, work)
        monkeypatch.setattr(references, "masked_tokens", lambda batch_, work_: once)

    def loss() -> float:
        torch.manual_seed(1)
        return sum(loss.item() for loss in reference.losses(batch, fixed))

    if reference.teacher is not None:  # another network than the student, so that there is something to learn
        with torch.no_grad():
            for parameter in reference.teacher.parameters():
                parameter.add_(0.1 * torch.randn_like(parameter))
    for group in reference._optimizer.param_groups:
        group["lr"] = 3e-3
    first = loss()
    for _ in range(20):
        reference.step(batch, bare)
    assert loss() < 0.95 * first


def test_a_reference_step_takes_both_backward_passes_and_asks_the_teacher(monkeypatch: pytest.MonkeyPatch) -> None:
    reference = Reference(small("self_distill", "vit_base_224"), "eager", bfloat16=False)
    events: list[str] = []
    real = Tensor.backward
    monkeypatch.setattr(Tensor, "backward", lambda self: (events.append("backward"), real(self))[1])
    for name, model in (("student", reference.model), ("teacher", reference.teacher)):
        assert model is not None
        model.vit.register_forward_hook(lambda *_, name=name: events.append(name))  # type: ignore[union-attr, operator]
    before = {name: value.clone() for name, value in reference.teacher.named_parameters()}  # type: ignore[union-attr]
    reference.step(next(iter(references.batches(reference.work))))
    assert events == ["student", "backward", "teacher", "student", "backward"]
    assert all(torch.equal(before[name], value) for name, value in reference.teacher.named_parameters())  # type: ignore[union-attr]
    assert reference.model.config.mask_ratio == 0.75  # type: ignore[union-attr]


def test_image_references_have_positions() -> None:
    model = references.network(small("further_pretrain", "vit_tiny_64"), "eager")
    assert model.decoder.decoder_pos_embed.abs().sum() > 0
    assert model.vit.embeddings.position_embeddings.abs().sum() > 0


def test_masked_tokens_are_the_fifteen_percent_of_ordinary_ones() -> None:
    torch.manual_seed(0)
    work = Work("further_pretrain", "roberta_base")
    ids = torch.randint(0, work.backbone.vocabulary, (64, 256))  # type: ignore[union-attr]
    ids[:, ::8] = 1
    made = references.masked_tokens({"input_ids": ids, "attention_mask": torch.ones_like(ids)}, work)
    selected = made["labels"] != -100
    assert not selected[:, ::8].any()
    assert selected.float().mean().item() == pytest.approx(0.15 * 7 / 8, rel=0.05)
    masked = made["input_ids"] == work.backbone.mask_id  # type: ignore[union-attr]
    assert masked[selected].float().mean().item() == pytest.approx(0.8, rel=0.03)
    assert torch.equal(made["input_ids"][~selected], ids[~selected])
    assert torch.equal(made["labels"][selected], ids[selected])


def test_everyone_sees_every_example_once_in_an_epoch() -> None:
    for work in (small("finetune", "minilm"), small("finetune", "vit_tiny_64")):
        examples = synthetic.examples(work)
        assert len(examples) == work.batch_size * work.epoch
        batches = iter(references.batches(work))
        labels = torch.cat([next(batches)["labels"] for _ in range(work.epoch)])
        assert examples.labels is not None
        assert torch.equal(labels.sort().values, examples.labels.sort().values)
    rows = synthetic.rows(small("finetune", "minilm"))
    assert [len(row["input_ids"]) for row in rows] == synthetic.examples(small("finetune", "minilm")).lengths.tolist()
    batch = synthetic.collated(rows, small("finetune", "minilm"))
    padding = batch["attention_mask"] == 0
    assert torch.equal(batch["attention_mask"].sum(1), torch.tensor([len(row["input_ids"]) for row in rows]))
    assert (batch["input_ids"][padding] == 0).all()
    assert (batch["input_ids"][~padding] != 0).all()


def fields_of(backbone: Backbone, *names: str) -> dict[str, Any]:
    return {name: getattr(backbone, name) for name in names}


def test_the_networks_are_the_suites_own(tmp_path: Path) -> None:
    (tmp_path / "g.gin").write_text(
        "grid.rows = ['finetune']\ngrid.tasks = ['flower', 'cub', 'scierc']\nflower/task.backbone = 'vit_mae_tiny64'\n"
    )
    plan = make_plan([str(tmp_path / "g.gin")], (), (), tmp_path, Store(tmp_path / "runs"))
    backbones = {cell.task: cell.stage.backbone for cell in plan.cells}
    for task, network in (("flower", "vit_tiny_64"), ("cub", "vit_base_224"), ("scierc", "roberta_base")):
        names = backbones[task].FIXED
        assert fields_of(backbones[task], *names) == fields_of(NETWORKS[network].backbone, *names), network


# ------------------------------------------------------------------------------------------------ pace, flops, peak


def test_our_loop_takes_the_steps_that_it_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []
    at = Batches.at
    monkeypatch.setattr(Batches, "at", lambda self, step: (seen.append(step), at(self, step))[1])
    turns, calls = iter((2, 3, 0)), []

    def next_turn(seconds: float | None) -> int:
        calls.append((seconds, len(seen)))
        return next(turns)

    ours.run(small("self_distill", "vit_tiny_64"), Pace(CPU, next_turn))
    assert [steps for _, steps in calls] == [0, 2, 5]
    assert calls[0][0] is None
    assert all(seconds > 0 for seconds, _ in calls[1:])


@pytest.mark.parametrize("network", NETWORKS)
def test_operations_are_counted(network: str) -> None:
    flops = {kind: ours.flops_per_step(small(kind, network)) for kind in KINDS}
    work = small("finetune", network)
    backbone = work.backbone
    examples = synthetic.examples(work)
    tokens = 17 * work.batch_size if examples.lengths is None else examples.lengths.sum() / work.epoch
    # At the very least the keys and values of all tokens, forward and twice backward.
    assert flops["finetune"] > 3 * 2 * tokens * 2 * backbone.width**2
    assert flops["self_distill"] > flops["further_pretrain"] > 0


def test_the_peak_is_that_of_a_matrix_product() -> None:
    assert peak.flops_per_second(small("finetune", "minilm")) > 0
    assert (64, 64, 64) in peak.shapes(small("finetune", "minilm"))


# ------------------------------------------------------------------------------------------------ arithmetic


def line(kind: Kind = "finetune", network: str = "vit_base_224", **changes: Any) -> Line:
    speeds = {OURS: [10.0, 12.0, 14.0], RELEASED: [5.0, 4.0, 2.0], SAME: [8.0, 6.0, 7.0], BARE: [12.0, 12.0, 12.0]}
    fields = {"flops": 100e9, "peaks": [2e12, 3e12, 1e12], "others": [0.0, 0.05, None], "speeds": speeds}
    return Line(kind, network, "float32", 2, 4, **{**fields, **changes})


def test_ratios_are_of_medians_with_the_range_of_the_rounds() -> None:
    assert line().ratio(RELEASED) == (12 / 4, 10 / 5, 14 / 2)
    assert line().ratio(SAME) == (12 / 7, 10 / 8, 2.0)
    assert line().ratio(TRAINER) is None
    assert line().step_seconds == pytest.approx(4 / 12)
    assert line().share == pytest.approx(12 * 100e9 / 3e12)
    assert math.isnan(line(flops=None).share)


def test_the_fastest_of_several_others_counts_and_the_compiled_loop_is_ours() -> None:
    speeds = {OURS: [10.0], COMPILED: [20.0], TRAINER: [5.0], TRAINER_COMPILED: [8.0]}
    compiled = line(speeds=speeds, first_steps=2, first_seconds={OURS: 1.0, COMPILED: 30.4})
    assert compiled.ratio(TRAINER, TRAINER_COMPILED) == (2.5, 2.5, 2.5)
    seconds, saved = compiled.break_even() or (0.0, 0.0)
    assert seconds == pytest.approx((30.4 - 2 * 0.2) - (1.0 - 2 * 0.4))
    assert saved == pytest.approx(0.4 - 0.2)
    assert line().break_even() is None


def test_rounds_can_be_left_out() -> None:
    kept = line()
    kept.keep([0, 2])
    assert kept.speeds[OURS] == [10.0, 14.0]
    assert (kept.peaks, kept.others) == ([2e12, 1e12], [0.0, None])


def test_what_others_use_is_told() -> None:
    busy = side.busy_seconds()
    if busy is None:
        pytest.skip("this system does not say how busy it is")
    assert busy > 0
    assert side.others_share(None, own=1.0, seconds=1.0) is None
    assert side.others_share(busy, own=1e9, seconds=1.0) == 0.0
    assert side.others_share(busy - 1.0, own=0.25, seconds=1e6) > 0
    assert measure._is_quiet(None) and measure._is_quiet(0.05) and not measure._is_quiet(0.2)


@pytest.mark.parametrize(
    ("name", "counts", "examples"),
    [
        ("Table 1", (180, 6, 6), (180 * 10_000 * 32, 6 * 20_000 * 64, 6 * 20_000 * 64)),
        ("Table 2", (120, 4, 4), None),
    ],
)
def test_the_papers_tables_are_counted(name: str, counts: tuple[int, ...], examples: tuple[int, ...] | None) -> None:
    table = costs.TABLES[name]
    stages, seen = costs.examples(table)
    assert tuple(stages[kind] for kind in KINDS) == counts
    if examples is not None:
        assert tuple(seen[kind] for kind in KINDS) == examples
    speeds = dict(zip(KINDS, (10.0, 20.0, 40.0), strict=True))
    lines = [line(kind, table.network, speeds={OURS: [v]}) for kind, v in speeds.items()]
    expected = sum(seen[kind] / speeds[kind] for kind in KINDS) / 3600
    assert costs.hours(table, lines) == pytest.approx(expected)
    assert costs.hours(table, []) is None


# ------------------------------------------------------------------------------------------------ targets


def verdict(facts: dict[str, Any], lines: Collection[Line], start: str) -> dict[str, str]:
    (selected,) = [row for row in targets.verdicts(facts, lines) if row["name"].startswith(start)]
    return selected


def gpu(name: str) -> dict[str, Any]:
    return facts(name, gpu=True, cores=16, bfloat16=True)


def test_every_target_is_a_line_and_says_why_it_was_not_measured() -> None:
    cpu = list(targets.verdicts(facts("CPU"), []))
    assert len(cpu) == sum(len(target.networks) for target in targets.TARGETS)
    assert all(row["verdict"].startswith("not measured here: ") for row in cpu)
    on_gpu = targets.verdicts(gpu("NVIDIA H100 80GB HBM3"), [])
    reasons = {row["verdict"] for row in on_gpu if "two CPU cores" in row["name"]}
    assert reasons == {"not measured here: these are not two CPU cores"}
    required = {row["name"]: row["required"] for row in cpu}
    assert required["finetune/vit_tiny_64, ms a step (one H100 or H200)"] == "at most 4.00"
    assert required["finetune/vit_base_224, of the matrix products' peak (one H100 or H200)"] == (
        "at least 40.0 % (goal 45.0 %)"
    )


def test_verdicts_follow_the_figures() -> None:
    lines = [line("self_distill"), line(network="minilm", failures={TRAINER: "no accelerate"})]
    lines[0].speeds[SAME] = [10.0, 10.0, 10.0]
    run = facts("CPU", quickstart={"quickstart_ratio": 2.0, "first_step": 6.5}), lines
    missed = verdict(*run, "self_distill/vit_base_224, x the reference at the same precision (two")
    assert (missed["measured"], missed["verdict"]) == ("1.20", "missed")
    assert verdict(*run, "finetune/minilm, x the reference at the same precision (two")["verdict"] == "met"
    assert verdict(*run, "finetune/minilm, x the Trainer")["verdict"] == "not measured here: no accelerate"
    assert verdict(*run, "self_distill/vit_base_224, x the reference as released (two")["verdict"].endswith(
        "of its own"
    )
    assert verdict(*run, "quickstart, x the other")["verdict"] == "met"
    assert verdict(*run, "quickstart, s from")["verdict"] == "missed"
    share = verdict(*run, "self_distill/vit_base_224, of the matrix products' peak (two")
    assert (share["required"], share["measured"], share["verdict"]) == ("at least 75.0 %", "40.0 %", "missed")


def test_a_target_of_a_precision_is_judged_on_lines_of_that_precision() -> None:
    names = {"float32": "of the matrix products' peak (two", "bfloat16": "x the reference as released (two"}
    computer = facts("CPU", bfloat16=True)
    for measured in names:
        lines = [dataclasses.replace(line("self_distill"), precision=measured)]
        for asked, name in names.items():
            reason = verdict(computer, lines, f"self_distill/vit_base_224, {name}")["verdict"]
            assert (reason == f"not measured here: this line was not measured in {asked}") == (asked != measured)


def test_a_gpus_targets_are_judged_on_one() -> None:
    lines = [line(network="vit_tiny_64", speeds={COMPILED: [1001.0], SAME: [250.0]})]
    for name, expected in (("NVIDIA H200", "met"), ("NVIDIA L4", "not measured here: this is no H100 or H200")):
        run = gpu(name), lines
        assert verdict(*run, "finetune/vit_tiny_64, ms a step")["verdict"] == expected
        assert verdict(*run, "finetune/vit_tiny_64, x the reference at the same precision (one")["verdict"] == expected


# ------------------------------------------------------------------------------------------------ the page


def facts(device: str, **parts: Any) -> dict[str, Any]:
    known = {"device": device, "instruction_set": "AVX2", "cores": 2, "threads": 2, "gpu": False, "bfloat16": False}
    return {**known, "date": "2026-01-02", "commit": "c" * 40, "versions": {"torch": "2.15.0"}, **parts}


def sections(page: Path) -> dict[str, str]:
    _, *parts = page.read_text(encoding="utf-8").split("\n## ")
    return {part.partition("\n")[0]: part for part in parts}


def test_a_section_is_replaced_by_its_own_device_only(tmp_path: Path) -> None:
    page = tmp_path / "speed.md"

    def run(device: str, **parts: Any) -> None:
        report.store(page, facts(device, **parts))

    first, other = line(), line("self_distill")
    run("Old CPU", lines={first.name: dataclasses.asdict(first)})
    run("New CPU", lines={other.name: dataclasses.asdict(other)})
    before = sections(page)
    assert list(before) == ["New CPU, AVX2, 2 cores", "Old CPU, AVX2, 2 cores"]
    # One line is measured again, another one is new; the first figures of the other device stay.
    faster = line(speeds={OURS: [30.0], SAME: [10.0]})
    run("Old CPU", lines={faster.name: dataclasses.asdict(faster)})
    run("Old CPU", inputs={"cell": {"cell": "a/b/c/0", "threads": 1, "read": 1e-3, "decoded": 4e-3, "step": 0.5}})
    after = sections(page)
    assert after["New CPU, AVX2, 2 cores"] == before["New CPU, AVX2, 2 cores"]
    old = after["Old CPU, AVX2, 2 cores"]
    assert "3.00x (3.00–3.00)" in old and "3.00x (3.00–3.00)" not in before["Old CPU, AVX2, 2 cores"]
    assert "| a/b/c/0 |" in old.replace("  ", "") and "4x" in old and "0.20 %" in old
    run("Old CPU", lines={other.name: dataclasses.asdict(other)})
    assert "finetune/vit_base_224 " in sections(page)["Old CPU, AVX2, 2 cores"]
    # In another precision it is another line; that of an earlier version, whose key had no precision, is the same one.
    run("Old CPU", lines={first.name: dataclasses.asdict(dataclasses.replace(first, precision="bfloat16"))})
    run("Old CPU", lines={first.name: dataclasses.asdict(first)})
    (path,) = (tmp_path / "speed").glob("old*.json")
    assert {*json.loads(path.read_text())["lines"]} == {first.identity, other.identity, f"{first.name}/bfloat16"}
    assert platform.node() not in page.read_text(encoding="utf-8")
    assert str(tmp_path) not in page.read_text(encoding="utf-8")


def test_a_page_shows_what_failed_and_when_compiling_pays() -> None:
    made = line(
        speeds={OURS: [10.0], COMPILED: [20.0]},
        first_steps=1,
        first_seconds={OURS: 0.4, COMPILED: 20.2},
        failures={SAME: "OutOfMemoryError: no memory"},
    )
    text = report.section(facts("CPU", lines={made.name: dataclasses.asdict(made)}))
    assert "same: OutOfMemoryError: no memory" in text
    assert "100 steps" in text
    assert "float32, compiled" in text
    nothing = line(speeds={}, peaks=[], others=[], flops=None)
    assert "| - " in report.section(facts("CPU", lines={nothing.name: dataclasses.asdict(nothing)}))


def test_the_committed_page_is_made_of_the_committed_figures() -> None:
    page = Path(__file__).parents[2] / "results" / "speed.md"
    assert page.read_text(encoding="utf-8") == report.page(page)


# ------------------------------------------------------------------------------------------------ the quickstart


def stage_folder(store: Path, name: str, began: float, ended: float, *parents: str) -> None:
    folder = store / name
    (folder / "attempts").mkdir(parents=True)
    (folder / "attempts" / "000001.json").write_text(json.dumps({"began": began, "from_step": 0}))
    (folder / "attempts" / "000001.end.json").write_text(json.dumps({"time": ended, "state": "done"}))
    spec = {"type": "Stage", "init": {"stage": parents[0]} if parents else "random"}
    (folder / "spec.json").write_text(json.dumps({**spec, "objective": [{"stage": key} for key in parents[1:]]}))


def test_the_critical_path_names_what_each_stage_waited_for(tmp_path: Path) -> None:
    key = {name: name * 16 for name in "abcd"}
    stage_folder(tmp_path, f"source_pretrain-x-{key['a']}", 103.0, 110.0)
    stage_folder(tmp_path, f"source_pretrain-y-{key['b']}", 103.0, 112.0)
    stage_folder(tmp_path, f"finetune-x-{key['c']}", 110.5, 111.0, key["a"] + "0" * 48)
    stage_folder(tmp_path, f"finetune-y-{key['d']}", 112.5, 120.0, key["b"] + "0" * 48)
    stage_folder(tmp_path, "finetune-z-" + "e" * 16, 120.5, 121.0, key["a"] + "0" * 48)
    path = quickstart.critical_path(tmp_path, 100.0)
    assert path == [
        (f"source_pretrain-y-{key['b']}", "the command", 3.0, 12.0),
        (f"finetune-y-{key['d']}", "its parent", 12.5, 20.0),
        ("finetune-z-" + "e" * 16, "a worker", 20.5, 21.0),
    ]


def test_the_quickstart_runs_in_a_fresh_store(prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    grid = tmp_path / "g.gin"
    grid.write_text("grid.rows = ['finetune']\ngrid.tasks = ['digits']\ngrid.seeds = [0]\n")
    monkeypatch.setattr(quickstart, "GRID", str(grid))
    monkeypatch.setattr(
        quickstart,
        "ONE_STEP",
        (
            "source_pretrain.steps = 1",
            "finetune.steps = 1",
            "finetune.warmup_steps = 0",
            "digits/finetune.augmentation = 'none'",
        ),
    )
    timed = quickstart._run(Path(bench.__file__).parents[1], prepared, "cpu", quickstart.ONE_STEP)
    assert 0 < timed.first_step < timed.seconds
    assert [stage.stage.partition("-")[0] for stage in timed.path] == ["source_pretrain", "finetune"]
    assert timed.path[1].waited_for == "its parent"


def test_checkouts_take_turns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ran: list[tuple[str, bool]] = []
    timed = quickstart.Timed(2.0, 1.0, ())
    monkeypatch.setattr(
        quickstart,
        "_run",
        lambda checkout, data, device, settings: (ran.append((checkout.name, bool(settings))), timed)[1],
    )
    other = tmp_path / "other"
    with pytest.raises(InputError, match="--against"):
        quickstart.compare(other, tmp_path, "cpu", 2, quick=False)
    (other / "bench").mkdir(parents=True)
    (other / "bench" / "grid.py").touch()
    runs = quickstart.compare(other, tmp_path, "cpu", 2, quick=False)
    this = Path(__file__).parents[2].name
    assert ran == [(this, True), ("other", True), *[(this, False), ("other", False)] * 2]
    assert {name: len(timed) for name, timed in runs.items()} == {"this": 2, "other": 2}


def test_figures_are_medians_and_their_ratio() -> None:
    def timed(seconds: float, first: float) -> quickstart.Timed:
        return quickstart.Timed(seconds, first, (quickstart.Waited("a-b-c", "the command", 1.0, 3.0),))

    runs = {"this": [timed(10, 3), timed(30, 5), timed(20, 4)], "other": [timed(50, 1), timed(70, 1), timed(60, 1)]}
    figures = quickstart.figures(runs)
    assert (figures["seconds"], figures["first_step"], figures["quickstart_ratio"]) == (20, 4, 3.0)
    assert "quickstart_ratio" not in quickstart.figures({"this": runs["this"]})


# ------------------------------------------------------------------------------------------------ the command


def test_lines_are_measured_by_turns_and_one_that_fails_takes_none_along(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(measure, "sides", lambda work, compile: [OURS, "nobody", TRAINER])
    monkeypatch.setattr(measure.util, "find_spec", lambda name: None)
    asked = side.ask_once
    known = facts("CPU")
    monkeypatch.setattr(side, "ask_once", lambda who, work: known if who == side.FACTS else asked(who, work))
    page = tmp_path / "speed.md"
    arguments = ["--quick", "--rounds", "1", "--only", "finetune/vit_tiny_64", "--threads", "1", "--output", str(page)]
    assert command.main(arguments) == 0
    (path,) = (tmp_path / "speed").glob("*.json")
    measured = Line(**json.loads(path.read_text())["lines"]["finetune/vit_tiny_64/float32"])
    assert measured.speeds.keys() == {OURS}
    assert all(len(speeds) == 1 and speeds[0] > 0 for speeds in measured.speeds.values())
    assert (measured.flops or 0) > 0 and measured.peaks[0] > 0
    assert "KeyError" in measured.failures["nobody"]
    assert "accelerate" in measured.failures[TRAINER]
    assert page.read_text() in report.page(page)
    assert "finetune/vit_tiny_64" in capsys.readouterr().out


def test_a_side_that_dies_or_fails_says_so_and_leaves_nothing() -> None:
    with contextlib.closing(side.Side(side.PEAK, small("finetune", "minilm"))) as process:
        assert process.answer()[0] is None  # it is ready
        assert process.ask(1).value > 0
        folder = Path(process._folder.name)
        assert folder.is_dir()
        process._process.kill()
        with pytest.raises(side.Failed, match="exit status -9"):
            process.ask(1)
    assert not folder.exists()
    with pytest.raises(side.Failed, match="InputError: the device 'abacus'"):
        side.ask_once(side.FACTS, Work("finetune", "minilm", device="abacus"))


@pytest.mark.parametrize(
    "arguments",
    [
        ["--only", "finetune/nothing"],
        ["--rounds", "0"],
        ["--seconds", "0"],
        ["--threads", "0"],
        ["--against", "."],
        ["--set", "a.b = 1"],
        ["--gin", "gin/quickstart.gin", "--quickstart"],
    ],
)
def test_what_makes_no_sense_is_refused(arguments: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(side, "ask_once", lambda who, work: {"bfloat16": False})
    with pytest.raises(InputError, match=arguments[0]):
        command.main(arguments)


def test_a_cell_that_diverges_is_named(tmp_path: Path, prepared: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(side, "ask_once", lambda who, work: {"bfloat16": False})
    gin = tiny_grid.write(tmp_path, ["finetune"], "finetune.lr = 1e30")
    with pytest.raises(InputError, match=r"finetune/digits/photos_mae/0: the loss is .*--only"):
        command.main(["--gin", str(gin), "--only", "*/digits/*", "--data", str(prepared), "--quick"])


def test_help_needs_no_torch() -> None:
    code = "import sys, bench.speed.__main__ as m; print('torch' in sys.modules, 'numpy' in sys.modules)"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.split() == ["False", "False"]


@pytest.mark.parametrize("network", ["minilm", "vit_tiny_64"])
def test_the_trainer_takes_the_steps_that_it_is_asked_for(network: str) -> None:
    pytest.importorskip("accelerate")
    from bench.speed import trainer

    turns, durations = iter((2, 2, 0)), []

    def next_turn(seconds: float | None) -> int:
        durations.append(seconds)
        return next(turns)

    trainer.run(small("finetune", network), Pace(CPU, next_turn))
    assert durations[0] is None and len(durations) == 3
