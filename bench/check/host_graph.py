"""A stand-in for a GPU's graph that records and repeats work on the CPU, so that recording is tested without a GPU.

Like a CUDA graph it does nothing while it records, it freezes what Python computes, it reads its inputs from the
tensors it was recorded with, and it refuses what asks the device for a value, or would lie on the host beside a GPU.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree
from torch.utils._device import _device_constructors
from torch.utils._python_dispatch import TorchDispatchMode

WAITING = {"_local_scalar_dense", "nonzero", "is_nonzero", "equal"}
"""Operations that bring a value to the host, or whose result has a shape that only the device knows."""


def _tensors(tree: Any) -> list[Tensor]:
    return [leaf for leaf in pytree.tree_leaves(tree) if isinstance(leaf, Tensor)]


def _address(tensor: Tensor) -> int:
    """Return where the storage of a tensor lies, which views of it share."""
    return tensor.untyped_storage().data_ptr()


class HostGraph:
    """Stands in for `bench.device.Graph`."""

    count = 0

    def __init__(self, pool: object) -> None:
        self._operations: list[Callable[[], None]] = []
        self.replays = 0
        type(self).count += 1

    def capture(self, work: Callable[[], Any]) -> Any:
        recording = _Recording()
        generator = torch.get_rng_state()  # of the device that this stands in for
        try:
            with recording, _OnDevice():
                return work()
        finally:
            self._operations = recording.operations
            recording.undo()
            torch.set_rng_state(generator)

    def replay(self) -> None:
        self.replays += 1
        for operation in self._operations:
            operation()


class _OnDevice(TorchFunctionMode):
    """Refuses a tensor made without `device`: beside a GPU it lies on the host, and a graph freezes its values."""

    def __torch_function__(
        self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        result = function(*args, **kwargs)
        makes = function in _device_constructors() and not any(isinstance(argument, Tensor) for argument in args)
        # A single number on the host may be combined with a GPU's tensors.
        if makes and kwargs.get("device") is None and result.dim() > 0:
            raise RuntimeError(f"torch.{function.__name__} without device= makes a tensor on the host, not on the GPU")
        return result


class _Recording(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Carries out and notes every operation; `undo` puts back what they overwrote."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.operations: list[Callable[[], None]] = []
        self._made: set[int] = set()  # storages that the work allocated
        self._before: dict[int, tuple[Tensor, Tensor]] = {}
        self._kept: list[Any] = []

    def __torch_dispatch__(
        self, operation: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        name = operation._schema.name.partition("::")[2]
        # `index` may choose by truth values, whose number only the device knows.
        chooses = name.startswith("index") and any(t.dtype in (torch.bool, torch.uint8) for t in _tensors(args[1]))
        if name in WAITING or chooses:
            raise RuntimeError(f"{name} asks the device for a value while work is recorded")
        written = self._written(operation, args, kwargs)
        for tensor in written:
            address = _address(tensor)
            if address not in self._made and address not in self._before:
                whole = torch.empty(0, dtype=torch.uint8, device="cpu").set_(tensor.untyped_storage())
                self._before[address] = whole, whole.clone()
        results = operation(*args, **kwargs)
        fresh = set(map(_address, _tensors(results))) - set(map(_address, _tensors((args, kwargs))))
        self._made |= fresh
        self._kept.append((args, kwargs, results))  # as a graph's memory, none of it is used again
        if written or fresh:
            self.operations.append(lambda: self._repeat(operation, args, kwargs, results))
        return results

    def _written(self, operation: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Tensor]:
        """The tensors that the operation changes in place, by its schema."""
        written: list[Tensor] = []
        for position, argument in enumerate(operation._schema.arguments):
            if argument.alias_info is not None and argument.alias_info.is_write:
                written += _tensors(args[position] if position < len(args) else kwargs.get(argument.name))
        return written

    def _repeat(self, operation: Any, args: tuple[Any, ...], kwargs: dict[str, Any], results: Any) -> None:
        with torch.no_grad():
            again = operation(*args, **kwargs)
            for target, source in zip(_tensors(results), _tensors(again), strict=True):
                if target.data_ptr() != source.data_ptr():
                    target.detach().copy_(source)

    def undo(self) -> None:
        for whole, before in self._before.values():
            whole.copy_(before)
