"""The rules that conftest.py sets for all tests, tested on small suites that use it."""

from __future__ import annotations

import os
import socket
import urllib.request
from pathlib import Path

import pytest
import torch

DATA_TEST = """
import pytest

@pytest.mark.group("data")
def test_reads_real_data():
    pass

def test_reads_nothing():
    pass
"""


@pytest.fixture
def suite(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> pytest.Pytester:
    """A suite with the real conftest.py, on a machine that has neither real data nor requirements."""
    monkeypatch.delenv("BENCH_REAL_DATA", raising=False)
    monkeypatch.delenv("BENCH_REQUIRED_GROUPS", raising=False)
    pytester.makeini("[pytest]\naddopts = --strict-markers\nfilterwarnings = error\n")
    pytester.makeconftest(Path(__file__).with_name("conftest.py").read_text(encoding="utf-8"))
    return pytester


def test_missing_group_is_skipped_with_what_it_needs(suite: pytest.Pytester) -> None:
    suite.makepyfile(DATA_TEST)
    result = suite.runpytest("-rs")
    result.assert_outcomes(passed=1, skipped=1)
    result.stdout.fnmatch_lines(["*BENCH_REAL_DATA*"])


def test_missing_group_fails_when_required(suite: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BENCH_REQUIRED_GROUPS", "slurm, data")
    suite.makepyfile(DATA_TEST)
    result = suite.runpytest()
    result.assert_outcomes(passed=1, errors=1)
    assert result.ret == pytest.ExitCode.TESTS_FAILED


def test_requiring_another_group_leaves_the_skip(suite: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BENCH_REQUIRED_GROUPS", "slurm")
    suite.makepyfile(DATA_TEST)
    suite.runpytest().assert_outcomes(passed=1, skipped=1)


@pytest.mark.parametrize("required", ["", "data"])
def test_available_group_runs(suite: pytest.Pytester, monkeypatch: pytest.MonkeyPatch, required: str) -> None:
    monkeypatch.setenv("BENCH_REAL_DATA", str(suite.mkdir("real")))
    monkeypatch.setenv("BENCH_REQUIRED_GROUPS", required)
    suite.makepyfile(DATA_TEST)
    suite.runpytest().assert_outcomes(passed=2)


def test_data_group_needs_an_existing_folder(suite: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BENCH_REAL_DATA", str(suite.path / "nowhere"))
    suite.makepyfile(DATA_TEST)
    suite.runpytest().assert_outcomes(passed=1, skipped=1)


def test_slurm_group_needs_programs_and_a_cluster(suite: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> None:
    suite.makepyfile(DATA_TEST.replace('"data"', '"slurm"'))
    programs, cluster = suite.mkdir("programs"), suite.mkdir("cluster")
    (cluster / "etc").mkdir()
    monkeypatch.setenv("PATH", str(programs))
    monkeypatch.setenv("BENCH_SLURM_FOLDER", str(cluster))
    (cluster / "etc" / "slurm.conf").touch()
    suite.runpytest().assert_outcomes(passed=1, skipped=1)
    (programs / "sbatch").write_text("#!/bin/sh\n")
    (programs / "sbatch").chmod(0o755)
    suite.runpytest().assert_outcomes(passed=2)
    monkeypatch.delenv("BENCH_SLURM_FOLDER")
    suite.runpytest().assert_outcomes(passed=1, skipped=1)


def test_all_groups_of_a_test_are_needed(suite: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(suite.mkdir("programs")))
    monkeypatch.setenv("BENCH_REAL_DATA", str(suite.path))
    suite.makepyfile(DATA_TEST.replace('"data"', '"data", "slurm"'))
    suite.runpytest().assert_outcomes(passed=1, skipped=1)


@pytest.mark.parametrize("arguments", ['"date"', '"data", "date"', "", 'name="data"'])
def test_marker_with_an_unknown_group_or_none_is_refused(suite: pytest.Pytester, arguments: str) -> None:
    suite.makepyfile(DATA_TEST.replace('"data"', arguments))
    result = suite.runpytest()
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.assert_outcomes()


def test_unknown_required_group_is_refused(suite: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BENCH_REQUIRED_GROUPS", "data,date")
    suite.makepyfile(DATA_TEST)
    assert suite.runpytest().ret == pytest.ExitCode.USAGE_ERROR


@pytest.mark.parametrize("host", ["192.0.2.1", "2001:db8::1", "example.org"])
def test_network_is_out_of_reach(host: str) -> None:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as stream, pytest.raises(RuntimeError):
        stream.connect((host, 80))
    with socket.socket(family, socket.SOCK_STREAM) as stream, pytest.raises(RuntimeError):
        stream.connect_ex((host, 80))
    with socket.socket(family, socket.SOCK_DGRAM) as datagrams, pytest.raises(RuntimeError):
        datagrams.sendto(b"", (host, 80))
    with pytest.raises(RuntimeError):
        urllib.request.urlopen(f"http://[{host}]/" if ":" in host else f"http://{host}/", timeout=1)


def test_this_computer_stays_reachable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # a Unix socket's path may not be longer than about 100 characters
    with socket.create_server(("127.0.0.1", 0)) as server:
        socket.create_connection(("localhost", server.getsockname()[1]), timeout=5).close()
    with socket.socket(socket.AF_UNIX) as server, socket.socket(socket.AF_UNIX) as client:
        server.bind("socket")
        server.listen()
        client.connect("socket")


def test_caches_are_away_from_home() -> None:
    assert os.environ["HF_HUB_OFFLINE"] == os.environ["HF_DATASETS_OFFLINE"] == "1"
    for name in ("HF_HOME", "TORCH_HOME", "XDG_CACHE_HOME"):
        assert not Path(os.environ[name]).is_relative_to(Path.home())


@pytest.mark.parametrize("turn", [1, 2])
def test_torch_is_strict_whatever_the_test_before_left_behind(turn: int) -> None:
    assert torch.get_num_threads() == 1, turn
    assert torch.are_deterministic_algorithms_enabled(), turn
    torch.set_num_threads(2)
    torch.use_deterministic_algorithms(False)
