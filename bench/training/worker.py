"""Run one stage from its spec file: what every launcher starts.

`python -m bench.training.worker FOLDER…` runs stages by hand. With `--serve N` a launcher hands over one folder after
another, as a JSON string per line of the socket with the descriptor N, and is answered there with the events of
`bench.training.protocol`, so that it pays for importing torch once per process. Nobody else has that descriptor: what
methods and libraries print or read, also while they are imported, cannot disturb the two.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import errno
import gc
import json
import os
import socket
import sys
import threading
import traceback
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import baselines
from bench.errors import InputError
from bench.planning.plugins import Plugin, load_all
from bench.specs import Stage
from bench.store.code import keep_todays
from bench.store.ownership import JOB_VARIABLE, Attempt, beating
from bench.store.provenance import cores
from bench.store.states import StageState
from bench.store.store import Store
from bench.training.protocol import EXIT_STATUS, Outcome, Progress, Settings
from bench.training.signals import StopFlag, stop_children_as_usual

DISK = frozenset((errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO, errno.ESTALE))
"""What says that a disk is full, read-only or gone: no fault of the stage."""


def run(folder: Path, settings: Settings, stop: Callable[[], bool], progress: Progress) -> Outcome:
    """Claim the stage of a folder, train, evaluate and publish it.

    Training goes on from its last checkpoint. A failure is recorded as an attempt, never as a result, and never raised.
    """
    store = Store(folder.parent)
    try:
        # The record is looked at before the claim, as most stages of a grid that is run again are done, and once more
        # after it (`_run_claimed`): another process may have published in between.
        stage = store.load(folder)
        if store.record(stage) is not None:
            return Outcome(StageState.DONE)
        if stop():
            return Outcome(StageState.INTERRUPTED, "before it began")
        attempt = store.claim(stage)
        if attempt is None:
            return Outcome(StageState.BUSY)
        attempt.facts["warnings"] += _missing_cores(settings)
        outcome = _run_noted(stage, store, attempt, settings, stop, progress)
    except (InputError, OSError) as error:  # a damaged or unreachable store
        return Outcome(StageState.REFUSED, str(error))
    if settings.device != "cpu" and outcome.state != StageState.REFUSED:
        from bench.device import release_memory, resolve

        # Only now does no error hold the stage's tensors any more. A device that fails even here can run nothing
        # else, and ends the process.
        release_memory(resolve(settings.device))
    return outcome


def _run_noted(
    stage: Stage, store: Store, attempt: Attempt, settings: Settings, stop: Callable[[], bool], progress: Progress
) -> Outcome:
    """Run a claimed stage and note in the ledger how the attempt ended.

    That is noted however it ended: an attempt without an end counts as under way while this process lives.
    """
    folder, step = store.folder(stage), None
    outcome = Outcome(StageState.INTERRUPTED, "by an error of the worker itself")
    try:
        with _logged(folder), beating(attempt.path):
            outcome, step = _run_claimed(stage, store, attempt, settings, stop, progress)
    except OSError as error:
        outcome = Outcome(StageState.REFUSED, f"its log cannot be written: {error}")
    finally:
        state = StageState.INTERRUPTED if outcome.state == StageState.CROWDED else outcome.state
        store.finish(attempt, state, outcome.reason, step)
    return outcome


def _missing_cores(settings: Settings) -> list[str]:
    """Warn where the threads must share cores. The result is the same, but later."""
    if cores() >= settings.threads:
        return []
    return [
        f"{settings.threads} threads share {cores()} core(s): the job or its step was given fewer than it asked for."
    ]


def _run_claimed(
    stage: Stage, store: Store, attempt: Attempt, settings: Settings, stop: Callable[[], bool], progress: Progress
) -> tuple[Outcome, int | None]:
    """Run a claimed stage; return its outcome and the last step done. The step is None where the stage failed."""
    from bench.device import is_out_of_memory
    from bench.training.fit import fit
    from bench.training.loop import Interrupted

    # A failure is the stage's own fault, and is not tried again unasked. So whatever is not its fault is sorted out
    # first: a stop, damage elsewhere, a disk that is full, memory that others took.
    state, reason, step = StageState.DONE, "", None
    try:
        if store.record(stage) is None:  # published between the look and the claim
            fit(stage, store, attempt, settings, stop, progress)
        step = stage.total_steps
    except Interrupted as interruption:
        state, reason, step = StageState.INTERRUPTED, str(interruption), interruption.step
    except InputError as error:  # damage outside this stage: nothing to hold against it
        state, reason = StageState.REFUSED, str(error)
    except (Exception, SystemExit) as error:  # a method's code may call sys.exit
        traceback.print_exc()
        lines = _writable(str(error)).strip().splitlines()
        state, reason = StageState.FAILED, f"{type(error).__name__}: {lines[0] if lines else 'no message'}"
        if isinstance(error, OSError) and error.errno in DISK:  # once there is room, the same command goes on
            state = StageState.REFUSED
        elif is_out_of_memory(error):
            state, reason = _out_of_memory(settings)
    return Outcome(state, reason, attempt.facts["from_step"] or 0, tuple(attempt.facts["warnings"])), step


def _writable(text: str) -> str:
    r"""Escape half characters such as "\ud800", which no file could hold."""
    return text.encode(errors="backslashreplace").decode()


def _out_of_memory(settings: Settings) -> tuple[StageState, str]:
    """Return the state and the reason of a stage out of memory. The device that it ran on had too little."""
    from bench.device import describe, resolve

    what = f"out of memory on {describe(resolve(settings.device))}"
    if settings.shared:
        fewer = "--workers-per-device, --workers or slurm.runs_per_job"
        return StageState.CROWDED, f"{what}, which other workers share; a lower {fewer} leaves more for each"
    lower = "lower batch_size or raise micro_batches of this stage, or set execution.precision = 'bfloat16'"
    return StageState.FAILED, f"{what}, with no other worker on it: {lower}. Its checkpoints stay."


# --------------------------------------------------------------------------------------- around one stage


@contextlib.contextmanager
def _logged(folder: Path) -> Iterator[None]:
    """Send everything printed meanwhile, by C libraries too, to the stage's log."""
    # C libraries write to the descriptors 1 and 2, Python to sys.stdout and sys.stderr: both are turned to the log.
    # What was written before is flushed first, and the descriptors are put back at the end.
    sys.stdout.flush()
    sys.stderr.flush()
    with (folder / "log.txt").open("a", buffering=1, encoding="utf-8", errors="backslashreplace") as log:
        saved = os.dup(1), os.dup(2)
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
        try:
            with contextlib.redirect_stdout(log), contextlib.redirect_stderr(log):
                yield
        finally:
            for target, descriptor in enumerate(saved, start=1):
                os.dup2(descriptor, target)
                os.close(descriptor)


# ------------------------------------------------------------------------------------------- the process


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=stop_children_as_usual)


def _serve(settings: Settings, stop: StopFlag, descriptor: int) -> int:
    """Run the folders that a launcher sends through a socket.

    The end of what it sends asks for a stop. A launcher that is killed closes the socket too, so no worker outlives it
    for longer than a step. The exit status is that of an interruption: a folder that was sent last is left undone.
    """
    line = socket.socket(fileno=descriptor)
    line.set_inheritable(False)
    folders: list[Path] = []
    arrived = threading.Semaphore(0)

    def listen() -> None:
        with contextlib.suppress(OSError), line.makefile(encoding="utf-8") as sent:
            for text in sent:
                folders.append(Path(json.loads(text)))
                arrived.release()
        stop.set()
        arrived.release()

    def answer(**facts: Any) -> bool:
        try:
            line.sendall(f"{json.dumps(facts)}\n".encode())
        except OSError:  # the launcher is gone, and the listener asks for a stop; or the stage closed the line
            return False
        return True

    # Importing makes many objects and little garbage: looking for it takes a tenth of the time to the first step.
    gc.disable()

    def progress(step: int, steps: int, loss: float) -> None:
        gc.enable()
        answer(event="progress", step=step, steps=steps, loss=loss)

    threading.Thread(target=listen, name="launcher", daemon=True).start()
    answer(event="ready")
    while True:
        arrived.acquire()
        if not folders or stop():
            return EXIT_STATUS[StageState.INTERRUPTED]
        outcome = run(folders.pop(0), settings, stop, progress)
        if not answer(event="end", **dataclasses.asdict(outcome)):
            return EXIT_STATUS[outcome.state]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run stages by folder. The exit status is that of EXIT_STATUS, 0 if all are done."""
    parser = argparse.ArgumentParser(prog="python -m bench.training.worker", description=__doc__)
    parser.add_argument("folders", nargs="*", type=Path, help="stage folders of a store")
    parser.add_argument("--serve", type=int, metavar="N", help="take folders from the socket with this descriptor")
    parser.add_argument("--data", type=Path, default=Path("data"))
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--checkpoint-steps", type=int, default=500)
    parser.add_argument("--graphs", action=argparse.BooleanOptionalAction, default=True, help="record steps on a GPU")
    parser.add_argument("--shared", action="store_true", help="other workers use the device at the same time")
    parser.add_argument(
        "--plugin", nargs=3, action="append", default=[], metavar=("NAME", "MODULE", "PATH"), help="what stages need"
    )
    args = parser.parse_args(arguments)
    baselines.register()  # the spec types that a stage may hold
    plugins = tuple(Plugin(name, module, Path(path)) for name, module, path in args.plugin)
    load_all(plugins)
    keep_todays()
    settings = Settings(args.data, args.device, args.threads, args.checkpoint_steps, args.graphs, args.shared, plugins)
    stop = StopFlag()
    # In a cluster's job both Slurm and the supervisor may ask for the same stop, and the supervisor kills who hangs.
    second_ends = JOB_VARIABLE not in os.environ
    with stop.on_signals(second_ends):
        if args.serve is not None:
            return _serve(settings, stop, args.serve)
        return _run_all(args.folders, settings, stop)


def _run_all(folders: Sequence[Path], settings: Settings, stop: StopFlag) -> int:
    states = []
    with os.fdopen(os.dup(1), "w", buffering=1, encoding="utf-8") as terminal:  # stdout goes to the log meanwhile
        for folder in folders:
            outcome = run(folder, settings, stop, lambda step, steps, loss: print(f"{step}/{steps}", file=terminal))
            print(f"{folder.name}: {outcome.state} {outcome.reason}".rstrip(), file=terminal)
            states.append(outcome.state)
    return next((status for state, status in EXIT_STATUS.items() if state in states), 0)


if __name__ == "__main__":
    sys.exit(main())
