"""Draw the figures of a grid: `python -m bench.figures --records FILE… --output FOLDER`, or with --gin from its store.

Each is written as SVG, PNG, PDF and, with the numbers in it, CSV. Learning curves need --store.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path

import baselines
from bench import cli
from bench.errors import InputError
from bench.figures import draw
from bench.figures.charts import KINDS, Source
from bench.planning.plan import make_plan
from bench.store.store import Store
from bench.tables.grid_facts import check_file_name, facts_of
from bench.tables.quantities import NothingToShow
from bench.tables.rebuild import joined_files, refuse_missing
from bench.tables.records import LeftOut, RecordsFile, computed_records
from bench.tables.table import rebuilt


def main(arguments: Sequence[str] | None = None) -> int:
    """Draw the figures of a grid; return the exit status.

    It is 0 if there is at least one figure, 1 if there is none or lines of records files are left out. A kind that the
    data do not have is left out with a line that says why, and refused where --kind names it.
    """
    options = _parser().parse_args(arguments)
    if bool(options.records) == bool(options.gin):
        raise InputError("give --gin, whose store the figures are made from, or --records, and not both.")
    if options.set and not options.gin:
        raise InputError("--set: is for the grid that --gin names.")
    longest = f"{max(KINDS, key=len)}.svg.{'0' * 12}"
    if options.output is not None:
        cli.check_writable("--output", options.output, longest)
    left_out: list[LeftOut] = []
    source = _source(options, left_out)
    if options.output is None:
        check_file_name(source.grid)
        options.output = options.results / source.grid.name
        cli.check_writable("--results", options.output, longest)
    for warning in source.grid.warnings:
        print(warning)
    done = 0
    for kind in options.kind or KINDS:
        try:
            chart = KINDS[kind](source)
        except NothingToShow as reason:
            if options.kind:
                raise InputError(f"--kind {kind}: {reason}.") from reason
            print(f"no figure {kind}: {reason}")
            continue
        options.output.mkdir(parents=True, exist_ok=True)
        chart = dataclasses.replace(chart, title=f"{source.grid.name}: {chart.title}")
        paths = draw.write(chart, options.output, kind)
        print(f"{kind}: {', '.join(map(str, paths))}")
        done += 1
    return 0 if done and not left_out else 1


def _parser() -> argparse.ArgumentParser:
    parser = cli.plain_parser("figures", __doc__)
    add = parser.add_argument
    add("--records", nargs="+", type=Path, metavar="FILE", help="records.jsonl of one grid, or of more")
    add("--output", type=Path, metavar="FOLDER", help="where the figures go (default: RESULTS/NAME)")
    add("--results", type=Path, default=Path("results"), help="where tables go (default: results)")
    add("--kind", nargs="+", choices=list(KINDS), help="which figures (default: all that the data have)")
    add("--store", type=Path, help="where stages, and their learning curves, are kept (with --gin: runs)")
    cli.add_bindings(parser, required=False)
    cli.add_data(parser)
    return parser


def _source(options: argparse.Namespace, left_out: list[LeftOut]) -> Source:
    """Read the records of the files, or of a grid's store, in the order of the grid.

    Lines of the files that are no record are added to `left_out`.
    """
    if options.records:
        refuse_missing(options.records)
        return Source(rebuilt(joined_files(options.records, left_out), options.results).content, options.store)
    baselines.register()
    store = Store(options.store or Path("runs"))
    store.check_exists()
    plan = make_plan(options.gin, options.set, (), cli.data_root(options), None, check_sources=False)
    computed = computed_records(plan, store)
    return Source(RecordsFile(facts_of(plan), computed.cells, computed.stages), store.root)


if __name__ == "__main__":
    sys.exit(cli.reporting_errors(main))
