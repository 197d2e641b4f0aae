"""What a grid needs of this computer, and whether that is there."""

from __future__ import annotations

import importlib
import os
import platform
import shutil
import tempfile
import time
import tomllib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

import bench
from bench.store.files import create_json, read_json, write_json
from bench.store.provenance import DRIVER, cores

if TYPE_CHECKING:
    import torch

LITTLE_GB, TOO_LITTLE_GB = 20.0, 1.0
SKEW_SECONDS = 5.0


class Fact(NamedTuple):
    """Something that matters; `verdict` is ok, warning or problem."""

    verdict: str
    text: str
    fix: str = ""


# ----------------------------------------------------------------------------------------------- Python, packages, GPU


def packages() -> Iterator[Fact]:
    """Report Python and the required packages.

    The versions that are asked for are those of the project's metadata.
    """
    python, requirements = _required()
    running = platform.python_version()
    verdict = "ok" if python.contains(running, prereleases=True) else "problem"
    yield Fact(verdict, f"Python {running} ({python})", f"use Python {python}")
    wrong = 0
    for requirement in requirements:
        try:
            version = metadata.version(requirement.name)
        except metadata.PackageNotFoundError:
            version = ""
        if not version or not requirement.specifier.contains(version, prereleases=True):
            wrong += 1
            text = f"{requirement.name} {version or 'is missing'} ({requirement.specifier})"
            yield Fact("problem", text, f"pip install '{requirement}'")
    if not wrong:
        yield Fact("ok", f"{len(requirements)} packages are installed as required")
    for name in ("torch", "torchvision", "timm"):
        try:
            importlib.import_module(name)
        except Exception as error:  # a broken build raises whatever it likes
            text = f"{name} cannot be imported: {_first_line(error)}"
            yield Fact("problem", text, f"install {name} again; {_SAME_BUILD}")
        else:
            yield Fact("ok", f"{name} {metadata.version(name)} can be imported")


_SAME_BUILD = "torch and torchvision must come from the same index"


def _required() -> tuple[SpecifierSet, list[Requirement]]:
    """Read which Python and packages the checkout, or else the wheel, requires."""
    checkout = Path(bench.__file__).parents[1] / "pyproject.toml"
    if checkout.is_file():
        project = tomllib.loads(checkout.read_text(encoding="utf-8"))["project"]
        python, lines = project["requires-python"], project["dependencies"]
    else:
        wheel = metadata.metadata("adaptation-bench")
        python, lines = wheel["Requires-Python"], wheel.get_all("Requires-Dist", [])
    requirements = [Requirement(line) for line in lines]
    return SpecifierSet(python), [each for each in requirements if each.marker is None]  # else of an extra


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0] if lines else 'no message'}"


def devices() -> Iterator[Fact]:
    """Report the cores and GPUs, and whether each can train."""
    yield Fact("ok", f"{cores()} CPU cores may be used")
    try:
        import torch

        from bench import device
    except Exception:  # told of above
        return
    yield _trained(device.CPU, "CPU", f"install torch, torchvision and timm again; {_SAME_BUILD}")
    driver = DRIVER.exists() or shutil.which("nvidia-smi") is not None
    if torch.version.cuda is None and torch.version.hip is None:
        unused = "there is an NVIDIA driver, but torch is built for CPUs"
        without = Fact("ok", "no GPU; torch is built for CPUs")
        yield Fact("warning", unused, "install a CUDA build of torch") if driver else without
        return
    platform = f"CUDA {torch.version.cuda}" if torch.version.cuda else f"HIP {torch.version.hip}"
    built = f"torch is built for {platform}"
    count = device.gpu_count()
    if count == 0:
        try:
            torch.zeros(1, device="cuda")
            why = "it finds no GPU"
        except Exception as error:
            why = _first_line(error)
        if driver and os.environ.get("CUDA_VISIBLE_DEVICES") != "":
            fix = "update the driver, or install a torch built for its CUDA version (nvidia-smi shows it)"
            yield Fact("problem", f"{built}, but cannot use the GPU: {why}", fix)
        else:
            yield Fact("ok", f"{built}; no GPU here (as usual on login nodes)")
    for number in range(count):
        gpu = torch.device("cuda", number)
        try:
            model, memory, bf16 = device.properties(gpu)
        except Exception as error:
            yield Fact("problem", f"GPU {number}: {_first_line(error)}; {built}", _OTHER_TORCH)
            continue
        name = f"GPU {number}: {model}, {memory / 2**30:.0f} GiB; {built}"
        yield _trained(gpu, name, _OTHER_TORCH)
        if not bf16:
            yield Fact("warning", f"{name}; no bf16", "leave precision at float32, or use a newer GPU")


_OTHER_TORCH = "install a torch that knows this GPU"


def _trained(tested: torch.device, name: str, fix: str) -> Fact:
    """Tell whether a device can train, by training a tiny stage."""
    from bench.device import is_out_of_memory

    try:
        from bench.doctor.trial import train_briefly

        train_briefly(tested)
    except Exception as error:  # a driver, a build or a package may raise whatever it likes
        fix = "free its memory: nvidia-smi lists the processes on it" if is_out_of_memory(error) else fix
        return Fact("problem", f"{name}: cannot train: {_first_line(error)}", fix)
    return Fact("ok", f"{name}: a few steps of training succeed")


# -------------------------------------------------------------------------------------------------------------- disks


def disk(argument: str, folder: Path) -> Iterator[Fact]:
    """Report the free space where a folder is, or would be."""
    location, what = existing(folder), f"{argument} {folder}"
    free = shutil.disk_usage(location).free / 1e9
    nodes = os.statvfs(location)
    if free < LITTLE_GB:
        yield Fact("problem" if free < TOO_LITTLE_GB else "warning", f"{what}: {free:.1f} GB free", "free some space")
    elif nodes.f_files and nodes.f_favail < 10_000:
        yield Fact("warning", f"{what}: only {nodes.f_favail} more files can be made", "delete files")
    else:
        yield Fact("ok", f"{what}: {free:.0f} GB free")


def existing(folder: Path) -> Path:
    """Return a folder, or the nearest one above it that exists."""
    return next(parent for parent in (folder.absolute(), *folder.absolute().parents) if parent.is_dir())


def file_system(store: Path) -> Iterator[Fact]:
    """Report whether the store's file system does what the store relies on.

    The store needs exclusive creation, hard links, rename, fsync, and a clock that agrees with this computer's.
    """
    fix = "put the store on another file system"
    try:
        with tempfile.TemporaryDirectory(dir=existing(store), prefix=".bench-doctor-") as name:
            folder = Path(name)
            # 1. A stage is claimed by creating a file.
            with ThreadPoolExecutor(8) as pool:  # several at once: exactly one may win
                won = list(pool.map(lambda number: create_json(folder / "one.json", {"number": number}), range(8)))
            if sum(won) != 1 or read_json(folder / "one.json", fix)["number"] != won.index(True):
                yield Fact("problem", f"--store {store}: of 8 that create a file, {sum(won)} succeed", fix)
            # 2. What is written anew replaces the old file at once.
            write_json(folder / "two.json", {"number": 1})
            write_json(folder / "two.json", {"number": 2})
            if read_json(folder / "two.json", fix)["number"] != 2:
                yield Fact("problem", f"--store {store}: a rename over a file does not replace it", fix)
            # 3. Times that several machines wrote are compared: whether an attempt began after a submission.
            before = time.time()
            (folder / "now").touch()
            skew = (folder / "now").stat().st_mtime - (before + time.time()) / 2
    except OSError as error:
        yield Fact("problem", f"--store {store}: cannot be written as needed (hard links, rename, fsync): {error}", fix)
        return
    yield Fact("ok", f"--store {store}: can be written; exclusive creation, hard links, rename and fsync work")
    verdict = "warning" if abs(skew) > SKEW_SECONDS else "ok"
    text = f"--store {store}: its clock differs from this computer's by {abs(skew):.1f} s"
    yield Fact(verdict, text, "have the clocks set (NTP)")
