"""Write one HTML page with a grid's results and what is behind them.

The page opens from disk and loads nothing. `python -m bench.report --records FILE…` makes it of records files alone,
`--gin FILE` of the grid's store, with the learning curves and logs that are there.
"""

from __future__ import annotations

import argparse
import base64
import hashlib
import html
import json
import re
import string
import sys
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import baselines
from bench import cli
from bench.errors import InputError
from bench.planning.plan import make_plan
from bench.report.content import report
from bench.specs import walk
from bench.store.files import write_text
from bench.store.store import Store
from bench.tables.grid_facts import check_file_name
from bench.tables.rebuild import joined_files, refuse_missing
from bench.tables.records import LeftOut, RecordsFile
from bench.tables.table import collate, rebuilt


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the report of a grid; return the exit status.

    It is 0, or 1 if lines of records files are left out.
    """
    parser = cli.plain_parser("report", __doc__)
    cli.add_grid(parser, required=False)
    parser.add_argument("--records", nargs="+", type=Path, metavar="FILE", help="records.jsonl of one grid, or of more")
    parser.add_argument("--output", type=Path, metavar="FILE", help="the HTML file (default: RESULTS/NAME.html)")
    options = parser.parse_args(arguments)
    if bool(options.records) == bool(options.gin):
        raise InputError("give --gin, whose store the report is made from, or --records, and not both.")
    left_out: list[LeftOut] = []
    content, folders = _of_files(options, left_out) if options.records else _of_store(options)
    assert content.grid is not None
    if options.output is None:
        check_file_name(content.grid)
    output = options.output or options.results / f"{content.grid.name}.html"
    cli.check_writable("--output", output.parent, cli.while_written(output.name))
    if output.is_dir():
        raise InputError(f"--output {output}: it is a folder. Name a file.")
    if output.resolve() in [path.resolve() for path in options.records or ()]:
        raise InputError(f"--output {output}: it is one of --records, and would be replaced. Name another file.")
    output.parent.mkdir(parents=True, exist_ok=True)
    write_text(output, page(content.grid.name, report(content, folders)))
    print(f"report: {output}")
    return 1 if left_out else 0


def _of_files(options: argparse.Namespace, left_out: list[LeftOut]) -> tuple[RecordsFile, None]:
    """Read records files, without a store."""
    refuse_missing(options.records)
    return rebuilt(joined_files(options.records, left_out), options.results).content, None


def _of_store(options: argparse.Namespace) -> tuple[RecordsFile, Mapping[str, Path]]:
    """Read the records of a grid from its store and file, and where the folders of its stages are."""
    baselines.register()
    store = Store(options.store)
    store.check_exists()
    plan = make_plan(options.gin, options.set, (), cli.data_root(options), None, check_sources=False)
    # Data that are not prepared have no checksum yet, so their stages have no key and no folder.
    prepared = [cell.stage for cell in plan.cells if not cell.stage.unprepared]
    folders = {stage.key: store.folder(stage) for stage in walk(*prepared)}
    return collate(plan, store, options.results).content, folders


def page(title: str, shown: dict[str, Any]) -> str:
    """Put the parts of the page together.

    Names that look like HTML stay text: the data are base64, and the script puts every name into the page as text. The
    page's policy lets a browser run that one script, by its digest, and load nothing.
    """
    template, style, script = (
        (Path(__file__).parent / f"page.{ending}").read_text(encoding="utf-8") for ending in ("html", "css", "js")
    )
    # The digest is of everything between the tags, the line feeds around $script included.
    digest = base64.b64encode(hashlib.sha256(f"\n{script}\n".encode()).digest()).decode()
    parts = {"style": style, "script": script, "script_digest": f"sha256-{digest}", "data": packed(shown)}
    # A name read from a broken path may hold surrogates, which no file can.
    printable = title.encode(errors="replace").decode()
    return string.Template(template).substitute(parts, title=html.escape(printable))


def packed(shown: dict[str, Any]) -> str:
    """Write data as deflated JSON in base64.

    Checksums are cut to 16 digits, as in the names of folders. Numbers that JSON lacks become their names, such as
    "NaN".
    """
    # JavaScript's parser refuses NaN and Infinity, which Python writes. Only where there are any, data are read again.
    try:
        text = json.dumps(shown, separators=(",", ":"), allow_nan=False)
    except ValueError:
        text = json.dumps(json.loads(json.dumps(shown), parse_constant=str))
    shortened = re.sub(r'"([0-9a-f]{16})[0-9a-f]{48}"', r'"\1"', text)
    return base64.b64encode(zlib.compress(shortened.encode(), 9)).decode()


if __name__ == "__main__":
    sys.exit(cli.reporting_errors(main))
