"""One sbatch call: the executor of submitit, and what of it had to be changed."""

from __future__ import annotations

import contextlib
import functools
import io
import os
import shlex
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from submitit import SlurmExecutor
from submitit.core.core import Job
from submitit.core.utils import DelayedSubmission, FailedJobError, FailedSubmissionError

from bench.launch.slurm import client, ledger
from bench.launch.slurm.client import SlurmError
from bench.launch.slurm.ledger import Submission
from bench.specs.cluster import Cluster

NEVER = 10**9
"""submitit's own limit on restarts, which would count short jobs' preemptions as time-outs: the supervisor decides."""

TROUBLES = "troubles"
"""The folder of .slurm in which shells leave why they never came to Python."""

IMPORTS = "import submitit.core._submit, bench.launch.slurm.submit"
"""What every job imports."""
TRIED = "does Python start on this node, with the packages?"

GUARD = """\
bench_failed() {  # exit status, depth of sourced files, command, number of its line
    [ "$2" -le 1 ] || return 0
    trap - ERR EXIT TERM
    set +eu
    PATH=$PATH:/usr/bin:/bin
    [ "$1" -ne 143 ] || exit 143
    local lines line="${3%%$'\\n'*}"
    if [ -n "$4" ]; then mapfile -t lines < "$0"; line="${lines[$4 - 1]}"; fi
    local node="${SLURMD_NODENAME:-$HOSTNAME}" restarts="${SLURM_RESTART_COUNT:-0}"
    echo "slurm.setup failed on node $node with exit status $1: $line" >&2
    local element="${SLURM_ARRAY_JOB_ID}_${SLURM_ARRAY_TASK_ID}" scontrol=@SCONTROL@
    local file=@TROUBLES@/"setup-$element-$restarts.txt"
    mkdir -p @TROUBLES@
    printf '%(%s)T\\n%s\\n%s\\n%s\\n%s\\n' -1 "$node" "$1" "$line" @WORKLIST@ > "$file.new" && mv "$file.new" "$file"
    [ -x "$scontrol" ] || scontrol=scontrol
    trap '' TERM
    @JUDGE@ || [ "$restarts" -ge 2 ] || bench_again "$element" "$scontrol"
    [ "$1" -ne 0 ] || exit 1
    exit "$1"
}
bench_again() {  # element, scontrol
    local nodes avoided
    "$2" requeue "$1"
    nodes=$(sinfo -h -N --states=idle,mixed,alloc --partition="$SLURM_JOB_PARTITION" --format=%N 2> /dev/null)
    [ -n "$nodes" ] || return 0
    avoided=@EXCLUDE@$(sed -s -n 2p @TROUBLES@/setup-"$1"-*.txt | sort -u | paste -s -d,)
    if grep -q -v -x -F "$("$2" show hostnames "$avoided")" <<< "$nodes"; then
        "$2" update JobId="$1" ExcNodeList="$avoided"
    fi
}
bench_exec() {
    shopt -s execfail
    exec "$@"
    bench_failed "$?" 1 "exec $*"
}
trap 'exit 143' TERM
trap 'bench_failed "$?" 1 "$BASH_COMMAND"' EXIT
trap 'bench_failed "$?" "${#BASH_SOURCE[@]}" "$BASH_COMMAND" "$LINENO"' ERR"""
"""What makes a failing line of `slurm.setup` end the job, and has it tried again where it may go better.

A line fails as with `set -e`, also inside of `if`, `for` and the like. Functions and files that a line calls count by
their own status, for those of a site (`module`, `activate`) hold commands that fail and do no harm: at depth 2 and
more, nothing is done. Example: line 21 of the script is `module load cuda`, which gives 1 on node n7. Bash calls

    bench_failed 1 1 'module load cuda' 21

which writes the time, n7, 1, line 21 and the worklist to setup-ARRAY_TASK-RESTARTS.txt and asks for a requeue, at most
twice. That is left to `bench.launch.slurm.setup_failed` where its Python starts all the same: then n7 is kept away from
after three times, and a grid whose setup fails on every node is stopped. Else the shell has this job alone keep away
from n7, if the partition has other nodes (`bench_again`): Slurm would choose n7 again, where all jobs end at once.
Meanwhile SIGTERM, which comes with a requeue, has to be ignored. An `exit` anywhere ends in the same function, without
the number of a line; so does a Python that cannot be started (`bench_exec`). The status 143 is SIGTERM: somebody ended
the job, which is no trouble.
"""

UNGUARD = "trap - ERR EXIT TERM; set +e"
"""Ends the guard: after this last line of the setup come submitit's own."""


class _Arrays(SlurmExecutor):
    """The executor of submitit, which writes jobs' input before it calls sbatch.

    submitit itself writes it after the call. So a job that starts at once finds it, and so does one whose submitter is
    killed between sbatch and the next line.
    """

    indices: tuple[int, ...] = ()

    def _internal_process_submissions(self, delayed_submissions: list[DelayedSubmission]) -> list[Job[Any]]:
        for index, delayed in zip(self.indices, delayed_submissions, strict=True):
            delayed.set_timeout(self.parameters["time"], self.max_num_timeout)
            delayed.dump(self.folder / f"{index}.pkl")
        return [self._submit_command(self._submitit_command_str)] * len(delayed_submissions)


def executor(
    folder: Path,
    cluster: Cluster,
    name: str,
    indices: Sequence[int],
    dependency: str | None,
    code: Path | None = None,
    troubles: Path | None = None,
    worklist: str = "",
) -> _Arrays:
    """Build submitit's executor for one array, whose jobs print to `folder`.

    Where the shell of a job fails before Python, it says so in the folder `troubles`, with the token of the `worklist`;
    that is STORE/.slurm/troubles for the usual `folder` STORE/.slurm/log/TOKEN.
    """
    folder.mkdir(parents=True, exist_ok=True)
    # Python takes the shell's place, to be the process that Slurm signals.
    array = _Arrays(folder, max_num_timeout=NEVER, python=f"bench_exec {shlex.quote(sys.executable)}")
    troubles = (troubles or array.folder.parents[1] / TROUBLES).absolute()
    troubles.mkdir(exist_ok=True)
    array.indices = tuple(indices)
    options: dict[str, str | bool] = {
        "array": f"{_ranges(indices)}%{cluster.array_parallelism}",
        "signal": f"B:{cluster.signal}@{cluster.signal_delay_s}",
        "requeue": True,
        "kill-on-invalid-dep": "yes",
        **cluster.options,
    }
    array.update_parameters(
        job_name=name,
        partition=cluster.partition,
        account=cluster.account,
        qos=cluster.qos,
        constraint=cluster.constraint,
        time=cluster.timeout_min,
        nodes=1,
        ntasks_per_node=1,
        cpus_per_task=cluster.cpus * cluster.runs_per_job,
        gres=f"gpu:{cluster.gpus}" if cluster.gpus and "gres" not in options else None,
        mem=f"{round(cluster.mem_gb * cluster.runs_per_job * 1024)}M" if cluster.mem_gb is not None else None,
        dependency=dependency,
        wckey="",
        use_srun=False,
        stderr_to_stdout=True,
        setup=_setup(array.folder, troubles, cluster, code, worklist),
        additional_parameters=options,
    )
    array.parameters["map_count"] = len(indices)  # submitit then names the logs by element
    return array


def write_script(folder: Path, cluster: Cluster, name: str, command: str) -> Path:
    """Write a script for sbatch that runs a line of shell.

    It runs as these settings would have a stage run; why its setup fails, it says in the folder.
    """
    path = folder / "job.sh"
    text = executor(folder, cluster, name, (0,), None, troubles=folder)._make_submission_file_text(command, "")
    path.write_text(text, encoding="utf-8")
    return path


def _setup(folder: Path, troubles: Path, cluster: Cluster, code: Path | None, worklist: str) -> list[str]:
    """Return the lines of shell that run in the job before Python."""
    # A job's PATH may lack Slurm's programs.
    scontrol = shlex.quote(shutil.which("scontrol") or "scontrol")
    judge = "false"  # nobody but the shell asks for a requeue
    exclude = str(cluster.options.get("exclude", ""))
    if worklist and code is not None:
        store = str(folder.parents[2])
        command = [f"PYTHONPATH={code}", sys.executable, "-P", "-m", "bench.launch.slurm.setup_failed"]
        judge = f'{shlex.join(["env", *command, store, worklist, exclude])} "$element" "$scontrol"'
    guard = GUARD.replace("@TROUBLES@", shlex.quote(str(troubles))).replace("@SCONTROL@", scontrol)
    guard = guard.replace("@WORKLIST@", shlex.quote(worklist)).replace("@JUDGE@", judge)
    guard = guard.replace("@EXCLUDE@", shlex.quote(f"{exclude}," if exclude else ""))
    # Until Python has its handler: the signal would kill the shell, and the job would count as failed.
    lines = [f"trap '' {cluster.signal}", guard, *cluster.setup]
    if code is not None:  # safe path: else the working directory, often a checkout, would come before the copy
        lines.append(f"export PYTHONSAFEPATH=1 PYTHONPATH={shlex.quote(str(code))}${{PYTHONPATH:+:$PYTHONPATH}}")
        # Python takes the shell's place, so that the shell cannot tell why it ended: it is tried before.
        lines.append(f"{shlex.quote(sys.executable)} -c '{IMPORTS}'  # {TRIED}")
    task = "${SLURM_ARRAY_JOB_ID}_${SLURM_ARRAY_TASK_ID}_submitted.pkl"
    # submitit looks for what it is to run under a name with the job's id, which nobody knew when the file was written.
    lines.append(f'ln -sf "$SLURM_ARRAY_TASK_ID.pkl" {shlex.quote(str(folder))}/"{task}"')
    return [*lines, UNGUARD]


def _ranges(indices: Sequence[int]) -> str:
    """Write indices as Slurm does: 0-4,7."""
    runs: list[list[int]] = []  # the first and the last index of each unbroken run
    for index in indices:
        if runs and index == runs[-1][1] + 1:
            runs[-1][1] = index
        else:
            runs.append([index, index])
    return ",".join(str(first) if first == last else f"{first}-{last}" for first, last in runs)


def make(
    store_root: Path, submission: Submission, array: _Arrays, run: Callable[..., None], tasks: Sequence[Sequence[Any]]
) -> str:
    """Make a submission that is noted, and note its id.

    The array's i-th element, of those that are used, calls `run` with the arguments `tasks[i]`. Raises InputError with
    sbatch's own words if it refuses.
    """
    try:
        with _scrubbed(), contextlib.redirect_stderr(io.StringIO()):  # submitit prints what it raises
            jobs = array.submit_array([functools.partial(run, *arguments) for arguments in tasks])
    except (FailedJobError, FailedSubmissionError) as error:
        with contextlib.suppress(SlurmError):
            if not client.queue([submission.name]):  # else it was accepted all the same
                ledger.forget(store_root, submission)
                shutil.rmtree(array.folder, ignore_errors=True)  # with a file for each job
        raise SlurmError(f"sbatch failed: {str(error).strip()}") from error
    job_id = str(jobs[0].job_id)
    ledger.complete(store_root, submission, job_id)
    return job_id


@contextlib.contextmanager
def _scrubbed() -> Iterator[None]:
    """Hide the variables of a surrounding job while the block runs.

    sbatch would obey them, and hand them on.
    """
    before = dict(os.environ)
    for name in before.keys() - client.environment().keys():
        del os.environ[name]
    try:
        yield
    finally:
        os.environ.update(before)
