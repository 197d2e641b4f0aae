"""The leases of a cluster's jobs: one owner at a time, and what a job that ended leaves behind."""

import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import pytest

from bench.launch.slurm import leases
from bench.launch.slurm.leases import Leases
from bench.store import ownership
from bench.store.files import create_json
from bench.store.ownership import STALE_SECONDS, this_process

NAME = "finetune-digits-1a2b3c4d5e6f7a8b"


def lease_of_another_machine(root: Path, age: float, name: str = NAME) -> Path:
    path = root / ".slurm" / "leases" / f"{name}.000001.json"
    assert create_json(path, {"owner": {**this_process(), "machine": "elsewhere"}})
    os.utime(path, (time.time() - age, time.time() - age))
    return path


def test_a_stage_is_one_jobs_until_it_is_given_back(tmp_path: Path) -> None:
    mine, other = Leases(tmp_path), Leases(tmp_path)
    assert mine.look() == {}
    assert mine.take(NAME) and not other.take(NAME)
    assert other.look() == {NAME: True}
    assert other.take("another-1a2b3c4d5e6f7a8b")
    other.release(NAME)  # not its own: nothing happens
    assert not other.take(NAME)
    mine.release_all()
    assert NAME not in other.look()
    assert other.take(NAME)


def test_a_stage_that_was_left_is_shown_as_begun_and_can_be_taken(tmp_path: Path) -> None:
    mine, other = Leases(tmp_path), Leases(tmp_path)
    assert mine.take(NAME)
    mine.leave(NAME)
    assert other.look() == {NAME: False}
    assert other.take(NAME) and not mine.take(NAME)
    mine.release(NAME)
    assert other.look() == {NAME: True}


def test_of_many_that_find_an_owner_dead_exactly_one_takes_over(tmp_path: Path) -> None:
    code = f"""
import sys
from pathlib import Path
from bench.launch.slurm.leases import Leases
Leases(Path(sys.argv[1])).take({NAME!r})
"""
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=True)
    assert Leases(tmp_path).look() == {NAME: False}
    with ThreadPoolExecutor(8) as pool:
        taken = list(pool.map(lambda _: Leases(tmp_path).take(NAME), range(8)))
    assert taken.count(True) == 1
    assert [path.name for path in (tmp_path / ".slurm" / "leases").iterdir()] == [f"{NAME}.000002.json"]


def test_on_another_machine_only_the_heartbeat_tells(tmp_path: Path) -> None:
    path = lease_of_another_machine(tmp_path, age=STALE_SECONDS / 2)
    assert Leases(tmp_path).look() == {NAME: True}
    assert not Leases(tmp_path).take(NAME)
    os.utime(path, (0, 0))
    assert Leases(tmp_path).take(NAME)


def test_a_heartbeat_in_the_future_does_not_keep_a_stage_for_ever(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The clock of the file system may have been set back by an hour after its owner died."""
    path = lease_of_another_machine(tmp_path, age=-3600)
    moment = [1000.0]
    monkeypatch.setattr(ownership, "time", SimpleNamespace(monotonic=lambda: moment[0]))
    job = Leases(tmp_path)
    seen = []
    for beat in (None, None, 3700, None):  # of a living owner there is another one each time
        if beat is not None:
            os.utime(path, (time.time() + beat,) * 2)
        seen.append(job.look()[NAME])
        moment[0] += 0.6 * STALE_SECONDS
    assert seen == [True, True, True, True]
    assert not job.look()[NAME] and job.take(NAME)


def test_a_look_at_many_leases_of_other_machines_makes_one_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = [f"finetune-{number:016x}" for number in range(5)]
    for number, name in enumerate(names):
        lease_of_another_machine(tmp_path, 2 * STALE_SECONDS * (number % 2), name)
    folders = []
    read = leases.file_system_time
    monkeypatch.setattr(leases, "file_system_time", lambda folder: folders.append(folder) or read(folder))
    assert list(Leases(tmp_path).look().values()) == [True, False, True, False, True]
    assert len(folders) == 1


def test_a_heartbeat_keeps_what_is_held_and_comes_now_and_then(tmp_path: Path) -> None:
    mine = Leases(tmp_path)
    assert mine.take(NAME)
    path = next((tmp_path / ".slurm" / "leases").iterdir())
    os.utime(path, (0, 0))
    mine.beat()
    assert path.stat().st_mtime > time.time() - STALE_SECONDS
    os.utime(path, (0, 0))
    mine.beat()  # too soon
    assert path.stat().st_mtime == 0
    mine._next_beat -= leases.HEARTBEAT_SECONDS
    mine.beat()
    assert path.stat().st_mtime > 0


def test_what_cannot_be_read_counts_as_left(tmp_path: Path) -> None:
    mine = Leases(tmp_path)
    assert mine.take(NAME)
    path = next((tmp_path / ".slurm" / "leases").iterdir())
    path.write_text("{")
    assert Leases(tmp_path).look() == {NAME: False}
