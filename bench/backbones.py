"""The architectures of backbones as specs, one per modality; `bench.models.build` makes the networks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from bench.specs import Backbone


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
        for size in ("depth", "mlp_width", "decoder_mlp_width"):
            self.require(size, getattr(self, size) >= 1, "at least 1")
        self.require("decoder_depth", self.decoder_depth >= 0, "at least 1, or 0 for an encoder without a decoder")
        for eps in ("norm_eps", "decoder_norm_eps"):
            self.require(eps, 0 < getattr(self, eps) < 1, "in (0, 1)")
        kept = int(self.patches * (1 - self.mask_ratio)) if 0 < self.mask_ratio < 1 else 0
        self.require("mask_ratio", 1 <= kept < self.patches, "in (0, 1), keeping at least one patch and masking one")

    @property
    def has_decoder(self) -> bool:
        return self.decoder_depth > 0

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

    `tokenizer` names the prepared corpus that holds the vocabulary, or a public repository (OWNER/NAME);
    `tokenizer_checksum` is the sha256 of that file, None until it is prepared. `max_length` counts tokens, special ones
    included.
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
        for size in ("depth", "mlp_width"):
            self.require(size, getattr(self, size) >= 1, "at least 1")
        self.require("norm_eps", 0 < self.norm_eps < 1, "in (0, 1)")
        self.require("max_length", self.max_length >= 3, "at least 3 tokens")
        self.require("vocabulary", self.vocabulary >= 8, "at least 8")
        self.require("mask_ratio", 0 < self.mask_ratio < 1, "in (0, 1)")
        self.require("dropout", 0 <= self.dropout < 1, "in [0, 1)")

    @property
    def unprepared(self) -> frozenset[str]:
        if self.tokenizer_checksum is not None:
            return super().unprepared
        return super().unprepared | {self.name if "/" in self.tokenizer else self.tokenizer}

    def decayed_roles(self, labelled: bool) -> tuple[str, ...]:
        # Gururangan et al. 2020: everything but biases and layer-norm gains.
        return ("matrix", "token", "position")
