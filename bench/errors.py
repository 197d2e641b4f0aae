"""The errors a person is meant to read: one message each, no traceback."""

import difflib
from collections.abc import Iterable


class InputError(Exception):
    """What the user gave cannot be used.

    The message says what, where, what is legal and how to fix it; the exit status is 2.
    """


class SpecError(InputError):
    """A field of a spec has an impossible value.

    `field` lets the configuration name the gin line that set it.
    """

    def __init__(self, field: str, message: str) -> None:
        super().__init__(message)
        self.field = field


class RunStopped(Exception):
    """A run cannot go on, and no single stage is to blame.

    What is done stays; the exit status is 1.
    """


class NotPrepared(InputError):
    """The data of a task are not on disk yet."""


class MissingPlugin(InputError):
    """A stage needs a class of a plugin that this process has not loaded."""


class DamagedStore(InputError):
    """A file of the store cannot be trusted.

    The message names the file and how to go on.
    """


def nearest(name: str, legal: Iterable[str]) -> str:
    """End an error message with the closest legal name and all others.

    Close is a name of the same letters, as low is to lwo, one with few letters changed, as finetune is to finetun, or
    one that the name begins or ends, as bert begins bert_base; mnli is not close to mnist. Without a close one there
    are only the legal names.
    """
    names = sorted(set(legal) - {""})
    close = [each for each in names if sorted(each) == sorted(name)]
    close = close or difflib.get_close_matches(name, names, n=1, cutoff=0.7)
    if len(name) > 2 and not close:
        close = [each for each in names if each.startswith(f"{name}_") or each.endswith(f"_{name}")]
    hint = f" Did you mean '{close[0]}'?" if close else ""
    return f"{hint} Legal: {', '.join(names) or '(none)'}."
