"""What one grid needs of this computer: its data, weights, disk space and memory, each with what helps."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Sequence, Set
from pathlib import Path

from bench.data.manifest import describe_manifest, read_manifest
from bench.data.prepare import check_unchanged
from bench.data.public import SOURCES
from bench.doctor.computer import Fact, existing
from bench.errors import InputError
from bench.launch.devices import local_devices
from bench.planning.plan import Plan, make_plan
from bench.pretrained import checkpoints
from bench.specs import PublicWeights, Stage
from bench.specs.architectures import MaskedAutoEncoder
from bench.store.store import Store

CHECKPOINTS_KEPT, CHECKPOINT_COPIES = 2, 3
"""A stage that runs keeps its last checkpoints, each with the weights and two moments of the optimiser."""

SLOW_PARAMETERS = 50_000_000
"""A network above this size takes days on a CPU."""


def needs(files: Sequence[str], overrides: Sequence[str], store: Path, data: Path) -> Iterator[Fact]:
    """Report what a grid needs, and whether it is there. A grid that cannot be planned is a problem."""
    try:
        plan = make_plan(files, overrides, [], data, Store(store), check_sources=False)
    except InputError as error:
        yield Fact("problem", str(error), "mend what the message names; bench.grid would refuse it, too")
        return
    weights = {stage.backbone.name for stage in plan.stages if isinstance(stage.backbone.weights, PublicWeights)}
    for name in sorted({*plan.unprepared, *(stage.data.task for stage in plan.stages), *weights}):
        yield _content(name, plan)
    to_run = [*plan.to_run(retry=True), *(stage for stage in plan.stages if stage.unprepared)]
    # The sizes of a user's own checkpoint are known once it is prepared; before that the stage holds defaults.
    unknown = plan.unprepared & plan.catalogue.own
    sized = [stage for stage in to_run if stage.backbone.name not in unknown]
    if sized:
        yield _space("--store", store, _stored(sized), "weights and checkpoints")
    if to_run:
        yield _space("--data", data, _prepared_bytes(plan, unknown), "downloads and decoded images")
    if sized:
        yield from _memory(sized)


def _content(name: str, plan: Plan) -> Fact:
    """Tell whether a task, corpus or backbone is prepared and what was prepared."""
    catalogue, root = plan.catalogue, plan.data_root
    command = catalogue.command([name], root)
    try:
        if name in plan.unprepared and not catalogue.local(name):
            return Fact("problem", f"{name}: not prepared in {root}", f"{command} (downloads)")
        if name in plan.unprepared:
            catalogue.refuse_missing([name], root)
            then = "; its size and the memory it takes are known then" if name in catalogue.checkpoints else ""
            return Fact("ok", f"{name}: is at hand, the first run prepares it{then}")
        if name in catalogue.checkpoints:
            prepared = checkpoints.read(name, root)
            assert prepared is not None
            if difference := catalogue.checkpoints[name].differs(prepared):
                return Fact("problem", f"{name}: {difference}", f"{command} --again")
            checkpoints.weights(name, root, prepared.checksum)
            return Fact("ok", f"{name}: weights from {prepared.source}, intact")
        manifest = read_manifest(name, root)
        assert manifest is not None
        if missing := [split for split in manifest.splits if not (root / name / f"{split}.parquet").is_file()]:
            return Fact("problem", f"{name}: {root / name} lacks {missing[0]}.parquet", f"{command} --again")
        if name in catalogue.own:
            check_unchanged(catalogue.tasks[name], manifest)
        return Fact("ok", f"{name}: {describe_manifest(manifest)}")
    except InputError as error:
        return Fact("problem", str(error), f"mend what the message names, or {command} --again")


def _parameters(stage: Stage) -> int:
    decoder = stage.backbone.least_decoder_parameters if "decoder" in stage.objective.needs else 0
    return stage.backbone.least_parameters + decoder


def _stored(to_run: Sequence[Stage]) -> int:
    """Estimate the bytes that stages will leave in the store, with the checkpoints of the largest one."""
    weights = [4 * _parameters(stage) for stage in to_run]
    return sum(weights) + CHECKPOINTS_KEPT * CHECKPOINT_COPIES * max(weights, default=0)


def _prepared_bytes(plan: Plan, unknown: Set[str]) -> int:
    """Estimate what is still to be written under the data root.

    That is the official archives and what is made of them, and the images of each size, three bytes a pixel. The image
    size of the backbones named in `unknown` is not known.
    """
    files = [file for name in plan.unprepared & SOURCES.keys() for file in SOURCES[name].files]
    size = 2 * sum(file.size or 0 for file in files)
    sides = {
        (stage.data.task, stage.backbone.image_size)
        for stage in plan.stages
        if isinstance(stage.backbone, MaskedAutoEncoder) and stage.backbone.name not in unknown
    }
    for task, side in sides:
        manifest = read_manifest(task, plan.data_root)
        if manifest is not None and not any((plan.data_root / task / "arrays").glob(f"*-{side}px.npy")):
            size += 3 * side**2 * sum(split.examples for split in manifest.splits.values())
    return size


def _space(argument: str, folder: Path, needed: int, what: str) -> Fact:
    free = shutil.disk_usage(existing(folder)).free
    text = f"{argument} {folder}: {what} take at least {needed / 1e9:.1f} GB, {free / 1e9:.0f} GB are free"
    return Fact("ok" if needed < free else "problem", text, f"free some space, or name another {argument}")


def _memory(to_run: Sequence[Stage]) -> Iterator[Fact]:
    """Tell whether the devices that stages may run on can hold the largest network while it is trained."""
    import torch

    from bench import device
    from bench.training.networks import least_bytes

    largest = max(to_run, key=least_bytes)
    needed, name = least_bytes(largest), largest.backbone.name
    for used in local_devices(os.environ.get("BENCH_DEVICE") or None):
        free = device.free_memory(torch.device(used))
        text = f"{used}: training {name} takes at least {needed / 2**30:.1f} GiB, {free / 2**30:.1f} GiB are free"
        fix = "choose a smaller backbone, a device with more memory, or free some (nvidia-smi lists what runs on a GPU)"
        yield Fact("ok" if needed < free else "problem", text, fix)
        if used == "cpu" and _parameters(largest) > SLOW_PARAMETERS:
            text = f"there is no GPU, and {name} has {_parameters(largest) / 1e6:.0f} million parameters: days on a CPU"
            yield Fact("warning", text, "run it where there is a GPU (--launcher slurm), or choose a smaller backbone")
        bf16 = any(stage.execution.precision == "bfloat16" for stage in to_run)
        if bf16 and used != "cpu" and not device.properties(torch.device(used))[2]:
            yield Fact("warning", f"{used}: has no bfloat16", "execution.precision = 'float32', or a newer GPU")
