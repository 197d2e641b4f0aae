"""From a stage's spec to its published record: models, data, training, evaluation, what is measured besides."""

from __future__ import annotations

import dataclasses
import math
import os
import resource
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import save

from bench.data.examples import open_split
from bench.data.manifest import read_manifest
from bench.data.metrics import NO_ENTRY, in_split, metric_of
from bench.device import numerics, peak_memory, release_memory, reset_peak_memory, resolve, use_cpu, using
from bench.errors import InputError
from bench.interfaces.examples import Examples
from bench.interfaces.hooks import Activity
from bench.interfaces.model import Model
from bench.models.weights import save_weights
from bench.specs import Data, Selected, Stage
from bench.store.code import code_of, merged_code
from bench.store.files import digest, replacing, sha256
from bench.store.ownership import Attempt
from bench.store.provenance import provenance
from bench.store.store import Store
from bench.training import loop
from bench.training.batches import Batches
from bench.training.checkpoint import Checkpoints
from bench.training.curve import CURVE, Curve, losses_at_the_ends
from bench.training.evaluate import encoder_distance, metrics, predict
from bench.training.networks import first_model, initial_model, refuse_too_large, trained_model, weight_type

if TYPE_CHECKING:
    from bench.training.protocol import Progress, Settings

OWNER_SECONDS = 1.0
"""How often the store is asked whether another process has taken the stage over."""


def fit(
    stage: Stage, store: Store, attempt: Attempt, settings: Settings, stop: Callable[[], bool], progress: Progress
) -> None:
    """Train a claimed stage, evaluate it and publish its record.

    Training goes on from the last checkpoint. A search's stage first takes the settings whose candidate scored best.
    Raises `Interrupted` when asked to stop, and whatever error occurs.
    """
    # A search's stage keeps its own key and folder, but what is trained is the chosen stage. The record is published
    # before the checkpoints go: a kill between the two leaves checkpoints behind, never a stage without either.
    chosen, search = choose(stage, store) if isinstance(stage, Selected) else (stage, None)
    folder = store.folder(stage)
    for kind in ("weights", "predictions"):
        for leftover in folder.glob(f".{kind}-*"):  # of an attempt that was killed while it wrote
            leftover.unlink(missing_ok=True)
    ancestry = _ancestry(stage, store)
    saved = Checkpoints(folder / "checkpoints", (stage.key, chosen.key, digest(ancestry["parents"])))
    attempt.facts["code"] = code_of(stage)
    use_cpu(settings.threads)
    device = resolve(settings.device)
    with using(device), numerics(chosen.execution, device):
        record = _trained(chosen, store, attempt, settings, device, saved, stop, progress)
    ancestry["code"] = merged_code([store.code(attempt), ancestry["code"]])
    facts = {"key": stage.key, "attempt": attempt.number, **ancestry, **({} if search is None else {"search": search})}
    facts["date"] = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    store.publish(attempt, stage, {**facts, **record})
    saved.clear()


def _trained(
    stage: Stage,
    store: Store,
    attempt: Attempt,
    settings: Settings,
    device: torch.device,
    saved: Checkpoints,
    stop: Callable[[], bool],
    progress: Progress,
) -> dict[str, Any]:
    """Train, measure and evaluate; return what the record says of it. The weights are then in the stage's folder."""
    dtype = weight_type(stage)
    reset_peak_memory(device)  # of this stage, not of those the process ran before
    refuse_too_large(stage, device)
    model = initial_model(stage, store, settings.data_root).to(device)
    training_set = open_data(stage.data, stage, settings)
    teacher, teacher_set = None, None
    if stage.teacher is not None:
        teacher = trained_model(stage.teacher, store, dtype).to(device)
        teacher_set = open_data(stage.data, stage.teacher, settings)
        teacher_set.dtype = dtype
    supervision = _supervision(stage, store, attempt, settings, saved, stop, progress)
    batches = Batches(stage, training_set, model, device)
    trained = loop.train(stage, model, teacher, batches, supervision, teacher_set, settings.graphs)
    release_memory(device)  # of recorded steps, which evaluation cannot use

    # Only now what is measured: the distance loads a second network, which must not count as memory of training, so the
    # peak is read first.
    measured = _cost(stage, batches, trained.seconds, device)
    measured |= losses_at_the_ends(saved.folder.parent)
    measured |= encoder_distance(model, first_model(stage, store, settings.data_root))
    values, of_evaluation, predictions = _evaluated(stage, model, training_set, settings, device)
    measured |= of_evaluation
    return {
        "metrics": values,
        "measured": measured,
        "activity": {name: _jsonable(part) for name, part in trained.activity.items()},
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "steps": stage.total_steps,
        "seconds": round(trained.seconds + measured.get("evaluation_seconds", 0.0), 3),
        "curve": sha256(saved.folder.parent / CURVE),
        "weights": _kept(saved.folder.parent, "weights", lambda path: save_weights(model, path)),
        **({"predictions": _kept(saved.folder.parent, "predictions", _saving(predictions))} if predictions else {}),
        "provenance": {
            **provenance(settings.device, settings.threads),
            "data": {f"{data.task}/{data.split}": data.checksum for data in (stage.data, *stage.evaluations)},
        },
    }


def _evaluated(
    stage: Stage, model: Model, training_set: Examples, settings: Settings, device: torch.device
) -> tuple[dict[str, float], dict[str, float], dict[str, torch.Tensor]]:
    """Evaluate a trained network on the stage's splits and on its training set.

    Returns the metrics, what is measured beside them, and the logits with their labels; nothing without a split.
    """
    values: dict[str, float] = {}
    predictions: dict[str, torch.Tensor] = {}
    if stage.evaluation is None:
        return values, {}, predictions
    began = time.perf_counter()
    # Splits to be evaluated are opened only now: nothing before could have seen them.
    for data in stage.evaluations:
        logits, labels = predict(stage, model, open_data(data, stage, settings), device)
        of_split = metrics(logits, labels, _class_names(data, settings))
        further = None if data is stage.evaluation else data.split
        values |= {in_split(name, further): value for name, value in of_split.items()}
        # A network computes in float32 at most, unless its weights are in float64: nothing is lost.
        tensors = {"index": torch.arange(len(labels)), "labels": labels, "logits": logits.to(weight_type(stage))}
        predictions |= {f"{data.split}/{name}": tensor for name, tensor in tensors.items()}
    train_loss = float(torch.nn.functional.cross_entropy(*predict(stage, model, training_set, device)))
    if not math.isfinite(values["loss"] + train_loss):
        raise loop.Diverged(
            f"weights are finite after the last step, but the loss is {values['loss']} on {stage.evaluation.split} and "
            f"{train_loss} on the training set; lower the learning rate or clip gradients"
        )
    measured = {
        "train_loss": train_loss,
        "generalisation_gap": values["loss"] - train_loss,
        "evaluation_seconds": round(time.perf_counter() - began, 3),
    }
    return values, measured, predictions


def _ancestry(stage: Stage, store: Store) -> dict[str, Any]:
    """Note what a stage begins with: its parents' weights, by folder, and the code that led to them."""
    records = {parent.folder: store.record(parent) for parent in stage.parents}
    parents = {folder: record for folder, record in records.items() if record is not None}
    return {
        "parents": {folder: record["weights"]["sha256"] for folder, record in parents.items()},
        "code": merged_code(record.get("code", {}) for record in parents.values()),
    }


def open_data(data: Data, stage: Stage, settings: Settings) -> Examples:
    """Open a split as a stage reads it: for its backbone, in the type of its weights."""
    examples = open_split(data, stage.backbone, settings.data_root)
    examples.dtype = weight_type(stage)
    return examples


def _class_names(data: Data, settings: Settings) -> tuple[str, ...]:
    manifest = read_manifest(data.task, settings.data_root)
    return (manifest.class_names or ()) if manifest is not None else ()


def _supervision(
    stage: Stage,
    store: Store,
    attempt: Attempt,
    settings: Settings,
    saved: Checkpoints,
    stop: Callable[[], bool],
    progress: Progress,
) -> loop.Supervision:
    """Connect the loop with attempt, log and launcher.

    The loop stops when asked to, or when another process has taken the stage over.
    """
    interval = 10 if stage.total_steps < 1000 else 50
    curve = Curve(saved.folder.parent)
    # A look at the store is a look at the file system, so it is asked once a second and not at every step.
    last_asked = -math.inf

    def started(step: int) -> None:
        store.started(attempt, step, saved.warnings)
        curve.cut(step)
        mixed = [name for name, digests in store.code(attempt).items() if len(digests) > 1]
        if mixed:
            warning = f"Going on from a checkpoint that other code of {', '.join(mixed)} wrote; the record says so."
            store.started(attempt, step, [warning])
        progress(step, stage.total_steps, math.nan)

    def stepped(step: int, losses: Mapping[str, float]) -> None:
        if step % interval == 0:
            parts = [f"{name} {value:.6g}" for name, value in losses.items() if name != "loss"]
            print(f"step {step}/{stage.total_steps} loss {losses['loss']:.6g}", *parts, flush=True)  # to the log
            curve.add(step, loop.learning_rate(stage.schedule, step - 1, stage.total_steps), losses)
        if step % interval == 0 or step == stage.total_steps:
            progress(step, stage.total_steps, losses["loss"])

    def stopping() -> bool:
        nonlocal last_asked
        if stop():
            return True
        if time.monotonic() - last_asked < OWNER_SECONDS:
            return False
        last_asked = time.monotonic()
        return not store.owns(attempt)

    return loop.Supervision(stopping, saved, settings.checkpoint_steps, started, stepped)


def choose(stage: Selected, store: Store) -> tuple[Stage, dict[str, Any]]:
    """Pick the final whose candidate scored best on held-out data.

    Of equal scores the first wins. A candidate that diverged has no score and is worse than all others. Also returns
    what became of every candidate. Raises `Diverged` where what the chosen final starts from diverged.
    """
    # Of the scores [0.7, 0.9, 0.9] number 1 is chosen, of [None, 0.0] too: no other candidate can lose against one that
    # diverged. Of the losses [0.7, 0.9, 0.9], where lower is better, it is number 0.
    assert not store.missing_parents(stage), "the launcher runs parents first, and no search that diverged as a whole"
    metric = metric_of(stage.metric)
    tried: list[dict[str, Any]] = []
    ranks: list[tuple[bool, float]] = []
    for candidate in stage.candidates:
        record = store.record(candidate)
        if record is None:
            tried.append({"key": candidate.key, stage.metric: None, "diverged": store.divergence(candidate)})
            ranks.append((False, 0.0))
            continue
        if stage.metric not in record["metrics"]:
            raise InputError(f"{candidate.folder}, a candidate of a search, has no {metric.title}: {NO_ENTRY}.")
        score = record["metrics"][stage.metric]
        tried.append({"key": candidate.key, stage.metric: score})
        ranks.append((math.isfinite(score), metric.merit(score)))
    best = ranks.index(max(ranks))
    final = stage.finals[best]
    for parent in store.missing_parents(final):
        raise loop.Diverged(f"{parent.folder}, which the chosen settings start from: {store.divergence(parent)}")
    return final, {"chosen": best, "metric": stage.metric, "candidates": tried}


def _cost(stage: Stage, batches: Batches, seconds: float, device: torch.device) -> dict[str, float]:
    """Measure examples per second of training, and the peak memory.

    The memory is in bytes: that of a GPU, or of this process on a CPU.
    """
    examples = sum(batches.size(step) for step in range(stage.total_steps))
    if device.type == "cuda":
        peak = peak_memory(device)
    else:
        # Kilobytes on Linux, bytes on macOS; the peak of the process, so of every stage it ran before as well.
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    return {"examples_per_second": round(examples / max(seconds, 1e-9), 3), "peak_memory_bytes": peak}


def _jsonable(activity: Activity) -> dict[str, Any]:
    """Return the entry of a record. JSON has no number that is not finite, so such a value becomes None."""
    fields = dataclasses.asdict(activity)
    return fields if math.isfinite(activity.value) else {**fields, "value": None}


def _kept(folder: Path, kind: str, write: Callable[[Path], None]) -> dict[str, Any]:
    """Write a file of a finished stage; return what its record says of it."""
    # Named by content: an attempt taken for dead and its successor may both get here. With equal content they write the
    # same file, with others two, so the record that wins names one that nobody overwrote.
    temporary = folder / f".{kind}-{os.getpid()}"
    write(temporary)
    checksum = sha256(temporary)
    path = folder / f"{kind}-{checksum[:16]}.safetensors"
    os.replace(temporary, path)
    return {"file": path.name, "sha256": checksum, "bytes": path.stat().st_size}


def _saving(tensors: Mapping[str, torch.Tensor]) -> Callable[[Path], None]:
    """Return the function that writes these tensors to a path."""

    def write(path: Path) -> None:
        with replacing(path) as temporary:
            temporary.write_bytes(save(dict(tensors)))

    return write
