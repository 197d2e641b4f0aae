"""Dropout and attention of our own on a CPU, and transformer blocks that torch compiles."""

import dataclasses
import functools
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch._dynamo
import torch._inductor.config
from torch import Tensor, nn
from torch.autograd import backward
from torch.nn.functional import scaled_dot_product_attention

from bench.check.host_graph import HostGraph
from bench.data.examples import padded
from bench.interfaces.model import Model
from bench.models.build import build
from bench.models.layers import Dropout, attend, use_dropout
from bench.specs.architectures import TransformersEncoder
from bench.specs.families import FAMILIES
from tests.examples import tiny_backbone
from tests.models.test_text_model import BACKBONE, text

# ------------------------------------------------------------------------------------------------ dropout


@pytest.mark.parametrize("rate", [0.1, 0.5, 0.9])
def test_dropout_zeroes_at_its_rate_and_scales_the_rest(rate: float) -> None:
    torch.manual_seed(0)
    values = torch.full((1001, 999), 3.0, dtype=torch.float64, requires_grad=True)
    dropped = Dropout(rate)(values)
    zero = dropped == 0
    count = zero.numel()
    assert abs(float(zero.double().mean()) - rate) < 4 * (rate * (1 - rate) / count) ** 0.5
    torch.testing.assert_close(dropped[~zero] / 3, torch.full_like(dropped[~zero], 1 / (1 - rate)), rtol=1e-3, atol=0)
    assert len(dropped[~zero].unique()) == 1
    # Four values share one draw of the generator, and know nothing of each other all the same.
    flat = zero.flatten()
    for distance in (1, 2, 3, 4):
        both = float((flat[:-distance] & flat[distance:]).double().mean())
        assert abs(both - rate**2) < 6 * rate * (1 - rate) / count**0.5, distance
    backward(dropped.sum())
    assert values.grad is not None
    assert torch.equal(values.grad == 0, zero)
    assert torch.equal(values.grad * 3, dropped.detach())


def test_dropout_is_unbiased_at_a_rate_that_is_no_multiple_of_its_steps() -> None:
    torch.manual_seed(0)
    dropped = Dropout(1e-5)(torch.ones(4_000_000))
    expected = round(1e-5 * 2**16) / 2**16
    assert float((dropped == 0).double().mean()) == pytest.approx(expected, rel=0.6)
    assert float(dropped.double().mean()) == pytest.approx(1, abs=1e-5)


def test_dropout_follows_the_seed_and_rests_in_eval_mode() -> None:
    drop, values = Dropout(0.3), torch.ones(77)
    drawn = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        drawn.append(drop(values))
    assert torch.equal(drawn[0], drawn[1]) and not torch.equal(drawn[0], drawn[2])
    assert torch.equal(drop.eval()(values), values)
    assert torch.equal(Dropout(0.0)(values), values)
    assert drop.train()(values.bfloat16()).dtype == torch.bfloat16
    assert drop(torch.ones(0, 4)).shape == (0, 4)


def test_every_dropout_of_a_network_is_replaced_at_its_rate() -> None:
    network = nn.Sequential(nn.Dropout(0.1), nn.Sequential(nn.Linear(3, 3), nn.Dropout(0.4)))
    use_dropout(network)
    assert [(type(m), m.p) for m in network.modules() if isinstance(m, nn.Dropout)] == [(Dropout, 0.1), (Dropout, 0.4)]
    for built in (build(tiny_backbone(), classes=3, decoder=True), build(BACKBONE, classes=3, decoder=True)):
        dropouts = [m for m in built.modules() if isinstance(m, nn.Dropout)]
        assert len(dropouts) > 3 and {type(m) for m in dropouts} == {Dropout}


# ------------------------------------------------------------------------------------------------ attention


def heads(tokens: int) -> Tensor:
    generator = torch.Generator().manual_seed(tokens)
    return torch.randn(2, 3, tokens, 8, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("queries", [1, 6])
def test_attention_with_dropout_is_attention_where_nothing_is_dropped(queries: int, masked: bool) -> None:
    mask = (torch.arange(6) < torch.tensor([[6], [4]]))[:, None, None] if masked else None
    query, key, value = heads(queries), heads(6), heads(6) + 1
    expected = scaled_dot_product_attention(query, key, value, attn_mask=mask)
    torch.testing.assert_close(attend(query, key, value, mask, 1e-9), expected, rtol=0, atol=1e-12)
    torch.testing.assert_close(attend(query, key, value, mask, 0.0), expected, rtol=0, atol=1e-12)
    torch.manual_seed(0)
    with torch.no_grad():
        dropped = torch.stack([attend(query, key, value, mask, 0.3) for _ in range(3000)])
    torch.testing.assert_close(dropped.mean(dim=0), expected, rtol=0, atol=0.15)
    assert dropped.std(dim=0).min() > 0.02


# ------------------------------------------------------------------------------------------------ compiled


def image_model(dropout: float, depth: int = 3) -> tuple[Model, Any]:
    torch.manual_seed(0)
    built = build(tiny_backbone(depth=depth, decoder_width=24), classes=3, decoder=True, dropout=dropout)
    return built, torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(1))


def text_model(dropout: float) -> tuple[Model, Any]:
    torch.manual_seed(0)
    built = build(dataclasses.replace(BACKBONE, dropout=dropout), classes=3, decoder=True)
    return built, padded(text(), 12, 0)


def outputs(built: Model, inputs: Any) -> list[Tensor]:
    """Class scores, L_MAE, and the gradients of both."""
    mask = built.draw_mask(inputs, torch.Generator().manual_seed(2))
    scores, masked = built.logits(inputs), built.masked_loss(inputs, mask)
    parameters = [parameter for parameter in built.parameters() if parameter.requires_grad]
    gradients = torch.autograd.grad(scores.square().sum() + masked, parameters)
    return [scores, masked, *gradients]


@pytest.mark.parametrize("make", [image_model, text_model])
def test_no_pass_asks_the_device_for_a_value(make: Any) -> None:
    """Where a GPU is to repeat recorded steps, it must not be asked: the stand-in for its recordings refuses."""
    built, inputs = make(0.1)
    mask = built.draw_mask(inputs, torch.Generator().manual_seed(2))
    HostGraph(None).capture(lambda: backward(built.logits(inputs).sum() + built.masked_loss(inputs, mask)))
    with pytest.raises(RuntimeError, match="asks the device"):
        HostGraph(None).capture(lambda: built.logits(inputs).nonzero())


@pytest.fixture
def compiling() -> Iterator[Counter[str]]:
    """What torch counts while it compiles; everything compiled is forgotten before and after."""
    torch.compiler.reset()
    counters: Counter[str] = torch._dynamo.utils.counters["stats"]
    counters.clear()
    yield counters
    torch.compiler.reset()


def drops_anew(built: Model, inputs: Any) -> None:
    drawn = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        with torch.no_grad():
            drawn.append(built.features(inputs))
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.allclose(drawn[0], drawn[2])


COMPILERS_OWN = pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning")


@COMPILERS_OWN
@pytest.mark.parametrize("make", [image_model, text_model])
def test_blocks_are_traced_whole_and_alike(make: Any, compiling: Counter[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """With everything of the compiler but its code generation, which takes long."""
    compiler = functools.partial(torch.compile, backend="aot_eager", fullgraph=True)
    monkeypatch.setattr(torch, "compile", compiler)
    built, inputs = make(0.0)
    names, expected = list(built.state_dict()), outputs(built, inputs)
    built.compile_blocks()
    assert list(built.state_dict()) == names
    for ours, theirs in zip(outputs(built, inputs), expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)
    # Blocks of one shape share their code. Images: masked, unmasked, of the decoder, and the first token alone.
    assert compiling["unique_graphs"] == (4 if make is image_model else 3)
    built.eval()
    built.logits(inputs)  # as it is written
    assert compiling["unique_graphs"] == (4 if make is image_model else 3)
    dropping, inputs = make(0.5)
    dropping.compile_blocks()
    drops_anew(dropping, inputs)


@COMPILERS_OWN
@pytest.mark.parametrize("family", FAMILIES)
def test_blocks_that_transformers_computes_are_traced_whole(
    family: str, compiling: Counter[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    compiler = functools.partial(torch.compile, backend="aot_eager", fullgraph=True)
    monkeypatch.setattr(torch, "compile", compiler)
    sizes: dict[str, Any] = {"vocabulary": 40, "width": 16, "depth": 6, "heads": 2, "mlp_width": 20, "max_length": 12}
    mask_id = None if FAMILIES[family].causal else 4
    backbone = TransformersEncoder("tiny", None, None, None, family=family, **sizes, segments=1, mask_id=mask_id)

    def make(dropout: float) -> tuple[Model, Any]:
        torch.manual_seed(0)
        return build(backbone, classes=3, decoder=True, dropout=dropout), padded(text(), 12, 0)

    built, inputs = make(0.0)
    names, expected = list(built.state_dict()), outputs(built, inputs)
    built.compile_blocks()
    assert list(built.state_dict()) == names
    for ours, theirs in zip(outputs(built, inputs), expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)
    # The first block of ModernBERT has one norm less; all other blocks share their code.
    kinds = 2 if family == "modernbert" else 1
    assert compiling["unique_graphs"] == kinds
    built.eval()
    built.logits(inputs)  # as it is written
    assert compiling["unique_graphs"] == kinds
    dropping, inputs = make(0.5)
    dropping.compile_blocks()
    drops_anew(dropping, inputs)


@COMPILERS_OWN
@pytest.mark.group("compiler")
def test_a_compiled_block_computes_the_same_and_drops_anew(compiling: Counter[str]) -> None:
    with torch._inductor.config.patch(compile_threads=1):
        built, inputs = image_model(0.0, depth=1)
        weight = built.encoder.get_parameter("blocks.0.attn.qkv.weight")

        def features_and_gradient() -> list[Tensor]:
            features = built.features(inputs)
            return [features, *torch.autograd.grad(features.square().sum(), weight)]

        expected = features_and_gradient()
        built.compile_blocks()
        torch.testing.assert_close(features_and_gradient(), expected, rtol=0, atol=1e-5)
        assert compiling["unique_graphs"] == 1
        dropping, inputs = image_model(0.5, depth=1)
        dropping.compile_blocks()
        drops_anew(dropping, inputs)
