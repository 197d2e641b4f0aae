"""The code behind a record: which classes it names, and when it is another one than today's."""

from bench.specs import Selected
from bench.store.code import LOOP, code_of, merged_code, other_code, other_weights, today, why_outdated
from tests.examples import finetuning, pretraining


def test_the_classes_of_the_spec_and_the_loop_are_named_but_not_those_of_parents() -> None:
    assert {LOOP, "Stage", "AdamW", "CrossEntropy", "Schedule", "Data", "MaskedAutoEncoder"} <= code_of(
        finetuning()
    ).keys()
    assert "MaskedAutoEncoding" not in code_of(finetuning())
    assert "MaskedAutoEncoding" in code_of(pretraining())


def test_the_finals_of_a_search_are_named_too() -> None:
    selected = Selected.among((finetuning(),), (finetuning(),), "accuracy")
    assert code_of(selected).keys() == {"Selected", *code_of(finetuning())}


def test_other_code_is_that_which_differs_is_mixed_or_is_gone() -> None:
    code = code_of(finetuning())
    assert other_code(code) == []
    assert other_code({**code, "AdamW": ["0" * 16], "Gone": ["1" * 16]}) == ["AdamW", "Gone"]
    assert other_code(merged_code([code, {LOOP: ["0" * 16]}])) == [LOOP]
    assert other_code({}) == []  # a record from before code was noted


def test_digests_of_today_are_of_the_class_alone() -> None:
    assert today("AdamW") != today("Schedule")
    assert today("nothing of that name") is None


def test_other_weights_are_named_first_the_code() -> None:
    parents = {"pretrain": {"weights": {"sha256": "a"}}, "unknown": {"weights": {"sha256": "c"}}}
    record = {"parents": {"pretrain": "b", "deleted": "d"}, "code": {}}
    assert other_weights(record, parents) == ["pretrain"]
    assert why_outdated(record, parents) == "other weights of pretrain"
    assert why_outdated({**record, "parents": {"pretrain": "a"}}, parents) == ""
    assert why_outdated({**record, "code": {"Gone": ["0"]}}, parents) == "other code of Gone"
