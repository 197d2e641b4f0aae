"""Where every stage keeps its spec, attempts, checkpoints, weights and record.

    STORE/finetune-digits-1a2b3c4d5e6f7a8b/
        spec.json                    canonical JSON of the stage (parents by key)
        attempts/000001.json         who runs it: creating the next number is the lease, its mtime the heartbeat
        attempts/000001.end.json     how that attempt ended (absent: still running, or killed)
        checkpoints/                 the last two; gone when the record is there
        log.txt
        weights-….safetensors        named by content
        curve.jsonl                  losses of every so many steps
        record.json                  written last, exactly once
    STORE/finetune-digits-1a2b3c4d5e6f7a8b.before-20261126-204328/      set aside by --again
    STORE/.replaced/finetune-digits-1a2b3c4d5e6f7a8b.json               the numbers that no longer count

A numbered attempt that is created exclusively serves as lease and ledger in one: a later owner never renames or removes
an earlier one's file, so two processes that both judge an owner dead cannot both take over.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from bench.errors import DamagedStore, InputError, MissingPlugin
from bench.specs import Selected, Stage, canonical_json, from_canonical
from bench.store.activity import ActivityFacts
from bench.store.code import Code, merged_code
from bench.store.files import create_json, digest, in_threads, read_json, sha256, sync, write_json, write_text
from bench.store.ownership import Attempt, Owner, now, this_process
from bench.store.states import StageState, diverged

T = TypeVar("T")

GONE = "its process is gone"
"""The reason of an attempt that ended without a word, as the next one notes it."""


class Store:
    """A folder of stages. Every method is safe against other processes on the same store."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def folder(self, stage: Stage) -> Path:
        """Return the folder of a stage, existing or not."""
        return self.root / stage.folder

    def check_exists(self) -> None:
        """Refuse a store that is not there. Nobody means to collate an empty table over a good one."""
        if not self.root.is_dir():
            raise InputError(f"--store {self.root}: no such folder. Name the store that the grid was run in.")

    def each(self, read: Callable[[Stage], T], stages: Iterable[Stage]) -> dict[str, T]:
        """Apply a function that reads files to every stage with a folder.

        Returned are the results by key. Raises the error of the first stage that has one.
        """
        folders = set(os.listdir(self.root)) if self.root.is_dir() else set()
        present = {stage.key: stage for stage in stages if stage.folder in folders}
        return dict(zip(present, in_threads(read, list(present.values())), strict=True))

    # ------------------------------------------------------------------------------------------------ specs

    def add(self, stage: Stage) -> Path:
        """Write the spec of a stage and return its folder. The specs of its parents must be there already."""
        folder = self.folder(stage)
        # Indented for readers; loading parses it and makes the canonical text anew, so the layout changes no key.
        text = json.dumps(json.loads(canonical_json(stage)), indent=1) + "\n"
        path = folder / "spec.json"
        if not path.is_file() or path.read_text(encoding="utf-8", errors="replace") != text:
            write_text(path, text)  # a damaged one is put right: the plan knows what it was
        return folder

    def load(self, folder: Path) -> Stage:
        """Read the stage of a folder. Raises DamagedStore where its spec is not the one the folder is named after."""
        fix = f"Delete the folder {folder.name} to compute it again."
        data = read_json(folder / "spec.json", fix)
        try:
            stage = from_canonical(data, self._load_key)
        except MissingPlugin as error:  # nothing is damaged
            raise MissingPlugin(f"{folder / 'spec.json'}: {error}. Name its file in grid.plugins.") from error
        except (KeyError, TypeError, ValueError, InputError) as error:
            raise DamagedStore(f"{folder / 'spec.json'}: not a spec of this version ({error}). {fix}") from error
        if not isinstance(stage, Stage) or stage.folder != folder.name:
            raise DamagedStore(f"{folder / 'spec.json'}: not the spec this folder is named after. {fix}")
        return stage

    def _load_key(self, key: str) -> Stage:
        for folder in self.root.glob(f"*-{key[:16]}"):
            with contextlib.suppress(DamagedStore):  # somebody's copy under another name
                return self.load(folder)
        raise DamagedStore(
            f"{self.root}: the spec of stage {key[:16]} is missing or damaged. Run the grid to write it."
        )

    # ------------------------------------------------------------------------------------------------ attempts

    def attempts(self, stage: Stage) -> list[Attempt]:
        """List all attempts at a stage, first to last."""
        return _attempts(self.folder(stage))

    def claim(self, stage: Stage) -> Attempt | None:
        """Own a stage until `finish`. Returns None while another live process owns it."""
        # Two processes that both take the last owner for dead both come to the line that creates the next number: it
        # exists only once, so exactly one of them gets it, and the other gets None.
        attempts = self.attempts(stage)
        last = attempts[-1] if attempts else None
        if last is not None and last.alive:
            return None
        if last is not None and last.end is None:
            self.finish(last, StageState.DIED, GONE)
        number = last.number + 1 if last else 1
        path = self.folder(stage) / "attempts" / f"{number:06}.json"
        facts = {"attempt": number, "owner": this_process(), "began": now(), "from_step": None, "warnings": []}
        return Attempt(number, path, facts, None) if create_json(path, facts) else None

    def started(self, attempt: Attempt, from_step: int, warnings: list[str]) -> None:
        """Note from which step an attempt goes on. `warnings` say which damage it passed over."""
        self._refuse_removed(attempt)
        attempt.facts.update(from_step=from_step, warnings=[*attempt.facts["warnings"], *warnings])
        write_json(attempt.path, attempt.facts)

    def owns(self, attempt: Attempt) -> bool:
        """Tell whether no later attempt has taken over. One does after a pause longer than the heartbeat allows.

        Refuses to go on in a folder that was set aside or deleted meanwhile.
        """
        self._refuse_removed(attempt)
        return not attempt.path.with_name(f"{attempt.number + 1:06}.json").exists()

    def code(self, attempt: Attempt) -> Code:
        """Bring together the code of an attempt and of those before it whose work it goes on from."""
        # Example: attempts that began at the steps 0, 500, 0 and 250. The third began anew, so what the fourth goes on
        # from is the third's work alone.
        until_now = [each for each in _attempts(attempt.path.parent.parent) if each.number <= attempt.number]
        anew = [index for index, each in enumerate(until_now) if each.facts["from_step"] == 0]
        return merged_code(each.facts.get("code", {}) for each in until_now[anew[-1] if anew else 0 :])

    def finish(self, attempt: Attempt, state: StageState, reason: str = "", step: int | None = None) -> None:
        """Note how an attempt ended. `state` is done, failed, refused (by damage elsewhere), interrupted or died."""
        if not attempt.path.exists():  # its folder was removed: a new one may be another attempt's of this number
            return
        end = {"state": state, "reason": reason, "step": step, "time": now()}
        create_json(attempt.path.with_suffix(".end.json"), end)

    def failure(self, stage: Stage) -> str | None:
        """Return why the last attempt failed, or None if it did not."""
        attempts = self.attempts(stage)
        end = attempts[-1].end if attempts else None
        return str(end["reason"]) if end is not None and end["state"] == StageState.FAILED else None

    def divergence(self, stage: Stage) -> str | None:
        """Say why a stage without a record diverged, or one behind it; None if none did.

        A search has diverged when all of its candidates have.
        """
        if self.record(stage) is not None:
            return None
        reason = self.failure(stage)
        if reason is not None:
            return reason if diverged(reason) else None
        behind = stage.candidates if isinstance(stage, Selected) else stage.parents
        reasons = [self.divergence(parent) for parent in behind]
        if isinstance(stage, Selected) and None in reasons:
            return None
        return next(filter(None, reasons), None)

    def missing_parents(self, stage: Stage) -> list[Stage]:
        """List the parents without a record that a stage cannot do without.

        A search can do without what diverged, as long as one of its candidates has not.
        """
        missing = [parent for parent in stage.parents if self.record(parent) is None]
        if missing and isinstance(stage, Selected) and None in map(self.divergence, stage.candidates):
            return [parent for parent in missing if self.divergence(parent) is None]
        return missing

    # ------------------------------------------------------------------------------------------------ results

    def record(self, stage: Stage) -> dict[str, Any] | None:
        """Return the record of a finished stage, or None.

        Raises DamagedStore where record or weights cannot be trusted.
        """
        return self.record_in(self.folder(stage), stage.key)

    def record_in(self, folder: Path, key: str) -> dict[str, Any] | None:
        """Return the record in a stage's folder, as `record` does; the beginning of the stage's key is enough."""
        path = folder / "record.json"
        if not path.exists():
            return None
        fix = f"Delete the folder {folder} to compute this stage again."
        # The digest covers the record, the record names the weights' size and checksum. Size is looked at each time,
        # the checksum, which reads the whole file, only where weights are used (`weights`).
        record = read_json(path, fix, RecordFile)
        content = {name: value for name, value in record.items() if name != "digest"}
        if record.get("digest") != digest(content) or not str(record.get("key")).startswith(key):
            raise DamagedStore(f"{path}: damaged: it does not match its own checksum. {fix}")
        weights = folder / record["weights"]["file"]
        if not weights.is_file() or weights.stat().st_size != record["weights"]["bytes"]:
            raise DamagedStore(f"{weights}: missing or truncated, though {path.name} promises it. {fix}")
        return record

    def weights(self, stage: Stage) -> Path:
        """Return the weights file of a finished stage. Its checksum is compared with that in the record."""
        record = self.record(stage)
        if record is None:
            raise InputError(f"stage {stage.folder} has no weights yet: it is not finished.")
        path = self.folder(stage) / str(record["weights"]["file"])
        if sha256(path) != record["weights"]["sha256"]:
            raise DamagedStore(f"{path}: damaged: not what the record promises. Delete its folder to compute it again.")
        return path

    def set_aside(self, stage: Stage, numbers: Sequence[dict[str, float]] = ()) -> Path | None:
        """Rename the folder of a stage, so that it is run again; return its new path, or None if there was none.

        The metrics of its record, and `numbers`, from then on count as replaced.
        """
        # The numbers are noted first: whenever a kill comes, none that was set aside can contradict the new one.
        record = self.record(stage)
        replaced = [*self.replaced(stage), *numbers, *([record["metrics"]] if record is not None else [])]
        write_json(self._replaced(stage), {"metrics": {digest(metrics): metrics for metrics in replaced}})
        folder = self.folder(stage)
        moment = f"{folder.name}.before-{time.strftime('%Y%m%d-%H%M%S')}"
        names = itertools.chain([moment], (f"{moment}.{number}" for number in itertools.count(2)))
        aside = next(path for path in map(folder.with_name, names) if not path.exists())
        try:
            folder.rename(aside)
        except FileNotFoundError:
            return None
        sync(self.root)
        return aside

    def replaced(self, stage: Stage) -> list[dict[str, float]]:
        """Return the metrics of results of a stage that were set aside."""
        path = self._replaced(stage)
        if not path.exists():
            return []
        fix = "Delete it to have tables compare with those results again."
        return list(read_json(path, fix, ReplacedFile)["metrics"].values())

    def _refuse_removed(self, attempt: Attempt) -> None:
        # What it computed may be what --again was to replace, and the ledger no longer says by which code.
        if not attempt.path.exists():
            folder = attempt.path.parent.parent
            raise DamagedStore(
                f"{folder}: set aside or deleted while it was computed. Run the grid again to compute it."
            )

    def _replaced(self, stage: Stage) -> Path:
        return self.root / ".replaced" / f"{stage.folder}.json"

    def publish(self, attempt: Attempt, stage: Stage, record: dict[str, Any]) -> None:
        """Make a record the stage's result.

        The first one wins. A later one that is equal is dropped; one that differs is kept beside it and refused.
        """
        self._refuse_removed(attempt)
        # Two owners can both get here: one was paused for longer than the heartbeat allows and taken for dead. Both
        # computed the same stage, so their numbers must agree; where they do not, nobody can say which is right.
        folder = self.folder(stage)
        if create_json(folder / "record.json", {**record, "digest": digest(record)}):
            return
        first = self.record(stage)
        same = ("metrics", "weights")
        if first is None or any(first[name] != record[name] for name in same):
            other = folder / f"record-attempt-{attempt.number:06}.json"
            write_json(other, record)
            raise DamagedStore(f"{other}: attempt {attempt.number} disagrees with record.json; both are kept.")


# -------------------------------------------------------------------------------------------------- files of a stage


def newest_checkpoint(stage_folder: Path) -> int:
    """Return the step of a stage's newest checkpoint, or 0."""
    markers = (stage_folder / "checkpoints").glob("step-*.json")
    steps = (path.stem.partition("-")[2] for path in markers)
    return max((int(step) for step in steps if step.isdigit()), default=0)  # not those of a copy, "step-4 2.json"


@dataclass(frozen=True)
class AttemptFile:
    """What the file of an attempt holds."""

    attempt: int
    owner: Owner
    began: float
    from_step: int | None
    warnings: tuple[str, ...]
    code: dict[str, tuple[str, ...]] = field(default_factory=dict)


@dataclass(frozen=True)
class EndFile:
    """What the file of an attempt's end holds."""

    state: str
    reason: str
    step: int | None
    time: float


@dataclass(frozen=True)
class WeightsFacts:
    """What a record says of the weights file."""

    file: str
    sha256: str
    bytes: int


@dataclass(frozen=True)
class RecordFile:
    """What every reader relies on in a record; there is more in it."""

    digest: str
    key: str
    metrics: dict[str, float]
    seconds: float
    weights: WeightsFacts
    curve: str | None = None
    """The checksum of the learning curve (`bench.training.curve`)."""
    parents: dict[str, str] = field(default_factory=dict)
    code: dict[str, tuple[str, ...]] = field(default_factory=dict)
    activity: dict[str, ActivityFacts] = field(default_factory=dict)


@dataclass(frozen=True)
class ReplacedFile:
    """The metrics that count as replaced, by their digest."""

    metrics: dict[str, dict[str, float]]


def whole_seconds(record: Mapping[str, Any]) -> float | None:
    """Return what a stage took, by its record or its line in a records file.

    None where it was evaluated and the record is older: its seconds are those of training alone.
    """
    timed = not record.get("metrics") or "evaluation_seconds" in record.get("measured", {})
    return float(record["seconds"]) if timed else None


def _attempts(folder: Path) -> list[Attempt]:
    """Read the attempts at the stage of a folder, first to last."""
    fix = f"Delete it to forget that attempt: {folder.name} is then run again."
    attempts = []
    for path in sorted((folder / "attempts").glob("[0-9]*[0-9].json")):
        if not path.stem.isdigit():  # a copy of one, as some programs make: "000001 2.json"
            continue
        end = path.with_suffix(".end.json")
        ended = read_json(end, fix, EndFile) if end.exists() else None
        attempts.append(Attempt(int(path.stem), path, read_json(path, fix, AttemptFile), ended))
    return attempts
