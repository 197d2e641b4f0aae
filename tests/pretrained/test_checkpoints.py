"""Checkpoints made elsewhere: the libraries' networks, saved to disk and prepared, compute the same here."""

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import huggingface_hub
import pytest
import timm
import torch
import transformers
from huggingface_hub.errors import LocalEntryNotFoundError, OfflineModeIsEnabled
from safetensors.torch import load_file, save_file
from timm.models import save_for_hf
from tokenizers import Tokenizer, pre_tokenizers, processors
from tokenizers.models import BPE
from torch import Tensor, nn
from torch.autograd import backward

from bench.data.sources import embedded_texts
from bench.errors import InputError
from bench.interfaces.model import Model
from bench.models.build import build
from bench.models.image import mask_from_noise, renormalised, sincos_positions
from bench.models.weights import load_weights
from bench.planning.registry import CHECKPOINTS
from bench.pretrained import checkpoints, origin
from bench.pretrained.checkpoints import Prepared
from bench.pretrained.prepare import prepare_checkpoint as prepare
from bench.pretrained.vit_mae_names import from_transformers
from bench.specs.architectures import MaskedAutoEncoder, MaskedLanguageModel
from bench.store.files import sha256
from tests.examples import token_mask
from tests.pretrained.transformers_4 import transformers_4

EXACT = {"rtol": 1e-9, "atol": 1e-9}


@pytest.fixture(autouse=True)
def _quiet() -> None:
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()


def randomised(network: nn.Module, seed: int = 0) -> nn.Module:
    """In float32 and eval mode, with no parameter left at zero or one."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            gain = "norm" in name.lower() and name.endswith("weight")
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3 + float(gain))
    return network.eval()


def loaded(prepared: Prepared, root: Path) -> Model:
    """The prepared network in double precision."""
    own: dict[str, Any] = {"name": prepared.name, "weights": None, **prepared.architecture}
    backbone = (
        MaskedAutoEncoder(**own)
        if prepared.modality == "image"
        else MaskedLanguageModel(tokenizer=None, tokenizer_checksum=prepared.tokenizer_checksum, **own)
    )
    model = build(backbone, decoder=backbone.has_decoder).double().eval()
    parts = ["encoder", "decoder"] if backbone.has_decoder else ["encoder"]
    path = checkpoints.weights(prepared.name, root, prepared.checksum)
    load_weights(model, path, parts, absent=prepared.fresh)
    return model


def renamed(folder: Path, rename: Callable[[str], str]) -> None:
    path = folder / "model.safetensors"
    save_file({rename(name): tensor for name, tensor in load_file(path).items()}, path)


def changed(folder: Path, **settings: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | settings))


def with_tensors(folder: Path, change: Callable[[dict[str, Tensor]], object]) -> None:
    path = folder / "model.safetensors"
    state = load_file(path)
    change(state)
    save_file(state, path)


def folder_source(folder: Path) -> str:
    return f"folder:{folder}"


# ------------------------------------------------------------------------------------------------ masked auto-encoders


def mae_config(**settings: Any) -> transformers.ViTMAEConfig:
    return transformers.ViTMAEConfig(
        image_size=12,
        patch_size=3,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=21,
        decoder_hidden_size=8,
        decoder_num_hidden_layers=3,
        decoder_num_attention_heads=4,
        decoder_intermediate_size=11,
        layer_norm_eps=1e-3,
        mask_ratio=0.6,
        norm_pix_loss=True,
        **{"attn_implementation": "sdpa", **settings},
    )


def auto_encoder(**settings: Any) -> transformers.ViTMAEForPreTraining:
    """One with positions, which a network that is built from a configuration lacks."""
    network = randomised(transformers.ViTMAEForPreTraining(mae_config(**settings)))
    assert isinstance(network, transformers.ViTMAEForPreTraining)
    with torch.no_grad():
        network.vit.embeddings.position_embeddings.copy_(sincos_positions(16, 4, cls=True))
        network.decoder.decoder_pos_embed.copy_(sincos_positions(8, 4, cls=True))
    return network


@pytest.fixture
def mae_folder(tmp_path: Path) -> Path:
    folder = tmp_path / "mae"
    auto_encoder().save_pretrained(folder)
    return folder


@pytest.mark.parametrize("spelling", ["as saved", "as in memory", "as released"])
def test_a_masked_auto_encoder_computes_the_same(spelling: str, mae_folder: Path, tmp_path: Path) -> None:
    if spelling != "as saved":
        state = {name: parameter.detach().clone() for name, parameter in auto_encoder().named_parameters()}
        save_file(state, mae_folder / "model.safetensors")
    if spelling == "as released":
        renamed(mae_folder, transformers_4)
        assert "decoder.decoder_layers.2.output.dense.weight" in load_file(mae_folder / "model.safetensors")
    theirs = auto_encoder().double()
    prepared = prepare("mae", folder_source(mae_folder), tmp_path / "data")
    assert prepared.architecture == {
        "image_size": 12,
        "patch_size": 3,
        "width": 16,
        "depth": 2,
        "heads": 2,
        "mlp_width": 21,
        "norm_eps": 1e-3,
        "decoder_width": 8,
        "decoder_depth": 3,
        "decoder_heads": 4,
        "decoder_mlp_width": 11,
        "decoder_norm_eps": 1e-3,
        "mask_ratio": 0.6,
        "norm_pix_loss": True,
    }
    assert (prepared.fresh, prepared.ignored, prepared.tokenizer_checksum) == ((), (), None)
    ours = loaded(prepared, tmp_path / "data")
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(3, 3, 12, 12, generator=generator, dtype=torch.float64)
    noise = torch.rand(3, 16, generator=generator, dtype=torch.float64)

    expected = theirs(images, noise=noise).loss
    loss = ours.masked_loss(images, mask_from_noise(noise, 0.6))
    torch.testing.assert_close(loss, expected, **EXACT)
    backward(expected)
    backward(loss)
    gradients = from_transformers({n: p.grad for n, p in theirs.named_parameters() if p.grad is not None})
    trained = {name: p.grad for name, p in ours.named_parameters() if p.requires_grad}
    assert trained.keys() == gradients.keys() and len(gradients) > 50
    for name, gradient in trained.items():
        assert gradient is not None and gradient.any(), name
        torch.testing.assert_close(gradient, gradients[name], **EXACT, msg=lambda text, name=name: f"{name}: {text}")

    theirs.vit.embeddings.config.mask_ratio = 0.0  # all patches, in their order
    with torch.no_grad():
        unmasked = theirs.vit(images, noise=torch.arange(16.0).expand(3, -1)).last_hidden_state[:, 0]
        torch.testing.assert_close(ours.features(images), unmasked, **EXACT)


def test_an_encoder_without_its_decoder(tmp_path: Path) -> None:
    whole = auto_encoder()
    whole.vit.save_pretrained(tmp_path / "vit")
    prepared = prepare("half", folder_source(tmp_path / "vit"), tmp_path)
    assert prepared.architecture["decoder_depth"] == 0
    images = torch.randn(2, 3, 12, 12, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    ours = loaded(prepared, tmp_path)
    assert not ours.backbone.has_decoder
    theirs = whole.double().vit
    theirs.embeddings.config.mask_ratio = 0.0
    with torch.no_grad():
        expected = theirs(images, noise=torch.arange(16.0).expand(2, -1)).last_hidden_state[:, 0]
        torch.testing.assert_close(ours.features(images), expected, **EXACT)


def test_empty_positions_are_refused(tmp_path: Path) -> None:
    network = transformers.ViTMAEForPreTraining(mae_config())
    assert not network.vit.embeddings.position_embeddings.any()
    network.save_pretrained(tmp_path / "mae")
    with pytest.raises(InputError, match="pos_embed are all zero"):
        prepare("mae", folder_source(tmp_path / "mae"), tmp_path)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"hidden_act": "relu"}, "hidden_act is 'relu'"),
        ({"qkv_bias": False}, "qkv_bias"),
        ({"num_channels": 1}, "num_channels"),
        ({"image_size": [12, 15]}, "image_size"),
        ({"num_hidden_layers": 3}, r"encoder\.blocks\.2\.\S+ is missing"),
        ({"intermediate_size": 22}, r"fc1\.weight is \(21, 16\), not \(22, 16\)"),
        ({"num_attention_heads": 3}, "heads"),
        ({"hidden_size": "sixteen"}, "hidden_size"),
        ({"auto_map": {"AutoModel": "code.py"}}, "auto_map"),
        ({"model_type": "swin"}, r"'swin'.*vit_mae, vit, deit, dinov2.*bert"),
    ],
)
def test_other_networks_are_refused(settings: dict[str, Any], message: str, mae_folder: Path, tmp_path: Path) -> None:
    changed(mae_folder, **settings)
    with pytest.raises(InputError, match=message):
        prepare("mae", folder_source(mae_folder), tmp_path)
    assert not checkpoints.folder("mae", tmp_path).exists()
    assert list((tmp_path / "backbones").iterdir()) == []


def test_unknown_tensors_of_an_auto_encoder_are_all_named(mae_folder: Path, tmp_path: Path) -> None:
    extra = {"vit.pooler.dense.bias": torch.ones(2), "adapter.weight": torch.ones(2), "classifier.bias": torch.ones(2)}
    with_tensors(mae_folder, lambda state: state.update(extra))
    with pytest.raises(InputError, match=r"adapter\.weight, classifier\.bias, vit\.pooler\.dense\.bias"):
        prepare("mae", folder_source(mae_folder), tmp_path)


# ------------------------------------------------------------------------------------------------ timm


@pytest.fixture
def timm_folder(tmp_path: Path) -> Path:
    network = randomised(timm.create_model("vit_tiny_patch16_224", pretrained=False, num_classes=3, img_size=32))
    save_for_hf(network, tmp_path / "timm", model_args={"img_size": 32}, safe_serialization=True)
    return tmp_path / "timm"


def test_an_encoder_of_timm_computes_the_same(timm_folder: Path, tmp_path: Path) -> None:
    theirs = randomised(timm.create_model("vit_tiny_patch16_224", pretrained=False, num_classes=3, img_size=32))
    prepared = prepare("tiny", folder_source(timm_folder), tmp_path)
    assert prepared.architecture == {
        "image_size": 32,
        "patch_size": 16,
        "width": 192,
        "depth": 12,
        "heads": 3,
        "mlp_width": 768,
        "decoder_depth": 0,
        "norm_eps": 1e-6,
        "registers": 0,
        "positioned": "all",
        "layer_scale": None,
        "pre_norm": False,
        "pixel_mean": [0.5, 0.5, 0.5],  # as timm's configuration of this network says
        "pixel_std": [0.5, 0.5, 0.5],
    }
    assert prepared.ignored == ("head.bias", "head.weight")
    ours = loaded(prepared, tmp_path)
    assert not ours.backbone.has_decoder
    images = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    with torch.no_grad():
        expected: Any = theirs.double()
        seen = renormalised(images, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
        torch.testing.assert_close(ours.features(images), expected.forward_features(seen)[:, 0], **EXACT)


def test_another_formula_with_the_same_weights_is_refused(
    timm_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    create = timm.create_model

    def with_another_activation(*arguments: Any, **settings: Any) -> Any:
        network = create(*arguments, **settings)
        for block in network.blocks:
            block.mlp.act = nn.ReLU()
        return network

    monkeypatch.setattr(timm, "create_model", with_another_activation)
    with pytest.raises(InputError, match="other features"):
        prepare("tiny", folder_source(timm_folder), tmp_path)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"architecture": "resnet50"}, "'resnet50'"),
        ({"architecture": "vit_unheard_of"}, "vit_unheard_of"),
        ({"architecture": "vit_relpos_small_patch16_224"}, "vit_relpos"),
        ({"architecture": "vit_small_patch16_224"}, "vit_small"),
        ({"model_args": {"checkpoint_path": "x.pth"}}, "checkpoint_path"),
    ],
)
def test_other_networks_of_timm_are_refused(
    settings: dict[str, Any], message: str, timm_folder: Path, tmp_path: Path
) -> None:
    changed(timm_folder, **settings)
    with pytest.raises(InputError, match=message):
        prepare("tiny", folder_source(timm_folder), tmp_path)


def test_an_encoder_of_timm_without_a_norm_before_the_features_is_refused(timm_folder: Path, tmp_path: Path) -> None:
    # As timm's networks have it that average over patches.
    renamed(timm_folder, lambda name: name.replace("norm.", "fc_norm.") if name.startswith("norm.") else name)
    with pytest.raises(InputError, match=r"(?s)norm\.weight.*fc_norm\.weight"):
        prepare("tiny", folder_source(timm_folder), tmp_path)


# ------------------------------------------------------------------------------------------------ text

TEXTS = ["the quick brown fox jumps over the lazy dog", "the dog sleeps and the fox jumps", "a fox and a dog"]
SIZES = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 20}


def word_pieces() -> Tokenizer:
    """The tokenizer of `docstrings` with these words and their letters for its vocabulary."""
    tokenizer = json.loads(embedded_texts.TOKENIZER.read_bytes())
    words = sorted({*" ".join(TEXTS).split()})
    letters = sorted({*"".join(words)})
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    entries = dict.fromkeys([*special, *letters, *(f"##{letter}" for letter in letters), *words])
    tokenizer["model"]["vocab"] = {entry: i for i, entry in enumerate(entries)}
    return Tokenizer.from_str(json.dumps(tokenizer))


def bytes_as_words() -> Tokenizer:
    """RoBERTa's kind of tokenizer, without any merge."""
    entries = ["<s>", "<pad>", "</s>", "<unk>", *sorted(pre_tokenizers.ByteLevel.alphabet()), "<mask>"]
    tokenizer = Tokenizer(BPE({entry: i for i, entry in enumerate(entries)}, [], unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0))
    tokenizer.add_special_tokens(["<s>", "<pad>", "</s>", "<unk>", "<mask>"])
    return tokenizer


def text_network(kind: str, **settings: Any) -> Any:
    """A randomly initialised network of that kind, larger than its tokenizer by a few unused embeddings."""
    tokenizer = word_pieces() if kind == "bert" else bytes_as_words()
    of: Any = {
        "bert": transformers.BertForMaskedLM,
        "roberta": transformers.RobertaForMaskedLM,
        "xlm-roberta": transformers.XLMRobertaForMaskedLM,
        "camembert": transformers.CamembertForMaskedLM,
    }[kind]
    sizes = {
        **SIZES,
        "vocab_size": tokenizer.get_vocab_size() + 3,
        "max_position_embeddings": 40,
        "layer_norm_eps": 1e-3,
        "type_vocab_size": 2 if kind == "bert" else 1,
        "hidden_dropout_prob": 0.2,
    }
    return randomised(of(of.config_class(**{**sizes, **settings})))


def saved_text(kind: str, folder: Path, network: Any | None = None) -> Path:
    (network or text_network(kind)).save_pretrained(folder)
    tokenizer = word_pieces() if kind == "bert" else bytes_as_words()
    tokenizer.enable_padding()
    tokenizer.enable_truncation(5)
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"model_max_length": 30}))
    return folder


def batch(folder: Path, pad: int, pairs: bool = False) -> dict[str, Tensor]:
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    encoded = [tokenizer.encode(*((text, "a dog") if pairs else (text,))) for text in ("the fox", "a dog jumps", "fox")]
    length = max(len(encoding.ids) for encoding in encoded)
    assert length > min(len(encoding.ids) for encoding in encoded)

    def padded(rows: list[list[int]], value: int) -> Tensor:
        return torch.tensor([row + [value] * (length - len(row)) for row in rows])

    inputs = {
        "input_ids": padded([encoding.ids for encoding in encoded], pad),
        "attention_mask": padded([[1] * len(encoding.ids) for encoding in encoded], 0),
    }
    if pairs:
        inputs["token_type_ids"] = padded([encoding.type_ids for encoding in encoded], 0)
    return inputs


@pytest.fixture
def bert_folder(tmp_path: Path) -> Path:
    return saved_text("bert", tmp_path / "bert")


@pytest.mark.parametrize("kind", ["bert", "roberta", "xlm-roberta", "camembert"])
def test_a_masked_language_model_computes_the_same(kind: str, tmp_path: Path) -> None:
    folder = saved_text(kind, tmp_path / kind)
    theirs = text_network(kind).double()
    bert = kind == "bert"
    tokenizer = word_pieces() if bert else bytes_as_words()
    prepared = prepare("text", folder_source(folder), tmp_path)
    assert prepared.architecture == {
        "network": "bert" if bert else "roberta",
        "vocabulary": tokenizer.get_vocab_size() + 3,
        "width": 16,
        "depth": 2,
        "heads": 2,
        "mlp_width": 20,
        "positions": 40,
        "segments": 2 if bert else 1,
        "norm_eps": 1e-3,
        "dropout": 0.2,
        "max_length": 30,
        "pad_id": 0 if bert else 1,
        "mask_id": 4 if bert else 260,
        "special_ids": [0, 1, 2, 3, 4] if bert else [0, 1, 2, 3, 260],
    }
    assert (prepared.fresh, prepared.ignored) == ((), ())
    ours = loaded(prepared, tmp_path)
    prepared_folder = checkpoints.folder("text", tmp_path)
    assert sha256(prepared_folder / "tokenizer.json") == prepared.tokenizer_checksum
    kept = Tokenizer.from_file(str(prepared_folder / "tokenizer.json"))
    assert kept.padding is None and kept.truncation is None
    assert kept.encode(TEXTS[0]).ids == tokenizer.encode(TEXTS[0]).ids

    for pairs in (False, True) if bert else (False,):
        inputs = batch(prepared_folder, int(ours.backbone.pad_id), pairs)
        labels = inputs["input_ids"].masked_fill(inputs["attention_mask"] == 0, -100)
        with torch.no_grad():
            expected = theirs.base_model(**inputs).last_hidden_state[:, 0]
            torch.testing.assert_close(ours.features(inputs), expected, **EXACT)
            embedded = ours.features(inputs, ours.embed(inputs))
            torch.testing.assert_close(embedded, expected, **EXACT)
            predictions = ours.masked_predictions(inputs, token_mask(inputs["input_ids"], labels))
            torch.testing.assert_close(predictions, theirs(**inputs).logits[labels != -100], **EXACT)


@pytest.mark.parametrize(("kind", "positions"), [("bert", 40), ("roberta", 38)])
def test_the_longest_input_leaves_room_for_positions(kind: str, positions: int, tmp_path: Path) -> None:
    folder = saved_text(kind, tmp_path / kind)
    (folder / "tokenizer_config.json").write_text(json.dumps({"model_max_length": 1e30}))
    assert prepare("text", folder_source(folder), tmp_path).architecture["max_length"] == positions


def test_a_checkpoint_without_a_head(tmp_path: Path) -> None:
    theirs = transformers.BertModel(text_network("bert").config)
    folder = saved_text("bert", tmp_path / "bare", randomised(theirs))
    buffers = {f"embeddings.{name}_ids": torch.zeros(1, 40, dtype=torch.long) for name in ("position", "token_type")}
    with_tensors(folder, lambda state: state.update(buffers))
    prepared = prepare("bare", folder_source(folder), tmp_path)
    head = "decoder.predictions."
    names = ("bias", *(f"transform.{layer}.{kind}" for layer in ("LayerNorm", "dense") for kind in ("bias", "weight")))
    assert prepared.fresh == tuple(head + name for name in names)
    assert prepared.ignored == ()  # the pooler goes without saying
    stored = load_file(checkpoints.folder("bare", tmp_path) / "weights.safetensors")
    assert all(name.startswith("encoder.") for name in stored)
    torch.manual_seed(5)
    ours = loaded(prepared, tmp_path)
    torch.manual_seed(5)
    untouched = build(ours.backbone, decoder=True).double()
    for name in prepared.fresh:
        assert torch.equal(ours.get_parameter(name), untouched.get_parameter(name))
    inputs = batch(folder, 0)
    with torch.no_grad():
        expected = theirs.double()(**inputs).last_hidden_state[:, 0]
        torch.testing.assert_close(ours.features(inputs), expected, **EXACT)
    path = checkpoints.weights("bare", tmp_path, prepared.checksum)
    with pytest.raises(InputError, match=r"missing: decoder\.predictions\.bias"):
        load_weights(ours, path, ["encoder", "decoder"], absent=prepared.fresh[1:])


def test_other_heads_are_ignored_by_name(tmp_path: Path) -> None:
    network = randomised(transformers.BertForPreTraining(text_network("bert").config))
    prepared = prepare("bert", folder_source(saved_text("bert", tmp_path / "bert", network)), tmp_path)
    assert prepared.ignored == ("cls.seq_relationship.bias", "cls.seq_relationship.weight")
    assert prepared.fresh == ()


def test_names_of_the_first_checkpoints(bert_folder: Path, tmp_path: Path) -> None:
    expected = load_file(bert_folder / "model.safetensors")
    renamed(bert_folder, lambda name: name.replace("LayerNorm.weight", "LayerNorm.gamma"))
    renamed(bert_folder, lambda name: name.replace("LayerNorm.bias", "LayerNorm.beta"))
    words = expected["bert.embeddings.word_embeddings.weight"]

    def untidy(state: dict[str, Tensor]) -> None:
        state["cls.predictions.decoder.bias"] = state.pop("cls.predictions.bias")
        state["cls.predictions.decoder.weight"] = words.clone()
        state["bert.embeddings.position_ids"] = torch.arange(40)[None]

    with_tensors(bert_folder, untidy)
    prepared = prepare("bert", folder_source(bert_folder), tmp_path)
    assert (prepared.fresh, prepared.ignored) == ((), ())
    stored = load_file(checkpoints.folder("bert", tmp_path) / "weights.safetensors")
    assert len(stored) == len(expected)
    for name, tensor in expected.items():
        ours = name.replace("bert.", "encoder.", 1) if name.startswith("bert.") else name.replace("cls.", "decoder.", 1)
        assert torch.equal(stored[ours], tensor), name


def test_an_output_projection_of_its_own_is_refused(bert_folder: Path, tmp_path: Path) -> None:
    vocabulary_size = json.loads((bert_folder / "config.json").read_text())["vocab_size"]
    own = {"cls.predictions.decoder.weight": torch.ones(vocabulary_size, 16)}
    with_tensors(bert_folder, lambda state: state.update(own))
    with pytest.raises(InputError, match=r"cls\.predictions\.decoder\.weight differs"):
        prepare("bert", folder_source(bert_folder), tmp_path)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"hidden_act": "gelu_new"}, "hidden_act"),
        ({"position_embedding_type": "relative_key"}, "position_embedding_type"),
        ({"is_decoder": True}, "is_decoder"),
        ({"model_type": "xlnet"}, "'xlnet'.*camembert.*gpt2"),
        ({"num_hidden_layers": 1}, r"bert\.encoder\.layer\.1"),
        ({"num_hidden_layers": 3}, r"lack a part.*bert\.encoder\.layer\.2"),
        ({"vocab_size": 30}, "config.json describes"),
        ({"pad_token_id": 2}, "padding is 2 in config.json and 0"),
    ],
)
def test_other_text_networks_are_refused(
    settings: dict[str, Any], message: str, bert_folder: Path, tmp_path: Path
) -> None:
    changed(bert_folder, **settings)
    with pytest.raises(InputError, match=message):
        prepare("bert", folder_source(bert_folder), tmp_path)


def test_a_missing_tensor_of_the_encoder_is_refused(bert_folder: Path, tmp_path: Path) -> None:
    name = "bert.encoder.layer.1.attention.self.key.bias"
    with_tensors(bert_folder, lambda state: state.pop(name))
    with pytest.raises(InputError, match=name):
        prepare("bert", folder_source(bert_folder), tmp_path)


# ------------------------------------------------------------------------------------------------ tokenizers


def test_a_tokenizer_from_a_plain_vocabulary(bert_folder: Path, tmp_path: Path) -> None:
    tokenizer = word_pieces()
    entries = sorted(tokenizer.get_vocab().items(), key=lambda entry: entry[1])
    (bert_folder / "tokenizer.json").unlink()
    with pytest.raises(InputError, match="holds no tokenizer"):
        prepare("bert", folder_source(bert_folder), tmp_path)
    (bert_folder / "vocab.txt").write_text("".join(f"{entry}\n" for entry, _ in entries))
    prepared = prepare("bert", folder_source(bert_folder), tmp_path)
    assert (prepared.architecture["mask_id"], prepared.architecture["special_ids"]) == (4, [0, 1, 2, 3, 4])
    kept = Tokenizer.from_file(str(checkpoints.folder("bert", tmp_path) / "tokenizer.json"))
    for text in ("The quick fox!", "a [MASK] dog"):
        assert kept.encode(text, "Lazy").ids == tokenizer.encode(text, "Lazy").ids
        assert kept.encode(text, "Lazy").type_ids == tokenizer.encode(text, "Lazy").type_ids


def without_first_token(tokenizer: Tokenizer) -> None:
    tokenizer.post_processor = processors.TemplateProcessing(single="$A", pair="$A $B:1", special_tokens=[])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda tokenizer: tokenizer.add_tokens(["one", "two", "three", "four"]), "word embeddings"),
        (without_first_token, "no special token first"),
    ],
    ids=["too many entries", "no first token"],
)
def test_tokenizers_of_other_networks_are_refused(
    change: Callable[[Tokenizer], object], message: str, bert_folder: Path, tmp_path: Path
) -> None:
    tokenizer = word_pieces()
    change(tokenizer)
    tokenizer.save(str(bert_folder / "tokenizer.json"))
    with pytest.raises(InputError, match=message):
        prepare("bert", folder_source(bert_folder), tmp_path)


def test_a_tokenizer_without_a_mask_is_refused(bert_folder: Path, tmp_path: Path) -> None:
    (bert_folder / "special_tokens_map.json").write_text(json.dumps({"mask_token": {"content": "<mask>"}}))
    with pytest.raises(InputError, match="'<mask>'"):
        prepare("bert", folder_source(bert_folder), tmp_path)


# ------------------------------------------------------------------------------------------------ weight files


def as_pickle(folder: Path) -> Path:
    path = folder / "pytorch_model.bin"
    torch.save(load_file(folder / "model.safetensors"), path)
    (folder / "model.safetensors").unlink()
    return path


def test_a_pickle_needs_its_checksum(bert_folder: Path, tmp_path: Path) -> None:
    expected = prepare("tensors", folder_source(bert_folder), tmp_path)
    path = as_pickle(bert_folder)
    with pytest.raises(InputError, match=f"bert/backbone.weights_checksum = '{sha256(path)}'"):
        prepare("bert", folder_source(bert_folder), tmp_path)
    with pytest.raises(InputError, match=sha256(path)):
        prepare("bert", folder_source(bert_folder), tmp_path, weights_checksum="0" * 64)
    assert checkpoints.read("bert", tmp_path) is None
    prepared = prepare("bert", folder_source(bert_folder), tmp_path, weights_checksum=sha256(path))
    assert prepared.checksum == sha256(path)
    assert prepared.weights_checksum == expected.weights_checksum


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "cannot be read"),
        (b"no pickle at all", "cannot be read"),
        ({"model": {"weight": torch.ones(2)}}, "no plain table"),
        (print, "cannot be read"),  # code
    ],
    ids=["empty", "text", "nested", "code"],
)
def test_damaged_pickles_are_refused(content: Any, message: str, bert_folder: Path, tmp_path: Path) -> None:
    path = as_pickle(bert_folder)
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        torch.save(content, path)
    with pytest.raises(InputError, match=rf"pytorch_model\.bin.*{message}"):
        prepare("bert", folder_source(bert_folder), tmp_path, weights_checksum=sha256(path))


@pytest.mark.parametrize("size", [0, 5, -7], ids=["empty", "a few bytes", "truncated"])
def test_damaged_safetensors_are_refused(size: int, mae_folder: Path, tmp_path: Path) -> None:
    path = mae_folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:size])
    with pytest.raises(InputError, match=r"model\.safetensors cannot be read"):
        prepare("mae", folder_source(mae_folder), tmp_path)


@pytest.mark.parametrize("prefix", ["_orig_mod.", "module.", "module._orig_mod.", "model.net."])
def test_a_wrapper_around_the_network_is_named(
    prefix: str, mae_folder: Path, bert_folder: Path, tmp_path: Path
) -> None:
    for name, folder in (("mae", mae_folder), ("bert", bert_folder)):
        renamed(folder, lambda tensor: f"{prefix}{tensor}")
        with pytest.raises(InputError, match=re.escape(f"begin with '{prefix}'")) as caught:
            prepare(name, folder_source(folder), tmp_path)
        assert f"name.removeprefix('{prefix}')" in str(caught.value)


@pytest.mark.parametrize("file", ["model.safetensors", "config.json", "pytorch_model.bin"])
def test_a_pointer_in_place_of_a_file_is_named(file: str, bert_folder: Path, tmp_path: Path) -> None:
    path = bert_folder / file
    if file == "pytorch_model.bin":
        (bert_folder / "model.safetensors").unlink()
    path.write_text(f"version https://git-lfs.github.com/spec/v1\noid sha256:{'0' * 64}\nsize 440449768\n")
    with pytest.raises(InputError, match=rf"{re.escape(file)} is a Git LFS pointer"):
        prepare("bert", folder_source(bert_folder), tmp_path, weights_checksum=sha256(path) if "bin" in file else None)


def test_files_that_change_while_they_are_read_are_refused(
    mae_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = iter(("before", "after"))
    monkeypatch.setattr("bench.pretrained.prepare.fingerprint", lambda source: next(seen))
    with pytest.raises(InputError, match="changed while it was read"):
        prepare("mae", folder_source(mae_folder), tmp_path)
    assert checkpoints.read("mae", tmp_path) is None


def test_a_pinned_checksum_holds_for_safetensors_too(mae_folder: Path, tmp_path: Path) -> None:
    checksum = sha256(mae_folder / "model.safetensors")
    with pytest.raises(InputError, match=checksum):
        prepare("mae", folder_source(mae_folder), tmp_path, weights_checksum="0" * 64)
    assert checkpoints.read("mae", tmp_path) is None
    prepared = prepare("mae", folder_source(mae_folder), tmp_path, weights_checksum=checksum.upper())
    assert prepared.checksum == checksum
    with pytest.raises(InputError, match=checksum):
        prepare("mae", folder_source(mae_folder), tmp_path, weights_checksum="0" * 64)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_values_that_are_not_finite_are_refused(value: float, mae_folder: Path, tmp_path: Path) -> None:
    name = "decoder.decoder_norm.bias"
    with_tensors(mae_folder, lambda state: state[name].view(-1)[3:4].fill_(value))
    with pytest.raises(InputError, match=rf"model\.safetensors: {name}"):
        prepare("mae", folder_source(mae_folder), tmp_path)


def test_half_precision_becomes_single(mae_folder: Path, bert_folder: Path, tmp_path: Path) -> None:
    for name, folder, theirs, ours in (
        ("mae", mae_folder, "vit.embeddings.cls_token", "encoder.cls_token"),
        ("bert", bert_folder, "cls.predictions.bias", "decoder.predictions.bias"),
    ):
        whole = load_file(folder / "model.safetensors")
        save_file({key: tensor.bfloat16() for key, tensor in whole.items()}, folder / "model.safetensors")
        changed(folder, dtype="bfloat16")
        prepare(name, folder_source(folder), tmp_path)
        stored = load_file(checkpoints.folder(name, tmp_path) / "weights.safetensors")
        assert {tensor.dtype for tensor in stored.values()} == {torch.float32}
        assert torch.equal(stored[ours], whole[theirs].bfloat16().float())


def test_shards(bert_folder: Path, tmp_path: Path) -> None:
    expected = prepare("whole", folder_source(bert_folder), tmp_path)
    state = load_file(bert_folder / "model.safetensors")
    (bert_folder / "model.safetensors").unlink()
    names = sorted(state)
    shards = {"model-00001-of-00002.safetensors": names[::2], "model-00002-of-00002.safetensors": names[1::2]}
    for file, own in shards.items():
        save_file({name: state[name] for name in own}, bert_folder / file)
    index = bert_folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {name: file for file, own in shards.items() for name in own}}))
    prepared = prepare("bert", folder_source(bert_folder), tmp_path)
    assert prepared.weights_checksum == expected.weights_checksum and prepared.checksum != expected.checksum
    (bert_folder / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(InputError, match="model-00002-of-00002"):
        prepare("bert_2", folder_source(bert_folder), tmp_path)
    index.write_text(json.dumps({"weight_map": {"bert.pooler.dense.bias": "../elsewhere.safetensors"}}))
    with pytest.raises(InputError, match="damaged"):
        prepare("bert_2", folder_source(bert_folder), tmp_path)


@pytest.mark.parametrize("file", ["config.json", "model.safetensors"])
def test_missing_files_are_named(file: str, mae_folder: Path, tmp_path: Path) -> None:
    (mae_folder / file).unlink()
    with pytest.raises(InputError, match=file):
        prepare("mae", folder_source(mae_folder), tmp_path)


# ------------------------------------------------------------------------------------------------ what is kept


def test_what_is_prepared_is_read_back_and_kept(mae_folder: Path, tmp_path: Path) -> None:
    source = folder_source(mae_folder)
    assert checkpoints.read("mae", tmp_path) is None
    random = torch.get_rng_state()
    prepared = prepare("mae", source, tmp_path)
    assert torch.equal(torch.get_rng_state(), random)
    folder = checkpoints.folder("mae", tmp_path)
    assert folder == tmp_path / "backbones" / "mae"
    assert {path.name for path in folder.iterdir()} == {"manifest.json", "weights.safetensors"}
    assert list(folder.parent.iterdir()) == [folder]
    assert checkpoints.read("mae", tmp_path) == prepared
    assert prepared.checksum == sha256(mae_folder / "model.safetensors")
    assert prepared.weights_checksum == sha256(folder / "weights.safetensors")
    assert (prepared.source, prepared.repository, prepared.revision) == (source, None, None)
    shutil.rmtree(mae_folder)
    assert prepare("mae", source, tmp_path) == prepared
    with pytest.raises(InputError, match="another name"):
        prepare("mae", f"{source}_2", tmp_path)


def test_a_folder_without_a_manifest_is_taken_over(mae_folder: Path, tmp_path: Path) -> None:
    folder = checkpoints.folder("mae", tmp_path)
    folder.mkdir(parents=True)
    (folder / "weights.safetensors").write_bytes(b"half a file")
    prepared = prepare("mae", folder_source(mae_folder), tmp_path)
    assert checkpoints.read("mae", tmp_path) == prepared
    assert sha256(folder / "weights.safetensors") == prepared.weights_checksum


def test_damage_and_change_after_preparing_are_noticed(mae_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="not prepared"):
        checkpoints.weights("mae", tmp_path, "0" * 64)
    prepared = prepare("mae", folder_source(mae_folder), tmp_path)
    with pytest.raises(InputError, match=prepared.checksum[:16]):
        checkpoints.weights("mae", tmp_path, "0" * 64)
    checkpoints.weights("mae", tmp_path, prepared.checksum)
    shutil.rmtree(checkpoints.folder("mae", tmp_path))
    with_tensors(mae_folder, lambda state: state["decoder.decoder_norm.bias"].add_(1))
    prepared = prepare("mae", folder_source(mae_folder), tmp_path)
    path = checkpoints.weights("mae", tmp_path, prepared.checksum)
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.unlink()
    path.write_bytes(bytes(content) + b"0")
    with pytest.raises(InputError, match="damaged"):
        checkpoints.weights("mae", tmp_path, prepared.checksum)


@pytest.mark.parametrize(
    "content", ["", "[]", "{}", '{"name": "other"}', '{"name": "mae", "modality": "sound"}'], ids=str
)
def test_unreadable_manifests_are_refused(content: str, tmp_path: Path) -> None:
    folder = checkpoints.folder("mae", tmp_path)
    folder.mkdir(parents=True)
    (folder / "manifest.json").write_text(content)
    with pytest.raises(InputError, match="manifest"):
        checkpoints.read("mae", tmp_path)


def test_planning_imports_no_torch() -> None:
    code = "import sys, bench.pretrained.checkpoints; print({'torch', 'numpy', 'huggingface_hub'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"


# ------------------------------------------------------------------------------------------------ sources

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.mark.parametrize(
    ("source", "repository", "revision"),
    [
        ("hub:facebook/vit-mae-base@main", "facebook/vit-mae-base", "main"),
        (f"timm/vit_base_patch16_224.mae@{COMMIT}", "timm/vit_base_patch16_224.mae", COMMIT),
        ("FacebookAI/roberta-base", "FacebookAI/roberta-base", None),
        ("hub:a/b@refs/pr/1", "a/b", "refs/pr/1"),
    ],
)
def test_sources_of_the_hub(source: str, repository: str, revision: str | None) -> None:
    assert origin.parse(source) == (None, repository, revision)


@pytest.mark.parametrize("source", ["", "folder:", "roberta-base", "hub:a/b/c", "a/b@", "https://x.org/a", "../a"])
def test_other_sources_are_refused(source: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="folder:PATH"):
        prepare("x", source, tmp_path)


def test_names_and_folders_are_checked(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="letter"):
        prepare("../x", "a/b", tmp_path)
    with pytest.raises(InputError, match="nowhere"):
        prepare("x", f"folder:{tmp_path / 'nowhere'}", tmp_path)
    with pytest.raises(InputError, match="nowhere"):
        prepare("x", "a/b", tmp_path, local_copy=tmp_path / "nowhere")
    assert list(tmp_path.iterdir()) == []


def test_a_copy_stands_for_the_hub(mae_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub, "snapshot_download", None)
    source = f"hub:facebook/vit-mae-base@{COMMIT}"
    prepared = prepare("mae", source, tmp_path, local_copy=mae_folder)
    assert prepared.source == source
    assert (prepared.repository, prepared.revision) == (None, None)  # nothing says that the copy is the hub's
    pinned = prepare("pinned", source, tmp_path, mae_folder, sha256(mae_folder / "model.safetensors"))
    assert (pinned.repository, pinned.revision) == ("facebook/vit-mae-base", COMMIT)


def test_preparing_again_takes_the_place_of_what_was_there(mae_folder: Path, bert_folder: Path, tmp_path: Path) -> None:
    first = prepare("mine", f"folder:{mae_folder}", tmp_path)
    with pytest.raises(InputError, match="--again"):
        prepare("mine", f"folder:{mae_folder}", tmp_path, local_copy=bert_folder)
    second = prepare("mine", f"folder:{bert_folder}", tmp_path, again=True)
    assert (first.modality, second.modality) == ("image", "text")
    assert checkpoints.read("mine", tmp_path) == second
    assert checkpoints.weights("mine", tmp_path, second.checksum).is_file()
    (bert_folder / "config.json").write_text("{}")
    with pytest.raises(InputError):
        prepare("mine", f"folder:{bert_folder}", tmp_path, again=True)
    assert checkpoints.read("mine", tmp_path) == second
    assert [path.name for path in (tmp_path / "backbones").iterdir()] == ["mine"]


class Hub:
    """One repository, and whether there is a network to reach it by; the cache of what was fetched before."""

    def __init__(self, folder: Path, patch: pytest.MonkeyPatch) -> None:
        self.folder, self.online, self.cached = folder, True, False
        self.asked: list[tuple[str, str | None]] = []
        self.patterns: list[str] = []
        patch.setattr(huggingface_hub, "HfApi", lambda: SimpleNamespace(model_info=self.model_info))
        patch.setattr(huggingface_hub, "snapshot_download", self.snapshot_download)

    def model_info(self, repository: str, *, revision: str | None) -> SimpleNamespace:
        if not self.online:
            raise OfflineModeIsEnabled("no network")
        self.asked.append((repository, revision))
        files = [SimpleNamespace(rfilename=path.name) for path in self.folder.iterdir()]
        return SimpleNamespace(sha=COMMIT, siblings=files)

    def snapshot_download(
        self, repository: str, *, revision: str | None, allow_patterns: list[str], local_files_only: bool
    ) -> str:
        if local_files_only and not self.cached:
            raise LocalEntryNotFoundError("not in the cache")
        assert local_files_only or revision == COMMIT
        self.patterns = allow_patterns
        folder = self.folder.parent / "snapshots" / COMMIT
        shutil.copytree(self.folder, folder, dirs_exist_ok=True)
        return str(folder)


def test_a_repository_of_the_hub_is_pinned_to_its_commit(
    mae_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub = Hub(mae_folder, monkeypatch)
    prepared = prepare("mae", "facebook/vit-mae-base", tmp_path)
    assert (prepared.repository, prepared.revision) == ("facebook/vit-mae-base", COMMIT)
    assert hub.asked == [("facebook/vit-mae-base", None)]
    assert {"config.json", "model.safetensors", "tokenizer.json"} < set(hub.patterns)
    assert not {"pytorch_model.bin", "*"} & set(hub.patterns)
    path = as_pickle(mae_folder)
    shutil.rmtree(mae_folder.parent / "snapshots")
    pickled = prepare("pickled", "hub:a/b@main", tmp_path, weights_checksum=sha256(path))
    assert hub.asked[-1] == ("a/b", "main") and pickled.revision == COMMIT
    assert "pytorch_model.bin" in hub.patterns


def test_weights_stay_what_they_are_when_their_name_is_pinned_to_their_commit(
    mae_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Hub(mae_folder, monkeypatch)
    prepared = prepare("mae", "facebook/vit-mae-base", tmp_path)
    assert origin.Checkpoint("facebook/vit-mae-base").differs(prepared) is None
    assert origin.Checkpoint(f"facebook/vit-mae-base@{COMMIT}").differs(prepared) is None
    for other in (
        f"facebook/vit-mae-base@{COMMIT[::-1]}",
        f"facebook/vit-mae-large@{COMMIT}",
        "facebook/vit-mae-large",
    ):
        assert (
            origin.Checkpoint(other).differs(prepared) == f"was prepared from facebook/vit-mae-base, not from {other}"
        )


def test_public_backbones_are_pinned_to_a_commit() -> None:
    revisions = {name: origin.parse(source.weights).revision for name, source in CHECKPOINTS.items()}
    unpinned = {name for name, revision in revisions.items() if re.fullmatch("[0-9a-f]{40}", revision or "") is None}
    # Of these nobody could look the commit up yet; it is noted when they are prepared.
    assert unpinned == {"deit_small", "deit_small_distilled", "electra_base"}


def test_without_a_network_the_cache_is_used_or_the_way_out_told(
    mae_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub = Hub(mae_folder, monkeypatch)
    hub.online = False
    with pytest.raises(InputError, match=r"hf download facebook/vit-mae-base --revision main .*--from FOLDER"):
        prepare("mae", "facebook/vit-mae-base@main", tmp_path)
    hub.cached = True
    assert prepare("mae", "facebook/vit-mae-base@main", tmp_path).revision == COMMIT


def test_the_real_client_offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    with pytest.raises(InputError, match="hf download a/b --local-dir FOLDER"):
        prepare("x", "a/b", tmp_path)
