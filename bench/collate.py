"""Write the tables of a grid from its store, without running anything: `python -m bench.collate --gin FILE`."""

import sys

from bench import cli
from bench.tables.command import main

if __name__ == "__main__":
    sys.exit(cli.reporting_errors(main))
