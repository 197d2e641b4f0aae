"""gin files -> checked bindings -> a grid's cells. The only module that imports gin.

gin parses; everything else is done here, because gin accepts silently what a benchmark must refuse: misspelt scopes,
unused macros and bindings, second bindings of a name, wrong types. No gin state outlives a call.
"""

from __future__ import annotations

import dataclasses
import re
import tokenize
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any, NamedTuple

from gin import config_parser

from bench.errors import InputError, nearest
from bench.planning.bindings import LEGAL_NAME, Binding, Bindings


@dataclass(frozen=True)
class Macro:
    """A reference `%NAME`, resolved after all files are read."""

    name: str


class _Delegate(config_parser.ParserDelegate):  # type: ignore[misc]
    def configurable_reference(self, scoped_configurable_name: str, evaluate: bool) -> Any:
        raise SyntaxError(f"references such as @{scoped_configurable_name} are not used here: bind plain values")

    def macro(self, macro_name: str) -> Macro:
        return Macro(macro_name)


MOST_NESTED = 50
"""How deep includes, and lists of macros of lists of macros, may go."""
MOST_ENTRIES = 100_000
"""How many entries a value may have once its macros are resolved."""

Macros = dict[str, tuple[Any, str]]
"""Name -> value, and where it is defined."""


class Contents(NamedTuple):
    """The bindings and macros of a text and all that it includes.

    Bindings stand under their target, `scope/configurable.setting`.
    """

    bindings: dict[str, Binding]
    macros: Macros
    overridden: list[Binding]
    """Bindings of included files that the including one overrides."""


Statements = Iterable[tuple[str, Any]]
"""Statements as gin parses them, each behind its location as a person reads it."""


def shipped_gin() -> Path:
    """Return the folder of the suite's own gin files.

    It lies inside the installed wheel, or beside bench/ in a checkout.
    """
    packaged = Path(str(resources.files("bench"))) / "gin"
    return packaged if packaged.is_dir() else Path(str(resources.files("bench"))).parent / "gin"


def find_gin(name: str) -> Path:
    """Find the file that a --gin argument means.

    It is looked for in the working directory, else among the shipped ones.
    """
    shipped = shipped_gin()
    path = Path(name)
    candidates = [path]
    if not path.is_absolute():
        inside = Path(*path.parts[1:]) if path.parts[:1] == ("gin",) else path
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
    """Parse gin files and `--set` lines.

    Refuses syntax errors, duplicates, and macros that are undefined or unused.
    """
    bindings: dict[str, Binding] = {}
    macros: Macros = {}
    overridden: list[Binding] = []
    read: dict[Path, Contents] = {}
    for name in files:
        contents = _read_file(find_gin(name), read)
        macros = _joined_macros(macros, contents.macros)
        bindings = _joined(bindings, contents.bindings)
        overridden += contents.overridden
    command_line = _read_statements(
        (location, statement)
        for location, text in ((f"--set {text!r}", text) for text in overrides)
        for statement in _statements(text, location)
    )
    stronger = [dataclasses.replace(binding, override=True) for binding in command_line.bindings.values()]
    macros = _joined_macros(macros, command_line.macros)
    count = len(bindings) + len(stronger)
    resolved = list(_resolve_macros([*bindings.values(), *stronger, *overridden], macros))
    return Bindings(resolved[:count], dict(_candidates(resolved[:count])), resolved[count:])


def _candidates(bindings: list[Binding]) -> Iterator[tuple[str, tuple[Binding, ...]]]:
    """Yield every line of a search with the bindings in it."""
    for search in bindings:
        if (search.configurable, search.setting) != ("search", "candidates") or not isinstance(search.value, tuple):
            continue
        for text in filter(lambda line: isinstance(line, str), search.value):
            yield text, _candidate(text, search.location)


def _candidate(text: str, location: str) -> tuple[Binding, ...]:
    shown = f"{location}: '{text}'"
    contents = _read_statements(
        (shown, statement) for line in text.split(";") for statement in _statements(line, shown)
    )
    bindings = contents.bindings.values()
    if contents.macros or not bindings or any(binding.scope for binding in bindings):
        raise InputError(
            f"{location}: the candidate '{text}' must be bindings without a scope, with ';' between "
            "them, such as 'finetune.lr = 1e-3; finetune.dropout = 0.2'."
        )
    return tuple(dataclasses.replace(binding, override=True) for binding in bindings)


def _read_file(
    path: Path, read: dict[Path, Contents], including: tuple[Path, ...] = (), location: str = "--gin"
) -> Contents:
    """Read a gin file and all it includes, each once.

    `read` holds what was read already, `including` the files that are open, each included by the one before; `location`
    is where this one is named.
    """
    resolved = path.resolve()
    if resolved in including:
        raise InputError(f"{location}: {_shown(path)} includes itself.")
    if resolved in read:
        return read[resolved]
    if len(including) == MOST_NESTED:
        raise InputError(
            f"{location}: includes are nested more than {MOST_NESTED} deep. Include {_shown(path)} further up."
        )
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{_shown(path)} cannot be read: {error}") from error
    statements = _statements(text, _shown(path))
    located = ((f"{_shown(path)}:{statement.location.line_num}", statement) for statement in statements)
    read[resolved] = _read_statements(located, path, read, (*including, resolved))
    return read[resolved]


def _read_statements(
    statements: Statements,
    path: Path | None = None,
    read: dict[Path, Contents] | None = None,
    including: tuple[Path, ...] = (),
) -> Contents:
    """Read the statements of one text.

    It is that of the file `path`, else of the command line or of a candidate. A target may be bound once. Only a file
    may bind again what it included, and only below the include:

        common.gin                  finetune.lr = 1e-3
        grid.gin    include 'common.gin'
                    finetune.lr = 1e-4          takes the place of common.gin's
                    finetune.lr = 1e-5          refused: this file has bound it already
                    include 'other.gin'         refused if it binds finetune.lr, too: which one is meant?
    """
    bindings: dict[str, Binding] = {}
    macros: Macros = {}
    overridden: list[Binding] = []
    own: set[str] = set()  # the targets that this text has bound itself
    for location, statement in statements:
        if isinstance(statement, config_parser.ImportStatement):
            raise InputError(f"{location}: import is not needed: name modules and files of your own in grid.plugins.")
        if isinstance(statement, config_parser.IncludeStatement):
            if path is None or read is None:
                raise InputError(f"{location}: include belongs in a gin file.")
            included = _read_file(_included(path, statement.filename, location), read, including, location)
            macros = _joined_macros(macros, included.macros)
            bindings = _joined(bindings, included.bindings)
            overridden += included.overridden
        elif isinstance(statement, config_parser.BindingStatement) and not statement.arg_name:
            name = f"{statement.scope}/{statement.selector}" if statement.scope else statement.selector
            macros = _joined_macros(macros, {name: (statement.value, location)})
        elif isinstance(statement, config_parser.BindingStatement):
            value = _frozen(statement.value)
            binding = Binding(statement.scope, statement.selector, statement.arg_name, value, location)
            if binding.target in own:
                _refuse_duplicate(bindings[binding.target], binding)
            if binding.target in bindings:  # of an included file
                overridden.append(bindings[binding.target])
            bindings[binding.target] = binding
            own.add(binding.target)
    return Contents(bindings, macros, list(dict.fromkeys(overridden)))  # each once, however often it is included


def _joined(first: dict[str, Binding], second: dict[str, Binding]) -> dict[str, Binding]:
    """Join two files' bindings.

    Refuses a target that both bind, unless it is the same line of a file that both include.
    """
    # a.gin and b.gin may both include common.gin: its lines then come twice, from one location, and count once.
    for target, binding in second.items():
        earlier = first.get(target, binding)
        if earlier.location != binding.location:
            _refuse_duplicate(earlier, binding)
    return first | second


def _joined_macros(first: Macros, second: Macros) -> Macros:
    """Join two texts' macros; refuse one that both define."""
    for name, (_, location) in second.items():
        if name in first and first[name][1] != location:  # not the same line of a file that both include
            raise InputError(
                f"{location}: the macro {name} is defined a second time; first at {first[name][1]}. Rename one."
            )
    return first | second


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
        location = name if "--set" in name else f"{name}:{line}"
        what = str(error.msg).splitlines()[-1].strip().rstrip(".")
        # gin's own message is about a token in the middle of the name.
        scope = re.match(r"\s*([^/=#'\"%@]+)/[^=]*=", "".join(text.splitlines()[line - 1 : line]))
        if scope and not scope[1].strip().isidentifier():
            raise InputError(f"{location}: '{scope[1].strip()}' is no name: {LEGAL_NAME}.") from error
        raise InputError(f"{location}: not valid gin: {what}. A binding reads scope/name.setting = value.") from error
    except RecursionError as error:
        raise InputError(f"{name}: not valid gin: brackets are nested too deeply.") from error
    except tokenize.TokenError as error:
        raise InputError(
            f"{name}:{error.args[1][0]}: not valid gin: {error.args[0]} (an unclosed bracket?)."
        ) from error


def _included(path: Path, name: str, location: str) -> Path:
    """Find the file that an include means.

    It lies beside the including one, else among the shipped ones.
    """
    target = path.parent / name
    if not target.is_file():
        target = shipped_gin() / name
    if not target.is_file():
        raise InputError(f"{location}: include '{name}': no such file beside {_shown(path)}.")
    return target


def copy_gin(files: Sequence[str], folder: Path) -> list[Path]:
    """Copy gin files and all they include into a new folder.

    `files` are --gin arguments; returned are their copies. Each keeps its name, after which a grid may be called.
    """
    copies: dict[Path, Path] = {}
    return [_copy_file(find_gin(name), folder.absolute(), copies) for name in files]


def _copy_file(path: Path, folder: Path, copies: dict[Path, Path]) -> Path:
    """Copy a file once, its includes pointing to their copies.

    `copies` maps each original to its copy, for a file may be included in two ways.
    """
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


def _refuse_duplicate(first: Binding, second: Binding) -> None:
    others = ", or give the other as --set, or include the first file and override it in the including one"
    others = "" if second.override else others
    raise InputError(
        f"{second.location}: {second.target} is bound a second time; first at {first.location}. Keep one{others}."
    )


def _frozen(value: Any) -> Any:
    """Turn lists into tuples, so that a binding can be hashed."""
    if isinstance(value, list | tuple):
        return tuple(_frozen(item) for item in value)
    if isinstance(value, dict):
        return tuple((_frozen(key), _frozen(item)) for key, item in value.items())
    return value


def _resolve_macros(bindings: list[Binding], macros: Macros) -> Iterator[Binding]:
    """Put values in the place of `%NAME`.

    Those of included files that are overridden come along: that does not make their macros a mistake. Refuses macros
    that are undefined, that refer to themselves or that are unused.
    """
    used: set[str] = set()
    entries = 0  # of the value that is being resolved

    # With `base = 1e-3` and `peak = %base`, resolving `finetune.lr = %peak` sees peak, then base, and gives 1e-3; with
    # `base = %peak` it would see peak a second time. A chain of any length is followed in a loop; only a list in a list
    # goes deeper. Macros that double each other, as a = [%b, %b], b = [%c, %c], …, are few lines and many entries.
    def resolve(value: Any, location: str, seen: tuple[str, ...] = (), depth: int = 0) -> Any:
        nonlocal entries
        chain = dict.fromkeys(seen)
        while isinstance(value, Macro):
            if value.name not in macros:
                raise InputError(f"{location}: the macro %{value.name} is not defined.{nearest(value.name, macros)}")
            if value.name in chain:
                raise InputError(f"{location}: the macro %{value.name} refers to itself.")
            chain[value.name] = None
            used.add(value.name)
            value, location = macros[value.name]
            value = _frozen(value)
        if not isinstance(value, tuple):
            return value
        entries += len(value)
        if depth > MOST_NESTED or entries > MOST_ENTRIES:
            limit = f"{MOST_NESTED} lists deep" if depth > MOST_NESTED else f"{MOST_ENTRIES} entries long"
            raise InputError(f"{location}: with its macros resolved, this value is more than {limit}. Shorten it.")
        return tuple(resolve(item, location, tuple(chain), depth + 1) for item in value)

    for binding in bindings:
        entries = 0
        value = resolve(binding.value, binding.location)
        yield dataclasses.replace(binding, value=value)
    for name in sorted(macros.keys() - used):
        raise InputError(
            f"{macros[name][1]}: the macro {name} is used nowhere. Remove it, or write %{name} where it was meant."
        )
