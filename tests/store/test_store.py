"""The store: leases, ledger, results, and what happens when files are damaged."""

import json
import multiprocessing
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from bench import cli
from bench.errors import DamagedStore, InputError
from bench.store import files, ownership
from bench.store.files import digest, in_threads, replacing, sha256
from bench.store.ownership import beating
from bench.store.states import StageState
from bench.store.store import Store, newest_checkpoint
from tests.examples import finetuning, pretraining


def record_of(folder: Path, content: bytes = b"weights", **metrics: float) -> dict[str, Any]:
    path = folder / f"weights-{len(content)}.safetensors"
    path.write_bytes(content)
    weights = {"file": path.name, "sha256": sha256(path), "bytes": len(content)}
    facts = {"key": pretraining().key, "metrics": metrics, "measured": {}, "seconds": 1.0}
    return {**facts, "weights": weights, "provenance": {"commit": None, "threads": 1}}


def forge(path: Path, **changes: Any) -> None:
    """Change a record, with a checksum that fits."""
    record = {name: value for name, value in json.loads(path.read_text()).items() if name != "digest"} | changes
    path.write_text(json.dumps({**record, "digest": digest(record)}))


@pytest.fixture
def store(tmp_path: Path) -> Store:
    store = Store(tmp_path / "runs")
    store.add(pretraining())
    return store


def test_a_spec_comes_back_with_its_parents(store: Store) -> None:
    store.add(finetuning())
    assert store.load(store.folder(finetuning())) == finetuning()


def test_a_changed_spec_file_is_refused_until_the_plan_puts_it_right(store: Store) -> None:
    path = store.folder(pretraining()) / "spec.json"
    good = path.read_text()
    for bad in (good.replace('"seed": 0', '"seed": 1'), good[:40], ""):
        path.write_text(bad)
        with pytest.raises(DamagedStore, match=r"spec\.json"):
            store.load(path.parent)
        store.add(pretraining())
        assert store.load(path.parent) == pretraining()


def test_a_copy_of_a_stage_folder_under_another_name_is_ignored(store: Store) -> None:
    folder = store.add(finetuning())
    shutil.copytree(store.folder(pretraining()), store.root / f"a-backup-{pretraining().key[:16]}")
    assert store.load(folder) == finetuning()


def other_shapes(data: Any) -> Iterator[Any]:
    """JSON that differs from an object in one field: it is missing, or of another type."""
    yield from ([], 7, "text", None, {})
    for name, value in data.items():
        for inner in other_shapes(value) if isinstance(value, dict) and value else ("text", 7, [[]], {"a": 7}, True):
            if type(inner) is not type(value):
                yield {**data, name: inner}
        yield {other: value for other, value in data.items() if other != name}


@pytest.mark.parametrize("name", ["000001.json", "000001.end.json"])
def test_a_ledger_of_another_shape_is_named_and_never_a_traceback(name: str, store: Store) -> None:
    attempt = store.claim(pretraining())
    assert attempt is not None
    store.finish(attempt, StageState.FAILED, "because")
    path = attempt.path.with_name(name)
    refused, good = 0, json.loads(path.read_text())
    for bad in ("{", "", "\x00", "[" * 100_000, *map(json.dumps, other_shapes(good))):
        path.write_text(bad)
        try:
            assert store.failure(pretraining()) == "because"  # what was changed says nothing of the end
        except DamagedStore as error:
            refused += name in str(error)
    assert refused > 20


def test_a_live_owner_keeps_its_stage(store: Store) -> None:
    attempt = store.claim(pretraining())
    assert attempt is not None
    assert store.claim(pretraining()) is None
    store.finish(attempt, "interrupted", step=3)
    second = store.claim(pretraining())
    assert second is not None
    assert [a.number for a in store.attempts(pretraining())] == [1, 2]
    assert not store.owns(attempt)
    assert store.owns(second)


def claim_and_die(root: Path) -> None:
    assert Store(root).claim(pretraining()) is not None
    os._exit(9)


def test_the_stage_of_a_dead_owner_is_taken_over_at_once_and_the_ledger_says_so(store: Store) -> None:
    process = multiprocessing.get_context("spawn").Process(target=claim_and_die, args=(store.root,))
    process.start()
    while process.exitcode is None and not store.attempts(pretraining()):
        time.sleep(0.01)
    # Not joined: a zombie that nobody has waited for is dead too.
    deadline = time.monotonic() + 20
    while (attempt := store.claim(pretraining())) is None and time.monotonic() < deadline:
        time.sleep(0.01)
    process.join()
    assert attempt is not None
    first, second = store.attempts(pretraining())
    assert first.end is not None
    assert first.end["state"] == "died"
    assert second.end is None


def test_an_owner_elsewhere_is_judged_by_its_heartbeat(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ownership, "_machine", lambda: "another machine")
    attempt = store.claim(pretraining())
    assert attempt is not None
    monkeypatch.undo()
    assert store.claim(pretraining()) is None
    old = time.time() - ownership.STALE_SECONDS - 1
    os.utime(attempt.path, (old, old))
    monkeypatch.setattr(ownership, "HEARTBEAT_SECONDS", 0.01)
    with beating(attempt.path):
        while attempt.path.stat().st_mtime == old:
            time.sleep(0.01)
    assert store.claim(pretraining()) is None
    os.utime(attempt.path, (old, old))
    assert store.claim(pretraining()) is not None


CLAIM = """
import sys
from pathlib import Path
from bench.store.store import Store
from tests.examples import pretraining
sys.stdin.readline()
print("mine" if Store(Path(sys.argv[1])).claim(pretraining()) else "busy", flush=True)
sys.stdin.readline()
"""


def test_of_many_claims_at_once_exactly_one_succeeds(store: Store) -> None:
    command = [sys.executable, "-c", CLAIM, str(store.root)]
    pipe = subprocess.PIPE
    processes = [subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True) for _ in range(4)]
    try:
        for process in processes:
            process.stdin.write("go\n")
            process.stdin.flush()
        answers = [process.stdout.readline().strip() for process in processes]
    finally:
        for process in processes:
            process.communicate("end\n")
    assert sorted(answers) == ["busy", "busy", "busy", "mine"]


def test_the_first_record_wins_an_equal_one_is_dropped_another_is_kept_and_refused(store: Store) -> None:
    stage, folder = pretraining(), store.folder(pretraining())
    attempt = store.claim(stage)
    assert attempt is not None
    store.publish(attempt, stage, record_of(folder, accuracy=0.5))
    first = (folder / "record.json").read_bytes()
    store.publish(attempt, stage, {**record_of(folder, accuracy=0.5), "seconds": 9.0})
    assert (folder / "record.json").read_bytes() == first
    with pytest.raises(DamagedStore, match="disagrees"):
        store.publish(attempt, stage, record_of(folder, accuracy=0.6))
    assert (folder / "record.json").read_bytes() == first
    assert json.loads((folder / "record-attempt-000001.json").read_text())["metrics"] == {"accuracy": 0.6}


@pytest.mark.parametrize(
    "damage",
    [
        lambda folder: (folder / "record.json").write_text("{"),
        lambda folder: (folder / "record.json").write_text("[]"),
        lambda folder: forge(folder / "record.json", weights=None),
        lambda folder: forge(folder / "record.json", seconds="1"),
        lambda folder: forge(folder / "record.json", metrics={"accuracy": "0.5"}),
        lambda folder: forge(folder / "record.json", code=["loop"]),
        lambda folder: (folder / "record.json").write_text((folder / "record.json").read_text().replace("0.5", "0.9")),
        lambda folder: (folder / "weights-7.safetensors").write_bytes(b"wei"),
        lambda folder: (folder / "weights-7.safetensors").unlink(),
    ],
)
def test_a_damaged_result_is_named_and_never_used(store: Store, damage: Any) -> None:
    stage, folder = pretraining(), store.folder(pretraining())
    attempt = store.claim(stage)
    assert attempt is not None
    store.publish(attempt, stage, record_of(folder, accuracy=0.5))
    record = store.record(stage)
    assert record is not None
    assert record["metrics"] == {"accuracy": 0.5}
    damage(folder)
    with pytest.raises(DamagedStore, match=f"{folder.name}.*Delete"):
        store.record(stage)


def test_half_a_character_in_an_attempt_is_damage(store: Store) -> None:
    stage = pretraining()
    attempt = store.claim(stage)
    assert attempt is not None
    store.finish(attempt, StageState.FAILED, "ValueError: x")
    end = attempt.path.with_suffix(".end.json")
    end.write_text(end.read_text().replace("ValueError", r"\ud800"))
    with pytest.raises(DamagedStore, match=rf"{end.name}.*Delete"):
        store.attempts(stage)


def test_changed_weights_of_the_same_size_are_found_before_use(store: Store) -> None:
    stage, folder = pretraining(), store.folder(pretraining())
    attempt = store.claim(stage)
    assert attempt is not None
    store.publish(attempt, stage, record_of(folder))
    assert store.weights(stage).read_bytes() == b"weights"
    (folder / "weights-7.safetensors").write_bytes(b"Weights")
    with pytest.raises(DamagedStore, match="weights-7"):
        store.weights(stage)


def test_a_folder_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for folder in (tmp_path / "file" / "runs", Path("/proc/runs")):
        with pytest.raises(InputError, match="--store"):
            cli.check_writable("--store", folder)
    cli.check_writable("--store", tmp_path / "new" / "runs")
    assert [entry.name for entry in tmp_path.iterdir()] == ["file"]


def test_another_users_process_is_judged_by_its_heartbeat(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where /proc hides other users' processes, a live owner looks gone."""
    attempt = store.claim(pretraining())
    assert attempt is not None
    facts = json.loads(attempt.path.read_text())
    attempt.path.write_text(json.dumps({**facts, "owner": {**facts["owner"], "pid": 2**30}}))
    monkeypatch.setattr(os, "getuid", lambda: 2**20)
    assert store.claim(pretraining()) is None
    monkeypatch.undo()
    assert store.claim(pretraining()) is not None


def test_an_owner_whose_start_nobody_could_read_is_judged_gone(store: Store) -> None:
    attempt = store.claim(pretraining())
    assert attempt is not None
    facts = json.loads(attempt.path.read_text())
    attempt.path.write_text(json.dumps({**facts, "owner": {**facts["owner"], "pid": 2**30, "start": None}}))
    assert store.claim(pretraining()) is not None


def test_copies_of_files_that_other_programs_make_are_no_attempts_and_no_checkpoints(store: Store) -> None:
    attempt = store.claim(pretraining())
    assert attempt is not None
    (attempt.path.with_name(f"{attempt.path.stem} 2.json")).write_text(attempt.path.read_text())
    folder = store.folder(pretraining())
    (folder / "checkpoints").mkdir()
    for name in ("step-00000004.json", "step-00000008 2.json"):
        (folder / "checkpoints" / name).touch()
    assert [each.path for each in store.attempts(pretraining())] == [attempt.path]
    assert newest_checkpoint(folder) == 4


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("old")

    def fail() -> None:
        with replacing(path) as temporary:
            temporary.write_text("new")
            raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        fail()
    assert [entry.name for entry in tmp_path.iterdir()] == ["file"]
    assert path.read_text() == "old"


def test_a_stage_set_aside_is_run_again_and_its_numbers_no_longer_count(store: Store) -> None:
    stage, folder = pretraining(), store.folder(pretraining())
    numbers = [{"accuracy": 0.5}, {"accuracy": 0.6}]
    asides = []
    for number in numbers:
        attempt = store.claim(stage)
        assert attempt is not None
        store.publish(attempt, stage, record_of(folder, **number))
        asides.append(store.set_aside(stage, [{"accuracy": 0.1}]))
        assert store.record(stage) is None
        assert not folder.exists()
        store.add(stage)
    assert [json.loads((aside / "record.json").read_text())["metrics"] for aside in asides if aside] == numbers
    assert all(aside is not None and aside.name.startswith(f"{folder.name}.before-") for aside in asides)
    assert all(number in store.replaced(stage) for number in (*numbers, {"accuracy": 0.1}))
    assert store.load(folder) == stage


def test_what_was_set_aside_while_it_was_computed_is_never_published(store: Store) -> None:
    stage = pretraining()
    attempt = store.claim(stage)
    assert attempt is not None
    record = record_of(store.folder(stage), accuracy=0.5)
    assert store.set_aside(stage) is not None
    for use in (
        lambda: store.started(attempt, 0, []),
        lambda: store.owns(attempt),
        lambda: store.publish(attempt, stage, record),
    ):
        with pytest.raises(DamagedStore, match="set aside or deleted while it was computed"):
            use()
    store.finish(attempt, StageState.REFUSED)
    assert not store.folder(stage).exists()
    assert store.claim(stage) is not None


def test_code_of_attempts_is_that_of_the_work_a_result_rests_on(store: Store) -> None:
    attempts = []
    for number, from_step in enumerate((0, 500, 0, 250, None)):
        attempt = store.claim(pretraining())
        assert attempt is not None
        attempt.facts["code"] = {"loop": [str(number)]}
        if from_step is not None:
            store.started(attempt, from_step, [])
        store.finish(attempt, StageState.INTERRUPTED)
        attempts.append(attempt)
    assert store.code(attempts[1]) == {"loop": ["0", "1"]}
    assert store.code(attempts[2]) == {"loop": ["2"]}
    assert store.code(attempts[3]) == {"loop": ["2", "3"]}


@pytest.mark.parametrize("slow", [False, True])
@pytest.mark.parametrize("count", [0, 1, 8, 9, 100])
def test_many_files_are_read_as_a_loop_would_whether_the_disk_is_slow_or_not(
    count: int, slow: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "PATIENCE_SECONDS", 0.0005 if slow else 60.0)
    threads = set()

    def read(item: int) -> int:
        time.sleep(0.002)
        threads.add(threading.get_ident())
        if item in (60, 90):
            raise DamagedStore(f"item {item}")
        return -item

    assert in_threads(read, range(min(count, 50))) == [-item for item in range(min(count, 50))]
    assert (len(threads) > 1) is (slow and count > 8)
    if count == 100:
        with pytest.raises(DamagedStore, match="item 60"):
            in_threads(read, range(count))
