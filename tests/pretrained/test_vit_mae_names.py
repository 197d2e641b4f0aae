"""Weights of transformers' ViTMAE under this suite's names: both spellings, whole and in parts."""

import pytest
import torch
from torch import Tensor
from transformers import ViTConfig, ViTForImageClassification, ViTMAEConfig, ViTMAEForPreTraining

from bench.errors import InputError
from bench.interfaces.model import Model
from bench.models.build import build
from bench.models.image import mask_from_noise
from bench.pretrained.vit_mae_names import Target, from_transformers, target_of
from bench.specs.architectures import MaskedAutoEncoder
from tests.pretrained.transformers_4 import transformers_4

SIZES = {"image_size": 12, "patch_size": 3, "width": 16, "depth": 2, "mlp_width": 21}
DECODER_SIZES = {"decoder_width": 8, "decoder_depth": 3, "decoder_mlp_width": 11}
BACKBONE = MaskedAutoEncoder(name="t", weights=None, heads=2, decoder_heads=2, mask_ratio=0.5, **SIZES, **DECODER_SIZES)


def randomised(network: torch.nn.Module) -> torch.nn.Module:
    """In double precision, with nothing left at zero or one."""
    network.double().eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator, dtype=torch.float64) * 0.3)
    return network


def autoencoder() -> torch.nn.Module:
    config = ViTMAEConfig(
        image_size=12,
        patch_size=3,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=21,
        decoder_hidden_size=8,
        decoder_num_hidden_layers=3,
        decoder_num_attention_heads=2,
        decoder_intermediate_size=11,
        mask_ratio=0.5,
        norm_pix_loss=True,
        attn_implementation="sdpa",
    )
    return randomised(ViTMAEForPreTraining(config))


def state_of(network: torch.nn.Module, old: bool) -> dict[str, Tensor]:
    return {transformers_4(name) if old else name: tensor for name, tensor in network.named_parameters()}


def filled(model: Model, tensors: dict[str, Tensor]) -> Model:
    assert dict(model.named_parameters()).keys() == tensors.keys()
    model.double().eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            assert parameter.shape == tensors[name].shape
            parameter.copy_(tensors[name])
    return model


@pytest.mark.parametrize("old", [False, True], ids=["transformers 5", "transformers 4"])
def test_the_autoencoder_computes_the_same(old: bool) -> None:
    network = autoencoder()
    state = state_of(network, old)
    assert any("query" in name for name in state) == old
    model = filled(build(BACKBONE, decoder=True), from_transformers(state))
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(3, 3, 12, 12, generator=generator, dtype=torch.float64)
    noise = torch.rand(3, 16, generator=generator, dtype=torch.float64)
    with torch.no_grad():
        expected = network(images, noise=noise).loss
        loss = model.masked_loss(images, mask_from_noise(noise, 0.5))
    torch.testing.assert_close(loss, expected, rtol=1e-9, atol=0)


@pytest.mark.parametrize("old", [False, True], ids=["transformers 5", "transformers 4"])
def test_the_classifier_computes_the_same(old: bool) -> None:
    config = ViTConfig(
        image_size=12,
        patch_size=3,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=21,
        num_labels=5,
        attn_implementation="sdpa",
    )
    network = randomised(ViTForImageClassification(config))
    model = filled(build(BACKBONE, classes=5), from_transformers(state_of(network, old)))
    images = torch.randn(3, 3, 12, 12, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    with torch.no_grad():
        torch.testing.assert_close(model.logits(images), network(images).logits, rtol=1e-9, atol=1e-12)


def test_an_encoder_alone_has_no_prefix() -> None:
    whole = from_transformers(state_of(autoencoder(), old=True))
    bare = {
        name.removeprefix("vit."): tensor
        for name, tensor in state_of(autoencoder(), old=True).items()
        if name.startswith("vit.")
    }
    encoder = from_transformers(bare)
    assert encoder.keys() == {name for name in whole if name.startswith("encoder.")}
    assert all(torch.equal(tensor, whole[name]) for name, tensor in encoder.items())


def test_thirds_of_the_fused_projection() -> None:
    for third, name in enumerate(("query", "key", "value")):
        expected = Target("encoder.blocks.11.attn.qkv.bias", third)
        assert target_of(f"vit.encoder.layer.11.attention.attention.{name}.bias") == expected
        assert target_of(f"vit.layers.11.attention.{name[0]}_proj.bias") == expected
    assert target_of("decoder.decoder_layers.7.output.dense.weight") == Target("decoder.blocks.7.mlp.fc2.weight")


def test_decoder_blocks_as_transformers_5_writes_them() -> None:
    target = target_of("decoder.decoder_encoder.layer.7.attention.attention.key.bias")
    assert target == Target("decoder.blocks.7.attn.qkv.bias", 1)


@pytest.mark.parametrize(
    "name",
    [
        "vit.pooler.dense.weight",
        "vit.layers.0.attention.x_proj.weight",
        "vit.layernorm.gain",
        "blocks.0.attn.qkv.weight",
    ],
)
def test_other_networks_parameters_are_refused(name: str) -> None:
    with pytest.raises(InputError, match=name):
        target_of(name)


def test_a_missing_projection_is_refused() -> None:
    state = state_of(autoencoder(), old=False)
    del state["vit.layers.1.attention.k_proj.weight"]
    with pytest.raises(InputError, match=r"encoder\.blocks\.1\.attn\.qkv\.weight .* the key projection"):
        from_transformers(state)
