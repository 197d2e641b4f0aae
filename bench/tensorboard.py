"""Write the learning curves of a store as TensorBoard events: `python -m bench.tensorboard --output FOLDER`.

Each stage becomes a run of its folder's name: its loss, the loss's parts and the learning rate over steps. A run that
is written again replaces the one of before. Needs the extra `tensorboard`.
"""

from __future__ import annotations

import fnmatch
import os
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from bench import cli
from bench.errors import InputError
from bench.store.store import Store
from bench.training.curve import CURVE, read_curve

EVENTS = "events.out.tfevents.curve"
"""TensorBoard reads files whose names hold `tfevents`. Its own writer would add the name of this computer."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the events; return the exit status, 0."""
    parser = cli.plain_parser("tensorboard", __doc__)
    add = parser.add_argument
    add("--store", type=Path, default=Path("runs"), help="where stages are kept (default: runs)")
    add("--output", type=Path, required=True, metavar="FOLDER", help="where the events go: tensorboard --logdir FOLDER")
    add("--only", nargs="+", default=["*"], metavar="GLOB", help="stages by their folder's name (default: all)")
    options = parser.parse_args(arguments)
    store = Store(options.store)
    store.check_exists()
    writer = event_writer()
    curves = _curves(store.root, options.only)
    cli.check_writable("--output", options.output, f"{max(curves, key=len)}/{EVENTS}")
    options.output.mkdir(parents=True, exist_ok=True)
    for name, points in curves.items():
        _write(points, options.output / name, writer)
    print(f"{len(curves)} learning curves: {options.output}\ntensorboard --logdir {options.output} shows them")
    return 0


def event_writer() -> Any:
    """Return torch's writer of events, or refuse to go on without the package that it needs."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise InputError(
            f"the package tensorboard is missing or cannot be used ({error}). "
            "pip install 'adaptation-bench[tensorboard]' brings it, in a checkout pip install -e '.[tensorboard]'."
        ) from error
    return SummaryWriter


def _curves(store: Path, globs: Sequence[str]) -> dict[str, list[dict[str, Any]]]:
    """Read the curves of a store by the names of their folders; refuses globs without any."""
    names = sorted(path.parent.name for path in store.glob(f"*/{CURVE}"))
    chosen = [name for name in names if any(fnmatch.fnmatchcase(name, glob) for glob in globs)]
    curves = {name: points for name in chosen if (points := read_curve(store / name))}
    if not curves:
        examples = f" It has {', '.join(names[:3])}, …" if names else " Stages write one while they are trained."
        raise InputError(f"--store {store} has no learning curve of --only {' '.join(globs)}.{examples}")
    return curves


def _write(points: Sequence[Mapping[str, Any]], folder: Path, writer: Any) -> None:
    """Write the events of a curve into a folder, in the place of those of before."""
    # In a folder of its own, whose one file then takes its place at once: TensorBoard may read meanwhile, and of two
    # files of a run it would show each step twice.
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".events-") as temporary:
        with writer(temporary) as events:
            for point in points:
                for name, value in scalars(point):
                    events.add_scalar(name, value, point["step"])
        folder.mkdir(exist_ok=True)
        (file,) = Path(temporary).iterdir()
        os.replace(file, folder / EVENTS)


def scalars(point: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    """Yield the numbers of a point by the names under which TensorBoard shows them.

    Example: {"loss": 0.5, "lr": 0.01, "parts": {"masked": 0.4}, "step": 10} has `loss`, `lr` and `parts/masked`.
    """
    numbers = {"loss": point.get("loss"), "lr": point.get("lr")}
    numbers |= {f"parts/{name}": value for name, value in point.get("parts", {}).items()}
    yield from ((name, float(value)) for name, value in numbers.items() if isinstance(value, int | float))


if __name__ == "__main__":
    sys.exit(cli.reporting_errors(main))
