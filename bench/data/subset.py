"""Nested, stratified subsets of a training set: for low-resource grids, and to hold a part out."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from bench.errors import InputError
from bench.specs import Data, stream
from bench.store.files import digest


def stratified_order(labels: npt.ArrayLike, seed: int) -> npt.NDArray[np.int64]:
    """An order of all positions whose every prefix has the classes' proportions; without labels, pass zeros.

    The examples of a class stand in a random order, by a hash of seed and position, so no library's shuffle can change
    it. The first of each class come first, and the others follow Webster's rule of apportionment (the j-th of a class
    of n has rank (2j + 1) / n). So a prefix as long as there are classes has them all.
    """
    classes, label = np.unique(np.asarray(labels), return_inverse=True)
    drawn = np.array(sorted(range(len(label)), key=lambda i: stream(seed, "subset", i)), dtype=np.int64)
    drawn = drawn[np.argsort(label[drawn], kind="stable")]
    counts = np.bincount(label, minlength=len(classes))
    position = np.arange(len(label)) - np.repeat(np.cumsum(counts) - counts, counts)
    own_class = np.repeat(np.arange(len(classes)), counts)
    order = np.lexsort((own_class, (2 * position + 1) / counts[own_class], position > 0))
    return drawn[order]


def stratified_subset(labels: npt.ArrayLike, size: int, seed: int) -> npt.NDArray[np.int64]:
    """The sorted positions of `size` examples, in the classes' proportions; a smaller one lies within a larger one.

    Refuses a size outside 1..N.
    """
    order = stratified_order(labels, seed)
    if not 1 <= size <= len(order):
        raise InputError(f"a subset of {size} examples cannot be drawn: it must be between 1 and {len(order)}.")
    return np.sort(order[:size])


def held_out_checksum(labels: npt.ArrayLike) -> tuple[int, str]:
    """How many of these training examples a search holds out, and the sha256 of their sorted positions as JSON."""
    size = max(1, len(np.asarray(labels)) // 10)
    positions = np.sort(stratified_order(labels, 0)[-size:])
    return size, digest(positions.tolist())


def chosen_rows(data: Data, labels: npt.ArrayLike) -> npt.NDArray[np.int64]:
    """The sorted positions that `data` asks for, of a split with these labels: its subset, then its part of that."""
    if data.subset is None and data.part == "all":
        return np.arange(len(np.asarray(labels)))
    if data.part == "all":
        assert data.subset is not None
        return stratified_subset(labels, data.subset, data.subset_seed)
    assert data.size is not None  # prepared, or the split would not be open
    order = stratified_order(labels, data.subset_seed)[: data.subset]
    return np.sort(order[-data.size :] if data.part == "holdout" else order[: data.size])
