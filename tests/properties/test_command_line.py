"""Whatever gin files and arguments hold: a plan or one message, and nothing is written."""

import contextlib
import io
import re
import shlex
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bench import cli, grid, status
from tests.properties.conftest import examples

GIN = """
grid.rows = ['finetune', 'tapt', 'three/self_distillation', 'searched/mars']
grid.tasks = ['digits', 'pydocs']
grid.seeds = [0, 1]
steps = 40
finetune.steps = %steps
finetune.batch_size = 8
finetune.lr = 1e-3
finetune.warmup_fraction = 0.1
digits/finetune.augmentation = 'flip'
digits/three/finetune.lr = 2e-3
three/self_distillation.rounds = 3
further_pretrain.steps = 30
MarsProjection.radius = 0.5
execution.precision = 'float32'
slurm.partition = 'gpu'
"""
TOKENS = re.findall(r"[\w.]+|'[^']*'|\s|[^\w\s]", GIN)
"""With the white space, so that together they are the text again."""
HOSTILE = [
    *(
        "",
        "'",
        '"',
        "[",
        "]",
        "(",
        ")",
        "{",
        "}",
        "=",
        "/",
        ".",
        "%",
        "@",
        "#",
        "\\",
        "\n",
        " ",
        "\t",
        "\x00",
        "\ufeff",
    ),
    *("None", "True", "nan", "inf", "-1", "0", "1e400", "-0.0", "9" * 40, "1e-320", "'\u200b'", "'../x'", "'a/b/c'"),
    *("include 'quickstart.gin'", "import os", "@finetune()", "%steps", "lambda: 0", "[[]]", "{'a': 1}", "('x',)"),
    *("grid.rows", "grid.name", "finetune.lr", "digits/", "three/", "steps", "'" + "x" * 400 + "'", "é", "\U0001f600"),
]

edits = st.lists(
    st.tuples(
        st.sampled_from(["drop", "twice", "replace", "insert", "swap"]),
        st.integers(0, len(TOKENS) - 1),
        st.sampled_from([*HOSTILE, *sorted(set(TOKENS))]),
    ),
    min_size=1,
    max_size=3,
)


def edited(changes: Sequence[tuple[str, int, str]]) -> str:
    tokens = list(TOKENS)
    for kind, index, token in changes:
        position = min(index, len(tokens) - 1)
        if kind == "drop" and len(tokens) > 1:
            del tokens[position]
        elif kind == "twice":
            tokens.insert(position, tokens[position])
        elif kind == "replace":
            tokens[position] = token
        elif kind == "insert":
            tokens.insert(position, token)
        elif kind == "swap":
            other = len(token) * 7 % len(tokens)
            tokens[position], tokens[other] = tokens[other], tokens[position]
    return "".join(tokens)


def outcome(main: object, arguments: Sequence[str], folder: Path) -> tuple[int, str]:
    """The exit status of a command and what it said on standard error; it may not write into a folder."""
    assert callable(main)
    before = sorted(folder.rglob("*"))
    said, printed = io.StringIO(), io.TextIOWrapper(io.BytesIO(), encoding="utf-8")
    with contextlib.redirect_stderr(said), contextlib.redirect_stdout(printed):
        try:
            code = cli.reporting_errors(lambda: main(list(arguments)))
        except SystemExit as end:  # argparse
            code = end.code if isinstance(end.code, int) else 1
    assert sorted(folder.rglob("*")) == before
    return code, said.getvalue()


def assert_one_message(code: int, said: str) -> None:
    assert code in (0, 2), said
    if code == 2:
        assert said.count("error: ") == 1, said
        assert "Traceback" not in said
        assert len(said) < 6000, said


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("commands")


def test_the_unchanged_file_is_planned(folder: Path, prepared: Path) -> None:
    path = folder / "unchanged.gin"
    path.write_text(edited([]))
    arguments = ["--gin", str(path), "--data", str(prepared), "--store", str(folder / "runs"), "--plan"]
    assert outcome(grid.main, arguments, folder) == (0, "")


@settings(max_examples=examples(4))
@given(changes=edits)
def test_a_changed_gin_file_is_planned_or_refused(
    changes: list[tuple[str, int, str]], folder: Path, prepared: Path
) -> None:
    path = folder / "changed.gin"
    path.write_bytes(edited(changes).encode("utf-8", "surrogatepass"))
    arguments = ["--gin", str(path), "--data", str(prepared), "--store", str(folder / "runs")]
    assert_one_message(*outcome(grid.main, [*arguments, "--plan"], folder))


words = st.one_of(
    st.sampled_from([*HOSTILE, "finetune.lr = 1", "grid.name = 'a|b'", "*", "finetune/*", "[", "quickstart.gin", "-1"]),
    st.text(max_size=12),
)
options = st.lists(
    st.one_of(
        words,
        st.tuples(
            st.sampled_from(
                [
                    *("--only", "--set", "--again", "--launcher", "--device", "--workers", "--workers-per-device"),
                    *("--retry", "--wait", "--data", "--store", "--results", "--gin", "--watch", "--failed", "--log"),
                ]
            ),
            words,
        ),
    ),
    max_size=4,
)


@settings(max_examples=examples(3))
@given(chosen=options, command=st.sampled_from(["grid", "status"]))
def test_any_arguments_are_carried_out_or_refused(
    chosen: list[str | tuple[str, str]], command: str, folder: Path, prepared: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    flat = [word for each in chosen for word in ([each] if isinstance(each, str) else each) if "\x00" not in word]
    if "--watch" in flat:
        return  # looks until all is done
    path = folder / "good.gin"
    path.write_text(GIN)
    arguments = ["--gin", str(path), "--data", str(prepared), "--store", str(folder / "runs"), *flat]
    before = {path.name for path in folder.iterdir()}
    code, said = outcome(
        {"grid": grid.main, "status": status.main}[command],
        [*arguments, *(["--plan"] if command == "grid" else [])],
        folder,
    )
    assert {path.name for path in folder.iterdir()} == before, shlex.join(flat)
    if command == "status" and code in (1, 3):  # something failed, or is still to do
        return
    assert_one_message(code, said)
