"""Which devices of this computer may be used; torch is imported only where there may be a GPU."""

from __future__ import annotations

import ctypes
import os
from pathlib import Path

from bench.errors import InputError


def local_devices(name: str | None) -> list[str]:
    """List the devices that 'cpu', 'cuda' or 'cuda:N' names.

    None stands for every GPU, or for the CPU where there is none. Refuses what is not there.
    """
    if name == "cpu" or (name is None and not _has_driver()):
        return ["cpu"]
    from bench import device

    if name is not None and str(device.resolve(name)) == name:
        return [name]
    return [f"cuda:{number}" for number in range(device.gpu_count())] or ["cpu"]


def _has_driver() -> bool:
    """Tell whether torch could find a GPU at all.

    It could where CUDA's or ROCm's driver is there.
    """
    try:
        ctypes.CDLL("libcuda.so.1")
    except OSError:
        return Path("/dev/kfd").exists()
    return True


def visible_devices(count: int) -> list[str]:
    """Name the first `count` GPUs as CUDA_VISIBLE_DEVICES takes them.

    That variable may hold indices, UUIDs or MIG names; without it the GPUs are counted. Refuses more than it names.
    """
    value = os.environ.get("CUDA_VISIBLE_DEVICES")
    if value is None:
        return [str(number) for number in range(count)]
    names = [name.strip() for name in value.split(",") if name.strip()]
    if len(names) < count:
        raise InputError(
            f"{count} GPU(s) are needed, and CUDA_VISIBLE_DEVICES='{value}' names {len(names)}: "
            "have it name more, or ask for fewer."
        )
    return names[:count]
