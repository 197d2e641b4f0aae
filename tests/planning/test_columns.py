"""What a column shows: its metric, the class that counts, and two columns of one trained stage."""

import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from bench import collate
from bench.data import disk
from bench.data.content import Rows
from bench.data.manifest import Manifest, SplitFacts, read_manifest
from bench.data.tasks import FURTHER_EVALUATIONS, TASKS
from bench.errors import InputError
from bench.planning.plan import Plan, make_plan
from bench.store.manifest import write_manifest
from bench.store.store import Store
from tests.test_grid import Workspace

MNLI = """
grid.rows = ['finetune', 'label_smoothing', 'tapt']
grid.tasks = ['mnli', 'mnli_mismatched']
grid.seeds = [0, 1]
mnli/finetune.lr = 1e-4
mnli/tapt/finetune.lr = 2e-4
"""
ONE = "grid.rows = ['finetune']\ngrid.tasks = ['{}']\ngrid.seeds = [0]\n"


def plan_of(folder: Path, text: str, data: Path | None = None) -> Plan:
    (folder / "g.gin").write_text(text)
    return make_plan([str(folder / "g.gin")], (), (), data or folder / "data", Store(folder / "runs"))


def prepare(root: Path, name: str, class_names: tuple[str, ...], *splits: str, one_class: str = "") -> None:
    """Claim that a task is prepared, with ten examples of each class in every split; in `one_class` of the first."""
    counts = {split: tuple(10 * (split != one_class or i == 0) for i in range(len(class_names))) for split in splits}
    facts = {split: SplitFacts(sum(counts[split]), str(i) * 64, counts[split]) for i, split in enumerate(splits)}
    (root / name).mkdir(parents=True)
    write_manifest(root / name, Manifest(name, TASKS[name].modality, class_names, facts, None, {}))


# ---------------------------------------------------------------------------------------- two columns, one stage


def test_mnli_is_trained_once_and_shown_twice(tmp_path: Path) -> None:
    plan = plan_of(tmp_path, MNLI)
    assert len(plan.cells) == 3 * 2 * 2
    assert sum(stage.name == "finetune" for stage in plan.stages) == 3 * 2
    for cell in plan.cells:
        other = "mnli" if cell.task == "mnli_mismatched" else "mnli_mismatched"
        (twin,) = (c for c in plan.cells if c.name == cell.name.replace(f"/{cell.task}/", f"/{other}/"))
        assert twin.stage is cell.stage
        assert [data.split for data in cell.stage.evaluations] == ["test", "mismatched"]
        assert cell.metric == ("accuracy" if cell.task == "mnli" else "mismatched/accuracy")
        assert cell.stage.schedule.lr == (2e-4 if cell.row == "tapt" else 1e-4)
    alone = plan_of(tmp_path, MNLI.replace("['mnli', ", "["))
    assert {cell.stage.key for cell in alone.cells} == {cell.stage.key for cell in plan.cells}


def test_candidates_of_a_search_are_not_measured_on_the_further_split(tmp_path: Path) -> None:
    search = "search.candidates = ['finetune.dropout = 0.1', 'finetune.dropout = 0.2']\n"
    for cell in plan_of(tmp_path, MNLI + search).cells:
        candidates = [parent for parent in cell.stage.parents if parent.name == "finetune"]
        assert len(candidates) == 2
        assert all(len(candidate.evaluations) == 1 for candidate in candidates)
        assert len(cell.stage.evaluations) == 2


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("mnli_mismatched/finetune.steps = 3", "write mnli/… instead"),
        ("mnli_mismatched/task.metric = 'macro_f1'", "write mnli/… instead"),
        ("mnli_mismatched/finetune/finetune.steps = 3", "write mnli/… instead"),
        ("mnli_mismatched/task.source = 'csv:x'", "taken already"),
    ],
)
def test_a_further_column_has_no_settings_of_its_own(line: str, says: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=says):
        plan_of(tmp_path, MNLI + line)


def test_what_was_prepared_before_there_was_a_further_split_keeps_its_numbers(tmp_path: Path) -> None:
    before, now = tmp_path / "before", tmp_path / "now"
    prepare(before, "mnli", ("a", "b", "c"), "train", "test")
    prepare(now, "mnli", ("a", "b", "c"), "train", "test", "mismatched")
    old, new = (plan_of(tmp_path, ONE.format("mnli"), root).cells[0].stage for root in (before, now))
    assert old.further_evaluations == ()
    assert replace(new, further_evaluations=()).key == old.key != new.key
    with pytest.raises(InputError, match=r"prepare mnli .*--again"):
        plan_of(tmp_path, ONE.format("mnli_mismatched"), before)


def test_a_further_split_of_one_class_has_no_auroc_where_it_is_shown(tmp_path: Path) -> None:
    prepare(tmp_path / "data", "mnli", ("a", "b", "c"), "train", "test", "mismatched", one_class="mismatched")
    line = "mnli/task.metric = 'auroc'\n"
    assert len(plan_of(tmp_path, ONE.format("mnli") + line).cells) == 1
    with pytest.raises(InputError, match=r"g.gin:4: .*the split 'mismatched' of mnli has 10 .* 'a' and none"):
        plan_of(tmp_path, ONE.format("mnli', 'mnli_mismatched") + line)


def test_both_columns_are_filled_by_one_training(
    prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The digits with a further split: the first half of their test images, each with the next class as its label."""
    data = tmp_path / "data"
    shutil.copytree(prepared, data, ignore=shutil.ignore_patterns("digits"))
    manifest = read_manifest("digits", prepared)
    assert manifest is not None
    content = disk.read(manifest, prepared)
    test = content.splits["test"]
    assert test.labels is not None
    half = len(test.values) // 2
    further = Rows(test.values[:half], [(label + 1) % 10 for label in test.labels[:half]])
    disk.publish("digits", replace(content, splits={**content.splits, "mismatched": further}), data)
    monkeypatch.setitem(FURTHER_EVALUATIONS, "digits_again", ("digits", "mismatched"))
    short = "finetune.steps = 60\nfinetune.batch_size = 16\nfinetune.warmup_steps = 0\nfinetune.lr = 3e-3\n"
    text = ONE.format("digits', 'digits_again") + short + "source_pretrain.steps = 3\nfinetune.augmentation = 'none'\n"
    workspace = Workspace(tmp_path / "work", data, text)
    assert workspace.run() == 0
    first, second = (workspace.records()[f"finetune/{task}/photos_mae/0"] for task in ("digits", "digits_again"))
    assert first["key"] == second["key"]
    assert first["metrics"] == second["metrics"]
    assert (first["metric"], second["metric"]) == ("accuracy", "mismatched/accuracy")
    # What is right there is wrong here.
    assert first["value"] > 2 * second["value"] == 2 * first["metrics"]["mismatched/accuracy"]
    assert first["provenance"]["data"].keys() == {"digits/train", "digits/test", "digits/mismatched"}
    assert "digits_again: the stages trained on digits, on its split mismatched" in workspace.table
    before = workspace.table
    assert collate.main(["--gin", str(workspace.gin), *workspace.arguments()[2:]]) == 0
    assert workspace.table == before


# ---------------------------------------------------------------------------------------- the class that counts


def test_glue_names_its_positive_classes(tmp_path: Path) -> None:
    metrics = {task: plan_of(tmp_path, ONE.format(task)).cells[0].metric for task in ("mrpc", "qqp", "cola", "rte")}
    assert metrics == {
        "mrpc": "binary_f1[equivalent]",
        "qqp": "binary_f1[duplicate]",
        "cola": "mcc",
        "rte": "accuracy",
    }


@pytest.mark.parametrize(
    ("task", "lines", "says"),
    [
        ("rte", "rte/task.metric = 'binary_f1'", "g.gin:4: .*Bind rte/task.positive_class = 'no' or 'yes'"),
        ("rte", "rte/task.positive_class = 'yess'", "g.gin:4: .*no such class. Did you mean 'yes'"),
        ("mnli", "mnli/task.positive_class = 'a'", "g.gin:4: .*3 classes"),
        ("mnli", "mnli/task.metric = 'binary_f1'", "g.gin:4: .*3 classes"),
        ("mnli", "mnli/task.positive_class = 'a'\nmnli/task.metric = 'binary_f1'", "g.gin:5: .*3 classes"),
        ("rte", "rte/finetune/task.positive_class = 'yes'", "takes no row"),
        ("rte", "rte/task.metric = 'f1'", "'binary_f1'"),
    ],
)
def test_a_positive_class_that_cannot_be_is_refused(task: str, lines: str, says: str, tmp_path: Path) -> None:
    prepare(tmp_path / "data", "rte", ("no", "yes"), "train", "test")
    prepare(tmp_path / "data", "mnli", ("a", "b", "c"), "train", "test", "mismatched")
    with pytest.raises(InputError, match=says):
        plan_of(tmp_path, ONE.format(task) + lines)


def test_the_positive_class_of_own_data_is_a_setting(tmp_path: Path) -> None:
    lines = ["source = 'csv:x.csv'", "backbone = 'docs_mlm'", "metric = 'binary_f1'", "positive_class = 'spam'"]
    text = ONE.format("mails") + "".join(f"mails/task.{line}\n" for line in lines)
    assert plan_of(tmp_path, text).cells[0].metric == "binary_f1[spam]"


def test_own_data_may_have_the_name_of_a_regression(tmp_path: Path) -> None:
    text = ONE.format("stsb") + "stsb/task.source = 'csv:x.csv'\nstsb/task.backbone = 'docs_mlm'\n"
    assert plan_of(tmp_path, text).cells[0].metric == "accuracy"


@pytest.mark.parametrize("name", ["stsb", "sts_b"])
def test_a_regression_is_refused_with_the_reason(name: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="regression"):
        plan_of(tmp_path, ONE.format(name))
