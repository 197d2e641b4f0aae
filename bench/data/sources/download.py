"""Files from their official sources: resumed after an interruption, verified, and put in place whole or not at all."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import http.client
import os
import re
import shutil
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from email.message import Message
from io import FileIO
from pathlib import Path
from urllib.parse import urlsplit

from bench import __version__
from bench.errors import InputError
from bench.store.files import sync

DIGITS = {"sha256": 64, "md5": 32, "git": 40}
"""The kinds of checksums and how many hex digits each has; git is the sha1 of a git blob."""

DELAYS = (1.0, 2.0, 4.0, 8.0)
"""Seconds to wait before each further try; a try that brought the file further than any before starts them anew."""

TIMEOUT = 60.0
"""Seconds in which a connection has to bring something."""

Progress = Callable[[int, int | None], None]
"""Is told how many bytes there are, and of how many, None while that is not known."""

CHUNK = 2**20
TEMPORARY = (408, 425, 429)  # these statuses, and those from 500 on, may go away by themselves


@dataclass(frozen=True)
class Remote:
    """A file on the web: its address, its name here, its checksum and its size in bytes where they are known.

    `checksum` is `sha256:HEX`, `md5:HEX` or `git:HEX`, the last of them the sha1 of a git blob.
    """

    url: str
    name: str
    checksum: str | None = None
    size: int | None = None

    def __post_init__(self) -> None:
        if self.name in ("", ".", "..") or re.search(r"[/\\\0]", self.name):
            raise ValueError(f"{self.name!r} is no plain file name")
        if self.checksum is not None:
            kind, _, value = self.checksum.partition(":")
            if not re.fullmatch(f"[0-9a-fA-F]{{{DIGITS.get(kind, 0)}}}", value) or not value:
                raise ValueError(f"{self.checksum!r} is no checksum; legal are {', '.join(DIGITS)}, ':' and hex digits")


def checksum_of(path: Path, kind: str) -> str:
    """The sha256, the md5 or the git blob sha1 (`kind` git) of a file's bytes, in hex."""
    if kind not in DIGITS:
        raise InputError(f"there is no checksum of kind {kind!r}. Legal: {', '.join(DIGITS)}.")
    with path.open("rb") as file:
        # None of them has to keep a secret, and some systems allow md5 and sha1 only when told so.
        digest = hashlib.new("sha1" if kind == "git" else kind, usedforsecurity=False)
        if kind == "git":
            digest.update(b"blob %d\0" % os.fstat(file.fileno()).st_size)
        while chunk := file.read(CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def verify(remote: Remote, path: Path) -> None:
    """Refuse a file that is missing or whose size or checksum, as far as they are known, is not the remote file's."""
    if fault := _fault(remote, path):
        raise InputError(f"{path} is not the file at {remote.url}: {fault}. Delete it and get it again.")


def given(remote: Remote, place: Path) -> Path | None:
    """The verified file among those the user has: `place` itself, or in that folder, or anywhere below; None if absent.

    Files are found by the remote file's name. Of several in one folder's subfolders the first, in order of their paths,
    that verifies counts. Refuses a place that does not exist, and files of that name of which none verifies.
    """
    if not place.exists():
        raise InputError(f"{place} does not exist; --from takes a file or a folder that holds {remote.name}.")
    if not place.is_dir():
        found = [place] if place.name == remote.name else []
    else:
        below = sorted(Path(folder) / remote.name for folder, _, names in os.walk(place) if remote.name in names)
        direct = place / remote.name
        found = [path for path in (direct, *(path for path in below if path != direct)) if path.is_file()]
    for path in found:
        if _fault(remote, path) is None:
            return path
    if found:
        verify(remote, found[0])
    return None


def fetch(remote: Remote, folder: Path) -> Path:
    """The verified file `folder/remote.name`, downloaded unless it is there already.

    What an interrupted download left is gone on from, also in a later process; of several processes that want the same
    file one downloads it while the others wait. Refuses addresses other than http and https, what the server does not
    give after a few tries, what does not fit on the disk, and what is not of the size and checksum announced.
    """
    path = folder / remote.name
    if path.exists() and _fault(remote, path) is None:
        return path
    _check_address(remote)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with _locked_part(remote, folder) as part:
            if not path.exists() or _fault(remote, path) is not None:  # else another process was faster
                _download(remote, part)
                sync(part.path)
                os.replace(part.path, path)
                sync(folder)
    except OSError as error:
        raise InputError(
            f"{path} cannot be written ({error.strerror or error}). Make room or name another folder."
        ) from error
    return path


class _Dropped(Exception):
    """A try that failed in a way that the next one may not; `reached` says whether the server answered at all."""

    def __init__(self, reason: str, reached: bool = True) -> None:
        super().__init__(reason)
        self.reached = reached


@dataclass(frozen=True)
class _Part:
    """What came so far, open and locked, and beside it which version of which address it is the beginning of."""

    path: Path
    file: FileIO

    @property
    def size(self) -> int:
        return self.file.seek(0, os.SEEK_END)

    @property
    def version_path(self) -> Path:
        return self.path.with_name(self.path.name + ".version")

    def version(self, url: str) -> str:
        """The stored ETag or Last-Modified, empty if there is none or it is another address's."""
        try:
            stored, _, version = self.version_path.read_text(encoding="utf-8").partition("\n")
        except (FileNotFoundError, UnicodeDecodeError):
            return ""
        return version if stored == url else ""

    def start_again(self, url: str = "", version: str = "") -> None:
        """Drop what came; the name of the new version, if it has one, is stored before any of its bytes are."""
        self.file.truncate(0)
        self.version_path.unlink(missing_ok=True)
        if version:
            self.version_path.write_text(f"{url}\n{version}", encoding="utf-8")

    def append(self, chunk: bytes) -> None:
        self.file.seek(0, os.SEEK_END)
        rest = memoryview(chunk)
        while rest:
            rest = rest[self.file.write(rest) :]


@contextlib.contextmanager
def _locked_part(remote: Remote, folder: Path) -> Iterator[_Part]:
    path = folder / f".{remote.name}.part"
    while True:
        with FileIO(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666), "r+") as file:
            _lock(file, remote)
            # While this process waited, the one that held the lock may have renamed or removed the file.
            if not path.exists() or not os.path.samestat(os.fstat(file.fileno()), path.stat()):
                continue
            part = _Part(path, file)
            try:
                yield part
            finally:
                if not path.exists() or part.size == 0:
                    part.version_path.unlink(missing_ok=True)
                    path.unlink(missing_ok=True)
            return


def _lock(file: FileIO, remote: Remote) -> None:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        print(f"waiting for another process that downloads {remote.name}", file=sys.stderr)
        fcntl.flock(file, fcntl.LOCK_EX)
    except OSError:
        pass  # some network file systems have no locks; the checksum still guards the result


def _download(remote: Remote, part: _Part) -> None:
    """Make the part the whole file; one put together from several transfers gets a second chance."""
    while True:
        pieced = _receive(remote, part)
        fault = _fault(remote, part.path)
        if fault is None:
            return
        part.start_again()
        if not pieced:
            raise _refused(remote, f"what came is not the expected file: {fault}")


def _receive(remote: Remote, part: _Part) -> bool:
    """Transfer until the part is complete; says whether it was put together from several transfers."""
    if remote.checksum is None and not part.version(remote.url):
        part.start_again()  # nothing could tell whether what comes next belongs to it
    if remote.size is not None:
        if part.size > remote.size:
            part.start_again()
        if part.size == remote.size:
            return True
        _check_space(remote, part, remote.size)
    furthest, failures, reached = part.size, 0, False
    with _progress(remote) as progress:
        while True:
            try:
                return _transfer(remote, part, progress)
            except _Dropped as drop:
                reached = reached or drop.reached
                if not reached:  # without the internet, further tries would only delay the message
                    raise _refused(remote, str(drop)) from drop
                if part.size > furthest + CHUNK:
                    furthest, failures = part.size, 0
                if failures == len(DELAYS):
                    raise _refused(remote, f"{drop}; this was try {failures + 1} without success") from drop
                time.sleep(DELAYS[failures])
                failures += 1


def _transfer(remote: Remote, part: _Part, progress: Progress) -> bool:
    """Ask for what is missing and append it; False if the server began with the first byte instead."""
    have = part.size
    version = part.version(remote.url)
    try:
        response = _ask(remote.url, have, version)
    except urllib.error.HTTPError as error:
        with error:
            if error.code == 416 and have:
                if _length(error.headers) == have:
                    return True
                part.start_again()
                raise _Dropped("the server has no more than what is here, which is of another version") from error
            reason = f"the server answers {error.code} {error.reason}"
            if error.code >= 500 or error.code in TEMPORARY:
                raise _Dropped(reason) from error
            raise _refused(remote, reason) from error
    with response:
        total = _length(response.headers)
        resumed = response.status == 206
        if resumed and (_first_byte(response.headers) != have or not _same_version(version, response.headers)):
            part.start_again()
            raise _Dropped("the server answers with another range or version than was asked for")
        # What came before is kept: this may be the page of a proxy or a login that stands in front of the file.
        if total is not None and remote.size not in (None, total):
            raise _refused(remote, f"the server has {total:,} bytes, expected are {remote.size:,}")
        if not resumed:
            part.start_again(remote.url, _version(response.headers))
        total = remote.size if total is None else total
        if total is not None:
            _check_space(remote, part, total)
        progress(part.size, total)
        for chunk in _chunks(response, None if total is None else total - part.size):
            part.append(chunk)
            progress(part.size, total)
    if total is not None and part.size < total:
        raise _Dropped(f"the connection ended after {part.size:,} of {total:,} bytes")
    return resumed


def _ask(url: str, have: int, version: str) -> http.client.HTTPResponse:
    headers = {"User-Agent": f"adaptation-bench/{__version__}"}
    if have:
        headers["Range"] = f"bytes={have}-"
        if version:
            headers["If-Range"] = version
    # Not urlopen, which also knows file:, ftp: and data:, to which a server might redirect.
    opener = urllib.request.OpenerDirector()
    for handler in (
        urllib.request.ProxyHandler,
        urllib.request.UnknownHandler,
        urllib.request.HTTPHandler,
        urllib.request.HTTPSHandler,
        urllib.request.HTTPDefaultErrorHandler,
        urllib.request.HTTPRedirectHandler,
        urllib.request.HTTPErrorProcessor,
    ):
        opener.add_handler(handler())
    try:
        response = opener.open(urllib.request.Request(url, headers=headers), timeout=TIMEOUT)
    except urllib.error.HTTPError:
        raise
    except urllib.error.URLError as error:
        reset = isinstance(error.reason, ConnectionError) and not isinstance(error.reason, ConnectionRefusedError)
        raise _Dropped(f"the server cannot be reached ({error.reason})", reached=reset) from error
    except (OSError, http.client.HTTPException) as error:
        raise _Dropped(_broken(error)) from error
    assert isinstance(response, http.client.HTTPResponse)
    return response


def _chunks(response: http.client.HTTPResponse, missing: int | None) -> Iterator[bytes]:
    """What comes, as it comes, but no more than `missing` bytes: a server that sends more is not waited for."""
    while missing is None or missing > 0:
        try:
            chunk = response.read1(CHUNK if missing is None else min(CHUNK, missing))
        except (OSError, http.client.HTTPException) as error:
            raise _Dropped(_broken(error)) from error
        if not chunk:
            return
        if missing is not None:
            missing -= len(chunk)
        yield chunk


def _broken(error: Exception) -> str:
    if isinstance(error, TimeoutError):
        return f"nothing came for {TIMEOUT:g} seconds"
    return f"the connection broke ({error or type(error).__name__})"


def _length(headers: Message) -> int | None:
    """How long the whole file is, from the headers of a whole or a partial answer; None if they do not say."""
    if partial := headers.get("Content-Range"):
        match = re.fullmatch(r"bytes\s+(?:\d+-\d+|\*)/(\d+)", partial.strip())
        return int(match[1]) if match else None
    length = headers.get("Content-Length", "").strip()
    return int(length) if re.fullmatch(r"\d+", length) else None


def _first_byte(headers: Message) -> int | None:
    match = re.match(r"\s*bytes\s+(\d+)-", headers.get("Content-Range", ""))
    return int(match[1]) if match else None


def _version(headers: Message) -> str:
    """What If-Range may name: the ETag unless it is a weak one, else the date of the last change, else nothing."""
    tag = str(headers.get("ETag", "")).strip()
    return tag if tag.startswith('"') else str(headers.get("Last-Modified", "")).strip()


def _same_version(version: str, headers: Message) -> bool:
    found = str(headers.get("ETag" if version.startswith('"') else "Last-Modified", "")).strip()
    return not version or not found or found == version


def _fault(remote: Remote, path: Path) -> str | None:
    """What is wrong with a file, None if nothing is; the size is compared first."""
    if not path.is_file():
        return "there is no such file"
    size = path.stat().st_size
    if remote.size is not None and size != remote.size:
        return f"it has {size:,} bytes, expected are {remote.size:,}"
    if remote.checksum is not None:
        kind, _, expected = remote.checksum.partition(":")
        try:
            found = checksum_of(path, kind)
        except OSError as error:
            return f"it cannot be read ({error.strerror})"
        if found != expected.lower():
            return f"its {kind} checksum is {found}, expected is {expected.lower()}"
    return None


def _refused(remote: Remote, reason: str) -> InputError:
    return InputError(
        f"{remote.url} cannot be downloaded: {reason}. Try again (it goes on from what came), or download it "
        f"elsewhere, name it {remote.name} and give it as --from FILE_OR_FOLDER."
    )


def _check_address(remote: Remote) -> None:
    try:
        address = urlsplit(remote.url)
        legal = address.scheme in ("http", "https") and bool(address.hostname) and address.port != 0
        legal = legal and re.fullmatch(r"[!-~]*", remote.url) is not None
    except ValueError:
        legal = False
    if not legal:
        raise InputError(f"{remote.url!r} is no address to download from; legal are http:// and https:// ones.")


def _check_space(remote: Remote, part: _Part, total: int) -> None:
    folder = part.path.parent
    free = shutil.disk_usage(folder).free
    if total - part.size > free:
        raise InputError(
            f"{remote.name} needs {total - part.size:,} more bytes in {folder}, where {free:,} are free. "
            "Make room or name another data folder."
        )


@contextlib.contextmanager
def _progress(remote: Remote) -> Iterator[Progress]:
    """A bar on a terminal; elsewhere one line at the begin."""
    if not sys.stderr.isatty():
        announced = False

        def announce(have: int, total: int | None) -> None:
            nonlocal announced
            if not announced:
                size = "of unknown size" if total is None else f"{total:,} bytes"
                here = f", {have:,} of them already here" if have else ""
                print(f"downloading {remote.name} ({size}{here}) from {remote.url}", file=sys.stderr, flush=True)
            announced = True

        yield announce
        return

    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, TextColumn, TimeRemainingColumn, TransferSpeedColumn
    from rich.progress import Progress as Bars

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
    with Bars(*columns, console=Console(stderr=True)) as bars:
        bar = bars.add_task(remote.name, total=None)
        yield lambda have, total: bars.update(bar, completed=have, total=total)
