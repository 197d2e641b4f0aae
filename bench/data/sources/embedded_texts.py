"""The embedded texts: docstrings of Python's standard library, and of installed scientific packages."""

from __future__ import annotations

import ast
import gc
import json
import platform
import re
import sysconfig
import warnings
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path

from bench.data.content import Content, Rows, by_content, split_by_content
from bench.errors import InputError

MODULES = (
    "asyncio",
    "email",
    "http",
    "importlib",
    "inspect",
    "logging",
    "mailbox",
    "multiprocessing",
    "tarfile",
    "unittest",
    "urllib",
    "xml",
)
"""The classes of `pydocs`: each has at least 85 usable docstrings on Python 3.11, 3.12 and 3.13."""

LEAST_PER_MODULE = 70

PACKAGES = {
    "networkx": "networkx",
    "numpy": "numpy",
    "pandas": "pandas",
    "scipy": "scipy",
    "sklearn": "scikit-learn",
    "torch": "torch",
}
"""Import name -> distribution of the sources of `docstrings`, all of them dependencies of this suite."""

LEAST_IN_CORPUS = 5_000
MOST_IN_CORPUS = 20_000

# A lower-casing WordPiece tokenizer with 4,000 entries, the special tokens first. It was trained once, on the corpus of
# networkx 3.6.1, numpy 2.4.6, pandas 3.1.1, scipy 1.17.1, scikit-learn 1.9.1 and torch 2.15.0: byte-pair encoding
# (Sennrich et al. 2016, algorithm 1), ties in alphabetical order. It is not trained anew from the packages at hand: the
# trainer in `tokenizers` breaks ties in the order of a hash table that is seeded anew in each process.
TOKENIZER = Path(__file__).with_name("docstrings_tokenizer.json")


@contextmanager
def _without_collector() -> Iterator[None]:
    """Suspend the search for unreachable reference cycles.

    Syntax trees hold no cycles; looking for some takes longer than parsing once torch or datasets are loaded.
    """
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


@_without_collector()
def pydocs() -> Content:
    """Collect the standard library's docstrings, labelled with their modules.

    A text is the first paragraph of a docstring, without the name of its own module. A text that two modules share is
    dropped; one that a module repeats is kept once (case is ignored). Of each class the quarter with the smallest
    sha256 is the test split. Refuses a Python without these sources.
    """
    library = Path(sysconfig.get_paths()["stdlib"])
    texts = {module: _module_texts(library, module) for module in MODULES}
    modules_with = Counter(folded for of_module in texts.values() for folded in of_module)
    label_of: dict[bytes, int] = {}
    for label, module in enumerate(MODULES):
        unshared = [text for folded, text in texts[module].items() if modules_with[folded] == 1]
        if len(unshared) < LEAST_PER_MODULE:
            raise InputError(
                f"pydocs: the module {module} has {len(unshared)} usable docstrings in {library}, "
                f"{LEAST_PER_MODULE} are needed. "
                "Use a CPython 3.11, 3.12 or 3.13 that is installed with the sources of its standard library."
            )
        label_of.update({text.encode(): label for text in unshared})
    in_test = {label: count // 4 for label, count in Counter(label_of.values()).items()}
    return Content(
        modality="text",
        class_names=MODULES,
        splits=split_by_content(label_of, in_test),
        sources={"python": platform.python_version()},
    )


@_without_collector()
def docstrings() -> Content:
    """Collect first paragraphs of installed scientific packages' docstrings, with their tokenizer.

    At most 20,000 texts, each once, in the order of their sha256. Private and test folders are not read. Refuses an
    installation with fewer than 5,000.
    """
    texts: set[str] = set()
    sources = {"python": platform.python_version()}  # its parser decides which files can be read
    for package, distribution in PACKAGES.items():
        spec = find_spec(package)
        if spec is None or spec.origin is None:
            continue
        try:
            sources[distribution] = version(distribution)
        except PackageNotFoundError:
            continue
        folder = Path(spec.origin).parent
        for path in sorted(folder.rglob("*.py")):
            folders = path.relative_to(folder).parts[:-1]
            if not any(name.startswith("_") or name in ("test", "tests", "testing") for name in folders):
                texts.update(text for text in _first_paragraphs(path) if _is_usable(text))
    if len(texts) < LEAST_IN_CORPUS:
        raise InputError(
            f"docstrings: the installed packages hold {len(texts)} usable docstrings, {LEAST_IN_CORPUS} are needed. "
            f"Install the sources of {', '.join(PACKAGES.values())}."
        )
    values = by_content(text.encode() for text in texts)[:MOST_IN_CORPUS]
    tokenizer = TOKENIZER.read_bytes()
    return Content(
        modality="text",
        class_names=None,
        splits={"train": Rows(values=values, labels=None)},
        sources=sources,
        tokenizer=tokenizer,
        vocabulary=len(json.loads(tokenizer)["model"]["vocab"]),
    )


def _module_texts(library: Path, module: str) -> dict[str, str]:
    """Collect the usable texts of a module by their case-folded form."""
    own_name = re.compile(rf"\b{re.escape(module)}\b", re.IGNORECASE)
    texts: set[str] = set()
    for path in [library / f"{module}.py", *(library / module).rglob("*.py")]:
        if path.is_file() and not {"test", "tests"} & set(path.relative_to(library).parts):
            texts.update(" ".join(own_name.sub(" ", text).split()) for text in _first_paragraphs(path))
    return {text.casefold(): text for text in sorted(texts) if _is_usable(text)}


def _is_usable(text: str) -> bool:
    return len(re.findall("[A-Za-z]{2,}", text)) >= 3


def _first_paragraphs(path: Path) -> Iterator[str]:
    """Yield the first paragraph of each docstring of a source file.

    White space is normalised. There is none if the file cannot be parsed.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # invalid escapes in other people's sources
        try:
            pending: list[ast.AST] = [ast.parse(path.read_bytes())]
        except (SyntaxError, ValueError):
            return
    while pending:
        node = pending.pop()
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            docstring = ast.get_docstring(node, clean=False)
            if docstring is not None:
                yield " ".join(re.split(r"\n\s*\n", docstring.strip(), maxsplit=1)[0].split())
        # Statements only: walking every expression would take several times as long.
        for part in ("body", "orelse", "handlers", "finalbody"):
            statements = getattr(node, part, None)
            if isinstance(statements, list):
                pending.extend(statements)
