"""Write the tables of a grid from its store, without running anything: `python -m bench.collate --gin FILE`."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path

from filelock import FileLock

import baselines
from bench import cli
from bench.planning.plan import Plan, make_plan
from bench.store.store import Store
from bench.tables.table import collate


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the tables of a grid; return the exit status.

    It is 0 if every cell has a number, 1 if some lack one, 2 for bad input.
    """
    options = cli.parser("python -m bench.collate", __doc__ or "").parse_args(arguments)
    baselines.register()
    store = Store(options.store)
    store.check_exists()
    plan = make_plan(options.gin, options.set, (), cli.data_root(options), None, check_sources=False)
    cli.check_results(options.results, plan.table_name)
    return write_tables(plan, store, options.results)


def write_tables(plan: Plan, store: Store, results: Path) -> int:
    """Print and write the tables; return the exit status.

    It is 0 if every cell of the grid has a number, or the store has those of all selected cells, else 1. Raises
    OSError, which names the folder, where the tables cannot be written; printed they are all the same.
    """
    with _alone(plan, results):
        tables = collate(plan, store, results)
        print(f"\n{tables.markdown}", flush=True)
        try:
            set_aside = tables.write()
        except OSError as error:
            raise OSError(
                f"--results {results}: the tables could not be written there ({error.strerror or error}). Their "
                f"numbers are in the store {store.root}: python -m bench.collate writes them."
            ) from error
    print(f"table: {tables.table}\nrecords: {tables.records_file}")
    if set_aside is not None:
        print(f"records that are not of this plan were moved to {set_aside}")
    return 0 if tables.selected_done or len(tables.records) == len(plan.cells) else 1


@contextlib.contextmanager
def _alone(plan: Plan, results: Path) -> Iterator[None]:
    """Be the only one that merges and writes the tables of a grid meanwhile.

    Else two grids that end at once, with different stores, could each write a file without the other's records. Goes on
    without a lock where a file system has none, and where nothing can be written, which is told then.
    """
    lock = FileLock(results / f".{plan.table_name}.lock")
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
