"""Describable Textures (Cimpoi et al. 2014): photographs of 47 kinds of textures, as two tasks.

`dtd` is official split 1 of 10; Lee et al. 2023 print 4,230 training images, more than the 3,760 of its train and
validation. `dtd_75_25` has that size: all 5,640 images in a split of our own, 90 of each class to train and 30 to test.
Which images the paper's split held is not known, and numbers on the two tasks cannot be compared.
"""

from __future__ import annotations

import dataclasses
import re

from bench.data.public.declare import Archive, Content, Counts, Members, Source, Task
from bench.data.public.readers import Listed, label_named, listed_images, text_lines
from bench.specs import stream


def read(members: Members) -> Content:
    """Read official split 1: `labels/{train,val,test}1.txt` with lines `<class>/<file>`."""
    train, validation, test = _lists(members)
    return listed_images(members, _class_names(members), {"train": train, "validation": validation, "test": test})


def read_75_25(members: Members) -> Content:
    """Share all images of split 1 out anew.

    Rows stand in the order of their paths. Of each class the quarter of smallest `stream(0, "dtd_75_25", file)` is the
    test split; there is no validation split.
    """
    class_names = _class_names(members)
    images = sorted((image for listed in _lists(members) for image in listed), key=lambda image: image.member)
    tested: set[str] = set()
    for label in range(len(class_names)):
        of_class = [image.member for image in images if image.label == label]
        by_hash = sorted(of_class, key=lambda member: stream(0, "dtd_75_25", member.rpartition("/")[2]))
        tested.update(by_hash[: len(of_class) // 4])
    # An image that is listed twice goes to one split twice, where it is refused.
    train = [image for image in images if image.member not in tested]
    test = [image for image in images if image.member in tested]
    return listed_images(members, class_names, {"train": train, "test": test})


def _lists(members: Members) -> list[list[Listed]]:
    """Read the lists of the training, validation and test images."""
    class_names = _class_names(members)
    return [
        [
            Listed(where, f"images/{line}", label_named(line.partition("/")[0], class_names, where))
            for where, line in text_lines(members, f"labels/{split}1.txt")
        ]
        for split in ("train", "val", "test")
    ]


def _class_names(members: Members) -> list[str]:
    return sorted({member.split("/")[1] for member in members if re.fullmatch(r"images/[^/]+/[^/]+", member)})


DTD = Source(
    task=Task(name="dtd", modality="image", backbone="vit_mae_base", metric="accuracy", training="train+validation"),
    counts=(Counts({"train": 1880, "validation": 1880, "test": 1880}, classes=47, balanced=True),),
    licence="for research purposes",
    files=(
        Archive(
            "https://www.robots.ox.ac.uk/~vgg/data/dtd/download/dtd-r1.0.1.tar.gz",
            "dtd-r1.0.1.tar.gz",
            "sha256:e42855a52a4950a3b59612834602aa253914755c95b0cff9ead6d07395f8e205",
            625_239_812,
            top="dtd",
            members=r"images/[^/]+/[^/]+\.jpg|labels/(train|val|test)1\.txt",
        ),
    ),
    read=read,
)

DTD_75_25 = dataclasses.replace(
    DTD,
    task=Task(name="dtd_75_25", modality="image", backbone="vit_mae_base", metric="accuracy"),
    counts=(Counts({"train": 4230, "test": 1410}, classes=47, balanced=True),),
    read=read_75_25,
    folder="dtd",
)
