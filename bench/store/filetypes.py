"""What a file is by its first bytes, whatever it is called: for messages about files that cannot be read."""

from __future__ import annotations

from pathlib import Path

LFS_POINTER = "a Git LFS pointer in place of the file: run `git lfs pull` where it was cloned, or download the file"
WORKBOOK = "an Excel workbook: save its sheet as CSV in UTF-8"

SIGNATURES = (
    (b"version https://git-lfs.github.com/spec/", LFS_POINTER),
    (b"\x1f\x8b", "compressed with gzip: unpack it with gunzip"),
    (b"BZh", "compressed with bzip2: unpack it with bunzip2"),
    (b"\xfd7zXZ\x00", "compressed with xz: unpack it with unxz"),
    (b"\x28\xb5\x2f\xfd", "compressed with zstd: unpack it with unzstd"),
    (b"7z\xbc\xaf\x27\x1c", "a 7z archive: unpack it"),
    (b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", WORKBOOK),
    (b"PAR1", "a parquet file: read it with parquet:PATH"),
    (b"ARROW1", "an Arrow file: write it as parquet"),
    (b"\x89HDF", "an HDF5 file: write it as parquet"),
    (b"SQLite format 3", "an SQLite database: export the table as CSV"),
    (b"%PDF", "a PDF document"),
)
"""The first bytes of a file -> what it is and what to do about it."""


def recognised(content: bytes) -> str | None:
    """Say what a file is by its first bytes, and what to do.

    Returns None for content that no signature here begins. Half a kilobyte is enough.
    """
    if content.startswith(b"PK\x03\x04"):
        return WORKBOOK if b"xl/" in content or b"[Content_Types].xml" in content else "a zip archive: unpack it"
    ascii_in_utf16 = content[1:8:2] == bytes(4) and all(content[:8:2])  # without a byte order mark
    if ascii_in_utf16 or content.startswith((b"\xff\xfe", b"\xfe\xff")):
        return "text in UTF-16: save it as UTF-8"
    if content.lstrip()[:14].lower().startswith((b"<!doctype html", b"<html")):
        return "a web page, such as a server's error: download the file again"
    return next((kind for signature, kind in SIGNATURES if content.startswith(signature)), None)


def recognised_file(path: Path) -> str | None:
    """Say what a file is, where it can be opened."""
    try:
        with path.open("rb") as file:
            return recognised(file.read(512))
    except OSError:
        return None
