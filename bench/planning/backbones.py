"""The suite's backbones, an entry of `ENTRIES` each: an architecture -> where its weights come from.

The suite pre-trains the small ones itself, on data that come with Python or on CIFAR-100. Such weights are a stage of
their own, started from random weights, so the plan caches source pre-training like any other stage. It stands for a
public checkpoint: its seed is 0 whatever the grid's seeds are.

The weights of the papers' backbones, and of those that only a gin file declares, were made elsewhere. What is prepared
of such a checkpoint tells its architecture.
"""

from __future__ import annotations

import dataclasses
import functools
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from bench.errors import InputError
from bench.planning.registry import CHECKPOINTS, add_backbone, declare, register_own_backbones
from bench.pretrained.checkpoints import architecture_of
from bench.pretrained.origin import Checkpoint
from bench.specs import RANDOM, Backbone, PublicWeights, Schedule
from bench.specs.architectures import (
    SIZES,
    LanguageModel,
    MaskedAutoEncoder,
    MaskedLanguageModel,
    TransformersEncoder,
)
from bench.specs.objectives import AdamW, MaskedAutoEncoding

if TYPE_CHECKING:
    from bench.planning.cell import Cell
    from bench.pretrained.checkpoints import Prepared

HALF = (0.5, 0.5, 0.5)
NOT_FETCHED = PublicWeights(repository=None)


@dataclass(frozen=True)
class Pretraining:
    """Masked auto-encoding of a corpus from random weights; `betas` are Adam's."""

    corpus: str
    schedule: Schedule
    betas: tuple[float, float]


def _sizes(width: int, depth: int, heads: int, mlp_width: int, part: str = "") -> dict[str, Any]:
    return {f"{part}{size}": value for size, value in zip(SIZES, (width, depth, heads, mlp_width), strict=True)}


def _vit_mae(name: str, width: int, depth: int, heads: int) -> MaskedAutoEncoder:
    # Its decoder is the default one. The decoder's epsilon is that of transformers 4.17, which Lee et al.'s released
    # code pins; it is 1e-12 in later versions.
    sizes = _sizes(width, depth, heads, 4 * width)
    return MaskedAutoEncoder(name=name, weights=NOT_FETCHED, **sizes, norm_eps=1e-12, decoder_norm_eps=1e-5)


def _image_encoder(name: str, width: int, **fields: Any) -> MaskedAutoEncoder:
    """Describe a public encoder of 12 blocks without a decoder; its images have 224 pixels."""
    sizes = _sizes(width, 12, width // 64, 4 * width)
    return MaskedAutoEncoder(name=name, weights=NOT_FETCHED, **sizes, decoder_depth=0, **fields)


def _dinov2(name: str, width: int, **fields: Any) -> MaskedAutoEncoder:
    # The weights have positions for 518 pixels, of which 224 are a fifth of the work.
    return _image_encoder(name, width, patch_size=14, norm_eps=1e-6, layer_scale=1.0, **fields)


def _text(kind: type[LanguageModel], name: str, **fields: Any) -> Backbone:
    """Describe a public encoder of texts; it reads 512 tokens where `fields` say nothing else."""
    lengths = {"max_length": 512, "positions": 512}
    return kind(name, NOT_FETCHED, tokenizer=None, tokenizer_checksum=None, **{**lengths, **fields})


def _encoder(family: str, name: str, **fields: Any) -> Backbone:
    # What its `config` and special ids are, the prepared checkpoint tells.
    return _text(TransformersEncoder, name, family=family, **fields)


def _roberta(name: str, width: int, depth: int, heads: int) -> Backbone:
    tokens = {"vocabulary": 50_265, "segments": 1, "pad_id": 1, "mask_id": 50_264, "special_ids": (0, 1, 2, 3, 50_264)}
    sizes = _sizes(width, depth, heads, 4 * width)
    return _text(MaskedLanguageModel, name, network="roberta", **sizes, **tokens, positions=514, norm_eps=1e-5)


def _gpt2(name: str, depth: int) -> Backbone:
    tokens = {"vocabulary": 50_257, "segments": 1, "pad_id": 50_256, "mask_id": None, "special_ids": (50_256,)}
    sizes = _sizes(768, depth, 12, 3072)
    return _encoder("gpt2", name, **sizes, **tokens, positions=1024, norm_eps=1e-5)


def _deberta(name: str, depth: int) -> Backbone:
    tokens = {"vocabulary": 128_100, "segments": 1, "mask_id": 128_000, "special_ids": (0, 1, 2, 3, 128_000)}
    sizes = _sizes(768, depth, 12, 3072)
    return _encoder("deberta-v2", name, **sizes, **tokens, norm_eps=1e-7)


UNCASED: dict[str, Any] = {"vocabulary": 30_522, "pad_id": 0, "mask_id": 103, "special_ids": (0, 100, 101, 102, 103)}
"""The fields that BERT's English vocabulary decides, which BERT's relatives have taken over."""


def _electra(name: str, width: int, embedding: int) -> Backbone:
    sizes = _sizes(width, 12, width // 64, 4 * width)
    return _encoder("electra", name, **sizes, config=f'{{"embedding_size":{embedding}}}', **UNCASED)


ENTRIES: dict[Backbone, Pretraining | Checkpoint] = {
    # A tiny masked auto-encoder at 8 px, pre-trained on crops of two natural photographs.
    MaskedAutoEncoder(
        "photos_mae", None, image_size=8, patch_size=2, **_sizes(48, 3, 4, 192), **_sizes(32, 1, 4, 128, "decoder_")
    ): Pretraining(
        "photographs", Schedule(steps=1500, batch_size=64, lr=2e-3, warmup_fraction=0.05), betas=(0.9, 0.95)
    ),
    # A tiny masked language model with its own vocabulary, pre-trained on docstrings.
    MaskedLanguageModel(
        "docs_mlm", None, "docstrings", None, vocabulary=4000, **_sizes(128, 2, 4, 256), max_length=48
    ): Pretraining("docstrings", Schedule(steps=2500, batch_size=32, lr=1e-3, warmup_fraction=0.05), betas=(0.9, 0.98)),
    # A ViT-Tiny masked auto-encoder at 64 px, pre-trained on the training images of CIFAR-100.
    MaskedAutoEncoder(
        "vit_mae_tiny64",
        None,
        image_size=64,
        patch_size=8,
        **_sizes(192, 12, 3, 768),
        **_sizes(128, 2, 4, 512, "decoder_"),
    ): Pretraining(
        "cifar100",
        Schedule(steps=3000, batch_size=64, lr=1e-3, warmup_fraction=0.05, augmentation="flip"),
        betas=(0.9, 0.95),
    ),
    # A revision is a commit, so that the same name always means the same weights; one that is not pinned here is
    # looked up when the weights are prepared.
    #
    # ViT-Base/16 and ViT-Large/16, pre-trained on ImageNet-1k by masked auto-encoding (He et al. 2022).
    _vit_mae("vit_mae_base", width=768, depth=12, heads=12): Checkpoint(
        "facebook/vit-mae-base@25b184bea5538bf5c4c852c79d221195fdd2778d",
        weights_checksum="479dcef4bd5df06259399027b789f21e9d9a1b79f37155a64176d55bc26fdae8",
    ),
    _vit_mae("vit_mae_large", width=1024, depth=24, heads=16): Checkpoint(
        "facebook/vit-mae-large@142cb8c25e1b1bc1769997a919aa1b5a2345a6b8"
    ),
    # ViT-Base/16, trained on the labels of ImageNet-21k (Dosovitskiy et al. 2021).
    _image_encoder("vit_base", width=768, pixel_mean=HALF, pixel_std=HALF): Checkpoint(
        "google/vit-base-patch16-224-in21k@b4569560a39a0f1af58e3ddaf17facf20ab919b0"
    ),
    # DeiT-Small/16, trained on ImageNet-1k (Touvron et al. 2021), without the distillation token and with it.
    _image_encoder("deit_small", width=384): Checkpoint("facebook/deit-small-patch16-224"),
    _image_encoder("deit_small_distilled", width=384, registers=1): Checkpoint(
        "facebook/deit-small-distilled-patch16-224"
    ),
    # DINOv2 (Oquab et al. 2024), self-distilled on images without labels, and with registers (Darcet et al. 2024).
    _dinov2("dinov2_small", width=384): Checkpoint("facebook/dinov2-small@ed25f3a31f01632728cabb09d1542f84ab7b0056"),
    _dinov2("dinov2_base", width=768): Checkpoint("facebook/dinov2-base@f9e44c814b77203eaa57a6bdbbd535f21ede1415"),
    _dinov2("dinov2_small_registers", width=384, registers=4, positioned="cls_and_patches"): Checkpoint(
        "facebook/dinov2-with-registers-small@0d9846e56b43a21fa46d7f3f5070f0506a5795a9"
    ),
    # RoBERTa (Liu et al. 2019), with its own vocabulary; the large one is a teacher for `kd`.
    _roberta("roberta_base", width=768, depth=12, heads=12): Checkpoint(
        "FacebookAI/roberta-base@e2da8e2f811d1448a5b465c236feacd80ffbac7b",
        weights_checksum="5bde1d28afb363d0103324efeb5afc8b2b397fe5e04beabb9b1ef355255ade81",
    ),
    _roberta("roberta_large", width=1024, depth=24, heads=16): Checkpoint(
        "FacebookAI/roberta-large@722cf37b1afa9454edce342e7895e588b6ff1d59"
    ),
    # DistilRoBERTa and DistilBERT (Sanh et al. 2019), and the BERT (Devlin et al. 2019) that the latter was taught by.
    _roberta("distilroberta_base", width=768, depth=6, heads=12): Checkpoint(
        "distilbert/distilroberta-base@fb53ab8802853c8e4fbdbcd0529f21fc6f459b2b"
    ),
    _encoder("distilbert", "distilbert_base", **_sizes(768, 6, 12, 3072), segments=1, **UNCASED): Checkpoint(
        "distilbert/distilbert-base-uncased@12040accade4e8a0f71eabdb258fecc2e7e948be"
    ),
    _text(MaskedLanguageModel, "bert_base", **_sizes(768, 12, 12, 3072), **UNCASED): Checkpoint(
        "google-bert/bert-base-uncased@86b5e0934494bd15c9632b12f734a8a67f723594"
    ),
    # GPT-2 (Radford et al. 2019), which predicts the next token, and its distilled form.
    _gpt2("gpt2", depth=12): Checkpoint("openai-community/gpt2@607a30d783dfa663caf39e06633721c8d4cfcd7e"),
    _gpt2("distilgpt2", depth=6): Checkpoint("distilbert/distilgpt2@2290a62682d06624634c1f46a6ad5be0f47f38aa"),
    # ELECTRA's discriminators (Clark et al. 2020) and DeBERTa-v3 (He et al. 2021), which was pre-trained like them:
    # neither has a masked-language-model head. Their repositories hold pickles, whose checksum has to be pinned, and
    # DeBERTa's tokenizer needs the package sentencepiece.
    _electra("electra_small", width=256, embedding=128): Checkpoint(
        "google/electra-small-discriminator@fa8239aadc095e9164941d05878b98afe9b953c3"
    ),
    _electra("electra_base", width=768, embedding=768): Checkpoint("google/electra-base-discriminator"),
    _deberta("deberta_v3_small", depth=6): Checkpoint(
        "microsoft/deberta-v3-small@a36c739020e01763fe789b4b85e2df55d6180012"
    ),
    _deberta("deberta_v3_base", depth=12): Checkpoint(
        "microsoft/deberta-v3-base@8ccc9b6f36199bec6961081d44eb72fb3f7353f3"
    ),
    # ModernBERT (Warner et al. 2024); it reads up to 8192 tokens.
    _encoder(
        "modernbert",
        "modernbert_base",
        **_sizes(768, 22, 12, 1152),
        vocabulary=50_368,
        positions=8192,
        segments=1,
        pad_id=50_283,
        mask_id=50_284,
        special_ids=(50_280, 50_281, 50_282, 50_283, 50_284),
        norm_eps=1e-5,
        dropout=0.0,
    ): Checkpoint("answerdotai/ModernBERT-base@8949b909ec900327062f0ebf497f51aef5e6f0c8"),
}


def _pretrained(cell: Cell, default: Backbone, pretraining: Pretraining) -> Backbone:
    """Build a backbone whose weights are a stage of the suite's own."""
    corpus = cell.corpus(pretraining.corpus)
    if isinstance(default, MaskedLanguageModel) and corpus is not None:  # its vocabulary is made of the corpus
        vocabulary = corpus.vocabulary or default.vocabulary
        default = dataclasses.replace(default, tokenizer_checksum=corpus.tokenizer_checksum, vocabulary=vocabulary)
    architecture = cell.configure(default, "backbone")
    weights = cell.stage(
        "source_pretrain",
        objective=MaskedAutoEncoding(),
        schedule=cell.configure(pretraining.schedule, "source_pretrain"),
        optimizer=cell.configure(AdamW(betas=pretraining.betas), "source_pretrain"),
        init=RANDOM,
        backbone=architecture,
        data=cell.corpus_data(pretraining.corpus),
        seed=0,
    )
    return dataclasses.replace(architecture, weights=weights)


def _from_checkpoint(cell: Cell, default: Backbone) -> Backbone:
    """Build a backbone whose weights were made elsewhere.

    What the weights decide is theirs; refuses a binding that says otherwise.
    """
    prepared = cell.checkpoint()
    if prepared is None:
        return cell.configure(default, "backbone")
    if cell.is_official_checkpoint():
        _refuse_another_network(default, prepared)
    # What the checkpoint's files say of the fields that weights decide replaces the default; then come the gin files.
    # Images may have another size than those of the weights where positions can be resampled.
    fixed = [field for field in default.FIXED if field != "image_size" or prepared.resampling is None]
    decided = {field: value for field, value in prepared.architecture.items() if field in fixed}
    if isinstance(default, LanguageModel):
        decided["tokenizer_checksum"] = prepared.tokenizer_checksum
    weights = PublicWeights(prepared.repository, prepared.revision, prepared.checksum, prepared.fresh)
    default = dataclasses.replace(default, weights=weights, **decided)
    configured = cell.configure(default, "backbone")
    for field in fixed:
        theirs, bound = getattr(default, field), getattr(configured, field)
        if bound != theirs:
            raise cell.blame(field, f"backbone.{field} = {bound}, but the weights of {default.name} have {theirs}.")
    if isinstance(configured, MaskedAutoEncoder) and configured.image_size != prepared.architecture["image_size"]:
        weights = dataclasses.replace(weights, resampling=prepared.resampling)
    return dataclasses.replace(configured, weights=weights)


def _refuse_another_network(official: Backbone, prepared: Prepared) -> None:
    """Refuse another network prepared under the name of a public one.

    It may come from a local copy that was given for the download.
    """
    # Of an encoder that transformers computes, only its files tell every setting; its sizes tell it from others.
    sizes = ("family", "vocabulary", *SIZES, "positions")
    names = sizes if isinstance(official, TransformersEncoder) else official.FIXED
    theirs = architecture_of(prepared.name, prepared.modality, prepared.architecture)
    fields = {field: getattr(theirs, field, None) for field in names}
    differences = {field: value for field, value in fields.items() if value != getattr(official, field)}
    if prepared.resampling is not None:
        differences.pop("image_size", None)
    if prepared.modality != official.MODALITY or differences:
        shown = ", ".join(f"{field} {value}" for field, value in differences.items())
        raise InputError(
            f"what is prepared as {official.name} is another network ({shown}). Declare it under a name of its own "
            "(NAME/backbone.weights), and prepare the official one --again."
        )


def _own_backbone(cell: Cell) -> Backbone:
    """Build a checkpoint of the user's as its own files say.

    The fields of the architecture are those that were read from them. Before it is prepared, it is taken to be of the
    modality of the cell's task.
    """
    name, prepared = cell.task.backbone, cell.checkpoint()
    # Until then nobody knows its patches: they are pixels, so that every image size is legal.
    unknown = {"patch_size": 1} if cell.task.modality == "image" else {}
    modality, fields = (cell.task.modality, unknown) if prepared is None else (prepared.modality, prepared.architecture)
    network = architecture_of(name, modality, fields)
    return _from_checkpoint(cell, dataclasses.replace(network, weights=NOT_FETCHED))


declare("source_pretrain", Schedule, AdamW)
register_own_backbones(_own_backbone)
for _default, _weights in ENTRIES.items():
    if isinstance(_weights, Checkpoint):
        CHECKPOINTS[_default.name] = _weights
        _make = functools.partial(_from_checkpoint, default=_default)
    else:
        _make = functools.partial(_pretrained, default=_default, pretraining=_weights)
    add_backbone(_default.name, type(_default), _make)
