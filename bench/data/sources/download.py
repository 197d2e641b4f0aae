"""Files from their official sources: resumed after an interruption, verified, and put in place whole or not at all."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from bench import __version__
from bench.errors import InputError
from bench.store.files import sync

DIGITS = {"sha256": 64, "md5": 32, "git": 40}
"""The kinds of checksums and how many hex digits each has; git is the sha1 of a git blob."""

DELAYS = (1.0, 2.0, 4.0, 8.0)
"""Seconds to wait before each further try; a try that brought the file further starts them anew."""


@dataclass(frozen=True)
class Remote:
    """A file on the web.

    It is kept under `name`. `checksum` is `sha256:HEX`, `md5:HEX` or `git:HEX`, the last of them the sha1 of a git
    blob; `size` is in bytes. Both are None where they are not known.
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
    """Compute the checksum of a file in hex.

    `kind` is sha256, md5, or git for the sha1 of the file as a git blob.
    """
    with path.open("rb") as file:
        # None of them has to keep a secret, and some systems allow md5 and sha1 only when told so.
        digest = hashlib.new("sha1" if kind == "git" else kind, usedforsecurity=False)
        if kind == "git":
            digest.update(b"blob %d\0" % os.fstat(file.fileno()).st_size)
        return hashlib.file_digest(file, lambda: digest).hexdigest()


def verify(remote: Remote, path: Path) -> None:
    """Refuse a file that is not the remote one.

    It must be there and have the size and the checksum, as far as they are known.
    """
    if fault := _fault(remote, path):
        raise InputError(f"{path} is not the file at {remote.url}: {fault}. Delete it and get it again.")


def local_file(remote: Remote, location: Path) -> Path | None:
    """Find the verified file among those the user has.

    `location` is that file, or a folder with files of its name in it or further down: the first that verifies, in the
    order of their paths, is returned. Returns None if there is no file of the name. Refuses files of the name of which
    none verifies.
    """
    if location.is_dir():
        below = sorted(Path(folder) / remote.name for folder, _, names in os.walk(location) if remote.name in names)
        candidates = [path for path in below if path.is_file()]
    else:
        candidates = [location] if location.name == remote.name else []
    fitting = next((path for path in candidates if _fault(remote, path) is None), None)
    if fitting is None and candidates:
        verify(remote, candidates[0])  # refuses it
    return fitting


def fetch(remote: Remote, folder: Path) -> Path:
    """Download the file to `folder/remote.name` and verify it.

    A file that is there already is verified only. An interrupted download is continued, also by a later process. Of
    several processes that want the same file, one downloads it while the others wait. Refuses a file that the server
    does not give after a few tries, that does not fit on the disk, or that has another size or checksum than announced.
    """
    from filelock import FileLock, Timeout

    path = folder / remote.name
    part = folder / f".{remote.name}.part"
    if _fault(remote, path) is None:
        return path
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder / f".{remote.name}.lock")
        try:
            held = lock.acquire(blocking=False)
        except Timeout:
            print(f"waiting for another process that downloads {remote.name}", file=sys.stderr)
            held = lock.acquire()
        with held:
            if _fault(remote, path) is not None:  # else another process was faster
                _download(remote, part)
                sync(part)
                os.replace(part, path)
                sync(folder)
    except OSError as error:
        raise InputError(
            f"{path} cannot be written ({error.strerror or error}). Make room or name another folder."
        ) from error
    return path


class _Outcome(NamedTuple):
    """How a transfer ended.

    `whole` says that the server has nothing more to send, `reason` what went wrong, `may_pass` that another try may
    succeed.
    """

    whole: bool
    reason: str | None = None
    may_pass: bool = False


def _download(remote: Remote, part: Path) -> None:
    """Make `part` the whole, verified file, going on from what it holds.

    Example: of 5,000 bytes an earlier process left 1,000. The first try asks for the rest and breaks off at 3,000; that
    is progress, so the second try asks for what is missing from there on. If the checksum of the 5,000 bytes is wrong,
    the file may have changed between the pieces: they are dropped and the file is asked for once more, as a whole. If
    that is wrong, too, the server has another file.
    """
    resumable = remote.checksum is not None or remote.size is not None
    delays, dropped = iter(DELAYS), False
    _check_space_and_announce(remote, part)
    while True:
        if not resumable:
            part.unlink(missing_ok=True)  # nothing could tell whether what comes next belongs to it
        start = _size(part)
        outcome = _transfer(remote, part)
        if outcome.whole:
            fault = _fault(remote, part) or outcome.reason
            if fault is None:
                return
            part.unlink()
            if start == 0 or dropped:
                raise _refused(remote, f"what came is not the expected file: {fault}")
            dropped = True  # what was put together from several transfers gets a second chance, once
            continue
        # A try that brought the file further is followed by another, and a server in trouble is asked a few times more.
        # Anything else is refused at once: the library has itself tried several times to open the connection.
        progress = resumable and _size(part) > start
        if progress:
            delays = iter(DELAYS)
        delay = next(delays, None) if progress or outcome.may_pass else None
        if delay is None:
            if _size(part) == 0:
                part.unlink()
            raise _refused(remote, str(outcome.reason))
        time.sleep(delay)


def _transfer(remote: Remote, part: Path) -> _Outcome:
    """Append what is missing of a file.

    The library tries several times while the connection breaks off.
    """
    from huggingface_hub.errors import HfHubHTTPError
    from huggingface_hub.file_download import http_get

    # The bytes as they lie on the server, since those are what checksum, size and resuming refer to.
    headers = {"User-Agent": f"adaptation-bench/{__version__}", "Accept-Encoding": "identity"}
    try:
        with part.open("ab") as file:
            http_get(
                remote.url,
                file,
                resume_size=file.tell(),
                headers=headers,
                expected_size=remote.size,
                displayed_filename=remote.name,
            )
    except HfHubHTTPError as error:
        status = error.response.status_code
        if status == 416 and _size(part) > 0:  # the server has no more bytes than are here
            return _Outcome(whole=True)
        return _Outcome(False, f"the server answers {status} {error.response.reason_phrase}", may_pass=status >= 500)
    # The library's HTTP client, httpx or httpx2 depending on its version, has errors of its own.
    except Exception as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise  # of the disk
        # A plain OSError says that all came, but not as many bytes as were expected.
        return _Outcome(type(error) is OSError, str(error) or type(error).__name__)
    return _Outcome(whole=True)


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _fault(remote: Remote, path: Path) -> str | None:
    """Say what is wrong with a file, None if nothing is.

    The size is compared first.
    """
    if not path.is_file():
        return "there is no such file"
    size = path.stat().st_size
    if remote.size is not None and size != remote.size:
        return f"it has {size:,} bytes, expected are {remote.size:,}"
    if remote.checksum is not None:
        kind, _, expected = remote.checksum.partition(":")
        try:
            actual = checksum_of(path, kind)
        except OSError as error:
            return f"it cannot be read ({error.strerror})"
        if actual != expected.lower():
            return f"its {kind} checksum is {actual}, expected is {expected.lower()}"
    return None


def _refused(remote: Remote, reason: str) -> InputError:
    return InputError(
        f"{remote.url} cannot be downloaded: {reason}. Try again (it goes on from what came), or download it "
        f"elsewhere, name it {remote.name} and give it as --from FILE_OR_FOLDER."
    )


def _check_space_and_announce(remote: Remote, part: Path) -> None:
    start, free = _size(part), shutil.disk_usage(part.parent).free
    if remote.size is not None and remote.size - start > free:
        raise InputError(
            f"{remote.name} needs {remote.size - start:,} more bytes in {part.parent}, where {free:,} are free. "
            "Make room or name another data folder."
        )
    size = "of unknown size" if remote.size is None else f"{remote.size:,} bytes"
    here = f", {start:,} of them already here" if start else ""
    print(f"downloading {remote.name} ({size}{here}) from {remote.url}", file=sys.stderr, flush=True)
