"""Nested, stratified subsets of a training set, for the low-resource grids."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from bench.errors import InputError
from bench.specs import stream


def stratified_subset(labels: npt.ArrayLike, size: int, seed: int) -> npt.NDArray[np.int64]:
    """The sorted positions of `size` examples, in the classes' proportions; without labels, pass zeros.

    A smaller subset of the same seed is contained in a larger one: all are prefixes of one order. In it the examples
    of a class stand in a random order, the first of each class come first, and the others follow Webster's rule of
    apportionment (the j-th of a class of n has rank (2j + 1) / n). So `size >= classes` keeps every class. Refuses a
    size outside 1..N.
    """
    classes, label = np.unique(np.asarray(labels), return_inverse=True)
    if not 1 <= size <= len(label):
        raise InputError(f"a subset of {size} examples cannot be drawn: it must be between 1 and {len(label)}.")
    generator = np.random.Generator(np.random.PCG64(stream(seed, "subset")))
    drawn = generator.permutation(len(label))
    drawn = drawn[np.argsort(label[drawn], kind="stable")]
    counts = np.bincount(label, minlength=len(classes))
    position = np.arange(len(label)) - np.repeat(np.cumsum(counts) - counts, counts)
    own_class = np.repeat(np.arange(len(classes)), counts)
    order = np.lexsort((own_class, (2 * position + 1) / counts[own_class], position > 0))
    return np.sort(drawn[order[:size]]).astype(np.int64)
