"""Everything that the file of a method imports from the suite, in one place.

    from bench.methods import AdamW, Cell, Loss, Objective, Schedule, Stage, finetune, recipe

Files written before import the same names from `bench.hooks`, `bench.registry` and `bench.specs`, which stay. Importing
this module imports no torch; `Model` and `Examples`, which need it, are in `bench.interfaces`.
"""

from bench.errors import InputError, SpecError, nearest
from bench.interfaces.hooks import Activity, Batch, Context, Loss, ParameterGroup, State, TeacherOutput
from bench.planning.cell import Cell
from bench.planning.registry import declare, finetune, recipe, register_backbone
from bench.specs import (
    NEGLIGIBLE,
    PRETRAINED,
    RANDOM,
    Backbone,
    Constraint,
    Data,
    Objective,
    Optimizer,
    Schedule,
    Stage,
    added,
    stream,
)
from bench.specs.architectures import MaskedAutoEncoder, MaskedLanguageModel
from bench.specs.objectives import AdamW, CrossEntropy, MaskedAutoEncoding

__all__ = [
    "NEGLIGIBLE",
    "PRETRAINED",
    "RANDOM",
    "Activity",
    "AdamW",
    "Backbone",
    "Batch",
    "Cell",
    "Constraint",
    "Context",
    "CrossEntropy",
    "Data",
    "InputError",
    "Loss",
    "MaskedAutoEncoder",
    "MaskedAutoEncoding",
    "MaskedLanguageModel",
    "Objective",
    "Optimizer",
    "ParameterGroup",
    "Schedule",
    "SpecError",
    "Stage",
    "State",
    "TeacherOutput",
    "added",
    "declare",
    "finetune",
    "nearest",
    "recipe",
    "register_backbone",
    "stream",
]
