"""Statistics over seeds; seeds are the unit of every uncertainty here, never examples."""

from __future__ import annotations

import statistics
from collections.abc import Sequence


def cell_text(values: Sequence[float], planned: int, scale: int = 100) -> str:
    """Write a cell's values as `mean ± std (n)`, in percent.

    Another `scale` than 100 multiplies them in its stead.

    The standard deviation is that of a sample (ddof = 1), over seeds. One value has no ±; fewer values than planned
    read `(2/5)`; none at all `– (0/5)`.
    """
    count = str(planned) if len(values) == planned else f"{len(values)}/{planned}"
    if not values:
        return f"– ({count})"
    mean = f"{scale * statistics.fmean(values):.2f}"
    spread = f" ± {scale * statistics.stdev(values):.2f}" if len(values) > 1 else ""
    return f"{mean}{spread} ({count})"
