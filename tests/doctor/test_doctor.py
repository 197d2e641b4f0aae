"""The doctor: every fact gets the verdict it deserves, and says what helps; programs stand in for Slurm's."""

from __future__ import annotations

import os
import stat
import sys
import time
from collections.abc import Iterable
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

import bench
from bench import device
from bench.doctor import __main__, cluster, computer, sample_job, trial
from bench.doctor.computer import Fact
from bench.errors import InputError
from bench.specs.cluster import Cluster

CONFIG = {
    "AccountingStorageType": "accounting_storage/slurmdbd",
    "AuthInfo": "socket=/run/munge.socket,cred_expire=10",
    "JobRequeue": "1",
    "KillWait": "30 sec",
    "MaxArraySize": "1001",
    "MinJobAge": "300 sec",
    "PreemptMode": "REQUEUE",
    "PreemptType": "preempt/partition_prio",
    "SLURM_VERSION": "22.05.8",
    "SlurmctldParameters": "preempt_send_user_signal",
}
PARTITIONS = """\
PartitionName=main Default=YES GraceTime=0 MaxTime=UNLIMITED DefaultTime=NONE PreemptMode=OFF State=UP
PartitionName=low Default=NO GraceTime=20 MaxTime=1-00:00:00 DefaultTime=01:00:00 PreemptMode=REQUEUE State=UP
PartitionName=hasty Default=NO GraceTime=0 MaxTime=60 DefaultTime=NONE PreemptMode=CANCEL State=UP
PartitionName=shut Default=NO GraceTime=0 MaxTime=60 DefaultTime=NONE PreemptMode=OFF State=DOWN
"""
SBATCH = """\
for script in "$@"; do :; done
cat "$script" > {folder}/script
export SLURM_ARRAY_JOB_ID=7 SLURM_ARRAY_TASK_ID=0 SLURMD_NODENAME=n1
bash "$script" >&2
case "$(cat {folder}/scontrol.calls)" in *"requeue 7_0"*) SLURM_RESTART_COUNT=1 bash "$script" >&2;; esac
echo 7"""
SCONTROL = 'case "$*" in *config*) cat {config};; *) cat {partitions};; esac'


def bad(facts: Iterable[Fact]) -> list[tuple[str, str]]:
    """What is not ok; all of that comes with a fix."""
    faults = [fact for fact in facts if fact.verdict != "ok"]
    assert all(fact.verdict in ("warning", "problem") and fact.fix for fact in faults)
    return [(fact.verdict, fact.text) for fact in faults]


class Programs:
    """Programs on a PATH that holds nothing else but a shell's."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir()
        for name in ("cat", "sh", "bash", "touch", "sleep", "env", "ln", "mkdir", "mv"):
            program = next(
                Path(directory) / name for directory in ("/bin", "/usr/bin") if (Path(directory) / name).exists()
            )
            (folder / name).symlink_to(program)

    def make(self, name: str, script: str) -> None:
        path = self.folder / name
        path.write_text(f'#!/bin/sh\necho "$@" >> {self.folder}/{name}.calls\n{script}\n')
        path.chmod(stat.S_IRWXU)

    def calls(self, name: str) -> list[str]:
        path = self.folder / f"{name}.calls"
        return path.read_text().splitlines() if path.exists() else []

    def slurm(self, **changes: str) -> None:
        """A cluster with these settings; its sbatch runs the job at once, and again if that asked for it."""
        config, partitions = self.folder / "config", self.folder / "partitions"
        lines = [f"{name:23} = {value}" for name, value in (CONFIG | changes).items()]
        config.write_text("\n".join(["Configuration data as of now", *lines]) + "\n")
        partitions.write_text(PARTITIONS)
        self.make("scontrol", SCONTROL.format(config=config, partitions=partitions))
        self.make("sacct", "true")
        for name in ("scancel", "squeue", "srun"):
            self.make(name, "true")
        self.make("sinfo", "for p in main* low; do echo $p'|(null)|8|16000|n1|idle'; done")
        self.make("sbatch", SBATCH.format(folder=self.folder))


@pytest.fixture
def programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Programs:
    made = Programs(tmp_path / "programs")
    monkeypatch.setenv("PATH", str(made.folder))
    return made


@pytest.fixture
def fast_job(monkeypatch: pytest.MonkeyPatch) -> None:
    """A test job that has two cores, one GPU and no torch, and little patience."""
    light = (
        "import types, bench; torch = types.SimpleNamespace(__version__='2')\n"
        "sys.modules['bench.device'] = bench.device = types.SimpleNamespace(gpu_count=lambda: 1)\n"
        "from bench.doctor import computer; computer.devices = lambda: [computer.Fact('ok', 'CPU: fine')]"
    )
    monkeypatch.setattr(
        sample_job, "_ON_NODE", sample_job._ON_NODE.replace("import torch", light).replace("cores()", "2")
    )
    monkeypatch.setattr(sample_job, "LATE_SECONDS", 1.5)
    monkeypatch.setattr("bench.doctor.sample_job.time.sleep", lambda _: None)


# ----------------------------------------------------------------------------------------------------- this computer


def test_the_packages_of_this_environment_are_well(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "bench.doctor.computer.importlib.import_module", lambda _: None
    )  # other tests import them, slowly
    assert bad(computer.packages()) == []


def test_what_is_missing_or_old_is_a_problem(monkeypatch: pytest.MonkeyPatch) -> None:
    required = [Requirement(line) for line in ("no-such-package>=1.0", "numpy >= 999.0", "timm>=0.1")]
    monkeypatch.setattr(computer, "_required", lambda: (SpecifierSet(">=99.1"), required))
    texts = [text for verdict, text in bad(computer.packages()) if verdict == "problem"]
    assert len(texts) == 3
    assert "Python" in texts[0] and texts[1] == "no-such-package is missing (>=1.0)"
    assert texts[2] == f"numpy {metadata.version('numpy')} (>=999.0)"


@pytest.mark.parametrize(
    ("version", "required", "enough"),
    [
        ("2.15.0+cu132", ">= 2.11", True),
        ("2.16.0.dev20261101", ">= 2.11", True),
        ("1.9", ">= 1.10", False),
        ("2", ">= 2.0", True),
        ("2.0.0", ">= 2", True),
        ("1.7.0", ">= 1.5.4, < 1.6", False),
        ("", ">= 1", False),
    ],
)
def test_versions_are_compared_as_numbers(
    version: str, required: str, enough: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(computer, "_required", lambda: (SpecifierSet(), [Requirement(f"timm {required}")]))
    monkeypatch.setattr(metadata, "version", lambda _: version)
    monkeypatch.setattr("bench.doctor.computer.importlib.import_module", lambda _: None)
    assert (bad(computer.packages()) == []) == enough


def test_bounds_of_a_wheel_are_those_of_the_checkout(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    python, required = computer._required()
    assert {"torch", "timm", "submitit", "gin-config"} <= {requirement.name for requirement in required}

    class Wheel(dict[str, str]):
        def get_all(self, name: str, _: object) -> list[str]:
            assert name == "Requires-Dist"
            return [*map(str, required), "pytest>=8.4; extra == 'test'"]

    monkeypatch.setattr(bench, "__file__", str(tmp_path / "bench" / "__init__.py"))
    monkeypatch.setattr(metadata, "metadata", lambda _: Wheel({"Requires-Python": str(python)}))
    assert computer._required() == (python, required)


def test_a_package_that_is_there_but_broken_is_a_problem(monkeypatch: pytest.MonkeyPatch) -> None:
    def load(name: str) -> None:
        if name == "torchvision":
            raise RuntimeError("operator torchvision::nms does not exist\nmore")

    monkeypatch.setattr("bench.doctor.computer.importlib.import_module", load)
    expected = "torchvision cannot be imported: RuntimeError: operator torchvision::nms does not exist"
    assert bad(computer.packages()) == [("problem", expected)]


class Machine:
    """The GPUs that torch sees, and what training on a device comes to."""

    def __init__(self, cuda: str | None = "12.8", gpus: int = 0, bf16: bool = True, **errors: Exception) -> None:
        self.cuda, self.gpus, self.bf16, self.errors = cuda, gpus, bf16, errors
        self.trained: list[str] = []

    def properties(self, device: torch.device) -> tuple[str, int, bool]:
        return "Card", 80 * 2**30, self.bf16

    def train(self, device: torch.device) -> None:
        self.trained.append(str(device))
        error = self.errors.get("cpu" if device.type == "cpu" else "gpu")
        if error is not None:
            raise error


@pytest.mark.parametrize(
    ("machine", "driver", "expected"),
    [
        (Machine(cuda=None), False, []),
        (Machine(cuda=None), True, [("warning", "torch is built for CPUs")]),
        (Machine(), False, []),
        (Machine(), True, [("problem", "cannot use the GPU")]),
        (Machine(gpus=2), True, []),
        (Machine(gpus=1, bf16=False), True, [("warning", "no bf16")]),
        (
            Machine(gpus=1, gpu=RuntimeError("no kernel image\nis available")),
            True,
            [("problem", "GPU 0: Card, 80 GiB; torch is built for CUDA 12.8: cannot train: RuntimeError: no kernel")],
        ),
        (Machine(gpus=1, cpu=ImportError("lib.so")), True, [("problem", "CPU: cannot train: ImportError: lib.so")]),
    ],
)
def test_every_device_is_tried_not_only_counted(
    machine: Machine, driver: bool, expected: list[tuple[str, str]], programs: Programs, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.version, "cuda", machine.cuda)
    monkeypatch.setattr(torch.version, "hip", None)
    monkeypatch.setattr(device, "gpu_count", lambda: machine.gpus)
    monkeypatch.setattr(device, "properties", machine.properties)
    monkeypatch.setattr(trial, "train_briefly", machine.train)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr("bench.doctor.computer.DRIVER", programs.folder / "driver")
    if driver:
        (programs.folder / "driver").touch()
    faults = bad(computer.devices())
    assert [verdict for verdict, _ in faults] == [verdict for verdict, _ in expected]
    assert all(part in text for (_, part), (_, text) in zip(expected, faults, strict=True))
    assert machine.trained == ["cpu", *(f"cuda:{number}" for number in range(machine.gpus))]


def test_a_gpu_whose_memory_is_taken_is_told_from_one_that_does_not_work(monkeypatch: pytest.MonkeyPatch) -> None:
    machine = Machine(cpu=torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 MiB"))
    monkeypatch.setattr(trial, "train_briefly", machine.train)
    fact = computer._trained(device.CPU, "GPU 0", "install another torch")
    assert fact.verdict == "problem" and "Tried to allocate" in fact.text and "nvidia-smi" in fact.fix


def test_a_trial_trains(monkeypatch: pytest.MonkeyPatch) -> None:
    losses = trial.train_briefly(device.CPU)
    assert len(losses) == trial.STEPS and all(0.3 < loss < 1.5 for loss in losses)
    assert len(set(losses)) == len(losses)

    def broken(*_: object, **__: object) -> None:
        raise RuntimeError("this build of torch cannot add")

    monkeypatch.setattr(torch.optim.AdamW, "step", broken)
    ((verdict, text),) = bad([computer._trained(device.CPU, "CPU", "install another")])
    assert verdict == "problem" and text == "CPU: cannot train: RuntimeError: this build of torch cannot add"


# -------------------------------------------------------------------------------------------------------------- disks


@pytest.mark.parametrize(("free", "verdicts"), [(500e9, []), (5e9, ["warning"]), (1e8, ["problem"])])
def test_free_space_is_judged(
    free: float, verdicts: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bench.doctor.computer.shutil.disk_usage", lambda _: SimpleNamespace(free=free))
    assert [verdict for verdict, _ in bad(computer.disk("--store", tmp_path / "not" / "there"))] == verdicts


def test_a_good_file_system_passes_and_is_left_as_it_was(tmp_path: Path) -> None:
    assert bad(computer.file_system(tmp_path / "runs")) == []
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("call", ["link", "fsync", "replace"])
def test_a_file_system_that_lacks_something_is_a_problem(
    call: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, call, refuse)
    ((verdict, text),) = bad(computer.file_system(tmp_path))
    assert verdict == "problem" and "Operation not permitted" in text


def test_creation_that_is_not_exclusive_is_a_problem(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def overwrite(path: Path, data: Any) -> bool:
        path.write_text('{"number": 0}')
        return True

    monkeypatch.setattr(computer, "create_json", overwrite)
    assert "of 8 that create a file, 8 succeed" in str(bad(computer.file_system(tmp_path)))


def test_a_clock_that_is_wrong_is_a_warning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = time.time()
    monkeypatch.setattr("bench.doctor.computer.time.time", lambda: now - 60)
    ((verdict, text),) = bad(computer.file_system(tmp_path))
    assert verdict == "warning" and ("by 60." in text or "by 59." in text)


# -------------------------------------------------------------------------------------------------------------- Slurm


def test_a_good_cluster_passes(programs: Programs) -> None:
    programs.slurm()
    assert bad(cluster.settings(None)) == []
    assert bad(cluster.settings("low")) == []


@pytest.mark.parametrize(
    ("changes", "partition", "verdict", "part"),
    [
        ({"MaxArraySize": "5"}, None, "warning", "MaxArraySize 5"),
        ({"KillWait": "2 sec"}, None, "warning", "KillWait 2 s"),
        ({"AccountingStorageType": "accounting_storage/none"}, None, "warning", "forgets jobs 300 s after"),
        ({"AccountingStorageType": "(null)"}, None, "warning", "no accounting"),
        ({"SlurmctldParameters": "(null)"}, "low", "warning", "lacks preempt_send_user_signal"),
        ({}, "hasty", "warning", "cancelled, not requeued, unless they checkpoint within 0 s"),
        ({}, "shut", "problem", "partition shut: DOWN"),
    ],
)
def test_settings_that_cost_something_are_told(
    changes: dict[str, str], partition: str | None, verdict: str, part: str, programs: Programs
) -> None:
    programs.slurm(**changes)
    faults = bad(cluster.settings(partition))
    assert (verdict, True) in [(actual, part in text) for actual, text in faults]


def test_without_preemption_its_signal_does_not_matter(programs: Programs) -> None:
    programs.slurm(PreemptType="preempt/none", SlurmctldParameters="(null)")
    assert bad(cluster.settings("low")) == []


def test_accounting_that_does_not_answer_is_told_in_its_own_words(programs: Programs) -> None:
    programs.slurm()
    programs.make("sacct", "echo 'Problem talking to the database' >&2; exit 1")
    assert "Problem talking to the database" in str(bad(cluster.settings(None)))


def test_an_unknown_partition_is_refused_with_the_nearest_name(programs: Programs) -> None:
    programs.slurm()
    with pytest.raises(InputError, match=r"there is no partition 'lwo'.*Did you mean 'low'"):
        list(cluster.settings("lwo"))


# -------------------------------------------------------------------------------------------------------- the test job


def test_a_job_that_writes_into_the_store_is_read_back(programs: Programs, fast_job: None, tmp_path: Path) -> None:
    programs.slurm()
    store, data = tmp_path / "a store" / "runs", tmp_path / "data"
    store.mkdir(parents=True)
    data.mkdir()
    assert bad(sample_job.test_job(store, data, Cluster(partition="low", cpus=2))) == []
    script = (programs.folder / "script").read_text()
    assert "--partition=low" in script and "--cpus-per-task=2" in script
    assert list(store.iterdir()) == []


def test_data_that_the_node_does_not_see_are_a_problem(programs: Programs, fast_job: None, tmp_path: Path) -> None:
    programs.slurm()
    data = tmp_path / "data"
    data.mkdir()
    runs_job = "\n".join((programs.folder / "sbatch").read_text().splitlines()[2:-1])
    away = f'"{sys.executable}" -c "import os, sys; os.rename(*sys.argv[1:])"'
    programs.make("sbatch", f"{away} {data} {data}.away\n{runs_job}\n{away} {data}.away {data}\necho 7")
    assert bad(sample_job.test_job(tmp_path, data, Cluster())) == [
        ("problem", f"--data {data}: not seen from a compute node")
    ]


@pytest.mark.parametrize(
    ("cluster", "expected"),
    [
        (Cluster(cpus=2, gpus=1), []),
        (Cluster(cpus=3), [("warning", "a job that asks for 3 CPU(s) may use 2")]),
        (Cluster(gpus=2), [("problem", "a job that asks for 2 GPU(s): torch sees 1")]),
    ],
)
def test_what_a_job_is_given_is_compared_with_what_it_asked_for(
    cluster: Cluster, expected: list[tuple[str, str]], programs: Programs, fast_job: None, tmp_path: Path
) -> None:
    programs.slurm()
    assert bad(sample_job.test_job(tmp_path, tmp_path, cluster)) == expected


def test_a_device_of_the_job_that_cannot_train_is_a_problem(
    programs: Programs, fast_job: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    programs.slurm()
    broken = "Fact('problem', 'GPU 0: cannot train: RuntimeError: no kernel image', 'install another torch')"
    monkeypatch.setattr(sample_job, "_ON_NODE", sample_job._ON_NODE.replace("Fact('ok', 'CPU: fine')", broken))
    assert bad(sample_job.test_job(tmp_path, tmp_path, Cluster(gpus=1))) == [
        ("problem", "in that job: GPU 0: cannot train: RuntimeError: no kernel image")
    ]


def test_settings_that_the_cluster_refuses_are_a_problem(programs: Programs, tmp_path: Path) -> None:
    programs.slurm()
    ((verdict, text),) = bad(cluster.accepted(Cluster(gpus=3), {}))
    assert verdict == "problem" and "slurm.gpus = 3" in text
    assert bad(cluster.accepted(Cluster(), {})) == []


def test_a_store_that_the_node_does_not_see_is_a_problem(programs: Programs, fast_job: None, tmp_path: Path) -> None:
    programs.slurm()
    programs.make("sbatch", "echo 7")
    began = time.monotonic()
    ((verdict, text),) = bad(sample_job.test_job(tmp_path, tmp_path, Cluster()))
    assert verdict == "problem" and "is not seen here" in text
    assert time.monotonic() - began < sample_job.JOB_SECONDS / 3  # a job that is over is not waited for
    assert programs.calls("scancel") == ["7"]


def test_a_job_that_starts_again_after_its_requeue_is_well(programs: Programs, fast_job: None, tmp_path: Path) -> None:
    programs.slurm()
    texts = [fact.text for fact in sample_job.test_job(tmp_path, tmp_path, Cluster())]
    assert programs.calls("scontrol") == ["requeue 7_0"]
    assert "started a second time" in texts[-1]


def test_a_requeue_that_slurm_refuses_is_a_problem_in_its_words(
    programs: Programs, fast_job: None, tmp_path: Path
) -> None:
    programs.slurm()
    programs.make("scontrol", "echo 'Requested operation is presently disabled' >&2; exit 1")
    programs.make("sbatch", "\n".join((programs.folder / "sbatch").read_text().splitlines()[2:-2]) + "\necho 7")
    ((verdict, text),) = bad(sample_job.test_job(tmp_path, tmp_path, Cluster()))
    assert verdict == "problem" and "cannot requeue itself" in text and "presently disabled" in text


@pytest.mark.parametrize(
    ("line", "verdict", "part"),
    [
        ("COMPLETED|{now}|{now}|None", "problem", "ended instead of starting again: COMPLETED"),
        ("PENDING|{now}|N/A|JobHeldUser", "problem", "does not start again: PENDING JobHeldUser"),
        ("PENDING|{now}|N/A|BeginTime", "warning", "did not start again within"),
    ],
)
def test_a_requeued_job_that_does_not_start_again_is_told(
    line: str,
    verdict: str,
    part: str,
    programs: Programs,
    fast_job: None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    programs.slurm()
    programs.make("sbatch", "\n".join((programs.folder / "sbatch").read_text().splitlines()[2:-2]) + "\necho 7")
    monkeypatch.setattr(sample_job, "JOB_SECONDS", 3.0)
    monkeypatch.setattr(sample_job.ledger, "new_token", lambda: "0123abcd")
    now = int(time.time())
    programs.make("squeue", f"echo '7_0|bench-doctor-0123abcd|{line.format(now=now)}'")
    assert [(verdict, True)] == [
        (actual, part in text) for actual, text in bad(sample_job.test_job(tmp_path, tmp_path, Cluster()))
    ]


def test_a_setup_that_fails_is_a_problem_with_its_line(programs: Programs, fast_job: None, tmp_path: Path) -> None:
    programs.slurm()
    cluster = Cluster(setup=("true", "module load cuda"))
    ((verdict, text),) = bad(sample_job.test_job(tmp_path, tmp_path, cluster))
    assert verdict == "problem" and "on node n1: " in text and "exit status 127: module load cuda" in text


def test_a_test_job_that_never_starts_is_a_problem_with_its_fix(
    programs: Programs, fast_job: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    programs.slurm()
    monkeypatch.setattr(sample_job, "LATE_SECONDS", 0.5)
    monkeypatch.setattr(sample_job.ledger, "new_token", lambda: "0123abcd")
    now = int(time.time())
    programs.make("sbatch", "echo 7")
    programs.make("squeue", f"echo '7_0|bench-doctor-0123abcd|PENDING|{now}|N/A|QOSMaxWallDurationPerJobLimit'")
    began = time.monotonic()
    (fact,) = sample_job.test_job(tmp_path, tmp_path, Cluster())
    assert fact.verdict == "problem" and "QOSMaxWall" in fact.text and "slurm.timeout_min" in fact.fix
    assert time.monotonic() - began < sample_job.JOB_SECONDS / 3


def test_a_python_that_the_node_does_not_have_is_a_problem(
    programs: Programs, fast_job: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    programs.slurm()
    monkeypatch.setattr(sys, "executable", "/nowhere/python")
    ((verdict, text),) = bad(sample_job.test_job(tmp_path, tmp_path, Cluster()))
    assert verdict == "problem" and "this Python does not work there" in text and "/nowhere/python" in text


def test_a_job_that_does_not_start_is_cancelled_and_nothing_is_claimed(
    programs: Programs, fast_job: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    programs.slurm()
    monkeypatch.setattr(sample_job, "JOB_SECONDS", 1.0)
    monkeypatch.setattr(sample_job.ledger, "new_token", lambda: "0123abcd")
    programs.make("sbatch", "echo 7")
    programs.make("squeue", "echo '7_0|bench-doctor-0123abcd|PENDING|N/A|N/A|Priority'")
    ((verdict, text),) = bad(sample_job.test_job(tmp_path, tmp_path, Cluster()))
    assert verdict == "warning" and "did not start" in text and "Priority" in text
    assert programs.calls("scancel") == ["7"]


def test_sbatchs_own_words_are_shown(programs: Programs, tmp_path: Path) -> None:
    programs.slurm()
    programs.make("sbatch", "echo 'sbatch: error: Invalid account' >&2; exit 1")
    with pytest.raises(InputError, match="Invalid account"):
        list(sample_job.test_job(tmp_path, tmp_path, Cluster()))


# --------------------------------------------------------------------------------------------------------- the command


@pytest.fixture
def healthy(monkeypatch: pytest.MonkeyPatch) -> None:
    """Slow facts left out."""
    monkeypatch.setattr(computer, "packages", lambda: iter([Fact("ok", "packages")]))
    monkeypatch.setattr(computer, "devices", lambda: iter([Fact("warning", "devices", "mend them")]))


def test_without_slurm_the_computer_alone_is_judged(
    healthy: None, programs: Programs, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert __main__.main(["--store", str(tmp_path / "runs"), "--data", str(tmp_path)]) == 0
    shown = capsys.readouterr().out
    assert "no sbatch on the PATH" in shown and shown.endswith("0 problems\n")
    assert "  warning devices\n          fix: mend them\n" in shown
    assert sys.prefix not in shown


def test_quick_runs_no_job(healthy: None, programs: Programs, tmp_path: Path) -> None:
    programs.slurm()
    assert __main__.main(["--store", str(tmp_path), "--data", str(tmp_path), "--quick"]) == 0
    assert [call for call in programs.calls("sbatch") if "--test-only" not in call] == []


def test_a_problem_is_counted_and_ends_with_status_1(
    healthy: None, programs: Programs, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    programs.slurm()
    programs.make("scontrol", "echo 'slurm_load_ctl_conf error: Unable to contact slurm controller' >&2; exit 1")
    assert __main__.main(["--store", str(tmp_path), "--data", str(tmp_path)]) == 1
    shown = capsys.readouterr().out
    assert "Unable to contact slurm controller" in shown and shown.endswith("1 problem\n")
    assert programs.calls("sbatch") == []  # nothing to be learned from a job then
