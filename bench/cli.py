"""What the commands have in common: arguments, where data lie, how errors are shown."""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from bench.data.manifest import data_root as default_data_root
from bench.errors import InputError


def parser(program: str, description: str) -> argparse.ArgumentParser:
    """Build a parser with the arguments of every grid command.

    They name a grid, its data, store and results.
    """
    arguments = argparse.ArgumentParser(prog=program, description=description)
    add_bindings(arguments, required=True)
    arguments.add_argument("--store", type=Path, default=Path("runs"), help="where stages are kept (default: runs)")
    arguments.add_argument("--results", type=Path, default=Path("results"), help="where tables go (default: results)")
    add_data(arguments)
    return arguments


def add_bindings(parser: argparse.ArgumentParser, required: bool) -> None:
    """Let a command take gin files and `--set` lines."""
    parser.add_argument(
        "--gin",
        nargs="+",
        action="extend",
        default=None if required else [],
        required=required,
        metavar="FILE",
        help="gin files, here or shipped with the suite",
    )
    parser.add_argument(
        "--set", nargs="+", action="extend", default=[], metavar="BINDING", help="bindings over the files'"
    )


def add_data(parser: argparse.ArgumentParser) -> None:
    """Let a command take the folder of prepared data."""
    parser.add_argument("--data", type=Path, help="where data lie (default: BENCH_DATA, else data)")


def data_root(arguments: argparse.Namespace) -> Path:
    """Return the folder of prepared data."""
    return arguments.data or default_data_root()


def check_writable(argument: str, folder: Path) -> None:
    """Refuse a folder that cannot be made or written.

    Nothing is made in it before.
    """
    parent = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    writable = parent.is_dir() and os.access(parent, os.W_OK | os.X_OK)
    if writable:
        try:
            with tempfile.TemporaryFile(dir=parent):  # os.access knows nothing of read-only or virtual file systems
                return
        except OSError:
            pass
    raise InputError(f"{argument} {folder}: {parent} is not a folder this user can write. Name another.")


def check_results(results: Path, name: str | None) -> None:
    """Refuse a results folder that cannot hold a grid's tables."""
    check_writable("--results", results)
    if (results / f"{name}.md").is_dir() or (results / str(name)).is_file():
        raise InputError(f"--results {results}: {name}.md must be a file and {name} a folder there. Move what is.")


def reporting_errors(main: Callable[[], int]) -> int:
    """Run a command and report its errors.

    Bad input becomes one message and exit status 2, an error of the disk status 1, Ctrl-C status 130.
    """
    try:
        return main()
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except OSError as error:  # a disk that is full, gone or read-only
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
