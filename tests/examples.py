"""Small stages that several tests build on, and masks of tokens that a test chooses."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from bench.specs import RANDOM, Data, Execution, Schedule, Stage
from bench.specs.architectures import MaskedAutoEncoder, MaskedLanguageModel
from bench.specs.objectives import AdamW, CrossEntropy, MaskedAutoEncoding

if TYPE_CHECKING:
    from torch import Tensor

    from bench.models.text import TokenMask


def tiny_backbone(**changes: Any) -> MaskedAutoEncoder:
    sizes = {"image_size": 8, "patch_size": 2, "width": 16, "depth": 1, "heads": 2, "mlp_width": 32}
    decoder = {"decoder_width": 16, "decoder_depth": 1, "decoder_heads": 2, "decoder_mlp_width": 32}
    return MaskedAutoEncoder(**{"name": "tiny", "weights": None, **sizes, **decoder, **changes})


def tiny_text_backbone(**changes: Any) -> MaskedLanguageModel:
    sizes = {"vocabulary": 40, "width": 16, "depth": 1, "heads": 2, "mlp_width": 24, "max_length": 12}
    unprepared = {"name": "tiny", "weights": None, "tokenizer": "none", "tokenizer_checksum": None}
    return MaskedLanguageModel(**{**unprepared, **sizes, **changes})


def pretraining(**changes: Any) -> Stage:
    fields = {
        "name": "source_pretrain",
        "objective": MaskedAutoEncoding(),
        "data": Data("photographs", "train", False, "0" * 64, 100, None),
        "evaluation": None,
        "backbone": tiny_backbone(),
        "schedule": Schedule(steps=10),
        "optimizer": AdamW(),
        "constraint": None,
        "init": RANDOM,
        "teacher": None,
        "execution": Execution(),
        "seed": 0,
    }
    return Stage(**{**fields, **changes})


def finetuning(**changes: Any) -> Stage:
    fields = {
        "name": "finetune",
        "objective": CrossEntropy(),
        "data": Data("digits", "train", True, "1" * 64, 50, 10),
        "evaluation": Data("digits", "test", True, "2" * 64, 20, 10),
        "backbone": tiny_backbone(weights=pretraining()),
        "init": "pretrained",
        "seed": 3,
    }
    return pretraining(**{**fields, **changes})


def token_mask(input_ids: Tensor, labels: Tensor) -> TokenMask:
    """A mask that shows `input_ids` (B, T) and selects where `labels` (B, T) are not -100, without rows behind."""
    from bench.models.text import TokenMask

    positions = (labels.flatten() != -100).nonzero()[:, 0]
    return TokenMask(input_ids, positions, labels.flatten()[positions])


def evaluate(stage: Stage, model: Any, examples: Any, device: Any) -> dict[str, float]:
    """The metrics of a split."""
    from bench.training.evaluate import metrics, predict

    return metrics(*predict(stage, model, examples, device))
