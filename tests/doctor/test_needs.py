"""What the doctor says of one grid: each thing it lacks is a problem with the command that helps."""

from __future__ import annotations

import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest

from bench import device
from bench.doctor import __main__, computer
from bench.doctor.computer import Fact
from bench.doctor.needs import needs
from tests import tiny_grid

OWN = """
grid.rows = ['finetune']
grid.tasks = ['reviews']
reviews/task.source = 'csv:{folder}/reviews.csv'
reviews/task.backbone = '{backbone}'
"""


def facts(folder: Path, gin: str, data: Path) -> dict[str, list[Fact]]:
    """The facts about a grid by their verdict."""
    (folder / "grid.gin").write_text(gin)
    by_verdict: dict[str, list[Fact]] = {"ok": [], "warning": [], "problem": []}
    for fact in needs([str(folder / "grid.gin")], [], folder / "runs", data):
        by_verdict[fact.verdict].append(fact)
    return by_verdict


def test_a_grid_that_has_all_it_needs_is_well(tmp_path: Path, prepared: Path) -> None:
    tiny_grid.plan(tmp_path, prepared, ["finetune"])
    by_verdict = facts(tmp_path, (tmp_path / "tiny.gin").read_text(), prepared)
    assert not by_verdict["problem"] and not by_verdict["warning"]
    texts = " ".join(fact.text for fact in by_verdict["ok"])
    assert "digits: train " in texts and "--store " in texts and "training docs_mlm takes" in texts


def test_what_must_be_fetched_is_a_problem_with_its_command(tmp_path: Path) -> None:
    by_verdict = facts(tmp_path, "grid.rows = ['finetune']\ngrid.tasks = ['aircraft']\n", tmp_path / "data")
    fixes = {fact.text.partition(":")[0]: fact.fix for fact in by_verdict["problem"]}
    assert fixes.keys() == {"aircraft", "vit_mae_base"}
    assert "python -m bench.data prepare aircraft" in fixes["aircraft"]
    assert [fact.text for fact in by_verdict["warning"] if "days on a CPU" in fact.text]


def test_own_data_that_are_missing_or_changed_are_a_problem(tmp_path: Path, prepared: Path) -> None:
    data = Path(shutil.copytree(prepared, tmp_path / "data"))
    gin = OWN.format(folder=tmp_path, backbone="docs_mlm")
    (problem,) = facts(tmp_path, gin, data)["problem"]
    assert str(tmp_path / "reviews.csv") in problem.text
    rows = "".join(f"text {i},{'ab'[i % 2]}\n" for i in range(20))
    (tmp_path / "reviews.csv").write_text("text,label\n" + rows)
    assert not facts(tmp_path, gin, data)["problem"]
    from bench.planning.plan import make_plan

    make_plan([str(tmp_path / "grid.gin")], [], [], data, None).catalogue.prepare("reviews", data)
    assert not facts(tmp_path, gin, data)["problem"]
    (tmp_path / "reviews.csv").write_text("text,label\n" + rows.replace("text", "other"))
    (problem,) = facts(tmp_path, gin, data)["problem"]
    assert "has changed" in problem.text and "--again" in problem.fix
    (data / "reviews" / "test.parquet").unlink()
    (problem,) = facts(tmp_path, gin, data)["problem"]
    assert "test.parquet" in problem.text and "--again" in problem.fix


def test_nothing_is_said_of_the_size_of_weights_that_are_still_to_be_read(tmp_path: Path, prepared: Path) -> None:
    own = OWN.format(folder=tmp_path, backbone="mine") + f"mine/backbone.weights = 'folder:{tmp_path}/weights'\n"
    (tmp_path / "reviews.csv").write_text("text,label\n" + "".join(f"text {i},{'ab'[i % 2]}\n" for i in range(20)))
    (problem,) = facts(tmp_path, own, prepared)["problem"]
    assert str(tmp_path / "weights") in problem.text
    (tmp_path / "weights").mkdir()
    by_verdict = facts(tmp_path, own, prepared)
    assert any(fact.text.startswith("mine: is at hand") and "known then" in fact.text for fact in by_verdict["ok"])
    # Before, they were taken to be those of BERT-base: 110 million parameters.
    assert not by_verdict["warning"]
    assert not any(
        part in fact.text for fact in by_verdict["ok"] for part in ("weights and checkpoints", "training mine")
    )
    assert any("downloads and decoded images" in fact.text for fact in by_verdict["ok"]), (
        "what does not depend on it is told"
    )


def test_a_grid_that_cannot_be_planned_is_a_problem(tmp_path: Path) -> None:
    (problem,) = facts(tmp_path, "grid.rows = ['finetune']\ngrid.tasks = ['nothing']\n", tmp_path)["problem"]
    assert "there is no task 'nothing'" in problem.text


def test_too_little_disk_or_memory_is_a_problem(
    tmp_path: Path, prepared: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny_grid.plan(tmp_path, prepared, ["finetune"])
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=1000))
    monkeypatch.setattr(device, "free_memory", lambda _: 1000)
    problems = facts(tmp_path, (tmp_path / "tiny.gin").read_text(), prepared)["problem"]
    assert [fact.text.split(" ")[0] for fact in problems] in (
        ["--store", "cpu:"],
        ["--store", "--data", "cpu:"],
    )  # arrays of others
    assert all(fact.fix for fact in problems)


def test_the_command_looks_at_the_grid_it_is_given(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("packages", "devices"):
        monkeypatch.setattr(computer, name, lambda: iter(()))
    monkeypatch.setenv("PATH", str(tmp_path))  # no sbatch
    folders = ["--store", str(tmp_path / "runs"), "--data", str(tmp_path / "data")]
    (tmp_path / "cluster.gin").write_text("slurm.gpus = 0\n")
    assert __main__.main(["--gin", str(tmp_path / "cluster.gin"), *folders]) == 0
    assert "this grid" not in capsys.readouterr().out
    assert __main__.main(["--gin", "text.gin", *folders]) == 1
    shown = capsys.readouterr().out
    assert "this grid:" in shown and "  problem roberta_base: not prepared" in shown
