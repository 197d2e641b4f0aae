"""Vision transformers of transformers (ViTMAE, ViT, DeiT, DINOv2) and timm under this suite's names."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import Tensor, nn

from bench.errors import InputError
from bench.models.image import renormalised
from bench.pretrained.contents import (
    IMAGE_FAMILIES,
    LEGAL,
    CheckpointContents,
    load_network,
    parse_configuration,
    require_settings,
)
from bench.pretrained.files import read_json_object
from bench.pretrained.origin import PREPROCESSOR
from bench.pretrained.vit_mae_names import from_transformers, target_of
from bench.specs.architectures import IMAGENET_MEAN, IMAGENET_STD, SIZES
from bench.specs.families import SIZES_OF_BERT

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
    "reg_tokens",
    "init_values",
    "no_embed_class",
    "pre_norm",
    "dynamic_img_size",
}
"""What a timm checkpoint may set beside its architecture: sizes, tokens, and what its classifier looks at."""

LEGAL_SETTINGS = {
    "hidden_act": "gelu",
    "qkv_bias": True,
    "num_channels": 3,
    "use_swiglu_ffn": False,
    "hidden_dropout_prob": 0,
    "attention_probs_dropout_prob": 0,
    "drop_path_rate": 0,
}
"""What the configuration of an image encoder of transformers must say, where it says it."""

MASK_TOKEN = "embeddings.mask_token"
OF_ENCODER = ("embeddings.", "encoder.", "layers.", "layernorm.")
"""How the names of an encoder's tensors begin in transformers."""


def masked_auto_encoder(folder: Path, raw: dict[str, Any], state: dict[str, Tensor]) -> CheckpointContents:
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
    architecture = _encoder_fields(folder, config)
    if any(ours.startswith("decoder.") for ours in targets.values()):
        architecture |= {
            **{f"decoder_{size}": getattr(config, f"decoder_{SIZES_OF_BERT[size]}") for size in SIZES},
            "decoder_norm_eps": config.layer_norm_eps,
            "mask_ratio": config.mask_ratio,
            "norm_pix_loss": config.norm_pix_loss,
        }
    else:
        architecture["decoder_depth"] = 0
    tensors = from_transformers(state)
    _refuse_empty_positions(folder, tensors)
    return CheckpointContents("image", architecture, tensors)


def _encoder_fields(folder: Path, config: Any) -> dict[str, Any]:
    """Return the backbone's fields of an encoder of transformers."""
    return {
        "image_size": _side(folder, "image_size", config.image_size),
        "patch_size": _side(folder, "patch_size", config.patch_size),
        "width": config.hidden_size,
        "depth": config.num_hidden_layers,
        "heads": config.num_attention_heads,
        # DINOv2's configuration has a ratio instead.
        "mlp_width": getattr(config, "intermediate_size", None) or int(config.hidden_size * config.mlp_ratio),
        "norm_eps": config.layer_norm_eps,
    }


def _side(folder: Path, name: str, value: Any) -> int:
    sides = list(value) if isinstance(value, list | tuple) else [value]
    if len(set(sides)) != 1 or not isinstance(sides[0], int):
        raise InputError(f"{folder / 'config.json'}: {name} is {value!r}; here it must be square, in whole pixels.")
    return int(sides[0])


def _normalisation(mean: Any, std: Any) -> dict[str, Any]:
    """Return the fields for the statistics that a checkpoint names; without any they are ImageNet's."""
    return {
        "pixel_mean": IMAGENET_MEAN if mean is None else mean,
        "pixel_std": IMAGENET_STD if std is None else std,
    }


def image_encoder(folder: Path, raw: dict[str, Any], state: dict[str, Tensor]) -> CheckpointContents:
    """Read a ViT, DeiT or DINOv2 of transformers, an encoder without a decoder.

    transformers builds the network and loads the tensors; its parameters are then taken over under this suite's names.
    Its classifiers and pooler are ignored, and so is the token that stands for masked patches.
    """
    import transformers

    family = IMAGE_FAMILIES[raw["model_type"]]
    require_settings(folder, raw, LEGAL_SETTINGS)
    network_class = getattr(transformers, family.network)
    config = parse_configuration(folder, network_class.config_class, raw)
    network, ignored = _loaded_encoder(folder, network_class, config, state)
    tensors = from_transformers(
        {name: parameter.detach() for name, parameter in network.named_parameters() if name != MASK_TOKEN}
    )
    _refuse_empty_positions(folder, tensors)
    processor = read_json_object(folder / PREPROCESSOR) if (folder / PREPROCESSOR).is_file() else {}
    pixels = _normalisation(processor.get("image_mean"), processor.get("image_std"))
    return CheckpointContents(
        "image",
        {
            **_encoder_fields(folder, config),
            "decoder_depth": 0,
            "layer_scale": getattr(config, "layerscale_value", None),
            "registers": getattr(config, "num_register_tokens", 0),
            **family.fields,
            **pixels,
        },
        tensors,
        ignored=ignored,
        features=lambda images: network(renormalised(images, *pixels.values())).last_hidden_state[:, 0],
        resampling=family.resampling,
    )


def _loaded_encoder(
    folder: Path, network_class: Any, config: Any, state: dict[str, Tensor]
) -> tuple[Any, tuple[str, ...]]:
    """Build a network of transformers with these tensors; list those that it does not take.

    Refuses an encoder other than config.json describes.
    """
    without_pooler = {"add_pooling_layer": False} if hasattr(config, "pooler_act") else {}
    try:
        network, loading = load_network(
            network_class,
            config,
            dict(state),
            attn_implementation="sdpa",
            ignore_mismatched_sizes=True,  # they are refused below, by name
            **without_pooler,
        )
    except (RuntimeError, ValueError, TypeError, ZeroDivisionError) as error:
        raise InputError(f"{folder}: transformers cannot build what config.json describes ({error}).") from error
    prefix = f"{network.base_model_prefix}."
    mask_tokens = {name for name in state if name.removeprefix(prefix) == MASK_TOKEN}
    unused = loading["unexpected_keys"] - mask_tokens
    missing = sorted(loading["missing_keys"] - {MASK_TOKEN})
    mismatched = [
        f"{name} is {tuple(got)}, not {tuple(expected)}" for name, got, expected in loading["mismatched_keys"]
    ]
    # Classifiers and poolers are not used. What else is left over belongs to an encoder that config.json does not
    # describe, such as one with more blocks.
    odd = sorted(name for name in unused if name.removeprefix(prefix).startswith(OF_ENCODER))
    problems = [
        f"{what}: {', '.join(names)}"
        for what, names in (("missing", missing), ("not known", odd), ("of another shape", sorted(mismatched)))
        if names
    ]
    if problems:
        raise InputError(f"{folder}: the weights are not those that config.json describes. {'; '.join(problems)}.")
    return network, tuple(sorted(unused | mask_tokens))


def _refuse_empty_positions(folder: Path, tensors: dict[str, Tensor]) -> None:
    for name in ("encoder.pos_embed", "decoder.pos_embed"):
        if name in tensors and not tensors[name].any():
            raise InputError(
                f"{folder}: the positions {name} are all zero, as transformers leaves them in a network that it builds "
                "from a configuration alone. Fill them before saving."
            )


def _network_of_timm(folder: Path, raw: dict[str, Any]) -> Any:
    """Have timm build the network that a configuration describes; refuses one that is none here."""
    from timm import create_model
    from timm.layers.mlp import Mlp
    from timm.models.deit import VisionTransformerDistilled
    from timm.models.vision_transformer import VisionTransformer

    kind, arguments = raw["architecture"], raw.get("model_args") or {}
    if unknown := sorted(arguments.keys() - TIMM_ARGUMENTS):
        raise InputError(f"{folder / 'config.json'}: model_args sets {', '.join(unknown)}, a variant not known here.")
    described = raw.get("pretrained_cfg") or {}
    # The images that the weights were made for, in this order: what the network was built with, what the checkpoint
    # says of its input, and the architecture's own default.
    images = arguments.get("img_size") or (described.get("input_size") or [None])[-1]
    settings = {**arguments, "num_classes": 0, "global_pool": "token", **({"img_size": images} if images else {})}
    try:
        network: Any = create_model(kind, pretrained=False, **settings)
    except (RuntimeError, TypeError, ValueError, AssertionError) as error:
        raise InputError(f"{folder}: timm cannot build its {kind!r} ({error}).") from error
    if type(network) not in (VisionTransformer, VisionTransformerDistilled):
        raise InputError(f"{folder}: {kind!r} is no plain vision transformer. Legal: {LEGAL}.")
    block = network.blocks[0]
    variants = {
        "an MLP with a gate (SwiGLU)": type(block.mlp) is not Mlp,
        "queries, keys and values without biases": getattr(block.attn.qkv, "bias", None) is None,
        "no position embeddings": network.pos_embed is None,
    }
    if present := [variant for variant, is_present in variants.items() if is_present]:
        raise InputError(f"{folder}: {kind!r} has {' and '.join(present)}, a variant that this suite does not have.")
    return network


def timm_encoder(folder: Path, raw: dict[str, Any], state: dict[str, Tensor]) -> CheckpointContents:
    """Read a vision transformer of timm, an encoder without a decoder.

    DeiT's and DINOv2's with registers are among them. Its classifiers are ignored.
    """
    network, described = _network_of_timm(folder, raw), raw.get("pretrained_cfg") or {}
    block = network.blocks[0]
    # Read before the weights replace it. The shortest text of a float32 is the number that the network was built with.
    scale = getattr(block.ls1, "gamma", None)
    layer_scale = None if scale is None else float(str(scale.detach().numpy().flat[0]))
    ignored = tuple(sorted(name for name in state if name.startswith(("head.", "head_dist."))))
    encoder = {name: tensor for name, tensor in state.items() if name not in ignored}
    try:
        network.load_state_dict(encoder)
    except RuntimeError as error:
        raise InputError(
            f"{folder}: the weights are not those of a {raw['architecture']} that reads the CLS token and images of "
            f"{network.patch_embed.img_size[0]} pixels, as config.json says: {error}"
        ) from error
    pixels = _normalisation(described.get("mean"), described.get("std"))
    architecture = {
        "image_size": _side(folder, "img_size", network.patch_embed.img_size),
        "patch_size": _side(folder, "patch_size", network.patch_embed.patch_size),
        "width": network.embed_dim,
        "depth": len(network.blocks),
        "heads": block.attn.num_heads,
        "mlp_width": block.mlp.fc1.out_features,
        "decoder_depth": 0,
        "norm_eps": block.norm1.eps,
        "registers": network.num_prefix_tokens - 1,
        "positioned": "patches" if network.no_embed_class else "all",
        "layer_scale": layer_scale,
        "pre_norm": isinstance(network.norm_pre, nn.LayerNorm),
        **pixels,
    }
    network.eval()
    return CheckpointContents(
        "image",
        architecture,
        # The distillation token of a DeiT stands where registers do.
        {f"encoder.{name.replace('dist_token', 'reg_token')}": tensor for name, tensor in encoder.items()},
        ignored=ignored,
        features=lambda images: network.forward_features(renormalised(images, *pixels.values()))[:, 0],
        resampling="antialiased",
    )
