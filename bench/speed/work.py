"""What is measured: four networks, three kinds of stages and who trains them; imports no torch."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, Literal, get_args

from baselines import finetune, tapt
from bench.planning.backbones import ENTRIES
from bench.specs import Schedule
from bench.specs.architectures import MaskedAutoEncoder, MaskedLanguageModel
from bench.specs.objectives import AdamW

Kind = Literal["finetune", "further_pretrain", "self_distill"]
Precision = Literal["float32", "tf32", "bfloat16"]
KINDS: tuple[Kind, ...] = get_args(Kind)
CLASSES = 100
GPU_EPOCH = 16

OURS, COMPILED = "ours", "ours_compiled"
RELEASED, SAME, BARE = "released", "same", "bare"
TRAINER, TRAINER_COMPILED = "trainer", "trainer_compiled"

BACKBONES: dict[str, Any] = {backbone.name: backbone for backbone in ENTRIES}
MINILM: dict[str, Any] = {"width": 384, "depth": 6, "mlp_width": 1536, "mask_id": 103}
MINILM |= {"special_ids": (0, 100, 101, 102, 103)}
"""Where a MiniLM, which the suite has no entry of, differs from BERT-base."""


@dataclass(frozen=True)
class Network:
    """A backbone, and a CPU's largest batch and longest epoch, in batches."""

    backbone: MaskedAutoEncoder | MaskedLanguageModel
    cpu_batch: int
    cpu_epoch: int


NETWORKS = {
    "vit_tiny_64": Network(BACKBONES["vit_mae_tiny64"], 64, 4),
    "vit_base_224": Network(BACKBONES["vit_mae_base"], 4, 2),
    "minilm": Network(MaskedLanguageModel("minilm", None, "none", "0" * 64, **MINILM), 16, 8),
    "roberta_base": Network(BACKBONES["roberta_base"], 8, 4),
}


@dataclass(frozen=True)
class Work:
    """One kind of stage on one network and device.

    Everyone who is compared trains the same. `quick` shrinks the network and the batch, for smoke runs whose figures
    mean nothing.
    """

    kind: Kind
    network: str
    device: str = "cpu"
    threads: int = 1
    precision: Precision = "float32"
    quick: bool = False

    @property
    def backbone(self) -> MaskedAutoEncoder | MaskedLanguageModel:
        """The network's architecture; a small one of its modality for smoke runs."""
        backbone = NETWORKS[self.network].backbone
        if not self.quick:
            return backbone
        small: dict[str, Any] = {"width": 24, "depth": 1, "heads": 3, "mlp_width": 48}
        if isinstance(backbone, MaskedAutoEncoder):
            decoder = {f"decoder_{name}": value for name, value in small.items()}
            return dataclasses.replace(backbone, image_size=4 * backbone.patch_size, **small, **decoder)
        mask_id = 199  # the last of the vocabulary, as of special_ids
        special_ids = (*backbone.special_ids[:-1], mask_id)
        return dataclasses.replace(backbone, vocabulary=mask_id + 1, mask_id=mask_id, special_ids=special_ids, **small)

    @property
    def modality(self) -> Literal["image", "text"]:
        """What the network reads."""
        return self.backbone.MODALITY

    @property
    def labelled(self) -> bool:
        """Whether the stage learns from labels."""
        return self.kind == "finetune"

    @property
    def schedule(self) -> Schedule:
        """The papers' schedule; a round of self-distillation has that of further pre-training."""
        return (finetune.SCHEDULES if self.labelled else tapt.SCHEDULES)[self.modality]

    @property
    def optimizer(self) -> AdamW:
        """The papers' optimiser."""
        return AdamW() if self.labelled else tapt.OPTIMIZERS[self.modality]

    @property
    def on_cpu(self) -> bool:
        """Whether the device is a CPU."""
        return self.device == "cpu"

    @property
    def batch_size(self) -> int:
        """Examples of a step: the paper's number, or less on a CPU."""
        batch = self.schedule.batch_size
        if self.on_cpu:
            batch = min(batch, NETWORKS[self.network].cpu_batch)
        return min(batch, 4) if self.quick else batch

    @property
    def epoch(self) -> int:
        """Steps of an epoch; all examples are seen once, in full batches."""
        return 2 if self.quick else NETWORKS[self.network].cpu_epoch if self.on_cpu else GPU_EPOCH

    @property
    def examples(self) -> int:
        """How many examples there are."""
        return self.batch_size * self.epoch

    @property
    def unit(self) -> int:
        """The least number of steps to time.

        For texts that is a whole epoch, so that everyone reads the same tokens.
        """
        return self.epoch if self.modality == "text" else 1
