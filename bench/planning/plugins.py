"""Methods, backbones and parts of methods that lie outside the suite: modules and files that a gin file names.

    grid.plugins = ['my_methods']              a module that Python can import, else my_methods.py beside the gin file
    grid.plugins = ['lib/my_methods.py']       a file, relative to the gin file
    grid.plugins = ['lib/my_methods']          a folder with an __init__.py

Installed packages may name theirs as entry points of the group `adaptation_bench.plugins`, which every command loads.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys
import traceback
from collections.abc import Iterable
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from packaging.utils import canonicalize_name

from bench.errors import InputError
from bench.planning.bindings import Bindings, checked
from bench.planning.registry import BACKBONES, RECIPES, builder_module
from bench.planning.settings import Grid
from bench.specs import PLUGIN_NAMES, SPECS, field_types
from bench.store.definitions import OWN, keep_sources, unversioned

GROUP = "adaptation_bench.plugins"
"""The entry points of installed packages that are plugins."""
FORMS = (
    "A plugin is a module that Python can import, a path to a .py file, or a path to a folder with an __init__.py; "
    "paths are relative to the gin file."
)


@dataclass(frozen=True)
class Plugin:
    """A module outside the suite that registers methods, parts of methods or backbones.

    `name` stands before its classes in keys: that of the distribution, with _ for -, or of the file. `path` is the
    file, or the folder of the package, at the top of `module`.
    """

    name: str
    module: str
    path: Path

    @property
    def top(self) -> str:
        """The module at its top: `lib` of `lib.methods`."""
        return self.module.partition(".")[0]

    @property
    def file(self) -> Path:
        """The file that Python runs first."""
        return self.path / "__init__.py" if self.path.is_dir() else self.path

    @property
    def installed(self) -> bool:
        """Whether it lies among the installed packages, where nobody edits it."""
        return is_installed(self.path)


LOADED: dict[str, Plugin] = {}
"""The plugins of this process, by the module at their top."""
HELPERS: dict[str, Path] = {}
"""Modules beside plugins that these imported and nobody installed: name at the top -> file, or folder of a package."""


def is_installed(path: Path) -> bool:
    """Tell whether a path lies among the installed packages."""
    return not {"site-packages", "dist-packages"}.isdisjoint(path.parts)


# ------------------------------------------------------------------------------------------------ finding


def find(entry: str, folder: Path, location: str) -> Plugin:
    """Find a plugin by what a person wrote; `location` says where.

    A module is looked for first, then a file or package of that name in the folder. Nothing is imported.
    """
    shown = f"{location}: the plugin '{entry}'"
    if entry.partition(".")[0] in OWN:
        raise InputError(f"{shown} is a part of the suite, which is always there. Take it out.")
    is_path = entry.endswith(".py") or os.sep in entry
    if not is_path:
        if not all(part.isidentifier() for part in entry.split(".")):
            raise InputError(f"{shown} is neither a module's name nor a path. {FORMS}")
        module = _importable(entry.partition(".")[0])
        if module is not None:
            return Plugin(_distribution(entry, module), entry, module)
    # A path is made absolute but not resolved: the name is that of the link that was written.
    path = Path(os.path.abspath(folder / entry))
    candidates = [path] if is_path else [path.with_name(f"{path.name}.py"), path]
    for candidate in candidates:
        if candidate.is_file() or (candidate / "__init__.py").is_file():
            return _of_path(candidate, shown)
    if path.is_dir():
        raise InputError(f"{shown}: {path} has no __init__.py. Write one that imports the folder's modules.")
    kinds = "" if is_path else "no module of that name can be imported, and "
    raise InputError(f"{shown}: {kinds}there is no {' or '.join(map(str, candidates))}. {FORMS}")


def _of_path(path: Path, shown: str) -> Plugin:
    """Describe a plugin by its file or folder; refuse a name under which it could not be imported."""
    name = path.stem if path.is_file() else path.name
    if path.is_file() and path.suffix != ".py":
        raise InputError(f"{shown}: {path} is no Python file. {FORMS}")
    if not name.isidentifier():
        raise InputError(f"{shown}: '{name}' must be a letter, then letters, digits or _. Rename {path}.")
    refuse_hiding(path, shown)
    return Plugin(name, name, path)


def refuse_hiding(path: Path, shown: str) -> None:
    """Refuse a file or folder, there or to be written, that would hide a module of Python or of a package."""
    name = path.stem
    other = _importable(name)
    if name in sys.stdlib_module_names or name in OWN or (other is not None and is_installed(other) and other != path):
        raise InputError(f"{shown}: {path} would hide the module {name} that is there already. Choose another name.")


def _importable(top: str) -> Path | None:
    """Return the file, or the folder of the package, that Python would import under a name; None if there is none."""
    importlib.invalidate_caches()
    try:
        spec = importlib.util.find_spec(top)
    except ValueError:  # a module of this process that was made by hand, as __main__
        return None
    # A folder without __init__.py can be imported, but registers nothing; a module of C has no definitions to follow.
    if spec is None or spec.origin is None or not spec.origin.endswith(".py"):
        return None
    path = Path(spec.origin)
    return path.parent if path.name == "__init__.py" else path


def _distribution(module: str, path: Path) -> str:
    """Name the plugin of a module: after its distribution where it is installed, else after its top module."""
    # With _ for -, `my-methods` is called as the file my_methods.py that it was before it became a package.
    top = module.partition(".")[0]
    names = metadata.packages_distributions().get(top, ()) if is_installed(path) else ()
    return _plugin_name(names[0]) if names else top


def _plugin_name(distribution: str) -> str:
    return str(canonicalize_name(distribution)).replace("-", "_")


def as_setting(plugins: Iterable[Plugin]) -> list[str]:
    """Return the `--set` line that names these plugins wherever it is read; nothing where there are none."""
    # A file or folder is named by its path, a module within a package by its name.
    entries = [each.module if each.installed or "." in each.module else str(each.path) for each in plugins]
    return [f"grid.plugins = {entries!r}"] if entries else []


# ------------------------------------------------------------------------------------------------ loading


def load_named(bindings: Bindings) -> None:
    """Load the plugins that `grid.plugins` names; all of them are found first."""
    _, binding = bindings.layers(("",)).get(("grid", "plugins"), (0, None))
    if binding is None:
        return
    # The command line stands in no file, so its paths are relative to the working directory.
    folder = Path(binding.file).parent
    plugins = [find(entry, folder, binding.location) for entry in checked(binding, field_types(Grid)["plugins"])]
    for plugin in plugins:
        load(plugin, binding.location)


def load_installed() -> None:
    """Load the plugins that installed packages name as entry points."""
    for entry in metadata.entry_points(group=GROUP):
        distribution = entry.dist.name if entry.dist is not None else "?"
        location = f"entry point {entry.name} of the installed {distribution}"
        plugin = find(entry.module, Path.cwd(), location)
        load(Plugin(_plugin_name(distribution), plugin.module, plugin.path), location)


def load_all(plugins: Iterable[Plugin]) -> None:
    """Load the plugins that another process of the same grid has loaded."""
    for plugin in plugins:
        load(plugin, "grid.plugins")


def load(plugin: Plugin, location: str) -> None:
    """Import a plugin and note whose its classes are; once in a process.

    Raises an `InputError` that begins with `location` for one that cannot be imported, that registers nothing, or whose
    names are taken.
    """
    shown = f"{location}: the plugin {plugin.path}"
    other = sys.modules.get(plugin.top)
    if other is not None:
        file = getattr(other, "__file__", None)
        if file is None or not Path(file).samefile(plugin.file):
            raise InputError(
                f"{shown} is called {plugin.top}, as is {file or 'a module of Python'}, which is loaded already. "
                "Rename one of them."
            )
    PLUGIN_NAMES.setdefault(plugin.top, plugin.name)
    before = unversioned()
    try:
        if other is None:
            _run(plugin)
        importlib.import_module(plugin.module)
    except InputError as error:  # a recipe with a mistake, or a name that is taken
        raise InputError(f"{shown}: {error}") from error
    except (Exception, SystemExit) as error:
        line = line_within(error, str(plugin.path))
        raise InputError(
            f"{shown} cannot be imported: {type(error).__name__}: {error}{line}. Mend it, or take it out of "
            "grid.plugins."
        ) from error
    if plugin.top not in _registering():
        raise InputError(
            f"{shown} registers nothing: no recipe, no backbone, no class of a spec. Mark a function with "
            "@recipe() of bench.methods, or take the file out of grid.plugins."
        )
    LOADED.setdefault(plugin.top, plugin)
    # Under another name than its file's a module cannot be imported from a copy, and would lie in the way of others.
    new = ((name, path) for name, path in unversioned().items() if name not in {*before, *LOADED, *OWN})
    HELPERS.update((name, path) for name, path in new if path.name.partition(".")[0] == name)
    keep_sources([plugin.top])


def _run(plugin: Plugin) -> None:
    """Import the module at the top of a plugin from its path, wherever Python looks for modules."""
    folders = [str(plugin.path)] if plugin.path.is_dir() else None
    spec = importlib.util.spec_from_file_location(plugin.top, plugin.file, submodule_search_locations=folders)
    assert spec is not None and spec.loader is not None  # a file that ends in .py
    module = sys.modules[plugin.top] = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[plugin.top]
        raise


def _registering() -> set[str]:
    """Return the modules at the top of all that is registered."""
    registered = [each.__module__ for each in (*SPECS.values(), *RECIPES.values())]
    registered += [builder_module(builder) for builder in BACKBONES.values()]
    return {module.partition(".")[0] for module in registered}


def line_within(error: BaseException, path: str) -> str:
    """Say at which line of the files below a path an error arose; '' for none.

    The error itself may come from a package that one of them imports.
    """
    frames = traceback.extract_tb(error.__traceback__)
    lines = [frame for frame in frames if Path(frame.filename).is_relative_to(path)]
    return f" (from {lines[-1].filename}:{lines[-1].lineno})" if lines else ""
