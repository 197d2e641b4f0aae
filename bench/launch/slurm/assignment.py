"""What one element of a job array is told to run, as the strings that a job can be given."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import NoReturn

from bench.errors import InputError
from bench.specs.cluster import SIGNALS


@dataclass(frozen=True)
class Assignment:
    """What one element of a job array runs, and how.

    `stages` are names of folders of the store. `signal_delay_s` is how long before the end Slurm sends the signal
    SIG`signal`; `give_up_after` is a number of attempts in a row without progress; `gpus` are those of the whole job,
    which the stages share; `graphs` is whether they may record steps; `code` is a snapshot of the packages.
    """

    store: Path
    data_root: Path
    code: Path
    checkpoint_steps: int
    threads: int
    gpus: int
    graphs: bool
    signal: str
    signal_delay_s: int
    give_up_after: int
    stages: tuple[str, ...]

    def arguments(self) -> list[str]:
        """Return it as strings for `supervise`."""
        # Such as: --store /runs --data-root /data ... --give-up-after 5 -- finetune-0123456789abcdef
        named = [field.name for field in fields(self) if field.name != "stages"]
        options = [text for name in named for text in (f"--{name.replace('_', '-')}", str(getattr(self, name)))]
        return [*options, "--", *self.stages]

    @classmethod
    def parse(cls, arguments: Sequence[str]) -> Assignment:
        """Read it from those strings.

        Raises InputError for anything missing, unknown, relative or below its least value.
        """
        parser = _Parser(prog="supervise", allow_abbrev=False)
        for name in ("store", "data-root", "code"):
            parser.add_argument(f"--{name}", type=_folder, required=True)
        for name, least in (("checkpoint-steps", 1), ("threads", 1), ("gpus", 0)):
            parser.add_argument(f"--{name}", type=_at_least(least), required=True)
        for name in ("signal-delay-s", "give-up-after"):
            parser.add_argument(f"--{name}", type=_at_least(1), required=True)
        parser.add_argument("--graphs", type=_yes_or_no, required=True)
        parser.add_argument("--signal", choices=SIGNALS, required=True)
        parser.add_argument("stages", nargs="+", type=_name)
        options = vars(parser.parse_args(arguments))
        return cls(**{**options, "stages": tuple(options["stages"])})


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise InputError(f"{self.prog}: {message}")


def _folder(text: str) -> Path:
    if not Path(text).is_absolute():
        raise argparse.ArgumentTypeError(f"'{text}' is no absolute path; a job's working directory is not the caller's")
    return Path(text)


def _at_least(least: int) -> Callable[[str], int]:
    def number(text: str) -> int:
        if not text.isdecimal() or int(text) < least:
            raise argparse.ArgumentTypeError(f"'{text}' is no whole number from {least} up")
        return int(text)

    return number


def _yes_or_no(text: str) -> bool:
    if text not in ("True", "False"):
        raise argparse.ArgumentTypeError(f"'{text}' is neither True nor False")
    return text == "True"


def _name(text: str) -> str:
    if Path(text).name != text:
        raise argparse.ArgumentTypeError(f"'{text}' is no name of a stage's folder")
    return text
