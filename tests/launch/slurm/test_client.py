"""How Slurm is asked for jobs, and what its answers mean: with programs that stand in for Slurm's."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from bench.launch.slurm import client
from bench.launch.slurm.client import SlurmError
from tests.launch.slurm.conftest import Fake


def _names(count: int) -> list[str]:
    token = f"{int(time.time() - 60):08x}"
    return [f"bench-image-{token}{number:08x}" for number in range(count)]


def _calls(log: Path) -> list[str]:
    return log.read_text().splitlines() if log.exists() else []


def _asked_for(option: str, calls: list[str]) -> list[str]:
    """The words of an option, over all calls."""
    words = [word.removeprefix(option) for call in calls for word in call.split() if word.startswith(option)]
    return [item for word in words for item in word.split(",")]


def test_node_time_exit_code_and_comment_of_jobs(fake: Fake) -> None:
    (name,) = _names(1)
    now = int(time.time())
    fake(
        "squeue",
        f"7_0   |{name}   |RUNNING   |{now}  |{now}  |None  |n1     |1-00:01:02 |0   |a stage | with a bar  \n"
        f"7_1   |{name}   |PENDING   |{now}  |N/A    |Priority |    |0:00       |0   |(null)\n"
        f"7_2   |{name}   |FAILED    |{now}  |{now}  |NonZeroExitCode |n2 |INVALID |768 |(null)\n",
    )
    fake("sacct", f"7_3|{name}|OUT_OF_MEMORY|{now}|{now}|None|n[1-2]|00:02:05|0:125|\n")
    states = client.queue([name])
    running, pending, failed, killed = (states[f"7_{index}"] for index in range(4))
    assert (running.node, running.elapsed_s, running.exit_code) == ("n1", 86462, "")
    assert running.comment == "a stage | with a bar" and running.reason == ""
    assert (pending.node, pending.exit_code, pending.comment, pending.reason) == ("", "", "", "Priority")
    assert (failed.node, failed.elapsed_s, failed.exit_code) == ("n2", None, "3:0")
    assert (killed.node, killed.elapsed_s, killed.exit_code) == ("n[1-2]", 125, "0:125")


@pytest.mark.parametrize(
    ("expected", "asked"),
    [
        ([], []),
        (["7_0", "7_1", "7", "8"], []),
        (["7_0", "7_2", "7_3"], ["7"]),
        (["9", "7_0", "8_5", "9_1"], ["9", "8"]),
    ],
)
def test_accounting_is_asked_only_for_what_left_the_queue(expected: list[str], asked: list[str], fake: Fake) -> None:
    (name,) = _names(1)
    now = int(time.time())
    fake("squeue", "".join(f"{job}|{name}|RUNNING|{now}|{now}|None\n" for job in ("7_0", "7_1", "8_4")))
    log = fake("sacct", f"7_2|{name}|COMPLETED|{now}|{now}\n7_0|{name}|FAILED|{now}|{now}\n")
    states = client.queue([name], expected)
    assert _asked_for("--jobs=", _calls(log)) == asked
    assert len(_calls(log)) == (1 if asked else 0)
    assert "--name" not in "".join(_calls(log))
    assert states["7_0"].state == "RUNNING"  # requeued, say: what the queue says of it counts
    assert ("7_2" in states) == bool(asked)


def test_an_id_that_belongs_to_another_job_by_now_is_not_ours(fake: Fake) -> None:
    (name,) = _names(1)
    fake("squeue")
    fake("sacct", f"7_0|somebody-elses|COMPLETED|{int(time.time())}|None\n")
    assert client.queue([name], ["7_0"]) == {}


def test_many_names_are_asked_for_in_several_calls_and_nothing_else_is(fake: Fake) -> None:
    names = _names(5000)
    now = int(time.time())
    queue = fake("squeue", f"7_0|{names[0]}|RUNNING|{now}|{now}|None\n8_0|{names[-1]}|RUNNING|{now}|{now}|None\n")
    accounting = fake("sacct")
    assert set(client.queue(names)) == {"7_0", "8_0"}
    for log in (queue, accounting):
        assert _asked_for("--name=", _calls(log)) == names
        assert len(_calls(log)) == 2 and max(map(len, _calls(log))) < 128 * 1024
    accounting.unlink()
    client.queue(names[:1], [f"{number}_0" for number in range(10**6, 10**6 + 20_000)])
    assert len(_asked_for("--jobs=", _calls(accounting))) == 20_000
    assert len(_calls(accounting)) == 2


def test_jobs_of_the_whole_group_are_asked_for(fake: Fake) -> None:
    queue, accounting = fake("squeue"), fake("sacct")
    client.queue(_names(1))
    assert not any(word in f"{_calls(queue)}" for word in ("--user", "--me"))
    assert "--allusers" in _calls(accounting)[0]


def test_every_program_is_waited_for_a_bounded_time(fake: Fake, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "QUERY_SECONDS", 0.3)
    fake("squeue")
    program = fake("sacct").with_name("sacct")
    program.write_text("#!/bin/sh\nexec sleep 60\n")
    began = time.monotonic()
    assert client.queue(_names(1)) == {}
    fake("sacct")
    program.with_name("squeue").write_text("#!/bin/sh\nexec sleep 60\n")
    with pytest.raises(SlurmError, match="squeue did not answer"):
        client.queue(_names(1))
    assert time.monotonic() - began < 20


@pytest.mark.parametrize(
    ("text", "code"), [("0", "0:0"), ("768", "3:0"), ("9", "0:9"), ("4021", "0:53"), ("137:0", "137:0"), ("", "")]
)
def test_exit_codes_of_both_programs_read_alike(text: str, code: str) -> None:
    assert client._exit_code(text) == code


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("UNLIMITED", float("inf")), ("30:00", 1800), ("2:00:00", 7200), ("1-00:00:00", 86400), ("3-12:30:15", 304215)],
)
def test_durations_in_slurms_words(text: str, seconds: float) -> None:
    assert client.limit_seconds(text) == seconds
