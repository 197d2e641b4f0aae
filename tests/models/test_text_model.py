"""The masked language model: masking, loss, the tied projection, and the face all models share."""

import dataclasses
import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.autograd import backward

from bench.data.examples import by_length
from bench.errors import InputError
from bench.models.build import build
from bench.models.text import TextModel, TokenMask, masked_token_loss, rounded_size
from bench.models.weights import load_weights, save_weights
from bench.specs.architectures import MaskedLanguageModel
from tests.examples import tiny_text_backbone, token_mask

BACKBONE = tiny_text_backbone(depth=2)
ROBERTA = dataclasses.replace(
    BACKBONE, network="roberta", segments=1, pad_id=1, mask_id=39, special_ids=(0, 1, 2, 3, 39)
)
CLS, SEP, MASK = 2, 3, 4
TIED = "encoder.embeddings.word_embeddings.weight"


def model(
    *, classes: int | None = None, decoder: bool = False, dropout: float | None = None, seed: int = 0
) -> TextModel:
    torch.manual_seed(seed)
    built = build(BACKBONE, classes=classes, decoder=decoder, dropout=dropout)
    assert isinstance(built, TextModel)
    return built


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def text(batch: int = 3, length: int = 10) -> dict[str, Tensor]:
    """Sequences [CLS] ordinary [SEP] of lengths `length`, `length` - 1, …, padded at the end."""
    input_ids = torch.randint(5, BACKBONE.vocabulary, (batch, length), generator=generator(7))
    attention_mask = torch.ones_like(input_ids)
    input_ids[:, 0] = CLS
    for row in range(batch):
        end = length - row % (length - 2)
        input_ids[row, end - 1], input_ids[row, end:], attention_mask[row, end:] = SEP, 0, 0
    return {"input_ids": input_ids, "attention_mask": attention_mask}


# ------------------------------------------------------------------------------------------------ masking


def true_ids(mask: TokenMask) -> Tensor:
    """The true ids (B, T) of the selected tokens, -100 elsewhere."""
    labels = torch.full(mask.input_ids.shape, -100)
    labels.flatten()[mask.positions[mask.valid]] = mask.labels[mask.valid]
    return labels


def test_selection_rates() -> None:
    inputs = {"input_ids": torch.full((400, 100), 7), "attention_mask": torch.ones(400, 100, dtype=torch.long)}
    mask = model().draw_mask(inputs, generator(0))
    selected = true_ids(mask) != -100
    count = int(selected.sum())
    assert abs(count / 40_000 - 0.15) < 4 * math.sqrt(0.15 * 0.85 / 40_000)
    assert (true_ids(mask)[selected] == 7).all()
    assert (mask.input_ids[~selected] == 7).all()
    # 80 % masks and 10 % unchanged, each with its share of the 10 % random ids.
    for token, rate in ((MASK, 0.8 + 0.1 / 40), (7, 0.1 + 0.1 / 40)):
        share = int((mask.input_ids[selected] == token).sum()) / count
        assert abs(share - rate) < 4 * math.sqrt(rate * (1 - rate) / count), token
    assert set(mask.input_ids[selected].tolist()) == set(range(40))  # random ids come from the whole vocabulary
    per_row = selected.sum(dim=1).double()
    assert 9 < per_row.var() < 17  # independent draws: 100 * 0.15 * 0.85 = 12.75; a fixed count would have none


def test_special_and_padded_tokens_are_never_selected() -> None:
    input_ids = torch.arange(10).repeat(500, 10)
    attention_mask = torch.ones_like(input_ids)
    attention_mask[:, 50:] = 0
    mask = model().draw_mask({"input_ids": input_ids, "attention_mask": attention_mask}, generator(0))
    selected = true_ids(mask) != -100
    assert not selected[:, 50:].any()
    assert set(input_ids[selected].tolist()) == {5, 6, 7, 8, 9}
    assert torch.equal(mask.input_ids[~selected], input_ids[~selected])


def test_mask_depends_only_on_its_generator() -> None:
    built, inputs = model(decoder=True), text()
    first = built.draw_mask(inputs, generator(1))
    torch.manual_seed(99)
    again = built.double().draw_mask(inputs, generator(1))
    for drawn, drawn_again in zip(first, again, strict=True):
        assert torch.equal(drawn, drawn_again)
    assert not torch.equal(true_ids(first), true_ids(built.draw_mask(inputs, generator(2))))


def test_a_mask_has_one_of_few_sizes() -> None:
    assert [rounded_size(n) for n in (0, 1, 8, 9, 15, 16, 17, 31, 32, 33, 100, 127, 129)] == [
        *(8, 8, 8, 9, 15, 16, 18, 32, 32, 36, 104, 128, 144)
    ]
    assert all(n <= rounded_size(n) <= max(8, 1.125 * n) for n in range(5000))
    assert len({rounded_size(n) for n in range(5000)}) < 90
    built, inputs = model(), text()
    for seed in range(20):
        mask = built.draw_mask(inputs, generator(seed))
        count = int(mask.valid.sum())
        assert len(mask.positions) == len(mask.labels) == rounded_size(count)
        assert mask.valid.tolist() == [True] * count + [False] * (len(mask.labels) - count)
        assert torch.equal(inputs["input_ids"].flatten()[mask.positions[mask.valid]], mask.labels[mask.valid])


# ------------------------------------------------------------------------------------------------ loss


def test_loss_averages_over_all_selected_tokens() -> None:
    # Probabilities of the true ids: 3/4, then 1/2 and 1/2 in the other sequence.
    logits = torch.tensor([[[0.0, math.log(3)], [5.0, 0.0]], [[0.0, 0.0], [1.0, 1.0]]], dtype=torch.float64)
    labels = torch.tensor([[1, -100], [0, 1]])
    expected = (math.log(4 / 3) + 2 * math.log(2)) / 3
    assert masked_token_loss(logits, labels).item() == pytest.approx(expected, rel=1e-14)


def test_no_selected_token_gives_zero_with_a_graph() -> None:
    built, inputs = model(decoder=True), text()
    mask = built.draw_mask(inputs | {"attention_mask": 0 * inputs["attention_mask"]}, generator(0))
    assert not mask.valid.any() and len(mask.labels) == 8
    loss = built.masked_loss(inputs, mask)
    backward(loss)
    assert loss.item() == 0
    assert all(p.grad is None or not p.grad.any() for p in built.parameters())
    assert masked_token_loss(torch.zeros(2, 3, 5, requires_grad=True), torch.full((2, 3), -100)).item() == 0


def test_rows_behind_the_selected_tokens_count_for_nothing() -> None:
    built, inputs = model(decoder=True).double().eval(), text()
    labels = torch.full_like(inputs["input_ids"], -100)
    labels[0, 2], labels[0, 5], labels[2, 1] = 9, 30, 6
    bare = token_mask(inputs["input_ids"], labels)
    longer = TokenMask(
        bare.input_ids,
        torch.cat([bare.positions, torch.zeros(5, dtype=torch.long)]),
        torch.cat([bare.labels, torch.full((5,), -100)]),
    )
    losses, gradients = [], []
    for mask in (bare, longer):
        built.zero_grad()
        losses.append(built.masked_loss(inputs, mask))
        backward(losses[-1])
        gradients.append([parameter.grad for parameter in built.parameters()])
    assert built.masked_predictions(inputs, longer).shape == (8, 40)
    torch.testing.assert_close(losses[0], losses[1], rtol=0, atol=1e-12)
    torch.testing.assert_close(gradients[0], gradients[1], rtol=0, atol=1e-12)


def test_masked_loss_is_that_of_the_whole_network() -> None:
    built, inputs = model(decoder=True).double().eval(), text()
    assert built.decoder is not None
    labels = torch.full_like(inputs["input_ids"], -100)
    labels[0, 2], labels[0, 5], labels[2, 1] = 9, 30, 6
    with torch.no_grad():
        hidden = built.encoder(inputs["input_ids"], attention_mask=inputs["attention_mask"]).last_hidden_state
        everywhere = built.decoder(hidden)
        mask = token_mask(inputs["input_ids"], labels)
        chosen = torch.stack([everywhere[0, 2], everywhere[0, 5], everywhere[2, 1]])
        torch.testing.assert_close(built.masked_predictions(inputs, mask), chosen, rtol=0, atol=1e-12)
        expected = -sum(chosen[i].log_softmax(-1)[token].item() for i, token in enumerate((9, 30, 6))) / 3
        assert built.masked_loss(inputs, mask).item() == pytest.approx(expected, rel=1e-12)


# ------------------------------------------------------------------------------------------------ the shared face


def test_equal_seeds_give_equal_weights_whatever_is_built_besides() -> None:
    first, again, other = model(classes=4, decoder=True), model(classes=4, decoder=True), model(seed=1)
    for weights, equal_weights in zip(first.parameters(), again.parameters(), strict=True):
        assert torch.equal(weights, equal_weights)
    for name, parameter in model().named_parameters():
        assert torch.equal(parameter, first.get_parameter(name)), name
    assert not torch.equal(first.get_parameter(TIED), other.get_parameter(TIED))


def test_padding_does_not_change_features() -> None:
    built, inputs = model(classes=4).double().eval(), text()
    with torch.no_grad():
        features = built.features(inputs)
        assert features.shape == (3, 16) and features.dtype == torch.float64
        for row in range(3):
            length = 10 - row
            alone = {name: tensor[row : row + 1, :length] for name, tensor in inputs.items()}
            assert alone["attention_mask"].all()
            torch.testing.assert_close(built.features(alone), features[row : row + 1], rtol=0, atol=1e-12)


def test_embeddings_stand_in_for_words() -> None:
    built, inputs = model(classes=4).eval(), text()
    with torch.no_grad():
        embeddings = built.embed(inputs)
        assert torch.equal(embeddings, built.get_parameter(TIED)[inputs["input_ids"]])
        assert torch.equal(built.features(inputs, embeddings), built.features(inputs))
        assert torch.equal(built.logits(inputs, embeddings), built.logits(inputs))
        assert not torch.allclose(built.logits(inputs, embeddings + 1.0 * embeddings.roll(1, 1)), built.logits(inputs))


def test_classifier_is_one_tanh_layer() -> None:
    built, inputs = model(classes=4, dropout=0.5).eval(), text()
    with torch.no_grad():
        first, first_bias, last, last_bias = (
            p + 0.1 for name, p in built.named_parameters() if name.startswith("head")
        )
        for name, value in zip(
            ("1.weight", "1.bias", "4.weight", "4.bias"), (first, first_bias, last, last_bias), strict=True
        ):
            built.get_parameter(f"head.{name}").copy_(value)
        expected = torch.tanh(built.features(inputs) @ first.T + first_bias) @ last.T + last_bias
        torch.testing.assert_close(built.logits(inputs), expected)
        head = built.train().head
        assert head is not None
        features = torch.ones(2000, 16)
        assert not torch.equal(head(features), head(features))


def test_dropout_none_is_the_backbones() -> None:
    own, off = model(classes=4), model(classes=4, dropout=0.0)
    assert {m.p for m in own.modules() if isinstance(m, torch.nn.Dropout)} == {0.1}
    assert own.encoder.config.attention_probs_dropout_prob == 0.1
    assert torch.equal(off.train().logits(text()), off.logits(text()))
    assert not torch.equal(own.train().logits(text()), own.logits(text()))


def test_roles_cover_every_parameter() -> None:
    built = model(classes=4, decoder=True)
    roles = built.roles()
    assert roles.keys() == dict(built.named_parameters()).keys()
    by_role = {role: {name for name in roles if roles[name] == role} for role in set(roles.values())}
    assert by_role["position"] == {"encoder.embeddings.position_embeddings.weight"}
    assert by_role["token"] == {"encoder.embeddings.token_type_embeddings.weight"}
    assert by_role["norm"] == {name for name in roles if name.endswith("LayerNorm.weight")}
    assert by_role["bias"] == {name for name in roles if name.endswith("bias")}
    assert by_role["embedding"] == {TIED}
    assert {"head.1.weight", "head.4.weight", "decoder.predictions.transform.dense.weight"} < by_role["matrix"]
    assert all(built.get_parameter(name).ndim > 1 for name in by_role["matrix"])
    assert not any(name.startswith("head") for name in model(decoder=True).roles())


def test_every_parameter_gets_a_gradient() -> None:
    pretraining, classifier, inputs = model(decoder=True), model(classes=4), text()
    labels = torch.full_like(inputs["input_ids"], -100)
    labels[0, 1] = 8
    backward(pretraining.masked_loss(inputs, token_mask(inputs["input_ids"], labels)))
    backward(classifier.logits(inputs).square().sum())
    for built in (pretraining, classifier):
        for name, parameter in built.named_parameters():
            assert parameter.requires_grad and parameter.grad is not None, name


# ------------------------------------------------------------------------------------------------ RoBERTa, segments


def roberta(*, classes: int | None = None, decoder: bool = False, backbone: MaskedLanguageModel = ROBERTA) -> TextModel:
    torch.manual_seed(0)
    built = build(backbone, classes=classes, decoder=decoder).double().eval()
    assert isinstance(built, TextModel)
    return built


def roberta_text() -> dict[str, Tensor]:
    """As `text`, with RoBERTa's ids for padding and the first token."""
    inputs = text()
    inputs["input_ids"] = inputs["input_ids"].clamp(max=38).masked_fill(inputs["attention_mask"] == 0, ROBERTA.pad_id)
    inputs["input_ids"][:, 0] = 0
    return inputs


def test_special_ids_and_the_mask_are_the_backbones() -> None:
    input_ids = torch.arange(40).repeat(500, 1)
    mask = roberta().draw_mask({"input_ids": input_ids, "attention_mask": torch.ones_like(input_ids)}, generator(0))
    selected = true_ids(mask) != -100
    assert set(input_ids[selected].tolist()) == set(range(4, 39))
    changed = mask.input_ids[selected & (mask.input_ids != input_ids)]
    assert changed.bincount(minlength=40).argmax() == 39
    assert set(changed.tolist()) == set(range(40))


def test_room_for_positions() -> None:
    # RoBERTa's positions begin behind its padding index.
    positions = "encoder.embeddings.position_embeddings.weight"
    assert roberta().get_parameter(positions).shape == (14, 16)
    assert model().get_parameter(positions).shape == (12, 16)
    longer = dataclasses.replace(ROBERTA, positions=20, segments=3)
    assert roberta(backbone=longer).get_parameter(positions).shape == (20, 16)
    tokens = "encoder.embeddings.token_type_embeddings.weight"
    assert roberta(backbone=longer).get_parameter(tokens).shape == (3, 16)
    full = {"input_ids": torch.full((2, 12), 7), "attention_mask": torch.ones(2, 12, dtype=torch.long)}
    assert roberta().features(full).isfinite().all()
    with pytest.raises(InputError, match="max_length"):
        dataclasses.replace(ROBERTA, positions=13)


def test_roberta_reads_words_and_embeddings_alike() -> None:
    built, inputs = roberta(classes=4), roberta_text()
    assert not inputs["attention_mask"].all()
    with torch.no_grad():
        features = built.features(inputs)
        torch.testing.assert_close(built.features(inputs, built.embed(inputs)), features, rtol=0, atol=1e-12)
        for row in range(3):
            alone = {name: tensor[row : row + 1, : 10 - row] for name, tensor in inputs.items()}
            torch.testing.assert_close(built.features(alone), features[row : row + 1], rtol=0, atol=1e-12)


def test_a_padding_token_in_the_place_of_a_word_moves_no_position() -> None:
    built, inputs = roberta(decoder=True), roberta_text()
    masked = inputs["input_ids"].clone()
    masked[:, 3] = ROBERTA.pad_id  # as a random id of the vocabulary can be
    labels = torch.full_like(masked, -100)
    labels[:, 5] = inputs["input_ids"][:, 5]
    with torch.no_grad():
        # transformers counts positions from left to right where it is given embeddings.
        words = built.embed({"input_ids": masked})
        hidden = built.encoder(inputs_embeds=words, attention_mask=inputs["attention_mask"]).last_hidden_state
        assert built.decoder is not None
        predictions = built.masked_predictions(inputs, token_mask(masked, labels))
        torch.testing.assert_close(predictions, built.decoder(hidden[:, 5]), rtol=0, atol=1e-12)


def test_roberta_trains_every_parameter() -> None:
    pretraining, classifier, inputs = roberta(decoder=True), roberta(classes=4), roberta_text()
    labels = torch.full_like(inputs["input_ids"], -100)
    labels[0, 1] = 8
    backward(pretraining.masked_loss(inputs, token_mask(inputs["input_ids"], labels)))
    backward(classifier.logits(inputs).square().sum())
    for built in (pretraining, classifier):
        for name, parameter in built.named_parameters():
            assert parameter.requires_grad and parameter.grad is not None, name
            assert "pooler" not in name
    assert pretraining.get_parameter("decoder.decoder.weight") is pretraining.get_parameter(TIED)
    assert pretraining.roles()["decoder.layer_norm.weight"] == "norm"


def test_segments_reach_the_encoder() -> None:
    built, inputs = model(classes=4, decoder=True).double().eval(), text()
    segments = torch.zeros_like(inputs["input_ids"])
    segments[:, 4:] = 1
    pairs = inputs | {"token_type_ids": segments}
    labels = torch.full_like(segments, -100)
    labels[:, 2] = 8
    mask = token_mask(inputs["input_ids"], labels)
    with torch.no_grad():
        expected = built.encoder(**pairs).last_hidden_state
        torch.testing.assert_close(built.features(pairs), expected[:, 0], rtol=0, atol=1e-12)
        torch.testing.assert_close(built.features(pairs, built.embed(pairs)), expected[:, 0], rtol=0, atol=1e-12)
        assert built.decoder is not None
        predictions = built.decoder(expected[:, 2])
        torch.testing.assert_close(built.masked_predictions(pairs, mask), predictions, rtol=0, atol=1e-12)
        assert not torch.allclose(built.features(pairs), built.features(inputs))
        assert torch.equal(built.features(inputs | {"token_type_ids": 0 * segments}), built.features(inputs))


# ------------------------------------------------------------------------------------------------ only what is asked


def different(name: str) -> tuple[TextModel, dict[str, Tensor]]:
    """A network whose biases and gains differ from 0 and 1, and a padded batch with segments where it knows them."""
    built, inputs = (roberta(classes=4, decoder=True), roberta_text())
    if name == "bert":
        built, inputs = model(classes=4, decoder=True).double().eval(), text()
        inputs["token_type_ids"] = (torch.arange(10) >= 4).long().expand(3, -1) * inputs["attention_mask"]
    with torch.no_grad():
        for i, parameter in enumerate(built.parameters()):
            parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator(i), dtype=torch.float64))
    return built, inputs


def gradients(built: TextModel, output: Tensor) -> dict[str, Tensor]:
    weights = torch.randn(output.shape, generator=generator(5), dtype=output.dtype)
    parameters = {name: p for name, p in built.named_parameters() if not name.startswith("head.")}
    grads = torch.autograd.grad((output * weights).sum(), list(parameters.values()), allow_unused=True)
    return {name: torch.zeros(()) if g is None else g for name, g in zip(parameters, grads, strict=True)}


def agree(built: TextModel, actual: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-12)
    ours, theirs = gradients(built, actual), gradients(built, expected)
    assert sum(bool(g.abs().max() > 1e-3) for g in ours.values()) > 30
    for name, gradient in ours.items():
        torch.testing.assert_close(gradient.expand_as(theirs[name]), theirs[name], rtol=0, atol=1e-12)


@pytest.mark.parametrize("parts", ["whole", "parts"])
@pytest.mark.parametrize("input_kind", ["words", "embeddings"])
@pytest.mark.parametrize("network", ["bert", "roberta"])
def test_the_last_block_of_the_first_token_alone_is_that_of_all(network: str, input_kind: str, parts: str) -> None:
    built, inputs = different(network)
    asked = inputs | ({"parts": by_length(inputs["attention_mask"])} if parts == "parts" else {})
    embeddings, words = None, inputs
    if input_kind == "embeddings":
        embeddings = built.embed(inputs).detach() + 0.1
        words = {name: tensor for name, tensor in inputs.items() if name != "input_ids"} | {"inputs_embeds": embeddings}
    positions = torch.arange(10)[None] + built.backbone.first_position
    expected = built.encoder(**words, position_ids=positions).last_hidden_state[:, 0]
    agree(built, built.features(asked, embeddings), expected)


@pytest.mark.parametrize("parts", ["whole", "parts"])
@pytest.mark.parametrize("network", ["bert", "roberta"])
def test_the_last_block_of_selected_tokens_alone_is_that_of_all(network: str, parts: str) -> None:
    built, inputs = different(network)
    asked = inputs | ({"parts": by_length(inputs["attention_mask"])} if parts == "parts" else {})
    drawn = (built.draw_mask(inputs, generator(seed)) for seed in range(100))
    mask = next(mask for mask in drawn if 3 < mask.valid.sum() < 8)
    positions = torch.arange(10)[None] + built.backbone.first_position
    hidden = built.encoder(**inputs | {"input_ids": mask.input_ids}, position_ids=positions).last_hidden_state
    assert built.decoder is not None
    agree(built, built.masked_predictions(asked, mask), built.decoder(hidden.flatten(0, 1)[mask.positions]))


def test_parts_of_similar_lengths_hold_every_token_once_with_little_padding() -> None:
    lengths = torch.tensor([3, 48, 5, 37, 12, 4, 36, 35, 5, 20])
    mask = (torch.arange(48) < lengths[:, None]).long()
    parts = by_length(mask)
    rows = [(part[:, 0] // 48).tolist() for part in parts]
    assert rows == [[1, 3, 6], [7], [9], [4], [2, 8, 5], [0]]
    for part, of in zip(parts, rows, strict=True):
        assert part.shape == (len(of), int(lengths[of].max()))
        assert (part == torch.tensor(of)[:, None] * 48 + torch.arange(part.shape[1])).all()
    equal = by_length(torch.ones(4, 9, dtype=torch.long))
    assert [part.tolist() for part in equal] == [torch.arange(36).view(4, 9).tolist()]


# ------------------------------------------------------------------------------------------------ weights on disk


@pytest.mark.parametrize("part", ["encoder", "decoder", "head"])
def test_each_part_survives_the_disk_alone(part: str, tmp_path: Path) -> None:
    saved, loaded, untouched = (model(classes=4, decoder=True, seed=seed).double() for seed in (0, 1, 1))
    with torch.no_grad():
        for parameter in saved.parameters():
            parameter.add_(0.1)  # initial biases are equal whatever the seed
    save_weights(saved, tmp_path / "weights.safetensors")
    load_weights(loaded, tmp_path / "weights.safetensors", [part])
    for name, parameter in loaded.named_parameters():
        source = saved if name.startswith(part) else untouched
        assert torch.equal(parameter, source.get_parameter(name)), name


def test_tie_survives_the_disk_and_is_stored_once(tmp_path: Path) -> None:
    path, inputs = tmp_path / "weights.safetensors", text()
    saved, loaded = model(decoder=True), model(decoder=True, seed=1)
    save_weights(saved, path)
    assert [name for name, tensor in load_file(path).items() if tensor.shape == (40, 16)] == [TIED]
    load_weights(loaded, path, ["encoder", "decoder"])
    mask = saved.draw_mask(text(), generator(1))
    with torch.no_grad():
        expected = saved.eval().masked_predictions(inputs, mask)
        assert torch.equal(loaded.eval().masked_predictions(inputs, mask), expected)
        loaded.get_parameter(TIED).mul_(2)
    projection, bias = "decoder.predictions.decoder.weight", "decoder.predictions.decoder.bias"
    assert loaded.get_parameter(projection) is loaded.get_parameter(TIED)
    assert loaded.get_parameter(bias) is loaded.get_parameter("decoder.predictions.bias")


def test_wrong_shapes_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "weights.safetensors"
    save_weights(model(classes=5), path)
    with pytest.raises(InputError, match=r"head\.4\.weight is \(5, 16\), not \(4, 16\)"):
        load_weights(model(classes=4), path, ["encoder", "head"])
    with pytest.raises(InputError, match="decoder"):
        load_weights(model(decoder=True), path, ["encoder", "decoder"])
