"""Text encoders that transformers computes, under this suite's names, with their tokenizers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from bench.models.transformers_text import feature_tokens
from bench.pretrained.bert import (
    ignored_tensors,
    load_network,
    loaded_parts,
    read_tokenizer,
    special_tokens,
    tied,
    token_fields,
)
from bench.pretrained.contents import CheckpointContents, parse_configuration, require_settings
from bench.specs.architectures import TransformersEncoder
from bench.specs.families import FAMILIES, Family

if TYPE_CHECKING:
    from tokenizers import Tokenizer


def transformers_encoder(folder: Path, raw: dict[str, Any], state: dict[str, Tensor]) -> CheckpointContents:
    """Read a text encoder of one of the `FAMILIES`, with or without its decoder.

    transformers builds the network and loads the tensors; its parameters are then taken over under this suite's names.
    """
    import transformers

    family = FAMILIES[raw["model_type"]]
    require_settings(folder, raw, family.required)
    network_class = getattr(transformers, family.language_model)
    config = parse_configuration(folder, network_class.config_class, raw)
    state = tied(folder, family.projection, family.projection_bias, family.words, state)
    network, loading = load_network(folder, network_class, config, state, family.attention)
    ignored = ignored_tensors(folder, network, loading)
    tokenizer = read_tokenizer(folder, raw["model_type"])
    tokens = token_fields(folder, config, tokenizer, family.special)
    if family.causal:
        _separate_pairs(tokenizer, special_tokens(folder, family.special)["eos_token"])
    modules = {"encoder": network.base_model_prefix, **{f"decoder.{name}": name for name in family.decoder}}
    tensors, fresh = loaded_parts(network, modules, loading)
    return CheckpointContents(
        "text",
        {"family": raw["model_type"], **_fields(family, config), **tokens},
        _output_first(network, tensors),
        fresh=fresh,
        ignored=ignored,
        tokenizer=tokenizer.to_str(),
        features=lambda inputs: feature_tokens(
            network.base_model(**inputs).last_hidden_state, inputs["attention_mask"], family.causal
        ),
    )


def _fields(family: Family, config: Any) -> dict[str, Any]:
    """Return the backbone's fields that the configuration decides."""
    fields: dict[str, Any] = {field: getattr(config, theirs) for field, theirs in family.fields.items()}
    # GPT-2 leaves the usual width of its MLP out.
    fields["mlp_width"] = fields["mlp_width"] or 4 * fields["width"]
    settings = {name: getattr(config, name) for name in family.settings if hasattr(config, name)}
    return {
        "norm_eps": TransformersEncoder.norm_eps,  # of a family whose configuration has none
        **fields,
        "segments": max(1, getattr(config, "type_vocab_size", 1)),
        "dropout": float(getattr(config, family.dropouts[0])),
        "config": json.dumps(settings, sort_keys=True, separators=(",", ":")),
    }


def _output_first(network: Any, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Turn the matrices of GPT-2's Conv1D layers from (in, out) to (out, in)."""
    from transformers.pytorch_utils import Conv1D

    layers = network.base_model.named_modules()
    turned = {f"encoder.{name}.weight" for name, layer in layers if isinstance(layer, Conv1D)}
    return {name: tensor.T if name in turned else tensor for name, tensor in tensors.items()}


def _separate_pairs(tokenizer: Tokenizer, separator: str) -> None:
    """Have the tokenizer put `separator` between two texts, unless it adds tokens of its own."""
    from tokenizers.processors import TemplateProcessing

    if tokenizer.num_special_tokens_to_add(is_pair=True) == 0:
        token = (separator, tokenizer.token_to_id(separator))
        template = {"single": "$A", "pair": f"$A {separator} $B:1", "special_tokens": [token]}
        tokenizer.post_processor = TemplateProcessing(**template)
