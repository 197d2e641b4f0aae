"""The examples of a stage as training and methods see them, whatever they were read from."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from bench.interfaces.model import Inputs


class Examples(ABC):
    """The examples that one stage reads.

    `labels` (N,) or None where the stage may not see them; `lengths` (N,) in tokens, None for images; `dtype` is that
    of float inputs and may be set.
    """

    def __init__(self, rows: npt.NDArray[np.int64], labels: Tensor | None, lengths: npt.NDArray[Any] | None) -> None:
        self.labels = labels
        self.lengths = lengths
        self.dtype: torch.dtype = torch.float32
        self._rows = rows

    def __len__(self) -> int:
        return len(self._rows)

    @abstractmethod
    def inputs(self, index: Tensor, device: torch.device, flip: Tensor | None = None) -> Inputs:
        """Read the inputs of the examples at `index` (B,).

        They are sent to `device`; `index` and `flip` (B,) lie on the host.
        """
