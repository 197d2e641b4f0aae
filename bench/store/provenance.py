"""Where a number came from: code, versions, hardware; never a path, a user or a host name."""

from __future__ import annotations

import contextlib
import functools
import json
import os
import platform
import re
import subprocess
from importlib import metadata
from pathlib import Path
from typing import Any

import bench

PACKAGES = ("torch", "timm", "transformers", "datasets", "scikit-learn", "numpy", "tokenizers", "pillow")
DRIVER = Path("/proc/driver/nvidia/version")
"""The file that is there where Linux has NVIDIA's driver."""
SNAPSHOT = "snapshot.json"
"""Beside the packages of a copy that `bench.launch.slurm.snapshot` made: the commit that they were copied from."""


@functools.cache
def commit(home: Path = Path(bench.__file__).parent) -> str | None:
    """Return the commit of a checkout, by its package's folder: of the one this code runs from.

    It ends in `-dirty` where files were changed, and is None for an installed wheel. A copy made for a submission holds
    the commit it was made from; if that was dirty, a checksum of the copied files follows.
    """
    # A copy is asked first: git knows nothing about it.
    if (home.parent / SNAPSHOT).is_file():
        copied = json.loads((home.parent / SNAPSHOT).read_text(encoding="utf-8"))
        copied_commit: str | None = copied["commit"]
        return (
            f"{copied_commit}-{copied['contents'][:12]}"
            if copied_commit and copied_commit.endswith("-dirty")
            else copied_commit
        )
    git = functools.partial(subprocess.run, cwd=home, capture_output=True, text=True, check=True, timeout=20)
    try:
        # Fails where this package lies, installed, inside somebody else's repository.
        git(["git", "ls-files", "--error-unmatch", "__init__.py"])
        head = git(["git", "rev-parse", "HEAD"]).stdout.strip()
        changed = git(["git", "status", "--porcelain", "--", ".", "../baselines"]).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None
    return f"{head}-dirty" if changed else head


def provenance(device: str, threads: int) -> dict[str, Any]:
    """Collect the code and machine facts that can explain a number. They are those of this process."""
    import torch

    from bench.device import name

    where = torch.device(device)
    facts: dict[str, Any] = {
        "commit": commit(),
        # Those of a GPU are versions, too: under other ones equal keys need not have equal numbers.
        "versions": {
            "adaptation-bench": bench.__version__,
            "python": platform.python_version(),
            **_versions(),
            **(_gpu_versions() if where.type == "cuda" else {}),
        },
        "device": name(where) if where.type == "cuda" else _processor(),
        "device_type": where.type,
        "instruction_set": torch.backends.cpu.get_cpu_capability(),
        "threads": threads,
        "cores": cores(),
    }
    return facts


def cores() -> int:
    """Count the cores that this process may use. They can be fewer than the machine has."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _versions() -> dict[str, str]:
    return {name: metadata.version(name) for name in PACKAGES}


def _gpu_versions() -> dict[str, str]:
    """Return the versions of CUDA's runtime, of cuDNN and of the driver, as far as they are known."""
    import torch

    cudnn = torch.backends.cudnn.version()  # type: ignore[no-untyped-call]
    versions = {"cuda": torch.version.cuda, "cudnn": cudnn and str(cudnn), "nvidia-driver": _driver_version()}
    return {name: version for name, version in versions.items() if version}


@functools.cache  # nvidia-smi may take seconds, and every stage of a process asks
def _driver_version() -> str | None:
    """Read the version of NVIDIA's driver, from Linux or else from nvidia-smi; None where neither says it.

    Linux has one of these lines, by the kind of driver:

        NVRM version: NVIDIA UNIX x86_64 Kernel Module  550.54.14  Thu Feb 22 01:44:30 UTC 2024
        NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  570.86.15  Release Build  (somebody@somewhere)
    """
    with contextlib.suppress(OSError):
        text = DRIVER.read_text(encoding="utf-8", errors="replace")
        if match := re.search(r"Kernel Module.*?\s(\d+(?:\.\d+)+)\s", text):
            return match[1]
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        printed = subprocess.run(command, capture_output=True, text=True, check=True, timeout=20).stdout.split()
    except (OSError, subprocess.SubprocessError):
        return None
    # A line for each GPU, which share one driver.
    return printed[0] if printed and re.fullmatch(r"\d+(\.\d+)+", printed[0]) else None


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return f"cpu {platform.machine()}"
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else f"cpu {platform.machine()}"
