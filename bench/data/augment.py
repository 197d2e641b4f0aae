"""Random views of images for contrastive methods, in batch, on the device that holds them.

A view is a crop resized back, a mirroring, a colour jitter and a loss of colour, with the strengths of the released
supervised contrastive code. Its random numbers are drawn on the CPU, so every device gets the same ones. Two
simplifications: the box of a crop is not rounded to whole pixels, and the order of the four colour changes is drawn
once per call, not once per image.

Symbols: B images of H x W pixels; a factor (B,) has one value per image.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn.functional import affine_grid, grid_sample

from bench.data.examples import per_channel, statistics
from bench.device import send

CROP_SCALE = (0.2, 1.0)
CROP_ASPECT = (3 / 4, 4 / 3)
CROP_TRIES = 10
BRIGHTNESS = CONTRAST = SATURATION = 0.4
HUE = 0.1
JITTER_PROBABILITY = 0.8
GREY_PROBABILITY = 0.2
LUMA = (0.2989, 0.5870, 0.1140)


def random_view(images: Tensor, generator: torch.Generator, flips: bool = True) -> Tensor:
    """One random view of each normalised image (B, 3, H, W), normalised again; `generator` lives on the CPU.

    `flips` says whether half of the views are mirrored left to right.
    """
    count = len(images)

    def uniform(low: float, high: float, *shape: int) -> Tensor:
        drawn = torch.rand(*shape, generator=generator, dtype=torch.float32)
        return send(low + (high - low) * drawn, images.device).to(images.dtype)

    mean, std = statistics(images.dtype, images.device)
    pixels = (images * std + mean).clamp(0, 1)

    scale = uniform(*CROP_SCALE, count, CROP_TRIES)
    aspect = uniform(math.log(CROP_ASPECT[0]), math.log(CROP_ASPECT[1]), count, CROP_TRIES).exp()
    width, height = first_that_fits((scale * aspect).sqrt(), (scale / aspect).sqrt())
    left, top = uniform(0, 1, 2, count) * (1 - torch.stack([width, height]))
    mirrored = uniform(0, 1, count) < (0.5 if flips else 0.0)
    pixels = crop(pixels, left, top, width, height, mirrored)

    changes = (change_brightness, change_contrast, change_saturation, shift_hue)
    spans = ((1 - BRIGHTNESS, 1 + BRIGHTNESS), (1 - CONTRAST, 1 + CONTRAST), (1 - SATURATION, 1 + SATURATION))
    factors = [uniform(low, high, count) for low, high in (*spans, (-HUE, HUE))]
    jittered = pixels
    for i in torch.randperm(len(changes), generator=generator).tolist():
        jittered = changes[i](jittered, factors[i])
    pixels = torch.where(_per_image(uniform(0, 1, count) < JITTER_PROBABILITY), jittered, pixels)
    pixels = torch.where(_per_image(uniform(0, 1, count) < GREY_PROBABILITY), grey(pixels), pixels)
    return (pixels - mean) / std


def first_that_fits(widths: Tensor, heights: Tensor) -> tuple[Tensor, Tensor]:
    """Of boxes (B, tries), in units of the image, the first of each row that lies within it, else the first cut off."""
    fits = (widths <= 1) & (heights <= 1)
    first = fits.int().argmax(dim=1, keepdim=True)
    return widths.gather(1, first)[:, 0].clamp(max=1), heights.gather(1, first)[:, 0].clamp(max=1)


def crop(images: Tensor, left: Tensor, top: Tensor, width: Tensor, height: Tensor, mirrored: Tensor) -> Tensor:
    """The boxes of the images (B, 3, H, W), resized to H x W bilinearly; those where `mirrored` (B,) left to right.

    All four sizes are (B,), in units of the image's width or height.
    """
    # From a place in the view to one in the image, both in [-1, 1].
    zero = torch.zeros_like(left)
    across = torch.stack([torch.where(mirrored, -width, width), zero, 2 * left + width - 1], dim=1)
    down = torch.stack([zero, height, 2 * top + height - 1], dim=1)
    grid = affine_grid(torch.stack([across, down], dim=1), list(images.shape), align_corners=False)
    return grid_sample(images, grid, mode="bilinear", padding_mode="border", align_corners=False)


def grey(images: Tensor) -> Tensor:
    """Images in [0, 1] without their colour, still with three channels."""
    luma = (images * per_channel(LUMA, images.dtype, images.device)).sum(dim=1, keepdim=True)
    return luma.expand_as(images)


def change_brightness(images: Tensor, factor: Tensor) -> Tensor:
    """Images in [0, 1], darker (factor below 1) or brighter."""
    return (images * _per_image(factor)).clamp(0, 1)


def change_contrast(images: Tensor, factor: Tensor) -> Tensor:
    """Images in [0, 1], moved towards (factor below 1) or away from their mean grey."""
    return _blend(images, grey(images).mean(dim=(1, 2, 3), keepdim=True), factor)


def change_saturation(images: Tensor, factor: Tensor) -> Tensor:
    """Images in [0, 1], moved towards (factor below 1) or away from their grey version."""
    return _blend(images, grey(images), factor)


def shift_hue(images: Tensor, turn: Tensor) -> Tensor:
    """Images in [0, 1] with the hue of every pixel turned by this part of a full circle."""
    red, green, blue = images.unbind(dim=1)
    value, chroma = images.amax(dim=1), images.amax(dim=1) - images.amin(dim=1)
    divisor = torch.where(chroma > 0, chroma, torch.ones_like(chroma))
    # The hue in sixths of a circle, counted from the strongest channel.
    strongest_blue = (red - green) / divisor + 4
    strongest_green = torch.where(green == value, (blue - red) / divisor + 2, strongest_blue)
    sixths = torch.where(red == value, (green - blue) / divisor, strongest_green) + 6 * turn[:, None, None]
    channels = []
    for offset in (5, 3, 1):
        k = (sixths + offset) % 6
        channels.append(value - chroma * torch.minimum(k, 4 - k).clamp(0, 1))
    return torch.stack(channels, dim=1)


def _blend(images: Tensor, other: Tensor, factor: Tensor) -> Tensor:
    return (other + _per_image(factor) * (images - other)).clamp(0, 1)


def _per_image(values: Tensor) -> Tensor:
    return values[:, None, None, None]
