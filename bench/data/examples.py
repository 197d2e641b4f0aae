"""The examples of one split as arrays: decoded or tokenised once, memory-mapped, read in batches."""

from __future__ import annotations

import functools
import itertools
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from bench.data.array_cache import Array, _Split
from bench.data.manifest import Manifest, read_manifest
from bench.data.subset import chosen_rows
from bench.device import free_memory, send
from bench.errors import InputError, NotPrepared
from bench.interfaces.examples import Examples
from bench.specs import Backbone, Data
from bench.specs.architectures import IMAGENET_MEAN, IMAGENET_STD, LanguageModel, MaskedAutoEncoder
from bench.store.manifest import prepare_again

IMAGES_AT_ONCE = 1024
"""How many images are copied to a GPU at once, through memory that torch keeps for the next copies."""


class ImageExamples(Examples):
    """Images from a uint8 array (N, 3, H, W).

    They are mapped from disk, or lie on a GPU if a quarter of its free memory will do.
    """

    def __init__(self, rows: npt.NDArray[np.int64], labels: Tensor | None, pixels: Array) -> None:
        super().__init__(rows, labels, None)
        self._pixels = pixels
        self._resident: dict[torch.device, Tensor | None] = {}

    def inputs(self, index: Tensor, device: torch.device, flip: Tensor | None = None) -> Tensor:
        """Read float images (B, 3, H, W), normalised. Those where `flip` (B,) is true are mirrored left to right."""
        # The rows are gathered where the pixels lie: on the host, then sent, or on the GPU that has them all.
        resident = self._on(device)
        if resident is None:
            pixels = send(torch.from_numpy(self._pixels[self._rows[index.numpy()]]), device)
        else:
            pixels = resident[send(index, device)]
        images = normalised(pixels, self.dtype)
        if flip is None:
            return images
        return torch.where(send(flip, device)[:, None, None, None], images.flip(3), images)

    def _on(self, device: torch.device) -> Tensor | None:
        if device.type != "cuda":
            return None
        if device not in self._resident:
            size = len(self) * self._pixels[0].nbytes
            self._resident[device] = self._copied_to(device) if size <= free_memory(device) // 4 else None
        return self._resident[device]

    def _copied_to(self, device: torch.device) -> Tensor:
        copy = torch.empty((len(self), *self._pixels.shape[1:]), dtype=torch.uint8, device=device)
        for start in range(0, len(self), IMAGES_AT_ONCE):
            some = slice(start, start + IMAGES_AT_ONCE)
            copy[some].copy_(send(torch.from_numpy(self._pixels[self._rows[some]]), device))
        return copy


def normalised(pixels: Tensor, dtype: torch.dtype) -> Tensor:
    """Normalise images of bytes (B, 3, H, W). The floats have about zero mean and unit variance."""
    images, (mean, std) = pixels.to(dtype), statistics(dtype, pixels.device)
    return images.div_(255).sub_(mean).div_(std)


def statistics(dtype: torch.dtype, device: torch.device) -> tuple[Tensor, Tensor]:
    """Return the mean and standard deviation of each channel (3, 1, 1). Images in [0, 1] are normalised by them."""
    return per_channel(IMAGENET_MEAN, dtype, device), per_channel(IMAGENET_STD, dtype, device)


@functools.cache
def per_channel(values: tuple[float, float, float], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Return a constant for each channel (3, 1, 1). It is sent to the device once, and must never be changed."""
    return send(torch.tensor(values, dtype=dtype)[:, None, None], device)


class TextExamples(Examples):
    """Texts, or pairs of them, as one flat array of tokens.

    Example i is tokens[offsets[i]:offsets[i + 1]].

    `seconds` (N,) says where in each example the second text begins, None where there is none or the network does not
    tell the two apart; `pad` is the token that fills up a batch.
    """

    def __init__(
        self,
        rows: npt.NDArray[np.int64],
        labels: Tensor | None,
        tokens: Array,
        offsets: Array,
        seconds: Array | None = None,
        pad: int = 0,
    ) -> None:
        super().__init__(rows, labels, np.diff(offsets)[rows])
        self._tokens = tokens
        self._starts = offsets[:-1][rows]
        self._seconds = None if seconds is None else seconds[rows]
        self._pad = pad

    def inputs(self, index: Tensor, device: torch.device, flip: Tensor | None = None) -> dict[str, Tensor]:
        """Read texts, padded to the longest one of the batch.

        They are long tensors `input_ids` and `attention_mask` (B, T). Pairs also have `token_type_ids` (B, T): 1 for
        the second text, 0 elsewhere.
        """
        assert flip is None, "a text stage that flips is refused when it is planned"
        assert self.lengths is not None
        chosen = index.numpy()
        lengths = self.lengths[chosen]
        # Example: two texts of 3 and 2 tokens that start at 10 and 40. The mask is [[1 1 1] [1 1 0]], and tokens are
        # taken from [[10 11 12] [40 41 0]]; what came from 0, where the mask is 0, becomes padding.
        position = np.arange(lengths.max(initial=0))
        mask = position < lengths[:, None]
        tokens = self._tokens[np.where(mask, self._starts[chosen][:, None] + position, 0)]
        arrays = {"input_ids": np.where(mask, tokens, self._pad), "attention_mask": mask}
        if self._seconds is not None:
            arrays["token_type_ids"] = mask & (position >= self._seconds[chosen][:, None])
        return {name: send(torch.from_numpy(array.astype(np.int64)), device) for name, array in arrays.items()}


def padded(inputs: dict[str, Tensor], length: int, pad: int) -> dict[str, Tensor]:
    """Pad text inputs (B, T) further, to (B, `length`). They are filled up with the token `pad`."""
    missing = length - inputs["input_ids"].shape[1]
    if missing == 0:
        return inputs
    filling = {"input_ids": pad}
    return {
        name: torch.nn.functional.pad(tensor, (0, missing), value=filling.get(name, 0))
        for name, tensor in inputs.items()
    }


def by_length(attention_mask: Tensor) -> tuple[Tensor, ...]:
    """Sort the tokens of texts (B, T) into parts of similar lengths.

    A part holds indices (b, t) into the B·T tokens. What is computed part by part needs little padding. A part begins
    where a text has fewer than three quarters of the tokens of the longest one in the part before.
    """
    # Example: texts of 3, 10, 9 and 4 tokens. Sorted they are 10, 9, 4 and 3. Below three quarters of 10 is first the
    # 4, and 3 is three quarters of it: the parts are (2, 10) for texts 1 and 2, and (2, 4) for texts 3 and 0. That is
    # 28 tokens to compute instead of the 40 of (4, 10).
    lengths = attention_mask.sum(1).numpy()
    rows = np.argsort(-lengths, kind="stable")
    firsts, lengths = rows * attention_mask.shape[1], lengths[rows]  # of each text: the index of its first token
    starts = [0]
    for row, length in enumerate(lengths.tolist()):
        if 4 * length < 3 * lengths[starts[-1]]:
            starts.append(row)
    return tuple(
        torch.from_numpy(firsts[start:end, None] + np.arange(lengths[start]))
        for start, end in itertools.pairwise([*starts, len(rows)])
    )


def open_split(data: Data, backbone: Backbone, root: Path) -> Examples:
    """Open the examples that `data` names, as `backbone` reads them.

    Builds the array cache at first use.

    Refuses data that are not prepared, whose content is not that of `data.checksum`, or of another modality.
    """
    manifest = _manifest(data, root)
    if manifest.modality != backbone.MODALITY:
        raise InputError(
            f"{data.task} holds {manifest.modality}s, the backbone {backbone.name} reads {backbone.MODALITY}s: "
            "choose a backbone of the task's modality."
        )
    split = _Split(data, manifest, root / data.task)
    labels = split.labels()
    if data.labelled and labels is None:
        raise InputError(f"{data.task} is a corpus without labels: it can only be used for pre-training.")
    assert data.examples is not None  # of a prepared split
    if labels is None:
        labels = np.zeros(data.examples, dtype=np.int64)
    rows = chosen_rows(data, labels)
    seen = torch.from_numpy(labels[rows]) if data.labelled else None
    if isinstance(backbone, MaskedAutoEncoder):
        pixels = split.pixels(backbone.image_size)
        _refuse_other_count(data, root, len(labels), len(pixels))
        return ImageExamples(rows, seen, pixels)
    if isinstance(backbone, LanguageModel):
        tokens, offsets, seconds = split.tokens(backbone, root)
        _refuse_other_count(data, root, len(labels), len(offsets) - 1)
        return TextExamples(rows, seen, tokens, offsets, seconds, backbone.pad_id)
    raise TypeError(f"no examples for a {type(backbone).__name__}")


def _refuse_other_count(data: Data, root: Path, labels: int, examples: int) -> None:
    """Refuse a split that does not hold as many examples as its manifest promised."""
    if not labels == examples == data.examples:
        raise InputError(
            f"{data.task}/{data.split} holds {examples} examples and {labels} labels, but its manifest says "
            f"{data.examples}. {prepare_again(root / data.task)}"
        )


def _manifest(data: Data, root: Path) -> Manifest:
    manifest = read_manifest(data.task, root)
    # Each check presumes the one before it: is anything prepared, does it have the split, is its content what was
    # planned?
    if manifest is None or data.checksum is None:
        raise NotPrepared(f"{data.task} is not prepared in {root}: prepare it first.")
    if not manifest.splits.keys() >= set(data.split.split("+")):
        raise InputError(f"{data.task} has no split {data.split!r}. Legal: {', '.join(manifest.splits)}.")
    if manifest.checksum(data.split) != data.checksum:
        raise InputError(
            f"{data.task}/{data.split} in {root} has the checksum {manifest.checksum(data.split)[:16]}, but "
            f"{data.checksum[:16]} was planned: plan again with these data, or {prepare_again(root / data.task)}"
        )
    return manifest
