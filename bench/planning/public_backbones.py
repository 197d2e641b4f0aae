"""Backbones whose weights were made elsewhere: the public ones of the papers, and those that a gin file declares.

What is prepared of a checkpoint tells its architecture; `bench.planning.catalogue` says where each comes from.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, TypeVar

from bench.errors import InputError
from bench.planning.registry import register_backbone, register_own_backbones
from bench.specs import Backbone, PublicWeights
from bench.specs.architectures import MaskedAutoEncoder, MaskedLanguageModel

if TYPE_CHECKING:
    from bench.planning.cell import Cell
    from bench.pretrained.checkpoints import Prepared

B = TypeVar("B", bound=Backbone)

NOT_FETCHED = PublicWeights(repository=None)


@register_backbone(MaskedAutoEncoder)
def vit_mae_base(cell: Cell) -> MaskedAutoEncoder:
    """ViT-Base/16 at 224 px, pre-trained on ImageNet-1k by masked auto-encoding (He et al. 2022)."""
    return _vit_mae(cell, width=768, depth=12, heads=12)


@register_backbone(MaskedAutoEncoder)
def vit_mae_large(cell: Cell) -> MaskedAutoEncoder:
    """ViT-Large/16 at 224 px, pre-trained like vit_mae_base."""
    return _vit_mae(cell, width=1024, depth=24, heads=16)


@register_backbone(MaskedLanguageModel)
def roberta_base(cell: Cell) -> MaskedLanguageModel:
    """RoBERTa-base (Liu et al. 2019), with its own vocabulary."""
    return _roberta(cell, width=768, depth=12, heads=12)


@register_backbone(MaskedLanguageModel)
def roberta_large(cell: Cell) -> MaskedLanguageModel:
    """RoBERTa-large: a teacher for `kd`."""
    return _roberta(cell, width=1024, depth=24, heads=16)


@register_own_backbones
def own_backbone(cell: Cell) -> Backbone:
    """A checkpoint of the user's, of the modality of the cell's task: everything is as its own files say."""
    name = cell.task.backbone
    prepared = cell.checkpoint()
    fields = prepared.architecture if prepared is not None else {}
    if (prepared.modality if prepared is not None else cell.task.modality) == "image":
        return _checkpoint(cell, MaskedAutoEncoder(name=name, weights=NOT_FETCHED, **fields))
    return _checkpoint(
        cell, MaskedLanguageModel(name=name, weights=NOT_FETCHED, tokenizer=None, tokenizer_checksum=None, **fields)
    )


def _vit_mae(cell: Cell, width: int, depth: int, heads: int) -> MaskedAutoEncoder:
    architecture = MaskedAutoEncoder(
        name=cell.task.backbone,
        weights=NOT_FETCHED,
        image_size=224,
        patch_size=16,
        width=width,
        depth=depth,
        heads=heads,
        mlp_width=4 * width,
        decoder_width=512,
        decoder_depth=8,
        decoder_heads=16,
        decoder_mlp_width=2048,
        norm_eps=1e-12,
        decoder_norm_eps=1e-5,  # of transformers 4.17, which Lee et al.'s released code pins; 1e-12 in later versions
        mask_ratio=0.75,
        norm_pix_loss=True,
    )
    return _checkpoint(cell, architecture)


def _roberta(cell: Cell, width: int, depth: int, heads: int) -> MaskedLanguageModel:
    architecture = MaskedLanguageModel(
        name=cell.task.backbone,
        weights=NOT_FETCHED,
        tokenizer=None,
        tokenizer_checksum=None,
        network="roberta",
        vocabulary=50_265,
        width=width,
        depth=depth,
        heads=heads,
        mlp_width=4 * width,
        max_length=512,
        positions=514,
        segments=1,
        pad_id=1,
        mask_id=50_264,
        special_ids=(0, 1, 2, 3, 50_264),
        norm_eps=1e-5,
        dropout=0.1,
        mask_ratio=0.15,
    )
    return _checkpoint(cell, architecture)


def _refuse_others(official: Backbone, prepared: Prepared) -> None:
    """Refuse another network that was prepared, from a copy, under the name of a public one."""
    found = {field: prepared.architecture.get(field) for field in official.FIXED}
    wrong = {field: tuple(value) if isinstance(value, list) else value for field, value in found.items()}
    wrong = {field: value for field, value in wrong.items() if value != getattr(official, field)}
    if prepared.modality != official.MODALITY or wrong:
        told = ", ".join(f"{field} {value}" for field, value in wrong.items())
        raise InputError(
            f"what is prepared as {official.name} is another network ({told}). Declare it under a name of its own "
            "(NAME/backbone.weights), and prepare the official one --again."
        )


def _checkpoint(cell: Cell, default: B) -> B:
    """The configured architecture with what is prepared of its weights.

    What the weights decide is theirs; refuses a binding that says otherwise.
    """
    prepared = cell.checkpoint()
    if prepared is None:
        return cell.configure(default, "backbone")
    if cell.is_official_checkpoint():
        _refuse_others(default, prepared)
    decided = {field: value for field, value in prepared.architecture.items() if field in default.FIXED}
    if isinstance(default, MaskedLanguageModel):
        decided["tokenizer_checksum"] = prepared.tokenizer_checksum
    weights = PublicWeights(prepared.repository, prepared.revision, prepared.checksum, prepared.fresh)
    default = dataclasses.replace(default, weights=weights, **decided)
    configured = cell.configure(default, "backbone")
    for field in default.FIXED:
        theirs, bound = getattr(default, field), getattr(configured, field)
        if bound != theirs:
            raise cell.blame(field, f"backbone.{field} = {bound}, but the weights of {default.name} have {theirs}.")
    return configured
