"""Layer-wise learning rates: layers near the input learn more slowly (Howard & Ruder 2018; Sun et al. 2019).

| source                                          | here                                                      |
|-------------------------------------------------|-----------------------------------------------------------|
| η_l = ξ · η_{l+1}                               | `LayerwiseAdamW.rate_scales`: ξ^(last depth − depth)      |
| ξ                                               | `LayerwiseAdamW.layer_decay`                              |

Depths are `Model.depths`: the embeddings have 0, the blocks come next, and what follows them (final norm, head) has the
schedule's full rate. Defaults: 0.95 for text (Sun et al., Table 5) and 0.75 for images, which Bao et al. (2022) search
around for a ViT-Base of masked image modelling. With 1 it is fine-tuning.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from baselines.finetune import finetune
from bench.methods import Activity, AdamW, Cell, Schedule, Stage, recipe

if TYPE_CHECKING:
    from bench.interfaces.model import Model

LAYER_DECAY = {"image": 0.75, "text": 0.95}


@dataclass(frozen=True)
class LayerwiseAdamW(AdamW):
    """AdamW whose rate falls from layer to layer towards the input."""

    layer_decay: float = 0.75

    def check(self) -> None:
        super().check()
        self.require("layer_decay", 0 < self.layer_decay <= 1, "in (0, 1]")

    def rate_scales(self, model: Model) -> Mapping[str, float]:
        depths = model.depths()
        last = max(depths.values())
        return {name: self.layer_decay ** (last - depth) for name, depth in depths.items()}

    def activity(self, schedule: Schedule, total_steps: int) -> dict[str, Activity]:
        meaning = "rate of a layer, relative to the one above it"
        return {"LayerwiseAdamW": Activity(self.layer_decay, meaning, self.layer_decay == 1)}


@recipe()
def llrd(cell: Cell) -> Stage:
    """Fine-tune with a lower rate for every layer further from the output."""
    default = LayerwiseAdamW(layer_decay=LAYER_DECAY[cell.task.modality])
    return finetune(cell, optimizer=cell.configure(default, "LayerwiseAdamW", "finetune"))
