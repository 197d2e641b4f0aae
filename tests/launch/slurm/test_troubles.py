"""Failures of the environment: when they are a node's, a stage's or a grid's."""

import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

from bench.launch.slurm import troubles
from bench.launch.slurm.troubles import FAILED_ALIKE, Trouble
from bench.store.files import create_json

LIST, STAGE = "68f1c2d09b7e4a51", "finetune-digits-1a2b3c4d5e6f7a8b"


def add(
    root: Path, *nodes: str, stage: str = "", worklist: str = LIST, reason: str = "no GPU", age: float = 60
) -> None:
    """Add one trouble on each of these nodes."""
    for node in nodes:
        facts: dict[str, Any] = {"time": time.time() - age, "node": node, "job": "7_0", "worklist": worklist}
        number = len(list((root / ".slurm" / "troubles").glob("*"))) if (root / ".slurm").is_dir() else 0
        path = root / ".slurm" / "troubles" / f"{number:016x}.json"
        assert create_json(path, {**facts, "stage": stage, "reason": reason})


def stop(root: Path, failed: Sequence[str] = (), finished: int = 0, only_node: bool = False) -> str | None:
    with mock.patch.object(troubles, "count_finished", return_value=finished):
        return troubles.stop_if_hopeless(root, LIST, failed, only_node)


def test_what_is_noted_is_read_again_oldest_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert troubles.read(tmp_path) == []
    monkeypatch.setenv("SLURMD_NODENAME", "n1")
    troubles.note(tmp_path, "7_0", LIST, STAGE, "no GPU")
    add(tmp_path, "n2", age=600)
    (tmp_path / ".slurm" / "troubles" / "damaged.json").write_text("{")
    first, second = troubles.read(tmp_path)
    assert (first.node, second.node) == ("n2", "n1")
    assert second == Trouble(second.time, "n1", "7_0", LIST, STAGE, "no GPU")


def test_what_a_later_version_noted_is_read(tmp_path: Path) -> None:
    """Jobs run a copy of the code as it was when they were submitted."""
    troubles.note(tmp_path, "7_0", LIST, STAGE, "no GPU", "n1")
    (path,) = (tmp_path / ".slurm" / "troubles").glob("*.json")
    path.write_text(json.dumps({**json.loads(path.read_text()), "severity": 3}))
    (trouble,) = troubles.read(tmp_path)
    assert (trouble.node, trouble.reason) == ("n1", "no GPU")


def test_where_nothing_can_be_written_nothing_is_raised(tmp_path: Path) -> None:
    (tmp_path / ".slurm").touch()  # no folder: whatever is to be written below it fails
    troubles.note(tmp_path, "7_0", LIST, STAGE, "no GPU")
    assert troubles.read(tmp_path) == [] and troubles.excluded(tmp_path) == {}
    troubles.note_success(tmp_path)
    assert "failed alike" in (stop(tmp_path, ["no GPU"] * FAILED_ALIKE) or "")


def test_a_failing_line_of_the_setup_is_a_trouble(tmp_path: Path) -> None:
    folder = tmp_path / ".slurm" / "troubles"
    folder.mkdir(parents=True)
    (folder / "setup-17_3-0.txt").write_text(f"1760674512\nn1\n127\nmodule load cuda\n{LIST}\n")
    (folder / "setup-17_4-0.txt").write_text("")  # half written
    (folder / "setup-17_5-1.txt").write_text("1760674513\nn2\n127\nmodule load cuda\n")  # of an earlier version
    reason = "a line of slurm.setup failed with exit status 127: module load cuda"
    assert troubles.read(tmp_path) == [
        Trouble(1760674512.0, "n1", "17_3", LIST, "", reason),
        Trouble(1760674513.0, "n2", "17_5", "", "", reason),
    ]


def test_a_setup_that_fails_on_every_node_stops_the_grid_and_blames_no_node(tmp_path: Path) -> None:
    folder = tmp_path / ".slurm" / "troubles"
    folder.mkdir(parents=True)
    for number, node in enumerate(("n1", "n1", "n1", "n2", "n2", "n2")):
        assert stop(tmp_path) is None
        text = f"{int(time.time())}\n{node}\n127\nmodule load cuda\n{LIST}\n"
        (folder / f"setup-17_{number}-0.txt").write_text(text)
    assert troubles.excluded(tmp_path).keys() == {"n1", "n2"}
    assert "exit status 127: module load cuda" in (stop(tmp_path) or "")
    assert troubles.excluded(tmp_path) == {}


def test_a_node_with_three_troubles_is_excluded_until_it_finished_a_stage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    add(tmp_path, "n1", "n1", "n2")
    assert troubles.excluded(tmp_path) == {}
    add(tmp_path, "n1", reason="the last one")
    assert troubles.excluded(tmp_path) == {"n1": "the last one"}
    monkeypatch.setenv("SLURMD_NODENAME", "n1")
    troubles.note_success(tmp_path)
    assert troubles.excluded(tmp_path) == {}


def test_a_node_is_tried_again_after_a_day(tmp_path: Path) -> None:
    add(tmp_path, "n1", "n1", "n1", age=troubles.FORGOTTEN_SECONDS + 60)
    assert troubles.excluded(tmp_path) == {}


@pytest.mark.parametrize(
    ("nodes", "given_up"),
    [("abc", True), ("ab", False), ("aaaaa", False), ("aaaaaa", True)],
)
def test_a_stage_is_given_up_after_three_nodes_or_six_times(nodes: str, given_up: bool, tmp_path: Path) -> None:
    add(tmp_path, *nodes, stage=STAGE)
    add(tmp_path, *"abc", stage=STAGE, worklist="another")
    add(tmp_path, *"abc")  # of no stage
    assert troubles.given_up(tmp_path, LIST).keys() == ({STAGE} if given_up else set())
    if given_up:
        assert ", ".join(sorted(set(nodes))) in troubles.given_up(tmp_path, LIST)[STAGE]


def test_nodes_are_not_blamed_for_what_is_a_stages_fault(tmp_path: Path) -> None:
    add(tmp_path, *"aaa", stage=STAGE)
    assert troubles.excluded(tmp_path).keys() == {"a"}
    add(tmp_path, *"bbb", stage=STAGE)
    assert troubles.excluded(tmp_path) == {}
    add(tmp_path, *"cccccc", stage="another")  # tried nowhere else: it may be either's
    assert troubles.excluded(tmp_path).keys() == {"c"}


def test_nodes_are_not_blamed_for_what_is_a_grids_fault(tmp_path: Path) -> None:
    add(tmp_path, *"aaabbb")
    assert troubles.excluded(tmp_path).keys() == {"a", "b"}
    assert stop(tmp_path) is not None
    assert troubles.excluded(tmp_path) == {}


@pytest.mark.parametrize(
    ("nodes", "finished", "only_node", "stops"),
    [
        ("abc", 0, False, True),
        ("abc", 1, False, False),
        ("aaabbb", 0, False, True),
        ("aaabb", 0, False, False),
        ("aaaaaaaa", 0, False, False),  # a broken node that started eight jobs at once
        ("aaaaaa", 0, True, True),
        ("aaaaa", 0, True, False),
    ],
)
def test_a_grid_of_which_nothing_can_be_begun_is_stopped(
    nodes: str, finished: int, only_node: bool, stops: bool, tmp_path: Path
) -> None:
    add(tmp_path, *nodes)
    add(tmp_path, *"xyz", worklist="another")
    assert (stop(tmp_path, finished=finished, only_node=only_node) is not None) == stops
    assert (troubles.stopped(tmp_path, LIST) is not None) == stops
    assert troubles.stopped(tmp_path, "another") is None


def test_troubles_of_different_kinds_do_not_stop_a_grid(tmp_path: Path) -> None:
    for node, reason in zip("abc", ("no GPU", "the disk is full", "no such library"), strict=True):
        add(tmp_path, node, reason=reason)
    assert stop(tmp_path) is None


def test_a_grid_whose_stages_fail_alike_is_stopped_and_says_why(tmp_path: Path) -> None:
    failed = [f"FileNotFoundError: /data/{number}.npy" for number in range(FAILED_ALIKE)]
    assert stop(tmp_path, failed[1:]) is None
    assert stop(tmp_path, ["out of memory", *failed[1:]]) is None
    assert stop(tmp_path, failed, finished=FAILED_ALIKE) is None
    reason = stop(tmp_path, ["out of memory", *failed])
    assert reason is not None and f"{FAILED_ALIKE} stages failed alike" in reason and failed[-1] in reason
    assert stop(tmp_path, finished=100) == troubles.stopped(tmp_path, LIST) == reason


def test_reasons_are_alike_whatever_numbers_paths_and_names_they_hold() -> None:
    reasons = ["no file /a/b.npy for 'cats'", "out of memory", "no file /c.npy for 'dogs'", "exit status 1"]
    assert troubles.most_alike(reasons) == [0, 2]
    assert troubles.most_alike([]) == []
