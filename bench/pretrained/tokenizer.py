"""Tokenizers of transformers' checkpoints, and the fields of a backbone that they decide."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench.errors import InputError
from bench.pretrained.checkpoints import TOKENIZER
from bench.pretrained.contents import quiet_transformers
from bench.pretrained.files import read_json_object
from bench.pretrained.origin import VOCABULARIES

if TYPE_CHECKING:
    from tokenizers import Tokenizer

LONGEST = 512
"""The most tokens of a text that a converted checkpoint reads by default."""


def read_tokenizer(folder: Path, model_type: str) -> Tokenizer:
    """Return the folder's fast tokenizer, without padding and truncation.

    Where there is none, transformers makes one of the vocabulary.
    """
    from tokenizers import Tokenizer

    path = folder / TOKENIZER
    if path.is_file():
        try:
            tokenizer: Tokenizer = Tokenizer.from_file(str(path))
        except Exception as error:  # the library raises no narrower type
            raise InputError(f"{path} cannot be read as a tokenizer ({error}).") from error
    else:
        tokenizer = _slow_tokenizer(folder, model_type)
    tokenizer.no_padding()
    tokenizer.no_truncation()
    return tokenizer


def _slow_tokenizer(folder: Path, model_type: str) -> Tokenizer:
    from transformers import AutoTokenizer

    if not any((folder / name).is_file() for name in VOCABULARIES):
        raise InputError(f"{folder} holds no tokenizer: neither {TOKENIZER} nor {', '.join(VOCABULARIES)}.")
    pieces = [name for name in VOCABULARIES if name.endswith(".model") and (folder / name).is_file()]
    if pieces and importlib.util.find_spec("sentencepiece") is None:
        raise InputError(
            f"{folder}: {pieces[0]} is read by the package sentencepiece, which is not installed. Install it, or add "
            f"the {TOKENIZER} that transformers' AutoTokenizer.from_pretrained(FOLDER).save_pretrained(FOLDER) writes "
            "where it is."
        )
    try:
        with quiet_transformers():
            loaded = AutoTokenizer.from_pretrained(str(folder), local_files_only=True, trust_remote_code=False)
        tokenizer: Tokenizer = loaded.backend_tokenizer
    except (OSError, ValueError, TypeError, KeyError, ImportError, AttributeError) as error:
        raise InputError(
            f"{folder}: transformers cannot make a fast tokenizer of its {model_type} vocabulary ({error}). "
            f"Add a {TOKENIZER}."
        ) from error
    return tokenizer


def special_tokens(folder: Path, default: Mapping[str, str]) -> dict[str, str]:
    """Return the special tokens by their role, such as `pad_token`.

    Those that the folder does not name are the `default` ones; without any for padding, the end-of-text token is it.
    """
    tokens = dict(default)
    for role, value in _description(folder).items():
        # {"pad_token": "[PAD]"} or {"pad_token": {"content": "[PAD]", …}}; null says nothing.
        token = value.get("content") if isinstance(value, dict) else value
        if role.endswith("_token") and isinstance(token, str):
            tokens[role] = token
    if "pad_token" not in tokens:
        tokens["pad_token"] = tokens["eos_token"]
    return tokens


def _description(folder: Path) -> dict[str, Any]:
    """Read what a folder says of its tokenizer beside the vocabulary."""
    described: dict[str, Any] = {}
    for name in ("special_tokens_map.json", "tokenizer_config.json"):
        if (folder / name).is_file():
            described |= read_json_object(folder / name)
    return described


def token_fields(folder: Path, config: Any, tokenizer: Tokenizer, default: Mapping[str, str]) -> dict[str, Any]:
    """Return the backbone's fields that the tokenizer decides.

    `default` holds the special tokens of a tokenizer whose configuration names none. Where no mask is among them, the
    network masks nothing and needs no special token first. Refuses a tokenizer that does not belong to the network.
    """
    tokens, masks = special_tokens(folder, default), "mask_token" in default
    ids = {role: tokenizer.token_to_id(token) for role, token in tokens.items()}
    pad, mask = ids["pad_token"], ids["mask_token"] if masks else None
    needed = ("pad_token", "mask_token") if masks else ("pad_token",)
    if lacking := [repr(tokens[role]) for role in needed if ids[role] is None]:
        raise InputError(f"{folder}: the tokenizer lacks the special token {' and '.join(lacking)}.")
    if config.pad_token_id not in (None, pad):
        raise InputError(f"{folder}: padding is {config.pad_token_id} in config.json and {pad} in the tokenizer.")
    added = tokenizer.get_added_tokens_decoder()
    special = {token for token, entry in added.items() if entry.special} | {i for i in ids.values() if i is not None}
    largest = max(tokenizer.get_vocab(with_added_tokens=True).values())
    if largest >= config.vocab_size:
        raise InputError(
            f"{folder}: the tokenizer's ids go up to {largest}, but there are only {config.vocab_size} word embeddings."
        )
    if masks and tokenizer.encode("a").ids[0] not in special:
        raise InputError(f"{folder}: the tokenizer puts no special token first, from which features could be read.")
    longest = _description(folder).get("model_max_length")
    stated_length = [int(longest)] if isinstance(longest, int | float) and longest >= 1 else []
    return {
        "max_length": min(LONGEST, config.max_position_embeddings, *stated_length),
        "pad_id": pad,
        "mask_id": mask,
        "special_ids": sorted(special),
    }
