"""How fast a device multiplies matrices: the peak that a loop's `share` refers to."""

from __future__ import annotations

import time

import torch

from bench import device as devices
from bench.specs import Execution
from bench.speed.work import Work

REPEATS = 3


def shapes(work: Work) -> list[tuple[int, int, int]]:
    """List the products (M, K, N) to try: squares and an MLP's."""
    if work.quick:
        return [(64, 64, 64)]
    sides = (1024, 2048) if work.on_cpu else (4096, 8192, 12288)
    rows = 1576 if work.on_cpu else 12608
    return [*((side, side, side) for side in sides), (rows, 768, 3072)]


def flops_per_second(work: Work) -> float:
    """Measure the best of several shapes and repeats in the work's precision."""
    device = devices.resolve(work.device)
    dtype = torch.bfloat16 if work.precision == "bfloat16" else torch.float32
    best = 0.0
    with devices.numerics(Execution(precision=work.precision), device), torch.no_grad():
        for m, k, n in shapes(work):
            left, right = (torch.randn(shape, device=device, dtype=dtype) for shape in ((m, k), (k, n)))
            product = left @ right
            for _ in range(REPEATS):
                devices.synchronize(device)
                began = time.perf_counter()
                torch.matmul(left, right, out=product)
                devices.synchronize(device)
                best = max(best, 2 * m * k * n / (time.perf_counter() - began))
    return best


def has_bfloat16(device: torch.device) -> bool:
    """Tell whether the device multiplies in bfloat16 itself, without emulation."""
    if device.type == "cuda":
        return devices.properties(device)[2]
    return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
