"""Reading members of official archives into memory; nothing an archive says is ever written to disk."""

from __future__ import annotations

import bz2
import contextlib
import gzip
import lzma
import os
import posixpath
import re
import stat
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass
from io import BufferedIOBase, BufferedReader
from pathlib import Path
from typing import Literal, Self

from bench.errors import InputError

COMPRESSED: dict[bytes, Callable[[BufferedReader], BufferedIOBase]] = {
    b"\x1f\x8b": lambda file: gzip.GzipFile(fileobj=file),
    b"BZh": bz2.BZ2File,
    b"\xfd7zXZ\x00": lzma.LZMAFile,
}
"""What compressed tar archives begin with, and what reads them."""

ZIPPED = (b"PK\x03\x04", b"PK\x05\x06", b"PK\x07\x08")
LONGEST_HEADER = 2**20  # bytes that a long name or a pax header of a tar member may take
STEP = 2**20
DOUBT = "The official archive is not like that: get it again from its source."


def read_members(path: Path, wanted: Callable[[str], bool], limit: int = 8 * 2**30) -> dict[str, bytes]:
    """The contents of the regular files that `wanted` accepts by name, in the archive's order.

    `path` is a tar archive (plain, gz, bz2 or xz), a zip archive, or a folder that one was extracted to, whose files
    have the names relative to it. Names have slashes and no leading './'; what macOS adds (`__MACOSX/`, `._NAME`) is
    left out. Refuses archives that are damaged, encrypted or none at all, more than `limit` bytes of contents, two
    wanted files of one name, wanted links, and, wanted or not, names and links that lead out and whatever is neither
    file nor folder nor link.
    """
    contents: dict[str, bytes] = {}
    left = limit
    with contextlib.closing(_members(path)) as members:
        for member in members:
            name = _inner_name(path, member.name)
            if member.kind == "other":
                raise InputError(
                    f"{path}: {member.name!r} is neither a file nor a folder; no data set needs that. {DOUBT}"
                )
            if member.kind == "link":
                if _leads_out(member.target):
                    raise InputError(f"{path}: the link {member.name!r} leads out of it, to {member.target!r}. {DOUBT}")
                if not _junk(name) and wanted(name):
                    raise InputError(f"{path}: {member.name!r} is a link where a file is needed. {DOUBT}")
            if member.kind != "file" or _junk(name) or not wanted(name):
                continue
            if name in contents:
                raise InputError(f"{path}: there are two files named {name!r}. {DOUBT}")
            if member.size > left:
                raise InputError(
                    f"{path}: what is needed of it has more than {limit:,} bytes; {name!r} goes beyond that. {DOUBT}"
                )
            contents[name] = _read(path, member)
            left -= member.size
    return contents


@dataclass(frozen=True)
class _Member:
    """A member as the archive states it; `target` is where a link leads, relative to the archive's top."""

    name: str
    kind: Literal["file", "folder", "link", "other"]
    size: int
    read: Callable[[int], bytes]
    target: str = ""


def _read(path: Path, member: _Member) -> bytes:
    """The content, of exactly the size that was announced and held against the limit: no header can lie about it."""
    with _refusing_damage(path):
        data = member.read(member.size + 1)
        if len(data) != member.size:
            raise EOFError(f"{member.name!r} has not the {member.size:,} bytes announced")
        return data


def _members(path: Path) -> Generator[_Member, None, None]:
    if path.is_dir():
        yield from _folder(path)
        return
    try:
        file = path.open("rb")
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror}).") from error
    with file:
        start = file.read(6)
        file.seek(0)
        with _refusing_damage(path):
            if start.startswith(ZIPPED):
                yield from _zip(path, file)
                return
            opener = next((opener for magic, opener in COMPRESSED.items() if start.startswith(magic)), None)
            if opener is None:
                yield from _tar(file)
                return
            with opener(file) as unpacked:
                yield from _tar(unpacked)


class _NoArchive(Exception):
    pass


@contextlib.contextmanager
def _refusing_damage(path: Path) -> Iterator[None]:
    try:
        yield
    except _NoArchive as error:
        raise InputError(
            f"{path} is no archive; legal are tar (plain, gz, bz2, xz), zip, and a folder that one was extracted to."
        ) from error
    except (
        tarfile.TarError,
        zipfile.BadZipFile,
        zlib.error,
        lzma.LZMAError,
        struct.error,
        EOFError,
        OSError,
        ValueError,
        OverflowError,
        RecursionError,
        NotImplementedError,  # a compression or version of zip that there is not
    ) as error:
        raise InputError(
            f"{path} is truncated or damaged; delete it and download it again ({error or type(error).__name__})."
        ) from error


class _StrictMember(tarfile.TarInfo):
    """A header that cannot be read is an error everywhere; tarfile takes all but the first for the archive's end."""

    @classmethod
    def fromtarfile(cls, archive: tarfile.TarFile) -> Self:
        try:
            return super().fromtarfile(archive)
        except tarfile.EOFHeaderError:  # type: ignore[attr-defined]
            raise
        except tarfile.HeaderError as error:
            if archive.fileobj is None or archive.fileobj.tell() <= tarfile.BLOCKSIZE:
                raise _NoArchive from error
            raise tarfile.ReadError(str(error)) from error

    def _proc_member(self, archive: tarfile.TarFile) -> Self:
        header = not (self.isreg() or self.isdir() or self.issym() or self.islnk() or self.isdev())
        if self.size < 0 or (header and self.size > LONGEST_HEADER):
            raise tarfile.ReadError(f"a header of {self.size:,} bytes")
        member: Self = super()._proc_member(archive)  # type: ignore[misc]
        if member.size < 0:
            raise tarfile.ReadError(f"a member of {member.size:,} bytes")
        return member


def _tar(file: BufferedIOBase) -> Generator[_Member, None, None]:
    # As a stream: a compressed file is unpacked once, from its begin to its end, whose checksum then counts too.
    with tarfile.open(fileobj=file, mode="r|", bufsize=STEP, tarinfo=_StrictMember) as archive:
        for info in archive:
            read = _tar_reader(archive, info)
            if info.issym():
                yield _Member(info.name, "link", 0, read, _from_top(info.name, info.linkname))
            elif info.islnk():
                yield _Member(info.name, "link", 0, read, info.linkname)
            elif info.isdir():
                yield _Member(info.name, "folder", 0, read)
            else:
                yield _Member(info.name, "file" if info.isreg() else "other", info.size, read)
    while file.read(STEP):
        pass


def _tar_reader(archive: tarfile.TarFile, info: tarfile.TarInfo) -> Callable[[int], bytes]:
    def read(most: int) -> bytes:
        content = archive.extractfile(info)
        assert content is not None, "only regular files are read"
        with content:
            return content.read(most)

    return read


def _zip(path: Path, file: BufferedIOBase) -> Generator[_Member, None, None]:
    with zipfile.ZipFile(file) as archive:
        for info in archive.infolist():
            if info.flag_bits & 0x41:
                raise InputError(f"{path}: {info.filename!r} is encrypted. {DOUBT}")
            read = _zip_reader(archive, info)
            # Only archives made on Unix (3) state a mode, and not all of those do.
            kind = stat.S_IFMT(info.external_attr >> 16) if info.create_system == 3 else 0
            if kind == stat.S_IFLNK:
                target = _from_top(info.filename, os.fsdecode(read(4096)))
                yield _Member(info.filename, "link", 0, read, target)
            elif kind not in (0, stat.S_IFREG, stat.S_IFDIR):
                yield _Member(info.filename, "other", 0, read)
            elif info.is_dir() or kind == stat.S_IFDIR:
                yield _Member(info.filename, "folder", 0, read)
            else:
                yield _Member(info.filename, "file", info.file_size, read)


def _zip_reader(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> Callable[[int], bytes]:
    def read(most: int) -> bytes:
        with archive.open(info) as content:
            return content.read(most)

    return read


def _folder(folder: Path) -> Generator[_Member, None, None]:
    top = folder.resolve()
    for place, folders, names in os.walk(folder, onerror=_unreadable):
        folders.sort()
        linked = [name for name in folders if os.path.islink(os.path.join(place, name))]
        for name in sorted([*names, *linked]):
            path = Path(place, name)
            inner = path.relative_to(folder).as_posix()
            if path.is_symlink():
                real = path.resolve()
                if not real.is_relative_to(top):
                    raise InputError(f"{path} is a link that leads out of {folder}, to {real}. Copy what it leads to.")
                path = real
            if not path.is_dir():  # a folder behind a link has its files where it is itself
                kind: Literal["file", "other"] = "file" if path.is_file() else "other"
                yield _Member(inner, kind, path.stat().st_size if kind == "file" else 0, _file_reader(path))


def _file_reader(path: Path) -> Callable[[int], bytes]:
    def read(most: int) -> bytes:
        try:
            with path.open("rb") as file:
                return file.read(most)
        except OSError as error:
            _unreadable(error)
            raise

    return read


def _unreadable(error: OSError) -> None:
    raise InputError(f"{error.filename} cannot be read ({error.strerror}).") from error


def _inner_name(path: Path, name: str) -> str:
    """The name without './', refused if it is absolute or has a component '..', with slashes of either kind."""
    if _absolute(name) or ".." in re.split(r"[/\\]", name):
        raise InputError(f"{path}: the name {name!r} leads out of it. {DOUBT}")
    return posixpath.normpath(name)


def _from_top(link: str, target: str) -> str:
    """Where a symbolic link leads, seen from the archive's top; absolute if its target is."""
    return target if _absolute(target) else posixpath.join(posixpath.dirname(link), target)


def _absolute(name: str) -> bool:
    return re.match(r"[/\\]|[A-Za-z]:", name) is not None


def _leads_out(target: str) -> bool:
    target = target.replace("\\", "/")
    return _absolute(target) or posixpath.normpath(target).split("/")[0] == ".."


def _junk(name: str) -> bool:
    parts = name.split("/")
    return "__MACOSX" in parts or parts[-1].startswith("._")
