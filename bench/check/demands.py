"""What is demanded of every recipe, and of every class of specs in a plugin; each demand says what to mend."""

from __future__ import annotations

import inspect
import json
import math
import pickle
from collections.abc import Callable, Iterator

from bench.check.kit import Kit, Trained, Unmet
from bench.check.tiny import TASK_NAMES, own_stages
from bench.errors import InputError
from bench.specs import Constraint, Spec, Stage, canonical_data, field_types, from_canonical, walk
from bench.store.activity import inactive

Demand = Callable[[Kit, str, str], list[str]]
"""Looks at a recipe on a task. Raises `Unmet`; returns what is worth knowing though the demand is met."""


def _stages(kit: Kit, recipe: str, task: str) -> Iterator[tuple[Stage, Trained]]:
    last = kit.plan(recipe, task)
    return zip(walk(last), kit.train(last), strict=True)


def can_be_planned(kit: Kit, recipe: str, task: str) -> list[str]:
    """A recipe makes stages of a cell."""
    kit.plan(recipe, task)
    return []


def trains_to_the_end(kit: Kit, recipe: str, task: str) -> list[str]:
    """Every stage trains, and the last one has a record with finite numbers."""
    for stage, trained in _stages(kit, recipe, task):
        # A loss that is not finite ends a stage as failed.
        if trained.failure:
            raise Unmet(f"stage {stage.name} does not train on {task}: {trained.failure}")
    last = kit.plan(recipe, task)
    record = kit.trained[last.key].record
    assert record is not None  # it is done
    if (record["key"], record["steps"]) != (last.key, last.total_steps):
        raise Unmet(f"the record of stage {last.name} is of another key or number of steps")
    if not record["metrics"].keys() >= {"accuracy", "macro_f1", "micro_f1", "loss"}:
        raise Unmet("it ends without a classifier: its last stage needs an objective with 'labels' and 'head' in NEEDS")
    numbers = {**record["metrics"], **record["measured"]}
    if infinite := sorted(name for name, value in numbers.items() if not math.isfinite(value)):
        raise Unmet(f"its record holds numbers that are not finite: {', '.join(infinite)}")
    return []


def goes_on_after_an_interruption(kit: Kit, recipe: str, task: str) -> list[str]:
    """A stage that is stopped after any step goes on to the same bits."""
    kit.train(kit.plan(recipe, task))
    for stage in own_stages(kit.grid, recipe, task):
        kit.stop_after_every_step(stage)
    return []


def can_be_recorded(kit: Kit, recipe: str, task: str) -> list[str]:
    """Steps recorded as on a GPU change no bit; where none is recorded, that costs speed alone."""
    kit.train(kit.plan(recipe, task))
    notes = []
    for stage in own_stages(kit.grid, recipe, task):
        recordings, log = kit.record_steps(stage)
        if recordings == 0 or "not recorded" in log:
            reason = next((line for line in log.splitlines() if "not recorded" in line), "no shape came twice")
            notes.append(f"stage {stage.name}: a GPU records no step, which is slower ({reason.strip()})")
    return notes


def leaves_generators_alone(kit: Kit, recipe: str, task: str) -> list[str]:
    """No method seeds a global generator, or the next stage's numbers would depend on it."""
    for stage, trained in _stages(kit, recipe, task):
        if trained.intruders:
            raise Unmet(
                f"stage {stage.name}: {'; '.join(sorted(set(trained.intruders)))}. Seed nothing: the loop seeds torch, "
                "NumPy and random before `begin` and before every micro-batch; draw from them."
            )
    return []


def keeps_teachers_frozen(kit: Kit, recipe: str, task: str) -> list[str]:
    """A teacher is neither trained nor in train mode."""
    for stage, trained in _stages(kit, recipe, task):
        if trained.noisy_teachers:
            raise Unmet(
                f"stage {stage.name}: the teacher is trained or in train mode: {', '.join(trained.noisy_teachers)}. "
                "Leave it as `begin` was handed it; TeacherOutput reads it."
            )
    return []


CLOSE = 1e-4
"""How far two losses of one step may be apart, relative to the greater, for rounding in float32."""


def takes_micro_batches(kit: Kit, recipe: str, task: str) -> list[str]:
    """A batch in two parts has the loss of the whole, or the objective says that it needs the whole."""
    kit.train(kit.plan(recipe, task))
    notes = []
    for stage in own_stages(kit.grid, recipe, task):
        if stage.objective.whole_batch:
            notes.append(f"stage {stage.name}: its objective takes no micro-batches (WHOLE_BATCH)")
        elif stage.constraint is None or type(stage.constraint).inject is Constraint.inject:
            # What is injected may be noise, of which two micro-batches have twice.
            whole, split = kit.first_losses(stage, 1), kit.first_losses(stage, 2)
            for name, value in whole.items():
                if not math.isclose(split[name], value, rel_tol=CLOSE, abs_tol=CLOSE**2):
                    raise Unmet(
                        f"stage {stage.name}: '{name}' of the first step is {value:.6g} for the batch and "
                        f"{split[name]:.6g} for two micro-batches. Return a mean over the micro-batch, with share = "
                        "batch.mask_share for one over what a mask hides; where examples depend on each other, or "
                        "the loss draws random numbers, declare WHOLE_BATCH = True."
                    )
    return notes


def says_what_it_did(kit: Kit, recipe: str, task: str) -> list[str]:
    """What parts of a method measure of themselves is a finite number."""
    notes = []
    for stage, trained in _stages(kit, recipe, task):
        activity = trained.record["activity"] if trained.record is not None else {}
        if infinite := sorted(name for name, part in activity.items() if part["value"] is None):
            raise Unmet(f"stage {stage.name}: `activity` of {', '.join(infinite)} returned no finite number.")
        notes += [f"stage {stage.name}: {name} did nothing: {why}" for name, why in inactive(activity).items()]
    return notes


def is_plain_data(kit: Kit, recipe: str, task: str) -> list[str]:
    """Stages survive pickle, and JSON, as which stores keep them."""
    last = kit.plan(recipe, task)
    stages: dict[str, Spec] = {}
    for stage in walk(last):
        try:
            again = from_canonical(json.loads(json.dumps(canonical_data(stage))), stages.__getitem__)
        except (TypeError, ValueError, InputError) as error:
            raise Unmet(f"stage {stage.name} does not survive JSON: {error}. {PLAIN}") from error
        if again != stage or pickle.loads(pickle.dumps(stage)) != stage:
            raise Unmet(f"stage {stage.name} is another one after JSON or pickle. {PLAIN}")
        stages[stage.key] = stage
    return []


PLAIN = "Fields of specs are numbers, texts, truth values, None, tuples of them, or other specs."


def has_a_stable_key(kit: Kit, recipe: str, task: str) -> list[str]:
    """A key is the same in every process."""
    here, elsewhere = kit.keys(recipe)
    if task not in here or task not in elsewhere:
        raise Unmet(f"it cannot be planned for {task} at its defaults")
    if here[task] != elsewhere[task]:
        raise Unmet(
            f"its key on {task} is {here[task][:16]} in this process and {elsewhere[task][:16]} in another one. Let no "
            "field depend on the order of a set, a time, a path or a random number."
        )
    return []


DEMANDS: dict[str, Demand] = {
    "can be planned": can_be_planned,
    "trains to the end": trains_to_the_end,
    "is plain data": is_plain_data,
    "has a stable key": has_a_stable_key,
    "goes on after an interruption to the same bits": goes_on_after_an_interruption,
    "leaves random generators alone": leaves_generators_alone,
    "keeps teachers frozen": keeps_teachers_frozen,
    "takes micro-batches or refuses them": takes_micro_batches,
    "says what it did": says_what_it_did,
    "can be recorded on a GPU": can_be_recorded,
}
"""In the order in which they are looked at."""

FIRST = (can_be_planned, trains_to_the_end)
"""Without these no other demand can be looked at."""


def on_each_task(demand: Demand, kit: Kit, recipe: str) -> list[str]:
    """Look at a demand on every task that the recipe does not refuse, as one for texts alone refuses images."""
    refused: dict[str, Unmet] = {}
    for task in TASK_NAMES:
        try:
            can_be_planned(kit, recipe, task)
        except Unmet as reason:
            refused[task] = reason
    if len(refused) == len(TASK_NAMES):
        causes = dict.fromkeys(str(reason.__cause__) for reason in refused.values())
        raise Unmet(f"it cannot be planned for {' or '.join(refused)}: {' '.join(causes)}")
    notes = [note for task in TASK_NAMES if task not in refused for note in demand(kit, recipe, task)]
    return [str(reason) for reason in refused.values() if demand is can_be_planned] + notes


def is_declared(kind: type[Spec]) -> list[str]:
    """Demand that a class of specs is a frozen dataclass whose fields have types."""
    name = kind.__name__
    parameters = getattr(kind, "__dataclass_params__", None)
    if "__dataclass_fields__" not in vars(kind) and inspect.get_annotations(kind):
        raise Unmet(f"{name} declares fields but is no dataclass: write @dataclass(frozen=True) above it.")
    if parameters is None or not parameters.frozen:
        raise Unmet(f"{name} can be changed: write @dataclass(frozen=True) above it.")
    try:
        field_types(kind)
    except (NameError, TypeError) as error:
        raise Unmet(f"{name}: the type of a field cannot be read: {error}. {PLAIN}") from error
    return []
