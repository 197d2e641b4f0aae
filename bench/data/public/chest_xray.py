"""Chest X-ray (Kermany et al. 2018): radiographs of children with and without pneumonia.

Downloaded is version 2 of the record at Mendeley, with 5,232 training images. The 5,216 of Lee et al. 2023 are those of
Kaggle's paultimothymooney/chest-xray-pneumonia, which moved 16 into a folder val/ that is left out here: get that one
by hand and prepare `--from` it. The manifest says which edition was read.
"""

from __future__ import annotations

from bench.data.public.declare import Archive, Content, Members, Source, Task, by_class
from bench.data.public.readers import Listed, label_named, listed_images

CLASSES = ("NORMAL", "PNEUMONIA")


def read(members: Members) -> Content:
    """Read the folders `{train,test}/{NORMAL,PNEUMONIA}/`; rows stand in the order of their paths."""
    splits: dict[str, list[Listed]] = {"train": [], "test": []}
    for member in sorted(members):
        split, name, _ = member.split("/")
        splits[split].append(Listed(member, member, label_named(name, CLASSES, member)))
    return listed_images(members, CLASSES, splits)


CHEST_XRAY = Source(
    task=Task(name="chest_xray", modality="image", backbone="vit_mae_base", metric="accuracy"),
    counts=(
        by_class({"NORMAL": (1349, 234), "PNEUMONIA": (3883, 390)}, "train", "test", variant="Mendeley v2"),
        by_class({"NORMAL": (1341, 234), "PNEUMONIA": (3875, 390)}, "train", "test", variant="Kaggle"),
    ),
    licence="CC BY 4.0",
    # Nobody publishes a checksum, and the edition at Kaggle has another name: the counts say whether it is complete.
    files=(
        Archive(
            "https://data.mendeley.com/public-files/datasets/rscbjbr9sj/files/"
            "f12eaf6d-6023-432f-acc9-80c9d7393433/file_downloaded",
            "ChestXRay2017.zip",
            size=1_235_512_464,
            top="chest_xray",
            # Not val/, which only Kaggle's edition has, nor that edition's second copy further down.
            members=r"(train|test)/[^/]+/[^/.][^/]*\.(jpeg|jpg|png)",
        ),
    ),
    read=read,
)
