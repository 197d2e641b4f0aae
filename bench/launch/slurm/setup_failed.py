"""Decide, after a line of `slurm.setup` failed, whether a job starts again and which nodes it keeps away from.

    python -m bench.launch.slurm.setup_failed STORE WORKLIST EXCLUDE JOB SCONTROL

The job's shell runs this once it has noted the failure (`bench.launch.slurm.sbatch`). It goes by a rule of its own
where this exits with another status than 0: the line that failed may have been to set up Python.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from bench.launch.slurm import supervisor, troubles
from bench.launch.slurm.stage_process import say

MOST_RESTARTS = 2
"""So often a job is requeued whose setup fails."""
SECONDS = 60.0
"""For so long a controller that cannot be reached is asked again."""


def main(arguments: Sequence[str]) -> int:
    """Stop a grid whose setup fails on every node, else requeue the job, away from nodes where it often fails."""
    root, worklist, exclude, job, program = Path(arguments[0]), *arguments[1:]
    stopped = troubles.stop_if_hopeless(root, worklist, (), not supervisor.could_run_elsewhere(root))
    restarts = int(os.environ.get("SLURM_RESTART_COUNT") or 0)
    if stopped is not None:
        say(f"the grid was stopped: {stopped}")
    elif restarts < MOST_RESTARTS:
        try:
            supervisor.requeue_elsewhere(root, job, program, exclude, time.monotonic() + SECONDS)
        except supervisor.ElementFailed as error:
            say(str(error))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
