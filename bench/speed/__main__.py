"""What training costs here: `python -m bench.speed` measures our loop beside others and writes results/speed.md.

Needs no prepared data. With --quickstart it times the quickstart's grid instead, with --gin what reading the batches of
that grid's cells costs. Each run replaces what it measured itself in this device's section of the page.
"""

from __future__ import annotations

import argparse
import dataclasses
import datetime
import fnmatch
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, get_args

import baselines
from bench import cli
from bench.errors import InputError, nearest
from bench.speed import measure, quickstart, report
from bench.speed.work import KINDS, NETWORKS, Precision, Work
from bench.store.provenance import commit, cores

OUTPUT = Path("results/speed.md")


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure what the arguments name and write the page."""
    given = _parser().parse_args(arguments)
    baselines.register()
    _check(given)
    threads = given.threads or cores()
    facts = measure.ask_once("facts", Work("finetune", "vit_tiny_64", device=given.device, threads=threads))
    known: dict[str, Any] = {
        **facts,
        "gpu": given.device != "cpu",
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
    }
    output = given.output or OUTPUT
    written: report.Facts = {}
    for new in _measured(given, threads, bool(facts["bfloat16"])):
        if given.quick and given.output is None:  # figures of shrunken networks
            written = {**known, "lines": {**written.get("lines", {}), **new.get("lines", {})}}
        else:
            written = report.store(output, report.title(known), {**known, **new})
    print(report.section(written))
    print("nothing is written of a smoke run" if given.quick and given.output is None else f"written: {output}")
    return 0


def _measured(given: argparse.Namespace, threads: int, bfloat16: bool) -> Iterator[dict[str, Any]]:
    """Give what the arguments ask for, part by part, so that an interrupted run keeps what it has."""
    if given.gin:
        yield {"inputs": _inputs(given, threads)}
    elif given.quickstart:
        yield {"quickstart": _quickstart(given)}
    else:
        yield from ({"lines": {name: line}} for name, line in _lines(given, threads, bfloat16))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m bench.speed", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", default="cpu", help="cpu or cuda:N (default: cpu)")
    parser.add_argument("--threads", type=int, help="threads of a CPU (default: one per core)")
    parser.add_argument(
        "--only", nargs="+", action="extend", default=[], metavar="GLOB", help="lines: stage/network; with --gin, cells"
    )
    parser.add_argument("--output", type=Path, help=f"the page to write (default: {OUTPUT}; with --quick none)")
    parser.add_argument("--quick", action="store_true", help="a smoke run: shrunken networks, few steps")
    parser.add_argument("--rounds", type=int, default=3, help="turns that everyone has (default: 3)")
    parser.add_argument("--seconds", type=float, default=5.0, help="about how long a turn of ours takes (default: 5)")
    parser.add_argument(
        "--precision", choices=get_args(Precision), help="(default: bfloat16 where the device has it, else float32)"
    )
    parser.add_argument(
        "--compile",
        action=argparse.BooleanOptionalAction,
        help="measure execution.compile, too, and when it pays (default: where the device has bfloat16)",
    )
    parser.add_argument("--quickstart", action="store_true", help="time gin/quickstart.gin and show what it waits for")
    parser.add_argument("--against", type=Path, metavar="FOLDER", help="with --quickstart: another checkout, by turns")
    parser.add_argument("--steps", type=int, default=20, help="with --gin: batches and steps to measure (default: 20)")
    cli.add_bindings(parser, required=False)
    cli.add_data(parser)
    return parser


def _check(given: argparse.Namespace) -> None:
    for name, least in (("threads", 1), ("rounds", 1), ("steps", 1)):
        value = getattr(given, name)
        if value is not None and value < least:
            raise InputError(f"--{name} {value}: must be at least {least}.")
    if not given.seconds > 0:
        raise InputError(f"--seconds {given.seconds}: must be above 0.")
    if given.gin and given.quickstart:
        raise InputError("--gin: cannot be combined with --quickstart, which runs a grid of its own.")
    if given.against and not given.quickstart:
        raise InputError("--against: is for --quickstart, which it compares.")
    if given.set and not given.gin:
        raise InputError("--set: is for the grid that --gin names.")
    if given.output is not None:
        cli.check_writable("--output", given.output.parent)


def _lines(given: argparse.Namespace, threads: int, bfloat16: bool) -> Iterator[tuple[str, Any]]:
    names = [f"{kind}/{network}" for network in NETWORKS for kind in KINDS]
    for glob in given.only:
        if not fnmatch.filter(names, glob):
            raise InputError(f"--only '{glob}' matches no line; a line is stage/network.{nearest(glob, names)}")
    precision: Precision = given.precision or ("bfloat16" if bfloat16 else "float32")
    compile = bfloat16 if given.compile is None else given.compile
    for name in names:
        if given.only and not any(fnmatch.fnmatchcase(name, glob) for glob in given.only):
            continue
        kind, network = name.split("/")
        print(f"measuring {name}", file=sys.stderr, flush=True)
        work = Work(kind, network, given.device, threads, precision, given.quick)  # type: ignore[arg-type]
        rounds, seconds = (1, 0.01) if given.quick else (given.rounds, given.seconds)
        line = measure.compare(work, compile=compile, rounds=rounds, seconds=seconds, commit=commit())
        yield name, report.as_json(line)


def _quickstart(given: argparse.Namespace) -> dict[str, Any]:
    from bench.data.tasks import EMBEDDED
    from bench.planning.catalogue import Catalogue

    root = cli.data_root(given)
    cli.check_writable("--data", root)
    for name in EMBEDDED:
        Catalogue().prepare(name, root)
    runs = quickstart.compare(given.against, root, given.device, 1 if given.quick else given.rounds, given.quick)
    return {**quickstart.figures(runs), "path": runs["this"][-1].path, "commit": commit()}


def _inputs(given: argparse.Namespace, threads: int) -> dict[str, Any]:
    from bench.speed import inputs

    measured = inputs.measure_cells(given, threads)
    return {
        f"{name}, {threads} threads": {"cell": name, "threads": threads, **dataclasses.asdict(values)}
        for name, values in measured.items()
    }


if __name__ == "__main__":
    sys.exit(cli.reporting_errors(main))
