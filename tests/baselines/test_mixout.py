"""Mixout: mean and gradient over masks, which weights it mixes, its inert limit, and what is left of it."""

import dataclasses
import itertools
import json
from pathlib import Path

import pytest
import torch

from baselines.mixout import Mixout
from bench.data.examples import by_length
from bench.errors import SpecError
from bench.interfaces.hooks import Clock, Context, State
from bench.models.adapters import Mixed
from bench.models.build import build
from bench.specs import Backbone
from bench.specs.architectures import TransformersEncoder
from bench.training.loop import Interrupted
from tests.baselines.test_freelb import text_batch
from tests.examples import tiny_backbone
from tests.training.test_batches import WORDS
from tests.training.test_loop import FINETUNE, equal, fitted, run, weights_of

CONTEXT = Context(Clock(), 10, False, torch.device("cpu"), training_set=None)  # type: ignore[arg-type]
IMAGE_MATRICES = {"patch_embed.proj", "attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2"}
TEXT_MATRICES = {
    *(f"attention.self.{part}" for part in ("query", "key", "value")),
    "attention.output.dense",
    "intermediate.dense",
    "output.dense",
}


@pytest.mark.parametrize("rate", [0.3, 0.7, 0.9])
def test_a_mixed_weight_is_the_papers_and_its_mean_is_the_weight(rate: float) -> None:
    """(M u + (1 − M) w − p u) / (1 − p); its gradient by w is (1 − M) / (1 − p)."""
    torch.manual_seed(0)
    start, weight = torch.randn(4, 5).double(), torch.randn(4, 5).double().requires_grad_()
    mixed = Mixed(start, rate)
    count, mean, replaced = 20_000, torch.zeros(4, 5).double(), 0.0
    for number in range(count):
        value = mixed(weight)
        mean += value.detach() / count
        mask = (value.detach() == start).double()  # M, seen by the weights that are u
        replaced += float(mask.mean()) / count
        if number < 20:
            expected = (mask * start + (1 - mask) * weight.detach() - rate * start) / (1 - rate)
            torch.testing.assert_close(value.detach(), expected, rtol=1e-12, atol=1e-14)
            upstream = torch.randn(4, 5).double()
            (gradient,) = torch.autograd.grad(value, weight, upstream)
            torch.testing.assert_close(gradient, (1 - mask) / (1 - rate) * upstream, rtol=1e-12, atol=0.0)
    assert replaced == pytest.approx(rate, abs=0.01)
    # A value's standard deviation over masks is √(p / (1 − p)) |w − u|.
    deviation = (rate / (1 - rate) / count) ** 0.5 * (weight.detach() - start).abs()
    assert ((mean - weight.detach()).abs() < 5 * deviation).all()
    mixed.eval()
    assert torch.equal(mixed(weight), weight)


@pytest.mark.parametrize(("backbone", "expected"), [(tiny_backbone(), IMAGE_MATRICES), (WORDS, TEXT_MATRICES)])
def test_the_encoders_matrices_are_mixed_and_nothing_else(backbone: object, expected: set[str]) -> None:
    model = build(backbone, classes=3)  # type: ignore[arg-type]
    before = weights_of(model)
    Mixout().inject(model)
    mixed = [name for name, _ in model.named_parameters() if name.endswith(".parametrizations.weight.original")]
    assert all(name.startswith("encoder.") for name in mixed)
    ends = {part for name in mixed for part in expected if name.endswith(f"{part}.parametrizations.weight.original")}
    assert ends == expected
    assert len(mixed) == len([name for name in before if name.endswith(tuple(f"{end}.weight" for end in expected))])


def test_every_pass_draws_anew_and_eval_mode_reads_the_weights_as_they_are() -> None:
    torch.manual_seed(1)
    model = build(tiny_backbone(), classes=3).double()
    images = torch.randn(2, 3, 8, 8).double()
    constraint = Mixout(rate=0.5)
    constraint.inject(model)
    with torch.no_grad():
        for parameter in model.encoder.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
        passes = [model.logits(images) for _ in range(3)]
        unmixed = model.eval().logits(images)
        constraint.finish(model, {}, State(), CONTEXT)
        plain = model.train().logits(images)  # no dropout
    assert torch.equal(unmixed, plain)
    drawn = [*passes, plain]
    assert all(not torch.allclose(*pair) for pair in itertools.combinations(drawn, 2))


def family(name: str, **config: object) -> TransformersEncoder:
    sizes = {"width": 16, "depth": 2, "heads": 2, "mlp_width": 20, "vocabulary": 50}
    marks = {"segments": 1, "mask_id": None if name == "gpt2" else 4, "special_ids": (0, 4)}
    return TransformersEncoder(
        "tiny",
        None,
        None,
        None,
        family=name,
        config=json.dumps(config, sort_keys=True, separators=(",", ":")),
        **sizes,
        **marks,
    )


RELATIVE = {"relative_attention": True, "share_att_key": True, "pos_att_type": "p2c|c2p"}


@pytest.mark.parametrize(
    "backbone",
    [WORDS, family("distilbert"), family("gpt2"), family("deberta-v2", **RELATIVE, position_biased_input=False)],
    ids=["bert", "distilbert", "gpt2", "deberta-v2"],
)
@pytest.mark.parametrize("in_parts", [False, True])
def test_a_pass_draws_one_mask_for_a_matrix(
    in_parts: bool, backbone: Backbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where texts are computed part by part, and where a network reads a matrix twice."""
    model, drawn = build(backbone, classes=3), []
    Mixout(rate=0.5).inject(model)
    forward = Mixed.forward
    monkeypatch.setattr(Mixed, "forward", lambda self, weight: drawn.append(self) or forward(self, weight))
    inputs = text_batch(30).inputs
    parts = by_length(inputs["attention_mask"])
    assert len(parts) > 1
    model.logits({**inputs, "parts": parts} if in_parts else inputs)
    matrices = [module for module in model.modules() if isinstance(module, Mixed)]
    assert len(drawn) == len(matrices) == len(set(map(id, drawn)))


def test_at_rate_0_it_is_fine_tuning_bit_for_bit(tmp_path: Path) -> None:
    plain = run(FINETUNE, tmp_path / "plain")
    for rate in (0.0, 0.7):
        model, trained = fitted(dataclasses.replace(FINETUNE, constraint=Mixout(rate=rate)), tmp_path / str(rate))
        weights = weights_of(model)
        assert weights.keys() == plain.keys()  # plain names
        assert equal(weights, plain) == trained.activity["Mixout"].nil == (rate == 0)


def test_weights_are_mixed_with_the_stages_start_after_a_restart_too(tmp_path: Path) -> None:
    stage = dataclasses.replace(FINETUNE, constraint=Mixout(rate=0.5))
    whole = run(stage, tmp_path / "whole")
    for step in range(1, 7):
        with pytest.raises(Interrupted):
            run(stage, tmp_path / "parts", stop_at=step)
    assert equal(run(stage, tmp_path / "parts"), whole)


@pytest.mark.parametrize("rate", [-0.1, 1.0, float("nan")])
def test_impossible_rates_are_refused(rate: float) -> None:
    with pytest.raises(SpecError) as refused:
        Mixout(rate=rate)
    assert refused.value.field == "rate"
