"""The lines of gin files as values: which of them a setting takes, and which were used."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from bench.errors import InputError, SpecError
from bench.planning.registry import SETTINGS
from bench.specs import coerce

LEGAL_NAME = "it must be a letter, then letters, digits or _"
"""What tasks, backbones and rows may be called."""


@dataclass(frozen=True)
class Binding:
    """One line of a gin file (or one `--set`), with its location.

    It reads `scope/configurable.setting = value`; `override` is true for `--set`.
    """

    scope: str
    configurable: str
    setting: str
    value: Any
    location: str
    override: bool = False

    @property
    def target(self) -> str:
        """The left-hand side as written."""
        scope = f"{self.scope}/" if self.scope else ""
        return f"{scope}{self.configurable}.{self.setting}"

    @property
    def file(self) -> str:
        """The gin file that it stands in, as `location` shows it; '' for one of `--set`."""
        return "" if self.override else self.location.rpartition(":")[0]

    def blame(self, message: str) -> InputError:
        """Return the error about this line."""
        return InputError(f"{self.location}: {message}")

    def __str__(self) -> str:
        return f"{self.location}: {self.target} = {self.value!r}"


Layer = dict[tuple[str, str], tuple[int, Binding]]
"""Configurable and setting -> the rank of the binding that they take, and that binding."""


class Bindings:
    """All bindings of a grid, looked up in layers.

    It records which of them were used.
    """

    def __init__(
        self,
        bindings: Iterable[Binding],
        candidates: Mapping[str, tuple[Binding, ...]] | None = None,
        replaced: Iterable[Binding] = (),
    ) -> None:
        self.all = tuple(bindings)
        self.replaced = tuple(replaced)
        """The bindings of included files in whose place the including one has its own."""
        self.candidates = dict(candidates or {})
        """The bindings that each line of a search stands for."""
        self.used: set[Binding] = set()
        self.overridden: set[Binding] = set()
        """File bindings overridden by `--set`."""
        self._by_scope: dict[tuple[bool, str], list[Binding]] = {}
        for binding in self.all:
            self._by_scope.setdefault((binding.override, binding.scope), []).append(binding)
        self._layers: dict[tuple[str, ...], Layer] = {}

    def layers(self, scopes: tuple[str, ...]) -> Layer:
        """Return the strongest binding of every setting, with its rank.

        `scopes` go from weak to strong; the bindings of the files come first, then those of `--set`, again from weak to
        strong. Example: with the scopes ("", "digits"), `finetune.lr` is 3e-4 here, with rank 2:

            finetune.lr = 1e-3              rank 0: of a file, the weak scope
            digits/finetune.lr = 2e-4       rank 1: of a file, the strong scope
            --set finetune.lr = 3e-4        rank 2: of `--set`, the weak scope
        """
        if scopes not in self._layers:
            merged: Layer = {}
            for rank, (override, scope) in enumerate((o, s) for o in (False, True) for s in scopes):
                for binding in self._by_scope.get((override, scope), []):
                    target = (binding.configurable, binding.setting)
                    if target in merged:  # a weaker layer had bound it
                        self.note_override(binding, merged[target][1])
                    merged[target] = (rank, binding)
            self._layers[scopes] = merged
        return self._layers[scopes]

    def note_override(self, strong: Binding, weak: Binding) -> None:
        """Note it if a line of `--set` overrides one of a file.

        Whoever writes `--set` means that, so the line in the file is no mistake though nothing uses it.
        """
        if strong.override and not weak.override:
            self.overridden.add(weak)

    def without_scopes(self, scopes: set[str]) -> Bindings:
        """Leave out the bindings of some scopes, to see what they changed."""
        return Bindings((binding for binding in self.all if binding.scope not in scopes), self.candidates)


def checked(binding: Binding, annotation: Any = None) -> Any:
    """Return a bound value with the type that its setting declares.

    `annotation` takes the place of that type. Raises an `InputError` that names the line for a value of another one.
    """
    try:
        return coerce(binding.value, annotation or SETTINGS[binding.configurable][binding.setting], binding.target)
    except SpecError as error:
        raise binding.blame(str(error)) from error
