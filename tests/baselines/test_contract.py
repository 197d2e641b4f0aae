"""What every method owes the suite. A file in baselines/ is enough to be held to it: this one names no method's code.

Each recipe is planned and trained on an image and a text task for a few steps on tiny networks; every stage of its own
must survive an interruption after any step with the same bits, keep its hands off global generators, and have a stable
key. All recipes together go through a grid whose processes are killed.
"""

import contextlib
import functools
import itertools
import json
import math
import os
import random
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any, get_args

import numpy as np
import pytest
import torch
from torch import Tensor

from bench.data.manifest import Manifest, SplitFacts
from bench.data.tasks import CORPORA, TASKS
from bench.device import seed
from bench.errors import InputError
from bench.interfaces.hooks import Context, State
from bench.interfaces.model import Model
from bench.models import text
from bench.planning.bindings import Binding, Bindings
from bench.planning.cell import Expansion
from bench.planning.registry import RECIPES, SETTINGS
from bench.planning.settings import Grid
from bench.specs import Objective, Stage, walk
from bench.store.manifest import write_manifest
from bench.store.store import Store
from bench.training import batches, graphs, loop, networks
from bench.training.checkpoint import Checkpoints
from bench.training.protocol import Outcome, Settings
from bench.training.worker import run
from tests.host_graph import HostGraph
from tests.test_grid import Workplace, wait_for

HERE = "tests/baselines/test_contract.py"
RECIPE_NAMES = sorted(name for name, recipe in RECIPES.items() if recipe.__module__.startswith("baselines."))
TASK_NAMES = ["digits", "pydocs"]
STEPS = 4

EXTRA: dict[str, dict[str, Any]] = {}
"""What a recipe cannot be planned without: recipe -> {"scope/configurable.setting": value}.

A setting of a recipe that ends in `backbone` needs no entry: it is given the task's own backbone.
"""

KEYS: dict[str, list[str]] = {
    "finetune": ["c88aeee599f45809f17620c0d73553fd", "fd646192bc1844cdc069b7d653713c15"],
    "kd": ["38394318e1a0fecde1596ea886a29b5f", "c829f423de1085f43d429ac23c187c8b"],
    "label_smoothing": ["a86091b9059f7fd18dafa440dfb113e2", "513de03b21f1100313817067e6056e92"],
    "mars": ["a1faddc6bc1c15f4ccddc6f108a08b9d", "4ea1bb719a1e9051fbe4100be7f25191"],
    "prediction_matching": ["d5b81209b7bcfa7a0b8740a3a2e2ff04", "06f16db6103c7c6833ba86280c0413bb"],
    "r3f": ["60d2bf7d36fd8f80858188439b9ce92a", "84e628640c178991360aa83143c8228e"],
    "recadam": ["c4cf3673ce7aa9645a324b34ee75b09f", "1f5c5b93d15f60109e8f93953bb7c0da"],
    "self_distillation": ["7c44912d24ba6d3372dacee03be3ce54", "dafabe716a2e386791ba5d7ed6f5c59c"],
    "self_distillation_without_distill": ["8d7146334b61aa78f4295690fbf60bfa", "00d44ffc988d0048e883a11f49faf7c1"],
    "self_distillation_without_mae": ["c5ed51308b298242d67ae3149ba3f2f4", "63e40459120a7981a424f391a0464053"],
    "self_kd": ["38394318e1a0fecde1596ea886a29b5f", "c829f423de1085f43d429ac23c187c8b"],
    "supcon": ["e8f271fb0e1c6ebb0f4d6a707cb889de", "b82f11d7d6c73cc554ec619f7b77a67a"],
    "tapt": ["8d7146334b61aa78f4295690fbf60bfa", "00d44ffc988d0048e883a11f49faf7c1"],
    "tapt_x2": ["03b5cb63dc9e0e389aefc3d8d4a6d0a2", "38979c0cd830536a72883c45f8f766d7"],
    "tf_kd_reg": ["5332373f0851a6c52aa9750bf386b80b", "ed920f8d51b32d13b196106e29235f66"],
    "tf_kd_self": ["38394318e1a0fecde1596ea886a29b5f", "c829f423de1085f43d429ac23c187c8b"],
    "weight_matching_l2": ["05aea68f345682d07aa8a5d312a3a6c8", "0c60d7738ac6f9e391b2a6405b6b77c5"],
    "weight_matching_mars": ["4df3e5aba9cf9b1c74821351dd3d4e64", "1124b8c1bc95bdcc036a067d5a108c44"],
}
"""The keys (first half) of each recipe's last stage at its defaults, on an image and a text task with made-up data.

One that changes makes every finished stage of that method a stranger to its store: say so in the changelog. A method
that is new may do without an entry; its keys are then only held to be the same in every process.
"""

SIZES: dict[str, dict[str, int]] = {
    "photos_mae": {
        "width": 16,
        "depth": 1,
        "heads": 2,
        "mlp_width": 32,
        "decoder_width": 16,
        "decoder_heads": 2,
        "decoder_mlp_width": 32,
    },
    # Padded to one length, so that shapes repeat within few steps.
    "docs_mlm": {"width": 16, "depth": 1, "heads": 2, "mlp_width": 32, "pad_to_multiple_of": 48},
}


# ------------------------------------------------------------------------------------------------ planning


def required() -> dict[str, Any]:
    """The bindings without which some recipe cannot be planned."""
    bound: dict[str, Any] = {}
    for recipe in RECIPE_NAMES:
        for setting, kind in SETTINGS[recipe].items():
            if setting.endswith("backbone") and (kind is str or str in get_args(kind)):
                bound |= {f"{task}/{recipe}.{setting}": TASKS[task].backbone for task in TASK_NAMES}
        bound |= EXTRA.get(recipe, {})
    return bound


def short(steps: int, batch_size: int) -> dict[str, Any]:
    """Bindings that make every stage short, whoever declared its schedule, and every network tiny."""
    bound: dict[str, Any] = {"data.subset": 32}
    for name, settings in SETTINGS.items():
        if {"steps", "batch_size", "warmup_steps"} <= settings.keys():
            bound |= {f"{name}.steps": steps, f"{name}.batch_size": batch_size, f"{name}.warmup_steps": 1}
    bound |= {f"{name}/backbone.{size}": value for name, sizes in SIZES.items() for size, value in sizes.items()}
    return bound


def expansion(data: Path, bound: dict[str, Any], tasks: list[str] = TASK_NAMES) -> Expansion:
    """A grid of all recipes with these bindings; what no row reads is no mistake here."""
    bindings = []
    for target, value in bound.items():
        scope, _, name = target.rpartition("/")
        configurable, _, setting = name.partition(".")
        bindings.append(Binding(scope, configurable, setting, value, f"{HERE}: {target}"))
    return Expansion(Grid(rows=tuple(RECIPE_NAMES), tasks=tuple(tasks), seeds=(0,)), Bindings(bindings), data)


def plan(grid: Expansion, recipe: str, task: str) -> Stage:
    """The last stage of a recipe; a refusal says where bindings that it needs can be given."""
    try:
        return grid.stage(recipe, task, 0)
    except InputError as error:
        pytest.fail(f"{recipe} cannot be planned for {task}: {error}\nWhat it needs belongs into EXTRA in {HERE}.")


def own_stages(grid: Expansion, recipe: str, task: str) -> list[Stage]:
    """The stages that neither fine-tuning nor further pre-training has; all of those methods' own."""
    common = () if recipe in ("finetune", "tapt") else [plan(grid, name, task) for name in ("finetune", "tapt")]
    known = {stage.key for stage in walk(*common)}
    return [stage for stage in walk(plan(grid, recipe, task)) if stage.key not in known]


# ------------------------------------------------------------------------------------------------ running stages


class Watch:
    """Who touches global generators while a stage runs; what objectives began with."""

    SEEDING = ("manual_seed", "seed", "set_rng_state", "fork_rng")

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.intruders: list[str] = []
        self.states: list[State] = []
        self.teachers: list[Model] = []
        self._seed: int | None = None
        for name in self.SEEDING:
            original = getattr(torch.random, name)
            for module in (torch, torch.random):
                if hasattr(module, name):
                    patch.setattr(module, name, self._refused(name, original))
        for module, name in ((random, "seed"), (np.random, "seed")):
            patch.setattr(module, name, self._refused(name, getattr(module, name)))
        for module in (loop, networks):  # the loop's own seeding
            patch.setattr(module, "seed", self._loops)

    def _refused(self, name: str, original: Any) -> Any:
        @functools.wraps(original)
        def call(*args: Any, **kwargs: Any) -> Any:
            frame: FrameType = sys._getframe(1)
            caller = frame.f_globals.get("__name__", "?")
            if caller != "bench.device":  # which seeds all of them for the loop
                self.intruders.append(f"{original.__module__}'s {name} called by {caller}")
            self.look()
            result = original(*args, **kwargs)
            self._seed = torch.initial_seed()
            return result

        return call

    def _loops(self, value: int, device: torch.device) -> None:
        self.look()
        seed(value, device)
        self._seed = torch.initial_seed()

    def look(self) -> None:
        """Note it if anybody has seeded torch's default generator by a way of its own."""
        if self._seed is not None and torch.initial_seed() != self._seed:
            self.intruders.append("torch's default generator was seeded by something else than the loop")

    def begins(self, stage: Stage, patch: pytest.MonkeyPatch) -> None:
        """Remember the states and teachers that this stage's objective begins with."""
        kind = type(stage.objective)
        original = kind.begin

        def begin(objective: Objective, model: Model, teacher: Model | None, context: Context) -> State:
            state = original(objective, model, teacher, context)
            self.states.append(state)
            if teacher is not None:
                self.teachers.append(teacher)
            return state

        patch.setattr(kind, "begin", begin)


@dataclass
class Trained:
    """A stage that ran from beginning to end, and what was seen meanwhile."""

    outcome: Outcome
    record: dict[str, Any] | None
    log: str
    intruders: list[str]
    stateful: bool
    noisy_teachers: list[str] = field(default_factory=list)


@dataclass
class Kit:
    """The recipes on tiny networks, and a store in which each of their stages is trained once."""

    data: Path
    root: Path
    device: str = "cpu"
    bound: dict[str, Any] = field(default_factory=dict)
    graph: type[Any] = HostGraph
    trained: dict[str, Trained] = field(default_factory=dict)
    resumed: set[str] = field(default_factory=set)
    recorded: dict[str, tuple[int, str]] = field(default_factory=dict)

    @property
    def grid(self) -> Expansion:
        """The grid, anew: one that has refused a row is of no further use."""
        return expansion(self.data, {**short(STEPS, batch_size=4), **required(), **self.bound})

    @property
    def settings(self) -> Settings:
        """Where and how its stages run."""
        return Settings(self.data, self.device)

    def train(self, last: Stage) -> list[Trained]:
        """All stages up to this one, each run once."""
        for stage in walk(last):
            if stage.key not in self.trained:
                self.trained[stage.key] = self._train(stage)
        return [self.trained[stage.key] for stage in walk(last)]

    def _train(self, stage: Stage) -> Trained:
        store = Store(self.root / "runs")
        folder = store.add(stage)
        with pytest.MonkeyPatch.context() as patch:
            watch = Watch(patch)
            watch.begins(stage, patch)
            outcome = run(folder, self.settings, lambda: False, lambda step, steps, loss: None)
            watch.look()
        return Trained(
            outcome,
            store.record(stage),
            (folder / "log.txt").read_text(),
            watch.intruders,
            any(state.module is not None or state.tensors for state in watch.states),
            [name for teacher in watch.teachers for name, module in teacher.named_modules() if module.training]
            + [
                name
                for teacher in watch.teachers
                for name, weight in teacher.named_parameters()
                if weight.requires_grad
            ],
        )

    def stop_after_every_step(self, stage: Stage) -> None:
        """Train a stage again, stopped after every step; checks each checkpoint, and the result against the first."""
        if stage.key in self.resumed:
            return
        self.resumed.add(stage.key)
        store, folder = self._beside_its_parents(stage, "resumed")
        with pytest.MonkeyPatch.context() as patch:
            watch = Watch(patch)
            watch.begins(stage, patch)
            for done in range(1, stage.total_steps + 1):
                asked = itertools.count()  # for the first time before the stage begins, then after every step
                outcome = run(
                    folder, self.settings, lambda asked=asked: next(asked) > 0, lambda step, steps, loss: None
                )
                if done == stage.total_steps:
                    break
                assert outcome.state == "interrupted", f"after step {done}: {outcome}"
                assert outcome.from_step == done - 1
                check_round_trip(folder, stage, done, watch.states[-1])
        assert outcome.state == "done", outcome
        self._check_same(stage, store)

    def record_steps(self, stage: Stage) -> None:
        """Train a stage with steps recorded as on a GPU, and as they are written; checks one against the other."""
        if stage.key in self.recorded:
            return
        weights = {}
        for recorded in (False, True):
            store, folder = self._beside_its_parents(stage, "recorded" if recorded else "written")
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(batches, "has_graphs", lambda device: True)  # texts as a GPU is given them
                patch.setattr(text, "rounded_size", lambda selected: 64)  # so that shapes repeat within few steps
                patch.setattr(loop, "has_graphs", lambda device, recorded=recorded: recorded)
                patch.setattr(graphs, "UNRECORDED_USES", 1)
                patch.setattr(self.graph, "made", 0)
                patch.setattr(graphs, "Graph", self.graph)
                if self.graph is HostGraph:
                    patch.setattr(graphs, "graph_pool", lambda device: None)
                outcome = run(folder, self.settings, lambda: False, lambda step, steps, loss: None)
                self.recorded[stage.key] = self.graph.made, (folder / "log.txt").read_text()
            assert outcome.state == "done", outcome
            record = store.record(stage)
            assert record is not None
            weights[recorded] = record["weights"]["sha256"], record["metrics"]
        assert weights[True] == weights[False]

    def _beside_its_parents(self, stage: Stage, name: str) -> tuple[Store, Path]:
        """Another store in which the stage's parents are done already, and the stage's folder there."""
        store = Store(self.root / f"{name}-{stage.key[:16]}")
        store.root.mkdir()
        for parent in walk(*stage.parents):
            store.folder(parent).symlink_to(self.root / "runs" / parent.folder)
        return store, store.add(stage)

    def _check_same(self, stage: Stage, store: Store) -> None:
        again, first = store.record(stage), Store(self.root / "runs").record(stage)
        assert again is not None and first is not None
        assert again["weights"]["sha256"] == first["weights"]["sha256"]
        assert again["metrics"] == first["metrics"]


def check_round_trip(folder: Path, stage: Stage, step: int, state: State) -> None:
    """The newest checkpoint is of this step and holds all that the objective keeps, as it was."""
    newest = max((folder / "checkpoints").glob("*.pt"))
    identity = torch.load(newest, weights_only=True)["identity"]
    assert identity[:2] == [stage.key, stage.key]
    saved = Checkpoints(newest.parent, tuple(identity)).load(torch.device("cpu"))
    assert saved is not None and saved[0] == step
    kept = {} if state.module is None else state.module.state_dict()
    for part, expected in (("state_module", kept), ("state_tensors", state.tensors)):
        found: dict[str, Tensor] = saved[1][part]
        assert found.keys() == expected.keys()
        assert all(torch.equal(found[name], value.cpu()) for name, value in expected.items()), part


@pytest.fixture(scope="module")
def kit(prepared: Path, tmp_path_factory: pytest.TempPathFactory) -> Kit:
    return Kit(prepared, tmp_path_factory.mktemp("contract"))


each_recipe = pytest.mark.parametrize("recipe", RECIPE_NAMES)
each_task = pytest.mark.parametrize("task", TASK_NAMES)


# ------------------------------------------------------------------------------------------------ the contract


@each_task
@each_recipe
def test_every_stage_trains_and_the_last_has_a_record(kit: Kit, recipe: str, task: str) -> None:
    last = plan(kit.grid, recipe, task)
    for stage, trained in zip(walk(last), kit.train(last), strict=True):
        # A loss that is not finite ends a stage as failed.
        assert trained.outcome.state == "done", f"{stage.folder}: {trained.outcome.reason}\n{trained.log}"
    record = kit.trained[last.key].record
    assert record is not None
    assert record["key"] == last.key and record["steps"] == last.total_steps
    assert record["metrics"].keys() >= {"accuracy", "macro_f1", "micro_f1", "loss"}, (
        f"{recipe} ends without a classifier"
    )
    assert all(math.isfinite(value) for value in [*record["metrics"].values(), *record["measured"].values()])


@each_task
@each_recipe
def test_an_interruption_after_any_step_changes_no_bit(kit: Kit, recipe: str, task: str) -> None:
    kit.train(plan(kit.grid, recipe, task))
    for stage in own_stages(kit.grid, recipe, task):
        kit.stop_after_every_step(stage)


@each_task
@each_recipe
def test_recorded_steps_change_no_bit(kit: Kit, recipe: str, task: str) -> None:
    kit.train(plan(kit.grid, recipe, task))
    for stage in own_stages(kit.grid, recipe, task):
        kit.record_steps(stage)
        recordings, log = kit.recorded[stage.key]
        assert recordings > 0 and "not recorded" not in log, f"{stage.folder}: {recordings}\n{log}"


@each_task
@each_recipe
def test_global_generators_are_left_alone(kit: Kit, recipe: str, task: str) -> None:
    last = plan(kit.grid, recipe, task)
    for stage, trained in zip(walk(last), kit.train(last), strict=True):
        assert not trained.intruders, f"{stage.folder}: {sorted(set(trained.intruders))}"


@each_task
@each_recipe
def test_teachers_are_frozen_and_without_dropout(kit: Kit, recipe: str, task: str) -> None:
    last = plan(kit.grid, recipe, task)
    for stage, trained in zip(walk(last), kit.train(last), strict=True):
        assert not trained.noisy_teachers, f"{stage.folder}: trained or in train mode: {trained.noisy_teachers}"


@each_task
def test_some_method_keeps_a_state_and_some_method_has_a_teacher(kit: Kit, task: str) -> None:
    """Without them two of the checks above would compare nothing."""
    stages = {stage.key: stage for recipe in RECIPE_NAMES for stage in walk(plan(kit.grid, recipe, task))}
    found = [trained for stage in stages.values() for trained in kit.train(stage)]
    assert any(trained.stateful for trained in found)
    assert any(stage.teacher is not None for stage in stages.values())


# ------------------------------------------------------------------------------------------------ keys


def keys(folder: Path) -> dict[str, list[str]]:
    """The keys of all recipes at their defaults: recipe -> first half of the key for each task.

    The data are made up, so that the keys depend on no machine.
    """
    for name, modality in {**{task: TASKS[task].modality for task in TASK_NAMES}, **CORPORA}.items():
        classes = [f"class {number}" for number in range(10)] if name in TASK_NAMES else None
        training, test = (
            SplitFacts(examples=size, checksum=digit * 64, per_class=(size // 10,) * 10 if classes else None)
            for size, digit in ((1000, "1"), (200, "2"))
        )
        manifest = Manifest(
            name=name,
            modality=modality,
            class_names=tuple(classes) if classes else None,
            splits={"train": training, "test": test},
            tokenizer_checksum="3" * 64 if name == "docstrings" else None,
            sources={},
            vocabulary=4000 if name == "docstrings" else None,
        )
        (folder / name).mkdir(parents=True, exist_ok=True)
        write_manifest(folder / name, manifest)
    grid, found = expansion(folder, required()), {}
    for recipe in RECIPE_NAMES:
        with contextlib.suppress(InputError):  # one that cannot be planned has no key, and fails a test of its own
            found[recipe] = [grid.stage(recipe, task, 0).key[:32] for task in TASK_NAMES]
    return found


@pytest.fixture(scope="module")
def all_keys(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, list[str]], dict[str, list[str]]]:
    """The keys as this process and another one compute them."""
    code = "import json, sys; from pathlib import Path; import baselines; baselines.register(); "
    code += "from tests.baselines.test_contract import keys; "
    code += "print(json.dumps(keys(Path(sys.argv[1]))))"
    command = [sys.executable, "-c", code, str(tmp_path_factory.mktemp("other"))]
    environment = {**os.environ, "PYTHONHASHSEED": "4242"}
    root = Path(__file__).parents[2]
    result = subprocess.run(command, capture_output=True, text=True, check=False, env=environment, cwd=root)
    assert result.returncode == 0, result.stderr
    return keys(tmp_path_factory.mktemp("keys")), json.loads(result.stdout)


@each_recipe
def test_keys_are_the_same_in_every_process_and_version(
    all_keys: tuple[dict[str, list[str]], dict[str, list[str]]], recipe: str
) -> None:
    here, elsewhere = all_keys
    assert recipe in here, "it cannot be planned"
    assert here[recipe] == elsewhere[recipe]
    if recipe in KEYS:
        assert here[recipe] == KEYS[recipe]


def test_every_golden_key_has_its_method() -> None:
    assert KEYS.keys() <= set(RECIPE_NAMES)


# ------------------------------------------------------------------------------------------------ kill -9


def killable(data: Path) -> str:
    """A gin file of all recipes on images, whose stages are long enough to be killed in their middle."""
    bound = {**short(24, batch_size=4), **required()}
    grid = expansion(data, bound, ["digits"])
    for recipe in RECIPE_NAMES:
        plan(grid, recipe, "digits")
    lines = [f"grid.rows = {RECIPE_NAMES}", "grid.tasks = ['digits']", "grid.seeds = [0]", "grid.checkpoint_steps = 4"]
    return "\n".join([*lines, *sorted(f"{used.target} = {used.value!r}" for used in grid.bindings.used)]) + "\n"


def test_killing_a_grid_of_all_methods_changes_no_bit(prepared: Path, tmp_path: Path) -> None:
    text = killable(prepared)
    undisturbed = Workplace(tmp_path / "undisturbed", prepared, text)
    assert undisturbed.run() == 0
    place = Workplace(tmp_path / "killed", prepared, text)
    chance = random.Random("kill")
    kills, cut_short = 0, set()
    while kills < 2 or not cut_short:
        process = place.start("--launcher", "local", "--workers", "2")
        before = place.checkpoints()
        wait_for(lambda seen=before: place.checkpoints().items() - seen.items(), process)
        time.sleep(chance.uniform(0.0, 0.2))
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        kills += 1
        cut_short |= place.checkpoints().keys() - place.weights().keys()
    process = place.start("--launcher", "local", "--workers", "2")
    assert process.wait() == 0, place.output()
    assert place.numbers() == undisturbed.numbers()
    assert place.weights() == undisturbed.weights()
    resumed = {name for name, attempts in place.ledger().items() if any(attempt["from_step"] for attempt in attempts)}
    assert resumed >= cut_short
