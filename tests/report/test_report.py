"""The command: one file that loads nothing, in which names stay text, of records alone or of a store."""

import base64
import hashlib
import json
import math
import re
import zlib
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from bench.errors import InputError
from bench.report.__main__ import main, packed
from tests.report.sample import HOSTILE, sample, write
from tests.tables.test_records import Workspace

COMMITTED = sorted((Path(__file__).parents[2] / "results").glob("*.html"))


class Elements(HTMLParser):
    """The elements of a page with their attributes, and the text of its scripts."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag == "script":
            self.scripts.append("")

    def handle_data(self, data: str) -> None:
        if self.elements and self.elements[-1][0] == "script":
            self.scripts[-1] += data

    def handle_endtag(self, tag: str) -> None:
        if tag == "script":
            self.elements.append(("/script", {}))


def unpacked(text: str) -> Any:
    def refuse(constant: str) -> None:
        raise AssertionError(f"a browser cannot read {constant}")

    return json.loads(zlib.decompress(base64.b64decode(text)), parse_constant=refuse)


def shown(page: Path) -> dict[str, Any]:
    """The data of a page."""
    data: dict[str, Any] = unpacked(Elements(page.read_text(encoding="utf-8")).scripts[0])
    return data


@pytest.fixture
def workspace(prepared: Path, tmp_path: Path) -> Workspace:
    return Workspace(tmp_path, prepared)


def test_records_alone_make_a_page_that_loads_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    records, output = write(sample(["finetune", "mars"], ["digits"], [0, 1]), tmp_path), tmp_path / "new" / "page.html"
    assert main(["--records", str(records), "--output", str(output)]) == 0
    assert capsys.readouterr().out == f"report: {output}\n"
    page = Elements(output.read_text(encoding="utf-8"))
    assert not any("src" in attributes for _, attributes in page.elements)
    assert [facts["href"] for _, facts in page.elements if "href" in facts] == ["data:,"]
    assert "url(" not in output.read_text() and "@import" not in output.read_text()
    (policy,) = [facts["content"] for _, facts in page.elements if "content-security-policy" in str(facts).lower()]
    assert policy is not None and policy.startswith("default-src 'none'")
    (allowed,) = re.findall(r"script-src '(\S+)'", policy)
    assert allowed == "sha256-" + base64.b64encode(hashlib.sha256(page.scripts[1].encode()).digest()).decode()
    assert shown(output)["store"] is None


@pytest.mark.parametrize("page", COMMITTED, ids=[page.stem for page in COMMITTED])
def test_a_committed_page_is_that_of_its_records(page: Path, tmp_path: Path) -> None:
    """But for its figures: how they are drawn depends on the version of matplotlib."""
    assert main(["--records", str(page.with_suffix("") / "records.jsonl"), "--output", str(tmp_path / page.name)]) == 0
    committed, written = shown(page), shown(tmp_path / page.name)
    for figure in (*committed["figures"], *written["figures"]):
        del figure["svg"]
    assert committed == written


def test_a_name_that_is_html_or_a_template_stays_text(tmp_path: Path) -> None:
    name = f"{HOSTILE} & ${{style}} \udcff"
    content = sample([HOSTILE, "$data"], [HOSTILE], [0], legend=(HOSTILE,), name=name.removesuffix(" \udcff"))
    output = tmp_path / "page.html"
    assert main(["--records", str(write(content, tmp_path)), "--output", str(output)]) == 0
    page = Elements(output.read_text(encoding="utf-8"))
    assert len(page.scripts) == 2 and not any(tag == "img" for tag, _ in page.elements)
    assert shown(output)["rows"] == [HOSTILE, "$data"]
    assert shown(output)["tasks"][0]["name"] == HOSTILE


def test_what_a_cell_shares_with_its_own_stage_stands_once(tmp_path: Path) -> None:
    content, output = sample(["finetune", "mars"], ["digits"], [0, 1]), tmp_path / "page.html"
    other = list(content.cells.values())[-1]
    other |= {"metrics": {**other["metrics"], "mcc": 0.25}, "provenance": {**other["provenance"], "device": "Another"}}
    main(["--records", str(write(content, tmp_path)), "--output", str(output)])
    *same, changed = shown(output)["cells"]
    stages = shown(output)["stages"]
    for cell in same:
        assert "metrics" not in cell
        assert stages[cell["key"]]["metrics"]["accuracy"] == pytest.approx(cell["value"] / 100)
        assert set(cell["stages"]) <= stages.keys()
    assert changed["metrics"]["mcc"] == 0.25


def test_data_come_back_with_short_checksums_and_named_numbers() -> None:
    key = "0123456789abcdef" * 4
    data = {key: [key, 0.1, None, True, f"not {key}", HOSTILE], "__proto__": {"infinite": [math.inf, math.nan]}}
    assert unpacked(packed(data)) == {
        key[:16]: [key[:16], 0.1, None, True, f"not {key}", HOSTILE],
        "__proto__": {"infinite": ["Infinity", "NaN"]},
    }


def test_a_store_adds_curves_and_logs(workspace: Workspace) -> None:
    store = workspace.store("some", range(8))
    stage = workspace.plan(store).cells[0].stage
    (store.folder(stage) / "curve.jsonl").write_text('{"step": 1, "loss": 2.0}\n{"step": 2, "loss": 1.0}\n')
    (store.folder(stage) / "log.txt").write_text(f"{HOSTILE}\n")
    arguments = ["--gin", str(workspace.gin), "--data", str(workspace.data), "--results", str(workspace.results)]
    assert main([*arguments, "--store", str(store.root)]) == 0
    data = shown(workspace.results / "tiny.html")
    assert data["store"][stage.key[:16]] == {"curve": [[1, 2.0], [2, 1.0]], "log": f"{HOSTILE}\n"}
    assert len(data["cells"]) == 8
    assert data["stages"][stage.key[:16]]["spec"]["objective"]["type"] == "CrossEntropy"


def test_the_report_of_a_store_is_that_of_its_records(workspace: Workspace) -> None:
    store = workspace.store("some", [0, 1, 5])
    workspace.collate(store)
    arguments = ["--gin", str(workspace.gin), "--data", str(workspace.data), "--results", str(workspace.results)]
    main([*arguments, "--store", str(store.root), "--output", str(workspace.folder / "store.html")])
    main(
        [
            "--records",
            str(workspace.results / "tiny" / "records.jsonl"),
            "--output",
            str(workspace.folder / "file.html"),
        ]
    )
    of_store, of_file = shown(workspace.folder / "store.html"), shown(workspace.folder / "file.html")
    assert of_store.pop("store") is not None and of_file.pop("store") is None
    assert of_store == of_file


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ([], "--gin"),
        (["--gin", "a.gin", "--records", "records.jsonl"], "not both"),
        (["--records", "nowhere/records.jsonl"], "no such file"),
        (["--gin", "quickstart.gin", "--store", "nowhere"], "no such folder"),
        (["--records", "records.jsonl", "--output", "folder"], "folder"),
        (["--records", "records.jsonl", "--output", "records.jsonl/page.html"], "--output"),
        (["--records", "records.jsonl", "--output", "folder/../records.jsonl"], "one of --records"),
    ],
)
def test_arguments_that_mean_nothing_are_refused(
    arguments: list[str], named: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write(sample(["finetune"], ["digits"], [0]), tmp_path)
    (tmp_path / "folder").mkdir()
    with pytest.raises(InputError, match=named):
        main(arguments)


def test_a_damaged_line_is_told_and_a_damaged_file_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    records = write(sample(["finetune"], ["digits"], [0]), tmp_path)
    text = records.read_text()
    records.write_text(text + "{}\n")
    assert main(["--records", str(records), "--output", str(tmp_path / "page of the rest.html")]) == 1
    assert "records.jsonl:3" in capsys.readouterr().err
    records.write_text("{}\n" + text)
    with pytest.raises(InputError, match=r"records\.jsonl:1"):
        main(["--records", str(records), "--output", str(tmp_path / "page.html")])
    assert not (tmp_path / "page.html").exists()
