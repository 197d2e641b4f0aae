"""What tables say about rows: recomputed independently, at the edges, and over many grids whose truth is known."""

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import pytest
import torch
from scipy import stats

from bench.data.metrics import METRICS
from bench.errors import InputError
from bench.tables.compare import Column, Run, RunTable, Summary, holm, majority_baseline, t_test
from bench.training.evaluate import metrics
from tests import simulate_tables as simulated

NAN, INFINITY = math.nan, math.inf
Stages = Mapping[tuple[str, int], Iterable[str]]
"""Stages behind a row's run with a seed."""


def table(
    values: Mapping[tuple[str, str], Sequence[float | None]],
    columns: Sequence[Column] | None = None,
    seeds: Sequence[int] = range(5),
    stages: Stages | None = None,
) -> RunTable:
    """A table from values by row and task, one for each seed; None is a gap."""
    runs = tuple(
        Run(row, task, seed, value, frozenset((stages or {}).get((row, seed), ())))
        for (row, task), numbers in values.items()
        for seed, value in zip(seeds, numbers, strict=False)
        if value is not None
    )
    columns = columns or [Column(task) for task in dict.fromkeys(task for _, task in values)]
    return RunTable(tuple(dict.fromkeys(row for row, _ in values)), tuple(columns), tuple(seeds), runs)


def two(left: Sequence[float | None], right: Sequence[float | None], stages: Stages | None = None) -> RunTable:
    return table({("a", "t"): left, ("b", "t"): right}, stages=stages)


# ------------------------------------------------------------------------------------------------------ cells


def test_a_cell_is_mean_and_sample_deviation() -> None:
    values = [71.2, 73.9, 72.4, 70.0, 75.5]
    cell = table({("a", "t"): values}).summary("a", "t")
    assert cell.mean == pytest.approx(statistics.fmean(values))
    assert cell.std == pytest.approx(statistics.stdev(values))
    assert cell.n == 5 and cell.complete


@pytest.mark.parametrize(
    ("values", "expected", "text"),
    [
        ([90.0], Summary(5, 1, 90.0, None), "90.00 (1/5)"),
        ([], Summary(5, 0, None, None), "– (0/5)"),
        ([90.0, NAN, 92.0, INFINITY, NAN], None, "91.00 ± 1.41 (2/5; 2 × nan; 1 × inf)"),
        ([NAN], None, "– (0/5; 1 × nan)"),
        ([90.0] * 5, Summary(5, 5, 90.0, 0.0), "90.00 ± 0.00 (5)"),
    ],
)
def test_one_value_has_no_spread_and_what_is_no_number_is_shown(
    values: list[float], expected: Summary | None, text: str
) -> None:
    cell = table({("a", "t"): values}).summary("a", "t")
    assert expected is None or cell == expected
    assert cell.text() == text


# ------------------------------------------------------------------------------------------------ differences


def test_a_difference_is_paired_and_has_the_interval_of_the_books() -> None:
    # The seeds' own levels, 10 to 50, cancel. Differences 1 to 5: mean 3, s = 1.5811, t(0.975, 4) = 2.7764.
    difference = two([11.0, 22.0, 33.0, 44.0, 55.0], [10.0, 20.0, 30.0, 40.0, 50.0]).difference("a", "b", "t")
    half = 2.7764451 * 1.5811388 / math.sqrt(5)
    assert (difference.n, difference.mean) == (5, 3.0)
    assert (difference.low, difference.high) == pytest.approx((3 - half, 3 + half))
    assert difference.shows_better and not difference.conditional


def test_where_lower_is_better_a_positive_difference_still_means_better() -> None:
    values = {("a", "t"): [0.5, 0.6, 0.4], ("b", "t"): [0.9, 0.8, 0.9]}
    losses = table(values, [Column("t", "lower", "")], seeds=range(3))
    assert losses.difference("a", "b", "t").mean == pytest.approx(1.1 / 3)
    assert losses.difference("b", "a", "t").mean == pytest.approx(-1.1 / 3)


@pytest.mark.parametrize(
    ("left", "right", "n", "mean"),
    [
        ([1.0, None, 3.0, 9.0, NAN], [0.0, 5.0, 1.0, 5.0, 0.0], 3, 7 / 3),
        ([1.0, None], [0.0, 5.0], 1, 1.0),
        ([1.0, None], [INFINITY, 5.0], 0, None),
        ([], [1.0], 0, None),
    ],
)
def test_only_seeds_with_two_finite_values_take_part(
    left: list[float | None], right: list[float | None], n: int, mean: float | None
) -> None:
    difference = two(left, right).difference("a", "b", "t")
    assert (difference.n, difference.mean) == (n, mean)
    assert (difference.low is None) == (n < 2) == bool(difference.reason)


@pytest.mark.parametrize("right", [[90.1, 80.3, 70.7], [89.8, 80.0, 70.4], [90.0999, 80.2999, 70.6999]])
def test_equal_differences_have_no_interval(right: list[float]) -> None:
    # In floating point, 90.1 − 89.8 and 80.3 − 80.0 differ, by some 1e-14: still no spread.
    difference = two([90.1, 80.3, 70.7], right).difference("a", "b", "t")
    assert difference.low is None and difference.high is None and "same difference" in difference.reason
    assert not difference.shows_better


SEEDS = range(3)
FULL = {"a": [1.0, 2.0, 4.0], "b": [0.0, 0.5, 0.0]}


@pytest.mark.parametrize(
    ("stages", "conditional"),
    [
        # Pre-training of a: once for all seeds, or for each.
        ({("a", seed): ["pretraining"] for seed in SEEDS}, True),
        ({("a", seed): [f"pretraining {seed}"] for seed in SEEDS}, False),
        # Once for two of the three seeds: still the same luck twice.
        ({("a", 0): ["first"], ("a", 1): ["second"], ("a", 2): ["second"]}, True),
        # Both rows begin with the same encoder; then b alone has a search of its own.
        ({(row, seed): ["pretraining"] for row in "ab" for seed in SEEDS}, False),
        ({(row, seed): ["pretraining", *(["choice"] * (row == "b"))] for row in "ab" for seed in SEEDS}, True),
        # Students of one teacher: it stands behind both.
        ({(row, seed): ["teacher", f"student {row}{seed}"] for row in "ab" for seed in SEEDS}, False),
        # Each row has both encoders, but never with the same seed: nothing cancels.
        (
            {("a", 0): ["x"], ("b", 0): ["y"], ("a", 1): ["y"], ("b", 1): ["x"], ("a", 2): ["x"], ("b", 2): ["y"]},
            True,
        ),
        ({}, False),
    ],
)
def test_a_difference_is_conditional_if_a_stage_of_one_row_is_the_same_for_several_seeds(
    stages: Stages, conditional: bool
) -> None:
    runs = two(FULL["a"], FULL["b"], stages)
    for row, other in (("a", "b"), ("b", "a")):
        assert runs.difference(row, other, "t").conditional == conditional


def test_seeds_that_only_one_row_has_make_nothing_conditional() -> None:
    stages = {("a", 0): ["x"], ("a", 1): ["x"]}
    assert not two([1.0, 2.0], [0.0, None], stages).difference("a", "b", "t").conditional
    assert not two([1.0, 2.0], [0.0, NAN], stages).difference("a", "b", "t").conditional


# ----------------------------------------------------------------------------------------------------- the best

LOW, NEXT, HIGH = [80.0, 81.0, 80.0, 82.0, 81.0], [84.0, 85.0, 84.5, 85.0, 84.0], [90.0, 91.0, 90.5, 91.5, 90.0]


def test_the_best_row_is_bold_in_either_direction() -> None:
    values = {("low", "t"): LOW, ("high", "t"): HIGH, ("next", "t"): NEXT}
    assert table(values).best("t") == "high"
    assert table(values, [Column("t", "lower", "")]).best("t") == "low"


@pytest.mark.parametrize(
    ("rows", "stages"),
    [
        ({"high": [*HIGH[:4], None], "low": LOW}, None),  # a gap
        ({"high": [*HIGH[:4], NAN], "low": LOW}, None),
        ({"high": HIGH, "same": HIGH, "low": LOW}, None),  # a tie
        ({"high": HIGH}, None),  # nothing to be better than
        ({"high": HIGH, "empty": []}, None),
        ({"high": HIGH, "low": [80.0]}, None),  # one seed in common: no interval
        ({"high": HIGH, "near": [90.5, 90.0, 91.0, 90.5, 90.0]}, None),
        ({"high": HIGH, "low": LOW}, {("high", seed): ["pretraining"] for seed in range(5)}),
        # The next best is far away, but the noisy third is not excluded.
        ({"high": HIGH, "next": NEXT, "noisy": [100.0, 60.0, 70.0, 99.0, 80.0]}, None),
        # The incomplete row loses to `high` where both have run, but its mean is the larger one.
        ({"high": [90.0, 90.2, 99.0, 99.2, 99.1], "gaps": [None, None, 98.0, 98.1, 98.3]}, None),
    ],
)
def test_no_row_is_bold_without_proof(rows: dict[str, list[float | None]], stages: Stages | None) -> None:
    assert table({(row, "t"): values for row, values in rows.items()}, stages=stages).best("t") is None


def test_rows_without_a_value_do_not_keep_another_from_being_bold() -> None:
    assert (
        table({("high", "t"): HIGH, ("low", "t"): LOW, ("lost", "t"): [NAN] * 5, ("empty", "t"): []}).best("t")
        == "high"
    )


# -------------------------------------------------------------------------------------------------------- ranks


def test_average_ranks_share_ties_and_leave_out_incomplete_rows() -> None:
    values = {
        ("a", "x"): [90.0, 90.0], ("b", "x"): [80.0, 80.0], ("c", "x"): [79.9, 80.1], ("d", "x"): [99.0, 99.0],
        ("a", "loss"): [0.1, 0.1], ("b", "loss"): [0.3, 0.3], ("c", "loss"): [0.2, 0.2], ("d", "loss"): [0.0, NAN],
    }  # fmt: skip
    columns = [Column("x"), Column("loss", "lower", "")]
    ranks = table(values, columns, seeds=range(2)).average_ranks()
    assert ranks == {"a": 1.0, "b": 2.75, "c": 2.25}


def test_without_complete_rows_or_columns_there_are_no_ranks() -> None:
    assert table({("a", "t"): [1.0]}).average_ranks() == {}
    assert RunTable(("a",), (), (0,), ()).average_ranks() == {}
    assert RunTable((), (), (), ()).average_ranks() == {}


# --------------------------------------------------------------------------------------------------- over tasks


def grid(rows: Mapping[str, Sequence[float]], seeds: int = 3, columns: Sequence[Column] | None = None) -> RunTable:
    """Rows that are better than the reference row by these points, task by task, in every seed by about as much."""
    random = np.random.default_rng(0)
    values: dict[tuple[str, str], list[float]] = {}
    for number in range(len(next(iter(rows.values())))):
        reference = random.normal(80, 3, seeds)
        values["reference", f"t{number}"] = list(reference)
        for row, effects in rows.items():
            noise = random.normal(0, 0.3, seeds)
            values[row, f"t{number}"] = list(reference + effects[number] + noise - noise.mean())
    return table(values, columns, seeds=range(seeds))


EFFECTS = {
    "better": [1.0, 2.0, 1.5, 1.2, 1.8, 2.2],
    "same": [0.2, -0.1, 0.0, 0.1, -0.2, 0.1],
    "weak": [2.1, 0.15, 1.15, 1.3, -0.2, -1.5],
}


def test_p_is_the_paired_t_over_task_means_adjusted_by_holm() -> None:
    runs = grid(EFFECTS)
    results = {result.row: result for result in runs.over_tasks("reference", draws=100)}
    tasks = [column.task for column in runs.columns]

    def means(row: str) -> list[float | None]:
        return [runs.summary(row, task).mean for task in tasks]

    raw = {row: float(stats.ttest_rel(means(row), means("reference")).pvalue) for row in EFFECTS}
    smallest, middle, largest = sorted(raw, key=lambda row: raw[row])
    assert results[smallest].p == pytest.approx(3 * raw[smallest])
    assert results[middle].p == pytest.approx(max(3 * raw[smallest], 2 * raw[middle]))
    assert results[largest].p == pytest.approx(max(2 * raw[middle], raw[largest]))
    assert results["better"].mean == pytest.approx(np.mean(EFFECTS["better"]))
    assert results["better"].tasks == tuple(tasks) and results["better"].seeds == (3, 3)


def test_holm_multiplies_by_the_hypotheses_left_and_keeps_the_order() -> None:
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.9, 0.8]) == [1.0, 1.0]
    assert holm([]) == []


def test_the_probabilities_are_those_of_the_signed_rank_posterior() -> None:
    result = {r.row: r for r in grid(EFFECTS).over_tasks("reference")}["weak"]
    # Written out: Dirichlet weights of the tasks and of a pseudo-observation of weight 0.5 at 0; the share of pairs
    # whose mean is above the ROPE, within, below; how often each share is the largest.
    data = np.array([0.0, *EFFECTS["weak"]])
    weights = np.random.default_rng(1).dirichlet([0.5, *[1.0] * 6], 40_000)
    pairs = (data[:, None] + data[None, :]) / 2
    shares = [
        np.einsum("ni,ij,nj->n", weights, side.astype(float), weights)
        for side in (pairs > 0.5, abs(pairs) <= 0.5, pairs < -0.5)
    ]
    better, equivalent, worse = np.bincount(np.argmax(shares, axis=0), minlength=3) / 40_000
    assert result.rope == 0.5
    assert (result.better, result.equivalent, result.worse) == pytest.approx((better, equivalent, worse), abs=0.02)
    assert (result.better or 0) + (result.equivalent or 0) + (result.worse or 0) == pytest.approx(1)


def test_probabilities_begin_at_six_tasks_and_depend_on_the_data_alone() -> None:
    assert all(r.better is None for r in grid({row: e[:5] for row, e in EFFECTS.items()}).over_tasks("reference"))
    runs = grid(EFFECTS)
    turned = RunTable(runs.rows, runs.columns[::-1], runs.seeds, runs.runs[::-1])
    first, again = (
        [(r.better, r.equivalent, r.worse) for r in t.over_tasks("reference", draws=200)] for t in (runs, turned)
    )
    assert first == again
    assert first[0][0] == 1.0 and (first[1][1] or 0) > 0.9


def test_the_rope_is_the_grids_and_other_units_have_none_by_default() -> None:
    runs = grid(EFFECTS)
    wide = runs.over_tasks("reference", rope=5.0, draws=200)
    assert all(result.equivalent == 1.0 and result.rope == 5.0 for result in wide)
    losses = RunTable(runs.rows, tuple(Column(c.task, "lower", "nats") for c in runs.columns), runs.seeds, runs.runs)
    better = losses.over_tasks("reference", draws=200)[0]
    assert better.better is None and better.p is not None and (better.mean or 0) < -1
    assert losses.over_tasks("reference", rope=0.5, draws=200)[0].worse == 1.0


@pytest.mark.parametrize("count", [0, 1])
def test_without_two_tasks_there_is_no_p(count: int) -> None:
    values: dict[tuple[str, str], list[float]] = {("reference", "t"): LOW, ("a", "t"): HIGH if count else []}
    (result,) = table(values).over_tasks("reference")
    assert result.p is None and result.low is None and result.reason
    assert len(result.tasks) == count and (result.mean is None) == (count == 0)


def test_tasks_in_different_units_are_not_averaged() -> None:
    values = {(row, task): numbers for row, numbers in (("a", HIGH), ("reference", LOW)) for task in ("t", "loss")}
    (result,) = table(values, [Column("t"), Column("loss", "lower", "")]).over_tasks("reference")
    assert result.p is None and result.mean is None and "units" in result.reason


def test_a_column_that_tests_the_same_stages_again_does_not_count_twice() -> None:
    stages = {(row, seed): [f"{row}/{seed}"] for row in ("reference", "a") for seed in range(5)}
    values = {(row, task): numbers for row, numbers in (("a", HIGH), ("reference", LOW)) for task in ("mnli", "again")}
    (result,) = table(values, stages=stages).over_tasks("reference")
    assert result.tasks == ("mnli",) and result.left_out == ("again",) and result.p is None


def test_conditional_tasks_are_named_beside_the_p() -> None:
    runs = simulated.draw(simulated.SHARED, np.random.default_rng(0))
    results = {result.row: result for result in runs.over_tasks(simulated.REFERENCE, draws=100)}
    assert results["row1"].conditional == () and results["row1"].p is not None
    assert len(results["row2"].conditional) == 6 and results["row2"].p is not None


# ---------------------------------------------------------------------------------------------------- bad input


def test_rows_and_tasks_without_runs_are_legal() -> None:
    runs = RunTable(("a", "b", "c"), (Column("t"), Column("u")), (0, 1), (Run("a", "t", 0, 1.0),))
    assert runs.summary("b", "u").text() == "– (0/2)"
    assert runs.best("t") is None and runs.best("u") is None
    assert runs.average_ranks() == {}
    assert [(r.p, r.mean, r.tasks) for r in runs.over_tasks("c")] == [(None, None, ())] * 2


@pytest.mark.parametrize(
    ("runs", "names"),
    [
        ([Run("a", "t", 1, 1.0), Run("a", "t", 1, 1.0)], ["2 runs of a on t with seed 1"]),
        ([Run("a", "t", 7, 1.0)], ["seed 7", "Legal: 0, 1"]),
        ([Run("A", "t", 0, 1.0)], ["row A", "Legal: a, b"]),
        ([Run("a", "u", 0, 1.0)], ["task u", "Legal: t"]),
    ],
)
def test_runs_that_do_not_fit_are_refused_by_name(runs: list[Run], names: list[str]) -> None:
    with pytest.raises(InputError) as refusal:
        RunTable(("a", "b"), (Column("t"),), (0, 1), tuple(runs))
    assert all(name in str(refusal.value) for name in names)


def test_a_name_twice_an_unknown_reference_and_an_impossible_rope_are_refused() -> None:
    with pytest.raises(InputError, match="row a 2 times"):
        RunTable(("a", "a"), (), (), ())
    with pytest.raises(InputError, match=r"finetun is none of the table.*'finetune'"):
        table({("finetune", "t"): [1.0]}).over_tasks("finetun")
    for rope in (-1.0, NAN, INFINITY):
        with pytest.raises(InputError, match="ROPE"):
            table({("finetune", "t"): [1.0]}).over_tasks("finetune", rope=rope)


# ------------------------------------------------------------------------------------------ the majority class


@pytest.mark.parametrize(
    "counts", [{"a": 234, "b": 390}, {"a": 5, "b": 5}, {"a": 3, "b": 0, "c": 9, "d": 4}, {"a": 4}, {"a": 0, "b": 2}]
)
@pytest.mark.filterwarnings("ignore:A single label was found:UserWarning")
def test_the_majority_baseline_is_what_a_constant_classifier_measures(counts: dict[str, int]) -> None:
    labels = torch.tensor([number for number, count in enumerate(counts.values()) for _ in range(count)])
    logits = torch.zeros(len(labels), max(len(counts), 2), dtype=torch.float64)
    logits[:, list(counts.values()).index(max(counts.values()))] = 1.0
    measured = metrics(logits, labels, list(counts))
    measured.pop("loss")
    assert majority_baseline(counts) == pytest.approx(measured)
    assert {name.partition("[")[0] for name in measured} <= METRICS.keys()


@pytest.mark.parametrize("counts", [{}, {"a": 0}, {"a": -1, "b": 2}])
def test_impossible_class_counts_are_refused(counts: dict[str, int]) -> None:
    with pytest.raises(InputError, match="class counts"):
        majority_baseline(counts)


# -------------------------------------------------------------------------------------------------- simulation


@pytest.mark.parametrize("truth", [simulated.NULL, simulated.SHARED], ids=lambda truth: truth.name)
def test_what_is_said_of_equal_rows_is_seldom_wrong(truth: simulated.Truth) -> None:
    rates = simulated.measure(truth, grids=30, draws=10)
    assert rates[simulated.WRONG_BOLD] <= 7 and rates[simulated.ANY_FALSE_P] <= 7
    assert 93 <= rates[simulated.COVERAGE] <= 97
    if truth is simulated.SHARED:
        # Why a conditional difference is never bold: its interval misses the truth far too often.
        assert rates[simulated.CONDITIONAL_COVERAGE] < 90


def test_bold_holds_against_a_noisy_row_where_the_next_best_alone_does_not() -> None:
    rates = simulated.measure(simulated.UNEQUAL, grids=20, draws=10)
    assert rates[simulated.WRONG_BOLD] <= 7 < rates[simulated.NEXT_BEST]


def test_a_point_is_noticed_over_tasks() -> None:
    rates = simulated.measure(simulated.PLUS_ONE, grids=20, draws=10)
    assert rates[simulated.POWER] > 50 > rates[simulated.FALSE_P]


@pytest.mark.parametrize("count", [2, 3, 10, 40])
def test_t_intervals_and_p_are_those_of_scipy(count: int) -> None:
    differences = np.random.default_rng(count).normal(0.3, 1.0, count).tolist()
    test = stats.ttest_1samp(differences, 0.0)
    numbers, reason = t_test(differences, 1.0, "seed")
    assert numbers == pytest.approx((*test.confidence_interval(0.95), test.pvalue), rel=1e-9)
    assert reason == ""
