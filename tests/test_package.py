"""What is published: the wheel, the citation and the constraints."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from submitit import SlurmExecutor
from submitit.core.utils import DelayedSubmission

import bench

ROOT = Path(__file__).parents[1]
PYTHONS = ("3.11", "3.12", "3.13")


@pytest.fixture(scope="module")
def project() -> dict[str, Any]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


def _pip(*arguments: str | Path) -> None:
    command = [
        sys.executable,
        "-m",
        "pip",
        "--quiet",
        "--no-input",
        "--disable-pip-version-check",
        *map(str, arguments),
    ]
    result = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert result.returncode == 0, result.stderr


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel of this checkout, built offline with the environment's own hatchling."""
    folder = tmp_path_factory.mktemp("wheel")
    _pip("wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", folder, ROOT)
    (built,) = folder.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that holds the unpacked package, outside the checkout."""
    folder = tmp_path_factory.mktemp("installed")
    _pip("install", "--no-deps", "--no-index", "--target", folder, wheel)
    return folder


def test_wheel_holds_both_packages_their_data_and_the_grids_only(wheel: Path) -> None:
    assert wheel.name == f"adaptation_bench-{bench.__version__}-py3-none-any.whl"
    names = zipfile.ZipFile(wheel).namelist()
    assert {name.split("/")[0] for name in names} == {
        "bench",
        "baselines",
        f"adaptation_bench-{bench.__version__}.dist-info",
    }
    # Every source file, and each grid once: below the package that looks for it.
    sources = {
        path.relative_to(ROOT).as_posix() for name in ("bench", "baselines") for path in (ROOT / name).rglob("*.py")
    }
    grids = {f"bench/{path.relative_to(ROOT).as_posix()}" for path in (ROOT / "gin").rglob("*.gin")}
    assert "bench/gin/quickstart.gin" in grids
    tokenizer = "bench/data/sources/docstrings_tokenizer.json"
    code = {name for name in names if name.startswith(("bench/", "baselines/"))}
    page = {f"bench/report/page.{ending}" for ending in ("html", "css", "js")}
    published = "bench/tables/published.json"
    assert code == sources | grids | {tokenizer, published} | page
    assert zipfile.ZipFile(wheel).read(published) == (ROOT / published).read_bytes()
    assert zipfile.ZipFile(wheel).read(tokenizer) == (ROOT / tokenizer).read_bytes()
    assert any(name.endswith("licenses/LICENSE") for name in names)


def test_installed_copy_is_imported_outside_the_checkout(installed: Path, tmp_path: Path) -> None:
    code = (
        "import json, baselines, bench, bench.planning.gin_files\n"
        "print(json.dumps([bench.__file__, baselines.__file__, str(bench.planning.gin_files.shipped_gin())]))"
    )
    environment = {**os.environ, "PYTHONPATH": str(installed)}
    result = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    package, methods, grids = map(Path, json.loads(result.stdout))
    assert package == installed / "bench" / "__init__.py"
    assert methods == installed / "baselines" / "__init__.py"
    assert grids == installed / "bench" / "gin"
    assert (grids / "quickstart.gin").read_bytes() == (ROOT / "gin" / "quickstart.gin").read_bytes()


def test_the_command_runs_from_an_installed_copy(installed: Path, tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(installed)}
    for name in ("gin/quickstart.gin", "quickstart.gin"):
        command = [sys.executable, "-m", "bench.grid", "--gin", name, "--plan"]
        result = subprocess.run(
            command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120, check=False
        )
        assert result.returncode == 0, result.stderr
        assert "grid quickstart: " in result.stdout
    assert not list(tmp_path.iterdir())


def test_gin_folder_is_no_package() -> None:
    assert not list((ROOT / "gin").rglob("__init__.py")), "it would hide the library of the same name"


def test_citation_names_both_papers() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation["cff-version"] == "1.2.0"
    assert citation["version"] == bench.__version__
    assert {"authors", "message", "title"} <= citation.keys()
    papers = {paper["url"].rpartition("/")[2]: paper for paper in citation["references"]}
    assert set(papers) == {"2210.02871", "2205.12428"}
    assert [author["family-names"] for author in papers["2210.02871"]["authors"]] == [
        "Lee",
        "Kang",
        "Lee",
        "Hwang",
        "Kawaguchi",
    ]
    assert len(papers["2205.12428"]["authors"]) == 8


def _constraints() -> list[Requirement]:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    return [Requirement(line) for line in lines if line and not line.startswith("#")]


def _pins(python: str) -> dict[str, str]:
    """The pinned version of each distribution on Linux under this Python."""
    environment = {"python_version": python, "python_full_version": f"{python}.0", "sys_platform": "linux"}
    valid = [pin for pin in _constraints() if pin.marker is None or pin.marker.evaluate(environment)]
    pins = {str(canonicalize_name(pin.name)): next(iter(pin.specifier)).version for pin in valid}
    assert len(pins) == len(valid), "a distribution is pinned twice"
    return pins


def test_constraints_are_plain_versions() -> None:
    text = (ROOT / "constraints.txt").read_text(encoding="utf-8")
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    # NAME==VERSION or NAME==VERSION ; MARKER: no URL, path, option, hash or build tag of one index.
    assert [line for line in lines if not re.fullmatch(r"[\w.-]+==[\w.]+( ; [\w.'\" =<>]+)?", line)] == []


@pytest.mark.parametrize("python", PYTHONS)
def test_constraints_cover_and_satisfy_every_direct_dependency(project: dict[str, Any], python: str) -> None:
    pins = _pins(python)
    extras = project["project"]["optional-dependencies"].values()
    direct = [
        *project["project"]["dependencies"],
        *project["build-system"]["requires"],
        *(r for e in extras for r in e),
    ]
    for requirement in map(Requirement, direct):
        pinned = pins.get(canonicalize_name(requirement.name))
        assert pinned is not None, f"{requirement.name} is not pinned"
        assert requirement.specifier.contains(pinned), f"{requirement}, but {pinned} is pinned"


def test_runtime_dependencies_have_lower_bounds_only(project: dict[str, Any]) -> None:
    for requirement in map(Requirement, project["project"]["dependencies"]):
        # The launcher builds on private names of submitit, which the next minor version may rename.
        expected = {">=", "<"} if requirement.name == "submitit" else {">="}
        assert {bound.operator for bound in requirement.specifier} == expected, (
            f"{requirement} must be of the form name >= version"
        )


def test_submitit_has_the_private_names_that_the_launcher_builds_on(tmp_path: Path) -> None:
    for name in ("_internal_process_submissions", "_submit_command", "_submitit_command_str"):
        assert hasattr(SlurmExecutor, name), name
    delayed = DelayedSubmission(int)
    delayed.set_timeout(1, 2)
    delayed.dump(tmp_path / "0.pkl")
    assert (tmp_path / "0.pkl").is_file()


@pytest.mark.parametrize(("name", "version"), [("torch", "2.11.0"), ("transformers", "5.17.0"), ("submitit", "1.5.4")])
def test_oldest_supported_versions_are_admitted(project: dict[str, Any], name: str, version: str) -> None:
    (requirement,) = (r for r in map(Requirement, project["project"]["dependencies"]) if r.name == name)
    assert requirement.specifier.contains(version)
