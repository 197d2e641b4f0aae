"""Names that are suggested instead of a mistyped one."""

import pytest

from bench.errors import nearest

NAMES = ["bert_base", "digits", "finetune", "low", "main", "mnli", "rte", "self_distillation"]


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("finetun", "finetune"),
        ("lwo", "low"),
        ("mian", "main"),
        ("bert", "bert_base"),
        ("distillation", "self_distillation"),
        ("mnist", None),
        ("foo", None),
        ("imagenet", None),
    ],
)
def test_only_plausible_names_are_suggested(name: str, meant: str | None) -> None:
    hint = nearest(name, NAMES)
    assert hint.startswith(f" Did you mean '{meant}'? Legal: " if meant else " Legal: ")
