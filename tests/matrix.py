"""Run the tests on every supported Python, and with the lowest versions: `python tests/matrix.py [NAME]…`.

Each environment is built by uv (`pip install uv`) from nothing, and the suite runs in it, without what needs a cluster.
The outcome goes into the table of CONTRIBUTING.md: what was not run, because its interpreter is not at hand, says so.
Arguments behind `--` are pytest's; a run of a selection is printed only.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[1]
EXTRAS = ".[test,peft,tensorboard]"
SHOWN = ("torch", "torchvision", "timm", "transformers", "datasets", "numpy", "scikit-learn")
HEAD = ["environment", "Python", *SHOWN, "outcome"]
NOT_AT_HAND = "not run: no such interpreter at hand"


class Environment(NamedTuple):
    """A Python version, what uv is told of the other versions, and what pytest is told besides."""

    python: str
    versions: tuple[str, ...]
    pytest: tuple[str, ...] = ()


PINNED = ("--constraint", "constraints.txt")
ENVIRONMENTS = {
    "3.11": Environment("3.11", PINNED),
    "3.12": Environment("3.12", PINNED),
    "3.13": Environment("3.13", PINNED),
    # Old libraries use what others of their time had only just deprecated.
    "3.11-lowest": Environment("3.11", ("--resolution", "lowest-direct"), ("-W", "default::DeprecationWarning")),
}


def build(environment: Environment, folder: Path) -> bool:
    """Make an environment anew. Returns whether its interpreter is at hand."""
    uv = ["uv", "--no-python-downloads", "--quiet"]
    if (
        subprocess.run(
            [*uv, "venv", "--clear", "--seed", "--python", environment.python, folder], check=False
        ).returncode
        != 0
    ):
        return False
    python = ["--python", str(folder / "bin" / "python")]
    subprocess.run(
        [*uv, "pip", "install", "--compile-bytecode", *python, *environment.versions, "--editable", EXTRAS],
        check=True,
        cwd=ROOT,
    )
    return True


def versions(folder: Path) -> dict[str, str]:
    """Return the version of Python and of each shown distribution in an environment."""
    code = (
        "import platform, sys; from importlib.metadata import version; "
        "print(platform.python_version(), *map(version, sys.argv[1:]))"
    )
    command = [folder / "bin" / "python", "-c", code, *SHOWN]
    words = subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()
    return dict(zip(("Python", *SHOWN), words, strict=True))


def run_tests(folder: Path, arguments: Sequence[str]) -> str:
    """Run pytest in an environment; return its summary: "5000 passed, 90 skipped"."""
    command = [folder / "bin" / "python", "-m", "pytest", "--dist=loadfile", "--no-loadscope-reorder", *arguments]
    # A test that looks for a program finds the environment's, and no module of another checkout.
    path = f"{folder / 'bin'}{os.pathsep}{os.environ['PATH']}"
    environment = {**os.environ, "PATH": path, "VIRTUAL_ENV": str(folder)}
    last = ""
    with subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            print(line, end="", flush=True)
            last = line.strip() or last
    return summary(last)


def summary(line: str) -> str:
    """Take the counts out of pytest's last line: of `5 passed, 1 skipped in 3.20s` all but the time."""
    counts = re.findall(r"\d+ (?:passed|failed|skipped|errors?|xfailed|deselected)", line)
    return ", ".join(counts) or f"no summary: {line}"


def table(rows: Mapping[str, Sequence[str]]) -> str:
    """Write the table, a row for each environment, in their order."""
    lines = [HEAD, ["---"] * len(HEAD), *([name, *rows[name]] for name in ENVIRONMENTS if name in rows)]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def read_table(text: str) -> dict[str, list[str]]:
    """Read the rows of the table in CONTRIBUTING.md, by environment."""
    lines = [[cell.strip() for cell in line.strip("| \n").split("|")] for line in text.splitlines() if "|" in line]
    return {name: cells for name, *cells in lines if name in ENVIRONMENTS}


def main() -> int:
    """Run the environments named, else all; return whether a test failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(ENVIRONMENTS)} (default: all)")
    parser.add_argument("--folder", type=Path, default=ROOT / ".venvs", help="where environments are made, 6 GB each")
    parser.add_argument("--keep", action="store_true", help="use an environment that is there already")
    ours, theirs = split(sys.argv[1:])
    arguments = parser.parse_args(ours)
    if unknown := set(arguments.names) - ENVIRONMENTS.keys():
        parser.error(f"no environment is named {', '.join(sorted(unknown))}; there are {', '.join(ENVIRONMENTS)}")
    contributing = ROOT / "CONTRIBUTING.md"
    failed = False
    for name in arguments.names or ENVIRONMENTS:
        folder = arguments.folder.resolve() / name
        at_hand = (arguments.keep and folder.is_dir()) or build(ENVIRONMENTS[name], folder)
        cells, outcome = dict.fromkeys(HEAD[1:-1], "–"), NOT_AT_HAND
        if at_hand:
            cells, outcome = (
                versions(folder),
                run_tests(folder, [*ENVIRONMENTS[name].pytest, *(theirs or ["--numprocesses=2"])]),
            )
        row = [*cells.values(), outcome]
        failed |= at_hand and re.fullmatch(r"\d+ passed(, \d+ skipped)?", outcome) is None
        print(table({name: row}), flush=True)
        if not theirs:
            text = contributing.read_text(encoding="utf-8")
            before = table(read_table(text))
            assert before in text, "CONTRIBUTING.md has no table of environments, or one of other columns"
            after = table(read_table(text) | {name: row})
            contributing.write_text(text.replace(before, after), encoding="utf-8")
    return int(failed)


def split(arguments: Sequence[str]) -> tuple[Sequence[str], Sequence[str]]:
    """Split a command line at its first `--`."""
    if "--" not in arguments:
        return arguments, ()
    at = arguments.index("--")
    return arguments[:at], arguments[at + 1 :]


if __name__ == "__main__":
    sys.exit(main())
