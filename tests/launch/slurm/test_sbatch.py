"""What a job's shell does before Python: the script that is submitted, run by bash beside a stand-in for scontrol."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from bench.launch.slurm import sbatch, troubles
from bench.specs.cluster import Cluster
from tests.launch.slurm.conftest import Fake

REPOSITORY = Path(__file__).parents[3]


class Job:
    """A job's script and what became of it."""

    def __init__(self, folder: Path, *setup: str, python: str = "true", worklist: str = "", extra: str = "") -> None:
        self.store = folder / "a store"
        self.troubles = folder / "a store" / ".slurm" / "troubles"
        log = folder / "a store" / ".slurm" / "log" / "token"
        cluster, code = Cluster(setup=setup, extra=tuple(filter(None, [extra]))), REPOSITORY if worklist else None
        array = sbatch.executor(log, cluster, "bench-x-1", (4,), None, code, worklist=worklist)
        assert self.troubles.is_dir()
        command = array._submitit_command_str
        # As submitit writes it, but for Python itself.
        assert command.startswith(f"bench_exec {sys.executable} ")
        self.script = folder / "script.sh"
        self.script.write_text(array._make_submission_file_text(f"bench_exec {python}", "x"))

    def start(self, restarts: int | None = None, node: str = "n1") -> subprocess.Popen[str]:
        environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith("SLURM_")},
            "SLURM_ARRAY_JOB_ID": "7",
            "SLURM_ARRAY_TASK_ID": "4",
            "SLURMD_NODENAME": node,
            **({} if restarts is None else {"SLURM_RESTART_COUNT": str(restarts)}),
        }
        command = ["bash", str(self.script)]
        return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)

    def run(self, restarts: int | None = None, node: str = "n1") -> tuple[int, str]:
        process = self.start(restarts, node)
        output, _ = process.communicate(timeout=30)
        return process.returncode, output

    def trouble(self, restarts: int = 0) -> list[str]:
        *lines, worklist = (self.troubles / f"setup-7_4-{restarts}.txt").read_text().split("\n")[:-1]
        assert worklist == ""
        return lines


@pytest.fixture
def requeued(fake: Fake) -> Path:
    """What scontrol was asked for."""
    return fake("scontrol")


FUNCTION = ("sloppy() {", "  false", "  return $1", "}")


@pytest.mark.parametrize(
    ("setup", "line", "status"),
    [
        (("true", "module load cuda", "true"), "module load cuda", 127),
        (("if true; then", "  ls /nowhere/at/all", "fi", "true"), "  ls /nowhere/at/all", 2),
        (("for item in a b; do", "  (exit 5)", "done"), "  (exit 5)", 5),
        (("value=$(exit 6)",), "value=$(exit 6)", 6),
        (("true | (exit 7)", "true"), "true | (exit 7)", 7),
        ((*FUNCTION, "sloppy 0", "sloppy 8", "true"), "sloppy 8", 8),
        (("source ./sloppy.sh 0", "source ./sloppy.sh 9"), "source ./sloppy.sh 9", 9),
        (("true\nfalse\ntrue",), "false", 1),
        (("set -e", "false"), "false", 1),
        (("set -eu", 'test "$NOT_SET_AT_ALL"'), None, 1),
        (("[ -e /nowhere ] || { echo none; exit 3; }",), "exit 3", 3),
        (("source ./leaves.sh",), "source ./leaves.sh", 4),
        (("if true; then",), None, 2),
        (("PATH=/nowhere", "ls"), "ls", 127),
    ],
)
def test_a_line_of_the_setup_that_fails_ends_the_job(
    setup: tuple[str, ...],
    line: str | None,
    status: int,
    requeued: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "sloppy.sh").write_text("false\nreturn $1\n")
    (tmp_path / "leaves.sh").write_text("exit 4\n")
    job = Job(tmp_path, *setup, python="echo Python began")
    before = int(time.time())
    ended, output = job.run()
    moment, node, noted_status, noted_line = job.trouble()
    assert before <= int(moment) <= time.time()
    assert (ended, node, noted_status) == (status, "n1", str(status))
    assert line is None or noted_line == line
    assert f"slurm.setup failed on node n1 with exit status {status}: {noted_line}" in output
    assert "Python began" not in output
    assert requeued.read_text() == "requeue 7_4\n"
    assert len(list(job.troubles.iterdir())) == 1


@pytest.mark.parametrize(
    "setup",
    [
        (),
        ("[ -e /nowhere ] && echo there", "false || true", "if false; then true; fi", "! true"),
        ("source ./sloppy.sh 0", *FUNCTION, "sloppy 0"),
        ("set -e", "export NAME=value"),
    ],
)
def test_a_setup_that_succeeds_changes_nothing_for_python(
    setup: tuple[str, ...], requeued: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "sloppy.sh").write_text("false\nreturn $1\n")
    state = tmp_path / "state.sh"
    state.write_text("trap -p\ncase $- in *e*) echo errexit;; esac\nshopt execfail\nexit 75\n")
    job = Job(tmp_path, *setup, python=f"bash {state}")
    ended, output = job.run()
    # What the tests' own process ignores, a job ignores, too: SIGTTIN and SIGTTOU under some terminals.
    inherited = subprocess.run(
        ["bash", "-c", "trap -p"], check=True, capture_output=True, text=True
    ).stdout.splitlines()
    assert ended == 75
    lines = [line for line in output.splitlines() if line not in inherited]
    assert lines == ["trap -- '' SIGUSR2", "execfail       \toff"]
    assert not requeued.exists()
    assert list(job.troubles.iterdir()) == []


@pytest.mark.parametrize("exists", [False, True], ids=["missing", "not executable"])
def test_a_python_that_cannot_be_started_is_a_trouble_of_the_node(exists: bool, requeued: Path, tmp_path: Path) -> None:
    python = tmp_path / "python"
    if exists:
        python.touch()
    job = Job(tmp_path, python=f"{python} -u")
    status, _ = job.run()
    assert status in (126, 127)
    assert job.trouble()[1:] == ["n1", str(status), f"exec {python} -u"]
    assert requeued.read_text() == "requeue 7_4\n"


def test_it_is_tried_again_twice_and_each_time_is_noted(requeued: Path, tmp_path: Path) -> None:
    job = Job(tmp_path, "false")
    for restarts in (None, 1, 2, 3):
        assert job.run(restarts)[0] == 1
    assert requeued.read_text() == "requeue 7_4\n" * 2
    names = sorted(path.name for path in job.troubles.iterdir())
    assert names == [f"setup-7_4-{restarts}.txt" for restarts in range(4)]


def test_a_setup_that_fails_on_every_node_stops_the_grid(cluster: Fake, tmp_path: Path) -> None:
    """Until then jobs are requeued, away from a node where it failed three times."""
    job, asked = Job(tmp_path, "module load cuda", worklist="68f1c2d0", extra="exclude=n7"), cluster("scontrol")
    nodes = ("n1", "n1", "n1", "n2", "n2", "n2")
    calls = []
    for number, node in enumerate(nodes):
        asked.unlink(missing_ok=True)
        status, output = job.run(number and 1, node)
        assert status == 127
        (job.troubles / f"setup-7_4-{number and 1}.txt").rename(job.troubles / f"setup-8_{number}-0.txt")
        calls.append(asked.read_text().splitlines() if asked.exists() else [])
    requeue = "requeue 7_4"
    away = "update JobId=7_4 ExcNodeList=n7,n1"
    assert calls == [[requeue], [requeue], [requeue, away], [requeue], [requeue], []]
    assert "the grid was stopped: no stage could be begun, tried 6 times on n1, n2" in output
    assert "exit status 127: module load cuda" in (troubles.stopped(job.store, "68f1c2d0") or "")
    # What was to start meanwhile is not requeued any more, either.
    asked.unlink(missing_ok=True)
    assert job.run()[0] == 127 and not asked.exists()


def test_where_the_setup_leaves_no_python_the_shell_itself_asks_for_the_requeue(requeued: Path, tmp_path: Path) -> None:
    job = Job(tmp_path, "export PYTHONHOME=/nowhere", "false", worklist="68f1c2d0")
    for restarts in (0, 1, 2):
        assert job.run(restarts)[0] == 1
    assert requeued.read_text() == "requeue 7_4\n" * 2


def test_a_python_that_starts_and_ends_at_once_is_a_trouble_of_the_node(fake: Fake, tmp_path: Path) -> None:
    """The job keeps away from that node, besides those of the settings, while there are others."""
    asked = fake("scontrol")
    program = asked.with_name("scontrol")
    program.write_text(program.read_text().replace("exit 0", 'case "$1" in show) echo "$3" | tr , "\\n";; esac'))
    fake("sinfo", "n1\nn2\nn7\n")
    job = Job(
        tmp_path, "export PYTHONHOME=/nowhere", python="echo Python began", worklist="68f1c2d0", extra="exclude=n7"
    )
    calls = []
    for restarts, node in enumerate(("n1", "n2")):
        asked.unlink(missing_ok=True)
        status, output = job.run(restarts, node)
        assert status == 1 and "Python began" not in output and sbatch.TRIED in output
        calls.append([call for call in asked.read_text().splitlines() if not call.startswith("show")])
    # None is left after the second.
    assert calls == [["requeue 7_4", "update JobId=7_4 ExcNodeList=n7,n1"], ["requeue 7_4"]]
    assert {trouble.node for trouble in troubles.read(job.store)} == {"n1", "n2"}


def test_scontrol_is_that_of_the_submission_or_that_of_the_node(requeued: Path, tmp_path: Path) -> None:
    job = Job(tmp_path, "PATH=/nowhere", "ls")
    job.run()
    assert requeued.read_text() == "requeue 7_4\n"
    program = requeued.with_name("scontrol")
    program.rename(tmp_path / "scontrol")  # elsewhere on the node
    job.script.write_text(job.script.read_text().replace("PATH=/nowhere", f"PATH={tmp_path}"))
    job.run(1)
    assert requeued.read_text() == "requeue 7_4\n" * 2


def test_an_exit_with_status_0_is_no_success(requeued: Path, tmp_path: Path) -> None:
    job = Job(tmp_path, "exit 0")
    assert job.run()[0] == 1
    assert job.trouble()[2:] == ["0", "exit 0"]


@pytest.mark.parametrize("end", ["kill -TERM $$", "bash -c 'kill -TERM $$'"])
def test_a_job_that_somebody_ends_in_its_setup_stays_ended(end: str, requeued: Path, tmp_path: Path) -> None:
    job = Job(tmp_path, end, "sleep 0.1")
    assert job.run()[0] in (143, -signal.SIGTERM)
    assert list(job.troubles.iterdir()) == []
    assert not requeued.exists()


def test_troubles_that_cannot_be_written_do_not_hinder_the_requeue(requeued: Path, tmp_path: Path) -> None:
    job = Job(tmp_path, "exit 3")
    job.troubles.rmdir()
    job.troubles.touch()
    assert job.run()[0] == 3
    assert requeued.read_text() == "requeue 7_4\n"


def test_a_script_of_its_own_leaves_its_troubles_beside_it(requeued: Path, tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    script = sbatch.write_script(folder, Cluster(setup=("false",)), "bench-test", "true")
    subprocess.run(["bash", str(script)], check=False, env={**os.environ, "SLURM_ARRAY_JOB_ID": "7"})
    assert [path.name for path in folder.iterdir() if path.name.startswith("setup-")] == ["setup-7_-0.txt"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["folder", "programs"]


def test_after_the_setup_a_shell_fails_as_any_other(requeued: Path, tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    script = sbatch.write_script(folder, Cluster(setup=("set -e",)), "bench-test", "false\nexit 5")
    environment = {**os.environ, "SLURM_ARRAY_JOB_ID": "7", "SLURM_ARRAY_TASK_ID": "0"}
    assert subprocess.run(["bash", str(script)], check=False, env=environment).returncode == 5
    assert not any(path.name.startswith("setup-") for path in folder.iterdir())
    assert not requeued.exists()
