"""Searching hyper-parameters: validation data only, equally many configurations, one test of the chosen one."""

import json
from pathlib import Path
from typing import Any

import pytest

from bench.errors import InputError
from bench.planning.plan import Plan, make_plan
from bench.specs import Selected, Stage, canonical_json, from_canonical, walk
from bench.store.store import Store
from bench.tables.records import cell_record
from bench.training.fit import choose
from tests import tiny_grid
from tests.test_grid import Workspace

SEARCH = """
grid.rows = ['finetune', 'tapt']
grid.tasks = ['digits']
grid.seeds = [3, 4]
grid.base_seed = 7
finetune.steps = 60
finetune.batch_size = 16
finetune.warmup_steps = 0
finetune.augmentation = 'none'
further_pretrain.steps = 5
further_pretrain.batch_size = 8
source_pretrain.steps = 5
search.candidates = ['finetune.lr = 1e-6', 'finetune.lr = 3e-3; finetune.dropout = 0.0', 'finetune.lr = 1e-7']
"""
TINY = tiny_grid.networks("photos_mae") + SEARCH


def plan_of(folder: Path, data: Path, text: str = SEARCH) -> Plan:
    (folder / "g.gin").write_text(text)
    return make_plan([str(folder / "g.gin")], (), (), data, Store(folder / "runs"))


def test_candidates_never_see_the_test_split_and_the_chosen_one_trains_on_everything(
    prepared: Path, tmp_path: Path
) -> None:
    plan = plan_of(tmp_path, prepared)
    for cell in plan.cells:
        assert isinstance(cell.stage, Selected)
        assert len(cell.stage.candidates) == len(cell.stage.finals) == 3
        for candidate, final in zip(cell.stage.candidates, cell.stage.finals, strict=True):
            assert candidate.schedule == final.schedule
            assert (candidate.data.part, final.data.part) == ("fit", "all")
            assert candidate.evaluation is not None
            assert (candidate.evaluation.split, candidate.evaluation.part) == ("train", "holdout")
            assert (candidate.seed, final.seed) == (7, cell.seed)
            assert candidate.data.size + candidate.evaluation.size == final.data.size == 1297
            assert final.evaluation is not None
            assert final.evaluation.split == "test"
            unlabelled = [s for s in walk(candidate) if s.name == "further_pretrain"]
            assert all(stage.data.part == "fit" for stage in unlabelled)
    # One search per row for all seeds; the candidates of both rows are separate stages.
    assert sum(stage.data.part == "fit" and stage.name == "finetune" for stage in plan.stages) == 6


def test_a_search_with_every_seed_shares_nothing_between_seeds(prepared: Path, tmp_path: Path) -> None:
    per_seed = "grid.search_seeds = 'per_seed'\ngrid.pretraining_seeds = 'per_seed'\n"
    plan = plan_of(tmp_path, prepared, SEARCH + per_seed)
    behind: dict[tuple[str, int], set[str]] = {}
    for cell in plan.cells:
        assert isinstance(cell.stage, Selected)
        assert {candidate.seed for candidate in cell.stage.candidates} == {cell.seed}
        assert {final.seed for final in cell.stage.finals} == {cell.seed}
        behind[cell.row, cell.seed] = {s.key for s in walk(cell.stage) if s.data.task == "digits"}
    for row in ("finetune", "tapt"):
        assert not behind[row, 3] & behind[row, 4]
    assert sum(stage.data.part == "fit" and stage.name == "finetune" for stage in plan.stages) == 12


def test_seeds_of_a_search_are_refused_without_one(prepared: Path, tmp_path: Path) -> None:
    text = SEARCH.partition("search.")[0]
    with pytest.raises(InputError, match=r"\.gin:\d+: grid\.search_seeds changes nothing"):
        plan_of(tmp_path, prepared, text + "grid.search_seeds = 'per_seed'\n")
    assert plan_of(tmp_path, prepared, text + "grid.search_seeds = 'shared'\n").cells


def test_the_spec_of_a_search_comes_back_from_its_json(prepared: Path, tmp_path: Path) -> None:
    stage = plan_of(tmp_path, prepared).cells[0].stage
    stages = {other.key: other for other in walk(stage)}
    again = from_canonical(json.loads(canonical_json(stage)), stages.__getitem__)
    assert again == stage
    assert again.key == stage.key


def test_the_best_candidate_is_chosen_and_all_scores_are_recorded(prepared: Path, tmp_path: Path) -> None:
    workspace = Workspace(tmp_path, prepared, TINY)
    assert workspace.run() == 0
    assert "Search: 3 configurations for every row" in workspace.table
    for record in workspace.records().values():
        search = record["search"]
        scores = [candidate["accuracy"] for candidate in search["candidates"]]
        assert search["chosen"] == scores.index(max(scores)) == 1
        assert workspace.specs(record["cell"])[-1]["finals"][1]["schedule"]["lr"] == 3e-3
    before = workspace.ledger()
    assert workspace.run() == 0
    assert workspace.ledger() == before
    # Trained as the chosen final would be on its own: same weights, bit for bit.
    plain = Workspace(tmp_path / "plain", prepared, TINY.partition("search.")[0])
    assert plain.run("--set", "finetune.lr=3e-3", "finetune.dropout=0.0", "grid.name='small'") == 0
    for cell, record in plain.records().items():
        assert record["metrics"] == workspace.records()[cell]["metrics"]


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("search.candidates = ['finetune.lr = 1', 'finetune.lrr = 2']", "'lr'"),
        ("search.candidates = ['finetune.lr = 1', 'finetune.lr = x']", "not valid gin"),
        ("search.candidates = ['finetune.lr = 1', 'digits/finetune.lr = 2']", "without a scope"),
        ("search.candidates = ['finetune.lr = 1', '']", "without a scope"),
        ("search.candidates = ['finetune.lr = 1']", "two or more"),
        ("search.candidates = ['finetune.lr = 1', 'finetune.lr = 1']", "duplicates"),
        ("search.candidates = ['finetune.lr = 1', 'finetune.lr = -1']", "above 0"),
        ("search.candidates = ['finetune.lr = 1', 'self_distill.lr = 1']", "changes nothing"),
        ("search.candidates = ['finetune.lr = 1', 'backbone.width = 16']", "backbone"),
        ("tapt/search.candidates = ['finetune.lr = 1', 'finetune.lr = 2']", "finetune on digits: 0, tapt on digits: 2"),
    ],
)
def test_impossible_searches_are_refused(line: str, says: str, prepared: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError) as refusal:
        plan_of(tmp_path, prepared, SEARCH.partition("search.")[0] + line)
    assert says in str(refusal.value)
    assert "search.candidates" in str(refusal.value) or "g.gin:" in str(refusal.value)


def test_counts_are_compared_on_every_task(prepared: Path, tmp_path: Path) -> None:
    text = SEARCH.partition("search.")[0].replace("['digits']", "['digits', 'pydocs']")
    text = text.replace("finetune.augmentation", "digits/finetune.augmentation")
    candidates = "digits/tapt/search.candidates = ['finetune.lr = 1e-4', 'finetune.lr = 1e-3']"
    with pytest.raises(InputError, match="tapt on digits: 2"):
        plan_of(tmp_path, prepared, text + candidates)


def test_a_searched_rows_teacher_is_the_searched_row_and_never_sees_what_is_held_out(
    prepared: Path, tmp_path: Path
) -> None:
    text = "".join(line + "\n" for line in SEARCH.splitlines() if not line.startswith("further_pretrain"))
    plan = plan_of(tmp_path, prepared, text.replace("'tapt'", "'self_kd'"))
    finals = {cell.seed: cell.stage for cell in plan.cells if cell.row == "finetune"}
    for cell in plan.cells:
        if cell.row == "self_kd":
            assert isinstance(cell.stage, Selected)
            assert {final.teacher for final in cell.stage.finals} == {finals[cell.seed]}
            for candidate in cell.stage.candidates:
                assert isinstance(candidate.teacher, Selected)
                behind = (*candidate.teacher.finals, *candidate.teacher.candidates)
                assert {stage.data.part for stage in behind} == {"fit"}


class Scores:
    """A store whose candidates have these values of one metric; None is one that diverged."""

    def __init__(self, metric: str, values: list[float | None], stage: Selected) -> None:
        keys = [candidate.key for candidate in stage.candidates]
        self._records = {k: v if v is None else {"metrics": {metric: v}} for k, v in zip(keys, values, strict=True)}

    def record(self, stage: Stage) -> dict[str, Any] | None:
        return self._records[stage.key]

    def missing_parents(self, stage: Stage) -> list[Stage]:
        return []

    def divergence(self, stage: Stage) -> str:
        return "it diverged"


@pytest.mark.parametrize(
    ("metric", "values", "best"),
    [
        ("accuracy", [0.7, 0.9, 0.9], 1),
        ("mcc", [-0.2, -0.1, -0.3], 1),
        ("loss", [0.7, 0.9, 0.6], 2),
        ("loss", [None, 0.9, 0.9], 1),
        ("loss", [float("nan"), 0.9, 0.8], 2),
        ("accuracy", [None, None, 0.0], 2),
    ],
)
def test_the_declared_direction_says_which_candidate_is_best(
    metric: str, values: list[float | None], best: int, prepared: Path, tmp_path: Path
) -> None:
    stage = plan_of(tmp_path, prepared, f"{SEARCH}digits/task.metric = '{metric}'\n").cells[0].stage
    assert isinstance(stage, Selected)
    final, search = choose(stage, Scores(metric, values, stage))  # type: ignore[arg-type]
    assert (final, search["chosen"], search["metric"]) == (stage.finals[best], best, metric)


@pytest.mark.parametrize("chosen", [0, 1])
def test_what_a_search_tried_and_did_not_choose_is_no_activity_of_the_cell(
    chosen: int, prepared: Path, tmp_path: Path
) -> None:
    tried = "search.candidates = ['further_pretrain.steps = 5', 'further_pretrain.steps = 6']"
    text = SEARCH.partition("search.")[0].replace("['finetune', 'tapt']", "['tapt']").replace("further_", "#")
    cell = plan_of(tmp_path, prepared, text + tried).cells[0]
    assert isinstance(cell.stage, Selected)
    records: dict[str, Any] = {}
    for number, stage in enumerate(walk(cell.stage)):
        activity = {"Part": {"value": float(number), "meaning": "what it did", "nil": False}}
        records[stage.key] = {"activity": activity, "metrics": {"accuracy": 0.5}, "measured": {}, "seconds": 1.0}
        records[stage.key] |= {
            "provenance": {"device_type": "cpu"},
            "search": {"chosen": chosen},
            "weights": {"sha256": "0"},
        }
    pretraining = cell.stage.finals[chosen].init
    assert isinstance(pretraining, Stage)
    shown = {name: part["value"] for name, part in cell_record(cell, records)["activity"].items()}
    expected = {
        "Part": cell.stage,
        "further_pretrain.Part": pretraining,
        "source_pretrain.Part": pretraining.backbone.weights,
    }
    assert shown == {name: records[stage.key]["activity"]["Part"]["value"] for name, stage in expected.items()}


def test_a_candidate_without_the_metric_is_named(prepared: Path, tmp_path: Path) -> None:
    stage = plan_of(tmp_path, prepared, SEARCH + "digits/task.metric = 'auroc'\n").cells[0].stage
    assert isinstance(stage, Selected)
    with pytest.raises(InputError, match="AUROC"):
        choose(stage, Scores("accuracy", [0.5, 0.6, 0.7], stage))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("metric", "positive_class", "refused"),
    [("auroc", None, True), ("mcc", None, True), ("binary_f1", "dog", True), ("binary_f1", "cat", False)],
)
@pytest.mark.parametrize(
    ("counts", "searches", "says"),
    [
        ({"train": (50, 40), "test": (20, 0)}, False, "the split 'test' of pets has 20 examples of the class 'cat'"),
        ({"train": (50, 40), "validation": (0, 9), "test": (20, 9)}, True, "'validation' .* 9 .* 'dog' and none"),
        ({"train": (50, 3), "test": (20, 9)}, True, "a search holds out of the split 'train' of pets has 5 .* 'cat'"),
        # Each is judged by what holds both classes.
        ({"train": (50, 40), "validation": (0, 9), "test": (20, 9)}, False, None),
        ({"train": (50, 40), "test": (20, 9)}, True, None),
    ],
)
def test_a_metric_that_says_nothing_of_one_class_is_refused_in_time(
    counts: dict[str, tuple[int, int]],
    searches: bool,
    says: str | None,
    metric: str,
    positive_class: str | None,
    refused: bool,
    tmp_path: Path,
) -> None:
    """Of such a metric all candidates have 0, and the first would be taken."""
    source = tmp_path / "pets"
    source.mkdir()
    for split, numbers in counts.items():
        texts = [
            f"{split} {name} {i},{name}"
            for name, count in zip(("cat", "dog"), numbers, strict=True)
            for i in range(count)
        ]
        (source / f"{split}.csv").write_text("\n".join(["text,label", *texts]))
    text = f"""
grid.rows = ['finetune']
grid.tasks = ['pets']
grid.seeds = [0]
pets/task.source = 'csv:{source}'
pets/task.backbone = 'docs_mlm'
"""
    text += "search.candidates = ['finetune.lr = 1e-3', 'finetune.lr = 1e-4']\n" if searches else ""
    data = tmp_path / "data"
    plan_of(tmp_path, data, text).catalogue.prepare("pets", data)
    plan_of(tmp_path, data, text)  # the other metrics are defined
    if positive_class is not None:
        there = "dog" if says is not None and "'dog'" in says else "cat"
        named = positive_class if there == "cat" else {"cat": "dog", "dog": "cat"}[positive_class]
        text += f"pets/task.positive_class = '{named}'\n"
    text += f"pets/task.metric = '{metric}'\n"
    if says is None or not refused:
        plan_of(tmp_path, data, text)
        return
    with pytest.raises(InputError, match=rf"g\.gin:{text.count(chr(10))}: task.metric = '{metric}': .*{says}"):
        plan_of(tmp_path, data, text)


def test_the_metric_changes_the_key_of_a_search_and_of_nothing_behind_it(prepared: Path, tmp_path: Path) -> None:
    stages = [
        plan_of(tmp_path, prepared, f"{SEARCH}digits/task.metric = '{name}'\n").cells[0].stage
        for name in ("accuracy", "mcc")
    ]
    first, second = (stage for stage in stages if isinstance(stage, Selected))
    assert first.key != second.key
    assert (first.candidates, first.finals) == (second.candidates, second.finals)


# ------------------------------------------------------------------------------------------------ what diverges

DIVERGING = (
    TINY.partition("search.")[0].replace("finetune.steps = 60", "finetune.steps = 6")
    + """
finetune/search.candidates = ['finetune.lr = 1e30', 'finetune.lr = 1e-3', 'finetune.lr = 1e29']
tapt/search.candidates = ['further_pretrain.lr = 1e30', 'finetune.lr = 1e30', 'finetune.lr = 1e-3']
"""
)


def test_a_candidate_that_diverges_loses_and_blocks_nothing(
    prepared: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    workspace = Workspace(tmp_path, prepared, DIVERGING)
    assert workspace.run() == 0
    shown = capsys.readouterr().out
    assert shown.count("; its search goes on with the other candidates") == 3
    assert "blocked: " not in shown
    records = workspace.records()
    assert len(records) == 4
    for record in records.values():
        search = record["search"]
        assert search["chosen"] == (1 if record["row"] == "finetune" else 2)
        for number, candidate in enumerate(search["candidates"]):
            lost = number != search["chosen"]
            assert (candidate["accuracy"] is None) == lost == ("diverged" in candidate)
            assert not lost or candidate["diverged"].startswith("Diverged: the loss is ")
    # The candidate that never ran, for what it starts from diverged, counts once like those that ran.
    assert "4 of 6 candidates diverged and counted as the worst" in workspace.table
    # They have no records, which is nothing that a table lacks: what the others cost is known.
    assert "stages.jsonl lacks" not in workspace.table
    assert "Cost of the distinct stages" in (tmp_path / "results" / "small.md").read_text()
    assert all(record["seconds_with_parents"] is not None for record in records.values())
    # What diverged is neither run again nor asked for, with or without --retry: the search is over.
    before = workspace.ledger()
    for arguments in ([], ["--retry"]):
        assert workspace.run(*arguments) == 0
        assert "0 to run" in (shown := capsys.readouterr().out) and "--retry" not in shown
    assert workspace.ledger() == before
    numbers = workspace.numbers()
    # A search whose final was interrupted goes on with the candidates' results as they are in the store.
    for folder in workspace.store.glob("finetune-digits-*"):
        if json.loads((folder / "spec.json").read_text())["type"] == "Selected":
            (folder / "record.json").unlink()
    assert workspace.run() == 0
    assert workspace.numbers() == numbers
    assert {name: len(attempts) for name, attempts in workspace.ledger().items() if len(attempts) > 1}.keys() <= {
        cell.stage.folder for cell in plan_of(tmp_path, prepared, DIVERGING).cells
    }


def test_a_search_whose_candidates_all_diverge_is_blocked_with_the_reason(
    prepared: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = DIVERGING.replace("['finetune', 'tapt']", "['finetune']").replace("1e-3", "1e28").partition("tapt/")[0]
    text = "".join(line + "\n" for line in text.splitlines() if not line.startswith("further_pretrain"))
    workspace = Workspace(tmp_path, prepared, text)
    assert workspace.run() == 1
    shown = capsys.readouterr().out
    assert shown.count("blocked: finetune/digits/photos_mae/") == 2 and "Diverged: the loss is " in shown
    assert "its search goes on" not in shown
    assert workspace.records() == {}
