"""The masked auto-encoder of He et al. (2022) on timm's transformer blocks.

Symbols: B images, K patches, D encoder width; a patch is a vector of p·p·3 values in the order row, column, channel.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import NamedTuple, cast

import torch
from timm.layers.attention import Attention
from timm.layers.mlp import Mlp
from timm.models.vision_transformer import Block, VisionTransformer
from torch import Tensor, nn
from torch.nn.functional import linear

from bench.interfaces.model import Model
from bench.models.layers import attend, use_dropout
from bench.specs.architectures import MaskedAutoEncoder

# The reference implementation's; too small to matter unless a patch is flat.
TARGET_EPS = 1e-6


class PatchMask(NamedTuple):
    """Which patches of each image are removed.

    `kept` (B, k): patch indices in the order in which the encoder sees them. `removed` (B, K): 1.0 where removed, else
    0.0.
    """

    kept: Tensor
    removed: Tensor


# ------------------------------------------------------------------------------------------------ plain functions


def sincos_positions(width: int, grid: int, cls: bool) -> Tensor:
    """Fixed 2-D sine-cosine positions (grid·grid, width) in float64, row-major; `cls` puts a row of zeros first.

    The first half of the channels encodes the column, the second the row, each as sines then cosines at width / 4
    frequencies from 1 down to 1/10000 (exclusive). `width` must be a multiple of 4.
    """
    frequency = 10000.0 ** -(torch.arange(width // 4, dtype=torch.float64) / (width // 4))
    angle = torch.outer(torch.arange(grid, dtype=torch.float64), frequency)
    wave = torch.cat([angle.sin(), angle.cos()], dim=1)  # (grid, width / 2)
    table = torch.cat([wave.repeat(grid, 1), wave.repeat_interleave(grid, dim=0)], dim=1)
    return torch.cat([table.new_zeros(1, width), table]) if cls else table


def patchify(images: Tensor, patch_size: int) -> Tensor:
    """Images (B, C, H, W) as patch vectors (B, K, patch·patch·C), channel fastest; patches row by row."""
    batch, channels, height, width = images.shape
    rows, columns = height // patch_size, width // patch_size
    grid = images.reshape(batch, channels, rows, patch_size, columns, patch_size)
    return grid.permute(0, 2, 4, 3, 5, 1).reshape(batch, rows * columns, -1)


def mask_from_noise(noise: Tensor, mask_ratio: float) -> PatchMask:
    """Keep exactly int(K·(1 − mask_ratio)) patches per image: those with the smallest noise (B, K)."""
    keep = int(noise.shape[1] * (1 - mask_ratio))
    # Stable, because float32 noise does tie, and ties must be broken alike everywhere.
    kept = torch.argsort(noise, dim=1, stable=True)[:, :keep]
    return PatchMask(kept, torch.ones_like(noise).scatter_(1, kept, 0.0))


def patch_targets(images: Tensor, patch_size: int, norm_pix: bool) -> Tensor:
    """What the decoder should predict (B, K, patch·patch·C): the pixels, standardised per patch if `norm_pix`.

    The variance is the unbiased one (n − 1), as in the reference implementation.
    """
    patches = patchify(images, patch_size)
    if not norm_pix:
        return patches
    variance, mean = torch.var_mean(patches, dim=-1, keepdim=True, correction=1)
    return (patches - mean) / (variance + TARGET_EPS).sqrt()


def reconstruction_loss(predictions: Tensor, targets: Tensor, removed: Tensor) -> Tensor:
    """The mean over removed patches, batch-wide, of the mean squared error over a patch's values.

    `predictions` and `targets` (B, K, values); `removed` (B, K) is 1 where a patch was removed, else 0.
    """
    per_patch = (predictions - targets).square().mean(dim=-1)
    return (per_patch * removed).sum() / removed.sum()


# ------------------------------------------------------------------------------------------------ blocks


def block_of_all(block: Block, tokens: Tensor) -> Tensor:
    """Apply a transformer block to tokens (B, T, D)."""
    hidden: Tensor = block(tokens)
    return hidden


def block_of_first(block: Block, tokens: Tensor) -> Tensor:
    """Compute what a transformer block makes of the first of tokens (B, T, D) alone: (B, D).

    The other tokens only give keys and values.
    """
    attention = cast(Attention, block.attn)
    batch, length, width = tokens.shape
    first, heads = tokens[:, :1], (attention.num_heads, width // attention.num_heads)
    hidden = block.norm1(tokens)
    (query_weight, weight), (query_bias, bias) = (
        torch.split(parameter, [width, 2 * width]) for parameter in (attention.qkv.weight, attention.qkv.bias)
    )
    query = linear(hidden[:, :1], query_weight, query_bias).view(batch, 1, *heads).transpose(1, 2)
    key, value = linear(hidden, weight, bias).view(batch, length, 2, *heads).permute(2, 0, 3, 1, 4).unbind()
    rate = attention.attn_drop.p if attention.training else 0.0
    attended = attend(query, key, value, None, rate).transpose(1, 2).flatten(2)
    first = first + attention.proj_drop(attention.proj(attended))
    output: Tensor = first + block.mlp(block.norm2(first))
    return output[:, 0]


# ------------------------------------------------------------------------------------------------ the network


class Decoder(nn.Module):
    """From encoded visible tokens to pixel values of every patch: mask tokens, positions, blocks, norm, projection."""

    def __init__(self, backbone: MaskedAutoEncoder, dropout: float) -> None:
        super().__init__()
        width = backbone.decoder_width
        self.embed = nn.Linear(backbone.width, width)
        self.mask_token = nn.Parameter(torch.empty(1, 1, width))
        self.pos_embed = nn.Parameter(torch.empty(1, backbone.patches + 1, width), requires_grad=False)
        self.blocks = nn.Sequential(
            *(
                Block(
                    width,
                    backbone.decoder_heads,
                    mlp_ratio=_mlp_ratio(backbone.decoder_mlp_width, width),
                    qkv_bias=True,
                    proj_drop=dropout,
                    norm_layer=_norm_layer(backbone),
                )
                for _ in range(backbone.decoder_depth)
            )
        )
        self.norm = nn.LayerNorm(width, eps=backbone.decoder_norm_eps)
        self.predict = nn.Linear(width, 3 * backbone.patch_size**2)

    def forward(self, tokens: Tensor, mask: PatchMask, block: Callable[[Block, Tensor], Tensor]) -> Tensor:
        """Tokens (B, 1 + k, D), CLS first, to pixel values (B, K, patch·patch·3); `block` applies a block to tokens."""
        tokens = self.embed(tokens)
        batch, patches = mask.removed.shape
        # A mask token everywhere, then the visible ones in their places.
        index = mask.kept.unsqueeze(-1).expand(-1, -1, tokens.shape[-1])
        restored = self.mask_token.to(tokens.dtype).expand(batch, patches, -1).scatter(1, index, tokens[:, 1:])
        hidden = torch.cat([tokens[:, :1], restored], dim=1) + self.pos_embed
        for layer in cast("list[Block]", self.blocks):
            hidden = block(layer, hidden)
        predictions: Tensor = self.predict(self.norm(hidden)[:, 1:])
        return predictions


class ImageModel(Model):
    """A vision transformer with the decoder of a masked auto-encoder, a linear classifier on the CLS token, or neither.

    `dropout` is that of the released fine-tuning code: after the positions, after the attention's output projection and
    after the MLP, never inside the MLP. Encoder positions are trained only together with a head, the decoder's never.
    """

    POSITIONS = ("pos_embed",)
    TOKENS = ("cls_token", "mask_token")
    COMPILED = (block_of_all, block_of_first)

    encoder: VisionTransformer
    decoder: Decoder | None
    head: nn.Linear | None
    modality = "image"

    def __init__(
        self, backbone: MaskedAutoEncoder, *, classes: int | None, decoder: bool, dropout: float | None
    ) -> None:
        super().__init__()
        self.backbone, self.width = backbone, backbone.width
        rate = dropout or 0.0
        self.encoder = VisionTransformer(
            img_size=backbone.image_size,
            patch_size=backbone.patch_size,
            num_classes=0,
            embed_dim=backbone.width,
            depth=backbone.depth,
            num_heads=backbone.heads,
            mlp_ratio=_mlp_ratio(backbone.mlp_width, backbone.width),
            qkv_bias=True,
            pos_drop_rate=rate,
            proj_drop_rate=rate,
            weight_init="skip",
            norm_layer=_norm_layer(backbone),
        )
        _initialise(self.encoder, backbone)
        assert self.encoder.pos_embed is not None
        self.encoder.pos_embed.requires_grad_(classes is not None)
        self.head = None if classes is None else nn.Linear(backbone.width, classes)
        if self.head is not None:
            nn.init.trunc_normal_(self.head.weight, std=0.02)
            nn.init.zeros_(self.head.bias)
        self.decoder = Decoder(backbone, rate) if decoder else None
        if self.decoder is not None:
            _initialise(self.decoder, backbone)
        use_dropout(self)

    def features(self, inputs: Tensor, embeddings: Tensor | None = None) -> Tensor:
        tokens = self._tokens(self.embed(inputs) if embeddings is None else embeddings)
        *blocks, last = cast("list[Block]", self.encoder.blocks)
        for block in blocks:
            tokens = self._run(block_of_all)(block, tokens)
        features: Tensor = self.encoder.norm(self._run(block_of_first)(last, tokens))
        return features

    def embed(self, inputs: Tensor) -> Tensor:
        return self._project(patchify(inputs, self.backbone.patch_size))

    def draw_mask(self, inputs: Tensor, generator: torch.Generator) -> PatchMask:
        noise = torch.rand(len(inputs), self.backbone.patches, generator=generator, dtype=torch.float32)
        return mask_from_noise(noise, self.backbone.mask_ratio)

    def masked_predictions(self, inputs: Tensor, mask: PatchMask) -> Tensor:
        assert self.decoder is not None, "this model was built without a decoder"
        patches = _gathered(patchify(inputs, self.backbone.patch_size), mask.kept)
        tokens = self._tokens(self._project(patches), mask.kept)
        block_of_tokens = self._run(block_of_all)
        for block in cast("list[Block]", self.encoder.blocks):
            tokens = block_of_tokens(block, tokens)
        predictions: Tensor = self.decoder(self.encoder.norm(tokens), mask, block_of_tokens)
        return predictions

    def masked_loss(self, inputs: Tensor, mask: PatchMask) -> Tensor:
        targets = patch_targets(inputs, self.backbone.patch_size, self.backbone.norm_pix_loss)
        return reconstruction_loss(self.masked_predictions(inputs, mask), targets, mask.removed)

    def _project(self, patches: Tensor) -> Tensor:
        """Patch vectors (B, K, patch·patch·3) through timm's convolution, which sees every patch once: (B, K, D)."""
        projection = self.encoder.patch_embed.proj
        return linear(patches, projection.weight.permute(0, 2, 3, 1).flatten(1), projection.bias)

    def _tokens(self, embeddings: Tensor, kept: Tensor | None = None) -> Tensor:
        """The encoder's input (B, 1 + K, D): CLS, then patches, at all positions or those `kept` (B, K)."""
        table, cls_token = self.encoder.pos_embed, self.encoder.cls_token
        assert table is not None and cls_token is not None
        batch, positions = len(embeddings), table[:, 1:]
        if kept is not None:
            positions = _gathered(positions.expand(batch, -1, -1), kept)
        cls = (cls_token + table[:, :1]).expand(batch, -1, -1)
        tokens: Tensor = self.encoder.pos_drop(torch.cat([cls, embeddings + positions], dim=1))
        return tokens


def _gathered(values: Tensor, index: Tensor) -> Tensor:
    """The vectors at `index` (B, k) of `values` (B, K, D): (B, k, D)."""
    return values.gather(1, index.unsqueeze(-1).expand(-1, -1, values.shape[-1]))


def _norm_layer(backbone: MaskedAutoEncoder) -> type[nn.Module]:
    # A function in the place of a class: timm calls it with the width.
    return cast("type[nn.Module]", partial(nn.LayerNorm, eps=backbone.norm_eps))


def _mlp_ratio(mlp_width: int, width: int) -> float:
    # timm truncates width · ratio; the half keeps rounding from losing a unit.
    return (mlp_width + 0.5) / width


def _initialise(part: VisionTransformer | Decoder, backbone: MaskedAutoEncoder) -> None:
    """The masked auto-encoder's initialisation; also turns off the dropout that timm puts inside the MLP."""
    for module in part.modules():
        if isinstance(module, nn.Linear):
            nn.init.xavier_uniform_(module.weight)
            nn.init.zeros_(module.bias)
        elif isinstance(module, nn.Conv2d):
            nn.init.xavier_uniform_(module.weight.view(module.out_channels, -1))  # a linear map of the patch
        elif isinstance(module, Mlp):
            module.drop1.p = 0.0
    token, positions = part.mask_token if isinstance(part, Decoder) else part.cls_token, part.pos_embed
    assert token is not None and positions is not None
    nn.init.normal_(token, std=0.02)
    grid = backbone.image_size // backbone.patch_size
    with torch.no_grad():
        positions.copy_(sincos_positions(positions.shape[-1], grid, cls=True))
