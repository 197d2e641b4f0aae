r"""The table for LaTeX, which pdflatex takes whatever names stand in it.

A document that reads it needs `\usepackage{booktabs}` and `\usepackage[T1]{fontenc}`.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from tabulate import tabulate

SYMBOLS = {"±": r"$\pm$", "×": r"$\times$", "−": "$-$", "–": "--"}
"""What tables hold besides names and numbers."""
MINUS = re.compile(r"(?<![^ \x02])-(?=\d)")
"""A hyphen before a number: at the start of a cell, of a word, or of what is to be bold (see table.BOLD)."""
LAST_LATIN = "\u017e"
WITHOUT_GLYPH = frozenset("ĦħĸĿŀŉŦŧ")
"""Letters up to LAST_LATIN that LaTeX's own encodings lack."""


def in_latex(head: Sequence[str], body: Sequence[Sequence[str]]) -> str:
    r"""Write a table for booktabs. Letters that pdflatex does not know stand as escapes.

    Example: the names `a_b`, `[x]` and `方法` read `a\_b`, `{[}x]` and `\textbackslash{}u65b9\textbackslash{}u6cd5`;
    the value `-1.50` reads `$-$1.50`.
    """
    lines = [list(map(_known_letters, line)) for line in (head, *body)]
    text = tabulate(lines[1:], headers=lines[0], tablefmt="latex_booktabs", disable_numparse=True)
    for symbol, command in SYMBOLS.items():
        text = text.replace(symbol, command)
    # After the `\\` of the line before, a bracket would begin its argument, and a star would be one.
    return re.sub(r"^ ([\[*])", r" {\1}", text, flags=re.MULTILINE)


def _known_letters(text: str) -> str:
    text = MINUS.sub("−", text)
    return "".join(letter if _known(letter) else letter.encode("ascii", "backslashreplace").decode() for letter in text)


def _known(letter: str) -> bool:
    return letter in SYMBOLS or (letter <= LAST_LATIN and letter not in WITHOUT_GLYPH)
