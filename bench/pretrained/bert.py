"""BERT and its relatives of transformers under this suite's names, with their tokenizers."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from bench.errors import InputError
from bench.pretrained.checkpoints import TOKENIZER
from bench.pretrained.contents import (
    NETWORKS,
    CheckpointContents,
    Network,
    parse_configuration,
    quiet_transformers,
    require_settings,
)
from bench.pretrained.files import read_json_object
from bench.pretrained.origin import VOCABULARIES

if TYPE_CHECKING:
    from tokenizers import Tokenizer


CLASSES = {
    "bert": "BertForMaskedLM",
    "roberta": "RobertaForMaskedLM",
    "xlm-roberta": "XLMRobertaForMaskedLM",
    "camembert": "CamembertForMaskedLM",
}
"""The networks of transformers by the `model_type` of config.json."""


HEAD: dict[Network, str] = {"bert": "cls", "roberta": "lm_head"}
"""The module of the masked-language-model head."""


PROJECTION: dict[Network, tuple[str, str]] = {
    "bert": ("cls.predictions.decoder", "cls.predictions.bias"),
    "roberta": ("lm_head.decoder", "lm_head.bias"),
}
"""The output projection of a head, and the other name of its bias."""

WORDS = "embeddings.word_embeddings"


SPECIAL: dict[Network, dict[str, str]] = {
    "bert": {"pad_token": "[PAD]", "mask_token": "[MASK]"},
    "roberta": {"pad_token": "<pad>", "mask_token": "<mask>"},
}
"""The special tokens of a tokenizer whose configuration names none."""


BUFFERS = ("embeddings.position_ids", "embeddings.token_type_ids", "attn.masked_bias")
"""Endings of the names of tensors that older versions of transformers saved and that are no parameters."""


LONGEST = 512
"""The most tokens of a text that a converted checkpoint reads by default."""


def masked_language_model(folder: Path, raw: dict[str, Any], state: dict[str, Tensor]) -> CheckpointContents:
    """Read a BERT or RoBERTa of transformers, with or without its head.

    transformers builds the network and loads the tensors; its parameters are then taken over under this suite's names.
    """
    import transformers

    require_settings(
        folder,
        raw,
        {
            "hidden_act": "gelu",
            "position_embedding_type": "absolute",
            "is_decoder": False,
            "add_cross_attention": False,
        },
    )
    kind, network_class = NETWORKS[raw["model_type"]], getattr(transformers, CLASSES[raw["model_type"]])
    config = parse_configuration(folder, network_class.config_class, raw)
    network, loading = load_network(folder, network_class, config, tied(folder, *PROJECTION[kind], WORDS, state))
    ignored = ignored_tensors(folder, network, loading)
    tokenizer = read_tokenizer(folder, raw["model_type"])
    tensors, fresh = loaded_parts(network, {"encoder": network.base_model_prefix, "decoder": HEAD[kind]}, loading)
    tokens = token_fields(folder, config, tokenizer, SPECIAL[kind])
    # RoBERTa counts positions from behind the padding index: of 514 positions and padding 1, 512 are for tokens.
    first = tokens["pad_id"] + 1 if kind == "roberta" else 0
    tokens["max_length"] = min(tokens["max_length"], config.max_position_embeddings - first)
    return CheckpointContents(
        "text",
        {
            "network": kind,
            "vocabulary": config.vocab_size,
            "width": config.hidden_size,
            "depth": config.num_hidden_layers,
            "heads": config.num_attention_heads,
            "mlp_width": config.intermediate_size,
            "positions": config.max_position_embeddings,
            "segments": config.type_vocab_size,
            "norm_eps": config.layer_norm_eps,
            "dropout": float(config.hidden_dropout_prob),
            **tokens,
        },
        tensors,
        fresh=fresh,
        ignored=ignored,
        tokenizer=tokenizer.to_str(),
        features=lambda inputs: network.base_model(**inputs).last_hidden_state[:, 0],
    )


def load_network(
    folder: Path, network_class: Any, config: Any, state: dict[str, Tensor], attention: str = "sdpa"
) -> tuple[Any, Mapping[str, Any]]:
    """Build transformers' network, in eval mode, and load the tensors.

    Returns what the library says of the loading, too.
    """
    config.tie_word_embeddings = True  # what `tied` has checked
    try:
        with quiet_transformers():
            network, loading = network_class.from_pretrained(
                None,
                config=config,
                state_dict=state,
                output_loading_info=True,
                dtype=torch.float32,
                attn_implementation=attention,
            )
    except (RuntimeError, ValueError) as error:
        raise InputError(f"{folder}: the weights are not those that config.json describes: {error}") from error
    return network.eval(), loading


def ignored_tensors(folder: Path, network: Any, loading: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the tensors that no parameter takes; refuse an encoder that differs."""
    prefix = f"{network.base_model_prefix}."
    if absent := sorted(name for name in loading["missing_keys"] if name.startswith(prefix)):
        raise InputError(f"{folder}: the weights lack a part of the encoder: {', '.join(absent)}.")
    # Tensors that no parameter takes. Those of another head and of the pooler are ignored, but one of the encoder means
    # that the configuration describes another network. Each name -> the name without the prefix.
    unused = {name: name.removeprefix(prefix) for name in loading["unexpected_keys"]}
    unused = {
        name: bare for name, bare in unused.items() if not bare.endswith(BUFFERS) and not bare.startswith("pooler.")
    }
    modules = tuple(f"{name}." for name, _ in network.base_model.named_children())
    if odd := sorted(name for name, bare in unused.items() if bare.startswith(modules)):
        raise InputError(f"{folder}: the encoder has tensors that config.json does not tell of: {', '.join(odd)}.")
    return tuple(sorted(unused))


def loaded_parts(
    network: Any, modules: Mapping[str, str], loading: Mapping[str, Any]
) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """Return the loaded parameters of `modules`, and the names of missing ones.

    The names are those of our parts. Tied parameters are returned once. Example, with the parts encoder and decoder of
    a BERT, which are its modules bert and cls:

        bert.embeddings.word_embeddings.weight      encoder.embeddings.word_embeddings.weight
        cls.predictions.transform.dense.bias        decoder.predictions.transform.dense.bias
        cls.predictions.decoder.weight              left out: it is the first one once more
    """
    tensors, fresh = {}, []
    seen: set[int] = set()
    for part, module in modules.items():
        for name, parameter in getattr(network, module).named_parameters():
            if id(parameter) in seen:
                continue  # the projection, tied to the embeddings
            seen.add(id(parameter))
            if f"{module}.{name}" in loading["missing_keys"]:
                fresh.append(f"{part}.{name}")
            else:
                tensors[f"{part}.{name}"] = parameter.detach()
    return tensors, tuple(sorted(fresh))


def tied(folder: Path, projection: str, bias: str | None, words: str, state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Leave out the output projection, which must be the word embeddings.

    Its bias stays: under the name `bias`, where the network has this other name for it. Refuses a projection that is
    not tied.
    """
    kept = dict(state)
    # A checkpoint may hold a tied tensor twice. Each name of the projection -> the other names of the same tensor.
    twins = {f"{projection}.weight": [name for name in state if name.endswith(f"{words}.weight")]}
    if bias is not None:
        twins[f"{projection}.bias"] = [bias] if bias in state else []
    for name, others in twins.items():
        tensor = kept.pop(name, None)
        if tensor is None:
            continue
        if not others and bias is not None and name.endswith("bias"):
            kept[bias] = tensor
        elif not all(torch.equal(tensor, state[other]) for other in others):
            raise InputError(
                f"{folder}: {name} differs from {others[0]}. Here both are one tensor, as the output projection of a "
                "language model is tied to its word embeddings, so this head cannot be used."
            )
    return kept


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
    if pad is None or (masks and mask is None):
        lacking = [repr(tokens[role]) for role in ("pad_token", "mask_token")[: 1 + masks] if ids[role] is None]
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
