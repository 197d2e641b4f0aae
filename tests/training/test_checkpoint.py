"""A checkpoint says itself whose it is and after which step; names and markers are only believed where they agree."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from bench.training.checkpoint import Checkpoints

CPU = torch.device("cpu")
MINE = ("folder", "stage")


def saved(folder: Path, identity: tuple[str, ...] = MINE) -> Checkpoints:
    """Checkpoints after steps 2 and 4, each with its step as content."""
    checkpoints = Checkpoints(folder, identity)
    for step in (2, 4):
        checkpoints.save(step, {"value": torch.tensor(step)})
    return checkpoints


def test_the_newest_is_read_with_its_step(tmp_path: Path) -> None:
    checkpoints = saved(tmp_path)
    step, content = checkpoints.load(CPU) or (0, {})
    assert (step, content["value"].item(), checkpoints.warnings) == (4, 4, [])


def another_step(folder: Path) -> None:
    marker = folder / "step-00000004.json"
    marker.write_text(marker.read_text().replace('"step": 4', '"step": 3'))


def no_step(folder: Path) -> None:
    marker = folder / "step-00000004.json"
    marker.write_text(json.dumps({"sha256": json.loads(marker.read_text())["sha256"]}))


def another_shape(folder: Path) -> None:
    (folder / "step-00000004.json").write_text("[4]")


def another_name(folder: Path) -> None:
    for suffix in (".pt", ".json"):
        (folder / f"step-00000004{suffix}").rename(folder / f"step-00000006{suffix}")


def another_stage(folder: Path) -> None:
    saved(folder.with_name("other"), ("folder of another seed", "stage"))
    for suffix in (".pt", ".json"):
        shutil.copy(folder.with_name("other") / f"step-00000004{suffix}", folder)


def another_candidate(folder: Path) -> None:
    saved(folder.with_name("other"), ("folder", "what a search chose before"))
    for suffix in (".pt", ".json"):
        shutil.copy(folder.with_name("other") / f"step-00000004{suffix}", folder)


@pytest.mark.parametrize(
    "damage", [another_step, no_step, another_shape, another_name, another_stage, another_candidate]
)
def test_what_does_not_agree_is_passed_over_with_a_warning(damage: Callable[[Path], None], tmp_path: Path) -> None:
    folder = tmp_path / "mine"
    saved(folder)
    damage(folder)
    checkpoints = Checkpoints(folder, MINE)
    step, content = checkpoints.load(CPU) or (0, {})
    assert (step, content["value"].item()) == (2, 2)
    assert len(checkpoints.warnings) == 1


def test_a_checkpoint_of_an_older_version_is_not_believed(tmp_path: Path) -> None:
    checkpoints = saved(tmp_path)
    path = tmp_path / "step-00000004.pt"
    torch.save({"value": torch.tensor(4)}, path)
    from bench.store.files import sha256

    path.with_suffix(".json").write_text(json.dumps({"step": 4, "sha256": sha256(path)}))
    assert (checkpoints.load(CPU) or (0, {}))[0] == 2
    assert "older version" in checkpoints.warnings[0]
