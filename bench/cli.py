"""What the commands have in common: arguments, where data lie, how errors are shown."""

from __future__ import annotations

import argparse
import errno
import io
import os
import select
import signal
import stat
import sys
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path

from bench.data.manifest import data_root as default_data_root
from bench.errors import InputError, RunStopped


def plain_parser(command: str, description: str | None) -> argparse.ArgumentParser:
    """Build a parser whose help shows the description line by line as it is written."""
    raw = argparse.RawDescriptionHelpFormatter
    return argparse.ArgumentParser(prog=f"python -m bench.{command}", description=description, formatter_class=raw)


def parser(program: str, description: str) -> argparse.ArgumentParser:
    """Build a parser with the arguments of every grid command.

    They name a grid, its data, store and results.
    """
    return add_grid(argparse.ArgumentParser(prog=program, description=description), required=True)


def add_grid(parser: argparse.ArgumentParser, required: bool) -> argparse.ArgumentParser:
    """Let a command take a grid, its data, store and results."""
    add_bindings(parser, required)
    parser.add_argument("--store", type=_folder, default=Path("runs"), help="where stages are kept (default: runs)")
    parser.add_argument("--results", type=_folder, default=Path("results"), help="where tables go (default: results)")
    add_data(parser)
    return parser


def add_bindings(parser: argparse.ArgumentParser, required: bool) -> None:
    """Let a command take gin files and `--set` lines."""
    add_list(parser, "--gin", "FILE", "gin files, here or shipped with the suite", required)
    add_list(parser, "--set", "BINDING", "bindings over the files'")


def add_list(parser: argparse.ArgumentParser, option: str, metavar: str, text: str, required: bool = False) -> None:
    """Let a command take an option of one or more values, as often as it is given."""
    parser.add_argument(option, nargs="+", action="extend", default=[], required=required, metavar=metavar, help=text)


def add_data(parser: argparse.ArgumentParser) -> None:
    """Let a command take the folder of prepared data."""
    parser.add_argument("--data", type=_folder, help="where data lie (default: BENCH_DATA, else data)")


def _folder(text: str) -> Path:
    refuse_too_long("a folder of the command line", Path(text))
    return Path(text)


def data_root(arguments: argparse.Namespace) -> Path:
    """Return the folder of prepared data."""
    return arguments.data or default_data_root()


def check_writable(argument: str, folder: Path, *below: str) -> None:
    """Refuse a folder that cannot be made or written.

    Refused is also one in which a path of `below`, of what is to come below it, would be too long. The folder itself is
    not made yet.
    """
    parent = check_length(argument, folder, *below)
    if not os.path.exists(parent):  # nothing can be made in its place, and nothing below it
        raise InputError(
            f"{argument} {folder}: {parent} is a link to {os.readlink(parent)}, which is not there. Make that folder "
            "or mount its disk, or name another."
        )
    writable = parent.is_dir() and os.access(parent, os.W_OK | os.X_OK)
    if writable:
        try:
            with tempfile.TemporaryFile(dir=parent):  # os.access knows nothing of read-only or virtual file systems
                return
        except OSError:
            pass
    raise InputError(
        f"{argument} {folder}: {parent} is not a folder this user can write.{shared_hint(parent)} Name another."
    )


def check_length(argument: str, folder: Path, *below: str) -> Path:
    """Refuse a folder if it, or a path of `below` in it, would be too long; return what is there of it."""
    paths = [folder / path for path in below] or [folder]
    refuse_too_long(argument, max(paths, key=_bytes))
    parent = next(path for path in (folder, *folder.absolute().parents) if os.path.lexists(path))
    # Below a folder that is still to be made, the file system looks at no name: the longest is asked for in `parent`.
    refuse_too_long(argument, parent / max((part for path in paths for part in path.parts), key=_bytes, default=""))
    return parent


def _bytes(path: Path | str) -> int:
    """Count what file systems limit, which is no letters: `方` has three bytes."""
    return len(os.fsencode(path))


def while_written(name: str) -> str:
    """Return a name as long as the one that a file has while it is written (`bench.store.files.replacing`)."""
    return f".{name}.{'0' * 12}"


def refuse_too_long(argument: str, path: Path) -> None:
    """Refuse a path that is too long for the file system, or that has a name which is."""
    try:
        os.stat(path)
    except OSError as error:
        if error.errno == errno.ENAMETOOLONG:
            raise InputError(
                f"{argument}: {path}: its names of {max(map(_bytes, path.parts))} bytes or its {_bytes(path)} bytes "
                "in all are too long for the file system. Choose shorter ones."
            ) from error


def shared_hint(folder: Path) -> str:
    """Say what to do where a folder is closed to the group that its owner shares with this user; else ''."""
    facts = folder.stat()
    ours = facts.st_uid == os.getuid()
    if ours or facts.st_gid not in {os.getegid(), *os.getgroups()} or facts.st_mode & stat.S_IWGRP:
        return ""
    return (
        " It belongs to another user of your group, and is closed to the group: its owner opens it with "
        f"chmod -R g+w {folder} and from then on works with umask 002."
    )


def longest_table(name: str) -> str:
    """Return the longest name that a grid's tables need in the results folder."""
    return while_written(f"{name}.before-{'0' * 12}.jsonl")


def check_results(results: Path, name: str, *below: str) -> None:
    """Refuse a results folder that cannot hold a grid's tables, and the paths of `below`."""
    check_writable("--results", results, longest_table(name), *below)
    if (results / f"{name}.md").is_dir() or (results / name).is_file():
        raise InputError(f"--results {results}: {name}.md must be a file and {name} a folder there. Move what is.")
    if (results / name).is_dir():
        check_writable("--results", results / name)


def reporting_errors(main: Callable[[], int]) -> int:
    """Run a command and report its errors.

    Bad input becomes one message and exit status 2, an error of the disk status 1, Ctrl-C status 130. A command whose
    output nobody reads any more, as with `| head`, ends with 141 as other programs do, and says nothing; one whose
    output finds no room on a disk ends with 1 and says so.
    """
    open_standard_streams()
    # `trap '' CHLD` of a shell is handed down, and nobody would learn any more how a process ended.
    if threading.current_thread() is threading.main_thread() and signal.getsignal(signal.SIGCHLD) == signal.SIG_IGN:
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    try:
        status = main()
        return _flush_output() or status
    except SystemExit:  # of --help
        if _flush_output() == 1:
            return 1
        raise
    except InputError as error:
        _flush_output()
        print(f"error: {error}", file=sys.stderr)
        return 2
    except (OSError, RunStopped) as error:  # a disk that is full, gone or read-only; workers that cannot start
        if isinstance(error, BrokenPipeError) and _reader_has_gone():
            _flush_output()
            return 128 + signal.SIGPIPE
        # Python may have dropped what it could not write: whether it was the output is told by one more line feed.
        unnamed = isinstance(error, OSError) and error.errno is not None and error.filename is None
        if _flush_output("\n" if unnamed else "") != 1 or not unnamed:
            print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        _flush_output()
        print("interrupted", file=sys.stderr)
        return 130


def _reader_has_gone() -> bool:
    """Tell whether the output is a pipe that nobody reads."""
    output = select.poll()
    output.register(1, 0)  # errors are told unasked
    return any(event & select.POLLERR for _, event in output.poll(0))


def _flush_output(more: str = "") -> int:
    """Write what is left of the output; return 0, or the exit status where it cannot be written and is dropped."""
    try:
        sys.stdout.write(more)
        sys.stdout.flush()
        return 0
    except BrokenPipeError:
        status = 128 + signal.SIGPIPE
    except OSError as error:
        print(f"error: standard output: {error.strerror or error}", file=sys.stderr)
        status = 1
    # Else Python itself would try once more at its end, and complain.
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    return status


def open_standard_streams() -> None:
    """Open what of standard input, output and error was closed, on nothing.

    Else the next files that are opened would get their numbers, and what is printed would go there. A letter that a
    stream's encoding lacks, or a path that is no text, is printed as its escape instead of ending the program.
    """
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)  # gets the lowest number that is free: this one
    sys.stdout = sys.stdout or os.fdopen(1, "w", encoding="utf-8")
    sys.stderr = sys.stderr or os.fdopen(2, "w", encoding="utf-8")
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper) and stream.errors == "strict":
            stream.reconfigure(errors="backslashreplace")
