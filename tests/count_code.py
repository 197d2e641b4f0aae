"""Count the code lines of bench/ and baselines/: `python tests/count_code.py [CHECKOUT]…`.

A code line holds a token that is neither comment nor docstring; comments are the lines that hold nothing else. Give two
checkouts to compare them.
"""

from __future__ import annotations

import ast
import io
import sys
import tokenize
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

LAYOUT = {tokenize.NEWLINE, tokenize.NL, tokenize.INDENT, tokenize.DEDENT, tokenize.ENCODING, tokenize.ENDMARKER}


class Count(NamedTuple):
    """Lines of code and lines of comment."""

    code: int
    comments: int


def docstring_lines(source: str) -> set[int]:
    """The lines of strings that stand alone: docstrings, and those behind a constant or field."""
    expressions = (node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Expr))
    strings = (
        node for node in expressions if isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)
    )
    return {line for node in strings for line in range(node.lineno, (node.end_lineno or node.lineno) + 1)}


def count(source: str) -> Count:
    """Count one file."""
    code: set[int] = set()
    comments: set[int] = set()
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            comments.add(token.start[0])
        elif token.type not in LAYOUT:
            code.update(range(token.start[0], token.end[0] + 1))
    code -= docstring_lines(source)
    return Count(len(code), len(comments - code))


def total(root: Path) -> Count:
    """Count a checkout."""
    files = [*(root / "bench").rglob("*.py"), *(root / "baselines").rglob("*.py")]
    counts = [count(path.read_text(encoding="utf-8")) for path in files]
    return Count(sum(each.code for each in counts), sum(each.comments for each in counts))


def main(roots: Iterable[str]) -> None:
    """Print one line per checkout."""
    for root in roots:
        lines = total(Path(root))
        print(f"{root}: {lines.code} code lines, {100 * lines.comments / lines.code:.1f} comment lines per 100")


if __name__ == "__main__":
    main(sys.argv[1:] or [str(Path(__file__).resolve().parents[1])])
