"""Write the tables of a grid without running anything.

`python -m bench.collate --gin FILE` writes them from its store, `--records FILE…` from records files alone.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from filelock import FileLock

import baselines
from bench import cli
from bench.errors import InputError
from bench.planning.plan import Plan, make_plan
from bench.store.store import Store
from bench.tables.grid_facts import check_file_name
from bench.tables.layout import AXES
from bench.tables.predictions import paths_while_written, publish_predictions
from bench.tables.quantities import QUANTITIES
from bench.tables.rebuild import changed_cells, joined_files, refuse_missing
from bench.tables.records import NONE_READ, LeftOut, Record, read_file, stages_path
from bench.tables.table import Results, View, collate, rebuilt


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the tables of a grid; return the exit status.

    It is 0 if every cell has a number, 1 if some lack one or lines of records files are left out, 2 for bad input.
    """
    parser = cli.plain_parser("collate", __doc__)
    cli.add_grid(parser, required=False)
    parser.add_argument("--records", nargs="+", type=Path, metavar="FILE", help="records.jsonl of one grid, or of more")
    parser.add_argument(
        "--against", type=Path, metavar="FILE", help="another records.jsonl: list the cells that differ"
    )
    parser.add_argument(
        "--measure",
        nargs="+",
        default=(),
        choices=list(QUANTITIES),
        metavar="NAME",
        help=f"also tables of what else was measured: {', '.join(QUANTITIES)}",
    )
    parser.add_argument(
        "--layout",
        nargs="+",
        default=(),
        choices=list(AXES),
        metavar="NAME",
        help=f"also tables of methods over what their rows differ in, or of --measure over it: {', '.join(AXES)}",
    )
    options = parser.parse_args(arguments)
    if bool(options.records) == bool(options.gin):
        raise InputError("give --gin, whose store the tables are made from, or --records, and not both.")
    pairs = itertools.product(options.measure or (None,), options.layout or (None,))
    views = [view for view in dict.fromkeys(View(*pair) for pair in pairs) if view != View()]
    if options.against and views:
        raise InputError("--against: lists cells and writes no table, so that --measure and --layout mean nothing.")
    if options.records:
        return _rebuild(options.records, options.against, options.results, views)
    if options.against:
        raise InputError("--against: compares records files; name the other ones with --records.")
    baselines.register()
    store = Store(options.store)
    store.check_exists()
    plan = make_plan(options.gin, options.set, (), cli.data_root(options), None, check_sources=False)
    cli.check_results(options.results, plan.table_name, *_below(plan.table_name, views), *paths_while_written(plan))
    return write_tables(plan, store, options.results, views)


def write_tables(
    plan: Plan,
    store: Store,
    results: Path,
    views: Sequence[View] = (),
    read_before: Mapping[str, Record] = NONE_READ,
) -> int:
    """Print and write the tables; return the exit status.

    It is 0 if every cell of the grid has a number, or the store has those of all selected cells, else 1. The records in
    `read_before`, by stage key, are not read again. Raises OSError, which names the folder, where the tables cannot be
    written; printed they are all the same.
    """
    with _alone(plan.table_name, results):
        tables = dataclasses.replace(collate(plan, store, results, read_before), views=tuple(views))
        try:
            set_aside = tables.write()
            shown = [record["cell"] for record in tables.records]
            unpublished = publish_predictions(plan, store, results, shown, read_before)
        except OSError as error:
            raise OSError(
                f"--results {results}: the tables could not be written there ({error.strerror or error}). Their "
                f"numbers are in the store {store.root}: python -m bench.collate writes them."
            ) from error
        finally:  # only then, as nobody may read what is printed, and a full disk not take it
            print(f"\n{tables.markdown}", flush=True)
    _say_where(tables)
    if set_aside is not None:
        print(f"records that are not of this plan were moved to {set_aside}")
    if unpublished:
        print(
            f"warning: {len(unpublished)} cells have no predictions to publish, as records of older versions have none "
            f"(--again computes them anew): {', '.join(unpublished)}",
            file=sys.stderr,
        )
    return 0 if tables.selected_done or len(tables.records) == len(plan.cells) else 1


def _below(name: str, views: Sequence[View]) -> list[str]:
    return [cli.while_written(f"{name}{view.suffix}@published.csv") for view in views]


def _say_where(tables: Results) -> None:
    for path in tables.shown:
        print(f"table: {path}")
    print(f"records: {tables.records_file}")


def _rebuild(files: Sequence[Path], against: Path | None, results: Path, views: Sequence[View]) -> int:
    """Write the tables of records files again, or list the cells in which they differ from another file."""
    refuse_missing((*files, *([] if against is None else [against])))
    left_out: list[LeftOut] = []
    content = joined_files(files, left_out)
    if against is not None:
        lines = list(changed_cells(read_file(against), content))
        print("\n".join(lines or ["no cell differs"]))
        return 1 if lines or left_out else 0
    assert content.grid is not None
    check_file_name(content.grid)
    tables = dataclasses.replace(rebuilt(content, results), views=tuple(views))
    cli.check_results(results, tables.name, *_below(tables.name, views))
    text = tables.markdown  # a view that the records do not have is refused before anything is written
    with _alone(tables.name, results):
        if (other := tables.records_file).is_file() and other.resolve() not in [path.resolve() for path in files]:
            raise InputError(f"--results {results}: {other} is there already; name it among --records, or move it.")
        own = (other.resolve(), stages_path(other).resolve())
        if any(line.path.resolve() in own for line in left_out):
            raise InputError(
                f"--results {results}: {other} would be replaced without the lines that are left out. Name another "
                "--results, or mend these lines first."
            )
        try:
            tables.write()
        finally:
            print(f"\n{text}", flush=True)
    _say_where(tables)
    return 1 if left_out else 0


@contextlib.contextmanager
def _alone(name: str, results: Path) -> Iterator[None]:
    """Be the only one that merges and writes the tables of a grid meanwhile.

    Else two grids that end at once, with different stores, could each write a file without the other's records. Goes on
    without a lock where a file system has none, and where nothing can be written, which is told then.
    """
    lock = FileLock(results / f".{name}.lock")
    with contextlib.suppress(OSError, NotImplementedError):
        results.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def run_as_job(*arguments: str) -> None:
    """Run the command as the last job of a grid. An incomplete table is no failure of that job."""
    main(arguments)
