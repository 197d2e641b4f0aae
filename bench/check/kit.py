"""Trains the stages of recipes on tiny networks: to the end, stopped after every step, recorded, in micro-batches."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

import bench
from bench.check.host_graph import HostGraph
from bench.check.tiny import BATCH_SIZE, STEPS, Bound, Keys, expansion, keys, keys_elsewhere, required, short
from bench.check.watch import Patches, Watch
from bench.errors import InputError
from bench.interfaces.hooks import State
from bench.models import text
from bench.planning.cell import Expansion
from bench.planning.plugins import is_installed
from bench.specs import Stage, walk
from bench.store.states import StageState
from bench.store.store import Store
from bench.training import batches, fit, graphs, loop
from bench.training.checkpoint import Checkpoints
from bench.training.protocol import Outcome, Settings
from bench.training.worker import run

R = TypeVar("R")


class Unmet(Exception):
    """A demand is not met; the message says what to mend."""


@dataclass
class Trained:
    """A stage that ran from beginning to end, and what was seen meanwhile."""

    outcome: Outcome
    record: dict[str, Any] | None
    log: str
    intruders: list[str]
    """Who seeded a global generator besides the loop, a sentence each."""
    stateful: bool
    """Whether its objective keeps tensors or a module between steps."""
    noisy_teachers: list[str]
    """Parts of its teacher that were trained, or in train mode."""

    @property
    def failure(self) -> str:
        """Why it failed, with the last line of a file outside the suite on the way there; '' where it did not."""
        if self.outcome.state == StageState.DONE:
            return ""
        suite = str(Path(bench.__file__).parent)
        lines = [
            f"{file}:{line}"
            for file, line in re.findall(r'File "([^"]+\.py)", line (\d+)', self.log)
            if not file.startswith(suite) and not is_installed(Path(file))
        ]
        return self.outcome.reason + (f" ({lines[-1]})" if lines else "")


def _once(method: Callable[..., R]) -> Callable[..., R]:
    """Ask a method once for each stage, which recipes share; what is unmet is unmet for all of them."""

    @functools.wraps(method)
    def known(kit: Kit, stage: Stage, *more: Any) -> R:
        question = (method.__name__, stage.key, *more)
        if question not in kit.answers:
            try:
                kit.answers[question] = method(kit, stage, *more)
            except Unmet as unmet:
                kit.answers[question] = unmet
        answer: R | Unmet = kit.answers[question]
        if isinstance(answer, Unmet):
            raise answer
        return answer

    return known


@dataclass
class Kit:
    """The recipes on tiny networks, and a store in which each of their stages is trained once."""

    recipes: Sequence[str]
    data: Path
    root: Path
    device: str = "cpu"
    bound: Bound = field(default_factory=dict)
    graph: type[Any] = HostGraph
    trained: dict[str, Trained] = field(default_factory=dict)
    answers: dict[tuple[Any, ...], Any] = field(default_factory=dict)
    """Method, key of a stage and further arguments -> what came out, or the Unmet that was raised."""

    @property
    def grid(self) -> Expansion:
        """The grid, anew: one that has refused a row is of no further use."""
        bound = {**short(STEPS, BATCH_SIZE), **required(self.recipes), **self.bound}
        return expansion(self.recipes, self.data, bound)

    def keys(self, recipe: str) -> tuple[dict[str, str], dict[str, str]]:
        """Return a recipe's keys by task, as this process and another one compute them."""
        here, elsewhere = self._all_keys
        return here[recipe], elsewhere[recipe]

    @functools.cached_property
    def _all_keys(self) -> tuple[Keys, Keys]:
        here = keys(self.recipes, self.root / "keys", self.bound)
        return here, keys_elsewhere(self.recipes, self.root / "elsewhere", self.bound)

    def plan(self, recipe: str, task: str) -> Stage:
        """Plan the last stage of a recipe."""
        try:
            return self.grid.stage(recipe, task, 0)
        except InputError as error:
            raise Unmet(f"it cannot be planned for {task}: {error}") from error

    def train(self, last: Stage) -> list[Trained]:
        """Run all stages up to this one, each once."""
        for stage in walk(last):
            if stage.key not in self.trained:
                self.trained[stage.key] = self._train(stage)
        return [self.trained[stage.key] for stage in walk(last)]

    def _train(self, stage: Stage) -> Trained:
        store = Store(self.root / "runs")
        folder = store.add(stage)
        with Patches() as patches:
            watch = Watch(stage, patches)
            outcome = self._run(folder)
            watch.look()
        return Trained(
            outcome,
            store.record(stage),
            (folder / "log.txt").read_text(encoding="utf-8"),
            watch.intruders,
            any(state.module is not None or state.tensors for state in watch.states),
            watch.unfrozen(),
        )

    def _run(self, folder: Path, stop: Callable[[], bool] = lambda: False) -> Outcome:
        return run(folder, Settings(self.data, self.device), stop, lambda step, steps, loss: None)

    # -------------------------------------------------------------------------------------------- in other ways

    @_once
    def stop_after_every_step(self, stage: Stage) -> None:
        """Train a stage again, stopped after every step; check each checkpoint, and the result against the first."""
        store, folder = self._beside_its_parents(stage, "resumed")
        with Patches() as patches:
            watch = Watch(stage, patches)
            for done in range(1, stage.total_steps + 1):
                asked = itertools.count()  # for the first time before the stage begins, then after every step
                outcome = self._run(folder, lambda asked=asked: next(asked) > 0)  # type: ignore[misc]
                if done == stage.total_steps:
                    break
                if (outcome.state, outcome.from_step) != (StageState.INTERRUPTED, done - 1):
                    raise Unmet(f"stage {stage.name} was to stop after step {done}: {outcome}")
                _check_round_trip(folder, stage, done, watch.states[-1])
        if outcome.state != StageState.DONE:
            raise Unmet(f"stage {stage.name}, stopped after every step, does not end: {outcome.reason}")
        again, first = store.record(stage), Store(self.root / "runs").record(stage)
        assert again is not None and first is not None  # both are done
        if (again["weights"]["sha256"], again["metrics"]) != (first["weights"]["sha256"], first["metrics"]):
            raise Unmet(
                f"stage {stage.name} comes to other weights when it is stopped after every step and goes on. Keep "
                "what changes between steps in State.tensors or State.module, or in an optimiser's `state`; none of it "
                "in attributes, the spec or the module."
            )

    @_once
    def record_steps(self, stage: Stage) -> tuple[int, str]:
        """Train a stage with steps recorded as on a GPU, and as they are written; check one against the other.

        Returns how many recordings were made, and the log.
        """
        written, _, _ = self._with_recording(stage, recorded=False)
        repeated, recordings, log = self._with_recording(stage, recorded=True)
        if repeated != written:
            raise Unmet(
                f"stage {stage.name} comes to other weights when its steps are recorded as on a GPU. With "
                "CAPTURABLE = True, change tensors of the state in place, and read no step number in a loss."
            )
        return recordings, log

    def _with_recording(self, stage: Stage, recorded: bool) -> tuple[tuple[str, Any], int, str]:
        """Return the checksum and metrics that a stage comes to, the number of its recordings, and the log."""
        store, folder = self._beside_its_parents(stage, "recorded" if recorded else "written")
        with Patches() as patches:
            patches.set(batches, "has_graphs", lambda device: True)  # texts as a GPU is given them
            patches.set(text, "rounded_size", lambda selected: 64)  # so that shapes repeat within few steps
            patches.set(loop, "has_graphs", lambda device: recorded)
            patches.set(graphs, "UNRECORDED_USES", 1)
            patches.set(self.graph, "count", 0)
            patches.set(graphs, "Graph", self.graph)
            if self.graph is HostGraph:
                patches.set(graphs, "graph_pool", lambda device: None)
            outcome = self._run(folder)
            recordings, log = self.graph.count, (folder / "log.txt").read_text(encoding="utf-8")
        record = store.record(stage)
        if record is None:
            raise Unmet(f"stage {stage.name}, with steps {'recorded' if recorded else 'written out'}: {outcome.reason}")
        return (record["weights"]["sha256"], record["metrics"]), recordings, log

    @_once
    def first_losses(self, stage: Stage, micro_batches: int) -> dict[str, float]:
        """Train a stage without dropout, its batches split; return the losses of its first step by name."""
        schedule = dataclasses.replace(stage.schedule, micro_batches=micro_batches, dropout=0.0)
        split = dataclasses.replace(stage, schedule=schedule)
        store, folder = self._beside_its_parents(split, f"split-{micro_batches}")
        losses: list[dict[str, float]] = []
        supervise = fit._supervision

        def listening(*facts: Any) -> loop.Supervision:
            return dataclasses.replace(supervise(*facts), progress=lambda step, values: losses.append({**values}))

        with Patches() as patches:
            patches.set(fit, "_supervision", listening)
            outcome = self._run(folder)
        if store.record(split) is None:
            raise Unmet(f"stage {stage.name} with micro_batches = {micro_batches}: {outcome.reason}")
        return losses[0]

    def _beside_its_parents(self, stage: Stage, name: str) -> tuple[Store, Path]:
        """Return another store in which the stage's parents are done already, and the stage's folder there."""
        store = Store(self.root / f"{name}-{stage.key[:16]}")
        store.root.mkdir()
        for parent in walk(*stage.parents):
            store.folder(parent).symlink_to(self.root / "runs" / parent.folder)
        return store, store.add(stage)


def _check_round_trip(folder: Path, stage: Stage, step: int, state: State) -> None:
    """Check that the newest checkpoint is of this step and holds all that the objective keeps, as it was."""
    newest = max((folder / "checkpoints").glob("*.pt"))
    identity = torch.load(newest, weights_only=True)["identity"]
    saved = Checkpoints(newest.parent, tuple(identity)).load(torch.device("cpu"))
    if identity[:2] != [stage.key, stage.key] or saved is None or saved[0] != step:
        raise Unmet(f"stage {stage.name}: the checkpoint after step {step} is of another stage or step.")
    kept = {} if state.module is None else state.module.state_dict()
    for part, expected in (("state_module", kept), ("state_tensors", state.tensors)):
        tensors: dict[str, Tensor] = saved[1][part]
        if tensors.keys() != expected.keys() or not all(
            torch.equal(tensors[name], value.cpu()) for name, value in expected.items()
        ):
            raise Unmet(f"stage {stage.name}: its {part} are not those of its checkpoint after step {step}.")
