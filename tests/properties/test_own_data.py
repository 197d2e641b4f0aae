"""Own data of any content: every row is read as it was written, or refused with its file; none is lost or changed."""

import contextlib
import csv
import io
import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bench.data.problems import refuse
from bench.data.sources import own
from bench.data.task_spec import MOST_MEGAPIXELS
from bench.data.tasks import Task
from bench.errors import InputError
from tests.properties.conftest import examples

characters = st.one_of(
    st.sampled_from("ab \"'\n\r\t,;|\\#\x00\x1a\u200b\u00a0\ufeff\u2028\x85\u00e9\u0301\U0001f600"),
    st.characters(exclude_categories=["Cs"]),
)
texts = st.text(characters, min_size=1, max_size=12)
labels = st.sampled_from(["good", "bad", "good ", "Good", "0", "1", "0.0", "nan", "a,b", 'a"b', "é", "e\u0301"])
rows = st.lists(st.tuples(texts, labels), min_size=1, max_size=6)


def write(folder: Path, kind: str, splits: dict[str, list[tuple[str, str]]]) -> Task:
    for name, content in splits.items():
        path = folder / f"{name}.{kind}"
        if kind == "csv":
            with path.open("w", newline="", encoding="utf-8") as file:
                csv.writer(file).writerows([("text", "label"), *content])
        else:
            lines = [json.dumps({"text": text, "label": label}, ensure_ascii=False) + "\n" for text, label in content]
            path.write_text("".join(lines), encoding="utf-8", newline="")
    return Task("mine", "text", "roberta_base", "accuracy", source=f"{kind}:{folder}")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("own")


@settings(max_examples=examples(6))
@given(kind=st.sampled_from(["csv", "jsonl"]), train=rows, test=rows, plain=st.booleans())
def test_rows_come_back_as_written_or_are_refused(
    kind: str, train: list[tuple[str, str]], test: list[tuple[str, str]], plain: bool, folder: Path
) -> None:
    if plain:  # else nearly all have labels that look alike or a class too few
        train = [
            *((text, ("good", "bad")[number % 2]) for number, (text, _) in enumerate(train)),
            ("x", "good"),
            ("y", "bad"),
        ]
        test = [("z", "bad"), *((text, "good") for text, _ in test)]
    splits = {"train": train, "test": test}
    task = write(folder, kind, splits)
    said = io.StringIO()
    try:
        with contextlib.redirect_stdout(said):
            content = own.read(task)
            refuse("mine", content, {}, MOST_MEGAPIXELS)
    except InputError as error:
        message = str(error)
    else:
        message = ""
    for path in folder.iterdir():
        path.unlink()
    if message:
        assert "mine" in message or str(folder) in message
        return
    assert content.class_names is not None
    for name, written in splits.items():
        read = content.splits[name]
        assert read.labels is not None
        got = [
            (value.decode(), content.class_names[label]) for value, label in zip(read.values, read.labels, strict=True)
        ]
        assert got == written
