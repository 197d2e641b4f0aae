"""Check what a grid needs of this computer and, where there is one, of this cluster: `python -m bench.doctor`.

With `--gin FILE` that grid's data, weights, disk space and memory are looked at, too.

Every fact comes with a verdict, and with a fix where there is something to fix. Exit status: 0 no problems, 1 some.
"""

from __future__ import annotations

import argparse
import itertools
import shutil
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import baselines
from bench import cli
from bench.doctor import computer
from bench.doctor.cluster import accepted, settings
from bench.doctor.computer import Fact
from bench.doctor.sample_job import test_job
from bench.launch.slurm.client import SlurmError
from bench.specs.cluster import Cluster

# ---------------------------------------------------------------------------------------------------------- the command


def main(arguments: Sequence[str] | None = None) -> int:
    """Print all facts as soon as each is known."""
    parser = argparse.ArgumentParser(prog="python -m bench.doctor", description=__doc__)
    cli.add_bindings(parser, required=False)
    parser.add_argument("--store", type=Path, default=Path("runs"), help="where stages are to be kept (default: runs)")
    cli.add_data(parser)
    parser.add_argument("--quick", action="store_true", help="run no test job on the cluster")
    options = parser.parse_args(arguments)
    baselines.register()
    (cluster, is_grid), data = _settings(options), cli.data_root(options)
    problems = _tell("this computer", (computer.packages(), computer.devices()))
    disks = computer.disk("--store", options.store), computer.disk("--data", data), computer.file_system(options.store)
    problems += _tell("disks", disks)
    if is_grid:
        from bench.doctor.needs import needs

        problems += _tell("this grid", (needs(options.gin, options.set, options.store, data),))
    if shutil.which("sbatch") is None:
        print("cluster:\n  none: there is no sbatch on the PATH, as there is on a cluster's login node")
    else:
        folders = {"--store": options.store, "--data": data}
        test = () if options.quick else (test_job(options.store, data, cluster),)
        problems += _tell("cluster", (settings(cluster.partition), accepted(cluster, folders), *test))
    print(f"\n{problems} {'problem' if problems == 1 else 'problems'}")
    return 1 if problems else 0


def _settings(options: argparse.Namespace) -> tuple[Cluster, bool]:
    """Read what the named gin files ask of a cluster, and whether they describe a grid."""
    if not options.gin and not options.set:
        return Cluster(), False  # without importing what may be broken here
    from bench.planning.load import load_bindings, load_cluster

    bindings = load_bindings(options.gin, options.set)
    is_grid = any((line.configurable, line.setting) == ("grid", "rows") for line in bindings.all)
    return load_cluster(bindings), is_grid


def _tell(title: str, reports: Iterable[Iterator[Fact]]) -> int:
    """Print facts as they come, and return how many are problems.

    Where Slurm does not answer, that is a problem, too, and the last fact.
    """
    problems = 0
    print(f"{title}:")
    try:
        for fact in itertools.chain.from_iterable(reports):
            problems += fact.verdict == "problem"
            print(f"  {fact.verdict:8}{fact.text}", flush=True)
            if fact.verdict != "ok":
                print(f"  {'':8}fix: {fact.fix}", flush=True)
    except SlurmError as error:
        problems += 1
        print(f"  {'problem':8}{error}", flush=True)
    return problems


if __name__ == "__main__":
    sys.exit(cli.reporting_errors(main))
