"""Opened splits: normalised images, padded texts, array caches that are checked, named by content and mapped."""

import dataclasses
import errno
import json
import os
import shutil
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from bench.data import disk
from bench.data.array_cache import _INTACT, ARRAYS_VERSION
from bench.data.content import Content, Rows
from bench.data.examples import ImageExamples, TextExamples, open_split
from bench.data.manifest import read_manifest
from bench.data.subset import stratified_subset
from bench.errors import InputError, NotPrepared
from bench.specs import Data
from bench.specs.architectures import MaskedAutoEncoder, MaskedLanguageModel
from bench.store.files import sha256

CPU = torch.device("cpu")


def data_of(root: Path, task: str, split: str = "train", labelled: bool = True) -> Data:
    manifest = read_manifest(task, root)
    assert manifest is not None
    known = manifest.splits[split]
    classes = None if manifest.class_names is None else len(manifest.class_names)
    return Data(
        task=task, split=split, labelled=labelled, checksum=known.checksum, examples=known.examples, classes=classes
    )


def vision(size: int = 8) -> MaskedAutoEncoder:
    return MaskedAutoEncoder(name="tiny", weights=None, image_size=size, patch_size=2)


def language(root: Path, max_length: int = 32) -> MaskedLanguageModel:
    manifest = read_manifest("docstrings", root)
    assert manifest is not None
    assert manifest.vocabulary is not None
    return MaskedLanguageModel(
        name="tiny",
        weights=None,
        tokenizer="docstrings",
        tokenizer_checksum=manifest.tokenizer_checksum,
        vocabulary=manifest.vocabulary,
        max_length=max_length,
    )


def opened_images(root: Path, data: Data, size: int = 8) -> ImageExamples:
    examples = open_split(data, vision(size), root)
    assert isinstance(examples, ImageExamples)
    return examples


def opened_texts(root: Path, data: Data, max_length: int = 32) -> TextExamples:
    examples = open_split(data, language(root, max_length), root)
    assert isinstance(examples, TextExamples)
    return examples


@pytest.fixture
def copied(prepared: Path, tmp_path: Path) -> Path:
    """A root of its own, without array caches, that a test may damage."""
    for name in ("digits", "pydocs", "docstrings", "photographs"):
        shutil.copytree(prepared / name, tmp_path / name, ignore=shutil.ignore_patterns("arrays"))
    return tmp_path


def test_images_are_normalised_as_the_formula_says(prepared: Path) -> None:
    rows = disk.read_rows(prepared / "digits" / "train.parquet", "image")
    examples = opened_images(prepared, data_of(prepared, "digits"))
    examples.dtype = torch.float64
    index = torch.tensor([5, 0, 5, 1296])
    inputs = examples.inputs(index, CPU)
    assert inputs.shape == (4, 3, 8, 8)
    assert inputs.dtype == torch.float64
    grey = np.stack([np.asarray(Image.open(BytesIO(rows.values[i]))) for i in index.tolist()]) / 255
    for channel, (mean, std) in enumerate([(0.485, 0.229), (0.456, 0.224), (0.406, 0.225)]):
        np.testing.assert_allclose(inputs[:, channel].numpy(), (grey - mean) / std, rtol=1e-12)


def test_float_inputs_are_float32_and_contiguous_by_default(prepared: Path) -> None:
    inputs = opened_images(prepared, data_of(prepared, "digits")).inputs(torch.arange(3), CPU)
    assert inputs.dtype == torch.float32
    assert inputs.is_contiguous()


def test_images_are_resized_once_bilinearly_without_keeping_their_shape(tmp_path: Path) -> None:
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (20, 31, 3), dtype=np.uint8))
    buffer = BytesIO()
    picture.save(buffer, format="PPM")
    content = Content("image", ("a",), {"train": Rows([buffer.getvalue()], [0])}, {})
    disk.publish("digits", content, tmp_path)
    inputs = opened_images(tmp_path, data_of(tmp_path, "digits"), size=12).inputs(torch.tensor([0]), CPU)
    expected = np.asarray(picture.resize((12, 12), Image.Resampling.BILINEAR)).transpose(2, 0, 1) / 255
    mean, std = (np.array(v)[:, None, None] for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    np.testing.assert_allclose(inputs[0].numpy(), (expected - mean) / std, atol=1e-5)


def test_flip_mirrors_the_chosen_images_left_to_right(prepared: Path) -> None:
    examples = opened_images(prepared, data_of(prepared, "digits"))
    plain = examples.inputs(torch.arange(4), CPU)
    flipped = examples.inputs(torch.arange(4), CPU, flip=torch.tensor([True, False, True, False]))
    assert torch.equal(flipped[[1, 3]], plain[[1, 3]])
    assert torch.equal(flipped[[0, 2]], plain[[0, 2]].flip(-1))
    assert not torch.equal(flipped[[0, 2]], plain[[0, 2]])


def test_labels_are_those_on_disk_and_hidden_from_unlabelled_stages(prepared: Path) -> None:
    rows = disk.read_rows(prepared / "digits" / "test.parquet", "image")
    examples = open_split(data_of(prepared, "digits", "test"), vision(), prepared)
    assert examples.labels is not None
    assert examples.labels.dtype == torch.int64
    assert examples.labels.tolist() == rows.labels
    assert examples.lengths is None
    assert len(examples) == 500
    assert open_split(data_of(prepared, "digits", "test", labelled=False), vision(), prepared).labels is None


def test_texts_are_framed_padded_and_truncated(prepared: Path) -> None:
    from tokenizers import Tokenizer

    rows = disk.read_rows(prepared / "pydocs" / "train.parquet", "text")
    tokenizer = Tokenizer.from_file(str(prepared / "docstrings" / "tokenizer.json"))
    full = [tokenizer.encode(value.decode()).ids for value in rows.values]
    examples = opened_texts(prepared, data_of(prepared, "pydocs"), max_length=12)
    assert examples.lengths is not None
    assert examples.lengths.tolist() == [min(len(ids), 12) for ids in full]
    short, long = int(np.argmin(examples.lengths)), int(np.argmax([len(ids) for ids in full]))
    assert len(full[short]) < 12 < len(full[long])
    inputs = examples.inputs(torch.tensor([long, short]), CPU)
    assert inputs.keys() == {"input_ids", "attention_mask"}
    assert all(part.dtype == torch.int64 and part.shape == (2, 12) for part in inputs.values())
    assert inputs["input_ids"][0].tolist() == [*full[long][:11], tokenizer.token_to_id("[SEP]")]
    padding = 12 - len(full[short])
    assert inputs["input_ids"][1].tolist() == full[short] + [0] * padding
    assert inputs["attention_mask"].tolist() == [[1] * 12, [1] * len(full[short]) + [0] * padding]
    assert inputs["input_ids"][:, 0].tolist() == [tokenizer.token_to_id("[CLS]")] * 2


def test_a_batch_is_as_long_as_its_longest_text(prepared: Path) -> None:
    examples = opened_texts(prepared, data_of(prepared, "pydocs"), max_length=24)
    assert examples.lengths is not None
    for chosen in torch.randperm(len(examples), generator=torch.Generator().manual_seed(0))[:60].view(-1, 4):
        mask = examples.inputs(chosen, CPU)["attention_mask"]
        assert mask.shape[1] == examples.lengths[chosen.numpy()].max()
        assert mask.sum(1).tolist() == examples.lengths[chosen.numpy()].tolist()


def test_a_subset_reads_the_same_examples_with_and_without_labels(prepared: Path) -> None:
    rows = disk.read_rows(prepared / "digits" / "train.parquet", "image")
    expected = stratified_subset(rows.labels or [], 50, seed=7)
    everything = opened_images(prepared, data_of(prepared, "digits"))
    for labelled in (True, False):
        data = dataclasses.replace(data_of(prepared, "digits", labelled=labelled), subset=50, subset_seed=7)
        examples = opened_images(prepared, data)
        assert len(examples) == 50
        assert torch.equal(examples.inputs(torch.arange(50), CPU), everything.inputs(torch.from_numpy(expected), CPU))
        if labelled:
            assert everything.labels is not None
            assert examples.labels is not None
            assert torch.equal(examples.labels, everything.labels[expected])


def test_a_subset_of_texts_and_of_a_corpus(prepared: Path) -> None:
    for task, labelled in (("pydocs", True), ("docstrings", False)):
        data = data_of(prepared, task, labelled=labelled)
        everything = opened_texts(prepared, data)
        part = opened_texts(prepared, dataclasses.replace(data, subset=40, subset_seed=2))
        labels = np.zeros(len(everything)) if everything.labels is None else everything.labels.numpy()
        chosen = stratified_subset(labels, 40, seed=2)
        ids = part.inputs(torch.arange(40), CPU)["input_ids"]
        assert torch.equal(ids, everything.inputs(torch.from_numpy(chosen), CPU)["input_ids"])
        assert part.lengths is not None
        assert everything.lengths is not None
        assert part.lengths.tolist() == everything.lengths[chosen].tolist()


def test_arrays_are_mapped_from_files_named_by_content(copied: Path) -> None:
    data = data_of(copied, "digits")
    examples = opened_images(copied, data)
    assert isinstance(examples._pixels, np.memmap)
    assert examples._pixels.dtype == np.uint8
    assert not examples._pixels.flags.writeable
    texts = opened_texts(copied, data_of(copied, "pydocs"), max_length=16)
    assert isinstance(texts._tokens, np.memmap)
    assert texts._tokens.dtype == np.int32
    assert data.checksum is not None
    names = {path.name for path in (copied / "digits" / "arrays").iterdir()}
    stems = {f"train-{data.checksum[:16]}-v{ARRAYS_VERSION}-{kind}" for kind in ("8px", "labels")}
    assert names == {f"{stem}{ending}" for stem in stems for ending in (".npy", ".sha256")}
    opened_images(copied, data, size=16)
    assert len(list((copied / "digits" / "arrays").glob(f"train-{data.checksum[:16]}-*-16px.npy"))) == 1


def test_a_cached_split_needs_its_parquet_no_more(copied: Path) -> None:
    data = data_of(copied, "digits")
    before = opened_images(copied, data).inputs(torch.arange(9), CPU)
    (copied / "digits" / "train.parquet").unlink()
    assert torch.equal(opened_images(copied, data).inputs(torch.arange(9), CPU), before)


def test_changed_content_is_refused_and_leaves_no_cache(copied: Path) -> None:
    data = data_of(copied, "digits")
    shutil.copy(copied / "digits" / "test.parquet", copied / "digits" / "train.parquet")
    with pytest.raises(InputError, match=r"train\.parquet has changed.*prepare digits again"):
        open_split(data, vision(), copied)
    assert not list((copied / "digits" / "arrays").glob("*"))


@pytest.mark.parametrize("task", ["digits", "photographs", "pydocs", "docstrings"])
def test_a_count_that_the_data_do_not_hold_is_refused(task: str, copied: Path) -> None:
    """A manifest of before, without a digest, in which a count was changed: five examples would train one step."""
    path = copied / task / "manifest.json"
    content = json.loads(path.read_text())
    del content["digest"]
    content["splits"]["train"] |= {"examples": 5, "per_class": None}  # with the old counts the manifest is refused
    path.write_text(json.dumps(content))
    labelled = task in ("digits", "pydocs")
    backbone = vision() if task in ("digits", "photographs") else language(copied)
    with pytest.raises(InputError, match=r"its manifest says 5"):
        open_split(data_of(copied, task, labelled=labelled), backbone, copied)


def test_another_checksum_than_the_planned_one_is_refused(prepared: Path) -> None:
    data = dataclasses.replace(data_of(prepared, "digits"), checksum="0" * 64)
    with pytest.raises(InputError, match="0000000000000000"):
        open_split(data, vision(), prepared)


def test_a_changed_vocabulary_is_refused(copied: Path) -> None:
    backbone = language(copied)
    path = copied / "docstrings" / "tokenizer.json"
    path.write_text(path.read_text() + " ")
    with pytest.raises(InputError, match=r"tokenizer\.json"):
        open_split(data_of(copied, "pydocs"), backbone, copied)


@pytest.mark.parametrize("kind", ["8px", "labels"])
@pytest.mark.parametrize("damage", ["truncated", "changed", "unchecked"])
def test_a_damaged_cache_is_built_again(kind: str, damage: str, copied: Path) -> None:
    data = data_of(copied, "digits")
    before = opened_images(copied, data)
    images, labels = before.inputs(torch.arange(1297), CPU), before.labels
    (path,) = (copied / "digits" / "arrays").glob(f"*{kind}.npy")
    content = bytearray(path.read_bytes())
    if damage == "unchecked":
        path.with_suffix(".sha256").unlink()
    else:
        content[-1] ^= 1
        path.unlink()  # a file that is mapped is never changed in place
        path.write_bytes(content[:-1000] if damage == "truncated" else content)
    _INTACT.clear()
    after = opened_images(copied, data)
    assert torch.equal(after.inputs(torch.arange(1297), CPU), images)
    assert labels is not None
    assert after.labels is not None
    assert torch.equal(after.labels, labels)


def test_an_array_that_was_swapped_with_its_checksum_is_built_again(copied: Path) -> None:
    data = {split: data_of(copied, "digits", split) for split in ("train", "test")}
    before = {split: opened_images(copied, each).labels for split, each in data.items()}
    folder = copied / "digits" / "arrays"
    (train,), (test,) = folder.glob("train-*-labels.npy"), folder.glob("test-*-labels.npy")
    for ending in (".npy", ".sha256"):
        test.with_suffix(ending).replace(folder / "other")
        train.with_suffix(ending).replace(test.with_suffix(ending))
        (folder / "other").replace(train.with_suffix(ending))
    _INTACT.clear()
    for split, each in data.items():
        after, expected = opened_images(copied, each).labels, before[split]
        assert after is not None and expected is not None and torch.equal(after, expected)


def test_a_checksum_that_is_no_text_is_no_checksum(copied: Path) -> None:
    before = opened_images(copied, data_of(copied, "digits")).labels
    (path,) = (copied / "digits" / "arrays").glob("*-labels.npy")
    path.with_suffix(".sha256").write_bytes(b"\xff" + path.with_suffix(".sha256").read_bytes()[1:])
    _INTACT.clear()
    after = opened_images(copied, data_of(copied, "digits")).labels
    assert before is not None and after is not None and torch.equal(before, after)


def test_a_checksum_of_before_is_still_read(copied: Path) -> None:
    opened_images(copied, data_of(copied, "digits"))
    (path,) = (copied / "digits" / "arrays").glob("*-labels.npy")
    path.with_suffix(".sha256").write_text(sha256(path))
    written = path.stat().st_mtime_ns
    _INTACT.clear()
    opened_images(copied, data_of(copied, "digits"))
    assert path.stat().st_mtime_ns == written


def test_an_array_that_finds_no_room_is_refused_with_its_file(copied: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rather than a process that a signal ends, once it writes where the disk has no block."""

    def full(descriptor: int, offset: int, size: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    shutil.rmtree(copied / "digits" / "arrays", ignore_errors=True)
    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(OSError, match="No space left on device for an array of") as refused:
        opened_images(copied, data_of(copied, "digits"))
    assert refused.value.errno == errno.ENOSPC and str(copied / "digits" / "arrays") in str(refused.value)
    assert not list((copied / "digits" / "arrays").iterdir())


def test_data_that_cannot_be_written_are_read_without_a_cache(copied: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = data_of(copied, "digits")
    expected = opened_images(copied, data).inputs(torch.arange(9), CPU)
    shutil.rmtree(copied / "digits" / "arrays")

    def read_only(path: Path) -> None:
        raise PermissionError(errno.EACCES, "read-only")

    monkeypatch.setattr("bench.data.array_cache.replacing", read_only)
    assert torch.equal(opened_images(copied, data).inputs(torch.arange(9), CPU), expected)
    assert not (copied / "digits" / "arrays").exists()


def test_an_undecodable_image_is_refused_by_row(tmp_path: Path) -> None:
    disk.publish("digits", Content("image", ("a",), {"train": Rows([b"no image"], [0])}, {}), tmp_path)
    with pytest.raises(InputError, match="row 0"):
        open_split(data_of(tmp_path, "digits"), vision(), tmp_path)
    assert not list((tmp_path / "digits" / "arrays").glob("*px.npy"))


def test_what_is_not_prepared_is_refused_as_such(prepared: Path, tmp_path: Path) -> None:
    data = data_of(prepared, "digits")
    with pytest.raises(NotPrepared, match="digits"):
        open_split(data, vision(), tmp_path)
    with pytest.raises(NotPrepared, match="digits"):
        open_split(dataclasses.replace(data, checksum=None, examples=None), vision(), prepared)
    backbone = dataclasses.replace(language(prepared), tokenizer_checksum=None)
    with pytest.raises(NotPrepared, match="docstrings"):
        open_split(data_of(prepared, "pydocs"), backbone, prepared)


def test_impossible_requests_are_refused(prepared: Path) -> None:
    with pytest.raises(InputError, match="no split 'validation'"):
        open_split(dataclasses.replace(data_of(prepared, "digits"), split="validation"), vision(), prepared)
    with pytest.raises(InputError, match="reads texts"):
        open_split(data_of(prepared, "digits"), language(prepared), prepared)
    with pytest.raises(InputError, match="without labels"):
        open_split(data_of(prepared, "photographs"), vision(), prepared)


# ------------------------------------------------------------------------------------------------ two splits as one


def union_of(root: Path) -> Data:
    manifest = read_manifest("three", root)
    assert manifest is not None
    return Data("three", "train+validation", True, manifest.checksum("train+validation"), 5, 2)


@pytest.fixture
def three(tmp_path: Path) -> Path:
    """A data root with a task of small images whose grey levels count the rows through all splits."""

    def rows(levels: list[int], labels: list[int]) -> Rows:
        values = []
        for level in levels:
            buffer = BytesIO()
            Image.new("L", (2, 2), 10 * level).save(buffer, format="PNG")
            values.append(buffer.getvalue())
        return Rows(values, labels)

    splits = {"train": rows([0, 1, 2], [0, 1, 0]), "validation": rows([3, 4], [1, 1]), "test": rows([5, 6], [0, 1])}
    disk.publish("three", Content("image", ("a", "b"), splits, {}), tmp_path)
    return tmp_path


def test_two_splits_are_read_as_one_in_their_order(three: Path) -> None:
    examples = opened_images(three, union_of(three), size=4)
    assert len(examples) == 5
    assert examples.labels is not None
    assert examples.labels.tolist() == [0, 1, 0, 1, 1]
    levels = examples._pixels[:, 0, 0, 0].tolist()
    assert levels == [0, 10, 20, 30, 40]
    fit = opened_images(three, dataclasses.replace(union_of(three), part="fit"), size=4)
    held = opened_images(three, dataclasses.replace(union_of(three), part="holdout"), size=4)
    assert sorted([*fit._rows, *held._rows]) == [0, 1, 2, 3, 4]


def test_a_change_of_either_split_is_noticed(three: Path) -> None:
    data = union_of(three)
    path = three / "three" / "validation.parquet"
    path.write_bytes((three / "three" / "test.parquet").read_bytes())
    with pytest.raises(InputError, match=r"validation\.parquet has changed"):
        open_split(data, vision(4), three)


def test_a_split_that_is_missing_from_a_pair_is_named(prepared: Path) -> None:
    data = dataclasses.replace(data_of(prepared, "digits"), split="train+validation")
    with pytest.raises(InputError, match="validation"):
        open_split(data, vision(), prepared)


# ------------------------------------------------------------------------------------------------ pairs of texts


@pytest.fixture
def pairs(prepared: Path, tmp_path: Path) -> Path:
    """A data root with pairs of texts and the vocabulary of docs_mlm."""
    shutil.copytree(prepared / "docstrings", tmp_path / "docstrings")
    rows = Rows([b"return the value", b"the array"], [0, 1], [b"an object of this class", b"a list of the number"])
    disk.publish("pairs", Content("text", ("no", "yes"), {"train": rows, "test": rows}, {}), tmp_path)
    return tmp_path


def test_pairs_are_joined_and_told_apart(pairs: Path) -> None:
    from tokenizers import Tokenizer

    examples = opened_texts(pairs, data_of(pairs, "pairs"))
    inputs = examples.inputs(torch.tensor([0, 1]), CPU)
    encoder = Tokenizer.from_file(str(pairs / "docstrings" / "tokenizer.json"))
    whole = [
        encoder.encode("return the value", "an object of this class"),
        encoder.encode("the array", "a list of the number"),
    ]
    for i, expected in enumerate(whole):
        length = len(expected.ids)
        assert inputs["input_ids"][i, :length].tolist() == expected.ids
        assert inputs["token_type_ids"][i, :length].tolist() == expected.type_ids
        assert inputs["token_type_ids"][i, length:].sum() == 0
        assert inputs["attention_mask"][i].sum() == length
    assert inputs["token_type_ids"].sum() == sum(sum(encoding.type_ids) for encoding in whole) > 0


def test_a_long_pair_keeps_something_of_both(pairs: Path) -> None:
    inputs = opened_texts(pairs, data_of(pairs, "pairs"), max_length=7).inputs(torch.tensor([0]), CPU)
    assert inputs["input_ids"].shape == (1, 7)
    assert 2 <= inputs["token_type_ids"].sum() <= 4  # the second text and its separator


def test_a_network_of_one_segment_is_not_told(pairs: Path, prepared: Path) -> None:
    data = data_of(pairs, "pairs")
    examples = open_split(data, dataclasses.replace(language(pairs), segments=1), pairs)
    assert "token_type_ids" not in examples.inputs(torch.tensor([0]), CPU)
    single = opened_texts(prepared, data_of(prepared, "pydocs"))
    assert "token_type_ids" not in single.inputs(torch.tensor([0]), CPU)


@pytest.mark.parametrize("text", ["[PAD][PAD]", "[SEP] [CLS]", "[MASK]", "\ue000"])
def test_a_text_without_a_token_is_refused_by_row(text: str, copied: Path) -> None:
    for pairs in (None, [b"one", text.encode()]):
        rows = Rows([b"one", (text if pairs is None else "two").encode()], [0, 1], pairs)
        disk.publish("odd", Content("text", ("a", "b"), {"train": rows}, {}), copied, again=True)
        with pytest.raises(InputError, match=r"odd: .*no token of row 1"):
            open_split(data_of(copied, "odd"), language(copied), copied)
    assert not list((copied / "odd").rglob("*tokens.npy"))


def test_an_unknown_token_is_one(copied: Path) -> None:
    rows = Rows([b"one", "\u16a0".encode()], [0, 1], ["\u16a0".encode(), b"two"])
    disk.publish("odd", Content("text", ("a", "b"), {"train": rows}, {}), copied)
    assert len(open_split(data_of(copied, "odd"), language(copied), copied)) == 2
