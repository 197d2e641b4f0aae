"""Failures by class, with the last lines of the logs and what may help."""

from __future__ import annotations

import re
import shutil
import signal
import sys
from collections import defaultdict

from bench.errors import InputError
from bench.monitor import states
from bench.monitor.states import Look
from bench.planning.describe import counted
from bench.planning.plan import Plan, select
from bench.specs import walk
from bench.store.ownership import Attempt
from bench.store.states import StageState
from bench.store.store import Store
from bench.training.protocol import death

LOG_LINES = 5


CLASSES = {
    "out of memory": "OUT_OF_MEMORY|[Oo]ut[ -][Oo]f[ -][Mm]emory|OutOfMemory|MemoryError|Cannot allocate|bad_alloc"
    "|oom.?kill|[Ee]xceeded (job )?memory limit",
    "time-out": r"\bTIMEOUT\b|\bDEADLINE\b|DUE TO TIME LIMIT|no progress in",
    "node": "finds no GPU|No CUDA GPUs|NODE_FAIL|BOOT_FAIL|NODE FAILURE|SIGBUS|CUDA driver|CUDA-capable|ECC error"
    "|Input/output|Stale file handle",
    "setup": r"slurm\.setup failed|JobLaunchFailure|launch failed|RaisedSignal:53|ModuleNotFoundError|ImportError"
    r"|command not found|bad interpreter|execve\(\)|before it had begun",
    "data": "[Dd]amaged|checksum|NotPrepared|No space left|quota exceeded|Read-only file|FileNotFound|PermissionError",
    "diverged": r"\bDiverged: ",
    "code": "",
}
"""Class of a failure -> what tells it; the first that fits counts."""


GUESSES = r"\(often the system's out-of-memory killer\)|JobLaunchFailure|, \d+ times before it had begun.*"
"""Parts of reasons that count only where nothing else tells more.

Slurm itself says JobLaunchFailure of a job that it killed for its memory.
"""


SLURMS_LINE = r"slurmstepd\S*: |srun: |slurm\.setup failed"
"""The beginning of a line of a log in which Slurm, or the job's shell, says why a job ended."""


FIXES = {
    "out of memory": "ask for more (slurm.mem_gb; on a GPU lower slurm.runs_per_job) or lower the batch size",
    "time-out": "raise slurm.timeout_min or lower grid.checkpoint_steps, so that every attempt gets further",
    "node": "if it is always the same node, keep away from it: slurm.extra = ['exclude=NODE']",
    "setup": "mend the line of slurm.setup or the package that the message names; if it is always the same node, keep "
    "away from it: slurm.extra = ['exclude=NODE']",
    "data": "free or repair what the message names",
    "diverged": "do what its message says; a search goes on with its other candidates",
    "code": "read the log (--log CELL) and mend what it tells of",
}


def describe_failures(plan: Plan, store: Store, view: Look) -> str:
    """List the failed stages by class.

    Each comes with the end of its log, each class with what helps.
    """
    classes: dict[str, list[str]] = defaultdict(list)
    cells = plan.first_cells()
    for stage in plan.stages:
        seen = view.seen.get(stage.key)
        if seen is not None and (seen.state == StageState.FAILED or seen.job in states.ENDED_BADLY):
            last = view.last_attempt(stage)
            text = [f"  {cells[stage.key]}: its stage {stage.name}: {seen.note}{_where(last)}"]
            # The stage's log tells what its code did, the job's what became of the process and the node.
            tails = {log: states.tail(log).rstrip() for log in states.logs(stage, store, view)}
            for log, printed in tails.items():
                text += [f"    {log.relative_to(store.root)}"] if len(tails) > 1 else []
                text += [f"    | {line}" for line in printed.splitlines()[-LOG_LINES:]]
            job = view.jobs.of(last)
            ends = ("\n".join(printed.splitlines()[-LOG_LINES:]) for printed in tails.values())
            killed = ""
            if job is not None:
                where = f" on {job.node}" if job.node else ""
                # Slurm's way to say that all processes of the job were killed.
                killed = death(-signal.SIGKILL) if job.exit_code == f"0:{signal.SIGKILL:d}" else ""
                words = " ".join(filter(None, (job.state, job.reason, job.exit_code, killed)))
                text.append(f"    its job: {words}{where}")
            text.append(f"    all of it: python -m bench.status … --log '{cells[stage.key]}'")
            classes[classify(f"{seen.job} {seen.note} {killed}", *ends)].append("\n".join(text))
    blocks = [
        "\n".join((f"{kind}: {counted(len(classes[kind]), 'stage')}", f"  fix: {FIXES[kind]}", *classes[kind]))
        for kind in CLASSES
        if classes[kind]
    ]
    again = "bench.grid with --retry runs failed stages again"
    return "\n\n".join([*blocks, again]) if blocks else "no stage failed"


def classify(reason: str, *logs: str) -> str:
    """Return the class of a failure.

    `logs` are the ends of the logs of the stage and of its job. The first of these that fits a class decides, and
    'code' is left for all else:

    1. The reason, without what in it is a guess: a log may hold messages of errors that were got over. 'OUT_OF_MEMORY'
       is 'out of memory' whatever the logs say.
    2. What Slurm says in a log, its last word first. 'exit status 1' fits no class; with 'slurmstepd: error: Detected 1
       oom_kill event' it is 'out of memory'.
    3. The logs. With 'No space left on device' it is 'data'.
    4. The guess. 'signal SIGKILL (often the system's out-of-memory killer)' is 'out of memory' if the logs are silent,
       and 'time-out' if one of them says DUE TO TIME LIMIT.
    """
    by_slurm = [line for log in logs for line in log.splitlines() if re.match(SLURMS_LINE, line)]
    for text in (re.sub(GUESSES, "", reason), *reversed(by_slurm), *logs, reason):
        for kind, pattern in CLASSES.items():
            if pattern and re.search(pattern, text):
                return kind
    return "code"


def _where(attempt: Attempt | None) -> str:
    if attempt is None:
        return ""
    owner = attempt.facts["owner"]
    job = f", job {owner['job']}" if "job" in owner else ""
    return f" (attempt {attempt.number} on {attempt.host}{job})"


def print_log(plan: Plan, store: Store, view: Look, name: str) -> None:
    """Print the log of a cell's failed stage, else of its last one that has a log.

    `name` is a cell, or as in --only; of several cells that match, the names are printed instead.
    """
    matching = select(plan.selected, [name], "--log")
    if len(matching) > 1:
        print("\n".join(f"{cell.name}: {view.of(cell).state}" for cell in matching))
        return
    stages = list(reversed(list(walk(matching[0].stage))))
    if view.of(matching[0]).state in (StageState.FAILED, StageState.BLOCKED):
        # The sort keeps the order of equals: failed stages come first, then the others, children before parents.
        stages.sort(key=lambda stage: stage.key not in view.seen or view.seen[stage.key].state != StageState.FAILED)
    log = next(filter(None, (states.log(stage, store, view) for stage in stages)), None)
    if log is None:
        raise InputError(f"--log '{name}': none of its stages has a log: it has not begun.")
    print(f"{log.relative_to(store.root)}:", file=sys.stderr, flush=True)
    with log.open(encoding="utf-8", errors="replace") as lines:
        shutil.copyfileobj(lines, sys.stdout)
