"""`python -m bench.data list | prepare NAME… | check NAME…`: see `bench.prepare`."""

import sys

from bench import cli
from bench.prepare import main

if __name__ == "__main__":
    sys.exit(cli.reporting_errors(main))
