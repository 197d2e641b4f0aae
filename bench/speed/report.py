"""`results/speed.md` and what it is made of: a JSON file per device beside it, so that no device overwrites another."""

from __future__ import annotations

import dataclasses
import json
import math
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from tabulate import tabulate

from bench.speed import costs, targets
from bench.speed.measure import Line, Ratio
from bench.speed.work import BARE, COMPILED, OURS, RELEASED, SAME, TRAINER, TRAINER_COMPILED
from bench.store.files import read_json, write_json, write_text

Facts = dict[str, Any]
"""What is known of one device: `provenance` facts, `lines`, `quickstart` and `inputs`."""

INTRODUCTION = """# Speed

Written by `python -m bench.speed`, one section per device; a run replaces what it measured itself and nothing else.
*Ours* is the suite's training loop on random examples in memory, with the papers' schedules. A number with *x* says how
many times as fast as another loop on the same examples ours was: the ratio of the medians, and the least and the
greatest ratio of a round, all taking turns in one run, each in a process of its own.

- *released*: a plain loop on transformers' network in the order of the released code, float32, eager attention
- *same precision*: that loop in the precision of ours, with fused attention
- *Trainer*: transformers' `Trainer` in the same precision with fused AdamW, texts grouped by length, compiled where
  that helps
- *bare*: forward, backward and AdamW of the reference's network alone, on batches that lie ready
- *share*: the floating-point operations of our loop per second in those of the fastest of several matrix products,
  measured in the same run and precision
- *others*: the greatest share of the cores that anything else on the computer used in a round
"""


def slug(device: str) -> str:
    """Name the file of a device."""
    return re.sub(r"[^a-z0-9]+", "-", device.lower()).strip("-")


def store(output: Path, device: str, new: Mapping[str, Any]) -> Facts:
    """Put what was measured beside what is known of the device, and write the page anew.

    The lines and cells of `inputs` that were measured again are replaced; so is the quickstart.
    """
    path = folder(output) / f"{slug(device)}.json"
    known: Facts = read_json(path, "Delete it to begin anew.") if path.is_file() else {}
    merged = {**known, **new}
    for part in ("lines", "inputs"):
        merged[part] = {**known.get(part, {}), **new.get(part, {})}
    write_json(path, merged)
    write_text(output, page(output))
    return merged


def folder(output: Path) -> Path:
    """Where the figures behind a page lie."""
    return output.with_suffix("")


def page(output: Path) -> str:
    """Render the page from the figures of all devices."""
    files = sorted(folder(output).glob("*.json"))
    sections = [section(read_json(path, "Delete it to measure that device again.")) for path in files]
    return "\n".join([INTRODUCTION, *sections])


def section(facts: Facts) -> str:
    """Render the section of one device."""
    lines = {name: Line(**values) for name, values in facts.get("lines", {}).items()}
    parts = [f"## {title(facts)}", "", description(facts), ""]
    if lines:
        parts += ["### Training loops", "", *_loops(lines.values()), "", *_hours(lines), *_compilation(lines.values())]
    if facts.get("quickstart"):
        parts += _quickstart(facts["quickstart"])
    if lines or facts.get("quickstart"):
        parts += ["### Targets", "", _targets(facts, lines), ""]
    if facts.get("inputs"):
        parts += _inputs(facts["inputs"])
    return "\n".join(parts)


def title(facts: Facts) -> str:
    """Name a device: a GPU's model, or a processor with its instruction set and cores."""
    if facts.get("gpu"):
        return str(facts["device"])
    return f"{facts['device']}, {facts['instruction_set']}, {facts['cores']} cores"


def description(facts: Facts) -> str:
    """Say with what was measured last: commit, versions, date."""
    versions = ", ".join(f"{name} {version}" for name, version in facts.get("versions", {}).items())
    return f"Last run {facts['date']}, commit {facts.get('commit') or 'unknown'}; {versions}."


def _table(rows: Iterable[Iterable[str]], headers: Iterable[str]) -> str:
    return tabulate([tuple(row) for row in rows], headers=tuple(headers), tablefmt="github", disable_numparse=True)


def _loops(lines: Iterable[Line]) -> Iterator[str]:
    lines = sorted(lines, key=lambda line: (line.network, line.kind))
    headers: tuple[str, ...]
    headers = ("stage/network", "precision", "batch", "ours", "released", "same precision", "Trainer", "bare")
    rows = [
        (
            line.name,
            line.precision + (", compiled" if line.best == COMPILED else ""),
            str(line.batch),
            _number(line.median(line.best), "{:.4g}/s"),
            _ratio(line.ratio(RELEASED)),
            _ratio(line.ratio(SAME)),
            _ratio(line.ratio(TRAINER, TRAINER_COMPILED)),
            _ratio(line.ratio(BARE)),
        )
        for line in lines
    ]
    yield _table(rows, headers)
    yield ""
    headers = (
        "stage/network",
        "ms a step",
        "GFLOP an example",
        "TFLOP/s",
        "peak TFLOP/s",
        "share",
        "threads",
        "others",
        "commit",
    )
    yield _table(
        (
            (
                line.name,
                _number(1e3 * line.step_seconds, "{:.4g}"),
                _number((line.flops or math.nan) / 1e9, "{:.4g}"),
                _number(line.flops_per_second / 1e12, "{:.3g}"),
                _number(max(line.peaks, default=math.nan) / 1e12, "{:.3g}"),
                _number(100 * line.share, "{:.1f} %"),
                str(line.threads),
                _number(100 * max((share or 0.0 for share in line.others), default=math.nan), "{:.0f} %"),
                (line.commit or "unknown")[:7] + ("-dirty" if (line.commit or "").endswith("-dirty") else ""),
            )
            for line in lines
        ),
        headers,
    )
    failures = sorted({f"{who}: {why}" for line in lines for who, why in line.failures.items()})
    yield from ("", *failures) if failures else ()


def _number(value: float, form: str) -> str:
    return "-" if math.isnan(value) else form.format(value)


def _ratio(ratio: Ratio | None) -> str:
    return "-" if ratio is None else f"{ratio.median:.2f}x ({ratio.least:.2f}–{ratio.greatest:.2f})"


def _hours(lines: Mapping[str, Line]) -> Iterator[str]:
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
    rows = []
    for line in lines:
        measured = line.break_even()
        if measured is not None:
            seconds, saved = measured
            ratio = line.median(COMPILED) / line.median(OURS)
            even = f"{seconds / saved:.0f} steps" if saved > 0 else "never"
            rows.append((line.name, f"{seconds:.1f}", f"{1e3 * saved:.2f}", f"{ratio:.2f}x", even))
    if rows:
        headers = ("stage/network", "s to compile", "ms saved a step", "compiled", "pays after")
        yield from ("`execution.compile`:", "", _table(rows, headers), "")


def _quickstart(facts: Mapping[str, Any]) -> Iterator[str]:
    yield from ("### Quickstart", "")
    told = (
        f"`gin/quickstart.gin` on prepared data: {facts['seconds']:.1f} s, first step after {facts['first_step']:.1f} s"
    )
    if "quickstart_ratio" in facts:
        told += f"; another checkout {facts['other_seconds']:.1f} s, ratio {facts['quickstart_ratio']:.2f}x"
    yield from (f"{told} (commit {facts['commit'] or 'unknown'}).", "")
    rows = [(stage, f"{began:.1f}", f"{ended - began:.1f}", reason) for stage, reason, began, ended in facts["path"]]
    yield from ("Its critical path:", "", _table(rows, ("stage", "began at s", "took s", "waited for")), "")


def _targets(facts: Facts, lines: Mapping[str, Line]) -> str:
    run = targets.Run(
        gpu=facts["device"] if facts.get("gpu") else None,
        cores=facts["cores"],
        bfloat16=facts.get("bfloat16", False),
        lines=lines,
        quickstart=facts.get("quickstart") or {},
    )
    return _table(targets.verdicts(run), targets.Verdict._fields)


def _inputs(cells: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    yield from ("### The input path", "")
    yield (
        "*Read* is a batch from the memory-mapped array, mirrored and normalised; *decode* is what the same batch "
        "would cost from its encoded images."
    )
    rows = []
    for values in cells.values():
        read, decoded, step = values["read"], values["decoded"], values["step"]
        rows.append(
            (
                values["cell"],
                str(values["threads"]),
                f"{1e3 * read:.2f}",
                "-" if decoded is None else f"{1e3 * decoded:.2f}",
                f"{1e3 * step:.1f}",
                "-" if decoded is None else f"{decoded / read:.0f}x",
                f"{100 * read / step:.2f} %",
            )
        )
    headers = ("cell", "threads", "read ms", "decode ms", "step ms", "decode / read", "read / step")
    yield from ("", _table(rows, headers), "")


def as_json(line: Line) -> Facts:
    """Give a line as JSON data."""
    facts: Facts = json.loads(json.dumps(dataclasses.asdict(line)))
    return facts
