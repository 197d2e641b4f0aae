"""Random streams by name."""

from __future__ import annotations

import hashlib
import json


def stream(seed: int, *names: str | int) -> int:
    """Return the seed of the random stream with this name.

    It is 63 bits of a sha256, so streams never overlap by arithmetic.
    """
    text = json.dumps([seed, *names], separators=(",", ":"))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1
