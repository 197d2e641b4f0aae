"""Preparing weights made elsewhere: fetched, converted, checked, and only then visible."""

from __future__ import annotations

from pathlib import Path

from bench.errors import InputError
from bench.pretrained.checkpoints import TOKENIZER, WEIGHTS, Prepared, folder, read
from bench.pretrained.origin import Origin, content_of, fetch, fingerprint, holds, parse
from bench.store.files import building, sha256
from bench.store.manifest import prepare_again, write_manifest


def prepare_checkpoint(
    name: str,
    source: str,
    root: Path,
    local_copy: Path | None = None,
    weights_checksum: str | None = None,
    again: bool = False,
) -> Prepared:
    """Convert a checkpoint into `root/backbones/name`, once.

    What is there already stays, unless `again` asks for a new one. `source` is `folder:PATH`, or
    `hub:OWNER/NAME@REVISION` or plain `OWNER/NAME` of the Hugging Face hub; `local_copy` is used in its place.
    `weights_checksum` is the sha256 that the official weight file must have; a pickle is only read with one. Nothing is
    visible before it is complete, and two processes may prepare the same name at once. Refuses unknown networks, custom
    code, damaged files, weights that are not finite, and a source other than that of what is there.
    """
    if not name.isidentifier():
        raise InputError(f"a backbone cannot be named {name!r}: it must be a letter, then letters, digits or _.")
    origin = parse(source)
    prepared = None if again else read(name, root)
    if prepared is not None and local_copy is not None:
        raise InputError(f"--from {local_copy}: {name} is prepared in {root} already; --again replaces it.")
    if prepared is None:
        local, revision = fetch(source, origin, local_copy)
        if local_copy is not None and weights_checksum is None:
            origin, revision = Origin(local, None, None), None  # nothing says that it is what the hub has
        prepared = _convert(name, source, origin._replace(revision=revision), local, root, weights_checksum, again)
    target = folder(name, root)
    if prepared.source != source and not holds(source, prepared):
        raise InputError(
            f"{target} was prepared from {prepared.source!r}, not from {source!r}: "
            f"give one of the two another name, or {prepare_again(target, start='delete')}"
        )
    if weights_checksum is not None and prepared.checksum != weights_checksum.lower():
        raise InputError(
            f"{target} was prepared from a weight file with the sha256 {prepared.checksum}, but weights_checksum is "
            f"{weights_checksum}: correct it, or {prepare_again(target, start='delete')}"
        )
    return prepared


def _convert(
    name: str, source: str, origin: Origin, local: Path, root: Path, weights_checksum: str | None, again: bool
) -> Prepared:
    """Convert into a temporary folder, then move it into place.

    Of several processes the first to complete wins, unless `again`.
    """
    from bench.pretrained.convert import convert

    with building(folder(name, root), replace=again) as temporary:
        before = fingerprint(source)
        contents, checksum = convert(name, local, temporary, weights_checksum)
        if fingerprint(source) != before:
            raise InputError(f"{source} changed while it was read: prepare {name} again when nobody writes there.")
        tokenizer = temporary / TOKENIZER
        prepared = Prepared(
            name=name,
            modality=contents.modality,
            source=source,
            repository=origin.repository,
            revision=origin.revision,
            checksum=checksum,
            weights_checksum=sha256(temporary / WEIGHTS),
            tokenizer_checksum=sha256(tokenizer) if tokenizer.is_file() else None,
            architecture=contents.architecture,
            fresh=contents.fresh,
            ignored=contents.ignored,
            fingerprint=before,
            content=None if origin.path is None else content_of(origin.path),
            resampling=contents.resampling,
        )
        write_manifest(temporary, prepared)
    visible = read(name, root)
    assert visible is not None  # just written, by this process or a faster one
    return visible
