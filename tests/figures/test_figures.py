"""The files of figures: all of them, equal when made twice, with names as they are, and what is refused."""

import csv
import dataclasses
import math
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterable
from pathlib import Path

import matplotlib
import pytest
from matplotlib.figure import Figure

from bench.errors import InputError
from bench.figures.__main__ import main
from bench.figures.charts import KINDS, Chart, Source
from bench.figures.draw import COLOURS, DASHES, MARKERS, MOST_SERIES, STYLE, draw
from tests.figures.made_up import MadeUp, stage

HOSTILE = ["finetune", "$a$_b^2", "_hidden", "<img src=x>", "a&b", "\\frac{1}{2}", "n" * 100, "eighth", "ninth"]


def hostile() -> MadeUp:
    made_up = MadeUp(HOSTILE, ["ta$k$", "_t<&"], seeds=3)
    for number, row in enumerate(HOSTILE):
        made_up.add(row, [0.5, 0.51, 0.5 + number / 100], task="ta$k$")
    made_up.add("finetune", [0.5, None, None], task="_t<&")
    return made_up


def run(made_up: MadeUp, folder: Path, *arguments: str) -> dict[str, bytes]:
    """The files that the command writes, by name."""
    path = folder / "records" / "records.jsonl"
    if not path.exists():
        made_up.write(path.parent)
    output = folder / "figures"
    assert main(["--records", str(path), "--output", str(output), *arguments]) == 0
    return {file.name: file.read_bytes() for file in output.iterdir()}


def drawn(source: Source, kind: str) -> Figure:
    with matplotlib.rc_context(STYLE):
        figure = draw(KINDS[kind](source))
        figure.canvas.draw()
    return figure


def texts(svg: bytes) -> set[str]:
    """All texts of an SVG file; they stand there as text, not as outlines."""
    return {
        "".join(element.itertext()) for element in ElementTree.fromstring(svg).iter() if element.tag.endswith("text")
    }


def test_every_kind_writes_four_files_that_are_equal_when_made_again(tmp_path: Path) -> None:
    first = run(hostile(), tmp_path / "a", "--kind", "forest", "cost")
    assert first.keys() == {f"{kind}.{end}" for kind in ("forest", "cost") for end in ("svg", "png", "pdf", "csv")}
    assert first == run(hostile(), tmp_path / "b", "--kind", "forest", "cost")
    assert first == run(hostile(), tmp_path / "b", "--kind", "cost", "forest")  # over those that are there
    assert first["cost.png"].startswith(b"\x89PNG") and first["cost.pdf"].startswith(b"%PDF")
    assert not any(word in first["cost.svg"] for word in (b"<dc:date", b"Matplotlib v"))


def test_names_stay_as_they_are(tmp_path: Path) -> None:
    files = run(hostile(), tmp_path, "--kind", "forest", "cost")
    in_forest, in_cost = texts(files["forest.svg"]), texts(files["cost.svg"])
    names = {name for name in HOSTILE if len(name) < 100}
    assert names - {"finetune"} <= in_forest and names <= in_cost
    assert {"ta$k$", "_t<&"} <= in_forest
    rows = list(csv.DictReader(files["cost.csv"].decode().splitlines()))
    assert [row["row"] for row in rows if row["task"] == "ta$k$"] == HOSTILE
    assert rows[0]["mean"] == "50.33333333333333" or math.isclose(float(rows[0]["mean"]), 50 + 1 / 3)


def test_a_persons_own_settings_do_not_change_a_figure(tmp_path: Path) -> None:
    first = run(hostile(), tmp_path / "a", "--kind", "forest")
    with matplotlib.rc_context({"font.size": 20, "axes.facecolor": "red"}):
        assert run(hostile(), tmp_path / "b", "--kind", "forest") == first


def test_no_panel_has_more_series_than_can_be_told_apart() -> None:
    assert len(set(COLOURS)) == len(set(MARKERS)) == len(set(DASHES)) == MOST_SERIES == 7
    figure = drawn(hostile().source(), "cost")
    assert [axes.get_title(loc="left") for axes in figure.axes] == [
        "ta$k$ (1 of 2)",
        "_t<& (1 of 2)",
        "",
        "ta$k$ (2 of 2)",
        "_t<& (2 of 2)",
        "",
    ]
    for part, other in ((0, 3), (1, 4)):  # of one task, to be compared by eye
        assert figure.axes[part].get_xlim() == figure.axes[other].get_xlim()
        assert figure.axes[part].get_ylim() == figure.axes[other].get_ylim()
    legends = [
        [text.get_text() for text in legend.get_texts()] for axes in figure.axes if (legend := axes.get_legend())
    ]
    assert [len(names) for names in legends] == [7, 2] and "_hidden" in legends[0]


def test_what_is_missing_looks_otherwise_than_what_is_there() -> None:
    made_up = MadeUp(["finetune", "half", "none"])
    made_up.add("finetune", [0.5, 0.6])
    made_up.add("half", [0.5, None])
    made_up.add("none", [math.nan, None])
    figure = drawn(made_up.source(), "forest")
    markers = [(line.get_marker(), line.get_markerfacecolor()) for line in figure.axes[0].get_lines()]
    assert ("o", "white") in markers and "x" in {marker for marker, _ in markers}
    # One seed has no interval: no bar is drawn in the whole panel.
    assert not figure.axes[0].collections
    (caption,) = (text.get_text() for text in figure.texts if "t intervals" in text.get_text())
    assert "none on digits 0/2 (1 not finite)" in caption.replace("\n", " ")


@pytest.mark.parametrize("kind", ["forest", "steps", "cost"])
@pytest.mark.parametrize("most", [20, 20_000])
def test_all_points_and_bars_lie_within_their_panel(kind: str, most: int) -> None:
    made_up = MadeUp(["finetune", *(f"row_{number}/tapt" for number in range(2, 5))])
    made_up.add("finetune", [0.5, 0.55])
    for number in range(2, 5):
        before = stage("further_pretrain", of=str(number), schedule={"steps": number * most})
        made_up.add(f"row_{number}/tapt", [0.1 * number, 0.12 * number], before)
    chart = KINDS[kind](made_up.source())
    (axes,) = drawn(made_up.source(), kind).axes
    (left, right), (bottom, top) = axes.get_xlim(), axes.get_ylim()
    for point in chart.points:
        for name in ("low", "mean", "high"):
            assert left <= point[name] <= right if kind == "forest" else bottom <= point[name] <= top
        assert kind == "forest" or left <= point["x"] <= right
    # Not only within: they fill the panel.
    values = [point[name] for point in chart.points for name in ("low", "high")]
    assert max(values) - min(values) > 0.5 * (right - left if kind == "forest" else top - bottom)


def chart_over(positions: Iterable[int]) -> Chart:
    rows = [f"row_{position}/tapt" for position in positions]
    made_up = MadeUp(rows, ["digits", "empty"])
    for row, position in zip(rows, positions, strict=True):
        made_up.add(row, [0.5, 0.6], stage("further_pretrain", of=row, schedule={"steps": position}))
    return KINDS["steps"](made_up.source())


@pytest.mark.parametrize("name", ["tiny", "a_grid_whose_name_is_wider_than_its_figure", "n" * 100])
def test_a_title_lies_within_its_figure(name: str) -> None:
    with matplotlib.rc_context(STYLE):
        figure = draw(dataclasses.replace(chart_over([100, 200]), title=f"{name}: Test metric over steps"))
        figure.canvas.draw()
    (title,) = (text for text in figure.texts if "over steps" in text.get_text().replace("\n", " "))
    assert name in title.get_text().replace("\n", "")
    assert 0 <= title.get_window_extent().x0 < title.get_window_extent().x1 <= figure.bbox.width


def test_large_counts_are_short_and_far_ones_logarithmic() -> None:
    with matplotlib.rc_context(STYLE):
        figure = draw(chart_over([1000, 2500, 50_000]))
        figure.canvas.draw()
    digits, empty = figure.axes
    assert [label.get_text() for label in digits.get_xticklabels()] == ["1k", "2.5k", "50k"]
    assert digits.get_xscale() == "log"
    assert not any(len(line.get_xdata()) for line in empty.get_lines())


def test_kinds_that_the_data_lack_are_left_out_and_refused_by_name(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made_up = MadeUp(["finetune", "mars"])
    made_up.add("finetune", [0.5, 0.5])
    made_up.add("mars", [0.5, 0.6])
    files = run(made_up, tmp_path)
    assert {name.partition(".")[0] for name in files} == {"forest", "cost"}
    assert "no figure steps: no method" in capsys.readouterr().out
    path = str(tmp_path / "records" / "records.jsonl")
    with pytest.raises(InputError, match="--kind gap: no record has the generalisation gap"):
        main(["--records", path, "--output", str(tmp_path / "other"), "--kind", "gap"])
    assert not (tmp_path / "other").exists()


def test_a_grid_without_any_number_has_no_figure(tmp_path: Path) -> None:
    path = MadeUp(["finetune", "mars"]).write(tmp_path / "records")
    assert main(["--records", str(path), "--output", str(tmp_path / "figures")]) == 1
    assert not (tmp_path / "figures").exists()


def test_figures_go_beside_the_records_unless_a_folder_is_named(tmp_path: Path) -> None:
    made_up = MadeUp(["finetune", "mars"])
    made_up.add("finetune", [0.5, 0.5])
    made_up.add("mars", [0.5, 0.6])
    path = made_up.write(tmp_path / "records")
    assert main(["--records", str(path), "--results", str(tmp_path / "results"), "--kind", "forest"]) == 0
    (folder,) = (tmp_path / "results").iterdir()
    assert {file.name for file in folder.iterdir()} >= {"forest.png", "forest.csv"}


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ([], "--records"),
        (["--records", "nowhere.jsonl"], "no such file"),
        (["--records", "x", "--gin", "gin/quickstart.gin"], "not both"),
        (["--records", "x", "--set", "finetune.lr = 1"], "--set"),
        (["--gin", "gin/quickstart.gin", "--store", "nowhere"], "nowhere"),
    ],
)
def test_arguments_that_mean_nothing_are_refused(
    arguments: list[str], reason: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=reason):
        main([*arguments, "--output", "figures"])
    assert not any(tmp_path.iterdir())
