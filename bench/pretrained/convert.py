"""Checkpoints of transformers and timm by this suite's names: vision transformers and text encoders.

Only tensors and plain configuration are read, never code. What the networks here would compute differently is refused.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor

from bench.errors import InputError
from bench.interfaces.model import Inputs, Model
from bench.models.build import build
from bench.models.weights import load_weights
from bench.pretrained.checkpoints import TOKENIZER, WEIGHTS, architecture_of
from bench.pretrained.contents import IMAGE_FAMILIES, LEGAL, NETWORKS, CheckpointContents
from bench.pretrained.files import read_json_object, read_weights
from bench.pretrained.transformers_text import text_encoder
from bench.pretrained.vit import image_encoder, masked_auto_encoder, timm_encoder
from bench.specs.architectures import LanguageModel, MaskedAutoEncoder
from bench.specs.families import FAMILIES

Reader = Callable[[Path, dict[str, Any], dict[str, Tensor]], CheckpointContents]

READERS: dict[str, Reader] = {
    "vit_mae": masked_auto_encoder,
    **dict.fromkeys(IMAGE_FAMILIES, image_encoder),
    **dict.fromkeys((*NETWORKS, *FAMILIES), text_encoder),
}
"""What reads a checkpoint of transformers, by the `model_type` of config.json."""


def convert(name: str, folder: Path, target: Path, weights_checksum: str | None) -> tuple[CheckpointContents, str]:
    """Convert a folder of transformers or timm into the folder `target`.

    Returns its contents and the sha256 of the weight file. Written are the weights, and for text the tokenizer.

    The network is then built from what was read and run once; where the library's own network is at hand, both must
    give the same features. Raises `InputError` for networks and variants that this suite does not have, custom code,
    damaged or incomplete files, values that are not finite, and a pickle without `weights_checksum`. Leaves torch's
    random state as it was.
    """
    config = read_json_object(folder / "config.json")
    if config.get("auto_map"):
        raise InputError(f"{folder / 'config.json'}: auto_map asks for the checkpoint's own code, which is never run.")
    reader = _reader(folder, config)
    state, checksum = read_weights(name, folder, weights_checksum)
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        contents = reader(folder, config, state)
        backbone = _backbone(name, folder, contents)
        model = build(backbone, decoder=backbone.has_decoder)
        _check_fit(folder, model, contents)
        path = target / WEIGHTS
        tensors = {key: tensor.clone(memory_format=torch.contiguous_format) for key, tensor in contents.tensors.items()}
        path.write_bytes(save(tensors))
        parts = ["encoder"] if model.decoder is None else ["encoder", "decoder"]
        load_weights(model, path, parts, absent=contents.fresh)
        _try(folder, backbone, model.eval(), contents)
    if contents.tokenizer is not None:
        (target / TOKENIZER).write_text(contents.tokenizer, encoding="utf-8")
    return contents, checksum


def _reader(folder: Path, config: dict[str, Any]) -> Reader:
    kind = config.get("model_type")
    if kind in READERS:
        return READERS[kind]
    if kind is None and str(config.get("architecture", "")).startswith(("vit_", "deit")):
        return timm_encoder
    name = kind or config.get("architecture")
    raise InputError(f"{folder / 'config.json'}: no network here is like {name!r}. Legal: {LEGAL}.")


# ------------------------------------------------------------------------------------------------ fitting


def _backbone(name: str, folder: Path, contents: CheckpointContents) -> MaskedAutoEncoder | LanguageModel:
    try:
        return architecture_of(name, contents.modality, contents.architecture)
    except InputError as error:  # without the field, which no gin file has set
        raise InputError(f"{folder}: {error}") from error


def _check_fit(folder: Path, model: Model, contents: CheckpointContents) -> None:
    expected = {name: tuple(p.shape) for name, p in model.named_parameters() if name not in contents.fresh}
    shapes = {name: tuple(tensor.shape) for name, tensor in contents.tensors.items()}
    problems = [f"{name} is missing" for name in sorted(expected.keys() - shapes.keys())]
    problems += [f"{name} is not known" for name in sorted(shapes.keys() - expected.keys())]
    problems += [
        f"{name} is {shapes[name]}, not {expected[name]}"
        for name in sorted(expected.keys() & shapes.keys())
        if expected[name] != shapes[name]
    ]
    if problems:
        shown = "; ".join(problems[:10]) + (f"; and {len(problems) - 10} more" if len(problems) > 10 else "")
        raise InputError(f"{folder}: the weights are not those of the network that config.json describes: {shown}.")


def _try(folder: Path, backbone: MaskedAutoEncoder | LanguageModel, model: Model, contents: CheckpointContents) -> None:
    """Run the network once and refuse what it computes wrongly.

    Values must be finite, and features must be those of the checkpoint's own library. The network runs in float32, in
    which sums in another order differ by far less than another formula does.
    """
    inputs = _example(backbone)
    features = model.features(inputs)
    results = [features]
    if model.decoder is not None:
        results.append(model.masked_loss(inputs, model.draw_mask(inputs, torch.Generator().manual_seed(0))))
    if not all(result.isfinite().all() for result in results):
        raise InputError(f"{folder}: the network gives NaN or infinite values on an ordinary input.")
    if contents.features is None:
        return
    expected = contents.features(inputs)
    if (features - expected).abs().max() > 1e-3 * expected.abs().max():
        raise InputError(
            f"{folder}: the checkpoint computes other features in its own library than here: it is a variant that "
            f"this suite does not have. Legal: {LEGAL}."
        )


def _example(backbone: MaskedAutoEncoder | LanguageModel) -> Inputs:
    if isinstance(backbone, MaskedAutoEncoder):
        shape = (2, 3, backbone.image_size, backbone.image_size)
        return torch.randn(shape, generator=torch.Generator().manual_seed(0))
    # Two rows of the first ordinary tokens, the second backwards and one token shorter: its last one is padding.
    ordinary = [token for token in range(backbone.vocabulary) if token not in backbone.special_ids]
    length = min(8, backbone.max_length)
    row = torch.tensor((ordinary * length)[:length])
    inputs = {"input_ids": torch.stack([row, row.flip(0)]), "attention_mask": torch.ones(2, length, dtype=torch.long)}
    inputs["input_ids"][1, -1], inputs["attention_mask"][1, -1] = backbone.pad_id, 0
    return inputs
