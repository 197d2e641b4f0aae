"""The adaptation methods, one file each."""

import importlib
import pkgutil


def register() -> None:
    """Make every method and backbone known to this process.

    Imports no torch. Whatever reads a grid or a stored stage calls it first: commands, workers and the supervisor. A
    file NAME_torch.py holds classes that need torch at import; its method imports it when it computes.
    """
    for module in pkgutil.iter_modules(__path__):
        if not module.name.endswith("_torch"):
            importlib.import_module(f"{__name__}.{module.name}")
    import bench.planning.backbones  # noqa: F401
