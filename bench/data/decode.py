"""From an encoded image to what networks see, in the one way that training, checks and benchmarks share."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from typing import TYPE_CHECKING, TypeVar

from bench.data.content import Content
from bench.store.provenance import cores

if TYPE_CHECKING:
    from PIL.Image import Image

T = TypeVar("T")
EIGHT_BITS = 257  # 65535 / 255


def is_sixteen_bit(image: Image) -> bool:
    """Tell whether an opened image has one channel of 16 bits."""
    return image.mode.startswith("I;16") or (image.mode == "I" and image.format == "PNG")


@contextlib.contextmanager
def of_any_size() -> Iterator[None]:
    """Lift Pillow's limit on the size of images for a while.

    The limit that counts is the task's `most_megapixels`, held when its data are prepared.
    """
    from PIL import Image

    before, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
    try:
        yield
    finally:
        Image.MAX_IMAGE_PIXELS = before


def of_all_images(content: Content, examine: Callable[[bytes], T]) -> list[tuple[str, int, T]]:
    """Examine every image of a data set, in threads; return split, row and result of each."""
    # Filters and Pillow's limit belong to the whole process, so they are set here and not in the threads.
    with warnings.catch_warnings(), of_any_size(), ThreadPoolExecutor(cores()) as threads:
        warnings.simplefilter("ignore")
        return [
            (split, i, result)
            for split, rows in content.splits.items()
            for i, result in enumerate(threads.map(examine, rows.values))
        ]


def rgb(encoded: bytes) -> Image:
    """Decode the first frame of an image as 8-bit RGB.

    16-bit greys are scaled, transparency is dropped, orientation tags are not obeyed. Raises what Pillow raises for
    damaged files, and ValueError for pixels without a fixed range.
    """
    import numpy as np
    from PIL import Image

    with Image.open(BytesIO(encoded)) as image:
        if is_sixteen_bit(image):
            return Image.fromarray((np.asarray(image) // EIGHT_BITS).astype(np.uint8)).convert("RGB")
        if image.mode in ("I", "F"):
            raise ValueError(f"has pixels of mode {image.mode}, whose range is unknown; save it with 8 or 16 bits")
        return image.convert("RGB")
