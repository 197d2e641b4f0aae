"""Views: colour changes and crops against torchvision, and what the random draws may depend on."""

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torchvision.transforms.v2 import functional as reference

from baselines.supcon import SupervisedContrastive
from bench.data.augment import (
    change_brightness,
    change_contrast,
    change_saturation,
    crop,
    first_that_fits,
    grey,
    random_view,
    shift_hue,
)
from bench.interfaces.examples import Examples
from bench.models.build import build
from bench.specs import Schedule
from bench.specs.architectures import IMAGENET_MEAN, IMAGENET_STD
from bench.specs.objectives import CrossEntropy
from bench.training.batches import Batches
from tests.examples import finetuning


def images(count: int = 6, size: int = 12) -> Tensor:
    """Random images in [0, 1], with grey, black and white pixels among them."""
    pixels = torch.rand(count, 3, size, size, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    pixels[0] = pixels[0, :1]
    pixels[1, :, :4] = 0
    pixels[1, :, 4:] = 1
    return pixels


def normalised(pixels: Tensor) -> Tensor:
    mean, std = (torch.tensor(values, dtype=pixels.dtype)[:, None, None] for values in (IMAGENET_MEAN, IMAGENET_STD))
    return (pixels - mean) / std


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize(
    ("ours", "theirs", "factors"),
    [
        (change_brightness, reference.adjust_brightness, (0.6, 0.9, 1.0, 1.2, 1.4, 0.0)),
        (change_contrast, reference.adjust_contrast, (0.6, 0.9, 1.0, 1.2, 1.4, 0.0)),
        (change_saturation, reference.adjust_saturation, (0.6, 0.9, 1.0, 1.2, 1.4, 0.0)),
        (shift_hue, reference.adjust_hue, (-0.5, -0.1, 0.0, 0.05, 0.1, 0.5)),
    ],
)
def test_colour_changes_are_torchvisions_with_a_factor_per_image(ours: Any, theirs: Any, factors: Any) -> None:
    pixels = images()
    changed = ours(pixels, torch.tensor(factors, dtype=pixels.dtype))
    expected = torch.stack([theirs(image, factor) for image, factor in zip(pixels, factors, strict=True)])
    rounding = 2e-6 if ours is shift_hue else 1e-12  # torchvision turns hues in float32
    torch.testing.assert_close(changed, expected, rtol=0, atol=rounding)


def test_grey_is_torchvisions() -> None:
    torch.testing.assert_close(grey(images()), reference.rgb_to_grayscale(images(), 3), rtol=0, atol=1e-12)


def test_a_crop_is_resized_back_bilinearly_and_the_whole_image_stays_as_it_is() -> None:
    pixels = images()[5:]
    box = [torch.tensor([value], dtype=pixels.dtype) for value in (2 / 12, 4 / 12, 8 / 12, 6 / 12)]
    expected = reference.resized_crop(pixels, 4, 2, 6, 8, [12, 12], antialias=False)
    view = crop(pixels, *box, torch.tensor([False]))
    # A resized crop repeats its own edge, ours still sees the image beyond it.
    torch.testing.assert_close(view[..., 1:-1, 1:-1], expected[..., 1:-1, 1:-1])
    mirrored = crop(pixels, *box, torch.tensor([True]))
    torch.testing.assert_close(mirrored, view.flip(3))
    whole = [torch.tensor([value], dtype=pixels.dtype) for value in (0, 0, 1, 1)]
    torch.testing.assert_close(crop(pixels, *whole, torch.tensor([False])), pixels)


def test_boxes_that_stick_out_are_drawn_again() -> None:
    widths = torch.tensor([[1.2, 0.9, 0.5], [0.5, 0.6, 0.7], [1.1, 1.2, 0.9]])
    heights = torch.tensor([[0.5, 0.8, 0.5], [0.4, 0.6, 0.7], [0.9, 0.9, 1.3]])
    boxes = first_that_fits(widths, heights)
    assert [values.tolist() for values in boxes] == [pytest.approx([0.9, 0.5, 1.0]), pytest.approx([0.8, 0.4, 0.9])]


def test_a_view_is_a_function_of_images_and_generator_alone() -> None:
    inputs = normalised(images())
    torch.manual_seed(1)
    first = random_view(inputs, generator())
    state = torch.get_rng_state()
    torch.manual_seed(2)
    again = random_view(inputs, generator())
    assert torch.equal(first, again)
    torch.manual_seed(1)
    assert torch.equal(state, torch.get_rng_state())
    assert not torch.equal(first, random_view(inputs, generator(1)))
    # In another precision, as on another device, only the rounding differs.
    torch.testing.assert_close(random_view(inputs.float(), generator()).double(), first, rtol=0, atol=1e-4)


def test_views_are_images_and_all_of_them_change() -> None:
    inputs = normalised(images(200))
    views = random_view(inputs, generator())
    assert views.shape == inputs.shape
    assert views.dtype == inputs.dtype
    low, high = normalised(torch.zeros(1, 3, 1, 1)), normalised(torch.ones(1, 3, 1, 1))
    assert ((views >= low.double() - 1e-6) & (views <= high.double() + 1e-6)).all()
    assert ((views - inputs).abs().amax(dim=(1, 2, 3))[2:] > 0.05).all()


@pytest.mark.parametrize("flips", [True, False])
def test_half_of_the_views_are_mirrored_unless_flips_are_off(flips: bool) -> None:
    ramp = torch.linspace(0.2, 0.8, 16).expand(400, 3, 16, 16)
    views = random_view(normalised(ramp), generator(), flips)
    mirrored = (views[..., :8].mean(dim=(1, 2, 3)) > views[..., 8:].mean(dim=(1, 2, 3))).float().mean()
    assert mirrored == 0 if not flips else 0.4 < mirrored < 0.6


def test_a_fifth_is_grey_and_a_fifth_of_the_rest_keeps_its_colours() -> None:
    flat = torch.tensor([0.8, 0.3, 0.5])[:, None, None].expand(1000, 3, 4, 4)
    inputs = normalised(flat)
    views = random_view(inputs, generator())
    mean, std = (torch.tensor(values)[:, None, None] for values in (IMAGENET_MEAN, IMAGENET_STD))
    pixels = views * std + mean
    colourless = (pixels.amax(dim=1) - pixels.amin(dim=1)).amax(dim=(1, 2)) < 1e-3
    unchanged = (views - inputs).abs().amax(dim=(1, 2, 3)) < 1e-4
    assert 0.15 < colourless.float().mean() < 0.25
    assert 0.11 < unchanged.float().mean() < 0.21


# ------------------------------------------------------------------------------------------------ in batches


class Pictures(Examples):
    def __init__(self, count: int = 22) -> None:
        super().__init__(np.arange(count), torch.arange(count) % 10, None)
        self._images = normalised(torch.rand(count, 3, 8, 8, generator=generator()))

    def inputs(self, index: Tensor, device: torch.device, flip: Tensor | None = None) -> Tensor:
        images = self._images[index].to(self.dtype)
        return images if flip is None else torch.where(flip[:, None, None, None], images.flip(3), images)


CONTRASTIVE = finetuning(
    name="supcon_pretrain",
    objective=SupervisedContrastive(),
    evaluation=None,
    schedule=Schedule(steps=6, batch_size=8, augmentation="flip"),
)


def batches_of(stage: Any) -> Batches:
    return Batches(stage, Pictures(), build(stage.backbone), torch.device("cpu"))


def test_the_two_views_differ_from_each_other_but_not_between_runs() -> None:
    first, second = batches_of(CONTRASTIVE), batches_of(CONTRASTIVE)
    second.at(4)
    a, b = first.at(3)[0], second.at(3)[0]
    assert a.views is not None
    assert b.views is not None
    assert torch.equal(a.views[0], b.views[0])
    assert torch.equal(a.views[1], b.views[1])
    assert not torch.equal(a.views[0], a.views[1])


def test_views_are_drawn_anew_at_every_step_and_with_every_seed() -> None:
    still = dataclasses.replace(CONTRASTIVE, schedule=Schedule(steps=6, batch_size=8))
    drawn = []
    for stage in (still, dataclasses.replace(still, seed=9)):
        batches = batches_of(stage)
        batches.examples._images[:] = batches.examples._images[0]  # now only the draws tell batches apart
        drawn += [batches.at(0)[0], batches.at(1)[0]]
    for batch in drawn[1:]:
        assert torch.equal(batch.inputs, drawn[0].inputs)
        assert not torch.equal(batch.views[0], drawn[0].views[0])


def test_views_change_nothing_else_of_a_batch() -> None:
    plain = dataclasses.replace(
        CONTRASTIVE, objective=CrossEntropy(), evaluation=dataclasses.replace(CONTRASTIVE.data, split="test")
    )
    for step in range(6):
        with_views, without = batches_of(CONTRASTIVE).at(step)[0], batches_of(plain).at(step)[0]
        assert without.views is None
        assert torch.equal(with_views.index, without.index)
        assert torch.equal(with_views.inputs, without.inputs)
