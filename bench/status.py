"""Show how a grid stands: `python -m bench.status --gin gin/quickstart.gin`, whatever launcher runs it.

Exit status: 0 all selected cells done, 1 something failed or is blocked, 2 bad input, 3 still to do.
"""

from __future__ import annotations

import argparse
import fnmatch
import io
import os
import re
import shutil
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path

from tabulate import tabulate

import baselines
from bench import cli, states
from bench.errors import InputError, nearest
from bench.planning.plan import Plan, PlannedCell, make_plan
from bench.specs import Stage, walk
from bench.states import STATES, Look, Seen, look
from bench.store.ownership import Attempt
from bench.store.store import Store

REFRESH_SECONDS = 5.0
QUIET_SECONDS = 120.0
"""Watching ends when nothing has been running or queued for so long, though not all is done."""
GLYPHS = {
    "done": "✓",
    "running": "▸",
    "requeued": "↻",
    "stale": "!",
    "unknown": "?",
    "queued": "◦",
    "planned": "·",
    "failed": "✗",
    "blocked": "⊘",
}
PLAIN = dict(zip(STATES, "+>r!?q.xb", strict=True))
"""The glyphs where the terminal's encoding lacks the others."""
MANY_SEEDS = 20
"""Above so many seeds, glyphs are counted instead of repeated."""
LISTED = 8
"""So many lines about the cells of one state."""
LOG_LINES = 5

CLASSES = {
    "out of memory": "OUT_OF_MEMORY|[Oo]ut[ -]of[ -]memory|OutOfMemory|MemoryError|Cannot allocate|bad_alloc|oom.?kill",
    "time-out": r"\bTIMEOUT\b|\bDEADLINE\b|DUE TO TIME LIMIT|no progress in",
    "node": "finds no GPU|NODE_FAIL|BOOT_FAIL|NODE FAILURE|SIGBUS|CUDA driver|CUDA-capable|ECC error|Input/output"
    "|Stale file handle",
    "data": "[Dd]amaged|checksum|NotPrepared|No space left|quota exceeded|Read-only file|FileNotFound|PermissionError",
    "code": "",
}
"""Class of a failure -> what tells it; the first that fits counts."""
FIXES = {
    "out of memory": "ask for more (slurm.mem_gb; on a GPU lower slurm.runs_per_job) or lower the batch size",
    "time-out": "raise slurm.timeout_min or lower grid.checkpoint_steps, so that every attempt gets further",
    "node": "if it is always the same node, keep away from it: slurm.extra = ['exclude=NODE']",
    "data": "free or repair what the message names",
    "code": "read the log (--log CELL) and mend what it tells of",
}


# --------------------------------------------------------------------------------------------------------- the matrix


def describe(plan: Plan, found: Look, encoding: str = "utf-8", width: int | None = None) -> str:
    """The matrix row x task with a glyph per seed, what the glyphs mean, totals, and what is worth telling.

    `width` in characters: as many tasks stand side by side as fit in it.
    """
    cells = [(cell, found.of(cell)) for cell in plan.selected]
    totals = Counter(seen.state for _, seen in cells)
    glyphs = _glyphs(encoding)
    occurring = [state for state in STATES if totals[state]]
    few = f", {len(cells)} selected" if len(cells) < len(plan.cells) else ""
    lines = [f"grid {plan.grid.name}: {len(plan.cells)} cells{few}", "", *_matrix(cells, glyphs, width), ""]
    lines.append("  ".join(f"{glyphs[state]} {state}" for state in occurring))
    lines.append("cells: " + ", ".join(f"{totals[state]} {state}" for state in occurring))
    lines += _details(cells, found)
    if found.tables:
        lines.append(f"the job that writes the tables came to nothing: {found.tables}")
    return "\n".join([*lines, f"warning: {found.warning}"] if found.warning else lines)


def _glyphs(encoding: str) -> dict[str, str]:
    try:
        "".join(GLYPHS.values()).encode(encoding)
    except (UnicodeEncodeError, LookupError):
        return PLAIN
    return GLYPHS


def _matrix(cells: Sequence[tuple[PlannedCell, Seen]], glyphs: dict[str, str], width: int | None) -> Iterator[str]:
    of: dict[str, dict[str, list[Seen]]] = defaultdict(lambda: defaultdict(list))
    for cell, seen in cells:
        of[cell.task][cell.method].append(seen)
    rows = list(dict.fromkeys(cell.method for cell, _ in cells))
    columns = [[task, *(_entry(its[row], glyphs) for row in rows)] for task, its in of.items()]
    label = ["row", *rows]
    while columns:
        beside, columns = [label, columns[0]], columns[1:]
        while columns and (width is None or _width([*beside, columns[0]]) <= width):
            beside.append(columns.pop(0))
        heads, *body = zip(*beside, strict=True)
        yield tabulate(body, headers=heads, tablefmt="simple", disable_numparse=True) + ("\n" if columns else "")


def _width(columns: Sequence[Sequence[str]]) -> int:
    """Of a table of columns with their heads, two blanks between and, as tabulate has it, two after each head."""
    return sum(max(len(head) + 2, *map(len, entries)) + 2 for head, *entries in columns) - 2


def _entry(seeds: Sequence[Seen], glyphs: dict[str, str]) -> str:
    counts = Counter(seen.state for seen in seeds)
    running = [seen.share for seen in seeds if seen.state == "running"]
    percent = f" {_percent(sum(running) / len(running))}" if running else ""
    if len(seeds) > MANY_SEEDS:
        return " ".join(f"{counts[state]}{glyphs[state]}" for state in STATES if counts[state]) + percent
    return "".join(glyphs[seen.state] for seen in seeds) + percent


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %"


def _details(cells: Sequence[tuple[PlannedCell, Seen]], found: Look) -> Iterator[str]:
    told: dict[str, Counter[str]] = defaultdict(Counter)
    for cell, seen in cells:
        if seen.state in ("blocked", "queued", "planned"):
            told[seen.state][seen.note] += 1
        elif seen.state != "done":
            told_share = seen.state == "running" or (seen.share > 0 and seen.state != "failed")
            percent = _percent(seen.share) if told_share else ""
            facts = ", ".join(filter(None, (percent, seen.note)))
            told[seen.state][f"{found.shown[cell.stage.key].folder}: {facts}"] += 1
    for state in STATES:
        lines = [f"{state}: {text} ({_count(count, 'cell')})" for text, count in told[state].items() if text]
        yield from lines[:LISTED]
        if len(lines) > LISTED:
            yield f"{state}: and {len(lines) - LISTED} more"


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


# ----------------------------------------------------------------------------------------------------- failures, logs


def describe_failures(plan: Plan, store: Store, found: Look) -> str:
    """The failed stages by class, each with the end of its log, and what helps."""
    classes: dict[str, list[str]] = defaultdict(list)
    for stage in plan.stages:
        seen = found.seen.get(stage.key)
        if seen is not None and seen.state == "failed":
            log = states.log(stage, store, found)
            lines = states.tail(log).rstrip().splitlines()[-LOG_LINES:] if log else []
            last = found.attempts[stage.key][-1] if found.attempts[stage.key] else None
            text = [f"  {stage.folder}: {seen.note}{_where(last)}", *(f"    | {line}" for line in lines)]
            classes[classify(f"{seen.job} {seen.note}", "\n".join(lines))].append("\n".join(text))
    blocks = [
        "\n".join((f"{kind}: {_count(len(classes[kind]), 'stage')}", f"  fix: {FIXES[kind]}", *classes[kind]))
        for kind in CLASSES
        if classes[kind]
    ]
    again = "bench.grid with --retry runs failed stages again"
    return "\n\n".join([*blocks, again]) if blocks else "no stage failed"


def classify(reason: str, log: str) -> str:
    """The class of a failure: by its reason, or by the end of its log where that tells nothing."""
    for text in (reason, log):
        for kind, pattern in CLASSES.items():
            if pattern and re.search(pattern, text):
                return kind
    return "code"


def _where(attempt: Attempt | None) -> str:
    if attempt is None:
        return ""
    owner = attempt.facts["owner"]
    job = f", job {owner['job']}" if "job" in owner else ""
    return f" (attempt {attempt.number} on {str(owner['machine']).partition(' ')[0]}{job})"


def print_log(plan: Plan, store: Store, found: Look, name: str) -> None:
    """Print the log of the last stage of a cell that has one; of a glob that matches several cells, their names."""
    matching = [cell for cell in plan.selected if name == cell.name]
    matching = matching or [cell for cell in plan.selected if fnmatch.fnmatchcase(cell.name, name)]
    if not matching:
        legal = nearest(name, [cell.name for cell in plan.selected][:20])
        raise InputError(f"--log '{name}' matches no cell; a cell is row/task/backbone/seed.{legal}")
    if len(matching) > 1:
        print("\n".join(f"{cell.name}: {found.of(cell).state}" for cell in matching))
        return
    stages: list[Stage] = list(walk(matching[0].stage))
    log = next(filter(None, (states.log(stage, store, found) for stage in reversed(stages))), None)
    if log is None:
        raise InputError(f"--log '{name}': none of its stages has a log: it has not begun.")
    print(f"{log.relative_to(store.root)}:", file=sys.stderr, flush=True)
    with log.open(encoding="utf-8", errors="replace") as lines:
        shutil.copyfileobj(lines, sys.stdout)


# -------------------------------------------------------------------------------------------------------- the command


def main(arguments: Sequence[str] | None = None) -> int:
    """Look once, or again and again until everything has ended."""
    parser = cli.parser("python -m bench.status", __doc__ or "")
    parser.add_argument(
        "--only", nargs="+", action="extend", default=[], metavar="GLOB", help="cells, as of bench.grid"
    )
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--watch", action="store_true", help="look again every few seconds until all has ended")
    what.add_argument("--failed", action="store_true", help="the failed stages by class, with what helps")
    what.add_argument("--log", metavar="CELL", help="print the log of a cell: row/task/backbone/seed")
    given = parser.parse_args(arguments)
    baselines.register()
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # a log may hold what this terminal cannot show
    if given.watch:
        return _watch(given)
    store, plan = Store(given.store), _plan(given)
    found = look(plan, store, set())
    if given.log is not None:
        print_log(plan, store, found, given.log)
        return 0
    print(describe_failures(plan, store, found) if given.failed else _text(plan, found, given.results))
    table = given.results / f"{plan.grid.name}.md"
    if table.is_file() and not given.failed:
        print(f"table: {table}")
    return _exit_status(plan, found)


def _watch(given: argparse.Namespace) -> int:
    """Show what changes until all has ended, or nothing more will happen by itself; Ctrl-C ends only the watching."""
    store, done, before, heard = Store(given.store), set[str](), "", time.monotonic()
    try:
        plan = _plan(given)
        while True:
            found = look(plan, store, done)
            if (text := _text(plan, found, given.results)) != before:
                print(f"\033[H\033[2J{text}" if sys.stdout.isatty() else text, flush=True)
            before, now = text, {seen.state for seen in found.seen.values()}
            if now & {"running", "queued", "requeued"}:
                heard = time.monotonic()
            elif now <= {"done", "failed", "blocked"} or time.monotonic() - heard > QUIET_SECONDS:
                return _exit_status(plan, found)
            time.sleep(REFRESH_SECONDS)
            plan = _plan(given) if plan.unprepared else plan
    except KeyboardInterrupt:
        return 0


def _plan(given: argparse.Namespace) -> Plan:
    # Looked up nowhere: `look` reads each folder itself, and takes damage for a state instead of an error.
    return make_plan(given.gin, given.set, given.only, cli.data_root(given), Store(Path(os.devnull)))


def _text(plan: Plan, found: Look, results: Path) -> str:
    table = results / f"{plan.grid.name}.md"
    if table.is_file() and table.stat().st_mtime > found.tables_time:  # written since, by whomever
        found.tables = ""
    width = shutil.get_terminal_size().columns if sys.stdout.isatty() else None
    return describe(plan, found, sys.stdout.encoding, width)


def _exit_status(plan: Plan, found: Look) -> int:
    now = {found.of(cell).state for cell in plan.selected}
    return 1 if now & {"failed", "blocked"} else 0 if now == {"done"} else 3


if __name__ == "__main__":
    sys.exit(cli.reporting_errors(main))
