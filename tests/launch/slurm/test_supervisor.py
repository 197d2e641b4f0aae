"""The supervisor of a Slurm job without Slurm: fake SLURM_* variables, a fake scontrol, workers that only pretend."""

import contextlib
import dataclasses
import json
import os
import pickle
import resource
import shutil
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

import bench
from bench.errors import DamagedStore
from bench.launch.slurm import ledger, supervisor, troubles, worklist
from bench.launch.slurm.assignment import Assignment
from bench.launch.slurm.leases import Leases
from bench.launch.slurm.snapshot import snapshot
from bench.launch.slurm.stage_process import kills_its_jobs, no_progress
from bench.planning.plugins import Plugin
from bench.specs import Schedule, Stage
from bench.specs.cluster import Cluster, stage_kind
from bench.store.files import create_json, sha256
from bench.store.ownership import Attempt
from bench.store.provenance import commit
from bench.store.store import GONE, Store
from bench.training.protocol import Settings
from tests.examples import finetuning, pretraining

REPOSITORY = Path(bench.__file__).parents[1]

# Everything of the suite but the worker is real: the package's path goes on to the real one.
PACKAGE = f"""
import sys
sys.path.append({str(REPOSITORY)!r})
__path__.append({str(REPOSITORY / "bench")!r})
exec(open({str(REPOSITORY / "bench" / "__init__.py")!r}).read())
"""
TRAINING = f"__path__.append({str(REPOSITORY / 'bench' / 'training')!r})"

WORKER = """
import json, os, signal, subprocess, sys, time
from pathlib import Path
import baselines
from bench.store.files import sha256
from bench.store.store import Store

baselines.register()
folder = Path(sys.argv[-1])
behaviour = (folder / "behaviour").read_text()
if behaviour.startswith("young ") and not (folder / "young").exists():
    (folder / "young").touch()
    number = getattr(signal, "SIG" + behaviour.split()[1])
    signal.signal(number, signal.SIG_DFL)
    os.kill(os.getpid(), number)
stopped = []
signal.signal(signal.SIGTERM, (lambda *_: stopped.append(1)) if behaviour != "deaf" else signal.SIG_IGN)
store = Store(folder.parent)
stage = store.load(folder)
ignored = int(next(l for l in open("/proc/self/status") if l.startswith("SigIgn")).split()[1], 16)
facts = {"environment": dict(os.environ), "ignored": ignored, "arguments": sys.argv[1:], "pid": os.getpid()}
(folder / "worker.json.new").write_text(json.dumps(facts))
os.rename(folder / "worker.json.new", folder / "worker.json")
if behaviour == "refuse":
    sys.exit(2)
if behaviour == "crash":
    raise ImportError("no such library")
attempt = store.claim(stage)
if attempt is None:
    sys.exit(76)
store.started(attempt, 0, [])
subprocess.Popen(["sleep", "60"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)  # it may be left behind
(folder / "began").touch()
if behaviour == "detach":
    subprocess.Popen(["sleep", "60"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)
if behaviour == "crowded" and "--shared" in sys.argv:
    store.finish(attempt, "interrupted", "out of memory")
    sys.exit(77)
while behaviour == "hold" and not (folder / "go").exists():
    time.sleep(0.02)
if behaviour == "die":
    os.kill(os.getpid(), signal.SIGKILL)
if behaviour == "fail":
    store.finish(attempt, "failed", "ValueError: no")
    sys.exit(1)
while behaviour in ("train", "deaf", "stuck"):
    time.sleep(0.02)
    if stopped:
        store.finish(attempt, "interrupted", step=7 if behaviour == "train" else 0)
        (folder / "checkpoints").mkdir(exist_ok=True)
        if behaviour == "train":
            (folder / "checkpoints" / "step-00000007.json").write_text("{}")
        sys.exit(75)
weights = folder / "weights.safetensors"
weights.write_bytes(b"weights")
weights_entry = {"file": weights.name, "sha256": sha256(weights), "bytes": 7}
store.publish(attempt, stage, {"key": stage.key, "metrics": {}, "seconds": 1.0, "weights": weights_entry})
store.finish(attempt, "done")
"""

# Limits that a test can wait for; at the end, what the process has imported.
SUPERVISE = """
import json, pickle, sys
from bench.launch.slurm import stage_process, supervisor
stage_process.LOOK_SECONDS, supervisor.REQUEUE_SECONDS, supervisor.TAKE_SECONDS = 0.1, 0.1, (0.2, 0.5)
for name, value in json.loads(sys.argv[2]).items():
    setattr(supervisor, name, value)
supervisor.supervise(pickle.loads(bytes.fromhex(sys.argv[1])))
print("imported:", sorted({name.partition(".")[0] for name in sys.modules}))
"""

SCONTROL = """#!/bin/sh
ulimit -f unlimited  # it writes elsewhere than on the full disk
case "$*" in *Comment=*) echo "$@" >> {folder}/comments; exit 0;; esac
echo "$@" >> {folder}/calls
case "$*" in *show*) echo "JobId=7 JobState=COMPLETING Reason={reason}"; exit 0;; esac
if [ {status} != 0 ] && [ $(wc -l < {folder}/calls) -le {refusals} ]; then echo "{refusal}" >&2; exit {status}; fi
exit 0
"""
SINFO = """#!/bin/sh
for node in {nodes}; do echo "main*|(null)|4|8000|$node|idle"; done
"""
ELEMENT = {"SLURM_ARRAY_JOB_ID": "7", "SLURM_ARRAY_TASK_ID": "2", "SLURM_JOB_ID": "7", "SLURMD_NODENAME": "n1"}
NEVER = 600.0
"""Seconds that no test takes: for limits that are not to be reached."""


class Job:
    """A store, a fake worker's code and a fake scontrol, and a way to run `supervise` among them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.store = Store(folder / "runs")
        self.code = folder / "code"
        for folder, package in (("bench", PACKAGE), ("bench/training", TRAINING), ("bench/models", "")):
            (self.code / folder).mkdir(parents=True)
            (self.code / folder / "__init__.py").write_text(package)
        (self.code / "bench" / "training" / "worker.py").write_text(WORKER)
        (self.code / "bench" / "training" / "imports.py").touch()  # nothing that takes time
        (self.code / "bench" / "models" / "image.py").touch()
        (self.code / "bench" / "models" / "text.py").touch()
        self.processes: list[subprocess.Popen[str]] = []
        self.scontrol()
        self.sinfo("n1", "n2", "n3", "n4")

    def scontrol(self, status: int = 0, refusal: str = "", reason: str = "None", refusals: int = 99) -> None:
        """Have scontrol refuse so many calls, and tell why the job ended."""
        facts = {"status": status, "refusal": refusal, "reason": reason, "refusals": refusals}
        self._program("scontrol", SCONTROL.format(folder=self.folder, **facts))

    def sinfo(self, *nodes: str) -> None:
        self._program("sinfo", SINFO.format(nodes=" ".join(nodes)))

    def _program(self, name: str, text: str) -> None:
        path = self.folder / "bin" / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
        path.chmod(path.stat().st_mode | stat.S_IXUSR)

    @property
    def calls(self) -> list[str]:
        path = self.folder / "calls"
        return path.read_text().splitlines() if path.exists() else []

    def add(self, stage: Stage, behaviour: str) -> Path:
        folder = self.store.add(stage)
        (folder / "behaviour").write_text(behaviour)
        return folder

    def listed(self, *stages: Stage, kinds: dict[str, Cluster] | None = None, **settings: Any) -> str:
        """Write a worklist, and return its token."""
        clusters = {stage_kind(stage.name): Cluster(**settings) for stage in stages} | (kinds or {})
        attempts = {stage.key: len(self.store.attempts(stage)) for stage in stages}
        token = ledger.new_token()
        worklist.write(self.store.root, worklist.worklist(token, stages, attempts, clusters))
        return token

    def assignment(self, *stages: Stage, token: str = "", generation: int = 9, **changes: Any) -> Assignment:
        """What a job of a worklist is told: one of these stages, unless there is one of the name `token`."""
        of_settings = {name: changes.pop(name) for name in ("threads", "graphs", "plugins") if name in changes}
        settings = Settings(self.folder / "data", checkpoint_steps=5, **of_settings)
        delay = changes.pop("signal_delay_s", 20)
        cluster = Cluster(**{"signal_delay_s": 20, "runs_per_job": max(1, len(stages)), **changes})
        token = token or self.listed(*stages, **dataclasses.asdict(cluster))
        object.__setattr__(cluster, "signal_delay_s", delay)  # shorter than is legal: a test does not wait
        scontrol = str(self.folder / "bin" / "scontrol")
        return Assignment(self.store.root, self.code, settings, token, generation, cluster, scontrol)

    def start(
        self,
        *stages: Stage,
        full: bool = False,
        slurm: dict[str, str] | None = None,
        limits: dict[str, Any] | None = None,
        **changes: Any,
    ) -> Any:
        """Run it in a process of its own; with `full`, no file can grow as on a full disk.

        `limits` are constants of the supervisor's module that are others here.
        """
        environment = {name: value for name, value in os.environ.items() if not name.startswith(("SLURM", "CUDA"))}
        environment |= {"PATH": f"{self.folder / 'bin'}:{os.environ['PATH']}", "PYTHONPATH": str(REPOSITORY)}
        environment |= slurm or ELEMENT
        assignment = pickle.dumps(self.assignment(*stages, **changes)).hex()
        process = subprocess.Popen(
            [sys.executable, "-c", SUPERVISE, assignment, json.dumps(limits or {})],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            preexec_fn=(lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (0, resource.RLIM_INFINITY)))
            if full
            else None,
        )
        self.processes.append(process)
        return process

    def run(self, *stages: Stage, **changes: Any) -> tuple[int, str]:
        process = self.start(*stages, **changes)
        output, _ = process.communicate(timeout=120)
        return process.returncode, output

    def worker(self, stage: Stage) -> dict[str, Any]:
        """What the stage's worker told of itself."""
        facts: dict[str, Any] = json.loads((self.store.folder(stage) / "worker.json").read_text())
        return facts

    def plugin(self, text: str) -> Plugin:
        path = self.folder / "a_plugin.py"
        path.write_text(f"from bench.methods import recipe\n@recipe()\ndef nothing(cell): ...\n{text}\n")
        return Plugin(path.stem, path.stem, path)

    def ends(self, stage: Stage) -> list[str | None]:
        return [attempt.end["state"] if attempt.end else None for attempt in self.store.attempts(stage)]

    def close(self) -> None:
        for process in self.processes:
            if process.poll() is None:
                process.kill()
        for pid in left_over(self):  # else what outlives a supervisor keeps its output open, which is read to the end
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        for process in self.processes:
            process.communicate()


@pytest.fixture
def job(tmp_path: Path) -> Iterator[Job]:
    job = Job(tmp_path)
    yield job
    job.close()


def until(condition: Callable[[], Any], seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "nothing happened"
        time.sleep(0.02)


def left_over(job: Job) -> dict[int, str]:
    """Processes whose environment names this test's code, by id: workers and what they started."""
    marker = f"PYTHONPATH={job.code}".encode()
    commands = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            environment = (folder / "environ").read_bytes()
            state = (folder / "stat").read_text().rpartition(")")[2].split()[0]
        except OSError:
            continue
        if marker in environment and state not in "ZX":
            commands[int(folder.name)] = (folder / "cmdline").read_bytes().decode()
    return commands


def zombies(parent: int) -> list[str]:
    """The children of a process that have ended and were not waited for, by name."""
    names = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):  # gone meanwhile
            name, _, fields = path.read_text().rpartition(")")
            if fields.split()[:2] == ["Z", str(parent)]:
                names.append(name)
    return names


def publish(store: Store, stage: Stage) -> None:
    attempt = store.claim(stage)
    assert attempt is not None
    weights = store.folder(stage) / "weights.safetensors"
    weights.write_bytes(b"weights")
    facts = {"file": weights.name, "sha256": sha256(weights), "bytes": 7}
    store.publish(attempt, stage, {"key": stage.key, "metrics": {}, "seconds": 1.0, "weights": facts})
    store.finish(attempt, "done")


FIRST, SECOND = pretraining(), pretraining(seed=1)


# ------------------------------------------------------------------------------------------------- undisturbed


def test_every_stage_gets_a_worker_of_its_own_and_the_job_ends_well(job: Job) -> None:
    job.add(FIRST, "publish")
    job.add(SECOND, "publish")
    status, output = job.run(FIRST, SECOND, gpus=2, threads=3, slurm={**ELEMENT, "CUDA_VISIBLE_DEVICES": "4,6"})
    assert status == 0, output
    assert job.ends(FIRST) == job.ends(SECOND) == ["done"]
    assert job.calls == []
    assert not left_over(job)
    first, second = job.worker(FIRST), job.worker(SECOND)
    assert first["pid"] != second["pid"]
    environment = first["environment"]
    assert [environment["CUDA_VISIBLE_DEVICES"], second["environment"]["CUDA_VISIBLE_DEVICES"]] == ["4", "6"]
    assert environment["OMP_NUM_THREADS"] == environment["MKL_NUM_THREADS"] == "3"
    assert environment["PYTHONPATH"].split(os.pathsep)[0] == str(job.code)
    assert first["arguments"] == [
        *("--data", str(job.folder / "data"), "--device", "cuda:0", "--threads", "3", "--checkpoint-steps", "5"),
        "--graphs",
        str(job.store.folder(FIRST)),
    ]
    for number in (signal.SIGUSR1, signal.SIGUSR2):
        assert first["ignored"] >> (number - 1) & 1
    assert job.store.attempts(FIRST)[0].facts["owner"]["job"] == "7_2"
    imported = output.splitlines()[-1]
    assert "'bench'" in imported
    assert not any(f"'{name}'" in imported for name in ("torch", "numpy", "gin", "submitit"))


def test_stages_share_the_gpus_in_turn_and_a_cpu_job_sees_none(job: Job) -> None:
    stages = [pretraining(seed=seed) for seed in range(3)]
    for stage in stages:
        job.add(stage, "publish")
    assert job.run(*stages, gpus=2)[0] == 0
    assert [job.worker(stage)["environment"]["CUDA_VISIBLE_DEVICES"] for stage in stages] == ["0", "1", "0"]
    last = pretraining(seed=3)
    job.add(last, "publish")
    assert job.run(last)[0] == 0
    assert job.worker(last)["environment"]["CUDA_VISIBLE_DEVICES"] == ""
    assert "cpu" in job.worker(last)["arguments"]


def test_recorded_steps_can_be_switched_off(job: Job) -> None:
    job.add(FIRST, "publish")
    assert job.run(FIRST, gpus=1, graphs=False)[0] == 0
    assert "--no-graphs" in job.worker(FIRST)["arguments"]


# ------------------------------------------------------------------------------------------------- out of memory


def span(job: Job, stage: Stage) -> tuple[float, float]:
    """When the last attempt at a stage began and ended."""
    attempt = job.store.attempts(stage)[-1]
    assert attempt.end is not None
    return attempt.facts["began"], attempt.end["time"]


def test_a_stage_out_of_memory_beside_others_is_tried_again_when_they_have_ended(job: Job) -> None:
    first, second, third = FIRST, SECOND, pretraining(seed=2)
    holds = job.add(second, "hold"), job.add(third, "hold")
    job.add(first, "crowded")
    process = job.start(first, second, third, gpus=2, give_up_after=1)  # the first and the third share a GPU
    until(lambda: job.ends(first) == ["interrupted"])
    time.sleep(1)
    assert job.ends(first) == ["interrupted"]
    (holds[1] / "go").touch()
    until(lambda: job.ends(first) == ["interrupted", "done"])  # the other GPU is not waited for
    assert job.ends(second) == [None]
    (holds[0] / "go").touch()
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 0, output
    assert span(job, third)[1] <= span(job, first)[0]
    lines = output.splitlines()  # in their order also where this computer is slow
    ended = next(number for number, line in enumerate(lines) if f"{third.folder}: done" in line)
    assert ended < max(number for number, line in enumerate(lines) if f"{first.folder}: started" in line)
    assert "--shared" not in job.worker(first)["arguments"]
    assert "--shared" in job.worker(third)["arguments"] and "--shared" not in job.worker(second)["arguments"]
    assert "out of memory" in output


def test_stages_that_all_need_the_device_alone_take_turns(job: Job) -> None:
    stages = [pretraining(seed=seed) for seed in range(3)]
    for stage in stages:
        job.add(stage, "crowded")
    status, output = job.run(*stages, gpus=1)
    assert status == 0, output
    assert [job.ends(stage)[-1] for stage in stages] == ["done"] * 3
    assert any(job.ends(stage)[0] == "interrupted" for stage in stages)
    spans = sorted(span(job, stage) for stage in stages)
    assert all(earlier[1] <= later[0] for earlier, later in pairwise(spans))


@pytest.mark.parametrize("behaviour", ["publish", "refuse"])
def test_a_job_that_leaves_nothing_to_its_array_ends_the_waiting_ones(behaviour: str, job: Job) -> None:
    """One of them may be held, and the next array waits for all."""
    job._program("scancel", f'#!/bin/sh\necho "$@" >> {job.folder}/cancelled\n')
    job.add(FIRST, behaviour)
    _, output = job.run(FIRST, slurm={**ELEMENT, "SLURM_ARRAY_TASK_COUNT": "3"})
    cancelled = job.folder / "cancelled"
    said = cancelled.read_text() if cancelled.exists() else ""
    assert said == ("--state=PENDING 7\n" if behaviour == "publish" else ""), output


def test_a_job_that_ends_meanwhile_is_requeued(job: Job) -> None:
    holds = job.add(SECOND, "train")
    job.add(FIRST, "crowded")
    process = job.start(FIRST, SECOND, gpus=1)
    until(lambda: job.ends(FIRST) == ["interrupted"] and (holds / "began").exists())
    process.send_signal(signal.SIGUSR2)
    assert process.wait(timeout=60) == 75
    assert job.calls == ["requeue 7_2"]
    assert job.ends(FIRST) == ["interrupted"]


def test_what_workers_leave_does_not_stay_until_the_job_ends(job: Job) -> None:
    """Each of these workers leaves a process, and each would be a zombie for as long as the job runs."""
    *others, last = [pretraining(seed=seed) for seed in range(4)]
    for stage in others:
        job.add(stage, "publish")
    folder = job.add(last, "hold")
    process = job.start(token=job.listed(*others, last))
    until((folder / "began").exists)
    until(lambda: not zombies(process.pid), 10)
    (folder / "go").touch()
    assert process.wait(timeout=60) == 0
    assert [job.ends(stage) for stage in (*others, last)] == [["done"]] * 4


def test_what_left_its_workers_session_does_not_outlive_the_job(job: Job) -> None:
    job.add(FIRST, "detach")
    assert job.run(FIRST)[0] == 0
    until(lambda: not left_over(job), 5)


def test_finished_stages_are_not_run_again(job: Job) -> None:
    job.add(FIRST, "die")
    publish(job.store, FIRST)
    status, _ = job.run(FIRST)
    assert status == 0
    assert job.ends(FIRST) == ["done"]


# ------------------------------------------------------------------------------------------------- asked to end


@pytest.mark.parametrize(
    ("slurm", "name"),
    [
        (ELEMENT, "7_2"),
        ({"SLURM_JOB_ID": "9"}, "9"),
    ],
)
def test_an_announced_end_checkpoints_and_requeues_this_element_only(
    slurm: dict[str, str], name: str, job: Job
) -> None:
    done, going = job.add(FIRST, "publish"), job.add(SECOND, "train")
    process = job.start(FIRST, SECOND, slurm=slurm)
    until(lambda: (done / "record.json").exists() and (going / "began").exists())
    process.send_signal(signal.SIGUSR2)
    assert process.wait(timeout=60) == 75
    assert job.calls == [f"requeue {name}"]
    assert job.ends(FIRST) == ["done"]
    assert job.ends(SECOND) == ["interrupted"]
    assert not left_over(job)


def test_the_end_may_be_announced_by_another_signal(job: Job) -> None:
    folder = job.add(FIRST, "train")
    process = job.start(FIRST, signal="USR1")
    until((folder / "began").exists)
    os.kill(job.worker(FIRST)["pid"], signal.SIGUSR1)  # a worker ignores it
    process.send_signal(signal.SIGUSR1)
    assert process.wait(timeout=60) == 75
    assert job.calls == ["requeue 7_2"]
    assert job.ends(FIRST) == ["interrupted"]


def test_sigterm_alone_checkpoints_and_requeues_nothing(job: Job) -> None:
    folder = job.add(FIRST, "train")
    process = job.start(FIRST)
    until((folder / "began").exists)
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=60) == 75
    assert job.calls == []
    assert job.ends(FIRST) == ["interrupted"]
    assert not left_over(job)


def test_a_job_cancelled_after_the_announcement_stays_cancelled(job: Job) -> None:
    folder = job.add(FIRST, "train")
    process = job.start(FIRST)
    until((folder / "began").exists)
    process.send_signal(signal.SIGTERM)
    process.send_signal(signal.SIGUSR2)
    assert process.wait(timeout=60) == 75
    assert job.calls == ["--oneliner show job 7_2"]


@pytest.mark.parametrize(("cancelled", "status"), [(True, 1), (False, 0)])
def test_a_cancelled_job_that_slurm_starts_again_takes_nothing(cancelled: bool, status: int, job: Job) -> None:
    """Where it asked for a requeue in the moment in which it was cancelled."""
    folder = job.add(FIRST, "publish")
    token = job.listed(FIRST)
    submission = ledger.note(job.store.root, "grid", "source", worklist=token)
    if cancelled:
        ledger.note_cancelled(job.store.root, submission)
    ended, output = job.run(token=token, slurm={**ELEMENT, "SLURM_RESTART_COUNT": "1"})
    assert ended == status, output
    assert ("it was cancelled" in output, (folder / "record.json").exists()) == (cancelled, not cancelled)
    assert not job.calls and not troubles.read(job.store.root)


def test_a_job_whose_time_is_up_before_it_could_checkpoint_goes_on(job: Job) -> None:
    folder = job.add(FIRST, "train")
    job.scontrol(reason="TimeLimit")
    process = job.start(FIRST)
    until((folder / "began").exists)
    process.send_signal(signal.SIGTERM)
    process.send_signal(signal.SIGUSR2)
    assert process.wait(timeout=60) == 75
    assert job.calls == ["--oneliner show job 7_2", "requeue 7_2"]


def test_signals_to_every_process_of_the_job_are_as_good(job: Job) -> None:
    folder = job.add(FIRST, "train")
    process = job.start(FIRST)
    until((folder / "began").exists)
    for pid in (job.worker(FIRST)["pid"], process.pid):
        os.kill(pid, signal.SIGUSR2)
    assert process.wait(timeout=60) == 75
    assert job.ends(FIRST) == ["interrupted"]


def test_a_plugin_with_handlers_of_its_own_hides_no_signal(job: Job) -> None:
    folder = job.add(FIRST, "train")
    ignoring = (
        "import signal\nfor name in 'USR2', 'TERM', 'CHLD': signal.signal(signal.Signals['SIG' + name], signal.SIG_IGN)"
    )
    process = job.start(FIRST, plugins=(job.plugin(ignoring),))
    until((folder / "began").exists)
    process.send_signal(signal.SIGUSR2)
    assert process.wait(timeout=60) == 75
    assert job.ends(FIRST) == ["interrupted"]


def test_a_worker_told_to_stop_by_somebody_else_is_started_again(job: Job) -> None:
    folder = job.add(FIRST, "train")
    process = job.start(FIRST)
    until((folder / "began").exists)
    (folder / "behaviour").write_text("publish")
    os.kill(job.worker(FIRST)["pid"], signal.SIGTERM)
    assert process.wait(timeout=60) == 0
    assert job.ends(FIRST) == ["interrupted", "done"]


def test_a_worker_that_cannot_stop_in_time_is_killed_with_all_it_started(job: Job) -> None:
    folder = job.add(FIRST, "deaf")
    process = job.start(FIRST, signal_delay_s=2)
    until((folder / "began").exists)
    began = time.monotonic()
    process.send_signal(signal.SIGUSR2)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 75, output
    assert 0.9 < time.monotonic() - began < 18
    assert job.calls == ["requeue 7_2"]
    assert job.ends(FIRST) == ["died"]
    assert not left_over(job)


def test_no_worker_outlives_a_supervisor_that_is_killed(job: Job) -> None:
    folder = job.add(FIRST, "deaf")
    process = job.start(FIRST)
    until((folder / "began").exists)
    worker = job.worker(FIRST)["pid"]
    process.kill()
    process.wait()
    until(lambda: worker not in left_over(job), 5)


def test_a_job_that_slurm_has_requeued_by_itself_is_left_alone(job: Job) -> None:
    folder = job.add(FIRST, "train")
    job.scontrol(status=1, refusal="Job is pending execution")
    process = job.start(FIRST)
    until((folder / "began").exists)
    process.send_signal(signal.SIGUSR2)
    assert process.wait(timeout=60) == 75


def test_a_requeue_is_tried_again_while_the_controller_cannot_be_reached(job: Job) -> None:
    folder = job.add(FIRST, "train")
    job.scontrol(status=1, refusal="Unable to contact slurm controller (connect failure)", refusals=2)
    process = job.start(FIRST)
    until((folder / "began").exists)
    process.send_signal(signal.SIGUSR2)
    assert process.wait(timeout=60) == 75
    assert job.calls == ["requeue 7_2"] * 3


def test_a_requeue_that_slurm_refuses_is_told_in_its_own_words_and_leaves_stages_to_others(job: Job) -> None:
    folder = job.add(FIRST, "train")
    job.scontrol(status=1, refusal="Requested operation is presently disabled")
    token = job.listed(FIRST)
    process = job.start(token=token)
    until((folder / "began").exists)
    process.send_signal(signal.SIGUSR2)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 1
    assert job.calls == ["requeue 7_2"]
    assert "would not requeue 7_2" in output and "Requested operation is presently disabled" in output
    assert job.ends(FIRST) == ["interrupted"]
    (folder / "behaviour").write_text("publish")
    assert job.run(token=token, slurm={**ELEMENT, "SLURM_ARRAY_TASK_ID": "3"})[0] == 0
    assert job.ends(FIRST) == ["interrupted", "done"]


def test_an_interrupted_stage_is_the_first_that_the_next_job_takes(job: Job) -> None:
    long, short = pretraining(schedule=Schedule(steps=99)), FIRST
    job.add(long, "publish")
    folder = job.add(short, "train")
    process = job.start(token=job.listed(short))
    until((folder / "began").exists)
    process.send_signal(signal.SIGUSR2)
    assert process.wait(timeout=60) == 75
    (folder / "behaviour").write_text("publish")
    assert job.run(long, short, runs_per_job=1)[0] == 0
    assert span(job, short)[1] <= span(job, long)[0]


# ------------------------------------------------------------------------------------------------- taking stages


def test_a_free_slot_is_filled_while_the_others_go_on(job: Job) -> None:
    stages = [pretraining(seed=seed) for seed in range(4)]
    held = job.add(stages[0], "hold")
    for stage in stages[1:]:
        job.add(stage, "publish")
    process = job.start(*stages, runs_per_job=2, gpus=2)
    until(lambda: all(job.ends(stage) == ["done"] for stage in stages[1:]))
    assert job.ends(stages[0]) == [None]
    (held / "go").touch()
    assert process.wait(timeout=60) == 0
    assert [job.worker(stage)["environment"]["CUDA_VISIBLE_DEVICES"] for stage in stages] == ["0", "1", "1", "1"]


def test_children_are_run_once_their_parents_are_done(job: Job) -> None:
    child = finetuning()
    for stage in (*child.parents, child):
        job.add(stage, "publish")
    assert job.run(*child.parents, child)[0] == 0
    assert job.ends(child) == ["done"]
    assert span(job, child.parents[0])[1] <= span(job, child)[0]


def test_a_job_ends_when_the_generations_it_serves_are_finished(job: Job) -> None:
    child = finetuning()
    for stage in (*child.parents, child):
        job.add(stage, "publish")
    status, _ = job.run(*child.parents, child, generation=0, limits={"IDLE_SECONDS": NEVER})
    assert status == 0
    assert job.ends(child.parents[0]) == ["done"] and job.ends(child) == []


def test_a_job_without_a_ready_stage_ends_after_a_while_and_fails_nothing(job: Job) -> None:
    job.add(FIRST, "publish")
    leases = Leases(job.store.root)  # this test is the other job
    assert leases.take(FIRST.folder)
    status, output = job.run(FIRST, limits={"IDLE_SECONDS": 2.0})
    assert status == 0, output
    assert job.ends(FIRST) == [] and job.calls == []


@pytest.mark.parametrize("seconds", [100, 3600])
def test_nothing_is_started_that_could_not_checkpoint_before_the_limit(seconds: int, job: Job) -> None:
    job.add(FIRST, "publish")
    slurm = {**ELEMENT, "SLURM_JOB_END_TIME": str(int(time.time()) + seconds)}
    status, output = job.run(FIRST, slurm=slurm, limits={"START_SECONDS": 60, "CHECKPOINT_SECONDS": 60})
    enough = seconds > 60 + 60 + 20
    assert (status, job.calls) == ((0, []) if enough else (75, ["requeue 7_2"])), output
    assert job.ends(FIRST) == (["done"] if enough else [])


def test_squeue_is_told_which_stage_a_job_runs(job: Job) -> None:
    folder = job.add(FIRST, "hold")
    process = job.start(FIRST)
    until((job.folder / "comments").exists)
    (folder / "go").touch()
    assert process.wait(timeout=60) == 0
    assert f"update JobId=7_2 Comment={FIRST.folder}" in (job.folder / "comments").read_text().splitlines()


# ------------------------------------------------------------------------------------------------- the environment


@pytest.mark.parametrize(
    ("behaviour", "reason"), [("crash", "exit status 1, before its first step"), ("refuse", "the store is damaged or")]
)
def test_after_one_trouble_a_job_ends_and_is_requeued_a_few_times(behaviour: str, reason: str, job: Job) -> None:
    stages = [pretraining(seed=seed) for seed in range(3)]
    for stage in stages:
        job.add(stage, behaviour)
    token = job.listed(*stages)
    for tries in range(1, 4):
        status, output = job.run(token=token)
        noted = troubles.read(job.store.root)
        assert len(noted) == tries
        assert (noted[-1].node, noted[-1].job, noted[-1].worklist) == ("n1", "7_2", token)
        assert noted[-1].stage in {stage.folder for stage in stages} and reason in noted[-1].reason
        assert status == (75 if tries < supervisor.OWN_TROUBLES else 1), output
    assert job.calls == ["requeue 7_2"] * 2
    assert all(job.store.failure(stage) is None for stage in stages)
    # The node is the one to blame, as far as anybody knows: a job that starts there ends without taking a stage.
    (job.store.folder(stages[0]) / "worker.json").unlink()
    for stage in stages:
        (job.store.folder(stage) / "behaviour").write_text("publish")
    other = {**ELEMENT, "SLURM_ARRAY_TASK_ID": "5"}
    status, output = job.run(token=token, slurm=other)
    assert status == 75 and "this node is not used" in output
    assert job.calls[2:] == ["requeue 7_5", "update JobId=7_5 ExcNodeList=n1"]
    assert not (job.store.folder(stages[0]) / "worker.json").exists()
    assert len(troubles.read(job.store.root)) == 3
    # Elsewhere everything goes on.
    assert job.run(token=token, slurm={**other, "SLURMD_NODENAME": "n2"})[0] == 0
    assert [job.ends(stage)[-1] for stage in stages] == ["done"] * 3


@pytest.mark.parametrize("line", ["import no_such_library", "import sys; sys.exit(0)"])
def test_a_plugin_that_cannot_be_imported_on_a_node_is_a_trouble_of_that_node(line: str, job: Job) -> None:
    job.add(FIRST, "publish")
    plugin = job.plugin(f"import os\nif os.environ['SLURMD_NODENAME'] == 'n1': {line}")
    token = job.listed(FIRST)
    for tries in range(1, 4):
        status, output = job.run(token=token, plugins=(plugin,))
        assert status == (75 if tries < supervisor.OWN_TROUBLES else 1), output
    assert job.calls[:1] == ["requeue 7_2"]
    assert "cannot be imported" in troubles.excluded(job.store.root)["n1"]
    elsewhere = {**ELEMENT, "SLURMD_NODENAME": "n2"}
    assert job.run(token=token, plugins=(plugin,), slurm=elsewhere)[0] == 0
    assert job.ends(FIRST) == ["done"]


def test_the_only_node_is_used_however_it_behaves(job: Job) -> None:
    job.add(FIRST, "publish")
    job.sinfo("n1")
    for _ in range(3):
        create_trouble(job, "n1", "", "")
    assert job.run(FIRST)[0] == 0
    assert job.ends(FIRST) == ["done"]


def create_trouble(job: Job, node: str, token: str, stage: str, reason: str = "no such library") -> None:
    facts = {"time": time.time() - 60, "node": node, "job": "6_0", "worklist": token, "stage": stage, "reason": reason}
    number = len(troubles.read(job.store.root))
    assert create_json(job.store.root / ".slurm" / "troubles" / f"{number:016x}.json", facts)


def test_a_list_of_excluded_nodes_keeps_those_of_before(job: Job) -> None:
    job.add(FIRST, "publish")
    for node in ("n1", "n1", "n1", "n3", "n3", "n3"):
        create_trouble(job, node, "", "")
    assert job.run(FIRST, extra=("exclude=n7",))[0] == 75
    assert job.calls == ["requeue 7_2", "update JobId=7_2 ExcNodeList=n7,n1,n3"]


def test_a_node_that_finishes_a_stage_is_no_longer_blamed(job: Job) -> None:
    job.add(FIRST, "publish")
    for _ in range(2):
        create_trouble(job, "n1", "", "")
    assert job.run(FIRST)[0] == 0
    create_trouble(job, "n1", "", "")
    assert troubles.excluded(job.store.root) == {}


def test_a_job_that_was_given_fewer_gpus_than_it_asked_for_starts_nothing(job: Job) -> None:
    job.add(FIRST, "publish")
    status, output = job.run(FIRST, gpus=2, slurm={**ELEMENT, "CUDA_VISIBLE_DEVICES": "0"})
    assert (status, job.calls) == (75, ["requeue 7_2"])
    assert "2 GPU(s) are needed, and CUDA_VISIBLE_DEVICES='0' names 1" in output
    assert "2 GPU(s) are needed" in troubles.read(job.store.root)[0].reason
    assert job.ends(FIRST) == []


def test_a_full_disk_is_told_and_harms_nothing(job: Job) -> None:
    job.add(FIRST, "publish")
    status, output = job.run(FIRST, full=True)
    assert status == 75
    assert "File too large" in output
    assert [path.name for path in job.store.folder(FIRST).rglob("*") if path.name != "attempts"] == [
        *("behaviour", "spec.json")
    ]
    assert Leases(job.store.root).look() == {}
    # A trouble that cannot be noted is counted by Slurm's restarts.
    assert job.run(FIRST, full=True, slurm={**ELEMENT, "SLURM_RESTART_COUNT": str(supervisor.MOST_RESTARTS)})[0] == 1
    assert job.run(FIRST)[0] == 0


def test_a_worker_on_a_full_disk_refuses_and_nothing_is_held_against_its_stage(job: Job) -> None:
    job.add(FIRST, "publish")
    token = job.listed(FIRST)
    (job.code / "bench" / "training" / "worker.py").write_text(
        f"import resource, sys\nsys.path.insert(0, {str(REPOSITORY)!r})\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))\n"
        f"exec(open({str(REPOSITORY / 'bench' / 'training' / 'worker.py')!r}).read())\n"
    )
    status, output = job.run(token=token)
    assert status == 75, output
    assert "File too large" in output and f"{FIRST.folder}: refused" in output
    assert job.ends(FIRST) == [] and troubles.read(job.store.root)[0].stage == FIRST.folder


def test_a_stage_with_troubles_on_three_nodes_is_given_up(job: Job) -> None:
    job.add(FIRST, "publish")
    job.add(SECOND, "publish")
    token = job.listed(FIRST, SECOND)
    for node in ("n2", "n3", "n4"):
        create_trouble(job, node, token, FIRST.folder)
    assert job.run(token=token)[0] == 0
    assert job.ends(FIRST) == [] and job.ends(SECOND) == ["done"]


def test_a_grid_whose_stages_fail_alike_is_stopped_and_no_job_goes_on(job: Job) -> None:
    stages = [pretraining(seed=seed) for seed in range(troubles.FAILED_ALIKE + 3)]
    for stage in stages:
        job.add(stage, "fail")
    token = job.listed(*stages)
    status, output = job.run(token=token, runs_per_job=1)
    assert status == 1
    assert (
        f"the grid was stopped: {troubles.FAILED_ALIKE} stages failed alike, and 0 were done: ValueError: no" in output
    )
    assert [job.ends(stage) for stage in stages].count(["failed"]) == troubles.FAILED_ALIKE
    assert "ValueError: no" in (troubles.stopped(job.store.root, token) or "")
    for stage in stages:
        (job.store.folder(stage) / "behaviour").write_text("publish")
    status, output = job.run(token=token)
    assert status == 1 and "the grid was stopped" in output
    assert [job.ends(stage) for stage in stages].count([]) == 3
    assert job.run(*stages)[0] == 0  # a new submission


def test_a_damaged_stage_fails_the_job_and_keeps_no_other_from_running(job: Job) -> None:
    for stage in (FIRST, SECOND):
        job.add(stage, "publish")
    publish(job.store, FIRST)
    (job.store.folder(FIRST) / "weights.safetensors").write_bytes(b"")
    status, output = job.run(FIRST, SECOND, limits={"IDLE_SECONDS": 2.0})
    assert status == 1
    assert "missing or truncated" in output.splitlines()[-1]
    assert job.ends(SECOND) == ["done"]
    assert troubles.read(job.store.root) == []


# ------------------------------------------------------------------------------------------------- failures


@pytest.mark.parametrize(
    ("behaviour", "reason"),
    [
        ("die", "the worker process died: signal SIGKILL (often the system's out-of-memory killer)"),
        ("fail", "ValueError: no"),
    ],
)
def test_a_failure_is_noted_and_fails_the_job_after_the_others_have_ended(
    behaviour: str, reason: str, job: Job
) -> None:
    job.add(FIRST, behaviour)
    job.add(SECOND, "publish")
    status, output = job.run(FIRST, SECOND)
    assert status == 1
    assert f"{FIRST.folder}: {reason}" in output.splitlines()[-1]
    assert job.ends(SECOND) == ["done"]
    assert job.store.failure(FIRST) == reason
    assert not left_over(job)


@pytest.mark.parametrize("number", ["TERM", "INT", "HUP"])
def test_a_signal_in_a_workers_first_moments_is_an_interruption(number: str, job: Job) -> None:
    folder = job.add(FIRST, f"young {number}")
    status, output = job.run(FIRST)
    assert status == 0, output
    assert (folder / "young").exists() and job.ends(FIRST) == ["done"]


def test_a_requeued_job_does_not_repeat_what_failed_in_it_but_a_new_submission_does(job: Job) -> None:
    failing, going = job.add(FIRST, "fail"), job.add(SECOND, "train")
    token = job.listed(FIRST, SECOND)
    process = job.start(token=token, runs_per_job=2)
    until(lambda: job.ends(FIRST) == ["failed"] and (going / "began").exists())
    process.send_signal(signal.SIGUSR2)
    assert process.wait(timeout=60) == 75
    for folder in (failing, going):
        (folder / "behaviour").write_text("publish")
    assert job.run(token=token, runs_per_job=2, slurm={**ELEMENT, "SLURM_RESTART_COUNT": "1"})[0] == 0
    assert job.ends(FIRST) == ["failed"]
    assert job.ends(SECOND) == ["interrupted", "done"]
    assert job.run(FIRST)[0] == 0
    assert job.ends(FIRST) == ["failed", "done"]


# ------------------------------------------------------------------------------------------------- no progress


def attempts(
    tmp_path: Path, *facts: tuple[int | None, str | None], seconds: float = 100.0, reason: str = "", hosts: str = "a"
) -> list[Attempt]:
    """A ledger of attempts with the steps they began at and the states they ended in; on one host each, in turn."""
    ledger = []
    for number, (step, state) in enumerate(facts, start=1):
        path = tmp_path / "attempts" / f"{number:06}.json"
        path.parent.mkdir(exist_ok=True)
        path.touch()
        end = {"state": state, "reason": reason, "step": None, "time": 1000.0 + seconds} if state else None
        owner = {"machine": f"{hosts[number % len(hosts)]} 1 pid", "pid": 1, "start": "1"}
        ledger.append(Attempt(number, path, {"owner": owner, "from_step": step, "began": 1000.0}, end))
    return ledger


def checkpoint(tmp_path: Path, step: int) -> None:
    (tmp_path / "checkpoints").mkdir(exist_ok=True)
    (tmp_path / "checkpoints" / f"step-{step:08}.json").touch()


@pytest.mark.parametrize(
    ("facts", "newest", "reason"),
    [
        ([(0, "died"), (0, "interrupted"), (0, "died")], 0, "no progress in 3 attempts: all began at step 0"),
        (
            [(0, "died"), (40, "died"), (40, "died"), (40, "died")],
            40,
            "no progress in 3 attempts: all began at step 40",
        ),
        ([(40, "died"), (None, "died"), (None, "died")], 40, "no progress in 3 attempts: all began at step 40"),
        ([(None, "died")] * 3, 40, "no progress in 3 attempts: none came to its first step"),
        ([(0, "died"), (0, "died"), (0, "interrupted")], 7, None),
        ([(0, "died"), (40, "died"), (80, "died")], 80, None),
        ([(0, "died"), (0, "died")], 0, None),
        ([(0, "died"), (0, "failed"), (0, "died")], 0, None),
        ([(0, "died"), (0, "died"), (0, "died"), (0, None)], 0, None),  # runs elsewhere
    ],
)
def test_when_a_stage_is_given_up(
    facts: list[tuple[int | None, str | None]], newest: int, reason: str | None, tmp_path: Path
) -> None:
    checkpoint(tmp_path, newest)
    assert no_progress(attempts(tmp_path, *facts), 3, full_seconds=100.0) == reason


def test_attempts_that_were_cut_short_are_passed_over(tmp_path: Path) -> None:
    full = attempts(tmp_path, *[(0, "interrupted")] * 3)
    short = attempts(tmp_path, *[(0, "interrupted")] * 9, seconds=99.0)
    assert no_progress(short, 3, 100.0) is None
    assert no_progress([*full[:2], *short], 3, 100.0) is None
    assert no_progress([*full, *short], 3, 100.0) is not None


@pytest.mark.parametrize(
    ("steps", "hosts", "newest", "given_up"),
    [
        ([0, 0, 0], "abc", 0, True),
        ([0, 0, 0], "ab", 0, False),
        ([0] * 6, "a", 0, True),
        ([0] * 5, "ab", 0, False),
        ([0, 0, 0], "abc", 7, False),  # the last one got further
        ([0, 40, 40, 40], "abc", 40, True),  # and then no more
        ([0, 40, 40], "abc", 40, False),
        ([0, 40, None, 40], "abc", 40, True),
    ],
)
def test_a_stage_whose_jobs_die_without_a_word_is_given_up_after_three_nodes(
    steps: list[int | None], hosts: str, newest: int, given_up: bool, tmp_path: Path
) -> None:
    checkpoint(tmp_path, newest)
    silent = attempts(tmp_path, *[(step, "died") for step in steps], reason=GONE, hosts=hosts)
    reason = kills_its_jobs(silent)
    assert (reason is not None) == given_up
    if reason is not None:
        assert ", ".join(sorted(set(hosts))) in reason
    spoken = attempts(tmp_path, *[(step, "died") for step in steps], reason="told to stop", hosts=hosts)
    assert kills_its_jobs(spoken) is None
    assert kills_its_jobs([]) is None


def try_in_vain(job: Job, stage: Stage, seconds: float) -> None:
    """Add an attempt of that length that got nowhere."""
    attempt = job.store.claim(stage)
    assert attempt is not None
    attempt.facts["began"] -= seconds
    job.store.started(attempt, 0, [])
    job.store.finish(attempt, "interrupted", step=0)


def test_a_stage_without_progress_is_given_up_and_not_run(job: Job) -> None:
    for stage in (FIRST, SECOND):
        job.add(stage, "publish")
    try_in_vain(job, FIRST, 3600)  # before the submission: it does not count
    token = job.listed(FIRST, SECOND)
    for _ in range(2):
        try_in_vain(job, FIRST, 3600)
        try_in_vain(job, SECOND, 60)  # preempted
    try_in_vain(job, SECOND, 60)
    status, output = job.run(token=token, give_up_after=2)
    assert status == 1
    assert "no progress in 2 attempts: all began at step 0" in output
    assert job.ends(FIRST) == ["interrupted"] * 3 + ["failed"]
    assert job.ends(SECOND) == ["interrupted"] * 3 + ["done"]
    assert job.run(FIRST, give_up_after=2)[0] == 0  # a person's next submission begins to count anew
    assert job.ends(FIRST)[-1] == "done"


# ------------------------------------------------------------------------------------------------- other processes


def test_a_stage_that_another_process_runs_is_never_run_twice(job: Job) -> None:
    folder = job.add(FIRST, "publish")
    attempt = job.store.claim(FIRST)  # this test is the other process
    assert attempt is not None
    process = job.start(FIRST, limits={"IDLE_SECONDS": NEVER})
    until(lambda: "job 7_2 on n1" in process.stdout.readline())
    time.sleep(1)  # it looks
    weights = folder / "weights.safetensors"
    weights.write_bytes(b"weights")
    facts = {"file": weights.name, "sha256": sha256(weights), "bytes": 7}
    job.store.publish(attempt, FIRST, {"key": FIRST.key, "metrics": {}, "seconds": 1.0, "weights": facts})
    job.store.finish(attempt, "done")
    assert process.wait(timeout=60) == 0
    assert not (folder / "worker.json").exists()


@pytest.mark.parametrize("state", ["interrupted", "failed"])
def test_what_another_process_leaves_is_gone_on_with_unless_it_failed(state: str, job: Job) -> None:
    job.add(FIRST, "publish")
    token = job.listed(FIRST)
    attempt = job.store.claim(FIRST)
    assert attempt is not None
    process = job.start(token=token, limits={"IDLE_SECONDS": NEVER})
    until(lambda: "job 7_2 on n1" in process.stdout.readline())
    time.sleep(1)  # it looks
    job.store.finish(attempt, state, "because")
    assert process.wait(timeout=60) == 0
    assert job.ends(FIRST) == [state, *(["done"] if state == "interrupted" else [])]


def test_two_jobs_at_once_run_every_stage_exactly_once(job: Job) -> None:
    stages = [pretraining(seed=seed) for seed in range(8)]
    for stage in stages:
        job.add(stage, "publish")
    token = job.listed(*stages)
    slots = {"runs_per_job": 2, "limits": {"IDLE_SECONDS": NEVER}}
    both = [job.start(token=token, slurm={**ELEMENT, "SLURM_ARRAY_TASK_ID": str(task)}, **slots) for task in range(2)]
    for process in both:
        assert process.wait(timeout=120) == 0
    assert [job.ends(stage) for stage in stages] == [["done"]] * 8
    assert Leases(job.store.root).look() == {}


def test_outside_a_job_nothing_is_supervised(job: Job) -> None:
    job.add(FIRST, "publish")
    status, output = job.run(FIRST, slurm={"NOT_SLURM": "1"})
    assert status == 1
    assert "SLURM_JOB_ID is not set" in output


# ------------------------------------------------------------------------------------------------- the code's copy


def copy_of_the_suite(folder: Path) -> Path:
    for name in ("bench", "baselines", "gin"):
        shutil.copytree(REPOSITORY / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    return folder


MAKE = "from pathlib import Path; from bench.launch.slurm.snapshot import snapshot; print(snapshot(Path({store!r})))"
COMMIT = "from bench.store import provenance; import bench; print(bench.__file__, provenance.commit())"


def python(code: str, path: Path, folder: Path) -> str:
    environment = {**os.environ, "PYTHONPATH": str(path), "PYTHONSAFEPATH": "1", "GIT_CEILING_DIRECTORIES": "/"}
    environment["PYTHONDONTWRITEBYTECODE"] = "1"  # compiled files would count as changes of a suite without .gitignore
    run = subprocess.run(
        [sys.executable, "-c", code], env=environment, cwd=folder, capture_output=True, text=True, check=True
    )
    return run.stdout.strip()


def test_equal_code_is_copied_once_and_changed_code_again(tmp_path: Path) -> None:
    suite, store = copy_of_the_suite(tmp_path / "suite"), tmp_path / "runs"
    make = MAKE.format(store=str(store))
    first = Path(python(make, suite, tmp_path))
    assert first.parent == store / ".code"
    assert (first / "bench" / "training" / "worker.py").read_text() == (
        suite / "bench" / "training" / "worker.py"
    ).read_text()
    assert (first / "gin" / "quickstart.gin").is_file()
    assert Path(python(make, suite, tmp_path)) == first
    (suite / "baselines" / "mars.py").write_text((suite / "baselines" / "mars.py").read_text() + "\n# changed\n")
    second = Path(python(make, suite, tmp_path))
    assert second != first
    assert "# changed" not in (first / "baselines" / "mars.py").read_text()
    assert sorted(path.name for path in (store / ".code").iterdir()) == sorted([first.name, second.name])
    # Run from a copy, the suite imports the copy's packages and can copy itself.
    assert python(COMMIT, second, suite).split()[0] == str(second / "bench" / "__init__.py")
    assert Path(python(make, second, suite)) == second


def test_a_copy_knows_the_commit_and_what_was_changed_since(tmp_path: Path) -> None:
    suite = copy_of_the_suite(tmp_path / "suite")
    git = ["git", "-c", "user.name=n", "-c", "user.email=e", "-C", str(suite)]
    for arguments in (["init", "--quiet"], ["add", "."], ["commit", "--quiet", "--message", "first"]):
        subprocess.run([*git, *arguments], check=True)
    head = subprocess.run([*git, "rev-parse", "HEAD"], check=True, capture_output=True, text=True).stdout.strip()
    make = MAKE.format(store=str(suite / "runs"))
    clean = Path(python(make, suite, tmp_path))
    assert python(COMMIT, clean, tmp_path).split()[1] == head
    dirty = set()
    for text in ("# one\n", "# two\n"):
        (suite / "bench" / "theory.py").write_text(text)
        dirty.add(python(COMMIT, Path(python(make, suite, tmp_path)), tmp_path).split()[1])
    assert len(dirty) == 2
    assert all(version.startswith(f"{head}-dirty-") for version in dirty)


def test_a_copy_that_was_changed_is_refused(tmp_path: Path) -> None:
    made = snapshot(tmp_path)
    (made / "bench" / "__pycache__").mkdir(exist_ok=True)
    (made / "bench" / "__pycache__" / "store.pyc").touch()
    assert snapshot(tmp_path) == made
    (made / "bench" / "store.py").write_text("")
    with pytest.raises(DamagedStore, match=str(made)):
        snapshot(tmp_path)
    assert commit() == commit.__wrapped__()
