"""What is computed, as plain data: specs, their canonical JSON and their keys.

A `Stage` is one training job. Its key is the sha256 of its canonical JSON, in which every object carries its type and
version and every stage it depends on stands as that stage's key; equal jobs therefore have equal keys, and nothing else
implements sharing. Nothing here imports torch or gin before something is computed.
"""

from bench.specs.parts import Data, Execution, PublicWeights, Schedule
from bench.specs.spec import (
    PLUGIN_NAMES,
    SPECS,
    Json,
    Spec,
    added,
    canonical_data,
    canonical_json,
    expanded,
    field_types,
    from_canonical,
    part_json,
    source_file,
    spec_class,
    spec_name,
    spec_plugin,
)
from bench.specs.stage import (
    NEGLIGIBLE,
    PRETRAINED,
    RANDOM,
    Backbone,
    Constraint,
    Need,
    Objective,
    Optimizer,
    Selected,
    Stage,
    Sum,
    walk,
)
from bench.specs.streams import stream
from bench.specs.values import coerce

__all__ = [
    "NEGLIGIBLE",
    "PLUGIN_NAMES",
    "PRETRAINED",
    "RANDOM",
    "SPECS",
    "Backbone",
    "Constraint",
    "Data",
    "Execution",
    "Json",
    "Need",
    "Objective",
    "Optimizer",
    "PublicWeights",
    "Schedule",
    "Selected",
    "Spec",
    "Stage",
    "Sum",
    "added",
    "canonical_data",
    "canonical_json",
    "coerce",
    "expanded",
    "field_types",
    "from_canonical",
    "part_json",
    "source_file",
    "spec_class",
    "spec_name",
    "spec_plugin",
    "stream",
    "walk",
]
