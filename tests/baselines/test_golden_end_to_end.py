"""The recipe, its stages and the training loop against the numbers of the official trainers on a toy network.

Nothing here trains: `self_distillation` makes the stages, `train` runs them, in the order of the plan. Only what the
official run was given is put in: its first weights, images, masking noise and labels.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import baselines.self_distillation
from baselines.ablations import squared_distance
from bench.data.manifest import Manifest, SplitFacts
from bench.interfaces.examples import Examples
from bench.interfaces.hooks import Batch
from bench.interfaces.model import Model
from bench.models.build import build
from bench.models.image import ImageModel, mask_from_noise
from bench.models.weights import save_weights
from bench.planning.bindings import Binding, Bindings
from bench.planning.cell import Expansion
from bench.planning.settings import Grid
from bench.pretrained.vit_mae_names import from_transformers
from bench.specs import Stage, walk
from bench.specs.objectives import MaskedAutoEncoding
from bench.training.batches import Batches
from bench.training.checkpoint import Checkpoints
from bench.training.loop import Supervision, train
from bench.training.networks import initial_model, trained_model, weight_type
from tests.examples import evaluate
from tests.golden_files import cases, load, tensor

NAME = "self_distillation_end_to_end"

pytestmark = pytest.mark.golden
CPU = torch.device("cpu")
Case = dict[str, Any]


# ------------------------------------------------------------------------------------------------ the recorded set-up


def settings(hyper: dict[str, Any]) -> list[Binding]:
    """The recorded hyper-parameters as the lines of a gin file."""
    decoder, fine = hyper["decoder"], hyper.get("finetune")
    backbone = {
        "image_size": hyper["image_size"],
        "patch_size": hyper["patch_size"],
        "width": hyper["hidden"],
        "depth": hyper["layers"],
        "heads": hyper["heads"],
        "mlp_width": hyper["intermediate"],
        "decoder_width": decoder["hidden"],
        "decoder_depth": decoder["layers"],
        "decoder_heads": decoder["heads"],
        "decoder_mlp_width": decoder["intermediate"],
        "norm_eps": hyper["layer_norm_eps"],
        "decoder_norm_eps": hyper["decoder_final_norm_eps"],
        "mask_ratio": hyper["mask_ratio"],
        "norm_pix_loss": hyper["norm_pix_loss"],
    }
    bound = {
        "backbone": backbone,
        "self_distillation": {"rounds": hyper["rounds"]},
        "execution": {"precision": "float64"},
        "further_pretrain": {
            **training(hyper),
            "batch_size": hyper["batch_size"],
            "clip_norm": hyper["gradient_clipping"],
        },
    }
    if fine is not None:
        bound["finetune"] = {
            **training(fine),
            "clip_norm": fine["clip_grad_norm"],
            "augmentation": fine["augmentation"],
        }
    return [
        Binding("", configurable, setting, tuple(value) if isinstance(value, list) else value, "golden")
        for configurable, values in bound.items()
        for setting, value in values.items()
    ]


def training(hyper: dict[str, Any]) -> dict[str, Any]:
    return {
        "steps": hyper["steps"],
        "lr": hyper["lr"],
        "warmup_steps": hyper["warmup_steps"],
        "weight_decay": hyper["weight_decay"],
        "betas": hyper["betas"],
        "eps": hyper["adam_eps"],
        "dropout": hyper["dropout"],
    }


class RecordedExpansion(Expansion):
    """A grid whose data are the recorded ones: only their counts matter to a plan."""

    classes: int

    def manifest(self, task: str) -> Manifest:
        splits = {split: SplitFacts(100, "0" * 64, None) for split in ("train", "test")}
        names = tuple(f"class {i}" for i in range(self.classes))
        return Manifest(task, "image", names, splits, tokenizer_checksum=None, sources={})


def last_stage(case: Case) -> Stage:
    """What the recipe makes of the recorded hyper-parameters."""
    grid = Grid(rows=("self_distillation",), tasks=("digits",), seeds=(0,))
    bindings = Bindings(settings(case["hyper"]))
    expansion = RecordedExpansion(grid, bindings, Path())
    expansion.classes = case["hyper"].get("finetune", {"classes": 2})["classes"]
    stage = expansion.stage("self_distillation", "digits", 0)
    assert bindings.used == set(bindings.all), "a recorded hyper-parameter was not used"
    return stage


class RecordedExamples(Examples):
    """All images of all steps, each in its own place."""

    def __init__(self, images: Sequence[Tensor], labels: Sequence[Tensor] | None = None) -> None:
        self.images = torch.cat(list(images))
        super().__init__(np.arange(len(self.images)), None if labels is None else torch.cat(list(labels)), None)
        self.steps = torch.arange(len(self.images)).split([len(batch) for batch in images])

    def inputs(self, index: Tensor, device: torch.device, flip: Tensor | None = None) -> Tensor:
        assert flip is None
        return self.images[index]


class RecordedBatches(Batches):
    """Step by step what the official run saw."""

    examples: RecordedExamples

    def __init__(self, stage: Stage, examples: RecordedExamples, model: Model, noise: Sequence[Tensor] | None) -> None:
        super().__init__(stage, examples, model, CPU)
        self.noise = noise

    def at(self, step: int) -> list[Batch]:
        index = self.examples.steps[step]
        mask = None
        if self.noise is not None:
            assert isinstance(self.model, ImageModel)
            mask = mask_from_noise(self.noise[step], self.model.backbone.mask_ratio)
        labels = None if self.examples.labels is None else self.examples.labels[index]
        return [Batch(self.examples.inputs(index, CPU), index, labels, mask)]


class Weights:
    """The weights of finished stages: of the store, what a worker reads."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def weights(self, stage: Stage) -> Path:
        return self.folder / f"{stage.key}.safetensors"


class Watch:
    """Everything that the official run recorded, seen on the way through the real functions."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.totals: list[float] = []
        self.masked: list[float] = []
        self.distances: list[float] = []
        self.features: list[tuple[Tensor, Tensor]] = []
        self.norms: list[float] = []
        self.logits: list[Tensor] = []
        masked_loss, distance = MaskedAutoEncoding.loss, baselines.self_distillation.feature_distance
        clip, logits = torch.nn.utils.clip_grad_norm_, ImageModel.logits

        def watched_loss(*arguments: Any) -> Any:
            loss = masked_loss(*arguments)
            if torch.is_grad_enabled():  # a step, not the look at its activity afterwards
                self.masked.append(loss.parts["masked"].item())
            return loss

        def watched_distance(student: Tensor, teacher: Tensor) -> Tensor:
            loss = distance(student, teacher)
            if torch.is_grad_enabled():
                self.features.append((student.detach(), teacher.detach()))
                self.distances.append(loss.item())
            return loss

        def watched_clip(*arguments: Any, **options: Any) -> Tensor:
            norm = clip(*arguments, **options)
            self.norms.append(norm.item())
            return norm

        def watched_logits(*arguments: Any) -> Tensor:
            output = logits(*arguments)
            self.logits.append(output.detach())
            return output

        patch.setattr(MaskedAutoEncoding, "loss", watched_loss)
        patch.setattr(baselines.self_distillation, "feature_distance", watched_distance)
        patch.setattr(torch.nn.utils, "clip_grad_norm_", watched_clip)
        patch.setattr(ImageModel, "logits", watched_logits)

    def step(self, step: int, losses: Mapping[str, float]) -> None:
        self.totals.append(losses["loss"])


# ------------------------------------------------------------------------------------------------ running it


class Run:
    """All stages of one case, in the order of the plan, and what was seen of each."""

    def __init__(self, case: Case, folder: Path) -> None:
        self.case = case
        self.folder = folder
        self.store = Weights(folder)
        self.last = last_stage(case)
        self.stages = [stage for stage in walk(self.last) if stage.init != "random"]
        self.watched: dict[str, Watch] = {}
        self.models: dict[str, Model] = {}
        self.start = self._first_weights()
        for stage in self.stages:
            if stage is not self.last or "finetune" in case["inputs"]:
                self._run(stage)

    def _first_weights(self) -> dict[str, Tensor]:
        state = {name: tensor(values) for name, values in self.case["inputs"]["initial_state"].items()}
        start = from_transformers(state)
        model = build(self.last.backbone, decoder=True).double()
        copy_into(model, start)
        assert self.last.backbone.weights is not None
        save_weights(model, self.store.weights(self.last.backbone.weights))
        return start

    def _run(self, stage: Stage) -> None:
        model = initial_model(stage, self.store, Path("no-data"))
        if stage is self.last:
            head = {kind: tensor(self.case["inputs"]["finetune"][f"head_{kind}_init"]) for kind in ("weight", "bias")}
            copy_into(model, {f"head.{kind}": values for kind, values in head.items()})
        teacher = None if stage.teacher is None else trained_model(stage.teacher, self.store, weight_type(stage))
        examples, noise = self._recorded(stage)
        with pytest.MonkeyPatch.context() as patch:
            watch = self.watched[stage.name] = Watch(patch)
            checkpoints = Checkpoints(self.folder / "checkpoints")
            supervision = Supervision(lambda: False, checkpoints, 10**9, lambda step: None, watch.step)
            train(stage, model, teacher, RecordedBatches(stage, examples, model, noise), supervision, examples)
        save_weights(model, self.store.weights(stage))
        self.models[stage.name] = model

    def _recorded(self, stage: Stage) -> tuple[RecordedExamples, list[Tensor] | None]:
        """The images, labels and masking noise of a stage."""
        inputs = self.case["inputs"]
        if stage is self.last:
            labels = [torch.tensor(batch) for batch in inputs["finetune"]["labels_per_step"]]
            return RecordedExamples(list(map(tensor, inputs["finetune"]["images_per_step"])), labels), None
        if stage.teacher is None:
            noise = inputs["masking_noise_further_pretrain_per_step"]
        else:
            noise = inputs["masking_noise_self_distill_per_round_per_step"][self.stages.index(stage) - 1]
        return RecordedExamples(list(map(tensor, inputs["images_per_step"]))), list(map(tensor, noise))

    # -------------------------------------------------------------------------------------- comparing

    def compare(self, what: str, actual: Any, expected: Any, allowed: str) -> None:
        limits = load(NAME)["tolerance"][allowed]
        actual = actual.detach() if isinstance(actual, Tensor) else tensor(actual)
        message = f"case {self.case['name']}: {what}"
        torch.testing.assert_close(actual, tensor(expected), **limits, msg=lambda text: f"{message}\n{text}")

    def compare_weights(self, stage: str, expected: dict[str, Any], exactly: tuple[str, ...] = ("encoder.",)) -> None:
        """Every parameter whose name starts so, and no other, is recorded; and every one is equal."""
        recorded = from_transformers({name: tensor(values) for name, values in expected.items()})
        parameters = dict(self.models[stage].named_parameters())
        assert recorded.keys() == {name for name in parameters if name.startswith(exactly)}
        for name, values in recorded.items():
            self.compare(f"{name} after {stage}", parameters[name], values.tolist(), "weights")

    def distance(self, stage: str) -> float:
        """How far the encoder has gone from the first weights."""
        encoder = self.models[stage].encoder.named_parameters(prefix="encoder")
        return squared_distance((parameter, self.start[name]) for name, parameter in encoder).sqrt().item()


def copy_into(model: Model, values: dict[str, Tensor]) -> None:
    parameters = dict(model.named_parameters())
    with torch.no_grad():
        for name, value in values.items():
            assert parameters[name].shape == value.shape, name
            parameters[name].copy_(value)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> list[Run]:
    return [Run(case, tmp_path_factory.mktemp("golden")) for case in cases(NAME)]


def test_the_recipe_makes_the_stages_of_the_algorithm(runs: list[Run]) -> None:
    for run in runs:
        rounds = [f"self_distill_{round}" for round in range(1, run.case["hyper"]["rounds"] + 1)]
        assert [stage.name for stage in run.stages] == ["further_pretrain", *rounds, "finetune"]
        for teacher, student in zip(run.stages, run.stages[1:-1], strict=False):
            assert student.teacher is teacher
        assert {stage.init for stage in run.stages[:-1]} == {"pretrained"}
        assert run.last.init is run.stages[-2]


def test_further_pretraining(runs: list[Run]) -> None:
    for run in runs:
        expected, watch = run.case["outputs"]["further_pretrain"], run.watched["further_pretrain"]
        run.compare("losses", watch.masked, expected["mae_loss_per_step"], "losses")
        assert watch.totals == watch.masked
        assert bool(watch.norms) == (run.case["hyper"]["gradient_clipping"] is not None)
        run.compare_weights("further_pretrain", expected["encoder_after"])
        distance = run.case["outputs"]["l2_distance_from_init"]["further_pretrain"]
        run.compare("L2 distance", run.distance("further_pretrain"), distance, "weights")


def test_every_round_of_self_distillation(runs: list[Run]) -> None:
    for run in runs:
        rounds = run.case["outputs"]["self_distill_rounds"]
        assert len(rounds) == run.case["hyper"]["rounds"]
        for number, expected in enumerate(rounds, start=1):
            name = f"self_distill_{number}"
            watch = run.watched[name]
            run.compare(f"L_MAE in round {number}", watch.masked, expected["mae_loss_per_step"], "losses")
            run.compare(f"L_Distill in round {number}", watch.distances, expected["distill_loss_per_step"], "losses")
            sums = [mean * len(s) for mean, (s, _) in zip(watch.distances, watch.features, strict=True)]
            run.compare(f"squares in round {number}", sums, expected["distill_sum_of_squares_per_step"], "losses")
            totals = [a + b for a, b in zip(watch.masked, watch.distances, strict=True)]
            assert watch.totals == pytest.approx(totals, rel=1e-12)
            student, teacher = watch.features[0]
            run.compare(f"student in round {number}", student, expected["student_cls_features_step1"], "losses")
            run.compare(f"teacher in round {number}", teacher, expected["teacher_cls_features_step1"], "weights")
            run.compare_weights(name, expected["encoder_after"])
            distance = run.case["outputs"]["l2_distance_from_init"]["self_distill_rounds"][number - 1]
            run.compare(f"L2 distance of round {number}", run.distance(name), distance, "weights")


def test_finetuning(runs: list[Run]) -> None:
    for run in runs:
        if "finetune" not in run.case["inputs"]:
            continue
        expected, watch = run.case["outputs"]["finetune"], run.watched["finetune"]
        run.compare("fine-tuning losses", watch.totals, expected["loss_per_step"], "losses")
        run.compare("first logits", watch.logits[0], expected["logits_step1"], "losses")
        if run.case["hyper"]["finetune"]["clip_grad_norm"] is not None:
            norms = expected["grad_norm_before_clipping_per_step"]
            run.compare("gradient norms before clipping", watch.norms, norms, "losses")
        run.compare_weights("finetune", expected["final_state"], ("encoder.", "head."))
        distance = expected["l2_distance_encoder_from_init"]
        run.compare("L2 distance", run.distance("finetune"), distance, "weights")


def test_the_evaluation_after_finetuning(runs: list[Run]) -> None:
    for run in runs:
        if "finetune" not in run.case["inputs"]:
            continue
        inputs, expected, model = (
            run.case["inputs"]["finetune"],
            run.case["outputs"]["finetune"],
            run.models["finetune"],
        )
        images = list(map(tensor, inputs["test_images_per_batch"]))
        labels = [torch.tensor(batch) for batch in inputs["test_labels_per_batch"]]
        held_out = [RecordedExamples([batch], [truth]) for batch, truth in zip(images, labels, strict=True)]
        for batch, logits in zip(images, expected["test_logits_per_batch"], strict=True):
            run.compare("test logits", model.logits(batch), logits, "weights")
        metrics = evaluate(run.last, model, RecordedExamples(images, labels), CPU)
        run.compare("accuracy", metrics["accuracy"], expected["test_accuracy"], "losses")
        run.compare("test loss", metrics["loss"], expected["variant_test_loss_per_example_mean"], "losses")
        per_batch = [evaluate(run.last, model, batch, CPU)["loss"] for batch in held_out]
        expected_mean = expected["test_loss_mean_of_batch_means"]
        run.compare("mean of batch means", sum(per_batch) / len(per_batch), expected_mean, "losses")
