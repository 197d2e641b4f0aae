"""What Slurm says of partitions and nodes, read from a stand-in for its programs."""

from __future__ import annotations

import pytest

from bench.launch.slurm import client, partitions
from bench.launch.slurm.client import SlurmError
from bench.launch.slurm.partitions import Node

PARTITIONS = """\
PartitionName=main Default=YES GraceTime=0 MaxTime=1-00:00:00
PartitionName=long Default=NO GraceTime=20 MaxTime=UNLIMITED
"""


def test_partitions_are_read_by_name_or_the_default_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "ask", lambda *_: PARTITIONS)
    assert [settings["PartitionName"] for settings in partitions.chosen(None)] == ["main"]
    assert [settings["GraceTime"] for settings in partitions.chosen("long,main")] == ["20", "0"]
    with pytest.raises(SlurmError, match=r"there is no partition 'mian'\. Did you mean 'main'.*long"):
        partitions.chosen("long,mian")
    monkeypatch.setattr(client, "ask", lambda *_: PARTITIONS.replace("YES", "NO"))
    with pytest.raises(SlurmError, match="there is no default partition"):
        partitions.chosen(None)


def test_nodes_are_read_with_marks_taken_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "ask", lambda *_: "main*|gpu:2|8+|16000+|n1|idle\nlong|(null)|64|256000|n3|drained\n")
    assert partitions.nodes() == [
        Node("main", 2, 8, 16000, "n1", "idle"),
        Node("long", 0, 64, 256000, "n3", "drained"),
    ]


@pytest.mark.parametrize(
    ("gres", "count"),
    [
        ("gpu", 1),
        ("gpu:2", 2),
        ("gpu:a100", 1),
        ("gpu:a100:4(S:0-1),tmp:5", 4),
        ("gpu:a100:1,gpu:2", 3),
        ("gpu:3g.20gb", 1),
        ("gpu:3g.20gb:2(S:0,2)", 2),
        ("tmp:5", 0),
        ("(null)", 0),
    ],
)
def test_gpus_in_slurms_words(gres: str, count: int) -> None:
    assert partitions.gpu_count(gres) == count
