"""Weights as files: one safetensors file per model, one name per parameter."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from bench.errors import InputError, nearest
from bench.interfaces.model import Model, Resampling
from bench.store.files import replacing

PARTS = ("encoder", "decoder", "head")


def save_weights(model: Model, path: Path) -> None:
    """Write all parameters as safetensors, atomically.

    Tied tensors are written once, under their first name (the encoder's).
    """
    tensors = {name: parameter.detach().cpu().contiguous() for name, parameter in model.named_parameters()}
    with replacing(path) as temporary:
        temporary.write_bytes(save(tensors))  # save_file would make the file unreadable to other users


def load_weights(
    model: Model,
    path: Path,
    parts: Sequence[str],
    absent: Collection[str] = (),
    resampling: Resampling | None = None,
) -> None:
    """Copy the tensors of these parts from a weights file.

    Parts are "encoder", "decoder" and "head"; `save_weights` wrote the file. Other parts of the file are ignored;
    values are converted to the model's precision.

    What `absent` names may be missing from the file and keeps its values. With a `resampling` positions of another
    image size are fitted to the model's. Raises `InputError`, and changes nothing, where any other name of these parts
    is missing from or unknown to the model, or a shape differs.
    """
    for part in parts:
        if part not in PARTS:
            raise InputError(f"cannot load the part {part!r} of a model.{nearest(part, PARTS)}")
    # All checks come before the first copy: a model that is refused keeps the weights it had. Example: with the part
    # "encoder" the file's "decoder.…" tensors are ignored, but an "encoder.…" tensor that the model does not know is
    # refused.
    prefixes = tuple(f"{part}." for part in parts)
    parameters = {name: p for name, p in model.named_parameters() if name.startswith(prefixes)}
    for part in parts:
        if getattr(model, part) is None:
            raise InputError(f"{path}: the model was built without a {part}, so the file's cannot be loaded.")
    try:
        with safe_open(path, framework="pt") as file:
            names = [name for name in file.keys() if name.startswith(prefixes)]  # noqa: SIM118 - not a mapping
            tensors = {name: file.get_tensor(name) for name in names}
            if resampling is not None:
                tensors = {name: model.resampled(name, tensor, resampling) for name, tensor in tensors.items()}
            shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
            parameters = {name: p for name, p in parameters.items() if name in shapes or name not in absent}
            _refuse_differences(path, {name: tuple(p.shape) for name, p in parameters.items()}, shapes)
            with torch.no_grad():
                for name, parameter in parameters.items():
                    parameter.copy_(tensors[name])
    except (OSError, SafetensorError) as error:
        raise InputError(f"{path}: cannot be read as safetensors ({error}). Produce the weights again.") from error


def _refuse_differences(path: Path, expected: dict[str, tuple[int, ...]], in_file: dict[str, tuple[int, ...]]) -> None:
    missing, unexpected = sorted(expected.keys() - in_file.keys()), sorted(in_file.keys() - expected.keys())
    shared = sorted(expected.keys() & in_file.keys())
    wrong = [f"{name} is {in_file[name]}, not {expected[name]}" for name in shared if expected[name] != in_file[name]]
    problems = [
        f"{what}: {', '.join(names)}"
        for what, names in (("missing", missing), ("unexpected", unexpected), ("wrong shape", wrong))
        if names
    ]
    if problems:
        raise InputError(
            f"{path}: the weights do not fit the model. {'; '.join(problems)}. "
            "Load them into the backbone and class count they were trained with."
        )
