"""FGVC-Aircraft (Maji et al. 2013): photographs of 100 variants of aircraft.

The official split by variant; train and validation together are the 6,667 training images of Lee et al. 2023. The
copyright banner, the last 20 rows of pixels, stays: the papers' code does not crop.
"""

from __future__ import annotations

from collections.abc import Iterator

from bench.data.public.declare import Archive, Content, Counts, Members, Source, Task
from bench.data.public.readers import Listed, class_lines, label_named, listed_images, text_lines


def read(members: Members) -> Content:
    """Read `variants.txt` and `images_variant_{train,val,test}.txt` with lines `<image> <variant>`."""
    class_names = class_lines(members, "variants.txt")

    def listed(split: str) -> Iterator[Listed]:
        for where, line in text_lines(members, f"images_variant_{split}.txt"):
            image, _, variant = line.partition(" ")
            yield Listed(where, f"images/{image}.jpg", label_named(variant, class_names, where))

    splits = {"train": listed("train"), "validation": listed("val"), "test": listed("test")}
    return listed_images(members, class_names, splits)


AIRCRAFT = Source(
    task=Task(
        name="aircraft", modality="image", backbone="vit_mae_base", metric="accuracy", training="train+validation"
    ),
    counts=(Counts({"train": 3334, "validation": 3333, "test": 3333}, classes=100),),
    licence="non-commercial research only",
    files=(
        Archive(
            "https://www.robots.ox.ac.uk/~vgg/data/fgvc-aircraft/archives/fgvc-aircraft-2013b.tar.gz",
            "fgvc-aircraft-2013b.tar.gz",
            "md5:d4acdd33327262359767eeaa97a4f732",
            top="fgvc-aircraft-2013b/data",
            members=r"images/[^/]+\.jpg|variants\.txt|images_variant_(train|val|test)\.txt",
        ),
    ),
    read=read,
)
