"""What every method owes the suite. A file in baselines/ is enough to be held to it: this one names no method's code.

Each recipe is planned and trained on an image and a text task for a few steps on tiny networks; every stage of its own
must survive an interruption after any step with the same bits, keep its hands off global generators, and have a stable
key. All recipes together go through a grid whose processes are killed.
"""

import os
import random
import signal
import time
from pathlib import Path

import pytest

from bench.check import demands
from bench.check.kit import Kit
from bench.check.tiny import TASK_NAMES, expansion, required, short
from bench.planning.registry import RECIPES
from bench.specs import walk
from tests.test_grid import Workspace, wait_for

RECIPE_NAMES = sorted(name for name, recipe in RECIPES.items() if recipe.__module__.startswith("baselines."))
EXTRA: dict[str, object] = {}
"""What recipes cannot be planned without: "scope/configurable.setting" -> value."""

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


@pytest.fixture(scope="module")
def kit(prepared: Path, tmp_path_factory: pytest.TempPathFactory) -> Kit:
    return Kit(RECIPE_NAMES, prepared, tmp_path_factory.mktemp("contract"), bound=EXTRA)


each_recipe = pytest.mark.parametrize("recipe", RECIPE_NAMES)
each_task = pytest.mark.parametrize("task", TASK_NAMES)


# ------------------------------------------------------------------------------------------------ the contract


@each_task
@each_recipe
def test_every_stage_trains_and_the_last_has_a_record(kit: Kit, recipe: str, task: str) -> None:
    demands.trains_to_the_end(kit, recipe, task)


@each_task
@each_recipe
def test_an_interruption_after_any_step_changes_no_bit(kit: Kit, recipe: str, task: str) -> None:
    demands.goes_on_after_an_interruption(kit, recipe, task)


@each_task
@each_recipe
def test_recorded_steps_change_no_bit(kit: Kit, recipe: str, task: str) -> None:
    assert demands.can_be_recorded(kit, recipe, task) == []  # every step of ours is recorded


@each_task
@each_recipe
def test_global_generators_are_left_alone(kit: Kit, recipe: str, task: str) -> None:
    demands.leaves_generators_alone(kit, recipe, task)


@each_task
@each_recipe
def test_teachers_are_frozen_and_without_dropout(kit: Kit, recipe: str, task: str) -> None:
    demands.keeps_teachers_frozen(kit, recipe, task)


@each_task
@each_recipe
def test_a_batch_in_two_parts_has_the_loss_of_the_whole(kit: Kit, recipe: str, task: str) -> None:
    demands.takes_micro_batches(kit, recipe, task)


@each_task
@each_recipe
def test_activity_is_finite(kit: Kit, recipe: str, task: str) -> None:
    demands.says_what_it_did(kit, recipe, task)


@each_task
@each_recipe
def test_stages_survive_json_and_pickle(kit: Kit, recipe: str, task: str) -> None:
    demands.is_plain_data(kit, recipe, task)


@each_task
def test_some_method_keeps_a_state_and_some_method_has_a_teacher(kit: Kit, task: str) -> None:
    """Without them two of the checks above would compare nothing."""
    stages = {stage.key: stage for recipe in RECIPE_NAMES for stage in walk(kit.plan(recipe, task))}
    trainings = [trained for stage in stages.values() for trained in kit.train(stage)]
    assert any(trained.stateful for trained in trainings)
    assert any(stage.teacher is not None for stage in stages.values())


# ------------------------------------------------------------------------------------------------ keys


@each_recipe
def test_keys_are_the_same_in_every_process_and_version(kit: Kit, recipe: str) -> None:
    for task in TASK_NAMES:
        demands.has_a_stable_key(kit, recipe, task)
    if recipe in KEYS:
        assert [kit.keys(recipe)[0][task][:32] for task in TASK_NAMES] == KEYS[recipe]


def test_every_golden_key_has_its_method() -> None:
    assert KEYS.keys() <= set(RECIPE_NAMES)


# ------------------------------------------------------------------------------------------------ kill -9


def killable(data: Path) -> str:
    """A gin file of all recipes on images, whose stages are long enough to be killed in their middle."""
    bound = {**short(24, batch_size=4), **required(RECIPE_NAMES), **EXTRA}
    grid = expansion(RECIPE_NAMES, data, bound, ["digits"])
    for recipe in RECIPE_NAMES:
        grid.stage(recipe, "digits", 0)
    lines = [f"grid.rows = {RECIPE_NAMES}", "grid.tasks = ['digits']", "grid.seeds = [0]", "grid.checkpoint_steps = 4"]
    return "\n".join([*lines, *sorted(f"{used.target} = {used.value!r}" for used in grid.bindings.used)]) + "\n"


def test_killing_a_grid_of_all_methods_changes_no_bit(prepared: Path, tmp_path: Path) -> None:
    text = killable(prepared)
    undisturbed = Workspace(tmp_path / "undisturbed", prepared, text)
    assert undisturbed.run() == 0
    workspace = Workspace(tmp_path / "killed", prepared, text)
    chance = random.Random("kill")
    kills, cut_short = 0, set()
    while kills < 3 or not cut_short:
        process = workspace.fork()
        before = workspace.checkpoints()
        wait_for(lambda seen=before: workspace.checkpoints().items() - seen.items(), process)
        time.sleep(chance.uniform(0.0, 0.2))
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        kills += 1
        cut_short |= workspace.checkpoints().keys() - workspace.weights().keys()
    process = workspace.fork()
    assert process.wait() == 0, workspace.output()
    assert workspace.numbers() == undisturbed.numbers()
    assert workspace.weights() == undisturbed.weights()
    resumed = {
        name for name, attempts in workspace.ledger().items() if any(attempt["from_step"] for attempt in attempts)
    }
    assert resumed >= cut_short
