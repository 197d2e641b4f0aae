"""`results/speed.md` and what it is made of: a JSON file per device beside it, so that no device overwrites another."""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from tabulate import tabulate

from bench import speed
from bench.speed import costs, targets
from bench.speed.line import Line, Ratio
from bench.speed.work import BARE, COMPILED, OURS, RELEASED, SAME, TRAINER, TRAINER_COMPILED
from bench.store.files import read_json, write_json, write_text

Facts = dict[str, Any]
"""What is known of one device: `provenance` facts, `lines`, `quickstart` and `inputs`."""

INTRODUCTION = "# Speed\n\n" + (speed.__doc__ or "").partition("\n\n")[2]


# ------------------------------------------------------------------------------------------------ the figures


def store(output: Path, new: Facts) -> Facts:
    """Store what was measured, and write the page anew.

    Returns all that is known of the device, what was measured before included.
    """
    path = output.with_suffix("") / f"{slug(title(new))}.json"
    facts = merged(read_json(path, "Delete it to begin anew.") if path.is_file() else {}, new)
    write_json(path, facts)
    write_text(output, page(output))
    return facts


def merged(old: Facts, new: Facts) -> Facts:
    """Replace facts, lines of one precision, cells of `inputs` and the quickstart.

    Whatever was not measured again stays.
    """
    lines = (values for facts in (old, new) for values in facts.get("lines", {}).values())
    inputs = {**old.get("inputs", {}), **new.get("inputs", {})}
    return {**old, **new, "lines": {Line(**values).identity: values for values in lines}, "inputs": inputs}


def slug(device: str) -> str:
    """Name the file of a device."""
    return re.sub(r"[^a-z0-9]+", "-", device.lower()).strip("-")


# ------------------------------------------------------------------------------------------------ the page


def page(output: Path) -> str:
    """Render the page from the figures of all devices."""
    files = sorted(output.with_suffix("").glob("*.json"))
    sections = [section(read_json(path, "Delete it to measure that device again.")) for path in files]
    return "\n".join([INTRODUCTION, *sections])


def section(facts: Facts) -> str:
    """Render the section of one device."""
    lines = [Line(**values) for values in facts.get("lines", {}).values()]
    versions = ", ".join(f"{name} {version}" for name, version in facts.get("versions", {}).items())
    last_run = f"Last run {facts['date']}, commit {facts.get('commit') or 'unknown'}; {versions}."
    parts = [f"## {title(facts)}", "", last_run, ""]
    if lines:
        parts += ["### Training loops", "", *_loops(lines), "", *_hours(lines), *_compilation(lines)]
    if facts.get("quickstart"):
        parts += _quickstart(facts["quickstart"])
    if lines or facts.get("quickstart"):
        parts += ["### Targets", "", _table(targets.verdicts(facts, lines)), ""]
    if facts.get("inputs"):
        parts += _inputs(facts["inputs"])
    return "\n".join(parts)


def title(facts: Facts) -> str:
    """Name a GPU by model, a CPU with instruction set and cores."""
    if facts.get("gpu"):
        return str(facts["device"])
    return f"{facts['device']}, {facts['instruction_set']}, {facts['cores']} cores"


def _table(rows: Iterable[Mapping[str, str]]) -> str:
    """Render rows, which name their columns."""
    return tabulate(list(rows), headers="keys", tablefmt="github", disable_numparse=True)


def _loops(lines: Iterable[Line]) -> Iterator[str]:
    lines = sorted(lines, key=lambda line: (line.network, line.kind, line.precision))
    speeds = [
        {
            "stage/network": line.name,
            "precision": line.precision + (", compiled" if line.best == COMPILED else ""),
            "batch": str(line.batch),
            "ours": _number(line.median(line.best), "{:.4g}/s"),
            "released": _ratio(line.ratio(RELEASED)),
            "same precision": _ratio(line.ratio(SAME)),
            "Trainer": _ratio(line.ratio(TRAINER, TRAINER_COMPILED)),
            "bare": _ratio(line.ratio(BARE)),
        }
        for line in lines
    ]
    shares = [
        {
            "stage/network": line.name,
            "precision": line.precision,
            "ms a step": _number(1e3 * line.step_seconds, "{:.4g}"),
            "GFLOP an example": _number((line.flops or math.nan) / 1e9, "{:.4g}"),
            "TFLOP/s": _number(line.flops_per_second / 1e12, "{:.3g}"),
            "peak TFLOP/s": _number(max(line.peaks, default=math.nan) / 1e12, "{:.3g}"),
            "share": _number(100 * line.share, "{:.1f} %"),
            "threads": str(line.threads),
            "others": _number(100 * max((share or 0.0 for share in line.others), default=math.nan), "{:.0f} %"),
            "commit": (line.commit or "unknown")[:7] + ("-dirty" if (line.commit or "").endswith("-dirty") else ""),
        }
        for line in lines
    ]
    yield from (_table(speeds), "", _table(shares))
    failures = sorted({f"{who}: {why}" for line in lines for who, why in line.failures.items()})
    yield from ("", *failures) if failures else ()


def _number(value: float, form: str) -> str:
    return "-" if math.isnan(value) else form.format(value)


def _ratio(ratio: Ratio | None) -> str:
    return "-" if ratio is None else f"{ratio.median:.2f}x ({ratio.least:.2f}–{ratio.greatest:.2f})"


def _hours(lines: Collection[Line]) -> Iterator[str]:
    for name, table in costs.TABLES.items():
        hours = costs.hours(table, lines)
        if hours is not None:
            stages = " + ".join(f"{count} {kind}" for kind, count in costs.examples(table)[0].items())
            yield (
                f"{name} of the first paper ({stages} of {table.grid}) would take {hours:.3g} hours of training on "
                "this device, every fine-tuning counted as plain; evaluation and reading data are left out."
            )
            yield ""


def _compilation(lines: Iterable[Line]) -> Iterator[str]:
    rows = [
        {
            "stage/network": line.name,
            "s to compile": f"{seconds:.1f}",
            "ms saved a step": f"{1e3 * saved:.2f}",
            "compiled": f"{line.median(COMPILED) / line.median(OURS):.2f}x",
            "pays after": f"{seconds / saved:.0f} steps" if saved > 0 else "never",
        }
        for line in lines
        for seconds, saved in filter(None, [line.break_even()])
    ]
    if rows:
        yield from ("`execution.compile`:", "", _table(rows), "")


def _quickstart(facts: Mapping[str, Any]) -> Iterator[str]:
    took = f"{facts['seconds']:.1f} s, first step after {facts['first_step']:.1f} s"
    if "quickstart_ratio" in facts:
        other = f"another checkout (commit {facts.get('other_commit') or 'unknown'})"
        took += f"; {other} {facts['other_seconds']:.1f} s, ratio {facts['quickstart_ratio']:.2f}x"
    commit = facts["commit"] or "unknown"
    yield from ("### Quickstart", "", f"`gin/quickstart.gin` on prepared data: {took} (commit {commit}).", "")
    path = [
        {"stage": stage, "began at s": f"{began:.1f}", "took s": f"{ended - began:.1f}", "waited for": reason}
        for stage, reason, began, ended in facts["path"]
    ]
    yield from ("Its critical path:", "", _table(path), "")


def _inputs(cells: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    yield from ("### The input path", "")
    yield (
        "*Read* is a batch from the memory-mapped array, mirrored and normalised; *decode* is what the same batch "
        "would cost from its encoded images."
    )
    rows = [
        {
            "cell": values["cell"],
            "threads": str(values["threads"]),
            "read ms": f"{1e3 * values['read']:.2f}",
            "decode ms": "-" if values["decoded"] is None else f"{1e3 * values['decoded']:.2f}",
            "step ms": f"{1e3 * values['step']:.1f}",
            "decode / read": "-" if values["decoded"] is None else f"{values['decoded'] / values['read']:.0f}x",
            "read / step": f"{100 * values['read'] / values['step']:.2f} %",
        }
        for values in cells.values()
    ]
    yield from ("", _table(rows), "")
