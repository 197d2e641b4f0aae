"""`python -m bench.data`: what it lists, prepares and checks, how it ends; and the real data sets where they lie."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from bench import cli
from bench.data.manifest import read_manifest
from bench.data.subset import held_out_checksum
from bench.prepare import main


def command(*arguments: str) -> int:
    return cli.reporting_errors(lambda: main(arguments))


@pytest.fixture
def data(prepared: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(prepared, tmp_path / "data"))


@pytest.fixture
def reviews(tmp_path: Path) -> Path:
    """A folder of jsonl splits of acl_arc's shape in nothing but its names."""
    folder = tmp_path / "reviews"
    folder.mkdir()
    for split, copies in (("train", 4), ("test", 2)):
        rows = [{"text": f"{split} {word} {i}", "label": word} for i in range(copies) for word in ("good", "bad")]
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def test_everything_is_listed_with_what_is_prepared(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command("list", "--data", str(data)) == 0
    shown = capsys.readouterr().out
    lines = {line.split()[0]: line for line in shown.splitlines() if line.strip()}
    assert {"digits", "cub", "dtd_75_25", "mnli", "docstrings", "vit_mae_base", "vit_mae_tiny64"} <= lines.keys()
    assert "train 1297 / test 500" in lines["digits"]
    assert " no " in lines["cub"]


@pytest.mark.parametrize(("name", "says"), [("mnli_mismatched", "name mnli instead"), ("stsb", "regression")])
def test_what_is_no_data_set_of_its_own_says_why(
    name: str, says: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command("prepare", name, "--data", str(tmp_path)) == 2
    assert says in capsys.readouterr().err


def test_what_is_prepared_passes_its_check(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command("check", "--data", str(data)) == 0
    shown = capsys.readouterr().out
    for name in ("digits", "pydocs", "photographs", "docstrings"):
        assert f"{name}: train " in shown
    labels = pq.read_table(data / "digits" / "train.parquet").column("label").to_pylist()
    assert held_out_checksum(labels)[1] in shown
    assert "wrong" not in shown


RULE = "9cbbfdc60af3b210aa067a8168d4a78f75a5b5e06935e39c712b9d13f31d3c4d"


def test_the_rule_of_the_held_out_tenth_is_fixed() -> None:
    """Other positions would be another split under the same keys."""
    assert held_out_checksum([i % 3 for i in range(100)]) == (10, RULE)


def test_damage_is_found_and_named(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = data / "pydocs" / "train.parquet"
    table = pq.read_table(path)
    pq.write_table(table.slice(1), path)
    assert command("check", "pydocs", "--data", str(data)) == 1
    assert "wrong: train holds" in capsys.readouterr().out
    path.write_bytes(path.read_bytes()[:100])
    assert command("check", "pydocs", "--data", str(data)) == 1
    assert str(path) in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("prepare", "flowr"), "'flower'"),
        (("prepare", "docs_mlm"), "pre-trained by the suite"),
        (("prepare", "cub", "dogs", "--from", "."), "one name"),
        (("prepare", "cub", "--from", "nowhere"), "nowhere"),
        (("prepare", "digits", "--from", "."), "takes no files"),
        (("prepare", "vit_mae_base", "--from", "."), "config.json"),
        (("prepare", "cub", "--from", "."), "CUB_200_2011.tgz"),
        (("check", "cub"), "python -m bench.data prepare cub"),
    ],
)
def test_bad_input_is_refused_with_one_message(
    arguments: tuple[str, ...],
    message: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert command(*arguments, "--data", str(tmp_path / "data")) == 2
    shown = capsys.readouterr()
    assert message in shown.err
    assert shown.err.count("error:") == 1
    assert not [path for path in (tmp_path / "data").rglob("*") if path.is_file()]


def test_a_public_task_is_held_against_what_its_source_promises(
    reviews: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command("prepare", "acl_arc", "--from", str(reviews), "--data", str(tmp_path / "data")) == 2
    assert "1688" in capsys.readouterr().err
    assert read_manifest("acl_arc", tmp_path / "data") is None


def test_the_data_root_comes_from_the_environment(
    reviews: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BENCH_DATA", str(tmp_path / "elsewhere"))
    bindings = ["--set", f"mine/task.source = 'jsonl:{reviews}'"]
    assert command("prepare", "mine", *bindings) == 0
    manifest = read_manifest("mine", tmp_path / "elsewhere")
    assert manifest is not None
    assert manifest.splits["test"].per_class == (2, 2)
    assert command("check", "mine", *bindings) == 0
    (reviews / "test.jsonl").write_text((reviews / "train.jsonl").read_text())
    assert command("check", "mine", *bindings) == 1  # the source has changed


# ------------------------------------------------------------------------------------------------ real data


REAL = {
    "flower": (1_020, 1_020, 6_149, 102),
    "dogs": (12_000, None, 8_580, 120),
    "cifar100": (50_000, None, 10_000, 100),
    "chest_xray": (5_216, None, 624, 2),
    "scierc": (3_219, 455, 974, 7),
    "acl_arc": (1_688, 114, 139, 6),
    "chemprot": (4_169, 2_427, 3_469, 13),
    "twitter_emotion": (3_257, 374, 1_421, 4),
}
OWN = {"cub50": (1_500, None, 1_389, 50), "dtd10": (400, 400, 400, 10)}


@pytest.mark.group("data")
@pytest.mark.parametrize("name", [*REAL, *OWN])
def test_real_data_are_prepared_and_checked(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folders = Path(os.environ["BENCH_REAL_DATA"])
    pack = next(folder / name for folder in (folders / "images", folders / "text") if (folder / name).is_dir())
    bindings = ["--set", f"{name}/task.source = 'parquet:{pack}'", f"{name}/task.modality = 'image'"]
    arguments = bindings if name in OWN else ["--from", str(pack)]
    status = command("prepare", name, *arguments, "--data", str(tmp_path))
    shown = capsys.readouterr()
    empty = [path for path in pack.iterdir() if path.stat().st_size == 0]
    if empty:  # an incomplete copy of the pack must not pass for the data set
        assert status == 2
        assert str(empty[0]) in shown.err
        pytest.skip(f"{empty[0].parent.name}/{empty[0].name} is an empty file here")
    assert status == 0
    manifest = read_manifest(name, tmp_path)
    assert manifest is not None
    assert manifest.class_names is not None
    counts = tuple(
        manifest.splits[s].examples if s in manifest.splits else None for s in ("train", "validation", "test")
    )
    assert (*counts, len(manifest.class_names)) == {**REAL, **OWN}[name]
    assert command("check", name, *(bindings if name in OWN else []), "--data", str(tmp_path)) == 0
    assert "wrong" not in capsys.readouterr().out
