"""What a person sees while a grid runs: on terminals of two widths, and as lines where there is none."""

from __future__ import annotations

import io
import re
import time

import pytest
from rich.console import Console

from bench.launch import estimate, reporter
from bench.launch.estimate import Estimate, clock
from bench.launch.reporter import Reporter
from bench.planning.cost import kind_of
from bench.store.states import StageState
from bench.training.protocol import Outcome
from tests.examples import finetuning

STAGES = [finetuning(seed=seed) for seed in range(3)]
ROWS = {stage.key: ", ".join(f"row_number_{i}" for i in range(30)) for stage in STAGES}


@pytest.fixture
def times(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """What the clock of the estimate shows, put by a test."""
    now = [0.0]
    monkeypatch.setattr(estimate.time, "monotonic", lambda: now[0])
    return now


@pytest.mark.parametrize("width", [80, 100])
def test_bar_steps_speed_time_left_and_clock_are_seen_beside_a_long_list_of_rows(width: int) -> None:
    output = io.StringIO()
    console = Console(file=output, force_terminal=True, width=width, height=24, highlight=False)
    with Reporter(3, ROWS, console, stages=STAGES) as report:
        report.started(STAGES[0], 0)
        for step in range(3):
            report.progress(0, 100 * step, 1000, 0.5)
            time.sleep(0.05)
        output.truncate(0)
        assert report._live is not None
        report._live.refresh()
        shown = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", output.getvalue())
    lines = [line for line in shown.replace("\r", "\n").splitlines() if line.strip("\0 ")]
    overall, stage = lines[-2:]
    assert max(map(len, lines)) <= width
    assert re.search(r"all stages .*0/3 .*:\d\d left .*0:00", overall)
    assert re.search(r"finetune .*…?.*━.* 200/1000 .*\d/s .*:\d\d left .*0:00", stage)
    assert ("loss 0.500" in stage) == (width >= 100)


def test_without_a_terminal_lines_say_how_far_all_is(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(reporter, "LINE_SECONDS", 0.05)
    with Reporter(3, ROWS, stages=STAGES) as report:
        time.sleep(0.2)
        report.started(STAGES[0], 0)
        report.progress(0, 0, 8, float("nan"))
        time.sleep(0.02)
        report.progress(0, 4, 8, 0.5)
        time.sleep(0.2)
        report.ended(STAGES[0], 0, Outcome(StageState.DONE))
    shown = capsys.readouterr().out
    assert "0/3 stages done; none running yet; 0:00 passed\n" in shown
    assert re.search(r"0/3 stages done; running finetune digits seed 0 50%; 0:00 passed; about 0:\d\d left\n", shown)
    assert "[1/3] finetune digits seed 0 (" in shown


def test_the_estimate_learns_from_what_ran_and_shares_the_rest_among_workers(times: list[float]) -> None:
    expected = Estimate(STAGES, {}, workers=2)
    assert expected.seconds() is None
    steps = STAGES[0].total_steps
    expected.progress(STAGES[0], 0, steps)
    assert expected.seconds() is None, "its first word says nothing of its speed"
    times[0] = 10.0
    expected.progress(STAGES[0], steps // 2, steps)
    each = 10.0 / (steps // 2) * steps
    assert expected.seconds() == pytest.approx((10.0 / (steps // 2) * (steps - steps // 2) + 2 * each) / 2)
    expected.ended(STAGES[0])
    assert expected.seconds() == pytest.approx(each)
    expected.ended(STAGES[1])
    assert expected.seconds() == pytest.approx(each), "a single stage has a single worker"
    expected.ended(STAGES[2])
    assert expected.seconds() is None


def test_the_estimate_counts_the_evaluation_of_stages_that_ended(times: list[float]) -> None:
    expected = Estimate(STAGES[:2], {}, workers=1)
    steps = STAGES[0].total_steps
    for stage in STAGES[:2]:
        expected.progress(stage, 0, steps)
        times[0] += 10.0
        expected.progress(stage, steps // 2, steps)
        times[0] += 10.0
        if stage is STAGES[0]:
            expected.progress(stage, steps, steps)
            times[0] += 30.0  # of evaluation
            expected.ended(stage)
    # The second is halfway through its steps, which takes others of its kind half of their 50 seconds.
    assert expected.seconds() == pytest.approx(25.0)


def test_a_stage_that_is_trained_says_that_it_is_evaluated() -> None:
    for terminal in (False, True):
        output = io.StringIO()
        console = Console(file=output, force_terminal=terminal, width=80, height=24, highlight=False)
        with Reporter(3, ROWS, console, stages=STAGES) as report:
            report.started(STAGES[0], 0)
            for step in (0, 8):
                assert "evaluating" not in report.line()
                report.progress(0, step, 8, 0.5)
            assert "finetune digits seed 0 evaluating; " in report.line()
        assert ("evaluating" in output.getvalue()) == terminal


def test_the_estimate_begins_with_the_rates_of_earlier_runs() -> None:
    rate = 0.5 / STAGES[0].schedule.batch_size
    expected = Estimate(STAGES[:1], {(kind_of(STAGES[0]), ""): rate}, workers=1)
    assert expected.seconds() == pytest.approx(0.5 * STAGES[0].total_steps)


def test_clocks() -> None:
    assert [clock(seconds) for seconds in (0.4, 249, 3849)] == ["0:00", "4:09", "1:04:09"]
