"""What `bench.data.problems` finds in a data set, by split and row, and what it leaves alone."""

import struct
import zlib
from collections.abc import Mapping
from io import BytesIO
from typing import Any

import numpy as np
import pytest
from PIL import Image

from bench.data import problems as checks
from bench.data.array_cache import _decode
from bench.data.content import Content, Rows
from bench.data.decode import rgb
from bench.data.image_notes import image_notes
from bench.data.problems import MOST_NAMED, contradictions, duplicates, refuse
from bench.data.task_spec import MOST_MEGAPIXELS
from bench.errors import InputError


def problems(
    content: Content, allowed: Mapping[str, frozenset[str]] = {}, most_megapixels: float = MOST_MEGAPIXELS
) -> list[str]:
    return checks.problems(content, allowed, most_megapixels)


def encoded(shade: int, kind: str = "PNG", size: tuple[int, int] = (6, 5)) -> bytes:
    buffer = BytesIO()
    Image.new("RGB", size, (shade, 255 - shade, 7)).save(buffer, format=kind)
    return buffer.getvalue()


def png_header(width: int, height: int) -> bytes:
    """A PNG that says how large it is, and has no pixels."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    size = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", size) + chunk(b"IDAT", b"")


def images(*test: bytes) -> Content:
    train = Rows([encoded(0), encoded(1)], [0, 1])
    return Content(
        "image", ("cat", "dog"), {"train": train, "test": Rows([*test, encoded(2)], [0] * len(test) + [1])}, {}
    )


def texts(test: Rows, names: tuple[str, ...] | None = ("cat", "dog")) -> Content:
    pairs = None if test.pairs is None else [b"x", b"y"]
    train = Rows([b"one", b"two"], None if names is None else [0, 1], pairs)
    return Content("text", names, {"train": train, "test": test}, {})


def test_good_images_of_every_kind_have_no_problems() -> None:
    kinds = [encoded(9, kind) for kind in ("PNG", "JPEG", "GIF", "BMP", "WEBP", "PPM", "TIFF")]
    exif = Image.Exif()
    exif[270] = "x" * 300
    cut = BytesIO()
    Image.new("RGB", (8, 8)).save(cut, format="JPEG", exif=exif.tobytes()[:40])  # Pillow warns, and reads the pixels
    assert problems(images(*kinds, cut.getvalue())) == []


def test_a_truncated_jpeg_is_found_by_its_row_and_class() -> None:
    whole = encoded(9, "JPEG", (64, 64))
    Image.open(BytesIO(whole[:-20]))  # its header is fine: only decoding shows the damage
    (problem,) = problems(images(encoded(5), whole[:-20]))
    assert problem.startswith("test, row 1 (cat): ")


@pytest.mark.parametrize(
    "bad",
    [
        b"",
        b"no image",
        encoded(3)[:-25],
        b"P5 0 3 255\n",
        png_header(0, 4),
    ],
)
def test_an_image_that_cannot_be_used_is_found(bad: bytes) -> None:
    (problem,) = problems(images(bad))
    assert problem.startswith("test, row 0 (cat): ")


@pytest.mark.parametrize("size", [(20_001, 1), (1, 20_001), (12_000, 9_000), (20_000, 20_000)])
def test_images_of_impossible_size_are_found_before_they_are_decoded(size: tuple[int, int]) -> None:
    # Pillow warns of the last but one and refuses the last: decompression bombs.
    (problem,) = problems(images(png_header(*size)))
    (without_pixels,) = problems(images(png_header(4, 4)))
    reason = problem.removeprefix("test, row 0 (cat): ")
    assert "pixels" in reason
    assert "decoded" in without_pixels and "decoded" not in reason


def test_the_largest_and_smallest_legal_images_are_fine() -> None:
    assert problems(images(encoded(1, size=(20_000, 1)), encoded(1, size=(1, 20_000)), encoded(1, size=(1, 1)))) == []


def test_large_images_are_read_where_the_task_allows_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)  # Pillow would warn above it, and refuse above twice of it
    large = images(encoded(1, size=(40, 30)), encoded(2, size=(30, 40)))
    problem, _ = problems(large, {}, 0.001)
    assert "40 x 30 pixels" in problem and "task.most_megapixels" in problem
    assert problems(large, {}, 0.0012) == []
    assert list(image_notes(large)) == []
    pixels = _decode(large.splits["test"].values, 4, "test", lambda shape, dtype: np.empty(shape, dtype))
    assert pixels.shape == (3, 3, 4, 4)
    assert Image.MAX_IMAGE_PIXELS == 100


def test_at_most_ten_of_a_kind_are_named_and_the_rest_counted() -> None:
    count = MOST_NAMED + 4
    messages = problems(texts(Rows([b" "] * count + [b"fine"], [0] * count + [7])))
    empty = [problem for problem in messages if problem.startswith("test, row") and "(cat)" in problem]
    assert [problem.split(":")[0] for problem in empty] == [f"test, row {i} (cat)" for i in range(10)]
    assert sum("4 more" in problem for problem in messages) == 1
    assert len(messages) == 10 + 1 + 2  # the label 7, and no dog in the test split
    exactly = problems(texts(Rows([b""] * MOST_NAMED + [b"x"], [0] * MOST_NAMED + [1])))
    assert len(exactly) == MOST_NAMED


def test_empty_texts_and_pairs_are_found() -> None:
    rows = Rows([b"", b"good", "\u2003\t\n".encode(), b"\xff"], [0, 1, 1, 1], [b"p", b" ", b"p", b"p"])
    named_rows = [problem.split(":")[0] for problem in problems(texts(rows))]
    assert named_rows == [f"test, row {i} ({name})" for i, name in enumerate(["cat", "dog", "dog", "dog"])]


@pytest.mark.parametrize("label", [-1, 2])
def test_a_label_outside_the_classes_is_found(label: int) -> None:
    (problem,) = problems(texts(Rows([b"a", b"b", b"c"], [0, 1, label])))
    assert problem.startswith("test, row 2: ")


def test_a_class_without_examples_is_found_unless_it_is_allowed_in_that_split() -> None:
    content = texts(Rows([b"a"], [0]))
    (problem,) = problems(content)
    assert problem.startswith("test: ") and "dog" in problem
    assert problems(content, {"test": frozenset({"dog"})}) == []
    assert problems(content, {"validation": frozenset({"dog"}), "test": frozenset({"cat"})}) == [problem]


def test_fewer_than_two_classes_and_empty_splits_are_found() -> None:
    one = Content("text", ("cat",), {"train": Rows([b"a"], [0])}, {})
    assert len(problems(one)) == 1
    (problem,) = problems(texts(Rows([], [])))
    assert problem.startswith("test ")


def test_a_single_training_example_per_class_and_a_corpus_are_fine() -> None:
    assert problems(texts(Rows([b"a", b"b"], [0, 1]))) == []
    assert problems(texts(Rows([b"a"], None), names=None)) == []


def test_refusing_names_the_data_set_and_every_problem() -> None:
    refuse("pets", texts(Rows([b"a", b"b"], [0, 1])), {}, MOST_MEGAPIXELS)
    content = texts(Rows([b"", b"a"], [0, 5]))
    with pytest.raises(InputError) as caught:
        refuse("pets", content, {}, MOST_MEGAPIXELS)
    message = str(caught.value)
    assert message.startswith("pets ")
    assert len(problems(content)) == 3
    assert all(problem in message for problem in problems(content))
    with pytest.raises(InputError) as caught:
        refuse("pets", content, {"test": frozenset({"dog"})}, MOST_MEGAPIXELS)
    assert "dog" not in str(caught.value)


def test_duplicates_are_counted_by_example_and_by_label() -> None:
    splits = {
        "train": Rows([b"a", b"b", b"b", b"c"], [0, 0, 1, 1]),
        "validation": Rows([b"z"], [0]),
        "test": Rows([b"a", b"a", b"b", b"c", b"c", b"new"], [0, 1, 1, 0, 0, 0]),
    }
    content = Content("text", ("x", "y"), splits, {})
    assert duplicates(content) == {("train", "test"): 5}
    assert contradictions(content) == {("train", "test"): 3}


def test_pairs_are_duplicates_only_if_both_texts_are() -> None:
    splits = {"train": Rows([b"a", b"b"], [0, 1], [b"1", b"2"]), "test": Rows([b"a", b"b"], [0, 1], [b"2", b"2"])}
    assert duplicates(Content("text", ("x", "y"), splits, {})) == {("train", "test"): 1}


def saved(pixels: np.ndarray[Any, Any], kind: str) -> bytes:
    buffer = BytesIO()
    Image.fromarray(pixels).save(buffer, format=kind)
    return buffer.getvalue()


def test_sixteen_bits_are_scaled_to_eight() -> None:
    """Usual in medicine; Pillow's own conversion would make nearly all of it white."""
    ramp = np.linspace(0, 65_535, 64).reshape(8, 8).astype(np.uint16)
    scaled = np.asarray(rgb(saved(ramp, "PNG")))
    assert scaled.shape == (8, 8, 3)
    assert np.abs(scaled[..., 0] - ramp / 257.0).max() <= 1


def test_pixels_without_a_range_are_named() -> None:
    values = saved(np.linspace(0, 1, 64, dtype=np.float32).reshape(8, 8), "TIFF")
    good = saved(np.zeros((8, 8), np.uint8), "PNG")
    content = Content("image", ("a", "b"), {"train": Rows([values, good], [0, 1], locations=["scan.tif", "b.png"])}, {})
    (problem,) = problems(content)
    assert problem.startswith("scan.tif: ")
    assert "mode F" in problem
