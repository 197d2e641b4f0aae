"""The commands of the suite: `python -m bench` lists them, `adaptation-bench COMMAND …` runs one."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence
from typing import NamedTuple

from bench import cli
from bench.errors import InputError, nearest


class Command(NamedTuple):
    """A command: the module with its `main`, and what it does in a line."""

    module: str
    summary: str


COMMANDS = {
    "data": Command("bench.prepare", "list, prepare and check data sets and weights made elsewhere"),
    "grid": Command("bench.grid", "plan a grid, run it here or on a cluster, and write its tables"),
    "status": Command("bench.status", "show how a grid stands, follow it, explain its failures"),
    "collate": Command("bench.collate", "write a grid's tables from its store, without running anything"),
    "figures": Command("bench.figures.__main__", "draw the figures of a grid from its records"),
    "report": Command("bench.report.__main__", "write a grid's results into one HTML page to look through"),
    "predictions": Command("bench.predictions", "compute metrics from published predictions again"),
    "tensorboard": Command("bench.tensorboard", "write learning curves as TensorBoard events"),
    "doctor": Command("bench.doctor.__main__", "check this computer or cluster for what would stand in the way"),
    "speed": Command("bench.speed.__main__", "measure what training costs on this computer"),
    "new": Command("bench.new", "write a working skeleton of a method or task of your own"),
    "check": Command("bench.check.__main__", "hold methods of your own to what the suite demands"),
    "theory": Command("bench.theory", "check the paper's theory of self-distillation with numbers"),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command that is named first, or list all of them."""
    name, *rest = (sys.argv[1:] if arguments is None else arguments) or ["--help"]
    if name in ("-h", "--help"):
        print("usage: adaptation-bench COMMAND …\n       python -m bench.COMMAND …\n")
        print("\n".join(f"  {name:11} {command.summary}" for name, command in COMMANDS.items()))
        return 0
    if name not in COMMANDS:
        raise InputError(f"there is no command '{name}'.{nearest(name, COMMANDS)}")
    status: int = importlib.import_module(COMMANDS[name].module).main(rest)
    return status


def run() -> int:
    """Run as the console script `adaptation-bench`."""
    return cli.reporting_errors(main)


if __name__ == "__main__":
    sys.exit(run())
