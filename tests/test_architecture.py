"""The structure of the code is the one that docs/architecture.md draws: no circles, no import upwards."""

import ast
import graphlib
import importlib
import re
from collections.abc import Iterator
from pathlib import Path

import bench

ROOT = Path(bench.__file__).parents[1]
PAGE = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
COMMANDS = {"check", "doctor", "figures", "report", "speed"}
PACKAGES = {path.parent.name for path in (ROOT / "bench").glob("*/__init__.py")} - COMMANDS
ALONE = {"cli", "device", "errors", "methods"}
"""Modules under bench/ with a place of their own in the picture."""
SHIMS = {"bench.hooks", "bench.registry"}

Graph = dict[str, set[str]]


def modules() -> dict[str, Path]:
    """Every module of the suite by its dotted name."""
    paths = {}
    for path in [*(ROOT / "bench").rglob("*.py"), *(ROOT / "baselines").rglob("*.py")]:
        parts = path.relative_to(ROOT).with_suffix("").parts
        paths[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return paths


def imported(source: str, known: set[str]) -> Iterator[str]:
    """The modules that a source text imports, wherever in it: at its top, in functions, for type checkers."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in known)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0 and node.module is not None, "imports are absolute"
            for alias in node.names:
                full = f"{node.module}.{alias.name}"
                if full in known or node.module in known:
                    yield full if full in known else node.module


def imports() -> Graph:
    paths = modules()
    graph = {name: set(imported(path.read_text(encoding="utf-8"), set(paths))) for name, path in paths.items()}
    return {name: targets - {name} for name, targets in graph.items()}


def package_of(module: str) -> str:
    """The node of the picture that a module belongs to."""
    top, _, rest = module.partition(".")
    first = rest.partition(".")[0]
    if top == "baselines":
        return "baselines"
    if module in SHIMS:
        return "methods"
    if module.endswith(".__main__"):
        return "commands"
    return first if first in PACKAGES | ALONE else "commands"


def between_packages(graph: Graph) -> Graph:
    arrows: Graph = {}
    for module, targets in graph.items():
        arrows.setdefault(package_of(module), set()).update(package_of(target) for target in targets)
    # The package itself holds a version number, and every module of the suite may read it.
    return {package: targets - {package} for package, targets in arrows.items()}


def reachable(arrows: Graph, start: str) -> set[str]:
    seen: set[str] = set()
    left = [start]
    while left:
        for target in arrows.get(left.pop(), set()) - seen:
            seen.add(target)
            left.append(target)
    return seen


def reduced(arrows: Graph) -> set[tuple[str, str]]:
    """The arrows that do not follow from others."""
    return {
        (package, target)
        for package, targets in arrows.items()
        for target in targets
        if not any(target in reachable(arrows, other) for other in targets - {target})
    }


def test_imports_are_seen_wherever_they_stand() -> None:
    source = "import a\nif TYPE_CHECKING:\n    from a import b\ndef f():\n    from a.c import d\n    import other"
    assert set(imported(source, {"a", "a.b", "a.c"})) == {"a", "a.b", "a.c"}


def test_the_reduction_leaves_out_what_follows() -> None:
    assert reduced({"a": {"b", "c"}, "b": {"c"}, "c": set()}) == {("a", "b"), ("b", "c")}


def test_no_module_imports_itself_by_way_of_others() -> None:
    graph = imports()
    assert len(graph) > 100
    graphlib.TopologicalSorter(graph).prepare()  # names the circle that it refuses


def without_versions(graph: Graph) -> Graph:
    """The imports less those of `bench` itself, which holds nothing but the version."""
    return {module: targets - {"bench"} for module, targets in graph.items() if module != "bench"}


def test_the_picture_is_the_code() -> None:
    arrows = between_packages(without_versions(imports()))
    (picture,) = re.findall(r"```mermaid\n(.*?)```", PAGE, re.DOTALL)
    drawn = {(a, b) for a, b in re.findall(r"^ +(\w+) --> (\w+)$", picture, re.MULTILINE)}
    graphlib.TopologicalSorter(arrows).prepare()
    assert drawn == reduced(arrows)


def test_every_package_has_its_paragraph_in_the_order_of_the_imports() -> None:
    arrows = between_packages(without_versions(imports()))
    order = re.findall(r"^\*\*(\w+)\*\* ", PAGE, re.MULTILINE)
    assert sorted(order) == sorted(arrows)
    for package, targets in arrows.items():
        assert all(order.index(package) < order.index(target) for target in targets), package


def test_the_functions_on_a_numbers_way_exist() -> None:
    _, _, section = PAGE.partition("## Follow one number")
    names = re.findall(r"`((?:bench|baselines)\.[\w.]+)`", section.partition("\n## ")[0])
    assert len(names) > 15
    for name in names:
        value: object = None
        module = name
        while module:
            try:
                value = importlib.import_module(module)
                break
            except ModuleNotFoundError:
                module = module.rpartition(".")[0]
        for attribute in name[len(module) + 1 :].split("."):
            value = getattr(value, attribute)
        assert callable(value) or isinstance(value, property) or hasattr(value, "func"), name


def test_every_file_that_the_page_names_exists() -> None:
    for path in re.findall(r"`((?:bench|baselines|tests)/[\w./]*)`", PAGE):
        assert (ROOT / path).exists(), path
