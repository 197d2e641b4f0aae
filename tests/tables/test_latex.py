"""Tables for LaTeX: what pdflatex would take for commands stands there as text."""

import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from bench.tables.command import main
from bench.tables.latex import LAST_LATIN, in_latex
from tests.report import sample

COMMITTED = sorted((Path(__file__).parents[2] / "results").glob("*.tex"))
HOSTILE = (
    *("a_b", "R&D", "100%", "$x$", "#1", "~", "^", "\\", r"\end{tabular}", "{", "}", "}{", "%\\", r"\\[1em]", "<a>|b|"),
    *("[x]", "*", "méthode_naïve", "Łódź", "метод", "方法", "ελ", "😀", '"quoted"', "`x'", "a--b", "±1", "× 2", "−3"),
)

DOCUMENT = r"""\documentclass{{article}}
\usepackage[T1]{{fontenc}}
\usepackage{{booktabs}}
\begin{{document}}
\tiny\noindent
{table}
\end{{document}}
"""

Compile = Callable[[str], None]


@pytest.fixture(scope="module")
def fonts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where pdflatex puts the fonts that it makes."""
    return tmp_path_factory.mktemp("texmf")


@pytest.fixture
def compiled(tmp_path: Path, fonts: Path) -> Compile:
    def compile_document(table: str) -> None:
        (tmp_path / "document.tex").write_text(DOCUMENT.format(table=table), encoding="utf-8")
        # No shell, as nothing that stands in a table may start a program.
        command = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "-no-shell-escape", "document.tex"]
        environment = {**os.environ, "TEXMFVAR": str(fonts)}
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, timeout=120)
        log = (tmp_path / "document.log").read_text(encoding="latin-1")
        assert done.returncode == 0, log[-2000:]
        assert "Missing character" not in log
        assert (tmp_path / "document.pdf").stat().st_size > 1000

    return compile_document


@pytest.mark.group("latex")
@pytest.mark.parametrize("path", COMMITTED, ids=[path.stem for path in COMMITTED])
def test_committed_tables_compile(path: Path, compiled: Compile) -> None:
    compiled(path.read_text(encoding="utf-8"))


@pytest.mark.group("latex")
def test_tables_of_hostile_names_compile(tmp_path: Path, compiled: Compile) -> None:
    tasks = ["a_b & 100%", "метод", "[x] \\ {"]
    path = sample.write(sample.sample(HOSTILE, tasks, [0, 1]), tmp_path / "sample")
    assert main(["--records", str(path), "--results", str(tmp_path / "results"), "--measure", "accuracy"]) == 0
    for name in ("sample.tex", "sample@accuracy.tex"):
        compiled((tmp_path / "results" / name).read_text(encoding="utf-8"))


@pytest.mark.group("latex")
def test_values_that_are_none_compile(tmp_path: Path, compiled: Compile) -> None:
    sweep = Path(__file__).parent / "mini_sweep" / "records.jsonl"
    main(["--records", str(sweep), "--results", str(tmp_path)])
    compiled((tmp_path / "mini_sweep.tex").read_text(encoding="utf-8"))


@pytest.mark.group("latex")
def test_every_letter_compiles(compiled: Compile) -> None:
    letters = [chr(code) for code in range(0x20, ord(LAST_LATIN) + 3) if chr(code).isprintable()]
    compiled(in_latex(["letter"], [[f"x{letter}y"] for letter in letters[::2]]))
    compiled(in_latex(["letter"], [[f"x{letter}y"] for letter in letters[1::2]]))


def test_committed_tables_are_there() -> None:
    assert {path.stem for path in COMMITTED} >= {"quickstart", "methods"}


@pytest.mark.group("latex")
@pytest.mark.parametrize("table", [r"\undefined", "%", "метод"])
def test_the_compiler_notices_what_is_wrong(table: str, compiled: Compile) -> None:
    with pytest.raises(AssertionError):
        compiled(rf"\begin{{tabular}}{{l}} {table} \end{{tabular}}")


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a_b", r"a\_b"),
        ("R&D", r"R\&D"),
        ("100%", r"100\%"),
        ("\\", r"\textbackslash{}"),
        ("[x]", "{[}x]"),
        ("*", "{*}"),
        ("naïve", "naïve"),
        ("方", r"\textbackslash{}u65b9"),
        ("1 × nan", r"1 $\times$ nan"),
        ("1 ± 2", r"1 $\pm$ 2"),
        ("–", "--"),
        ("-1.50 ± 2", r"$-$1.50 $\pm$ 2"),
        ("\x02-1.50\x03", "\x02$-$1.50\x03"),
        ("-inf", "-inf"),
        ("tapt-3", "tapt-3"),
    ],
)
def test_names_are_text(name: str, text: str) -> None:
    line = in_latex(["method", "task"], [["first", "1"], [name, "2"]]).splitlines()[5]
    assert [cell.strip() for cell in line.removesuffix(r"\\").rsplit("&", 1)] == [text, "2"]
