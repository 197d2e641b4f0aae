"""Write the tables of a grid from its store, without running anything: `python -m bench.collate --gin FILE`."""

from __future__ import annotations

import sys
from collections.abc import Sequence

import baselines
from bench import cli
from bench.planning.plan import make_plan
from bench.store.store import Store


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit status 0 if every cell has a number, 1 if some lack one, 2 for bad input."""
    given = cli.parser("python -m bench.collate", __doc__ or "").parse_args(arguments)
    baselines.register()
    store = Store(given.store)
    store.check_exists()
    plan = make_plan(given.gin, given.set, (), cli.data_root(given), store)
    cli.check_results(given.results, plan.grid.name)
    return cli.write_tables(plan, store, given.results)


if __name__ == "__main__":
    sys.exit(cli.reporting_errors(main))
