"""Image encoders made elsewhere: ViT, DeiT and DINOv2 of transformers and timm compute the same here, in every mode."""

from __future__ import annotations

import dataclasses
import itertools
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import transformers
from timm.models import save_for_hf
from torch import Tensor, nn

from bench.errors import InputError
from bench.models.build import build
from bench.models.image import ImageModel, PatchMask, renormalised
from bench.models.weights import load_weights, save_weights
from bench.pretrained import checkpoints
from bench.pretrained.checkpoints import Prepared
from bench.pretrained.prepare import prepare_checkpoint as prepare
from bench.specs import PublicWeights
from bench.specs.architectures import MaskedAutoEncoder
from tests.pretrained.test_checkpoints import changed, randomised, renamed, with_tensors

EXACT = {"rtol": 1e-9, "atol": 1e-9}
HALF = (0.5, 0.5, 0.5)
SIZES = {"image_size": 12, "patch_size": 3, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
OF_TRANSFORMERS: dict[str, tuple[str, dict[str, Any]]] = {
    "vit": ("ViT", {"intermediate_size": 41}),
    "deit": ("DeiT", {"intermediate_size": 41}),
    "dinov2": ("Dinov2", {"layerscale_value": 0.5}),
    "dinov2_with_registers": ("Dinov2WithRegisters", {"num_register_tokens": 3, "layerscale_value": 0.5}),
}
OF_TIMM: dict[str, dict[str, Any]] = {
    "vit_tiny_patch16_224": {"img_size": 32},
    "deit_tiny_distilled_patch16_224": {"img_size": 32},
    "deit3_small_patch16_224": {"img_size": 32},
    "vit_small_patch14_reg4_dinov2": {"img_size": 28},
    "vit_base_patch16_clip_224": {"img_size": 32},
}
"""The positions of all tokens, of all with a distillation token, of patches alone with LayerScale, the same with
registers, and a norm before the blocks."""


@pytest.fixture(autouse=True)
def _quiet() -> None:
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()


def of_transformers(kind: str, suffix: str = "Model", **settings: Any) -> Any:
    """A network with random values everywhere, and settings large enough that a misplaced one shows."""
    name, own = OF_TRANSFORMERS[kind]
    config = getattr(transformers, f"{name}Config")(
        **{**SIZES, **own, "layer_norm_eps": 1e-3, "attn_implementation": "sdpa", **settings}
    )
    return randomised(getattr(transformers, f"{name}{suffix}")(config))


def of_timm(kind: str, **settings: Any) -> Any:
    small = {"embed_dim": 32, "depth": 2, "num_heads": 2, "num_classes": 3}
    arguments = {**small, **OF_TIMM.get(kind, {}), **settings}
    network: Any = randomised(timm.create_model(kind, pretrained=False, **arguments))
    network.arguments = {name: value for name, value in arguments.items() if name != "num_classes"}
    return network


def saved(network: Any, folder: Path) -> Path:
    if isinstance(network, transformers.PreTrainedModel):
        network.save_pretrained(folder)
    else:
        # Older versions of timm write only what they are given.
        save_for_hf(network, folder, model_args=network.arguments, safe_serialization=True)
    return folder


def prepared_from(network: Any, root: Path) -> Prepared:
    return prepare("own", f"folder:{saved(network, root / 'own')}", root / "data")


def loaded(prepared: Prepared, root: Path, *, classes: int | None = None, **changes: Any) -> ImageModel:
    """The prepared network in double precision; images of another size need positions that are resampled."""
    backbone = MaskedAutoEncoder(**{"name": "own", "weights": None, **prepared.architecture, **changes})
    model = build(backbone, classes=classes, dropout=changes.get("dropout")).double().eval()
    path = checkpoints.weights(prepared.name, root / "data", prepared.checksum)
    load_weights(model, path, ["encoder"], resampling=prepared.resampling)
    assert isinstance(model, ImageModel)
    return model


def images(size: int) -> Tensor:
    return torch.randn(3, 3, size, size, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def their_features(network: Any, pixels: Tensor, **options: Any) -> Tensor:
    features: Tensor
    if isinstance(network, transformers.PreTrainedModel):
        features = network(pixels, **options).last_hidden_state[:, 0]
    else:
        features = network.forward_features(pixels)[:, 0]
    return features


# ------------------------------------------------------------------------------------------------ the same values


@pytest.mark.parametrize("kind", OF_TRANSFORMERS)
def test_an_encoder_of_transformers_computes_the_same(kind: str, tmp_path: Path) -> None:
    network = of_transformers(kind)
    prepared = prepared_from(network, tmp_path)
    dino = kind.startswith("dinov2")
    assert prepared.architecture == {
        "image_size": 12,
        "patch_size": 3,
        "width": 32,
        "depth": 2,
        "heads": 2,
        "mlp_width": 128 if dino else 41,
        "decoder_depth": 0,
        "norm_eps": 1e-3,
        "layer_scale": 0.5 if dino else None,
        "registers": {"deit": 1, "dinov2_with_registers": 3}.get(kind, 0),
        **({"positioned": "cls_and_patches"} if kind == "dinov2_with_registers" else {}),
        "pixel_mean": [0.485, 0.456, 0.406],
        "pixel_std": [0.229, 0.224, 0.225],
    }
    ours, theirs = loaded(prepared, tmp_path), network.double()
    torch.testing.assert_close(ours.features(images(12)), their_features(theirs, images(12)), **EXACT)
    # Every tensor, and its gradient.
    for model in (ours, theirs):
        model.requires_grad_(True)
    their_features(theirs, images(12)).square().sum().backward()
    ours.features(images(12)).square().sum().backward()
    gradients = {name: p.grad.norm() for name, p in theirs.named_parameters() if p.grad is not None}
    for name, parameter in ours.named_parameters():
        assert parameter.grad is not None and parameter.grad.any(), name
    total = torch.stack([p.grad.square().sum() for p in ours.parameters() if p.grad is not None]).sum()
    torch.testing.assert_close(total, torch.stack([g.square() for g in gradients.values()]).sum(), **EXACT)


@pytest.mark.parametrize("kind", OF_TIMM)
def test_an_encoder_of_timm_computes_the_same(kind: str, tmp_path: Path) -> None:
    network = of_timm(kind)
    prepared = prepared_from(network, tmp_path)
    architecture = prepared.architecture
    assert architecture["image_size"] == OF_TIMM[kind]["img_size"]
    assert architecture["registers"] == {"vit_small_patch14_reg4_dinov2": 4, "deit_tiny_distilled_patch16_224": 1}.get(
        kind, 0
    )
    assert (architecture["layer_scale"] is not None) == (kind.startswith(("deit3", "vit_small")))
    assert architecture["positioned"] == ("patches" if kind.startswith(("deit3", "vit_small")) else "all")
    assert architecture["pre_norm"] == ("clip" in kind)
    assert prepared.ignored[:2] == ("head.bias", "head.weight")
    ours = loaded(prepared, tmp_path)
    pixels = images(architecture["image_size"])
    seen = renormalised(pixels, architecture["pixel_mean"], architecture["pixel_std"])
    torch.testing.assert_close(ours.features(pixels), their_features(network.double(), seen), **EXACT)
    save_weights(ours, tmp_path / "again.safetensors")
    again = build(ours.backbone).double()
    load_weights(again, tmp_path / "again.safetensors", ["encoder"])
    assert torch.equal(again.eval().features(pixels), ours.features(pixels))


@pytest.mark.parametrize("suffix", ["ForImageClassification", "ForMaskedImageModeling"])
def test_heads_poolers_and_mask_tokens_are_ignored(suffix: str, tmp_path: Path) -> None:
    network = of_transformers("vit", suffix)
    prepared = prepared_from(network, tmp_path)
    assert prepared.ignored == (
        ("classifier.bias", "classifier.weight")
        if suffix == "ForImageClassification"
        else ("decoder.0.bias", "decoder.0.weight", "vit.embeddings.mask_token")
    )
    theirs = network.double().vit
    torch.testing.assert_close(
        loaded(prepared, tmp_path).features(images(12)), their_features(theirs, images(12)), **EXACT
    )


def test_pixels_are_normalised_as_the_weights_were_trained(tmp_path: Path) -> None:
    network = of_transformers("vit")
    folder = saved(network, tmp_path / "own")
    (folder / "preprocessor_config.json").write_text(json.dumps({"image_mean": HALF, "image_std": [0.5, 0.25, 0.5]}))
    prepared = prepare("own", f"folder:{folder}", tmp_path / "data")
    mean, std = (torch.tensor(values, dtype=torch.float64)[:, None, None] for values in ((HALF), (0.5, 0.25, 0.5)))
    in_unit = torch.rand(2, 3, 12, 12, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    imagenet = [
        torch.tensor(v, dtype=torch.float64)[:, None, None] for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    ]
    ours = loaded(prepared, tmp_path).features((in_unit - imagenet[0]) / imagenet[1])
    torch.testing.assert_close(ours, their_features(network.double(), (in_unit - mean) / std), **EXACT)


# ------------------------------------------------------------------------------------------------ dropout


class Thinned(nn.Module):
    """Dropout whose mask of channels depends only on how often it was called, so that two networks drop the same."""

    def __init__(self, calls: Iterator[int]) -> None:
        super().__init__()
        self.calls = calls

    def forward(self, values: Tensor) -> Tensor:
        generator = torch.Generator().manual_seed(next(self.calls))
        return values * (torch.rand(values.shape[-1], generator=generator, dtype=torch.float64) > 0.3)


def thin(network: nn.Module) -> None:
    """Replace all dropout that drops something; of transformers' layers it is one module that is used twice."""
    calls = itertools.count()
    for module in list(network.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, nn.Dropout) and child.p > 0:
                setattr(module, name, Thinned(calls))


@pytest.mark.parametrize("kind", ["vit", "deit"])
def test_dropout_stands_where_transformers_has_it(kind: str, tmp_path: Path) -> None:
    network = of_transformers(kind, hidden_dropout_prob=0.2)
    folder = saved(network, tmp_path / "own")
    with pytest.raises(InputError, match="hidden_dropout_prob"):
        prepare("own", f"folder:{folder}", tmp_path / "data")
    changed(folder, hidden_dropout_prob=0.0)
    prepared = prepare("own", f"folder:{folder}", tmp_path / "data")
    model = build(loaded(prepared, tmp_path).backbone, dropout=0.2).double()
    load_weights(model, checkpoints.weights("own", tmp_path / "data", prepared.checksum), ["encoder"])
    for each in (model, network.double()):
        thin(each.train())
    features, expected = model.features(images(12)), their_features(network, images(12))
    torch.testing.assert_close(features, expected, **EXACT)
    assert not torch.allclose(features, loaded(prepared, tmp_path).features(images(12)))


# ------------------------------------------------------------------------------------------------ other image sizes


@pytest.mark.parametrize("size", [9, 18])
@pytest.mark.parametrize("kind", OF_TRANSFORMERS)
def test_positions_are_resampled_as_transformers_does(kind: str, size: int, tmp_path: Path) -> None:
    network = of_transformers(kind)
    ours = loaded(prepared_from(network, tmp_path), tmp_path, image_size=size)
    options = {} if kind.startswith("dinov2") else {"interpolate_pos_encoding": True}
    expected = their_features(network, images(size).float(), **options)  # in float32, as the positions are resampled
    torch.testing.assert_close(ours.features(images(size)).float(), expected, rtol=1e-4, atol=1e-4)
    table = dict(network.named_parameters())["embeddings.position_embeddings"]
    other = {"bicubic": "antialiased", "antialiased": "bicubic"}[
        str(prepare("own", f"folder:{tmp_path / 'own'}", tmp_path / "data").resampling)
    ]
    if size < 12:  # a filter changes nothing where there are more positions than before
        assert not torch.allclose(
            ours.resampled("encoder.pos_embed", table, other), ours.get_parameter("encoder.pos_embed").float()
        )


@pytest.mark.parametrize("kind", OF_TIMM)
def test_positions_are_resampled_as_timm_does(kind: str, tmp_path: Path) -> None:
    network = of_timm(kind)
    prepared = prepared_from(network, tmp_path)
    size = 3 * prepared.architecture["patch_size"]
    ours = loaded(prepared, tmp_path, image_size=size)
    network.set_input_size((size, size))
    assert ours.get_parameter("encoder.pos_embed").shape == network.pos_embed.shape
    seen = renormalised(images(size), prepared.architecture["pixel_mean"], prepared.architecture["pixel_std"])
    torch.testing.assert_close(ours.features(images(size)), their_features(network.double(), seen), **EXACT)


# ------------------------------------------------------------------------------------------------ roles, masks, decoder


@pytest.mark.parametrize("kind", [*OF_TRANSFORMERS, *OF_TIMM])
def test_roles_and_depths_of_every_tensor(kind: str, tmp_path: Path) -> None:
    network = of_transformers(kind) if kind in OF_TRANSFORMERS else of_timm(kind)
    backbone = loaded(prepared_from(network, tmp_path), tmp_path).backbone
    assert isinstance(backbone, MaskedAutoEncoder)
    public = dataclasses.replace(backbone, weights=PublicWeights(None)).with_decoder
    model = build(public, classes=3, decoder=True)
    roles, depths = model.roles(), model.depths()
    parameters = dict(model.named_parameters())
    assert roles.keys() == depths.keys() == parameters.keys()
    for name, parameter in parameters.items():
        if parameter.ndim < 2:
            assert roles[name] in ("norm", "bias"), name
    tokens = {name for name, role in roles.items() if role == "token"}
    registers = {"encoder.reg_token"} if backbone.registers else set()
    assert tokens == {"encoder.cls_token", "decoder.mask_token", *registers}
    assert {name for name, role in roles.items() if role == "position"} == {"encoder.pos_embed", "decoder.pos_embed"}
    assert all(depths[name] == 0 for name in tokens if name.startswith("encoder"))
    for name, depth in depths.items():
        if name.endswith("gamma"):
            assert (roles[name], depth) == ("norm", int(name.split(".")[2]) + 1)
    if backbone.pre_norm:
        assert (depths["encoder.norm_pre.weight"], roles["encoder.norm_pre.weight"]) == (0, "norm")
    assert depths["encoder.norm.weight"] == depths["decoder.embed.weight"] == 3


@pytest.mark.parametrize("kind", OF_TRANSFORMERS)
def test_registers_are_never_masked(kind: str, tmp_path: Path) -> None:
    backbone = loaded(prepared_from(of_transformers(kind), tmp_path), tmp_path).backbone
    torch.manual_seed(0)
    public = dataclasses.replace(backbone, weights=PublicWeights(None), mask_ratio=0.5).with_decoder
    model = build(public, decoder=True).double().eval()
    mask = model.draw_mask(images(12), torch.Generator().manual_seed(0))
    assert isinstance(mask, PatchMask) and mask.kept.shape == (3, 8)
    predictions = model.masked_predictions(images(12), mask)
    assert predictions.shape == (3, 16, 27)
    # Pixels of removed patches change nothing, the registers change everything.
    pixels = mask.removed.reshape(3, 1, 4, 4).repeat_interleave(3, dim=2).repeat_interleave(3, dim=3)
    assert torch.equal(model.masked_predictions(images(12) + pixels, mask), predictions)
    model.masked_loss(images(12), mask).backward()
    for name, parameter in model.named_parameters():
        assert (parameter.grad is not None and bool(parameter.grad.any())) == parameter.requires_grad, name


def test_the_decoder_sees_the_patches_that_were_kept(tmp_path: Path) -> None:
    encoder = loaded(prepared_from(of_transformers("dinov2_with_registers"), tmp_path), tmp_path).backbone
    torch.manual_seed(0)
    whole = dataclasses.replace(encoder, weights=PublicWeights(None), mask_ratio=0.5).with_decoder
    model = build(whole, decoder=True).double().eval()
    assert isinstance(model, ImageModel) and model.decoder is not None
    mask = model.draw_mask(images(12), torch.Generator().manual_seed(0))
    seen: list[Tensor] = []
    model.decoder.embed.register_forward_hook(lambda module, inputs, output: seen.append(inputs[0]))
    model.masked_predictions(images(12), mask)
    # The whole encoder by timm's own blocks, on CLS, three registers and the eight patches that were kept.
    embedded = model.embed(images(12)).gather(1, mask.kept[:, :, None].expand(-1, -1, 32))
    tokens = model.encoder.norm(model.encoder.blocks(model._tokens(embedded, mask.kept)))
    assert (tokens.shape, seen[0].shape) == ((3, 12, 32), (3, 9, 32))
    torch.testing.assert_close(seen[0], tokens[:, [0, *range(4, 12)]], **EXACT)


@pytest.mark.parametrize(
    ("width", "depth", "expected"),
    [
        (768, 12, (512, 8, 16, 2048)),
        (1024, 24, (512, 8, 16, 2048)),
        (384, 12, (256, 8, 8, 1024)),
        (16, 1, (32, 1, 1, 128)),
    ],
)
def test_a_fresh_decoder_is_scaled_to_its_encoder(width: int, depth: int, expected: tuple[int, ...]) -> None:
    encoder = MaskedAutoEncoder("own", PublicWeights(None), width=width, depth=depth, heads=4, decoder_depth=0)
    whole = encoder.with_decoder
    assert (whole.decoder_width, whole.decoder_depth, whole.decoder_heads, whole.decoder_mlp_width) == expected
    assert whole.weights == PublicWeights(None, fresh=("decoder",))
    assert whole.with_decoder is whole
    default = MaskedAutoEncoder("own", PublicWeights(None))
    assert default.with_decoder is default  # its file has one


# ------------------------------------------------------------------------------------------------ refusals


@pytest.mark.parametrize(
    ("kind", "settings", "reason"),
    [
        ("dinov2", {"use_swiglu_ffn": True}, "use_swiglu_ffn is True"),
        ("dinov2", {"drop_path_rate": 0.1}, "drop_path_rate"),
        ("vit", {"hidden_act": "relu"}, "hidden_act is 'relu'"),
        ("deit", {"qkv_bias": False}, "qkv_bias is False"),
        ("vit", {"num_hidden_layers": 1}, r"not known: .*1\.attention"),
        ("vit", {"num_hidden_layers": 3}, r"missing: .*2\.attention"),
        ("deit", {"model_type": "vit"}, "the weights"),
        ("vit", {"model_type": "deit"}, "the weights"),
        ("dinov2", {"model_type": "dinov2_with_registers"}, r"missing: .*register_tokens"),
        ("vit", {"image_size": 15}, r"position_embeddings is \(1, 17, 32\), not \(1, 26, 32\)"),
        ("vit", {"image_size": [12, 13]}, "image_size"),
        ("vit", {"num_attention_heads": 3}, r"q_proj\.weight is \(32, 32\), not \(30, 32\)"),
    ],
)
def test_other_networks_of_transformers_are_refused(
    kind: str, settings: dict[str, Any], reason: str, tmp_path: Path
) -> None:
    folder = saved(of_transformers(kind), tmp_path / "own")
    changed(folder, **settings)
    with pytest.raises(InputError, match=reason):
        prepare("own", f"folder:{folder}", tmp_path / "data")


@pytest.mark.parametrize(
    ("kind", "settings", "reason"),
    [
        ("vit_giant_patch14_dinov2", {"img_size": 28}, "SwiGLU"),
        ("vit_tiny_patch16_224", {"qkv_bias": False}, "qkv_bias"),
        ("vit_medium_patch16_gap_240", {"img_size": 32}, "timm cannot build"),
    ],
)
def test_other_networks_of_timm_are_refused(kind: str, settings: dict[str, Any], reason: str, tmp_path: Path) -> None:
    folder = saved(of_timm(kind, **settings), tmp_path / "own")
    with pytest.raises(InputError, match=reason):
        prepare("own", f"folder:{folder}", tmp_path / "data")


def test_positions_for_other_images_than_the_configuration_says_are_refused(tmp_path: Path) -> None:
    folder = saved(of_timm("vit_small_patch14_reg4_dinov2"), tmp_path / "own")
    config = json.loads((folder / "config.json").read_text())
    for where in ("model_args", "pretrained_cfg"):
        config[where].pop("img_size", None)
        config[where].pop("input_size", None)
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(InputError, match="images of 518 pixels, as config"):
        prepare("own", f"folder:{folder}", tmp_path / "data")


Change = Callable[[dict[str, Tensor]], object]


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda state: state.pop("embeddings.cls_token"), r"missing: embeddings\.cls_token"),
        (lambda state: state.update({"embeddings.extra": torch.ones(2)}), r"not known: embeddings\.extra"),
        (lambda state: state.update({"layernorm.weight": torch.ones(2)}), r"layernorm\.weight is \(2,\), not \(32,\)"),
    ],
)
def test_damaged_weights_are_refused(change: Change, reason: str, tmp_path: Path) -> None:
    folder = saved(of_transformers("dinov2"), tmp_path / "own")
    with_tensors(folder, change)
    with pytest.raises(InputError, match=reason):
        prepare("own", f"folder:{folder}", tmp_path / "data")


def test_a_wrapped_network_is_refused_and_a_whole_one_in_its_own_module_is_not(tmp_path: Path) -> None:
    folder = saved(of_transformers("dinov2"), tmp_path / "own")
    renamed(folder, lambda name: f"dinov2.{name}")
    assert prepare("own", f"folder:{folder}", tmp_path / "data").ignored == ("dinov2.embeddings.mask_token",)
    renamed(folder, lambda name: f"module.{name}")
    with pytest.raises(InputError, match=r"'module\.'"):
        prepare("other", f"folder:{folder}", tmp_path / "data")
