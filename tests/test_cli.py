"""What the commands have in common: folders that cannot be used, and standard streams that are closed."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from bench import cli, collate, grid, status
from bench.errors import InputError


@pytest.mark.parametrize("option", ["--store", "--results", "--data"])
@pytest.mark.parametrize("main", [grid.main, status.main, collate.main])
def test_a_folder_whose_name_is_too_long_is_refused(main: object, option: str, tmp_path: Path) -> None:
    assert callable(main)
    with pytest.raises(InputError, match="too long for the file system"):
        main(["--gin", "quickstart.gin", option, str(tmp_path / ("a" * 300))])


def test_a_folder_is_refused_that_holds_no_name_so_long(tmp_path: Path) -> None:
    cli.check_writable("--store", tmp_path / "new", "a" * 200)
    with pytest.raises(InputError, match="--store"):
        cli.check_writable("--store", tmp_path / "new", "a" * 300)
    with pytest.raises(InputError, match="--results"):
        cli.check_results(tmp_path, "a" * 250)  # what is written beside NAME.md is longer
    with pytest.raises(InputError, match="--results"):
        cli.check_results(tmp_path, "a", "short", "方" * 100)  # 300 bytes
    assert not list(tmp_path.iterdir())


def test_a_link_to_a_folder_that_is_gone_is_refused(tmp_path: Path) -> None:
    """Else the tables of a grid that has run for days could not be written."""
    link = tmp_path / "results"
    link.symlink_to(tmp_path / "unmounted")
    for folder in (link, link / "below"):
        with pytest.raises(InputError, match="--results"):
            cli.check_results(folder, "name")
    assert [path.name for path in tmp_path.iterdir()] == ["results"]
    (tmp_path / "unmounted").mkdir()
    cli.check_results(link, "name")


def test_a_group_members_folder_is_refused_with_what_its_owner_can_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "runs"
    folder.mkdir()
    folder.chmod(0o755)
    assert cli.shared_hint(folder) == ""  # one's own
    monkeypatch.setattr(os, "getuid", lambda: folder.stat().st_uid + 1)
    monkeypatch.setattr(os, "getgroups", lambda: [folder.stat().st_gid])
    assert "umask 002" in cli.shared_hint(folder)
    folder.chmod(0o775)
    assert cli.shared_hint(folder) == ""
    folder.chmod(0o755)
    monkeypatch.setattr(os, "getgroups", list)
    assert "umask 002" in cli.shared_hint(folder)  # of the process's own group, which need not be in that list
    monkeypatch.setattr(os, "getegid", lambda: folder.stat().st_gid + 1)
    assert cli.shared_hint(folder) == ""  # nothing that a umask would help


PROGRAM = """
import os, subprocess, sys
from bench import cli
from bench.errors import InputError

def main():
    print("to nobody", file=sys.stderr)
    child = subprocess.run([sys.executable, "-c", "import os; [os.fstat(n) for n in range(3)]"])
    opened = os.open(os.devnull, os.O_RDONLY)
    sys.exit(child.returncode or (0 if opened > 2 else 9))

cli.reporting_errors(main)
"""


@pytest.mark.parametrize("closed", [(2,), (0,), (0, 1, 2)], ids=str)
def test_closed_standard_streams_are_opened_on_nothing(closed: tuple[int, ...]) -> None:
    def close() -> None:
        for descriptor in closed:
            os.close(descriptor)

    assert subprocess.run([sys.executable, "-c", PROGRAM], preexec_fn=close, timeout=60).returncode == 0


def test_how_a_process_ended_is_seen_where_a_shell_ignored_sigchld() -> None:
    """Else every process seems to have ended well."""
    fails = [sys.executable, "-c", "raise SystemExit(3)"]
    code = f"import subprocess\nfrom bench import cli\ncli.reporting_errors(lambda: exit(subprocess.call({fails})))"
    done = subprocess.run(
        [sys.executable, "-c", code],
        preexec_fn=lambda: signal.signal(signal.SIGCHLD, signal.SIG_IGN),
        check=False,
        timeout=60,
    )
    assert done.returncode == 3


@pytest.mark.parametrize("encoding", ["ascii:strict", "utf-8:strict"])
def test_what_a_stream_cannot_encode_is_printed_as_an_escape(encoding: str) -> None:
    code = "import sys\nfrom bench import cli\nsys.exit(cli.reporting_errors(lambda: print('\\xb1\\udcff') or 0))"
    environment = {**os.environ, "PYTHONIOENCODING": encoding}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, check=False)
    assert (done.returncode, done.stderr) == (0, b"")
    assert b"udcff" in done.stdout


UNREAD = """
import sys
from bench import cli
from bench.errors import InputError

def main():
    print("line\\n" * {lines})
    {then}
    return 0

sys.exit(cli.reporting_errors(main))
"""


@pytest.mark.parametrize(
    ("lines", "then", "status", "says"),
    [
        (1, "", 141, b""),
        (100_000, "", 141, b""),  # more than a buffer holds
        (1, "sys.exit(0)", 0, b""),  # as --help ends
        (1, "raise InputError('bad')", 2, b"error: bad\n"),
        (1, "raise BrokenPipeError('of a worker')", 141, b""),
    ],
)
def test_a_command_whose_output_is_no_longer_read_says_nothing_of_that(
    lines: int, then: str, status: int, says: bytes
) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    code = UNREAD.format(lines=lines, then=then)
    done = subprocess.run(
        [sys.executable, "-c", code], stdout=writer, stderr=subprocess.PIPE, env=environment, check=False
    )
    os.close(writer)
    assert (done.returncode, done.stderr) == (status, says)


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="a file that is always full is Linux's")
@pytest.mark.parametrize(
    ("lines", "then", "status", "says"),
    [
        (1, "", 1, b"error: standard output: No space left on device\n"),
        (100_000, "", 1, b"error: standard output: No space left on device\n"),
        (1, "sys.exit(0)", 1, b"error: standard output: No space left on device\n"),
        (1, "raise InputError('bad')", 2, b"error: standard output: No space left on device\nerror: bad\n"),
        (1, "open('/nowhere/x')", 1, b"error: [Errno 2] No such file or directory: '/nowhere/x'\n"),
    ],
)
def test_output_that_finds_no_room_is_told_in_one_line(lines: int, then: str, status: int, says: bytes) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    code = UNREAD.format(lines=lines, then=then)
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [sys.executable, "-c", code], stdout=full, stderr=subprocess.PIPE, env=environment, check=False
        )
    assert done.returncode == status and done.stderr.endswith(says) and b"Traceback" not in done.stderr
    assert done.stderr.count(b"standard output") == 1


def test_a_broken_pipe_elsewhere_is_an_error(capfd: pytest.CaptureFixture[str]) -> None:
    def main() -> int:
        raise BrokenPipeError("of a worker")

    assert cli.reporting_errors(main) == 1
    assert "of a worker" in capfd.readouterr().err
