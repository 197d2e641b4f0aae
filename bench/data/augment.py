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
    """Draw one random view of each normalised image (B, 3, H, W).

    Views are normalised again; `generator` lives on the CPU. `flips` says whether half of the views are mirrored left
    to right.
    """
    # All numbers are drawn whether they are used or not (no flips, an image that is not jittered): so what is drawn
    # after them never depends on them.
    count = len(images)

    def uniform(low: float, high: float, *shape: int) -> Tensor:
        drawn = torch.rand(*shape, generator=generator, dtype=torch.float32)
        return send(low + (high - low) * drawn, images.device).to(images.dtype)

    # Back to pixels in [0, 1], which the colour changes are defined on; normalised again at the end.
    mean, std = statistics(images.dtype, images.device)
    pixels = (images * std + mean).clamp(0, 1)

    # The crop. A box with the part `scale` of the area and the aspect a is sqrt(scale · a) wide and sqrt(scale / a)
    # high: scale 0.5 and a = 4/3 give 0.82 x 0.61 of the image. The logarithm of the aspect is uniform, so that 3/4 is
    # as likely as 4/3. A box may be wider than the image, hence several tries.
    scale = uniform(*CROP_SCALE, count, CROP_TRIES)
    aspect = uniform(math.log(CROP_ASPECT[0]), math.log(CROP_ASPECT[1]), count, CROP_TRIES).exp()
    width, height = first_that_fits((scale * aspect).sqrt(), (scale / aspect).sqrt())
    left, top = uniform(0, 1, 2, count) * (1 - torch.stack([width, height]))
    mirrored = uniform(0, 1, count) < (0.5 if flips else 0.0)
    pixels = crop(pixels, left, top, width, height, mirrored)

    # The colours. Changes are computed for all images and taken over where the draw says so: to compute them for some
    # only, the host would have to wait for the device that knows which.
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
    """Pick the first box of each row that lies within the image.

    Boxes (B, tries) are in units of the image. Where none lies within it, the first of the row is cut off.
    """
    # argmax finds the first 1 of a row, and 0 where there is none: fits [0 0 1 1] gives box 2, [0 0 0 0] box 0, which
    # is then cut off by the clamp.
    fits = (widths <= 1) & (heights <= 1)
    first = fits.int().argmax(dim=1, keepdim=True)
    return widths.gather(1, first)[:, 0].clamp(max=1), heights.gather(1, first)[:, 0].clamp(max=1)


def crop(images: Tensor, left: Tensor, top: Tensor, width: Tensor, height: Tensor, mirrored: Tensor) -> Tensor:
    """Cut boxes out of images (B, 3, H, W) and resize them.

    The result is (B, 3, H, W) again, interpolated bilinearly; images where `mirrored` (B,) is true are mirrored left to
    right. All four sizes are (B,), in units of the image's width or height.
    """
    # Each row of the matrix gives one coordinate in the image from the point (x, y, 1) in the view, both in [-1, 1].
    # Example: the right half is left = 0.5, width = 0.5, so x in the image is 0.5 · x + 0.5: the view's left edge, -1,
    # is the image's middle, 0, and its right edge is the image's. With -width the view runs from right to left.
    zero = torch.zeros_like(left)
    across = torch.stack([torch.where(mirrored, -width, width), zero, 2 * left + width - 1], dim=1)
    down = torch.stack([zero, height, 2 * top + height - 1], dim=1)
    grid = affine_grid(torch.stack([across, down], dim=1), list(images.shape), align_corners=False)
    return grid_sample(images, grid, mode="bilinear", padding_mode="border", align_corners=False)


def grey(images: Tensor) -> Tensor:
    """Take the colour from images in [0, 1]. They still have three channels."""
    luma = (images * per_channel(LUMA, images.dtype, images.device)).sum(dim=1, keepdim=True)
    return luma.expand_as(images)


def change_brightness(images: Tensor, factor: Tensor) -> Tensor:
    """Darken (factor below 1) or brighten images in [0, 1]."""
    return (images * _per_image(factor)).clamp(0, 1)


def change_contrast(images: Tensor, factor: Tensor) -> Tensor:
    """Move images in [0, 1] towards or away from their mean grey. A factor below 1 moves towards it."""
    return _blend(images, grey(images).mean(dim=(1, 2, 3), keepdim=True), factor)


def change_saturation(images: Tensor, factor: Tensor) -> Tensor:
    """Move images in [0, 1] towards or away from their grey version. A factor below 1 moves towards it."""
    return _blend(images, grey(images), factor)


def shift_hue(images: Tensor, turn: Tensor) -> Tensor:
    """Turn the hue of every pixel of images in [0, 1]. `turn` (B,) is the part of a full circle."""
    # By way of hue, value (the strongest channel) and chroma (its distance to the weakest). In sixths of a circle red
    # is 0, green 2 and blue 4. Back from there, a channel is value - chroma · max(0, min(k, 4 - k, 1)), where k is
    # (hue + offset) mod 6, and the offset 5 for red, 3 for green and 1 for blue.
    # Example: red (1, 0, 0) turned by a third has the hue 2. For the channels k is 1, 5 and 3, so 1, 0 and 1 times the
    # chroma are taken off: (0, 1, 0), green. A grey pixel has no chroma, so its hue does not matter: the divisor 1 only
    # keeps it from being 0 / 0.
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
    # Factor 1 leaves the images, 0 gives the other ones, and above 1 they move away from those.
    return (other + _per_image(factor) * (images - other)).clamp(0, 1)


def _per_image(values: Tensor) -> Tensor:
    return values[:, None, None, None]
