"""The disk of a store fills up, or becomes read-only, while jobs of a real Slurm write to it."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from bench import status
from bench.errors import InputError
from tests.slurm.cluster import DevCluster, wait_for
from tests.slurm.workspaces import Trouble, finish, state

pytestmark = pytest.mark.group("slurm")


@contextlib.contextmanager
def mounted(mount_point: Path, *options: str) -> Iterator[None]:
    """Have something mounted there meanwhile; skips where that is not allowed."""
    if os.geteuid() != 0:
        pytest.skip("mounting a file system needs root")
    run = subprocess.run(["mount", *options, str(mount_point)], capture_output=True, text=True, check=False)
    if run.returncode != 0:
        pytest.skip(f"a file system cannot be mounted here: {run.stderr.strip()}")
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", str(mount_point)], check=True)


def free(folder: Path) -> int:
    facts = os.statvfs(folder)
    return facts.f_bavail * facts.f_frsize


def fill(folder: Path, room: int) -> Path:
    """Fill the disk of a folder up to so many bytes; returns the file to delete."""
    path = folder / "filler"
    with path.open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while (left := free(folder) - room) > 0:
            file.write(bytes(min(left, 1 << 20)))
    assert free(folder) <= room
    return path


@pytest.mark.parametrize(
    "room",
    [
        pytest.param(256 * 1024, id="no room for a checkpoint"),
        pytest.param(0, id="no room for a letter"),
    ],
)
def test_the_stores_disk_is_full(
    room: int,
    slurm: DevCluster,
    tmp_path: Path,
    prepared: Path,
    undisturbed: Trouble,
    capsys: pytest.CaptureFixture[str],
) -> None:
    workspace = Trouble(tmp_path, prepared)
    workspace.store.root.mkdir()
    with mounted(workspace.store.root, "-t", "tmpfs", "-o", "size=32m", "tmpfs"):
        assert workspace.run() == 0
        worker, name = workspace.hold(), workspace.element(workspace.last)
        filler, at = fill(workspace.store.root, room), workspace.step()
        os.kill(worker, signal.SIGCONT)
        wait_for(lambda: state(slurm, name) == "FAILED", 120)
        wait_for(slurm.empty)
        assert workspace.store.record(workspace.last) is None
        printed = workspace.printed()
        capsys.readouterr()
        assert status.main([*workspace.arguments(), "--failed"]) == 3, "no fault of the stage: to be run again"
        shown = capsys.readouterr().out
        assert "finetune/digits/photos_mae/0" in shown
        filler.unlink()
        finish(workspace, slurm)
        first, *others = workspace.from_steps()
        assert first == 0 and {*others} <= {at, None} and at in others, "tried on a full disk, then gone on with"
        workspace.check_same(undisturbed)
        if room:  # else there was none for the words, either
            assert "No space left on device" in printed
            assert shown.startswith("data: 1 stage")


def test_a_read_only_store_is_refused(slurm: DevCluster, tmp_path: Path, prepared: Path) -> None:
    workspace = Trouble(tmp_path, prepared)
    workspace.store.root.mkdir()
    with mounted(workspace.store.root, "-t", "tmpfs", "-o", "size=1m,ro", "tmpfs"):
        with pytest.raises(InputError, match=r"--store .*runs: .* is not a folder this user can write"):
            workspace.run()
        assert list(workspace.store.root.iterdir()) == []
        assert slurm.empty()


def test_the_store_becomes_read_only(slurm: DevCluster, tmp_path: Path, prepared: Path, undisturbed: Trouble) -> None:
    workspace = Trouble(tmp_path, prepared)
    root = workspace.store.root
    assert workspace.run() == 0
    worker, name = workspace.hold(), workspace.element(workspace.last)
    at = workspace.step()
    # A second mount covers the first: what is open for writing keeps a file system from becoming read-only itself.
    with mounted(root, "--bind", str(root)):
        subprocess.run(["mount", "-o", "remount,bind,ro", str(root)], check=True)
        os.kill(worker, signal.SIGCONT)
        wait_for(lambda: state(slurm, name) == "FAILED", 120)
        assert "Read-only file system" in workspace.printed()
        assert workspace.store.record(workspace.last) is None
        with pytest.raises(InputError, match="is not a folder this user can write"):
            workspace.run()
    finish(workspace, slurm)
    assert workspace.from_steps() == [0, at]
    assert workspace.ends() == ["died", "done"]
    workspace.check_same(undisturbed)
