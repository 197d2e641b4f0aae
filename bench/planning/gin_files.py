"""gin files -> checked bindings -> a grid's cells. The only module that imports gin.

gin parses; everything else is done here, because gin accepts silently what a benchmark must refuse: misspelt scopes,
unused macros and bindings, second bindings of a name, wrong types. No gin state outlives a call.
"""

from __future__ import annotations

import dataclasses
import tokenize
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any

from gin import config_parser

from bench.errors import InputError, nearest
from bench.planning.bindings import Binding, Bindings


@dataclass(frozen=True)
class Macro:
    """A reference `%NAME`, resolved after all files are read."""

    name: str


class _Delegate(config_parser.ParserDelegate):  # type: ignore[misc]
    def configurable_reference(self, scoped_configurable_name: str, evaluate: bool) -> Any:
        raise SyntaxError(f"references such as @{scoped_configurable_name} are not used here: bind plain values")

    def macro(self, macro_name: str) -> Macro:
        return Macro(macro_name)


@dataclass
class _Reader:
    """What has been read so far: bindings by target and macros by name, each with its place."""

    bindings: dict[str, Binding] = field(default_factory=dict)
    macros: dict[str, tuple[Any, str]] = field(default_factory=dict)
    open_files: list[Path] = field(default_factory=list)
    replaced: list[Binding] = field(default_factory=list)
    """Bindings of included files that the including one overrides."""


def shipped_gin() -> Path:
    """The folder of the suite's own gin files: inside the installed wheel, or beside bench/ in a checkout."""
    packaged = Path(str(resources.files("bench"))) / "gin"
    return packaged if packaged.is_dir() else Path(str(resources.files("bench"))).parent / "gin"


def find_gin(name: str) -> Path:
    """The file that a --gin argument means: in the working directory, else among the shipped ones."""
    shipped = shipped_gin()
    given = Path(name)
    candidates = [given]
    if not given.is_absolute():
        inside = Path(*given.parts[1:]) if given.parts[:1] == ("gin",) else given
        candidates += [shipped / inside, shipped / f"{inside}.gin"]
    for candidate in candidates:
        try:
            if candidate.is_file():
                return candidate
        except OSError as error:  # a name that no file can have
            raise InputError(f"--gin {name[:80]}…: {error.strerror}.") from error
    names = sorted(str(path.relative_to(shipped)) for path in shipped.rglob("*.gin"))
    raise InputError(f"--gin {name}: no such file here or among the shipped ones.{nearest(name, names)}")


def read_bindings(files: Sequence[str], overrides: Sequence[str]) -> Bindings:
    """Parse gin files and `--set` lines; refuses syntax errors, duplicates and macros that are undefined or unused."""
    reader = _Reader()
    for name in files:
        path = find_gin(name)
        _read_file(path, reader)
    before = dict(reader.bindings)
    reader.bindings = {}
    for text in overrides:
        _read_statements(_statements(text, f"--set {text!r}"), reader, f"--set {text!r}", Path())
    bindings = [*before.values()]
    bindings += [dataclasses.replace(binding, override=True) for binding in reader.bindings.values()]
    resolved = list(_resolve_macros(bindings, reader))
    return Bindings(resolved, dict(_candidates(resolved)))


def _candidates(bindings: list[Binding]) -> Iterator[tuple[str, tuple[Binding, ...]]]:
    """Every line of a search with the bindings it stands for."""
    for search in bindings:
        if (search.configurable, search.setting) != ("search", "candidates") or not isinstance(search.value, tuple):
            continue
        for text in filter(lambda line: isinstance(line, str), search.value):
            reader, place = _Reader(), f"{search.location}: '{text}'"
            for line in text.split(";"):
                _read_statements(_statements(line, place), reader, place, Path())
            if reader.macros or not reader.bindings or any(b.scope for b in reader.bindings.values()):
                raise InputError(
                    f"{search.location}: the candidate '{text}' must be bindings without a scope, with ';' between "
                    "them, such as 'finetune.lr = 1e-3; finetune.dropout = 0.2'."
                )
            tried = (dataclasses.replace(b, override=True) for b in reader.bindings.values())
            yield text, tuple(tried)


def _read_file(path: Path, reader: _Reader, included_at: str = "--gin") -> None:
    if path.resolve() in reader.open_files:
        raise InputError(f"{included_at}: {_shown(path)} includes itself.")
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{_shown(path)} cannot be read: {error}") from error
    reader.open_files.append(path.resolve())
    own = _Reader(macros=reader.macros, open_files=reader.open_files, replaced=reader.replaced)
    _read_statements(_statements(text, _shown(path)), own, None, path)
    for target, binding in own.bindings.items():
        if target in reader.bindings and reader.bindings[target].location != binding.location:  # not one file, twice
            _refuse_duplicate(reader.bindings[target], binding)
        reader.bindings[target] = binding
    reader.open_files.pop()


def _shown(path: Path) -> str:
    try:
        return str(path.relative_to(Path.cwd())) if path.is_absolute() else str(path)
    except ValueError:
        return str(path)


def _statements(text: str, name: str) -> Iterator[Any]:
    parser = config_parser.ConfigParser(text, _Delegate())
    try:
        yield from parser
    except SyntaxError as error:
        line = getattr(error, "lineno", None) or parser._current_location().line_num
        place = name if "--set" in name else f"{name}:{line}"
        what = str(error.msg).splitlines()[-1].strip().rstrip(".")
        raise InputError(f"{place}: not valid gin: {what}. A binding reads scope/name.setting = value.") from error
    except RecursionError as error:
        raise InputError(f"{name}: not valid gin: brackets are nested too deeply.") from error
    except tokenize.TokenError as error:
        raise InputError(
            f"{name}:{error.args[1][0]}: not valid gin: {error.args[0]} (an unclosed bracket?)."
        ) from error


def _read_statements(statements: Iterator[Any], reader: _Reader, shown: str | None, path: Path) -> None:
    """Add one text's statements; a file's own lines may override what it includes, nothing else may be bound twice."""
    included: set[str] = set()
    for statement in statements:
        location = shown or f"{_shown(path)}:{statement.location.line_num}"
        if isinstance(statement, config_parser.IncludeStatement):
            if shown:
                raise InputError(f"{location}: include belongs in a gin file.")
            before = set(reader.bindings)
            _read_file(_included(path, statement.filename, location), reader, location)
            included |= set(reader.bindings) - before
        elif isinstance(statement, config_parser.ImportStatement):
            raise InputError(f"{location}: import is not needed: every file under baselines/ is loaded.")
        elif isinstance(statement, config_parser.BindingStatement):
            _add(statement, location, reader, included)


def _included(path: Path, name: str, location: str) -> Path:
    """The file that an include means: beside the including one, else among the shipped ones."""
    target = path.parent / name
    if not target.is_file():
        target = shipped_gin() / name
    if not target.is_file():
        raise InputError(f"{location}: include '{name}': no such file beside {_shown(path)}.")
    return target


def copy_gin(files: Sequence[str], folder: Path) -> list[Path]:
    """Copy the files that --gin arguments mean, with all they include, into a new folder; returns the copies.

    Each keeps its name, after which a grid may be called.
    """
    copies: dict[Path, Path] = {}
    return [_copy_file(find_gin(name), folder.absolute(), copies) for name in files]


def _copy_file(path: Path, folder: Path, copies: dict[Path, Path]) -> Path:
    """The copy of a file; `copies` holds those that are made, for a file may be included in two ways."""
    original = path.resolve()
    if original in copies:
        return copies[original]
    copies[original] = copy = folder / str(len(copies)) / path.name
    text = path.read_text(encoding="utf-8-sig")
    lines = text.split("\n")
    for statement in _statements(text, _shown(path)):
        if isinstance(statement, config_parser.IncludeStatement):
            line = statement.location.line_num
            inner = _included(path, statement.filename, f"{_shown(path)}:{line}")
            lines[line - 1] = f"include {str(_copy_file(inner, folder, copies))!r}"
    copy.parent.mkdir(parents=True)
    copy.write_text("\n".join(lines), encoding="utf-8")
    return copy


def _add(statement: Any, location: str, reader: _Reader, included: set[str]) -> None:
    if not statement.arg_name:
        name = f"{statement.scope}/{statement.selector}" if statement.scope else statement.selector
        if name in reader.macros:
            raise InputError(
                f"{location}: the macro {name} is defined a second time; first at {reader.macros[name][1]}."
            )
        reader.macros[name] = (statement.value, location)
        return
    value = _frozen(statement.value)
    binding = Binding(statement.scope, statement.selector, statement.arg_name, value, location)
    earlier = reader.bindings.get(binding.target)
    if earlier is not None:
        if binding.target not in included:
            _refuse_duplicate(earlier, binding)
        reader.replaced.append(earlier)
    reader.bindings[binding.target] = binding
    included.discard(binding.target)


def _refuse_duplicate(first: Binding, second: Binding) -> None:
    raise InputError(
        f"{second.location}: {second.target} is bound a second time; first at {first.location}. Keep one, or give the "
        "other as --set, or include the first file and override it in the including one."
    )


def _frozen(value: Any) -> Any:
    """Lists as tuples, so that a binding can be hashed."""
    if isinstance(value, list | tuple):
        return tuple(_frozen(item) for item in value)
    if isinstance(value, dict):
        return tuple((_frozen(key), _frozen(item)) for key, item in value.items())
    return value


def _resolve_macros(bindings: list[Binding], reader: _Reader) -> Iterator[Binding]:
    macros = reader.macros
    used: set[str] = set()

    def resolve(value: Any, location: str, seen: tuple[str, ...]) -> Any:
        if isinstance(value, Macro):
            if value.name not in macros:
                raise InputError(f"{location}: the macro %{value.name} is not defined.{nearest(value.name, macros)}")
            if value.name in seen:
                raise InputError(f"{location}: the macro %{value.name} refers to itself.")
            used.add(value.name)
            return resolve(_frozen(macros[value.name][0]), macros[value.name][1], (*seen, value.name))
        if isinstance(value, tuple):
            return tuple(resolve(item, location, seen) for item in value)
        return value

    for binding in bindings:
        value = resolve(binding.value, binding.location, ())
        yield dataclasses.replace(binding, value=value)
    for binding in reader.replaced:  # overriding a binding does not make its macro a mistake
        resolve(binding.value, binding.location, ())
    for name in sorted(macros.keys() - used):
        raise InputError(
            f"{macros[name][1]}: the macro {name} is used nowhere. Remove it, or write %{name} where it was meant."
        )
