"""The page in headless Chromium: it sorts, filters and opens cells, complains of nothing and asks for nothing."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from bench.report.__main__ import page as page_of
from bench.report.content import report
from bench.tables.records import RecordsFile
from tests.report.browser import Browser
from tests.report.sample import HOSTILE, records_of, sample
from tests.tables.test_verdicts import paper

pytestmark = pytest.mark.group("chromium")

ROWS = ["finetune", "mars", "r3f", HOSTILE]
TASKS = ["digits", "constructor", HOSTILE]
SECONDS = 3
"""How long a grid of 10,000 cells may take until its tables are there."""


def write(content: RecordsFile, folders: dict[str, Path] | None, path: Path) -> Path:
    path.write_text(page_of("sample", report(content, folders)), encoding="utf-8")
    return path


def hostile(folder: Path) -> Path:
    """A page in which every kind of name and text could be taken for HTML; with curves and logs."""
    content = sample(ROWS, TASKS, [0, 1], legend=(HOSTILE,), warnings=(HOSTILE,))
    cells = list(content.cells.values())
    cells[0]["activity"] = {HOSTILE: {"value": 0.0, "meaning": HOSTILE, "nil": True}}
    cells[0]["metrics"] = {**cells[0]["metrics"], HOSTILE: 0.5, "__proto__": 0.25}
    folders = {}
    for key, stage in content.stages.items():
        stage["spec"] |= {HOSTILE: HOSTILE, "__proto__": {"legal": 1}}
        folders[key] = folder / key
        folders[key].mkdir()
        (folders[key] / "log.txt").write_text(f"the last line {HOSTILE}\n")
        points = "".join(f'{{"step": {step}, "loss": {1 / step}}}\n' for step in range(1, 20))
        (folders[key] / "curve.jsonl").write_text(points)
    return write(content, folders, folder / "page #1 %3Cb%3E.html")


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with Browser(tmp_path_factory.mktemp("profile")) as each:
        yield each


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return hostile(tmp_path_factory.mktemp("page"))


@pytest.fixture
def page(browser: Browser, path: Path) -> Iterator[Browser]:
    """The page, opened anew; after each test it has complained of nothing and asked for nothing but itself."""
    browser.requests.clear()
    browser.show(1200)
    browser.open(path)
    yield browser
    while not browser.evaluate("[...document.images].every((image) => image.complete)"):
        pass  # read, or refused
    images = browser.evaluate("[...document.images].map((image) => [image.src, image.naturalWidth])")
    assert all(source.startswith("data:image/svg+xml,") and width > 0 for source, width in images)
    assert browser.complaints == []
    assert [address for address in browser.requests if not address.startswith("data:")] == [path.as_uri()]


def column(browser: Browser, table: str, number: int) -> list[str]:
    """The texts of a column of a table."""
    lines = f"[...document.querySelectorAll('#{table} tbody tr')]"
    texts: list[str] = browser.evaluate(f"{lines}.map((line) => line.children[{number}].textContent)")
    return texts


def click(browser: Browser, selector: str) -> None:
    browser.evaluate(f"document.querySelector({selector!r}).click()")


def test_the_tables_show_all_rows_as_text(page: Browser) -> None:
    assert column(page, "table", 0) == ROWS
    assert column(page, "answer", 0) == ROWS[1:]
    assert column(page, "answer", 1) == [
        "+1.02 [+0.71, +1.34] (n = 2)",
        "+2.00 (n = 2)",
        "+3.02 [+2.71, +3.34] (n = 2)",
    ]
    assert column(page, "table", 2) == ["60.05 ± 0.07 (2)", "61.07 ± 0.11 (2)", "62.05 ± 0.07 (2)", "63.07 ± 0.11 (2)"]
    assert page.evaluate("document.querySelector('#verdicts').textContent").startswith(
        "Better on every compared task, beyond the noise of the seeds: mars"
    )


def test_a_head_sorts_by_key_and_click_both_ways(page: Browser) -> None:
    page.evaluate("document.querySelectorAll('#cells th button')[4].focus()")
    page.press("Enter", "\r")
    values = [float(value) for value in column(page, "cells", 4)]
    assert len(values) == 24 and values == sorted(values)
    sort = "document.querySelectorAll('#cells thead th')[4].getAttribute('aria-sort')"
    assert page.evaluate(sort) == "ascending"
    page.press("Enter", "\r")
    assert [float(value) for value in column(page, "cells", 4)] == sorted(values, reverse=True)
    assert page.evaluate(sort) == "descending"
    page.evaluate("document.querySelectorAll('#cells thead th button')[2].click()")
    assert column(page, "cells", 2) == sorted(column(page, "cells", 2), key=str.lower)
    assert page.evaluate(sort) == "none"


def test_filters_keep_what_matches(page: Browser) -> None:
    page.evaluate(
        "f = document.querySelector('#cells-filter'); f.value = 'MARS /1'; f.dispatchEvent(new Event('input'))"
    )
    assert column(page, "cells", 0) == [f"mars/{task}/tiny/1" for task in TASKS]
    page.evaluate("s = document.querySelector('#cells-task'); s.value = 1; s.dispatchEvent(new Event('change'))")
    assert column(page, "cells", 0) == ["mars/constructor/tiny/1"]
    page.evaluate("f.value = 'nowhere'; f.dispatchEvent(new Event('input'))")
    assert column(page, "cells", 0) == []
    page.evaluate("t = document.querySelector('#table-filter'); t.value = 'img'; t.dispatchEvent(new Event('input'))")
    assert column(page, "table", 0) == [HOSTILE]


def test_an_entry_of_the_table_leads_to_its_cells(page: Browser) -> None:
    page.evaluate("document.querySelectorAll('#table tbody tr')[3].children[3].querySelector('button').click()")
    assert column(page, "cells", 0) == [f"{HOSTILE}/{HOSTILE}/tiny/{seed}" for seed in (0, 1)]
    assert page.evaluate("document.activeElement.textContent") == "Cells"


def test_a_cell_opens_to_all_that_is_behind_it(page: Browser) -> None:
    page.evaluate("document.querySelector('#cells tbody button').focus()")
    page.press("Enter", "\r")
    detail = "document.querySelector('td.detail')"
    text = page.evaluate(f"{detail}.innerText")
    for part in ("__proto__", "0.25", f"0: {HOSTILE} – it did nothing", "encoder_distance", "A processor", "seed 1"):
        assert part in text
    assert page.evaluate(f"[...{detail}.querySelectorAll('summary')].length") == 2
    page.evaluate(f"{detail}.querySelectorAll('details')[1].open = true")
    while not page.evaluate(f"{detail}.querySelector('pre.log') !== null"):
        pass  # the event of opening comes a moment later
    assert page.evaluate(f"{detail}.querySelector('pre.log').textContent") == f"the last line {HOSTILE}\n"
    assert page.evaluate(f"{detail}.querySelector('polyline').getAttribute('points').split(' ').length") == 19
    specification: str = page.evaluate(f"{detail}.querySelector('pre:last-child').textContent")
    for part in ('"lr": 0.001', '"legal": 1', f'"{HOSTILE}": "{HOSTILE}"'):
        assert part in specification
    click(page, "#cells tbody button")
    assert page.evaluate(f"{detail} === null")


@pytest.mark.parametrize("width", [390, 1200])
@pytest.mark.parametrize("colours", ["light", "dark"])
def test_the_page_fits_its_window_and_its_texts_can_be_read(page: Browser, width: int, colours: str) -> None:
    page.show(width, colours)
    click(page, "#cells tbody button")
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    # The contrast of WCAG 2 between a text and what lies behind it; 4.5 is what normal text needs.
    contrast = """(() => {
      const light = (colour) => colour.match(/[\\d.]+/g).slice(0, 3).map((v) => v / 255)
        .map((v) => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)
        .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
      const ground = (node) => {
        const colour = getComputedStyle(node).backgroundColor;
        return colour === 'rgba(0, 0, 0, 0)' ? ground(node.parentElement) : colour;
      };
      return Math.min(...['h1', '.quiet', '.better', '.warning', '#table button', 'th button', 'dt', 'dd', 'input']
        .map((selector) => document.querySelector(selector))
        .map((node) => [light(getComputedStyle(node).color), light(ground(node))].sort((a, b) => a - b))
        .map(([dark, bright]) => (bright + 0.05) / (dark + 0.05)));
    })()"""
    assert page.evaluate(contrast) >= 4.5


def test_the_page_prints(page: Browser) -> None:
    assert len(page.call("Page.printToPDF")["data"]) > 10_000
    page.show(800, "dark", "print")
    assert page.evaluate("getComputedStyle(document.querySelector('.filters')).display") == "none"
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"


def test_ten_thousand_cells_are_a_small_file_that_opens_fast(browser: Browser, tmp_path: Path) -> None:
    content = sample([f"row {number}" for number in range(20)], ["digits", "pydocs", "a", "b", "c"], range(100))
    path = write(content, None, tmp_path / "page.html")
    assert path.stat().st_size <= 5_000_000
    assert min(browser.open(path) for _ in range(2)) < SECONDS  # of two, as others may use the cores
    assert len(column(browser, "cells", 0)) == 200
    page: Any = "document.querySelector('#cells').closest('section')"
    browser.evaluate(f"[...{page}.querySelectorAll('.more button')].at(-1).click()")
    assert len(column(browser, "cells", 0)) == 10_000


def test_numbers_that_are_none_are_shown_and_sorted_last(browser: Browser, tmp_path: Path) -> None:
    content = sample(["finetune", "mars"], ["digits"], [0, 1])
    cell, _ = records_of("mars", "digits", 1, float("nan"))
    content.cells[cell["key"], cell["cell"]] = cell
    browser.open(write(content, None, tmp_path / "page.html"))
    assert column(browser, "answer", 1) == ["+1.00 (n = 1)"]
    browser.evaluate("document.querySelectorAll('#cells th button')[4].click()")
    assert column(browser, "cells", 4) == ["50.00", "50.10", "51.00", "NaN"]


def test_published_numbers_sort_and_open_where_there_are_some(browser: Browser, tmp_path: Path) -> None:
    browser.show(390)
    browser.open(write(paper().content, None, tmp_path / "page.html"))
    assert column(browser, "published", 1) == ["reproduced", "not comparable", "different", "undecided", "reproduced"]
    assert column(browser, "published", 4)[:3] == ["+0.05 [−0.56, +0.66]", "–", "+4.65 [+3.90, +5.40]"]
    assert column(browser, "published", 5)[1] == "training_examples is 3760 here and 4230 in the paper"
    click(browser, "#published tbody button")
    assert "5,594 training images" in browser.evaluate("document.querySelector('#published td.detail').innerText")
    assert browser.evaluate("document.documentElement.scrollWidth") <= 390
    browser.evaluate("document.querySelectorAll('#published th button')[4].click()")
    assert column(browser, "published", 0)[-1] == "finetune on dtd"  # without a difference
    browser.open(write(sample(ROWS, TASKS, [0]), None, tmp_path / "other.html"))
    assert browser.evaluate("document.querySelector('#published') === null")
    assert browser.complaints == []
