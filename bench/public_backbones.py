"""The public backbones of the papers: architectures whose weights are checkpoints of the Hugging Face hub.

None of them is fetched yet (`checksum=None`), so stages on them can be planned but not run. A revision is pinned when
the weights are.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from bench.backbones import MaskedAutoEncoder, MaskedLanguageModel
from bench.registry import register_backbone
from bench.specs import PublicWeights

if TYPE_CHECKING:
    from bench.cell import Cell


@register_backbone(MaskedAutoEncoder)
def vit_mae_base(cell: Cell) -> MaskedAutoEncoder:
    """ViT-Base/16 at 224 px, pre-trained on ImageNet-1k by masked auto-encoding (He et al. 2022)."""
    architecture = MaskedAutoEncoder(
        name="vit_mae_base",
        weights=PublicWeights(repository="facebook/vit-mae-base"),
        image_size=224,
        patch_size=16,
        width=768,
        depth=12,
        heads=12,
        mlp_width=3072,
        decoder_width=512,
        decoder_depth=8,
        decoder_heads=16,
        decoder_mlp_width=2048,
        norm_eps=1e-12,
        decoder_norm_eps=1e-5,  # of transformers 4.17, which Lee et al.'s released code pins; 1e-12 in later versions
        mask_ratio=0.75,
        norm_pix_loss=True,
    )
    return cell.configure(architecture, "backbone")


@register_backbone(MaskedLanguageModel)
def roberta_base(cell: Cell) -> MaskedLanguageModel:
    """RoBERTa-base (Liu et al. 2019), with its own vocabulary."""
    return _roberta(cell, "roberta_base", "FacebookAI/roberta-base", width=768, depth=12, heads=12)


@register_backbone(MaskedLanguageModel)
def roberta_large(cell: Cell) -> MaskedLanguageModel:
    """RoBERTa-large: a teacher for `kd`."""
    return _roberta(cell, "roberta_large", "FacebookAI/roberta-large", width=1024, depth=24, heads=16)


def _roberta(cell: Cell, name: str, repository: str, width: int, depth: int, heads: int) -> MaskedLanguageModel:
    architecture = MaskedLanguageModel(
        name=name,
        weights=PublicWeights(repository=repository),
        tokenizer=repository,
        tokenizer_checksum=None,
        vocabulary=50_265,
        width=width,
        depth=depth,
        heads=heads,
        mlp_width=4 * width,
        max_length=512,
        norm_eps=1e-5,
        dropout=0.1,
        mask_ratio=0.15,
    )
    return cell.configure(architecture, "backbone")
