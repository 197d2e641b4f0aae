"""Where a number came from: code, versions, hardware; never a path, a user or a host name."""

from __future__ import annotations

import functools
import platform
import subprocess
from importlib import metadata
from pathlib import Path
from typing import Any

import bench

PACKAGES = ("torch", "timm", "transformers", "datasets", "scikit-learn", "numpy", "tokenizers", "pillow")


@functools.cache
def commit() -> str | None:
    """The commit of the checkout this code runs from, with `-dirty` after it; None for an installed wheel."""
    home = Path(bench.__file__).parent
    git = functools.partial(subprocess.run, cwd=home, capture_output=True, text=True, check=True, timeout=20)
    try:
        git(["git", "ls-files", "--error-unmatch", "specs.py"])  # else it is somebody else's repository around a venv
        head = git(["git", "rev-parse", "HEAD"]).stdout.strip()
        changed = git(["git", "status", "--porcelain", "--", ".", "../baselines"]).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None
    return f"{head}-dirty" if changed else head


def provenance(device: str, threads: int) -> dict[str, Any]:
    """The code and machine facts of this process that can explain a number."""
    import torch

    facts: dict[str, Any] = {
        "commit": commit(),
        "versions": {"adaptation-bench": bench.__version__, "python": platform.python_version(), **_versions()},
        "device": torch.cuda.get_device_name(device) if device.startswith("cuda") else _processor(),
        "instruction_set": torch.backends.cpu.get_cpu_capability(),
        "threads": threads,
    }
    return facts


def _versions() -> dict[str, str]:
    return {name: metadata.version(name) for name in PACKAGES}


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return f"cpu {platform.machine()}"
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else f"cpu {platform.machine()}"
