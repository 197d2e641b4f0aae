"""Whole trainings written out from the papers' equations, in float64, against what the loop makes of the same stages.

Shared with the suite are the network's forward pass, its start, and what is drawn at random; losses, gradients' way
into weights, schedule, clipping, decay and AdamW are written here.
"""

import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from baselines.ema import WeightAverage
from baselines.freelb import FreeLB
from baselines.llrd import LayerwiseAdamW
from baselines.lora import LoRA
from baselines.mixout import Mixout
from baselines.sam import SharpnessAware
from baselines.wise_ft import WeightInterpolation
from bench.interfaces.hooks import Context, State
from bench.interfaces.model import Model
from bench.specs import Schedule, Stage
from bench.specs.objectives import AdamW, CrossEntropy, MaskedAutoEncoding
from bench.training.batches import Batches
from tests.examples import tiny_backbone
from tests.training.test_loop import CPU, Pictures, finetuning, fitted, start_of, weights_of

Weights = dict[str, Tensor]
STEPS, PEAK, WARMUP, CLIP, DECAY, EPS = 6, 2e-2, 2, 0.2, 0.1, 1e-3
RATES = [0.0, PEAK / 2, PEAK, 3 / 4 * PEAK, PEAK / 2, PEAK / 4]
FIXED = "decoder.pos_embed"
# One batch is the whole set, so that no order matters, and nothing is drawn but by the method itself.
SCHEDULE = Schedule(steps=STEPS, batch_size=22, lr=PEAK, warmup_steps=WARMUP, clip_norm=CLIP, dropout=0.0)
STAGE = finetuning(
    schedule=SCHEDULE,
    optimizer=AdamW(weight_decay=DECAY, eps=EPS),
    backbone=tiny_backbone(depth=2),
    init="random",
)


def pictures() -> Pictures:
    examples = Pictures()
    examples.dtype = torch.float64
    return examples


IMAGES, LABELS = pictures().inputs(torch.arange(22), CPU), torch.arange(22) % 10


class Network(nn.Module):
    """The network as a function of weights that are given with each call."""

    def __init__(self, model: Model) -> None:
        super().__init__()
        self.model = model

    def forward(self, method: str, *arguments: Any) -> Tensor:
        result: Tensor = getattr(self.model, method)(*arguments)
        return result

    def at(self, weights: Weights, method: str, *arguments: Any) -> Tensor:
        named = {f"model.{name}": weight for name, weight in weights.items()}
        result: Tensor = torch.func.functional_call(self, named, (method, *arguments))
        return result


def entropy(logits: Tensor, labels: Tensor = LABELS) -> Tensor:
    """The mean of −log p of the labels."""
    shifted = logits - logits.max(dim=1, keepdim=True).values
    return (shifted.exp().sum(dim=1).log() - shifted[torch.arange(len(logits)), labels]).mean()


def written_out(
    start: Weights,
    gradient: Callable[[Weights, int], Weights],
    rate_of: Callable[[str], float] = lambda name: 1.0,
) -> Iterator[Weights]:
    """Clip, then AdamW: the weights after each step. Biases, positions and the CLS token do not decay."""
    weights = dict(start)
    first, second = ({name: torch.zeros_like(w) for name, w in weights.items()} for _ in range(2))
    for step, rate in enumerate(RATES):
        gradients = gradient(weights, step)
        norm = math.sqrt(sum(float((g * g).sum()) for g in gradients.values()))
        assert norm > CLIP
        for name, g in gradients.items():
            g = g * min(1.0, CLIP / (norm + 1e-6))
            lr = rate * rate_of(name)
            decays = not name.endswith(("bias", "pos_embed", "cls_token", "mask_token"))
            first[name] = 0.9 * first[name] + 0.1 * g
            second[name] = 0.999 * second[name] + 0.001 * g * g
            corrected = first[name] / (1 - 0.9 ** (step + 1)), second[name] / (1 - 0.999 ** (step + 1))
            kept = weights[name] * (1 - lr * DECAY) if decays else weights[name]
            weights[name] = kept - lr * corrected[0] / (corrected[1].sqrt() + EPS)
        yield dict(weights)


def gradient_of(loss: Callable[[Weights], Tensor], weights: Weights) -> Weights:
    """The gradient by every weight that the loss depends on, but for the decoder's positions, which are fixed."""
    leaves = {name: weight.detach().requires_grad_() for name, weight in weights.items()}
    gradients = torch.autograd.grad(loss(leaves), list(leaves.values()), allow_unused=True)
    return {name: g for name, g in zip(leaves, gradients, strict=True) if g is not None and name != FIXED}


def begun(stage: Stage) -> tuple[Network, Weights]:
    model = start_of(stage, torch.float64)
    return Network(model), weights_of(model)


def agree(ours: Mapping[str, Tensor], theirs: Weights, start: Weights) -> None:
    assert ours.keys() == theirs.keys()
    assert any(float((ours[name] - start[name]).abs().max()) > 1e-3 for name in start)
    for name, weight in theirs.items():
        torch.testing.assert_close(ours[name], weight, rtol=1e-9, atol=1e-11, msg=lambda m, name=name: f"{name}: {m}")


def trained(stage: Stage, folder: Path) -> Weights:
    return weights_of(fitted(stage, folder, dtype=torch.float64)[0])


def supervised(network: Network) -> Callable[[Weights, int], Weights]:
    return lambda weights, step: gradient_of(lambda w: entropy(network.at(w, "logits", IMAGES)), weights)


def test_fine_tuning(tmp_path: Path) -> None:
    network, start = begun(STAGE)
    *_, last = written_out(start, supervised(network))
    agree(trained(STAGE, tmp_path), last, start)


def test_sam(tmp_path: Path) -> None:
    """g = ∇L(w + ρ ∇L(w) / ‖∇L(w)‖) of the whole step, of which the clipping is."""
    rho = 0.3
    network, start = begun(STAGE)
    plain = supervised(network)

    def gradient(weights: Weights, step: int) -> Weights:
        uphill = plain(weights, step)
        length = math.sqrt(sum(float((g * g).sum()) for g in uphill.values()))
        return plain({name: w + rho * uphill[name] / length for name, w in weights.items()}, step)

    *_, last = written_out(start, gradient)
    stage = dataclasses.replace(STAGE, optimizer=SharpnessAware(rho=rho, weight_decay=DECAY, eps=EPS))
    agree(trained(stage, tmp_path), last, start)


def test_wise_ft_and_moving_average(tmp_path: Path) -> None:
    network, start = begun(STAGE)
    passed = list(written_out(start, supervised(network)))
    back = {name: 0.3 * start[name] + 0.7 * w if name[:4] == "enco" else w for name, w in passed[-1].items()}
    agree(trained(dataclasses.replace(STAGE, constraint=WeightInterpolation(0.7)), tmp_path / "w"), back, start)
    average = {name: torch.zeros_like(w) for name, w in start.items()}
    for weights in passed:
        average = {name: 0.8 * mean + 0.2 * weights[name] for name, mean in average.items()}
    average = {name: mean / (1 - 0.8**STEPS) for name, mean in average.items()}
    agree(trained(dataclasses.replace(STAGE, constraint=WeightAverage(0.8)), tmp_path / "a"), average, start)


def test_layerwise_rates(tmp_path: Path) -> None:
    """η_l = ξ η_{l+1}: head and last norm have η, the second block ξη, the first ξ²η, the embeddings ξ³η."""
    powers = {"head": 0, "encoder.norm": 0, "encoder.blocks.1": 1, "encoder.blocks.0": 2}

    def rate_of(name: str) -> float:
        return 0.6 ** next((power for begin, power in powers.items() if name.startswith(f"{begin}.")), 3)

    network, start = begun(STAGE)
    *_, last = written_out(start, supervised(network), rate_of)
    stage = dataclasses.replace(STAGE, optimizer=LayerwiseAdamW(layer_decay=0.6, weight_decay=DECAY, eps=EPS))
    agree(trained(stage, tmp_path), last, start)


STARTS: list[Weights] = []


@dataclasses.dataclass(frozen=True)
class LoRAWithItsDraws(LoRA):
    """Notes the adapters as they were drawn."""

    def begin(self, model: Model, reference: Mapping[str, Tensor], context: Context) -> State:
        STARTS.append(
            {name: w.clone() for name, w in model.named_parameters() if ".parametrizations.weight.0." in name}
        )
        return super().begin(model, reference, context)


def test_lora(tmp_path: Path) -> None:
    """Only A, B and the head are trained; at the end W_0 + (α / r) B A is the weight."""
    stage = dataclasses.replace(STAGE, constraint=LoRAWithItsDraws(rank=4, alpha=6.0))
    STARTS.clear()
    ours = trained(stage, tmp_path)
    network, start = begun(stage)
    matrices = [f"encoder.blocks.{block}.attn.qkv.weight" for block in range(2)]
    adapters = {name.replace(".parametrizations.weight.0.", "."): weight for name, weight in STARTS[0].items()}
    assert len(adapters) == 2 * 2 * 2
    for name, weight in adapters.items():
        assert (weight.abs().max() <= 16**-0.5) and bool(weight.any()) == (".down." in name)

    def merged(weights: Weights) -> Weights:
        whole = start | {name: w for name, w in weights.items() if name.startswith("head.")}
        for name in matrices:
            layer = name.removesuffix(".weight")
            query, value = (1.5 * weights[f"{layer}.up.{i}"] @ weights[f"{layer}.down.{i}"] for i in (0, 2))
            whole[name] = start[name] + torch.cat([query, torch.zeros_like(query), value])
        return whole

    def gradient(weights: Weights, step: int) -> Weights:
        return gradient_of(lambda w: entropy(network.at(merged(w), "logits", IMAGES)), weights)

    head = {name: w for name, w in start.items() if name.startswith("head.")}
    *_, last = written_out(adapters | head, gradient)
    agree(ours, merged(last), start)
    assert all(float((ours[name] - start[name]).abs().max()) > 1e-4 for name in matrices)


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[Tensor]:
    """All that `rand_like` draws, in order."""
    numbers: list[Tensor] = []
    plain = torch.rand_like

    def noted(like: Tensor, **settings: Any) -> Tensor:
        numbers.append(plain(like, **settings))
        return numbers[-1].clone()

    monkeypatch.setattr(torch, "rand_like", noted)
    return numbers


def test_mixout(drawn: list[Tensor], tmp_path: Path) -> None:
    """Every matrix of the encoder is (M u + (1 − M) w − p u) / (1 − p) in the forward pass, with one mask per step."""
    p = 0.7
    ours = trained(dataclasses.replace(STAGE, constraint=Mixout(rate=p)), tmp_path)
    network, start = begun(STAGE)
    blocks = [f"blocks.{i}.{layer}" for i in range(2) for layer in ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")]
    names = [f"encoder.{layer}.weight" for layer in ("patch_embed.proj", *blocks)]
    assert len(drawn) == len(names) * STEPS  # in the order of the network
    masks = [dict(zip(names, drawn[i : i + len(names)], strict=True)) for i in range(0, len(drawn), len(names))]

    def mixed(weights: Weights, step: int) -> Weights:
        falls_back = {name: (numbers < p).double() for name, numbers in masks[step].items()}
        return weights | {
            name: (m * start[name] + (1 - m) * weights[name] - p * start[name]) / (1 - p)
            for name, m in falls_back.items()
        }

    def gradient(weights: Weights, step: int) -> Weights:
        return gradient_of(lambda w: entropy(network.at(mixed(w, step), "logits", IMAGES)), weights)

    *_, last = written_out(start, gradient)
    agree(ours, last, start)


def test_freelb(drawn: list[Tensor], tmp_path: Path) -> None:
    """The gradient of a step is the mean of those at δ_0, …, δ_{K−1}."""
    ascents, rate, length, radius = 3, 0.4, 0.2, 0.5
    stage = dataclasses.replace(STAGE, objective=FreeLB(ascents, rate, length, radius))
    ours = trained(stage, tmp_path)
    network, start = begun(stage)
    assert len(drawn) == STEPS + 1  # the last one measures the activity
    batches = Batches(stage, pictures(), network.model, CPU)

    def gradient(weights: Weights, step: int) -> Weights:
        (batch,) = batches.at(step)  # the examples in the order in which δ_0 was drawn for them
        images, labels = IMAGES[batch.index], LABELS[batch.index]

        def loss(w: Weights, delta: Tensor) -> Tensor:
            return entropy(network.at(w, "logits", images, network.at(w, "embed", images) + delta), labels)

        count = drawn[step][0].numel()
        delta = math.sqrt(3) * length / math.sqrt(count) * (2 * drawn[step] - 1)
        total = {name: torch.zeros_like(w) for name, w in weights.items()}
        for _ in range(ascents):
            at = gradient_of(lambda w, delta=delta: loss(w, delta), weights)
            total = {name: total[name] + g / ascents for name, g in at.items()}
            uphill = gradient_of(lambda d: loss(weights, d["delta"]), {"delta": delta})["delta"]
            moved = delta + rate * uphill / uphill.flatten(1).norm(dim=1)[:, None, None]
            delta = moved * (radius / moved.flatten(1).norm(dim=1)).clamp(max=1)[:, None, None]
        return total

    *_, last = written_out(start, gradient)
    agree(ours, last, start)


def test_joint_mae(tmp_path: Path) -> None:
    """CE + λ Σ m · mean (g − t)² / Σ m, over the removed patches; t standardised with the unbiased variance."""
    weight = 0.3
    stage = dataclasses.replace(STAGE, objective=CrossEntropy() + MaskedAutoEncoding(weight=weight))
    network, start = begun(stage)
    batches = Batches(stage, pictures(), network.model, CPU)

    def gradient(weights: Weights, step: int) -> Weights:
        (batch,) = batches.at(step)
        images, kept = batch.inputs, batch.mask.kept
        assert kept.shape == (22, 4)  # int(16 · (1 − 0.75))
        removed = torch.ones(22, 16, dtype=torch.float64)
        removed[torch.arange(22)[:, None], kept] = 0.0
        # A patch holds its pixels row by row, the channel fastest.
        cut = [images[:, :, 2 * i : 2 * i + 2, 2 * j : 2 * j + 2] for i in range(4) for j in range(4)]
        patches = torch.stack([patch.permute(0, 2, 3, 1).flatten(1) for patch in cut], dim=1)
        centred = patches - patches.mean(dim=2, keepdim=True)
        targets = centred / ((centred**2).sum(dim=2, keepdim=True) / 11 + 1e-6).sqrt()

        def loss(w: Weights) -> Tensor:
            error = ((network.at(w, "masked_predictions", images, batch.mask) - targets) ** 2).mean(dim=2)
            return entropy(network.at(w, "logits", IMAGES)) + weight * (error * removed).sum() / removed.sum()

        return gradient_of(loss, weights)

    *_, last = written_out(start, gradient)
    agree(trained(stage, tmp_path), last, start)
