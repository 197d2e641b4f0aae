"""Workers from a server: whose children they are, what they get, how they end, and what remains of a dead server."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from bench.training import fork_server
from bench.training.fork_server import ForkServer

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="jobs of a cluster run on Linux")

# A worker that tells of itself, then does what its first argument says.
WORKER = """
import json, os, sys, threading, time
from pathlib import Path
facts = {"pid": os.getpid(), "parent": os.getppid(), "session": os.getsid(0), "arguments": sys.argv[1:],
         "environment": dict(os.environ), "heavy": "heavy" in sys.modules, "name": __name__,
         "descriptors": len(os.listdir("/proc/self/fd")), "threads": threading.active_count()}
path = Path(sys.argv[2])
path.with_suffix(".new").write_text(json.dumps(facts))
path.with_suffix(".new").rename(path)
if sys.argv[1] == "sleep":
    time.sleep(60)
if sys.argv[1] == "orphans":
    import subprocess
    ended, goes_on = subprocess.Popen(["true"]), subprocess.Popen(["sleep", "60"])
    os._exit(0)
if sys.argv[1] == "raise":
    raise ValueError("no")
sys.exit(int(sys.argv[1]))
"""


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ForkServer]:
    """A server in a folder where the worker and the imports are the test's own."""
    code = tmp_path / "code" / "bench"
    real = Path(fork_server.__file__).parents[1]
    (code / "training").mkdir(parents=True)
    package = real / "__init__.py"
    (code / "__init__.py").write_text(f"__path__.append({str(real)!r})\nexec(open({str(package)!r}).read())\n")
    (code / "training" / "__init__.py").write_text(f"__path__.append({str(real / 'training')!r})")
    (code / "training" / "worker.py").write_text(WORKER)
    (code / "training" / "imports.py").touch()
    (tmp_path / "code" / "heavy.py").touch()
    monkeypatch.setenv("PYTHONSAFEPATH", "1")
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path / 'code'}{os.pathsep}{real.parent}")
    server = ForkServer()
    yield server
    server.close()


def ready(server: ForkServer, *modules: str) -> None:
    end = time.monotonic() + 60
    while not server.ready(os.environ, modules):
        assert time.monotonic() < end
        time.sleep(0.01)


def facts(path: Path) -> dict[str, object]:
    end = time.monotonic() + 60
    while not path.exists():
        assert time.monotonic() < end
        time.sleep(0.01)
    written: dict[str, object] = json.loads(path.read_text())
    return written


def status(pid: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def test_a_worker_is_this_processs_child_with_an_environment_of_its_own(server: ForkServer, tmp_path: Path) -> None:
    ready(server, "heavy")
    pids = [
        server.fork(["3", str(tmp_path / name)], {**os.environ, "CUDA_VISIBLE_DEVICES": name}) for name in ("a", "b")
    ]
    assert [status(pid) for pid in pids] == [3, 3], "only a child can be waited for"
    for pid, name in zip(pids, ("a", "b"), strict=True):
        worker = facts(tmp_path / name)
        assert (worker["pid"], worker["parent"], worker["session"]) == (pid, os.getpid(), pid)
        assert worker["arguments"] == ["3", str(tmp_path / name)]
        assert worker["environment"] == {**os.environ, "CUDA_VISIBLE_DEVICES": name}
        assert (worker["heavy"], worker["name"], worker["threads"]) == (True, "__main__", 1)
        assert worker["descriptors"] == 4, "standard input, output and error, and the folder that is listed"


def test_the_code_of_a_record_is_that_which_the_server_imported(server: ForkServer, tmp_path: Path) -> None:
    """Whoever edits it while the job runs; what a worker imports itself is read by the worker."""
    training = tmp_path / "code" / "bench" / "training"
    program = """
import json, sys
from pathlib import Path
import bench.training.imports as theirs, bench.training.own as own
from bench.store.code import keep_todays
from bench.store.definitions import digest_of
keep_todays()
digests = [digest_of(f"bench.training.{name}", "number") for name in ("imports", "own")]
Path(sys.argv[1]).write_text(json.dumps([theirs.number(), own.number(), *digests]))
"""
    (training / "worker.py").write_text(program)
    (training / "own.py").write_text("def number(): return 1")
    (training / "imports.py").write_text("def number(): return 1")
    ready(server)
    seen = []
    for number in (1, 2):
        for name in ("own", "imports"):
            # Of another length: a compiled file is told from a newer source by second and size.
            (training / f"{name}.py").write_text(f"def number(): return {number}" + "\n" * number)
        assert status(server.fork([str(tmp_path / str(number))], {**os.environ, "PYTHONDONTWRITEBYTECODE": "1"})) == 0
        seen.append(json.loads((tmp_path / str(number)).read_text()))
    assert [each[:2] for each in seen] == [[1, 1], [1, 2]]
    assert seen[0][2] == seen[0][3] == seen[1][2] != seen[1][3]


def test_how_a_worker_ends_is_seen(server: ForkServer, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    ready(server)
    assert status(server.fork(["raise", str(tmp_path / "a")], os.environ)) == 1
    assert "ValueError: no" in capfd.readouterr().err
    pid = server.fork(["sleep", str(tmp_path / "b")], os.environ)
    facts(tmp_path / "b")
    os.killpg(pid, signal.SIGKILL)
    assert status(pid) == -signal.SIGKILL
    assert status(server.fork(["0", str(tmp_path / "c")], os.environ)) == 0


def test_a_server_that_is_killed_leaves_its_workers_and_is_replaced(server: ForkServer, tmp_path: Path) -> None:
    ready(server)
    pid = server.fork(["sleep", str(tmp_path / "a")], os.environ)
    facts(tmp_path / "a")
    assert server._process is not None
    server._process.kill()
    server._process.wait()
    assert not server.ready(os.environ, [])
    ready(server)
    assert status(server.fork(["0", str(tmp_path / "b")], os.environ)) == 0
    assert os.waitpid(pid, os.WNOHANG) == (0, 0), "it still runs"
    os.kill(pid, signal.SIGKILL)
    status(pid)


def test_a_server_that_cannot_import_is_an_error(server: ForkServer) -> None:
    with pytest.raises(OSError, match="exit status 1, before it could import"):
        ready(server, "no_such_module")


def test_a_server_whose_imports_never_end_is_an_error(
    server: ForkServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "code" / "endless.py").write_text("import time\ntime.sleep(600)\n")
    assert not server.ready(os.environ, ["endless"])
    monkeypatch.setattr(fork_server, "IMPORT_SECONDS", -1)
    with pytest.raises(OSError, match="could not be imported"):
        server.ready(os.environ, ["endless"])
    monkeypatch.setattr(fork_server, "IMPORT_SECONDS", 60)
    ready(server)  # the next one is started anew


def zombies() -> set[int]:
    """The children of this process that have ended and were not waited for."""
    pids = set()
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):  # gone meanwhile
            state, parent = path.read_text().rpartition(")")[2].split()[:2]
            if (state, int(parent)) == ("Z", os.getpid()):
                pids.add(int(path.parent.name))
    return pids


def test_what_workers_leave_is_buried_and_no_status_of_theirs_is_lost(server: ForkServer, tmp_path: Path) -> None:
    before = zombies()
    ready(server)
    pids = [server.fork(["orphans", str(tmp_path / name)], os.environ) for name in ("a", "b")]
    for pid in pids:
        os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
        os.killpg(pid, signal.SIGKILL)
    end = time.monotonic() + 60
    while len(zombies() - before) < 6:  # of each the worker, what had ended and what was killed
        assert time.monotonic() < end
        time.sleep(0.01)
    server.reap([*pids, None])
    assert {*pids} <= zombies()
    for number, pid in enumerate(pids, start=1):
        assert status(pid) == 0
        server.reap(pids[number:])
    assert zombies() <= before


def test_an_environment_may_be_longer_than_what_a_socket_holds(server: ForkServer, tmp_path: Path) -> None:
    environment = {**os.environ, **{f"MODULE_{number}": "x" * 100_000 for number in range(10)}}
    ready(server)
    assert server._process is not None
    os.kill(server._process.pid, signal.SIGSTOP)  # so that it reads nothing while it is told
    threading.Timer(0.2, os.kill, (server._process.pid, signal.SIGCONT)).start()
    assert status(server.fork(["0", str(tmp_path / "a")], environment)) == 0
    assert facts(tmp_path / "a")["environment"] == environment


def test_a_server_that_does_not_answer_is_replaced(
    server: ForkServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ready(server)
    assert server._process is not None
    os.kill(server._process.pid, signal.SIGSTOP)
    monkeypatch.setattr(fork_server, "ANSWER_SECONDS", 0.2)
    with pytest.raises(OSError, match="does not answer"):
        server.fork(["0", str(tmp_path / "a")], os.environ)
    monkeypatch.setattr(fork_server, "ANSWER_SECONDS", 60.0)
    ready(server)
    assert status(server.fork(["0", str(tmp_path / "b")], os.environ)) == 0
    assert not (tmp_path / "a").exists()


# The server's first fork goes well, the one in the process that was forked does not.
SECOND_FORK_FAILS = """
import os
forks = [os.fork, lambda: 1 / 0]
os.fork = lambda: forks.pop(0)()
"""


def test_a_worker_that_cannot_be_forked_is_told_at_once(
    server: ForkServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fork_server, "ANSWER_SECONDS", 60.0)
    (tmp_path / "code" / "bench" / "training" / "imports.py").write_text(SECOND_FORK_FAILS)
    ready(server)
    began = time.monotonic()
    with pytest.raises(OSError, match="does not answer"):
        server.fork(["0", str(tmp_path / "a")], os.environ)
    assert time.monotonic() - began < fork_server.ANSWER_SECONDS / 2


def test_what_stages_need_is_imported_without_a_thread_or_a_gpu() -> None:
    """A fork of a process with threads, or one that has looked for a GPU, breaks what follows."""
    program = (
        "import bench.training.imports, bench.models.image, bench.models.text, os, torch;"
        "assert len(os.listdir('/proc/self/task')) == 1, os.listdir('/proc/self/task');"
        "assert not torch.cuda.is_initialized()"
    )
    environment = {**os.environ, **fork_server.NO_THREAD, "OPENBLAS_NUM_THREADS": "1"}
    run = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
