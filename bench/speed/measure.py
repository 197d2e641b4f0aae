"""Compare our loop with others on the same work: each in a process of its own, by turns, in one run."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from importlib import util
from typing import TypeVar

from bench.speed import side
from bench.speed.line import Line
from bench.speed.side import Failed, Side
from bench.speed.work import BARE, COMPILED, OURS, RELEASED, SAME, TRAINER, TRAINER_COMPILED, Work

T = TypeVar("T")

MOST_STEPS = 400
"""How many steps a turn has at most, however short they are."""
QUIET = 0.1
"""A round counts as quiet where everything else on this computer used less than this share of the cores."""
MOST_ROUNDS = 3
"""How many rounds are tried for each quiet one that is asked for: at most 9 in all for 3."""


def sides(work: Work, compile: bool) -> list[str]:
    """List the loops that are compared."""
    compared = [OURS, *([COMPILED] if compile else []), RELEASED, SAME, BARE]
    if work.kind == "finetune":
        compared += [TRAINER, *([TRAINER_COMPILED] if compile else [])]
    return compared


def compare(work: Work, *, compile: bool, rounds: int, seconds: float, commit: str | None) -> Line:
    """Measure one line: warm everyone up, then take turns.

    A turn has as many steps as our loop takes in about `seconds`. Where other processes disturb a round, another one
    follows, and the `rounds` quietest count. A side that cannot run (no `accelerate`, out of memory) is left out, and
    the line says why.

    The order of events, with two sides and three rounds:

        start      ours, bare                     both processes build their networks at the same time
        ready      ours, bare                     their first answers are awaited
        warm up    ours 12 steps, bare 12 steps   these are the `first_seconds`, which do not count as speeds
        size       ours 1 unit                    how many steps a turn has
        round 1    peak, ours, bare               others used 2 % of the cores: quiet
        round 2    peak, ours, bare               others used 40 %: one round more is tried
        round 3    peak, ours, bare               quiet
        round 4    peak, ours, bare               quiet: that makes three, and round 2 is forgotten
    """
    line = Line(work.kind, work.network, work.precision, work.threads, work.batch_size, commit)
    line.first_steps = work.unit * (1 if work.on_cpu or work.quick else max(1, 12 // work.unit))
    with contextlib.suppress(Failed):
        line.flops = side.ask_once(side.FLOPS, work) / work.batch_size
    with contextlib.ExitStack() as stack:
        # All are started at once, then become ready, then take their first steps one by one.
        running: dict[str, Side] = {}
        for who in sides(work, compile):
            if who in (TRAINER, TRAINER_COMPILED) and util.find_spec("accelerate") is None:
                line.failures[who] = "accelerate is not installed: pip install 'adaptation-bench[speed]'"
            else:
                running[who] = stack.enter_context(contextlib.closing(Side(who, work)))
        dict(_asked(running, line, Side.answer))
        for who, turn in _asked(running, line, lambda process: process.ask(line.first_steps)):
            line.first_seconds[who], line.speeds[who] = turn.value, []
        peak = stack.enter_context(contextlib.closing(Side(side.PEAK, work)))
        peak.answer()
        steps = _steps_of_a_turn(work, running, seconds)
        while len(line.peaks) < MOST_ROUNDS * rounds and sum(map(_is_quiet, line.others)) < rounds:
            line.peaks.append(peak.ask(1).value)
            shares = []
            for who, turn in _asked(running, line, lambda process: process.ask(steps)):
                line.speeds[who].append(work.batch_size * steps / turn.value)
                shares.append(turn.others)
            line.others.append(max((share for share in shares if share is not None), default=None))
    quietest = sorted(range(len(line.peaks)), key=lambda i: line.others[i] or 0.0)[:rounds]
    line.keep(sorted(quietest))
    return line


def _is_quiet(others: float | None) -> bool:
    return others is None or others < QUIET


def _asked(running: dict[str, Side], line: Line, ask: Callable[[Side], T]) -> Iterator[tuple[str, T]]:
    """Ask one side after another and yield the answers.

    A side that fails runs no more, and the line says why.
    """
    for who, process in list(running.items()):
        try:
            answer = ask(process)
        except Failed as error:
            line.failures[who] = str(error)
            line.speeds.pop(who, None)
            del running[who]
        else:
            yield who, answer


def _steps_of_a_turn(work: Work, running: Mapping[str, Side], seconds: float) -> int:
    """Choose how many whole units fill about so many seconds."""
    for who in (COMPILED, OURS):
        if who in running:
            unit: float = running[who].ask(work.unit).value
            return work.unit * max(1, min(round(seconds / unit), MOST_STEPS // work.unit))
    return work.unit
