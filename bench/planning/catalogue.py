"""What a grid can name besides its methods: the suite's tasks and backbones, and those that gin files declare.

`pets/task.source = 'folder:…'` declares the task `pets`, `minilm/backbone.weights = 'folder:…'` the backbone `minilm`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from bench.data.manifest import describe_classes, describe_manifest, describe_overlap
from bench.data.prepare import prepare_command, prepare_data
from bench.data.sources import own
from bench.data.tasks import CORPORA, FURTHER_EVALUATIONS, REFUSED, TASKS, Task, trained_task
from bench.errors import InputError, SpecError, nearest
from bench.planning.bindings import LEGAL_NAME, Binding, checked
from bench.planning.registry import BACKBONES, CHECKPOINTS
from bench.pretrained.origin import Checkpoint
from bench.pretrained.prepare import prepare_checkpoint

OF_CHECKPOINTS = ("weights", "weights_checksum")
"""The settings `NAME/backbone.…` that declare a backbone, or say where its weights come from."""
RESERVED = ("downloads", "backbones")
"""Folders of the data root that are no data set."""

OF_OWN_TASKS = (
    "source",
    "modality",
    "configuration",
    "image_column",
    "text_column",
    "pair_column",
    "label_column",
    "most_megapixels",
)
"""The settings `NAME/task.…` that declare a task of the user's own; others, such as the metric, every task has."""


@dataclass(frozen=True)
class Catalogue:
    """The tasks and backbones that bindings can name.

    Each comes with what is needed to prepare it: the suite's own, and those that `bindings` declare.
    """

    bindings: tuple[Binding, ...] = ()
    root: Path | None = None
    """Where the data lie; without it nobody looks there whether a user's own task holds images or texts."""

    @cached_property
    def tasks(self) -> dict[str, Task]:
        """The suite's tasks, and those whose source is bound."""
        return TASKS | {task.name: task for task in self._own_tasks()}

    @cached_property
    def checkpoints(self) -> dict[str, Checkpoint]:
        """The backbones whose weights were made elsewhere.

        These are the public ones, and those whose weights are bound.
        """
        bound = self._bound("backbone", OF_CHECKPOINTS)
        return CHECKPOINTS | {name: self._checkpoint(name, lines) for name, lines in bound.items()}

    @cached_property
    def backbones(self) -> set[str]:
        """Every name of a backbone."""
        return {*BACKBONES, *self.checkpoints}

    @property
    def own(self) -> set[str]:
        """The names that are not the suite's own, or mean something else here.

        That is: declared by these bindings, or a public backbone whose weights they take from elsewhere.
        """
        changed = {name for name, source in CHECKPOINTS.items() if self.checkpoints[name] != source}
        return {*self.tasks, *self.backbones} - {*TASKS, *BACKBONES} | changed

    def local(self, name: str) -> bool:
        """Tell whether a grid may prepare a name without being asked.

        It may where the content is built from installed packages, or lies on this computer.
        """
        if name in self.checkpoints:
            return self.checkpoints[name].local
        return own.is_local(name, self.tasks.get(name))

    def command(self, names: Iterable[str], root: Path) -> str:
        """Return the command that prepares these names under a data root."""
        names = sorted(names)
        return prepare_command(*names, own=not self.own.isdisjoint(names), root=root)

    def refuse_missing(self, names: Iterable[str], root: Path) -> None:
        """Refuse what is not prepared and must be downloaded.

        All of it is named in one message. A source on this computer whose path is missing is refused, too.
        """
        names = set(names)
        missing = sorted(name for name in names if not self.local(name))
        if missing:
            raise InputError(
                f"not prepared in {root}: {', '.join(missing)}. Prepare with: {self.command(missing, root)} "
                "(downloads; --from FILE_OR_FOLDER takes what is already at hand)."
            )
        for name in sorted(names):
            self.refuse_missing_source(name)

    def refuse_missing_source(self, name: str) -> None:
        """Refuse a task or backbone whose source is a path that is missing."""
        if name in self.checkpoints:
            self.checkpoints[name].refuse_missing()
        elif name in self.tasks and self.tasks[name].source is not None:
            own.fingerprint(self.tasks[name])  # refuses it

    def refuse_unknown(self, name: str) -> None:
        """Refuse a name that cannot be prepared.

        Tasks, corpora and checkpoints can; a backbone that the suite pre-trains itself cannot.
        """
        if name in BACKBONES and name not in self.checkpoints:
            raise InputError(f"{name} is pre-trained by the suite: the first grid that needs it does so.")
        if name in FURTHER_EVALUATIONS:
            task = trained_task(name)
            raise InputError(f"{name} is a split of {task}, and prepared with it: name {task} instead.")
        legal = [*self.tasks, *CORPORA, *self.checkpoints]
        if name in REFUSED and name not in legal:
            raise InputError(f"{name} cannot be prepared: {REFUSED[name]}.")
        if not name.isidentifier():
            raise InputError(f"'{name}' is no name of a task, corpus or backbone: {LEGAL_NAME}.")
        if name not in legal:
            raise InputError(f"there is no task, corpus or backbone named '{name}' to prepare.{nearest(name, legal)}")

    def prepare(self, name: str, root: Path, local_copy: Path | None = None, again: bool = False) -> str:
        """Prepare a task, corpus or backbone under `root`, unless it is.

        Returns what there is, in words. `local_copy` stands in for a download; `again` replaces what is prepared, once
        the new one is complete.
        """
        self.refuse_unknown(name)
        if name in self.checkpoints:
            return self._prepare_checkpoint(name, root, local_copy, again)
        manifest = prepare_data(name, root, self.tasks.get(name), local_copy, again)
        details = (*describe_classes(manifest), *describe_overlap(manifest), *manifest.notes)
        return "\n  ".join((describe_manifest(manifest), *details))

    def _prepare_checkpoint(self, name: str, root: Path, local_copy: Path | None, again: bool) -> str:
        source = self.checkpoints[name]
        prepared = prepare_checkpoint(name, source.weights, root, local_copy, source.weights_checksum, again)
        lines = [f"{prepared.architecture['depth']} layers of width {prepared.architecture['width']}"]
        if lacking := ", ".join(prepared.lacking):
            lines.append(f"warning: the file lacks these, which start from random values: {lacking}")
        if prepared.ignored:
            lines.append(f"not used: {', '.join(prepared.ignored)}")
        return "; ".join(lines)

    def _own_tasks(self) -> Iterator[Task]:
        for name, lines in self._bound("task", OF_OWN_TASKS).items():
            first = next(iter(lines.values()))
            if "source" not in lines:
                raise first.blame(f"there is no task '{name}': bind {name}/task.source, too.")
            self._check_name(name, first, {*TASKS, *BACKBONES})
            try:
                task = own.own_task(name, checked(lines["source"], str))  # None is no source
            except InputError as error:
                raise lines["source"].blame(str(error)) from error
            values = {setting: checked(line) for setting, line in lines.items()}
            task = dataclasses.replace(task, **values, modality_bound=task.modality_bound or "modality" in lines)
            yield task if self.root is None else own.as_in_data(task, self.root)

    def _checkpoint(self, name: str, lines: dict[str, Binding]) -> Checkpoint:
        first = next(iter(lines.values()))
        self._check_name(name, first, {*self.tasks, *BACKBONES} - CHECKPOINTS.keys())
        if "weights" not in lines and name not in CHECKPOINTS:
            raise first.blame(f"there is no backbone '{name}': bind {name}/backbone.weights, too.")
        values = {setting: checked(line) for setting, line in lines.items()}
        try:
            return dataclasses.replace(CHECKPOINTS[name], **values) if name in CHECKPOINTS else Checkpoint(**values)
        except SpecError as error:
            raise first.blame(str(error)) from error

    def _check_name(self, name: str, line: Binding, taken: set[str]) -> None:
        """Refuse a name that is illegal or taken.

        Illegal is what gin cannot use as a scope; taken is what means something already, or names a folder of the data
        root.
        """
        if not name.isidentifier():
            raise line.blame(f"'{name}' is no name: {LEGAL_NAME}.")
        if name in taken or name in CORPORA or name in RESERVED or name in FURTHER_EVALUATIONS:
            raise line.blame(f"the name {name} is taken already. Declare yours under another.")

    def _bound(self, configurable: str, settings: Iterable[str]) -> dict[str, dict[str, Binding]]:
        """Collect the bindings of these settings, by scope and by setting.

        Those of the command line replace those of the files. Refuses a binding without a scope, or with one of two
        parts.
        """
        # pets/task.source = … and pets/task.modality = … become {"pets": {"source": …, "modality": …}}.
        lines: dict[str, dict[str, Binding]] = {}
        # Files first and `--set` after them, so that its lines replace theirs.
        for binding in sorted(self.bindings, key=lambda binding: binding.override):
            if binding.configurable != configurable or binding.setting not in settings:
                continue
            if not binding.scope or "/" in binding.scope:
                setting = f"{configurable}.{binding.setting}"
                raise binding.blame(f"{setting} describes one {configurable}: write NAME/{setting}.")
            lines.setdefault(binding.scope, {})[binding.setting] = binding
        return lines
