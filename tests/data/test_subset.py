"""Subsets are nested, stratified and drawn from a named stream."""

import numpy as np
import pytest

from bench.data.subset import chosen_rows, class_counts, stratified_subset
from bench.errors import InputError
from bench.specs import Data

LABELS = np.repeat([0, 1, 2, 3], [500, 300, 150, 50])[np.random.default_rng(0).permutation(1000)]


@pytest.mark.parametrize("size", [1, 3, 4, 7, 40, 333, 999, 1000])
def test_a_subset_has_distinct_sorted_positions(size: int) -> None:
    chosen = stratified_subset(LABELS, size, seed=0)
    assert chosen.shape == (size,)
    assert np.all(np.diff(chosen) > 0)
    assert 0 <= chosen.min() <= chosen.max() < 1000


def test_smaller_subsets_lie_within_larger_ones() -> None:
    previous: set[int] = set()
    for size in range(1, 1001, 9):
        chosen = set(stratified_subset(LABELS, size, seed=3).tolist())
        assert previous <= chosen
        previous = chosen


@pytest.mark.parametrize("size", [20, 100, 500, 990])
def test_classes_keep_their_proportions(size: int) -> None:
    counts = np.bincount(LABELS[stratified_subset(LABELS, size, seed=1)], minlength=4)
    assert np.all(np.abs(counts - size * np.array([0.5, 0.3, 0.15, 0.05])) <= 1)


def test_every_class_is_kept_where_the_size_allows() -> None:
    rare = np.array([0] * 996 + [1, 2, 3, 4])
    for size in (5, 6, 50):
        assert set(rare[stratified_subset(rare, size, seed=0)]) == {0, 1, 2, 3, 4}


def test_seeds_draw_different_subsets_and_repeat_them() -> None:
    first, again, other = (stratified_subset(LABELS, 100, seed) for seed in (0, 0, 1))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


def test_without_labels_the_draw_is_plain_and_unordered() -> None:
    chosen = stratified_subset(np.zeros(10_000), 1_000, seed=0)
    # Uniform on 0..9999: the mean has a standard deviation of 10000 / sqrt(12 * 1000) = 91.
    assert abs(chosen.mean() - 5_000) < 4 * 91
    assert len(np.unique(chosen)) == 1_000


@pytest.mark.parametrize("size", [0, -1, 1001])
def test_impossible_sizes_are_refused(size: int) -> None:
    with pytest.raises(InputError, match="between 1 and 1000"):
        stratified_subset(LABELS, size, seed=0)


def part(name: str, subset: int | None = None) -> set[int]:
    return set(chosen_rows(Data("digits", "train", True, "0" * 64, 1000, 4, subset, 0, name), LABELS).tolist())


@pytest.mark.parametrize("subset", [None, 337])
def test_a_tenth_is_held_out_in_the_classes_proportions(subset: int | None) -> None:
    everything, fit, holdout = (part(name, subset) for name in ("all", "fit", "holdout"))
    assert len(holdout) == len(everything) // 10
    assert fit | holdout == everything
    assert not fit & holdout
    counts = np.bincount(LABELS[sorted(holdout)], minlength=4)
    assert np.all(np.abs(counts - len(holdout) * np.array([0.5, 0.3, 0.15, 0.05])) <= 1.5)


def test_the_rule_is_pinned() -> None:
    """Splits are data: a change of this rule makes every selection incomparable with earlier ones."""
    assert sorted(part("holdout", 40)) == [320, 552, 560, 731]


@pytest.mark.parametrize("subset", [None, 40])
def test_how_many_of_each_class_are_held_out_follows_from_the_counts_alone(subset: int | None) -> None:
    labels = np.random.default_rng(0).permutation(np.repeat([0, 2, 3], [61, 4, 35]))  # of class 1 there is none
    for part in ("all", "fit", "holdout"):
        data = Data(
            task="pets",
            split="train",
            labelled=True,
            checksum="0",
            examples=100,
            classes=4,
            subset=subset,
            subset_seed=5,
            part=part,  # type: ignore[arg-type]
        )
        expected = np.bincount(labels[chosen_rows(data, labels)], minlength=4)
        assert class_counts(data, (61, 0, 4, 35)) == tuple(expected)
