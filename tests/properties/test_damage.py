"""Whatever becomes of files in a store or of prepared data: the same numbers, or an error, never other numbers."""

import contextlib
import io
import itertools
import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bench import cli, grid
from bench.planning.plan import make_plan
from bench.store.states import StageState
from bench.store.store import Store
from bench.tables.records import read_records
from bench.training.protocol import Settings
from bench.training.worker import run
from tests import tiny_grid
from tests.properties.conftest import examples


class Site:
    """A grid on one task with its data; of two stages one is finished, the other interrupted in the middle."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.data, self.store = folder, folder / "data", Store(folder / "runs")
        self.gin = folder / "tiny.gin"

    @classmethod
    def make(cls, folder: Path, prepared: Path) -> "Site":
        folder.mkdir()
        tiny_grid.write(folder, ["finetune"], "grid.name = 'site'", "grid.checkpoint_steps = 1")
        site = cls(folder)
        site.gin.write_text(site.gin.read_text().replace("['digits', 'pydocs']", "['digits']"))
        for name in ("digits", "photographs"):
            shutil.copytree(prepared / name, site.data / name)
        plan = make_plan([str(site.gin)], [], [], site.data, site.store)
        for stage in plan.stages:
            site.store.add(stage)
        *parents, last = plan.stages
        for stage in parents:
            outcome = run(site.store.folder(stage), Settings(site.data), lambda: False, lambda *_: None)
            assert outcome.state == StageState.DONE
        asked = itertools.count()
        outcome = run(site.store.folder(last), Settings(site.data), lambda: next(asked) >= 2, lambda *_: None)
        assert outcome.state == StageState.INTERRUPTED
        # Made by a process that is gone: an attempt of this one that lost its end would be waited for, and rightly so.
        for path in site.store.root.glob("*/attempts/*.json"):
            path.write_text(re.sub(r'"start": "\d+"', '"start": "0"', path.read_text()))
        return site

    def files(self) -> list[str]:
        paths = (path for root in (self.store.root, self.data) for path in root.rglob("*") if path.is_file())
        return sorted(str(path.relative_to(self.folder)) for path in paths)

    def go_on(self) -> tuple[int, str]:
        """Run the grid; its exit status and all that it says."""
        said = io.StringIO()
        folders = ["--store", str(self.store.root), "--data", str(self.data), "--results", str(self.folder / "results")]
        arguments = ["--gin", str(self.gin), *folders, "--launcher", "inline", "--device", "cpu"]
        with contextlib.redirect_stderr(said), contextlib.redirect_stdout(said):
            code = cli.reporting_errors(lambda: grid.main(arguments))
        return code, said.getvalue()

    def metrics(self) -> list[dict[str, float]]:
        return [
            record["metrics"] for record in read_records(self.folder / "results" / "site" / "records.jsonl").values()
        ]


@pytest.fixture(scope="module")
def site(prepared: Path, tmp_path_factory: pytest.TempPathFactory) -> Site:
    return Site.make(tmp_path_factory.mktemp("damage") / "site", prepared)


@pytest.fixture(scope="module")
def true_metrics(site: Site, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, float]]:
    folder = tmp_path_factory.mktemp("true") / "site"
    shutil.copytree(site.folder, folder)
    undisturbed = Site(folder)
    assert undisturbed.go_on()[0] == 0
    return undisturbed.metrics()


def fields(data: Any, path: tuple[str | int, ...] = ()) -> Iterator[tuple[str | int, ...]]:
    if isinstance(data, dict | list):
        for name, value in data.items() if isinstance(data, dict) else enumerate(data):
            yield (*path, name)
            yield from fields(value, (*path, name))


def damage(path: Path, kind: str, where: int, value: Any) -> None:
    content = path.read_bytes()
    if kind == "delete":
        path.unlink()
    elif kind == "truncate":
        path.write_bytes(content[: where % (len(content) + 1)])
    elif kind == "flip" and content:
        position = where % len(content)
        path.write_bytes(content[:position] + bytes([content[position] ^ (1 << where % 8)]) + content[position + 1 :])
    elif kind in ("field", "no field") and path.suffix == ".json":
        data = json.loads(content)
        *outer, last = list(fields(data))[where % len(list(fields(data)))]
        inside = data
        for name in outer:
            inside = inside[name]
        if kind == "field":
            inside[last] = value
        else:
            del inside[last]
        path.write_text(json.dumps(data))


@settings(max_examples=examples(0.8))
@given(
    which=st.integers(0, 10**6),
    kind=st.sampled_from(["field", "field", "no field", "flip", "truncate", "delete"]),
    where=st.integers(0, 10**7),
    value=st.sampled_from([0, 1, 2, 7, -1, 5.5, "", "text", None, True, [], {}, [7], {"a": 1}, 10**30]),
)
def test_damaged_files_lead_to_the_same_numbers_or_to_an_error(
    which: int,
    kind: str,
    where: int,
    value: Any,
    site: Site,
    true_metrics: list[dict[str, float]],
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    folder = tmp_path_factory.mktemp("damaged") / "site"
    shutil.copytree(site.folder, folder)
    damaged = Site(folder)
    json_only = [name for name in damaged.files() if name.endswith(".json")]
    names = json_only if kind in ("field", "no field") else damaged.files()
    name = names[which % len(names)]
    damage(folder / name, kind, where, value)
    code, said = damaged.go_on()
    shutil.rmtree(folder / "data")
    assert "Traceback" not in said, (name, said)
    if code == 0:
        assert damaged.metrics() == true_metrics, (name, kind)
    else:
        assert Path(name).name.split(".")[0] in said or Path(name).parts[1] in said, (name, kind, said)
    shutil.rmtree(folder)
