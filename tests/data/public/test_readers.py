"""The readers: what does not fit the official layout is refused by file and line."""

import json
from collections.abc import Callable, Mapping
from io import BytesIO
from typing import Any

import numpy as np
import pytest
from PIL import Image
from scipy.io import savemat

from bench.data.content import Content
from bench.data.public import SOURCES
from bench.data.public import flower as flowers
from bench.data.sources import embedded_images
from bench.errors import InputError
from bench.specs import stream

Members = dict[str, bytes]


def mat(**variables: Any) -> bytes:
    buffer = BytesIO()
    savemat(buffer, variables)
    return buffer.getvalue()


def cells(*texts: str) -> Any:
    column = np.empty((len(texts), 1), dtype=object)
    for i, text in enumerate(texts):
        column[i, 0] = text
    return column


def lines(*texts: str) -> bytes:
    return "".join(f"{text}\n" for text in texts).encode()


def aircraft() -> Members:
    return {
        "variants.txt": lines("707-320", "DHC-8-100", "F/A-18"),
        "images_variant_train.txt": lines("0000003 F/A-18", "0000001 707-320"),
        "images_variant_val.txt": lines("0000002 DHC-8-100"),
        "images_variant_test.txt": lines("0000004 707-320"),
    } | {f"images/{i:07d}.jpg": b"%d" % i for i in range(1, 5)}


def cub() -> Members:
    return {
        "classes.txt": lines("1 001.Albatross", "2 002.Auklet"),
        "images.txt": lines("1 001.Albatross/a.jpg", "2 001.Albatross/b.jpg", "3 002.Auklet/c.jpg"),
        "image_class_labels.txt": lines("1 1", "2 1", "3 2"),
        "train_test_split.txt": lines("1 0", "2 1", "3 1"),
        "images/001.Albatross/a.jpg": b"a",
        "images/001.Albatross/b.jpg": b"b",
        "images/002.Auklet/c.jpg": b"c",
    }


def chest_xray() -> Members:
    return {
        f"{split}/{name}/{i}.jpeg": f"{split}{name}{i}".encode()
        for split in ("train", "test")
        for name in ("PNEUMONIA", "NORMAL")
        for i in range(2)
    }


def dtd(per_class: int = 12) -> Members:
    names = [f"{name}/{name}_{i:04d}.jpg" for name in ("knitted", "banded") for i in range(per_class)]
    return {f"images/{name}": name.encode() for name in names} | {
        f"labels/{split}1.txt": lines(*names[start::3]) for start, split in enumerate(("train", "val", "test"))
    }


def dogs(train_labels: tuple[int, ...] = (2, 1), test_labels: tuple[int, ...] = (1,)) -> Members:
    train = ("n02-wire-haired_terrier/n02_7.jpg", "n01-Chihuahua/n01_1.jpg")
    test = ("n01-Chihuahua/n01_2.jpg",)
    return {
        "train_list.mat": mat(file_list=cells(*train), labels=np.array(train_labels, dtype=np.uint8)[:, None]),
        "test_list.mat": mat(file_list=cells(*test), labels=np.array(test_labels, dtype=np.uint8)[:, None]),
    } | {name: name.encode() for name in (*train, *test)}


def flower(labels: tuple[int, ...] = (1, 3, 2, 1), train: tuple[int, ...] = (4, 2)) -> Members:
    return {
        "imagelabels.mat": mat(labels=np.array([labels], dtype=np.uint8)),
        "setid.mat": mat(trnid=np.array([train], dtype=np.uint16), valid=np.array([[3]]), tstid=np.array([[1]])),
    } | {f"image_{i:05d}.jpg": b"%d" % i for i in range(1, 5)}


read_aircraft = SOURCES["aircraft"].read
read_cub = SOURCES["cub"].read
read_chest_xray = SOURCES["chest_xray"].read
read_dtd = SOURCES["dtd"].read
read_dtd_75_25 = SOURCES["dtd_75_25"].read
read_dogs = SOURCES["dogs"].read
read_cifar100 = SOURCES["cifar100"].read
read_scierc = SOURCES["scierc"].read
read_twitter_emotion = SOURCES["twitter_emotion"].read


def three_flowers(members: Mapping[str, bytes]) -> Content:
    return flowers.read(members, ("rose", "lotus", "gaura"))


def pixels(seed: int) -> Any:
    return np.random.default_rng(seed).integers(0, 256, size=(3, 32, 32), dtype=np.uint8)


def cifar100() -> Members:
    return {
        "fine_label_names.txt": lines("apple", "bear", "crab", ""),
        "train.bin": b"".join(bytes([9, label]) + pixels(label).tobytes() for label in (2, 0)),
        "test.bin": bytes([9, 1]) + pixels(1).tobytes(),
    }


def texts() -> Members:
    def split(*labels: str) -> bytes:
        return lines(*(json.dumps({"text": f"é {label}\x85", "label": label, "metadata": {}}) for label in labels))

    return {"train.txt": split("USED-FOR", "COMPARE"), "dev.txt": split("COMPARE"), "test.txt": split("PART-OF")}


def tweets() -> Members:
    return {
        "mapping.txt": b"0\tanger\n1\tjoy",
        "train_text.txt": "so\u2028angry \njoy\n".encode(),
        "train_labels.txt": b"0\n1\n",
        "val_text.txt": b"no\n",
        "val_labels.txt": b"0\n",
        "test_text.txt": b"yes",
        "test_labels.txt": b"1",
    }


def rows(content: Content) -> dict[str, tuple[list[bytes], list[int] | None]]:
    return {split: (rows.values, rows.labels) for split, rows in content.splits.items()}


def test_aircraft_follows_the_lists_and_the_order_of_variants() -> None:
    content = read_aircraft(aircraft())
    assert content.class_names == ("707-320", "DHC-8-100", "F/A-18")
    assert rows(content) == {"train": ([b"3", b"1"], [2, 0]), "validation": ([b"2"], [1]), "test": ([b"4"], [0])}


def test_cub_joins_its_tables_on_the_id() -> None:
    members = cub()
    members["train_test_split.txt"] = lines("3 1", "1 0", "2 1")  # the order of a joined table does not matter
    content = read_cub(members)
    assert content.class_names == ("001.Albatross", "002.Auklet")
    assert rows(content) == {"train": ([b"b", b"c"], [0, 1]), "test": ([b"a"], [0])}


def test_chest_xray_stands_in_the_order_of_paths() -> None:
    content = read_chest_xray(chest_xray())
    assert content.class_names == ("NORMAL", "PNEUMONIA")
    values = [b"trainNORMAL0", b"trainNORMAL1", b"trainPNEUMONIA0", b"trainPNEUMONIA1"]
    assert rows(content)["train"] == (values, [0, 0, 1, 1])
    assert list(content.splits) == ["train", "test"]


def test_dtd_is_split_1() -> None:
    members = dtd(3)
    content = read_dtd(members)
    assert content.class_names == ("banded", "knitted")
    assert rows(content) == {
        "train": ([b"knitted/knitted_0000.jpg", b"banded/banded_0000.jpg"], [1, 0]),
        "validation": ([b"knitted/knitted_0001.jpg", b"banded/banded_0001.jpg"], [1, 0]),
        "test": ([b"knitted/knitted_0002.jpg", b"banded/banded_0002.jpg"], [1, 0]),
    }


def test_dtd_75_25_tests_the_quarter_of_smallest_hash_of_every_class() -> None:
    content = read_dtd_75_25(dtd(12))
    assert list(content.splits) == ["train", "test"]
    for label, name in enumerate(("banded", "knitted")):
        files = [f"{name}_{i:04d}.jpg" for i in range(12)]
        tested = sorted(files, key=lambda file: stream(0, "dtd_75_25", file))[:3]
        for split, expected in (("test", sorted(tested)), ("train", [file for file in files if file not in tested])):
            values, labels = rows(content)[split]
            assert labels is not None
            paths = [value.decode() for value, own in zip(values, labels, strict=True) if own == label]
            assert paths == [f"{name}/{file}" for file in expected]


def test_dtd_75_25_depends_on_which_images_there_are_alone() -> None:
    members = dtd(12)
    moved = members | {
        "labels/train1.txt": members["labels/test1.txt"],
        "labels/test1.txt": members["labels/train1.txt"],
    }
    assert rows(read_dtd_75_25(moved)) == rows(read_dtd_75_25(dict(reversed(members.items()))))


def test_dogs_are_named_by_breed_in_the_order_of_labels() -> None:
    content = read_dogs(dogs())
    assert content.class_names == ("Chihuahua", "wire-haired_terrier")
    assert rows(content) == {
        "train": ([b"n02-wire-haired_terrier/n02_7.jpg", b"n01-Chihuahua/n01_1.jpg"], [1, 0]),
        "test": ([b"n01-Chihuahua/n01_2.jpg"], [0]),
    }


def test_flowers_count_images_and_labels_from_one() -> None:
    content = three_flowers(flower())
    assert content.class_names == ("rose", "lotus", "gaura")
    assert rows(content) == {"train": ([b"4", b"2"], [0, 2]), "validation": ([b"3"], [1]), "test": ([b"1"], [0])}


def test_cifar_images_keep_every_pixel_and_are_encoded_as_the_embedded_ones() -> None:
    content = read_cifar100(cifar100())
    assert content.class_names == ("apple", "bear", "crab")
    assert {split: labels for split, (_, labels) in rows(content).items()} == {"train": [2, 0], "test": [1]}
    for split, seeds in (("train", (2, 0)), ("test", (1,))):
        for value, seed in zip(content.splits[split].values, seeds, strict=True):
            image = pixels(seed).transpose(1, 2, 0)
            assert value == embedded_images._encode(Image.fromarray(image))
            np.testing.assert_array_equal(np.asarray(Image.open(BytesIO(value))), image)


def test_texts_sort_their_classes_over_all_splits_and_end_lines_at_line_feeds_only() -> None:
    content = read_scierc(texts())
    assert content.class_names == ("COMPARE", "PART-OF", "USED-FOR")
    assert {split: labels for split, (_, labels) in rows(content).items()} == {
        "train": [2, 0],
        "validation": [0],
        "test": [1],
    }
    assert content.splits["train"].values[0] == "é USED-FOR\x85".encode()


def test_tweets_are_kept_as_they_stand() -> None:
    content = read_twitter_emotion(tweets())
    assert content.class_names == ("anger", "joy")
    assert rows(content) == {
        "train": (["so\u2028angry ".encode(), b"joy"], [0, 1]),
        "validation": ([b"no"], [0]),
        "test": ([b"yes"], [1]),
    }


def refusal(converter: Callable[[Members], Content], members: Members) -> str:
    with pytest.raises(InputError) as refused:
        converter(members)
    return str(refused.value)


def changed(members: Members, name: str, content: bytes) -> Members:
    assert name in members
    return members | {name: content}


def without(members: Members, name: str) -> Members:
    assert name in members
    return {member: content for member, content in members.items() if member != name}


REFUSED: list[tuple[Callable[[Members], Content], Members, tuple[str, ...]]] = [
    # a listed image that is missing
    (read_aircraft, without(aircraft(), "images/0000002.jpg"), ("images_variant_val.txt line 1", "0000002.jpg")),
    (read_cub, without(cub(), "images/002.Auklet/c.jpg"), ("images.txt line 3", "c.jpg")),
    (read_dtd, without(dtd(), "images/banded/banded_0003.jpg"), ("labels/train1.txt line 6", "banded_0003.jpg")),
    (read_dtd_75_25, without(dtd(), "images/banded/banded_0003.jpg"), ("banded_0003.jpg",)),
    (read_dogs, without(dogs(), "n01-Chihuahua/n01_2.jpg"), ("test_list.mat entry 1", "n01_2.jpg")),
    (three_flowers, without(flower(), "image_00002.jpg"), ("setid.mat trnid entry 2", "image_00002.jpg")),
    # a file that is missing
    (read_aircraft, without(aircraft(), "images_variant_test.txt"), ("images_variant_test.txt",)),
    (read_cub, without(cub(), "classes.txt"), ("classes.txt",)),
    (read_dogs, without(dogs(), "test_list.mat"), ("test_list.mat",)),
    (read_cifar100, without(cifar100(), "test.bin"), ("test.bin",)),
    (read_scierc, without(texts(), "dev.txt"), ("dev.txt",)),
    (read_chest_xray, {"train/NORMAL/1.jpeg": b"1"}, ("test",)),
    # an unknown class, a label out of range
    (
        read_aircraft,
        changed(aircraft(), "images_variant_train.txt", lines("0000003 F/A-18", "0000001 707-321")),
        ("images_variant_train.txt line 2", "'707-321'"),
    ),
    (read_cub, changed(cub(), "image_class_labels.txt", lines("1 1", "2 3", "3 2")), ("labels.txt line 2", "'3'")),
    (read_chest_xray, chest_xray() | {"train/VIRUS/1.jpeg": b"1"}, ("train/VIRUS/1.jpeg", "'VIRUS'")),
    (read_dtd, changed(dtd(), "labels/val1.txt", lines("dotted/dotted_1.jpg")), ("val1.txt line 1", "'dotted'")),
    (read_dogs, dogs(train_labels=(3, 1)), ("[1, 3]",)),
    (read_dogs, dogs(train_labels=(1, 1)), ("train_list.mat entry 2", "n02-wire-haired_terrier")),
    (read_dogs, dogs(test_labels=(3,)), ("[1, 2, 3]",)),
    (three_flowers, flower(labels=(1, 4, 2, 1)), ("imagelabels.mat entry 2", "label 4")),
    (three_flowers, flower(labels=(1, 0, 2, 1)), ("imagelabels.mat entry 2", "label 0")),
    (three_flowers, flower(train=(4, 5)), ("setid.mat trnid entry 2", "image 5")),
    (
        read_cifar100,
        changed(cifar100(), "test.bin", bytes([9, 3]) + pixels(1).tobytes()),
        ("test.bin record 0", "label 3"),
    ),
    (read_twitter_emotion, changed(tweets(), "val_labels.txt", b"2\n"), ("val_labels.txt line 1", "'2'")),
    # duplicates, within a split and between two
    (
        read_aircraft,
        changed(aircraft(), "images_variant_test.txt", lines("0000004 707-320", "0000004 707-320")),
        ("images_variant_test.txt line 2", "images_variant_test.txt line 1"),
    ),
    (
        read_aircraft,
        changed(aircraft(), "images_variant_test.txt", lines("0000003 F/A-18")),
        ("images_variant_test.txt line 1", "images_variant_train.txt line 1"),
    ),
    (read_aircraft, changed(aircraft(), "variants.txt", lines("a", "b", "a")), ("variants.txt line 3",)),
    (read_cub, changed(cub(), "images.txt", lines("1 a", "2 b", "1 c")), ("images.txt line 3", "images.txt line 1")),
    (
        read_dtd,
        changed(dtd(), "labels/test1.txt", dtd()["labels/val1.txt"]),
        ("test1.txt line 1", "val1.txt line 1"),
    ),
    (read_dtd_75_25, changed(dtd(), "labels/test1.txt", dtd()["labels/val1.txt"]), ("test1.txt", "val1.txt")),
    (three_flowers, flower(train=(4, 3)), ("setid.mat valid entry 1", "setid.mat trnid entry 2")),
    # lines and files of another form
    (read_cub, changed(cub(), "train_test_split.txt", lines("1 0", "2 2", "3 1")), ("split.txt line 2", "'2'")),
    (read_cub, changed(cub(), "train_test_split.txt", lines("1 0", "2 1")), ("images.txt line 3",)),
    (read_cub, changed(cub(), "classes.txt", lines("1 001.Albatross", "2")), ("classes.txt line 2",)),
    (read_aircraft, changed(aircraft(), "variants.txt", b"\xff\n"), ("variants.txt",)),
    (read_dogs, changed(dogs(), "train_list.mat", b"\0" * 200), ("train_list.mat",)),
    (read_dogs, changed(dogs(), "train_list.mat", mat(labels=np.array([[1]]))), ("train_list.mat", "file_list")),
    (three_flowers, changed(flower(), "setid.mat", flower()["setid.mat"][:150]), ("setid.mat",)),
    (read_cifar100, changed(cifar100(), "train.bin", cifar100()["train.bin"][:-1]), ("train.bin", "6147 bytes")),
    (read_cifar100, changed(cifar100(), "train.bin", b""), ("train.bin", "0 bytes")),
    (read_scierc, changed(texts(), "dev.txt", b'{"text": "a", "label": "b"}\n{"text": "a'), ("dev.txt line 2",)),
    (read_scierc, changed(texts(), "dev.txt", lines('["a", "b"]')), ("dev.txt line 1",)),
    (read_scierc, changed(texts(), "dev.txt", lines('{"text": "a", "label": 1}')), ("dev.txt line 1",)),
    (read_scierc, changed(texts(), "dev.txt", lines('{"text": " ", "label": "b"}')), ("dev.txt line 1",)),
    (read_scierc, changed(texts(), "dev.txt", lines(r'{"text": "\ud83d", "label": "b"}')), ("dev.txt line 1",)),
    (read_scierc, changed(texts(), "dev.txt", b""), ("dev.txt",)),
    (read_twitter_emotion, changed(tweets(), "mapping.txt", b"0\tanger\n2\tjoy"), ("mapping.txt line 2",)),
    (read_twitter_emotion, changed(tweets(), "train_labels.txt", b"0\n"), ("train_text.txt has 2", "labels.txt 1")),
    (read_twitter_emotion, changed(tweets(), "val_text.txt", b"\n"), ("val_text.txt line 1",)),
]


@pytest.mark.parametrize(("converter", "members", "named"), REFUSED)
def test_what_does_not_fit_is_refused_where_it_stands(
    converter: Callable[[Members], Content], members: Members, named: tuple[str, ...]
) -> None:
    message = refusal(converter, members)
    assert all(part in message for part in named), message
