"""The weights of transformers' ViTMAE (the public `facebook/vit-mae-*`) under this suite's names.

Parameter names of transformers up to 4 (as the released checkpoints have them) and from 5 on are both understood, and
those that 5 writes to disk: the old ones, but for decoder blocks, which it calls `decoder.decoder_encoder.layer`. The
reference keeps queries, keys and values apart; timm's blocks hold them as one matrix, in that order.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from bench.errors import InputError

QKV = ("query", "key", "value")


class Place(NamedTuple):
    """A parameter of this suite, and which third of it is meant: 0 queries, 1 keys, 2 values, None for all of it."""

    name: str
    third: int | None = None


BLOCK = {
    **{f"attention.attention.{name}": ("attn.qkv", third) for third, name in enumerate(QKV)},
    **{f"attention.{name[0]}_proj": ("attn.qkv", third) for third, name in enumerate(QKV)},
    "attention.output.dense": ("attn.proj", None),
    "attention.o_proj": ("attn.proj", None),
    "intermediate.dense": ("mlp.fc1", None),
    "mlp.fc1": ("mlp.fc1", None),
    "output.dense": ("mlp.fc2", None),
    "mlp.fc2": ("mlp.fc2", None),
    "layernorm_before": ("norm1", None),
    "layernorm_after": ("norm2", None),
}
LAYERS = {
    "embeddings.patch_embeddings.projection": "encoder.patch_embed.proj",
    "layernorm": "encoder.norm",
    "decoder.decoder_embed": "decoder.embed",
    "decoder.decoder_norm": "decoder.norm",
    "decoder.decoder_pred": "decoder.predict",
    "classifier": "head",
}
TENSORS = {
    "embeddings.cls_token": "encoder.cls_token",
    "embeddings.position_embeddings": "encoder.pos_embed",
    "decoder.mask_token": "decoder.mask_token",
    "decoder.decoder_pos_embed": "decoder.pos_embed",
}
IN_BLOCK = re.compile(
    r"(encoder\.layer|layers|decoder\.decoder_layers|decoder\.decoder_encoder\.layer)\.(\d+)\.(.+)\.(weight|bias)"
)


def place(name: str) -> Place:
    """Where a parameter of transformers' ViTMAE or of its classifier belongs; the prefix `vit.` may be missing.

    Raises `InputError` for a name that neither network has.
    """
    bare = name.removeprefix("vit.")
    if bare in TENSORS:
        return Place(TENSORS[bare])
    layer, _, kind = bare.rpartition(".")
    if layer in LAYERS and kind in ("weight", "bias"):
        return Place(f"{LAYERS[layer]}.{kind}")
    match = IN_BLOCK.fullmatch(bare)
    if match is None or match[3] not in BLOCK:
        raise InputError(f"{name!r} is no parameter of a masked auto-encoder of transformers: is it another network's?")
    part = "decoder" if match[1].startswith("decoder") else "encoder"
    inner, third = BLOCK[match[3]]
    return Place(f"{part}.blocks.{match[2]}.{inner}.{match[4]}", third)


def from_transformers(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of a ViTMAE, or of a part of it, by this suite's names.

    Raises `InputError` for an unknown name, or where one of query, key and value is missing.
    """
    found: dict[str, Tensor] = {}
    thirds: dict[str, dict[int, Tensor]] = {}
    for name, tensor in state.items():
        ours, third = place(name)
        if third is None:
            found[ours] = tensor
        else:
            thirds.setdefault(ours, {})[third] = tensor
    for ours, parts in thirds.items():
        if missing := [QKV[third] for third in range(3) if third not in parts]:
            raise InputError(f"{ours} cannot be put together: the {' and the '.join(missing)} projection is missing.")
        found[ours] = torch.cat([parts[third] for third in range(3)])
    return found


def sizes(shapes: Mapping[str, Sequence[int]]) -> dict[str, int]:
    """The fields of `MaskedAutoEncoder` that the parameter shapes tell, by transformers' names: all but the heads.

    Those of the decoder only where it is among them.
    """
    ours = {place(name).name: tuple(shape) for name, shape in shapes.items()}
    patch = ours["encoder.patch_embed.proj.weight"][-1]
    fields = {
        "image_size": math.isqrt(ours["encoder.pos_embed"][1] - 1) * patch,
        "patch_size": patch,
        "width": ours["encoder.cls_token"][-1],
        "depth": sum(re.fullmatch(r"encoder\.blocks\.\d+\.norm1\.weight", name) is not None for name in ours),
        "mlp_width": ours["encoder.blocks.0.mlp.fc1.weight"][0],
    }
    if "decoder.mask_token" in ours:
        fields |= {
            "decoder_width": ours["decoder.mask_token"][-1],
            "decoder_depth": sum(
                re.fullmatch(r"decoder\.blocks\.\d+\.norm1\.weight", name) is not None for name in ours
            ),
            "decoder_mlp_width": ours["decoder.blocks.0.mlp.fc1.weight"][0],
        }
    return fields
