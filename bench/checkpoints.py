"""Checkpoints made elsewhere, as this suite keeps them: converted once, checked, described by a manifest.

`<data root>/backbones/<name>/` holds `weights.safetensors` under this suite's parameter names in float32, for text
`tokenizer.json`, and `manifest.json`, written last. Planning imports this module, so it imports neither torch nor the
hub's client before something is prepared.
"""

from __future__ import annotations

import functools
import json
import re
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

from bench.errors import InputError
from bench.store.files import MANIFEST, building, digest, sha256

WEIGHTS = "weights.safetensors"
TOKENIZER = "tokenizer.json"

SAFETENSORS = ("model.safetensors", "model.safetensors.index.json", "model-*.safetensors")
PICKLE = "pytorch_model.bin"
VOCABULARIES = ("vocab.txt", "vocab.json", "merges.txt", "sentencepiece.bpe.model")
DESCRIPTIONS = (
    "config.json",
    TOKENIZER,
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    *VOCABULARIES,
)
LEGAL_SOURCES = "'folder:PATH' (of transformers or timm), 'hub:OWNER/NAME@REVISION', or 'OWNER/NAME'"


@dataclass(frozen=True)
class Prepared:
    """What is prepared of a checkpoint.

    `source` is what was asked for; `repository` and `revision` (a commit) of the hub are None for a folder. `checksum`
    is the sha256 of the official weight file (of shards: of their names and sha256), `weights_checksum` that of the
    converted one. `architecture` holds fields of `MaskedAutoEncoder` or `MaskedLanguageModel`, as configuration and
    shapes tell them. `fresh` names this suite's parameters that the file lacks, `ignored` the file's tensors that no
    parameter here takes. `fingerprint` is that of a local source as it was then.
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


class Origin(NamedTuple):
    """Where a checkpoint comes from: a local folder, or a repository of the Hugging Face hub with its revision."""

    path: Path | None
    repository: str | None
    revision: str | None


def folder(name: str, root: Path) -> Path:
    """Where the checkpoint of this name is prepared, under the data root."""
    return root / "backbones" / name


def read(name: str, root: Path) -> Prepared | None:
    """What is prepared under this name, or None; reads one small file. Refuses a manifest it cannot read."""
    path = folder(name, root) / MANIFEST
    try:
        return _parse(json.loads(path.read_bytes()), name)
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{path} cannot be read ({error}). {_again(path.parent)}") from error


def weights(name: str, root: Path, checksum: str) -> Path:
    """The converted weights of the checkpoint whose official file has that sha256; read in full once per process.

    Refuses a checkpoint that is not prepared, was prepared from another file, or has been damaged since.
    """
    prepared, place = read(name, root), folder(name, root)
    if prepared is None:
        raise InputError(f"the backbone {name} is not prepared in {place}: prepare it first.")
    if prepared.checksum != checksum:
        raise InputError(
            f"{place} was prepared from a weight file with the sha256 {prepared.checksum[:16]}, not {checksum[:16]}: "
            f"plan again, or {_again(place, start='delete')}"
        )
    path = place / WEIGHTS
    try:
        state = path.stat()
        found = _sha256_once(path, (state.st_ino, state.st_size, state.st_mtime_ns))
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error}). {_again(place)}") from error
    if found != prepared.weights_checksum:
        raise InputError(
            f"{path} is damaged: its sha256 is {found[:16]}, not {prepared.weights_checksum[:16]}. {_again(place)}"
        )
    return path


def prepare(
    name: str,
    source: str,
    root: Path,
    given: Path | None = None,
    weights_checksum: str | None = None,
    again: bool = False,
) -> Prepared:
    """Convert a checkpoint into `root/backbones/name` unless it is there already, or `again` asks for a new one.

    `source` is `folder:PATH`, or `hub:OWNER/NAME@REVISION` or plain `OWNER/NAME` of the Hugging Face hub; `given` is a
    local copy used in its place. `weights_checksum` is the sha256 that the official weight file must have; a pickle is
    only read with one. Nothing is visible before it is complete, and two processes may prepare the same name at once.
    Refuses unknown networks, custom code, damaged files, weights that are not finite, and a source other than that of
    what is there.
    """
    if not name.isidentifier():
        raise InputError(f"a backbone cannot be named {name!r}: it must be a letter, then letters, digits or _.")
    origin = parse(source)
    prepared = None if again else read(name, root)
    if prepared is not None and given is not None:
        raise InputError(f"--from {given}: {name} is prepared in {root} already; --again replaces it.")
    if prepared is None:
        local, revision = _fetch(source, origin, given)
        if given is not None and weights_checksum is None:
            origin, revision = Origin(local, None, None), None  # nothing says that it is what the hub has
        prepared = _convert(name, source, origin._replace(revision=revision), local, root, weights_checksum, again)
    place = folder(name, root)
    if prepared.source != source:
        raise InputError(
            f"{place} was prepared from {prepared.source!r}, not from {source!r}: "
            f"give one of the two another name, or {_again(place, start='delete')}"
        )
    if weights_checksum is not None and prepared.checksum != weights_checksum.lower():
        raise InputError(
            f"{place} was prepared from a weight file with the sha256 {prepared.checksum}, but weights_checksum is "
            f"{weights_checksum}: correct it, or {_again(place, start='delete')}"
        )
    return prepared


def fingerprint(source: str) -> str | None:
    """A cheap hash of the names, sizes and times of a local source's files; None for the hub, or if it is gone."""
    path = parse(source).path
    if path is None or not path.is_dir():
        return None
    files = [(entry.name, entry.stat()) for entry in sorted(path.iterdir()) if entry.is_file()]
    return digest([[name, stat.st_size, stat.st_mtime_ns] for name, stat in files])


def parse(source: str) -> Origin:
    """The parts of a source; refuses any other form."""
    if source.startswith("folder:"):
        if path := source.removeprefix("folder:"):
            return Origin(Path(path).expanduser(), None, None)
    elif match := re.fullmatch(r"(?:hub:)?([\w-][\w.-]*/[\w-][\w.-]*)(?:@([\w./-]+))?", source):
        return Origin(None, match[1], match[2])
    raise InputError(f"{source!r} names no checkpoint. Legal: {LEGAL_SOURCES}.")


def _parse(content: dict[str, Any], name: str) -> Prepared:
    if content["name"] != name:
        raise ValueError(f"it describes {content['name']!r}")
    if content["modality"] not in ("image", "text"):
        raise ValueError(f"its modality is {content['modality']!r}")
    if not isinstance(content["architecture"], dict):
        raise ValueError("it has no architecture")
    return Prepared(**{**content, "fresh": tuple(content["fresh"]), "ignored": tuple(content["ignored"])})


def _again(place: Path, start: str = "Delete") -> str:
    return f"{start} the folder {place} and prepare {place.name} again."


@functools.cache
def _sha256_once(path: Path, state: tuple[int, ...]) -> str:
    return sha256(path)  # again for a file in another state, as when it was prepared anew


# ------------------------------------------------------------------------------------------------ where from


def _fetch(source: str, origin: Origin, given: Path | None) -> tuple[Path, str | None]:
    """The local folder to read, and the commit of the hub that it holds."""
    if given is not None or origin.path is not None:
        local = given or origin.path
        assert local is not None
        if not local.is_dir():
            raise InputError(
                f"{local} is no folder: {source!r} needs one with config.json and model.safetensors, "
                "as save_pretrained of transformers or the hub lay it out."
            )
        return local, origin.revision
    assert origin.repository is not None
    return _download(source, origin.repository, origin.revision)


def _download(source: str, repository: str, revision: str | None) -> tuple[Path, str]:
    """A repository's configuration, tokenizer and weights in the hub's own cache, and the commit they belong to."""
    import huggingface_hub

    def snapshot(commit: str | None, patterns: list[str], local_files_only: bool) -> tuple[Path, str]:
        found = huggingface_hub.snapshot_download(
            repository, revision=commit, allow_patterns=patterns, local_files_only=local_files_only
        )
        return Path(found), commit or Path(found).name

    patterns = [*DESCRIPTIONS, *SAFETENSORS]
    try:
        facts = huggingface_hub.HfApi().model_info(repository, revision=revision)
        files = {file.rfilename for file in facts.siblings or ()}
        if not files & set(SAFETENSORS):
            patterns.append(PICKLE)
        return snapshot(facts.sha, patterns, local_files_only=False)
    except Exception as error:  # the client passes on those of its HTTP library, which has changed between versions
        try:
            # The cache names its folders by commit.
            local, _ = snapshot(revision, [*patterns, PICKLE], local_files_only=True)
            return local, local.name
        except Exception:
            at = "" if revision is None else f" --revision {revision}"
            raise InputError(
                f"{source!r} cannot be fetched from the Hugging Face hub ({type(error).__name__}: {error}). "
                f"Check the name; without internet here, run `hf download {repository}{at} --local-dir FOLDER` where "
                "there is some, copy the folder and give it with --from FOLDER."
            ) from error


# ------------------------------------------------------------------------------------------------ writing


def _convert(
    name: str,
    source: str,
    origin: Origin,
    local: Path,
    root: Path,
    weights_checksum: str | None,
    again: bool,
) -> Prepared:
    """Convert into a folder beside, then move it into place; the first complete one wins, unless `again`."""
    from bench.models.convert import convert

    with building(folder(name, root), replace=again) as temporary:
        converted = convert(name, local, temporary, weights_checksum)
        tokenizer = temporary / TOKENIZER
        prepared = Prepared(
            name=name,
            modality=converted.modality,
            source=source,
            repository=origin.repository,
            revision=origin.revision,
            checksum=converted.checksum,
            weights_checksum=sha256(temporary / WEIGHTS),
            tokenizer_checksum=sha256(tokenizer) if tokenizer.is_file() else None,
            architecture=converted.architecture,
            fresh=converted.fresh,
            ignored=converted.ignored,
            fingerprint=fingerprint(source),
        )
        (temporary / MANIFEST).write_text(json.dumps(asdict(prepared), indent=1, sort_keys=True) + "\n")
    found = read(name, root)
    assert found is not None  # just written, by this process or a faster one
    return found
