"""How long a run still takes, by the stages that have ended in it and those that are under way."""

from __future__ import annotations

import time
from collections.abc import Sequence

from bench.planning.cost import Kind, Rates, examples_of, kind_of
from bench.specs import Stage


class Estimate:
    """Learns the seconds that an example takes by kind of stage, and applies them to what is left.

    `rates` are those of earlier runs. A kind that nothing is known of is taken for the mean of the others. Example: two
    workers have ended one of three equal stages after 60 s, and are halfway through the others. What is left is one
    stage, 60 s for one worker; as two share it, 30 s.
    """

    def __init__(self, stages: Sequence[Stage], rates: Rates, workers: int) -> None:
        self._left: dict[str, float] = {stage.key: float(examples_of(stage)) for stage in stages}
        self._kinds = {stage.key: kind_of(stage) for stage in stages}
        self._batch_sizes = {stage.key: stage.schedule.batch_size for stage in stages}
        self._workers = workers
        self._rates: dict[Kind, float] = {kind: rate for (kind, task), rate in rates.items() if not task}
        self._first_reports: dict[str, tuple[int, float]] = {}
        """Key of a stage -> its step when it was first heard of in this run, and when that was."""
        self._whole: set[Kind] = set()
        """Kinds whose rate is of a stage that has ended: it counts evaluation, too, and stages under way keep it."""

    def progress(self, stage: Stage, step: int, steps: int) -> None:
        """Note how far a stage is.

        Its speed is measured from its first report on: before that it imported, or read its checkpoint.
        """
        if stage.key not in self._left:
            return
        now = time.monotonic()
        first, began = self._first_reports.setdefault(stage.key, (step, now))
        batch = self._batch_sizes[stage.key]
        self._left[stage.key] = float((steps - step) * batch)
        if step > first and now > began and self._kinds[stage.key] not in self._whole:
            self._rates[self._kinds[stage.key]] = (now - began) / ((step - first) * batch)

    def ended(self, stage: Stage) -> None:
        """Note that nothing is left of a stage, done or failed.

        One that came to its last step gives the rate of its kind, evaluation included.
        """
        if self._left.pop(stage.key, None) == 0 and stage.key in self._first_reports:
            first, began = self._first_reports[stage.key]
            examples = examples_of(stage) - first * self._batch_sizes[stage.key]
            if examples > 0:
                self._rates[self._kinds[stage.key]] = (time.monotonic() - began) / examples
                self._whole.add(self._kinds[stage.key])

    def seconds(self) -> float | None:
        """Estimate the seconds until all is done; None while nothing is known."""
        if not self._rates or not self._left:
            return None
        usual = sum(self._rates.values()) / len(self._rates)
        alone = sum(left * self._rates.get(self._kinds[key], usual) for key, left in self._left.items())
        return alone / max(1, min(self._workers, len(self._left)))


def clock(seconds: float) -> str:
    """Write seconds as a clock shows them: 4:09, or 1:04:09."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
