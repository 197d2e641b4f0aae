"""Devices: which there are, and who may speak to a GPU."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import bench
from bench import device as devices
from bench.check.tiny import STEPS, expansion, short
from bench.specs import Execution, walk
from bench.specs.objectives import CrossEntropy
from bench.store.store import Store
from bench.training.protocol import Settings
from bench.training.worker import run

ROOT = Path(bench.__file__).parents[1]
SOURCES = sorted({*(ROOT / "bench").rglob("*.py"), *(ROOT / "baselines").rglob("*.py")})
DEVICE = ROOT / "bench" / "device.py"


def cuda_uses(source: str) -> list[int]:
    """The lines on which a module names `torch.cuda`: as attribute, import, or in a string that may be run."""
    tree = ast.parse(source)
    aliases = {"torch"}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            aliases |= {name.asname for name in node.names if name.name == "torch" and name.asname}
    return [node.lineno for node in ast.walk(tree) if isinstance(node, ast.stmt | ast.expr) and _is_use(node, aliases)]


def _is_use(node: ast.AST, aliases: set[str]) -> bool:
    match node:
        case ast.Attribute(value=ast.Name(id=name), attr="cuda"):
            return name in aliases
        case ast.Import(names=names):
            return any(f"{one.name}.".startswith("torch.cuda.") for one in names)
        case ast.ImportFrom(module=module, names=names, level=0):
            return any(f"{module}.{one.name}.".startswith("torch.cuda.") for one in names)
        case ast.Constant(value=str() as text):
            return "torch.cuda." in text
    return False


@pytest.mark.parametrize(
    ("source", "uses"),
    [
        ("import torch\ntorch.cuda.synchronize()", 1),
        ("import torch as t\nt.cuda.synchronize()", 1),
        ("import torch.cuda", 1),
        ("import torch.cuda.graphs as g", 1),
        ("from torch import nn, cuda", 1),
        ("from torch.cuda import synchronize", 1),
        ("def f():\n    from torch.cuda.amp import autocast", 1),
        ("script = 'import torch; print(torch.cuda.device_count())'", 1),
        ("script = f'{1} torch.cuda.device_count()'", 1),
        ("import torch\ntorch.version.cuda; torch.backends.cuda.matmul; model.cuda()", 0),
        ("import torch\ntorch.device('cuda')", 0),
    ],
)
def test_every_way_to_cuda_is_seen(source: str, uses: int) -> None:
    assert len(cuda_uses(source)) == uses


def test_only_the_device_module_uses_cuda() -> None:
    assert cuda_uses(DEVICE.read_text(encoding="utf-8"))
    assert len(SOURCES) > 50
    others = {path: cuda_uses(path.read_text(encoding="utf-8")) for path in SOURCES if path != DEVICE}
    assert {str(path.relative_to(ROOT)): lines for path, lines in others.items() if lines} == {}


# ------------------------------------------------------------------------------------------------ order of calls


def _mentions_cuda(function: ast.FunctionDef) -> bool:
    return any(
        ast.unparse(node).startswith("torch.cuda") for node in ast.walk(function) if isinstance(node, ast.Attribute)
    )


def test_every_function_initialises_cuda_before_it_asks_for_anything() -> None:
    """Most functions of torch.cuda fail with 'Invalid device argument' before that."""
    tree = ast.parse(Path(devices.__file__).read_text())
    functions = [node for node in tree.body if isinstance(node, ast.FunctionDef) and _mentions_cuda(node)]
    by_themselves = {"_ready", "gpu_count"}  # is_available and device_count need nothing
    assert {function.name for function in functions} > {"reset_peak_memory", "peak_memory", *by_themselves}
    for function in functions:
        if function.name not in by_themselves:
            calls = [ast.unparse(node.func) for node in ast.walk(function) if isinstance(node, ast.Call)]
            assert "_ready" in calls, function.name
            source = ast.unparse(function)
            assert source.index("_ready(") < source.index("torch.cuda"), function.name


@pytest.mark.skipif(torch.cuda.is_available(), reason="shows what happens without a GPU")
def test_without_a_gpu_the_reason_is_named() -> None:
    with pytest.raises((RuntimeError, AssertionError), match=r"(?i)driver|compiled|device|GPU") as error:
        devices.reset_peak_memory(torch.device("cuda", 0))
    assert "Invalid device argument" not in str(error.value)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_memory_is_kept_between_steps_and_given_back_between_stages() -> None:
    """In a process of its own, as what else is in this one's heap could hold the pages."""
    program = """if True:
        import torch
        from bench import device

        def resident():
            return int(open("/proc/self/statm").read().split()[1]) * 4096

        device.use_cpu(1)
        before = resident()
        tensors = [torch.ones(1 << 20) for _ in range(50)]
        del tensors
        assert resident() - before > 150e6, "kept"
        device.release_memory(device.CPU)
        assert resident() - before < 50e6, "given back"
    """
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr


def test_a_stage_measures_and_releases_memory_in_order(
    prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The device calls of a whole stage, recorded: initialised first, measured anew before training, released last."""
    calls: list[str] = []
    recorded = {"reset_peak_memory", "release_memory"}

    def ready(device: torch.device) -> bool:
        calls.append("initialise")
        return sys._getframe(1).f_code.co_name in recorded

    monkeypatch.setattr(devices, "_ready", ready)
    for name in ("reset_peak_memory_stats", "empty_cache"):
        monkeypatch.setattr(torch.cuda, name, lambda *arguments, name=name: calls.append(name))
    begin = CrossEntropy.begin
    monkeypatch.setattr(CrossEntropy, "begin", lambda *arguments: calls.append("train") or begin(*arguments))
    stage = expansion(["finetune"], prepared, short(STEPS, batch_size=4)).stage("finetune", "digits", 0)
    store = Store(tmp_path)
    for each in walk(stage):
        calls.clear()
        outcome = run(store.add(each), Settings(prepared), lambda: False, lambda step, steps, loss: None)
        assert outcome.state == "done", outcome
    order = [call for call in calls if call != "initialise"]
    assert order == ["reset_peak_memory_stats", "train", "empty_cache"]  # the worker releases the rest
    assert calls[calls.index("reset_peak_memory_stats") - 1] == "initialise"


# ------------------------------------------------------------------------------------------------ numbers


def flags() -> tuple[bool, bool, bool]:
    return (
        torch.backends.cuda.matmul.allow_tf32,
        torch.backends.cudnn.allow_tf32,
        torch.are_deterministic_algorithms_enabled(),
    )


def test_precision_and_determinism_hold_for_a_stage_and_are_put_back() -> None:
    before = flags()
    gpu = torch.device("cuda", 0)
    with devices.numerics(Execution("float32"), gpu):
        assert flags() == (False, False, False)
        with devices.numerics(Execution("tf32", deterministic=True), gpu):
            assert flags() == (True, True, True)
        assert flags() == (False, False, False)
    assert flags() == before
    with pytest.raises(ZeroDivisionError), devices.numerics(Execution("tf32"), gpu):
        raise ZeroDivisionError
    assert flags() == before


def test_tf32_on_a_cpu_is_refused_at_the_stages_start(prepared: Path, tmp_path: Path) -> None:
    grid = expansion(["finetune"], prepared, {**short(STEPS, batch_size=4), "execution.precision": "tf32"})
    stage = next(walk(grid.stage("finetune", "digits", 0)))
    store = Store(tmp_path)
    outcome = run(store.add(stage), Settings(prepared), lambda: False, lambda step, steps, loss: None)
    assert outcome.state == "refused"
    assert "execution.precision" in outcome.reason and "float32" in outcome.reason
    assert store.record(stage) is None


def test_copies_to_the_cpu_are_the_tensors_themselves() -> None:
    tensor = torch.arange(3.0)
    assert devices.send(tensor, torch.device("cpu")) is tensor
    assert devices.receive(tensor).wait() == [0.0, 1.0, 2.0]
