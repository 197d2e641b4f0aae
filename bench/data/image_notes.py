"""What a person should know of images that can be decoded: what decoding drops, and levels that are nearly black."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path

from bench.data.content import Content
from bench.data.decode import is_sixteen_bit, of_all_images, rgb

ORIENTATION = 274
"""The EXIF tag that says how a camera was held."""

DARK = 256 // 8
"""An eighth of the range: below it lies, with 8 bits, every level of 12-bit values that were stored in 16 bits."""

TRAITS = {
    "animated": "are animations or have several pages, of which the first counts",
    "transparent": "are transparent, which is dropped",
    "CMYK": "are in CMYK, converted without a colour profile",
    "turned": "have an orientation tag, which is not obeyed",
    "damaged": "have damaged metadata, such as EXIF, which was not read",
    "dark": "have 16 bits and only levels below an eighth of the range, nearly black: scale them before",
}
"""Trait of an image -> what to say of those that have it."""


def image_notes(content: Content) -> Iterator[str]:
    """Yield a note on every trait that some images have.

    Dark images are worth one only where no image of 16 bits is bright.
    """
    counts: Counter[str] = Counter()
    first: dict[str, str] = {}
    for split, i, traits in of_all_images(content, _traits):
        counts.update(traits)
        locations = content.splits[split].locations
        where = Path(locations[i]).name if locations else f"row {i}"
        first = dict.fromkeys(traits, f"{split}, {where}") | first
    for trait, text in TRAITS.items():
        if counts[trait] and not (trait == "dark" and counts["bright"]):
            yield f"{counts[trait]} images {text} (first {first[trait]})"


def _traits(encoded: bytes) -> list[str]:
    from PIL import Image

    with Image.open(BytesIO(encoded)) as image:
        # Of colours with 16 bits Pillow keeps the upper 8 without a word; how it reads them shows that they had more.
        sixteen = is_sixteen_bit(image) or ";16" in str(image.tile)
        traits = {
            "transparent": image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info,
            "CMYK": image.mode == "CMYK",
        }
        try:
            traits["animated"] = getattr(image, "n_frames", 1) > 1
            traits["turned"] = image.getexif().get(ORIENTATION, 1) not in (0, 1)
        except Exception:  # damaged metadata make Pillow raise almost anything; the pixels may be whole
            traits["damaged"] = True
    if sixteen:
        brightest = max(rgb(encoded).convert("L").tobytes())
        traits["bright" if brightest >= DARK else "dark"] = True
    return [trait for trait, present in traits.items() if present]
