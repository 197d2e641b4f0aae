"""A user's own data: every kind of source in small, what is refused, and real data packs."""

import csv
import hashlib
import json
import os
import random
import subprocess
import sys
from dataclasses import replace
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

import bench
from bench.data.content import Content, Rows
from bench.data.prepare import prepare_data
from bench.data.problems import problems
from bench.data.sources import own
from bench.data.sources.own import default_modality, fingerprint, is_local, read
from bench.data.task_spec import MOST_MEGAPIXELS
from bench.data.tasks import Task
from bench.errors import InputError

WORDS = Task("pets", "text", "roberta_base", "accuracy")
PHOTOS = Task("pets", "image", "vit_mae_base", "accuracy")


def task(kind: str, path: Path, **fields: Any) -> Task:
    base = PHOTOS if kind == "folder" else WORDS
    return replace(base, **{"source": f"{kind}:{path}", **fields})


def image(shade: int) -> bytes:
    buffer = BytesIO()
    Image.new("L", (2, 2), shade).save(buffer, format="PNG")
    return buffer.getvalue()


def put(path: Path, content: bytes | str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)


def put_jsonl(path: Path, *rows: tuple[Any, ...], columns: tuple[str, ...] = ("text", "label")) -> None:
    put(path, "".join(json.dumps(dict(zip(columns, row, strict=True))) + "\n" for row in rows))


def put_csv(path: Path, *rows: tuple[Any, ...]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        csv.writer(file).writerows(rows)


def put_parquet(path: Path, columns: dict[str, list[Any]], features: dict[str, Any] | None = None) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq
    from datasets import Features

    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns, schema=None if features is None else Features(features).arrow_schema), path)


def sizes(content: Content) -> dict[str, int]:
    return {split: len(rows.values) for split, rows in content.splits.items()}


def labelled(content: Content, split: str) -> list[tuple[str, str]]:
    rows = content.splits[split]
    assert rows.labels is not None and content.class_names is not None
    return [(value.decode(), content.class_names[label]) for value, label in zip(rows.values, rows.labels, strict=True)]


# ---------------------------------------------------------------------------------------------------------- sources


def test_planning_can_import_it() -> None:
    code = (
        "import sys, bench.data.sources.own, bench.data.problems; "
        "print([m for m in ('torch', 'numpy', 'datasets', 'PIL', 'pyarrow') if m in sys.modules])"
    )
    environment = os.environ | {"PYTHONPATH": str(Path(bench.__file__).parents[1])}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_sources_tell_modality_and_need_of_a_network() -> None:
    locations = {"folder": "a", "parquet": "a", "jsonl": "a:b", "csv": "a", "hub": "a/b@c"}
    sources = [f"{kind}:{location}" for kind, location in locations.items()]
    assert [default_modality(source) for source in sources] == ["image", "text", "text", "text", "text"]
    assert [is_local("pets", replace(WORDS, source=source)) for source in sources] == [True, True, True, True, False]


@pytest.mark.parametrize("source", ["zip:a", "a/b", "folder:", "", "Folder:a"])
def test_an_unknown_kind_is_refused_with_the_legal_ones(source: str) -> None:
    for use in (read, fingerprint, lambda task: is_local("pets", task), lambda task: default_modality(task.source)):
        with pytest.raises(InputError) as caught:
            use(replace(WORDS, source=source))
        assert all(f"{kind}:" in str(caught.value) for kind in own.KINDS)


def test_a_task_without_a_source_is_refused() -> None:
    with pytest.raises(InputError, match=r"pets/task\.source"):
        read(WORDS)


@pytest.mark.parametrize("kind", ["folder", "parquet", "jsonl", "csv"])
def test_a_missing_path_is_refused_with_the_place_looked_at(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    monkeypatch.chdir(tmp_path)
    for use in (read, fingerprint):
        with pytest.raises(InputError, match=str(tmp_path / "nowhere" / "data")):
            use(task(kind, Path("nowhere/data")))


def test_a_path_may_be_relative_or_start_at_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put_csv(tmp_path / "all.csv", ("text", "label"), ("a", "x"), ("b", "x"))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert read(task("csv", Path("all.csv"))) == read(task("csv", Path("~/all.csv")))


@pytest.mark.parametrize(
    ("kind", "modality"), [("folder", "text"), ("jsonl", "image"), ("csv", "image"), ("parquet", "image")]
)
def test_data_of_the_other_modality_are_refused(tmp_path: Path, kind: str, modality: str) -> None:
    put(tmp_path / "a" / "1.png", image(1))
    put_parquet(tmp_path / "train.parquet", {"text": ["a"], "label": [0]})
    other = "image" if modality == "text" else "text"
    with pytest.raises(InputError, match=f"bind pets/task.modality = '{other}'"):
        read(task(kind, tmp_path, modality=modality))


def test_images_in_parquet_read_as_text_are_refused(tmp_path: Path) -> None:
    put_parquet(tmp_path / "train.parquet", {"image": [b"a"], "label": [0]})
    with pytest.raises(InputError, match=r"bind pets/task\.modality = 'image'"):
        read(task("parquet", tmp_path))


@pytest.mark.parametrize("kind", ["parquet", "hub"])
def test_columns_tell_the_modality_that_nobody_bound(tmp_path: Path, kind: str) -> None:
    labels = ["a", "b"]
    source = f"hub:{REPOSITORY}@0123abc" if kind == "hub" else f"parquet:{tmp_path}"
    unbound = replace(WORDS, source=source, modality_bound=False)
    copy = tmp_path if kind == "hub" else None
    for split in ("train", "test"):
        put_parquet(tmp_path / f"{split}.parquet", {"image": [image(1), image(2)], "label": labels})
    content = read(unbound, copy)
    assert (content.modality, content.splits["test"].values) == ("image", [image(1), image(2)])
    with pytest.raises(InputError, match=r"bind pets/task\.modality = 'image'"):
        read(replace(unbound, modality_bound=True), copy)
    for split in ("train", "test"):
        put_parquet(tmp_path / f"{split}.parquet", {"image": [image(1)] * 2, "text": ["a", "b"], "label": labels})
    with pytest.raises(InputError, match=r"bind pets/task\.modality = 'image' or 'text'"):
        read(unbound, copy)


def test_images_have_no_pairs(tmp_path: Path) -> None:
    put(tmp_path / "a" / "1.png", image(1))
    with pytest.raises(InputError, match="pair_column"):
        read(task("folder", tmp_path, pair_column="other"))


def test_local_data_take_no_copy(tmp_path: Path) -> None:
    put_csv(tmp_path / "all.csv", ("text", "label"), ("a", "x"), ("b", "x"))
    with pytest.raises(InputError, match="--from"):
        read(task("csv", tmp_path / "all.csv"), tmp_path)


# ---------------------------------------------------------------------------------------------------- class folders


def test_class_folders_are_read_by_name_whatever_the_case_of_their_types(tmp_path: Path) -> None:
    for i, suffix in enumerate(("jpg", "JPEG", "Png", "bmp", "gif", "webp", "ppm", "PGM", "tif", "tiff")):
        put(tmp_path / "train" / "dog" / f"{i}.{suffix}", f"dog{i}")
    put(tmp_path / "train" / "cat" / "b.png", "b")
    put(tmp_path / "train" / "cat" / "a" / "deep" / "z.png", "z")
    put(tmp_path / "train" / "cat" / "B.png", "B")
    for ignored in ("notes.txt", ".hidden.png", ".cache/x.png"):
        put(tmp_path / "train" / "cat" / ignored, "ignored")
    put(tmp_path / "train" / ".hidden" / "x.png", "ignored")
    put(tmp_path / ".git" / "x.png", "ignored")
    put(tmp_path / "README.md", "ignored")
    put(tmp_path / "test" / "dog" / "only.png", "only")
    content = read(task("folder", tmp_path))
    assert content.modality == "image"
    assert content.class_names == ("cat", "dog")
    assert labelled(content, "train") == [
        *((value, "cat") for value in ("B", "z", "b")),
        *((f"dog{i}", "dog") for i in range(10)),
    ]
    assert labelled(content, "test") == [("only", "dog")]
    assert content.sources == {"source": "folder"}


@pytest.mark.parametrize("name", ["validation", "val", "valid", "dev", "Val"])
def test_names_of_the_validation_split(tmp_path: Path, name: str) -> None:
    for split in ("Train", name, "test"):
        put(tmp_path / "folder" / split / "a" / "1.png", split)
        put_csv(tmp_path / "csv" / f"{split}.csv", ("text", "label"), (split, "a"))
    for kind in ("folder", "csv"):
        content = read(task(kind, tmp_path / kind))
        assert {split: rows.values for split, rows in content.splits.items()} == {
            "train": [b"Train"],
            "validation": [name.encode()],
            "test": [b"test"],
        }
        assert list(content.splits) == ["train", "validation", "test"]


def test_classes_may_be_called_like_splits(tmp_path: Path) -> None:
    for i in range(5):
        put(tmp_path / "train" / f"{i}.png", f"train{i}")
        put(tmp_path / "bus" / f"{i}.png", f"bus{i}")
    assert read(task("folder", tmp_path)).class_names == ("bus", "train")


def test_linked_folders_are_read_once(tmp_path: Path) -> None:
    for i in range(2):
        put(tmp_path / "elsewhere" / f"{i}.png", str(i))
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "a").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere" / "again").symlink_to(tmp_path / "elsewhere")
    assert sizes(read(task("folder", tmp_path / "data"))) == {"train": 1, "test": 1}


def test_links_that_lead_astray_are_named(tmp_path: Path) -> None:
    put(tmp_path / "data" / "a" / "1.png", "1")
    put(tmp_path / "data" / "b" / "2.png", "2")
    link = tmp_path / "data" / "a" / "up"
    link.symlink_to("..")  # would bring the images of class b into class a
    with pytest.raises(InputError, match="up"):
        read(task("folder", tmp_path / "data"))
    link.unlink()
    (tmp_path / "data" / "a" / "gone.png").symlink_to("nowhere")
    with pytest.raises(InputError, match=r"gone\.png"):
        read(task("folder", tmp_path / "data"))


def test_a_drawn_test_split_shares_no_content_with_training(tmp_path: Path) -> None:
    rows = [json.dumps({"text": f"{label} {i % 10}", "label": label}) for label in "ab" for i in range(40)]
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join(rows))
    content = read(task("jsonl", path))
    train, test = (set(content.splits[split].values) for split in ("train", "test"))
    assert not train & test
    assert (len(train), len(test)) == (16, 4)
    assert len(content.splits["test"].values) == 4 * 4


def test_whole_numbers_have_to_count_from_0(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join(json.dumps({"text": f"text {i}", "label": 1 + i % 3}) for i in range(12)))
    with pytest.raises(InputError, match="count from 0"):
        read(task("jsonl", path))


def test_brackets_without_end_are_no_json(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text("[" * 100_000)
    with pytest.raises(InputError, match="line 1"):
        read(task("jsonl", path))


@pytest.mark.parametrize(
    ("files", "named"),
    [
        (["train/a/1.png", "train/b/notes.txt", "test/a/2.png"], "train/b"),
        (["train/a/1.png", "trian/a/1.png"], "trian"),
        (["train/a/1.png", "val/a/1.png", "dev/a/2.png"], "dev"),
        (["test/a/1.png", "val/a/1.png"], "train"),
        (["train/a/1.png", "train/2.png", "test/a/1.png"], "train/2.png"),
        (["train/a/1.png", "val/a/1.png"], "name one of them test"),
        (["train/a/1.png", "test/b/5.png"], "test/b/5.png"),
        (["train/a/1.png", "val/c/5.png", "test/a/1.png"], "val/c/5.png"),
        (["train/a/1.png", "test/x.txt"], "test"),
        (["notes.txt"], "class"),
        (["a/1.png", "b/1.png", "b/2.png"], "a"),
    ],
)
def test_folders_that_are_no_data_set_are_refused_by_name(tmp_path: Path, files: list[str], named: str) -> None:
    for file in files:
        put(tmp_path / file, file)
    with pytest.raises(InputError, match=named):
        read(task("folder", tmp_path))


def test_an_empty_image_is_refused_by_name(tmp_path: Path) -> None:
    put(tmp_path / "a" / "1.png", image(1))
    put(tmp_path / "a" / "2.png", b"")
    with pytest.raises(InputError, match=r"a/2\.png.*0 bytes"):
        read(task("folder", tmp_path))


def test_a_broken_link_is_refused_by_name(tmp_path: Path) -> None:
    put(tmp_path / "a" / "1.png", image(1))
    (tmp_path / "a" / "2.png").symlink_to(tmp_path / "gone.png")
    with pytest.raises(InputError, match=r"a/2\.png"):
        read(task("folder", tmp_path))


# ---------------------------------------------------------------------------------------------------- drawn test


def test_a_drawn_test_split_takes_a_fifth_of_each_class_by_content_alone(tmp_path: Path) -> None:
    counts = {"a": 14, "b": 5, "c": 2}
    texts = [(f"{name} {i}", name) for name, count in counts.items() for i in range(count)]
    expected = set()
    for name in counts:
        members = sorted((text for text, label in texts if label == name), key=lambda text: sha(text.encode()))
        expected.update(members[: max(1, len(members) // 5)])
    assert len(expected) == 2 + 1 + 1
    for seed in range(3):
        random.Random(seed).shuffle(texts)
        put_jsonl(tmp_path / f"{seed}.jsonl", *texts)
        content = read(task("jsonl", tmp_path / f"{seed}.jsonl"))
        assert {text for text, _ in labelled(content, "test")} == expected
        assert labelled(content, "train") == [row for row in texts if row[0] not in expected]
        assert labelled(content, "test") == [row for row in texts if row[0] in expected]
        assert content.sources["splits"] == own.DRAWN


def sha(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def test_drawing_looks_at_both_texts_of_a_pair(tmp_path: Path) -> None:
    rows = [("same", str(i), "x") for i in range(10)]
    put_jsonl(tmp_path / "all.jsonl", *rows, columns=("text", "other", "label"))
    content = read(task("jsonl", tmp_path / "all.jsonl", pair_column="other"))
    chosen = sorted((pair for _, pair, _ in rows), key=lambda pair: sha(f"same\0{pair}".encode()))[:2]
    assert sorted(pair.decode() for pair in content.splits["test"].pairs or ()) == sorted(chosen)
    assert len(content.splits["train"].pairs or ()) == 8


def test_no_class_is_drawn_empty(tmp_path: Path) -> None:
    put_jsonl(tmp_path / "all.jsonl", ("a", "x"), ("b", "x"), ("c", "lonely"))
    with pytest.raises(InputError, match="lonely"):
        read(task("jsonl", tmp_path / "all.jsonl"))


# ------------------------------------------------------------------------------------------------------------ files


def test_parquet_as_datasets_writes_it_keeps_the_order_of_its_classes(tmp_path: Path) -> None:
    import datasets

    features = {"image": datasets.Image(), "label": datasets.ClassLabel(names=["zebra", "ant"])}
    for split, labels in (("train", [0, 1, 1]), ("test", [1])):
        values = [{"bytes": image(label), "path": None} for label in labels]
        put_parquet(tmp_path / f"{split}.parquet", {"image": values, "label": labels}, features)
    content = read(task("parquet", tmp_path, modality="image"))
    assert content.class_names == ("zebra", "ant")
    assert content.splits["train"] == Rows([image(0), image(1), image(1)], [0, 1, 1])
    assert problems(content, {"test": frozenset({"zebra"})}, MOST_MEGAPIXELS) == []
    assert content.sources == {
        "source": "parquet",
        **{f"{split}.parquet": sha((tmp_path / f"{split}.parquet").read_bytes()) for split in ("train", "test")},
    }


def test_parquet_with_plain_columns_of_other_names(tmp_path: Path) -> None:
    put_parquet(tmp_path / "train.parquet", {"photo": [b"1", b"2"], "kind": ["b", "a"], "idx": [1, 2]})
    put_parquet(tmp_path / "test.parquet", {"kind": ["a"], "photo": [b"3"]})
    content = read(task("parquet", tmp_path, modality="image", image_column="photo", label_column="kind"))
    assert content.class_names == ("a", "b")
    assert content.splits == {"train": Rows([b"1", b"2"], [1, 0]), "test": Rows([b"3"], [0])}


def test_shards_are_read_in_order_and_refused_if_one_is_missing(tmp_path: Path) -> None:
    for i in (2, 0, 1):
        put_parquet(tmp_path / f"train-0000{i}-of-00003.parquet", {"text": [f"{i}a", f"{i}b"], "label": [0, 1]})
    put_parquet(tmp_path / "test-00000-of-00001.parquet", {"text": ["t"], "label": [1]})
    content = read(task("parquet", tmp_path))
    assert content.splits["train"].values == [b"0a", b"0b", b"1a", b"1b", b"2a", b"2b"]
    assert content.class_names == ("0", "1")
    (tmp_path / "train-00001-of-00003.parquet").unlink()
    with pytest.raises(InputError, match=r"train-00001-of-00003\.parquet"):
        read(task("parquet", tmp_path))


def test_images_of_which_only_the_path_was_kept_are_refused(tmp_path: Path) -> None:
    import datasets

    values = [{"bytes": b"x", "path": None}, {"bytes": None, "path": "1.png"}]
    features = {"image": datasets.Image(), "label": datasets.Value("int64")}
    put_parquet(tmp_path / "train.parquet", {"image": values, "label": [0, 0]}, features)
    with pytest.raises(InputError, match=r"train\.parquet, row 1"):
        read(task("parquet", tmp_path, modality="image"))


def test_shards_with_other_classes_are_refused(tmp_path: Path) -> None:
    import datasets

    for split, names in (("train", ["a", "b"]), ("test", ["b", "a"])):
        features = {"text": datasets.Value("string"), "label": datasets.ClassLabel(names=names)}
        put_parquet(tmp_path / f"{split}.parquet", {"text": ["t"], "label": [0]}, features)
    with pytest.raises(InputError, match="different classes"):
        read(task("parquet", tmp_path))


def test_jsonl_with_pairs_blank_lines_and_a_byte_order_mark(tmp_path: Path) -> None:
    lines = [{"a": "ü\u2028", "b": "x\n", "y": "no", "more": 1}, {"a": "2", "b": "y", "y": "yes"}]
    put(tmp_path / "train.jsonl", "\ufeff" + "\r\n\n".join(json.dumps(line, ensure_ascii=False) for line in lines))
    put_jsonl(tmp_path / "test.jsonl", ("3", "z", "yes"), columns=("a", "b", "y"))
    content = read(task("jsonl", tmp_path, text_column="a", pair_column="b", label_column="y"))
    assert content.class_names == ("no", "yes")
    assert content.splits["train"] == Rows(["ü\u2028".encode(), b"2"], [0, 1], [b"x\n", b"y"])
    assert content.splits["test"] == Rows([b"3"], [1], [b"z"])


def test_csv_with_quotes_line_breaks_and_long_fields(tmp_path: Path) -> None:
    long = "x" * 200_000
    rows = [("text", "label"), ('say "a",\nb', "10"), (long, "2"), ("c", "0")]
    put_csv(tmp_path / "train.csv", *rows)
    (tmp_path / "train.csv").write_bytes(b"\xef\xbb\xbf" + (tmp_path / "train.csv").read_bytes())
    put_csv(tmp_path / "test.csv", ("label", "text"), ("2", "d"))
    before = csv.field_size_limit(70_000)
    with pytest.raises(InputError, match=r"train\.csv, line 3: the label 10 "):
        read(task("csv", tmp_path))  # eleven classes and three examples: no whole-number classes
    assert csv.field_size_limit(before) == 70_000
    put_csv(tmp_path / "train.csv", rows[0], (rows[1][0], "1"), *rows[2:])
    content = read(task("csv", tmp_path))
    assert content.class_names == ("0", "1", "2")
    assert content.splits["train"] == Rows([b'say "a",\nb', long.encode(), b"c"], [1, 2, 0])
    assert content.splits["test"] == Rows([b"d"], [2])


def test_numbers_in_csv_that_are_not_all_numbers_are_names(tmp_path: Path) -> None:
    put_csv(tmp_path / "train.csv", ("text", "label"), ("a", "10"), ("b", "9"), ("c", "x"))
    put_csv(tmp_path / "test.csv", ("text", "label"), ("d", "9"))
    assert read(task("csv", tmp_path)).class_names == ("10", "9", "x")


@pytest.mark.parametrize(
    ("train", "test", "named"),
    [
        ([("a", "x"), ("b", "y")], [("c", "x"), ("d", "z")], r"test\.jsonl, line 2: the label 'z'"),
        ([("a", 0), ("b", 1)], [("c", 2)], r"test\.jsonl, line 1: the label 2"),
        ([("a", 0), ("b", 2), ("e", 2)], [("c", 1)], r"test\.jsonl, line 1: the label 1"),
        ([("a", 0), ("b", -1)], [("c", 0)], r"train\.jsonl, line 2: the label -1"),
        ([("a", 0), ("b", 10**9)], [("c", 0)], r"train\.jsonl, line 2: the label 1000000000"),
        ([("a", 0), ("b", "1")], [("c", 0)], r"train\.jsonl, line 2: the label is '1'"),
        ([("a", 0), ("b", None)], [("c", 0)], r"train\.jsonl, line 2: there is no label"),
        ([("a", 0), ("b", 1.0)], [("c", 0)], r"train\.jsonl, line 2: the label 1\.0"),
        ([("a", 0), ("b", True)], [("c", 0)], r"train\.jsonl, line 2: the label True"),
        ([("a", "x"), ("b", " ")], [("c", "x")], r"train\.jsonl, line 2: the label is empty"),
        ([("a", "x"), (None, "x")], [("c", "x")], r"train\.jsonl, line 2: no text"),
        ([("a", "x"), (7, "x")], [("c", "x")], r"train\.jsonl, line 2: no text"),
        ([("a", "x"), ("\ud800", "x")], [("c", "x")], r"train\.jsonl, line 2: .*surrogates"),
        ([("a", 0), ("b", 0)], [("c", -1), ("d", 0)], r"test\.jsonl, line 1: the label -1"),
    ],
)
def test_bad_rows_are_refused_by_file_and_line(
    tmp_path: Path, train: list[tuple[Any, Any]], test: list[tuple[Any, Any]], named: str
) -> None:
    put_jsonl(tmp_path / "train.jsonl", *train)
    put_jsonl(tmp_path / "test.jsonl", *test)
    with pytest.raises(InputError, match=named):
        read(task("jsonl", tmp_path))


def test_a_label_outside_a_classlabel_is_refused(tmp_path: Path) -> None:
    import datasets

    features = {"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["a", "b"])}
    put_parquet(tmp_path / "train.parquet", {"text": ["s", "t"], "label": [0, 2]}, features)
    with pytest.raises(InputError, match=r"train\.parquet, row 1: the label 2 "):
        read(task("parquet", tmp_path))


def test_a_class_that_another_split_lacks_is_told_and_one_that_training_lacks_refused(tmp_path: Path) -> None:
    put_jsonl(tmp_path / "train.jsonl", ("a", "x"), ("b", "y"), ("c", "z"))
    put_jsonl(tmp_path / "test.jsonl", ("d", "x"), ("e", "x"))
    manifest = prepare_data("pets", tmp_path / "data", task("jsonl", tmp_path))
    assert manifest.splits["test"].per_class == (2, 0, 0)
    assert [note for note in manifest.notes if "y, z" in note and note.startswith("test ")] == [*manifest.notes]
    put_jsonl(tmp_path / "train.jsonl", ("a", 0), ("c", 2), ("f", 2))
    put_jsonl(tmp_path / "test.jsonl", ("d", 0), ("e", 2))
    with pytest.raises(InputError, match="train: the class 1 has no examples"):
        prepare_data("pets", tmp_path / "others", task("jsonl", tmp_path))


@pytest.mark.parametrize(
    ("kind", "content", "named"),
    [
        ("parquet", b"", r"train\.parquet is empty \(0 bytes\)"),
        ("parquet", b"PAR1 no parquet", r"train\.parquet"),
        ("jsonl", b"", r"train\.jsonl is empty \(0 bytes\)"),
        ("jsonl", b"\n\n", r"train\.jsonl: the train split holds no examples"),
        ("jsonl", b'{"text": "a", "label": 1}\n{"text": ', r"train\.jsonl, line 2"),
        ("jsonl", b"[1]\n", r"train\.jsonl, line 1"),
        ("jsonl", b'{"text": "a", "label": 1}\n\xff\n', r"train\.jsonl: .*utf-8"),
        ("jsonl", b'{"text": "a", "label": 0}\n{"text": "a", "lable": 0}', r"line 2: .*'label'.*'text', 'lable'"),
        ("csv", b"text,label\n", r"train\.csv: the train split holds no examples"),
        ("csv", b"text,label\na,1\nb\n", r"train\.csv, line 3"),
        ("csv", b"text,label\na,1,2\n", r"train\.csv, line 2"),
        ("csv", b"text,lable\na,1\n", r"'label'.*'text', 'lable'.*pets/task\.label_column"),
        ("csv", b"sentence,label\na,1\n", r"'text'.*'sentence', 'label'.*pets/task\.text_column"),
        ("csv", b"text,text,label\na,b,1\n", r"train\.csv"),
        ("csv", b'text,label\n"a,1\n', r"train\.csv"),
        ("csv", b'text,label\na,1\n"b"c,1\n', r"train\.csv, after line 2"),
        ("csv", b"text,label\n\xff,1\n", r"train\.csv: .*utf-8"),
        ("csv", b"text,label\na,1\nb,\n", r"train\.csv, line 3: there is no label"),
    ],
)
def test_bad_files_are_refused_by_name(tmp_path: Path, kind: str, content: bytes, named: str) -> None:
    put(tmp_path / f"train.{kind}", content)
    for path in (tmp_path, tmp_path / f"train.{kind}"):
        with pytest.raises(InputError, match=named):
            read(task(kind, path))


@pytest.mark.parametrize(
    ("files", "named"),
    [
        (["train", "validation"], "name one of them test"),
        (["train", "vall", "test"], "vall"),
        (["train", "val", "dev", "test"], "val"),
        (["train", "train-00000-of-00001", "test"], "train-00000-of-00001"),
        (["test", "validation"], "training split"),
        ([], r"no \.csv"),
    ],
)
def test_files_that_are_no_data_set_are_refused(tmp_path: Path, files: list[str], named: str) -> None:
    for file in files:
        put_csv(tmp_path / f"{file}.csv", ("text", "label"), ("a", "x"), ("b", "x"))
    with pytest.raises(InputError, match=named):
        read(task("csv", tmp_path))


def test_the_content_does_not_depend_on_the_kind_of_file(tmp_path: Path) -> None:
    rows = [("a", "x"), ("b", "y"), ("c", "y")]
    for split in ("train", "test"):
        put_csv(tmp_path / "csv" / f"{split}.csv", ("text", "label"), *rows)
        put_jsonl(tmp_path / "jsonl" / f"{split}.jsonl", *rows)
        columns = {"text": [text for text, _ in rows], "label": [label for _, label in rows]}
        put_parquet(tmp_path / "parquet" / f"{split}.parquet", columns)
    contents = [read(task(kind, tmp_path / kind)) for kind in ("csv", "jsonl", "parquet")]
    assert [content.splits for content in contents] == [contents[0].splits] * 3
    assert [content.class_names for content in contents] == [("x", "y")] * 3


def test_nothing_in_the_content_names_the_machine(tmp_path: Path) -> None:
    put_csv(tmp_path / "all.csv", ("text", "label"), ("a", "x"), ("b", "x"))
    put(tmp_path / "photos" / "a" / "1.png", image(1))
    put(tmp_path / "photos" / "a" / "2.png", image(2))
    for own_task in (task("csv", tmp_path / "all.csv"), task("folder", tmp_path / "photos")):
        assert str(tmp_path) not in json.dumps(read(own_task).sources)


# ------------------------------------------------------------------------------------------------------ fingerprint


def test_a_fingerprint_changes_with_names_sizes_and_times(tmp_path: Path) -> None:
    file = tmp_path / "data" / "train" / "a" / "1.png"
    put(file, b"1")
    put(tmp_path / "data" / "test" / "a" / "2.png", b"2")
    os.utime(file, ns=(10, 10))
    own_task = task("folder", tmp_path / "data")
    seen = [fingerprint(own_task)]
    assert fingerprint(own_task) == seen[0]

    def changed() -> bool:
        seen.append(fingerprint(own_task))
        return len(set(seen)) == len(seen)

    put(file, b"12")
    os.utime(file, ns=(10, 10))
    assert changed()
    os.utime(file, ns=(10, 11))
    assert changed()
    file.rename(file.with_name("3.png"))
    assert changed()
    put(tmp_path / "data" / ".hidden", b"")
    assert not changed()


def test_a_fingerprint_does_not_depend_on_where_the_data_lie(tmp_path: Path) -> None:
    for folder in ("one", "two"):
        put(tmp_path / folder / "train.csv", "text,label\n")
        os.utime(tmp_path / folder / "train.csv", ns=(5, 5))
    folders = {fingerprint(task("csv", tmp_path / folder)) for folder in ("one", "two")}
    assert len(folders) == 1
    assert fingerprint(replace(WORDS, source="hub:a/b@c")) == "hub:a/b@c"


# -------------------------------------------------------------------------------------------------------------- hub

REPOSITORY = "owner/sentences"


def repository(root: Path, configuration: str, splits: dict[str, dict[str, list[Any]]], names: list[str]) -> Task:
    """A local copy of a hub repository with one configuration of pairs, and the task that reads it."""
    import datasets

    features = {
        "premise": datasets.Value("string"),
        "hypothesis": datasets.Value("string"),
        "label": datasets.ClassLabel(names=names),
        "idx": datasets.Value("int32"),
    }
    card = f"---\nconfigs:\n- config_name: {configuration}\n  data_files:\n"
    for split, columns in splits.items():
        texts = columns["text"]
        rows = {"premise": texts, "hypothesis": [f"{text}?" for text in texts], "label": columns["label"]}
        put_parquet(
            root / configuration / f"{split}-00000-of-00001.parquet",
            rows | {"idx": list(range(len(texts)))},
            features,
        )
        card += f"  - split: {split}\n    path: {configuration}/{split}-*\n"
    put(root / "README.md", card + "---\n")
    return replace(
        WORDS,
        source=f"hub:{REPOSITORY}@0123abc",
        configuration=configuration,
        text_column="premise",
        pair_column="hypothesis",
    )


def test_a_copy_of_a_hub_repository_gives_its_splits_and_classes(tmp_path: Path) -> None:
    splits = {
        "train": {"text": ["a", "b"], "label": [1, 0]},
        "validation": {"text": ["c"], "label": [0]},
        "test": {"text": ["d"], "label": [1]},
    }
    own_task = repository(tmp_path, "main", splits, ["yes", "no"])
    content = read(own_task, tmp_path)
    assert content.class_names == ("yes", "no")
    assert content.splits == {
        "train": Rows([b"a", b"b"], [1, 0], [b"a?", b"b?"]),
        "validation": Rows([b"c"], [0], [b"c?"]),
        "test": Rows([b"d"], [1], [b"d?"]),
    }
    assert content.sources == {
        "source": "hub",
        "repository": f"{REPOSITORY}@0123abc",
        "configuration": "main",
        "copy": "local",
    }


def test_a_changed_copy_is_read_afresh(tmp_path: Path) -> None:
    splits = {"train": {"text": ["a", "b"], "label": [1, 0]}, "test": {"text": ["d"], "label": [1]}}
    own_task = repository(tmp_path, "main", splits, ["yes", "no"])
    assert read(own_task, tmp_path).splits["test"].values == [b"d"]
    splits["test"]["text"] = ["e"]
    repository(tmp_path, "main", splits, ["yes", "no"])
    assert read(own_task, tmp_path).splits["test"].values == [b"e"]


def test_with_a_hidden_test_split_the_validation_split_becomes_it(tmp_path: Path) -> None:
    splits = {
        "train": {"text": ["a", "b"], "label": [1, 0]},
        "validation": {"text": ["c"], "label": [0]},
        "test": {"text": ["d", "e"], "label": [-1, -1]},
    }
    content = read(repository(tmp_path, "main", splits, ["yes", "no"]), tmp_path)
    assert {split: rows.values for split, rows in content.splits.items()} == {"train": [b"a", b"b"], "test": [b"c"]}
    assert content.sources["splits"] == "test is the public validation set; the hidden test set has no labels"


def test_of_mnli_the_matched_validation_set_is_the_test_split_and_the_mismatched_one_a_further_split(
    tmp_path: Path,
) -> None:
    splits = {"train": {"text": ["a", "b", "c"], "label": [1, 0, 2]}}
    for part, labels in (("validation", [2]), ("test", [-1])):
        splits |= {
            f"{part}_{kind}": {"text": [f"{part} {kind}"], "label": labels} for kind in ("matched", "mismatched")
        }
    content = read(repository(tmp_path, "mnli", splits, ["entailment", "neutral", "contradiction"]), tmp_path)
    assert sizes(content) == {"train": 3, "test": 1, "mismatched": 1}
    assert content.splits["test"].values == [b"validation matched"]
    assert content.splits["mismatched"].values == [b"validation mismatched"]
    assert content.sources["splits"] == "test is the public validation set; the hidden test set has no labels"


def test_labels_that_are_real_numbers_are_a_regression(tmp_path: Path) -> None:
    put_jsonl(tmp_path / "train.jsonl", *((f"text {i}", i / 3) for i in range(6)))
    with pytest.raises(InputError, match="regression"):
        read(task("jsonl", tmp_path))


def test_a_split_named_mismatched_means_nothing_in_other_data_sets(tmp_path: Path) -> None:
    splits = {part: {"text": ["a", "b"], "label": [0, 1]} for part in ("train", "test", "mismatched")}
    content = read(repository(tmp_path, "main", splits, ["yes", "no"]), tmp_path)
    assert sizes(content) == {"train": 2, "test": 2}
    assert any("mismatched" in note for note in content.notes)


def test_a_hub_data_set_without_a_test_split(tmp_path: Path) -> None:
    splits = {
        "train": {"text": ["a", "b", "c", "d"], "label": [0, 0, 1, 1]},
        "validation": {"text": ["e"], "label": [0]},
    }
    content = read(repository(tmp_path / "one", "main", splits, ["yes", "no"]), tmp_path / "one")
    assert sizes(content) == {"train": 4, "test": 1}
    assert content.splits["test"].values == [b"e"]
    assert "splits" in content.sources
    del splits["validation"]
    content = read(repository(tmp_path / "two", "main", splits, ["yes", "no"]), tmp_path / "two")
    assert sizes(content) == {"train": 2, "test": 2}
    assert content.sources["splits"] == own.DRAWN


def test_a_hidden_test_split_alone_is_replaced_by_a_drawn_one(tmp_path: Path) -> None:
    put_jsonl(tmp_path / "train.jsonl", *((str(i), i % 2) for i in range(20)))
    put_jsonl(tmp_path / "test.jsonl", ("a", -1), ("b", -1))
    content = read(task("jsonl", tmp_path))
    assert sizes(content) == {"train": 16, "test": 4}
    assert content.class_names == ("0", "1")
    assert "hidden" in content.sources["splits"]


def test_a_copy_of_a_hub_repository_of_image_files(tmp_path: Path) -> None:
    for split in ("train", "test"):
        for name in ("b", "a"):
            put(tmp_path / split / name / "1.png", image(ord(name)))
    content = read(replace(PHOTOS, source="hub:owner/photos@0123abc"), tmp_path)
    assert content.class_names == ("a", "b")
    assert content.splits["test"] == Rows([image(97), image(98)], [0, 1])
    with pytest.raises(InputError, match=r"bind pets/task\.modality = 'image'"):
        read(replace(WORDS, source="hub:owner/photos@0123abc"), tmp_path)


def test_an_unpinned_hub_data_set_is_refused() -> None:
    for source in (f"hub:{REPOSITORY}", f"hub:{REPOSITORY}@"):
        with pytest.raises(InputError, match=f"pin it: hub:{REPOSITORY}@REVISION"):
            read(replace(WORDS, source=source))


@pytest.mark.parametrize("location", ["sentences@0123abc", "a/b/c@0123abc", "/tmp/x@0123abc", "../x@0123abc"])
def test_only_repositories_of_the_hub_are_hub_sources(location: str) -> None:
    with pytest.raises(InputError, match="OWNER/NAME@REVISION"):
        read(replace(WORDS, source=f"hub:{location}"))


def test_a_folder_named_like_the_repository_is_not_read_in_its_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    splits = {"train": {"text": ["a", "b"], "label": [1, 0]}, "test": {"text": ["d"], "label": [1]}}
    own_task = repository(tmp_path / REPOSITORY, "main", splits, ["yes", "no"])
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=str(tmp_path / REPOSITORY)):
        read(own_task)
    assert sizes(read(own_task, Path(REPOSITORY))) == {"train": 2, "test": 1}


def test_without_a_network_the_way_to_give_a_copy_is_named() -> None:
    with pytest.raises(InputError, match=r"--from") as caught:
        read(replace(WORDS, source=f"hub:{REPOSITORY}@0123abc"))
    assert REPOSITORY in str(caught.value)


def test_another_revision_in_a_cache_does_not_stand_in_for_the_pinned_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import datasets

    cache = tmp_path / "owner___sentences" / "default" / "0.0.0" / ("f" * 40)
    cache.mkdir(parents=True)
    old = {"text": [f"old {i}" for i in range(4)], "label": [0, 1, 0, 1]}
    datasets.Dataset.from_dict(old).save_to_disk(str(tmp_path / "saved"))
    (tmp_path / "saved" / "data-00000-of-00001.arrow").rename(cache / "sentences-train.arrow")
    info = json.loads((tmp_path / "saved" / "dataset_info.json").read_text())
    train = {"name": "train", "num_bytes": 1, "num_examples": 4, "dataset_name": "sentences"}
    info |= {"builder_name": "parquet", "dataset_name": "sentences", "config_name": "default"}
    put(cache / "dataset_info.json", json.dumps(info | {"splits": {"train": train}}))
    common = datasets.load_dataset(REPOSITORY, revision="0123abc", cache_dir=str(tmp_path))
    assert common["train"]["text"][:] == old["text"]  # which is why this cache is not used
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path))
    seen = []
    load = datasets.load_dataset
    monkeypatch.setattr(datasets, "load_dataset", lambda *a, **k: (seen.append(k), load(*a, **k))[1])
    with pytest.raises(InputError, match=r"--from"):
        read(replace(WORDS, source=f"hub:{REPOSITORY}@0123abc"))
    assert seen[0]["revision"] == "0123abc"
    assert "trust_remote_code" not in seen[0]


def test_copies_that_are_no_repository_are_refused(tmp_path: Path) -> None:
    splits = {"train": {"text": ["a", "b"], "label": [1, 0]}}
    own_task = repository(tmp_path, "main", splits, ["yes", "no"])
    with pytest.raises(InputError, match="'main'"):
        read(replace(own_task, configuration="other"), tmp_path)
    with pytest.raises(InputError, match="no folder"):
        read(own_task, tmp_path / "nowhere")
    with pytest.raises(InputError, match=r"'text'.*'premise'"):
        read(replace(own_task, text_column="text"), tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="empty"):
        read(own_task, tmp_path / "empty")
    put(tmp_path / "main" / "train-00000-of-00001.parquet", b"PAR1")
    with pytest.raises(InputError, match=str(tmp_path)):
        read(own_task, tmp_path)


def test_a_repository_with_code_is_refused(tmp_path: Path) -> None:
    put(tmp_path / f"{tmp_path.name}.py", "raise SystemExit('ran')")
    with pytest.raises(InputError, match="script"):
        read(replace(WORDS, source=f"hub:{REPOSITORY}@0123abc"), tmp_path)


# ------------------------------------------------------------------------------------------------- real data packs


@pytest.mark.group("data")
@pytest.mark.parametrize(
    ("source", "counts", "classes"),
    [
        ("parquet:images/cub50", {"train": 1500, "test": 1389}, 50),
        ("parquet:images/dtd10", {"train": 400, "validation": 400, "test": 400}, 10),
        ("jsonl:text/acl_arc", {"train": 1688, "validation": 114, "test": 139}, 6),
    ],
)
def test_real_packs_read_without_problems(source: str, counts: dict[str, int], classes: int) -> None:
    kind, _, path = source.partition(":")
    modality = "image" if path.startswith("images") else "text"
    content = read(task(kind, Path(os.environ["BENCH_REAL_DATA"]) / path, modality=modality))
    assert sizes(content) == counts
    assert content.class_names is not None and len(content.class_names) == classes
    assert problems(content, {}, MOST_MEGAPIXELS) == []
