"""The local launcher: which device a worker sees, how many share one, and what runs again alone."""

from __future__ import annotations

import os
import queue as queues
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest

from bench import device, grid
from bench.errors import InputError
from bench.launch import devices, local
from bench.launch.queue import Queue
from bench.specs import Stage
from bench.store.store import Store
from bench.training.protocol import Outcome, Settings
from tests import tiny_grid
from tests.examples import pretraining
from tests.test_grid import SMALL, Workspace

REPOSITORY = Path(grid.__file__).parents[1]


# ------------------------------------------------------------------------------------------------ which devices


@pytest.mark.parametrize(
    ("variable", "name", "visible"),
    [
        (None, "cuda:1", "1"),
        ("2,3", "cuda:0", "2"),
        ("2,3", "cuda:1", "3"),
        ("GPU-5ab, GPU-77c", "cuda:1", "GPU-77c"),
        ("MIG-41b7e0bc-77c2-5a2f-b0a5-e3c1c2ac8e8f", "cuda:0", "MIG-41b7e0bc-77c2-5a2f-b0a5-e3c1c2ac8e8f"),
    ],
)
def test_a_worker_gets_one_of_the_devices_that_the_grid_was_given(
    variable: str | None, name: str, visible: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if variable is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", variable)
    assert local.visible_device(name) == visible


@pytest.mark.parametrize(("variable", "name"), [("2,3", "cuda:2"), ("GPU-5ab", "cuda:1"), ("", "cuda:0")])
def test_a_device_beyond_those_that_are_visible_is_refused(
    variable: str, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", variable)
    with pytest.raises(InputError, match=f"CUDA_VISIBLE_DEVICES='{variable}'"):
        local.visible_device(name)


@pytest.fixture
def two_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "_has_driver", lambda: True)
    monkeypatch.setattr(device, "gpu_count", lambda: 2)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.delenv("BENCH_DEVICE")


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        (None, ["cuda:0", "cuda:1"]),
        ("cuda", ["cuda:0", "cuda:1"]),
        ("cuda:1", ["cuda:1"]),
        ("cpu", ["cpu"]),
    ],
)
def test_a_device_means_one_or_all(name: str | None, expected: list[str], two_gpus: None) -> None:
    assert devices.local_devices(name) == expected


def test_without_a_gpu_the_default_is_the_cpu_and_a_gpu_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device, "gpu_count", lambda: 0)
    for driver in (True, False):
        monkeypatch.setattr(devices, "_has_driver", lambda there=driver: there)
        assert devices.local_devices(None) == ["cpu"]
        for name in ("cuda", "cuda:0"):
            with pytest.raises(InputError, match="finds no GPU"):
                devices.local_devices(name)


@pytest.mark.parametrize("name", ["cuda:2", "gpu", "cpu:1", "mps", "cuda:x"])
def test_a_device_that_is_not_there_is_refused_by_name(name: str, two_gpus: None) -> None:
    with pytest.raises(InputError, match=name):
        devices.local_devices(name)


def test_no_torch_is_imported_to_find_that_there_is_no_gpu() -> None:
    code = (
        "import sys; from bench.launch import devices; devices._has_driver = lambda: False; "
        "print(devices.local_devices(None), devices.local_devices('cpu'), 'torch' in sys.modules)"
    )
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=REPOSITORY)
    assert shown.stdout == "['cpu'] ['cpu'] False\n"


# ------------------------------------------------------------------------------------------------ which workers


def workers(workspace: Workspace, monkeypatch: pytest.MonkeyPatch, *arguments: str) -> list[Settings]:
    """The workers that the command would start."""
    started: list[Settings] = []
    monkeypatch.setattr(local, "run", lambda queue, store, settings, stop, report: started.extend(settings))
    grid.main(workspace.arguments(*arguments))
    return started


@pytest.mark.parametrize(
    ("arguments", "expected", "shared"),
    [
        ([], ["cuda:0", "cuda:1"], False),
        (["--device", "cuda:1"], ["cuda:1"], False),
        (["--workers-per-device", "2"], ["cuda:0", "cuda:1"] * 2, True),
        (["--workers", "3", "--device", "cuda:1"], ["cuda:1"] * 3, True),
        (["--workers", "1"], ["cuda:0"], False),
        (["--workers", "2", "--device", "cpu"], ["cpu", "cpu"], True),
        (["--workers-per-device", "50", "--only", "finetune/digits/*/0"], ["cuda:0", "cuda:1"], False),  # two stages
    ],
)
def test_workers_are_spread_over_the_devices(
    arguments: list[str],
    expected: list[str],
    shared: bool,
    two_gpus: None,
    prepared: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    made = workers(Workspace(tmp_path, prepared, SMALL), monkeypatch, *arguments)
    assert [worker.device for worker in made] == expected
    assert {worker.shared for worker in made} == {shared}
    assert all(worker.graphs and worker.checkpoint_steps == 4 for worker in made)


def test_two_workers_on_one_gpu_and_one_on_another_know_who_shares(
    two_gpus: None, prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = workers(Workspace(tmp_path, prepared, SMALL), monkeypatch, "--workers", "3")
    shares = [(worker.device, worker.shared) for worker in made]
    assert shares == [("cuda:0", True), ("cuda:1", False), ("cuda:0", True)]


def test_a_setting_switches_recorded_steps_off(prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    workspace = Workspace(tmp_path, prepared, SMALL)
    assert not any(worker.graphs for worker in workers(workspace, monkeypatch, "--set", "grid.cuda_graphs = False"))


def test_the_environment_names_a_default(
    two_gpus: None, prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    workspace = Workspace(tmp_path, prepared, SMALL)
    monkeypatch.setenv("BENCH_DEVICE", "cuda:1")
    assert {worker.device for worker in workers(workspace, monkeypatch)} == {"cuda:1"}
    assert {worker.device for worker in workers(workspace, monkeypatch, "--device", "cuda:0")} == {"cuda:0"}


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--device", "cuda:7"], "cuda:7"),
        (["--device", "gpu"], "'gpu'"),
        (["--launcher", "inline", "--device", "cuda:7"], "cuda:7"),
        (["--launcher", "slurm", "--device", "cpu"], "slurm.gpus"),
        (["--launcher", "slurm", "--workers-per-device", "2"], "slurm.runs_per_job"),
        (["--device", "cpu", "--workers-per-device", "2"], "--workers"),
        (["--workers-per-device", "0"], "--workers-per-device 0"),
        (["--workers-per-device", "2", "--workers", "4"], "give one"),
        (["--launcher", "inline", "--workers-per-device", "2"], "--launcher local"),
        (["--launcher", "inline", "--workers", "2"], "--launcher local"),
    ],
)
def test_what_is_not_there_is_refused_before_anything_is_written(
    arguments: list[str], says: str, two_gpus: None, tmp_path: Path
) -> None:
    workspace = Workspace(tmp_path, tmp_path / "data", SMALL)  # where the embedded data would be prepared
    with pytest.raises(InputError, match=says):
        grid.main(workspace.arguments(*arguments))
    assert [path.name for path in tmp_path.iterdir()] == ["small.gin"]


# ------------------------------------------------------------------------------------------------ out of memory


class FakeWorker:
    """A worker that ends a stage when the test says so; `started` holds all of them."""

    started: ClassVar[list[FakeWorker]] = []

    def __init__(self, number: int, settings: Settings, events: Any, alone: bool = False) -> None:
        self.number, self.settings, self.device, self.alone = number, settings, settings.device, alone
        self.stage: Stage | None = None
        self.closed = False
        self.process = SimpleNamespace(wait=lambda: None, send_signal=lambda number: None)
        self.started.append(self)

    def give(self, stage: Stage, store: Store) -> None:
        assert self.stage is None and not self.closed
        self.stage = stage

    def close(self) -> None:
        self.closed = True


class Script:
    """Stands in for the queue of events: ends one stage after another, as the test wrote down."""

    def __init__(self, ends: list[tuple[Stage, str]]) -> None:
        self.ends = ends
        self.running: list[dict[str, list[tuple[Stage, bool]]]] = []
        """What ran on each device whenever an end was due, and whether alone."""

    def get(self, timeout: float) -> tuple[FakeWorker, dict[str, Any]]:
        busy = [worker for worker in FakeWorker.started if worker.stage is not None]
        now: dict[str, list[tuple[Stage, bool]]] = {}
        for worker in busy:
            assert worker.stage is not None
            now.setdefault(worker.device, []).append((worker.stage, not worker.settings.shared))
        self.running.append(now)
        stage, state = self.ends.pop(0)
        (worker,) = (worker for worker in busy if worker.stage == stage)
        return worker, {"event": "end", "state": state, "reason": "", "from_step": 0, "warnings": []}


class Listener:
    """A reporter that remembers how stages ended."""

    def __init__(self) -> None:
        self.ends: list[tuple[Stage, str]] = []

    def started(self, stage: Stage, worker: int) -> None:
        pass

    def ended(self, stage: Stage, worker: int, outcome: Outcome) -> None:
        self.ends.append((stage, outcome.state))


def play(
    ends: list[tuple[Stage, str]], stages: list[Stage], device_names: list[str], patch: pytest.MonkeyPatch
) -> tuple[Script, Queue, list[tuple[Stage, str]]]:
    """Run stages on these devices, one worker each, which end as the script says."""
    script, listener = Script(list(ends)), Listener()
    patch.setattr(FakeWorker, "started", [])
    patch.setattr(local, "Worker", FakeWorker)
    patch.setattr(local, "queues", SimpleNamespace(Queue=lambda: script, Empty=queues.Empty))
    queue = Queue(stages, (), {})
    settings = [
        Settings(Path(), device_name, shared=device_names.count(device_name) > 1) for device_name in device_names
    ]
    local.run(queue, Store(Path()), settings, lambda: False, listener)  # type: ignore[arg-type]
    assert script.ends == [] and queue.over
    return script, queue, listener.ends


A, B, C, D, E = (pretraining(seed=seed) for seed in range(5))


def test_a_stage_out_of_memory_beside_others_is_tried_again_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    ends = [(A, "crowded"), (B, "done"), (D, "done"), (C, "done"), (A, "done"), (E, "done")]
    script, queue, reported = play(ends, [A, B, C, D, E], ["cuda:0", "cuda:1", "cuda:0"], monkeypatch)
    assert queue.done == {stage.key for stage in (A, B, C, D, E)} and queue.failed == {}
    assert reported == ends
    assert script.running == [
        {"cuda:0": [(A, False), (C, False)], "cuda:1": [(B, True)]},
        {"cuda:0": [(C, False)], "cuda:1": [(B, True)]},  # nothing new beside C, which A waits for
        {"cuda:0": [(C, False)], "cuda:1": [(D, True)]},  # the other GPU goes on
        {"cuda:0": [(C, False)], "cuda:1": [(E, True)]},
        {"cuda:0": [(A, True)], "cuda:1": [(E, True)]},
        {"cuda:1": [(E, True)]},
    ]


def test_after_a_stage_was_alone_its_device_is_shared_again(monkeypatch: pytest.MonkeyPatch) -> None:
    ends = [(A, "crowded"), (B, "crowded"), (A, "failed"), (B, "done"), (C, "done"), (D, "done")]
    script, queue, _ = play(ends, [A, B, C, D], ["cpu", "cpu"], monkeypatch)
    assert set(queue.failed) == {A.key}
    assert script.running == [
        {"cpu": [(A, False), (B, False)]},
        {"cpu": [(B, False)]},
        {"cpu": [(A, True)]},
        {"cpu": [(B, True)]},
        {"cpu": [(C, False), (D, False)]},
        {"cpu": [(D, False)]},
    ]
    # What a stage alone shall have must not be held by processes that are idle.
    assert [(worker.alone, worker.closed) for worker in FakeWorker.started] == [
        (False, True),
        (False, True),
        (True, True),
        (True, True),
        (False, True),
        (False, True),
    ]


GREEDY = '''
"""A method whose third and later steps need more memory than there is, the first time or always."""

import os
from dataclasses import dataclass
from pathlib import Path

from baselines.finetune import finetune
from bench.specs.objectives import CrossEntropy
from bench.registry import recipe


@dataclass(frozen=True)
class Greedy(CrossEntropy):
    def loss(self, model, batch, state, context):
        import torch

        marker = Path(os.environ["GREEDY_MARKER"])
        if context.step == 6 and not marker.exists():
            if os.environ["GREEDY"] == "once":
                marker.touch()
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has 79 GiB in all")
        return super().loss(model, batch, state, context)


@recipe()
def greedy(cell):
    return finetune(cell, objective=cell.configure(Greedy()))
'''

CROWD = """
grid.plugins = ['greedy.py']
grid.rows = ['greedy', 'finetune']
grid.tasks = ['digits']
grid.seeds = [0]
grid.checkpoint_steps = 4
finetune.steps = 60
finetune.batch_size = 8
finetune.warmup_steps = 2
finetune.augmentation = 'none'
source_pretrain.steps = 4
""" + tiny_grid.networks("photos_mae")


def crowded(folder: Path, data: Path) -> Workspace:
    """A workspace with the greedy method."""
    workspace = Workspace(folder, data, CROWD)
    (folder / "greedy.py").write_text(GREEDY)
    return workspace


def run_two_workers(workspace: Workspace, **environment: str) -> tuple[int, str]:
    """Run it in real processes; return the exit status and what was shown."""
    done = subprocess.run(
        [sys.executable, "-m", "bench.grid", *workspace.arguments("--workers", "2")],
        env={**os.environ, "GREEDY_MARKER": str(workspace.folder / "marker"), **environment},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    return done.returncode, done.stdout + done.stderr


@pytest.mark.usefixtures("registries")
def test_memory_that_neighbours_took_costs_a_stage_nothing(
    prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    workspace = crowded(tmp_path / "crowd", prepared)
    status, shown = run_two_workers(workspace, GREEDY="once")
    assert status == 0, shown
    assert "tried again alone" in shown
    ledger = workspace.ledger()
    ((first, second),) = (attempts for attempts in ledger.values() if len(attempts) == 2)
    assert (first["end"]["state"], second["end"]["state"]) == ("interrupted", "done")
    assert "out of memory on the CPU" in first["end"]["reason"]
    assert second["from_step"] == 4  # its last checkpoint
    others = [attempt for attempts in ledger.values() for attempt in attempts if attempt not in (first, second)]
    assert all(other["end"]["time"] <= second["began"] or second["end"]["time"] <= other["began"] for other in others)
    undisturbed = crowded(tmp_path / "alone", prepared)
    monkeypatch.setenv("GREEDY_MARKER", str(workspace.folder / "marker"))  # which is there by now
    assert undisturbed.run() == 0
    assert workspace.numbers() == undisturbed.numbers() and workspace.weights() == undisturbed.weights()


def test_out_of_memory_alone_is_a_failure_that_says_what_to_lower(prepared: Path, tmp_path: Path) -> None:
    workspace = crowded(tmp_path / "crowd", prepared)
    status, shown = run_two_workers(workspace, GREEDY="always")
    assert status == 1
    ((first, second),) = (attempts for attempts in workspace.ledger().values() if len(attempts) == 2)
    assert (first["end"]["state"], second["end"]["state"]) == ("interrupted", "failed")
    reason = second["end"]["reason"]
    assert all(word in reason for word in ("the CPU", "GiB", "batch_size", "micro_batches", "bfloat16"))
    assert reason in shown and "\n" not in reason
    assert list(workspace.records()) == ["finetune/digits/photos_mae/0"]
    assert set(workspace.checkpoints().values()) == {4}  # with more memory it goes on from there
