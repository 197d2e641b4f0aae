"""Reading members of official archives into memory; nothing an archive says is ever written to disk."""

from __future__ import annotations

import bz2
import contextlib
import functools
import gzip
import lzma
import os
import posixpath
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import IO, Any, NamedTuple, Self

from bench.errors import InputError

COMPRESSED: dict[bytes, Callable[..., Any]] = {
    b"\x1f\x8b": gzip.open,
    b"BZh": bz2.open,
    b"\xfd7zXZ\x00": lzma.open,
}
"""What compressed tar archives begin with, and what reads them."""

DAMAGE = (tarfile.TarError, zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError, OSError, ValueError, RuntimeError)
"""What the libraries raise over archives that they cannot read; RuntimeError is zipfile's, for encrypted members."""

STEP = 2**20
GET_AGAIN = "The official archive is not like that: get it again from its source."


def read_members(path: Path, is_needed: Callable[[str], bool], limit: int = 8 * 2**30) -> dict[str, bytes]:
    """Read the files that `is_needed` accepts by name, in the archive's order.

    `path` is a tar archive (plain, gz, bz2 or xz), a zip archive, or a folder that one was extracted to, whose files
    have the names relative to it. Names have slashes and no leading './'; what macOS adds (`__MACOSX/`, `._NAME`) is
    left out. Refuses what is damaged, encrypted or no archive at all, more than `limit` bytes of contents, two needed
    files of one name, and needed links and devices.
    """
    contents: dict[str, bytes] = {}
    remaining = limit
    with contextlib.closing(_members(path)) as members:
        for member in members:
            name = posixpath.normpath(member.name)
            if _added_by_macos(name) or not is_needed(name):
                continue
            if not member.regular:
                raise InputError(f"{path}: {name!r} is a link or a device where a file is needed. {GET_AGAIN}")
            if name in contents:
                raise InputError(f"{path}: there are two files named {name!r}. {GET_AGAIN}")
            remaining -= member.size
            if remaining < 0:
                raise InputError(
                    f"{path}: what is needed of it has more than {limit:,} bytes; {name!r} goes beyond that. "
                    f"{GET_AGAIN}"
                )
            with _naming_damage(path), member.open() as file:
                contents[name] = file.read(member.size)
    return contents


class _Member(NamedTuple):
    """Describe a member of an archive that is no folder.

    It is `regular` if it is a file, and neither a link nor a device.
    """

    name: str
    regular: bool
    size: int
    open: Callable[[], Any]


def _members(path: Path) -> Generator[_Member, None, None]:
    with _naming_damage(path):
        if path.is_dir():
            yield from _in_folder(path)
            return
        with path.open("rb") as file:
            start = file.read(6)
        if start.startswith(b"PK"):
            yield from _in_zip(path)
            return
        # A zip archive begins with PK, a compressed tar with its magic number; a plain tar has its own further on, and
        # whatever is none of them is refused when tarfile reads it.
        opener = next((opener for magic, opener in COMPRESSED.items() if start.startswith(magic)), open)
        with opener(path, "rb") as file:
            yield from _in_tar(file)


@contextlib.contextmanager
def _naming_damage(path: Path) -> Iterator[None]:
    try:
        yield
    except DAMAGE as error:
        raise InputError(
            f"{path} cannot be read ({error or type(error).__name__}). Legal are tar (plain, gz, bz2, xz), zip, and a "
            "folder that one was extracted to. An archive is truncated or damaged; delete it and download it again."
        ) from error


class _StrictMember(tarfile.TarInfo):
    """A header whose damage is an error everywhere.

    Python's tarfile takes a header that cannot be read, unless it is the first, for the archive's end.
    """

    @classmethod
    def fromtarfile(cls, archive: tarfile.TarFile) -> Self:
        try:
            return super().fromtarfile(archive)
        except tarfile.EOFHeaderError:  # type: ignore[attr-defined]
            raise
        except tarfile.HeaderError as error:
            raise tarfile.ReadError(str(error)) from error


def _in_tar(file: IO[bytes]) -> Iterator[_Member]:
    # As a stream: a compressed file is unpacked once, from its begin to its end, whose checksum then counts too.
    with tarfile.open(fileobj=file, mode="r|", bufsize=STEP, tarinfo=_StrictMember) as archive:
        for info in archive:
            if not info.isdir():
                yield _Member(info.name, info.isreg(), info.size, functools.partial(archive.extractfile, info))
    while file.read(STEP):
        pass


def _in_zip(path: Path) -> Iterator[_Member]:
    with zipfile.ZipFile(path) as archive:
        for info in archive.infolist():
            if not info.is_dir():
                # Archives made on Unix state what a member is; where nothing is stated, it is a file.
                regular = stat.S_IFMT(info.external_attr >> 16) in (0, stat.S_IFREG)
                yield _Member(info.filename, regular, info.file_size, functools.partial(archive.open, info))


def _in_folder(folder: Path) -> Iterator[_Member]:
    """Walk a folder that an archive was extracted to.

    Links within it are followed to files, not to folders, whose files have a place of their own.
    """
    for current, folders, names in os.walk(folder, onerror=_raise):
        folders.sort()
        for name in sorted([*names, *folders]):
            path = Path(current, name)
            if path.is_symlink() and not path.resolve().is_relative_to(folder.resolve()):
                raise InputError(
                    f"{path} is a link that leads out of {folder}, to {path.resolve()}. Copy what it leads to."
                )
            if not path.is_dir():
                inner = path.relative_to(folder).as_posix()
                yield _Member(inner, path.is_file(), path.stat().st_size, functools.partial(path.open, "rb"))


def _raise(error: OSError) -> None:
    raise error


def _added_by_macos(name: str) -> bool:
    parts = name.split("/")
    return "__MACOSX" in parts or parts[-1].startswith("._")
