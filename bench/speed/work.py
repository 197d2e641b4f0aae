"""What is measured: four networks, three kinds of stages and who trains them, as plain data without torch."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from typing import Any, Literal, get_args

from bench.specs.architectures import MaskedAutoEncoder, MaskedLanguageModel

Kind = Literal["finetune", "further_pretrain", "self_distill"]
Precision = Literal["float32", "tf32", "bfloat16"]
KINDS: tuple[Kind, ...] = get_args(Kind)
CLASSES = 100

OURS, COMPILED = "ours", "ours_compiled"
RELEASED, SAME, BARE = "released", "same", "bare"
TRAINER, TRAINER_COMPILED = "trainer", "trainer_compiled"


@dataclass(frozen=True)
class Network:
    """A backbone and the largest batch and longest epoch (in batches) that a CPU is asked for."""

    backbone: MaskedAutoEncoder | MaskedLanguageModel
    cpu_batch: int
    cpu_epoch: int


def _bert(name: str, **fields: Any) -> MaskedLanguageModel:
    return MaskedLanguageModel(name=name, weights=None, tokenizer="none", tokenizer_checksum="0" * 64, **fields)


NETWORKS: dict[str, Network] = {
    "vit_tiny_64": Network(
        MaskedAutoEncoder(
            name="vit_tiny_64",
            weights=None,
            image_size=64,
            patch_size=8,
            width=192,
            heads=3,
            mlp_width=768,
            decoder_width=128,
            decoder_depth=2,
            decoder_heads=4,
            decoder_mlp_width=512,
        ),
        64,
        4,
    ),
    "vit_base_224": Network(MaskedAutoEncoder(name="vit_base_224", weights=None), 4, 2),
    "minilm": Network(
        _bert("minilm", width=384, depth=6, mlp_width=1536, pad_id=0, mask_id=103, special_ids=(0, 100, 101, 102, 103)),
        16,
        8,
    ),
    "roberta_base": Network(
        _bert(
            "roberta_base",
            network="roberta",
            vocabulary=50_265,
            positions=514,
            segments=1,
            pad_id=1,
            mask_id=50_264,
            special_ids=(0, 1, 2, 3, 50_264),
            norm_eps=1e-5,
        ),
        8,
        4,
    ),
}

GPU_EPOCH = 16
BATCHES: dict[tuple[str, Kind], int] = {
    ("image", "finetune"): 32,
    ("image", "further_pretrain"): 64,
    ("image", "self_distill"): 64,
    ("text", "finetune"): 16,
    ("text", "further_pretrain"): 128,
    ("text", "self_distill"): 128,
}
"""The papers' batches, used wherever the device is not a CPU."""


@dataclass(frozen=True)
class Work:
    """One kind of stage on one network and device: what everyone who is compared trains.

    `quick` shrinks the network and the batch, for smoke runs whose figures mean nothing.
    """

    kind: Kind
    network: str
    device: str = "cpu"
    threads: int = 1
    precision: Precision = "float32"
    quick: bool = False

    @classmethod
    def from_json(cls, text: str) -> Work:
        """Read what `to_json` wrote."""
        return cls(**json.loads(text))

    def to_json(self) -> str:
        """Write the work on one line, for the process that does it."""
        return json.dumps(dataclasses.asdict(self))

    @property
    def name(self) -> str:
        """`kind/network`."""
        return f"{self.kind}/{self.network}"

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
    def on_cpu(self) -> bool:
        """Whether the device is a CPU."""
        return self.device == "cpu"

    @property
    def batch_size(self) -> int:
        """Examples of a step: the paper's number, or as many as a CPU can be asked for."""
        batch = BATCHES[self.modality, self.kind]
        if self.on_cpu:
            batch = min(batch, NETWORKS[self.network].cpu_batch)
        return min(batch, 4) if self.quick else batch

    @property
    def epoch(self) -> int:
        """Steps of an epoch, in which every example is seen once; all batches are full."""
        return 2 if self.quick else NETWORKS[self.network].cpu_epoch if self.on_cpu else GPU_EPOCH

    @property
    def examples(self) -> int:
        """How many examples there are."""
        return self.batch_size * self.epoch

    @property
    def unit(self) -> int:
        """The steps that are timed at least: of texts a whole epoch, so that everyone reads the same tokens."""
        return self.epoch if self.modality == "text" else 1
