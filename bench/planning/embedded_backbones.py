"""The suite's own backbones: small networks that it pre-trains itself, on data that come with Python or on CIFAR-100.

Their weights are a stage of their own, started from random weights, so the plan caches source pre-training like any
other stage. It stands for a public checkpoint: its seed is 0 whatever the grid's seeds are.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, TypeVar

from bench.planning.registry import declare, register_backbone
from bench.specs import RANDOM, Backbone, Schedule
from bench.specs.architectures import MaskedAutoEncoder, MaskedLanguageModel
from bench.specs.objectives import AdamW, MaskedAutoEncoding

if TYPE_CHECKING:
    from bench.planning.cell import Cell

B = TypeVar("B", bound=Backbone)


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
    return _pretrained(
        cell,
        cell.configure(architecture, "backbone"),
        corpus="photographs",
        schedule=cell.configure(Schedule(steps=1500, batch_size=64, lr=2e-3, warmup_fraction=0.05), "source_pretrain"),
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
    return _pretrained(
        cell,
        cell.configure(architecture, "backbone"),
        corpus="docstrings",
        schedule=cell.configure(Schedule(steps=2500, batch_size=32, lr=1e-3, warmup_fraction=0.05), "source_pretrain"),
        optimizer=cell.configure(AdamW(betas=(0.9, 0.98)), "source_pretrain"),
    )


@register_backbone(MaskedAutoEncoder)
def vit_mae_tiny64(cell: Cell) -> MaskedAutoEncoder:
    """A ViT-Tiny masked auto-encoder at 64 px, pre-trained by the suite on the training images of CIFAR-100."""
    architecture = MaskedAutoEncoder(
        name="vit_mae_tiny64",
        weights=None,
        image_size=64,
        patch_size=8,
        width=192,
        depth=12,
        heads=3,
        mlp_width=768,
        decoder_width=128,
        decoder_depth=2,
        decoder_heads=4,
        decoder_mlp_width=512,
    )
    schedule = Schedule(steps=3000, batch_size=64, lr=1e-3, warmup_fraction=0.05, augmentation="flip")
    return _pretrained(
        cell,
        cell.configure(architecture, "backbone"),
        corpus="cifar100",
        schedule=cell.configure(schedule, "source_pretrain"),
        optimizer=cell.configure(AdamW(betas=(0.9, 0.95)), "source_pretrain"),
    )


def _pretrained(cell: Cell, architecture: B, corpus: str, schedule: Schedule, optimizer: AdamW) -> B:
    weights = cell.stage(
        "source_pretrain",
        objective=MaskedAutoEncoding(),
        schedule=schedule,
        optimizer=optimizer,
        init=RANDOM,
        backbone=architecture,
        data=cell.corpus_data(corpus),
        seed=0,
    )
    return dataclasses.replace(architecture, weights=weights)
