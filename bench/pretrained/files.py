"""A checkpoint's own files: weights in shards, safetensors or a pinned pickle, and config.json."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from bench.errors import InputError
from bench.pretrained.origin import PICKLE
from bench.store.files import digest, sha256
from bench.store.filetypes import recognised_file

TEXT_MODULES = ("bert", "roberta", "distilbert", "electra", "deberta", "transformer")
IMAGE_MODULES = ("vit", "deit", "dinov2", "dinov2_with_registers")
OUTERMOST = frozenset((*TEXT_MODULES, *IMAGE_MODULES))
"""Modules of transformers' networks that may hold all tensors of one."""


def read_weights(name: str, folder: Path, weights_checksum: str | None) -> tuple[dict[str, Tensor], str]:
    """Read a checkpoint's tensors, and the sha256 of its weight file.

    Tensors have the checkpoint's own names; floating ones become float32. Of shards the sha256 is that of their names
    and sha256s. A pickle is read only where `weights_checksum` is its sha256, and then without any code in it. Refuses
    missing and damaged files and values that are not finite.
    """
    files = _weight_files(folder)
    checksums = {file.name: sha256(file) for file in files}
    checksum = digest(checksums) if len(files) > 1 else checksums[files[0].name]
    pin = f"{name}/backbone.weights_checksum = '{checksum}'"
    if weights_checksum is None and files[0].name == PICKLE:
        raise InputError(
            f"{files[0]} is a pickle, and only one whose checksum is pinned is read. Its sha256 is {checksum}: compare "
            f"it with what the checkpoint's authors publish, then bind {pin}, or convert it to model.safetensors."
        )
    if weights_checksum is not None and weights_checksum.lower() != checksum:
        raise InputError(
            f"{files[0]}: its sha256 is {checksum}, but weights_checksum is {weights_checksum}: is the file complete "
            f"and the right one? If so, bind {pin}."
        )
    state: dict[str, Tensor] = {}
    for file in files:
        for key, tensor in (_read_pickle(file) if file.name == PICKLE else _read_safetensors(file)).items():
            state[key] = _finite(file, key, tensor)
    _refuse_wrapped(folder, state)
    return state, checksum


def _refuse_wrapped(folder: Path, state: dict[str, Tensor]) -> None:
    """Refuse tensors that all share the prefix of something around the network.

    torch.compile, DistributedDataParallel and training frameworks save the network as a part of theirs:

        _orig_mod.bert.embeddings…, _orig_mod.cls.predictions…      the prefix is _orig_mod.
        module._orig_mod.vit.embeddings…                            it is module._orig_mod.
        bert.embeddings…, bert.encoder…                             none: a BERT without a head
    """
    names = [name.split(".") for name in state]
    shared = list(itertools.takewhile(lambda parts: len(set(parts)) == 1, zip(*names, strict=False)))
    parts = [column[0] for column in itertools.takewhile(lambda column: column[0] not in OUTERMOST, shared)]
    if len(names) > 1 and parts and min(map(len, names)) > len(parts):
        prefix = ".".join(parts) + "."
        raise InputError(
            f"{folder}: the names of all tensors begin with {prefix!r}, as something around the network saves it "
            "(torch.compile, DistributedDataParallel). Save the network inside, or its tensors under "
            f"name.removeprefix({prefix!r})."
        )


def _weight_files(folder: Path) -> list[Path]:
    # In this order: one safetensors file, the index of several shards, a pickle.
    whole, index, pickle = (folder / name for name in ("model.safetensors", "model.safetensors.index.json", PICKLE))
    if whole.is_file():
        return [whole]
    if index.is_file():
        shards = read_json_object(index).get("weight_map")
        names = sorted(set(shards.values())) if isinstance(shards, dict) and shards else []
        if not names or not all(isinstance(name, str) and Path(name).name == name for name in names):
            raise InputError(f"{index} is damaged: its weight_map names no files of this folder. Copy it again.")
        if missing := [name for name in names if not (folder / name).is_file()]:
            raise InputError(f"{folder}: {', '.join(missing)} is missing, of the shards that {index.name} names.")
        return [folder / name for name in names]
    if pickle.is_file():
        return [pickle]
    raise InputError(f"{folder} holds no weights: neither {whole.name}, nor {index.name}, nor {pickle.name}.")


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except (OSError, ValueError, SafetensorError) as error:
        what = recognised_file(path)
        cause = f"is {what}" if what else f"cannot be read as safetensors ({error}): is it complete? Copy it again"
        raise InputError(f"{path} {cause}.") from error


def _read_pickle(path: Path) -> dict[str, Tensor]:
    try:
        state = torch.load(path, weights_only=True, map_location="cpu")
    except Exception as error:  # a damaged pickle can raise anything
        what = recognised_file(path)
        # torch itself writes zip archives.
        cause = f"is {what}" if what and "zip" not in what else None
        raise InputError(
            f"{path} {cause or f'cannot be read as weights ({type(error).__name__}: {error})'}."
        ) from error
    if not isinstance(state, dict) or not all(isinstance(tensor, Tensor) for tensor in state.values()):
        raise InputError(f"{path} cannot be used: it is no plain table of tensors by name.")
    return state


def _finite(path: Path, name: str, tensor: Tensor) -> Tensor:
    if not tensor.is_floating_point():
        return tensor
    tensor = tensor.to(torch.float32)
    if not tensor.isfinite().all():
        raise InputError(f"{path}: {name} holds NaN or infinite values. Copy the file again, or use another.")
    return tensor


def read_json_object(path: Path) -> dict[str, Any]:
    """Read a file of one JSON object; refuses anything else."""
    try:
        content = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise InputError(f"{path} is missing: the folder of a transformers or timm checkpoint has one.") from None
    except (OSError, ValueError, RecursionError) as error:
        what = recognised_file(path)
        raise InputError(f"{path} {f'is {what}' if what else f'cannot be read ({error})'}.") from error
    if not isinstance(content, dict):
        raise InputError(f"{path} cannot be used: it holds no JSON object.")
    return content
