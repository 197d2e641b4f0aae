"""Worker processes of the local launcher: what they print, how they end, and what a second signal does."""

from __future__ import annotations

import json
import os
import queue as queues
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from bench import grid
from bench.data import prepare
from bench.errors import RunStopped
from bench.launch import local
from bench.launch.queue import Queue
from bench.specs import Stage
from bench.store.store import Store
from bench.training.protocol import MOST_FALSE_STARTS, Outcome, Settings, read_event
from tests.examples import pretraining

REPOSITORY = Path(grid.__file__).parents[1]

# The real package, and further modules beside it, as where somebody works on methods of their own.
PACKAGE = f"""
__path__.append({str(REPOSITORY / "baselines")!r})
exec(open({str(REPOSITORY / "baselines" / "__init__.py")!r}).read())
"""


def until(condition: Callable[[], Any], seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "nothing happened"
        time.sleep(0.02)


def running(pid: int) -> bool:
    stat = Path(f"/proc/{pid}/stat")
    return stat.exists() and stat.read_text().rpartition(")")[2].split()[0] not in "ZX"


@pytest.fixture
def workers() -> Iterator[Callable[[], tuple[local.Worker, local.Events]]]:
    """Starts workers, each with the queue of its events; they are killed at the end."""
    started: list[local.Worker] = []

    def start() -> tuple[local.Worker, local.Events]:
        events: local.Events = queues.Queue()
        started.append(local.Worker(0, Settings(Path("data")), events))
        return started[-1], events

    yield start
    for worker in started:
        worker.process.kill()
        worker.process.wait()


def plugin(folder: Path, monkeypatch: pytest.MonkeyPatch, code: str) -> None:
    """Put a module beside the methods, which every process of this folder imports."""
    (folder / "baselines").mkdir(parents=True)
    (folder / "baselines" / "__init__.py").write_text(PACKAGE)
    (folder / "baselines" / "own.py").write_text(code)
    monkeypatch.chdir(folder)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join((str(folder), str(REPOSITORY))))


def impostor(folder: Path, monkeypatch: pytest.MonkeyPatch, code: str) -> None:
    """Have a short program take the worker's place; `line` is its socket."""
    program = folder / "worker"
    head = f"#!{sys.executable}\nimport os, signal, socket, subprocess, sys, time\n"
    program.write_text(f"{head}line = socket.socket(fileno=int(sys.argv[sys.argv.index('--serve') + 1]))\n{code}\n")
    program.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(program))


# ------------------------------------------------------------------------------------------------ what they say

NOISE = """
import os, sys
print("loading my method …")
print('{"event": "end", "state": "done", "reason": "", "from_step": 0, "warnings": []}', flush=True)
os.write(1, b"from C\\xff\\n")
os.system("echo from a child")
sys.stdout.write(f"read {sys.stdin.read()!r}")
"""


def test_what_methods_print_and_read_while_they_are_imported_disturbs_nobody(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    workers: Callable[[], tuple[local.Worker, local.Events]],
) -> None:
    plugin(tmp_path, monkeypatch, NOISE)
    (tmp_path / "sitecustomize.py").write_text("print('from sitecustomize')")
    worker, events = workers()
    assert events.get(timeout=60) == (worker, {"event": "ready"})
    worker.close()
    assert events.get(timeout=60) == (worker, {"event": "gone", "status": local.ASKED_TO_END, "deaf": ""})
    printed = capfd.readouterr()
    assert printed.out == ""
    assert all(text in printed.err for text in ("from sitecustomize", "loading my", "from C", "a child", "read ''"))


@pytest.mark.parametrize(
    "line",
    [
        "",
        "loading my method …",
        "[1]",
        "null",
        "{}",
        "[" * 100_000,
        '{"event": []}',
        '{"event": "progress", "step": "1", "steps": 2, "loss": 0.5}',
        '{"event": "end", "state": "well", "reason": "", "from_step": 0, "warnings": []}',
        '{"event": "end", "state": "done"}',
        '{"event": "gone", "status": 0}',
    ],
)
def test_a_line_that_is_no_event_is_none(line: str) -> None:
    assert read_event(line) is None


def test_lines_that_are_no_events_are_told_and_the_next_ones_still_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, workers: Callable[[], tuple[local.Worker, local.Events]]
) -> None:
    impostor(tmp_path, monkeypatch, 'line.sendall(b\'what\\xff\\n{"event": "ready"}\\n\')')
    _, events = workers()
    assert [events.get(timeout=20)[1] for _ in range(3)] == [
        {"event": "said", "text": "what\ufffd"},
        {"event": "ready"},
        {"event": "gone", "status": 0, "deaf": ""},
    ]


@pytest.mark.parametrize(
    ("code", "status", "deaf"),
    [
        ("os._exit(3)", 3, ""),
        ("os.kill(os.getpid(), signal.SIGSEGV)", -signal.SIGSEGV, ""),
        ("line.close(); time.sleep(600)", -signal.SIGKILL, "it had closed its line to the launcher"),
        # A child that is left behind keeps the worker's end of the line open.
        ("line.set_inheritable(True); subprocess.Popen(['sleep', '3'], close_fds=False); os._exit(3)", 3, ""),
    ],
)
def test_however_a_worker_ends_its_launcher_hears_of_it(
    code: str,
    status: int,
    deaf: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    workers: Callable[[], tuple[local.Worker, local.Events]],
) -> None:
    monkeypatch.setattr(local, "EXIT_SECONDS", 0.2)
    impostor(tmp_path, monkeypatch, code)
    worker, events = workers()
    began = time.monotonic()
    assert events.get(timeout=20) == (worker, {"event": "gone", "status": status, "deaf": deaf})
    assert time.monotonic() - began < 2.5
    worker.give(pretraining(), Store(tmp_path / "runs"))  # nobody listens: no error


CLOSING = """
import os, sys
from bench.store.states import StageState
from bench.training.protocol import Outcome

def run(*_):
    os.closerange(3, 1000)
    return Outcome(StageState.DONE)

sys.modules["__main__"].run = run
"""


def test_a_worker_whose_stage_closed_its_descriptors_ends_with_that_stage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, workers: Callable[[], tuple[local.Worker, local.Events]]
) -> None:
    plugin(tmp_path, monkeypatch, CLOSING)
    worker, events = workers()
    assert events.get(timeout=60) == (worker, {"event": "ready"})
    worker.give(pretraining(), Store(tmp_path / "runs"))
    event = events.get(timeout=20)[1]
    assert (event["event"], event["deaf"]) == ("gone", "")


def test_a_stage_that_was_published_is_done_whatever_became_of_its_worker(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(local, "EXIT_SECONDS", 0.2)
    monkeypatch.setattr(Store, "record", lambda self, stage: {"key": stage.key})
    impostor(tmp_path, monkeypatch, 'line.sendall(b\'{"event": "ready"}\\n\'); line.close(); time.sleep(600)')
    queue, lines, ended = run([pretraining()], Store(tmp_path / "runs"))
    assert (ended, queue.over, queue.failed) == ("", True, {})
    assert lines == ["started", "done: "]


# ------------------------------------------------------------------------------------------------ their first moments


class Listener:
    """A reporter that remembers what it is told."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def started(self, stage: Stage, worker: int) -> None:
        self.lines.append("started")

    def said(self, worker: int, text: str) -> None:
        self.lines.append(f"said {text}")

    def stopping(self) -> None:
        self.lines.append("stopping")

    def ended(self, stage: Stage, worker: int, outcome: Outcome) -> None:
        self.lines.append(f"{outcome.state}: {outcome.reason}")


def run(stages: list[Stage], store: Store, workers: int = 1, stop: Callable[[], bool] = lambda: False) -> Any:
    """Run stages; returns the queue, what the reporter was told, and what ended the run."""
    queue, listener = Queue(stages, (), {}), Listener()
    try:
        local.run(queue, store, [Settings(Path("data"))] * workers, stop, listener)  # type: ignore[arg-type]
    except RunStopped as error:
        return queue, listener.lines, str(error)
    return queue, listener.lines, ""


def test_workers_that_never_come_to_a_stage_end_the_run_and_not_the_stage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    impostor(tmp_path, monkeypatch, "sys.exit('no such library')")
    stages = [pretraining(), pretraining(seed=1)]
    queue, lines, ended = run(stages, Store(tmp_path / "runs"))
    assert f"{MOST_FALSE_STARTS} workers in a row" in ended and "exit status 1" in ended
    assert queue.failed == {}
    assert lines.count("started") == MOST_FALSE_STARTS
    assert all("before it began" in line for line in lines if line != "started")


ONCE = """
import json
from pathlib import Path
marker = Path(__file__ + ".marker")
if not marker.exists():
    marker.touch()
    os.kill(os.getpid(), signal.SIGKILL)
line.sendall(b'{"event": "ready"}\\n')
for folder in line.makefile():
    end = {"event": "end", "state": "done", "reason": json.loads(folder), "from_step": 0, "warnings": []}
    line.sendall(json.dumps(end).encode() + b"\\n")
"""


def test_a_worker_that_dies_in_its_first_moments_costs_a_stage_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    impostor(tmp_path, monkeypatch, ONCE)
    store = Store(tmp_path / "a folder\nof two lines")  # whatever stands in its path, a folder is one line
    queue, lines, ended = run([pretraining()], store)
    assert ended == "" and queue.over and queue.failed == {}
    assert "SIGKILL" in lines[1] and lines[1].startswith("interrupted: before it began")
    assert lines[-1] == f"done: {store.folder(pretraining())}"


def test_a_signal_before_the_handlers_stand_is_an_interruption(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, workers: Callable[[], tuple[local.Worker, local.Events]]
) -> None:
    wait = (
        "import pathlib, time\npathlib.Path('young').touch()\nwhile not pathlib.Path('go').exists(): time.sleep(0.01)"
    )
    plugin(tmp_path, monkeypatch, wait)
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        (tmp_path / "go").unlink(missing_ok=True)
        (tmp_path / "young").unlink(missing_ok=True)
        worker, events = workers()
        stage, store = pretraining(), Store(tmp_path / "runs")
        worker.give(stage, store)
        until((tmp_path / "young").exists)
        worker.process.send_signal(number)
        (tmp_path / "go").touch()
        while (event := events.get(timeout=60)[1])["event"] != "gone":
            pass
        assert local._outcome(worker, stage, event, store).state == "interrupted", event


# ------------------------------------------------------------------------------------------------ a second signal

# The main thread waits for ever for a lock that it holds itself, in C, where no handler written in Python is called.
HANG = """
import ctypes, pathlib, subprocess
def hang(marker):
    child = subprocess.Popen(["sleep", "600"])
    pathlib.Path(marker + ".new").write_text(str(child.pid))
    pathlib.Path(marker + ".new").rename(marker)
    lock = ctypes.create_string_buffer(128)
    while True:
        ctypes.CDLL(None).pthread_mutex_lock(lock)
"""

HANGING = f"""
{HANG}
from dataclasses import dataclass
from baselines.finetune import finetune
from bench.registry import recipe
from bench.specs.objectives import CrossEntropy


@dataclass(frozen=True)
class Hanging(CrossEntropy):
    def loss(self, model, batch, state, context):
        hang("hanging")


@recipe()
def hanging(cell):
    return finetune(cell, objective=cell.configure(Hanging()))
"""

GRID = """
grid.rows = ['hanging']
grid.tasks = ['digits']
grid.seeds = [0]
finetune.steps = 3
finetune.warmup_steps = 0
finetune.init = 'random'
finetune.augmentation = 'none'
"""


def insist(process: subprocess.Popen[bytes], folder: Path, number: signal.Signals, group: bool) -> int:
    """Send a signal to a program that hangs, and once more; returns the status of its end."""

    def send() -> None:
        (os.killpg if group else os.kill)(process.pid, number)

    try:
        until(lambda: (folder / "hanging").exists() or process.poll() is not None)
        send()
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(1.0)  # one signal asks, and a program that hangs cannot hear
        send()
        status = process.wait(10)
        until(lambda: not running(int((folder / "hanging").read_text())), 5)
        return status
    finally:
        if process.poll() is None:
            process.kill()


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data root with the one task of the grid."""
    root = tmp_path_factory.mktemp("digits")
    prepare.prepare_data("digits", root)
    return root


@pytest.mark.parametrize(
    ("launcher", "number", "group"), [("local", signal.SIGINT, True), ("inline", signal.SIGTERM, False)]
)
def test_a_second_signal_ends_a_grid_at_once_with_all_it_started(
    launcher: str, number: signal.Signals, group: bool, digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plugin(tmp_path, monkeypatch, HANGING)
    (tmp_path / "g.gin").write_text(GRID)
    command = [sys.executable, "-m", "bench.grid", "--gin", "g.gin", "--launcher", launcher, "--data", str(digits)]
    process = subprocess.Popen(command, start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    assert insist(process, tmp_path, number, group) == 128 + number
    (attempt,) = tmp_path.glob("runs/*/attempts/000001.json")
    until(lambda: not running(json.loads(attempt.read_text())["owner"]["pid"]), 5)


WATCHING = f"""
{HANG}
from bench import status
status._plan = lambda options: hang("hanging")
status.main(["--gin", "g.gin", "--watch"])
"""
WORKING = f"""
{HANG}
from bench.training import worker
worker.run = lambda *_: hang("hanging")
worker.main(["folder"])
"""


@pytest.mark.parametrize("code", [WATCHING, WORKING], ids=["status", "worker"])
def test_a_second_signal_ends_every_program_that_waits(
    code: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(REPOSITORY))
    process = subprocess.Popen([sys.executable, "-c", code], cwd=tmp_path, stderr=subprocess.DEVNULL)
    assert insist(process, tmp_path, signal.SIGINT, group=False) == 128 + signal.SIGINT


def test_in_a_job_the_supervisor_and_not_a_second_signal_ends_a_worker(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(REPOSITORY))
    monkeypatch.setenv("BENCH_JOB", "7_0")
    code = "import time; from pathlib import Path; from bench.training import worker\n"
    code += "def run(folder, settings, stop, progress):\n    Path('hanging').touch()\n"
    code += "    while not Path('go').exists(): time.sleep(0.01)\n    return worker.Outcome(worker.StageState.DONE)\n"
    code += "worker.run = run\nworker.main(['folder'])"
    process = subprocess.Popen([sys.executable, "-c", code], cwd=tmp_path, stdout=subprocess.DEVNULL)
    try:
        until((tmp_path / "hanging").exists)
        for _ in range(3):
            process.send_signal(signal.SIGTERM)
            time.sleep(0.05)
        (tmp_path / "go").touch()
        assert process.wait(10) == 0
    finally:
        process.kill()
