"""Random examples in memory, of the shapes that real tasks have, read through the suite's own classes."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from bench.data.examples import ImageExamples, TextExamples
from bench.device import CPU
from bench.interfaces.examples import Examples
from bench.specs.architectures import MaskedAutoEncoder
from bench.speed.work import CLASSES, Work

Tensors = dict[str, Tensor]


def examples(work: Work) -> Examples:
    """Make the examples of one line, the same for all compared.

    The lengths of texts are skewed as those of classification tasks: log-normal around 40 tokens, from 8 to 256.
    """
    random = np.random.default_rng(0)
    rows = np.arange(work.examples)
    labels = torch.from_numpy(random.integers(0, CLASSES, work.examples)) if work.labelled else None
    backbone = work.backbone
    if isinstance(backbone, MaskedAutoEncoder):
        shape = (work.examples, 3, backbone.image_size, backbone.image_size)
        return ImageExamples(rows, labels, random.integers(0, 256, shape, dtype=np.uint8))
    lengths = np.clip(random.lognormal(np.log(40), 0.6, work.examples).round(), 8, 256).astype(np.int64)
    ordinary = np.setdiff1d(np.arange(backbone.vocabulary), backbone.special_ids)
    tokens = random.choice(ordinary, lengths.sum()).astype(np.int32)
    return TextExamples(rows, labels, tokens, np.concatenate([[0], np.cumsum(lengths)]), None, backbone.pad_id)


def rows(work: Work) -> list[Tensors]:
    """Return every example by itself, for loops without the suite's input path.

    Images are normalised floats `pixel_values` (3, H, W), texts `input_ids` and `attention_mask` (T,), unpadded.
    """
    source, result = examples(work), []
    for i in range(len(source)):
        inputs = source.inputs(torch.tensor([i]), CPU)
        named = {"pixel_values": inputs} if isinstance(inputs, Tensor) else inputs
        row = {name: values[0] for name, values in named.items()}
        result.append(row if source.labels is None else {**row, "labels": source.labels[i]})
    return result


def collated(rows: Sequence[Tensors], work: Work) -> Tensors:
    """Join examples to a batch; texts are padded to the longest one."""
    batch = {name: [row[name] for row in rows] for name in rows[0]}
    padding = {"input_ids": getattr(work.backbone, "pad_id", 0), "attention_mask": 0}
    return {
        name: pad_sequence(values, True, padding[name]) if name in padding else torch.stack(values)
        for name, values in batch.items()
    }
