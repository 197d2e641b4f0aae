"""Compare our loop with others on the same work: each in a process of its own, by turns, in one run."""

from __future__ import annotations

import contextlib
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from importlib import util
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Self

from bench.speed.work import (
    BARE,
    COMPILED,
    OURS,
    RELEASED,
    SAME,
    TRAINER,
    TRAINER_COMPILED,
    Work,
)
from bench.store.provenance import cores

MOST_STEPS = 400
"""How many steps a turn has at most, however short they are."""


QUIET = 0.1
"""A round counts as quiet where everything else on this computer used less than this share of the cores."""
MOST_ROUNDS = 3
"""How many times as many rounds as asked for are tried, until so many were quiet."""


class Failed(Exception):
    """A side of a comparison ended with an error: out of memory, a missing package."""


class Side:
    """One side of a comparison: a process that takes steps when it is asked to."""

    def __init__(self, what: str, work: Work) -> None:
        self.what = what
        threads = str(work.threads)
        # A compiler cache of its own, so that compiling costs what it costs the first time.
        self._cache = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)
        environment = {
            **os.environ,
            "OMP_NUM_THREADS": threads,
            "MKL_NUM_THREADS": threads,
            "TORCHINDUCTOR_CACHE_DIR": self._cache.name,
        }
        self._errors = tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace")  # noqa: SIM115
        self._process = subprocess.Popen(
            [sys.executable, "-m", "bench.speed.runner", what, work.to_json()],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
            encoding="utf-8",
            env=environment,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None:
            self._process.kill()
        self._process.communicate()  # closes its input, which ends it
        self._errors.close()
        self._cache.cleanup()

    def answer(self) -> dict[str, Any]:
        """Wait for the next answer; raises `Failed` where the process has none."""
        assert self._process.stdout is not None  # piped above
        line = self._process.stdout.readline()
        if not line:
            self._errors.seek(0)
            said = self._errors.read().strip().splitlines()
            raise Failed(f"exit status {self._process.wait()}{': ' if said else ''}{said[-1] if said else ''}")
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise Failed(answer["error"])
        return answer

    def ask(self, steps: int) -> dict[str, Any]:
        """Have it take so many steps, while all others wait."""
        assert self._process.stdin is not None  # piped above
        with contextlib.suppress(BrokenPipeError):  # its answer says why it ended
            self._process.stdin.write(f"{steps}\n")
            self._process.stdin.flush()
        return self.answer()


def ask_once(what: str, work: Work) -> dict[str, Any]:
    """Start a process for one answer: `flops` or `facts`."""
    with Side(what, work) as side:
        return side.answer()


class Ratio(NamedTuple):
    """How many times as fast: the ratio of the medians, and the least and greatest ratio of one round."""

    median: float
    least: float
    greatest: float


@dataclass
class Line:
    """What was measured of one kind of stage on one network.

    `speeds` are the examples per second of every round, by who trained; `failures` say why somebody has none. `flops`
    are those of our loop per example, `peaks` the matrix products' operations per second in every round.
    `others` is the share of the cores that everything else on this computer used in every round, None where that cannot
    be told. `first_seconds` is what the first steps took, by who trained; there were `first_steps` of them.
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
    def best(self) -> str:
        """Our loop as `gin/fast.gin` sets it: compiled, where that was measured."""
        return COMPILED if COMPILED in self.speeds else OURS

    @property
    def step_seconds(self) -> float:
        """The median seconds of our step."""
        return self.batch / self.median(self.best)

    @property
    def flops_per_second(self) -> float:
        """The floating-point operations that our loop executes per second; NaN where they were not counted."""
        return math.nan if self.flops is None else self.flops * self.median(self.best)

    @property
    def share(self) -> float:
        """Our loop's share of the matrix products' peak in the same run; NaN where one of them is unknown."""
        return self.flops_per_second / max(self.peaks, default=math.nan)

    def median(self, who: str) -> float:
        """The median examples per second; NaN for who has none."""
        return statistics.median(self.speeds[who]) if self.speeds.get(who) else math.nan

    def ratio(self, *others: str) -> Ratio | None:
        """Our loop's speed in others', of whom the fastest counts; None where none of them was measured."""
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
        """Seconds that compiling takes, and that each step saves (negative: loses); None where it was not measured."""
        if not self.speeds.get(OURS) or not self.speeds.get(COMPILED):
            return None
        compiled, plain = self.batch / self.median(COMPILED), self.batch / self.median(OURS)
        extra = {
            who: self.first_seconds[who] - self.first_steps * seconds
            for who, seconds in ((OURS, plain), (COMPILED, compiled))
        }
        return extra[COMPILED] - extra[OURS], plain - compiled


def sides(work: Work, compile: bool) -> list[str]:
    """Name who is compared."""
    compared = [OURS, *([COMPILED] if compile else []), RELEASED, SAME, BARE]
    if work.kind == "finetune":
        compared += [TRAINER, *([TRAINER_COMPILED] if compile else [])]
    return compared


def compare(work: Work, *, compile: bool, rounds: int, seconds: float, commit: str | None) -> Line:
    """Measure one line: warm everyone up, then take turns of about so many seconds of our loop's steps each.

    Where other processes disturb a round, another one follows, and the quietest count.

    Who cannot run (no `accelerate`, out of memory) is left out, and the line says why.
    """
    line = Line(work.kind, work.network, work.precision, work.threads, work.batch_size, commit)
    line.first_steps = work.unit * (1 if work.on_cpu or work.quick else max(1, 12 // work.unit))
    with contextlib.suppress(Failed):
        line.flops = ask_once("flops", work)["flops"] / work.batch_size
    with contextlib.ExitStack() as stack:
        running = dict(_warmed_up(work, line, compile, stack))
        peak = stack.enter_context(Side("peak", work))
        peak.answer()
        steps = _turn(work, running, seconds)
        while len(line.peaks) < MOST_ROUNDS * rounds and sum(map(_quiet, line.others)) < rounds:
            line.peaks.append(peak.ask(1)["flops_per_second"])
            interference: list[float | None] = []
            for who, side in list(running.items()):
                busy = _busy_seconds()
                try:
                    answer = side.ask(steps)
                except Failed as error:
                    line.failures[who] = str(error)
                    del running[who], line.speeds[who]
                    continue
                line.speeds[who].append(work.batch_size * steps / answer["seconds"])
                interference.append(_others(busy, answer))
            known = [share for share in interference if share is not None]
            line.others.append(max(known) if known else None)
    line.keep(sorted(sorted(range(len(line.peaks)), key=lambda i: line.others[i] or 0.0)[:rounds]))
    return line


def _quiet(others: float | None) -> bool:
    return others is None or others < QUIET


def _others(busy_before: float | None, answer: Mapping[str, float]) -> float | None:
    """The share of this process's cores that others used while a side took its turn."""
    busy = _busy_seconds()
    if busy is None or busy_before is None:
        return None
    return max(0.0, busy - busy_before - answer["cpu"]) / (answer["seconds"] * cores())


def _busy_seconds() -> float | None:
    """How long the cores that this process may use have been busy, or taken away by the machine's owner."""
    try:
        lines = Path("/proc/stat").read_text(encoding="ascii").splitlines()
    except OSError:
        return None
    mine = {f"cpu{number}" for number in os.sched_getaffinity(0)}
    # user, nice, system, idle, waiting for disks, interrupts (two kinds), stolen
    counts = [[int(count) for count in fields[1:9]] for line in lines if (fields := line.split())[:1][0] in mine]
    return sum(sum(count) - count[3] - count[4] for count in counts) / os.sysconf("SC_CLK_TCK")


def _warmed_up(work: Work, line: Line, compile: bool, stack: contextlib.ExitStack) -> Iterator[tuple[str, Side]]:
    started = {}
    for who in sides(work, compile):
        if who in (TRAINER, TRAINER_COMPILED) and util.find_spec("accelerate") is None:
            line.failures[who] = "accelerate is not installed: pip install 'adaptation-bench[speed]'"
        else:
            started[who] = stack.enter_context(Side(who, work))
    for who, side in list(started.items()):
        try:
            side.answer()  # it is ready
        except Failed as error:
            line.failures[who] = str(error)
            del started[who]
    for who, side in started.items():
        try:
            line.first_seconds[who] = side.ask(line.first_steps)["seconds"]
        except Failed as error:
            line.failures[who] = str(error)
        else:
            line.speeds[who] = []
            yield who, side


def _turn(work: Work, running: Mapping[str, Side], seconds: float) -> int:
    """How many steps a turn has: whole units, as many as our loop takes in about so many seconds."""
    for who in (COMPILED, OURS):
        if who in running:
            unit: float = running[who].ask(work.unit)["seconds"]
            return work.unit * max(1, min(round(seconds / unit), MOST_STEPS // work.unit))
    return work.unit
