"""Checkpoints made elsewhere, as this suite keeps them: converted once, checked, described by a manifest.

`<data root>/backbones/<name>/` holds `weights.safetensors` under this suite's parameter names in float32, for text
`tokenizer.json`, and `manifest.json`, written last. Planning imports this module, so it imports neither torch nor the
hub's client before something is prepared.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from bench.errors import InputError
from bench.specs.architectures import LanguageModel, MaskedAutoEncoder, MaskedLanguageModel, TransformersEncoder
from bench.store.files import sha256
from bench.store.manifest import load_manifest, prepare_again

WEIGHTS = "weights.safetensors"
TOKENIZER = "tokenizer.json"


@dataclass(frozen=True)
class Prepared:
    """The manifest of a prepared checkpoint.

    `source` is what was asked for; `repository` and `revision` (a commit) of the hub are None for a folder. `checksum`
    is the sha256 of the official weight file (of shards: of their names and sha256), `weights_checksum` that of the
    converted one. `architecture` holds fields of the network's spec, as configuration and shapes tell them. `fresh`
    names this suite's parameters that the file lacks, `ignored` the file's tensors that no parameter here takes.
    `fingerprint` and `content` tell whether a local source is still as it was then. `resampling` says how positions are
    fitted to another image size; None: not at all.
    """

    name: str
    modality: Literal["image", "text"]
    source: str
    repository: str | None
    revision: str | None
    checksum: str
    weights_checksum: str
    tokenizer_checksum: str | None
    architecture: dict[str, Any]
    fresh: tuple[str, ...]
    ignored: tuple[str, ...]
    fingerprint: str | None = None
    content: str | None = None
    resampling: Literal["bicubic", "antialiased"] | None = None

    @property
    def lacking(self) -> tuple[str, ...]:
        """What starts from random values where it is needed: parameters, or the decoder as a whole."""
        return self.fresh or (("decoder",) if self.architecture.get("decoder_depth") == 0 else ())


def architecture_of(name: str, modality: str, fields: dict[str, Any]) -> MaskedAutoEncoder | LanguageModel:
    """Build the spec of a checkpoint's network, without its weights."""
    if modality == "image":
        return MaskedAutoEncoder(name=name, weights=None, **fields)
    encoder = TransformersEncoder if "family" in fields else MaskedLanguageModel
    return encoder(name=name, weights=None, tokenizer=None, tokenizer_checksum=None, **fields)


def folder(name: str, root: Path) -> Path:
    """Return the folder in which a checkpoint of this name is prepared."""
    return root / "backbones" / name


def read(name: str, root: Path) -> Prepared | None:
    """Return what is prepared under this name, or None.

    Reads one small file; refuses a manifest that cannot be read.
    """
    return load_manifest(Prepared, name, folder(name, root), _check)


def _check(prepared: Prepared) -> None:
    if missing := {"width", "depth", "heads", "mlp_width", "norm_eps"} - prepared.architecture.keys():
        raise ValueError(f"architecture.{min(missing)} is missing")
    try:
        architecture_of(prepared.name, prepared.modality, prepared.architecture)
    except TypeError as error:  # a field that no such network has
        raise ValueError(f"architecture: {error}") from error


def weights(name: str, root: Path, checksum: str) -> Path:
    """Return the path of the converted weights, verified.

    They are those of the checkpoint whose official file has the sha256 `checksum`, and are read in full once per
    process. Refuses a checkpoint that is not prepared, was prepared from another file, or has been damaged since.
    """
    prepared, location = read(name, root), folder(name, root)
    if prepared is None:
        raise InputError(f"the backbone {name} is not prepared in {location}: prepare it first.")
    if prepared.checksum != checksum:
        raise InputError(
            f"{location} was prepared from a weight file with the sha256 {prepared.checksum[:16]}, not "
            f"{checksum[:16]}: plan again, or {prepare_again(location, start='delete')}"
        )
    path = location / WEIGHTS
    try:
        # A file with the same number, size and time as before is not read again in this process.
        state = path.stat()
        present = _sha256_once(path, (state.st_ino, state.st_size, state.st_mtime_ns))
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error}). {prepare_again(location)}") from error
    if present != prepared.weights_checksum:
        raise InputError(
            f"{path} is damaged: its sha256 is {present[:16]}, not {prepared.weights_checksum[:16]}. "
            f"{prepare_again(location)}"
        )
    return path


@functools.cache
def _sha256_once(path: Path, state: tuple[int, ...]) -> str:
    return sha256(path)  # again for a file in another state, as when it was prepared anew
