"""What a worker makes of trouble that is not its stage's."""

from __future__ import annotations

import errno
import multiprocessing
import os
import signal
import time
from pathlib import Path

import pytest
import torch

from bench import fit
from bench.checkpoint import Checkpoints
from bench.store import Store
from bench.worker import Settings, StopFlag, run
from tests.examples import pretraining


@pytest.mark.parametrize(
    ("error", "state"),
    [(OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)), "refused"), (OSError(errno.ENOENT, "no such file"), "failed")],
)
def test_a_full_disk_is_not_held_against_the_stage(
    error: OSError, state: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr(fit, "fit", fail)
    store, stage = Store(tmp_path), pretraining()
    outcome = run(store.add(stage), Settings(tmp_path), lambda: False, lambda step, steps, loss: None)
    assert outcome.state == state
    assert str(error.strerror) in outcome.reason
    assert (store.failure(stage) is None) == (state == "refused")  # what failed needs --retry, a full disk needs room


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
def test_a_checkpoint_on_a_full_disk_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bench.checkpoint.replacing", lambda path: _Full())
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
