"""What the jobs of an array are told; submitit hands it to them with the function that reads it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from bench.specs.cluster import Cluster
from bench.training.protocol import Settings


@dataclass(frozen=True)
class Assignment:
    """What every job of an array is to do: the same for all of them.

    A job pulls the stages of the generations 0 to `generation` from the `worklist` of that token, as far as `cluster`,
    which says what the job asked for, serves them. `settings` are for the workers, whose device the job itself chooses;
    `code` is a snapshot of the packages; `scontrol` is that program, as it was found where the job was submitted. Paths
    are absolute, since a job's working directory is not that of the submitter.
    """

    store: Path
    code: Path
    settings: Settings
    worklist: str
    generation: int
    cluster: Cluster
    scontrol: str
