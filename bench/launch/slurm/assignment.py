"""What one element of a job array is told to run; submitit hands it to the job with the function that reads it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from bench.training.protocol import Settings


@dataclass(frozen=True)
class Assignment:
    """What one element of a job array runs, and how.

    `stages` are names of folders of the store, which `settings` have run, the device left open. `signal_delay_s` is how
    long before the end Slurm sends the signal SIG`signal`; `give_up_after` is a number of attempts in a row without
    progress; `gpus` are those of the whole job, which the stages share; `code` is a snapshot of the packages. Paths are
    absolute, since a job's working directory is not that of the submitter.
    """

    store: Path
    code: Path
    settings: Settings
    gpus: int
    signal: str
    signal_delay_s: int
    give_up_after: int
    stages: tuple[str, ...]
