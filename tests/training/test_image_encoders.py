"""Stages on an image encoder made elsewhere: other image sizes, a fresh decoder, and what plan and tables say of it."""

import dataclasses
import json
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file

from bench import cli, grid
from bench.data.prepare import prepare_data
from bench.errors import InputError
from bench.planning.describe import describe_plan
from bench.planning.plan import Plan, make_plan
from bench.pretrained import checkpoints
from bench.specs import RANDOM, PublicWeights, Stage
from bench.specs.architectures import MaskedAutoEncoder
from bench.store.store import Store
from bench.training.networks import initial_model

GRID = """
grid.rows = ['finetune', 'tapt', 'self_distillation', 'scratch/tapt']
grid.tasks = ['digits']
grid.seeds = [0]
digits/task.backbone = 'own'
own/backbone.weights = 'folder:{folder}/own'
own/backbone.image_size = 8
finetune.steps = 2
finetune.batch_size = 8
finetune.warmup_steps = 0
further_pretrain.steps = 2
further_pretrain.batch_size = 8
self_distill.steps = 2
self_distill.batch_size = 8
scratch/pretraining.init = 'random'
"""


@pytest.fixture
def data(tmp_path: Path) -> Path:
    prepare_data("digits", tmp_path / "data")
    return tmp_path / "data"


@pytest.fixture
def gin(tmp_path: Path) -> Path:
    """A grid on a DINOv2 with registers, whose weights are for images of 16 pixels."""
    torch.manual_seed(0)
    network = transformers.Dinov2WithRegistersModel(
        transformers.Dinov2WithRegistersConfig(
            image_size=16, patch_size=4, hidden_size=16, num_hidden_layers=2, num_attention_heads=2
        )
    )
    network.save_pretrained(tmp_path / "own")
    path = tmp_path / "own.gin"
    path.write_text(GRID.format(folder=tmp_path).lstrip())
    return path


def arguments(gin: Path, data: Path, *more: str) -> list[str]:
    folder = gin.parent
    where = ["--store", str(folder / "runs"), "--results", str(folder / "results"), "--data", str(data)]
    return ["--gin", str(gin), *where, *more]


def plan_of(gin: Path, data: Path, *lines: str) -> Plan:
    return make_plan([str(gin)], list(lines), [], data, Store(gin.parent / "runs"))


def last(plan: Plan, row: str) -> Stage:
    return next(cell.stage for cell in plan.cells if cell.row == row)


def test_methods_run_on_an_encoder_without_a_decoder_and_say_so(
    gin: Path, data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.reporting_errors(lambda: grid.main(arguments(gin, data, "--launcher", "inline"))) == 0
    assert "start from random values: decoder" in capsys.readouterr().out
    plan = plan_of(gin, data)
    said = "the weights of own lack decoder"
    assert said in describe_plan(plan)
    assert said in (gin.parent / "results" / "own.md").read_text()
    without = make_plan([str(gin)], [], ["finetune/*"], data, Store(gin.parent / "runs"))
    assert said not in describe_plan(without)

    # Only stages that train a decoder have one, scaled to the encoder; the others are what they would be without it.
    finetune, tapt = last(plan, "finetune"), last(plan, "tapt")
    assert isinstance(tapt.init, Stage) and tapt.backbone == finetune.backbone
    encoder, whole = finetune.backbone, tapt.init.backbone
    assert isinstance(encoder, MaskedAutoEncoder) and isinstance(whole, MaskedAutoEncoder)
    assert isinstance(encoder.weights, PublicWeights) and isinstance(whole.weights, PublicWeights)
    assert (encoder.decoder_depth, encoder.weights.fresh) == (0, ())
    assert (whole.decoder_depth, whole.decoder_width, whole.weights.fresh) == (2, 32, ("decoder",))
    assert (encoder.image_size, encoder.weights.resampling) == (8, "antialiased")
    stages = (gin.parent / "results" / "own" / "stages.jsonl").read_text().splitlines()
    (line,) = [line for line in stages if json.loads(line)["key"] == tapt.init.key]
    assert '"fresh": ["decoder"]' in line
    scratch = last(plan, "scratch")
    assert isinstance(scratch.init, Stage) and scratch.init.init == RANDOM
    assert scratch.init.backbone == dataclasses.replace(whole, weights=None)


def test_the_encoder_is_the_prepared_one_and_the_decoder_is_drawn_from_the_stages_stream(gin: Path, data: Path) -> None:
    assert grid.main(arguments(gin, data, "--launcher", "inline", "--only", "finetune/*")) == 0
    store = Store(gin.parent / "runs")
    stage = last(plan_of(gin, data), "tapt").init
    assert isinstance(stage, Stage)
    first, again, other = (
        initial_model(each, store, data) for each in (stage, stage, dataclasses.replace(stage, seed=stage.seed + 1))
    )
    weights = load_file(checkpoints.folder("own", data) / checkpoints.WEIGHTS)
    for name, parameter in first.named_parameters():
        assert torch.equal(parameter, again.get_parameter(name))
        if name.startswith("decoder") and parameter.requires_grad and parameter.ndim > 1:
            assert not torch.equal(parameter, other.get_parameter(name)), name
        elif name == "encoder.pos_embed":
            assert (parameter.shape, weights[name].shape) == ((1, 5, 16), (1, 17, 16))
            assert torch.equal(parameter[:, :1], weights[name][:, :1])
        elif name.startswith("encoder"):
            assert torch.equal(parameter, weights[name]), name


def test_what_the_weights_decide_cannot_be_bound(gin: Path, data: Path) -> None:
    assert grid.main(arguments(gin, data, "--launcher", "inline", "--only", "finetune/*")) == 0
    for line, reason in (
        ("own/backbone.image_size = 10", r"multiple of patch_size \(4\)"),
        ("own/backbone.registers = 2", "backbone.registers = 2, but the weights of own have 4"),
        ("own/backbone.layer_scale = 0.1", "backbone.layer_scale = 0.1, but the weights of own have 1.0"),
        ("own/backbone.decoder_depth = 3", "backbone.decoder_depth = 3, but the weights of own have 0"),
    ):
        with pytest.raises(InputError, match=reason):
            plan_of(gin, data, line)


def test_an_auto_encoder_keeps_the_image_size_of_its_weights(gin: Path, data: Path) -> None:
    config = transformers.ViTMAEConfig(
        image_size=16, patch_size=4, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, decoder_hidden_size=16
    )
    network = transformers.ViTMAEForPreTraining(config)
    with torch.no_grad():
        for positions in (network.vit.embeddings.position_embeddings, network.decoder.decoder_pos_embed):
            positions.normal_()
    network.save_pretrained(gin.parent / "own")
    size = "own/backbone.image_size"
    assert grid.main(arguments(gin, data, "--launcher", "inline", "--only", "finetune/*", "--set", f"{size} = 16")) == 0
    with pytest.raises(InputError, match="image_size = 8, but the weights of own have 16"):
        plan_of(gin, data)
