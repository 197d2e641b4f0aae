"""Failures of the environment: whose fault they were not, which nodes to keep away from, when to stop a grid.

    STORE/.slurm/troubles/68f1c2d0a1b2c3d4.json    a worker that died before it had begun, a job without its GPU, …
    STORE/.slurm/troubles/setup-17_3-0.txt         a line of slurm.setup that failed, written by the job's shell
    STORE/.slurm/troubles/n1.worked                its time: since then the node n1 has finished a stage
    STORE/.slurm/troubles/forgotten                its time: what nodes did before counts no more
    STORE/.slurm/stopped/68f1c2d09b7e4a51.json     why the jobs of a worklist take no further stage

A trouble is nobody's fault at first: the job ends and its stage is left to others. What is counted decides whose it is:

    three troubles on one node                      the node's: jobs keep away from it until it has finished a stage
    troubles of one stage on three nodes, or six    the stage's: it is given up
    troubles alike on three nodes, or six on two    the grid's, if nothing of it was finished: it is stopped

What turned out to be the fault of a stage or of a grid no longer counts against the nodes. Example: the code of a grid
cannot be imported, so that n1 and n2 see three troubles each and are kept away from. With the sixth the grid is
stopped, and both nodes are used again.
"""

from __future__ import annotations

import contextlib
import os
import platform
import re
import time
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path

from bench.errors import DamagedStore
from bench.launch.slurm.ledger import folder, new_token
from bench.launch.slurm.worklist import count_finished
from bench.store.files import create_json, read_json
from bench.store.ownership import now

OF_NODE = 3
"""Jobs keep away from a node with so many troubles since it last finished a stage."""
NODES = 3
"""A stage or a grid is at fault once it has had troubles on so many nodes,"""
TIMES = 6
"""or so many in all."""
FAILED_ALIKE = 5
"""After so many stages that failed alike, and more than were finished, a grid is stopped."""
FORGOTTEN_SECONDS = 24 * 3600.0
"""After that a node is tried again."""


@dataclass(frozen=True)
class Trouble:
    """One failure of the environment.

    `time` is in seconds since 1970; `worklist` and `stage` (a folder's name) are empty where the job had not got so
    far.
    """

    time: float
    node: str
    job: str
    worklist: str
    stage: str
    reason: str


@dataclass(frozen=True)
class StoppedFile:
    """What the file of a stopped worklist holds."""

    reason: str
    time: float


def node() -> str:
    """Name the node that this process runs on, as Slurm does."""
    return os.environ.get("SLURMD_NODENAME") or platform.node().partition(".")[0]


def note(store_root: Path, job: str, worklist: str, stage: str, reason: str, where: str = "") -> bool:
    """Write down that something failed that is no fault of a stage; tell whether that could be written.

    It failed on the node `where`, by default on this one.
    """
    facts = {"time": now(), "node": where or node(), "job": job, "worklist": worklist, "stage": stage, "reason": reason}
    try:
        return create_json(_folder(store_root) / f"{new_token()}.json", facts)
    except OSError:  # the job's log and its end tell
        return False


def forget_nodes(store_root: Path) -> None:
    """Let nodes be tried again whatever happened there, as a person who submits anew may have mended them."""
    with contextlib.suppress(OSError):
        if _folder(store_root).is_dir():
            (_folder(store_root) / "forgotten").touch()


def read(store_root: Path) -> list[Trouble]:
    """Read all troubles of a store, oldest first; what is damaged is left out, as it only counts towards a limit."""
    troubles = []
    try:
        names = os.listdir(_folder(store_root))
    except OSError:  # no trouble yet, or the store cannot be reached
        names = []
    for path in map(_folder(store_root).joinpath, names):
        with contextlib.suppress(DamagedStore, OSError, ValueError):
            if path.suffix == ".json":
                facts = read_json(path, "Delete it.", Trouble)  # with more fields, where a later version wrote it
                troubles.append(Trouble(**{field.name: facts[field.name] for field in fields(Trouble)}))
            elif path.suffix == ".txt":
                troubles.append(read_setup(path))
    return sorted(troubles, key=lambda trouble: trouble.time)


def read_setup(path: Path) -> Trouble:
    """Read what a job's shell wrote: seconds since 1970, node, exit status, the line that failed, and the worklist.

    Earlier versions did not write the last.
    """
    seconds, node_name, status, line, *worklist = path.read_text(encoding="utf-8", errors="replace").splitlines()
    job = path.stem.removeprefix("setup-").rpartition("-")[0]
    reason = f"a line of slurm.setup failed with exit status {status}: {line}"
    return Trouble(float(seconds), node_name, job, "".join(worklist), "", reason)


# ------------------------------------------------------------------------------------------------------ what follows


def excluded(store_root: Path) -> dict[str, str]:
    """Return the nodes to keep away from, each with its last trouble."""
    every = read(store_root)
    of_stages = _faults_of_stages(every)
    of_grids = {name for name in {trouble.worklist for trouble in every} if name and stopped(store_root, name)}
    by_node: dict[str, list[str]] = defaultdict(list)
    forgotten = max(_modified(_folder(store_root) / "forgotten"), time.time() - FORGOTTEN_SECONDS)
    for trouble in every:
        # A stage that is given up clears the nodes only if it failed on several: on one alone, that may be to blame.
        of_stage = of_stages.get((trouble.worklist, trouble.stage), [])
        if trouble.worklist in of_grids or len({each.node for each in of_stage}) > 1:
            continue
        if trouble.time > max(_modified(_marker(store_root, trouble.node)), forgotten):
            by_node[trouble.node].append(trouble.reason)
    return {name: reasons[-1] for name, reasons in by_node.items() if len(reasons) >= OF_NODE}


def note_success(store_root: Path) -> None:
    """Note that this node has finished a stage: its troubles until now no longer count against it."""
    if any(trouble.node == node() for trouble in read(store_root)):
        with contextlib.suppress(OSError):
            _marker(store_root, node()).touch()


def given_up(store_root: Path, worklist: str) -> dict[str, str]:
    """Return the stages of a worklist that are given up for their troubles, by folder, and why."""
    reasons = {}
    for (its_worklist, stage), mine in _faults_of_stages(read(store_root)).items():
        if its_worklist == worklist:
            nodes = ", ".join(sorted({each.node for each in mine}))
            reasons[stage] = f"tried {len(mine)} times on {nodes} and never begun; the last time: {mine[-1].reason}"
    return reasons


def _faults_of_stages(every: Iterable[Trouble]) -> dict[tuple[str, str], list[Trouble]]:
    """Return the troubles, by worklist and stage, that are the stage's fault."""
    by_stage: dict[tuple[str, str], list[Trouble]] = defaultdict(list)
    for trouble in every:
        if trouble.stage:
            by_stage[trouble.worklist, trouble.stage].append(trouble)
    return {
        stage: mine for stage, mine in by_stage.items() if len(mine) >= TIMES or len({t.node for t in mine}) >= NODES
    }


def most_alike(reasons: Sequence[str]) -> list[int]:
    """Return the positions of the most frequent reason.

    Numbers, paths and quoted words do not count. Example: of 'no file a1.npy', 'out of memory' and 'no file b2.npy' the
    first and the last are alike: 0 and 2.
    """
    kinds = [re.sub(r"'[^']*'|\"[^\"]*\"|/\S+|\S*\d\S*", "#", reason) for reason in reasons]
    most = Counter(kinds).most_common(1)
    return [position for position, kind in enumerate(kinds) if kind == most[0][0]]


def stop_if_hopeless(store_root: Path, worklist: str, failed: Sequence[str], only_node: bool) -> str | None:
    """Stop a worklist where its stages fail alike; return why.

    Returns the reason also if it was stopped before. `failed` are the reasons of stages that failed for good. Finished
    stages are counted only where their number decides, since that takes a look at every stage. Six jobs that start at
    once on a broken node say nothing of the grid, unless that is the `only_node` there is.
    """
    before = stopped(store_root, worklist)
    if before is not None:
        return before
    alike = [failed[position] for position in most_alike(failed)]
    if len(alike) >= FAILED_ALIKE and len(alike) > (done := count_finished(store_root, worklist)):
        return _stop(store_root, worklist, f"{len(alike)} stages failed alike, and {done} were done: {alike[-1]}")
    troubles = [each for each in read(store_root) if each.worklist == worklist]
    same = [troubles[position] for position in most_alike([each.reason for each in troubles])]
    nodes = sorted({each.node for each in same})
    everywhere = len(nodes) >= NODES or (len(same) >= TIMES and len(nodes) > (0 if only_node else 1))
    if everywhere and not count_finished(store_root, worklist):
        where = ", ".join(nodes)
        return _stop(
            store_root, worklist, f"no stage could be begun, tried {len(same)} times on {where}: {same[-1].reason}"
        )
    return None


def stopped(store_root: Path, worklist: str) -> str | None:
    """Say why a worklist was stopped; None if it was not."""
    path = _stopped(store_root, worklist)
    try:
        return str(read_json(path, "Delete it to go on.", StoppedFile)["reason"]) if path.exists() else None
    except DamagedStore:
        return "stopped, for a reason that cannot be read"


def _stop(store_root: Path, worklist: str, reason: str) -> str:
    with contextlib.suppress(OSError):
        create_json(_stopped(store_root, worklist), {"reason": reason, "time": now()})
    return reason


def _modified(path: Path) -> float:
    """Return when a file was last modified, in seconds since 1970; 0 without it."""
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0


def _folder(store_root: Path) -> Path:
    return folder(store_root) / "troubles"


def _marker(store_root: Path, node_name: str) -> Path:
    return _folder(store_root) / f"{node_name}.worked"


def _stopped(store_root: Path, worklist: str) -> Path:
    return folder(store_root) / "stopped" / f"{worklist}.json"
