"""Downloads from a server on this computer that drops, lies, stalls and changes its mind; files given by hand."""

import errno
import hashlib
import http.server
import inspect
import io
import os
import shutil
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
from huggingface_hub import constants, file_download

import bench
from bench.data.sources import download
from bench.data.sources.download import Remote, checksum_of, fetch, local_file, verify
from bench.errors import InputError

CONTENT = bytes(range(256)) * 1000 + b"the end"
OTHER = CONTENT[::-1]
SHA256 = "sha256:" + hashlib.sha256(CONTENT).hexdigest()


class Request(NamedTuple):
    """What the server was asked: the path, and the range."""

    path: str
    range: str | None


class Server(http.server.ThreadingHTTPServer):
    """Serves `content` with ranges; each fault of `faults` spoils one answer, the first the first."""

    daemon_threads = False
    block_on_close = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.content = CONTENT
        self.faults: list[Callable[[Handler], None]] = []
        self.requests: list[Request] = []
        self.stalled = threading.Event()

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class Handler(http.server.BaseHTTPRequestHandler):
    server: Server

    def log_message(self, format: str, *args: object) -> None:
        pass

    def do_GET(self) -> None:
        asked = Request(self.path, self.headers["Range"])
        self.server.requests.append(asked)
        if self.server.faults:
            self.server.faults.pop(0)(self)
        else:
            self.answer()

    def answer(self, upto: int | None = None, ranges: bool = True, length: bool = True) -> None:
        """Send what is asked for, or no more than `upto` bytes of it in spite of the length announced."""
        content, start = self.server.content, 0
        asked = self.headers["Range"]
        if ranges and asked:
            start = int(asked.removeprefix("bytes=").removesuffix("-"))
            if start >= len(content):
                self.send_response(416)
                self.send_header("Content-Range", f"bytes */{len(content)}")
                self.end_headers()
                return
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        else:
            self.send_response(200)
        if length:
            self.send_header("Content-Length", str(len(content) - start))
        self.end_headers()
        self.wfile.write(content[start:] if upto is None else content[start : start + upto])


def dropped(upto: int) -> Callable[[Handler], None]:
    return lambda handler: handler.answer(upto=upto)


def status(code: int) -> Callable[[Handler], None]:
    return lambda handler: handler.send_error(code)


def hung_up(handler: Handler) -> None:
    """Close the connection without an answer."""


def reset(handler: Handler) -> None:
    """Send 1,000 bytes and break off as a router does that has forgotten the connection."""
    handler.answer(upto=1000)
    threading.Event().wait(0.2)  # some systems drop what was not read before the reset
    handler.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    os.close(handler.connection.detach())


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield server
        finally:
            server.stalled.set()
            server.shutdown()
            thread.join()


@pytest.fixture(autouse=True)
def slept(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Let nothing wait, and note how long it would have."""
    seconds: list[float] = []
    monkeypatch.setattr(time, "sleep", seconds.append)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 1000)
    monkeypatch.setenv("no_proxy", "*")
    return seconds


def visible(folder: Path) -> list[str]:
    """What lies in a folder except the empty lock."""
    return sorted(name for name in os.listdir(folder) if name != ".file.bin.lock")


def remote(server: Server, checksum: str | None = SHA256, size: int | None = len(CONTENT)) -> Remote:
    return Remote(f"{server.address}/data/file.bin", "file.bin", checksum, size)


def checked(path: Path, folder: Path, content: bytes = CONTENT) -> None:
    assert path == folder / "file.bin"
    assert path.read_bytes() == content
    assert visible(folder) == ["file.bin"]


def ranges(server: Server) -> list[str | None]:
    return [request.range for request in server.requests]


def leave_part(folder: Path, content: bytes) -> None:
    """What an interrupted process leaves."""
    (folder / ".file.bin.part").write_bytes(content)


def test_the_library_still_has_the_function_that_resumes() -> None:
    # http_get is no headline function of huggingface_hub: where it goes away, bench/data/sources/download.py changes.
    parameters = inspect.signature(file_download.http_get).parameters
    assert {"url", "temp_file", "resume_size", "headers", "expected_size", "displayed_filename"} <= parameters.keys()


def test_a_file_is_downloaded_once(server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "new" / "folder"
    for _ in range(2):
        checked(fetch(remote(server), folder), folder)
    assert server.requests == [Request("/data/file.bin", None)]
    assert capsys.readouterr() == ("", f"downloading file.bin (256,007 bytes) from {server.address}/data/file.bin\n")


def test_a_file_that_does_not_verify_is_downloaded_again(server: Server, tmp_path: Path) -> None:
    for wrong in (OTHER, CONTENT[:-1]):
        (tmp_path / "file.bin").write_bytes(wrong)
        checked(fetch(remote(server), tmp_path), tmp_path)
    assert len(server.requests) == 2


@pytest.mark.parametrize("length", [True, False])
@pytest.mark.parametrize("size", [len(CONTENT), None])
def test_nothing_need_be_known_of_a_file(server: Server, tmp_path: Path, size: int | None, length: bool) -> None:
    server.faults = [lambda handler: handler.answer(length=length)]
    checked(fetch(remote(server, checksum=None, size=size), tmp_path), tmp_path)


def test_dropped_connections_are_gone_on_from(server: Server, tmp_path: Path) -> None:
    server.faults = [dropped(1000), hung_up, dropped(2000)]
    checked(fetch(remote(server), tmp_path), tmp_path)
    assert ranges(server) == [None, "bytes=1000-", "bytes=1000-", "bytes=3000-"]


def test_a_reset_connection_is_gone_on_from_as_long_as_something_comes(
    server: Server, tmp_path: Path, slept: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(download, "DELAYS", (7.0, 9.0))
    server.faults = [reset] * 4
    checked(fetch(remote(server), tmp_path), tmp_path)
    assert ranges(server) == [None, *(f"bytes={1000 * i}-" for i in range(1, 5))]
    assert slept == [7.0] * 4


@pytest.mark.parametrize("code", [500, 502, 503])
def test_a_server_in_trouble_is_asked_again_a_few_times(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, slept: list[float], code: int
) -> None:
    monkeypatch.setattr(download, "DELAYS", (1.0, 3.0, 9.0))
    leave_part(tmp_path, CONTENT[:1000])
    server.faults = [status(code)] * 4
    with pytest.raises(InputError, match=rf"answers {code} .*--from") as refusal:
        fetch(remote(server), tmp_path)
    assert remote(server).url in str(refusal.value)
    assert slept == [1.0, 3.0, 9.0]
    checked(fetch(remote(server), tmp_path), tmp_path)
    assert ranges(server) == ["bytes=1000-"] * 5


def test_a_server_that_ignores_ranges_sends_the_file_anew(server: Server, tmp_path: Path) -> None:
    server.faults = [dropped(1000), lambda handler: handler.answer(ranges=False)]
    checked(fetch(remote(server), tmp_path), tmp_path)
    assert ranges(server) == [None, "bytes=1000-"]


@pytest.mark.parametrize("code", [400, 401, 403, 404, 410])
def test_a_file_that_is_not_there_is_refused_at_once(server: Server, tmp_path: Path, code: int) -> None:
    server.faults = [status(code)]
    with pytest.raises(InputError, match=rf"file\.bin .*answers {code} .*name it file\.bin .*--from"):
        fetch(remote(server), tmp_path)
    assert len(server.requests) == 1
    assert visible(tmp_path) == []


def test_a_server_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with socket.socket() as unheard:  # bound, so that nobody else has the port, but not listening
        unheard.bind(("127.0.0.1", 0))
        with pytest.raises(InputError, match=r"Connection refused.*--from"):
            fetch(Remote(f"http://127.0.0.1:{unheard.getsockname()[1]}/x", "file.bin"), tmp_path)
    assert visible(tmp_path) == []


def test_a_library_that_is_told_to_stay_offline_is_named(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(InputError, match=r"HF_HUB_OFFLINE.*--from"):
        fetch(remote(server), tmp_path)
    assert server.requests == []


def test_a_stalled_connection_is_left(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_DOWNLOAD_TIMEOUT", 0.2)

    def stall(handler: Handler) -> None:
        handler.answer(upto=1000)
        handler.wfile.flush()
        handler.server.stalled.wait(20)

    def say_nothing(handler: Handler) -> None:
        handler.server.stalled.wait(20)

    server.faults = [stall, say_nothing]
    checked(fetch(remote(server), tmp_path), tmp_path)
    assert ranges(server) == [None, "bytes=1000-", "bytes=1000-"]


@pytest.mark.parametrize(("size", "content"), [(len(CONTENT), OTHER), (None, OTHER), (None, CONTENT[:-1])])
def test_a_wrong_checksum_is_refused_and_nothing_stays(
    server: Server, tmp_path: Path, size: int | None, content: bytes
) -> None:
    server.content = content
    with pytest.raises(InputError) as refusal:
        fetch(remote(server, size=size), tmp_path)
    actual = hashlib.sha256(content).hexdigest()
    assert SHA256.removeprefix("sha256:") in str(refusal.value) and actual in str(refusal.value)
    assert len(server.requests) == 1
    assert visible(tmp_path) == []


@pytest.mark.parametrize("checksum", [SHA256, None])
def test_a_wrong_size_is_refused_and_nothing_stays(server: Server, tmp_path: Path, checksum: str | None) -> None:
    server.content = CONTENT * 2
    with pytest.raises(InputError, match="512,014 bytes, expected are 256,007"):
        fetch(remote(server, checksum), tmp_path)
    assert len(server.requests) == 1
    assert visible(tmp_path) == []


@pytest.mark.parametrize("checksum", [SHA256, None])
def test_a_page_in_front_of_the_file_is_refused(server: Server, tmp_path: Path, checksum: str | None) -> None:
    def log_in_first(handler: Handler) -> None:
        handler.send_response(200)
        handler.send_header("Content-Length", "6")
        handler.end_headers()
        handler.wfile.write(b"<html>")

    leave_part(tmp_path, CONTENT[:1000])
    server.faults = [log_in_first] * 2
    with pytest.raises(InputError, match=r"6 bytes, expected are 256,007.*--from"):
        fetch(remote(server, checksum), tmp_path)
    assert visible(tmp_path) == []
    checked(fetch(remote(server, checksum), tmp_path), tmp_path)
    assert ranges(server) == ["bytes=1000-", None, None]


@pytest.mark.parametrize("whole", [True, False])
def test_a_transfer_in_chunks_ends_with_its_last_chunk(server: Server, tmp_path: Path, whole: bool) -> None:
    def chunked(handler: Handler) -> None:
        handler.send_response(200)
        handler.send_header("Transfer-Encoding", "chunked")
        handler.end_headers()
        for start in range(0, len(CONTENT) if whole else 50_000, 10_000):
            chunk = CONTENT[start : start + 10_000]
            handler.wfile.write(b"%x\r\n%b\r\n" % (len(chunk), chunk))
        if whole:
            handler.wfile.write(b"0\r\n\r\n")

    server.faults = [chunked]
    checked(fetch(remote(server, checksum=None, size=None), tmp_path), tmp_path)
    assert ranges(server) == ([None] if whole else [None, "bytes=50000-"])


def test_what_ends_early_without_a_length_is_refused(server: Server, tmp_path: Path) -> None:
    server.faults = [lambda handler: handler.answer(upto=1000, length=False)]
    with pytest.raises(InputError, match="1,000 bytes, expected are 256,007"):
        fetch(remote(server, checksum=None), tmp_path)
    assert visible(tmp_path) == []


def test_the_bytes_are_taken_as_they_lie_on_the_server(server: Server, tmp_path: Path) -> None:
    asked: list[str | None] = []

    def note(handler: Handler) -> None:
        asked.append(handler.headers["Accept-Encoding"])
        handler.answer()

    server.faults = [note]
    checked(fetch(remote(server), tmp_path), tmp_path)
    assert asked == ["identity"]


@pytest.mark.parametrize("code", [301, 302, 303, 307, 308])
def test_redirects_are_followed_also_when_resuming(server: Server, tmp_path: Path, code: int) -> None:
    def redirect(handler: Handler) -> None:
        handler.send_response(code)
        handler.send_header("Location", "/elsewhere")
        handler.end_headers()

    server.faults = [redirect, dropped(1000), redirect]
    checked(fetch(remote(server), tmp_path), tmp_path)
    assert server.requests == [
        ("/data/file.bin", None),
        ("/elsewhere", None),
        ("/data/file.bin", "bytes=1000-"),
        ("/elsewhere", "bytes=1000-"),
    ]


@pytest.mark.parametrize("address", ["file:///etc/hostname", "ftp://127.0.0.1/x", "data:,x", "/data/file.bin"])
def test_redirects_to_other_kinds_of_addresses_and_in_circles_are_refused(
    server: Server, tmp_path: Path, address: str
) -> None:
    def redirect(handler: Handler) -> None:
        handler.send_response(302)
        handler.send_header("Location", address)
        handler.end_headers()

    server.faults = [redirect] * 100
    with pytest.raises(InputError, match="cannot be downloaded"):
        fetch(remote(server), tmp_path)
    assert visible(tmp_path) == []
    assert len(server.requests) < 30


@pytest.mark.parametrize(
    "url", ["file:///etc/hostname", "ftp://example.org/x", "data:,x", "/etc/hostname", "", "http:///x", "http://[::1/x"]
)
def test_only_web_addresses_are_accepted(tmp_path: Path, url: str) -> None:
    with pytest.raises(InputError, match=r"cannot be downloaded: .*--from"):
        fetch(Remote(url, "file.bin"), tmp_path)
    assert visible(tmp_path) == []


@pytest.mark.parametrize(("checksum", "size"), [(SHA256, None), (SHA256, len(CONTENT)), (None, len(CONTENT))])
def test_what_an_interrupted_process_left_is_gone_on_from(
    server: Server, tmp_path: Path, checksum: str | None, size: int | None, capsys: pytest.CaptureFixture[str]
) -> None:
    leave_part(tmp_path, CONTENT[:70_000])
    checked(fetch(remote(server, checksum, size), tmp_path), tmp_path)
    assert ranges(server) == ["bytes=70000-"]
    assert "70,000" in capsys.readouterr().err


def test_where_neither_checksum_nor_size_is_known_a_later_process_starts_again(server: Server, tmp_path: Path) -> None:
    leave_part(tmp_path, OTHER[:1000])
    checked(fetch(remote(server, None, None), tmp_path), tmp_path)
    assert ranges(server) == [None]


def test_a_part_of_another_file_costs_one_more_transfer(server: Server, tmp_path: Path) -> None:
    leave_part(tmp_path, OTHER[:1000])
    checked(fetch(remote(server), tmp_path), tmp_path)
    assert ranges(server) == ["bytes=1000-", None]


def test_after_that_transfer_a_wrong_checksum_is_final(server: Server, tmp_path: Path) -> None:
    leave_part(tmp_path, OTHER[:1000])
    server.content = OTHER
    with pytest.raises(InputError, match="checksum"):
        fetch(remote(server), tmp_path)
    assert ranges(server) == ["bytes=1000-", None]
    assert visible(tmp_path) == []


def test_a_wrong_file_in_pieces_is_asked_for_twice_at_most(server: Server, tmp_path: Path) -> None:
    server.content = OTHER
    leave_part(tmp_path, OTHER[:1000])
    server.faults = [lambda handler: handler.answer(), reset]
    with pytest.raises(InputError, match="checksum"):
        fetch(remote(server), tmp_path)
    assert ranges(server) == ["bytes=1000-", None, "bytes=1000-"]
    assert visible(tmp_path) == []


def changed_to(content: bytes) -> Callable[[Handler], None]:
    def answer(handler: Handler) -> None:
        handler.server.content = content
        handler.answer()

    return answer


def test_a_file_that_changes_while_it_is_resumed_is_not_mixed(server: Server, tmp_path: Path) -> None:
    server.content = OTHER
    server.faults = [dropped(1000), changed_to(CONTENT)]
    with pytest.raises(InputError, match=r"not the expected file.*checksum"):
        fetch(remote(server), tmp_path)
    assert visible(tmp_path) == []
    checked(fetch(remote(server), tmp_path), tmp_path)


@pytest.mark.parametrize("size", [len(CONTENT), None])
def test_without_a_checksum_at_least_the_size_stays_the_same(server: Server, tmp_path: Path, size: int | None) -> None:
    server.faults = [dropped(1000), changed_to(CONTENT + b"more")]
    with pytest.raises(InputError, match="not the expected file"):
        fetch(remote(server, None, size), tmp_path)
    assert visible(tmp_path) == []


def test_where_neither_is_known_a_reset_connection_is_not_gone_on_from(server: Server, tmp_path: Path) -> None:
    server.faults = [reset]
    with pytest.raises(InputError, match="Try again"):
        fetch(remote(server, None, None), tmp_path)
    checked(fetch(remote(server, None, None), tmp_path), tmp_path)
    assert ranges(server) == [None, None]


@pytest.mark.parametrize("checksum", [SHA256, None])
def test_an_answer_with_another_range_is_not_appended(server: Server, tmp_path: Path, checksum: str | None) -> None:
    def elsewhere(handler: Handler) -> None:
        handler.send_response(206)
        handler.send_header("Content-Range", f"bytes 0-{len(CONTENT) - 1}/{len(CONTENT)}")
        handler.send_header("Content-Length", str(len(CONTENT)))
        handler.end_headers()
        handler.wfile.write(CONTENT)

    leave_part(tmp_path, CONTENT[:1000])
    server.faults = [elsewhere]
    checked(fetch(remote(server, checksum), tmp_path), tmp_path)
    assert ranges(server) == ["bytes=1000-", None]


@pytest.mark.parametrize("size", [len(CONTENT), None])
def test_a_part_that_is_already_whole_is_taken(server: Server, tmp_path: Path, size: int | None) -> None:
    leave_part(tmp_path, CONTENT)
    checked(fetch(remote(server, size=size), tmp_path), tmp_path)
    assert ranges(server) == ([] if size else [f"bytes={len(CONTENT)}-"])  # to which the server answers 416


@pytest.mark.parametrize("checksum", [SHA256, None])
def test_a_part_that_is_too_long_is_dropped(server: Server, tmp_path: Path, checksum: str | None) -> None:
    leave_part(tmp_path, CONTENT + b"more")
    checked(fetch(remote(server, checksum), tmp_path), tmp_path)
    assert ranges(server) == [f"bytes={len(CONTENT) + 4}-", None]


def test_what_does_not_fit_on_the_disk_is_refused_before_it_comes(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Usage(NamedTuple):
        free: int

    monkeypatch.setattr(shutil, "disk_usage", lambda folder: Usage(len(CONTENT) - 1001))
    with pytest.raises(InputError, match=r"256,007 more bytes .*255,006 are free"):
        fetch(remote(server), tmp_path)
    assert server.requests == []
    assert visible(tmp_path) == []
    leave_part(tmp_path, CONTENT[:1001])
    checked(fetch(remote(server), tmp_path), tmp_path)


def test_a_disk_that_is_full_before_all_has_come_is_named(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fill(*arguments: object, **keywords: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(file_download, "http_get", fill)
    with pytest.raises(InputError, match=r"No space left on device.*Make room"):
        fetch(remote(server), tmp_path)


def test_a_folder_that_cannot_be_made_is_named(server: Server, tmp_path: Path) -> None:
    (tmp_path / "occupied").write_text("")
    with pytest.raises(InputError, match="occupied"):
        fetch(remote(server), tmp_path / "occupied")


PROCESS = """
import sys
from pathlib import Path
from huggingface_hub import constants
from bench.data.sources.download import Remote, fetch
constants.DOWNLOAD_CHUNK_SIZE = 10_000
url, checksum, folder = sys.argv[1:]
fetch(Remote(url, "file.bin", checksum), Path(folder))
"""


def start(server: Server, folder: Path) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-c", PROCESS, remote(server).url, SHA256, str(folder)]
    environment = os.environ | {"PYTHONPATH": str(Path(bench.__file__).parents[1]), "HF_HUB_OFFLINE": "0"}
    return subprocess.Popen(command, env=environment, stderr=subprocess.PIPE)


def wait_for(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < end
        threading.Event().wait(0.01)


def stall_midway(handler: Handler) -> None:
    handler.answer(upto=100_000)
    handler.wfile.flush()
    handler.server.stalled.wait(30)


def part_has(folder: Path, size: int) -> bool:
    part = folder / ".file.bin.part"
    return part.exists() and part.stat().st_size == size


def test_a_killed_process_is_gone_on_from(server: Server, tmp_path: Path) -> None:
    server.faults = [stall_midway]
    with start(server, tmp_path) as process:
        wait_for(lambda: part_has(tmp_path, 100_000))
        process.kill()
    checked(fetch(remote(server), tmp_path), tmp_path)
    assert ranges(server) == [None, "bytes=100000-"]


def test_of_two_processes_one_downloads_and_the_other_waits(server: Server, tmp_path: Path) -> None:
    server.faults = [stall_midway]
    with start(server, tmp_path) as first:
        wait_for(lambda: part_has(tmp_path, 100_000))
        with start(server, tmp_path) as second:
            assert second.stderr is not None and first.stderr is not None
            assert second.stderr.readline() == b"waiting for another process that downloads file.bin\n"
            server.stalled.set()  # the first is cut off, goes on and ends
            assert (first.wait(30), second.wait(30)) == (0, 0)
            assert second.stderr.read() == b""
    checked(tmp_path / "file.bin", tmp_path)
    assert ranges(server) == [None, "bytes=100000-"]


def test_a_terminal_shows_a_bar(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    server.faults = [dropped(1000)]
    checked(fetch(remote(server), tmp_path), tmp_path)
    assert "256k/256k" in terminal.getvalue()


def test_checksums_are_the_usual_ones(tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_bytes(b"hello\n")
    # As the commands sha256sum, md5sum and git hash-object print them.
    assert checksum_of(path, "sha256") == "5891b5b522d5df086d0ff0b110fbd9d21bb4fc7163af34d08286a2e846f6be03"
    assert checksum_of(path, "md5") == "b1946ac92492d2347c6235b4d2611184"
    assert checksum_of(path, "git") == "ce013625030ba8dba906f756967f9e9ca394464a"


def test_verify_names_what_differs(tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_bytes(b"hello\n")
    url = "https://example.org/x"
    verify(Remote(url, "x"), path)
    verify(Remote(url, "x", "md5:B1946AC92492D2347C6235B4D2611184", 6), path)
    verify(Remote(url, "x", "git:ce013625030ba8dba906f756967f9e9ca394464a"), path)
    for wrong, reason in (
        (Remote(url, "x", size=7), "it has 6 bytes, expected are 7"),
        (Remote(url, "x", "md5:" + "0" * 32), f"b1946ac92492d2347c6235b4d2611184, expected is {'0' * 32}"),
        (Remote(url, "x", SHA256), SHA256.removeprefix("sha256:")),
    ):
        with pytest.raises(InputError, match=reason) as refusal:
            verify(wrong, path)
        assert str(path) in str(refusal.value)
    path.chmod(0)
    if not os.access(path, os.R_OK):  # the superuser may read everything
        with pytest.raises(InputError, match="cannot be read"):
            verify(Remote(url, "x", SHA256), path)
    for absent in (tmp_path / "absent", tmp_path):
        with pytest.raises(InputError, match="no such file"):
            verify(Remote(url, "x"), absent)


@pytest.mark.parametrize(
    ("name", "checksum"),
    [
        ("", None),
        ("..", None),
        ("a/b", None),
        ("a\\b", None),
        ("x", "sha1:" + "0" * 40),
        ("x", "md5:" + "0" * 40),
        ("x", "md5:" + "g" * 32),
        ("x", "0" * 64),
        ("x", ""),
        ("x", "sha1:"),
        ("x", "crc32:" + "0" * 8),
    ],
)
def test_a_remote_that_cannot_be_is_refused_when_it_is_written_down(name: str, checksum: str | None) -> None:
    with pytest.raises(ValueError, match="is no"):
        Remote("https://example.org/x", name, checksum)


def test_given_finds_the_file_by_its_name(tmp_path: Path) -> None:
    wanted = Remote("https://example.org/x", "file.bin", SHA256)
    assert local_file(wanted, tmp_path) is None
    below = tmp_path / "b" / "c" / "file.bin"
    below.parent.mkdir(parents=True)
    below.write_bytes(CONTENT)
    assert local_file(wanted, tmp_path) == below
    earlier = tmp_path / "b" / "a" / "file.bin"
    earlier.parent.mkdir()
    earlier.write_bytes(CONTENT)
    assert local_file(wanted, tmp_path) == earlier
    assert local_file(wanted, below) == below
    other = tmp_path / "other.bin"
    other.write_bytes(CONTENT)
    assert local_file(wanted, other) is None


def test_given_takes_the_one_that_verifies_and_refuses_if_none_does(tmp_path: Path) -> None:
    wanted = Remote("https://example.org/x", "file.bin", SHA256)
    for name, content in (("a", OTHER), ("b", CONTENT), ("c", OTHER)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file.bin").write_bytes(content)
    assert local_file(wanted, tmp_path) == tmp_path / "b" / "file.bin"
    (tmp_path / "b" / "file.bin").unlink()
    with pytest.raises(InputError) as refusal:
        local_file(wanted, tmp_path)
    assert str(tmp_path / "a" / "file.bin") in str(refusal.value)
    with pytest.raises(InputError, match="checksum"):
        local_file(wanted, tmp_path / "c" / "file.bin")


def test_importing_loads_no_heavy_library() -> None:
    code = (
        "import sys, bench.data.sources.download, bench.data.sources.archives; "
        "print([m for m in ('torch', 'numpy', 'datasets', 'huggingface_hub', 'pyarrow') if m in sys.modules])"
    )
    environment = os.environ | {"PYTHONPATH": str(Path(bench.__file__).parents[1])}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
