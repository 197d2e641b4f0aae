"""What was measured of one line of the page, and the arithmetic on it."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import NamedTuple

from bench.speed.work import COMPILED, OURS


class Ratio(NamedTuple):
    """How much faster one loop is: by medians, least and greatest."""

    median: float
    least: float
    greatest: float


@dataclass
class Line:
    """What was measured of one kind of stage on one network.

    `speeds` are the examples per second in every round, by loop (`bench.speed.work` has their names); `failures` say
    why a loop has none. `flops` are those of our loop per example, `peaks` the matrix products' operations per second
    in every round. `others` is the share of the cores that everything else on this computer used in every round, None
    where that cannot be told. `first_seconds` is what the `first_steps` steps of each loop took.
    """

    kind: str
    network: str
    precision: str
    threads: int
    batch: int
    commit: str | None = None
    speeds: dict[str, list[float]] = field(default_factory=dict)
    failures: dict[str, str] = field(default_factory=dict)
    flops: float | None = None
    peaks: list[float] = field(default_factory=list)
    others: list[float | None] = field(default_factory=list)
    first_steps: int = 0
    first_seconds: dict[str, float] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """`kind/network`."""
        return f"{self.kind}/{self.network}"

    @property
    def identity(self) -> str:
        """`kind/network/precision`, of which a page has one line."""
        return f"{self.name}/{self.precision}"

    @property
    def best(self) -> str:
        """Our loop as `gin/fast.gin` sets it: compiled, where that was measured."""
        return COMPILED if COMPILED in self.speeds else OURS

    @property
    def step_seconds(self) -> float:
        """The median seconds of our step."""
        return self.batch / self.median(self.best)

    @property
    def flops_per_second(self) -> float:
        """The floating-point operations of our loop per second; NaN if not counted."""
        return math.nan if self.flops is None else self.flops * self.median(self.best)

    @property
    def share(self) -> float:
        """Our loop's share of the matrix products' peak in the same run.

        It is NaN where one of the two is unknown.
        """
        return self.flops_per_second / max(self.peaks, default=math.nan)

    def median(self, who: str) -> float:
        """Compute a loop's median examples per second; NaN without any."""
        return statistics.median(self.speeds[who]) if self.speeds.get(who) else math.nan

    def ratio(self, *others: str) -> Ratio | None:
        """Compare our loop's speed with that of the fastest of others.

        Returns None where none of them was measured. Example: with rounds of 10, 12 and 11 examples per second for ours
        and 5, 4 and 5 for the other, the ratio of the medians is 11 / 5 = 2.2, that of the rounds from 2.0 to 3.0.
        """
        measured = [other for other in others if self.speeds.get(other)]
        if not measured or not self.speeds.get(self.best):
            return None
        other = max(measured, key=self.median)
        rounds = [mine / theirs for mine, theirs in zip(self.speeds[self.best], self.speeds[other], strict=True)]
        return Ratio(self.median(self.best) / self.median(other), min(rounds), max(rounds))

    def keep(self, rounds: list[int]) -> None:
        """Forget all rounds but these."""
        self.speeds = {who: [speeds[i] for i in rounds] for who, speeds in self.speeds.items()}
        self.peaks, self.others = [self.peaks[i] for i in rounds], [self.others[i] for i in rounds]

    def break_even(self) -> tuple[float, float] | None:
        """Compute the seconds that compiling takes, and that each step saves.

        Negative savings are losses. Returns None where compiling was not measured. Example: 2 first steps take 3 s
        plain and 33 s compiled, later steps 1.0 s and 0.5 s each:

            starting up   3 - 2 * 1.0 = 1 s
            compiling     33 - 2 * 0.5 - 1 = 31 s
            saving        1.0 - 0.5 = 0.5 s a step
        """
        if not self.speeds.get(OURS) or not self.speeds.get(COMPILED):
            return None
        plain, compiled = self.batch / self.median(OURS), self.batch / self.median(COMPILED)
        # What the first steps took beyond as many later steps went into starting up and, in the second loop, compiling.
        start_up = self.first_seconds[OURS] - self.first_steps * plain
        return self.first_seconds[COMPILED] - self.first_steps * compiled - start_up, plain - compiled


FASTEST_FIRST = ("bfloat16", "tf32", "float32")


def line_of(lines: Iterable[Line], name: str, precision: str | None = None) -> Line | None:
    """Return the line of that name in a precision, by default the fastest measured."""
    own = {line.precision: line for line in lines if line.name == name}
    return next((own[each] for each in ((precision,) if precision else FASTEST_FIRST) if each in own), None)
