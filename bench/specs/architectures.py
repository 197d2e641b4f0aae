"""The architectures of backbones as specs, one per modality; `bench.models.build` makes the networks."""

from __future__ import annotations

import dataclasses
import json
import math
from dataclasses import dataclass
from typing import ClassVar, Literal, Self

from bench.specs import Backbone, PublicWeights
from bench.specs.families import FAMILIES
from bench.specs.spec import added

LARGEST = 1_000_000
"""No size of a network may be greater: nothing could compute it, and its memory could not even be asked for."""


def _check_sizes(backbone: Backbone, names: tuple[str, ...]) -> None:
    for name in names:
        size = getattr(backbone, name)
        backbone.require(name, size is None or size <= LARGEST, f"at most {LARGEST}")


def _block_weights(width: int, mlp_width: int) -> int:
    """Count the weights in the matrices of one block: four of attention, two of the MLP."""
    return 4 * width**2 + 2 * width * mlp_width


IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""The statistics of each colour channel by which the suite normalises images."""

SIZES = ("width", "depth", "heads", "mlp_width")
"""The sizes of an encoder; those of a decoder begin with `decoder_`."""
IMAGE_SIZES = ("image_size", "patch_size", *SIZES, *(f"decoder_{size}" for size in SIZES))
"""All sizes of a vision transformer."""


@dataclass(frozen=True)
class MaskedAutoEncoder(Backbone):
    """A vision transformer encoder with a masked auto-encoder's decoder, or without.

    He et al. (2022) describe it. Sizes are in pixels and channels; `norm_eps` is the epsilon of every layer norm but
    the decoder's last. `decoder_depth` 0 is an encoder alone.

    What other vision transformers have beside it: `registers` counts learned tokens between CLS and the patches, which
    are the registers of DINOv2 or the distillation token of DeiT; `positioned` says which tokens have positions;
    `layer_scale` is the initial gain on every channel of what a block adds (None: no gains); `pre_norm` is a layer norm
    before the first block, as in CLIP, whose patches are projected without a bias; `pixel_mean` and `pixel_std` are the
    statistics by which pixels were normalised where the weights were trained.
    """

    VERSION: ClassVar[int] = 2
    MODALITY: ClassVar[Literal["image", "text"]] = "image"
    NAMES_ATTENTION: ClassVar[bool] = True
    FIXED: ClassVar[tuple[str, ...]] = (
        *IMAGE_SIZES,
        "registers",
        "positioned",
        "layer_scale",
        "pre_norm",
        "pixel_mean",
        "pixel_std",
    )

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
    registers: int = added(0)
    positioned: Literal["all", "cls_and_patches", "patches"] = added("all")
    layer_scale: float | None = added(None)
    pre_norm: bool = added(False)
    pixel_mean: tuple[float, float, float] = added(IMAGENET_MEAN)
    pixel_std: tuple[float, float, float] = added(IMAGENET_STD)

    def check(self) -> None:
        _check_sizes(self, (*IMAGE_SIZES, "registers"))
        self.require("patch_size", self.patch_size >= 1, "at least 1")
        self.require(
            "image_size", self.image_size % self.patch_size == 0, f"a multiple of patch_size ({self.patch_size})"
        )
        self.require("image_size", self.patches <= LARGEST, f"so small that an image has at most {LARGEST} patches")
        for width, heads in (("width", "heads"), ("decoder_width", "decoder_heads")):
            self.require(heads, getattr(self, heads) >= 1, "at least 1")
            legal = getattr(self, width) > 0 and getattr(self, width) % getattr(self, heads) == 0
            self.require(width, legal, f"a multiple of {heads} ({getattr(self, heads)})")
            self.require(width, getattr(self, width) % 4 == 0, "a multiple of 4, for 2-D sin-cos positions")
        for size in ("depth", "mlp_width", "decoder_mlp_width"):
            self.require(size, getattr(self, size) >= 1, "at least 1")
        self.require("decoder_depth", self.decoder_depth >= 0, "at least 1, or 0 for an encoder without a decoder")
        for eps in ("norm_eps", "decoder_norm_eps"):
            self.require(eps, 1e-20 <= getattr(self, eps) < 1, "in [1e-20, 1)")
        self.require("registers", self.registers >= 0, "0 or more")
        self.require("layer_scale", self.layer_scale is None or 0 < self.layer_scale < math.inf, "above 0, or None")
        legal = min(self.pixel_std) >= 1e-6 and max(self.pixel_std) <= 1e6
        self.require("pixel_std", legal, "from a millionth to a million for every channel")
        self.require("pixel_mean", max(map(abs, self.pixel_mean)) <= 1e6, "at most a million for every channel")
        kept = int(self.patches * (1 - self.mask_ratio)) if 0 < self.mask_ratio < 1 else 0
        self.require("mask_ratio", 1 <= kept < self.patches, "in (0, 1), keeping at least one patch and masking one")

    @property
    def has_decoder(self) -> bool:
        return self.decoder_depth > 0

    @property
    def with_decoder(self) -> Self:
        # The rule gives He et al.'s decoder for their own encoders: 8 blocks of width 512 with 16 heads for ViT-Base
        # and ViT-Large. A ViT-Small (12 blocks of width 384) gets 8 blocks of width 256 with 8 heads. Only where
        # weights made elsewhere lack a decoder: an architecture of the suite's own says itself what it has.
        if self.has_decoder or not isinstance(self.weights, PublicWeights):
            return self
        width = min(512, max(32, 2 * self.width // 3 // 32 * 32))
        return dataclasses.replace(
            self,
            weights=dataclasses.replace(self.weights, fresh=("decoder",)),
            decoder_width=width,
            decoder_depth=min(8, math.ceil(2 * self.depth / 3)),
            decoder_heads=width // 32,
            decoder_mlp_width=4 * width,
            decoder_norm_eps=self.norm_eps,
        )

    @property
    def least_parameters(self) -> int:
        return self.depth * _block_weights(self.width, self.mlp_width)

    @property
    def least_decoder_parameters(self) -> int:
        return self.decoder_depth * _block_weights(self.decoder_width, self.decoder_mlp_width)

    @property
    def patches(self) -> int:
        """The number of patches of an image."""
        return int((self.image_size // self.patch_size) ** 2)

    def decayed_roles(self, labelled: bool) -> tuple[str, ...]:
        # The released code: fine-tuning exempts biases, positions and the CLS token; pre-training exempts 1-D tensors.
        return ("matrix", "norm") if labelled else ("matrix", "token")


@dataclass(frozen=True)
class LanguageModel(Backbone):
    """What text encoders have in common, whatever computes them.

    `tokenizer` names the prepared corpus that holds the vocabulary, None for a checkpoint that brings its own;
    `tokenizer_checksum` is the sha256 of that file, None until it is prepared. `max_length` counts tokens, special ones
    included; `positions` is the number of position embeddings, None for just enough. `special_ids` are never masked.
    Batches in training are padded to the next multiple of `pad_to_multiple_of` tokens, at most `max_length`: few sizes
    repeat often, which a GPU's recorded steps need; 1 pads to the longest text.
    """

    MODALITY: ClassVar[Literal["image", "text"]] = "text"
    NAMES_ATTENTION: ClassVar[bool] = True
    OF_VOCABULARY: ClassVar[tuple[str, ...]] = ("vocabulary", "pad_id", "mask_id", "special_ids")
    UNBOUND: ClassVar[tuple[str, ...]] = (
        *Backbone.UNBOUND,
        "tokenizer",
        "tokenizer_checksum",
        *OF_VOCABULARY,
        "positions",
        "segments",
    )

    tokenizer: str | None
    tokenizer_checksum: str | None
    vocabulary: int = 30522
    width: int = 768
    depth: int = 12
    heads: int = 12
    mlp_width: int = 3072
    max_length: int = 256
    pad_to_multiple_of: int = 8
    positions: int | None = None
    segments: int = 2
    pad_id: int = 0
    mask_id: int | None = 4
    special_ids: tuple[int, ...] = (0, 1, 2, 3, 4)
    norm_eps: float = 1e-12
    dropout: float = 0.1
    mask_ratio: float = 0.15

    def check(self) -> None:
        _check_sizes(self, (*SIZES, "max_length", "pad_to_multiple_of", "vocabulary", "positions", "segments"))
        self.require("heads", self.heads >= 1, "at least 1")
        self.require("width", self.width > 0 and self.width % self.heads == 0, f"a multiple of heads ({self.heads})")
        for size in ("depth", "mlp_width"):
            self.require(size, getattr(self, size) >= 1, "at least 1")
        self.require("norm_eps", 1e-20 <= self.norm_eps < 1, "in [1e-20, 1)")
        self.require("max_length", self.max_length >= 3, "at least 3 tokens")
        self.require("pad_to_multiple_of", self.pad_to_multiple_of >= 1, "at least 1 token")
        self.require("vocabulary", self.vocabulary >= 8, "at least 8")
        self.require("segments", self.segments >= 1, "at least 1")
        if self.positions is not None:
            longest = self.positions - self.first_position
            self.require("max_length", self.max_length <= longest, f"at most {longest}, as long as it was built for")
        inside = all(0 <= token < self.vocabulary for token in self.special_ids)
        self.require("special_ids", inside, f"in the vocabulary, which has {self.vocabulary} entries")
        for name in ("pad_id", "mask_id"):
            legal = getattr(self, name) in self.special_ids or (name == "mask_id" and not self.masks)
            self.require(name, legal, f"one of special_ids {self.special_ids}")
        self.require("mask_ratio", 0 < self.mask_ratio < 1, "in (0, 1)")
        self.require("dropout", 0 <= self.dropout < 1, "in [0, 1)")

    @property
    def masks(self) -> bool:
        """Whether further pre-training masks tokens; otherwise every token predicts the next one."""
        return True

    @property
    def first_position(self) -> int:
        """The first token's position."""
        return 0

    @property
    def unprepared(self) -> frozenset[str]:
        if self.tokenizer_checksum is not None:
            return super().unprepared
        return super().unprepared | {self.tokenizer or self.name}

    @property
    def least_parameters(self) -> int:
        return self.vocabulary * self.width + self.depth * _block_weights(self.width, self.mlp_width)

    def decayed_roles(self, labelled: bool) -> tuple[str, ...]:
        # Gururangan et al. 2020: everything but biases and layer-norm gains.
        return ("matrix", "embedding", "token", "position")


@dataclass(frozen=True)
class MaskedLanguageModel(LanguageModel):
    """A BERT- or RoBERTa-like encoder with a masked-language-model head."""

    VERSION: ClassVar[int] = 2
    UNBOUND: ClassVar[tuple[str, ...]] = (*LanguageModel.UNBOUND, "network")
    FIXED: ClassVar[tuple[str, ...]] = ("network", *LanguageModel.OF_VOCABULARY, *SIZES, "positions", "segments")

    network: Literal["bert", "roberta"] = "bert"

    @property
    def first_position(self) -> int:
        """The first token's position: RoBERTa counts from behind the padding index."""
        return self.pad_id + 1 if self.network == "roberta" else 0


@dataclass(frozen=True)
class TransformersEncoder(LanguageModel):
    """A text encoder of one of the `FAMILIES`, computed by transformers.

    `config` holds, as canonical JSON, the settings of its configuration there that have no field here. `dropout` is the
    rate of hidden states and of attention weights. A causal family masks nothing, so it has no `mask_id`, and its
    `mask_ratio` may only be the default.
    """

    UNBOUND: ClassVar[tuple[str, ...]] = (*LanguageModel.UNBOUND, "family", "config")
    FIXED: ClassVar[tuple[str, ...]] = (
        "family",
        "config",
        *LanguageModel.OF_VOCABULARY,
        *SIZES,
        "positions",
        "segments",
    )

    CAPTURABLE: ClassVar[bool] = False  # some of transformers' networks ask the device, or copy to it, in every step

    family: str = "distilbert"
    config: str = "{}"

    def check(self) -> None:
        self.require("family", self.family in FAMILIES, f"one of {', '.join(FAMILIES)}")
        try:
            settings = json.loads(self.config)
        except ValueError:
            settings = None
        legal = isinstance(settings, dict) and settings.keys() <= set(FAMILIES[self.family].settings)
        self.require("config", legal, f"a JSON object of settings among {', '.join(FAMILIES[self.family].settings)}")
        super().check()
        # What would change nothing is refused.
        default = type(self)
        legal = self.masks or self.mask_ratio == default.mask_ratio
        self.require("mask_ratio", legal, f"{default.mask_ratio}: {self.family} masks nothing")
        legal = "norm_eps" in FAMILIES[self.family].fields or self.norm_eps == default.norm_eps
        self.require("norm_eps", legal, f"{default.norm_eps}, which is fixed in {self.family}")

    @property
    def masks(self) -> bool:
        return not FAMILIES[self.family].causal

    @property
    def least_parameters(self) -> int:
        embedded = json.loads(self.config).get("embedding_size", self.width)
        return self.vocabulary * int(embedded) + self.depth * _block_weights(self.width, self.mlp_width)


ARCHITECTURES: tuple[type[Backbone], ...] = (MaskedAutoEncoder, MaskedLanguageModel, TransformersEncoder)
"""The types that data and loop know. Backbones of plugins derive from one of them."""
