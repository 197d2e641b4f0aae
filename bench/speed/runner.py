"""One side of a comparison in a process of its own: `python -m bench.speed.runner WHAT WORK`.

Reads how many steps to take, a number per line of standard input, and answers each with a line of JSON; so of several
processes only one computes at a time, none shares its memory, threads or compiler caches with another, and one that
fails takes none along. WHAT is who trains, or `flops`, `peak` or `facts`, which answer once.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

from bench.speed import work as works
from bench.speed.work import Work


def main(arguments: Sequence[str]) -> int:
    """Do one side's work until standard input ends or says 0."""
    what, work = arguments[0], Work.from_json(arguments[1])
    answers = os.fdopen(os.dup(1), "w", buffering=1, encoding="utf-8")
    os.dup2(2, 1)  # a library that prints must not talk to the parent

    def answer(**facts: Any) -> None:
        answers.write(json.dumps(facts) + "\n")

    began = 0.0

    def turns(seconds: float | None) -> int:
        nonlocal began
        answer(seconds=seconds, cpu=time.process_time() - began)
        steps = int(sys.stdin.readline().strip() or 0)
        began = time.process_time()
        return steps

    try:
        _do(what, work, turns, answer)
    except Exception as error:  # whatever a library raises is this side's result
        lines = str(error).strip().splitlines()
        answer(error=f"{type(error).__name__}: {lines[0] if lines else 'no message'}")
        return 1
    return 0


def _do(what: str, work: Work, turns: Callable[[float | None], int], answer: Callable[..., None]) -> None:
    import torch

    from bench import device as devices
    from bench.speed.pace import Pace

    torch.set_num_threads(work.threads)
    torch.manual_seed(0)
    pace = Pace(devices.resolve(work.device), turns)
    if what in (works.OURS, works.COMPILED):
        from bench.speed import ours

        ours.run(work, pace, compile=what == works.COMPILED)
    elif what in (works.TRAINER, works.TRAINER_COMPILED):
        from bench.speed import trainer

        trainer.run(work, pace, compile=what == works.TRAINER_COMPILED)
    elif what == "flops":
        from bench.speed import ours

        answer(flops=ours.flops_per_step(work))
    elif what == "peak":
        from bench.speed import peak

        answer()
        for _ in sys.stdin:
            answer(flops_per_second=peak.flops_per_second(work))
    elif what == "facts":
        from bench.speed import peak
        from bench.store.provenance import provenance

        answer(bfloat16=peak.has_bfloat16(devices.resolve(work.device)), **provenance(work.device, work.threads))
    else:
        from bench.speed import references

        references.LOOPS[what](work, pace)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
