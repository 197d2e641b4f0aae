"""Vision transformers on timm's blocks, with the decoder of He et al.'s (2022) masked auto-encoder.

Symbols: B images, K patches, D encoder width; a patch is a vector of p·p·3 values in the order row, column, channel.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple, cast

import torch
from timm.layers.attention import Attention
from timm.layers.mlp import Mlp
from timm.layers.pos_embed import resample_abs_pos_embed
from timm.models.vision_transformer import Block, VisionTransformer
from torch import Tensor, nn
from torch.nn.functional import linear

from bench.interfaces.model import Model, Resampling
from bench.models.layers import attend, use_dropout
from bench.specs.architectures import IMAGENET_MEAN, IMAGENET_STD, MaskedAutoEncoder

# The reference implementation's; too small to matter unless a patch is flat.
TARGET_EPS = 1e-6


class PatchMask(NamedTuple):
    """Which patches of each image are removed.

    `kept` (B, k): patch indices in the order in which the encoder sees them. `removed` (B, K): 1.0 where removed, else
    0.0.
    """

    kept: Tensor
    removed: Tensor

    @property
    def targets(self) -> Tensor:
        """How many patches are to be predicted."""
        return self.removed.sum()


# ------------------------------------------------------------------------------------------------ plain functions


def sincos_positions(width: int, grid: int, cls: bool) -> Tensor:
    """Compute fixed 2-D sine-cosine positions (grid·grid, width), row-major.

    They are in float64; `cls` puts a row of zeros first.

    The first half of the channels encodes the column, the second the row, each as sines then cosines at width / 4
    frequencies from 1 down to 1/10000 (exclusive). `width` must be a multiple of 4.
    """
    # Example: width 4 and grid 2. There is one frequency, 1, so a coordinate i becomes [sin i, cos i]. The table, with
    # (row, column) before each line:
    #
    #     (0, 0)  [ 0   1   0   1 ]
    #     (0, 1)  [.84 .54  0   1 ]
    #     (1, 0)  [ 0   1  .84 .54]
    #     (1, 1)  [.84 .54 .84 .54]
    #
    frequency = 10000.0 ** -(torch.arange(width // 4, dtype=torch.float64) / (width // 4))
    angle = torch.outer(torch.arange(grid, dtype=torch.float64), frequency)
    wave = torch.cat([angle.sin(), angle.cos()], dim=1)  # (grid, width / 2)
    table = torch.cat([wave.repeat(grid, 1), wave.repeat_interleave(grid, dim=0)], dim=1)
    return torch.cat([table.new_zeros(1, width), table]) if cls else table


def renormalised(images: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """Normalise images (B, 3, H, W) by other statistics than the suite's."""
    # (pixel - mean) / std is a linear function of the normalised value that the suite hands out. Numbers, no tensors: a
    # GPU that records a step could not be sent any.
    ours = zip(IMAGENET_MEAN, IMAGENET_STD, strict=True)
    channels = zip(images.unbind(1), ours, mean, std, strict=True)
    return torch.stack(
        [
            channel * (our_std / their_std) + (our_mean - their_mean) / their_std
            for channel, (our_mean, our_std), their_mean, their_std in channels
        ],
        dim=1,
    )


def patchify(images: Tensor, patch_size: int) -> Tensor:
    """Cut images (B, C, H, W) into patch vectors.

    They are (B, K, patch·patch·C): patches row by row, in each the channel fastest.
    """
    batch, channels, height, width = images.shape
    rows, columns = height // patch_size, width // patch_size
    # Example: one channel, 4 x 4 pixels numbered row by row from 0, patches of 2 x 2. The patch vectors are [0 1 4 5],
    # [2 3 6 7], [8 9 12 13] and [10 11 14 15].
    grid = images.reshape(batch, channels, rows, patch_size, columns, patch_size)
    return grid.permute(0, 2, 4, 3, 5, 1).reshape(batch, rows * columns, -1)


def mask_from_noise(noise: Tensor, mask_ratio: float) -> PatchMask:
    """Keep the patches of each image with the smallest noise (B, K). Exactly int(K·(1 − mask_ratio)) are kept."""
    # Example: noise [.3 .9 .1 .5] and ratio 0.5 keep patches [2 0], in this order; removed is [0 1 0 1].
    keep = int(noise.shape[1] * (1 - mask_ratio))
    # Stable, because float32 noise does tie, and ties must be broken alike everywhere.
    kept = torch.argsort(noise, dim=1, stable=True)[:, :keep]
    return PatchMask(kept, torch.ones_like(noise).scatter_(1, kept, 0.0))


def patch_targets(images: Tensor, patch_size: int, norm_pix: bool) -> Tensor:
    """Compute what the decoder should predict: (B, K, patch·patch·C).

    These are the pixels, standardised per patch if `norm_pix`. The variance is the unbiased one (n − 1), as in the
    reference implementation.
    """
    patches = patchify(images, patch_size)
    if not norm_pix:
        return patches
    variance, mean = torch.var_mean(patches, dim=-1, keepdim=True, correction=1)
    return (patches - mean) / (variance + TARGET_EPS).sqrt()


def reconstruction_loss(predictions: Tensor, targets: Tensor, removed: Tensor) -> Tensor:
    """Average the squared error over the removed patches.

    A patch's error is the mean over its values; the mean over removed patches is taken batch-wide.

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
    """Apply a transformer block to the first token alone: (B, D).

    The other ones of `tokens` (B, T, D) only give keys and values.
    """
    # The last block of an encoder whose first token alone is read: what it makes of the others would be thrown away. So
    # only the first token gets a query, and only it goes through the projection and the MLP. The steps are those of
    # timm's `Block`: x + ls1(attention(norm1(x))), then x + ls2(mlp(norm2(x))); ls1 and ls2 are LayerScale's gains, or
    # change nothing.
    attention = cast(Attention, block.attn)
    batch, length, width = tokens.shape
    first, heads = tokens[:, :1], (attention.num_heads, width // attention.num_heads)
    hidden = block.norm1(tokens)
    # timm keeps the three projections in one matrix (3·D, D), in the order query, key, value: D rows, then 2·D.
    (query_weight, weight), (query_bias, bias) = (
        torch.split(parameter, [width, 2 * width]) for parameter in (attention.qkv.weight, attention.qkv.bias)
    )
    query = linear(hidden[:, :1], query_weight, query_bias).view(batch, 1, *heads).transpose(1, 2)
    key, value = linear(hidden, weight, bias).view(batch, length, 2, *heads).permute(2, 0, 3, 1, 4).unbind()
    rate = attention.attn_drop.p if attention.training else 0.0
    attended = attend(query, key, value, None, rate).transpose(1, 2).flatten(2)
    first = first + block.ls1(attention.proj_drop(attention.proj(attended)))
    output: Tensor = first + block.ls2(block.mlp(block.norm2(first)))
    return output[:, 0]


# ------------------------------------------------------------------------------------------------ the network


class Decoder(nn.Module):
    """From encoded visible tokens to pixel values of every patch.

    Its parts are mask tokens, positions, blocks, norm and projection.
    """

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
        """Predict the pixel values of all patches from tokens.

        The tokens are (B, 1 + k, D), CLS first; the values (B, K, patch·patch·3). `block` applies a block to tokens.
        """
        tokens = self.embed(tokens)
        batch, patches = mask.removed.shape
        # A mask token m everywhere, then the visible ones at their own positions. Example: of four patches [2 0] were
        # kept, as tokens [a b]: restored is [b m a m].
        index = mask.kept.unsqueeze(-1).expand(-1, -1, tokens.shape[-1])
        restored = self.mask_token.to(tokens.dtype).expand(batch, patches, -1).scatter(1, index, tokens[:, 1:])
        hidden = torch.cat([tokens[:, :1], restored], dim=1) + self.pos_embed
        for layer in cast("list[Block]", self.blocks):
            hidden = block(layer, hidden)
        predictions: Tensor = self.predict(self.norm(hidden)[:, 1:])
        return predictions


class ImageModel(Model):
    """A vision transformer with a decoder, a classifier, or neither.

    The decoder is that of a masked auto-encoder, the classifier a linear one on the CLS token.

    `dropout` is that of the released fine-tuning code: after the positions, after the attention's output projection and
    after the MLP, never inside the MLP. Encoder positions are trained only where a stage has labels, as in the released
    fine-tuning code; the decoder's never. Registers stand between CLS and the patches. They are never masked, and the
    decoder does not see them.
    """

    POSITIONS = ("pos_embed",)
    TOKENS = ("cls_token", "reg_token", "mask_token")
    BLOCKS = "blocks"
    ATTENTION = (("attn.qkv.weight", ("query", "key", "value")),)
    FINAL = ("norm.",)
    # LayerScale multiplies each channel as the gain of a norm does: it decays where those do.
    GAINS = ("ls1.gamma", "ls2.gamma")
    COMPILED = (block_of_all, block_of_first)

    encoder: VisionTransformer
    decoder: Decoder | None
    head: nn.Linear | None
    modality = "image"

    def __init__(
        self,
        backbone: MaskedAutoEncoder,
        *,
        classes: int | None,
        decoder: bool,
        dropout: float | None,
        labelled: bool,
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
            init_values=backbone.layer_scale,
            reg_tokens=backbone.registers,
            no_embed_class=backbone.positioned == "patches",
            pre_norm=backbone.pre_norm,
            pos_drop_rate=rate,
            proj_drop_rate=rate,
            weight_init="skip",
            norm_layer=_norm_layer(backbone),
        )
        if backbone.positioned == "cls_and_patches":  # which timm does not have
            self.encoder.pos_embed = nn.Parameter(torch.empty(1, 1 + backbone.patches, backbone.width))
        _initialise(self.encoder, backbone)
        assert self.encoder.pos_embed is not None
        self.encoder.pos_embed.requires_grad_(labelled)
        self.head = None if classes is None else nn.Linear(backbone.width, classes)
        if self.head is not None:
            nn.init.trunc_normal_(self.head.weight, std=0.02)
            nn.init.zeros_(self.head.bias)
        self.decoder = Decoder(backbone, rate) if decoder else None
        if self.decoder is not None:
            _initialise(self.decoder, backbone)
        use_dropout(self)

    def features(self, inputs: Tensor, embeddings: Tensor | None = None) -> Tensor:
        # All blocks but the last see every token; of the last one only the first token is computed.
        tokens = self._tokens(self.embed(inputs) if embeddings is None else embeddings)
        *blocks, last = cast("list[Block]", self.encoder.blocks)
        for block in blocks:
            tokens = self._run(block_of_all)(block, tokens)
        features: Tensor = self.encoder.norm(self._run(block_of_first)(last, tokens))
        return features

    def embed(self, inputs: Tensor) -> Tensor:
        return self._project(self._patches(inputs))

    def draw_mask(self, inputs: Tensor, generator: torch.Generator) -> PatchMask:
        noise = torch.rand(len(inputs), self.backbone.patches, generator=generator, dtype=torch.float32)
        return mask_from_noise(noise, self.backbone.mask_ratio)

    def masked_predictions(self, inputs: Tensor, mask: PatchMask) -> Tensor:
        assert self.decoder is not None, "this model was built without a decoder"
        # The encoder computes only the patches that are kept, at their own positions; the decoder then gets mask tokens
        # for the others. That makes pre-training cheap: with a ratio of 0.75 the encoder sees a quarter of the patches.
        patches = _gathered(self._patches(inputs), mask.kept)
        tokens = self._tokens(self._project(patches), mask.kept)
        block_of_tokens = self._run(block_of_all)
        for block in cast("list[Block]", self.encoder.blocks):
            tokens = block_of_tokens(block, tokens)
        encoded = self.encoder.norm(tokens)
        if registers := self.backbone.registers:
            encoded = torch.cat([encoded[:, :1], encoded[:, 1 + registers :]], dim=1)
        predictions: Tensor = self.decoder(encoded, mask, block_of_tokens)
        return predictions

    def masked_loss(self, inputs: Tensor, mask: PatchMask) -> Tensor:
        targets = patch_targets(inputs, self.backbone.patch_size, self.backbone.norm_pix_loss)
        return reconstruction_loss(self.masked_predictions(inputs, mask), targets, mask.removed)

    def _patches(self, inputs: Tensor) -> Tensor:
        """Cut images into patch vectors (B, K, patch·patch·3), normalised as the weights want it."""
        backbone = self.backbone
        if (backbone.pixel_mean, backbone.pixel_std) != (IMAGENET_MEAN, IMAGENET_STD):
            inputs = renormalised(inputs, backbone.pixel_mean, backbone.pixel_std)
        return patchify(inputs, backbone.patch_size)

    def _project(self, patches: Tensor) -> Tensor:
        """Project patch vectors (B, K, patch·patch·3) to embeddings (B, K, D).

        The weights are those of timm's convolution, which sees every patch once.
        """
        # A convolution whose stride is its kernel's size is a linear map of each patch. Its weight (D, 3, p, p) is
        # brought into the order of patch vectors, (D, p, p, 3). This way patches that are removed need not be
        # projected.
        projection = self.encoder.patch_embed.proj
        return linear(patches, projection.weight.permute(0, 2, 3, 1).flatten(1), projection.bias)

    def _tokens(self, embeddings: Tensor, kept: Tensor | None = None) -> Tensor:
        """Build the encoder's input (B, 1 + R + K, D).

        CLS comes first, then the R registers, then the patches, at all positions or at those `kept` (B, K).
        """
        # The table has positions for the patches, and before them for none, the first (CLS) or all of the other tokens.
        # With two registers and positions [p q r s], where the images have three patches [a b c]:
        #
        #     [CLS + p, register, register, a + q, b + r, c + s]
        #
        encoder, table, batch = self.encoder, self._positions, len(embeddings)
        assert encoder.cls_token is not None
        others: Tensor = encoder.cls_token
        if encoder.reg_token is not None:
            others = torch.cat([others, encoder.reg_token], dim=1)
        positioned = table.shape[1] - self.backbone.patches
        positions = table[:, positioned:]
        if kept is not None:
            positions = _gathered(positions.expand(batch, -1, -1), kept)
        others = torch.cat([others[:, :positioned] + table[:, :positioned], others[:, positioned:]], dim=1)
        tokens: Tensor = torch.cat([others.expand(batch, -1, -1), embeddings + positions], dim=1)
        return cast(Tensor, encoder.norm_pre(encoder.pos_drop(tokens)))

    @property
    def _positions(self) -> Tensor:
        table = self.encoder.pos_embed
        assert table is not None
        return table

    def resampled(self, name: str, tensor: Tensor, method: Resampling) -> Tensor:
        if name != "encoder.pos_embed":
            return tensor
        # Positions of 37 x 37 patches, DINOv2's own, become 16 x 16 for images of 224 pixels; those of CLS stay. timm's
        # function computes what transformers does, too, where it is told not to filter.
        side = self.backbone.image_size // self.backbone.patch_size
        others = self._positions.shape[1] - self.backbone.patches
        table: Tensor = resample_abs_pos_embed(
            tensor, [side, side], num_prefix_tokens=others, antialias=method == "antialiased"
        )
        return table


def _gathered(values: Tensor, index: Tensor) -> Tensor:
    """Gather the vectors at `index` (B, k): (B, k, D). `values` are (B, K, D)."""
    return values.gather(1, index.unsqueeze(-1).expand(-1, -1, values.shape[-1]))


def _norm_layer(backbone: MaskedAutoEncoder) -> type[nn.Module]:
    # A function where a class is expected: timm calls it with the width.
    return cast("type[nn.Module]", partial(nn.LayerNorm, eps=backbone.norm_eps))


def _mlp_ratio(mlp_width: int, width: int) -> float:
    # timm truncates width · ratio; the half keeps rounding from losing a unit.
    return (mlp_width + 0.5) / width


def _initialise(part: VisionTransformer | Decoder, backbone: MaskedAutoEncoder) -> None:
    """Initialise as the masked auto-encoder does. Also turns off the dropout that timm puts inside the MLP."""
    for module in part.modules():
        if isinstance(module, nn.Linear):
            nn.init.xavier_uniform_(module.weight)
            nn.init.zeros_(module.bias)
        elif isinstance(module, nn.Conv2d):
            nn.init.xavier_uniform_(module.weight.view(module.out_channels, -1))  # a linear map of the patch
        elif isinstance(module, Mlp):
            module.drop1.p = 0.0
    tokens = [part.mask_token] if isinstance(part, Decoder) else [part.cls_token, part.reg_token]
    for token in tokens:
        if token is not None:
            nn.init.normal_(token, std=0.02)
    grid = backbone.image_size // backbone.patch_size
    with torch.no_grad():
        assert part.pos_embed is not None
        part.pos_embed.zero_()[:, -(grid**2) :] = sincos_positions(part.pos_embed.shape[-1], grid, cls=False)
