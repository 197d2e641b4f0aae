"""Nested, stratified subsets of a training set: for low-resource grids, and to hold a part out."""

from __future__ import annotations

import functools

import numpy as np
import numpy.typing as npt

from bench.errors import InputError
from bench.specs import Data, stream
from bench.store.files import digest


def stratified_order(labels: npt.ArrayLike, seed: int) -> npt.NDArray[np.int64]:
    """Order all positions so that every prefix has the classes' proportions.

    Without labels, pass zeros.

    The examples of a class stand in a random order, by a hash of seed and position, so no library's shuffle can change
    it. The first of each class come first, and the others follow Webster's rule of apportionment (the j-th of a class
    of n has rank (2j + 1) / n). So a prefix as long as there are classes has them all.
    """
    # Example: labels [a a a a b b], and the hash puts the positions in the order [5 3 0 4 2 1].
    #
    #     by class, in that order     3    0    2    1   |  5    4
    #     j, within its class         0    1    2    3   |  0    1
    #     rank (2j + 1) / n          1/4  3/4  5/4  7/4  | 1/2  3/2
    #
    # The first of each class come first (3, 5), then the others by rank: [3 5 0 2 4 1]. Its first three hold 2 a and 1
    # b, as 4 to 2 asks. Equal ranks go by class, so the order is the same everywhere.
    classes, label = np.unique(np.asarray(labels), return_inverse=True)
    drawn = _drawn(len(label), seed)
    drawn = drawn[np.argsort(label[drawn], kind="stable")]
    counts = np.bincount(label, minlength=len(classes))
    position = np.arange(len(label)) - np.repeat(np.cumsum(counts) - counts, counts)
    own_class = np.repeat(np.arange(len(classes)), counts)
    # lexsort takes its last key first: whether it is the first of its class, then the rank, then the class.
    order = np.lexsort((own_class, (2 * position + 1) / counts[own_class], position > 0))
    return drawn[order]


@functools.lru_cache(maxsize=8)
def _drawn(count: int, seed: int) -> npt.NDArray[np.int64]:
    """Order the positions by a hash; kept, as every stage on a split asks for the same."""
    return np.array(sorted(range(count), key=lambda i: stream(seed, "subset", i)), dtype=np.int64)


def stratified_subset(labels: npt.ArrayLike, size: int, seed: int) -> npt.NDArray[np.int64]:
    """Draw `size` examples in the classes' proportions.

    Returns their sorted positions; a smaller subset lies within a larger one. Refuses a size outside 1..N.
    """
    order = stratified_order(labels, seed)
    if not 1 <= size <= len(order):
        raise InputError(f"a subset of {size} examples cannot be drawn: it must be between 1 and {len(order)}.")
    return np.sort(order[:size])


def held_out_checksum(labels: npt.ArrayLike) -> tuple[int, str]:
    """Count and checksum the examples that a search holds out.

    The checksum is the sha256 of their sorted positions as JSON.
    """
    size = max(1, len(np.asarray(labels)) // 10)
    positions = np.sort(stratified_order(labels, 0)[-size:])
    return size, digest(positions.tolist())


def chosen_rows(data: Data, labels: npt.ArrayLike) -> npt.NDArray[np.int64]:
    """Return the sorted positions that `data` asks for.

    `labels` are those of the whole split. Its subset is taken first, then its part of that.
    """
    if data.subset is None and data.part == "all":
        return np.arange(len(np.asarray(labels)))
    if data.part == "all":
        assert data.subset is not None
        return stratified_subset(labels, data.subset, data.subset_seed)
    assert data.size is not None  # prepared, or the split would not be open
    # Cut from the order, not from sorted positions, so that both parts have about the classes' proportions. Example: of
    # a subset of 100 with 10 held out, order[90:100] is the held-out part and order[:90] the rest.
    order = stratified_order(labels, data.subset_seed)[: data.subset]
    return np.sort(order[-data.size :] if data.part == "holdout" else order[: data.size])


@functools.cache
def class_counts(data: Data, per_class: tuple[int, ...]) -> tuple[int, ...]:
    """Count, by class, the examples that `data` asks for.

    `per_class` are the counts of the whole split. No label is read: how many examples of each class are drawn follows
    from the counts alone, which examples they are does not matter.
    """
    # Example: of 6 a and 4 b the last tenth of the stratified order is held out, which is one example. The last a has
    # the rank 11/6 and the last b 7/4, so it is an a, whichever one: the counts are (1, 0).
    labels = np.repeat(np.arange(len(per_class)), per_class)
    return tuple(np.bincount(labels[chosen_rows(data, labels)], minlength=len(per_class)).tolist())
