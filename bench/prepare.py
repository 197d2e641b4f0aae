"""Prepare data and weights: `python -m bench.data list | prepare NAME… | check NAME…`.

Exit status: 0 all well, 1 something is damaged or a disk is full, 2 bad input, 130 interrupted (downloads resume).
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import baselines
from bench import cli
from bench.data.manifest import read_manifest
from bench.data.tasks import CORPORA, EMBEDDED
from bench.errors import InputError, NotPrepared
from bench.planning.catalogue import Catalogue
from bench.planning.load import load_bindings
from bench.planning.registry import BACKBONES
from bench.pretrained import checkpoints
from bench.store.files import MANIFEST


def main(arguments: Sequence[str] | None = None) -> int:
    """List, prepare or check tasks, corpora and backbones."""
    options = _parser().parse_args(arguments)
    baselines.register()
    root = cli.data_root(options)
    catalogue = Catalogue(load_bindings(options.gin, options.set).all, root)
    if options.command == "list":
        print(_listing(catalogue, root))
        return 0
    if options.command == "check":
        return _check(catalogue, options.names, root)
    if options.source is not None and len(options.names) > 1:
        raise InputError(f"--from {options.source}: prepare one name at a time with it, not {len(options.names)}.")
    if options.source is not None and not options.source.exists():
        raise InputError(f"--from {options.source}: there is no such file or folder.")
    # All names before the first is prepared: a typing error in the last one must not show up after hours of downloads.
    for name in options.names:
        catalogue.refuse_unknown(name)
    cli.check_writable("--data", root)
    for name in options.names:
        print(f"{name}: {catalogue.prepare(name, root, options.source, options.again)}", flush=True)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = cli.plain_parser("data", __doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    listing = commands.add_parser("list", help="what there is, and what is prepared")
    prepare = commands.add_parser("prepare", help="download and convert, or build from what is at hand")
    check = commands.add_parser("check", help="read prepared data again: content, counts, every example")
    prepare.add_argument("names", nargs="+", metavar="NAME", help="tasks, corpora, backbones")
    check.add_argument("names", nargs="*", metavar="NAME", help="tasks, corpora, backbones (default: all prepared)")
    prepare.add_argument(
        "--from", dest="source", type=Path, metavar="FILE_OR_FOLDER", help="archives or a folder already at hand"
    )
    prepare.add_argument("--again", action="store_true", help="replace what is prepared")
    for command in (listing, prepare, check):
        cli.add_bindings(command, required=False)
        cli.add_data(command)
    return parser


def _listing(catalogue: Catalogue, root: Path) -> str:
    from tabulate import tabulate

    rows = [*_data_rows(catalogue, root), *_backbone_rows(catalogue, root)]
    table = tabulate(rows, headers=("name", "kind", "prepared", "source"), tablefmt="simple")
    return f"{table}\n\ndata root: {root}; prepare with: python -m bench.data prepare NAME…"


def _data_rows(catalogue: Catalogue, root: Path) -> Iterator[tuple[str, str, str, str]]:
    from bench.data.public import SOURCES

    for name in (*catalogue.tasks, *CORPORA):
        counts = _prepared(name, root)
        if name in EMBEDDED:
            source = "installed packages"
        elif name in SOURCES:
            hub = catalogue.tasks[name].source  # GLUE alone has one
            source = f"{hub or 'official files'}; licence: {SOURCES[name].licence}"
        else:
            source = str(catalogue.tasks[name].source)
        kind = "corpus" if name in CORPORA else f"{catalogue.tasks[name].modality}s"
        yield name, kind, counts, source


def _prepared(name: str, root: Path) -> str:
    try:
        manifest = read_manifest(name, root)
    except InputError:
        return "damaged"
    if manifest is None:
        return "no"
    return " / ".join(f"{split} {facts.examples}" for split, facts in manifest.splits.items())


def _backbone_rows(catalogue: Catalogue, root: Path) -> Iterator[tuple[str, str, str, str]]:
    for name in dict.fromkeys((*BACKBONES, *catalogue.checkpoints)):
        if name not in catalogue.checkpoints:
            yield name, "backbone", "by the first run", "pre-trained by the suite"
            continue
        source = catalogue.checkpoints[name]
        try:
            prepared = checkpoints.read(name, root)
            state = "no" if prepared is None else "another one" if source.differs(prepared) else "yes"
        except InputError:
            state = "damaged"
        yield name, "backbone", state, source.weights


def _check(catalogue: Catalogue, names: Sequence[str], root: Path) -> int:
    from bench.planning import check_prepared

    if not names:
        names = [name for name in (*catalogue.tasks, *CORPORA) if (root / name / MANIFEST).is_file()]
        names += [name for name in catalogue.checkpoints if (checkpoints.folder(name, root) / MANIFEST).is_file()]
        print("\n".join(_undeclared(catalogue, root)) or f"{len(names)} prepared in {root}")
    status = 0
    for name in names:
        catalogue.refuse_unknown(name)
        try:
            report = check_prepared.check(name, catalogue, root)
        except NotPrepared:
            raise
        except InputError as error:  # a manifest that cannot be read
            report = check_prepared.Report("damaged", [str(error)], [])
        print(f"{name}: {report.summary}")
        for line in report.problems:
            print(f"  wrong: {line}")
        for line in report.notes:
            print(f"  note: {line}")
        status = max(status, 1 if report.problems else 0)
    return status


def _undeclared(catalogue: Catalogue, root: Path) -> Iterator[str]:
    """List what is prepared under names that nothing declares. A gin file that was not named may declare them."""
    for folder, names in ((root, {*catalogue.tasks, *CORPORA}), (root / "backbones", catalogue.checkpoints.keys())):
        for path in sorted(folder.glob(f"*/{MANIFEST}")):
            if path.parent.name not in names:
                yield f"{path.parent.name}: not checked: name the file that declares it with --gin"


if __name__ == "__main__":
    sys.exit(cli.reporting_errors(main))
