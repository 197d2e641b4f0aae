"""Text encoders of transformers under this suite's names, with their tokenizers.

Those of BERT and RoBERTa are computed by the suite's own network, all others by transformers itself.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from bench.errors import InputError
from bench.models.transformers_text import feature_tokens
from bench.pretrained.contents import (
    NETWORKS,
    CheckpointContents,
    load_network,
    parse_configuration,
    require_settings,
)
from bench.pretrained.tokenizer import read_tokenizer, special_tokens, token_fields
from bench.specs.architectures import TransformersEncoder
from bench.specs.families import DROPOUTS_OF_BERT, FAMILIES, SIZES_OF_BERT, Family

if TYPE_CHECKING:
    from tokenizers import Tokenizer

BERT = Family(
    language_model="BertForMaskedLM",
    fields=SIZES_OF_BERT,
    dropouts=DROPOUTS_OF_BERT,
    settings=(),
    decoder=("cls",),
    projection="cls.predictions.decoder",
    projection_bias="cls.predictions.bias",
    words="embeddings.word_embeddings",
    blocks="encoder.layer",
    required={
        "hidden_act": "gelu",
        "position_embedding_type": "absolute",
        "is_decoder": False,
        "add_cross_attention": False,
    },
)
ROBERTA = replace(
    BERT,
    language_model="RobertaForMaskedLM",
    decoder=("lm_head",),
    projection="lm_head.decoder",
    projection_bias="lm_head.bias",
    special={"pad_token": "<pad>", "mask_token": "<mask>"},
)
OWN = {
    "bert": BERT,
    "roberta": ROBERTA,
    "xlm-roberta": replace(ROBERTA, language_model="XLMRobertaForMaskedLM"),
    "camembert": replace(ROBERTA, language_model="CamembertForMaskedLM"),
}
"""The networks that the suite computes itself, by the `model_type` of config.json."""

BUFFERS = ("embeddings.position_ids", "embeddings.token_type_ids", "attn.masked_bias")
"""Endings of the names of tensors that older versions of transformers saved and that are no parameters."""


def text_encoder(folder: Path, raw: dict[str, Any], state: dict[str, Tensor]) -> CheckpointContents:
    """Read a text encoder of transformers, with or without its decoder.

    transformers builds the network and loads the tensors; its parameters are then taken over under this suite's names.
    """
    import transformers

    kind = raw["model_type"]
    own, family = NETWORKS.get(kind), OWN.get(kind) or FAMILIES[kind]
    require_settings(folder, raw, family.required)
    network_class = getattr(transformers, family.language_model)
    config = parse_configuration(folder, network_class.config_class, raw)
    state = tied(folder, family.projection, family.projection_bias, family.words, state)
    config.tie_word_embeddings = True  # what `tied` has checked
    try:
        network, loading = load_network(network_class, config, state, attn_implementation=family.attention)
    except (RuntimeError, ValueError) as error:
        raise InputError(f"{folder}: the weights are not those that config.json describes: {error}") from error
    ignored = ignored_tensors(folder, network, loading)
    tokenizer = read_tokenizer(folder, kind)
    tokens = token_fields(folder, config, tokenizer, family.special)
    if family.causal:
        _separate_pairs(tokenizer, special_tokens(folder, family.special)["eos_token"])
    if own == "roberta":
        # It counts positions from behind the padding index: of 514 positions and padding 1, 512 are for tokens.
        tokens["max_length"] = min(tokens["max_length"], config.max_position_embeddings - tokens["pad_id"] - 1)
    decoder = {name: "decoder" if own else f"decoder.{name}" for name in family.decoder}
    tensors, fresh = loaded_parts(network, {network.base_model_prefix: "encoder", **decoder}, loading)
    named = {"network": own} if own else {"family": kind, "config": _settings(family, config)}
    return CheckpointContents(
        "text",
        {**named, **_fields(family, config), **tokens},
        _output_first(network, tensors),
        fresh=fresh,
        ignored=ignored,
        tokenizer=tokenizer.to_str(),
        features=lambda inputs: feature_tokens(
            network.base_model(**inputs).last_hidden_state, inputs["attention_mask"], family.causal
        ),
    )


def ignored_tensors(folder: Path, network: Any, loading: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the tensors that no parameter takes; refuse an encoder that differs."""
    prefix = f"{network.base_model_prefix}."
    if absent := sorted(name for name in loading["missing_keys"] if name.startswith(prefix)):
        raise InputError(f"{folder}: the weights lack a part of the encoder: {', '.join(absent)}.")
    # Tensors that no parameter takes. Those of another head and of the pooler are ignored, but one of the encoder means
    # that the configuration describes another network. Each name -> the name without the prefix.
    bare = {name: name.removeprefix(prefix) for name in sorted(loading["unexpected_keys"])}
    unused = [name for name in bare if not bare[name].endswith(BUFFERS) and not bare[name].startswith("pooler.")]
    modules = tuple(f"{name}." for name, _ in network.base_model.named_children())
    if odd := [name for name in unused if bare[name].startswith(modules)]:
        raise InputError(f"{folder}: the encoder has tensors that config.json does not tell of: {', '.join(odd)}.")
    return tuple(unused)


def loaded_parts(
    network: Any, parts: Mapping[str, str], loading: Mapping[str, Any]
) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """Return the loaded parameters of some modules, and the names of missing ones.

    `parts` gives our name of each module. Tied parameters are returned once. Example, with the modules bert and cls of
    a BERT, which are our encoder and decoder:

        bert.embeddings.word_embeddings.weight      encoder.embeddings.word_embeddings.weight
        cls.predictions.transform.dense.bias        decoder.predictions.transform.dense.bias
        cls.predictions.decoder.weight              left out: it is the first one once more
    """
    tensors, fresh = {}, []
    # In the order of `parts`: the projection, tied to the embeddings, is not named again after them.
    for name, parameter in nn.ModuleDict({module: getattr(network, module) for module in parts}).named_parameters():
        module, _, rest = name.partition(".")
        if name in loading["missing_keys"]:
            fresh.append(f"{parts[module]}.{rest}")
        else:
            tensors[f"{parts[module]}.{rest}"] = parameter.detach()
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


def _fields(family: Family, config: Any) -> dict[str, Any]:
    """Return the backbone's fields that the configuration decides."""
    fields: dict[str, Any] = {field: getattr(config, theirs) for field, theirs in family.fields.items()}
    # GPT-2 leaves the usual width of its MLP out.
    fields["mlp_width"] = fields["mlp_width"] or 4 * fields["width"]
    return {
        "norm_eps": TransformersEncoder.norm_eps,  # of a family whose configuration has none
        "segments": max(1, getattr(config, "type_vocab_size", 1)),
        **fields,
        "dropout": float(getattr(config, family.dropouts[0])),
    }


def _settings(family: Family, config: Any) -> str:
    """Return what else decides what the network computes, as canonical JSON."""
    settings = {name: getattr(config, name) for name in family.settings if hasattr(config, name)}
    return json.dumps(settings, sort_keys=True, separators=(",", ":"))


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
