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
    RecAdam.rate = 2                                - this: what runs at import counts for the names that it touches

A method outside the suite may use modules of its user's, `my_helpers.py` beside `my_methods.py`, which have no version.
They are followed, too, as is what its own module sets in others when it is imported, `loop.learning_rate = mine`.

Of installed packages it covers which name of theirs is used: `from torch.nn.functional import l1_loss as distance` is
another definition than `mse_loss as distance`.

Nothing is imported to find that out, files are only read. So it does not see what is looked up by a text at run time
(`globals()["f"]`, `getattr(module, name)`), nor what lies within installed packages, which count by name only: the
versions of those that numbers depend on stand in each record's provenance.
"""

from __future__ import annotations

import ast
import functools
import hashlib
import importlib.util
import itertools
import json
import sys
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

OWN = ("bench", "baselines")
"""The packages whose definitions are always followed."""

WITHOUT_NUMBERS = ("bench.errors", "bench.planning", "bench.specs.spec", "bench.specs.values", "bench.store")
"""Modules and packages that decide no number: plans, messages, files, and how specs become JSON."""

Location = tuple[str, str]
"""A module and a name in it. The name is '' for the module itself, and WHOLE for all that it defines."""

WHOLE = "*"


@dataclass
class _Module:
    """What the top level of a module defines and imports."""

    definitions: dict[str, list[ast.AST]] = field(default_factory=lambda: defaultdict(list))
    """Name -> what defines or changes it: statements, and the conditions of each `if` that they stand in."""
    imports: dict[str, list[Location]] = field(default_factory=lambda: defaultdict(list))
    """Name -> where it was imported from; several where branches do. Under '*' the modules with all their names."""


@functools.cache
def digest_of(module: str, name: str) -> str | None:
    """Compute the digest of a definition and of all that it needs, 16 hex digits.

    None where its source is not to be had.
    """
    locations, others = _reached(module, name)
    # In the order of their text: neither the names of modules nor the order of definitions in them count.
    text = json.dumps([*sorted(_text(*location) for location in locations), *sorted(others)])
    return hashlib.sha256(text.encode()).hexdigest()[:16] if locations else None


@functools.cache
def _text(module: str, name: str) -> str:
    """Write a definition as text that is the same wherever it stands."""
    return json.dumps([name, *map(_plain, _module(module).definitions[name])], sort_keys=True)


def reached(module: str, name: str) -> set[Location]:
    """Return the locations of a definition and of all that it needs; of nothing where its source is not to be had."""
    return _reached(module, name)[0]


def _reached(module: str, name: str) -> tuple[set[Location], set[str]]:
    """Return what a definition needs: the locations that are followed, and names of other packages, `math.sqrt`."""
    # Example: Method names `half`, which its module imports as `renamed` from `names`, which has it from `origin`. On
    # the way (method, half), (names, renamed) and (origin, half) only the last is a definition. Each place is looked at
    # once, so modules that import each other are no trouble.
    start = module.partition(".")[0]
    locations, others, ahead = set[Location](), set[str](), [(module, name)]
    if start not in OWN:
        ahead += _set_elsewhere(module)
    looked_at: set[Location] = set()
    while ahead:
        module, name = ahead.pop()
        if (module, name) in looked_at or _within(module, WITHOUT_NUMBERS):
            continue
        looked_at.add((module, name))
        if not _is_followed(module, start):
            others.add(f"{module}.{name}".rstrip("."))
            continue
        contents, name = _module(module), name.partition(".")[0]
        if name == WHOLE:
            ahead += [(module, each) for each in contents.definitions]
            continue
        # All names of a package that is not followed stand for any name, so they are none that is used for certain.
        stars = [star for star, _ in contents.imports.get("*", []) if _is_followed(star, start)]
        ahead += contents.imports.get(name, []) + [(star, name) for star in stars]
        if name in contents.definitions:
            locations.add((module, name))
            ahead += _all_needed(module, name)
    return locations, others


def _set_elsewhere(module: str) -> list[Location]:
    """List the imported names of a module, and of the packages around it, in which it sets something."""
    # Example: `import bench.training.loop as loop; loop.learning_rate = mine` makes (module, loop) one of them.
    around = list(itertools.accumulate(module.split("."), "{}.{}".format))
    return [(each, name) for each in around for name in _module(each).imports.keys() & _module(each).definitions.keys()]


def _is_followed(module: str, start: str) -> bool:
    """Tell whether a module's definitions are followed by a digest that begins in the package `start`."""
    top = module.partition(".")[0]
    return top in (*OWN, start) or (start not in OWN and not _has_version(top))


@functools.cache
def _has_version(top: str) -> bool:
    """Tell whether a module is Python's or an installed package's, or has no source."""
    file = _file(top)
    installed = file is None or not {"site-packages", "dist-packages"}.isdisjoint(file.parts)
    return installed or top in sys.stdlib_module_names


def _within(module: str, packages: Iterable[str]) -> bool:
    return any(module == package or module.startswith(f"{package}.") for package in packages)


# ---------------------------------------------------------------------------------------------- reading modules


@functools.cache
def _module(name: str) -> _Module:
    contents = _Module()
    path = _file(name)
    if path is None:
        return contents
    body = ast.parse(_source(path)).body  # bytes, as a file may begin with a mark or declare its encoding
    statements = list(_flat(body))
    for statement, conditions in statements:
        for defined in _names(statement):
            contents.definitions[defined] += [statement, *conditions]
        for imported, sources in _imports(statement, _package(name)).items():
            contents.imports[imported] += sources
            if conditions:
                contents.definitions[imported] += conditions
    # What else runs at import counts for the module's own names in it: `TABLE["x"] = f`, `register(Method)`, a loop.
    for statement, conditions in statements:
        if not isinstance(statement, DEFINING):
            names = [node for node in ast.walk(statement) if isinstance(node, ast.Name)]
            stored = {node.id for node in names if isinstance(node.ctx, ast.Store)}
            for defined in sorted({node.id for node in names} & (contents.definitions.keys() | stored)):
                contents.definitions[defined] += [statement, *conditions]
    return contents


@functools.cache
def _source(path: Path) -> bytes:
    return path.read_bytes()


def keep_sources(modules: Iterable[str]) -> None:
    """Read the files of these modules' packages now.

    Digests are then those of the code that this process runs, whoever edits the files while it does.
    """
    tops = {module.partition(".")[0] for module in (*OWN, *modules)}
    if not tops <= set(OWN):  # what methods outside the suite may have imported
        tops |= set(unversioned())
    for top in tops:
        file = _file(top)
        if file is not None:
            for path in file.parent.rglob("*.py") if file.name == "__init__.py" else [file]:
                _source(path)


def unversioned() -> dict[str, Path]:
    """List the modules imported so far that belong to no package with a version.

    Returns the file, or the folder of the package, by the module's name at the top.
    """
    names = [name for name in list(sys.modules) if "." not in name and name != "__main__" and not _has_version(name)]
    files = {name: file for name in names if (file := _file(name)) is not None}
    return {name: file.parent if file.name == "__init__.py" else file for name, file in files.items()}


def keep_imported() -> None:
    """Read the files of the suite's modules that this process has imported by now, and of no others."""
    for name in [name for name in sys.modules if name.partition(".")[0] in OWN]:
        file = _file(name)
        if file is not None:
            _source(file)


def _package(module: str) -> str:
    """Return the package that relative imports of a module begin at."""
    path = _file(module)
    return module if path is not None and path.name == "__init__.py" else module.rpartition(".")[0]


@functools.cache
def _file(module: str) -> Path | None:
    """Return the source file of a module, imported or not; None without one."""
    top, _, rest = module.partition(".")
    file = getattr(sys.modules[top], "__file__", None) if top in sys.modules else _origin(top)
    if file is None:
        return None
    if not rest:
        return Path(file)
    base = Path(file).parent.joinpath(*rest.split("."))
    return next((path for path in (base.with_suffix(".py"), base / "__init__.py") if path.is_file()), None)


def _origin(top: str) -> str | None:
    """Return the source file that Python would import a module from; None without one."""
    spec = importlib.util.find_spec(top) if top else None
    return spec.origin if spec is not None and spec.origin is not None and spec.origin.endswith(".py") else None


def _flat(body: Iterable[ast.stmt], conditions: tuple[ast.expr, ...] = ()) -> Iterator[tuple[ast.stmt, Any]]:
    """Yield the statements of a module, with those in the branches of `if` and `try`, and the conditions of each."""
    for statement in body:
        if isinstance(statement, ast.If):
            # Imports for type checkers are no branch of what runs.
            tested = () if _dotted(statement.test).endswith("TYPE_CHECKING") else (statement.test,)
            yield from _flat([*statement.body, *statement.orelse], (*conditions, *tested))
        elif isinstance(statement, ast.Try | ast.TryStar):
            handlers = [each for handler in statement.handlers for each in handler.body]
            yield from _flat([*statement.body, *handlers, *statement.orelse, *statement.finalbody], conditions)
        else:
            yield statement, conditions


DEFINING = (
    *(ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef),
    *(ast.Assign, ast.AnnAssign, ast.Import, ast.ImportFrom),
)
"""Statements that say themselves which names they define."""


def _names(statement: ast.stmt) -> list[str]:
    """List the names that a statement of the top level defines, or whose attributes or items it sets."""
    match statement:
        case ast.FunctionDef() | ast.AsyncFunctionDef():
            written = [node.names for node in ast.walk(statement) if isinstance(node, ast.Global)]
            return [statement.name, *(name for names in written for name in names)]
        case ast.ClassDef():
            return [statement.name]
        case ast.Assign(targets=targets):
            return _in(targets)
        case ast.AnnAssign(target=target):
            return _in([target])
    return []


def _in(targets: list[ast.expr]) -> list[str]:
    return [node.id for target in targets for node in ast.walk(target) if isinstance(node, ast.Name)]


def _imports(statement: ast.AST, package: str) -> dict[str, list[Location]]:
    """Return what an import statement makes known: name -> where it comes from."""
    if isinstance(statement, ast.Import):  # `import a.b` makes `a` known, `import a.b as c` makes c = a.b known
        tops = {alias.asname or alias.name.partition(".")[0]: alias for alias in statement.names}
        return {name: [(alias.name if alias.asname else name, "")] for name, alias in tops.items()}
    if not isinstance(statement, ast.ImportFrom):
        return {}
    module = statement.module or ""
    if statement.level:  # from . import x: one dot is the package itself, each further one its parent
        parts = package.split(".")[: len(package.split(".")) - statement.level + 1]
        module = ".".join([*parts, *filter(None, [module])])
    imported = {alias.asname or alias.name: alias.name for alias in statement.names}
    if "*" in imported:
        return {"*": [(module, "")]}
    return {name: [_member(module, source)] for name, source in imported.items()}


def _member(module: str, name: str) -> Location:
    """Return the location of a name in a module: a module again, where it is one."""
    return (f"{module}.{name}", "") if _file(f"{module}.{name}") is not None else (module, name)


# ------------------------------------------------------------------------------------------- within definitions


@functools.cache
def _all_needed(module: str, name: str) -> frozenset[Location]:
    return frozenset(location for part in _module(module).definitions[name] for location in _needed(part, module))


def _needed(part: ast.AST, module: str) -> Iterator[Location]:
    """Yield every name that a definition uses: of its module, imported, or looked up in an imported module."""
    imports = defaultdict(list, {name: list(sources) for name, sources in _module(module).imports.items()})
    for node in ast.walk(part):
        for name, sources in _imports(node, _package(module)).items():  # within a function
            imports[name] += sources
    nodes = list(_nodes(part))
    looked_in = {id(node.value) for node in nodes if isinstance(node, ast.Attribute)}
    for node in nodes:
        if isinstance(node, ast.Name):
            yield module, node.id
            for source, name in imports.get(node.id, []):
                whole = name == "" and id(node) not in looked_in  # a module as a value: its names are looked up by text
                yield source, WHOLE if whole else name
        elif isinstance(node, ast.Attribute):
            first, *rest = _dotted(node).split(".")
            for source, name in imports.get(first, []):
                yield _attribute(source, [*filter(None, [name]), *rest])  # loop.train


def _attribute(module: str, names: list[str]) -> Location:
    """Return the location of `module.a.b`, where `a` may be a module in it: then it is `b` in that one."""
    while names and _file(f"{module}.{names[0]}") is not None:
        module, names = f"{module}.{names[0]}", names[1:]
    return module, ".".join(names)


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
