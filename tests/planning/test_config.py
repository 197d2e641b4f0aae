"""gin files: what they mean, and what is refused with file and line."""

from pathlib import Path

import pytest

from bench.errors import InputError
from bench.planning.gin_files import copy_gin, find_gin, read_bindings
from bench.planning.load import load_bindings, load_grid
from bench.planning.plan import Plan, make_plan
from bench.specs import Execution
from bench.store.store import Store

GRID = """grid.rows = ['finetune', 'tapt', 'self_distillation']
grid.tasks = ['digits', 'pydocs']
grid.seeds = [0, 1]
"""


def plan_of(folder: Path, text: str, *overrides: str, name: str = "g.gin") -> Plan:
    (folder / name).write_text(text)
    return make_plan([str(folder / name)], overrides, (), folder / "data", Store(folder / "runs"))


def final(plan: Plan, cell: str):
    return next(planned.stage for planned in plan.cells if planned.name == cell)


def refusal(folder: Path, text: str, *overrides: str) -> str:
    with pytest.raises(InputError) as caught:
        plan_of(folder, text, *overrides)
    assert not (folder / "runs").exists()
    assert not (folder / "data").exists()
    return str(caught.value)


def test_layers_from_weak_to_strong(tmp_path: Path) -> None:
    lines = [
        "finetune.lr = 1e-1",
        "photos_mae/finetune.lr = 1e-2",
        "digits/finetune.lr = 1e-3",
        "tapt/finetune.lr = 1e-4",
        "digits/self_distillation/finetune.lr = 1e-5",
    ]
    plan = plan_of(tmp_path, GRID + "\n".join(lines[:1] + lines[2:]))
    assert final(plan, "finetune/pydocs/docs_mlm/0").schedule.lr == 1e-1
    assert final(plan, "finetune/digits/photos_mae/0").schedule.lr == 1e-3
    assert final(plan, "tapt/pydocs/docs_mlm/1").schedule.lr == 1e-4
    assert final(plan, "tapt/digits/photos_mae/1").schedule.lr == 1e-4
    assert final(plan, "self_distillation/digits/photos_mae/1").schedule.lr == 1e-5
    assert final(plan, "self_distillation/pydocs/docs_mlm/1").schedule.lr == 1e-1
    plan = plan_of(tmp_path, GRID + "\n".join(lines[:2]))
    assert final(plan, "finetune/digits/photos_mae/0").schedule.lr == 1e-2
    assert final(plan, "finetune/pydocs/docs_mlm/0").schedule.lr == 1e-1


def test_the_command_line_is_stronger_than_every_file(tmp_path: Path) -> None:
    plan = plan_of(tmp_path, GRID + "digits/tapt/finetune.lr = 1e-4", "finetune.lr = 3", "pydocs/finetune.lr = 4")
    assert final(plan, "tapt/digits/photos_mae/0").schedule.lr == 3
    assert final(plan, "tapt/pydocs/docs_mlm/0").schedule.lr == 4


def test_steps_and_epochs_replace_each_other_by_strength(tmp_path: Path) -> None:
    plan = plan_of(tmp_path, GRID + "finetune.steps = 5\nfinetune.warmup_steps = 0\npydocs/finetune.epochs = 2")
    assert final(plan, "finetune/digits/photos_mae/0").schedule.steps == 5
    assert final(plan, "finetune/pydocs/docs_mlm/0").schedule.epochs == 2
    assert final(plan, "finetune/pydocs/docs_mlm/0").schedule.steps is None
    plan = plan_of(tmp_path, GRID + "pydocs/finetune.epochs = 2", "finetune.steps = 9", "finetune.warmup_steps = 0")
    assert final(plan, "finetune/pydocs/docs_mlm/0").schedule.steps == 9
    message = refusal(tmp_path, GRID + "finetune.steps = 5\nfinetune.epochs = 2")
    assert "g.gin:4" in message or "g.gin:5" in message


def test_a_row_is_a_recipe_under_a_name_with_its_own_bindings(tmp_path: Path) -> None:
    text = GRID.replace("'tapt'", "'tapt', 'r2/self_distillation'") + "r2/self_distillation.rounds = 2\n"
    plan = plan_of(tmp_path, text)
    names = [stage.name for stage in plan.stages if stage.data.task == "digits"]
    assert names.count("self_distill_1") == 1
    assert names.count("self_distill_2") == 1
    teacher = final(plan, "r2/digits/photos_mae/0").init
    assert teacher.name == "self_distill_2"
    assert teacher.teacher.name == "self_distill_1"
    assert teacher.init == teacher.teacher.init == "pretrained"


def test_a_distillation_round_trains_like_further_pretraining_unless_told(tmp_path: Path) -> None:
    plan = plan_of(tmp_path, GRID + "further_pretrain.lr = 0.5\nself_distill.batch_size = 7")
    student = final(plan, "self_distillation/digits/photos_mae/0").init
    assert (student.schedule.lr, student.schedule.batch_size) == (0.5, 7)
    assert student.teacher.schedule.batch_size == 64


def test_scratch_is_a_row_with_its_own_binding(tmp_path: Path) -> None:
    text = GRID.replace("'tapt'", "'scratch/finetune'") + "scratch/finetune.init = 'random'"
    stage = final(plan_of(tmp_path, text), "scratch/digits/photos_mae/0")
    assert stage.init == "random"
    assert stage.parents == ()


def test_macros_and_includes(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "base.gin").write_text(GRID + "RATE = 0.25\nfinetune.lr = %RATE\n")
    plan = plan_of(tmp_path, "include 'sub/base.gin'\ngrid.seeds = [7]\n")
    assert plan.grid.seeds == (7,)
    assert plan.grid.name == "g"
    assert {cell.stage.schedule.lr for cell in plan.cells} == {0.25}


def test_overriding_an_included_binding_does_not_make_its_macro_a_mistake(tmp_path: Path) -> None:
    (tmp_path / "base.gin").write_text(GRID + "RATE = 0.25\nfinetune.lr = %RATE\n")
    plan = plan_of(tmp_path, "include 'base.gin'\nfinetune.lr = 0.5\n")
    assert {cell.stage.schedule.lr for cell in plan.cells} == {0.5}


def test_include_is_relative_to_the_including_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "base.gin").write_text(GRID)
    (tmp_path / "top.gin").write_text("include 'base.gin'\n")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    grid, _ = load_grid(["../top.gin"], [])
    assert grid.tasks == ("digits", "pydocs")


def test_shipped_files_are_found_from_anywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    shipped = find_gin("quickstart.gin")
    assert find_gin("gin/quickstart.gin") == find_gin("quickstart") == shipped
    (tmp_path / "quickstart.gin").write_text(GRID)
    assert find_gin("quickstart.gin") == Path("quickstart.gin")


MISTAKES = [
    ("finetnue.lr = 1", "'finetune'"),
    ("finetune.lrr = 1", "'lr'"),
    ("finetnue/finetune.lr = 1", "'finetune'"),
    ("digits/finetnue/finetune.lr = 1", "'digits/finetune'"),
    ("finetune/digits/finetune.lr = 1", "'digits/finetune'"),
    ("finetune.lr = '1e-4'", "number"),
    ("finetune.lr = None", "number"),
    ("finetune.steps = 10.5", "whole number"),
    ("finetune.steps = -5", "at least 1"),
    ("finetune.batch_size = True", "whole number"),
    ("finetune.decay = 'cosine'", "'linear'"),
    ("finetune.betas = [0.9]", "betas"),
    ("finetune.lr = 1\nfinetune.lr = 2", "g.gin:4"),
    ("finetune.lr = 1\nfinetune.lr = 1", "g.gin:4"),
    ("BATCHSIZ = 3", "BATCHSIZ"),
    ("finetune.lr = %RATE", "RATE"),
    ("A = 1\nA = 2\nfinetune.lr = %A", "g.gin:4"),
    ("A = %A\nfinetune.lr = %A", "itself"),
    ("finetune.lr = @foo()", "@foo"),
    ("finetune.lr = = 3", "not valid gin"),
    ("finetune.lr = [1,", "not valid gin"),
    ("finetune.lr = ture", "not valid gin"),
    ("import baselines.tapt", "import"),
    ("include 'nowhere.gin'", "nowhere.gin"),
    ("include 'g.gin'", "includes itself"),
    ("finetune.lr = 1\ndigits/finetune.lr = 2\npydocs/finetune.lr = 3", "overridden everywhere"),
    ("tapt/self_distill.lr = 1", "changes nothing"),
    (
        "vit_mae_base/finetune.lr = 1\nfinetune.lr = 2",
        "no task uses the backbone vit_mae_base, but docs_mlm, photos_mae",
    ),
    ("20news/task.source = 'csv:x'", "g.gin:4: '20news' is no name: it must be a letter"),
    ("my-task/task.source = 'csv:x'", "'my-task' is no name"),
    ("my task/task.source = 'csv:x'", "'my task' is no name"),
    ("finetune/further_pretrain.lr = 1", "changes nothing"),
    ("docs_mlm/backbone.patch_size = 4", "changes nothing"),
    ("RecAdam.gamma = 1", "RecAdam"),
    ("digits/grid.seeds = [1]", "no scope"),
    ("self_distillation.rounds = 0", "at least 1"),
    ("self_distillation.rounds = 1.5", "whole number"),
    ("self_distillation.mae_weight = -1.0", "above 0"),
    ("digits/task.backbone = 'photo_mae'", "'photos_mae'"),
    ("digits/task.metric = 'f1'", "'macro_f1'"),
    ("data.subset = 0", "at least 1"),
    ("execution.precision = 'fp16'", "'bfloat16'"),
    ("photos_mae/backbone.image_size = 9", "multiple"),
    ("photos_mae/backbone.name = 'x'", "no setting"),
    ("finetune.warmup_steps = 10000", "below"),
    ("finetune.augmentation = 'flip'", "pydocs"),
    ("digits/task.backbone = 'docs_mlm'", "modality"),
    ("tapt/task.metric = 'macro_f1'", "takes no row"),
    ("photos_mae/backbone.decoder_depth = 0", "has no decoder"),
    ("finetune.steps = 20", "warmup_steps"),
    ("self_distillation.rounds = 900", "at most 100"),
    ("data.subset_seed = -3", "0 or more"),
]


@pytest.mark.parametrize(("line", "says"), MISTAKES, ids=[line.replace("\n", "; ") for line, _ in MISTAKES])
def test_mistakes_name_their_line_and_the_cure(tmp_path: Path, line: str, says: str) -> None:
    message = refusal(tmp_path, GRID + line)
    # An open bracket ends a line later.
    locations = [f"g.gin:{number}" for number in range(4, 5 + len(line.splitlines()))]
    assert any(location in message for location in locations), message
    assert says in message
    assert refusal(tmp_path, "\n" + GRID + line) != message  # the line number is counted, not guessed


GRID_MISTAKES = [
    ("grid.rows", "[]", "empty"),
    ("grid.rows", "['finetun']", "'finetune'"),
    ("grid.rows", "['a-b/finetune']", "a-b"),
    ("grid.rows", "['/finetune']", "/finetune"),
    ("grid.rows", "['finetune', 'finetune']", "finetune"),
    ("grid.rows", "['x/finetune', 'x/tapt']", "'x'"),
    ("grid.rows", "['digits/finetune']", "ambiguous"),
    ("grid.rows", "'finetune'", "list"),
    ("grid.tasks", "[]", "empty"),
    ("grid.tasks", "['digit']", "'digits'"),
    ("grid.tasks", "['photographs']", "photographs"),
    ("grid.tasks", "['digits', 'digits']", "digits"),
    ("grid.seeds", "[]", "empty"),
    ("grid.seeds", "[1, 1]", "1"),
    ("grid.seeds", "[-1]", "0"),
    ("grid.seeds", "[0.5]", "whole number"),
    ("grid.seeds", "['0']", "whole number"),
]


@pytest.mark.parametrize(("setting", "value", "says"), GRID_MISTAKES, ids=[f"{s}={v}" for s, v, _ in GRID_MISTAKES])
def test_mistakes_in_the_axes_name_their_line(tmp_path: Path, setting: str, value: str, says: str) -> None:
    lines = [f"{setting} = {value}" if line.startswith(setting) else line for line in GRID.splitlines()]
    message = refusal(tmp_path, "\n".join(lines))
    assert f"g.gin:{1 + next(i for i, line in enumerate(lines) if line.startswith(setting))}" in message
    assert says in message


def test_mistakes_on_the_command_line_are_shown_as_typed(tmp_path: Path) -> None:
    for override in (
        "finetnue.lr=1",
        "finetune.lr='1'",
        "finetune.lr = = 1",
        "tapt/self_distill.lr=1",
        "finetune.steps=-1",
    ):
        assert override in refusal(tmp_path, GRID, override)


def test_an_override_in_an_including_file_is_meant_but_two_siblings_may_not_disagree(tmp_path: Path) -> None:
    (tmp_path / "a.gin").write_text(GRID + "finetune.lr = 1\n")
    (tmp_path / "b.gin").write_text("finetune.lr = 2\n")
    assert "b.gin:1" in refusal(tmp_path, "include 'a.gin'\ninclude 'b.gin'\n")
    with pytest.raises(InputError, match=r"b\.gin:1"):
        load_grid([str(tmp_path / "a.gin"), str(tmp_path / "b.gin")], [])


def test_a_missing_file_is_refused_with_the_nearest_name() -> None:
    with pytest.raises(InputError, match=r"quickstart\.gin"):
        find_gin("quikstart.gin")


GIN = Path(__file__).parents[2] / "gin"


@pytest.mark.parametrize("path", sorted({*GIN.glob("*.gin")} - {GIN / "fast.gin"}), ids=lambda path: path.name)
def test_shipped_grids_plan_cleanly(path: Path, tmp_path: Path) -> None:
    plan = make_plan([str(path)], (), (), tmp_path, Store(tmp_path / "runs"))
    assert plan.cells
    assert not plan.splits


@pytest.mark.parametrize("grid", ["quickstart.gin", "image.gin", "text.gin"])
def test_a_grid_is_made_fast_by_naming_one_more_file(grid: str, tmp_path: Path) -> None:
    plan = make_plan([grid, "fast.gin"], (), (), tmp_path, Store(tmp_path / "runs"))
    assert {stage.execution for stage in plan.stages} == {Execution("bfloat16", compile=True)}
    assert not plan.splits


@pytest.mark.parametrize("path", sorted(GIN.glob("backbones/*.gin")), ids=lambda path: path.name)
def test_shipped_backbones_can_be_named_beside_a_grid(path: Path, tmp_path: Path) -> None:
    plan = make_plan(["image.gin", str(path)], (), (), tmp_path, Store(tmp_path / "runs"))
    assert {cell.backbone for cell in plan.cells} == {path.stem}
    assert not plan.splits


def test_a_rows_own_binding_that_splits_a_shared_stage_is_named(tmp_path: Path) -> None:
    plan = plan_of(tmp_path, GRID + "self_distillation/further_pretrain.lr = 3e-3\ntapt/finetune.lr = 1.0\n")
    assert len(plan.splits) == 1
    assert "g.gin:4" in plan.splits[0]
    assert "further_pretrain" in plan.splits[0]
    assert "tapt" in plan.splits[0]
    digits = [stage for stage in plan.stages if (stage.name, stage.data.task) == ("further_pretrain", "digits")]
    assert sorted(stage.schedule.lr for stage in digits) == [1.5e-4, 3e-3]


def test_copies_mean_the_same_whatever_becomes_of_the_originals(tmp_path: Path) -> None:
    files = {
        "grid.gin": "# a comment\ninclude '../common/base.gin'  # more\nfinetune.lr = 1e-3\n",
        "own/shared.gin": "include 'quickstart.gin'\nfinetune.lr = 2e-3\n",
        "common/base.gin": "include '../own/shared.gin'\nfinetune.dropout = 0.3\n",
    }
    for name, text in files.items():
        path = tmp_path / "here" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    (tmp_path / "here" / "deep").mkdir()
    grid = (tmp_path / "here" / "grid.gin").rename(tmp_path / "here" / "deep" / "grid.gin")
    before = read_bindings([str(grid)], []).all
    (copy,) = copy_gin([str(grid)], tmp_path / "copies")
    for path in (tmp_path / "here").rglob("*.gin"):
        path.write_text("nonsense")
    assert copy.name == "grid.gin"
    after = read_bindings([str(copy)], []).all
    assert [(b.target, b.value) for b in after] == [(b.target, b.value) for b in before]


def test_copies_of_files_that_meet_again(tmp_path: Path) -> None:
    (tmp_path / "o'common.gin").write_text("finetune.lr = 2e-3\n")
    first, second = tmp_path / "first.gin", tmp_path / "second.gin"
    first.write_text('# a page \x0c and a line \u2028 that are none\ninclude "o\'common.gin"\n')
    second.write_text('include "o\'common.gin"\nfinetune.dropout = 0.3\n')
    names = [str(first), str(second), str(first)]
    before = read_bindings(names, []).all
    copies = [str(path) for path in copy_gin(names, tmp_path / "copies")]
    assert [(b.target, b.value) for b in read_bindings(copies, []).all] == [(b.target, b.value) for b in before]


def test_a_file_included_by_two_ways_is_read_once_in_effect(tmp_path: Path) -> None:
    (tmp_path / "common.gin").write_text(GRID)
    for name in ("a", "b"):
        (tmp_path / f"{name}.gin").write_text("include 'common.gin'\n")
    plan = plan_of(tmp_path, "include 'a.gin'\ninclude 'b.gin'\n")
    assert plan.grid.seeds == (0, 1)


def test_names_that_no_file_can_have_are_refused() -> None:
    with pytest.raises(InputError):
        find_gin("x" * 300)


def test_a_byte_order_mark_is_no_mistake(tmp_path: Path) -> None:
    (tmp_path / "g.gin").write_text(GRID, encoding="utf-8-sig")
    assert load_grid([str(tmp_path / "g.gin")], [])[0].seeds == (0, 1)


def test_settings_that_change_nothing_in_effect_share_their_stages(tmp_path: Path, prepared: Path) -> None:
    def keys(*overrides: str) -> list[str]:
        (tmp_path / "g.gin").write_text(GRID.replace(", 'pydocs'", ""))
        plan = make_plan([str(tmp_path / "g.gin")], overrides, (), prepared, Store(tmp_path / "runs"))
        return [cell.stage.key for cell in plan.cells]

    assert keys("data.subset = 1297") == keys("data.subset_seed = 5") == keys()
    assert keys("data.subset = 1296") != keys()
    assert keys("data.subset = 100", "data.subset_seed = 5") != keys("data.subset = 100")


@pytest.mark.parametrize("value", ["[" * 3000 + "]" * 3000, "9" * 400], ids=["nested", "huge"])
def test_values_that_overflow_are_refused(value: str, tmp_path: Path) -> None:
    assert "g.gin" in refusal(tmp_path, f"{GRID}finetune.lr = {value}")


def test_rows_that_only_make_sense_with_their_bindings_plan_without_false_alarms(tmp_path: Path) -> None:
    text = GRID.replace("'tapt', 'self_distillation'", "'big/kd', 'slow/tf_kd_self'").replace(", 'pydocs'", "")
    plan = plan_of(tmp_path, text + "big/kd.teacher_backbone = 'photos_mae'\nslow/Distillation.alpha = 0.3\n")
    assert not plan.splits


def test_rows_with_pretraining_stages_can_start_from_random_weights_too(tmp_path: Path) -> None:
    text = GRID.replace("'tapt'", "'tapt', 'scratch/self_distillation'")
    plan = plan_of(tmp_path, text + "scratch/pretraining.init = 'random'\n")
    student = final(plan, "scratch/digits/photos_mae/0").init
    assert student.init == student.teacher.init == "random"
    assert final(plan, "self_distillation/digits/photos_mae/0").init.init == "pretrained"


# ------------------------------------------------------------------------------------------------ without an end


GRID_AXES = "grid.rows = ['finetune']\ngrid.tasks = ['digits']\n"


def test_a_long_chain_of_macros_is_followed_and_a_circle_of_any_length_is_named(tmp_path: Path) -> None:
    chain = "".join(f"m{i} = %m{i + 1}\n" for i in range(2000))
    assert final(
        plan_of(tmp_path, f"{GRID_AXES}finetune.lr = %m0\n{chain}m2000 = 1e-3\n"), "finetune/digits/photos_mae/0"
    )
    assert "refers to itself" in refusal(tmp_path, f"finetune.lr = %m0\n{chain}m2000 = %m7\n")


def test_macros_that_double_each_other_or_nest_too_deep_are_refused(tmp_path: Path) -> None:
    doubling = "".join(f"m{i} = [%m{i + 1}, %m{i + 1}]\n" for i in range(60))
    assert "entries long" in refusal(tmp_path, f"finetune.lr = %m30\n{doubling}m60 = 1\n")
    nested = "".join(f"m{i} = [%m{i + 1}]\n" for i in range(2000))
    assert "lists deep" in refusal(tmp_path, f"finetune.lr = %m0\n{nested}m2000 = 1\n")


def test_includes_are_read_once_each_and_nested_only_so_deep(tmp_path: Path) -> None:
    for i in range(40):  # each includes the next one twice: 2^40 readings, were each file not read once
        (tmp_path / f"double{i}.gin").write_text(f"include 'double{i + 1}.gin'\n" * 2)
    (tmp_path / "double40.gin").write_text("rate = 1e-3\nfinetune.lr = %rate\n")
    plan_of(tmp_path, GRID_AXES + "include 'double0.gin'\nfinetune.lr = 1e-4\n")
    for i in range(2000):
        (tmp_path / f"deep{i}.gin").write_text(f"include 'deep{i + 1}.gin'\n")
    assert "nested more than 50 deep" in refusal(tmp_path, "include 'deep0.gin'\n")
    (tmp_path / "self.gin").write_text("include 'self.gin'\n")
    assert "includes itself" in refusal(tmp_path, "include 'self.gin'\n")


@pytest.mark.parametrize(
    "line",
    [
        "finetune.lr = 1e39",
        "finetune.weight_decay = 1e300",
        "finetune.betas = [0.9, -1e300]",
        "finetune.clip_norm = 1e300",
        "backbone.depth = 1000001",
        "backbone.image_size = 10000000000",
        "backbone.mlp_width = 10000000000",
        "grid.threads = 1025",
        "finetune.steps = 1000000001",
    ],
)
def test_values_that_nothing_can_compute_with_are_refused_with_their_line(line: str, tmp_path: Path) -> None:
    shown = refusal(tmp_path, f"{line}\n")
    assert "g.gin:" in shown and "must be" in shown


def test_a_task_or_backbone_bound_like_a_configurable_is_told_how_and_legal_names_stand_once(tmp_path: Path) -> None:
    path = tmp_path / "g.gin"
    lines = ("photos_mae.width = 16", "digits.metric = 'accuracy'", "digits.lr = 1.0", "bogus.x = 1", "bogus.y = 2")
    path.write_text("\n".join(lines) + "\n")
    with pytest.raises(InputError) as error:
        load_bindings([str(path)], [])
    messages = str(error.value).splitlines()
    for line, hint in zip(
        messages, ("photos_mae/backbone.width", "digits/task.metric", "digits/finetune.lr"), strict=False
    ):
        assert f"write {hint}." in line
    assert ["Legal: " in line for line in messages] == [False, False, False, True, False]
