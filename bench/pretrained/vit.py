"""Vision transformers of transformers (ViTMAE) and timm under this suite's names."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from bench.errors import InputError
from bench.pretrained.contents import LEGAL, CheckpointContents, parse_configuration, require_settings
from bench.pretrained.vit_mae_names import from_transformers, target_of

TIMM_ARGUMENTS = {
    "img_size",
    "patch_size",
    "in_chans",
    "embed_dim",
    "depth",
    "num_heads",
    "mlp_ratio",
    "global_pool",
    "num_classes",
}
"""What a timm checkpoint may set beside its architecture: sizes, and what its classifier looks at."""


def _masked_auto_encoder(folder: Path, raw: dict[str, Any], state: dict[str, Tensor]) -> CheckpointContents:
    """Read a ViTMAE of transformers, with its decoder or without."""
    from transformers import ViTMAEConfig

    require_settings(folder, raw, {"hidden_act": "gelu", "qkv_bias": True, "num_channels": 3})
    config = parse_configuration(folder, ViTMAEConfig, raw)
    # The name of each tensor here; what has none, or is a classifier's, is refused.
    targets: dict[str, str] = {}
    unknown = []
    for name in state:
        try:
            targets[name] = target_of(name).name
        except InputError:
            unknown.append(name)
    unknown += [name for name, ours in targets.items() if ours.startswith("head.")]
    if unknown:
        raise InputError(f"{folder}: these tensors are of no masked auto-encoder: {', '.join(sorted(unknown))}.")
    architecture: dict[str, Any] = {
        "image_size": _side(folder, "image_size", config.image_size),
        "patch_size": _side(folder, "patch_size", config.patch_size),
        "width": config.hidden_size,
        "depth": config.num_hidden_layers,
        "heads": config.num_attention_heads,
        "mlp_width": config.intermediate_size,
        "norm_eps": config.layer_norm_eps,
    }
    if any(ours.startswith("decoder.") for ours in targets.values()):
        architecture |= {
            "decoder_width": config.decoder_hidden_size,
            "decoder_depth": config.decoder_num_hidden_layers,
            "decoder_heads": config.decoder_num_attention_heads,
            "decoder_mlp_width": config.decoder_intermediate_size,
            "decoder_norm_eps": config.layer_norm_eps,
            "mask_ratio": config.mask_ratio,
            "norm_pix_loss": config.norm_pix_loss,
        }
    else:
        architecture["decoder_depth"] = 0
    tensors = from_transformers(state)
    for name in ("encoder.pos_embed", "decoder.pos_embed"):
        if name in tensors and not tensors[name].any():
            raise InputError(
                f"{folder}: the positions {name} are all zero, as transformers leaves them in a network that it builds "
                "from a configuration alone. Fill them before saving."
            )
    return CheckpointContents("image", architecture, tensors)


def _side(folder: Path, name: str, value: Any) -> int:
    sides = list(value) if isinstance(value, list | tuple) else [value]
    if len(set(sides)) != 1 or not isinstance(sides[0], int):
        raise InputError(f"{folder / 'config.json'}: {name} is {value!r}; here it must be square, in whole pixels.")
    return int(sides[0])


def _timm_encoder(folder: Path, raw: dict[str, Any], state: dict[str, Tensor]) -> CheckpointContents:
    """Read a plain vision transformer of timm, an encoder without a decoder.

    Its classifier is ignored.
    """
    from timm import create_model
    from timm.models.vision_transformer import VisionTransformer

    kind, arguments = raw["architecture"], raw.get("model_args") or {}
    if unknown := sorted(arguments.keys() - TIMM_ARGUMENTS):
        raise InputError(f"{folder / 'config.json'}: model_args sets {', '.join(unknown)}, a variant not known here.")
    ignored = tuple(sorted(name for name in state if name.startswith("head.")))
    encoder = {name: tensor for name, tensor in state.items() if name not in ignored}
    try:
        patch, positions = encoder["patch_embed.proj.weight"].shape[-1], encoder["pos_embed"].shape[1]
    except KeyError as error:
        raise InputError(f"{folder}: there is no tensor {error}, which every vision transformer has here.") from None
    # 197 positions are one CLS token and 14 x 14 patches: at 16 pixels each, images of 224.
    image_size = math.isqrt(positions - 1) * patch
    try:
        network: nn.Module = create_model(
            kind, pretrained=False, **{**arguments, "num_classes": 0, "img_size": image_size, "global_pool": "token"}
        )
    except (RuntimeError, TypeError, ValueError, AssertionError) as error:
        raise InputError(f"{folder}: timm cannot build its {kind!r} ({error}).") from error
    if type(network) is not VisionTransformer:
        raise InputError(f"{folder}: {kind!r} is no plain vision transformer. Legal: {LEGAL}.")
    try:
        network.load_state_dict(encoder)
    except RuntimeError as error:
        raise InputError(
            f"{folder}: the weights are not those of a {kind} that reads the CLS token: {error}"
        ) from error
    block: Any = network.blocks[0]
    architecture = {
        "image_size": image_size,
        "patch_size": patch,
        "width": network.embed_dim,
        "depth": len(network.blocks),
        "heads": block.attn.num_heads,
        "mlp_width": block.mlp.fc1.out_features,
        "decoder_depth": 0,
        "norm_eps": block.norm1.eps,
    }
    network.eval()
    return CheckpointContents(
        "image",
        architecture,
        {f"encoder.{name}": tensor for name, tensor in encoder.items()},
        ignored=ignored,
        features=lambda images: network.forward_features(images)[:, 0],
    )
