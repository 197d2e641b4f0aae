"""CUB-200-2011 (Wah et al. 2011): photographs of 200 species of birds.

The official split, whole images: the bounding boxes are not used. Lee et al. 2023 print 5,594 training images; the
official 5,994 are used, the difference is taken for a misprint.
"""

from __future__ import annotations

from bench.data.public.declare import Archive, Content, Counts, InputError, Members, Source, Task
from bench.data.public.readers import FIX, Listed, label_named, listed_images, text_lines


def read(members: Members) -> Content:
    """Join `images.txt`, `image_class_labels.txt` and `train_test_split.txt` on the id of the image.

    `3 002.Auklet/c.jpg`, `3 2` and `3 1` with `2 002.Auklet` of `classes.txt` make one training image of class 1.
    """
    classes = _table(members, "classes.txt")
    identities = list(classes)
    image_class = _table(members, "image_class_labels.txt")
    is_training = _table(members, "train_test_split.txt")
    splits: dict[str, list[Listed]] = {"train": [], "test": []}
    for identity, (where, path) in _table(members, "images.txt").items():
        for table, file in ((image_class, "image_class_labels.txt"), (is_training, "train_test_split.txt")):
            if identity not in table:
                raise InputError(f"{where}: image {identity} is not in {file}. {FIX}")
        where_class, class_identity = image_class[identity]
        where_split, flag = is_training[identity]
        if flag not in ("0", "1"):
            raise InputError(f"{where_split}: {flag!r} is neither 1 (training) nor 0 (test). {FIX}")
        label = label_named(class_identity, identities, where_class)
        splits["train" if flag == "1" else "test"].append(Listed(where, f"images/{path}", label))
    return listed_images(members, [name for _, name in classes.values()], splits)


def _table(members: Members, name: str) -> dict[str, tuple[str, str]]:
    """Read lines `<id> <value>`; map each id to its location and value."""
    table: dict[str, tuple[str, str]] = {}
    for where, line in text_lines(members, name):
        identity, _, value = line.strip().partition(" ")
        if not identity or not value:
            raise InputError(f"{where}: {line!r} is not an id, a space and a value. {FIX}")
        if identity in table:
            raise InputError(f"{where}: the id {identity} occurs twice, first in {table[identity][0]}. {FIX}")
        table[identity] = (where, value)
    return table


CUB = Source(
    task=Task(name="cub", modality="image", backbone="vit_mae_base", metric="accuracy"),
    counts=(Counts({"train": 5994, "test": 5794}, classes=200),),
    licence="non-commercial research and education only",
    files=(
        Archive(
            "https://data.caltech.edu/records/65de6-vp158/files/CUB_200_2011.tgz",
            "CUB_200_2011.tgz",
            "sha256:0c685df5597a8b24909f6a7c9db6d11e008733779a671760afef78feb49bf081",
            1_150_585_339,
            top="CUB_200_2011",
            members=r"images/[^/]+/[^/]+\.jpg|(images|image_class_labels|train_test_split|classes)\.txt",
        ),
    ),
    read=read,
)
