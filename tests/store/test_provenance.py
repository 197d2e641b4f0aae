"""Where a number came from: on a GPU, the versions of what it computes with, too."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from bench import device
from bench.store import provenance

CLOSED = """NVRM version: NVIDIA UNIX x86_64 Kernel Module  550.54.14  Thu Feb 22 01:44:30 UTC 2024
GCC version:  gcc version 12.2.0 (Debian 12.2.0-14)
"""
OPEN = """NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  570.86.15  Release Build  (someone@a-host-1.2)
GCC version:  gcc version 12.2.0 (Ubuntu 12.2.0-3ubuntu1)
"""


@pytest.fixture(autouse=True)
def computer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A computer without a driver: its file, and the only folder where programs are."""
    monkeypatch.setattr(provenance, "DRIVER", tmp_path / "version")
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(provenance, "commit", lambda: "c")  # git is no longer found
    provenance._driver_version.cache_clear()
    yield tmp_path
    provenance._driver_version.cache_clear()


def nvidia_smi(folder: Path, script: str) -> None:
    program = folder / "nvidia-smi"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)


def of_gpu(monkeypatch: pytest.MonkeyPatch, cuda: str | None = "13.2", cudnn: int | None = 92600) -> dict[str, str]:
    """The versions in the provenance of a stage on a GPU that answers so."""
    monkeypatch.setattr(torch.version, "cuda", cuda)
    monkeypatch.setattr(torch.backends.cudnn, "version", lambda: cudnn)
    monkeypatch.setattr(device, "name", lambda where: f"A GPU, number {where.index}")
    facts = provenance.provenance("cuda:0", 1)
    assert facts["device"] == "A GPU, number 0" and facts["device_type"] == "cuda"
    versions: dict[str, str] = facts["versions"]
    return {name: versions[name] for name in ("cuda", "cudnn", "nvidia-driver") if name in versions}


@pytest.mark.parametrize(("text", "version"), [(CLOSED, "550.54.14"), (OPEN, "570.86.15")])
def test_a_gpu_names_cuda_cudnn_and_driver(
    text: str, version: str, computer: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (computer / "version").write_text(text)
    nvidia_smi(computer, "echo 1.2.3")
    assert of_gpu(monkeypatch) == {"cuda": "13.2", "cudnn": "92600", "nvidia-driver": version}


@pytest.mark.parametrize("text", [None, "of another kind\n"])
def test_where_linux_does_not_say_the_driver_nvidia_smi_does(
    text: str | None, computer: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if text is not None:
        (computer / "version").write_text(text)
    nvidia_smi(computer, 'echo "$*" > "$0.arguments"; echo 535.104.05; echo 535.104.05')
    assert of_gpu(monkeypatch)["nvidia-driver"] == "535.104.05"
    arguments = (computer / "nvidia-smi.arguments").read_text()
    assert arguments.split() == ["--query-gpu=driver_version", "--format=csv,noheader"]


@pytest.mark.parametrize("script", [None, "exit 9", "echo failed: no devices", ":"])
def test_what_nobody_knows_is_left_out(script: str | None, computer: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if script is not None:
        nvidia_smi(computer, script)
    assert of_gpu(monkeypatch) == {"cuda": "13.2", "cudnn": "92600"}
    assert of_gpu(monkeypatch, None, None) == {}


def test_a_cpu_has_none_of_them(computer: Path) -> None:
    (computer / "version").write_text(CLOSED)
    assert not {"cuda", "cudnn", "nvidia-driver"} & provenance.provenance("cpu", 1)["versions"].keys()
