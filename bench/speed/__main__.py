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
from bench.speed import measure, quickstart, report, side
from bench.speed.line import Line
from bench.speed.work import KINDS, NETWORKS, Precision, Work
from bench.store.provenance import commit, cores

OUTPUT = Path("results/speed.md")


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure what the arguments name and write the page."""
    options = _parser().parse_args(arguments)
    baselines.register()
    _check(options)
    options.threads = options.threads or cores()
    # The facts are those of the device, whatever is trained on it.
    work = Work("finetune", "vit_tiny_64", device=options.device, threads=options.threads)
    facts: report.Facts = side.ask_once(side.FACTS, work)
    facts |= {"gpu": options.device != "cpu", "date": datetime.datetime.now(datetime.UTC).date().isoformat()}
    output = options.output or OUTPUT
    kept = not options.quick or options.output is not None  # a smoke run has the figures of shrunken networks
    shown: report.Facts = {}
    for part in _measured(options, facts["bfloat16"]):
        new = {**facts, **part}
        shown = report.store(output, new) if kept else report.merged(shown, new)
    print(report.section(shown))
    print(f"written: {output}" if kept else "nothing is written of a smoke run")
    return 0


def _measured(options: argparse.Namespace, bfloat16: bool) -> Iterator[report.Facts]:
    """Measure part by part: an interrupted run keeps what it has."""
    if options.gin:
        yield {"inputs": _inputs(options)}
    elif options.quickstart:
        yield {"quickstart": _quickstart(options)}
    else:
        yield from ({"lines": {line.identity: dataclasses.asdict(line)}} for line in _lines(options, bfloat16))


def _parser() -> argparse.ArgumentParser:
    parser = cli.plain_parser("speed", __doc__)
    add = parser.add_argument
    add("--device", default="cpu", help="cpu or cuda:N (default: cpu)")
    add("--threads", type=int, help="threads of a CPU (default: one per core)")
    cli.add_list(parser, "--only", "GLOB", "lines: stage/network; with --gin, cells")
    add("--output", type=Path, help=f"the page to write (default: {OUTPUT}; with --quick none)")
    add("--quick", action="store_true", help="a smoke run: shrunken networks, few steps")
    add("--rounds", type=int, default=3, help="turns that everyone has (default: 3)")
    add("--seconds", type=float, default=5.0, help="about how long a turn of ours takes (default: 5)")
    default = "(default: bfloat16 where the device has it, else float32)"
    add("--precision", choices=get_args(Precision), help=default)
    compilation = "measure execution.compile, too, and when it pays (default: on a GPU with bfloat16)"
    add("--compile", action=argparse.BooleanOptionalAction, help=compilation)
    add("--quickstart", action="store_true", help="time gin/quickstart.gin and show what it waits for")
    add("--against", type=Path, metavar="FOLDER", help="with --quickstart: another checkout, by turns")
    add("--steps", type=int, default=20, help="with --gin: batches and steps to measure (default: 20)")
    cli.add_bindings(parser, required=False)
    cli.add_data(parser)
    return parser


def _check(options: argparse.Namespace) -> None:
    for name in ("threads", "rounds", "steps"):
        value = getattr(options, name)
        if value is not None and value < 1:
            raise InputError(f"--{name} {value}: must be at least 1.")
    if not options.seconds > 0:
        raise InputError(f"--seconds {options.seconds}: must be above 0.")
    if options.gin and options.quickstart:
        raise InputError("--gin: cannot be combined with --quickstart, which runs a grid of its own.")
    if options.against and not options.quickstart:
        raise InputError("--against: is for --quickstart, which it compares.")
    if options.set and not options.gin:
        raise InputError("--set: is for the grid that --gin names.")
    if options.output is not None:
        cli.check_writable("--output", options.output.parent)


def _lines(options: argparse.Namespace, bfloat16: bool) -> Iterator[Line]:
    precision: Precision = options.precision or ("bfloat16" if bfloat16 else "float32")
    works = {
        f"{kind}/{network}": Work(kind, network, options.device, options.threads, precision, options.quick)
        for network in NETWORKS
        for kind in KINDS
    }
    for glob in options.only:
        if not fnmatch.filter(works, glob):
            raise InputError(f"--only '{glob}' matches no line; a line is stage/network.{nearest(glob, works)}")
    # As gin/fast.gin does, which is for GPUs: on a CPU, compiled blocks were no faster.
    compile = bfloat16 and options.device != "cpu" if options.compile is None else options.compile
    rounds, seconds = (1, 0.01) if options.quick else (options.rounds, options.seconds)
    for name, work in works.items():
        if not options.only or any(fnmatch.fnmatchcase(name, glob) for glob in options.only):
            print(f"measuring {name}", file=sys.stderr, flush=True)
            yield measure.compare(work, compile=compile, rounds=rounds, seconds=seconds, commit=commit())


def _quickstart(options: argparse.Namespace) -> dict[str, Any]:
    from bench.data.tasks import EMBEDDED
    from bench.planning.catalogue import Catalogue

    root = cli.data_root(options)
    cli.check_writable("--data", root)
    for name in EMBEDDED:
        Catalogue().prepare(name, root)
    rounds = 1 if options.quick else options.rounds
    runs = quickstart.compare(options.against, root, options.device, rounds, options.quick)
    commits = {"commit": commit()} | ({"other_commit": commit(options.against / "bench")} if options.against else {})
    return {**quickstart.figures(runs), **commits}


def _inputs(options: argparse.Namespace) -> dict[str, Any]:
    from bench.speed import inputs
    from bench.training.loop import Diverged

    cells, root, threads = {}, cli.data_root(options), options.threads
    for name, stage in inputs.selected_stages(options.gin, options.set, options.only, root).items():
        try:
            seconds = inputs.measure(stage, root, options.steps, options.device, threads)
        except Diverged as error:
            raise InputError(f"{name}: {error}, or leave the cell out with --only.") from error
        cells[f"{name}, {threads} threads"] = {"cell": name, "threads": threads, **seconds}
    return cells


if __name__ == "__main__":
    sys.exit(cli.reporting_errors(main))
