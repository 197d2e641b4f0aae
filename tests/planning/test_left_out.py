"""Lines of included files that are for rows or tasks which a grid leaves out."""

from pathlib import Path

import pytest

from bench.errors import InputError
from bench.planning.plan import Plan, make_plan

BASE = """
grid.rows = ['finetune', 'tapt', 'slow/mars']
grid.tasks = ['digits', 'pydocs']
finetune.lr = 1e-3
further_pretrain.lr = 1e-4
MarsProjection.radius = 2.0
slow/finetune.lr = 1e-5
pydocs/slow/finetune.dropout = 0.2
pydocs/finetune.epochs = 2
"""


def plan_of(folder: Path, text: str, *overrides: str) -> Plan:
    (folder / "base.gin").write_text(BASE)
    (folder / "g.gin").write_text(f"include 'base.gin'\n{text}")
    return make_plan([str(folder / "g.gin")], overrides, (), folder / "data", None)


@pytest.mark.parametrize(
    ("text", "overrides", "count"),
    [
        ("grid.rows = ['finetune']", (), 4),
        ("grid.rows = ['tapt']", (), 3),
        ("grid.rows = ['tapt']\ngrid.tasks = ['digits']", (), 4),
        ("grid.tasks = ['digits']", (), 2),
        ("", ("grid.rows = ['finetune']",), 4),
        ("", ("grid.rows = ['finetune']", "grid.tasks = ['digits']"), 5),
        ("grid.seeds = [3]", (), 0),
    ],
)
def test_what_only_rows_or_tasks_left_out_would_read_is_noted(
    text: str, overrides: tuple[str, ...], count: int, tmp_path: Path
) -> None:
    notes = [note for note in plan_of(tmp_path, text, *overrides).notes if note.startswith("left out")]
    assert len(notes) == (count > 0)
    assert all("base.gin" in note and f" {count} " in note for note in notes)


@pytest.mark.parametrize(
    ("text", "overrides", "location"),
    [
        ("grid.rows = ['finetune']\nMarsProjection.norm = 'frobenius'", (), "g.gin:3"),  # its own line for nobody
        ("grid.rows = ['finetune']\nslow/finetune.warmup_steps = 3", (), "g.gin:3"),
        ("grid.rows = ['finetune']", ("slow/finetune.lr = 1",), "--set"),
        ("grid.rows = ['finetune']", ("MarsProjection.norm = 'frobenius'",), "--set"),
    ],
)
def test_a_line_of_the_grid_itself_for_a_row_left_out_is_refused(
    text: str, overrides: tuple[str, ...], location: str, tmp_path: Path
) -> None:
    with pytest.raises(InputError) as caught:
        plan_of(tmp_path, text, *overrides)
    assert location in str(caught.value) and "base.gin" not in str(caught.value)


def test_a_file_that_replaces_tasks_may_have_lines_for_rows_that_set_leaves_out(
    tmp_path: Path,
) -> None:
    text = "grid.rows = ['slow/mars', 'tapt']\ngrid.tasks = ['digits']\nslow/finetune.warmup_steps = 3"
    notes = plan_of(tmp_path, text, "grid.rows = ['tapt']").notes
    assert [note for note in notes if "g.gin has 1 setting" in note]


@pytest.mark.parametrize(
    "line", ["slwo/finetune.lr = 1e-5", "MarsProjectoin.radius = 1.0", "RecAdam.k = 0.5", "slow/R3F.eps = 0.1"]
)
def test_what_the_included_grid_would_not_read_either_is_refused(line: str, tmp_path: Path) -> None:
    (tmp_path / "base.gin").write_text(BASE + line + "\n")
    (tmp_path / "g.gin").write_text("include 'base.gin'\ngrid.rows = ['finetune']\n")
    with pytest.raises(InputError, match=r"base\.gin:10"):
        make_plan([str(tmp_path / "g.gin")], (), (), tmp_path / "data", None)
