"""What holds for every test: no network, empty caches, one thread, deterministic torch; and groups of tests.

A test that needs more than the package and this computer's memory is marked with a group, `@pytest.mark.group("data")`.
Where what the group needs is missing, its tests are skipped; where the environment variable BENCH_REQUIRED_GROUPS
(names with commas between them) names the group, they fail instead, so that a misconfigured machine cannot pass.
"""

from __future__ import annotations

import fcntl
import functools
import importlib.util
import ipaddress
import os
import shutil
import signal
import socket
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

import baselines
from bench.data import prepare

baselines.register()

REQUIRED_GROUPS = "BENCH_REQUIRED_GROUPS"


class Group(NamedTuple):
    """When the tests of a group can run, and what to say where they cannot."""

    available: Callable[[], bool]
    needs: str


def _real_data() -> bool:
    folder = os.environ.get("BENCH_REAL_DATA", "")
    return folder != "" and Path(folder).is_dir()


def _cuda() -> bool:
    import torch

    return torch.cuda.is_available()


def _dev_cluster() -> bool:
    folder = os.environ.get("BENCH_SLURM_FOLDER", "")
    return folder != "" and (Path(folder) / "etc" / "slurm.conf").is_file() and shutil.which("sbatch") is not None


def _compiler() -> bool:
    # What torch compiles for a CPU is C++ that includes Python's own headers.
    headers = Path(sysconfig.get_path("include"), "Python.h")
    return any(shutil.which(name) for name in ("g++", "clang++")) and headers.is_file()


def _chromium() -> bool:
    return any(shutil.which(name) for name in CHROMIUM)


def _latex() -> bool:
    if shutil.which("pdflatex") is None:
        return False
    done = subprocess.run(["kpsewhich", "booktabs.sty"], capture_output=True, check=False)
    return done.returncode == 0


def _installed(package: str) -> bool:
    return importlib.util.find_spec(package) is not None


CHROMIUM = ("chromium", "chromium-browser", "google-chrome")
GROUPS = {
    "chromium": Group(_chromium, f"a browser, {' or '.join(CHROMIUM)} (apt-get install chromium)"),
    "compiler": Group(_compiler, "a C++ compiler, g++ or clang++, and Python's headers"),
    "cuda": Group(_cuda, "a GPU that torch can use"),
    "data": Group(_real_data, "the environment variable BENCH_REAL_DATA naming the folder of real data sets"),
    "latex": Group(_latex, "pdflatex with booktabs (apt-get install texlive-latex-recommended)"),
    "peft": Group(functools.partial(_installed, "peft"), "the package peft (pip install -e '.[peft]')"),
    "slurm": Group(
        _dev_cluster,
        "the environment variable BENCH_SLURM_FOLDER naming a cluster of slurm/dev_cluster.sh",
    ),
    "tensorboard": Group(
        functools.partial(_installed, "tensorboard"), "the package tensorboard (pip install -e '.[tensorboard]')"
    ),
}


@functools.cache
def _available(group: str) -> bool:
    return GROUPS[group].available()


def _required() -> set[str]:
    return {name.strip() for name in os.environ.get(REQUIRED_GROUPS, "").split(",") if name.strip()}


def _refuse_unknown(groups: Iterable[str], where: str) -> None:
    if unknown := sorted(set(groups) - GROUPS.keys()):
        raise pytest.UsageError(f"{where} names unknown groups {unknown}; legal are {sorted(GROUPS)}.")


def _groups(item: pytest.Item) -> list[str]:
    markers = list(item.iter_markers("group"))
    if any(not marker.args or marker.kwargs for marker in markers):
        raise pytest.UsageError(f"{item.nodeid}: the group marker takes the names of groups, as in group('data').")
    return [name for marker in markers for name in marker.args]


# The environment has to be in place before a test module imports a library that reads it at import.
def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "group(name, ...): what the test needs; the names are in tests/conftest.py")
    config.addinivalue_line(
        "markers", "golden: compares with the numbers of official code (tests/golden, or GOLDEN_DIR)"
    )
    _refuse_unknown(_required(), f"The environment variable {REQUIRED_GROUPS}")
    patch = pytest.MonkeyPatch()
    config.add_cleanup(patch.undo)
    _isolate_environment(config, patch)
    _block_network(patch)
    # A shell that starts the tests in the background has these ignored, which all processes below would inherit.
    for number in (signal.SIGINT, signal.SIGQUIT):
        if signal.getsignal(number) == signal.SIG_IGN:
            signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)


def _isolate_environment(config: pytest.Config, patch: pytest.MonkeyPatch) -> None:
    caches = tempfile.TemporaryDirectory(prefix="bench-tests-", ignore_cleanup_errors=True)
    config.add_cleanup(caches.cleanup)
    # Each of these would override the folder that HF_HOME names.
    for name in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "HF_DATASETS_CACHE", "HF_ASSETS_CACHE", "HF_XET_CACHE"):
        patch.delenv(name, raising=False)
    for name in ("HF_HOME", "TORCH_HOME", "TORCHINDUCTOR_CACHE_DIR", "MPLCONFIGDIR", "XDG_CACHE_HOME"):
        folder = Path(caches.name) / name.lower()
        folder.mkdir()
        patch.setenv(name, str(folder))
    fixed = {
        "HF_HUB_OFFLINE": "1",
        "HF_DATASETS_OFFLINE": "1",
        "MPLBACKEND": "agg",
        # Commands that are given no --device run on the CPU on every machine; tests of the group "cuda" give one.
        "BENCH_DEVICE": "cpu",
        "OMP_NUM_THREADS": "1",
        "MKL_NUM_THREADS": "1",
        # cuBLAS is deterministic only with a workspace of a fixed size.
        "CUBLAS_WORKSPACE_CONFIG": ":4096:8",
    }
    for name, value in fixed.items():
        patch.setenv(name, value)


def _local(host: object) -> bool:
    if host in (None, "", b"", "localhost", b"localhost"):
        return True
    name = host.decode() if isinstance(host, bytes) else str(host)
    try:
        return ipaddress.ip_address(name.partition("%")[0]).is_loopback
    except ValueError:
        return False


def _refuse_remote(host: object) -> None:
    # Not an OSError: libraries catch those and fall back to whatever they have cached.
    if not _local(host):
        raise RuntimeError(f"A test tried to reach {host!r}; tests run without the network.")


def _block_network(patch: pytest.MonkeyPatch) -> None:
    """Connecting, sending and looking up names raise RuntimeError unless they stay on this computer."""
    connect, connect_ex, sendto = socket.socket.connect, socket.socket.connect_ex, socket.socket.sendto
    lookup = socket.getaddrinfo

    def check(sock: socket.socket, address: Any) -> None:
        if sock.family != socket.AF_UNIX:
            _refuse_remote(address[0])

    def guarded_connect(sock: socket.socket, address: Any) -> None:
        check(sock, address)
        connect(sock, address)

    def guarded_connect_ex(sock: socket.socket, address: Any) -> int:
        check(sock, address)
        return connect_ex(sock, address)

    def guarded_sendto(sock: socket.socket, data: Any, *rest: Any) -> int:
        check(sock, rest[-1])
        return sendto(sock, data, *rest)

    def guarded_lookup(host: Any, *args: Any, **kwargs: Any) -> Any:
        _refuse_remote(host)
        return lookup(host, *args, **kwargs)

    patch.setattr(socket.socket, "connect", guarded_connect)
    patch.setattr(socket.socket, "connect_ex", guarded_connect_ex)
    patch.setattr(socket.socket, "sendto", guarded_sendto)
    patch.setattr(socket, "getaddrinfo", guarded_lookup)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Refuse unknown groups; put the tests on a cluster first: they mostly wait, beside what computes."""
    for item in items:
        _refuse_unknown(_groups(item), item.nodeid)
    items.sort(key=lambda item: "slurm" not in _groups(item))


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    for name in _groups(item):
        if _available(name):
            continue
        reason = f"group {name} needs {GROUPS[name].needs}"
        if name in _required():
            pytest.fail(f"{reason}, and {REQUIRED_GROUPS} requires it", pytrace=False)
        pytest.skip(reason)


@pytest.fixture(autouse=True)
def _strict_torch() -> None:
    """One thread and deterministic algorithms, whatever the test before left behind; imports no torch by itself."""
    if torch := sys.modules.get("torch"):
        torch.set_num_threads(1)
        torch.use_deterministic_algorithms(True)


@pytest.fixture(scope="session")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data root in which every embedded task and corpus is prepared; tests only read it (array caches aside).

    The processes of pytest-xdist share it: reading the docstrings of all packages takes many seconds.
    """
    from bench.data import tasks

    own = tmp_path_factory.getbasetemp()
    root = (own.parent if "PYTEST_XDIST_WORKER" in os.environ else own) / "prepared"
    root.mkdir(exist_ok=True)
    with (root / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        for name in tasks.EMBEDDED:
            prepare.prepare_data(name, root)
    return root


@pytest.fixture
def registries() -> Iterator[None]:
    """Whatever plugins register while a test runs is forgotten after it."""
    from bench.planning import plugins, registry
    from bench.specs import PLUGIN_NAMES, SPECS
    from bench.store import definitions

    tables: list[dict[str, Any]] = [SPECS, plugins.LOADED, plugins.HELPERS]
    tables += [registry.RECIPES, registry.BACKBONES, registry.SETTINGS]
    before = [dict(table) for table in tables]
    fields = dict(registry.SETTINGS["backbone"])
    yield
    helpers = set(plugins.HELPERS)
    for table, entries in zip(tables, before, strict=True):
        for name in table.keys() - entries.keys():
            del table[name]
    registry.SETTINGS["backbone"] = fields
    for name in [name for name in sys.modules if name.partition(".")[0] in {*PLUGIN_NAMES, *helpers}]:
        del sys.modules[name]
    PLUGIN_NAMES.clear()
    for function in vars(definitions).values():  # what was read of their files
        if hasattr(function, "cache_clear"):
            function.cache_clear()
