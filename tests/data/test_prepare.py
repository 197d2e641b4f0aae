"""What `prepare` writes: counts, disjoint splits, the same content each time, one good folder whatever happens."""

import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
from io import BytesIO
from pathlib import Path
from types import MappingProxyType

import numpy as np
import pytest
from PIL import Image

import bench
from bench.data import disk, prepare, tasks
from bench.data.content import Content, Rows, checksum, facts
from bench.data.manifest import Manifest, SplitFacts, read_manifest
from bench.data.sources import embedded_images, embedded_texts
from bench.errors import InputError
from bench.specs import canonical_json

REPOSITORY = Path(bench.__file__).parents[1]


def start(code: str, *arguments: str, hash_seed: str = "0", threads: str = "2") -> subprocess.Popen[str]:
    environment = os.environ | {
        "PYTHONPATH": str(REPOSITORY),
        "PYTHONHASHSEED": hash_seed,
        "RAYON_NUM_THREADS": threads,
    }
    command = [sys.executable, "-c", code, *arguments]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def output(process: subprocess.Popen[str]) -> str:
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    return out


def manifest_of(name: str, root: Path) -> Manifest:
    manifest = read_manifest(name, root)
    assert manifest is not None
    return manifest


def rows(root: Path, name: str, split: str) -> Rows:
    return disk.read_rows(root / name / f"{split}.parquet", manifest_of(name, root).modality)


def test_importing_the_package_imports_no_heavy_library() -> None:
    code = (
        "import sys, bench.data.prepare, bench.data.sources.own; "
        "print([m for m in ('torch', 'numpy', 'datasets', 'sklearn', 'pyarrow', 'tokenizers') if m in sys.modules])"
    )
    assert output(start(code)).strip() == "[]"


def test_tasks_are_specs_with_their_own_canonical_form() -> None:
    assert json.loads(canonical_json(tasks.TASKS["digits"])) == {
        "type": "Task",
        "version": 1,
        "name": "digits",
        "modality": "image",
        "backbone": "photos_mae",
        "metric": "accuracy",
        "positive_class": None,
        "training": "train",
        "source": None,
        "configuration": None,
        "image_column": "image",
        "text_column": "text",
        "pair_column": None,
        "label_column": "label",
    }
    assert tasks.TASKS["pydocs"].backbone == "docs_mlm"
    assert tasks.CORPORA == {"photographs": "image", "docstrings": "text"}


def test_digits_have_the_documented_counts(prepared: Path) -> None:
    manifest = manifest_of("digits", prepared)
    assert manifest.class_names == tuple("0123456789")
    assert (manifest.splits["train"].examples, manifest.splits["test"].examples) == (1297, 500)
    test, train = (np.array(manifest.splits[split].per_class) for split in ("test", "train"))
    shares = 500 * (test + train) / 1797
    assert test.sum() == 500
    assert np.all(np.abs(test - shares) < 1)


def test_digits_are_scikit_learns_digits(prepared: Path) -> None:
    from sklearn.datasets import load_digits

    source = load_digits()
    grey = np.floor(source.images * 255 / 16 + 0.5).astype(np.uint8)
    expected = {(image.tobytes(), int(label)) for image, label in zip(grey, source.target, strict=True)}
    actual = set()
    for split in ("train", "test"):
        part = rows(prepared, "digits", split)
        for value, label in zip(part.values, part.labels or [], strict=True):
            image = Image.open(BytesIO(value))
            assert (image.format, image.mode, image.size) == ("PPM", "L", (8, 8))
            actual.add((image.tobytes(), label))
    assert actual == expected


def test_the_digits_of_the_test_split_are_a_function_of_the_images_alone(prepared: Path) -> None:
    # Golden: another NumPy, scikit-learn, Pillow or Python must not move an image between the splits.
    manifest = manifest_of("digits", prepared)
    assert manifest.splits["train"].checksum == "12831865bd38f670f1ac76b10720241def863318218906edf837060a2428b128"
    assert manifest.splits["test"].checksum == "8048a98467459fa1d6b5b28fe590243420932fbb5e69de052028333a2b11b449"


def test_pydocs_have_seventy_texts_or_more_of_each_module(prepared: Path) -> None:
    manifest = manifest_of("pydocs", prepared)
    assert manifest.class_names == embedded_texts.MODULES
    assert len(embedded_texts.MODULES) == 12
    test, train = (np.array(manifest.splits[split].per_class) for split in ("test", "train"))
    assert (test + train).min() >= 70
    assert np.all(test == (test + train) // 4)
    assert manifest.sources == {"python": ".".join(map(str, sys.version_info[:3]))}


def test_no_pydocs_text_names_its_module(prepared: Path) -> None:
    for split in ("train", "test"):
        part = rows(prepared, "pydocs", split)
        for value, label in zip(part.values, part.labels or [], strict=True):
            assert not re.search(rf"\b{embedded_texts.MODULES[label]}\b", value.decode(), re.IGNORECASE)
            assert value.decode() == " ".join(value.decode().split())


@pytest.mark.parametrize("name", ["digits", "pydocs"])
def test_no_example_occurs_twice(prepared: Path, name: str) -> None:
    values = rows(prepared, name, "train").values + rows(prepared, name, "test").values
    assert len({value.lower() if name == "pydocs" else value for value in values}) == len(values)


def test_photographs_are_8000_distinct_crops_with_structure(prepared: Path) -> None:
    values = rows(prepared, "photographs", "train").values
    assert len(set(values)) == len(values) == 8000
    crops = np.stack([np.asarray(Image.open(BytesIO(value))) for value in values[:500]])
    assert crops.shape == (500, 8, 8)
    assert crops.std(axis=(1, 2)).min() > 10
    assert np.all(crops.min(axis=(1, 2)) == 0)
    assert np.all(crops.max(axis=(1, 2)) == 255)


def test_docstrings_carry_their_vocabulary(prepared: Path) -> None:
    from tokenizers import Tokenizer

    manifest = manifest_of("docstrings", prepared)
    assert 5_000 <= manifest.splits["train"].examples <= 20_000
    assert manifest.class_names is None
    assert manifest.splits["train"].per_class is None
    tokenizer = Tokenizer.from_file(str(prepared / "docstrings" / "tokenizer.json"))
    assert manifest.vocabulary == tokenizer.get_vocab_size() == 4_000
    assert [tokenizer.token_to_id(token) for token in ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")] == [0, 1, 2, 3, 4]
    assert sorted(tokenizer.get_vocab().values()) == list(range(manifest.vocabulary))
    assert {"python", "numpy", "torch"} <= manifest.sources.keys()
    # The checksum is part of the keys of all stages on docs_mlm.
    assert manifest.tokenizer_checksum == "578e6318d96cae71271dc5eb5be61825403890e036b475eedcead0da1bdb660c"


def test_the_tokenizer_lowers_case_frames_the_text_and_knows_the_corpus(prepared: Path) -> None:
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(prepared / "docstrings" / "tokenizer.json"))
    encoding = tokenizer.encode("RETURN [MASK] \u16a0", "the array")
    assert encoding.tokens == ["[CLS]", "return", "[MASK]", "[UNK]", "[SEP]", "the", "array", "[SEP]"]
    assert encoding.type_ids == [0] * 5 + [1] * 3
    texts = [value.decode() for value in rows(prepared, "docstrings", "train").values[:2000]]
    tokens = [token for encoding in tokenizer.encode_batch(texts) for token in encoding.tokens]
    assert tokens.count("[UNK]") < len(tokens) / 1000


def test_nothing_on_disk_names_the_machine(prepared: Path) -> None:
    for name in tasks.EMBEDDED:
        assert str(prepared).encode() not in (prepared / name / "manifest.json").read_bytes()
    assert sys.prefix.encode() not in (prepared / "docstrings" / "tokenizer.json").read_bytes()


def test_processes_with_other_hash_seeds_build_the_same_content(prepared: Path) -> None:
    code = (
        "from bench.data.sources import embedded_texts as texts; from bench.data.content import facts; import hashlib\n"
        "texts.PACKAGES, texts.LEAST_IN_CORPUS, texts.MOST_IN_CORPUS = {'networkx': 'networkx'}, 1, 1500\n"
        "for c in (texts.pydocs(), texts.docstrings()):\n"
        "    print(*(facts(c.class_names, r).checksum for r in c.splits.values()))\n"
        "print(len(c.splits['train'].values), hashlib.sha256(c.tokenizer).hexdigest())"
    )
    runs = [start(code, hash_seed="1", threads="1"), start(code, hash_seed="77", threads="4")]
    first, second = (output(run).split() for run in runs)
    assert first == second
    splits = manifest_of("pydocs", prepared).splits
    assert first[:2] == [splits["train"].checksum, splits["test"].checksum]
    assert first[3] == "1500"


def test_images_build_twice_alike(prepared: Path) -> None:
    for name, build in (("digits", embedded_images.digits), ("photographs", embedded_images.photographs)):
        again = build()
        splits = {split: facts(again.class_names, part) for split, part in again.splits.items()}
        assert splits == manifest_of(name, prepared).splits


def test_the_content_has_the_manifests_checksum(prepared: Path) -> None:
    for name in tasks.EMBEDDED:
        manifest = manifest_of(name, prepared)
        for split, known in manifest.splits.items():
            assert facts(manifest.class_names, rows(prepared, name, split)) == known


@pytest.mark.parametrize(
    ("names", "other"),
    [
        (["a", "b"], Rows([b"x", b"yz"], [0, 0])),
        (["a", "b"], Rows([b"xy", b"z"], [0, 1])),
        (["a", "b"], Rows([b"yz", b"x"], [0, 1])),
        (["a", "b"], Rows([b"x", b"yz"], None)),
        (["ab"], Rows([b"x", b"yz"], [0, 1])),
        (None, Rows([b"x", b"yz"], [0, 1])),
    ],
)
def test_a_checksum_tells_values_labels_names_and_their_order_apart(names: list[str] | None, other: Rows) -> None:
    assert checksum(names, other) != checksum(["a", "b"], Rows([b"x", b"yz"], [0, 1]))


def test_datasets_reads_the_splits_with_their_class_names(prepared: Path, tmp_path: Path) -> None:
    import datasets

    for name, column in (("digits", "image"), ("pydocs", "text"), ("photographs", "image")):
        manifest = manifest_of(name, prepared)
        files = {split: str(prepared / name / f"{split}.parquet") for split in manifest.splits}
        loaded = datasets.load_dataset("parquet", data_files=files, cache_dir=str(tmp_path))
        assert {split: loaded[split].num_rows for split in loaded} == {
            split: known.examples for split, known in manifest.splits.items()
        }
        features = loaded["train"].features
        if manifest.class_names is None:
            assert set(features) == {column}
        else:
            assert features["label"].names == list(manifest.class_names)
        first = loaded["train"][0][column]
        raw = rows(prepared, name, "train").values[0]
        assert first == raw.decode() if column == "text" else first.size == (8, 8)


SMALL = MappingProxyType({"train": Rows([b"one", b"two"], [0, 1]), "test": Rows([b"three"], [1])})


def small() -> Content:
    return Content(modality="text", class_names=("a", "b"), splits=dict(SMALL), sources={"python": "3"})


def test_a_manifest_reads_back_as_it_was_written(tmp_path: Path) -> None:
    written = disk.publish("pydocs", small(), tmp_path)
    assert read_manifest("pydocs", tmp_path) == written
    assert written.splits["train"] == SplitFacts(2, checksum(["a", "b"], SMALL["train"]), (1, 1))


def test_prepare_leaves_what_is_there(prepared: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embedded_images, "digits", lambda: pytest.fail("built again"))
    assert prepare.prepare_data("digits", prepared) == manifest_of("digits", prepared)


def test_what_is_not_prepared_has_no_manifest(tmp_path: Path) -> None:
    assert read_manifest("digits", tmp_path) is None
    assert read_manifest("digits", tmp_path / "nowhere") is None


@pytest.mark.parametrize("damage", ["", "[]", "{", '{"name": "digits"}', '{"name": 1, "splits": 2}', "\xff"])
def test_a_damaged_manifest_is_refused_by_name(tmp_path: Path, damage: str) -> None:
    disk.publish("pydocs", small(), tmp_path)
    path = tmp_path / "pydocs" / "manifest.json"
    path.write_bytes(damage.encode("latin-1"))
    with pytest.raises(InputError, match=r"manifest\.json"):
        read_manifest("pydocs", tmp_path)
    with pytest.raises(InputError, match="prepare pydocs again"):
        prepare.prepare_data("pydocs", tmp_path)


def test_no_changed_digit_of_a_manifest_is_believed(tmp_path: Path) -> None:
    disk.publish("pydocs", small(), tmp_path)
    path = tmp_path / "pydocs" / "manifest.json"
    text = path.read_text()
    digits = [position for position, character in enumerate(text) if character.isdigit()]
    assert len(digits) > 50
    for position in digits:
        path.write_text(f"{text[:position]}{(int(text[position]) + 1) % 10}{text[position + 1 :]}")
        with pytest.raises(InputError, match=r"manifest\.json"):
            read_manifest("pydocs", tmp_path)


def test_a_manifest_of_before_is_still_read(tmp_path: Path) -> None:
    written = disk.publish("pydocs", small(), tmp_path)
    path = tmp_path / "pydocs" / "manifest.json"
    content = json.loads(path.read_text())
    del content["digest"]
    path.write_text(json.dumps(content))
    assert read_manifest("pydocs", tmp_path) == written


def test_a_failed_build_leaves_nothing(tmp_path: Path) -> None:
    broken = Content(modality="text", class_names=("a",), splits={"train": Rows([b"\xff"], [0])}, sources={})
    with pytest.raises(UnicodeDecodeError):
        disk.publish("pydocs", broken, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_without_a_manifest_is_completed(tmp_path: Path) -> None:
    (tmp_path / "pydocs").mkdir()
    (tmp_path / "pydocs" / "train.parquet").write_bytes(b"half")
    written = disk.publish("pydocs", small(), tmp_path)
    assert read_manifest("pydocs", tmp_path) == written
    assert disk.read_rows(tmp_path / "pydocs" / "train.parquet", "text") == SMALL["train"]
    assert [path.name for path in tmp_path.iterdir()] == ["pydocs"]


def test_the_first_complete_folder_wins(tmp_path: Path) -> None:
    first = disk.publish("pydocs", small(), tmp_path)
    other = Content(modality="text", class_names=("a",), splits={"train": Rows([b"x"], [0])}, sources={})
    assert disk.publish("pydocs", other, tmp_path) == first
    assert disk.read_rows(tmp_path / "pydocs" / "train.parquet", "text") == SMALL["train"]


def test_two_processes_preparing_at_once_give_one_good_folder(prepared: Path, tmp_path: Path) -> None:
    # The barrier lets both builds finish before either publishes.
    code = (
        "import sys, time; from pathlib import Path\n"
        "from bench.data import disk; from bench.data.prepare import prepare_data\n"
        "root, own, other = Path(sys.argv[1]), *map(Path, sys.argv[2:])\n"
        "publish = disk.publish\n"
        "def together(*arguments):\n"
        "    own.touch()\n"
        "    while not other.exists(): time.sleep(0.001)\n"
        "    return publish(*arguments)\n"
        "disk.publish = together\n"
        "print(prepare_data('digits', root).splits['test'].checksum)"
    )
    flags = [str(tmp_path / "a"), str(tmp_path / "b")]
    root = tmp_path / "root"
    both = [start(code, str(root), *flags), start(code, str(root), *reversed(flags))]
    expected = manifest_of("digits", prepared).splits
    assert [output(process).strip() for process in both] == [expected["test"].checksum] * 2
    assert [path.name for path in root.iterdir()] == ["digits"]
    assert manifest_of("digits", root).splits == expected
    for split, known in expected.items():
        assert checksum(tuple("0123456789"), rows(root, "digits", split)) == known.checksum


def test_a_python_without_library_sources_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sysconfig, "get_paths", lambda: {"stdlib": str(tmp_path)})
    with pytest.raises(InputError, match="asyncio has 0"):
        embedded_texts.pydocs()


def test_a_text_that_two_modules_share_is_dropped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "email.py").write_text(
        '"""The Email package knows mail.\n\nSecond paragraph."""\n'
        'class A:\n    r"""A shared \\d text here."""\n'
        'def f():\n    """Twice in  one\n    module."""\n'
        'if True:\n    async def g():\n        """TWICE in one module."""\n'
        'def h():\n    """Too short."""\n'
    )
    (tmp_path / "http").mkdir()
    (tmp_path / "http" / "__init__.py").write_text(
        '"""A shared \\\\d text here."""\ndef f():\n    "Only in the second."'
    )
    (tmp_path / "http" / "tests").mkdir()
    (tmp_path / "http" / "tests" / "a.py").write_text('"""Never read this file."""')
    monkeypatch.setattr(sysconfig, "get_paths", lambda: {"stdlib": str(tmp_path)})
    monkeypatch.setattr(embedded_texts, "MODULES", ("email", "http"))
    monkeypatch.setattr(embedded_texts, "LEAST_PER_MODULE", 1)
    content = embedded_texts.pydocs()
    texts = {value for part in content.splits.values() for value in part.values}
    assert texts == {b"The package knows mail.", b"Twice in one module.", b"Only in the second."}


PAIRED = MappingProxyType(
    {"train": Rows([b"one", b"two"], [0, 1], [b"ein", b""]), "test": Rows([b"drei"], [1], ["tr\u00eas".encode()])}
)


def test_pairs_of_texts_read_back_and_are_part_of_the_content(tmp_path: Path) -> None:
    manifest = disk.publish("pairs", Content("text", ("a", "b"), dict(PAIRED), {}), tmp_path)
    for split, part in PAIRED.items():
        assert disk.read_rows(tmp_path / "pairs" / f"{split}.parquet", "text") == part
        assert manifest.splits[split].checksum == checksum(["a", "b"], part)
    assert manifest.splits["train"].checksum != checksum(["a", "b"], SMALL["train"])


def test_datasets_reads_pairs_as_a_column(tmp_path: Path) -> None:
    import datasets

    disk.publish("pairs", Content("text", ("a", "b"), dict(PAIRED), {}), tmp_path)
    path = str(tmp_path / "pairs" / "train.parquet")
    loaded = datasets.load_dataset("parquet", data_files={"train": path}, cache_dir=str(tmp_path / "cache"))["train"]
    assert loaded[:] == {"text": ["one", "two"], "text_pair": ["ein", ""], "label": [0, 1]}


@pytest.mark.parametrize(("rows", "size", "groups"), [(2, 100, [2, 2, 1]), (100, 8, [2, 1, 1, 1]), (100, 1, [1] * 5)])
def test_splits_are_written_in_batches_of_bounded_rows_and_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rows: int, size: int, groups: list[int]
) -> None:
    import pyarrow.parquet as pq

    monkeypatch.setattr(disk, "BATCH_ROWS", rows)
    monkeypatch.setattr(disk, "BATCH_BYTES", size)
    part = Rows([b"abc", b"defgh", b"ijklmnop", b"qrstuvwxyz", b"01234567"], [0, 1, 1, 0, 1])
    disk.publish("batches", Content("image", ("a", "b"), {"train": part}, {}), tmp_path)
    path = tmp_path / "batches" / "train.parquet"
    written = pq.read_metadata(path)
    assert [written.row_group(i).num_rows for i in range(written.num_row_groups)] == groups
    assert disk.read_rows(path, "image") == part


def test_a_split_without_rows_keeps_its_columns(tmp_path: Path) -> None:
    empty = Rows([], [], [])
    disk.publish("empty", Content("text", ("a",), {"train": empty}, {}), tmp_path)
    assert disk.read_rows(tmp_path / "empty" / "train.parquet", "text") == empty


def test_a_split_of_the_other_modality_is_refused(prepared: Path) -> None:
    with pytest.raises(InputError, match=r"train\.parquet.*prepare digits again"):
        disk.read_rows(prepared / "digits" / "train.parquet", "text")


@pytest.mark.parametrize("bytes_left", [0, 100, -1])
def test_a_damaged_split_is_refused_by_name(prepared: Path, tmp_path: Path, bytes_left: int) -> None:
    path = tmp_path / "digits" / "train.parquet"
    path.parent.mkdir()
    shutil.copy(prepared / "digits" / "train.parquet", path)
    path.write_bytes(path.read_bytes()[:bytes_left])
    with pytest.raises(InputError, match=r"train\.parquet.*prepare digits again"):
        disk.read_rows(path, "image")
