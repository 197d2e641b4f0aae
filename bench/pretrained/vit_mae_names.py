"""The weights of transformers' vision transformers under this suite's names.

They are ViTMAE (the public `facebook/vit-mae-*`), ViT, DeiT and DINOv2.

Parameter names of transformers up to 4 (as the released checkpoints have them) and from 5 on are both understood, and
those that 5 writes to disk: the old ones, but for decoder blocks, which it calls `decoder.decoder_encoder.layer`. The
reference keeps queries, keys and values apart; timm's blocks hold them as one matrix, in that order.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from bench.errors import InputError

QKV = ("query", "key", "value")


class Target(NamedTuple):
    """A parameter of this suite, or a third of it.

    `third` is 0 for queries, 1 for keys, 2 for values, None for all of the parameter.
    """

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
    "norm1": ("norm1", None),
    "norm2": ("norm2", None),
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
    "embeddings.distillation_token": "encoder.reg_token",
    "embeddings.register_tokens": "encoder.reg_token",
    "embeddings.position_embeddings": "encoder.pos_embed",
    "decoder.mask_token": "decoder.mask_token",
    "decoder.decoder_pos_embed": "decoder.pos_embed",
}
IN_BLOCK = re.compile(
    r"(encoder\.layer|layers|decoder\.decoder_layers|decoder\.decoder_encoder\.layer)\.(\d+)\.(.+)\.(weight|bias)"
)
GAIN = re.compile(r"encoder\.layer\.(\d+)\.layer_scale([12])\.lambda1")


def target_of(name: str) -> Target:
    """Return where a parameter of a vision transformer of transformers belongs.

    Parameters of ViTMAE's classifier are understood, too; its prefix `vit.` may be missing. Examples:

        vit.layernorm.bias                                      encoder.norm.bias
        vit.encoder.layer.3.attention.attention.key.weight      encoder.blocks.3.attn.qkv.weight, third 1
        decoder.decoder_layers.0.output.dense.weight            decoder.blocks.0.mlp.fc2.weight
        encoder.layer.0.layer_scale1.lambda1                    encoder.blocks.0.ls1.gamma

    Raises `InputError` for a name that neither network has.
    """
    # Tried in turn: whole names, layers outside the blocks with a weight and a bias, gains and layers of a block.
    bare = name.removeprefix("vit.")
    if bare in TENSORS:
        return Target(TENSORS[bare])
    layer, _, kind = bare.rpartition(".")
    if layer in LAYERS and kind in ("weight", "bias"):
        return Target(f"{LAYERS[layer]}.{kind}")
    if match := GAIN.fullmatch(bare):
        return Target(f"encoder.blocks.{match[1]}.ls{match[2]}.gamma")
    match = IN_BLOCK.fullmatch(bare)
    if match is None or match[3] not in BLOCK:
        raise InputError(f"{name!r} is no parameter of a masked auto-encoder of transformers: is it another network's?")
    part = "decoder" if match[1].startswith("decoder") else "encoder"
    inner, third = BLOCK[match[3]]
    return Target(f"{part}.blocks.{match[2]}.{inner}.{match[4]}", third)


def from_transformers(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename the tensors of a ViTMAE, or of a part of it.

    Their names become this suite's; queries, keys and values of a block become one tensor.

    Raises `InputError` for an unknown name, or where one of query, key and value is missing.
    """
    # {"encoder.blocks.3.attn.qkv.weight": {0: queries, 1: keys, 2: values}}, each (width, width), joined to
    # (3 · width, width) once all are there.
    tensors: dict[str, Tensor] = {}
    thirds: dict[str, dict[int, Tensor]] = {}
    for name, tensor in state.items():
        ours, third = target_of(name)
        if third is None:
            tensors[ours] = tensor
        else:
            thirds.setdefault(ours, {})[third] = tensor
    for ours, parts in thirds.items():
        if missing := [QKV[third] for third in range(3) if third not in parts]:
            raise InputError(f"{ours} cannot be put together: the {' and the '.join(missing)} projection is missing.")
        tensors[ours] = torch.cat([parts[third] for third in range(3)])
    return tensors
