"""What readers of own data met: read and listed as not read is what was there, and causes are named."""

from __future__ import annotations

import gzip
import json
import os
import random
import zlib
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from bench.data import prepare
from bench.data.image_notes import image_notes
from bench.data.manifest import Manifest, describe_classes, describe_overlap, read_manifest
from bench.data.sources import folders, own
from bench.data.sources.account import Account
from bench.data.sources.own import read
from bench.data.tasks import Task
from bench.errors import InputError
from tests.data.sources.test_own import image, put, put_jsonl, sizes, task


def csv_file(path: Path, *lines: str, header: str = "text,label", end: str = "\n") -> Path:
    put(path, end.join((header, *lines)) + end)
    return path


def reviews(count: int = 12, labels: tuple[str, ...] = ("pos", "neg")) -> list[str]:
    return [f"the quick fox number {i},{labels[i % len(labels)]}" for i in range(count)]


def refused(kind: str, path: Path, **fields: Any) -> str:
    with pytest.raises(InputError) as caught:
        read(task(kind, path, **fields))
    return str(caught.value)


def prepared(own_task: Task, root: Path) -> Manifest:
    prepare.prepare_data(own_task.name, root, own_task)
    manifest = read_manifest(own_task.name, root)
    assert manifest is not None
    return manifest


def unread(notes: tuple[str, ...]) -> int:
    """The count of what the notes list as not read."""
    return sum(int(note.split(": ")[2].split(" ")[0]) for note in notes if note.startswith("not read: "))


# ------------------------------------------------------------------------------------------- rows that swallow others


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("last", [3, 5, 11])
def test_a_stray_quote_that_swallows_rows_is_refused(tmp_path: Path, end: str, last: int) -> None:
    lines = reviews()
    lines[2] = f'"{lines[2]}'  # line 4 of the file
    lines[last] = lines[last].replace(",", '",')
    message = refused("csv", csv_file(tmp_path / "all.csv", *lines, end=end))
    assert f"spans {last - 1} lines, from line 4" in message
    assert "stray quote in line 4" in message


def test_a_stray_quote_is_found_wherever_the_label_stands(tmp_path: Path) -> None:
    lines = [",".join(reversed(line.split(","))) for line in reviews()]
    lines[2] = f'neg,"{lines[2]}'
    lines[6] += '"'
    assert "from line 4" in refused("csv", csv_file(tmp_path / "all.csv", *lines, header="label,text"))


def test_a_quote_that_is_never_closed_is_named_where_it_opens(tmp_path: Path) -> None:
    lines = reviews()
    lines[4] = f'"{lines[4]}'
    assert "line 6" in refused("csv", csv_file(tmp_path / "all.csv", *lines))


def test_texts_of_several_lines_are_read_and_said(tmp_path: Path) -> None:
    lines = [*reviews(), '"a poem\nof three lines,\nwith a comma",pos', '"two\nlines",neg']
    content = read(task("csv", csv_file(tmp_path / "all.csv", *lines)))
    assert sum(sizes(content).values()) == 14
    (note,) = content.notes
    assert note.startswith("2 texts of all.csv") and "3 lines from line 14" in note


# ------------------------------------------------------------------------------------------------- what was not read


def test_what_systems_leave_is_skipped_and_counted(tmp_path: Path) -> None:
    for name in ("cat", "dog"):
        for i in range(5):
            put(tmp_path / "train" / name / f"{i}.png", image(i + 10 * len(name)))
            put(tmp_path / "train" / name / "@eaDir" / f"{i}.png" / "SYNOPHOTO_THUMB_M.jpg", image(0))
        put(tmp_path / "test" / name / "0.png", image(100 + ord(name[0])))
    left = ("__MACOSX/train/cat/._0.png", "train/cat/._1.png", "train/cat/.DS_Store", "train/Thumbs.db", "Desktop.INI")
    more = ("train/.ipynb_checkpoints/0-checkpoint.png", "lost+found/x", "test/dog/.hidden/a.png", "test/cat/notes.txt")
    for file in (*left, *more, "README.md", "train/cat/list", "$RECYCLE.BIN/a.png"):
        put(tmp_path / file, b"x")
    content = read(task("folder", tmp_path))
    assert content.class_names == ("cat", "dog")
    assert sizes(content) == {"train": 10, "test": 2}
    assert sum(sizes(content).values()) + unread(content.notes) == sum(len(files) for _, _, files in os.walk(tmp_path))
    text = "\n".join(content.notes)
    assert str(tmp_path) not in text
    assert "files that systems leave: 18 ($RECYCLE.BIN, Desktop.INI, __MACOSX, …)" in text


def test_folders_of_random_files_are_accounted_for(tmp_path: Path) -> None:
    names = ("a.png", "b.JPG", "c.txt", "d", ".e.png", "._f.png", "Thumbs.db", "@eaDir/g.png", "deep/h.png", ".i/j.png")
    for seed in range(20):
        generator = random.Random(seed)
        folder = tmp_path / str(seed)
        for split in ("train", "test") if seed % 2 else ("",):
            for name in ("x", "y"):
                for file in (*generator.sample(names, generator.randint(0, len(names))), "0.png", "1.png"):
                    put(folder / split / name / file, f"{split}{name}{file}")
            for file in generator.sample(("notes.md", ".DS_Store", "__MACOSX/x/a.png"), 2):
                put(folder / split / file, b"x")
        content = read(task("folder", folder))
        there = sum(len(files) for _, _, files in os.walk(folder))
        assert sum(sizes(content).values()) + unread(content.notes) == there


def test_files_beside_the_splits_and_links_are_listed(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    csv_file(folder / "train.csv", *reviews())
    csv_file(folder / "test.csv", *reviews(2))
    for file in ("README.md", "old/train.csv", ".git/config", "train.csv.bak"):
        put(folder / file, b"x")
    notes = read(task("csv", folder)).notes
    assert unread(notes) == 4
    (folder / "validation.csv").symlink_to("nowhere.csv")
    assert "validation.csv" in refused("csv", folder)


def test_blank_lines_are_counted(tmp_path: Path) -> None:
    lines = reviews()
    content = read(task("csv", csv_file(tmp_path / "all.csv", *lines[:3], "", *lines[3:], "", "")))
    assert sum(sizes(content).values()) + unread(content.notes) == len(lines) + 3
    assert "blank lines: 3 (all.csv, line 5, " in content.notes[0]
    put(tmp_path / "all.jsonl", '\n{"text": "a", "label": "x"}\n\n{"text": "b", "label": "x"}\n   \n')
    assert unread(read(task("jsonl", tmp_path / "all.jsonl")).notes) == 3


def test_a_hidden_test_split_is_counted(tmp_path: Path) -> None:
    put_jsonl(tmp_path / "train.jsonl", *((str(i), i % 2) for i in range(20)))
    put_jsonl(tmp_path / "test.jsonl", ("a", -1), ("b", -1))
    assert unread(read(task("jsonl", tmp_path)).notes) == 2


def test_nothing_is_said_where_everything_was_read(tmp_path: Path) -> None:
    assert read(task("csv", csv_file(tmp_path / "all.csv", *reviews()))).notes == ()


def test_a_folder_that_cannot_be_read_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put(tmp_path / "cat" / "0.png", image(1))

    def denied(folder: Path) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "iterdir", denied)
    with pytest.raises(InputError, match=f"{tmp_path}.*Permission denied"):
        folders.entries(tmp_path, Account())


def test_a_source_that_changes_while_it_is_read_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = csv_file(tmp_path / "all.csv", *reviews())

    def read_and_write(own_task: Task, local_copy: Path | None) -> Any:
        content = read(own_task, local_copy)
        csv_file(path, *reviews(14))
        return content

    monkeypatch.setattr(own, "read", read_and_write)
    with pytest.raises(InputError, match="changed while it was read"):
        prepare.prepare_data("pets", tmp_path / "data", task("csv", path))
    assert read_manifest("pets", tmp_path / "data") is None


# ---------------------------------------------------------------------------------------------------- labels and texts


@pytest.mark.parametrize(
    ("labels", "shown"),
    [
        (("neg", "neg "), r"'neg '"),
        (("neg", "neg\xa0"), r"'neg\xa0'"),
        (("neg", "neg\u200b"), r"'neg\u200b'"),
        (("neg", "\ufeffneg"), r"'\ufeffneg'"),
        (("caf\xe9", "cafe\u0301"), r"'cafe\u0301'"),
        (("a b", "a  b"), "'a  b'"),
        (("0", "0.0"), "'0.0'"),
        (("1", "01"), "'01'"),
        (("7", "+7"), "'+7'"),
        (("1.0", "1.00"), "'1.00'"),
    ],
)
@pytest.mark.parametrize("kind", ["csv", "jsonl"])
def test_labels_that_look_alike_are_refused_with_both_places(
    labels: tuple[str, str], shown: str, kind: str, tmp_path: Path
) -> None:
    path = tmp_path / f"all.{kind}"
    rows = [("a", labels[0]), ("b", "other"), ("c", "other"), ("d", labels[1]), ("e", labels[0])]
    if kind == "csv":
        csv_file(path, *(f"{text},{label}" for text, label in rows))
    else:
        put_jsonl(path, *rows)
    message = refused(kind, path)
    assert repr(labels[0]) in message or ascii(labels[0]) in message
    assert shown in message
    assert all(f"line {number + (kind == 'csv')})" in message for number in (1, 4))


def test_class_folders_that_look_alike_are_refused(tmp_path: Path) -> None:
    for name in ("caf\xe9", "cafe\u0301"):
        put(tmp_path / name / "0.png", image(1))
        put(tmp_path / name / "1.png", image(2))
    assert r"'cafe\u0301'" in refused("folder", tmp_path)


def test_case_and_leading_zeros_alone_make_classes(tmp_path: Path) -> None:
    for labels in (("pos", "Pos"), ("007", "010"), ("0.0", "1.0"), ("True", "False"), ("v1.0", "v1")):
        content = read(task("csv", csv_file(tmp_path / "all.csv", *reviews(labels=labels))))
        assert content.class_names == tuple(sorted(labels))


@pytest.mark.parametrize("label", ["nan", "None", "null", "N/A", "<NA>"])
def test_a_class_that_may_be_a_missing_label_is_said(label: str, tmp_path: Path) -> None:
    content = read(task("csv", csv_file(tmp_path / "all.csv", *reviews(labels=("pos", label)))))
    assert [repr(label) in note for note in content.notes] == [True]


@pytest.mark.parametrize("text", ["\u200b", "\ufeff\u200b", "\x07\x00", "\xa0", "\u2800", "\u00ad"])
def test_texts_in_which_nothing_is_visible_are_refused(text: str, tmp_path: Path) -> None:
    rows = [(f"text {i}", "ab"[i % 2]) for i in range(12)]
    put_jsonl(tmp_path / "all.jsonl", *rows, (text, "a"))
    with pytest.raises(InputError, match=r"all\.jsonl, line 13: the text"):
        prepare.prepare_data("pets", tmp_path / "data", task("jsonl", tmp_path / "all.jsonl"))


# ------------------------------------------------------------------------------------------------------------- causes


@pytest.mark.parametrize(("delimiter", "name"), [(";", "semicolons"), ("\t", "tabs")])
def test_semicolons_and_tabs_separate_as_commas_do(delimiter: str, name: str, tmp_path: Path) -> None:
    commas = read(task("csv", csv_file(tmp_path / "commas.csv", *reviews())))
    lines = [line.replace(",", delimiter) for line in reviews()]
    other = csv_file(tmp_path / "all.csv", *lines, header=f"text{delimiter}label")
    content = read(task("csv", other))
    assert content.splits == commas.splits
    assert [name in note for note in content.notes] == [True]
    message = refused("csv", csv_file(other, *lines, header=f"sentence{delimiter}stars"))
    assert "'sentence', 'stars'" in message
    message = refused(
        "csv", csv_file(other, *lines, f"one{delimiter}two{delimiter}pos", header=f"text{delimiter}label")
    )
    assert "line 14: " in message and " 3, " in message and name in message


@pytest.mark.parametrize("delimiter", [";", "\t"])
def test_a_stray_quote_swallows_rows_whatever_separates_them(delimiter: str, tmp_path: Path) -> None:
    lines = [line.replace(",", delimiter) for line in reviews()]
    lines[3] = f'"{lines[3]}'
    lines[6] = f'the train was late"{delimiter}neg'
    message = refused("csv", csv_file(tmp_path / "all.csv", *lines, header=f"text{delimiter}label"))
    assert "end like rows, first line 5" in message


def test_fields_separated_by_bars_are_named(tmp_path: Path) -> None:
    lines = [line.replace(",", "|") for line in reviews()]
    for header in ("text|label", "sentence|stars"):  # under other names, too
        assert "bars" in refused("csv", csv_file(tmp_path / "all.csv", *lines, header=header))


def test_a_first_line_that_two_separators_fit_is_refused(tmp_path: Path) -> None:
    message = refused("csv", csv_file(tmp_path / "all.csv", "a;x;b,c,d", header="text;label;x,text,label"))
    assert "commas and by semicolons" in message


def test_a_folder_of_splits_may_hold_tsv_files_but_no_split_twice(tmp_path: Path) -> None:
    csv_file(tmp_path / "train.tsv", "a\tx", "b\ty", header="text\tlabel")
    csv_file(tmp_path / "test.csv", "c,x", "d,y")
    assert sizes(read(task("csv", tmp_path))) == {"train": 2, "test": 2}
    csv_file(tmp_path / "test.tsv", "c\tx", header="text\tlabel")
    assert "both the test split" in refused("csv", tmp_path)


def test_a_delimiter_within_texts_is_none(tmp_path: Path) -> None:
    content = read(task("csv", csv_file(tmp_path / "all.csv", "a;b\tc,x", "d|e,x", "f;g,x")))
    assert sum(sizes(content).values()) == 3


def test_a_line_for_spreadsheets_is_named(tmp_path: Path) -> None:
    assert "sep=;" in refused("csv", csv_file(tmp_path / "all.csv", "a;x", header="sep=;\ntext;label"))


@pytest.mark.parametrize("header", ["text, label", "text,label\u200b", "\ufefftext,\ufefflabel", "text,label\xa0"])
def test_a_column_whose_name_only_looks_right_is_named(header: str, tmp_path: Path) -> None:
    message = refused("csv", csv_file(tmp_path / "all.csv", *reviews(), header=header))
    assert ascii(header.split(",")[1]) in message
    assert "invisible" in message


LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"0" * 64 + b"\nsize 12345\n"


@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet"])
@pytest.mark.parametrize(
    ("content", "what"),
    [
        (LFS, "git lfs pull"),
        (gzip.compress(b"text,label\na,x\n", mtime=0), "gzip"),
        ("text,label\na,x\n".encode("utf-16"), "UTF-16"),
        (b"PK\x03\x04\x14\0\0\0xl/workbook.xml", "Excel"),
        (b"<!doctype html>\n<html></html>", "web page"),
    ],
)
def test_files_that_are_something_else_are_named(kind: str, content: bytes, what: str, tmp_path: Path) -> None:
    put(tmp_path / f"train.{kind}", content)
    for path in (tmp_path, tmp_path / f"train.{kind}"):
        message = refused(kind, path)
        assert what in message
        assert str(tmp_path / f"train.{kind}") in message


def test_parquet_under_another_name_is_named(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.table({"text": ["a"], "label": ["x"]}), tmp_path / "all.csv")
    assert "parquet:" in refused("csv", tmp_path / "all.csv")
    assert "'sentence'" in refused("parquet", tmp_path / "all.csv", text_column="sentence")


def test_an_image_that_is_a_pointer_is_named(tmp_path: Path) -> None:
    for name in ("a", "b"):
        for i in range(2):
            put(tmp_path / "photos" / name / f"{i}.png", image(i + ord(name)))
    put(tmp_path / "photos" / "a" / "1.png", LFS)
    with pytest.raises(InputError, match=r"a/1\.png: the image is a Git LFS pointer"):
        prepare.prepare_data("pets", tmp_path / "data", task("folder", tmp_path / "photos"))


@pytest.mark.parametrize(
    ("lines", "named"),
    [
        ('[\n{"text": "a", "label": 1}\n]', "one object per line"),
        ('[{"text": "a", "label": 1}, 3, null]', "one object per line"),
        ('{"text": "a", "label": 0, "label": 1}', "'label' occurs twice"),
        ('{"text": "a", "label": NaN}', "nan"),
        ('{"text": "a", "label": null}\n{"text": "b", "label": 0}', "label"),
        ('{"text": "a", "label": 0}\n{"text": "b", "label": "0"}', "line 2"),
        ('{"text": "a", "label": true}', "True"),
        ('{"text": ["a"], "label": 0}', "no text"),
    ],
)
def test_json_of_another_shape_is_named(lines: str, named: str, tmp_path: Path) -> None:
    put(tmp_path / "all.jsonl", lines)
    assert named in refused("jsonl", tmp_path / "all.jsonl")


# ------------------------------------------------------------------------------------------- what prepare has to say


def test_overlap_of_train_and_test_is_in_the_manifest(tmp_path: Path) -> None:
    csv_file(tmp_path / "train.csv", *reviews(20))
    test = [
        reviews(20)[0],
        reviews(20)[1].replace("the quick", "The  quick\u200b"),
        "another text,pos",
        "and one more,neg",
    ]
    csv_file(tmp_path / "test.csv", *test)
    manifest = prepared(task("csv", tmp_path), tmp_path / "data")
    assert manifest.overlap == {"test in train": 2}
    assert describe_overlap(manifest) == ["2 of 4 examples of test also occur in train"]
    assert describe_classes(manifest) == ["neg: train 10, test 2", "pos: train 10, test 2"]


def png(pixels: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    buffer = BytesIO()
    pixels.save(buffer, format=kind, **options)
    return buffer.getvalue()


def sixteen(level: int) -> bytes:
    return png(Image.frombytes("I;16", (2, 2), level.to_bytes(2, "little") * 4))


def colours_of_sixteen_bits(high: int) -> bytes:
    """A PNG of 2 x 2 pixels, which Pillow cannot write: red, green and blue of two bytes each."""

    def chunk(name: bytes, content: bytes) -> bytes:
        checksum = zlib.crc32(name + content).to_bytes(4, "big")
        return len(content).to_bytes(4, "big") + name + content + checksum

    size = (2).to_bytes(4, "big")
    header = size + size + bytes([16, 2, 0, 0, 0])  # 16 bits, colours without transparency
    line = b"\0" + bytes([high, 7]) * 6
    parts = (chunk(b"IHDR", header), chunk(b"IDAT", zlib.compress(line * 2)), chunk(b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def animation() -> bytes:
    frames = [Image.new("L", (2, 2), shade) for shade in (0, 255)]
    return png(frames[0], "GIF", save_all=True, append_images=frames[1:])


def turned() -> bytes:
    exif = Image.Exif()
    exif[274] = 6
    return png(Image.new("RGB", (2, 3)), "JPEG", exif=exif)


@pytest.mark.parametrize(
    ("encoded", "said"),
    [
        (lambda: sixteen(4095), "eighth of the range"),
        (lambda: png(Image.new("RGBA", (2, 2), (255, 0, 0, 0))), "transparent"),
        (lambda: png(Image.new("LA", (2, 2))), "transparent"),
        (lambda: png(Image.new("CMYK", (2, 2)), "JPEG"), "CMYK"),
        (animation, "animations"),
        (turned, "orientation"),
        (lambda: png(Image.new("RGB", (2, 3)), exif=b"Exif\0\0no TIFF"), "damaged metadata"),
        (lambda: colours_of_sixteen_bits(15), "eighth of the range"),
    ],
)
def test_what_decoding_loses_of_images_is_said(encoded: Callable[[], bytes], said: str, tmp_path: Path) -> None:
    for name in ("a", "b"):
        for i in range(2):
            put(tmp_path / "photos" / name / f"{i}.png", image(i + ord(name)))
    assert prepared(task("folder", tmp_path / "photos"), tmp_path / "plain").notes == ()
    put(tmp_path / "photos" / "b" / "odd.png", encoded())
    (note,) = prepared(task("folder", tmp_path / "photos"), tmp_path / "odd").notes
    assert said in note and "odd.png" in note and note.startswith("1 images ")
    assert str(tmp_path) not in json.dumps(note)


def test_a_bright_image_of_16_bits_settles_what_the_range_is(tmp_path: Path) -> None:
    for name in ("a", "b"):
        put(tmp_path / name / "0.png", sixteen(ord(name)))
        put(tmp_path / name / "1.png", sixteen(65_535))
    assert list(image_notes(read(task("folder", tmp_path)))) == []
