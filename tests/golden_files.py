"""The golden numbers: what official code computed on small tensors, one JSON file per method.

The folder is `tests/golden`, or the one that the environment variable GOLDEN_DIR names; folders with other seeds,
shapes and hyper-parameters must pass too, so everything is read from the file. Tests compare in float64.
"""

import json
import os
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

COPY = Path(__file__).parent / "golden"


def folder() -> Path:
    """Where the files are read from."""
    return Path(os.environ.get("GOLDEN_DIR") or COPY)


def load(name: str) -> dict[str, Any]:
    """A whole file; an AssertionError says what is missing where it cannot be compared with."""
    path = folder() / f"{name}.json"
    assert path.is_file(), f"there are no golden numbers at {path}"
    content = json.loads(path.read_text(encoding="utf-8"))
    assert isinstance(content, dict), f"{path} holds no golden file"
    assert content.get("cases"), f"{path} has no cases: nothing would be compared"
    return content


def cases(name: str) -> list[dict[str, Any]]:
    """The cases of a file, at least one, each with `name`, `hyper`, `inputs` and `outputs`."""
    recorded: list[dict[str, Any]] = load(name)["cases"]
    return recorded


def tolerance(name: str, part: str | None = None) -> dict[str, float]:
    """The file's own `rtol` and `atol`; of one part where the file has several (`losses`, `weights`)."""
    limits = load(name)["tolerance"]
    limits = limits if part is None else limits[part]
    return {"rtol": float(limits["rtol"]), "atol": float(limits["atol"])}


def tensor(values: Any) -> Tensor:
    """Nested lists as a float64 tensor."""
    return torch.tensor(values, dtype=torch.float64)


def compare(name: str, case: dict[str, Any], what: str, actual: Tensor | float, expected: Any) -> None:
    """Fail unless `actual` is `expected` within the file's tolerance; the message names the case and the output."""
    value = actual.detach() if isinstance(actual, Tensor) else torch.tensor(actual, dtype=torch.float64)
    assert value.dtype == torch.float64, f"{name}, case {case['name']}: {what} is {value.dtype}, not float64"
    allowed = tolerance(name)
    torch.testing.assert_close(
        value,
        tensor(expected),
        rtol=allowed["rtol"],
        atol=allowed["atol"],
        msg=lambda text: f"{name}, case {case['name']}: {what}\n{text}",
    )
