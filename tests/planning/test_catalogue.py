"""Tasks and backbones that a gin file declares: used like the suite's own, prepared by the first run, never mixed."""

from __future__ import annotations

import json
import math
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from timm.models import save_for_hf
from transformers import (
    BertConfig,
    BertModel,
    DistilBertConfig,
    DistilBertForMaskedLM,
    GPT2Config,
    GPT2LMHeadModel,
)

from bench import cli, collate, grid, status
from bench.data.manifest import read_manifest
from bench.data.sources import own
from bench.errors import InputError
from bench.planning.describe import describe_plan
from bench.planning.plan import Plan, make_plan
from bench.pretrained import checkpoints
from bench.specs import PublicWeights, canonical_json
from bench.specs.architectures import MaskedAutoEncoder, MaskedLanguageModel, TransformersEncoder
from bench.speed import __main__ as speed
from bench.store.store import Store
from bench.tables.grid_facts import facts_of

GRID = """
grid.rows = ['finetune']
grid.tasks = ['pets', 'reviews']
grid.seeds = [0]
pets/task.source = 'folder:{sources}/pets'
pets/task.backbone = 'photos_mae'
reviews/task.source = 'csv:{sources}/reviews.csv'
reviews/task.backbone = 'docs_mlm'
reviews/task.metric = 'macro_f1'
finetune.steps = 4
finetune.batch_size = 8
finetune.warmup_steps = 1
source_pretrain.steps = 4
"""


@pytest.fixture
def sources(tmp_path: Path) -> Path:
    """A folder of cats and dogs, and a table of reviews."""
    folder = tmp_path / "sources"
    random = np.random.default_rng(0)
    for name, grey in (("cat", 60), ("dog", 180)):
        (folder / "pets" / name).mkdir(parents=True)
        for i in range(10):
            pixels = np.clip(random.normal(grey, 20, (12, 12)), 0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(folder / "pets" / name / f"{i}.png")
    lines = [f"what a {word} book number {i},{word}" for i in range(10) for word in ("good", "bad")]
    (folder / "reviews.csv").write_text("text,label\n" + "\n".join(lines) + "\n")
    return folder


def write(sources: Path, *lines: str, text: str = GRID) -> Path:
    path = sources.parent / "own.gin"
    path.write_text(text.format(sources=sources).lstrip() + "\n".join(lines) + "\n")
    return path


def plan_of(path: Path, data: Path) -> Plan:
    return make_plan([str(path)], [], [], data, Store(path.parent / "runs"))


def arguments_of(path: Path, data: Path) -> list[str]:
    folder = path.parent
    where = ["--store", str(folder / "runs"), "--results", str(folder / "results"), "--data", str(data)]
    return ["--gin", str(path), *where]


def run(path: Path, data: Path, *arguments: str) -> int:
    options = [*arguments_of(path, data), "--launcher", "inline", *arguments]
    return cli.reporting_errors(lambda: grid.main(options))


def changed_weights(folder: Path) -> None:
    path = folder / "model.safetensors"
    state = load_file(path)
    next(iter(state.values())).add_(1)
    save_file(state, path, metadata={"format": "pt"})


@pytest.fixture
def data(prepared: Path, tmp_path: Path) -> Path:
    """A data root of this test's own in which what is embedded is prepared."""
    return Path(shutil.copytree(prepared, tmp_path / "data"))


# ---------------------------------------------------------------------------------------------------- own data


def test_own_data_are_prepared_and_trained_on_by_name(sources: Path, data: Path) -> None:
    path = write(sources)
    plan = plan_of(path, data)
    assert plan.unprepared == {"pets", "reviews"}
    assert describe_plan(plan).count("the first run builds it") == 2
    assert run(path, data) == 0
    manifest = read_manifest("pets", data)
    assert manifest is not None
    assert manifest.class_names == ("cat", "dog")
    assert {split: facts.per_class for split, facts in manifest.splits.items()} == {"train": (8, 8), "test": (2, 2)}
    records = [
        json.loads(line) for line in (path.parent / "results" / "own" / "records.jsonl").read_text().splitlines()[1:]
    ]
    assert {record["task"] for record in records} == {"pets", "reviews"}
    assert str(path.parent) not in (path.parent / "results" / "own" / "records.jsonl").read_text()


def test_a_plan_tells_of_a_source_that_is_not_there(sources: Path, data: Path) -> None:
    path = write(sources)
    missing = sources / "pets"
    missing.rename(sources / "elsewhere")
    text = describe_plan(plan_of(path, data))
    assert str(missing) in text and text.count("the first run builds it") == 1


def parquet_of_pets(sources: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    files = sorted((sources / "pets").rglob("*.png"))
    columns = {"image": [file.read_bytes() for file in files], "label": [file.parent.name for file in files]}
    pq.write_table(pa.table(columns), sources / "pets.parquet")


def test_the_modality_of_parquet_files_is_seen_before_they_are_prepared_and_kept_after(
    sources: Path, data: Path
) -> None:
    parquet_of_pets(sources)
    path = write(sources, text=GRID.replace("folder:{sources}/pets", "parquet:{sources}/pets.parquet"))
    assert run(path, data) == 0
    (sources / "pets.parquet").unlink()
    plan = plan_of(path, data)
    assert not plan.to_run(retry=False)
    declared = write(sources, f"more/task.source = 'parquet:{sources}/none.parquet'")
    assert plan_of(declared, data).catalogue.tasks["more"].modality == "text"


def test_a_data_set_of_the_hub_has_its_modality_once_it_is_prepared(sources: Path, data: Path, tmp_path: Path) -> None:
    from bench.prepare import main

    parquet_of_pets(sources)
    (tmp_path / "copy").mkdir()
    (sources / "pets.parquet").rename(tmp_path / "copy" / "train.parquet")
    path = write(sources, text=GRID.replace("folder:{sources}/pets", "hub:owner/pets@0123abc"))
    with pytest.raises(InputError, match=r"until it is prepared: python -m bench\.data prepare pets"):
        plan_of(path, data)
    main(["prepare", "pets", "--gin", str(path), "--data", str(data), "--from", str(tmp_path / "copy")])
    assert plan_of(path, data).catalogue.tasks["pets"].modality == "image"
    assert run(path, data) == 0


def test_preparing_prints_classes_and_counts_and_a_grid_does_too(
    sources: Path, data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(write(sources), data, "--set", "pets/task.most_megapixels = 200.0") == 0
    assert "cat: train 8, test 2" in capsys.readouterr().out


def test_a_source_that_changed_is_refused_until_it_is_prepared_again(sources: Path, data: Path) -> None:
    from bench.prepare import main

    path = write(sources)
    assert run(path, data) == 0
    shutil.copy(sources / "pets" / "cat" / "0.png", sources / "pets" / "cat" / "new.png")
    before = read_manifest("pets", data)
    with pytest.raises(InputError, match="pets"):
        plan_of(path, data)
    assert main(["prepare", "pets", "--gin", str(path), "--data", str(data), "--again"]) == 0
    after = read_manifest("pets", data)
    assert before is not None
    assert after is not None
    assert after.splits["train"].checksum != before.splits["train"].checksum
    assert len(plan_of(path, data).to_run(retry=False)) == 1  # the reviews' stage is as it was


def test_a_source_is_judged_by_its_content(
    sources: Path, data: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from bench.prepare import main

    path = write(sources)
    assert run(path, data) == 0
    # Touched files, another way to the same ones, and a foreign file beside them: still the same data.
    for file in (sources / "reviews.csv", *(sources / "pets" / "cat").iterdir()):
        os.utime(file, (0, 0))
    (sources / "pets" / "cat" / ".DS_Store").write_bytes(b"left by a system")
    assert not plan_of(path, data).to_run(retry=False)
    monkeypatch.chdir(sources.parent)
    relative = write(sources, text=GRID.replace("{sources}/", "sources/"))
    assert not plan_of(relative, data).to_run(retry=False)
    # Preparing notes it, so that later plans need not read the source again.
    before = read_manifest("reviews", data)
    assert main(["prepare", "reviews", "pets", "--gin", str(path), "--data", str(data)]) == 0
    after = read_manifest("reviews", data)
    assert before is not None and after is not None
    assert (after.splits, after.sources["fingerprint"] != before.sources["fingerprint"]) == (before.splits, True)
    monkeypatch.setattr(own, "read", lambda task: pytest.fail("read again"))
    assert not plan_of(path, data).to_run(retry=False)


def test_a_changed_source_blocks_no_table(sources: Path, data: Path) -> None:
    path = write(sources)
    assert run(path, data) == 0
    table = (path.parent / "results" / "own.md").read_text()
    (sources / "reviews.csv").write_text((sources / "reviews.csv").read_text().replace("number 0", "number zero"))
    with pytest.raises(InputError, match="reviews"):
        plan_of(path, data)
    assert collate.main(arguments_of(path, data)) == 0
    assert (path.parent / "results" / "own.md").read_text() == table
    assert status.main(arguments_of(path, data)) == 0


def test_a_prepared_copy_outlives_its_source(sources: Path, data: Path) -> None:
    path = write(sources)
    assert run(path, data) == 0
    shutil.rmtree(sources)
    assert not plan_of(path, data).to_run(retry=False)


def test_a_source_that_is_read_in_another_way_is_another(sources: Path, data: Path) -> None:
    assert run(write(sources), data) == 0
    with pytest.raises(InputError, match="reviews"):
        plan_of(write(sources, "reviews/task.label_column = 'stars'"), data)


def test_preparing_again_keeps_what_was_there_if_it_fails(sources: Path, data: Path) -> None:
    from bench.prepare import main

    path = write(sources)
    assert run(path, data) == 0
    before = read_manifest("pets", data)
    (sources / "pets" / "cat" / "broken.png").write_bytes(b"no image")
    arguments = ["prepare", "pets", "--gin", str(path), "--data", str(data), "--again"]
    assert cli.reporting_errors(lambda: main(arguments)) == 2
    assert read_manifest("pets", data) == before
    assert (data / "pets" / "train.parquet").is_file()


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("digits/task.source = 'folder:x'", "taken"),
        ("downloads/task.source = 'folder:x'", "taken"),
        ("backbones/task.source = 'folder:x'", "taken"),
        ("pets/backbone.weights = 'folder:x'", "taken"),
        ("dogs2/task.source = 'x'", r"own\.gin:13"),
        ("mine/backbone.weights = 'x'", r"own\.gin:13"),
        ("task.source = 'folder:x'", "NAME/task.source"),
        ("pets/finetune/task.source = 'folder:x'", "NAME/task.source"),
        ("finetune/task.source = 'folder:x'", "row"),
        ("dogs2/task.metric = 'macro_f1'", "dogs2"),
        ("dogs2/task.label_column = 'x'", "dogs2/task.source"),
        ("vit_mae_base/task.source = 'folder:x'", "taken"),
        ("pets/task.source = 'ftp:x'", "second time"),
        ("photos_mae/backbone.weights = 'folder:x'", "photos_mae"),
        ("mine/backbone.weights_checksum = '0'", "mine/backbone.weights"),
        ("mine/backbone.depth = 3", "mine"),
    ],
)
def test_declarations_that_mean_nothing_are_refused(line: str, message: str, sources: Path, data: Path) -> None:
    with pytest.raises(InputError, match=message):
        plan_of(write(sources, line), data)


def test_one_file_of_declarations_serves_many_grids(sources: Path, data: Path) -> None:
    lines = ("more/task.source = 'folder:nowhere'", "mine/backbone.weights = 'folder:nowhere'")
    assert {cell.task for cell in plan_of(write(sources, *lines), data).cells} == {"pets", "reviews"}


def test_what_is_prepared_is_not_replaced_unasked(sources: Path, data: Path) -> None:
    from bench.prepare import main

    path = write(sources)
    command = ["prepare", "reviews", "--gin", str(path), "--data", str(data)]
    assert main(command) == 0
    assert main(command) == 0
    with pytest.raises(InputError, match="--again"):
        main([*command, "--from", str(sources)])
    with pytest.raises(InputError, match="reviews"):
        main([*command, "--set", "reviews/task.label_column = 'stars'"])


def test_a_data_root_that_holds_other_files_is_left_alone(sources: Path, data: Path) -> None:
    """The images of `pets` lying where its prepared form would go."""
    shutil.copytree(sources / "pets", data / "pets")
    assert run(write(sources), data) == 2
    assert len(list((data / "pets").rglob("*.png"))) == 20


def test_a_missing_source_is_refused_before_others_are_prepared(sources: Path, data: Path) -> None:
    text = GRID.replace("csv:{sources}/reviews.csv", "csv:{sources}/nowhere.csv")
    assert run(write(sources, text=text), data) == 2
    assert not (data / "pets").exists()


def test_an_own_task_of_the_hub_can_be_prepared_from_a_copy(sources: Path, data: Path) -> None:
    """On a cluster without internet: prepared, checked and planned from a folder."""
    from bench.prepare import main

    copy = sources / "copy"
    copy.mkdir()
    rows = "".join(f"what a {word} book number {i},so it is,{word}\n" for i in range(4) for word in ("good", "bad"))
    for split in ("train", "test"):
        (copy / f"{split}.csv").write_text("first,second,stars\n" + rows.replace("number", split))
    lines = ("reviews/task.text_column = 'first'", "reviews/task.pair_column = 'second'")
    text = GRID.replace("csv:{sources}/reviews.csv", "hub:me/reviews@0123456")
    path = write(sources, *lines, "reviews/task.label_column = 'stars'", text=text)
    assert run(path, data) == 2
    where = ["--gin", str(path), "--data", str(data)]
    assert main(["prepare", "reviews", "--from", str(copy), *where]) == 0
    assert main(["check", "reviews", *where]) == 0
    assert run(path, data) == 0


def test_a_row_cannot_have_the_name_of_a_declared_task(sources: Path, data: Path) -> None:
    text = GRID.replace("['finetune']", "['pets/finetune']")
    with pytest.raises(InputError, match="pets"):
        plan_of(write(sources, text=text), data)


@pytest.mark.parametrize("source", ["ftp:x", "folder:nowhere", "csv:{sources}/pets", "x"])
def test_sources_that_cannot_be_read_are_refused_before_anything_runs(source: str, sources: Path, data: Path) -> None:
    text = GRID.replace("csv:{sources}/reviews.csv", source)
    assert run(write(sources, text=text), data) == 2
    assert not (sources.parent / "runs").exists()
    assert not (data / "reviews").exists()


# ------------------------------------------------------------------------------------------------ own backbones


@pytest.fixture
def bert(tmp_path: Path, data: Path) -> Path:
    """A tiny BERT without a masked-language-model head, as transformers saves one, with the vocabulary of docs_mlm."""
    manifest = read_manifest("docstrings", data)
    assert manifest is not None
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=manifest.vocabulary,
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=40,
    )
    folder = tmp_path / "bert"
    BertModel(config).save_pretrained(folder)
    shutil.copy(data / "docstrings" / "tokenizer.json", folder / "tokenizer.json")
    return folder


OWN_BACKBONE = """
grid.rows = ['finetune', 'tapt']
grid.tasks = ['pydocs']
grid.seeds = [0]
pydocs/task.backbone = 'mine'
mine/backbone.weights = 'folder:{sources}'
finetune.steps = 2
finetune.batch_size = 8
finetune.warmup_steps = 0
further_pretrain.steps = 2
further_pretrain.batch_size = 8
"""


def test_an_own_backbone_is_prepared_and_its_checksum_recorded(
    bert: Path, data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write(bert, text=OWN_BACKBONE)
    assert plan_of(path, data).unprepared == {"mine"}
    assert run(path, data) == 0
    assert "decoder.predictions.bias" in capsys.readouterr().out  # what the file lacks is named
    backbone = plan_of(path, data).cells[0].stage.backbone
    assert isinstance(backbone, MaskedLanguageModel)
    assert isinstance(backbone.weights, PublicWeights)
    assert (backbone.width, backbone.positions, backbone.max_length) == (16, 40, 40)
    text = (path.parent / "results" / "own" / "stages.jsonl").read_text()
    assert text.count(str(backbone.weights.checksum)) >= 2
    assert str(path.parent) not in text
    assert str(backbone.weights.checksum)[:16] in (path.parent / "results" / "own.md").read_text()


def distilbert(folder: Path, tokenizer: Path, vocabulary: int) -> None:
    """A tiny one with its decoder."""
    sizes = {"dim": 16, "n_layers": 2, "n_heads": 2, "hidden_dim": 32, "max_position_embeddings": 40}
    DistilBertForMaskedLM(DistilBertConfig(vocab_size=vocabulary, **sizes)).save_pretrained(folder)
    shutil.copy(tokenizer, folder / "tokenizer.json")


def gpt2(folder: Path, tokenizer: Path, vocabulary: int) -> None:
    """A tiny one whose tokenizer knows the same words, one that ends a text, and nothing else."""
    sizes = {"n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 40}
    GPT2LMHeadModel(GPT2Config(vocab_size=vocabulary + 1, **sizes)).save_pretrained(folder)
    words = json.loads(tokenizer.read_text())
    end = {**words["added_tokens"][0], "id": vocabulary, "content": "<|endoftext|>"}
    words["model"]["vocab"]["<|endoftext|>"] = vocabulary
    text = json.dumps({**words, "added_tokens": [end], "post_processor": None})
    (folder / "tokenizer.json").write_text(text)


@pytest.mark.parametrize("save", [distilbert, gpt2])
def test_methods_run_on_encoders_that_transformers_computes(
    save: Callable[[Path, Path, int], None], data: Path, tmp_path: Path
) -> None:
    manifest = read_manifest("docstrings", data)
    assert manifest is not None and manifest.vocabulary is not None
    folder = tmp_path / "encoder"
    torch.manual_seed(0)
    save(folder, data / "docstrings" / "tokenizer.json", manifest.vocabulary)
    text = OWN_BACKBONE.replace("['finetune', 'tapt']", "['finetune', 'tapt', 'self_distillation', 'mars', 'r3f']")
    path = write(folder, "self_distill.steps = 2", "MarsProjection.radius = 1e-5", text=text)
    assert run(path, data) == 0
    plan = plan_of(path, data)
    assert not plan.to_run(retry=False)
    backbone = plan.cells[0].stage.backbone
    assert isinstance(backbone, TransformersEncoder)
    assert (backbone.family, backbone.width, backbone.positions) == (save.__name__, 16, 40)
    records = [json.loads(line) for line in records_path(path).read_text().splitlines()[1:]]
    assert len(records) == 5 and all(math.isfinite(record["metrics"]["loss"]) for record in records)
    assert len({record["metrics"]["loss"] for record in records}) == 5
    assert all(record["measured"]["encoder_distance"] > 0 for record in records)
    assert "fresh decoder" not in describe_plan(plan)


def test_weights_of_no_named_commit_are_told_in_plan_and_legend(data: Path, tmp_path: Path) -> None:
    path = tmp_path / "g.gin"
    for backbone, unpinned in (("deit_small", True), ("vit_base", False), ("photos_mae", False)):
        lines = ["grid.rows = ['finetune']", "grid.tasks = ['digits']", "grid.seeds = [0]"]
        path.write_text("\n".join([*lines, f"digits/task.backbone = '{backbone}'"]))
        plan = plan_of(path, data)
        line = f"{backbone} is whatever facebook/deit-small-patch16-224 holds when it is prepared"
        assert (f"not pinned: {line}" in describe_plan(plan)) == unpinned
        assert any(each.startswith(f"Not pinned: {line}") for each in facts_of(plan).legend) == unpinned


def test_a_fresh_decoder_is_told_in_plan_record_and_legend(bert: Path, data: Path) -> None:
    path = write(bert, text=OWN_BACKBONE)
    assert run(path, data) == 0
    lacking = "the weights of mine lack 5 tensors, such as decoder.predictions.bias"
    line = f"{lacking}: pre-training starts it from random values"
    assert f"fresh decoder: {line}" in describe_plan(plan_of(path, data))
    assert f"Fresh decoder: {line}." in (path.parent / "results" / "own.md").read_text()
    assert '"decoder.predictions.bias"' in records_path(path).with_name("stages.jsonl").read_text()
    # Where nothing is pre-trained further, no decoder is needed.
    path = write(bert, text=OWN_BACKBONE.replace(", 'tapt'", ""))
    path.write_text("\n".join(line for line in path.read_text().splitlines() if "further" not in line))
    assert "fresh decoder" not in describe_plan(plan_of(path, data))


def records_path(path: Path) -> Path:
    return path.parent / "results" / "own" / "records.jsonl"


def test_another_network_does_not_pass_for_a_public_one(bert: Path, data: Path) -> None:
    from bench.prepare import main

    assert (
        cli.reporting_errors(lambda: main(["prepare", "roberta_base", "--from", str(bert), "--data", str(data)])) == 2
    )
    assert main(["prepare", "roberta_large", "--from", str(bert), "--data", str(data)]) == 0  # no checksum is pinned
    with pytest.raises(InputError, match="roberta_large is another network"):
        plan_of(write(bert, text=OWN_BACKBONE.replace("'mine'", "'roberta_large'").replace("mine/", "other/")), data)
    assert main(["prepare", "gpt2", "--from", str(bert), "--data", str(data)]) == 0
    with pytest.raises(InputError, match="gpt2 is another network"):
        plan_of(write(bert, text=OWN_BACKBONE.replace("'mine'", "'gpt2'").replace("mine/", "other/")), data)


def test_weights_that_changed_in_their_folder_are_noticed(bert: Path, data: Path) -> None:
    path = write(bert, text=OWN_BACKBONE)
    assert run(path, data) == 0
    os.utime(bert / "model.safetensors", (0, 0))
    assert not plan_of(path, data).to_run(retry=False)  # touched, not changed
    changed_weights(bert)
    with pytest.raises(InputError, match="changed"):
        plan_of(path, data)
    assert collate.main(arguments_of(path, data)) == 0  # what is finished is shown all the same


def test_an_own_backbone_decides_its_architecture(bert: Path, data: Path) -> None:
    assert run(write(bert, text=OWN_BACKBONE), data) == 0
    with pytest.raises(InputError, match=r"own\.gin:11: .*depth"):
        plan_of(write(bert, "mine/backbone.depth = 3", text=OWN_BACKBONE), data)
    longer = plan_of(write(bert, "mine/backbone.max_length = 20", text=OWN_BACKBONE), data)
    assert len(longer.to_run(retry=False)) == 3
    with pytest.raises(InputError, match="max_length"):
        plan_of(write(bert, "mine/backbone.max_length = 41", text=OWN_BACKBONE), data)


def test_other_weights_under_a_prepared_name_are_refused(bert: Path, data: Path) -> None:
    assert run(write(bert, text=OWN_BACKBONE), data) == 0
    other = Path(shutil.copytree(bert, bert.parent / "other"))
    assert not plan_of(write(other, text=OWN_BACKBONE), data).to_run(retry=False)  # the same files elsewhere
    changed_weights(other)
    with pytest.raises(InputError, match="mine was prepared from"):
        plan_of(write(other, text=OWN_BACKBONE), data)


def test_an_encoder_prepared_before_there_were_variants_keeps_its_keys(tmp_path: Path, data: Path) -> None:
    import timm

    folder = tmp_path / "timm"
    network = timm.create_model("vit_tiny_patch16_224", img_size=8, patch_size=4, depth=1, embed_dim=24, num_heads=2)
    save_for_hf(
        network,
        folder,
        safe_serialization=True,
        model_args={"img_size": 8, "patch_size": 4, "depth": 1, "embed_dim": 24, "num_heads": 2},
    )
    text = OWN_BACKBONE.replace("pydocs", "digits").replace("['finetune', 'tapt']", "['finetune']")
    lines = ("digits/finetune.augmentation = 'none'",)
    text = text.replace("further_pretrain.steps = 2\nfurther_pretrain.batch_size = 8\n", "")
    assert run(write(folder, *lines, text=text), data) == 0
    path = checkpoints.folder("mine", data) / "manifest.json"
    manifest = json.loads(path.read_text())
    for field in ("registers", "positioned", "layer_scale", "pre_norm", "pixel_mean", "pixel_std"):
        del manifest["architecture"][field]
    del manifest["digest"], manifest["resampling"]
    path.write_text(json.dumps(manifest))
    plan = plan_of(write(folder, *lines, text=text.replace("['finetune']", "['finetune', 'tapt']")), data)
    for backbone in (plan.cells[0].stage.backbone, plan.cells[1].stage.backbone):
        assert isinstance(backbone, MaskedAutoEncoder)
        fields = json.loads(canonical_json(backbone))
        assert not {"registers", "positioned", "layer_scale", "pre_norm", "pixel_mean", "pixel_std"} & fields.keys()
        assert (fields["decoder_depth"], "resampling" in fields["weights"]) == (0, False)
    with pytest.raises(InputError, match="image_size = 16, but the weights of mine have 8"):
        plan_of(write(folder, *lines, "mine/backbone.image_size = 16", text=text), data)


def test_a_public_backbones_weights_can_be_replaced(bert: Path, data: Path) -> None:
    """A mirror of the hub's repository, or a later revision."""
    text = OWN_BACKBONE.replace("mine", "roberta_base").replace("folder:{sources}", "mirror/roberta-base@main")
    plan = plan_of(write(bert, text=text), data)
    assert plan.catalogue.checkpoints["roberta_base"].weights == "mirror/roberta-base@main"
    assert plan.unprepared == {"roberta_base"}


# ------------------------------------------------------------------------------------------------ speed


def test_speeds_are_measured_on_the_last_stages(sources: Path, data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write(sources)
    page = sources.parent / "speed.md"
    arguments = ["--gin", str(path), "--data", str(data), "--steps", "2", "--threads", "1", "--output", str(page)]
    assert cli.reporting_errors(lambda: speed.main(arguments)) == 2  # not prepared
    assert run(path, data) == 0
    capsys.readouterr()
    assert speed.main(arguments) == 0
    rows = [line.split("|") for line in capsys.readouterr().out.splitlines() if line.startswith("| finetune/")]
    assert [row[1].strip().split("/")[1] for row in rows] == ["pets", "reviews"]
    assert rows[0][4].strip() != "-"  # images are decoded
    assert rows[1][4].strip() == "-"
    assert all(float(row[3]) > 0 and float(row[5]) > 0 for row in rows)
    assert "| finetune/pets" in page.read_text(encoding="utf-8")
