"""Pre-trained backbones as specs: architectures by modality, and the two embedded ones.

An architecture here is data; `bench.models.build` makes the network. A backbone's weights are a stage of their own
(started from random weights), so the plan caches source pre-training like any other stage.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

from bench.objectives import AdamW
from bench.registry import declare, register_backbone
from bench.specs import Backbone, Schedule

if TYPE_CHECKING:
    from bench.cell import Cell


@dataclass(frozen=True)
class MaskedAutoEncoder(Backbone):
    """A vision transformer encoder with a masked auto-encoder's decoder (He et al. 2022).

    Sizes in pixels and channels; `norm_eps` is the epsilon of every layer norm but the decoder's last.
    """

    MODALITY: ClassVar[Literal["image", "text"]] = "image"

    image_size: int = 224
    patch_size: int = 16
    width: int = 768
    depth: int = 12
    heads: int = 12
    mlp_width: int = 3072
    decoder_width: int = 512
    decoder_depth: int = 8
    decoder_heads: int = 16
    decoder_mlp_width: int = 2048
    norm_eps: float = 1e-12
    decoder_norm_eps: float = 1e-12
    mask_ratio: float = 0.75
    norm_pix_loss: bool = True

    def check(self) -> None:
        self.require("patch_size", self.patch_size >= 1, "at least 1")
        self.require(
            "image_size", self.image_size % self.patch_size == 0, f"a multiple of patch_size ({self.patch_size})"
        )
        for width, heads in (("width", "heads"), ("decoder_width", "decoder_heads")):
            self.require(heads, getattr(self, heads) >= 1, "at least 1")
            legal = getattr(self, width) > 0 and getattr(self, width) % getattr(self, heads) == 0
            self.require(width, legal, f"a multiple of {heads} ({getattr(self, heads)})")
            self.require(width, getattr(self, width) % 4 == 0, "a multiple of 4, for 2-D sin-cos positions")
        self.require("depth", self.depth >= 1, "at least 1")
        self.require("decoder_depth", self.decoder_depth >= 1, "at least 1")
        kept = int(self.patches * (1 - self.mask_ratio)) if 0 < self.mask_ratio < 1 else 0
        self.require("mask_ratio", 1 <= kept < self.patches, "in (0, 1), keeping at least one patch and masking one")

    @property
    def patches(self) -> int:
        """How many patches an image has."""
        return int((self.image_size // self.patch_size) ** 2)

    def decayed_roles(self, labelled: bool) -> tuple[str, ...]:
        # The released code: fine-tuning exempts biases, positions and the CLS token; pre-training exempts 1-D tensors.
        return ("matrix", "norm") if labelled else ("matrix", "token")


@dataclass(frozen=True)
class MaskedLanguageModel(Backbone):
    """A BERT-like encoder with a masked-language-model head.

    `tokenizer` names the prepared corpus that holds the vocabulary, `tokenizer_checksum` the sha256 of that file (None
    until the corpus is prepared). `max_length` counts tokens, special ones included.
    """

    MODALITY: ClassVar[Literal["image", "text"]] = "text"
    UNBOUND: ClassVar[tuple[str, ...]] = (*Backbone.UNBOUND, "tokenizer", "tokenizer_checksum", "vocabulary")

    tokenizer: str
    tokenizer_checksum: str | None
    vocabulary: int = 30522
    width: int = 768
    depth: int = 12
    heads: int = 12
    mlp_width: int = 3072
    max_length: int = 256
    norm_eps: float = 1e-12
    dropout: float = 0.1
    mask_ratio: float = 0.15

    def check(self) -> None:
        self.require("heads", self.heads >= 1, "at least 1")
        self.require("width", self.width > 0 and self.width % self.heads == 0, f"a multiple of heads ({self.heads})")
        self.require("depth", self.depth >= 1, "at least 1")
        self.require("max_length", self.max_length >= 3, "at least 3 tokens")
        self.require("vocabulary", self.vocabulary >= 8, "at least 8")
        self.require("mask_ratio", 0 < self.mask_ratio < 1, "in (0, 1)")
        self.require("dropout", 0 <= self.dropout < 1, "in [0, 1)")

    def decayed_roles(self, labelled: bool) -> tuple[str, ...]:
        # Gururangan et al. 2020: everything but biases and layer-norm gains.
        return ("matrix", "token", "position")


declare("source_pretrain", Schedule, AdamW)


@register_backbone(MaskedAutoEncoder)
def photos_mae(cell: Cell) -> MaskedAutoEncoder:
    """A tiny masked auto-encoder at 8 px, pre-trained by the suite on crops of two natural photographs."""
    architecture = MaskedAutoEncoder(
        name="photos_mae",
        weights=None,
        image_size=8,
        patch_size=2,
        width=48,
        depth=3,
        heads=4,
        mlp_width=192,
        decoder_width=32,
        decoder_depth=1,
        decoder_heads=4,
        decoder_mlp_width=128,
    )
    return cell.pretrained(
        cell.configure(architecture, "backbone"),
        corpus="photographs",
        schedule=cell.configure(Schedule(steps=2000, batch_size=64, lr=2e-3, warmup_fraction=0.05), "source_pretrain"),
        optimizer=cell.configure(AdamW(betas=(0.9, 0.95)), "source_pretrain"),
    )


@register_backbone(MaskedLanguageModel)
def docs_mlm(cell: Cell) -> MaskedLanguageModel:
    """A tiny masked language model with its own vocabulary, pre-trained by the suite on docstrings."""
    corpus = cell.corpus("docstrings")
    architecture = MaskedLanguageModel(
        name="docs_mlm",
        weights=None,
        tokenizer="docstrings",
        tokenizer_checksum=corpus.tokenizer_checksum if corpus else None,
        vocabulary=(corpus.vocabulary if corpus else None) or 4000,
        width=128,
        depth=2,
        heads=4,
        mlp_width=256,
        max_length=48,
    )
    return cell.pretrained(
        cell.configure(architecture, "backbone"),
        corpus="docstrings",
        schedule=cell.configure(Schedule(steps=3000, batch_size=32, lr=1e-3, warmup_fraction=0.05), "source_pretrain"),
        optimizer=cell.configure(AdamW(betas=(0.9, 0.98)), "source_pretrain"),
    )
