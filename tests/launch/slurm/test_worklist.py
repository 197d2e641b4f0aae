"""Worklists: what is listed of a plan, and their files."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from bench.errors import DamagedStore
from bench.launch.slurm import ledger, worklist
from bench.specs import Stage, walk
from bench.specs.cluster import Cluster
from tests.examples import finetuning, pretraining, tiny_backbone

CLUSTERS = {
    "source_pretrain": Cluster(mem_gb=16.0, extra=("exclude=n1",)),
    "finetune": Cluster(setup=("module load x",)),
    "self_distill": Cluster(),
    "unused": Cluster(),
}


def chain() -> list[Stage]:
    """A pre-training, a fine-tuning of it, and a self-distillation of that."""
    tuned = finetuning()
    distilled = finetuning(name="self_distill_2", init=tuned, backbone=tuned.backbone, head="fresh", seed=9)
    return list(walk(distilled))


def test_generations_parents_and_steps_ahead() -> None:
    listed = worklist.worklist("t", chain(), {chain()[1].key: 2}, CLUSTERS)
    assert [entry.kind for entry in listed.entries] == ["source_pretrain", "finetune", "self_distill"]
    assert [entry.generation for entry in listed.entries] == [0, 1, 2]
    assert [entry.parents[-1:] for entry in listed.entries] == [(), (0,), (1,)]
    assert [entry.ahead for entry in listed.entries] == [30, 20, 10]
    assert [entry.attempts for entry in listed.entries] == [0, 2, 0]
    assert listed.widths() == [{"source_pretrain": 1}, {"finetune": 1}, {"self_distill": 1}]
    assert {*listed.clusters} == {"source_pretrain", "finetune", "self_distill"}, "of kinds that are listed"


def test_a_parent_that_is_done_is_not_waited_for() -> None:
    listed = worklist.worklist("t", chain()[1:], {}, CLUSTERS)
    assert [(entry.parents, entry.generation) for entry in listed.entries] == [((), 0), ((0,), 1)]


def test_the_longest_chain_behind_a_stage_counts() -> None:
    parent = pretraining()
    tuned = [finetuning(backbone=tiny_backbone(weights=parent), seed=seed) for seed in range(3)]
    listed = worklist.worklist("t", [parent, *tuned, pretraining(seed=8)], {}, CLUSTERS)
    assert [entry.ahead for entry in listed.entries] == [20, 10, 10, 10, 10]


def test_what_is_written_is_read(tmp_path: Path) -> None:
    listed = worklist.worklist("68f1c2d0", chain(), {}, CLUSTERS)
    worklist.write(tmp_path, listed)
    assert worklist.read(tmp_path, "68f1c2d0") == listed
    empty = worklist.worklist("68f1c2d1", [], {}, CLUSTERS)
    worklist.write(tmp_path, empty)
    assert worklist.read(tmp_path, "68f1c2d1") == empty
    assert (empty.last_generation, empty.widths()) == (-1, [])


@pytest.mark.parametrize("damage", ["gone", "empty", "half", "column"])
def test_a_damaged_file_is_refused_with_the_fix(damage: str, tmp_path: Path) -> None:
    worklist.write(tmp_path, worklist.worklist(f"68f1-{damage}", chain(), {}, CLUSTERS))
    path = ledger.folder(tmp_path) / "worklists" / f"68f1-{damage}.json"
    text = path.read_text()
    path.write_text({"empty": "", "half": text[: len(text) // 2]}.get(damage, text))
    if damage == "gone":
        path.unlink()
    if damage == "column":
        columns = json.loads(text)
        del columns["ahead"]
        path.write_text(json.dumps(columns))
    with pytest.raises(DamagedStore, match=rf"68f1-{damage}\.json.*cancel the grid's jobs"):
        worklist.read(tmp_path, f"68f1-{damage}")


def test_columns_of_different_lengths_are_damage(tmp_path: Path) -> None:
    worklist.write(tmp_path, worklist.worklist("68f1c2d2", chain(), {}, CLUSTERS))
    path = ledger.folder(tmp_path) / "worklists" / "68f1c2d2.json"
    columns = json.loads(path.read_text())
    columns["ahead"] = columns["ahead"][:-1]
    path.write_text(json.dumps(columns))
    with pytest.raises(DamagedStore, match=r"68f1c2d2\.json.*submit the grid again"):
        worklist.read(tmp_path, "68f1c2d2")


@pytest.mark.parametrize("column", [{"kind": ["x", "x", "x"]}, {"parents": [[], [2], []]}, {"parents": [[], [-1], []]}])
def test_a_kind_or_parent_that_is_not_listed_is_damage(column: dict[str, object], tmp_path: Path) -> None:
    token = ledger.new_token()
    worklist.write(tmp_path, worklist.worklist(token, chain(), {}, CLUSTERS))
    path = ledger.folder(tmp_path) / "worklists" / f"{token}.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **column}))
    with pytest.raises(DamagedStore, match=rf"{token}\.json.*not listed.*submit the grid again"):
        worklist.read(tmp_path, token)
