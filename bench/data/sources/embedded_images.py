"""The embedded images: scikit-learn's handwritten digits, and crops of its two photographs."""

from __future__ import annotations

from importlib.metadata import version
from io import BytesIO
from typing import TYPE_CHECKING

from bench.data.content import Content, Rows, split_by_content
from bench.specs import stream

if TYPE_CHECKING:
    from PIL.Image import Image

DIGITS_IN_TEST = 500
CROPS = 8000
CROP_PIXELS = (16, 96)
LEAST_DEVIATION = 10.0  # of 255 grey levels; below it a crop is sky or blur
SIZE = 8


def digits() -> Content:
    """Build scikit-learn's 1,797 handwritten digits.

    They are 8x8 grey levels, 1,297 for training and 500 for testing. An image that occurs twice is kept once, so none
    is in both splits. Each class gives its share of the 500 (`_shares`) to the test split: the images whose encoded
    bytes have the smallest sha256.
    """
    import numpy as np
    from PIL import Image
    from sklearn.datasets import load_digits

    source = load_digits()
    # 0..16 becomes 0..255, halves up, in whole numbers
    pixels = ((source.images.astype(np.int64) * 255 * 2 + 16) // 32).astype(np.uint8)
    label_of: dict[bytes, int] = {}
    for image, label in zip(pixels, source.target.tolist(), strict=True):
        label_of.setdefault(_encode(Image.fromarray(image)), int(label))
    in_test = _shares([list(label_of.values()).count(digit) for digit in range(10)], DIGITS_IN_TEST)
    return Content(
        modality="image",
        class_names=tuple(str(digit) for digit in range(10)),
        splits=split_by_content(label_of, dict(enumerate(in_test))),
        sources={"scikit-learn": version("scikit-learn")},
    )


def photographs() -> Content:
    """Crop 8,000 squares from scikit-learn's two photographs.

    Crops are 16 to 96 pixels wide, stored as 8x8 grey levels. Photograph, width, place and whether the crop is inverted
    come from one named random stream per crop. Crops without structure are dropped, the others stretched to the full
    range of grey, as handwritten digits use it.
    """
    import numpy as np
    from PIL import Image
    from sklearn.datasets import load_sample_images

    grey = [Image.fromarray(photograph).convert("L") for photograph in load_sample_images().images]
    values: dict[bytes, None] = {}
    draw = 0
    while len(values) < CROPS:
        bits, photograph = divmod(stream(0, "photographs", draw), len(grey))
        draw += 1
        image = grey[photograph]
        # The stream's number is used up like digits in changing bases: which photograph, how wide, where, inverted or
        # not. With two photographs and 81 widths, 47 means photograph 1, then 23 of the widths: 39 pixels; 0 is left.
        bits, extra = divmod(bits, CROP_PIXELS[1] - CROP_PIXELS[0] + 1)
        width = CROP_PIXELS[0] + extra
        bits, left = divmod(bits, image.width - width + 1)
        bits, top = divmod(bits, image.height - width + 1)
        box = (left, top, left + width, top + width)
        crop = np.asarray(image.resize((SIZE, SIZE), Image.Resampling.BOX, box=box))
        if crop.std() < LEAST_DEVIATION:
            continue
        darkest, span = int(crop.min()), int(crop.max()) - int(crop.min())
        stretched = (((crop.astype(np.int64) - darkest) * 255 * 2 + span) // (2 * span)).astype(np.uint8)
        values[_encode(Image.fromarray(255 - stretched if bits % 2 else stretched))] = None
    return Content(
        modality="image",
        class_names=None,
        splits={"train": Rows(values=list(values), labels=None)},
        sources={"scikit-learn": version("scikit-learn"), "pillow": version("pillow")},
    )


def _encode(image: Image) -> bytes:
    """Encode an image as a portable grey map.

    Its bytes, unlike those of PNG, do not depend on the version of a compressor.
    """
    buffer = BytesIO()
    image.save(buffer, format="PPM")
    return buffer.getvalue()


def _shares(counts: list[int], total: int) -> list[int]:
    """Divide `total` in proportion to `counts`, by largest remainders.

    Of equal remainders the first count's goes first. Example: 5 over the counts 3, 3, 1 has the quotas 2.14, 2.14,
    0.71; the whole parts are 2, 2, 0, and the one that is left goes to the last.
    """
    size = sum(counts)
    shares = [total * count // size for count in counts]
    by_remainder = sorted(range(len(counts)), key=lambda i: (-(total * counts[i] % size), i))
    for i in by_remainder[: total - sum(shares)]:
        shares[i] += 1
    return shares
