"""What the file of a public data set declares, and everything that such a file imports beside its `readers`.

Planning imports these files, so none of them imports an array library before something is read.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from bench.data.content import Content, Rows
from bench.data.sources.download import Remote
from bench.data.task_spec import Task
from bench.errors import InputError

__all__ = ["Archive", "Content", "Counts", "InputError", "Members", "Remote", "Rows", "Source", "Task"]

Members = Mapping[str, bytes]
"""What was read from the official files: contents by name, those in an archive named from its top folder on."""


@dataclass(frozen=True)
class Counts:
    """Promise what a complete data set has: examples per split and classes.

    A `balanced` set has equally many of every class; else `per_class` holds a split's numbers in the order of
    `class_names`, and a split that it leaves out may have any. `variant` tells two official editions apart.
    """

    splits: Mapping[str, int]
    classes: int
    balanced: bool = False
    per_class: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    class_names: tuple[str, ...] | None = None
    variant: str = ""

    def promised(self, split: str, names: tuple[str, ...] = ()) -> dict[str, int]:
        """Map classes to their promised number of examples.

        `names` are those of the classes where the source fixes none.
        """
        if self.balanced:
            return dict.fromkeys(names, self.splits.get(split, 0) // self.classes)
        numbers = self.per_class.get(split, ())
        return dict(zip(self.class_names or (), numbers, strict=True)) if numbers else {}


def class_table(text: str) -> dict[str, tuple[int, ...]]:
    """Read a table of some numbers for every class.

    The name of a class may have spaces. `class_table("sweet pea 10 36, rose 10 151")` is `{"sweet pea": (10, 36),
    "rose": (10, 151)}`.
    """
    entries = [entry.split() for entry in text.split(",")]
    return {
        " ".join(word for word in words if not word.isdigit()): tuple(int(word) for word in words if word.isdigit())
        for words in entries
    }


def by_class(table: Mapping[str, tuple[int, ...]], *splits: str, variant: str = "") -> Counts:
    """Promise the number of examples of every class in every split.

    `by_class({"cat": (3, 1), "dog": (2, 2)}, "train", "test")` promises 5 and 3 examples of 2 classes: in the training
    split 3 and 2 of each, in the test split 1 and 2.
    """
    per_class = dict(zip(splits, zip(*table.values(), strict=True), strict=True))
    return Counts(
        splits={split: sum(numbers) for split, numbers in per_class.items()},
        classes=len(table),
        per_class=per_class,
        class_names=tuple(table),
        variant=variant,
    )


@dataclass(frozen=True)
class Archive(Remote):
    """Declare an archive: its top folder and the members to read.

    `members` is a pattern of their names within the folder `top`.
    """

    top: str = ""
    members: str = ""


@dataclass(frozen=True)
class Source:
    """Declare a public data set.

    It has a task, the counts of the accepted editions, the files and their reader. Without `read` it is the task's own
    `source` that is read (GLUE's, from the hub). Downloads are kept in a folder of the task's name, or in `folder`
    where several tasks read the same files.
    """

    task: Task
    counts: tuple[Counts, ...]
    licence: str
    files: tuple[Remote, ...] = ()
    read: Callable[[Members], Content] | None = None
    folder: str = ""
