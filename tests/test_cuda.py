"""What only a GPU can show: every method trains there, recorded steps change no bit, nothing waits, memory runs out.

Skipped where torch finds no GPU. What of this can be held without one is in test_graphs.py and test_contract.py.
"""

import dataclasses
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from torch import Tensor

import bench.training.batches
from baselines.mars import MarsProjection
from baselines.recadam import RecAdam
from bench import device as devices
from bench.check import demands
from bench.check.kit import Kit
from bench.data.examples import open_split
from bench.specs import Execution, Stage, walk
from bench.specs.objectives import CrossEntropy
from bench.store.store import Store
from bench.training.batches import Batches
from bench.training.checkpoint import Checkpoints
from bench.training.loop import Interrupted, Supervision, train
from bench.training.networks import new_model
from bench.training.protocol import Settings
from bench.training.worker import run
from tests.baselines.test_contract import RECIPE_NAMES, each_recipe, each_task
from tests.examples import evaluate
from tests.training.test_graphs import AsksTheDevice, longer
from tests.training.test_loop import FINETUNE, STAGES, Pictures, equal

pytestmark = [
    pytest.mark.group("cuda"),
    # Said once by torch where nothing is wrong: that this mode is a prototype, and that TF32 would be faster.
    pytest.mark.filterwarnings("ignore:Synchronization debug mode", "ignore:TensorFloat32 tensor cores"),
]

GPU = torch.device("cuda", 0)
EXACT = Execution(deterministic=True)


# ------------------------------------------------------------------------------------------------ every method


class CountedGraph(devices.Graph):
    """A real graph; `count` says how many there were."""

    count = 0

    def __init__(self, pool: object) -> None:
        super().__init__(pool)
        type(self).count += 1


@pytest.fixture(scope="module")
def kit(prepared: Path, tmp_path_factory: pytest.TempPathFactory) -> Kit:
    bound = {"execution.deterministic": True}
    return Kit(RECIPE_NAMES, prepared, tmp_path_factory.mktemp("cuda"), "cuda:0", bound, CountedGraph)


@each_task
@each_recipe
def test_every_method_trains_and_is_evaluated(kit: Kit, recipe: str, task: str) -> None:
    last = kit.plan(recipe, task)
    for stage, trained in zip(walk(last), kit.train(last), strict=True):
        assert trained.outcome.state == "done", f"{stage.folder}: {trained.outcome.reason}\n{trained.log}"
        assert trained.record is not None and trained.record["measured"]["peak_memory_bytes"] > 0
        assert trained.record["provenance"]["device"] == devices.name(GPU)


@each_task
@each_recipe
def test_an_interruption_after_any_step_changes_no_bit(kit: Kit, recipe: str, task: str) -> None:
    demands.goes_on_after_an_interruption(kit, recipe, task)


# ------------------------------------------------------------------------------------------------ the loop


def trained(
    stage: Stage, folder: Path, stop_at: int | None = None, graphs: bool = True, wait: bool = True
) -> dict[str, Tensor]:
    """The weights of a stage on random pictures; without `wait`, whatever waits for the GPU in a step is an error."""
    torch.manual_seed(1)
    model = new_model(stage, torch.float32).to(GPU)
    examples = GpuPictures()
    done: list[int] = []

    def progress(step: int, losses: object) -> None:
        done.append(step)

    steps = 0

    def stop() -> bool:
        nonlocal steps
        steps += 1
        if not wait:
            # The first steps set things up; from the fourth on nothing may wait.
            torch.cuda.set_sync_debug_mode("error" if 4 <= steps < stage.total_steps else "default")
        return stop_at is not None and steps == stop_at

    supervision = Supervision(stop, Checkpoints(folder), 1000, lambda step: None, progress)
    try:
        with devices.numerics(stage.execution, GPU):
            train(stage, model, None, Batches(stage, examples, model, GPU), supervision, graphs=graphs)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert done == sorted(done)
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


class GpuPictures(Pictures):
    """The random pictures, kept on the GPU."""

    def inputs(self, index: Tensor, device: torch.device, flip: Tensor | None = None) -> Tensor:
        if self._images.device != device:
            self._images = self._images.to(device)
        images = self._images[devices.send(index, device)].to(self.dtype)
        return (
            images
            if flip is None
            else torch.where(devices.send(flip, device)[:, None, None, None], images.flip(3), images)
        )


def on_gpu(stage: Stage, **changes: object) -> Stage:
    return dataclasses.replace(longer(stage, **changes), execution=EXACT)


LOOPS = {
    "finetune": on_gpu(FINETUNE),
    "masked": on_gpu(STAGES["masked"]),
    "recadam": dataclasses.replace(on_gpu(FINETUNE), optimizer=RecAdam(gamma=90.0, t0=3, k=1.0)),
    "mars": dataclasses.replace(on_gpu(FINETUNE), constraint=MarsProjection(radius=0.05, head_radius=0.5)),
    "micro_batches": on_gpu(FINETUNE, micro_batches=3),
    "bfloat16": dataclasses.replace(on_gpu(FINETUNE), execution=Execution("bfloat16", deterministic=True)),
    "tf32": dataclasses.replace(on_gpu(FINETUNE), execution=Execution("tf32", deterministic=True)),
    "compile": dataclasses.replace(on_gpu(FINETUNE), execution=Execution(deterministic=True, compile=True)),
}


@each_task
@each_recipe
def test_recorded_steps_of_every_method_change_no_bit(kit: Kit, recipe: str, task: str) -> None:
    assert demands.can_be_recorded(kit, recipe, task) == []


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.group("compiler") if name == "compile" else ()) for name in LOOPS]
)
def test_recorded_steps_give_the_same_bits(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    stage = LOOPS[name]
    whole = trained(stage, tmp_path / "plain", graphs=False)
    assert equal(trained(stage, tmp_path / "recorded"), whole)
    for step in (1, 2, 3, 7, 13):
        with pytest.raises(Interrupted):
            trained(stage, tmp_path / str(step), stop_at=step)
        assert equal(trained(stage, tmp_path / str(step)), whole), f"interrupted after step {step}"
    assert "not recorded" not in capsys.readouterr().out


@pytest.mark.parametrize("name", ["finetune", "masked", "recadam", "mars", "micro_batches"])
@pytest.mark.parametrize("graphs", [True, False], ids=["recorded", "as_written"])
def test_no_step_waits_for_the_gpu(name: str, graphs: bool, tmp_path: Path) -> None:
    stage = dataclasses.replace(LOOPS[name], execution=Execution())
    trained(stage, tmp_path, graphs=graphs, wait=False)


def test_precisions_are_told_apart_and_put_back(tmp_path: Path) -> None:
    size = 1024  # smaller products may be computed without tensor cores
    sharp = torch.full((size, size), 1 + 2.0**-12, device=GPU)

    def product(execution: Execution) -> float:
        with devices.numerics(execution, GPU):
            return float((sharp @ sharp)[0, 0])

    exact, rounded = product(Execution("float32")), product(Execution("tf32"))
    assert exact != pytest.approx(size, abs=1e-2)
    if torch.cuda.get_device_capability(GPU) >= (8, 0):
        assert rounded == pytest.approx(size, abs=1e-2)
    assert product(Execution("float32")) == exact


# ------------------------------------------------------------------------------------------------ data


@pytest.mark.parametrize("task", ["digits", "pydocs"])
def test_batches_on_a_gpu_are_those_of_the_cpu(kit: Kit, task: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench.training.batches, "has_graphs", lambda device: True)  # texts padded alike on both
    stage = kit.plan("tapt", task).init
    assert isinstance(stage, Stage)
    on: dict[str, list[list[Tensor]]] = {}
    for device in (torch.device("cpu"), GPU):
        examples = open_split(stage.data, stage.backbone, kit.data)
        batches = Batches(stage, examples, new_model(stage, torch.float32).to(device), device)
        on[device.type] = [_tensors(batch) for step in range(3) for batch in batches.at(step)]
    for cpu, gpu in zip(on["cpu"], on["cuda"], strict=True):
        for ours, theirs in zip(cpu, gpu, strict=True):
            assert theirs.device == GPU
            torch.testing.assert_close(theirs.cpu(), ours, rtol=1e-6, atol=1e-6)


def test_a_host_buffer_is_not_written_again_before_its_copy(kit: Kit) -> None:
    """The GPU is held back while the host goes far ahead of it."""
    stage = kit.plan("finetune", "pydocs")
    examples = open_split(stage.data, stage.backbone, kit.data)
    batches = Batches(stage, examples, new_model(stage, torch.float32).to(GPU), GPU)
    expected = [[tensor.clone() for batch in batches.at(step) for tensor in _tensors(batch)] for step in range(8)]
    torch.cuda.synchronize()
    torch.cuda._sleep(2_000_000_000)
    late = [[tensor for batch in batches.at(step) for tensor in _tensors(batch)] for step in range(8)]
    torch.cuda.synchronize()
    for ours, theirs in zip(expected, late, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


def _tensors(batch: object) -> list[Tensor]:
    from bench.training import graphs

    return graphs._tensors(batch)


def test_an_evaluation_on_a_gpu_is_that_of_the_cpu(kit: Kit) -> None:
    for task in ("digits", "pydocs"):
        stage = kit.plan("finetune", task)
        assert stage.evaluation is not None
        examples = open_split(stage.evaluation, stage.backbone, kit.data)
        evaluations = []
        for device in (torch.device("cpu"), GPU):
            torch.manual_seed(0)
            evaluations.append(evaluate(stage, new_model(stage, torch.float32).to(device), examples, device))
        assert evaluations[0]["loss"] == pytest.approx(evaluations[1]["loss"], rel=1e-4)
        assert evaluations[0]["accuracy"] == pytest.approx(evaluations[1]["accuracy"], abs=0.02)


# ------------------------------------------------------------------------------------------------ processes


SETTINGS = """
grid.rows = ['finetune', 'tapt']
grid.tasks = ['digits', 'pydocs']
grid.seeds = [0]
grid.checkpoint_steps = 20
execution.deterministic = True
finetune.steps = 120
finetune.batch_size = 32
finetune.warmup_steps = 2
digits/finetune.augmentation = 'none'
further_pretrain.steps = 120
further_pretrain.batch_size = 32
source_pretrain.steps = 120
"""


def command(folder: Path, data: Path, *more: str) -> list[str]:
    (folder / "cuda.gin").write_text(SETTINGS)
    paths = ["--gin", str(folder / "cuda.gin"), "--store", str(folder / "runs"), "--results", str(folder / "results")]
    return [sys.executable, "-m", "bench.grid", *paths, "--data", str(data), "--device", "cuda:0", *more]


def results(folder: Path) -> list[object]:
    lines = (folder / "results" / "cuda" / "records.jsonl").read_text().splitlines()
    return [(record["cell"], record["metrics"]) for record in map(json.loads, lines[1:])]


def test_kills_and_resumes_change_no_bit(prepared: Path, tmp_path: Path) -> None:
    folders = tmp_path / "whole", tmp_path / "killed"
    for folder in folders:
        folder.mkdir()
    subprocess.run(command(folders[0], prepared), check=True, timeout=600, capture_output=True)
    chance = random.Random(0)
    for _ in range(4):
        process = subprocess.Popen(
            command(folders[1], prepared),
            start_new_session=True,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        time.sleep(8 + 8 * chance.random())
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    subprocess.run(command(folders[1], prepared), check=True, timeout=600, capture_output=True)
    assert results(folders[1]) == results(folders[0])


def _names() -> list[str]:
    """The first GPU as CUDA_VISIBLE_DEVICES may name it: by index, UUID, and where there is one its MIG slice."""
    names = ["0"]
    if shutil.which("nvidia-smi"):
        listed = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, check=False).stdout
        uuids = [part.split(")")[0].strip() for part in listed.split("UUID:")[1:]]
        names += [uuid for uuid in uuids if uuid.startswith("GPU-")][:1]
        names += [uuid for uuid in uuids if uuid.startswith("MIG-")][:1]
    return names


def test_a_gpu_may_be_named_by_index_uuid_or_slice(prepared: Path, tmp_path: Path) -> None:
    for name in _names():
        folder = tmp_path / name.replace("/", "_")
        folder.mkdir()
        done = subprocess.run(
            command(folder, prepared, "--only", "finetune/digits/*/0"),
            env={**os.environ, "CUDA_VISIBLE_DEVICES": name},
            timeout=600,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, f"{name}: {done.stdout}\n{done.stderr}"


@dataclasses.dataclass(frozen=True)
class OutOfMemory(CrossEntropy):
    """Takes more memory than any GPU has."""

    def loss(self, *arguments: object) -> object:  # type: ignore[override]
        torch.empty(2**50, dtype=torch.uint8, device=GPU)
        raise AssertionError("there was room")


def test_out_of_memory_is_a_clear_failure_and_loses_nothing(kit: Kit, tmp_path: Path) -> None:
    stage = dataclasses.replace(kit.plan("finetune", "digits"), objective=OutOfMemory())
    kit.train(kit.plan("finetune", "digits"))
    store = Store(kit.root / "runs")
    outcome = run(store.add(stage), Settings(kit.data, "cuda:0"), lambda: False, lambda step, steps, loss: None)
    assert outcome.state == "failed"
    assert "out of memory" in outcome.reason and "batch_size" in outcome.reason
    # The next stage in the same process has the memory again.
    assert kit.train(kit.plan("r3f", "digits"))[-1].outcome.state == "done"


def test_a_step_that_asks_the_gpu_for_a_value_goes_on_unrecorded(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """With dropout: a recording that broke off must leave the generator as it was."""
    stage = dataclasses.replace(LOOPS["finetune"], objective=AsksTheDevice())
    whole = trained(stage, tmp_path / "plain", graphs=False)
    assert equal(trained(stage, tmp_path / "recorded"), whole)
    assert "steps are not recorded" in capsys.readouterr().out


def test_a_worker_gives_the_memory_of_a_finished_stage_back(kit: Kit) -> None:
    kit.train(kit.plan("finetune", "digits"))
    before = torch.cuda.memory_allocated(GPU)
    kit.train(kit.plan("self_distillation", "digits"))
    kit.train(kit.plan("recadam", "digits"))
    assert torch.cuda.memory_allocated(GPU) <= before + 2**20
