"""The public tasks: miniature archives in the official layouts, promised counts, and the counts of the real data."""

import dataclasses
import hashlib
import importlib
import io
import json
import os
import pkgutil
import subprocess
import sys
import tarfile
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from scipy.io import savemat

import bench
from bench.data import public
from bench.data.content import Content, Rows
from bench.data.manifest import Manifest, SplitFacts
from bench.data.public import SOURCES, flower, official
from bench.data.public.declare import Source, class_table
from bench.data.sources.download import Remote
from bench.data.tasks import EMBEDDED, TASKS
from bench.errors import InputError

Files = dict[str, bytes]


def picture(*colour: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (3, 2), colour).save(buffer, "JPEG")
    return buffer.getvalue()


def pictures(*names: str) -> Files:
    return {name: picture(i * 40 % 256, i * 7 % 256, i) for i, name in enumerate(names)}


def lines(*texts: str) -> bytes:
    return "".join(f"{text}\n" for text in texts).encode()


def mat(**variables: Any) -> bytes:
    buffer = io.BytesIO()
    savemat(buffer, variables)
    return buffer.getvalue()


def file_list(labels: list[int], *names: str) -> bytes:
    column = np.empty((len(names), 1), dtype=object)
    column[:, 0] = names
    return mat(file_list=column, annotation_list=column, labels=np.array(labels, dtype=np.uint8)[:, None])


def inside(folder: str, files: Files) -> Files:
    return {f"{folder}/{name}": content for name, content in files.items()}


def packed(name: str, files: Files) -> bytes:
    """An archive of the kind that its name tells."""
    buffer = io.BytesIO()
    if name.endswith(".zip"):
        with zipfile.ZipFile(buffer, "w") as archive:
            for member, content in files.items():
                archive.writestr(member, content)
        return buffer.getvalue()
    with tarfile.open(fileobj=buffer, mode="w" if name.endswith(".tar") else "w:gz") as archive:
        for member, content in files.items():
            info = tarfile.TarInfo(member)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


AIRCRAFT = inside(
    "fgvc-aircraft-2013b/data",
    {
        "variants.txt": lines("707-320", "F/A-18", "Hawk T1"),
        "families.txt": lines("Boeing 707"),
        "images_variant_train.txt": lines("0000005 Hawk T1", "0000001 707-320"),
        "images_variant_val.txt": lines("0000002 F/A-18"),
        "images_variant_trainval.txt": lines("0000005 Hawk T1"),
        "images_variant_test.txt": lines("0000003 707-320", "0000004 Hawk T1"),
    }
    | pictures(*(f"images/{i:07d}.jpg" for i in range(1, 6))),
)

CUB = {"attributes.txt": b"1 has_bill_shape::curved\n"} | inside(
    "CUB_200_2011",
    {
        "classes.txt": lines("1 001.Albatross", "2 002.Auklet"),
        "images.txt": lines("1 001.Albatross/a.jpg", "2 001.Albatross/b.jpg", "3 002.Auklet/c.jpg"),
        "image_class_labels.txt": lines("1 1", "2 1", "3 2"),
        "train_test_split.txt": lines("1 0", "2 1", "3 1"),
        "bounding_boxes.txt": lines("1 0.0 0.0 2.0 2.0"),
    }
    | pictures("images/001.Albatross/a.jpg", "images/001.Albatross/b.jpg", "images/002.Auklet/c.jpg"),
)

XRAYS = pictures(
    "train/PNEUMONIA/person1_bacteria_1.jpeg",
    "train/NORMAL/IM-0115-0001.jpeg",
    "test/NORMAL/IM-0001-0001.jpeg",
    "test/PNEUMONIA/person1_virus_6.jpeg",
)
MENDELEY = inside("chest_xray", XRAYS) | {"chest_xray/train/.DS_Store": b"", "chest_xray/train/NORMAL/.DS_Store": b""}
KAGGLE = (
    MENDELEY
    | inside("chest_xray", {"val/NORMAL/NORMAL2-IM-1427-0001.jpeg": b"left out"})
    | inside("chest_xray/chest_xray", dict.fromkeys([*XRAYS, "train/NORMAL/more.jpeg"], b"a copy"))
    | inside("chest_xray/__MACOSX/chest_xray", {"train/NORMAL/._IM-0115-0001.jpeg": b"junk"})
)

TEXTURES = [f"{name}/{name}_{i:04d}.jpg" for name in ("banded", "knitted") for i in range(12)]
DTD = inside(
    "dtd",
    {
        f"labels/{split}{number}.txt": lines(*TEXTURES[(start + number - 1) % 3 :: 3])
        for start, split in enumerate(("train", "val", "test"))
        for number in (1, 2, 10)
    }
    | {"labels/labels_joint_anno.txt": b"", "imdb/imdb.mat": b""}
    | pictures(*(f"images/{texture}" for texture in TEXTURES)),
)

DOGS = ("n02-wire-haired_terrier/n02_7.jpg", "n01-Chihuahua/n01_1.jpg", "n01-Chihuahua/n01_2.jpg")
DOG_IMAGES = inside("Images", pictures(*DOGS))
DOG_LISTS = {
    "file_list.mat": b"",
    "train_list.mat": file_list([2, 1], *DOGS[:2]),
    "test_list.mat": file_list([1], DOGS[2]),
}

FLOWERS = inside("jpg", pictures(*(f"image_{i:05d}.jpg" for i in range(1, 5))))
FLOWER_LABELS = mat(labels=np.array([[77, 102, 1, 77]], dtype=np.uint8))
FLOWER_SPLITS = mat(trnid=np.array([[4, 2]]), valid=np.array([[3]]), tstid=np.array([[1]]))

CIFAR = inside(
    "cifar-100-binary",
    {
        "coarse_label_names.txt": lines("fruit"),
        "fine_label_names.txt": lines("apple", "bear"),
        "train.bin": bytes([7, 1]) + bytes(range(256)) * 12 + bytes([7, 0]) + bytes(3072),
        "test.bin": bytes([7, 0]) + bytes([255]) * 3072,
    },
)


def json_lines(*labels: str) -> bytes:
    return lines(*(json.dumps({"text": f"a {label}", "label": label, "metadata": []}) for label in labels))


TEXTS = {
    "train.txt": json_lines("USED-FOR", "COMPARE"),
    "dev.txt": json_lines("COMPARE"),
    "test.txt": json_lines("PART-OF", "COMPARE"),
}

TWEETS = {
    "mapping.txt": b"0\tanger\n1\tjoy",
    "train_text.txt": lines("so angry ", "joy"),
    "train_labels.txt": lines("0", "1"),
    "val_text.txt": lines("no"),
    "val_labels.txt": lines("0"),
    "test_text.txt": lines("yes"),
    "test_labels.txt": lines("1"),
}

ARCHIVES: dict[str, dict[str, Files]] = {
    "aircraft": {"fgvc-aircraft-2013b.tar.gz": AIRCRAFT},
    "cub": {"CUB_200_2011.tgz": CUB},
    "chest_xray": {"ChestXRay2017.zip": MENDELEY},
    "dtd": {"dtd-r1.0.1.tar.gz": DTD},
    "dtd_75_25": {"dtd-r1.0.1.tar.gz": DTD},
    "dogs": {"images.tar": DOG_IMAGES, "lists.tar": DOG_LISTS},
    "flower": {"102flowers.tgz": FLOWERS},
    "cifar100": {"cifar-100-binary.tar.gz": CIFAR},
}
PLAIN: dict[str, Files] = {
    "flower": {"imagelabels.mat": FLOWER_LABELS, "setid.mat": FLOWER_SPLITS},
    "scierc": TEXTS,
    "acl_arc": TEXTS,
    "chemprot": TEXTS,
    "twitter_emotion": TWEETS,
}

Expected = dict[str, tuple[list[bytes], list[int]]]


def taken(files: Files, *names: str) -> list[bytes]:
    return [files[name] for name in names]


def textures(*numbers: int) -> list[bytes]:
    return [DTD[f"dtd/images/{TEXTURES[i]}"] for i in numbers]


TEXT_ROWS: Expected = {
    "train": ([b"a USED-FOR", b"a COMPARE"], [2, 0]),
    "validation": ([b"a COMPARE"], [0]),
    "test": ([b"a PART-OF", b"a COMPARE"], [1, 0]),
}
ROWS: dict[str, Expected] = {
    "aircraft": {
        "train": (taken(AIRCRAFT, *(f"fgvc-aircraft-2013b/data/images/000000{i}.jpg" for i in (5, 1))), [2, 0]),
        "validation": (taken(AIRCRAFT, "fgvc-aircraft-2013b/data/images/0000002.jpg"), [1]),
        "test": (taken(AIRCRAFT, *(f"fgvc-aircraft-2013b/data/images/000000{i}.jpg" for i in (3, 4))), [0, 2]),
    },
    "cub": {
        "train": (
            taken(CUB, *(f"CUB_200_2011/images/{name}.jpg" for name in ("001.Albatross/b", "002.Auklet/c"))),
            [0, 1],
        ),
        "test": (taken(CUB, "CUB_200_2011/images/001.Albatross/a.jpg"), [0]),
    },
    "chest_xray": {
        "train": (
            taken(XRAYS, "train/NORMAL/IM-0115-0001.jpeg", "train/PNEUMONIA/person1_bacteria_1.jpeg"),
            [0, 1],
        ),
        "test": (taken(XRAYS, "test/NORMAL/IM-0001-0001.jpeg", "test/PNEUMONIA/person1_virus_6.jpeg"), [0, 1]),
    },
    "dtd": {
        split: (textures(*range(start, 24, 3)), [0] * 4 + [1] * 4)
        for start, split in enumerate(("train", "validation", "test"))
    },
    "dogs": {
        "train": (taken(DOG_IMAGES, *(f"Images/{name}" for name in DOGS[:2])), [1, 0]),
        "test": (taken(DOG_IMAGES, f"Images/{DOGS[2]}"), [0]),
    },
    "flower": {
        "train": (taken(FLOWERS, "jpg/image_00004.jpg", "jpg/image_00002.jpg"), [76, 101]),
        "validation": (taken(FLOWERS, "jpg/image_00003.jpg"), [0]),
        "test": (taken(FLOWERS, "jpg/image_00001.jpg"), [76]),
    },
    "scierc": TEXT_ROWS,
    "acl_arc": TEXT_ROWS,
    "chemprot": TEXT_ROWS,
    "twitter_emotion": {
        "train": ([b"so angry ", b"joy"], [0, 1]),
        "validation": ([b"no"], [0]),
        "test": ([b"yes"], [1]),
    },
}
CLASS_NAMES = {
    "aircraft": ("707-320", "F/A-18", "Hawk T1"),
    "cub": ("001.Albatross", "002.Auklet"),
    "chest_xray": ("NORMAL", "PNEUMONIA"),
    "dtd": ("banded", "knitted"),
    "dtd_75_25": ("banded", "knitted"),
    "dogs": ("Chihuahua", "wire-haired_terrier"),
    "cifar100": ("apple", "bear"),
    "scierc": ("COMPARE", "PART-OF", "USED-FOR"),
    "acl_arc": ("COMPARE", "PART-OF", "USED-FOR"),
    "chemprot": ("COMPARE", "PART-OF", "USED-FOR"),
    "twitter_emotion": ("anger", "joy"),
}


def files_of(name: str) -> Files:
    """The files of a task as they are downloaded."""
    archives = {archive: packed(archive, members) for archive, members in ARCHIVES.get(name, {}).items()}
    return archives | PLAIN.get(name, {})


def write(folder: Path, files: Files) -> Path:
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return folder


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Files]:
    """The miniature files of a task, which are from then on the official ones."""

    def declare(name: str) -> Files:
        files = files_of(name)
        remotes = tuple(
            dataclasses.replace(
                remote,
                checksum=remote.checksum and f"sha256:{hashlib.sha256(files[remote.name]).hexdigest()}",
                size=remote.size and len(files[remote.name]),
            )
            for remote in SOURCES[name].files
        )
        assert {remote.name for remote in remotes} == set(files)
        monkeypatch.setitem(SOURCES, name, dataclasses.replace(SOURCES[name], files=remotes))
        return files

    return declare


@pytest.fixture(autouse=True)
def _no_download(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(remote: Remote, folder: Path) -> Path:
        raise AssertionError(f"{remote.name} is downloaded although files are given")

    monkeypatch.setattr(official, "fetch", refuse)


def rows(content: Content) -> Expected:
    return {split: (rows.values, list(rows.labels or ())) for split, rows in content.splits.items()}


SMALL = sorted(ARCHIVES | PLAIN)


@pytest.mark.parametrize("name", SMALL)
def test_the_official_files_become_splits(name: str, small: Callable[[str], Files], tmp_path: Path) -> None:
    files = small(name)
    content = official.build(name, tmp_path / "downloads", write(tmp_path / "given", files))
    assert content.modality == TASKS[name].modality
    assert content.class_names == CLASS_NAMES.get(name, tuple(flower.TEST_IMAGES))
    if name in ROWS:
        assert rows(content) == ROWS[name]
    assert content.sources == {file: f"sha256:{hashlib.sha256(content).hexdigest()}" for file, content in files.items()}
    assert not (tmp_path / "downloads").exists()


def test_cifar_records_become_images(small: Callable[[str], Files], tmp_path: Path) -> None:
    content = official.build("cifar100", tmp_path / "downloads", write(tmp_path, small("cifar100")))
    assert {split: labels for split, (_, labels) in rows(content).items()} == {"train": [1, 0], "test": [0]}
    first = np.asarray(Image.open(io.BytesIO(content.splits["train"].values[0])))
    planes = np.frombuffer(bytes(range(256)) * 12, dtype=np.uint8).reshape(3, 32, 32)
    np.testing.assert_array_equal(first, planes.transpose(1, 2, 0))


def test_dtd_75_25_holds_every_image_of_dtd_once(small: Callable[[str], Files], tmp_path: Path) -> None:
    content = official.build("dtd_75_25", tmp_path / "downloads", write(tmp_path, small("dtd_75_25")))
    assert {split: Counter(labels) for split, (_, labels) in rows(content).items()} == {
        "train": {0: 9, 1: 9},
        "test": {0: 3, 1: 3},
    }
    everything = [value for values, _ in rows(content).values() for value in values]
    assert sorted(everything) == sorted(textures(*range(24)))


@pytest.mark.parametrize("name", SMALL)
def test_files_are_downloaded_where_none_are_given(
    name: str, small: Callable[[str], Files], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = small(name)
    from_files = official.build(name, tmp_path, write(tmp_path / "given", files))

    def fetch(remote: Remote, folder: Path) -> Path:
        assert folder == tmp_path / "downloads" / ("dtd" if name == "dtd_75_25" else name)
        return write(folder, {remote.name: files[remote.name]}) / remote.name

    monkeypatch.setattr(official, "fetch", fetch)
    assert official.build(name, tmp_path / "downloads", None) == from_files


@pytest.mark.parametrize("name", sorted(ARCHIVES))
@pytest.mark.parametrize("below", [True, False])
def test_an_extracted_archive_does_as_well(
    name: str, below: bool, small: Callable[[str], Files], tmp_path: Path
) -> None:
    files = small(name)
    packed_content = official.build(name, tmp_path / "downloads", write(tmp_path / "packed", files))
    folder = tmp_path / "extracted"
    for members in ARCHIVES[name].values():
        write(folder, members)
    tops = {member.partition("/")[0] for member in next(iter(ARCHIVES[name].values())) if "/" in member}
    # Where everything of a task is in one folder, that folder will do too.
    own_folder = below and len(files) == 1
    write(folder, PLAIN.get(name, {}))
    content = official.build(name, tmp_path / "downloads", folder / tops.pop() if own_folder else folder)
    assert rows(content) == rows(packed_content)
    assert content.class_names == packed_content.class_names
    for archive in ARCHIVES[name]:
        assert content.sources[archive] == "extracted"


def test_a_single_archive_can_be_given_by_itself(small: Callable[[str], Files], tmp_path: Path) -> None:
    write(tmp_path, small("dtd"))
    content = official.build("dtd", tmp_path / "downloads", tmp_path / "dtd-r1.0.1.tar.gz")
    assert rows(content) == ROWS["dtd"]


@pytest.mark.parametrize("extracted", [True, False])
def test_kaggles_edition_of_chest_xray_is_read_without_its_copies(extracted: bool, tmp_path: Path) -> None:
    write(tmp_path / "folder", KAGGLE)
    (tmp_path / "archive.zip").write_bytes(packed("archive.zip", KAGGLE))
    location = tmp_path / ("folder" if extracted else "archive.zip")
    content = official.build("chest_xray", tmp_path / "downloads", location)
    assert rows(content) == ROWS["chest_xray"]
    assert list(content.sources) == ["ChestXRay2017.zip" if extracted else "archive.zip"]


def test_the_edition_is_recorded(tmp_path: Path) -> None:
    for variant, (normal, pneumonia) in {"Mendeley v2": (1349, 3883), "Kaggle": (1341, 3875)}.items():
        sizes = {"train/NORMAL": normal, "train/PNEUMONIA": pneumonia, "test/NORMAL": 234, "test/PNEUMONIA": 390}
        members = {f"chest_xray/{folder}/{i}.jpeg": b"" for folder, size in sizes.items() for i in range(size)}
        (tmp_path / "any.zip").write_bytes(packed("any.zip", members))
        content = official.build("chest_xray", tmp_path / "downloads", tmp_path / "any.zip")
        assert content.sources["variant"] == variant
        official.refuse_differences("chest_xray", content)


def test_the_files_of_the_right_folder_of_a_repository_are_taken(small: Callable[[str], Files], tmp_path: Path) -> None:
    files = small("twitter_emotion")
    write(tmp_path / "datasets" / "emotion", files)
    write(tmp_path / "datasets" / "emoji", dict.fromkeys(files, b"another task"))
    assert rows(official.build("twitter_emotion", tmp_path, tmp_path)) == ROWS["twitter_emotion"]


def test_the_file_directly_in_a_folder_is_taken_before_those_below(
    small: Callable[[str], Files], tmp_path: Path
) -> None:
    files = small("dtd")
    write(tmp_path / "a", dict.fromkeys(files, b"another file"))
    write(tmp_path, files)
    assert rows(official.build("dtd", tmp_path / "downloads", tmp_path)) == ROWS["dtd"]
    write(tmp_path, dict.fromkeys(files, b"another file"))
    write(tmp_path / "a", files)
    assert str(tmp_path / "dtd-r1.0.1.tar.gz") in refusal("dtd", tmp_path)


def refusal(name: str, location: Path) -> str:
    with pytest.raises(InputError) as refused:
        official.build(name, location / "downloads", location)
    return str(refused.value)


@pytest.mark.parametrize("name", SMALL)
def test_missing_files_are_named_and_never_downloaded(name: str, small: Callable[[str], Files], tmp_path: Path) -> None:
    files = small(name)
    for missing in files:
        folder = write(tmp_path / missing, {file: content for file, content in files.items() if file != missing})
        assert missing in refusal(name, folder)


def test_a_place_that_is_not_there_is_refused(tmp_path: Path) -> None:
    assert "dtd-r1.0.1.tar.gz (625,239,812 bytes" in refusal("dtd", tmp_path / "nowhere")


def test_another_file_than_the_official_one_is_refused(small: Callable[[str], Files], tmp_path: Path) -> None:
    write(tmp_path, small("dtd"))
    archive = tmp_path / "dtd-r1.0.1.tar.gz"
    archive.write_bytes(archive.read_bytes()[:-1] + b"\1")
    assert str(archive) in refusal("dtd", tmp_path)


def test_importing_the_declarations_imports_no_heavy_library() -> None:
    code = (
        "import sys, bench.data.tasks, bench.data.public.official; "
        "print([m for m in ('torch', 'numpy', 'datasets', 'scipy', 'pyarrow', 'PIL') if m in sys.modules])"
    )
    environment = os.environ | {"PYTHONPATH": str(Path(bench.__file__).parents[1])}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


# What the papers and the sources' documentation state: examples per split, classes.
PUBLISHED: dict[str, tuple[dict[str, int], int]] = {
    "aircraft": ({"train": 3334, "validation": 3333, "test": 3333}, 100),
    "cub": ({"train": 5994, "test": 5794}, 200),
    "dtd": ({"train": 1880, "validation": 1880, "test": 1880}, 47),
    "dtd_75_25": ({"train": 4230, "test": 1410}, 47),
    "dogs": ({"train": 12000, "test": 8580}, 120),
    "flower": ({"train": 1020, "validation": 1020, "test": 6149}, 102),
    "cifar100": ({"train": 50000, "test": 10000}, 100),
    "scierc": ({"train": 3219, "validation": 455, "test": 974}, 7),
    "acl_arc": ({"train": 1688, "validation": 114, "test": 139}, 6),
    "chemprot": ({"train": 4169, "validation": 2427, "test": 3469}, 13),
    "twitter_emotion": ({"train": 3257, "validation": 374, "test": 1421}, 4),
}


@pytest.mark.parametrize("name", sorted(PUBLISHED))
def test_promised_counts_are_the_published_ones(name: str) -> None:
    (counts,) = SOURCES[name].counts
    assert (dict(counts.splits), counts.classes) == PUBLISHED[name]


def test_chest_xray_has_two_editions() -> None:
    editions = {counts.variant: dict(counts.splits) for counts in SOURCES["chest_xray"].counts}
    assert editions == {"Mendeley v2": {"train": 5232, "test": 624}, "Kaggle": {"train": 5216, "test": 624}}


def test_every_declared_data_set_is_listed() -> None:
    modules = [
        importlib.import_module(f"{public.__name__}.{module.name}") for module in pkgutil.iter_modules(public.__path__)
    ]
    values = [value for module in modules for name, value in vars(module).items() if not name.startswith("_")]
    declared = [source for value in values for source in (value if isinstance(value, tuple) else [value])]
    names = {source.task.name for source in declared if isinstance(source, Source)}
    assert names == SOURCES.keys() == TASKS.keys() - {*EMBEDDED}


def test_promises_per_class_add_up() -> None:
    assert {name for name, source in SOURCES.items() if source.files} == {*PUBLISHED, "chest_xray"}
    for name, source in SOURCES.items():
        for counts in source.counts:
            assert counts.per_class.keys() in (set(), counts.splits.keys())
            if counts.balanced:
                assert not any(examples % counts.classes for examples in counts.splits.values()), name
            for split, numbers in counts.per_class.items():
                assert counts.class_names is not None
                assert len(set(counts.class_names)) == len(numbers) == counts.classes, name
                assert sum(numbers) == counts.splits[split], name


def test_a_table_of_classes_has_names_of_several_words() -> None:
    assert class_table("sweet pea 10 36,\n  tree\n  mallow 1 2, rose 0 151") == {
        "sweet pea": (10, 36),
        "tree mallow": (1, 2),
        "rose": (0, 151),
    }


def test_only_chemprot_leaves_classes_without_examples() -> None:
    empty = {}
    for name, source in SOURCES.items():
        splits = {split: Rows([], []) for split in (*source.counts[0].splits, "an extra one")}
        content = Content(modality="text", class_names=(), splits=splits, sources={})
        empty[name] = {split: classes for split, classes in official.empty_classes(name, content).items() if classes}
    assert {name: classes for name, classes in empty.items() if classes} == {
        "chemprot": {"validation": {"AGONIST-INHIBITOR"}, "test": {"SUBSTRATE_PRODUCT-OF"}}
    }


def test_files_are_pinned() -> None:
    unpinned = {name for name, source in SOURCES.items() if any(file.checksum is None for file in source.files)}
    assert unpinned == {"chest_xray", "twitter_emotion"}  # nobody publishes checksums of these
    for source in SOURCES.values():
        assert len({file.name for file in source.files}) == len(source.files)


def complete(name: str, edition: int = 0) -> Manifest:
    """A manifest with exactly what a source promises, its classes in another order."""
    counts = SOURCES[name].counts[edition]
    names = counts.class_names or tuple(f"class {i}" for i in range(counts.classes))
    splits = {}
    for split, examples in counts.splits.items():
        unequal = (examples - counts.classes + 1, *[1] * (counts.classes - 1))
        per_class = tuple(counts.promised(split, names).values()) or unequal
        splits[split] = SplitFacts(examples, "0" * 64, tuple(reversed(per_class)))
    return Manifest(name, TASKS[name].modality, tuple(reversed(names)), splits, None, {})


def with_split(manifest: Manifest, split: str, **changes: Any) -> Manifest:
    facts = dataclasses.replace(manifest.splits[split], **changes)
    return dataclasses.replace(manifest, splits=manifest.splits | {split: facts})


@pytest.mark.parametrize("name", sorted(SOURCES))
def test_a_complete_data_set_has_no_differences(name: str) -> None:
    for edition in range(len(SOURCES[name].counts)):
        assert official.differences(name, complete(name, edition)) == []


def test_differences_state_both_numbers() -> None:
    manifest = complete("scierc")
    assert manifest.class_names is not None
    (text,) = official.differences("scierc", with_split(manifest, "test", examples=973))
    assert "test" in text and "973" in text and "974" in text

    numbers = dict(zip(manifest.class_names, manifest.splits["train"].per_class or (), strict=True))
    moved = numbers | {"COMPARE": numbers["COMPARE"] - 1, "PART-OF": numbers["PART-OF"] + 1}
    (text,) = official.differences("scierc", with_split(manifest, "train", per_class=tuple(moved.values())))
    for part in ("train", "'COMPARE'", "165", "166", "'PART-OF'", "180", "179"):
        assert part in text
    assert "USED-FOR" not in text


def test_missing_and_extra_splits_and_classes_are_differences() -> None:
    manifest = complete("scierc")
    assert manifest.class_names is not None
    fewer = {split: facts for split, facts in manifest.splits.items() if split != "validation"}
    (text,) = official.differences("scierc", dataclasses.replace(manifest, splits=fewer))
    assert "validation" in text and "455" in text
    more = manifest.splits | {"dev": manifest.splits["test"]}
    (text,) = official.differences("scierc", dataclasses.replace(manifest, splits=more))
    assert "dev" in text
    renamed = tuple("USES" if name == "USED-FOR" else name for name in manifest.class_names)
    texts = official.differences("scierc", dataclasses.replace(manifest, class_names=renamed))
    assert any("USES" in text for text in texts) and any("USED-FOR" in text for text in texts)
    texts = official.differences("cub", dataclasses.replace(complete("cub"), class_names=("a", "b")))
    assert any("2 classes" in text and "200" in text for text in texts)


def test_differences_to_every_edition_are_listed() -> None:
    manifest = with_split(complete("chest_xray"), "train", examples=5000)
    texts = official.differences("chest_xray", manifest)
    assert any("Mendeley" in text and "5232" in text for text in texts)
    assert any("Kaggle" in text and "5216" in text for text in texts)


def test_equal_classes_are_promised_by_their_number_alone() -> None:
    manifest = complete("cifar100")
    per_class = (501, 499, *[500] * 98)
    (text,) = official.differences("cifar100", with_split(manifest, "train", per_class=per_class))
    for part in ("'class 99'", "501", "'class 98'", "499", "500"):
        assert part in text
    assert "class 97" not in text


def test_incomplete_content_is_refused(small: Callable[[str], Files], tmp_path: Path) -> None:
    content = official.build("dtd", tmp_path / "downloads", write(tmp_path, small("dtd")))
    with pytest.raises(InputError, match="1880"):
        official.refuse_differences("dtd", content)
    official.refuse_differences("pets", content)


def real_rows(path: Path) -> Iterator[tuple[str, str]]:
    """The split and class of every example of a real data set."""
    for file in sorted(path.iterdir()):
        if file.suffix == ".jsonl":
            for line in file.read_bytes().splitlines():
                yield file.stem, json.loads(line)["label"]
        elif file.stat().st_size > 0:
            import pyarrow.parquet as pq

            table = pq.read_table(file, columns=["label"])
            names = json.loads(table.schema.metadata[b"huggingface"])["info"]["features"]["label"]["names"]
            for label in table["label"].to_pylist():
                yield file.stem, names[label]


def real_manifest(name: str, modality: Any) -> Manifest:
    counts = Counter(real_rows(Path(os.environ["BENCH_REAL_DATA"]) / f"{modality}s".replace("texts", "text") / name))
    names = tuple(sorted({class_name for _, class_name in counts}))
    splits = {}
    for split in sorted({split for split, _ in counts}):
        per_class = tuple(counts[split, class_name] for class_name in names)
        splits[split] = SplitFacts(sum(per_class), "", per_class)
    return Manifest(name, modality, names, splits, None, {})


@pytest.mark.group("data")
@pytest.mark.parametrize("name", ["scierc", "acl_arc", "chemprot", "twitter_emotion"])
def test_promises_are_the_counts_of_the_real_texts(name: str) -> None:
    manifest = real_manifest(name, "text")
    assert official.differences(name, manifest) == []
    assert manifest.class_names == SOURCES[name].counts[0].class_names


@pytest.mark.group("data")
@pytest.mark.parametrize("name", ["flower", "dogs", "cifar100"])
def test_promises_are_the_counts_of_the_real_images(name: str) -> None:
    assert official.differences(name, real_manifest(name, "image")) == []


@pytest.mark.group("data")
def test_promises_are_the_counts_of_the_real_test_split_of_chest_xray() -> None:
    manifest = real_manifest("chest_xray", "image")
    assert manifest.class_names == ("NORMAL", "PNEUMONIA")
    for counts in SOURCES["chest_xray"].counts:
        assert manifest.splits["test"].per_class == counts.per_class["test"] == (234, 390)
