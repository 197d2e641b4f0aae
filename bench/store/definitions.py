"""Digests of source code: of a class or function with every definition that it needs.

Those are the definitions that it names, and those that they name in turn, as far as they stand in the suite or beside
it. They are compared as syntax trees without comments, docstrings, annotations of parameters and module names:
reformatting or moving code changes no digest, editing it does. Example:

    # baselines/recadam.py                          the digest of RecAdam covers
    class RecAdam(Optimizer):                       - this class, and its base class Optimizer
        def build(self, groups, …):
            return _RecAdam(groups, sigmoid(…))     - the class _RecAdam, with whatever that names
                                                    - the function sigmoid, in whatever module it stands
    def other(): …                                  - not this: nothing above names it

Nothing is imported to find that out, files are only read.
"""

from __future__ import annotations

import ast
import functools
import hashlib
import json
import sys
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

OWN = ("bench", "baselines")
"""The packages whose definitions are followed, besides the one that a digest begins in."""

WITHOUT_NUMBERS = ("bench.errors", "bench.planning", "bench.specs.spec", "bench.specs.values", "bench.store")
"""Modules and packages that decide no number: plans, messages, files, and how specs become JSON."""

Location = tuple[str, str]
"""A module and a name in it. The name is '' for the module itself."""


@dataclass
class _Module:
    """What the top level of a module defines and imports."""

    definitions: dict[str, list[ast.stmt]] = field(default_factory=lambda: defaultdict(list))
    """Name -> the statements that define it; several where branches of an `if` do."""
    imports: dict[str, Location] = field(default_factory=dict)
    """Name -> where it was imported from."""


@functools.cache
def digest_of(module: str, name: str) -> str | None:
    """Compute the digest of a definition and of all that it needs, 16 hex digits.

    None where its source is not to be had.
    """
    trees = [[name, *map(_plain, _module(module).definitions[name])] for module, name in reached(module, name)]
    # In the order of their text: neither the names of modules nor the order of definitions in them count.
    text = json.dumps(sorted(json.dumps(tree, sort_keys=True) for tree in trees))
    return hashlib.sha256(text.encode()).hexdigest()[:16] if trees else None


def reached(module: str, name: str) -> set[Location]:
    """Return the locations of a definition and of all that it needs; of nothing where its source is not to be had."""
    followed = frozenset((*OWN, module.partition(".")[0]))
    locations: set[Location] = set()
    ahead: list[Location] = [(module, name)]
    while ahead:
        location = _defined(*ahead.pop(), followed)
        if location is not None and location not in locations:
            locations.add(location)
            for statement in _module(location[0]).definitions[location[1]]:
                ahead += _needed(statement, location[0])
    return locations


def _defined(module: str, name: str, followed: frozenset[str]) -> Location | None:
    """Find where a name is defined that a module defines or imports. None for what is not followed."""
    while module.partition(".")[0] in followed and not _within(module, WITHOUT_NUMBERS):
        contents = _module(module)
        if name in contents.definitions:
            return module, name
        if name not in contents.imports:
            return None
        module, name = contents.imports[name]
    return None


def _within(module: str, packages: Iterable[str]) -> bool:
    return any(module == package or module.startswith(f"{package}.") for package in packages)


# ---------------------------------------------------------------------------------------------- reading modules


@functools.cache
def _module(name: str) -> _Module:
    contents = _Module()
    path = _file(name)
    if path is None:
        return contents
    body = ast.parse(path.read_text(encoding="utf-8")).body
    for statement in _flat(body):
        for defined in _names(statement):
            contents.definitions[defined].append(statement)
        contents.imports.update(_imports(statement, _package(name)))
    return contents


def _package(module: str) -> str:
    """Return the package that relative imports of a module begin at."""
    path = _file(module)
    return module if path is not None and path.name == "__init__.py" else module.rpartition(".")[0]


def _file(module: str) -> Path | None:
    """Return the source file of a module, imported or not; None without one."""
    top, _, rest = module.partition(".")
    file = getattr(sys.modules.get(top), "__file__", None)
    if file is None:
        return None
    if not rest:
        return Path(file)
    base = Path(file).parent.joinpath(*rest.split("."))
    return next((path for path in (base.with_suffix(".py"), base / "__init__.py") if path.is_file()), None)


def _flat(body: Iterable[ast.stmt]) -> Iterator[ast.stmt]:
    """Yield the statements of a module, with those in the branches of `if` and `try`."""
    for statement in body:
        if isinstance(statement, ast.If | ast.Try):
            handlers = [each for handler in getattr(statement, "handlers", []) for each in handler.body]
            yield from _flat([*statement.body, *handlers, *statement.orelse, *getattr(statement, "finalbody", [])])
        else:
            yield statement


def _names(statement: ast.stmt) -> list[str]:
    """List the names that a statement of the top level defines."""
    match statement:
        case ast.FunctionDef() | ast.AsyncFunctionDef() | ast.ClassDef():
            return [statement.name]
        case ast.Assign():
            return [node.id for target in statement.targets for node in ast.walk(target) if isinstance(node, ast.Name)]
        case ast.AnnAssign(target=ast.Name(id=name)):
            return [name]
    return []


def _imports(statement: ast.stmt, package: str) -> dict[str, Location]:
    """Return what an import statement makes known: name -> where it comes from."""
    if isinstance(statement, ast.Import):
        return {alias.asname or alias.name: (alias.name, "") for alias in statement.names}
    if not isinstance(statement, ast.ImportFrom):
        return {}
    module = statement.module or ""
    if statement.level:  # from . import x: one dot is the package itself, each further one its parent
        parts = package.split(".")[: len(package.split(".")) - statement.level + 1]
        module = ".".join([*parts, *filter(None, [module])])
    imported = {alias.asname or alias.name: (module, alias.name) for alias in statement.names}
    return {
        name: (f"{module}.{source}", "") if _file(f"{module}.{source}") is not None else (module, source)
        for name, (module, source) in imported.items()
    }


# ------------------------------------------------------------------------------------------- within definitions


def _needed(statement: ast.stmt, module: str) -> Iterator[Location]:
    """Yield every name that a definition uses: of its module, imported, or looked up in an imported module."""
    imports = _module(module).imports
    local = [_imports(node, _package(module)) for node in ast.walk(statement) if isinstance(node, ast.stmt)]
    imports = {name: source for each in (imports, *local) for name, source in each.items()}
    for node in _nodes(statement):
        if isinstance(node, ast.Name):
            yield imports.get(node.id, (module, node.id))
        elif isinstance(node, ast.Attribute) and (owner := imports.get(_dotted(node.value))) is not None:
            yield owner[0], node.attr  # loop.train


def _dotted(node: ast.expr) -> str:
    """Write out a name such as `bench.training.loop`; '' for any other expression."""
    if isinstance(node, ast.Attribute):
        return f"{owner}.{node.attr}" if (owner := _dotted(node.value)) else ""
    return node.id if isinstance(node, ast.Name) else ""


def _nodes(node: ast.AST) -> Iterator[ast.AST]:
    """Yield a node and all below it that its digest covers, without the annotations of fields."""
    yield node
    for name, value in _fields(node):
        for child in value if isinstance(value, list) else [value]:
            if isinstance(child, ast.AST) and name != "annotation":
                yield from _nodes(child)


def _plain(node: Any) -> Any:
    """Turn a syntax tree into JSON data, the same for every version of Python."""
    if isinstance(node, list):
        return [_plain(item) for item in node]
    if isinstance(node, ast.Constant):
        return [type(node.value).__name__, repr(node.value)]
    if isinstance(node, ast.AST):
        return {"node": type(node).__name__, **{name: _plain(value) for name, value in _fields(node)}}
    return node


IGNORED = frozenset(("ctx", "kind", "returns", "type_comment"))
"""Fields of syntax trees that say nothing of what is computed."""


def _fields(node: ast.AST) -> Iterator[tuple[str, Any]]:
    """Yield the fields of a node that count. Docstrings, imports and annotations of parameters are left out."""
    for name, value in ast.iter_fields(node):
        if name in IGNORED or value is None or (name == "annotation" and isinstance(node, ast.arg)):
            continue
        kept = [item for item in value if not _silent(item)] if isinstance(value, list) else value
        if kept != []:  # versions of Python differ in what they leave empty
            yield name, kept


def _silent(item: Any) -> bool:
    """Tell whether a statement is a docstring or an import."""
    text = isinstance(item, ast.Expr) and isinstance(item.value, ast.Constant) and isinstance(item.value.value, str)
    return text or isinstance(item, ast.Import | ast.ImportFrom)
