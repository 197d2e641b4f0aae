"""The adaptation methods, one file each."""

import importlib
import pkgutil
import traceback

from bench.errors import InputError


def register() -> None:
    """Make every method and backbone known to this process.

    Imports no torch. Whatever reads a grid or a stored stage calls it first: commands, workers and the supervisor. A
    file NAME_torch.py holds classes that need torch at import; its method imports it when it computes. Refuses a file
    that cannot be imported. Installed plugins are loaded, too.
    """
    for module in pkgutil.iter_modules(__path__):
        if module.name.endswith("_torch"):
            continue
        try:
            importlib.import_module(f"{__name__}.{module.name}")
        except InputError:
            raise
        except Exception as error:
            # The last line of one of these files, as the error may come from a package that one of them imports.
            lines = [frame for frame in traceback.extract_tb(error.__traceback__) if "baselines" in frame.filename]
            line = f" (from {lines[-1].filename}:{lines[-1].lineno})" if lines[1:] else ""
            raise InputError(
                f"baselines/{module.name}.py cannot be imported: {type(error).__name__}: {error}{line}. Mend it, or "
                "move it away: every file under baselines/ is loaded."
            ) from error
    import bench.planning.backbones  # noqa: F401
    from bench.planning import plugins

    plugins.load_installed()
