"""A copy of the code that a submission was made with: editing a checkout must not change the jobs that still wait."""

from __future__ import annotations

import contextlib
import shutil
import tempfile
from dataclasses import replace
from pathlib import Path

import baselines
import bench
from bench.errors import DamagedStore
from bench.planning import gin_files
from bench.planning.plugins import HELPERS, LOADED, Plugin
from bench.store import provenance
from bench.store.files import digest, sha256, sync, write_json


def copied_plugins(copy: Path) -> tuple[Plugin, ...]:
    """Return the plugins of this process as jobs load them: from a copy, but for what is installed."""
    plugins = LOADED.values()
    return tuple(each if each.installed else replace(each, path=copy / each.path.name) for each in plugins)


def _sources() -> list[Path]:
    """List what jobs run that is not installed: the packages of the suite, plugins, and what these import."""
    packages = [Path(str(package.__file__)).parent for package in (bench, baselines)]
    plugins = [plugin.path for plugin in LOADED.values() if not plugin.installed]
    return [*packages, *plugins, *(path for name, path in HELPERS.items() if name not in LOADED)]


def snapshot(store_root: Path) -> Path:
    """Copy the packages as imported now, the plugins and the grids into the store.

    Returns the folder for PYTHONPATH. The folder is named by its contents, so that equal code is copied once. Raises
    DamagedStore if an earlier copy was changed since.
    """
    folder = store_root / ".code"
    folder.mkdir(parents=True, exist_ok=True)
    commit = provenance.commit()
    # Copied under a temporary name, then renamed: a copy that is there under its own name is complete. A kill before
    # that leaves a folder .new-..., which nothing reads. Example: two submissions of equal code at the same time both
    # copy it, one rename succeeds, and the other finds the folder there, compares its contents, and uses it.
    temporary = Path(tempfile.mkdtemp(dir=folder, prefix=".new-"))
    try:
        for source in _sources():
            _copy(source, temporary / source.name)
        if not (temporary / "bench" / "gin").is_dir():  # else the wheel carries them inside
            _copy(gin_files.shipped_gin(), temporary / "gin")
        contents = _digest(temporary, commit)
        write_json(temporary / provenance.SNAPSHOT, {"commit": commit, "contents": contents})
        copy = folder / contents[:16]
        temporary.chmod(0o755)  # mkdtemp's own would shut out the others that may read the store
        for path in (*temporary.rglob("*"), temporary):
            sync(path)
        with contextlib.suppress(OSError):  # already there, from an earlier submission or one at the same time
            temporary.rename(copy)
            sync(folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    if not copy.is_dir() or _digest(copy, commit) != contents:
        raise DamagedStore(f"{copy}: the copy of the code was changed after it was made. Delete this folder.")
    return copy


def changed_since(store_root: Path, name: str) -> list[str]:
    """List the Python files that differ between today's code and a copy.

    The code is that of the packages and plugins; a file that only one of the two has is listed, too.
    """
    copy = store_root / ".code" / name
    changed: list[str] = []
    for source in _sources():
        ours, theirs = (_contents(root) for root in (source, copy / source.name))
        changed += sorted(path for path in ours.keys() | theirs.keys() if ours.get(path) != theirs.get(path))
    return changed


def _contents(root: Path) -> dict[str, str]:
    """Return the checksum of each Python file by its path from the folder around `root`, a folder or a file."""
    files = [root] if root.is_file() else _files(root)
    return {str(path.relative_to(root.parent)): sha256(path) for path in files if path.suffix == ".py"}


def _copy(source: Path, target: Path) -> None:
    if source.is_file():
        shutil.copy(source, target)
    else:
        shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__", "*.pyc"))


def _files(folder: Path) -> list[Path]:
    files = (path for path in folder.rglob("*") if path.is_file() and "__pycache__" not in path.parts)
    return sorted(path for path in files if path != folder / provenance.SNAPSHOT)


def _digest(folder: Path, commit: str | None) -> str:
    """Compute a digest of names and contents, and of the commit.

    The commit is part of it because equal code may be of several.
    """
    return digest({"commit": commit, **{str(path.relative_to(folder)): sha256(path) for path in _files(folder)}})
