"""The devices that training runs on. Only this module calls `torch.cuda`; every function initialises CUDA first.

A device is a CPU ('cpu') or one GPU ('cuda:0'). Functions that a CPU has no use for do nothing there, so that callers
need no branch.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import gc
import os
import platform
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bench.errors import InputError
from bench.specs import Execution

CPU = torch.device("cpu")
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
"""Parameters of glibc's `mallopt`."""


def _ready(device: torch.device) -> bool:
    """Initialise CUDA for a GPU and tell whether it is one. Most functions of torch.cuda fail before that."""
    if device.type != "cuda":
        return False
    torch.cuda.init()  # type: ignore[no-untyped-call]
    return True


# ------------------------------------------------------------------------------------------------ which devices


def gpu_count() -> int:
    """Count the GPUs that torch can use here, after CUDA_VISIBLE_DEVICES."""
    return torch.cuda.device_count() if torch.cuda.is_available() else 0


def resolve(name: str) -> torch.device:
    """Turn 'cpu', 'cuda' or 'cuda:N' into a device. Refuses any other name, and a GPU that torch cannot use."""
    try:
        device = torch.device(name)
    except RuntimeError:
        device = None
    if device is None or device.type not in ("cpu", "cuda") or (device.type == "cpu" and name != "cpu"):
        raise InputError(f"the device {name!r} is unknown. Legal: cpu, cuda, cuda:0, cuda:1, …")
    if device.type == "cpu":
        return device
    # Two errors, as their remedies differ: no GPU can be used at all, or not the one with that number.
    count = gpu_count()
    if count == 0:
        raise InputError(
            f"{device} was asked for on {platform.node()}, where torch {torch.__version__} (built for CUDA "
            f"{torch.version.cuda}) finds no GPU: python -m bench.doctor tells why. Keep away from that node "
            "(slurm.extra), or install a torch that knows its driver."
        )
    index = device.index or 0
    if index >= count:
        legal = ", ".join(f"cuda:{i}" for i in range(count))
        raise InputError(f"cuda:{index} was asked for on {platform.node()}, which has {count} GPU(s): {legal}.")
    return torch.device("cuda", index)


def name(device: torch.device) -> str:
    """Name the model of a GPU."""
    _ready(device)
    return torch.cuda.get_device_name(device)


def properties(device: torch.device) -> tuple[str, int, bool]:
    """Return a GPU's model, memory in bytes and whether bfloat16 is native.

    It is native where the GPU computes in it without emulation.
    """
    _ready(device)
    about = torch.cuda.get_device_properties(device)
    with torch.cuda.device(device):
        return about.name, int(about.total_memory), torch.cuda.is_bf16_supported(including_emulation=False)


# ------------------------------------------------------------------------------------------------ memory and time


def synchronize(device: torch.device) -> None:
    """Wait until a GPU has done all the work asked of it."""
    if _ready(device):
        torch.cuda.synchronize(device)


def is_out_of_memory(error: BaseException) -> bool:
    """Tell whether an error says that there was too little memory.

    The memory is that of a device or of one of its libraries.
    """
    text = str(error)
    words = (
        "out of memory",
        "can't allocate memory",
        "CUBLAS_STATUS_ALLOC_FAILED",
        "CUDNN_STATUS_ALLOC_FAILED",
        "NVML_SUCCESS ==",  # the allocator's own report of it, where NVML is not to be had
    )
    kinds = (torch.OutOfMemoryError, MemoryError)
    return isinstance(error, kinds) or (isinstance(error, RuntimeError) and any(word in text for word in words))


def describe(device: torch.device) -> str:
    """Name a device with its memory in GiB. Where CUDA_VISIBLE_DEVICES is set, it is named, too."""
    if device.type == "cpu":
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        return f"the CPU ({memory / 2**30:.1f} GiB)"
    model, memory, _ = properties(device)
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    which = f", CUDA_VISIBLE_DEVICES={visible}" if visible else ""
    return f"{device} ({model}, {memory / 2**30:.1f} GiB{which})"


def reset_peak_memory(device: torch.device) -> None:
    """Begin a new measurement of `peak_memory`."""
    if _ready(device):
        torch.cuda.reset_peak_memory_stats(device)


def peak_memory(device: torch.device) -> int:
    """Return the most bytes that tensors on a GPU took at once. Counted since `reset_peak_memory`."""
    _ready(device)
    return torch.cuda.max_memory_allocated(device)


def free_memory(device: torch.device) -> int:
    """Return the bytes of memory that no process uses: a GPU's, or this computer's."""
    if _ready(device):
        return int(torch.cuda.mem_get_info(device)[0])
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:  # no Linux: all there is
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith("MemAvailable"))


def release_memory(device: torch.device) -> None:
    """Return memory that nothing uses any more. Other processes and the next stage can then have it."""
    if _ready(device):
        gc.collect()  # what refers to itself, such as an error and its frames, would keep its tensors
        torch.cuda.empty_cache()
    if (allocator := _glibc()) is not None:
        allocator.malloc_trim(0)


@functools.cache
def _glibc() -> ctypes.CDLL | None:
    """Return the C library of this process, or None where it is another than glibc."""
    with contextlib.suppress(OSError):
        library = ctypes.CDLL("libc.so.6")
        return library if hasattr(library, "malloc_trim") else None
    return None


def use_cpu(threads: int) -> None:
    """Let this process compute on so many CPU threads, and keep the memory that its steps free.

    glibc hands tensors from 128 KiB on back to the system one by one, and the next step takes them anew, page by page.
    A step of MiniLM on one thread took 0.85 of the CPU time without that, and the peak of memory was the same. What is
    kept goes back with `release_memory`.
    """
    torch.set_num_threads(threads)
    if (allocator := _glibc()) is not None:
        for parameter in (M_TRIM_THRESHOLD, M_MMAP_THRESHOLD):
            allocator.mallopt(parameter, 2**30)


def using(device: torch.device) -> contextlib.AbstractContextManager[None]:
    """Make a GPU the current one meanwhile. Pinned memory and events belong to the current one."""
    return contextlib.nullcontext() if not _ready(device) else torch.cuda.device(device)


# ------------------------------------------------------------------------------------------------ numbers


@contextlib.contextmanager
def numerics(execution: Execution, device: torch.device) -> Iterator[None]:
    """Compute as `execution` says while a stage runs, then as before.

    Refuses 'tf32' on a CPU.

    'float32' is full precision: TF32 is off in matrix products and in cuDNN's convolutions, where torch has it on by
    default. 'tf32' turns both on.
    """
    if execution.precision == "tf32" and device.type != "cuda":
        raise InputError(
            "execution.precision = 'tf32': a CPU has no TF32. Set execution.precision = 'float32', or run on a GPU."
        )
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # without it cuBLAS is not deterministic
    deterministic = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(execution.deterministic)
    try:
        with _tf32(execution.precision == "tf32"):
            yield
    finally:
        torch.use_deterministic_algorithms(deterministic)


@contextlib.contextmanager
def full_precision(device: torch.device) -> Iterator[None]:
    """Compute meanwhile in the precision of the weights: without autocast and TF32."""
    with _tf32(False), torch.autocast(device.type, enabled=False):
        yield


@contextlib.contextmanager
def _tf32(allowed: bool) -> Iterator[None]:
    """Allow or forbid TF32 meanwhile."""
    # The older of torch's two interfaces: its compiler still reads it, and fails where the newer one was used.
    products, convolutions = torch.backends.cuda.matmul, torch.backends.cudnn
    before = products.allow_tf32, convolutions.allow_tf32
    products.allow_tf32 = convolutions.allow_tf32 = allowed
    try:
        yield
    finally:
        products.allow_tf32, convolutions.allow_tf32 = before


# ------------------------------------------------------------------------------------------------ copies


def seed(value: int, device: torch.device) -> None:
    """Seed the default generators of Python, NumPy, torch and a device.

    A method may draw from any of them. `torch.manual_seed` asks every kind of accelerator and takes a hundred times as
    long, at each step.
    """
    random.seed(value)
    np.random.seed(value % 2**32)  # noqa: NPY002 - the one that a method gets without asking
    torch.default_generator.manual_seed(value)
    if _ready(device):
        with torch.cuda.device(device):
            torch.cuda.manual_seed(value)


def send(tensor: Tensor, device: torch.device) -> Tensor:
    """Copy a host tensor to a device without waiting for it.

    The copy reads from pinned memory, which torch keeps untouched until the copy has happened.
    """
    if not _ready(device):
        return tensor
    # Dense first: strided memory would be copied once more, into memory that is not pinned.
    return tensor.contiguous().pin_memory().to(device, non_blocking=True)


@dataclass(frozen=True)
class Arriving:
    """Numbers on their way from a device to the host."""

    _host: Tensor
    _event: Any

    def wait(self) -> list[float]:
        """Return the numbers, once the device has got that far."""
        if self._event is not None:
            self._event.synchronize()
        return [float(value) for value in self._host.tolist()]


def receive(tensor: Tensor) -> Arriving:
    """Start to copy a vector from its device to the host. The host does not wait for it."""
    if not _ready(tensor.device):
        return Arriving(tensor, None)
    # The event stands behind the copy in the GPU's queue: once it has happened, the numbers are there. To wait for it
    # is to wait for this copy, not for the steps that were asked for since.
    host = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
    host.copy_(tensor, non_blocking=True)
    event = torch.cuda.Event()  # type: ignore[no-untyped-call]
    event.record()
    return Arriving(host, event)


# ------------------------------------------------------------------------------------------------ CUDA graphs


class Graph:
    """A CUDA graph: work that is recorded once and repeated whole.

    `pool` is shared by graphs of which only one runs at a time, so that they use the same memory.
    """

    def __init__(self, pool: Any) -> None:
        self._graph, self._pool = torch.cuda.CUDAGraph(), pool

    def capture(self, work: Callable[[], Any]) -> Any:
        """Record what `work` asks of the device, without doing it. Returns what `work` returns."""
        try:
            # torch would record on a stream of its own; the current one, the side stream, is that of unrecorded steps.
            with torch.cuda.graph(self._graph, pool=self._pool, stream=torch.cuda.current_stream()):
                return work()
        except Exception:
            # A recording that broke off can leave the generator in the belief that it is still going on.
            generator = torch.cuda.default_generators[torch.cuda.current_device()]
            generator.graphsafe_set_state(generator.clone_state())
            raise

    def replay(self) -> None:
        """Do what was recorded."""
        self._graph.replay()


def has_graphs(device: torch.device) -> bool:
    """Tell whether the device can record work and repeat it."""
    return device.type == "cuda"


def graph_pool(device: torch.device) -> Any:
    """Create a memory pool for the graphs of one stage."""
    _ready(device)
    return torch.cuda.graph_pool_handle()


@contextlib.contextmanager
def side_stream(device: torch.device) -> Iterator[None]:
    """Work on a GPU's side stream meanwhile. Graphs cannot be captured on the default one."""
    if not _ready(device):
        yield
        return
    with torch.cuda.device(device):
        # Two streams of a GPU do not wait for each other by themselves. So the side stream first waits for what was
        # asked before, such as copying the network to the GPU, and what is asked afterwards waits for the side stream,
        # such as evaluation.
        before, stream = torch.cuda.current_stream(), _side_stream(torch.cuda.current_device())
        stream.wait_stream(before)
        try:
            with torch.cuda.stream(stream):
                yield
        finally:
            before.wait_stream(stream)


@functools.cache
def _side_stream(index: int) -> Any:
    """Return the one side stream of a GPU.

    Each new one would keep memory of its own for as long as the process lives.
    """
    _ready(torch.device("cuda", index))
    return torch.cuda.Stream(index)  # type: ignore[no-untyped-call]
