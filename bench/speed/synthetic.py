"""Random examples in memory, of the shapes that real tasks have, read through the suite's own classes."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from bench.data.examples import ImageExamples, TextExamples
from bench.interfaces.examples import Examples
from bench.specs.architectures import MaskedAutoEncoder
from bench.speed.work import CLASSES, Work

LENGTHS = "log-normal around 40 tokens, from 8 to 256"
"""How long the texts are, in words: skewed as those of classification tasks."""


def examples(work: Work, labelled: bool) -> Examples:
    """Make the examples of one line; the same ones for everyone who is compared."""
    random = np.random.default_rng(0)
    rows = np.arange(work.examples)
    labels = torch.from_numpy(random.integers(0, CLASSES, work.examples)) if labelled else None
    backbone = work.backbone
    if isinstance(backbone, MaskedAutoEncoder):
        shape = (work.examples, 3, backbone.image_size, backbone.image_size)
        return ImageExamples(rows, labels, random.integers(0, 256, shape, dtype=np.uint8))
    lengths = np.clip(random.lognormal(np.log(40), 0.6, work.examples).round(), 8, 256).astype(np.int64)
    ordinary = np.setdiff1d(np.arange(backbone.vocabulary), backbone.special_ids)
    tokens = random.choice(ordinary, lengths.sum()).astype(np.int32)
    return TextExamples(rows, labels, tokens, np.concatenate([[0], np.cumsum(lengths)]), None, backbone.pad_id)


def images(examples: Examples) -> Tensor:
    """Give all images as normalised floats (N, 3, H, W), for those who do without the suite's input path."""
    inputs = examples.inputs(torch.arange(len(examples)), torch.device("cpu"))
    assert isinstance(inputs, Tensor)
    return inputs


def texts(examples: Examples) -> list[Tensor]:
    """Give the tokens of every text, without padding."""
    alone = (examples.inputs(torch.tensor([i]), torch.device("cpu")) for i in range(len(examples)))
    return [inputs["input_ids"][inputs["attention_mask"].bool()] for inputs in alone]
