"""What a worker makes of trouble that is not its stage's."""

from __future__ import annotations

import contextlib
import errno
import multiprocessing
import os
import signal
import time
from pathlib import Path

import pytest
import torch

from bench import device
from bench.store.store import Store
from bench.training import fit, worker
from bench.training.checkpoint import Checkpoints
from bench.training.protocol import EXIT_STATUS, Settings
from bench.training.signals import StopFlag
from bench.training.worker import run
from tests.examples import pretraining


def fail_with(error: BaseException, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have every training raise this."""

    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr(fit, "fit", fail)


@pytest.mark.parametrize(
    ("error", "state"),
    [(OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)), "refused"), (OSError(errno.ENOENT, "no such file"), "failed")],
)
def test_a_full_disk_is_not_held_against_the_stage(
    error: OSError, state: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fail_with(error, monkeypatch)
    store, stage = Store(tmp_path), pretraining()
    outcome = run(store.add(stage), Settings(tmp_path), lambda: False, lambda step, steps, loss: None)
    assert outcome.state == state
    assert str(error.strerror) in outcome.reason
    assert (store.failure(stage) is None) == (state == "refused")  # what failed needs --retry, a full disk needs room


def test_an_attempt_that_cannot_open_its_log_gets_its_end(tmp_path: Path) -> None:
    store, stage = Store(tmp_path), pretraining()
    folder = store.add(stage)
    (folder / "log.txt").mkdir()
    descriptors = len(os.listdir("/dev/fd"))
    outcome = run(folder, Settings(tmp_path), lambda: False, lambda step, steps, loss: None)
    assert len(os.listdir("/dev/fd")) == descriptors
    (attempt,) = store.attempts(stage)
    assert attempt.end is not None
    assert (outcome.state, attempt.end["state"]) == ("refused", "refused")
    assert "log.txt" in outcome.reason and attempt.end["reason"] == outcome.reason


@pytest.mark.parametrize(
    ("error", "state"),
    [(SystemExit(0), "failed"), (KeyboardInterrupt(), "interrupted"), (GeneratorExit(), "interrupted")],
)
def test_every_way_out_of_a_stage_gives_its_attempt_an_end(
    error: BaseException, state: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fail_with(error, monkeypatch)
    store, stage = Store(tmp_path), pretraining()
    folder = store.add(stage)
    with contextlib.suppress(KeyboardInterrupt, GeneratorExit):
        outcome = run(folder, Settings(tmp_path), lambda: False, lambda step, steps, loss: None)
        assert outcome.state == "failed" and "SystemExit" in outcome.reason
    (attempt,) = store.attempts(stage)
    assert attempt.end is not None and attempt.end["state"] == state


def test_a_failure_whose_text_no_file_can_hold_is_noted_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fail_with(ValueError("half of a pair: \ud800"), monkeypatch)
    store, stage = Store(tmp_path), pretraining()
    folder = store.add(stage)
    outcome = run(folder, Settings(tmp_path), lambda: False, lambda step, steps, loss: None)
    assert (outcome.state, outcome.reason) == ("failed", "ValueError: half of a pair: \\ud800")
    assert outcome.reason in str(store.failure(stage))
    assert "half of a pair" in (folder / "log.txt").read_text(encoding="utf-8")


def test_a_stage_is_not_claimed_after_a_stop_was_asked_for(tmp_path: Path) -> None:
    store, stage = Store(tmp_path), pretraining()
    outcome = run(store.add(stage), Settings(tmp_path), lambda: True, lambda step, steps, loss: None)
    assert outcome.state == "interrupted" and store.attempts(stage) == []


def test_a_device_that_nothing_can_be_freed_on_ends_the_worker_after_the_end_is_noted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    monkeypatch.setattr(fit, "fit", fail)
    monkeypatch.setattr(device, "resolve", lambda name: torch.device(name))
    monkeypatch.setattr(device, "release_memory", fail)
    store, stage = Store(tmp_path), pretraining()
    with pytest.raises(RuntimeError, match="illegal memory access"):
        run(store.add(stage), Settings(tmp_path, device="cuda:0"), lambda: False, lambda step, steps, loss: None)
    assert "illegal memory access" in str(store.failure(stage))


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
def test_a_checkpoint_on_a_full_disk_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bench.training.checkpoint.replacing", lambda path: _Full())
    with pytest.raises(OSError, match=r"\[Errno 28\]") as caught:
        Checkpoints(tmp_path).save(1, {"weights": torch.zeros(1000)})
    assert caught.value.errno == errno.ENOSPC


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_forked_child_dies_of_what_its_parent_takes_for_a_wish() -> None:
    """Else multiprocessing, which ends such children at the end of a process, would wait for them for ever."""
    stop = StopFlag()
    with stop.on_signals():
        context = multiprocessing.get_context("fork")
        began = context.Event()
        child = context.Process(target=lambda: (began.set(), time.sleep(60)), daemon=True)
        child.start()
        assert began.wait(20)
        child.terminate()
        child.join(20)
        assert child.exitcode == -signal.SIGTERM
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop()


@pytest.mark.parametrize(
    "settings",
    [
        Settings(Path("data")),
        Settings(Path("a b"), "cuda:0", threads=3, checkpoint_steps=7, graphs=False),
        Settings(Path("data"), shared=True),
    ],
)
def test_settings_survive_being_arguments(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    received: list[Settings] = []
    monkeypatch.setattr(worker, "_run_all", lambda folders, settings, stop: received.append(settings) or 0)
    assert worker.main([*settings.arguments(), "folder"]) == 0
    assert received == [settings]


NO_MEMORY = [
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nMore"),
    torch.AcceleratorError("CUDA error: out of memory\nCUDA kernel errors might be reported later"),
    RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes."),
    MemoryError(),
]


@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("error", NO_MEMORY, ids=lambda error: type(error).__name__)
def test_out_of_memory_is_held_against_a_stage_only_if_it_was_alone(
    error: Exception, shared: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fail_with(error, monkeypatch)
    store, stage = Store(tmp_path), pretraining()
    settings = Settings(tmp_path, shared=shared)
    folder = store.add(stage)
    outcome = run(folder, settings, lambda: False, lambda step, steps, loss: None)
    (attempt,) = store.attempts(stage)
    assert attempt.end is not None
    assert (outcome.state, attempt.end["state"]) == (("crowded", "interrupted") if shared else ("failed", "failed"))
    assert attempt.end["reason"] == outcome.reason
    assert "out of memory on the CPU" in outcome.reason and "GiB" in outcome.reason and "\n" not in outcome.reason
    lower = ("--workers-per-device",) if shared else ("batch_size", "micro_batches", "bfloat16")
    assert all(word in outcome.reason for word in lower)
    status = worker.main([*settings.arguments(), str(folder)])
    assert status == EXIT_STATUS[outcome.state]


def test_another_error_is_not_taken_for_too_little_memory() -> None:
    for error in (RuntimeError("CUDA error: an illegal memory access was encountered"), ValueError("out of memory")):
        assert not device.is_out_of_memory(error)


def test_a_gpu_that_ran_out_is_named_with_its_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device, "properties", lambda device: ("Card", 80 * 2**30, True))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "GPU-77c")
    description = device.describe(torch.device("cuda", 0))
    assert all(word in description for word in ("cuda:0", "Card", "80.0 GiB", "GPU-77c"))


def test_a_gpu_that_torch_cannot_use_is_no_fault_of_the_stage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    store, stage = Store(tmp_path), pretraining()
    outcome = run(store.add(stage), Settings(tmp_path, device="cuda:0"), lambda: False, lambda step, steps, loss: None)
    assert outcome.state == "refused" and "finds no GPU" in outcome.reason


class _Full:
    def __enter__(self) -> Path:
        return Path("/dev/full")

    def __exit__(self, *_: object) -> None:
        pass
