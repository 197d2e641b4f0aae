"""Arrays on disk: images decoded, texts tokenised, once for every backbone that reads them alike; memory-mapped."""

from __future__ import annotations

import errno
import functools
import hashlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from bench.data.content import Rows, checksum, joined
from bench.data.decode import of_any_size, rgb
from bench.data.disk import TOKENIZER, read_rows
from bench.data.manifest import Manifest
from bench.errors import InputError, NotPrepared
from bench.pretrained import checkpoints
from bench.specs import Data
from bench.specs.architectures import LanguageModel
from bench.store.files import replacing, sha256, write_text
from bench.store.manifest import prepare_again

if TYPE_CHECKING:
    from tokenizers import Encoding, Tokenizer

Array = npt.NDArray[Any]
Allocate = Callable[[tuple[int, ...], np.dtype[Any]], Array]
"""Makes an array of this shape and type, for a caller that fills it."""

ARRAYS_VERSION = 2
"""Raised when decoding or tokenising the same data gives other arrays."""


class _Split:
    """The files of a split and its array cache.

    `data.split` may join two splits, as in `train+validation`. The names of cached files hold the checksum of their
    content, so another content has other files.
    """

    def __init__(self, data: Data, manifest: Manifest, folder: Path) -> None:
        assert data.checksum is not None
        self._parts = data.split.split("+")
        self._folder = folder
        self._manifest = manifest
        self._stem = f"{data.split}-{data.checksum[:16]}-v{ARRAYS_VERSION}"
        self._checked: Rows | None = None

    def labels(self) -> npt.NDArray[np.int64] | None:
        if self._manifest.class_names is None:
            return None
        return np.array(
            _cached(self._cache("labels"), lambda new: _filled(new, np.asarray(self._rows().labels, dtype=np.int64)))
        )

    def pixels(self, size: int) -> Array:
        return _cached(self._cache(f"{size}px"), lambda new: _decode(self._rows().values, size, self._folder.name, new))

    def tokens(self, backbone: LanguageModel, root: Path) -> tuple[Array, Array, Array | None]:
        """Read the tokens of all examples as one flat array.

        Also returns where each example begins (N + 1,), and where in each the second text does.
        """
        # Texts differ in length, so they stand one behind the other. Example: texts of 3 and 2 tokens are one array of
        # 5 with the starts [0, 3, 5]. All three arrays come from one pass of the tokenizer, which runs only where one
        # of them is missing.
        source = tokenizer_file(backbone, root)
        if backbone.tokenizer_checksum is None or not source.is_file():
            missing = backbone.tokenizer or backbone.name
            raise NotPrepared(f"the vocabulary of {missing} is not prepared in {root}: prepare it first.")

        @functools.cache
        def encoded() -> list[tuple[Array, int]]:
            return _encode(self._folder.name, self._rows(), _tokenizer(source, backbone), backbone)

        stem = f"{backbone.tokenizer_checksum[:16]}-{backbone.max_length}"
        tokens = _cached(
            self._cache(f"{stem}-tokens"),
            lambda new: _filled(new, np.concatenate([ids for ids, _ in encoded()], dtype=np.int32)),
        )
        lengths = _cached(
            self._cache(f"{stem}-lengths"), lambda new: _filled(new, np.array([len(ids) for ids, _ in encoded()]))
        )
        seconds = _cached(
            self._cache(f"{stem}-seconds"), lambda new: _filled(new, np.array([second for _, second in encoded()]))
        )
        paired = backbone.segments > 1 and bool((seconds < lengths).any())
        return tokens, np.concatenate([[0], np.cumsum(lengths)]), seconds if paired else None

    def _cache(self, name: str) -> Path:
        return self._folder / "arrays" / f"{self._stem}-{name}.npy"

    def _rows(self) -> Rows:
        if self._checked is None:
            self._checked = joined([self._part(split) for split in self._parts])
        return self._checked

    def _part(self, split: str) -> Rows:
        path = self._folder / f"{split}.parquet"
        rows = read_rows(path, self._manifest.modality)
        actual, expected = checksum(self._manifest.class_names, rows), self._manifest.splits[split].checksum
        if actual != expected:
            raise InputError(
                f"{path} has changed: the checksum of its content is {actual[:16]}, not {expected[:16]}. "
                f"{prepare_again(self._folder)}"
            )
        return rows


def tokenizer_file(backbone: LanguageModel, root: Path) -> Path:
    """Return the path of a backbone's tokenizer.

    It lies in the corpus that `backbone.tokenizer` names, or with the weights that were made elsewhere.
    """
    folder = checkpoints.folder(backbone.name, root) if backbone.tokenizer is None else root / backbone.tokenizer
    return folder / TOKENIZER


def _tokenizer(path: Path, backbone: LanguageModel) -> Tokenizer:
    """Read the tokenizer that a backbone was planned with."""
    from tokenizers import Tokenizer

    content = path.read_bytes()
    actual = hashlib.sha256(content).hexdigest()
    if actual != backbone.tokenizer_checksum:
        raise InputError(
            f"{path} has the checksum {actual[:16]}, but the backbone {backbone.name} was planned with "
            f"{str(backbone.tokenizer_checksum)[:16]}: plan again with this vocabulary, or {prepare_again(path.parent)}"
        )
    encoder: Tokenizer = Tokenizer.from_str(content.decode())
    encoder.no_padding()
    return encoder


def _encode(name: str, rows: Rows, encoder: Tokenizer, backbone: LanguageModel) -> list[tuple[Array, int]]:
    """Tokenise the examples.

    Returns for each example its tokens, and the position of the first token of its second text; an example without one
    has its number of tokens there. Refuses texts of which only special tokens are left, such as "[PAD][PAD]": the
    network would see nothing of them.
    """
    encoder.enable_truncation(backbone.max_length)  # of a pair, the longer text is shortened first
    texts: list[Any] = [text.decode() for text in rows.values]
    if rows.pairs is not None:
        texts = list(zip(texts, (text.decode() for text in rows.pairs), strict=True))
    encoded = encoder.encode_batch_fast(texts)
    # The unknown token counts as one: it stands for something.
    unknown = getattr(encoder.model, "unk_token", None)
    special = {token for token in backbone.special_ids if encoder.id_to_token(token) != unknown}
    for i, encoding in enumerate(encoded):
        if any(special.issuperset(tokens) for tokens in _by_text(encoding, rows.pairs is not None)):
            raise InputError(
                f"{name}: the tokenizer of {backbone.name} leaves no token of row {i}, {texts[i]!r:.60}. Remove the "
                "example from the source, and prepare it again."
            )
    return [(np.asarray(encoding.ids, dtype=np.int32), _second(encoding.type_ids)) for encoding in encoded]


def _by_text(encoding: Encoding, pair: bool) -> list[list[int]]:
    """Return the tokens of an example, those of each text of a pair apart."""
    if not pair:
        return [encoding.ids]
    texts = encoding.sequence_ids  # 0, 1 or None, for what the tokenizer puts around them
    return [[token for token, text in zip(encoding.ids, texts, strict=True) if text == n] for n in (0, 1)]


def _second(type_ids: list[int]) -> int:
    return type_ids.index(1) if 1 in type_ids else len(type_ids)


def _filled(new: Allocate, values: Array) -> Array:
    array = new(values.shape, values.dtype)
    array[...] = values
    return array


def _decode(encoded: list[bytes], size: int, source: str, new: Allocate) -> Array:
    from PIL import Image

    pixels = new((len(encoded), 3, size, size), np.dtype(np.uint8))
    for i, value in enumerate(encoded):
        try:
            with of_any_size():
                image = rgb(value)
        except Exception as error:  # damaged files make Pillow raise almost anything
            raise InputError(f"{source}: the image of row {i} cannot be decoded ({error}).") from error
        pixels[i] = np.asarray(image.resize((size, size), Image.Resampling.BILINEAR)).transpose(2, 0, 1)
    return pixels


def _cached(path: Path, build: Callable[[Allocate], Array]) -> Array:
    """Return the array in a file, memory-mapped.

    It is built first where the file is missing or is not what was written.

    `build` is called with a function that allocates the array that it fills: on disk, so that a large one needs no
    memory, or in memory where the folder cannot be written (data shared by several people).
    """
    # The checksum is written after the array: a kill between the two leaves an array that does not count, and it is
    # built again. Two processes that build the same array at once write the same bytes.
    checksum_file = path.with_suffix(".sha256")
    if not _intact(path, checksum_file):
        try:
            with replacing(path) as temporary:
                build(functools.partial(_on_disk, temporary)).flush()  # type: ignore[attr-defined]
            write_text(checksum_file, _checksum_line(path))
        except OSError as error:
            if error.errno not in (errno.EROFS, errno.EACCES, errno.EPERM):
                raise
            return build(np.empty)
    mapped: Array = np.load(path, mmap_mode="r")
    return mapped


def _on_disk(path: Path, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Array:
    """Make an array in a file. Raises OSError, with the file's name, where the disk has no room for all of it."""
    array: Array = np.lib.format.open_memmap(path, "w+", dtype, shape)
    # The file has holes, and a process that writes into one when the disk is full is ended by a signal.
    with path.open("r+b") as file:
        try:
            os.posix_fallocate(file.fileno(), 0, os.fstat(file.fileno()).st_size)
        except OSError as error:
            reason = f"{os.strerror(error.errno or 0)} for an array of {array.nbytes / 1e9:.3g} GB"
            raise OSError(error.errno, reason, str(path)) from error
    return array


_INTACT: set[tuple[Path, int, int]] = set()
"""Array files that this process has read against their checksum: path, size, time of change."""


def _checksum_line(path: Path) -> str:
    """Write the checksum of an array as sha256sum does.

    The name says what the array was made of: another one is told, though it was moved here with its own checksum.
    """
    return f"{sha256(path)}  {path.name}\n"


def _intact(path: Path, checksum_file: Path) -> bool:
    try:
        stat = path.stat()
        identity = (path.resolve(), stat.st_size, stat.st_mtime_ns)
        if identity not in _INTACT:
            line = _checksum_line(path)
            # Files of older versions hold the checksum alone.
            if checksum_file.read_text() in (line, line.partition(" ")[0]):
                _INTACT.add(identity)
    except (OSError, ValueError):  # a byte that is no text
        return False
    return identity in _INTACT
