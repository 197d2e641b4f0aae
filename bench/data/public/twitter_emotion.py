"""TweetEval's emotion (Barbieri et al. 2020): tweets of 4 emotions.

Lee et al. 2023 print 4,230 examples and 47 classes, the numbers of their DTD; the 11 emotions of SemEval-2018 can hold
at once, while macro F1 of one label per tweet, as in the paper, fits this version. That is our reading.
"""

from __future__ import annotations

from bench.data.public.declare import Content, InputError, Members, Remote, Rows, Source, Task, by_class, class_table
from bench.data.public.readers import FIX, encoded_text, label_named, text_lines

FOLDER = (
    "https://raw.githubusercontent.com/cardiffnlp/tweeteval/4fbd22cd78421f05b1ecdb4fc5725bc7a7bd8f66/datasets/emotion/"
)
FILES = {"train": "train", "validation": "val", "test": "test"}
"""What the files of a split are called."""


def read(members: Members) -> Content:
    """Read `{train,val,test}_{text,labels}.txt` by line, and `mapping.txt` with number, tab, name."""
    class_names: list[str] = []
    for where, line in text_lines(members, "mapping.txt"):
        number, _, name = line.partition("\t")
        if number != str(len(class_names)) or not name.strip():
            raise InputError(f"{where}: expected {len(class_names)}, a tab and a class name, not {line!r}. {FIX}")
        class_names.append(name.strip())
    numbers = [str(label) for label in range(len(class_names))]
    splits = {}
    for split, file in FILES.items():
        texts, labels = text_lines(members, f"{file}_text.txt"), text_lines(members, f"{file}_labels.txt")
        if len(texts) != len(labels):
            raise InputError(f"{file}_text.txt has {len(texts)} lines, {file}_labels.txt {len(labels)}. {FIX}")
        splits[split] = Rows(
            [encoded_text(where, line) for where, line in texts],
            [label_named(line.strip(), numbers, where) for where, line in labels],
        )
    return Content(modality="text", class_names=tuple(class_names), splits=splits, sources={})


NAMES = (*(f"{file}_{part}.txt" for file in FILES.values() for part in ("text", "labels")), "mapping.txt")

TWITTER_EMOTION = Source(
    task=Task(name="twitter_emotion", modality="text", backbone="roberta_base", metric="macro_f1"),
    counts=(
        by_class(class_table("anger 1400 160 558, joy 708 97 358, optimism 294 28 123, sadness 855 89 382"), *FILES),
    ),
    licence="TweetEval states no restriction of its own; those of SemEval-2018 task 1 and of Twitter may apply",
    files=tuple(Remote(f"{FOLDER}{name}", name) for name in NAMES),
    read=read,
)
