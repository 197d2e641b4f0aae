"""Hand a plan to Slurm: job arrays with dependencies, submitted through submitit; nothing waits for them here.

Submitting is idempotent: what is queued or running already is left alone, also where an earlier submission was killed
before it noted an id. Jobs never submit; the whole graph is planned here.
"""

from __future__ import annotations

import contextlib
import functools
import io
import os
import platform
import re
import shlex
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from submitit import SlurmExecutor
from submitit.core.core import Job
from submitit.core.utils import DelayedSubmission, FailedJobError, FailedSubmissionError

from bench import cli, collate
from bench.errors import InputError, nearest
from bench.launch import jobs, supervisor
from bench.launch.arrays import Array, Element, Queued, arrange
from bench.launch.cluster import Cluster
from bench.launch.jobs import JobState, SlurmError, Submission
from bench.launch.snapshot import snapshot
from bench.plan import Plan, look_up
from bench.progress import Reporter
from bench.specs import Stage
from bench.store import Store
from bench.worker import Outcome

POLL_SECONDS = 5.0
LOST_SECONDS = 120.0
"""For so long a stage may be neither in the queue nor in the store: files appear late on network file systems."""
TABLES_MINUTES = 15
"""The time limit of the job that writes the tables."""
NEVER = 10**9
"""submitit's own limit on restarts, which would count short jobs' preemptions as time-outs: the supervisor decides."""
_NOTHING = JobState(jobs.GONE)
MEMORY_FILE_SYSTEMS = frozenset(("tmpfs", "ramfs", "devtmpfs"))
LOCAL_FILE_SYSTEMS = frozenset(("ext2", "ext3", "ext4", "xfs", "btrfs", "f2fs", "overlay"))


@dataclass
class Submitted:
    """What a submission came to: its arrays and their ids, and what stood in its way."""

    arrays: list[Array] = field(default_factory=list)
    job_ids: list[str] = field(default_factory=list)
    in_flight: dict[str, Queued] = field(default_factory=dict)
    """Key of a stage that was queued or running before -> its element."""
    blocked: dict[str, str] = field(default_factory=dict)
    """Key of a stage that was not submitted -> which failure is in its way."""
    tables_job: str | None = None

    @property
    def stages(self) -> list[Stage]:
        """The stages that were submitted."""
        return [stage for array in self.arrays for task in array.tasks for stage in task]


# ---------------------------------------------------------------------------------------------- what can be refused


@dataclass(frozen=True)
class _Node:
    partition: str
    is_default: bool
    gpus: int
    max_seconds: float
    cpus: int
    memory_mb: int
    host: str


def check(cluster: Cluster, threads: int, folders: Mapping[str, Path]) -> list[str]:
    """Refuse what this cluster would refuse, or never start, before anything is written; returns warnings.

    `folders` are those that every node must see, by the argument that named them.
    """
    for program in ("sbatch", "squeue", "scontrol", "sinfo", "scancel", "srun"):
        if shutil.which(program) is None:
            raise InputError(
                f"--launcher slurm: there is no {program} on the PATH. Run on a login node of a cluster, load its "
                "module for Slurm, or use --launcher local."
            )
    if cluster.cpus < threads:
        raise InputError(f"slurm.cpus = {cluster.cpus}: every stage runs grid.threads = {threads} threads. Raise it.")
    nodes = _nodes()
    _check_size(cluster, _partition(cluster, nodes))
    warnings = list(_shared(folders, {node.host for node in nodes}))
    with tempfile.TemporaryDirectory(prefix="bench-slurm-") as folder:
        script = Path(folder) / "test.sh"
        executor = _executor(Path(folder), cluster, "bench-test", (0,), None)
        script.write_text(executor._make_submission_file_text("true", ""), encoding="utf-8")
        try:
            jobs.ask("sbatch", "--test-only", str(script))
        except SlurmError as error:
            if not re.search(r"(not available|busy|down)\b", str(error)):  # that can pass; all else would not
                raise
            warnings.append(f"no node can run such a job at present; the jobs will wait: {error}")
    return warnings


def _nodes() -> list[_Node]:
    found = []
    for line in jobs.ask("sinfo", "--noheader", "--format=%P|%G|%l|%c|%m|%n").splitlines():
        partition, gres, limit, cpus, memory, host = line.strip().split("|")
        gpus = sum(int(count) for count in re.findall(r"\bgpu(?::[^:,()]+)?:(\d+)", gres))
        found.append(
            _Node(
                partition.rstrip("*"),
                partition.endswith("*"),
                gpus,
                _limit_seconds(limit),
                int(cpus.rstrip("+")),
                int(memory.rstrip("+")),
                host,
            )
        )
    return found


def _limit_seconds(text: str) -> float:
    """Slurm's [days-][[hours:]minutes:]seconds; endless for 'infinite'."""
    match = re.fullmatch(r"(?:(\d+)-)?(?:(?:(\d+):)?(\d+):)?(\d+)", text)
    if match is None:
        return float("inf")
    days, hours, minutes, seconds = (int(part or 0) for part in match.groups())
    return ((days * 24 + hours) * 60 + minutes) * 60 + seconds


def _partition(cluster: Cluster, nodes: Sequence[_Node]) -> list[_Node]:
    """The nodes of the partition that is asked for."""
    names = {node.partition for node in nodes}
    if cluster.partition is None:
        chosen = [node for node in nodes if node.is_default]
        if not chosen:
            raise InputError(f"slurm.partition = None: this cluster has no default partition.{nearest('', names)}")
        return chosen
    for name in cluster.partition.split(","):
        if name not in names:
            raise InputError(
                f"slurm.partition = '{cluster.partition}': this cluster has no such partition.{nearest(name, names)}"
            )
    return [node for node in nodes if node.partition in cluster.partition.split(",")]


def _check_size(cluster: Cluster, nodes: Sequence[_Node]) -> None:
    where = f"the partition {cluster.partition or nodes[0].partition}"
    most = max(node.gpus for node in nodes)
    if cluster.gpus > most:
        raise InputError(f"slurm.gpus = {cluster.gpus}: no node of {where} has more than {most}. Lower it.")
    cpus, most = cluster.cpus * cluster.runs_per_job, max(node.cpus for node in nodes)
    if cpus > most:
        raise InputError(
            f"slurm.cpus = {cluster.cpus}, slurm.runs_per_job = {cluster.runs_per_job}: a job would need {cpus} CPUs, "
            f"and no node of {where} has more than {most}. Lower one of them."
        )
    memory, most = (cluster.mem_gb or 0) * cluster.runs_per_job * 1024, max(node.memory_mb for node in nodes)
    if memory > most:
        raise InputError(
            f"slurm.mem_gb = {cluster.mem_gb}, slurm.runs_per_job = {cluster.runs_per_job}: a job would need "
            f"{memory / 1024:g} GB, and no node of {where} has more than {most / 1024:.1f}. Lower one of them."
        )
    longest = max(node.max_seconds for node in nodes)
    if cluster.timeout_min * 60 > longest:
        raise InputError(
            f"slurm.timeout_min = {cluster.timeout_min}: {where} allows {longest / 60:g} minutes at most. A job that "
            "reaches the limit goes on in another one, so a lower value costs little."
        )


def _shared(folders: Mapping[str, Path], hosts: set[str]) -> Iterator[str]:
    """Warnings of folders that other machines may not see; refuses those that they certainly do not."""
    for argument, folder in folders.items():
        if "%" in str(folder.absolute()):
            raise InputError(f"{argument} {folder}: Slurm reads '%' in paths in its own way. Name a folder without it.")
    if {host.partition(".")[0] for host in hosts} == {platform.node().partition(".")[0]}:
        return
    for argument, folder in folders.items():
        kind = _file_system(folder)
        if kind in MEMORY_FILE_SYSTEMS:
            raise InputError(
                f"{argument} {folder}: lies in this machine's memory ({kind}), which the cluster's nodes do not see. "
                "Name a folder on a file system that all of them share."
            )
        if kind in LOCAL_FILE_SYSTEMS:
            yield f"{argument} {folder}: is on a local disk ({kind}): jobs fail on nodes that do not see it there"


def _file_system(folder: Path) -> str:
    """The type of the file system that a folder is or would be on; '' where that cannot be told."""
    try:
        lines = Path("/proc/self/mounts").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return ""
    place, best, kind = folder.absolute().resolve(), -1, ""
    for line in lines:
        _, mounted, of_kind, *_ = line.split(" ")
        point = Path(mounted.replace("\\040", " "))
        if place.is_relative_to(point) and len(point.parts) >= best:  # a later mount covers an earlier one
            best, kind = len(point.parts), of_kind
    return kind


def max_array_size() -> int:
    """How many elements an array may have: Slurm's MaxArraySize, which is one more than the highest index."""
    found = re.search(r"^MaxArraySize\s*=\s*(\d+)", jobs.ask("scontrol", "show", "config"), re.MULTILINE)
    return max(1, int(found.group(1))) if found else 1001


# ------------------------------------------------------------------------------------------------------ submitting


def submit(plan: Plan, store: Store, data_root: Path, arguments: Sequence[str], retry: bool = False) -> Submitted:
    """Submit what of a plan is neither done nor queued, and a job that writes the tables when all has ended.

    `arguments` are those of `bench.collate`, for that job. Raises InputError with sbatch's own words if it refuses;
    what was submitted before that stays queued, and the same command goes on from there.
    """
    size = max_array_size()
    with jobs.submitting(store.root):
        noted = jobs.submissions(store.root)
        known, queued = look(store.root)
        for before, now in zip(noted, known, strict=False):
            if before.job_id is None and now.job_id is not None:
                jobs.complete(store.root, before, now.job_id)
        look_up(plan, store)
        submitted = _missing(plan, store, known, queued, retry, size)
        if submitted.arrays:
            with ThreadPoolExecutor(16) as pool:  # each waits for the disk
                list(pool.map(store.add, (stage for stage in plan.stages if not stage.unprepared)))
            _submit_arrays(submitted, plan, store, data_root)
        _submit_tables(submitted, plan, store, arguments, known, queued)
    return submitted


def draft(plan: Plan, store: Store, retry: bool = False) -> Submitted:
    """What `submit` would submit now; writes nothing."""
    known, queued = look(store.root)
    return _missing(plan, store, known, queued, retry, max_array_size())


def look(store_root: Path) -> tuple[list[Submission], dict[str, JobState]]:
    """The submissions of all grids to a store, and what Slurm says of them."""
    known = jobs.submissions(store_root)
    queued = jobs.queue([one.name for one in known])
    return jobs.identified(known, queued), queued


def _in_flight(
    plan: Plan, store: Store, known: Iterable[Submission], queued: Mapping[str, JobState]
) -> dict[str, Queued]:
    """Key of a stage of the plan -> the element of an earlier submission that runs or is to run it."""
    by_folder = {stage.folder: stage for stage in plan.stages if stage.key not in plan.done}
    found = {}
    for made in known:
        for index, task in enumerate(made.tasks):
            element = made.element(index)
            if element is None or not task or not jobs.element_state(made, index, queued).live:
                continue
            for name in task:
                stage = by_folder.get(name)
                if stage is not None and not _failed_since(made.time, stage, plan, store):
                    found[stage.key] = Queued(element, packed=len(task) > 1)
    return found


def _failed_since(moment: float, stage: Stage, plan: Plan, store: Store) -> bool:
    """Whether a stage failed after that: the element that was submitted then will not try again."""
    if stage.key not in plan.failed:
        return False
    end = store.attempts(stage)[-1].end
    return end is not None and float(end.get("time", 0.0)) > moment


def _missing(
    plan: Plan,
    store: Store,
    known: Sequence[Submission],
    queued: Mapping[str, JobState],
    retry: bool,
    max_array_size: int,
) -> Submitted:
    """The arrays that are to be submitted."""
    in_flight = _in_flight(plan, store, known, queued)
    submitted = Submitted(in_flight=in_flight)
    runnable: list[Stage] = []
    ends = {} if retry else {key: f"failed: {why}" for key, why in plan.failed.items() if key not in in_flight}
    for stage in plan.to_run(retry):
        if stage.key in in_flight:
            continue
        cause = next((parent for parent in stage.parents if parent.key in ends), None)
        if cause is None:
            runnable.append(stage)
        else:
            why = submitted.blocked.get(cause.key, f"its stage {cause.folder} {ends[cause.key]}")
            ends[stage.key] = submitted.blocked[stage.key] = why
    submitted.arrays = arrange(runnable, plan.done.keys(), plan.cluster.runs_per_job, max_array_size, in_flight)
    return submitted


def _submit_arrays(submitted: Submitted, plan: Plan, store: Store, data_root: Path) -> None:
    cluster, grid = plan.cluster, plan.grid
    code = snapshot(store.root).absolute()
    for array in submitted.arrays:
        elements = [
            supervisor.Element(
                store=store.root.absolute(),
                data_root=data_root.absolute(),
                code=code,
                checkpoint_steps=grid.checkpoint_steps,
                threads=grid.threads,
                gpus=cluster.gpus,
                signal_delay_s=cluster.signal_delay_s,
                give_up_after=cluster.give_up_after,
                stages=tuple(stage.folder for stage in array.tasks[index]),
            ).arguments()
            for index in array.indices
        ]
        made = jobs.note(store.root, str(grid.name), [[stage.folder for stage in task] for task in array.tasks])
        log, dependency = jobs.log_folder(store.root, made.token), array.dependency(submitted.job_ids)
        executor = _executor(log, cluster, made.name, array.indices, dependency, code)
        try:
            submitted.job_ids.append(_make(store.root, made, executor, supervisor.supervise, elements))
        except SlurmError as error:
            before = f"\n{len(submitted.job_ids)} of {len(submitted.arrays)} arrays were submitted before it."
            raise SlurmError(f"{error}{before if submitted.job_ids else ''}\nRun the same command to go on.") from error


def _submit_tables(
    submitted: Submitted,
    plan: Plan,
    store: Store,
    arguments: Sequence[str],
    known: Sequence[Submission],
    queued: Mapping[str, JobState],
) -> None:
    """Have the tables written after all jobs of this grid have ended, well or not; replaces an earlier such job."""
    grid = str(plan.grid.name)
    earlier = [one.job_id for one in known if one.grid == grid and not one.tasks and one.job_id is not None]
    waiting = [job for job in earlier if queued.get(f"{job}_0", _NOTHING).live]
    flying = sorted({one.element.partition("_")[0] for one in submitted.in_flight.values()}, key=int)
    if not submitted.job_ids and (waiting or not flying):
        submitted.tables_job = waiting[-1] if waiting else None
        return
    code = snapshot(store.root).absolute()
    after = ":".join(["afterany", *flying, *submitted.job_ids])
    small = replace(plan.cluster, cpus=1, gpus=0, mem_gb=None, timeout_min=TABLES_MINUTES, signal_delay_s=120)
    made = jobs.note(store.root, grid, ())
    log = jobs.log_folder(store.root, made.token)
    executor = _executor(log, replace(small, runs_per_job=1), made.name, (0,), after, code)
    submitted.tables_job = _make(store.root, made, executor, write_tables, [arguments])
    if waiting:
        with contextlib.suppress(SlurmError):  # it began meanwhile, or ended; a table more does no harm
            jobs.ask("scancel", *waiting)


def write_tables(*arguments: str) -> None:
    """What the last job runs: `bench.collate` with these arguments; an incomplete table is no failure of that job."""
    status = cli.reporting_errors(lambda: collate.main(arguments))
    if status not in (0, 1):
        sys.exit(status)


# --------------------------------------------------------------------------------------------------- one sbatch call


class _Arrays(SlurmExecutor):
    """The executor of submitit, with what the jobs read written before sbatch is called instead of after it.

    So a job that starts at once finds it, and so does one whose submitter is killed between sbatch and the next line.
    """

    indices: tuple[int, ...] = ()

    def _internal_process_submissions(self, delayed_submissions: list[DelayedSubmission]) -> list[Job[Any]]:
        for index, delayed in zip(self.indices, delayed_submissions, strict=True):
            delayed.set_timeout(self.parameters["time"], self.max_num_timeout)
            delayed.dump(self.folder / f"{index}.pkl")
        return [self._submit_command(self._submitit_command_str)] * len(delayed_submissions)


def _executor(
    folder: Path, cluster: Cluster, name: str, indices: Sequence[int], dependency: str | None, code: Path | None = None
) -> _Arrays:
    """The executor of submitit for one array, printing to `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    # Python takes the shell's place, to be the process that Slurm signals.
    executor = _Arrays(folder, max_num_timeout=NEVER, python=f"exec {shlex.quote(sys.executable)}")
    executor.indices = tuple(indices)
    options: dict[str, str | bool] = {
        "array": f"{_ranges(indices)}%{cluster.array_parallelism}",
        "signal": f"B:USR2@{cluster.signal_delay_s}",
        "requeue": True,
        "kill-on-invalid-dep": "yes",
        **cluster.options,
    }
    asked = {
        "job_name": name,
        "partition": cluster.partition,
        "account": cluster.account,
        "qos": cluster.qos,
        "constraint": cluster.constraint,
        "time": cluster.timeout_min,
        "nodes": 1,
        "ntasks_per_node": 1,
        "cpus_per_task": cluster.cpus * cluster.runs_per_job,
        "gres": f"gpu:{cluster.gpus}" if cluster.gpus and "gres" not in options else None,
        "mem": f"{round(cluster.mem_gb * cluster.runs_per_job * 1024)}M" if cluster.mem_gb is not None else None,
        "dependency": dependency,
        "wckey": "",
        "use_srun": False,
        "stderr_to_stdout": True,
        "setup": _setup(executor.folder, cluster, code),
        "additional_parameters": options,
    }
    executor.update_parameters(**{option: value for option, value in asked.items() if value is not None})
    executor.parameters["map_count"] = len(indices)  # submitit then names the logs by element
    return executor


def _setup(folder: Path, cluster: Cluster, code: Path | None) -> list[str]:
    """Lines of shell that run in the job before Python."""
    lines = list(cluster.setup)
    if code is not None:  # safe path: else the working directory, often a checkout, would come before the copy
        lines.append(f"export PYTHONSAFEPATH=1 PYTHONPATH={shlex.quote(str(code))}${{PYTHONPATH:+:$PYTHONPATH}}")
    task = "${SLURM_ARRAY_JOB_ID}_${SLURM_ARRAY_TASK_ID}_submitted.pkl"
    lines.append(f'ln -sf "$SLURM_ARRAY_TASK_ID.pkl" {shlex.quote(str(folder))}/"{task}"')
    return lines


def _ranges(indices: Sequence[int]) -> str:
    """Indices as Slurm writes them: 0-4,7."""
    runs: list[list[int]] = []
    for index in indices:
        if runs and index == runs[-1][1] + 1:
            runs[-1][1] = index
        else:
            runs.append([index, index])
    return ",".join(str(first) if first == last else f"{first}-{last}" for first, last in runs)


def _make(
    store_root: Path, made: Submission, executor: _Arrays, function: Callable[..., None], tasks: Sequence[Sequence[str]]
) -> str:
    """Make a submission that is noted, and note its id; raises InputError with sbatch's own words if it refuses."""
    try:
        with _scrubbed(), contextlib.redirect_stderr(io.StringIO()):  # submitit prints what it raises
            made_jobs = executor.submit_array([functools.partial(function, *arguments) for arguments in tasks])
    except (FailedJobError, FailedSubmissionError) as error:
        with contextlib.suppress(SlurmError):
            if not jobs.queue([made.name]):  # else it was accepted all the same
                jobs.forget(store_root, made)
        raise SlurmError(f"sbatch failed: {str(error).strip()}") from error
    job = str(made_jobs[0].job_id)
    jobs.complete(store_root, made, job)
    return job


@contextlib.contextmanager
def _scrubbed() -> Iterator[None]:
    """Meanwhile, without the variables of a surrounding job: sbatch would obey them, and hand them on."""
    before = dict(os.environ)
    for name in before.keys() - jobs.environment().keys():
        del os.environ[name]
    try:
        yield
    finally:
        os.environ.update(before)


# ------------------------------------------------------------------------------------------------ cancel and follow


def cancel(store_root: Path, grid: str) -> list[str]:
    """Cancel all jobs of a grid that are still to run or running, and no others; returns the ids."""
    with jobs.submitting(store_root):
        ids = _live_jobs(store_root, grid)
        for start in range(0, len(ids), 500):
            try:
                jobs.ask("scancel", *ids[start : start + 500])
            except SlurmError:
                if {*ids} & {*_live_jobs(store_root, grid)}:  # else they ended meanwhile
                    raise
    return ids


def _live_jobs(store_root: Path, grid: str) -> list[str]:
    """The ids of a grid's jobs that are to run or running, and of those that Slurm will never start."""
    known, queued = look(store_root)
    names = {one.name for one in known if one.grid == grid}
    mine = (job for job, state in queued.items() if state.name in names and state.state in jobs.LIVE)
    return sorted({job.partition("_")[0] for job in mine}, key=int)


def follow(
    stages: Sequence[Stage], store: Store, stop: Callable[[], bool], report: Reporter
) -> tuple[dict[str, str], dict[str, str]]:
    """Report on stages (parents first) until all have ended or a stop is asked for: what failed, what is blocked."""
    pending = {stage.key: (number, stage) for number, stage in enumerate(stages)}
    failed: dict[str, str] = {}
    blocked: dict[str, str] = {}
    running: set[str] = set()
    absent: dict[str, float] = {}
    told = False
    while pending and not stop():
        try:
            places = _places(*look(store.root))
            told = False
        except SlurmError as error:  # the controller may be restarting; the jobs go on
            if not told:
                report.console.print(f"warning: {error}", markup=False)
            told = True
            _sleep(stop)
            continue
        for key, (number, stage) in list(pending.items()):
            state = places.get(stage.folder, _NOTHING)
            outcome = _outcome(stage, store, state, failed, blocked, absent)
            if state.state == "RUNNING" and key not in running:
                running.add(key)
                report.started(stage, number)
            if outcome is not None:
                del pending[key]
                report.ended(stage, number, outcome)
                if outcome.state == "blocked":
                    blocked[key] = outcome.reason
                elif outcome.state == "failed":
                    failed[key] = outcome.reason
        if pending:
            _sleep(stop)
    return failed, blocked


def _places(known: Sequence[Submission], queued: Mapping[str, JobState]) -> dict[str, JobState]:
    """Folder name of a stage -> the state of the element that was submitted last to run it."""
    return {
        name: jobs.element_state(made, index, queued)
        for made in known
        for index, task in enumerate(made.tasks)
        for name in task
    }


def _outcome(
    stage: Stage,
    store: Store,
    state: JobState,
    failed: Mapping[str, str],
    blocked: Mapping[str, str],
    absent: dict[str, float],
) -> Outcome | None:
    """How a stage ended, None while it has not; `absent` notes since when Slurm does not know its job any more."""
    if (store.folder(stage) / "record.json").exists() and store.record(stage) is not None:
        attempts = store.attempts(stage)
        last = attempts[-1].facts if attempts else {}
        return Outcome("done", from_step=last.get("from_step") or 0, warnings=tuple(last.get("warnings", ())))
    if state.live:
        absent.pop(stage.key, None)
        return None
    attempts = store.attempts(stage)
    last_end = attempts[-1].end if attempts else None
    if last_end is not None and last_end["state"] == "failed":
        return Outcome("failed", str(last_end["reason"]))
    for parent in stage.parents:
        if parent.key in failed or parent.key in blocked:
            why = f"its stage {parent.folder} failed: {failed.get(parent.key)}"
            return Outcome("blocked", blocked.get(parent.key, why))
    if attempts and attempts[-1].alive:  # another launcher has it
        return None
    now = time.monotonic()
    if now - absent.setdefault(stage.key, now) < LOST_SECONDS:
        return None
    what = f"{state.state} {state.reason}".rstrip()
    return Outcome("failed", f"its job is over ({what}) and it has no record; run the grid again to go on with it")


def _sleep(stop: Callable[[], bool]) -> None:
    end = time.monotonic() + POLL_SECONDS
    while time.monotonic() < end and not stop():
        time.sleep(0.2)


# ------------------------------------------------------------------------------------------------------- in words


def describe(submitted: Submitted) -> str:
    """The arrays in words, with what each waits for; the ids where they are submitted."""
    lines = []
    for number, array in enumerate(submitted.arrays):
        names = Counter(stage.name for task in array.tasks for stage in task)
        what = ", ".join(f"{count} {name}" for name, count in names.items())
        id_ = f"job {submitted.job_ids[number]}: " if number < len(submitted.job_ids) else ""
        tasks = len(array.indices)
        lines.append(f"  array {number}: {id_}{tasks} {'task' if tasks == 1 else 'tasks'}: {what}{_waits(array)}")
    return "\n".join(lines)


def _waits(array: Array) -> str:
    parts = [f"until {_listed(array.ok)} succeeded"] if array.ok else []
    parts += [f"until {_listed(array.ended)} ended"] if array.ended else []
    if array.corresponding is not None:
        parts.append(f"each until the same task of array {array.corresponding} succeeded")
    return f"; waits {' and '.join(parts)}" if parts else ""


def _listed(waited: Sequence[Element | str]) -> str:
    def words(one: Element | str) -> str:
        if isinstance(one, str):
            return f"job {one}"
        return f"array {one.array}" if one.index is None else f"task {one.index} of array {one.array}"

    rest = f" and {len(waited) - 3} more" if len(waited) > 3 else ""
    return ", ".join(map(words, waited[:3])) + rest
