"""Text encoders that transformers computes: saved to disk and prepared, they compute here what they computed there."""

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, pre_tokenizers
from tokenizers.models import BPE
from torch import Tensor, nn
from torch.autograd import backward
from torch.nn.functional import cross_entropy

from baselines.mars import MarsProjection, kernels
from bench.data.examples import by_length, padded
from bench.errors import InputError, SpecError
from bench.interfaces.hooks import Clock, Context
from bench.models.build import build
from bench.models.text import TokenMask
from bench.models.transformers_text import TransformersText
from bench.models.weights import load_weights, save_weights
from bench.planning.backbones import ENTRIES
from bench.pretrained import checkpoints
from bench.pretrained.checkpoints import Prepared, architecture_of
from bench.pretrained.prepare import prepare_checkpoint as prepare
from bench.specs.architectures import TransformersEncoder
from bench.specs.families import FAMILIES
from tests.examples import token_mask
from tests.pretrained.test_checkpoints import bytes_as_words, changed, folder_source, randomised, word_pieces

EXACT: dict[str, Any] = {"rtol": 1e-9, "atol": 1e-9}
MASKED = [family for family in FAMILIES if not FAMILIES[family].causal]
RATE = 0.2
LONGEST = 30


@pytest.fixture(autouse=True)
def _quiet() -> None:
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()


def bytes_without_more() -> Tokenizer:
    """GPT-2's kind of tokenizer, without any merge: it adds no token to a text."""
    entries = [*sorted(pre_tokenizers.ByteLevel.alphabet()), "<|endoftext|>"]
    tokenizer = Tokenizer(BPE({entry: i for i, entry in enumerate(entries)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.add_special_tokens(["<|endoftext|>"])
    return tokenizer


def tokenizer_of(family: str) -> Tokenizer:
    return bytes_without_more() if family == "gpt2" else word_pieces()


SIZES = {"hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2}
OF_BERT = {**SIZES, "intermediate_size": 20, "layer_norm_eps": 1e-3}
OF_BERT |= {"hidden_dropout_prob": RATE, "attention_probs_dropout_prob": RATE}
DEBERTA_V3 = {
    "relative_attention": True,
    "position_buckets": 8,
    "norm_rel_ebd": "layer_norm",
    "share_att_key": True,
    "pos_att_type": "p2c|c2p",
    "position_biased_input": False,
}
CONFIGURATIONS: dict[str, dict[str, Any]] = {
    "distilbert": {
        "dim": 16,
        "n_layers": 3,
        "n_heads": 2,
        "hidden_dim": 20,
        "dropout": RATE,
        "attention_dropout": RATE,
    },
    "electra": {**OF_BERT, "embedding_size": 8},
    "deberta-v2": {**OF_BERT, **DEBERTA_V3},
    "modernbert": {
        **SIZES,
        "num_hidden_layers": 4,
        "intermediate_size": 20,
        "norm_eps": 1e-3,
        "local_attention": 4,
        "embedding_dropout": RATE,
        "attention_dropout": RATE,
        "mlp_dropout": RATE,
        "bos_token_id": 2,
        "eos_token_id": 3,
        "cls_token_id": 2,
        "sep_token_id": 3,
    },
    "gpt2": {
        "n_embd": 16,
        "n_layer": 3,
        "n_head": 2,
        "n_inner": 20,
        "layer_norm_epsilon": 1e-3,
        "resid_pdrop": RATE,
        "embd_pdrop": RATE,
        "attn_pdrop": RATE,
        "bos_token_id": 256,
        "eos_token_id": 256,
    },
}
"""Three layers of width 16, four where two kinds of layer alternate."""


def network_of(family: str, **settings: Any) -> Any:
    """A randomly initialised network of transformers, larger than its tokenizer by a few unused embeddings."""
    network_class = getattr(transformers, FAMILIES[family].language_model)
    # Eager, for an independent check; of a text shorter than the window, ModernBERT then makes padding of NaN.
    attention = "sdpa" if family == "modernbert" else "eager"
    common = {"vocab_size": tokenizer_of(family).get_vocab_size() + 3, "attn_implementation": attention}
    length = "n_positions" if family == "gpt2" else "max_position_embeddings"
    pad = {} if family == "gpt2" else {"pad_token_id": 0}
    configuration = {**common, length: 40, **pad, **CONFIGURATIONS[family], **settings}
    return randomised(network_class(network_class.config_class(**configuration)))


def saved(family: str, folder: Path, network: Any | None = None) -> Path:
    (network or network_of(family)).save_pretrained(folder)
    tokenizer_of(family).save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"model_max_length": LONGEST}))
    return folder


def model_of(
    prepared: Prepared, root: Path, *, classes: int | None = None, dropout: float | None = None
) -> TransformersText:
    """The prepared network in double precision and eval mode."""
    backbone = architecture_of(prepared.name, prepared.modality, prepared.architecture)
    model = build(backbone, classes=classes, decoder=True, dropout=dropout).double().eval()
    assert isinstance(model, TransformersText)
    path = checkpoints.weights(prepared.name, root, prepared.checksum)
    load_weights(model, path, ["encoder", "decoder"], absent=prepared.fresh)
    return model


@pytest.fixture(params=FAMILIES)
def family(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def prepared(family: str, tmp_path: Path) -> Prepared:
    return prepare("text", folder_source(saved(family, tmp_path / family)), tmp_path)


@pytest.fixture
def ours(prepared: Prepared, tmp_path: Path) -> TransformersText:
    return model_of(prepared, tmp_path)


@pytest.fixture
def theirs(family: str) -> Iterator[Any]:
    return network_of(family).double()


def texts(model: TransformersText, lengths: tuple[int, ...] = (9, 12, 4)) -> dict[str, Tensor]:
    """Random texts of these lengths, padded at the end."""
    backbone = model.backbone
    input_ids = torch.randint(5, 30, (len(lengths), max(lengths)), generator=torch.Generator().manual_seed(7))
    attention_mask = (torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]).long()
    inputs = {
        "input_ids": input_ids.masked_fill(attention_mask == 0, backbone.pad_id),
        "attention_mask": attention_mask,
    }
    if backbone.segments > 1:
        inputs["token_type_ids"] = attention_mask * (torch.arange(max(lengths)) > 2)
    return inputs


def features_of(network: Any, inputs: dict[str, Tensor], causal: bool) -> Tensor:
    """The tokens that features are read from, chosen one by one."""
    hidden = network.base_model(**inputs).last_hidden_state
    last = [int(mask.sum()) - 1 for mask in inputs["attention_mask"]]
    return torch.stack([tokens[row_last if causal else 0] for tokens, row_last in zip(hidden, last, strict=True)])


def loss_of(network: Any, inputs: dict[str, Tensor], causal: bool) -> tuple[Tensor, TokenMask | None]:
    """The loss of the library's scores, of all tokens that are no padding: each one's, or the next one's.

    The library itself computes it in float32.
    """
    labels = inputs["input_ids"].masked_fill(inputs["attention_mask"] == 0, -100)
    scores = network(**inputs).logits
    if causal:
        return cross_entropy(scores[:, :-1].flatten(0, 1), labels[:, 1:].flatten()), None
    return cross_entropy(scores.flatten(0, 1), labels.flatten()), token_mask(inputs["input_ids"], labels)


def test_the_causal_loss_is_the_librarys() -> None:
    network, inputs = network_of("gpt2"), {"input_ids": torch.arange(12).view(2, 6)}
    inputs["attention_mask"] = torch.tensor([[1, 1, 1, 1, 1, 1], [1, 1, 1, 0, 0, 0]])
    labels = inputs["input_ids"].masked_fill(inputs["attention_mask"] == 0, -100)
    expected = network(**inputs, labels=labels).loss
    torch.testing.assert_close(loss_of(network, inputs, causal=True)[0], expected)


# ------------------------------------------------------------------------------------------------ the same numbers


def test_what_the_manifest_says(family: str, prepared: Prepared) -> None:
    causal = FAMILIES[family].causal
    architecture = dict(prepared.architecture)
    settings = json.loads(architecture.pop("config"))
    assert architecture == {
        "family": family,
        "vocabulary": tokenizer_of(family).get_vocab_size() + 3,
        "width": 16,
        "depth": 4 if family == "modernbert" else 3,
        "heads": 2,
        "mlp_width": 20,
        "positions": 40,
        "segments": 2 if family == "electra" else 1,
        "norm_eps": 1e-12 if family == "distilbert" else 1e-3,
        "dropout": RATE,
        "max_length": LONGEST,
        "pad_id": 256 if causal else 0,
        "mask_id": None if causal else 4,
        "special_ids": [256] if causal else [0, 1, 2, 3, 4],
    }
    assert settings.keys() <= set(FAMILIES[family].settings)
    assert (prepared.fresh, prepared.ignored) == ((), ())


def test_features_and_losses_are_the_librarys(family: str, ours: TransformersText, theirs: Any) -> None:
    causal, inputs = FAMILIES[family].causal, texts(ours)
    with torch.no_grad():
        features = ours.features(inputs)
        torch.testing.assert_close(features, features_of(theirs, inputs, causal), **EXACT)
        torch.testing.assert_close(ours.features(inputs, ours.embed(inputs)), features, **EXACT)
    expected, mask = loss_of(theirs, inputs, causal)
    loss = ours.masked_loss(inputs, mask or ours.draw_mask(inputs, torch.Generator()))
    torch.testing.assert_close(loss, expected, **EXACT)
    # Gradients, by our names; the library's matrices of GPT-2 are (in, out).
    backward(expected)
    backward(loss)
    gradients = dict(theirs.base_model.named_parameters(prefix="encoder"))
    for name, parameter in ours.encoder.named_parameters(prefix="encoder"):
        assert parameter.grad is not None, name
        gradient = gradients[name].grad
        turned = parameter.ndim == 2 and ".h." in name
        torch.testing.assert_close(parameter.grad, gradient.T if turned else gradient, **EXACT)


def test_dropout_has_the_librarys_rate_and_places(family: str, prepared: Prepared, tmp_path: Path) -> None:
    ours = model_of(prepared, tmp_path).train()
    inputs, causal = texts(ours), FAMILIES[family].causal
    theirs = network_of(family, attn_implementation=FAMILIES[family].attention).double().train()
    torch.manual_seed(3)
    expected = features_of(theirs, inputs, causal)
    torch.manual_seed(3)
    features = ours.features(inputs)
    torch.testing.assert_close(features, expected, **EXACT)
    assert not torch.allclose(features, ours.features(inputs))
    # Another rate takes the place of every one.
    off = model_of(prepared, tmp_path, dropout=0.0).train()
    torch.testing.assert_close(off.features(inputs), ours.eval().features(inputs), **EXACT)


def test_padding_changes_nothing(ours: TransformersText) -> None:
    inputs = texts(ours)
    longer = padded(inputs, 20, ours.backbone.pad_id)
    other = inputs | {"input_ids": inputs["input_ids"].masked_fill(inputs["attention_mask"] == 0, 9)}
    with torch.no_grad():
        features = ours.features(inputs)
        for padded_inputs in (longer, other):
            torch.testing.assert_close(ours.features(padded_inputs), features, **EXACT)
        for row, length in enumerate(inputs["attention_mask"].sum(1).tolist()):
            alone = {name: tensor[row : row + 1, :length] for name, tensor in inputs.items()}
            torch.testing.assert_close(ours.features(alone), features[row : row + 1], **EXACT)


def test_parts_of_similar_lengths_change_nothing(ours: TransformersText) -> None:
    inputs = texts(ours, (3, 12, 11, 3, 7))
    parts = by_length(inputs["attention_mask"])
    assert len(parts) == 3
    mask = ours.draw_mask(inputs, torch.Generator().manual_seed(1))
    assert mask.valid.any()
    with torch.no_grad():
        for ask in (ours.features, lambda batch: ours.masked_predictions(batch, mask)[mask.valid]):
            torch.testing.assert_close(ask({**inputs, "parts": parts}), ask(inputs), **EXACT)


def test_positions_matter(ours: TransformersText) -> None:
    inputs = texts(ours)
    swapped = inputs | {"input_ids": inputs["input_ids"][:, [0, 2, 1, *range(3, 12)]]}
    with torch.no_grad():
        assert not torch.allclose(ours.features(swapped), ours.features(inputs))


# ------------------------------------------------------------------------------------------------ names


def test_roles_and_depths(family: str, prepared: Prepared, tmp_path: Path) -> None:
    model = model_of(prepared, tmp_path, classes=3)
    roles, depths, names = model.roles(), model.depths(), dict(model.named_parameters())
    assert roles.keys() == depths.keys() == names.keys()
    words = f"encoder.{FAMILIES[family].words}.weight"
    assert [name for name, role in roles.items() if role == "embedding"] == [words]
    tables = {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)}
    for name, role in roles.items():
        if role == "matrix":
            assert names[name].ndim > 1 and id(names[name]) not in tables, name
        if names[name].ndim == 1:
            assert role == ("bias" if name.endswith("bias") else "norm"), name
    depth = model.backbone.depth
    for i, block in enumerate(model.encoder.get_submodule(model.BLOCKS).children()):
        own = {id(parameter) for parameter in block.parameters()}
        assert {depths[name] for name, parameter in names.items() if id(parameter) in own} == {i + 1}
    assert set(depths.values()) == set(range(depth + 2)) and depths[words] == 0
    assert all(depth + 1 == depths[name] for name in names if not name.startswith("encoder."))
    assert {depths[n] for n in names if n.startswith(("encoder.final_norm", "encoder.ln_f"))} <= {depth + 1}


def test_every_block_names_its_query_key_and_value(ours: TransformersText) -> None:
    names, width = dict(ours.named_parameters()), ours.backbone.width
    for number in range(ours.backbone.depth):
        block = f"encoder.{ours.BLOCKS}.{number}."
        own = {name: parts for name, parts in ours.attention().items() if name.startswith(block)}
        assert sorted(part for parts in own.values() for part in parts) == ["key", "query", "value"]
        assert all(names[name].shape == (len(parts) * width, width) for name, parts in own.items())


def test_the_convolution_of_a_large_deberta_is_as_deep_as_the_first_block(tmp_path: Path) -> None:
    folder = saved("deberta-v2", tmp_path / "deberta", network_of("deberta-v2", conv_kernel_size=3, conv_act="gelu"))
    model = model_of(prepare("text", folder_source(folder), tmp_path), tmp_path)
    assert {depth for name, depth in model.depths().items() if ".conv." in name} == {1}


def test_mars_bounds_the_output_units_of_gpt2(tmp_path: Path) -> None:
    prepared = prepare("text", folder_source(saved("gpt2", tmp_path / "gpt2")), tmp_path)
    model, start = model_of(prepared, tmp_path), model_of(prepared, tmp_path)
    theirs = network_of("gpt2").double()
    matrices = {name.removeprefix("encoder.") for name in kernels(model)}
    layers = ("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj")
    assert matrices == {f"h.{block}.{layer}.weight" for block in range(3) for layer in layers}
    # What feeds output unit 5 of the first MLP layer is a column of the library's matrix, and a row of ours.
    name = "h.0.mlp.c_fc.weight"
    own = model.encoder.get_parameter(name)
    assert torch.equal(own[5], theirs.base_model.get_parameter(name)[:, 5])
    with torch.no_grad():
        own[5] += 1.0
        mars, reference = MarsProjection(radius=2.0), dict(start.named_parameters())
        context = Context(Clock(), 1, False, torch.device("cpu"), training_set=None)  # type: ignore[arg-type]
        mars.apply(model, reference, mars.begin(model, reference, context), context)
    moved = (own - start.encoder.get_parameter(name)).abs().sum(1)
    assert moved[5].item() == pytest.approx(2.0) and moved.sum().item() == pytest.approx(2.0)


# ------------------------------------------------------------------------------------------------ decoders


def test_next_tokens_are_selected_wherever_there_is_one() -> None:
    backbone = TransformersEncoder(
        *("tiny", None, None, None),
        family="gpt2",
        vocabulary=40,
        width=16,
        depth=1,
        heads=2,
        mlp_width=20,
        segments=1,
        mask_id=None,
        special_ids=(0,),
    )
    model = build(backbone, decoder=True).eval()
    inputs = {
        "input_ids": torch.tensor([[7, 8, 9, 6], [5, 6, 0, 0], [4, 0, 0, 0]]),
        "attention_mask": torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0], [1, 0, 0, 0]]),
    }
    mask = model.draw_mask(inputs, torch.Generator())
    assert torch.equal(mask.input_ids, inputs["input_ids"])  # nothing is masked
    assert mask.positions[mask.valid].tolist() == [0, 1, 2, 4]
    assert mask.labels[mask.valid].tolist() == [8, 9, 6, 6]
    assert len(mask.labels) == 8  # one of few sizes
    expected = cross_entropy(model.masked_predictions(inputs, mask)[:4], torch.tensor([8, 9, 6, 6]))
    torch.testing.assert_close(model.masked_loss(inputs, mask), expected)
    # A token sees none behind it, so what is predicted for the first two does not depend on the rest.
    changed_end = inputs | {"input_ids": torch.tensor([[7, 8, 1, 2], [5, 6, 0, 0], [4, 0, 0, 0]])}
    again = mask._replace(input_ids=changed_end["input_ids"])
    torch.testing.assert_close(
        model.masked_predictions(changed_end, again)[:2], model.masked_predictions(inputs, mask)[:2]
    )


@pytest.mark.parametrize("family", MASKED)
def test_masked_tokens_are_drawn_as_for_bert(family: str, ours: TransformersText) -> None:
    inputs = texts(ours, (12,) * 40)
    mask = ours.draw_mask(inputs, torch.Generator().manual_seed(0))
    rate = mask.valid.sum().item() / inputs["input_ids"].numel()
    assert 0.1 < rate < 0.2
    assert (mask.input_ids == ours.backbone.mask_id).any()


def test_an_electra_discriminator_gets_a_fresh_decoder(tmp_path: Path) -> None:
    config = network_of("electra").config
    theirs = randomised(transformers.ElectraForPreTraining(config))
    prepared = prepare("text", folder_source(saved("electra", tmp_path / "electra", theirs)), tmp_path)
    layers = ("LayerNorm.bias", "LayerNorm.weight", "dense.bias", "dense.weight")
    decoder = [f"decoder.generator_predictions.{name}" for name in layers]
    assert prepared.fresh == ("decoder.generator_lm_head.bias", *decoder)
    assert {name.split(".")[0] for name in prepared.ignored} == {"discriminator_predictions"}
    ours = model_of(prepared, tmp_path)
    inputs = texts(ours)
    with torch.no_grad():
        torch.testing.assert_close(ours.features(inputs), features_of(theirs.double(), inputs, False), **EXACT)
    assert ours.masked_loss(inputs, ours.draw_mask(inputs, torch.Generator().manual_seed(0))).isfinite()


def test_the_unusable_head_of_deberta_v3_is_replaced(tmp_path: Path) -> None:
    folder = saved("deberta-v2", tmp_path / "deberta")
    path = folder / "model.safetensors"
    state = {name: tensor for name, tensor in load_file(path).items() if not name.startswith("cls.")}
    own = {"lm_predictions.lm_head.bias": torch.zeros(3), "mask_predictions.dense.weight": torch.zeros(3)}
    save_file(state | own, path)
    prepared = prepare("text", folder_source(folder), tmp_path)
    assert prepared.ignored == ("lm_predictions.lm_head.bias",)  # transformers says nothing of the other one
    assert "decoder.cls.predictions.bias" in prepared.fresh and len(prepared.fresh) == 5


def test_an_encoder_alone(family: str, theirs: Any, tmp_path: Path) -> None:
    folder = saved(family, tmp_path / family, network_of(family).base_model)
    prepared = prepare("text", folder_source(folder), tmp_path)
    assert bool(prepared.fresh) == (family != "gpt2")  # whose decoder is the word embeddings and nothing else
    ours = model_of(prepared, tmp_path)
    inputs = texts(ours)
    with torch.no_grad():
        expected = features_of(theirs, inputs, FAMILIES[family].causal)
        torch.testing.assert_close(ours.features(inputs), expected, **EXACT)


# ------------------------------------------------------------------------------------------------ weights on disk


def test_saved_and_loaded_again(prepared: Prepared, tmp_path: Path) -> None:
    first, again = model_of(prepared, tmp_path, classes=3), model_of(prepared, tmp_path, classes=3)
    encoder = dict(again.encoder.named_parameters())
    for name, parameter in first.encoder.named_parameters():
        assert torch.equal(parameter, encoder[name]), name
    save_weights(first, tmp_path / "weights.safetensors")
    torch.manual_seed(9)
    other = build(first.backbone, classes=3, decoder=True).double().eval()
    load_weights(other, tmp_path / "weights.safetensors", ["encoder", "decoder", "head"])
    inputs = texts(first)
    mask = first.draw_mask(inputs, torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert torch.equal(other.logits(inputs), first.logits(inputs))
        assert torch.equal(other.masked_loss(inputs, mask), first.masked_loss(inputs, mask))


def test_equal_seeds_give_equal_encoders_whatever_is_built_besides(prepared: Prepared) -> None:
    backbone = architecture_of("text", "text", prepared.architecture)

    def encoder(classes: int | None, decoder: bool) -> list[Tensor]:
        torch.manual_seed(0)
        return [p.detach() for p in build(backbone, classes=classes, decoder=decoder).encoder.parameters()]

    assert all(map(torch.equal, encoder(None, False), encoder(4, True)))


def test_a_projection_of_its_own_is_refused(family: str, tmp_path: Path) -> None:
    folder = saved(family, tmp_path / family)
    path, name = folder / "model.safetensors", f"{FAMILIES[family].projection}.weight"
    save_file(load_file(path) | {name: torch.ones(2, 16)}, path)
    with pytest.raises(InputError, match=f"{name} differs"):
        prepare("text", folder_source(folder), tmp_path)


@pytest.mark.parametrize(
    ("family", "settings", "reason"),
    [
        ("deberta-v2", {"legacy": False}, "legacy is False"),
        ("gpt2", {"reorder_and_upcast_attn": True}, "reorder_and_upcast_attn"),
        ("electra", {"is_decoder": True}, "is_decoder"),
        ("gpt2", {"n_layer": 2}, "h.2"),
        ("distilbert", {"n_layers": 4}, "lack a part"),
        ("modernbert", {"pad_token_id": 3}, "padding is 3 in config.json and 0"),
    ],
)
def test_other_networks_are_refused(family: str, settings: dict[str, Any], reason: str, tmp_path: Path) -> None:
    folder = saved(family, tmp_path / family)
    changed(folder, **settings)
    with pytest.raises(InputError, match=reason):
        prepare("text", folder_source(folder), tmp_path)


# ------------------------------------------------------------------------------------------------ tokenizers


def kept_tokenizer(prepared: Prepared, root: Path) -> Tokenizer:
    return Tokenizer.from_file(str(checkpoints.folder(prepared.name, root) / "tokenizer.json"))


def test_pairs_have_the_separators_of_their_family(family: str, prepared: Prepared, tmp_path: Path) -> None:
    ids = kept_tokenizer(prepared, tmp_path).encode("a fox", "dog").ids
    original = tokenizer_of(family)
    if family == "gpt2":
        first, second = original.encode("a fox").ids, original.encode("dog").ids
        assert ids == [*first, 256, *second]
        assert kept_tokenizer(prepared, tmp_path).encode("a fox").ids == first
    else:
        assert ids == original.encode("a fox", "dog").ids
        assert ids.count(3) == 2  # [SEP]


def test_a_gpt2_tokenizer_that_adds_tokens_keeps_them(tmp_path: Path) -> None:
    folder = saved("gpt2", tmp_path / "gpt2")
    original = bytes_as_words()
    original.save(str(folder / "tokenizer.json"))
    special = {"eos_token": "</s>", "bos_token": "<s>", "pad_token": {"content": "<pad>"}}
    (folder / "special_tokens_map.json").write_text(json.dumps(special))
    with_more_words = network_of("gpt2", vocab_size=original.get_vocab_size())
    with_more_words.save_pretrained(folder)
    prepared = prepare("text", folder_source(folder), tmp_path)
    assert prepared.architecture["pad_id"] == 1
    assert kept_tokenizer(prepared, tmp_path).encode("a", "b").ids == original.encode("a", "b").ids


def test_a_gpt2_vocabulary_with_merges(tmp_path: Path) -> None:
    folder = saved("gpt2", tmp_path / "gpt2")
    (folder / "tokenizer.json").unlink()
    (folder / "vocab.json").write_text(json.dumps(bytes_without_more().get_vocab()))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    prepared = prepare("text", folder_source(folder), tmp_path)
    assert prepared.architecture["special_ids"] == [256]
    assert kept_tokenizer(prepared, tmp_path).encode("a fox").ids == bytes_without_more().encode("a fox").ids


def test_pieces_without_the_package_that_reads_them_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = saved("deberta-v2", tmp_path / "deberta")
    (folder / "tokenizer.json").unlink()
    (folder / "spm.model").write_bytes(b"pieces")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"spm\.model .* sentencepiece"):
        prepare("text", folder_source(folder), tmp_path)


# ------------------------------------------------------------------------------------------------ specs


def spec(**fields: Any) -> TransformersEncoder:
    return TransformersEncoder("tiny", None, None, None, **fields)


@pytest.mark.parametrize(
    ("field", "fields"),
    [
        ("family", {"family": "bert"}),
        ("config", {"config": "no JSON"}),
        ("config", {"config": "[1]"}),
        ("config", {"config": '{"relative_attention": true}'}),  # of another family
        ("mask_id", {"mask_id": None}),
        ("mask_ratio", {"family": "gpt2", "mask_id": None, "mask_ratio": 0.3}),
        ("norm_eps", {"norm_eps": 1e-5}),
        ("max_length", {"max_length": 513, "positions": 512}),
    ],
)
def test_impossible_specs_are_refused(field: str, fields: dict[str, Any]) -> None:
    with pytest.raises(SpecError, match=field) as refused:
        spec(**fields)
    assert refused.value.field == field


def test_gpt2_reads_up_to_its_positions() -> None:
    gpt2 = next(backbone for backbone in ENTRIES if backbone.name == "gpt2")
    assert isinstance(gpt2, TransformersEncoder)
    assert dataclasses.replace(gpt2, max_length=1024).max_length == 1024
    with pytest.raises(SpecError, match="at most 1024"):
        dataclasses.replace(gpt2, max_length=1025)


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("gpt2", 124_439_808),
        ("distilgpt2", 81_912_576),
        ("distilbert_base", 66_362_880),
        ("electra_small", 13_483_008),
        ("electra_base", 108_891_648),
        ("modernbert_base", 149_014_272),
        ("distilroberta_base", 81_527_808),
        ("bert_base", 108_891_648),
    ],
)
def test_named_backbones_have_the_size_of_the_public_ones(name: str, parameters: int) -> None:
    backbone = next(backbone for backbone in ENTRIES if backbone.name == name)
    with torch.device("meta"):
        model = build(backbone)
    assert sum(parameter.numel() for parameter in model.encoder.parameters()) == parameters
    assert backbone.least_parameters <= parameters
