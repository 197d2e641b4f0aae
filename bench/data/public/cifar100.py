"""CIFAR-100 (Krizhevsky 2009): small photographs of 100 classes.

The official split with the 100 fine labels, from the binary archive, so that no pickle is loaded.
"""

from __future__ import annotations

from bench.data.public.declare import Archive, Content, Counts, InputError, Members, Rows, Source, Task
from bench.data.public.readers import FIX, class_lines, member_content

SIDE = 32
PLANE = SIDE**2
RECORD = 2 + 3 * PLANE
"""Bytes of one record: a coarse label, a fine label, then a red, a green and a blue plane."""


def read(members: Members) -> Content:
    """Read the records of `{train,test}.bin` and the class names.

    The names stand in `fine_label_names.txt`; images become PPM.
    """
    import numpy as np

    class_names = class_lines(members, "fine_label_names.txt")
    header = f"P6\n{SIDE} {SIDE}\n255\n".encode()
    splits = {}
    for split in ("train", "test"):
        file = f"{split}.bin"
        content = member_content(members, file)
        if not content or len(content) % RECORD:
            raise InputError(f"{file}: {len(content)} bytes are not a whole number of records of {RECORD} bytes. {FIX}")
        records = np.frombuffer(content, dtype=np.uint8).reshape(-1, RECORD)
        labels = records[:, 1].tolist()
        for i, label in enumerate(labels):
            if label >= len(class_names):
                raise InputError(
                    f"{file} record {i}: label {label} is out of range; legal: 0..{len(class_names) - 1}. {FIX}"
                )
        # A PPM has the three channels of a pixel side by side: RRR GGG BBB becomes RGB RGB RGB.
        pixels = records[:, 2:].reshape(-1, 3, PLANE).transpose(0, 2, 1)
        splits[split] = Rows([header + image.tobytes() for image in pixels], labels)
    return Content(modality="image", class_names=tuple(class_names), splits=splits, sources={})


CIFAR100 = Source(
    task=Task(name="cifar100", modality="image", backbone="vit_mae_base", metric="accuracy"),
    counts=(Counts({"train": 50_000, "test": 10_000}, classes=100, balanced=True),),
    licence="none stated; its authors ask to be cited",
    files=(
        Archive(
            "https://www.cs.toronto.edu/~kriz/cifar-100-binary.tar.gz",
            "cifar-100-binary.tar.gz",
            "sha256:58a81ae192c23a4be8b1804d68e518ed807d710a4eb253b1f2a199162a40d8ec",
            168_513_733,
            top="cifar-100-binary",
            members=r"(train|test)\.bin|fine_label_names\.txt",
        ),
    ),
    read=read,
)
