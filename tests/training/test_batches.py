"""What a step sees: order, fairness, sizes, and draws that depend neither on padding nor on micro-batches."""

import dataclasses
import gc
import itertools
import weakref
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from baselines.supcon import SupervisedContrastive
from bench.data.examples import ImageExamples, TextExamples
from bench.interfaces.examples import Examples
from bench.interfaces.hooks import Batch
from bench.models.build import build
from bench.specs import Execution, Schedule, Stage, stream
from bench.specs.objectives import AdamW, CrossEntropy, MaskedAutoEncoding
from bench.training.batches import LENGTH_POOL, Batches
from tests.examples import finetuning, pretraining, tiny_text_backbone

CPU = torch.device("cpu")
WORDS = tiny_text_backbone(max_length=60, mask_ratio=0.3)
PICTURES = finetuning(schedule=Schedule(steps=7, batch_size=8, augmentation="flip"))
MASKED_PICTURES = pretraining(schedule=Schedule(steps=7, batch_size=8))
TEXTS = finetuning(backbone=WORDS, init="random", schedule=Schedule(steps=7, batch_size=16))
MASKED_TEXTS = pretraining(backbone=WORDS, schedule=Schedule(steps=7, batch_size=16))


def pictures(count: int = 22) -> ImageExamples:
    pixels = np.random.default_rng(0).integers(0, 256, (count, 3, 8, 8), dtype=np.uint8)
    return ImageExamples(np.arange(count), torch.arange(count) % 10, pixels)


def skewed(count: int) -> list[int]:
    """Lengths as texts have them: most are short, a few as long as may be."""
    drawn = np.random.default_rng(1).lognormal(2.3, 0.6, count)
    return np.clip(drawn, 3, WORDS.max_length).astype(int).tolist()


def texts(lengths: list[int]) -> TextExamples:
    tokens = np.random.default_rng(2).integers(5, WORDS.vocabulary, sum(lengths), dtype=np.int32)
    labels = torch.arange(len(lengths)) % 10
    return TextExamples(np.arange(len(lengths)), labels, tokens, np.concatenate([[0], np.cumsum(lengths)]))


def batches_of(stage: Stage, examples: Examples, device: torch.device = CPU) -> Batches:
    needs = stage.objective.needs
    torch.manual_seed(0)
    model = build(stage.backbone, classes=10 if "head" in needs else None, decoder="decoder" in needs)
    return Batches(stage, examples, model, device)


def scheduled(stage: Stage, **changes: Any) -> Stage:
    return dataclasses.replace(stage, schedule=dataclasses.replace(stage.schedule, **changes))


# ------------------------------------------------------------------------------------------------ order


def test_every_epoch_sees_every_example_once_in_its_own_order() -> None:
    batches = batches_of(PICTURES, pictures())
    epochs = [torch.cat([batches.at(3 * epoch + i)[0].index for i in range(3)]).tolist() for epoch in range(2)]
    assert [sorted(epoch) for epoch in epochs] == [list(range(22))] * 2
    assert epochs[0] != epochs[1]
    assert [len(batches.at(i)[0].index) for i in range(3)] == [8, 8, 6]


@pytest.mark.parametrize(("stage", "examples"), [(PICTURES, pictures()), (MASKED_TEXTS, texts(skewed(22)))])
def test_random_batches_are_an_epochs_permutation_cut_into_pieces(stage: Stage, examples: Examples) -> None:
    batches, size = batches_of(stage, examples), stage.schedule.batch_size
    for epoch in range(3):
        seed = stream(stage.seed, stage.name, "order", epoch)
        order = np.random.Generator(np.random.PCG64(seed)).permutation(22)
        for i in range(batches.per_epoch):
            (batch,) = batches.at(epoch * batches.per_epoch + i)
            assert batch.index.tolist() == order[i * size : (i + 1) * size].tolist()


@pytest.mark.parametrize("batching", ["random", "length"])
@pytest.mark.parametrize("count", [45, 48, 5])
def test_a_batch_knows_its_size_without_being_made(count: int, batching: str) -> None:
    batches = batches_of(scheduled(TEXTS, batching=batching), texts(skewed(count)))
    steps = 5 * batches.per_epoch
    sizes = [batches.size(step) for step in range(steps)]
    assert sizes == [len(batches.at(step)[0].index) for step in range(steps)]
    assert sum(sizes) == 5 * count


def test_a_step_is_a_pure_function_of_seed_and_step() -> None:
    first, second = batches_of(MASKED_PICTURES, pictures()), batches_of(MASKED_PICTURES, pictures())
    second.at(5)
    a, b = first.at(3)[0], second.at(3)[0]
    assert torch.equal(a.index, b.index)
    assert torch.equal(a.inputs, b.inputs)
    assert all(torch.equal(x, y) for x, y in zip(a.mask, b.mask, strict=True))
    assert not torch.equal(a.mask.removed, first.at(4)[0].mask.removed)
    other = batches_of(dataclasses.replace(MASKED_PICTURES, seed=1), pictures()).at(3)[0]
    assert not torch.equal(a.index, other.index)


def test_two_methods_stages_of_one_name_see_the_same_data() -> None:
    other = dataclasses.replace(PICTURES, objective=CrossEntropy() + MaskedAutoEncoding(), optimizer=AdamW(eps=1e-6))
    assert other.key != PICTURES.key
    for step in range(7):
        a, b = (batches_of(stage, pictures()).at(step)[0] for stage in (PICTURES, other))
        assert torch.equal(a.index, b.index)
        assert torch.equal(a.inputs, b.inputs)


# ------------------------------------------------------------------------------------------------ fairness of text

SIZE = TEXTS.schedule.batch_size
COUNT = LENGTH_POOL * SIZE + SIZE - 1  # one pool, and a remainder as large as can be


def epochs_of(batching: str, count: int) -> list[list[Tensor]]:
    """The index batches of so many epochs, on lengths that are skewed."""
    batches = batches_of(scheduled(TEXTS, batching=batching), texts(skewed(COUNT)))
    steps = range(batches.per_epoch)
    return [[batches.at(epoch * batches.per_epoch + i)[0].index for i in steps] for epoch in range(count)]


def test_texts_of_one_random_batch_meet_again_no_more_often_than_by_chance() -> None:
    where = torch.empty(COUNT, dtype=torch.long)
    again = pairs = 0
    epochs = epochs_of("random", 30)
    for before, after in itertools.pairwise(epochs):
        for number, index in enumerate(after):
            where[index] = number
        for index in before:
            again += int((where[index][:, None] == where[index]).sum()) - len(index)
            pairs += len(index) * (len(index) - 1)
    assert again / pairs == pytest.approx((SIZE - 1) / (COUNT - 1), rel=0.1)


def test_tokens_of_short_texts_weigh_no_more_than_by_chance() -> None:
    """In L_MAE, a mean over the tokens of a batch, a token weighs one over their number."""
    lengths = torch.tensor(skewed(COUNT))
    order = lengths.argsort(stable=True)
    shortest, longest = order[: COUNT // 10], order[-(COUNT // 10) :]

    def ratio(epochs: list[list[Tensor]]) -> float:
        weights = torch.zeros(COUNT, dtype=torch.float64)
        for index in (index for epoch in epochs for index in epoch):
            weights[index] += lengths[index] / lengths[index].sum()
        short, long = (weights[texts].sum() / lengths[texts].sum() for texts in (shortest, longest))
        return float(short / long)

    generator = torch.Generator().manual_seed(0)
    chance = ratio([list(torch.randperm(COUNT, generator=generator).split(SIZE)) for _ in range(60)])
    assert ratio(epochs_of("random", 30)) == pytest.approx(chance, rel=0.1)
    assert ratio(epochs_of("length", 3)) > 2 * chance  # why only fine-tuning may do so


@pytest.mark.parametrize("batching", ["random", "length"])
def test_the_smaller_batch_holds_long_texts_no_more_often_than_by_chance(batching: str) -> None:
    count = 11 * SIZE - 1  # less than a pool, so that sorting could take the longest into the smaller batch
    lengths = torch.tensor(skewed(count))
    long = torch.zeros(count)
    long[lengths.argsort(stable=True)[-(count // 10) :]] = 1
    batches = batches_of(scheduled(TEXTS, batching=batching), texts(lengths.tolist()))
    long_flags, positions = [], []
    for epoch in range(500):
        steps = range(epoch * batches.per_epoch, (epoch + 1) * batches.per_epoch)
        (step,) = (step for step in steps if batches.size(step) < SIZE)
        long_flags.append(long[batches.at(step)[0].index])
        positions.append(step % batches.per_epoch)
    assert float(torch.cat(long_flags).mean()) == pytest.approx(float(long.mean()), rel=0.1)
    assert set(positions) == set(range(batches.per_epoch) if batching == "length" else [batches.per_epoch - 1])


@pytest.mark.parametrize("batching", ["random", "length"])
def test_long_texts_weigh_no_more_than_others_in_a_mean_over_examples(batching: str) -> None:
    """In L_Distill a text weighs one over the size of its batch: four times as much in a batch of 4 as in one of 16."""
    count = 10 * SIZE + 4
    lengths = torch.tensor(skewed(count))
    longest = lengths.argsort(stable=True)[-(count // 10) :]
    batches = batches_of(scheduled(TEXTS, batching=batching), texts(lengths.tolist()))
    weights = torch.zeros(count, dtype=torch.float64)
    for epoch in range(600):
        for index in batches._shuffled(epoch):
            weights[index] += 1 / len(index)
    assert float(weights[longest].mean() / weights.mean()) == pytest.approx(1, rel=0.1)


def test_batches_by_length_hold_similar_lengths_in_a_shuffled_order() -> None:
    lengths = torch.tensor(skewed(COUNT))
    for index in epochs_of("length", 2):
        assert sorted(torch.cat(index).tolist()) == list(range(COUNT))
        whole = [i for i in index if len(i) == SIZE]
        assert len(whole) == COUNT // SIZE
        padding = sum(int((lengths[i].max() - lengths[i]).sum()) for i in whole)
        random = sum(int((part.max() - part).sum()) for part in lengths.split(SIZE))
        assert padding < 0.1 * random
        longest = [int(lengths[i].max()) for i in whole]
        assert longest != sorted(longest)


# ------------------------------------------------------------------------------------------------ draws


def shown(batches: list[Batch]) -> dict[int, tuple[Any, ...]]:
    """What a step shows of each text: the tokens as masked, and the selected positions with their true ids."""
    seen = {}
    for batch in batches:
        width = batch.inputs["input_ids"].shape[1]
        for row, example in enumerate(batch.index.tolist()):
            length = int(batch.inputs["attention_mask"][row].sum())
            here = batch.mask.valid & (batch.mask.positions // width == row)
            positions, ids = (batch.mask.positions[here] % width).tolist(), batch.mask.labels[here].tolist()
            assert [int(batch.inputs["input_ids"][row, position]) for position in positions] == ids
            seen[example] = batch.mask.input_ids[row, :length].tolist(), positions, ids
    return seen


def test_masks_of_text_depend_neither_on_padding_nor_on_micro_batches() -> None:
    examples = texts(skewed(100))
    padded = dataclasses.replace(MASKED_TEXTS, execution=Execution(compile=True))
    stages = [
        MASKED_TEXTS,
        scheduled(MASKED_TEXTS, micro_batches=3),
        padded,
        scheduled(padded, micro_batches=3),
        dataclasses.replace(padded, backbone=dataclasses.replace(WORDS, pad_to_multiple_of=60)),
    ]
    for step in range(8):  # the smaller batch is among them
        steps = [batches_of(stage, examples).at(step) for stage in stages]
        assert len({tuple(len(batch.index) for batch in batches) for batches in steps}) == 2
        seen = [shown(batches) for batches in steps]
        assert sum(len(positions) for _, positions, _ in seen[0].values()) > 0
        assert all(other == seen[0] for other in seen[1:])
    assert shown(batches_of(MASKED_TEXTS, examples).at(0)) != shown(batches_of(MASKED_TEXTS, examples).at(7))


@pytest.mark.parametrize("micro_batches", [2, 3, 8])
def test_flips_and_masks_of_images_do_not_depend_on_micro_batches(micro_batches: int) -> None:
    both = dataclasses.replace(PICTURES, objective=CrossEntropy() + MaskedAutoEncoding())
    for step in range(6):
        (whole,) = batches_of(both, pictures()).at(step)
        parts = batches_of(scheduled(both, micro_batches=micro_batches), pictures()).at(step)
        assert len(parts) == min(micro_batches, len(whole.index))
        assert torch.equal(torch.cat([part.index for part in parts]), whole.index)
        assert torch.equal(torch.cat([part.inputs for part in parts]), whole.inputs)
        for name in ("kept", "removed"):
            assert torch.equal(torch.cat([getattr(part.mask, name) for part in parts]), getattr(whole.mask, name))


def test_half_of_the_images_are_flipped() -> None:
    batches, examples = batches_of(PICTURES, pictures()), pictures()
    flipped = 0
    for step in range(60):
        (batch,) = batches.at(step)
        plain = examples.inputs(batch.index, CPU)
        mirrored = (batch.inputs == plain.flip(3)).all(dim=(1, 2, 3))
        assert (mirrored ^ (batch.inputs == plain).all(dim=(1, 2, 3))).all()
        flipped += int(mirrored.sum())
    assert 0.43 < flipped / (20 * 22) < 0.57


# ------------------------------------------------------------------------------------------------ padding


@pytest.mark.parametrize("multiple", [1, 8, 60])
def test_texts_are_padded_to_few_lengths_where_shapes_have_to_repeat(multiple: int) -> None:
    backbone = dataclasses.replace(WORDS, pad_to_multiple_of=multiple, pad_id=3, special_ids=(0, 1, 2, 3, 4))
    stage = dataclasses.replace(TEXTS, backbone=backbone, execution=Execution(compile=True))
    examples = texts([58, *skewed(99)])
    examples._pad = 3
    widths = set()
    for step in range(7):
        (batch,) = batches_of(stage, examples).at(step)
        exact = examples.inputs(batch.index, CPU)
        longest, width = exact["input_ids"].shape[1], batch.inputs["input_ids"].shape[1]
        assert longest <= width <= 60
        assert width < longest + multiple and (width % multiple == 0 or width == 60)
        for name, filling in (("input_ids", 3), ("attention_mask", 0)):
            assert torch.equal(batch.inputs[name][:, :longest], exact[name])
            assert (batch.inputs[name][:, longest:] == filling).all()
        assert "parts" not in batch.inputs
        widths.add(width)
    assert (58 if multiple == 1 else 60) in widths


def test_a_cpu_computes_texts_in_parts_of_similar_lengths() -> None:
    for batch in batches_of(MASKED_TEXTS, texts(skewed(100))).at(0):
        present = batch.inputs["attention_mask"].flatten()
        index = torch.cat([part.flatten() for part in batch.inputs["parts"]])
        assert len(index) == len(index.unique())
        assert present[index].sum() == present.sum()
        assert len(index) < 1.34 * present.sum() < 0.7 * len(present)


# ------------------------------------------------------------------------------------------------ on a GPU


def leaves(value: Any) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, Batch):
        value = vars(value)
    items = value.values() if isinstance(value, dict) else value
    return [] if value is None else [leaf for item in items for leaf in leaves(item)]


VIEWED = finetuning(
    name="supcon_pretrain", objective=SupervisedContrastive(), evaluation=None, schedule=PICTURES.schedule
)
KINDS: dict[str, tuple[Stage, Callable[[], Examples]]] = {
    "images": (dataclasses.replace(PICTURES, objective=CrossEntropy() + MaskedAutoEncoding()), pictures),
    "views": (VIEWED, pictures),
    "text": (dataclasses.replace(MASKED_TEXTS, execution=Execution(compile=True)), lambda: texts(skewed(100))),
}


@pytest.mark.group("cuda")
@pytest.mark.parametrize("memory", [0, 2**40])
@pytest.mark.parametrize("kind", KINDS)
def test_no_batch_waits_for_the_gpu(kind: str, memory: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whether images are mapped from disk or resident on the GPU; and batches are those of a CPU."""
    monkeypatch.setattr("bench.data.examples.free_memory", lambda device: memory)
    stage, examples = KINDS[kind]
    gpu = torch.device("cuda", 0)
    torch.zeros(1, device=gpu)
    batches = batches_of(stage, examples(), gpu)
    batches.model.to(gpu)
    torch.cuda.set_sync_debug_mode("error")
    try:
        made = [batches.at(step) for step in range(4)]
    finally:
        torch.cuda.set_sync_debug_mode("default")
    expected = batches_of(stage, examples())
    for step, batch in enumerate(made):
        pairs = zip(leaves(batch), leaves(expected.at(step)), strict=True)
        for ours, theirs in pairs:
            assert ours.device == gpu
            torch.testing.assert_close(ours.cpu(), theirs, rtol=1e-4, atol=1e-4)


@pytest.mark.group("cuda")
def test_what_a_batch_was_copied_from_is_not_written_again_too_early() -> None:
    """The GPU is held back while many batches are made, each from host memory that torch may use again."""
    stage, examples = KINDS["text"]
    gpu = torch.device("cuda", 0)
    batches, expected = batches_of(stage, examples(), gpu), batches_of(stage, examples())
    torch.cuda._sleep(10**9)  # type: ignore[no-untyped-call]
    made = [batches.at(step) for step in range(60)]
    for step, batch in enumerate(made):
        for ours, theirs in zip(leaves(batch), leaves(expected.at(step)), strict=True):
            assert torch.equal(ours.cpu(), theirs)


def test_batches_are_gone_with_the_last_reference() -> None:
    """They hold a network and a data set, on a GPU its memory: nothing may keep them until garbage is collected."""
    gc.collect()
    gc.disable()
    try:
        batches = batches_of(PICTURES, pictures())
        batches.at(0)
        gone = weakref.ref(batches)
        del batches
        assert gone() is None
    finally:
        gc.enable()
