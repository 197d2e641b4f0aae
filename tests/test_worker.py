"""What a worker makes of trouble that is not its stage's."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest
import torch

from bench import fit
from bench.checkpoint import Checkpoints
from bench.store import Store
from bench.worker import Settings, run
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


class _Full:
    def __enter__(self) -> Path:
        return Path("/dev/full")

    def __exit__(self, *_: object) -> None:
        pass
