"""The adaptation methods, one file each; importing this package registers all of them (and imports no torch)."""

import importlib
import pkgutil

for _module in pkgutil.iter_modules(__path__):
    # A file NAME_torch.py holds the classes that need torch at import; its method imports it when it computes.
    if not _module.name.endswith("_torch"):
        importlib.import_module(f"{__name__}.{_module.name}")
