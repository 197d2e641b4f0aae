"""How a grid stands, as a matrix of rows and tasks."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence

from tabulate import tabulate

from bench.launch.slurm.reasons import fix_of
from bench.monitor.states import STATES, Jobs, Look, Seen
from bench.planning.describe import counted, outdated
from bench.planning.plan import Plan, PlannedCell
from bench.store.activity import describe_inactive
from bench.store.states import StageState

GLYPHS = dict(zip(STATES, "✓▸↻!?◦·✗⊘", strict=True))
PLAIN = dict(zip(STATES, "+>r!?q.xb", strict=True))
"""The glyphs where the terminal's encoding lacks the others."""


MANY_SEEDS = 20
"""Above so many seeds, glyphs are counted instead of repeated."""


LISTED = 8
"""So many lines about the cells of one state."""


def describe_states(plan: Plan, view: Look, encoding: str = "utf-8", width: int | None = None) -> str:
    """Describe how a grid stands.

    The text has a matrix row x task with a glyph per seed, what the glyphs mean, totals, and what else matters. `width`
    is in characters: as many tasks stand side by side as fit in it.
    """
    cells = [(cell, view.of(cell)) for cell in plan.selected]
    totals = Counter(seen.state for _, seen in cells)
    glyphs = _glyphs(encoding)
    occurring = [state for state in STATES if totals[state]]
    few = f", {len(cells)} selected" if len(cells) < len(plan.cells) else ""
    lines = [f"grid {plan.grid.name}: {len(plan.cells)} cells{few}", "", *_matrix(cells, glyphs, width), ""]
    lines.append("  ".join(f"{glyphs[state]} {state}" for state in occurring))
    lines.append("cells: " + ", ".join(f"{totals[state]} {state}" for state in occurring))
    lines += _attention(view.jobs)
    lines += _details(cells, view)
    lines += outdated(view.outdated.values())
    lines += describe_inactive(view.inactive)
    if view.tables:
        lines.append(f"the job that writes the tables came to nothing: {view.tables}")
    return "\n".join([*lines, f"warning: {view.warning}"] if view.warning else lines)


def _attention(jobs: Jobs) -> Iterator[str]:
    """Yield what somebody has to look at: a grid that stopped, jobs that wait for ever, nodes that are not used."""
    if jobs.stopped:
        yield f"stopped: {jobs.stopped}. Mend the cause, then go on with bench.grid --retry"
    waiting: dict[tuple[str, str], list[str]] = defaultdict(list)
    for _, element, state in jobs.live():
        if state.waiting:
            waiting[state.reason, state.state].append(element)
    for (reason, word), elements in waiting.items():
        if fix := fix_of(reason, word, elements[0].partition("_")[0]):
            yield f"needs somebody: {counted(len(elements), 'job')}: {reason or word}: {fix}"
    for node, reason in jobs.excluded.items():
        yield f"jobs keep away from {node}: {reason}"


def _glyphs(encoding: str) -> Mapping[StageState, str]:
    try:
        "".join(GLYPHS.values()).encode(encoding)
    except (UnicodeEncodeError, LookupError):
        return PLAIN
    return GLYPHS


def _matrix(
    cells: Sequence[tuple[PlannedCell, Seen]], glyphs: Mapping[StageState, str], width: int | None
) -> Iterator[str]:
    """Yield as many tables row x task as the width needs.

    Example: the columns row, cats and dogs are 10, 8 and 8 wide. All take 30 characters; with a width of 25 there are
    two tables, of row and cats and of row and dogs.
    """
    by_task: dict[str, dict[str, list[Seen]]] = defaultdict(lambda: defaultdict(list))
    for cell, seen in cells:
        by_task[cell.task][cell.method].append(seen)
    rows = list(dict.fromkeys(cell.method for cell, _ in cells))
    columns = [[task, *(_entry(by_row[row], glyphs) for row in rows)] for task, by_row in by_task.items()]
    label = ["row", *rows]
    while columns:
        beside, columns = [label, columns[0]], columns[1:]
        while columns and (width is None or _width([*beside, columns[0]]) <= width):
            beside.append(columns.pop(0))
        heads, *body = zip(*beside, strict=True)
        yield tabulate(body, headers=heads, tablefmt="simple", disable_numparse=True) + ("\n" if columns else "")


def _width(columns: Sequence[Sequence[str]]) -> int:
    """Compute the width of a table from its columns with their heads.

    Two blanks are between columns and, as tabulate has it, two after each head.
    """
    return sum(max(len(head) + 2, *map(len, entries)) + 2 for head, *entries in columns) - 2


def _entry(seeds: Sequence[Seen], glyphs: Mapping[StageState, str]) -> str:
    """Show the seeds of a row and task.

    Examples: '✓✓▸ 40 %', and with many seeds '28✓ 2▸ 40 %'.
    """
    counts = Counter(seen.state for seen in seeds)
    running = [seen.share for seen in seeds if seen.state == StageState.RUNNING]
    percent = f" {_percent(sum(running) / len(running))}" if running else ""
    if len(seeds) > MANY_SEEDS:
        return " ".join(f"{counts[state]}{glyphs[state]}" for state in STATES if counts[state]) + percent
    return "".join(glyphs[seen.state] for seen in seeds) + percent


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %"


def _details(cells: Sequence[tuple[PlannedCell, Seen]], view: Look) -> Iterator[str]:
    # State -> line -> the number of cells that it is true of.
    notes: dict[StageState, Counter[str]] = defaultdict(Counter)
    failed: dict[str, str] = {}  # key of a failed stage -> the first cell that it is of
    for cell, seen in cells:
        if seen.state in (StageState.BLOCKED, StageState.QUEUED, StageState.PLANNED):
            notes[seen.state][seen.note] += 1
        elif seen.state != StageState.DONE:
            running = seen.state == StageState.RUNNING
            percent = _percent(seen.share) if running or (seen.share > 0 and seen.state != StageState.FAILED) else ""
            facts = ", ".join(filter(None, (percent, seen.note)))
            shown = view.shown[cell.stage.key]
            name = failed.setdefault(shown.key, cell.name) if seen.state == StageState.FAILED else shown.title
            notes[seen.state][f"{name}: {facts}"] += 1
    for state in STATES:
        lines = [f"{state}: {text} ({counted(count, 'cell')})" for text, count in notes[state].items() if text]
        yield from lines[:LISTED]
        if len(lines) > LISTED:
            yield f"{state}: and {len(lines) - LISTED} more"
