"""What can be seen of a text, and what a file is by its first bytes."""

import pytest

from bench.data.visible import visible
from bench.store.filetypes import recognised


@pytest.mark.parametrize(
    "text", ["", " ", "\xa0", "\u200b", "\ufeff", "\x07\x00", "\u2060\u00ad", "\u2800", "\u3164", "\ufe0f"]
)
def test_nothing_is_visible_of_it(text: str) -> None:
    assert visible(text) == ""


@pytest.mark.parametrize(
    "text", ["a b", " a b", "a  b ", "a\xa0b", "a\tb\n", "\ufeffa b", "a\u200b b", "a \u200e b", "a\u3000b", "\x00a b"]
)
def test_texts_that_look_alike(text: str) -> None:
    assert visible(text) == "a b"


def test_what_differs_visibly_stays_apart() -> None:
    texts = [
        "caf\xe9",
        "cafe",
        "Caf\xe9",
        "caf \xe9",
        "\U0001f642",
        "\U0001f641",
        "0",
        "O",
        "\u0645\u0627",
        "x\xb2",
        "x2",
    ]
    assert len({visible(text) for text in texts}) == len(texts)
    assert visible("cafe\u0301") == visible("caf\xe9")


@pytest.mark.parametrize(
    ("content", "what"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 3\n", "git lfs pull"),
        (b"\x1f\x8b\x08\x00", "gzip"),
        (b"PK\x03\x04......xl/workbook.xml", "Excel"),
        (b"PK\x03\x04......data.csv", "zip"),
        (b"PAR1\x15\x04", "parquet"),
        (b"\xff\xfet\x00e\x00x\x00", "UTF-16"),
        ("text,label".encode("utf-16-le"), "UTF-16"),
        (b"\n<!DOCTYPE html><html>", "web page"),
        (b"<HTML>", "web page"),
    ],
)
def test_files_are_recognised_by_their_first_bytes(content: bytes, what: str) -> None:
    named = recognised(content)
    assert named is not None and what in named


@pytest.mark.parametrize(
    "content", [b"", b"text,label\n", b'{"text": 1}', b"\x89PNG\r\n\x1a\n", (80).to_bytes(8, "little") + b"{}"]
)
def test_other_content_is_not_taken_for_something_else(content: bytes) -> None:
    assert recognised(content) is None
