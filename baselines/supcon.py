"""Supervised contrastive learning (Khosla et al. 2020), the comparison of Lee et al. 2023, Table 5.

| paper (Khosla et al., Eq. 2)                    | here                                                          |
|-------------------------------------------------|---------------------------------------------------------------|
| z_i = Proj(Enc(x_i)), of length 1               | `features` (B, V, D): V views of each of B examples           |
| A(i): all vectors but i                         | the denominator, every view of every example but the anchor   |
| P(i): those of A(i) with i's label              | the positives; the mean over them stands outside the log      |
| τ                                               | `SupervisedContrastive.temperature`, 0.07                     |
| τ_base (released code only)                     | `SupervisedContrastive.base_temperature`, 0.07                |
| Proj: D -> D -> ReLU -> 128                     | `SupervisedContrastive.projection`, dropped after the stage   |
| x̃: two augmentations of each example            | `Batch.views`; see `bench.data.augment`                       |

    loss_i = −(τ / τ_base) · mean over p in P(i) of [z_i·z_p / τ − log Σ over a in A(i) of exp(z_i·z_a / τ)]

and the loss is the mean over all anchors; an anchor without positives adds 0 to the sum and still counts. Temperatures,
projection and augmentations are those of the released code. Its SGD with rate 0.05 is not: Lee et al. train with AdamW.

Lee et al. write "continue to pre-train the encoder with supervised contrastive loss while fine-tuning a randomly
initialized linear classifier with cross-entropy". Unstated there and chosen here:

- `supcon.mode` 'sequential' (default): a stage `supcon_pretrain`, then ordinary fine-tuning of everything. 'joint': one
  stage in which the classifier learns from features that it cannot change. 'probe': like 'sequential', but the encoder
  stays frozen while the classifier learns, as in Khosla et al.
- A classifier that cannot change its features reads them without dropout. It is the backbone's own head: linear for
  images, with one hidden layer for text.
- The contrastive stage trains like further pre-training (images: 20,000 steps, batch 64) unless `supcon_pretrain.…`
  says otherwise.
- A text has no augmentation: its two views are the same tokens, told apart by dropout (as SimCSE does; our choice).
- Position embeddings of images are trained in all three modes, as wherever labels are read.
- A view of an image is mirrored with probability 1/2; `supcon_pretrain.augmentation = 'none'` leaves only that out.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

from baselines.finetune import finetune
from baselines.tapt import OPTIMIZERS, SCHEDULES
from bench.methods import (
    AdamW,
    Batch,
    Cell,
    Context,
    Loss,
    Objective,
    Schedule,
    SpecError,
    Stage,
    State,
    declare,
    recipe,
)

if TYPE_CHECKING:
    from torch import Tensor

    from bench.interfaces.model import Model


def supervised_contrastive_loss(
    features: Tensor,
    labels: Tensor | None,
    temperature: float = 0.07,
    base_temperature: float = 0.07,
    contrast_mode: Literal["all", "one"] = "all",
) -> Tensor:
    """Return the contrastive loss of features (B, V, D).

    The caller has scaled them to length 1; labels are (B,). Without labels every example is a class of its own. Anchors
    are all vectors, or with 'one' the first views only; they are contrasted with all vectors in either case.
    """
    import torch

    # With 2 examples of one class and 2 views there are 4 vectors: a1, b1, a2, b2. For the anchor a1, `itself` is a1;
    # the positives are b1, a2 and b2, as all are of its class; the denominator runs over the same three. If b were of
    # another class, a2 would be the only positive, and the denominator would stay.
    examples, views, _ = features.shape
    vectors = features.transpose(0, 1).flatten(0, 1)  # first views first: (V·B, D)
    classes = torch.arange(examples, device=features.device) if labels is None else labels
    classes = classes.repeat(views)
    anchors = len(vectors) if contrast_mode == "all" else examples

    similarity = vectors[:anchors] @ vectors.T / temperature
    itself = torch.eye(anchors, len(vectors), dtype=torch.bool, device=features.device)
    positive = (classes[:anchors, None] == classes) & ~itself
    # The most negative number, not −inf: a single vector has nothing to be compared with and must not give NaN.
    others = similarity.masked_fill(itself, torch.finfo(similarity.dtype).min)
    log_probability = similarity - others.logsumexp(dim=1, keepdim=True)
    of_positives = log_probability.masked_fill(~positive, 0.0).sum(dim=1) / positive.sum(dim=1).clamp(min=1)
    return -(temperature / base_temperature) * of_positives.mean()


@dataclass(frozen=True)
class SupervisedContrastive(Objective):
    """Pull views of one class together, away from all others.

    The features are compared behind a projection that is dropped later.
    """

    VERSION: ClassVar[int] = 2
    NEEDS = frozenset({"labels", "views"})
    CAPTURABLE = True
    WHOLE_BATCH = True  # examples are contrasted with each other

    temperature: float = 0.07
    base_temperature: float = 0.07
    contrast_mode: Literal["all", "one"] = "all"
    projection: int = 128

    def check(self) -> None:
        self.require("temperature", 1e-6 <= self.temperature <= 1e6, "from a millionth to a million")
        legal = 1e-6 <= self.base_temperature <= 1e6
        self.require("base_temperature", legal, "from a millionth to a million")
        self.require("projection", 1 <= self.projection <= 10**5, "at least 1, at most 100000")

    def check_stage(self, stage: Stage) -> None:
        schedule = stage.schedule
        if schedule.batch_size < 2:
            raise SpecError("batch_size", f"stage {stage.name}: contrasts need a batch of at least 2 examples.")
        own = getattr(stage.backbone, "dropout", 0.0)
        dropout = own if schedule.dropout is None else schedule.dropout
        if stage.backbone.MODALITY == "text" and dropout == 0:
            raise SpecError(
                "dropout", f"stage {stage.name}: two views of a text differ by dropout alone; it must be above 0."
            )

    def begin(self, model: Model, teacher: Model | None, context: Context) -> State:
        from torch import nn

        head = nn.Sequential(nn.Linear(model.width, model.width), nn.ReLU(), nn.Linear(model.width, self.projection))
        return State(module=head.to(next(model.parameters()).dtype))

    def loss(self, model: Model, batch: Batch, state: State, context: Context) -> Loss:
        import torch
        from torch.nn.functional import normalize

        assert batch.views is not None and state.module is not None
        projected = torch.stack([state.module(model.features(view)) for view in batch.views], dim=1)
        # Divided by 0.07, similarities in half precision would be too coarse.
        with torch.autocast(projected.device.type, enabled=False):
            projected = projected.to(torch.promote_types(projected.dtype, torch.float32))
            temperatures = self.temperature, self.base_temperature
            features = normalize(projected, dim=-1)
            total = supervised_contrastive_loss(features, batch.labels, *temperatures, self.contrast_mode)
        return Loss(total, {"contrastive": total})


@dataclass(frozen=True)
class Probe(Objective):
    """Train a classifier on eval-mode features that it cannot change."""

    NEEDS = frozenset({"labels", "head"})
    CAPTURABLE = True

    def loss(self, model: Model, batch: Batch, state: State, context: Context) -> Loss:
        import torch
        from torch.nn.functional import cross_entropy

        assert model.head is not None and batch.labels is not None
        # Only the encoder: the head, which learns, keeps its dropout.
        mode = model.encoder.training  # False while activity is measured
        model.encoder.eval()
        with torch.no_grad():
            features = model.features(batch.inputs)
        model.encoder.train(mode)
        total = cross_entropy(model.head(features), batch.labels)
        return Loss(total, {"cross_entropy": total})


declare("supcon_pretrain", Schedule, AdamW)


def supcon_pretrain(cell: Cell, with_classifier: bool = False) -> Stage:
    """Continue to pre-train the encoder with the contrastive loss.

    With `with_classifier`, a classifier learns at the same time.
    """
    modality = cell.task.modality
    schedule = SCHEDULES[modality]
    if modality == "image":
        schedule = dataclasses.replace(schedule, augmentation="flip")
    contrast = cell.configure(SupervisedContrastive())
    return cell.stage(
        "supcon_joint" if with_classifier else "supcon_pretrain",
        objective=contrast + Probe() if with_classifier else contrast,
        schedule=cell.configure(schedule, "supcon_pretrain", "further_pretrain"),
        optimizer=cell.configure(OPTIMIZERS[modality], "supcon_pretrain", "further_pretrain"),
    )


@recipe()
def supcon(cell: Cell, mode: Literal["sequential", "joint", "probe"] = "sequential") -> Stage:
    """Contrastive pre-training with labels; the classifier comes later, with the encoder or without, or meanwhile."""
    if mode == "joint":
        return supcon_pretrain(cell, with_classifier=True)
    return finetune(cell, init=supcon_pretrain(cell), objective=Probe() if mode == "probe" else None)
