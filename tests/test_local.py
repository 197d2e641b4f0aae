"""The local launcher's small parts."""

import pytest

from bench.launch.local import visible_device


@pytest.mark.parametrize(
    ("given", "device", "visible"),
    [
        (None, "cuda:1", "1"),
        ("", "cuda:0", "0"),
        ("2,3", "cuda:0", "2"),
        ("2,3", "cuda:1", "3"),
        ("GPU-5ab, GPU-77c", "cuda:1", "GPU-77c"),
    ],
)
def test_a_worker_gets_one_of_the_devices_that_the_grid_was_given(
    given: str | None, device: str, visible: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if given is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", given)
    assert visible_device(device) == visible
