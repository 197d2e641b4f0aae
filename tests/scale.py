"""Measure the commands on a large grid: `python tests/scale.py [--seeds 715] [CHECKOUT]…`.

The grid is gin/quickstart.gin with many seeds, of 14 cells each, and its store holds a made-up record of every stage.
Printed are the CPU seconds and the peak memory of each command. Both depend on the machine, and seconds on its load: to
compare two versions give two checkouts, whose commands then run by turns.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from unittest import mock

import baselines
from bench.data.prepare import prepare_data
from bench.planning.plan import make_plan
from bench.specs import Stage
from bench.store import files
from bench.store.store import Store

HERE = Path(__file__).resolve().parents[1]
GIN = "gin/quickstart.gin"
PROVENANCE = {
    "commit": None,
    "versions": {"adaptation-bench": "0"},
    "device": "A processor",
    "device_type": "cpu",
    "instruction_set": "AVX2",
    "threads": 1,
    "cores": 1,
}


def fill(store: Store, stages: Iterable[Stage]) -> None:
    """Publish a made-up record and a few bytes of weights for each stage; parents come first."""
    with mock.patch.object(files, "sync"):  # nothing here has to outlive a power cut
        for number, stage in enumerate(stages):
            weights = store.add(stage) / "weights.safetensors"
            weights.write_bytes(b"weights")
            attempt = store.claim(stage)
            assert attempt is not None, f"somebody runs {stage.folder}"
            record = {
                "key": stage.key,
                "metrics": dict.fromkeys(("accuracy", "macro_f1"), 0.5 + number % 1000 / 3000),
                "measured": {},
                "seconds": 1.0,
                "provenance": PROVENANCE,
                "weights": {"file": weights.name, "sha256": files.sha256(weights), "bytes": 7},
                "parents": {parent.folder: files.sha256(weights) for parent in stage.parents},
            }
            store.publish(attempt, stage, record)


def prepare(folder: Path, seeds: str) -> None:
    """Prepare the embedded data, and make a store in which the whole grid is done."""
    baselines.register()
    for name in ("digits", "pydocs", "docstrings", "photographs"):
        prepare_data(name, folder / "data")
    store = Store(folder / "store")
    plan = make_plan([GIN], [seeds], (), folder / "data", store)
    fill(store, (stage for stage in plan.stages if stage.key not in plan.done))


def measure(checkout: Path, command: Sequence[str]) -> str:
    """Run a command of a checkout; return its CPU seconds and its peak memory."""
    environment = {**os.environ, "PYTHONPATH": str(checkout)}
    process = subprocess.Popen(
        [sys.executable, "-m", *command], cwd=checkout, env=environment, stdout=subprocess.DEVNULL
    )
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"failed in {checkout}: {' '.join(command)[:80]}")
    return f"{usage.ru_utime + usage.ru_stime:6.2f} s {usage.ru_maxrss / 1024:5.0f} MB"


def main() -> None:
    """Print a line per command, with a column per checkout."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("checkouts", nargs="*", type=Path, help="checkouts to compare (default: this one)")
    parser.add_argument("--seeds", type=int, default=715, help="how many seeds (default: 715, about 10,000 cells)")
    parser.add_argument("--folder", type=Path, help="keep data, store and results there for the next time")
    parser.add_argument("--only", action="append", metavar="COMMAND", help="measure this one; may be given again")
    options = parser.parse_args()
    checkouts = [checkout.resolve() for checkout in options.checkouts or [HERE]]
    with tempfile.TemporaryDirectory() as temporary:
        folder = (options.folder or Path(temporary)).resolve()
        seeds = f"grid.seeds = {list(range(options.seeds))}"
        with ProcessPoolExecutor(1) as pool:  # a command's peak includes that of the process that starts it
            pool.submit(prepare, folder, seeds).result()
        data, grid = [f"--data={folder / 'data'}"], ["--gin", GIN, "--set", seeds]
        stored, empty = [f"--store={folder / 'store'}", f"--results={folder / 'results'}"], [f"--store={os.devnull}"]
        commands = {
            "plan": ["bench.grid", *grid, *data, *stored, "--plan"],
            "empty": ["bench.grid", *grid, *data, *empty, "--plan"],
            "search": ["bench.grid", "--gin", "gin/label_regularization.gin", *data, *empty, "--plan"],
            "status": ["bench.status", *grid, *data, *stored],
            "run": ["bench.grid", *grid, *data, *stored],
            "collate": ["bench.collate", *grid, *data, *stored],
        }
        for name in options.only or commands:
            print(f"{name:8}", *(measure(checkout, commands[name]) for checkout in checkouts), sep="   ", flush=True)


if __name__ == "__main__":
    main()
