"""Hold methods of your own to what the suite demands of its own: `python -m bench.check my_methods`, or a .py file.

Every recipe of the plugin is trained for a few steps on an image and a text task with tiny networks. There is a line
for each demand and recipe, with what to mend. Exit status: 0 all demands are met, 1 some are not, 2 bad input.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import baselines
from bench import cli
from bench.data.tasks import EMBEDDED
from bench.planning.catalogue import Catalogue
from bench.planning.load import load_bindings
from bench.planning.plugins import Plugin, find, load
from bench.planning.registry import RECIPES
from bench.specs import SPECS


def main(arguments: Sequence[str] | None = None) -> int:
    """Look at each demand; return the exit status."""
    parser = cli.plain_parser("check", __doc__)
    parser.add_argument("plugin", metavar="MODULE_OR_FILE", help="as in grid.plugins")
    cli.add_list(parser, "--set", "BINDING", "bindings that recipes cannot be planned without")
    cli.add_data(parser)
    options = parser.parse_args(arguments)
    baselines.register()
    plugin = find(options.plugin, Path.cwd(), "bench.check")
    load(plugin, "bench.check")
    bound = {binding.target: binding.value for binding in load_bindings((), options.set).all}
    root = cli.data_root(options)
    cli.check_writable("--data", root)
    for name in EMBEDDED:
        Catalogue().prepare(name, root)
    lines = Lines()
    with tempfile.TemporaryDirectory(prefix="bench-check-") as folder:
        _check(plugin, root, Path(folder), bound, lines)
    count = lines.unmet
    print(f"\n{plugin.name}: {f'demands not met: {count}' if count else 'all demands are met'}")
    return 1 if count else 0


class Lines:
    """Prints a line for each demand, and counts those that are not met."""

    def __init__(self) -> None:
        self.unmet = 0

    def tell(self, subject: str, title: str, demand: Callable[..., list[str]], *of: Any) -> bool:
        """Look at one demand, and say how it went; return whether it is met."""
        from bench.check.kit import Unmet

        try:
            notes = demand(*of)
        except Unmet as reason:
            self.unmet += 1
            print(f"unmet   {subject}: {title}: {reason}", flush=True)
            return False
        print(f"met     {subject}: {title}", flush=True)
        for note in dict.fromkeys(notes):
            print(f"  note: {note}", flush=True)
        return True


def _check(plugin: Plugin, data: Path, folder: Path, bound: dict[str, Any], lines: Lines) -> None:
    from bench.check.demands import DEMANDS, FIRST, is_declared, on_each_task
    from bench.check.kit import Kit

    own = [kind for kind in SPECS.values() if _is_part_of(plugin, kind.__module__)]
    declared = [lines.tell(kind.__name__, "is a frozen dataclass", is_declared, kind) for kind in own]
    if not all(declared):  # else what comes of such a class would be told of every recipe
        return
    recipes = sorted(name for name, recipe in RECIPES.items() if _is_part_of(plugin, recipe.__module__))
    kit = Kit(recipes, data, folder, bound=bound)
    for recipe in recipes:
        for title, demand in DEMANDS.items():
            if not lines.tell(recipe, title, on_each_task, demand, kit, recipe) and demand in FIRST:
                print(f"skipped {recipe}: the other demands, until this one is met", flush=True)
                break


def _is_part_of(plugin: Plugin, module: str) -> bool:
    return module.partition(".")[0] == plugin.top


if __name__ == "__main__":
    sys.exit(cli.reporting_errors(main))
