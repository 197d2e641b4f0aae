"""FreeLB: an independent ascent with the same draws, padding, its inert limit, and what is measured of it."""

import dataclasses
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from baselines.freelb import FreeLB
from bench.errors import SpecError
from bench.interfaces.hooks import Batch, Clock, Context, State
from bench.interfaces.model import Model
from bench.models.build import build
from bench.specs import Backbone
from bench.specs.objectives import CrossEntropy
from tests.examples import tiny_backbone
from tests.training.test_batches import WORDS
from tests.training.test_loop import FINETUNE, equal, fitted, run

CONTEXT = Context(Clock(), 10, False, torch.device("cpu"), training_set=None)  # type: ignore[arg-type]
LENGTHS = [7, 3, 5]


def network(backbone: Backbone, dropout: float = 0.0) -> Model:
    torch.manual_seed(1)
    return build(backbone, classes=3, dropout=dropout).double()


def picture_batch() -> Batch:
    images = torch.randn(3, 3, 8, 8, generator=torch.Generator().manual_seed(0)).double()
    return Batch(images, torch.arange(3), torch.tensor([0, 1, 2]))


def text_batch(width: int = 7) -> Batch:
    """Three texts padded to `width` tokens."""
    ids = torch.zeros(3, width, dtype=torch.long)
    for row, length in enumerate(LENGTHS):
        ids[row, :length] = torch.arange(5, 5 + length) + row
    mask = (torch.arange(width) < torch.tensor(LENGTHS)[:, None]).long()
    return Batch({"input_ids": ids, "attention_mask": mask}, torch.arange(3), torch.tensor([0, 1, 2]))


KINDS: dict[str, tuple[Backbone, Batch, list[int]]] = {
    "images": (tiny_backbone(), picture_batch(), [16, 16, 16]),  # patches
    "text": (WORDS, text_batch(), LENGTHS),
}


def published(
    model: Model, batch: Batch, tokens: list[int], *, ascents: int, rate: float, start: float, radius: float | None
) -> tuple[list[float], dict[str, Tensor]]:
    """Algorithm 1 as the released code has it: the gradients of K passes, each 1/K, are accumulated.

    The released code multiplies uniform numbers by adv_init_mag / √(tokens · D); a δ_0 about `start` long has
    adv_init_mag = start · √3.
    """
    assert batch.labels is not None
    embeddings = model.embed(batch.inputs).detach()
    delta = torch.zeros_like(embeddings)
    if start:
        uniform = 2 * torch.rand_like(embeddings) - 1
        for example, length in enumerate(tokens):
            magnitude = start * math.sqrt(3) / math.sqrt(length * embeddings.shape[-1])
            delta[example, :length] = magnitude * uniform[example, :length]
    losses = []
    for _ in range(ascents):
        delta = delta.detach().requires_grad_()
        loss = cross_entropy(model.logits(batch.inputs, model.embed(batch.inputs) + delta), batch.labels)
        (loss / ascents).backward()  # type: ignore[no-untyped-call]
        losses.append(loss.item())
        assert delta.grad is not None
        moved = delta.detach().clone()
        for example in range(len(moved)):
            gradient = delta.grad[example]
            moved[example] += rate * gradient / gradient.norm()
            if radius is not None and moved[example].norm() > radius:
                moved[example] *= radius / moved[example].norm()
        delta = moved
    gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    return losses, gradients


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("radius", [None, 0.25, 0.05])
@pytest.mark.parametrize(("ascents", "start"), [(1, 0.3), (3, 0.3), (3, 0.0), (5, 0.1)])
def test_it_is_the_published_algorithm(kind: str, radius: float | None, ascents: int, start: float) -> None:
    backbone, batch, tokens = KINDS[kind]
    settings: dict[str, Any] = {"ascents": ascents, "rate": 0.2, "start": start, "radius": radius}
    reference, model = network(backbone), network(backbone)
    torch.manual_seed(5)
    losses, expected = published(reference, batch, tokens, **settings)
    torch.manual_seed(5)
    loss = FreeLB(**settings).loss(model, batch, State(), CONTEXT)
    loss.total.backward()  # type: ignore[no-untyped-call]
    assert loss.total.item() == pytest.approx(sum(losses) / ascents, rel=1e-12)
    assert loss.parts["cross_entropy"].item() == pytest.approx(losses[0], rel=1e-12)
    assert loss.parts["after_ascent"].item() == pytest.approx(losses[-1], rel=1e-12)
    ours = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    assert ours.keys() == expected.keys()
    for name, gradient in expected.items():
        torch.testing.assert_close(ours[name], gradient, rtol=1e-10, atol=1e-12)


def test_the_ascent_raises_the_loss() -> None:
    loss = FreeLB(ascents=6, rate=0.5, start=0.0).loss(network(tiny_backbone()), picture_batch(), State(), CONTEXT)
    assert loss.parts["after_ascent"] > loss.parts["cross_entropy"] + 1e-3


def test_padding_changes_neither_length_nor_loss() -> None:
    """A text's own tokens are perturbed by as much beside a long text as beside short ones."""

    def begun(width: int) -> Tensor:
        batch = text_batch(width)
        torch.manual_seed(0)
        return FreeLB(start=0.4)._first(network(WORDS).embed(batch.inputs), batch.inputs)

    narrow, wide = begun(7), begun(40)
    for delta in (narrow, wide):
        for example, length in enumerate(LENGTHS):
            assert (delta[example, length:] == 0).all()
            # The numbers are uniform in a box of half-width 0.4 · √(3 / n).
            box = 0.4 * math.sqrt(3 / (length * WORDS.width))
            assert 0.8 * box < delta[example].abs().max() <= box
            assert delta[example].norm() == pytest.approx(0.4, rel=0.2)


def test_one_ascent_without_a_start_is_fine_tuning_bit_for_bit(tmp_path: Path) -> None:
    plain = run(FINETUNE, tmp_path / "plain")
    inert = FreeLB(ascents=1, start=0.0)
    assert equal(run(dataclasses.replace(FINETUNE, objective=inert), tmp_path / "inert"), plain)
    assert not equal(run(dataclasses.replace(FINETUNE, objective=FreeLB()), tmp_path / "active"), plain)


def test_activity_compares_with_the_clean_loss(tmp_path: Path) -> None:
    def activity(objective: Any, name: str) -> dict[str, Any]:
        return fitted(dataclasses.replace(FINETUNE, objective=objective), tmp_path / name)[1].activity

    assert activity(FreeLB(ascents=1, start=0.0), "inert")["FreeLB"].nil
    assert not activity(FreeLB(ascents=1, start=0.5), "start alone")["FreeLB"].nil
    assert not activity(FreeLB(), "defaults")["FreeLB"].nil
    # As a term of a sum its loss is asked for where no gradients are kept.
    assert not activity(CrossEntropy() + FreeLB(), "sum")["FreeLB"].nil


@pytest.mark.parametrize(
    ("field", "value"), [("ascents", 0), ("rate", -1.0), ("rate", math.inf), ("start", math.nan), ("radius", 0.0)]
)
def test_impossible_values_are_refused(field: str, value: Any) -> None:
    with pytest.raises(SpecError) as refused:
        FreeLB(**{field: value})
    assert refused.value.field == field


def test_a_batch_is_not_split() -> None:
    schedule = dataclasses.replace(FINETUNE.schedule, micro_batches=2)
    with pytest.raises(SpecError) as refused:
        dataclasses.replace(FINETUNE, objective=FreeLB(), schedule=schedule)
    assert refused.value.field == "micro_batches"
