"""Where weights made elsewhere come from: a folder, or a repository of the Hugging Face hub."""

from __future__ import annotations

import functools
import re
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from bench.errors import InputError, SpecError
from bench.pretrained.checkpoints import TOKENIZER, Prepared
from bench.specs import Spec
from bench.store.files import digest, sha256

SAFETENSORS = ("model.safetensors", "model.safetensors.index.json", "model-*.safetensors")


PICKLE = "pytorch_model.bin"


VOCABULARIES = ("vocab.txt", "vocab.json", "merges.txt", "sentencepiece.bpe.model", "spm.model")


PREPROCESSOR = "preprocessor_config.json"


DESCRIPTIONS = (
    "config.json",
    PREPROCESSOR,
    TOKENIZER,
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    *VOCABULARIES,
)


LEGAL_SOURCES = "'folder:PATH' (of transformers or timm), 'hub:OWNER/NAME@REVISION', or 'OWNER/NAME'"


class Origin(NamedTuple):
    """A checkpoint's source: a local folder, or a hub repository with revision."""

    path: Path | None
    repository: str | None
    revision: str | None


@dataclass(frozen=True)
class Checkpoint(Spec):
    """Weights made elsewhere: `folder:PATH`, or `OWNER/NAME@REVISION` on the Hugging Face hub.

    `weights_checksum` is the sha256 of the weight file, which a pickled one (`.bin`) needs and any may have.
    """

    weights: str
    weights_checksum: str | None = None

    def check(self) -> None:
        try:
            parse(self.weights)
        except InputError as error:
            raise SpecError("weights", str(error)) from error

    def differs(self, prepared: Prepared) -> str | None:
        """Say how what is prepared differs from the declared source.

        It was prepared from another source, or the source's files have changed since; None where neither is so. Files
        that were copied, moved or touched are unchanged, and so are those of one commit of the hub.
        """
        origin = parse(self.weights)
        if origin.revision is not None and origin[1:] == (prepared.repository, prepared.revision):
            return None
        same = prepared.source == self.weights
        if (same and fingerprint(self.weights) in (None, prepared.fingerprint)) or holds(self.weights, prepared):
            return None
        if same:
            return f"has changed in {self.weights} since it was prepared"
        return f"was prepared from {prepared.source}, not from {self.weights}"

    @property
    def local(self) -> bool:
        """Whether it is on this computer; a grid may then prepare it."""
        return self.weights.startswith("folder:")

    def refuse_missing(self) -> None:
        """Refuse a folder on this computer that is not there."""
        if (path := parse(self.weights).path) is not None:
            _check_folder(path, self.weights)


def fingerprint(source: str) -> str | None:
    """Hash the names, sizes and times of a local source's files.

    No file is read. Returns None for the hub, or if the folder is gone.
    """
    path = parse(source).path
    if path is None or not path.is_dir():
        return None
    files = [(entry.name, entry.stat()) for entry in sorted(path.iterdir()) if entry.is_file()]
    return digest([[name, stat.st_size, stat.st_mtime_ns] for name, stat in files])


def content_of(folder: Path) -> str:
    """Hash the names and contents of a checkpoint's files, as far as read."""
    files = sorted({path for pattern in (*DESCRIPTIONS, *SAFETENSORS, PICKLE) for path in folder.glob(pattern)})
    return digest([[path.name, sha256(path)] for path in files])


def holds(source: str, prepared: Prepared) -> bool:
    """Tell whether a local source holds the very files that were prepared.

    It says no for an older manifest, which does not say what they held.
    """
    path = parse(source).path
    if path is None or not path.is_dir() or prepared.content is None:
        return False
    return content_of(path) == prepared.content


def parse(source: str) -> Origin:
    """Split a source into its parts; refuse any other form."""
    if source.startswith("folder:"):
        if path := source.removeprefix("folder:"):
            return Origin(Path(path).expanduser(), None, None)
    elif match := re.fullmatch(r"(?:hub:)?([\w-][\w.-]*/[\w-][\w.-]*)(?:@([\w./-]+))?", source):
        return Origin(None, match[1], match[2])
    raise InputError(f"{source!r} names no checkpoint. Legal: {LEGAL_SOURCES}.")


def fetch(source: str, origin: Origin, local_copy: Path | None) -> tuple[Path, str | None]:
    """Return the local folder to read, and the hub commit in it."""
    if local := local_copy or origin.path:
        _check_folder(local, source)
        return local, origin.revision
    assert origin.repository is not None
    return _download(source, origin.repository, origin.revision)


def _check_folder(path: Path, source: str) -> None:
    if not path.is_dir():
        raise InputError(
            f"{path} is no folder: {source!r} needs one with config.json and model.safetensors, "
            "as save_pretrained of transformers or the hub lay it out."
        )


def _download(source: str, repository: str, revision: str | None) -> tuple[Path, str]:
    """Download a repository's configuration, tokenizer and weights from the hub.

    They go into the hub's own cache; returned are the folder there and the commit. Without a connection, what the cache
    holds already is taken.
    """
    import huggingface_hub

    snapshot = functools.partial(huggingface_hub.snapshot_download, repository)
    # First the hub is asked for its commit, and for a pickle only where it has no safetensors. If that fails, the cache
    # is read, which may hold either; if it holds neither, the message says how to bring a copy.
    patterns = [*DESCRIPTIONS, *SAFETENSORS]
    try:
        facts = huggingface_hub.HfApi().model_info(repository, revision=revision)
        files = {file.rfilename for file in facts.siblings or ()}
        if not files & set(SAFETENSORS):
            patterns.append(PICKLE)
        local = snapshot(revision=facts.sha, allow_patterns=patterns, local_files_only=False)
    except Exception as error:  # the client passes on those of its HTTP library, which has changed between versions
        try:
            local = snapshot(revision=revision, allow_patterns=[*patterns, PICKLE], local_files_only=True)
        except Exception:
            at = "" if revision is None else f" --revision {revision}"
            raise InputError(
                f"{source!r} cannot be fetched from the Hugging Face hub ({type(error).__name__}: {error}). "
                f"Check the name; without internet here, run `hf download {repository}{at} --local-dir FOLDER` where "
                "there is some, copy the folder and give it with --from FOLDER."
            ) from error
    return Path(local), Path(local).name  # the cache names its folders by commit
