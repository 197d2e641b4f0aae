"""Manifests of both kinds, damaged field by field: the same facts or an error that names the file."""

import copy
import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from bench.data.manifest import Manifest, SplitFacts, read_manifest
from bench.errors import InputError
from bench.pretrained import checkpoints
from bench.pretrained.checkpoints import Prepared
from bench.store.manifest import write_manifest

TASK = Manifest(
    name="pets",
    modality="text",
    class_names=("cat", "dog"),
    splits={"train": SplitFacts(3, "a" * 64, (2, 1)), "test": SplitFacts(2, "b" * 64, (1, 1))},
    tokenizer_checksum=None,
    sources={"source": "csv"},
)
WEIGHTS = Prepared(
    name="mine",
    modality="text",
    source="folder:mine",
    repository=None,
    revision=None,
    checksum="a" * 64,
    weights_checksum="b" * 64,
    tokenizer_checksum="c" * 64,
    architecture={
        "width": 16,
        "depth": 1,
        "heads": 2,
        "mlp_width": 32,
        "norm_eps": 1e-12,
        "special_ids": [0, 1, 2, 3, 4],
    },
    fresh=("decoder.bias",),
    ignored=(),
)

Read = Callable[[], Any]


@pytest.fixture(params=["task", "checkpoint"])
def written(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Path, Read]:
    """The manifest of a task or checkpoint, and how it is read."""
    if request.param == "task":
        folder, facts, read = tmp_path / "pets", TASK, lambda: read_manifest("pets", tmp_path)
    else:
        folder, facts = tmp_path / "backbones" / "mine", WEIGHTS
        read = lambda: checkpoints.read("mine", tmp_path)  # noqa: E731
    folder.mkdir(parents=True)
    write_manifest(folder, facts)
    return folder / "manifest.json", read


def key_paths(value: Any, before: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Every field and entry of JSON data, as the keys that lead to it."""
    entries = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, entry in entries:
        yield (*before, key)
        yield from key_paths(entry, (*before, key))


def damaged(content: Any) -> Iterator[Any]:
    """The content with one field missing, or of every other type."""
    for *path, last in key_paths(content):
        for value in ("missing", None, True, -1, 3, 1.5, float("nan"), "x", [], ["x"], {}, {"x": 1}):
            changed = copy.deepcopy(content)
            parent = changed
            for key in path:
                parent = parent[key]
            if value != "missing":
                parent[last] = value
            else:
                del parent[last]
            if changed != content:
                yield changed


def test_a_manifest_reads_back_as_it_was_written(written: tuple[Path, Read]) -> None:
    assert written[1]() in (TASK, WEIGHTS)
    written[0].unlink()
    assert written[1]() is None


def test_no_changed_field_is_believed(written: tuple[Path, Read]) -> None:
    path, read = written
    content = json.loads(path.read_text())
    variants = [variant for variant in damaged(content) if "digest" in variant]
    assert len(variants) > 150
    for variant in variants:
        path.write_text(json.dumps(variant))
        with pytest.raises(InputError, match=str(path)):
            read()


def test_a_manifest_of_before_is_read_and_refused_where_its_shape_is_another(written: tuple[Path, Read]) -> None:
    path, read = written
    content = json.loads(path.read_text())
    del content["digest"]
    path.write_text(json.dumps(content))
    assert read() in (TASK, WEIGHTS)
    messages = []
    for variant in damaged(content):
        path.write_text(json.dumps(variant))
        try:
            assert read().name in ("pets", "mine")  # another legal value, which the files beside it contradict
        except InputError as error:
            messages.append(str(error))
    assert len(messages) > 100
    assert all(str(path) in text and f"Delete the folder {path.parent} " in text for text in messages)


@pytest.mark.parametrize("text", ["", "[]", "3", "null", "{", "[" * 100_000, "{}", '"x"', "\ufeff{}", "\x00"])
def test_text_that_is_no_manifest_is_refused(text: str, written: tuple[Path, Read]) -> None:
    path, read = written
    path.write_text(text, encoding="utf-8")
    with pytest.raises(InputError, match=str(path)):
        read()


@pytest.mark.parametrize(
    "facts",
    [
        {"splits": {"train": SplitFacts(5, "a", (2, 1))}},
        {"splits": {"train": SplitFacts(3, "a", (3,))}},
        {"splits": {"train": SplitFacts(1, "a", (2, -1))}},
        {"splits": {"train": SplitFacts(-1, "a", None)}},
        {"splits": {"test": SplitFacts(3, "a", (2, 1))}},
        {"splits": {"train": SplitFacts(3, "a", (2, 1)), "more": SplitFacts(3, "a", (2, 1))}},
        {"class_names": None},
        {"overlap": {"test": 1}},
        {"overlap": {"validation in train": 1}},
    ],
)
def test_facts_that_contradict_each_other_are_refused(facts: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "pets").mkdir()
    write_manifest(tmp_path / "pets", replace(TASK, **facts))
    with pytest.raises(InputError, match=r"manifest\.json"):
        read_manifest("pets", tmp_path)


def test_a_folder_or_file_in_its_place_is_refused(tmp_path: Path) -> None:
    (tmp_path / "pets" / "manifest.json").mkdir(parents=True)
    (tmp_path / "mine").write_text("a file")
    for name in ("pets", "mine"):
        with pytest.raises(InputError, match=str(tmp_path / name / "manifest.json")):
            read_manifest(name, tmp_path)
