"""SciERC, ACL-ARC and ChemProt: relations and citation intents in scientific texts.

The splits of Gururangan et al. 2020, as SciBERT's repository publishes them; its dev file is the validation split.
"""

from __future__ import annotations

import json

from bench.data.public.declare import Content, InputError, Members, Remote, Rows, Source, Task, by_class, class_table
from bench.data.public.readers import FIX, encoded_text, text_lines

FOLDER = "https://raw.githubusercontent.com/allenai/scibert/06793f77d7278898159ed50da30d173cdc8fdea9/data/text_classification/"


def read(members: Members) -> Content:
    """Read `{train,dev,test}.txt` with a JSON object per line.

    It has the fields `text` and `label`; classes are sorted by name.
    """
    splits = {"train": "train.txt", "validation": "dev.txt", "test": "test.txt"}
    rows = {split: [_example(*line) for line in text_lines(members, file)] for split, file in splits.items()}
    class_names = sorted({label for split in rows.values() for _, label in split})
    return Content(
        modality="text",
        class_names=tuple(class_names),
        splits={
            split: Rows([text for text, _ in examples], [class_names.index(label) for _, label in examples])
            for split, examples in rows.items()
        },
        sources={},
    )


def _example(where: str, line: str) -> tuple[bytes, str]:
    try:
        example = json.loads(line)
    except ValueError as error:
        raise InputError(f"{where}: not JSON ({error}). {FIX}") from error
    text, label = (example.get("text"), example.get("label")) if isinstance(example, dict) else (None, None)
    if not isinstance(text, str) or not isinstance(label, str) or not label:
        raise InputError(f"{where}: not an object with the strings 'text' and 'label'. {FIX}")
    return encoded_text(where, text), label


def _source(task: Task, folder: str, train: str, dev: str, test: str, table: str) -> Source:
    """Declare one of the three data sets.

    `train`, `dev` and `test` are the git hashes of its files; `table` has the counts of each class in its splits.
    """
    files = {"train.txt": train, "dev.txt": dev, "test.txt": test}
    return Source(
        task=task,
        counts=(by_class(class_table(table), "train", "validation", "test"),),
        licence="SciBERT's repository: Apache-2.0; the corpus states none there",
        files=tuple(Remote(f"{FOLDER}{folder}/{file}", file, f"git:{blob}") for file, blob in files.items()),
        read=read,
    )


SCIERC = _source(
    Task(name="scierc", modality="text", backbone="roberta_base", metric="macro_f1"),
    "sciie-relation-extraction",
    "b21cf138cf6bf5bd75fe1dad0131f3c87413ac4b",
    "af252d6a3ce51312c284e8db230bee9a04aeced5",
    "66ea6f9b64d616b5fbcd5235ac80c689ddaf203b",
    "COMPARE 166 29 38, CONJUNCTION 400 59 123, EVALUATE-FOR 313 50 91, FEATURE-OF 173 32 59, HYPONYM-OF 298 44 67, "
    "PART-OF 179 27 63, USED-FOR 1690 214 533",
)

ACL_ARC = _source(
    Task(name="acl_arc", modality="text", backbone="roberta_base", metric="macro_f1"),
    "citation_intent",
    "8512714acd060233236eadc65e53f4c1518e5c57",
    "466f09d3f89066d2013ce6257c4771f75a35a632",
    "43091b4281e5282149ef329c634c67e82a51fe11",
    "Background 867 59 71, CompareOrContrast 305 21 25, Extends 63 4 5, Future 60 4 5, Motivation 76 5 7, "
    "Uses 317 21 26",
)

CHEMPROT = _source(
    Task(name="chemprot", modality="text", backbone="roberta_base", metric="micro_f1"),
    "chemprot",
    "b5a328536db108302a7603161621c7298a3a5e31",
    "c69fedd59e1f4702747f92f270a989dc1822fb2e",
    "a6cec050b73f3de15b4713d7e50d3335b8f57b6a",
    # Two classes have no example in one of the splits; that is so at the source, too.
    "ACTIVATOR 323 257 292, AGONIST 156 111 182, AGONIST-ACTIVATOR 10 5 4, AGONIST-INHIBITOR 4 0 12, "
    "ANTAGONIST 235 199 293, DOWNREGULATOR 131 21 72, INDIRECT-DOWNREGULATOR 487 270 340, "
    "INDIRECT-UPREGULATOR 387 278 334, INHIBITOR 1642 812 1255, PRODUCT-OF 233 130 191, SUBSTRATE 480 322 453, "
    "SUBSTRATE_PRODUCT-OF 14 5 0, UPREGULATOR 67 17 41",
)
