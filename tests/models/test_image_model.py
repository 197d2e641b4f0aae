"""The masked auto-encoder: its formulas, its agreement with transformers' ViTMAE, and the face all models share."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.autograd import backward
from transformers import ViTMAEConfig, ViTMAEForPreTraining

from bench.errors import InputError
from bench.models.build import build
from bench.models.image import (
    ImageModel,
    PatchMask,
    block_of_all,
    block_of_first,
    mask_from_noise,
    patch_targets,
    patchify,
    reconstruction_loss,
    sincos_positions,
)
from bench.models.weights import load_weights, save_weights
from bench.specs.architectures import MaskedAutoEncoder

# Epsilons large and different enough that a misplaced one shows; an MLP width that int(width * ratio) loses one of.
BACKBONE = MaskedAutoEncoder(
    name="tiny",
    weights=None,
    image_size=12,
    patch_size=3,
    width=56,
    depth=2,
    heads=2,
    mlp_width=61,
    decoder_width=16,
    decoder_depth=2,
    decoder_heads=2,
    decoder_mlp_width=41,
    norm_eps=1e-3,
    decoder_norm_eps=1e-2,
    mask_ratio=0.7,
)


def model(
    *, classes: int | None = None, decoder: bool = False, dropout: float | None = None, seed: int = 0
) -> ImageModel:
    torch.manual_seed(seed)
    built = build(BACKBONE, classes=classes, decoder=decoder, dropout=dropout)
    assert isinstance(built, ImageModel)
    return built


def images(batch: int = 3, dtype: torch.dtype = torch.float32) -> Tensor:
    generator = torch.Generator().manual_seed(7)
    return torch.randn(batch, 3, 12, 12, generator=generator, dtype=torch.float64).to(dtype)


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


# ------------------------------------------------------------------------------------------------ formulas


def test_positions_encode_the_column_first() -> None:
    table = sincos_positions(4, 2, cls=True)
    sin, cos = torch.sin(torch.tensor(1.0, dtype=torch.float64)), torch.cos(torch.tensor(1.0, dtype=torch.float64))
    expected = torch.tensor(
        [[0, 0, 0, 0], [0, 1, 0, 1], [sin, cos, 0, 1], [0, 1, sin, cos], [sin, cos, sin, cos]], dtype=torch.float64
    )
    torch.testing.assert_close(table, expected, rtol=0, atol=1e-15)
    assert torch.equal(sincos_positions(4, 2, cls=False), table[1:])


def test_second_frequency_of_positions() -> None:
    # Width 8 has two frequencies: 1 and 10000 ** -0.5 = 0.01.
    table = sincos_positions(8, 3, cls=False)
    assert table[2, 1].item() == pytest.approx(torch.sin(torch.tensor(0.02, dtype=torch.float64)).item(), abs=1e-15)


def test_patches_run_row_column_channel() -> None:
    image = torch.arange(3 * 4 * 4.0).reshape(1, 3, 4, 4)  # value = 16 channel + 4 row + column
    patches = patchify(image, 2)
    assert patches.shape == (1, 4, 12)
    assert patches[0, 1].tolist() == [2, 18, 34, 3, 19, 35, 6, 22, 38, 7, 23, 39]


def test_targets_use_the_unbiased_variance() -> None:
    image = torch.tensor([1.0, 2.0, 3.0, 6.0], dtype=torch.float64).reshape(1, 1, 2, 2)
    deviations = torch.tensor([-2.0, -1.0, 0.0, 3.0], dtype=torch.float64)
    expected = deviations / (14 / 3 + 1e-6) ** 0.5
    torch.testing.assert_close(patch_targets(image, 2, norm_pix=True)[0, 0], expected, rtol=1e-14, atol=0)
    assert patch_targets(image, 2, norm_pix=False)[0, 0].tolist() == [1, 2, 3, 6]


def test_smallest_noise_is_kept_and_the_count_truncates() -> None:
    noise = torch.tensor([[0.9, 0.1, 0.8, 0.3, 0.7, 0.2, 0.6, 0.5, 0.4]])
    mask = mask_from_noise(noise, 0.6)  # int(9 * 0.4) = 3
    assert mask.kept.tolist() == [[1, 5, 3]]
    assert mask.removed.tolist() == [[1, 0, 1, 0, 1, 0, 1, 1, 1]]


def test_tied_noise_keeps_the_first() -> None:
    assert mask_from_noise(torch.zeros(1, 40), 0.5).kept.tolist() == [list(range(20))]


def test_loss_averages_over_removed_patches_of_the_batch() -> None:
    predictions = torch.zeros(2, 2, 2)
    targets = torch.tensor([[[1.0, 1.0], [3.0, 1.0]], [[2.0, 0.0], [9.0, 9.0]]])  # per patch: 1, 5; 2, 81
    removed = torch.tensor([[1.0, 1.0], [1.0, 0.0]])
    assert reconstruction_loss(predictions, targets, removed).item() == pytest.approx((1 + 5 + 2) / 3)


# ------------------------------------------------------------------------------------------------ transformers' ViTMAE


def vit_mae() -> ViTMAEForPreTraining:
    config = ViTMAEConfig(
        image_size=12,
        patch_size=3,
        hidden_size=56,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=61,
        decoder_hidden_size=16,
        decoder_num_hidden_layers=2,
        decoder_num_attention_heads=2,
        decoder_intermediate_size=41,
        layer_norm_eps=1e-3,
        mask_ratio=0.7,
        norm_pix_loss=True,
        attn_implementation="sdpa",  # type: ignore[call-arg]
    )
    network: ViTMAEForPreTraining = ViTMAEForPreTraining(config).double()
    network.decoder.decoder_norm.eps = 1e-2
    random = generator(3)
    with torch.no_grad():
        # Zero tokens, positions and biases, and unit gains, would hide mistakes.
        for name, parameter in network.named_parameters():
            gain = "norm" in name and name.endswith("weight")
            parameter.copy_(torch.randn(parameter.shape, generator=random, dtype=torch.float64) * 0.3 + float(gain))
    return network


BLOCK_NAMES = {
    "norm1": ("layernorm_before",),
    "attn.qkv": ("attention.q_proj", "attention.k_proj", "attention.v_proj"),
    "attn.proj": ("attention.o_proj",),
    "norm2": ("layernorm_after",),
    "mlp.fc1": ("mlp.fc1",),
    "mlp.fc2": ("mlp.fc2",),
}
OTHER_NAMES = {
    "encoder.cls_token": "vit.embeddings.cls_token",
    "encoder.pos_embed": "vit.embeddings.position_embeddings",
    "encoder.patch_embed.proj.weight": "vit.embeddings.patch_embeddings.projection.weight",
    "encoder.patch_embed.proj.bias": "vit.embeddings.patch_embeddings.projection.bias",
    "encoder.norm.weight": "vit.layernorm.weight",
    "encoder.norm.bias": "vit.layernorm.bias",
    "decoder.embed.weight": "decoder.decoder_embed.weight",
    "decoder.embed.bias": "decoder.decoder_embed.bias",
    "decoder.mask_token": "decoder.mask_token",
    "decoder.pos_embed": "decoder.decoder_pos_embed",
    "decoder.norm.weight": "decoder.decoder_norm.weight",
    "decoder.norm.bias": "decoder.decoder_norm.bias",
    "decoder.predict.weight": "decoder.decoder_pred.weight",
    "decoder.predict.bias": "decoder.decoder_pred.bias",
}


def their_names(name: str) -> list[str]:
    if name in OTHER_NAMES:
        return [OTHER_NAMES[name]]
    part, _, number, *inside, kind = name.split(".")  # encoder.blocks.0.attn.qkv.weight
    layers = "vit.layers" if part == "encoder" else "decoder.decoder_layers"
    return [f"{layers}.{number}.{theirs}.{kind}" for theirs in BLOCK_NAMES[".".join(inside)]]


def transplanted(network: ViTMAEForPreTraining) -> ImageModel:
    theirs = dict(network.named_parameters())
    ours = model(decoder=True).double()
    used = []
    with torch.no_grad():
        for name, parameter in ours.named_parameters():
            parameter.copy_(torch.cat([theirs[other] for other in their_names(name)]))
            used += their_names(name)
    assert sorted(used) == sorted(theirs)
    return ours


def test_masked_loss_and_gradients_equal_transformers() -> None:
    network = vit_mae()
    ours = transplanted(network)
    noise = torch.rand(3, 16, generator=generator(5), dtype=torch.float64)
    expected = network(images(dtype=torch.float64), noise=noise)
    mask = mask_from_noise(noise, BACKBONE.mask_ratio)
    loss = ours.masked_loss(images(dtype=torch.float64), mask)
    assert loss.item() == pytest.approx(expected.loss.item(), rel=1e-9)
    predictions = ours.masked_predictions(images(dtype=torch.float64), mask)
    torch.testing.assert_close(predictions, expected.logits, rtol=1e-9, atol=1e-9)

    backward(expected.loss)
    backward(loss)
    theirs = dict(network.named_parameters())
    compared = 0
    for name, parameter in ours.named_parameters():
        gradients = [theirs[other].grad for other in their_names(name)]
        if parameter.grad is None:
            assert gradients == [None], name
            continue
        present = [gradient for gradient in gradients if gradient is not None]
        torch.testing.assert_close(parameter.grad, torch.cat(present), rtol=1e-9, atol=1e-9)
        assert parameter.grad.abs().max() > 1e-6, name
        compared += 1
    assert compared == len(theirs) - 2 * 2 * 4 - 2  # four blocks fuse q, k, v twice; two position tables are frozen


def test_features_equal_transformers() -> None:
    network = vit_mae()
    ours = transplanted(network)
    network.config.mask_ratio = 0.0
    in_order = torch.arange(16.0).expand(3, 16)
    with torch.no_grad():
        expected = network.vit(images(dtype=torch.float64), noise=in_order).last_hidden_state[:, 0]
        torch.testing.assert_close(ours.features(images(dtype=torch.float64)), expected, rtol=1e-9, atol=1e-9)


# ------------------------------------------------------------------------------------------------ the shared face


def test_equal_seeds_give_equal_weights_whatever_is_built_besides() -> None:
    first, again, other = model(classes=4, decoder=True), model(classes=4, decoder=True), model(seed=1)
    for one, two in zip(first.parameters(), again.parameters(), strict=True):
        assert torch.equal(one, two)
    bare = model()
    for name, parameter in bare.encoder.named_parameters():
        assert torch.equal(parameter, first.encoder.get_parameter(name)), name
    assert not torch.equal(bare.get_parameter("encoder.cls_token"), other.get_parameter("encoder.cls_token"))


def test_initial_positions_are_the_table_and_tokens_are_not_zero() -> None:
    built = model(decoder=True)
    for part, width, token in (("encoder", 56, "cls_token"), ("decoder", 16, "mask_token")):
        table = sincos_positions(width, 4, cls=True).float()
        torch.testing.assert_close(built.get_parameter(f"{part}.pos_embed")[0], table, rtol=0, atol=1e-7)
        assert 0.005 < built.get_parameter(f"{part}.{token}").std() < 0.05


def test_roles_cover_every_parameter() -> None:
    built = model(classes=4, decoder=True)
    roles = built.roles()
    assert roles.keys() == dict(built.named_parameters()).keys()
    by_role = {role: sorted(name for name in roles if roles[name] == role) for role in set(roles.values())}
    assert by_role["token"] == ["decoder.mask_token", "encoder.cls_token"]
    assert by_role["position"] == ["decoder.pos_embed", "encoder.pos_embed"]
    assert len(by_role["norm"]) == 2 * 4 + 2
    assert len(by_role["bias"]) == len(by_role["norm"]) + len(by_role["matrix"])
    assert {"encoder.patch_embed.proj.weight", "head.weight", "decoder.predict.weight"} < set(by_role["matrix"])
    assert not any(name.startswith("head") for name in model(decoder=True).roles())


def test_depths_count_the_blocks_from_the_input() -> None:
    built = model(classes=3, decoder=True)
    depths = built.depths()
    assert depths.keys() == dict(built.named_parameters()).keys()
    assert depths["encoder.pos_embed"] == depths["encoder.patch_embed.proj.weight"] == 0
    last = BACKBONE.depth
    assert (depths["encoder.blocks.0.norm1.weight"], depths[f"encoder.blocks.{last - 1}.norm1.weight"]) == (1, last)
    assert depths["encoder.norm.weight"] == depths["head.weight"] == depths["decoder.mask_token"] == last + 1


def test_positions_are_frozen_without_a_head_and_everything_else_gets_a_gradient() -> None:
    pretraining = model(decoder=True)
    backward(pretraining.masked_loss(images(), pretraining.draw_mask(images(), generator(0))))
    roles = pretraining.roles()
    for name, parameter in pretraining.named_parameters():
        assert parameter.requires_grad == (roles[name] != "position"), name
        assert (parameter.grad is not None) == parameter.requires_grad, name
    classifier = model(classes=4)
    backward(classifier.logits(images()).square().sum())
    for name, parameter in classifier.named_parameters():
        assert parameter.requires_grad and parameter.grad is not None, name
        assert parameter.grad.abs().max() > 0, name
    assert not model().get_parameter("encoder.pos_embed").requires_grad


def test_mask_depends_only_on_its_generator() -> None:
    built = model(decoder=True)
    first = built.draw_mask(images(), generator(1))
    torch.manual_seed(99)
    again = built.double().draw_mask(images(dtype=torch.float64) + 1, generator(1))
    for one, two in zip(first, again, strict=True):
        assert torch.equal(one, two)
    assert not torch.equal(first.removed, built.draw_mask(images(), generator(2)).removed)
    assert first.kept.shape == (3, 4)  # int(16 * 0.3)
    assert first.removed.sum(dim=1).tolist() == [12, 12, 12]


def test_removed_patches_never_reach_the_encoder() -> None:
    built = model(decoder=True).eval()
    mask = built.draw_mask(images(), generator(1))
    pixels = mask.removed.reshape(3, 1, 4, 4).repeat_interleave(3, dim=2).repeat_interleave(3, dim=3)
    with torch.no_grad():
        before = built.masked_predictions(images(), mask)
        assert torch.equal(built.masked_predictions(images() + pixels, mask), before)
        assert not torch.allclose(built.masked_predictions(images() + (1 - pixels), mask), before)
    assert before.shape == (3, 16, 27)


def test_kept_order_does_not_matter() -> None:
    built = model(decoder=True).double().eval()
    mask = built.draw_mask(images(), generator(1))
    shuffled = PatchMask(mask.kept.flip(1), mask.removed)
    with torch.no_grad():
        one, two = (built.masked_predictions(images(dtype=torch.float64), m) for m in (mask, shuffled))
    torch.testing.assert_close(one, two, rtol=0, atol=1e-12)


def test_features_depend_on_one_image_only_and_accept_embeddings() -> None:
    built = model(classes=4).double().eval()
    batch = images(dtype=torch.float64)
    with torch.no_grad():
        features = built.features(batch)
        assert features.shape == (3, 56) and features.dtype == torch.float64
        torch.testing.assert_close(built.features(batch[1:2]), features[1:2], rtol=0, atol=1e-12)
        embeddings = built.embed(batch)
        assert embeddings.shape == (3, 16, 56)
        assert torch.equal(built.features(batch, embeddings), features)
        assert torch.equal(built.logits(batch, embeddings), built.logits(batch))
        assert not torch.allclose(built.logits(batch, 2 * embeddings), built.logits(batch))


def test_the_last_block_of_the_first_token_alone_is_that_of_all() -> None:
    built = model(classes=4).double().eval()
    random = generator(3)
    with torch.no_grad():
        for parameter in built.parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape, generator=random, dtype=torch.float64))
    batch = images(dtype=torch.float64)
    torch.testing.assert_close(built.embed(batch), built.encoder.patch_embed(batch), rtol=0, atol=1e-12)
    weights = torch.randn(3, 56, generator=random, dtype=torch.float64)
    parameters = dict(built.encoder.named_parameters())

    def gradients(features: Tensor) -> tuple[Tensor, ...]:
        return torch.autograd.grad((features * weights).sum(), list(parameters.values()))

    expected = built.encoder.forward_features(batch)[:, 0]
    theirs = gradients(expected)
    for features in (built.features(batch), built.features(batch, built.embed(batch))):
        torch.testing.assert_close(features, expected, rtol=0, atol=1e-12)
        for name, our, their in zip(parameters, gradients(features), theirs, strict=True):
            assert their.abs().max() > 1e-3, name
            torch.testing.assert_close(our, their, rtol=0, atol=1e-12)


def test_the_last_block_drops_where_the_whole_one_does() -> None:
    """What is dropped of the first token is drawn anew, so only averages can be compared."""
    torch.manual_seed(0)
    built = model(classes=4, dropout=0.4)
    last = built.encoder.blocks[-1]
    tokens = torch.randn(1, 17, 56, generator=generator(1)).expand(4000, -1, -1)
    with torch.no_grad():
        whole, first = block_of_all(last, tokens)[:, 0], block_of_first(last, tokens)
    assert 0.9 < first.std(dim=0).mean() / whole.std(dim=0).mean() < 1.1
    torch.testing.assert_close(first.mean(dim=0), whole.mean(dim=0), rtol=0, atol=0.06)
    assert first.std(dim=0).mean() > 0.1


def test_dropout_is_never_inside_the_mlp() -> None:
    built = model(classes=4, dropout=0.25)
    rates = {name: module.p for name, module in built.named_modules() if isinstance(module, nn.Dropout) and module.p}
    blocks = {f"encoder.blocks.{i}.{name}": 0.25 for i in range(2) for name in ("attn.proj_drop", "mlp.drop2")}
    assert rates == {"encoder.pos_drop": 0.25, **blocks}
    assert not torch.equal(built.logits(images()), built.logits(images()))
    undropped = model(classes=4)
    assert torch.equal(undropped.logits(images()), built.eval().logits(images()))


# ------------------------------------------------------------------------------------------------ weights on disk


@pytest.mark.parametrize("part", ["encoder", "decoder", "head"])
def test_each_part_survives_the_disk_alone(part: str, tmp_path: Path) -> None:
    saved, loaded, untouched = (model(classes=4, decoder=True, seed=seed).double() for seed in (0, 1, 1))
    save_weights(saved, tmp_path / "weights.safetensors")
    assert [path.name for path in tmp_path.iterdir()] == ["weights.safetensors"]
    load_weights(loaded, tmp_path / "weights.safetensors", [part])
    for name, parameter in loaded.named_parameters():
        source = saved if name.startswith(part) else untouched
        assert torch.equal(parameter, source.get_parameter(name)), name


def test_parts_the_model_lacks_are_left_in_the_file(tmp_path: Path) -> None:
    path = tmp_path / "weights.safetensors"
    saved, loaded = model(decoder=True), model(classes=4, seed=1)
    save_weights(saved, path)
    load_weights(loaded, path, ["encoder"])
    with torch.no_grad():
        assert torch.equal(loaded.eval().features(images()), saved.eval().features(images()))
    for part in ("decoder", "head", "tail"):
        with pytest.raises(InputError, match=part):
            load_weights(loaded, path, [part])


def test_weights_that_do_not_fit_are_refused_untouched(tmp_path: Path) -> None:
    path, broken = tmp_path / "weights.safetensors", tmp_path / "broken.safetensors"
    loaded = model(classes=4, seed=1)
    before = {name: parameter.clone() for name, parameter in loaded.named_parameters()}
    save_weights(model(classes=5), path)
    with pytest.raises(InputError, match=r"head\.weight is \(5, 56\), not \(4, 56\)"):
        load_weights(loaded, path, ["encoder", "head"])
    tensors = load_file(path)
    save_file({name: tensor for name, tensor in tensors.items() if name != "encoder.norm.bias"}, broken)
    with pytest.raises(InputError, match=r"missing: encoder\.norm\.bias"):
        load_weights(loaded, broken, ["encoder"])
    save_file(tensors | {"encoder.extra": torch.zeros(1)}, broken)
    with pytest.raises(InputError, match=r"unexpected: encoder\.extra"):
        load_weights(loaded, broken, ["encoder"])
    broken.write_bytes(path.read_bytes()[:200])
    for unreadable in (broken, tmp_path / "absent.safetensors"):
        with pytest.raises(InputError, match=unreadable.name):
            load_weights(loaded, unreadable, ["encoder"])
    for name, parameter in loaded.named_parameters():
        assert torch.equal(parameter, before[name]), name


def test_saved_weights_follow_the_umask(tmp_path: Path) -> None:
    path, plain = tmp_path / "weights.safetensors", tmp_path / "plain"
    plain.touch()
    save_weights(model(), path)
    assert path.stat().st_mode == plain.stat().st_mode
